"""DICOM Segmentation: written, read back, and laid on the series again, whatever the order of the label map's axes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_reading import dicom

from UADBenchLib.dicom_seg import write_dicom_seg
from UADBenchLib.errors import InputError
from UADBenchLib.inference.worker import Kept
from UADBenchLib.reading import read_scan
from UADBenchLib.reports.worker import export

pytest.importorskip("highdicom")


def complete(data, number: int) -> None:
    """Add what a standard MR image has and the bare series of the reading tests has not."""
    data.FrameOfReferenceUID = "1.2.3.4.99"
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = data.ReferringPhysicianName = ""
    data.PatientSex, data.SeriesNumber, data.Manufacturer = "", 3, "none"
    data.PatientBirthDate, data.ImageType = "", ["ORIGINAL", "PRIMARY"]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """An oblique series."""
    return dicom(tmp_path / "series", each=complete)


def blobs(shape: tuple[int, ...]) -> np.ndarray:
    """Two boxes, none of them symmetric."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:9, 5:11, 3:7] = 1
    labels[20:23, 14:25, 12:15] = 2
    return labels


def places(labels: np.ndarray, affine: np.ndarray, value: int) -> np.ndarray:
    """RAS mm of the voxels of a label, sorted."""
    found = np.argwhere(labels == value) @ affine[:3, :3].T + affine[:3, 3]
    return found[np.lexsort(np.round(found, 3).T)]


@pytest.mark.parametrize("turn", ["as read", "permuted", "flipped"])
def test_what_is_written_is_read_back_in_its_place(series, tmp_path, turn):
    import highdicom

    scan = read_scan(series)
    labels, affine = blobs(scan.shape), scan.affine
    expected = [places(labels, affine, value) for value in (1, 2)]
    if turn == "permuted":
        labels, affine = labels.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]
    elif turn == "flipped":
        affine = affine @ np.array([[1, 0, 0, 0], [0, -1, 0, labels.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
        labels = labels[:, ::-1]
    path = tmp_path / "seg.dcm"
    write_dicom_seg(path, labels, affine, ["finding 1", "finding 2"], sorted(series.iterdir()), model="test")
    read = highdicom.seg.segread(path)
    assert read.number_of_segments == 2
    assert [read.get_segment_description(k).segment_label for k in (1, 2)] == ["finding 1", "finding 2"]
    assert read.get_segment_description(1).segmented_property_type.meaning == "Lesion"
    volume = read.get_volume(combine_segments=True)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    for value in (1, 2):
        np.testing.assert_allclose(places(volume.array, to_ras, value), expected[value - 1], atol=1e-2)
    assert read.StudyInstanceUID == "1.2.3" and read.PatientID == "QUAGGAMUS", "it belongs to the patient's study"
    referred = {item.ReferencedSOPInstanceUID for item in read.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert len(referred) > 0 and all(uid.startswith("1.2.3.4.") for uid in referred)


def test_a_validator_has_no_complaint(series, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    scan, path = read_scan(series), tmp_path / "seg.dcm"
    write_dicom_seg(path, blobs(scan.shape), scan.affine, ["a", "b"], sorted(series.iterdir()), model="test")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if line.startswith("Error")]


def test_refusals_write_nothing(series, tmp_path):
    scan, files, path = read_scan(series), sorted(series.iterdir()), tmp_path / "seg.dcm"
    labels = blobs(scan.shape)
    with pytest.raises(InputError, match="SEGMENTS_EMPTY"):
        write_dicom_seg(path, labels * 0, scan.affine, [], files, model="test")
    with pytest.raises(InputError, match="DICOM_GRID"):
        write_dicom_seg(path, labels, scan.affine @ np.diag([1.1, 1, 1, 1]), ["a", "b"], files, model="test")
    with pytest.raises(InputError, match="DICOM_UNREADABLE"):
        write_dicom_seg(path, labels, scan.affine, ["a", "b"], [], model="test")
    (tmp_path / "notes.txt").write_text("no DICOM", encoding="utf-8")
    with pytest.raises(InputError, match="DICOM_UNREADABLE"):
        write_dicom_seg(path, labels, scan.affine, ["a", "b"], [tmp_path / "notes.txt"], model="test")
    assert not path.exists()


def test_the_worker_writes_it_on_request(series, tmp_path):
    import highdicom

    scan, job = read_scan(series), tmp_path / "job"
    job.mkdir()
    np.save(job / "labels_1.npy", blobs(scan.shape))
    files = [str(path) for path in sorted(series.iterdir())]
    dicom_fields = {"labels": "labels_1.npy", "affine": scan.affine.tolist(), "names": ["a", "b"], "series": files}
    request = {"out": str(tmp_path / "out"), "formats": ["dicom-seg"], "scan": {"stem": "case"}}
    request["dicom"] = dicom_fields | {"model": "fae-t1w-compact"}
    assert export(request, Kept(job, "scan", {}))["files"] == ["case_model-fae-t1w-compact_seg.dcm"]
    assert highdicom.seg.segread(tmp_path / "out" / "case_model-fae-t1w-compact_seg.dcm").number_of_segments == 2
    with pytest.raises(InputError, match="BAD_REQUEST"):
        export(request | {"dicom": None}, Kept(job, "scan", {}))
    with pytest.raises(InputError, match="BAD_REQUEST"):
        export(request | {"formats": ["pickle"]}, Kept(job, "scan", {}))
