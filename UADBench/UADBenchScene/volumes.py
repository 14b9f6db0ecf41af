"""A volume node as an array with its place in space, or a plain refusal.

Arrays are in (i, j, k) order and affines map voxel indices to RAS millimetres of the world, parent
transform included. The node is only read: nothing is hardened, resampled or written. Results come back
through ``results``.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

SCALAR_VOLUME = "vtkMRMLScalarVolumeNode"

# Subclasses of the scalar volume node that are something else, and what to do with each.
_OTHER_KINDS = {
    "vtkMRMLLabelMapVolumeNode": (
        "LABEL_MAP",
        "is a label map, not a scan",
        "choose the scan itself; one loaded as a label map can be converted in the Volumes module",
    ),
    "vtkMRMLVectorVolumeNode": (
        "VECTOR_VOLUME",
        "has a vector in each voxel (a colour image, for example)",
        "make a single-component volume with the Vector to Scalar Volume module",
    ),
    "vtkMRMLDiffusionWeightedVolumeNode": (
        "DIFFUSION_VOLUME",
        "is a diffusion-weighted series",
        "choose a T1w, T2w or FLAIR scan of the same head",
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


def check_volume(node: Any) -> None:
    """Refuse what is not a single-component scalar volume with a linear (or no) parent transform.

    Raises
    ------
    SceneError
        NO_VOLUME, LABEL_MAP, VECTOR_VOLUME, DIFFUSION_VOLUME, VOLUME_KIND, EMPTY_VOLUME, MULTI_COMPONENT,
        NONLINEAR_TRANSFORM or SINGULAR_GEOMETRY.
    """
    if node is None or node.GetScene() is None:
        raise SceneError("NO_VOLUME", "no volume of the scene is selected", "load a scan and choose it as input")
    name, kind = node.GetName(), node.GetClassName()
    if kind != SCALAR_VOLUME:
        code, what, advice = _OTHER_KINDS.get(
            kind, ("VOLUME_KIND", f"is a {kind}", "choose a scalar volume with one three-dimensional image")
        )
        raise SceneError(code, f"'{name}' {what}", advice)
    image = node.GetImageData()
    if image is None or 0 in image.GetDimensions() or image.GetPointData().GetScalars() is None:
        raise SceneError("EMPTY_VOLUME", f"'{name}' has no image in it", "load the scan again")
    if image.GetNumberOfScalarComponents() != 1:
        raise SceneError(
            "MULTI_COMPONENT",
            f"'{name}' has {image.GetNumberOfScalarComponents()} values in each voxel",
            "make a single-component volume with the Vector to Scalar Volume module",
        )
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise SceneError(
            "NONLINEAR_TRANSFORM",
            f"'{name}' is under the non-linear transform '{transform.GetName()}'",
            "clone the volume, harden the transform on the clone (Transforms module), choose the clone",
        )
    determinant = float(np.linalg.det(world_affine(node)[:3, :3]))
    if not np.isfinite(determinant) or abs(determinant) < 1e-9:
        raise SceneError(
            "SINGULAR_GEOMETRY",
            f"the voxels of '{name}' have no volume",
            "correct spacing and orientation in the Volumes module, or the matrix of the parent transform",
        )


def world_affine(node: Any) -> np.ndarray:
    """Return the affine from voxel indices to world RAS millimetres, linear parent transform included.

    Returns
    -------
    numpy.ndarray
        Shape (4, 4), float64.
    """
    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    transform = node.GetParentTransformNode()
    if transform is not None:
        to_world = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformToWorld(to_world)
        vtk.vtkMatrix4x4.Multiply4x4(to_world, ijk_to_ras, ijk_to_ras)
    return np.array([[ijk_to_ras.GetElement(row, column) for column in range(4)] for row in range(4)])


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
    return _voxels(node).astype(np.float32, order="C", copy=True), world_affine(node)


def read_mask(node: Any, volume: Any) -> np.ndarray:
    """Copy a label map or scalar volume out of the scene as a mask on the lattice of ``volume``.

    Returns
    -------
    numpy.ndarray
        Shape (I, J, K), uint8: 1 where the node is not 0.

    Raises
    ------
    SceneError
        EMPTY_VOLUME, or MASK_LATTICE when the two do not share their voxels.
    """
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise SceneError("EMPTY_VOLUME", f"'{node.GetName()}' has no image in it", "load the mask again")
    same_shape = image.GetDimensions() == volume.GetImageData().GetDimensions()
    if not same_shape or not np.allclose(world_affine(node), world_affine(volume), atol=1e-3):
        raise SceneError(
            "MASK_LATTICE",
            f"'{node.GetName()}' and '{volume.GetName()}' do not share their voxels",
            "resample the mask with the scan as reference (nearest neighbour)",
        )
    return (_voxels(node) != 0).astype(np.uint8, order="C")


def _voxels(node: Any) -> np.ndarray:
    """Return the voxels as a view in (i, j, k) order; VTK's memory runs over i fastest."""
    image = node.GetImageData()
    flat = vtk_to_numpy(image.GetPointData().GetScalars())
    return flat.reshape(image.GetDimensions()[::-1]).transpose(2, 1, 0)


def contrast_in_name(name: str) -> str | None:
    """Return the contrast that a volume's name states in the BIDS manner, for example 'T1w' for
    'sub-1_T1w'; else None.
    """
    words = re.split(r"[^A-Za-z0-9]+", name)
    found = {contrast for contrast in ("T1w", "T2w", "FLAIR") for word in words if word.lower() == contrast.lower()}
    return found.pop() if len(found) == 1 else None
