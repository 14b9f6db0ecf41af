"""DISYRE: diffusion-inspired synthetic restoration (Naval Marimont et al. 2024, arXiv 2311.15453; v2 arXiv 2405.06284).

A network is shown slices with synthetic anomalies of known strength and restores the healthy slice. At test time it is
asked to restore the scan at several assumed strengths; the score is the mean absolute change. Differences of the
compact preset from the published one: whole slices instead of windows, strength embedded on a logarithmic scale instead
of as a step of a schedule, a fifth of the slices left clean. Both draw their shapes from ``corruption.anomalies``
instead of a library of stored shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from UADBenchLib.corruption import anomalies, augmentation
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices, layer_randomness, published
from UADBenchLib.methods.frame import Frame
from UADBenchLib.networks.diffusion_unet import DiffusionUNet, DiffusionUNetSettings
from UADBenchLib.networks.unet import UNet

SMALLEST = 0.004
"""Strengths below count as clean."""


@dataclass(frozen=True)
class DisyreConfig:
    """Configuration of DISYRE.

    Attributes
    ----------
    widths, stem : tuple of int, int
        Channels per level; folding of the compact U-Net.
    radius : (float, float)
        Of the shapes, in pixels of the frame.
    shapes : int
        Shapes in a slice, at most.
    clean : float
        Share of slices left clean.
    strengths : tuple of float
        Assumed at test time.
    levels : int
        Tissue levels of the intensity bias.
    blocks, size, scale
        As for ANDi; with blocks the network is the published one, which answers the slice and not the change.
    window, step : int
        Side of the square windows that the published network sees, and their distance, in pixels of the frame; 0 for
        whole slices.
    strongest : float
        Largest intensity bias.
    brain_share : bool
        Multiply scores by the share of the frame that is brain, as the released code does; lowers outer slices.
    causal, single_activation : bool
        See ``DiffusionUNetSettings``.
    """

    widths: tuple[int, ...] = (24, 48, 80, 96)
    stem: int = 2
    radius: tuple[float, float] = (2.0, 20.0)
    shapes: int = 3
    clean: float = 0.2
    strengths: tuple[float, ...] = (0.005, 0.05, 0.27, 0.73)
    levels: int = 5
    augment: bool = True
    blocks: tuple[int, ...] = ()
    size: int = 0
    scale: int = 1
    window: int = 0
    step: int = 0
    strongest: float = 0.6
    brain_share: bool = False
    causal: bool = False
    single_activation: bool = False


PAPER = DisyreConfig(
    widths=(64, 128, 128, 256, 256),
    blocks=(1, 1, 2, 4, 2),
    radius=(5.0, 22.0),
    shapes=1,
    clean=0.0,
    size=224,
    scale=2,
    window=128,
    step=32,
    strongest=1.0,
)


class Disyre(Method):
    """Score: mean over assumed strengths of the absolute difference between a slice and its restoration."""

    name = "disyre"
    paper = "Naval Marimont et al. 2024, arXiv 2311.15453 and 2405.06284"
    presets = {
        "compact": Preset(DisyreConfig(), Schedule(steps=4_500, learning_rate=8e-4)),
        "paper": Preset(PAPER, published(100_000, batch=64, ema=0.9999)),
    }

    def __init__(self, config: DisyreConfig) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        if config.blocks:
            settings = DiffusionUNetSettings(
                config.widths,
                config.blocks,
                attention=(3, 4),
                head=64,
                rescale=True,
                causal=config.causal,
                activate_twice=not config.single_activation,
            )
            self.network = DiffusionUNet(settings, conditioned=True)
        else:
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
        slices = self.augmented(slices, generator)
        images, masks = self.frame.enter(slices.images, slices.masks)
        if self.config.window:
            images, masks = _windows(images, masks, self.config.window, generator)
        corrupted, strength = self._corrupt(images, masks, generator)
        if self.config.blocks:
            with layer_randomness(generator, self.device):
                restored = self._restore(corrupted, strength)
            return (2 * (restored - images)).square().mean()
        error = (self._restore(corrupted, strength) - images) * masks
        return error.square().sum() / masks.sum().clamp(min=1)

    def _corrupt(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ranges = anomalies.ShapeRange(radius=self.config.radius, most=self.config.shapes)
        shape = anomalies.draw_shapes(masks, generator, ranges)
        dirty = augmentation.uniform(len(images), 0, 1, generator, images.device) >= self.config.clean
        shape = shape * dirty[:, None, None, None]
        textured, alpha = anomalies.foreign_texture(images, shape, generator)
        corrupted, bias = anomalies.intensity_bias(
            textured, shape, generator, self.levels, largest=self.config.strongest
        )
        return corrupted * masks, torch.maximum(alpha, bias) * dirty

    def _restore(self, images: Tensor, strength: Tensor) -> Tensor:
        if self.config.blocks:
            return (self.network(2 * images - 1, published_label(strength)).float() + 1) / 2
        condition = 1000 * (1 - torch.log(strength.clamp(SMALLEST, 1)) / math.log(SMALLEST))
        return images - self.network(images, condition).float()

    def _restored(self, slices: Slices, strength: float) -> Tensor:
        """Framed slices restored at one assumed strength."""
        images, _ = self.frame.enter(slices.images, slices.masks)
        side, step = self.config.window, self.config.step
        if not side:
            return self._restore(images, images.new_full((len(images),), strength))
        weight = _window_weight(side, images.device)
        total, norm = torch.zeros_like(images), torch.zeros_like(images[:1])
        corners = [(y, x) for y in _starts(images.shape[-2], side, step) for x in _starts(images.shape[-1], side, step)]
        for y, x in corners:
            part = images[..., y : y + side, x : x + side]
            restored = self._restore(part, images.new_full((len(images),), strength))
            total[..., y : y + side, x : x + side] += weight * restored
            norm[..., y : y + side, x : x + side] += weight
        return total / norm

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Restoration at the strongest assumed corruption."""
        restored = self._restored(slices, max(self.config.strengths))
        return self.frame.leave(restored, slices.images.shape) * slices.masks

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, masks = self.frame.enter(slices.images, slices.masks)
        total = torch.zeros_like(images)
        for strength in self.config.strengths:
            total += (images - self._restored(slices, strength)).abs()
        if self.config.blocks:
            total = 2 * total  # published in units of [-1, 1]
        if self.config.brain_share:
            total = total * masks.float().mean(dim=(-2, -1), keepdim=True)
        return self.frame.leave(total / len(self.config.strengths), slices.images.shape) * slices.masks


