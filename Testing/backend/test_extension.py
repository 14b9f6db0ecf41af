"""The Slicer extension as a thing that is built and installed: file lists, CMake fields, panel, and what
may be imported.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "UADBench"
STUB = ROOT / "Testing" / "data" / "slicer_stub"
SCENE_FILES = sorted((MODULE / "UADBenchScene").glob("*.py"))


def _load(path: Path):
    """Import a Python file that is not on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


list_files = _load(ROOT / "Testing" / "list_files.py")


# ----------------------------------------------------------------------------------------------- file lists


def test_lists_name_every_file_of_the_tree():
    cure = "run `python Testing/list_files.py --update`"
    assert list_files.TARGET.read_text(encoding="utf-8") == list_files.render(list_files.collect()), cure


def test_lists_see_new_files_and_pass_over_what_is_not_installed(tmp_path):
    for name in (
        "UADBench/UADBench.py",
        "UADBench/UADBenchScene/a.py",
        "UADBench/Resources/UI/UADBench.ui",
        "UADBenchLib/reports/templates/page.html.j2",
        "UADBenchLib/reports/new.py",
        "UADBenchLib/__pycache__/new.cpython-312.pyc",
        "UADBenchLib/.hidden/x.py",
        "Resources/Models/m/models/model.safetensors",
        "Resources/Icons/UADBench.png",
        "Resources/Splits/t1w.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_files.collect(tmp_path) == {
        "UADBench_SCRIPTS": ["UADBench.py", "UADBenchScene/a.py"],
        "UADBench_RESOURCES": ["Resources/UI/UADBench.ui"],
        "UADBench_LIBRARY_SCRIPTS": ["UADBenchLib/reports/new.py"],
        "UADBench_LIBRARY_RESOURCES": [
            "Resources/Models/m/models/model.safetensors",
            "UADBenchLib/reports/templates/page.html.j2",
        ],
    }


