"""A detection's result as nodes: the anomaly map, its findings as segments, and the findings table.

Every result lies on the lattice of its input and under the same parent transform, and makes new nodes.
Moving the threshold later changes the nodes of that result, except a segmentation that somebody has edited
since: that one is kept as it is and a new one is made beside it. All maps share one fixed colour scale, so
that two models can be compared by eye.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .volumes import SceneError, world_affine

SCALE = (0.0, 10.0)
"""Range of the colours of every map, in calibrated z."""
UNIT = "z"
SEGMENTS = 50
"""Findings that get a segment of their own; the others share one."""
OTHER_FINDINGS = "other findings"

INPUT, MAP, SEGMENTATION = "UADBenchInput", "UADBenchMap", "UADBenchSegmentation"
"""Node reference roles by which the nodes of a result know each other."""

TERMINOLOGY = (
    "Segmentation category and type - UADBench"
    "~SCT^49755003^Morphologically Altered Structure~SCT^52988006^Lesion~^^"
    "~Anatomic codes - DICOM master list~SCT^12738006^Brain~^^"
)

# name, kind, unit, title: the columns of the findings table, in the order of the command line's CSV.
COLUMNS = (
    ("index", int, "", "#"),
    ("volume_ml", float, "ml", "Volume (ml)"),
    ("peak_z", float, UNIT, "Peak (z)"),
    ("mean_z", float, UNIT, "Mean (z)"),
    ("centroid_r", float, "mm", "Centroid R"),
    ("centroid_a", float, "mm", "Centroid A"),
    ("centroid_s", float, "mm", "Centroid S"),
    ("peak_r", float, "mm", "Peak R"),
    ("peak_a", float, "mm", "Peak A"),
    ("peak_s", float, "mm", "Peak S"),
    ("region", str, "", "Region"),
    ("status", str, "", "Status"),
    ("overlap", float, "", "Overlap"),
)

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
# Cool colours, none of which is in the scale above: outlines lie on the map. With a reference the findings
# are green (true) or blue (false), which stay apart with any colour vision; without one all are blue.
_FOUND, _TRUE, _FALSE, _REST = (0.34, 0.71, 0.91), (0.0, 0.75, 0.5), (0.34, 0.71, 0.91), (0.75, 0.75, 0.75)


@dataclass
class Result:
    """What a detection found with one model.

    Attributes
    ----------
    model : str
        Id of the model.
    map : numpy.ndarray or None
        Shape (I, J, K), float32, calibrated z; 0 outside the brain. None in an answer to another threshold.
    mask : numpy.ndarray
        Shape (I, J, K), uint8: 1 in the findings.
    affine : numpy.ndarray
        Shape (4, 4): voxel index to the RAS millimetres in which the findings' places are given.
    threshold : float
        In z.
    operating_point, origin : str
        Name of the operating point, and where its threshold came from.
    findings : list of dict
        Rows with the columns of the findings table, highest peak first.
    summary : dict
        The JSON document that the command line writes beside a map.
    """

    model: str
    map: np.ndarray | None
    mask: np.ndarray
    affine: np.ndarray
    threshold: float
    operating_point: str = ""
    origin: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class ResultNodes:
    """The nodes of one result."""

    map: Any
    segmentation: Any
    findings: Any


# ------------------------------------------------------------------------------------------------- a result


def add_result(volume: Any, result: Result) -> ResultNodes:
    """Add the nodes of one result to the scene of ``volume``.

    Parameters
    ----------
    volume : vtkMRMLScalarVolumeNode
        The input of the detection.
    result : Result

    Returns
    -------
    ResultNodes
        Three new nodes.

    Raises
    ------
    SceneError
        SCENE_CLOSED when the input has left its scene, LATTICE_CHANGED when its voxels are no longer those
        that were computed on.
    """
    if volume is None or volume.GetScene() is None:
        raise SceneError("SCENE_CLOSED", "the input volume is no longer in the scene", "load it and detect again")
    if result.map is None or volume.GetImageData() is None or volume.GetImageData().GetDimensions() != result.map.shape:
        raise SceneError(
            "LATTICE_CHANGED",
            f"the voxels of '{volume.GetName()}' changed meanwhile",
            "detect again on the volume as it is",
        )
    scene = volume.GetScene()
    scene.StartState(scene.BatchProcessState)
    try:
        map_node = _add_map(volume, result)
        segmentation = _add_segmentation(volume, map_node, result)
        table = _add_table(volume, map_node, segmentation, result)
    finally:
        scene.EndState(scene.BatchProcessState)
    for node in (map_node, segmentation, table):
        _place_beside(volume, node)
    return ResultNodes(map_node, segmentation, table)


def change_threshold(map_node: Any, result: Result) -> ResultNodes:
    """Show a result at another threshold.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
        Map node that ``add_result`` made.
    result : Result
        Mask, findings and threshold; its map is not looked at.

    Returns
    -------
    ResultNodes
        The map, its segmentation (a new one if the old one has been edited or removed) and its table.

    Raises
    ------
    SceneError
        SCENE_CLOSED or LATTICE_CHANGED, as ``add_result``.
    """
    volume = input_of(map_node)
    if volume is None:
        raise SceneError("SCENE_CLOSED", "the map's input volume is no longer in the scene", "load it and detect again")
    if map_node.GetImageData().GetDimensions() != result.mask.shape:
        raise SceneError("LATTICE_CHANGED", f"the voxels of '{map_node.GetName()}' changed meanwhile", "detect again")
    nodes = nodes_of(map_node)
    segmentation, table = nodes.segmentation, nodes.findings
    if segmentation is None or is_edited(segmentation):
        segmentation = _add_segmentation(volume, map_node, result)
        _place_beside(volume, segmentation)
    else:
        _fill_segmentation(segmentation, volume, result)
    if table is None:
        table = _add_table(volume, map_node, segmentation, result)
        _place_beside(volume, table)
    else:
        table.SetNodeReferenceID(SEGMENTATION, segmentation.GetID())
        _fill_table(table, result)
    show_from(map_node, result.threshold)
    for node in (map_node, segmentation, table):
        _describe(node, result)
    return ResultNodes(map_node, segmentation, table)


def input_of(node: Any) -> Any:
    """Return the input volume of a result's node, or None when it has left the scene."""
    return node.GetNodeReference(INPUT)


