"""A scene without the application: slicer-core's MRML, with the logics that volumes, colours and
segmentations need.

Run in an environment of its own (``pip install slicer-core pytest pillow``), since slicer-core brings its
own VTK.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "UADBench"), str(Path(__file__).resolve().parent)]

slicer = pytest.importorskip("slicer_core", reason="slicer-core is not installed") and __import__("slicer")
import vtk  # noqa: E402  (after slicer, whose VTK it must be)


class Scene:
    """One MRML scene with its logics, and shorthands to fill it."""

    def __init__(self) -> None:
        self.mrml = slicer.vtkMRMLScene()
        self.application = slicer.vtkMRMLApplicationLogic()
        self.application.SetMRMLScene(self.mrml)
        self.logics = [
            slicer.vtkSlicerColorLogic(),
            slicer.vtkSlicerVolumesLogic(),
            slicer.vtkSlicerSegmentationsModuleLogic(),
            slicer.vtkSlicerTablesLogic(),
        ]
        for logic in self.logics:
            logic.SetMRMLApplicationLogic(self.application)
            logic.SetMRMLScene(self.mrml)

    def volume(self, voxels: np.ndarray, affine: np.ndarray, name: str = "sub-1_T1w", kind: str = "ScalarVolume"):
        """Add a volume from an (i, j, k) array and its affine."""
        from UADBenchScene import volumes

        node = self.mrml.AddNewNodeByClass(f"vtkMRML{kind}Node", name)
        node.SetAndObserveImageData(volumes.image_of(voxels, voxels.dtype.type))
        node.SetIJKToRASMatrix(matrix(affine))
        if kind == "ScalarVolume":
            node.CreateDefaultDisplayNodes()
        return node

    def transform(self, affine: np.ndarray, name: str = "moved"):
        """Add a linear transform node."""
        node = self.mrml.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
        node.SetMatrixTransformToParent(matrix(affine))
        return node


def matrix(affine: np.ndarray) -> vtk.vtkMatrix4x4:
    """Return a 4 x 4 array as a VTK matrix."""
    result = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            result.SetElement(row, column, float(affine[row, column]))
    return result


@pytest.fixture
def scene():
    """A fresh scene, also reachable as ``slicer.mrmlScene`` for what the application offers scripts."""
    made = Scene()
    slicer.mrmlScene = made.mrml
    yield made
    made.mrml.Clear(1)
    del slicer.mrmlScene
