"""Draw the pictures of docs/methods: the demo's case as every shipped T1w model sees it, one picture a method."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from UADBenchLib.bundles.bundle import load_metadata
from UADBenchLib.bundles.catalogue import list_models
from UADBenchLib.inference.detector import detect
from UADBenchLib.reports.figure import detection_figure
from UADBenchLib.synthesis.sample import make_sample

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 1100
"""Pixels; the pages are read on screens."""


def shrink(path: Path) -> None:
    """Replace a PNG by a JPEG of ``WIDTH``: clones carry it."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.LANCZOS)
    small.save(path.with_suffix(".jpg"), quality=85, optimize=True)
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures" / "methods")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    scan, reference, brain_mask = make_sample()
    models = {
        entry["id"]: load_metadata(Path(entry["path"])).method
        for entry in list_models()
        if entry["contrast"] == "T1w" and "broken" not in entry
    }
    for detection in detect(scan, list(models), brain_mask=brain_mask, reference=reference):
        if detection.model in models:
            path = out / f"{models[detection.model]}.png"
            detection_figure(path, scan, [detection], reference)
            shrink(path)


if __name__ == "__main__":
    main()
