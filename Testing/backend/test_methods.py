"""The contract of ``methods.base``, kept by every method and preset of the registry."""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import brain_slices, make_bundle

from UADBenchLib.bundles.bundle import LARGEST_WEIGHTS, load_bundle, save_bundle
from UADBenchLib.corruption.anomalies import with_anomalies
from UADBenchLib.errors import InputError
from UADBenchLib.methods.base import Method, Slices, brain_average, scan_score
from UADBenchLib.methods.context_vae import paint_squares
from UADBenchLib.methods.disyre import published_label
from UADBenchLib.methods.frame import Frame
from UADBenchLib.methods.patchcore import farthest_points
from UADBenchLib.methods.registry import (
    changed_configuration,
    configuration_changes,
    create_method,
    list_methods,
    method_class,
)
from UADBenchLib.networks.distillation import Bottleneck, Decoder
from UADBenchLib.networks.query_transformer import QueryTransformer, neighbours

LARGEST_SHIPPED = 8 * 1024**2
DEPTH = 12
"""Axial positions of the small model grid."""

CASES = [(name, "compact") for name in list_methods()]
"""The contract is tested on the compact presets; published ones are too large for all of it, see ``TestPublished``."""
SLOW = ("andi", "disyre", "patchcore", "reverse_distillation", "riad")
"""Methods whose published preset takes long for one slice or one step."""
PUBLISHED = [name for name in list_methods() if "paper" in method_class(name).presets]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_config(name: str, preset: str) -> dict[str, Any]:
    """The preset's configuration, with a model grid of few slices or a small memory where it has one."""
    config = asdict(method_class(name).presets[preset].config)
    if "shape" in config:
        config["shape"] = (*config["shape"][:2], DEPTH)
    if "memory" in config:
        config |= {"memory": 200, "pool": 2_000}
    return config


def learnt(name: str, preset: str) -> Method:
    """The method after a pass over a few healthy slices and a few steps; weights that start at zero are moved away from
    it."""
    torch.manual_seed(1)
    method = create_method(name, preset, small_config(name, preset))
    healthy = [brain_slices(DEPTH, seed) for seed in range(6)]
    move(method, 0.02)
    method.fit(healthy)
    if name == "fae":  # before any step its maps are like nothing, and no lesion could be less so
        take_steps(method, healthy, 48, rate=3e-3)
    method.eval().requires_grad_(False)
    method.finish(healthy)
    return method


def move(method: Method, spread: float = 0.05) -> None:
    """Move weights away from their start, where some are zero."""
    with torch.no_grad():
        for weight in method.parameters():
            weight.add_(spread * torch.randn(weight.shape, generator=generator(weight.numel())))


