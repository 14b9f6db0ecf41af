"""A head with FreeSurfer-like labels, made on the spot: the template's tissue in shells of skull and scalp, with eyes,
a jaw and a neck. It is the anatomy that tests of synthesis need; nobody's brain."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from UADBenchLib.geometry import resample
from UADBenchLib.preprocessing.registration import load_template
from UADBenchLib.synthesis.tissue import tissue_of_template
from UADBenchLib.writing import write_volume

_SHELLS = ((515, 1.5), (516, 4.0), (515, 6.5), (507, 9.0), (511, 14.0), (0, 17.0))
"""Labels by distance from the brain in mm: where each begins; CSF lies before the first."""

SIZE = 0.92
"""Of the phantom against the template, which is larger than most brains."""

_BALLS = ((506, (32.0, 62.0, -36.0), 12.0), (506, (-32.0, 62.0, -36.0), 12.0))


@lru_cache(maxsize=4)
def phantom_labels(voxel_mm: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (I, J, K) int16 with axes along R, A, S, and their affine; read-only."""
    low, high = np.array([-93.0, -129.0, -132.0]), np.array([93.0, 96.0, 102.0])
    shape = tuple(np.ceil((high - low) / voxel_mm).astype(int))
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = low + voxel_mm / 2
    template, tissue = load_template(2), tissue_of_template(2)

    def carried(values: np.ndarray) -> np.ndarray:
        world = np.diag([1 / SIZE, 1 / SIZE, 1 / SIZE, 1.0])
        values = values.astype(np.float32)
        return resample(values, template.affine, shape, affine, order=1, world=world, antialias=True)

    x, y, z = np.meshgrid(*(affine[a, 3] + voxel_mm * np.arange(n) for a, n in enumerate(shape)), indexing="ij")
    brain = carried(template.mask) > 0.5
    distance = distance_transform_edt(~brain, sampling=voxel_mm)
    labels = np.full(shape, 24, dtype=np.int16)
    for label, start in _SHELLS:
        labels[distance > start] = label
    # Below the skull: a jaw and a neck of soft tissue under skin, with the spinal cord.
    low_part = ((x / 66) ** 2 + ((y + 5) / 76) ** 2 < 1) & (z < -45) & (labels == 0)
    labels[low_part] = 511
    labels[low_part & ((x / 62) ** 2 + ((y + 5) / 72) ** 2 < 1)] = 507
    labels[(x**2 + (y + 42) ** 2 < 49) & (z < -60) & (distance > 0)] = 512
    for label, centre, radius in _BALLS:
        inside = sum((g - c) ** 2 for g, c in zip((x, y, z), centre, strict=True)) < radius**2
        labels[inside & (distance > 3)] = label
    _fill_brain(labels, brain, carried(tissue.white), carried(tissue.grey), carried(tissue.ventricles), (x, y, z))
    labels.setflags(write=False)
    return labels, affine


def _fill_brain(labels, brain, white, grey, ventricles, places) -> None:
    x, y, z = places
    right = x > 0
    below = brain & (z < -8) & (y < -32)
    labels[brain] = 24
    labels[brain & (grey >= 0.4)] = 3
    labels[brain & (white > grey) & (white >= 0.4)] = 2
    labels[brain & (ventricles > 0.4)] = 4
    deep = brain & (np.abs(x) < 22) & (np.abs(y + 18) < 14) & (np.abs(z - 6) < 12) & (labels == 3)
    labels[deep] = 10
    labels[below & (labels == 3)] = 8
    labels[below & (labels == 2)] = 7
    labels[brain & (np.abs(x) < 12) & (np.abs(y + 28) < 14) & (z < -12)] = 16
    for left, other in ((2, 41), (3, 42), (4, 43), (10, 49), (8, 47), (7, 46)):
        labels[brain & right & (labels == left)] = other


def write_phantom(path: Path, voxel_mm: float = 3.0) -> Path:
    """Write the phantom as a label map."""
    labels, affine = phantom_labels(voxel_mm)
    write_volume(path, labels.astype(np.float32), affine)
    return path
