"""What several test modules build from: slices with a brain, scans on other grids, cohort tables, bundles, a model.

Everything is made on the spot and small; the expensive pieces are session fixtures in ``conftest``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.cohort import CohortScan
from UADBenchLib.geometry import corners, resample
from UADBenchLib.scan import Scan

SLICE = (80, 96)
"""Pixels of a slice on the model grid."""


def brain_slices(count: int = 4, seed: int = 0, shape: tuple[int, int] = SLICE) -> Any:
    """Slices with an elliptic brain of smooth, asymmetric tissue, at successive axial positions."""
    import torch
    from scipy.ndimage import gaussian_filter

    from UADBenchLib.methods.base import Slices

    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    masks = np.stack([x**2 + y**2 < 0.8 - 0.02 * number for number in range(count)])[:, None]
    tissue = np.stack([gaussian_filter(rng.standard_normal(shape), 4) for _ in range(count)])[:, None]
    images = np.clip(0.55 + 0.1 * x + 2.0 * tissue, 0.1, 1.0) * masks
    return Slices(
        torch.from_numpy(images.astype(np.float32)), torch.from_numpy(masks), torch.arange(count, dtype=torch.int64)
    )


def affine_of(
    shape: tuple[int, int, int], axes: np.ndarray, voxel_mm: Iterable[float], middle: np.ndarray
) -> np.ndarray:
    """An affine (4, 4) whose axes are the columns of ``axes`` and whose grid is centred on ``middle`` (RAS mm)."""
    result = np.eye(4)
    result[:3, :3] = np.asarray(axes, dtype=float) * np.array(list(voxel_mm))
    result[:3, 3] = middle - result[:3, :3] @ ((np.array(shape) - 1) / 2)
    return result


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """A rotation (3, 3) about x, y and z in turn."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


GRIDS: dict[str, tuple[tuple[int, int, int], np.ndarray, tuple[float, float, float]]] = {
    "ras": ((58, 72, 58), np.eye(3), (3.0, 3.0, 3.0)),
    "lps-stored": ((58, 72, 58), np.diag([-1.0, -1.0, 1.0]), (3.0, 3.0, 3.0)),
    "left-handed anisotropic": ((84, 104, 32), np.diag([-1.0, 1.0, 1.0]), (2.0, 2.0, 5.0)),
    "oblique sagittal": ((72, 58, 58), rotation((14.0, -9.0, 11.0))[:, [1, 2, 0]] * [1, -1, 1], (3.0, 3.0, 3.0)),
}
"""Grids to look at one brain through: shape, axes as columns, edges in mm."""


def on_grid(name: str, scan: Scan, *masks: np.ndarray) -> tuple[Any, ...]:
    """The scan and its boolean masks, in order, on another grid of ``GRIDS``; the brain keeps its place in space."""
    shape, axes, voxel_mm = GRIDS[name]
    affine = affine_of(shape, axes, voxel_mm, corners(scan.shape, scan.affine).mean(axis=0))
    voxels = resample(scan.voxels, scan.affine, shape, affine, order=1, antialias=True)
    moved = [resample(m.astype(np.float32), scan.affine, shape, affine, order=1, antialias=True) > 0.5 for m in masks]
    return replace(scan, voxels=voxels, affine=affine, checks=[]), *moved


