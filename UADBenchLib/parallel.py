"""Several processes for independent pieces of work, in order, on every platform alike."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_processes(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yield ``function(task)`` for every task, in order, computed by ``workers`` processes; by this one if it is 1.

    Processes are started afresh instead of being forked: a fork of a process in which torch has used several threads
    waits for ever at the first computation. What is not begun when the caller stops is not done.
    """
    tasks = list(tasks)
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=initializer, initargs=initargs)
    try:
        yield from pool.map(function, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let ITK and torch compute on one thread: sums over several come in any order, and results would differ in their
    last digits from run to run."""
    import SimpleITK as sitk
    import torch

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), torch.get_num_threads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[0])
        torch.set_num_threads(before[1])
