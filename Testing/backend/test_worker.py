"""The worker as a real child process: only the detector, which needs trained models, is replaced.

The replacement is put in place by a small driver script that then calls the worker's own ``main``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.inference.worker import load_array

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import sys, time, types
from dataclasses import dataclass, field, replace
import numpy as np
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.compare import compare
from UADBenchLib.inference.findings import find
from UADBenchLib.scan import Check

@dataclass
class Detection:
    model: str; map: object; mask: object; brain_mask: object; affine: object; findings: list
    threshold: float = 3.0; operating_point: str = "fpr-1pct"; origin: str = "test"
    reference: object = None; metrics: object = None; smoothing_mm: float = 0.0; reconstruction: object = None
    residual: object = None
    checks: list = field(default_factory=list)
    def summary(self, stem):
        return {"stem": stem, "metrics": {"dice": float("nan")}, "n": np.int64(3)}

def detect(scan, models, *, brain_mask=None, reference=None, operating_point="fpr-1pct", device="auto",
           minimum_ml=0.1, force=False, batch=8, reconstruct=False, progress=None):
    if "other" in models and not force:
        raise InputError("CONTRAST_OTHER", "neither T1w, T2w nor FLAIR", "name it, or force it")
    if "missing" in models:
        raise InputError("MODEL_UNKNOWN", "no model missing", "see uadbench models")
    if "memory" in models and batch > 2:
        raise MemoryError("2 GB")
    if "bug" in models:
        raise KeyError("secret patient name")
    print("a library that prints on stdout")
    steps = 400 if "slow" in models else 20
    for step in range(steps):
        progress("score", step / steps)
        time.sleep(0.02 if "slow" in models else 0.001)
    progress("score", 0.3)
    progress("done", 1.0)
    checks = [Check("warning", "THICK_SLICES", "slices of 5 mm", "expect less"), Check("info", "X", "y")]
    detections = []
    for model in models:
        z = np.where(scan.voxels > 0, scan.voxels, 0).astype(np.float32)
        mask, findings = find(z, z > 3.0, scan.affine, minimum_ml=minimum_ml, reference=reference)
        detections.append(Detection(model, z, mask, (scan.voxels > 0).astype(np.uint8), scan.affine, findings,
                                    checks=checks, reconstruction=z + 1 if reconstruct else None))
    return detections

def rethreshold(detection, threshold, minimum_ml=0.0, smoothing_mm=0.0, operating_point="user", origin="user"):
    mask, findings = find(detection.map, detection.map > threshold, detection.affine, minimum_ml=minimum_ml,
                          reference=detection.reference)
    metrics = None
    if detection.reference is not None:
        metrics = compare(detection.map, mask, detection.reference, detection.brain_mask, 0.001)
    return replace(detection, mask=mask, findings=findings, threshold=threshold, smoothing_mm=smoothing_mm,
                   operating_point=operating_point, origin=origin, metrics=metrics)

def restore(model, map, affine, threshold, brain_mask=None, summary=None):
    brain = (map > 0 if brain_mask is None else brain_mask).astype(np.uint8)
    return rethreshold(Detection(model, map, brain, brain, affine, [], origin=(summary or {})["from"]), threshold)

def module(name, **members):
    fake = types.ModuleType(name); fake.__dict__.update(members); sys.modules[name] = fake

module("UADBenchLib.inference.detector", detect=detect, rethreshold=rethreshold, restore=restore, warm_up=lambda: None)
module("UADBenchLib.bundles.catalogue", list_models=lambda: [{"id": "fae-t1w-compact", "path": "p"}])
module("UADBenchLib.inference.device", devices=lambda: [{"id": "cpu", "name": "CPU", "memory_free_gb": 1.5}])
from UADBenchLib.inference import worker
from UADBenchLib.reports.worker import export
sys.exit(worker.main({"export": export}))
"""


