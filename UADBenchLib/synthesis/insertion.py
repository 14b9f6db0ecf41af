"""Putting a drawn lesion into the images of a head: growth, mass effect, compartments and intensities, in all
contrasts alike.

Intensities are changed relative to the white matter and the cerebrospinal fluid that the image itself shows, so scans
of any scaling and with a bias field can be used. Nothing is random here but what the lesion's own seeds give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.synthesis.growth import pull, push_outward, random_field, signed_distance, spread
from UADBenchLib.synthesis.lesions import CONTRASTS, Focus, Lesion, bounding_box, place_map
from UADBenchLib.synthesis.tissue import TissueMaps


@dataclass(frozen=True)
class Lesioned:
    """A head with a lesion.

    Attributes
    ----------
    images : dict of str to numpy.ndarray
        By contrast, shape (I, J, K), float32.
    mask : numpy.ndarray
        Shape (I, J, K), boolean: brain tissue that the lesion changes.
    compartments : numpy.ndarray
        Shape (I, J, K), uint8: 0 outside, then numbers from 1 in the order of ``Lesion.compartments``.
    tissue : TissueMaps
        After the mass effect; the lesion itself keeps the shares of the tissue that it replaced.
    displacement : numpy.ndarray or None
        Shape (3, I, J, K), RAS mm from where tissue is to where it was (``growth.pull``); None without mass effect.
    """

    images: dict[str, np.ndarray]
    mask: np.ndarray
    compartments: np.ndarray
    tissue: TissueMaps
    displacement: np.ndarray | None


def apply_lesion(images: Mapping[str, np.ndarray], tissue: TissueMaps, lesion: Lesion) -> Lesioned:
    """Put a lesion into every contrast of a head.

    The mask's volume is the lesion's to within a voxel, on any grid; foci smaller than half a voxel may be left out
    where voxels are large.

    Parameters
    ----------
    images : mapping of str to numpy.ndarray
        By contrast (T1w, T2w, FLAIR), shape (I, J, K) on the grid of ``tissue``; may be empty for the mask alone.
    tissue : TissueMaps
        The head's tissue.
    lesion : Lesion
        What was drawn.

    Raises
    ------
    InputError
        ``CONTRAST_UNKNOWN``, ``GRID_MISMATCH``, ``TISSUE_MISSING`` (no fluid or white matter to measure intensities
        in), ``LESION_NO_ROOM``.
    """
    _check_images(images, tissue)
    box = bounding_box(tissue.brain)
    part = tissue.crop(box)
    body = _grow_body(part, lesion)
    displacement, after = None, part
    pieces = {contrast: np.asarray(voxels[box], dtype=np.float32) for contrast, voxels in images.items()}
    levels = {contrast: _levels(contrast, voxels, part) for contrast, voxels in pieces.items()}
    if lesion.mass_effect > 0:
        displacement = lesion.visibility * push_outward(body, part.brain, part.affine, lesion.mass_effect)
        after = _displaced(part, displacement)
        pieces = {contrast: pull(voxels, displacement, part.affine) for contrast, voxels in pieces.items()}
        pieces = {c: np.where(part.brain, voxels, images[c][box]) for c, voxels in pieces.items()}
    compartments = _divide(body, after, lesion)
    changed = {
        contrast: _paint(contrast, voxels, levels[contrast], after, compartments, lesion)
        for contrast, voxels in pieces.items()
    }
    return Lesioned(
        images={c: _pasted(np.asarray(images[c], dtype=np.float32), box, v) for c, v in changed.items()},
        mask=_pasted(np.zeros(tissue.brain.shape, dtype=bool), box, compartments > 0),
        compartments=_pasted(np.zeros(tissue.brain.shape, dtype=np.uint8), box, compartments),
        tissue=tissue if after is part else _tissue_pasted(tissue, box, after),
        displacement=None if displacement is None else _field_pasted(tissue.brain.shape, box, displacement),
    )


def _check_images(images: Mapping[str, np.ndarray], tissue: TissueMaps) -> None:
    for contrast, voxels in images.items():
        if contrast not in CONTRASTS:
            raise InputError(
                "CONTRAST_UNKNOWN", f"no lesion is known in contrast {contrast!r}", f"use {', '.join(CONTRASTS)}"
            )
        if voxels.shape != tissue.brain.shape:
            raise InputError(
                "GRID_MISMATCH",
                f"the {contrast} image {voxels.shape} and the tissue {tissue.brain.shape} differ in shape",
                "bring all contrasts onto one grid first",
            )


# ------------------------------------------------------------------------------------------------------ geometry


def _pasted(whole: np.ndarray, box: tuple[slice, slice, slice], part: np.ndarray) -> np.ndarray:
    whole = whole.copy()
    whole[box] = part
    return whole


def _field_pasted(shape: tuple[int, ...], box: tuple[slice, slice, slice], field: np.ndarray) -> np.ndarray:
    whole = np.zeros((3, *shape), dtype=np.float32)
    whole[(slice(None), *box)] = field
    return whole


def _tissue_pasted(tissue: TissueMaps, box: tuple[slice, slice, slice], part: TissueMaps) -> TissueMaps:
    names = ("white", "grey", "csf", "ventricles")
    return replace(tissue, **{name: _pasted(getattr(tissue, name), box, getattr(part, name)) for name in names})


def _displaced(tissue: TissueMaps, displacement: np.ndarray) -> TissueMaps:
    """Tissue after the mass effect; the brain mask stays, and what comes from outside it is fluid."""
    white, grey = (pull(part, displacement, tissue.affine) * tissue.brain for part in (tissue.white, tissue.grey))
    ventricles = pull(tissue.ventricles, displacement, tissue.affine) & tissue.brain
    return replace(tissue, white=white, grey=grey, csf=(1 - white - grey) * tissue.brain, ventricles=ventricles)


def _grow_body(tissue: TissueMaps, lesion: Lesion) -> np.ndarray:
    """Grow all foci, one after the other; each adds its own volume to what is there."""
    body = np.zeros(tissue.brain.shape, dtype=bool)
    white, grey = lesion.tissue_speed
    speed = (white * tissue.white + grey * tissue.grey) * _connected(_solid(tissue))
    if lesion.place:
        speed *= np.maximum(place_map(tissue, lesion.place, lesion.territory), 1e-3) ** lesion.attraction
    # Rounding the running sum keeps the whole lesion's volume where voxels are larger than its smallest foci.
    ends = np.rint(np.cumsum([focus.volume_ml for focus in lesion.foci]) / tissue.voxel_ml).astype(int)
    ends[-1] = max(ends[-1], 1)
    for focus, count in zip(lesion.foci, np.diff(ends, prepend=0).tolist(), strict=True):
        if count == 0:
            continue
        for reach in (_reach_mm(focus), 2 * _reach_mm(focus), np.inf):
            box = _box_around(tissue, focus.centre, np.inf if focus.from_ventricles else reach)
            try:
                body[box] |= _grow_focus(tissue.crop(box), speed[box], lesion, focus, body[box], count)
                break
            except InputError:
                if reach == np.inf:
                    raise
    return body


def _solid(tissue: TissueMaps) -> np.ndarray:
    """Where lesions may lie: brain that is tissue rather than fluid."""
    return tissue.brain & (tissue.csf < 0.5)


def _connected(solid: np.ndarray) -> np.ndarray:
    """Without islands in the fluid, from which nothing could spread: parts of at least a twentieth of the whole."""
    from scipy.ndimage import label

    parts, _ = label(solid)
    sizes = np.bincount(parts.ravel())
    return (sizes >= 0.05 * max(int(solid.sum()), 1))[parts] & solid


def _reach_mm(focus: Focus) -> float:
    """How far from its centre a focus is looked for at first: wide for its volume, so that its front stays inside."""
    return 4.0 + 2.5 * focus.elongation ** (2 / 3) * (focus.volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)


def _box_around(tissue: TissueMaps, centre: tuple[float, ...], reach_mm: float) -> tuple[slice, slice, slice]:
    index = _index(tissue.affine, centre)
    reach = np.minimum(reach_mm / tissue.voxel_mm, 10_000)
    return tuple(
        slice(int(max(0, min(c - r, n - 2))), int(min(n, max(c + r + 2, 2))))
        for c, r, n in zip(index, reach, tissue.brain.shape, strict=True)
    )


def _index(affine: np.ndarray, point: tuple[float, ...]) -> np.ndarray:
    return np.linalg.solve(affine[:3, :3], np.asarray(point) - affine[:3, 3])


def _grow_focus(
    tissue: TissueMaps, speed: np.ndarray, lesion: Lesion, focus: Focus, taken: np.ndarray, count: int
) -> np.ndarray:
    radius = (focus.volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    speed = speed * np.exp(lesion.roughness * _border_field(tissue, focus, radius))
    if focus.from_ventricles:
        start = tissue.ventricles & (tissue.csf >= 0.5)
        speed[start] = speed.max(initial=1e-3)
    else:
        start = _start_of(tissue, focus, (speed > 0) & ~taken, count)
    return spread(speed, start, _solid(tissue) & ~taken, count, tissue.voxel_mm)


def _border_field(tissue: TissueMaps, focus: Focus, radius: float) -> np.ndarray:
    """Two octaves: lobes of about the focus' radius, and a finer fringe."""
    scale = float(np.clip(0.7 * radius, 2.0, 14.0))
    coarse = random_field(tissue.brain.shape, tissue.affine, focus.centre, scale, focus.seed)
    return coarse + 0.5 * random_field(tissue.brain.shape, tissue.affine, focus.centre, scale / 2.5, focus.seed + 1)


