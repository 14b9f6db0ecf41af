"""How much healthy data a method needs: the same method trained on growing shares of the subjects, and judged alike.

Shares are nested: within a seed every share holds the subjects of the smaller ones. Every model takes the same number
of steps, is calibrated on the same validation scans and evaluated in one benchmark run, so that only the training
subjects and the seed differ. Models lie in ``<out>.models`` beside the run; whatever is trained or evaluated already is
kept when the experiment is begun again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from UADBenchLib.benchmark.runner import benchmark
from UADBenchLib.benchmark.tables import SCANS, read_table
from UADBenchLib.bias.statistics import RESAMPLES, Bootstrap, interval
from UADBenchLib.bundles.bundle import Metadata, bundle_id, load_metadata
from UADBenchLib.bundles.catalogue import models_in
from UADBenchLib.errors import InputError
from UADBenchLib.inference.calibration import calibrate
from UADBenchLib.scan import Progress
from UADBenchLib.training.trainer import train
from UADBenchLib.writing import write_csv, write_json

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
MEASURES = {"dice": "lesion", "ap": "lesion", "best_dice": "lesion", "healthy_fpr": "healthy"}
"""Columns of scans.csv that are followed, and the label of the scans that they are followed on."""

CELL_COLUMNS = ("model", "fraction", "seed", "subjects", "slices", "steps", *MEASURES)
CURVE_COLUMNS = (
    "measure", "fraction", "subjects", "mean", "low", "high", "seeds", "scans", "test_subjects", "change", "change_low",
    "change_high",
)  # fmt: skip


def scaling(
    method: str,
    cohort: str | Path,
    out: str | Path,
    *,
    contrast: str,
    preset: str = "compact",
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = 3,
    operating_point: str = "fpr-1pct",
    steps: int | None = None,
    data: str | Path | None = None,
    store: str | Path | None = None,
    workers: int = 1,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a method on shares of the subjects, evaluate every model, and write ``scaling.json`` and two tables.

    Parameters
    ----------
    method, preset, contrast : str
        See ``training.trainer.train``.
    cohort : path
        With the splits train, validation (at least five healthy subjects) and test.
    out : path
        Folder of the benchmark run; models lie in ``<out>.models``.
    fractions : sequence of float
        Shares of the training subjects, in (0, 1].
    seeds : int
        Models a share; a seed decides initial weights, order of the data, and which subjects come first.
    operating_point : str
        At which Dice and the healthy false-positive rate are read.
    steps : int, optional
        Instead of the preset's.

    Returns
    -------
    dict
        What scaling.json holds: ``cells`` (one a model) and ``curve`` (one row a measure and share).

    Raises
    ------
    InputError
        ``FRACTION``; ``SCALING_DIFFERENT`` when the models in the folder belong to another experiment; and what
        training, calibration and benchmark raise.
    """
    fractions = _checked(fractions)
    out, models = Path(out), Path(f"{out}.models")
    plan = {"method": method, "preset": preset, "contrast": contrast, "steps": steps, "cohort": Path(cohort).name}
    _settle(models / "scaling.json", plan)
    cells, todo = [], [(fraction, seed) for seed in range(seeds) for fraction in fractions]
    for number, (fraction, seed) in enumerate(todo):
        name = f"{bundle_id(method, contrast, preset)}-{round(1000 * fraction)}permille-seed{seed}"
        part = _part(progress, 0.7 * number / len(todo), 0.7 / len(todo), name)
        options = {"data": data, "store": store, "workers": workers, "device": device, "progress": part}
        metadata = _trained(models / name, plan, str(cohort), fraction, seed, options)
        subjects = len(metadata.trained_on["subjects"])
        cells.append({"model": name, "fraction": fraction, "seed": seed, "subjects": subjects, "steps": metadata.steps})
    with models_in(models):
        benchmark(
            cohort, [cell["model"] for cell in cells], out, data=data, operating_points=[operating_point],
            workers=workers, device=device, progress=_part(progress, 0.7, 0.3, "evaluating"),
        )  # fmt: skip
    document = {**plan, "operating_point": operating_point, "cells": cells}
    document["curve"] = curve(read_table(out, SCANS), cells)
    _write(out, document)
    return document


def _checked(fractions: Sequence[float]) -> list[float]:
    wrong = [value for value in fractions if not 0.001 <= value <= 1]
    if wrong or not fractions:
        raise InputError("FRACTION", f"fractions are {list(fractions)}", "give numbers from 0.001 to 1")
    return sorted(set(fractions))


