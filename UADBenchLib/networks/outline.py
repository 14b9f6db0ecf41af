"""The network that outlines the brain: a U-Net that sees the whole head, and convolutions that draw the border where it
lies.

The U-Net is cheap because its first level is narrow, and what it answers is a smooth guess of a brain. Wider layers see
the head again, and what the U-Net made of it, in a box around that guess alone. They have no normalisation of their
own, so that a part of a head gives what the whole head gives, and they can be trained on many small parts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.networks.unet import UNet, fold, unfold

MARGIN = 3
"""Folded voxels around the guess, of the box in which the border is drawn."""


class Border(nn.Module):
    """Change of the logits (N, outputs, I, J, K) of a guess, from ``OutlineNet.see``; starts as none."""

    def __init__(self, inputs: int, width: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Conv3d(inputs, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(layers))
        self.last = nn.Conv3d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, seen: Tensor) -> Tensor:
        h = self.enter(seen)
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return self.last(F.silu(h))


class OutlineNet(nn.Module):
    """Logits of brain (1, 1, I, J, K) from a head of that shape in [0, 1], its sides multiples of what the U-Net needs.

    Parameters
    ----------
    widths, stem
        Of the ``UNet``.
    border : int
        Channels of the layers that draw the border.
    layers : int
        How many of them.
    """

    def __init__(self, widths: tuple[int, ...], stem: int, border: int, layers: int) -> None:
        super().__init__()
        self.guess = UNet(widths, stem, dimensions=3)
        self.border = Border(2 * stem**3 + widths[0], border, layers, stem**3)

    def forward(self, head: Tensor) -> Tensor:
        seen, logits, box = self.see(head)
        if seen.numel():
            logits[box] += self.border(seen)
        return unfold(logits, self.guess.fold_size)

    def see(self, head: Tensor) -> tuple[Tensor, Tensor, tuple[slice, ...]]:
        """What the border is drawn from.

        Returns
        -------
        (Tensor, Tensor, tuple of slice)
            Head, features and guess (1, C, i, j, k) in the box around the guess; the folded logits of the guess
            (1, stem^3, I, J, K); and the box in them, empty where no brain is seen.
        """
        stem = self.guess.fold_size
        features = F.silu(self.guess.last_norm(self.guess.features(head)))
        logits = self.guess.last(features).float()
        box = (..., *_box((logits[0] > 0).any(dim=0)))
        seen = torch.cat([fold(head, stem)[box], features[box].float(), torch.sigmoid(logits[box])], dim=1)
        return seen, logits, box


def _box(brain: Tensor) -> tuple[slice, ...]:
    """The smallest box around the true voxels (I, J, K), with the margin."""
    if not brain.any():
        return (slice(0, 0),) * 3
    box = []
    for axis in range(3):
        rows = brain.movedim(axis, 0).flatten(1).any(dim=1).nonzero()
        box.append(slice(max(0, int(rows[0]) - MARGIN), int(rows[-1]) + 1 + MARGIN))
    return tuple(box)
