"""One brain on several grids: results come back on the grid of the input, the lesion at one place in the world."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from builders import GRIDS, ball, centroid, dice, on_grid
from scipy.ndimage import gaussian_filter

from UADBenchLib.inference.detector import Detection, detect
from UADBenchLib.preprocessing.recipe import Recipe, prepare
from UADBenchLib.reading import read_scan
from UADBenchLib.reports.detection import write_detection
from UADBenchLib.scan import Scan
from UADBenchLib.writing import write_volume

Sample = tuple[Scan, np.ndarray, np.ndarray]
APART_MM = 4.0


def peak_near(detection: Detection, reference: np.ndarray) -> np.ndarray:
    """RAS mm of the highest value in the reference, after 3 mm of smoothing: a single voxel's noise has no place."""
    edges = np.linalg.norm(detection.affine[:3, :3], axis=0)
    smooth = gaussian_filter(detection.map, 3.0 / edges)
    index = np.unravel_index(np.where(reference, smooth, -1).argmax(), smooth.shape)
    return detection.affine[:3, :3] @ index + detection.affine[:3, 3]


@pytest.fixture(scope="module")
def expected(sample: Sample, laboratory: object, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Where the peak lies when the sample is looked at as it was made (oblique, left-handed, anisotropic)."""
    scan, reference, mask = sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UADBENCH_MODELS", str(laboratory.models))
        (found,) = detect(scan, [laboratory.model], brain_mask=mask, device="cpu")
    check_files(scan, found, reference, tmp_path_factory.mktemp("sample"))
    return peak_near(found, reference)


def check_files(scan: Scan, found: Detection, reference: np.ndarray, folder: Path) -> None:
    """Written and read again, map and masks have the input's shape and affine, voxel for voxel."""
    write_volume(folder / "in_T1w.nii.gz", scan.voxels, scan.affine)
    given = nibabel.load(folder / "in_T1w.nii.gz")
    files = write_detection(folder / "out", scan, [found], reference, save_raw=True)
    volumes = [path for path in files if path.name.endswith(".nii.gz")]
    assert len(volumes) == 4
    for path in volumes:
        image = nibabel.load(path)
        assert image.shape == given.shape == scan.shape
        np.testing.assert_array_equal(image.affine, given.affine)
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-4)
    (path,) = (p for p in volumes if "anomaly_mask" not in p.name and "raw" not in p.name and "brain" not in p.name)
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), found.map)


@pytest.mark.parametrize("grid", GRIDS)
def test_results_lie_on_the_grid_of_the_input(
    grid: str, sample: Sample, expected: np.ndarray, installed: str, tmp_path: Path
) -> None:
    moved, reference, mask = on_grid(grid, *sample)
    write_volume(tmp_path / "sub-1_T1w.nii.gz", moved.voxels, moved.affine)
    scan = read_scan(tmp_path / "sub-1_T1w.nii.gz")
    (found,) = detect(scan, [installed], brain_mask=mask, reference=reference, device="cpu")
    assert found.map.shape == found.mask.shape == moved.shape
    np.testing.assert_allclose(found.affine, moved.affine, atol=1e-4)
    check_files(scan, found, reference, tmp_path)
    assert np.linalg.norm(peak_near(found, reference) - expected) < APART_MM
    true = [finding for finding in found.findings if finding.status == "TP"]
    assert true and all(finding.region.startswith("right") for finding in true)
    for finding in true:
        index = np.round(np.linalg.inv(scan.affine) @ [*finding.peak_ras, 1])[:3].astype(int)
        assert found.map[tuple(index)] == pytest.approx(finding.peak_z)


@pytest.mark.parametrize("grid", GRIDS)
def test_preparation_keeps_sides_and_finds_its_way_back(grid: str, sample: Sample) -> None:
    """A bright marker on the right, in front and above stays there; masks come back to where they were."""
    scan, _, mask = on_grid(grid, *sample)
    middle = centroid(mask, scan.affine)
    marker = ball(scan.shape, scan.affine, middle + [32, 18, 22], 9.0) & mask
    assert marker.sum() * scan.voxel_ml > 1.5
    scan.voxels[marker] = 2.0 * scan.voxels[mask].max()
    told: list[float] = []
    prepared = prepare(scan, brain_mask=mask, progress=lambda _, share: told.append(share))
    assert told == sorted(told) and 0 <= told[0] and told[-1] <= 1 and len(told) > 50
    recipe = Recipe()
    assert prepared.voxels.shape == recipe.shape and prepared.voxels.dtype == np.float32
    assert not prepared.voxels[~prepared.mask].any()
    assert np.isfinite(prepared.voxels).all() and 0 <= prepared.voxels.min() and prepared.voxels.max() <= 1.5
    np.testing.assert_array_equal(prepared.native_mask, mask)
    place = centroid(prepared.voxels >= 1.2, recipe.affine)
    np.testing.assert_allclose(place - centroid(prepared.mask, recipe.affine), [32, 18, 22], atol=8)
    for centre, radius in (([32, 18, 22], 9.0), ([-30, -30, 10], 7.0), ([10, 30, 0], 14.0)):
        lesion = ball(scan.shape, scan.affine, middle + centre, radius) & mask
        assert lesion.sum() * scan.voxel_ml >= 1
        in_model = prepared.to_model(lesion, scan) > 0.5
        least = 0.9 if scan.voxel_mm.max() <= 3 else 0.85
        assert dice(prepared.to_native(in_model, scan) > 0.5, lesion) >= least
    assert prepared.steps[1]["source"] == "given"
    assert {"bias field", "registration"} <= set(prepared.seconds)
