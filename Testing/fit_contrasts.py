"""Measure what tissues look like in real scans, for the priors that heads are synthesised with.

T1w: whole heads of IXI with their DLMUSE regions. T2w and FLAIR: scans with all three contrasts on one grid, where
tissue is told by the T1w intensity (three Gaussians) and by an atlas made of the registered DLMUSE regions; voxels of
and around references are left out. All intensities are relative to the white matter of the same scan, so that the
receiver's gain drops out. Writes a table of real and synthesised tissues side by side, prints what age and sex do to
volumes; the constants of ``synthesis.contrasts`` and ``synthesis.cohort`` are read off these.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from UADBenchLib.geometry import canonical, resample
from UADBenchLib.preprocessing.bias_field import correct_bias_field
from UADBenchLib.preprocessing.brain_extraction import find_brain
from UADBenchLib.preprocessing.registration import load_template, register_brain
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.synthesis.anatomy import brain_mask, deform, draw_deformation, read_anatomies, read_anatomy
from UADBenchLib.synthesis.contrasts import draw_look
from UADBenchLib.synthesis.heads import draw_acquisition, render
from UADBenchLib.writing import write_csv

DLMUSE: dict[str, tuple[int, ...]] = {
    "white matter": (*range(81, 89), 91, 92, 94, 95),
    "cortex": tuple(range(100, 208)),
    "csf": (46,),
    "ventricle": (4, 11, 51, 52),
    "thalamus": (59, 60),
    "caudate": (36, 37),
    "putamen": (57, 58),
    "pallidum": (55, 56),
    "limbic": (31, 32, 47, 48),
    "ventral diencephalon": (61, 62),
    "brain stem": (35,),
    "cerebellar white matter": (40, 41),
    "cerebellar cortex": (38, 39, 71, 72, 73),
}
TRIPLES = {
    "kirby21/sub-113": ("", False),
    "ms-ljubljana/sub-patient07": ("space-MNI152_", True),
    "ms-ljubljana/sub-patient26": ("space-MNI152_", True),
    "tumour-auto/sub-GLI00001": ("", True),
    "tumour-auto/sub-TCGADU7294": ("", True),
    "tumour-auto/sub-TCGAFG6692": ("", True),
}
"""Heads with three contrasts on one grid: the middle of their file names, and whether there is a reference."""

AROUND_LESIONS_MM = 12.0


def eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without its rim, or the mask itself where hardly anything would be left."""
    from scipy.ndimage import binary_erosion

    inner = binary_erosion(mask)
    return inner if inner.sum() > 200 else mask


