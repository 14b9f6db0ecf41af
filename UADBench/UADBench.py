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
from typing import Annotated

import ctk  # noqa: F401
import qt
import slicer
from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
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
PYTHON_SETTING = "UADBench/PythonExecutable"


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
            "Unsupervised anomaly detection in brain MRI: an anomaly map, its findings as segments, and a "
            "table to go through them. Everything is computed on this computer. Research software, not a "
            'medical device. See the <a href="https://github.com/UADBench/SlicerUADBench">documentation</a>.'
        )
        self.parent.acknowledgementText = _(
            "The methods are those of the papers that each model's card cites; please cite them."
        )


@parameterNodeWrapper
class UADBenchParameterNode:
    """What the user chose; saved with the scene.

    inputVolume - the scan.
    models - ids of the models, separated by commas.
    operatingPoint - name of the operating point.
    device - where to compute.
    minimumMl - findings smaller than this are left out, in millilitres.
    brainMask - the brain, if it is known already.
    reference - known anomalies to compare with.
    resultMap - the anomaly map whose findings are shown.
    threshold - in calibrated z.
    mapOpacity - of the map over the scan.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    models: str = ""
    operatingPoint: str = ""
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    minimumMl: Annotated[float, WithinRange(0.0, 100.0)] = 0.1
    brainMask: vtkMRMLLabelMapVolumeNode
    reference: vtkMRMLLabelMapVolumeNode
    resultMap: vtkMRMLScalarVolumeNode
    threshold: Annotated[float, WithinRange(0.0, 20.0)] = 3.0
    mapOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.7


# --------------------------------------------------------------------------------------------------- widget


class UADBenchWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: choose, apply, watch, look at what was found."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._models = []
        self._choices = []
        self._job = None
        self._settingThreshold = False
        self._lastResultID = None

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/UADBench.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.ui.resultSelector.addAttribute("vtkMRMLScalarVolumeNode", "UADBench.Role", "map")
        self.logic = UADBenchLogic()

        self._pollTimer = qt.QTimer()
        self._pollTimer.setInterval(POLL_MS)
        self._pollTimer.connect("timeout()", self.onPoll)
        self._thresholdTimer = qt.QTimer()
        self._thresholdTimer.setSingleShot(True)
        self._thresholdTimer.setInterval(DEBOUNCE_MS)
        self._thresholdTimer.connect("timeout()", self.onThresholdSettled)

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChanged)
        self.ui.operatingPointComboBox.connect("currentIndexChanged(int)", self.onOperatingPointChanged)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.cancelButton.connect("clicked(bool)", self.onCancel)
        self.ui.thresholdSlider.connect("valueChanged(double)", self.onThresholdMoved)
        self.ui.findingsTable.connect("cellDoubleClicked(int,int)", self.onJump)
        self.ui.jumpButton.connect("clicked(bool)", lambda *_args: self.onJump(self.ui.findingsTable.currentRow()))
        self.ui.previousButton.connect("clicked(bool)", lambda *_args: self.onStep(-1))
        self.ui.nextButton.connect("clicked(bool)", lambda *_args: self.onStep(1))
        self.ui.pythonPathEdit.currentPath = qt.QSettings().value(PYTHON_SETTING, "") or ""
        self.ui.pythonPathEdit.connect("currentPathChanged(QString)", self.onPythonChanged)
        self._setRunning(False)
        self._loadTerminology()
        self.initializeParameterNode()

    def cleanup(self):
        """End the worker when the application closes or the module is reloaded."""
        self._stop()
        self.removeObservers()

    def enter(self):
        """Make sure that there is a parameter node whenever the user comes back."""
        self.initializeParameterNode()

    def exit(self):
        """Stop reacting to the parameter node. A detection goes on."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNodeGuiTag = None

    def onReload(self):
        """Reload the scene code and the backend with the module."""
        self._stop()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("UADBenchScene", "UADBenchLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    # -- scene and parameters

    def onSceneStartClose(self, _caller, _event):
        """Stop politely: what is being computed has no scene to return to."""
        self._stop()
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller, _event):
        """Start again with an empty scene if the panel is shown."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, _caller, _event):
        """Give maps that came with a scene the colours that may not have been saved with it."""
        maps = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if any(node.GetAttribute("UADBench.Role") == "map" for node in maps):
            sceneModule("results").colours(slicer.mrmlScene)

    def initializeParameterNode(self):
        """Get or make the parameter node, with the first volume as input where none is chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.inputVolume:
            isMap = sceneModule("results").is_map
            volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
            scans = [v for v in volumes if v.GetClassName() == "vtkMRMLScalarVolumeNode" and not isMap(v)]
            if scans:
                self._parameterNode.inputVolume = scans[0]
        self._fillModels()

    def setParameterNode(self, parameterNode):
        """Connect the panel to a parameter node, or to none."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, self._modifiedEvent(), self.onParametersChanged)
        self._parameterNode = parameterNode
        if self._parameterNode is not None:
            # Connecting writes the saved threshold into the slider, which is no movement of the user's.
            self._settingThreshold = True
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self._settingThreshold = False
            self.addObserver(self._parameterNode, self._modifiedEvent(), self.onParametersChanged)
            self.onParametersChanged()

    @staticmethod
    def _modifiedEvent():
        import vtk

        return vtk.vtkCommand.ModifiedEvent

    def onParametersChanged(self, _caller=None, _event=None):
        """Say what is missing before a detection can start, and show another result when one was chosen."""
        node = self._parameterNode
        if node is None:
            return
        reason = ""
        if not node.inputVolume:
            reason = _("Choose an input volume.")
        elif not self._choices:
            reason = _("No model is installed. A folder of models can be named in the variable UADBENCH_MODELS.")
        self.ui.applyButton.enabled = not reason and self._job is None
        self.ui.applyButton.toolTip = reason or _("Detect anomalies in the input volume.")
        self._applyOpacity(node.mapOpacity)
        resultID = node.resultMap.GetID() if node.resultMap else None
        if resultID != self._lastResultID:
            self._lastResultID = resultID
            self.showFindings()

    def _fillModels(self):
        """Offer the models of the catalogue, keeping the choice where it still exists."""
        models = sceneModule("models")
        wanted = self._parameterNode.models
        self._models = models.usable_models()
        self._choices = models.model_choices(self._models)
        combo = self.ui.modelComboBox
        blocked = combo.blockSignals(True)
        combo.clear()
        for choice in self._choices:
            combo.addItem(choice.label, ",".join(choice.ids))
        ids = [",".join(choice.ids) for choice in self._choices]
        combo.currentIndex = ids.index(wanted) if wanted in ids else (0 if ids else -1)
        combo.blockSignals(blocked)
        self.onModelChanged()
        self.onParametersChanged()

    def onModelChanged(self, _index=None):
        """Remember the models and offer their operating points."""
        index = self.ui.modelComboBox.currentIndex
        if self._parameterNode is None or not 0 <= index < len(self._choices):
            return
        ids = self._choices[index].ids
        self._parameterNode.models = ",".join(ids)
        points = sceneModule("models").operating_points(self._models, ids)
        wanted = self._parameterNode.operatingPoint
        combo = self.ui.operatingPointComboBox
        blocked = combo.blockSignals(True)
        combo.clear()
        for name, label in points:
            combo.addItem(label, name)
        names = [name for name, _label in points]
        combo.currentIndex = names.index(wanted) if wanted in names else (0 if names else -1)
        combo.blockSignals(blocked)
        self.onOperatingPointChanged()

    def onOperatingPointChanged(self, _index=None):
        """Remember the operating point."""
        if self._parameterNode is not None:
            self._parameterNode.operatingPoint = self.ui.operatingPointComboBox.currentData or ""

    def onPythonChanged(self, path):
        """Remember the interpreter; it belongs to this computer, not to the scene."""
        qt.QSettings().setValue(PYTHON_SETTING, path)
        if self._job is None:
            self.logic.close()

    # -- a detection

    def onApply(self, *_args):
        """Start a detection."""
        node = self._parameterNode
        if self._job is not None or node is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The detection could not be started."), waitCursor=True):
            if not self._backendReady():
                return
            self._job = self.logic.start(
                node.inputVolume,
                [name for name in node.models.split(",") if name],
                operatingPoint=node.operatingPoint or None,
                device=node.device,
                minimumMl=node.minimumMl,
                brainMask=node.brainMask,
                reference=node.reference,
            )
            self._setRunning(True)
            self.ui.messageLabel.text = ""
            self._showStage(_("Starting"), 0.0, None)
            self._pollTimer.start()

    def onCancel(self, *_args):
        """Ask the worker to stop."""
        if self._job is not None:
            self.ui.cancelButton.enabled = False
            self._showStage(_("Cancelling"), None, None)
            self.logic.cancel(self._job)

    def onPoll(self):
        """Take what the worker has said. Called by a timer, so nothing here may wait."""
        for event in self.logic.poll():
            self._take(event)
        if not self.logic.waiting:
            self._pollTimer.stop()

    def _take(self, event):
        """Show one event."""
        kind, mine = event["event"], event.get("job") == self._job
        if kind == "progress" and mine:
            self._showStage(event["stage"], event["fraction"], event.get("eta_s"))
        elif kind == "warning":
            self._say(self.ui.messageLabel.text, self._sentence(event))
        elif kind == "result" and event.get("nodes"):
            self._showResult(event)
        elif kind == "cancelled" and mine:
            self._finish(_("Cancelled. Nothing was added to the scene."))
        elif kind == "failed":
            text = self._sentence(event)
            if mine and self._job is not None:
                self._finish(text)
                slicer.util.errorDisplay(text, windowTitle=_("UADBench"), detailedText="\n".join(self.logic.log))
            else:
                self.ui.messageLabel.text = text

    def _showResult(self, event):
        """Show new nodes, or the nodes whose threshold was moved."""
        nodes = event["nodes"][-1]
        if event.get("answers") == "threshold":
            self.showFindings()
            return
        warnings = self.ui.messageLabel.text
        self._finish("")
        self._say(self._scanSentence(event["detections"][0].get("summary") or {}), warnings)
        self._parameterNode.resultMap = nodes.map
        if self._lastResultID != nodes.map.GetID():
            self.onParametersChanged()
        self._showInViews(nodes)

    def _say(self, *sentences):
        """Show one sentence a line; empty ones are left out."""
        self.ui.messageLabel.text = "\n".join(sentence for sentence in sentences if sentence)

    @staticmethod
    def _scanSentence(summary):
        """Return what was measured of the scan: the contrast, and quality where it could be measured."""
        contrast, quality = summary.get("contrast") or {}, summary.get("quality") or {}
        parts = []
        if contrast:
            parts.append(_("{used} (the image looks like {found})").format(**contrast))
        for name, label in (("snr", _("signal to noise")), ("cnr", _("contrast to noise"))):
            if quality.get(name) is not None:
                parts.append(f"{label} {quality[name]:.1f}")
        return ", ".join(parts) + "." if parts else ""

    def _finish(self, message):
        """Return the panel to its idle state."""
        self._job = None
        self._setRunning(False)
        self.ui.messageLabel.text = message
        self.onParametersChanged()

    def _stop(self):
        """End the worker and whatever it does."""
        if self.logic is None:
            return
        self._pollTimer.stop()
        self._thresholdTimer.stop()
        self.logic.close()
        self._job = None
        self._lastResultID = None
        self._setRunning(False)

    def _setRunning(self, running):
        """Show progress and Cancel while a detection runs, Apply otherwise."""
        self.ui.applyButton.enabled = not running
        self.ui.cancelButton.enabled = running
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

    # -- packages

    def _backendReady(self):
        """Return whether the backend's packages are there, after asking to install what is missing."""
        missing = self.logic.missingPackages()
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
        self.logic.installPackages(missing)
        return True

    # -- results

    def onThresholdMoved(self, value):
        """Change the map's transparency at once; ask for new findings when the slider has come to rest."""
        node = self._parameterNode
        if self._settingThreshold or node is None or not self.logic.canMoveThreshold(node.resultMap):
            return
        sceneModule("results").show_from(node.resultMap, value)
        self._thresholdTimer.start()

    def onThresholdSettled(self):
        """Ask for mask and findings at the slider's threshold."""
        node = self._parameterNode
        if node is not None and self.logic.canMoveThreshold(node.resultMap):
            self.logic.moveThreshold(node.resultMap, self.ui.thresholdSlider.value, node.minimumMl)
            self._pollTimer.start()

    def showFindings(self):
        """Fill the table and the threshold of the chosen result."""
        mapNode = self._parameterNode.resultMap if self._parameterNode is not None else None
        results = sceneModule("results")
        nodes = results.nodes_of(mapNode) if results.is_map(mapNode) else None
        movable = self.logic.canMoveThreshold(mapNode)
        self.ui.thresholdSlider.enabled = movable
        self.ui.thresholdSlider.toolTip = (
            _("Findings are where the map is at least this many healthy standard deviations (z).")
            if movable
            else _("The threshold can be moved for results of this session; detect again for older ones.")
        )
        rows = results.rows_of(nodes.findings) if nodes is not None and nodes.findings is not None else []
        self._fillTable(rows)
        if nodes is None:
            self.ui.findingsLabel.text = _("No result yet.")
            return
        self._settingThreshold = True
        if not self._thresholdTimer.active:
            self.ui.thresholdSlider.value = float(mapNode.GetAttribute("UADBench.Threshold"))
        self._settingThreshold = False
        if len(rows) == 1:
            text = _("One finding, peak z {peak:.1f}.").format(peak=rows[0]["peak_z"])
        elif rows:
            text = _("{count} findings, highest peak z {peak:.1f}.").format(count=len(rows), peak=rows[0]["peak_z"])
        else:
            highest = mapNode.GetImageData().GetScalarRange()[1]
            text = _("No finding at this threshold; the highest value of the map is z {peak:.1f}.").format(peak=highest)
        self.ui.findingsLabel.text = text

    def _fillTable(self, rows):
        """Show the rows of a findings table."""
        table = self.ui.findingsTable
        columns = (
            (_("#"), "index", "{:d}"),
            (_("Volume (ml)"), "volume_ml", "{:.2f}"),
            (_("Peak (z)"), "peak_z", "{:.1f}"),
            (_("Mean (z)"), "mean_z", "{:.1f}"),
            (_("Region"), "region", "{}"),
            (_("Status"), "status", "{}"),
        )
        table.clear()
        table.setColumnCount(len(columns))
        table.setHorizontalHeaderLabels([title for title, _name, _form in columns])
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, (_title, name, form) in enumerate(columns):
                item = qt.QTableWidgetItem(form.format(row[name]))
                item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
                table.setItem(number, column, item)
        table.resizeColumnsToContents()
        for button in (self.ui.previousButton, self.ui.nextButton, self.ui.jumpButton):
            button.enabled = bool(rows)

    def onStep(self, step):
        """Go to the next or previous finding."""
        table = self.ui.findingsTable
        row = min(max(table.currentRow() + step, 0), table.rowCount - 1)
        table.setCurrentCell(row, 0)
        self.onJump(row)

    def onJump(self, row, _column=None):
        """Show the peak of a finding in all slice views."""
        results = sceneModule("results")
        mapNode = self._parameterNode.resultMap if self._parameterNode is not None else None
        if not results.is_map(mapNode) or row < 0:
            return
        with slicer.util.tryWithErrorDisplay(_("The finding could not be shown.")):
            place = results.place_of_finding(results.nodes_of(mapNode).findings, row)
            slicer.vtkMRMLSliceNode.JumpAllSlices(
                slicer.mrmlScene, *(float(x) for x in place), slicer.vtkMRMLSliceNode.CenteredJumpSlice
            )

    def _showInViews(self, nodes):
        """Put the map over the scan in the slice views, if there are any."""
        if slicer.app.layoutManager() is not None:
            slicer.util.setSliceViewerLayers(
                background=sceneModule("results").input_of(nodes.map),
                foreground=nodes.map,
                foregroundOpacity=self._parameterNode.mapOpacity,
            )

    def _applyOpacity(self, opacity):
        """Set the opacity of the map in those views that show one."""
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            foreground = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID() or "")
            if foreground is not None and foreground.GetAttribute("UADBench.Role") == "map":
                composite.SetForegroundOpacity(opacity)

    def _loadTerminology(self):
        """Let Slicer show the segments' terms by name; it has no list with 'lesion' in it."""
        terminologies = getattr(slicer.modules, "terminologies", None)
        if terminologies is not None:
            terminologies.logic().LoadTerminologyFromFile(self.resourcePath("UADBench.term.json"))


