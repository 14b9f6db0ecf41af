"""The raw anomaly map of a prepared scan: slices through the method in batches, then the postprocessing that every map
gets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from UADBenchLib.inference.postprocessing import median_in_brain, smooth_in_brain, without_edge
from UADBenchLib.methods.base import Method, Slices
from UADBenchLib.scan import Progress

SEED = 20251201
"""Of the generator that methods with random inference draw from: the same scan gives the same map."""


def score_volume(
    method: Method,
    voxels: np.ndarray,
    mask: np.ndarray,
    voxel_mm: float,
    *,
    device=None,
    batch: int = 8,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score a prepared scan.

    Parameters
    ----------
    method : Method
        In evaluation mode, on ``device``.
    voxels, mask : numpy.ndarray
        Shape (X, Y, Z): prepared intensities and boolean brain mask in model space.
    voxel_mm : float
        Edge of the model grid.
    batch : int
        Slices that go through the network together.
    progress : callable, optional
        Called with ("scoring", fraction) after every batch.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        Raw map (X, Y, Z) float32, median filtered and smoothed; and the boolean mask of what was scored, the brain
        without its rim. The map is zero outside it.
    """
    result = _through(method.score, "scoring", voxels, mask, device, batch, progress)
    scored = without_edge(mask, voxel_mm)
    result = smooth_in_brain(median_in_brain(result, mask), mask, voxel_mm)
    result[~scored] = 0
    return result, scored


def reconstruct_volume(
    method: Method,
    voxels: np.ndarray,
    mask: np.ndarray,
    *,
    device=None,
    batch: int = 8,
    progress: Progress | None = None,
) -> np.ndarray | None:
    """Return the pseudo-healthy scan of a method, or None from a method that has none.

    Parameters are those of ``score_volume``; progress is called with ("reconstruction", fraction).

    Returns
    -------
    numpy.ndarray or None
        Shape (X, Y, Z), float32, prepared intensity; zero outside the mask.
    """
    if type(method).reconstruct is Method.reconstruct:
        return None
    return _through(method.reconstruct, "reconstruction", voxels, mask, device, batch, progress) * mask


def _through(
    function: Callable, stage: str, voxels: np.ndarray, mask: np.ndarray, device, batch: int, progress: Progress | None
) -> np.ndarray:
    """Send the slices of a scan through one of a method's functions, a batch at a time."""
    import torch

    # Axial slices become the batch axis; slices without brain are not computed at all.
    positions = np.flatnonzero(mask.any(axis=(0, 1)))
    images = torch.from_numpy(np.ascontiguousarray(voxels.transpose(2, 0, 1)[positions, None], dtype=np.float32))
    masks = torch.from_numpy(np.ascontiguousarray(mask.transpose(2, 0, 1)[positions, None]))
    places = torch.from_numpy(positions.astype(np.int64))
    generator = torch.Generator().manual_seed(SEED)
    result = np.zeros(voxels.shape, dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(positions), batch):
            part = Slices(images[start : start + batch], masks[start : start + batch], places[start : start + batch])
            values = function(part.to(device) if device is not None else part, generator).float().cpu().numpy()
            result[:, :, positions[start : start + batch]] = values[:, 0].transpose(1, 2, 0)
            if progress is not None:
                progress(stage, min(1.0, (start + batch) / len(positions)))
    return result
