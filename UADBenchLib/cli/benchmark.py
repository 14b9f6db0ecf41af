"""``uadbench benchmark``: every scan of a cohort under every model, into a run folder that can be gone on with."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from UADBenchLib.cli.console import check_output, note, note_checks, one_line, progress_bar, say, say_json
from UADBenchLib.cli.options import DataOption, DeviceOption, JsonOption

if TYPE_CHECKING:
    from UADBenchLib.scan import Progress

SECONDS_BETWEEN_LINES = 60.0


class Executor(str, Enum):
    """Values of ``--executor``."""

    local = "local"
    dask = "dask"


def benchmark(
    cohort: Annotated[Path, typer.Argument(metavar="COHORT", help="BIDS folder or CSV.", show_default=False)],
    models: Annotated[
        str, typer.Option("--models", metavar="ID,ID|all", help="Models to evaluate.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN", help="New folder, or a run to go on with.", show_default=False),
    ],
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            metavar="COHORT",
            help="Validation scans that the run takes thresholds from: opt-dice, fpr-1pct, fpr-0.1pct.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--operating-point",
            metavar="NAME",
            help="Threshold to evaluate at; may be repeated. Default: all that every model has.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    executor: Annotated[Executor, typer.Option("--executor", help="What evaluates the scans.")] = Executor.local,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler, tcp://host:port.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; default: one a GPU, or what cores and memory allow."),
    ] = None,
    device: DeviceOption = "auto",
    minimum_ml: Annotated[float, typer.Option("--minimum-ml", min=0, help="Least volume of a finding.")] = 0.1,
    minimum_lesion_ml: Annotated[
        float, typer.Option("--minimum-lesion-ml", min=0, help="Least volume of a reference lesion to be asked for.")
    ] = 0.01,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the cohort, say what the run would take, and stop.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Evaluate models on a cohort. Begun again with the same arguments, it goes on where it stopped; a scan that cannot
    be used is listed and does not end it (exit code 1)."""
    if scheduler is not None and executor is Executor.local:
        raise typer.BadParameter("--scheduler goes with --executor dask")
    check_output(out)
    for table in (cohort, *([validation] if validation else [])):
        _note_problems(table, data)
    names: Any = "all" if models == "all" else [name.strip() for name in models.split(",") if name.strip()]
    options = {
        "data": data,
        "operating_points": points or (),
        "device": device,
        "minimum_ml": minimum_ml,
        "minimum_lesion_ml": minimum_lesion_ml,
    }
    from UADBenchLib.benchmark import runner

    if dry_run:
        summary = runner.preview(cohort, names, out, **options)
        note_checks(summary["checks"])
        say_json(summary) if json else _say_preview(summary)
        return 0
    with progress_bar() as bar, _lines(bar) as progress:
        summary = runner.benchmark(
            cohort, names, out, validation=validation, executor=executor.value, scheduler=scheduler, workers=workers,
            progress=progress, **options,
        )  # fmt: skip
    note_checks(summary["checks"])
    say_json(summary) if json else _say(summary)
    return 1 if summary["failed"] else 0


def _note_problems(cohort: Path, data: Path | None) -> None:
    """Write all that is wrong with a cohort but the last of it, which is raised."""
    from UADBenchLib.cohort import cohort_problems

    problems = cohort_problems(cohort, data)
    for problem in problems[:-1]:
        note(one_line(problem.code, problem.message, problem.advice))
    if problems:
        raise problems[-1]


@contextlib.contextmanager
def _lines(bar: Progress) -> Iterator[Progress]:
    """Beside the bar, a line a minute where stderr is no terminal: what a batch system's log will show."""
    last = time.monotonic() - SECONDS_BETWEEN_LINES

    def report(stage: str, fraction: float) -> None:
        nonlocal last
        bar(stage, fraction)
        if not sys.stderr.isatty() and time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(stage)

    yield report


def _say_preview(summary: dict[str, Any]) -> None:
    say(f"{summary['scans']} scans, {summary['done']} of them done; models {', '.join(summary['models'])}")
    say(f"operating points {', '.join(summary['operating_points'])}")
    say(f"about {summary['disk_mb']} MB of disk, {summary['memory_mb']} MB of memory for each process")


def _say(summary: dict[str, Any]) -> None:
    from UADBenchLib.benchmark.tables import FAILURES, SCANS, SUMMARY

    out = Path(summary["path"])
    say(f"{summary['done']} of {summary['scans']} scans evaluated, {summary['failed']} failed, {summary['seconds']} s")
    if summary["failed"]:
        say(f"failures  {out / FAILURES.file}")
    say(f"scans     {out / SCANS.file}\nsummary   {out / SUMMARY.file}")
