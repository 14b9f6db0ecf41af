"""Where voxels lie: orientation, the way into and out of SimpleITK, and resampling between lattices.

Pure geometry on arrays and affines; nothing here reads or writes files or knows about brains. Arrays are in
nibabel's order (i, j, k) and affines map voxel indices to RAS millimetres. Affines may be oblique,
left-handed and anisotropic; sheared ones are handled exactly wherever SimpleITK is not involved.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from UADBenchLib.errors import InputError

if TYPE_CHECKING:
    import SimpleITK

SHEAR_NOTED = 1e-3
"""Largest cosine between two voxel axes that still counts as orthonormal (0.06 degrees)."""

SHEAR_LIMIT = 0.0175
"""Largest cosine between two voxel axes for which nearest orthogonal axes may stand in (1 degree)."""

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TIE = 1e-4  # voxels by which a point counts as further on, so that rounding does not choose between two nearest voxels
_PARALLEL_FROM = 1_000_000  # voxels; below this, starting threads costs more than it saves


def _directions(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit axes (3, 3, as columns) and the edge lengths (3,) in millimetres of ``affine``.

    Raises
    ------
    InputError
        ``AFFINE_SINGULAR`` if the affine is not finite or does not span three dimensions.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    usable = bool(np.isfinite(matrix).all()) and bool((edges > 0).all())
    if usable:
        axes = matrix[:3, :3] / edges
        usable = abs(float(np.linalg.det(axes))) > 1e-3
    if not usable:
        raise InputError(
            "AFFINE_SINGULAR",
            "the voxel axes do not span three dimensions",
            "write the scan again from its original with a valid orientation",
        )
    return axes, edges


def shear(affine: np.ndarray) -> float:
    """Return the largest absolute cosine between two different voxel axes: 0 for orthogonal ones.

    Raises
    ------
    InputError
        ``AFFINE_SINGULAR`` if the affine is not finite or does not span three dimensions.
    """
    axes, _ = _directions(affine)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def is_orthonormal(affine: np.ndarray, tolerance: float = SHEAR_NOTED) -> bool:
    """Tell whether the voxel axes are at right angles: no two with a cosine above ``tolerance``.

    Raises
    ------
    InputError
        ``AFFINE_SINGULAR`` if the affine is not finite or does not span three dimensions.
    """
    return shear(affine) <= tolerance


def polar(affine: np.ndarray) -> np.ndarray:
    """Return the affine (4, 4) with the nearest orthogonal axes; edge lengths, handedness, first voxel stay.

    "Nearest" is in the sense of the polar decomposition of the unit axes.

    Raises
    ------
    InputError
        ``AFFINE_SINGULAR`` if the affine is not finite or does not span three dimensions.
    """
    axes, edges = _directions(affine)
    left, _, right = np.linalg.svd(axes)
    result = np.array(affine, dtype=np.float64)
    result[:3, :3] = (left @ right) * edges
    return result


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorder and flip axes to the closest canonical (RAS+) orientation.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K).
    affine : numpy.ndarray
        Shape (4, 4), voxel index to RAS millimetres.

    Returns
    -------
    voxels : numpy.ndarray
        A view on the same memory, axes running to the right, anterior and superior as nearly as they can.
    affine : numpy.ndarray
        Shape (4, 4), the affine of that view.

    Raises
    ------
    InputError
        ``AFFINE_SINGULAR`` if the affine is not finite or does not span three dimensions.
    """
    from nibabel import orientations

    _directions(affine)
    orientation = orientations.io_orientation(affine)
    view = orientations.apply_orientation(voxels, orientation)
    return view, np.asarray(affine, dtype=np.float64) @ orientations.inv_ornt_aff(orientation, voxels.shape)


