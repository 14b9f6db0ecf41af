"""The list of models: what it says, how it is searched, and models that are imported from a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from UADBenchScene import models, volumes

from UADBenchLib.bundles import catalogue


def make_bundle(folder: Path, contrast: str = "T1w", method: str = "disyre", **more) -> Path:
    """Write a bundle whose only weights are a few bytes."""
    weights = folder / "models" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(folder.name.encode())
    facts = {"id": folder.name, "method": method, "preset": "compact", "contrast": contrast}
    facts["sha256"] = {"models/model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(facts | more), encoding="utf-8")
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder of shipped models (27, as there will be), and the user's own."""
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "library" / "UADBenchLib")
    monkeypatch.setattr(catalogue, "user_folder", lambda: tmp_path / "own")
    monkeypatch.delenv("UADBENCH_MODELS", raising=False)
    shipped = tmp_path / "library" / "Resources" / "Models"
    for contrast in ("T1w", "T2w", "FLAIR"):
        for number in range(9):
            cases = [{"lesion_type": "stroke", "best_dice": 0.1 * number}, {"lesion_type": "tumour", "best_dice": 0.45}]
            method = ("disyre", "fae", "andi")[number % 3]
            name = f"{method}{number}-{contrast.lower()}-compact"
            make_bundle(shipped / name, contrast, method, metrics={"lesions": cases}, seconds_per_scan=number)
    return tmp_path


def rows() -> list[models.ModelRow]:
    return models.model_rows(models.usable_models())


def test_models_are_listed_by_contrast_and_preference(folders):
    listed = rows()
    assert len(listed) == 27
    assert [row.contrast for row in listed] == sorted(row.contrast for row in listed)
    assert all(row.id.startswith("disyre") for row in listed[:3])
    assert listed[0].megabytes >= 0 and not listed[0].own


def test_a_bundle_that_does_not_say_what_it_is_is_passed_over(folders):
    for name, facts in (("odd", {"id": "odd"}), ("list", []), ("number", {"id": "n", "contrast": 1, "method": "fae"})):
        file = folders / "own" / name / "configs" / "metadata.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(facts), encoding="utf-8")
    assert len(rows()) == 27


def test_models_are_called_by_their_method_unless_several_share_it(folders):
    entries = models.usable_models()
    assert {row.label for row in models.model_rows(entries)} == {entry["id"] for entry in entries}
    alone = [entry for entry in entries if entry["id"] in ("disyre0-t1w-compact", "fae4-t1w-compact")]
    assert [row.label for row in models.model_rows(alone)] == ["disyre", "fae"]
    alone[1]["preset"] = "paper"
    assert [row.label for row in models.model_rows(alone)] == ["disyre", "fae (paper)"]


def test_search_takes_words_in_any_order_and_contrast_apart(folders):
    assert {row.contrast for row in models.matching(rows(), "T2w")} == {"T2w"}
    assert len(models.matching(rows(), "FLAIR", "andi")) == 3
    assert [row.id for row in models.matching(rows(), "", "t1w FAE4")] == ["fae4-t1w-compact"]
    assert models.matching(rows(), "T1w", "flair") == []
    assert len(models.matching(rows(), "", "stroke")) == 27, "what a model finds is searched too"


def test_what_a_model_is_good_at_is_what_was_measured(folders):
    by_id = {row.id: row for row in rows()}
    assert by_id["fae4-t1w-compact"].good_at == "tumour: best Dice 0.45 (n=1), stroke: best Dice 0.40 (n=1)"
    assert by_id["fae7-t1w-compact"].best_at == "stroke 0.70"
    assert models.good_at({}) == ("not measured", "not measured")


def test_operating_points_say_what_is_expected_of_healthy_voxels():
    points = {"fpr-1pct": {"threshold": 4.25, "healthy_fpr": 0.0099}, "opt-dice": {"threshold": 2.0}}
    entry = {"id": "a", "operating_points": points}
    other = {"id": "b", "operating_points": {"fpr-1pct": points["fpr-1pct"]}}
    assert models.operating_points([entry, other], ("a",)) == [
        ("fpr-1pct", "fpr-1pct (z > 4.25, 0.99% of healthy voxels)"),
        ("opt-dice", "opt-dice (z > 2.00)"),
    ]
    assert models.operating_points([entry, other], ("a", "b")) == [("fpr-1pct", "fpr-1pct (0.99% of healthy voxels)")]
    assert models.operating_points([entry], ("c",)) == []
    assert models.threshold_of([entry], "a", "opt-dice") == (2.0, "") and models.threshold_of([entry], "a", "x") is None


# ----------------------------------------------------------------------------------------------------- files


def test_models_are_imported_from_a_folder_and_removed_again(folders, tmp_path):
    stick = tmp_path / "stick"
    make_bundle(stick / "riad-t1w-compact", method="riad")
    make_bundle(stick / "fae-t2w-paper", "T2w", "fae")
    (stick / "notes").mkdir()
    assert models.import_models(stick) == ["fae-t2w-paper", "riad-t1w-compact"]
    assert [row.id for row in rows() if row.own] == ["riad-t1w-compact", "fae-t2w-paper"]
    assert models.import_models(stick / "riad-t1w-compact") == ["riad-t1w-compact"], "again, and one alone"
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["fae-t2w-paper", "riad-t1w-compact"]
    assert models.clear_imported() == ["fae-t2w-paper", "riad-t1w-compact"]
    assert len(rows()) == 27, "what came with the extension stays"


def test_a_damaged_model_is_refused_and_nothing_is_imported(folders, tmp_path):
    stick = tmp_path / "stick"
    make_bundle(stick / "a-t1w-compact")
    make_bundle(stick / "b-t1w-compact")
    (stick / "b-t1w-compact" / "models" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(volumes.SceneError, match="MODEL_DAMAGED.*checksum"):
        models.import_models(stick)
    assert not (tmp_path / "own").exists()
    with pytest.raises(volumes.SceneError, match="NO_MODELS"):
        models.import_models(tmp_path)


def test_faults_of_a_bundle_are_named(folders, tmp_path):
    folder = make_bundle(tmp_path / "a-t1w-compact")
    assert models.faults_of(folder) == []
    metadata = folder / "configs" / "metadata.json"
    facts = json.loads(metadata.read_text(encoding="utf-8"))
    for digests, fault in (
        ({"models/other.safetensors": "0"}, "missing"),
        ({"../outside": "0"}, "missing"),
        ({}, "names no weights"),
        (None, "cannot be read"),
    ):
        metadata.write_text(json.dumps(facts | {"sha256": digests}), encoding="utf-8")
        assert len(faults := models.faults_of(folder)) == 1 and fault in faults[0]
