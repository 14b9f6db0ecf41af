"""Feature backbones: sizes, that they stay frozen, standardisation, and each source of weights with its refusals."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from builders import brain_slices, make_bundle
from safetensors.torch import save_file

from UADBenchLib.bundles.bundle import load_bundle, save_bundle
from UADBenchLib.errors import InputError
from UADBenchLib.methods.registry import create_method, list_methods, method_class
from UADBenchLib.networks.backbones import ARCHITECTURES, Backbone

FEATURE_METHODS = ("fae", "patchcore", "reverse_distillation", "uniad")
ALL_TAPS = [(name, tuple(entry.maps)) for name, entry in ARCHITECTURES.items()]


def millions(module: torch.nn.Module) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class TestMaps:
    @pytest.mark.parametrize(("name", "taps"), ALL_TAPS, ids=[name for name, _ in ALL_TAPS])
    def test_channels_and_strides_are_as_stated(self, name: str, taps: tuple[str, ...]) -> None:
        backbone = Backbone(name, taps)
        for values, channels, stride in zip(
            backbone(torch.rand(1, 1, 64, 96)), backbone.channels, backbone.strides, strict=True
        ):
            assert values.shape == (1, channels, 64 // stride, 96 // stride)
            assert values.dtype == torch.float32 and torch.isfinite(values).all() and values.any()

    @pytest.mark.parametrize(
        ("name", "last", "count"),
        [("resnet18", "layer4", 11.690 - 0.513), ("wide_resnet50_2", "layer4", 68.883 - 2.049)],
    )
    def test_sizes_are_those_of_torchvision_less_the_classifier(self, name: str, last: str, count: float) -> None:
        with torch.device("meta"):
            assert millions(Backbone(name, (last,))) == pytest.approx(count, abs=2e-3)

    def test_only_what_is_needed_is_built(self) -> None:
        assert millions(Backbone("b32", ("stem", "stage1"))) < 0.2 * millions(Backbone("b32", ("stage3",)))

    @pytest.mark.parametrize(
        ("name", "taps", "word"),
        [
            ("resnet19", ("layer1",), "resnet19"),
            ("resnet18", ("layer9",), "layer9"),
            ("resnet18", ("layer2", "layer1"), "shallow"),
            ("resnet18", (), "taps"),
        ],
    )
    def test_refusals(self, name: str, taps: tuple[str, ...], word: str) -> None:
        with pytest.raises(ValueError, match=word):
            Backbone(name, taps)

    def test_imagenet_statistics_shift_the_input(self) -> None:
        plain, shifted = (Backbone("resnet18", ("stem",), imagenet_statistics=value) for value in (False, True))
        shifted.load_state_dict(plain.state_dict())
        images = torch.rand(1, 1, 32, 32)
        assert not torch.allclose(plain(images)[0], shifted(images)[0])


class TestFrozen:
    def test_no_gradient_reaches_it_and_normalisation_stays_put(self) -> None:
        backbone = Backbone("b32", ("stage2",))
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        outer = torch.nn.ModuleList([backbone]).train().requires_grad_(True)
        assert not any(module.training for module in backbone.modules())
        (values,) = outer[0](torch.rand(2, 1, 16, 16))
        assert not values.requires_grad
        assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())

    @pytest.mark.parametrize("name", ["fae", "reverse_distillation", "uniad"])
    def test_a_training_step_leaves_it_alone(self, name: str) -> None:
        method = create_method(name)
        before = {key: value.clone() for key, value in method.backbone.state_dict().items()}
        method.train()
        optimiser = torch.optim.AdamW(method.parameters(), lr=0.1)
        method.training_loss(brain_slices(2), torch.Generator().manual_seed(0)).backward()
        optimiser.step()
        assert all(torch.equal(value, before[key]) for key, value in method.backbone.state_dict().items())
        assert all(weight.grad is None for weight in method.backbone.parameters())

    def test_the_pretext_does_train_it(self) -> None:
        method = create_method("ssl_backbone", config={"places": 64})
        method.train()
        method.training_loss(brain_slices(2), torch.Generator().manual_seed(0)).backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in method.backbone.parameters())
        assert method.backbone.training

    def test_the_pretext_marks_the_places_that_it_changed_and_no_others(self) -> None:
        method, slices = create_method("ssl_backbone"), brain_slices(8)
        corrupted, changed = method._corrupt(slices.images, slices.masks, torch.Generator().manual_seed(0))
        assert torch.equal(changed > 0, corrupted != slices.images)
        assert changed.max() == 1 and not changed[~slices.masks].any() and not corrupted[~slices.masks].any()
        assert 0.005 < float((changed > 0).float().mean()) < 0.5


class TestStandardisation:
    def test_maps_have_zero_mean_and_unit_spread_in_the_brain(self) -> None:
        backbone, made = Backbone("b32", ("stem", "stage2")), [brain_slices(4, seed) for seed in range(2)]
        backbone.measure((batch.images, batch.masks) for batch in made)
        for values in backbone(torch.cat([batch.images for batch in made])):
            masks = torch.cat([batch.masks for batch in made]).float()
            inside = torch.nn.functional.adaptive_avg_pool2d(masks, values.shape[-2:])[:, 0] > 0.5
            chosen = values.permute(0, 2, 3, 1)[inside]
            torch.testing.assert_close(chosen.mean(dim=0), torch.zeros(chosen.shape[1]), atol=1e-3, rtol=0)
            spread = chosen.std(dim=0)
            # Channels that are all but silent are not blown up to unit spread.
            assert spread.max() < 1.01 and (spread > 0.99).float().mean() > 0.8

    def test_a_silent_channel_stays_finite(self) -> None:
        backbone, made = Backbone("b32", ("stem",)), brain_slices(2)
        with torch.no_grad():
            backbone.net.stem[0].weight[3] = 0
        backbone.measure([(made.images, made.masks)])
        assert torch.isfinite(backbone(made.images)[0]).all()

    def test_measuring_stops_when_it_has_seen_enough(self) -> None:
        seen = []

        def batches():
            for number in range(5):
                seen.append(number)
                yield brain_slices(2).images, brain_slices(2).masks

        Backbone("b32", ("stem",)).measure(batches(), slices=4)
        assert seen == [0, 1]


class TestSources:
    def test_random_keeps_the_weights(self) -> None:
        backbone = Backbone("b32", ("stem",))
        before = backbone.net.stem[0].weight.clone()
        assert backbone.load("random") == {"source": "random"}
        assert torch.equal(backbone.net.stem[0].weight, before)

    @pytest.mark.parametrize(("name", "taps"), ALL_TAPS, ids=[name for name, _ in ALL_TAPS])
    def test_a_file_of_the_whole_network_fills_a_part_of_it(
        self, name: str, taps: tuple[str, ...], tmp_path: Path
    ) -> None:
        whole, part = Backbone(name, taps), Backbone(name, taps[:1])
        file = tmp_path / "weights.safetensors"
        save_file({key: v.contiguous() for key, v in whole.net.state_dict().items()}, file)
        origin = part.load(str(file))
        assert origin["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert origin["file"] == "weights.safetensors" and str(tmp_path) not in json.dumps(origin)
        images = torch.rand(1, 1, 32, 32)
        torch.testing.assert_close(part(images)[0], whole(images)[0])

    def test_a_file_that_does_not_fit_is_refused(self, tmp_path: Path) -> None:
        weights = Backbone("b32", ("stem", "stage1")).net.state_dict()
        for change in ("missing", "surplus", "shape"):
            changed = dict(weights)
            if change == "missing":
                changed.pop("stage1.0.conv1.weight")
            elif change == "surplus":
                changed["stage1.7.conv1.weight"] = torch.zeros(1)
            else:
                changed["stem.0.weight"] = torch.zeros(4, 1, 5, 5)
            save_file(changed, tmp_path / f"{change}.safetensors")
            with pytest.raises(InputError) as refusal:
                Backbone("b32", ("stem", "stage1")).load(str(tmp_path / f"{change}.safetensors"))
            assert refusal.value.code == "WEIGHTS_MISMATCH"

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
        for path, code in ((tmp_path / "weights.pth", "WEIGHTS_DAMAGED"), (tmp_path / "none", "WEIGHTS_MISSING")):
            with pytest.raises(InputError) as refusal:
                Backbone("resnet18", ("stem",)).load(str(path))
            assert refusal.value.code == code

    def test_imagenet_without_torchvision_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
        monkeypatch.setitem(sys.modules, "torchvision.models", None)
        with pytest.raises(InputError) as refusal:
            Backbone("resnet18", ("stem",)).load("imagenet")
        assert refusal.value.code == "TORCHVISION_MISSING" and "pip install torchvision" in refusal.value.advice

    def test_there_is_no_imagenet_b32(self) -> None:
        with pytest.raises(InputError) as refusal:
            Backbone("b32", ("stem",)).load("imagenet")
        assert refusal.value.code == "WEIGHTS_MISSING"

    def test_imagenet_weights_come_from_the_cache_and_are_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Against a stand-in for torchvision: the file must be in the cache and match the hash in its name."""
        weights = Backbone("resnet18", ("layer1",)).net.state_dict() | {"fc.weight": torch.zeros(2, 2)}
        digest = hashlib.sha256(b"photographs").hexdigest()
        entry = types.SimpleNamespace(
            url=f"https://example.org/resnet18-{digest[:8]}.pth", get_state_dict=lambda **options: weights
        )
        models = types.ModuleType("torchvision.models")
        models.get_weight = lambda name: entry
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.models", models)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        backbone = Backbone("resnet18", ("layer1",))
        with pytest.raises(InputError) as refusal:
            backbone.load("imagenet")
        assert refusal.value.code == "WEIGHTS_MISSING" and entry.url in refusal.value.advice
        file = tmp_path / "checkpoints" / f"resnet18-{digest[:8]}.pth"
        file.parent.mkdir()
        file.write_bytes(b"something else")
        with pytest.raises(InputError) as refusal:
            backbone.load("imagenet")
        assert refusal.value.code == "WEIGHTS_DAMAGED"
        file.write_bytes(b"photographs")
        assert backbone.load("imagenet") == {"source": "imagenet", "file": file.name, "sha256": digest}
        torch.testing.assert_close(backbone.net.conv1.weight, weights["conv1.weight"])

    def test_ssl_takes_the_bundle_of_the_contrast(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path))
        made = make_bundle(tmp_path / "ssl-backbone-t1w-compact", "ssl_backbone")
        method = create_method("fae")
        origin = method.load_pretrained("T1w")["backbone"]
        assert origin["source"] == "ssl-backbone-t1w-compact" and len(origin["sha256"]) == 64
        torch.testing.assert_close(
            method.backbone.net.stem[0].weight, made.method.backbone.net.stem[0].weight.half().float()
        )
        assert not any(weight.requires_grad for weight in method.backbone.parameters())

    def test_without_that_bundle_nothing_else_is_taken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path))
        with pytest.raises(InputError) as refusal:
            create_method("fae").load_pretrained("FLAIR-none")
        assert refusal.value.code == "MODEL_UNKNOWN"

    def test_a_damaged_bundle_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "ssl-backbone-t1w-compact"
        make_bundle(folder, "ssl_backbone")
        file = folder / "models" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        with pytest.raises(InputError) as refusal:
            create_method("uniad").load_pretrained("T1w", str(folder))
        assert refusal.value.code == "BUNDLE_DAMAGED"

    def test_methods_without_a_backbone_refuse_a_source(self) -> None:
        for name in list_methods():
            if name not in FEATURE_METHODS:
                with torch.device("meta"):
                    method = create_method(name)
                assert method.load_pretrained("T1w") == {}
                with pytest.raises(InputError) as refusal:
                    method.load_pretrained("T1w", "imagenet")
                assert refusal.value.code == "BACKBONE_UNUSED"

    @pytest.mark.parametrize("name", FEATURE_METHODS)
    def test_a_bundle_stands_alone(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Loading it needs no source of weights, not even that of its configuration."""
        bundle = make_bundle(tmp_path / "bundle", name, {"memory": 8} if name == "patchcore" else None)
        monkeypatch.setattr(Backbone, "load", lambda self, source: pytest.fail("a source was asked for"))
        loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle").path).method
        made = brain_slices(1)
        expected = bundle.method.score(made, torch.Generator().manual_seed(0))
        error = (loaded.score(made, torch.Generator().manual_seed(0)) - expected).abs().max()
        assert error <= 0.01 * expected.max()

    @pytest.mark.parametrize("name", FEATURE_METHODS)
    def test_published_presets_want_photographs_and_compact_ones_slices(self, name: str) -> None:
        presets = method_class(name).presets
        assert presets["paper"].config.source == "imagenet" and presets["compact"].config.source == "ssl"
