"""Files in: exact values and geometry from every format, and a named refusal for whatever is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from UADBenchLib import formats, geometry, reading, writing
from UADBenchLib.errors import InputError
from UADBenchLib.scan import Scan

PLANTED = ("ZEBRAFINCH", "19340512", "QUAGGAMUS")


def header(**fields: Any) -> nibabel.Nifti1Header:
    """A valid header of a 20 x 20 x 20 scan of 6 mm voxels, with some fields overwritten."""
    result = nibabel.Nifti1Header()
    result.set_data_shape((20, 20, 20))
    result.set_data_dtype(fields.pop("dtype", np.int16))
    result.set_sform(np.diag([6.0, 6.0, 6.0, 1.0]), code=1)
    result["pixdim"][:4] = [1, 6, 6, 6]
    result["vox_offset"] = 352
    result["magic"] = b"n+1"
    for name, value in fields.items():
        if isinstance(value, dict):
            for index, entry in value.items():
                result[name][index] = entry
        else:
            result[name] = value
    return result


def nifti(path: Path, values: np.ndarray | bytes | None = None, **fields: Any) -> Path:
    """Write header and voxels byte by byte, whatever they say; compressed if the name ends in .gz."""
    if values is None:
        values = np.arange(8000, dtype=fields.get("dtype", np.int16))
    data = values if isinstance(values, bytes) else values.tobytes()
    content = header(**fields).binaryblock + bytes(4) + data
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def meta(path: Path, values: bytes = bytes(range(250)) * 64, **fields: str) -> Path:
    """Write a MetaImage of 20 x 20 x 20 int16 voxels of 6 mm, with some fields overwritten."""
    lines = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0",
        "ElementSpacing": "6 6 6", "DimSize": "20 20 20", "ElementType": "MET_SHORT",
    } | {name: value for name, value in fields.items() if name != "ElementDataFile"}  # fmt: skip
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value)
    local = fields.get("ElementDataFile", "LOCAL")
    path.write_bytes(f"{text}ElementDataFile = {local}\n".encode() + values)
    return path


def nrrd(path: Path, values: bytes = bytes(range(250)) * 64, **fields: str) -> Path:
    """Write an NRRD of 20 x 20 x 20 int16 voxels of 6 mm, with some fields overwritten (``_`` is a blank)."""
    lines = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "20 20 20",
        "space directions": "(6,0,0) (0,6,0) (0,0,6)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(0,0,0)",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    text = "".join(f"{name}: {value}\n" for name, value in lines.items() if value)
    path.write_bytes(f"NRRD0004\n# a comment\nkey:=value\n{text}\n".encode() + values)
    return path


NO_SPACE = {"space": "", "space_directions": "", "space_origin": ""}
FOUR = {"dimension": "4", "space_directions": "(6,0,0) (0,6,0) (0,0,6) none"}


def dicom(folder: Path, count: int = 20, series: str = "1.2.3.4", **changes: Any) -> Path:
    """Write a DICOM series of 40 x 32 pixels of 4 x 5 mm, 6 mm apart; ``each`` may alter every data set."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder.mkdir(exist_ok=True)
    each = changes.pop("each", lambda data, number: None)
    syntax = changes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    for number in range(count):
        information = FileMetaDataset()
        information.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        information.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
        information.TransferSyntaxUID = syntax
        data = FileDataset(None, {}, file_meta=information, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = information.MediaStorageSOPClassUID, f"{series}.{number + 1}"
        data.PatientName, data.PatientID, data.PatientBirthDate = "ZEBRAFINCH^Q", "QUAGGAMUS", "19340512"
        data.SeriesDescription = "QUAGGAMUS T1"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2.3", series, "MR"
        data.Rows, data.Columns, data.SamplesPerPixel = 32, 40, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [4, 5], 6, count - number
        data.ImageOrientationPatient = [0.96, 0.28, 0, -0.28, 0.96, 0]
        data.ImagePositionPatient = [-70, -60, 6.0 * number - 50]
        data.RescaleSlope, data.RescaleIntercept = 2, -10
        pixels = np.arange(1280, dtype=np.int16).reshape(32, 40) + 1280 * (number % 20)
        data.PixelData = pixels.tobytes()
        for name, value in changes.items():
            setattr(data, name, value)
        each(data, number)
        name = f"{hashlib.sha256(str((series, number)).encode()).hexdigest()[:12]}.dcm"
        data.save_as(folder / name, enforce_file_format=True)
    return folder


def codes(path: Path, level: str) -> set[str]:
    return {check.code for check in reading.check_file(path) if check.level == level}


def refusal(path: Path) -> str:
    """Return the code of the refusal, after checking that both ways of reading agree and name a cure."""
    with pytest.raises(InputError) as caught:
        reading.read_scan(path)
    assert caught.value.code in codes(path, "error")
    assert caught.value.message and caught.value.advice
    assert "\n" not in str(caught.value)
    return caught.value.code


class TestNifti:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_round_trip(self, tmp_path, affine, volume, suffix):
        writing.write_volume(tmp_path / f"sub-1_T1w{suffix}", volume, affine)
        scan = reading.read_scan(tmp_path / f"sub-1_T1w{suffix}")
        np.testing.assert_array_equal(scan.voxels, volume)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
        assert scan.voxels.dtype == np.float32 and scan.voxels.flags.f_contiguous
        assert scan.stem == "sub-1_T1w" and scan.contrast == "T1w"
        assert {check.level for check in scan.checks} <= {"warning"}

    @given(
        seed=st.integers(0, 2**32 - 1),
        edges=st.tuples(*[st.floats(1.0, 8.0)] * 3),
        hand=st.sampled_from([-1.0, 1.0]),
        gz=st.booleans(),
    )
    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_lattice_survives(self, tmp_path, seed, edges, hand, gz):
        random = np.random.default_rng(seed)
        axes = np.linalg.qr(random.normal(size=(3, 3)))[0]
        affine = np.eye(4)
        affine[:3, :3] = axes * np.sign(np.linalg.det(axes)) * np.array([hand, 1, 1]) * edges
        affine[:3, 3] = random.uniform(-150, 150, 3)
        shape = tuple(int(np.ceil(101 / edge)) for edge in edges)
        voxels = random.normal(size=shape).astype(np.float32)
        path = tmp_path / ("a.nii.gz" if gz else "a.nii")
        writing.write_volume(path, voxels, affine)
        scan = reading.read_scan(path)
        np.testing.assert_array_equal(scan.voxels, voxels)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-4)
        assert np.sign(np.linalg.det(scan.affine)) == hand
        assert {check.code for check in scan.checks} <= {"VOXEL_SIZE"}

    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_every_type_agrees_with_nibabel(self, tmp_path, dtype, order):
        kind = np.dtype(dtype)
        values = np.random.default_rng(5).integers(0, 120, (20, 21, 22)).astype(kind)
        image = nibabel.Nifti1Image(values, np.diag([6.0, 6, 6, 1]), dtype=kind)
        head = image.header.as_byteswapped(order)
        nibabel.Nifti1Image(values, image.affine, head, dtype=kind).to_filename(tmp_path / "a.nii.gz")
        scan = reading.read_scan(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(scan.voxels, nibabel.load(tmp_path / "a.nii.gz").get_fdata())
        assert scan.provenance["data_type"] == kind.name

    def test_scaling_is_applied(self, tmp_path):
        scan = reading.read_scan(nifti(tmp_path / "a.nii", scl_slope=0.5, scl_inter=-3))
        np.testing.assert_array_equal(scan.voxels.ravel(order="F"), np.arange(8000) * 0.5 - 3)

    @pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
    def test_no_scaling_is_no_scaling(self, tmp_path, slope):
        scan = reading.read_scan(nifti(tmp_path / "a.nii", scl_slope=slope, scl_inter=7))
        np.testing.assert_array_equal(scan.voxels.ravel(order="F"), np.arange(8000))

    def test_nifti2(self, tmp_path, affine, volume):
        nibabel.Nifti2Image(volume, affine).to_filename(tmp_path / "a.nii")
        scan = reading.read_scan(tmp_path / "a.nii")
        np.testing.assert_array_equal(scan.voxels, volume)
        assert scan.provenance["format"] == "NIfTI-2"

    def test_large_scans_are_read_piece_by_piece(self, tmp_path, monkeypatch):
        monkeypatch.setattr(reading, "_CHUNK", 777)
        monkeypatch.setattr(formats, "_CHUNK", 777)
        for name in ("a.nii", "a.nii.gz"):
            scan = reading.read_scan(nifti(tmp_path / name))
            np.testing.assert_array_equal(scan.voxels.ravel(order="F"), np.arange(8000))

    def test_several_gzip_members(self, tmp_path):
        content = nifti(tmp_path / "a.nii").read_bytes()
        parts = [content[:400], content[400:9000], content[9000:]]
        (tmp_path / "a.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in parts) + bytes(512))
        scan = reading.read_scan(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(scan.voxels.ravel(order="F"), np.arange(8000))

    def test_qform_alone(self, tmp_path, oblique, volume):
        image = nibabel.Nifti1Image(volume, oblique)
        image.set_sform(None, code=0)
        image.set_qform(oblique, code=1)
        image.to_filename(tmp_path / "a.nii")
        np.testing.assert_allclose(reading.read_scan(tmp_path / "a.nii").affine, oblique, atol=1e-3)

    def test_a_fourth_dimension_of_one_is_noted(self, tmp_path):
        scan = reading.read_scan(nifti(tmp_path / "a.nii", dim={0: 4, 4: 1}))
        assert scan.shape == (20, 20, 20)
        assert [(check.level, check.code) for check in scan.checks if check.level == "info"] == [("info", "NOT_3D")]

    def test_negative_background_and_extensions_are_fine(self, tmp_path):
        image = nibabel.Nifti1Image(
            np.arange(8000, dtype=np.float32).reshape(20, 20, 20) - 1024, np.diag([6.0, 6, 6, 1])
        )
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", PLANTED[0].encode()))
        image.to_filename(tmp_path / "a.nii.gz")
        assert reading.read_scan(tmp_path / "a.nii.gz").voxels.min() == -1024

    def test_provenance_is_plain_and_complete(self, tmp_path):
        path = nifti(tmp_path / "a.nii.gz")
        provenance = reading.read_scan(path).provenance
        assert json.loads(json.dumps(provenance)) == {
            "format": "NIfTI-1",
            "data_type": "int16",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "shape": [20, 20, 20],
            "voxel_mm": [6.0, 6.0, 6.0],
        }


class TestOtherFormats:
    @pytest.mark.parametrize("compress", [False, True])
    @pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nii.gz"])
    def test_agrees_with_simpleitk(self, tmp_path, affine, volume, suffix, compress):
        import SimpleITK as sitk

        values = np.asarray(volume * 100, dtype=np.int16)
        sitk.WriteImage(geometry.to_sitk(values, affine), str(tmp_path / f"a{suffix}"), useCompression=compress)
        scan = reading.read_scan(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(scan.voxels, values)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-3)
        assert scan.voxels.flags.f_contiguous and scan.provenance["data_type"] == "int16"

    @pytest.mark.parametrize("make", [meta, nrrd])
    @pytest.mark.parametrize("big", [False, True])
    def test_byte_order(self, tmp_path, make, big):
        values = np.arange(8000, dtype=">i2" if big else "<i2").tobytes()
        fields = {"BinaryDataByteOrderMSB": str(big)} if make is meta else {"endian": "big" if big else "little"}
        scan = reading.read_scan(make(tmp_path / ("a.mha" if make is meta else "a.nrrd"), values, **fields))
        np.testing.assert_array_equal(scan.voxels.ravel(order="F"), np.arange(8000))

    @pytest.mark.parametrize(
        ("damage", "code"),
        [
            (lambda data: data, None),
            (lambda data: data + b"1234", None),
            (lambda data: gzip.compress(gzip.decompress(data) + bytes(1 << 24)), "UNREADABLE"),
            (lambda data: data[: len(data) // 2], "TRUNCATED"),
            (lambda data: data[:300] + bytes(9) + data[309:], "UNREADABLE"),
            (lambda data: data[:-6] + bytes([data[-6] ^ 1]) + data[-5:], "UNREADABLE"),
        ],
    )
    @pytest.mark.parametrize("make", [meta, nrrd])
    def test_damaged_compressed_data(self, tmp_path, make, damage, code):
        data = damage(gzip.compress(np.arange(8000, dtype="<i2").tobytes(), mtime=0))
        size = {"CompressedData": "True", "CompressedDataSize": str(len(data))}
        fields = size if make is meta else {"encoding": "gzip"}
        path = make(tmp_path / ("a.mha" if make is meta else "a.nrrd"), data, **fields)
        if code is None:
            np.testing.assert_array_equal(reading.read_scan(path).voxels.ravel(order="F"), np.arange(8000))
        else:
            assert refusal(path) == code

    @pytest.mark.parametrize(("size", "code"), [("", "UNREADABLE"), ("100", "TRUNCATED"), ("-1", "UNREADABLE")])
    def test_metaimage_with_another_compressed_size(self, tmp_path, size, code):
        data = zlib.compress(np.arange(8000, dtype="<i2").tobytes())
        path = meta(tmp_path / "a.mha", data, CompressedData="True", CompressedDataSize=size)
        assert refusal(path) == code

    @pytest.mark.parametrize(
        ("space", "signs"), [("RAS", (1, 1)), ("left-anterior-superior", (-1, 1)), ("LPS", (-1, -1))]
    )
    def test_nrrd_spaces(self, tmp_path, space, signs):
        scan = reading.read_scan(nrrd(tmp_path / "a.nrrd", space=space, space_origin="(1,2,3)"))
        np.testing.assert_array_equal(np.diag(scan.affine)[:2], np.array(signs) * 6)
        np.testing.assert_array_equal(scan.affine[:3, 3], [signs[0], 2 * signs[1], 3])

    def test_nrrd_axis_of_one_component(self, tmp_path):
        path = nrrd(
            tmp_path / "a.nrrd", dimension="4", sizes="1 20 20 20", kinds="vector domain domain domain",
            space_directions="none (6,0,0) (0,6,0) (0,0,6)",
        )  # fmt: skip
        assert reading.read_scan(path).shape == (20, 20, 20)

    @pytest.mark.parametrize("make", [meta, nrrd])
    def test_without_orientation_is_a_warning(self, tmp_path, make):
        if make is meta:
            path = meta(tmp_path / "a.mha", TransformMatrix="")
        else:
            path = nrrd(tmp_path / "a.nrrd", space="", space_directions="", space_origin="", spacings="6 6 6")
        assert codes(path, "warning") == {"NO_SPATIAL_INFORMATION", "VOXEL_SIZE"}


class TestDicom:
    def test_agrees_with_simpleitk(self, tmp_path):
        import SimpleITK as sitk

        folder = dicom(tmp_path / "DOE")
        scan = reading.read_scan(folder)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        values, affine = geometry.from_sitk(reader.Execute())
        np.testing.assert_array_equal(scan.voxels, values)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
        assert scan.shape == (40, 32, 20) and scan.voxels[1, 0, 0] == 2 * 1 - 10
        assert scan.provenance["format"] == "DICOM" and len(scan.provenance["sha256"]) == 64

    def test_the_hash_ignores_names(self, tmp_path):
        folder = dicom(tmp_path / "a")
        before = reading.read_scan(folder).provenance["sha256"]
        for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
            path.rename(folder / f"IM{number:04d}")
        assert reading.read_scan(folder).provenance["sha256"] == before

    def test_the_stem_says_nothing_about_the_patient(self, tmp_path):
        folder = dicom(tmp_path / "ZEBRAFINCH")
        stem = "dicom-" + hashlib.sha256(b"1.2.3.4").hexdigest()[:8]
        assert reading.stem_of(folder) == reading.read_scan(folder).stem == stem
        (tmp_path / "QUAGGAMUS").mkdir()
        assert reading.stem_of(tmp_path / "QUAGGAMUS") == "dicom"

    def test_other_files_in_the_folder_are_passed_over(self, tmp_path):
        folder = dicom(tmp_path / "a")
        (folder / "README.txt").write_text("nothing")
        assert reading.read_scan(folder).shape == (40, 32, 20)

    def test_several_series(self, tmp_path):
        dicom(tmp_path / "a", 3, "1.2.3.4")
        folder = dicom(tmp_path / "a", 20, "1.2.3.5")
        assert refusal(folder) == "DICOM_SEVERAL_SERIES"
        (check,) = reading.check_file(folder)
        assert "2 series" in check.message and "3" in check.message and "20" in check.message

    def test_deflated_is_refused_before_it_is_inflated(self, tmp_path):
        folder = dicom(tmp_path / "a", 20)
        engine = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = engine.compress(bytes(1 << 27)) + engine.flush()
        first = sorted(folder.iterdir())[0]
        content = first.read_bytes()
        end = content.index(b"\x08\x00\x16\x00")  # where the data set begins
        changed = content[:end].replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.1.99")
        changed = changed.replace(b"\x14\x00" + b"1.2.840.10008.1.2.1.99", b"\x16\x00" + b"1.2.840.10008.1.2.1.99")
        (length,) = struct.unpack("<I", changed[140:144])
        first.write_bytes(changed[:140] + struct.pack("<I", length + 2) + changed[144:] + bomb)
        tracemalloc.start()
        assert refusal(folder) == "UNREADABLE"
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
        tracemalloc.stop()
        assert "deflated" in reading.check_file(folder)[0].message

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"count": 1}, "NOT_3D"),
            ({"NumberOfFrames": 5}, "UNREADABLE"),
            ({"SamplesPerPixel": 3}, "SEVERAL_COMPONENTS"),
            ({"ImagePositionPatient": [0, 0, 0]}, "NOT_3D"),
            ({"ImagePositionPatient": None}, "UNREADABLE"),
            ({"PixelSpacing": [0, 0]}, "AFFINE_SINGULAR"),
            ({"PixelSpacing": [40, 40]}, "VOXEL_SIZE"),
            ({"PixelData": bytes(100), "RescaleSlope": 1}, "TRUNCATED"),
            ({"PixelData": bytes(2560)}, "CONSTANT"),
            ({"Rows": 60000, "Columns": 60000}, "TRUNCATED"),
            ({"BitsAllocated": 64}, "DATA_TYPE"),
        ],
    )
    def test_refusals(self, tmp_path, changes, code):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder = dicom(tmp_path / "a", **changes)
        assert refusal(folder) == code

    @pytest.mark.parametrize(
        ("each", "code"),
        [
            (lambda data, n: setattr(data, "Rows", 30 if n == 3 else 32), "UNREADABLE"),
            (lambda data, n: setattr(data, "PixelSpacing", [4, 4] if n == 3 else [4, 5]), "UNREADABLE"),
            (
                lambda data, n: setattr(data, "ImageOrientationPatient", [1, 0, 0, 0, 0, 1 - 2 * (n > 5)]),
                "UNREADABLE",
            ),
            (lambda data, n: setattr(data, "ImagePositionPatient", [0, 0, 6 * n + 9 * (n > 8)]), "TRUNCATED"),
            (lambda data, n: setattr(data, "ImagePositionPatient", [0, n, 6 * n]), "AFFINE_SHEARED"),
        ],
    )
    def test_images_that_do_not_belong_together(self, tmp_path, each, code):
        assert refusal(dicom(tmp_path / "a", each=each)) == code

    def test_an_empty_folder(self, tmp_path):
        assert refusal(tmp_path) == "UNKNOWN_FORMAT"

    def test_too_many_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(formats, "_MOST_FILES", 3)
        assert refusal(dicom(tmp_path / "a", 4)) == "TOO_LARGE"

    def test_an_unknown_transfer_syntax(self, tmp_path):
        folder = dicom(tmp_path / "a", 2)
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0"))
        assert refusal(folder) == "UNREADABLE"

    def test_another_modality_is_a_warning(self, tmp_path):
        assert "MODALITY" in codes(dicom(tmp_path / "a", Modality="CT"), "warning")

    def test_damaged_files_never_raise_anything_else(self, tmp_path):
        folder = dicom(tmp_path / "a", 4)
        path = sorted(folder.iterdir())[1]
        content, random = path.read_bytes(), np.random.default_rng(11)
        end = content.index(b"\xe0\x7f\x10\x00")  # pixel data: everything in front of them is header
        for _ in range(40):
            mutated = bytearray(content)
            for place in random.integers(132, end, 3):
                mutated[place] = random.integers(256)
            path.write_bytes(mutated)
            assert_only_input_errors(folder)


def assert_only_input_errors(path: Path) -> bool:
    """Read; tell whether it went well. Anything but success or an ``InputError`` fails the test."""
    reading.check_file(path)
    try:
        scan = reading.read_scan(path)
    except InputError:
        return False
    assert np.isfinite(scan.voxels).all() and np.isfinite(scan.affine).all()
    return True


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"dim": {0: 2}}, "NOT_3D"),
            ({"dim": {3: 1}}, "NOT_3D"),
            ({"dim": {0: 4, 4: 3}}, "NOT_3D"),
            ({"dim": {0: 5, 4: 1, 5: 3}}, "SEVERAL_COMPONENTS"),
            ({"dim": {0: 0}}, "UNREADABLE"),
            ({"dim": {0: 9}}, "UNREADABLE"),
            ({"dim": {1: -20}}, "UNREADABLE"),
            ({"dim": {1: 0}}, "UNREADABLE"),
            ({"dim": {1: 32767, 2: 32767, 3: 32767}}, "TOO_LARGE"),
            ({"dim": {1: 40}}, "TRUNCATED"),
            ({"datatype": 128}, "SEVERAL_COMPONENTS"),
            ({"datatype": 2304}, "SEVERAL_COMPONENTS"),
            ({"datatype": 32}, "DATA_TYPE"),
            ({"datatype": 1792}, "DATA_TYPE"),
            ({"datatype": 1536}, "DATA_TYPE"),
            ({"datatype": 1}, "DATA_TYPE"),
            ({"datatype": 4711}, "DATA_TYPE"),
            ({"scl_slope": 2, "scl_inter": np.inf}, "INTEGER_OVERFLOW"),
            ({"scl_slope": 1e36}, "INTEGER_OVERFLOW"),
            ({"vox_offset": np.nan}, "UNREADABLE"),
            ({"vox_offset": -5}, "UNREADABLE"),
            ({"vox_offset": 1e30}, "UNREADABLE"),
            ({"magic": b"ni1"}, "UNREADABLE"),
            ({"magic": b"xyz"}, "UNREADABLE"),
            ({"magic": b""}, "UNREADABLE"),
            ({"srow_x": {0: 0}}, "AFFINE_SINGULAR"),
            ({"srow_x": {0: np.nan}}, "AFFINE_SINGULAR"),
            ({"srow_y": {3: np.inf}}, "AFFINE_SINGULAR"),
            ({"srow_x": {1: 0.6}}, "AFFINE_SHEARED"),
            ({"srow_x": {0: 13}}, "VOXEL_SIZE"),
            ({"srow_x": {0: 0.1}}, "VOXEL_SIZE"),
            ({"srow_x": {0: 2.9}}, "EXTENT"),
            ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "AFFINE_SINGULAR"),
            ({"sform_code": 0, "qform_code": 1, "pixdim": {1: -6}}, "AFFINE_SINGULAR"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_nifti_headers(self, tmp_path, fields, code, suffix):
        assert refusal(nifti(tmp_path / f"a{suffix}", **fields)) == code

    def test_a_scan_longer_than_a_person(self, tmp_path):
        path = nifti(tmp_path / "a.nii", np.arange(10 * 20 * 20 * 6, dtype=np.int16), dim={1: 60}, srow_x={0: 9})
        assert refusal(path) == "EXTENT"

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"DimSize": "20 20"}, "UNREADABLE"),
            ({"DimSize": "20 20 x"}, "UNREADABLE"),
            ({"DimSize": "20 20 -20"}, "TOO_LARGE"),
            ({"DimSize": "20 20 0"}, "NOT_3D"),
            ({"DimSize": "20 20 99999999999"}, "TOO_LARGE"),
            ({"DimSize": "20 20 21"}, "TRUNCATED"),
            ({"NDims": "2", "DimSize": "20 20"}, "NOT_3D"),
            ({"NDims": "4", "DimSize": "20 20 20 1"}, "NOT_3D"),
            ({"NDims": "100"}, "NOT_3D"),
            ({"NDims": "-3"}, "NOT_3D"),
            ({"NDims": "3\nNDims = 100"}, "UNREADABLE"),
            ({"ElementType": "MET_OTHER"}, "DATA_TYPE"),
            ({"ElementNumberOfChannels": "3"}, "SEVERAL_COMPONENTS"),
            ({"ElementDataFile": "LIST"}, "UNREADABLE"),
            ({"ElementDataFile": "slice%03d.raw"}, "UNREADABLE"),
            ({"ElementDataFile": "../a.raw"}, "UNREADABLE"),
            ({"ElementDataFile": "/etc/hosts"}, "UNREADABLE"),
            ({"ElementDataFile": "missing.raw"}, "UNREADABLE"),
            ({"ElementDataFile": ".."}, "UNREADABLE"),
            ({"BinaryData": "False"}, "UNREADABLE"),
            ({"ElementType": ""}, "UNREADABLE"),
            ({"CompressedData": "True"}, "UNREADABLE"),
            ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, "AFFINE_SINGULAR"),
            ({"ElementSpacing": "6 6 nan"}, "AFFINE_SINGULAR"),
            ({"ElementSpacing": "6 6 0.01"}, "VOXEL_SIZE"),
        ],
    )
    def test_metaimage_headers(self, tmp_path, fields, code):
        assert refusal(meta(tmp_path / "a.mha", **fields)) == code

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"sizes": "20 20"}, "UNREADABLE"),
            ({"sizes": "20 20 0"}, "UNREADABLE"),
            ({"sizes": "20 20 99999999999"}, "TOO_LARGE"),
            ({"sizes": "20 20 21"}, "TRUNCATED"),
            ({"sizes": ""}, "UNREADABLE"),
            ({"dimension": "2", "sizes": "80 100", "kinds": "", **NO_SPACE}, "NOT_3D"),
            ({"dimension": "99"}, "UNREADABLE"),
            ({"dimension": "4", "sizes": "20 20 10 2", "kinds": "", **NO_SPACE}, "NOT_3D"),
            ({**FOUR, "sizes": "20 20 10 2", "kinds": "domain domain domain time"}, "NOT_3D"),
            ({**FOUR, "sizes": "20 20 10 2", "kinds": "domain domain domain list"}, "SEVERAL_COMPONENTS"),
            ({"type": "block", "block_size": "2"}, "DATA_TYPE"),
            ({"encoding": "hex"}, "UNREADABLE"),
            ({"encoding": "gzip"}, "UNREADABLE"),
            ({"data_file": "a.raw"}, "UNREADABLE"),
            ({"DataFile": "a.raw"}, "UNREADABLE"),
            ({"byte_skip": "2"}, "TRUNCATED"),
            ({"space_directions": "(6,0,0) (0,6,0)"}, "UNREADABLE"),
            ({"space_directions": "(6,0,0) (0,6,0) (0,0,x)"}, "UNREADABLE"),
            ({"space_directions": "(6,0,0) (0,6,0) (0,6,0)"}, "AFFINE_SINGULAR"),
            ({"space_directions": "(6,0,0) (1,6,0) (0,0,6)"}, "AFFINE_SHEARED"),
        ],
    )
    def test_nrrd_headers(self, tmp_path, fields, code):
        assert refusal(nrrd(tmp_path / "a.nrrd", **fields)) == code

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
    def test_empty_files(self, tmp_path, suffix):
        (tmp_path / f"a{suffix}").write_bytes(b"")
        assert refusal(tmp_path / f"a{suffix}") == "TRUNCATED"

    @pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha", ".mhd"])
    def test_other_content(self, tmp_path, suffix):
        (tmp_path / f"a{suffix}").write_bytes(b"GIF89a" + bytes(400))
        assert refusal(tmp_path / f"a{suffix}") in {"UNREADABLE", "TRUNCATED"}

    def test_headers_alone(self, tmp_path):
        assert refusal(nifti(tmp_path / "a.nii", b"")) == "TRUNCATED"
        assert refusal(nifti(tmp_path / "a.nii.gz", b"")) == "TRUNCATED"
        assert refusal(meta(tmp_path / "a.mha", b"")) == "TRUNCATED"
        assert refusal(nrrd(tmp_path / "a.nrrd", b"")) == "TRUNCATED"
        (tmp_path / "b.nii").write_bytes((tmp_path / "a.nii").read_bytes()[:200])
        assert refusal(tmp_path / "b.nii") == "TRUNCATED"

    def test_compression_and_name_disagree(self, tmp_path):
        plain, packed = nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii.gz")
        content = plain.read_bytes()
        plain.write_bytes(packed.read_bytes())
        packed.write_bytes(content)
        for path, cure in ((plain, ".nii.gz"), (packed, ".nii")):
            assert refusal(path) == "UNREADABLE"
            assert reading.check_file(path)[0].advice.endswith(cure)

    def test_gzip_of_something_else(self, tmp_path):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"hello" * 200))
        assert refusal(tmp_path / "a.nii.gz") == "UNREADABLE"

    def test_a_wrong_checksum(self, tmp_path):
        path = nifti(tmp_path / "a.nii.gz")
        content = bytearray(path.read_bytes())
        content[-6] ^= 1
        path.write_bytes(content)
        assert refusal(path) == "UNREADABLE"
        assert "checksum" in reading.check_file(path)[0].message

    @pytest.mark.parametrize("keep", [0.3, 0.9, -4])
    def test_a_shortened_archive(self, tmp_path, keep):
        path = nifti(tmp_path / "a.nii.gz")
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content)) if keep > 0 else keep])
        assert refusal(path) == "TRUNCATED"

    def test_not_there_and_unknown(self, tmp_path):
        assert refusal(tmp_path / "none.nii") == "NOT_FOUND"
        (tmp_path / "a.jpg").write_bytes(b"x")
        (tmp_path / ".nii").write_bytes(b"x")
        assert refusal(tmp_path / "a.jpg") == refusal(tmp_path / ".nii") == "UNKNOWN_FORMAT"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.nii")
        assert refusal(tmp_path / "a.nii") == "UNKNOWN_FORMAT"

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
    def test_no_permission(self, tmp_path):
        nifti(tmp_path / "a.nii").chmod(0)
        assert refusal(tmp_path / "a.nii") == "UNREADABLE"

    def test_an_unreadable_disk(self, tmp_path, monkeypatch):
        def fail(*_: Any) -> None:
            raise OSError("input/output error")

        monkeypatch.setattr(formats, "_nifti_voxels", fail)
        assert refusal(nifti(tmp_path / "a.nii")) == "UNREADABLE"

    def test_not_enough_memory(self, tmp_path, monkeypatch):
        def fail(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(formats, "_nifti_voxels", fail)
        assert refusal(nifti(tmp_path / "a.nii")) == "TOO_LARGE"

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_values_that_are_none(self, tmp_path, bad, dtype):
        values = np.arange(8000, dtype=dtype)
        values[[5, 4000]] = bad
        path = nifti(tmp_path / "a.nii.gz", values, dtype=dtype)
        assert refusal(path) == "NON_FINITE"
        assert "2 of 8000" in reading.check_file(path)[0].message

    def test_a_constant_scan(self, tmp_path):
        assert refusal(nifti(tmp_path / "a.nii", np.full(8000, 3, dtype=np.int16))) == "CONSTANT"

    def test_doubles_beyond_float32(self, tmp_path):
        values = np.arange(8000, dtype=np.float64)
        values[9] = 1e300
        assert refusal(nifti(tmp_path / "a.nii", values, dtype=np.float64)) == "INTEGER_OVERFLOW"

    def test_several_errors_are_all_listed(self, tmp_path):
        path = nifti(tmp_path / "a.nii", srow_x={0: 13, 1: 1})
        assert codes(path, "error") == {"AFFINE_SHEARED", "VOXEL_SIZE"}

    def test_an_unknown_contrast(self, tmp_path):
        with pytest.raises(InputError, match="CONTRAST_UNKNOWN.*T1w, T2w, FLAIR"):
            reading.read_scan(nifti(tmp_path / "a.nii"), contrast="PD")


class TestWarnings:
    def test_thick_slices_pass(self, tmp_path):
        path = nifti(tmp_path / "a.nii", srow_z={2: 8})
        assert reading.read_scan(path).voxel_mm[2] == 8
        assert codes(path, "warning") == {"VOXEL_SIZE"}

    def test_part_of_a_brain(self, tmp_path):
        assert "EXTENT" in codes(nifti(tmp_path / "a.nii", srow_z={2: 4}), "warning")

    def test_a_slight_tilt_is_kept_as_it_is(self, tmp_path):
        path = nifti(tmp_path / "a.nii", srow_x={1: 0.05})
        assert "AFFINE_SHEARED" in codes(path, "warning")
        assert reading.read_scan(path).affine[0, 1] == pytest.approx(0.05)

    @pytest.mark.parametrize("moved", [{"qoffset_x": 0.2}, {"quatern_d": 0.002}, {"quatern_b": 9}])
    def test_sform_and_qform_disagree(self, tmp_path, moved):
        path = nifti(tmp_path / "a.nii", qform_code=1, **moved)
        assert "AFFINE_CONFLICT" in codes(path, "warning")
        np.testing.assert_allclose(reading.read_scan(path).affine, np.diag([6.0, 6, 6, 1]))

    def test_sform_and_qform_agree(self, tmp_path):
        assert "AFFINE_CONFLICT" not in codes(nifti(tmp_path / "a.nii", qform_code=1, qoffset_x=0.05), "warning")

    def test_no_spatial_information(self, tmp_path):
        path = nifti(tmp_path / "a.nii", sform_code=0)
        assert "NO_SPATIAL_INFORMATION" in codes(path, "warning")
        np.testing.assert_allclose(reading.read_scan(path).affine, nibabel.load(path).affine)

    def test_another_unit_of_length(self, tmp_path):
        assert "UNITS" in codes(nifti(tmp_path / "a.nii", xyzt_units=3), "warning")

    @pytest.mark.parametrize(("top", "said"), [(2**24, set()), (2**24 + 3, {"INTEGER_OVERFLOW"})])
    def test_integers_that_float32_rounds(self, tmp_path, top, said):
        values = np.arange(8000, dtype=np.int64)
        values[-1] = top
        path = nifti(tmp_path / "a.nii", values, dtype=np.int64)
        assert codes(path, "warning") - {"VOXEL_SIZE"} == said

    def test_the_most_serious_comes_first(self, tmp_path):
        path = nifti(tmp_path / "a.nii", dim={0: 4, 4: 1}, sform_code=0, pixdim={1: 13})
        levels = [check.level for check in reading.check_file(path)]
        assert levels == sorted(levels, key=["error", "warning", "info"].index) and levels[0] == "error"


class TestHarm:
    @pytest.mark.parametrize(("size", "said"), [(1200, "6.4 GiB"), (900, "1458000000 bytes")])
    def test_a_bomb_takes_no_memory(self, tmp_path, size, said):
        """Too large by itself, and too large for its file."""
        bomb = header(dim={1: size, 2: size, 3: size}).binaryblock + bytes(4)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bomb))
        tracemalloc.start()
        assert refusal(tmp_path / "a.nii.gz") == "TOO_LARGE"
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
        tracemalloc.stop()
        assert said in reading.check_file(tmp_path / "a.nii.gz")[0].message

    @pytest.mark.parametrize(("make", "name"), [(nifti, "a.nii"), (meta, "a.mha"), (nrrd, "a.nrrd")])
    def test_a_short_file_is_refused_before_voxels_are_read(self, tmp_path, make, name, monkeypatch):
        path = make(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-2])
        for loader in ("_nifti_voxels", "_itk_voxels"):
            monkeypatch.setattr(formats, loader, lambda *_: pytest.fail("voxels were read"))
        assert refusal(path) == "TRUNCATED"

    def test_what_inflates_beyond_the_declared_size_is_left(self, tmp_path):
        content = nifti(tmp_path / "a.nii").read_bytes() + bytes(1 << 27)
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
        tracemalloc.start()
        assert reading.read_scan(tmp_path / "a.nii.gz").shape == (20, 20, 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
        tracemalloc.stop()

    def test_reading_takes_hardly_more_than_the_voxels(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 1000, 128**3).astype(np.int16)
        path = nifti(
            tmp_path / "a.nii.gz",
            values,
            dim={1: 128, 2: 128, 3: 128},
            srow_x={0: 1},
            srow_y={1: 1},
            srow_z={2: 1},
        )
        reading.read_scan(nifti(tmp_path / "warm.nii"))
        tracemalloc.start()
        reading.read_scan(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.7 * 4 * 128**3

    @pytest.mark.parametrize(("suffix", "count"), [(".nii", 240), (".nii.gz", 120), (".mha", 120), (".nrrd", 120)])
    def test_mutated_files_are_read_or_refused(self, tmp_path, suffix, count):
        path = tmp_path / f"a{suffix}"
        make = {".mha": meta, ".nrrd": nrrd}.get(suffix, nifti)
        content = make(path).read_bytes()
        random, read = np.random.default_rng(20240901), 0
        span = 352 if suffix == ".nii" else min(len(content), 420)
        tracemalloc.start()
        for number in range(count):
            mutated = bytearray(content)
            for place in random.integers(0, span if number % 4 else len(content), 1 + number % 5):
                mutated[place] = random.integers(256)
            path.write_bytes(mutated[: random.integers(len(content))] if number % 10 == 9 else mutated)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read += assert_only_input_errors(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * reading.LARGEST_RATIO * len(content) + (1 << 24)
        assert peak < 1 << 26
        assert 0 < read < count

    @given(content=st.binary(max_size=600), suffix=st.sampled_from([".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"]))
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_noise_is_refused(self, tmp_path, content, suffix):
        starts = {".nii": b"\x5c\x01\0\0", ".nii.gz": b"\x1f\x8b\x08\0", ".nrrd": b"NRRD0004\n"}
        path = tmp_path / f"a{suffix}"
        path.write_bytes(starts.get(suffix, b"") + content)
        assert refusal(path) in {
            "UNREADABLE",
            "TRUNCATED",
            "DATA_TYPE",
            "NOT_3D",
            "TOO_LARGE",
            "SEVERAL_COMPONENTS",
        }


class TestMask:
    @pytest.fixture
    def scan(self, volume, oblique) -> Scan:
        return Scan(volume, oblique)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_on_the_same_grid(self, tmp_path, scan, dtype):
        mask = scan.voxels > 60
        writing.write_volume(tmp_path / "m.nii.gz", mask.astype(dtype) * 2, scan.affine)
        got = reading.read_mask(tmp_path / "m.nii.gz", scan)
        assert got.dtype == bool and not scan.checks
        np.testing.assert_array_equal(got, mask)

    def test_on_a_reoriented_grid(self, tmp_path, scan):
        mask = scan.voxels > 60
        writing.write_volume(tmp_path / "m.nii.gz", *geometry.canonical(mask, scan.affine))
        got = reading.read_mask(tmp_path / "m.nii.gz", scan, "reference")
        np.testing.assert_array_equal(got, mask)
        (check,) = scan.checks
        assert (check.level, check.code) == ("warning", "MASK_GRID") and "reference" in check.message

    def test_on_a_finer_grid(self, tmp_path, scan):
        fine = scan.affine.copy()
        fine[:3, :3] /= 2
        mask = scan.voxels > 60
        shape = tuple(2 * size for size in scan.shape)
        writing.write_volume(tmp_path / "m.nii.gz", geometry.resample(mask, scan.affine, shape, fine, order=0), fine)
        got = reading.read_mask(tmp_path / "m.nii.gz", scan)
        assert (got != mask).mean() < 0.001

    def test_empty_is_allowed(self, tmp_path, scan):
        writing.write_volume(tmp_path / "m.nii.gz", np.zeros(scan.shape, dtype=bool), scan.affine)
        assert not reading.read_mask(tmp_path / "m.nii.gz", scan).any()

    def test_elsewhere_is_refused(self, tmp_path, scan):
        away = scan.affine.copy()
        away[:3, 3] += 1000
        writing.write_volume(tmp_path / "m.nii.gz", scan.voxels > 60, away)
        with pytest.raises(InputError) as caught:
            reading.read_mask(tmp_path / "m.nii.gz", scan, "brain mask")
        assert caught.value.code == "MASK_OUTSIDE" and "brain mask" in caught.value.message

    def test_errors_say_which_file_they_mean(self, tmp_path, scan):
        with pytest.raises(InputError, match="NOT_FOUND: brain mask: there is no m.nii"):
            reading.read_mask(tmp_path / "m.nii", scan, "brain mask")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "stem", "contrast"),
        [
            ("sub-1_T1w.nii.gz", "sub-1_T1w", "T1w"),
            ("sub-1.2_ses-b_FLAIR.nrrd", "sub-1.2_ses-b_FLAIR", "FLAIR"),
            ("x_t2w.NII", "x_t2w", "T2w"),
            ("T1w.mha", "T1w", "T1w"),
            ("sub-1_T1w_mask.nii", "sub-1_T1w_mask", None),
            ("scan.mhd", "scan", None),
            ("a.b.dcm", "a.b", None),
        ],
    )
    def test_stem_and_contrast(self, name, stem, contrast):
        assert reading.stem_of(f"somewhere/{name}") == stem
        assert reading.contrast_from_name(f"somewhere_T2w/{name}") == contrast

    def test_a_stated_contrast_wins(self, tmp_path):
        assert reading.read_scan(nifti(tmp_path / "a_T1w.nii"), contrast="FLAIR").contrast == "FLAIR"


class TestPrivacy:
    def everything(self, path: Path, out: Path) -> str:
        """All that reading and writing again make known of a file, as one text."""
        scan = reading.read_scan(path)
        writing.write_volume(out / "map.nii", scan.voxels, scan.affine)
        writing.write_json(out / "map.json", {"provenance": scan.provenance, "checks": [vars(c) for c in scan.checks]})
        files = "".join(part.read_bytes().decode("latin-1") for part in out.iterdir())
        described = [scan.stem, scan.contrast, scan.checks, scan.provenance, reading.check_file(path)]
        return repr(described) + files

    def test_nifti(self, tmp_path):
        image = nibabel.load(nifti(tmp_path / "a.nii", sform_code=0))
        fields = {
            "descrip": PLANTED[0],
            "db_name": PLANTED[1],
            "aux_file": PLANTED[2],
            "intent_name": PLANTED[0],
        }
        for field, text in fields.items():
            image.header[field] = text
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", " ".join(PLANTED).encode()))
        image.to_filename(tmp_path / "planted.nii")
        raw = (tmp_path / "planted.nii").read_bytes().decode("latin-1")
        (tmp_path / "out").mkdir()
        told = self.everything(tmp_path / "planted.nii", tmp_path / "out")
        for text in PLANTED:
            assert text in raw and text not in told

    def test_dicom(self, tmp_path):
        folder = dicom(tmp_path / "ZEBRAFINCH", Modality="CT")
        (tmp_path / "out").mkdir()
        told = self.everything(folder, tmp_path / "out")
        raw = next(folder.iterdir()).read_bytes().decode("latin-1")
        for text in (*PLANTED, "1.2.3.4"):
            assert text in raw and text not in told

    @pytest.mark.parametrize("make", [meta, nrrd])
    def test_text_headers(self, tmp_path, make):
        fields = {"PatientName": PLANTED[0]} if make is meta else {"content": PLANTED[2]}
        path = make(tmp_path / ("a.mha" if make is meta else "a.nrrd"), **fields)
        path.write_bytes(path.read_bytes().replace(b"key:=value", f"Patient:={PLANTED[1]}".encode()))
        (tmp_path / "out").mkdir()
        told = self.everything(path, tmp_path / "out")
        assert not [text for text in PLANTED if text in told]

    @pytest.mark.parametrize("field", ["type", "sizes", "encoding", "space_directions", "dimension", "endian"])
    def test_refusals_do_not_quote_headers(self, tmp_path, field, capfd):
        path = nrrd(tmp_path / "a.nrrd", **{field: PLANTED[0]})
        assert PLANTED[0] not in repr(reading.check_file(path)).upper()

    def test_dicom_refusals_do_not_quote_headers(self, tmp_path, capfd):
        for number, tag in enumerate(("PixelSpacing", "ImagePositionPatient", "Rows")):
            folder = dicom(tmp_path / str(number), 3)
            for path in folder.iterdir():
                content = path.read_bytes()
                import pydicom

                start = (
                    content.index(struct.pack("<HH", *divmod(int(pydicom.datadict.tag_for_keyword(tag)), 65536))) + 8
                )
                path.write_bytes(content[:start] + b"ZEBRAFINCH"[: 2 if tag == "Rows" else 4] + content[start + 4 :])
            told = repr(reading.check_file(folder))
            assert "ZEBR" not in told
        assert "ZEBR" not in "".join(capfd.readouterr())
