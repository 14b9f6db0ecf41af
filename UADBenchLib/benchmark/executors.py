"""Where the scans of a benchmark are evaluated: in this process, in several of this machine, or by Dask workers.

All do the same work and hand back (job, outcome) as scans are done, in whatever order; a scan whose process dies is
tried once more and then handed back as a failure, so that it never ends the run. Where a machine has GPUs, every
worker has one of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from UADBenchLib.benchmark.evaluate import Job, Outcome, empty_record, evaluate, failure
from UADBenchLib.benchmark.plan import versions
from UADBenchLib.errors import InputError
from UADBenchLib.scan import Progress

if TYPE_CHECKING:
    from distributed import Client

ATTEMPTS = 2
"""How often a scan is begun whose process dies under it: more is hopeless, once might be another's fault."""
POLL_SECONDS = 0.2
CONNECT_SECONDS = 20

Alive = Callable[[], None]
"""Called often; what it raises ends the work."""


def worker_devices(device: str, workers: int | None, most: int) -> list[str]:
    """The device of each worker.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    workers : int or None
        Processes; None takes one a GPU, or one a processor core.
    most : int
        No more than there is work for, or memory.

    Raises
    ------
    InputError
        ``DEVICE_UNKNOWN``; ``OPTION_INVALID`` for more workers than GPUs.
    """
    from UADBenchLib.inference.device import choose_device, devices

    chosen = choose_device(device)
    if chosen.type == "cpu":
        count = workers or max(1, min(os.cpu_count() or 1, most))
        return ["cpu"] * count
    known = [entry["id"] for entry in devices() if entry["id"].startswith(chosen.type)]
    usable = known if device in ("auto", "cuda") else [str(chosen)]
    if workers is not None and workers > len(usable):
        raise InputError(
            "OPTION_INVALID",
            f"{workers} workers for {len(usable)} {chosen.type} device{'s' if len(usable) > 1 else ''}",
            "a worker needs a device of its own: ask for fewer, or for --device cpu",
        )
    return usable[: workers or max(1, min(len(usable), most))]


