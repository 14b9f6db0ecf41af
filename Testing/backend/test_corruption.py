"""What training does to healthy slices: all that is drawn is replayable, stays in the brain, keeps its stated size."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from builders import brain_slices
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption import anomalies, augmentation
from UADBenchLib.corruption.anomalies import (
    ShapeRange,
    draw_shapes,
    foreign_texture,
    intensity_bias,
    tissue_levels,
    with_anomalies,
)
from UADBenchLib.corruption.coarse_noise import coarse_noise
from UADBenchLib.corruption.inpainting import inpainting_masks
from UADBenchLib.corruption.noise import pyramid_noise, slice_noise

SEEDS = st.integers(min_value=0, max_value=2**31 - 1)
few = hypothesis_settings(max_examples=15)
LEVELS = torch.linspace(0.1, 0.9, 5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def neutral(count: int) -> augmentation.Augmentation:
    """An augmentation that changes nothing."""
    one, zero = torch.ones(count), torch.zeros(count)
    return augmentation.Augmentation(
        mirror=torch.zeros(count, dtype=torch.bool), degrees=zero, size=one, gamma=one, contrast=one,
        bias=torch.zeros(count, 1, 4, 4), blur=zero, noise=zero, noise_seed=0,
    )  # fmt: skip


def disc(height: int = 80, width: int = 96, radius: float = 20.0) -> Tensor:
    """A centred disc (1, 1, height, width)."""
    x = torch.arange(height)[:, None] - (height - 1) / 2
    y = torch.arange(width)[None] - (width - 1) / 2
    return ((x.square() + y.square()) <= radius**2)[None, None]


class TestAugmentation:
    @given(SEEDS)
    @few
    def test_the_same_seed_gives_the_same_result(self, seed: int) -> None:
        slices = brain_slices(3)
        first, second = (
            augmentation.apply(augmentation.draw(3, generator(seed)), slices.images, slices.masks) for _ in range(2)
        )
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])

    @given(SEEDS)
    @few
    def test_results_are_finite_in_range_and_zero_outside_the_brain(self, seed: int) -> None:
        slices = brain_slices(3)
        images, masks = augmentation.apply(augmentation.draw(3, generator(seed)), slices.images, slices.masks)
        assert images.shape == slices.images.shape and masks.dtype == torch.bool
        assert torch.isfinite(images).all()
        assert images.min() >= 0 and images.max() <= 1.5
        assert (images[~masks] == 0).all()
        assert 0.8 < masks.sum() / slices.masks.sum() < 1.25

    def test_the_drawn_can_be_applied_again(self) -> None:
        slices, drawn = brain_slices(2), augmentation.draw(2, generator(5))
        assert drawn.noise.max() > 0 or drawn.blur.max() > 0
        assert torch.equal(
            augmentation.apply(drawn, slices.images, slices.masks)[0],
            augmentation.apply(drawn, slices.images, slices.masks)[0],
        )

    def test_applying_draws_nothing_from_the_global_generator(self) -> None:
        slices = brain_slices(2)
        before = torch.get_rng_state()
        augmentation.apply(augmentation.draw(2, generator(1)), slices.images, slices.masks)
        assert torch.equal(before, torch.get_rng_state())

    def test_the_neutral_one_changes_nothing(self) -> None:
        slices = brain_slices(2)
        images, masks = augmentation.apply(neutral(2), slices.images, slices.masks)
        assert torch.equal(masks, slices.masks)
        torch.testing.assert_close(images, slices.images, atol=2e-5, rtol=0)

    def test_mirror_swaps_left_and_right(self) -> None:
        slices = brain_slices(2)
        drawn = replace(neutral(2), mirror=torch.tensor([True, False]))
        images, masks = augmentation.apply(drawn, slices.images, slices.masks)
        torch.testing.assert_close(images[0], slices.images[0].flip(-2), atol=2e-5, rtol=0)
        torch.testing.assert_close(images[1], slices.images[1], atol=2e-5, rtol=0)
        assert torch.equal(masks[0], slices.masks[0].flip(-2))
        assert not torch.allclose(slices.images[0], slices.images[0].flip(-2), atol=0.1)

    @pytest.mark.parametrize("degrees", [-30.0, 8.0, 90.0])
    @pytest.mark.parametrize("mirror", [False, True])
    def test_rotation_keeps_a_centred_disc(self, degrees: float, mirror: bool) -> None:
        mask = disc()
        drawn = replace(neutral(1), degrees=torch.tensor([degrees]), mirror=torch.tensor([mirror]))
        images, masks = augmentation.apply(drawn, mask.float(), mask)
        assert 2 * (masks & mask).sum() / (masks.sum() + mask.sum()) > 0.985
        torch.testing.assert_close(images[masks & mask], torch.ones(int((masks & mask).sum())), atol=1e-4, rtol=0)

    def test_rotation_turns_by_its_angle_without_stretching(self) -> None:
        mask, spot = disc(radius=35), torch.zeros(1, 1, 80, 96)
        spot[0, 0, 38:42, 72:76] = 1.0  # 26 pixels from the centre along Y
        drawn = replace(neutral(1), degrees=torch.tensor([90.0]))
        images, _ = augmentation.apply(drawn, spot, mask)
        x, y = (torch.nonzero(images[0, 0] > 0.5).float().mean(dim=0) - torch.tensor([39.5, 47.5])).tolist()
        assert abs(abs(x) - 26) < 1 and abs(y) < 1

    def test_size_scales_the_area(self) -> None:
        mask = disc()
        for size in (0.93, 1.07):
            _, masks = augmentation.apply(replace(neutral(1), size=torch.tensor([size])), mask.float(), mask)
            assert masks.sum() / mask.sum() == pytest.approx(size**2, rel=0.02)

    def test_noise_has_its_standard_deviation(self) -> None:
        mask = disc(radius=38)
        drawn = replace(neutral(1), noise=torch.tensor([0.04]), noise_seed=3)
        images, _ = augmentation.apply(drawn, mask * 0.5, mask)
        assert images[mask].std() == pytest.approx(0.04, rel=0.05)

    def test_blur_keeps_the_brain_and_smooths(self) -> None:
        slices = brain_slices(1)
        rough = (slices.images + 0.1 * torch.randn(slices.images.shape, generator=generator())) * slices.masks
        images, _ = augmentation.apply(replace(neutral(1), blur=torch.tensor([0.9])), rough, slices.masks)
        inside = images[slices.masks]
        assert inside.mean() == pytest.approx(float(rough.clamp(min=0)[slices.masks].mean()), rel=0.01)
        left = (images - slices.images)[slices.masks].std()
        assert left < 0.5 * (rough - slices.images)[slices.masks].std()

    def test_an_augmentation_of_uneven_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one value for each slice"):
            replace(neutral(3), gamma=torch.ones(2))


class TestPick:
    def test_indices_come_as_often_as_they_weigh(self) -> None:
        weights = torch.tensor([[0.0, 1.0, 3.0, 0.0], [2.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
        picked = augmentation.pick(weights, 8_000, torch.Generator().manual_seed(0))
        shares = torch.stack([(picked == index).float().mean(dim=1) for index in range(4)], dim=1)
        expected = torch.tensor([[0.0, 0.25, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0]])
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)
        assert not shares[expected == 0].any()

    def test_the_largest_number_gives_the_last_index_with_a_weight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(augmentation, "uniform", lambda count, *_: torch.full((count,), 1 - 2.0**-24))
        weights = torch.rand(1_000, 3, generator=generator()) * 10 + 0.1
        weights = torch.cat([weights, torch.zeros(1_000, 2)], dim=1)
        assert (augmentation.pick(weights, 2, generator()) == 2).all()


def test_mixed_precision_reaches_the_network_alone() -> None:
    """Whatever training computes in, slices are augmented and corrupted in full precision."""

    def everything() -> list[torch.Tensor]:
        slices, generator = brain_slices(4), torch.Generator().manual_seed(5)
        images, masks = augmentation.apply(augmentation.draw(4, generator), slices.images, slices.masks)
        shape = draw_shapes(masks, generator, ShapeRange())
        textured, _ = foreign_texture(images, shape, generator)
        biased, _ = intensity_bias(textured, shape, generator, torch.linspace(0.1, 0.9, 5))
        noise = coarse_noise(images, masks, generator, grids=(6, 10), sigma=(0.1, 0.3))
        return [images, biased, noise, pyramid_noise(images.shape, generator), inpainting_masks(masks, generator, 2.0)]

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = everything()
    for expected, got in zip(plain, mixed, strict=True):
        assert got.dtype == expected.dtype and torch.equal(got, expected)


class TestCoarseNoise:
    @given(SEEDS)
    @few
    def test_replayable_and_in_the_brain(self, seed: int) -> None:
        slices = brain_slices(3)
        first, second = (
            coarse_noise(slices.images, slices.masks, generator(seed), grids=(6, 16), sigma=(0.1, 0.3))
            for _ in range(2)
        )
        assert torch.equal(first, second)
        assert first.shape == slices.images.shape and torch.isfinite(first).all()
        assert (first[~slices.masks] == 0).all()

    @pytest.mark.parametrize("cells", [6, 10, 16])
    def test_the_spread_is_that_of_the_small_grid_less_what_enlarging_takes(self, cells: int) -> None:
        everything = torch.ones(128, 1, 80, 96, dtype=torch.bool)
        images = torch.zeros(everything.shape)
        noise = coarse_noise(images, everything, generator(), grids=(cells,), sigma=(0.2, 0.2))
        assert abs(noise.mean()) < 0.02
        assert 0.62 * 0.2 < noise.std() < 0.8 * 0.2
        double = coarse_noise(images, everything, generator(), grids=(cells,), sigma=(0.4, 0.4))
        torch.testing.assert_close(double, 2 * noise)

    def test_the_blobs_are_as_large_as_the_cells(self) -> None:
        everything = torch.ones(32, 1, 80, 96, dtype=torch.bool)

        def likeness(cells: int) -> float:
            noise = coarse_noise(
                torch.zeros(everything.shape), everything, generator(), grids=(cells,), sigma=(1.0, 1.0)
            )
            return float((noise[..., 8:] * noise[..., :-8]).mean() / noise.square().mean())

        assert likeness(6) > 0.5 > likeness(16) > -0.2

    def test_every_slice_has_its_own_strength(self) -> None:
        everything = torch.ones(32, 1, 80, 96, dtype=torch.bool)
        noise = coarse_noise(torch.zeros(everything.shape), everything, generator(), grids=(16,), sigma=(0.05, 0.35))
        spread = noise.flatten(1).std(dim=1)
        assert spread.max() > 3 * spread.min()


class TestShapes:
    @given(SEEDS)
    @few
    def test_replayable_in_the_brain_and_between_0_and_1(self, seed: int) -> None:
        masks = brain_slices(4).masks
        first, second = (draw_shapes(masks, generator(seed), ShapeRange()) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == masks.shape
        assert first.min() >= 0 and first.max() <= 1
        assert (first[~masks] == 0).all()
        assert (first.flatten(1).amax(dim=1) > 0).all()

    def test_an_empty_slice_gets_no_shape(self) -> None:
        masks = brain_slices(2).masks.clone()
        masks[0] = False
        shapes = draw_shapes(masks, generator(), ShapeRange())
        assert not shapes[0].any() and shapes[1].any()

    def test_radii_decide_the_area(self) -> None:
        masks = torch.ones(200, 1, 80, 96, dtype=torch.bool)
        areas = [
            draw_shapes(masks, generator(), ShapeRange((radius, radius), most=1)).flatten(1).sum(dim=1).median()
            for radius in (3.0, 12.0)
        ]
        assert areas[1] > 8 * areas[0]

    def test_shapes_differ_between_slices(self) -> None:
        shapes = draw_shapes(torch.ones(2, 1, 80, 96, dtype=torch.bool), generator(), ShapeRange())
        assert not torch.equal(shapes[0], shapes[1])


class TestForeignTexture:
    @given(SEEDS)
    @few
    def test_replayable_and_only_within_the_shape(self, seed: int) -> None:
        slices = brain_slices(4)
        shape = draw_shapes(slices.masks, generator(seed), ShapeRange())
        first, second = (foreign_texture(slices.images, shape, generator(seed)) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        changed, strength = first
        assert torch.equal(changed[shape == 0], slices.images[shape == 0])
        assert changed.min() >= 0 and changed.max() <= 1.5
        assert ((strength == 0) | ((strength >= 0.1) & (strength <= 1))).all()

    @given(SEEDS)
    @few
    def test_the_mean_inside_the_shape_stays(self, seed: int) -> None:
        slices = brain_slices(4)
        shape = draw_shapes(slices.masks, generator(seed), ShapeRange(radius=(8.0, 20.0)))
        changed, _ = foreign_texture(slices.images, shape, generator(seed + 1))
        difference = (changed - slices.images).flatten(1).sum(dim=1) / shape.flatten(1).sum(dim=1)
        assert difference.abs().max() < 0.02

    def test_it_changes_what_is_there(self) -> None:
        slices = brain_slices(8)
        shape = draw_shapes(slices.masks, generator(2), ShapeRange(radius=(8.0, 20.0)))
        changed, strength = foreign_texture(slices.images, shape, generator(3))
        assert (changed - slices.images).abs().flatten(1).amax(dim=1)[strength > 0.5].min() > 0.02

    def test_without_foreign_brain_the_strength_is_0(self) -> None:
        images = torch.zeros(2, 1, 80, 96)
        changed, strength = foreign_texture(images, torch.ones_like(images), generator())
        assert not strength.any() and torch.equal(changed, images)

    def test_one_slice_alone_borrows_from_itself(self) -> None:
        slices = brain_slices(1)
        shape = draw_shapes(slices.masks, generator(), ShapeRange())
        changed, _ = foreign_texture(slices.images, shape, generator())
        assert torch.isfinite(changed).all()


class TestWithAnomalies:
    @given(SEEDS)
    @few
    def test_replayable_in_range_and_in_the_brain(self, seed: int) -> None:
        slices = brain_slices(4)
        first, second = (with_anomalies(slices.images, slices.masks, generator(seed)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.min() >= 0 and first.max() <= 1.5 and not first[~slices.masks].any()

    def test_a_share_stays_clean(self) -> None:
        slices = brain_slices(100)
        for clean in (0.0, 0.2, 1.0):
            spoiled = with_anomalies(slices.images, slices.masks, generator(), clean=clean)
            same = (spoiled == slices.images).flatten(1).all(dim=1)[slices.masks.flatten(1).any(dim=1)]
            assert abs(float(same.float().mean()) - clean) <= 0.1

    def test_an_empty_slice_stays_empty(self) -> None:
        slices = brain_slices(2)
        images, masks = slices.images.clone(), slices.masks.clone()
        images[0], masks[0] = 0, False
        assert not with_anomalies(images, masks, generator())[0].any()


class TestIntensityBias:
    @given(SEEDS)
    @few
    def test_replayable_in_range_and_near_the_shape_only(self, seed: int) -> None:
        slices = brain_slices(4)
        shape = draw_shapes(slices.masks, generator(seed), ShapeRange())
        first, second = (intensity_bias(slices.images, shape, generator(seed), LEVELS) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        changed, strength = first
        assert torch.equal(changed[shape == 0], slices.images[shape == 0])
        assert ((changed - slices.images).abs().flatten(1).amax(dim=1) <= strength + 1e-6).all()
        assert changed.min() >= 0 and changed.max() <= 1.5

    def test_it_darkens_and_brightens(self) -> None:
        slices = brain_slices(40)
        shape = draw_shapes(slices.masks, generator(), ShapeRange(radius=(6.0, 12.0)))
        changed, strength = intensity_bias(slices.images, shape, generator(1), LEVELS)
        sums = (changed - slices.images).flatten(1).sum(dim=1)
        assert (sums > 0).sum() > 5 and (sums < 0).sum() > 5
        assert 0.02 <= strength.min() and strength.max() <= 0.6


def test_tissue_levels_finds_the_tissues() -> None:
    values = torch.cat(
        [level + 0.01 * torch.randn(500, generator=generator(n)) for n, level in enumerate((0.2, 0.5, 0.8))]
    )
    torch.testing.assert_close(tissue_levels(values, 3), torch.tensor([0.2, 0.5, 0.8]), atol=0.01, rtol=0)


@pytest.mark.parametrize("module", [anomalies, augmentation])
def test_every_random_function_takes_a_generator(module: object) -> None:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if "rand" in inspect.getsource(function) and function.__module__ == module.__name__ and name != "apply":
            assert "generator" in inspect.signature(function).parameters, name


class TestPyramidNoise:
    def test_every_slice_has_unit_spread_and_structure(self) -> None:
        noise = pyramid_noise((4, 1, 80, 96), torch.Generator().manual_seed(0))
        torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(4))
        smooth = F.avg_pool2d(noise, 8)
        assert (smooth.std(dim=(1, 2, 3)) > 1.4 / 8).all()  # white noise would leave 1 / 8

    def test_a_slice_does_not_depend_on_the_next(self) -> None:
        one, two = (pyramid_noise((n, 1, 20, 24), torch.Generator().manual_seed(0)) for n in (1, 2))
        assert torch.equal(one, two[:1])
        whole = pyramid_noise((4, 1, 20, 24), torch.Generator().manual_seed(0), per_slice=False)
        assert float(whole.std()) == pytest.approx(1, abs=1e-4) and not torch.equal(one, whole[:1])

    def test_noise_for_scoring_belongs_to_the_position(self) -> None:
        positions = torch.tensor([5, 9])
        both = slice_noise(positions, (2, 1, 8, 8), torch.Generator().manual_seed(0))
        last = slice_noise(positions[1:], (1, 1, 8, 8), torch.Generator().manual_seed(0))
        assert torch.equal(both[1:], last) and not torch.equal(both[0], both[1])
        other = slice_noise(positions, (2, 1, 8, 8), torch.Generator().manual_seed(1))
        assert not torch.equal(both, other)


class TestInpaintingMasks:
    def brains(self, count: int) -> torch.Tensor:
        y, x = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 96), indexing="ij")
        return (y**2 + x**2 < 0.8).expand(count, 1, 80, 96).clone()

    def test_masks_lie_in_the_brain_and_differ(self) -> None:
        brains = self.brains(64)
        masks = inpainting_masks(brains, torch.Generator().manual_seed(0), pixel_mm=2.0)
        assert not (masks & ~brains).any()
        share = masks.flatten(1).sum(1) / brains.flatten(1).sum(1)
        assert (share > 0).all() and share.max() < 0.9
        assert share.quantile(0.9) > 3 * share.quantile(0.1)

    def test_an_empty_slice_gets_no_mask(self) -> None:
        brains = self.brains(3)
        brains[1] = False
        masks = inpainting_masks(brains, torch.Generator().manual_seed(0), pixel_mm=2.0)
        assert masks[0].any() and not masks[1].any() and masks[2].any()

    def test_larger_pixels_give_the_same_millimetres(self) -> None:
        fine = F.interpolate(self.brains(48).float(), scale_factor=2.0).bool()
        shares = [
            float(inpainting_masks(brains, torch.Generator().manual_seed(1), pixel_mm=edge).float().mean())
            for brains, edge in ((self.brains(48), 2.0), (fine, 1.0))
        ]
        assert shares[0] == pytest.approx(shares[1], rel=0.35)
