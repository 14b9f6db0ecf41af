"""Volume nodes to arrays with their place in space, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from phantom import affine_of
from UADBenchScene import volumes

SHAPE = (7, 5, 4)
AFFINES = {
    "plain": affine_of(shape=SHAPE),
    "oblique": affine_of(degrees=(12, -25, 40), shape=SHAPE),
    "left-handed": affine_of(left_handed=True, shape=SHAPE),
    "oblique left-handed": affine_of(degrees=(-30, 8, 75), left_handed=True, shape=SHAPE),
}


def counted(kind: type = np.int16) -> np.ndarray:
    """Return an array in which every voxel has a value of its own."""
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(kind)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32, np.float64])
def test_voxels_and_affine(scene, affine, kind):
    voxels, found = volumes.read_volume(scene.volume(counted(kind), affine))
    assert voxels.dtype == np.float32 and voxels.flags.c_contiguous
    np.testing.assert_array_equal(voxels, counted())
    np.testing.assert_allclose(found, affine, atol=1e-9)


def test_agrees_with_the_applications_own_reading(scene):
    """The array is the transpose of Slicer's (k, j, i), and the place of a voxel is what the node itself
    says it is.
    """
    node = scene.volume(counted(), AFFINES["oblique left-handed"])
    voxels, affine = volumes.read_volume(node)
    np.testing.assert_array_equal(voxels, slicer.util.arrayFromVolume(node).transpose(2, 1, 0))
    bounds = np.zeros(6)
    node.GetRASBounds(bounds)
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in SHAPE])).reshape(3, -1)
    places = affine[:3, :3] @ corners + affine[:3, 3:]
    np.testing.assert_allclose(bounds.reshape(3, 2), np.c_[places.min(axis=1), places.max(axis=1)], atol=1e-6)


def test_parent_transforms_are_part_of_the_affine(scene):
    node = scene.volume(counted(), AFFINES["oblique"])
    inner, outer = affine_of(degrees=(0, 0, 30)), affine_of(spacing=(1.1, 1.0, 0.9), degrees=(20, 0, 0))
    first, second = scene.transform(inner), scene.transform(outer)
    first.SetAndObserveTransformNodeID(second.GetID())
    node.SetAndObserveTransformNodeID(first.GetID())
    np.testing.assert_allclose(volumes.read_volume(node)[1], outer @ inner @ AFFINES["oblique"], atol=1e-6)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    assert matrix.GetElement(0, 3) == AFFINES["oblique"][0, 3], "the user's node must not be hardened"


def test_the_copy_is_the_callers_own(scene):
    node = scene.volume(counted(np.float32), AFFINES["plain"])
    volumes.read_volume(node)[0][:] = -1
    np.testing.assert_array_equal(volumes.read_volume(node)[0], counted())


def refuse(node) -> volumes.SceneError:
    """Return the refusal of a node; every refusal says what to do."""
    with pytest.raises(volumes.SceneError) as caught:
        volumes.read_volume(node)
    assert caught.value.message and caught.value.advice
    return caught.value


def test_no_volume_is_refused(scene):
    assert refuse(None).code == "NO_VOLUME"
    node = scene.volume(counted(), AFFINES["plain"])
    scene.mrml.RemoveNode(node)
    assert refuse(node).code == "NO_VOLUME"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("LabelMapVolume", "LABEL_MAP"),
        ("VectorVolume", "VECTOR_VOLUME"),
        ("DiffusionWeightedVolume", "DIFFUSION_VOLUME"),
        ("DiffusionTensorVolume", "VOLUME_KIND"),
    ],
)
def test_other_kinds_of_volume_are_refused(scene, kind, code):
    assert refuse(scene.volume(counted(), AFFINES["plain"], name="other", kind=kind)).code == code


def test_volume_without_image_is_refused(scene):
    assert refuse(scene.mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")).code == "EMPTY_VOLUME"


def test_several_components_are_refused(scene):
    node = scene.volume(counted(), AFFINES["plain"], name="colour")
    image = vtk.vtkImageData()
    image.SetDimensions(*SHAPE)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(image)
    error = refuse(node)
    assert error.code == "MULTI_COMPONENT" and "3" in error.message


def test_nonlinear_transform_is_refused(scene):
    node = scene.volume(counted(), AFFINES["plain"])
    grid = scene.mrml.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    transform = vtk.vtkThinPlateSplineTransform()
    grid.SetAndObserveTransformToParent(transform)
    node.SetAndObserveTransformNodeID(grid.GetID())
    error = refuse(node)
    assert error.code == "NONLINEAR_TRANSFORM" and "warp" in error.message and "clone" in error.advice


def test_flat_voxels_are_refused(scene):
    flat = AFFINES["plain"].copy()
    node = scene.volume(counted(), flat)
    squash = np.diag([1.0, 1.0, 0.0, 1.0])
    node.SetAndObserveTransformNodeID(scene.transform(squash).GetID())
    assert refuse(node).code == "SINGULAR_GEOMETRY"


def test_mask_on_the_same_voxels(scene):
    node = scene.volume(counted(), AFFINES["oblique"])
    labels = (counted() % 3).astype(np.int16)
    mask = scene.volume(labels, AFFINES["oblique"], name="mask", kind="LabelMapVolume")
    found, resampled = volumes.read_mask(mask, node)
    assert found.dtype == np.uint8 and not resampled
    np.testing.assert_array_equal(found, labels != 0)


def test_mask_under_a_warp_is_refused(scene):
    node = scene.volume(counted(), AFFINES["oblique"])
    mask = scene.volume(counted(), AFFINES["oblique"], name="mask", kind="LabelMapVolume")
    warp = scene.mrml.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    warp.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    mask.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(volumes.SceneError, match="NONLINEAR_TRANSFORM"):
        volumes.read_mask(mask, node)


def test_a_result_is_no_scan(scene):
    node = scene.volume(counted(), AFFINES["plain"])
    node.SetAttribute("UADBench.Role", "map")
    assert refuse(node).code == "OWN_RESULT"


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("sub-1_T1w", "T1w"),
        ("sub-1_flair", "FLAIR"),
        ("3: T2W axial", "T2w"),
        ("MRHead", None),
        ("T1w_to_T2w", None),
        ("reflaired", None),
    ],
)
def test_contrast_in_name(name, contrast):
    assert volumes.contrast_in_name(name) == contrast