def nodes_of(map_node: Any) -> ResultNodes:
    """Return the nodes of the result that a map belongs to; those that were removed are None."""
    table = _referring(map_node, "vtkMRMLTableNode")
    segmentation = table.GetNodeReference(SEGMENTATION) if table is not None else None
    return ResultNodes(map_node, segmentation or _referring(map_node, "vtkMRMLSegmentationNode"), table)


def is_map(node: Any) -> bool:
    """Return whether a node is an anomaly map that this module made."""
    return node is not None and node.GetAttribute("UADBench.Role") == "map"


def _referring(map_node: Any, kind: str) -> Any:
    """Return the newest node of a class that refers to a map, or None."""
    nodes = map_node.GetScene().GetNodesByClass(kind)
    found = [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
    found = [node for node in found if node.GetNodeReferenceID(MAP) == map_node.GetID()]
    return found[-1] if found else None


def _describe(node: Any, result: Result) -> None:
    """Write what a node came from into its attributes."""
    values = {
        "Model": result.model,
        "Threshold": f"{result.threshold:g}",
        "OperatingPoint": result.operating_point,
        "Origin": result.origin,
        "Unit": UNIT,
    }
    for key, value in values.items():
        node.SetAttribute(f"UADBench.{key}", value)


def _new(volume: Any, kind: str, role: str, what: str, result: Result) -> Any:
    """Add a node of a result, named after the volume and the model, and referring to the volume."""
    node = volume.GetScene().AddNewNodeByClass(kind, f"{volume.GetName()} {what} ({result.model})")
    node.SetAttribute("UADBench.Role", role)
    node.SetNodeReferenceID(INPUT, volume.GetID())
    _describe(node, result)
    return node


def _place_beside(volume: Any, node: Any) -> None:
    """Put a node under the same study as the input, where the subject hierarchy knows both."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    if hierarchy is None:
        return
    of_volume, of_node = hierarchy.GetItemByDataNode(volume), hierarchy.GetItemByDataNode(node)
    if of_volume and of_node:
        hierarchy.SetItemParent(of_node, hierarchy.GetItemParent(of_volume))


# ------------------------------------------------------------------------------------------------------ map


def _add_map(volume: Any, result: Result) -> Any:
    """Add the map on the lattice of the volume."""
    node = _new(volume, "vtkMRMLScalarVolumeNode", "map", "anomaly map", result)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetAndObserveImageData(_image(result.map, np.float32))
    node.SetAttribute("UADBench.Summary", json.dumps(result.summary, allow_nan=False, default=str))
    _show_map(node, result)
    return node


def _show_map(node: Any, result: Result) -> None:
    """Give a map the fixed scale, the shared colours and a legend."""
    scene = node.GetScene()
    display = scene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    # Automatic window and level must be off before the limits are set, or they are computed from this map's
    # own values.
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(*SCALE)
    display.AutoThresholdOff()
    display.SetAndObserveColorNodeID(colours(scene).GetID())
    node.SetAndObserveDisplayNodeID(display.GetID())
    show_from(node, result.threshold)
    if scene.IsNodeClassRegistered("vtkMRMLColorLegendDisplayNode"):
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
        legend.SetTitleText(f"{result.model}\nanomaly ({UNIT})")
        legend.SetVisibility(False)


def show_from(map_node: Any, threshold: float) -> None:
    """Make a map transparent below a threshold; nothing else changes, so a slider can call it as it moves."""
    display = map_node.GetDisplayNode()
    if display is not None:
        display.SetThreshold(threshold, 1e30)
        display.ApplyThresholdOn()


def colours(scene: Any) -> Any:
    """Return the colours that all maps of a scene share, made when they are not there.

    The colours are set again each time: a scene that was saved without its colour file comes back with an
    empty table.
    """
    nodes = scene.GetNodesByClass("vtkMRMLColorTableNode")
    found = [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
    found = [node for node in found if node.GetAttribute("UADBench.Role") == "colours"]
    node = found[0] if found else scene.AddNewNodeByClass("vtkMRMLColorTableNode", f"UADBench anomaly ({UNIT})")
    node.SetAttribute("UADBench.Role", "colours")
    node.SetAttribute("Category", "UADBench")
    positions, *channels = np.array(_ANCHORS).T
    steps = np.linspace(0.0, 1.0, 256)
    red, green, blue = (np.interp(steps, positions, channel) / 255.0 for channel in channels)
    node.SetTypeToUser()
    node.SetNumberOfColors(steps.size)
    for index, step in enumerate(steps):
        value = SCALE[0] + step * (SCALE[1] - SCALE[0])
        node.SetColor(index, f"{value:.2f}", red[index], green[index], blue[index], 1.0)
    node.GetLookupTable().SetRange(*SCALE)
    return node


def _image(array: np.ndarray, kind: type) -> vtk.vtkImageData:
    """Return a copy of an (i, j, k) array as an image with unit spacing; geometry lives in the nodes."""
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape)
    flat = np.ascontiguousarray(array.transpose(2, 1, 0), dtype=kind).ravel()
    scalars = numpy_to_vtk(flat, deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


# --------------------------------------------------------------------------------------------- segmentation


def _add_segmentation(volume: Any, map_node: Any, result: Result) -> Any:
    """Add the segmentation, shown as outlines so that the map stays visible beneath."""
    node = _new(volume, "vtkMRMLSegmentationNode", "segmentation", "anomalies", result)
    node.SetNodeReferenceID(MAP, map_node.GetID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(2)
    _fill_segmentation(node, volume, result)
    return node


def _fill_segmentation(node: Any, volume: Any, result: Result) -> None:
    """Replace a segmentation's contents by the findings of ``result``."""
    was_modified = node.StartModify()
    segmentation = node.GetSegmentation()
    segmentation.RemoveAllSegments()
    # In this order: the reference geometry is taken relative to the node's own parent transform.
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    labels, names = _label_findings(result)
    shared = slicer.vtkOrientedImageData()
    shared.DeepCopy(_image(labels, np.uint8))
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    shared.SetGeometryFromImageToWorldMatrix(matrix)
    for value, (name, row) in enumerate(names, start=1):
        segment = _segment(name, row, result)
        # One label map for all segments: they do not overlap, and fifty of their own would be fifty volumes
        # in a file.
        segment.AddRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName(), shared)
        segment.SetLabelValue(value)
        segmentation.AddSegment(segment, f"finding_{value}")
    node.SetAttribute("UADBench.Fingerprint", _fingerprint(node))
    node.EndModify(was_modified)


