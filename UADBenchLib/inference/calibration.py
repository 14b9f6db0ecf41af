"""From raw scores to z: what is abnormal here, measured against healthy scans that the model has not seen.

Three steps, each measured on healthy validation scans and stored in the bundle. The map of a scan is rescaled so that
its typical (upper quartile) score is that of healthy validation scans, which takes out most of what a scanner does to
a whole map. It is then compared with the mean and spread of the score at the same place of healthy brains, smoothed
over ``SMOOTHING_MM`` and with a floor under the spread, since a few dozen scans do not support a voxelwise estimate.
Last, thresholds are read off the healthy z scores, each site weighing the same. For the thresholds the z of every
scan is computed against a reference made without that scan's fold, so that they do not profit from having been
calibrated on themselves; heads of one anatomy (see ``CohortScan.held_out_with``) share a fold.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from UADBenchLib.bundles.bundle import Bundle, Calibration, OperatingPoint, load_bundle, save_bundle
from UADBenchLib.cohort import CohortScan, read_cohort, select
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.evaluation.thresholds import BEST_DICE, RATES, rate_name, threshold_at_best_dice, threshold_at_rate
from UADBenchLib.geometry import resample
from UADBenchLib.inference.device import choose_device
from UADBenchLib.inference.domain import domain_origin, fit_domain
from UADBenchLib.inference.scoring import score_volume
from UADBenchLib.inference.weights import folds_of, site_weights
from UADBenchLib.methods.base import Method
from UADBenchLib.preprocessing.recipe import Recipe, prepare
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.scan import Progress
from UADBenchLib.training.slices import StoredScan, build_store, default_store

if TYPE_CHECKING:
    import torch

VERSION = 1
SMOOTHING_MM = 6.0
COARSE_MM = 6.0
FLOOR_QUANTILE = 0.5
LEVEL_QUANTILE = 0.75
FEWEST_SCANS = 5


@dataclass
class RawMap:
    """Raw map of one healthy validation scan, the mask of what was scored, who it is, and what it is held out with."""

    scores: np.ndarray
    scored: np.ndarray
    subject: str
    site: str
    held_out_with: str


@dataclass
class HealthyReference:
    """Mean and spread of the rescaled score of healthy scans, on the model grid; ``level`` is their typical median
    score."""

    mean: np.ndarray
    spread: np.ndarray
    level: float

    def z(self, scores: np.ndarray, scored: np.ndarray) -> np.ndarray:
        """Calibrated map (X, Y, Z) float32 of a raw one, in [0, 1000]; zero outside ``scored``.

        Scores below the healthy mean become 0: less error than usual is not abnormal.
        """
        if not scored.any():
            return np.zeros_like(scores)
        z = (scores * (self.level / scan_level(scores, scored)) - self.mean) / self.spread
        return np.where(scored, np.clip(z, 0, 1000), 0).astype(np.float32)


def scan_level(scores: np.ndarray, scored: np.ndarray) -> float:
    """The typical score of a scan: the upper quartile over what was scored.

    A lesion of less than a quarter of the brain hardly moves it, and unlike the median it is well above zero for
    methods that leave most of a healthy brain unchanged.
    """
    return max(float(np.quantile(scores[scored], LEVEL_QUANTILE)), 1e-6)


def fit_reference(maps: Sequence[RawMap], voxel_mm: float) -> HealthyReference:
    """Measure the healthy reference from raw maps; sites weigh the same, scans of a site share its weight.

    Raises
    ------
    InputError
        ``MAPS_CONSTANT`` when the scores do not vary.
    """
    from scipy.ndimage import gaussian_filter

    sigma = SMOOTHING_MM / voxel_mm
    level = float(np.exp(np.mean([np.log(scan_level(m.scores, m.scored)) for m in maps])))
    weights = site_weights([m.site for m in maps])
    rescaled = [m.scores * (level / scan_level(m.scores, m.scored)) for m in maps]
    density = sum(w * gaussian_filter(m.scored.astype(np.float32), sigma) for w, m in zip(weights, maps, strict=True))
    supported = density > 0.05
    safe = np.maximum(density, 1e-4)
    mean = sum(w * gaussian_filter(x * m.scored, sigma) for w, x, m in zip(weights, rescaled, maps, strict=True)) / safe
    variance = (
        sum(
            w * gaussian_filter(m.scored * (x - mean) ** 2, sigma)
            for w, x, m in zip(weights, rescaled, maps, strict=True)
        )
        / safe
    )
    spread = np.sqrt(np.maximum(variance, 0))
    floor = float(np.quantile(spread[supported], FLOOR_QUANTILE))
    if floor <= 0:
        raise InputError(
            "MAPS_CONSTANT",
            "the maps of healthy scans are the same almost everywhere, so that nothing can be compared with them",
            "train on more scans, or check the training loss",
        )
    # Where no healthy scan was scored the reference knows nothing: typical mean, and the floor.
    mean = np.where(supported, mean, float(mean[supported].mean()))
    spread = np.where(supported, np.maximum(spread, floor), floor)
    return HealthyReference(mean.astype(np.float32), spread.astype(np.float32), level)


def _coarse_grid(recipe: Recipe, voxel_mm: float) -> tuple[tuple[int, int, int], np.ndarray]:
    factor = voxel_mm / recipe.voxel_mm
    shape = tuple(int(np.ceil(n / factor)) for n in recipe.shape)
    affine = recipe.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] += recipe.voxel_mm * (factor - 1) / 2
    return shape, affine


def pack_reference(reference: HealthyReference, recipe: Recipe) -> dict[str, np.ndarray]:
    """The reference on the coarse grid that bundles carry; it is smooth, so that little is lost."""
    shape, affine = _coarse_grid(recipe, COARSE_MM)
    return {
        name: resample(getattr(reference, name), recipe.affine, shape, affine, order=1) for name in ("mean", "spread")
    }


def unpack_reference(bundle: Bundle) -> HealthyReference:
    """The healthy reference of a calibrated bundle on the model grid.

    Raises
    ------
    InputError
        ``NOT_CALIBRATED``.
    """
    if bundle.reference is None or bundle.metadata.calibration is None:
        raise InputError(
            "NOT_CALIBRATED", f"{bundle.metadata.id} has no healthy reference", "run `uadbench calibrate` on it"
        )
    recipe = bundle.recipe
    _, affine = _coarse_grid(recipe, bundle.metadata.calibration.voxel_mm)
    fine = {}
    for name in ("mean", "spread"):
        # One more cell on every side: the outermost fine voxels lie beyond the outermost coarse centres.
        coarse = np.pad(bundle.reference[name].astype(np.float32), 1, mode="edge")
        shifted = affine.copy()
        shifted[:3, 3] -= affine[:3, :3].sum(axis=1)
        fine[name] = resample(coarse, shifted, recipe.shape, recipe.affine, order=1)
    floor = bundle.metadata.calibration.floor
    return HealthyReference(fine["mean"], np.maximum(fine["spread"], floor), bundle.metadata.calibration.level)


def calibrate(
    bundle: str | Path,
    healthy: str | Path,
    lesions: str | Path | None = None,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    store: str | Path | None = None,
    rates: Sequence[float] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the healthy reference and the operating points of a bundle and write them into it.

    Parameters
    ----------
    bundle : path
        Folder of the bundle.
    healthy : path
        Cohort; rows with label ``healthy`` of split ``validation`` (or of no split) and the bundle's contrast are
        used.
    lesions : path, optional
        Cohort of validation scans with references; adds the operating point ``opt-dice``. Healthy scans alone give
        thresholds at a false-positive rate, which say nothing of how many lesions are found.
    rates : sequence of float
        Healthy false-positive rates to set thresholds at, beside those that every calibration gives.

    Returns
    -------
    dict
        id, path, scans and subjects used, operating points.

    Raises
    ------
    InputError
        ``COHORT_TOO_SMALL``; ``SUBJECTS_SHARED`` when a validation subject was trained on; ``MAPS_CONSTANT``.
    """
    trained = load_bundle(bundle)
    metadata, recipe = trained.metadata, trained.recipe
    rows = select(read_cohort(healthy, data), split="validation", label="healthy", contrast=metadata.contrast)
    _refuse_few(rows, metadata.contrast)
    _refuse_shared(rows, metadata.trained_on["subjects"])
    stored, failed = build_store(rows, Path(store) if store else default_store(), recipe, workers=workers)
    _refuse_few([scan.row for scan in stored], metadata.contrast)
    target = choose_device(device)
    method = trained.method.to(target)
    started = time.perf_counter()
    maps = [_raw_map(method, scan, recipe, target, progress, n, len(stored)) for n, scan in enumerate(stored)]
    seconds = (time.perf_counter() - started) / max(1, len(maps))
    reference = fit_reference(maps, recipe.voxel_mm)
    wanted = RATES | {rate_name(rate): rate for rate in rates}
    points = _operating_points(_held_out_histograms(maps, recipe), maps, Path(healthy).name, wanted)
    trained.reference = pack_reference(reference, recipe)
    trained.metadata = metadata.model_copy(
        update={
            "calibration": _record(reference, maps),
            "domain": fit_domain(stored, recipe, domain_origin(stored, healthy)),
            "operating_points": points,
            "seconds_per_scan": round(seconds, 2),
        }
    )
    if lesions is not None:
        point = _best_dice_point(trained, lesions, data, target)
        trained.metadata = trained.metadata.model_copy(update={"operating_points": {**points, BEST_DICE: point}})
    trained.method = method.cpu()
    saved = save_bundle(trained, bundle)
    return {
        "id": saved.metadata.id,
        "path": str(bundle),
        "scans": len(maps),
        "left_out": [f"{row.scan.name}: {error}" for row, error in failed],
        "sites": saved.metadata.calibration.sites,
        "operating_points": {name: p.model_dump(mode="json") for name, p in saved.metadata.operating_points.items()},
    }


