"""Coarse Gaussian noise (Kascenas et al. 2023, arXiv 2301.08330): drawn on a small grid, enlarged, shifted at random.

The blobs of such noise are as large as lesions; a network that removes them learns what tissue should look like there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.augmentation import normal, uniform


def coarse_noise(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    *,
    grids: tuple[int, ...],
    sigma: tuple[float, float],
) -> Tensor:
    """Return noise (N, 1, X, Y) for ``images``, zero outside ``masks``.

    Parameters
    ----------
    grids : tuple of int
        Cells along the longer side of the slice; one is drawn for each slice.
    sigma : (float, float)
        Range that the standard deviation of the small grid is drawn from, in units of prepared intensity; enlarging it
        takes about a third of that away.
    """
    count, _, height, width = images.shape
    chosen = torch.randint(len(grids), (count,), generator=generator)
    noise = torch.empty(count, 1, height, width, device=images.device)
    for number, cells in enumerate(grids):
        rows = torch.nonzero(chosen == number).flatten()
        if not len(rows):
            continue
        size = (max(2, round(cells * height / max(height, width))), max(2, round(cells * width / max(height, width))))
        small = normal((len(rows), 1, *size), generator, images.device)
        noise[rows.to(images.device)] = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    shift = (
        int(torch.randint(height, (1,), generator=generator)),
        int(torch.randint(width, (1,), generator=generator)),
    )
    noise = torch.roll(noise, shift, dims=(-2, -1))
    return noise * uniform(count, *sigma, generator, images.device)[:, None, None, None] * masks
