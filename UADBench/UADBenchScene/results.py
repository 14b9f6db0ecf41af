"""A detection's result as nodes that know each other: map, segmentation, findings, and what else the method gave.

Every result lies on the lattice of its input and under the same parent transform, and makes new nodes. Moving the
threshold later changes the nodes of that result, except those that somebody has edited since: they are kept as they
are and new ones are made beside them. How a map looks is in ``display``, what is in the segmentation in ``segments``,
what is in the table in ``findings``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer

from . import display, findings, segments
from .texts import _
from .volumes import SceneError, ijk_to_ras, image_of, matrix_of, nodes_of_class, read_mask, voxels_of, world_affine

OTHER_FINDINGS = "other findings"

INPUT, MAP, SEGMENTATION = "UADBenchInput", "UADBenchMap", "UADBenchSegmentation"
"""Node reference roles by which the nodes of a result know each other."""


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
    reconstruction, residual : numpy.ndarray or None
        Shape (I, J, K), float32: the pseudo-healthy scan, and the scan minus it.
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
    reconstruction: np.ndarray | None = None
    residual: np.ndarray | None = None


@dataclass
class ResultNodes:
    """The nodes of one result; those that were removed from the scene, or never were, are None."""

    map: Any
    segmentation: Any
    findings: Any
    reconstruction: Any = None
    residual: Any = None


# ------------------------------------------------------------------------------------------------- a result


def add_result(volume: Any, result: Result, one_segment: bool = False) -> ResultNodes:
    """Add the nodes of one result to the scene of ``volume``.

    Parameters
    ----------
    volume : vtkMRMLScalarVolumeNode
        The input of the detection.
    result : Result
    one_segment : bool
        All findings in one segment instead of one each.

    Returns
    -------
    ResultNodes
        New nodes.

    Raises
    ------
    SceneError
        SCENE_CLOSED when the input has left its scene, LATTICE_CHANGED when its voxels are no longer those
        that were computed on.
    """
    if volume is None or volume.GetScene() is None:
        raise SceneError("SCENE_CLOSED", _("the input volume is no longer in the scene"), _("load it and detect again"))
    if result.map is None or volume.GetImageData() is None or volume.GetImageData().GetDimensions() != result.map.shape:
        raise SceneError(
            "LATTICE_CHANGED",
            _("the voxels of '{name}' changed meanwhile").format(name=volume.GetName()),
            _("detect again on the volume as it is"),
        )
    scene = volume.GetScene()
    scene.StartState(scene.BatchProcessState)
    try:
        map_node = _add_volume(volume, result, result.map, "map", "anomaly map")
        map_node.SetAttribute("UADBench.Summary", json.dumps(result.summary, allow_nan=False, default=str))
        map_node.SetAttribute("UADBench.OneSegment", "true" if one_segment else "false")
        display.show_map(map_node, result.model, result.threshold)
        segmentation = _add_segmentation(volume, map_node, result)
        table = _add_table(volume, map_node, segmentation, result)
        extra = _add_reconstruction(volume, map_node, result)
    finally:
        scene.EndState(scene.BatchProcessState)
    nodes = ResultNodes(map_node, segmentation, table, *extra)
    for node in vars(nodes).values():
        _place_beside(volume, node)
    return nodes


def change_threshold(map_node: Any, result: Result, history: segments.History | None = None) -> ResultNodes:
    """Show a result at another threshold, or with other findings.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
        Map node that ``add_result`` made.
    result : Result
        Mask, findings and threshold; its map is not looked at.
    history : segments.History, optional
        Takes the state before the change.

    Returns
    -------
    ResultNodes
        The map, its segmentation and its table (new ones if the old ones have been edited or removed).

    Raises
    ------
    SceneError
        SCENE_CLOSED or LATTICE_CHANGED, as ``add_result``.
    """
    volume = input_of(map_node)
    if volume is None:
        raise SceneError(
            "SCENE_CLOSED", _("the map's input volume is no longer in the scene"), _("load it and detect again")
        )
    if map_node.GetImageData().GetDimensions() != result.mask.shape:
        raise SceneError(
            "LATTICE_CHANGED",
            _("the voxels of '{name}' changed meanwhile").format(name=map_node.GetName()),
            _("detect again"),
        )
    nodes = nodes_of(map_node)
    table = nodes.findings if nodes.findings is not None and not findings.is_edited(nodes.findings) else None
    segmentation = nodes.segmentation
    if segmentation is None or segments.is_edited(segmentation):
        segmentation = _add_segmentation(volume, map_node, result)
        _place_beside(volume, segmentation)
    else:
        if history is not None:
            history.save(segmentation, _state(map_node, table))
        _fill_segmentation(segmentation, volume, map_node, result)
        if history is not None:
            history.touched(segmentation, segmentation.GetAttribute("UADBench.Fingerprint"))
    if table is None:
        table = _add_table(volume, map_node, segmentation, result)
        _place_beside(volume, table)
    else:
        table.SetNodeReferenceID(SEGMENTATION, segmentation.GetID())
        findings.fill(table, volume, result.findings, result.affine)
    display.show_from(map_node, result.threshold)
    for node in (map_node, segmentation, table):
        _describe(node, result)
    return nodes_of(map_node)


def undo(map_node: Any, history: segments.History) -> bool:
    """Bring a result back to what it was before its threshold was last moved; return whether there was such a state."""
    nodes = nodes_of(map_node)
    if not history.can_undo(nodes.segmentation):
        return False
    state = history.undo(nodes.segmentation) or {}
    for node in (map_node, nodes.segmentation, nodes.findings):
        for name, value in state.get("attributes", {}).items():
            if node is not None:
                node.SetAttribute(name, value)
    display.show_from(map_node, float(map_node.GetAttribute("UADBench.Threshold")))
    if nodes.findings is not None and "rows" in state:
        findings.fill(nodes.findings, input_of(map_node), state["rows"], state["affine"])
    return True


_DESCRIPTION = ("Model", "Threshold", "OperatingPoint", "Origin", "Unit", "MinimumMl", "SmoothingMm")


def _state(map_node: Any, table: Any) -> dict[str, Any]:
    """Return what ``undo`` needs beside the segments."""
    attributes = {f"UADBench.{name}": map_node.GetAttribute(f"UADBench.{name}") for name in _DESCRIPTION}
    state: dict[str, Any] = {"attributes": attributes}
    if table is not None:
        to_world = np.array(json.loads(table.GetAttribute("UADBench.ToWorld")))
        state |= {"rows": findings.rows_of(table), "affine": to_world @ ijk_to_ras(input_of(map_node))}
    return state


def input_of(node: Any) -> Any:
    """Return the input volume of a result's node, or None when it has left the scene."""
    return node.GetNodeReference(INPUT)


