"""The contract that every method keeps, so that training, inference and the benchmark need to know none of them.

A method is an ``nn.Module`` with a frozen configuration. It learns from healthy slices: by gradient
(``training_loss``), and by going through them once before (``fit``) or after the gradient steps (``finish``). It gives
every brain pixel of a slice a score: higher means more abnormal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.corruption import augmentation
from UADBenchLib.errors import InputError


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
    (EMA).

    ``constant`` keeps the learning rate after the warm-up; ``clip`` infinite and ``ema`` 0 switch these two off.
    """

    steps: int
    batch: int = 16
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warm_up: int = 100
    clip: float = 1.0
    ema: float = 0.999
    constant: bool = False


def published(steps: int, batch: int = 128, learning_rate: float = 1e-4, **changes: Any) -> Schedule:
    """The schedule that the published trainings share: constant rate, no warm-up, no clipping, no averaging."""
    plain = {"warm_up": 0, "clip": math.inf, "ema": 0.0, "constant": True}
    return Schedule(steps, batch, learning_rate, **(plain | changes))


@contextmanager
def layer_randomness(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Make dropout layers, which draw from torch's global generator, draw from ``generator`` (CPU) for the time of a
    forward pass."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def load_pretrained(self, contrast: str, source: str | None = None) -> dict[str, Any]:
        """Take over weights that are not trained here, before ``fit``; methods without such weights do nothing.

        Parameters
        ----------
        contrast : str
            Of the scans to be trained on.
        source : str, optional
            Instead of the configuration's source; see ``methods.features``.

        Returns
        -------
        dict
            Where they came from, as plain values for the bundle's metadata.
        """
        if source is not None:
            raise InputError(
                "BACKBONE_UNUSED",
                f"{self.name} has no feature backbone to take from {source!r}",
                "leave the option out",
            )
        return {}

    def augmented(self, slices: Slices, generator: torch.Generator) -> Slices:
        """The slices changed at random (``corruption.augmentation``) where the configuration's ``augment`` wants it."""
        if not self.config.augment:
            return slices
        drawn = augmentation.draw(len(slices), generator)
        return Slices(*augmentation.apply(drawn, slices.images, slices.masks), slices.positions)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Return the scalar loss of a batch of healthy slices on the method's device; randomness comes from
        ``generator`` (CPU) alone."""
        raise TypeError(f"{self.name} is fitted, not trained")

    def fit(self, batches: Iterable[Slices]) -> None:
        """Go once through the healthy slices. Methods trained by gradient use it to measure constants, or not at
        all."""

    def finish(self, batches: Iterable[Slices]) -> None:
        """Go once through healthy slices after training, with the weights that are kept, to measure what depends on
        them."""

    @abstractmethod
    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Return (N, 1, X, Y) float32 scores: finite, non-negative, higher = more abnormal, zero outside the brain."""

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        """Return the pseudo-healthy slices (N, 1, X, Y), or None when the method has none."""
        return None

    def slice_scores(self, slices: Slices, generator: torch.Generator) -> Tensor | None:
        """Return (N,) one score a slice, higher = more abnormal, 0 without brain, or None when the method has none."""
        return None


def brain_average(values: Tensor, brain: Tensor, side: int) -> Tensor:
    """Mean of values (N, C, H, W) over a square around every pixel, of the brain in it alone; zero where it holds none.

    What is averaged before its size is taken loses noise and edges out of place, which have both signs, and keeps an
    even lesion.

    Parameters
    ----------
    brain : Tensor
        (N, 1, H, W): brain mask, or share of brain in each pixel.
    side : int
        Side of the square in pixels, odd; 1 gives the values as they are.
    """
    if side == 1:
        return values
    weight = brain.to(values.dtype)
    share = F.avg_pool2d(weight, side, 1, side // 2)
    return F.avg_pool2d(values * weight, side, 1, side // 2) / share.clamp(min=1e-6)


def scan_score(slice_scores: Tensor, share: float = 0.1) -> float:
    """The score of a scan: the mean of the highest ``share`` of its slice scores (N,), at least one of them."""
    count = max(1, round(share * len(slice_scores)))
    return float(slice_scores.topk(count).values.mean())
