"""Reverse distillation (Deng & Li 2022, arXiv 2201.10703).

A frozen backbone, the teacher, turns a slice into feature maps; a bottleneck fuses them into a small code, and a
decoder, the student, grows the teacher's maps out of the code again. What healthy slices never showed does not pass the
bottleneck, so teacher and student disagree there: the score is one minus the cosine of their features, summed over
maps. The published loss compares whole maps as one long vector each; the compact preset adds the loss place by place,
which is what is scored, and shows the student slices with synthetic anomalies, since a code that is small enough to
stop a lesion would stop the anatomy too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.methods.base import Preset, Schedule, Slices, brain_average, published
from UADBenchLib.methods.features import FeatureConfig, FeatureMethod
from UADBenchLib.networks.distillation import Bottleneck, Decoder


@dataclass(frozen=True)
class ReverseDistillationConfig(FeatureConfig):
    """Configuration of reverse distillation, beside that of its teacher.

    Attributes
    ----------
    code : int
        Channels of the code.
    fuse_blocks, blocks : int, tuple of int
        Residual blocks of the bottleneck, and of the decoder's stages, deep ones first.
    wide : bool
        Blocks of a Wide ResNet-50 instead of basic ones.
    by_place : float
        Weight of the loss place by place; 0 as published.
    averaged : int
        Side of the square, in pixels of the frame, over which features are averaged before teacher and student are
        compared; on every map the nearest odd number of its own places; 1 as published. See ``brain_average``.
    unused_layer : bool
        See ``Bottleneck``.
    """

    taps: tuple[str, ...] = ("stage1", "stage2", "stage3")
    restore: bool = True
    code: int = 96
    fuse_blocks: int = 1
    blocks: tuple[int, ...] = (1, 1, 1)
    wide: bool = False
    by_place: float = 1.0
    averaged: int = 10
    unused_layer: bool = False


PAPER = ReverseDistillationConfig(
    architecture="wide_resnet50_2",
    taps=("layer1", "layer2", "layer3"),
    source="imagenet",
    standardise=False,
    size=224,
    scale=2,
    augment=False,
    restore=False,
    code=2048,
    fuse_blocks=3,
    blocks=(3, 4, 6),
    wide=True,
    by_place=0.0,
    averaged=1,
    unused_layer=True,
)


class ReverseDistillation(FeatureMethod):
    """Score: one minus the cosine of teacher's and student's features, summed over maps."""

    name = "reverse_distillation"
    paper = "Deng & Li 2022, arXiv 2201.10703"
    presets = {
        "compact": Preset(ReverseDistillationConfig(), Schedule(steps=4_000, learning_rate=2e-3)),
        # T1w; 15,000 steps for T2w.
        "paper": Preset(PAPER, published(20_000)),
    }

    def __init__(self, config: ReverseDistillationConfig) -> None:
        super().__init__(config)
        channels = self.backbone.channels
        self.bottleneck = Bottleneck(channels, config.code, config.fuse_blocks, config.wide, config.unused_layer)
        self.decoder = Decoder(config.code, channels, config.blocks, config.wide)
        for layer in self.decoder.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        # A student that ends with ReLU can answer raw maps, which do too, but not standardised ones.
        self.answer = torch.nn.ModuleList(
            torch.nn.Conv2d(count, count, 1) if config.standardise else torch.nn.Identity() for count in channels
        )

    def _student(self, maps: list[Tensor]) -> list[Tensor]:
        grown = self.decoder(self.bottleneck(maps), [part.shape[-2:] for part in maps[::-1]])
        return [answer(part).float() for answer, part in zip(self.answer, grown, strict=True)]

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        shown, wanted, _ = self.training_maps(slices, generator)
        loss = torch.zeros((), device=self.device)
        for taught, learnt in zip(wanted, self._student(shown), strict=True):
            loss = loss + (1 - F.cosine_similarity(taught.flatten(1), learnt.flatten(1))).mean()
            if self.config.by_place:
                loss = loss + self.config.by_place * (1 - F.cosine_similarity(taught, learnt)).mean()
        return loss

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        maps = self.maps(slices)
        _, masks = self.frame.enter(slices.images, slices.masks)
        total = torch.zeros_like(slices.images)
        for taught, learnt, stride in zip(maps, self._student(maps), self.backbone.strides, strict=True):
            share = F.adaptive_avg_pool2d(masks.to(taught), taught.shape[-2:])
            side = 2 * (self.config.averaged // (2 * stride)) + 1
            taught, learnt = (brain_average(part, share, side) for part in (taught, learnt))
            total += self.to_grid((1 - F.cosine_similarity(taught, learnt)).clamp(min=0)[:, None], slices)
        return total


METHOD = ReverseDistillation
