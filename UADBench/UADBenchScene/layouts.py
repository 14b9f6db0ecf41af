"""Layouts for readers: scan, map and reference side by side; several models in a grid; findings in 3-D; the Dice curve.

A layout is described to the layout node and filled through the slice composite nodes that the application makes for it;
without a layout manager (no main window) there are none, and nothing happens. ``leave`` brings back what was there
before.
"""

from __future__ import annotations

from typing import Any

from . import comparison, results
from .volumes import nodes_of_class

FIRST_NUMBER = 7610
"""Of the layouts' numbers; Slicer's own are below 1000."""
VIEWS = 6
"""Most models that a grid shows."""

_SLICE = (
    '<item><view class="vtkMRMLSliceNode" singletontag="UADBench{n}">'
    '<property name="orientation" action="default">{orientation}</property>'
    '<property name="viewlabel" action="default">{label}</property>'
    '<property name="viewcolor" action="default">{colour}</property></view></item>'
)
_3D = (
    '<item><view class="vtkMRMLViewNode" singletontag="1"><property name="viewlabel" action="default">1</property>'
    "</view></item>"
)
_PLOT = (
    '<item><view class="vtkMRMLPlotViewNode" singletontag="PlotView1">'
    '<property name="viewlabel" action="default">P</property></view></item>'
)
_COLOURS = ("#F34A33", "#4A9EDB", "#2CA58D", "#EDD54C", "#B07AA1", "#8C8C8C")


def _slices(count: int, orientation: str = "Axial") -> str:
    """Return the items of a row of slice views."""
    return "".join(
        _SLICE.format(n=n + 1, orientation=orientation, label=f"U{n + 1}", colour=_COLOURS[n]) for n in range(count)
    )


def _grid(count: int) -> str:
    """Return a layout of slice views in rows of three at most."""
    items = [_SLICE.format(n=n + 1, orientation="Axial", label=f"U{n + 1}", colour=_COLOURS[n]) for n in range(count)]
    rows = [items[start : start + 3] for start in range(0, count, 3)]
    inner = "".join(f'<item><layout type="horizontal">{"".join(row)}</layout></item>' for row in rows)
    return f'<layout type="vertical">{inner}</layout>'


LAYOUTS = {
    "side by side": f'<layout type="horizontal">{_slices(3)}</layout>',
    "findings in 3-D": f'<layout type="horizontal">{_slices(1)}{_3D}</layout>',
    "curve": f'<layout type="horizontal">{_slices(1)}{_PLOT}</layout>',
    **{f"models {count}": _grid(count) for count in range(2, VIEWS + 1)},
}


def _node(scene: Any) -> Any:
    """Return the scene's layout node, or None."""
    return scene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def register(scene: Any) -> None:
    """Describe the layouts to the scene's layout node; may be called again."""
    layout = _node(scene)
    for number, description in enumerate(LAYOUTS.values(), start=FIRST_NUMBER):
        if layout is not None and not layout.IsLayoutDescription(number):
            layout.AddLayoutDescription(number, description)


def enter(scene: Any, name: str) -> int | None:
    """Change to a layout; returns the number of the one before, for ``leave``, or None where there are no layouts."""
    layout = _node(scene)
    if layout is None:
        return None
    register(scene)
    before = layout.GetViewArrangement()
    layout.SetViewArrangement(FIRST_NUMBER + list(LAYOUTS).index(name))
    return before


def leave(scene: Any, before: int | None) -> None:
    """Go back to an earlier layout, if one of ours is still shown; what the user chose since then stays."""
    layout = _node(scene)
    shown = layout.GetViewArrangement() if layout is not None else 0
    if before is not None and FIRST_NUMBER <= shown < FIRST_NUMBER + len(LAYOUTS):
        layout.SetViewArrangement(before)


def _views(scene: Any) -> dict[str, tuple[Any, Any]]:
    """Return slice node and composite node by layout name."""
    found: dict[str, list[Any]] = {}
    for place, kind in enumerate(("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode")):
        for node in nodes_of_class(scene, kind):
            found.setdefault(node.GetLayoutName(), [None, None])[place] = node
    return {name: (pair[0], pair[1]) for name, pair in found.items() if None not in pair}


