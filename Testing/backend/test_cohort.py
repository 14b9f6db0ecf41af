"""Cohort tables: what is accepted, every refusal by its code, and the table that the shipped models come from."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import write_cohort
from hypothesis import given
from hypothesis import strategies as st

from UADBenchLib.cohort import LABELS, CohortScan, check_files, cohort_problems, read_cohort, select
from UADBenchLib.errors import InputError
from UADBenchLib.writing import write_volume

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
        "group": "patients", "lesion_type": "tumour", "anatomy": "twins", "remark": "ignored",
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


class TestBids:
    """Folders in place of tables."""

    def folder(self, root: Path, *files: str, participants: str = "") -> Path:
        for name in files:
            write_volume(root / name, np.ones((4, 5, 6)), np.diag([2.0, 2.0, 2.0, 1.0]))
        if participants:
            (root / "participants.tsv").write_text(participants.replace(" ", "\t"), encoding="utf-8")
        return root

    def test_a_folder_and_the_table_of_a_synthetic_cohort_say_the_same(self, tmp_path: Path) -> None:
        """As `uadbench synthesise` lays it out, without the cost of making heads."""
        derived, rows = "derivatives/uadbench/{0}/anat/{0}_space-{1}_{2}_mask.nii.gz", []
        for subject, kind in (("sub-001", ""), ("sub-002", "tumour")):
            for contrast in ("T1w", "FLAIR"):
                row = {"scan": f"{subject}/anat/{subject}_{contrast}.nii.gz", "contrast": contrast, "subject": subject}
                row |= {
                    "label": "lesion" if kind else "healthy",
                    "brain_mask": derived.format(subject, contrast, "desc-brain"),
                }
                row |= {"reference": derived.format(subject, contrast, "label-lesion") if kind else ""}
                rows.append(row | {"age": "61.5", "sex": "F", "scanner": "A", "site": "north", "lesion_type": kind})
        files = [row[name] for row in rows for name in ("scan", "reference", "brain_mask") if row[name]]
        head = "participant_id age sex group site scanner lesion_type lesion_ml\n"
        self.folder(
            tmp_path, *files,
            participants=head + "sub-001 61.5 F healthy north A n/a n/a\nsub-002 61.5 F lesion north A tumour 3.2\n",
        )  # fmt: skip
        table = read_cohort(write_cohort(tmp_path / "cohort.csv", rows))
        assert sorted(read_cohort(tmp_path), key=lambda row: row.scan) == sorted(table, key=lambda row: row.scan)

    def test_masks_go_to_the_scans_that_they_are_for(self, tmp_path: Path) -> None:
        self.folder(
            tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz",
            "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii", "sub-1/ses-b/anat/sub-1_ses-b_ce-gd_T1w.nii.gz",
            "sub-1/ses-a/anat/sub-1_ses-a_label-lesion_mask.nii.gz",
            "derivatives/x/sub-1/ses-a/anat/sub-1_ses-a_space-FLAIR_desc-brain_mask.nii.gz",
            "derivatives/x/sub-1/ses-a/anat/sub-1_ses-a_space-MNI152_desc-brain_mask.nii.gz",
        )  # fmt: skip
        rows = {row.scan.name.removesuffix(".gz"): row for row in read_cohort(tmp_path)}
        assert set(rows) == {"sub-1_ses-a_T1w.nii", "sub-1_ses-a_FLAIR.nii", "sub-1_ses-b_T1w.nii"}
        assert rows["sub-1_ses-a_T1w.nii"].reference == rows["sub-1_ses-a_FLAIR.nii"].reference is not None
        assert rows["sub-1_ses-a_T1w.nii"].brain_mask is None
        assert "space-FLAIR" in rows["sub-1_ses-a_FLAIR.nii"].brain_mask.name
        later = rows["sub-1_ses-b_T1w.nii"]
        assert (later.reference, later.label, later.subject) == (None, "unknown", "sub-1")

    def test_labels_and_names(self, tmp_path: Path) -> None:
        files = [f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in range(4)]
        head = "participant_id age sex group dataset split\n"
        text = (
            head + "sub-0 n/a female healthy n/a test\nsub-1 90+ M depression ixi test\nsub-2 3.5 o lesion n/a train\n"
        )
        rows = read_cohort(self.folder(tmp_path, *files, participants=text))
        assert [row.label for row in rows] == ["healthy", "unknown", "lesion", "unknown"]
        assert [row.subject for row in rows] == ["sub-0", "ixi-sub-1", "sub-2", "sub-3"]
        assert [(row.age, row.sex) for row in rows[:3]] == [("", "F"), ("90", "M"), ("3.5", "O")]
        assert [row.group for row in rows] == ["", "depression", "", ""] and rows[2].split == "train"

    def test_refusals(self, tmp_path: Path) -> None:
        scan = "sub-1/anat/sub-1_T1w.nii.gz"
        masks = [f"derivatives/{who}/sub-1/anat/sub-1_label-lesion_mask.nii.gz" for who in "ab"]
        cases = {
            "COHORT_AMBIGUOUS": self.folder(tmp_path / "a", scan, *masks),
            "COHORT_DUPLICATE": self.folder(
                tmp_path / "b", scan, participants="participant_id age\nsub-1 3\nsub-1 4\n"
            ),
            "COHORT_COLUMNS": self.folder(tmp_path / "c", scan, participants="subject age\nsub-1 3\n"),
            "COHORT_VALUE": self.folder(tmp_path / "d", scan, participants="participant_id age\nsub-1 old\n"),
        }
        for code, folder in cases.items():
            with pytest.raises(InputError) as refusal:
                read_cohort(folder)
            assert refusal.value.code == code and refusal.value.advice


class TestProblems:
    def test_all_are_listed_in_order(self, tmp_path: Path) -> None:
        path = table(
            tmp_path, ROW | {"age": "-3"}, ROW | {"label": "ill"}, ROW | {"subject": "b"}, ROW | {"subject": "c"},
        )  # fmt: skip
        problems = cohort_problems(path)
        assert [problem.code for problem in problems] == ["COHORT_VALUE", "COHORT_VALUE", "COHORT_DUPLICATE"]
        assert "'-3'" in problems[0].message and "'ill'" in problems[1].message
        with pytest.raises(InputError) as refusal:
            read_cohort(path)
        assert refusal.value.message == problems[0].message
        assert cohort_problems(table(tmp_path, ROW)) == []
        assert [p.code for p in cohort_problems(tmp_path / "none.csv")] == ["COHORT_NOT_FOUND"]

    @pytest.mark.parametrize(("column", "value"), [("age", "121"), ("age", "nan"), ("age", "x"), ("sex", "girl")])
    def test_covariates_out_of_range(self, column: str, value: str, tmp_path: Path) -> None:
        (problem,) = cohort_problems(table(tmp_path, ROW | {column: value}))
        assert problem.code == "COHORT_VALUE" and repr(value) in problem.message

    def test_headers(self, tmp_path: Path) -> None:
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        for name, shape in (("s", (4, 5, 6)), ("same", (4, 5, 6)), ("other", (4, 5, 7))):
            write_volume(tmp_path / f"{name}.nii.gz", np.ones(shape), affine)
        (tmp_path / "broken.nii.gz").write_bytes(b"no")
        row = CohortScan(tmp_path / "s.nii.gz", "T1w", "lesion", "s", tmp_path / "same.nii.gz")
        assert check_files([row]) == []
        other = replace(row, reference=tmp_path / "other.nii.gz")
        missing, broken = replace(row, reference=None), replace(row, scan=tmp_path / "broken.nii.gz")
        codes = [check.code for check in check_files([other, missing, broken])]
        assert codes[:2] == ["MASK_GRID", "REFERENCE_MISSING"] and len(codes) == 3


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
