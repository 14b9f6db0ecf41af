"""The report of a benchmark run: one HTML page that needs no other file, and its tables as CSV beside it.

Figures and tables are those that a study of anomaly detection reports, for the user's own cohort: Dice at estimated and
at best thresholds, precision and recall, which lesions are found, healthy false positives by scanner, age and sex, what
is biased, triage, and cases. It describes a run and draws no conclusion about a device. The picture of a single scan is
``figure``'s, the statistics are ``bias``'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from UADBenchLib import __version__
from UADBenchLib.benchmark.tables import FAILURES, Run, read_histogram, read_run, read_table
from UADBenchLib.benchmark.triage import CURVE_COLUMNS, JUDGED_AT, SCAN_COLUMNS, read_features, triage
from UADBenchLib.bias.analysis import DETECTION, DICE, FALSE_POSITIVES
from UADBenchLib.bias.files import analyse_run, digest_of, rounded
from UADBenchLib.bias.statistics import Bootstrap, mean_interval
from UADBenchLib.bias.tables import QUARTERS, Tables, read_tables
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.evaluation.plain import plain
from UADBenchLib.reports import charts
from UADBenchLib.reports.cases import Case, draw_cases
from UADBenchLib.reports.detection import environment
from UADBenchLib.reports.staging import staged
from UADBenchLib.reports.wording import effect_name, label_of, notes_of, tests_of
from UADBenchLib.scan import Progress
from UADBenchLib.writing import write_csv, write_text

ALL = "all lesion scans"
DICE_COLUMNS = (
    "set", "model", "operating_point", "mean", "low", "high", "optimal", "optimal_threshold", "scans", "subjects",
)  # fmt: skip
CURVE_POINTS = 200
MODELS_SHOWN = 8
METRICS = (
    ("dice", "Dice", "lesion", "{:.3f}"),
    ("ap", "Average precision", "lesion", "{:.3f}"),
    ("recall", "Lesion recall, a scan", "lesion", "{:.2f}"),
    ("precision", "Finding precision, a scan", "lesion", "{:.2f}"),
    ("hd95_mm", "95th percentile surface distance, mm", "lesion", "{:.1f}"),
    ("healthy_fpr", "Healthy voxels flagged", "healthy", "%"),
    ("false_positive_ml", "False findings in healthy scans, ml", "healthy", "{:.1f}"),
    ("false_positive_count", "False findings in healthy scans", "healthy", "{:.1f}"),
)
SCALING_MEASURES = {
    "dice": ("Dice", 1.0), "best_dice": ("best Dice of the bare map", 1.0), "ap": ("average precision", 1.0),
    "healthy_fpr": ("healthy voxels flagged, %", 100.0),
}  # fmt: skip
UNCERTAINTIES = {"spread": "spread over models", "distance": "distance from calibration scans"}


@dataclass(frozen=True)
class _Source:
    """What a report is made from: the run, its tables, and which models and operating point the figures show."""

    folder: Path
    run: Run
    tables: Tables
    models: tuple[str, ...]
    point: str

    @property
    def scans(self) -> pd.DataFrame:
        """Rows of the models shown at the operating point shown."""
        return self._of(self.tables.scans)

    @property
    def lesions(self) -> pd.DataFrame:
        return self._of(self.tables.lesions)

    def _of(self, table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["operating_point"] == self.point) & table["model"].isin(self.models)]


def write_report(
    folder: str | Path,
    *,
    operating_point: str | None = None,
    scaling: str | Path | None = None,
    cohort: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``report.html``, its tables and its figures (SVG) into the folder of a run.

    Parameters
    ----------
    folder : path
        Of `uadbench benchmark`. The bias analysis is done first where it is missing or older than the run's tables.
    operating_point : str, optional
        Shown in the figures; default: the run's first.
    scaling : path, optional
        Folder of `uadbench scaling` whose curve is shown; default: the run's own, if it has one.
    cohort, data : path, optional
        What the run was made from; then the best and the worst cases are drawn anew.

    Returns
    -------
    list of pathlib.Path
        What was written, the page first.

    Raises
    ------
    InputError
        ``RUN_NOT_FOUND``, ``RUN_INVALID``, ``RUN_EMPTY``, ``OPERATING_POINT_UNKNOWN``.
    """
    source = _source(Path(folder), operating_point, scaling)
    bias = _bias(source.folder, progress)
    dice, curves = _from_histograms(source, progress)
    judged = triage(source.scans, read_features(source.folder))
    cases = draw_cases(source.folder, source.scans, cohort, data, device, progress)
    with staged(source.folder) as stage:
        page = stage.path("report.html")
        for name, rows, columns in (
            ("report_dice.csv", dice, DICE_COLUMNS),
            ("report_metrics.csv", list(_metric_rows(source)), METRIC_COLUMNS),
            ("report_precision_recall.csv", _curve_rows(curves), ("model", "threshold", "recall", "precision")),
            ("triage_scans.csv", [row for one in judged for row in one["scans"]], SCAN_COLUMNS),
            ("triage_curve.csv", [row for one in judged for row in one["curve"]], CURVE_COLUMNS),
        ):
            write_csv(stage.path(name), rounded(rows), columns)
        curve = _scaling(source.folder, scaling)
        figures = _figures(source, bias, dice, curves, judged, curve)
        for name, svg in figures.items():
            write_text(stage.path(f"figure_{name}.svg"), svg)
        tables = sorted({path.name for path in (*source.folder.glob("*.csv"), *stage.files) if path.suffix == ".csv"})
        content = _content(source, bias, dice, judged, cases, curve, figures)
        write_text(page, environment().get_template("benchmark.html.j2").render(**content, files=tables))
    return stage.files


