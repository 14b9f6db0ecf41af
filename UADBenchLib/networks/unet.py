"""A small residual U-Net for slices, with an optional scalar condition (noise level, corruption strength).

The layout follows the DDPM family: group normalisation, SiLU before every convolution, scale-shift conditioning, and a
last convolution that starts at zero. Resolution is halved by average pooling and doubled by nearest neighbour.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoidal_embedding(values: Tensor, width: int) -> Tensor:
    """Embed scalars (N,) in about [0, 1000] as (N, width) sines and cosines of geometrically spaced frequencies."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=values.device) / half)
    angles = values.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a skip; the condition scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, condition: int | None) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(8, inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second_norm = nn.GroupNorm(8, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * outputs) if condition else None
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.first(F.silu(self.first_norm(x)))
        h = self.second_norm(h)
        if self.modulate is not None:
            scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


class UNet(nn.Module):
    """U-Net from (N, channels, H, W) to (N, 1, H, W); H and W must be multiples of ``stem * 2 ** (len(widths) - 1)``.

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
    """

    def __init__(self, widths: tuple[int, ...], stem: int = 1, conditioned: bool = False, channels: int = 1) -> None:
        super().__init__()
        self.fold, self.unfold = nn.PixelUnshuffle(stem), nn.PixelShuffle(stem)
        width = 4 * widths[0] if conditioned else None
        self.embed = (
            nn.Sequential(nn.Linear(widths[0], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()) if width else None
        )
        self.stem = nn.Conv2d(channels * stem**2, widths[0], 3, padding=1)
        ins = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(ResidualBlock(i, o, width) for i, o in zip(ins, widths, strict=True))
        self.middle = ResidualBlock(widths[-1], widths[-1], width)
        reverse = widths[::-1]
        deeper = (widths[-1], *reverse[:-1])
        self.up = nn.ModuleList(ResidualBlock(d + o, o, width) for d, o in zip(deeper, reverse, strict=True))
        self.last_norm = nn.GroupNorm(8, widths[0])
        self.last = nn.Conv2d(widths[0], stem**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.width = widths[0]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        embedded = None if self.embed is None else self.embed(sinusoidal_embedding(condition, self.width).to(x.dtype))
        h = self.stem(self.fold(x))
        skips = []
        for level, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if level else h, embedded)
            skips.append(h)
        h = self.middle(h, embedded)
        for level, block in enumerate(self.up):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0) if level else h, skips.pop()], dim=1), embedded)
        return self.unfold(self.last(F.silu(self.last_norm(h))))
