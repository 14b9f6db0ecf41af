"""Gaussian noise for diffusion models: the multi-scale pyramid that ANDi trains with (Frotscher et al. 2023, arXiv
2312.04275), and noise for scoring that a slice gets whatever batch it comes in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.augmentation import normal


def pyramid_noise(
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    discount: float = 0.9,
    per_slice: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return noise (N, 1, X, Y) on ``device`` that has structure at all scales.

    To white noise, fields on ever smaller grids are added, each weighing ``discount`` times the one before; a grid is
    smaller than the last by a random factor of 2 to 4 to the power of its number.

    Parameters
    ----------
    discount : float
        In (0, 1].
    per_slice : bool
        Scale each slice's noise to unit standard deviation; otherwise the batch's, as the released code does, which
        makes a slice's noise depend on its neighbours in the batch.
    """
    noise = torch.cat([_pyramid(shape[-2:], generator, discount, device) for _ in range(shape[0])])
    return noise / (noise.std(dim=(-3, -2, -1), keepdim=True) if per_slice else noise.std())


def _pyramid(size: tuple[int, int], generator: torch.Generator, discount: float, device: torch.device | str) -> Tensor:
    noise = normal((1, 1, *size), generator, device)
    height, width = size
    for number in range(10):
        factor = float(torch.rand((), generator=generator) * 2 + 2) ** number
        height, width = max(1, int(height / factor)), max(1, int(width / factor))
        field = normal((1, 1, height, width), generator, device)
        noise += discount**number * F.interpolate(field, size, mode="bilinear", align_corners=False)
        if min(height, width) == 1:
            break
    return noise


def slice_noise(positions: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return white noise (N, *shape[1:]) on the device of ``positions`` (N,).

    One number is drawn from ``generator`` (CPU); with a slice's axial position it settles the slice's noise, so that
    scores do not depend on how a scan was cut into batches.
    """
    seed = 1024 * int(torch.randint(2**22, (1,), generator=generator))  # generators tell 32 bits of a seed apart
    fields = [
        torch.randn(tuple(shape[1:]), generator=torch.Generator().manual_seed(seed + position % 1024))
        for position in positions.tolist()
    ]
    return torch.stack(fields).to(positions.device)
