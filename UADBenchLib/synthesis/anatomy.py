"""Anatomical label maps of whole heads: what the numbers mean, and a head bent into another one of its kind.

Maps are FreeSurfer-numbered inside the brain (below 500) and in the numbering of SAMSEG and CHARM outside it (500 and
above). They say where tissue is, not what it looks like; intensities are the matter of ``heads``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import canonical
from UADBenchLib.reading import read_scan

if TYPE_CHECKING:
    from torch import Tensor

TISSUES: dict[str, tuple[int, ...]] = {
    "air": (0,),
    # White-matter lesions (25, 57, 77 to 79) are white matter here: the heads that are made of it are healthy.
    "white matter": (2, 41, 25, 57, 77, 78, 79, 251, 252, 253, 254, 255),
    "cortex": (3, 42),
    "csf": (24,),
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    "choroid plexus": (31, 63, 136, 137, 163, 164),
    "thalamus": (10, 49),
    "caudate": (11, 50, 26, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "limbic": (17, 18, 53, 54),
    "ventral diencephalon": (28, 60),
    "brain stem": (16,),
    "cerebellar white matter": (7, 46),
    "cerebellar cortex": (8, 47),
    "optic nerve": (85, 530),
    "vessel": (30, 62, 502, 514),
    "eye": (506,),
    "soft tissue": (507,),
    "muscle": (508,),
    "mucosa": (509,),
    "skin": (511,),
    "spinal cord": (512,),
    "bone": (515,),
    "marrow": (516,),
}
"""Tissues that look alike, by the numbers that label maps give them. Their order is that of the class numbers."""

NAMES = tuple(TISSUES)
CLASS = {name: number for number, name in enumerate(NAMES)}
_BRAIN = NAMES[1:15]
_LARGEST = 1023
_SULCUS_MM = 8.0
_HEAD_ML = (1500.0, 15000.0)


@dataclass(frozen=True)
class Anatomy:
    """A head as classes of tissue.

    Attributes
    ----------
    classes : numpy.ndarray
        Shape (I, J, K), uint8: index into ``NAMES``; axes closest to R, A, S.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    name : str
        Of the label map.
    """

    classes: np.ndarray
    affine: np.ndarray
    name: str = ""

    @property
    def voxel_mm(self) -> np.ndarray:
        """Edges of a voxel in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def of(self, *names: str) -> np.ndarray:
        """Boolean mask of one or more tissues."""
        chosen = np.zeros(len(NAMES), dtype=bool)
        chosen[[CLASS[name] for name in names]] = True
        return chosen[self.classes]


def read_anatomy(path: str | os.PathLike[str]) -> Anatomy:
    """Read a whole-head label map.

    Raises
    ------
    InputError
        ``LABELS_INVALID`` for a map with numbers that have no meaning here, or without a brain in a head; and whatever
        ``read_scan`` refuses.
    """
    scan = read_scan(path)
    if not np.array_equal(scan.voxels, np.rint(scan.voxels)) or scan.voxels.min() < 0 or scan.voxels.max() > _LARGEST:
        raise InputError(
            "LABELS_INVALID",
            f"{Path(path).name} holds values that are no label numbers",
            "give whole-head maps with FreeSurfer numbers",
        )
    lookup = np.full(_LARGEST + 1, 255, dtype=np.uint8)
    for name, numbers in TISSUES.items():
        lookup[list(numbers)] = CLASS[name]
    voxels, affine = canonical(scan.voxels, scan.affine)
    classes = lookup[voxels.astype(np.int16)]
    unknown = np.unique(voxels[classes == 255]).astype(int).tolist()
    anatomy = Anatomy(np.ascontiguousarray(classes), affine, scan.stem)
    if unknown:
        raise InputError(
            "LABELS_INVALID",
            f"{Path(path).name} holds the unknown labels {', '.join(map(str, unknown[:5]))}",
            "give whole-head maps with FreeSurfer numbers",
        )
    head_ml = float((classes > 0).sum() * scan.voxel_ml)
    missing = [name for name in ("white matter", "cortex", "ventricle", "bone") if not anatomy.of(name).any()]
    if missing or not _HEAD_ML[0] <= head_ml <= _HEAD_ML[1]:
        what = f"lacks {', '.join(missing)}" if missing else f"holds {head_ml:.0f} ml"
        raise InputError("LABELS_INVALID", f"{Path(path).name} is no whole head: it {what}", "give whole-head maps")
    return anatomy


