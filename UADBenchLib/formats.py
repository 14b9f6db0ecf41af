"""File formats: what the header of a NIfTI, NRRD, MetaImage or DICOM scan declares, and a way to its voxels.

nibabel decodes NIfTI headers, pydicom those of DICOM; SimpleITK reads NRRD, MetaImage and DICOM's pixels.
What is here beyond that keeps untrusted content from doing harm: no memory is taken for voxels before
``reading`` has judged what the header declares, compressed data are inflated no further than declared, the
parser follows from the file's name and not from its content, and no header text is kept or repeated. Whether
a scan makes sense for a brain is not judged here.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib import geometry
from UADBenchLib.errors import InputError
from UADBenchLib.scan import Check

CONFLICT_MM = 0.1
"""sform and qform that move a corner voxel further apart than this are said to disagree."""

_CHUNK = 1 << 20  # bytes read at a time
_HEADER_LIMIT = 1 << 20  # bytes; longer text headers are refused
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DAMAGED = "the file is damaged: copy or export it again from its source"


@dataclass
class Header:
    """What a header declares; nothing in it is free text.

    ``shape`` is spatial, fastest axis first. ``load`` returns the voxels as stored, in an array of any shape
    whose elements follow each other in Fortran order; true values are ``slope`` times those plus
    ``intercept``. Unless ``packed``, they take up ``files[-1]`` from ``offset`` on. ``stem`` stands in for the
    file's name, unless it is empty.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: np.ndarray
    files: list[Path]
    load: Callable[[], np.ndarray]
    packed: bool = True
    offset: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    checks: list[Check] = field(default_factory=list)
    stem: str = ""

    @property
    def count(self) -> int:
        """Number of voxels, a Python integer, which cannot overflow."""
        return math.prod(self.shape)


def suffix_of(path: Path) -> str:
    """Return the known image suffix that a file name ends in, in lower case, or an empty string."""
    name = path.name.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix) and len(name) > len(suffix)), "")


def header_of(path: Path) -> Header:
    """Find out the format by name and read the header.

    Raises
    ------
    InputError
        ``NOT_FOUND``, ``UNKNOWN_FORMAT``, or whatever is wrong with the header.
    """
    if path.is_dir():
        return _read_dicom(path)
    if not path.exists():
        raise InputError("NOT_FOUND", f"there is no {path.name}", "check the path")
    suffix = suffix_of(path)
    if not suffix or not path.is_file():
        advice = "give .nii, .nii.gz, .nrrd, .mha, .mhd or a DICOM folder"
        raise _bad(f"{path.name} is of no known format", advice, "UNKNOWN_FORMAT")
    if not path.stat().st_size:
        raise _bad(f"{path.name} is empty", code="TRUNCATED")
    if suffix.startswith(".nii"):
        return _read_nifti(path)
    return _read_nrrd(path) if suffix == ".nrrd" else _read_meta(path)


# -------------------------------------------------------------------------------- what formats have in common


def _bad(message: str, advice: str = _DAMAGED, code: str = "UNREADABLE") -> InputError:
    """Return a refusal; by default that of a file whose content makes no sense."""
    return InputError(code, message, advice)


def _components(count: int) -> InputError:
    """Return the refusal of vectors, colours and the like."""
    advice = "give a scan with one value a voxel (not colour, not vectors)"
    return InputError("SEVERAL_COMPONENTS", f"each voxel holds {count} values", advice)


def _data_type(what: str) -> InputError:
    """Return the refusal of a number type."""
    advice = "save the magnitude as 16-bit integers or 32-bit floats"
    return InputError("DATA_TYPE", f"{what} is not supported", advice)


def _no_space() -> Check:
    """Return the warning for a header without orientation."""
    message = "the header does not say how the scan lies; left and right, front and back are guesses"
    advice = "convert again from DICOM, or compare with a known side"
    return Check("warning", "NO_SPATIAL_INFORMATION", message, advice)


