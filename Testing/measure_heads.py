"""Measure what is done with heads, and write the tables that README, docs and cards quote.

``brain_mask.csv``: Dice of the brain mask in T1w heads not trained on, as they are, with the vertex cut off by the
field of view, and turned; and in heads synthesised from the label maps that were held out. ``contrast.csv``: which
contrast was found in every scan of a folder, and in synthesised ones. ``round_trip.csv``: Dice of real lesions of 1 ml
and more that were carried to model space and back, on the grid for masks and on the models' own.
``heads_seconds.csv``: seconds of every stage from a raw head to prepared slices.
``heads.png``: one synthesised head in three contrasts, and the four kinds of lesion.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import label
from scipy.spatial.transform import Rotation

from UADBenchLib.cohort import read_cohort, select
from UADBenchLib.errors import InputError
from UADBenchLib.geometry import canonical, resample
from UADBenchLib.parallel import map_processes
from UADBenchLib.preprocessing.brain_extraction import find_brain
from UADBenchLib.preprocessing.contrast import find_contrast
from UADBenchLib.preprocessing.recipe import Prepared, Recipe, prepare
from UADBenchLib.reading import contrast_from_name, read_mask, read_scan
from UADBenchLib.scan import CONTRASTS, Scan
from UADBenchLib.synthesis.anatomy import brain_mask, deform, draw_deformation, read_anatomies, read_anatomy
from UADBenchLib.synthesis.cohort import to_template
from UADBenchLib.synthesis.contrasts import draw_look
from UADBenchLib.synthesis.heads import Acquisition, acquire, draw_acquisition, paint, reference_on, render
from UADBenchLib.synthesis.insertion import apply_lesion
from UADBenchLib.synthesis.lesions import KINDS, draw_lesion
from UADBenchLib.synthesis.tissue import tissue_from_anatomy
from UADBenchLib.training.brain_extraction import HELD_OUT, whole_heads
from UADBenchLib.training.slices import build_store, default_store
from UADBenchLib.writing import atomic, write_csv

ROOT = Path(__file__).resolve().parent.parent
LEAST_ML = 1.0
"""Lesions below are not carried to model space and back."""
CUT_MM = 10.0
"""How far below the top of the brain a field of view ends that cuts the vertex."""
TURNED = 30.0 / 3**0.5 * np.array([1.0, -1.0, 1.0])
"""What a turned head is turned by: 30 degrees about an axis that is askew to R, A and S."""
SYNTHETIC = 60
"""Heads synthesised to tell contrasts apart; a third each."""


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two boolean masks."""
    return float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))


