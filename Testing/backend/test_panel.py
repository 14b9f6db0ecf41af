"""The panel's .ui file in Qt's own loader: it loads, nothing is cut at the width that Slicer gives it, and each step is
in its place. The picture that is looked at is made by ``Testing/panel.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("PySide6.QtUiTools", reason="PySide6 is not installed")


@pytest.fixture(scope="module")
def panel():
    """The panel filled with an example, and the module that made it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QT_QPA_PLATFORM", "offscreen")
        spec = importlib.util.spec_from_file_location("panel", ROOT / "Testing" / "panel.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["panel"] = module
        spec.loader.exec_module(module)
        application = module.QtWidgets.QApplication.instance() or module.QtWidgets.QApplication([])
        application.setStyle("Fusion")
        made = module.load()
        module.fill(made)
        made.show()
        yield module, made
        made.close()


def test_steps_come_in_the_order_in_which_a_reader_works(panel):
    module, made = panel
    module.show_step(made, module.STEPS)
    tops = [module.widget(made, f"{step}CollapsibleButton").y() for step in module.STEPS]
    assert tops == sorted(tops) and len(set(tops)) == len(tops)


@pytest.mark.parametrize("step", ["scan", "detect", "review", "compare", "install"])
def test_no_text_is_cut_at_the_width_of_the_panel(panel, step):
    module, made = panel
    module.show_step(made, (step,))
    assert made.width() == module.WIDTH
    assert module.cut_texts(made) == []


def test_a_text_that_is_cut_is_noticed(panel):
    module, made = panel
    module.show_step(made, ("detect",))
    button = module.widget(made, "applyButton")
    before = button.text()
    button.setText("a text that is much too long for half of the width of the panel " * 2)
    module.QtWidgets.QApplication.processEvents()
    button.setFixedWidth(100)
    assert any("applyButton" in line for line in module.cut_texts(made))
    button.setMinimumWidth(0)
    button.setMaximumWidth(16777215)
    button.setText(before)


def test_fields_of_a_step_are_aligned(panel):
    module, made = panel
    module.show_step(made, ("review",))
    names = (
        "resultSelector",
        "thresholdSlider",
        "pointComboBox",
        "minimumMlSlider",
        "smoothingSlider",
        "opacitySlider",
    )
    lefts = {module.widget(made, name).x() for name in names}
    rights = {module.widget(made, name).geometry().right() for name in names}
    assert len(lefts) == 1 and len(rights) == 1
    assert max(rights) <= module.WIDTH


def test_every_widget_explains_itself(panel):
    module, made = panel
    kinds = (module.QtWidgets.QPushButton, module.QtWidgets.QCheckBox, module.ctkSliderWidget, module.qMRMLNodeComboBox)
    silent = [one.objectName() for kind in kinds for one in made.findChildren(kind) if not one.toolTip()]
    assert silent == []
