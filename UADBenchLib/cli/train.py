"""``uadbench train``: a bundle from healthy scans."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import check_output, note, progress_bar, say, say_json
from UADBenchLib.cli.options import DataOption, DeviceOption, JsonOption, KnownContrast, Preset, WorkersOption


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", show_default=False)],
    cohort: Annotated[
        Path, typer.Option("--cohort", metavar="COHORT", help="Table of scans (CSV).", show_default=False)
    ],
    contrast: Annotated[KnownContrast, typer.Option("--contrast", help="Contrast to train for.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="Folder of the bundle.", show_default=False)],
    preset: Annotated[Preset, typer.Option("--preset", help="Size and schedule.")] = Preset.compact,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="An option of the method instead of the preset's, entries separated by commas; may be given again.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    fraction: Annotated[float, typer.Option("--fraction", help="Share of the subjects, above 0 up to 1.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps instead of the preset's.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    licence: Annotated[str, typer.Option("--licence", help="Under which the weights are given on.")] = "not stated",
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            metavar="SOURCE",
            help="Weights of the feature backbone: ssl, imagenet, random, a bundle or a safetensors file.",
            show_default=False,
        ),
    ] = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Train a method on the healthy scans of a cohort; `uadbench calibrate` then sets thresholds."""
    check_output(out.absolute().parent)
    from UADBenchLib.training import trainer

    with progress_bar() as progress:
        summary = trainer.train(
            method,
            cohort,
            contrast=contrast.value,
            preset=preset.value,
            changes=changes or (),
            out=out,
            data=data,
            fraction=fraction,
            seed=seed,
            steps=steps,
            resume=resume,
            licence=licence,
            workers=workers,
            backbone=backbone,
            device=device,
            progress=progress,
        )
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun the first process speaks
        return
    for left_out in summary.get("left_out", ()):
        note(f"warning LEFT_OUT: {left_out}")
    if json:
        say_json(summary)
    else:
        say_summary(summary, skip=("left_out",))


def say_summary(summary: dict[str, object], skip: tuple[str, ...] = ()) -> None:
    """Print a summary as one line a key, nested ones indented."""
    for key, value in summary.items():
        if key in skip or value is None:
            continue
        if isinstance(value, dict):
            say(f"{key}:")
            for inner, entry in value.items():
                say(f"  {inner}: {entry}")
        else:
            say(f"{key}: {value}")
