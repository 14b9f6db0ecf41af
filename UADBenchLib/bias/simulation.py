"""Benchmark runs that never happened: tables with known effects, to test the analysis and to show what it looks like.

Everything follows from a few parameters of a generative model with a seed: healthy false-positive rates and detections
are logistic in the covariates, with a share that all scans of a subject have in common. Nothing here says anything
about a real model or scanner. ``python -m UADBenchLib.bias.simulation --out DIR`` writes a whole run.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from UADBenchLib import __version__
from UADBenchLib.benchmark.tables import (
    FAILURES,
    LESIONS,
    SCANS,
    Run,
    RunModel,
    RunPoint,
    write_histograms,
    write_run,
    write_table,
)
from UADBenchLib.evaluation.lesions import DEFAULT_RULE
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.evaluation.policy import DEFAULT_POLICY
from UADBenchLib.writing import write_json

LESION_TYPES = ("stroke", "tumour", "white matter")
POINTS = {"fpr-1pct": 3.0, "opt-dice": 4.0}
VOXEL_ML = 0.008
BRAIN_VOXELS = 150_000


@dataclass(frozen=True)
class Planted:
    """Effects in log odds; all 0 is a cohort without any.

    Attributes
    ----------
    scanner : dict
        By scanner, on the healthy false-positive rate and, with the opposite sign, on Dice.
    age : float
        A decade, on the healthy false-positive rate.
    sex : float
        F against M, on the healthy false-positive rate.
    age_and_sex : float
        How much larger the age effect of F is than that of M, a decade.
    volume : float
        A doubling of a lesion's volume, on its detection.
    contrast : float
        One unit (about a standard deviation) of a lesion's contrast to noise, on its detection.
    """

    scanner: dict[str, float] = field(default_factory=dict)
    age: float = 0.0
    sex: float = 0.0
    age_and_sex: float = 0.0
    volume: float = 0.0
    contrast: float = 0.0


EXAMPLE = Planted({"B": 0.7, "D": -0.4}, age=0.25, volume=0.8, contrast=0.6)


def simulate_tables(
    generator: np.random.Generator,
    planted: Planted,
    healthy: int = 60,
    ill: int = 60,
    models: tuple[str, ...] = ("first-t1w-compact",),
    scanners: tuple[str, ...] = ("A", "B", "C", "D"),
    sessions: int = 1,
    points: tuple[str, ...] = ("fpr-1pct",),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables ``scans`` and ``lesions`` of a run, with the columns that an analysis of bias needs.

    Parameters
    ----------
    generator : numpy.random.Generator
    planted : Planted
    healthy, ill : int
        Subjects without and with lesions.
    models : tuple of str
        Later ones are somewhat worse than the first.
    sessions : int
        Scans a subject, which share what is particular to the subject.
    points : tuple of str
        Of ``POINTS``; detection falls with the threshold.
    """
    subjects = _subjects(generator, healthy, ill, scanners)
    scans, lesions = [], []
    for subject in subjects:
        for session in range(sessions):
            scan_id, hardness = f"{subject['subject']}_ses-{session + 1}_T1w", float(generator.normal())
            for number, model in enumerate(models):
                found = _found(generator, planted, subject, number)
                score = _scan_score(generator, planted, subject, hardness, number)
                rate, overlap = _rates(generator, planted, subject, number)
                for point in points:
                    common = _common(subject, scan_id, model, point)
                    own = _outcome(subject, rate, overlap, POINTS[point])
                    scans.append({**common, **own, "scan_score": score, "hardness": hardness})
                    lesions += [{**common, **lesion} for lesion in _lesions(subject, found, POINTS[point])]
    return pd.DataFrame(scans), pd.DataFrame(lesions, columns=None if lesions else list(LESIONS.names))


def _subjects(generator: np.random.Generator, healthy: int, ill: int, scanners: tuple[str, ...]) -> list[dict]:
    rows = []
    for number in range(healthy + ill):
        label = "healthy" if number < healthy else "lesion"
        scanner = int(generator.integers(len(scanners)))
        rows.append(
            {
                "subject": f"sub-{number + 1:03d}",
                "label": label,
                "age": round(float(generator.uniform(20, 85)), 1),
                "sex": str(generator.choice(["F", "M"])),
                "scanner": scanners[scanner],
                "site": "north" if 2 * scanner < len(scanners) else "south",
                "lesion_type": "" if label == "healthy" else LESION_TYPES[number % 3],
                "lesions": _drawn_lesions(generator, 0 if label == "healthy" else 1 + int(generator.poisson(2))),
                "own": float(generator.normal()),
            }
        )
    return rows


