"""From a thresholded anomaly map to findings: components with a volume, a peak and a place in millimetres.

A finding is a place worth a look, not a diagnosis; where a region is named, it is the place of the peak and
no more than the caller's ``region_of`` can say. Comparing whole masks is in ``evaluation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.lesions import DEFAULT_RULE, LesionRule, components, is_covered
from UADBenchLib.evaluation.metrics import same_grid

COLUMNS: tuple[str, ...] = (
    "index", "volume_ml", "peak_z", "mean_z", "centroid_r", "centroid_a", "centroid_s",
    "peak_r", "peak_a", "peak_s", "region", "status", "overlap",
)  # fmt: skip


@dataclass
class Finding:
    """One connected component of the mask.

    Attributes
    ----------
    index : int
        1 for the finding with the highest peak.
    volume_ml : float
        Volume in millilitres.
    peak_z, mean_z : float
        Highest and mean value of the map inside.
    centroid_ras, peak_ras : tuple of float
        Centre of the voxels, and of the voxel with the highest value, in RAS millimetres. The centroid of a
        curved finding may lie outside it; the peak never does.
    region : str
        Coarse place of the peak, or empty.
    status : str
        ``"TP"`` or ``"FP"`` with a reference, else empty.
    overlap : float or None
        Share of the finding's volume inside the reference, with a reference.
    """

    index: int
    volume_ml: float
    peak_z: float
    mean_z: float
    centroid_ras: tuple[float, float, float]
    peak_ras: tuple[float, float, float]
    region: str = ""
    status: str = ""
    overlap: float | None = None

    def row(self) -> dict[str, float | int | str | None]:
        """Return the finding as one row of the findings table, in the order of ``COLUMNS``."""
        values = (
            self.index,
            round(self.volume_ml, 4),
            round(self.peak_z, 4),
            round(self.mean_z, 4),
            *(round(x, 2) for x in self.centroid_ras),
            *(round(x, 2) for x in self.peak_ras),
            self.region,
            self.status,
            None if self.overlap is None else round(self.overlap, 4),
        )
        return dict(zip(COLUMNS, values, strict=True))


def find(
    map: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    minimum_ml: float,
    reference: np.ndarray | None = None,
    region_of: Callable[[tuple[float, float, float]], str] | None = None,
    rule: LesionRule = DEFAULT_RULE,
) -> tuple[np.ndarray, list[Finding]]:
    """Split a mask into findings and drop those smaller than ``minimum_ml``.

    Parameters
    ----------
    map : numpy.ndarray
        Shape (I, J, K), calibrated z.
    mask : numpy.ndarray
        Same shape; non-zero voxels are above the threshold.
    affine : numpy.ndarray
        Shape (4, 4): voxel index to RAS millimetres.
    minimum_ml : float
        Least volume in millilitres; a component of exactly this volume is kept.
    reference : numpy.ndarray, optional
        Same shape; gives each finding a status and an overlap.
    region_of : callable, optional
        Called with the RAS millimetres of the peak.
    rule : LesionRule
        Connectivity, and when a finding counts as true.

    Returns
    -------
    mask : numpy.ndarray
        Shape (I, J, K), uint8: the voxels of the findings that stay.
    findings : list of Finding
        Highest peak first.

    Raises
    ------
    InputError
        GRID_MISMATCH when shapes differ, OPTION_INVALID when ``minimum_ml`` is negative or not finite.
    """
    if not (np.isfinite(minimum_ml) and minimum_ml >= 0):
        raise InputError("OPTION_INVALID", f"the minimum volume is {minimum_ml} ml", "give 0 or a positive number")
    for other, name in ((mask, "mask"), (reference, "reference")):
        if other is not None:
            same_grid(map, other, f"map and {name}")
    labels, count = components(mask, rule.connectivity)
    if count == 0:
        return np.zeros(mask.shape, dtype=np.uint8), []
    voxel_ml = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3]))) / 1000.0
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    # The tolerance keeps a component of exactly the least volume despite rounding in the determinant.
    keep = sizes * voxel_ml >= minimum_ml * (1.0 - 1e-9)
    keep[0] = False
    if not keep.any():
        return np.zeros(mask.shape, dtype=np.uint8), []
    filtered = keep[labels].astype(np.uint8)
    findings = _describe(map, labels, keep, np.asarray(affine, dtype=np.float64), voxel_ml, reference, rule)
    if region_of is not None:
        findings = [replace(finding, region=str(region_of(finding.peak_ras))) for finding in findings]
    return filtered, findings


def _describe(
    map: np.ndarray,
    labels: np.ndarray,
    keep: np.ndarray,
    affine: np.ndarray,
    voxel_ml: float,
    reference: np.ndarray | None,
    rule: LesionRule,
) -> list[Finding]:
    """Measure the kept components and return them with the highest peak first."""
    where = np.nonzero(keep[labels])
    ids, values = labels[where], map[where].astype(np.float64)
    lattice = np.column_stack(where)
    length = keep.size
    sizes = np.bincount(ids, minlength=length)
    sums = np.bincount(ids, weights=values, minlength=length)
    centres = np.column_stack([np.bincount(ids, weights=lattice[:, axis], minlength=length) for axis in range(3)])
    covered = None if reference is None else np.bincount(ids[reference[where] != 0], minlength=length)
    # Sorted by component, then by value: the last voxel of each component is its peak.
    order = np.lexsort((values, ids))
    last = np.flatnonzero(np.append(ids[order][1:] != ids[order][:-1], True))
    findings = []
    for voxel in order[last]:
        component, size = int(ids[voxel]), int(sizes[ids[voxel]])
        finding = Finding(
            index=0,
            volume_ml=size * voxel_ml,
            peak_z=float(values[voxel]),
            mean_z=float(sums[component] / size),
            centroid_ras=_to_ras(affine, centres[component] / size),
            peak_ras=_to_ras(affine, lattice[voxel]),
        )
        if covered is not None:
            finding.overlap = float(covered[component] / size)
            finding.status = "TP" if bool(is_covered(covered[component], size, rule)) else "FP"
        findings.append(finding)
    findings.sort(key=lambda finding: (-finding.peak_z, -finding.volume_ml))
    for index, finding in enumerate(findings, start=1):
        finding.index = index
    return findings


def _to_ras(affine: np.ndarray, voxel: np.ndarray) -> tuple[float, float, float]:
    """Return the RAS millimetres of a voxel index."""
    right, anterior, superior = affine[:3, :3] @ voxel + affine[:3, 3]
    return float(right), float(anterior), float(superior)