def published_label(strength: Tensor) -> Tensor:
    """The step (N,) in 0 (all corrupted) to 99 (clean) of the published schedule whose strength is nearest."""
    schedule = torch.cumprod(1 - torch.linspace(0.001, 0.2, 100, device=strength.device), dim=0).sqrt()
    return (schedule[None] - strength[:, None]).abs().argmin(dim=1).to(strength.dtype)


def _windows(images: Tensor, masks: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random square of each slice, around a pixel of its brain as far as the frame's border allows."""
    centres = anomalies.random_pixels(masks, generator).long()
    slices, offsets = (torch.arange(count, device=images.device) for count in (len(images), side))
    rows, columns = (
        (centres[:, axis] - side // 2).clamp(0, images.shape[axis - 2] - side)[:, None] + offsets for axis in (0, 1)
    )
    place = slices[:, None, None], rows[:, :, None], columns[:, None, :]
    return images[:, 0][place][:, None], masks[:, 0][place][:, None]


def _starts(size: int, side: int, step: int) -> list[int]:
    """First pixels of windows that cover ``size`` pixels; the last one ends at the border."""
    return sorted({*range(0, size - side + 1, step), size - side})


def _window_weight(side: int, device: torch.device) -> Tensor:
    """Gaussian weight (side, side) of a window's pixels."""
    offsets = (torch.arange(side, device=device) - (side - 1) / 2) / (0.125 * side)
    profile = torch.exp(-0.5 * offsets.square())
    return (profile[:, None] * profile[None]).clamp(min=1e-3)


METHOD = Disyre