def _source(folder: Path, point: str | None, scaling: str | Path | None) -> _Source:
    run, tables = read_run(folder), read_tables(folder)
    if tables.scans.empty:
        raise InputError("RUN_EMPTY", f"no scan of {folder} gave a result", "see its failures.csv")
    if point is not None and point not in run.operating_points:
        known = ", ".join(run.operating_points)
        raise InputError("OPERATING_POINT_UNKNOWN", f"the run has no {point!r}", f"choose of {known}")
    models = list(run.models)
    own = _scaling(folder, None) if scaling is None else None
    if own is not None:  # of a scaling experiment, the models of the largest share stand for the method
        largest = max(cell["fraction"] for cell in own["cells"])
        models = [cell["model"] for cell in own["cells"] if cell["fraction"] == largest]
    means = tables.scans[tables.scans["model"].isin(models)].groupby("model")["dice"].mean()
    models = sorted(models, key=lambda model: -np.nan_to_num(means.get(model, np.nan), nan=-1))
    return _Source(folder, run, tables, tuple(models[:MODELS_SHOWN]), point or run.operating_points[0])


def _bias(folder: Path, progress: Progress | None) -> dict[str, Any]:
    """The bias analysis of the run as it is now."""
    file = folder / "bias.json"
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known.get("tables_sha256") == digest_of(folder):
            return known
    return plain(analyse_run(folder, progress=progress))


def _scaling(folder: Path, other: str | Path | None) -> dict[str, Any] | None:
    file = Path(other or folder) / "scaling.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    if other is not None:
        raise InputError("RUN_NOT_FOUND", f"{other} holds no scaling.json", "give the folder of `uadbench scaling`")
    return None


def _sets(ill: pd.DataFrame) -> dict[str, pd.Series]:
    """The sets of lesion scans that are told apart: all, each data set, and each lesion type that is none of these."""
    sets = {ALL: pd.Series(True, index=ill.index)}
    for column in ("dataset", "lesion_type"):
        for value in sorted(ill[column].dropna().unique()):
            members = ill[column] == value
            if not any(members.equals(other) for other in sets.values()):
                sets[str(value)] = members
    return sets


