"""The panel's behaviour, driven through its widgets' signals without the application; a real process computes."""

from __future__ import annotations

import csv
import time

import application
import numpy as np
import pytest
import slicer
import vtk
from conftest import matrix
from phantom import affine_of
from test_module import MODEL, SHAPE, client, module, volume  # noqa: F401  (fixtures)
from UADBenchScene import comparison, findings, layouts, results, segments, volumes

OTHER = "denoising-autoencoder-t1w-compact"


@pytest.fixture
def widget(module, client, volume, monkeypatch):  # noqa: F811
    """The panel, with the packages there and the scripted worker behind it."""
    made = module.UADBenchWidget(application.MagicMock())
    monkeypatch.setattr(module.UADBenchLogic, "missingPackages", lambda _self, _dicom=False: [])
    made.setup()
    made.logic._client = client
    yield made
    made.cleanup()


def wait(widget, seconds: float = 60.0) -> None:
    """Let the panel's timer run until it stops itself."""
    end = time.monotonic() + seconds
    while widget._pollTimer.active:
        assert time.monotonic() < end
        widget.onPoll()
        time.sleep(0.01)


def detected(widget):
    """Detect, and return the map."""
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    return widget._parameterNode.resultMap


def reference_of(scene, volume, shape=SHAPE, spacing=1.0):  # noqa: F811
    """A label map around the volume's only high voxel, on its own voxels or on finer ones."""
    own = affine_of(degrees=(10, 5, 20), shape=SHAPE) @ np.diag([spacing, spacing, spacing, 1.0])
    voxels = np.zeros(shape, np.uint8)
    start = [round(index / spacing) for index in (6, 4, 3)]
    voxels[tuple(slice(s, s + round(3 / spacing)) for s in start)] = 1
    node = scene.volume(voxels, own, name="truth", kind="LabelMapVolume")
    node.SetIJKToRASMatrix(matrix(own))
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    return node


# --------------------------------------------------------------------------------------------------- 1. scan


def test_the_first_scan_is_chosen_and_not_a_result(widget, volume):  # noqa: F811
    assert widget._parameterNode.inputVolume is volume
    mapNode = detected(widget)
    widget._parameterNode.inputVolume = None
    slicer.mrmlScene.RemoveNode(volume)
    widget.initializeParameterNode()
    assert widget._parameterNode.inputVolume is not mapNode


def test_contrast_is_followed_and_can_be_corrected(widget):
    assert widget.ui.contrastFilterComboBox.currentData == "T1w", "the volume's name says so"
    widget.ui.contrastComboBox.choose("FLAIR")
    assert widget._parameterNode.contrast == "FLAIR"
    assert widget.ui.contrastFilterComboBox.currentData == "FLAIR"
    assert widget.ui.modelsTable.hidden == {1}, "what is ticked stays in sight"


def test_checking_the_scan_says_in_words_what_is_noticed(widget, monkeypatch):
    session = widget.logic.session
    monkeypatch.setattr(session, "check", lambda *_args: "job")
    widget.ui.checkButton.fire("clicked", False)
    assert "Looking" in widget.ui.scanLabel.text and not widget.ui.checkButton.enabled
    check = {"level": "warning", "code": "THICK", "message": "slices are 6 mm thick", "advice": "expect less"}
    facts = {"contrast": {"contrast": "other", "reason": "fluid is as bright as tissue"}, "quality": {"snr": 12.34}}
    widget._take({"event": "result", "kind": "check", "job": "job", "checks": [check], **facts})
    lines = widget.ui.scanLabel.text.splitlines()
    assert lines[0] == "The image looks like neither T1w, T2w nor FLAIR: fluid is as bright as tissue."
    assert lines[1:] == ["Signal to noise 12.3.", "Slices are 6 mm thick. Expect less."]
    assert widget.ui.checkButton.enabled


def test_a_check_whose_scan_was_deleted_ends(widget):
    widget._checkJob = "job"
    widget._take({"event": "cancelled", "job": "job"})
    assert widget._checkJob is None and widget.ui.scanLabel.text == ""


# ------------------------------------------------------------------------------------------------- 2. detect


