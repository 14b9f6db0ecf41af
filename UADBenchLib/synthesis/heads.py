"""Scans of heads made from anatomy: a look (what tissues are how bright) through an acquisition (what a scanner does).

What is random is drawn first and kept, so that any scan can be made again; ``render`` applies it. Healthy by
construction: what is in a scan that should not be there is put in by ``lesions``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from UADBenchLib.geometry import resample
from UADBenchLib.synthesis.anatomy import Anatomy, brain_mask
from UADBenchLib.synthesis.contrasts import Look

PARTIAL_VOLUME_MM = 0.55
"""Blur of the borders between tissues: what a point spread of 1.3 mm full width does to the sharp edges of labels."""

TEXTURE_MM = 1.2
NECK_MM = 60.0


@dataclass(frozen=True)
class Acquisition:
    """What a scanner does to a head.

    Attributes
    ----------
    voxel_mm : (float, float, float)
        Edges of the scan's voxels along R, A, S.
    blur_mm : float
        Standard deviation of the point spread on top of the voxel's own.
    noise : float
        Standard deviation of the noise of either channel, in units of white matter; the magnitude is Rician.
    bias : float
        Largest logarithm of the receiver's sensitivity, which is smooth.
    kept : float
        Share of k-space that is measured along the phase axis; the rest is filled with zeros, which rings (Gibbs).
    ghost : float
        Size of the copy that lies half a field of view off along the phase axis, as motion and flow leave it.
    phase_axis : int
        0, 1 or 2.
    cut_mm : float
        How far below the brain the field of view ends.
    defaced : bool
        Whether the face was removed.
    gain : float
        Stored value of white matter.
    seed : int
        Of noise, bias field and texture.
    """

    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur_mm: float = 0.0
    noise: float = 0.03
    bias: float = 0.15
    kept: float = 1.0
    ghost: float = 0.0
    phase_axis: int = 1
    cut_mm: float = NECK_MM
    defaced: bool = False
    gain: float = 600.0
    seed: int = 0


def draw_acquisition(
    rng: np.random.Generator,
    *,
    voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    noise: tuple[float, float] = (0.015, 0.05),
    bias: tuple[float, float] = (0.05, 0.25),
    ghosts: float = 0.15,
    defaced: float = 0.2,
) -> Acquisition:
    """Draw an acquisition; ``ghosts`` and ``defaced`` are the chances of a ghost and of a removed face."""
    return Acquisition(
        voxel_mm=tuple(float(v) for v in voxel_mm),
        blur_mm=float(rng.uniform(0.0, 0.5)),
        noise=float(rng.uniform(*noise)),
        bias=float(rng.uniform(*bias)),
        kept=float(rng.choice([1.0, rng.uniform(0.65, 0.95)])),
        ghost=float(rng.uniform(0.01, 0.06)) if rng.random() < ghosts else 0.0,
        phase_axis=int(rng.integers(0, 2)),
        cut_mm=float(rng.uniform(5.0, 90.0)),
        defaced=bool(rng.random() < defaced),
        gain=float(np.exp(rng.uniform(np.log(150), np.log(1500)))),
        seed=int(rng.integers(2**31)),
    )


def paint(anatomy: Anatomy, look: Look, seed: int) -> np.ndarray:
    """Give every tissue its intensity and texture; borders stay sharp.

    Returns
    -------
    numpy.ndarray
        float32 on the anatomy's grid, in units of white matter.
    """
    rng = np.random.default_rng(seed)
    means = np.array(look.means, dtype=np.float32)
    image = means[anatomy.classes]
    fine = _smooth_noise(anatomy.classes.shape, TEXTURE_MM / anatomy.voxel_mm, rng)
    coarse = _smooth_noise(anatomy.classes.shape, 18.0 / anatomy.voxel_mm, rng)
    # Fat and muscle share one label: lay them out as lobes, with fat under the skin as often as not.
    fat = anatomy.of("soft tissue") & (coarse + 0.3 * fine > 0.1)
    image[fat] = look.fat
    spreads = np.array(look.spreads, dtype=np.float32)[anatomy.classes]
    spreads[fat] = 0.12
    image += spreads * (0.85 * fine + 0.5 * coarse)
    return np.maximum(image, 0)


def acquire(image: np.ndarray, anatomy: Anatomy, acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Scan a painted head.

    Parameters
    ----------
    image : numpy.ndarray
        What ``paint`` returned, with or without lesions in it.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        float32 voxels on the scan's own grid, and its affine.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(acquisition.seed + 1)
    edges = anatomy.voxel_mm
    sigma = np.hypot(PARTIAL_VOLUME_MM, acquisition.blur_mm) / edges
    seen = gaussian_filter(image, sigma) * np.exp(acquisition.bias * _bias(image.shape, rng))
    top = _lowest(anatomy, acquisition.cut_mm)
    seen, affine = seen[:, :, top:], anatomy.affine @ _shift(0, 0, top)
    if acquisition.defaced:
        seen = np.where(_face(anatomy)[:, :, top:], 0, seen)
    voxels, affine = _sampled(seen, affine, acquisition.voxel_mm)
    if acquisition.kept < 1:
        voxels = _truncated(voxels, acquisition.kept, acquisition.phase_axis)
    if acquisition.ghost:
        half = voxels.shape[acquisition.phase_axis] // 2
        voxels = voxels + acquisition.ghost * np.roll(voxels, half, acquisition.phase_axis)
    real, other = (acquisition.noise * rng.standard_normal(voxels.shape, dtype=np.float32) for _ in range(2))
    return (acquisition.gain * np.hypot(voxels + real, other)).astype(np.float32), affine


def render(anatomy: Anatomy, look: Look, acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Paint and scan a head: float32 voxels and affine of the scan."""
    return acquire(paint(anatomy, look, acquisition.seed), anatomy, acquisition)


