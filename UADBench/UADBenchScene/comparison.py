"""A result beside a reference: where they agree, the figures of all models in one table, and Dice by threshold.

The figures are computed by the worker; here they become nodes. Agreement is a segmentation in three colours that stay
apart with any colour vision: found (green), false (blue), missed (orange). There is one table and one chart for each
scan; comparing again replaces a model's row and curve.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from . import results, segments
from .texts import _
from .volumes import nodes_of_class

# key in the worker's metrics, kind, title
COLUMNS = (
    ("model", str, _("Model")),
    ("reference", str, _("Reference")),
    ("threshold", float, _("Threshold (z)")),
    ("dice", float, _("Dice")),
    ("average_precision", float, _("Average precision")),
    ("best_dice", float, _("Best Dice of the map")),
    ("hausdorff_mm", float, _("Hausdorff distance (mm)")),
    ("percentile", float, _("Its percentile")),
    ("lesions", int, _("Lesions")),
    ("lesions_hit", int, _("Lesions hit")),
    ("lesions_missed", int, _("Lesions missed")),
    ("findings_true", int, _("True findings")),
    ("findings_false", int, _("False findings")),
    ("lesion_recall", float, _("Lesion recall")),
    ("lesion_precision", float, _("Finding precision")),
    ("reference_ml", float, _("Reference (ml)")),
    ("mask_ml", float, _("Findings (ml)")),
    ("map_id", str, _("Map")),
)
AGREEMENT = (
    (_("found (TP)"), segments.TRUE),
    (_("false (FP)"), segments.FALSE),
    (_("missed (FN)"), segments.MISSED),
)
# The Okabe-Ito colours, which stay apart with any colour vision, then again with dashes.
_CURVES = (
    (0.0, 0.45, 0.70),
    (0.84, 0.37, 0.0),
    (0.0, 0.62, 0.45),
    (0.80, 0.47, 0.65),
    (0.34, 0.71, 0.91),
    (0.0, 0.0, 0.0),
)


def agreement_labels(mask: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return 1 where both are, 2 in the mask alone, 3 in the reference alone; shape (I, J, K), uint8."""
    found, there = mask != 0, reference != 0
    return (found & there).astype(np.uint8) + np.uint8(2) * (found & ~there) + np.uint8(3) * (~found & there)


def show_agreement(map_node: Any, mask: np.ndarray, reference: np.ndarray) -> Any:
    """Show where a result and a reference agree; an agreement that was edited is left alone and a new one made.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
        Map of the result.
    mask, reference : numpy.ndarray
        Shape (I, J, K), on the scan's voxels.

    Returns
    -------
    vtkMRMLSegmentationNode
    """
    volume = results.input_of(map_node)
    node = _referring(map_node, "vtkMRMLSegmentationNode", "agreement")
    if node is None or segments.is_edited(node):
        model = map_node.GetAttribute("UADBench.Model")
        name = f"{volume.GetName()} agreement ({model})"
        node = results.new_node(volume, "vtkMRMLSegmentationNode", "agreement", name)
        node.SetNodeReferenceID(results.MAP, map_node.GetID())
        segments.show_outlines(node)
        node.GetDisplayNode().SetVisibility2DFill(True)
        node.GetDisplayNode().SetOpacity2DFill(0.4)
    entries = [segments.Segment(name, colour) for name, colour in AGREEMENT]
    segments.fill(node, volume, agreement_labels(mask, reference), entries)
    return node


def hide_agreements(volume: Any) -> None:
    """Hide what shows agreement for a volume."""
    for node in _own(volume, "vtkMRMLSegmentationNode", "agreement"):
        node.GetDisplayNode().SetVisibility(False)


# ---------------------------------------------------------------------------------------------------- table


def add_to_table(map_node: Any, reference_name: str, metrics: dict[str, Any]) -> Any:
    """Write a model's figures into the comparison table of its scan, and return the table.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
    reference_name : str
        How the reference is called.
    metrics : dict
        From the worker; None is a figure that is not defined.
    """
    volume = results.input_of(map_node)
    own = {
        "model": map_node.GetAttribute("UADBench.Model"),
        "reference": reference_name,
        "threshold": float(map_node.GetAttribute("UADBench.Threshold")),
        "map_id": map_node.GetID(),
    }
    table = table_of(volume) or _new_table(volume)
    rows = [row for row in rows_of(table) if row["map_id"] != map_node.GetID()]
    _fill(table, [*rows, metrics | own])
    return table


