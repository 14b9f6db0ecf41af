"""A volume node as an array with its place in space, or a plain refusal.

Arrays are in (i, j, k) order and affines map voxel indices to RAS millimetres of the world, parent
transform included. The node is only read: nothing is hardened or written, and only masks are resampled, by the one
rule that ``read_mask`` states. Results come back through ``results``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .texts import _

SCALAR_VOLUME = "vtkMRMLScalarVolumeNode"
TIE = 1e-4
"""Voxels by which a centre counts as further on, so that rounding does not decide between two that are equally near."""

# Subclasses of the scalar volume node that are something else, and what to do with each.
_OTHER_KINDS = {
    "vtkMRMLLabelMapVolumeNode": (
        "LABEL_MAP",
        _("'{name}' is a label map, not a scan"),
        _("choose the scan itself; one loaded as a label map can be converted in the Volumes module"),
    ),
    "vtkMRMLVectorVolumeNode": (
        "VECTOR_VOLUME",
        _("'{name}' has a vector in each voxel (a colour image, for example)"),
        _("make a single-component volume with the Vector to Scalar Volume module"),
    ),
    "vtkMRMLDiffusionWeightedVolumeNode": (
        "DIFFUSION_VOLUME",
        _("'{name}' is a diffusion-weighted series"),
        _("choose a T1w, T2w or FLAIR scan of the same head"),
    ),
}


class SceneError(Exception):
    """Something in the scene that cannot be used, or a job that failed.

    Parameters
    ----------
    code : str
        Short upper-case name that scripts may rely on, for example ``"LABEL_MAP"``.
    message : str
        What is wrong; one line.
    advice : str
        What the user can do about it; one line.
    """

    def __init__(self, code: str, message: str, advice: str = "") -> None:
        super().__init__(f"{code}: {message}" + (f"; {advice}" if advice else ""))
        self.code = code
        self.message = message
        self.advice = advice


def nodes_of_class(scene: Any, kind: str) -> list[Any]:
    """Return the nodes of a class; not by the scene's own collection, which in Python keeps its nodes for ever."""
    return [scene.GetNthNodeByClass(number, kind) for number in range(scene.GetNumberOfNodesByClass(kind))]


def check_volume(node: Any) -> None:
    """Refuse what is not a single-component scalar volume with a linear (or no) parent transform.

    Raises
    ------
    SceneError
        NO_VOLUME, LABEL_MAP, VECTOR_VOLUME, DIFFUSION_VOLUME, VOLUME_KIND, OWN_RESULT, EMPTY_VOLUME, MULTI_COMPONENT,
        NONLINEAR_TRANSFORM or SINGULAR_GEOMETRY.
    """
    if node is None or node.GetScene() is None:
        raise SceneError("NO_VOLUME", _("no volume of the scene is selected"), _("load a scan and choose it as input"))
    name, kind = node.GetName(), node.GetClassName()
    if kind != SCALAR_VOLUME:
        code, what, advice = _OTHER_KINDS.get(
            kind,
            (
                "VOLUME_KIND",
                _("'{name}' is a {kind}"),
                _("choose a scalar volume with one three-dimensional image"),
            ),
        )
        raise SceneError(code, what.format(name=name, kind=kind), advice)
    if node.GetAttribute("UADBench.Role"):
        raise SceneError(
            "OWN_RESULT",
            _("'{name}' is a result of a detection").format(name=name),
            _("choose the scan that it came from"),
        )
    image = node.GetImageData()
    if image is None or 0 in image.GetDimensions() or image.GetPointData().GetScalars() is None:
        raise SceneError("EMPTY_VOLUME", _("'{name}' has no image in it").format(name=name), _("load the scan again"))
    if image.GetNumberOfScalarComponents() != 1:
        raise SceneError(
            "MULTI_COMPONENT",
            _("'{name}' has {count} values in each voxel").format(name=name, count=image.GetNumberOfScalarComponents()),
            _("make a single-component volume with the Vector to Scalar Volume module"),
        )
    _check_transform(node)
    determinant = float(np.linalg.det(world_affine(node)[:3, :3]))
    if not np.isfinite(determinant) or abs(determinant) < 1e-9:
        raise SceneError(
            "SINGULAR_GEOMETRY",
            _("the voxels of '{name}' have no volume").format(name=name),
            _("correct spacing and orientation in the Volumes module, or the matrix of the parent transform"),
        )