def take_steps(method: Method, batches: list[Slices], steps: int, rate: float = 1e-3) -> list[float]:
    """Losses of a few steps on batches in turn, the random draw always the same."""
    method.train()
    optimiser = torch.optim.AdamW(method.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        loss = method.training_loss(batches[step % len(batches)], generator(3))
        assert loss.shape == ()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


_learnt: dict[tuple[str, str], Method] = {}


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def method(case: tuple[str, str]) -> Method:
    """A method that has learnt a little; every test gets its own copy."""
    if case not in _learnt:
        _learnt[case] = learnt(*case)
    return copy.deepcopy(_learnt[case])


@pytest.fixture
def slices() -> Slices:
    """Four slices that were not learnt from, the last but one without brain and the last with a single pixel of it."""
    made = brain_slices(4, seed=50)
    images, masks = made.images.clone(), made.masks.clone()
    masks[2:] = False
    masks[3, 0, 40, 48] = True
    return Slices(images * masks, masks, made.positions)


class TestContract:
    def test_scores(self, method: Method, slices: Slices) -> None:
        scores = method.score(slices, generator())
        assert scores.shape == slices.images.shape and scores.dtype == torch.float32
        assert torch.isfinite(scores).all()
        assert scores.min() >= 0
        assert not scores[~slices.masks].any()
        assert scores[0].max() > 0

    def test_the_input_is_left_alone(self, method: Method, slices: Slices) -> None:
        before = slices.images.clone(), slices.masks.clone()
        method.score(slices, generator())
        method.reconstruct(slices, generator())
        assert torch.equal(slices.images, before[0]) and torch.equal(slices.masks, before[1])

    def test_deterministic_under_the_generator(self, method: Method, slices: Slices) -> None:
        torch.manual_seed(1)
        first = method.score(slices, generator(4))
        torch.manual_seed(2)
        assert torch.equal(first, method.score(slices, generator(4)))

    def test_a_batch_equals_its_slices(self, method: Method, slices: Slices) -> None:
        whole = method.score(slices, generator())
        single = torch.cat([method.score(slices[n : n + 1], generator()) for n in range(len(slices))])
        torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-5)

    def test_an_empty_slice_and_a_single_pixel(self, method: Method, slices: Slices) -> None:
        scores = method.score(slices, generator())
        assert not scores[2].any()
        assert torch.isfinite(scores[3, 0, 40, 48])

    def test_reconstruction(self, method: Method, slices: Slices) -> None:
        restored = method.reconstruct(slices, generator())
        if restored is None:
            return
        assert restored.shape == slices.images.shape and torch.isfinite(restored).all()
        assert not restored[~slices.masks].any()

    def test_a_lesion_scores_higher_than_the_same_tissue(self, method: Method, slices: Slices) -> None:
        if method.name == "uniad":  # directions of features take many steps to mean something, lengths do at once
            method.config = replace(method.config, cosine=False)
        changed = slices.images.clone()
        changed[0, 0, 30:42, 50:64] = 1.4
        sick = method.score(replace(slices, images=changed), generator())[0, 0, 32:40, 52:62]
        assert sick.mean() > method.score(slices, generator())[0, 0, 32:40, 52:62].mean()

    def test_configuration_builds_the_same_again(self, method: Method, slices: Slices) -> None:
        again = create_method(method.name, config=method.configuration())
        assert again.config == method.config
        again.load_state_dict(method.state_dict())
        again.eval().requires_grad_(False)
        assert torch.equal(again.score(slices, generator()), method.score(slices, generator()))

    def test_save_equals_load(self, method: Method, slices: Slices, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "bundle", method.name, method.configuration())
        bundle.method = method
        loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle").path).method
        assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
        expected = method.score(slices, generator())
        error = (loaded.score(slices, generator()) - expected).abs()[slices.masks]
        # A pixel at IterMask2's threshold may fall on either side of it, and its neighbours' inpainting with it.
        share = 0.98 if method.name == "itermask2" else 1.0
        assert torch.quantile(error, share) <= 0.01 * expected.max()

    def test_the_shipped_size(self, case: tuple[str, str], tmp_path: Path) -> None:
        if case[1] != "compact":
            pytest.skip("only compact bundles are shipped")
        make_bundle(tmp_path, case[0])
        size = (tmp_path / "models" / "model.safetensors").stat().st_size
        assert size <= LARGEST_SHIPPED < LARGEST_WEIGHTS

    def test_steps_lower_the_loss_of_a_fixed_batch(self, case: tuple[str, str], method: Method) -> None:
        if method.presets[case[1]].schedule is None:
            pytest.skip("this preset is fitted, not trained")
        losses = take_steps(method.requires_grad_(True), [brain_slices(4, seed=7)], 12)
        assert losses[-1] < 0.95 * losses[0]

    def test_the_loss_is_deterministic_under_the_generator(self, case: tuple[str, str], method: Method) -> None:
        batch = brain_slices(2, seed=7)
        if method.presets[case[1]].schedule is None:
            with pytest.raises(TypeError, match="fitted"):
                method.training_loss(batch, generator())
            return
        first, again, other = (float(method.training_loss(batch, generator(seed))) for seed in (3, 3, 4))
        assert first == again != other

    def test_a_training_step_stays_on_the_device(self, case: tuple[str, str], method: Method) -> None:
        if method.presets[case[1]].schedule is None:
            pytest.skip("this preset is fitted, not trained")
        method.to("meta")  # a device without values, on every machine: nothing can be fetched from it
        assert method.training_loss(brain_slices(2).to("meta"), generator()).device.type == "meta"

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    def test_cuda_equals_cpu(self, method: Method, slices: Slices) -> None:
        expected = method.score(slices, generator())
        scores = method.to("cuda").score(slices.to("cuda"), generator()).cpu()
        assert (scores - expected).abs().max() <= 0.01 * expected.max()

    def test_the_method_says_what_it_is(self, case: tuple[str, str]) -> None:
        cls = method_class(case[0])
        assert cls.name == case[0] and cls.paper and cls.__doc__
        config = cls.presets[case[1]].config
        assert is_dataclass(config) and fields(config)
        with pytest.raises(AttributeError):
            setattr(config, fields(config)[0].name, None)


class TestRegistry:
    def test_there_is_a_compact_preset_of_every_method(self) -> None:
        assert list_methods() == sorted(list_methods())
        assert all("compact" in method_class(name).presets for name in list_methods())

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("gan",), "METHOD_UNKNOWN"),
            (("../disyre",), "METHOD_UNKNOWN"),
            (("disyre", "huge"), "PRESET_UNKNOWN"),
            (("disyre", "compact", {"colour": 1}), "CONFIG_INVALID"),
            (("disyre", "compact", {"widths": 5}), "CONFIG_INVALID"),
        ],
    )
    def test_refusals(self, arguments: tuple, code: str) -> None:
        with pytest.raises(InputError) as refusal:
            create_method(*arguments)
        assert refusal.value.code == code

    @pytest.mark.parametrize(
        ("name", "preset"), [(name, preset) for name in list_methods() for preset in method_class(name).presets]
    )
    def test_what_changes_a_preset_can_be_told_and_read_again(self, name: str, preset: str) -> None:
        config = asdict(method_class(name).presets[preset].config)
        assert configuration_changes(name, preset, config) == [] and changed_configuration(name, preset, []) == config
        for option, value in config.items():
            if isinstance(value, bool):
                other = not value
            else:
                other = value[::-1] if isinstance(value, tuple) else "x" if isinstance(value, str) else value + 1
            changes = configuration_changes(name, preset, config | {option: other})
            assert [change.split("=")[0] for change in changes] == ([option] if other != value else [])
            assert changed_configuration(name, preset, changes) == config | {option: other}

    @pytest.mark.parametrize("change", ["colour=1", "widths", "widths=a,b", "augment=perhaps", "levels=2.5", "=3", ""])
    def test_changes_that_cannot_be_made(self, change: str) -> None:
        with pytest.raises(InputError) as refusal:
            changed_configuration("disyre", "compact", [change])
        assert refusal.value.code == "CONFIG_INVALID" and refusal.value.advice

    def test_configurations_survive_json(self) -> None:
        import json

        for name, preset in CASES + [(name, "paper") for name in PUBLISHED]:
            with torch.device("meta"):  # published sizes need not be allocated for this
                method = create_method(name, preset)
                again = create_method(name, config=json.loads(json.dumps(method.configuration())))
            assert again.config == method.config
            assert again.state_dict().keys() == method.state_dict().keys()


