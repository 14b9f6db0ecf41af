"""Files in: NIfTI, NRRD, MetaImage and DICOM series become a ``Scan``, or a named refusal.

Content is not trusted. Headers are parsed here or by nibabel and pydicom in Python, what they declare is
checked before any memory is taken for voxels, compressed data are inflated into memory of the declared size
and never beyond, and no header text is kept or repeated. Only the pixel data of a DICOM series reach a
compiled parser (GDCM, through SimpleITK), after its headers have been checked. ``check_file`` and
``read_scan`` go the same way and differ only in what they do with an error.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from UADBenchLib import geometry
from UADBenchLib.errors import InputError
from UADBenchLib.scan import CONTRASTS, Check, Scan

LARGEST_BYTES = 4 * 1024**3
"""Most bytes that a scan may declare, or take in memory as float32."""

LARGEST_RATIO = 1200
"""Most bytes declared per byte of file; DEFLATE cannot reach 1033."""

EXTENT_MM = (60.0, 500.0)
"""A scan shorter or longer than this along any axis cannot hold a head."""

WHOLE_BRAIN_MM = 100.0
"""A scan shorter than this along an axis is likely to lack part of the brain."""

VOXEL_MM = (0.2, 12.0)
THICK_MM = 3.0
CONFLICT_MM = 0.1
CONFLICT_DEGREES = 0.1

_CHUNK = 1 << 20  # voxels converted, or bytes read, at a time
_HEADER_LIMIT = 1 << 20  # bytes; longer text headers are refused
_EXACT = 2**24  # integers up to here are exact in float32
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DAMAGED = "the file is damaged: copy or export it again from its source"


def _unreadable(message: str, advice: str = _DAMAGED) -> InputError:
    """Return the refusal of a file whose content makes no sense."""
    return InputError("UNREADABLE", message, advice)


def _truncated(message: str, advice: str = _DAMAGED) -> InputError:
    """Return the refusal of a file that ends early."""
    return InputError("TRUNCATED", message, advice)


@dataclass
class _Header:
    """What a header declares; nothing in it is free text.

    ``shape`` is spatial, fastest axis first. Voxels start ``offset`` bytes into ``files[-1]``, or with
    ``inflate`` set, ``skip`` bytes into what the data at ``offset`` inflate to.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: np.ndarray
    files: list[Path]
    offset: int = 0
    skip: int = 0
    inflate: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    checks: list[Check] = field(default_factory=list)
    stem: str = ""

    @property
    def count(self) -> int:
        """Number of voxels, as an integer that cannot overflow."""
        product = 1
        for size in self.shape:
            product *= int(size)
        return product

    @property
    def declared_bytes(self) -> int:
        """Bytes that the voxels take in the file once inflated."""
        return self.skip + self.count * self.dtype.itemsize


@dataclass
class _Examined:
    """All that was found out about a file; voxels and header only if no check has level ``"error"``."""

    checks: list[Check]
    header: _Header | None = None
    voxels: np.ndarray | None = None
    sha256: str = ""

    @property
    def error(self) -> Check | None:
        """The first check of level ``"error"``, if there is one."""
        return next((check for check in self.checks if check.level == "error"), None)


# --------------------------------------------------------------------------------------------------
# Names


def _suffix(path: Path) -> str:
    """Return the known image suffix that a file name ends in, in lower case, or an empty string."""
    name = path.name.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix) and len(name) > len(suffix)), "")


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return the name that results carry: the file name without its image suffix.

    A DICOM folder gives ``dicom-`` and eight hexadecimal digits from the hash of its SeriesInstanceUID, since
    folder names and headers of DICOM series tend to hold the patient's name.
    """
    source = Path(path)
    if source.is_dir():
        try:
            series = _dicom_series(source)
        except InputError:
            return "dicom"
        return _dicom_stem(next(iter(series)))
    suffix = _suffix(source)
    return source.name[: -len(suffix)] if suffix else source.stem


def contrast_from_name(path: str | os.PathLike[str]) -> str | None:
    """Return the contrast that a BIDS suffix (``_T1w``, ``_T2w``, ``_FLAIR``) states, or None."""
    stem = Path(path).name
    suffix = _suffix(Path(path))
    last = stem[: len(stem) - len(suffix)].rpartition("_")[2].lower()
    return next((name for name in CONTRASTS if name.lower() == last), None)


# --------------------------------------------------------------------------------------------------
# Bytes


class _Source(Protocol):
    """Whatever fills buffers: an open file or ``_Inflate``."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class _Inflate:
    """Inflates zlib or gzip data (several members too) into the caller's buffers and verifies checksums."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pending = b""
        self._engine = zlib.decompressobj(wbits=47)  # 32 + 15: zlib or gzip, told by the first bytes

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill ``buffer`` as far as the data go; return the number of bytes, 0 at the end."""
        filled = 0
        while filled < len(buffer):
            if self._engine.eof and not self._next_member():
                break
            data = self._pending or self._stream.read(1 << 16)
            try:
                piece = self._engine.decompress(data, len(buffer) - filled)
            except zlib.error as error:
                raise _unreadable("the compressed data are damaged (checksum or structure)") from error
            if not data and not piece:
                raise _truncated("the compressed data end early")
            self._pending = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def _next_member(self) -> bool:
        """Begin the gzip member that follows, if one does; what else follows is passed over as gzip does."""
        if len(self._pending) < 2:
            self._pending += self._stream.read(1 << 16)
        if self._pending[:2] != b"\x1f\x8b":
            return False
        self._engine = zlib.decompressobj(wbits=47)
        return True