def _start_of(tissue: TissueMaps, focus: Focus, free: np.ndarray, count: int) -> np.ndarray:
    """The voxels that a focus starts from: a straight line through the free voxel nearest to its centre."""
    from scipy.ndimage import label

    start = np.zeros(free.shape, dtype=bool)
    pieces, _ = label(free)
    # A speck of tissue may be the nearest, and hold nothing: look among the pieces that have room.
    roomy = np.bincount(pieces.ravel())[pieces] >= count
    candidates = np.argwhere(free & roomy) if (free & roomy).any() else np.argwhere(free)
    if not len(candidates):
        raise InputError("LESION_NO_ROOM", "a lesion would start where no brain tissue is", "choose another place")
    away = (candidates - _index(tissue.affine, focus.centre)) * tissue.voxel_mm
    nearest = candidates[(away**2).sum(axis=1).argmin()]
    start[tuple(nearest)] = True
    width = 2 * (focus.volume_ml * 1000 / (np.pi * (2 * (focus.elongation - 1) + 4 / 3))) ** (1 / 3)
    half = width * (focus.elongation - 1) / 2
    steps = np.linspace(-half, half, max(2, int(4 * half / tissue.voxel_mm.min()) + 1))
    line = nearest + steps[:, None] * np.linalg.solve(tissue.affine[:3, :3], np.asarray(focus.direction))
    line = np.unique(np.round(line).astype(int), axis=0)
    line = line[((line >= 0) & (line < free.shape)).all(axis=1)]
    line = line[free[tuple(line.T)]]
    if len(line) < count:
        start[tuple(line.T)] = True
    return start


