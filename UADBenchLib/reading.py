"""Files in: NIfTI, NRRD, MetaImage and DICOM series become a ``Scan``, or a named refusal.

``formats`` finds out what a header declares; here it is judged before any memory is taken for voxels, and so
are the voxels once they are there. ``check_file`` and ``read_scan`` go the same way and differ only in what
they do with an error.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from UADBenchLib import formats, geometry
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

_CHUNK = 1 << 19  # voxels converted, or bytes hashed, at a time
_EXACT = 2**24  # integers up to here are exact in float32
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def _error(error: InputError) -> Check:
    """Return an error as a check."""
    return Check("error", error.code, error.message, error.advice)


def _size_checks(header: formats.Header) -> None:
    """Refuse what declares more than it can hold, before any memory is taken.

    Raises
    ------
    InputError
        ``TOO_LARGE`` or ``TRUNCATED``.
    """
    declared = header.count * header.dtype.itemsize
    wanted = max(declared, 4 * header.count)
    if wanted > LARGEST_BYTES:
        message = f"the header declares a scan of {wanted / 1024**3:.1f} GiB"
        raise InputError("TOO_LARGE", message, "scans may take 4 GiB; resample it first")
    held = sum(path.stat().st_size for path in header.files)
    if header.packed and declared > LARGEST_RATIO * held:
        message = f"the header declares {declared} bytes of voxels, the file has {held}"
        advice = "no compression does that: the file is damaged or made to do harm"
        raise InputError("TOO_LARGE", message, advice)
    left = max(header.files[-1].stat().st_size - header.offset, 0)
    if not header.packed and left < declared:
        message = f"the voxels take {declared} bytes, the file has {left}"
        raise InputError("TRUNCATED", message, "copy or export it again from its source")


def _geometry_checks(header: formats.Header, head: bool) -> list[Check]:
    """Judge the lattice; ``head`` also asks whether a head fits into it."""
    try:
        skew = geometry.shear(header.affine)
    except InputError as error:
        return [_error(error)]
    checks = []
    if skew > geometry.SHEAR_LIMIT:
        checks.append(_error(geometry.sheared(skew)))
    elif skew > geometry.SHEAR_NOTED:
        message = f"the voxel axes are {np.degrees(np.arcsin(skew)):.2f} degrees off a right angle"
        advice = "registration uses the nearest orthogonal axes, everything else the axes as they are"
        checks.append(Check("warning", "AFFINE_SHEARED", message, advice))
    edges = np.linalg.norm(header.affine[:3, :3], axis=0)
    return checks + (_head_checks(edges, edges * np.array(header.shape)) if head else [])


def _head_checks(edges: np.ndarray, extent: np.ndarray) -> list[Check]:
    """Judge voxel edges and extent, both (3,) in millimetres."""
    checks = []
    sizes = "voxels of " + " x ".join(f"{edge:.4g}" for edge in edges) + " mm"
    extents = "the scan covers " + " x ".join(f"{length:.4g}" for length in extent) + " mm"
    if edges.min() < VOXEL_MM[0] or edges.max() > VOXEL_MM[1]:
        advice = "edges from 0.2 to 12 mm are supported; check the unit of length"
        checks.append(Check("error", "VOXEL_SIZE", sizes, advice))
    elif edges.max() > THICK_MM:
        message = f"{sizes}: anomalies thinner than a slice may be missed"
        checks.append(Check("warning", "VOXEL_SIZE", message, "prefer a scan with slices of 3 mm or less"))
    if extent.min() < EXTENT_MM[0] or extent.max() > EXTENT_MM[1]:
        advice = "a head takes 60 to 500 mm along each axis; check the voxel size, crop or give all of it"
        checks.append(Check("error", "EXTENT", extents, advice))
    elif extent.min() < WHOLE_BRAIN_MM:
        message = f"{extents}, probably not the whole brain"
        checks.append(Check("warning", "EXTENT", message, "registration may be off; look at the brain mask"))
    return checks


def _voxels(header: formats.Header, head: bool) -> tuple[np.ndarray, list[Check]]:
    """Load the voxels, scaled, as float32 in Fortran order; ``head`` also asks whether they show anything."""
    raw = header.load().ravel(order="F")
    scaled = header.slope != 1 or header.intercept != 0
    out = raw if raw.dtype == np.float32 and not scaled else np.empty(raw.size, dtype=np.float32)
    low, high, strange, overflow = np.inf, -np.inf, 0, 0
    for start in range(0, raw.size, _CHUNK):
        piece = raw[start : start + _CHUNK]
        with np.errstate(over="ignore", invalid="ignore"):
            if scaled:
                piece = piece.astype(np.float64) * header.slope + header.intercept
            if out is not raw:
                out[start : start + _CHUNK] = piece
        finite = np.isfinite(piece)
        kept = piece if finite.all() else piece[finite]
        strange += piece.size - kept.size
        if kept.size:
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
            overflow += int((np.abs(kept) > _FLOAT32_MAX).sum()) if max(-low, high) > _FLOAT32_MAX else 0
    checks = []
    if strange:
        message = f"{strange} of {header.count} voxels are not finite numbers"
        checks.append(Check("error", "NON_FINITE", message, "set them to the background value first"))
    if overflow:
        message = f"{overflow} voxels are beyond what 32-bit floats hold once scaled"
        advice = "check the slope and intercept of the header"
        checks.append(Check("error", "INTEGER_OVERFLOW", message, advice))
    if head and raw.dtype.kind in "iu" and not scaled and max(-low, high) > _EXACT:
        message = f"integers up to {max(-low, high):.0f} are rounded to 24 bits"
        checks.append(Check("warning", "INTEGER_OVERFLOW", message, "harmless for intensities"))
    if head and low == high and not checks:
        message = f"all voxels have the value {low:g}"
        checks.append(Check("error", "CONSTANT", message, "the scan is empty: export it again"))
    return out.reshape(header.shape, order="F"), checks


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


def _stop(checks: list[Check]) -> None:
    """Raise the first check of level ``"error"``, if there is one."""
    for check in checks:
        if check.level == "error":
            raise InputError(check.code, check.message, check.advice)


def _read(path: Path, head: bool, checks: list[Check]) -> tuple[formats.Header, np.ndarray]:
    """Read a file as far as it can be trusted, adding to ``checks``; raise the first error."""
    try:
        header = formats.header_of(path)
        checks += header.checks
        _size_checks(header)
        checks += _geometry_checks(header, head)
        _stop(checks)
        voxels, noticed = _voxels(header, head)
    except MemoryError:
        message = "there is not enough memory for the scan"
        raise InputError("TOO_LARGE", message, "close other programs") from None
    except OSError:
        message = "the file cannot be opened"
        raise InputError("UNREADABLE", message, "check that you may read it") from None
    checks += noticed
    _stop(checks)
    return header, voxels


def stem_of(path: str | os.PathLike[str]) -> str:
    """Return the name that results carry: the file name without its image suffix.

    A DICOM folder gives ``dicom-`` and eight hexadecimal digits from the hash of its SeriesInstanceUID, since
    folder names and headers of DICOM series tend to hold the patient's name.
    """
    source = Path(path)
    if source.is_dir():
        try:
            return formats.dicom_stem(source)
        except InputError:
            return "dicom"
    suffix = formats.suffix_of(source)
    return source.name[: -len(suffix)] if suffix else source.stem


def contrast_from_name(path: str | os.PathLike[str]) -> str | None:
    """Return the contrast that a BIDS suffix (``_T1w``, ``_T2w``, ``_FLAIR``) states, or None."""
    name = Path(path).name
    stem = name[: len(name) - len(formats.suffix_of(Path(path)))]
    last = stem.rpartition("_")[2].lower()
    return next((contrast for contrast in CONTRASTS if contrast.lower() == last), None)


def check_file(path: str | os.PathLike[str]) -> list[Check]:
    """Examine a scan, voxels included; return all that was noticed, most serious first, errors too."""
    checks: list[Check] = []
    try:
        _read(Path(path), True, checks)
    except InputError as error:
        checks += [] if _error(error) in checks else [_error(error)]
    return sorted(checks, key=lambda check: ("error", "warning", "info").index(check.level))


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
        advice = f"choose one of {', '.join(CONTRASTS)}"
        raise InputError("CONTRAST_UNKNOWN", f"{contrast!r} is no known contrast", advice)
    checks: list[Check] = []
    header, voxels = _read(source, True, checks)
    stem, contrast = header.stem or stem_of(source), contrast or contrast_from_name(source)
    scan = Scan(voxels, header.affine, stem, contrast, checks)
    scan.provenance = {
        "format": header.format,
        "data_type": header.dtype.name,
        "sha256": _sha256(header.files),
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
    try:
        header, voxels = _read(Path(path), False, [])
    except InputError as error:
        raise InputError(error.code, f"{name}: {error.message}", error.advice) from error
    inside = voxels > 0.5
    if geometry.same_lattice(inside.shape, header.affine, scan.shape, scan.affine):
        return inside
    result = geometry.resample(inside, header.affine, scan.shape, scan.affine, order=0)
    if inside.any() and not result.any():
        message = f"the {name} lies outside the scan"
        raise InputError("MASK_OUTSIDE", message, f"give a {name} that belongs to this scan")
    message = f"the {name} lies on another grid than the scan and was resampled (nearest voxel)"
    advice = f"make sure that the {name} belongs to this scan"
    scan.checks.append(Check("warning", "MASK_GRID", message, advice))
    return result