def statistics(voxels: np.ndarray, tissues: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Median and robust spread of each tissue, relative to the median of white matter."""
    white = float(np.median(voxels[tissues["white matter"]]))
    found = {}
    for name, mask in tissues.items():
        values = voxels[mask] / white
        if values.size > 100:
            low, middle, high = np.percentile(values, (16, 50, 84))
            found[name] = (float(middle), float((high - low) / 2))
    return found


def ixi_head(scan_path: Path, data: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Statistics of one IXI head, and its regions on the template's grid."""
    name = scan_path.name.split("_")[0]
    folder = data / "ixi" / "derivatives" / "dlmuse" / name / "anat"
    scan = read_scan(scan_path, "T1w")
    mask = read_mask(folder / f"{name}_desc-brain_mask.nii.gz", scan)
    labels = np.rint(read_scan(folder / f"{name}_desc-dlmuse_dseg.nii.gz", "T1w").voxels).astype(int)
    corrected = correct_bias_field(scan.voxels, scan.affine, mask)
    tissues = {tissue: eroded(np.isin(labels, numbers)) for tissue, numbers in DLMUSE.items()}
    voxels, affine = canonical(corrected, scan.affine)
    inside = canonical(mask, scan.affine)[0]
    found = register_brain(voxels, affine, inside)
    template = load_template(2)
    regions = {
        tissue: resample(
            canonical(np.isin(labels, numbers).astype(np.float32), scan.affine)[0],
            affine, template.voxels.shape, template.affine, order=1, world=found.world,
        )
        for tissue, numbers in DLMUSE.items()
    }  # fmt: skip
    volumes = {t: float(np.isin(labels, n).sum() * scan.voxel_ml) for t, n in DLMUSE.items()}
    return {
        "tissue": statistics(corrected, tissues),
        "ml": {**volumes, "brain mask": float(mask.sum() * scan.voxel_ml)},
    }, regions


def triple(folder: Path, space: str, lesions: bool, atlas: dict[str, np.ndarray]) -> dict[str, dict]:
    """Statistics of T1w, T2w and FLAIR of one head."""
    from scipy.ndimage import distance_transform_edt
    from sklearn.mixture import GaussianMixture

    stem = folder / "anat" / f"{folder.name}_{space}"
    first = read_scan(f"{stem}T1w.nii.gz", "T1w")
    voxels, affine = canonical(first.voxels, first.affine)
    mask = find_brain(voxels, affine).mask
    corrected = correct_bias_field(voxels, affine, mask)
    found = register_brain(corrected, affine, mask)
    template = load_template(2)
    back = np.linalg.inv(found.world)
    prior = {t: resample(p, template.affine, voxels.shape, affine, order=1, world=back) for t, p in atlas.items()}
    usable = mask.copy()
    if lesions:
        reference = canonical(read_mask(f"{stem}label-lesion_mask.nii.gz", first), first.affine)[0]
        usable &= (
            distance_transform_edt(~reference, sampling=np.linalg.norm(affine[:3, :3], axis=0)) > AROUND_LESIONS_MM
        )
    values = corrected[usable][::7, None]
    start = np.percentile(values, (5, 45, 85))[:, None]
    mixture = GaussianMixture(3, means_init=start, random_state=0).fit(values)
    order = np.argsort(mixture.means_[:, 0])
    kind = np.full(voxels.shape, -1)
    kind[usable] = np.argsort(order)[mixture.predict(corrected[usable][:, None])]
    fluid, grey, white = kind == 0, kind == 1, kind == 2
    tissues = {t: eroded(usable & (p > 0.6)) for t, p in prior.items()}
    tissues["white matter"] = eroded(white & (prior["white matter"] > 0.5))
    tissues["cortex"] = grey & (prior["cortex"] > 0.3)
    tissues["ventricle"] = eroded(fluid & (prior["ventricle"] > 0.3))
    tissues["csf"] = fluid & (prior["ventricle"] < 0.05)
    result = {}
    for contrast in ("T1w", "T2w", "FLAIR"):
        scan = read_scan(f"{stem}{contrast}.nii.gz", contrast)
        image = canonical(scan.voxels, scan.affine)[0]
        result[contrast] = statistics(correct_bias_field(image, affine, mask), tissues)
    return result


def pooled(rows: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Mean and spread between scans, and the mean spread within a tissue."""
    together = defaultdict(list)
    for row in rows:
        for tissue, pair in row.items():
            together[tissue].append(pair)
    return {
        tissue: {
            "mean": round(float(np.mean([p[0] for p in pairs])), 4),
            "between": round(float(np.std([p[0] for p in pairs])), 4),
            "within": round(float(np.mean([p[1] for p in pairs])), 4),
            "scans": len(pairs),
        }
        for tissue, pairs in together.items()
    }


def measure_real(data: Path) -> tuple[dict[str, dict[str, dict]], list[dict[str, float]]]:
    """Statistics of tissues by contrast and source, and the tissue volumes of every IXI head."""
    heads = sorted(
        path
        for path in data.glob("ixi/sub-*/anat/*_T1w.nii.gz")
        if list((data / "ixi" / "derivatives" / "dlmuse" / path.name.split("_")[0]).rglob("*_dseg.nii.gz"))
    )
    ixi, volumes, sums = [], [], defaultdict(float)
    for path in heads:
        facts, regions = ixi_head(path, data)
        ixi.append(facts["tissue"])
        volumes.append({"subject": path.name.split("_")[0], **facts["ml"]})
        for tissue, probability in regions.items():
            sums[tissue] = sums[tissue] + probability
    atlas = {tissue: total / len(heads) for tissue, total in sums.items()}
    triples = {name: triple(data / name, *files, atlas) for name, files in TRIPLES.items()}
    healthy = {name: rows for name, rows in triples.items() if name.startswith("kirby21")}
    patients = {name: rows for name, rows in triples.items() if name not in healthy}
    real = {"T1w": {"IXI": pooled(ixi)}}
    for contrast in ("T2w", "FLAIR"):
        real[contrast] = {
            "one healthy head": pooled([rows[contrast] for rows in healthy.values()]),
            "patients": pooled([rows[contrast] for rows in patients.values()]),
        }
    return real, volumes


def measure_synthetic(maps: Path, count: int = 6) -> dict[str, dict[str, dict]]:
    """The same statistics of synthesised heads, corrected and eroded like the real ones."""
    rows = defaultdict(list)
    for number, path in enumerate(read_anatomies(maps)[:count]):
        for contrast in ("T1w", "T2w", "FLAIR"):
            rng = np.random.default_rng((number, len(rows)))
            head = deform(read_anatomy(path), draw_deformation(rng))
            acquisition = replace(draw_acquisition(rng, defaced=0.0), cut_mm=500.0)
            voxels, affine = render(head, draw_look(contrast, rng), acquisition)
            corrected = correct_bias_field(voxels, affine, brain_mask(head))
            rows[contrast].append(statistics(corrected, {t: eroded(head.of(t)) for t in DLMUSE}))
    return {contrast: {"synthesised": pooled(found)} for contrast, found in rows.items()}


def print_ages(volumes: list[dict[str, float]], participants: Path) -> None:
    """Print what age and sex do to the volumes: the constants of ``synthesis.cohort``."""
    with participants.open(encoding="utf-8") as stream:
        people = {row["participant_id"]: row for row in csv.DictReader(stream, delimiter="\t")}
    known = [row for row in volumes if people[row["subject"]]["age"] not in ("", "n/a")]
    age = np.array([float(people[row["subject"]]["age"]) for row in known])
    share = np.log([row["ventricle"] / row["brain mask"] for row in known])
    slope, start = np.polyfit(age, share, 1)
    rest = float(np.std(share - start - slope * age))
    sys.stdout.write(f"log ventricle share: {start:.3f} + {slope:.4f} a year, spread {rest:.2f} ({len(known)} heads)\n")
    cortex = np.polyfit(age, [row["cortex"] / row["brain mask"] for row in known], 1)
    sys.stdout.write(f"cortex share: {np.polyval(cortex, 20):.3f} at 20, {np.polyval(cortex, 90):.3f} at 90 years\n")
    mean = {s: np.mean([r["brain mask"] for r in volumes if people[r["subject"]]["sex"] == s]) for s in "FM"}
    sys.stdout.write(f"linear size, female against male: {(mean['F'] / mean['M']) ** (1 / 3):.3f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with ixi, kirby21, ms-ljubljana, tumour-auto")
    parser.add_argument("--maps", type=Path, required=True, help="whole-head label maps")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/tissue_contrast.csv"))
    given = parser.parse_args()
    real, volumes = measure_real(given.data)
    print_ages(volumes, given.data / "ixi" / "participants.tsv")
    synthetic = measure_synthetic(given.maps)
    rows = [
        {"contrast": contrast, "source": source, "tissue": tissue, **values}
        for contrast in real
        for source, tissues in (real[contrast] | synthetic[contrast]).items()
        for tissue, values in tissues.items()
    ]
    write_csv(given.out, rows, list(rows[0]))


if __name__ == "__main__":
    main()
