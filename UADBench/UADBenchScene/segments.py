"""Segmentations: findings as segments with a term, and what keeps somebody's work from being written over.

All segments of a segmentation share one label map, since they do not overlap. A segmentation that this code wrote
carries a fingerprint of its names and voxels; one that differs from it has been edited and is left alone. Before a
segmentation that is there already is touched, its state goes into a ``History``.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import vtk

from .texts import _
from .volumes import SceneError, array_of, image_of, matrix_of, parent_matrix, voxels_of

SEGMENTS = 50
"""Findings that get a segment of their own; the others share one."""

TERMINOLOGY = (
    "Segmentation category and type - UADBench"
    "~SCT^49755003^Morphologically Altered Structure~SCT^52988006^Lesion~^^"
    "~Anatomic codes - DICOM master list~SCT^12738006^Brain~^^"
)

# Cool colours, none of which is in the scale of the maps: outlines lie on them. With a reference the findings
# are green (true) or blue (false), which stay apart with any colour vision; without one all are blue.
FOUND, TRUE, FALSE, REST = (0.34, 0.71, 0.91), (0.0, 0.75, 0.5), (0.34, 0.71, 0.91), (0.75, 0.75, 0.75)
MISSED = (0.90, 0.62, 0.0)


@dataclass
class Segment:
    """A segment to be written: its label's name, colour and tags.

    Attributes
    ----------
    name : str
    colour : tuple of float
        Red, green, blue, 0 to 1.
    tags : dict
        Written with the segment, for example ``UADBench.PeakZ``.
    """

    name: str
    colour: tuple[float, float, float] = FOUND
    tags: dict[str, str] = field(default_factory=dict)


def fill(node: Any, volume: Any, labels: np.ndarray, segments: Sequence[Segment]) -> None:
    """Replace a segmentation's contents.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
    volume : vtkMRMLScalarVolumeNode
        Gives the place in space.
    labels : numpy.ndarray
        Shape (I, J, K), integer up to 255: 0 outside, n in the n-th segment, counted from 1.
    segments : sequence of Segment
    """
    was_modified = node.StartModify()
    segmentation = node.GetSegmentation()
    # Without voxels first: removing a segment that shares its label map with others erases it there, voxel by voxel.
    for number in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(number).RemoveAllRepresentations()
    segmentation.RemoveAllSegments()
    # In this order: the reference geometry is taken relative to the node's own parent transform.
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    shared = oriented_image(labels, volume)
    for value, entry in enumerate(segments, start=1):
        segmentation.AddSegment(_segment(entry, shared, value), f"finding_{value}")
    node.SetAttribute("UADBench.Fingerprint", fingerprint(node))
    node.EndModify(was_modified)


def add(node: Any, volume: Any, labels: np.ndarray, segments: Sequence[Segment]) -> None:
    """Add segments to a segmentation that may hold others, which stay as they are; parameters are those of ``fill``.

    Where the segmentation is under another parent transform than the volume, the new segments are carried over, so that
    they lie where they were found.
    """
    carry = np.linalg.inv(parent_matrix(node)) @ parent_matrix(volume)
    for value, entry in enumerate(segments, start=1):
        image = oriented_image((labels == value).astype(np.uint8), volume)
        image.SetGeometryFromImageToWorldMatrix(matrix_of(carry @ image_matrix(image)))
        name = node.GetSegmentation().GenerateUniqueSegmentID("finding")
        node.GetSegmentation().AddSegment(_segment(entry, image, 1), name)


def image_matrix(image: Any) -> np.ndarray:
    """Return the matrix of an oriented image, shape (4, 4)."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return array_of(matrix)


def oriented_image(labels: np.ndarray, volume: Any) -> Any:
    """Return labels as an image that lies where the voxels of ``volume`` do, parent transform apart."""
    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    image.DeepCopy(image_of(labels, np.uint8))
    volume.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    return image


def _segment(entry: Segment, image: Any, value: int) -> Any:
    """Return a segment that has one value of a shared label map."""
    segment = slicer.vtkSegment()
    segment.SetName(entry.name)
    segment.SetColor(*entry.colour)
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), TERMINOLOGY)
    for key, text in entry.tags.items():
        segment.SetTag(key, text)
    segment.AddRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName(), image)
    segment.SetLabelValue(value)
    return segment