def _divide(body: np.ndarray, tissue: TissueMaps, lesion: Lesion) -> np.ndarray:
    """Number the compartments: by depth within the body, and oedema that spreads from it along white matter."""
    result = np.zeros(body.shape, dtype=np.uint8)
    box = bounding_box(body)
    inner, near = body[box], tissue.crop(box)
    depth = signed_distance(inner, near.voxel_mm) + 0.8 * _inner_field(near, lesion, 6.0, lesion.seed)
    ranked = np.flatnonzero(inner)[np.argsort(-depth[inner], kind="stable")]
    shares = np.cumsum([part.share for part in lesion.compartments])
    for number, indices in enumerate(np.split(ranked, np.round(shares[:-1] * len(ranked)).astype(int)), start=1):
        result[box].flat[indices] = number
    if lesion.oedema_ml > 0:
        result[_grow_oedema(body, tissue, lesion)] = len(lesion.compartments)
    return result


def _inner_field(tissue: TissueMaps, lesion: Lesion, scale_mm: float, seed: int) -> np.ndarray:
    return random_field(tissue.brain.shape, tissue.affine, lesion.foci[0].centre, scale_mm, seed)


def _grow_oedema(body: np.ndarray, tissue: TissueMaps, lesion: Lesion) -> np.ndarray:
    """Oedema around a body: it runs along white matter and spares the cortex."""
    solid = _solid(tissue)
    speed = (tissue.white + 0.06 * tissue.grey) * solid * np.exp(0.4 * _inner_field(tissue, lesion, 6.0, lesion.seed))
    count = max(1, round(lesion.oedema_ml / tissue.voxel_ml))
    return spread(np.where(body, 1.0, speed), body, solid & ~body, count, tissue.voxel_mm)


# ---------------------------------------------------------------------------------------------------- intensities