def _from_histograms(
    source: _Source, progress: Progress | None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Dice rows and precision-recall curves; every histogram is read once, none is kept."""
    ill = source.scans[(source.scans["label"] == "lesion") & source.scans["dice"].notna()]
    rows, curves = [], {}
    for number, model in enumerate(source.models):
        own = ill[ill["model"] == model]
        if own.empty:
            continue
        pooled, sums, sets = None, {}, _sets(own)
        for index, scan_id in own["scan_id"].items():
            histogram = read_histogram(source.folder, scan_id, model)
            curve = histogram.dice_curve()  # before the first histogram takes up the others
            pooled = histogram if pooled is None else pooled.merge(histogram)
            for name, members in sets.items():
                if members[index]:
                    sums[name] = sums.get(name, 0) + curve
        rows += _dice_rows(source, model, own, sets, sums, pooled.edges)
        curves[model] = _precision_recall(pooled, float(own["threshold"].iloc[0]))
        if progress is not None:
            progress("reading histograms", (number + 1) / len(source.models))
    order = list(dict.fromkeys(row["set"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["set"])), curves


def _dice_rows(
    source: _Source, model: str, own: pd.DataFrame, sets: Mapping[str, pd.Series], sums: Mapping[str, np.ndarray],
    edges: np.ndarray,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    for name, members in sets.items():
        scans = own[members]
        mean, low, high = mean_interval(scans["dice"].to_numpy(float), scans["subject"], _bootstrap())
        best = int(np.argmax(np.where(edges[: len(sums[name])] >= 0, sums[name], -1)))  # below 0 all is flagged
        yield {
            "set": name, "model": model, "operating_point": source.point, "mean": mean, "low": low, "high": high,
            "optimal": float(sums[name][best] / len(scans)), "optimal_threshold": float(edges[best]),
            "scans": len(scans), "subjects": int(scans["subject"].nunique()),
        }  # fmt: skip


def _bootstrap() -> Bootstrap:
    return Bootstrap(np.random.default_rng(0))


def _precision_recall(histogram: Histogram, threshold: float) -> dict[str, Any]:
    """Precision and recall at every edge, from the highest; thinned to what a figure shows."""
    true = histogram.positives[::-1].cumsum()[:-1]
    flagged = true + histogram.negatives[::-1].cumsum()[:-1]
    some = np.flatnonzero(flagged > 0)
    recall, precision = true[some] / max(1, histogram.positives.sum()), true[some] / flagged[some]
    thresholds = histogram.edges[::-1][some]
    at = int(np.clip(np.searchsorted(-thresholds, -threshold, side="left"), 0, len(some) - 1))
    wanted = np.linspace(recall.min(), recall.max(), CURVE_POINTS)
    kept = np.unique(np.clip(np.searchsorted(recall, wanted), 0, len(some) - 1))
    total = histogram.positives.sum() + histogram.negatives.sum()
    return {
        "recall": recall[kept], "precision": precision[kept], "threshold": thresholds[kept],
        "at": (float(recall[at]), float(precision[at])),
        "prevalence": float(histogram.positives.sum() / max(1, total)),
    }  # fmt: skip


def _curve_rows(curves: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"model": model, "threshold": float(t), "recall": float(r), "precision": float(p)}
        for model, curve in curves.items()
        for t, r, p in zip(curve["threshold"], curve["recall"], curve["precision"], strict=True)
    ]


METRIC_COLUMNS = ("model", "operating_point", "metric", "label", "mean", "low", "high", "scans", "subjects")


def _metric_rows(source: _Source) -> Iterator[dict[str, Any]]:
    """Means of the main metrics for every model and operating point."""
    for (model, point), rows in source.tables.scans.groupby(["model", "operating_point"], sort=True):
        for metric, _, label, _ in METRICS:
            own = rows[(rows["label"] == label) & rows[metric].notna()]
            if len(own):
                values = own[metric].to_numpy(float)
                mean, low, high = mean_interval(values, own["subject"], _bootstrap())
                yield {
                    "model": model, "operating_point": point, "metric": metric, "label": label, "mean": mean,
                    "low": low, "high": high, "scans": len(own), "subjects": int(own["subject"].nunique()),
                }  # fmt: skip


def _content(
    source: _Source,
    bias: dict[str, Any],
    dice: list[dict[str, Any]],
    judged: list[dict[str, Any]],
    cases: list[Case],
    scaling: dict[str, Any] | None,
    figures: dict[str, str],
) -> dict[str, Any]:
    """Everything that the page's template names."""
    scans = source.tables.scans
    return {
        "version": __version__,
        "run": source.run,
        "models": source.models,
        "left_out": len(source.run.models) - len(source.models),
        "point": source.point,
        "facts": _facts(source),
        "cards": [_card(source, model) for model in source.models],
        "metrics": _metric_table(source),
        "dice": dice,
        "figures": {name: charts.as_data_uri(svg) for name, svg in figures.items()},
        "tests": _matrix(source, _shown(source, tests_of(bias)), ("outcome", "by", "how"), _test_cell),
        "found": sum(row["found"] for row in _shown(source, tests_of(bias))),
        "notes": notes_of(bias, source.point),
        "disparities": _matrix(source, _shown(source, bias["disparities"]), ("outcome", "grouping"), _gap_cell),
        "remedies": _matrix(source, _shown(source, bias["group_thresholds"]), ("grouping", "group"), _remedy_cell),
        "verdicts": [(one["contrast"], len(one["models"]), one["verdicts"]) for one in judged],
        "judged_at": JUDGED_AT,
        "scaling": scaling,
        "cases": cases,
        "bias_method": bias["method"],
        "failures": read_table(source.folder, FAILURES).to_dict("records"),
        "unknown": int(scans.loc[scans["label"] == "unknown", "scan_id"].nunique()),
    }


def _facts(source: _Source) -> list[tuple[str, str]]:
    scans = source.tables.scans.drop_duplicates("scan_id")
    counts = scans["label"].value_counts()
    ages = scans["age"].dropna()
    span = f"{ages.min():.0f} to {ages.max():.0f} years ({len(ages)} scans)" if len(ages) else "not known"
    return [
        ("Cohort", source.run.cohort),
        (
            "Scans",
            f"{len(scans)} scans of {scans['subject'].nunique()} subjects evaluated, {source.run.scans} asked for",
        ),
        ("Labels", ", ".join(f"{counts[name]} {name}" for name in ("healthy", "lesion", "unknown") if name in counts)),
        ("Age", span),
        ("Scanners", _listed(scans["scanner"])),
        ("Sites", _listed(scans["site"])),
        ("Lesion types", _listed(scans["lesion_type"])),
        ("Operating point shown", source.point),
        ("Fingerprint of the cohort", source.run.fingerprint),
    ]


def _listed(values: pd.Series) -> str:
    counts = values.value_counts()
    text = ", ".join(f"{name} ({count})" for name, count in counts.head(8).items())
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    return f"{text}{more}" if text else "not known"


def _card(source: _Source, model: str) -> dict[str, Any]:
    rows = source.scans[source.scans["model"] == model]
    ill = rows.loc[(rows["label"] == "lesion"), "dice"].dropna()
    healthy = rows.loc[rows["label"] == "healthy", "healthy_fpr"].dropna()
    return {
        "model": model, "dice": ill.mean() if len(ill) else None, "scans": len(ill),
        "rate": healthy.mean() if len(healthy) else None, "healthy": len(healthy),
    }  # fmt: skip


def _metric_table(source: _Source) -> list[dict[str, Any]]:
    """One row a metric and operating point, with a text for each model."""
    rows = {(row["metric"], row["operating_point"], row["model"]): row for row in _metric_rows(source)}
    table = []
    for metric, label, _, form in METRICS:
        for point in source.run.operating_points:
            values = [_with_interval(rows.get((metric, point, model)), form) for model in source.models]
            if any(values):
                table.append({"label": label, "point": "any" if metric == "ap" else point, "values": values})
            if metric == "ap":
                break  # which does not depend on the operating point
    return table


def _with_interval(row: Mapping[str, Any] | None, form: str) -> dict[str, Any] | None:
    if row is None:
        return None
    text = _percent if form == "%" else form.format
    bounds = "" if not np.isfinite(row["low"]) else f"{text(row['low'])} to {text(row['high'])}"
    return {"mean": text(row["mean"]), "interval": bounds, "n": row["scans"]}


def _shown(source: _Source, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["operating_point"] == source.point and row["model"] in source.models]


def _matrix(
    source: _Source,
    rows: Sequence[Mapping[str, Any]],
    key: tuple[str, ...],
    cell: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Rows as a table with a column a model: names of the row, and for each model ``main``, ``details``, ``strong``."""
    cells: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        cells.setdefault(tuple(label_of(row[name]) for name in key), {})[row["model"]] = cell(row)
    return [{"names": names, "cells": [own.get(model) for model in source.models]} for names, own in cells.items()]


def _test_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    n = f"{row['p']}, n = {row['subjects']}{', small groups' if row['small'] else ''}"
    (main, interval), *others = row["effects"]
    details = [interval, *(f"{size} ({span})" for size, span in others), n]
    return {"main": main, "details": details, "strong": row["found"]}


def _gap_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    form = _percent if row["outcome"] == FALSE_POSITIVES else "{:.3f}".format
    return {
        "main": form(row["difference"]),
        "details": [
            f"lowest {row['lowest_group']}",
            f"highest {row['highest_group']}",
            f"by chance up to {form(row['by_chance'])}",
            f"n = {row['subjects']}, smallest {row['smallest_group']}",
        ],
        "strong": row["difference"] > row["by_chance"],
    }


def _remedy_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    healthy = f"z > {row['threshold_shared']:.2f} → {row['threshold_group']:.2f}, n = {row['healthy_subjects']}"
    details = [row["note"] or healthy]
    if row["lesion_scans"]:
        bounds = "no interval" if row["low"] is None else f"{_signed(row['low'])} to {_signed(row['high'])}"
        details.append(f"Dice {row['dice_shared']:.3f} {_signed(row['dice_change'])}")
        details.append(f"{bounds}, n = {row['lesion_scans']}")
    rates = "no healthy scan"
    if row["fpr_shared"] is not None:
        rates = f"{_percent(row['fpr_shared'])} → {_percent(row['fpr_group'])}"
    return {"main": rates, "details": details, "strong": False}


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _figures(
    source: _Source,
    bias: dict[str, Any],
    dice: list[dict[str, Any]],
    curves: dict[str, dict[str, Any]],
    judged: list[dict[str, Any]],
    scaling: dict[str, Any] | None,
) -> dict[str, str]:
    """The charts that this run has data for, as SVG documents."""
    styles = charts.style_of(source.models)
    coverage = [row for one in judged for row in one["curve"]]
    made = {
        "dice": charts.dice_chart(dice, styles) if dice else None,
        "precision_recall": charts.precision_recall_chart(curves, styles) if curves else None,
        "coverage": charts.coverage_chart(coverage, UNCERTAINTIES) if coverage else None,
        "scaling": charts.scaling_chart(scaling["curve"], SCALING_MEASURES) if scaling and scaling["curve"] else None,
    }
    for name, panels, chart in (
        ("lesions", _lesion_panels(source, bias), charts.lesion_chart),
        ("false_positives", _group_panels(source, bias, FALSE_POSITIVES, 100), charts.group_chart),
        ("dice_groups", _group_panels(source, bias, DICE, 1), charts.group_chart),
        ("effects", _effect_panels(source, bias), charts.effect_chart),
        ("remedy", _remedy_panels(source, bias), charts.remedy_chart),
    ):
        made[name] = chart(panels, styles) if panels else None
    return {name: charts.as_svg(figure) for name, figure in made.items() if figure is not None}


def _group_panels(source: _Source, bias: dict[str, Any], outcome: str, scale: float) -> list[dict[str, Any]]:
    axis = "healthy voxels flagged, %" if outcome == FALSE_POSITIVES else outcome
    rows = [row for row in _shown(source, bias["groups"]) if row["outcome"] == outcome]
    panels = []
    for grouping in ("scanner", "site", "age_band", "sex"):
        own = [row for row in rows if row["grouping"] == grouping]
        if len({row["group"] for row in own}) > 1:
            panels.append({"label": f"by {label_of(grouping)}", "axis": axis, "scale": scale, "rows": own})
    return panels


def _lesion_panels(source: _Source, bias: dict[str, Any]) -> list[dict[str, Any]]:
    """Share found in each quarter of volume and contrast, at the median of the quarter's lesions."""
    once = source.lesions.drop_duplicates(["scan_id", "lesion"])
    panels = []
    for column, grouping, label, logarithmic in (
        ("volume_ml", "volume_quarter", "volume of the lesion, ml", True),
        ("contrast_to_noise", "contrast_quarter", "contrast of the lesion to noise", False),
    ):
        middle = once.groupby(grouping, observed=True)[column].median()
        rows = [
            {**row, "x": float(middle[row["group"]])}
            for row in _shown(source, bias["groups"])
            if (row["outcome"], row["grouping"]) == (DETECTION, grouping) and row["group"] in QUARTERS[column]
        ]
        if rows:
            count = once[grouping].notna().sum()
            panels.append({"label": f"{label} (n = {count} lesions)", "logarithmic": logarithmic, "rows": rows})
    return panels


def _effect_panels(source: _Source, bias: dict[str, Any]) -> list[dict[str, Any]]:
    found = {
        (family["model"], one["outcome"], one["term"])
        for family in bias["families"]
        if family["operating_point"] == source.point
        for one in family["found"]
        if one["measure"] in ("Wald test", "log odds ratio")
    }
    rows = [row for row in _shown(source, bias["effects"]) if row["measure"] == "log odds ratio"]
    panels = []
    for outcome in (FALSE_POSITIVES, DICE, DETECTION):
        own = [
            {**row, "name": effect_name(row), "found": (row["model"], outcome, row["term"]) in found}
            for row in rows
            if row["outcome"] == outcome
        ]
        if own:
            panels.append({"label": outcome, "rows": own})
    return panels


def _remedy_panels(source: _Source, bias: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [row for row in _shown(source, bias["group_thresholds"]) if row["fpr_shared"] is not None]
    groupings = dict.fromkeys(row["grouping"] for row in rows)
    return [
        {"label": f"by {label_of(name)}", "rows": [row for row in rows if row["grouping"] == name]}
        for name in groupings
    ]
