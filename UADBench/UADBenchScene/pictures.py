"""One picture for each finding: three slices through its peak, with and without the map, as a PNG file.

Composed on the processor from the arrays and their places in space, so that no view, window or graphics card is needed
and nothing in the scene changes. The slice views of the application show the same with more comfort.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from . import display, findings, results, segments
from .volumes import voxels_of, world_affine

SIZE = 280
FIELD_MM = 200.0
OPACITY = 0.7
# Right and down of each picture in world RAS, in the radiologists' convention: the patient's right is on the left.
PLANES = {"axial": ((-1, 0, 0), (0, -1, 0)), "coronal": ((-1, 0, 0), (0, 0, -1)), "sagittal": ((0, -1, 0), (0, 0, -1))}


def picture_of(map_node: Any, row: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Return the picture of one finding.

    Parameters
    ----------
    map_node : vtkMRMLScalarVolumeNode
    row : int
        Of the findings table.
    mask : numpy.ndarray, optional
        Where the result's segments are, on the scan's voxels, if it is known already.

    Returns
    -------
    numpy.ndarray
        Shape (2 * SIZE, 3 * SIZE, 3), uint8, first row at the top: scan above, map and outlines below.
    """
    nodes, volume = results.nodes_of(map_node), results.input_of(map_node)
    place = findings.place_of(nodes.findings, row)
    mask = results.mask_of(nodes.segmentation, volume) if mask is None else mask
    middle = world_affine(volume) @ np.array([*(np.array(mask.shape) - 1) / 2, 1.0])
    threshold = float(map_node.GetAttribute("UADBench.Threshold"))
    columns = []
    for right, down in PLANES.values():
        right, down = np.array(right, dtype=float), np.array(down, dtype=float)
        points = _points(middle[:3], place, right, down)
        scan = _window(_sample(voxels_of(volume.GetImageData()), world_affine(volume), points, linear=True), volume)
        grey = np.repeat(scan[..., None], 3, axis=-1)
        z = _sample(voxels_of(map_node.GetImageData()), world_affine(map_node), points, linear=True)
        inside = _sample(mask, world_affine(volume), points, linear=False) > 0
        columns.append(np.concatenate([_crossed(grey, points, place), _coloured(grey, z, threshold, inside)]))
    return np.round(255 * np.concatenate(columns, axis=1)).astype(np.uint8)


def write_pictures(map_node: Any, folder: Path, stem: str) -> list[Path]:
    """Write one PNG for each finding and return their paths; an empty list for no finding."""
    nodes, written = results.nodes_of(map_node), []
    mask = results.mask_of(nodes.segmentation, results.input_of(map_node))
    for row, found in enumerate(findings.rows_of(nodes.findings)):
        path = folder / f"{stem}_model-{map_node.GetAttribute('UADBench.Model')}_finding-{found['index']:02d}.png"
        write_png(picture_of(map_node, row, mask), path)
        written.append(path)
    return written


def write_png(rgb: np.ndarray, path: Path) -> None:
    """Write a picture, shape (rows, columns, 3), uint8, first row at the top."""
    image = vtk.vtkImageData()
    image.SetDimensions(rgb.shape[1], rgb.shape[0], 1)
    flat = np.ascontiguousarray(rgb[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(image)
    writer.Write()


def _points(middle: np.ndarray, place: np.ndarray, right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return the world places of a picture's pixels, shape (SIZE, SIZE, 3): the head in the middle, through a place."""
    through = middle + np.cross(right, down) * np.dot(np.cross(right, down), place - middle)
    steps = (np.arange(SIZE) - (SIZE - 1) / 2) * FIELD_MM / SIZE
    return through + steps[None, :, None] * right + steps[:, None, None] * down


def _sample(voxels: np.ndarray, affine: np.ndarray, points: np.ndarray, linear: bool) -> np.ndarray:
    """Return the values of an array at world places; 0 outside of it."""
    inverse = np.linalg.inv(affine)
    index = points @ inverse[:3, :3].T + inverse[:3, 3]
    if not linear:
        return _at(voxels, np.floor(index + 0.5).astype(int))
    low = np.floor(index).astype(int)
    part, total = index - low, np.zeros(points.shape[:2])
    for corner in range(8):
        shift = np.array([(corner >> axis) & 1 for axis in range(3)])
        weight = np.prod(np.where(shift, part, 1 - part), axis=-1)
        total += weight * _at(voxels, low + shift)
    return total


def _at(voxels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the voxels at integer places, 0 outside."""
    within = np.all((index >= 0) & (index < np.array(voxels.shape)), axis=-1)
    values = np.zeros(index.shape[:-1])
    values[within] = voxels[tuple(index[within].T)]
    return values


def _window(values: np.ndarray, volume: Any) -> np.ndarray:
    """Return values as grey between 0 and 1, by the window that the scan is shown with."""
    shown = volume.GetDisplayNode()
    if shown is not None and hasattr(shown, "GetWindowLevelMin") and shown.GetWindow() > 0:
        low, high = shown.GetWindowLevelMin(), shown.GetWindowLevelMax()
    else:
        low, high = volume.GetImageData().GetScalarRange()
    return np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)


def _coloured(grey: np.ndarray, z: np.ndarray, threshold: float, inside: np.ndarray) -> np.ndarray:
    """Return a grey picture with the map over it where it exceeds the threshold, and the outlines of the findings."""
    low, high = display.SCALE
    palette = display.palette()
    index = np.clip(np.round((z - low) / (high - low) * 255), 0, 255).astype(int)
    over = (z > threshold)[..., None] * OPACITY
    picture = grey * (1 - over) + palette[index] * over
    border = inside & ~(np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1))
    picture[border] = segments.FOUND
    return picture


def _crossed(grey: np.ndarray, points: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return a grey picture with four short lines that point at a place."""
    picture = grey.copy()
    distance = np.linalg.norm(points - place, axis=-1)
    row, column = np.unravel_index(int(np.argmin(distance)), distance.shape)
    for start, stop in ((-22, -10), (11, 23)):
        picture[row, max(0, column + start) : max(0, column + stop)] = segments.MISSED
        picture[max(0, row + start) : max(0, row + stop), column] = segments.MISSED
    return picture
