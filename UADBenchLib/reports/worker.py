"""The worker with what writes files: the process that Slicer starts.

Detections and what follows from them are answered by ``inference.worker``; this adds ``export``, since reports lie in a
layer above. Run as ``python -m UADBenchLib.reports.worker``.

An ``export`` request names a finished job and a folder ``out``, and says which ``formats`` to write: ``"files"`` are
those that the command line writes, for which ``scan`` holds the scan as in a detect request (and ``reference`` a file
or null); ``"dicom-seg"`` is one DICOM Segmentation, for which ``dicom`` holds {labels, affine, names, series, model}.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from UADBenchLib.errors import InputError
from UADBenchLib.inference import worker

FORMATS = ("files", "dicom-seg")


def export(request: dict[str, Any], kept: worker.Kept) -> dict[str, Any]:
    """Write what an ``export`` request asks for.

    Returns
    -------
    dict
        ``files``: the names of what was written, within ``out``.

    Raises
    ------
    InputError
        BAD_REQUEST, and whatever reading the arrays and writing the files refuse.
    """
    formats = request.get("formats")
    if not isinstance(formats, list) or not formats or not set(formats) <= set(FORMATS):
        raise InputError("BAD_REQUEST", f"the formats are {formats!r}", f"send some of {', '.join(FORMATS)}")
    out = Path(worker.text_of(request, "out"))
    if not out.is_absolute():
        raise InputError("BAD_REQUEST", "the folder to write into is not absolute", "send an absolute path")
    written: list[Path] = []
    if "files" in formats:
        written += _write_files(request, kept, out)
    if "dicom-seg" in formats:
        written.append(_write_dicom_seg(request, kept, out))
    return {"files": [path.name for path in written]}


def _write_files(request: dict[str, Any], kept: worker.Kept, out: Path) -> list[Path]:
    """Write the files of the command line."""
    detection = importlib.import_module("UADBenchLib.reports.detection")
    scan = worker.scan_of(kept.folder, request.get("scan"))
    reference = worker.mask_of(kept.folder, request, "reference", scan.shape)
    return detection.write_detection(out, scan, list(kept.detections.values()), reference)


def _write_dicom_seg(request: dict[str, Any], kept: worker.Kept, out: Path) -> Path:
    """Write one DICOM Segmentation."""
    fields = request.get("dicom")
    if not isinstance(fields, dict) or not isinstance(fields.get("series"), list):
        raise InputError("BAD_REQUEST", "field 'dicom' is missing", "send {labels, affine, names, series, model}")
    dicom_seg = importlib.import_module("UADBenchLib.dicom_seg")
    model = worker.text_of(fields, "model")
    path = out / f"{worker.text_of(request.get('scan') or {}, 'stem', 'scan')}_model-{model}_seg.dcm"
    dicom_seg.write_dicom_seg(
        path,
        worker.load_array(kept.folder, fields.get("labels")),
        worker.affine_of(fields.get("affine")),
        [str(name) for name in fields.get("names") or ()],
        [str(file) for file in fields["series"]],
        model=model,
    )
    return path


if __name__ == "__main__":
    sys.exit(worker.main({"export": export}))