def to_sitk(voxels: np.ndarray, affine: np.ndarray, tolerance: float = SHEAR_LIMIT) -> SimpleITK.Image:
    """Copy an array into a SimpleITK image (LPS).

    Slightly sheared axes are replaced by the nearest orthogonal ones, turned about the centre of the volume,
    since ITK knows no others.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K); bool becomes uint8.
    affine : numpy.ndarray
        Shape (4, 4), voxel index to RAS millimetres.
    tolerance : float
        Largest cosine between two axes that is accepted.

    Raises
    ------
    InputError
        ``AFFINE_SHEARED`` if the axes are sheared more than ``tolerance``; ``AFFINE_SINGULAR`` as elsewhere.
    """
    import SimpleITK as sitk

    skew = shear(affine)
    if skew > tolerance:
        raise sheared(skew)
    nearest = polar(affine)
    centre = (np.array(voxels.shape, dtype=np.float64) - 1) / 2
    nearest[:3, 3] += (np.asarray(affine)[:3, :3] - nearest[:3, :3]) @ centre
    lps = _RAS_LPS @ nearest
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    values = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    image = sitk.GetImageFromArray(values.T)
    image.SetSpacing(edges.tolist())
    image.SetDirection((lps[:3, :3] / edges).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def sheared(skew: float) -> InputError:
    """Return the refusal for axes whose largest mutual cosine is ``skew``."""
    degrees = float(np.degrees(np.arcsin(min(skew, 1.0))))
    return InputError(
        "AFFINE_SHEARED",
        f"the voxel axes are {degrees:.2f} degrees off a right angle",
        "resample the scan to a lattice with orthogonal axes first",
    )


def from_sitk(image: SimpleITK.Image) -> tuple[np.ndarray, np.ndarray]:
    """Copy a scalar SimpleITK image into an array (I, J, K) and its affine (4, 4) to RAS millimetres."""
    import SimpleITK as sitk

    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, _RAS_LPS @ lps


def corners(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return the RAS positions (8, 3) in millimetres of the corner voxels' centres."""
    last = [(0, size - 1) for size in shape[:3]]
    indices = np.array(list(itertools.product(*last)), dtype=np.float64)
    return indices @ np.asarray(affine)[:3, :3].T + np.asarray(affine)[:3, 3]


def same_lattice(
    shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other_affine: np.ndarray
) -> bool:
    """Tell whether two lattices agree: equal shape, corner voxels no further apart than 1% of an edge."""
    if tuple(shape) != tuple(other_shape):
        return False
    edge = float(np.linalg.norm(np.asarray(affine)[:3, :3], axis=0).min())
    distance = np.linalg.norm(corners(shape, affine) - corners(shape, other_affine), axis=1)
    return bool(distance.max() <= 0.01 * edge)


def _smooth(voxels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Blur the source axes that ``matrix`` (target to source index) samples more coarsely than 1.5 voxels.

    The width takes a box of one source voxel to a box of one target voxel, both in terms of their full width
    at half maximum (Cardoso et al., Scale factor point spread function matching, MICCAI 2015).
    """
    from scipy import ndimage

    ratio = np.linalg.norm(matrix[:3, :3], axis=1)
    sigma = np.where(ratio > 1.5, np.sqrt(np.maximum(ratio**2 - 1, 0)) / (2 * np.sqrt(2 * np.log(2))), 0.0)
    if not sigma.any():
        return voxels
    return ndimage.gaussian_filter(voxels, sigma, output=np.float32, mode="nearest", truncate=3.0)


def resample(
    voxels: np.ndarray,
    affine: np.ndarray,
    target_shape: tuple[int, int, int],
    target_affine: np.ndarray,
    *,
    order: int,
    world: np.ndarray | None = None,
    antialias: bool = False,
) -> np.ndarray:
    """Sample an array on another lattice, in one interpolation.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K), bool or any real type.
    affine : numpy.ndarray
        Shape (4, 4), source voxel index to RAS millimetres.
    target_shape : tuple of int
        Shape of the result.
    target_affine : numpy.ndarray
        Shape (4, 4), target voxel index to RAS millimetres.
    order : {0, 1}
        0 takes the nearest voxel (labels), of two that are equally near the one with the higher index; 1 interpolates
        linearly (intensities).
    world : numpy.ndarray, optional
        Shape (4, 4), target RAS millimetres to source RAS millimetres; identity by default.
    antialias : bool
        Blur first along axes that are sampled more coarsely than every 1.5 voxels; with ``order=1`` only.

    Returns
    -------
    numpy.ndarray
        Shape ``target_shape``; the source's type with order 0, float32 with order 1. Zero outside the source;
        within the outer half voxel, order 1 falls off linearly towards that zero.

    Raises
    ------
    InputError
        ``AFFINE_SINGULAR`` if the source's affine cannot be inverted.
    ValueError
        If ``order`` is neither 0 nor 1, or ``antialias`` is asked for with order 0.
    """
    if order not in (0, 1):
        raise ValueError(f"order is 0 or 1, not {order}")
    if antialias and order == 0:
        raise ValueError("labels are not to be blurred: antialias needs order 1")
    _directions(affine)
    bridge = np.eye(4) if world is None else np.asarray(world, dtype=np.float64)
    matrix = np.linalg.solve(np.asarray(affine, dtype=np.float64), bridge @ np.asarray(target_affine))
    source = voxels.view(np.uint8) if voxels.dtype == bool else voxels
    kind = source.dtype if order == 0 else np.dtype(np.float32)
    if tuple(target_shape) == voxels.shape and np.allclose(matrix, np.eye(4), atol=1e-6):
        result = source.astype(kind)
    else:
        result = np.empty(tuple(target_shape), dtype=kind)
        _sample(_smooth(source, matrix) if antialias else source, matrix, result, order)
    return result.view(bool) if voxels.dtype == bool and order == 0 else result


def _sample(source: np.ndarray, matrix: np.ndarray, result: np.ndarray, order: int) -> None:
    """Fill ``result`` from ``source``; large ones in slabs on threads, as scipy lets others run meanwhile."""
    from scipy import ndimage

    def fill(start: int, stop: int) -> None:
        offset = matrix[:3, 3] + matrix[:3, 0] * start + (_TIE if order == 0 else 0.0)
        part: Any = result[start:stop]
        # "grid-constant", since "constant" drops border voxels that rounding has moved outside by 1e-15
        ndimage.affine_transform(
            source, matrix[:3, :3], offset, part.shape, part, order, mode="grid-constant", prefilter=False
        )

    workers = min(os.cpu_count() or 1, 8, result.shape[0]) if result.size >= _PARALLEL_FROM else 1
    if workers == 1:
        fill(0, result.shape[0])
        return
    edges = np.linspace(0, result.shape[0], workers + 1).astype(int)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fill, edges[:-1].tolist(), edges[1:].tolist()))