def test_models_are_listed_with_what_they_are_measured_to_find(widget):
    cells = widget.ui.modelsTable.cells
    assert [cells[0, k] for k in range(4)] == ["disyre", "T1w", "~2 +", "tumour 0.50"]
    widget.ui.modelsTable.setCurrentCell(0, 0)
    assert MODEL in widget.ui.modelLabel.text and "tumour: best Dice 0.50 (n=1)" in widget.ui.modelLabel.text
    points = [label for label, _data in widget.ui.operatingPointComboBox.items]
    assert points == ["fpr-1pct (z > 4.25, 1.00% of healthy voxels)", "best-dice (z > 5.00)"]


def test_the_list_is_searched_and_filtered(widget):
    widget.ui.searchEdit.text = "autoencoder"
    widget.ui.searchEdit.fire("textChanged", "autoencoder")
    assert widget.ui.modelsTable.hidden == set(), "the one that is ticked stays in sight"
    widget.ui.modelsTable.tick(0, False)
    widget.ui.searchEdit.fire("textChanged", "autoencoder")
    assert widget.ui.modelsTable.hidden == {0}
    assert not widget.ui.applyButton.enabled and "Tick" in widget.ui.applyButton.toolTip


def test_several_models_share_their_operating_points(widget):
    widget.ui.operatingPointComboBox.choose("best-dice")
    widget.ui.modelsTable.tick(1)
    assert widget._parameterNode.models == f"{MODEL},{OTHER}"
    assert widget._parameterNode.operatingPoint == "best-dice", "a point that all have is kept"
    assert widget.ui.applyButton.enabled


def test_panel_says_what_is_missing(widget):
    widget._parameterNode.inputVolume = None
    assert not widget.ui.applyButton.enabled and "Choose a scan" in widget.ui.applyButton.toolTip
    widget._rows = []
    widget._parameterNode.inputVolume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    assert not widget.ui.applyButton.enabled and "No model" in widget.ui.applyButton.toolTip


def test_devices_are_shown_with_name_and_free_memory(widget, monkeypatch):
    monkeypatch.setattr(widget.logic.session, "ask_devices", lambda: None)
    widget.ui.devicesButton.fire("clicked", False)
    devices = [{"id": "cpu", "name": "CPU, 8 cores", "memory_free_gb": None}]
    devices.append({"id": "cuda:0", "name": "RTX", "memory_free_gb": 14.2})
    widget._take({"event": "result", "kind": "device", "job": None, "devices": devices})
    assert [label for label, _ in widget.ui.deviceComboBox.items][1:] == ["CPU, 8 cores", "RTX (14.2 GB free)"]
    widget.ui.deviceComboBox.choose("cuda:0")
    assert widget._parameterNode.device == "cuda:0" and "RTX" in widget.ui.torchLabel.text


def test_apply_shows_progress_and_then_the_findings(widget):
    widget.ui.applyButton.fire("clicked", False)
    ui = widget.ui
    assert ui.cancelButton.enabled and ui.progressBar.visible and ui.applyButton.text == "Apply (next)"
    wait(widget)
    assert not ui.cancelButton.enabled and not ui.progressBar.visible and ui.applyButton.text == "Apply"
    assert 0 < ui.progressBar.value <= 1000
    assert ui.findingsTable.rowCount == 1 and ui.findingsTable.cells[0, 2] == "8.0"
    assert ui.findingsLabel.text == "One finding above z = 3.0: 1.0 ml, peak 8.0."
    lines = ui.messageLabel.text.splitlines()
    assert lines[0] == "T1w (the image looks like FLAIR). Signal to noise 12.3."
    assert "Slices are 6 mm thick" in lines[1] and "The scan is noisy" in lines[2] and len(lines) == 3
    assert ui.thresholdSlider.enabled and ui.thresholdSlider.value == 3.0


def test_two_runs_queue(widget):
    widget._parameterNode.device = "slow"
    widget.ui.applyButton.fire("clicked", False)
    first = widget._job
    widget._parameterNode.device = "cpu"
    widget.ui.applyButton.fire("clicked", False)
    assert widget._job == first and len(widget.logic.session.queue) == 2
    assert widget.ui.cancelButton.text == "Cancel (1 waiting)"
    widget.ui.cancelButton.fire("clicked", False)
    wait(widget)
    assert len(results.maps_of(widget._parameterNode.inputVolume)) == 1, "the second run went on"