def _spatial(sizes: list[int]) -> tuple[tuple[int, ...], list[Check]]:
    """Return the first three sizes, or refuse what has not three dimensions of more than one voxel."""
    written = " x ".join(str(size) for size in sizes)
    if len(sizes) < 3 or min(sizes[:3]) < 2 or any(size != 1 for size in sizes[3:]):
        raise InputError("NOT_3D", f"the scan has {written} voxels", "give one three-dimensional volume")
    if len(sizes) == 3:
        return tuple(sizes), []
    return tuple(sizes[:3]), [Check("info", "NOT_3D", f"{written} voxels taken as three-dimensional")]


@contextmanager
def _itk(what: str) -> Iterator[None]:
    """Turn what ITK raises into a refusal, and keep ITK's warnings, which name files, from being printed."""
    import SimpleITK as sitk

    loud = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:  # its text quotes the header, so none of it is passed on
        said = str(error)
        if "allocate memory" in said or "bad_alloc" in said:
            raise MemoryError from None
        if "Unknown PixelType" in said or "nrrdTypeBlock" in said:
            raise _data_type("the voxel type of the header") from None
        if "doesn't match dimension of space" in said:
            raise _bad("the axes are not three spatial ones", "give one three-dimensional volume", "NOT_3D") from None
        if re.search("got only|bytes but received", said):
            raise _bad(f"{what}: the data end early", code="TRUNCATED") from None
        raise _bad(f"{what} cannot be decoded") from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(loud)


# -------------------------------------------------------------------------------- NIfTI


@contextmanager
def _nifti_stream(path: Path, packed: bool) -> Iterator[Any]:
    """Open a file, inflating if ``packed``; what goes wrong while inflating becomes a refusal."""
    try:
        with gzip.open(path, "rb") if packed else open(path, "rb") as stream:
            yield stream
    except EOFError as error:
        raise _bad("the compressed data end early", code="TRUNCATED") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise _bad("the compressed data are damaged (checksum or structure)") from error


