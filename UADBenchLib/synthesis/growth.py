"""How a lesion spreads from where it starts, and how it pushes tissue aside.

A lesion is what a front reaches first that sets out from a start at a speed given voxel by voxel: by tissue, by
place, and by a random field that roughens the border. The front is solved by fast marching (Sethian, PNAS 1996), so a
lesion is always connected to its start, stops at fluid, and holds exactly the number of voxels wanted. Speeds and
fields are defined in millimetres, so that one description gives the same lesion on any grid.
"""

from __future__ import annotations

import numpy as np

from UADBenchLib.errors import InputError

NODES = 24
"""Edge of the periodic lattice on which random fields are drawn."""
SLOWEST = 1e-6
"""Least speed of a front, relative to the fastest: over more orders of magnitude its equation cannot be solved in
double precision, and what is so slow is not reached anyway."""


def random_field(
    shape: tuple[int, ...], affine: np.ndarray, origin: tuple[float, ...], scale_mm: float, seed: int
) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation 1, the same in space on whatever grid.

    Parameters
    ----------
    shape, affine : tuple of int, numpy.ndarray
        The grid; voxel index to RAS mm.
    origin : tuple of float
        RAS mm of the lattice's first node.
    scale_mm : float
        Distance of the lattice's nodes; the field repeats itself after ``NODES`` of them.
    seed : int
        Of the values at the nodes.
    """
    from scipy.ndimage import affine_transform

    nodes = np.random.default_rng(seed).standard_normal((NODES,) * 3).astype(np.float32)
    # The field bends only over the lattice's distance: a few samples for each are enough, with straight lines between.
    step = np.maximum(1, np.floor(scale_mm / 3 / np.linalg.norm(affine[:3, :3], axis=0))).astype(int)
    coarse = tuple(int(np.ceil((n - 1) / size)) + 1 for n, size in zip(shape, step, strict=True))
    matrix = affine[:3, :3] * step / scale_mm
    offset = (affine[:3, 3] - np.asarray(origin)) / scale_mm
    field = affine_transform(nodes, matrix, offset, coarse, order=3, mode="grid-wrap", prefilter=False)
    # The nodes' values are taken as the coefficients of a cubic spline, which makes their deviation 0.48**1.5.
    field = affine_transform(field, 1 / step, output_shape=shape, order=1, mode="nearest")
    return field / np.float32(0.48**1.5)


def spread(speed: np.ndarray, start: np.ndarray, allowed: np.ndarray, count: int, voxel_mm: np.ndarray) -> np.ndarray:
    """Return the ``count`` allowed voxels that a front from ``start`` reaches first.

    Parameters
    ----------
    speed : numpy.ndarray
        Shape (I, J, K), not negative; the front does not enter voxels of speed 0.
    start, allowed : numpy.ndarray
        Shape (I, J, K), boolean. The front sets out from every voxel of ``start``, and only ``allowed`` ones count.
    count : int
        Number of voxels.
    voxel_mm : numpy.ndarray
        Edges of a voxel.

    Raises
    ------
    InputError
        ``LESION_NO_ROOM`` when the front reaches fewer.
    """
    times = _arrival(speed, start, allowed, count, voxel_mm).ravel()
    reached = int(np.isfinite(times).sum())
    if reached < count:
        raise InputError(
            "LESION_NO_ROOM",
            f"a lesion of {count} voxels has room for {reached} here",
            "ask for a smaller lesion or another place",
        )
    grown = np.zeros(times.size, dtype=bool)
    grown[np.argpartition(times, count - 1)[:count]] = True
    return grown.reshape(speed.shape)


def _arrival(speed: np.ndarray, start: np.ndarray, allowed: np.ndarray, count: int, voxel_mm: np.ndarray) -> np.ndarray:
    """When the front arrives, at least for the first ``count`` allowed voxels; infinite for the others."""
    import SimpleITK as sitk

    speed = np.where(speed > 0, np.maximum(speed, SLOWEST * speed.max(initial=0)), 0)
    image = sitk.GetImageFromArray(speed.astype(np.float32).T)
    image.SetSpacing(np.asarray(voxel_mm, dtype=float).tolist())
    marching = sitk.FastMarchingImageFilter()
    marching.SetTrialPoints(np.argwhere(start).tolist())
    # Most of the work is saved by stopping early, but when is known only once it has been tried.
    soonest = float(np.cbrt(count * np.prod(voxel_mm)) / max(float(speed.max(initial=0)), 1e-6))
    for stop in (*(soonest * 2.0**power for power in range(10)), 1e30):
        marching.SetStoppingValue(stop)
        arrival = sitk.GetArrayFromImage(marching.Execute(image)).T
        known = allowed & (arrival <= stop)
        if known.sum() >= count:
            break
    return np.where(known, arrival, np.inf)


def signed_distance(body: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """Distance in mm from a body's border, (I, J, K) float32: positive inside, negative outside, never 0."""
    from scipy.ndimage import distance_transform_edt

    half = float(np.min(voxel_mm)) / 2
    inside = distance_transform_edt(body, sampling=voxel_mm) - half
    outside = distance_transform_edt(~body, sampling=voxel_mm) - half
    return np.where(body, inside, -outside).astype(np.float32)


def push_outward(core: np.ndarray, brain: np.ndarray, affine: np.ndarray, share: float) -> np.ndarray:
    """The displacement of tissue by a growing core: where each voxel's tissue was before, minus where it is now.

    Around a core of equivalent radius R the shell at radius r came from (r^3 - share R^3)^(1/3), which keeps the
    pushed tissue's volume; the push runs along the distance to the core, fades over some 40 mm, and ends at the skull.

    Parameters
    ----------
    core, brain : numpy.ndarray
        Shape (I, J, K), boolean.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    share : float
        Share of the core's volume that displaced tissue instead of infiltrating it, in [0, 1).

    Returns
    -------
    numpy.ndarray
        Shape (3, I, J, K), float32, RAS mm; 0 outside the brain.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    radius = (core.sum() * voxel_mm.prod() * 3 / (4 * np.pi)) ** (1 / 3)
    distance = gaussian_filter(signed_distance(core, voxel_mm), 0.25 * radius / voxel_mm)
    r = np.maximum(radius - distance, 0)
    came_from = np.where(r < radius, r * (1 - share) ** (1 / 3), np.cbrt(np.maximum(r**3 - share * radius**3, 0)))
    held = np.clip(distance_transform_edt(brain, sampling=voxel_mm) / max(15.0, radius), 0, 1)
    size = (r - came_from) * np.exp(np.minimum(distance, 0) / 40.0) * held
    uphill = np.stack(np.gradient(distance)) / voxel_mm[:, None, None, None]
    uphill /= np.maximum(np.linalg.norm(uphill, axis=0), 1e-3)
    directions = affine[:3, :3] / voxel_mm
    return np.einsum("ab,bijk->aijk", directions, uphill * size).astype(np.float32)


def pull(voxels: np.ndarray, displacement: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Displace an array (I, J, K): every voxel takes the value at its place plus ``displacement`` (3, I, J, K), RAS mm.

    Linear interpolation; a boolean array stays boolean.
    """
    from scipy.ndimage import map_coordinates

    steps = np.einsum("ab,bijk->aijk", np.linalg.inv(affine[:3, :3]), displacement)
    places = np.indices(voxels.shape, dtype=np.float32) + steps
    moved = map_coordinates(voxels.astype(np.float32), places, order=1, mode="nearest")
    return moved > 0.5 if voxels.dtype == bool else moved
