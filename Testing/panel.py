"""The panel of the Slicer module outside of Slicer: its .ui file in Qt's own loader, Slicer's widgets stood in for.

    QT_QPA_PLATFORM=offscreen python Testing/panel.py --out docs/figures

loads ``UADBench.ui``, fills it with an example and saves pictures of the panel, 450 pixels wide, for the documentation.
The stand-ins have the size and the look of Slicer's widgets, not their behaviour; that is tested in the application.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

ROOT = Path(__file__).resolve().parent.parent
UI = ROOT / "UADBench" / "Resources" / "UI" / "UADBench.ui"
WIDTH = 450
HEADER = 24
STEPS = ("scan", "detect", "review", "compare", "install")


class qMRMLWidget(QtWidgets.QWidget):
    """Knows the scene and tells the selectors of it."""

    mrmlSceneChanged = QtCore.Signal("vtkMRMLScene*")


class qMRMLNodeComboBox(QtWidgets.QComboBox):
    """Chooses a node."""

    @QtCore.Slot("vtkMRMLScene*")
    def setMRMLScene(self, scene) -> None:
        """Take a scene; there is none here."""

    def paintEvent(self, _event) -> None:
        """Draw the name of the node, with dots in its middle where it is too long, as Slicer does."""
        painter, option = QtWidgets.QStylePainter(self), QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        style, control = self.style(), QtWidgets.QStyle.CC_ComboBox
        field = style.subControlRect(control, option, QtWidgets.QStyle.SC_ComboBoxEditField, self)
        dots = QtCore.Qt.ElideMiddle
        option.currentText = self.fontMetrics().elidedText(option.currentText, dots, field.width() - 6)
        painter.drawComplexControl(control, option)
        painter.drawControl(QtWidgets.QStyle.CE_ComboBoxLabel, option)


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A header with what belongs to it below."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, HEADER, 0, 0)

    def _set_text(self, text) -> None:
        self._text = text

    def _set_collapsed(self, collapsed) -> None:
        self._collapsed = collapsed
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        self.setMaximumHeight(HEADER if collapsed else 16777215)

    text = QtCore.Property(str, lambda self: self._text, _set_text)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _set_collapsed)

    def paintEvent(self, _event) -> None:
        """Draw the header."""
        painter = QtGui.QPainter(self)
        box = QtCore.QRect(0, 0, self.width(), HEADER - 2)
        painter.fillRect(box, self.palette().button())
        painter.setPen(self.palette().mid().color())
        painter.drawRect(box.adjusted(0, 0, -1, -1))
        painter.setPen(self.palette().buttonText().color())
        arrow = "\u25b8" if self._collapsed else "\u25be"
        painter.drawText(box.adjusted(8, 0, 0, 0), QtCore.Qt.AlignVCenter, f"{arrow}  {self._text}")


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with a spin box."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.slider, self.spin = QtWidgets.QSlider(QtCore.Qt.Horizontal), QtWidgets.QDoubleSpinBox()
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.slider)
        layout.addWidget(self.spin)

    def _set_value(self, value) -> None:
        self.spin.setValue(value)
        low, high = self.spin.minimum(), self.spin.maximum()
        self.slider.setValue(round(99 * (value - low) / max(high - low, 1e-9)))

    value = QtCore.Property(float, lambda self: self.spin.value(), _set_value)
    minimum = QtCore.Property(float, lambda self: self.spin.minimum(), lambda self, v: self.spin.setMinimum(v))
    maximum = QtCore.Property(float, lambda self: self.spin.maximum(), lambda self, v: self.spin.setMaximum(v))
    decimals = QtCore.Property(int, lambda self: self.spin.decimals(), lambda self, v: self.spin.setDecimals(v))
    singleStep = QtCore.Property(float, lambda self: self.spin.singleStep(), lambda self, v: self.spin.setSingleStep(v))
    suffix = QtCore.Property(str, lambda self: self.spin.suffix(), lambda self, v: self.spin.setSuffix(v))


class ctkPathLineEdit(QtWidgets.QWidget):
    """A path with a button that browses."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(QtWidgets.QComboBox(editable=True), 1)
        layout.addWidget(QtWidgets.QToolButton(text="…"))


def load() -> QtWidgets.QWidget:
    """Return the panel as Qt's own loader makes it.

    Raises
    ------
    RuntimeError
        With the loader's words when it cannot.
    """
    loader = QtUiTools.QUiLoader()
    for kind in (qMRMLWidget, qMRMLNodeComboBox, ctkCollapsibleButton, ctkSliderWidget, ctkPathLineEdit):
        loader.registerCustomWidget(kind)
    panel = loader.load(str(UI))
    if panel is None:
        raise RuntimeError(loader.errorString())
    return panel


def widget(panel: QtWidgets.QWidget, name: str) -> QtWidgets.QWidget:
    """Return a widget of the panel by name."""
    found = panel.findChild(QtWidgets.QWidget, name)
    if found is None:
        raise KeyError(name)
    return found


def show_step(panel: QtWidgets.QWidget, steps: tuple[str, ...]) -> None:
    """Open some steps and close the others, and give the panel the height that it then wants."""
    for step in STEPS:
        widget(panel, f"{step}CollapsibleButton").collapsed = step not in steps
    panel.setFixedWidth(WIDTH)
    # Labels that wrap say only when they are laid out how high they are, and those around them hear of it after that.
    for _round in range(4):
        QtWidgets.QApplication.processEvents()
        for layout in panel.findChildren(QtWidgets.QLayout):
            layout.invalidate()
            layout.activate()
        panel.resize(WIDTH, max(panel.layout().totalHeightForWidth(WIDTH), panel.sizeHint().height()) + 20)
    QtWidgets.QApplication.processEvents()


