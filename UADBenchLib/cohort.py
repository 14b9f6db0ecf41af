"""A cohort: the scans that a model is trained, calibrated or judged on, as a table or a BIDS folder, and its rules.

Only tables, names and headers are handled here; scans are opened by ``reading``.
Paths in a table are relative to the table's folder, or
to the data folder that the caller names, so that a table can be shared without its data.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from UADBenchLib.errors import InputError
from UADBenchLib.scan import CONTRASTS, Check

LABELS = ("healthy", "lesion", "unknown")
SPLITS = ("train", "validation", "test", "development", "")
REQUIRED = ("scan", "contrast", "label", "subject")
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}
"""How a sex may be written, in lower case."""
OLDEST = 120


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
    dataset: str = ""
    site: str = ""
    scanner: str = ""
    age: str = ""
    sex: str = ""
    group: str = ""
    lesion_type: str = ""
    licence: str = ""
    anatomy: str = ""

    @property
    def held_out_with(self) -> str:
        """What is held out together with this scan: everything of its anatomy, or of its subject where none is
        given."""
        return self.anatomy or self.subject


def read_cohort(path: str | Path, data: str | Path | None = None) -> list[CohortScan]:
    """Read and check a cohort: a table, or a BIDS folder.

    Parameters
    ----------
    path : path
        A CSV with the columns ``scan, contrast, label, subject`` and any of ``reference, brain_mask, split, dataset,
        site, scanner, age, sex, group, lesion_type, licence, anatomy``; or a BIDS folder, see ``_bids_rows``. Subjects
        of one ``anatomy`` (heads synthesised from one label map, or twins) are held out together.
    data : path, optional
        Folder that relative paths of a table start from; default: the table's own.

    Raises
    ------
    InputError
        ``COHORT_NOT_FOUND``, ``COHORT_COLUMNS``, ``COHORT_VALUE``, ``COHORT_FILE_MISSING``, ``COHORT_DUPLICATE``,
        ``COHORT_AMBIGUOUS`` or ``COHORT_SUBJECT_IN_TWO_SPLITS``: the first problem, naming its row. ``cohort_problems``
        lists all.
    """
    rows, problems = _read(Path(path), data)
    if problems:
        raise problems[0]
    return rows


def cohort_problems(path: str | Path, data: str | Path | None = None) -> list[InputError]:
    """Return everything that is wrong with a cohort's table, in its order; ``read_cohort`` raises the first."""
    try:
        return _read(Path(path), data)[1]
    except InputError as error:
        return [error]


def _read(path: Path, data: str | Path | None) -> tuple[list[CohortScan], list[InputError]]:
    if path.is_dir():
        entries, root = _bids_rows(path), path
    elif path.is_file():
        entries, root = _table_rows(path), Path(data) if data is not None else path.parent
    else:
        raise InputError("COHORT_NOT_FOUND", f"there is no cohort {path}", "give a CSV file or a BIDS folder")
    rows: list[CohortScan] = []
    problems: list[InputError] = []
    for place, values in entries:
        try:
            rows.append(_row(values, place, root))
        except InputError as error:
            problems.append(error)
    return rows, problems + (_row_problems(rows) if rows or not problems else [])