def test_cancel_leaves_the_scene_as_it_was(widget):
    widget._parameterNode.device = "slow"
    before = slicer.mrmlScene.GetNumberOfNodes()
    widget.ui.applyButton.fire("clicked", False)
    widget.ui.cancelButton.fire("clicked", False)
    wait(widget, 20.0)
    assert "Cancelled" in widget.ui.messageLabel.text and widget.ui.applyButton.enabled
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_a_refusal_is_shown_without_a_popup_and_the_panel_is_ready_again(widget):
    widget._parameterNode.device = "refuse"
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    assert widget.ui.messageLabel.text == "There is no head in this scan. Choose a scan of a whole head."
    assert widget.ui.applyButton.enabled and widget._job is None and not slicer.util.errorDisplay.called
    assert not widget.ui.firstOfferButton.visible


@pytest.mark.parametrize(
    ("device", "button", "text"),
    [
        ("memory", "firstOfferButton", "Try with a smaller batch"),
        ("memory", "secondOfferButton", "Try on the processor"),
        ("unknown", "firstOfferButton", "Go on anyway"),
        ("crash", "secondOfferButton", "Try on the processor"),
    ],
)
def test_what_failed_can_be_tried_in_another_way(widget, device, button, text):
    widget._parameterNode.device = device
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    offer = getattr(widget.ui, button)
    assert offer.visible and offer.text == text and widget._parameterNode.resultMap is None
    offer.fire("clicked", False)
    wait(widget)
    assert results.is_map(widget._parameterNode.resultMap) and not offer.visible


def test_a_dead_worker_is_explained_and_started_again(widget):
    widget._parameterNode.device = "crash"
    widget.ui.applyButton.fire("clicked", False)
    wait(widget)
    assert "ended unexpectedly" in widget.ui.messageLabel.text
    assert widget.ui.firstOfferButton.text == "Start again"
    widget._parameterNode.device = "cpu"
    assert results.is_map(detected(widget))


def test_seconds_of_a_run_are_remembered_for_the_list(widget):
    detected(widget)
    widget._fillModels()
    assert widget.ui.modelsTable.cells[0, 2] == "9"


def test_one_segment_for_all_is_a_choice(widget):
    widget._parameterNode.oneSegment = True
    nodes = results.nodes_of(detected(widget))
    assert nodes.segmentation.GetSegmentation().GetNthSegment(0).GetName() == "1 findings, peak 8.0 z"


# ------------------------------------------------------------------------------------------------- 3. review


def test_threshold_slider_draws_a_preview_and_the_findings_follow_when_it_rests(widget):
    mapNode = detected(widget)
    own = results.nodes_of(mapNode).segmentation
    for value in (5.0, 7.0, 9.5):
        widget.ui.thresholdSlider.value = value
        widget.ui.thresholdSlider.fire("valueChanged", value)
        assert mapNode.GetDisplayNode().GetLowerThreshold() == value
    assert not own.GetDisplayNode().GetVisibility(), "the preview is shown in its place"
    assert widget.ui.findingsTable.rowCount == 1 and widget._thresholdTimer.active
    widget._thresholdTimer.run_out()
    wait(widget)
    assert own.GetSegmentation().GetNumberOfSegments() == 0 and own.GetDisplayNode().GetVisibility()
    assert widget.ui.findingsTable.rowCount == 0 and widget._preview is None
    assert widget.ui.findingsLabel.text.startswith("Nothing above z = 9.5; highest 8.0 at R ")
    assert mapNode.GetAttribute("UADBench.Threshold") == "9.5"


def test_named_operating_points_move_the_threshold(widget):
    mapNode = detected(widget)
    assert [data for _label, data in widget.ui.pointComboBox.items] == ["fpr-1pct", "best-dice", "user"]
    widget.ui.pointComboBox.choose("best-dice")
    assert widget.ui.thresholdSlider.value == 5.0
    widget._thresholdTimer.run_out()
    wait(widget)
    assert mapNode.GetAttribute("UADBench.Threshold") == "5"
    assert mapNode.GetAttribute("UADBench.OperatingPoint") == "best-dice"
    assert widget.ui.pointComboBox.currentData == "best-dice"


def test_threshold_can_be_moved_when_the_worker_has_gone(widget):
    mapNode = detected(widget)
    widget.logic.close()
    widget.ui.thresholdSlider.value = 9.0
    widget.onThresholdMoved()
    widget._thresholdTimer.run_out()
    wait(widget)
    assert mapNode.GetAttribute("UADBench.Threshold") == "9" and widget.ui.findingsTable.rowCount == 0