def synthetic_head(maps: Path, number: int, seed: int = 7) -> tuple[Scan, np.ndarray]:
    """A scan of a head from one of the label maps that were held out, contrasts in turn, and its brain mask."""
    paths = read_anatomies(maps)[-HELD_OUT:]
    rng = np.random.default_rng((seed, number))
    contrast = CONTRASTS[number % len(CONTRASTS)]
    head = deform(read_anatomy(paths[number // len(CONTRASTS) % len(paths)]), draw_deformation(rng))
    acquisition = draw_acquisition(rng, voxel_mm=(1.0, 1.0, float(rng.choice([1.0, 1.0, 3.0, 5.0]))))
    voxels, affine = render(head, draw_look(contrast, rng), acquisition)
    scan = Scan(voxels, affine, f"synthetic-{number:02d}", contrast)
    return scan, reference_on(brain_mask(head), head, voxels.shape, affine)


def vertex_cut(scan: Scan, mask: np.ndarray) -> tuple[Scan, np.ndarray]:
    """The scan and its brain mask with a field of view that ends ``CUT_MM`` below the top of the brain."""
    voxels, affine = canonical(scan.voxels, scan.affine)
    mask = canonical(mask, scan.affine)[0]
    levels = int(np.flatnonzero(mask.any(axis=(0, 1)))[-1] + 1 - CUT_MM / np.linalg.norm(affine[:3, 2]))
    return replace(scan, voxels=voxels[:, :, :levels], affine=affine), mask[:, :, :levels]


def turned(scan: Scan, mask: np.ndarray) -> tuple[Scan, np.ndarray]:
    """The scan and its brain mask turned by ``TURNED`` about the middle of its grid, on voxels of 1.2 mm."""
    middle = (scan.affine @ [*((np.array(scan.shape) - 1) / 2), 1.0])[:3]
    world, affine, shape = np.eye(4), np.diag([1.2, 1.2, 1.2, 1.0]), (220, 220, 220)
    world[:3, :3] = Rotation.from_rotvec(TURNED, degrees=True).as_matrix()
    world[:3, 3] = middle - world[:3, :3] @ middle
    affine[:3, 3] = middle - 1.2 * (np.array(shape) - 1) / 2
    voxels, share = (
        resample(values.astype(np.float32), scan.affine, shape, affine, order=1, world=world, antialias=True)
        for values in (scan.voxels, mask)
    )
    return replace(scan, voxels=voxels, affine=affine), share >= 0.5


def mask_row(scan: Scan, truth: np.ndarray, source: str, view: str = "whole") -> dict[str, object]:
    """Dice, volumes and seconds of the brain mask of one scan."""
    voxels, affine = canonical(scan.voxels, scan.affine)
    started = time.perf_counter()
    found = find_brain(voxels, affine)
    seconds = time.perf_counter() - started
    truth = canonical(truth, scan.affine)[0]
    return {
        "source": source,
        "scan": scan.stem,
        "contrast": scan.contrast,
        "view": view,
        "dice": round(dice(found.mask, truth), 4),
        "mask_ml": round(float(found.mask.sum() * scan.voxel_ml), 1),
        "reference_ml": round(float(truth.sum() * scan.voxel_ml), 1),
        "seconds": round(seconds, 2),
        "found_by": found.source,
        "checks": " ".join(check.code for check in found.checks),
    }


def mask_rows(data: Path, maps: Path) -> list[dict[str, object]]:
    """Brain masks of the whole heads of split ``test``, as they are, cut and turned, and of synthesised heads."""
    rows = []
    for entry in whole_heads(select(read_cohort(ROOT / "Resources" / "Splits" / "t1w.csv", data), split="test")):
        scan = read_scan(entry.scan, entry.contrast)
        mask = read_mask(entry.brain_mask, scan)
        rows.append(mask_row(scan, mask, entry.site))
        rows.append(mask_row(*vertex_cut(scan, mask), entry.site, "vertex cut"))
        rows.append(mask_row(*turned(scan, mask), entry.site, "turned"))
    rows.sort(key=lambda row: ("whole", "vertex cut", "turned").index(str(row["view"])))
    rows += [mask_row(*synthetic_head(maps, number), "synthetic") for number in range(12)]
    return rows


def seconds_rows(data: Path, maps: Path) -> list[dict[str, object]]:
    """Seconds of every stage for two synthesised heads of 1 mm, of which the second is turned, and for the raw heads of
    the data folder. The first one's hold what is loaded once."""
    scans = [synthetic_head(maps, number)[0] for number in (1, 4)]
    for path in sorted(data.glob("heads/*/anat/*_*.nii.gz")) + sorted(
        data.glob("ms-ljubljana/sub-patient12/ses-1/anat/*.nii.gz")
    ):
        if contrast_from_name(path):
            scans.append(read_scan(path))
    rows = []
    for scan in scans:
        prepared = prepare(scan)
        size = " x ".join(f"{edge:.2g}" for edge in scan.voxel_mm)
        total = round(sum(prepared.seconds.values()), 1)
        rows.append({"scan": scan.stem, "voxel_mm": size, **prepared.seconds, "total": total})
    return rows


def round_trip_rows(data: Path) -> list[dict[str, object]]:
    """Dice of every real lesion of ``LEAST_ML`` and more that is carried to model space and back, by kind and grid.

    The masks lie on 1 mm grids; the way to the template is oblique, so that no grid agrees with another.
    """
    recipe, rows = Recipe(), []
    turn = Rotation.from_euler("xyz", (9, -6, 13), degrees=True).as_matrix()
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = 1.04 * turn, (3.3, -4.1, 2.7)
    empty = np.zeros(recipe.shape, dtype=np.float32)
    for kind in ("ms", "stroke"):
        found: dict[str, list[float]] = {"masks": [], "models": []}
        for path in sorted((data / "lesion-masks" / kind).glob("*.nii.gz")):
            scan = read_scan(path)
            labels, count = label(scan.voxels > 0, np.ones((3, 3, 3)))
            volumes = np.bincount(labels.ravel())[1:] * scan.voxel_ml
            everywhere = np.ones(scan.shape, dtype=bool)
            prepared = Prepared(empty, empty > 0, recipe.affine, everywhere, world, [], [])
            for number in np.flatnonzero(volumes >= LEAST_ML) + 1:
                lesion = labels == number
                back = prepared.to_native(prepared.to_model(lesion.astype(np.float32), scan), scan) > 0.5
                found["models"].append(dice(back, lesion))
                found["masks"].append(dice(prepared.mask_to_native(prepared.mask_to_model(lesion, scan), scan), lesion))
        for grid, dices in found.items():
            values = np.array(dices)
            row = {"lesions": kind, "grid": grid, "n": len(values), "mean_dice": round(float(values.mean()), 3)}
            lowest, share = round(float(values.min()), 3), round(float((values >= 0.9).mean()), 3)
            rows.append(row | {"lowest_dice": lowest, "share_from_0.9": share})
    return rows


def contrast_rows(data: Path, maps: Path, workers: int) -> list[dict[str, object]]:
    """Contrast found in every scan below the data folder whose name states one, and in synthesised heads.

    Scans of the T1w cohort are taken as they were prepared for training and calibration, with their given masks.
    """
    cohort = read_cohort(ROOT / "Resources" / "Splits" / "t1w.csv", data)
    stored, _ = build_store(cohort, default_store(), Recipe(), workers=workers)
    rows = [_found(one.row.scan, one.row.contrast, *one.volume(), data) for one in stored]
    known = {one.row.scan.resolve() for one in stored}
    paths = [path for path in sorted(data.glob("*/sub-*/**/*.nii.gz")) if contrast_from_name(path)]
    tasks: list[tuple] = [(path.parts[len(data.parts)], path) for path in paths if path.resolve() not in known]
    tasks += [("synthetic", maps, number) for number in range(SYNTHETIC)]
    return rows + list(map_processes(_contrast_row, tasks, workers))


def _found(path: Path, contrast: str, voxels: np.ndarray, mask: np.ndarray, data: Path) -> dict[str, object]:
    """The row of a scan that was prepared already."""
    found = find_contrast(voxels, mask, Recipe().tissues)
    row = {"source": path.parts[len(data.parts)], "scan": path.name, "contrast": contrast}
    return {**row, "found": found.contrast, "csf": found.csf, "grey": found.grey, "white": found.white}


def _contrast_row(task: tuple) -> dict[str, object]:
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    scan = read_scan(task[1]) if len(task) == 2 else synthetic_head(task[1], task[2])[0]
    row = {"source": task[0], "scan": scan.stem, "contrast": scan.contrast}
    try:
        found = prepare(replace(scan, contrast=None)).contrast
        return {**row, "found": found.contrast, "csf": found.csf, "grey": found.grey, "white": found.white}
    except InputError as error:
        return {**row, "found": error.code, "csf": None, "grey": None, "white": None}


def confusion(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Counts by source, contrast and what was found."""
    counts = Counter((str(row["source"]), str(row["contrast"]), str(row["found"])) for row in rows)
    return [
        {"source": source, "contrast": contrast, "found": found, "scans": count}
        for (source, contrast, found), count in sorted(counts.items())
    ]


def picture(maps: Path, out: Path, seed: int = 3) -> None:
    """One synthesised head in three contrasts, and the four kinds of lesion with their references, as a PNG."""
    from matplotlib.figure import Figure

    rng = np.random.default_rng(seed)
    head = deform(read_anatomy(read_anatomies(maps)[-HELD_OUT]), draw_deformation(rng))
    tissue = tissue_from_anatomy(head, to_template(head))
    painted = {contrast: paint(head, draw_look(contrast, rng), seed) for contrast in CONTRASTS}
    rows = [("healthy", painted, np.zeros(head.classes.shape, dtype=bool))]
    for kind in KINDS:
        volume = {"tumour": 40.0, "stroke": 30.0, "ms": 8.0, "wmh": 15.0}[kind]
        done = apply_lesion(painted, tissue, draw_lesion(kind, tissue, rng, volume_ml=volume))
        rows.append((kind, done.images, done.mask))
    acquisition = Acquisition(noise=0.03, bias=0.1, cut_mm=60.0)
    figure = Figure(figsize=(10.5, 3.1 * len(rows)), facecolor="black")
    axes = figure.subplots(len(rows), 4)
    for line, (title, images, mask) in zip(axes, rows, strict=True):
        level = int(mask.sum(axis=(0, 1)).argmax()) if mask.any() else _middle(brain_mask(head))
        for axis, contrast in zip(line, CONTRASTS, strict=False):
            voxels, affine = acquire(images[contrast], head, acquisition)
            offset = round((affine[2, 3] - head.affine[2, 3]) / head.voxel_mm[2])
            window = {"origin": "lower", "cmap": "gray", "vmin": 0, "vmax": np.percentile(voxels, 99.8)}
            axis.imshow(voxels[:, :, level - offset].T, **window)
            axis.set_title(f"{title}, {contrast}", color="white", fontsize=9)
        outline = mask if mask.any() else brain_mask(head)
        line[3].imshow(voxels[:, :, level - offset].T, **window)
        line[3].contour(outline[:, :, level].T, [0.5], colors="tab:orange", linewidths=1.0)
        line[3].set_title("reference" if mask.any() else "brain mask", color="white", fontsize=9)
        for axis in line:
            axis.set_axis_off()
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, wspace=0.02, hspace=0.1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as temporary:
        figure.savefig(temporary, dpi=75, facecolor="black")


def _middle(mask: np.ndarray) -> int:
    """A level through the ventricles: a little above the middle of the brain."""
    levels = np.flatnonzero(mask.any(axis=(0, 1)))
    return int(levels[0] + 0.56 * len(levels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that the cohort table's paths start from")
    parser.add_argument("--maps", type=Path, required=True, help="whole-head label maps")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--workers", type=int, default=2, help="processes for the contrast table")
    given = parser.parse_args()
    for name, rows in (
        ("brain_mask", mask_rows(given.data, given.maps)),
        ("heads_seconds", seconds_rows(given.data, given.maps)),
        ("round_trip", round_trip_rows(given.data)),
    ):
        write_csv(given.out / f"{name}.csv", rows, list(rows[0]))
    found = contrast_rows(given.data, given.maps, given.workers)
    write_csv(given.out / "contrast.csv", confusion(found), ("source", "contrast", "found", "scans"))
    for row in (row for row in found if row["contrast"] != row["found"]):
        sys.stdout.write(f"taken for another: {row}\n")
    picture(given.maps, given.out / "heads.png")


if __name__ == "__main__":
    main()
