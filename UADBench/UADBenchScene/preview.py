"""What a threshold would flag, drawn while the slider moves: one comparison of the map in memory, no inference.

A segmentation with one segment is shown in place of the result's while the threshold moves, and is gone when it rests;
findings, least volume and regions come from the worker then. The map may be smoothed first, which is computed once for
each standard deviation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from . import results, segments
from .texts import _
from .volumes import matrix_of

ROLE = "preview"


class Preview:
    """The preview of one map.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
        Map that ``results.add_result`` made.
    smoothing_mm : float
        Standard deviation in millimetres by which the map is smoothed before it is compared.
    """

    def __init__(self, map_node: Any, smoothing_mm: float = 0.0) -> None:
        self._map_id, self._scene, self.smoothing_mm = map_node.GetID(), map_node.GetScene(), smoothing_mm
        source = map_node.GetImageData() if smoothing_mm <= 0 else _smoothed(map_node, smoothing_mm)
        self._values = vtk_to_numpy(source.GetPointData().GetScalars())
        self._inside = np.zeros(self._values.size, dtype=np.uint8)
        self._image, self._node_id = slicer.vtkOrientedImageData(), None
        self._image.SetDimensions(*source.GetDimensions())
        # Not copied: comparing writes straight into what is drawn.
        self._scalars = numpy_to_vtk(self._inside, deep=False)
        self._image.GetPointData().SetScalars(self._scalars)

    def shows(self, map_node: Any, smoothing_mm: float) -> bool:
        """Return whether this is the preview of a map at a smoothing."""
        return map_node is not None and (map_node.GetID(), smoothing_mm) == (self._map_id, self.smoothing_mm)

    def show(self, threshold: float) -> Any:
        """Draw what lies above a threshold; returns the segmentation node, or None when the map has left the scene."""
        map_node = self._scene.GetNodeByID(self._map_id)
        volume = None if map_node is None else results.input_of(map_node)
        if volume is None:
            return None
        np.greater(self._values, threshold, out=self._inside.view(bool))
        self._scalars.Modified()
        self._image.Modified()
        node = self._scene.GetNodeByID(self._node_id or "") or self._add(map_node, volume)
        # The voxels changed under the segmentation, so it has to be told what its views listen to.
        for event in (
            slicer.vtkSegmentation.SourceRepresentationModified,
            slicer.vtkSegmentation.RepresentationModified,
        ):
            node.GetSegmentation().InvokeEvent(event)
        return node

    def hide(self) -> None:
        """Take the preview out of the scene and show the result's own segmentation again."""
        node = self._scene.GetNodeByID(self._node_id or "")
        if node is not None:
            shown = node.GetDisplayNode()
            # What the views hold of the voxels goes with the segment, not with the node.
            node.GetSegmentation().RemoveAllSegments()
            self._scene.RemoveNode(node)
            self._scene.RemoveNode(shown)
        self._node_id = None
        self._show_result(True)

    def _add(self, map_node: Any, volume: Any) -> Any:
        """Add the segmentation, which is not saved with the scene."""
        node = results.new_node(volume, "vtkMRMLSegmentationNode", ROLE, f"{map_node.GetName()} preview")
        self._node_id = node.GetID()
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segments.show_outlines(node)
        self._image.SetGeometryFromImageToWorldMatrix(matrix_of(results.ijk_to_ras(volume)))
        segment = slicer.vtkSegment()
        segment.SetName(_("above the threshold"))
        segment.SetColor(*segments.FOUND)
        segment.AddRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName(), self._image)
        segment.SetLabelValue(1)
        node.GetSegmentation().AddSegment(segment, ROLE)
        self._show_result(False)
        return node

    def _show_result(self, visible: bool) -> None:
        """Show or hide the result's own segmentation."""
        map_node = self._scene.GetNodeByID(self._map_id)
        segmentation = None if map_node is None else results.nodes_of(map_node).segmentation
        if segmentation is not None and segmentation.GetDisplayNode() is not None:
            segmentation.GetDisplayNode().SetVisibility(visible)


def _smoothed(map_node: Any, smoothing_mm: float) -> vtk.vtkImageData:
    """Return a map smoothed by a Gaussian."""
    gaussian = vtk.vtkImageGaussianSmooth()
    gaussian.SetInputData(map_node.GetImageData())
    gaussian.SetStandardDeviations(*(smoothing_mm / edge for edge in map_node.GetSpacing()))
    gaussian.SetRadiusFactors(4.0, 4.0, 4.0)
    gaussian.Update()
    return gaussian.GetOutput()
