"""Files of one detection: volumes, tables, JSON, pictures and one HTML page; all of them, or none.

Names follow BIDS derivatives, everything lies on the scan's own grid, and of the input's name only the stem
appears. The page says what was run, what was found, by which threshold and rules, and with what; it draws no
conclusion.
"""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from UADBenchLib import __version__
from UADBenchLib.evaluation.lesions import DEFAULT_RULE
from UADBenchLib.evaluation.policy import DEFAULT_POLICY
from UADBenchLib.inference.findings import COLUMNS
from UADBenchLib.reports.figure import detection_figure
from UADBenchLib.reports.staging import Stage, staged
from UADBenchLib.scan import Check, Scan
from UADBenchLib.writing import write_csv, write_json, write_text, write_volume

if TYPE_CHECKING:
    from jinja2 import Environment

    from UADBenchLib.inference.detector import Detection

ROWS_SHOWN = 15
_METRICS = (
    ("dice", "Dice at the threshold", "{:.3f}"),
    ("average_precision", "Average precision (voxels of the brain)", "{:.3f}"),
    ("best_dice", "Best Dice of the bare map (threshold chosen on this reference)", "{:.3f}"),
    ("false_positive_rate", "Flagged share of the brain outside the reference", "{:.2%}"),
    ("lesions", "Lesions in the reference", "{:d}"),
    ("lesions_hit", "Lesions hit", "{:d}"),
    ("lesion_recall", "Lesion recall", "{:.2f}"),
    ("lesion_precision", "Finding precision", "{:.2f}"),
    ("lesion_f1", "Lesion F1", "{:.2f}"),
    ("findings_false", "False findings", "{:d}"),
    ("false_positive_ml", "Volume of false findings, ml", "{:.2f}"),
    ("reference_ml", "Volume of the reference, ml", "{:.2f}"),
    ("mask_ml", "Volume flagged, ml", "{:.2f}"),
)


def write_detection(
    out: str | Path,
    scan: Scan,
    detections: list[Detection],
    reference: np.ndarray | None = None,
    save_raw: bool = False,
) -> list[Path]:
    """Write all files of one detection into a folder.

    Parameters
    ----------
    out : path-like
        Folder; made if need be. Files of an earlier detection of the same scan and models are replaced.
    scan : Scan
        What was looked at.
    detections : list of Detection
        One a model, and the consensus of several.
    reference : numpy.ndarray, optional
        Shape (I, J, K), for the pictures; the metrics are already in the detections.
    save_raw : bool
        Also write the maps before calibration.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    InputError
        NOT_WRITABLE or DISK_FULL; then nothing was written.
    """
    with staged(out) as stage:
        for detection in detections:
            _write_model(stage, scan, detection, reference, save_raw)
        brain = np.asarray(detections[0].brain_mask, dtype=np.uint8)
        write_volume(stage.path(f"{scan.stem}_brain_mask.nii.gz"), brain, scan.affine)
        page = stage.path(f"{scan.stem}_report.html")
        write_text(page, report_html(scan, detections, reference, [path.name for path in stage.files]))
    return stage.files


def _write_model(stage: Stage, scan: Scan, detection: Detection, reference: np.ndarray | None, save_raw: bool) -> None:
    """Write the files of one model."""
    name = f"{scan.stem}_model-{detection.model}"
    write_volume(stage.path(f"{name}_anomaly.nii.gz"), np.asarray(detection.map, np.float32), scan.affine)
    if save_raw and detection.model != "consensus":  # which has no score of its own
        raw = np.asarray(detection.raw, np.float32)
        write_volume(stage.path(f"{name}_desc-raw_anomaly.nii.gz"), raw, scan.affine)
    mask = np.asarray(detection.mask, dtype=np.uint8)
    write_volume(stage.path(f"{name}_label-anomaly_mask.nii.gz"), mask, scan.affine)
    rows = [finding.row() for finding in detection.findings]
    write_csv(stage.path(f"{name}_findings.csv"), rows, COLUMNS)
    write_json(stage.path(f"{name}.json"), detection.summary(scan.stem))
    detection_figure(stage.path(f"{name}.png"), scan, [detection], reference)


def report_html(
    scan: Scan,
    detections: list[Detection],
    reference: np.ndarray | None = None,
    files: list[str] | None = None,
) -> str:
    """Return the report as one HTML page that needs no other file and no network."""
    checks = list(dict.fromkeys(check for detection in detections for check in detection.checks))
    return (
        environment()
        .get_template("detection.html.j2")
        .render(
            version=__version__,
            scan=scan,
            facts=_scan_facts(scan, detections),
            models=[_model(detection) for detection in detections],
            figure=_figure_base64(scan, detections, reference),
            with_reference=any(detection.metrics for detection in detections),
            metrics=_metric_rows(detections),
            rules=_rules(detections),
            checks=sorted(checks, key=_gravity),
            quality=_quality_rows(detections[0]),
            domains=[(one.model, one.domain) for one in detections if one.model != "consensus"],
            preparation=_preparation(detections),
            stages=_stage_rows(detections),
            files=files or [],
        )
    )