def _nifti_parse(path: Path, packed: bool) -> Any:
    """Return nibabel's header object for the fixed part of the header; extensions are never read."""
    import nibabel

    with open(path, "rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    if packed and not compressed:
        raise _bad(f"{path.name} is not compressed although it ends in .gz", "rename it to end in .nii")
    if compressed and not packed:
        raise _bad(f"{path.name} is compressed although it ends in .nii", "rename it to end in .nii.gz")
    with _nifti_stream(path, packed) as stream:
        raw = stream.read(540)
    sizes = {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}
    if not sizes & {348, 540}:
        advice = "give a NIfTI, NRRD or MetaImage file or a DICOM folder"
        raise _bad(f"{path.name} is not a NIfTI file", advice)
    length, kind = (348, nibabel.Nifti1Header) if 348 in sizes else (540, nibabel.Nifti2Header)
    if len(raw) < length:
        raise _bad(f"the header of {path.name} ends after {len(raw)} of {length} bytes", code="TRUNCATED")
    header = kind(raw[:length], check=False)
    if bytes(header["magic"])[:3] != (b"n+1" if length == 348 else b"n+2"):
        advice = "convert pairs of .hdr and .img to one .nii.gz file, Analyze files from their original"
        raise _bad(f"{path.name} is not a NIfTI file in one piece", advice)
    return header


def _nifti_shape(header: Any) -> tuple[tuple[int, ...], list[Check]]:
    """Return the spatial shape; trailing dimensions of one voxel are dropped with a note."""
    dim = [int(value) for value in header["dim"]]
    sizes = dim[1 : 1 + dim[0]]
    if not 1 <= dim[0] <= 7 or min(sizes) < 1:
        raise _bad("the header declares dimensions that no image can have")
    if len(sizes) > 4 and max(sizes[4:]) > 1:
        raise _components(max(sizes[4:]))
    return _spatial(sizes)


def _nifti_values(header: Any) -> tuple[np.dtype[Any], float, float]:
    """Return the voxel type, a plain real number, slope and intercept.

    nibabel takes a slope of zero (the standard), NaN or infinity for none.
    """
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V1")
    if dtype.names:
        raise _components(len(dtype.names))
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise _data_type(f"NIfTI data type {int(header['datatype'])}")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        raise _bad("the intensity scaling is not finite", code="INTEGER_OVERFLOW") from None
    return dtype, *((1.0, 0.0) if slope is None else (float(slope), float(intercept)))


def _nifti_affine(header: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, list[Check]]:
    """Return the affine (sform before qform before voxel sizes alone) and what is to be said about it."""
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if abs(float(header["pixdim"][0])) != 1:  # the standard: anything else counts as 1
        header["pixdim"][0] = 1
    if not has_sform and not has_qform:
        return header.get_base_affine(), [_no_space()]
    try:
        qform = header.get_qform() if has_qform else None
    except Exception as error:  # nibabel raises several kinds for quaternions and voxel sizes that are none
        if not has_sform:
            message = "the qform of the header cannot be decoded"
            raise InputError("AFFINE_SINGULAR", message, _DAMAGED) from error
        qform = np.full((4, 4), np.nan)
    if not has_sform:
        return qform, []
    sform = header.get_sform()
    return sform, [] if qform is None else _affine_conflict(shape, sform, qform)


def _affine_conflict(shape: tuple[int, ...], sform: np.ndarray, qform: np.ndarray) -> list[Check]:
    """Warn if sform and qform put the scan into different places; over a head, 0.1 mm are 0.1 degrees."""
    with np.errstate(all="ignore"):
        apart = geometry.corners(shape, sform) - geometry.corners(shape, qform)
        distance = float(np.linalg.norm(apart, axis=1).max())
    if distance <= CONFLICT_MM or not np.isfinite(sform).all():  # such an sform is refused for its own sake
        return []
    said = f"sform and qform differ by up to {distance:.2f} mm"
    if not np.isfinite(distance):
        said = "the qform cannot be decoded"
    advice = "make sure that other software does so too"
    return [Check("warning", "AFFINE_CONFLICT", f"{said}; the sform is used", advice)]


def _read_nifti(path: Path) -> Header:
    """Decode a NIfTI header."""
    packed = path.name.lower().endswith(".gz")
    header = _nifti_parse(path, packed)
    shape, checks = _nifti_shape(header)
    dtype, slope, intercept = _nifti_values(header)
    affine, noticed = _nifti_affine(header, shape)
    length = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"]) or length + 4.0
    if not length <= offset <= 1 << 26:
        raise _bad("the header says that the voxels begin where they cannot")
    if int(header["xyzt_units"]) & 7 in (1, 3):
        message = "the header's unit of length is not the millimetre; lengths are taken as millimetres"
        noticed.append(Check("warning", "UNITS", message, "check the voxel size"))
    form, place = f"NIfTI-{1 if length == 348 else 2}", (packed, int(offset))
    load = partial(_nifti_voxels, path, math.prod(shape), dtype, *place)
    return Header(form, shape, dtype, affine, [path], load, *place, slope, intercept, checks + noticed)


def _nifti_voxels(path: Path, count: int, dtype: np.dtype[Any], packed: bool, offset: int) -> np.ndarray:
    """Read ``count`` voxels, inflating no more than a piece beyond the last one."""
    voxels = np.empty(count, dtype)
    buffer, filled = memoryview(voxels.view(np.uint8)), 0  # type: ignore[arg-type]
    with _nifti_stream(path, packed) as stream:
        stream.seek(offset)
        while filled < len(buffer):
            got = stream.readinto(buffer[filled : filled + _CHUNK])
            if not got:
                raise _bad(f"the voxel data end after {filled} of {len(buffer)} bytes", code="TRUNCATED")
            filled += got
        if packed:
            stream.read(_CHUNK)  # runs into the checksum behind the last voxel
    return voxels


# -------------------------------------------------------------------------------- NRRD and MetaImage

_ITK_TYPES = [f"{kind}Int{bits}" for kind in ("U", "") for bits in (8, 16, 32, 64)] + ["Float32", "Float64"]


def _text_header(path: Path, end: bytes, separator: str) -> tuple[dict[str, str], int]:
    """Return a header's fields by lower-case name, and the offset behind the match of ``end``, its last line.

    ITK reads the same header again; this finds what ITK does not tell, or cannot be trusted with.
    """
    with open(path, "rb") as stream:
        block = stream.read(_HEADER_LIMIT)
    found = re.search(end, block)
    if found is None:
        raise _bad(f"the header of {path.name} does not end", code="TRUNCATED")
    fields: dict[str, str] = {}
    for line in re.split("[\r\n]+", block[: found.end()].decode("latin-1")):
        name, separated, value = line.partition(separator)
        name = " ".join(name.lower().split())
        if separated and not name.startswith("#") and not value.startswith("="):  # comments, key-value pairs
            if name in fields:
                raise _bad(f"the header of {path.name} states a field twice")
            fields[name] = value.strip()
    return fields, found.end()


def _itk_reader(path: Path, form: str) -> tuple[Any, np.dtype[Any]]:
    """Return SimpleITK's reader, with the header read by the parser named ``form``, and the voxel type."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(form)
    with _itk(f"the header of {path.name}"):
        reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise _components(reader.GetNumberOfComponents())
    for name in _ITK_TYPES:
        if reader.GetPixelID() in (getattr(sitk, f"sitk{name}"), getattr(sitk, f"sitkVector{name}")):
            return reader, np.dtype(name.lower())
    raise _data_type("the voxel type of the header")


def _itk_header(
    reader: Any, dtype: np.dtype[Any], form: str, files: list[Path], offset: int, length: int | None, oriented: bool
) -> Header:
    """Return what SimpleITK's reader has learnt; ``length`` is that of compressed data in bytes, None if raw."""
    size = reader.GetSize()
    shape, checks = _spatial([int(along) for along in size])
    axes = len(size)
    lps = np.eye(4)
    lps[:3, :3] = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3] * reader.GetSpacing()[:3]
    lps[:3, 3] = reader.GetOrigin()[:3]
    checks = checks if oriented else [*checks, _no_space()]

    def load() -> np.ndarray:
        if length is not None:
            _inflates(files[-1], offset, length, math.prod(shape) * dtype.itemsize)
        return _itk_voxels(reader, size)

    return Header(form, shape, dtype, _TO_RAS @ lps, files, load, length is not None, offset, checks=checks)


