"""Denoising autoencoder with coarse noise (Kascenas et al. 2023, "The role of noise in denoising models for anomaly
detection in medical images", arXiv 2301.08330).

A U-Net with skips removes coarse noise from healthy slices; on a scan it removes what looks like such noise, and the
score is what it changed. The compact preset draws the noise level from a range, since one T1w channel carries less than
the four channels of the original, and predicts the noise instead of the slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from UADBenchLib.corruption.coarse_noise import coarse_noise
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices
from UADBenchLib.methods.frame import Frame
from UADBenchLib.networks.denoising_unet import DenoisingUNet
from UADBenchLib.networks.unet import UNet


@dataclass(frozen=True)
class DenoisingAutoencoderConfig:
    """Channels per level and folding of the U-Net; cells of the noise along the longer side (192 mm); range of its
    standard deviation; whether the network is the published one; its frame (see ``Frame``)."""

    widths: tuple[int, ...] = (24, 48, 64, 80)
    stem: int = 2
    grids: tuple[int, ...] = (4, 7, 11, 16)
    sigma: tuple[float, float] = (0.05, 0.5)
    augment: bool = True
    standardised: bool = False
    size: int = 0
    scale: int = 1


PAPER = DenoisingAutoencoderConfig(
    widths=(64, 128, 256, 512), grids=(16,), sigma=(0.2, 0.2), augment=False, standardised=True, size=128
)


class DenoisingAutoencoder(Method):
    """Score: absolute difference between a slice and its denoised self."""

    name = "denoising_autoencoder"
    paper = "Kascenas et al. 2023, arXiv 2301.08330"
    presets = {
        "compact": Preset(DenoisingAutoencoderConfig(), Schedule(steps=5_000, learning_rate=8e-4)),
        "paper": Preset(
            PAPER, Schedule(steps=67_200, learning_rate=1e-4, weight_decay=1e-5, warm_up=0, clip=0.5, ema=0.0)
        ),
    }

    def __init__(self, config: DenoisingAutoencoderConfig) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        self.network = DenoisingUNet(config.widths) if config.standardised else UNet(config.widths, config.stem)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        slices = self.augmented(slices, generator)
        images, masks = self.frame.enter(slices.images, slices.masks)
        noise = coarse_noise(images, masks, generator, grids=self.config.grids, sigma=self.config.sigma)
        error = (self._restore(images + noise) - images) * masks
        return error.square().sum() / masks.sum().clamp(min=1)

    def _restore(self, images: Tensor) -> Tensor:
        if self.config.standardised:
            return self.network(images).float()
        # The network predicts what to take away: a fresh one is the identity, not an empty brain.
        return images - self.network(images).float()

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, _ = self.frame.enter(slices.images, slices.masks)
        return self.frame.leave(self._restore(images), slices.images.shape) * slices.masks

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return (slices.images - self.reconstruct(slices, generator)).abs() * slices.masks


METHOD = DenoisingAutoencoder
