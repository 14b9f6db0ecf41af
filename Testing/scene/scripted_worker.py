"""The real worker with a detector that computes nothing: the map is the scan itself. For the worker tests
only.

The device of a request says how it behaves: ``cpu`` is quick, ``slow`` takes 20 seconds in small steps,
``deaf`` takes 60 in one step with a child process of its own, ``crash`` kills the process, ``refuse``
refuses, ``memory`` needs a small batch or the processor, ``unknown`` wants to be forced.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.inference import worker
from UADBenchLib.scan import Check

NAME = "UADBenchLib.inference.detector"


@dataclass
class Finding:
    """The one finding: the highest voxel."""

    values: dict[str, Any]

    def row(self) -> dict[str, Any]:
        return self.values


@dataclass
class Detection:
    """What ``worker`` needs of a detection."""

    model: str
    map: np.ndarray
    affine: np.ndarray
    threshold: float
    operating_point: str
    brain_mask: np.ndarray
    origin: str = "20 healthy scans"
    checks: list[Check] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    reference: np.ndarray | None = None
    minimum_ml: float = 0.0
    smoothing_mm: float = 0.0
    reconstruction: np.ndarray | None = None
    residual: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        return (self.map >= self.threshold).astype(np.uint8)

    @property
    def metrics(self) -> dict[str, Any] | None:
        if self.reference is None:
            return None
        hit = int((self.mask & self.reference).any())
        counts = {"lesions": 1, "lesions_hit": hit, "lesions_missed": 1 - hit, "findings_true": hit}
        ml = {"reference_ml": float(self.reference.sum()), "mask_ml": float(self.mask.sum())}
        dice = 2 * float((self.mask & self.reference).sum()) / (ml["reference_ml"] + ml["mask_ml"])
        return {"dice": dice, "average_precision": 0.5, "findings_false": 1 - hit, **counts, **ml}

    @property
    def findings(self) -> list[Finding]:
        index = np.unravel_index(np.argmax(self.map), self.map.shape)
        if self.map[index] < self.threshold:
            return []
        place = self.affine @ np.array([*index, 1.0])
        row = {
            "index": 1,
            "volume_ml": float(self.mask.sum()),
            "peak_z": float(self.map[index]),
            "mean_z": 4.0,
        }
        row |= {f"{what}_{axis}": float(place[k]) for what in ("centroid", "peak") for k, axis in enumerate("ras")}
        status = "" if self.reference is None else ("TP" if self.reference[index] else "FP")
        return [Finding(row | {"region": "", "status": status, "overlap": None})]

    def summary(self, stem: str) -> dict[str, Any]:
        settings = {"minimum_ml": self.minimum_ml, "smoothing_mm": self.smoothing_mm}
        measured = {"contrast": {"used": "T1w", "found": "FLAIR"}, "quality": {"snr": 12.34, "cnr": None}}
        seconds = {"preparation": 4.0, "scoring": 5.0}
        known = {"stem": stem, "model": self.model, "device": self.provenance.get("device"), "seconds": seconds}
        return {**known, **measured, **settings}


def detect(scan, models, *, brain_mask, reference, operating_point, device, progress, **options):
    """Stand in for ``detector.detect``."""
    print("a library that prints to stdout", flush=True)
    if device == "crash":
        os._exit(3)
    if device == "memory" and options["batch"] > 2:
        raise MemoryError("2 GB")
    if device == "unknown" and not options["force"]:
        raise InputError("CONTRAST_OTHER", "the image looks like neither T1w, T2w nor FLAIR", "name it, or force it")
    if device == "refuse":
        raise InputError("NOT_A_HEAD", "there is no head in this scan", "choose a scan of a whole head")
    if device == "deaf":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(os.environ["UADBENCH_TEST_PID"]).write_text(str(child.pid))
        time.sleep(60)
    steps, pause = (400, 0.05) if device == "slow" else (10, 0.03)
    for step in range(steps):
        progress("scoring", step / steps)
        time.sleep(pause)
    checks = [
        Check("warning", "THICK_SLICES", "slices are 6 mm thick", "small findings may be missed"),
        Check("warning", "NOISE", "the scan is noisy", "expect false findings"),
    ]
    brain = np.ones(scan.shape, dtype=np.uint8) if brain_mask is None else brain_mask
    point, facts = operating_point, {"device": device}
    return [Detection(m, scan.voxels, scan.affine, 3.0, point, brain, checks=checks, provenance=facts) for m in models]


def rethreshold(detection, threshold, minimum_ml=0.0, smoothing_mm=0.0, operating_point="user", origin=""):
    """Stand in for ``detector.rethreshold``."""
    settings = {"minimum_ml": minimum_ml, "smoothing_mm": smoothing_mm}
    return replace(detection, threshold=threshold, operating_point=operating_point, origin=origin, **settings)


def restore(model, map, affine, threshold, brain_mask=None, summary=None):
    """Stand in for ``detector.restore``."""
    return Detection(model, map, affine, threshold, "user", np.ones(map.shape, dtype=np.uint8))


def dice_by_threshold(map, reference, brain_mask):
    """Stand in for ``evaluation.compare.dice_by_threshold``."""
    thresholds = np.arange(0.0, 10.0, 0.5)
    return thresholds, [2 * (reference & (map > t)).sum() / (reference.sum() + (map > t).sum()) for t in thresholds]


if __name__ == "__main__":
    # What would need packages that a scene's environment does not have.
    members = {"surfaces": {"surface_distance": lambda *_args: 1.5}}
    members["compare"] = {"dice_by_threshold": dice_by_threshold}
    for part, own in members.items():
        stand_in = types.ModuleType(f"UADBenchLib.evaluation.{part}")
        vars(stand_in).update(own)
        sys.modules[stand_in.__name__] = stand_in
    module = types.ModuleType(NAME)
    module.detect, module.rethreshold, module.restore, module.warm_up = detect, rethreshold, restore, lambda: None
    sys.modules[NAME] = module
    sys.exit(worker.main())
