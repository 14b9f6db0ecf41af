"""The square frame in which a published method works: slices of the model grid enlarged to its pixel size and padded to
its field of view, and maps brought back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Frame:
    """A working field of view.

    Attributes
    ----------
    size : int
        Pixels along each side; 0 leaves slices as they are.
    scale : int
        Working pixels along one pixel of the model grid: 2 makes 1 mm pixels of a 2 mm grid.
    """

    size: int = 0
    scale: int = 1

    def enter(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, 1, size, size) and boolean masks of slices (N, 1, X, Y); zero stays outside the brain.

        Raises
        ------
        ValueError
            When the enlarged slices do not fit.
        """
        if not self.size:
            return images, masks
        inside = F.interpolate(masks.to(images.dtype), scale_factor=float(self.scale)).bool()
        images = F.interpolate(images, scale_factor=float(self.scale), mode="bilinear", align_corners=False) * inside
        padding = self._padding(*images.shape[-2:])
        return F.pad(images, padding), F.pad(inside, padding)

    def leave(self, maps: Tensor, shape: torch.Size) -> Tensor:
        """Bring maps (N, C, size, size) back to the grid of slices of ``shape`` (..., X, Y): the mean over each
        pixel."""
        if not self.size:
            return maps
        height, width = shape[-2] * self.scale, shape[-1] * self.scale
        left, _, top, _ = self._padding(height, width)
        return F.avg_pool2d(maps[..., top : top + height, left : left + width], self.scale)

    def _padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        if max(height, width) > self.size:
            raise ValueError(f"slices of {height} x {width} working pixels do not fit into {self.size} x {self.size}")
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return left, self.size - width - left, top, self.size - height - top