def _check_transform(node: Any) -> None:
    """Refuse a node under a transform that is not linear."""
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise SceneError(
            "NONLINEAR_TRANSFORM",
            _("'{name}' is under the non-linear transform '{transform}'").format(
                name=node.GetName(), transform=transform.GetName()
            ),
            _("clone it, harden the transform on the clone (Transforms module), choose the clone"),
        )


def world_affine(node: Any) -> np.ndarray:
    """Return the affine from voxel indices to world RAS millimetres, linear parent transform included.

    Returns
    -------
    numpy.ndarray
        Shape (4, 4), float64.
    """
    return parent_matrix(node) @ ijk_to_ras(node)


def parent_matrix(node: Any) -> np.ndarray:
    """Return the matrix of a node's linear parent transform to the world, shape (4, 4); the identity without one."""
    to_world = vtk.vtkMatrix4x4()
    if node.GetParentTransformNode() is not None:
        node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    return array_of(to_world)


def array_of(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """Return a VTK matrix as an array, shape (4, 4)."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def matrix_of(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """Return an array, shape (4, 4), as a VTK matrix."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(array[row, column]))
    return matrix


def ijk_to_ras(node: Any) -> np.ndarray:
    """Return a volume's own matrix, shape (4, 4), parent transform apart."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return array_of(matrix)


def image_of(array: np.ndarray, kind: type) -> vtk.vtkImageData:
    """Return a copy of an (i, j, k) array as an image with unit spacing; geometry lives in the nodes."""
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape)
    flat = np.ascontiguousarray(array.transpose(2, 1, 0), dtype=kind).ravel()
    scalars = numpy_to_vtk(flat, deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def voxels_of(image: vtk.vtkImageData) -> np.ndarray:
    """Return an image's voxels as a view in (i, j, k) order; VTK's memory runs over i fastest."""
    flat = vtk_to_numpy(image.GetPointData().GetScalars())
    return flat.reshape(image.GetDimensions()[::-1]).transpose(2, 1, 0)


def read_volume(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """Copy a volume out of the scene.

    Parameters
    ----------
    node : vtkMRMLScalarVolumeNode

    Returns
    -------
    voxels : numpy.ndarray
        Shape (I, J, K), float32, C order; a copy, so that a thread or a file may have it.
    affine : numpy.ndarray
        Shape (4, 4), float64: voxel index to world RAS millimetres.

    Raises
    ------
    SceneError
        As ``check_volume``.
    """
    check_volume(node)
    return voxels_of(node.GetImageData()).astype(np.float32, order="C", copy=True), world_affine(node)


def read_mask(node: Any, volume: Any) -> tuple[np.ndarray, bool]:
    """Copy a segmentation, label map or scalar volume out of the scene as a mask on the voxels of ``volume``.

    On other voxels than the scan's the nearest voxel decides: a voxel of the scan is inside where its centre lies in a
    voxel that is not 0, transforms of both included; on the border of two, as at exactly twice the spacing, in the one
    with the higher index. All segments of a segmentation count.

    Returns
    -------
    mask : numpy.ndarray
        Shape (I, J, K), uint8: 1 inside.
    resampled : bool
        Whether the node has other voxels than the scan.

    Raises
    ------
    SceneError
        EMPTY_VOLUME, NONLINEAR_TRANSFORM, or MASK_OUTSIDE when the node has voxels but none in the scan.
    """
    _check_transform(node)
    target, shape = world_affine(volume), volume.GetImageData().GetDimensions()
    mask, resampled, empty = np.zeros(shape, dtype=np.uint8), False, True
    for inside, affine in _sources(node):
        empty &= not inside.any()
        if inside.shape == shape and np.allclose(affine, target, atol=1e-3):
            mask |= inside
        else:
            resampled = True
            _add_nearest(mask, target, inside, affine)
    if not empty and not mask.any():
        raise SceneError(
            "MASK_OUTSIDE",
            _("'{name}' lies outside '{scan}'").format(name=node.GetName(), scan=volume.GetName()),
            _("choose one that belongs to this scan, and check its transform"),
        )
    return mask, resampled


def segments_on(node: Any, volume: Any) -> list[tuple[str, np.ndarray]]:
    """Return name and mask (bool, on the voxels of ``volume``) of each segment, by the rule of ``read_mask``."""
    target, shape = world_affine(volume), volume.GetImageData().GetDimensions()
    segmentation = node.GetSegmentation()
    names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
    found = []
    for name, (inside, affine) in zip(names, _sources(node), strict=True):
        mask = np.zeros(shape, dtype=np.uint8)
        if inside.shape == shape and np.allclose(affine, target, atol=1e-3):
            mask |= inside
        else:
            _add_nearest(mask, target, inside, affine)
        found.append((name, mask > 0))
    return found


def _sources(node: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return masks (bool, any shape) and world affines of what a node holds: one of a volume, one a segment."""
    if not node.IsA("vtkMRMLSegmentationNode"):
        image = node.GetImageData()
        if image is None or image.GetPointData().GetScalars() is None:
            raise SceneError(
                "EMPTY_VOLUME", _("'{name}' has no image in it").format(name=node.GetName()), _("load it again")
            )
        return [(voxels_of(image) != 0, world_affine(node))]
    segmentation = slicer.vtkSegmentation()
    segmentation.DeepCopy(node.GetSegmentation())
    name = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
    segmentation.CreateRepresentation(name)
    sources = []
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        image = segment.GetRepresentation(name)
        if image is None or image.GetPointData().GetScalars() is None:
            sources.append((np.zeros((1, 1, 1), dtype=bool), np.eye(4)))
            continue
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        start = np.eye(4)
        start[:3, 3] = image.GetExtent()[::2]
        sources.append((voxels_of(image) == segment.GetLabelValue(), parent_matrix(node) @ array_of(matrix) @ start))
    return sources


def _add_nearest(mask: np.ndarray, affine: np.ndarray, source: np.ndarray, source_affine: np.ndarray) -> None:
    """Set the voxels of ``mask`` whose nearest voxel of ``source`` is inside; only the box that can be is looked at."""
    if not source.any():
        return
    found = np.argwhere(source)
    low, high = found.min(axis=0) - 1, found.max(axis=0) + 1
    to_source = np.linalg.inv(source_affine) @ affine
    corners = np.array([[(low, high)[(n >> k) & 1][k] for k in range(3)] + [1] for n in range(8)]).T
    box = (np.linalg.inv(to_source) @ corners)[:3]
    start = np.clip(np.floor(box.min(axis=1)).astype(int), 0, mask.shape)
    stop = np.clip(np.ceil(box.max(axis=1)).astype(int) + 1, 0, mask.shape)
    j, k = np.meshgrid(np.arange(start[1], stop[1]), np.arange(start[2], stop[2]), indexing="ij")
    for i in range(start[0], stop[0]):
        index = [
            np.floor(row[0] * i + row[1] * j + row[2] * k + row[3] + 0.5 + TIE).astype(int) for row in to_source[:3]
        ]
        within = np.logical_and.reduce([(index[a] >= 0) & (index[a] < source.shape[a]) for a in range(3)])
        plane = mask[i, start[1] : stop[1], start[2] : stop[2]]
        plane[within] |= source[index[0][within], index[1][within], index[2][within]]


def load_reference(scene: Any, path: str) -> Any:
    """Read a file of labels (NIfTI, NRRD, MetaImage) into a new label map node.

    Raises
    ------
    SceneError
        FILE_UNREADABLE.
    """
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", Path(path).name.partition(".")[0])
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    if not Path(path).is_file() or not storage.ReadData(node):
        for unwanted in (node, storage):
            scene.RemoveNode(unwanted)
        raise SceneError(
            "FILE_UNREADABLE",
            _("{name} cannot be read").format(name=Path(path).name),
            _("choose a NIfTI, NRRD or MetaImage file of labels"),
        )
    node.CreateDefaultDisplayNodes()
    return node


def instance_uids(volume: Any) -> list[str]:
    """Return the SOP instance UIDs of a volume that was loaded from DICOM; none for any other."""
    return (volume.GetAttribute("DICOM.instanceUIDs") or "").split()


def contrast_in_name(name: str) -> str | None:
    """Return the contrast that a volume's name states in the BIDS manner, for example 'T1w' for
    'sub-1_T1w'; else None.
    """
    words = re.split(r"[^A-Za-z0-9]+", name)
    found = {contrast for contrast in ("T1w", "T2w", "FLAIR") for word in words if word.lower() == contrast.lower()}
    return found.pop() if len(found) == 1 else None
