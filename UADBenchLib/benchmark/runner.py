"""``benchmark``: every scan of a cohort under every model that fits it, into a run folder that survives being killed.

What a run consists of is settled before it begins (``plan``) and written down as ``run.json``; a folder that holds
another run is refused. Each scan that is done leaves a record, and only this process writes. Begun again, a run does
what has no record yet; the tables are made from the records at the end, so that they do not depend on how often it was
stopped, nor on who computed what.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from UADBenchLib.benchmark import executors
from UADBenchLib.benchmark.evaluate import Job, Outcome, sizes_of
from UADBenchLib.benchmark.plan import MINIMUM_LESION_ML, Plan, make_plan
from UADBenchLib.benchmark.summary import write_tables
from UADBenchLib.benchmark.tables import Run, read_run, write_histograms, write_run
from UADBenchLib.benchmark.validation import Points, validated_points
from UADBenchLib.errors import InputError
from UADBenchLib.inference.detector import MINIMUM_ML
from UADBenchLib.scan import Check, Progress
from UADBenchLib.writing import write_json

VALIDATION = "validation"
"""Folder, within that of a run, of the run over the validation scans that its thresholds come from."""
RECORD_BYTES = 60_000
"""Disk that a scan takes under one model: record, histogram, and its part of the tables (measured, rounded up)."""
PROCESS_BYTES = 900 << 20
"""Memory of a process before it has opened a scan: interpreter, libraries, template, network (measured, rounded up)."""
VOXEL_BYTES = 20
"""Memory that preparing and scoring take for every voxel of the scan (measured, rounded up)."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take: bytes on disk, bytes of memory for each process, and how many processes memory holds."""

    disk: int
    memory: int
    processes: int