def test_undo_brings_back_what_was_before_the_threshold_was_moved(widget):
    mapNode = detected(widget)
    assert not widget.ui.undoButton.enabled
    widget.ui.thresholdSlider.value = 9.0
    widget.onThresholdMoved()
    widget._thresholdTimer.run_out()
    wait(widget)
    assert widget.ui.undoButton.enabled and widget.ui.findingsTable.rowCount == 0
    widget.ui.undoButton.fire("clicked", False)
    assert results.nodes_of(mapNode).segmentation.GetSegmentation().GetNumberOfSegments() == 1
    assert widget.ui.findingsTable.rowCount == 1 and widget.ui.thresholdSlider.value == 3.0
    assert not widget.ui.undoButton.enabled


def test_next_previous_and_double_click_jump_to_the_peak(widget, volume):  # noqa: F811
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetOrientationToAxial()
    detected(widget)
    expected = (volumes.world_affine(volume) @ [7, 5, 4, 1])[:3]
    for jump in (
        lambda: widget.ui.findingsTable.fire("cellDoubleClicked", 0, 2),
        lambda: widget.ui.nextButton.fire("clicked", False),
        lambda: widget.ui.previousButton.fire("clicked", False),
        lambda: widget.ui.jumpButton.fire("clicked", False),
    ):
        view.JumpSliceByCentering(0, 0, 0)
        jump()
        place = [view.GetSliceToRAS().GetElement(k, 3) for k in range(3)]
        np.testing.assert_allclose(place, expected, atol=1e-4)
    assert widget.ui.findingsTable.row == 0, "after the last there is none"


def test_verdict_and_comment_are_kept_in_the_scene(widget):
    mapNode = detected(widget)
    widget.ui.acceptButton.fire("clicked", False)
    assert "Select a finding" in widget.ui.findingsLabel.text
    widget.ui.findingsTable.setCurrentCell(0, 0)
    assert not widget.ui.sendButton.enabled
    widget.ui.acceptButton.fire("clicked", False)
    widget.ui.commentEdit.text = "enhancing"
    widget.ui.commentEdit.fire("editingFinished")
    (row,) = findings.rows_of(results.nodes_of(mapNode).findings)
    assert (row["verdict"], row["comment"]) == ("accept", "enhancing") and widget.ui.sendButton.enabled
    widget.ui.unsureButton.fire("clicked", False)
    assert findings.rows_of(results.nodes_of(mapNode).findings)[0]["verdict"] == "unsure"
    widget.ui.unsureButton.fire("clicked", False)
    assert findings.rows_of(results.nodes_of(mapNode).findings)[0]["verdict"] == "", "the same again takes it back"
    widget.ui.rejectButton.fire("clicked", False)
    assert widget.ui.findingsTable.cells[0, 5] == "reject"


def test_accepted_findings_are_sent_to_a_segmentation(widget):
    detected(widget)
    widget.ui.findingsTable.setCurrentCell(0, 0)
    widget.ui.acceptButton.fire("clicked", False)
    widget.ui.sendButton.fire("clicked", False)
    target = widget._parameterNode.acceptedTarget
    assert target.GetSegmentation().GetNumberOfSegments() == 1 and target.GetName() in widget.ui.findingsLabel.text
    assert not slicer.util.selectModule.called, "without a main window there is nowhere to go"
    slicer.util.mainWindow.return_value = application.MagicMock()
    slicer.modules.segmenteditor = object()
    widget.ui.sendButton.fire("clicked", False)
    slicer.util.selectModule.assert_called_once_with("SegmentEditor")
    assert target.GetSegmentation().GetNumberOfSegments() == 2, "what was there stays"


def contents(node):
    """Everything that a segmentation holds: names, colours, tags, voxels and their place."""
    held, segmentation = [node.GetTransformNodeID()], node.GetSegmentation()
    for name in segmentation.GetSegmentIDs():
        segment, image = segmentation.GetSegment(name), slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(name, image)
        held += [name, segment.GetName(), segment.GetColor(), volumes.voxels_of(image).tobytes()]
        held += segments.image_matrix(image).tolist()
        for key in ("by", "UADBench.PeakZ", slicer.vtkSegment.GetTerminologyEntryTagName()):
            text = vtk.reference("")
            held.append(str(text) if segment.GetTag(key, text) else None)
    return held