def _table_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of a table with the place to name when something is wrong with them."""
    try:
        # Spreadsheet programs put a byte order mark in front of the first column's name; utf-8-sig takes it away.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError("COHORT_COLUMNS", f"{path.name} lacks the columns {', '.join(missing)}", "add them")
            return [(f"row {number}", _stripped(values)) for number, values in enumerate(reader, start=2)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "COHORT_VALUE", f"{path.name} is not a table in UTF-8 text", "save it as CSV, UTF-8"
        ) from error


def _stripped(values: dict[str | None, str | None]) -> dict[str, str]:
    return {key: (value or "").strip() for key, value in values.items() if key is not None}


def _row(values: dict[str, str], place: str, root: Path) -> CohortScan:
    values = values | {"sex": SEXES.get(values.get("sex", "").lower(), values.get("sex", ""))}
    choices = (("label", LABELS), ("split", SPLITS), ("contrast", CONTRASTS), ("sex", ("F", "M", "O", "")))
    for column, allowed in choices:
        if values.get(column, "") not in allowed:
            raise InputError(
                "COHORT_VALUE",
                f"{place}: {column} is {values.get(column, '')!r}",
                f"use one of {', '.join(v for v in allowed if v)}",
            )
    files: dict[str, Path | None] = {}
    for column in ("scan", "reference", "brain_mask"):
        files[column] = root / values[column] if values.get(column) else None
        if files[column] is not None and not files[column].exists():
            raise InputError(
                "COHORT_FILE_MISSING",
                f"{place}: {column} {values[column]!r} does not exist",
                "mend the path, or name the data folder with --data",
            )
    if files["scan"] is None or not values["subject"]:
        raise InputError("COHORT_VALUE", f"{place}: scan and subject must not be empty", "fill them in")
    names = ("split", "dataset", "site", "scanner", "sex", "group", "lesion_type", "licence", "anatomy")
    known = {name: values.get(name, "") for name in names}
    return CohortScan(
        scan=files["scan"],
        contrast=values["contrast"],
        label=values["label"],
        subject=values["subject"],
        reference=files["reference"],
        brain_mask=files["brain_mask"],
        age=_age(values.get("age", ""), place),
        **known,
    )


def _age(text: str, place: str) -> str:
    """An age in years as it is written, without the plus that marks the oldest; refused unless from 0 to 120."""
    bare = text.removesuffix("+")
    try:
        sound = not bare or 0 <= float(bare) <= OLDEST
    except ValueError:
        sound = False
    if not sound:
        raise InputError("COHORT_VALUE", f"{place}: age is {text!r}", f"give years from 0 to {OLDEST}, or nothing")
    return bare


def _row_problems(rows: list[CohortScan]) -> list[InputError]:
    """What is wrong between rows."""
    if not rows:
        return [InputError("COHORT_VALUE", "the cohort has no rows", "add at least one scan")]
    problems = []
    seen: set[Path] = set()
    split_of: dict[str, str] = {}
    for row in rows:
        place = row.scan.resolve()  # a link to a scan is that scan
        if place in seen:
            problems.append(
                InputError("COHORT_DUPLICATE", f"{row.scan.name} is listed twice", "remove one of the rows")
            )
        seen.add(place)
        if split_of.setdefault(row.subject, row.split) != row.split:
            problems.append(
                InputError(
                    "COHORT_SUBJECT_IN_TWO_SPLITS",
                    f"subject {row.subject} is in {split_of[row.subject] or 'no split'} and {row.split or 'no split'}",
                    "splits are by subject: put all of a subject's scans into one",
                )
            )
        if row.label == "healthy" and row.reference is not None:
            problems.append(
                InputError(
                    "COHORT_VALUE",
                    f"{row.scan.name} is healthy and has a reference",
                    "label it lesion or remove the reference",
                )
            )
    return problems


def _bids_rows(folder: Path) -> list[tuple[str, dict[str, str]]]:
    """Rows of a BIDS folder, with the place to name when something is wrong with them.

    Scans are ``sub-*/[ses-*/]anat/*_{T1w,T2w,FLAIR}.nii[.gz]``, those after a contrast agent (``ce-``) left out. Their
    masks are ``*_label-lesion_mask`` and ``*_desc-brain_mask`` (``label-brain`` too) beside them or at the same place
    of a folder in ``derivatives``; ``space-T1w`` and so on says which contrast's grid a mask lies on, without it the
    mask is for every contrast of the session. ``participants.tsv`` gives the covariates: ``age``, ``sex`` and what
    else a table may have. The label is its ``label``, or its ``group`` where that is one of the labels; without either
    a scan with a reference is ``lesion`` and one without is ``unknown``. A ``dataset`` column becomes part of the
    subjects' names, so that participants of two sets are told apart.
    """
    scans = sorted(path for path in folder.glob("sub-*/**/anat/*") if _bids_contrast(path) is not None)
    if not scans:
        raise InputError(
            "COHORT_NOT_FOUND",
            f"{folder} holds no scan sub-*/anat/*_T1w.nii.gz, *_T2w.nii.gz or *_FLAIR.nii.gz",
            "give a CSV file or a BIDS folder; `uadbench import` makes one from public data sets",
        )
    participants = _participants(folder / "participants.tsv")
    rows = []
    for scan in scans:
        subject = scan.relative_to(folder).parts[0]
        known = participants.get(subject, {})
        masks = _bids_masks(folder, scan)
        reference, brain = (_one_mask(masks, kind, scan) for kind in ("lesion", "brain"))
        group = known.get("group", "")
        label = known.get("label") or (group if group in LABELS else "") or ("lesion" if reference else "unknown")
        values = known | {
            "scan": str(scan.relative_to(folder)),
            "contrast": _bids_contrast(scan) or "",
            "label": label,
            "subject": f"{known['dataset']}-{subject}" if known.get("dataset") else subject,
            "group": "" if group in LABELS else group,
        }
        for column, mask in (("reference", reference), ("brain_mask", brain)):
            values[column] = str(mask.relative_to(folder)) if mask else ""
        rows.append((scan.name, values))
    return rows


def _bids_contrast(path: Path) -> str | None:
    stem, _, suffix = path.name.removesuffix(".gz").removesuffix(".nii").rpartition("_")
    packed = path.name.endswith((".nii", ".nii.gz"))
    return suffix if packed and suffix in CONTRASTS and "ce" not in _entities(stem) else None


def _entities(stem: str) -> dict[str, str]:
    """The ``key-value`` pairs of a BIDS name."""
    return dict(part.split("-", 1) for part in stem.split("_") if "-" in part)


def _participants(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [_stripped(values) for values in csv.DictReader(stream, delimiter="\t")]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("COHORT_VALUE", "participants.tsv is not a table in UTF-8 text", "save it as TSV") from error
    if rows and "participant_id" not in rows[0]:
        raise InputError("COHORT_COLUMNS", "participants.tsv lacks the column participant_id", "add it")
    known = [{key: "" if value == "n/a" else value for key, value in row.items()} for row in rows]
    twice = [name for name, count in Counter(row["participant_id"] for row in known).items() if count > 1]
    if twice:
        raise InputError("COHORT_DUPLICATE", f"participants.tsv lists {twice[0]} twice", "remove one of the rows")
    return {row["participant_id"]: row for row in known}


def _bids_masks(folder: Path, scan: Path) -> list[tuple[str, int, Path]]:
    """The masks of a scan: what of (lesion or brain), how closely they fit its name, and where they lie."""
    own = _entities(scan.name) | {"space": _entities(scan.name).get("space", "")}
    place = scan.parent.relative_to(folder)
    found = []
    for where in (scan.parent, *sorted((folder / "derivatives").glob(f"*/{place}"))):
        for mask in sorted([*where.glob("*_mask.nii.gz"), *where.glob("*_mask.nii")]):
            entities = _entities(mask.name)
            kind = next((k for k in ("lesion", "brain") if k in (entities.get("label"), entities.get("desc"))), "")
            space = entities.pop("space", "")
            same = all(own.get(key) == value for key, value in entities.items() if key not in ("label", "desc"))
            if kind and same and space in ("", own["space"], _bids_contrast(scan)):
                found.append((kind, len(entities) + (1 if space else 0), mask))
    return found


