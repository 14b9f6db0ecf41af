"""``uadbench synthesise``: a labelled cohort from anatomical label maps, with covariates and known effects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import check_output, progress_bar, say, say_json
from UADBenchLib.cli.options import JsonOption


def synthesise(
    maps: Annotated[
        Path,
        typer.Option("--maps", metavar="DIR", help="Whole-head label maps, FreeSurfer numbers.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="BIDS", help="New or empty folder.", show_default=False)],
    healthy: Annotated[int, typer.Option("--healthy", min=0, help="Participants without lesions.")] = 4,
    lesions: Annotated[int, typer.Option("--lesions", min=0, help="Participants with lesions.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same files.")] = 0,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="YAML", help="Scanners, lesion types and effects to plant.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that make heads.")] = 2,
    json: JsonOption = False,
) -> None:
    """Make a BIDS cohort of synthetic heads in T1w, T2w and FLAIR, with references and truth.json."""
    check_output(out)
    from UADBenchLib.synthesis import cohort

    chosen = cohort.read_plan(plan)
    with progress_bar() as progress:
        summary = cohort.synthesise(
            maps, out, healthy=healthy, lesions=lesions, seed=seed, plan=chosen, workers=workers, progress=progress
        )
    if json:
        say_json(summary)
        return
    say(f"{summary['participants']} participants, {summary['scans']} scans in {summary['path']}")
    for name, volumes in summary["lesion_ml"].items():
        say(f"  {name}: " + ", ".join(f"{contrast} {volume:.2f} ml" for contrast, volume in volumes.items()))
    say(f"cohort table  {out / 'cohort.csv'}\ntruth         {out / 'truth.json'}")
