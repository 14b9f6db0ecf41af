"""Denoising autoencoder with coarse noise (Kascenas et al. 2023, "The role of noise in denoising models for anomaly
detection in medical images", arXiv 2301.08330).

A U-Net with skips removes coarse noise from healthy slices; on a scan it removes what looks like such noise, and the
score is what it changed. The noise level is drawn from a range, since one T1w channel carries less than the four
channels of the original.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from UADBenchLib.corruption import augmentation
from UADBenchLib.corruption.coarse_noise import coarse_noise
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices
from UADBenchLib.networks.unet import UNet


@dataclass(frozen=True)
class DenoisingAutoencoderConfig:
    """Channels per level and folding of the U-Net; cells of the noise along the longer side (192 mm); range of its
    standard deviation."""

    widths: tuple[int, ...] = (48, 96, 128, 160)
    stem: int = 2
    grids: tuple[int, ...] = (6, 10, 16)
    sigma: tuple[float, float] = (0.05, 0.35)
    augment: bool = True


class DenoisingAutoencoder(Method):
    """Score: absolute difference between a slice and its denoised self."""

    name = "denoising_autoencoder"
    paper = "Kascenas et al. 2023, arXiv 2301.08330"
    presets = {"compact": Preset(DenoisingAutoencoderConfig(), Schedule(steps=9_000, learning_rate=8e-4))}

    def __init__(self, config: DenoisingAutoencoderConfig) -> None:
        super().__init__(config)
        self.network = UNet(config.widths, config.stem)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, masks = slices.images, slices.masks
        if self.config.augment:
            images, masks = augmentation.apply(augmentation.draw(len(slices), generator), images, masks)
        noise = coarse_noise(images, masks, generator, grids=self.config.grids, sigma=self.config.sigma)
        # What is random is drawn on the processor, so that a run does not depend on the device; the network may be
        # elsewhere.
        device = next(self.network.parameters()).device
        images, noise, masks = images.to(device), noise.to(device), masks.to(device)
        error = (self._restore(images + noise) - images) * masks
        return error.square().sum() / masks.sum().clamp(min=1)

    def _restore(self, images: Tensor) -> Tensor:
        # The network predicts what to take away: a fresh one is the identity, not an empty brain.
        return images - self.network(images).float()

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return self._restore(slices.images) * slices.masks

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return (slices.images - self.reconstruct(slices, generator)).abs() * slices.masks


METHOD = DenoisingAutoencoder
