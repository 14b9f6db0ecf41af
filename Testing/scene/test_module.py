"""UADBench.py itself, driven without the application: its logic with a real worker process, and the panel's
behaviour.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import application
import numpy as np
import pytest
import slicer
from conftest import ROOT
from phantom import affine_of
from UADBenchScene import findings, results, volumes, worker
from UADBenchScene.worker import WorkerClient

HERE = Path(__file__).resolve().parent
SHAPE = (12, 11, 10)
MODEL = "disyre-t1w-compact"


@pytest.fixture
def module(scene, monkeypatch, tmp_path):
    """The module file, with two models in the catalogue."""
    for method, threshold in (("disyre", 4.25), ("denoising_autoencoder", 3.5)):
        name = f"{method.replace('_', '-')}-t1w-compact"
        points = {"fpr-1pct": {"threshold": threshold}, "best-dice": {"threshold": 5.0}}
        facts = {
            "id": name,
            "method": method,
            "preset": "compact",
            "contrast": "T1w",
            "operating_points": points,
        }
        file = tmp_path / "models" / name / "configs" / "metadata.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.setenv("UADBENCH_MODELS", str(tmp_path / "models"))
    from UADBenchLib.bundles import catalogue

    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "nothing" / "shipped")
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
    assert not logic.waiting


@pytest.mark.parametrize(("device", "code"), [("refuse", "NOT_A_HEAD"), ("crash", "WORKER_DIED")])
def test_detect_raises_and_adds_nothing(module, client, volume, device, code):
    logic = module.UADBenchLogic(client)
    before = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(volumes.SceneError) as caught:
        logic.detect(volume, [MODEL], device=device)
    assert caught.value.code == code and caught.value.advice
    assert slicer.mrmlScene.GetNumberOfNodes() == before and not logic.waiting


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
    mask = scene.volume(np.ones((2, 2, 2), np.uint8), np.eye(4), kind="LabelMapVolume")
    with pytest.raises(volumes.SceneError, match="MASK_LATTICE"):
        logic.detect(volume, [MODEL], brainMask=mask)
    assert not client.alive


def test_an_interpreter_that_cannot_start_is_explained(module, volume):
    application.Settings.values[module.PYTHON_SETTING] = "/nowhere/python"
    slicer.util.startupEnvironment = dict
    with pytest.raises(volumes.SceneError, match="WORKER_NOT_STARTED"):
        module.UADBenchLogic().detect(volume, [MODEL])


def test_volume_removed_while_computing(module, client, volume):
    logic = module.UADBenchLogic(client)
    logic.start(volume, [MODEL])
    slicer.mrmlScene.RemoveNode(volume)
    events = poll_until(logic, "failed", "result")
    assert events[-1]["code"] == "SCENE_CLOSED" and not logic.waiting


def test_contrast_of_the_name_is_sent(module, volume):
    class Client:
        def detect(self, voxels, affine, models, **options):
            self.options = options
            return "job"

    client = Client()
    module.UADBenchLogic(client).start(volume, [MODEL])
    assert client.options["contrast"] == "T1w" and client.options["operating_point"] == "fpr-1pct"


def poll_until(logic, *kinds) -> list[dict]:
    """Poll a logic until one of the events has come."""
    events, end = [], time.monotonic() + 20
    while time.monotonic() < end:
        events += logic.poll()
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
    monkeypatch.setattr(logic, "missingPackages", lambda: ["nibabel"])
    with pytest.raises(volumes.SceneError, match="PACKAGES_NOT_INSTALLED.*nibabel"):
        logic.installPackages(["torch", "nibabel"])
    torch.PyTorchUtilsLogic().installTorch.assert_called_once()
    assert calls == [(["requirements.txt"], {"requester": "UADBench", "prompt_install": False})]
    monkeypatch.setattr(logic, "missingPackages", lambda: [])
    logic.installPackages(["torch"])
    assert len(calls) == 1


# ---------------------------------------------------------------------------------------------------- panel


@pytest.fixture
def widget(module, client, volume, monkeypatch):
    """The panel, with the packages there and the scripted worker behind it."""
    made = module.UADBenchWidget(application.MagicMock())
    monkeypatch.setattr(module.UADBenchLogic, "missingPackages", lambda _self: [])
    made.setup()
    made.logic._client = client
    yield made
    made.cleanup()


def wait(widget, seconds: float = 20.0) -> None:
    """Let the panel's timer run until it stops itself."""
    end = time.monotonic() + seconds
    while widget._pollTimer.active:
        assert time.monotonic() < end
        widget.onPoll()
        time.sleep(0.01)


def test_panel_offers_models_and_operating_points(widget, volume):
    assert widget._parameterNode.inputVolume is volume
    labels = [label for label, _data in widget.ui.modelComboBox.items]
    assert labels[0] == "T1w: disyre (compact)" and labels[2] == "T1w: all 2 models and their consensus"
    points = [label for label, _data in widget.ui.operatingPointComboBox.items]
    assert points == ["fpr-1pct (z ≥ 4.25)", "best-dice (z ≥ 5.00)"]
    widget.ui.operatingPointComboBox.currentIndex = 1
    assert widget._parameterNode.operatingPoint == "best-dice"
    widget.ui.modelComboBox.currentIndex = 2
    assert widget._parameterNode.models == f"{MODEL},denoising-autoencoder-t1w-compact"
    assert widget._parameterNode.operatingPoint == "best-dice", "a point that all have is kept"
    assert widget.ui.applyButton.enabled


def test_panel_says_what_is_missing(widget):
    widget._parameterNode.inputVolume = None
    assert not widget.ui.applyButton.enabled and "input volume" in widget.ui.applyButton.toolTip
    widget._choices = []
    widget._parameterNode.inputVolume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    assert not widget.ui.applyButton.enabled and "No model" in widget.ui.applyButton.toolTip