def show_side_by_side(map_node: Any, reference: Any, opacity: float) -> list[Any]:
    """Fill the layout "side by side": the scan, the map over it, the reference (or the findings) over it."""
    volume, nodes = results.input_of(map_node), results.nodes_of(map_node)
    over = reference if reference is not None and not reference.IsA("vtkMRMLSegmentationNode") else None
    views = _fill(volume, [(None, None), (map_node, None), (None, over)], opacity)
    outlines = reference if reference is not None and over is None else nodes.segmentation
    if len(views) > 2:
        _only_in(nodes.segmentation, [views[1]] + ([views[2]] if reference is None else []))
        if outlines is reference:
            _only_in(reference, [views[2]])
    return views


def show_models(map_nodes: list[Any], opacity: float) -> list[Any]:
    """Fill a grid with one model a view, each with its own findings."""
    shown = map_nodes[:VIEWS]
    views = _fill(results.input_of(shown[0]), [(node, None) for node in shown], opacity)
    for map_node, view in zip(shown, views, strict=False):
        _only_in(results.nodes_of(map_node).segmentation, [view])
    return views


def show_3d(map_node: Any, opacity: float) -> list[Any]:
    """Fill the layout "findings in 3-D": surfaces of the findings beside a slice with the map."""
    views = _fill(results.input_of(map_node), [(map_node, None)], opacity)
    segmentation = results.nodes_of(map_node).segmentation
    if segmentation is not None:
        _only_in(segmentation, [])
        segmentation.CreateClosedSurfaceRepresentation()
        segmentation.GetDisplayNode().SetVisibility3D(True)
    return views


def show_curve(map_node: Any, opacity: float) -> list[Any]:
    """Fill the layout "curve": the chart of the scan beside a slice with the map."""
    scene = map_node.GetScene()
    chart = comparison.chart_of(results.input_of(map_node))
    for plot in nodes_of_class(scene, "vtkMRMLPlotViewNode") if chart is not None else ():
        plot.SetPlotChartNodeID(chart.GetID())
    return _fill(results.input_of(map_node), [(map_node, None)], opacity)


def release(scene: Any) -> None:
    """Let the segmentations that a layout kept to some views be seen in all again."""
    for node in nodes_of_class(scene, "vtkMRMLSegmentationNode"):
        if node.GetAttribute("UADBench.OnlyIn") and node.GetDisplayNode() is not None:
            node.GetDisplayNode().RemoveAllViewNodeIDs()
            node.RemoveAttribute("UADBench.OnlyIn")


def _only_in(segmentation: Any, views: list[Any]) -> None:
    """Show a segmentation in some slice views alone; in all with an empty list."""
    if segmentation is None or segmentation.GetDisplayNode() is None:
        return
    display = segmentation.GetDisplayNode()
    display.RemoveAllViewNodeIDs()
    for view in views:
        display.AddViewNodeID(view.GetID())
    segmentation.SetAttribute("UADBench.OnlyIn", "views" if views else None)


def _fill(volume: Any, layers: list[tuple[Any, Any]], opacity: float) -> list[Any]:
    """Put a scan with (foreground, label) layers into the views of our layouts, linked; returns their slice nodes."""
    shown = []
    views = _views(volume.GetScene())
    for number, (foreground, label) in enumerate(layers, start=1):
        if f"UADBench{number}" not in views:
            continue
        view, composite = views[f"UADBench{number}"]
        is_label = label is not None and label.IsA("vtkMRMLLabelMapVolumeNode")
        front = foreground if foreground is not None else (None if is_label else label)
        composite.SetBackgroundVolumeID(volume.GetID())
        composite.SetForegroundVolumeID(front.GetID() if front is not None else None)
        composite.SetForegroundOpacity(opacity if front is not None else 0.0)
        composite.SetLabelVolumeID(label.GetID() if is_label else None)
        composite.SetLinkedControl(True)
        composite.SetHotLinkedControl(True)
        shown.append(view)
    return shown
