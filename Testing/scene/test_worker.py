"""The worker's client against the real worker process, whose detector is a stand-in, and against processes
that misbehave.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from phantom import affine_of
from UADBenchScene.worker import WorkerClient, missing_packages

HERE = Path(__file__).resolve().parent
SHAPE = (6, 5, 4)
AFFINE = affine_of(degrees=(10, 20, 30), left_handed=True, shape=SHAPE)


def scan() -> np.ndarray:
    """Return a scan whose only high voxel is (4, 3, 2)."""
    voxels = np.ones(SHAPE, dtype=np.float32)
    voxels[4, 3, 2] = 7.5
    return voxels


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The temporary folder of this test, where the client's folders appear."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("UADBENCH_TEST_PID", str(tmp_path / "pid"))
    return lambda: sorted(path for path in tmp_path.iterdir() if path.is_dir())


@pytest.fixture
def client(folders):
    """A client of the scripted worker; nothing of it may be left after the test."""
    made = WorkerClient(sys.executable, ROOT, arguments=[str(HERE / "scripted_worker.py")])
    yield made
    process = made._child.process if made._child is not None else None
    made.close()
    assert process is None or gone(process.pid)
    assert folders() == []


def misbehaving(code: str) -> WorkerClient:
    """Return a client of a process that runs ``code`` in place of the worker."""
    return WorkerClient(sys.executable, ROOT, arguments=["-c", code])


def gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody has collected yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(client: WorkerClient, *kinds: str, seconds: float = 20.0) -> list[dict]:
    """Poll until one of the events has come, and return all that came."""
    events: list[dict] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        events += client.poll()
        if any(event["event"] in kinds for event in events):
            return events
        time.sleep(0.01)
    raise AssertionError(f"none of {kinds} within {seconds} s, only {[event['event'] for event in events]}")


def results_of(client: WorkerClient, count: int) -> list[dict]:
    """Poll until a number of results have come, and return them."""
    found: list[dict] = []
    while len(found) < count:
        found += [event for event in until(client, "result") if event["event"] == "result"]
    return found


def test_nothing_is_started_before_it_is_needed(client, folders):
    assert not client.alive and not client.busy and client.poll() == [] and folders() == []


def test_progress_and_result(client, folders):
    job = client.detect(scan(), AFFINE, ["a", "b"], operating_point="best", minimum_ml=0.2)
    (folder,) = folders()
    assert folder.stat().st_mode & 0o777 == 0o700
    events = until(client, "result")
    kinds = [event["event"] for event in events]
    assert kinds[0] == "ready" and kinds[1] == "accepted" and kinds[-1] == "result" and kinds.count("warning") == 2
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions) and len(fractions) >= 1
    detections = events[-1]["detections"]
    assert events[-1]["job"] == job and [row["model"] for row in detections] == ["a", "b"]
    np.testing.assert_array_equal(detections[0]["map"], scan())
    np.testing.assert_array_equal(detections[1]["mask"], scan() >= 3)
    np.testing.assert_array_equal(events[-1]["affine"], AFFINE)
    assert detections[0]["brain_mask"].all() and detections[0]["operating_point"] == "best"
    finding = detections[0]["findings"][0]
    place = [finding[f"peak_{axis}"] for axis in "ras"]
    np.testing.assert_allclose(place, (AFFINE @ [4, 3, 2, 1])[:3], atol=1e-9)


def test_no_array_of_a_finished_job_is_left(client, folders):
    client.detect(scan(), AFFINE, ["a"], brain_mask=np.ones(SHAPE, np.uint8))
    until(client, "result")
    assert [list(folder.iterdir()) for folder in folders()] == [[]]
    assert not client.busy


def test_brain_mask_arrives(client):
    mask = (scan() > 3).astype(np.uint8)
    client.detect(scan(), AFFINE, ["a"], brain_mask=mask)
    np.testing.assert_array_equal(until(client, "result")[-1]["detections"][0]["brain_mask"], mask)


def test_threshold_of_a_finished_job(client, folders):
    job = client.detect(scan(), AFFINE, ["a"])
    until(client, "result")
    for threshold, count in ((0.5, scan().size), (7.0, 1), (8.0, 0)):
        client.threshold(job, "a", threshold)
        (event,) = until(client, "result")
        (row,) = event["detections"]
        assert event["kind"] == "threshold" and row["threshold"] == threshold and "map" not in row
        assert row["mask"].sum() == count and len(row["findings"]) == min(count, 1)
        assert [list(folder.iterdir()) for folder in folders()] == [[]]


def test_a_reference_can_be_compared_with_and_leaves_no_file(client, folders):
    job = client.detect(scan(), AFFINE, ["a", "b"])
    until(client, "result")
    reference = (scan() >= 5).astype(np.uint8)
    client.compare(job, reference, 90.0)
    client.compare(job, None)
    first, second = results_of(client, 2)
    assert first["kind"] == second["kind"] == "compare"
    row = first["detections"][1]
    assert row["metrics"]["percentile"] == 90.0 and row["metrics"]["reference_ml"] == reference.sum()
    assert row["curve"]["dice"][10] == 2 * reference.sum() / (reference.sum() + (scan() > 5).sum())
    assert "metrics" not in second["detections"][1]
    assert [list(folder.iterdir()) for folder in folders()] == [[]]


def test_maps_of_an_earlier_session_can_be_thresholded(client, folders):
    job = client.remember(AFFINE, [{"model": "a", "map": scan(), "threshold": 3.0, "summary": {"x": 1}}])
    assert client.has(job)
    client.threshold(job, "a", 7.0, smoothing_mm=1.0, operating_point="strict", origin="known")
    results = results_of(client, 2)
    assert [event["kind"] for event in results] == ["remember", "threshold"]
    (row,) = results[1]["detections"]
    assert row["mask"].sum() == 1 and row["operating_point"] == "strict" and row["origin"] == "known"
    assert [list(folder.iterdir()) for folder in folders()] == [[]]


def test_what_was_longest_not_asked_for_is_forgotten_first(client, folders):
    jobs = [client.detect(scan(), AFFINE, ["a"]) for _number in range(3)]
    results_of(client, 3)
    client.threshold(jobs[0], "a", 7.0)
    until(client, "result")
    jobs.append(client.detect(scan(), AFFINE, ["a"]))
    until(client, "result")
    assert [client.has(job) for job in jobs] == [True, False, True, True]
    client.threshold(jobs[0], "a", 5.0)
    assert until(client, "result")[-1]["job"] == jobs[0], "the worker has kept the same ones"
    assert len(folders()) == 3


def test_out_of_memory_comes_with_offers(client):
    client.detect(scan(), AFFINE, ["a"], device="memory")
    event = until(client, "failed")[-1]
    assert event["code"] == "OUT_OF_MEMORY" and event["offers"] == [{"batch": 2}, {"device": "cpu"}]


def test_threshold_of_an_unknown_job_fails(client):
    client.threshold("nobody's", "a", 3.0)
    (event,) = client.poll()
    assert (event["event"], event["code"]) == ("failed", "JOB_UNKNOWN") and event["advice"]


def test_only_the_newest_finished_jobs_are_kept(client, folders):
    jobs = [client.detect(scan(), AFFINE, ["a"]) for _ in range(5)]
    while client.busy:
        until(client, "result")
    assert len(folders()) == 3
    client.threshold(jobs[0], "a", 3.0)
    assert client.poll()[-1]["code"] == "JOB_UNKNOWN"


def test_a_refusal_comes_with_its_advice(client, folders):
    client.detect(scan(), AFFINE, ["a"], device="refuse")
    event = until(client, "failed")[-1]
    assert (event["code"], event["advice"]) == ("NOT_A_HEAD", "choose a scan of a whole head")
    assert folders() == [] and not client.busy and client.alive


def test_catalogue_through_the_worker(client):
    client.request("models")
    assert isinstance(until(client, "result")[-1]["models"], list)


def test_cancel_is_answered_within_a_second_and_the_worker_stays(client, folders):
    job = client.detect(scan(), AFFINE, ["a"], device="slow")
    until(client, "progress")
    process = client._child.process
    start = time.monotonic()
    client.cancel(job)
    events = until(client, "cancelled")
    assert time.monotonic() - start < 1.0
    assert events[-1]["job"] == job and folders() == [] and not client.busy
    assert client._child.process is process and client.alive
    client.detect(scan(), AFFINE, ["a"])
    until(client, "result")


def test_a_worker_that_does_not_answer_cancel_is_killed_with_its_children(client, folders, tmp_path):
    job = client.detect(scan(), AFFINE, ["a"], device="deaf")
    end = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        client.poll()
        time.sleep(0.01)
    process, child = client._child.process, int((tmp_path / "pid").read_text())
    start = time.monotonic()
    client.cancel(job)
    events = until(client, "cancelled")
    assert events[-1] == {"event": "cancelled", "job": job}
    assert 1.0 <= time.monotonic() - start < 1.8
    assert gone(process.pid) and gone(child) and folders() == [] and not client.busy
    client.detect(scan(), AFFINE, ["a"])
    until(client, "result")


def test_a_result_that_crosses_with_cancel_is_a_cancellation(client, folders):
    job = client.detect(scan(), AFFINE, ["a"])
    while client._child.events.qsize() == 0 or client.busy and len(list(folders()[0].iterdir())) > 0:
        time.sleep(0.01)
    client.cancel(job)
    events = until(client, "cancelled", "result")
    time.sleep(0.3)
    events += client.poll()
    assert [event["event"] for event in events][-1] == "cancelled"
    assert not any(event["event"] in ("failed", "result") for event in events)
    assert folders() == []


def test_cancel_of_nothing_is_nothing(client):
    client.cancel("nobody's")
    assert client.poll() == [] and not client.alive


def test_death_of_the_worker_is_an_event_and_it_can_be_started_again(client, folders):
    job = client.detect(scan(), AFFINE, ["a"], device="crash")
    process = client._child.process
    event = until(client, "failed")[-1]
    assert (event["code"], event["job"]) == ("WORKER_DIED", job) and "3" in event["message"] and event["advice"]
    assert gone(process.pid) and folders() == [] and not client.busy and not client.alive
    client.detect(scan(), AFFINE, ["a"])
    until(client, "result")


def test_death_while_idle_does_not_fail_the_next_job(client):
    client.detect(scan(), AFFINE, ["a"])
    until(client, "result")
    client._child.process.kill()
    client._child.process.wait()
    job = client.detect(scan(), AFFINE, ["a"])
    events = until(client, "result")
    assert events[-1]["job"] == job and not any(event["event"] == "failed" for event in events)


def test_what_libraries_print_is_not_an_event(client):
    client.detect(scan(), AFFINE, ["a"])
    until(client, "result")
    assert "a library that prints to stdout" in client.log


def test_close_ends_a_running_job(client, folders):
    client.detect(scan(), AFFINE, ["a"], device="slow")
    until(client, "progress")
    process = client._child.process
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 2.0
    assert gone(process.pid) and folders() == [] and client.poll() == []
    client.close()


def test_a_forgotten_client_leaves_nothing(folders):
    client = WorkerClient(sys.executable, ROOT, arguments=[str(HERE / "scripted_worker.py")])
    client.detect(scan(), AFFINE, ["a"], device="slow")
    until(client, "progress")
    pid = client._child.process.pid
    del client
    assert gone(pid) and folders() == []


def test_garbage_on_stdout_is_passed_over(folders):
    client = misbehaving("print('no json'); print('{\"event\": \"party\"}'); print('\\x00\\xff')")
    client.request("models")
    events = until(client, "failed")
    assert [event["code"] for event in events] == ["WORKER_DIED"]
    client.close()


ANSWER = """
import json, sys
job = json.loads(sys.stdin.readline())
print(json.dumps({"event": "result", "job": job["job"], "detections": [{"model": "a", "map": NAME}]}), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    "name", ["'../outside.npy'", "'/etc/hostname'", "'missing.npy'", "'pickle.npy'", "'shape.npy'", "3"]
)
def test_an_array_that_cannot_be_trusted_is_a_failure(folders, tmp_path, name):
    np.save(tmp_path / "outside.npy", np.zeros(SHAPE))
    make = "import numpy as np; np.save(job['folder'] + '/pickle.npy', np.array([{}]), allow_pickle=True)\n"
    make += "np.save(job['folder'] + '/shape.npy', np.zeros((2, 2)))\n"
    client = misbehaving(ANSWER.replace("NAME", name).replace("print(json", make + "print(json"))
    client.detect(scan(), AFFINE, ["a"])
    assert until(client, "failed")[-1]["code"] == "RESULT_UNREADABLE"
    assert folders() == []
    client.close()


def test_a_worker_of_another_protocol_is_ended(folders):
    client = misbehaving('print(\'{"event": "ready", "protocol": 99}\', flush=True); input(); input()')
    client.detect(scan(), AFFINE, ["a"])
    assert until(client, "failed")[-1]["code"] == "WORKER_DIED"
    assert not client.alive and folders() == []
    client.close()


def test_an_interpreter_that_does_not_exist(folders):
    client = WorkerClient("/nowhere/python", ROOT)
    with pytest.raises(OSError):
        client.detect(scan(), AFFINE, ["a"])
    assert folders() == []


def test_missing_packages():
    assert missing_packages(sys.executable, ["numpy", "no_such_package", "vtk"]) == ["no_such_package"]
    with pytest.raises(RuntimeError, match="cannot be started"):
        missing_packages("/nowhere/python", ["numpy"])


def test_environment_reaches_the_worker(monkeypatch, folders):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    client = WorkerClient(sys.executable, ROOT)
    assert client._environment["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/somewhere"])
    assert WorkerClient(sys.executable, ROOT, {})._environment["PYTHONPATH"] == str(ROOT)
