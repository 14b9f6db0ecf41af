"""A result as a reader sees it: the map is where the anomaly is and nowhere else, and its border is drawn
on it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import phantom
import pytest
from picture import slice_picture
from UADBenchScene import findings, results, volumes

ORIENTATIONS = ("Axial", "Coronal", "Sagittal")


@pytest.fixture
def seen(scene, tmp_path):
    """Three slices through the first finding, of an oblique left-handed head under a transform."""
    volume = scene.volume(phantom.head(), phantom.affine_of(degrees=(6, -4, 8), left_handed=True))
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 900)
    volume.SetAndObserveTransformNodeID(scene.transform(phantom.affine_of((1, 1, 1), (0, 10, 0))).GetID())
    nodes = results.add_result(volume, phantom.result(volumes.world_affine(volume)))
    place = findings.place_of(nodes.findings, 0)
    pictures = [slice_picture(scene, nodes, name, place) for name in ORIENTATIONS]
    # UADBENCH_PICTURES keeps the picture for somebody to look at.
    folder = Path(os.environ.get("UADBENCH_PICTURES", tmp_path))
    save(np.concatenate([rgb for rgb, _pixel in pictures], axis=1), folder / "slices.png")
    assert (folder / "slices.png").stat().st_size > 10_000
    return nodes, pictures


def save(rgb: np.ndarray, path: Path) -> None:
    """Write a picture as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)


def coloured(rgb: np.ndarray) -> np.ndarray:
    """Return where a picture is not grey."""
    return np.ptp(rgb.astype(int), axis=-1) > 40


def test_each_slice_shows_the_peak_where_it_is(seen):
    _nodes, pictures = seen
    for rgb, pixel in pictures:
        row, column = np.rint(pixel).astype(int)
        middle = rgb[row - 3 : row + 4, column - 3 : column + 4].reshape(-1, 3).mean(axis=0)
        assert middle[0] > 200 and middle[0] - middle[2] > 60, "near z = 9 the map is orange to yellow"


def test_the_scan_is_grey_where_the_map_is_below_the_threshold(seen):
    _nodes, pictures = seen
    for rgb, _pixel in pictures:
        share = coloured(rgb).mean()
        assert 0.01 < share < 0.1, "colour covers the anomalies and no more"
        assert not coloured(rgb)[:20].any() and not coloured(rgb)[-20:].any()
        assert (rgb[~coloured(rgb)].max(axis=-1) > 150).any(), "the scan is to be seen around them"


def test_outlines_run_around_the_map(seen):
    nodes, pictures = seen
    colour = np.round(255 * np.array(nodes.segmentation.GetSegmentation().GetNthSegment(0).GetColor()))
    for rgb, pixel in pictures:
        outline = np.argwhere((np.abs(rgb - colour) < 2).all(axis=-1))
        distance = np.linalg.norm(outline - pixel, axis=1)
        # A cone of radius 14 voxels and height 9 is at least 3 within 9.3 voxels of 1.7 to 1.9 mm: 23 to 26
        # pixels.
        nearest = distance[distance < 50]
        assert len(nearest) > 200 and nearest.min() > 19 and nearest.max() < 27.5