def show_outlines(node: Any) -> None:
    """Show a segmentation as outlines, so that the map stays visible beneath."""
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(2)


def components(mask: np.ndarray) -> np.ndarray:
    """Return the 26-connected components of a mask as labels 1, 2, ..., the rule by which the backend makes
    findings.
    """
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    islands = _island_filter()
    islands.SetInputData(image_of(mask != 0, np.uint8))
    islands.SetFullyConnected(True)
    islands.SetMinimumSize(0)
    islands.Update()
    return voxels_of(islands.GetOutput())


def _island_filter() -> Any:
    """Return Slicer's connected component filter, which the application and slicer-core keep in different
    places.
    """
    try:
        from vtkITK import vtkITKIslandMath
    except ImportError:
        from slicer import vtkITKIslandMath
    return vtkITKIslandMath()


# ---------------------------------------------------------------------------------------- somebody's work


def is_edited(node: Any) -> bool:
    """Return whether a segmentation differs from what was written into it: a segment added, removed,
    renamed or painted.
    """
    return node.GetAttribute("UADBench.Fingerprint") != fingerprint(node)


def fingerprint(node: Any) -> str:
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
    voxels = voxels_of(image).transpose(2, 1, 0)
    places = np.argwhere(voxels)
    return (places + np.array(image.GetExtent()[4::-2])).astype(np.int32), voxels[tuple(places.T)]


@dataclass
class _State:
    """A saved state: when, with what fingerprint of its own, the caller's note, and what the change then made."""

    number: int
    mark: str | None
    note: Any
    made: str | None = None


class History:
    """States of segmentations before they were touched, to go back to; a few of the few that were touched last, since
    each holds all voxels.
    """

    STATES, SEGMENTATIONS = 5, 3

    def __init__(self) -> None:
        self._saved: dict[str, tuple[Any, list[_State]]] = {}
        self._count = itertools.count()

    def save(self, node: Any, note: Any = None) -> None:
        """Keep a segmentation's state, with a note that ``undo`` gives back; those of removed nodes are forgotten."""
        scene = node.GetScene()
        self._saved = {key: kept for key, kept in self._saved.items() if scene.GetNodeByID(key) is not None}
        if node.GetID() not in self._saved:
            history = slicer.vtkSegmentationHistory()
            history.SetSegmentation(node.GetSegmentation())
            # Going back keeps the present state too.
            history.SetMaximumNumberOfStates(self.STATES + 1)
            self._saved[node.GetID()] = (history, [])
        history, states = self._saved[node.GetID()] = self._saved.pop(node.GetID())
        self._saved = dict(list(self._saved.items())[-self.SEGMENTATIONS :])
        history.SaveState()
        states.append(_State(next(self._count), node.GetAttribute("UADBench.Fingerprint"), note))
        del states[: -self.STATES]

    def touched(self, node: Any, made: str | None) -> None:
        """Remember the fingerprint that the change after ``save`` left, to tell what somebody does to it later."""
        self._saved[node.GetID()][1][-1].made = made

    def can_undo(self, node: Any) -> bool:
        """Return whether a state of this segmentation is kept."""
        return node is not None and bool(self._saved.get(node.GetID(), (None, []))[1])

    def last(self, nodes: Sequence[Any]) -> Any:
        """Return that of some segmentations (or None) which was changed last; None where no state is kept."""
        kept = [node for node in nodes if self.can_undo(node)]
        return max(kept, key=lambda node: self._saved[node.GetID()][1][-1].number, default=None)

    def undo(self, node: Any) -> Any:
        """Bring a segmentation back to its last saved state and return the note that was kept with it.

        Raises
        ------
        SceneError
            EDITED_SINCE when somebody has edited it after it was changed from here; it stays as it is.
        """
        history, states = self._saved[node.GetID()]
        if fingerprint(node) != states[-1].made:
            raise SceneError(
                "EDITED_SINCE",
                _("'{name}' was edited meanwhile and stays as it is").format(name=node.GetName()),
                _("undo those edits in the Segment Editor first, or remove there what is not wanted"),
            )
        state = states.pop()
        history.RestorePreviousState()
        if state.mark is not None:
            node.SetAttribute("UADBench.Fingerprint", state.mark)
        if not states:
            del self._saved[node.GetID()]
        return state.note

    def clear(self) -> None:
        """Forget everything."""
        self._saved.clear()
