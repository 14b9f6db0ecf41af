"""The long-lived child process behind Slicer: requests on stdin, events on stdout, one detection at a time.

Run as ``python -m UADBenchLib.inference.worker``; the messages are in ``protocol``. The main thread only
reads requests, so ``cancel`` is heard at once; one thread runs detections and checks in the order they came, another
answers the short requests (``threshold``, ``compare``, ``models`` and their like), so that moving a threshold never
waits for a detection. What answers ``export`` lies in a layer above and is handed in by ``reports.worker``. The
protocol owns the original stdout; whatever else a library prints goes to stderr. Trained models stay loaded inside
``detector`` between jobs.

A job's folder belongs to the one who made it, with one exception: when the worker ends (end of input,
``quit``, SIGTERM) before a job did, it removes that job's ``.npy`` files, and the folder if nothing else is
in it. It is not a sandbox: it trusts its parent with its own user's rights, and checks names and arrays so
that a mistake is an answer and not a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from UADBenchLib import __version__
from UADBenchLib.errors import CancelledError, InputError, UADBenchError
from UADBenchLib.evaluation.plain import plain
from UADBenchLib.inference import protocol
from UADBenchLib.scan import CONTRASTS, Check, Scan

logger = logging.getLogger(__name__)

MAXIMUM_LINE = 1 << 20
MAXIMUM_VOXELS = 1 << 29
MAXIMUM_MODELS = 32
JOBS_KEPT = 3
BATCH = 8
MAXIMUM_BATCH = 256
SECONDS_BETWEEN_PROGRESS = 0.1
SECONDS_TO_STOP = 3.0


class _Stop(Exception):
    """Raised in the main thread by a signal that asks the process to end."""


Answer = Callable[[dict[str, Any], "Kept"], dict[str, Any]]
"""What answers a request about a finished job: takes the request and what the job left, returns the result's fields."""


@dataclass
class _Job:
    """One detect or check request and where it stands: queued, loading, running or ended."""

    name: str
    folder: Path
    request: dict[str, Any]
    state: str = "queued"
    cancel: threading.Event = field(default_factory=threading.Event)
    written: list[Path] = field(default_factory=list)


@dataclass
class Kept:
    """What a finished job left in memory for the requests that come after it.

    Attributes
    ----------
    folder : pathlib.Path
        The job's folder.
    stem : str
        How results call the scan.
    detections : dict
        ``Detection`` by model, in the order of the request.
    """

    folder: Path
    stem: str
    detections: dict[str, Any]
    masks: dict[str, list[Path]] = field(default_factory=dict)
    count: Iterator[int] = field(default_factory=lambda: itertools.count(1))


# --------------------------------------------------------------------------------------------- request fields


def text_of(request: dict[str, Any], key: str, default: str | None = None) -> str:
    """Return a short non-empty text field."""
    value = request.get(key, default)
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or not value.isprintable():
        raise InputError("BAD_REQUEST", f"field {key!r} is missing or not a text", "send it as a JSON string")
    return value


def _number(request: dict[str, Any], key: str, default: float | None = None) -> float:
    """Return a finite number field."""
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError("BAD_REQUEST", f"field {key!r} is missing or not a finite number", "send it as a JSON number")
    return float(value)


def _flag(request: dict[str, Any], key: str) -> bool:
    """Return a boolean field, false where it is missing."""
    value = request.get(key, False)
    if not isinstance(value, bool):
        raise InputError("BAD_REQUEST", f"field {key!r} is not a boolean", "send true or false")
    return value


def _batch(request: dict[str, Any]) -> int:
    """Return how many slices go through a network together."""
    value = _number(request, "batch", BATCH)
    if value != int(value) or not 1 <= value <= MAXIMUM_BATCH:
        raise InputError("BAD_REQUEST", f"the batch is {value:g}", f"send a whole number from 1 to {MAXIMUM_BATCH}")
    return int(value)


