"""The architecture as tests: which way imports point, what may write files, and what may never be called.

Sources are parsed, not run. Every rule is also shown a source that breaks it, so that a rule that sees
nothing is noticed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BACKEND = REPOSITORY / "UADBenchLib"
MODULE = REPOSITORY / "UADBench"

LAYERS = (
    {"scan", "geometry", "formats", "reading", "writing", "dicom_seg", "errors", "cohort", "parallel", "__version__"},
    {"networks", "corruption"},
    {"methods", "preprocessing", "bundles", "synthesis"},
    {"training", "inference", "evaluation"},
    {"benchmark", "bias", "reports"},
    {"cli"},
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}

SLICER = {"slicer", "vtk", "vtkmodules", "qt", "ctk", "PythonQt", "mrml"}
HEAVY = {"torch", "nibabel", "SimpleITK", "matplotlib", "pandas", "scipy", "nilearn", "pydicom", "skimage"}
CODE_LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "torch.load", "os.system", "pandas.read_pickle"}
FORBIDDEN_METHODS = {"extractall"}


def backend_files() -> list[Path]:
    return sorted(BACKEND.rglob("*.py"))


def module_files() -> list[Path]:
    return sorted(path for path in MODULE.rglob("*.py") if "Testing" not in path.parts)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module, package: str = "") -> Iterator[tuple[str, int]]:
    """Every imported module by its full dotted name, those inside functions included, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def dotted(node: ast.expr) -> str:
    """``a.b.c`` for a chain of names, with the usual short names spelt out; empty for anything else."""
    if isinstance(node, ast.Name):
        return {"np": "numpy", "pd": "pandas"}.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).parent.parts)


def upward_imports(tree: ast.Module, own: str, package: str = "UADBenchLib") -> list[str]:
    """Imports of a layer above ``own``, and of parts of the backend that no layer lists."""
    found = []
    for name, line in imports(tree, package):
        parts = name.split(".")
        if parts[0] == "UADBenchLib" and len(parts) > 1:
            if parts[1] not in LEVELS:
                found.append(f"line {line}: {name} is in no layer")
            elif LEVELS[parts[1]] > LEVELS[own]:
                found.append(f"line {line}: {own} imports {name}")
    return found


def imported_roots(tree: ast.Module, package: str = "") -> set[str]:
    return {name.split(".")[0] for name, _ in imports(tree, package)}


def prints(tree: ast.Module) -> list[int]:
    return [call.lineno for call in calls(tree) if dotted(call.func) == "print"]


def _mode(call: ast.Call) -> str:
    """The mode of an ``open`` call as far as it is written out: all short texts among its arguments."""
    values = [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
    texts = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return "".join(text for text in texts if len(text) <= 3)


def _partials(tree: ast.Module) -> set[str]:
    """Names of temporary paths, bound by ``with atomic(...) as name``."""
    items = [item for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]
    return {
        dotted(item.optional_vars)
        for item in items
        if isinstance(item.context_expr, ast.Call)
        and dotted(item.context_expr.func).split(".")[-1] == "atomic"
        and item.optional_vars is not None
    }


def writes(tree: ast.Module) -> list[int]:
    """Lines that open a file for writing, or use a path's own writers, other than on what ``atomic`` gave."""
    found, harmless = [], _partials(tree) | {"os.devnull", "descriptor"}  # an open descriptor makes no file
    for call in calls(tree):
        name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
        owner = dotted(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if owner in harmless or (call.args and dotted(call.args[0]) in harmless):
            continue
        if name == "open" and set(_mode(call)) & set("wax+"):
            found.append(call.lineno)
        if isinstance(call.func, ast.Attribute) and owner != "writing" and name in ("write_text", "write_bytes"):
            found.append(call.lineno)
    return found


def dangers(tree: ast.Module) -> list[str]:
    """Whatever could run code that came with data, or write outside a folder."""
    found = [f"imports {root}" for root in imported_roots(tree) & CODE_LOADERS]
    for call in calls(tree):
        name = dotted(call.func)
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name in FORBIDDEN_CALLS or method in FORBIDDEN_METHODS:
            found.append(f"line {call.lineno}: {name or method}")
        for word in call.keywords:
            true = isinstance(word.value, ast.Constant) and word.value.value is True
            if word.arg in ("allow_pickle", "shell", "trust_remote_code") and true:
                found.append(f"line {call.lineno}: {word.arg}=True")
    return found


def not_standard(tree: ast.Module, package: str = "") -> set[str]:
    return imported_roots(tree, package) - set(sys.stdlib_module_names) - {"__future__"}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", backend_files(), ids=relative)
class TestBackend:
    def test_imports_point_downwards(self, path):
        own = path.relative_to(BACKEND).parts[0].removesuffix(".py")
        if own == "__init__":
            assert imported_roots(parsed(path)) == set()
        else:
            assert own in LEVELS, f"{own} is in no layer"
            assert upward_imports(parsed(path), own, package_of(path)) == []

    def test_knows_nothing_of_slicer(self, path):
        assert imported_roots(parsed(path), package_of(path)) & (SLICER | {"UADBench", "UADBenchScene"}) == set()

    def test_is_quiet(self, path):
        assert path.relative_to(BACKEND).parts[0] == "cli" or prints(parsed(path)) == []

    def test_writes_through_the_one_writer(self, path):
        assert path == BACKEND / "writing.py" or writes(parsed(path)) == []

    def test_runs_nothing_that_came_with_data(self, path):
        assert dangers(parsed(path)) == []


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("errors.py", set()),
        ("__init__.py", set()),
        ("inference/__init__.py", set()),
        ("bundles/__init__.py", set()),
        ("inference/protocol.py", set()),
        ("bundles/catalogue.py", {"UADBenchLib.errors"}),  # which needs the standard library only, see above
    ],
)
def test_what_slicer_shares_needs_the_standard_library_only(name, allowed):
    tree = parsed(BACKEND / name)
    assert not_standard(tree, package_of(BACKEND / name)) <= {module.split(".")[0] for module in allowed}
    own = {".".join(module.split(".")[:2]) for module, _ in imports(tree) if module.startswith("UADBenchLib")}
    assert own <= allowed


