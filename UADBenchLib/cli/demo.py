"""``uadbench demo``: the main job on a case made on the spot, compared with its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from UADBenchLib.cli.console import check_output, note_checks, progress_bar, say
from UADBenchLib.cli.detect import detections_table, report
from UADBenchLib.cli.options import DeviceOption, JsonOption, KnownContrast

DEFAULT_OUT = Path("uadbench-demo")
MODELS = 3
"""How many models are shown: the default one and the next best."""


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")] = DEFAULT_OUT,
    contrast: Annotated[KnownContrast, typer.Option("--contrast", help="Contrast of the sample.")] = KnownContrast.T1w,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Make a sample scan with known lesions, detect them with the preferred models, and compare."""
    check_output(out)
    from UADBenchLib.bundles import catalogue
    from UADBenchLib.inference import detector
    from UADBenchLib.reports.detection import write_detection
    from UADBenchLib.synthesis.sample import make_sample

    scan, reference, brain_mask = make_sample(contrast=contrast.value)
    models = catalogue.models_for(contrast.value)[:MODELS]
    with progress_bar() as progress:
        detections = detector.detect(
            scan,
            models,
            brain_mask=brain_mask,
            reference=reference,
            device=device,
            progress=progress,
        )
    files = write_detection(out, scan, detections, reference)
    if json:
        report(scan, detections, files, json, default=models[0])
        return
    note_checks(check for detection in detections for check in detection.checks)
    say(detections_table(detections))
    say(f"\n{models[0]} is the default model for {scan.contrast or 'T1w'}. The lesions are synthetic.\n")
    for suffix, what in ((".html", "report "), (".png", "picture")):
        for path in (path for path in files if path.suffix == suffix):
            say(f"{what}  {path}")