def _folder(request: dict[str, Any]) -> Path:
    """Return the job's folder: absolute, existing, and holding nothing but ``.npy`` files."""
    folder = Path(text_of(request, "folder"))
    if not folder.is_absolute() or not folder.is_dir():
        raise InputError("FOLDER_INVALID", "the job's folder does not exist", "send the absolute path of a new folder")
    folder = folder.resolve()
    if any(entry.suffix != ".npy" or not entry.is_file() for entry in folder.iterdir()):
        raise InputError(
            "FOLDER_NOT_PRIVATE",
            "the job's folder holds other things than .npy files",
            "make a new, empty folder for each job",
        )
    return folder


def load_array(folder: Path, name: object, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Load one array of a job, checked before anything is allocated.

    Parameters
    ----------
    folder : pathlib.Path
        The job's folder, resolved.
    name : object
        File name sent by the client: a bare ``.npy`` name of a regular file within the folder.
    shape : tuple of int, optional
        Shape the array must have.

    Returns
    -------
    numpy.ndarray
        Three-dimensional, numeric or boolean, at most ``MAXIMUM_VOXELS`` elements, read into memory.

    Raises
    ------
    InputError
        ARRAY_NAME, ARRAY_MISSING, ARRAY_UNREADABLE, ARRAY_SHAPE, ARRAY_TYPE or ARRAY_SIZE.
    """
    bare = isinstance(name, str) and name.endswith(".npy") and not set(name) & set("/\\:\0") and name.isprintable()
    if not bare:
        raise InputError(
            "ARRAY_NAME", "an array is not named by a bare .npy file name", "send the name within the folder"
        )
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise InputError("ARRAY_MISSING", f"{name} is not a file in the job's folder", "write it before the request")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            "ARRAY_UNREADABLE", f"{name} is not a complete .npy file", "write it with numpy.save"
        ) from error
    if array.ndim != 3 or 0 in array.shape or (shape is not None and array.shape != shape):
        expected = "three dimensions" if shape is None else f"the scan's shape {shape}"
        raise InputError("ARRAY_SHAPE", f"{name} has shape {array.shape}, not {expected}", "send arrays as (i, j, k)")
    if array.dtype.kind not in "fiub":
        raise InputError("ARRAY_TYPE", f"{name} has data type {array.dtype}", "send real numbers")
    if array.size > MAXIMUM_VOXELS:
        raise InputError("ARRAY_SIZE", f"{name} has {array.size} voxels", f"send at most {MAXIMUM_VOXELS}")
    return np.array(array)


def affine_of(value: object) -> np.ndarray:
    """Return the affine of a request as a (4, 4) float64 array that can be inverted."""
    try:
        affine = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        affine = np.empty(0)
    good = affine.shape == (4, 4) and bool(np.isfinite(affine).all())
    if not good or abs(np.linalg.det(affine[:3, :3])) < 1e-9 or not np.allclose(affine[3], (0, 0, 0, 1)):
        raise InputError(
            "AFFINE_INVALID",
            "the affine is not an invertible 4 x 4 matrix",
            "send voxel index to RAS millimetres",
        )
    return affine


def scan_of(folder: Path, fields: object) -> Scan:
    """Build the scan of a request."""
    if not isinstance(fields, dict):
        raise InputError("BAD_REQUEST", "field 'scan' is missing", "send {voxels, affine, contrast, stem}")
    contrast = fields.get("contrast")
    if contrast is not None and contrast not in CONTRASTS:
        raise InputError(
            "CONTRAST_UNKNOWN", f"the contrast is {contrast!r}", f"use one of {', '.join(CONTRASTS)} or null"
        )
    affine = affine_of(fields.get("affine"))
    voxels = load_array(folder, fields.get("voxels")).astype(np.float32, copy=False)
    checks = []
    finite = np.isfinite(voxels)
    if not finite.all():
        count = int(voxels.size - np.count_nonzero(finite))
        voxels[~finite] = 0.0
        checks.append(Check("warning", "NON_FINITE", f"{count} voxels were NaN or infinite", "they were set to 0"))
    return Scan(voxels, affine, stem=text_of(fields, "stem", "scan"), contrast=contrast, checks=checks)


# ----------------------------------------------------------------------------------------------------- errors


def offers_after(code: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return changes of a detect request with which it could succeed after a failure, the best first."""
    if code == "OUT_OF_MEMORY":
        batch = _batch(request)
        on_cpu = str(request.get("device", "auto")) == "cpu"
        return ([{"batch": max(1, batch // 4)}] if batch > 1 else []) + ([] if on_cpu else [{"device": "cpu"}])
    if code == "CONTRAST_OTHER" and not request.get("force"):
        return [{"force": True}]
    return []


def explain_failure(error: BaseException) -> dict[str, str]:
    """Return code, message and advice for any exception; never a path or a header's text."""
    if isinstance(error, UADBenchError):
        return {"code": error.code, "message": error.message, "advice": error.advice}
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        _free_device_memory()
        return {
            "code": "OUT_OF_MEMORY",
            "message": "there was not enough memory for this job",
            "advice": "try a smaller batch or cpu as the device, or close other programs",
        }
    if isinstance(error, ImportError):
        missing = getattr(error, "name", None) or "a module"
        return {
            "code": "DEPENDENCY_MISSING",
            "message": f"{missing} cannot be imported",
            "advice": "install UADBench's requirements into the Python that runs the worker",
        }
    if isinstance(error, OSError):
        return {
            "code": "FILE_ERROR",
            "message": f"a file could not be read or written ({error.strerror or 'unknown'})",
            "advice": "check free disk space and that the folder still exists",
        }
    return {
        "code": "INTERNAL",
        "message": f"{type(error).__name__} inside the worker",
        "advice": "see the log for the traceback and report it",
    }


def _free_device_memory() -> None:
    """Hand cached accelerator memory back after a failure, if torch is loaded at all."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


# --------------------------------------------------------------------------------------------------- progress


class _Reporter:
    """Progress callback of one job: raises when it was cancelled, and reports fractions that never fall."""

    def __init__(self, job: _Job, send: Callable[..., None]) -> None:
        self._job, self._send = job, send
        self._start = time.monotonic()
        self._stage, self._fraction, self._sent = "", 0.0, -math.inf

    def __call__(self, stage: str, fraction: float) -> None:
        if self._job.cancel.is_set():
            raise CancelledError()
        now = time.monotonic()
        self._fraction = max(self._fraction, min(1.0, float(fraction)))
        if stage == self._stage and now - self._sent < SECONDS_BETWEEN_PROGRESS and self._fraction < 1.0:
            return
        self._stage, self._sent = stage, now
        self._send(
            "progress",
            job=self._job.name,
            stage=stage,
            fraction=round(self._fraction, 4),
            eta_s=self._eta(now),
        )

    def _eta(self, now: float) -> float | None:
        """Seconds left at the pace so far; None while too little has been done to say."""
        elapsed = now - self._start
        if self._fraction < 0.02 or elapsed < 0.5:
            return None
        return round(elapsed * (1.0 - self._fraction) / self._fraction, 1)


# ----------------------------------------------------------------------------------------------------- worker


class Worker:
    """Requests in, events out.

    Parameters
    ----------
    source : binary stream
        Requests, one JSON object a line.
    sink : text stream
        Events, one JSON object a line.
    answers : dict, optional
        What else this process answers about finished jobs, by the name of the request.
    """

    def __init__(self, source: BinaryIO, sink: TextIO, answers: dict[str, Answer] | None = None) -> None:
        self._source, self._sink = source, sink
        self._answers = answers or {}
        self._send_lock = threading.Lock()
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._detections: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._short: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run_detections, name="detections", daemon=True),
            threading.Thread(target=self._run_short, name="short", daemon=True),
        ]

    def run(self) -> None:
        """Serve until the input ends, ``quit`` or a signal; always ends with the clean-up."""
        try:
            for thread in self._threads:
                thread.start()
            self._send("ready", protocol=protocol.VERSION, version=__version__)
            while True:
                line = self._source.readline(MAXIMUM_LINE)
                if not line or not self._handle(line):
                    break
        except (_Stop, KeyboardInterrupt):
            logger.info("stopping")
        finally:
            self._close()

    # -- main thread

    def _send(self, event: str, **fields: Any) -> None:
        """Write one event; a parent that has gone away is found out by the main thread's next read."""
        with self._send_lock, contextlib.suppress(OSError):
            self._sink.write(protocol.encode({"event": event, **plain(fields)}))
            self._sink.flush()

    def _handle(self, line: bytes) -> bool:
        """Act on one line; False ends the process."""
        request: dict[str, Any] = {}
        try:
            if not line.endswith(b"\n") and len(line) >= MAXIMUM_LINE:
                self._skip_line()
                raise InputError("BAD_REQUEST", f"a line is longer than {MAXIMUM_LINE} bytes", "send arrays as files")
            if not line.strip():
                return True
            try:
                request = protocol.decode(line.decode("utf-8", errors="replace"), "request")
            except (protocol.ProtocolError, RecursionError) as error:
                raise InputError("BAD_REQUEST", str(error), "send one JSON object a line") from error
            kind = request["request"]
            if kind == "quit":
                return False
            if kind in ("detect", "check"):
                self._accept(request)
            elif kind == "cancel":
                self._cancel(text_of(request, "job"))
            else:
                self._short.put(request)
        except (_Stop, KeyboardInterrupt):
            raise
        except Exception as error:
            self._fail(request, error)
        return True

    def _skip_line(self) -> None:
        """Read on to the end of a line that is too long."""
        while (rest := self._source.readline(MAXIMUM_LINE)) and not rest.endswith(b"\n"):
            continue

    def _fail(self, request: dict[str, Any], error: BaseException) -> None:
        """Send ``failed`` for a request, with the traceback on stderr when it is not a plain refusal."""
        if not isinstance(error, UADBenchError):
            logger.error("request failed", exc_info=error)
        job = request.get("job")
        self._send("failed", job=job if isinstance(job, str) else None, **explain_failure(error))

    def _accept(self, request: dict[str, Any]) -> None:
        """Queue a detect request."""
        name = text_of(request, "job")
        with self._lock:
            if name in self._jobs or name in self._kept:
                raise InputError("JOB_EXISTS", "a job of this name exists", "give each job a new name")
        if request["request"] == "detect":
            _models_of(request)
        job = _Job(name, _folder(request), request)
        with self._lock:
            self._jobs[name] = job
        self._send("accepted", job=name)
        self._detections.put(job)

    def _cancel(self, name: str) -> None:
        """Cancel a job: at once if it has not started to compute, else at its next progress call."""
        with self._lock:
            job = self._jobs.get(name)
            if job is None:
                raise InputError("JOB_UNKNOWN", "no such job is queued or running", "it may have ended already")
            job.cancel.set()
            ended = job.state in ("queued", "loading")
            if ended:
                job.state = "ended"
                del self._jobs[name]
        if ended:
            self._send("cancelled", job=name)

    def _close(self) -> None:
        """Cancel what is left, wait a moment for it, remove unfinished jobs' folders, say ``bye``."""
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_IGN)
        with self._lock:
            left = list(self._jobs.values())
            for job in left:
                job.cancel.set()
        self._detections.put(None)
        self._short.put(None)
        deadline = time.monotonic() + SECONDS_TO_STOP
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        for job in left:
            _remove_folder(job.folder)
        self._send("bye")

    # -- detections

    def _run_detections(self) -> None:
        """Body of the job thread."""
        # Loading torch and the methods takes seconds: start before the first request instead of within it.
        with contextlib.suppress(Exception):
            importlib.import_module("UADBenchLib.inference.detector")
        while (job := self._detections.get()) is not None:
            if job.state == "ended":
                continue
            try:
                (self._check if job.request["request"] == "check" else self._detect)(job)
            except CancelledError:
                self._end(job, "cancelled")
            except BaseException as error:
                if not isinstance(error, UADBenchError):
                    logger.error("job failed", exc_info=error)
                failure = explain_failure(error)
                self._end(job, "failed", **failure, offers=offers_after(failure["code"], job.request))

    def _end(self, job: _Job, event: str, **fields: Any) -> None:
        """Send the one event that ends a job; a job that did not finish leaves no output."""
        if event != "result":
            for path in job.written:
                path.unlink(missing_ok=True)
        fields = plain(fields)  # before the job is ended: what cannot be sent must still end as a failure
        with self._lock:
            if job.state == "ended":
                return
            job.state = "ended"
            self._jobs.pop(job.name, None)
        self._send(event, job=job.name, **fields)

    def _move(self, job: _Job, state: str) -> None:
        """Enter a state, unless the job has been cancelled meanwhile."""
        with self._lock:
            if job.cancel.is_set() or job.state == "ended":
                raise CancelledError()
            job.state = state

    def _detect(self, job: _Job) -> None:
        """Run one detection and send its result."""
        self._move(job, "loading")
        request, folder = job.request, job.folder
        scan = scan_of(folder, request.get("scan"))
        masks = {key: mask_of(folder, request, key, scan.shape) for key in ("brain_mask", "reference")}
        operating_point, device = text_of(request, "operating_point", "fpr-1pct"), text_of(request, "device", "auto")
        options = {"force": _flag(request, "force"), "reconstruct": _flag(request, "reconstruct")}
        options |= {"minimum_ml": _number(request, "minimum_ml", 0.1), "batch": _batch(request)}
        detector = importlib.import_module("UADBenchLib.inference.detector")
        # Slow the first time, and nothing can interrupt it: a job that is still loading is cancelled at once.
        detector.warm_up()
        self._move(job, "running")
        detections = detector.detect(
            scan,
            _models_of(request),
            **masks,
            **options,
            operating_point=operating_point,
            device=device,
            progress=_Reporter(job, self._send),
        )
        self._warn(job, detections)
        rows = self._write(job, detections, scan.stem)
        self._move(job, "running")
        self._keep(job.name, Kept(folder, scan.stem, {one.model: _light(one) for one in detections}))
        self._end(job, "result", kind="detect", detections=rows)

    def _keep(self, name: str, kept: Kept) -> None:
        """Keep what a job left, and forget the job that was longest not asked for."""
        with self._lock:
            self._kept[name] = kept
            while len(self._kept) > JOBS_KEPT:
                self._kept.popitem(last=False)

    def _check(self, job: _Job) -> None:
        """Prepare a scan and say what is noticed about it; no model is needed."""
        self._move(job, "loading")
        scan = scan_of(job.folder, job.request.get("scan"))
        brain = mask_of(job.folder, job.request, "brain_mask", scan.shape)
        recipe = importlib.import_module("UADBenchLib.preprocessing.recipe")
        contrast = importlib.import_module("UADBenchLib.preprocessing.contrast")
        importlib.import_module("UADBenchLib.inference.detector").warm_up()
        self._move(job, "running")
        prepared = recipe.prepare(scan, brain_mask=brain, progress=_Reporter(job, self._send))
        checks = list(prepared.checks)
        checks += contrast.settle_contrast(scan.contrast, prepared.contrast, force=True)[1]
        found = {"contrast": prepared.contrast.record(), "quality": prepared.quality}
        self._end(job, "result", kind="check", checks=[asdict(check) for check in checks], **found)

    def _warn(self, job: _Job, detections: list[Any]) -> None:
        """Send each warning-level check once."""
        seen: set[tuple[str, str]] = set()
        for check in itertools.chain.from_iterable(detection.checks for detection in detections):
            if check.level == "warning" and (check.code, check.message) not in seen:
                seen.add((check.code, check.message))
                self._send("warning", job=job.name, code=check.code, message=check.message, advice=check.advice)

    def _write(self, job: _Job, detections: list[Any], stem: str) -> list[dict[str, Any]]:
        """Write the arrays of a job's result into its folder and describe each model's result."""

        def save(name: str, array: np.ndarray, dtype: type) -> str:
            if job.cancel.is_set():
                raise CancelledError()
            job.written.append(job.folder / name)
            np.save(job.folder / name, np.ascontiguousarray(array, dtype=dtype), allow_pickle=False)
            return name

        shared = save("result_brain_mask.npy", detections[0].brain_mask, np.uint8)
        rows = []
        for number, detection in enumerate(detections):
            files = {
                "map": save(f"result_{number}_map.npy", detection.map, np.float32),
                "mask": save(f"result_{number}_mask.npy", detection.mask, np.uint8),
                "brain_mask": shared,
            }
            for key in ("reconstruction", "residual"):
                if getattr(detection, key, None) is not None:
                    files[key] = save(f"result_{number}_{key}.npy", getattr(detection, key), np.float32)
            rows.append(_describe(detection, stem) | files)
        return rows

    # -- short requests

    def _run_short(self) -> None:
        """Body of the thread that answers what takes no detection."""
        answers = {"models": self._models, "device": self._device, "remember": self._remember}
        about = {"threshold": self._threshold, "compare": self._compare, **self._answers}
        while (request := self._short.get()) is not None:
            kind = request["request"]
            try:
                if kind in answers:
                    answers[kind](request)
                elif kind in about:
                    fields = about[kind](request, self._left_by(request))
                    self._send("result", job=request["job"], kind=kind, **fields)
                else:
                    raise InputError("BAD_REQUEST", f"this process does not answer {kind!r}", "see reports.worker")
            except BaseException as error:
                self._fail(request, error)

    def _left_by(self, request: dict[str, Any]) -> Kept:
        """Return what the job of a request left."""
        with self._lock:
            kept = self._kept.get(text_of(request, "job"))
            if kept is not None:
                self._kept.move_to_end(request["job"])
        model = request.get("model")
        if kept is None or (model is not None and model not in kept.detections):
            raise InputError(
                "JOB_UNKNOWN",
                "no map of this job and model is in memory",
                f"detect again, or send the map; the last {JOBS_KEPT} jobs are kept",
            )
        if not kept.folder.is_dir():
            raise InputError("FOLDER_INVALID", "the job's folder is gone", "detect again with a new folder")
        return kept

    def _threshold(self, request: dict[str, Any], kept: Kept) -> dict[str, Any]:
        """Answer with the mask and findings of a finished job's map at another threshold."""
        detector = importlib.import_module("UADBenchLib.inference.detector")
        detection = detector.rethreshold(
            kept.detections[text_of(request, "model")],
            _number(request, "threshold"),
            _number(request, "minimum_ml", 0.1),
            _number(request, "smoothing_mm", 0.0),
            text_of(request, "operating_point", "user"),
            text_of(request, "origin", "chosen by the user"),
        )
        kept.detections[detection.model] = detection
        return {"detections": [_describe(detection, kept.stem) | {"mask": _save_mask(kept, detection)}]}

    def _remember(self, request: dict[str, Any]) -> None:
        """Take maps that were computed earlier as if their job had just finished."""
        name, folder, affine = text_of(request, "job"), _folder(request), affine_of(request.get("affine"))
        entries = request.get("detections")
        if not isinstance(entries, list) or not 0 < len(entries) <= MAXIMUM_MODELS:
            raise InputError("BAD_REQUEST", "field 'detections' is not a list of maps", "send at least one")
        detector = importlib.import_module("UADBenchLib.inference.detector")
        kept, shape = Kept(folder, text_of(request, "stem", "scan"), {}), None
        for entry in entries:
            scores = load_array(folder, entry.get("map"), shape).astype(np.float32, copy=False)
            shape, model = scores.shape, text_of(entry, "model")
            kept.detections[model] = detector.restore(
                model,
                scores,
                affine,
                _number(entry, "threshold"),
                brain_mask=mask_of(folder, request, "brain_mask", shape),
                summary=entry.get("summary") if isinstance(entry.get("summary"), dict) else None,
            )
        self._keep(name, kept)
        self._send("result", job=name, kind="remember", models=list(kept.detections))

    def _compare(self, request: dict[str, Any], kept: Kept) -> dict[str, Any]:
        """Answer with what a finished job's maps are worth against a reference; null takes the reference away."""
        surfaces = importlib.import_module("UADBenchLib.evaluation.surfaces")
        curves = importlib.import_module("UADBenchLib.evaluation.compare")
        percentile, rows = _number(request, "percentile", 95.0), []
        if not 0 < percentile <= 100:
            raise InputError("BAD_REQUEST", f"the percentile is {percentile:g}", "send a number above 0 and up to 100")
        detector = importlib.import_module("UADBenchLib.inference.detector")
        for name, before in kept.detections.items():
            reference = mask_of(kept.folder, request, "reference", before.map.shape)
            detection = detector.rethreshold(
                replace(before, reference=reference),
                before.threshold,
                operating_point=before.operating_point,
                origin=before.origin,
            )
            kept.detections[name] = detection
            row = _describe(detection, kept.stem)
            if reference is not None:
                voxel_mm = np.linalg.norm(detection.affine[:3, :3], axis=0)
                distance = surfaces.surface_distance(detection.mask, reference, voxel_mm, percentile)
                thresholds, dice = curves.dice_by_threshold(detection.map, reference, detection.brain_mask)
                row["metrics"] = detection.metrics | {"hausdorff_mm": distance, "percentile": percentile}
                row["curve"] = {"threshold": thresholds, "dice": dice}
            rows.append(row | {"mask": _save_mask(kept, detection)})
        return {"detections": rows}

    def _models(self, request: dict[str, Any]) -> None:
        """Answer with the catalogue."""
        catalogue = importlib.import_module("UADBenchLib.bundles.catalogue")
        self._send("result", job=request.get("job"), kind="models", models=plain(catalogue.list_models()))

    def _device(self, request: dict[str, Any]) -> None:
        """Answer with what there is to compute on."""
        device = importlib.import_module("UADBenchLib.inference.device")
        self._send("result", job=request.get("job"), kind="device", devices=plain(device.devices()))


def _models_of(request: dict[str, Any]) -> list[str]:
    """Return the ids of the models of a request."""
    models = request.get("models")
    known = isinstance(models, list) and 0 < len(models) <= MAXIMUM_MODELS
    if not known or not all(isinstance(name, str) for name in models):
        raise InputError("BAD_REQUEST", "field 'models' is not a list of model ids", "send at least one id")
    return list(models)


def mask_of(folder: Path, request: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a mask that a request names, or None."""
    return None if request.get(key) is None else load_array(folder, request[key], shape) != 0


def _save_mask(kept: Kept, detection: Any) -> str:
    """Write the mask of a changed detection into the job's folder and return its file name."""
    path = kept.folder / f"threshold_{next(kept.count)}_mask.npy"
    np.save(path, np.ascontiguousarray(detection.mask, dtype=np.uint8), allow_pickle=False)
    # The one before may still be open in the client, the one before that is not.
    masks = kept.masks.setdefault(detection.model, [])
    masks.append(path)
    while len(masks) > 2:
        with contextlib.suppress(OSError):
            masks.pop(0).unlink(missing_ok=True)
    return path.name


def _describe(detection: Any, stem: str) -> dict[str, Any]:
    """Return what a result says of one model, without its files."""
    return {
        "model": detection.model,
        "threshold": detection.threshold,
        "operating_point": detection.operating_point,
        "origin": detection.origin,
        "findings": [finding.row() for finding in detection.findings],
        "summary": detection.summary(stem),
    }


def _light(detection: Any) -> Any:
    """Return a detection without the arrays that moving its threshold does not need."""
    spare = {"raw": detection.map, "reconstruction": None, "residual": None}
    names = {entry.name for entry in fields_of(detection)}
    return replace(detection, **{name: value for name, value in spare.items() if name in names})


def _remove_folder(folder: Path) -> None:
    """Remove a job's arrays, and its folder when nothing else is in it; never follows a link."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.suffix == ".npy":
                entry.unlink(missing_ok=True)
        folder.rmdir()


def _take_stdout() -> TextIO:
    """Return the original stdout for the protocol and point everything else at stderr, C libraries too."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return open(descriptor, "w", encoding="utf-8", newline="\n")


def main(answers: dict[str, Answer] | None = None) -> int:
    """Run the worker on this process's stdin and stdout; returns the exit code."""

    def stop(number: int, frame: object) -> None:
        raise _Stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sink = _take_stdout()
    worker = Worker(sys.stdin.buffer, sink, answers)
    worker.run()
    # A thread deep inside a library may not have heard the cancellation; it must not hold the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
