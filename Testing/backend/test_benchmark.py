"""The benchmark's runner: what it refuses, that it survives kills and bad scans, and that every executor gives the same
tables. The evaluation of a scan itself is tested on a real map at the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import time
from dataclasses import replace
from pathlib import Path

import benchmarks
import numpy as np
import pytest
from benchmarks import MODELS, make_cohort, make_models, quick_evaluate
from builders import Laboratory, on_grid, write_cohort

from UADBenchLib.benchmark import executors, runner, tables
from UADBenchLib.benchmark import plan as planning
from UADBenchLib.benchmark.evaluate import Job, evaluate, scan_score
from UADBenchLib.benchmark.plan import make_plan, scan_ids
from UADBenchLib.benchmark.summary import summarise
from UADBenchLib.benchmark.tables import read_run, read_table
from UADBenchLib.bundles.bundle import OperatingPoint
from UADBenchLib.cli.main import main
from UADBenchLib.cohort import CohortScan, read_cohort
from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.evaluation.lesions import LesionRule
from UADBenchLib.evaluation.metrics import dice
from UADBenchLib.writing import write_volume

COMPARED = ("run.json", "scans.csv", "lesions.csv", "findings.csv", "summary.csv", "failures.csv")


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort and models that cost nothing."""
    folder = tmp_path_factory.mktemp("toys")
    make_cohort(folder)
    make_models(folder / "models")
    return folder