def _refuse_few(rows: Sequence[CohortScan], contrast: str) -> None:
    subjects = len({row.subject for row in rows})
    if subjects < FEWEST_SCANS:
        raise InputError(
            "COHORT_TOO_SMALL",
            f"{len(rows)} usable healthy {contrast} validation scans of {subjects} subjects; "
            f"at least {FEWEST_SCANS} subjects are needed",
            "add scans, or check the columns label, split and contrast",
        )
    if len({row.held_out_with for row in rows}) < 2:
        raise InputError(
            "COHORT_TOO_SMALL",
            f"all healthy {contrast} validation scans are of anatomy {rows[0].anatomy}, so that none can be held out",
            "add scans of another anatomy",
        )


def _refuse_shared(rows: Sequence[CohortScan], known: Sequence[str]) -> None:
    shared = sorted({row.subject for row in rows} & set(known))
    if shared:
        raise InputError(
            "SUBJECTS_SHARED",
            f"{len(shared)} validation subjects were trained on ({shared[0]}, ...)",
            "split by subject and leave training subjects out of validation",
        )


def _raw_map(
    method: Method,
    scan: StoredScan,
    recipe: Recipe,
    device: torch.device,
    progress: Progress | None,
    number: int,
    count: int,
) -> RawMap:
    voxels, mask = scan.volume()
    scores, scored = score_volume(method, voxels, mask, recipe.voxel_mm, device=device)
    if progress is not None:
        progress("scoring healthy scans", (number + 1) / count)
    return RawMap(scores, scored, scan.row.subject, scan.row.site or "unknown", scan.row.held_out_with)


