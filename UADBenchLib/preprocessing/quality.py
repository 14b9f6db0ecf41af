"""How good a scan is: noise, ghosting, slice thickness, cut field of view, sharpness; numbers, and warnings from them.

And the few figures of a prepared scan that are compared with those of a model's healthy validation scans
(``inference.domain``). Nothing is refused here and nothing repaired.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from UADBenchLib.geometry import resample
from UADBenchLib.preprocessing.contrast import Tissues
from UADBenchLib.scan import Check

LEAST_SNR = 8.0
"""White matter over noise below which the scan is called noisy."""

MOST_GHOSTING = 0.03
"""Difference of the mean air along two axes, over the brain's median, above which ghosts are likely."""

MOST_CUT_CM2 = 8.0
"""Area of the brain mask on the border of the grid above which the field of view is said to cut the brain; masks that
only touch it measure less."""

AIR_VOXELS = 500


def measure_quality(
    voxels: np.ndarray, affine: np.ndarray, mask: np.ndarray, tissues: Tissues, model_affine: np.ndarray,
    world: np.ndarray, whole_head: bool,
) -> dict[str, Any]:  # fmt: skip
    """Measure a scan on its own grid.

    Parameters
    ----------
    voxels, mask : numpy.ndarray
        Shape (I, J, K), in canonical orientation, bias field removed; boolean brain mask.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    tissues : Tissues
        On the model grid, whose affine is ``model_affine``; ``world`` takes template RAS mm to scan RAS mm.
    whole_head : bool
        Whether there is a background that was measured; ghosts cannot be seen without.

    Returns
    -------
    dict
        ``snr`` (white matter over noise) and ``cnr`` (white against grey matter over noise), None where the scan shows
        no noise; ``ghosting`` (share of the brain's median), None for brain-only scans; ``slice_mm``; ``cut_cm2``.
    """
    from scipy.ndimage import find_objects

    back, box = np.linalg.inv(world), find_objects(mask.view(np.uint8))[0]
    corner = affine.copy()
    corner[:3, 3] += affine[:3, :3] @ [side.start for side in box]

    def inside(tissue: np.ndarray) -> np.ndarray:
        found = np.zeros_like(mask)
        tissue = tissue.astype(np.float32)
        carried = resample(tissue, model_affine, mask[box].shape, corner, order=1, world=back)
        found[box] = (carried > 0.9) & mask[box]
        return found

    white, grey = inside(tissues.white), inside(tissues.grey)
    noise = noise_level(voxels, white)
    levels = [float(np.median(voxels[tissue])) if tissue.any() else None for tissue in (white, grey)]
    known = noise is not None and None not in levels and noise > 1e-6 * abs(levels[0])
    return {
        "snr": round(levels[0] / noise, 2) if known else None,
        "cnr": round(abs(levels[0] - levels[1]) / noise, 2) if known else None,
        "ghosting": _ghosting(voxels, mask) if whole_head else None,
        "slice_mm": round(float(np.linalg.norm(affine[:3, :3], axis=0).max()), 3),
        "cut_cm2": round(_cut_cm2(mask, affine), 2),
    }


def noise_level(voxels: np.ndarray, region: np.ndarray) -> float | None:
    """Standard deviation of white noise in a region of one tissue; None for fewer than 100 voxels.

    From second differences along the two axes with most voxels, which anatomy hardly survives, by their median absolute
    value (after Immerkær, Fast noise variance estimation, CVIU 1996). Voxels that were interpolated share their noise
    and seem less noisy than they are.
    """
    from scipy.ndimage import binary_erosion

    first, second = np.argsort(voxels.shape)[-2:]
    stencil = np.ones([3 if axis in (first, second) else 1 for axis in range(3)], dtype=bool)
    region = binary_erosion(region, stencil)  # the differences must not reach over the region's border
    detail = np.diff(np.diff(voxels, n=2, axis=first), n=2, axis=second)
    cut = [slice(None)] * 3
    cut[first] = cut[second] = slice(1, -1)
    values = detail[region[tuple(cut)]]
    # The kernel (1, -2, 1) along both axes has the norm 6; 0.6745 is the median absolute value of a normal variable.
    return float(np.median(np.abs(values)) / 0.6745 / 6.0) if values.size >= 100 else None


