"""What a scan's voxels consist of: shares of white matter, grey matter and fluid, the lateral ventricles, and the way
to the MNI152 template.

This is all that synthetic lesions know of a head, so that they can be put into heads made from label maps and into real
healthy scans alike. It is a description for placing and shaping lesions, not a segmentation to measure volumes with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.synthesis.anatomy import Anatomy, brain_mask

WHITE = ("white matter", "cerebellar white matter", "brain stem")
GREY = ("cortex", "cerebellar cortex", "thalamus", "caudate", "putamen", "pallidum", "limbic")
MIXED = ("ventral diencephalon",)
"""Tissues of ``anatomy`` by what lesions take them for: white, grey, and half of each."""

LEAST_SHARE = 0.02
"""Prior share that every tissue keeps everywhere inside the brain, for anatomy that the template lacks."""
PRIOR_BLUR_MM = 3.0
"""Blur of the template's tissue maps (standard deviation): how far an affine leaves structures apart."""


@dataclass(frozen=True)
class TissueMaps:
    """Tissue on a scan's grid.

    Attributes
    ----------
    white, grey, csf : numpy.ndarray
        Shape (I, J, K), float32 in [0, 1]; they add up to 1 inside the brain and to 0 outside.
    ventricles : numpy.ndarray
        Shape (I, J, K), boolean: lateral ventricles.
    brain : numpy.ndarray
        Shape (I, J, K), boolean brain mask.
    affine : numpy.ndarray
        Shape (4, 4), voxel index to RAS mm.
    to_template : numpy.ndarray
        Shape (4, 4), scan RAS mm to MNI152 template RAS mm.
    """

    white: np.ndarray
    grey: np.ndarray
    csf: np.ndarray
    ventricles: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    to_template: np.ndarray

    @property
    def voxel_mm(self) -> np.ndarray:
        """Edges of a voxel in mm, shape (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def crop(self, box: tuple[slice, slice, slice]) -> TissueMaps:
        """Return the part inside ``box``; the affine follows."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
        maps = {name: getattr(self, name)[box] for name in ("white", "grey", "csf", "ventricles", "brain")}
        return replace(self, affine=affine, **maps)


def tissue_from_anatomy(anatomy: Anatomy, to_template: np.ndarray) -> TissueMaps:
    """Describe the tissue of a head made from labels; what is neither white nor grey inside the brain is fluid.

    Parameters
    ----------
    anatomy : Anatomy
        The head.
    to_template : numpy.ndarray
        Shape (4, 4), RAS mm to template RAS mm: the inverse of ``Registration.world`` of the head as painted.

    Raises
    ------
    InputError
        ``TISSUE_MISSING`` when no voxel is white matter.
    """
    brain = brain_mask(anatomy)
    mixed = anatomy.of(*MIXED) * np.float32(0.5)
    white = (anatomy.of(*WHITE) + mixed) * brain
    grey = (anatomy.of(*GREY) + mixed) * brain
    if not white.any():
        raise InputError("TISSUE_MISSING", "no voxel of the head is white matter", "give a map of a whole head")
    near = _near_ventricles(brain.shape, anatomy.affine, to_template)
    ventricles = anatomy.of("ventricle", "choroid plexus") & near
    return TissueMaps(white, grey, (1 - white - grey) * brain, ventricles, brain, anatomy.affine, to_template)


@lru_cache(maxsize=2)
def tissue_of_template(voxel_mm: int = 2) -> TissueMaps:
    """Return the tissue of the MNI152 template (ICBM 2009a) at ``voxel_mm``, from nilearn's package data."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    from UADBenchLib.preprocessing.registration import load_template

    template = load_template(voxel_mm)
    brain = template.mask
    grey, white = (
        load(resolution=voxel_mm).get_fdata(dtype=np.float32).clip(0, 1) * brain
        for load in (load_mni152_gm_template, load_mni152_wm_template)
    )
    total = np.maximum(grey + white, 1)  # shares that overlap at the borders are scaled to one
    grey, white = grey / total, white / total
    csf = (1 - grey - white) * brain
    ventricles = _deep_fluid(csf, brain, np.full(3, float(voxel_mm)))
    for array in (white, grey, csf, ventricles):
        array.setflags(write=False)
    return TissueMaps(white, grey, csf, ventricles, brain, template.affine, np.eye(4))


def _deep_fluid(csf: np.ndarray, brain: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """Lateral ventricles of the template: the largest body of fluid more than 22 mm below the brain's surface."""
    from scipy.ndimage import distance_transform_edt, label

    parts, _ = label((csf > 0.5) & (distance_transform_edt(brain, sampling=voxel_mm) > 22))
    return parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())


