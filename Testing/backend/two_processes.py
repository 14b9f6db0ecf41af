"""Run by ``test_distributed`` under ``torchrun`` and alone: trains a method whose loss knows no chance, so that the
batch's gradient does not depend on how many processes share it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from UADBenchLib.methods import registry
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices


@dataclass(frozen=True)
class BlurConfig:
    size: int = 5


class Blur(Method):
    """Repeats a slice through one convolution."""

    name, paper = "blur", "for tests"
    presets = {"compact": Preset(BlurConfig(), Schedule(steps=8, batch=8, learning_rate=1e-2, warm_up=2))}

    def __init__(self, config: BlurConfig) -> None:
        super().__init__(config)
        self.layer = nn.Conv2d(1, 1, config.size, padding="same")

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return (self.layer(slices.images) - slices.images).square().mean()

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return (self.layer(slices.images) - slices.images).abs() * slices.masks


METHOD = Blur

if __name__ == "__main__":
    from UADBenchLib.training.trainer import train

    registry._MODULES += ("blur",)
    sys.modules["UADBenchLib.methods.blur"] = sys.modules["__main__"]
    cohort, store, out = sys.argv[1:4]
    summary = train("blur", cohort, contrast="T1w", out=out, store=store, device="cpu")
    # A file of its own: what two processes print to one pipe can come out mixed.
    Path(f"{out}.{os.environ.get('RANK', 0)}.json").write_text(json.dumps(summary))
