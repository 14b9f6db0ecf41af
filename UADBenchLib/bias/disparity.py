"""What groups have on average, how far they lie apart, and what it costs to give each group a threshold of its own.

The gap between groups is fairlearn's; beside it stands the gap that shuffled group labels reach, since the largest of
several means minus the smallest is above zero by chance alone. Under equal thresholds groups differ in false positives;
the remedy reads a threshold for each group off its own healthy scans so that the rates agree, judged on scans that the
threshold was not read off, and its cost is what happens to Dice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from UADBenchLib.bias.analysis import DETECTION, DICE, FALSE_POSITIVES, LEAST_GROUP, SMALL_CELL, subset
from UADBenchLib.bias.statistics import Bootstrap, mean_interval
from UADBenchLib.bias.tables import Tables
from UADBenchLib.evaluation.metrics import Histogram

GROUPINGS = ("scanner", "site", "sex", "age_band")
LEAST_FOR_THRESHOLD = 5
"""Groups with fewer healthy subjects keep the shared threshold."""

GROUP_COLUMNS = (
    "model", "operating_point", "outcome", "grouping", "group", "rows", "subjects", "mean", "low", "high", "median",
    "small",
)  # fmt: skip
DISPARITY_COLUMNS = (
    "model", "operating_point", "outcome", "grouping", "groups", "lowest_group", "highest_group", "difference",
    "by_chance", "ratio", "rows", "subjects", "smallest_group", "small",
)  # fmt: skip
THRESHOLD_COLUMNS = (
    "model", "operating_point", "grouping", "group", "healthy_subjects", "threshold_shared", "threshold_group",
    "fpr_shared", "fpr_group", "lesion_scans", "dice_shared", "dice_group", "dice_change", "low", "high", "note",
)  # fmt: skip


def group_means(tables: Tables, bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """Mean of each outcome in each group, with its interval and how many rows and subjects it rests on.

    Parameters
    ----------
    tables : Tables
        Rows of one model at one operating point.
    bootstrap : Bootstrap
    """
    for outcome, table, column, more in _outcomes(tables):
        for grouping in (*GROUPINGS, *more):
            for group, rows in table.dropna(subset=[grouping]).groupby(grouping, sort=True, observed=True):
                values = rows[column].to_numpy(float)
                mean, low, high = mean_interval(values, rows["subject"], bootstrap)
                subjects = int(rows["subject"].nunique())
                yield {
                    "outcome": outcome, "grouping": grouping, "group": str(group), "rows": len(rows),
                    "subjects": subjects, "mean": mean, "low": low, "high": high, "median": float(np.median(values)),
                    "small": subjects < SMALL_CELL,
                }  # fmt: skip


def disparities(tables: Tables, bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """The gap between groups of each outcome and grouping, for the rows of one model at one operating point."""
    for outcome, table, column, _ in _outcomes(tables):
        for grouping in GROUPINGS:
            row = _disparity(table, column, grouping, bootstrap)
            if row is not None:
                yield {"outcome": outcome, "grouping": grouping, **row}


def _outcomes(tables: Tables) -> list[tuple[str, pd.DataFrame, str, tuple[str, ...]]]:
    """Name, rows and column of each outcome, and by what it is grouped besides ``GROUPINGS``."""
    lesions = tables.lesions.dropna(subset=["found"])
    return [
        (FALSE_POSITIVES, subset(tables.scans, "healthy", "healthy_fpr"), "healthy_fpr", ()),
        (DICE, subset(tables.scans, "lesion", "dice"), "dice", ("lesion_type",)),
        (DETECTION, lesions, "found", ("lesion_type", "volume_quarter", "contrast_quarter")),
    ]


def _disparity(table: pd.DataFrame, column: str, grouping: str, bootstrap: Bootstrap) -> dict[str, Any] | None:
    """The gap between the groups with enough subjects; None when fewer than two have."""
    from fairlearn.metrics import MetricFrame, mean_prediction

    sizes = table.groupby(grouping, observed=True)["subject"].nunique()
    sizes = sizes[sizes >= LEAST_GROUP]
    rows = table[table[grouping].isin(sizes.index)]
    if len(sizes) < 2:
        return None
    values, groups = rows[column].to_numpy(float), rows[grouping].astype(str).to_numpy()
    frame = MetricFrame(metrics=mean_prediction, y_true=np.zeros_like(values), y_pred=values, sensitive_features=groups)
    return {
        "groups": len(sizes),
        "lowest_group": frame.by_group.idxmin(),
        "highest_group": frame.by_group.idxmax(),
        "difference": float(frame.difference()),
        "by_chance": _gap_by_chance(values, groups, rows["subject"].to_numpy(), bootstrap),
        "ratio": float(frame.ratio()) if frame.by_group.max() > 0 else np.nan,
        "rows": len(rows),
        "subjects": int(rows["subject"].nunique()),
        "smallest_group": int(sizes.min()),
        "small": bool(sizes.min() < SMALL_CELL),
    }


def _gap_by_chance(values: np.ndarray, groups: np.ndarray, subjects: np.ndarray, bootstrap: Bootstrap) -> float:
    """The gap that 5 % of shuffles of the groups among subjects exceed."""
    names, first, of_row = np.unique(subjects, return_index=True, return_inverse=True)
    codes = np.unique(groups[first], return_inverse=True)[1]
    count, total = np.bincount(of_row), np.bincount(of_row, weights=values)
    shuffled = bootstrap.generator.permuted(np.tile(codes, (bootstrap.resamples, 1)), axis=1)
    means = np.stack([((shuffled == c) @ total) / np.maximum((shuffled == c) @ count, 1) for c in np.unique(codes)])
    return float(np.quantile(np.ptp(means, axis=0), 0.95))


def group_thresholds(
    scans: pd.DataFrame, histograms: Mapping[str, Histogram], grouping: str, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Thresholds at which every group has the false-positive rate that all have together, and what they do to Dice.

    Everything is counted from the histograms, before findings below the least volume are dropped, so that shared and
    own thresholds compare like with like.

    Parameters
    ----------
    scans : pandas.DataFrame
        Rows of one model at one operating point.
    histograms : mapping
        By scan_id; scans without one do not count.
    grouping : str
        Column of the groups.

    Returns
    -------
    list of dict
        One row a group; empty when fewer than two groups have ``LEAST_FOR_THRESHOLD`` healthy subjects.
    """
    scans = scans[scans["scan_id"].isin(list(histograms))].dropna(subset=[grouping])
    healthy = scans[scans["label"] == "healthy"]
    sizes = healthy.groupby(grouping, observed=True)["subject"].nunique()
    if (sizes >= LEAST_FOR_THRESHOLD).sum() < 2:
        return []
    curves = np.stack([_false_positive_curve(histograms[scan]) for scan in healthy["scan_id"]])
    edges = next(iter(histograms.values())).edges
    shared = float(scans["threshold"].iloc[0])
    at_shared = _index(edges, shared)
    target = float(curves[:, at_shared].mean())
    rows = []
    for group, members in scans.groupby(grouping, observed=True):
        inside = (healthy[grouping] == group).to_numpy()
        subjects = healthy["subject"].to_numpy()[inside]
        known = len(set(subjects)) >= LEAST_FOR_THRESHOLD
        own = _first_at(curves[inside].mean(axis=0), target) if known else at_shared
        rates = _held_out(curves[inside], subjects, target) if known else curves[inside][:, at_shared]
        rows.append(
            {
                "grouping": grouping,
                "group": str(group),
                "healthy_subjects": len(set(subjects)),
                "threshold_shared": shared,
                "threshold_group": float(edges[own]) if known else shared,
                "fpr_shared": _mean(curves[inside][:, at_shared]),
                "fpr_group": _mean(rates),
                **_dice_cost(members, histograms, at_shared, own, bootstrap),
                "note": "" if known else "too few healthy subjects: the shared threshold is kept",
            }
        )
    return rows


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _false_positive_curve(histogram: Histogram) -> np.ndarray:
    """Share of the voxels outside the reference above each edge, shape (edges,)."""
    counts = histogram.negatives
    return counts[::-1].cumsum()[::-1][1:] / max(1, int(counts.sum()))


