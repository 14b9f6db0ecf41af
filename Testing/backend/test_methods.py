"""The contract of ``methods.base``, kept by every method and preset of the registry."""

from __future__ import annotations

import copy
import itertools
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import brain_slices, make_bundle

from UADBenchLib.bundles.bundle import LARGEST_WEIGHTS, load_bundle, save_bundle
from UADBenchLib.errors import InputError
from UADBenchLib.methods.base import Method, Slices
from UADBenchLib.methods.registry import create_method, list_methods, method_class

LARGEST_SHIPPED = 8 * 1024**2
DEPTH = 12
"""Axial positions of the small model grid."""

CASES = [(name, preset) for name in list_methods() for preset in sorted(method_class(name).presets)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_config(name: str, preset: str) -> dict[str, Any]:
    """The preset's configuration, on a model grid of few slices where it has one."""
    config = asdict(method_class(name).presets[preset].config)
    if "shape" in config:
        config["shape"] = (*config["shape"][:2], DEPTH)
    return config


def learnt(name: str, preset: str) -> Method:
    """The method after a pass over a few healthy slices; weights that start at zero are moved away from it."""
    torch.manual_seed(1)
    method = create_method(name, preset, small_config(name, preset))
    method.fit(brain_slices(DEPTH, seed) for seed in range(6))
    with torch.no_grad():
        for weight in method.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator(weight.numel())))
    return method.eval().requires_grad_(False)


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
        changed = slices.images.clone()
        changed[0, 0, 30:42, 50:64] = 1.4
        sick = method.score(replace(slices, images=changed), generator())[0, 0, 32:40, 52:62]
        assert sick.mean() > method.score(slices, generator())[0, 0, 32:40, 52:62].mean()

    def test_configuration_builds_the_same_again(self, method: Method, slices: Slices) -> None:
        again = create_method(method.name, config=method.configuration())
        assert again.config == method.config
        again.load_state_dict(method.state_dict())
        assert torch.equal(again.eval().score(slices, generator()), method.score(slices, generator()))

    def test_save_equals_load(self, method: Method, slices: Slices, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "bundle", method.name, method.configuration())
        bundle.method = method
        loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle").path).method
        assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())
        expected = method.score(slices, generator())
        error = (loaded.score(slices, generator()) - expected).abs().max()
        assert error <= 0.01 * expected.max()

    def test_the_shipped_size(self, case: tuple[str, str], tmp_path: Path) -> None:
        if case[1] != "compact":
            pytest.skip("only compact bundles are shipped")
        make_bundle(tmp_path, case[0])
        size = (tmp_path / "models" / "model.safetensors").stat().st_size
        assert size <= LARGEST_SHIPPED < LARGEST_WEIGHTS

    def test_steps_lower_the_loss_of_a_fixed_batch(self, case: tuple[str, str], method: Method) -> None:
        if method.presets[case[1]].schedule is None:
            pytest.skip("this preset is fitted, not trained")
        batch = brain_slices(4, seed=7)
        method.train().requires_grad_(True)
        optimiser = torch.optim.AdamW(method.parameters(), lr=1e-3)
        losses = []
        for _ in range(8):
            loss = method.training_loss(batch, generator(3))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert loss.shape == ()
        assert losses[-1] < 0.8 * losses[0]

    def test_the_loss_is_deterministic_under_the_generator(self, case: tuple[str, str], method: Method) -> None:
        batch = brain_slices(2, seed=7)
        if method.presets[case[1]].schedule is None:
            with pytest.raises(TypeError, match="fitted"):
                method.training_loss(batch, generator())
            return
        first, again, other = (float(method.training_loss(batch, generator(seed))) for seed in (3, 3, 4))
        assert first == again != other

    def test_training_on_another_device_takes_the_batch_along(self, case: tuple[str, str], method: Method) -> None:
        if method.presets[case[1]].schedule is None:
            pytest.skip("this preset is fitted, not trained")
        for network in method.children():
            network.to("meta")  # a device without values, on every machine
        assert method.training_loss(brain_slices(2), generator()).device.type == "meta"

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

    def test_configurations_survive_json(self) -> None:
        import json

        for name, preset in CASES:
            config = create_method(name, preset).configuration()
            assert (
                create_method(name, config=json.loads(json.dumps(config))).config == create_method(name, preset).config
            )


class TestIntensityNorm:
    def test_mean_and_spread_are_those_of_the_brains(self) -> None:
        method = create_method("intensity_norm", config=small_config("intensity_norm", "compact"))
        brains = [brain_slices(DEPTH, seed) for seed in range(6)]
        method.fit(brains)
        images = torch.stack([brain.images for brain in brains])
        inside = brains[0].masks
        torch.testing.assert_close(method.mean[inside], images.mean(dim=0)[inside])
        torch.testing.assert_close(method.spread[inside], images.std(dim=0, correction=0)[inside], atol=1e-5, rtol=1e-4)
        assert (method.count[inside] == 6).all() and not method.count[~inside].any()

    def test_what_too_few_brains_cover_is_not_scored(self) -> None:
        method = create_method("intensity_norm", config=small_config("intensity_norm", "compact"))
        method.fit(brain_slices(DEPTH, seed) for seed in range(4))
        assert not method.score(brain_slices(DEPTH, 9), generator()).any()

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
