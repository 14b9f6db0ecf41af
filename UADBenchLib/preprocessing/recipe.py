"""The preprocessing recipe: the ordered steps that take a scan from its own grid to model space, recorded and
invertible.

Canonical orientation, brain mask, bias field, registration, resampling, intensity; then what the image says of its
contrast and quality, which changes nothing in it. A bundle carries the hash of the
recipe that its training scans went through; a scan prepared by another recipe is refused. Only one interpolation
touches the voxels.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import canonical, resample
from UADBenchLib.preprocessing.bias_field import correct_bias_field
from UADBenchLib.preprocessing.brain_extraction import find_brain
from UADBenchLib.preprocessing.contrast import ContrastFound, Tissues, find_contrast, load_tissues, looks_like_ct
from UADBenchLib.preprocessing.intensity import normalise
from UADBenchLib.preprocessing.quality import measure_quality, quality_checks
from UADBenchLib.preprocessing.registration import TEMPLATE, Registration, register_brain
from UADBenchLib.scan import Check, Progress, Scan


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a prepared scan looks.

    Attributes
    ----------
    voxel_mm : float
        Edge of the isotropic model grid. 2 mm, because the healthy training scans have no finer detail.
    shape : tuple of int
        Voxels along R, A, S; multiples of 8 in plane.
    origin_mm : tuple of float
        RAS position of the first voxel's centre in template space.
    bias_field_mm : float
        Grid on which N4 fits.
    bias_field_iterations : tuple of int
        Most iterations of N4 on each of its levels. Fewer leave the shading of surface coils in, more levels begin to
        take large lesions out.
    low, high : float
        Percentiles of the brain that are brought to 0.1 and 0.9.
    template : str
        What scans are registered to.
    version : int
        Raised whenever the code of a step changes its result.
    """

    voxel_mm: float = 2.0
    shape: tuple[int, int, int] = (80, 96, 84)
    origin_mm: tuple[float, float, float] = (-79.0, -112.0, -78.0)
    bias_field_mm: float = 4.0
    bias_field_iterations: tuple[int, ...] = (50, 50, 50)
    low: float = 2.0
    high: float = 98.0
    template: str = TEMPLATE
    version: int = 1

    @property
    def affine(self) -> np.ndarray:
        """Model grid index to template RAS mm, shape (4, 4)."""
        matrix = np.diag([self.voxel_mm] * 3 + [1.0])
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def tissues(self) -> Tissues:
        """Where the template has fluid, grey and white matter, on the model grid."""
        return load_tissues(tuple(self.shape), self.voxel_mm, tuple(self.origin_mm))

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the recipe's parameters."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Prepared:
    """A scan in model space, and the way back.

    Attributes
    ----------
    voxels : numpy.ndarray
        Shape ``recipe.shape``, float32, tissue in about [0.1, 1], zero outside the brain.
    mask : numpy.ndarray
        Boolean brain mask in model space.
    affine : numpy.ndarray
        Model grid index to template RAS mm.
    native_mask : numpy.ndarray
        Boolean brain mask on the scan's own grid.
    world_to_native : numpy.ndarray
        Template RAS mm to scan RAS mm.
    steps : list of dict
        What was done, in order, with every parameter and measured value; JSON-serialisable.
    checks : list of Check
        The scan's checks and what preparation adds.
    seconds : dict
        Wall time of each step.
    contrast : ContrastFound or None
        What the image says of its contrast; whether that is what the user says is for ``settle_contrast``.
    quality : dict
        See ``quality.measure_quality``.
    """

    voxels: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    native_mask: np.ndarray
    world_to_native: np.ndarray
    steps: list[dict[str, Any]]
    checks: list[Check]
    seconds: dict[str, float] = field(default_factory=dict)
    contrast: ContrastFound | None = None
    quality: dict[str, Any] = field(default_factory=dict)

    def to_native(self, values: np.ndarray, scan: Scan, order: int = 1) -> np.ndarray:
        """Carry an array on the model grid to the scan's own grid; zero outside the brain mask there."""
        out = resample(
            np.asarray(values, dtype=np.float32),
            self.affine,
            scan.shape,
            scan.affine,
            order=order,
            world=np.linalg.inv(self.world_to_native),
        )
        out[~self.native_mask] = 0
        return out

    def to_model(self, values: np.ndarray, scan: Scan) -> np.ndarray:
        """Carry an array on the scan's grid to the model grid (linear, smoothed first where the scan is finer)."""
        return resample(
            np.asarray(values, dtype=np.float32),
            scan.affine,
            self.voxels.shape,
            self.affine,
            order=1,
            world=self.world_to_native,
            antialias=True,
        )

    @property
    def mask_affine(self) -> np.ndarray:
        """Index to template RAS mm of the grid for masks in model space: that of the models with voxels of half the
        edge, since ribbons of two or three millimetres, as of multiple sclerosis, are lost on the models' own."""
        return self.affine @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])

    def mask_to_model(self, mask: np.ndarray, scan: Scan) -> np.ndarray:
        """Carry a boolean mask on the scan's grid to model space: boolean, on the grid of ``mask_affine``."""
        shape = tuple(2 * size for size in self.voxels.shape)
        world, values = self.world_to_native, mask.astype(np.float32)
        return resample(values, scan.affine, shape, self.mask_affine, order=1, world=world, antialias=True) > 0.5

    def mask_to_native(self, mask: np.ndarray, scan: Scan) -> np.ndarray:
        """Carry a mask of ``mask_to_model`` back to the scan's grid, inside the brain mask there and outside."""
        world, values = np.linalg.inv(self.world_to_native), mask.astype(np.float32)
        return resample(values, self.mask_affine, scan.shape, scan.affine, order=1, world=world, antialias=True) > 0.5