def _drawn_lesions(generator: np.random.Generator, count: int) -> list[dict[str, float]]:
    volumes = np.sort(np.exp(generator.normal(0, 1.2, count)))[::-1]
    contrasts = np.exp(generator.normal(0.8, 0.35, count))
    return [{"volume_ml": float(v), "contrast_to_noise": float(c)} for v, c in zip(volumes, contrasts, strict=True)]


def _common(subject: dict, scan_id: str, model: str, point: str) -> dict[str, Any]:
    known = {key: subject[key] for key in ("subject", "label", "age", "sex", "scanner", "site", "lesion_type")}
    place = {"model": model, "operating_point": point, "threshold": POINTS[point]}
    return {"scan_id": scan_id, "dataset": "simulated", "contrast": "T1w", **place, **known}


def _found(generator: np.random.Generator, planted: Planted, subject: dict, handicap: int) -> list[float]:
    """For each lesion the highest threshold at which it is found; 3 of them lie half above and half below."""
    chances = [
        planted.volume * np.log2(lesion["volume_ml"])
        + planted.contrast * (lesion["contrast_to_noise"] - 2.4)
        + 0.5 * subject["own"]
        - 0.3 * handicap
        for lesion in subject["lesions"]
    ]
    return [POINTS["fpr-1pct"] + float(chance + generator.logistic()) for chance in chances]


def _lesions(subject: dict, highest: list[float], threshold: float) -> list[dict[str, Any]]:
    return [
        {
            "lesion": number,
            **lesion,
            "relative_difference": -0.1 * lesion["contrast_to_noise"],
            "found": int(peak > threshold),
            "peak_z": peak,
        }
        for number, (lesion, peak) in enumerate(zip(subject["lesions"], highest, strict=True), start=1)
    ]


def _rates(generator: np.random.Generator, planted: Planted, subject: dict, handicap: int) -> tuple[float, float]:
    """False-positive rate at the first operating point, and the Dice that would be there without false positives."""
    scanner = planted.scanner.get(subject["scanner"], 0.0)
    decades, female = (subject["age"] - 50) / 10, float(subject["sex"] == "F") - 0.5
    rate = logit(0.01) + scanner + planted.age * decades + planted.sex * female
    rate += planted.age_and_sex * decades * female + 0.35 * subject["own"] + 0.35 * generator.normal() + 0.1 * handicap
    overlap = -0.3 - scanner - 0.3 * handicap + 0.6 * subject["own"] + 0.5 * generator.normal()
    return float(expit(rate)), float(expit(overlap))


def _scan_score(
    generator: np.random.Generator, planted: Planted, subject: dict, hardness: float, handicap: int
) -> float:
    load = np.log1p(sum(lesion["volume_ml"] for lesion in subject["lesions"]))
    score = 4 + planted.scanner.get(subject["scanner"], 0.0) + 0.7 * load + 0.4 * hardness
    return float(score + (0.4 + 0.15 * handicap) * generator.normal())


def _outcome(subject: dict, rate: float, overlap: float, threshold: float) -> dict[str, Any]:
    """What a scan gives at a threshold; scores fall off exponentially, outside of lesions and inside."""
    volumes = [lesion["volume_ml"] for lesion in subject["lesions"]]
    if volumes:
        # False positives in proportion to the lesions: Dice then depends on volume only as far as that is planted.
        rate = 20 * rate * sum(volumes) / (BRAIN_VOXELS * VOXEL_ML)
    scale = POINTS["fpr-1pct"] / -np.log(rate)
    sensitivity = float(np.clip(overlap / (2 - overlap), 0.02, 0.95))
    inside = POINTS["fpr-1pct"] / -np.log(sensitivity)
    rate, sensitivity = float(np.exp(-threshold / scale)), float(np.exp(-threshold / inside))
    row = {"reference_ml": sum(volumes), "healthy_fpr": rate, "scale": scale, "scale_inside": inside, "dice": np.nan}
    if volumes:
        true, false = sensitivity * sum(volumes), rate * BRAIN_VOXELS * VOXEL_ML
        row["dice"] = 2 * true / (true + false + sum(volumes))
    return row


