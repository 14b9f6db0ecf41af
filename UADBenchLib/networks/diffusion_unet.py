"""The larger U-Net of diffusion models that the published ANDi, DISYRE, RIAD and IterMask2 share ("DDPM++" layout).

Resampling lies inside residual blocks, self-attention works at the coarse levels, and the decoder has one block more a
level than the encoder. The compact presets use ``unet`` instead. Two habits of the released code of these methods are
options here, off by default: attention through a causal mask, and no activation before the second convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.networks.unet import sinusoidal_embedding


@dataclass(frozen=True)
class DiffusionUNetSettings:
    """Sizes and options of a ``DiffusionUNet``.

    Attributes
    ----------
    widths, blocks : tuple of int
        Channels and residual blocks of each level; every level has half the resolution of the one before.
    attention : tuple of int
        Levels (0 is full resolution) with self-attention.
    head : int
        Channels of an attention head.
    dropout : float
        Chance of a feature to be dropped, at level ``dropout_from`` and coarser ones.
    rescale : bool
        Divide the sum of a residual block by the square root of two.
    normalisation : str
        ``"group"`` or ``"batch"``.
    causal : bool
        Let a position attend to itself and those before it in reading order alone, as the released code does.
    activate_twice : bool
        SiLU before the second convolution too; the released code leaves it out beside group normalisation.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[int, ...] = ()
    head: int = 32
    dropout: float = 0.1
    dropout_from: int = 4
    rescale: bool = False
    normalisation: str = "group"
    causal: bool = False
    activate_twice: bool = True

    def __post_init__(self) -> None:
        if self.normalisation not in ("group", "batch"):
            raise ValueError(f"normalisation is {self.normalisation!r}, not 'group' or 'batch'")
        if len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks have one number for each level")


