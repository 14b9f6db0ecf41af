"""Detection as a command line module of 3D Slicer: a scan in, an anomaly map and the mask of its findings out.

Slicer makes the panel from ``UADBenchDetect.xml`` and runs this file with its own Python; with ``--launch`` it runs
without windows. Everything is done by ``UADBenchLib``; outside of Slicer, ``uadbench detect`` does the same with more
choices. Exit codes: 0 done, 2 bad input or usage (one line on stderr, nothing written).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path


def library_folder() -> Path:
    """Return the folder in which UADBenchLib lies: that of the scripted modules when installed, one above in the
    source tree.
    """
    here = Path(__file__).resolve().parent
    installed = here.parent / "qt-scripted-modules"
    return installed if (installed / "UADBenchLib").is_dir() else here.parent


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line that Slicer makes from the XML file; ends with 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="UADBenchDetect", description="Detect anomalies in a brain MRI scan.")
    parser.add_argument("--model", default="", help="ids of models, separated by commas")
    parser.add_argument("--contrast", default="auto", choices=["auto", "T1w", "T2w", "FLAIR"])
    parser.add_argument("--operating-point", default="fpr-1pct")
    parser.add_argument("--minimum-ml", type=float, default=0.1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--findings", type=Path, default=None, help="CSV file for the table")
    parser.add_argument("scan", type=Path)
    parser.add_argument("map", type=Path, help="anomaly map, .nii.gz")
    parser.add_argument("mask", type=Path, help="mask of the findings, .nii.gz")
    return parser.parse_args(words)


class Progress:
    """Tells Slicer how far it is, in the form that it reads from stdout, a few times a second at most."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told > 0.2 or fraction >= 1.0:
            self._told = now
            sys.stdout.write(f"<filter-comment>{stage}</filter-comment>\n")
            sys.stdout.write(f"<filter-progress>{fraction:.3f}</filter-progress>\n")
            sys.stdout.flush()


def run(arguments: argparse.Namespace) -> None:
    """Detect and write; of several models the consensus is written."""
    from UADBenchLib.inference.detector import detect
    from UADBenchLib.inference.findings import COLUMNS
    from UADBenchLib.reading import read_scan
    from UADBenchLib.writing import write_csv, write_volume

    scan = read_scan(arguments.scan, None if arguments.contrast == "auto" else arguments.contrast)
    models = [name for name in arguments.model.replace(",", " ").split() if name]
    detections = detect(
        scan,
        models,
        operating_point=arguments.operating_point,
        device=arguments.device,
        minimum_ml=arguments.minimum_ml,
        force=arguments.force,
        progress=Progress(),
    )
    found = detections[-1]
    for check in found.checks:
        if check.level == "warning":
            sys.stderr.write(f"warning {check.code}: {check.message}, {check.advice}\n")
    write_volume(arguments.map, found.map, scan.affine)
    write_volume(arguments.mask, found.mask, scan.affine)
    if arguments.findings is not None:
        write_csv(arguments.findings, [finding.row() for finding in found.findings], COLUMNS)


def main(words: list[str]) -> int:
    """Return the exit code."""
    try:
        arguments = parse(words)
    except SystemExit as end:
        return int(end.code or 0)
    if str(library_folder()) not in sys.path:
        sys.path.append(str(library_folder()))
    try:
        from UADBenchLib.errors import InputError

        run(arguments)
    except ImportError as error:
        name = getattr(error, "name", None) or "a package"
        sys.stderr.write(f"error DEPENDENCY_MISSING: {name} is missing; install it from the UADBench module\n")
        return 2
    except InputError as error:
        sys.stderr.write(f"error {error.code}: {error.message}, {error.advice}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
