"""Affine registration of a brain to the MNI152 template, and the template itself.

The template is the skull-stripped ICBM 2009a non-linear symmetric average that nilearn carries in its package under a
licence that allows redistribution; nothing is downloaded. Only linear registration is done: a non-linear one would warp
lesions away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import from_sitk, resample, to_sitk
from UADBenchLib.preprocessing.stopping import stoppable
from UADBenchLib.scan import no_check

TEMPLATE = "MNI152NLin2009aSym"

RELIABLE_SIMILARITY, MINIMUM_SIMILARITY = 0.37, 0.2
"""Mattes mutual information (nats) inside the template's brain: below the first other starts are tried, below the
second a registration is refused. 126 T1w brains of IXI, ds002748 and development cases measure 0.39 to 0.56 but for one
of 0.35, T2w and FLAIR 0.39 to 0.47; turned copies that ended 8 mm off or more keep to 0.34, upside down or back to
front to 0.22. The brain's outline counts in it: noise in the shape of a brain reaches 0.35."""

RELIABLE_OVERLAP, MINIMUM_OVERLAP = 0.91, 0.85
"""The same for Dice of the scan's brain mask with the template's: 0.92 to 0.98 when well registered but for one of
0.905, 0.81 to 0.92 when 10 mm off or more."""

SCALES = (0.65, 1.25)
"""Plausible sizes of a brain along any axis, against the template's; the same scans measure 0.76 to 1.07."""

RELIABLE_SHEAR, LARGEST_SHEAR = 0.16, 0.25
"""The same for the cosine between carried template axes: up to 0.14, failed registrations 0.02 to 0.45."""

MARGIN = 24
"""Voxels of about 2 mm that are added around a scan before it is registered."""

UPRIGHT_DEGREES = 28.0
"""Rotation up to which the centre start is trusted where its figures are good; 142 scans measure up to 25.7. From
farther away it can stop a few degrees short with figures that would do."""

CLEARLY_BETTER = 0.02
"""By how much similarity times overlap must grow for another start's registration to be taken."""

MOST_STARTS = 4
"""Further starts that are followed when the first one gives a poor registration."""

HOPEFUL = 0.75
"""Share of the best registration's mutual information after the rigid stage that a further start must reach to be
followed to the end: in heads turned by 30 to 180 degrees the right start had most, and starts that ended upside down
or back to front 0.5 to 0.7 of that."""

SAME_PLACE_MM, TRAVELLED_DEGREES = 6.0, 10.0
"""A rigid stage that ends within this distance of a registration over the whole brain, sizes apart, has ended at the
same place. Where it turned by as much as this to get there, that is no chance, and further starts would find nothing
else."""


@dataclass(frozen=True)
class Template:
    """The skull-stripped MNI152 T1 average: voxels in [0, 1] and brain mask on one grid."""

    voxels: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Quality:
    """How well a scan lies on the template.

    Attributes
    ----------
    similarity : float
        Mattes mutual information (nats) inside the template's brain; NaN where nothing overlaps.
    overlap : float or None
        Dice of the scan's brain mask with the template's; None without a mask.
    scales : tuple of float
        Singular values of the affine, smallest first: size of the scan's brain against the template's.
    shear : float
        Largest absolute cosine between two template axes carried into the scan; 0 is none.
    mirrored : bool
        Whether the affine swaps left and right; no brain is a mirror image.
    """

    similarity: float
    overlap: float | None
    scales: tuple[float, float, float]
    shear: float
    mirrored: bool

    def faults(self, reliable: bool = False) -> list[str]:
        """What is wrong, as phrases with numbers; empty when there is nothing.

        ``reliable`` asks for the figures of good scans instead of the least that is accepted.
        """
        similarity = RELIABLE_SIMILARITY if reliable else MINIMUM_SIMILARITY
        overlap = RELIABLE_OVERLAP if reliable else MINIMUM_OVERLAP
        found = []
        if not self.similarity >= similarity:
            found.append(f"mutual information {self.similarity:.2f}, at least {similarity:.2f} is expected")
        if self.overlap is not None and not self.overlap >= overlap:
            found.append(f"Dice of the brain masks {self.overlap:.2f}, at least {overlap:.2f} is expected")
        if not SCALES[0] <= self.scales[0] <= self.scales[-1] <= SCALES[1]:
            found.append(
                f"the brain would be {self.scales[0]:.2f} to {self.scales[-1]:.2f} times the template's size, "
                f"{SCALES[0]:.2f} to {SCALES[1]:.2f} is plausible"
            )
        shear = RELIABLE_SHEAR if reliable else LARGEST_SHEAR
        if self.shear > shear:
            found.append(f"shear {self.shear:.2f}, at most {shear:.2f} is plausible")
        if self.mirrored:
            found.append("left and right would be swapped")
        return found

    @property
    def merit(self) -> tuple[bool, float]:
        """What registrations are ranked by: acceptable ones first, then similarity times overlap."""
        product = np.nan_to_num(self.similarity, nan=-1.0) * (1.0 if self.overlap is None else self.overlap)
        return not self.faults(), float(product)

    def record(self) -> dict[str, Any]:
        """The figures as they enter the recipe's steps."""
        return {
            "mutual_information": round(self.similarity, 4),
            "overlap": None if self.overlap is None else round(self.overlap, 4),
            "scales": [round(scale, 4) for scale in self.scales],
            "shear": round(self.shear, 4),
        }


