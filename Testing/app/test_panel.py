"""The panel inside the application: every button, with a worker that computes nothing; needs no package and no model.

    xvfb-run -a Slicer --no-splash --additional-module-paths UADBench --python-script Testing/app/test_panel.py

Add ``--no-main-window`` to see that it works without one as well. The exit code is 0 when all tests pass. The same
behaviour is tested without the application in ``Testing/scene/test_widget.py``; here Qt, the parameter node's
connection to the widgets, selectors and views are the real ones.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import unittest
from pathlib import Path

import qt
import slicer

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "UADBench"), str(ROOT / "Testing" / "scene")]
MODEL, OTHER = "disyre-t1w-compact", "fae-t1w-compact"
SHAPE = (12, 11, 10)
BUTTONS = (
    "checkButton", "devicesButton", "applyButton", "cancelButton", "firstOfferButton", "secondOfferButton",
    "flickerButton", "previousButton", "nextButton", "jumpButton", "acceptButton", "rejectButton", "unsureButton",
    "undoButton", "sendButton", "loadReferenceButton", "compareButton", "exportButton", "lookButton", "installButton",
    "importButton", "clearButton",
)  # fmt: skip
"""Each has a test below; a test compares this list with the panel."""


def models_folder(folder: Path) -> Path:
    """Write the metadata of two models."""
    for name in (MODEL, OTHER):
        points = {"fpr-1pct": {"threshold": 3.0, "healthy_fpr": 0.01}, "strict": {"threshold": 5.0}}
        facts = {"id": name, "method": name.partition("-")[0], "preset": "compact", "contrast": "T1w"}
        file = folder / name / "configs" / "metadata.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(facts | {"operating_points": points, "sha256": {}}), encoding="utf-8")
    return folder


class PanelTest(unittest.TestCase):
    """One scan, two models, a worker that finds the brightest voxel."""

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        os.environ["UADBENCH_MODELS"] = str(models_folder(self.folder / "models"))
        slicer.mrmlScene.Clear(0)
        self.volume = self.scan("sub-1_T1w")
        self.widget = slicer.modules.uadbench.widgetRepresentation().self()
        self.widget.logic.close()
        self.widget.logic._session = None
        from UADBenchScene.worker import WorkerClient

        worker = str(ROOT / "Testing" / "scene" / "scripted_worker.py")
        self.widget.logic._client = WorkerClient(self.widget.logic.pythonExecutable(), ROOT, arguments=[worker])
        self.widget.logic.missingPackages = lambda dicom=False: []
        self.widget.enter()
        self.widget.initializeParameterNode()
        self.node = self.widget._parameterNode
        self.node.inputVolume = self.volume
        self.ui = self.widget.ui

    def tearDown(self):
        self.widget.exit()
        self.widget.logic.close()
        del self.widget.logic.missingPackages
        self.widget.logic._client = None
        os.environ.pop("UADBENCH_MODELS", None)
        self.temporary.cleanup()

    # -- helpers

    def scan(self, name):
        """Add a volume whose only high voxel is (7, 5, 4)."""
        import numpy as np

        voxels = np.ones(SHAPE[::-1], dtype=np.float32)
        voxels[4, 5, 7] = 8.0
        return slicer.util.addVolumeFromArray(voxels, name=name)

    def reference(self):
        """Add a segmentation around the high voxel."""
        import numpy as np

        labels = np.zeros(SHAPE[::-1], dtype=np.uint8)
        labels[3:6, 4:7, 6:9] = 1
        label = slicer.util.addVolumeFromArray(labels, name="truth", nodeClassName="vtkMRMLLabelMapVolumeNode")
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "truth")
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(label, node)
        return node

    def wait(self, seconds=60.0):
        """Let the application run until the worker has answered everything."""
        end = time.monotonic() + seconds
        while self.widget.logic.session.waiting:
            self.assertLess(time.monotonic(), end)
            slicer.app.processEvents()
            time.sleep(0.01)
        slicer.app.processEvents()

    def detect(self, device="cpu"):
        """Press Apply and wait."""
        self.node.device = device
        self.ui.applyButton.click()
        self.wait()
        return self.node.resultMap

    def rest(self):
        """Wait until the slider has come to rest and the findings have come."""
        end = time.monotonic() + 5
        while self.widget._thresholdTimer.active:
            self.assertLess(time.monotonic(), end)
            slicer.app.processEvents()
            time.sleep(0.01)
        self.wait()

    # -- tests

    def test_every_button_of_the_panel_has_a_test(self):
        found = {w.name for w in vars(self.ui).values() if w.name.endswith("Button") and hasattr(w, "click")}
        found = {name for name in found if not name.endswith("CollapsibleButton")}
        self.assertEqual(found, set(BUTTONS))
        source = Path(__file__).read_text(encoding="utf-8")
        for name in BUTTONS:
            self.assertIn(f"self.ui.{name}.", source, name)

    def test_bindings_go_both_ways(self):
        self.ui.minimumMlSlider.value = 1.5
        self.assertAlmostEqual(self.node.minimumMl, 1.5)
        self.node.mapOpacity = 0.3
        self.assertAlmostEqual(self.ui.opacitySlider.value, 0.3)
        self.ui.oneSegmentCheckBox.checked = True
        self.assertTrue(self.node.oneSegment)
        self.node.oneSegment = False
        self.assertFalse(self.ui.oneSegmentCheckBox.checked)
        self.assertEqual(self.ui.inputSelector.currentNode().GetID(), self.volume.GetID())

    def test_check_button(self):
        asked = []
        self.widget.logic.session.check = lambda *arguments: asked.append(arguments) or "job"
        self.ui.checkButton.click()
        self.assertEqual(len(asked), 1)
        self.assertIn("Looking", self.ui.scanLabel.text)

    def test_devices_button(self):
        self.ui.devicesButton.click()
        devices = [
            {"id": "cpu", "name": "CPU", "memory_free_gb": None},
            {"id": "mps", "name": "G", "memory_free_gb": 2},
        ]
        self.widget._take({"event": "result", "kind": "device", "job": None, "devices": devices})
        self.assertEqual(self.ui.deviceComboBox.count, 3)
        self.ui.deviceComboBox.currentIndex = 2
        self.assertEqual(self.node.device, "mps")

    def test_models_can_be_ticked_searched_and_filtered(self):
        self.assertEqual(self.ui.modelsTable.rowCount, 2)
        self.ui.modelsTable.item(0, 0).setCheckState(qt.Qt.Unchecked)
        self.ui.searchEdit.text = "fae"
        self.assertEqual([self.ui.modelsTable.isRowHidden(row) for row in range(2)], [True, False])
        self.ui.searchEdit.text = ""
        self.ui.modelsTable.item(0, 0).setCheckState(qt.Qt.Checked)
        self.ui.modelsTable.item(1, 0).setCheckState(qt.Qt.Checked)
        self.assertEqual(len(self.node.models.split(",")), 2)

    def test_apply_and_results(self):
        mapNode = self.detect()
        self.assertEqual(self.ui.findingsTable.rowCount, 1)
        self.assertEqual(self.ui.resultSelector.currentNode().GetID(), mapNode.GetID())
        self.assertIn("One finding", self.ui.findingsLabel.text)

    def test_cancel_button(self):
        self.node.device = "slow"
        self.ui.applyButton.click()
        self.ui.cancelButton.click()
        self.wait(10)
        self.assertIsNone(self.node.resultMap)
        self.assertIn("Cancelled", self.ui.messageLabel.text)

    def test_offers(self):
        self.detect("memory")
        self.assertFalse(self.ui.firstOfferButton.isHidden())
        self.ui.firstOfferButton.click()
        self.wait()
        self.assertIsNotNone(self.node.resultMap)
        self.detect("crash")
        self.ui.secondOfferButton.click()
        self.wait()
        self.assertTrue(self.ui.secondOfferButton.isHidden())

    def test_threshold_undo_and_points(self):
        self.detect()
        self.ui.thresholdSlider.value = 9.0
        self.rest()
        self.assertEqual(self.ui.findingsTable.rowCount, 0)
        self.assertIn("Nothing above", self.ui.findingsLabel.text)
        self.ui.undoButton.click()
        self.assertEqual(self.ui.findingsTable.rowCount, 1)
        self.ui.pointComboBox.currentIndex = self.ui.pointComboBox.findData("strict")
        self.rest()
        self.assertEqual(self.node.resultMap.GetAttribute("UADBench.OperatingPoint"), "strict")

    def test_steps_through_findings(self):
        self.detect()
        self.ui.nextButton.click()
        self.ui.previousButton.click()
        self.ui.jumpButton.click()
        self.assertEqual(self.ui.findingsTable.currentRow(), 0)

    def test_verdicts(self):
        from UADBenchScene import findings, results

        table = results.nodes_of(self.detect()).findings
        self.ui.findingsTable.setCurrentCell(0, 0)
        self.ui.rejectButton.click()
        self.ui.unsureButton.click()
        self.ui.acceptButton.click()
        self.ui.commentEdit.text = "seen"
        self.widget.onComment()
        row = findings.rows_of(table)[0]
        self.assertEqual((row["verdict"], row["comment"]), ("accept", "seen"))
        self.ui.sendButton.click()
        segmentation = self.node.acceptedTarget.GetSegmentation()
        self.assertEqual(segmentation.GetNumberOfSegments(), 1)
        self.ui.sendButton.click()
        self.assertEqual(segmentation.GetNumberOfSegments(), 2)
        self.ui.undoButton.click()
        self.assertEqual(segmentation.GetNumberOfSegments(), 1)

    def test_flicker_and_layouts(self):
        self.detect()
        self.ui.flickerButton.click()
        self.ui.flickerButton.click()
        before = slicer.app.layoutManager().layout if slicer.app.layoutManager() else None
        for index in range(self.ui.layoutComboBox.count):
            self.ui.layoutComboBox.currentIndex = index
            slicer.app.processEvents()
        self.widget.exit()
        if before is not None:
            self.assertEqual(slicer.app.layoutManager().layout, before)

    def test_compare(self):
        self.detect()
        self.node.reference = self.reference()
        self.ui.compareButton.click()
        self.wait()
        self.assertEqual(self.ui.comparisonTable.rowCount, 1)
        self.assertEqual(self.ui.findingsTable.item(0, 4).text(), "TP")

    def test_dialogues_that_are_closed_change_nothing(self):
        self.widget.askForFile = self.widget.askForFolder = lambda: ""
        try:
            self.ui.loadReferenceButton.click()
            self.ui.importButton.click()
        finally:
            del self.widget.askForFile, self.widget.askForFolder
        self.assertIsNone(self.node.reference)
        self.assertEqual(self.ui.modelsTable.rowCount, 2)

    def test_export(self):
        self.detect()
        self.node.exportFiles, self.node.exportPictures = False, True
        self.ui.exportPathEdit.currentPath = str(self.folder / "out")
        self.ui.exportButton.click()
        self.assertEqual(len(list((self.folder / "out").iterdir())), 2)

    def test_installation_page(self):
        self.ui.lookButton.click()
        self.assertEqual(self.ui.packagesLabel.text, "complete")
        self.ui.installButton.click()
        self.ui.clearButton.click()
        self.assertIn("2 models", self.ui.modelsLabel.text)

    def test_scene_closed_during_a_run(self):
        self.node.device = "slow"
        self.ui.applyButton.click()
        slicer.mrmlScene.Clear(0)
        self.assertIsNone(self.widget._job)

    def test_volume_deleted_during_a_run(self):
        self.node.device = "slow"
        self.ui.applyButton.click()
        slicer.mrmlScene.RemoveNode(self.volume)
        self.wait(10)
        self.assertIsNone(self.widget._job)

    def test_choices_are_saved_with_the_scene(self):
        self.node.minimumMl, self.node.contrast, self.node.percentile = 2.5, "T2w", 90
        path = str(self.folder / "scene.mrml")
        self.assertTrue(slicer.util.saveScene(path))
        slicer.mrmlScene.Clear(0)
        slicer.util.loadScene(path)
        node = self.widget.logic.getParameterNode()
        self.assertEqual((node.minimumMl, node.contrast, node.percentile), (2.5, "T2w", 90))


def main() -> int:
    """Run all tests and return the exit code."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(PanelTest)
    return 0 if unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful() else 1


if __name__ == "__main__":
    slicer.util.exit(main())