@dataclass(frozen=True)
class _Levels:
    """Intensities of white matter and fluid (scalars) and the slowly varying gain (I, J, K) of an image."""

    white: float
    fluid: float
    gain: np.ndarray


def _levels(contrast: str, voxels: np.ndarray, tissue: TissueMaps) -> _Levels:
    white = tissue.brain & (tissue.white > 0.8)
    fluid = tissue.ventricles & (tissue.csf > 0.8)
    if fluid.sum() < 30:
        fluid = tissue.brain & (tissue.csf > 0.8)
    for name, region in (("white matter", white), ("cerebrospinal fluid", fluid)):
        if not region.any():
            raise InputError(
                "TISSUE_MISSING",
                f"no voxel is sure to be {name}, so its {contrast} intensity cannot be measured",
                "give tissue of a whole brain",
            )
    # Walls and plexus blur into the ventricles: pure fluid is at the dark end, on T2w at the bright end.
    end = 75 if contrast == "T2w" else 25
    level = float(np.median(voxels[white]))
    return _Levels(level, float(np.percentile(voxels[fluid], end)), _gain(voxels / level, tissue))


def _gain(relative: np.ndarray, tissue: TissueMaps, smooth_mm: float = 15.0) -> np.ndarray:
    """Local brightness of white matter against its median, on a coarse copy; 1 where there is no white matter near."""
    from scipy.ndimage import affine_transform, gaussian_filter

    step = np.maximum(1, np.round(4.0 / tissue.voxel_mm)).astype(int)
    every = tuple(slice(None, None, size) for size in step)
    white = (tissue.white * tissue.brain)[every]
    sigma = smooth_mm / (tissue.voxel_mm * step)
    weight = gaussian_filter(white, sigma) + 0.01
    gain = (gaussian_filter(white * relative[every], sigma) + 0.01) / weight
    return affine_transform(gain.astype(np.float32), 1 / step, output_shape=relative.shape, order=1, mode="nearest")


def _paint(
    contrast: str, voxels: np.ndarray, levels: _Levels, tissue: TissueMaps, compartments: np.ndarray, lesion: Lesion
) -> np.ndarray:
    """Change the intensities of one contrast; noise stays, and fluid between the gyri keeps its intensity."""
    from scipy.ndimage import gaussian_filter

    box = bounding_box(compartments > 0, margin=int(np.ceil(3 * lesion.edge_mm / tissue.voxel_mm.min())) + 2)
    part, near, labels = voxels[box], tissue.crop(box), compartments[box]
    sigma = lesion.edge_mm / 2 / near.voxel_mm
    body = labels > 0
    fluid, bright = np.zeros((2, *body.shape), dtype=np.float32)
    for number, compartment in enumerate(lesion.compartments, start=1):
        weight = gaussian_filter((labels == number).astype(np.float32), sigma)
        change = compartment.changes[contrast]
        fluid += weight * change.fluid
        bright += weight * change.bright
    total = np.maximum(gaussian_filter(body.astype(np.float32), sigma), 1e-3)
    solid = np.clip(1 - near.csf, 0, 1) * near.brain
    strength = lesion.visibility * _soft_step(signed_distance(body, near.voxel_mm), lesion.edge_mm) * solid
    strength *= np.clip(1 + lesion.mottling * _inner_field(near, lesion, 5.0, lesion.seed + 1), 0, 2)
    base = _without_noise(part, solid, near.voxel_mm)
    gain = levels.gain[box]
    wanted = fluid / total * (levels.fluid * gain - base) + bright / total * levels.white * gain
    result = voxels.copy()
    result[box] = part + strength * wanted
    return result


def _soft_step(distance: np.ndarray, edge_mm: float) -> np.ndarray:
    """1 inside, 0 outside, 0.5 at the border, over ``edge_mm``."""
    from scipy.special import ndtr

    return ndtr(distance * 2.5 / edge_mm).astype(np.float32)


def _without_noise(voxels: np.ndarray, solid: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """Mean of the tissue within about a millimetre: what changes, while the noise on it stays."""
    from scipy.ndimage import gaussian_filter

    sigma = 0.8 / np.minimum(voxel_mm, 1.6)
    weight = gaussian_filter(solid, sigma)
    smooth = gaussian_filter(voxels * solid, sigma) / np.maximum(weight, 1e-3)
    return np.where(solid > 0.1, smooth, voxels)