def tissue_from_scan(
    voxels: np.ndarray, affine: np.ndarray, brain: np.ndarray, world: np.ndarray, *, iterations: int = 12
) -> TissueMaps:
    """Estimate the tissue of a real scan: the template's tissue maps, sharpened by the scan's own intensities.

    The carried maps are the priors of a mixture of three normal distributions fitted by expectation maximisation, as
    in unified segmentation (Ashburner and Friston, NeuroImage 2005) without its warps and bias field.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K), of any contrast in which white matter, grey matter and fluid differ.
    affine : numpy.ndarray
        Shape (4, 4), voxel index to RAS mm.
    brain : numpy.ndarray
        Shape (I, J, K), boolean brain mask.
    world : numpy.ndarray
        Shape (4, 4), template RAS mm to scan RAS mm, as ``preprocessing.registration.register`` finds it.

    Raises
    ------
    InputError
        ``GRID_MISMATCH`` when the mask has another shape; ``TISSUE_MISSING`` when the brain mask and the template's
        brain, carried by ``world``, do not meet.
    """
    if voxels.shape != brain.shape:
        raise InputError(
            "GRID_MISMATCH", f"scan {voxels.shape} and brain mask {brain.shape} differ in shape", "use one grid"
        )
    to_template = np.linalg.inv(world)
    priors = _carried_priors(voxels.shape, affine, to_template)
    values, inside = voxels[brain].astype(np.float32), priors[:, brain]
    if inside.sum() < 0.2 * max(values.size, 1):
        raise InputError(
            "TISSUE_MISSING", "the template's brain does not lie on the brain mask", "check the registration"
        )
    inside = inside * (1 - 3 * LEAST_SHARE) + LEAST_SHARE
    inside[2] += np.clip(1 - inside.sum(axis=0), 0, None)  # what the template calls outside is fluid
    shares = np.zeros((3, *voxels.shape), dtype=np.float32)
    shares[:, brain] = _fit_mixture(values, inside / inside.sum(axis=0), iterations)
    white, grey, csf = shares
    ventricles = (csf > 0.5) & _near_ventricles(voxels.shape, affine, to_template)
    return TissueMaps(white, grey, csf, ventricles, brain.astype(bool), np.asarray(affine), to_template)


def _carried_priors(shape: tuple[int, ...], affine: np.ndarray, to_template: np.ndarray) -> np.ndarray:
    """The template's blurred shares (3, I, J, K) on a scan's grid."""
    from scipy.ndimage import gaussian_filter

    template = tissue_of_template(2)
    blurred = [gaussian_filter(part, PRIOR_BLUR_MM / 2) for part in (template.white, template.grey, template.csf)]
    return np.stack([resample(p, template.affine, shape, affine, order=1, world=to_template) for p in blurred])


def _near_ventricles(shape: tuple[int, ...], affine: np.ndarray, to_template: np.ndarray) -> np.ndarray:
    """Where lateral ventricles may lie on a scan's grid: within 8 mm of the template's."""
    from scipy.ndimage import distance_transform_edt

    template = tissue_of_template(2)
    distance = distance_transform_edt(~template.ventricles, sampling=template.voxel_mm)
    near = np.clip(1 - distance / 16, 0, None).astype(np.float32)
    return resample(near, template.affine, shape, affine, order=1, world=to_template) > 0.5


def _fit_mixture(values: np.ndarray, priors: np.ndarray, iterations: int) -> np.ndarray:
    """Posterior shares (3, N) of the tissues of voxels with intensities ``values`` (N,), fitted on up to 200 000."""
    step = max(1, values.size // 200_000)
    sample, weights = values[::step].astype(np.float64), priors[:, ::step].astype(np.float64)
    shares = weights**2 / (weights**2).sum(axis=0)  # start from where the template is sure
    least = 1e-4 * max(float(sample.var()), 1e-12)
    for _ in range(iterations):
        total = shares.sum(axis=1) + 1e-9
        means = (shares @ sample) / total
        variances = np.maximum((shares * (sample - means[:, None]) ** 2).sum(axis=1) / total, least)
        shares = _posterior(sample, weights, means, variances)
    return _posterior(values, priors, means, variances).astype(np.float32)


def _posterior(values: np.ndarray, priors: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    squared = (values - means[:, None]) ** 2 / variances[:, None]
    exponent = np.log(priors) - 0.5 * (squared + np.log(variances)[:, None])
    shares = np.exp(exponent - exponent.max(axis=0))
    return shares / shares.sum(axis=0)
