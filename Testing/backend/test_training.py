"""Training end to end: from a cohort to a bundle, nested shares, and a broken run that goes on as if unbroken."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Laboratory, make_bundle, table_row, write_cohort

from UADBenchLib.bundles.bundle import load_bundle, load_metadata
from UADBenchLib.cohort import read_cohort
from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.methods.base import Preset, Schedule, published
from UADBenchLib.methods.denoising_autoencoder import DenoisingAutoencoder, DenoisingAutoencoderConfig
from UADBenchLib.methods.disyre import Disyre, DisyreConfig
from UADBenchLib.methods.fae import Fae, FaeConfig
from UADBenchLib.methods.itermask2 import IterMask2, IterMask2Config
from UADBenchLib.methods.patchcore import PatchCore, PatchCoreConfig
from UADBenchLib.training import trainer
from UADBenchLib.training.trainer import train

STEPS = 6


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compact presets that take no time."""
    schedule = Schedule(steps=STEPS, batch=4, learning_rate=2e-3, warm_up=2)
    autoencoder = DenoisingAutoencoderConfig(widths=(8, 16))
    monkeypatch.setitem(DenoisingAutoencoder.presets, "compact", Preset(autoencoder, schedule))
    monkeypatch.setitem(Disyre.presets, "compact", Preset(DisyreConfig(widths=(8, 16)), schedule))
    features = FaeConfig(widths=(8, 8), source="random")
    monkeypatch.setitem(Fae.presets, "compact", Preset(features, schedule))


def run(laboratory: Laboratory, out: Path, method: str = "denoising_autoencoder", **options: Any) -> dict[str, Any]:
    options = {"contrast": "T1w", "store": laboratory.store, "device": "cpu"} | options
    return train(method, options.pop("cohort", laboratory.cohort), out=out, **options)


def weights(folder: Path) -> bytes:
    return (folder / "models" / "model.safetensors").read_bytes()


class TestBundle:
    def test_what_comes_out(self, laboratory: Laboratory, tmp_path: Path) -> None:
        told: list[tuple[str, float]] = []
        summary = run(laboratory, tmp_path / "a", seed=5, progress=lambda *now: told.append(now), licence="Apache-2.0")
        bundle = load_bundle(tmp_path / "a")
        metadata = bundle.metadata
        assert summary["id"] == metadata.id == "denoising-autoencoder-t1w-compact"
        assert (summary["steps"], metadata.steps, metadata.seed) == (STEPS, STEPS, 5)
        assert summary["subjects"] == 6 == len(metadata.trained_on["subjects"])
        assert metadata.trained_on["sites"] == {"east": 3, "west": 3}
        assert summary["slices"] > 300 and summary["left_out"] == []
        assert metadata.licence == "Apache-2.0"
        assert metadata.calibration is None and metadata.operating_points == {} and bundle.reference is None
        assert told[-1][1] == 1.0 and told[-1][0].startswith("training")
        json.dumps(summary)

    def test_only_healthy_training_scans_of_the_contrast_are_used(self, laboratory: Laboratory, tmp_path: Path) -> None:
        rows = [table_row(row) for row in read_cohort(laboratory.cohort)]
        for row in rows[:2]:
            row["label"] = "unknown"
        rows[2]["contrast"] = "T2w"
        cohort = write_cohort(tmp_path / "c.csv", rows)
        run(laboratory, tmp_path / "a", cohort=cohort, data=laboratory.cohort.parent, steps=1)
        assert load_metadata(tmp_path / "a").trained_on["subjects"] == ["train-3", "train-4", "train-5"]

    def test_scans_that_cannot_be_prepared_are_left_out_and_named(self, laboratory: Laboratory, tmp_path: Path) -> None:
        rows = [table_row(row) for row in read_cohort(laboratory.cohort)]
        rows[0]["scan"] = str(tmp_path / "bad_T1w.nii.gz")
        Path(rows[0]["scan"]).write_bytes(b"not a scan")
        cohort = write_cohort(tmp_path / "c.csv", rows)
        summary = run(laboratory, tmp_path / "a", cohort=cohort, data=laboratory.cohort.parent, steps=1)
        assert len(summary["left_out"]) == 1 and summary["left_out"][0].startswith("bad_T1w.nii.gz: ")
        assert "train-0" not in load_metadata(tmp_path / "a").trained_on["subjects"]

    def test_the_loss_is_logged(self, laboratory: Laboratory, tmp_path: Path) -> None:
        summary = run(laboratory, tmp_path / "a")
        with (tmp_path / "a" / "docs" / "loss.csv").open() as stream:
            (row,) = csv.DictReader(stream)
        assert int(row["step"]) == STEPS and float(row["loss"]) > 0
        assert 0 < summary["loss"] < 1
        assert (tmp_path / "a" / "docs" / "loss.png").read_bytes().startswith(b"\x89PNG")

    def test_methods_that_only_fit_take_no_steps(self, laboratory: Laboratory) -> None:
        assert laboratory.summary["steps"] == 0 and laboratory.summary["loss"] is None
        assert not (laboratory.root / "models" / f"{laboratory.model}.training").exists()
        count = load_bundle(laboratory.bundle).method.count
        assert count.max() == 6 and (count == 6).sum() > 15_000

    def test_options_instead_of_the_preset_s(self, laboratory: Laboratory, tmp_path: Path) -> None:
        run(laboratory, tmp_path / "a", "disyre", steps=1, changes=["augment=false", "radius=2,9"])
        config = load_metadata(tmp_path / "a").config
        assert config["augment"] is False and tuple(config["radius"]) == (2.0, 9.0)
        card = (tmp_path / "a" / "docs" / "README.md").read_text()
        assert "--preset compact --set radius=2.0,9.0 --set augment=false --steps 1" in card

    def test_disyre_measures_its_levels_before_the_steps(self, laboratory: Laboratory, tmp_path: Path) -> None:
        run(laboratory, tmp_path / "a", "disyre", steps=2)
        levels = load_bundle(tmp_path / "a").method.levels
        assert (levels.diff() > 0).all() and 0 < levels.min() and levels.max() < 1.5
        assert not torch.allclose(levels, torch.linspace(0.1, 0.9, 5), atol=1e-3)


