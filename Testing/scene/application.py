"""As much of the Slicer application as UADBench.py touches, so that its own file can be imported and driven
without Qt.

Everything here is a stand-in with the names and the behaviour that the module relies on; what Qt, the .ui
loader and the parameter node's connection to widgets really do is tested inside the application only.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
import typing
from types import SimpleNamespace
from unittest.mock import MagicMock

import slicer
import vtk


class Widget:
    """Any widget: attributes that can be set, and signals that can be fired."""

    def __init__(self, parameter: str | None = None) -> None:
        self.connected: dict[str, typing.Any] = {}
        self.parameter, self.blocked = parameter, False
        self.enabled, self.visible, self.text, self.toolTip, self.value = True, True, "", "", 0
        self.currentPath = ""

    def connect(self, signal, slot) -> None:
        self.connected[signal.partition("(")[0]] = slot

    def fire(self, signal, *values) -> None:
        self.connected[signal](*values)

    def blockSignals(self, blocked) -> bool:
        before, self.blocked = self.blocked, blocked
        return before

    def property(self, name):
        assert name == "SlicerParameterName"
        return self.parameter

    def addAttribute(self, *_values) -> None:
        pass


class ComboBox(Widget):
    """A combo box whose signals follow its index, unless they are blocked."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self.items: list[tuple[str, typing.Any]] = []
        self._index = -1

    def clear(self) -> None:
        self.items.clear()
        self._index = -1

    def addItem(self, label, data) -> None:
        self.items.append((label, data))

    def findData(self, data) -> int:
        return next((n for n, (_label, one) in enumerate(self.items) if one == data), -1)

    def choose(self, data) -> None:
        """Choose an entry as a user does."""
        assert self.findData(data) >= 0, (data, self.items)
        self.currentIndex = self.findData(data)

    @property
    def currentData(self):
        return self.items[self._index][1] if self._index >= 0 else None

    @property
    def currentIndex(self) -> int:
        return self._index

    @currentIndex.setter
    def currentIndex(self, index) -> None:
        self._index = index
        if not self.blocked and "currentIndexChanged" in self.connected:
            self.fire("currentIndexChanged", index)


class Table(Widget):
    """A table of texts."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self.items: dict[tuple[int, int], Item] = {}
        self.rowCount, self.row, self.hidden = 0, -1, set()

    @property
    def cells(self) -> dict[tuple[int, int], str]:
        return {place: item.text() for place, item in self.items.items()}

    def clear(self) -> None:
        self.items.clear()

    def setColumnCount(self, count) -> None:
        self.columnCount = count

    def setRowCount(self, count) -> None:
        self.rowCount = count
        self.row = min(self.row, count - 1)

    def setHorizontalHeaderLabels(self, labels) -> None:
        self.labels = labels

    def setItem(self, row, column, item) -> None:
        self.items[row, column] = item

    def item(self, row, column):
        return self.items.get((row, column))

    def tick(self, row, ticked=True) -> None:
        """Tick a row's first cell as a user does."""
        self.items[row, 0].setCheckState(Item.CHECKED if ticked else 0)
        self.fire("itemChanged", self.items[row, 0])

    def setRowHidden(self, row, hidden) -> None:
        (self.hidden.add if hidden else self.hidden.discard)(row)

    def resizeColumnsToContents(self) -> None:
        pass

    def currentRow(self) -> int:
        return self.row

    def setCurrentCell(self, row, column) -> None:
        before, self.row = self.row, row
        if "currentCellChanged" in self.connected and not self.blocked:
            self.fire("currentCellChanged", row, column, before, 0)


class Timer(Widget):
    """A timer that never fires by itself."""

    active = False

    def setInterval(self, _ms) -> None:
        pass

    setSingleShot = setInterval

    def start(self) -> None:
        self.active = True

    def stop(self) -> None:
        self.active = False

    def run_out(self) -> None:
        self.active = False
        self.fire("timeout")


class Item:
    """A cell of a table."""

    CHECKED = 2

    def __init__(self, text) -> None:
        self._text, self._state, self.tip = text, 0, ""

    def text(self) -> str:
        return self._text

    def setFlags(self, _flags) -> None:
        pass

    def setToolTip(self, text) -> None:
        self.tip = text

    def setCheckState(self, state) -> None:
        self._state = state

    def checkState(self) -> int:
        return self._state


class Settings:
    """Settings that live as long as the test."""

    values: dict[str, typing.Any] = {}

    def value(self, name, default=None):
        return self.values.get(name, default)

    def setValue(self, name, value) -> None:
        self.values[name] = value


def panel() -> SimpleNamespace:
    """Return the widgets of the .ui file by name."""
    from xml.etree import ElementTree

    from conftest import ROOT

    kinds = {"QComboBox": ComboBox, "QTableWidget": Table}
    tree, made = ElementTree.parse(ROOT / "UADBench" / "Resources" / "UI" / "UADBench.ui"), {}
    for one in tree.iter("widget"):
        bound = [p.findtext("string") for p in one.findall("property") if p.get("name") == "SlicerParameterName"]
        made[one.get("name")] = kinds.get(one.get("class"), Widget)(*bound)
    return SimpleNamespace(**made)


