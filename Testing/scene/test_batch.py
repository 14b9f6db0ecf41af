"""Testing/app/batch.py: files and exit codes, with the application's reading and writing stood in for."""

from __future__ import annotations

import csv
import gzip
import importlib.util

import numpy as np
import pytest
import slicer
from conftest import ROOT
from phantom import affine_of
from test_module import MODEL, client, module  # noqa: F401  (fixtures)


@pytest.fixture
def batch(module, scene, monkeypatch, tmp_path):  # noqa: F811
    """The script, with two scans in a folder and what it needs of the application."""

    def load(path):
        if "broken" in path:
            raise RuntimeError("it cannot be read")
        voxels = np.ones((6, 5, 4), dtype=np.float32)
        voxels[3, 2, 1] = 8.0
        return scene.volume(voxels, affine_of(shape=voxels.shape), name="SURNAME T1w")

    def save(node, path):
        storage = node.CreateDefaultStorageNode()
        slicer.mrmlScene.AddNode(storage)
        storage.SetFileName(path)
        return storage.WriteData(node) == 1

    monkeypatch.setattr(slicer.util, "loadVolume", load)
    monkeypatch.setattr(slicer.util, "saveNode", save)
    (tmp_path / "in").mkdir()
    for name in ("one.nii.gz", "two.nrrd", "notes.txt"):
        (tmp_path / "in" / name).touch()
    spec = importlib.util.spec_from_file_location("batch", ROOT / "Testing" / "app" / "batch.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def words(folder, *more) -> list[str]:
    """Return a command line."""
    return ["--", "--input", str(folder / "in"), "--output", str(folder / "out"), "--model", MODEL, *more]


def test_all_scans_done(batch, module, client, tmp_path):  # noqa: F811
    assert batch.main(words(tmp_path), module.UADBenchLogic(client)) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    whats = ("anomalies.seg.nrrd", "anomaly.nii.gz", "findings.csv")
    assert names == [f"{stem}_model-{MODEL}_{what}" for stem in ("one", "two") for what in whats]
    with (tmp_path / "out" / f"one_model-{MODEL}_findings.csv").open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert row["index"] == "1" and float(row["peak_z"]) == 8.0 and row["overlap"] == ""
    assert not client.alive
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert b"SURNAME" not in (gzip.decompress(content) if path.suffix == ".gz" else content)


def test_one_bad_scan_does_not_end_the_others(batch, module, client, tmp_path, capsys):  # noqa: F811
    (tmp_path / "in" / "broken.nii").touch()
    assert batch.main(words(tmp_path), module.UADBenchLogic(client)) == 1
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert "error broken: it cannot be read" in capsys.readouterr().err


def test_all_files_of_a_result_or_none(batch, module, client, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(slicer.util, "saveNode", lambda node, path: not path.endswith("seg.nrrd"))
    assert batch.main(words(tmp_path), module.UADBenchLogic(client)) == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda f: words(f)[:-2], ""),
        (lambda f: [w.replace(MODEL, "nobody") for w in words(f)], "MODEL_UNKNOWN"),
        (lambda f: [w.replace(str(f / "in"), str(f / "nowhere")) for w in words(f)], "NO_INPUT"),
        (lambda f: (f / "in" / "one.mha").touch() or words(f), "STEM_TWICE"),
    ],
    ids=["no model", "unknown model", "no folder", "stem twice"],
)
def test_bad_usage_writes_nothing(batch, tmp_path, capsys, change, code):
    assert batch.main(change(tmp_path)) == 2
    assert not (tmp_path / "out").exists()
    assert code in capsys.readouterr().err