def _segment(name: str, row: dict[str, Any] | None, result: Result) -> Any:
    """Return a segment without voxels; ``row`` is its finding, or None for those that share a segment."""
    segment = slicer.vtkSegment()
    segment.SetName(name)
    status = {"TP": _TRUE, "FP": _FALSE}.get(str((row or {}).get("status") or ""), _FOUND)
    segment.SetColor(*(_REST if row is None else status))
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), TERMINOLOGY)
    segment.SetTag("UADBench.Model", result.model)
    segment.SetTag("UADBench.Threshold", f"{result.threshold:g}")
    segment.SetTag("UADBench.OperatingPoint", result.operating_point)
    if row is not None:
        segment.SetTag("UADBench.PeakZ", f"{row['peak_z']:g}")
        segment.SetTag("UADBench.VolumeMl", f"{row['volume_ml']:g}")
    return segment


def _label_findings(result: Result) -> tuple[np.ndarray, list[tuple[str, dict[str, Any] | None]]]:
    """Split the mask into its findings.

    Returns
    -------
    labels : numpy.ndarray
        Shape (I, J, K), uint8; 0 outside.
    names : list
        Name and table row of labels 1, 2, ...; the row of the last is None when it holds several findings.
    """
    components = _components(result.mask)
    to_index = np.linalg.inv(result.affine)
    lookup = np.zeros(int(components.max()) + 1, dtype=np.uint8)
    names: list[tuple[str, dict[str, Any] | None]] = []
    for row in result.findings[:SEGMENTS]:
        peak = to_index @ np.array([row["peak_r"], row["peak_a"], row["peak_s"], 1.0])
        index = tuple(np.clip(np.rint(peak[:3]).astype(int), 0, np.array(components.shape) - 1))
        component = int(components[index])
        if component and not lookup[component]:
            names.append((f"finding {row['index']}, peak {row['peak_z']:.1f} {UNIT}", row))
            lookup[component] = len(names)
    rest = (lookup == 0) & (np.arange(lookup.size) > 0)
    if rest.any():
        names.append((f"{OTHER_FINDINGS} ({int(rest.sum())})", None))
        lookup[rest] = len(names)
    return lookup[components], names


