"""Affine registration of a brain to the MNI152 template, and the template itself.

The template is the skull-stripped ICBM 2009a non-linear symmetric average that nilearn carries in its package under a
licence that allows redistribution; nothing is downloaded. Only linear registration is done: a non-linear one would warp
lesions away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample, to_sitk
from UADBenchLib.preprocessing.stopping import stoppable
from UADBenchLib.scan import no_check

TEMPLATE = "MNI152NLin2009aSym"
MINIMUM_SIMILARITY = 0.12
"""Mattes mutual information (nats) below which a registration is refused: registered brains reach 0.3 to 0.9, misplaced
ones stay under 0.1."""


MARGIN = 24
"""Voxels of about 2 mm that are added around a scan before it is registered."""


@dataclass(frozen=True)
class Template:
    """The skull-stripped MNI152 T1 average: voxels in [0, 1] and brain mask on one grid."""

    voxels: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Registration:
    """``world`` maps template RAS mm to scan RAS mm; ``similarity`` is the mutual information reached (nats)."""

    world: np.ndarray
    similarity: float


@lru_cache(maxsize=2)
def load_template(voxel_mm: int = 2) -> Template:
    """Return the template at ``voxel_mm`` millimetres, from nilearn's package data."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    image = load_mni152_template(resolution=voxel_mm)
    mask = load_mni152_brain_mask(resolution=voxel_mm)
    voxels = np.clip(image.get_fdata(dtype=np.float32), 0, None)
    voxels.setflags(write=False)
    return Template(voxels, mask.get_fdata(dtype=np.float32) > 0.5, np.asarray(image.affine, dtype=np.float64))


def register(
    voxels: np.ndarray,
    affine: np.ndarray,
    start: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    check: Callable[[], None] | None = None,
) -> Registration:
    """Find the affine that carries the template onto a scan: rigid first, then twelve parameters, coarse to fine.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K). With ``mask`` voxels outside it are set to zero before the comparison.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    start : numpy.ndarray
        Shape (4, 4): first guess of template RAS mm -> scan RAS mm.
    mask : numpy.ndarray, optional
        Brain mask of the scan. Without it the comparison is confined to the template's own brain, so that the
        scalp of a whole head does not count.
    check : callable, optional
        Called at every iteration; what it raises ends the registration.

    Raises
    ------
    InputError
        ``REGISTRATION_FAILED`` when the mutual information stays below ``MINIMUM_SIMILARITY``.
    """
    import SimpleITK as sitk

    check = check or no_check
    template = load_template(2)
    check()
    fixed = to_sitk(template.voxels, template.affine)
    region = sitk.BinaryDilate(to_sitk(template.mask.astype(np.uint8), template.affine), (2, 2, 2))
    moving = _moving_image(voxels, affine, mask)
    check()
    first = sitk.Euler3DTransform()
    first.SetCenter(tuple(_lps(template.affine @ [49, 58, 40, 1])[:3]))
    rigid = _optimise(fixed, region, moving, first, start, shrink=(4,), step_mm=2.0, check=check)
    affine_start = sitk.AffineTransform(3)
    affine_start.SetCenter(first.GetCenter())
    affine_start.SetMatrix(rigid.GetMatrix())
    affine_start.SetTranslation(rigid.GetTranslation())
    final = _optimise(fixed, region, moving, affine_start, start, shrink=(4, 2), step_mm=0.5, check=check)
    check()
    world = start @ _matrix_ras(final)
    similarity = -_metric(fixed, region, _shifted(moving, start), final)
    if not np.isfinite(similarity) or similarity < MINIMUM_SIMILARITY:
        raise InputError(
            "REGISTRATION_FAILED",
            f"the scan could not be aligned with the MNI152 template (mutual information {similarity:.2f}, "
            f"at least {MINIMUM_SIMILARITY:.2f} is needed)",
            "check the orientation in the header and that this is a brain, or give a brain mask with --brain-mask",
        )
    return Registration(world, float(similarity))


def centre_start(points_affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """First guess for a brain mask: a translation from the template's centre of mass to the mask's."""
    template = load_template(2)
    start = np.eye(4)
    start[:3, 3] = _centre(mask, points_affine) - _centre(template.mask, template.affine)
    return start


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    from scipy.ndimage import center_of_mass

    return (affine @ [*center_of_mass(mask), 1.0])[:3]


def _moving_image(voxels: np.ndarray, affine: np.ndarray, mask: np.ndarray | None):
    """The scan at about 2 mm (finer voxels cost time and add nothing to an affine), masked, robustly scaled to [0,
    1]."""
    values = voxels if mask is None else np.where(mask, voxels, 0)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.maximum(1, np.round(np.array(voxels.shape) * edges / 2.0)).astype(int)
    coarse = affine.copy()
    coarse[:3, :3] *= np.array(voxels.shape) / shape
    coarse[:3, 3] += affine[:3, :3] @ ((np.array(voxels.shape) / shape - 1) / 2)
    values = resample(values, affine, tuple(shape), coarse, order=1, antialias=True)
    inside = values[values > values.min()]
    low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
    # Zeros all around: samples that leave the image would be dropped, and dropping them must not pay.
    scaled = np.pad(np.clip((values - min(low, 0.0)) / max(high - min(low, 0.0), 1e-6), 0, 1), MARGIN)
    coarse[:3, 3] -= MARGIN * coarse[:3, :3].sum(axis=1)
    return to_sitk(scaled.astype(np.float32), coarse)


def _optimise(fixed, region, moving, transform, start, *, shrink, step_mm, check):
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(region)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([0.5 if factor >= 4 else 0.2 for factor in shrink], 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step_mm, minStep=0.01, numberOfIterations=80, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([max(1, factor // 2) for factor in shrink])
    method.SetSmoothingSigmasPerLevel([factor / 2.0 for factor in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        with stoppable(method, check):
            method.Execute(fixed, _shifted(moving, start))
    except RuntimeError as error:
        raise InputError(
            "REGISTRATION_FAILED",
            "the scan and the MNI152 template do not overlap",
            "check the orientation and origin in the header",
        ) from error
    return transform


def _metric(fixed, region, moving, transform) -> float:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(region)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform)
    try:
        return method.MetricEvaluate(fixed, moving)
    except RuntimeError:
        return float("nan")


def _shifted(moving, start: np.ndarray):
    """``moving`` with its geometry carried into the template's frame by the first guess, so that transforms start at
    identity."""
    import SimpleITK as sitk

    to_template = np.diag([-1, -1, 1, 1]) @ np.linalg.inv(start) @ np.diag([-1, -1, 1, 1])
    image = sitk.Image(moving)
    direction = np.array(moving.GetDirection()).reshape(3, 3)
    image.SetDirection((to_template[:3, :3] @ direction).ravel())
    image.SetOrigin(tuple(to_template[:3, :3] @ np.array(moving.GetOrigin()) + to_template[:3, 3]))
    return image


def _lps(point: np.ndarray) -> np.ndarray:
    return np.diag([-1, -1, 1, 1]) @ np.asarray(point, dtype=np.float64)


def _matrix_ras(transform) -> np.ndarray:
    """An ITK matrix transform (LPS, with centre) as a 4 x 4 in RAS mm."""
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    lps = np.eye(4)
    lps[:3, :3] = matrix
    lps[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ lps @ flip