def environment() -> Environment:
    """The templates of all reports: text is escaped, and a name that a page lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("UADBenchLib.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figure_base64(scan: Scan, detections: list[Detection], reference: np.ndarray | None) -> str:
    """Return the picture of all models as base64 text."""
    with tempfile.TemporaryDirectory() as folder:
        path = detection_figure(Path(folder) / "figure.png", scan, detections, reference)
        return base64.b64encode(path.read_bytes()).decode("ascii")


def _gravity(check: Check) -> int:
    return {"error": 0, "warning": 1, "info": 2}[check.level]


def _scan_facts(scan: Scan, detections: list[Detection]) -> list[tuple[str, str]]:
    """Return what is said of the scan: grid and contrast, nothing from its header's text."""
    edges = " x ".join(f"{edge:.2f}".rstrip("0").rstrip(".") for edge in scan.voxel_mm)
    facts = [
        ("Scan", scan.stem),
        ("Contrast", _contrast(scan, detections[0])),
        ("Grid", " x ".join(str(size) for size in scan.shape) + f" voxels of {edges} mm"),
    ]
    for key, label in (("format", "Format"), ("sha256", "SHA-256 of the input")):
        if isinstance(scan.provenance.get(key), str):
            facts.append((label, scan.provenance[key]))
    return facts


def _contrast(scan: Scan, detection: Detection) -> str:
    """Return the contrast gone by, and what the image says where that was asked."""
    contrast = detection.contrast
    if not contrast:
        return scan.contrast or "not known"
    if contrast["stated"] is None:
        return f"{contrast['used']} (the image looks like {contrast['found']}; none was stated)"
    agrees = "agrees" if contrast["found"] == contrast["used"] else f"looks like {contrast['found']}"
    return f"{contrast['used']} (the image {agrees})"


_QUALITY = (
    ("snr", "Signal to noise (white matter)", "{:.1f}"),
    ("cnr", "Contrast to noise (white against grey matter)", "{:.1f}"),
    ("ghosting", "Ghosting (air along one axis against another, share of the brain's brightness)", "{:.1%}"),
    ("slice_mm", "Thickest voxel edge, mm", "{:.2f}"),
    ("cut_cm2", "Brain mask on the border of the scan, cm2", "{:.1f}"),
)


def _quality_rows(detection: Detection) -> list[tuple[str, str]]:
    """Return what was measured of the scan's quality as (label, text) pairs."""
    measured = detection.quality
    return [
        (label, "cannot be measured in this scan" if measured[key] is None else form.format(measured[key]))
        for key, label, form in _QUALITY
        if key in measured
    ]


def _model(detection: Detection) -> dict[str, Any]:
    """Return what the page shows of one model."""
    findings = detection.findings
    return {
        "id": detection.model,
        "threshold": detection.threshold,
        "operating_point": detection.operating_point,
        "origin": detection.origin,
        "count": len(findings),
        "volume_ml": sum(finding.volume_ml for finding in findings),
        "peak_z": max((finding.peak_z for finding in findings), default=None),
        "rows": [finding.row() for finding in findings[:ROWS_SHOWN]],
        "left_out": max(0, len(findings) - ROWS_SHOWN),
        "seconds": sum(detection.seconds.values()),
        "provenance": _provenance(detection),
    }


def _provenance(detection: Detection) -> list[tuple[str, str]]:
    """Return versions and hashes as (name, text) pairs, without what the page says elsewhere."""
    facts = {key: value for key, value in detection.provenance.items() if key not in ("preparation", "scan")}
    if isinstance(facts.get("models"), list):
        facts["models"] = [one.get("model", "") for one in facts["models"]]
    return _flat(facts)


def _preparation(detections: list[Detection]) -> list[tuple[str, str]]:
    """Return each step of the preparation with its parameters and measured values as text."""
    for detection in detections:
        steps = detection.provenance.get("preparation")
        if isinstance(steps, list):
            return [
                (
                    str(step.get("step", "")),
                    "; ".join(
                        f"{key.replace('_', ' ')} {_short(value)}" for key, value in step.items() if key != "step"
                    ),
                )
                for step in steps
            ]
    return []


def _short(value: Any) -> str:
    """Return a value in a few characters; a matrix is only named, the JSON has it."""
    if isinstance(value, (list, tuple)):
        nested = value and isinstance(value[0], (list, tuple))
        return f"({len(value)} x {len(value[0])} matrix)" if nested else " x ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return nested values as (dotted name, text) pairs."""
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, (list, tuple)):
        return [(name, ", ".join(str(item) for item in value))]
    return [(name, f"{value:.6g}" if isinstance(value, float) else str(value))]


def _metric_rows(detections: list[Detection]) -> list[dict[str, Any]]:
    """Return one row a metric with a value for each compared model; undefined ones say so."""
    compared = [detection for detection in detections if detection.metrics]
    rows = []
    for key, label, form in _METRICS:
        if any(key in (detection.metrics or {}) for detection in compared):
            values = [_metric((detection.metrics or {}).get(key), form) for detection in compared]
            rows.append({"label": label, "values": values})
    return rows


def _metric(value: Any, form: str) -> str:
    """Return a metric as text."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "undefined"
    return form.format(int(value) if form == "{:d}" else float(value))


def _rules(detections: list[Detection]) -> list[str]:
    """Return the sentences that say how the metrics were counted."""
    metrics = next((detection.metrics for detection in detections if detection.metrics), {}) or {}
    sentences = []
    for key, default in (("policy", DEFAULT_POLICY), ("rule", DEFAULT_RULE)):
        record = metrics.get(key)
        known = isinstance(record, dict) and isinstance(record.get("sentence"), str)
        sentences.append(record["sentence"] if known else default.sentence())
    return sentences


def _stage_rows(detections: list[Detection]) -> list[dict[str, Any]]:
    """Return one row a stage with the seconds that each model took in it."""
    stages = dict.fromkeys(stage for detection in detections for stage in detection.seconds if stage != "total")
    rows = [{"label": stage, "values": [one.seconds.get(stage) for one in detections]} for stage in stages]
    return [*rows, {"label": "total", "values": [sum(one.seconds.values()) for one in detections]}]
