"""The two tables that the bias analysis asks: one row a scan and one row a lesion, with what is known of the subject.

They are those of a benchmark run with covariates as the analysis wants them: groups of ages and of lesion sizes are
formed here. Values that the run does not have stay missing, and nothing is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from UADBenchLib.benchmark.tables import LESIONS, SCANS, read_histogram, read_table
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram

AGE_BANDS = (0, 30, 50, 70, 200)
QUARTERS = {
    "volume_ml": ("smallest quarter", "second quarter", "third quarter", "largest quarter"),
    "contrast_to_noise": ("faintest quarter", "second quarter", "third quarter", "strongest quarter"),
}
LEAST_FOR_QUARTERS = 8
TEXTS = ("sex", "scanner", "site", "lesion_type")


@dataclass(frozen=True)
class Tables:
    """Rows of one run.

    Attributes
    ----------
    scans : pandas.DataFrame
        The run's scans.csv with ``age_band`` and ``log_volume`` (log2 of the reference in ml).
    lesions : pandas.DataFrame
        The run's lesions.csv with ``age_band``, ``log_volume``, ``volume_quarter`` and ``contrast_quarter``.
    """

    scans: pd.DataFrame
    lesions: pd.DataFrame

    def pairs(self) -> list[tuple[str, str]]:
        """The (model, operating point) pairs that occur, sorted."""
        return sorted(set(zip(self.scans["model"], self.scans["operating_point"], strict=True)))

    def of(self, model: str, operating_point: str) -> Tables:
        """The rows of one model at one operating point."""

        def rows(table: pd.DataFrame) -> pd.DataFrame:
            return table[(table["model"] == model) & (table["operating_point"] == operating_point)]

        return Tables(rows(self.scans), rows(self.lesions))


def read_tables(run: str | Path) -> Tables:
    """Read the tables of a benchmark run.

    Raises
    ------
    InputError
        ``RUN_NOT_FOUND`` or ``RUN_INVALID``.
    """
    return prepared(read_table(run, SCANS), read_table(run, LESIONS))


def read_histograms(run: str | Path, scans: pd.DataFrame) -> dict[str, Histogram]:
    """Histograms by scan_id, for rows of one model; scans without one are left out."""
    found = {}
    for scan_id, model in scans[["scan_id", "model"]].itertuples(index=False):
        try:
            found[scan_id] = read_histogram(run, scan_id, model)
        except InputError as error:
            if error.code != "RUN_NOT_FOUND":
                raise
    return found


def prepared(scans: pd.DataFrame, lesions: pd.DataFrame) -> Tables:
    """The tables of a run with empty texts as missing values and with their groups."""
    scans, lesions = _with_covariates(scans), _with_covariates(lesions)
    scans["log_volume"] = np.log2(scans["reference_ml"].where(scans["reference_ml"] > 0))
    lesions["log_volume"] = np.log2(lesions["volume_ml"].where(lesions["volume_ml"] > 0))
    lesions["volume_quarter"] = _quarters(lesions, "volume_ml")
    lesions["contrast_quarter"] = _quarters(lesions, "contrast_to_noise")
    return Tables(scans, lesions)


def _with_covariates(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    for name in TEXTS:
        table[name] = table[name].astype(object).replace("", None)
    names = [f"{low} to {high - 1}" for low, high in zip(AGE_BANDS[:-1], AGE_BANDS[1:], strict=True)]
    names[0], names[-1] = f"under {AGE_BANDS[1]}", f"{AGE_BANDS[-2]} and over"
    table["age_band"] = pd.cut(table["age"], AGE_BANDS, right=False, labels=names)
    return table


def _quarters(lesions: pd.DataFrame, column: str) -> pd.Series:
    """Quarter of each lesion among all lesions of the run, each counted once; missing where there are too few."""
    once = lesions.drop_duplicates(["scan_id", "lesion"])[column].dropna()
    edges = np.unique(once.quantile([0, 0.25, 0.5, 0.75, 1.0])) if len(once) >= LEAST_FOR_QUARTERS else []
    if len(edges) < 5:
        return pd.Series(None, index=lesions.index, dtype=object)
    return pd.cut(lesions[column], [-np.inf, *edges[1:4], np.inf], labels=list(QUARTERS[column]))