def wrapper(cls):
    """Stand in for parameterNodeWrapper: typed values with the declared defaults, kept on one object a
    scene.
    """
    hints = {name: hint for name, hint in cls.__annotations__.items()}
    assert not any(isinstance(hint, str) for hint in hints.values()), "the wrapper reads types, not text"
    for name, hint in hints.items():
        unions = typing.get_origin(hint) is typing.Union
        assert not unions or type(None) in typing.get_args(hint), f"{name}: a union of nodes needs None as its default"
    defaults = {name: getattr(cls, name, None) for name in hints}
    nodes: dict[typing.Any, typing.Any] = {}

    class Wrapped(cls):
        def __new__(cls_, node):
            if node not in nodes:
                made = nodes[node] = object.__new__(cls_)
                vars(made).update(defaults, observers=[], parameterNode=node, bound={})
            return nodes[node]

        def __setattr__(self, name, value):
            assert name in hints, name
            if vars(self)[name] != value:
                vars(self)[name] = value
                for observer in list(self.observers):
                    observer()

        def connectParametersToGui(self, mapping):
            assert set(mapping) <= set(hints)
            vars(self)["bound"] = mapping
            return 1

        def disconnectGui(self, tag):
            assert tag == 1, "what is not disconnected stays connected for ever"
            vars(self)["bound"] = {}

    Wrapped.__name__ = cls.__name__
    return Wrapped


class ModuleBase:
    """ScriptedLoadableModule and its widget."""

    def __init__(self, parent=None) -> None:
        self.parent = parent
        self.layout = MagicMock()

    def setup(self) -> None:
        pass

    def resourcePath(self, name) -> str:
        return name


class LogicBase:
    """ScriptedLoadableModuleLogic."""

    def __init__(self, parent=None) -> None:
        pass

    def getParameterNode(self):
        return slicer.mrmlScene.GetSingletonNode("UADBench", "vtkMRMLScriptedModuleNode") or self._make()

    @staticmethod
    def _make():
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
        node.SetSingletonTag("UADBench")
        return node


class Observing:
    """VTKObservationMixin, which here also observes a wrapped parameter node."""

    def __init__(self) -> None:
        self.observed: list[tuple] = []

    def addObserver(self, target, event, callback) -> None:
        if isinstance(target, vtk.vtkObject):
            self.observed.append((target, target.AddObserver(event, callback)))
        else:
            target.observers.append(callback)

    def removeObserver(self, target, _event, callback) -> None:
        if callback in getattr(target, "observers", []):
            target.observers.remove(callback)

    def removeObservers(self) -> None:
        for target, tag in self.observed:
            target.RemoveObserver(tag)


@contextlib.contextmanager
def reported(_message=None, **_options):
    """Stand in for tryWithErrorDisplay, which must not swallow a test's failure."""
    yield


def install(monkeypatch):
    """Put the stand-ins in place and return the imported module file."""
    import unittest

    flags = SimpleNamespace(ItemIsSelectable=1, ItemIsEnabled=2, ItemIsUserCheckable=16, Checked=2, Unchecked=0)
    qt = types.ModuleType("qt")
    qt.QTimer, qt.QSettings, qt.QTableWidgetItem, qt.Qt = Timer, Settings, Item, flags
    qt.QFileDialog, qt.QShortcut, qt.QKeySequence = MagicMock(), MagicMock(), str
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = str, lambda _context, text: text
    parameters = types.ModuleType("slicer.parameterNodeWrapper")
    parameters.parameterNodeWrapper = wrapper
    parameters.WithinRange = lambda low, high: ("range", low, high)
    base = types.ModuleType("slicer.ScriptedLoadableModule")
    base.ScriptedLoadableModule = base.ScriptedLoadableModuleWidget = ModuleBase
    base.ScriptedLoadableModuleLogic, base.ScriptedLoadableModuleTest = LogicBase, unittest.TestCase
    for module in (qt, types.ModuleType("ctk"), i18n, parameters, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    Settings.values = {}
    app, modules = MagicMock(), SimpleNamespace()
    app.layoutManager.return_value = None
    app.testingEnabled.return_value = False
    monkeypatch.setattr(slicer, "app", app, raising=False)
    monkeypatch.setattr(slicer, "modules", modules, raising=False)
    monkeypatch.setattr(slicer.util, "VTKObservationMixin", Observing)
    monkeypatch.setattr(slicer.util, "tryWithErrorDisplay", reported)
    monkeypatch.setattr(slicer.util, "loadUI", lambda _path: MagicMock())
    monkeypatch.setattr(slicer.util, "childWidgetVariables", lambda _widget: panel())
    monkeypatch.setattr(slicer.util, "errorDisplay", MagicMock())
    monkeypatch.setattr(slicer.util, "mainWindow", MagicMock(return_value=None))
    monkeypatch.setattr(slicer.util, "selectModule", MagicMock())
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", MagicMock(return_value=True))
    monkeypatch.delitem(sys.modules, "UADBench", raising=False)
    return importlib.import_module("UADBench")
