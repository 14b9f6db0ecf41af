"""Importers of public data sets: each on a miniature of the tree that is downloaded, read back as a cohort."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from UADBenchLib.benchmark.datasets.importing import import_dataset, layout_of
from UADBenchLib.benchmark.datasets.layouts import LAYOUTS
from UADBenchLib.cli.main import main
from UADBenchLib.cohort import SPLITS, CohortScan, read_cohort
from UADBenchLib.errors import InputError
from UADBenchLib.writing import write_volume

OBLIQUE = np.array([[2.0, 0.3, 0, -4], [-0.3, 2.0, 0, 3], [0, 0, -3, 9], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class Miniature:
    """Files of a tree, tables with their text, and rows of the cohort that comes of it, by scan: expected values."""

    files: tuple[str, ...]
    tables: dict[str, str]
    rows: dict[str, dict[str, str]]
    left_out: int = 0


TREES = {
    "ixi": Miniature(
        files=("IXI-T1/IXI002-Guys-0828-T1.nii.gz", "IXI-T2/IXI002-Guys-0828-T2.nii.gz", "IXI012-HH-1211-T1.nii.gz",
               "IXI-PD/IXI002-Guys-0828-PD.nii.gz"),
        tables={"IXI.csv": 'IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE\n2,2,164,35.8\n12,1,175,38.78\n12,1,175,\n'},
        rows={
            "sub-IXI002_T1w": {"subject": "ixi-sub-IXI002", "label": "healthy", "age": "35.8", "sex": "F",
                               "site": "IXI-Guys", "scanner": "Philips Intera 1.5T"},
            "sub-IXI002_T2w": {"contrast": "T2w", "label": "healthy"},
            "sub-IXI012_T1w": {"age": "38.78", "sex": "M", "site": "IXI-HH"},
        },
        left_out=1,
    ),
    "brats": Miniature(
        files=tuple(
            f"{folder}/{name}" for folder, names in {
                "MICCAI_BraTS2020_TrainingData/BraTS20_Training_001": [
                    f"BraTS20_Training_001_{s}.nii" for s in ("t1", "t1ce", "t2", "flair", "seg")],
                "MICCAI_BraTS2020_TrainingData/BraTS20_Training_355": [
                    "BraTS20_Training_355_t1.nii", "W39_1998.09.19_Segm.nii"],
                "BraTS2021_00000": [f"BraTS2021_00000_{s}.nii.gz" for s in ("t1", "seg")],
                "BraTS-GLI-00005-000": [f"BraTS-GLI-00005-000-{s}.nii.gz" for s in ("t1n", "t1c", "t2w", "t2f", "seg")],
                "BraTS-GLI-00005-001": ["BraTS-GLI-00005-001-t1n.nii.gz"],
                "BraTS-MEN-00008-000": [f"BraTS-MEN-00008-000-{s}.nii.gz" for s in ("t1n", "seg")],
            }.items() for name in names
        ),
        tables={"survival_info.csv": "Brats20ID,Age,Survival_days\nBraTS20_Training_001,60.463,289\n"},
        rows={
            "sub-BraTS20Training001_T1w": {"label": "lesion", "age": "60.463", "lesion_type": "glioma"},
            "sub-BraTS20Training001_T2w": {"label": "lesion"},
            "sub-BraTS20Training001_FLAIR": {"label": "lesion"},
            "sub-BraTS20Training355_T1w": {"label": "lesion"},
            "sub-BraTS202100000_T1w": {"label": "lesion"},
            "sub-BraTSGLI00005_ses-000_T1w": {"subject": "brats-sub-BraTSGLI00005"},
            "sub-BraTSGLI00005_ses-000_T2w": {},
            "sub-BraTSGLI00005_ses-000_FLAIR": {},
            "sub-BraTSGLI00005_ses-001_T1w": {"label": "lesion"},
            "sub-BraTSMEN00008_ses-000_T1w": {"lesion_type": "meningioma"},
        },
        left_out=2,
    ),
    "atlas2": Miniature(
        files=tuple(
            f"ATLAS_2/{part}/anat/{name}_space-MNI152NLin2009aSym_{what}.nii.gz"
            for part, name, whats in (
                ("Training/R001/sub-r001s001/ses-1", "sub-r001s001_ses-1", ("T1w", "label-L_desc-T1lesion_mask")),
                ("Testing/R002/sub-r002s003/ses-1", "sub-r002s003_ses-1", ("T1w",)),
            ) for what in whats
        ),
        tables={},
        rows={
            "sub-r001s001_ses-1_T1w": {"label": "lesion", "site": "R001", "lesion_type": "stroke"},
            "sub-r002s003_ses-1_T1w": {"label": "unknown", "site": "R002"},
        },
    ),
    "shifts-ms": Miniature(
        files=(
            "msseg/train/flair/1_FLAIR_isovox.nii.gz", "msseg/train/t1/1_T1_isovox.nii.gz",
            "msseg/train/gt/1_gt_isovox.nii.gz", "msseg/train/fg_mask/1_isovox_fg_mask.nii.gz",
            "msseg/dev_in/flair/1_FLAIR_isovox.nii.gz", "msseg/dev_in/gt/1_gt_isovox.nii.gz",
            "best/eval_in/flair/12_FLAIR_isovox.nii.gz", "best/eval_in/gt/12_gt_isovox.nii.gz",
        ),
        tables={},
        rows={
            "sub-mssegtrain1_FLAIR": {"split": "train", "site": "msseg", "label": "lesion",
                                      "lesion_type": "multiple sclerosis"},
            "sub-mssegtrain1_T1w": {"label": "lesion"},
            "sub-mssegdevin1_FLAIR": {"split": "validation"},
            "sub-bestevalin12_FLAIR": {"split": "test", "site": "best"},
        },
    ),
    "wmh": Miniature(
        files=(
            "training/Utrecht/0/orig/FLAIR.nii.gz", "training/Utrecht/0/orig/T1.nii.gz",
            "training/Utrecht/0/orig/3DT1.nii.gz", "training/Utrecht/0/pre/FLAIR.nii.gz",
            "training/Utrecht/0/wmh.nii.gz", "test/Amsterdam/GE1T5/150/orig/FLAIR.nii.gz",
            "test/Amsterdam/GE1T5/150/wmh.nii.gz",
            "additional_annotations/observer_o3/training/Utrecht/0/result.nii.gz",
        ),
        tables={},
        rows={
            "sub-0_FLAIR": {"split": "train", "site": "Utrecht", "label": "lesion"},
            "sub-0_T1w": {"label": "lesion"},
            "sub-150_FLAIR": {"split": "test", "site": "Amsterdam/GE1T5"},
        },
        left_out=3,
    ),
    "isles2022": Miniature(
        files=(
            "ISLES-2022/sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz",
            "ISLES-2022/sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_dwi.nii.gz",
            "ISLES-2022/derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz",
            "ISLES-2022/sub-strokecase0002/ses-0001/sub-strokecase0002_ses-0001_flair.nii.gz",
        ),
        tables={},
        rows={
            "sub-strokecase0001_ses-0001_FLAIR": {"label": "lesion", "lesion_type": "stroke"},
            "sub-strokecase0002_ses-0001_FLAIR": {"label": "unknown"},
        },
        left_out=1,
    ),
    "mslub": Miniature(
        files=tuple(f"patient07/patient07_{s}.nii.gz" for s in ("FLAIR", "T1W", "T1WKS", "consensus_gt", "brainmask"))
        + ("patient07/raw/patient07_FLAIR.nii.gz", "open/cross_sectional/raw/patient08/FLAIR.nii.gz")
        + tuple(
            f"open/cross_sectional/{folder}/patient08/{s}.nii.gz"
            for folder in ("coregistered", "coregistered_resampled") for s in ("FLAIR", "consensus_gt")
        ),
        tables={"patient_info.csv": "patient_id,age,sex,ms_type\n7,53,F,RR\n8,41,M,RR\n"},
        rows={
            "sub-patient07_FLAIR": {"label": "lesion", "age": "53", "sex": "F", "site": "Ljubljana"},
            "sub-patient07_T1w": {"label": "lesion"},
            "sub-patient08_FLAIR": {"label": "lesion", "age": "41", "sex": "M"},
        },
        left_out=5,
    ),
    "oasis3": Miniature(
        files=(
            "OAS30001_MR_d0129/anat1/sub-OAS30001_sess-d0129_T1w.nii.gz",
            "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_run-02_T1w.nii.gz",
            "OAS30001_MR_d0129/anat3/sub-OAS30001_sess-d0129_acq-TSE_T2w.nii.gz",
            "OAS30001_MR_d0757/anat1/sub-OAS30001_sess-d0757_T1w.nii.gz",
            "OAS30002_MR_d0371/anat1/sub-OAS30002_sess-d0371_T1w.nii.gz",
        ),
        tables={
            "files/OASIS3_demographics.csv": "OASISID,AgeatEntry,GENDER\nOAS30001,65.19,2\nOAS30002,67.2,1\n",
            "files/OASIS3_UDSb4_cdr.csv": "OASISID,CDRTOT\nOAS30001,0\nOAS30001,0.0\nOAS30002,0\nOAS30002,0.5\n",
        },
        rows={
            "sub-OAS30001_ses-d0129_T1w": {"label": "healthy", "age": "65.19", "sex": "F"},
            "sub-OAS30001_ses-d0129_T2w": {"label": "healthy"},
            "sub-OAS30002_ses-d0371_T1w": {"label": "unknown", "sex": "M"},
        },
        left_out=2,
    ),
    "camcan": Miniature(
        files=("BIDS_20190411/anat/sub-CC110033/anat/sub-CC110033_T1w.nii.gz",
               "BIDS_20190411/anat/sub-CC110033/anat/sub-CC110033_T2w.nii.gz"),
        tables={"BIDS_20190411/anat/participants.tsv":
                "participant_id\tage\thand\tgender_code\nCC110033\t24\t100\t1\nCC110037\t18\t90\t2\n"},
        rows={
            "sub-CC110033_T1w": {"label": "healthy", "age": "24", "sex": "M", "site": "Cambridge"},
            "sub-CC110033_T2w": {"label": "healthy"},
        },
    ),
    "hcp": Miniature(
        files=tuple(f"100307/T1w/{n}.nii.gz" for n in (
            "T1w_acpc_dc_restore", "T1w_acpc_dc_restore_brain", "T2w_acpc_dc_restore", "brainmask_fs"))
        + ("100408/T1w/T1w_acpc_dc_restore.nii.gz",),
        tables={"unrestricted_someone_1_2_2024.csv": "Subject,Gender,Age\n100307,F,26-30\n100408,M,36+\n"},
        rows={
            "sub-100307_T1w": {"label": "healthy", "age": "28", "sex": "F"},
            "sub-100307_T2w": {"label": "healthy"},
            "sub-100408_T1w": {"age": "36", "sex": "M"},
        },
        left_out=1,
    ),
}  # fmt: skip


def build(folder: Path, tree: Miniature) -> Path:
    """The tree with tiny volumes: scans of noise, masks (whatever has lesion-like names) with labels 0, 1 and 2."""
    for number, name in enumerate(tree.files):
        path = folder / name
        values = np.random.default_rng(number).integers(0, 200, (5, 6, 4))
        if any(word in name for word in ("seg", "Segm", "gt", "wmh", "msk", "mask")):
            values %= 3
        write_volume(path, values.astype(np.uint8), OBLIQUE)
    for name, text in tree.tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def stem(row: CohortScan) -> str:
    return row.scan.name.removesuffix(".gz").removesuffix(".nii")


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def test_every_data_set_has_a_miniature() -> None:
    assert set(TREES) == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", TREES)
class TestEach:
    def test_import(self, name: str, tmp_path: Path) -> None:
        tree = TREES[name]
        source = build(tmp_path / "download" / "around", tree)
        summary = import_dataset(name, source.parent, tmp_path / "bids")
        rows = {stem(row): row for row in read_cohort(tmp_path / "bids")}
        assert set(rows) == set(tree.rows) and summary["scans"] == len(rows)
        for scan, expected in tree.rows.items():
            found = {column: getattr(rows[scan], column) for column in expected}
            assert found == expected, scan
            assert (rows[scan].reference is not None) or rows[scan].label != "lesion" or "ses-001" in scan
            assert rows[scan].split in SPLITS
        assert summary["checks"] == []
        assert {row.dataset for row in rows.values()} == {name}

    def test_voxels_and_grid_are_those_that_were_downloaded(self, name: str, tmp_path: Path) -> None:
        source = build(tmp_path / "download", TREES[name])
        import_dataset(name, source, tmp_path / "bids")
        originals = {bytes_of(path) for path in source.rglob("*.nii*")}
        for row in read_cohort(tmp_path / "bids"):
            assert bytes_of(row.scan) in originals
            if row.reference is not None and layout_of(name).label is None:
                assert bytes_of(row.reference) in originals

    @pytest.mark.skipif(os.name != "posix", reason="links want rights on Windows")
    def test_links(self, name: str, tmp_path: Path) -> None:
        source = build(tmp_path / "download", TREES[name])
        import_dataset(name, source, tmp_path / "bids", link=True)
        for row in read_cohort(tmp_path / "bids"):
            assert row.scan.is_symlink() and row.scan.resolve().is_relative_to(source)

    def test_a_wrong_folder_is_one_clear_line(self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "wrong").mkdir()
        (tmp_path / "wrong" / "holiday.nii.gz").write_bytes(b"")
        for path in (tmp_path / "wrong", tmp_path / "nowhere"):
            assert main(["import", name, str(path), "--out", str(tmp_path / "bids")]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error DATASET_NOT_FOUND: ") and "docs/datasets.md" in line
        assert not (tmp_path / "bids").exists()

    def test_the_example_is_a_path_of_the_set(self, name: str, tmp_path: Path) -> None:
        write_volume(tmp_path / "download" / layout_of(name).example, np.ones((4, 4, 4)), OBLIQUE)
        assert import_dataset(name, tmp_path / "download", tmp_path / "bids")["scans"] == 1


def test_a_table_that_is_missing_is_told(tmp_path: Path) -> None:
    source = build(tmp_path / "download", Miniature(TREES["ixi"].files, {}, {}))
    (source / "IXI.xls").write_bytes(b"a spreadsheet")
    summary = import_dataset("ixi", source, tmp_path / "bids")
    assert [check.code for check in summary["checks"]] == ["COVARIATES_MISSING"]
    assert all(row.age == "" and row.site for row in read_cohort(tmp_path / "bids"))


def test_other_labels_of_a_reference_are_left_out(tmp_path: Path) -> None:
    import nibabel

    source = build(tmp_path / "download", TREES["wmh"])
    import_dataset("wmh", source, tmp_path / "bids")
    original = nibabel.load(source / "training" / "Utrecht" / "0" / "wmh.nii.gz")
    for row in read_cohort(tmp_path / "bids"):
        if row.subject == "wmh-sub-0":
            mask = nibabel.load(row.reference)
            np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(original.dataobj) == 1)
            np.testing.assert_allclose(mask.affine, original.affine, atol=1e-6)


def test_two_files_for_one_scan_are_refused(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        build(tmp_path / "download" / copy, Miniature(("sub-CC110033/anat/sub-CC110033_T1w.nii.gz",), {}, {}))
    with pytest.raises(InputError) as refusal:
        import_dataset("camcan", tmp_path / "download", tmp_path / "bids")
    assert refusal.value.code == "DATASET_AMBIGUOUS" and "one/" in refusal.value.message


def test_unknown_names_and_full_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DATASET_UNKNOWN") as refusal:
        layout_of("adni")
    assert all(layout.name in refusal.value.advice for layout in LAYOUTS)
    source = build(tmp_path / "download", TREES["hcp"])
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "mine.txt").touch()
    with pytest.raises(InputError, match="OUT_NOT_EMPTY"):
        import_dataset("hcp", source, tmp_path / "bids")


def test_the_page_names_every_data_set(repository: Path) -> None:
    page = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        assert f"`{layout.name}`" in page and layout.example in page


def test_the_commands_of_the_page(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repository / "docs" / "datasets.md").read_text(encoding="utf-8")
    shown = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("uadbench ")]
    monkeypatch.chdir(tmp_path)
    for arguments in shown:
        build(tmp_path / arguments[2], TREES[arguments[1]])
        assert main(arguments) == 0
        assert read_cohort(tmp_path / arguments[arguments.index("--out") + 1])
    assert len(shown) == 2
