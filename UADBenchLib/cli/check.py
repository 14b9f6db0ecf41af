"""``uadbench check``: the input checks alone."""

from __future__ import annotations

import typer

from UADBenchLib.cli.console import note, one_line, say, say_json
from UADBenchLib.cli.options import JsonOption, ScanArgument


def check(scan: ScanArgument, json: JsonOption = False) -> None:
    """Check whether a scan can be used, and say what was noticed; ends with 2 when it cannot."""
    from UADBenchLib.reading import check_file, contrast_from_name, stem_of

    checks = check_file(scan)
    usable = all(entry.level != "error" for entry in checks)
    if json:
        say_json({"scan": stem_of(scan), "usable": usable, "contrast": contrast_from_name(scan), "checks": checks})
    for entry in checks:
        line = one_line(entry.code, entry.message, entry.advice, entry.level)
        if entry.level == "error":
            note(line)
        elif not json:
            say(line)
    if not json and usable:
        say(f"{stem_of(scan)} can be used")
    if not usable:
        raise typer.Exit(2)
