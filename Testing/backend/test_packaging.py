"""The wheel: it holds every module, template and model, and works where the source tree is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from UADBenchLib.bundles.catalogue import models_for

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("pyproject.toml", "README.md", "LICENSE", "UADBenchLib", "Resources")
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.egg-info")


def test_the_packages_listed_are_those_of_the_tree() -> None:
    listed = re.search(r"^packages = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    packages = re.findall(r'"([^"]+)"', listed.group(1))
    tree = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "UADBenchLib").rglob("__init__.py")}
    assert len(packages) == len(set(packages))
    assert set(packages) == tree | {"UADBenchLib.Resources"}
    with_modules = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "UADBenchLib").rglob("*.py")}
    assert with_modules == tree, "a folder with modules lacks __init__.py"


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=560, **options)


def can_build_offline() -> bool:
    """Whether this environment has the build backend; without it, pip fetches one."""
    if importlib.util.find_spec("setuptools") is None:
        return False
    return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77


def build(folder: Path) -> Path:
    """Build a wheel from a copy of the sources, so that no build folder is left in the tree or taken from it."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCE:
        origin = ROOT / name
        assert origin.exists(), f"the source tree lacks {name}"
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=CACHES)
        else:
            shutil.copy(origin, source)
    options = ["--no-deps", "--no-cache-dir", "--wheel-dir", folder / "dist"]
    if can_build_offline():
        options.append("--no-build-isolation")
    done = run(sys.executable, "-m", "pip", "wheel", *options, source)
    if done.returncode and not can_build_offline():
        pytest.skip("no setuptools 77 here, and none can be fetched")
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("uadbench-*.whl")
    return wheel


def expected_files() -> set[str]:
    """What has to be in the wheel, by its path there."""
    files = [*(ROOT / "UADBenchLib").rglob("*.py"), *(ROOT / "UADBenchLib" / "reports" / "templates").iterdir()]
    names = {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}
    folders = [ROOT / "Resources" / name for name in ("Models", "Splits", "Synthesis")]
    resources = [path for folder in folders for path in folder.rglob("*")]
    return names | {f"UADBenchLib/{path.relative_to(ROOT).as_posix()}" for path in resources if path.is_file()}


def test_the_wheel_works_without_the_source_tree(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    shutil.rmtree(tmp_path / "source")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert expected_files() - held == set()
    assert not [name for name in held if name.startswith(("Testing", "UADBench/")) or "__pycache__" in name]

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    done = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-cache-dir", wheel
    )
    assert done.returncode == 0, done.stderr
    # Torch and the rest come from the environment that the tests run in; its own .pth files, such as that of an
    # editable install of the source tree, are not followed from here.
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (purelib / "dependencies.pth").write_text("\n".join(places) + "\n")

    empty = tmp_path / "elsewhere"
    empty.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "UADBENCH", "PYTEST"))}
    where = run(python, "-c", "import UADBenchLib; print(UADBenchLib.__file__)", cwd=empty, env=kept)
    assert Path(where.stdout.strip()).is_relative_to(environment), where.stdout + where.stderr

    listed = run(scripts / "uadbench", "models", "--json", cwd=empty, env=kept)
    assert listed.returncode == 0, listed.stderr
    models = json.loads(listed.stdout)
    ids = {entry["id"] for entry in (models if isinstance(models, list) else models["models"])}
    assert ids == {path.parent.parent.name for path in (ROOT / "Resources" / "Models").glob("*/configs/metadata.json")}

    done = run(scripts / "uadbench", "demo", "--out", empty / "tmp", cwd=empty, env=kept)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {path.name for path in (empty / "tmp").iterdir()}
    assert {"sample_T1w_report.html", "sample_T1w_brain_mask.nii.gz"} <= files
    for model in models_for("T1w")[:3]:
        for rest in ("_anomaly.nii.gz", "_label-anomaly_mask.nii.gz", "_findings.csv", ".json", ".png"):
            assert f"sample_T1w_model-{model}{rest}" in files
    assert "Dice" in done.stdout
