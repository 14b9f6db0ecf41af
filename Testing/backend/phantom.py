"""A head of ellipsoids with FreeSurfer-like labels: the anatomy that tests of synthesis need, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from UADBenchLib.writing import write_volume

_SHAPES: tuple[tuple[int, tuple[float, float, float], tuple[float, float, float]], ...] = (
    # label, centre in RAS mm, half axes in mm; later ones lie over earlier ones
    (511, (0, 5, -10), (82, 102, 112)),
    (507, (0, 5, -10), (79, 99, 109)),
    (515, (0, 0, 10), (76, 94, 82)),
    (516, (0, 0, 10), (74, 92, 80)),
    (515, (0, 0, 10), (72, 90, 78)),
    (24, (0, 0, 10), (69, 87, 75)),
    (42, (33, 0, 14), (34, 83, 64)),
    (3, (-33, 0, 14), (34, 83, 64)),
    (41, (32, 0, 14), (29, 76, 57)),
    (2, (-32, 0, 14), (29, 76, 57)),
    (43, (11, 5, 22), (8, 32, 12)),
    (4, (-11, 5, 22), (8, 32, 12)),
    (49, (12, -8, 4), (9, 14, 9)),
    (10, (-12, -8, 4), (9, 14, 9)),
    (51, (26, 8, 2), (6, 15, 10)),
    (12, (-26, 8, 2), (6, 15, 10)),
    (47, (20, -55, -38), (24, 22, 18)),
    (8, (-20, -55, -38), (24, 22, 18)),
    (46, (18, -52, -38), (12, 12, 9)),
    (7, (-18, -52, -38), (12, 12, 9)),
    (16, (0, -25, -38), (13, 13, 26)),
    (512, (0, -32, -90), (6, 6, 28)),
    (506, (32, 78, -18), (12, 12, 12)),
    (506, (-32, 78, -18), (12, 12, 12)),
)


def phantom_labels(voxel_mm: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (I, J, K) int16 with axes along R, A, S, and their affine."""
    low, high = np.array([-90.0, -105.0, -125.0]), np.array([90.0, 115.0, 105.0])
    shape = np.ceil((high - low) / voxel_mm).astype(int)
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = low + voxel_mm / 2
    axes = [affine[a, 3] + voxel_mm * np.arange(n) for a, n in enumerate(shape)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    labels = np.zeros(shape, dtype=np.int16)
    for label, centre, half in _SHAPES:
        inside = sum(((g - c) / h) ** 2 for g, c, h in zip(grid, centre, half, strict=True)) <= 1
        labels[inside] = label
    return labels, affine


def write_phantom(path: Path, voxel_mm: float = 3.0) -> Path:
    """Write the phantom as a label map."""
    labels, affine = phantom_labels(voxel_mm)
    write_volume(path, labels.astype(np.float32), affine)
    return path