@dataclass(frozen=True)
class Registration:
    """``world`` maps template RAS mm to scan RAS mm; ``start`` names the first guess it came from, ``rigid`` is the
    mutual information (nats, of coarse images) after the rigid stage, ``retries`` how many further ones were tried."""

    world: np.ndarray
    quality: Quality
    start: str = "given"
    rigid: float = float("nan")
    retries: int = 0


@lru_cache(maxsize=2)
def load_template(voxel_mm: int = 2) -> Template:
    """Return the template at ``voxel_mm`` millimetres, from nilearn's package data."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    image = load_mni152_template(resolution=voxel_mm)
    mask = load_mni152_brain_mask(resolution=voxel_mm)
    voxels = np.clip(image.get_fdata(dtype=np.float32), 0, None)
    voxels.setflags(write=False)
    return Template(voxels, mask.get_fdata(dtype=np.float32) > 0.5, np.asarray(image.affine, dtype=np.float64))


def register_brain(
    voxels: np.ndarray, affine: np.ndarray, mask: np.ndarray, *, check: Callable[[], None] | None = None
) -> Registration:
    """Register a scan whose brain is known: from its centre, and from other starts while the result is poor.

    The centre start suits every head that lies about upright in its header's frame and is the only one that is
    followed for them. Otherwise the brain's principal axes and rotations about them are compared with the template as
    they are, and the best ``MOST_STARTS`` are followed, to the end where the rigid stage is ``HOPEFUL``, until one
    gives a reliable registration, or its rigid stage comes from afar to the place of the best before it; else the best
    of all counts.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K).
    affine : numpy.ndarray
        Voxel index to RAS mm.
    mask : numpy.ndarray
        Boolean brain mask of the scan.
    check : callable, optional
        Called at every iteration; what it raises ends the registration.

    Raises
    ------
    InputError
        ``REGISTRATION_FAILED`` with the figures of the best attempt, when all are poor.
    """
    check = check or no_check
    pair = _Pair.of(voxels, affine, mask)
    check()
    best = _attempt(pair, "centre", centre_start(affine, mask), check)
    if not best.quality.faults(reliable=True) and _turned_by(best.world) <= UPRIGHT_DEGREES:
        return best
    for retries, (name, start) in enumerate(_further_starts(pair, check), start=1):
        attempt = _attempt(pair, name, start, check, before=best)
        clearly = (attempt.quality.merit[0], attempt.quality.merit[1] - CLEARLY_BETTER) > best.quality.merit
        confirmed = _confirms(attempt.world, start, best)
        best = replace(attempt if clearly else best, retries=retries)
        if confirmed or not best.quality.faults(reliable=True):
            break
    return _accepted(best)


def register(
    voxels: np.ndarray,
    affine: np.ndarray,
    start: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    check: Callable[[], None] | None = None,
) -> Registration:
    """Find the affine that carries the template onto a scan from one first guess: rigid first, then twelve parameters,
    coarse to fine.

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
        ``REGISTRATION_FAILED`` when the result has ``Quality.faults``.
    """
    check = check or no_check
    return _accepted(_attempt(_Pair.of(voxels, affine, mask), "given", start, check))


def _confirms(pose: np.ndarray, start: np.ndarray, best: Registration) -> bool:
    """Whether what began at ``start`` has come from afar to the place of an acceptable registration."""
    if best.quality.faults():
        return False
    template = load_template(2)
    places = np.argwhere(template.mask)[::50] @ template.affine[:3, :3].T + template.affine[:3, 3] - _template_centre()
    # A rigid stage leaves the size as it was: only turn and place of the middle are compared.
    turn = _rotation(pose) - _rotation(best.world)
    shift = (pose - best.world)[:3] @ [*_template_centre(), 1.0]
    apart = np.linalg.norm(places @ turn.T + shift, axis=1)
    return bool(apart.max() <= SAME_PLACE_MM and _turned_by(np.linalg.inv(start) @ pose) >= TRAVELLED_DEGREES)


def _rotation(world: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) in an affine: that of its polar decomposition."""
    from scipy.linalg import polar as decompose

    rotation = decompose(world[:3, :3])[0]
    return rotation * np.sign(np.linalg.det(rotation))


