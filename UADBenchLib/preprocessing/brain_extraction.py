"""Which voxels are brain: given by the user, already extracted, or found by a classical fallback.

The fallback carries the MNI152 brain mask onto the head by an affine and mends it by intensity. It is honest work for
an upright T1w head of usual coverage and no more than that; the result says when it was used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.preprocessing.registration import load_template, register
from UADBenchLib.scan import Check

SMALLEST_BRAIN_ML, LARGEST_BRAIN_ML = 600.0, 1950.0
"""Plausible brain mask volumes: below lie cropped fields of view, above lie heads."""


@dataclass(frozen=True)
class BrainMask:
    """A mask on the scan's grid, where it came from (``given``, ``already extracted``, ``template fallback``) and
    remarks."""

    mask: np.ndarray
    source: str
    checks: tuple[Check, ...] = ()


def find_brain(
    voxels: np.ndarray,
    affine: np.ndarray,
    given: np.ndarray | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> BrainMask:
    """Return the brain mask of a scan in canonical orientation.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K), axes closest to R, A, S.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    given : numpy.ndarray, optional
        Boolean mask on the same grid; taken as it is.
    check : callable, optional
        Called often; what it raises ends the work.

    Raises
    ------
    InputError
        ``BRAIN_MASK_EMPTY`` or ``BRAIN_MASK_FAILED``.
    """
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000.0
    if given is not None:
        if not given.any():
            raise InputError("BRAIN_MASK_EMPTY", "the brain mask given holds no voxel", "give a mask of this scan")
        return BrainMask(given, "given", _volume_checks(given.sum() * voxel_ml))
    stripped = extracted_already(voxels, voxel_ml)
    if stripped is not None:
        return BrainMask(stripped, "already extracted", _volume_checks(stripped.sum() * voxel_ml))
    mask = _template_fallback(voxels, affine, check)
    volume = mask.sum() * voxel_ml
    if volume < SMALLEST_BRAIN_ML / 2:
        raise InputError(
            "BRAIN_MASK_FAILED",
            f"no brain was found in this head ({volume:.0f} ml)",
            "give a brain mask with --brain-mask",
        )
    remark = Check(
        "warning",
        "BRAIN_MASK_FALLBACK",
        "the brain was outlined by carrying the template's mask onto the head, which is coarse at the edges",
        "for exact edges give a brain mask with --brain-mask",
    )
    return BrainMask(mask, "template fallback", (remark, *_volume_checks(volume)))


def extracted_already(voxels: np.ndarray, voxel_ml: float) -> np.ndarray | None:
    """Return the mask of a scan whose background was set to one value, or None for a whole head."""
    from scipy.ndimage import binary_fill_holes, label

    corner = voxels[0, 0, 0]
    inside = voxels != corner
    if 1.0 - inside.mean() < 0.2:  # a head fills the field of view with noise; an extracted brain leaves exact zeros
        return None
    parts, count = label(inside)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    largest = parts == (1 + int(sizes.argmax()))
    volume = largest.sum() * voxel_ml
    if not SMALLEST_BRAIN_ML <= volume <= LARGEST_BRAIN_ML or sizes.max() < 0.95 * sizes.sum():
        return None
    return binary_fill_holes(largest)


def _volume_checks(volume_ml: float) -> tuple[Check, ...]:
    if SMALLEST_BRAIN_ML <= volume_ml <= LARGEST_BRAIN_ML:
        return ()
    return (
        Check(
            "warning",
            "BRAIN_VOLUME",
            f"the brain mask holds {volume_ml:.0f} ml; {SMALLEST_BRAIN_ML:.0f} to {LARGEST_BRAIN_ML:.0f} ml is usual",
            "look at the mask; give a better one with --brain-mask",
        ),
    )


def _template_fallback(voxels: np.ndarray, affine: np.ndarray, check: Callable[[], None] | None) -> np.ndarray:
    from scipy import ndimage

    found = register(voxels, affine, _head_start(voxels, affine), check=check)
    template = load_template(2)
    carried = resample(
        template.mask.astype(np.float32),
        template.affine,
        voxels.shape,
        affine,
        order=1,
        world=np.linalg.inv(found.world),
    )
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    distance = ndimage.distance_transform_edt(carried <= 0.5, sampling=edges)
    core = voxels[ndimage.distance_transform_edt(carried > 0.5, sampling=edges) > 10]
    middle = np.median(core)
    # Brain lies within a few millimetres of the carried mask and is brighter than skull and air; CSF between is closed
    # again.
    candidate = (distance <= 4) & (voxels > 0.45 * middle) & (voxels < 2.2 * middle)
    ball = _ball(4.0, edges)
    opened = ndimage.binary_opening(candidate, ball)
    parts, count = ndimage.label(opened)
    if count == 0:
        return opened
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    grown = ndimage.binary_dilation(largest, _ball(3.0, edges)) & (candidate | (carried > 0.5))
    closed = ndimage.binary_closing(np.pad(grown, 8), _ball(6.0, edges))[8:-8, 8:-8, 8:-8]
    return ndimage.binary_fill_holes(closed) & (distance <= 4)


def _ball(radius_mm: float, edges: np.ndarray) -> np.ndarray:
    steps = [np.arange(-int(radius_mm / e), int(radius_mm / e) + 1) * e for e in edges]
    grid = np.meshgrid(*steps, indexing="ij")
    return sum(g**2 for g in grid) <= radius_mm**2 + 1e-6


def _head_start(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """First guess for a whole head: brains hang from the top of the head, however long the neck is."""
    bright = voxels > 0.5 * (np.percentile(voxels, 50) + np.percentile(voxels, 95)) * 0.5
    per_slice = bright.mean(axis=(0, 1))
    rows = np.flatnonzero(per_slice > 0.02)
    top_index = rows.max() if rows.size else voxels.shape[2] - 1
    mm = np.linalg.norm(affine[:3, 2])
    bottom_index = max(0, int(top_index - 150 / mm))
    slab = np.zeros_like(bright)
    slab[:, :, bottom_index : top_index + 1] = bright[:, :, bottom_index : top_index + 1]
    index = np.argwhere(slab).mean(axis=0) if slab.any() else np.array(voxels.shape) / 2
    index[2] = top_index - 80 / mm
    start = np.eye(4)
    start[:3, 3] = (affine @ [*index, 1.0])[:3] - np.array([0.0, -18.0, 8.0])
    return start