def _record(reference: HealthyReference, maps: Sequence[RawMap]) -> Calibration:
    sites = sorted({m.site for m in maps})
    return Calibration(
        version=VERSION,
        voxel_mm=COARSE_MM,
        smoothing_mm=SMOOTHING_MM,
        rescaled=True,
        level=reference.level,
        floor=float(reference.spread.min()),
        subjects=tuple(sorted({m.subject for m in maps})),
        sites={site: sum(m.site == site for m in maps) for site in sites},
    )


def _held_out_histograms(maps: Sequence[RawMap], recipe: Recipe) -> list[Histogram]:
    """One histogram of z a scan, each against the reference of the other folds."""
    folds = folds_of([m.held_out_with for m in maps])
    histograms: dict[int, Histogram] = {}
    for fold in sorted(set(folds)):
        others = [m for m, f in zip(maps, folds, strict=True) if f != fold]
        reference = fit_reference(others, recipe.voxel_mm)
        for number, m in enumerate(maps):
            if folds[number] == fold:
                histograms[number] = Histogram().add(reference.z(m.scores, m.scored), None, m.scored)
    return [histograms[number] for number in range(len(maps))]


def _operating_points(
    histograms: list[Histogram], maps: Sequence[RawMap], cohort: str, rates: dict[str, float] | None = None
) -> dict[str, OperatingPoint]:
    """Thresholds at fixed healthy false-positive rates, with intervals from resampling what each site held out: its
    subjects, or its anatomies."""
    sites, held_out = [m.site for m in maps], [m.held_out_with for m in maps]
    counts = ", ".join(f"{site}: {sites.count(site)}" for site in sorted(set(sites)))
    points = {}
    for name, rate in (RATES if rates is None else rates).items():
        found = threshold_at_rate(histograms, rate, sites, held_out)
        points[name] = OperatingPoint(
            threshold=found.value,
            healthy_fpr=found.reached,
            ci=found.ci,
            origin=f"healthy validation scans of {cohort} ({counts}), sites weigh the same, held-out folds",
            subjects=tuple(sorted({m.subject for m in maps})),
        )
    return points


def _best_dice_point(
    bundle: Bundle, lesions: str | Path, data: str | Path | None, device: torch.device
) -> OperatingPoint:
    rows = select(read_cohort(lesions, data), split="validation", label="lesion", contrast=bundle.metadata.contrast)
    _refuse_shared(rows, bundle.metadata.trained_on["subjects"])
    reference = unpack_reference(bundle)
    histograms, used = [], []
    for row in rows:
        if row.reference is None:
            continue
        scan = read_scan(row.scan, row.contrast)
        mask = None if row.brain_mask is None else read_mask(row.brain_mask, scan, "brain mask")
        prepared = prepare(scan, bundle.recipe, brain_mask=mask)
        truth = prepared.to_model(read_mask(row.reference, scan, "reference").astype(np.float32), scan) > 0.5
        scores, scored = score_volume(
            bundle.method, prepared.voxels, prepared.mask, bundle.recipe.voxel_mm, device=device
        )
        histograms.append(Histogram().add(reference.z(scores, scored), truth, prepared.mask))
        used.append(row)
    found = threshold_at_best_dice(histograms, [row.site for row in used], [row.subject for row in used])
    return OperatingPoint(
        threshold=found.value,
        healthy_fpr=None,
        ci=found.ci,
        origin=f"best mean Dice {found.reached:.3f} over {len(used)} validation scans with references of "
        f"{Path(lesions).name}",
        subjects=tuple(sorted({row.subject for row in used})),
    )
