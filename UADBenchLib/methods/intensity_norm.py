"""Voxelwise normative intensity: how many healthy standard deviations a voxel lies from the healthy mean at its place.

The baseline that every network must beat. It knows nothing of texture or shape, only which intensity registered healthy
brains have where. Mean and spread are kept for every voxel of the model grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from UADBenchLib.methods.base import Method, Preset, Slices


@dataclass(frozen=True)
class IntensityNormConfig:
    """Model grid (X, Y, Z), and the floor under the spread, in units of prepared intensity.

    ``minimum_count`` is the number of healthy brains that must cover a voxel before it is scored at all.
    """

    shape: tuple[int, int, int] = (80, 96, 84)
    floor: float = 0.05
    minimum_count: int = 5


class IntensityNorm(Method):
    """Voxelwise z score of prepared intensity."""

    name = "intensity_norm"
    paper = "Baseline of voxel-based morphometry: z score against registered healthy scans"
    presets = {"compact": Preset(IntensityNormConfig(), None)}

    def __init__(self, config: IntensityNormConfig) -> None:
        super().__init__(config)
        x, y, z = config.shape
        self.register_buffer("mean", torch.zeros(z, 1, x, y))
        self.register_buffer("spread", torch.ones(z, 1, x, y))
        self.register_buffer("count", torch.zeros(z, 1, x, y))

    def fit(self, batches: Iterable[Slices]) -> None:
        """Measure mean and spread of each voxel over the brains that cover it."""
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        squares, count = torch.zeros_like(total), torch.zeros_like(total)
        for batch in batches:
            inside = batch.masks.double()
            values = batch.images.double() * inside
            total.index_add_(0, batch.positions, values)
            squares.index_add_(0, batch.positions, values * values)
            count.index_add_(0, batch.positions, inside)
        safe = count.clamp(min=1)
        mean = total / safe
        variance = (squares / safe - mean**2).clamp(min=0)
        self.mean.copy_(mean)
        self.spread.copy_(variance.sqrt())
        self.count.copy_(count)

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        mean, spread, count = (b[slices.positions] for b in (self.mean, self.spread, self.count))
        known = (count >= self.config.minimum_count) & slices.masks
        return (slices.images - mean).abs() / spread.clamp(min=self.config.floor) * known

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return self.mean[slices.positions] * slices.masks


METHOD = IntensityNorm