# ---------------------------------------------------------------------------------------------------- logic


class UADBenchLogic(ScriptedLoadableModuleLogic):
    """Detection for scripts and for the panel.

    >>> logic = UADBenchLogic()                                              # doctest: +SKIP
    >>> nodes = logic.detect(volumeNode, ["disyre-t1w-compact"])             # doctest: +SKIP
    >>> nodes[0].map, nodes[0].segmentation, nodes[0].findings               # doctest: +SKIP

    Parameters
    ----------
    client : optional
        What to use in place of ``UADBenchScene.worker.WorkerClient``; tests give one.
    """

    def __init__(self, client=None):
        ScriptedLoadableModuleLogic.__init__(self)
        self._client = client
        self._inputs = {}
        self._results = {}
        self._thresholds = 0
        self._complete = None

    def getParameterNode(self):
        """Return the parameter node, wrapped."""
        return UADBenchParameterNode(super().getParameterNode())

    # -- for scripts

    def detect(self, volumeNode, models, progress=None, timeoutS=None, **options):
        """Detect anomalies and wait for the result.

        Parameters
        ----------
        volumeNode : vtkMRMLScalarVolumeNode
        models : list of str
            Ids of one or more models; several give their consensus as well.
        progress : callable, optional
            Called with stage, fraction and seconds left (or None).
        timeoutS : float, optional
            Give up after so many seconds.
        **options
            ``operatingPoint``, ``device``, ``minimumMl``, ``brainMask``, ``reference``: as ``start``.

        Returns
        -------
        list of ResultNodes
            One of each model, and the consensus last.

        Raises
        ------
        SceneError
            With the code of what went wrong; nothing is then added to the scene.
        """
        SceneError = sceneModule("volumes").SceneError
        job = self.start(volumeNode, models, **options)
        deadline = None if timeoutS is None else time.monotonic() + timeoutS
        while True:
            for event in self.poll():
                if event.get("job") != job:
                    continue
                if event["event"] == "progress" and progress is not None:
                    progress(event["stage"], event["fraction"], event.get("eta_s"))
                elif event["event"] == "warning":
                    logging.warning("UADBench: %s", event["message"])
                elif event["event"] == "result":
                    return event["nodes"]
                elif event["event"] == "cancelled":
                    raise SceneError("CANCELLED", "the detection was cancelled", "")
                elif event["event"] == "failed":
                    raise SceneError(event["code"], event["message"], event.get("advice") or "")
            if deadline is not None and time.monotonic() > deadline:
                self.close()
                raise SceneError("TIMEOUT", f"no result within {timeoutS:g} s", "allow more time")
            time.sleep(0.05)

    # -- for the panel

    def start(
        self,
        volumeNode,
        models,
        operatingPoint=None,
        device="auto",
        minimumMl=0.1,
        brainMask=None,
        reference=None,
    ):
        """Start a detection and return the name of the job; ``poll`` tells the rest.

        Parameters
        ----------
        volumeNode : vtkMRMLScalarVolumeNode
        models : list of str
        operatingPoint : str, optional
            Name of the operating point.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        minimumMl : float
            Findings smaller than this are left out, in millilitres.
        brainMask, reference : vtkMRMLLabelMapVolumeNode, optional
            On the voxels of the volume.

        Raises
        ------
        SceneError
            When the volume cannot be used, NO_MODEL, or WORKER_NOT_STARTED.
        """
        volumes = sceneModule("volumes")
        voxels, affine = volumes.read_volume(volumeNode)
        if not models:
            raise volumes.SceneError("NO_MODEL", "no model is chosen", "choose one of the installed models")
        masks = {
            name: volumes.read_mask(node, volumeNode)
            for name, node in (("brain_mask", brainMask), ("reference", reference))
            if node is not None
        }
        try:
            job = self._worker().detect(
                voxels,
                affine,
                list(models),
                contrast=volumes.contrast_in_name(volumeNode.GetName()),
                operating_point=operatingPoint or sceneModule("models").DEFAULT_POINT,
                device=device,
                minimum_ml=minimumMl,
                **masks,
            )
        except OSError as error:
            raise volumes.SceneError(
                "WORKER_NOT_STARTED",
                f"the computation could not be started ({error.strerror or error})",
                "check the Python interpreter and the free space of the temporary folder",
            ) from error
        self._inputs[job] = volumeNode.GetID()
        return job

    def poll(self):
        """Return the worker's events since the last call. Results are put into the scene and come with
        their ``nodes``.
        """
        if self._client is None:
            return []
        return [self._take(event) for event in self._client.poll()]

    def cancel(self, job):
        """Stop a job; ``poll`` confirms it within a second or so."""
        if self._client is not None:
            self._client.cancel(job)

    def close(self):
        """End the worker. Results stay; their thresholds cannot be moved any more."""
        if self._client is not None:
            self._client.close()
        self._client = None
        self._inputs.clear()
        self._results.clear()
        self._thresholds = 0

    @property
    def waiting(self):
        """Whether an answer of the worker is due."""
        return bool(self._inputs) or self._thresholds > 0

    @property
    def log(self):
        """The last lines of the worker's log."""
        return [] if self._client is None else list(self._client.log)

    def canMoveThreshold(self, mapNode):
        """Return whether the worker still has this map in memory."""
        return mapNode is not None and mapNode.GetID() in self._results and self._client is not None

    def moveThreshold(self, mapNode, threshold, minimumMl=0.1):
        """Ask for the findings at another threshold; ``poll`` returns the changed nodes."""
        if not self.canMoveThreshold(mapNode):
            raise sceneModule("volumes").SceneError(
                "JOB_UNKNOWN",
                "the map of this result is no longer in memory",
                "detect again to move its threshold",
            )
        job, model = self._results[mapNode.GetID()]
        self._thresholds += 1
        self._client.threshold(job, model, threshold, minimumMl)

    def _take(self, event):
        """Act on one event: results become nodes; whatever ends a job is noted."""
        kind, job = event["event"], event.get("job")
        ended = job in self._inputs
        if kind == "result" and event.get("detections"):
            try:
                event["nodes"] = self._moved(event) if event.get("answers") == "threshold" else self._added(event)
            except sceneModule("volumes").SceneError as error:
                event = {
                    "event": "failed",
                    "job": job,
                    "code": error.code,
                    "message": error.message,
                    "advice": error.advice,
                }
                self._inputs.pop(job, None)
        elif kind in ("failed", "cancelled"):
            self._inputs.pop(job, None)
            if event.get("code") == "WORKER_DIED":
                self._results.clear()
                self._thresholds = 0
            elif not ended:
                self._thresholds = max(0, self._thresholds - 1)
        return event

    def _added(self, event):
        """Add the nodes of a detection."""
        volumeNode = slicer.mrmlScene.GetNodeByID(self._inputs.pop(event["job"], ""))
        results = sceneModule("results")
        added = []
        for row in event["detections"]:
            nodes = results.add_result(volumeNode, self._result(row, event["affine"]))
            self._results[nodes.map.GetID()] = (event["job"], row["model"])
            added.append(nodes)
        return added

    def _moved(self, event):
        """Change the nodes of a result whose threshold was moved; one that has left the scene meanwhile is
        passed over.
        """
        self._thresholds = max(0, self._thresholds - 1)
        moved = []
        for row in event["detections"]:
            for mapID, of in self._results.items():
                mapNode = slicer.mrmlScene.GetNodeByID(mapID) if of == (event["job"], row["model"]) else None
                if mapNode is not None:
                    result = self._result(row, event["affine"])
                    moved.append(sceneModule("results").change_threshold(mapNode, result))
        return moved

    @staticmethod
    def _result(row, affine):
        """Return one row of a ``result`` event as what the scene code takes."""
        return sceneModule("results").Result(
            model=row["model"],
            map=row.get("map"),
            mask=row["mask"],
            affine=affine,
            threshold=row["threshold"],
            operating_point=row.get("operating_point") or "",
            origin=row.get("origin") or "",
            findings=row.get("findings") or [],
            summary=row.get("summary") or {},
        )

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

    def _worker(self):
        """Return the worker's client, made when it is first needed."""
        if self._client is None:
            worker = sceneModule("worker")
            self._client = worker.WorkerClient(self.pythonExecutable(), libraryFolder(), self._environment())
        return self._client

    @staticmethod
    def requirementsFile():
        """Return the list of packages that the backend needs beside PyTorch."""
        return Path(__file__).resolve().parent / "Resources" / "requirements.txt"

    def missingPackages(self):
        """Return the import names that the interpreter lacks, torch included; asked again until it lacks none."""
        if self._complete == self.pythonExecutable():
            return []
        lines = self.requirementsFile().read_text(encoding="utf-8").splitlines()
        names = [line.partition(">=")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
        ask = sceneModule("worker").missing_packages
        missing = ask(self.pythonExecutable(), ["torch", *names], self._environment())
        self._complete = None if missing else self.pythonExecutable()
        return missing

    def installPackages(self, missing):
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
                    "Slicer's PyTorch extension is not installed",
                    "install 'PyTorch' in the Extensions Manager, restart Slicer and try again",
                ) from error
            PyTorchUtils.PyTorchUtilsLogic().installTorch(
                askConfirmation=False, torchVersionRequirement=TORCH_REQUIREMENT
            )
        if any(name != "torch" for name in missing):
            packaging = importlib.import_module("slicer.packaging")
            requirements = packaging.load_requirements(self.requirementsFile())
            packaging.pip_ensure(requirements, requester="UADBench", prompt_install=False)
        left = self.missingPackages()
        if left:
            raise SceneError(
                "PACKAGES_NOT_INSTALLED",
                f"these packages are still missing: {', '.join(left)}",
                "see the application's log, or choose a Python interpreter that has them under Advanced",
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
        np.testing.assert_allclose(results.place_of_finding(nodes.findings, 0), peak[:3], atol=1e-6)

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
        self.assertIsNone(widget.logic._client)

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