class TestFinish:
    @pytest.fixture
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(
            IterMask2.presets,
            "compact",
            Preset(
                IterMask2Config(first_widths=(8, 16), widths=(8, 16), slices=8), Schedule(steps=2, batch=2, warm_up=0)
            ),
        )

    def test_what_depends_on_the_kept_weights_is_measured_with_them(
        self, small: None, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[bool, torch.Tensor]] = []
        real = IterMask2.finish

        def watch(method: IterMask2, batches: Any) -> None:
            seen.append((method.training, method.second.stem.weight.clone()))
            real(method, batches)

        monkeypatch.setattr(IterMask2, "finish", watch)
        run(laboratory, tmp_path / "a", "itermask2")
        ((training, weight),) = seen
        loaded = load_bundle(tmp_path / "a").method
        assert not training and torch.equal(weight.half().float(), loaded.second.stem.weight)
        assert 0 < float(loaded.threshold) != pytest.approx(0.1)

    def test_running_averages_of_the_kept_weights_are_those_of_training(
        self, laboratory: Laboratory, tmp_path: Path
    ) -> None:
        run(laboratory, tmp_path / "a", "fae", steps=2)
        loaded = load_bundle(tmp_path / "a").method
        norm = loaded.network.encoder[0][1]
        assert norm.running_mean.any() and int(norm.num_batches_tracked) == 2

    def test_the_source_of_a_backbone_is_recorded(
        self, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path / "models"))
        made = make_bundle(tmp_path / "models" / "ssl-backbone-t1w-compact", "ssl_backbone")
        monkeypatch.setitem(PatchCore.presets, "compact", Preset(PatchCoreConfig(memory=20, pool=200), None))
        run(laboratory, tmp_path / "a", "patchcore")
        origin = load_metadata(tmp_path / "a").trained_on["backbone"]
        digest = made.metadata.sha256["models/model.safetensors"]
        assert origin["source"] == "ssl-backbone-t1w-compact" and origin["sha256"] == digest
        card = (tmp_path / "a" / "docs" / "README.md").read_text()
        assert "ssl-backbone-t1w-compact" in card and digest in card

    def test_a_backbone_that_is_not_there_ends_it_at_once(
        self, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path))
        with pytest.raises(InputError) as refusal:
            run(laboratory, tmp_path / "a", "fae", backbone=str(tmp_path / "none.safetensors"))
        assert refusal.value.code == "WEIGHTS_MISSING" and not (tmp_path / "a").exists()

    def test_the_published_schedule_keeps_its_rate(
        self, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = DenoisingAutoencoderConfig(widths=(8, 16))
        monkeypatch.setitem(DenoisingAutoencoder.presets, "compact", Preset(config, published(4, batch=2)))
        run(laboratory, tmp_path / "a")
        from safetensors.torch import load_file

        arrays = load_file(tmp_path / "a.training" / "checkpoint.safetensors")
        assert set(arrays["log"][:, 2].tolist()) == {1e-4}
        assert torch.equal(arrays["averaged.network.stem.weight"], arrays["model.network.stem.weight"])


class TestSeeds:
    def test_the_same_seed_gives_the_same_weights(self, laboratory: Laboratory, tmp_path: Path) -> None:
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            run(laboratory, tmp_path / name, seed=seed, steps=2)
        assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")

    def test_smaller_fractions_are_subsets_of_larger_ones(self, laboratory: Laboratory) -> None:
        rows = [row for row in read_cohort(laboratory.cohort) if row.split == "train"]
        shares = [
            {row.subject for row in trainer._fraction(rows, share, seed=3)} for share in (0.01, 0.3, 0.5, 0.9, 1.0)
        ]
        assert [len(share) for share in shares] == [1, 2, 3, 5, 6]
        assert all(smaller < larger for smaller, larger in zip(shares, shares[1:], strict=False))
        orders = {frozenset(row.subject for row in trainer._fraction(rows, 0.5, seed)) for seed in range(8)}
        assert len(orders) > 1

    def test_a_fraction_is_recorded(self, laboratory: Laboratory, tmp_path: Path) -> None:
        summary = run(laboratory, tmp_path / "a", fraction=0.5, steps=1)
        assert summary["subjects"] == 3
        assert load_metadata(tmp_path / "a").trained_on["fraction"] == 0.5


class TestResume:
    @pytest.mark.parametrize("method", ["denoising_autoencoder", "disyre", "fae"])
    def test_a_resumed_run_takes_the_very_same_steps(
        self, method: str, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 2)
        run(laboratory, tmp_path / "unbroken", method)
        done: list[float] = []

        def stop(stage: str, share: float) -> None:
            if stage.startswith("training"):
                done.append(share)
                if len(done) == 5:
                    raise CancelledError

        with pytest.raises(CancelledError):
            run(laboratory, tmp_path / "broken", method, progress=stop)
        assert not (tmp_path / "broken").exists()
        done.clear()
        run(laboratory, tmp_path / "broken", method, resume=True, progress=lambda _, share: done.append(share))
        assert len([share for share in done if share > 4 / STEPS]) >= 2  # steps 5 and 6, from the checkpoint after 4
        assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
        logs = [(tmp_path / name / "docs" / "loss.csv").read_text() for name in ("broken", "unbroken")]
        assert logs[0] == logs[1]

    def test_resuming_a_finished_run_changes_nothing(self, laboratory: Laboratory, tmp_path: Path) -> None:
        run(laboratory, tmp_path / "a", steps=2)
        before = weights(tmp_path / "a")
        assert run(laboratory, tmp_path / "a", steps=2, resume=True)["steps"] == 2
        assert weights(tmp_path / "a") == before

    def test_without_resume_it_starts_afresh(self, laboratory: Laboratory, tmp_path: Path) -> None:
        run(laboratory, tmp_path / "a", steps=2)
        run(laboratory, tmp_path / "a", steps=3)
        run(laboratory, tmp_path / "b", steps=3)
        assert weights(tmp_path / "a") == weights(tmp_path / "b")

    def test_resume_without_a_checkpoint_starts(self, laboratory: Laboratory, tmp_path: Path) -> None:
        assert run(laboratory, tmp_path / "a", steps=1, resume=True)["steps"] == 1


class TestSteps:
    def test_the_rate_warms_up_and_falls_to_zero(self, laboratory: Laboratory, tmp_path: Path) -> None:
        run(laboratory, tmp_path / "a", steps=20)
        from safetensors.numpy import load_file

        rates = load_file(tmp_path / "a.training" / "checkpoint.safetensors")["log"][:, 2]
        assert rates[0] == pytest.approx(1e-3) and rates.argmax() == 1
        assert (np.diff(rates[1:]) < 0).all() and rates[-1] < 2e-5

    def test_the_bundle_holds_the_averaged_weights(self, laboratory: Laboratory, tmp_path: Path) -> None:
        run(laboratory, tmp_path / "a")
        from safetensors.torch import load_file

        arrays = load_file(tmp_path / "a.training" / "checkpoint.safetensors")
        stored = load_file(tmp_path / "a" / "models" / "model.safetensors")["network.stem.weight"]
        assert torch.equal(stored, arrays["averaged.network.stem.weight"].half())
        assert not torch.equal(stored, arrays["model.network.stem.weight"].half())

    def test_a_loss_that_is_not_finite_ends_it(
        self, laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = DenoisingAutoencoder.training_loss
        monkeypatch.setattr(DenoisingAutoencoder, "training_loss", lambda *given: real(*given) * float("nan"))
        with pytest.raises(InputError) as refusal:
            run(laboratory, tmp_path / "a")
        assert refusal.value.code == "TRAINING_DIVERGED"
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"method": "gan"}, "METHOD_UNKNOWN"),
        ({"preset": "huge"}, "PRESET_UNKNOWN"),
        ({"contrast": "FLAIR"}, "COHORT_EMPTY"),
        ({"fraction": 0.0}, "FRACTION"),
        ({"fraction": 1.5}, "FRACTION"),
        ({"fraction": float("nan")}, "FRACTION"),
        ({"device": "cuda:77"}, "DEVICE_UNKNOWN"),
    ],
)
def test_refusals(options: dict[str, Any], code: str, laboratory: Laboratory, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        run(laboratory, tmp_path / "a", **options)
    assert refusal.value.code == code
    assert list(tmp_path.iterdir()) == []
