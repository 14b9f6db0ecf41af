"""Detect anomalies in every scan of a folder, inside the Slicer application and without its windows.

    Slicer --no-splash --no-main-window --ignore-slicerrc --disable-settings \
        --additional-module-paths UADBench --python-script Testing/app/batch.py -- \
        --input SCANS --output RESULTS --model ID

Of each scan come the files that ``uadbench detect`` writes, with the same names. Exit codes: 0 all done, 1 some scans
failed (listed on stderr), 2 bad input or usage (nothing written), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import slicer

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


class BatchError(Exception):
    """Bad input or usage: nothing has been written."""


def stem_of(path: Path) -> str:
    """Return a file's name without its image suffix."""
    return next(path.name[: -len(suffix)] for suffix in SUFFIXES if path.name.lower().endswith(suffix))


def find_scans(folder: Path) -> dict[str, Path]:
    """Return the scans of a folder by stem, sorted."""
    if not folder.is_dir():
        raise BatchError(f"NO_INPUT: there is no folder {folder.name}; name a folder of scans")
    scans: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.lower().endswith(SUFFIXES):
            if stem_of(path) in scans:
                raise BatchError(f"STEM_TWICE: two scans are called {stem_of(path)}; rename or remove one")
            scans[stem_of(path)] = path
    if not scans:
        raise BatchError(f"NO_INPUT: no scan in {folder.name}; scans end in {', '.join(SUFFIXES)}")
    return scans


def run(logic, arguments: argparse.Namespace) -> int:
    """Go through the scans; one that fails does not end the others."""
    scans = find_scans(arguments.input)
    arguments.output.mkdir(parents=True, exist_ok=True)
    options = {"operating_point": arguments.operating_point or "", "device": arguments.device}
    failed = 0
    for stem, path in scans.items():
        slicer.mrmlScene.Clear(0)
        try:
            volume = slicer.util.loadVolume(str(path))
            nodes = logic.detect(volume, arguments.model, **options)
            logic.export(nodes[0].map, arguments.output, stem=stem)
            sys.stderr.write(f"done {stem}\n")
        except Exception as error:
            failed += 1
            sys.stderr.write(f"error {stem}: {error}\n")
    return 1 if failed else 0


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line; ends with 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="batch.py", description="Detect anomalies in every scan of a folder.")
    parser.add_argument("--input", type=Path, required=True, help="folder of scans")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results, made if missing")
    parser.add_argument("--model", action="append", required=True, help="id of a model; may be given several times")
    parser.add_argument("--operating-point", default=None)
    parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


def main(words: list[str], logic=None) -> int:
    """Return the exit code."""
    try:
        arguments = parse(words[1:] if words[:1] == ["--"] else words)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        from UADBench import UADBenchLogic, sceneModule

        known = [entry["id"] for entry in sceneModule("models").usable_models()]
        unknown = [name for name in arguments.model if name not in known]
        if unknown:
            raise BatchError(f"MODEL_UNKNOWN: no model {unknown[0]}; the models are: {', '.join(known) or 'none'}")
        logic = logic or UADBenchLogic()
        return run(logic, arguments)
    except BatchError as error:
        sys.stderr.write(f"error {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if logic is not None:
            logic.close()


if __name__ == "__main__":
    slicer.util.exit(main(sys.argv[1:]))