# --------------------------------------------------------------------------------------------- installation


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of scripted modules of an installation made with the stand-in for Slicer."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path_factory.mktemp("extension")
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(folder / "build"),
        f"-DSlicer_DIR={STUB}",
        "-DBUILD_TESTING=ON",
    ]
    prefix = folder / "prefix"
    for command in (
        [*configure, f"-DCMAKE_INSTALL_PREFIX={prefix}"],
        ["cmake", "--install", str(folder / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return prefix / "lib" / "Slicer-5.12" / "qt-scripted-modules"


def test_installation_is_whole(installed):
    expected = {name for names in list_files.collect().values() for name in names}
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert found == expected
    for name in (
        "UADBench.py",
        "UADBenchScene/worker.py",
        "UADBenchLib/inference/worker.py",
        "Resources/UI/UADBench.ui",
    ):
        assert name in found


def test_the_command_line_module_is_installed(installed):
    names = {path.name for path in (installed.parent / "cli-modules").iterdir()}
    assert names == {"UADBenchDetect.py", "UADBenchDetect.xml"}


CATALOGUE = (
    "import json, UADBenchLib; from UADBenchLib.bundles import catalogue\n"
    "print(json.dumps([UADBenchLib.__file__, [[m['id'], m['path']] for m in catalogue.list_models()]]))"
)


def _catalogue_from(folder: Path) -> tuple[str, dict[str, str]]:
    """Return where UADBenchLib was imported from, and the paths of the models that it finds, in a fresh
    interpreter.
    """
    environment = {key: value for key, value in os.environ.items() if key != "UADBENCH_MODELS"}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "XDG_DATA_HOME": str(folder / "none")}
    done = subprocess.run(
        [sys.executable, "-c", CATALOGUE], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file, models = json.loads(done.stdout)
    return file, dict(models)


def test_installed_backend_finds_the_same_models_as_the_source_tree(installed):
    file, models = _catalogue_from(installed)
    assert Path(file).is_relative_to(installed)
    assert set(models) == set(_catalogue_from(ROOT)[1])
    assert all(Path(path).is_relative_to(installed / "Resources" / "Models") for path in models.values())


# --------------------------------------------------------------------------------------------- CMake fields


def test_extension_fields_as_the_index_reads_them():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    fields = dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"\n]+)"\)$', text, flags=re.MULTILINE))
    assert set(fields) == {
        "HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS",
    }  # fmt: skip
    assert re.search(r"^project\((\w+)\)", text, flags=re.MULTILINE).group(1) == "UADBench"
    assert fields["CATEGORY"] in (MODULE / "UADBench.py").read_text(encoding="utf-8")
    raw = "https://raw.githubusercontent.com/UADBench/SlicerUADBench/main/"
    assert fields["ICONURL"].startswith(raw)
    assert (ROOT / fields["ICONURL"].removeprefix(raw)).is_file()
    for url in fields["SCREENSHOTURLS"].split():
        assert url.startswith(raw) and (ROOT / url.removeprefix(raw)).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("path", [ROOT / "Resources/Icons/UADBench.png", MODULE / "Resources/Icons/UADBench.png"])
def test_icon_is_a_png_of_128_pixels(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (128, 128)


def test_requirements_are_those_of_the_package():
    declared = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    package = set(re.findall(r'"([^"]+)"', declared.group(1)))
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    slicer = {line for line in lines if line and not line.startswith("#")}
    assert slicer <= package
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+>=[0-9.]+", line) for line in slicer)
    # Slicer's PyTorch extension installs torch; the command line's own packages are not needed in Slicer.
    assert {re.split(r"[>=]", line)[0] for line in package - slicer} == {"torch", "typer", "rich"}
    torch = next(line for line in package if line.startswith("torch"))
    assert f'TORCH_REQUIREMENT = "{torch.removeprefix("torch")}"' in (MODULE / "UADBench.py").read_text()


# ---------------------------------------------------------------------------------------------------- panel


def _panel() -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Return class by widget name, parameter by widget name, and the custom classes declared, of the .ui
    file.
    """
    tree = ElementTree.parse(MODULE / "Resources" / "UI" / "UADBench.ui")
    widgets = {widget.get("name"): widget.get("class") for widget in tree.iter("widget")}
    parameters = {}
    for widget in tree.iter("widget"):
        for entry in widget.findall("property"):
            if entry.get("name") == "SlicerParameterName":
                assert entry.get("stdset") == "0"
                parameters[widget.get("name")] = entry.findtext("string")
    return widgets, parameters, {entry.findtext("class") for entry in tree.iter("customwidget")}


def test_panel_has_what_the_widget_uses():
    source = (MODULE / "UADBench.py").read_text(encoding="utf-8")
    widgets, _parameters, declared = _panel()
    used = set(re.findall(r"\bself\.ui\.(\w+)", source))
    assert used and used <= set(widgets)
    assert {kind for kind in widgets.values() if not kind.startswith("Q")} == declared


def test_panel_parameters_exist_in_the_parameter_node():
    tree = ast.parse((MODULE / "UADBench.py").read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "UADBenchParameterNode")
    names = {entry.target.id for entry in node.body if isinstance(entry, ast.AnnAssign)}
    widgets, parameters, _declared = _panel()
    assert set(parameters.values()) <= names
    assert len(set(parameters.values())) == len(parameters)
    # These are lists with words of their own, or of what there is, and connected by hand.
    assert names - set(parameters.values()) == {"contrast", "models", "operatingPoint", "device"}


def test_selectors_hear_of_the_scene():
    tree = ElementTree.parse(MODULE / "Resources" / "UI" / "UADBench.ui")
    widgets = _panel()[0]
    selectors = {name for name, kind in widgets.items() if kind == "qMRMLNodeComboBox"}
    heard = {
        c.findtext("receiver") for c in tree.iter("connection") if c.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
    }
    assert heard == selectors


# -------------------------------------------------------------------------------------------------- imports


def _imports(tree: ast.AST) -> set[str]:
    """Return the names of all imported modules; relative ones begin with a dot."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            deeper = node.module in ("UADBenchLib", "UADBenchLib.inference", "UADBenchLib.bundles")
            names |= {f"{base}.{alias.name}" for alias in node.names} if deeper else {base}
    return names


@pytest.mark.parametrize("path", SCENE_FILES, ids=lambda path: path.name)
def test_scene_code_imports_only_what_it_may(path):
    allowed = {"numpy", "vtk", "slicer", "vtkITK", "UADBenchLib"} | set(sys.stdlib_module_names)
    for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert name.startswith(".") or name.partition(".")[0] in allowed, name
        if name.startswith("UADBenchLib"):
            assert name in ("UADBenchLib.inference.protocol", "UADBenchLib.bundles.catalogue")


@pytest.mark.parametrize("path", SCENE_FILES, ids=lambda path: path.name)
def test_scene_code_reaches_the_scene_through_nodes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    reached = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "slicer"
    }
    assert not reached & {"mrmlScene", "modules", "app", "util", "logic"}
    assert all(name.startswith("vtk") for name in reached)


@pytest.mark.parametrize("path", [MODULE / "UADBench.py", *SCENE_FILES], ids=lambda path: path.name)
def test_what_is_wrong_is_said_in_the_readers_language(path):
    """Message and advice of every SceneError go through the translation, which sees whole sentences alone."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "SceneError":
            continue
        for text in call.args[1:]:
            inner = [n for n in ast.walk(text) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "_"]
            translated = {id(argument) for n in inner for argument in n.args}
            for part in ast.walk(text):
                words = isinstance(part, ast.Constant) and re.search(r"[a-z]{3} [a-z]{2}", str(part.value))
                assert not words or id(part) in translated, part.value


def test_module_file_does_nothing_when_imported():
    tree = ast.parse((MODULE / "UADBench.py").read_text(encoding="utf-8"))
    top = {
        name.partition(".")[0]
        for name in _imports(
            ast.Module([n for n in tree.body if not isinstance(n, ast.ClassDef | ast.FunctionDef)], [])
        )
    }
    assert top <= {"slicer", "qt", "ctk", "vtk"} | set(sys.stdlib_module_names)
    for node in tree.body:
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef | ast.Assign | ast.Expr)
        if isinstance(node, ast.Expr | ast.Assign):
            ast.literal_eval(node.value)  # text and constants, nothing that is called


@pytest.mark.parametrize("path", [MODULE / "UADBench.py", *SCENE_FILES], ids=lambda path: path.name)
def test_no_prints_and_no_code_from_data(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    # The one print is text that a child interpreter runs, not a call of ours.
    assert not called & {"print", "eval", "exec", "compile", "__import__"}
