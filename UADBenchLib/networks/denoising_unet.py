"""The U-Net of the published denoising autoencoder (Kascenas et al. 2023): weight-standardised convolutions, Swish and
group normalisation, no bottleneck; the compact preset uses ``unet`` instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters have zero mean and unit variance (Qiao et al. 2019, arXiv 1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-10)
        weight = weight / weight[0].numel() ** 0.5
        return self._conv_forward(x, weight, self.bias)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions of 3 x 3, each followed by Swish and group normalisation."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        conv = StandardisedConv(channels, outputs, 3, padding=1, padding_mode="reflect")
        layers += [conv, nn.SiLU(), nn.GroupNorm(8, outputs)]
    return nn.Sequential(*layers)


class DenoisingUNet(nn.Module):
    """U-Net from (N, 1, H, W) to (N, 1, H, W); H and W must be multiples of ``2 ** (len(widths) - 1)``.

    Parameters
    ----------
    widths : tuple of int
        Channels per level, each a multiple of 8.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(_pair(i, o) for i, o in zip((1, *widths[:-1]), widths, strict=True))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for deep, wide in steps)
        self.up = nn.ModuleList(_pair(2 * wide, wide) for _, wide in steps)
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat([enlarge(x), skips.pop()], dim=1))
        return self.last(x)
