"""Lesion-wise counting on masks whose answer can be counted by eye."""

from __future__ import annotations

import math

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.lesions import DEFAULT_RULE, LesionCounts, LesionRule, components, count_lesions

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