def _ghosting(voxels: np.ndarray, mask: np.ndarray) -> float | None:
    """Difference of the mean air beside the head along two axes, over the brain's median.

    Ghosts repeat the head along the phase-encoding axis, so that the air there is brighter than along another. None
    where the air was set to zero or is in the picture along one axis only, and where values are negative, as in CT.
    """
    from scipy.ndimage import gaussian_filter, label

    middle = float(np.median(voxels[mask]))
    if voxels.min() < -0.1 * abs(middle):
        return None
    parts, _ = label(gaussian_filter(voxels, 1.0) > 0.3 * middle)
    head = parts == np.bincount(parts[mask]).argmax()
    if not head.any() or parts[mask].max() == 0:
        return None
    box = [_reach(head.sum(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    means = []
    for axis in range(3):
        sides = []
        for beyond in (slice(0, max(0, box[axis][0] - 3)), slice(box[axis][1] + 4, None)):
            where = [slice(low, high + 1) for low, high in box]
            where[axis] = beyond
            sides.append(voxels[tuple(where)][~head[tuple(where)]])
        air = np.concatenate(sides)
        if air.size >= AIR_VOXELS and np.mean(air == 0) < 0.5:
            means.append(float(air.mean()))
    return round((max(means) - min(means)) / middle, 4) if len(means) >= 2 and middle > 0 else None


def _reach(counts: np.ndarray, beyond: float = 0.002) -> tuple[int, int]:
    """First and last slice between which all of the counted voxels lie but for a share of ``beyond`` on each side."""
    below = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(below, beyond, side="right")), int(np.searchsorted(below, 1 - beyond))


def _cut_cm2(mask: np.ndarray, affine: np.ndarray) -> float:
    """Area of a mask on the six faces of its grid, in cm2."""
    area = 0.0
    for axis in range(3):
        first, second = (affine[:3, other] for other in range(3) if other != axis)
        face = np.count_nonzero(mask.take(0, axis)) + np.count_nonzero(mask.take(-1, axis))
        area += int(face) * float(np.linalg.norm(np.cross(first, second))) / 100.0
    return area


def quality_checks(measured: dict[str, Any]) -> tuple[Check, ...]:
    """The warnings that follow from ``measure_quality``. Thick slices are remarked on when a scan is read."""
    found = []
    if measured["snr"] is not None and measured["snr"] < LEAST_SNR:
        message = f"white matter is {measured['snr']:.1f} times the noise; {LEAST_SNR:.0f} or more is usual"
        found.append(Check("warning", "NOISE", message, "expect false findings, and small lesions to be missed"))
    if measured["ghosting"] is not None and measured["ghosting"] > MOST_GHOSTING:
        message = (
            f"the air differs by {measured['ghosting']:.1%} of the brain's brightness between two axes; up to "
            f"{MOST_GHOSTING:.0%} is usual"
        )
        found.append(Check("warning", "GHOSTING", message, "the head may have moved; look for ghosts in the scan"))
    if measured["cut_cm2"] > MOST_CUT_CM2:
        message = f"{measured['cut_cm2']:.0f} cm2 of the brain mask lie on the border of the scan"
        found.append(Check("warning", "FIELD_OF_VIEW", message, "part of the brain was not scanned or was cropped"))
    return tuple(found)


def domain_features(voxels: np.ndarray, mask: np.ndarray, tissues: Tissues, voxel_mm: float) -> dict[str, float]:
    """The figures of a prepared scan that are compared with healthy validation scans.

    Medians of fluid, grey and white matter and the quartile distances of the latter two, noise in white matter,
    sharpness (mean gradient per mm) and volume of the mask in template space (ml). A
    figure that cannot be measured is left out.
    """
    from scipy.ndimage import binary_erosion

    features = {}
    for name in ("csf", "grey", "white"):
        values = voxels[getattr(tissues, name) & mask]
        if values.size >= 50:
            low, middle, high = np.percentile(values, (25, 50, 75))
            features[name] = middle
            if name != "csf":
                features[f"{name} spread"] = high - low
    noise = noise_level(voxels, tissues.white & mask)
    if noise is not None:
        features["noise"] = noise
    inner = binary_erosion(mask, iterations=2)
    gradient = np.sqrt(sum(part**2 for part in np.gradient(voxels, voxel_mm)))
    if inner.any():
        features["sharpness"] = gradient[inner].mean()
    features["brain ml"] = np.count_nonzero(mask) * voxel_mm**3 / 1000.0
    return {name: round(float(value), 5) for name, value in features.items()}
