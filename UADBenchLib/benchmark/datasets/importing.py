"""A public data set as downloaded into a BIDS folder that ``cohort`` reads: files found by a ``Layout``, renamed,
copied or linked, and the covariates that the set gives put into ``participants.tsv``.

Voxels are not touched, except where a reference marks other things beside lesions; then it is written anew with the
lesions alone. What the set does not say is left open, never guessed.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from UADBenchLib.benchmark.datasets.layouts import LAYOUTS, CovariateTable, Layout
from UADBenchLib.cohort import OLDEST, SEXES
from UADBenchLib.errors import InputError
from UADBenchLib.scan import Check, Progress
from UADBenchLib.synthesis.cohort import DERIVATIVES, describe_folder
from UADBenchLib.writing import whole_folder, write_text, write_volume

COLUMNS = ("participant_id", "age", "sex", "group", "dataset", "site", "scanner", "lesion_type", "split")
PAGE = "docs/datasets.md says how it lies on disk"


@dataclass
class _Visit:
    """What was found of one session of one subject: scans and masks by contrast, and what their paths say."""

    subject: str
    session: str
    scans: dict[str, Path] = field(default_factory=dict)
    references: dict[str, Path] = field(default_factory=dict)
    brain_masks: dict[str, Path] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)


def layout_of(name: str) -> Layout:
    """The description of a data set.

    Raises
    ------
    InputError
        ``DATASET_UNKNOWN``, naming those that are known.
    """
    found = {layout.name: layout for layout in LAYOUTS}
    if name.lower() not in found:
        raise InputError("DATASET_UNKNOWN", f"there is no data set {name!r}", f"the data sets are: {', '.join(found)}")
    return found[name.lower()]


def import_dataset(
    name: str,
    path: str | Path,
    out: str | Path,
    *,
    link: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a BIDS folder of a data set.

    Parameters
    ----------
    name : str
        See ``layouts``.
    path : path
        Folder that was downloaded, or one around it.
    out : path
        New or empty folder; it appears when all of it is there.
    link : bool
        Link to the files instead of copying them.

    Returns
    -------
    dict
        path, dataset, participants, scans, references, checks.

    Raises
    ------
    InputError
        ``DATASET_UNKNOWN``, ``DATASET_NOT_FOUND``, ``DATASET_AMBIGUOUS``, ``OUT_NOT_EMPTY``, ``NOT_WRITABLE``.
    """
    layout, root = layout_of(name), Path(path)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
    visits = _visits(layout, root, files)
    if not visits:
        raise InputError("DATASET_NOT_FOUND", f"{path} holds no scan of {layout.title}, such as {layout.example}", PAGE)
    known, checks = _covariates(layout, root, files)
    participants = _participants(layout, visits, known)
    with whole_folder(out) as folder:
        for number, visit in enumerate(visits, start=1):
            _place(layout, visit, folder, link)
            if progress is not None:
                progress(f"{number} of {len(visits)} sessions", number / len(visits))
        _describe(layout, folder, participants)
    return {
        "path": str(out),
        "dataset": layout.name,
        "participants": len(participants),
        "scans": sum(len(visit.scans) for visit in visits),
        "references": sum(len(visit.references) for visit in visits),
        "checks": checks,
    }


def _visits(layout: Layout, root: Path, files: Sequence[str]) -> list[_Visit]:
    """Everything that belongs together, in order; masks without a scan are left out."""
    visits: dict[tuple[str, str], _Visit] = {}
    for contrast, patterns in layout.scans.items():
        for key, (file, groups) in _first_found(patterns, files).items():
            visit = visits.setdefault(key, _Visit(*key))
            visit.scans[contrast] = root / file
            visit.groups |= groups
    for kind in ("references", "brain_masks"):
        for pattern, contrasts in getattr(layout, kind).items():
            for key, (file, _) in _first_found((pattern,), files).items():
                for contrast in contrasts if key in visits else ():
                    if contrast in visits[key].scans:
                        getattr(visits[key], kind).setdefault(contrast, root / file)
    ordered = [visits[key] for key in sorted(visits)]
    if layout.first_session:
        first = {visit.subject: visit for visit in reversed(ordered)}
        ordered = [visit for visit in ordered if first[visit.subject] is visit]
    return ordered


