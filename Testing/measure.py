"""Measure the shipped T1w models and write the tables that README, docs and model cards quote.

``healthy.csv``: mean false-positive rate of every group of test scans at both operating points, calibrated and not.
``lesions.csv``: every development case with a reference, through ``detect`` as a user would run it.
Uncalibrated thresholds are read off the raw scores of the same validation scans, sites weighing the same. The rows of a
model also go into its bundle, from which its card is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from UADBenchLib.bundles.bundle import load_bundle, save_bundle
from UADBenchLib.bundles.catalogue import find_model, list_models
from UADBenchLib.cohort import CohortScan, read_cohort, select
from UADBenchLib.evaluation.metrics import average_precision
from UADBenchLib.inference.calibration import RATES, unpack_reference
from UADBenchLib.inference.detector import detect
from UADBenchLib.inference.scoring import score_volume
from UADBenchLib.inference.weights import site_weights
from UADBenchLib.preprocessing.recipe import Recipe
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.training.slices import build_store, default_store
from UADBenchLib.writing import write_csv

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ROOT / "Resources" / "Splits"


def raw_threshold(values: list[np.ndarray], sites: list[str], rate: float) -> float:
    """The raw score that a share ``rate`` of healthy voxels exceeds, sites weighing the same."""
    weights = np.concatenate([np.full(len(v), w / len(v)) for v, w in zip(values, site_weights(sites), strict=True)])
    scores = np.concatenate(values)
    order = np.argsort(-scores)
    return float(scores[order][np.searchsorted(np.cumsum(weights[order]), rate)])


def healthy_rows(model: str, rows: list[CohortScan], store: Path, workers: int) -> list[dict]:
    """False-positive rates of one model in every group of test scans."""
    bundle = load_bundle(find_model(model))
    reference = unpack_reference(bundle)
    scored: dict[str, list[tuple[CohortScan, np.ndarray, np.ndarray]]] = {"validation": [], "test": []}
    for scan in build_store(rows, store, Recipe(), workers=workers)[0]:
        voxels, mask = scan.volume()
        raw, inside = score_volume(bundle.method, voxels, mask, bundle.recipe.voxel_mm)
        scored[scan.row.split].append((scan.row, raw[inside], reference.z(raw, inside)[inside]))
    plain = {
        name: raw_threshold(
            [raw for _, raw, _ in scored["validation"]], [r.site for r, _, _ in scored["validation"]], rate
        )
        for name, rate in RATES.items()
    }
    table = []
    for site, group in sorted({(row.site, row.group) for row, _, _ in scored["test"]}):
        members = [item for item in scored["test"] if (item[0].site, item[0].group) == (site, group)]
        for name, rate in RATES.items():
            threshold = bundle.metadata.operating_points[name].threshold
            calibrated = [float((z > threshold).mean()) for _, _, z in members]
            raw = [float((values > plain[name]).mean()) for _, values, _ in members]
            table.append(
                {
                    "model": model,
                    "site": site,
                    "group": group,
                    "n": len(members),
                    "operating_point": name,
                    "nominal": rate,
                    "fpr_calibrated": round(float(np.mean(calibrated)), 5),
                    "fpr_calibrated_highest": round(max(calibrated), 5),
                    "fpr_uncalibrated": round(float(np.mean(raw)), 5),
                    "fpr_uncalibrated_highest": round(max(raw), 5),
                }
            )
    return table


def lesion_rows(models: list[str], rows: list[CohortScan]) -> list[dict]:
    """Metrics and times of every model on every case with a reference."""
    table = []
    for row in rows:
        scan = read_scan(row.scan, row.contrast)
        reference = read_mask(row.reference, scan, "reference")
        for detection in detect(scan, models, reference=reference):
            metrics = detection.metrics
            uncalibrated = average_precision(detection.raw, reference, detection.brain_mask)
            table.append(
                {
                    "subject": row.subject,
                    "lesion_type": row.lesion_type,
                    "reference_ml": round(metrics["reference_ml"], 1),
                    "model": detection.model,
                    "dice_fpr_1pct": round(metrics["dice"], 3),
                    "best_dice": round(metrics["best_dice"], 3),
                    "average_precision": round(metrics["average_precision"], 3),
                    "average_precision_uncalibrated": "" if detection.model == "consensus" else round(uncalibrated, 3),
                    "findings": len(detection.findings),
                    "true_findings": sum(finding.status == "TP" for finding in detection.findings),
                    **{f"seconds_{stage.replace(' ', '_')}": value for stage, value in detection.seconds.items()},
                }
            )
    return table


def write_card(model: str, healthy: list[dict], lesions: list[dict]) -> None:
    """Put the figures of one model into its bundle."""
    bundle = load_bundle(find_model(model))
    columns = ("subject", "lesion_type", "reference_ml", "dice_fpr_1pct", "best_dice", "average_precision")
    metrics = {
        "healthy": [{k: v for k, v in line.items() if k != "model"} for line in healthy if line["model"] == model],
        "lesions": [{k: line[k] for k in columns} for line in lesions if line["model"] == model],
    }
    bundle.metadata = bundle.metadata.model_copy(update={"metrics": metrics})
    save_bundle(bundle, bundle.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that the cohort tables' paths start from")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--store", type=Path, default=None, help="where prepared scans are kept")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    store = arguments.store or default_store()
    models = [entry["id"] for entry in list_models() if entry["contrast"] == "T1w"]
    cohort = read_cohort(SPLITS / "t1w.csv", arguments.data)
    rows = select(cohort, split="validation") + select(cohort, split="test")
    healthy = [line for model in models for line in healthy_rows(model, rows, store, arguments.workers)]
    write_csv(arguments.out / "healthy.csv", healthy, list(healthy[0]))
    lesions = lesion_rows(models, read_cohort(SPLITS / "lesions.csv", arguments.data))
    columns = list(dict.fromkeys(name for line in lesions for name in line))
    write_csv(arguments.out / "lesions.csv", lesions, columns)
    for model in models:
        write_card(model, healthy, lesions)


if __name__ == "__main__":
    main()