EXAMPLE = {
    "inputSelector": ["sub-01_T1w"],
    "contrastComboBox": ["from name and image", "T1w", "T2w", "FLAIR"],
    "brainMaskSelector": ["None"],
    "contrastFilterComboBox": ["T1w", "all contrasts"],
    "operatingPointComboBox": ["fpr-1pct (z > 4.38, 1.00% of healthy voxels)"],
    "deviceComboBox": ["NVIDIA RTX A4000 (14.2 GB free)"],
    "resultSelector": ["sub-01_T1w anomaly map (disyre-t1w-compact)"],
    "pointComboBox": ["fpr-1pct (z > 4.38, 1.00% of healthy voxels)"],
    "layoutComboBox": ["scan | map | reference"],
    "targetSelector": ["None"],
    "referenceSelector": ["sub-01_label-lesion_mask"],
}
TEXTS = {
    "scanLabel": "The image looks like T1w: fluid darkest, white matter brightest.\nSignal to noise 21.4, contrast to "
    "noise 6.3.\nSlices are 6 mm thick. Small findings may be missed.",
    "modelLabel": "disyre-t1w-compact, 2.2 MB. On lesions: tumour: best Dice 0.47 (n=3), multiple sclerosis: best Dice "
    "0.11 (n=2).",
    "stageLabel": "scoring – about 12 s left",
    "messageLabel": "There was not enough memory for this job. Try a smaller batch or cpu as the device, or close "
    "other programs.",
    "findingsLabel": "3 findings above z = 4.4: 24.6 ml, highest peak 11.8.",
    "compareLabel": "The reference has other voxels than the scan: the nearest one counts.",
    "exportLabel": "9 files written: scan_model-disyre-t1w-compact_anomaly.nii.gz, …",
    "torchLabel": "found; it computes on NVIDIA RTX A4000 (14.2 GB free)",
    "packagesLabel": "complete",
    "modelsLabel": "27 models, 36 MB; 3 of them imported. All files are as their checksums say.",
}
TABLES = {
    "modelsTable": (
        ("Model", "Contrast", "s", "Best Dice"),
        (
            ("disyre", "T1w", "~2 +", "tumour 0.47"),
            ("denoising autoencoder", "T1w", "~1 +", "tumour 0.30"),
            ("intensity norm", "T1w", "~1 +", "tumour 0.21"),
        ),
    ),
    "findingsTable": (
        ("#", "ml", "Peak", "Region", "Status", "Verdict"),
        (
            ("1", "17.90", "11.8", "right anterior middle", "TP", "accept"),
            ("2", "5.21", "6.4", "left posterior fossa", "FP", "reject"),
            ("3", "1.49", "4.9", "midline central superior", "FP", "unsure"),
        ),
    ),
    "comparisonTable": (
        ("Model", "Dice", "AP", "HD mm", "Hit", "False"),
        (
            ("disyre", "0.71", "0.79", "9", "1/1", "2"),
            ("denoising autoencoder", "0.48", "0.44", "21", "1/1", "6"),
        ),
    ),
}


def fill(panel: QtWidgets.QWidget) -> None:
    """Fill the panel with an example, long texts included."""
    for name, entries in EXAMPLE.items():
        widget(panel, name).clear()
        widget(panel, name).addItems(entries)
    for name, text in TEXTS.items():
        widget(panel, name).setText(text)
    for name, (titles, rows) in TABLES.items():
        table = widget(panel, name)
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(row):
                item = QtWidgets.QTableWidgetItem(text)
                if name == "modelsTable" and column == 0:
                    item.setCheckState(QtCore.Qt.Checked if number == 0 else QtCore.Qt.Unchecked)
                table.setItem(number, column, item)
        table.resizeColumnsToContents()
    widget(panel, "thresholdSlider").value = 4.38
    widget(panel, "opacitySlider").value = 0.7
    widget(panel, "progressBar").setValue(640)
    for name, text in (("firstOfferButton", "Try with a smaller batch"), ("secondOfferButton", "Try on the processor")):
        widget(panel, name).setText(text)
    for name in ("legendCheckBox", "filesCheckBox", "verdictsCheckBox"):
        widget(panel, name).setChecked(True)
    for button in panel.findChildren(QtWidgets.QAbstractButton):
        button.setEnabled(True)


def cut_texts(panel: QtWidgets.QWidget) -> list[str]:
    """Return the visible labels, buttons, check boxes and choices whose text does not fit into them; node selectors cut
    the names of nodes, which have any length.
    """
    cut = []
    for kind in (QtWidgets.QLabel, QtWidgets.QAbstractButton, QtWidgets.QComboBox):
        for one in panel.findChildren(kind):
            if not one.isVisible() or isinstance(one, qMRMLNodeComboBox) or isinstance(one.parent(), ctkPathLineEdit):
                continue
            wraps = isinstance(one, QtWidgets.QLabel) and one.wordWrap()
            wanted = one.minimumSizeHint().width()
            height = one.heightForWidth(one.width()) if wraps else one.minimumSizeHint().height()
            if (not wraps and one.width() < wanted) or one.height() < height:
                cut.append(f"{one.objectName()}: {one.width()} x {one.height()}, wants {wanted} x {height}")
    return cut


def main(words: list[str]) -> int:
    """Save the pictures of the panel."""
    parser = argparse.ArgumentParser(description="Save pictures of the panel of the Slicer module.")
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args(words).out
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    application.setStyle("Fusion")
    panel = load()
    fill(panel)
    panel.show()
    out.mkdir(parents=True, exist_ok=True)
    for name, steps in (("detect", ("scan", "detect")), ("review", ("review",)), ("compare", ("compare", "install"))):
        show_step(panel, steps)
        panel.grab().save(str(out / f"slicer-panel-{name}.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
