"""FAE: structural feature autoencoder (Meissen et al. 2022, arXiv 2208.10992).

Shallow feature maps of a frozen backbone are autoencoded under a loss of structural similarity, so that texture and
structure have to be explained and not intensity alone; the score is the structural dissimilarity of the maps and their
reconstruction. The compact preset uses standardised maps of the small backbone, and its deeper ones, since the shallow
ones are mostly noise in real T1w slices; it learns to restore the maps of slices with synthetic anomalies, and has one
window for loss and score, where the published evaluation has windows of 5 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from UADBenchLib.methods.base import Preset, Schedule, Slices, layer_randomness, published
from UADBenchLib.methods.features import FeatureConfig, FeatureMethod, stacked
from UADBenchLib.networks.similarity import ssim_map


@dataclass(frozen=True)
class FaeConfig(FeatureConfig):
    """Configuration of FAE, beside that of its backbone.

    Attributes
    ----------
    widths : tuple of int
        Channels of the encoder's levels, each with half the resolution of the one before.
    kernel, bottom_kernel, first_kernel : int
        Kernels of the resampling convolutions, of the one at the bottom, and of the first that enlarges.
    dropout : float
    loss_window, score_window : int
        Windows of the structural similarity.
    unit : float
        Range of the features that the similarity's constants belong to. Standardised features span about 12, 6 of them
        within the brain: a small unit lets noise count as structure where features hardly vary, a large one weighs
        places by how much they vary.
    """

    taps: tuple[str, ...] = ("stage2", "stage3")
    restore: bool = True
    widths: tuple[int, ...] = (112, 128)
    kernel: int = 4
    bottom_kernel: int = 3
    first_kernel: int = 4
    dropout: float = 0.0
    loss_window: int = 3
    score_window: int = 3
    unit: float = 50.0


PAPER = FaeConfig(
    architecture="resnet18",
    taps=("stem", "layer1", "layer2"),
    source="imagenet",
    standardise=False,
    imagenet_statistics=True,
    size=224,
    scale=2,
    augment=False,
    restore=False,
    widths=(100, 150, 200, 300),
    kernel=6,
    bottom_kernel=5,
    first_kernel=7,
    dropout=0.1,
    loss_window=5,
    score_window=11,
    unit=1.0,
)


class FeatureAutoencoder(nn.Module):
    """Convolutional autoencoder of feature maps (N, channels, H, W)."""

    def __init__(self, channels: int, config: FaeConfig) -> None:
        super().__init__()
        widths, kernel = config.widths, config.kernel

        def dressed(layer: nn.Module, outputs: int) -> nn.Sequential:
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.01), nn.Dropout2d(config.dropout))

        ins = (channels, *widths[:-1])
        self.encoder = nn.ModuleList(
            dressed(nn.Conv2d(i, o, kernel, 2, kernel // 2 - 1, bias=False), o)
            for i, o in zip(ins, widths, strict=True)
        )
        bottom = config.bottom_kernel
        self.bottom = nn.Conv2d(widths[-1], widths[-1], bottom, padding=bottom // 2, bias=False)
        outs = (*widths[-2::-1], channels)
        kernels = (config.first_kernel, *[kernel] * (len(outs) - 1))
        self.decoder = nn.ModuleList(
            dressed(nn.ConvTranspose2d(i, o, k, 2, kernel // 2 - 1, bias=False), o)
            for i, o, k in zip(widths[::-1], outs, kernels, strict=True)
        )
        self.last = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = layer(x)
        x = self.bottom(x)
        for layer in self.decoder:
            x = layer(x)
        return self.last(x)


class Fae(FeatureMethod):
    """Score: one minus the structural similarity of feature maps and their reconstruction, mean over channels."""

    name = "fae"
    paper = "Meissen et al. 2022, arXiv 2208.10992"
    presets = {
        "compact": Preset(FaeConfig(), Schedule(steps=2_500, learning_rate=2e-3)),
        # T1w; twice the steps for T2w.
        "paper": Preset(PAPER, published(20_000)),
    }

    def __init__(self, config: FaeConfig) -> None:
        super().__init__(config)
        self.network = FeatureAutoencoder(sum(self.backbone.channels), config)

    @staticmethod
    def _features(maps: list[Tensor]) -> Tensor:
        return stacked(maps, maps[0].shape[-2:])

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        shown, wanted, _ = self.training_maps(slices, generator)
        shown, wanted = self._features(shown), self._features(wanted)
        with layer_randomness(generator, self.device):
            restored = self.network(shown)
        return 1 - ssim_map(wanted, restored, window=self.config.loss_window, unit=self.config.unit).mean()

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        features = self._features(self.maps(slices))
        restored = self.network(features)
        alike = ssim_map(features, restored, window=self.config.score_window, padded=True, unit=self.config.unit)
        return self.to_grid((1 - alike.mean(dim=1, keepdim=True)).clamp(min=0), slices)


METHOD = Fae