def _inflates(path: Path, offset: int, length: int, wanted: int) -> None:
    """Refuse compressed data that are damaged or not of the size declared: ITK takes them for voxels all the same."""
    engine, got = zlib.decompressobj(wbits=47), 0  # 32 + 15: zlib or gzip, told by the first bytes
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            while not engine.eof and got <= wanted and (block := stream.read(min(length, 4096))):
                length -= len(block)
                got += len(engine.decompress(block))
    except zlib.error:
        raise _bad("the compressed data are damaged (checksum or structure)") from None
    if got > wanted:
        raise _bad("the compressed data hold more than the header declares")
    if not engine.eof or got < wanted:
        raise _bad("the compressed data end early", code="TRUNCATED")


def _itk_voxels(reader: Any, size: tuple[int, ...]) -> np.ndarray:
    """Let one of SimpleITK's readers read; the result must have the size that the header declares."""
    import SimpleITK as sitk

    with _itk("the voxel data"):
        image = reader.Execute()
    if image.GetSize() != size or image.GetNumberOfComponentsPerPixel() != 1:
        raise _bad("the voxel data do not fit the header")
    return sitk.GetArrayFromImage(image).T


def _read_nrrd(path: Path) -> Header:
    """Read the header of an NRRD file; SimpleITK turns RAS and LAS into LPS."""
    fields, offset = _text_header(path, rb"\r?\n\r?\n", ":")
    if fields.keys() & {"data file", "datafile"}:
        raise _bad(f"{path.name} keeps its voxels in another file", "save it as one .nrrd file")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise _bad("the voxels are neither raw nor gzip-encoded", "save it with gzip encoding")
    reader, dtype = _itk_reader(path, "NrrdImageIO")
    space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else ""
    oriented = space == "left-posterior-superior" and "space origin" in fields
    length = path.stat().st_size if encoding != "raw" else None
    return _itk_header(reader, dtype, "NRRD", [path], offset, length, oriented)


