"""A head-like phantom with two anomalies, and the result that a detection of them would give; for the scene
tests only.
"""

from __future__ import annotations

import numpy as np
from UADBenchScene.results import Result

SHAPE = (96, 116, 100)


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Return the rotation about x, then y, then z."""
    total = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        total = turn @ total
    return total


def affine_of(spacing=(1.8, 1.7, 1.9), degrees=(0.0, 0.0, 0.0), left_handed=False, shape=SHAPE) -> np.ndarray:
    """Return an affine whose middle voxel lies at (5, -12, 20) mm."""
    linear = rotation(degrees) @ np.diag(spacing)
    if left_handed:
        linear[:, 0] *= -1
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array([5.0, -12.0, 20.0]) - linear @ (np.array(shape) / 2)
    return affine


def head(shape=SHAPE) -> np.ndarray:
    """Return a scan of something with a skull, grey and white matter and ventricles; float32, (i, j, k)."""
    generator = np.random.default_rng(0)
    x, y, z = [
        (np.arange(n).reshape([-1 if k == axis else 1 for k in range(3)]) - n / 2) / (n / 2)
        for axis, n in enumerate(shape)
    ]
    radius = np.sqrt((x / 0.86) ** 2 + (y / 0.92) ** 2 + (z / 0.9) ** 2)
    folds = 0.03 * (np.cos(17 * np.arctan2(y, x)) + np.cos(13 * np.arctan2(z, y)))
    voxels = np.where(radius < 1.0, 420.0, 0.0)
    voxels = np.where(radius < 0.95, 120.0, voxels)
    voxels = np.where(radius < 0.88, 520.0, voxels)
    voxels = np.where(radius + folds < 0.74, 720.0, voxels)
    for side in (-1, 1):
        ventricle = ((x - side * 0.13) / 0.08) ** 2 + (y / 0.32) ** 2 + (z / 0.22) ** 2 < 1
        voxels = np.where(ventricle, 180.0, voxels)
    return (voxels + generator.normal(0, 12, shape) * (voxels > 0)).astype(np.float32)


def blob(shape, centre, radius, peak) -> np.ndarray:
    """Return a cone of height ``peak`` about a voxel."""
    corner = [max(0, int(c - radius)) for c in centre]
    box = tuple(slice(low, int(c + radius) + 2) for low, c in zip(corner, centre, strict=True))
    cone = np.zeros(shape, dtype=np.float32)
    grid = np.indices(cone[box].shape, dtype=np.float32)
    distance = np.sqrt(sum((grid[k] + corner[k] - centre[k]) ** 2 for k in range(3)))
    cone[box] = peak * np.clip(1.0 - distance / radius, 0, None)
    return cone


CENTRES = ((62, 70, 50), (30, 48, 50))


def result(affine: np.ndarray, shape=SHAPE, threshold=3.0, centres=CENTRES, model="disyre-t1w-compact") -> Result:
    """Return what a detection would: a map with one peak at each centre, the first the highest."""
    peaks = [9.0 - 2.5 * number / max(1, len(centres) - 1) for number in range(len(centres))]
    radius = 14.0 if len(centres) < 5 else 2.2
    anomaly = np.maximum.reduce([blob(shape, c, radius, p) for c, p in zip(centres, peaks, strict=True)])
    mask = (anomaly >= threshold).astype(np.uint8)
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    findings = []
    for number, (centre, peak) in enumerate(zip(centres, peaks, strict=True), start=1):
        place = affine @ np.array([*centre, 1.0])
        row = {
            "index": number,
            "volume_ml": float(mask.sum() * voxel_ml / len(centres)),
            "peak_z": peak,
            "mean_z": 4.5,
        }
        row |= {f"{what}_{axis}": float(place[k]) for what in ("centroid", "peak") for k, axis in enumerate("ras")}
        findings.append(row | {"region": "left frontal", "status": "", "overlap": None})
    summary = {"model": model, "stem": "scan", "threshold": threshold, "note": 'a;b:c <é> "quoted" 100 %'}
    return Result(model, anomaly, mask, affine, threshold, "fpr-1pct", "20 healthy scans", findings, summary)