def test_apply_shows_progress_and_then_the_findings(widget):
    widget.ui.applyButton.fire("clicked", False)
    ui = widget.ui
    assert ui.cancelButton.enabled and not ui.applyButton.enabled and ui.progressBar.visible
    wait(widget)
    assert ui.applyButton.enabled and not ui.cancelButton.enabled and not ui.progressBar.visible
    assert 0 < ui.progressBar.value <= 1000
    assert ui.findingsTable.rowCount == 1 and ui.findingsTable.cells[0, 2] == "8.0"
    assert ui.findingsLabel.text == "One finding, peak z 8.0."
    assert results.is_map(widget._parameterNode.resultMap)
    lines = ui.messageLabel.text.splitlines()
    assert lines[0] == "T1w (the image looks like FLAIR), signal to noise 12.3."
    assert "Slices are 6 mm thick" in lines[1] and "The scan is noisy" in lines[2] and len(lines) == 3
    assert ui.thresholdSlider.enabled and ui.thresholdSlider.value == 3.0


def test_cancel_leaves_the_scene_as_it_was(widget):
    widget._parameterNode.device = "slow"
    before = slicer.mrmlScene.GetNumberOfNodes()
    widget.ui.applyButton.fire("clicked", False)
    widget.ui.cancelButton.fire("clicked", False)
    wait(widget, 3.0)
    assert "Cancelled" in widget.ui.messageLabel.text and widget.ui.applyButton.enabled
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_failure_is_shown_and_the_panel_is_ready_again(widget):
    widget._parameterNode.device = "refuse"
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    (text,), _options = slicer.util.errorDisplay.call_args
    assert text == "There is no head in this scan. Choose a scan of a whole head."
    assert widget.ui.applyButton.enabled and widget._job is None


def test_threshold_slider_changes_the_map_at_once_and_the_findings_after_it_rests(widget):
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    mapNode = widget._parameterNode.resultMap
    for value in (5.0, 7.0, 9.5):
        widget.ui.thresholdSlider.value = value
        widget.ui.thresholdSlider.fire("valueChanged", value)
        assert mapNode.GetDisplayNode().GetLowerThreshold() == value
    assert widget.ui.findingsTable.rowCount == 1 and widget._thresholdTimer.active
    widget._thresholdTimer.run_out()
    wait(widget)
    nodes = results.nodes_of(mapNode)
    assert nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 0
    assert widget.ui.findingsTable.rowCount == 0
    text = "No finding at this threshold; the highest value of the map is z 8.0."
    assert widget.ui.findingsLabel.text == text
    assert mapNode.GetAttribute("UADBench.Threshold") == "9.5"


def test_threshold_cannot_be_moved_when_the_worker_has_gone(widget):
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    widget.logic.close()
    widget.showFindings()
    assert not widget.ui.thresholdSlider.enabled and "detect again" in widget.ui.thresholdSlider.toolTip
    with pytest.raises(volumes.SceneError, match="JOB_UNKNOWN"):
        widget.logic.moveThreshold(widget._parameterNode.resultMap, 4.0)


def test_next_previous_and_double_click_jump_to_the_peak(widget, volume):
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetOrientationToAxial()
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    widget.ui.findingsTable.fire("cellDoubleClicked", 0, 2)
    expected = (volumes.world_affine(volume) @ [7, 5, 4, 1])[:3]
    place = [view.GetSliceToRAS().GetElement(k, 3) for k in range(3)]
    np.testing.assert_allclose(place, expected, atol=1e-4)
    widget.ui.nextButton.fire("clicked", False)
    assert widget.ui.findingsTable.row == 0, "after the last there is none"
    widget.ui.previousButton.fire("clicked", False)
    assert widget.ui.findingsTable.row == 0


def test_nothing_is_installed_without_asking(widget, module, monkeypatch):
    monkeypatch.setattr(module.UADBenchLogic, "missingPackages", lambda _self: ["torch", "nibabel"])
    installed = application.MagicMock()
    monkeypatch.setattr(module.UADBenchLogic, "installPackages", installed)
    slicer.util.confirmOkCancelDisplay.return_value = False
    widget.ui.applyButton.fire("clicked", False)
    question = slicer.util.confirmOkCancelDisplay.call_args.args[0]
    assert "torch, nibabel" in question and not installed.called and widget._job is None
    slicer.util.confirmOkCancelDisplay.return_value = True
    widget.ui.applyButton.fire("clicked", False)
    installed.assert_called_once()
    wait(widget)


def test_nothing_is_installed_into_the_users_own_interpreter(widget, module, monkeypatch):
    monkeypatch.setattr(module.UADBenchLogic, "missingPackages", lambda _self: ["torch"])
    application.Settings.values[module.PYTHON_SETTING] = "/home/reader/venv/bin/python"
    widget.ui.applyButton.fire("clicked", False)
    assert "torch" in slicer.util.errorDisplay.call_args.args[0]
    assert not slicer.util.confirmOkCancelDisplay.called and widget._job is None


def test_closing_the_scene_stops_the_worker(widget, client):
    widget._parameterNode.device = "slow"
    widget.ui.applyButton.fire("clicked", False)
    assert client.alive
    slicer.mrmlScene.Clear(0)
    assert not client.alive and widget._job is None and not widget._pollTimer.active


def test_views_without_a_layout_manager_are_left_alone(widget):
    assert slicer.app.layoutManager() is None
    composite = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    assert composite.GetForegroundVolumeID() is None
    composite.SetForegroundVolumeID(widget._parameterNode.resultMap.GetID())
    widget._parameterNode.mapOpacity = 0.25
    assert composite.GetForegroundOpacity() == 0.25