def _read_meta(path: Path) -> Header:
    """Read the header of a MetaImage.

    MetaIO, ITK's parser, writes beyond its memory if NDims is out of range and takes damaged compressed data
    for zeros, hence the care taken before it sees the file.
    """
    fields, offset = _text_header(path, rb"(?im)^ElementDataFile[ \t]*=[^\n]*\n?", "=")
    if not {"ndims", "dimsize", "elementtype"} <= fields.keys() or fields.get("binarydata", "True").lower() != "true":
        raise _bad(f"{path.name} is not a binary MetaImage volume", "save it as a binary image")
    if fields["ndims"] != "3":
        message = "the header declares other than 3 dimensions"
        raise _bad(message, "save it as a three-dimensional image", "NOT_3D")
    files, offset = _meta_files(path, fields, offset)
    reader, dtype = _itk_reader(path, "MetaImageIO")
    length, size = None, fields.get("compresseddatasize", "")
    if fields.get("compresseddata", "").startswith(("T", "t", "1")):
        if not re.fullmatch("[0-9]{1,12}", size):
            raise _bad("the header does not state CompressedDataSize", "save it again without compression")
        length = int(size)
    needed = ({"transformmatrix", "rotation", "orientation"}, {"elementspacing", "elementsize"})
    oriented = all(fields.keys() & names for names in needed)
    return _itk_header(reader, dtype, "MetaImage", files, offset, length, oriented)


def _meta_files(path: Path, fields: dict[str, str], offset: int) -> tuple[list[Path], int]:
    """Return the files to hash (the last of which holds the voxels) and the offset of the voxels in it."""
    name = fields["elementdatafile"]
    if name.upper() == "LOCAL":
        return [path], offset
    if re.search(r"[/\\:%\x00]|^\.*$", name) or name.upper().startswith("LIST"):
        message = f"{path.name} keeps its voxels in several files or another folder"
        raise _bad(message, "convert it to one .mha file")
    data = path.parent / name
    if not data.is_file():
        message = f"the file with the voxels of {path.name} is missing"
        raise _bad(message, "keep both files in one folder")
    skip = fields.get("headersize", "0")
    return [path, data], int(skip) if re.fullmatch(r"[0-9]{1,9}", skip) else 0


# -------------------------------------------------------------------------------- DICOM

_DEFLATED = "1.2.840.10008.1.2.1.99"
_MOST_FILES = 20_000
_PLACE_TAGS = ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"]
_DICOM_TAGS = [
    "SeriesInstanceUID", "Modality", "Rows", "Columns", "BitsAllocated", "PixelRepresentation",
    "SamplesPerPixel", "NumberOfFrames", *_PLACE_TAGS,
]  # fmt: skip


def dicom_stem(folder: Path) -> str:
    """Return a neutral name for the one series in ``folder``; raises ``InputError`` if there is not one."""
    return _dicom_images(folder)[0]


def _dicom_data(path: Path) -> Any:
    """Return what pydicom reads of one file's header; None if it is not a DICOM image.

    The file meta information is read first, since pydicom inflates deflated files whole, whatever their size.
    """
    import pydicom
    from pydicom.filereader import read_file_meta_info

    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
    except Exception:  # whatever pydicom stumbles over: without preamble and meta information it is not DICOM
        return None
    if syntax == _DEFLATED:
        advice = "convert them to an uncompressed transfer syntax"
        raise _bad("the DICOM files are deflated, which is not accepted", advice)
    data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_DICOM_TAGS)
    return data if "Rows" in data and "Columns" in data else None


def _dicom_images(folder: Path) -> tuple[str, list[tuple[Path, Any]]]:
    """Return stem, and paths and headers, of the one series in ``folder`` (sub-folders are not entered).

    Raises
    ------
    InputError
        ``UNKNOWN_FORMAT`` if there is none, ``DICOM_SEVERAL_SERIES`` if there are several, ``UNREADABLE``.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if len(files) > _MOST_FILES:
        raise _bad(f"the folder holds {len(files)} files", "give a folder with one series only", "TOO_LARGE")
    with _pydicom():
        images = [(path, data) for path in files if (data := _dicom_data(path)) is not None]
        counts = Counter(str(data.get("SeriesInstanceUID", "")) for _, data in images)
    if not images:
        advice = "give a folder with one DICOM series, or a file"
        raise _bad("the folder holds no DICOM images", advice, "UNKNOWN_FORMAT")
    if len(counts) > 1:
        message = f"the folder holds {len(counts)} series of {', '.join(map(str, counts.values()))} images"
        raise _bad(message, "give a folder with one series", "DICOM_SEVERAL_SERIES")
    return "dicom-" + hashlib.sha256(next(iter(counts)).encode()).hexdigest()[:8], images


@contextmanager
def _pydicom() -> Iterator[None]:
    """Silence pydicom, whose warnings quote the header, and turn what it raises into a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception:  # pydicom raises whatever values that are none lead to
        raise _bad("the header of a DICOM file cannot be decoded") from None


