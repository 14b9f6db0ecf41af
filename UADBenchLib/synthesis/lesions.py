"""Synthetic lesions with exact masks: irregular three-dimensional bodies that change the intensity and flatten the
texture of tissue.

What is random is drawn first (``draw_lesion``) and kept, so that any lesion can be made again (``apply_lesion``). These
are stand-ins for validation and demonstration, not models of a disease; they share no code with the anomalies that
methods are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lesion:
    """What was drawn for one lesion.

    Attributes
    ----------
    centre : tuple of float
        Voxel index (i, j, k).
    volume_ml : float
        Volume inside the brain, met to within one shell of voxels.
    change : float
        Relative change of intensity at the core; -0.4 takes 40 % away.
    flatten : float
        Share of the tissue's own texture that is lost, in [0, 1].
    roughness : float
        How far the border departs from a ball, in radii.
    edge_mm : float
        Width over which the lesion fades out.
    seed : int
        Of the border's and the core's random fields.
    """

    centre: tuple[float, float, float]
    volume_ml: float
    change: float
    flatten: float
    roughness: float
    edge_mm: float
    seed: int


def draw_lesion(
    mask: np.ndarray,
    voxel_mm: np.ndarray,
    rng: np.random.Generator,
    *,
    volume_ml: tuple[float, float],
    change: tuple[float, float] = (-0.45, -0.2),
    depth_mm: float = 8.0,
) -> Lesion:
    """Draw a lesion whose centre lies at least ``depth_mm`` inside the brain mask (X, Y, Z); volumes are log-uniform.

    Raises
    ------
    ValueError
        When no voxel lies that deep.
    """
    from scipy.ndimage import distance_transform_edt

    deep = np.argwhere(distance_transform_edt(mask, sampling=voxel_mm) >= depth_mm)
    if not len(deep):
        raise ValueError(f"no voxel of the brain mask lies {depth_mm} mm deep")
    low, high = np.log(volume_ml)
    return Lesion(
        centre=tuple(float(v) for v in deep[rng.integers(len(deep))]),
        volume_ml=float(np.exp(rng.uniform(low, high))),
        change=float(rng.uniform(*change)),
        flatten=float(rng.uniform(0.3, 0.8)),
        roughness=float(rng.uniform(0.1, 0.45)),
        edge_mm=float(rng.uniform(1.0, 4.0)),
        seed=int(rng.integers(2**31)),
    )


def apply_lesion(
    voxels: np.ndarray, mask: np.ndarray, voxel_mm: np.ndarray, lesion: Lesion
) -> tuple[np.ndarray, np.ndarray]:
    """Put a lesion into a scan.

    Parameters
    ----------
    voxels, mask : numpy.ndarray
        Shape (X, Y, Z); intensities with background near zero, and the boolean brain mask.
    voxel_mm : numpy.ndarray
        Edges of a voxel.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        New float32 voxels, and the boolean lesion mask: where more than half of the effect is felt.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(lesion.seed)
    voxel_mm = np.asarray(voxel_mm, dtype=float)
    radius = (lesion.volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    box = _box(voxels.shape, lesion.centre, 2.2 * radius + 3 * lesion.edge_mm, voxel_mm)
    part, inside = voxels[box].astype(np.float32), mask[box]
    grids = np.ogrid[box]
    squared = sum(((g - c) * e) ** 2 for g, c, e in zip(grids, lesion.centre, voxel_mm, strict=True))
    distance = np.sqrt(squared) / radius + lesion.roughness * _field(part.shape, 0.45 * radius / voxel_mm, rng)
    # The border that encloses the volume wanted, counting brain only.
    wanted = lesion.volume_ml * 1000 / voxel_mm.prod()
    ranked = np.sort(distance[inside])
    border = ranked[min(len(ranked) - 1, max(1, round(wanted)))]
    body = (distance <= border) & inside
    weight = gaussian_filter(body.astype(np.float32), lesion.edge_mm / 2.355 / voxel_mm) * inside
    flat = gaussian_filter(part * inside, 4.0 / voxel_mm) / np.maximum(
        gaussian_filter(inside.astype(np.float32), 4.0 / voxel_mm), 1e-3
    )
    core = 1 + 0.15 * _field(part.shape, 3.0 / voxel_mm, rng)
    changed = (part + lesion.flatten * (flat - part)) * (1 + lesion.change * core)
    result = voxels.astype(np.float32, copy=True)
    result[box] = part + weight * (changed - part) * inside
    lesion_mask = np.zeros(mask.shape, dtype=bool)
    lesion_mask[box] = (weight > 0.5) & inside
    return result, lesion_mask


def _box(shape: tuple[int, ...], centre: tuple[float, ...], reach_mm: float, voxel_mm: np.ndarray) -> tuple[slice, ...]:
    reach = reach_mm / voxel_mm
    return tuple(
        slice(max(0, int(c - r)), min(n, int(c + r) + 2)) for c, r, n in zip(centre, reach, shape, strict=True)
    )


def _field(shape: tuple[int, ...], sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field with standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(shape), sigma)
    return noise / max(float(noise.std()), 1e-6)