def _index(edges: np.ndarray, threshold: float) -> int:
    """The edge at or below a threshold, so that rates are never understated."""
    return int(np.clip(np.searchsorted(edges, threshold, side="right") - 1, 0, len(edges) - 1))


def _first_at(curve: np.ndarray, target: float) -> int:
    """The first edge at which a falling curve is at most ``target``."""
    reached = np.flatnonzero(curve <= target)
    return int(reached[0]) if reached.size else len(curve) - 1


def _held_out(curves: np.ndarray, subjects: Sequence[str], target: float) -> np.ndarray:
    """False-positive rate of each scan at the threshold that the group's other subjects give."""
    subjects = np.asarray(subjects)
    rates = np.empty(len(curves))
    for subject in set(subjects.tolist()):
        own = subjects == subject
        rates[own] = curves[own][:, _first_at(curves[~own].mean(axis=0), target)]
    return rates


def _dice_cost(
    members: pd.DataFrame, histograms: Mapping[str, Histogram], shared: int, own: int, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Mean Dice of a group's lesion scans at both thresholds, and the interval of the mean change."""
    ill = members[members["label"] == "lesion"]
    curves = [histograms[scan].dice_curve() for scan in ill["scan_id"]]
    pairs = np.array([(curve[shared], curve[own]) for curve in curves]).reshape(-1, 2)
    defined = np.isfinite(pairs).all(axis=1)
    pairs, subjects = pairs[defined], ill["subject"].to_numpy()[defined]
    if not len(pairs):
        return {"lesion_scans": 0}
    change, low, high = mean_interval(pairs[:, 1] - pairs[:, 0], subjects, bootstrap)
    return {
        "lesion_scans": len(pairs), "dice_shared": float(pairs[:, 0].mean()), "dice_group": float(pairs[:, 1].mean()),
        "dice_change": change, "low": low, "high": high,
    }  # fmt: skip
