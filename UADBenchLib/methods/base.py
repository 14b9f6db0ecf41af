"""The contract that every method keeps, so that training, inference and the benchmark need to know none of them.

A method is an ``nn.Module`` with a frozen configuration. It learns from healthy slices, either by gradient
(``training_loss``) or by going through them once (``fit``), and gives every brain pixel of a slice a score: higher
means more abnormal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slices:
    """A batch of axial slices of prepared scans.

    Attributes
    ----------
    images : Tensor
        (N, 1, X, Y) float32, tissue in about [0.1, 1], zero outside the brain.
    masks : Tensor
        (N, 1, X, Y) bool brain masks.
    positions : Tensor
        (N,) int64: index of each slice along the model grid's S axis.
    """

    images: Tensor
    masks: Tensor
    positions: Tensor

    def to(self, device: torch.device | str) -> Slices:
        """The same slices on another device."""
        return Slices(self.images.to(device), self.masks.to(device), self.positions.to(device))

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: slice) -> Slices:
        return Slices(self.images[index], self.masks[index], self.positions[index])


@dataclass(frozen=True)
class Schedule:
    """How a preset is trained: AdamW with a linear warm-up and a cosine to zero, gradients clipped, weights averaged
    (EMA)."""

    steps: int
    batch: int = 16
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warm_up: int = 100
    clip: float = 1.0
    ema: float = 0.999


@dataclass(frozen=True)
class Preset:
    """A named configuration of a method with its training schedule (None for methods that only ``fit``)."""

    config: Any
    schedule: Schedule | None


class Method(nn.Module, ABC):
    """Base of all methods.

    Class attributes
    ----------------
    name : str
        Registry name.
    paper : str
        The work that the method comes from.
    presets : dict
        Named ``Preset`` s; ``compact`` is small enough to ship and to run on a laptop.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    presets: ClassVar[dict[str, Preset]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def configuration(self) -> dict[str, Any]:
        """The configuration as plain values, enough to build the same module again."""
        return asdict(self.config)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Return the scalar loss of a batch of healthy slices; randomness comes from ``generator`` (CPU) alone."""
        raise TypeError(f"{self.name} is fitted, not trained")

    def fit(self, batches: Iterable[Slices]) -> None:
        """Go once through the healthy slices. Methods trained by gradient use it to measure constants, or not at
        all."""

    @abstractmethod
    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Return (N, 1, X, Y) float32 scores: finite, non-negative, higher = more abnormal, zero outside the brain."""

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        """Return the pseudo-healthy slices (N, 1, X, Y), or None when the method has none."""
        return None
