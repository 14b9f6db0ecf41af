"""``uadbench import``: a public data set as downloaded into a BIDS cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import check_output, note_checks, progress_bar, say, say_json
from UADBenchLib.cli.options import JsonOption


def import_dataset(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="ixi, brats, atlas2, shifts-ms, wmh, isles2022, mslub, oasis3, camcan or hcp.",
            show_default=False,
        ),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder that was downloaded.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="BIDS", help="New or empty folder.", show_default=False)],
    link: Annotated[bool, typer.Option("--link", help="Link to the files instead of copying them.")] = False,
    json: JsonOption = False,
) -> None:
    """Bring a public data set into BIDS, with the covariates that it gives; docs/datasets.md says where each is
    obtained."""
    check_output(out)
    from UADBenchLib.benchmark.datasets import importing

    with progress_bar() as progress:
        summary = importing.import_dataset(dataset, path, out, link=link, progress=progress)
    note_checks(summary["checks"])
    if json:
        say_json(summary)
        return
    say(f"{summary['participants']} participants, {summary['scans']} scans, {summary['references']} with a reference")
    say(f"cohort  {out}")
