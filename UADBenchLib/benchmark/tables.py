"""The folder of a benchmark run: which tables it holds, what each column means, and how they are read and written.

A run is a folder. ``records/<scan_id>.json`` (one a scan, written when the scan is done) and
``histograms/<scan_id>.safetensors`` are its memory; the tables are derived from them, sorted, and hold nothing that
depends on when or where the run was made, so that a run that was stopped and resumed ends in the same bytes. Seconds
and peak memory, which do depend on that, have a table of their own (``timing.csv``).

==================  ======================================================================================
``run.json``        :class:`Run`: models with hashes, operating points with thresholds and origins, cohort
                    fingerprint, policy, lesion rule, versions, seed
``scans.csv``       one row a scan x model x operating point
``lesions.csv``     one row a reference lesion x model x operating point
``findings.csv``    one row a finding x model x operating point: what was flagged, true or false
``summary.csv``     one row a model x operating point x group x metric: mean, interval, n
``failures.csv``    one row a scan (or scan x model) that gave no result, and why
``timing.csv``      one row a scan x model: seconds of its stages; not reproducible by nature
==================  ======================================================================================

Empty fields are undefined (NaN) values, never zeros: the empty-case policy in ``run.json`` says when a metric is
undefined, and every mean leaves such scans out and says how many counted (``n``). Nothing is computed here; metrics
are in ``evaluation``, the running in ``runner``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.writing import atomic, write_csv, write_json

if TYPE_CHECKING:
    import pandas

DIGITS = 9
"""Significant digits of a number in a table: more than a metric means, fewer than processors differ by."""


@dataclass(frozen=True)
class Column:
    """One column: its name, what its fields are (``text``, ``integer`` or ``number``), unit, and meaning."""

    name: str
    kind: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table of a run: its file, the columns that identify a row (rows are sorted by them), and all columns."""

    file: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]


def _text(name: str, meaning: str) -> Column:
    return Column(name, "text", "", meaning)


def _number(name: str, unit: str, meaning: str) -> Column:
    return Column(name, "number", unit, meaning)


def _count(name: str, meaning: str) -> Column:
    return Column(name, "integer", "", meaning)


_WHO = (
    _text("scan_id", "names the scan within the run, and its files in records/ and histograms/"),
    _text("subject", "whom it shows; intervals resample subjects"),
    _text("dataset", "the cohort's column of this name, or the cohort's own name"),
    _text("model", "id of the bundle"),
    _text("operating_point", "name of the threshold"),
    _number("threshold", "z", "a voxel above it is flagged"),
)
_COVARIATES = (
    _text("contrast", "T1w, T2w or FLAIR"),
    _text("label", "healthy, lesion or unknown"),
    _number("age", "years", "at the scan"),
    _text("sex", "F or M"),
    _text("scanner", "as the cohort names it"),
    _text("site", "as the cohort names it"),
    _text("lesion_type", "as the cohort names it"),
)

SCANS = Table(
    "scans.csv",
    ("scan_id", "model", "operating_point"),
    (
        *_WHO,
        *_COVARIATES,
        _text("group", "as the cohort names it"),
        _number("brain_ml", "ml", "volume of the brain mask"),
        _count("n_brain_voxels", "voxels of the brain mask on the scan's own grid"),
        _number("reference_ml", "ml", "volume of the reference; 0 for a healthy scan, empty where there is none"),
        _number("dice", "", "of the mask (findings of at least the least volume) with the reference, all voxels"),
        _number("best_dice", "", "highest Dice of the bare map over thresholds: an upper bound, not a result"),
        _number("best_threshold", "z", "where it is reached"),
        _number("ap", "", "average precision of the map in the brain mask"),
        _number("ap_uncalibrated", "", "the same of the raw scores, without the healthy reference"),
        _number("auroc_low", "", "area under the ROC up to a false-positive rate of 5 %, divided by 5 %"),
        _number("healthy_fpr", "", "share of the brain's voxels outside the reference that exceed the threshold"),
        _number("mask_ml", "ml", "volume of all findings"),
        _number("false_positive_ml", "ml", "volume of the findings that are not true by the lesion rule"),
        _count("false_positive_count", "number of those findings"),
        _count("findings", "number of findings"),
        _count("lesions", "reference lesions of at least the rule's least volume"),
        _count("lesions_found", "those hit by the lesion rule"),
        _number("precision", "", "share of findings that are true"),
        _number("recall", "", "share of lesions that are hit"),
        _number("f1", "", "harmonic mean of the two"),
        _number("hd95_mm", "mm", "95th percentile of the distance between the surfaces of mask and reference"),
        _number("scan_score", "z", "see SCAN_SCORE; does not depend on the operating point"),
    ),
)
SCAN_SCORE = "mean z of the highest 1 % of the brain's voxels"
"""The statistic of a map by which whole scans are ranked (healthy against lesion)."""