def nodes_of(map_node: Any) -> ResultNodes:
    """Return the nodes of the result that a map belongs to."""
    table = _referring(map_node, "vtkMRMLTableNode", "findings")
    segmentation = table.GetNodeReference(SEGMENTATION) if table is not None else None
    return ResultNodes(
        map_node,
        segmentation or _referring(map_node, "vtkMRMLSegmentationNode", "segmentation"),
        table,
        _referring(map_node, "vtkMRMLScalarVolumeNode", "reconstruction"),
        _referring(map_node, "vtkMRMLScalarVolumeNode", "residual"),
    )


def is_map(node: Any) -> bool:
    """Return whether a node is an anomaly map that this module made."""
    return node is not None and node.GetAttribute("UADBench.Role") == "map"


def maps_of(volume: Any) -> list[Any]:
    """Return the anomaly maps of a volume, in the order in which they were made."""
    found = nodes_of_class(volume.GetScene(), "vtkMRMLScalarVolumeNode")
    return [node for node in found if is_map(node) and node.GetNodeReferenceID(INPUT) == volume.GetID()]


def summary_of(map_node: Any) -> dict[str, Any]:
    """Return the JSON document that came with a map."""
    return json.loads(map_node.GetAttribute("UADBench.Summary") or "{}")


def setting_of(map_node: Any) -> dict[str, float]:
    """Return threshold (z), minimum_ml and smoothing_mm with which the findings of a map were made."""
    names = {"threshold": "Threshold", "minimum_ml": "MinimumMl", "smoothing_mm": "SmoothingMm"}
    return {key: float(map_node.GetAttribute(f"UADBench.{name}") or 0.0) for key, name in names.items()}


def map_values(map_node: Any) -> np.ndarray:
    """Return a copy of a map, shape (I, J, K), float32."""
    return voxels_of(map_node.GetImageData()).astype(np.float32, order="C", copy=True)


def mask_of(segmentation: Any, volume: Any) -> np.ndarray:
    """Return where any segment of a result's segmentation is, on the voxels of ``volume``; shape (I, J, K), uint8."""
    return read_mask(segmentation, volume)[0]


def highest(map_node: Any) -> tuple[float, np.ndarray]:
    """Return the highest value of a map and its place in world RAS millimetres."""
    voxels = voxels_of(map_node.GetImageData())
    index = np.unravel_index(int(np.argmax(voxels)), voxels.shape)
    return float(voxels[index]), (world_affine(map_node) @ np.array([*index, 1.0]))[:3]


