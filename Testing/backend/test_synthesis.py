"""Scans made by the project itself: reproducible, with the lesion that was asked for, where it was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from builders import centroid

from UADBenchLib.geometry import is_orthonormal
from UADBenchLib.preprocessing.recipe import prepare
from UADBenchLib.scan import Scan
from UADBenchLib.synthesis.sample import make_sample


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


@pytest.mark.parametrize("contrast", ["T2w", "FLAIR"])
def test_other_contrasts_look_like_themselves(contrast: str) -> None:
    scan, reference, mask = make_sample(contrast=contrast)
    assert (scan.stem, scan.contrast) == (f"sample_{contrast}", contrast)
    assert scan.voxels[reference].mean() > 1.1 * np.median(scan.voxels[mask & ~reference])
    prepared = prepare(scan, brain_mask=mask)
    assert prepared.contrast is not None and prepared.contrast.contrast == contrast
