"""Findings: volumes and places in millimetres on oblique, anisotropic and left-handed grids."""

from __future__ import annotations

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.inference.findings import COLUMNS, find

AFFINES = {
    "1 mm": np.diag([1.0, 1, 1, 1]),
    "anisotropic": np.array([[0.5, 0, 0, -20], [0, 0.5, 0, 10], [0, 0, 5.0, -3], [0, 0, 0, 1]]),
    "left-handed": np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]]),
    "oblique": np.array([[0.96, -0.28, 0, 5], [0.28, 0.96, 0, -7], [0, 0, 2.0, 11], [0, 0, 0, 1]]),
}


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A map with three components: 4 x 4 x 4 (peak 9), 2 x 2 x 2 (peak 12), one voxel (peak 20)."""
    scores = np.zeros((20, 22, 18), np.float32)
    scores[2:6, 2:6, 2:6] = 5.0
    scores[3, 4, 5] = 9.0
    scores[10:12, 10:12, 10:12] = 4.0
    scores[11, 10, 11] = 12.0
    scores[17, 18, 16] = 20.0
    return scores, (scores > 3).astype(np.uint8)


@pytest.mark.parametrize("name", AFFINES)
def test_volume_and_places_in_millimetres(name: str) -> None:
    scores, mask = scene()
    affine = AFFINES[name]
    kept, findings = find(scores, mask, affine, minimum_ml=0.0)
    assert np.array_equal(kept, mask) and kept.dtype == np.uint8
    assert [finding.index for finding in findings] == [1, 2, 3]
    assert [finding.peak_z for finding in findings] == [20.0, 12.0, 9.0]
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert [finding.volume_ml for finding in findings] == pytest.approx([voxel_ml, 8 * voxel_ml, 64 * voxel_ml])
    assert findings[2].peak_ras == pytest.approx((affine @ [3, 4, 5, 1])[:3])
    assert findings[2].centroid_ras == pytest.approx((affine @ [3.5, 3.5, 3.5, 1])[:3])
    assert findings[2].mean_z == pytest.approx((63 * 5 + 9) / 64)


def test_small_components_leave_the_mask() -> None:
    scores, mask = scene()
    kept, findings = find(scores, mask, np.eye(4), minimum_ml=0.008)
    assert [finding.volume_ml for finding in findings] == pytest.approx([0.008, 0.064])
    assert kept.sum() == 72 and kept[17, 18, 16] == 0
    kept, findings = find(scores, mask, np.eye(4), minimum_ml=1.0)
    assert findings == [] and not kept.any()


def test_diagonal_neighbours_are_one_finding() -> None:
    mask = np.zeros((5, 5, 5), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert len(find(mask.astype(np.float32), mask, np.eye(4), minimum_ml=0)[1]) == 1


def test_empty_mask() -> None:
    kept, findings = find(np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), bool), np.eye(4), minimum_ml=0)
    assert findings == [] and kept.shape == (4, 4, 4) and not kept.any()


def test_reference_gives_status_and_overlap() -> None:
    scores, mask = scene()
    reference = np.zeros(mask.shape, bool)
    reference[2:4, 2:6, 2:6] = True
    _, findings = find(scores, mask, np.eye(4), minimum_ml=0, reference=reference)
    assert [finding.status for finding in findings] == ["FP", "FP", "TP"]
    assert findings[2].overlap == 0.5 and findings[0].overlap == 0.0
    _, without = find(scores, mask, np.eye(4), minimum_ml=0)
    assert {finding.status for finding in without} == {""} and without[0].overlap is None


def test_region_is_asked_for_the_peak() -> None:
    scores, mask = scene()
    asked = []

    def region_of(ras: tuple[float, float, float]) -> str:
        asked.append(ras)
        return "left" if ras[0] < 5 else "right"

    _, findings = find(scores, mask, np.eye(4), minimum_ml=0, region_of=region_of)
    assert asked == [finding.peak_ras for finding in findings]
    assert [finding.region for finding in findings] == ["right", "right", "left"]


def test_row_has_the_columns_of_the_table() -> None:
    scores, mask = scene()
    row = find(scores, mask, np.eye(4), minimum_ml=0)[1][1].row()
    assert tuple(row) == COLUMNS
    assert (row["index"], row["peak_r"], row["peak_a"], row["peak_s"]) == (2, 11.0, 10.0, 11.0)
    assert row["overlap"] is None and row["status"] == ""


@pytest.mark.parametrize("volume", [-0.1, float("nan"), float("inf")])
def test_impossible_volume_is_refused(volume: float) -> None:
    with pytest.raises(InputError) as refusal:
        find(*scene(), np.eye(4), minimum_ml=volume)
    assert refusal.value.code == "OPTION_INVALID"


def test_shapes_must_agree() -> None:
    scores, mask = scene()
    with pytest.raises(InputError) as refusal:
        find(scores, mask[1:], np.eye(4), minimum_ml=0)
    assert refusal.value.code == "GRID_MISMATCH"