def _fill(source: _Source, buffer: memoryview) -> None:
    """Fill ``buffer`` completely or raise ``TRUNCATED``."""
    filled = 0
    while filled < len(buffer):
        got = source.readinto(buffer[filled : filled + _CHUNK])
        if not got:
            raise _truncated(f"the voxel data end after {filled} of {len(buffer)} bytes")
        filled += got


def _pass_over(source: _Source, count: int, *, strict: bool) -> None:
    """Read ``count`` bytes and forget them; ``strict`` minds if there are fewer."""
    scratch = memoryview(bytearray(min(count, 1 << 16)))
    while count:
        got = source.readinto(scratch[: min(count, len(scratch))])
        if not got:
            if strict:
                raise _truncated("the file ends before the voxel data begin")
            return
        count -= got


def _sha256(files: list[Path]) -> str:
    """Hash one file, or the sorted hashes of several: a renamed or reordered DICOM export hashes alike."""
    digests = []
    for path in files:
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while block := stream.read(_CHUNK):
                digest.update(block)
        digests.append(digest)
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(sorted(digest.digest() for digest in digests))).hexdigest()


# --------------------------------------------------------------------------------------------------
# NIfTI


_NIFTI_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip


def _nifti_bytes(path: Path, inflate: bool) -> bytes:
    """Return the first 540 bytes of the header, fewer if the file has fewer."""
    with open(path, "rb") as stream:
        first = stream.read(2)
        stream.seek(0)
        if not first:
            raise _truncated(f"{path.name} is empty")
        if inflate and first != b"\x1f\x8b":
            raise _unreadable(
                f"{path.name} is not compressed although its name ends in .gz", "rename it to end in .nii"
            )
        if not inflate and first == b"\x1f\x8b":
            raise _unreadable(
                f"{path.name} is compressed although its name ends in .nii", "rename it to end in .nii.gz"
            )
        buffer = bytearray(540)
        source: Any = _Inflate(stream) if inflate else stream
        got = source.readinto(memoryview(buffer))
    return bytes(buffer[:got])


def _nifti_parse(path: Path, raw: bytes) -> Any:
    """Return nibabel's header object for the fixed part of the header; extensions are never read."""
    import nibabel

    sizes = {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}
    version = 1 if 348 in sizes else 2 if 540 in sizes else 0
    if not version:
        raise _unreadable(
            f"{path.name} is not a NIfTI file", "give a NIfTI, NRRD or MetaImage file or a DICOM folder"
        )
    length, kind = (348, nibabel.Nifti1Header) if version == 1 else (540, nibabel.Nifti2Header)
    if len(raw) < length:
        raise _truncated(f"the header of {path.name} ends after {len(raw)} of {length} bytes")
    header = kind(raw[:length], check=False)
    magic = bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2"):
        raise _unreadable(
            f"{path.name} keeps its voxels in another file", "convert the pair to one .nii.gz file"
        )
    if magic != (b"n+1" if version == 1 else b"n+2"):
        raise _unreadable(
            f"{path.name} is not a NIfTI file",
            "Analyze files do not say left from right; convert the original",
        )
    return header


