"""Lesion-wise counting on masks whose answer can be counted by eye."""

from __future__ import annotations

import math

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.lesions import (
    DEFAULT_RULE,
    LesionCounts,
    LesionRule,
    components,
    count_lesions,
    lesion_contrast,
    lesion_records,
    split_lesions,
)

VOXEL_ML = 0.008


def grid(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    """A mask of 30 x 30 x 30 voxels that is true in each box."""
    mask = np.zeros((30, 30, 30), bool)
    for box in boxes:
        mask[box] = True
    return mask


def cube(corner: int, edge: int) -> tuple[slice, slice, slice]:
    """A cube along the diagonal."""
    return (slice(corner, corner + edge),) * 3


def test_components_meet_at_corners() -> None:
    mask = grid(cube(3, 2), cube(5, 2))
    assert components(mask, 26)[1] == 1
    assert components(mask, 18)[1] == 2
    assert components(mask, 6)[1] == 2


def test_components_keep_their_place() -> None:
    mask = grid(cube(3, 2), cube(20, 4))
    labels, count = components(mask)
    assert count == 2
    assert np.array_equal(labels > 0, mask)
    assert set(np.unique(labels[cube(20, 4)])) == {2}
    assert components(np.zeros((4, 4, 4), bool))[1] == 0


def test_components_refuse_two_dimensions() -> None:
    with pytest.raises(ValueError, match="three dimensions"):
        components(np.ones((4, 4), bool))


def test_hits_misses_and_false_findings() -> None:
    reference = grid(cube(2, 4), cube(12, 4))
    mask = grid(cube(2, 4), cube(22, 3))
    counts = count_lesions(mask, reference, VOXEL_ML)
    assert (counts.hit, counts.missed, counts.true_findings, counts.false_findings) == (1, 1, 1, 1)
    assert counts.false_ml == pytest.approx(27 * VOXEL_ML)
    assert counts.recall() == counts.precision() == counts.f1() == 0.5


def test_a_tenth_is_enough_and_less_is_not() -> None:
    reference = grid((slice(0, 10), slice(0, 10), slice(0, 1)))
    touched = np.zeros_like(reference)
    touched[0, :9, 0] = True
    assert count_lesions(touched, reference, VOXEL_ML).hit == 0
    touched[0, 9, 0] = True
    assert count_lesions(touched, reference, VOXEL_ML).hit == 1


def test_one_blob_over_everything_is_a_false_finding() -> None:
    reference = grid(cube(4, 3), cube(14, 3))
    counts = count_lesions(np.ones_like(reference), reference, VOXEL_ML)
    assert counts.hit == 2
    assert counts.false_findings == 1 and counts.true_findings == 0
    assert counts.precision() == 0.0


def test_one_finding_may_hit_two_lesions() -> None:
    reference = grid((slice(5, 8), slice(5, 8), slice(5, 8)), (slice(5, 8), slice(5, 8), slice(9, 12)))
    mask = grid((slice(5, 8), slice(5, 8), slice(5, 12)))
    counts = count_lesions(mask, reference, VOXEL_ML)
    assert (counts.hit, counts.true_findings) == (2, 1)


def test_specks_in_the_reference_are_not_asked_for() -> None:
    reference = grid(cube(2, 4), cube(20, 1))
    rule = LesionRule(name="no-specks", minimum_reference_ml=2 * VOXEL_ML)
    assert count_lesions(grid(cube(2, 4)), reference, VOXEL_ML, rule).missed == 0
    assert count_lesions(grid(cube(2, 4)), reference, VOXEL_ML).missed == 1
    on_speck = count_lesions(grid(cube(20, 1)), reference, VOXEL_ML, rule)
    assert (on_speck.hit, on_speck.missed, on_speck.true_findings, on_speck.false_findings) == (0, 1, 1, 0)


def test_empty_cases() -> None:
    empty, lesion = grid(), grid(cube(2, 4))
    healthy = count_lesions(empty, empty, VOXEL_ML)
    assert math.isnan(healthy.recall()) and math.isnan(healthy.precision()) and math.isnan(healthy.f1())
    missed = count_lesions(empty, lesion, VOXEL_ML)
    assert missed.recall() == 0.0 and math.isnan(missed.precision()) and missed.f1() == 0.0
    alarm = count_lesions(lesion, empty, VOXEL_ML)
    assert alarm.precision() == 0.0 and math.isnan(alarm.recall())


def test_counts_add_up_over_scans() -> None:
    total = LesionCounts(1, 1, 1, 0, 0.0) + LesionCounts(0, 2, 0, 3, 0.5)
    assert total == LesionCounts(1, 3, 1, 3, 0.5)
    assert total.recall() == 0.25


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError) as refusal:
        count_lesions(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), VOXEL_ML)
    assert refusal.value.code == "GRID_MISMATCH"