def simulate_run(
    out: str | Path,
    planted: Planted = EXAMPLE,
    seed: int = 0,
    healthy: int = 80,
    ill: int = 80,
    models: tuple[str, ...] = ("first-t1w-compact", "second-t1w-compact", "third-t1w-compact", "fourth-t1w-compact"),
) -> Path:
    """Write a whole run (tables, histograms, run.json) into a folder and return it."""
    folder, generator = Path(out), np.random.default_rng(seed)
    scans, lesions = simulate_tables(generator, planted, healthy, ill, models, points=tuple(POINTS))
    rows = scans.to_dict("records")
    histograms: dict[str, dict[str, Histogram]] = {}
    for row in rows:
        own = histograms.setdefault(row["scan_id"], {})
        if row["model"] not in own:
            own[row["model"]] = _histogram(row)
        row |= _from_histogram(row, own[row["model"]])
    for scan_id, own in histograms.items():
        write_histograms(folder, scan_id, own)
    for row in scans.drop_duplicates("scan_id").to_dict("records"):
        write_json(folder / "records" / f"{row['scan_id']}.json", _record(row, generator))
    found = lesions.groupby(["scan_id", "model", "operating_point"])["found"].agg(["size", "sum"])
    for row in rows:
        row |= _counted(row, found, generator)
    write_table(folder, SCANS, rows)
    write_table(folder, LESIONS, lesions.to_dict("records"))
    write_table(folder, FAILURES, [])
    write_run(folder, _run(models, len(histograms), planted, seed))
    return folder


def _record(row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """Features of a scan, some of which say how hard it is, and a distance from calibration that does so a little."""
    noise = generator.normal(size=4)
    features = {
        "noise": row["hardness"] + 0.3 * noise[0],
        "sharpness": -row["hardness"] + 0.5 * noise[1],
        "grey": "ABCD".index(row["scanner"]) + 0.3 * noise[2],
    }
    distance = 0.5 + 0.3 * abs(row["hardness"]) + 0.1 * abs(noise[3])
    return {"scan_id": row["scan_id"], "features": features, "distance": distance}


def _histogram(row: dict[str, Any]) -> Histogram:
    """The histogram that exponential scores have, in whole voxels."""
    histogram = Histogram()
    n_lesion = round(row["reference_ml"] / VOXEL_ML)
    for name, scale, count in (
        ("positives", row["scale_inside"], n_lesion),
        ("negatives", row["scale"], BRAIN_VOXELS - n_lesion),
    ):
        above = np.round(count * np.exp(-np.maximum(histogram.edges, 0) / scale)).astype(np.int64)
        setattr(histogram, name, np.concatenate([[count - above[0]], above[:-1] - above[1:], [above[-1]]]))
    return histogram


def _from_histogram(row: dict[str, Any], histogram: Histogram) -> dict[str, Any]:
    best, threshold = histogram.best_dice()
    more = {"healthy_fpr": histogram.fpr_at(row["threshold"]), "ap": histogram.average_precision()}
    more |= {"n_brain_voxels": BRAIN_VOXELS, "brain_ml": BRAIN_VOXELS * VOXEL_ML, "best_threshold": threshold}
    return {**more, "best_dice": best}


def _counted(row: dict[str, Any], found: pd.DataFrame, generator: np.random.Generator) -> dict[str, Any]:
    key = (row["scan_id"], row["model"], row["operating_point"])
    size, hit = (int(value) for value in found.loc[key]) if key in found.index else (0, 0)
    false = int(generator.poisson(400 * row["healthy_fpr"]))
    counts = {"lesions": size, "lesions_found": hit, "false_positive_count": false, "findings": false + hit}
    counts["false_positive_ml"] = false * 0.2
    if size:
        counts["recall"] = hit / size
        counts["precision"] = hit / (hit + false) if hit + false else np.nan
    return counts


def _run(models: tuple[str, ...], scans: int, planted: Planted, seed: int) -> Run:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    points = {
        name: RunPoint(threshold=value, ci=(value - 0.2, value + 0.2), healthy_fpr=None, origin="simulated")
        for name, value in POINTS.items()
    }
    return Run(
        cohort="simulated",
        fingerprint=digest(str((seed, asdict(planted)))),
        scans=scans,
        models={
            name: RunModel(
                id=name, method="simulated", preset="compact", contrast="T1w", weights_sha256=digest(name),
                recipe_hash=digest("recipe"), operating_points=points,
            )
            for name in models
        },
        operating_points=tuple(POINTS),
        minimum_ml=0.1,
        device="cpu",
        policy={**DEFAULT_POLICY.record(), "sentence": DEFAULT_POLICY.sentence()},
        lesion_rule={**DEFAULT_RULE.record(), "sentence": DEFAULT_RULE.sentence()},
        seed=seed,
        versions={"uadbench": __version__, "numpy": np.__version__},
    )  # fmt: skip


def main() -> None:
    """Write a simulated run."""
    parser = argparse.ArgumentParser(description="Write a simulated benchmark run with known effects.")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-effects", action="store_true", help="plant no effect at all")
    arguments = parser.parse_args()
    simulate_run(arguments.out, Planted() if arguments.no_effects else EXAMPLE, arguments.seed)


if __name__ == "__main__":
    main()
