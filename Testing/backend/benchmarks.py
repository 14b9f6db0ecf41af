"""What the tests of the benchmark build from: a cohort that costs nothing to evaluate, and who evaluates it.

The runner, its executors and tables do not care what a scan's numbers are; here they follow from the scan's name, so
that many runs take little time.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from builders import make_bundle, write_cohort

from UADBenchLib.benchmark import evaluate as real
from UADBenchLib.benchmark.evaluate import Job, Outcome, empty_record
from UADBenchLib.bundles.bundle import Calibration, OperatingPoint
from UADBenchLib.evaluation.plain import plain
from UADBenchLib.scan import Scan
from UADBenchLib.writing import write_volume

MODELS = ("alpha-t1w-compact", "beta-t1w-compact")
SHAPE = (16, 18, 14)
SECONDS = 0.02
"""That a scan pretends to take, so that a kill has something to fall into."""


SLOW_SECONDS = 240.0


def seed_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def make_cohort(folder: Path, scans: int = 8, first: int = 0, **columns: str) -> Path:
    """A table of ``scans`` tiny scans of half as many subjects, every other one with a lesion; none is readable as a
    brain."""
    rows = []
    for number in range(first, first + scans):
        name = f"sub-{number // 2:02d}_ses-{number % 2}_T1w"
        path = folder / f"{name}.nii.gz"
        write_volume(path, np.full(SHAPE, number + 1, np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
        sick = number % 4 >= 2
        if sick:
            write_volume(folder / f"{name}_mask.nii.gz", reference_of(name), np.diag([4.0, 4.0, 4.0, 1.0]))
        rows.append(
            {
                "scan": path.name,
                "contrast": "T1w",
                "label": "lesion" if sick else "healthy",
                "subject": f"sub-{number // 2:02d}",
                "reference": f"{name}_mask.nii.gz" if sick else "",
                "site": ("east", "west")[number % 3 == 0],
                "scanner": ("one", "two", "three")[number % 3],
                "age": str(20 + 5 * number % 65),
                "sex": "FM"[number // 2 % 2],
                "lesion_type": "tumour" if sick else "",
                **columns,
            }
        )
    return write_cohort(folder / "cohort.csv", rows)


def reference_of(name: str) -> np.ndarray:
    """One to three boxes."""
    rng = np.random.default_rng(seed_of(name))
    mask = np.zeros(SHAPE, bool)
    for _ in range(int(rng.integers(1, 4))):
        corner = rng.integers(2, 8, 3)
        mask[tuple(slice(c, c + e) for c, e in zip(corner, rng.integers(1, 4, 3), strict=True))] = True
    return mask


def make_models(folder: Path, **points: OperatingPoint) -> Path:
    """Two calibrated bundles, whose weights are nothing, in a folder for ``UADBENCH_MODELS``."""
    known = {name: OperatingPoint(threshold=t, healthy_fpr=0.01, ci=(t, t), origin="made up", subjects=("v",))
             for name, t in (("fpr-1pct", 2.0), ("fpr-0.1pct", 3.5))}  # fmt: skip
    record = Calibration(
        version=1, voxel_mm=4, smoothing_mm=6, rescaled=True, level=1, floor=1, subjects=("w",), sites={"x": 1}
    )
    for name in MODELS:
        make_bundle(folder / name, id=name, calibration=record, operating_points=known | points)
    return folder


def quick_evaluate(job: Job, device: str = "auto", progress: Any = None) -> Outcome:
    """Measure maps that follow from the names of scan and model, as ``evaluate`` measures those of networks.

    A scan whose subject is ``sub-bad`` fails; one of subject ``sub-fatal`` takes its process with it, and one whose
    subject begins with ``sub-slow`` takes minutes.
    """
    time.sleep(SECONDS)
    if job.row.subject.startswith("sub-slow"):
        time.sleep(SLOW_SECONDS)
    if job.row.subject == "sub-fatal":
        import os

        os._exit(9)
    outcome = Outcome(empty_record(job))
    if job.row.subject == "sub-bad":
        outcome.record["failures"].append(real.failure(job, "", ValueError("not a brain")))
        return outcome
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    rng = np.random.default_rng(seed_of(job.scan_id))
    scan = Scan(100 + 10 * rng.standard_normal(SHAPE).astype(np.float32), affine)
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    reference = real._reference(job.row, scan)
    case = real._case(scan, brain, reference, job.rule)
    for model in job.models:
        rng = np.random.default_rng(seed_of(job.scan_id + model))
        z = rng.gamma(1, 1, SHAPE).astype(np.float32) * brain
        if reference is not None:
            z[reference] += 2
        outcome.histograms[model] = real._measure(job, model, z, real._precision(z, case), case, outcome.record)
        outcome.record["timing"].append(real._timing(job, model, time.perf_counter(), 0.0, 0.0))
    outcome.record = plain(outcome.record)
    return outcome


def run_in_child(cohort: Path, out: Path) -> None:
    """What a process does that a test kills."""
    from UADBenchLib.benchmark import executors, runner

    executors.evaluate = quick_evaluate
    runner.benchmark(cohort, MODELS, out, workers=1, device="cpu")
