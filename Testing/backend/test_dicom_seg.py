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


def without(*names: str):
    """Return what makes of the bare series a complete one that lacks some attributes."""

    def each(data, number: int) -> None:
        complete(data, number)
        for name in names:
            delattr(data, name)

    return each


def latin(data, number: int) -> None:
    """Make a complete series in a script of its own."""
    complete(data, number)
    data.SpecificCharacterSet, data.PatientName = "ISO_IR 100", "Müller^A"


def complaints(path: Path) -> list[str]:
    """Return the errors that a validator finds in a Segmentation."""
    # The labels may be in any script, and it repeats them as they are.
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    lines = done.stderr.splitlines()
    assert "Segmentation" in lines, "it did not see what the file is"
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)")
@pytest.mark.parametrize(
    ("each", "names"),
    [
        (complete, ["a", "b"]),
        (complete, ["Läsion links", "病変"]),
        (complete, ["", "left\\right " + 80 * "x"]),
        (latin, ["a", "b"]),
        (without("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "AccessionNumber"), ["a", "b"]),
        (without("StudyDate", "StudyTime", "StudyID", "ReferringPhysicianName", "SliceThickness"), ["a", "b"]),
    ],
    ids=["complete", "any script", "no label", "series in Latin 1", "no patient", "no study"],
)
def test_a_validator_has_no_complaint(tmp_path, each, names):
    series, path = dicom(tmp_path / "series", each=each), tmp_path / "seg.dcm"
    scan = read_scan(series)
    write_dicom_seg(path, blobs(scan.shape), scan.affine, names, sorted(series.iterdir()), model="test")
    assert not complaints(path)


def test_names_keep_their_script(tmp_path):
    import pydicom

    series, path = dicom(tmp_path / "series", each=latin), tmp_path / "seg.dcm"
    scan = read_scan(series)
    write_dicom_seg(path, blobs(scan.shape), scan.affine, ["Läsion", "病変"], sorted(series.iterdir()), model="test")
    read = pydicom.dcmread(path)
    assert read.PatientName == "Müller^A" and [one.SegmentLabel for one in read.SegmentSequence] == ["Läsion", "病変"]


def test_pixels_of_the_series_need_not_be_opened(tmp_path):
    """What Slicer can unpack, such as lossless JPEG, the backend's Python often cannot."""
    import pydicom

    def packed(data, number: int) -> None:
        complete(data, number)
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        data.PixelData = pydicom.encaps.encapsulate([b"packed"])
        data["PixelData"].is_undefined_length = True

    series, path = dicom(tmp_path / "series", each=packed), tmp_path / "seg.dcm"
    scan = read_scan(dicom(tmp_path / "open", each=complete))
    write_dicom_seg(path, blobs(scan.shape), scan.affine, ["a", "b"], sorted(series.iterdir()), model="test")
    assert path.is_file()


def test_one_instance_with_all_frames(tmp_path, series):
    """As some scanners write a series: enhanced MR."""
    import highdicom
    import pydicom

    def group(**fields) -> pydicom.Sequence:
        item = pydicom.Dataset()
        for name, value in fields.items():
            setattr(item, name, value)
        return pydicom.Sequence([item])

    frames = [pydicom.dcmread(file) for file in series.iterdir()]
    frames.sort(key=lambda frame: frame.ImagePositionPatient[2])
    one = frames[0]
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    one.NumberOfFrames, one.PixelData = len(frames), b"".join(frame.PixelData for frame in frames)
    one.SharedFunctionalGroupsSequence = group(
        PixelMeasuresSequence=group(PixelSpacing=one.PixelSpacing, SliceThickness=6, SpacingBetweenSlices=6),
        PlaneOrientationSequence=group(ImageOrientationPatient=one.ImageOrientationPatient),
    )
    places_of = [group(ImagePositionPatient=frame.ImagePositionPatient) for frame in frames]
    one.PerFrameFunctionalGroupsSequence = [group(PlanePositionSequence=place)[0] for place in places_of]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, name)
    one.save_as(tmp_path / "all.dcm")
    scan, path = read_scan(series), tmp_path / "seg.dcm"
    labels = blobs(scan.shape)
    write_dicom_seg(path, labels, scan.affine, ["a", "b"], [tmp_path / "all.dcm"], model="test")
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    for value in (1, 2):
        np.testing.assert_allclose(places(volume.array, to_ras, value), places(labels, scan.affine, value), atol=1e-2)


def test_refusals_write_nothing(series, tmp_path):
    scan, files, path = read_scan(series), sorted(series.iterdir()), tmp_path / "seg.dcm"
    labels = blobs(scan.shape)
    with pytest.raises(InputError, match="SEGMENTS_EMPTY"):
        write_dicom_seg(path, labels * 0, scan.affine, [], files, model="test")
    with pytest.raises(InputError, match="DICOM_GRID"):
        write_dicom_seg(path, labels, scan.affine @ np.diag([1.1, 1, 1, 1]), ["a", "b"], files, model="test")
    nowhere = sorted(dicom(tmp_path / "nowhere", each=without("FrameOfReferenceUID")).iterdir())
    with pytest.raises(InputError, match="frame of reference"):
        write_dicom_seg(path, labels, scan.affine, ["a", "b"], nowhere, model="test")
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
