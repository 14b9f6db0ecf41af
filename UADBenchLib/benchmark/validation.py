"""Thresholds of a run from validation scans of its own: for bundles that are not to be changed, and for a user's own
scanners.

A threshold is read off the histograms of a finished run over validation scans, which counted voxels just as the run
that it is for will. Scans of that run must show other people; ``plan`` refuses it otherwise, since a threshold carries
its subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from UADBenchLib.benchmark.evaluate import Job
from UADBenchLib.benchmark.plan import Plan
from UADBenchLib.benchmark.tables import read_histogram
from UADBenchLib.bundles.bundle import OperatingPoint
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.evaluation.thresholds import (
    BEST_DICE,
    RATES,
    Threshold,
    threshold_at_best_dice,
    threshold_at_rate,
)
from UADBenchLib.inference.calibration import FEWEST_SCANS
from UADBenchLib.scan import Check

Points = dict[str, dict[str, OperatingPoint]]


def validated_points(folder: Path, plan: Plan) -> tuple[Points, list[Check]]:
    """The operating points that a run over validation scans supports, by model and name.

    Healthy scans of at least five subjects give thresholds at the usual false-positive rates, scans with a lesion give
    ``opt-dice``; what cannot be had is said.

    Parameters
    ----------
    folder : path
        The finished run.
    plan : Plan
        What it consisted of.

    Returns
    -------
    (dict, list of Check)
        Operating points, and warnings ``THRESHOLD_MISSING``.
    """
    points: Points = {}
    checks = []
    for model in plan.run.models:
        jobs = [job for job in plan.jobs if model in job.models and _scored(folder, job)]
        histograms = {job.scan_id: read_histogram(folder, job.scan_id, model) for job in jobs}
        healthy = [job for job in jobs if job.row.label == "healthy"]
        sick = [job for job in jobs if histograms[job.scan_id].positives.any()]
        points[model] = {}
        subjects = {job.row.subject for job in healthy}
        if len(subjects) >= FEWEST_SCANS:
            points[model] |= _at_rates(healthy, histograms, plan.run.cohort)
        else:
            lacking = f"{len(subjects)} healthy validation subjects are too few for thresholds at a false-positive rate"
            checks.append(_missing(model, lacking, f"at least {FEWEST_SCANS} are needed; the bundle's own are used"))
        if sick:
            points[model][BEST_DICE] = _at_best_dice(sick, histograms, plan.run.cohort)
        else:
            lacking = "healthy validation scans alone cannot say where Dice is best"
            checks.append(_missing(model, lacking, "add validation scans with references for opt-dice"))
    return points, checks


def _scored(folder: Path, job: Job) -> bool:
    return (folder / "histograms" / f"{job.scan_id}.safetensors").is_file()


def _missing(model: str, what: str, advice: str) -> Check:
    return Check("warning", "THRESHOLD_MISSING", f"{model}: {what}", advice)


def _at_rates(jobs: Sequence[Job], histograms: dict[str, Histogram], cohort: str) -> dict[str, OperatingPoint]:
    sites = [job.row.site or "unknown" for job in jobs]
    counts = ", ".join(f"{site}: {sites.count(site)}" for site in sorted(set(sites)))
    origin = f"healthy validation scans of {cohort} ({counts}), sites weigh the same"
    points = {}
    for name, rate in RATES.items():
        found = threshold_at_rate([histograms[job.scan_id] for job in jobs], rate, sites, _subjects(jobs))
        points[name] = _point(found, jobs, origin, found.reached)
    return points


def _at_best_dice(jobs: Sequence[Job], histograms: dict[str, Histogram], cohort: str) -> OperatingPoint:
    found = threshold_at_best_dice(
        [histograms[job.scan_id] for job in jobs], [job.row.site for job in jobs], _subjects(jobs)
    )
    origin = f"best mean Dice {found.reached:.3f} over {len(jobs)} validation scans with references of {cohort}"
    return _point(found, jobs, origin, None)


def _subjects(jobs: Sequence[Job]) -> list[str]:
    return [job.row.subject for job in jobs]


def _point(found: Threshold, jobs: Sequence[Job], origin: str, rate: float | None) -> OperatingPoint:
    return OperatingPoint(
        threshold=found.value,
        healthy_fpr=rate,
        ci=found.ci,
        origin=origin,
        subjects=tuple(sorted({job.row.subject for job in jobs})),
    )
