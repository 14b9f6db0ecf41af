"""Bundles: what is written is what is read, what is wrong is refused by its code, nothing in one is ever executed."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Laboratory, brain_slices, make_bundle
from filelock import FileLock

from UADBenchLib.bundles import bundle as bundles
from UADBenchLib.bundles import catalogue
from UADBenchLib.bundles.bundle import bundle_id, load_bundle, load_metadata, save_bundle, sha256_of
from UADBenchLib.bundles.card import render_card
from UADBenchLib.errors import InputError
from UADBenchLib.methods.registry import changed_configuration, create_method, method_class
from UADBenchLib.preprocessing.recipe import Recipe
from UADBenchLib.scan import CONTRASTS
from UADBenchLib.writing import write_json

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.parent.parent for path in (ROOT / "Resources" / "Models").glob("*/configs/metadata.json"))
LARGEST_SHIPPED = 8 * 1024**2
LEAST_AVERAGE_PRECISION = {
    "intensity-norm-t1w-compact": 0.08,
    "intensity-norm-t2w-compact": 0.08,
    "intensity-norm-flair-compact": 0.08,
    "patchcore-t1w-compact": 0.08,
    "denoising-autoencoder-t2w-compact": 0.1,
}
"""On the sample, whose lesion takes 1.5 % of the brain: the baseline, and whose page says so; others 0.2."""
TINY = {"widths": (8, 16), "stem": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small bundle on disk."""
    make_bundle(tmp_path / "disyre-t1w-compact", "disyre", TINY)
    return tmp_path / "disyre-t1w-compact"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_bundle(folder)
    assert caught.value.message and caught.value.advice
    return caught.value.code


def change(folder: Path, **values: Any) -> None:
    """Change entries of the metadata; None removes one."""
    file = folder / "configs" / "metadata.json"
    metadata = json.loads(file.read_text()) | values
    write_json(file, {key: value for key, value in metadata.items() if value is not None})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "models" / "model.safetensors")


