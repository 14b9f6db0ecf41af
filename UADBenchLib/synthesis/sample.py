"""The sample case of the demo: a brain that nobody has, with a lesion of known extent.

Made at run time from the MNI152 template that nilearn carries, so that nothing has to be shipped or downloaded: the
average is sharpened and bent, a lesion, a bias field and noise are put in, and all is put on an oblique, anisotropic,
left-handed grid, as scans are.
"""

from __future__ import annotations

import numpy as np

from UADBenchLib.geometry import resample
from UADBenchLib.preprocessing.registration import load_template
from UADBenchLib.scan import Scan
from UADBenchLib.synthesis.contrasts import PRIORS
from UADBenchLib.synthesis.insertion import apply_lesion
from UADBenchLib.synthesis.lesions import draw_lesion
from UADBenchLib.synthesis.tissue import tissue_from_scan, tissue_of_template

VOXEL_MM = (1.5, 1.5, 2.0)
TEMPLATE_MM = 2
LESION_CENTRE = (28.0, 22.0, 26.0)
"""RAS mm: deep in the right frontal white matter."""


def make_sample(
    seed: int = 0, *, contrast: str = "T1w", lesion_ml: float | None = 18.0
) -> tuple[Scan, np.ndarray, np.ndarray]:
    """Make the sample case.

    Parameters
    ----------
    seed : int
        Of everything random.
    contrast : str
        ``"T1w"``, ``"T2w"`` or ``"FLAIR"``; the template is a T1w average, other contrasts are painted on its tissues.
    lesion_ml : float or None
        Volume of the lesion; None leaves the brain healthy.

    Returns
    -------
    (Scan, numpy.ndarray, numpy.ndarray)
        A brain-only scan of 1.5 x 1.5 x 2 mm, its boolean reference, and its boolean brain mask, on one grid.
    """
    rng = np.random.default_rng(seed)
    template, mask, affine = _sharp_template() if contrast == "T1w" else _painted_template(contrast)
    voxels, inside = _bend([template, mask], rng)
    brain = inside > 0.5
    voxels = voxels * brain
    reference = np.zeros(brain.shape, dtype=bool)
    if lesion_ml is not None:
        tissue = tissue_from_scan(voxels, affine, brain, np.eye(4))
        drawn = np.random.default_rng(seed + 1)
        lesion = draw_lesion("tumour", tissue, drawn, variant="solid", volume_ml=lesion_ml, centre=LESION_CENTRE)
        lesioned = apply_lesion({contrast: voxels}, tissue, lesion)
        voxels, reference = lesioned.images[contrast], lesioned.mask
    voxels = voxels * np.exp(0.05 * _smooth_field(brain.shape, 60.0 / TEMPLATE_MM, rng)) * brain
    return _on_oblique_grid(contrast, voxels, reference, brain, affine, rng)


def _sharp_template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template's voxels, sharpened (an average of many brains is softer than one), brain mask and affine."""
    from scipy.ndimage import gaussian_filter

    template = load_template(TEMPLATE_MM)
    soft = gaussian_filter(template.voxels, 1.0)
    return np.clip(template.voxels + 0.8 * (template.voxels - soft), 0, None), template.mask, template.affine


def _painted_template(contrast: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template's tissues in the mean intensities of another contrast, brain mask and affine."""
    template, tissue, means = load_template(TEMPLATE_MM), tissue_of_template(TEMPLATE_MM), PRIORS[contrast]
    shares = {"white matter": tissue.white, "cortex": tissue.grey, "csf": tissue.csf}
    voxels = sum(share * means[name][0] for name, share in shares.items())
    return np.where(template.mask, voxels, 0).astype(np.float32), template.mask, template.affine


def _smooth_field(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of standard deviation 1, drawn on as coarse a grid as its smoothness (in voxels) allows."""
    from scipy.ndimage import zoom

    small = [max(4, int(np.ceil(n / sigma)) + 3) for n in shape]
    field = zoom(rng.standard_normal(small), [n / s for n, s in zip(shape, small, strict=True)], order=3)
    return (field / max(float(field.std()), 1e-6)).astype(np.float32)


def _bend(parts: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Bend arrays of one shape by one smooth displacement of about 1.5 mm and 4 % in size."""
    from scipy.ndimage import map_coordinates

    shape = parts[0].shape
    middle = np.array(shape)[:, None, None, None] / 2
    size = 1 + 0.04 * rng.standard_normal(3)[:, None, None, None]
    grid = np.indices(shape, dtype=np.float32)
    displacement = np.stack([_smooth_field(shape, 40.0 / TEMPLATE_MM, rng) for _ in range(3)])
    places = middle + (grid - middle) * size + 1.5 / TEMPLATE_MM * displacement
    return [map_coordinates(part.astype(np.float32), places, order=1) for part in parts]


def _on_oblique_grid(
    contrast: str,
    voxels: np.ndarray,
    reference: np.ndarray,
    brain: np.ndarray,
    affine: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Scan, np.ndarray, np.ndarray]:
    angle = np.deg2rad(7.0)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    shape = (116, 144, 98)
    target = np.eye(4)
    # Rows run from left to right reversed (LAS), as many scanners write them: the grid is left-handed.
    target[:3, :3] = tilt @ np.diag([-1.0, 1.0, 1.0]) @ np.diag(VOXEL_MM)
    centre = affine @ [*(np.array(voxels.shape) / 2), 1.0]
    target[:3, 3] = centre[:3] - target[:3, :3] @ (np.array(shape) / 2)
    values = resample(voxels.astype(np.float32), affine, shape, target, order=1, antialias=True)
    inside = resample(brain.astype(np.float32), affine, shape, target, order=1) > 0.5
    truth = (resample(reference.astype(np.float32), affine, shape, target, order=1) > 0.5) & inside
    noisy = values + 0.04 * rng.standard_normal(shape).astype(np.float32)
    scan = Scan(
        voxels=np.where(inside, np.maximum(noisy, 0.001) * 1000, 0).astype(np.float32),
        affine=target,
        stem=f"sample_{contrast}",
        contrast=contrast,
        provenance={"format": "made by uadbench", "generator": "synthesis.sample"},
    )
    return scan, truth, inside
