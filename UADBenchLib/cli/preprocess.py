"""``uadbench preprocess``: the recipe alone, with every step, parameter and hash on record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from UADBenchLib import __version__
from UADBenchLib.cli.console import check_output, note_checks, progress_bar, say, say_json
from UADBenchLib.cli.options import (
    BrainMaskOption,
    ContrastChoice,
    ContrastOption,
    ForceOption,
    JsonOption,
    OutOption,
    ScanArgument,
    chosen_contrast,
)

if TYPE_CHECKING:
    from UADBenchLib.preprocessing.recipe import Prepared, Recipe
    from UADBenchLib.scan import Scan


def preprocess(
    scan: ScanArgument,
    out: OutOption,
    contrast: ContrastOption = ContrastChoice.auto,
    brain_mask: BrainMaskOption = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="MASK", help="Lesion mask to carry along.", show_default=False),
    ] = None,
    force: ForceOption = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each step did and found.")] = False,
    json: JsonOption = False,
) -> None:
    """Prepare a scan as the models see it; write it with its brain mask and the record of every step.

    A reference lies in the same space on voxels of half the edge, so that thin lesions keep their shape.
    """
    check_output(out)
    from UADBenchLib.preprocessing.contrast import settle_contrast
    from UADBenchLib.preprocessing.recipe import Recipe, prepare
    from UADBenchLib.reading import read_mask, read_scan
    from UADBenchLib.reports.staging import staged
    from UADBenchLib.writing import write_json, write_volume

    read = read_scan(scan, chosen_contrast(contrast))
    mask = read_mask(brain_mask, read, "brain mask") if brain_mask else None
    lesion = read_mask(reference, read, "reference") if reference else None
    recipe = Recipe()
    with progress_bar() as progress:
        prepared = prepare(read, recipe, brain_mask=mask, progress=progress)
    prepared.checks.extend(settle_contrast(read.contrast, prepared.contrast, force=force)[1])
    record = _record(read, recipe, prepared)
    with staged(out) as stage:
        write_volume(stage.path(f"{read.stem}_space-model_scan.nii.gz"), prepared.voxels, prepared.affine)
        write_volume(stage.path(f"{read.stem}_brain_mask.nii.gz"), prepared.native_mask, read.affine)
        if lesion is not None:
            carried = prepared.mask_to_model(lesion, read)
            write_volume(stage.path(f"{read.stem}_space-model_reference.nii.gz"), carried, prepared.mask_affine)
        write_json(stage.path(f"{read.stem}_recipe.json"), record)
    note_checks(prepared.checks)
    if json:
        say_json({**record, "files": [str(path) for path in stage.files]})
        return
    if explain:
        _explain(record)
    for path in stage.files:
        say(str(path))


def _record(scan: Scan, recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Return everything that decides how the prepared scan looks, and what was found on the way."""
    return {
        "scan": scan.stem,
        "input": scan.provenance,
        "uadbench": __version__,
        "recipe": asdict(recipe),
        "recipe_hash": recipe.hash,
        "steps": prepared.steps,
        "template_to_scan_mm": prepared.world_to_native,
        "seconds": prepared.seconds,
        "checks": [asdict(check) for check in prepared.checks],
    }


def _explain(record: dict[str, Any]) -> None:
    """Print the steps in order."""
    say(f"recipe {record['recipe_hash']}")
    for place, step in enumerate(record["steps"], start=1):
        facts = ", ".join(f"{key} {_short(value)}" for key, value in step.items() if key != "step")
        seconds = record["seconds"].get(step["step"])
        say(f"{place}. {step['step']}" + (f" ({seconds:.1f} s)" if seconds is not None else "") + f": {facts}")
    say()


def _short(value: Any) -> str:
    """Return a value in a few characters; a matrix is only named, the JSON has it."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        return f"{len(value)} x {len(value[0])} matrix"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
