"""The command line module of Slicer: its XML and its parser agree, and it writes what it is asked for, or nothing."""

from __future__ import annotations

import csv
import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from UADBenchLib import writing
from UADBenchLib.errors import InputError
from UADBenchLib.inference import detector
from UADBenchLib.reading import read_scan
from UADBenchLib.scan import Check

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "UADBenchDetect"
TURN = np.array([[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([-1.5, 1.4, 1.9])
AFFINE[:3, 3] = [40.0, -30.0, -20.0]


def load():
    """Import the script as a module."""
    spec = importlib.util.spec_from_file_location("UADBenchDetect", FOLDER / "UADBenchDetect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cli = load()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan with one bright block, on an oblique left-handed grid."""
    voxels = np.random.default_rng(0).normal(1, 0.1, (80, 84, 60)).astype(np.float32)
    voxels[10:16, 20:26, 12:18] = 9.0
    writing.write_volume(tmp_path / "scan.nii.gz", voxels, AFFINE)
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """Stand in for the detector: the map is the scan; what it was asked is kept."""
    calls: list = []

    def detect(scan, models, **options):
        calls.append((models, options))
        if "nobody" in models:
            raise InputError("MODEL_UNKNOWN", "there is no model nobody", "see the list")
        options["progress"]("scoring", 0.5)
        options["progress"]("done", 1.0)
        found = detector.restore("test", scan.voxels, scan.affine, 5.0)
        found.checks.append(Check("warning", "THICK", "slices are thick", "expect less"))
        return [found]

    monkeypatch.setattr(detector, "detect", detect)
    return calls


def test_every_parameter_of_the_panel_is_an_argument_of_the_script():
    tree = ElementTree.parse(FOLDER / "UADBenchDetect.xml")
    assert tree.getroot().tag == "executable"
    flags = {entry.text for entry in tree.iter("longflag")}
    places = sorted((int(entry.findtext("index")), entry.findtext("name")) for entry in tree.iter("image"))
    assert [name for _place, name in places] == ["inputVolume", "outputMap", "outputMask"]
    parsed = vars(cli.parse(["a", "b", "c"]))
    assert {name.replace("_", "-") for name in parsed} - {"scan", "map", "mask"} == flags
    for parameter in tree.iter():
        default = parameter.findtext("default")
        if default and parameter.findtext("longflag"):
            value = parsed[parameter.findtext("longflag").replace("-", "_")]
            assert str(value).lower() == default.lower(), parameter.findtext("name")


def test_map_mask_and_table_lie_on_the_grid_of_the_scan(scan, asked, tmp_path, capsys):
    words = ["--model", "a, b", "--contrast", "T1w", "--force", "--findings", str(tmp_path / "findings.csv")]
    assert cli.main([*words, str(scan), str(tmp_path / "map.nii.gz"), str(tmp_path / "mask.nii.gz")]) == 0
    ((models, options),) = asked
    assert models == ["a", "b"] and options["force"] and options["operating_point"] == "fpr-1pct"
    mask = read_scan(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-4)
    assert mask.voxels.sum() == 216
    assert read_scan(tmp_path / "map.nii.gz").voxels.max() == 9.0
    with (tmp_path / "findings.csv").open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["peak_z"]) == 9.0
    said = capsys.readouterr()
    assert "<filter-progress>0.500</filter-progress>" in said.out and "warning THICK" in said.err


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--model", "nobody"], "MODEL_UNKNOWN"), (["--contrast", "PET"], ""), (["--minimum-ml", "much"], "")],
)
def test_bad_usage_ends_with_2_and_writes_nothing(scan, asked, tmp_path, capsys, words, code):
    assert cli.main([*words, str(scan), str(tmp_path / "map.nii.gz"), str(tmp_path / "mask.nii.gz")]) == 2
    assert code in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nii.gz"]


def test_a_scan_that_is_not_there(asked, tmp_path, capsys):
    assert cli.main([str(tmp_path / "no.nrrd"), str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")]) == 2
    assert capsys.readouterr().err.startswith("error NOT_FOUND")


def test_the_backend_is_found_in_both_trees(monkeypatch, tmp_path):
    assert cli.library_folder() == ROOT
    (tmp_path / "qt-scripted-modules" / "UADBenchLib").mkdir(parents=True)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "cli-modules" / "UADBenchDetect.py"))
    assert cli.library_folder() == tmp_path / "qt-scripted-modules"