LESIONS = Table(
    "lesions.csv",
    ("scan_id", "lesion", "model", "operating_point"),
    (
        *_WHO,
        *_COVARIATES,
        _count("lesion", "1 for the largest lesion of the scan; connected components by the lesion rule"),
        _number("volume_ml", "ml", "volume of the lesion"),
        _number(
            "contrast_to_noise",
            "",
            "|mean inside - mean of the shell around| / spread of the shell",
        ),
        _number("relative_difference", "", "(mean inside - mean of the shell around) / mean of the shell, signed"),
        _count("found", "1 when the lesion is hit by the lesion rule, else 0"),
        _number("overlap", "", "share of the lesion's volume inside the mask"),
        _number("peak_z", "z", "highest value of the map in the lesion"),
        _number("mean_z", "z", "mean value of the map in the lesion"),
    ),
)

FINDINGS = Table(
    "findings.csv",
    ("scan_id", "finding", "model", "operating_point"),
    (
        *_WHO,
        *_COVARIATES,
        _count("finding", "1 for the finding with the highest peak of the scan"),
        _number("volume_ml", "ml", "volume of the finding, at least the run's minimum_ml"),
        _count("true", "1 when true by the lesion rule, 0 when false; empty without a reference"),
        _number("overlap", "", "share of the finding's volume inside the reference"),
        _number("peak_z", "z", "highest value of the map in the finding"),
        _number("mean_z", "z", "mean value of the map in the finding"),
    ),
)

SUMMARY = Table(
    "summary.csv",
    ("group", "value", "model", "operating_point", "metric"),
    (
        _text("group", "what rows are grouped by: all, dataset, label, site, scanner, sex, lesion_type, lesion_volume"),
        _text("value", "which group: a site's name, a quartile of the volume with its limits, ..."),
        _text("model", "id of the bundle"),
        _text("operating_point", "name of the threshold"),
        _text("metric", "a column of scans.csv, or lesion_recall, lesion_precision, lesion_f1 (counts pooled)"),
        _number("mean", "of the metric", "mean over scans where it is defined"),
        _number("low", "of the metric", "lower end of the 95 % interval, resampling subjects"),
        _number("high", "of the metric", "upper end"),
        _count("n", "scans that counted; lesions or findings for the pooled lesion metrics"),
        _count("n_subjects", "subjects that these belong to"),
    ),
)

FAILURES = Table(
    "failures.csv",
    ("scan_id", "model"),
    (
        _text("scan_id", "names the scan within the run"),
        _text("subject", "whom it shows"),
        _text("model", "which model could not score it; empty when the scan itself could not be used"),
        _text("code", "stable code of the refusal"),
        _text("message", "what is wrong"),
        _text("advice", "what to do"),
    ),
)

