"""How an anomaly map looks: fixed scale, shared colours, transparent below the threshold, a legend, flicker.

All maps of all models share one scale and one colour table, so that two of them can be compared by eye; what is below
the threshold of the findings is not drawn. Nothing here changes a voxel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from .volumes import nodes_of_class

SCALE = (0.0, 10.0)
"""Range of the colours of every map, in calibrated z."""
UNIT = "z"
RECONSTRUCTION_WINDOW = (0.0, 1.1)
"""Prepared intensity, in which tissue lies between about 0.1 and 1."""
RESIDUAL_WINDOW = (-0.5, 0.5)

# Dark violet over magenta and orange to pale yellow: lightness rises all the way, so that the order of
# values is seen with any colour vision and in a grey print.
_ANCHORS = (
    (0.0, 21, 11, 55),
    (0.2, 87, 16, 110),
    (0.4, 160, 40, 99),
    (0.6, 218, 80, 58),
    (0.8, 250, 152, 30),
    (1.0, 250, 244, 170),
)


def palette() -> np.ndarray:
    """Return the colours of the scale from its lower to its upper end, shape (256, 3), 0 to 1."""
    positions, *channels = np.array(_ANCHORS).T
    steps = np.linspace(0.0, 1.0, 256)
    return np.column_stack([np.interp(steps, positions, channel) / 255.0 for channel in channels])


def colours(scene: Any) -> Any:
    """Return the colours that all maps of a scene share, made when they are not there.

    The colours are set again each time: a scene that was saved without its colour file comes back with an
    empty table.
    """
    found = nodes_of_class(scene, "vtkMRMLColorTableNode")
    found = [node for node in found if node.GetAttribute("UADBench.Role") == "colours"]
    node = found[0] if found else scene.AddNewNodeByClass("vtkMRMLColorTableNode", f"UADBench anomaly ({UNIT})")
    node.SetAttribute("UADBench.Role", "colours")
    node.SetAttribute("Category", "UADBench")
    node.SetTypeToUser()
    node.SetNumberOfColors(256)
    for index, (red, green, blue) in enumerate(palette()):
        value = SCALE[0] + index / 255.0 * (SCALE[1] - SCALE[0])
        node.SetColor(index, f"{value:.2f}", red, green, blue, 1.0)
    node.GetLookupTable().SetRange(*SCALE)
    return node


def show_map(map_node: Any, model: str, threshold: float) -> None:
    """Give a new map the fixed scale, the shared colours and a legend that names model and unit."""
    scene = map_node.GetScene()
    display = _windowed(map_node, SCALE)
    display.SetAndObserveColorNodeID(colours(scene).GetID())
    show_from(map_node, threshold)
    if scene.IsNodeClassRegistered("vtkMRMLColorLegendDisplayNode"):
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(map_node)
        legend.SetTitleText(f"{model}\nanomaly ({UNIT})")
        legend.SetVisibility(False)


def show_grey(node: Any, window: tuple[float, float]) -> None:
    """Show a volume in grey between two fixed values."""
    _windowed(node, window).SetDefaultColorMap()


def _windowed(node: Any, window: tuple[float, float]) -> Any:
    """Give a volume a display node with fixed limits, and return it."""
    display = node.GetScene().AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    # Automatic window and level must be off before the limits are set, or they are computed from the volume's
    # own values.
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(*window)
    display.AutoThresholdOff()
    node.SetAndObserveDisplayNodeID(display.GetID())
    return display


def show_from(map_node: Any, threshold: float) -> None:
    """Make a map transparent below a threshold; nothing else changes, so a slider can call it as it moves."""
    display = map_node.GetDisplayNode()
    if display is not None:
        display.SetThreshold(threshold, 1e30)
        display.ApplyThresholdOn()


def show_legend(map_node: Any, visible: bool) -> None:
    """Show or hide the colour legend of a map, and hide those of all other maps."""
    for legend in nodes_of_class(map_node.GetScene(), "vtkMRMLColorLegendDisplayNode"):
        owner = legend.GetDisplayableNode()
        if owner is not None and owner.GetAttribute("UADBench.Role") == "map":
            legend.SetVisibility(bool(visible and owner is map_node))


def views_of_maps(scene: Any) -> list[Any]:
    """Return the slice views (composite nodes) that have an anomaly map in the foreground."""
    found = []
    for composite in nodes_of_class(scene, "vtkMRMLSliceCompositeNode"):
        foreground = scene.GetNodeByID(composite.GetForegroundVolumeID() or "")
        if foreground is not None and foreground.GetAttribute("UADBench.Role") == "map":
            found.append(composite)
    return found


def set_opacity(scene: Any, opacity: float) -> None:
    """Set the opacity of the map in those views that show one."""
    for composite in views_of_maps(scene):
        composite.SetForegroundOpacity(opacity)


def flicker(scene: Any, opacity: float) -> bool:
    """Hide the maps where one is to be seen, show them at ``opacity`` where none is; return whether they are shown."""
    composites = views_of_maps(scene)
    shown = not any(composite.GetForegroundOpacity() > 0 for composite in composites)
    for composite in composites:
        composite.SetForegroundOpacity(opacity if shown else 0.0)
    return shown and bool(composites)
