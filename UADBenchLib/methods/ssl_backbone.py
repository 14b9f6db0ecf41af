"""A feature backbone for slices, trained on healthy ones without labels, for the methods that look at features (fae,
patchcore, reverse_distillation, uniad).

Four tasks teach it. Two views of a slice that differ as scanners do (tone, inverted contrast, bias field, blur, noise,
cut-outs) must have features that agree place by place, do not collapse and do not repeat each other (VICReg, Bardes et
al. 2022, arXiv 2105.04906); every map must tell the slice's intensities without the coarse noise that was added, so
that local detail is kept; the deepest one must tell where in the brain it is; and every map must tell where a slice
was changed, in slices with synthetic anomalies (as Tan et al. 2020, arXiv 2011.04197, and Li et al. 2021, arXiv
2104.04015, teach it). Without the last task features tell site and place and hardly a lesion; with it, detectors on
this backbone have, like DISYRE, met synthetic anomalies before. As a method of its own it scores how far a place's
features lie from their healthy mean, in healthy standard deviations: ``intensity_norm`` for features, without their
place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.corruption import augmentation
from UADBenchLib.corruption.anomalies import with_anomalies
from UADBenchLib.corruption.coarse_noise import coarse_noise
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices
from UADBenchLib.networks.backbones import Backbone

SLICES_HIGH = 84
"""Axial positions of the model grid."""


@dataclass(frozen=True)
class SslBackboneConfig:
    """Configuration of the backbone and its tasks.

    Attributes
    ----------
    taps : tuple of str
        Maps that are taught.
    places : int
        Places of each map that the views are compared at, in a batch.
    invariance, variance, covariance : float
        Weights of VICReg's terms.
    detail, place : float
        Weights of the other two tasks.
    anomaly : float
        Weight of the fourth task.
    visible : float
        Change of prepared intensity from which a place counts as changed in full.
    inverted : float
        Share of views with inverted contrast.
    """

    architecture: str = "b32"
    taps: tuple[str, ...] = ("stem", "stage1", "stage2", "stage3")
    places: int = 1024
    invariance: float = 10.0
    variance: float = 10.0
    covariance: float = 0.5
    detail: float = 10.0
    place: float = 2.0
    anomaly: float = 20.0
    visible: float = 0.15
    inverted: float = 0.3


class SslBackbone(Method):
    """Score: root mean square of standardised features, mean over maps."""

    name = "ssl_backbone"
    paper = "Bardes et al. 2022, arXiv 2105.04906, with three tasks of this project"
    presets = {"compact": Preset(SslBackboneConfig(), Schedule(steps=2_500, learning_rate=1e-3))}

    def __init__(self, config: SslBackboneConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.architecture, config.taps, frozen=False)
        channels = self.backbone.channels
        self.expand = nn.ModuleList(nn.Conv2d(count, 2 * count, 1) for count in channels)
        self.detail = nn.ModuleList(nn.Conv2d(count, 1, 1) for count in channels)
        self.place = nn.Conv2d(channels[-1], 3, 1)
        self.anomaly = nn.ModuleList(nn.Conv2d(count, 1, 1) for count in channels)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        # Both views share one geometry: a place is the same place in both.
        drawn = augmentation.draw(len(slices), generator)
        images, masks = augmentation.apply(drawn, slices.images, slices.masks)
        views, targets = zip(*(self._view(images, masks, generator) for _ in range(2)), strict=True)
        corrupted, changed = self._corrupt(images, masks, generator)
        maps = self.backbone.raw(torch.cat([*views, corrupted]))
        targets, inside = torch.cat(targets), torch.cat([masks, masks]).float()
        loss = torch.zeros((), device=self.device)
        for values, expand, detail, anomaly in zip(maps, self.expand, self.detail, self.anomaly, strict=True):
            share = F.adaptive_avg_pool2d(inside, values.shape[-2:])
            values, shown = values[: len(inside)], values[len(inside) :]
            wanted = F.adaptive_avg_pool2d(changed, shown.shape[-2:])
            error = F.binary_cross_entropy_with_logits(anomaly(shown).float(), wanted, reduction="none")
            loss = loss + self.config.anomaly * _mean_within(error, share[: len(images)])
            loss = loss + self._vicreg(expand(values).float(), share[: len(images)], generator)
            wanted = F.adaptive_avg_pool2d(targets, values.shape[-2:])
            loss = loss + self.config.detail * _mean_within((detail(values).float() - wanted).square(), share)
        where = self._places(slices.positions, values.shape[-2:])
        error = (self.place(values).float() - torch.cat([where, where])).square()
        return loss / len(maps) + self.config.place * _mean_within(error, share)

    def _view(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One scanner's look at the slices, with coarse noise and cut-outs; and the same without these two."""
        count = len(images)

        def per_slice(low: float, high: float) -> Tensor:
            return augmentation.uniform(count, low, high, generator, images.device)[:, None, None, None]

        tone = images.clamp(0, 1.5) ** torch.exp(per_slice(-0.5, 0.5))
        inverted = per_slice(0, 1) < self.config.inverted
        tone = torch.where(inverted, 1.1 - tone, tone)
        field = augmentation.normal((count, 1, 4, 4), generator, images.device) * per_slice(0, 0.15)
        field = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True)
        clean = (tone * torch.exp(field) * per_slice(0.8, 1.2) + per_slice(-0.05, 0.05)) * masks
        noisy = clean + coarse_noise(images, masks, generator, grids=(12, 24, 48), sigma=(0.0, 0.2))
        noisy = noisy + augmentation.normal(images.shape, generator, images.device) * per_slice(0, 0.05)
        small = (torch.rand(count, 1, 5, 6, generator=generator) < 0.05).float().to(images.device)
        hidden = F.interpolate(small, images.shape[-2:]) > 0.5
        return torch.where(hidden, 0.0, noisy) * masks, clean

    def _corrupt(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The slices with synthetic anomalies, and how much each place was changed (N, 1, X, Y), in [0, 1]."""
        corrupted = with_anomalies(images, masks, generator, clean=0.0)
        return corrupted, ((corrupted - images).abs() / self.config.visible).clamp(max=1) * masks

    def _vicreg(self, values: Tensor, share: Tensor, generator: torch.Generator) -> Tensor:
        """Invariance, variance and covariance of two views (2N, C, h, w) at places in the brain, drawn by the ``share``
        (N, 1, h, w) of it there."""
        chosen = augmentation.pick(share.flatten()[None], self.config.places, generator)[0]
        first, second = values.permute(0, 2, 3, 1).flatten(0, 2).chunk(2)
        first, second = first[chosen], second[chosen]
        loss = self.config.invariance * F.mse_loss(first, second)
        for view in (first, second):
            centred = view - view.mean(dim=0)
            spread = (centred.square().mean(dim=0) + 1e-4).sqrt()
            loss = loss + self.config.variance * F.relu(1 - spread).mean() / 2
            together = (centred.T @ centred / len(centred)).square()
            loss = loss + self.config.covariance * (together.sum() - together.diagonal().sum()) / together.shape[0]
        return loss

    @staticmethod
    def _places(positions: Tensor, size: tuple[int, int]) -> Tensor:
        """Where each cell of a map lies: distance from the middle plane, front to back, bottom to top; about [-1, 1].

        The side is left out, since slices are mirrored at random.
        """
        x, y = (torch.linspace(-1, 1, count, device=positions.device) for count in size)
        z = 2 * positions.float() / SLICES_HIGH - 1
        grid = torch.stack(torch.meshgrid(x.abs(), y, indexing="ij")).expand(len(positions), 2, *size)
        return torch.cat([grid, z[:, None, None, None].expand(-1, 1, *size)], dim=1)

    def finish(self, batches: Iterable[Slices]) -> None:
        """Measure the healthy mean and spread of every channel."""
        self.backbone.measure((batch.images, batch.masks) for batch in batches)

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        total = torch.zeros_like(slices.images)
        for values in self.backbone(slices.images):
            far = values.square().mean(dim=1, keepdim=True).sqrt()
            total += F.interpolate(far, slices.images.shape[-2:], mode="bilinear", align_corners=False)
        return total / len(self.config.taps) * slices.masks


def _mean_within(values: Tensor, share: Tensor) -> Tensor:
    """Mean of values (N, C, h, w) weighed by ``share`` (N, 1, h, w)."""
    return (values * share).sum() / (share.sum() * values.shape[1]).clamp(min=1e-6)


METHOD = SslBackbone
