"""DISYRE: diffusion-inspired synthetic restoration (Naval Marimont et al. 2024, arXiv 2311.15453; v2 arXiv 2405.06284).

A network is shown slices with synthetic anomalies of known strength and restores the healthy slice. At test time it is
asked to restore the scan at several assumed strengths; the score is the mean absolute change. Differences of the
compact preset from the published one: whole slices instead of windows, strength embedded on a logarithmic scale instead
of as a step of a schedule, a fifth of the slices left clean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from UADBenchLib.corruption import anomalies, augmentation
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices
from UADBenchLib.networks.unet import UNet

SMALLEST = 0.004
"""Strengths below count as clean."""


@dataclass(frozen=True)
class DisyreConfig:
    """Channels per level and folding of the U-Net, shapes in pixels, share of slices left clean, strengths assumed at
    test time."""

    widths: tuple[int, ...] = (48, 96, 128, 160)
    stem: int = 2
    radius: tuple[float, float] = (2.0, 20.0)
    shapes: int = 3
    clean: float = 0.2
    strengths: tuple[float, ...] = (0.005, 0.05, 0.27, 0.73)
    levels: int = 5
    augment: bool = True


class Disyre(Method):
    """Score: mean over assumed strengths of the absolute difference between a slice and its restoration."""

    name = "disyre"
    paper = "Naval Marimont et al. 2024, arXiv 2311.15453 and 2405.06284"
    presets = {"compact": Preset(DisyreConfig(), Schedule(steps=9_000, learning_rate=8e-4))}

    def __init__(self, config: DisyreConfig) -> None:
        super().__init__(config)
        self.network = UNet(config.widths, config.stem, conditioned=True)
        self.register_buffer("levels", torch.linspace(0.1, 0.9, config.levels))

    def fit(self, batches: Iterable[Slices]) -> None:
        """Measure the tissue levels on the first two hundred slices."""
        values, seen = [], 0
        for batch in batches:
            values.append(batch.images[batch.masks])
            seen += len(batch)
            if seen >= 200:
                break
        sample = torch.cat(values)
        stride = max(1, len(sample) // 100_000)
        self.levels.copy_(anomalies.tissue_levels(sample[::stride], self.config.levels))

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, masks = slices.images, slices.masks
        if self.config.augment:
            images, masks = augmentation.apply(augmentation.draw(len(slices), generator), images, masks)
        corrupted, strength = self._corrupt(images, masks, generator)
        # What is random is drawn on the processor, so that a run does not depend on the device; the network may be
        # elsewhere.
        device = next(self.network.parameters()).device
        images, masks = images.to(device), masks.to(device)
        error = (self._restore(corrupted.to(device), strength.to(device)) - images) * masks
        return error.square().sum() / masks.sum().clamp(min=1)

    def _corrupt(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ranges = anomalies.ShapeRange(radius=self.config.radius, most=self.config.shapes)
        shape = anomalies.draw_shapes(masks, generator, ranges)
        dirty = torch.rand(len(images), generator=generator) >= self.config.clean
        shape = shape * dirty[:, None, None, None]
        textured, alpha = anomalies.foreign_texture(images, shape, generator)
        corrupted, bias = anomalies.intensity_bias(textured, shape, generator, self.levels.cpu())
        return corrupted * masks, torch.maximum(alpha, bias) * dirty

    def _restore(self, images: Tensor, strength: Tensor) -> Tensor:
        condition = 1000 * (1 - torch.log(strength.clamp(SMALLEST, 1)) / math.log(SMALLEST))
        return images - self.network(images, condition).float()

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Restoration at the strongest assumed corruption."""
        return self._restore(slices.images, self._strength(slices, max(self.config.strengths))) * slices.masks

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        total = torch.zeros_like(slices.images)
        for strength in self.config.strengths:
            restored = self._restore(slices.images, self._strength(slices, strength))
            total += (slices.images - restored).abs()
        return total / len(self.config.strengths) * slices.masks

    @staticmethod
    def _strength(slices: Slices, value: float) -> Tensor:
        return torch.full((len(slices),), value, device=slices.images.device)


METHOD = Disyre