def test_what_was_sent_to_somebodys_segmentation_can_be_undone(widget, volume):  # noqa: F811
    mapNode = detected(widget)
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[1:3, 2:5, 3:7] = 1
    drawn[8:10, 2:5, 1:2] = 2
    segments.fill(
        mine, volume, drawn, [segments.Segment("edema", (0.1, 0.2, 0.3), {"by": "me"}), segments.Segment("core")]
    )
    own, before = contents(results.nodes_of(mapNode).segmentation), contents(mine)
    widget._parameterNode.acceptedTarget = mine
    widget.ui.findingsTable.setCurrentCell(0, 0)
    widget.ui.acceptButton.fire("clicked", False)
    assert not widget.ui.undoButton.enabled
    widget.ui.sendButton.fire("clicked", False)
    assert mine.GetSegmentation().GetNumberOfSegments() == 3 and widget.ui.undoButton.enabled
    widget.ui.undoButton.fire("clicked", False)
    assert contents(mine) == before and not widget.ui.undoButton.enabled
    assert contents(results.nodes_of(mapNode).segmentation) == own, "the result is not touched"
    assert widget.ui.findingsTable.cells[0, 5] == "accept", "neither is the verdict"


def test_undo_takes_back_what_was_done_last(widget, volume):  # noqa: F811
    mapNode = detected(widget)
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    widget._parameterNode.acceptedTarget = mine
    widget.ui.findingsTable.setCurrentCell(0, 0)
    widget.ui.acceptButton.fire("clicked", False)
    widget.ui.sendButton.fire("clicked", False)
    widget.ui.thresholdSlider.value = 9.0
    widget.onThresholdMoved()
    widget._thresholdTimer.run_out()
    wait(widget)
    widget.ui.undoButton.fire("clicked", False)
    assert mapNode.GetAttribute("UADBench.Threshold") == "3" and mine.GetSegmentation().GetNumberOfSegments() == 1
    assert widget.ui.undoButton.enabled
    widget.ui.undoButton.fire("clicked", False)
    assert mine.GetSegmentation().GetNumberOfSegments() == 0 and not widget.ui.undoButton.enabled


def test_what_was_edited_after_it_was_sent_is_not_undone(widget):
    detected(widget)
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    widget._parameterNode.acceptedTarget = mine
    widget.ui.findingsTable.setCurrentCell(0, 0)
    widget.ui.acceptButton.fire("clicked", False)
    widget.ui.sendButton.fire("clicked", False)
    mine.GetSegmentation().GetNthSegment(0).SetName("renamed")
    with pytest.raises(volumes.SceneError, match="EDITED_SINCE"):
        widget.ui.undoButton.fire("clicked", False)
    assert mine.GetSegmentation().GetNthSegment(0).GetName() == "renamed"


def test_flicker_and_opacity(widget):
    composite = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    mapNode = detected(widget)
    assert composite.GetForegroundVolumeID() is None, "without a layout manager views are left alone"
    composite.SetForegroundVolumeID(mapNode.GetID())
    widget._parameterNode.mapOpacity = 0.25
    assert composite.GetForegroundOpacity() == 0.25
    widget.ui.flickerButton.fire("clicked", False)
    assert composite.GetForegroundOpacity() == 0.0
    widget.ui.flickerButton.fire("clicked", False)
    assert composite.GetForegroundOpacity() == 0.25


def test_layouts_are_entered_and_given_back(widget, monkeypatch):
    layout = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    slicer.app.layoutManager.return_value = object()
    shown = application.MagicMock()
    monkeypatch.setattr(slicer.util, "setSliceViewerLayers", shown)
    mapNode = detected(widget)
    assert shown.call_args.kwargs["foreground"] is mapNode
    seen = set()
    for name in ("side by side", "models", "findings in 3-D", "curve"):
        widget.ui.layoutComboBox.choose(name)
        seen.add(layout.GetViewArrangement())
    assert len(seen) == 4 and min(seen) >= layouts.FIRST_NUMBER
    widget.exit()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    widget.ui.layoutComboBox.choose("side by side")
    widget.ui.layoutComboBox.choose("")
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView


# -------------------------------------------------------------------------------------- 4. compare and export