def replace_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write other weights with a checksum that fits them."""
    from safetensors.torch import save_file

    file = folder / "models" / "model.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, file)
    change(folder, sha256={"models/model.safetensors": sha256_of(file)})


class TestReadAndWrite:
    def test_layout(self, folder: Path) -> None:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {
            "LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.safetensors", "docs/README.md"
        }  # fmt: skip

    def test_weights_are_float16_and_come_back_as_float32(self, folder: Path) -> None:
        stored = weights_of(folder)
        assert {value.dtype for value in stored.values()} == {torch.float16}
        loaded = load_bundle(folder).method.state_dict()
        for name, value in loaded.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, stored[name].float())

    def test_loading_and_saving_changes_no_weight(self, folder: Path, tmp_path: Path) -> None:
        save_bundle(load_bundle(folder), tmp_path / "again")
        first, second = (path / "models" / "model.safetensors" for path in (folder, tmp_path / "again"))
        assert first.read_bytes() == second.read_bytes()
        assert load_metadata(folder) == load_metadata(tmp_path / "again")

    def test_the_reference_travels_along(self, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "a", "disyre", TINY)
        bundle.reference = {"mean": np.full((4, 4, 4), 0.25, np.float32), "spread": np.full((4, 4, 4), 0.5, np.float32)}
        save_bundle(bundle, tmp_path / "a")
        loaded = load_bundle(tmp_path / "a")
        np.testing.assert_array_equal(loaded.reference["spread"], bundle.reference["spread"])
        assert loaded.reference["mean"].dtype == np.float32

    def test_others_may_read_the_weights_as_they_may_the_metadata(self, folder: Path) -> None:
        modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
        assert len(modes) == 1

    def test_ids(self) -> None:
        assert bundle_id("denoising_autoencoder", "FLAIR", "compact") == "denoising-autoencoder-flair-compact"

    def test_the_card_says_what_it_is(self, folder: Path) -> None:
        card = (folder / "docs" / "README.md").read_text()
        assert "not a medical device" in card and "disyre-t1w-compact" in card and "CC0" in card


class TestRefusals:
    def test_no_bundle(self, tmp_path: Path) -> None:
        assert refusal(tmp_path) == "BUNDLE_INVALID"

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}', "\udc00"])
    def test_metadata_that_is_none(self, folder: Path, text: str) -> None:
        (folder / "configs" / "metadata.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        assert refusal(folder) == "BUNDLE_INVALID"

    @pytest.mark.parametrize(
        "values",
        [
            {"method": None},
            {"sha256": None},
            {"surprise": 1},
            {"id": "Not An Id"},
            {"id": "../../escape"},
            {"seed": "zero"},
            {"operating_points": {"fpr-1pct": {"threshold": 3.0}}},
            {"operating_points": {"x": {"threshold": 3.0, "healthy_fpr": 2.0, "ci": [1, 2], "origin": ""}}},
            {"space": {"template": "x"}},
            {"recipe": {"colour": 1}},
        ],
        ids=lambda values: next(iter(values)),
    )
    def test_metadata_that_breaks_the_schema(self, folder: Path, values: dict[str, Any]) -> None:
        change(folder, **values)
        assert refusal(folder) == "BUNDLE_INVALID"

    def test_unknown_method(self, folder: Path) -> None:
        change(folder, method="gan")
        assert refusal(folder) == "METHOD_UNKNOWN"

    def test_configuration_of_another_network(self, folder: Path) -> None:
        change(
            folder,
            config=json.loads((folder / "configs" / "metadata.json").read_text())["config"] | {"widths": [8, 24]},
        )
        assert refusal(folder) == "BUNDLE_INVALID"

    def test_a_flipped_bit_in_the_weights(self, folder: Path) -> None:
        file = folder / "models" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-7] ^= 1
        file.write_bytes(content)
        assert refusal(folder) == "BUNDLE_DAMAGED"

    def test_weights_cut_short(self, folder: Path) -> None:
        file = folder / "models" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        assert refusal(folder) == "BUNDLE_DAMAGED"

    def test_no_weights(self, folder: Path) -> None:
        (folder / "models" / "model.safetensors").unlink()
        assert refusal(folder) == "BUNDLE_INVALID"

    def test_no_checksum(self, folder: Path) -> None:
        change(folder, sha256={})
        assert refusal(folder) == "BUNDLE_DAMAGED"

    def test_huge_weights_are_not_opened(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundles, "LARGEST_WEIGHTS", 1000)
        assert refusal(folder) == "BUNDLE_INVALID"

    def test_a_file_that_is_no_safetensors_but_has_its_checksum(self, folder: Path) -> None:
        file = folder / "models" / "model.safetensors"
        file.write_bytes(b"\x80\x04cos\nsystem\n(S'exit'\ntR.")
        change(folder, sha256={"models/model.safetensors": sha256_of(file)})
        assert refusal(folder) == "BUNDLE_INVALID"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, folder: Path, value: float) -> None:
        weights = weights_of(folder)
        weights["network.stem.bias"][0] = value
        replace_weights(folder, weights)
        assert refusal(folder) == "BUNDLE_INVALID"

    def test_a_missing_and_a_strange_tensor(self, folder: Path) -> None:
        weights = weights_of(folder)
        replace_weights(folder, weights | {"extra": torch.zeros(1)})
        assert refusal(folder) == "BUNDLE_INVALID"
        replace_weights(folder, {name: value for name, value in weights.items() if name != "levels"})
        assert refusal(folder) == "BUNDLE_INVALID"

    @pytest.mark.parametrize("arrays", [{"mean": 1.0}, {"mean": 1.0, "spread": float("nan")}])
    def test_a_reference_that_cannot_be_one(self, tmp_path: Path, arrays: dict[str, float]) -> None:
        bundle = make_bundle(tmp_path / "a", "disyre", TINY)
        bundle.reference = {name: np.full((2, 2, 2), value, np.float32) for name, value in arrays.items()}
        save_bundle(bundle, tmp_path / "a")
        assert refusal(tmp_path / "a") == "BUNDLE_INVALID"

    def test_another_recipe(self, folder: Path) -> None:
        recipe = json.loads((folder / "configs" / "metadata.json").read_text())["recipe"]
        change(folder, recipe=recipe | {"high": 97.0})
        assert refusal(folder) == "RECIPE_MISMATCH"

    def test_a_recipe_of_another_version(self, folder: Path) -> None:
        recipe = Recipe(version=Recipe().version + 1)
        change(folder, recipe=bundles.recipe_values(recipe), recipe_hash=recipe.hash)
        assert refusal(folder) == "RECIPE_MISMATCH"

    def test_a_bundle_cut_short_while_written_does_not_verify(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = load_bundle(folder)
        with torch.no_grad():
            bundle.method.network.stem.bias.add_(1)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(bundles, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(bundle, folder)
        assert refusal(folder) == "BUNDLE_DAMAGED"


def test_only_metadata_and_safetensors_are_read(folder: Path) -> None:
    """Watched by Python's own audit events: other files of a bundle may hold anything."""
    for name in ("configs/inference.json", "docs/README.md", "LICENSE"):
        (folder / name).write_text("\x00 not what you expect")
    (folder / "models" / "model.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("raise SystemExit")
    opened: set[str] = set()
    watching = [True]

    def watch(event: str, arguments: tuple) -> None:
        if watching[0] and event == "open" and str(arguments[0]).startswith(str(folder)):
            opened.add(str(Path(str(arguments[0])).relative_to(folder)))
        assert not (watching[0] and event in ("pickle.find_class", "os.system", "subprocess.Popen"))

    sys.addaudithook(watch)
    try:
        load_bundle(folder).method.score(brain_slices(1), torch.Generator())
    finally:
        watching[0] = False
    assert opened <= {"configs/metadata.json", "models/model.safetensors"}
    assert "configs/metadata.json" in opened


class TestCatalogue:
    @pytest.fixture
    def models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
        """Writes metadata of models into folders of the user's; nothing is shipped."""
        monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "nowhere" / "package")
        monkeypatch.setenv("UADBENCH_MODELS", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))

        def write(name: str, text: str | None = None, where: str = "a", **values: Any) -> Path:
            path = tmp_path / where / name
            (path / "configs").mkdir(parents=True)
            content = {"id": name, "method": name.split("-")[0], "contrast": "T1w"} | values
            (path / "configs" / "metadata.json").write_text(json.dumps(content) if text is None else text)
            return path

        return write

    def test_nothing_installed(self, models: Callable[..., Path]) -> None:
        assert catalogue.list_models() == [] and catalogue.bundle_folders() == []
        with pytest.raises(InputError) as unknown:
            catalogue.find_model("x")
        assert unknown.value.code == "MODEL_UNKNOWN" and "none installed" in unknown.value.advice
        with pytest.raises(InputError) as missing:
            catalogue.default_model("T1w")
        assert missing.value.code == "MODEL_MISSING"

    def test_sorted_and_found_by_id(self, models: Callable[..., Path]) -> None:
        paths = {name: models(name) for name in ("fae-t1w-compact", "andi-t1w-compact")}
        assert [entry["id"] for entry in catalogue.list_models()] == sorted(paths)
        assert {entry["id"]: Path(entry["path"]) for entry in catalogue.list_models()} == paths
        assert catalogue.find_model("fae-t1w-compact") == paths["fae-t1w-compact"]
        with pytest.raises(InputError) as unknown:
            catalogue.find_model("fae")
        assert "fae-t1w-compact" in unknown.value.advice

    def test_the_first_folder_counts(self, models: Callable[..., Path]) -> None:
        first = models("fae-t1w-compact")
        models("fae-t1w-compact", where="b")
        assert [Path(entry["path"]) for entry in catalogue.list_models()] == [first]

    @pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "\x00", '{"id": "x"'])
    def test_broken_ones_are_listed_as_broken(self, models: Callable[..., Path], text: str) -> None:
        models("broken-t1w-compact", text)
        models("fae-t1w-compact")
        broken, sound = catalogue.list_models()
        assert broken["id"] == "broken-t1w-compact" and broken["broken"]
        assert "broken" not in sound
        assert catalogue.default_model("T1w") == "fae-t1w-compact"

    def test_the_default_goes_by_preference_and_contrast(self, models: Callable[..., Path]) -> None:
        models("fae-t1w-compact")
        models("nameless-t1w-compact", '{"id": "nameless-t1w-compact", "contrast": "T1w"}')
        assert catalogue.default_model("T1w") == "fae-t1w-compact"
        models("intensity-norm-t1w-compact", method="intensity_norm")
        assert catalogue.default_model("T1w") == "intensity-norm-t1w-compact"
        models("disyre-flair-compact", contrast="FLAIR", method="disyre")
        assert catalogue.default_model("T1w") == "intensity-norm-t1w-compact"
        assert catalogue.default_model("FLAIR") == "disyre-flair-compact"
        with pytest.raises(InputError):
            catalogue.default_model("T2w")

    def test_models_for_a_contrast_come_in_order_of_preference(self, models: Callable[..., Path]) -> None:
        for name, method in (
            ("a-t1w-compact", "uniad"),
            ("b-t1w-compact", "intensity_norm"),
            ("z-t1w-compact", "disyre"),
        ):
            models(name, method=method)
        models("disyre-flair-compact", contrast="FLAIR", method="disyre")
        assert catalogue.models_for("T1w") == ["z-t1w-compact", "b-t1w-compact", "a-t1w-compact"]

    def test_a_trained_one_is_found(self, laboratory: Laboratory, installed: str) -> None:
        assert catalogue.find_model(installed) == laboratory.bundle


