"""``uadbench detect``: one scan, one or more models, files on the scan's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from UADBenchLib.cli.console import check_output, note_checks, number, progress_bar, say, say_json, table
from UADBenchLib.cli.options import (
    BrainMaskOption,
    ContrastChoice,
    ContrastOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    OutOption,
    ScanArgument,
    chosen_contrast,
)

if TYPE_CHECKING:
    from UADBenchLib.inference.detector import Detection
    from UADBenchLib.scan import Scan


def detect(
    scan: ScanArgument,
    out: OutOption,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="ID",
            help="Model to use; may be repeated. Default: the contrast's own.",
            show_default=False,
        ),
    ] = None,
    contrast: ContrastOption = ContrastChoice.auto,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="MASK", help="Lesion mask to compare with.", show_default=False),
    ] = None,
    operating_point: Annotated[
        str, typer.Option("--operating-point", metavar="NAME", help="Which of the model's thresholds to use.")
    ] = "fpr-1pct",
    brain_mask: BrainMaskOption = None,
    device: DeviceOption = "auto",
    minimum_ml: Annotated[
        float, typer.Option("--minimum-ml", min=0.0, help="Findings smaller than this are left out.")
    ] = 0.1,
    force: ForceOption = False,
    save_raw: Annotated[bool, typer.Option("--save-raw", help="Also write the maps before calibration.")] = False,
    json: JsonOption = False,
) -> None:
    """Detect anomalies in one scan; several models also give their consensus."""
    from UADBenchLib.bundles import catalogue

    check_output(out)
    for name in model or ():
        catalogue.find_model(name)
    from UADBenchLib.inference import detector
    from UADBenchLib.reading import read_mask, read_scan
    from UADBenchLib.reports.detection import write_detection

    read = read_scan(scan, chosen_contrast(contrast))
    masks = {
        "brain_mask": read_mask(brain_mask, read, "brain mask") if brain_mask else None,
        "reference": read_mask(reference, read, "reference") if reference else None,
    }
    with progress_bar() as progress:
        detections = detector.detect(
            read,
            model or [],
            **masks,
            operating_point=operating_point,
            device=device,
            minimum_ml=minimum_ml,
            force=force,
            progress=progress,
        )
    files = write_detection(out, read, detections, masks["reference"], save_raw=save_raw)
    report(read, detections, files, json)


def report(scan: Scan, detections: list[Detection], files: list[Path], json: bool, **more: Any) -> None:
    """Print what was found and where it was written, as a table or as one JSON document."""
    note_checks(check for detection in detections for check in detection.checks)
    if json:
        summaries = [detection.summary(scan.stem) for detection in detections]
        say_json({"scan": scan.stem, **more, "detections": summaries, "files": [str(path) for path in files]})
        return
    say(detections_table(detections))
    say()
    for path in sorted(files, key=lambda path: path.suffix not in (".html", ".png")):
        say(str(path))


def detections_table(detections: list[Detection]) -> str:
    """Return one line a model; metrics only where there was a reference."""
    compared = any(detection.metrics for detection in detections)
    columns = [
        "model",
        *(["Dice", "AP"] if compared else []),
        "findings",
        "flagged ml",
        "peak z",
        "threshold",
        "seconds",
    ]
    rows = []
    for detection in detections:
        metrics = detection.metrics or {}
        rows.append([
            detection.model,
            *([number(metrics.get("dice")), number(metrics.get("average_precision"))] if compared else []),
            str(len(detection.findings)),
            number(sum(finding.volume_ml for finding in detection.findings), 2),
            number(max((finding.peak_z for finding in detection.findings), default=None), 1),
            number(detection.threshold, 2),
            number(sum(detection.seconds.values()), 1),
        ])  # fmt: skip
    return table(columns, rows)
