"""Removal of the slowly varying intensity bias of receive coils: N4 (Tustison et al. 2010) as SimpleITK implements
it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from UADBenchLib.geometry import resample, to_sitk
from UADBenchLib.preprocessing.stopping import stoppable
from UADBenchLib.scan import no_check


def correct_bias_field(
    voxels: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray,
    *,
    work_mm: float = 4.0,
    iterations: tuple[int, ...] = (50, 50, 50),
    check: Callable[[], None] | None = None,
) -> np.ndarray:
    """Return ``voxels`` divided by the bias field fitted inside ``mask``.

    The field is fitted on a grid of about ``work_mm`` millimetres, where it is just as smooth and the fit takes a
    second instead of a minute, and is evaluated on the scan's own grid.

    Parameters
    ----------
    voxels, mask : numpy.ndarray
        Shape (I, J, K); the mask is boolean.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    check : callable, optional
        Called at every iteration; what it raises ends the fit.
    """
    import SimpleITK as sitk

    check = check or no_check
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(n) for n in np.maximum(4, np.round(np.array(voxels.shape) * edges / work_mm)))
    ratio = np.array(voxels.shape) / shape
    coarse = affine.copy()
    coarse[:3, :3] *= ratio
    coarse[:3, 3] += affine[:3, :3] @ ((ratio - 1) / 2)
    low = float(voxels[mask].min())
    # N4 works on logarithms: shift a scan with negative values (spline overshoot) above zero and take the shift back
    # afterwards.
    shift = 1.0 - low if low <= 0 else 0.0
    small = resample(np.where(mask, voxels + shift, 0), affine, shape, coarse, order=1, antialias=True)
    check()
    small_mask = resample(mask.astype(np.float32), affine, shape, coarse, order=1, antialias=True) > 0.5
    check()
    image = to_sitk(np.ascontiguousarray(small, dtype=np.float32), coarse)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(iterations)
    with stoppable(n4, check):
        n4.Execute(image, to_sitk(small_mask.astype(np.uint8), coarse))
    field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))).transpose(2, 1, 0)
    check()
    # One more voxel on every side, so that the outermost ones of the scan lie inside the fitted grid.
    field = np.pad(field.astype(np.float32), 1, mode="edge")
    coarse[:3, 3] -= coarse[:3, :3].sum(axis=1)
    full = resample(field, coarse, voxels.shape, affine, order=1)
    check()
    return ((voxels + shift) / np.maximum(full, 1e-3) - shift).astype(np.float32)
