"""From the raw scores of single pixels to a map worth thresholding: median filter, a little smoothing, and the
brain's edge left out."""

from __future__ import annotations

import numpy as np

EDGE_MM = 2.0
"""Width of the brain's rim that is not scored: brain masks disagree there, and so do healthy brains."""


SMOOTHING_MM = 2.0
"""Standard deviation of the last smoothing of a raw map: one voxel of the model grid."""


def median_in_brain(scores: np.ndarray, mask: np.ndarray, size: int = 3) -> np.ndarray:
    """Median filter (X, Y, Z) inside the bounding box of the brain; zero outside ``mask``.

    Raises
    ------
    ValueError
        For an even window, which would shift the map by half a voxel.
    """
    from scipy.ndimage import median_filter

    if size % 2 == 0:
        raise ValueError(f"the window of a median filter is odd, not {size}")
    result = np.zeros_like(scores)
    if not mask.any():
        return result
    box = bounding_box(mask, margin=size // 2)
    result[box] = median_filter(scores[box], size)
    result[~mask] = 0
    return result


def smooth_in_brain(
    scores: np.ndarray, mask: np.ndarray, voxel_mm: float, sigma_mm: float = SMOOTHING_MM
) -> np.ndarray:
    """Gaussian average (X, Y, Z) over voxels of ``mask`` alone, so that background does not weaken the rim."""
    from scipy.ndimage import gaussian_filter

    result = np.zeros_like(scores)
    if not mask.any():
        return result
    box = bounding_box(mask)
    inside = mask[box].astype(np.float32)
    sigma = sigma_mm / voxel_mm
    weight = np.maximum(gaussian_filter(inside, sigma), 1e-3)
    result[box] = gaussian_filter(scores[box] * inside, sigma) / weight * inside
    return result


def without_edge(mask: np.ndarray, voxel_mm: float, width_mm: float = EDGE_MM) -> np.ndarray:
    """Return the brain mask without a rim of ``width_mm``; the border of the grid counts as background."""
    from scipy.ndimage import distance_transform_edt

    padded = np.pad(mask, 1)
    return (distance_transform_edt(padded, sampling=voxel_mm) > width_mm + 1e-6)[1:-1, 1:-1, 1:-1]


def bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Slices of the smallest box around the true voxels of ``mask``, with a margin, within the array."""
    box = []
    for axis in range(mask.ndim):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(0, int(line[0]) - margin), min(mask.shape[axis], int(line[-1]) + 1 + margin)))
    return tuple(box)
