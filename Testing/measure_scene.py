"""What the scene code takes on a map of 256 x 256 x 256 voxels: the threshold slider, new findings, and 20 detections.

    python Testing/measure_scene.py --out docs/figures/scene.csv

Run in the environment of the scene tests (slicer-core). Times are medians and the slowest of several, and the median of
the processor's own time, which does not depend on what else runs. The memory is what the process
holds (resident set) after so many results of 128 x 128 x 128 voxels, each removed again. The update of the findings is
that of the nodes; the worker's part of it is measured where its packages are.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "UADBench"), str(ROOT / "Testing" / "scene")]
EDGE, SMALL_EDGE = 256, 128
COLUMNS = ("what", "median_ms", "longest_ms", "processor_ms", "repeats", "megabytes")


def milliseconds(action: Callable[[float], object], values: list[float]) -> tuple[float, float, float]:
    """Return median and longest time of an action over some values, and the median of the processor's time."""
    taken, computed = [], []
    for value in values:
        started, busy = time.perf_counter(), time.process_time()
        action(value)
        taken.append(1000 * (time.perf_counter() - started))
        computed.append(1000 * (time.process_time() - busy))
    return statistics.median(taken), max(taken), statistics.median(computed)


def megabytes() -> float:
    """Return what this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def case(scene, edge: int):
    """Return a volume of 1 mm voxels with so many along each edge, and a result with 40 findings."""
    import phantom
    from UADBenchScene.results import Result

    shape = (edge, edge, edge)
    affine = phantom.affine_of(spacing=(1.0, 1.0, 1.0), degrees=(5, 8, -4), shape=shape)
    generator = np.random.default_rng(0)
    anomaly = generator.random(shape, dtype=np.float32)
    centres = generator.integers(edge // 8, edge - edge // 8, (40, 3))
    peaks = np.sort(generator.uniform(4, 12, 40))[::-1]
    for centre, peak in zip(centres, peaks, strict=True):
        box = tuple(slice(c - 9, c + 10) for c in centre)
        anomaly[box] = np.maximum(anomaly[box], phantom.blob((19, 19, 19), (9, 9, 9), 9.0, peak))
    scan = scene.volume(500 + 50 * generator.random(shape, dtype=np.float32), affine, name="scan_T1w")

    def result(threshold: float) -> Result:
        rows = [row(n, c, p, affine) for n, (c, p) in enumerate(zip(centres, peaks, strict=True), 1) if p >= threshold]
        return Result("model", anomaly, (anomaly > threshold).astype(np.uint8), affine, threshold, findings=rows)

    return scan, result


def row(number: int, centre: np.ndarray, peak: float, affine: np.ndarray) -> dict:
    """Return a row of the findings table."""
    place = affine @ np.array([*centre, 1.0])
    found = {"index": number, "volume_ml": 1.0, "peak_z": float(peak), "mean_z": 4.0, "region": "", "status": ""}
    return found | {f"{w}_{axis}": float(place[k]) for w in ("centroid", "peak") for k, axis in enumerate("ras")}


def measure() -> list[dict]:
    """Return the rows of the table."""
    from conftest import Scene
    from UADBenchScene import findings, preview, results, volumes

    scene = Scene()
    scan, result = case(scene, EDGE)
    rows = []

    def note(what: str, action: Callable[[float], object], values: list[float]) -> None:
        median, longest, computed = milliseconds(action, values)
        entry = {"what": what, "median_ms": f"{median:.1f}", "longest_ms": f"{longest:.1f}"}
        rows.append(entry | {"processor_ms": f"{computed:.1f}", "repeats": len(values)})

    nodes = results.add_result(scan, result(3.0))
    drag = preview.Preview(nodes.map)
    drag.show(3.0)
    values = [2.0 + 0.1 * step for step in range(60)]
    note("threshold slider: preview", drag.show, values)
    note("threshold slider: preview and slice", lambda value: (drag.show(value), slice_of(drag, scene, value)), values)
    drag.hide()
    note("smoothing the map, once", lambda value: preview.Preview(nodes.map, value), [2.0])
    smooth = preview.Preview(nodes.map, 2.0)
    note("threshold slider: preview of the smoothed map", smooth.show, values[:20])
    smooth.hide()
    answers = {value: result(value) for value in (3.0, 4.0, 5.0, 6.0)}
    note("new findings: nodes", lambda v: results.change_threshold(nodes.map, answers[v]), list(answers) * 2)
    note("jump to a finding", lambda v: findings.place_of(nodes.findings, int(v)), [0.0, 1.0, 2.0])
    note("reference of finer voxels onto the scan", lambda _v: volumes.read_mask(finer(scene), scan), [0.0, 1.0])
    return rows + memory_of_runs(scene, *case(scene, SMALL_EDGE))


def slice_of(drag, scene, _value) -> int:
    """Read what a slice view would read of the preview: one plane."""
    from UADBenchScene.volumes import voxels_of

    return int(voxels_of(drag._image)[:, :, 128].sum())


def finer(scene):
    """Return a label map of half the voxel size in the middle of the scan."""
    import phantom

    shape = (160, 160, 160)
    affine = phantom.affine_of(spacing=(0.5, 0.5, 0.5), degrees=(5, 8, -4), shape=shape)
    return scene.volume(np.ones(shape, np.uint8), affine, kind="LabelMapVolume")


def memory_of_runs(scene, scan, result) -> list[dict]:
    """Return the memory after the first and the last of 20 results that are added and removed again."""
    from UADBenchScene import preview, results

    held = []
    for run in range(20):
        nodes = results.add_result(scan, result(3.0 + 0.1 * run))
        drag = preview.Preview(nodes.map)
        drag.show(4.0)
        drag.hide()
        del drag
        for node in (nodes.findings, nodes.segmentation, nodes.map):
            for number in range(node.GetNumberOfDisplayNodes() if hasattr(node, "GetNumberOfDisplayNodes") else 0):
                scene.mrml.RemoveNode(node.GetNthDisplayNode(number))
            scene.mrml.RemoveNode(node)
        del nodes, node
        held.append(megabytes())
    return [
        {"what": "memory after so many results, MB", "repeats": run, "megabytes": f"{held[run - 1]:.0f}"}
        for run in (1, 5, 10, 20)
    ]


def main(words: list[str]) -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Measure the scene code.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(words).out
    rows = measure()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
