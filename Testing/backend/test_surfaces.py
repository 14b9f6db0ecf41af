"""Surface distances on masks whose answer is known, and against MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.surfaces import surface_distance


def cube(corner: tuple[int, int, int], edge: int = 5) -> np.ndarray:
    mask = np.zeros((24, 22, 20), bool)
    mask[tuple(slice(c, c + edge) for c in corner)] = True
    return mask


def blobs(seed: int, shape: tuple[int, int, int] = (20, 18, 16)) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return noise > np.quantile(noise, 0.9)


def test_shifted_cubes_are_as_far_apart_as_the_shift() -> None:
    assert surface_distance(cube((4, 4, 4)), cube((4, 4, 4)), (1, 1, 1)) == 0
    assert surface_distance(cube((4, 4, 4)), cube((4, 4, 7)), (1, 1, 2.5), 100) == 7.5
    assert surface_distance(cube((4, 4, 4)), cube((7, 4, 4)), (1, 1, 2.5), 100) == 3


def test_the_edge_of_the_grid_is_a_surface() -> None:
    full = np.ones((6, 6, 6), bool)
    middle = np.zeros_like(full)
    middle[2:4, 2:4, 2:4] = True
    assert surface_distance(full, middle, (1, 1, 1), 100) == pytest.approx(2 * math.sqrt(3))


def test_empty_masks_follow_the_policy() -> None:
    empty = np.zeros((24, 22, 20), bool)
    assert math.isnan(surface_distance(empty, cube((4, 4, 4)), (1, 1, 1)))
    assert math.isnan(surface_distance(cube((4, 4, 4)), empty, (1, 1, 1)))


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="GRID_MISMATCH"):
        surface_distance(cube((4, 4, 4)), cube((4, 4, 4))[1:], (1, 1, 1))


@given(st.integers(0, 100), st.integers(0, 100))
def test_symmetric_and_never_below_zero(first: int, second: int) -> None:
    a, b = blobs(first), blobs(second)
    there, back = (surface_distance(*pair, (1, 2, 3)) for pair in ((a, b), (b, a)))
    assert there == back >= 0
    assert surface_distance(a, b, (2, 4, 6)) == pytest.approx(2 * there)
    assert there <= surface_distance(a, b, (1, 2, 3), 100)


@pytest.mark.parametrize("voxel_mm", [(1.0, 1.0, 1.0), (0.9, 1.3, 4.0)])
def test_agrees_with_monai(voxel_mm: tuple[float, float, float]) -> None:
    torch = pytest.importorskip("torch")
    compute = pytest.importorskip("monai.metrics").compute_hausdorff_distance
    for seed in range(4):
        a, b = blobs(seed), blobs(seed + 50)
        expected = compute(
            torch.from_numpy(a[None, None]).float(), torch.from_numpy(b[None, None]).float(),
            include_background=True, percentile=95, spacing=voxel_mm,
        )  # fmt: skip
        assert surface_distance(a, b, voxel_mm) == pytest.approx(float(expected), abs=1e-5)