def _components(mask: np.ndarray) -> np.ndarray:
    """Return the 26-connected components of a mask as labels 1, 2, ..., the rule by which the backend makes
    findings.
    """
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    islands = _island_filter()
    islands.SetInputData(_image(mask != 0, np.uint8))
    islands.SetFullyConnected(True)
    islands.SetMinimumSize(0)
    islands.Update()
    output = islands.GetOutput()
    flat = vtk_to_numpy(output.GetPointData().GetScalars())
    return flat.reshape(output.GetDimensions()[::-1]).transpose(2, 1, 0)


def _island_filter() -> Any:
    """Return Slicer's connected component filter, which the application and slicer-core keep in different
    places.
    """
    try:
        from vtkITK import vtkITKIslandMath
    except ImportError:
        from slicer import vtkITKIslandMath
    return vtkITKIslandMath()


def is_edited(segmentation_node: Any) -> bool:
    """Return whether a segmentation differs from what was written into it: a segment added, removed,
    renamed or painted.
    """
    return segmentation_node.GetAttribute("UADBench.Fingerprint") != _fingerprint(segmentation_node)


def _fingerprint(node: Any) -> str:
    """Return a checksum over names and voxels of all segments, whatever extent and values their label maps
    have.
    """
    segmentation = node.GetSegmentation()
    name_of = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    occupied: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
    checksum = 0
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        checksum = zlib.crc32(segment.GetName().encode("utf-8"), checksum)
        image = segment.GetRepresentation(name_of)
        if image is None or image.GetPointData().GetScalars() is None:
            continue
        if image not in occupied:
            occupied[image] = _occupied(image)
        places, values = occupied[image]
        checksum = zlib.crc32(places[values == segment.GetLabelValue()].tobytes(), checksum)
    return f"{checksum:08x}"


