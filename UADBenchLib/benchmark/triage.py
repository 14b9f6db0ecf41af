"""Which scans to look at first, and which scores not to trust: scan scores, their uncertainty, and smoothing.

The score of a scan is the mean over models of its scan scores, each in robust standard deviations of the healthy scans
of other subjects. Its uncertainty is the spread over models, and how far the scan lies from the scans a model was
calibrated on. Whether leaving the most uncertain scans to a human helps (Ghesu et al. 2021, 2007.04258), and whether
averaging a score with those of similar scans does (Zhou et al. 2021, 2102.13269), is measured on the run itself and
said plainly, also when it does not. Nothing here is an operating point: no threshold is set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from UADBenchLib.bias.statistics import RESAMPLES, Bootstrap, interval, weighted_mean_of_pairs
from UADBenchLib.inference.weights import folds_of

COVERAGES = tuple(round(1 - 0.05 * step, 2) for step in range(11))
JUDGED_AT = 0.75
"""Coverage at which rejection is judged; chosen beforehand, as the paper's headline is for up to a quarter rejected."""

NEIGHBOURS = 10
SHARE = 0.4
TEMPERATURE = 0.1
LEAST_OF_EACH = 10
"""Fewest healthy and fewest lesion scans for a judgement."""

SCAN_COLUMNS = ("contrast", "scan_id", "subject", "label", "score", "spread", "distance", "smoothed_score")
CURVE_COLUMNS = (
    "contrast", "uncertainty", "coverage", "healthy", "lesion", "auc", "low", "high", "change", "change_low",
    "change_high", "dice",
)  # fmt: skip


