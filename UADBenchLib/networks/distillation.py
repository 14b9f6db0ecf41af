"""The student of reverse distillation (Deng & Li 2022, arXiv 2201.10703): a bottleneck that fuses a teacher's maps into
one small code, and a decoder that grows maps of the teacher's sizes out of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.networks.backbones import BasicBlock, WideBottleneck, conv_norm


class GrowingBlock(nn.Module):
    """A residual block turned around: the first of a stage doubles the resolution by a transposed convolution.

    ``wide`` blocks are those of a Wide ResNet-50, others have two 3 x 3 convolutions.
    """

    def __init__(self, inputs: int, outputs: int, grow: bool, wide: bool) -> None:
        super().__init__()
        inner = outputs // 2 if wide else outputs
        change = [nn.ConvTranspose2d(inner if wide else inputs, inner, 2, 2, bias=False), nn.BatchNorm2d(inner)]
        middle = change if grow else conv_norm(inner if wide else inputs, inner, 3)
        if wide:
            layers = [*conv_norm(inputs, inner, 1), nn.ReLU(), *middle, nn.ReLU(), *conv_norm(inner, outputs, 1)]
        else:
            layers = [*middle, nn.ReLU(), *conv_norm(inner, outputs, 3)]
        self.body = nn.Sequential(*layers)
        grown = [nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.BatchNorm2d(outputs)]
        self.skip = nn.Sequential(*grown) if grow else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class Bottleneck(nn.Module):
    """Three maps (C1, C2, C3 channels, each half as large as the one before) to a code of half the last one's size.

    Parameters
    ----------
    channels : tuple of int
        Of the three maps.
    code : int
        Channels of the code.
    blocks : int
        Residual blocks that make it.
    wide : bool
        Blocks of a Wide ResNet-50 instead of basic ones.
    unused_layer : bool
        Also hold the convolution that the published bottleneck has and never uses: 8.4 of its 67.3 million weights.
    """

    def __init__(
        self, channels: tuple[int, ...], code: int, blocks: int, wide: bool, unused_layer: bool = False
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.shrink = nn.ModuleList(
            [
                nn.Sequential(*conv_norm(first, second, 3, 2), nn.ReLU(), *conv_norm(second, third, 3, 2), nn.ReLU()),
                nn.Sequential(*conv_norm(second, third, 3, 2), nn.ReLU()),
            ]
        )
        block = WideBottleneck if wide else BasicBlock
        rest = [block(code, code) for _ in range(blocks - 1)]
        self.fuse = nn.Sequential(block(3 * third, code, stride=2), *rest)
        self.unused = nn.Sequential(*conv_norm(4 * third, code, 1)) if unused_layer else None

    def forward(self, maps: list[Tensor]) -> Tensor:
        shallow = [shrink(values) for shrink, values in zip(self.shrink, maps, strict=False)]
        return self.fuse(torch.cat([*shallow, maps[-1]], dim=1))


class Decoder(nn.Module):
    """The code (N, code, h, w) to three maps, shallow ones first, of 8, 4 and 2 times its size."""

    def __init__(self, code: int, channels: tuple[int, ...], blocks: tuple[int, ...], wide: bool) -> None:
        super().__init__()
        self.stages, inputs = nn.ModuleList(), code
        for outputs, count in zip(channels[::-1], blocks, strict=True):
            rest = [GrowingBlock(outputs, outputs, False, wide) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(GrowingBlock(inputs, outputs, True, wide), *rest))
            inputs = outputs

    def forward(self, x: Tensor, sizes: list[torch.Size]) -> list[Tensor]:
        """Maps of exactly ``sizes`` (deep ones first): a code of an odd map is a little too large when it has grown."""
        maps = []
        for stage, size in zip(self.stages, sizes, strict=True):
            x = stage(x)[..., : size[0], : size[1]]
            maps.append(x)
        return maps[::-1]