def _occupied(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the (k, j, i) places, shape (N, 3), int32, and the values of the voxels that are not 0."""
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    places = np.argwhere(voxels)
    return (places + np.array(image.GetExtent()[4::-2])).astype(np.int32), voxels[tuple(places.T)]


# ------------------------------------------------------------------------------------------- findings table


def _add_table(volume: Any, map_node: Any, segmentation: Any, result: Result) -> Any:
    """Add the findings table."""
    node = _new(volume, "vtkMRMLTableNode", "findings", "findings", result)
    node.SetNodeReferenceID(MAP, map_node.GetID())
    node.SetNodeReferenceID(SEGMENTATION, segmentation.GetID())
    node.SetUseColumnTitleAsColumnHeader(True)
    _fill_table(node, result)
    return node


def _fill_table(node: Any, result: Result) -> None:
    """Replace a table's rows by the findings of ``result``. A missing number is not a number, never 0."""
    was_modified = node.StartModify()
    node.SetLocked(False)
    node.RemoveAllColumns()
    node.SetAttribute("UADBench.ToWorld", json.dumps(_parent_matrix(input_of(node), result.affine).tolist()))
    for name, kind, unit, title in COLUMNS:
        column = {int: vtk.vtkIntArray, float: vtk.vtkDoubleArray, str: vtk.vtkStringArray}[kind]()
        column.SetName(name)
        for row in result.findings:
            value = row.get(name)
            column.InsertNextValue(kind(value) if value is not None else {int: 0, float: float("nan"), str: ""}[kind])
        node.AddColumn(column)
        node.SetColumnTitle(name, title)
        if unit:
            node.SetColumnUnitLabel(name, unit)
    node.SetLocked(True)
    node.EndModify(was_modified)


def place_of_finding(table_node: Any, row: int) -> np.ndarray:
    """Return where the peak of a finding is now, in world RAS millimetres.

    The table says where it was when it was found; a transform that was moved since takes the finding along
    with its volume.

    Raises
    ------
    SceneError
        NO_SUCH_FINDING.
    """
    rows = rows_of(table_node)
    if not 0 <= row < len(rows):
        raise SceneError("NO_SUCH_FINDING", f"the table has no row {row}", "select a row of the findings table")
    then = [rows[row][f"peak_{axis}"] for axis in "ras"]
    volume = input_of(table_node)
    if volume is None:
        return np.array(then)
    to_world_then = np.array(json.loads(table_node.GetAttribute("UADBench.ToWorld")))
    to_world_now = _parent_matrix(volume, world_affine(volume))
    return (to_world_now @ np.linalg.inv(to_world_then) @ np.array([*then, 1.0]))[:3]


def _parent_matrix(volume: Any, affine: np.ndarray) -> np.ndarray:
    """Return the parent transform, shape (4, 4), with which a volume's voxels lie where ``affine`` puts them.

    Kept in place of the affine itself, since saving and reading a left-handed volume reverses its third axis.
    """
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    to_ras = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    return np.asarray(affine, dtype=float) @ np.linalg.inv(to_ras)


def rows_of(table_node: Any) -> list[dict[str, Any]]:
    """Return the rows of a findings table, also when reading a saved one has turned a number into text."""
    table = table_node.GetTable()
    columns = [(name, kind, table.GetColumnByName(name)) for name, kind, *_rest in COLUMNS]
    number_of_rows = range(table.GetNumberOfRows())
    return [{name: kind(column.GetValue(row)) for name, kind, column in columns} for row in number_of_rows]
