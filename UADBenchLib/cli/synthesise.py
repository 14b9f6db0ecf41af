"""``uadbench synthesise``: a labelled cohort from label maps, or from real healthy scans, with known lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from UADBenchLib.cli.console import check_output, progress_bar, say, say_json
from UADBenchLib.cli.options import DataOption, JsonOption


def synthesise(
    out: Annotated[Path, typer.Option("--out", metavar="BIDS", help="New or empty folder.", show_default=False)],
    maps: Annotated[
        Path | None,
        typer.Option("--maps", metavar="DIR", help="Whole-head label maps, FreeSurfer numbers.", show_default=False),
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Option(
            "--scans",
            metavar="COHORT",
            help="Instead of --maps: healthy scans to put lesions into.",
            show_default=False,
        ),
    ] = None,
    data: DataOption = None,
    split: Annotated[
        str, typer.Option("--split", help="Split of the cohort whose scans are taken (with --scans).")
    ] = "validation",
    healthy: Annotated[int, typer.Option("--healthy", min=0, help="Participants without lesions (with --maps).")] = 4,
    lesions: Annotated[int, typer.Option("--lesions", min=0, help="Participants with lesions.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same files.")] = 0,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="YAML", help="Scanners, lesion types and effects to plant.", show_default=False),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that work at once.")] = 2,
    json: JsonOption = False,
) -> None:
    """Make a labelled BIDS cohort with references and truth.json: heads made from label maps (--maps) in T1w, T2w and
    FLAIR, or real healthy scans with synthetic lesions (--scans)."""
    if (maps is None) == (scans is None):
        raise typer.BadParameter("give either --maps or --scans")
    check_output(out)
    from UADBenchLib.synthesis.plan import read_plan

    shared: dict[str, Any] = {"lesions": lesions, "seed": seed, "plan": read_plan(plan), "workers": workers}
    with progress_bar() as progress:
        if maps is not None:
            from UADBenchLib.synthesis import cohort

            summary = cohort.synthesise(maps, out, healthy=healthy, **shared, progress=progress)
        else:
            from UADBenchLib.synthesis import implants

            summary = implants.implant(scans, out, data=data, split=split, **shared, progress=progress)
    if json:
        say_json(summary)
        return
    say(f"{summary['participants']} participants, {summary['scans']} scans in {summary['path']}")
    for name, volumes in summary["lesion_ml"].items():
        say(f"  {name}: " + ", ".join(f"{contrast} {volume:.2f} ml" for contrast, volume in volumes.items()))
    say(f"cohort table  {out / 'cohort.csv'}\ntruth         {out / 'truth.json'}")
