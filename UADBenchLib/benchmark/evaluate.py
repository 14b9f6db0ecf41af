"""One scan of a benchmark: prepared once, scored by every model, measured at every operating point.

What comes back is plain data (a record and the histograms of the maps), so that it can be computed in this process, in
another one, or on another machine. Nothing is written here. Everything runs on one thread, since sums over several
come in any order: on one kind of device the same scan gives the same numbers, whoever computes it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.cohort import CohortScan
from UADBenchLib.errors import CancelledError
from UADBenchLib.evaluation.lesions import (
    LesionRule,
    Lesions,
    count_lesions,
    lesion_contrast,
    lesion_records,
    split_lesions,
)
from UADBenchLib.evaluation.metrics import FINE, Histogram, average_precision, dice
from UADBenchLib.evaluation.plain import plain
from UADBenchLib.evaluation.surfaces import surface_distance
from UADBenchLib.inference.detector import calibrated_map, open_model
from UADBenchLib.inference.device import choose_device
from UADBenchLib.inference.domain import relative_distance
from UADBenchLib.inference.findings import find
from UADBenchLib.inference.postprocessing import bounding_box
from UADBenchLib.inference.worker import explain_failure
from UADBenchLib.parallel import one_thread
from UADBenchLib.preprocessing.contrast import settle_contrast
from UADBenchLib.preprocessing.quality import domain_features
from UADBenchLib.preprocessing.recipe import Prepared, prepare
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.scan import Progress, Scan

log = logging.getLogger(__name__)

STORED_BINS = 64.0
"""Bins per unit of the histograms that are kept; metrics of single scans come from finer ones."""
HIGHEST = 0.01
"""Share of the brain's voxels whose mean z is the scan's score."""


@dataclass(frozen=True)
class Job:
    """All that is needed to evaluate one scan, anywhere that sees the same files.

    ``models`` gives the folder of each bundle, ``points`` the threshold of each of its operating points, and ``run``
    the fingerprint of the run that the record will belong to.
    """

    scan_id: str
    dataset: str
    row: CohortScan
    models: dict[str, Path]
    points: dict[str, dict[str, float]]
    minimum_ml: float
    rule: LesionRule
    run: str


@dataclass
class Outcome:
    """The record of one scan, JSON-serialisable, and a histogram of calibrated z for every model that scored it."""

    record: dict[str, Any]
    histograms: dict[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class _Case:
    """A scan with its masks, and what all models share of it.

    Arrays are cut to ``box``, which holds brain and reference: outside it nothing is flagged and nothing counts.
    """

    box: tuple[slice, ...]
    scan: Scan
    brain: np.ndarray
    reference: np.ndarray | None
    lesions: Lesions | None
    contrasts: list[dict[str, float]]


def evaluate(job: Job, device: str = "auto", progress: Progress | None = None) -> Outcome:
    """Evaluate one scan.

    Parameters
    ----------
    job : Job
    device : str
        See ``inference.device.choose_device``.
    progress : callable, optional
        Called often with (stage, fraction of this scan); what it raises ends the work.

    Returns
    -------
    Outcome
        Also when the scan, or a model on it, fails: then the record's ``failures`` say why.
    """
    outcome = Outcome(empty_record(job))
    with one_thread():
        try:
            _evaluate(job, device, progress, outcome)
        except CancelledError:
            raise
        except Exception as error:
            outcome.record["failures"].append(failure(job, "", error))
    outcome.record = plain(outcome.record)
    return outcome


def empty_record(job: Job) -> dict[str, Any]:
    """A record without results: whose it is, which files it was made from, and of which run.

    ``features`` will be the scan's ``quality.domain_features``, and ``distance`` the largest of its models' distances
    from their calibration scans, in units of their limits.
    """
    return {
        "run": job.run,
        "scan_id": job.scan_id,
        "sizes": sizes_of(job.row),
        "scans": [],
        "lesions": [],
        "findings": [],
        "timing": [],
        "failures": [],
        "checks": [],
        "features": {},
        "distance": None,
    }


def sizes_of(row: CohortScan) -> dict[str, int | None]:
    """Bytes of the files of a scan: those of a record that differ now make it stale."""
    return {name: _size_of(getattr(row, name)) for name in ("scan", "reference", "brain_mask")}


def _size_of(path: Path | None) -> int | None:
    """Bytes of a file, or of all files of a folder; None where there is none."""
    if path is None or not path.exists():
        return None
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def failure(job: Job, model: str, error: BaseException) -> dict[str, str]:
    """A row of the table of failures."""
    said = explain_failure(error)
    if said["code"] == "INTERNAL":
        log.error("%s failed", job.scan_id, exc_info=error)
        said = said | {"message": f"{type(error).__name__}: {error}"}
    return {"scan_id": job.scan_id, "subject": job.row.subject, "model": model, **said}


def _evaluate(job: Job, device: str, progress: Progress | None, outcome: Outcome) -> None:
    target = choose_device(device)
    started = time.perf_counter()
    scan = read_scan(job.row.scan, job.row.contrast)
    brain_mask = None if job.row.brain_mask is None else read_mask(job.row.brain_mask, scan, "brain mask")
    reference = _reference(job.row, scan)
    prepared: dict[str, Prepared] = {}
    case: _Case | None = None
    for model, path in job.models.items():
        try:
            bundle, healthy = open_model(path)
            if bundle.recipe.hash not in prepared:
                prepared[bundle.recipe.hash] = prepare(scan, bundle.recipe, brain_mask=brain_mask, progress=progress)
            ready = prepared[bundle.recipe.hash]
            if case is None:
                _, checks = settle_contrast(job.row.contrast, ready.contrast, by="the cohort")
                outcome.record["checks"] = [asdict(check) for check in (*ready.checks, *checks)]
                case = _case(scan, ready.native_mask, reference, job.rule)
                outcome.record["features"] = domain_features(
                    ready.voxels, ready.mask, bundle.recipe.tissues, bundle.recipe.voxel_mm
                )
                seconds = time.perf_counter() - started
            distance = relative_distance(bundle.metadata.domain, outcome.record["features"])
            if distance is not None:
                outcome.record["distance"] = max(distance, outcome.record["distance"] or 0.0)
            begun = time.perf_counter()
            z, raw = calibrated_map(scan, ready, bundle, healthy, target, progress)
            scored = time.perf_counter()
            plainly = _precision(ready.to_native(raw, scan), case)
            outcome.histograms[model] = _measure(job, model, z, plainly, case, outcome.record)
            outcome.record["timing"].append(_timing(job, model, seconds, scored - begun, time.perf_counter() - scored))
        except CancelledError:
            raise
        except Exception as error:
            if case is None:  # not one model could use this scan: no fault of the model
                raise
            outcome.record["failures"].append(failure(job, model, error))


def _reference(row: CohortScan, scan: Scan) -> np.ndarray | None:
    """The reference; all false for a healthy scan, None where nothing is known."""
    if row.reference is not None:
        return read_mask(row.reference, scan, "reference")
    return np.zeros(scan.shape, dtype=bool) if row.label == "healthy" else None


def _case(scan: Scan, brain: np.ndarray, reference: np.ndarray | None, rule: LesionRule) -> _Case:
    box = bounding_box(brain if reference is None else brain | reference)
    scan, brain = replace(scan, voxels=scan.voxels[box]), brain[box]
    reference = None if reference is None else reference[box]
    lesions = None if reference is None else split_lesions(reference, scan.voxel_ml, rule)
    contrasts = [] if lesions is None else lesion_contrast(scan.voxels, lesions, brain)
    return _Case(box, scan, brain, reference, lesions, contrasts)


def _precision(scores: np.ndarray, case: _Case) -> float:
    """Average precision of scores on no known scale; NaN without a reference voxel."""
    if case.reference is None or not (case.reference & case.brain).any():
        return float("nan")
    return average_precision(scores[case.box], case.reference, case.brain)


def _measure(
    job: Job, model: str, z: np.ndarray, uncalibrated: float, case: _Case, record: dict[str, Any]
) -> Histogram:
    """Add the rows of one model to a record, and return the histogram to be kept."""
    z = z[case.box]
    fine = Histogram(bins_per_unit=FINE).add(z, case.reference, case.brain)
    best, best_threshold = fine.best_dice(lowest=0.0)
    voxels, ml = int(np.count_nonzero(case.brain)), case.scan.voxel_ml
    shared = {
        "brain_ml": voxels * ml,
        "n_brain_voxels": voxels,
        "reference_ml": None if case.reference is None else float(np.count_nonzero(case.reference) * ml),
        "best_dice": best,
        "best_threshold": best_threshold,
        "ap": fine.average_precision(),
        "ap_uncalibrated": uncalibrated,
        "auroc_low": fine.roc_area(),
        "scan_score": scan_score(z[case.brain]),
    }
    for name, threshold in job.points[model].items():
        who = _who(job, model, name, threshold)
        mask, findings = find(
            z, z > threshold, case.scan.affine,
            minimum_ml=job.minimum_ml, reference=case.reference, rule=job.rule,
        )  # fmt: skip
        record["scans"].append(
            {**who, "group": job.row.group, **shared, **_at_threshold(job, z, threshold, mask, case)}
        )
        record["lesions"] += list(_lesion_rows(who, z, mask, case, job.rule))
        for found in findings:
            record["findings"].append(
                {
                    **who,
                    "finding": found.index,
                    "volume_ml": found.volume_ml,
                    "true": None if case.reference is None else int(found.status == "TP"),
                    "overlap": found.overlap,
                    "peak_z": found.peak_z,
                    "mean_z": found.mean_z,
                }
            )
    return fine.coarser(int(FINE / STORED_BINS))


def scan_score(values: np.ndarray) -> float:
    """Mean of the highest 1 % (at least one) of the map's values in the brain; NaN without any."""
    if values.size == 0:
        return float("nan")
    count = max(1, round(HIGHEST * values.size))
    return float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))