def _scaled(module: nn.Module, gain: float = 1.0) -> nn.Module:
    """Initialise weights evenly with the variance that keeps signals, times ``gain``; biases are zero."""
    if gain:
        nn.init.xavier_uniform_(module.weight, math.sqrt(gain))
    else:
        nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def _normalise(channels: int, kind: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class _Block(nn.Module):
    """Residual block: normalise, activate, convolve, twice; the condition scales and shifts between."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        settings: DiffusionUNetSettings,
        condition: int | None,
        dropout: float,
        resample: str = "",
    ) -> None:
        super().__init__()
        self.resample, self.rescale, self.activate_twice = resample, settings.rescale, settings.activate_twice
        self.first_norm = _normalise(inputs, settings.normalisation)
        self.first = _scaled(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.second_norm = _normalise(outputs, settings.normalisation)
        self.second = _scaled(nn.Conv2d(outputs, outputs, 3, padding=1), gain=0)
        self.modulate = _scaled(nn.Linear(condition, 2 * outputs)) if condition else None
        self.dropout = nn.Dropout(dropout)
        change = inputs != outputs or resample
        self.skip = _scaled(nn.Conv2d(inputs, outputs, 1)) if change else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = F.silu(self.first_norm(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.first(h)
        if self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
        h = self.second_norm(h)
        if self.modulate is not None:
            scale, shift = self.modulate(F.silu(condition))[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        if self.activate_twice:
            h = F.silu(h)
        h = self.skip(x) + self.second(self.dropout(h))
        return h / math.sqrt(2) if self.rescale else h


class _Attention(nn.Module):
    """Residual multi-head self-attention over the positions of a map, in row order."""

    def __init__(self, channels: int, settings: DiffusionUNetSettings) -> None:
        super().__init__()
        self.heads, self.causal, self.rescale = channels // settings.head, settings.causal, settings.rescale
        self.norm = _normalise(channels, "group")
        self.enter = _scaled(nn.Linear(channels, channels))
        self.mix = nn.Linear(channels, 3 * channels, bias=False)
        self.leave = _scaled(nn.Linear(channels, channels), gain=0)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(self.norm(x).flatten(2).transpose(1, 2))
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.mix(tokens).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        mixed = self.dropout(self.leave(mixed.transpose(1, 2).flatten(2)))
        h = x + mixed.transpose(1, 2).reshape(x.shape)
        return h / math.sqrt(2) if self.rescale else h


class _Level(nn.Module):
    """One residual block, and self-attention after it where the level has some."""

    def __init__(self, block: _Block, attention: _Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.block(x, condition)
        return x if self.attention is None else self.attention(x)


class DiffusionUNet(nn.Module):
    """U-Net from (N, channels, H, W) to (N, 1, H, W); H and W must be multiples of ``2 ** (levels - 1)``.

    Parameters
    ----------
    settings : DiffusionUNetSettings
    conditioned : bool
        Whether ``forward`` takes a scalar a sample, in about [0, 1000].
    channels : int
        Input channels.
    """

    def __init__(self, settings: DiffusionUNetSettings, conditioned: bool = False, channels: int = 1) -> None:
        super().__init__()
        self.settings = settings
        width = settings.widths[0]
        self.condition = 4 * width if conditioned else None
        if conditioned:
            self.embed = nn.Sequential(
                _scaled(nn.Linear(width, 4 * width)), nn.SiLU(), _scaled(nn.Linear(4 * width, 4 * width))
            )
        self.stem = _scaled(nn.Conv2d(channels, width, 3, padding=1))
        skips = self._build_encoder(width)
        last = settings.widths[-1]
        self.middle = nn.ModuleList(
            [_Level(self._block(last, last), _Attention(last, settings)), _Level(self._block(last, last), None)]
        )
        self._build_decoder(skips)
        self.last_norm = _normalise(width, settings.normalisation)
        self.last = _scaled(nn.Conv2d(width, 1, 3, padding=1), gain=0)

    def _block(self, inputs: int, outputs: int, level: int | None = None, resample: str = "") -> _Block:
        coarse = level is None or level >= self.settings.dropout_from
        chance = self.settings.dropout if coarse else 0.0
        return _Block(inputs, outputs, self.settings, self.condition, chance, resample)

    def _attention(self, level: int) -> _Attention | None:
        return _Attention(self.settings.widths[level], self.settings) if level in self.settings.attention else None

    def _build_encoder(self, width: int) -> list[int]:
        """Blocks down to the coarsest level; returns the channels of every skip."""
        self.down, skips = nn.ModuleList(), [width]
        levels = len(self.settings.widths)
        for level, (outputs, count) in enumerate(zip(self.settings.widths, self.settings.blocks, strict=True)):
            for _ in range(count):
                self.down.append(_Level(self._block(width, outputs, level), self._attention(level)))
                width = outputs
                skips.append(width)
            if level < levels - 1:
                self.down.append(_Level(self._block(width, width, level, "down"), None))
                skips.append(width)
        return skips

    def _build_decoder(self, skips: list[int]) -> None:
        self.up, width, skips = nn.ModuleList(), skips[-1], list(skips)
        for level in reversed(range(len(self.settings.widths))):
            outputs, count = self.settings.widths[level], self.settings.blocks[level] + 1
            for number in range(count):
                attention = self._attention(level) if number == count - 1 else None
                self.up.append(_Level(self._block(width + skips.pop(), outputs, level), attention))
                width = outputs
            if level:
                self.up.append(_Level(self._block(width, width, level, "up"), None))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        embedded = None
        if self.condition is not None:
            embedded = self.embed(sinusoidal_embedding(condition, self.settings.widths[0]).to(x.dtype))
        h = self.stem(x)
        skips = [h]
        for level in self.down:
            h = level(h, embedded)
            skips.append(h)
        for level in self.middle:
            h = level(h, embedded)
        for level in self.up:
            h = level(h if level.block.resample else torch.cat([h, skips.pop()], dim=1), embedded)
        return self.last(F.silu(self.last_norm(h)))