def benchmark(
    cohort: str | Path,
    models: Sequence[str] | str,
    out: str | Path,
    *,
    data: str | Path | None = None,
    validation: str | Path | None = None,
    operating_points: Sequence[str] = (),
    executor: str = "local",
    scheduler: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    minimum_ml: float = MINIMUM_ML,
    minimum_lesion_ml: float = MINIMUM_LESION_ML,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a benchmark, or go on with one.

    Parameters
    ----------
    cohort : path
        See ``cohort.read_cohort``; rows of split ``test``, or all where there are no splits.
    models : sequence of str or "all"
        Ids of bundles. "all" takes every calibrated one whose contrast occurs.
    out : path
        Folder of the run, see ``tables``.
    validation : path, optional
        Cohort whose rows of split ``validation`` (or all) give the run thresholds of its own, see ``validation``. They
        are evaluated first, as a run in the folder ``validation``.
    operating_points : sequence of str
        Thresholds to evaluate at; none takes all that every model has.
    executor : {"local", "dask"}
    scheduler : str, optional
        Address of a Dask scheduler, ``tcp://host:port``; without it, Dask runs on this machine.
    workers : int, optional
        Processes; default: one a GPU, or as many as processor cores and memory allow.
    minimum_ml, minimum_lesion_ml : float
        Least volume of a finding, and of a lesion that is asked for.
    progress : callable, optional
        Called with (what is going on, fraction done); what it raises stops the run, which can be gone on with.

    Returns
    -------
    dict
        path, scans, done, failed, resumed (found done), seconds, checks.

    Raises
    ------
    InputError
        Before anything is computed: what the cohort, the models or the options make impossible;
        ``SUBJECTS_SHARED``, ``RUN_DIFFERENT``, ``DISK_SHORT``, ``MEMORY_SHORT``.
    """
    out, kind = Path(out), _device_kind(scheduler, device)
    options = {"data": data, "device": kind, "minimum_ml": minimum_ml, "minimum_lesion_ml": minimum_lesion_ml}
    who = {"executor": executor, "scheduler": scheduler, "workers": workers, "device": device, "progress": progress}
    points: Points = {}
    checks: list[Check] = []
    if validation is not None:
        # Whatever is wrong with the cohort is said before the hours that its thresholds may take.
        settled = make_plan(cohort, models, **options)
        first = make_plan(validation, list(settled.run.models), split="validation", **options)
        _refuse_same_subjects(settled, first)
        _run(first, out / VALIDATION, **who)
        points, checks = validated_points(out / VALIDATION, first)
    plan = make_plan(cohort, models, operating_points=operating_points, points=points, **options)
    summary = _run(plan, out, **who)
    return summary | {"checks": [*checks, *summary["checks"]]}


def _refuse_same_subjects(plan: Plan, validation: Plan) -> None:
    shared = sorted({job.row.subject for job in plan.jobs} & {job.row.subject for job in validation.jobs})
    if shared:
        raise InputError(
            "SUBJECTS_SHARED",
            f"{len(shared)} subjects of the cohort are in validation too ({shared[0]}, ...)",
            "thresholds must come from other people: split by subject",
        )


def _run(
    plan: Plan,
    out: Path,
    *,
    executor: str,
    scheduler: str | None,
    workers: int | None,
    device: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Do what a plan says; see ``benchmark``."""
    started = time.perf_counter()
    _refuse_other_run(out, plan.run)
    todo = [job for job in plan.jobs if not _is_done(out, job)]
    forecast = foresee(todo)
    most = min(forecast.processes, max(1, len(todo)))
    devices = [plan.run.device] if scheduler else executors.worker_devices(device, workers, most)
    checks = [*plan.checks, *_short_of(forecast, len(devices), workers, out, local=scheduler is None)]
    write_run(out, plan.run)
    meter = _Meter(len(plan.jobs), len(plan.jobs) - len(todo), progress)
    with contextlib.closing(_outcomes(todo, executor, scheduler, devices, meter.tell)) as outcomes:
        for job, outcome in outcomes:
            _keep(out, job, outcome)
            meter.count(bool(outcome.record["failures"]))
    counts = write_tables(out, plan.run, [job.scan_id for job in plan.jobs])
    return {
        "path": str(out),
        "scans": len(plan.jobs),
        "resumed": len(plan.jobs) - len(todo),
        **counts,
        "seconds": round(time.perf_counter() - started, 1),
        "checks": checks,
    }


def preview(
    cohort: str | Path, models: Sequence[str] | str, out: str | Path, *, device: str, **options: Any
) -> dict[str, Any]:
    """What ``benchmark`` would do with these arguments and what that takes: nothing is computed or written.

    Raises
    ------
    InputError
        As ``benchmark``.
    """
    plan = make_plan(cohort, models, device=_device_kind(None, device), **options)
    _refuse_other_run(Path(out), plan.run)
    todo = [job for job in plan.jobs if not _is_done(Path(out), job)]
    forecast = foresee(todo)
    return {
        "scans": len(plan.jobs),
        "done": len(plan.jobs) - len(todo),
        "models": list(plan.run.models),
        "operating_points": list(plan.run.operating_points),
        "disk_mb": round(forecast.disk / 1e6),
        "memory_mb": round(forecast.memory / 1e6),
        "checks": plan.checks,
    }


def _refuse_other_run(out: Path, run: Run) -> None:
    """Refuse a folder that holds another run, naming what differs, or something else."""
    if not (out / "run.json").exists():
        if out.exists() and (not out.is_dir() or any(path.name != VALIDATION for path in out.iterdir())):
            raise InputError("OUT_NOT_EMPTY", f"{out} holds something that is no run", "give a new or empty folder")
        return
    before, now = read_run(out).model_dump(mode="json"), json.loads(run.model_dump_json())
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        raise InputError(
            "RUN_DIFFERENT",
            f"{out} holds a run with other {', '.join(differing)}",
            "give another folder, or the same cohort, models and options to go on with it",
        )


def _device_kind(scheduler: str | None, device: str) -> str:
    """cpu, cuda or mps. What the workers of a distant scheduler have is not asked for: they use what is named."""
    if scheduler is not None:
        return "cpu" if device == "auto" else device.partition(":")[0]
    from UADBenchLib.inference.device import choose_device

    return choose_device(device).type


def foresee(jobs: Sequence[Job]) -> Forecast:
    """What is still to be done will take of disk and memory, from the headers of its scans."""
    scored = sum(len(job.models) for job in jobs)
    memory = PROCESS_BYTES + VOXEL_BYTES * max((_voxels(job.row.scan) for job in jobs), default=0)
    free = _free_memory()
    fitting = sys.maxsize if free is None else free // memory  # what cannot be found out is not refused
    return Forecast(scored * RECORD_BYTES, memory, max(1, fitting))


def _voxels(path: Path) -> int:
    from UADBenchLib.formats import header_of

    try:
        return math.prod(header_of(path).shape)
    except InputError:
        return 0  # told as a check, and a failure of its own


def _free_memory() -> int | None:
    """Bytes of memory that are free, or None where that cannot be found out."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _short_of(forecast: Forecast, processes: int, wanted: int | None, out: Path, local: bool) -> list[Check]:
    """Refuse what this machine has no room for; say what may be tight."""
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if forecast.disk > free:
        raise InputError(
            "DISK_SHORT",
            f"the run takes about {forecast.disk / 1e6:.0f} MB, {free / 1e6:.0f} MB are free",
            "free some space or choose another folder",
        )
    if not local or processes <= forecast.processes:
        return []
    need, fits = f"{forecast.memory / 1e9:.1f} GB for each process", f"{forecast.processes} fit"
    if wanted is not None and wanted > 1:
        raise InputError("MEMORY_SHORT", f"{wanted} workers need about {need}; {fits}", "use fewer --workers")
    return [Check("warning", "MEMORY_SHORT", f"about {need} are needed; {fits}", "close other programs")]


def _is_done(out: Path, job: Job) -> bool:
    """Whether the folder holds a result of this job, made in this run from files of the same size."""
    try:
        record = json.loads((out / "records" / f"{job.scan_id}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(record, dict)
        and record.get("run") == job.run
        and record.get("failures") == []
        and record.get("sizes") == sizes_of(job.row)
        and (out / "histograms" / f"{job.scan_id}.safetensors").is_file()
    )


def _outcomes(
    jobs: Sequence[Job], executor: str, scheduler: str | None, devices: Sequence[str], alive: executors.Alive
) -> Iterator[tuple[Job, Outcome]]:
    if not jobs:
        return
    if executor == "local":
        yield from executors.run_local(jobs, devices, alive)
        return
    with executors.dask_client(scheduler, devices) as client:
        yield from executors.run_dask(jobs, client, devices, alive)


def _keep(out: Path, job: Job, outcome: Outcome) -> None:
    """Write what came of a scan; the record last, since it says that all is there."""
    if outcome.histograms:
        write_histograms(out, job.scan_id, outcome.histograms)
    write_json(out / "records" / f"{job.scan_id}.json", outcome.record)


class _Meter:
    """Says how far a run is, and how long it will go on: from the scans done in this attempt alone."""

    def __init__(self, total: int, before: int, progress: Progress | None) -> None:
        self._total, self._before, self._progress = total, before, progress
        self._done = self._failed = 0
        self._started = time.monotonic()

    def count(self, failed: bool) -> None:
        self._done += 1
        self._failed += failed
        self.tell()

    def tell(self) -> None:
        if self._progress is None:
            return
        number = self._before + self._done
        text = f"{number} of {self._total} scans"
        if self._failed:
            text += f", {self._failed} failed"
        if self._done and number < self._total:
            left = (time.monotonic() - self._started) / self._done * (self._total - number)
            text += f", about {duration(left)} left"
        self._progress(text, number / self._total)


def duration(seconds: float) -> str:
    """A duration as one reads it: 40 s, 12 min, 3 h 5 min."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