TIMING = Table(
    "timing.csv",
    ("scan_id", "model"),
    (
        _text("scan_id", "names the scan within the run"),
        _text("model", "id of the bundle"),
        _number("prepare_seconds", "s", "preparing the scan, once for all models"),
        _number("score_seconds", "s", "scoring, calibration and the way back to the scan's grid"),
        _number("evaluate_seconds", "s", "metrics"),
        _number("peak_memory_mb", "MB", "highest resident memory of the process so far"),
    ),
)
TABLES = {table.file: table for table in (SCANS, LESIONS, FINDINGS, SUMMARY, FAILURES, TIMING)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunPoint(_Strict):
    """An operating point as it was used: threshold on calibrated z, its 95 % interval, healthy false-positive rate on
    the validation scans (None where it was not measured), and where it came from."""

    threshold: float
    ci: tuple[float, float]
    healthy_fpr: float | None
    origin: str


class RunModel(_Strict):
    """A model as it was used."""

    id: str
    method: str
    preset: str
    contrast: str
    weights_sha256: str
    recipe_hash: str
    operating_points: dict[str, RunPoint]


class Run(_Strict):
    """Contents of ``run.json``: all that decides the tables; no date, no host, no path.

    ``scans`` is the number of scans that were to be done, ``device`` the kind of device (cpu, cuda, mps), since maps
    differ in their last digits between kinds. ``policy``, ``lesion_rule`` are records with a ``sentence``.
    """

    schema_version: int = 1
    cohort: str
    fingerprint: str
    scans: int
    models: dict[str, RunModel]
    operating_points: tuple[str, ...]
    minimum_ml: float
    device: str
    policy: dict[str, Any]
    lesion_rule: dict[str, Any]
    scan_score: str = SCAN_SCORE
    seed: int
    versions: dict[str, str]


def write_run(folder: Path, run: Run) -> None:
    """Write ``run.json``."""
    write_json(Path(folder) / "run.json", run.model_dump(mode="json"))


def read_run(folder: str | Path) -> Run:
    """Read ``run.json``.

    Raises
    ------
    InputError
        ``RUN_NOT_FOUND`` or ``RUN_INVALID``.
    """
    file = Path(folder) / "run.json"
    if not file.is_file():
        raise InputError("RUN_NOT_FOUND", f"{folder} holds no run.json", "give the folder that `benchmark --out` made")
    try:
        return Run.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(
            "RUN_INVALID", f"{file} is not a run of this version", "run `uadbench benchmark` again"
        ) from error


def write_table(folder: Path, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table: rows sorted by its key, numbers to ``DIGITS`` significant digits, undefined ones empty."""
    fields = [{column.name: _field(column, row.get(column.name)) for column in table.columns} for row in rows]
    kinds = {column.name: column.kind for column in table.columns}

    def order(row: Mapping[str, str]) -> list[Any]:
        return [int(row[name]) if kinds[name] == "integer" else row[name] for name in table.key]

    write_csv(Path(folder) / table.file, sorted(fields, key=order), table.names)


def _field(column: Column, value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if column.kind == "number":
        return f"{float(value):.{DIGITS}g}"
    return str(int(value)) if column.kind == "integer" else str(value)


def read_table(folder: str | Path, table: Table) -> pandas.DataFrame:
    """Read a table of a run; numbers are float64 (NaN where undefined), counts pandas' Int64 and texts str.

    Raises
    ------
    InputError
        ``RUN_NOT_FOUND`` when it is not there, ``RUN_INVALID`` when its columns are not those of this version.
    """
    import pandas

    file = Path(folder) / table.file
    if not file.is_file():
        raise InputError("RUN_NOT_FOUND", f"{folder} holds no {table.file}", "let `uadbench benchmark` finish first")
    with file.open(newline="", encoding="utf-8") as stream:
        header = next(csv.reader(stream), [])
    if header != table.names:
        raise InputError("RUN_INVALID", f"{file} has other columns than expected", "run `uadbench benchmark` again")
    kinds = {"text": "str", "integer": "Int64", "number": "float64"}
    frame = pandas.read_csv(
        file, dtype={c.name: kinds[c.kind] for c in table.columns}, keep_default_na=False,
        na_values={c.name: [""] for c in table.columns if c.kind != "text"},
    )  # fmt: skip
    return frame


def write_histograms(folder: Path, scan_id: str, histograms: Mapping[str, Histogram]) -> None:
    """Write the histograms of one scan, one a model, as (bin, count) pairs of the bins that are not empty."""
    import json

    import numpy as np
    from safetensors.numpy import save_file

    arrays, bins = {}, {}
    for model, histogram in histograms.items():
        bins[model] = [histogram.low, histogram.high, histogram.bins_per_unit]
        for name in ("positives", "negatives"):
            counts = getattr(histogram, name)
            index = np.flatnonzero(counts)
            arrays[f"{model}/{name}"] = np.stack([index, counts[index]], axis=1).astype(np.int64)
    path = Path(folder) / "histograms" / f"{scan_id}.safetensors"
    with atomic(path) as temporary:
        save_file(arrays, temporary, metadata={"bins": json.dumps(bins, sort_keys=True)})


def read_histogram(folder: str | Path, scan_id: str, model: str) -> Histogram:
    """Read the histogram of one scan under one model; reference voxels and the other voxels of the brain mask apart.

    Raises
    ------
    InputError
        ``RUN_NOT_FOUND`` when the run holds none.
    """
    import json

    from safetensors import safe_open

    path = Path(folder) / "histograms" / f"{scan_id}.safetensors"
    if not path.is_file():
        raise InputError("RUN_NOT_FOUND", f"{folder} has no histogram of {scan_id}", "let the benchmark finish")
    with safe_open(path, framework="numpy") as file:
        if f"{model}/positives" not in file.keys():
            raise InputError("RUN_NOT_FOUND", f"{scan_id} was not scored by {model}", "choose a model of the run")
        histogram = Histogram(*json.loads(file.metadata()["bins"])[model])
        for name in ("positives", "negatives"):
            pairs = file.get_tensor(f"{model}/{name}")
            getattr(histogram, name)[pairs[:, 0]] = pairs[:, 1]
    return histogram


def histograms(folder: str | Path, scan_ids: Sequence[str], model: str) -> Iterator[Histogram]:
    """Yield the histograms of scans one by one; ``merge`` adds them up without ever holding a cohort."""
    for scan_id in scan_ids:
        yield read_histogram(folder, scan_id, model)