def _first_found(patterns: Sequence[str], files: Sequence[str]) -> dict[tuple[str, str], tuple[str, dict[str, str]]]:
    """For each subject and session the file that the first fitting pattern finds, and what its path says.

    Raises
    ------
    InputError
        ``DATASET_AMBIGUOUS`` when one pattern finds two, other than runs of one session.
    """
    found: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
    for pattern in patterns:
        own: dict[tuple[str, str], tuple[str, dict[str, str]]] = {}
        for file in files:
            match = re.search(rf"(?:^|(?<=/)){pattern}$", file)
            if match is None:
                continue
            groups = {name: value for name, value in match.groupdict().items() if value}
            key = (_name(groups), re.sub(r"[^A-Za-z0-9]", "", groups.get("session", "")))
            if key in found:
                continue
            if key in own and "run" not in groups:
                raise InputError(
                    "DATASET_AMBIGUOUS",
                    f"{own[key][0]} and {file} are the same scan of one subject",
                    "give the folder that holds one of them",
                )
            own.setdefault(key, (file, groups))
        found |= own
    return found


def _name(groups: Mapping[str, str]) -> str:
    """A subject's name in letters and digits, as BIDS wants it."""
    if "number" in groups:  # numbered from one in every part of the set
        return re.sub(r"[^A-Za-z0-9]", "", f"{groups['source']}{groups['split']}{groups['number']}")
    return re.sub(r"[^A-Za-z0-9]", "", groups["subject"])


def _covariates(layout: Layout, root: Path, files: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[Check]]:
    """What the tables of a set say of each subject, by its name in letters and digits."""
    known: dict[str, dict[str, str]] = {}
    checks = []
    for table in layout.tables:
        rows = _table(table, root, files)
        if rows is None:
            checks.append(
                Check(
                    "warning",
                    "COVARIATES_MISSING",
                    f"{layout.title} comes with {table.files[0]}, which is not in the folder as text",
                    f"covariates stay open; put {table.files[0]} (CSV) there and import again to have them",
                )
            )
            continue
        for row in rows:
            subject = _subject(table, row)
            if subject:
                _take(table, row, known.setdefault(subject, {}))
    return known, checks


def _table(table: CovariateTable, root: Path, files: Sequence[str]) -> list[dict[str, str]] | None:
    """The rows of the first of its files that is there; None without one, or where it is a spreadsheet."""
    for wanted in table.files:
        for file in files:
            path = root / file
            if not path.match(wanted) or path.suffix not in (".csv", ".tsv"):
                continue
            with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
                head = stream.readline()
                stream.seek(0)
                separator = max("\t;,", key=head.count)
                rows = csv.DictReader(stream, delimiter=separator)
                return [{(k or "").strip(): (v or "").strip() for k, v in r.items() if k is not None} for r in rows]
    return None


def _subject(table: CovariateTable, row: Mapping[str, str]) -> str:
    value: Any = row.get(table.key, "")
    if re.fullmatch(r"\d+(\.0)?", value) and ":" in table.subject:
        value = int(float(value))
    elif ":" in table.subject:
        return ""
    return re.sub(r"[^A-Za-z0-9]", "", table.subject.format(value).removeprefix("sub-"))


