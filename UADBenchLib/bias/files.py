"""A bias analysis from a run's folder into it: ``bias.json`` with everything, and its tables as CSV beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from UADBenchLib import __version__
from UADBenchLib.benchmark.tables import LESIONS, SCANS
from UADBenchLib.bias.analysis import (
    ALPHA,
    EFFECT_COLUMNS,
    LEAST_GROUP,
    SMALL_CELL,
    Answers,
    analyse,
    effect_rows,
)
from UADBenchLib.bias.disparity import (
    DISPARITY_COLUMNS,
    GROUP_COLUMNS,
    GROUPINGS,
    LEAST_FOR_THRESHOLD,
    THRESHOLD_COLUMNS,
    disparities,
    group_means,
    group_thresholds,
)
from UADBenchLib.bias.statistics import CONFIDENCE, RESAMPLES, Bootstrap
from UADBenchLib.bias.tables import Tables, read_histograms, read_tables
from UADBenchLib.reports.staging import staged
from UADBenchLib.scan import Progress
from UADBenchLib.writing import write_csv, write_json


def analyse_run(
    run: str | Path, *, seed: int = 0, resamples: int = RESAMPLES, progress: Progress | None = None
) -> dict[str, Any]:
    """Analyse a benchmark run and write ``bias.json`` and ``bias_*.csv`` into its folder.

    Parameters
    ----------
    run : path
        Folder of `uadbench benchmark`.
    seed, resamples : int
        Of the bootstrap by subject.

    Returns
    -------
    dict
        What bias.json holds.

    Raises
    ------
    InputError
        ``RUN_NOT_FOUND`` or ``RUN_COLUMNS``.
    """
    tables = read_tables(run)
    answers = analyse(tables, seed, resamples, progress)
    described: dict[str, list[dict[str, Any]]] = {"groups": [], "disparities": [], "group_thresholds": []}
    for model, point in tables.pairs():
        bootstrap, own = Bootstrap(np.random.default_rng(seed), resamples), tables.of(model, point)
        for name, rows in (
            ("groups", group_means(own, bootstrap)),
            ("disparities", disparities(own, bootstrap)),
            ("group_thresholds", _remedy(run, own, bootstrap)),
        ):
            described[name] += [{"model": model, "operating_point": point, **row} for row in rows]
    document = {
        "version": __version__,
        "tables_sha256": digest_of(run),
        "seed": seed,
        "resamples": resamples,
        "method": method_sentences(resamples),
        "alpha": ALPHA,
        "families": [_family(one) for one in answers],
        "effects": effect_rows(answers),
        **described,
    }
    _write(Path(run), document, tables)
    return document


def digest_of(run: str | Path) -> str:
    """SHA-256 of the tables that an analysis rests on, which tells whether it is that of the run as it is."""
    content = b"".join((Path(run) / table.file).read_bytes() for table in (SCANS, LESIONS))
    return hashlib.sha256(content).hexdigest()


def _remedy(run: str | Path, tables: Tables, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    histograms = read_histograms(run, tables.scans)
    return [row for grouping in GROUPINGS for row in group_thresholds(tables.scans, histograms, grouping, bootstrap)]


def _family(one: Answers) -> dict[str, Any]:
    """What is said of one model at one operating point in a few words."""
    tests = [effect for effect in one.effects if np.isfinite(effect.p)]
    return {
        "model": one.model,
        "operating_point": one.operating_point,
        "tests": len(tests),
        "found": [
            {"outcome": effect.outcome, "term": effect.term, "measure": effect.measure, "p_holm": effect.p_holm}
            for effect in one.found()
        ],
        "notes": one.notes,
    }


def method_sentences(resamples: int = RESAMPLES) -> list[str]:
    """How the analysis works, for reports."""
    return [
        "Groups are compared by Kruskal-Wallis tests on one value a subject and group, with epsilon squared as the "
        "effect size of all groups together and Cliff's delta for each group against the others.",
        "Effects that are adjusted for one another come from logistic generalised estimating equations clustered by "
        "subject, with bias-reduced robust covariance; rates and Dice enter as shares (fractional logit).",
        f"Intervals hold {CONFIDENCE:.0%}: percentile intervals of {resamples} resamples of whole subjects, widened "
        "for small numbers of subjects.",
        "All tests of one model at one operating point are one family; an effect counts as found when its p value "
        f"stays below {ALPHA:g} after Holm's correction. The false discovery rate of Benjamini and Hochberg is given "
        "beside it.",
        f"Groups with fewer than {LEAST_GROUP} subjects take part in no test, those with fewer than {SMALL_CELL} are "
        f"marked small, and a group gets a threshold of its own from {LEAST_FOR_THRESHOLD} healthy subjects on.",
        "These are associations in this cohort. Scanners, sites, ages and sexes were not assigned at random, and what "
        "was not recorded cannot be adjusted for.",
    ]


def _write(run: Path, document: dict[str, Any], tables: Tables) -> None:
    with staged(run) as stage:
        write_json(stage.path("bias.json"), document)
        for name, columns in (
            ("effects", EFFECT_COLUMNS),
            ("groups", GROUP_COLUMNS),
            ("disparities", DISPARITY_COLUMNS),
            ("group_thresholds", THRESHOLD_COLUMNS),
        ):
            write_csv(stage.path(f"bias_{name}.csv"), rounded(document[name]), columns)
        for name, table in (("scans", tables.scans), ("lesions", tables.lesions)):
            rows = table.astype(object).where(table.notna(), None).to_dict("records")
            write_csv(stage.path(f"bias_{name}.csv"), rounded(rows), table.columns)


def rounded(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with six significant digits and empty fields for what is not defined."""

    def text(value: Any) -> Any:
        if isinstance(value, (float, np.floating)):
            return f"{value:.6g}" if np.isfinite(value) else None
        return None if value is pd.NA else value

    return [{key: text(value) for key, value in row.items()} for row in rows]