def _referring(map_node: Any, kind: str, role: str) -> Any:
    """Return the newest node of a class and role that refers to a map, or None."""
    found = nodes_of_class(map_node.GetScene(), kind)
    found = [n for n in found if n.GetNodeReferenceID(MAP) == map_node.GetID()]
    found = [n for n in found if n.GetAttribute("UADBench.Role") == role]
    return found[-1] if found else None


def _describe(node: Any, result: Result) -> None:
    """Write what a node came from into its attributes."""
    values = {
        "Model": result.model,
        "Threshold": f"{result.threshold:g}",
        "OperatingPoint": result.operating_point,
        "Origin": result.origin,
        "Unit": display.UNIT,
        "MinimumMl": f"{result.summary.get('minimum_ml', 0.0):g}",
        "SmoothingMm": f"{result.summary.get('smoothing_mm', 0.0):g}",
    }
    for name in _DESCRIPTION:
        node.SetAttribute(f"UADBench.{name}", values[name])


def new_node(volume: Any, kind: str, role: str, name: str) -> Any:
    """Add a node that belongs to a volume's results and refers to the volume."""
    node = volume.GetScene().AddNewNodeByClass(kind, name)
    node.SetAttribute("UADBench.Role", role)
    node.SetNodeReferenceID(INPUT, volume.GetID())
    return node


def _new(volume: Any, kind: str, role: str, what: str, result: Result, map_node: Any = None) -> Any:
    """Add a node of a result, named after the volume and the model."""
    node = new_node(volume, kind, role, f"{volume.GetName()} {what} ({result.model})")
    if map_node is not None:
        node.SetNodeReferenceID(MAP, map_node.GetID())
    _describe(node, result)
    return node


def _place_beside(volume: Any, node: Any) -> None:
    """Put a node under the same study as the input, where the subject hierarchy knows both."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    if hierarchy is None or node is None:
        return
    of_volume, of_node = hierarchy.GetItemByDataNode(volume), hierarchy.GetItemByDataNode(node)
    if of_volume and of_node:
        hierarchy.SetItemParent(of_node, hierarchy.GetItemParent(of_volume))


# ------------------------------------------------------------------------------------------------ its nodes


def _add_volume(volume: Any, result: Result, values: np.ndarray, role: str, what: str, map_node: Any = None) -> Any:
    """Add values as a volume on the lattice of the input."""
    node = _new(volume, "vtkMRMLScalarVolumeNode", role, what, result, map_node)
    node.SetIJKToRASMatrix(matrix_of(ijk_to_ras(volume)))
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetAndObserveImageData(image_of(values, np.float32))
    return node


def _add_reconstruction(volume: Any, map_node: Any, result: Result) -> tuple[Any, Any]:
    """Add the pseudo-healthy scan and the residual, where the method gave them."""
    kinds = (
        (result.reconstruction, "reconstruction", "pseudo-healthy", display.RECONSTRUCTION_WINDOW),
        (result.residual, "residual", "residual", display.RESIDUAL_WINDOW),
    )
    added = []
    for values, role, what, window in kinds:
        node = None if values is None else _add_volume(volume, result, values, role, what, map_node)
        if node is not None:
            display.show_grey(node, window)
        added.append(node)
    return added[0], added[1]


def _add_segmentation(volume: Any, map_node: Any, result: Result) -> Any:
    """Add the segmentation, as outlines."""
    node = _new(volume, "vtkMRMLSegmentationNode", "segmentation", "anomalies", result, map_node)
    segments.show_outlines(node)
    _fill_segmentation(node, volume, map_node, result)
    return node


def _fill_segmentation(node: Any, volume: Any, map_node: Any, result: Result) -> None:
    """Replace a segmentation's contents by the findings of ``result``."""
    if map_node.GetAttribute("UADBench.OneSegment") == "true":
        labels, entries = (result.mask != 0).astype(np.uint8), _one_for_all(result)
    else:
        labels, entries = _one_for_each(result)
    segments.fill(node, volume, labels, entries)


def _tags(result: Result, row: dict[str, Any] | None) -> dict[str, str]:
    """Return the tags of a segment; ``row`` is its finding, or None for several."""
    tags = {
        "UADBench.Model": result.model,
        "UADBench.Threshold": f"{result.threshold:g}",
        "UADBench.OperatingPoint": result.operating_point,
    }
    if row is not None:
        tags |= {"UADBench.PeakZ": f"{row['peak_z']:g}", "UADBench.VolumeMl": f"{row['volume_ml']:g}"}
    return tags


