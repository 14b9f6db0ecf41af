"""Random masks to inpaint under, after IterMask2 (Liang et al. 2024, arXiv 2406.02422): squares scattered around a
point of the brain, wide or compact, for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.anomalies import random_pixels
from UADBenchLib.corruption.augmentation import pick, uniform

MOST = 2_000
"""Small squares of a mask, at most."""


def inpainting_masks(brains: Tensor, generator: torch.Generator, pixel_mm: float = 1.0) -> Tensor:
    """Draw one mask for each slice.

    A Gaussian is put on a random brain pixel: two masks of three are wide (standard deviation 5 to 32 mm, 30 to 2,000
    squares of 4 mm), one is compact (1 to 8 mm, up to 200). A few squares of 8 and 16 mm are added. The corners' rows
    and columns are drawn independently of each other, from the brain pixels weighed by the Gaussian.

    Parameters
    ----------
    brains : Tensor
        (N, 1, X, Y) bool.
    pixel_mm : float
        Edge of a pixel.

    Returns
    -------
    Tensor
        (N, 1, X, Y) bool, within ``brains``.
    """
    count, device = len(brains), brains.device
    wide = uniform(count, 0, 1, generator, device) < 2 / 3
    first, second = uniform(count, 0.3, 10, generator, device), uniform(count, 0.3, 10, generator, device)
    geometric = (first * second).sqrt()
    shared = uniform(count, -1, 1, generator, device) * geometric
    many, few = uniform(count, 100, 200, generator, device), uniform(count, 5, 20, generator, device)
    small = torch.where(wide, many, few) * geometric
    weights = _gaussian(brains, torch.where(wide, 10.0, 2.5) / pixel_mm, first, second, shared, generator)
    medium, large = (torch.randint(low, 10, (count,), generator=generator).to(device) for low in (5, 3))
    masks = torch.zeros_like(brains)
    for squares, edge_mm, most in ((small.round().long(), 4, MOST), (medium, 8, 9), (large, 16, 9)):
        masks |= _squares(weights, squares.clamp(max=most), most, max(1, round(edge_mm / pixel_mm)), generator)
    return masks & brains


def _gaussian(
    brains: Tensor, unit: Tensor, first: Tensor, second: Tensor, shared: Tensor, generator: torch.Generator
) -> Tensor:
    """Density (N, X, Y) around a random brain pixel of each slice, zero outside the brain; ``unit`` is in pixels, the
    covariance [[first, shared], [shared, second]] in units."""
    centre = random_pixels(brains, generator)
    height, width = brains.shape[-2:]
    y, x = (torch.arange(size, device=brains.device) for size in (height, width))
    u = (y[None, :, None] - centre[:, 0, None, None]) / unit[:, None, None]
    v = (x[None, None, :] - centre[:, 1, None, None]) / unit[:, None, None]
    first, second, shared = (value[:, None, None] for value in (first, second, shared))
    determinant = (first * second - shared**2).clamp(min=1e-3)
    power = (second * u**2 - 2 * shared * u * v + first * v**2) / determinant
    weights = torch.exp(-0.5 * power.clamp(max=100)) * brains[:, 0]
    # An empty slice needs something to draw from.
    return torch.where(brains.flatten(1).any(dim=1)[:, None, None], weights, 1.0)


def _squares(weights: Tensor, number: Tensor, most: int, edge: int, generator: torch.Generator) -> Tensor:
    """Masks (N, 1, X, Y) of ``number`` (N,) squares, corners drawn from the marginals of ``weights``."""
    count, height, width = weights.shape
    rows, columns = (pick(weights.sum(dim=axis), most, generator) for axis in (2, 1))
    wanted = (torch.arange(most, device=weights.device)[None] < number[:, None]).float()
    corners = torch.zeros(count, height * width, device=weights.device).scatter_reduce_(
        1, rows * width + columns, wanted, "amax"
    )
    # A square lies below and to the right of its corner: pad the other two sides.
    padded = F.pad(corners.reshape(count, 1, height, width), (edge - 1, 0, edge - 1, 0))
    return F.max_pool2d(padded, edge, 1) > 0
