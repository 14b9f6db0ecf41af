"""Distances between outlines: against distances worked out by hand and against MONAI's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.surface import hausdorff_mm

VOXEL_MM = np.array([1.0, 2.0, 3.0])


def block(start: tuple[int, int, int], size: int = 4, shape: tuple[int, int, int] = (20, 18, 16)) -> np.ndarray:
    """A cube in an empty mask."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + size) for s in start)] = True
    return mask


@pytest.mark.parametrize(
    ("shift", "expected"), [((0, 0, 0), 0.0), ((3, 0, 0), 3.0), ((0, 3, 0), 6.0), ((0, 0, 3), 9.0)]
)
def test_a_shifted_cube_is_as_far_as_it_was_shifted(shift, expected):
    moved = block(tuple(5 + s for s in shift))
    assert hausdorff_mm(block((5, 5, 5)), moved, VOXEL_MM, 100) == pytest.approx(expected)


def test_one_far_voxel_moves_the_maximum_and_not_the_percentile():
    reference, mask = block((3, 3, 3), 8), block((3, 3, 3), 8)
    mask[19, 5, 5] = True
    assert hausdorff_mm(mask, reference, VOXEL_MM, 100) == pytest.approx(9.0)
    assert hausdorff_mm(mask, reference, VOXEL_MM, 95) == 0.0


def test_outlines_are_those_of_the_objects_and_not_of_the_box():
    """A mask that touches the border of the grid has an outline there."""
    full = np.ones((6, 6, 6), dtype=bool)
    inner = block((2, 2, 2), 2, (6, 6, 6))
    assert hausdorff_mm(full, inner, np.ones(3), 100) == pytest.approx(math.sqrt(3) * 2)


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_is_at_no_distance(which):
    masks = [block((5, 5, 5)), block((5, 5, 5))]
    masks[which][:] = False
    assert math.isnan(hausdorff_mm(*masks, VOXEL_MM))


@pytest.mark.parametrize("percentile", [0, -1, 101, math.nan])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(InputError, match="OPTION_INVALID"):
        hausdorff_mm(block((5, 5, 5)), block((5, 5, 5)), VOXEL_MM, percentile)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="GRID_MISMATCH"):
        hausdorff_mm(block((5, 5, 5)), np.ones((3, 3, 3)), VOXEL_MM)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), percentile=st.sampled_from([50.0, 95.0, 100.0]))
def test_agrees_with_monai(seed, percentile):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    generator = np.random.default_rng(seed)
    first, second = (generator.random((9, 8, 7)) > 0.9 for _ in range(2))
    first[4, 4, 4] = second[3, 4, 2] = True
    batch = [torch.from_numpy(one)[None, None].float() for one in (first, second)]
    expected = metrics.compute_hausdorff_distance(
        *batch, include_background=True, percentile=percentile, spacing=VOXEL_MM.tolist()
    )
    assert hausdorff_mm(first, second, VOXEL_MM, percentile) == pytest.approx(float(expected), abs=1e-4)
    assert hausdorff_mm(second, first, VOXEL_MM, percentile) == pytest.approx(float(expected), abs=1e-4)
