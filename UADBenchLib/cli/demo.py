"""``uadbench demo``: the main job on a case made on the spot, compared with its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import check_output, note_checks, progress_bar, say
from UADBenchLib.cli.detect import detections_table, report
from UADBenchLib.cli.options import DeviceOption, JsonOption

DEFAULT_OUT = Path("uadbench-demo")


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")] = DEFAULT_OUT,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Make a sample scan with known lesions, detect them with every T1w model, and compare."""
    check_output(out)
    from UADBenchLib.bundles import catalogue
    from UADBenchLib.inference import detector
    from UADBenchLib.reports.detection import write_detection
    from UADBenchLib.synthesis.sample import make_sample

    scan, reference, brain_mask = make_sample()
    default = catalogue.default_model(scan.contrast or "T1w")
    others = [
        entry["id"]
        for entry in catalogue.list_models()
        if entry.get("contrast") == (scan.contrast or "T1w") and "broken" not in entry and entry["id"] != default
    ]
    with progress_bar() as progress:
        detections = detector.detect(
            scan,
            [default, *others],
            brain_mask=brain_mask,
            reference=reference,
            device=device,
            progress=progress,
        )
    files = write_detection(out, scan, detections, reference)
    if json:
        report(scan, detections, files, json, default=default)
        return
    note_checks(check for detection in detections for check in detection.checks)
    say(detections_table(detections))
    say(f"\n{default} is the default model for {scan.contrast or 'T1w'}. The lesions are synthetic.\n")
    for suffix, what in ((".html", "report "), (".png", "picture")):
        for path in (path for path in files if path.suffix == suffix):
            say(f"{what}  {path}")
