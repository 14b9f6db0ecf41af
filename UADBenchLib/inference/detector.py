"""One scan, one or more models: prepare, score, calibrate, threshold, find. The only way to a detection, for the
command line and Slicer alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib import __version__
from UADBenchLib.bundles.bundle import Bundle, load_bundle, load_metadata
from UADBenchLib.bundles.catalogue import default_model, find_model
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.compare import compare
from UADBenchLib.inference.calibration import HealthyReference, unpack_reference
from UADBenchLib.inference.device import choose_device
from UADBenchLib.inference.domain import describe_domain, domain_checks
from UADBenchLib.inference.findings import Finding, find
from UADBenchLib.inference.scoring import reconstruct_volume, score_volume
from UADBenchLib.preprocessing.contrast import settle_contrast
from UADBenchLib.preprocessing.recipe import Prepared, Recipe, prepare
from UADBenchLib.preprocessing.registration import load_template
from UADBenchLib.scan import CONTRASTS, Check, Progress, Scan

CONSENSUS = "consensus"
MINIMUM_ML = 0.1
PREPARATION_SHARE = 0.4
"""Part of the progress bar that preparation takes; about its part of the time with one small model on a processor."""


@dataclass
class Detection:
    """What one model found in one scan. All arrays lie on the scan's own grid, shape (I, J, K).

    Attributes
    ----------
    model : str
        Id of the bundle, or ``"consensus"``.
    map : numpy.ndarray
        float32, calibrated z, at least 0; zero outside the brain and on its rim.
    raw : numpy.ndarray
        float32, the method's own score before calibration.
    mask : numpy.ndarray
        uint8: where the map exceeds ``threshold``, in findings of at least ``minimum_ml``.
    brain_mask : numpy.ndarray
        uint8.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    threshold : float
        In units of the map.
    operating_point, origin : str
        Name of the threshold, and where it came from.
    findings : list of Finding
        Highest peak first.
    metrics : dict or None
        With a reference: see ``evaluation.compare``.
    seconds : dict
        Wall time of every stage.
    checks : list of Check
        What was noticed about the scan and on the way.
    contrast : dict
        ``used``, ``stated`` (by user or file name, or None), ``found`` in the image, and what that rests on.
    quality : dict
        See ``preprocessing.quality.measure_quality``.
    domain : dict or None
        See ``inference.domain.describe_domain``.
    provenance : dict
        JSON-serialisable: model, hashes, versions, device, preparation steps.
    minimum_ml, smoothing_mm : float
        Least volume of a finding; standard deviation by which the map is smoothed before it is thresholded.
    reconstruction, residual : numpy.ndarray or None
        float32, where they were asked for and the method has them: the pseudo-healthy scan, and the scan minus it, both
        in prepared intensity (tissue in about [0.1, 1]).
    reference : numpy.ndarray or None
        The boolean reference that the metrics were computed against.
    region_of : callable or None
        Names the place of a point (RAS mm of the scan).
    """

    model: str
    map: np.ndarray
    raw: np.ndarray
    mask: np.ndarray
    brain_mask: np.ndarray
    affine: np.ndarray
    threshold: float
    operating_point: str
    origin: str
    findings: list[Finding]
    metrics: dict[str, Any] | None
    seconds: dict[str, float]
    checks: list[Check]
    provenance: dict[str, Any]
    contrast: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    domain: dict[str, Any] | None = None
    minimum_ml: float = MINIMUM_ML
    smoothing_mm: float = 0.0
    reconstruction: np.ndarray | None = field(default=None, repr=False)
    residual: np.ndarray | None = field(default=None, repr=False)
    reference: np.ndarray | None = field(default=None, repr=False)
    region_of: Callable[[tuple[float, float, float]], str] | None = field(default=None, repr=False)

    def summary(self, stem: str) -> dict[str, Any]:
        """The JSON document that is written beside a map."""
        inside = self.map[self.brain_mask > 0]
        return {
            "scan": stem,
            "model": self.model,
            "threshold": self.threshold,
            "operating_point": self.operating_point,
            "threshold_origin": self.origin,
            "minimum_ml": self.minimum_ml,
            "smoothing_mm": self.smoothing_mm,
            "findings": len(self.findings),
            "findings_ml": round(sum(finding.volume_ml for finding in self.findings), 3),
            "highest_z": round(float(inside.max()), 3) if inside.size else None,
            "metrics": self.metrics,
            "contrast": self.contrast,
            "quality": self.quality,
            "domain": self.domain,
            "checks": [asdict(check) for check in self.checks],
            "seconds": self.seconds,
            "provenance": self.provenance,
            "note": "Research software; not a medical device.",
        }


def detect(
    scan: Scan,
    models: Sequence[str] = (),
    *,
    brain_mask: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    operating_point: str = "fpr-1pct",
    device: str = "auto",
    minimum_ml: float = MINIMUM_ML,
    force: bool = False,
    batch: int = 8,
    reconstruct: bool = False,
    progress: Progress | None = None,
) -> list[Detection]:
    """Detect anomalies in a scan.

    Parameters
    ----------
    scan : Scan
        Not changed.
    models : sequence of str
        Ids of bundles; none takes the default model of the scan's contrast, which is read off the image where
        ``scan`` does not state it. Several also give their consensus, the mean
        of their maps.
    brain_mask, reference : numpy.ndarray, optional
        Boolean, on the scan's grid.
    operating_point : str
        Name of a threshold that the bundles carry.
    device : str
        See ``inference.device.choose_device``.
    minimum_ml : float
        Least volume of a finding.
    force : bool
        Go on with a scan of unknown contrast that looks like neither T1w, T2w nor FLAIR.
    batch : int
        Slices that go through a network together; fewer need less memory.
    reconstruct : bool
        Also give the pseudo-healthy scan, where the method has one.
    progress : callable, optional
        Called with (stage, fraction of all); what it raises (``CancelledError``) ends the work.

    Raises
    ------
    InputError
        For an unknown model, operating point or device, a model of another contrast, an uncalibrated or damaged bundle,
        and whatever preparation refuses.
    """
    target = choose_device(device)
    for name, array in (("brain mask", brain_mask), ("reference", reference)):
        if array is not None and array.shape != scan.shape:
            raise InputError(
                "GRID_MISMATCH", f"the {name} is {array.shape}, the scan {scan.shape}", "bring it onto the scan's grid"
            )
    names = list(dict.fromkeys(models))
    if not names and scan.contrast is not None:
        names = [default_model(scan.contrast)]
    # Whatever can be refused is refused before the work; only the default model of a scan of unknown contrast is not
    # known before it.
    bundles = _open_all(names, scan.contrast, operating_point)
    start = _part(progress, 0.0, PREPARATION_SHARE)
    recipe = bundles[0][0].recipe if bundles else Recipe()
    prepared = {recipe.hash: prepare(scan, recipe, brain_mask=brain_mask, progress=start)}
    contrast, checks = _settled(scan, prepared[recipe.hash], bundles, force)
    bundles = bundles or _open_all([default_model(contrast["used"])], contrast["used"], operating_point)
    detections = []
    for number, (bundle, healthy) in enumerate(bundles):
        if bundle.recipe.hash not in prepared:
            prepared[bundle.recipe.hash] = prepare(scan, bundle.recipe, brain_mask=brain_mask, progress=start)
        span = (1 - PREPARATION_SHARE) / len(bundles)
        tell = _part(progress, PREPARATION_SHARE + number * span, PREPARATION_SHARE + (number + 1) * span)
        ready = prepared[bundle.recipe.hash]
        found = _one(scan, ready, bundle, healthy, reference, operating_point, target, minimum_ml, batch, tell)
        if reconstruct:
            found = _with_reconstruction(found, scan, ready, bundle, target, batch, tell)
        detections.append(replace(found, contrast=contrast, checks=[*checks, *found.checks]))
    if len(detections) > 1:
        detections.append(_consensus(detections, minimum_ml))
    if progress is not None:
        progress("done", 1.0)
    return detections


def warm_up() -> None:
    """Load what every detection needs and no callback can interrupt: the template and what reads it."""
    load_template()


def rethreshold(
    detection: Detection,
    threshold: float,
    minimum_ml: float | None = None,
    smoothing_mm: float | None = None,
    operating_point: str = "user",
    origin: str = "chosen by the user",
) -> Detection:
    """The same detection at another threshold (in units of the map), least volume or smoothing; nothing is computed
    again but mask, findings and metrics.

    Raises
    ------
    InputError
        ``OPTION_INVALID`` for a threshold or a smoothing that is not a finite number of at least 0.
    """
    least = detection.minimum_ml if minimum_ml is None else minimum_ml
    smoothing = detection.smoothing_mm if smoothing_mm is None else smoothing_mm
    for name, value in (("threshold", threshold), ("smoothing", smoothing)):
        if not np.isfinite(value) or value < 0:
            raise InputError("OPTION_INVALID", f"the {name} is {value}", "give a number of at least 0")
    return _thresholded(
        replace(
            detection,
            threshold=float(threshold),
            operating_point=operating_point,
            origin=origin,
            minimum_ml=least,
            smoothing_mm=float(smoothing),
        )
    )


def restore(
    model: str,
    map: np.ndarray,
    affine: np.ndarray,
    threshold: float,
    *,
    brain_mask: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    summary: dict[str, Any] | None = None,
) -> Detection:
    """A detection from a map that was computed and saved before, so that it can be thresholded and compared again.

    Parameters
    ----------
    model : str
        Id of the model that the map came from.
    map : numpy.ndarray
        Shape (I, J, K), calibrated z, zero outside the brain.
    affine : numpy.ndarray
        Voxel index to RAS mm of the scan.
    threshold : float
        In units of the map.
    brain_mask, reference : numpy.ndarray, optional
        On the map's grid; without a brain mask everything where the map is not zero counts as brain.
    summary : dict, optional
        The JSON document that was written beside the map: what it says of scan and preparation is kept, and the
        registration in it names places again.
    """
    summary = summary or {}
    brain = (map > 0 if brain_mask is None else brain_mask != 0).astype(np.uint8)
    world = _registration_of(summary)
    return _thresholded(
        Detection(
            model=model,
            map=map,
            raw=map,
            mask=np.zeros(map.shape, dtype=np.uint8),
            brain_mask=brain,
            affine=np.asarray(affine, dtype=np.float64),
            threshold=float(threshold),
            operating_point=str(summary.get("operating_point") or "user"),
            origin=str(summary.get("threshold_origin") or "chosen by the user"),
            findings=[],
            metrics=None,
            seconds=dict(summary.get("seconds") or {}),
            checks=[Check(**check) for check in summary.get("checks") or ()],
            provenance=dict(summary.get("provenance") or {}),
            contrast=dict(summary.get("contrast") or {}),
            quality=dict(summary.get("quality") or {}),
            domain=summary.get("domain"),
            minimum_ml=float(summary.get("minimum_ml") or 0.0),
            smoothing_mm=float(summary.get("smoothing_mm") or 0.0),
            reference=reference,
            region_of=None if world is None else _region_namer(world),
        )
    )


def _registration_of(summary: dict[str, Any]) -> np.ndarray | None:
    """The matrix from template to scan that a summary records, or None; a consensus has that of its first model."""
    provenance = summary.get("provenance") or {}
    steps = provenance.get("preparation") or next(iter(provenance.get("models") or [{}])).get("preparation") or ()
    found = [step["world"] for step in steps if step.get("step") == "registration" and "world" in step]
    return np.array(found[0], dtype=np.float64) if found else None


def _thresholded(detection: Detection) -> Detection:
    """Fill in mask, findings and metrics from map and threshold."""
    above = detection.map > detection.threshold
    if detection.smoothing_mm > 0:
        above = _smoothed(detection) > detection.threshold
    mask, findings = find(
        detection.map,
        above,
        detection.affine,
        minimum_ml=detection.minimum_ml,
        reference=detection.reference,
        region_of=detection.region_of,
    )
    metrics = None
    if detection.reference is not None:
        voxel_ml = abs(float(np.linalg.det(detection.affine[:3, :3]))) / 1000
        metrics = compare(detection.map, mask, detection.reference, detection.brain_mask, voxel_ml)
    return replace(detection, mask=mask, findings=findings, metrics=metrics)


def _smoothed(detection: Detection) -> np.ndarray:
    """The map, smoothed by a Gaussian of ``smoothing_mm``; zero outside the brain as before."""
    from scipy.ndimage import gaussian_filter

    voxel_mm = np.linalg.norm(detection.affine[:3, :3], axis=0)
    return gaussian_filter(detection.map, detection.smoothing_mm / voxel_mm, mode="constant") * (
        detection.brain_mask > 0
    )


def _with_reconstruction(
    found: Detection, scan: Scan, prepared: Prepared, bundle: Bundle, device, batch: int, progress: Progress | None
) -> Detection:
    """A detection with the pseudo-healthy scan of its method, and what the scan has more or less than it."""
    started = time.perf_counter()
    healthy = reconstruct_volume(
        bundle.method, prepared.voxels, prepared.mask, device=device, batch=batch, progress=progress
    )
    if healthy is None:
        return found
    residual = (prepared.voxels - healthy) * prepared.mask
    found.seconds["reconstruction"] = round(time.perf_counter() - started, 3)
    return replace(found, reconstruction=prepared.to_native(healthy, scan), residual=prepared.to_native(residual, scan))


def _part(progress: Progress | None, start: float, stop: float) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, fraction: progress(stage, start + (stop - start) * fraction)


def open_model(path: Path) -> tuple[Bundle, HealthyReference]:
    """A bundle and its healthy reference, kept open for the next scan.

    Raises
    ------
    InputError
        ``NOT_CALIBRATED``, and whatever ``load_bundle`` refuses.
    """
    # The weights' hash is part of the key: a bundle that was trained again is not taken for the old one.
    return _cached(str(path), load_metadata(path).model_dump_json())


@lru_cache(maxsize=16)
def _cached(path: str, metadata: str) -> tuple[Bundle, HealthyReference]:
    bundle = load_bundle(Path(path))
    return bundle, unpack_reference(bundle)


def _open_all(
    names: Sequence[str], contrast: str | None, operating_point: str
) -> list[tuple[Bundle, HealthyReference]]:
    """Open the bundles and refuse what does not fit the scan's contrast, the operating point or the others."""
    bundles = [open_model(find_model(name)) for name in names]
    for bundle, _ in bundles:
        metadata = bundle.metadata
        if contrast is not None and metadata.contrast != contrast:
            raise InputError(
                "CONTRAST_MISMATCH",
                f"{metadata.id} was trained on {metadata.contrast}, the scan is {contrast}",
                "choose a model of the scan's contrast, or correct it with --contrast",
            )
        if operating_point not in metadata.operating_points:
            raise InputError(
                "OPERATING_POINT_UNKNOWN",
                f"{metadata.id} has no operating point {operating_point!r}",
                f"choose one of {', '.join(metadata.operating_points)}",
            )
    if len({bundle.metadata.contrast for bundle, _ in bundles}) > 1:
        raise InputError(
            "CONTRAST_MISMATCH", "the models were trained on different contrasts", "choose models of one contrast"
        )
    return bundles


