"""UADBench.py itself, driven without the application: its logic with a real worker process, and the panel's
behaviour.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import application
import numpy as np
import pytest
import slicer
from conftest import ROOT, matrix
from phantom import affine_of, result
from UADBenchScene import comparison, findings, results, volumes, worker
from UADBenchScene.worker import WorkerClient

HERE = Path(__file__).resolve().parent
SHAPE = (12, 11, 10)
MODEL = "disyre-t1w-compact"


@pytest.fixture
def module(scene, monkeypatch, tmp_path):
    """The module file, with two models in the catalogue."""
    for method, threshold in (("disyre", 4.25), ("denoising_autoencoder", 3.5)):
        name = f"{method.replace('_', '-')}-t1w-compact"
        points = {"fpr-1pct": {"threshold": threshold, "healthy_fpr": 0.01}, "best-dice": {"threshold": 5.0}}
        facts = {
            "id": name,
            "method": method,
            "preset": "compact",
            "contrast": "T1w",
            "operating_points": points,
            "seconds_per_scan": 1.6,
            "metrics": {"lesions": [{"lesion_type": "tumour", "best_dice": 0.5}]},
        }
        file = tmp_path / "models" / name / "configs" / "metadata.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path / "models"))
    from UADBenchLib.bundles import catalogue

    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "nothing" / "shipped")
    monkeypatch.setattr(catalogue, "user_folder", lambda: tmp_path / "own")
    return application.install(monkeypatch)


@pytest.fixture
def client(monkeypatch, tmp_path):
    """A client of the scripted worker."""
    monkeypatch.setenv("UADBENCH_TEST_PID", str(tmp_path / "pid"))
    made = WorkerClient(sys.executable, ROOT, arguments=[str(HERE / "scripted_worker.py")])
    yield made
    made.close()


@pytest.fixture
def volume(scene):
    """A scan whose only high voxel is (7, 5, 4), on an oblique lattice under a transform."""
    voxels = np.ones(SHAPE, dtype=np.float32)
    voxels[7, 5, 4] = 8.0
    node = scene.volume(voxels, affine_of(degrees=(10, 5, 20), shape=SHAPE))
    node.SetAndObserveTransformNodeID(scene.transform(affine_of((1, 1, 1), (0, 30, 0))).GetID())
    return node


# --------------------------------------------------------------------------------------------- importing it


def test_importing_the_module_loads_nothing_heavy():
    code = (
        "import sys; sys.path[:0] = [{!r}, {!r}, {!r}]\n"
        "import slicer; before = set(sys.modules)\n"
        "import pytest, application; patch = pytest.MonkeyPatch(); application.install(patch)\n"
        "new = {{name.partition('.')[0] for name in set(sys.modules) - before}}\n"
        "heavy = {{'torch', 'nibabel', 'scipy', 'pandas', 'UADBenchLib', 'UADBenchScene'}}\n"
        "assert 'UADBench' in new and not new & heavy, new\n"
    ).format(str(HERE), str(ROOT / "UADBench"), str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_module_describes_itself(module):
    parent = application.MagicMock()
    module.UADBench(parent)
    assert parent.title == "UADBench" and parent.categories == ["Neuroimaging"]
    assert "not a medical device" in parent.helpText


def test_the_backend_is_found_in_both_trees(module, monkeypatch, tmp_path):
    assert module.libraryFolder() == ROOT
    (tmp_path / "UADBenchLib").mkdir()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "UADBench.py"))
    assert module.libraryFolder() == tmp_path


# ---------------------------------------------------------------------------------------------------- logic


def test_detect_for_scripts(module, client, volume):
    seen = []
    logic = module.UADBenchLogic(client)
    nodes = logic.detect(volume, [MODEL, "other"], progress=lambda *values: seen.append(values), device="cpu")
    assert [n.map.GetAttribute("UADBench.Model") for n in nodes] == [MODEL, "other"]
    expected = (volumes.world_affine(volume) @ [7, 5, 4, 1])[:3]
    np.testing.assert_allclose(findings.place_of(nodes[0].findings, 0), expected, atol=1e-6)
    assert nodes[0].segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert seen and all(stage == "scoring" and 0 <= fraction <= 1 for stage, fraction, _eta in seen)
    summary = json.loads(nodes[0].map.GetAttribute("UADBench.Summary"))
    assert summary["stem"] == "scan", "the name of a node may be a patient's"
    assert not logic.session.waiting


def test_detect_compares_with_a_reference(module, client, scene, volume):
    reference = scene.volume(np.zeros(SHAPE, np.uint8), np.eye(4), kind="LabelMapVolume")
    slicer.util.arrayFromVolume(reference)[3:6, 4:7, 6:9] = 1
    reference.SetIJKToRASMatrix(matrix(affine_of(degrees=(10, 5, 20), shape=SHAPE)))
    reference.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    logic = module.UADBenchLogic(client)
    nodes = logic.detect(volume, [MODEL, "other"], referenceNode=reference)
    rows = comparison.rows_of(comparison.table_of(volume))
    assert [row["model"] for row in rows] == [MODEL, "other"]
    assert rows[0]["lesions_hit"] == 1 and rows[0]["reference_ml"] > 0
    assert findings.rows_of(nodes[0].findings)[0]["status"] == "TP"
    assert comparison.chart_of(volume).GetNumberOfPlotSeriesNodes() == 2


@pytest.mark.parametrize(("device", "code"), [("refuse", "NOT_A_HEAD"), ("crash", "WORKER_DIED")])
def test_detect_raises_and_adds_nothing(module, client, volume, device, code):
    logic = module.UADBenchLogic(client)
    before = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(volumes.SceneError) as caught:
        logic.detect(volume, [MODEL], device=device)
    assert caught.value.code == code and caught.value.advice
    assert slicer.mrmlScene.GetNumberOfNodes() == before and not logic.session.waiting


def test_detect_gives_up_in_time(module, client, volume):
    with pytest.raises(volumes.SceneError, match="TIMEOUT"):
        module.UADBenchLogic(client).detect(volume, [MODEL], device="slow", timeoutS=0.5)
    assert not client.alive


def test_detect_refuses_before_it_starts_anything(module, client, scene, volume):
    logic = module.UADBenchLogic(client)
    with pytest.raises(volumes.SceneError, match="NO_VOLUME"):
        logic.detect(None, [MODEL])
    with pytest.raises(volumes.SceneError, match="NO_MODEL"):
        logic.detect(volume, [])
    far = affine_of(shape=(2, 2, 2))
    far[:3, 3] += 4000
    mask = scene.volume(np.ones((2, 2, 2), np.uint8), far, kind="LabelMapVolume")
    with pytest.raises(volumes.SceneError, match="MASK_OUTSIDE"):
        logic.detect(volume, [MODEL], brain_mask=mask)
    nodes = results.add_result(volume, result(volumes.world_affine(volume), shape=SHAPE, centres=((7, 5, 4),)))
    with pytest.raises(volumes.SceneError, match="OWN_RESULT"):
        logic.detect(nodes.map, [MODEL])
    assert not client.alive


def test_an_interpreter_that_cannot_start_is_explained(module, volume):
    application.Settings.values[module.PYTHON_SETTING] = "/nowhere/python"
    slicer.util.startupEnvironment = dict
    with pytest.raises(volumes.SceneError, match="WORKER_NOT_STARTED"):
        module.UADBenchLogic().detect(volume, [MODEL])


def test_volume_removed_while_computing(module, client, volume):
    logic = module.UADBenchLogic(client)
    logic.session.start(volume, [MODEL])
    slicer.mrmlScene.RemoveNode(volume)
    events = poll_until(logic, "failed", "result")
    assert events[-1]["code"] == "SCENE_CLOSED" and not logic.session.waiting


def test_contrast_of_the_name_is_sent(module, volume):
    class Client:
        def detect(self, voxels, affine, models, **options):
            self.options = options
            return "job"

    client = Client()
    session = module.UADBenchLogic(client).session
    session.start(volume, [MODEL])
    assert client.options["contrast"] == "T1w" and client.options["operating_point"] == "fpr-1pct"
    session.start(volume, [MODEL], contrast="FLAIR")
    assert client.options["contrast"] == "FLAIR", "the user's word counts more than the name"


def poll_until(logic, *kinds) -> list[dict]:
    """Poll a logic until one of the events has come."""
    events, end = [], time.monotonic() + 20
    while time.monotonic() < end:
        events += logic.session.poll()
        if any(event["event"] in kinds for event in events):
            return events
        time.sleep(0.01)
    raise AssertionError(f"none of {kinds}")


# ------------------------------------------------------------------------------------------------- packages


def test_missing_packages_are_those_of_the_interpreter(module, monkeypatch, tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("# comment\n\nnumpy>=1.26\nno_such_package>=2\n", encoding="utf-8")
    logic = module.UADBenchLogic()
    monkeypatch.setattr(module.UADBenchLogic, "requirementsFile", staticmethod(lambda: file))
    monkeypatch.setattr(logic, "pythonExecutable", lambda: sys.executable)
    assert "no_such_package" in logic.missingPackages() and "numpy" not in logic.missingPackages()
    asked = []
    monkeypatch.setattr(worker, "missing_packages", lambda *_args: asked.append(1) or [])
    assert logic.missingPackages() == logic.missingPackages() == [] and len(asked) == 1
    assert logic.missingPackages(dicom=True) == [] and len(asked) == 2


def test_packages_are_asked_for_by_the_name_they_are_imported_by(module, monkeypatch):
    asked = []
    monkeypatch.setattr(worker, "missing_packages", lambda _python, names, _environment: asked.extend(names) or [])
    module.UADBenchLogic().missingPackages(dicom=True)
    assert "yaml" in asked and "PyYAML" not in asked and asked[0] == "torch" and asked[-1] == "highdicom"


def test_installing_asks_the_pytorch_extension_first(module, monkeypatch):
    logic, calls = module.UADBenchLogic(), []
    packaging = application.types.ModuleType("slicer.packaging")
    packaging.load_requirements = lambda path: [path.name]
    packaging.pip_ensure = lambda requirements, **options: calls.append((requirements, options))
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(volumes.SceneError, match="PYTORCH_EXTENSION_MISSING.*Extensions Manager"):
        logic.installPackages(["torch", "nibabel"])
    assert calls == []
    torch = application.MagicMock()
    monkeypatch.setitem(sys.modules, "PyTorchUtils", torch)
    monkeypatch.setattr(logic, "missingPackages", lambda _dicom: ["nibabel"])
    with pytest.raises(volumes.SceneError, match="PACKAGES_NOT_INSTALLED.*nibabel"):
        logic.installPackages(["torch", "nibabel"])
    torch.PyTorchUtilsLogic().installTorch.assert_called_once()
    assert calls == [(["requirements.txt"], {"requester": "UADBench", "prompt_install": False})]
    monkeypatch.setattr(logic, "missingPackages", lambda _dicom: [])
    logic.installPackages(["torch"])
    assert len(calls) == 1
    logic.installPackages(["highdicom"], dicom=True)
    assert calls[1][0] == ["requirements.txt", module.DICOM_REQUIREMENT]


# ---------------------------------------------------------------------------------------------- sample data


def test_sample_data_is_registered_with_checksums_that_hold(module, monkeypatch):
    registered = []
    data = application.types.ModuleType("SampleData")
    data.SampleDataLogic = application.SimpleNamespace(
        registerCustomSampleDataSource=lambda **fields: registered.append(fields)
    )
    monkeypatch.setitem(sys.modules, "SampleData", data)
    module.registerSampleData()
    assert [entry["sampleName"] for entry in registered] == [module.SAMPLE[0], module.SAMPLE_REFERENCE[0]]
    for entry in registered:
        path = Path(url2pathname(urlparse(entry["uris"]).path))
        assert entry["checksums"] == "SHA256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        assert Path(entry["thumbnailFileName"]).is_file()


def test_an_application_without_sample_data_is_none_the_worse(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "SampleData", None)
    module.registerSampleData()
    monkeypatch.setitem(sys.modules, "SampleData", application.types.ModuleType("SampleData"))
    monkeypatch.setattr(module, "__file__", str(module.libraryFolder() / "UADBench.py"))
    module.registerSampleData()
