"""Work on several processes: order, errors, and a start that torch's threads do not block."""

from __future__ import annotations

import pytest
import torch

from UADBenchLib.errors import InputError
from UADBenchLib.parallel import map_processes


def doubled(number: int) -> float:
    """Something that needs torch in the process that does it."""
    if number < 0:
        raise InputError("NEGATIVE", f"{number} is negative", "")
    return float((torch.ones(200_000) * number).sum() / 100_000)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_after_torch_has_used_threads_here(workers: int) -> None:
    torch.mm(torch.rand(400, 400), torch.rand(400, 400))
    assert list(map_processes(doubled, range(4), workers)) == [0.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_out_as_it_was(workers: int) -> None:
    results = map_processes(doubled, [1, -1, 2], workers)
    assert next(results) == 2.0
    with pytest.raises(InputError, match="NEGATIVE"):
        next(results)


def test_nothing_to_do() -> None:
    assert list(map_processes(doubled, [], 4)) == []
