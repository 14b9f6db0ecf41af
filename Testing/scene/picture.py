"""What a slice view shows of a result, composed on the processor: scan, map over it, outlines and fill of the
segments.

For tests and documentation only. The two volume layers are composed by Slicer's own slice logic, with its
window, threshold and colours; the outlines are drawn from the segments' label map, as the application draws
them with OpenGL.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from UADBenchScene import results
from vtk.util.numpy_support import vtk_to_numpy


def slice_picture(scene, nodes, orientation: str, place, size: int = 320, field_mm: float = 220.0) -> tuple:
    """Return one slice through a place, with the head in the middle.

    Parameters
    ----------
    scene : conftest.Scene
    nodes : UADBenchScene.results.ResultNodes
    orientation : str
        ``"Axial"``, ``"Coronal"`` or ``"Sagittal"``.
    place : numpy.ndarray
        World RAS millimetres, shape (3,).
    size : int
        Edge of the picture in pixels.
    field_mm : float
        Edge of the picture in millimetres.

    Returns
    -------
    picture : numpy.ndarray
        Shape (size, size, 3), uint8, first row at the top.
    pixel : numpy.ndarray
        Row and column of the place.
    """
    logic = slicer.vtkMRMLSliceLogic()
    view = _view(scene, orientation, place, results.input_of(nodes.map), size, field_mm)
    composite = scene.mrml.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    logic.SetMRMLApplicationLogic(scene.application)
    logic.SetMRMLScene(scene.mrml)
    logic.SetSliceNode(view)
    logic.SetSliceCompositeNode(composite)
    composite.SetBackgroundVolumeID(results.input_of(nodes.map).GetID())
    composite.SetForegroundVolumeID(nodes.map.GetID())
    composite.SetForegroundOpacity(0.7)
    logic.UpdatePipeline()
    producer = logic.GetImageDataConnection().GetProducer()
    producer.Update()
    image = producer.GetOutput()
    rgb = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(size, size, -1)[::-1, :, :3].copy()
    _draw_segments(rgb, nodes.segmentation, view)
    to_pixel = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(view.GetXYToRAS(), to_pixel)
    column, row = to_pixel.MultiplyPoint((*(float(x) for x in place), 1.0))[:2]
    return rgb, np.array([size - 1 - row, column])


def _view(scene, orientation: str, place, volume, size: int, field_mm: float):
    """Add a slice node that goes through a place and has a volume in its middle."""
    view = scene.mrml.AddNewNodeByClass("vtkMRMLSliceNode", orientation)
    view.SetLayoutName(f"{orientation} {view.GetID()}")
    view.AddSliceOrientationPreset("Axial", _preset(slicer.vtkMRMLSliceNode.GetAxialSliceToRASMatrix))
    view.AddSliceOrientationPreset("Coronal", _preset(slicer.vtkMRMLSliceNode.GetCoronalSliceToRASMatrix))
    view.AddSliceOrientationPreset("Sagittal", _preset(slicer.vtkMRMLSliceNode.GetSagittalSliceToRASMatrix))
    view.SetOrientation(orientation)
    view.SetDimensions(size, size, 1)
    view.SetFieldOfView(field_mm, field_mm, 1.0)
    bounds = np.zeros(6)
    volume.GetRASBounds(bounds)
    view.JumpSliceByCentering(*(bounds.reshape(3, 2).mean(axis=1)))
    view.JumpSliceByOffsetting(*(float(x) for x in place))
    view.UpdateMatrices()
    return view


def _preset(fill):
    """Return an orientation as the matrix that Slicer keeps of it."""
    matrix = vtk.vtkMatrix3x3()
    fill(matrix)
    return matrix


def _draw_segments(rgb: np.ndarray, segmentation_node, view) -> None:
    """Draw each segment's border, two pixels wide, in the segment's colour, and its inside where that is shown."""
    segmentation, display = segmentation_node.GetSegmentation(), segmentation_node.GetDisplayNode()
    opacity = display.GetOpacity2DFill() if display.GetVisibility2DFill() else 0.0
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        inside = _sample(segment, segmentation_node, view, rgb.shape[:2])
        border = np.zeros_like(inside)
        for axis in (0, 1):
            for shift in (-2, -1, 1, 2):
                border |= inside & ~np.roll(inside, shift, axis)
        colour = 255 * np.array(segment.GetColor())
        rgb[inside] = np.round((1 - opacity) * rgb[inside] + opacity * colour).astype(np.uint8)
        rgb[border] = np.round(colour).astype(np.uint8)


def _sample(segment, segmentation_node, view, shape) -> np.ndarray:
    """Return where a segment is in the picture, from the label map's own place in space."""
    image = segment.GetRepresentation("Binary labelmap")
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    to_index, to_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_index)
    if segmentation_node.GetParentTransformNode() is not None:
        segmentation_node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    vtk.vtkMatrix4x4.Multiply4x4(to_world, to_index, to_index)
    to_index.Invert()
    vtk.vtkMatrix4x4.Multiply4x4(to_index, view.GetXYToRAS(), to_index)
    matrix = np.array([[to_index.GetElement(r, c) for c in range(4)] for r in range(4)])
    rows, columns = np.indices(shape)
    points = np.stack([columns, shape[0] - 1 - rows, np.zeros(shape), np.ones(shape)]).reshape(4, -1)
    ijk = np.rint((matrix @ points)[:3]).astype(int) - np.array(image.GetExtent()[::2])[:, None]
    within = np.all((ijk >= 0) & (ijk < np.array(image.GetDimensions())[:, None]), axis=0)
    found = np.zeros(points.shape[1], dtype=bool)
    i, j, k = ijk[:, within]
    found[within] = voxels[k, j, i] == segment.GetLabelValue()
    return found.reshape(shape)