def test_the_rule_names_itself() -> None:
    assert "tenth-overlap-26 v1" in DEFAULT_RULE.sentence()
    assert "10%" in DEFAULT_RULE.sentence()


def test_lesions_are_numbered_by_size_and_specks_left_out() -> None:
    reference = grid(cube(2, 2), cube(8, 5), cube(20, 3), (slice(29, 30), slice(0, 1), slice(0, 1)))
    lesions = split_lesions(reference, VOXEL_ML, LesionRule(minimum_reference_ml=0.02))
    assert lesions.volume_ml == pytest.approx([125 * VOXEL_ML, 27 * VOXEL_ML, 8 * VOXEL_ML])
    assert [int(lesions.labels[corner, corner, corner]) for corner in (8, 20, 2)] == [1, 2, 3]
    assert lesions.labels[29, 0, 0] == 0
    assert split_lesions(reference, VOXEL_ML).count == 4
    assert split_lesions(np.zeros_like(reference), VOXEL_ML).count == 0


def test_records_of_lesions_add_up_to_the_counts() -> None:
    rng = np.random.default_rng(4)
    reference = grid(cube(2, 4), cube(8, 5), cube(20, 3))
    map = rng.random(reference.shape).astype(np.float32) + reference
    mask = map > 1.6
    lesions = split_lesions(reference, VOXEL_ML)
    records = lesion_records(map, mask, lesions)
    assert sum(record["found"] for record in records) == count_lesions(mask, reference, VOXEL_ML).hit
    for number, record in enumerate(records, start=1):
        inside = lesions.labels == number
        assert record["overlap"] == pytest.approx(mask[inside].mean())
        assert record["peak_z"] == map[inside].max() and record["mean_z"] == pytest.approx(map[inside].mean())
    assert lesion_records(map, mask, split_lesions(np.zeros_like(reference), VOXEL_ML)) == []


def test_contrast_of_a_lesion_is_that_to_the_shell_around() -> None:
    rng = np.random.default_rng(5)
    reference = grid(cube(4, 5), cube(18, 6))
    voxels = 100 + 5 * rng.standard_normal(reference.shape)
    voxels[cube(4, 5)] -= 20
    voxels[cube(18, 6)] += 50
    brain = np.ones_like(reference)
    small, large = lesion_contrast(voxels, split_lesions(reference, VOXEL_ML), brain)[::-1]
    assert small["relative_difference"] == pytest.approx(-0.2, abs=0.02)
    assert large["relative_difference"] == pytest.approx(0.5, abs=0.02)
    assert small["contrast_to_noise"] == pytest.approx(4, abs=0.8)
    scaled = lesion_contrast(7 * voxels, split_lesions(reference, VOXEL_ML), brain)
    assert scaled[0]["contrast_to_noise"] == pytest.approx(large["contrast_to_noise"])
    alone = lesion_contrast(voxels, split_lesions(reference, VOXEL_ML), reference)
    assert all(math.isnan(value) for record in alone for value in record.values())


def _panoptica_evaluator():
    """An evaluator of panoptica that matches by overlap above a tenth, or a skip that says why there is none."""
    panoptica = pytest.importorskip("panoptica", reason="panoptica does not install in every environment")
    from panoptica.metrics import Metric

    return panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(matching_metric=Metric.IOU, matching_threshold=0.1),
    )


def test_agrees_with_panoptica_where_lesions_and_findings_pair_off() -> None:
    """One finding a lesion at most, nearly congruent or apart: where the two rules must give the same counts."""
    evaluator = _panoptica_evaluator()
    reference, mask = grid(cube(2, 4), cube(10, 4), cube(20, 5)), grid(cube(2, 4), cube(11, 3), cube(27, 3))
    result = evaluator.evaluate(mask.astype(np.uint8), reference.astype(np.uint8))
    result = result["ungrouped"] if isinstance(result, dict) else result
    counts = count_lesions(mask, reference, VOXEL_ML)
    assert (result.tp, result.fn, result.fp) == (counts.hit, counts.missed, counts.false_findings)
