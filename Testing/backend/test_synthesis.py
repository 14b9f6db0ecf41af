"""Scans made by the project itself: reproducible, with the lesion that was asked for, where it was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import centroid
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from UADBenchLib.geometry import is_orthonormal
from UADBenchLib.scan import Scan
from UADBenchLib.synthesis.lesions import Lesion, apply_lesion, draw_lesion
from UADBenchLib.synthesis.sample import make_sample

EDGES = np.array([2.0, 2.0, 2.5])
LESION = Lesion((20.0, 22.0, 18.0), 6.0, change=-0.4, flatten=0.5, roughness=0.3, edge_mm=2.0, seed=4)


def brain() -> tuple[np.ndarray, np.ndarray]:
    """A textured ellipsoid of about 260 ml."""
    i, j, k = (np.linspace(-1, 1, n) for n in (40, 44, 36))
    mask = i[:, None, None] ** 2 + j[None, :, None] ** 2 + k[None, None] ** 2 < 0.85
    return ((0.7 + 0.05 * np.random.default_rng(0).standard_normal(mask.shape)) * mask).astype(np.float32), mask


class TestLesions:
    @given(st.integers(0, 2**31 - 1), st.floats(1.0, 15.0))
    @hypothesis_settings(max_examples=12)
    def test_any_lesion_is_replayable_in_the_brain_and_of_its_size(self, seed: int, volume_ml: float) -> None:
        voxels, mask = brain()
        lesion = replace(LESION, seed=seed, volume_ml=volume_ml)
        first, second = (apply_lesion(voxels, mask, EDGES, lesion) for _ in range(2))
        np.testing.assert_array_equal(first[0], second[0])
        changed, where = first
        assert where.dtype == bool and (where <= mask).all()
        assert where.sum() * EDGES.prod() / 1000 == pytest.approx(volume_ml, rel=0.35)
        np.testing.assert_array_equal(changed[~mask], voxels[~mask])
        assert np.isfinite(changed).all()

    @pytest.mark.parametrize("change", [-0.4, 0.3])
    def test_the_intensity_changes_by_its_share(self, change: float) -> None:
        voxels, mask = brain()
        changed, where = apply_lesion(voxels, mask, EDGES, replace(LESION, change=change, edge_mm=0.5))
        core = np.zeros_like(where)
        core[18:23, 20:25, 17:20] = True
        assert (core & where).sum() > 50
        assert changed[core & where].mean() / voxels[core & where].mean() == pytest.approx(1 + change, abs=0.1)

    def test_the_input_is_not_changed_and_far_away_stays(self) -> None:
        voxels, mask = brain()
        before = voxels.copy()
        changed, _ = apply_lesion(voxels, mask, EDGES, LESION)
        np.testing.assert_array_equal(voxels, before)
        np.testing.assert_array_equal(changed[:4], voxels[:4])

    def test_a_lesion_at_the_border_of_the_grid(self) -> None:
        voxels, _ = brain()
        everywhere = np.ones(voxels.shape, dtype=bool)
        changed, where = apply_lesion(voxels + 0.5, everywhere, EDGES, replace(LESION, centre=(0.0, 0.0, 0.0)))
        assert where.any() and np.isfinite(changed).all()

    def test_drawing_keeps_to_its_ranges(self) -> None:
        from scipy.ndimage import distance_transform_edt

        _, mask = brain()
        depth = distance_transform_edt(mask, sampling=EDGES)
        rng = np.random.default_rng(0)
        drawn = [draw_lesion(mask, EDGES, rng, volume_ml=(1.0, 8.0), depth_mm=10.0) for _ in range(40)]
        assert all(1 <= lesion.volume_ml <= 8 and -0.45 <= lesion.change <= -0.2 for lesion in drawn)
        assert all(depth[tuple(int(c) for c in lesion.centre)] >= 10 for lesion in drawn)
        assert len({lesion.seed for lesion in drawn}) == 40
        again = draw_lesion(mask, EDGES, np.random.default_rng(0), volume_ml=(1.0, 8.0), depth_mm=10.0)
        assert again == drawn[0]

    def test_no_room_is_an_error(self) -> None:
        _, mask = brain()
        with pytest.raises(ValueError, match="500"):
            draw_lesion(mask, EDGES, np.random.default_rng(0), volume_ml=(1, 2), depth_mm=500)


class TestSample:
    def test_it_is_a_scan_with_reference_and_mask(self, sample: tuple[Scan, np.ndarray, np.ndarray]) -> None:
        scan, reference, mask = sample
        assert scan.shape == reference.shape == mask.shape == (116, 144, 98)
        assert scan.contrast == "T1w" and scan.voxels.dtype == np.float32 and reference.dtype == mask.dtype == bool
        np.testing.assert_allclose(scan.voxel_mm, (1.5, 1.5, 2.0))
        assert is_orthonormal(scan.affine)
        assert np.linalg.det(scan.affine[:3, :3]) < 0, "the sample is left-handed on purpose"
        assert (scan.voxels[~mask] == 0).all() and (scan.voxels[mask] > 0).all()
        assert 1000 < mask.sum() * scan.voxel_ml < 2200

    def test_the_lesion_is_dark_of_its_size_and_on_the_right(self, sample: tuple[Scan, np.ndarray, np.ndarray]) -> None:
        scan, reference, mask = sample
        assert (reference <= mask).all()
        assert reference.sum() * scan.voxel_ml == pytest.approx(18, rel=0.2)
        np.testing.assert_allclose(centroid(reference, scan.affine), [28, 22, 26], atol=10)
        assert scan.voxels[reference].mean() < 0.8 * scan.voxels[mask & ~reference].mean()

    def test_seeds_make_other_brains_and_the_same_seed_the_same(
        self, sample: tuple[Scan, np.ndarray, np.ndarray]
    ) -> None:
        again, reference, _ = make_sample()
        np.testing.assert_array_equal(again.voxels, sample[0].voxels)
        np.testing.assert_array_equal(reference, sample[1])
        other, nothing, mask = make_sample(1, lesion_ml=None)
        assert not nothing.any() and mask.any()
        assert np.abs(other.voxels - again.voxels)[mask].mean() > 20