def read_anatomies(folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of the label maps of a folder, sorted by name.

    Raises
    ------
    InputError
        ``LABELS_MISSING`` when there is none.
    """
    folder = Path(folder)
    found = sorted(
        path for path in folder.glob("*") if path.name.lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha"))
    )
    if not found:
        raise InputError(
            "LABELS_MISSING", f"there is no label map in {folder}", "give a folder of whole-head label maps"
        )
    return found


def brain_mask(anatomy: Anatomy) -> np.ndarray:
    """Boolean brain mask: brain tissue and ventricles, and the CSF that lies between and closely around them.

    The border follows the brain's hull, as that of manually and automatically drawn masks does, not each sulcus.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    tissue = anatomy.of(*(name for name in _BRAIN if name != "csf"))
    box = _box(tissue, anatomy.voxel_mm, 2 * _SULCUS_MM)
    part, edges = tissue[box], anatomy.voxel_mm
    near = distance_transform_edt(~part, sampling=edges) <= _SULCUS_MM
    closed = distance_transform_edt(np.pad(near, 1), sampling=edges)[1:-1, 1:-1, 1:-1] > _SULCUS_MM - 1.0
    filled = binary_fill_holes(part | (closed & anatomy.of("csf", "vessel")[box]))
    result = np.zeros_like(tissue)
    result[box] = filled
    return result


def _box(mask: np.ndarray, voxel_mm: np.ndarray, margin_mm: float) -> tuple[slice, ...]:
    """Bounds of ``mask`` with a margin, within the grid."""
    slices = []
    for axis in range(3):
        rows = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(margin_mm / voxel_mm[axis]))
        slices.append(slice(max(0, rows[0] - margin), rows[-1] + margin + 1))
    return tuple(slices)


@dataclass(frozen=True)
class Deformation:
    """What was drawn to make one head out of another; see ``draw_deformation``.

    ``degrees`` and ``scale`` are about and along the axes R, A, S, ``shear`` the three upper entries; ``bend_mm`` is
    the largest displacement of the smooth part on a grid of ``bend_grid_mm``; ``widening_mm`` moves the walls of the
    ventricles outwards and ``thinning`` gives cortex to the sulci, as age does.
    """

    degrees: tuple[float, float, float]
    scale: tuple[float, float, float]
    shear: tuple[float, float, float]
    mirrored: bool
    bend_mm: float
    bend_grid_mm: float
    widening_mm: float
    thinning: float
    seed: int


def draw_deformation(
    rng: np.random.Generator,
    *,
    degrees: float = 6.0,
    scale: float = 0.06,
    size: float = 1.0,
    bend_mm: tuple[float, float] = (1.0, 4.0),
    widening_mm: tuple[float, float] = (0.0, 0.0),
    thinning: tuple[float, float] = (0.0, 0.0),
) -> Deformation:
    """Draw a deformation; ``size`` is the mean of the scale, angles and scales have these standard deviations."""
    spread = np.clip(rng.standard_normal(3), -2, 2)
    common = np.clip(rng.standard_normal(), -2, 2)
    scales = size * np.exp(scale * (0.6 * common + 0.5 * spread))
    return Deformation(
        degrees=tuple(float(v) for v in degrees * np.clip(rng.standard_normal(3), -2, 2)),
        scale=tuple(float(v) for v in scales),
        shear=tuple(float(v) for v in 0.02 * rng.standard_normal(3)),
        mirrored=bool(rng.random() < 0.5),
        bend_mm=float(rng.uniform(*bend_mm)),
        bend_grid_mm=float(rng.uniform(24.0, 48.0)),
        widening_mm=float(rng.uniform(*widening_mm)),
        thinning=float(rng.uniform(*thinning)),
        seed=int(rng.integers(2**31)),
    )