def _settle(file: Path, plan: dict[str, Any]) -> None:
    """Write down what the models of a folder are, or refuse to mix them with others."""
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name in plan if before.get(name) != plan[name]]
        if differing:
            raise InputError(
                "SCALING_DIFFERENT",
                f"{file.parent} holds models with other {', '.join(differing)}",
                "give another --out, or the same method, cohort and options to go on with it",
            )
    write_json(file, plan)


def _part(progress: Progress | None, start: float, share: float, name: str) -> Progress | None:
    """A callback for one part of the work."""
    if progress is None:
        return None
    return lambda stage, fraction: progress(f"{name}: {stage}", start + share * fraction)


def _trained(
    folder: Path, plan: dict[str, Any], cohort: str, fraction: float, seed: int, options: dict[str, Any]
) -> Metadata:
    """Train and calibrate one model, unless that is done."""
    if (folder / "configs" / "metadata.json").exists() and load_metadata(folder).operating_points:
        return load_metadata(folder)
    train(
        plan["method"], cohort, contrast=plan["contrast"], preset=plan["preset"], out=folder, fraction=fraction,
        seed=seed, steps=plan["steps"], resume=True, **options,
    )  # fmt: skip
    metadata = load_metadata(folder).model_copy(update={"id": folder.name})
    write_json(folder / "configs" / "metadata.json", json.loads(metadata.model_dump_json()))
    calibrate(folder, cohort, **options)
    return load_metadata(folder)


def curve(scans: pd.DataFrame, cells: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Mean of each measure at each share, with intervals that resample test subjects and seeds; adds each model's own
    means to ``cells``.

    ``change`` is against the largest share, with the interval of the same resamples.

    Parameters
    ----------
    scans : pandas.DataFrame
        The run's scans.csv.
    cells : list of dict
        ``model``, ``fraction``, ``seed``, ``subjects``.
    seed : int
        Of the resampling.
    """
    rows: list[dict[str, Any]] = []
    for measure, label in MEASURES.items():
        wide = scans[scans["label"] == label].pivot_table(
            index=["scan_id", "subject"], columns="model", values=measure, aggfunc="first"
        )
        wide = wide.reindex(columns=[cell["model"] for cell in cells]).dropna()
        for cell in cells:
            cell[measure] = float(wide[cell["model"]].mean()) if len(wide) else np.nan
        if len(wide):
            rows += _curve_of(measure, wide, cells, Bootstrap(np.random.default_rng(seed), RESAMPLES))
    return rows


def _curve_of(
    measure: str, wide: pd.DataFrame, cells: Sequence[dict[str, Any]], bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    subjects = np.unique(wide.index.get_level_values("subject"), return_inverse=True)[1]
    seeds = sorted({cell["seed"] for cell in cells})
    by_scan, by_seed = bootstrap.weights(subjects), bootstrap.weights(np.arange(len(seeds)))
    by_scan /= by_scan.sum(axis=1, keepdims=True)
    by_seed /= by_seed.sum(axis=1, keepdims=True)
    fractions = sorted({cell["fraction"] for cell in cells})
    draws, means = {}, {}
    for fraction in fractions:
        own = sorted((cell for cell in cells if cell["fraction"] == fraction), key=lambda cell: cell["seed"])
        values = wide[[cell["model"] for cell in own]].to_numpy(float)
        draws[fraction], means[fraction] = ((by_scan @ values) * by_seed).sum(axis=1), values.mean(axis=0)
    count = int(subjects.max()) + 1
    for fraction in fractions:
        low, high = interval(draws[fraction], count)
        change_low, change_high = interval(draws[fraction] - draws[fractions[-1]], count)
        sizes = [cell["subjects"] for cell in cells if cell["fraction"] == fraction]
        yield {
            "measure": measure, "fraction": fraction, "subjects": round(float(np.mean(sizes))),
            "mean": float(means[fraction].mean()), "low": low, "high": high, "seeds": means[fraction].tolist(),
            "scans": len(wide), "test_subjects": count,
            "change": float(means[fraction].mean() - means[fractions[-1]].mean()), "change_low": change_low,
            "change_high": change_high,
        }  # fmt: skip


def _write(out: Path, document: dict[str, Any]) -> None:
    cells = [{key: cell.get(key) for key in CELL_COLUMNS} for cell in document["cells"]]
    rows = [{**row, "seeds": " ".join(f"{value:.6g}" for value in row["seeds"])} for row in document["curve"]]
    write_csv(out / "scaling_models.csv", cells, CELL_COLUMNS)
    write_csv(out / "scaling_curve.csv", rows, CURVE_COLUMNS)
    write_json(out / "scaling.json", document)
