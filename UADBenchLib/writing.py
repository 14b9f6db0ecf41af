"""Files out: volumes, tables, JSON and text, each complete under its name or not there at all.

``atomic`` is the only place in UADBench where an output file comes into being. Volumes get a fresh header
that carries geometry and nothing else: no text, no name, no date.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib import geometry
from UADBenchLib.errors import InputError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


def _suffix(path: Path) -> str:
    """Return the suffix that decides the format: ``.nii.gz`` as a whole, otherwise the last one."""
    return path.name[-7:] if path.name.lower().endswith(".nii.gz") else path.suffix


@contextlib.contextmanager
def _explained(path: Path, *groups: set[int]) -> Iterator[None]:
    """Turn what the user can cure (place, permission, space) into an ``InputError``; let all else pass."""
    try:
        yield
    except OSError as error:
        known = error.errno in set().union(*groups)
        if known and error.errno in _FULL:
            advice = "free some space or choose another folder"
            raise InputError("DISK_FULL", f"no space left to write {path.name}", advice) from error
        if known:
            raise InputError("NOT_WRITABLE", f"cannot write {path}", "choose a folder that you may write to") from error
        raise


def _flush(path: Path, flags: int) -> None:
    """Ask the system to put what lies under ``path`` onto the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> Path:
    """Create an empty file beside ``path`` under a name that nobody else uses, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    partial = path.parent / f".uadbench-{secrets.token_hex(8)}.part{_suffix(path)}"
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return partial


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder, which takes the name ``path`` when the block ends well.

    The folder is made if need be. The temporary file keeps the suffix of ``path``, so that writers which go
    by it work. It is on the disk before it takes the name, and removed when the block raises anything
    (``KeyboardInterrupt`` included), in which case a file that was there before stays as it was.

    Raises
    ------
    InputError
        ``NOT_WRITABLE`` or ``DISK_FULL``.
    """
    target = Path(path)
    with _explained(target, _FULL, _REFUSED):
        partial = _create(target)
    mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        with _explained(target, _FULL):  # a refusal in here may be about a file that the block reads
            yield partial
            partial.chmod(mode)  # some writers replace the file by one that only its owner may read
            _flush(partial, os.O_RDWR)
        with _explained(target, _FULL, _REFUSED):
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        with contextlib.suppress(OSError):  # some network file systems refuse; the file itself is safe already
            _flush(target.parent, os.O_RDONLY)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder beside ``path`` that takes its name when the block ends well, and is removed when it does not.

    Raises
    ------
    InputError
        ``OUT_NOT_EMPTY`` when something is there already, ``NOT_WRITABLE``.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError("OUT_NOT_EMPTY", f"{target} holds something already", "give a new or empty folder")
    partial = target.absolute().with_name(f".uadbench-{secrets.token_hex(8)}.part")
    with _explained(target, _FULL, _REFUSED):
        partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _storable(array: np.ndarray) -> np.ndarray:
    """Return ``array`` as float32, or as uint8 if it is boolean or integer."""
    if array.ndim != 3:
        raise ValueError(f"a volume has three dimensions, not {array.ndim}")
    if array.dtype.kind == "f":
        values = array.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise ValueError("a volume to be written has values that are not finite numbers")
        return values
    if array.dtype.kind not in "bui":
        raise ValueError(f"a volume is written as float32 or uint8, not {array.dtype}")
    if array.dtype.kind != "b" and array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(f"labels are written as uint8; found {array.min()} to {array.max()}")
    return array.astype(np.uint8, copy=False)


def write_volume(path: str | os.PathLike[str], array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as NIfTI-1 with a fresh header.

    Parameters
    ----------
    path : path-like
        Ends in ``.nii`` or ``.nii.gz``.
    array : numpy.ndarray
        Shape (I, J, K); floating types are stored as float32, bool and integers from 0 to 255 as uint8.
    affine : numpy.ndarray
        Shape (4, 4), voxel index to RAS millimetres. It becomes the sform; the qform says the same unless the
        axes are sheared, which a qform cannot express.

    Raises
    ------
    InputError
        ``NOT_WRITABLE``, ``DISK_FULL``, ``AFFINE_SINGULAR``.
    ValueError
        If the suffix, the shape, the type or the values cannot be written.
    """
    import nibabel

    target = Path(path)
    if _suffix(target).lower() not in (".nii", ".nii.gz"):
        raise ValueError(f"a volume's name ends in .nii or .nii.gz, unlike {target.name}")
    expressible = geometry.is_orthonormal(affine)
    image = nibabel.Nifti1Image(_storable(array), np.asarray(affine, dtype=np.float64))
    image.set_qform(affine, code=1 if expressible else 0)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic(target) as partial:
        nibabel.save(image, partial)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with line feeds."""
    with atomic(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)


def _plain(value: Any) -> Any:
    """Return ``value`` in terms of what JSON has; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write a JSON document; NumPy arrays become lists, numbers that are not finite become null.

    Raises
    ------
    TypeError
        If something in ``document`` has no place in JSON.
    """
    write_text(path, json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Write a table with a header line; None becomes an empty field.

    Raises
    ------
    ValueError
        If a row has a field that is not among ``columns``.
    """
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, fieldnames=list(columns), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, buffer.getvalue())
