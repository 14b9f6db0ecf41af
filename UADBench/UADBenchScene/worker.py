"""The client of the worker process: requests go down a pipe, events come up another, and nothing here knows
Qt or MRML.

The worker computes in a Python of its own, so that nothing it imports can slow or break the application.
``poll`` returns what has happened since the last call and never waits; whoever owns the client calls it
from a timer or a loop. A thread does the reading, on plain data only.

A job's arrays lie in a temporary folder that only this user can open. They are removed as soon as they are
read, the folder when the job fails, is cancelled, is superseded, or when the client closes. If this process
ends in any way that runs Python's exit handlers, the worker and the folders go with it; otherwise the
worker finds its input closed and cleans up.
"""

from __future__ import annotations

import collections
import itertools
import logging
import math
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.inference import protocol

logger = logging.getLogger(__name__)

WORKER = ("-m", "UADBenchLib.reports.worker")
JOBS_KEPT = 3
"""Finished jobs whose folder is kept for answers to other thresholds; the worker keeps as many maps."""
ARRAYS = ("map", "mask", "brain_mask", "reconstruction", "residual")


@dataclass
class _Job:
    """A job of the client: its folder, its lattice, where it stands, and the files of the requests about it that are
    not answered yet; answers come in the order of the requests.
    """

    name: str
    folder: Path
    affine: np.ndarray
    shape: tuple[int, int, int]
    finished: bool = False
    cancelled: bool = False
    deadline: float = math.inf
    sent: collections.deque[list[str]] = field(default_factory=collections.deque)


@dataclass
class _Child:
    """One worker process with the threads that read from it."""

    process: subprocess.Popen[bytes]
    events: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    log: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=200))
    threads: list[threading.Thread] = field(default_factory=list)


