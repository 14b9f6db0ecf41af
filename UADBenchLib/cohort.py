"""A cohort: the table of scans that a model is trained, calibrated or judged on, and the rules a table must keep.

Only tables are handled here; scans are opened by ``reading``. Paths in a table are relative to the table's folder, or
to the data folder that the caller names, so that a table can be shared without its data.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from UADBenchLib.errors import InputError

LABELS = ("healthy", "lesion", "unknown")
SPLITS = ("train", "validation", "test", "development", "")
REQUIRED = ("scan", "contrast", "label", "subject")


@dataclass(frozen=True)
class CohortScan:
    """One row: a scan, what is known of it, and which split its subject belongs to. Unknown values are empty
    strings."""

    scan: Path
    contrast: str
    label: str
    subject: str
    reference: Path | None = None
    brain_mask: Path | None = None
    split: str = ""
    site: str = ""
    scanner: str = ""
    age: str = ""
    sex: str = ""
    group: str = ""
    lesion_type: str = ""
    licence: str = ""


def read_cohort(path: str | Path, data: str | Path | None = None) -> list[CohortScan]:
    """Read and check a cohort table.

    Parameters
    ----------
    path : path
        A CSV with the columns ``scan, contrast, label, subject`` and any of ``reference, brain_mask, split, site,
        scanner, age, sex, group, lesion_type, licence``.
    data : path, optional
        Folder that relative paths start from; default: the table's own.

    Raises
    ------
    InputError
        ``COHORT_NOT_FOUND``, ``COHORT_COLUMNS``, ``COHORT_VALUE``, ``COHORT_FILE_MISSING``, ``COHORT_DUPLICATE`` or
        ``COHORT_SUBJECT_IN_TWO_SPLITS``, naming the row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("COHORT_NOT_FOUND", f"there is no cohort table {path}", "give the path of a CSV file")
    root = Path(data) if data is not None else path.parent
    try:
        # Spreadsheet programs put a byte order mark in front of the first column's name; utf-8-sig takes it away.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError("COHORT_COLUMNS", f"{path.name} lacks the columns {', '.join(missing)}", "add them")
            rows = [_row(values, number, root) for number, values in enumerate(reader, start=2)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "COHORT_VALUE", f"{path.name} is not a table in UTF-8 text", "save it as CSV, UTF-8"
        ) from error
    _check_rows(rows)
    return rows


def _row(values: dict[str, str], number: int, root: Path) -> CohortScan:
    values = {key: (value or "").strip() for key, value in values.items() if key is not None}
    for column, allowed in (("label", LABELS), ("split", SPLITS), ("contrast", ("T1w", "T2w", "FLAIR"))):
        if values.get(column, "") not in allowed:
            raise InputError(
                "COHORT_VALUE",
                f"row {number}: {column} is {values[column]!r}",
                f"use one of {', '.join(v for v in allowed if v)}",
            )
    files: dict[str, Path | None] = {}
    for column in ("scan", "reference", "brain_mask"):
        files[column] = root / values[column] if values.get(column) else None
        if files[column] is not None and not files[column].exists():
            raise InputError(
                "COHORT_FILE_MISSING",
                f"row {number}: {column} {values[column]!r} does not exist",
                "mend the path, or name the data folder with --data",
            )
    if files["scan"] is None or not values["subject"]:
        raise InputError("COHORT_VALUE", f"row {number}: scan and subject must not be empty", "fill them in")
    known = {
        name: values.get(name, "")
        for name in ("split", "site", "scanner", "age", "sex", "group", "lesion_type", "licence")
    }
    return CohortScan(
        scan=files["scan"],
        contrast=values["contrast"],
        label=values["label"],
        subject=values["subject"],
        reference=files["reference"],
        brain_mask=files["brain_mask"],
        **known,
    )


def _check_rows(rows: list[CohortScan]) -> None:
    if not rows:
        raise InputError("COHORT_VALUE", "the cohort has no rows", "add at least one scan")
    seen: set[Path] = set()
    split_of: dict[str, str] = {}
    for row in rows:
        if row.scan in seen:
            raise InputError("COHORT_DUPLICATE", f"{row.scan.name} is listed twice", "remove one of the rows")
        seen.add(row.scan)
        if split_of.setdefault(row.subject, row.split) != row.split:
            raise InputError(
                "COHORT_SUBJECT_IN_TWO_SPLITS",
                f"subject {row.subject} is in {split_of[row.subject] or 'no split'} and {row.split or 'no split'}",
                "splits are by subject: put all of a subject's scans into one",
            )
        if row.label == "healthy" and row.reference is not None:
            raise InputError(
                "COHORT_VALUE",
                f"{row.scan.name} is healthy and has a reference",
                "label it lesion or remove the reference",
            )


def select(
    rows: list[CohortScan], *, split: str, label: str | None = None, contrast: str | None = None
) -> list[CohortScan]:
    """Return the rows of one split (all rows when the cohort has no splits), of one label and contrast."""
    splits = any(row.split for row in rows)
    return [
        row
        for row in rows
        if (not splits or row.split == split)
        and (label is None or row.label == label)
        and (contrast is None or row.contrast == contrast)
    ]