def _turned_by(world: np.ndarray) -> float:
    """Angle (degrees) of the rotation in an affine."""
    from scipy.spatial.transform import Rotation

    return float(np.degrees(Rotation.from_matrix(_rotation(world)).magnitude()))


def _accepted(found: Registration) -> Registration:
    """Return a good registration; refuse a poor one with its figures."""
    faults = found.quality.faults()
    if faults:
        tried = f" after {found.retries} further starts" if found.retries else ""
        raise InputError(
            "REGISTRATION_FAILED",
            f"the scan could not be aligned with the MNI152 template{tried} ({'; '.join(faults)})",
            "check the orientation in the header and that this is a brain, or give a brain mask with --brain-mask",
        )
    return found


@dataclass(frozen=True)
class _Pair:
    """Template and scan as SimpleITK images, and the scan's mask, if there is one, with its affine."""

    fixed: Any
    region: Any
    moving: Any
    mask: np.ndarray | None
    affine: np.ndarray

    @classmethod
    def of(cls, voxels: np.ndarray, affine: np.ndarray, mask: np.ndarray | None) -> _Pair:
        import SimpleITK as sitk

        template = load_template(2)
        region = sitk.BinaryDilate(to_sitk(template.mask.astype(np.uint8), template.affine), (2, 2, 2))
        fixed = to_sitk(template.voxels, template.affine)
        return cls(fixed, region, _moving_image(voxels, affine, mask), mask, affine)


def _attempt(
    pair: _Pair, name: str, start: np.ndarray, check: Callable[[], None], *, before: Registration | None = None
) -> Registration:
    """One registration from one first guess, with its quality, whatever that is; given up after the rigid stage, with a
    similarity of NaN, when that is not ``HOPEFUL`` against the one ``before``, or confirms it."""
    import SimpleITK as sitk

    first = sitk.Euler3DTransform()
    first.SetCenter(tuple(_lps(load_template(2).affine @ [49, 58, 40, 1])[:3]))
    try:
        rigid = _optimise(pair, first, start, shrink=(4,), step_mm=2.0, check=check)
        pose = start @ _matrix_ras(first)
        if before is not None and (rigid < HOPEFUL * before.rigid or _confirms(pose, start, before)):
            return Registration(pose, _quality(pair, pose, float("nan")), name, rigid)
        final = sitk.AffineTransform(3)
        final.SetCenter(first.GetCenter())
        final.SetMatrix(first.GetMatrix())
        final.SetTranslation(first.GetTranslation())
        _optimise(pair, final, start, shrink=(4, 2), step_mm=0.5, check=check)
    except RuntimeError:  # the images do not overlap, now or on the way
        return Registration(start, _quality(pair, start, float("nan")), name)
    check()
    world = start @ _matrix_ras(final)
    return Registration(world, _quality(pair, world, _similarity(pair, start, final)), name, rigid)


def _quality(pair: _Pair, world: np.ndarray, similarity: float) -> Quality:
    template = load_template(2)
    overlap = None
    if pair.mask is not None:
        shape = template.mask.shape
        carried = resample(
            pair.mask.astype(np.float32), pair.affine, shape, template.affine, order=1, world=world, antialias=True
        )
        both = int(np.count_nonzero((carried > 0.5) & template.mask))
        # Brain beyond the template's grid counts as brain that misses it.
        scale = abs(np.linalg.det(pair.affine[:3, :3])) / abs(np.linalg.det(world[:3, :3] @ template.affine[:3, :3]))
        overlap = float(2 * both / (np.count_nonzero(pair.mask) * scale + np.count_nonzero(template.mask)))
    axes = world[:3, :3] / np.linalg.norm(world[:3, :3], axis=0)
    smallest, middle, largest = sorted(np.linalg.svd(world[:3, :3], compute_uv=False).tolist())
    return Quality(
        similarity,
        overlap,
        (smallest, middle, largest),
        float(np.abs(axes.T @ axes - np.eye(3)).max()),
        bool(np.linalg.det(world[:3, :3]) < 0),
    )