def _dicom_numbers(path: Path, data: Any) -> tuple[tuple[int, ...], list[float]]:
    """Return (columns, rows, samples, bits, signed), and orientation, position and spacing as 11 numbers."""
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise _bad("multi-frame DICOM is not supported", "convert it to NIfTI, for example with dcm2niix")
    columns, rows, bits = int(data.Columns), int(data.Rows), int(data.get("BitsAllocated", 16))
    if bits not in (8, 16, 32):
        raise _data_type(f"a DICOM pixel of {bits} bits")
    if [len(data.get(tag) or ()) for tag in _PLACE_TAGS] != [6, 3, 2]:
        message = "a DICOM image has no position, orientation or pixel spacing"
        raise _bad(message, "convert the series to NIfTI")
    packed = data.file_meta.TransferSyntaxUID.is_compressed
    if not packed and path.stat().st_size < columns * rows * bits // 8:
        raise _bad("a DICOM file is shorter than the image that it declares", code="TRUNCATED")
    samples, signed = int(data.get("SamplesPerPixel", 1)), int(data.get("PixelRepresentation", 0))
    place = [float(value) for tag in _PLACE_TAGS for value in data[tag].value]
    return (columns, rows, samples, bits, signed), place


def _dicom_order(place: np.ndarray) -> np.ndarray:
    """Return the order of images along their normal from their places (N, 11); refuse what is no lattice."""
    alike = np.allclose(place[:, :6], place[0, :6], atol=1e-3)
    if not alike or not np.allclose(place[:, 9:], place[0, 9:], rtol=1e-3):
        raise _bad("the images differ in orientation or pixel spacing", "export one volume as one series")
    heights = place[:, 6:9] @ np.cross(place[0, :3], place[0, 3:6])
    steps = np.diff(np.sort(heights))
    if not np.isfinite(heights).all():
        raise _bad("the position of an image is not finite")
    if len(steps) and steps.min() < 1e-3:
        advice = "give one echo, one repetition: one volume"
        raise _bad("several images lie at the same place", advice, "NOT_3D")
    if len(steps) and steps.max() > 1.1 * steps.min() + 0.05:
        message = f"the distance between images varies from {steps.min():.2f} to {steps.max():.2f} mm"
        raise _bad(message, "images are missing: export the series again", "TRUNCATED")
    return np.argsort(heights)


def _read_dicom(folder: Path) -> Header:
    """Collect the headers of a DICOM series."""
    stem, images = _dicom_images(folder)
    with _pydicom():
        kinds, places = zip(*(_dicom_numbers(path, data) for path, data in images), strict=True)
        checks = []
        if str(images[0][1].get("Modality", "")) != "MR":
            message = "the series is not magnetic resonance"
            checks.append(Check("warning", "MODALITY", message, "UADBench's models know brain MRI only"))
    if len(set(kinds)) > 1:
        raise _bad("the images differ in size or number type", "export one volume as one series")
    columns, rows, samples, bits, signed = kinds[0]
    if samples != 1:
        raise _components(samples)
    place = np.array(places)
    order = _dicom_order(place)
    place, files = place[order], [images[number][0] for number in order]
    shape, _ = _spatial([columns, rows, len(files)])
    lps = np.eye(4)
    lps[:3, :2] = place[0, :6].reshape(2, 3).T * place[0, :8:-1]  # the row spacing comes first
    lps[:3, 2] = (place[-1, 6:9] - place[0, 6:9]) / (len(files) - 1)
    lps[:3, 3] = place[0, 6:9]
    dtype = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    load = partial(_dicom_voxels, files, shape)
    return Header("DICOM", shape, dtype, _TO_RAS @ lps, files, load, checks=checks, stem=stem)


def _dicom_voxels(files: list[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Decode the pixels of a checked series through GDCM, rescaled, as float32."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(path) for path in files])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    return _itk_voxels(reader, shape)
