"""Intensity normalisation: brings the brains of different scanners to one scale without looking at lesions twice."""

from __future__ import annotations

import numpy as np

CLIP = (0.0, 1.5)
"""Range of a prepared scan; tissue lies between about 0.1 and 1."""


def normalise(voxels: np.ndarray, mask: np.ndarray, low: float = 2.0, high: float = 98.0) -> tuple[np.ndarray, dict]:
    """Map the ``low`` and ``high`` percentiles of the brain to 0.1 and 0.9 and clip to ``CLIP``; zero outside the mask.

    Parameters
    ----------
    voxels, mask : numpy.ndarray
        Any equal shape; the mask is boolean.

    Returns
    -------
    (numpy.ndarray, dict)
        float32 array of the same shape, and the parameters that were measured.
    """
    inside = voxels[mask]
    bottom, top = (float(v) for v in np.percentile(inside, (low, high)))
    scale = 0.8 / max(top - bottom, 1e-6)
    out = np.where(mask, np.clip((voxels - bottom) * scale + 0.1, *CLIP), 0).astype(np.float32)
    return out, {"low": bottom, "high": top}