class WorkerClient:
    """Starts the worker when it is first needed, and again when it has died.

    Parameters
    ----------
    python : str or pathlib.Path
        Python interpreter that has the backend's packages.
    library : pathlib.Path
        Folder in which ``UADBenchLib`` lies.
    environment : mapping, optional
        Environment variables of the worker; this process's own by default.
    arguments : sequence of str
        What the interpreter runs; the worker by default.
    grace_s : float
        Seconds that the worker has to answer ``cancel`` or to end, before it is killed.

    Examples
    --------
    >>> client = WorkerClient(python, library)              # doctest: +SKIP
    >>> job = client.detect(voxels, affine, models=["disyre-t1w-compact"])  # doctest: +SKIP
    >>> events = client.poll()                                      # doctest: +SKIP
    """

    def __init__(
        self,
        python: str | Path,
        library: Path,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = WORKER,
        grace_s: float = 1.0,
    ) -> None:
        self._command = [str(python), *arguments]
        self._environment = child_environment(library, environment)
        self._grace_s = grace_s
        self._child: _Child | None = None
        self._jobs: dict[str, _Job] = {}
        self._waiting: list[dict[str, Any]] = []
        self._cancelled: set[str] = set()
        self._count = itertools.count(1)
        # Shared with the exit handler, which must not hold the client itself.
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folders: set[Path] = set()
        self._exit = weakref.finalize(self, _clean, self._processes, self._folders)

    # -- requests

    @property
    def alive(self) -> bool:
        """Whether a worker process runs."""
        return self._child is not None and self._child.process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether a detection is under way."""
        return any(not job.finished for job in self._jobs.values())

    @property
    def log(self) -> list[str]:
        """The last lines that the worker wrote to stderr."""
        return list(self._child.log) if self._child is not None else []

    def detect(
        self,
        voxels: np.ndarray,
        affine: np.ndarray,
        models: Sequence[str],
        *,
        contrast: str | None = None,
        stem: str = "scan",
        operating_point: str = "fpr-1pct",
        device: str = "auto",
        minimum_ml: float = 0.1,
        force: bool = False,
        batch: int | None = None,
        reconstruct: bool = False,
        brain_mask: np.ndarray | None = None,
    ) -> str:
        """Start a detection and return the job's name.

        Parameters
        ----------
        voxels : numpy.ndarray
            Shape (I, J, K), written as float32.
        affine : numpy.ndarray
            Shape (4, 4): voxel index to RAS millimetres.
        models : sequence of str
            Ids of one or more models.
        contrast : str, optional
            T1w, T2w or FLAIR; None leaves it to the image.
        stem : str
            How the result's summary calls the scan. Not the name of a node: that may be a patient's.
        operating_point, device, minimum_ml, force, batch, reconstruct
            As in the worker's messages.
        brain_mask : numpy.ndarray, optional
            Of the same shape.

        Returns
        -------
        str
            The ``job`` of the events to come.

        Raises
        ------
        OSError
            If the worker cannot be started or the arrays cannot be written.
        """
        options = {"operating_point": operating_point, "device": device, "minimum_ml": float(minimum_ml)}
        options |= {"force": force, "reconstruct": reconstruct}
        if batch is not None:
            options["batch"] = int(batch)
        arrays = {"voxels": (voxels, np.float32), "brain_mask": (brain_mask, np.uint8)}
        child, job, names = self._new_job(affine, voxels.shape, arrays)
        scan = _scan_fields(names.pop("voxels"), job.affine, contrast, stem)
        self._send(child, "detect", **self._of(job), scan=scan, models=list(models), **options, **names)
        return job.name

    def check(
        self,
        voxels: np.ndarray,
        affine: np.ndarray,
        *,
        contrast: str | None = None,
        brain_mask: np.ndarray | None = None,
    ) -> str:
        """Ask what is to be noticed about a scan; parameters and errors are those of ``detect``."""
        arrays = {"voxels": (voxels, np.float32), "brain_mask": (brain_mask, np.uint8)}
        child, job, names = self._new_job(affine, voxels.shape, arrays)
        scan = _scan_fields(names.pop("voxels"), job.affine, contrast, "scan")
        self._send(child, "check", **self._of(job), scan=scan, **names)
        return job.name

    def remember(self, affine: np.ndarray, detections: Sequence[Mapping[str, Any]]) -> str:
        """Give the worker maps that it no longer has, and return the name of the job that now has them.

        Parameters
        ----------
        affine : numpy.ndarray
            Shape (4, 4): voxel index to RAS millimetres.
        detections : sequence of mapping
            ``model``, ``map`` (shape (I, J, K)), ``threshold`` and ``summary``.
        """
        arrays = {f"map_{number}": (entry["map"], np.float32) for number, entry in enumerate(detections)}
        child, job, names = self._new_job(affine, detections[0]["map"].shape, arrays)
        rows = [
            {"model": one["model"], "map": name, "threshold": float(one["threshold"]), "summary": one["summary"]}
            for one, name in zip(detections, names.values(), strict=True)
        ]
        # It counts as finished at once: what is asked about it is answered after it.
        job.finished = True
        job.sent.append([str(name) for name in names.values()])
        self._send(child, "remember", **self._of(job), affine=job.affine.tolist(), detections=rows)
        return job.name

    def has(self, job: str) -> bool:
        """Return whether requests about a finished job can be answered."""
        return self.alive and job in self._jobs and self._jobs[job].finished

    def threshold(self, job: str, model: str, threshold: float, minimum_ml: float = 0.1, **options: Any) -> None:
        """Ask for mask and findings of a finished job's map at another threshold; the answer is a
        ``result`` event. Options are those of the worker's messages: smoothing_mm, operating_point, origin.
        """
        fields = {"model": model, "threshold": float(threshold), "minimum_ml": float(minimum_ml), **options}
        self._ask_about(job, "threshold", {}, fields)

    def compare(self, job: str, reference: np.ndarray | None, percentile: float = 95.0) -> None:
        """Ask what a finished job's maps are worth against a reference; the answer is a ``result`` event.

        Raises
        ------
        OSError
            If the reference cannot be written.
        """
        self._ask_about(job, "compare", {"reference": (reference, np.uint8)}, {"percentile": float(percentile)})

    def export(
        self,
        job: str,
        out: Path,
        formats: Sequence[str],
        voxels: np.ndarray,
        *,
        contrast: str | None = None,
        stem: str = "scan",
        reference: np.ndarray | None = None,
        dicom: Mapping[str, Any] | None = None,
    ) -> None:
        """Ask for files of a finished job; the answer is a ``result`` event with ``files``.

        Parameters
        ----------
        job : str
        out : pathlib.Path
            Folder, absolute.
        formats : sequence of str
            ``"files"`` and ``"dicom-seg"``.
        voxels, contrast, stem, reference
            As ``detect``.
        dicom : mapping, optional
            ``labels`` (shape (I, J, K)), ``affine``, ``names``, ``series`` (files) and ``model``.

        Raises
        ------
        OSError
            If the arrays cannot be written.
        """
        arrays = {"voxels": (voxels, np.float32), "reference": (reference, np.uint8)}
        fields: dict[str, Any] = {"out": str(out), "formats": list(formats)}
        if dicom is not None:
            arrays["labels"] = (dicom["labels"], np.uint8)
            fields["dicom"] = dict(dicom) | {"affine": np.asarray(dicom["affine"]).tolist()}
        affine = self._jobs[job].affine if job in self._jobs else np.eye(4)
        fields["scan"] = _scan_fields(None, affine, contrast, stem)
        self._ask_about(job, "export", arrays, fields)

    def _ask_about(
        self, job: str, request: str, arrays: Mapping[str, tuple[np.ndarray | None, type]], fields: dict[str, Any]
    ) -> None:
        """Send a request about a finished job, or say that it cannot be answered."""
        if job not in self._jobs or self._child is None:
            self._waiting.append(
                {
                    "event": "failed",
                    "job": job,
                    "code": "JOB_UNKNOWN",
                    "message": "the map of this result is no longer in the worker's memory",
                    "advice": "try again",
                }
            )
            return
        # As the worker, forget first what was longest not asked for.
        entry = self._jobs[job] = self._jobs.pop(job)
        names = self._save_arrays(entry.folder, arrays, f"_{next(self._count)}")
        entry.sent.append([name for name in names.values() if name is not None])
        for key, place in (("voxels", fields.get("scan")), ("labels", fields.get("dicom"))):
            if key in names and place is not None:
                place[key] = names.pop(key)
        self._send(self._child, request, job=job, **fields, **names)

    def _new_job(
        self, affine: np.ndarray, shape: tuple[int, ...], arrays: Mapping[str, tuple[np.ndarray | None, type]]
    ) -> tuple[_Child, _Job, dict[str, str | None]]:
        """Make a job with a private folder that has its arrays; returns their file names too."""
        child = self._running()
        folder = Path(tempfile.mkdtemp(prefix="uadbench-")).resolve()
        self._folders.add(folder)
        try:
            names = self._save_arrays(folder, arrays)
        except BaseException:
            self._remove(folder)
            raise
        job = _Job(uuid.uuid4().hex, folder, np.asarray(affine, dtype=np.float64), tuple(shape))
        self._jobs[job.name] = job
        return child, job, names

    @staticmethod
    def _save_arrays(
        folder: Path, arrays: Mapping[str, tuple[np.ndarray | None, type]], suffix: str = ""
    ) -> dict[str, str | None]:
        """Write arrays into a job's folder and return their file names; None where there is no array."""
        return {
            key: None if one is None else _save(folder, f"{key}{suffix}", one, kind)
            for key, (one, kind) in arrays.items()
        }

    @staticmethod
    def _of(job: _Job) -> dict[str, str]:
        """Return the fields by which a request names its job."""
        return {"job": job.name, "folder": str(job.folder)}

    def request(self, name: str) -> None:
        """Send ``models`` or ``device``; the answer is a ``result`` event that has them."""
        self._send(self._running(), name)

    def cancel(self, job: str) -> None:
        """Ask the worker to stop a job; ``poll`` kills it if it does not answer in time. Always ends in
        ``cancelled``.
        """
        entry = self._jobs.get(job)
        if entry is None or entry.finished or self._child is None:
            return
        entry.cancelled = True
        entry.deadline = min(entry.deadline, time.monotonic() + self._grace_s)
        self._send(self._child, "cancel", job=job)

    def close(self) -> None:
        """End the worker, politely if it lets us, and remove every folder. May be called twice."""
        child, self._child = self._child, None
        if child is not None:
            self._send(child, "quit")
            try:
                child.process.stdin.close()
            except OSError:
                logger.debug("the worker's input was already closed")
            try:
                child.process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                logger.info("the worker did not end by itself")
            self._end(child)
        self._jobs.clear()
        self._waiting.clear()
        for folder in list(self._folders):
            self._remove(folder)

    # -- events

    def poll(self) -> list[dict[str, Any]]:
        """Return the events since the last call, in order, without waiting.

        Events are those of ``UADBenchLib.inference.protocol``. In a ``result`` the arrays are there instead
        of their file names, and ``affine`` is that of the job. A worker that died gives ``failed`` with code
        ``WORKER_DIED``.
        """
        happened, self._waiting = self._waiting, []
        child = self._child
        while child is not None and child is self._child:
            try:
                event = child.events.get_nowait()
            except queue.Empty:
                break
            happened.extend(self._take(child, event))
        now = time.monotonic()
        if any(now > job.deadline for job in self._jobs.values()):
            happened.extend(self._kill())
        return happened

    def _take(self, child: _Child, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Keep the client's books on one event and return what the owner should see."""
        kind = event["event"]
        job = self._jobs.get(event.get("job") or "")
        if kind == "end":
            return self._died(child)
        if kind == "ready" and event.get("protocol") != protocol.VERSION:
            self._end(child)
            logger.error("the worker speaks protocol %s, not %s", event.get("protocol"), protocol.VERSION)
            return self._died(child)
        if job is None:
            late = kind == "failed" and event.get("job") in self._cancelled
            return [] if late else [event]
        if job.cancelled and kind == "result":
            # It ended while ``cancel`` was on its way, which the worker will now answer with JOB_UNKNOWN.
            kind, event = "cancelled", {"event": "cancelled", "job": job.name}
        if kind in ("result", "failed") and job.finished and job.sent:
            for name in job.sent.popleft():
                (job.folder / name).unlink(missing_ok=True)
        if kind == "result":
            event["affine"] = job.affine
            if event.get("kind") == "check":
                self._drop(job)
            elif not job.finished or event.get("kind") == "remember":
                job.finished, job.deadline = True, math.inf
                self._jobs[job.name] = self._jobs.pop(job.name)
                self._forget_old_jobs()
        elif kind == "cancelled" or (kind == "failed" and not job.finished):
            self._drop(job)
            if job.cancelled:
                self._cancelled.add(job.name)
        return [event]

    def _died(self, child: _Child) -> list[dict[str, Any]]:
        """Return a ``failed`` or ``cancelled`` for every open job of a worker that has ended by itself."""
        self._child = None
        self._end(child)
        status = child.process.returncode
        logger.error("the worker ended with status %s; its last lines: %s", status, " | ".join(list(child.log)[-5:]))
        left = list(self._jobs.values())
        for job in left:
            self._drop(job)
        failed = {
            "event": "failed",
            "code": "WORKER_DIED",
            "message": f"the worker process ended unexpectedly (status {status})",
            "advice": "try again; if it happens again, choose the processor (cpu) and see the log",
        }
        open_jobs = [job for job in left if not job.finished]
        if not open_jobs:
            return [failed | {"job": None}]
        return [
            {"event": "cancelled", "job": job.name} if job.cancelled else failed | {"job": job.name}
            for job in open_jobs
        ]

    def _kill(self) -> list[dict[str, Any]]:
        """Kill a worker that did not answer ``cancel``; its other jobs fail."""
        child, self._child = self._child, None
        logger.warning("the worker did not answer cancel within %.1f s and is killed", self._grace_s)
        if child is not None:
            self._end(child)
        events: list[dict[str, Any]] = []
        for job in list(self._jobs.values()):
            self._drop(job)
            if job.cancelled:
                events.append({"event": "cancelled", "job": job.name})
            elif not job.finished:
                advice = "start it again"
                failed = {
                    "code": "WORKER_KILLED",
                    "message": "the worker was stopped with another job",
                    "advice": advice,
                }
                events.append({"event": "failed", "job": job.name, **failed})
        return events

    # -- processes and folders

    def _running(self) -> _Child:
        """Return the worker, started now if there is none, or if the one there was ended while it had
        nothing to do.
        """
        if self._child is not None and self._child.process.poll() is not None and not self.busy:
            self._died(self._child)
        if self._child is None:
            self._child = _start(self._command, self._environment, self._jobs)
            self._processes.append(self._child.process)
        return self._child

    def _send(self, child: _Child, name: str, **fields: Any) -> None:
        """Write one request. A pipe that is broken means a worker that is gone, which its reader reports."""
        try:
            child.process.stdin.write(protocol.encode({"request": name, **fields}).encode("utf-8"))
            child.process.stdin.flush()
        except (OSError, ValueError) as error:
            logger.debug("request %s could not be sent: %s", name, error)

    def _end(self, child: _Child) -> None:
        """Make sure that a worker, and all it started, is gone and that its threads are."""
        _kill_tree(child.process)
        for thread in child.threads:
            thread.join(2.0)
        for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
            try:
                stream.close()
            except OSError:
                logger.debug("a pipe of the worker was already closed")
        if child.process in self._processes:
            self._processes.remove(child.process)

    def _drop(self, job: _Job) -> None:
        """Forget a job and remove its folder."""
        self._jobs.pop(job.name, None)
        self._remove(job.folder)

    def _forget_old_jobs(self) -> None:
        """Keep the folders of the newest finished jobs only."""
        finished = [job for job in self._jobs.values() if job.finished]
        for job in finished[:-JOBS_KEPT]:
            self._drop(job)

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._folders.discard(folder)


# ------------------------------------------------------------------------------------------------ processes


def child_environment(library: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which a child finds ``UADBenchLib`` and writes UTF-8 without delay."""
    values = dict(os.environ if environment is None else environment)
    others = values.get("PYTHONPATH")
    values["PYTHONPATH"] = os.pathsep.join([str(library), others] if others else [str(library)])
    return values | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}


def missing_packages(
    python: str | Path,
    names: Sequence[str],
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> list[str]:
    """Return those import names that an interpreter does not have; nothing is imported to find out.

    Raises
    ------
    RuntimeError
        If the interpreter cannot be asked.
    """
    code = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    if importlib.util.find_spec(name) is None: print('missing=' + name)\n"
        "print('asked')\n"
    )
    try:
        answer = subprocess.run(
            [str(python), "-c", code, *names],
            env=dict(os.environ if environment is None else environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            **_hidden(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"the Python interpreter {Path(python).name} cannot be started: {error}") from error
    lines = answer.stdout.decode("utf-8", errors="replace").splitlines()
    if "asked" not in lines:
        raise RuntimeError(f"the Python interpreter {Path(python).name} ended with status {answer.returncode}")
    return [line.partition("=")[2] for line in lines if line.startswith("missing=")]


def _start(command: list[str], environment: dict[str, str], jobs: Mapping[str, _Job]) -> _Child:
    """Start a worker in a session of its own, with threads that read its two outputs."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=os.name != "nt",
        **_hidden(new_group=True),
    )
    child = _Child(process)
    for target, arguments in ((_read_events, (child, jobs)), (_read_log, (child,))):
        thread = threading.Thread(target=target, args=arguments, name=f"uadbench{target.__name__}", daemon=True)
        thread.start()
        child.threads.append(thread)
    return child


def _hidden(new_group: bool = False) -> dict[str, int]:
    """Return the flags that keep Windows from opening a console; nothing elsewhere."""
    if os.name != "nt":
        return {}
    return {"creationflags": subprocess.CREATE_NO_WINDOW | (subprocess.CREATE_NEW_PROCESS_GROUP if new_group else 0)}


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and everything in its session, and collect it.

    The process that was started may be a launcher, so killing it alone would leave the interpreter behind;
    and the group may outlive its leader, so a leader that has ended does not end the matter.
    """
    if os.name == "nt":
        if process.poll() is None:
            command = ["taskkill", "/PID", str(process.pid), "/T", "/F"]
            subprocess.run(command, capture_output=True, check=False, **_hidden())
    else:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            logger.debug("the worker's process group is already gone")
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _clean(processes: list[subprocess.Popen[bytes]], folders: set[Path]) -> None:
    """Exit handler: no process and no brain image is left behind."""
    for process in processes:
        _kill_tree(process)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------- reading


def _read_events(child: _Child, jobs: Mapping[str, _Job]) -> None:
    """Thread body: lines to events, with the arrays of a result read in; ends with an ``end`` event of its
    own.
    """
    for line in child.process.stdout:
        try:
            event = protocol.decode(line.decode("utf-8", errors="replace"), "event")
        except protocol.ProtocolError as error:
            logger.debug("a line from the worker is not an event: %s", error)
            continue
        if event["event"] == "result" and event.get("detections"):
            event = _with_arrays(event, jobs.get(str(event.get("job"))))
        child.events.put(event)
    child.events.put({"event": "end"})


def _read_log(child: _Child) -> None:
    """Thread body: keep the last lines of stderr."""
    for line in child.process.stderr:
        text = line.decode("utf-8", errors="replace").rstrip()
        child.log.append(text)
        logger.debug("worker: %s", text)


def _with_arrays(event: dict[str, Any], job: _Job | None) -> dict[str, Any]:
    """Return a result with its arrays in place of file names, and remove every file of the job that has
    been read.

    A result whose arrays cannot be read becomes a ``failed`` with code ``RESULT_UNREADABLE``.
    """
    read: dict[str, np.ndarray] = {}
    try:
        if job is None:
            raise ValueError("it belongs to no job")
        for row in event["detections"]:
            for key in ARRAYS:
                if row.get(key) is not None:
                    name = row[key]
                    read[name] = read[name] if name in read else _load(job.folder, name, job.shape)
                    row[key] = read[name]
    except (OSError, ValueError, EOFError) as error:
        logger.error("a result could not be read: %s", error)
        return {
            "event": "failed",
            "job": event.get("job"),
            "code": "RESULT_UNREADABLE",
            "message": "the worker's result could not be read",
            "advice": "check free disk space in the temporary folder and detect again",
        }
    # A threshold's answer comes while another may be under way, so only the files that were read are
    # removed then.
    names = read if job.finished else [path.name for path in job.folder.iterdir()]
    for name in names:
        (job.folder / name).unlink(missing_ok=True)
    return event


def _scan_fields(voxels: str | None, affine: np.ndarray, contrast: str | None, stem: str) -> dict[str, Any]:
    """Return the scan of a request."""
    return {"voxels": voxels, "affine": affine.tolist(), "contrast": contrast, "stem": stem}


def _save(folder: Path, name: str, array: np.ndarray, kind: type) -> str:
    """Write one array into a job's folder and return its file name."""
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array, dtype=kind), allow_pickle=False)
    return f"{name}.npy"


def _load(folder: Path, name: object, shape: tuple[int, ...]) -> np.ndarray:
    """Read one array of a job: a bare name of a regular file in its folder, of the job's shape; numbers only."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".npy"):
        raise ValueError(f"{name!r} is not a bare .npy file name")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{name} is not a file in the job's folder")
    array = np.load(path, allow_pickle=False)
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not real numbers of shape {shape}")
    return array
