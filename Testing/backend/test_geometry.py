"""Orientation, the way into SimpleITK and back, and resampling: against closed forms, on awkward lattices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from UADBenchLib import geometry
from UADBenchLib.errors import InputError

angles = st.floats(-180, 180)
edges = st.floats(0.3, 8)
offsets = st.floats(-200, 200)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any orthogonal-axes affine, of either hand."""
    result = np.eye(4)
    axes = np.eye(3)
    for axis in range(3):
        angle = np.radians(draw(angles))
        turn = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        axes = turn @ axes
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    result[:3, :3] = axes * np.array([draw(edges) for _ in range(3)]) * signs
    result[:3, 3] = [draw(offsets) for _ in range(3)]
    return result


def world_values(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A function that is linear in world coordinates, sampled on a lattice."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return (grid @ affine[:3, :3].T + affine[:3, 3]) @ np.array([0.3, -0.7, 1.1]) + 50


def skewed(affine: np.ndarray, degrees: float) -> np.ndarray:
    """Tilt the second axis towards the first."""
    result = affine.copy()
    first = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    second = affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    tilt = np.radians(degrees)
    result[:3, 1] = (np.cos(tilt) * second + np.sin(tilt) * first) * np.linalg.norm(affine[:3, 1])
    return result


class TestOrthonormality:
    def test_accepts_every_rotation_and_hand(self, affine):
        assert geometry.is_orthonormal(affine, 1e-12)

    def test_measures_the_tilt(self, affine):
        assert geometry.shear(skewed(affine, 3.0)) == pytest.approx(np.sin(np.radians(3.0)))
        assert not geometry.is_orthonormal(skewed(affine, 0.2), geometry.SHEAR_NOTED)
        assert geometry.is_orthonormal(skewed(affine, 0.2), geometry.SHEAR_LIMIT)

    def test_polar_keeps_what_is_orthogonal(self, affine):
        np.testing.assert_allclose(geometry.polar(affine), affine, atol=1e-12)

    def test_polar_shares_the_tilt_and_keeps_edges_hand_and_origin(self, affine):
        tilted = skewed(affine, 4.0)
        nearest = geometry.polar(tilted)
        assert geometry.is_orthonormal(nearest, 1e-12)
        np.testing.assert_allclose(np.linalg.norm(nearest, axis=0), np.linalg.norm(tilted, axis=0))
        assert np.sign(np.linalg.det(nearest)) == np.sign(np.linalg.det(tilted))
        cosines = (nearest[:3, :3] * tilted[:3, :3]).sum(axis=0) / np.linalg.norm(tilted[:3, :3], axis=0) ** 2
        np.testing.assert_allclose(np.degrees(np.arccos(cosines[:2])), 2.0, atol=1e-6)

    @pytest.mark.parametrize("entry", [0.0, np.nan, np.inf])
    def test_refuses_a_singular_affine(self, entry, affine):
        affine[:3, 1] = entry
        for function in (
            geometry.shear,
            geometry.polar,
            lambda a: geometry.canonical(np.zeros((2, 2, 2)), a),
        ):
            with pytest.raises(InputError) as caught:
                function(affine)
            assert caught.value.code == "AFFINE_SINGULAR"

    def test_refuses_coplanar_axes(self, affine):
        affine[:3, 2] = affine[:3, 0] + affine[:3, 1]
        with pytest.raises(InputError, match="AFFINE_SINGULAR"):
            geometry.shear(affine)


class TestCanonical:
    def test_is_a_view_with_axes_near_ras(self, affine, volume):
        view, turned = geometry.canonical(volume, affine)
        assert np.shares_memory(view, volume)
        axes = turned[:3, :3] / np.linalg.norm(turned[:3, :3], axis=0)
        assert (np.abs(axes).argmax(axis=0) == np.arange(3)).all() and (np.diag(axes) > 0).all()

    @given(affine=affines())
    @settings(max_examples=60, deadline=None)
    def test_every_voxel_stays_where_it_was(self, affine):
        shape = (3, 4, 5)
        values = world_values(shape, affine)
        view, turned = geometry.canonical(values, affine)
        np.testing.assert_allclose(view, world_values(view.shape, turned), atol=1e-6)

    @given(affine=affines())
    @settings(max_examples=40, deadline=None)
    def test_can_be_undone_by_resampling(self, affine):
        values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
        view, turned = geometry.canonical(values, affine)
        np.testing.assert_array_equal(geometry.resample(view, turned, values.shape, affine, order=0), values)


class TestSimpleITK:
    @given(affine=affines())
    @settings(max_examples=60, deadline=None)
    def test_round_trip(self, affine):
        values = np.random.default_rng(1).integers(-500, 500, (3, 4, 5)).astype(np.int16)
        back, returned = geometry.from_sitk(geometry.to_sitk(values, affine))
        np.testing.assert_array_equal(back, values)
        np.testing.assert_allclose(returned, affine, atol=1e-9)

    def test_a_voxel_has_the_same_place_in_lps(self, affine, volume):
        image = geometry.to_sitk(volume, affine)
        place = np.array(image.TransformIndexToPhysicalPoint((3, 7, 11)))
        np.testing.assert_allclose(place * [-1, -1, 1], (affine @ [3, 7, 11, 1])[:3], atol=1e-9)
        assert image.GetPixel(3, 7, 11) == volume[3, 7, 11]

    def test_a_slight_tilt_is_turned_about_the_centre(self, affine, volume):
        tilted = skewed(affine, 0.8)
        _, returned = geometry.from_sitk(geometry.to_sitk(volume, tilted))
        centre = [*((np.array(volume.shape) - 1) / 2), 1]
        np.testing.assert_allclose(returned @ centre, tilted @ centre, atol=1e-6)
        assert geometry.is_orthonormal(returned, 1e-9)

    def test_a_strong_tilt_is_refused(self, affine, volume):
        with pytest.raises(InputError, match="2.00 degrees") as caught:
            geometry.to_sitk(volume, skewed(affine, 2.0))
        assert caught.value.code == "AFFINE_SHEARED"

    def test_masks_become_uint8(self, affine):
        image = geometry.to_sitk(np.ones((3, 3, 3), dtype=bool), affine)
        assert geometry.from_sitk(image)[0].dtype == np.uint8


class TestResample:
    @given(source=affines(), target=affines())
    @settings(max_examples=60, deadline=None)
    def test_a_linear_ramp_is_exact_inside(self, source, target):
        shape = (12, 13, 14)
        # the target lies within the source: a third of its size, about the same centre
        target[:3, :3] *= (
            np.linalg.norm(source[:3, :3], axis=0).min() / np.linalg.norm(target[:3, :3], axis=0).max()
        ) / 3
        middle = source[:3, :3] @ ((np.array(shape) - 1) / 2) + source[:3, 3]
        target[:3, 3] = middle - target[:3, :3] @ np.array([2.5, 2.5, 2.5])
        values = world_values(shape, source)
        got = geometry.resample(values, source, (6, 6, 6), target, order=1)
        np.testing.assert_allclose(got, world_values((6, 6, 6), target), rtol=1e-5, atol=1e-3)

    def test_the_own_lattice_gives_the_own_values(self, affine, volume):
        np.testing.assert_array_equal(geometry.resample(volume, affine, volume.shape, affine, order=1), volume)

    def test_border_voxels_survive_rounding(self, affine, volume):
        moved = affine.copy()
        moved[:3, 3] += 1e-4 * np.array([1.0, -1.0, 1.0])
        got = geometry.resample(volume, affine, volume.shape, moved, order=1)
        np.testing.assert_allclose(got, volume, atol=0.02)

    def test_world_maps_the_target_to_the_source(self, affine, volume):
        shift = np.eye(4)
        shift[:3, 3] = affine[:3, 0]  # one voxel along i
        got = geometry.resample(volume, affine, volume.shape, affine, order=1, world=shift)
        np.testing.assert_allclose(got[:-1], volume[1:], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got[-1], 0, atol=1e-3)

    def test_agrees_with_simpleitk(self, oblique, make_affine, volume):
        import SimpleITK as sitk

        target = make_affine((3.0, 2.0, 2.5), degrees=(5.0, 4.0, -9.0))
        target[:3, 3] += (oblique @ [25, 26, 20, 1] - target @ [10, 12, 8, 1])[:3]  # centre upon centre
        grid = geometry.to_sitk(np.zeros((20, 24, 16), dtype=np.float32), target)
        expected = sitk.Resample(geometry.to_sitk(volume, oblique), grid, sitk.Transform(), sitk.sitkLinear, 0.0)
        got = geometry.resample(volume, oblique, (20, 24, 16), target, order=1)
        np.testing.assert_allclose(got, geometry.from_sitk(expected)[0], atol=1e-3)
        assert got.std() > 5

    def test_masks_stay_masks(self, oblique, volume):
        mask = volume > 40
        got = geometry.resample(mask, oblique, (30, 30, 30), oblique, order=0)
        assert got.dtype == bool
        np.testing.assert_array_equal(got, mask[:30, :30, :30])

    def test_labels_keep_type_and_values(self, oblique, make_affine):
        labels = np.random.default_rng(3).choice([0, 5, 90], size=(20, 20, 20)).astype(np.int16)
        got = geometry.resample(labels, oblique, (25, 25, 25), make_affine((1.0, 1.0, 1.0)), order=0)
        assert got.dtype == np.int16 and set(np.unique(got)) <= {0, 5, 90}

    @pytest.mark.parametrize("degrees", [(7.0, -31.0, 13.0), (0.0, 0.0, 0.0), (44.0, 3.0, -80.0)])
    def test_of_two_equally_near_voxels_the_higher_index_counts(self, degrees, make_affine):
        labels = np.random.default_rng(0).integers(0, 9, (6, 5, 4)).astype(np.int16)
        fine = make_affine((1.1, 0.9, 1.3), degrees=degrees)
        shape = tuple(2 * size - 1 for size in labels.shape)  # every other centre lies between two voxels
        got = geometry.resample(labels, fine @ np.diag([2.0, 2.0, 2.0, 1.0]), shape, fine, order=0)
        np.testing.assert_array_equal(got, labels[np.ix_(*((np.arange(size) + 1) // 2 for size in shape))])

    def test_threads_change_nothing(self, oblique, make_affine, volume, monkeypatch):
        target = make_affine((1.0, 1.2, 1.1), degrees=(3.0, 30.0, 1.0))
        alone = geometry.resample(volume, oblique, (60, 50, 40), target, order=1)
        monkeypatch.setattr(geometry, "_PARALLEL_FROM", 1)
        monkeypatch.setattr(geometry.os, "cpu_count", lambda: 5)
        np.testing.assert_allclose(
            geometry.resample(volume, oblique, (60, 50, 40), target, order=1), alone, rtol=1e-5, atol=1e-5
        )

    def test_antialias_removes_what_the_target_cannot_carry(self, make_affine):
        fine, coarse = make_affine((1.0, 1.0, 1.0)), make_affine((4.0, 4.0, 4.0))
        pattern = np.zeros((48, 48, 48), dtype=np.float32)
        pattern[::2] = 2.0  # mean 1, far above the coarse lattice's limit
        plain = geometry.resample(pattern, fine, (12, 12, 12), coarse, order=1)
        smooth = geometry.resample(pattern, fine, (12, 12, 12), coarse, order=1, antialias=True)
        assert np.abs(plain[2:-2] - 1).max() == pytest.approx(1.0)
        assert np.abs(smooth[2:-2, 2:-2, 2:-2] - 1).max() < 0.01

    def test_antialias_leaves_similar_voxels_alone(self, oblique, volume):
        coarser = oblique.copy()
        coarser[:3, :3] *= 1.4
        plain = geometry.resample(volume, oblique, (30, 30, 25), coarser, order=1)
        np.testing.assert_array_equal(
            geometry.resample(volume, oblique, (30, 30, 25), coarser, order=1, antialias=True), plain
        )

    def test_refuses_other_orders_and_blurred_labels(self, oblique, volume):
        with pytest.raises(ValueError, match="not 3"):
            geometry.resample(volume, oblique, (2, 2, 2), oblique, order=3)
        with pytest.raises(ValueError, match="labels"):
            geometry.resample(volume, oblique, (2, 2, 2), oblique, order=0, antialias=True)


class TestLattices:
    def test_corners(self):
        places = geometry.corners((3, 4, 5), np.diag([1.0, 2.0, 3.0, 1.0]))
        assert places.shape == (8, 3)
        np.testing.assert_array_equal(places.max(axis=0), [2, 6, 12])

    def test_same_lattice(self, affine):
        near, far = affine.copy(), affine.copy()
        near[0, 3] += 0.01
        far[0, 3] += 0.1
        assert geometry.same_lattice((4, 5, 6), affine, (4, 5, 6), near)
        assert not geometry.same_lattice((4, 5, 6), affine, (4, 5, 6), far)
        assert not geometry.same_lattice((4, 5, 6), affine, (6, 5, 4), affine)
