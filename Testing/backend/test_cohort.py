"""Cohort tables: what is accepted, every refusal by its code, and the table that the shipped models come from."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from builders import write_cohort
from hypothesis import given
from hypothesis import strategies as st

from UADBenchLib.cohort import LABELS, CohortScan, read_cohort, select
from UADBenchLib.errors import InputError

ROW = {"scan": "a.nii.gz", "contrast": "T1w", "label": "healthy", "subject": "s1"}


def table(folder: Path, *rows: dict[str, str]) -> Path:
    """A table in ``folder``; the files that its rows name are made, except those called ``missing``."""
    for row in rows:
        for column in ("scan", "reference", "brain_mask"):
            if row.get(column) and "missing" not in row[column]:
                (folder / row[column]).parent.mkdir(parents=True, exist_ok=True)
                (folder / row[column]).touch()
    return write_cohort(folder / "cohort.csv", list(rows))


def test_rows_carry_every_column(tmp_path: Path) -> None:
    full = {
        "scan": "sub/b.nii.gz", "contrast": "FLAIR", "label": "lesion", "subject": "s2", "reference": "r.nii.gz",
        "brain_mask": "m.nii.gz", "split": "test", "site": "here", "scanner": "3T", "age": "61", "sex": "F",
        "group": "patients", "lesion_type": "tumour", "remark": "ignored",
    }  # fmt: skip
    (row,) = read_cohort(table(tmp_path, full))
    assert (row.scan, row.reference, row.brain_mask) == tuple(
        tmp_path / full[name] for name in ("scan", "reference", "brain_mask")
    )
    for name in set(full) - {"scan", "reference", "brain_mask", "remark"}:
        assert getattr(row, name) == full[name]


def test_unknown_values_are_empty_and_spaces_are_cut(tmp_path: Path) -> None:
    (row,) = read_cohort(table(tmp_path, ROW | {"subject": "  s1 "}))
    assert row == CohortScan(tmp_path / "a.nii.gz", "T1w", "healthy", "s1")


def test_paths_start_from_the_data_folder_when_one_is_named(tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    data.mkdir()
    (data / "a.nii.gz").touch()
    path = write_cohort(tmp_path / "tables" / "cohort.csv", [ROW])
    assert read_cohort(path, data)[0].scan == data / "a.nii.gz"
    with pytest.raises(InputError) as refusal:
        read_cohort(path)
    assert refusal.value.code == "COHORT_FILE_MISSING"


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, ROW)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_cohort(path)[0].subject == "s1"


REFUSALS = {
    "no label": ("COHORT_VALUE", [{"label": ""}], "row 2"),
    "odd label": ("COHORT_VALUE", [{"label": "sick"}], "'sick'"),
    "odd split": ("COHORT_VALUE", [{"split": "training"}], "'training'"),
    "odd contrast": ("COHORT_VALUE", [{"contrast": "T1"}], "'T1'"),
    "no subject": ("COHORT_VALUE", [{"subject": " "}], "row 2"),
    "no scan": ("COHORT_VALUE", [{"scan": ""}], "row 2"),
    "healthy with a reference": ("COHORT_VALUE", [{"reference": "r.nii.gz"}], "a.nii.gz"),
    "second row odd": ("COHORT_VALUE", [{}, {"scan": "b.nii.gz", "label": "?"}], "row 3"),
    "no file": ("COHORT_FILE_MISSING", [{"scan": "missing.nii.gz"}], "missing.nii.gz"),
    "no reference file": ("COHORT_FILE_MISSING", [{"label": "lesion", "reference": "missing.nii"}], "reference"),
    "no mask file": ("COHORT_FILE_MISSING", [{"brain_mask": "missing.nii"}], "brain_mask"),
    "listed twice": ("COHORT_DUPLICATE", [{}, {}], "a.nii.gz"),
    "two splits": (
        "COHORT_SUBJECT_IN_TWO_SPLITS",
        [{"split": "train"}, {"scan": "b.nii.gz", "split": "test"}],
        "subject s1",
    ),
    "one split only": (
        "COHORT_SUBJECT_IN_TWO_SPLITS",
        [{"split": "train"}, {"scan": "b.nii.gz", "split": ""}],
        "no split",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_name_the_code_and_the_place(name: str, tmp_path: Path) -> None:
    code, changes, place = REFUSALS[name]
    with pytest.raises(InputError) as refusal:
        read_cohort(table(tmp_path, *[ROW | change for change in changes]))
    assert refusal.value.code == code
    assert place in refusal.value.message
    assert refusal.value.advice


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError) as refusal:
            read_cohort(path)
        assert refusal.value.code == "COHORT_NOT_FOUND"


def test_missing_columns_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    for text, named in (("", "scan, contrast, label, subject"), ("scan,subject\n", "contrast, label")):
        path.write_text(text)
        with pytest.raises(InputError) as refusal:
            read_cohort(path)
        assert refusal.value.code == "COHORT_COLUMNS"
        assert named in refusal.value.message


def test_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("scan,contrast,label,subject\n")
    with pytest.raises(InputError) as refusal:
        read_cohort(tmp_path / "cohort.csv")
    assert refusal.value.code == "COHORT_VALUE"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError) as refusal:
        read_cohort(tmp_path / "cohort.csv")
    assert refusal.value.code == "COHORT_VALUE"


def rows_of(*entries: tuple[str, str, str]) -> list[CohortScan]:
    return [
        CohortScan(Path(f"{n}.nii"), contrast, label, f"s{n}", split=split)
        for n, (split, label, contrast) in enumerate(entries)
    ]


def test_select_takes_split_label_and_contrast() -> None:
    rows = rows_of(("train", "healthy", "T1w"), ("train", "lesion", "T1w"), ("test", "healthy", "T1w"))
    assert select(rows, split="train") == rows[:2]
    assert select(rows, split="train", label="healthy") == rows[:1]
    assert select(rows, split="train", label="healthy", contrast="T2w") == []


def test_select_takes_all_splits_when_there_are_none() -> None:
    rows = rows_of(("", "healthy", "T1w"), ("", "lesion", "T1w"))
    assert select(rows, split="train") == rows
    assert select(rows, split="test", label="lesion") == rows[1:]


@given(st.lists(st.tuples(st.sampled_from(["train", "validation", ""]), st.sampled_from(LABELS), st.just("T1w"))))
def test_a_scan_is_never_in_two_splits(entries: list[tuple[str, str, str]]) -> None:
    rows = rows_of(*entries)
    if any(row.split for row in rows):
        train, validation = select(rows, split="train"), select(rows, split="validation")
        assert not {row.subject for row in train} & {row.subject for row in validation}


class TestShippedTable:
    """``Resources/Splits/t1w.csv``, which names scans that are not in the source tree: read as a bare table."""

    @pytest.fixture
    def rows(self, repository: Path) -> list[dict[str, str]]:
        with (repository / "Resources" / "Splits" / "t1w.csv").open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def test_subjects_are_in_one_split(self, rows: list[dict[str, str]]) -> None:
        splits = defaultdict(set)
        for row in rows:
            splits[row["subject"]].add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        assert set().union(*splits.values()) == {"train", "validation", "test"}

    def test_training_and_validation_are_healthy(self, rows: list[dict[str, str]]) -> None:
        learnt_from = [row for row in rows if row["split"] in ("train", "validation")]
        assert len(learnt_from) > 100
        assert {row["label"] for row in learnt_from} == {"healthy"}
        assert not any(row.get("reference") for row in learnt_from)

    def test_every_scan_is_listed_once_by_a_relative_path(self, rows: list[dict[str, str]]) -> None:
        paths = [row["scan"] for row in rows]
        assert len(set(paths)) == len(paths)
        assert all(paths)
        for path in paths + [row["brain_mask"] for row in rows]:
            assert not Path(path).is_absolute() and ".." not in Path(path).parts
        assert {row["contrast"] for row in rows} == {"T1w"}

    def test_the_lesion_table_shares_no_subject_with_it(self, rows: list[dict[str, str]], repository: Path) -> None:
        path = repository / "Resources" / "Splits" / "lesions.csv"
        with path.open(newline="", encoding="utf-8") as stream:
            lesions = list(csv.DictReader(stream))
        assert lesions
        assert not {row["subject"] for row in lesions} & {row["subject"] for row in rows}
        assert all(row["reference"] for row in lesions if row["label"] == "lesion")
