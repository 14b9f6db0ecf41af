"""Pictures of the Slicer module's results for the documentation, rendered from the scene without the application.

    python Testing/pictures_scene.py --scan SCAN --results RESULTS --reference MASK --out docs/figures

``RESULTS`` is what ``uadbench detect SCAN --reference MASK --out RESULTS`` wrote. The files become nodes as a
detection's result does in Slicer; slices are composed by Slicer's own slice logic with the module's colours, threshold
and outlines. Run in the environment of the scene tests.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "UADBench"), str(ROOT / "Testing" / "scene")]
ORIENTATIONS = ("Axial", "Coronal", "Sagittal")


def load(scene, path: Path, kind: str):
    """Read a volume as the application does."""
    node = scene.mrml.AddNewNodeByClass(f"vtkMRML{kind}Node", path.name.partition(".")[0])
    storage = scene.mrml.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        raise OSError(f"{path} cannot be read")
    return node


def result_of(scene, scan, folder: Path, summary: dict):
    """Return the files of one model as a result on the scan's own voxels."""
    from UADBenchScene import results, volumes

    stem = f"{summary['scan']}_model-{summary['model']}"
    anomaly = load(scene, folder / f"{stem}_anomaly.nii.gz", "ScalarVolume")
    mask = load(scene, folder / f"{stem}_label-anomaly_mask.nii.gz", "LabelMapVolume")
    with (folder / f"{stem}_findings.csv").open(encoding="utf-8") as stream:
        rows = [{k: convert(k, v) for k, v in row.items() if v != ""} for row in csv.DictReader(stream)]
    found = results.Result(
        summary["model"],
        volumes.read_volume(anomaly)[0],
        volumes.read_mask(mask, scan)[0],
        volumes.world_affine(scan),
        summary["threshold"],
        summary["operating_point"],
        summary["threshold_origin"],
        rows,
    )
    for node in (anomaly, mask):
        scene.mrml.RemoveNode(node)
    return results.add_result(scan, found)


def convert(key: str, value: str):
    """Return a field of the findings table as what it is."""
    return value if key in ("region", "status") else (int(value) if key == "index" else float(value))


def slices(scene, nodes, place) -> np.ndarray:
    """Return three slices through a place, side by side."""
    from picture import slice_picture

    return np.concatenate(
        [slice_picture(scene, nodes, name, place, field_mm=200.0)[0] for name in ORIENTATIONS], axis=1
    )


def main(words: list[str]) -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Render the results of a detection as the Slicer module shows them.")
    for name in ("--scan", "--results", "--reference", "--out"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args(words)
    from conftest import Scene
    from UADBenchScene import comparison, findings, pictures, results, volumes

    scene = Scene()
    scan = load(scene, arguments.scan, "ScalarVolume")
    scan.CreateDefaultDisplayNodes()
    scan.GetDisplayNode().AutoWindowLevelOff()
    high = float(np.percentile(volumes.read_volume(scan)[0], 99.8))
    scan.GetDisplayNode().SetWindowLevelMinMax(0.0, high)
    reference = volumes.read_mask(load(scene, arguments.reference, "LabelMapVolume"), scan)[0]
    files = sorted(arguments.results.glob("*_model-*.json"))
    nodes = result_of(scene, scan, arguments.results, json.loads(files[0].read_text(encoding="utf-8")))
    rows = findings.rows_of(nodes.findings)
    shown = max(range(len(rows)), key=lambda number: (rows[number]["status"] == "TP", rows[number]["volume_ml"]))
    place = findings.place_of(nodes.findings, shown)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures.write_png(slices(scene, nodes, place), arguments.out / "slicer-map.png")
    pictures.write_png(pictures.picture_of(nodes.map, shown), arguments.out / "slicer-finding.png")
    mask = results.mask_of(nodes.segmentation, scan)
    nodes.segmentation = comparison.show_agreement(nodes.map, mask, reference)
    nodes.map.GetDisplayNode().SetThreshold(1e29, 1e30)
    pictures.write_png(slices(scene, nodes, place), arguments.out / "slicer-agreement.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
