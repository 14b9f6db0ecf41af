"""``uadbench check``: the input checks alone; with ``--full`` also what only a prepared scan shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from UADBenchLib.cli.console import note, one_line, progress_bar, say, say_json
from UADBenchLib.cli.options import JsonOption, ScanArgument
from UADBenchLib.errors import InputError

if TYPE_CHECKING:
    from UADBenchLib.scan import Check


def check(
    scan: ScanArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Also prepare the scan, and say what contrast and quality it has.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check whether a scan can be used, and say what was noticed; ends with 2 when it cannot."""
    from UADBenchLib.reading import check_file, contrast_from_name, stem_of

    checks, shown = check_file(scan), {}
    if full and all(entry.level != "error" for entry in checks):
        checks, shown = _prepared(scan)
    usable = all(entry.level != "error" for entry in checks)
    if json:
        document = {"scan": stem_of(scan), "usable": usable, "contrast": contrast_from_name(scan), **shown}
        say_json({**document, "checks": checks})
    for entry in checks:
        line = one_line(entry.code, entry.message, entry.advice, entry.level)
        if entry.level == "error":
            note(line)
        elif not json:
            say(line)
    if not json and usable:
        for name, facts in shown.items():
            say(f"{name}: " + ", ".join(f"{key} {'-' if value is None else value}" for key, value in facts.items()))
        say(f"{stem_of(scan)} can be used")
    if not usable:
        raise typer.Exit(2)


def _prepared(path: Path) -> tuple[list[Check], dict[str, Any]]:
    """Prepare a scan: all checks, those that end it included, and what the image says of contrast and quality."""
    from UADBenchLib.preprocessing.contrast import settle_contrast
    from UADBenchLib.preprocessing.recipe import prepare
    from UADBenchLib.reading import read_scan
    from UADBenchLib.scan import Check

    read, shown = read_scan(path), {}
    checks = list(read.checks)
    try:
        with progress_bar() as progress:
            prepared = prepare(read, progress=progress)
        checks = list(prepared.checks)
        shown = {"contrast_found": prepared.contrast.record(), "quality": prepared.quality}
        checks += settle_contrast(read.contrast, prepared.contrast)[1]
    except InputError as error:
        checks.insert(0, Check("error", error.code, error.message, error.advice))
    return checks, shown