def table_of(volume: Any) -> Any:
    """Return the comparison table of a scan, or None."""
    return next(iter(_own(volume, "vtkMRMLTableNode", "comparison")), None)


def rows_of(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a comparison table, also when reading a saved one has turned a number into text."""
    columns = [(key, kind, table.GetTable().GetColumnByName(key)) for key, kind, _title in COLUMNS]
    rows = range(table.GetTable().GetNumberOfRows())
    return [{key: kind(column.GetValue(row)) for key, kind, column in columns} for row in rows]


def _new_table(volume: Any) -> Any:
    """Add an empty comparison table."""
    table = results.new_node(volume, "vtkMRMLTableNode", "comparison", f"{volume.GetName()} comparison")
    _fill(table, [])
    return table


def _fill(table: Any, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of a comparison table; what is not defined is not a number, and -1 where it counts."""
    was_modified = table.StartModify()
    table.SetLocked(False)
    table.RemoveAllColumns()
    table.SetUseColumnTitleAsColumnHeader(True)
    for key, kind, title in COLUMNS:
        column = {int: vtk.vtkIntArray, float: vtk.vtkDoubleArray, str: vtk.vtkStringArray}[kind]()
        column.SetName(key)
        for row in rows:
            value = row.get(key)
            column.InsertNextValue(kind(value) if value is not None else {int: -1, float: math.nan, str: ""}[kind])
        table.AddColumn(column)
        table.SetColumnTitle(key, title)
    table.SetLocked(True)
    table.EndModify(was_modified)


# ---------------------------------------------------------------------------------------------------- curve


def add_curve(map_node: Any, thresholds: list[float], dice: list[float | None]) -> Any:
    """Draw Dice by threshold of a model into the chart of its scan, and return the chart.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
    thresholds : list of float
        In z.
    dice : list of float or None
        At each threshold.

    Returns
    -------
    vtkMRMLPlotChartNode
    """
    volume, model = results.input_of(map_node), map_node.GetAttribute("UADBench.Model")
    chart = chart_of(volume) or _new_chart(volume)
    number = chart.GetNumberOfPlotSeriesNodes()
    series = _referring(map_node, "vtkMRMLPlotSeriesNode", "curve")
    if series is None:
        series = results.new_node(volume, "vtkMRMLPlotSeriesNode", "curve", model)
        series.SetNodeReferenceID(results.MAP, map_node.GetID())
        series.SetPlotType(series.PlotTypeScatter)
        series.SetMarkerStyle(series.MarkerStyleNone)
        series.SetLineStyle(series.LineStyleSolid if number < len(_CURVES) else series.LineStyleDash)
        series.SetLineWidth(2)
        series.SetColor(*_CURVES[number % len(_CURVES)])
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    table = series.GetTableNode()
    if table is None:
        table = results.new_node(volume, "vtkMRMLTableNode", "curve values", f"{model} Dice by threshold")
        series.SetAndObserveTableNodeID(table.GetID())
    table.RemoveAllColumns()
    for name, values in (("threshold", thresholds), ("dice", dice)):
        column = numpy_to_vtk(np.array([math.nan if v is None else v for v in values], dtype=np.float64), deep=True)
        column.SetName(name)
        table.AddColumn(column)
    series.SetXColumnName("threshold")
    series.SetYColumnName("dice")
    return chart


def chart_of(volume: Any) -> Any:
    """Return the chart of a scan, or None."""
    return next(iter(_own(volume, "vtkMRMLPlotChartNode", "chart")), None)


def _new_chart(volume: Any) -> Any:
    """Add a chart without curves."""
    chart = results.new_node(volume, "vtkMRMLPlotChartNode", "chart", f"{volume.GetName()} Dice by threshold")
    chart.SetTitle(_("Dice by threshold"))
    chart.SetXAxisTitle(_("threshold (z)"))
    chart.SetYAxisTitle(_("Dice of the bare map"))
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0.0, 1.0)
    return chart


def _own(volume: Any, kind: str, role: str) -> list[Any]:
    """Return the nodes of a class and role that belong to a scan."""
    found = nodes_of_class(volume.GetScene(), kind)
    found = [node for node in found if node.GetAttribute("UADBench.Role") == role]
    return [node for node in found if node.GetNodeReferenceID(results.INPUT) == volume.GetID()]


def _referring(map_node: Any, kind: str, role: str) -> Any:
    """Return the newest node of a class and role that refers to a map, or None."""
    found = [n for n in _own(results.input_of(map_node), kind, role)]
    found = [n for n in found if n.GetNodeReferenceID(results.MAP) == map_node.GetID()]
    return found[-1] if found else None