def deform(
    anatomy: Anatomy,
    deformation: Deformation,
    *,
    voxel_mm: float | None = None,
    extent_mm: tuple[float, float, float] | None = None,
) -> Anatomy:
    """Bend a head.

    Affine about the middle of the brain, a diffeomorphism (exponential of a smooth random velocity field by scaling
    and squaring, Arsigny et al. 2006), wider ventricles, thinner cortex.

    Parameters
    ----------
    voxel_mm : float, optional
        Edge of the isotropic voxels of the result; default: those of the map.
    extent_mm : (float, float, float), optional
        Extent of the result, centred on the brain; default: that of the map and what the head may grow.

    Returns
    -------
    Anatomy
        On a new grid along R, A, S.
    """
    import torch

    edge = float(anatomy.voxel_mm.min()) if voxel_mm is None else voxel_mm
    middle = _middle(anatomy)
    if extent_mm is None:
        extent_mm = tuple(np.array(anatomy.classes.shape) * anatomy.voxel_mm * max(1.0, *deformation.scale))
        place = anatomy.affine @ [*((np.array(anatomy.classes.shape) - 1) / 2), 1.0]
        centre = place[:3]
    else:
        centre = middle
    shape = tuple(int(np.ceil(length / edge)) for length in extent_mm)
    affine = np.diag([edge] * 3 + [1.0])
    affine[:3, 3] = centre - edge * (np.array(shape) - 1) / 2
    places = source_places(shape, affine, middle, deformation)
    if deformation.widening_mm > 0:
        places = places - _widening(anatomy, places, deformation.widening_mm)
    classes = _nearest(torch.from_numpy(anatomy.classes), anatomy.affine, places).numpy()
    moved = Anatomy(classes, affine, anatomy.name)
    return _thinned(moved, deformation.thinning) if deformation.thinning > 0 else moved


def _middle(anatomy: Anatomy) -> np.ndarray:
    """Centre of the brain's bounding box in RAS mm; unlike the centre of mass it needs no weighing of every voxel."""
    box = _box(anatomy.of("white matter", "cortex"), anatomy.voxel_mm, 0.0)
    index = [(part.start + part.stop - 1) / 2 for part in box]
    return (anatomy.affine @ [*index, 1.0])[:3]


def source_places(shape: tuple[int, ...], affine: np.ndarray, middle: np.ndarray, drawn: Deformation) -> Tensor:
    """Where each voxel of the result comes from: RAS mm, (I, J, K, 3) float32.

    Parameters
    ----------
    shape, affine
        Lattice of the result, along R, A, S.
    middle : numpy.ndarray
        RAS mm that stays where it is but for the smooth part.
    """
    import torch
    from torch.nn import functional as F

    grids = [
        torch.arange(n, dtype=torch.float32) * float(affine[a, a]) + float(affine[a, 3]) for a, n in enumerate(shape)
    ]
    places = torch.stack(torch.meshgrid(*grids, indexing="ij"), dim=-1)
    extent = np.array(shape) * np.diag(affine)[:3]
    velocity = _velocity(extent, drawn)
    bend = F.interpolate(velocity[None], shape, mode="trilinear", align_corners=True)[0].permute(1, 2, 3, 0)
    matrix = torch.from_numpy(np.linalg.inv(_matrix(drawn))).float()
    centre = torch.from_numpy(middle).float()
    return (places - centre + bend) @ matrix.T + centre


def _matrix(drawn: Deformation) -> np.ndarray:
    """Rotation, scale and shear (3, 3); mirrored left to right or not."""
    from scipy.spatial.transform import Rotation

    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = drawn.shear
    flip = np.diag([-1.0 if drawn.mirrored else 1.0, 1.0, 1.0])
    return Rotation.from_euler("xyz", drawn.degrees, degrees=True).as_matrix() @ np.diag(drawn.scale) @ shear @ flip