def reference_on(mask: np.ndarray, anatomy: Anatomy, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Carry a boolean mask of the anatomy onto a scan's grid: voxels that are at least half inside."""
    values = resample(mask.astype(np.float32), anatomy.affine, tuple(shape), affine, order=1, antialias=True)
    return values >= 0.5


def _smooth_noise(shape: tuple[int, ...], sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random field of standard deviation 1, drawn on as coarse a grid as its smoothness (in voxels) allows."""
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional as F

    if np.max(sigma) < 2:
        field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
        return field / max(float(field.std()), 1e-6)
    small = [max(3, int(np.ceil(n / s)) + 1) for n, s in zip(shape, sigma, strict=True)]
    coarse = torch.from_numpy(rng.standard_normal(small, dtype=np.float32))[None, None]
    field = F.interpolate(coarse, tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    field = field.numpy()  # whose standard deviation does not depend on the number of threads, unlike torch's
    return field / max(float(field.std()), 1e-6)


def _bias(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A smooth field with largest absolute value 1."""
    field = _smooth_noise(shape, np.array(shape) / 3.0, rng)
    return field / max(float(np.abs(field).max()), 1e-6)


def _lowest(anatomy: Anatomy, cut_mm: float) -> int:
    """First index along S of the field of view."""
    brain = np.flatnonzero(anatomy.of("brain stem", "cerebellar cortex", "cortex").any(axis=(0, 1)))
    return max(0, int(brain[0] - cut_mm / anatomy.voxel_mm[2])) if brain.size else 0


def _face(anatomy: Anatomy) -> np.ndarray:
    """What removal of the face takes: all that lies before and below the eyes and is not near the brain."""
    from scipy.ndimage import binary_dilation

    eyes = np.argwhere(anatomy.of("eye"))
    if not len(eyes):
        return np.zeros(anatomy.classes.shape, dtype=bool)
    front, top = np.percentile(eyes[:, 1], 30), np.percentile(eyes[:, 2], 80)
    j, k = np.ogrid[: anatomy.classes.shape[1], : anatomy.classes.shape[2]]
    region = ((j > front) & (k < top))[None]
    steps = int(np.ceil(6.0 / anatomy.voxel_mm.min()))
    near = binary_dilation(brain_mask(anatomy), iterations=steps)
    return region & ~near


def _shift(*offset: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def _sampled(image: np.ndarray, affine: np.ndarray, voxel_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The image on the scan's voxels, averaged over each."""
    edges = np.diag(affine)[:3]
    if np.allclose(edges, voxel_mm, rtol=1e-3):
        return image, affine
    shape = tuple(max(1, int(n * e / v)) for n, e, v in zip(image.shape, edges, voxel_mm, strict=True))
    target = np.diag([*voxel_mm, 1.0])
    target[:3, 3] = affine[:3, 3] + (np.array(voxel_mm) - edges) / 2
    return resample(image, affine, shape, target, order=1, antialias=True), target


def _truncated(voxels: np.ndarray, kept: float, axis: int) -> np.ndarray:
    """Leave out the highest spatial frequencies along an axis."""
    from scipy import fft

    spectrum = fft.rfft(voxels, axis=axis)
    first = max(2, int(round(kept * spectrum.shape[axis])))
    rest = [slice(None)] * 3
    rest[axis] = slice(first, None)
    spectrum[tuple(rest)] = 0
    return np.maximum(fft.irfft(spectrum, voxels.shape[axis], axis=axis), 0).astype(np.float32)
