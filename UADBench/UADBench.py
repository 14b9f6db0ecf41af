"""UADBench in 3D Slicer: find what is unusual in a brain MRI scan, without having been told what to look for.

The module, its parameter node, its widget, the logic that scripts use, and a self-test. What happens in the
scene is in ``UADBenchScene``; what is computed is computed by ``UADBenchLib`` in a process of its own, so
that neither torch nor anything else that it needs is ever imported here. Nothing is done when this file is
imported but to define what follows.
"""

# Annotations are not postponed here: the parameter node wrapper reads those of its class as types, not as
# text.

import importlib
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Union

import ctk  # noqa: F401
import qt
import slicer
import vtk
from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

POLL_MS = 100
DEBOUNCE_MS = 250
TORCH_REQUIREMENT = ">=2.6"
DICOM_REQUIREMENT = "highdicom>=0.25"
PYTHON_SETTING = "UADBench/PythonExecutable"
FOLDER_SETTING = "UADBench/ExportFolder"
SECONDS_SETTING = "UADBench/Seconds"
FLICKER_KEY = "Ctrl+Shift+M"
CONTRASTS = ("T1w", "T2w", "FLAIR")
SAMPLE = ("UADBenchSample_T1w", "UADBenchSample_T1w.nii.gz")
SAMPLE_REFERENCE = ("UADBenchSample_reference", "UADBenchSample_label-lesion_mask.nii.gz")


def libraryFolder() -> Path:
    """Return the folder in which UADBenchLib lies: beside this file when installed, one above in the source
    tree.
    """
    here = Path(__file__).resolve().parent
    return here if (here / "UADBenchLib").is_dir() else here.parent


def sceneModule(name: str):
    """Import a module of UADBenchScene when it is needed; Slicer starts without it, and without numpy
    through it.
    """
    for folder in (Path(__file__).resolve().parent, libraryFolder()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(f"UADBenchScene.{name}")


def registerSampleData():
    """Offer the sample scan and its reference in the Sample Data module, where that module is there.

    Both were made by the project (see Testing/make_sample.py), come with the extension and are checked against the
    checksums that lie beside them, so that nothing is downloaded.
    """
    folder = Path(__file__).resolve().parent / "Resources" / "SampleData"
    try:
        import SampleData

        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (ImportError, OSError) as error:
        logging.info("UADBench: the sample scan is not offered: %s", error)
        return
    digests = dict(reversed(line.split()) for line in lines if line)
    for (name, file), properties in ((SAMPLE, {}), (SAMPLE_REFERENCE, {"labelmap": True})):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="UADBench",
            sampleName=name,
            thumbnailFileName=str(folder / f"{name}.png"),
            uris=(folder / file).as_uri(),
            fileNames=file,
            nodeNames=name,
            checksums=f"SHA256:{digests[file]}",
            loadFileProperties=properties,
        )


# --------------------------------------------------------------------------------------------------- module


