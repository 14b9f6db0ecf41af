"""``uadbench calibrate``: healthy reference and thresholds from validation scans, written into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import progress_bar, say_json
from UADBenchLib.cli.options import DataOption, DeviceOption, JsonOption, WorkersOption
from UADBenchLib.cli.train import say_summary


def calibrate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    healthy: Annotated[
        Path,
        typer.Option("--healthy", metavar="COHORT", help="Healthy validation scans.", show_default=False),
    ],
    lesions: Annotated[
        Path | None,
        typer.Option("--lesions", metavar="COHORT", help="Validation scans with references.", show_default=False),
    ] = None,
    rates: Annotated[
        list[float] | None,
        typer.Option("--fpr", help="A further healthy false-positive rate, 0.005 for instance; may be repeated."),
    ] = None,
    data: DataOption = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Give a bundle its healthy reference and its operating points, with where each came from."""
    from UADBenchLib.inference import calibration

    with progress_bar() as progress:
        summary = calibration.calibrate(
            bundle,
            healthy,
            lesions=lesions,
            data=data,
            rates=rates or (),
            workers=workers,
            device=device,
            progress=progress,
        )
    if json:
        say_json(summary)
    else:
        say_summary(summary)
