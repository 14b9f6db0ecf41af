"""Where a run of gradient steps stands, on disk: weights, averaged weights, moments of the optimiser, and what else the
run wants to find again. One safetensors file, like everything else that holds arrays."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from UADBenchLib.writing import atomic

FILE = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path, model: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer, **more: Tensor
) -> None:
    """Write the state of a run; ``more`` are further tensors, by name."""
    arrays = {f"model.{name}": value for name, value in model.state_dict().items()}
    arrays |= {f"averaged.{name}": value for name, value in averaged.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
    arrays |= more
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / FILE) as temporary:
        save_file({name: value.detach().cpu().clone().contiguous() for name, value in arrays.items()}, temporary)


def load_checkpoint(
    folder: Path, model: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor] | None:
    """Put a saved state back; return all tensors of the file, or None when there is none."""
    if not (folder / FILE).exists():
        return None
    arrays = load_file(folder / FILE)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    averaged.load_state_dict(part("averaged."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimiser.").items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return arrays


def follow(averaged: nn.Module, model: nn.Module, step: int, ema: float) -> None:
    """Move the averaged weights towards the model's; early on closely, since the random start shall be forgotten."""
    decay = min(ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(averaged.parameters(), model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
