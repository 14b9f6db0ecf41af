"""A scan: voxels that never travel without their affine, and what was found out about them on the way.

Arrays are in nibabel's order (i, j, k) and affines map voxel indices to RAS millimetres. Reading and writing live in
``reading`` and ``writing``; orientation and resampling in ``geometry``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Level = Literal["error", "warning", "info"]
Contrast = Literal["T1w", "T2w", "FLAIR"]
CONTRASTS: tuple[str, ...] = ("T1w", "T2w", "FLAIR")

Progress = Callable[[str, float], None]
"""Called with (stage, fraction in [0, 1] of the whole job); raising ``CancelledError`` in it stops the job."""


def no_check() -> None:
    """Stand in for a callback that could stop a long step, where nobody wants to."""


@dataclass(frozen=True)
class Check:
    """One thing noticed about a scan: how serious, a stable code, what, and what to do."""

    level: Level
    code: str
    message: str
    advice: str = ""


@dataclass
class Scan:
    """One three-dimensional scan on its own grid.

    Attributes
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K), float32, finite. Arbitrary intensity unit.
    affine : numpy.ndarray
        Shape (4, 4), float64: voxel index to RAS millimetres. May be left-handed, oblique or anisotropic.
    stem : str
        File name without folder and image suffix; the only thing of the input's name that results carry.
    contrast : str or None
        ``"T1w"``, ``"T2w"``, ``"FLAIR"``, or None when it is not known.
    checks : list of Check
        What was noticed while reading; never contains level ``"error"`` (those are raised).
    provenance : dict
        JSON-serialisable facts about where the voxels came from (format, data type, SHA-256), no patient text.
    """

    voxels: np.ndarray
    affine: np.ndarray
    stem: str = "scan"
    contrast: str | None = None
    checks: list[Check] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.affine = np.asarray(self.affine, dtype=np.float64)
        if self.voxels.ndim != 3:
            raise ValueError(f"a scan has three dimensions, not {self.voxels.ndim}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"an affine is 4 x 4, not {self.affine.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        return self.voxels.shape  # type: ignore[return-value]

    @property
    def voxel_mm(self) -> np.ndarray:
        """Edge lengths of a voxel along i, j, k in millimetres."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0
