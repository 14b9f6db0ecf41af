"""RIAD: reconstruction by inpainting (Zavrtanik et al. 2021, Pattern Recognition 112, 107706).

A slice is cut into squares, the squares are split at random into a few sets, each set is inpainted from all the others,
and the inpainted parts are stitched together: every pixel is predicted without being seen. Slice and stitched slice are
compared by the similarity of their gradients at several scales, for several sizes of squares. The compact preset learns
to inpaint healthy tissue also from what is abnormal, and scores the mean over sizes of gradients and plain difference
together, smoothed: inside of an even lesion there is no gradient. The published score weighs sizes by their number of
cells and subtracts the least value of what is scored together, which the paper preset does on request only, since it
makes scans incomparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.anomalies import with_anomalies
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices, brain_average, layer_randomness, published
from UADBenchLib.methods.frame import Frame
from UADBenchLib.networks.diffusion_unet import DiffusionUNet, DiffusionUNetSettings
from UADBenchLib.networks.similarity import gradient_similarity_maps, ssim_map
from UADBenchLib.networks.unet import UNet


@dataclass(frozen=True)
class RiadConfig:
    """Configuration of RIAD.

    Attributes
    ----------
    widths, stem, blocks, size, scale
        As for ANDi.
    cells : tuple of int
        Sides of the squares, in pixels of the frame.
    sets : int
        Sets that the squares are split into.
    smoothing : int
        Side of the mean filter over the score, in pixels of the model grid; 1 leaves it out.
    restore : bool
        Train on slices with synthetic anomalies and ask for the healthy ones: squares are inpainted from what may be
        abnormal itself.
    residual : float
        Weight of the absolute difference in the score; 0 as published, which leaves even lesions out but for their rim.
    averaged : int
        Side of the square over which the difference is averaged, sign and all, before its size counts; 1 leaves it out.
        See ``brain_average``.
    published_weights : bool
        Divide the score of each size by its number of cells.
    subtract_minimum : bool
        Subtract the least score of the slices that are scored together, as the released code does.
    causal, single_activation : bool
        See ``DiffusionUNetSettings``.
    """

    widths: tuple[int, ...] = (16, 32, 56, 80)
    stem: int = 2
    blocks: tuple[int, ...] = ()
    size: int = 0
    scale: int = 1
    cells: tuple[int, ...] = (4, 8, 16)
    sets: int = 4
    smoothing: int = 5
    augment: bool = True
    restore: bool = True
    residual: float = 1.0
    averaged: int = 9
    published_weights: bool = False
    subtract_minimum: bool = False
    causal: bool = False
    single_activation: bool = False


PAPER = RiadConfig(
    widths=(32, 32, 32, 64, 96, 128),
    blocks=(1, 1, 1, 2, 3, 2),
    size=224,
    scale=2,
    cells=(8, 16, 28, 32),
    sets=5,
    smoothing=1,
    augment=False,
    restore=False,
    residual=0.0,
    averaged=1,
    published_weights=True,
)


class Riad(Method):
    """Score: dissimilarity of a slice and its inpainted self, in gradients over scales and in intensity, over sizes of
    squares."""

    name = "riad"
    paper = "Zavrtanik et al. 2021, doi:10.1016/j.patcog.2020.107706"
    presets = {
        "compact": Preset(RiadConfig(), Schedule(steps=5_000, batch=4, learning_rate=1e-3)),
        # T1w; the published rate for T2w is 5e-5.
        "paper": Preset(PAPER, published(100_000, batch=16, learning_rate=5e-6)),
    }

    def __init__(self, config: RiadConfig) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        if config.blocks:
            settings = DiffusionUNetSettings(
                config.widths,
                config.blocks,
                attention=(4, 5),
                causal=config.causal,
                activate_twice=not config.single_activation,
            )
            self.network = DiffusionUNet(settings)
        else:
            self.network = UNet(config.widths, config.stem)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        slices = self.augmented(slices, generator)
        images, masks = self.frame.enter(slices.images, slices.masks)
        shown = with_anomalies(images, masks, generator) if self.config.restore else images
        cell = self.config.cells[int(torch.randint(len(self.config.cells), (1,), generator=generator))]
        with layer_randomness(generator, self.device):
            stitched = self._stitched(shown, cell, generator)
        gradients = torch.stack([1 - part.mean() for part in gradient_similarity_maps(images, stitched)]).mean()
        return F.mse_loss(stitched, images) + gradients + 1 - ssim_map(images, stitched).mean()

    def _stitched(self, images: Tensor, cell: int, generator: torch.Generator) -> Tensor:
        """Every pixel as inpainted from the sets that it is not in; one split for all slices of the batch."""
        rows, columns = (-(-size // cell) for size in images.shape[-2:])
        order = torch.randperm(rows * columns, generator=generator)
        chosen = (order % self.config.sets).reshape(rows, columns).to(images.device)
        chosen = chosen.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[: images.shape[-2], : images.shape[-1]]
        hidden = torch.stack([chosen == number for number in range(self.config.sets)])[:, None, None]
        shown = torch.where(hidden, 0.0, images)  # (sets, N, 1, H, W)
        painted = self.network(shown.flatten(0, 1)).float().unflatten(0, shown.shape[:2])
        return (painted * hidden).sum(dim=0)

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, masks = self.frame.enter(slices.images, slices.masks)
        total = torch.zeros_like(images)
        for cell in self.config.cells:
            stitched = self._stitched(images, cell, generator)
            maps = gradient_similarity_maps(images, stitched)
            alike = torch.stack([F.interpolate(part, images.shape[-2:], mode="bilinear") for part in maps]).mean(dim=0)
            difference = brain_average(images - stitched, masks, self.config.averaged)
            unlike = 1 - alike + self.config.residual * difference.abs()
            cells = -(-images.shape[-2] // cell) * -(-images.shape[-1] // cell)
            total += unlike / (cells if self.config.published_weights else len(self.config.cells))
        scores = self.frame.leave(total, slices.images.shape).clamp(min=0)
        if self.config.subtract_minimum and slices.masks.any():
            scores = (scores - scores[slices.masks].min()).clamp(min=0)
        return brain_average(scores, slices.masks, self.config.smoothing) * slices.masks

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """The stitched slice for squares of the middle size."""
        images, _ = self.frame.enter(slices.images, slices.masks)
        cell = self.config.cells[len(self.config.cells) // 2]
        stitched = self._stitched(images, cell, generator)
        return self.frame.leave(stitched, slices.images.shape) * slices.masks


METHOD = Riad