@pytest.mark.parametrize(("shape", "spacing"), [(SHAPE, 1.0), ((24, 22, 20), 0.5)], ids=["same voxels", "finer voxels"])
def test_a_reference_gives_figures_curve_and_agreement(widget, scene, volume, shape, spacing):  # noqa: F811
    mapNode = detected(widget)
    assert not widget.ui.compareButton.enabled
    widget._parameterNode.reference = reference_of(scene, volume, shape, spacing)
    assert widget.ui.compareButton.enabled
    widget.ui.compareButton.fire("clicked", False)
    wait(widget)
    assert ("nearest" in widget.ui.compareLabel.text) == (spacing != 1.0)
    assert widget.ui.comparisonTable.rowCount == 1 and widget.ui.comparisonTable.cells[0, 0] == "disyre"
    assert widget.ui.comparisonTable.cells[0, 4] == "1/1", "one lesion is hit"
    assert widget.ui.findingsTable.cells[0, 4] == "TP"
    (row,) = comparison.rows_of(comparison.table_of(volume))
    assert row["map_id"] == mapNode.GetID() and 0 < row["dice"] < 1


def test_reference_chosen_before_is_compared_with_at_once(widget, scene, volume):  # noqa: F811
    widget._parameterNode.reference = reference_of(scene, volume)
    detected(widget)
    assert widget.ui.comparisonTable.rowCount == 1


def test_reference_from_a_file(widget, module, scene, tmp_path):  # noqa: F811
    path = tmp_path / "truth.nii.gz"
    node = scene.volume(np.ones(SHAPE, np.uint8), affine_of(shape=SHAPE), kind="LabelMapVolume")
    storage = scene.mrml.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    assert storage.WriteData(node)
    module.qt.QFileDialog.getOpenFileName.return_value = str(path)
    widget.ui.loadReferenceButton.fire("clicked", False)
    assert widget._parameterNode.reference.GetName() == "truth"
    module.qt.QFileDialog.getOpenFileName.return_value = ""
    widget.ui.loadReferenceButton.fire("clicked", False)
    assert widget._parameterNode.reference.GetName() == "truth", "a dialogue that was closed changes nothing"