class Client:
    """Drives one worker process the way Slicer does."""

    def __init__(self, folder: Path) -> None:
        script = folder / "driver.py"
        script.write_text(DRIVER)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.log = open(folder / "log.txt", "wb")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put(None)

    def send(self, **message: Any) -> None:
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def until(self, event: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Return the next event of a kind; an unexpected ``failed`` or the end of the stream is an error."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.events.get(timeout=max(0.01, deadline - time.monotonic()))
            assert message is not None, f"the worker ended while {event!r} was awaited"
            self.seen.append(message)
            if message["event"] == event and all(message.get(key) == value for key, value in fields.items()):
                return message
            assert message["event"] != "failed", message

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    worker = Client(tmp_path)
    worker.until("ready", timeout=20)
    yield worker
    worker.close()


def job_folder(parent: Path, name: str) -> Path:
    """A private folder with a scan of one bright cube in it."""
    folder = parent / f"job-{name}"
    folder.mkdir()
    voxels = np.ones((12, 14, 10), np.float32)
    voxels[3:7, 3:7, 3:7] = 6.0
    np.save(folder / "voxels.npy", voxels)
    np.save(folder / "reference.npy", (voxels > 5).astype(np.uint8))
    return folder


def detect(client: Client, folder: Path, job: str, /, *models: str, **changes: Any) -> None:
    """Send a detect request, with fields of the request replaced as asked."""
    scan = {"voxels": "voxels.npy", "affine": np.eye(4).tolist(), "contrast": "T1w", "stem": "sub-1_T1w"}
    request = {
        "request": "detect",
        "job": job,
        "folder": str(folder),
        "scan": scan,
        "models": list(models) or ["fae"],
        "operating_point": "fpr-1pct",
        "device": "cpu",
        "minimum_ml": 0.0,
        "brain_mask": None,
        "reference": None,
    }
    client.send(**(request | changes))


def test_ready_names_the_protocol_and_quit_ends(tmp_path: Path) -> None:
    client = Client(tmp_path)
    ready = client.until("ready", timeout=20)
    assert ready["protocol"] == 2 and ready["version"]
    client.send(request="quit")
    client.until("bye")
    assert client.process.wait(5) == 0
    client.close()


def test_detect_gives_arrays_findings_and_rising_progress(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    detect(client, folder, "a", "fae", "andi", reference="reference.npy")
    result = client.until("result", job="a")
    assert result["kind"] == "detect"
    assert [detection["model"] for detection in result["detections"]] == ["fae", "andi"]
    first = result["detections"][0]
    scores = np.load(folder / first["map"], allow_pickle=False)
    mask = np.load(folder / first["mask"], allow_pickle=False)
    brain = np.load(folder / first["brain_mask"], allow_pickle=False)
    assert scores.dtype == np.float32 and mask.dtype == brain.dtype == np.uint8
    assert mask.sum() == 64 and scores.shape == mask.shape == brain.shape == (12, 14, 10)
    assert first["findings"][0]["volume_ml"] == 0.064 and first["findings"][0]["status"] == "TP"
    assert first["summary"] == {"stem": "sub-1_T1w", "metrics": {"dice": None}, "n": 3}
    kinds = [message["event"] for message in client.seen]
    assert kinds[:2] == ["ready", "accepted"]
    fractions = [message["fraction"] for message in client.seen if message["event"] == "progress"]
    assert len(fractions) >= 2 and fractions == sorted(fractions) and fractions[-1] == 1.0
    warnings = [message for message in client.seen if message["event"] == "warning"]
    assert [warning["code"] for warning in warnings] == ["THICK_SLICES"]


def test_progress_estimates_the_time_left(client: Client, tmp_path: Path) -> None:
    detect(client, job_folder(tmp_path, "a"), "a", "slow")
    while True:
        progress = client.until("progress", job="a")
        if progress["eta_s"] is not None:
            break
    assert 1.0 < progress["eta_s"] < 60.0


def test_cancel_of_a_running_job_within_a_second(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    detect(client, folder, "a", "slow")
    client.until("progress", job="a")
    start = time.monotonic()
    client.send(request="cancel", job="a")
    client.until("cancelled", job="a", timeout=1.0)
    assert time.monotonic() - start < 1.0
    assert not list(folder.glob("result_*"))
    detect(client, job_folder(tmp_path, "b"), "b")
    client.until("result", job="b")


def test_two_jobs_queue_and_a_queued_one_can_be_cancelled(client: Client, tmp_path: Path) -> None:
    detect(client, job_folder(tmp_path, "a"), "a", "slow")
    for name in "bc":
        detect(client, job_folder(tmp_path, name), name)
    client.until("progress", job="a")
    client.send(request="cancel", job="b")
    client.until("cancelled", job="b", timeout=1.0)
    client.send(request="cancel", job="a")
    client.until("cancelled", job="a", timeout=1.0)
    client.until("result", job="c")
    accepted = [message["job"] for message in client.seen if message["event"] == "accepted"]
    assert accepted == ["a", "b", "c"]
    assert not any(message["event"] == "progress" and message["job"] == "b" for message in client.seen)


def test_threshold_gives_a_new_mask_even_while_another_job_runs(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    detect(client, folder, "a")
    client.until("result", job="a")
    detect(client, job_folder(tmp_path, "b"), "b", "slow")
    for threshold, voxels in ((0.5, 1680), (5.0, 64), (7.0, 0)):
        client.send(request="threshold", job="a", model="fae", threshold=threshold, minimum_ml=0)
        row = client.until("result", job="a", kind="threshold")["detections"][0]
        assert np.load(folder / row["mask"], allow_pickle=False).sum() == voxels
        assert row["threshold"] == threshold and len(row["findings"]) == bool(voxels)
    assert len(list(folder.glob("threshold_*"))) == 2
    client.send(request="threshold", job="zzz", model="fae", threshold=1.0)
    assert client.until("failed")["code"] == "JOB_UNKNOWN"


def test_models_and_devices(client: Client) -> None:
    client.send(request="models")
    assert client.until("result", kind="models")["models"][0]["id"] == "fae-t1w-compact"
    client.send(request="device")
    assert client.until("result", kind="device")["devices"] == [{"id": "cpu", "name": "CPU", "memory_free_gb": 1.5}]


def test_a_forced_scan_is_taken(client: Client, tmp_path: Path) -> None:
    detect(client, job_folder(tmp_path, "a"), "a", "other", force=True)
    assert client.until("result", job="a")["detections"][0]["model"] == "other"


@pytest.mark.parametrize(
    "line",
    [b"not json\n", b"[1, 2]\n", b'{"request": "fly"}\n', b"\xff\xfe\x00\n", b"[" * 100_000 + b"\n",
     b'{"request": "cancel"}\n', b'{"request": "cancel", "job": "nobody"}\n', b"x" * (3 << 20) + b"\n"],
    ids=["text", "list", "unknown", "bytes", "deep", "no-job", "unknown-job", "long"],
)  # fmt: skip
def test_garbage_is_answered_and_survived(client: Client, line: bytes) -> None:
    client.raw(line)
    assert client.until("failed")["code"] in ("BAD_REQUEST", "JOB_UNKNOWN")
    client.send(request="device")
    client.until("result", kind="device")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"models": []}, "BAD_REQUEST"),
        ({"folder": "relative"}, "FOLDER_INVALID"),
        ({"scan": None}, "BAD_REQUEST"),
        ({"scan": {"voxels": "../voxels.npy", "affine": np.eye(4).tolist()}}, "ARRAY_NAME"),
        ({"scan": {"voxels": "absent.npy", "affine": np.eye(4).tolist()}}, "ARRAY_MISSING"),
        ({"scan": {"voxels": "voxels.npy", "affine": np.zeros((4, 4)).tolist()}}, "AFFINE_INVALID"),
        ({"scan": {"voxels": "voxels.npy", "affine": "eye"}}, "AFFINE_INVALID"),
        (
            {"scan": {"voxels": "voxels.npy", "affine": np.eye(4).tolist(), "contrast": "PD"}},
            "CONTRAST_UNKNOWN",
        ),
        ({"minimum_ml": "small"}, "BAD_REQUEST"),
        ({"force": "yes"}, "BAD_REQUEST"),
        ({"models": ["other"]}, "CONTRAST_OTHER"),
        ({"models": ["missing"]}, "MODEL_UNKNOWN"),
        ({"models": ["memory"]}, "OUT_OF_MEMORY"),
        ({"models": ["bug"]}, "INTERNAL"),
    ],
)
def test_bad_requests_fail_with_a_code_and_the_next_one_works(
    client: Client, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    detect(client, job_folder(tmp_path, "a"), "a", **changes)
    failed = client.until("failed", job="a")
    assert failed["code"] == code and failed["message"] and failed["advice"]
    assert "secret" not in json.dumps(failed)
    detect(client, job_folder(tmp_path, "b"), "b")
    client.until("result", job="b")


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    (folder / "thesis.txt").write_text("years of work")
    detect(client, folder, "a")
    assert client.until("failed")["code"] == "FOLDER_NOT_PRIVATE"
    client.process.stdin.close()
    client.process.wait(10)
    assert (folder / "thesis.txt").exists() and (folder / "voxels.npy").exists()


def test_end_of_input_ends_the_process_and_removes_unfinished_folders(client: Client, tmp_path: Path) -> None:
    done, running, waiting = (job_folder(tmp_path, name) for name in "abc")
    detect(client, done, "a")
    client.until("result", job="a")
    detect(client, running, "b", "slow")
    detect(client, waiting, "c")
    client.until("progress", job="b")
    client.process.stdin.close()
    assert client.process.wait(5) == 0
    assert done.exists() and not running.exists() and not waiting.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_sigterm_ends_the_process_and_removes_unfinished_folders(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    detect(client, folder, "a", "slow")
    client.until("progress", job="a")
    client.process.send_signal(signal.SIGTERM)
    assert client.process.wait(5) == 0
    assert not folder.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for children")
def test_kill_leaves_no_process(client: Client, tmp_path: Path) -> None:
    detect(client, job_folder(tmp_path, "a"), "a", "slow")
    client.until("progress", job="a")
    pid = client.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    offspring = children.read_text().split() if children.exists() else []
    client.process.kill()
    assert client.process.wait(5) == -signal.SIGKILL
    assert not Path(f"/proc/{pid}").exists()
    assert [child for child in offspring if Path(f"/proc/{child}").exists()] == []


def test_out_of_memory_offers_a_smaller_batch_and_the_processor(client: Client, tmp_path: Path) -> None:
    for name, device, offers in (("a", "auto", [{"batch": 2}, {"device": "cpu"}]), ("b", "cpu", [{"batch": 2}])):
        detect(client, job_folder(tmp_path, name), name, "memory", device=device)
        with pytest.raises(AssertionError):
            client.until("result", job=name)
        assert client.seen[-1]["code"] == "OUT_OF_MEMORY" and client.seen[-1]["offers"] == offers
    detect(client, job_folder(tmp_path, "c"), "c", "memory", **offers[0])
    client.until("result", job="c")


def test_a_refused_contrast_offers_to_go_on(client: Client, tmp_path: Path) -> None:
    detect(client, job_folder(tmp_path, "a"), "a", "other")
    with pytest.raises(AssertionError):
        client.until("result", job="a")
    assert client.seen[-1]["offers"] == [{"force": True}]


def test_reconstruction_comes_when_asked_for(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    detect(client, folder, "a", reconstruct=True)
    row = client.until("result", job="a")["detections"][0]
    healthy, scores = (np.load(folder / row[key], allow_pickle=False) for key in ("reconstruction", "map"))
    np.testing.assert_array_equal(healthy, scores + 1)
    assert "residual" not in row


def test_a_reference_can_be_given_and_taken_away_afterwards(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    detect(client, folder, "a", "fae", "andi")
    assert client.until("result", job="a")["detections"][0]["findings"][0]["status"] == ""
    client.send(request="compare", job="a", reference="reference.npy", percentile=100)
    rows = client.until("result", job="a", kind="compare")["detections"]
    assert [row["model"] for row in rows] == ["fae", "andi"]
    for row in rows:
        assert row["findings"][0]["status"] == "TP"
        assert row["metrics"]["dice"] == 1.0 and row["metrics"]["hausdorff_mm"] == 0.0
        curve = dict(zip(row["curve"]["threshold"], row["curve"]["dice"], strict=True))
        assert curve[5.5] == 1.0 and curve[0.0] < 0.2 and curve[6.0] == 0.0
    client.send(request="threshold", job="a", model="fae", threshold=7.0, minimum_ml=0)
    assert client.until("result", job="a", kind="threshold")["detections"][0]["findings"] == []
    client.send(request="compare", job="a", reference="reference.npy", percentile=0)
    with pytest.raises(AssertionError):
        client.until("result", job="a")
    assert client.seen[-1]["code"] == "BAD_REQUEST"
    client.send(request="compare", job="a", reference=None)
    row = client.until("result", job="a", kind="compare")["detections"][1]
    assert "metrics" not in row and row["findings"][0]["status"] == ""


def test_maps_of_an_earlier_session_are_taken_up_again(client: Client, tmp_path: Path) -> None:
    folder = job_folder(tmp_path, "a")
    entry = {"model": "fae", "map": "voxels.npy", "threshold": 3.0, "summary": {"from": "a file"}}
    client.send(request="remember", job="a", folder=str(folder), affine=np.eye(4).tolist(), detections=[entry])
    assert client.until("result", job="a", kind="remember")["models"] == ["fae"]
    client.send(request="threshold", job="a", model="fae", threshold=0.5, minimum_ml=0)
    row = client.until("result", job="a", kind="threshold")["detections"][0]
    assert np.load(folder / row["mask"], allow_pickle=False).sum() == 1680
    client.send(request="remember", job="b", folder=str(job_folder(tmp_path, "b")), affine=[], detections=[entry])
    with pytest.raises(AssertionError):
        client.until("result", job="b")
    assert client.seen[-1]["code"] == "AFFINE_INVALID"


def test_what_no_process_answers_is_refused(client: Client, tmp_path: Path) -> None:
    detect(client, job_folder(tmp_path, "a"), "a")
    client.until("result", job="a")
    client.send(request="export", job="a", out="relative", formats=["files"])
    with pytest.raises(AssertionError):
        client.until("result", job="a")
    assert client.seen[-1]["code"] == "BAD_REQUEST" and "absolute" in client.seen[-1]["message"]


def test_load_array_refuses_what_is_not_a_plain_volume(tmp_path: Path) -> None:
    outside = tmp_path / "outside.npy"
    np.save(outside, np.zeros((2, 2, 2), np.float32))
    folder = tmp_path / "job"
    folder.mkdir()
    np.save(folder / "good.npy", np.zeros((2, 3, 4), np.float32))
    np.save(folder / "flat.npy", np.zeros((2, 3), np.float32))
    np.save(folder / "text.npy", np.full((2, 3, 4), "x"))
    np.save(folder / "object.npy", np.array([[[{}]]], dtype=object), allow_pickle=True)
    whole = (folder / "good.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-20])
    (folder / "noise.npy").write_bytes(b"noise")
    assert load_array(folder, "good.npy", (2, 3, 4)).shape == (2, 3, 4)
    cases = {
        "flat.npy": "ARRAY_SHAPE", "text.npy": "ARRAY_TYPE", "object.npy": "ARRAY_UNREADABLE",
        "cut.npy": "ARRAY_UNREADABLE", "noise.npy": "ARRAY_UNREADABLE", str(outside): "ARRAY_NAME",
        "../outside.npy": "ARRAY_NAME", "C:x.npy": "ARRAY_NAME", "good.txt": "ARRAY_NAME",
    }  # fmt: skip
    if os.name == "posix":
        (folder / "link.npy").symlink_to(outside)
        cases["link.npy"] = "ARRAY_MISSING"
    for name, code in cases.items():
        with pytest.raises(InputError) as refusal:
            load_array(folder, name)
        assert refusal.value.code == code, name
    with pytest.raises(InputError) as refusal:
        load_array(folder, "good.npy", (4, 3, 2))
    assert refusal.value.code == "ARRAY_SHAPE"
    with pytest.raises(InputError):
        load_array(folder, {"name": 1})