class UADBench(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("UADBench")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        self.parent.dependencies = []
        self.parent.contributors = ["UADBench developers"]
        self.parent.helpText = _(
            "Unsupervised anomaly detection in brain MRI: an anomaly map, its findings as segments, a table to go "
            "through them, and a comparison with a reference. Everything is computed on this computer. Research "
            'software, not a medical device. See the <a href="https://github.com/UADBench/SlicerUADBench/blob/main/'
            'docs/slicer-tutorial.md">tutorial</a>.'
        )
        self.parent.acknowledgementText = _(
            "The methods are those of the papers that each model's card cites; please cite them."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


@parameterNodeWrapper
class UADBenchParameterNode:
    """What the user chose; saved with the scene.

    inputVolume - the scan.
    contrast - what the user says it is; empty leaves it to name and image.
    brainMask - the brain, if it is known already.
    models - ids of the models, separated by commas.
    operatingPoint - name of the operating point.
    device - where to compute.
    oneSegment - all findings in one segment.
    reconstruct - also give the pseudo-healthy scan.
    minimumMl - findings smaller than this are left out, in millilitres.
    smoothingMm - standard deviation by which the map is smoothed before it is thresholded.
    resultMap - the anomaly map whose findings are shown.
    threshold - in calibrated z.
    mapOpacity - of the map over the scan.
    showLegend - whether the colours are explained in the slice views.
    acceptedTarget - segmentation that takes accepted findings.
    reference - known anomalies to compare with.
    percentile - of the Hausdorff distance.
    exportFiles, exportDicomSeg, exportVerdicts, exportPictures - what to write.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    contrast: str = ""
    brainMask: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007 (read as a type)
    models: str = ""
    operatingPoint: str = ""
    device: str = "auto"
    oneSegment: bool = False
    reconstruct: bool = False
    minimumMl: Annotated[float, WithinRange(0.0, 20.0)] = 0.1
    smoothingMm: Annotated[float, WithinRange(0.0, 6.0)] = 0.0
    resultMap: vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(0.0, 60.0)] = 3.0
    mapOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.7
    showLegend: bool = True
    acceptedTarget: vtkMRMLSegmentationNode
    reference: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, None]  # noqa: UP007
    percentile: Annotated[int, WithinRange(1, 100)] = 95
    exportFiles: bool = True
    exportDicomSeg: bool = False
    exportVerdicts: bool = True
    exportPictures: bool = False


# --------------------------------------------------------------------------------------------------- widget


class UADBenchWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel, in the order in which a reader works: scan, detect, review, compare and export."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._models, self._rows = [], []
        self._job = self._checkJob = self._lastResultID = self._lastInputID = self._lastReferenceID = None
        self._offers, self._failedJob = [], None
        self._preview, self._layoutBefore, self._shortcut = None, None, None
        self._quiet = False
        self._point = ("user", "")

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/UADBench.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.ui.resultSelector.addAttribute("vtkMRMLScalarVolumeNode", "UADBench.Role", "map")
        self.logic = UADBenchLogic()
        self._pollTimer = self._timer(POLL_MS, self.onPoll, False)
        self._thresholdTimer = self._timer(DEBOUNCE_MS, self.onThresholdSettled, True)
        self._fillChoices()
        self._connectScene()
        self._connectWidgets()
        self._setRunning()
        self._offer(None, [])
        self._loadTerminology()
        self.initializeParameterNode()

    @staticmethod
    def _timer(milliseconds, slot, once):
        """Return a timer that calls a slot."""
        timer = qt.QTimer()
        timer.setInterval(milliseconds)
        timer.setSingleShot(once)
        timer.connect("timeout()", slot)
        return timer

    def _connectScene(self):
        """Hear of the scene's closing and of nodes that come and go."""
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)

    def _connectWidgets(self):
        """Connect what the parameter node does not."""
        ui = self.ui
        for button, slot in (
            (ui.checkButton, self.onCheck),
            (ui.devicesButton, self.onDevices),
            (ui.applyButton, self.onApply),
            (ui.cancelButton, self.onCancel),
            (ui.firstOfferButton, lambda *_args: self.onOffer(0)),
            (ui.secondOfferButton, lambda *_args: self.onOffer(1)),
            (ui.flickerButton, self.onFlicker),
            (ui.previousButton, lambda *_args: self.onStep(-1)),
            (ui.nextButton, lambda *_args: self.onStep(1)),
            (ui.jumpButton, lambda *_args: self.onJump(self.ui.findingsTable.currentRow())),
            (ui.acceptButton, lambda *_args: self.onVerdict("accept")),
            (ui.rejectButton, lambda *_args: self.onVerdict("reject")),
            (ui.unsureButton, lambda *_args: self.onVerdict("unsure")),
            (ui.undoButton, self.onUndo),
            (ui.sendButton, self.onSend),
            (ui.loadReferenceButton, self.onLoadReference),
            (ui.compareButton, self.onCompare),
            (ui.exportButton, self.onExport),
            (ui.lookButton, self.onLook),
            (ui.installButton, self.onInstall),
            (ui.importButton, self.onImport),
            (ui.clearButton, self.onClear),
        ):
            button.connect("clicked(bool)", slot)
        for combo, slot in (
            (ui.contrastComboBox, self.onContrastChanged),
            (ui.contrastFilterComboBox, self.onFilter),
            (ui.operatingPointComboBox, self.onOperatingPointChanged),
            (ui.deviceComboBox, self.onDeviceChanged),
            (ui.pointComboBox, self.onPointChosen),
            (ui.layoutComboBox, self.onLayoutChosen),
        ):
            combo.connect("currentIndexChanged(int)", slot)
        for slider in (ui.thresholdSlider, ui.minimumMlSlider, ui.smoothingSlider):
            slider.connect("valueChanged(double)", self.onThresholdMoved)
        ui.searchEdit.connect("textChanged(QString)", self.onFilter)
        ui.modelsTable.connect("itemChanged(QTableWidgetItem*)", self.onModelTicked)
        ui.modelsTable.connect("currentCellChanged(int,int,int,int)", self.onModelSelected)
        ui.findingsTable.connect("cellDoubleClicked(int,int)", self.onJump)
        ui.findingsTable.connect("currentCellChanged(int,int,int,int)", self.onFindingSelected)
        ui.commentEdit.connect("editingFinished()", self.onComment)
        for edit, setting in ((ui.pythonPathEdit, PYTHON_SETTING), (ui.exportPathEdit, FOLDER_SETTING)):
            edit.currentPath = qt.QSettings().value(setting, "") or ""
        ui.pythonPathEdit.connect("currentPathChanged(QString)", self.onPythonChanged)
        ui.exportPathEdit.connect("currentPathChanged(QString)", self.onFolderChanged)

    def _fillChoices(self):
        """Fill the combo boxes whose entries never change."""
        self._fill(self.ui.contrastComboBox, [(_("from name and image"), ""), *((name, name) for name in CONTRASTS)])
        self._fill(self.ui.contrastFilterComboBox, [(_("all contrasts"), ""), *((name, name) for name in CONTRASTS)])
        devices = [(_("automatic"), "auto"), (_("processor (CPU)"), "cpu")]
        self._fill(self.ui.deviceComboBox, devices)
        layouts = [
            (_("as it is"), ""),
            (_("scan | map | reference"), "side by side"),
            (_("models in a grid"), "models"),
            (_("findings in 3-D"), "findings in 3-D"),
            (_("Dice by threshold"), "curve"),
        ]
        self._fill(self.ui.layoutComboBox, layouts)

    def _fill(self, combo, entries, wanted=None):
        """Replace a combo box's entries (label, data) without a signal, and choose what is wanted, or the first."""
        blocked = combo.blockSignals(True)
        combo.clear()
        for label, data in entries:
            combo.addItem(label, data)
        values = [data for _label, data in entries]
        combo.currentIndex = values.index(wanted) if wanted in values else (0 if values else -1)
        combo.blockSignals(blocked)

    def cleanup(self):
        """End the worker when the application closes or the module is reloaded."""
        self._stop()
        self._setShortcut(False)
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        """Make sure that there is a parameter node whenever the user comes back."""
        self.initializeParameterNode()
        self._setShortcut(True)

    def exit(self):
        """Give the views back; a detection goes on."""
        self._hidePreview()
        self._setShortcut(False)
        self._leaveLayout()

    def onReload(self):
        """Reload the scene code and the backend with the module."""
        self._stop()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("UADBenchScene", "UADBenchLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def _setShortcut(self, wanted):
        """Listen to the flicker key while the module is shown; without a main window there is none."""
        window = slicer.util.mainWindow()
        if wanted and self._shortcut is None and window is not None:
            self._shortcut = qt.QShortcut(qt.QKeySequence(FLICKER_KEY), window)
            self._shortcut.connect("activated()", self.onFlicker)
        elif not wanted and self._shortcut is not None:
            self._shortcut.setParent(None)
            self._shortcut = None

    # -- scene and parameters

    def onSceneStartClose(self, _caller, _event):
        """Stop politely: what is being computed has no scene to return to."""
        self._stop()
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller, _event):
        """Start again with an empty scene if the panel is shown."""
        self.showFindings()
        self._showComparison()
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, _caller, _event):
        """Give maps that came with a scene the colours that may not have been saved with it."""
        maps = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if any(node.GetAttribute("UADBench.Role") == "map" for node in maps):
            sceneModule("display").colours(slicer.mrmlScene)

    def onNodeRemoved(self, _caller, _event):
        """Stop the detections of a volume that was deleted."""
        if self.logic is not None and self.logic.session.cancel_orphans():
            self._say(_("The scan was deleted; its detection is stopped."))

    def initializeParameterNode(self):
        """Get or make the parameter node, with the first volume as input where none is chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
            scans = [
                node
                for node in volumes
                if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetAttribute("UADBench.Role")
            ]
            if scans:
                self._parameterNode.inputVolume = scans[0]
        self._fillModels()

    def setParameterNode(self, parameterNode):
        """Connect the panel to a parameter node, or to none."""
        if parameterNode is not None and parameterNode is self._parameterNode:
            return
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
        self._parameterNode = parameterNode
        if self._parameterNode is not None:
            # Connecting writes the saved values into the widgets, which is no movement of the user's.
            self._quiet = True
            bound = {self._parameterOf(widget): widget for widget in vars(self.ui).values()}
            bound.pop(None, None)
            self._parameterNodeGuiTag = self._parameterNode.connectParametersToGui(bound)
            self._choose(self.ui.contrastComboBox, self._parameterNode.contrast)
            self._choose(self.ui.deviceComboBox, self._parameterNode.device)
            self._quiet = False
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
            self.onParametersChanged()

    @staticmethod
    def _parameterOf(widget):
        """Return the name of the parameter that a widget is bound to in the .ui file, or None."""
        return widget.property("SlicerParameterName") if hasattr(widget, "property") else None

    def _choose(self, combo, data):
        """Choose the entry of a combo box that has some data, if there is one, without a signal."""
        blocked = combo.blockSignals(True)
        index = combo.findData(data)
        if index >= 0:
            combo.currentIndex = index
        combo.blockSignals(blocked)

    def onParametersChanged(self, _caller=None, _event=None):
        """Say what is missing before anything can start, and show another result when one was chosen."""
        node = self._parameterNode
        if node is None:
            return
        inputID = node.inputVolume.GetID() if node.inputVolume else None
        if inputID != self._lastInputID:
            self._lastInputID = inputID
            self.ui.scanLabel.text = ""
            self._followContrast()
        self._updateButtons()
        display = sceneModule("display")
        display.set_opacity(slicer.mrmlScene, node.mapOpacity)
        resultID = node.resultMap.GetID() if node.resultMap else None
        if resultID != self._lastResultID:
            self._lastResultID = resultID
            self._hidePreview()
            self.showFindings()
        if sceneModule("results").is_map(node.resultMap):
            display.show_legend(node.resultMap, node.showLegend)

    def _updateButtons(self):
        """Enable what can be done, and say in the tooltip why the rest cannot."""
        node, ui = self._parameterNode, self.ui
        ids, contrasts = self._ticked()
        reason = ""
        if not node.inputVolume:
            reason = _("Choose a scan.")
        elif not self._rows:
            reason = _("No model is installed. Import some under 'Installation and models'.")
        elif not ids:
            reason = _("Tick at least one model.")
        elif len(contrasts) > 1:
            reason = _("The models that are ticked are for different contrasts; tick models of one.")
        ui.applyButton.enabled = not reason
        ui.applyButton.toolTip = reason or _("Detect anomalies in the scan; what is running already goes first.")
        ui.checkButton.enabled = bool(node.inputVolume) and self._checkJob is None
        isMap = sceneModule("results").is_map(node.resultMap)
        ui.compareButton.enabled = bool(isMap and node.reference)
        ui.compareButton.toolTip = (
            _("Compare the newest map of each model of this scan with the reference.")
            if ui.compareButton.enabled
            else _("Choose an anomaly map and a reference first.")
        )
        ui.exportButton.enabled = bool(isMap)
        self._updateUndo()

    # -- 1. scan

    def onContrastChanged(self, _index=None):
        """Remember what the user says the scan is, and offer the models for it."""
        if self._parameterNode is not None and not self._quiet:
            self._parameterNode.contrast = self.ui.contrastComboBox.currentData or ""
            self._followContrast()

    def _followContrast(self):
        """Show the models of the contrast that user or name state; all where neither does."""
        node = self._parameterNode
        name = node.inputVolume.GetName() if node.inputVolume else ""
        stated = node.contrast or sceneModule("volumes").contrast_in_name(name) or ""
        self._choose(self.ui.contrastFilterComboBox, stated)
        self.onFilter()

    def onCheck(self, *_args):
        """Look at the scan without detecting anything."""
        node = self._parameterNode
        with slicer.util.tryWithErrorDisplay(_("The scan could not be checked."), waitCursor=True):
            if node is None or not self._backendReady():
                return
            self._checkJob = self.logic.session.check(node.inputVolume, node.contrast or None, node.brainMask)
            self.ui.scanLabel.text = _("Looking at the scan…")
            self._updateButtons()
            self._pollTimer.start()

    def _showCheck(self, event):
        """Show what was noticed about the scan, in plain words."""
        self._checkJob = None
        contrast, quality = event["contrast"], event["quality"]
        found = contrast["contrast"]
        lines = [
            _("The image looks like {contrast}: {reason}.").format(contrast=found, reason=contrast["reason"])
            if found in CONTRASTS
            else _("The image looks like neither T1w, T2w nor FLAIR: {reason}.").format(reason=contrast["reason"])
        ]
        lines.append(self._qualitySentence(quality))
        warnings = [check for check in event["checks"] if check["level"] == "warning"]
        lines += [self._sentence(check) for check in warnings] or [_("Nothing else is to be noticed.")]
        self.ui.scanLabel.text = "\n".join(line for line in lines if line)
        self._updateButtons()

    @staticmethod
    def _qualitySentence(quality):
        """Return signal and contrast to noise as a sentence, where they could be measured."""
        parts = [
            f"{label} {quality[name]:.1f}"
            for name, label in (("snr", _("signal to noise")), ("cnr", _("contrast to noise")))
            if quality.get(name) is not None
        ]
        return (", ".join(parts)).capitalize() + "." if parts else ""

    # -- 2. detect: models, device

    def _fillModels(self):
        """List the models of the catalogue, keeping the choice where it still exists."""
        models = sceneModule("models")
        self._models = models.usable_models()
        self._rows = models.model_rows(self._models)
        wanted = [name for name in self._parameterNode.models.split(",") if name]
        if not any(row.id in wanted for row in self._rows):
            stated = self.ui.contrastFilterComboBox.currentData or ""
            wanted = [row.id for row in models.matching(self._rows, stated)[:1] or self._rows[:1]]
        table = self.ui.modelsTable
        blocked = table.blockSignals(True)
        titles = (_("Model"), _("Contrast"), _("s"), _("Best Dice"))
        table.clear()
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(list(titles))
        table.setRowCount(len(self._rows))
        for number, row in enumerate(self._rows):
            for column, text in enumerate((row.label, row.contrast, self._secondsText(row), row.best_at)):
                item = self._cell(text, row.good_at)
                if column == 0:
                    item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                    item.setCheckState(qt.Qt.Checked if row.id in wanted else qt.Qt.Unchecked)
                table.setItem(number, column, item)
        table.resizeColumnsToContents()
        table.blockSignals(blocked)
        self.onFilter()
        self.onModelTicked()
        self.ui.modelsLabel.text = self._modelsSentence()

    @staticmethod
    def _cell(text, tip=""):
        """Return a table cell that cannot be edited, with a tooltip: its own text by default."""
        item = qt.QTableWidgetItem(text)
        item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
        item.setToolTip(tip or text)
        return item

    def _secondsText(self, row):
        """Return how long a model takes: measured here, or on the processor that it was calibrated on."""
        here = qt.QSettings().value(f"{SECONDS_SETTING}/{row.id}/{self._parameterNode.device}", None)
        if here is not None:
            return f"{float(here):.0f}"
        return "" if row.seconds is None else f"~{row.seconds:.0f} +"

    def onFilter(self, *_args):
        """Show the models that fit contrast and search words; those that are ticked are always shown."""
        words = self.ui.searchEdit.text
        contrast = self.ui.contrastFilterComboBox.currentData or ""
        shown = {row.id for row in sceneModule("models").matching(self._rows, contrast, words)}
        for number, row in enumerate(self._rows):
            item = self.ui.modelsTable.item(number, 0)
            ticked = item is not None and item.checkState() == qt.Qt.Checked
            self.ui.modelsTable.setRowHidden(number, row.id not in shown and not ticked)

    def _ticked(self):
        """Return ids and contrasts of the models that are ticked."""
        rows = [
            row
            for number, row in enumerate(self._rows)
            if self.ui.modelsTable.item(number, 0).checkState() == qt.Qt.Checked
        ]
        return [row.id for row in rows], {row.contrast for row in rows}

    def onModelTicked(self, _item=None):
        """Remember the models and offer their operating points."""
        if self._parameterNode is None:
            return
        ids, _contrasts = self._ticked()
        self._parameterNode.models = ",".join(ids)
        points = sceneModule("models").operating_points(self._models, tuple(ids))
        entries = [(label, name) for name, label in points]
        self._fill(self.ui.operatingPointComboBox, entries, self._parameterNode.operatingPoint)
        self.onOperatingPointChanged()
        self._updateButtons()

    def onModelSelected(self, row, *_others):
        """Say what the selected model is."""
        if 0 <= row < len(self._rows):
            chosen = self._rows[row]
            self.ui.modelLabel.text = _("{id}, {size:.1f} MB. On lesions: {good}.").format(
                id=chosen.id, size=chosen.megabytes, good=chosen.good_at
            )

    def onOperatingPointChanged(self, _index=None):
        """Remember the operating point."""
        if self._parameterNode is not None:
            self._parameterNode.operatingPoint = self.ui.operatingPointComboBox.currentData or ""

    def onDevices(self, *_args):
        """Ask the worker what there is to compute on."""
        with slicer.util.tryWithErrorDisplay(_("The devices could not be looked for."), waitCursor=True):
            if self._backendReady():
                self.logic.session.ask_devices()
                self._pollTimer.start()

    def _showDevices(self, devices):
        """Offer the devices with name and free memory."""
        entries = [(_("automatic"), "auto")]
        for device in devices:
            free = device.get("memory_free_gb")
            memory = "" if free is None else _(" ({free:.1f} GB free)").format(free=free)
            entries.append((f"{device['name']}{memory}", device["id"]))
        self._fill(self.ui.deviceComboBox, entries, self._parameterNode.device if self._parameterNode else "auto")
        self.onDeviceChanged()
        best = entries[2 if len(entries) > 2 else 1][0]
        self.ui.torchLabel.text = _("found; it computes on {device}").format(device=best)

    def onDeviceChanged(self, _index=None):
        """Remember where to compute."""
        if self._parameterNode is not None and not self._quiet:
            self._parameterNode.device = self.ui.deviceComboBox.currentData or "auto"

    # -- 2. detect: a detection

    def onApply(self, *_args):
        """Start a detection; one that is running already goes first."""
        node = self._parameterNode
        if node is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The detection could not be started."), waitCursor=True):
            if not self._backendReady():
                return
            self._follow(
                self.logic.session.start(
                    node.inputVolume,
                    [name for name in node.models.split(",") if name],
                    contrast=node.contrast or None,
                    operating_point=node.operatingPoint,
                    brain_mask=node.brainMask,
                    one_segment=node.oneSegment,
                    device=node.device,
                    minimum_ml=node.minimumMl,
                    reconstruct=node.reconstruct,
                )
            )

    def _follow(self, job):
        """Follow a job that was started."""
        self._offer(None, [])
        if self._job is None:
            self._job = job
            self.ui.messageLabel.text = ""
            self._showStage(_("Starting"), 0.0, None)
        self._setRunning()
        self._pollTimer.start()

    def onOffer(self, number):
        """Start the failed detection again, in a way that was offered."""
        if number < len(self._offers):
            changes, job = self._offers[number], self._failedJob
            with slicer.util.tryWithErrorDisplay(_("The detection could not be started."), waitCursor=True):
                self._follow(self.logic.session.again(job, changes))

    def _offer(self, job, offers):
        """Offer ways to start a failed job again; none hides the buttons."""
        self._failedJob, self._offers = job, offers[:2]
        buttons = (self.ui.firstOfferButton, self.ui.secondOfferButton)
        for number, button in enumerate(buttons):
            button.visible = number < len(self._offers)
            if number < len(self._offers):
                button.text = self._offerText(self._offers[number])

    @staticmethod
    def _offerText(changes):
        """Return what a button says that starts a job again."""
        if "batch" in changes:
            return _("Try with a smaller batch")
        if "device" in changes:
            return _("Try on the processor")
        return _("Go on anyway") if "force" in changes else _("Start again")

    def onCancel(self, *_args):
        """Ask the worker to stop what it is doing; what waits behind it goes on."""
        if self._job is not None:
            self.ui.cancelButton.enabled = False
            self._showStage(_("Cancelling"), None, None)
            self.logic.session.cancel(self._job)

    def onPoll(self):
        """Take what the worker has said. Called by a timer, so nothing here may wait."""
        for event in self.logic.session.poll():
            self._take(event)
        if not self.logic.session.waiting:
            self._pollTimer.stop()

    def _take(self, event):
        """Show one event."""
        kind, job = event["event"], event.get("job")
        mine = job is not None and job == self._job
        if kind == "progress" and mine:
            self._showStage(event["stage"], event["fraction"], event.get("eta_s"))
        elif kind == "progress" and job == self._checkJob:
            self.ui.scanLabel.text = _("Looking at the scan: {stage}…").format(stage=event["stage"])
        elif kind == "warning":
            self._say(self._sentence(event))
        elif kind == "result":
            self._takeResult(event)
        elif kind == "cancelled" and job is not None and job == self._checkJob:
            self._checkJob, self.ui.scanLabel.text = None, ""
        elif kind == "cancelled":
            self._ended(job, _("Cancelled. Nothing was added to the scene."))
        elif kind == "failed":
            self._takeFailure(event)

    def _takeResult(self, event):
        """Show the answer to a request."""
        kind = event.get("kind")
        if kind == "detect" and event.get("nodes"):
            self._showResult(event)
        elif kind == "threshold":
            self._hidePreview()
            self.showFindings()
        elif kind == "compare":
            self.showFindings()
            self._showComparison()
        elif kind == "check":
            self._showCheck(event)
        elif kind == "device":
            self._showDevices(event["devices"])
        elif kind == "export":
            count = len(event["files"])
            self.ui.exportLabel.text = _("{count} files written: {names}.").format(
                count=count, names=", ".join(event["files"][:4]) + (", …" if count > 4 else "")
            )

    def _takeFailure(self, event):
        """Show what went wrong, and what can be done about it."""
        job, text = event.get("job"), self._sentence(event)
        if job is not None and job == self._checkJob:
            self._checkJob = None
            self.ui.scanLabel.text = text
            self._updateButtons()
            return
        followed = job is not None and job == self._job
        self._hidePreview()
        self._ended(job, text)
        if followed and self.logic.session.can_retry(job):
            self._offer(job, event.get("offers") or [])
        if event.get("code") == "INTERNAL":
            slicer.util.errorDisplay(text, windowTitle=_("UADBench"), detailedText="\n".join(self.logic.session.log))

    def _showResult(self, event):
        """Show new nodes."""
        nodes = event["nodes"][-1]
        summary = event["detections"][0].get("summary") or {}
        warnings = self.ui.messageLabel.text
        self._ended(event.get("job"), "")
        self._remember(event["detections"])
        contrast, quality = summary.get("contrast") or {}, summary.get("quality") or {}
        sentence = _("{used} (the image looks like {found}).").format(**contrast) if contrast else ""
        self.ui.messageLabel.text = ""
        self._say(" ".join(part for part in (sentence, self._qualitySentence(quality)) if part), warnings)
        self._parameterNode.resultMap = nodes.map
        if self._lastResultID != nodes.map.GetID():
            self.onParametersChanged()
        self._showInViews(nodes)
        self.onLayoutChosen()
        if self._parameterNode.reference:
            self.onCompare()

    def _remember(self, detections):
        """Keep how long each model took on this computer, for the list."""
        for row in detections:
            seconds = (row.get("summary") or {}).get("seconds") or {}
            if seconds and self._parameterNode is not None:
                key = f"{SECONDS_SETTING}/{row['model']}/{self._parameterNode.device}"
                qt.QSettings().setValue(key, sum(float(value) for value in seconds.values()))

    def _say(self, *sentences):
        """Show sentences below those that are shown already, one a line; empty ones are left out."""
        lines = [self.ui.messageLabel.text, *sentences]
        self.ui.messageLabel.text = "\n".join(line for line in lines if line)

    def _ended(self, job, message):
        """Follow the next job of the queue when one has ended, or return the panel to its idle state."""
        if job is not None and job != self._job and job in self.logic.session.queue:
            return
        if job is None or job == self._job:
            queue = [name for name in self.logic.session.queue if name != self._checkJob]
            self._job = queue[0] if queue else None
        self._setRunning()
        self.ui.messageLabel.text = message
        if self._parameterNode is not None:
            self._updateButtons()

    def _stop(self):
        """End the worker and whatever it does."""
        if self.logic is None:
            return
        self._pollTimer.stop()
        self._thresholdTimer.stop()
        self._hidePreview()
        self.logic.close()
        self._job = self._checkJob = self._lastResultID = self._lastInputID = None
        self._offer(None, [])
        self._setRunning()

    def _setRunning(self):
        """Show progress and Cancel while a detection runs."""
        running = self._job is not None
        waiting = max(0, len(self.logic.session.queue) - 1) if running else 0
        self.ui.applyButton.text = _("Apply (next)") if running else _("Apply")
        self.ui.cancelButton.enabled = running
        self.ui.cancelButton.text = _("Cancel ({count} waiting)").format(count=waiting) if waiting else _("Cancel")
        self.ui.progressBar.visible = running
        self.ui.stageLabel.visible = running

    def _showStage(self, stage, fraction, eta):
        """Show where the detection is and how long it will take."""
        left = "" if eta is None else _("about {seconds:.0f} s left").format(seconds=eta)
        self.ui.stageLabel.text = " – ".join(part for part in (stage, left) if part)
        if fraction is not None:
            self.ui.progressBar.value = round(1000 * fraction)

    @staticmethod
    def _sentence(event):
        """Return an event's message and advice as one text."""
        parts = [str(event.get(key) or "") for key in ("message", "advice")]
        return ". ".join(part[:1].upper() + part[1:] for part in parts if part) + "."

    # -- 3. review: threshold and display

    def onThresholdMoved(self, _value=None):
        """Draw what the slider's threshold would flag at once; ask for new findings when it has come to rest."""
        node = self._parameterNode
        if self._quiet or node is None or not sceneModule("results").is_map(node.resultMap):
            return
        threshold, smoothing = self.ui.thresholdSlider.value, self.ui.smoothingSlider.value
        sceneModule("display").show_from(node.resultMap, threshold)
        if self._preview is None or not self._preview.shows(node.resultMap, smoothing):
            self._hidePreview()
            self._preview = sceneModule("preview").Preview(node.resultMap, smoothing)
        self._preview.show(threshold)
        self._point = ("user", "")
        self._choose(self.ui.pointComboBox, "user")
        self._thresholdTimer.start()

    def onThresholdSettled(self):
        """Ask for mask and findings at the slider's threshold."""
        node = self._parameterNode
        if node is None or not sceneModule("results").is_map(node.resultMap):
            return
        with slicer.util.tryWithErrorDisplay(_("The threshold could not be moved.")):
            point, origin = self._point
            self.logic.session.move_threshold(
                node.resultMap,
                self.ui.thresholdSlider.value,
                self.ui.minimumMlSlider.value,
                self.ui.smoothingSlider.value,
                point,
                origin or _("chosen by the user"),
            )
            self._pollTimer.start()

    def onPointChosen(self, _index=None):
        """Move the threshold to a named operating point."""
        node, name = self._parameterNode, self.ui.pointComboBox.currentData
        if self._quiet or node is None or not name or name == "user" or not node.resultMap:
            return
        model = node.resultMap.GetAttribute("UADBench.Model")
        found = sceneModule("models").threshold_of(self._models, model, name)
        if found is not None:
            self.ui.thresholdSlider.value = found[0]
            self.onThresholdMoved()
            self._point = (name, found[1])
            self._choose(self.ui.pointComboBox, name)

    def _fillPoints(self, mapNode):
        """Offer the operating points of a map's model."""
        model = mapNode.GetAttribute("UADBench.Model") if mapNode is not None else ""
        points = sceneModule("models").operating_points(self._models, (model,))
        entries = [(label, name) for name, label in points] + [(_("the slider"), "user")]
        self._fill(self.ui.pointComboBox, entries, mapNode.GetAttribute("UADBench.OperatingPoint") if mapNode else None)

    def _hidePreview(self):
        """Show the result's own segmentation again."""
        if self._preview is not None:
            self._preview.hide()
            self._preview = None

    def onFlicker(self, *_args):
        """Hide the map, or show it again."""
        if self._parameterNode is not None:
            sceneModule("display").flicker(slicer.mrmlScene, self._parameterNode.mapOpacity)

    def onLayoutChosen(self, _index=None):
        """Arrange the views; without a main window there are none."""
        layouts, node = sceneModule("layouts"), self._parameterNode
        name = self.ui.layoutComboBox.currentData or ""
        if not name or node is None or not sceneModule("results").is_map(node.resultMap):
            self._leaveLayout()
            return
        if slicer.app.layoutManager() is None:
            return
        results = sceneModule("results")
        volume = results.input_of(node.resultMap)
        maps = list({n.GetAttribute("UADBench.Model"): n for n in results.maps_of(volume)}.values())
        key = f"models {min(max(len(maps), 2), layouts.VIEWS)}" if name == "models" else name
        before = layouts.enter(slicer.mrmlScene, key)
        self._layoutBefore = before if self._layoutBefore is None else self._layoutBefore
        if name == "side by side":
            layouts.show_side_by_side(node.resultMap, node.reference, node.mapOpacity)
        elif name == "models":
            layouts.show_models(maps, node.mapOpacity)
        elif name == "findings in 3-D":
            layouts.show_3d(node.resultMap, node.mapOpacity)
        else:
            layouts.show_curve(node.resultMap, node.mapOpacity)

    def _leaveLayout(self):
        """Give the views back as they were before ours."""
        if self._layoutBefore is not None:
            layouts = sceneModule("layouts")
            layouts.leave(slicer.mrmlScene, self._layoutBefore)
            layouts.release(slicer.mrmlScene)
            self._layoutBefore = None

    def _showInViews(self, nodes):
        """Put the map over the scan in the slice views, if there are any."""
        if slicer.app.layoutManager() is not None:
            slicer.util.setSliceViewerLayers(
                background=sceneModule("results").input_of(nodes.map),
                foreground=nodes.map,
                foregroundOpacity=self._parameterNode.mapOpacity,
            )

    def _loadTerminology(self):
        """Let Slicer show the segments' terms by name; it has no list with 'lesion' in it."""
        terminologies = getattr(slicer.modules, "terminologies", None)
        if terminologies is not None:
            terminologies.logic().LoadTerminologyFromFile(self.resourcePath("UADBench.term.json"))

    # -- 3. review: findings

    def showFindings(self):
        """Fill the table and the threshold of the chosen result."""
        mapNode = self._parameterNode.resultMap if self._parameterNode is not None else None
        results = sceneModule("results")
        nodes = results.nodes_of(mapNode) if results.is_map(mapNode) else None
        for widget in (self.ui.thresholdSlider, self.ui.pointComboBox, self.ui.minimumMlSlider):
            widget.enabled = nodes is not None
        if nodes is None:
            self._fillTable([])
            self.ui.findingsLabel.text = _("No result yet.")
            self._updateUndo()
            return
        self._quiet = True
        if not self._thresholdTimer.active:
            setting = results.setting_of(mapNode)
            self.ui.thresholdSlider.value = setting["threshold"]
            self.ui.minimumMlSlider.value = setting["minimum_ml"]
            self.ui.smoothingSlider.value = setting["smoothing_mm"]
            self._fillPoints(mapNode)
        self._quiet = False
        rows = sceneModule("findings").rows_of(nodes.findings) if nodes.findings is not None else []
        self._fillTable(rows)
        self.ui.findingsLabel.text = self._findingsSentence(mapNode, rows)
        self._updateUndo()

    def _updateUndo(self):
        """Enable Undo where there is something to go back to."""
        node = self._parameterNode
        self.ui.undoButton.enabled = node is not None and self.logic.session.can_undo(
            node.resultMap, node.acceptedTarget
        )

    @staticmethod
    def _findingsSentence(mapNode, rows):
        """Return what was found as a sentence; nothing found is a result too."""
        threshold = float(mapNode.GetAttribute("UADBench.Threshold"))
        if not rows:
            peak, place = sceneModule("results").highest(mapNode)
            where = ", ".join(f"{axis} {value:.0f}" for axis, value in zip("RAS", place, strict=True))
            return _("Nothing above z = {threshold:.1f}; highest {peak:.1f} at {where} mm.").format(
                threshold=threshold, peak=peak, where=where
            )
        volume = sum(row["volume_ml"] for row in rows)
        if len(rows) == 1:
            return _("One finding above z = {threshold:.1f}: {volume:.1f} ml, peak {peak:.1f}.").format(
                threshold=threshold, volume=volume, peak=rows[0]["peak_z"]
            )
        return _("{count} findings above z = {threshold:.1f}: {volume:.1f} ml, highest peak {peak:.1f}.").format(
            count=len(rows), threshold=threshold, volume=volume, peak=rows[0]["peak_z"]
        )

    def _fillTable(self, rows):
        """Show the rows of a findings table."""
        columns = (
            (_("#"), "index", "{:d}"),
            (_("ml"), "volume_ml", "{:.2f}"),
            (_("Peak"), "peak_z", "{:.1f}"),
            (_("Region"), "region", "{}"),
            (_("Status"), "status", "{}"),
            (_("Verdict"), "verdict", "{}"),
        )
        table, chosen = self.ui.findingsTable, self.ui.findingsTable.currentRow()
        self._fillWidget(table, columns, rows)
        if rows and 0 <= chosen < len(rows):
            table.setCurrentCell(chosen, 0)
        ui = self.ui
        jumps = (ui.previousButton, ui.nextButton, ui.jumpButton)
        for button in (*jumps, ui.acceptButton, ui.rejectButton, ui.unsureButton):
            button.enabled = bool(rows)
        ui.commentEdit.enabled = bool(rows)
        ui.sendButton.enabled = any(row["verdict"] == "accept" for row in rows)
        ui.sendButton.toolTip = (
            _("Copy the accepted findings and edit them there.")
            if ui.sendButton.enabled
            else _("Accept a finding first.")
        )

    def _fillWidget(self, table, columns, rows):
        """Fill a table widget: columns are (title, key, format)."""
        blocked = table.blockSignals(True)
        table.clear()
        table.setColumnCount(len(columns))
        table.setHorizontalHeaderLabels([title for title, _name, _form in columns])
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, (_title, name, form) in enumerate(columns):
                value = row[name]
                undefined = value != value or (form == "{:d}" and value < 0)
                table.setItem(number, column, self._cell("–" if undefined else form.format(value)))
        table.resizeColumnsToContents()
        table.blockSignals(blocked)

    def _table(self):
        """Return the findings table of the chosen result, or None."""
        mapNode = self._parameterNode.resultMap if self._parameterNode is not None else None
        results = sceneModule("results")
        return results.nodes_of(mapNode).findings if results.is_map(mapNode) else None

    def onFindingSelected(self, row, *_others):
        """Show the comment on the selected finding."""
        table = self._table()
        rows = sceneModule("findings").rows_of(table) if table is not None else []
        self.ui.commentEdit.text = rows[row]["comment"] if 0 <= row < len(rows) else ""

    def onStep(self, step):
        """Go to the next or previous finding."""
        table = self.ui.findingsTable
        row = min(max(table.currentRow() + step, 0), table.rowCount - 1)
        table.setCurrentCell(row, 0)
        self.onJump(row)

    def onJump(self, row, _column=None):
        """Show the peak of a finding in all slice views."""
        table = self._table()
        if table is None or row < 0:
            return
        with slicer.util.tryWithErrorDisplay(_("The finding could not be shown.")):
            place = sceneModule("findings").place_of(table, row)
            slicer.vtkMRMLSliceNode.JumpAllSlices(
                slicer.mrmlScene, *(float(x) for x in place), slicer.vtkMRMLSliceNode.CenteredJumpSlice
            )

    def onVerdict(self, verdict):
        """Write the reader's verdict on the selected finding; the same verdict again takes it back."""
        table, row = self._table(), self.ui.findingsTable.currentRow()
        if table is None or row < 0:
            self.ui.findingsLabel.text = _("Select a finding in the table first.")
            return
        findings = sceneModule("findings")
        said = findings.rows_of(table)[row]["verdict"]
        findings.set_verdict(table, row, verdict="" if said == verdict else verdict)
        self.showFindings()

    def onComment(self):
        """Write the reader's remark on the selected finding."""
        table, row, findings = self._table(), self.ui.findingsTable.currentRow(), sceneModule("findings")
        text = self.ui.commentEdit.text
        if table is not None and row >= 0 and findings.rows_of(table)[row]["comment"] != text:
            findings.set_verdict(table, row, comment=text)
            self.showFindings()

    def onUndo(self, *_args):
        """Take back the last change of a segmentation from here: a moved threshold, or findings that were sent."""
        node = self._parameterNode
        with slicer.util.tryWithErrorDisplay(_("The change could not be undone.")):
            if node is not None and self.logic.session.undo(node.resultMap, node.acceptedTarget):
                self._hidePreview()
                self.showFindings()

    def onSend(self, *_args):
        """Copy the accepted findings into a segmentation and go to the Segment Editor, where there is one."""
        node = self._parameterNode
        with slicer.util.tryWithErrorDisplay(_("The findings could not be sent.")):
            results = sceneModule("results")
            target = results.send_accepted(node.resultMap, node.acceptedTarget, self.logic.session.history)
            node.acceptedTarget = target
            self._updateUndo()
            self.ui.findingsLabel.text = _("The accepted findings are in '{name}'.").format(name=target.GetName())
            if getattr(slicer.modules, "segmenteditor", None) is None or slicer.util.mainWindow() is None:
                return
            editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
            if editor is not None:
                editor.SetAndObserveSegmentationNode(target)
                editor.SetAndObserveSourceVolumeNode(results.input_of(node.resultMap))
            slicer.util.selectModule("SegmentEditor")

    # -- 4. compare and export

    def onLoadReference(self, *_args):
        """Read a reference from a file."""
        path = self.askForFile()
        if path:
            with slicer.util.tryWithErrorDisplay(_("The reference could not be read.")):
                self._parameterNode.reference = sceneModule("volumes").load_reference(slicer.mrmlScene, path)

    @staticmethod
    def askForFile():
        """Ask for a file of labels; empty when the dialogue was closed."""
        kinds = _("Labels") + " (*.nii *.nii.gz *.nrrd *.nhdr *.mha *.mhd)"
        return str(qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Reference"), "", kinds) or "")

    def onCompare(self, *_args):
        """Compare the newest map of each model of the scan with the reference."""
        node = self._parameterNode
        with slicer.util.tryWithErrorDisplay(_("The comparison could not be made."), waitCursor=True):
            volume = sceneModule("results").input_of(node.resultMap)
            if volume is None or not self._backendReady():
                return
            resampled = self.logic.session.compare(volume, node.reference, float(node.percentile))
            self.ui.compareLabel.text = (
                _("The reference has other voxels than the scan: the nearest one counts.") if resampled else ""
            )
            self._pollTimer.start()

    def _showComparison(self):
        """Show the figures of all models of the scan."""
        mapNode = self._parameterNode.resultMap if self._parameterNode is not None else None
        volume = sceneModule("results").input_of(mapNode) if mapNode else None
        comparison = sceneModule("comparison")
        table = comparison.table_of(volume) if volume is not None else None
        columns = (
            (_("Model"), "model", "{}"),
            (_("Dice"), "dice", "{:.2f}"),
            (_("AP"), "average_precision", "{:.2f}"),
            (_("HD mm"), "hausdorff_mm", "{:.0f}"),
            (_("Hit"), "hit", "{}"),
            (_("False"), "findings_false", "{:d}"),
        )
        rows = comparison.rows_of(table) if table is not None else []
        labels = {row.id: row.label for row in self._rows}
        rows = [
            row | {"model": labels.get(row["model"], row["model"]), "hit": f"{row['lesions_hit']}/{row['lesions']}"}
            for row in rows
        ]
        self._fillWidget(self.ui.comparisonTable, columns, rows)

    def onFolderChanged(self, path):
        """Remember where the files go; it belongs to this computer, not to the scene."""
        qt.QSettings().setValue(FOLDER_SETTING, path)

    def onExport(self, *_args):
        """Write the files that are ticked."""
        node, written = self._parameterNode, []
        with slicer.util.tryWithErrorDisplay(_("The files could not be written."), waitCursor=True):
            SceneError = sceneModule("volumes").SceneError
            if not self.ui.exportPathEdit.currentPath:
                raise SceneError("NO_FOLDER", _("no folder is chosen"), _("choose where the files go"))
            folder, stem = Path(self.ui.exportPathEdit.currentPath), self.ui.stemEdit.text.strip() or "scan"
            folder.mkdir(parents=True, exist_ok=True)
            if node.exportVerdicts:
                written += sceneModule("exports").write_tables(node.resultMap, folder, stem)
            if node.exportPictures:
                written += sceneModule("pictures").write_pictures(node.resultMap, folder, stem)
            self.ui.exportLabel.text = _("{count} files written: {names}.").format(
                count=len(written), names=", ".join(path.name for path in written[:4])
            )
            formats = ["files"] if node.exportFiles else []
            formats += ["dicom-seg"] if node.exportDicomSeg else []
            if formats and self._backendReady("dicom-seg" in formats):
                series = self.logic.dicomFiles(sceneModule("results").input_of(node.resultMap))
                self.logic.session.export(
                    node.resultMap, folder, formats, stem=stem, reference=node.reference, series=series
                )
                self._pollTimer.start()

    # -- installation and models

    def onPythonChanged(self, path):
        """Remember the interpreter; it belongs to this computer, not to the scene."""
        qt.QSettings().setValue(PYTHON_SETTING, path)
        if self._job is None:
            self.logic.close()

    def onLook(self, *_args):
        """Say what is installed, and check the models' files against their checksums."""
        with slicer.util.tryWithErrorDisplay(_("The interpreter could not be asked."), waitCursor=True):
            missing = self.logic.missingPackages()
            others = [name for name in missing if name != "torch"]
            self.ui.torchLabel.text = _("missing") if "torch" in missing else _("found")
            lacking = _("missing: {names}").format(names=", ".join(others))
            self.ui.packagesLabel.text = lacking if others else _("complete")
            if not missing:
                self.logic.session.ask_devices()
                self._pollTimer.start()
        self._fillModels()
        models = sceneModule("models")
        faults = [f"{one['id']}: {fault}" for one in self._models for fault in models.faults_of(Path(one["path"]))]
        verdict = "; ".join(faults) if faults else _("All files are as their checksums say")
        self.ui.modelsLabel.text = f"{self._modelsSentence()} {verdict}."

    def onInstall(self, *_args):
        """Install what is missing, after asking."""
        with slicer.util.tryWithErrorDisplay(_("The packages could not be installed."), waitCursor=True):
            if self._backendReady():
                self.onLook()

    def onImport(self, *_args):
        """Copy models from a folder on this computer."""
        path = self.askForFolder()
        if path:
            with slicer.util.tryWithErrorDisplay(_("The models could not be imported."), waitCursor=True):
                imported = sceneModule("models").import_models(Path(path))
                self._fillModels()
                names = ", ".join(imported)
                self.ui.modelsLabel.text = _("Imported: {names}.").format(names=names) + " " + self._modelsSentence()

    @staticmethod
    def askForFolder():
        """Ask for a folder; empty when the dialogue was closed."""
        return str(qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder with models")) or "")

    def onClear(self, *_args):
        """Remove the imported models, after asking."""
        own = [row.id for row in self._rows if row.own]
        question = _("Remove the imported models {names} from this computer?").format(names=", ".join(own))
        if own and slicer.util.confirmOkCancelDisplay(question, windowTitle=_("UADBench")):
            with slicer.util.tryWithErrorDisplay(_("The models could not be removed.")):
                sceneModule("models").clear_imported()
                self._fillModels()

    def _modelsSentence(self):
        """Return how many models there are and what they take on the disk."""
        own = [row for row in self._rows if row.own]
        return _("{count} models, {size:.0f} MB; {own} of them imported.").format(
            count=len(self._rows), size=sum(row.megabytes for row in self._rows), own=len(own)
        )

    def _backendReady(self, dicom=False):
        """Return whether the backend's packages are there, after asking to install what is missing."""
        missing = self.logic.missingPackages(dicom)
        if not missing:
            return True
        if not self.logic.usesSlicerPython():
            slicer.util.errorDisplay(
                _("The chosen Python interpreter lacks: {names}. Install them there, or clear the choice.").format(
                    names=", ".join(missing)
                )
            )
            return False
        question = _(
            "UADBench computes with Python packages that are not installed yet: {names}. They are downloaded "
            "from the Python package index and installed into Slicer's Python. Install them now?"
        ).format(names=", ".join(missing))
        if not slicer.util.confirmOkCancelDisplay(question, windowTitle=_("UADBench")):
            return False
        self.logic.installPackages(missing, dicom)
        return True


# ---------------------------------------------------------------------------------------------------- logic


class UADBenchLogic(ScriptedLoadableModuleLogic):
    """Detection for scripts, and what of the application the panel's work needs.

    >>> logic = UADBenchLogic()                                              # doctest: +SKIP
    >>> nodes = logic.detect(volumeNode, ["disyre-t1w-compact"])             # doctest: +SKIP
    >>> nodes[0].map, nodes[0].segmentation, nodes[0].findings               # doctest: +SKIP
    >>> logic.detect(volumeNode, models, referenceNode=segmentationNode)     # doctest: +SKIP

    Parameters
    ----------
    client : optional
        What to use in place of ``UADBenchScene.worker.WorkerClient``; tests give one.
    """

    def __init__(self, client=None):
        ScriptedLoadableModuleLogic.__init__(self)
        self._client = client
        self._session = None
        self._complete = None
        self._node = None

    def getParameterNode(self):
        """Return the parameter node, wrapped; the same wrapper as long as the node is the same."""
        node = super().getParameterNode()
        if self._node is None or self._node.parameterNode is not node:
            self._node = UADBenchParameterNode(node)
        return self._node

    @property
    def session(self):
        """What is going on between the scene and the worker, made when it is first needed."""
        if self._session is None:
            self._session = sceneModule("session").Session(slicer.mrmlScene, self._makeClient)
        return self._session

    def _makeClient(self):
        """Return the worker's client."""
        if self._client is not None:
            return self._client
        worker = sceneModule("worker")
        return worker.WorkerClient(self.pythonExecutable(), libraryFolder(), self._environment())

    def close(self):
        """End the worker. Results stay."""
        if self._session is not None:
            self._session.close()

    # -- for scripts

    def detect(self, volumeNode, models, referenceNode=None, progress=None, timeoutS=None, percentile=95.0, **options):
        """Detect anomalies and wait for the result.

        Parameters
        ----------
        volumeNode : vtkMRMLScalarVolumeNode
        models : list of str
            Ids of one or more models; several give their consensus as well.
        referenceNode : vtkMRMLNode, optional
            Segmentation, label map or volume to compare with.
        progress : callable, optional
            Called with stage, fraction and seconds left (or None).
        timeoutS : float, optional
            Give up after so many seconds.
        percentile : float
            Of the Hausdorff distance to the reference.
        **options
            ``contrast``, ``operating_point``, ``device``, ``minimum_ml``, ``brain_mask``, ``force``, ``batch``,
            ``reconstruct``, ``one_segment``: as ``Session.start``.

        Returns
        -------
        list of ResultNodes
            One of each model, and the consensus last.

        Raises
        ------
        SceneError
            With the code of what went wrong; nothing is then added to the scene.
        """
        deadline = None if timeoutS is None else time.monotonic() + timeoutS
        job = self.session.start(volumeNode, models, **options)
        nodes = self._wait("detect", job, deadline, progress)["nodes"]
        if referenceNode is not None:
            self.session.compare(volumeNode, referenceNode, percentile)
            self._wait("compare", None, deadline, progress)
        return nodes

    def export(self, mapNode, folder, formats=("files",), stem="scan", referenceNode=None, timeoutS=None):
        """Write the files of a result and wait until they are there; returns their names. See ``Session.export``."""
        series = self.dicomFiles(sceneModule("results").input_of(mapNode))
        options = {"stem": stem, "reference": referenceNode, "series": series}
        self.session.export(mapNode, Path(folder), list(formats), **options)
        deadline = None if timeoutS is None else time.monotonic() + timeoutS
        return self._wait("export", None, deadline)["files"]

    def _wait(self, kind, job, deadline, progress=None):
        """Return the result of a kind (and job) when it has come, or raise what ended it."""
        SceneError = sceneModule("volumes").SceneError
        while True:
            for event in self.session.poll():
                if job is not None and event.get("job") not in (job, None):
                    continue
                if event["event"] == "progress" and progress is not None:
                    progress(event["stage"], event["fraction"], event.get("eta_s"))
                elif event["event"] == "warning":
                    logging.warning("UADBench: %s", event["message"])
                elif event["event"] == "result" and event.get("kind") == kind:
                    return event
                elif event["event"] == "cancelled":
                    raise SceneError("CANCELLED", _("the detection was cancelled"), "")
                elif event["event"] == "failed":
                    raise SceneError(event["code"], event["message"], event.get("advice") or "")
            if deadline is not None and time.monotonic() > deadline:
                self.close()
                raise SceneError("TIMEOUT", _("there is no result in the time that was given"), _("allow more time"))
            time.sleep(0.05)

    # -- the application

    @staticmethod
    def dicomFiles(volumeNode):
        """Return the files that a volume was loaded from by the DICOM module; none for any other, or without it."""
        database = getattr(slicer, "dicomDatabase", None)
        if database is None or volumeNode is None:
            return []
        files = [str(database.fileForInstance(uid)) for uid in sceneModule("volumes").instance_uids(volumeNode)]
        return files if all(file and Path(file).is_file() for file in files) else []

    # -- the interpreter and its packages

    def pythonExecutable(self):
        """Return the interpreter that computes: the user's choice, or Slicer's own."""
        chosen = qt.QSettings().value(PYTHON_SETTING, "")
        return str(chosen) if chosen else (shutil.which("PythonSlicer") or sys.executable)

    def usesSlicerPython(self):
        """Return whether the interpreter is Slicer's own."""
        return not qt.QSettings().value(PYTHON_SETTING, "")

    def _environment(self):
        """Return the child's environment. A foreign Python must not find Slicer's libraries, Slicer's own
        must.
        """
        return dict(os.environ) if self.usesSlicerPython() else slicer.util.startupEnvironment()

    @staticmethod
    def requirementsFile():
        """Return the list of packages that the backend needs beside PyTorch."""
        return Path(__file__).resolve().parent / "Resources" / "requirements.txt"

    def missingPackages(self, dicom=False):
        """Return the import names that the interpreter lacks, torch included, and highdicom where DICOM is to be
        written; asked again until it lacks none.
        """
        state = (self.pythonExecutable(), dicom)
        if self._complete == state:
            return []
        lines = self.requirementsFile().read_text(encoding="utf-8").splitlines()
        names = [line.partition(">=")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
        # Imported under another name than it is installed under.
        names = [{"PyYAML": "yaml"}.get(name, name) for name in names]
        names += [DICOM_REQUIREMENT.partition(">=")[0]] if dicom else []
        ask = sceneModule("worker").missing_packages
        missing = ask(self.pythonExecutable(), ["torch", *names], self._environment())
        self._complete = None if missing else state
        return missing

    def installPackages(self, missing, dicom=False):
        """Install what is missing into Slicer's Python. Call it only after the user has agreed.

        Raises
        ------
        SceneError
            PYTORCH_EXTENSION_MISSING, PACKAGES_NOT_INSTALLED.
        """
        SceneError = sceneModule("volumes").SceneError
        if "torch" in missing and not slicer.app.testingEnabled():
            try:
                import PyTorchUtils
            except ModuleNotFoundError as error:
                raise SceneError(
                    "PYTORCH_EXTENSION_MISSING",
                    _("Slicer's PyTorch extension is not installed"),
                    _("install 'PyTorch' in the Extensions Manager, restart Slicer and try again"),
                ) from error
            PyTorchUtils.PyTorchUtilsLogic().installTorch(
                askConfirmation=False, torchVersionRequirement=TORCH_REQUIREMENT
            )
        if any(name != "torch" for name in missing):
            packaging = importlib.import_module("slicer.packaging")
            requirements = packaging.load_requirements(self.requirementsFile())
            requirements = [*requirements, DICOM_REQUIREMENT] if dicom else requirements
            packaging.pip_ensure(requirements, requester="UADBench", prompt_install=False)
        left = self.missingPackages(dicom)
        if left:
            raise SceneError(
                "PACKAGES_NOT_INSTALLED",
                _("these packages are still missing: {names}").format(names=", ".join(left)),
                _("see the application's log, or choose a Python interpreter that has them under Installation"),
            )


# ----------------------------------------------------------------------------------------------------- test


class UADBenchTest(ScriptedLoadableModuleTest):
    """Self-test: the scene code in the application, the panel, and a detection where the packages are
    there.
    """

    def setUp(self):
        """Start with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run all tests, each with an empty scene."""
        for test in (self.test_result, self.test_refusal, self.test_panel, self.test_detection):
            self.setUp()
            test()

    @staticmethod
    def _volume(shape=(40, 48, 44)):
        """Return a smooth head-sized ball as a volume node."""
        import numpy as np
        import vtk

        grid = np.indices(shape[::-1]).astype(np.float32)
        centre = (np.array(shape[::-1], dtype=np.float32) / 2).reshape(3, 1, 1, 1)
        voxels = np.clip(1.0 - np.linalg.norm((grid - centre) / centre, axis=0), 0, None) * 1000
        matrix = vtk.vtkMatrix4x4()
        for axis in range(3):
            matrix.SetElement(axis, axis, 4.0)
            matrix.SetElement(axis, 3, -2.0 * shape[axis])
        return slicer.util.addVolumeFromArray(voxels, ijkToRAS=matrix, name="ball_T1w")

    def test_result(self):
        """A result becomes three nodes in the right place."""
        import numpy as np

        volume = self._volume()
        voxels, affine = sceneModule("volumes").read_volume(volume)
        anomaly = np.zeros(voxels.shape, dtype=np.float32)
        anomaly[10:13, 20:23, 30:33] = 6.0
        peak = affine @ [11, 21, 31, 1]
        row = {"index": 1, "volume_ml": 1.7, "peak_z": 6.0, "mean_z": 6.0}
        row |= {f"peak_{axis}": peak[k] for k, axis in enumerate("ras")}
        results = sceneModule("results")
        mask = (anomaly > 0).astype(np.uint8)
        nodes = results.add_result(volume, results.Result("test", anomaly, mask, affine, 3.0, findings=[row]))
        self.assertEqual(nodes.segmentation.GetSegmentation().GetNumberOfSegments(), 1)
        np.testing.assert_allclose(sceneModule("findings").place_of(nodes.findings, 0), peak[:3], atol=1e-6)

    def test_refusal(self):
        """A label map is refused with advice."""
        volumes = sceneModule("volumes")
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        with self.assertRaises(volumes.SceneError) as caught:
            volumes.read_volume(node)
        self.assertEqual(caught.exception.code, "LABEL_MAP")

    def test_panel(self):
        """The panel is built, finds its input, and survives the closing of the scene."""
        volume = self._volume()
        widget = slicer.modules.uadbench.widgetRepresentation().self()
        widget.enter()
        self.assertIsNotNone(widget.ui.progressBar)
        self.assertEqual(widget.logic.getParameterNode().inputVolume.GetID(), volume.GetID())
        slicer.mrmlScene.Clear()
        self.assertEqual(widget.logic.session.queue, [])

    def test_detection(self):
        """A model runs through and leaves its nodes."""
        models = sceneModule("models").usable_models()
        logic = UADBenchLogic()
        if not models or logic.missingPackages():
            self.skipTest("no model, or the backend's packages are not installed")
        try:
            nodes = logic.detect(self._volume((160, 190, 170)), [models[0]["id"]], device="cpu", timeoutS=600)
            self.assertEqual(nodes[0].map.GetAttribute("UADBench.Model"), models[0]["id"])
        except sceneModule("volumes").SceneError as error:
            # A ball is not a head: the input checks may say so, and saying so is an answer of a working
            # backend.
            self.assertNotIn(error.code, ("WORKER_DIED", "WORKER_NOT_STARTED", "INTERNAL", "DEPENDENCY_MISSING"))
        finally:
            logic.close()
