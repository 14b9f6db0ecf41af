"""Testing/app/batch.py: what it asks for and its exit codes, with the application's reading stood in for."""

from __future__ import annotations

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

    monkeypatch.setattr(slicer.util, "loadVolume", load)
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


class Written:
    """Stand in for the worker's export, which needs the backend's packages: writes a file with the scan's stem."""

    def __init__(self, logic, monkeypatch) -> None:
        self.stems: list[str] = []
        monkeypatch.setattr(logic, "export", self)

    def __call__(self, mapNode, folder, formats=("files",), stem="scan") -> list[str]:
        assert mapNode.GetAttribute("UADBench.Model") == MODEL and formats == ("files",)
        (folder / f"{stem}.txt").touch()
        self.stems.append(stem)
        return [f"{stem}.txt"]


def test_all_scans_done(batch, module, client, tmp_path, monkeypatch):  # noqa: F811
    logic = module.UADBenchLogic(client)
    written = Written(logic, monkeypatch)
    assert batch.main(words(tmp_path), logic) == 0
    assert written.stems == ["one", "two"], "files are called as the scans are, not as nodes are"
    assert not client.alive


def test_one_bad_scan_does_not_end_the_others(batch, module, client, tmp_path, capsys, monkeypatch):  # noqa: F811
    (tmp_path / "in" / "broken.nii").touch()
    logic = module.UADBenchLogic(client)
    written = Written(logic, monkeypatch)
    assert batch.main(words(tmp_path), logic) == 1
    assert written.stems == ["one", "two"]
    assert "error broken: it cannot be read" in capsys.readouterr().err


def test_a_detection_that_is_refused_is_listed(batch, module, client, tmp_path, capsys):  # noqa: F811
    assert batch.main(words(tmp_path, "--device", "refuse"), module.UADBenchLogic(client)) == 1
    assert "error one: NOT_A_HEAD" in capsys.readouterr().err and list((tmp_path / "out").iterdir()) == []


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