def _velocity(extent: np.ndarray, drawn: Deformation):
    """Displacement (3, A, B, C) in mm of the smooth part, integrated on a grid of a third of its smoothness."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(drawn.seed)
    control = [max(3, int(np.ceil(e / drawn.bend_grid_mm)) + 1) for e in extent]
    fine = [3 * n for n in control]
    field = torch.randn(1, 3, *control, generator=generator)
    field = F.interpolate(field, fine, mode="trilinear", align_corners=True)
    field = drawn.bend_mm * field / field.norm(dim=1).max().clamp(min=1e-6)
    halvings = 4
    unit = torch.tensor([2.0 / e for e in extent]).float()  # mm to the [-1, 1] of grid_sample
    identity = F.affine_grid(torch.eye(3, 4)[None], [1, 3, *fine], align_corners=True)
    field = field / 2**halvings
    for _ in range(halvings):
        step = (field * unit[None, :, None, None, None]).permute(0, 2, 3, 4, 1).flip(-1)
        field = field + F.grid_sample(field, identity + step, padding_mode="border", align_corners=True)
    return field[0]


def _nearest(values, affine: np.ndarray, places):
    """The value of the nearest voxel at RAS mm ``places`` (I, J, K, 3); 0 outside."""
    import torch

    matrix = torch.from_numpy(np.linalg.inv(affine)).float()
    index = torch.round(places @ matrix[:3, :3].T + matrix[:3, 3]).long()
    shape = torch.tensor(values.shape)
    inside = ((index >= 0) & (index < shape)).all(dim=-1)
    index = torch.minimum(index.clamp(min=0), shape - 1)
    flat = (index[..., 0] * values.shape[1] + index[..., 1]) * values.shape[2] + index[..., 2]
    return torch.where(inside, values.flatten()[flat], torch.zeros((), dtype=values.dtype))


def _widening(anatomy: Anatomy, places, widening_mm: float):
    """Displacement in mm at ``places`` that moves the walls of the ventricles by ``widening_mm``.

    It points away from the ventricles, is largest at their walls and fades over 12 mm, so that the tissue around them
    is pressed together and the hull of the brain stays where it is.
    """
    import torch
    from scipy.ndimage import distance_transform_edt, gaussian_filter
    from torch.nn import functional as F

    factor = np.maximum(1, np.round(3.0 / anatomy.voxel_mm)).astype(int)
    inside = anatomy.of("ventricle", "choroid plexus")[tuple(slice(None, None, f) for f in factor)]
    edges = anatomy.voxel_mm * factor
    signed = distance_transform_edt(~inside, sampling=edges) - distance_transform_edt(inside, sampling=edges)
    signed = gaussian_filter(signed, 1.0)
    direction = np.stack(np.gradient(signed, *edges))
    direction /= np.maximum(np.linalg.norm(direction, axis=0), 0.3)
    size = widening_mm * np.exp(-np.maximum(signed, 0) / 12.0) * (1 - np.exp(-np.maximum(signed + 6, 0) / 3.0))
    field = torch.from_numpy((direction * size).astype(np.float32))
    matrix = torch.from_numpy(np.linalg.inv(anatomy.affine)).float()
    index = (places @ matrix[:3, :3].T + matrix[:3, 3]) / torch.from_numpy(factor).float()
    unit = 2 * index / (torch.tensor(inside.shape).float() - 1) - 1
    sampled = F.grid_sample(field[None], unit.flip(-1)[None], padding_mode="zeros", align_corners=True)[0]
    linear = torch.from_numpy(anatomy.affine[:3, :3] / anatomy.voxel_mm).float()
    return sampled.permute(1, 2, 3, 0) @ linear.T


def _thinned(anatomy: Anatomy, thinning: float) -> Anatomy:
    """Give cortex to the CSF where much of its surrounding is CSF; ``thinning`` of 1 takes about 1 mm of each gyrus."""
    from scipy.ndimage import gaussian_filter

    fluid = gaussian_filter(anatomy.of("csf").astype(np.float32), 1.0 / anatomy.voxel_mm)
    turned = anatomy.of("cortex", "cerebellar cortex") & (fluid > 0.5 - 0.35 * min(thinning, 1.2))
    classes = anatomy.classes.copy()
    classes[turned] = CLASS["csf"]
    return Anatomy(classes, anatomy.affine, anatomy.name)
