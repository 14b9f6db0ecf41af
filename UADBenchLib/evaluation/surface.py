"""How far two outlines lie apart: the Hausdorff distance of two masks at any percentile, in millimetres.

The outline of a mask is its voxels that have a face towards the outside. Distances are measured between voxel centres
along the grid's own axes, which assumes that these are perpendicular, as they are in all scans that ``reading``
accepts. Volumes and overlaps are in ``metrics``.
"""

from __future__ import annotations

import math

import numpy as np

from UADBenchLib.errors import InputError


def hausdorff_mm(mask: np.ndarray, reference: np.ndarray, voxel_mm: np.ndarray, percentile: float = 95.0) -> float:
    """Return the Hausdorff distance of two masks.

    Parameters
    ----------
    mask, reference : numpy.ndarray
        Shape (I, J, K), equal; non-zero is inside.
    voxel_mm : numpy.ndarray
        Edges of a voxel along i, j, k, shape (3,).
    percentile : float
        In (0, 100]; 100 is the classical distance, 95 passes over the farthest twentieth of each outline.

    Returns
    -------
    float
        The larger of the two directed distances in millimetres; NaN when one of the masks is empty, since there is
        no distance to nothing.

    Raises
    ------
    InputError
        GRID_MISMATCH when the shapes differ, OPTION_INVALID for a percentile out of range.
    """
    if mask.shape != reference.shape:
        raise InputError(
            "GRID_MISMATCH",
            f"mask and reference differ in shape: {mask.shape} and {reference.shape}",
            "bring both onto the scan's own grid first",
        )
    if not 0 < percentile <= 100:
        raise InputError("OPTION_INVALID", f"the percentile is {percentile}", "give a number above 0 and up to 100")
    box = _box((mask != 0) | (reference != 0))
    first, second = (_outline(np.pad(one[box] != 0, 1)) for one in (mask, reference))
    if not first.any() or not second.any():
        return math.nan
    return max(_directed(first, second, voxel_mm, percentile), _directed(second, first, voxel_mm, percentile))


def _box(inside: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around the voxels of a mask; everything when there are none."""
    ranges = []
    for axis in range(inside.ndim):
        found = np.flatnonzero(inside.any(axis=tuple(k for k in range(inside.ndim) if k != axis)))
        ranges.append(slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(None))
    return tuple(ranges)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Return the voxels of a mask that have a face towards the outside."""
    from scipy.ndimage import binary_erosion

    return inside & ~binary_erosion(inside)


def _directed(source: np.ndarray, target: np.ndarray, voxel_mm: np.ndarray, percentile: float) -> float:
    """Return the percentile of the distances from an outline to the nearest voxel of another."""
    from scipy.ndimage import distance_transform_edt

    distances = distance_transform_edt(~target, sampling=np.asarray(voxel_mm, dtype=np.float64))
    return float(np.percentile(distances[source], percentile))