def run_local(jobs: Sequence[Job], devices: Sequence[str], alive: Alive) -> Iterator[tuple[Job, Outcome]]:
    """Evaluate on this machine, one process a device; in this process when there is one.

    Parameters
    ----------
    jobs : sequence of Job
    devices : sequence of str
        One a worker.
    alive : callable
        Called at least twice a second while several processes work, and within scans when it is this one.
    """
    if len(devices) == 1:
        progress: Progress = lambda stage, fraction: alive()  # noqa: E731
        for job in jobs:
            alive()
            yield job, evaluate(job, devices[0], progress)
        return
    slots = [_Slot(device) for device in devices]
    waiting = list(reversed(jobs))
    try:
        while waiting or any(slot.future for slot in slots):
            for slot in slots:
                if slot.future is None and waiting:
                    slot.start(waiting.pop())
            alive()
            busy = {slot.future: slot for slot in slots if slot.future is not None}
            for future in wait(busy, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                if (done := busy[future].finish()) is not None:
                    yield done
    finally:
        for slot in slots:
            slot.close()


class _Slot:
    """One process with a device of its own, and the job that it is at: who dies is known at once."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.future: Future[Outcome] | None = None
        self._job: Job | None = None
        self._attempt = 0
        self._pool: ProcessPoolExecutor | None = None
        self._processes: set[Any] = set()

    def start(self, job: Job, attempt: int = 1) -> None:
        if self._pool is None:
            # Started afresh instead of forked: torch's threads do not survive a fork.
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._job, self._attempt = job, attempt
        before = set(multiprocessing.active_children())
        self.future = self._pool.submit(evaluate, job, self.device)
        self._processes |= set(multiprocessing.active_children()) - before

    def finish(self) -> tuple[Job, Outcome] | None:
        """The job that is done and what came of it; None when its process died and it is begun again."""
        assert self._job is not None and self.future is not None
        job, future, self.future = self._job, self.future, None
        try:
            return job, future.result()
        except BrokenProcessPool:
            self.close()
            if self._attempt < ATTEMPTS:
                self.start(job, self._attempt + 1)
                return None
            return job, lost(job)

    def close(self) -> None:
        """End the process, also in the middle of a scan: what is not handed back will be done again."""
        if self._pool is None:
            return
        for process in self._processes if self.future is not None else ():
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool, self._processes = None, set()


def lost(job: Job) -> Outcome:
    """What is recorded of a scan whose worker process died under it."""
    error = InputError(
        "WORKER_LOST",
        "the process that evaluated the scan died, twice",
        "most likely it ran out of memory: use fewer workers",
    )
    record = empty_record(job)
    record["failures"].append(failure(job, "", error))
    return Outcome(record)


def run_dask(
    jobs: Sequence[Job], client: Client, devices: Sequence[str], alive: Alive
) -> Iterator[tuple[Job, Outcome]]:
    """Evaluate on the workers of a Dask scheduler, which must see the same files under the same paths.

    Parameters
    ----------
    jobs : sequence of Job
    client : distributed.Client
        Connected.
    devices : sequence of str
        One a worker of a local cluster, whose workers are numbered; of one entry for workers that were started
        elsewhere, each of which sees its own device only.
    alive : callable
        Called at least twice a second.

    Raises
    ------
    InputError
        ``WORKERS_DIFFER`` when a worker has other versions of what decides the numbers.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    while not client.ncores():  # a queue may let them wait for hours
        alive()
        time.sleep(POLL_SECONDS)
    same = versions()
    futures = {client.submit(_on_worker, evaluate, job, tuple(devices), same, pure=False): job for job in jobs}
    done = as_completed(list(futures), with_results=False)
    try:
        for _ in range(len(futures)):
            future = _next(done, alive)
            job = futures.pop(future)
            try:
                yield job, future.result()
            except KilledWorker:
                yield job, lost(job)
            future.release()
    finally:
        client.cancel(list(futures))


def _next(done: Any, alive: Alive) -> Any:
    """The next future that is done; ``alive`` is called while it is waited for."""
    while not done.has_ready():
        alive()
        time.sleep(POLL_SECONDS)
    return done.next()


def _on_worker(
    function: Callable[[Job, str], Outcome], job: Job, devices: tuple[str, ...], same: dict[str, str]
) -> Outcome:
    """Evaluate on a Dask worker, on the device of its number, if it has the versions ``same``."""
    from distributed import get_worker

    worker, own = get_worker(), versions()
    for name, wanted in same.items():
        if own.get(name) != wanted:
            raise InputError(
                "WORKERS_DIFFER",
                f"the worker {worker.address} has {name} {own.get(name)}, the run was begun with {wanted}",
                "install the same versions on all",
            )
    name = worker.name
    number = name if isinstance(name, int) else 0
    return function(job, devices[number % len(devices)])


@contextlib.contextmanager
def dask_client(scheduler: str | None, devices: Sequence[str]) -> Iterator[Client]:
    """Connect to a scheduler, or start one with a worker process for every device on this machine.

    Raises
    ------
    InputError
        ``DEPENDENCY_MISSING`` without Dask, ``SCHEDULER_UNREACHABLE``.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError("DEPENDENCY_MISSING", "Dask is not installed", "pip install uadbench[benchmark]") from error
    with contextlib.ExitStack() as stack:
        # A worker that dies takes the scan with it ATTEMPTS times; Dask counts those after the first.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1}))
        if scheduler is None:
            cluster = stack.enter_context(
                # The runner foresees memory; a limit here would pause a worker for good.
                LocalCluster(
                    n_workers=len(devices), threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
                )
            )  # fmt: skip
            client = stack.enter_context(Client(cluster))
        else:
            try:
                client = stack.enter_context(Client(scheduler, timeout=CONNECT_SECONDS))
            except (OSError, ValueError) as error:
                raise InputError(
                    "SCHEDULER_UNREACHABLE", f"no Dask scheduler answers at {scheduler}", "check --scheduler"
                ) from error
        yield client