def ball(shape: tuple[int, ...], affine: np.ndarray, centre: np.ndarray, radius_mm: float) -> np.ndarray:
    """Voxels whose centres lie within ``radius_mm`` of a place in RAS mm."""
    index = np.indices(shape).reshape(3, -1)
    place = affine[:3, :3] @ index + affine[:3, 3:]
    return (np.linalg.norm(place - np.asarray(centre)[:, None], axis=0) <= radius_mm).reshape(shape)


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of the true voxels in RAS mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two boolean masks that are not both empty."""
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def write_cohort(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a cohort table with whatever columns the rows have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_bundle(
    folder: Path, method: str = "intensity_norm", config: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """Write an uncalibrated bundle of an untrained method whose random weights are reproducible; returns it."""
    import torch

    from UADBenchLib.bundles.bundle import Bundle, Metadata, Space, bundle_id, recipe_values, save_bundle
    from UADBenchLib.methods.registry import create_method
    from UADBenchLib.preprocessing.recipe import Recipe

    torch.manual_seed(3)
    module, recipe = create_method(method, config=config), Recipe()
    values: dict[str, Any] = {
        "id": bundle_id(method, "T1w", "compact"),
        "version": "1",
        "method": method,
        "paper": module.paper,
        "preset": "compact",
        "contrast": "T1w",
        "config": module.configuration(),
        "recipe": recipe_values(recipe),
        "recipe_hash": recipe.hash,
        "space": Space(template=recipe.template, voxel_mm=2.0, shape=recipe.shape, registration="affine"),
        "trained_on": {"scans": 2, "subjects": ["a", "b"], "sites": {"here": 2}, "licences": {"here": "CC0"}},
        "seed": 0,
        "steps": 0,
        "versions": {},
        "sha256": {},
    }
    return save_bundle(Bundle(Metadata(**values | changes), module.eval(), recipe), folder)


@dataclass(frozen=True)
class Laboratory:
    """A small trained and calibrated model, and all that it was made from.

    Twelve healthy synthetic brains: six for training, prepared from files, and their mirror images for validation.
    """

    root: Path
    model: str
    summary: dict[str, Any]
    calibration: dict[str, Any]

    @property
    def cohort(self) -> Path:
        return self.root / "data" / "cohort.csv"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def bundle(self) -> Path:
        return self.models / self.model


def healthy_rows(root: Path, count: int) -> list[CohortScan]:
    """Rows of the laboratory's training scans; their files need not exist yet."""
    return [
        CohortScan(
            scan=root / "data" / f"train-{n}_T1w.nii.gz",
            contrast="T1w",
            label="healthy",
            subject=f"train-{n}",
            brain_mask=root / "data" / f"train-{n}_mask.nii.gz",
            split="train",
            site=("east", "west")[n % 2],
        )
        for n in range(count)
    ]


def mirrored_row(row: CohortScan) -> CohortScan:
    """The validation row of a training row's mirror image."""
    return replace(
        row,
        scan=row.scan.with_name(row.scan.name.replace("train", "validation")),
        brain_mask=row.brain_mask.with_name(row.brain_mask.name.replace("train", "validation")),
        subject=row.subject.replace("train", "validation"),
        split="validation",
    )


def table_row(row: CohortScan) -> dict[str, str]:
    """A row as the cohort table holds it, paths relative to the table."""
    return {
        "scan": row.scan.name,
        "contrast": row.contrast,
        "label": row.label,
        "subject": row.subject,
        "brain_mask": row.brain_mask.name if row.brain_mask else "",
        "split": row.split,
        "site": row.site,
    }


BRAINS = 6
"""Healthy brains to train on; the voxelwise norm wants five at a voxel."""


def prepare_pair(root: Path, row: CohortScan, seed: int) -> None:
    """Make one training scan and its mirror image, and put both into the store.

    Only the training scan is prepared. Template and model grid are symmetric, so the mirror image of the prepared scan
    is what preparing the mirrored scan would give, at no cost; a little noise keeps it from being the very same brain.
    """
    from UADBenchLib.preprocessing.recipe import Prepared, Recipe
    from UADBenchLib.synthesis.sample import make_sample
    from UADBenchLib.training import slices
    from UADBenchLib.writing import write_volume

    done = row.scan.with_suffix(".done")
    if done.exists():
        return
    scan, _, mask = make_sample(seed, lesion_ml=None)
    scan, mask = on_grid("ras", scan, mask)
    mirrored = mirrored_row(row)
    for where, values, inside in ((row, scan.voxels, mask), (mirrored, scan.voxels[::-1], mask[::-1])):
        write_volume(where.scan, values, scan.affine)
        write_volume(where.brain_mask, inside, scan.affine)
    stored, failed = slices.build_store([row], root / "store", Recipe())
    assert not failed, failed
    voxels, inside = (values[::-1] for values in stored[0].volume())
    noise = np.random.default_rng(seed).normal(0, 0.02, voxels.shape)
    prepared = Prepared((voxels + noise * inside).clip(0, 1.5), inside, np.eye(4), inside, np.eye(4), [], [])
    slices._save(prepared, root / "store" / f"{slices._key(mirrored, Recipe())}.safetensors")
    done.touch()


def train_and_calibrate(root: Path, rows: list[CohortScan]) -> None:
    """Train the voxelwise norm on the prepared scans and calibrate it; the two summaries are written last."""
    from UADBenchLib.inference.calibration import calibrate
    from UADBenchLib.training.trainer import train
    from UADBenchLib.writing import write_json

    table = [table_row(row) for row in [*rows, *map(mirrored_row, rows)]]
    cohort = write_cohort(root / "data" / "cohort.csv", table)
    bundle = root / "models" / "intensity-norm-t1w-compact"
    options = {"store": root / "store", "device": "cpu"}
    summary = train("intensity_norm", cohort, contrast="T1w", out=bundle, **options)
    write_json(root / "summary.json", [summary, calibrate(bundle, cohort, **options)])
