"""``uadbench scaling``: how results grow with the number of healthy subjects that a method is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import check_output, number, progress_bar, say, say_json, table
from UADBenchLib.cli.options import DataOption, DeviceOption, JsonOption, KnownContrast, Preset, WorkersOption


def scaling(
    method: Annotated[str, typer.Argument(metavar="METHOD", show_default=False)],
    cohort: Annotated[
        Path,
        typer.Option(
            "--cohort", metavar="COHORT", help="With the splits train, validation and test.", show_default=False
        ),
    ],
    contrast: Annotated[KnownContrast, typer.Option("--contrast", help="Contrast to train for.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="RUN", help="Folder of the run; models lie in RUN.models.", show_default=False),
    ],
    fractions: Annotated[
        str, typer.Option("--fractions", help="Shares of the training subjects, above 0 up to 1.")
    ] = "0.05,0.1,0.25,0.5,1",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Models a share.")] = 3,
    preset: Annotated[Preset, typer.Option("--preset", help="Size and schedule.")] = Preset.compact,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps instead of the preset's.", show_default=False)
    ] = None,
    operating_point: Annotated[
        str, typer.Option("--operating-point", metavar="NAME", help="At which Dice and false positives are read.")
    ] = "fpr-1pct",
    data: DataOption = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train a method on nested shares of a cohort's subjects and evaluate every model on its test scans. Begun again
    with the same arguments, it goes on where it stopped."""
    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"--fractions takes numbers with commas between them, not {fractions!r}") from error
    check_output(out)
    from UADBenchLib.benchmark.scaling import MEASURES
    from UADBenchLib.benchmark.scaling import scaling as experiment

    with progress_bar() as progress:
        document = experiment(
            method,
            cohort,
            out,
            contrast=contrast.value,
            preset=preset.value,
            fractions=shares,
            seeds=seeds,
            operating_point=operating_point,
            steps=steps,
            data=data,
            workers=workers,
            device=device,
            progress=progress,
        )
    if json:
        say_json(document)
        return
    for measure in MEASURES:
        rows = [row for row in document["curve"] if row["measure"] == measure]
        if rows:
            say(f"{measure}, {rows[0]['scans']} scans of {rows[0]['test_subjects']} subjects, {seeds} seeds")
            lines = [[f"{row['fraction']:g}", str(row["subjects"]), *_means(row)] for row in rows]
            say(table(("share", "training subjects", "mean", "95 % interval", "against the largest"), lines) + "\n")
    say(str(out / "scaling.json"))


def _means(row: dict[str, object]) -> list[str]:
    interval = f"{number(row['low'])} to {number(row['high'])}"
    change = f"{number(row['change'])} ({number(row['change_low'])} to {number(row['change_high'])})"
    return [number(row["mean"]), interval, change]