def _settled(
    scan: Scan, prepared: Prepared, bundles: Sequence[tuple[Bundle, HealthyReference]], force: bool
) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """The contrast to go by, as a record, and what there is to say about it.

    A model chosen for a scan of unknown contrast states its own, but does not vouch for a scan that is none of the
    three.
    """
    found = prepared.contrast
    if scan.contrast is None and bundles and found.contrast in CONTRASTS:
        used, checks = settle_contrast(bundles[0][0].metadata.contrast, found, by="the model chosen")
    else:
        used, checks = settle_contrast(scan.contrast, found, force=force)
        used = bundles[0][0].metadata.contrast if bundles else used
    record = {"used": used, "stated": scan.contrast, "found": found.contrast}
    return record | {name: value for name, value in found.record().items() if name != "contrast"}, checks


def calibrated_map(
    scan: Scan,
    prepared: Prepared,
    bundle: Bundle,
    healthy: HealthyReference,
    device,
    progress: Progress | None = None,
    batch: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the map of a prepared scan (float32, calibrated z of at least 0, on the scan's own grid, 0 outside the
    brain), and the raw scores in model space."""
    raw, scored = score_volume(
        bundle.method.to(device),
        prepared.voxels,
        prepared.mask,
        bundle.recipe.voxel_mm,
        device=device,
        batch=batch,
        progress=progress,
    )
    return np.clip(prepared.to_native(healthy.z(raw, scored), scan), 0, None), raw


def _one(
    scan: Scan,
    prepared: Prepared,
    bundle: Bundle,
    healthy: HealthyReference,
    reference: np.ndarray | None,
    operating_point: str,
    device,
    minimum_ml: float,
    batch: int,
    progress: Progress | None,
) -> Detection:
    started = time.perf_counter()
    native, raw = calibrated_map(scan, prepared, bundle, healthy, device, progress, batch)
    seconds = {**prepared.seconds, "scoring": round(time.perf_counter() - started, 3)}
    started = time.perf_counter()
    point = bundle.metadata.operating_points[operating_point]
    domain = describe_domain(bundle.metadata.domain, prepared, bundle.recipe)
    result = Detection(
        model=bundle.metadata.id,
        map=native,
        raw=prepared.to_native(raw, scan),
        mask=np.zeros(scan.shape, dtype=np.uint8),
        brain_mask=prepared.native_mask.astype(np.uint8),
        affine=scan.affine,
        threshold=point.threshold,
        operating_point=operating_point,
        origin=point.origin,
        findings=[],
        metrics=None,
        seconds=seconds,
        checks=[*prepared.checks, *domain_checks(domain)],
        quality=prepared.quality,
        domain=domain,
        provenance=_provenance(scan, prepared, bundle, device),
        minimum_ml=minimum_ml,
        reference=reference,
        region_of=_region_namer(prepared.world_to_native),
    )
    result = _thresholded(result)
    seconds["map and findings"] = round(time.perf_counter() - started, 3)
    return result


def _provenance(scan: Scan, prepared: Prepared, bundle: Bundle, device) -> dict[str, Any]:
    metadata = bundle.metadata
    return {
        "model": metadata.id,
        "model_version": metadata.version,
        "weights_sha256": metadata.sha256["models/model.safetensors"],
        "recipe_hash": metadata.recipe_hash,
        "preparation": prepared.steps,
        "scan": scan.provenance,
        "device": str(device),
        "versions": _versions(),
    }


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"uadbench": __version__} | {
        name: version(name) for name in ("numpy", "torch", "SimpleITK", "nibabel", "nilearn")
    }


def _region_namer(world_to_native: np.ndarray) -> Callable[[tuple[float, float, float]], str]:
    to_template = np.linalg.inv(world_to_native)

    def name(point: tuple[float, float, float]) -> str:
        return region((to_template @ [*point, 1.0])[:3])

    return name


def region(template_mm: np.ndarray) -> str:
    """A coarse name for a place in MNI152 space (RAS mm): side, front to back, top to bottom. Not an atlas label."""
    x, y, z = (float(v) for v in template_mm)
    side = "midline" if abs(x) < 5 else ("right" if x > 0 else "left")
    if z < -12 and y < -30:
        return f"{side} posterior fossa"
    depth = "anterior" if y > 15 else ("posterior" if y < -40 else "central")
    height = "superior" if z > 35 else ("inferior" if z < 0 else "middle")
    return f"{side} {depth} {height}"


def _consensus(detections: Sequence[Detection], minimum_ml: float) -> Detection:
    """The mean of the calibrated maps, at the mean of their thresholds."""
    started, first = time.perf_counter(), detections[0]
    mean = np.mean([d.map for d in detections], axis=0, dtype=np.float32)
    checks = list(dict.fromkeys(check for detection in detections for check in detection.checks))
    merged = replace(
        first,
        model=CONSENSUS,
        map=mean,
        raw=mean,
        threshold=float(np.mean([d.threshold for d in detections])),
        origin=f"mean of the thresholds of {len(detections)} models; the consensus has no calibration of its own",
        seconds={"mean of the maps": round(time.perf_counter() - started, 3)},
        checks=checks,
        domain=None,
        provenance={"models": [d.provenance for d in detections], "versions": _versions()},
        minimum_ml=minimum_ml,
        reconstruction=None,
        residual=None,
    )
    return _thresholded(merged)