@pytest.fixture(scope="session")
def shipped_metrics(shared: Path, sample: Any) -> dict[str, dict[str, Any]]:
    """Metrics of every shipped model on the sample of its contrast, computed once for all workers."""
    from UADBenchLib.inference.detector import detect
    from UADBenchLib.synthesis.sample import make_sample

    file = shared / "shipped.json"
    with FileLock(shared / "shipped.lock"):
        if not file.exists():
            metrics = {}
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("UADBENCH_MODELS", raising=False)
                for contrast in CONTRASTS:
                    models = [path.name for path in SHIPPED if load_metadata(path).contrast == contrast]
                    scan, reference, mask = sample if contrast == "T1w" else make_sample(contrast=contrast)
                    found = detect(scan, models, brain_mask=mask, reference=reference, device="cpu") if models else []
                    metrics |= {detection.model: detection.metrics for detection in found}
            write_json(file, metrics)
    return json.loads(file.read_text())


def test_the_three_are_there() -> None:
    assert {path.name for path in SHIPPED} >= {
        "intensity-norm-t1w-compact", "denoising-autoencoder-t1w-compact", "disyre-t1w-compact"
    }  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
class TestShipped:
    def test_loads_and_is_calibrated(self, path: Path) -> None:
        bundle = load_bundle(path)
        metadata = bundle.metadata
        assert metadata.id == path.name
        assert metadata.recipe_hash == Recipe().hash
        assert bundle.reference is not None and metadata.calibration is not None
        assert {"fpr-1pct", "fpr-0.1pct"} <= set(metadata.operating_points)
        low, high = (metadata.operating_points[name].threshold for name in ("fpr-1pct", "fpr-0.1pct"))
        assert 0 < low < high
        for name, rate in (("fpr-1pct", 0.01), ("fpr-0.1pct", 0.001)):
            assert 0 < metadata.operating_points[name].healthy_fpr <= rate

    def test_checksums_cover_every_safetensors_file(self, path: Path) -> None:
        files = {f"models/{file.name}": sha256_of(file) for file in (path / "models").iterdir()}
        assert files == load_metadata(path).sha256

    def test_size(self, path: Path) -> None:
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) <= LARGEST_SHIPPED

    def test_nothing_but_text_and_safetensors(self, path: Path) -> None:
        suffixes = {file.suffix for file in path.rglob("*") if file.is_file()}
        assert suffixes <= {"", ".json", ".safetensors", ".md", ".csv", ".png"}

    def test_licence_and_card(self, path: Path) -> None:
        metadata = load_metadata(path)
        assert "not a medical device" in (path / "LICENSE").read_text() + metadata.intended_use
        assert metadata.licence not in ("", "not stated")
        assert metadata.licence in (path / "LICENSE").read_text()
        card = (path / "docs" / "README.md").read_text()
        assert "not a medical device" in card and metadata.licence in card
        licences = metadata.trained_on["licences"]
        assert set(licences) == set(metadata.trained_on["sites"])
        for site, licence in licences.items():
            assert licence not in ("", "not stated") and site in card and licence in card
        assert ("Nobody was scanned" in card) == any("synthesised" in licence for licence in licences.values())

    def test_no_subject_is_in_training_and_validation(self, path: Path) -> None:
        metadata = load_metadata(path)
        assert not set(metadata.trained_on["subjects"]) & set(metadata.calibration.subjects)

    def test_it_finds_the_lesion_of_the_sample(self, path: Path, shipped_metrics: dict[str, dict[str, Any]]) -> None:
        least = LEAST_AVERAGE_PRECISION.get(path.name, 0.2)
        assert shipped_metrics[path.name]["average_precision"] > least


