"""Triage: rejection and smoothing are said to help where they do, and not where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from UADBenchLib.benchmark.triage import COVERAGES, NEIGHBOURS, SHARE, read_features, smoothed, standardised, triage

MODELS = ("first", "second", "third")


def scans(generator: np.random.Generator, noise: np.ndarray, labels: np.ndarray, models=MODELS) -> pd.DataFrame:
    """A score of each model for every scan: 2 higher with a lesion, and as noisy as the scan is."""
    rows = []
    for number, (spread, label) in enumerate(zip(noise, labels, strict=True)):
        for model in models:
            score = 4 + 2 * (label == "lesion") + spread * generator.normal()
            rows.append(
                {
                    "scan_id": f"scan-{number:03d}", "subject": f"sub-{number // 2:03d}", "contrast": "T1w",
                    "label": label, "model": model, "scan_score": score,
                    "dice": 0.5 - 0.1 * spread if label == "lesion" else np.nan,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def labels() -> np.ndarray:
    return np.array(["healthy", "lesion"])[np.arange(120) // 2 % 2]


def rejection(answer: dict, name: str = "spread") -> str:
    return next(s for s in answer["verdicts"] if {"spread": "the spread", "distance": "the distance"}[name] in s)


def test_rejection_helps_where_the_spread_tells(labels):
    generator = np.random.default_rng(0)
    noise = np.where(generator.random(120) < 0.25, 8.0, 1.0)
    (answer,) = triage(scans(generator, noise, labels))
    assert " helps: " in rejection(answer)
    areas = [row["auc"] for row in answer["curve"]]
    assert areas[COVERAGES.index(0.75)] > areas[0] + 0.03
    dice = [row["dice"] for row in answer["curve"]]
    assert dice[COVERAGES.index(0.75)] > dice[0]


def test_rejection_does_not_help_where_the_spread_says_nothing(labels):
    (answer,) = triage(scans(np.random.default_rng(1), np.full(120, 2.0), labels))
    assert "does not measurably help" in rejection(answer)


def test_the_curve_begins_with_all_scans(labels):
    (answer,) = triage(scans(np.random.default_rng(2), np.full(120, 2.0), labels))
    first, last = answer["curve"][0], answer["curve"][-1]
    scores = [row["score"] for row in answer["scans"]]
    assert first["auc"] == pytest.approx(roc_auc_score(labels == "lesion", scores))
    assert first["change"] == first["change_low"] == first["change_high"] == 0
    assert (first["healthy"], first["lesion"]) == (60, 60)
    assert last["healthy"] + last["lesion"] == 60
    assert first["low"] < first["auc"] < first["high"]


def test_smoothing_helps_where_neighbours_are_alike(labels):
    generator = np.random.default_rng(3)
    table = scans(generator, np.full(120, 3.0), labels)
    names = sorted(set(table["scan_id"]))
    telling = (labels == "lesion")[:, None] * [3.0, -2.0] + generator.normal(0, 0.5, (120, 2))
    (answer,) = triage(table, pd.DataFrame(telling, index=names, columns=["a", "b"]))
    assert " helps: " in answer["verdicts"][-1] and answer["smoothing"]["low"] > 0
    (answer,) = triage(table, pd.DataFrame(generator.normal(size=(120, 2)), index=names, columns=["a", "b"]))
    assert " helps: " not in answer["verdicts"][-1]


def test_smoothing_is_the_mean_of_neighbours_of_other_subjects():
    scores = np.array([1.0, 100.0, 3.0, 5.0])
    features = np.array([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1], [-1.0, -0.3]])
    result = smoothed(scores, features, ["a", "a", "b", "c"])
    # The twin belongs to the same subject; of the others, the opposite one weighs nothing.
    assert result[0] == pytest.approx((1 - SHARE) * 1 + SHARE * 3, abs=1e-3)
    assert NEIGHBOURS >= 3
    np.testing.assert_array_equal(smoothed(scores, features, ["a"] * 4), scores)


def test_scores_are_measured_against_other_healthy_subjects():
    scores = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [1000.0]])
    subjects = [f"s{n}" for n in range(7)]
    before = standardised(scores, subjects, ["healthy"] * 6 + ["lesion"])
    scores[0] = 500
    after = standardised(scores, subjects, ["healthy"] * 6 + ["lesion"])
    # A subject's own score moves its own z in proportion: its reference does not know it.
    assert after[0] > before[0] + 100
    assert before[6] > 300


@pytest.mark.parametrize(
    ("models", "count", "sentence"),
    [(("only",), 120, "the run has one model"), (MODELS, 24, "at least 10 of each are needed")],
)
def test_what_cannot_be_measured_is_said(labels, models, count, sentence):
    table = scans(np.random.default_rng(4), np.full(count, 1.0), labels[:count], models)
    if count < 120:
        table = table[table["label"] == "healthy"]
    (answer,) = triage(table)
    assert any(sentence in verdict for verdict in answer["verdicts"])
    assert len(answer["scans"]) == table["scan_id"].nunique()


def test_features_come_from_records(tmp_path: Path):
    assert read_features(tmp_path) is None
    (tmp_path / "records").mkdir()
    for number, features in enumerate(({"white": 1.0, "noise": 0.1}, {"white": 2.0}, {})):
        record = {"scan_id": f"s{number}", "features": features, "distance": 0.5 if number else None}
        (tmp_path / "records" / f"s{number}.json").write_text(json.dumps(record))
    table = read_features(tmp_path)
    assert list(table.columns) == ["white", "distance"] and list(table.index) == ["s0", "s1"]
    assert np.isnan(table.loc["s0", "distance"])
