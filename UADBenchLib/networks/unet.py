"""A small residual U-Net for slices or volumes, with an optional scalar condition (noise level, corruption strength).

The layout follows the DDPM family: group normalisation, SiLU before every convolution, scale-shift conditioning, and a
last convolution that starts at zero. Resolution is halved by average pooling and doubled by nearest neighbour.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def sinusoidal_embedding(values: Tensor, width: int) -> Tensor:
    """Embed scalars (N,) in about [0, 1000] as (N, width) sines and cosines of geometrically spaced frequencies."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device) / half)
    angles = values.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def fold(x: Tensor, size: int) -> Tensor:
    """Move blocks of ``size`` pixels along each side into channels: (N, C, H, W) to (N, C size^2, H/size, W/size)."""
    sides = [part for side in x.shape[2:] for part in (side // size, size)]
    blocks = x.reshape(*x.shape[:2], *sides)
    outer, inner = range(2, blocks.dim(), 2), range(3, blocks.dim(), 2)
    return blocks.permute(0, 1, *inner, *outer).flatten(1, 1 + len(inner))


def unfold(x: Tensor, size: int) -> Tensor:
    """Undo ``fold``."""
    sides = x.shape[2:]
    blocks = x.reshape(x.shape[0], -1, *[size] * len(sides), *sides)
    pairs = [axis for n in range(len(sides)) for axis in (2 + len(sides) + n, 2 + n)]
    return blocks.permute(0, 1, *pairs).reshape(x.shape[0], -1, *(size * side for side in sides))


class ResidualBlock(nn.Module):
    """Two convolutions of width 3 with a skip; the condition scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, condition: int | None, dimensions: int = 2) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[dimensions]
        self.first_norm = nn.GroupNorm(8, inputs)
        self.first = convolution(inputs, outputs, 3, padding=1)
        self.second_norm = nn.GroupNorm(8, outputs)
        self.second = convolution(outputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * outputs) if condition else None
        self.skip = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.first(F.silu(self.first_norm(x)))
        h = self.second_norm(h)
        if self.modulate is not None:
            scale, shift = self.modulate(condition).reshape(len(x), -1, *[1] * (x.dim() - 2)).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


class UNet(nn.Module):
    """U-Net from (N, channels, H, W) to (N, 1, H, W), or the same with a third side D; all sides must be multiples of
    ``stem * 2 ** (len(widths) - 1)``.

    Parameters
    ----------
    widths : tuple of int
        Channels per level, each a multiple of 8.
    stem : int
        Pixels along each side that are folded into channels at the first level and unfolded at the end. 2 makes the
        network about 2.5 times cheaper than 1.
    conditioned : bool
        Whether ``forward`` takes a scalar a sample, in about [0, 1000].
    channels : int
        Input channels.
    dimensions : int
        2 for slices, 3 for volumes.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        stem: int = 1,
        conditioned: bool = False,
        channels: int = 1,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        convolution = _CONVOLUTIONS[dimensions]
        self.fold_size = stem
        width = 4 * widths[0] if conditioned else None
        self.embed = (
            nn.Sequential(nn.Linear(widths[0], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()) if width else None
        )
        self.stem = convolution(channels * stem**dimensions, widths[0], 3, padding=1)
        ins = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(ResidualBlock(i, o, width, dimensions) for i, o in zip(ins, widths, strict=True))
        self.middle = ResidualBlock(widths[-1], widths[-1], width, dimensions)
        reverse = widths[::-1]
        deeper = (widths[-1], *reverse[:-1])
        self.up = nn.ModuleList(
            ResidualBlock(d + o, o, width, dimensions) for d, o in zip(deeper, reverse, strict=True)
        )
        self.last_norm = nn.GroupNorm(8, widths[0])
        self.last = convolution(widths[0], stem**dimensions, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.width = widths[0]
        self.halve = F.avg_pool2d if dimensions == 2 else F.avg_pool3d

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = F.silu(self.last_norm(self.features(x, condition)))
        return unfold(self.last(h), self.fold_size)

    def features(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Activations (N, widths[0], H/stem, W/stem) before the last normalisation."""
        embedded = None if self.embed is None else self.embed(sinusoidal_embedding(condition, self.width).to(x.dtype))
        h = self.stem(fold(x, self.fold_size))
        skips = []
        for level, block in enumerate(self.down):
            h = block(self.halve(h, 2) if level else h, embedded)
            skips.append(h)
        h = self.middle(h, embedded)
        for level, block in enumerate(self.up):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0) if level else h, skips.pop()], dim=1), embedded)
        return h
