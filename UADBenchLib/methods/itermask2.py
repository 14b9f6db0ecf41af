"""IterMask2: iterative mask shrinking (Liang et al. 2024, arXiv 2406.02422). Two networks.

What may be abnormal is hidden under noise, inpainted from the rest and from the slice's high frequencies, and shown
again where the inpainting was right; what stays hidden to the end is abnormal. The first network, which sees the high
frequencies alone, gives the first mask; the second inpaints. The error above which a pixel stays hidden is measured
after training. The paper preset scores the squared error of the last reconstruction in the whole brain, as in the
benchmark of arXiv 2512.01534; the compact preset weighs it up where the final mask lies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.corruption import augmentation
from UADBenchLib.corruption.inpainting import inpainting_masks
from UADBenchLib.corruption.noise import slice_noise
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices, brain_average, layer_randomness, published
from UADBenchLib.methods.frame import Frame
from UADBenchLib.networks.diffusion_unet import DiffusionUNet, DiffusionUNetSettings
from UADBenchLib.networks.unet import UNet

GRID_MM = 2.0
"""Edge of a pixel of the model grid."""
SEED = 4
"""Of the masks that the threshold is measured under."""


@dataclass(frozen=True)
class IterMask2Config:
    """Configuration of IterMask2.

    Attributes
    ----------
    first_widths, widths, stem : tuple of int, tuple of int, int
        Channels per level of the two networks; folding of the compact U-Net.
    blocks, size, scale
        As for ANDi; both networks have the same blocks.
    cutoff : float
        Frequency in cycles per pixel below which the hint has no amplitude.
    inside : float
        Amplitude of the hint below the cutoff.
    first_share : float
        Share of the brain in the first mask.
    quantile, slices : float, int
        The threshold is this quantile of the squared errors of hidden pixels of this many healthy slices.
    stop, most : float, int
        A slice is done when its mask shrinks by less than this share, or after this many rounds.
    hidden_weight : float
        Weight of the training error under the mask relative to the rest.
    mask_bonus : float
        How much more a pixel of the final mask counts in the score; 0 as in the benchmark.
    averaged : int
        Side of the square over which the difference is averaged, sign and all, before it is squared; 1 as in the
        benchmark. See ``brain_average``.
    normalisation : str
        Of the published U-Net; see ``DiffusionUNetSettings``.
    """

    first_widths: tuple[int, ...] = (16, 24, 40, 56)
    widths: tuple[int, ...] = (16, 32, 56, 72)
    stem: int = 2
    blocks: tuple[int, ...] = ()
    size: int = 0
    scale: int = 1
    cutoff: float = 0.12
    inside: float = 0.0
    first_share: float = 0.6
    quantile: float = 0.8
    slices: int = 400
    stop: float = 0.02
    most: int = 8
    hidden_weight: float = 4.0
    mask_bonus: float = 1.0
    averaged: int = 9
    normalisation: str = "batch"
    augment: bool = True
    causal: bool = False


PAPER = IterMask2Config(
    first_widths=(32, 32, 32, 64, 96, 128),
    widths=(32, 32, 32, 64, 96, 128),
    blocks=(1, 1, 1, 2, 4, 2),
    size=224,
    scale=2,
    cutoff=15 / 224,
    inside=1.0,
    stop=0.1,
    most=100,
    hidden_weight=1.0,
    mask_bonus=0.0,
    averaged=1,
    augment=False,
)


class IterMask2(Method):
    """Score: squared error of the last reconstruction, intensities in [-3, 3]."""

    name = "itermask2"
    paper = "Liang et al. 2024, arXiv 2406.02422"
    presets = {
        "compact": Preset(IterMask2Config(), Schedule(steps=4_000, learning_rate=8e-4)),
        "paper": Preset(PAPER, published(100_000, ema=0.9999)),
    }

    def __init__(self, config: IterMask2Config) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        self.first = self._network(config.first_widths, channels=1)
        self.second = self._network(config.widths, channels=2)
        self.register_buffer("threshold", torch.tensor(0.1))

    def _network(self, widths: tuple[int, ...], channels: int) -> nn.Module:
        config = self.config
        if not config.blocks:
            return UNet(widths, config.stem, channels=channels)
        settings = DiffusionUNetSettings(
            widths, config.blocks, attention=(4, 5), normalisation=config.normalisation, causal=config.causal
        )
        return DiffusionUNet(settings, channels=channels)

    def hint(self, images: Tensor) -> Tensor:
        """The slices' phase at all frequencies, and their amplitude at high ones alone."""
        spectrum = torch.fft.rfft2(images)
        down = torch.fft.fftfreq(images.shape[-2], device=images.device)[:, None]
        across = torch.fft.rfftfreq(images.shape[-1], device=images.device)[None]
        high = (down**2 + across**2).sqrt() >= self.config.cutoff
        amplitude = torch.where(high, spectrum.abs(), self.config.inside)
        return torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=images.shape[-2:])

    def _enter(self, slices: Slices) -> tuple[Tensor, Tensor]:
        """Framed images in [-3, 3] and brain masks."""
        images, masks = self.frame.enter(slices.images, slices.masks)
        return 6 * images - 3, masks

    def _inpaint(self, images: Tensor, hint: Tensor, hidden: Tensor, noise: Tensor) -> Tensor:
        return self.second(torch.cat([torch.where(hidden, noise, images), hint], dim=1)).float()

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """The sum of both networks' losses: they share nothing, so each learns as it would alone."""
        slices = self.augmented(slices, generator)
        images, masks = self._enter(slices)
        hint = self.hint(images)
        hidden = inpainting_masks(masks, generator, GRID_MM / self.frame.scale)
        noise = augmentation.normal(images.shape, generator, self.device)
        with layer_randomness(generator, self.device):
            first = self.first(hint).float()
            second = self._inpaint(images, hint, hidden, noise)
        weight = torch.where(hidden, self.config.hidden_weight, 1.0)
        return F.mse_loss(first, images) + (weight * (second - images).square()).mean()

    def finish(self, batches: Iterable[Slices]) -> None:
        """Measure the threshold: a quantile of the squared errors of hidden pixels of healthy slices."""
        generator, errors, seen = torch.Generator().manual_seed(SEED), [], 0
        with torch.no_grad():
            for batch in batches:
                images, masks = self._enter(batch.to(self.device))
                hidden = inpainting_masks(masks, generator, GRID_MM / self.frame.scale)
                noise = augmentation.normal(images.shape, generator, self.device)
                error = (self._inpaint(images, self.hint(images), hidden, noise) - images).square()
                errors.append(error[hidden].cpu())
                seen += len(batch)
                if seen >= self.config.slices:
                    break
        values = torch.cat(errors).sort().values
        self.threshold.fill_(float(values[int(self.config.quantile * (len(values) - 1))]))

    def _first_mask(self, images: Tensor, hint: Tensor, masks: Tensor) -> Tensor:
        """The share of each brain where the first network errs most."""
        error = torch.where(masks, (images - self.first(hint).float()).square(), -1.0).flatten(1)
        rank = error.argsort(dim=1, descending=True).argsort(dim=1)
        wanted = (self.config.first_share * masks.flatten(1).sum(dim=1)).ceil()
        return (rank < wanted[:, None]).reshape(masks.shape) & masks

    def _shrink(self, slices: Slices, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Framed images, their last reconstruction and the final mask."""
        images, masks = self._enter(slices)
        hint = self.hint(images)
        hidden = self._first_mask(images, hint, masks)
        restored, going = images.clone(), hidden.flatten(1).any(dim=1)
        for _ in range(self.config.most):
            if not going.any():
                break
            noise = slice_noise(slices.positions, images.shape, generator)
            part = images[going], hint[going], hidden[going], noise[going]
            painted = self._inpaint(*part)
            smaller = hidden[going] & ((painted - images[going]).square() > self.threshold)
            before, after = (mask.flatten(1).sum(dim=1) for mask in (hidden[going], smaller))
            restored[going], hidden[going] = painted, smaller
            going = going.clone()
            going[going.clone()] = (before - after >= self.config.stop * before) & (after > 0)
        return images, restored, hidden

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, restored, hidden = self._shrink(slices, generator)
        _, masks = self.frame.enter(slices.images, slices.masks)
        difference = brain_average(images - restored, masks, self.config.averaged)
        error = difference.square() * (1 + self.config.mask_bonus * hidden)
        return self.frame.leave(error, slices.images.shape) * slices.masks

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        _, restored, _ = self._shrink(slices, generator)
        return self.frame.leave((restored + 3) / 6, slices.images.shape) * slices.masks


METHOD = IterMask2