class TestIntensityNorm:
    @pytest.mark.parametrize("coarse", [1, 2, 3])
    def test_mean_and_spread_are_those_of_the_brains(self, coarse: int) -> None:
        config = small_config("intensity_norm", "compact") | {"coarse": coarse}
        method = create_method("intensity_norm", config=config)
        brains = [brain_slices(DEPTH, seed) for seed in range(6)]
        method.fit(brains)
        images = torch.stack([brain.images for brain in brains])
        inside = brains[0].masks
        mean, spread, count = (
            method._fine(part, torch.arange(DEPTH)) for part in (method.mean, method.spread, method.count)
        )
        assert mean.shape == inside.shape
        assert count.max() == 6 and not method.score(brain_slices(DEPTH, 3), generator())[~inside].any()
        if coarse == 1:
            torch.testing.assert_close(mean[inside], images.mean(dim=0)[inside])
            torch.testing.assert_close(spread[inside], images.std(dim=0, correction=0)[inside], atol=1e-5, rtol=1e-4)
            assert (count[inside] == 6).all() and not count[~inside].any()
        else:  # what blocks of voxels have in common is kept
            deep = -torch.nn.functional.max_pool2d(-inside.float(), 9, 1, 4) > 0
            assert mean[deep].mean() == pytest.approx(float(images.mean(dim=0)[deep].mean()), rel=0.02)
            assert spread[deep].mean() == pytest.approx(float(images.std(dim=0, correction=0)[deep].mean()), rel=0.1)

    def test_what_too_few_brains_cover_is_not_scored(self) -> None:
        config = small_config("intensity_norm", "compact") | {"coarse": 1}
        method = create_method("intensity_norm", config=config)
        brains = [brain_slices(DEPTH, seed) for seed in range(6)]
        for brain in brains[:2]:
            brain.masks[..., :40, :] = False
        method.fit(brains)
        scores = method.score(brain_slices(DEPTH, 9), generator())
        assert not scores[..., :40, :].any() and scores[..., 40:, :].any()

    def test_fewer_brains_than_that_all_have_to_cover_a_voxel(self) -> None:
        config = small_config("intensity_norm", "compact") | {"coarse": 1}
        method = create_method("intensity_norm", config=config)
        brains = [brain_slices(DEPTH, seed) for seed in range(2)]
        brains[0].masks[..., :40, :] = False
        method.fit(brains)
        scores = method.score(brain_slices(DEPTH, 9), generator())
        assert not scores[..., :40, :].any() and scores[..., 40:, :].any()

    def test_slices_may_come_in_any_order(self) -> None:
        pieces = list(
            itertools.chain.from_iterable((b[n : n + 1] for n in range(DEPTH)) for b in map(brain_slices, [DEPTH] * 2))
        )
        forward, backward = (
            create_method("intensity_norm", config=small_config("intensity_norm", "compact")) for _ in "ab"
        )
        forward.fit(pieces)
        backward.fit(pieces[::-1])
        torch.testing.assert_close(forward.mean, backward.mean)


class TestDisyre:
    def test_strength_reaches_the_network_on_a_logarithmic_scale(self) -> None:
        method = learnt("disyre", "compact")
        seen: list[torch.Tensor] = []
        method.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
        method.score(brain_slices(1), generator())
        values = torch.cat(seen)
        assert len(values) == len(method.config.strengths)
        assert (values.diff() > 0).all() and values.min() > 0 and values.max() < 1000

    def test_levels_are_measured_and_kept(self) -> None:
        method = learnt("disyre", "compact")
        fresh = create_method("disyre")
        assert (method.levels.diff() > 0).all()
        assert not torch.equal(method.levels, fresh.levels)
        assert "levels" in method.state_dict()


def million(module: torch.nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


class TestPublished:
    """The ``paper`` presets: sizes as published, and one step and one scored slice of each."""

    @pytest.mark.parametrize(
        ("name", "part", "count"),
        [
            ("andi", "network", 7.54),
            ("disyre", "network", 39.25),
            ("riad", "network", 6.27),
            ("itermask2", "first", 6.75),
            ("itermask2", "second", 6.75),
            ("fae", "network", 12.5),
            ("reverse_distillation", "bottleneck", 67.3),
            ("reverse_distillation", "decoder", 24.9),
            ("uniad", "network", 7.69),
        ],
    )
    def test_parameters(self, name: str, part: str, count: float) -> None:
        with torch.device("meta"):
            method = create_method(name, "paper")
        assert million(method.get_submodule(part)) == pytest.approx(count, rel=0.01)

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
            for name in PUBLISHED
            if name != "context_vae"  # 0.8 thousand million weights
        ],
    )
    def test_a_step_and_a_slice(self, name: str, slices: Slices) -> None:
        torch.manual_seed(0)
        method = create_method(name, "paper", small_config(name, "paper"))
        healthy = [brain_slices(2, seed) for seed in range(2)]
        method.fit(healthy)
        if method.presets["paper"].schedule is not None:
            before = copy.deepcopy(method.state_dict())
            method.train()
            optimiser = torch.optim.AdamW(method.parameters(), lr=1e-4)
            loss = method.training_loss(healthy[0][:1], generator())
            loss.backward()
            optimiser.step()
            assert torch.isfinite(loss) and loss.detach() > 0
            assert any(not torch.equal(before[key], value) for key, value in method.named_parameters())
        method.eval().requires_grad_(False)
        method.finish([healthy[1][:1]])
        scores = method.score(slices[:1], generator())
        assert scores.shape == (1, 1, 80, 96) and torch.isfinite(scores).all()
        assert scores.min() >= 0 and scores.max() > 0 and not scores[~slices.masks[:1]].any()