def test_all_shipped_together_are_small_enough() -> None:
    total = sum(file.stat().st_size for path in SHIPPED for file in path.rglob("*") if file.is_file())
    assert total <= 40 * 1024**2


def test_a_copied_bundle_works_from_anywhere(folder: Path, tmp_path: Path) -> None:
    moved = shutil.move(folder, tmp_path / "with a space" / "ünïcode")
    assert load_bundle(moved).metadata.id == "disyre-t1w-compact"


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_card_says_how_it_was_made(folder: Path) -> None:
    metadata = load_metadata(folder)
    card = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert card == render_card(metadata)
    (command,) = re.findall(r"^uadbench train (.*)$", card, re.MULTILINE)
    words = command.split()
    told = dict(zip(words[1::2], words[2::2], strict=True))
    # `make models` takes the preset's options and steps but where the Makefile says others.
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    others = dict(re.findall(r"(\w+-(?:t1w|t2w|flair)):(\d+)", makefile))
    preset = method_class(metadata.method).presets["compact"]
    steps = preset.schedule.steps if preset.schedule else 0
    wanted = others.get(f"{metadata.method}-{metadata.contrast.lower()}", str(steps))
    assert told.get("--steps", "0") == wanted
    changes = re.findall(rf"\b{metadata.method}-{metadata.contrast.lower()}:(\w+=\S+)", makefile)
    assert re.findall(r"--set (\S+)", command) == changes
    configuration = changed_configuration(metadata.method, metadata.preset, changes)
    assert (
        create_method(metadata.method, config=configuration).configuration()
        == load_bundle(folder).method.configuration()
    )
    assert told["--seed"] == "0" and told["--out"] == metadata.id
