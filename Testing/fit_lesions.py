"""Compute the statistics of real lesions that synthetic ones follow, and compare the two.

``python Testing/fit_lesions.py --masks DIR`` reads binary masks in MNI152 space from ``DIR/ms`` and ``DIR/stroke``
(``*.nii.gz``), writes ``lesion_places.safetensors`` (maps of 4 mm) and ``lesion_places.json`` (numbers) into
``Resources/Synthesis``, draws as many synthetic lesions in the template brain, and prints real against generated.
``--compare-only`` leaves the files as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from UADBenchLib.geometry import resample
from UADBenchLib.synthesis.insertion import apply_lesion
from UADBenchLib.synthesis.lesions import bounding_box, draw_lesion
from UADBenchLib.synthesis.places import PLACES, load_places
from UADBenchLib.synthesis.tissue import TissueMaps, tissue_of_template
from UADBenchLib.writing import atomic, write_csv, write_json

ROOT = Path(__file__).resolve().parent.parent
SHAPE, EDGE_MM = (40, 48, 42), 4.0
AFFINE = np.array([[4.0, 0, 0, -78], [0, 4.0, 0, -114], [0, 0, 4.0, -78], [0, 0, 0, 1]])
TERRITORIES = 14
SMALLEST_ML = 0.005
"""Components below it are crumbs of the resampling to MNI space and are not counted."""
SHAPED_ML = 0.1
"""Shapes are measured from this volume on."""
QUANTILES = np.array([*np.round(np.linspace(0, 0.95, 20), 2), 0.975, 0.99, 0.995, 1.0])
SOURCES = {
    "ms": {
        "name": "3D MR image database of multiple sclerosis patients with white matter lesion segmentations",
        "reference": "Lesjak et al., Neuroinformatics 2018",
        "licence": "CC BY 4.0",
    },
    "stroke": {
        "name": "Acute stroke lesion masks in MNI152 space",
        "licence": "BSD-2-Clause",
    },
}


def components(mask: np.ndarray, voxel_ml: float) -> list[dict[str, float]]:
    """Volume, and from ``SHAPED_ML`` on elongation and roundness, of every component, the largest first.

    Elongation is the root of the ratio of the two largest principal moments, roundness the surface of the ball of the
    same volume over the component's surface (1 for a ball).
    """
    import SimpleITK as sitk

    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    image = sitk.GetImageFromArray(labels.astype(np.uint32).T)
    image.SetSpacing((float(np.cbrt(voxel_ml * 1000)),) * 3)
    measured = sitk.LabelShapeStatisticsImageFilter()
    measured.ComputePerimeterOn()
    measured.Execute(image)
    found = []
    for number in measured.GetLabels():
        part = {"volume_ml": measured.GetPhysicalSize(number) / 1000}
        if part["volume_ml"] >= SHAPED_ML:
            smallest, middle, largest = sorted(measured.GetPrincipalMoments(number))
            part["elongation"] = float(np.sqrt(largest / max(middle, 1e-6)))
            part["flatness"] = float(np.sqrt(middle / max(smallest, 1e-6)))
            part["roundness"] = float(measured.GetRoundness(number))
        if part["volume_ml"] >= SMALLEST_ML:
            found.append(part)
    return sorted(found, key=lambda part: -part["volume_ml"])


class Group:
    """The subjects of one kind: components, 4 mm maps, and places relative to the template's tissue."""

    def __init__(self, masks: Iterator[tuple[np.ndarray, np.ndarray]], tissue: TissueMaps) -> None:
        self.subjects: list[list[dict[str, float]]] = []
        self.maps: list[np.ndarray] = []
        self.centres = np.zeros(SHAPE)
        self.tissue: list[tuple[float, float]] = []  # share of white matter, distance to the ventricles in mm
        distance = ndimage.distance_transform_edt(~tissue.ventricles, sampling=tissue.voxel_mm)
        for mask, affine in map(cropped, masks):
            self.subjects.append(components(mask, abs(np.linalg.det(affine[:3, :3])) / 1000))
            self.maps.append(resample(mask.astype(np.float32), affine, SHAPE, AFFINE, order=1, antialias=True))
            np.add.at(self.centres, tuple(self._centres(mask, affine)), 1)
            place = np.linalg.solve(tissue.affine, affine)
            index = np.round(place[:3, :3] @ np.argwhere(mask).T + place[:3, 3:]).astype(int)
            index = tuple(index[:, ((index >= 0) & (index < np.array(distance.shape)[:, None])).all(axis=0)])
            self.tissue.append((float(tissue.white[index].mean()), float(np.median(distance[index]))))

    @staticmethod
    def _centres(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Indices (3, N) in the 4 mm grid of the components' centres."""
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        middle = np.array(ndimage.center_of_mass(mask, labels, range(1, count + 1)))
        index = np.round((np.linalg.solve(AFFINE, affine) @ np.c_[middle, np.ones(count)].T)[:3]).astype(int)
        return index[:, ((index >= 0) & (index < np.array(SHAPE)[:, None])).all(axis=0)]

    def values(self, name: str) -> np.ndarray:
        """One measurement of all components that have it."""
        return np.array([part[name] for parts in self.subjects for part in parts if name in part])

    def volumes(self) -> np.ndarray:
        """Volume of each subject, ml."""
        return np.array([sum(part["volume_ml"] for part in parts) for parts in self.subjects])

    def counts(self) -> np.ndarray:
        """Components of each subject."""
        return np.array([len(parts) for parts in self.subjects])

    def largest(self) -> np.ndarray:
        """Share of the volume that the largest component of each subject with several holds."""
        return np.array([p[0]["volume_ml"] / sum(x["volume_ml"] for x in p) for p in self.subjects if len(p) > 1])


def cropped(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A mask cut to what it holds, and its affine."""
    mask, affine = pair
    box = bounding_box(mask, margin=6)
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return mask[box], affine


def read_masks(folder: Path, left_out: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks of a folder with their affines; files whose names hold a word of ``left_out`` are passed over."""
    for file in sorted(folder.glob("*.nii.gz")):
        if not any(word in file.name for word in left_out):
            image = nibabel.load(file)
            yield np.asarray(image.dataobj) > 0.5, image.affine


def symmetric(values: np.ndarray) -> np.ndarray:
    """The mean of a map and its mirror image: the sides of the brain are taken to be alike."""
    mirrored = resample(values.astype(np.float32), AFFINE, SHAPE, AFFINE, order=1, world=np.diag([-1.0, 1, 1, 1]))
    return (values + mirrored) / 2


def territories(group: Group, volumes: np.ndarray) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Parts that make up the strokes and their mirror images, by non-negative matrix factorisation, as in Bonkhoff et
    al. (Brain 2021), with how often each leads and how large the strokes are that it leads."""
    from sklearn.decomposition import NMF

    mirrored = [symmetric(values) * 2 - values for values in group.maps]
    rows = np.array([ndimage.gaussian_filter(v, 0.6).ravel() for v in (*group.maps, *mirrored)]).clip(0)
    rows = rows / np.sqrt(rows.sum(axis=1, keepdims=True) + 1e-6)  # small strokes count beside large ones
    model = NMF(TERRITORIES, init="nndsvda", random_state=0, max_iter=600)
    shares = model.fit_transform(rows) * model.components_.sum(axis=1)
    parts = model.components_ / model.components_.max(axis=1, keepdims=True)
    leader, twice, numbers = shares.argmax(axis=1), np.log(np.tile(volumes, 2)), []
    for part in range(TERRITORIES):
        own = twice[leader == part]
        numbers.append(
            {
                "frequency": short(len(own) / len(leader)),
                "log_volume_mean": short(own.mean()) if len(own) else 0.0,
                "log_volume_sd": short(max(own.std(), 0.5)) if len(own) else 1.0,
            }
        )
    return parts.reshape(TERRITORIES, *SHAPE), numbers


def short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def quantiles(values: np.ndarray) -> list[float]:
    """``QUANTILES`` of the values, four digits."""
    return [short(value) for value in np.quantile(values, QUANTILES)]


def numbers_of(group: Group) -> dict[str, Any]:
    """What is drawn from: volumes and counts of subjects, volumes and elongation of components."""
    volumes, counts = np.log(group.volumes()), np.log(group.counts())
    slope, start = np.polyfit(volumes, counts, 1)
    return {
        "subjects": len(group.subjects),
        "volume_ml": quantiles(group.volumes()),
        "others_ml": quantiles(np.array([part["volume_ml"] for parts in group.subjects for part in parts[1:]])),
        "log_count": {
            "slope": short(slope),
            "at_1_ml": short(start),
            "sd": short((counts - slope * volumes - start).std()),
        },
        "largest_share": quantiles(group.largest()),
        "elongation": quantiles(group.values("elongation")),
    }


def fit(real: dict[str, Group], left_out: list[str], out: Path) -> None:
    """Write maps and numbers."""
    from safetensors.numpy import save_file

    parts, leading = territories(real["stroke"], real["stroke"].volumes())
    maps = {
        "ms_voxels": symmetric(ndimage.gaussian_filter(np.sum(real["ms"].maps, axis=0), 0.7)),
        "ms_centres": symmetric(ndimage.gaussian_filter(real["ms"].centres, 1.0)),
        "stroke_territories": parts,
    }
    # safetensors writes memory as it lies, whatever the strides
    stored = {n: np.round(255 * v.clip(0) / v.max()).astype(np.uint8, order="C") for n, v in maps.items()}
    with atomic(out / f"{PLACES}.safetensors") as partial:
        save_file({**stored, "affine": AFFINE.astype(np.float32)}, partial)
    numbers = {kind: {"source": SOURCES[kind], **numbers_of(group)} for kind, group in real.items()}
    numbers["stroke"]["territories"] = leading
    write_json(out / f"{PLACES}.json", {"quantiles": QUANTILES.tolist(), "left_out": left_out, **numbers})
    load_places.cache_clear()


def generate(kind: str, subjects: int, tissue: TissueMaps, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks of synthetic lesions in the template brain."""
    for number in range(subjects):
        lesion = draw_lesion(kind, tissue, np.random.default_rng((seed, number)))
        yield apply_lesion({}, tissue, lesion).mask, tissue.affine


def comparison(kind: str, real: Group, made: Group) -> list[dict[str, Any]]:
    """Rows of real against generated: medians with the 10th and 90th percentile, and the agreement of places."""

    def row(name: str, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
        text = ["{1:.3g} ({0:.3g}, {2:.3g})".format(*np.percentile(v, (10, 50, 90))) for v in (first, second)]
        return {"kind": kind, "measure": name, "real": text[0], "generated": text[1]}

    large = [[v for v, m in zip(g.values("roundness"), g.values("volume_ml")[g.values("volume_ml") >= SHAPED_ML],
                                strict=False) if m >= 5] for g in (real, made)]  # fmt: skip
    rows = [
        row("volume of a subject, ml", real.volumes(), made.volumes()),
        row("components of a subject", real.counts(), made.counts()),
        row("volume of a component, ml", real.values("volume_ml"), made.values("volume_ml")),
        row("share of the largest component", real.largest(), made.largest()),
        row(f"elongation from {SHAPED_ML} ml", real.values("elongation"), made.values("elongation")),
        row(f"flatness from {SHAPED_ML} ml", real.values("flatness"), made.values("flatness")),
        row(f"roundness from {SHAPED_ML} ml", real.values("roundness"), made.values("roundness")),
        *([row("roundness from 5 ml", *map(np.array, large))] if all(large) else []),
        row("white matter in the lesion, share", *(np.array(g.tissue)[:, 0] for g in (real, made))),
        row("distance to the lateral ventricles, mm", *(np.array(g.tissue)[:, 1] for g in (real, made))),
    ]
    maps = [symmetric(ndimage.gaussian_filter(np.sum(g.maps, axis=0), 1.0)).ravel() for g in (real, made)]
    either = maps[0] + maps[1] > 1e-3
    agreement = float(np.corrcoef(maps[0][either], maps[1][either])[0, 1])
    return [
        *rows,
        {"kind": kind, "measure": "correlation of the 4 mm maps", "real": "1", "generated": f"{agreement:.2f}"},
    ]


def main() -> None:
    """Fit, generate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True, help="folder with ms/ and stroke/")
    parser.add_argument("--out", type=Path, default=ROOT / "Resources" / "Synthesis")
    parser.add_argument("--leave-out", nargs="*", default=[], help="words in the names of files to pass over")
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--table", type=Path, help="write the comparison as CSV")
    parser.add_argument("--subjects", type=int, help="synthetic subjects of each kind; as many as real ones by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fine, coarse = tissue_of_template(1), tissue_of_template(2)
    real = {kind: Group(read_masks(options.masks / kind, options.leave_out), coarse) for kind in ("ms", "stroke")}
    if not options.compare_only:
        fit(real, options.leave_out, options.out)
    rows = []
    for kind, group in real.items():
        made = Group(generate(kind, options.subjects or len(group.subjects), fine, options.seed), coarse)
        rows += comparison(kind, group, made)
    for row in rows:
        print("{kind:7} {measure:42} {real:28} {generated}".format(**row))
    if options.table:
        write_csv(options.table, rows, rows[0])


if __name__ == "__main__":
    main()