class TestFrame:
    def test_maps_come_back_to_where_they_were(self) -> None:
        made, frame = brain_slices(2), Frame(224, 2)
        images, masks = frame.enter(made.images, made.masks)
        assert images.shape == masks.shape == (2, 1, 224, 224)
        assert not images[~masks].any()
        torch.testing.assert_close(frame.leave(masks.float(), made.images.shape), made.masks.float())
        marked = torch.zeros_like(images)
        marked[:, :, 32 + 2 * 10 : 32 + 2 * 11, 16 + 2 * 70 : 16 + 2 * 71] = 1  # 80 x 96 in the middle of 112 x 112
        back = frame.leave(marked, made.images.shape)
        assert back.sum() == 2 and back[0, 0, 10, 70] == back[1, 0, 10, 70] == 1

    def test_smooth_images_survive(self) -> None:
        made, frame = brain_slices(2), Frame(224, 2)
        back = frame.leave(frame.enter(made.images, made.masks)[0], made.images.shape)
        error = (back - made.images).abs()[..., 30:50, 30:60]
        assert error.max() < 0.02

    def test_no_frame_changes_nothing(self) -> None:
        made = brain_slices(1)
        assert Frame().enter(made.images, made.masks)[0] is made.images

    def test_slices_that_do_not_fit_are_refused(self) -> None:
        made = brain_slices(1)
        with pytest.raises(ValueError, match="192"):
            Frame(128, 2).enter(made.images, made.masks)