def _further_starts(pair: _Pair, check: Callable[[], None]) -> list[tuple[str, np.ndarray]]:
    """The ``MOST_STARTS`` most promising of many first guesses, best first, each unlike those before it.

    Tried are rotations about the template's axes, of the brain's own principal axes and of its header's, the latter in
    all right-angled ways in which a header can be wrong. All carry centre to centre and volume to volume.
    """
    from scipy.spatial.transform import Rotation

    mask, template = pair.mask, load_template(2)
    size = np.cbrt(mask.sum() * abs(np.linalg.det(pair.affine[:3, :3])) / (template.mask.sum() * 8.0))
    bases = {"moments": _principal_rotation(mask, pair.affine), "axes": np.eye(3)}
    turns = [np.zeros(3), *(sign * angle * axis for axis in np.eye(3) for angle in (20, 40) for sign in (-1, 1))]
    candidates = []
    for base, rotation in bases.items():
        for right_angled in Rotation.create_group("O").as_matrix():
            for turn in turns:
                matrix = rotation @ right_angled @ Rotation.from_rotvec(turn, degrees=True).as_matrix()
                candidates.append((base, matrix))
    look, centre = _Glance(pair), _centre(mask, pair.affine)
    scored = []
    for base, matrix in candidates:
        check()
        start = np.eye(4)
        start[:3, :3] = size * matrix
        start[:3, 3] = centre - start[:3, :3] @ _template_centre()
        scored.append((look.similarity(start), base, matrix, start))
    scored.sort(key=lambda one: -one[0])
    chosen: list[tuple[str, np.ndarray, np.ndarray]] = []
    for _, base, matrix, start in scored:
        angles = [Rotation.from_matrix(matrix.T @ other).magnitude() for _, other, _ in chosen]
        if len(chosen) < MOST_STARTS and all(np.degrees(angle) > 25 for angle in angles):
            angle = np.degrees(Rotation.from_matrix(matrix).magnitude())
            chosen.append((f"{base}, turned by {angle:.0f} degrees", matrix, start))
    return [(name, start) for name, _, start in chosen]


class _Glance:
    """Mutual information (nats) on a coarse grid, a thousand times faster than the metric that is optimised."""

    STEP, BINS = 4, 24

    def __init__(self, pair: _Pair) -> None:
        from scipy.ndimage import gaussian_filter

        template = load_template(2)
        # Every fourth voxel along each axis, and both smoothed to that.
        smooth = gaussian_filter(template.voxels, self.STEP / 2)[:: self.STEP, :: self.STEP, :: self.STEP]
        index = np.argwhere(smooth > 0.1)
        self.places = index * self.STEP @ template.affine[:3, :3].T + template.affine[:3, 3]
        self.fixed = (smooth[tuple(index.T)] * self.BINS).clip(0, self.BINS - 1).astype(int)
        moving, affine = from_sitk(pair.moving)
        self.moving, self.inverse = gaussian_filter(moving, self.STEP / 2), np.linalg.inv(affine)

    def similarity(self, start: np.ndarray) -> float:
        """Of the scan seen through ``start``, template RAS mm to scan RAS mm."""
        from scipy.ndimage import map_coordinates
        from sklearn.metrics import mutual_info_score

        bridge = self.inverse @ start
        index = bridge[:3, :3] @ self.places.T + bridge[:3, 3:]
        values = (map_coordinates(self.moving, index, order=1) * self.BINS).clip(0, self.BINS - 1).astype(int)
        # Counted here: to scikit-learn numbers of bins are labels, which it would sort and check.
        joint = np.bincount(self.fixed * self.BINS + values, minlength=self.BINS**2).reshape(self.BINS, self.BINS)
        return float(mutual_info_score(None, None, contingency=joint))


def _principal_rotation(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes the principal axes of the template's brain to those of a mask."""
    from scipy.spatial.transform import Rotation

    template = load_template(2)
    own, other = _principal_axes(template.mask, template.affine), _principal_axes(mask, affine)
    signs = [np.diag([a, b, a * b]) for a in (-1, 1) for b in (-1, 1)]
    return min((other @ sign @ own.T for sign in signs), key=lambda m: Rotation.from_matrix(m).magnitude())


def _principal_axes(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Right-handed principal axes (3, 3) of a mask in RAS, as columns, shortest first."""
    places = np.argwhere(mask) @ affine[:3, :3].T
    _, axes = np.linalg.eigh(np.cov(places.T))
    return axes * np.array([1.0, 1.0, np.linalg.det(axes)])


def centre_start(points_affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """First guess for a brain mask: a translation from the template's centre of mass to the mask's."""
    start = np.eye(4)
    start[:3, 3] = _centre(mask, points_affine) - _template_centre()
    return start


@lru_cache(maxsize=1)
def _template_centre() -> np.ndarray:
    template = load_template(2)
    return _centre(template.mask, template.affine)


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


def _optimise(pair: _Pair, transform, start: np.ndarray, *, shrink, step_mm, check) -> float:
    """Optimise ``transform``, which is applied after ``start``, in place, and return the mutual information (nats) that
    it reached; RuntimeError where the images do not overlap."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(pair.region)
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
    with stoppable(method, check):
        method.Execute(pair.fixed, _shifted(pair.moving, start))
    return -float(method.GetMetricValue())


def _similarity(pair: _Pair, start: np.ndarray, transform) -> float:
    """Mutual information (nats) of template and scan, NaN without overlap."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(pair.region)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(transform)
    try:
        return -float(method.MetricEvaluate(pair.fixed, _shifted(pair.moving, start)))
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
