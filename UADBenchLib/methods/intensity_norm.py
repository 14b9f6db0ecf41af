"""Voxelwise normative intensity: how many healthy standard deviations a voxel lies from the healthy mean at its place.

The baseline that every network must beat. It knows nothing of texture or shape, only which intensity registered healthy
brains have where. An affine registration leaves brains several millimetres apart, so that mean and spread are smooth:
they are kept on a coarser grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.methods.base import Method, Preset, Slices


@dataclass(frozen=True)
class IntensityNormConfig:
    """Model grid (X, Y, Z), and the floor under the spread, in units of prepared intensity.

    ``coarse`` is the number of voxels along each axis of the model grid that share a mean and a spread;
    ``minimum_count`` is the number of healthy brains that must cover a voxel before it is scored at all; where there
    are fewer, all of them.
    """

    shape: tuple[int, int, int] = (80, 96, 84)
    coarse: int = 2
    floor: float = 0.05
    minimum_count: int = 5


class IntensityNorm(Method):
    """Voxelwise z score of prepared intensity."""

    name = "intensity_norm"
    paper = "Baseline of voxel-based morphometry: z score against registered healthy scans"
    presets = {"compact": Preset(IntensityNormConfig(), None)}

    def __init__(self, config: IntensityNormConfig) -> None:
        super().__init__(config)
        x, y, z = (math.ceil(n / config.coarse) for n in config.shape)
        for name in ("mean", "spread", "count"):
            self.register_buffer(name, torch.zeros(1, 1, z, x, y))

    def fit(self, batches: Iterable[Slices]) -> None:
        """Measure mean and spread of each voxel over the brains that cover it."""
        x, y, z = self.config.shape
        total, squares, count = torch.zeros(3, z, 1, x, y, dtype=torch.float64)
        for batch in batches:
            inside = batch.masks.double()
            values = batch.images.double() * inside
            total.index_add_(0, batch.positions, values)
            squares.index_add_(0, batch.positions, values * values)
            count.index_add_(0, batch.positions, inside)
        safe = count.clamp(min=1)
        variance = (squares / safe - (total / safe) ** 2).clamp(min=0)
        covered = self._pool(count)
        self.mean.copy_(self._pool(total) / covered.clamp(min=1e-6))
        # Voxels weigh as much as the brains that cover them.
        self.spread.copy_((self._pool(variance * count) / covered.clamp(min=1e-6)).sqrt())
        self.count.copy_(covered)

    def _pool(self, values: Tensor) -> Tensor:
        """Means of the blocks of a map (Z, 1, X, Y) of the model grid; incomplete blocks count what they have."""
        coarse = self.config.coarse
        return F.avg_pool3d(values[:, 0][None, None], coarse, coarse, ceil_mode=True, count_include_pad=False)

    def _fine(self, values: Tensor, positions: Tensor) -> Tensor:
        """Slices (N, 1, X, Y) of a coarse map."""
        coarse = self.config.coarse
        x, y, z = self.config.shape
        fine = F.interpolate(values, scale_factor=coarse, mode="trilinear", align_corners=False)
        return fine[0, 0, positions, None, :x, :y]

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        mean, spread, count = (self._fine(b, slices.positions) for b in (self.mean, self.spread, self.count))
        known = (count >= self.count.amax().clamp(max=self.config.minimum_count)) & slices.masks
        return (slices.images - mean).abs() / spread.clamp(min=self.config.floor) * known

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return self._fine(self.mean, slices.positions) * slices.masks


METHOD = IntensityNorm