def _one_for_all(result: Result) -> list[segments.Segment]:
    """Return the segment that holds all findings; none when there are none."""
    if not result.findings:
        return []
    top = result.findings[0] | {"volume_ml": sum(row["volume_ml"] for row in result.findings)}
    name = f"{len(result.findings)} findings, peak {top['peak_z']:.1f} {display.UNIT}"
    return [segments.Segment(name, segments.FOUND, _tags(result, top))]


def _one_for_each(result: Result) -> tuple[np.ndarray, list[segments.Segment]]:
    """Split the mask into a segment for each finding, those beyond ``segments.SEGMENTS`` in one.

    Returns
    -------
    labels : numpy.ndarray
        Shape (I, J, K), uint8; 0 outside.
    entries : list of segments.Segment
    """
    labels, rows = label_findings(result.mask, result.findings[: segments.SEGMENTS], result.affine)
    entries = []
    for row in rows:
        name = f"finding {row['index']}, peak {row['peak_z']:.1f} {display.UNIT}"
        colour = {"TP": segments.TRUE, "FP": segments.FALSE}.get(str(row.get("status") or ""), segments.FOUND)
        entries.append(segments.Segment(name, colour, _tags(result, row)))
    rest = (labels == 0) & (result.mask != 0)
    if rest.any():
        entries.append(
            segments.Segment(
                f"{OTHER_FINDINGS} ({int(segments.components(rest).max())})", segments.REST, _tags(result, None)
            )
        )
        labels[rest] = len(entries)
    return labels, entries


def label_findings(
    mask: np.ndarray, rows: list[dict[str, Any]], affine: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Label the components of a mask that hold the peak of a finding.

    Returns
    -------
    labels : numpy.ndarray
        Shape (I, J, K), uint8: n in the component of the n-th row that is returned.
    rows : list of dict
        Those rows whose peak lies in a component, in order; a component goes to the first.
    """
    components = segments.components(mask)
    to_index = np.linalg.inv(affine)
    lookup = np.zeros(int(components.max(initial=0)) + 1, dtype=np.uint8)
    kept: list[dict[str, Any]] = []
    for row in rows:
        peak = to_index @ np.array([row["peak_r"], row["peak_a"], row["peak_s"], 1.0])
        index = tuple(np.clip(np.rint(peak[:3]).astype(int), 0, np.array(components.shape) - 1))
        component = int(components[index])
        if component and not lookup[component]:
            kept.append(row)
            lookup[component] = len(kept)
    return lookup[components], kept


def _add_table(volume: Any, map_node: Any, segmentation: Any, result: Result) -> Any:
    """Add the findings table."""
    node = _new(volume, "vtkMRMLTableNode", "findings", "findings", result, map_node)
    node.SetNodeReferenceID(SEGMENTATION, segmentation.GetID())
    findings.fill(node, volume, result.findings, result.affine)
    return node


# ------------------------------------------------------------------------------------------------- accepted


def send_accepted(map_node: Any, target: Any = None, history: segments.History | None = None) -> Any:
    """Copy the findings that the reader accepted into a segmentation, one segment each.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
    target : vtkMRMLSegmentationNode, optional
        An existing segmentation to add to; a new one by default.
    history : segments.History, optional
        Takes the state of ``target`` before it is touched.

    Returns
    -------
    vtkMRMLSegmentationNode

    Raises
    ------
    SceneError
        NOTHING_ACCEPTED, SCENE_CLOSED.
    """
    nodes, volume = nodes_of(map_node), input_of(map_node)
    if volume is None or nodes.findings is None or nodes.segmentation is None:
        raise SceneError("SCENE_CLOSED", _("a part of the result has left the scene"), _("detect again"))
    rows = [row for row in findings.rows_of(nodes.findings) if row["verdict"] == "accept"]
    affine = np.array(json.loads(nodes.findings.GetAttribute("UADBench.ToWorld"))) @ ijk_to_ras(volume)
    labels, kept = label_findings(mask_of(nodes.segmentation, volume), rows, affine)
    if not kept:
        raise SceneError(
            "NOTHING_ACCEPTED", _("no finding is accepted"), _("mark findings as accepted in the table first")
        )
    model = map_node.GetAttribute("UADBench.Model")
    entries = [
        segments.Segment(
            f"finding {row['index']} ({model})",
            segments.TRUE,
            {"UADBench.Model": model, "UADBench.PeakZ": f"{row['peak_z']:g}", "UADBench.Comment": row["comment"]},
        )
        for row in kept
    ]
    if target is None:
        target = volume.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volume.GetName()} accepted findings")
        target.CreateDefaultDisplayNodes()
        segments.fill(target, volume, labels, entries)
        _place_beside(volume, target)
        return target
    if history is not None:
        history.save(target)
    segments.add(target, volume, labels, entries)
    if history is not None:
        history.touched(target, segments.fingerprint(target))
    return target