def _one_mask(masks: list[tuple[str, int, Path]], kind: str, scan: Path) -> Path | None:
    """The mask of a kind that fits a scan's name most closely.

    Raises
    ------
    InputError
        ``COHORT_AMBIGUOUS`` when two fit equally well.
    """
    fitting = [(closeness, path) for name, closeness, path in masks if name == kind]
    best = [path for closeness, path in fitting if closeness == max(c for c, _ in fitting)]
    if len(best) > 1:
        raise InputError(
            "COHORT_AMBIGUOUS",
            f"{scan.name} has two {kind} masks, {best[0].name} in {best[0].parent} and in {best[1].parent}",
            "keep one, or write a CSV that names it",
        )
    return best[0] if best else None


def check_files(rows: Sequence[CohortScan]) -> list[Check]:
    """Look at the headers of a cohort's files; nothing here makes it unusable, and whoever goes on should know.

    Returns
    -------
    list of Check
        Warnings: ``REFERENCE_MISSING`` (labelled lesion, no reference), ``MASK_GRID`` (on another grid than the
        scan), ``UNREADABLE`` and other codes of headers that cannot be read.
    """
    from UADBenchLib.formats import header_of
    from UADBenchLib.geometry import same_lattice

    checks = []
    for row in rows:
        if row.label == "lesion" and row.reference is None:
            message = f"{row.scan.name} is labelled lesion and has no reference"
            checks.append(Check("warning", "REFERENCE_MISSING", message, "it is scored, and left out of Dice"))
        try:
            scan = header_of(row.scan)
            for name, path in (("reference", row.reference), ("brain mask", row.brain_mask)):
                mask = header_of(path) if path is not None else scan
                if not same_lattice(mask.shape, mask.affine, scan.shape, scan.affine):
                    message = f"the {name} of {row.scan.name} lies on another grid than the scan"
                    checks.append(Check("warning", "MASK_GRID", message, "it is resampled (nearest voxel)"))
        except InputError as error:
            checks.append(Check("warning", error.code, f"{row.scan.name}: {error.message}", error.advice))
    return checks


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
