"""How far the surfaces of two masks lie apart, in millimetres.

The surface of a mask is its voxels with a face neighbour outside it (beyond the grid is outside); distances run
between voxel centres. Overlap is in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.policy import DEFAULT_POLICY, EmptyCasePolicy


def surface_distance(
    mask: np.ndarray,
    reference: np.ndarray,
    voxel_mm: Sequence[float],
    percentile: float = 95.0,
    policy: EmptyCasePolicy = DEFAULT_POLICY,
) -> float:
    """Return a percentile of the distances between two surfaces (HD95 by default; 100 gives Hausdorff's).

    Distances from each surface to the other give a percentile each; the larger one counts (Huttenlocher et al.,
    Comparing images using the Hausdorff distance, IEEE PAMI 1993).

    Parameters
    ----------
    mask, reference : numpy.ndarray
        Shape (I, J, K), equal; non-zero is inside.
    voxel_mm : sequence of float
        Edge lengths of a voxel in millimetres, at right angles to each other.
    percentile : float
        In [0, 100].
    policy : EmptyCasePolicy
        What an empty mask or reference gives.

    Raises
    ------
    InputError
        GRID_MISMATCH when the shapes differ.
    """
    if mask.shape != reference.shape:
        raise InputError(
            "GRID_MISMATCH",
            f"mask and reference differ in shape: {mask.shape} and {reference.shape}",
            "bring both onto the scan's own grid first",
        )
    first, second = mask != 0, reference != 0
    if not first.any() or not second.any():
        return policy.no_surface_distance
    box = _box(first | second)
    surfaces = [_surface(np.pad(inside[box], 1)) for inside in (first, second)]
    return max(
        _directed(surfaces[0], surfaces[1], voxel_mm, percentile),
        _directed(surfaces[1], surfaces[0], voxel_mm, percentile),
    )


def _box(inside: np.ndarray) -> tuple[slice, ...]:
    from scipy import ndimage

    return ndimage.find_objects(inside.view(np.uint8))[0]


def _surface(inside: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return inside & ~ndimage.binary_erosion(inside)


def _directed(start: np.ndarray, goal: np.ndarray, voxel_mm: Sequence[float], percentile: float) -> float:
    from scipy import ndimage

    distance = ndimage.distance_transform_edt(~goal, sampling=tuple(float(edge) for edge in voxel_mm))
    return float(np.percentile(distance[start], percentile))
