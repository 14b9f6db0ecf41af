"""``uadbench models``: what is installed, and the card of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from UADBenchLib.cli.console import number, say, say_json, table
from UADBenchLib.cli.options import JsonOption

app = typer.Typer(help="List the models that are installed, or show one model's card.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, json: JsonOption = False) -> None:
    """List the models that are installed, or show one model's card."""
    if context.invoked_subcommand is not None:
        return
    from UADBenchLib.bundles.catalogue import list_models

    found = list_models()
    if json:
        say_json({"models": found})
    elif found:
        say(
            table(
                ["id", "contrast", "preset", "steps", "z at 1 % FPR", "state"],
                [_row(entry) for entry in found],
            )
        )
    else:
        say("no model is installed; `uadbench train` makes one, and UADBENCH_MODELS names folders to look in")


def _row(entry: dict[str, Any]) -> list[str]:
    """Return the line of one model."""
    point = (entry.get("operating_points") or {}).get("fpr-1pct") or {}
    state = "broken" if "broken" in entry else "calibrated" if entry.get("operating_points") else "not calibrated"
    return [
        entry["id"],
        str(entry.get("contrast", "-")),
        str(entry.get("preset", "-")),
        str(entry.get("steps", "-")),
        number(point.get("threshold"), 2),
        state,
    ]


@app.command("show")
def show(model: Annotated[str, typer.Argument(metavar="ID", show_default=False)], json: JsonOption = False) -> None:
    """Show the card of one model, or with --json all its metadata."""
    from UADBenchLib.bundles.catalogue import find_model, list_models

    path = Path(find_model(model))
    entry = next(entry for entry in list_models() if entry["id"] == model)
    card = path / "docs" / "README.md"
    if json:
        say_json(entry)
    elif card.is_file():
        say(card.read_text(encoding="utf-8").rstrip())
    else:
        for key in ("id", "method", "contrast", "preset", "paper", "intended_use", "broken", "path"):
            if key in entry:
                say(f"{key}: {entry[key]}")
