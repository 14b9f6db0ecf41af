"""``uadbench report``: a benchmark run as one page to read, print and send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import progress_bar, say, say_json
from UADBenchLib.cli.options import DataOption, DeviceOption, JsonOption, RunArgument


def report(
    run: RunArgument,
    operating_point: Annotated[
        str | None,
        typer.Option("--operating-point", metavar="NAME", help="Shown in the figures.", show_default="the run's first"),
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(
            "--cohort", metavar="COHORT", help="What the run was made from: draws its cases.", show_default=False
        ),
    ] = None,
    data: DataOption = None,
    scaling: Annotated[
        Path | None,
        typer.Option("--scaling", metavar="RUN", help="Run of `uadbench scaling` to show.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Write report.html, which needs no other file, and its tables into a run's folder."""
    from UADBenchLib.reports.benchmark import write_report

    with progress_bar() as progress:
        files = write_report(
            run, operating_point=operating_point, scaling=scaling, cohort=cohort, data=data, device=device,
            progress=progress,
        )  # fmt: skip
    if json:
        say_json({"files": [str(path) for path in files]})
    else:
        for path in files:
            say(str(path))