def test_slicer_module_imports():
    """Slicer's widgets in one file; everything beside it reaches the backend through two modules."""
    found = []
    for path in module_files():
        tree, own = parsed(path), relative(path)
        if path != MODULE / "UADBench.py":
            found += [f"{own}: {name}" for name in imported_roots(tree) & {"qt", "ctk", "ScriptedLoadableModule"}]
        if "UADBenchScene" in path.parts:
            found += [f"{own}: {name}" for name in beyond_the_shared(tree)]
        found += [f"{own}: {danger}" for danger in dangers(tree)]
    assert found == []


def beyond_the_shared(tree: ast.Module) -> list[str]:
    """What a scene file imports of the backend beyond protocol and catalogue, or is too heavy for Slicer."""
    shared = ("UADBenchLib.inference.protocol", "UADBenchLib.bundles.catalogue")
    backend = [name for name, _ in imports(tree) if name.split(".")[0] == "UADBenchLib"]
    foreign = [name for name in backend if not any(name == one or name.startswith(one + ".") for one in shared)]
    return foreign + sorted(imported_roots(tree) & HEAVY)


def test_light_modules_stay_light():
    """Neither Slicer nor the command line waits at its start for libraries that it may not need."""
    light = ["errors", "scan", "geometry", "formats", "reading", "writing", "inference.protocol", "bundles.catalogue"]
    light += ["cli.main"] if (BACKEND / "cli" / "main.py").exists() else []
    code = f"import importlib, sys\nfor name in {light}:\n    importlib.import_module('UADBenchLib.' + name)\n"
    code += f"print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


class TestTheRulesSee:
    """Each rule flags what it is there for."""

    @pytest.mark.parametrize(
        ("own", "source"),
        [
            ("geometry", "from UADBenchLib.networks import unet"),
            ("reading", "def f():\n    from UADBenchLib import inference"),
            ("networks", "import UADBenchLib.methods.registry"),
            ("methods", "from ..training import trainer"),
            ("evaluation", "from UADBenchLib.reports import figure"),
            ("reports", "import UADBenchLib.cli.main"),
            ("cli", "import UADBenchLib.attic"),
        ],
    )
    def test_upward_imports(self, own, source):
        assert len(upward_imports(ast.parse(source), own, f"UADBenchLib.{own}")) == 1

    @pytest.mark.parametrize(
        ("own", "source"),
        [
            ("inference", "from UADBenchLib.evaluation import metrics"),
            ("reports", "from UADBenchLib.inference.findings import Finding"),
            ("cli", "from UADBenchLib import __version__, geometry"),
            ("networks", "from . import unet"),
            ("networks", "import numpy, torch"),
        ],
    )
    def test_downward_imports_pass(self, own, source):
        assert upward_imports(ast.parse(source), own, f"UADBenchLib.{own}") == []

    @pytest.mark.parametrize(
        "source",
        [
            "open(p, 'w')", "open(p, mode='ab')", "path.open('w')", "open(p, 'r+')", "gzip.open(p, 'xb')",
            "path.write_text('')", "Path('a').write_bytes(b'')",
            "with atomic(p) as q: open(p, 'w')",
        ],
    )  # fmt: skip
    def test_writes(self, source):
        assert writes(ast.parse(source)) == [1]

    @pytest.mark.parametrize(
        "source",
        [
            "open(p)",
            "open(p, 'rb')",
            "path.open(encoding='utf-8')",
            "writing.write_text(p, 'w')",
            "open(os.devnull, 'w')",
            "open(descriptor, 'w')",
            "with atomic(p) as q: q.write_bytes(b'')",
            "with writing.atomic(p) as q, open(q, 'w'): pass",
        ],
    )
    def test_reads_pass(self, source):
        assert writes(ast.parse(source)) == []

    @pytest.mark.parametrize(
        "source",
        [
            "import pickle", "from joblib import load", "eval('1')", "exec(code)", "torch.load(p)",
            "archive.extractall()", "np.load(p, allow_pickle=True)", "subprocess.run(c, shell=True)",
            "pd.read_pickle(p)", "os.system(c)",
        ],
    )  # fmt: skip
    def test_dangers(self, source):
        assert len(dangers(ast.parse(source))) == 1

    @pytest.mark.parametrize(
        "source", ["model.eval()", "np.load(p, allow_pickle=False)", "re.compile('a')", "tar.extract(m)"]
    )
    def test_harmless_calls_pass(self, source):
        assert dangers(ast.parse(source)) == []

    def test_prints(self):
        assert prints(ast.parse("x = 1\nprint(x)\nlog.print(x)")) == [2]

    @pytest.mark.parametrize(
        "source",
        [
            "from UADBenchLib import reading",
            "from UADBenchLib.bundles.bundle import load",
            "def f():\n    import torch",
        ],
    )
    def test_beyond_the_shared(self, source):
        assert len(beyond_the_shared(ast.parse(source))) == 1

    def test_shared_modules_pass(self):
        source = "import vtk\nfrom UADBenchLib.inference import protocol\n"
        source += "from UADBenchLib.bundles.catalogue import list_models"
        assert beyond_the_shared(ast.parse(source)) == []

    def test_not_standard(self):
        assert not_standard(ast.parse("import json, numpy\nfrom __future__ import annotations")) == {"numpy"}