def _take(table: CovariateTable, row: Mapping[str, str], known: dict[str, str]) -> None:
    """Add what a row says to what is known of a subject; what was said first stays."""
    for column, theirs in table.columns.items():
        value = row.get(theirs, "")
        value = table.values.get(column, {}).get(value.removesuffix(".0"), value)
        value = {"age": _age, "sex": _sex}.get(column, str)(value)
        if value and not known.get(column):
            known[column] = value
    if table.healthy:
        column, wanted = table.healthy
        is_healthy = row.get(column, "").removesuffix(".0") == wanted
        known["healthy"] = "yes" if is_healthy and known.get("healthy") != "no" else "no"


def _age(text: str) -> str:
    """Years; the middle of a range such as 26-30, the lower end of 36+, nothing for what is no age."""
    if span := re.fullmatch(r"(\d+)-(\d+)", text):
        return f"{(int(span[1]) + int(span[2])) / 2:g}"
    try:
        years = float(text.removesuffix("+"))
    except ValueError:
        return ""
    return f"{years:g}" if 0 < years <= OLDEST else ""


def _sex(text: str) -> str:
    return SEXES.get(text.lower(), "")


def _participants(
    layout: Layout, visits: Sequence[_Visit], known: Mapping[str, Mapping[str, str]]
) -> list[dict[str, str]]:
    """One row a participant: constants of the set, what paths say, what tables say."""
    rows: dict[str, dict[str, str]] = {}
    for visit in visits:
        said = known.get(visit.subject, {})
        row = rows.setdefault(visit.subject, {"participant_id": f"sub-{visit.subject}", "dataset": layout.name})
        sick = bool(visit.references)
        healthy = not sick and (layout.healthy or said.get("healthy") == "yes")
        if row.get("group") != "lesion":
            row["group"] = "lesion" if sick else "healthy" if healthy else "unknown"
        row |= {column: value for column, value in layout.constants.items() if column != "lesion_type" or not healthy}
        for column, (group, names) in layout.by_group.items():
            value = visit.groups.get(group, "")
            if value and (value in names or not names):
                row[column] = names.get(value, value)
        row |= {column: said[column] for column in ("age", "sex") if said.get(column)}
    return [rows[subject] for subject in sorted(rows)]


def _place(layout: Layout, visit: _Visit, folder: Path, link: bool) -> None:
    """Put the files of one visit under their BIDS names."""
    who = f"sub-{visit.subject}" + (f"_ses-{visit.session}" if visit.session else "")
    anat = Path(*who.split("_")) / "anat"
    for contrast, scan in visit.scans.items():
        _put(scan, folder / anat / f"{who}_{contrast}{_suffix(scan)}", link)
    derived = folder / DERIVATIVES / anat
    for kind, masks in (("label-lesion", visit.references), ("desc-brain", visit.brain_masks)):
        for contrast, mask in masks.items():
            target = derived / f"{who}_space-{contrast}_{kind}_mask{_suffix(mask)}"
            if kind == "label-lesion" and layout.label is not None:
                _put_label(mask, layout.label, target)
            else:
                _put(mask, target, link)


def _suffix(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".gz") else ".nii"


def _put(source: Path, target: Path, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.absolute())
    else:
        shutil.copyfile(source, target)


def _put_label(source: Path, label: int, target: Path) -> None:
    """Write the voxels of one label as a mask of their own."""
    import nibabel
    import numpy as np

    image = nibabel.load(source)
    write_volume(target, np.rint(np.asanyarray(image.dataobj)) == label, image.affine)


def _describe(layout: Layout, folder: Path, participants: Sequence[Mapping[str, str]]) -> None:
    describe_folder(folder, layout.title)
    write_text(folder / "participants.tsv", "\n".join(_lines(participants)) + "\n")
    write_text(
        folder / "README",
        f"{layout.title}, brought into BIDS by `uadbench import {layout.name}`. The terms of the data set hold.\n",
    )


def _lines(participants: Sequence[Mapping[str, str]]) -> Iterator[str]:
    columns = [name for name in COLUMNS if any(row.get(name) for row in participants)]
    yield "\t".join(columns)
    for row in participants:
        yield "\t".join(row.get(name) or "n/a" for name in columns)