class TestAndi:
    def test_the_factor_is_that_of_the_posterior_means(self) -> None:
        """The published score, taken literally, equals the factorised one."""
        with torch.device("meta"):
            method = create_method("andi", "paper")
        assert method.posterior_factor() == pytest.approx(6.64e-4, rel=0.01)
        times = method.times().double()
        noise, truth, guess = (torch.rand(3, 100, generator=generator(2), dtype=torch.float64) * 2 - 1).unbind()
        later, sooner = method.log_snr(times), method.log_snr(times - 1e-3)
        alpha, sigma = torch.sigmoid(later).sqrt(), torch.sigmoid(-later).sqrt()
        noisy = alpha * truth + sigma * noise
        share = 1 - torch.exp(later - sooner)  # of the clean slice in the mean of one reverse step
        next_alpha = torch.sigmoid(sooner).sqrt()
        steps = [next_alpha * (noisy * (1 - share) / alpha + share * clean) for clean in (guess, truth)]
        literal = (steps[0] - steps[1]).square().log().mean().exp()
        direct = method.posterior_factor() * (guess - truth).square().log().mean().exp()
        assert float(literal) == pytest.approx(float(direct), rel=1e-9)

    def test_levels_of_the_published_score(self) -> None:
        with torch.device("meta"):
            method = create_method("andi", "paper")
        with torch.device("cpu"):
            times = method.times()
        torch.testing.assert_close(times, torch.linspace(0.125, 0.026, 100))
        ratios = method.log_snr(times)
        assert float(ratios[0]) == pytest.approx(0.45, abs=0.01) and float(ratios[-1]) == pytest.approx(3.60, abs=0.01)

    def test_levels_of_the_compact_score_are_even_in_log_snr(self) -> None:
        method = create_method("andi")
        ratios = method.log_snr(method.times())
        assert (ratios.diff() > 0).all()
        torch.testing.assert_close(ratios.diff(), ratios.diff().mean().expand(19), atol=0.01, rtol=0.02)

    def test_pixels_of_twice_the_edge_get_a_quarter_of_the_noise_power(self) -> None:
        fine, coarse = (create_method("andi", config={"widths": (8,), "side": side}) for side in (224, 112))
        time = torch.tensor([0.1])
        assert float(coarse.log_snr(time) - fine.log_snr(time)) == pytest.approx(np.log(4), rel=1e-4)

    def test_a_perfect_model_finds_nothing_and_a_blind_one_everything(self) -> None:
        method, made = create_method("andi", config={"averaged": 1}), brain_slices(1)
        method._cleaned = lambda images, time, noise: images
        assert method.score(made, generator()).max() <= 0.51 * method.config.floor**0.5
        method._cleaned = lambda images, time, noise: -torch.ones_like(images)
        torch.testing.assert_close(method.score(made, generator()), made.images, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("option", ["noise_per_batch", "unscaled_time", "published_scale", "even_times"])
    def test_options_count(self, option: str) -> None:
        torch.manual_seed(0)
        config = {"widths": (8, 16), "levels": 3}
        plain, other = (create_method("andi", config=config | {option: value}) for value in (False, True))
        move(plain)
        other.load_state_dict(plain.state_dict())
        made = brain_slices(2)
        loss = [float(method.training_loss(made, generator()).detach()) for method in (plain, other)]
        score = [method.score(made, generator()) for method in (plain, other)]
        assert loss[0] != loss[1] or not torch.allclose(score[0], score[1])


class TestRiad:
    def test_no_pixel_is_seen_by_its_own_inpainting(self) -> None:
        """With a network that hands its input on, all that is stitched together was hidden."""
        method = create_method("riad")
        method.network = torch.nn.Identity()
        made = brain_slices(2)
        for cell in method.config.cells:
            assert not method._stitched(made.images, cell, generator()).any()

    @pytest.mark.parametrize("cell", [7, 8])
    def test_every_pixel_is_inpainted_once(self, cell: int) -> None:
        class Ones(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.ones_like(x)

        method = create_method("riad")
        method.network = Ones()
        assert (method._stitched(brain_slices(2).images, cell, generator()) == 1).all()

    def test_a_perfect_inpainting_scores_nothing(self) -> None:
        method, made = create_method("riad"), brain_slices(2)
        method._stitched = lambda images, cell, generator: images
        assert method.score(made, generator()).max() < 1e-5

    def test_the_healthy_slice_is_what_training_asks_for(self) -> None:
        made, shown = brain_slices(4), []
        for restore in (True, False):
            method = create_method("riad", config={"augment": False, "restore": restore})

            def stitched(images: torch.Tensor, cell: int, generator: torch.Generator) -> torch.Tensor:
                shown.append(images)
                return made.images

            method._stitched = stitched
            assert float(method.training_loss(made, generator())) < 1e-4
        assert not torch.equal(shown[0], made.images) and torch.equal(shown[1], made.images)

    def test_an_even_difference_is_scored_by_the_residual_alone(self) -> None:
        made = brain_slices(2)
        for weight in (0.0, 4.0):
            method = create_method("riad", config={"residual": weight, "smoothing": 1})
            method._stitched = lambda images, cell, generator: images - 0.3
            scores = method.score(made, generator())[made.masks]
            torch.testing.assert_close(scores, torch.full_like(scores, 0.3 * weight), rtol=0, atol=1e-3)

    def test_published_weights_favour_large_squares(self) -> None:
        weighted, plain = (create_method("riad", config={"published_weights": value}) for value in (True, False))
        for method in (weighted, plain):
            method._stitched = lambda images, cell, generator: images * (cell != 16)
        made = brain_slices(1)
        share = weighted.score(made, generator()) / plain.score(made, generator()).clamp(min=1e-9)
        torch.testing.assert_close(share[made.masks], torch.full_like(share[made.masks], 3 / 30), rtol=1e-3, atol=1e-3)

    def test_the_minimum_is_subtracted_on_request_alone(self) -> None:
        torch.manual_seed(0)
        plain, less = (create_method("riad", config={"widths": (8, 16), "subtract_minimum": v}) for v in (False, True))
        less.load_state_dict(plain.state_dict())
        made = brain_slices(1)
        first, second = plain.score(made, generator()), less.score(made, generator())
        assert first[made.masks].min() > second[made.masks].min()


class TestIterMask2:
    def test_the_threshold_is_the_quantile_of_hidden_errors(self) -> None:
        method = create_method("itermask2", config={"quantile": 1.0, "slices": 8})
        method._inpaint = lambda images, hint, hidden, noise: images + 0.5
        method.finish([brain_slices(4, seed) for seed in range(3)])
        assert float(method.threshold) == pytest.approx(0.25, rel=1e-4)
        assert "threshold" in method.state_dict()

    def test_the_mask_shrinks_to_what_cannot_be_inpainted(self) -> None:
        method, made = create_method("itermask2", config={"first_share": 1.0, "averaged": 1}), brain_slices(2, seed=4)
        sick = torch.zeros_like(made.masks)
        sick[:, :, 30:40, 40:50] = True
        method._inpaint = lambda images, hint, hidden, noise: images + 1.0 * sick[: len(images)]
        method.threshold.fill_(0.5)
        _, _, hidden = method._shrink(made, generator())
        assert torch.equal(hidden, sick)
        scores = method.score(made, generator())
        assert (scores[sick] == 2).all() and not scores[~sick].any()

    def test_a_slice_that_is_done_is_left_alone(self) -> None:
        method, made = create_method("itermask2", config={"first_share": 1.0}), brain_slices(2)
        calls = []

        def inpaint(images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return images

        method._inpaint = inpaint
        method._shrink(made, generator())
        assert calls == [2]

    def test_the_hint_has_no_low_frequencies_but_keeps_the_rest(self) -> None:
        method = create_method("itermask2")
        smooth, rough = torch.ones(1, 1, 80, 96), torch.ones(1, 1, 80, 96)
        rough[..., ::2] = -1
        assert method.hint(smooth).abs().max() < 1e-5
        torch.testing.assert_close(method.hint(rough), rough, atol=1e-5, rtol=1e-5)

    def test_the_two_networks_share_no_gradient(self) -> None:
        method, made = create_method("itermask2"), brain_slices(2)
        method.second.requires_grad_(False)
        method.training_loss(made, generator()).backward()
        assert all(weight.grad is not None for weight in method.first.parameters())


class TestPublishedDisyre:
    def test_labels(self) -> None:
        assert published_label(torch.tensor([1.0, 0.727, 0.272, 0.051, 0.0045, 0.0])).tolist() == [
            0,
            24,
            49,
            74,
            99,
            99,
        ]

    def test_windows_are_blended_without_a_seam(self) -> None:
        method = create_method("disyre", config={"widths": (8, 16), "window": 48, "step": 16})
        method._restore = lambda images, strength: images
        made = brain_slices(2)
        torch.testing.assert_close(method._restored(made, 0.5), made.images)
        assert method.score(made, generator()).max() < 1e-5

    def test_brain_share_lowers_scores(self) -> None:
        plain, less = (create_method("disyre", config={"widths": (8, 16), "brain_share": v}) for v in (False, True))
        move(plain)
        less.load_state_dict(plain.state_dict())
        made = brain_slices(1)
        share = float(made.masks.float().mean())
        torch.testing.assert_close(less.score(made, generator()), share * plain.score(made, generator()))


class TestBrainAverage:
    def test_it_is_the_mean_of_the_brain_in_the_square(self) -> None:
        values = torch.rand(2, 3, 12, 10, generator=generator())
        brain = torch.rand(2, 1, 12, 10, generator=generator(1)) > 0.4
        averaged = brain_average(values, brain, 5)
        for n, c, x, y in [(0, 0, 0, 0), (1, 2, 6, 5), (0, 1, 11, 4)]:
            square = slice(max(x - 2, 0), x + 3), slice(max(y - 2, 0), y + 3)
            expected = values[n, c][square][brain[n, 0][square]].mean()
            torch.testing.assert_close(averaged[n, c, x, y], expected)

    def test_one_pixel_is_no_average_and_no_brain_is_zero(self) -> None:
        values = torch.rand(1, 1, 6, 6)
        assert brain_average(values, torch.zeros(1, 1, 6, 6, dtype=torch.bool), 1) is values
        assert not brain_average(values, torch.zeros(1, 1, 6, 6, dtype=torch.bool), 3).any()


AVERAGING = ("andi", "context_vae", "itermask2", "reverse_distillation", "riad")


@pytest.mark.parametrize("name", AVERAGING)
class TestAveragedDifference:
    """An even difference counts in full, one that alternates from pixel to pixel hardly."""

    @staticmethod
    def scores(name: str, averaged: int, alternating: bool) -> float:
        def difference(like: torch.Tensor) -> torch.Tensor:
            x, y = torch.meshgrid(*(torch.arange(size) for size in like.shape[-2:]), indexing="ij")
            return torch.where((x + y) % 2 == 1, -0.1 if alternating else 0.1, 0.1)

        config = {"averaged": averaged} | ({"residual": 100.0} if name == "riad" else {})  # not gradients, which stay
        made, method = brain_slices(2), create_method(name, config=config)
        method.fit([made])
        if name == "andi":
            method._cleaned = lambda images, time, noise: images + difference(images)
        elif name == "context_vae":
            method._decode = lambda code: made.images + difference(made.images)
        elif name == "itermask2":
            method._inpaint = lambda images, hint, hidden, noise: images + difference(images)
        elif name == "riad":
            method._stitched = lambda images, cell, generator: images + difference(images)
        else:
            method._student = lambda maps: [part * (1 - 20 * difference(part)) for part in maps]
        return float(method.score(made, generator())[made.masks].mean())

    def test_even(self, name: str) -> None:
        plain, averaged = (self.scores(name, side, alternating=False) for side in (1, 9))
        assert averaged == pytest.approx(plain, rel=0.15) and plain > 0

    def test_alternating(self, name: str) -> None:
        plain, averaged = (self.scores(name, side, alternating=True) for side in (1, 9))
        assert 0 <= averaged < 0.7 * plain

    def test_the_published_one_averages_nothing(self, name: str) -> None:
        presets = method_class(name).presets
        assert presets["paper"].config.averaged == 1 < presets["compact"].config.averaged


class TestScanScore:
    def test_the_highest_tenth_counts(self) -> None:
        assert scan_score(torch.arange(40.0)) == pytest.approx(37.5)
        assert scan_score(torch.tensor([3.0])) == 3.0


class TestPatchCore:
    def config(self, **changes: Any) -> dict[str, Any]:
        return {"memory": 50, "pool": 500} | changes

    def test_what_is_in_memory_scores_nothing(self) -> None:
        method, made = create_method("patchcore", config=self.config(memory=4_000, pool=4_000)), brain_slices(2)
        method.fit([made])
        scores = method.score(made, generator())
        assert scores.max() < 1e-3
        other = method.score(brain_slices(2, seed=9), generator())
        assert other[made.masks].mean() > 10 * scores[made.masks].mean()

    def test_distances_are_those_of_brute_force(self) -> None:
        for squared in (False, True):
            method = create_method("patchcore", config=self.config(squared=squared))
            method.memory.copy_(torch.rand(method.memory.shape, generator=generator()))
            found = torch.rand(30, method.memory.shape[1], generator=generator(1))
            expected = torch.cdist(found, method.memory).amin(dim=1) ** (2 if squared else 1)
            torch.testing.assert_close(method._nearest(found), expected, atol=1e-4, rtol=1e-4)

    def test_farthest_points_cover_better_than_chance(self) -> None:
        config = method_class("patchcore").presets["compact"].config
        pool = torch.cat([torch.randn(2_000, 8, generator=generator()), 9 + torch.randn(5, 8, generator=generator(1))])
        small = replace(config, memory=20, projection=8)
        chosen = farthest_points(pool, small, generator())
        assert len(chosen.unique()) == 20
        far = torch.cdist(pool, pool[chosen]).amin(dim=1).max()
        assert far < torch.cdist(pool, pool[:20]).amin(dim=1).max()
        assert (chosen >= 2_000).any()  # the rare kind is covered

    def test_a_small_pool_repeats(self) -> None:
        config = replace(method_class("patchcore").presets["compact"].config, memory=7)
        chosen = farthest_points(torch.rand(3, 8, generator=generator()), config, generator())
        assert len(chosen) == 7 and set(chosen.tolist()) == {0, 1, 2}

    def test_gathering_is_an_even_sample_in_bounded_memory(self) -> None:
        method = create_method("patchcore", config=self.config(pool=300, standardise=False))
        batches = [replace(brain_slices(1), positions=torch.tensor([10 * number])) for number in range(8)]
        pool = method._gather(iter(batches), generator())
        assert len(pool) == 300
        counts = torch.bincount((pool[:, -3] / (2 / method.config.place_mm) / 10).round().long(), minlength=8)
        assert counts.min() > 15 and counts.sum() == 300

    def test_place_counts(self) -> None:
        made = brain_slices(1)
        moved = replace(made, positions=made.positions + 40)
        for place_mm, same in ((0.0, True), (10.0, False)):
            method = create_method("patchcore", config=self.config(place_mm=place_mm))
            method.fit([made])
            alike = torch.allclose(method.score(made, generator()), method.score(moved, generator()), atol=1e-4)
            assert alike == same

    def test_the_published_description_has_its_length(self) -> None:
        config = self.config(pooled=40, neighbourhood=5, place_mm=0.0, brain_only=False, squared=True)
        method, made = create_method("patchcore", config=config), brain_slices(2)
        method.fit([made])
        assert method.memory.shape == (50, 40)
        assert method._describe(made).shape == (2 * 40 * 48, 40)


@pytest.mark.parametrize("name", ["fae", "reverse_distillation", "uniad"])
class TestRestoredFeatures:
    def test_anomalies_are_shown_and_healthy_features_asked_for(self, name: str) -> None:
        method, made = create_method(name, config={"augment": False, "restore": True}), brain_slices(4)
        shown, wanted, masks = method.training_maps(made, generator())
        assert torch.equal(masks, made.masks)
        spoiled = replace(made, images=with_anomalies(made.images, made.masks, generator()))
        assert not torch.equal(spoiled.images, made.images)
        for values, maps in ((shown, method.maps(spoiled)), (wanted, method.maps(made))):
            assert all(torch.equal(value, map_) for value, map_ in zip(values, maps, strict=True))

    def test_the_published_preset_asks_for_what_it_shows(self, name: str) -> None:
        assert not method_class(name).presets["paper"].config.restore
        method = create_method(name, config={"restore": False})
        shown, wanted, _ = method.training_maps(brain_slices(2), generator())
        assert shown is wanted


class TestUniad:
    def test_a_token_does_not_see_its_neighbourhood(self) -> None:
        hidden = neighbours((5, 6), 3)
        assert hidden[7].nonzero().flatten().tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
        assert neighbours((5, 6), 1).equal(torch.eye(30, dtype=torch.bool))

    def test_with_a_blind_neighbourhood_a_token_cannot_be_copied(self) -> None:
        torch.manual_seed(0)
        network = QueryTransformer(
            8, (6, 6), width=16, heads=2, inner=32, encoders=0, decoders=1, neighbourhood=3, dropout=0.0
        )
        tokens = torch.rand(1, 36, 8, requires_grad=True)
        network(tokens)[0, 14].sum().backward()
        seen = tokens.grad[0].abs().sum(1) > 0
        assert not seen[neighbours((6, 6), 3)[14]].any() and seen.any()

    def test_the_background_does_not_count(self) -> None:
        class Answer(torch.nn.Module):
            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                return answer

        made, losses = brain_slices(2), []
        for brain_only in (True, False):
            config = {"augment": False, "restore": False, "brain_only": brain_only}
            method = create_method("uniad", config=config)
            share = torch.nn.functional.adaptive_avg_pool2d(made.masks.float(), method.config.grid).flatten(1)
            answer = method._tokens(method.maps(made)) + 100 * (share == 0)[..., None]
            method.network = Answer()
            losses.append(float(method.training_loss(made, generator())))
        assert losses[0] < 1e-6 and losses[1] > 1

    def test_how_loud_features_are_counts_in_length_alone(self) -> None:
        class Twice(torch.nn.Module):
            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                return 2 * tokens

        made, scores = brain_slices(2), []
        for cosine in (True, False):
            method = create_method("uniad", config={"cosine": cosine})
            method.fit([made])
            method.network = Twice()
            scores.append(float(method.score(made, generator()).max()))
        assert scores[0] < 1e-5 and scores[1] > 0.1

    def test_every_map_counts_the_same_by_direction(self) -> None:
        method, made = create_method("uniad"), brain_slices(2)
        method.fit([made])
        channels = method.backbone.channels
        for number in range(len(channels)):
            signs = torch.cat(
                [torch.full((count,), -1.0 if place == number else 1.0) for place, count in enumerate(channels)]
            )
            method.network = torch.nn.Identity()
            method.network.forward = lambda tokens, signs=signs: tokens * signs
            scores = method.score(made, generator())[made.masks]
            torch.testing.assert_close(scores, torch.full_like(scores, 2 / len(channels)))

    def test_direction_scores_the_angle_and_not_its_square(self) -> None:
        class Turned(torch.nn.Module):
            """Adds a share of something at right angles, channels in pairs, so that every map is turned by an angle."""

            def __init__(self, angle: float) -> None:
                super().__init__()
                self.angle = angle

            def forward(self, tokens: torch.Tensor) -> torch.Tensor:
                aside = torch.stack([-tokens[..., 1::2], tokens[..., ::2]], dim=-1).flatten(2)
                return tokens + self.angle * aside

        method, made, scores = create_method("uniad"), brain_slices(2), []
        method.fit([made])
        for angle in (0.02, 0.04):
            method.network = Turned(angle)
            scores.append(float(method.score(made, generator()).max()))
        assert scores == pytest.approx([0.02, 0.04], rel=0.01)

    def test_jitter_works_in_training_alone(self) -> None:
        method, made = create_method("uniad", config={"augment": False}), brain_slices(2)
        method.eval()
        losses = {float(method.training_loss(made, generator(seed))) for seed in range(2)}
        assert len(losses) == 2
        assert torch.equal(method.score(made, generator(0)), method.score(made, generator(1)))


class TestReverseDistillation:
    def test_a_student_that_agrees_scores_nothing(self) -> None:
        method, made = create_method("reverse_distillation", config={"restore": False}), brain_slices(2)
        method.fit([made])
        method._student = lambda maps: maps
        assert method.score(made, generator()).max() < 1e-4
        assert float(method.training_loss(made, generator())) < 1e-4

    def test_the_published_loss_is_that_of_whole_maps(self) -> None:
        both = create_method("reverse_distillation", config={"augment": False})
        whole = create_method("reverse_distillation", config={"augment": False, "by_place": 0.0})
        whole.load_state_dict(both.state_dict())
        made = brain_slices(2)
        with torch.no_grad():
            assert float(both.training_loss(made, generator())) > float(whole.training_loss(made, generator())) > 0

    def test_the_unused_layer_is_counted_and_never_used(self) -> None:
        bottleneck = Bottleneck((8, 16, 32), 32, 1, False, unused_layer=True)
        maps = [torch.rand(1, 8, 16, 16), torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)]
        bottleneck(maps).sum().backward()
        idle = {name.split(".")[0] for name, weight in bottleneck.named_parameters() if weight.grad is None}
        assert idle == {"unused"}

    def test_maps_of_odd_sizes_come_back(self) -> None:
        sizes = [torch.Size(size) for size in ((5, 7), (10, 14), (20, 28))]
        maps = Decoder(16, (8, 16, 32), (1, 1, 1), wide=False)(torch.rand(1, 16, 3, 4), sizes)
        assert [tuple(part.shape[1:]) for part in maps] == [(8, 20, 28), (16, 10, 14), (32, 5, 7)]


class TestContextVae:
    @pytest.mark.parametrize("score", ["residual", "gradient", "latent"])
    def test_every_score_keeps_the_contract(self, score: str, slices: Slices) -> None:
        torch.manual_seed(0)
        method = create_method("context_vae", config={"score": score}).eval().requires_grad_(False)
        with torch.inference_mode():
            scores = method.score(slices, generator())
            single = torch.cat([method.score(slices[n : n + 1], generator()) for n in range(4)])
        torch.testing.assert_close(scores, single, atol=1e-5, rtol=1e-4)
        assert torch.isfinite(scores).all() and scores.min() >= 0 and scores[0].any()
        assert not scores[~slices.masks].any()

    def test_the_gradient_is_that_of_the_divergence(self) -> None:
        torch.manual_seed(0)
        method, made = create_method("context_vae", config={"smoothing": 1}), brain_slices(1)
        method.double()
        images, step = made.images.double(), torch.zeros(1, 1, 80, 96, dtype=torch.float64)
        step[0, 0, 40, 48] = 1e-5

        def divergence(values: torch.Tensor) -> float:
            mean, log_spread = method.mean(method.encoder(values)), method.log_spread(method.encoder(values))
            return float(method._divergence(mean, log_spread).sum())

        slope = (divergence(images + step) - divergence(images - step)) / 2e-5
        assert float(method._pull(images)[0, 0, 40, 48]) == pytest.approx(abs(slope), rel=0.02)

    def test_slices_and_scans_have_scores(self, slices: Slices) -> None:
        torch.manual_seed(0)
        method = create_method("context_vae").requires_grad_(False)
        scores = method.slice_scores(slices, generator())
        assert scores.shape == (4,) and (scores[:2] > 0).all() and scores[2] == 0
        assert scan_score(scores) == float(scores.max())
        assert create_method("disyre", config={"widths": (8, 16)}).slice_scores(slices, generator()) is None

    def test_squares_are_painted_in_one_tone(self) -> None:
        images = brain_slices(16).images
        painted = paint_squares(images, generator(), most=3)
        changed = painted != images
        assert 0 < changed.flatten(1).any(1).sum() < 16  # none is one of the numbers of squares
        assert painted.min() >= images.min() and painted.max() <= images.max()
        assert max(len(painted[n][changed[n]].unique()) for n in range(16)) <= 3

    def test_an_unknown_score_is_refused(self) -> None:
        with pytest.raises(InputError) as refusal:
            create_method("context_vae", config={"score": "entropy"})
        assert refusal.value.code == "CONFIG_INVALID"

    def test_the_size_of_the_published_one(self) -> None:
        with torch.device("meta"):
            method = create_method("context_vae", "paper")
            images = torch.empty(1, 1, 256, 256)
            mean, log_spread = method._encode(images)
            assert method._decode(mean).shape == images.shape
        assert mean.shape == log_spread.shape == (1, 1024, 1, 1)


class Noisy(torch.nn.Module):
    """An autoencoder that is right but for noise."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps + 0.05 * torch.randn(maps.shape, generator=generator())


class TestFae:
    def test_the_published_windows_differ(self) -> None:
        config = method_class("fae").presets["paper"].config
        assert (config.loss_window, config.score_window) == (5, 11)

    def test_a_perfect_autoencoder_scores_nothing(self) -> None:
        method, made = create_method("fae"), brain_slices(1)
        method.network = torch.nn.Identity()
        assert method.score(made, generator()).max() < 1e-3

    def test_noise_counts_for_less_in_a_larger_unit(self) -> None:
        scores = []
        for unit in (1.0, 20.0):
            torch.manual_seed(0)  # the same random backbone
            method = create_method("fae", config=small_config("fae", "compact") | {"unit": unit})
            method.network = Noisy()
            scores.append(float(method.score(brain_slices(1), generator()).sum()))
        assert 0 < scores[1] < 0.5 * scores[0]
