"""Augmentation of healthy slices: the anatomy and the scanners that the training set does not hold.

What is drawn is small anatomical variation (left-right mirror, rotation, size) and everything by which a scanner may
change a brain without making it abnormal: gamma, contrast, bias field, blur, noise.

All that is random here and in the other corruptions is drawn on the processor, so that a run does not depend on the
device; what is done with it is done where the slices are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.networks.similarity import full_precision


def uniform(
    count: int, low: float, high: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """(count,) numbers drawn evenly from [low, high)."""
    return (torch.rand(count, generator=generator) * (high - low) + low).to(device)


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers of a shape."""
    return torch.randn(tuple(shape), generator=generator).to(device)


def pick(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (N, count), on the weights' device, drawn with replacement from each row of weights (N, P) by them; a row
    without any weight gives index 0."""
    reached = weights.cumsum(dim=1)
    # The product stays below the whole also in single precision, so that no index lies beyond the last weight.
    wanted = uniform(len(weights) * count, 0, 1, generator, weights.device).reshape(-1, count) * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True) * (reached[:, -1:] > 0)


@dataclass(frozen=True)
class Augmentation:
    """One drawn augmentation for each of N slices; ``bias`` is (N, 1, 4, 4), ``noise_seed`` an integer, the rest
    (N,)."""

    mirror: Tensor
    degrees: Tensor
    size: Tensor
    gamma: Tensor
    contrast: Tensor
    bias: Tensor
    blur: Tensor
    noise: Tensor
    noise_seed: int

    def __post_init__(self) -> None:
        counts = {getattr(self, f.name).shape[0] for f in fields(self) if f.name != "noise_seed"}
        if len(counts) != 1:
            raise ValueError("an augmentation has one value for each slice")

    def to(self, device: torch.device | str) -> Augmentation:
        """The same augmentation on another device."""
        return replace(
            self, **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "noise_seed"}
        )


def draw(count: int, generator: torch.Generator) -> Augmentation:
    """Draw an augmentation for ``count`` slices."""

    def sometimes(values: Tensor, neutral: float, chance: float) -> Tensor:
        return torch.where(torch.rand(count, generator=generator) < chance, values, torch.full_like(values, neutral))

    return Augmentation(
        mirror=torch.rand(count, generator=generator) < 0.5,
        degrees=uniform(count, -8, 8, generator),
        size=uniform(count, 0.93, 1.07, generator),
        gamma=torch.exp(uniform(count, -0.4, 0.4, generator)),
        contrast=uniform(count, 0.85, 1.15, generator),
        bias=torch.randn(count, 1, 4, 4, generator=generator) * uniform(count, 0, 0.08, generator)[:, None, None, None],
        blur=sometimes(uniform(count, 0.3, 0.9, generator), 0.0, 0.5),
        noise=sometimes(uniform(count, 0.0, 0.05, generator), 0.0, 0.5),
        noise_seed=int(torch.randint(2**31, (1,), generator=generator)),
    )


def apply(augmentation: Augmentation, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Apply to images (N, 1, X, Y) and masks (N, 1, X, Y, bool); zero stays outside the brain."""
    with full_precision(images.device):  # coordinates would be rounded by up to a tenth of a pixel
        return _apply(augmentation.to(images.device), images, masks)


def _apply(augmentation: Augmentation, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    images, masks = _move(augmentation, images, masks)

    def per_slice(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    images = images.clamp(min=0) ** per_slice(augmentation.gamma)
    images = (images - 0.5) * per_slice(augmentation.contrast) + 0.5
    field = F.interpolate(augmentation.bias, images.shape[-2:], mode="bicubic", align_corners=True)
    images = images * torch.exp(field)
    images = _blur(images * masks, masks, augmentation.blur)
    noise = normal(images.shape, torch.Generator().manual_seed(augmentation.noise_seed), images.device)
    images = images + noise * per_slice(augmentation.noise)
    return images.clamp(0, 1.5) * masks, masks


def _move(augmentation: Augmentation, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.deg2rad(augmentation.degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    height, width = images.shape[-2:]
    # Normalised coordinates are not square: a rotation has to know the slice's aspect.
    ratio = height / width
    flip = torch.where(augmentation.mirror, -1.0, 1.0)
    theta = torch.zeros(len(angle), 2, 3, device=angle.device)
    theta[:, 0, 0], theta[:, 0, 1] = cos, sin * ratio * flip
    theta[:, 1, 0], theta[:, 1, 1] = -sin / ratio, cos * flip
    theta[:, :, :2] /= augmentation.size[:, None, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    both = F.grid_sample(torch.cat([images, masks.to(images.dtype)], 1), grid, align_corners=False)
    moved_masks = both[:, 1:] > 0.5
    return both[:, :1] / both[:, 1:].clamp(min=0.5) * moved_masks, moved_masks


def _blur(images: Tensor, masks: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each slice by its own sigma (pixels; 0 leaves it alone), normalised at the brain's edge."""
    offsets = torch.arange(-2, 3, dtype=images.dtype, device=images.device)
    weights = torch.exp(-(offsets[None] ** 2) / (2 * sigma.clamp(min=1e-2)[:, None] ** 2))
    weights = weights / weights.sum(dim=1, keepdim=True)
    count = images.shape[0]

    def smooth(values: Tensor) -> Tensor:
        values = values.transpose(0, 1)
        values = F.conv2d(values, weights[:, None, :, None], padding=(2, 0), groups=count)
        return F.conv2d(values, weights[:, None, None, :], padding=(0, 2), groups=count).transpose(0, 1)

    return smooth(images) / smooth(masks.to(images.dtype)).clamp(min=0.05) * masks
