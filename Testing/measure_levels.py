"""Measure what ANDi's noise levels are worth: ``andi_levels.csv`` has average precision of the raw map and seconds a
scan for several numbers of levels, on tumours put into healthy test scans."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from UADBenchLib.bundles.bundle import load_bundle
from UADBenchLib.bundles.catalogue import find_model
from UADBenchLib.cohort import read_cohort
from UADBenchLib.evaluation.metrics import average_precision
from UADBenchLib.inference.scoring import score_volume
from UADBenchLib.methods.registry import create_method
from UADBenchLib.preprocessing.recipe import prepare
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.writing import write_csv

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (2, 5, 10, 20, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=Path, required=True, help="scans with tumours, as `synthesise --scans` makes")
    parser.add_argument("--model", default="andi-t1w-compact")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    given = parser.parse_args()
    bundle = load_bundle(find_model(given.model))
    cases = []
    for row in read_cohort(given.cohort):
        if row.lesion_type == "tumour" and row.contrast == bundle.metadata.contrast:
            scan = read_scan(row.scan, row.contrast)
            mask = None if row.brain_mask is None else read_mask(row.brain_mask, scan, "brain mask")
            prepared = prepare(scan, bundle.recipe, brain_mask=mask)
            truth = prepared.to_model(read_mask(row.reference, scan).astype(np.float32), scan) > 0.5
            cases.append((prepared.voxels, prepared.mask, truth))
    rows = []
    for levels in LEVELS:
        method = create_method("andi", config=bundle.method.configuration() | {"levels": levels})
        method.load_state_dict(bundle.method.state_dict())
        precisions, seconds = [], []
        for voxels, mask, truth in cases:
            started = time.perf_counter()
            raw, inside = score_volume(method.eval(), voxels, mask, bundle.recipe.voxel_mm)
            seconds.append(time.perf_counter() - started)
            precisions.append(average_precision(raw, truth, inside))
        row = {"model": given.model, "levels": levels, "n": len(cases)}
        row |= {
            "average_precision": round(float(np.mean(precisions)), 4),
            "seconds": round(float(np.median(seconds)), 2),
        }
        rows.append(row)
    write_csv(given.out / "andi_levels.csv", rows, list(rows[0]))


if __name__ == "__main__":
    main()