def test_export_writes_what_is_ticked(widget, tmp_path):
    detected(widget)
    node = widget._parameterNode
    node.exportFiles, node.exportPictures = False, True
    widget.ui.exportPathEdit.currentPath = str(tmp_path / "out")
    widget.ui.stemEdit.text = "case 7"
    widget.ui.findingsTable.setCurrentCell(0, 0)
    widget.ui.acceptButton.fire("clicked", False)
    widget.ui.exportButton.fire("clicked", False)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"case 7_model-{MODEL}_desc-reader_findings.csv", f"case 7_model-{MODEL}_finding-01.png"]
    with (tmp_path / "out" / names[0]).open(encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert row["verdict"] == "accept" and row["overlap"] == ""
    assert "2 files written" in widget.ui.exportLabel.text


def test_export_of_files_is_asked_of_the_worker(widget, tmp_path, monkeypatch):
    mapNode = detected(widget)
    asked = []
    monkeypatch.setattr(widget.logic.session, "export", lambda *args, **options: asked.append((args, options)))
    widget._parameterNode.exportVerdicts = False
    widget.ui.exportPathEdit.currentPath = str(tmp_path)
    widget.ui.exportButton.fire("clicked", False)
    ((args, options),) = asked
    assert args == (mapNode, tmp_path, ["files"]) and options["stem"] == "" or options["stem"] == "scan"
    widget._take({"event": "result", "kind": "export", "job": "x", "files": ["a.nii.gz", "b.csv"]})
    assert widget.ui.exportLabel.text == "2 files written: a.nii.gz, b.csv."


def test_dicom_seg_of_a_scan_that_is_not_from_dicom_is_explained(widget, tmp_path):
    detected(widget)
    widget._parameterNode.exportFiles, widget._parameterNode.exportDicomSeg = False, True
    widget.ui.exportPathEdit.currentPath = str(tmp_path)
    with pytest.raises(volumes.SceneError, match="NOT_DICOM.*DICOM module"):
        widget.ui.exportButton.fire("clicked", False)


# ---------------------------------------------------------------------------------------------- installation


def test_nothing_is_installed_without_asking(widget, module, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module.UADBenchLogic, "missingPackages", lambda _self, _dicom=False: ["torch", "nibabel"])
    installed = application.MagicMock()
    monkeypatch.setattr(module.UADBenchLogic, "installPackages", installed)
    slicer.util.confirmOkCancelDisplay.return_value = False
    widget.ui.applyButton.fire("clicked", False)
    question = slicer.util.confirmOkCancelDisplay.call_args.args[0]
    assert "torch, nibabel" in question and not installed.called and widget._job is None
    slicer.util.confirmOkCancelDisplay.return_value = True
    widget.ui.installButton.fire("clicked", False)
    installed.assert_called_once()
    assert widget.ui.torchLabel.text == "missing" and widget.ui.packagesLabel.text == "missing: nibabel"


def test_nothing_is_installed_into_the_users_own_interpreter(widget, module, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module.UADBenchLogic, "missingPackages", lambda _self, _dicom=False: ["torch"])
    application.Settings.values[module.PYTHON_SETTING] = "another-python"
    widget.ui.applyButton.fire("clicked", False)
    assert "torch" in slicer.util.errorDisplay.call_args.args[0]
    assert not slicer.util.confirmOkCancelDisplay.called and widget._job is None


def test_another_python_is_remembered_and_the_worker_ended(widget, module):  # noqa: F811
    detected(widget)
    widget.ui.pythonPathEdit.fire("currentPathChanged", "another-python")
    assert application.Settings.values[module.PYTHON_SETTING] == "another-python"
    assert not widget.logic.session.client.alive


def test_look_again_checks_the_models_files(widget, monkeypatch):
    monkeypatch.setattr(widget.logic.session, "ask_devices", lambda: None)
    widget.ui.lookButton.fire("clicked", False)
    assert widget.ui.packagesLabel.text == "complete"
    assert "metadata cannot be read" in widget.ui.modelsLabel.text, "the catalogue of this test names no weights"


def test_models_are_imported_and_removed_again(widget, module, tmp_path):  # noqa: F811
    from test_models import make_bundle

    make_bundle(tmp_path / "stick" / "fae-flair-compact", contrast="FLAIR", method="fae")
    module.qt.QFileDialog.getExistingDirectory.return_value = str(tmp_path / "stick")
    widget.ui.importButton.fire("clicked", False)
    assert "fae-flair-compact" in widget.ui.modelsLabel.text and len(widget._rows) == 3
    widget.ui.modelsTable.tick(0)
    widget.ui.modelsTable.tick(1)
    assert not widget.ui.applyButton.enabled and "different contrasts" in widget.ui.applyButton.toolTip
    widget.ui.clearButton.fire("clicked", False)
    assert len(widget._rows) == 2 and not (tmp_path / "own" / "fae-flair-compact").exists()


# ------------------------------------------------------------------------------------------------- behaviour


def test_closing_the_scene_stops_the_worker(widget, client):  # noqa: F811
    widget._parameterNode.device = "slow"
    widget.ui.applyButton.fire("clicked", False)
    assert client.alive
    slicer.mrmlScene.Clear(0)
    assert not client.alive and widget._job is None and not widget._pollTimer.active


def test_deleting_the_volume_stops_its_detection(widget, volume):  # noqa: F811
    widget._parameterNode.device = "slow"
    widget.ui.applyButton.fire("clicked", False)
    slicer.mrmlScene.RemoveNode(volume)
    wait(widget, 20.0)
    assert widget._job is None and "Cancelled" in widget.ui.messageLabel.text


def test_reloading_stops_the_worker(widget, client, module, monkeypatch):  # noqa: F811
    monkeypatch.setattr(application.ModuleBase, "onReload", lambda _self: None, raising=False)
    monkeypatch.setattr(module.sys, "modules", dict(module.sys.modules))
    widget._parameterNode.device = "slow"
    widget.ui.applyButton.fire("clicked", False)
    widget.onReload()
    assert not client.alive and widget._job is None


def test_leaving_and_coming_back_changes_nothing(widget):
    mapNode = detected(widget)
    widget.exit()
    widget.enter()
    assert widget._parameterNode.resultMap is mapNode and widget.ui.findingsTable.rowCount == 1
    assert widget._shortcut is None, "there is no main window"


def test_a_volume_deleted_after_its_detection_is_explained(widget, volume):  # noqa: F811
    detected(widget)
    slicer.mrmlScene.RemoveNode(volume)
    widget.ui.thresholdSlider.value = 4.0
    widget.onThresholdMoved()
    with pytest.raises(volumes.SceneError, match="SCENE_CLOSED"):
        widget._thresholdTimer.run_out()