@pytest.fixture
def cohort(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table; the models are installed, and scans are evaluated at no cost."""
    monkeypatch.setenv("UADBENCH_MODELS", str(toys / "models"))
    monkeypatch.setattr(executors, "evaluate", quick_evaluate)
    monkeypatch.setattr(benchmarks, "SECONDS", 0.0)
    return toys / "cohort.csv"


def run(cohort: Path, out: Path, **options: object) -> dict[str, object]:
    return runner.benchmark(cohort, MODELS, out, device="cpu", **({"workers": 1} | options))


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in COMPARED}


def code_of(call) -> str:
    with pytest.raises(InputError) as refusal:
        call()
    assert refusal.value.advice
    return refusal.value.code


class TestRun:
    def test_every_scan_model_and_point_has_a_row(self, cohort: Path, tmp_path: Path) -> None:
        summary = run(cohort, tmp_path / "run")
        assert (summary["scans"], summary["done"], summary["failed"], summary["resumed"]) == (8, 8, 0, 0)
        scans = read_table(tmp_path / "run", tables.SCANS)
        assert len(scans) == 8 * 2 * 2 == len(scans.drop_duplicates(["scan_id", "model", "operating_point"]))
        assert set(scans["dataset"]) == {cohort.parent.name}
        healthy = scans[scans["label"] == "healthy"]
        assert healthy["dice"].isna().all() and healthy["healthy_fpr"].notna().all()
        assert (healthy["reference_ml"] == 0).all() and (healthy["lesions"] == 0).all()
        sick = scans[scans["label"] == "lesion"]
        assert sick["dice"].between(0, 1).all() and (sick["best_dice"] <= 1).all()
        strict, loose = (scans[scans["operating_point"] == name] for name in ("fpr-0.1pct", "fpr-1pct"))
        assert (strict["mask_ml"].to_numpy() <= loose["mask_ml"].to_numpy()).all()
        assert (strict["scan_score"].to_numpy() == loose["scan_score"].to_numpy()).all()

    def test_tables_agree_with_each_other(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "run")
        scans, lesions, findings = (
            read_table(tmp_path / "run", t) for t in (tables.SCANS, tables.LESIONS, tables.FINDINGS)
        )
        key = ["scan_id", "model", "operating_point"]
        sick = scans[scans["lesions"] > 0].set_index(key).sort_index()
        grouped = lesions.groupby(key)
        assert (grouped.size() == sick["lesions"]).all() and (grouped["found"].sum() == sick["lesions_found"]).all()
        flagged = scans[scans["findings"] > 0].set_index(key).sort_index()
        assert (findings.groupby(key).size() == flagged["findings"]).all()
        volumes = findings.groupby(key)["volume_ml"].sum()
        np.testing.assert_allclose(volumes.to_numpy(), flagged["mask_ml"].to_numpy(), rtol=1e-6)
        for _, row in sick.iterrows():
            assert row["recall"] == pytest.approx(row["lesions_found"] / row["lesions"])

    def test_the_run_says_what_it_was(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "run")
        known = read_run(tmp_path / "run")
        assert set(known.models) == set(MODELS) and known.operating_points == ("fpr-1pct", "fpr-0.1pct")
        point = known.models[MODELS[0]].operating_points["fpr-1pct"]
        assert (point.threshold, point.origin) == (2.0, "made up")
        assert "sentence" in known.policy and "0.01 ml" in known.lesion_rule["sentence"]
        text = (tmp_path / "run" / "run.json").read_text()
        assert str(tmp_path) not in text and str(cohort.parent) not in text

    def test_kept_histograms_are_those_of_the_maps(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "run")
        scans = read_table(tmp_path / "run", tables.SCANS)
        for _, row in scans[scans["operating_point"] == "fpr-1pct"].iterrows():
            histogram = tables.read_histogram(tmp_path / "run", row["scan_id"], row["model"])
            assert histogram.fpr_at(row["threshold"]) == pytest.approx(row["healthy_fpr"], abs=1e-8)
            if row["label"] == "lesion":
                assert histogram.average_precision() == pytest.approx(row["ap"], abs=0.02)

    def test_operating_points_can_be_chosen(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "run", operating_points=["fpr-0.1pct"])
        assert set(read_table(tmp_path / "run", tables.SCANS)["operating_point"]) == {"fpr-0.1pct"}


class TestBadScans:
    @pytest.fixture
    def spoiled(self, cohort: Path, tmp_path: Path) -> Path:
        rows = [vars(row) for row in read_cohort(cohort)]
        rows = [{key: str(value or "") for key, value in row.items()} for row in rows]
        rows[3] |= {"subject": "sub-bad"}
        return write_cohort(tmp_path / "spoiled.csv", rows)

    def test_a_failure_is_listed_and_not_fatal(self, spoiled: Path, tmp_path: Path) -> None:
        summary = run(spoiled, tmp_path / "run")
        assert (summary["done"], summary["failed"]) == (7, 1)
        (failed,) = read_table(tmp_path / "run", tables.FAILURES).to_dict("records")
        assert failed["subject"] == "sub-bad" and "not a brain" in failed["message"] and failed["model"] == ""
        assert len(read_table(tmp_path / "run", tables.SCANS)) == 7 * 4

    def test_a_failure_is_tried_again(self, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run(spoiled, tmp_path / "run")
        done: list[str] = []

        def counted(job: Job, *rest: object):
            done.append(job.row.subject)
            return quick_evaluate(job, *rest)

        monkeypatch.setattr(executors, "evaluate", counted)
        assert run(spoiled, tmp_path / "run")["resumed"] == 7
        assert done == ["sub-bad"]

    def test_a_process_that_dies_costs_one_scan(self, cohort: Path, tmp_path: Path) -> None:
        rows = [{key: str(value or "") for key, value in vars(row).items()} for row in read_cohort(cohort)][:4]
        rows[1] |= {"subject": "sub-fatal"}
        summary = run(write_cohort(tmp_path / "fatal.csv", rows), tmp_path / "run", workers=2)
        assert (summary["done"], summary["failed"]) == (3, 1)
        (failed,) = read_table(tmp_path / "run", tables.FAILURES).to_dict("records")
        assert (failed["subject"], failed["code"]) == ("sub-fatal", "WORKER_LOST")

    def test_exit_code_and_line(self, spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        arguments = [
            "benchmark",
            str(spoiled),
            "--models",
            ",".join(MODELS),
            "--out",
            str(tmp_path / "run"),
            "--workers",
            "1",
        ]
        assert main([*arguments, "--device", "cpu"]) == 1
        assert "7 of 8 scans evaluated, 1 failed" in capsys.readouterr().out
        assert main([*arguments, "--device", "cpu", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["failed"] == 1


class TestResuming:
    def test_what_is_done_is_not_done_again(
        self, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(cohort, tmp_path / "run")
        before = contents(tmp_path / "run")
        monkeypatch.setattr(executors, "evaluate", lambda *_: pytest.fail("evaluated again"))
        assert run(cohort, tmp_path / "run")["resumed"] == 8
        assert contents(tmp_path / "run") == before

    def test_cancelled_between_scans(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "whole")

        def stop(stage: str, fraction: float) -> None:
            if fraction >= 0.5:
                raise CancelledError

        with pytest.raises(CancelledError):
            run(cohort, tmp_path / "run", progress=stop)
        assert not (tmp_path / "run" / "scans.csv").exists()
        assert run(cohort, tmp_path / "run")["resumed"] == 4
        assert contents(tmp_path / "run") == contents(tmp_path / "whole")

    @pytest.mark.parametrize("damage", ["record", "histogram", "input"])
    def test_what_is_missing_or_stale_is_done_again(self, damage: str, tmp_path: Path, cohort: Path) -> None:
        own = make_cohort(tmp_path / "data", 4)
        run(own, tmp_path / "run")
        before = contents(tmp_path / "run")
        record = next((tmp_path / "run" / "records").iterdir())
        if damage == "record":
            record.write_text(record.read_text()[:50])
        elif damage == "histogram":
            (tmp_path / "run" / "histograms" / f"{record.stem}.safetensors").unlink()
        else:
            (tmp_path / "data" / f"{record.stem}.nii.gz").write_bytes(b"0" * 1000)
        assert run(own, tmp_path / "run")["resumed"] == 3
        assert contents(tmp_path / "run") == before

    def test_another_run_is_not_mixed_in(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "run")
        for options in ({"minimum_ml": 0.5}, {"operating_points": ["fpr-1pct"]}):
            assert code_of(lambda o=options: run(cohort, tmp_path / "run", **o)) == "RUN_DIFFERENT"
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "letter.txt").write_text("mine")
        assert code_of(lambda: run(cohort, tmp_path / "other")) == "OUT_NOT_EMPTY"


def killed_and_resumed(cohort: Path, out: Path, kills: int, seed: int) -> int:
    """Run in another process, kill it at random moments, let it end at last; returns how many kills hit."""
    generator, hits, records = random.Random(seed), 0, out / "records"
    # A server that has imported everything, and starts each process as a copy of itself: quick, and without threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks", "UADBenchLib.benchmark.runner"])
    for _ in range(kills):
        process = context.Process(target=benchmarks.run_in_child, args=(cohort, out))
        target = len(list(records.glob("*.json"))) + generator.choice([0, 0, 1])
        process.start()
        # A moment is random in what the run is at, not in seconds, which an idle or busy machine stretches.
        while process.is_alive() and len(list(records.glob("*.json"))) < target:
            time.sleep(0.001)
        time.sleep(generator.random() * 0.1)
        hits += process.is_alive()
        process.kill()
        process.join()
    last = context.Process(target=benchmarks.run_in_child, args=(cohort, out))
    last.start()
    last.join()
    assert last.exitcode == 0
    return hits


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_no_trace(kills: int, cohort: Path, tmp_path: Path, monkeypatch) -> None:
    own = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (own.parents[1], own))))
    run(cohort, tmp_path / "whole")
    assert killed_and_resumed(cohort, tmp_path / "killed", kills, seed=kills) >= kills // 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.name.endswith(".part")]
    assert len(left) <= kills  # a kill may leave its unfinished file, under a name that nothing reads


class TestValidation:
    """Thresholds of the run's own."""

    def test_thresholds_come_from_the_validation_scans(self, cohort: Path, tmp_path: Path) -> None:
        validation = make_cohort(tmp_path / "validation", 24, first=40)
        summary = run(cohort, tmp_path / "run", validation=validation)
        assert summary["checks"] == []
        known = read_run(tmp_path / "run")
        assert set(known.operating_points) == {"fpr-1pct", "fpr-0.1pct", "opt-dice"}
        points = known.models[MODELS[0]].operating_points
        assert "best mean Dice" in points["opt-dice"].origin and "of validation" in points["opt-dice"].origin
        assert points["opt-dice"].ci[0] <= points["opt-dice"].threshold <= points["opt-dice"].ci[1]
        scans = read_table(tmp_path / "run", tables.SCANS)
        rates = scans[scans["label"] == "healthy"].groupby("operating_point")["healthy_fpr"].mean()
        assert rates["fpr-1pct"] == pytest.approx(0.01, abs=0.004) and rates["fpr-0.1pct"] < 0.003
        dice = scans[scans["label"] == "lesion"].groupby("operating_point")["dice"].mean()
        assert dice["opt-dice"] >= dice["fpr-0.1pct"]
        assert not set(scans["subject"]) & set(read_table(tmp_path / "run" / "validation", tables.SCANS)["subject"])

    def test_stopped_on_the_way_it_ends_the_same(self, cohort: Path, tmp_path: Path) -> None:
        validation = make_cohort(tmp_path / "validation", 24, first=40)
        run(cohort, tmp_path / "whole", validation=validation)

        def stop(stage: str, fraction: float) -> None:
            if stage.startswith("12 of 24") or stage.startswith("3 of 8"):
                raise CancelledError

        for _ in range(2):  # in the validation scans
            with pytest.raises(CancelledError):
                run(cohort, tmp_path / "run", validation=validation, progress=stop)
            (tmp_path / "run" / "validation" / "records" / "sub-20_ses-0_T1w.json").unlink()
        run(cohort, tmp_path / "run", validation=validation)
        assert contents(tmp_path / "run") == contents(tmp_path / "whole")

    def test_healthy_scans_alone_say_what_they_cannot_do(self, cohort: Path, tmp_path: Path) -> None:
        made = read_cohort(make_cohort(tmp_path / "data", 24, first=40))
        rows = [{key: str(value or "") for key, value in vars(row).items()} for row in made]
        healthy = write_cohort(tmp_path / "healthy.csv", [row for row in rows if row["label"] == "healthy"])
        checks = run(cohort, tmp_path / "run", validation=healthy)["checks"]
        assert {check.code for check in checks} == {"THRESHOLD_MISSING"} and len(checks) == len(MODELS)
        assert all("cannot say where Dice is best" in check.message for check in checks)
        assert "opt-dice" not in read_run(tmp_path / "run").operating_points
        few = write_cohort(tmp_path / "few.csv", [row for row in rows if row["label"] == "lesion"])
        checks = run(cohort, tmp_path / "few", validation=few)["checks"]
        assert all("too few" in check.message for check in checks) and len(checks) == len(MODELS)
        point = read_run(tmp_path / "few").models[MODELS[0]].operating_points["fpr-1pct"]
        assert point.origin == "made up"

    def test_the_same_people_are_refused(self, cohort: Path, tmp_path: Path) -> None:
        same = make_cohort(tmp_path / "same", 4)
        assert code_of(lambda: run(cohort, tmp_path / "run", validation=same)) == "SUBJECTS_SHARED"
        assert not (tmp_path / "run").exists()


class TestExecutors:
    def test_two_processes_give_the_same_tables(self, cohort: Path, tmp_path: Path) -> None:
        run(cohort, tmp_path / "one")
        run(cohort, tmp_path / "two", workers=2)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    def test_dask_with_a_scheduler_and_two_workers_gives_the_same_tables(
        self, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        distributed = pytest.importorskip("distributed")
        run(cohort, tmp_path / "one")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster:
            summary = run(cohort, tmp_path / "dask", executor="dask", scheduler=cluster.scheduler_address)
            assert (summary["done"], summary["failed"]) == (8, 0)
            assert contents(tmp_path / "one") == contents(tmp_path / "dask")
            monkeypatch.setattr(executors, "versions", lambda: {"uadbench": "of tomorrow"})
            again = {"executor": "dask", "scheduler": cluster.scheduler_address}
            assert code_of(lambda: run(cohort, tmp_path / "other", **again)) == "WORKERS_DIFFER"

    def test_cancelling_does_not_wait_for_scans(self, cohort: Path, tmp_path: Path) -> None:
        """Two processes are at scans that would take minutes."""
        rows = [{key: str(value or "") for key, value in vars(row).items()} for row in read_cohort(cohort)][:2]
        slow = write_cohort(tmp_path / "slow.csv", [row | {"subject": f"sub-slow-{n}"} for n, row in enumerate(rows)])
        began = time.monotonic()

        def stop(stage: str, fraction: float) -> None:
            if time.monotonic() - began > 2:
                raise CancelledError

        with pytest.raises(CancelledError):
            run(slow, tmp_path / "run", workers=2, progress=stop)
        assert time.monotonic() - began < benchmarks.SLOW_SECONDS / 2
        assert not multiprocessing.active_children()

    def test_no_scheduler_there(self, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("distributed")
        monkeypatch.setattr(executors, "CONNECT_SECONDS", 1)
        address = "tcp://127.0.0.1:9"
        refused = code_of(lambda: run(cohort, tmp_path / "run", executor="dask", scheduler=address))
        assert refused == "SCHEDULER_UNREACHABLE"

    def test_one_worker_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        from UADBenchLib.inference import device

        found = [{"id": name, "name": name, "memory_free_gb": 1.0} for name in ("cpu", "cuda:0", "cuda:1")]
        monkeypatch.setattr(device, "devices", lambda: found)
        assert executors.worker_devices("auto", None, 9) == ["cuda:0", "cuda:1"]
        assert executors.worker_devices("auto", None, 1) == ["cuda:0"]
        assert executors.worker_devices("cuda:1", None, 9) == ["cuda:1"]
        assert executors.worker_devices("cpu", 3, 9) == ["cpu"] * 3
        assert code_of(lambda: executors.worker_devices("cuda", 3, 9)) == "OPTION_INVALID"
        assert torch.device("cuda:1").type == "cuda"

    def test_a_finished_run_is_gone_on_with_by_any_number_of_workers(self, cohort: Path, tmp_path: Path) -> None:
        for workers in (1, 3):
            assert run(cohort, tmp_path / "run", workers=workers)["failed"] == 0

    def test_processes_are_no_more_than_memory_allows(self, cohort: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(runner, "_free_memory", lambda: 2 * runner.PROCESS_BYTES)
        forecast = runner.foresee(make_plan(cohort, MODELS).jobs)
        assert forecast.processes == 1 and forecast.memory > runner.PROCESS_BYTES
        assert code_of(lambda: run(cohort, tmp_path / "run", workers=4)) == "MEMORY_SHORT"
        assert not (tmp_path / "run").exists()

    def test_disk_is_looked_at_before_anything_is_written(self, cohort: Path, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(runner, "RECORD_BYTES", 1 << 60)
        assert code_of(lambda: run(cohort, tmp_path / "run")) == "DISK_SHORT"
        assert not (tmp_path / "run").exists()


class TestRefusals:
    def test_subjects_that_a_model_or_a_threshold_knows(self, cohort: Path, tmp_path: Path) -> None:
        for known in ("a", "w", "v"):  # trained on, calibrated on, threshold's
            own = make_cohort(tmp_path / known, 2, subject=known)
            assert code_of(lambda o=own: run(o, tmp_path / "run")) == "SUBJECTS_SHARED"
        assert not (tmp_path / "run").exists()

    def test_subjects_of_the_same_name_are_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        point = OperatingPoint(threshold=2, healthy_fpr=None, ci=(1, 3), origin="o", subjects=("ixi-sub-00",))
        models = make_models(tmp_path / "models", **{"fpr-1pct": point})
        monkeypatch.setenv("UADBENCH_MODELS", str(models))
        checks = make_plan(make_cohort(tmp_path / "data", 2), MODELS).checks
        assert {check.code for check in checks} == {"SUBJECTS_MAYBE_SHARED"}

    def test_models_that_do_not_fit(self, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        known = [entry for entry in planning.list_models() if entry.get("contrast") == "T1w"]
        monkeypatch.setattr(planning, "list_models", lambda: known)

        def plan(models, **options):
            return lambda: make_plan(options.pop("cohort", cohort), models, **options)

        assert code_of(plan(["nobody-t1w-compact"])) == "MODEL_UNKNOWN"
        assert code_of(plan(MODELS, operating_points=["opt-dice"])) == "OPERATING_POINT_UNKNOWN"
        flair = make_cohort(tmp_path / "flair", 2, contrast="FLAIR")
        assert code_of(plan(MODELS, cohort=flair)) == "CONTRAST_MISMATCH"
        assert code_of(plan("all", cohort=flair)) == "MODEL_MISSING"
        trained = make_cohort(tmp_path / "trained", 2, split="train")
        assert code_of(plan(MODELS, cohort=trained)) == "COHORT_EMPTY"

    def test_scans_without_a_model_are_left_out_and_told(self, cohort: Path, tmp_path: Path) -> None:
        rows = [{key: str(value or "") for key, value in vars(row).items()} for row in read_cohort(cohort)]
        rows[0]["contrast"] = "T2w"
        plan = make_plan(write_cohort(tmp_path / "mixed.csv", rows), MODELS)
        assert len(plan.jobs) == 7 and [check.code for check in plan.checks] == ["NO_MODEL"]

    def test_everything_wrong_with_a_table_is_listed(self, cohort: Path, tmp_path: Path, capsys) -> None:
        own = make_cohort(tmp_path / "data", 3, age="212")
        assert main(["benchmark", str(own), "--models", "all", "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("error COHORT_VALUE: row") == 3

    def test_a_dry_run_writes_nothing(self, cohort: Path, tmp_path: Path, capsys) -> None:
        out = tmp_path / "run"
        assert (
            main(["benchmark", str(cohort), "--models", "all", "--out", str(out), "--dry-run", "--device", "cpu"]) == 0
        )
        assert "8 scans, 0 of them done" in capsys.readouterr().out and not out.exists()


def test_names_of_scans_are_names_of_files() -> None:
    rows = [
        CohortScan(Path(path), "T1w", "healthy", "s")
        for path in ("/d/a/x y.nii.gz", "/d/b/X.nii", "/d/c/x.nii.gz", "/d/c/z.nii")
    ]
    names = scan_ids(rows)
    assert len({name.lower() for name in names}) == 4 and names[0] == "x-y" and names[3] == "z"
    assert names == [scan_ids(rows[::-1])[::-1][n] for n in range(4)]


def test_the_score_of_a_scan_is_the_mean_of_its_highest_percent() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1000, dtype=np.float32))
    assert scan_score(values) == pytest.approx(np.arange(990, 1000).mean())
    assert scan_score(np.array([3.0])) == 3.0 and np.isnan(scan_score(np.array([])))


class TestSummary:
    def rows(self) -> tuple[list[dict], list[dict], list[dict]]:
        rng = np.random.default_rng(1)
        who = {"model": "m", "operating_point": "p", "label": "lesion", "contrast": "T1w", "dataset": "d", "sex": ""}
        scans, lesions, findings = [], [], []
        for n in range(24):
            own = who | {
                "scan_id": f"s{n}",
                "subject": f"p{n // 2}",
                "site": "ab"[n % 2],
                "scanner": "",
                "lesion_type": "t",
            }
            scans.append(own | {"dice": None if n == 0 else float(rng.random()), "healthy_fpr": 0.01})
            lesions += [own | {"volume_ml": float(2.0**k), "found": int(k > 2)} for k in range(8)]
            findings += [own | {"volume_ml": float(2.0**k), "true": int(k > 3)} for k in range(8)]
        return scans, lesions, findings

    def test_means_leave_out_what_is_undefined(self) -> None:
        scans, lesions, findings = self.rows()
        table = {(r["group"], r["value"], r["metric"]): r for r in summarise(scans, lesions, findings, 0)}
        entry = table["all", "", "dice"]
        assert (entry["n"], entry["n_subjects"]) == (23, 12)
        assert entry["mean"] == pytest.approx(np.mean([row["dice"] for row in scans[1:]]))
        assert entry["low"] < entry["mean"] < entry["high"]
        assert {value for group, value, _ in table if group == "site"} == {"a", "b"}
        assert not any(group == "sex" for group, _, _ in table)

    def test_pooled_lesion_metrics_and_quartiles(self) -> None:
        scans, lesions, findings = self.rows()
        table = {(r["group"], r["value"], r["metric"]): r for r in summarise(scans, lesions, findings, 0)}
        recall, precision = (table["all", "", f"lesion_{name}"]["mean"] for name in ("recall", "precision"))
        assert (recall, precision) == (pytest.approx(5 / 8), pytest.approx(4 / 8))
        assert table["all", "", "lesion_f1"]["mean"] == pytest.approx(2 * recall * precision / (recall + precision))
        by_volume = [table[key]["mean"] for key in sorted(table) if key[0] == "lesion_volume" and "recall" in key[2]]
        assert by_volume == [0.0, 0.5, 1.0, 1.0]

    def test_intervals_cover_as_often_as_they_say(self) -> None:
        """95 % intervals of a mean over clustered scans, in 200 simulated cohorts."""
        rng, inside = np.random.default_rng(3), 0
        blank = ("label", "contrast", "dataset", "sex", "site", "scanner", "lesion_type")
        who = {"model": "m", "operating_point": "p", **dict.fromkeys(blank, "")}
        for _ in range(200):
            centres = rng.normal(0.5, 0.1, 30)
            rows = [
                who | {"scan_id": f"{p}-{k}", "subject": f"{p}"}
                | {"dice": float(centres[p] + rng.normal(0, 0.05))}
                for p in range(30) for k in range(3)
            ]  # fmt: skip
            (entry,) = (r for r in summarise(rows, [], [], 0) if r["metric"] == "dice")
            inside += entry["low"] <= 0.5 <= entry["high"]
        assert 0.88 <= inside / 200 <= 0.99


@pytest.fixture(scope="class")
def lesion_folder(sample: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    scan, reference, mask = on_grid("left-handed anisotropic", *sample)
    for name, values in (("l_T1w", scan.voxels), ("l_reference", reference), ("l_mask", mask)):
        write_volume(folder / f"{name}.nii.gz", values, scan.affine)
    return folder


class TestEvaluation:
    """One real scan under a real model."""

    def job(self, folder: Path, laboratory: Laboratory, **models: Path) -> Job:
        row = CohortScan(
            folder / "l_T1w.nii.gz", "T1w", "lesion", "l", folder / "l_reference.nii.gz", folder / "l_mask.nii.gz",
            age="44", lesion_type="tumour",
        )  # fmt: skip
        points = {"fpr-1pct": 4.0, "fpr-0.1pct": 12.0}
        paths = {"m": laboratory.bundle, **models}
        return Job("l", "d", row, paths, dict.fromkeys(paths, points), 0.1, LesionRule(minimum_reference_ml=0.01), "r")

    def test_a_scan_with_a_lesion(
        self, lesion_folder: Path, laboratory: Laboratory, installed: str, tmp_path: Path
    ) -> None:
        from UADBenchLib.inference.detector import detect
        from UADBenchLib.reading import read_mask, read_scan

        outcome = evaluate(self.job(lesion_folder, laboratory, broken=tmp_path / "nothing"), "cpu")
        record = json.loads(json.dumps(outcome.record))
        (failed,) = record["failures"]
        assert (failed["model"], failed["code"]) == ("broken", "BUNDLE_INVALID")
        loose, strict = record["scans"]
        assert loose["age"] == 44 and loose["lesion_type"] == "tumour" and loose["n_brain_voxels"] > 10000
        assert loose["best_dice"] >= loose["dice"] - 0.02 and loose["ap"] > 0.1
        assert strict["healthy_fpr"] <= loose["healthy_fpr"]
        (lesion, _) = record["lesions"]
        assert lesion["volume_ml"] == pytest.approx(loose["reference_ml"]) and lesion["contrast_to_noise"] > 0
        assert record["timing"][0]["peak_memory_mb"] > 100
        # The same scan through the detector, which benchmark and single scans share.
        scan = read_scan(lesion_folder / "l_T1w.nii.gz", "T1w")
        reference, mask = (read_mask(lesion_folder / f"l_{name}.nii.gz", scan) for name in ("reference", "mask"))
        (found,) = detect(scan, [installed], brain_mask=mask, reference=reference, device="cpu")
        assert dice((found.map > 4.0), reference) == pytest.approx(
            2 * outcome.histograms["m"]._above(outcome.histograms["m"].positives)[(16 + 4) * 64]
            / ((found.map > 4.0).sum() + reference.sum()), abs=1e-4,
        )  # fmt: skip
        assert found.metrics["average_precision"] == pytest.approx(loose["ap"], abs=1e-4)

    def test_a_scan_that_cannot_be_read(self, lesion_folder: Path, laboratory: Laboratory, tmp_path: Path) -> None:
        (tmp_path / "l_T1w.nii.gz").write_bytes(b"not a scan")
        job = self.job(lesion_folder, laboratory)
        outcome = evaluate(replace(job, row=replace(job.row, scan=tmp_path / "l_T1w.nii.gz")), "cpu")
        assert outcome.record["failures"][0]["model"] == "" and not outcome.record["scans"] and not outcome.histograms


@pytest.mark.slow
def test_real_maps_do_not_depend_on_who_computes_them(
    lesion_folder: Path, laboratory: Laboratory, installed: str, tmp_path: Path
) -> None:
    """Two scans in this process, in two others, and by two Dask workers: the same bytes."""
    pytest.importorskip("distributed")
    rows = [
        {"scan": "l_T1w.nii.gz", "contrast": "T1w", "label": "lesion", "subject": "l",
         "reference": "l_reference.nii.gz", "brain_mask": "l_mask.nii.gz"},
        {"scan": "copy_T1w.nii.gz", "contrast": "T1w", "label": "unknown", "subject": "copy",
         "brain_mask": "l_mask.nii.gz"},
    ]  # fmt: skip
    shutil.copy(lesion_folder / "l_T1w.nii.gz", lesion_folder / "copy_T1w.nii.gz")
    cohort = write_cohort(lesion_folder / "two.csv", rows)
    for name, options in (
        ("one", {"workers": 1}),
        ("two", {"workers": 2}),
        ("dask", {"executor": "dask", "workers": 2}),
    ):
        runner.benchmark(cohort, [installed], tmp_path / name, device="cpu", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "dask")
    scans = read_table(tmp_path / "one", tables.SCANS)
    assert scans["dice"].notna().sum() == 2 and scans["scan_score"].nunique() == 1


class TestPage:
    """docs/benchmark.md: its commands run, its links lead somewhere, and its table names the run's files."""

    @pytest.fixture
    def page(self, repository: Path) -> Path:
        return repository / "docs" / "benchmark.md"

    def test_commands(self, page: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("distributed")
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("uadbench ")]
        shown = [shlex.split(line)[1:] for line in lines]
        assert [arguments[0] for arguments in shown] == [
            "benchmark",
            "benchmark",
            "calibrate",
            "benchmark",
            "benchmark",
        ]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(executors.os, "cpu_count", lambda: 1)
        make_cohort(tmp_path / "cohort", 4)
        (tmp_path / "cohort" / "cohort.csv").rename(tmp_path / "cohort.csv")
        make_cohort(tmp_path / "cohort", 20, first=40).rename(tmp_path / "validation.csv")
        for arguments in (a for a in shown if a[0] == "benchmark"):
            arguments = [",".join(MODELS) if word == "all" else word for word in arguments]
            arguments[1] = "cohort.csv"
            assert main([*arguments, "--data", "cohort", "--device", "cpu"]) == 0
        assert len(read_table(tmp_path / "run", tables.SCANS)) == 4 * 4

    def test_calibrate_takes_what_the_page_shows(self, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from UADBenchLib.inference import calibration

        given: dict[str, object] = {}

        def seen(bundle: Path, healthy: Path, **options: object) -> dict[str, object]:
            given.update(options, bundle=str(bundle), healthy=str(healthy))
            return {"id": "m", "path": "p", "scans": 1, "left_out": [], "sites": {}, "operating_points": {}}

        monkeypatch.setattr(calibration, "calibrate", seen)
        (line,) = (x for x in page.read_text(encoding="utf-8").splitlines() if x.startswith("uadbench calibrate"))
        assert main(shlex.split(line)[1:]) == 0
        assert (given["bundle"], given["healthy"], str(given["lesions"])) == (
            "my-model",
            "validation.csv",
            "lesions.csv",
        )
        assert list(given["rates"]) == [0.005]

    def test_files_and_links(self, page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        for name in (*tables.TABLES, "run.json", "records/", "histograms/"):
            assert f"`{name}`" in text, name
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), target
