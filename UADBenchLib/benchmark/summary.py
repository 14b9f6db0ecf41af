"""From the records of a run to its tables: rows collected and sorted, means with intervals over resampled subjects.

Scans of one person are not independent, so that intervals resample subjects. Per-scan metrics are means over scans;
lesion-wise ones pool the lesions and findings of a group, which does not let a scan with one lesion weigh as much as
one with fifty. What the empty-case policy leaves undefined counts nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.benchmark import tables
from UADBenchLib.benchmark.tables import Run, write_table

METRICS = (
    "dice", "best_dice", "ap", "auroc_low", "healthy_fpr", "mask_ml", "false_positive_ml", "false_positive_count",
    "precision", "recall", "f1", "hd95_mm", "scan_score",
)  # fmt: skip
"""Columns of scans.csv that are averaged over scans."""
GROUPS = ("dataset", "label", "contrast", "site", "scanner", "sex", "lesion_type")
"""Columns that scans are grouped by, beside all of them together."""
DRAWS = 1000
QUARTILES = 4

Row = Mapping[str, Any]


def write_tables(out: Path, run: Run, scan_ids: Sequence[str]) -> dict[str, int]:
    """Write all tables of a run from its records; returns how many scans gave results and how many failed."""
    rows: dict[str, list[Row]] = {name: [] for name in ("scans", "lesions", "findings", "timing", "failures")}
    for scan_id in scan_ids:
        record = json.loads((out / "records" / f"{scan_id}.json").read_text(encoding="utf-8"))
        for name in rows:
            rows[name] += record[name]
    write_table(out, tables.SCANS, rows["scans"])
    write_table(out, tables.LESIONS, rows["lesions"])
    write_table(out, tables.FINDINGS, rows["findings"])
    write_table(out, tables.TIMING, rows["timing"])
    write_table(out, tables.FAILURES, rows["failures"])
    write_table(out, tables.SUMMARY, summarise(rows["scans"], rows["lesions"], rows["findings"], run.seed))
    failed = {row["scan_id"] for row in rows["failures"]}
    return {"done": len(scan_ids) - len(failed), "failed": len(failed)}


def summarise(
    scans: Sequence[Row], lesions: Sequence[Row], findings: Sequence[Row], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the summary.

    Parameters
    ----------
    scans, lesions, findings : sequence of mapping
        Rows of the tables of these names; undefined values are None.
    seed : int
        Of the resampling.
    """
    parts = [_by(table, "model", "operating_point") for table in (scans, lesions, findings)]
    for (model, point), own in sorted(parts[0].items()):
        who = {"model": model, "operating_point": point}
        hit, flagged = parts[1].get((model, point), []), parts[2].get((model, point), [])
        for group in ("all", *GROUPS):
            for value, members in _groups(own, group):
                names = {row["scan_id"] for row in members}
                inside = [[row for row in rows if row["scan_id"] in names] for rows in (hit, flagged)]
                for entry in (*_means(members, seed), *_pooled(*inside, seed)):
                    yield {"group": group, "value": value, **who, **entry}
        for value, small, found in _volume_quartiles(hit, flagged):
            for entry in _pooled(small, found, seed):
                yield {"group": "lesion_volume", "value": value, **who, **entry}


def _by(rows: Sequence[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    parts: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(row[name] for name in columns), []).append(row)
    return parts


def _groups(rows: Sequence[Row], group: str) -> list[tuple[str, list[Row]]]:
    if group == "all":
        return [("", list(rows))]
    return [(value, members) for (value,), members in sorted(_by(rows, group).items()) if value]


def _means(rows: Sequence[Row], seed: int) -> Iterator[dict[str, Any]]:
    """Mean of every metric over the scans where it is defined."""
    for metric in METRICS:
        defined = [row for row in rows if row.get(metric) is not None]
        if defined:
            values = np.array([[row[metric], 1.0] for row in defined])
            yield _interval(metric, defined, values, lambda sums: sums[:, 0] / sums[:, 1], seed)


def _pooled(lesions: Sequence[Row], findings: Sequence[Row], seed: int) -> Iterator[dict[str, Any]]:
    """Recall over lesions, precision over findings, and the harmonic mean of the two."""
    judged = [row for row in findings if row["true"] is not None]
    recall = [[row["found"], 1, 0, 0] for row in lesions]
    precision = [[0, 0, row["true"], 1] for row in judged]
    if lesions:
        yield _interval("lesion_recall", lesions, np.array(recall, float), lambda s: _ratio(s[:, 0], s[:, 1]), seed)
    if judged:
        yield _interval(
            "lesion_precision", judged, np.array(precision, float), lambda s: _ratio(s[:, 2], s[:, 3]), seed
        )
    if lesions and judged:
        both = np.array([*recall, *precision], float)
        yield _interval("lesion_f1", [*lesions, *judged], both, _harmonic, seed)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.where(below > 0, above / np.maximum(below, 1), np.nan)


def _harmonic(sums: np.ndarray) -> np.ndarray:
    recall, precision = _ratio(sums[:, 0], sums[:, 1]), _ratio(sums[:, 2], sums[:, 3])
    total = recall + precision
    return np.where(
        total > 0, 2 * recall * precision / np.where(total > 0, total, 1), np.where(total == 0, 0.0, np.nan)
    )


def _interval(
    metric: str, rows: Sequence[Row], values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> dict[str, Any]:
    """A statistic of column sums (rows, columns), with the 95 % interval of resampled subjects.

    With a single subject there is nothing to resample, and no interval.
    """
    subjects, index = np.unique([row["subject"] for row in rows], return_inverse=True)
    sums = np.zeros((len(subjects), values.shape[1]))
    np.add.at(sums, index, values)
    entry = {
        "metric": metric,
        "mean": float(statistic(sums.sum(axis=0, keepdims=True))[0]),
        "low": None,
        "high": None,
        "n": len(rows),
        "n_subjects": len(subjects),
    }
    if len(subjects) > 1:
        rng = np.random.default_rng(seed)
        times = rng.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)), size=DRAWS)
        # einsum adds in one order, whatever the number of threads.
        draws = statistic(np.einsum("ds,sk->dk", times.astype(float), sums))
        draws = draws[~np.isnan(draws)]
        if draws.size:
            low, high = np.quantile(draws, (0.025, 0.975))
            entry |= {"low": float(low), "high": float(high)}
    return entry


def _volume_quartiles(lesions: Sequence[Row], findings: Sequence[Row]) -> Iterator[tuple[str, list[Row], list[Row]]]:
    """Lesions in quarters by volume, and the findings in the same limits of their own volume.

    The limits are the quartiles of the lesions; findings beyond the smallest and largest lesion go to the outer
    quarters. Nothing where there are fewer than four different volumes.
    """
    volumes = np.array([row["volume_ml"] for row in lesions], float)
    if len(set(volumes.tolist())) < QUARTILES:
        return
    limits = np.quantile(volumes, [0.25, 0.5, 0.75])
    edges = [f"{edge:.3g}" for edge in (volumes.min(), *limits, volumes.max())]
    for number in range(QUARTILES):
        value = f"{number + 1}: {edges[number]} to {edges[number + 1]} ml"
        small, found = (
            [row for row in rows if int(np.searchsorted(limits, row["volume_ml"])) == number]
            for rows in (lesions, findings)
        )
        yield value, small, found
