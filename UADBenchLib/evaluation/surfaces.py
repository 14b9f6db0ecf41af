"""How far the surfaces of two masks lie apart, in millimetres.

The surface of a mask is its voxels with a face neighbour outside it (beyond the grid is outside); distances run
between voxel centres. Overlap is in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from UADBenchLib.evaluation.metrics import same_grid
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
    same_grid(mask, reference, "mask and reference")
    first, second = mask != 0, reference != 0
    if not first.any() or not second.any():
        return policy.no_surface_distance
    there, back = (_surface(inside, voxel_mm) for inside in (first, second))
    return max(_directed(there, back, percentile), _directed(back, there, percentile))


def _surface(inside: np.ndarray, voxel_mm: Sequence[float]) -> np.ndarray:
    """Places (N, 3) of the surface voxels in millimetres along the grid's axes."""
    from scipy import ndimage

    box = ndimage.find_objects(inside.view(np.uint8))[0]
    part = inside[box]
    surface = np.argwhere(part & ~ndimage.binary_erosion(part))
    return (surface + [s.start for s in box]) * np.asarray(voxel_mm, dtype=np.float64)


def _directed(start: np.ndarray, goal: np.ndarray, percentile: float) -> float:
    # Surfaces are thin: a tree of their voxels is far quicker than a distance to every voxel of the brain.
    from scipy.spatial import cKDTree

    return float(np.percentile(cKDTree(goal).query(start)[0], percentile))