def read_features(run: str | Path) -> pd.DataFrame | None:
    """Figures of each prepared scan (``features`` of its record) and its ``distance`` from the calibration scans of the
    models, relative to their limit and the largest of the models'; None when no record has any.
    """
    rows = {}
    for file in sorted((Path(run) / "records").glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("features"):
            rows[record["scan_id"]] = {**record["features"], "distance": record.get("distance")}
    if not rows:
        return None
    table = pd.DataFrame.from_dict(rows, orient="index").astype(float)
    # A figure that some scans do not have cannot be a coordinate.
    return table.loc[:, table.notna().all() | (table.columns == "distance")]


def triage(scans: pd.DataFrame, features: pd.DataFrame | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Score the scans of a run and measure rejection and smoothing, one answer a contrast.

    Parameters
    ----------
    scans : pandas.DataFrame
        The run's scans.csv at one operating point, which only the Dice of the scans kept depends on.
    features : pandas.DataFrame, optional
        One row a scan_id, numeric columns; the space in which scans are neighbours. A column ``distance`` is how far
        the scan lies from the scans of the models' calibration.
    seed : int
        Of the bootstrap by subject.

    Returns
    -------
    list of dict
        ``contrast``, ``models``, ``scans`` (rows of the per-scan table), ``curve`` (rows of the risk-coverage curve),
        ``smoothing``, ``verdicts`` (sentences).
    """
    answers = []
    for contrast, rows in scans.groupby("contrast", sort=True):
        wide = rows.pivot_table(index="scan_id", columns="model", values="scan_score", aggfunc="first").dropna()
        if wide.empty:
            continue
        known = rows.drop_duplicates("scan_id").set_index("scan_id").loc[wide.index]
        dice = rows.groupby("scan_id")["dice"].mean().loc[wide.index]
        answers.append(_answer(str(contrast), wide, known, dice, features, np.random.default_rng(seed)))
    return answers


def _answer(
    contrast: str,
    wide: pd.DataFrame,
    known: pd.DataFrame,
    dice: pd.Series,
    features: pd.DataFrame | None,
    generator: np.random.Generator,
) -> dict[str, Any]:
    subjects, labels = known["subject"].to_numpy(), known["label"].to_numpy()
    standard = standardised(wide.to_numpy(float), subjects, labels)
    table = pd.DataFrame({"scan_id": wide.index, "subject": subjects, "label": labels, "score": standard.mean(axis=1)})
    table["spread"] = standard.std(axis=1, ddof=1) if wide.shape[1] > 1 else np.nan
    space = None if features is None else features.reindex(wide.index)
    table["distance"] = space["distance"].to_numpy(float) if space is not None and "distance" in space else np.nan
    place = None if space is None else space.drop(columns="distance", errors="ignore").to_numpy(float)
    usable = place is not None and place.shape[1] > 1 and bool(np.isfinite(place).all())
    table["smoothed_score"] = smoothed(table["score"].to_numpy(), place, subjects) if usable else np.nan
    answer: dict[str, Any] = {"contrast": contrast, "models": list(wide.columns)}
    healthy, lesion = labels == "healthy", labels == "lesion"
    answer |= {"healthy": int(healthy.sum()), "lesion": int(lesion.sum()), "curve": [], "smoothing": None}
    answer["scans"] = table.assign(contrast=contrast).to_dict("records")
    if min(answer["healthy"], answer["lesion"]) < LEAST_OF_EACH:
        answer["verdicts"] = [
            f"{answer['healthy']} healthy and {answer['lesion']} lesion scans: at least {LEAST_OF_EACH} of each are "
            "needed to say whether rejection or smoothing helps."
        ]
        return answer
    judge = _Judge(labels, subjects, generator)
    verdicts = [_rejection(answer, judge, table, name, dice.to_numpy(float)) for name in ("spread", "distance")]
    answer["verdicts"] = [*verdicts, _smoothing(answer, judge, table)]
    return answer


def standardised(scores: np.ndarray, subjects: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Scan scores (scans, models) in robust standard deviations of the healthy scans, those of a subject's own fold
    left out; without healthy scans elsewhere, all scans stand in for them."""
    folds = np.array(folds_of([str(subject) for subject in subjects]))
    healthy = np.asarray(labels) == "healthy"
    result = np.empty_like(scores)
    for fold in set(folds.tolist()):
        others = scores[healthy & (folds != fold)]
        others = others if len(others) >= 3 else scores
        centre = np.median(others, axis=0)
        spread = 1.4826 * np.median(np.abs(others - centre), axis=0)
        result[folds == fold] = (scores[folds == fold] - centre) / np.maximum(spread, 1e-6)
    return result


def smoothed(scores: np.ndarray, features: np.ndarray, subjects: Sequence[str]) -> np.ndarray:
    """Average each score (scans,) with its ``NEIGHBOURS`` nearest other subjects' in feature space (scans, features).

    ``(1 - SHARE) s + SHARE sum_j w_j s_j`` with w the softmax of cosine similarities of standardised features over
    ``TEMPERATURE``.
    """
    spread = features.std(axis=0)
    place = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    place /= np.maximum(np.linalg.norm(place, axis=1, keepdims=True), 1e-9)
    similarity = place @ place.T
    subjects = np.asarray(subjects)
    similarity[subjects[:, None] == subjects[None, :]] = -np.inf
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    close = np.take_along_axis(similarity, nearest, axis=1)
    allowed = np.isfinite(close)
    weights = np.where(allowed, np.exp((close - close.max(axis=1, keepdims=True, initial=-1)) / TEMPERATURE), 0)
    total = weights.sum(axis=1)
    around = (weights * scores[nearest]).sum(axis=1) / np.maximum(total, 1e-12)
    return np.where(total > 0, (1 - SHARE) * scores + SHARE * around, scores)


class _Judge:
    """The area under the ROC curve of scores, lesion against healthy scans, with bootstrap draws by subject."""

    def __init__(self, labels: np.ndarray, subjects: np.ndarray, generator: np.random.Generator) -> None:
        clusters = np.unique(subjects, return_inverse=True)[1]
        self.lesion, self.healthy = labels == "lesion", labels == "healthy"
        self.clusters = int(clusters.max()) + 1
        self.weights = Bootstrap(generator, RESAMPLES).weights(clusters)

    def area(self, scores: np.ndarray, kept: np.ndarray) -> tuple[float, np.ndarray]:
        """The area among the scans ``kept`` (scans, bool), and its draws."""
        from sklearn.metrics import roc_auc_score

        lesion, healthy = self.lesion & kept, self.healthy & kept
        if not lesion.any() or not healthy.any():
            return np.nan, np.full(len(self.weights), np.nan)
        both = lesion | healthy
        pairs = np.sign(scores[lesion][:, None] - scores[healthy][None, :]) / 2 + 0.5
        draws = weighted_mean_of_pairs(pairs, self.weights[:, lesion], self.weights[:, healthy])
        return float(roc_auc_score(lesion[both], scores[both])), draws


def _rejection(answer: dict[str, Any], judge: _Judge, table: pd.DataFrame, name: str, dice: np.ndarray) -> str:
    """Add the risk-coverage curve of one uncertainty to the answer; return what to say of it."""
    label = {"spread": "the spread over models", "distance": "the distance from the calibration scans"}[name]
    uncertainty, scores = table[name].to_numpy(float), table["score"].to_numpy(float)
    if not np.isfinite(uncertainty).all():
        why = "the run has one model" if name == "spread" else "the run does not have it for every scan"
        return f"Rejection by {label} cannot be measured: {why}."
    order = np.argsort(uncertainty, kind="stable")
    everything, draws = judge.area(scores, np.ones(len(scores), bool))
    for coverage in COVERAGES:
        kept = np.zeros(len(scores), bool)
        kept[order[: max(1, round(coverage * len(scores)))]] = True
        area, some = judge.area(scores, kept)
        low, high = interval(some, judge.clusters)
        change_low, change_high = interval(some - draws, judge.clusters)
        overlap = dice[kept & judge.lesion & np.isfinite(dice)]
        answer["curve"].append(
            {
                "contrast": answer["contrast"], "uncertainty": name, "coverage": coverage,
                "healthy": int((kept & judge.healthy).sum()), "lesion": int((kept & judge.lesion).sum()),
                "auc": area, "low": low, "high": high, "change": area - everything, "change_low": change_low,
                "change_high": change_high, "dice": float(overlap.mean()) if overlap.size else np.nan,
            }
        )  # fmt: skip
    row = next(r for r in answer["curve"] if (r["uncertainty"], r["coverage"]) == (name, JUDGED_AT))
    what = f"Leaving out the {1 - JUDGED_AT:.0%} of scans that {label} calls most uncertain"
    kept_of = (
        f"{row['healthy']} of {answer['healthy']} healthy and {row['lesion']} of {answer['lesion']} lesion scans kept"
    )
    return f"{what} ({kept_of}) {_verdict(row['change'], row['change_low'], row['change_high'])}"


def _smoothing(answer: dict[str, Any], judge: _Judge, table: pd.DataFrame) -> str:
    """Add what smoothing does to the answer; return what to say of it."""
    if not np.isfinite(table["smoothed_score"]).all():
        return "Smoothing over neighbours cannot be measured: the run has no features of every scan."
    kept = np.ones(len(table), bool)
    before, draws_before = judge.area(table["score"].to_numpy(float), kept)
    after, draws_after = judge.area(table["smoothed_score"].to_numpy(float), kept)
    low, high = interval(draws_after - draws_before, judge.clusters)
    answer["smoothing"] = {"auc": before, "auc_smoothed": after, "change": after - before, "low": low, "high": high}
    return f"Averaging scores over the {NEIGHBOURS} nearest scans {_verdict(after - before, low, high)}"


def _verdict(change: float, low: float, high: float) -> str:
    numbers = f"the area under the ROC curve changes by {change:+.3f} ({low:+.3f} to {high:+.3f})"
    if low > 0:
        return f"helps: {numbers}."
    return f"harms: {numbers}." if high < 0 else f"does not measurably help: {numbers}."