def _who(job: Job, model: str, point: str, threshold: float) -> dict[str, Any]:
    known = {f.name: getattr(job.row, f.name) for f in fields(CohortScan)}
    names = ("subject", "contrast", "label", "sex", "scanner", "site", "lesion_type")
    return {
        "scan_id": job.scan_id,
        "dataset": job.dataset,
        "model": model,
        "operating_point": point,
        "threshold": threshold,
        "age": float(job.row.age) if job.row.age else None,
        **{name: known[name] for name in names},
    }


def _at_threshold(job: Job, z: np.ndarray, threshold: float, mask: np.ndarray, case: _Case) -> dict[str, Any]:
    """What one scan gives at one threshold."""
    ml = case.scan.voxel_ml
    row: dict[str, Any] = {"mask_ml": float(np.count_nonzero(mask) * ml)}
    counted = count_lesions(mask, np.zeros_like(mask) if case.reference is None else case.reference, ml, job.rule)
    row["findings"] = counted.true_findings + counted.false_findings
    if case.reference is None:
        return row
    healthy = case.brain & ~case.reference
    return row | {
        "dice": dice(mask, case.reference),
        "healthy_fpr": float(np.mean(z[healthy] > threshold)) if healthy.any() else float("nan"),
        "false_positive_ml": counted.false_ml,
        "false_positive_count": counted.false_findings,
        "lesions": counted.hit + counted.missed,
        "lesions_found": counted.hit,
        "precision": counted.precision(),
        "recall": counted.recall(),
        "f1": counted.f1(),
        "hd95_mm": surface_distance(mask, case.reference, case.scan.voxel_mm),
    }


def _lesion_rows(
    who: dict[str, Any], z: np.ndarray, mask: np.ndarray, case: _Case, rule: LesionRule
) -> Iterator[dict[str, Any]]:
    if case.lesions is None:
        return
    outcomes = lesion_records(z, mask, case.lesions, rule)
    for number, (outcome, contrast) in enumerate(zip(outcomes, case.contrasts, strict=True)):
        volume = float(case.lesions.volume_ml[number])
        yield {**who, "lesion": number + 1, "volume_ml": volume, **contrast, **outcome}


def _timing(job: Job, model: str, preparing: float, scoring: float, measuring: float) -> dict[str, Any]:
    return {
        "scan_id": job.scan_id,
        "model": model,
        "prepare_seconds": round(preparing, 3),
        "score_seconds": round(scoring, 3),
        "evaluate_seconds": round(measuring, 3),
        "peak_memory_mb": round(peak_memory() / 1024**2, 1),
    }


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