def _nifti_shape(header: Any) -> tuple[tuple[int, ...], list[Check]]:
    """Return the spatial shape; trailing dimensions of one voxel are dropped with a note."""
    dim = [int(value) for value in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise _unreadable(f"the header declares {dim[0]} dimensions")
    sizes = dim[1 : 1 + dim[0]]
    if min(sizes) < 1:
        raise _unreadable(f"the header declares a dimension of {min(sizes)} voxels")
    if len(sizes) > 4 and max(sizes[4:]) > 1:
        raise _components(max(sizes[4:]))
    return _spatial(sizes)


def _spatial(sizes: list[int]) -> tuple[tuple[int, ...], list[Check]]:
    """Return the first three sizes, or refuse what has not three dimensions of more than one voxel."""
    written = " x ".join(str(size) for size in sizes)
    if len(sizes) < 3 or min(sizes[:3]) < 2 or any(size != 1 for size in sizes[3:]):
        raise InputError("NOT_3D", f"the scan has {written} voxels", "give one three-dimensional volume")
    if len(sizes) == 3:
        return tuple(sizes), []
    return tuple(sizes[:3]), [Check("info", "NOT_3D", f"{written} voxels taken as three-dimensional")]


def _components(count: int) -> InputError:
    """Return the refusal of vectors, colours and the like."""
    return InputError(
        "SEVERAL_COMPONENTS",
        f"each voxel holds {count} values",
        "give a scan with one value a voxel (not colour, not vectors)",
    )


def _nifti_dtype(header: Any) -> np.dtype[Any]:
    """Return the voxel type, or refuse one that is not a plain real number."""
    code = int(header["datatype"])
    if code in (128, 2304):
        raise _components(3 if code == 128 else 4)
    if code not in _NIFTI_TYPES:
        raise _data_type(f"NIfTI data type {code}")
    return np.dtype(_NIFTI_TYPES[code]).newbyteorder(header.endianness)


def _data_type(what: str) -> InputError:
    """Return the refusal of a number type."""
    return InputError(
        "DATA_TYPE", f"{what} is not supported", "save the magnitude as 16-bit integers or 32-bit floats"
    )


def _nifti_scaling(header: Any) -> tuple[float, float]:
    """Return slope and intercept; a slope of zero (the standard) or NaN (as some write) means none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise InputError("INTEGER_OVERFLOW", "the intensity scaling of the header is not finite", _DAMAGED)
    return slope, intercept


def _nifti_affine(header: Any) -> tuple[np.ndarray, list[Check]]:
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
            raise InputError(
                "AFFINE_SINGULAR", "the qform of the header cannot be decoded", _DAMAGED
            ) from error
        qform = np.full((4, 4), np.nan)
    if not has_sform:
        return qform, []
    sform = header.get_sform()
    return sform, [] if qform is None else _affine_conflict(_nifti_shape(header)[0], sform, qform)


def _no_space() -> Check:
    """Return the warning for a header without orientation."""
    message = "the header does not say how the scan lies; left and right, front and back are guesses"
    return Check(
        "warning", "NO_SPATIAL_INFORMATION", message, "convert again from DICOM, or compare with a known side"
    )


def _affine_conflict(shape: tuple[int, ...], sform: np.ndarray, qform: np.ndarray) -> list[Check]:
    """Warn if sform and qform put the scan into different places."""
    if not np.isfinite(qform).all():
        said = "the qform cannot be decoded"
    else:
        with np.errstate(all="ignore"):
            distance = float(
                np.linalg.norm(geometry.corners(shape, sform) - geometry.corners(shape, qform), axis=1).max()
            )
        try:
            turn = geometry.polar(sform)[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
            back = geometry.polar(qform)[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0)
        except InputError:
            return []  # a singular sform is refused for its own sake
        degrees = float(np.degrees(np.arccos(np.clip((np.trace(turn.T @ back) - 1) / 2, -1, 1))))
        if distance <= CONFLICT_MM and degrees <= CONFLICT_DEGREES:
            return []
        said = f"sform and qform differ by up to {distance:.2f} mm and {degrees:.2f} degrees"
    advice = "make sure that other software does so too"
    return [Check("warning", "AFFINE_CONFLICT", f"{said}; the sform is used", advice)]


def _read_nifti(path: Path) -> _Header:
    """Parse a NIfTI header."""
    inflate = path.name.lower().endswith(".gz")
    raw = _nifti_bytes(path, inflate)
    header = _nifti_parse(path, raw)
    shape, checks = _nifti_shape(header)
    dtype = _nifti_dtype(header)
    slope, intercept = _nifti_scaling(header)
    affine, noticed = _nifti_affine(header)
    length = int(header["sizeof_hdr"])
    offset = float(header["vox_offset"]) or length + 4.0
    if not length <= offset <= 1 << 26:
        raise _unreadable("the header says that the voxels begin where they cannot")
    if int(header["xyzt_units"]) & 7 in (1, 3):
        message = (
            "the header's unit of length is not the millimetre; lengths are taken as millimetres all the same"
        )
        noticed.append(Check("warning", "UNITS", message, "check the voxel size"))
    start = {"skip": int(offset)} if inflate else {"offset": int(offset)}
    return _Header(
        f"NIfTI-{1 if length == 348 else 2}", shape, dtype, affine, [path], inflate=inflate, slope=slope,
        intercept=intercept, checks=checks + noticed, **start,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Text headers: what NRRD and MetaImage have in common


def _text_lines(path: Path, last: Callable[[str], bool]) -> tuple[list[str], int]:
    """Return header lines up to and including the one for which ``last`` holds, and the offset behind it."""
    with open(path, "rb") as stream:
        block = stream.read(_HEADER_LIMIT)
    if not block:
        raise _truncated(f"{path.name} is empty")
    lines: list[str] = []
    start = 0
    while (end := block.find(b"\n", start)) >= 0 or start < len(block):
        end = len(block) if end < 0 else end
        lines.append(block[start:end].decode("latin-1").rstrip("\r"))
        start = min(end + 1, len(block))
        if last(lines[-1]):
            return lines, start
    raise _truncated(f"the header of {path.name} does not end")


def _numbers(text: str, kind: Callable[[str], Any], count: int | None, what: str) -> list[Any]:
    """Parse numbers separated by blanks; the text itself is never repeated."""
    try:
        values = [kind(part) for part in text.split()]
    except ValueError as error:
        raise _unreadable(f"the header's {what} is not a list of numbers") from error
    if count is not None and len(values) != count:
        raise _unreadable(f"the header's {what} has {len(values)} numbers instead of {count}")
    return values


def _sizes(text: str, count: int, what: str) -> list[int]:
    """Parse the number of voxels along each axis."""
    sizes = _numbers(text, int, count, what)
    if not sizes or min(sizes) < 1:
        raise _unreadable(f"the header's {what} has a dimension without voxels")
    return sizes


# --------------------------------------------------------------------------------------------------
# MetaImage

_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_META_SYNONYMS = {
    "rotation": "transformmatrix", "orientation": "transformmatrix", "position": "offset", "origin": "offset",
    "binarydatabyteordermsb": "elementbyteordermsb",
}  # fmt: skip


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's fields by lower-case name, synonyms resolved, and the offset of local data."""
    lines, offset = _text_lines(path, lambda line: line.split("=")[0].strip().lower() == "elementdatafile")
    fields: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition("=")
        if separator:
            key = name.strip().lower()
            fields[_META_SYNONYMS.get(key, key)] = value.strip()
    return fields, offset


def _meta_affine(fields: dict[str, str]) -> tuple[np.ndarray, list[Check]]:
    """Return the affine; a MetaImage states the direction of each axis as a row, in LPS."""
    spacing = _numbers(
        fields.get("elementspacing") or fields.get("elementsize") or "1 1 1", float, None, "ElementSpacing"
    )
    rows = _numbers(fields.get("transformmatrix", "1 0 0 0 1 0 0 0 1"), float, None, "TransformMatrix")
    origin = _numbers(fields.get("offset", "0 0 0"), float, None, "Offset")
    if len(spacing) < 3 or len(rows) != 9 or len(origin) < 3:
        raise _unreadable("the header's spacing, axes or origin do not describe three dimensions")
    lps = np.eye(4)
    lps[:3, :3] = np.array(rows).reshape(3, 3).T * np.array(spacing[:3])
    lps[:3, 3] = origin[:3]
    known = "transformmatrix" in fields and ("elementspacing" in fields or "elementsize" in fields)
    return _TO_RAS @ lps, [] if known else [_no_space()]


def _meta_data(path: Path, fields: dict[str, str], offset: int) -> tuple[list[Path], int]:
    """Return the files to hash (the last of which holds the voxels) and the offset of the voxels in it."""
    name = fields["elementdatafile"]
    if name.upper() == "LOCAL":
        return [path], offset
    if re.search(r"[/\\:%\x00]|^\.*$", name) or name.upper().startswith("LIST"):
        raise _unreadable(
            f"{path.name} keeps its voxels in several files or another folder", "convert it to one .mha file"
        )
    data = path.parent / name
    if not data.is_file():
        raise _unreadable(
            f"the file with the voxels of {path.name} is missing", "keep both files in one folder"
        )
    skip = _numbers(fields.get("headersize", "0"), int, 1, "HeaderSize")[0]
    if not 0 <= skip <= _HEADER_LIMIT:
        raise _unreadable(f"a HeaderSize of {skip} is not supported", "convert it to one .mha file")
    return [path, data], skip


def _read_meta(path: Path) -> _Header:
    """Parse a MetaImage header."""
    fields, offset = _meta_fields(path)
    if (
        fields.get("objecttype", "Image").lower() != "image"
        or "dimsize" not in fields
        or "elementtype" not in fields
    ):
        raise _unreadable(f"{path.name} is not a MetaImage volume")
    if fields.get("binarydata", "True").lower() != "true":
        raise _unreadable(f"{path.name} holds voxels as text", "save it as a binary image")
    channels = _numbers(fields.get("elementnumberofchannels", "1"), int, 1, "ElementNumberOfChannels")[0]
    kind = fields["elementtype"].upper()
    if channels != 1 or kind.endswith("_ARRAY"):
        raise _components(max(channels, 2))
    if kind not in _META_TYPES:
        raise _data_type("the MetaImage element type")
    axes = _numbers(fields.get("ndims", "3"), int, 1, "NDims")[0]
    shape, _ = _spatial(_sizes(fields["dimsize"], axes, "DimSize"))
    if axes != 3:
        raise InputError(
            "NOT_3D", f"the header declares {axes} dimensions", "save it as a three-dimensional image"
        )
    order = ">" if fields.get("elementbyteordermsb", "False").lower() == "true" else "<"
    affine, checks = _meta_affine(fields)
    files, start = _meta_data(path, fields, offset)
    return _Header(
        "MetaImage", shape, np.dtype(_META_TYPES[kind]).newbyteorder(order), affine, files, offset=start,
        inflate=fields.get("compresseddata", "False").lower() == "true", checks=checks,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# NRRD

_NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_NRRD_SPACES = {
    name: signs
    for signs, names in {
        (1, 1): "right-anterior-superior,ras",
        (-1, 1): "left-anterior-superior,las",
        (-1, -1): "left-posterior-superior,lps",
    }.items()
    for name in names.split(",")
}


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields by lower-case name and the offset behind the blank line; free text is dropped."""
    lines, offset = _text_lines(path, lambda line: line == "")
    if not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise _unreadable(f"{path.name} is not an NRRD file")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    return fields, offset


def _nrrd_vectors(text: str) -> list[list[float] | None]:
    """Parse ``(a,b,c) none (d,e,f)``; None stands for an axis that is not spatial."""
    vectors: list[list[float] | None] = []
    for part in re.findall(r"\([^()]*\)|\S+", text):
        vectors.append(
            None
            if part.lower() == "none"
            else _numbers(part.strip("()").replace(",", " "), float, 3, "vector")
        )
    return vectors


def _nrrd_affine(fields: dict[str, str], spatial: list[int], axes: int) -> tuple[np.ndarray, list[Check]]:
    """Return the affine of the axes listed in ``spatial``."""
    if "space directions" not in fields:
        spacing = _numbers(fields.get("spacings", " ".join(["1"] * axes)), float, axes, "spacings")
        return _TO_RAS @ np.diag([spacing[axis] for axis in spatial] + [1.0]), [_no_space()]
    vectors = _nrrd_vectors(fields["space directions"])
    if len(vectors) != axes or any(vectors[axis] is None for axis in spatial):
        raise _unreadable("the header's space directions do not describe three dimensions")
    origin = _nrrd_vectors(fields.get("space origin", "(0,0,0)"))
    affine = np.eye(4)
    affine[:3, :3] = np.array([vectors[axis] for axis in spatial]).T
    if len(origin) == 1 and origin[0] is not None:
        affine[:3, 3] = origin[0]
    signs = _NRRD_SPACES.get(fields.get("space", "").lower())
    across, along = signs or (-1, -1)
    return np.diag([across, along, 1.0, 1.0]) @ affine, [] if signs and "space origin" in fields else [
        _no_space()
    ]


def _nrrd_axes(fields: dict[str, str]) -> tuple[list[int], list[int]]:
    """Return all sizes, and which axes are spatial; an axis of several components is refused."""
    axes = _numbers(fields["dimension"], int, 1, "dimension")[0]
    if not 1 <= axes <= 16:
        raise _unreadable(f"the header declares {axes} dimensions")
    sizes = _sizes(fields["sizes"], axes, "sizes")
    kinds = fields.get("kinds", "").lower().split()
    directions = re.findall(r"\([^()]*\)|\S+", fields.get("space directions", ""))
    spatial = list(range(axes))
    for axis in range(axes):
        loose = axis < len(directions) and directions[axis].lower() == "none"
        kind = kinds[axis] if axis < len(kinds) else ""
        if loose or kind not in ("", "domain", "space", "???", "none", "time"):
            if sizes[axis] > 1 and kind != "time":
                raise _components(sizes[axis])
            spatial.remove(axis)
    return sizes, spatial


def _read_nrrd(path: Path) -> _Header:
    """Parse an NRRD header."""
    fields, offset = _nrrd_fields(path)
    if not {"dimension", "sizes", "type", "encoding"} <= fields.keys():
        raise _unreadable(f"the header of {path.name} lacks its type, encoding, dimension or sizes")
    if "data file" in fields or "datafile" in fields:
        raise _unreadable(f"{path.name} keeps its voxels in another file", "save it as one .nrrd file")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise _unreadable("the voxels are neither raw nor gzip-encoded", "save it with gzip encoding")
    if any(fields.get(name, "0") != "0" for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise _unreadable("headers that skip lines or bytes are not supported", "save it again without")
    if fields["type"].lower() not in _NRRD_TYPES:
        raise _data_type("the NRRD type")
    sizes, spatial = _nrrd_axes(fields)
    lost = [sizes[axis] for axis in range(len(sizes)) if axis not in spatial]
    shape, noticed = _spatial([sizes[axis] for axis in spatial] + lost)
    affine, checks = _nrrd_affine(fields, spatial[:3], len(sizes))
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    return _Header(
        "NRRD", shape, np.dtype(_NRRD_TYPES[fields["type"].lower()]).newbyteorder(order), affine, [path],
        offset=offset, inflate=encoding != "raw", checks=noticed + checks,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------
# DICOM

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PLAIN_SYNTAXES = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_PACKED_SYNTAXES = {  # run length, JPEG, JPEG lossless, JPEG-LS, JPEG 2000
    f"1.2.840.10008.1.2.{end}"
    for end in ("5", "4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91")
}
_DICOM_TAGS = [
    "SeriesInstanceUID", "Modality", "Rows", "Columns", "BitsAllocated", "PixelRepresentation",
    "SamplesPerPixel", "NumberOfFrames", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
]  # fmt: skip
_MOST_FILES = 20_000


@dataclass
class _Slice:
    """What is kept of one DICOM image's header: numbers only."""

    path: Path
    modality: str
    rows: int
    columns: int
    bits: int
    signed: bool
    samples: int
    orientation: np.ndarray
    position: np.ndarray
    spacing: np.ndarray


def _dicom_stem(uid: str) -> str:
    """Return the neutral name of a series."""
    return "dicom-" + hashlib.sha256(uid.encode()).hexdigest()[:8]


def _dicom_slice(path: Path) -> tuple[str, _Slice] | None:
    """Return the series and the geometry of one file; None if it is not a DICOM image.

    The file meta information is read first, since pydicom inflates deflated files whole, whatever their size.
    """
    import pydicom
    from pydicom.filereader import read_file_meta_info

    try:
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    except Exception:  # whatever pydicom stumbles over: without preamble and meta information it is not DICOM
        return None
    if syntax == _DEFLATED:
        raise _unreadable(
            "the DICOM files are deflated, which is not accepted",
            "convert them to an uncompressed transfer syntax",
        )
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_DICOM_TAGS)
        if "Rows" not in header or "Columns" not in header:
            return None
        if syntax not in _PLAIN_SYNTAXES | _PACKED_SYNTAXES:
            raise _unreadable(
                "the DICOM transfer syntax is not supported", "convert to an uncompressed transfer syntax"
            )
        image = _dicom_numbers(path, header)
        if syntax in _PLAIN_SYNTAXES and path.stat().st_size < image.rows * image.columns * image.bits // 8:
            raise _truncated("a DICOM file is shorter than the image that it declares")
        return str(header.SeriesInstanceUID), image
    except InputError:
        raise
    except Exception as error:  # pydicom's messages may quote header text, so none of it is passed on
        raise _unreadable("the header of a DICOM file cannot be decoded") from error


def _dicom_numbers(path: Path, header: Any) -> _Slice:
    """Take the numbers out of a pydicom data set."""
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise _unreadable(
            "multi-frame DICOM is not supported", "convert it to NIfTI, for example with dcm2niix"
        )
    bits = int(header.get("BitsAllocated", 16))
    if bits not in (8, 16, 32):
        raise _data_type(f"a DICOM pixel of {bits} bits")
    if not all(
        header.get(tag) for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    ):
        raise _unreadable(
            "a DICOM image has no position, orientation or pixel spacing", "convert the series to NIfTI"
        )
    return _Slice(
        path=path,
        modality=str(header.get("Modality", "")),
        rows=int(header.Rows),
        columns=int(header.Columns),
        bits=bits,
        signed=int(header.get("PixelRepresentation", 0)) == 1,
        samples=int(header.get("SamplesPerPixel", 1)),
        orientation=np.array([float(value) for value in header.ImageOrientationPatient]).reshape(2, 3),
        position=np.array([float(value) for value in header.ImagePositionPatient]).reshape(3),
        spacing=np.array([float(value) for value in header.PixelSpacing]).reshape(2),
    )


def _dicom_series(folder: Path) -> dict[str, list[_Slice]]:
    """Return the images of the one series in ``folder`` (sub-folders are not entered).

    Raises
    ------
    InputError
        ``UNKNOWN_FORMAT`` if there is none, ``DICOM_SEVERAL_SERIES`` if there are several, ``UNREADABLE``.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if len(files) > _MOST_FILES:
        raise InputError(
            "TOO_LARGE", f"the folder holds {len(files)} files", "give a folder with one series only"
        )
    series: dict[str, list[_Slice]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes header values in its warnings
        for path in files:
            found = _dicom_slice(path)
            if found is not None:
                series.setdefault(found[0], []).append(found[1])
    if not series:
        raise InputError(
            "UNKNOWN_FORMAT",
            "the folder holds no DICOM images",
            "give a folder with one DICOM series, or a file",
        )
    if len(series) > 1:
        counts = ", ".join(str(len(images)) for images in series.values())
        raise InputError(
            "DICOM_SEVERAL_SERIES",
            f"the folder holds {len(series)} series of {counts} images",
            "give a folder with one series",
        )
    return series


def _dicom_sorted(images: list[_Slice]) -> list[_Slice]:
    """Return the images in order along their normal, after checking that they belong together."""
    first = images[0]
    for image in images[1:]:
        alike = (image.rows, image.columns, image.samples) == (first.rows, first.columns, first.samples)
        if not alike or not np.allclose(image.orientation, first.orientation, atol=1e-3):
            raise _unreadable("the images differ in size or orientation", "export one volume as one series")
        if not np.allclose(image.spacing, first.spacing, rtol=1e-3):
            raise _unreadable("the images differ in pixel spacing", "export one volume as one series")
    normal = np.cross(first.orientation[0], first.orientation[1])
    images = sorted(images, key=lambda image: float(image.position @ normal))
    steps = np.diff([float(image.position @ normal) for image in images])
    if not np.isfinite(steps).all():
        raise _unreadable("the position of an image is not finite")
    if len(steps) and steps.min() < 1e-3:
        raise InputError(
            "NOT_3D", "several images lie at the same place", "give one echo, one repetition: one volume"
        )
    if len(steps) and steps.max() > 1.1 * steps.min() + 0.05:
        raise _truncated(
            f"the distance between neighbouring images varies from {steps.min():.2f} to {steps.max():.2f} mm",
            "images are missing: export the series again",
        )
    return images


def _read_dicom(folder: Path) -> _Header:
    """Collect the headers of a DICOM series."""
    ((uid, images),) = _dicom_series(folder).items()
    images = _dicom_sorted(images)
    first, last = images[0], images[-1]
    if first.samples != 1:
        raise _components(first.samples)
    shape, _ = _spatial([first.columns, first.rows, len(images)])
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[0] * first.spacing[1]
    lps[:3, 1] = first.orientation[1] * first.spacing[0]
    lps[:3, 2] = (last.position - first.position) / (len(images) - 1)
    lps[:3, 3] = first.position
    checks = []
    if first.modality != "MR":
        checks.append(
            Check(
                "warning",
                "MODALITY",
                "the series is not magnetic resonance",
                "UADBench's models know brain MRI only",
            )
        )
    return _Header(
        "DICOM", shape, np.dtype(f"{'i' if first.signed else 'u'}{first.bits // 8}"), _TO_RAS @ lps,
        [image.path for image in images], checks=checks, stem=_dicom_stem(uid),
    )  # fmt: skip


def _dicom_voxels(header: _Header) -> np.ndarray:
    """Decode the pixels of a checked series through GDCM, rescaled, as float32."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(path) for path in header.files])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    loud = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings name files
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable("the pixel data of the DICOM series cannot be decoded") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(loud)
    if image.GetSize() != tuple(header.shape) or image.GetNumberOfComponentsPerPixel() != 1:
        raise _unreadable("the pixel data of the DICOM series do not fit its headers")
    return sitk.GetArrayFromImage(image).T


# --------------------------------------------------------------------------------------------------
# Checks


def _size_checks(header: _Header) -> None:
    """Refuse what declares more than it can hold, before any memory is taken.

    Raises
    ------
    InputError
        ``TOO_LARGE`` or ``TRUNCATED``.
    """
    held = sum(path.stat().st_size for path in header.files)
    wanted = max(header.declared_bytes, 4 * header.count)
    if wanted > LARGEST_BYTES:
        raise InputError(
            "TOO_LARGE",
            f"the header declares a scan of {wanted / 1024**3:.1f} GiB",
            "scans may take 4 GiB; resample it first",
        )
    if header.declared_bytes > LARGEST_RATIO * held:
        message = f"the header declares {header.declared_bytes} bytes of voxels, the file has {held}"
        if header.inflate or header.format == "DICOM":
            raise InputError(
                "TOO_LARGE", message, "no compression does that: the file is damaged or made to do harm"
            )
        raise _truncated(message)
    if not header.inflate and header.format != "DICOM":
        left = header.files[-1].stat().st_size - header.offset
        if left < header.declared_bytes:
            raise _truncated(f"the voxels take {header.declared_bytes} bytes, the file has {max(left, 0)}")


def _geometry_checks(header: _Header, head: bool) -> list[Check]:
    """Judge the lattice; ``head`` also asks whether a head fits into it."""
    try:
        skew = geometry.shear(header.affine)
    except InputError as error:
        return [Check("error", error.code, error.message, error.advice)]
    checks = []
    if skew > geometry.SHEAR_LIMIT:
        error = geometry.sheared(skew)
        checks.append(Check("error", error.code, error.message, error.advice))
    elif skew > geometry.SHEAR_NOTED:
        message = f"the voxel axes are {np.degrees(np.arcsin(skew)):.2f} degrees off a right angle"
        advice = "registration uses the nearest orthogonal axes, everything else the axes as they are"
        checks.append(Check("warning", "AFFINE_SHEARED", message, advice))
    edges = np.linalg.norm(header.affine[:3, :3], axis=0)
    return checks + (_head_checks(edges, edges * np.array(header.shape)) if head else [])


def _head_checks(edges: np.ndarray, extent: np.ndarray) -> list[Check]:
    """Judge voxel edges and extent, both (3,) in millimetres."""
    checks = []
    sizes, extents = (
        " x ".join(f"{edge:.4g}" for edge in edges),
        " x ".join(f"{length:.4g}" for length in extent),
    )
    if edges.min() < VOXEL_MM[0] or edges.max() > VOXEL_MM[1]:
        checks.append(
            Check(
                "error",
                "VOXEL_SIZE",
                f"voxels of {sizes} mm",
                "edges from 0.2 to 12 mm are supported; check the unit of length",
            )
        )
    elif edges.max() > THICK_MM:
        message = f"voxels of {sizes} mm: anomalies thinner than a slice may be missed"
        checks.append(Check("warning", "VOXEL_SIZE", message, "prefer a scan with slices of 3 mm or less"))
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        advice = (
            "a head takes 60 to 500 mm along each axis; check the voxel size, crop or give the whole scan"
        )
        checks.append(Check("error", "EXTENT", f"the scan covers {extents} mm", advice))
    elif extent.min() < WHOLE_BRAIN_MM:
        message = f"the scan covers {extents} mm, probably not the whole brain"
        checks.append(Check("warning", "EXTENT", message, "registration may be off; look at the brain mask"))
    return checks


@dataclass
class _Values:
    """What is learnt about the voxel values while they pass by."""

    low: float = np.inf
    high: float = -np.inf
    strange: int = 0
    overflow: int = 0

    def add(self, values: np.ndarray) -> None:
        """Take in a piece of float32 or float64 values."""
        low, high = (
            float(values.min()),
            float(values.max()),
        )  # NaN and infinities show up here, without another pass
        if not np.isfinite(low) or not np.isfinite(high):
            finite = values[np.isfinite(values)]
            self.strange += values.size - finite.size
            if not finite.size:
                return
            values, low, high = finite, float(finite.min()), float(finite.max())
        if max(-low, high) > _FLOAT32_MAX:
            self.overflow += int((np.abs(values) > _FLOAT32_MAX).sum())
        self.low, self.high = min(self.low, low), max(self.high, high)

    def checks(self, header: _Header, head: bool) -> list[Check]:
        """Judge the values; ``head`` also asks whether there is anything to see."""
        checks = []
        if self.strange:
            message = f"{self.strange} of {header.count} voxels are not finite numbers"
            checks.append(Check("error", "NON_FINITE", message, "set them to the background value first"))
        if self.overflow:
            message = f"{self.overflow} voxels are beyond what 32-bit floats hold once scaled"
            checks.append(
                Check("error", "INTEGER_OVERFLOW", message, "check the slope and intercept of the header")
            )
        elif head and header.dtype.kind in "iu" and header.slope == 1 and max(-self.low, self.high) > _EXACT:
            message = f"integers up to {max(-self.low, self.high):.0f} are rounded to 24 bits"
            checks.append(Check("warning", "INTEGER_OVERFLOW", message, "harmless for intensities"))
        if head and not checks and self.low == self.high:
            message = f"all voxels have the value {self.low:g}"
            checks.append(Check("error", "CONSTANT", message, "the scan is empty: export it again"))
        return checks


# --------------------------------------------------------------------------------------------------
# Voxels


def _file_voxels(header: _Header, seen: _Values) -> np.ndarray:
    """Read voxels straight into one float32 array (Fortran order), converting piece by piece."""
    out = np.empty(header.count, dtype=np.float32)
    with open(header.files[-1], "rb") as stream:
        stream.seek(header.offset)
        source: Any = _Inflate(stream) if header.inflate else stream
        if header.skip:
            _pass_over(source, header.skip, strict=True)
        as_is = (
            header.dtype.kind == "f"
            and header.dtype.itemsize == 4
            and header.slope == 1
            and header.intercept == 0
        )
        piece = out if as_is else np.empty(min(_CHUNK, header.count), dtype=header.dtype)
        for start in range(0, header.count, _CHUNK):
            target = out[start : start + _CHUNK]
            raw = target.view(header.dtype) if as_is else piece[: target.size]
            _fill(source, memoryview(raw.view(np.uint8)))  # type: ignore[arg-type]
            if as_is and not header.dtype.isnative:
                target[:] = raw.copy()
            seen.add(target if as_is else _convert(raw, header, target))
        if header.inflate:
            _pass_over(source, _CHUNK, strict=False)  # runs into the checksum behind the last voxel
    return out.reshape(header.shape, order="F")


def _convert(raw: np.ndarray, header: _Header, target: np.ndarray) -> np.ndarray:
    """Scale ``raw`` into ``target``; return the values as they were before rounding to 32 bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        if header.slope == 1 and header.intercept == 0 and raw.dtype.kind in "iu":
            target[:] = raw
            return target
        values = raw.astype(np.float64) * header.slope + header.intercept
        target[:] = values
    return values


def _header_of(path: Path) -> _Header:
    """Find out the format by name and parse the header."""
    if path.is_dir():
        return _read_dicom(path)
    if not path.exists():
        raise InputError("NOT_FOUND", f"there is no {path.name}", "check the path")
    suffix = _suffix(path)
    readers = {
        ".nii": _read_nifti,
        ".nii.gz": _read_nifti,
        ".nrrd": _read_nrrd,
        ".mha": _read_meta,
        ".mhd": _read_meta,
    }
    if suffix not in readers or not path.is_file():
        raise InputError(
            "UNKNOWN_FORMAT",
            f"{path.name} is of no known format",
            "give .nii, .nii.gz, .nrrd, .mha, .mhd or a DICOM folder",
        )
    return readers[suffix](path)


def _examine(path: Path, head: bool = True) -> _Examined:
    """Read a file as far as it can be trusted; what is wrong with it becomes a check of level ``"error"``."""
    result = _Examined([])
    try:
        header = _header_of(path)
        result.checks += header.checks
        _size_checks(header)
        result.checks += _geometry_checks(header, head)
        if result.error:
            return result
        seen = _Values()
        if header.format == "DICOM":
            voxels = _dicom_voxels(header)
            seen.add(voxels)
        else:
            voxels = _file_voxels(header, seen)
        result.checks += seen.checks(header, head)
        if not result.error:
            result.header, result.voxels, result.sha256 = header, voxels, _sha256(header.files)
    except InputError as error:
        result.checks.append(Check("error", error.code, error.message, error.advice))
    except MemoryError:
        result.checks.append(
            Check("error", "TOO_LARGE", "there is not enough memory for the scan", "close other programs")
        )
    except OSError:
        result.checks.append(
            Check("error", "UNREADABLE", "the file cannot be opened", "check that you may read it")
        )
    return result


# --------------------------------------------------------------------------------------------------
# The public face


def check_file(path: str | os.PathLike[str]) -> list[Check]:
    """Examine a scan, voxels included; return all that was noticed, most serious first, errors too."""
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(_examine(Path(path)).checks, key=lambda check: order[check.level])


def _opened(path: Path, head: bool, name: str) -> tuple[_Examined, _Header, np.ndarray]:
    """Examine a file and raise its first error."""
    found = _examine(path, head)
    if found.error is not None:
        raise InputError(found.error.code, f"{name}{found.error.message}", found.error.advice)
    if found.header is None or found.voxels is None:  # pragma: no cover - excluded by _examine
        raise AssertionError("a file without error has voxels")
    return found, found.header, found.voxels


def read_scan(path: str | os.PathLike[str], contrast: str | None = None) -> Scan:
    """Read a scan.

    Parameters
    ----------
    path : path-like
        A ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha`` or ``.mhd`` file, or a folder with one DICOM series.
    contrast : {"T1w", "T2w", "FLAIR"}, optional
        By default what the BIDS suffix of the name says, if it has one.

    Returns
    -------
    Scan
        Voxels in Fortran order, float32, scaled as the header says.

    Raises
    ------
    InputError
        For the first check of level ``"error"``: ``NOT_FOUND``, ``UNKNOWN_FORMAT``, ``UNREADABLE``,
        ``TRUNCATED``, ``NOT_3D``, ``SEVERAL_COMPONENTS``, ``DATA_TYPE``, ``TOO_LARGE``, ``NON_FINITE``,
        ``INTEGER_OVERFLOW``, ``CONSTANT``, ``AFFINE_SINGULAR``, ``AFFINE_SHEARED``, ``VOXEL_SIZE``,
        ``EXTENT``, ``DICOM_SEVERAL_SERIES``; and ``CONTRAST_UNKNOWN`` for a contrast that is none of the
        three.
    """
    source = Path(path)
    if contrast is not None and contrast not in CONTRASTS:
        raise InputError(
            "CONTRAST_UNKNOWN", f"{contrast!r} is no known contrast", f"choose one of {', '.join(CONTRASTS)}"
        )
    found, header, voxels = _opened(source, True, "")
    scan = Scan(
        voxels,
        header.affine,
        header.stem or stem_of(source),
        contrast or contrast_from_name(source),
        found.checks,
    )
    scan.provenance = {
        "format": header.format,
        "data_type": header.dtype.name,
        "sha256": found.sha256,
        "shape": list(scan.shape),
        "voxel_mm": [round(float(edge), 6) for edge in scan.voxel_mm],
    }
    return scan


def read_mask(path: str | os.PathLike[str], scan: Scan, name: str = "mask") -> np.ndarray:
    """Read a mask onto a scan's grid.

    Parameters
    ----------
    path : path-like
        A file as for ``read_scan``. Values above one half count as inside, whatever the label.
    scan : Scan
        Gives the grid; a warning is added to its checks if the mask lies on another one and had to be
        resampled.
    name : str
        What messages call it: "mask", "reference", "brain mask".

    Returns
    -------
    numpy.ndarray
        Shape of ``scan.voxels``, bool. May be empty.

    Raises
    ------
    InputError
        As ``read_scan`` does, except for ``CONSTANT``, ``VOXEL_SIZE`` and ``EXTENT``; and ``MASK_OUTSIDE`` if
        no voxel of the mask falls into the scan.
    """
    _, header, voxels = _opened(Path(path), False, f"{name}: ")
    inside = voxels > 0.5
    if geometry.same_lattice(inside.shape, header.affine, scan.shape, scan.affine):
        return inside
    result = geometry.resample(inside, header.affine, scan.shape, scan.affine, order=0)
    if inside.any() and not result.any():
        raise InputError(
            "MASK_OUTSIDE", f"the {name} lies outside the scan", f"give a {name} that belongs to this scan"
        )
    message = f"the {name} lies on another grid than the scan and was resampled (nearest voxel)"
    scan.checks.append(
        Check("warning", "MASK_GRID", message, f"make sure that the {name} belongs to this scan")
    )
    return result
