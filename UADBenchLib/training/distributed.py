"""Several processes that train one model together, as ``torchrun`` starts them: which of them this one is, and how they
wait for each other. Without ``torchrun`` the one process is the first of one, and nothing is set up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Group:
    """The processes of a training; ``rank`` counts from 0, the first one writes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            distributed.barrier()

    def share(self, values: list[int]) -> list[int]:
        """This process's part of a list; at least one value."""
        return values[self.rank :: self.size] or values[:1]

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over the processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.size

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are averaged over the processes."""
        if self.size == 1:
            return module
        # Methods may hold parts that a step does not use, such as a frozen backbone or the second of two networks.
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the processes that ``torchrun`` started; torch's own variables of the environment say who they are."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    group = Group(distributed.get_rank(), size)
    try:
        yield group
        group.wait()  # gloo may abort a process that leaves while another one still talks to it
    finally:
        distributed.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: one each where there are several GPUs and none was named."""
    rank = os.environ.get("LOCAL_RANK")
    if device in ("auto", "cuda") and rank is not None and torch.cuda.is_available():
        return f"cuda:{rank}"
    return device
