"""From slices to a map: order of slices, what is scored, the median filter, and the rim that is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from UADBenchLib.errors import CancelledError
from UADBenchLib.inference.postprocessing import bounding_box, median_in_brain, smooth_in_brain, without_edge
from UADBenchLib.inference.scoring import score_volume
from UADBenchLib.methods.base import Method, Slices

SHAPE = (20, 24, 18)


class Echo(Method):
    """Scores a pixel by its intensity, and remembers what it was asked."""

    name, paper, presets = "echo", "", {}

    def __init__(self) -> None:
        super().__init__(None)
        self.asked: list[Slices] = []
        self.drawn: list[Tensor] = []

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        self.asked.append(slices)
        self.drawn.append(torch.rand(1, generator=generator))
        return slices.images * slices.masks


@pytest.fixture
def brain() -> np.ndarray:
    i, j, k = np.indices(SHAPE)
    return (i - 9) ** 2 + (j - 12) ** 2 + 1.5 * (k - 8) ** 2 < 49


def test_the_map_lies_where_the_scan_lies(brain: np.ndarray) -> None:
    i, j, k = np.indices(SHAPE)
    voxels = ((i + 2.0 * j + 4.0 * k) * brain).astype(np.float32)
    scores, scored = score_volume(Echo(), voxels, brain, 2.0, batch=3)
    assert scores.shape == SHAPE and scores.dtype == np.float32
    deep = without_edge(brain, 2.0, 6.0)
    assert deep.sum() > 50
    np.testing.assert_allclose(scores[deep], voxels[deep], atol=1.5)  # both filters keep a ramp, away from its ends
    steps = [np.diff(scores, axis=axis)[8:11, 11:14, 7:10].mean() for axis in range(3)]
    np.testing.assert_allclose(steps, (1, 2, 4), rtol=0.1)
    assert not scores[~scored].any()
    assert (scored <= brain).all()


def test_slices_without_brain_are_not_computed(brain: np.ndarray) -> None:
    method = Echo()
    score_volume(method, brain.astype(np.float32), brain, 2.0, batch=4)
    positions = torch.cat([slices.positions for slices in method.asked]).tolist()
    assert positions == np.flatnonzero(brain.any(axis=(0, 1))).tolist()
    assert max(len(slices) for slices in method.asked) == 4


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_the_batch_size_does_not_matter(brain: np.ndarray, batch: int) -> None:
    voxels = (np.random.default_rng(0).random(SHAPE) * brain).astype(np.float32)
    expected, _ = score_volume(Echo(), voxels, brain, 2.0)
    np.testing.assert_array_equal(score_volume(Echo(), voxels, brain, 2.0, batch=batch)[0], expected)


def test_methods_draw_the_same_every_time(brain: np.ndarray) -> None:
    drawn = []
    for _ in range(2):
        method = Echo()
        score_volume(method, brain.astype(np.float32), brain, 2.0)
        drawn.append(torch.cat(method.drawn))
    assert torch.equal(drawn[0], drawn[1])


def test_progress_ends_at_1_and_may_cancel(brain: np.ndarray) -> None:
    told: list[float] = []
    score_volume(Echo(), brain.astype(np.float32), brain, 2.0, batch=4, progress=lambda _, share: told.append(share))
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 2

    def cancel(stage: str, share: float) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        score_volume(Echo(), brain.astype(np.float32), brain, 2.0, progress=cancel)


def test_an_empty_brain_gives_an_empty_map() -> None:
    nothing = np.zeros(SHAPE, dtype=bool)
    scores, scored = score_volume(Echo(), np.ones(SHAPE, np.float32), nothing, 2.0)
    assert not scores.any() and not scored.any()


def test_median_removes_specks_and_keeps_the_outside_empty(brain: np.ndarray) -> None:
    scores = np.where(brain, 1.0, 0.0).astype(np.float32)
    scores[9, 12, 8] = 50
    filtered = median_in_brain(scores, brain)
    assert filtered[9, 12, 8] == 1
    assert not filtered[~brain].any()


def test_median_in_the_box_is_the_median_of_the_whole(brain: np.ndarray) -> None:
    from scipy.ndimage import median_filter

    scores = (np.random.default_rng(0).random(SHAPE) * brain).astype(np.float32)
    expected = median_filter(scores, 3) * brain
    np.testing.assert_array_equal(median_in_brain(scores, brain), expected)


def test_median_of_an_even_window_is_refused(brain: np.ndarray) -> None:
    with pytest.raises(ValueError, match="odd"):
        median_in_brain(brain.astype(np.float32), brain, 4)


def test_smoothing_keeps_a_flat_score_up_to_the_edge(brain: np.ndarray) -> None:
    smoothed = smooth_in_brain(np.where(brain, 3.0, 0.0).astype(np.float32), brain, 2.0)
    np.testing.assert_allclose(smoothed[brain], 3.0, rtol=1e-5)
    assert smoothed.dtype == np.float32 and not smoothed[~brain].any()


def test_smoothing_sees_nothing_outside_the_brain(brain: np.ndarray) -> None:
    scores = np.where(brain, 1.0, 100.0).astype(np.float32)
    np.testing.assert_allclose(smooth_in_brain(scores, brain, 2.0)[brain], 1.0, rtol=1e-5)


def test_smoothing_is_measured_in_millimetres(brain: np.ndarray) -> None:
    everywhere = np.ones(SHAPE, dtype=bool)
    spot = np.zeros(SHAPE, np.float32)
    spot[10, 12, 9] = 1
    narrow, wide = (smooth_in_brain(spot, everywhere, voxel_mm) for voxel_mm in (4.0, 2.0))
    assert narrow[10, 12, 9] > 4 * wide[10, 12, 9]
    assert wide.sum() == pytest.approx(1, rel=0.02)
    assert not smooth_in_brain(spot, ~everywhere, 2.0).any()


def test_the_rim_is_measured_in_millimetres() -> None:
    cube = np.zeros((12, 12, 12), dtype=bool)
    cube[2:10, 2:10, 2:10] = True
    assert without_edge(cube, 2.0, 2.0).sum() == 6**3
    assert without_edge(cube, 1.0, 2.0).sum() == 4**3
    assert without_edge(cube, 2.0, 0.0).sum() == 8**3


def test_the_border_of_the_grid_is_an_edge() -> None:
    assert without_edge(np.ones((6, 6, 6), dtype=bool), 2.0, 2.0).sum() == 4**3


@given(st.lists(st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), min_size=1, max_size=5), st.integers(0, 3))
def test_the_box_holds_all_and_no_more(places: list[tuple[int, int, int]], margin: int) -> None:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(np.array(places).T)] = True
    box = bounding_box(mask, margin)
    assert mask[box].sum() == mask.sum()
    for axis, part in enumerate(box):
        along = np.array(places)[:, axis]
        assert part.start == max(0, along.min() - margin)
        assert part.stop == min(SHAPE[axis], along.max() + 1 + margin)