STAGES = ("orientation", "brain mask", "bias field", "registration", "resampling", "intensity", "contrast", "quality")


class _Log:
    """Keeps time, steps and progress of one preparation."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.steps, self.seconds = progress, [], {}
        self.stage, self.started = STAGES[0], time.perf_counter()

    def tick(self) -> None:
        if self.progress is not None:
            self.progress(self.stage, STAGES.index(self.stage) / len(STAGES))

    def enter(self, stage: str) -> None:
        self.stage, self.started = stage, time.perf_counter()
        self.tick()

    def leave(self, **facts: Any) -> None:
        self.seconds[self.stage] = round(time.perf_counter() - self.started, 3)
        self.steps.append({"step": self.stage, **facts})


def prepare(
    scan: Scan,
    recipe: Recipe | None = None,
    *,
    brain_mask: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Take a scan through the recipe.

    Parameters
    ----------
    scan : Scan
        Not changed.
    recipe : Recipe, optional
        Default: the recipe of the shipped bundles.
    brain_mask : numpy.ndarray, optional
        Boolean, on the scan's grid.
    progress : callable, optional
        Called with (stage, fraction) often, also inside the long steps; what it raises ends the work.

    Raises
    ------
    InputError
        When no brain is found, registration fails, or almost nothing of the brain lies in the model's field of view.
    """
    recipe = recipe or Recipe()
    log = _Log(progress)
    log.enter("orientation")
    voxels, affine = canonical(scan.voxels, scan.affine)
    given = None if brain_mask is None else canonical(brain_mask, scan.affine)[0]
    log.leave(shape=list(voxels.shape), voxel_mm=[round(float(v), 4) for v in scan.voxel_mm])
    log.enter("brain mask")
    brain = find_brain(voxels, affine, given, check=log.tick)
    log.leave(source=brain.source, volume_ml=round(float(brain.mask.sum() * scan.voxel_ml), 1))
    log.enter("bias field")
    corrected = correct_bias_field(
        voxels,
        affine,
        brain.mask,
        work_mm=recipe.bias_field_mm,
        iterations=recipe.bias_field_iterations,
        check=log.tick,
    )
    log.leave(method="N4", grid_mm=recipe.bias_field_mm, iterations=list(recipe.bias_field_iterations))
    log.enter("registration")
    found = register_brain(corrected, affine, brain.mask, check=log.tick)
    log.leave(
        template=recipe.template,
        world=found.world.tolist(),
        start=found.start,
        retries=found.retries,
        **found.quality.record(),
    )
    log.enter("resampling")
    prepared = _resampled(corrected, brain.mask, affine, recipe, found.world, log.tick)
    covered = prepared[1].sum() * recipe.voxel_mm**3 * abs(np.linalg.det(found.world[:3, :3])) / 1000.0
    log.leave(voxel_mm=recipe.voxel_mm, shape=list(recipe.shape), interpolation="linear, smoothed first")
    if covered < 0.5 * brain.mask.sum() * scan.voxel_ml:
        raise InputError(
            "OUTSIDE_MODEL_SPACE",
            "less than half of the brain mask lies in the model's field of view",
            "check the brain mask and the orientation in the header",
        )
    log.enter("intensity")
    normal, measured = normalise(*prepared, recipe.low, recipe.high)
    log.leave(method="percentiles", **measured)
    log.enter("contrast")
    contrast = find_contrast(normal, prepared[1], recipe.tissues, looks_like_ct(voxels, brain.mask))
    log.leave(**contrast.record())
    log.enter("quality")
    whole_head = brain.source != "already extracted"
    quality = measure_quality(corrected, affine, brain.mask, recipe.tissues, recipe.affine, found.world, whole_head)
    log.leave(**quality)
    native_mask = given if given is None else brain_mask
    if native_mask is None:
        native_mask = _as_scan(brain.mask, scan.affine)
    return Prepared(
        normal,
        prepared[1],
        recipe.affine,
        native_mask,
        found.world,
        log.steps,
        [*scan.checks, *brain.checks, *_registration_checks(found), *quality_checks(quality)],
        log.seconds,
        contrast,
        quality,
    )


def _registration_checks(found: Registration) -> tuple[Check, ...]:
    """The warning for a registration that was accepted but has poorer figures than those of good scans."""
    faults = found.quality.faults(reliable=True)
    if not faults:
        return ()
    message = f"the registration may be off ({'; '.join(faults)})"
    return (Check("warning", "REGISTRATION_POOR", message, "look at the brain mask and whether left is left"),)


def _resampled(voxels, mask, affine, recipe, world, check) -> tuple[np.ndarray, np.ndarray]:
    def to_model(values: np.ndarray) -> np.ndarray:
        check()
        return resample(values, affine, recipe.shape, recipe.affine, order=1, world=world, antialias=True)

    weight = to_model(mask.astype(np.float32))
    # Smoothing mixes the zeros outside the brain into its edge; dividing by the smoothed mask takes them out again.
    values = to_model(np.where(mask, voxels, 0).astype(np.float32))
    inside = weight > 0.5
    return np.where(inside, values / np.maximum(weight, 0.5), 0).astype(np.float32), inside


def _as_scan(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A mask in canonical orientation, back in the scan's axis order."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(affine))
    return np.ascontiguousarray(apply_orientation(mask, back))
