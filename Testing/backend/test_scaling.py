"""The training-size experiment: nested shares, one run for all models, and going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import benchmarks
import numpy as np
import pandas as pd
import pytest
from builders import Laboratory, table_row, write_cohort

from UADBenchLib.benchmark import executors, scaling
from UADBenchLib.benchmark.scaling import curve
from UADBenchLib.bundles.bundle import load_metadata
from UADBenchLib.cli.main import main
from UADBenchLib.cohort import read_cohort
from UADBenchLib.errors import InputError
from UADBenchLib.methods.base import Preset, Schedule
from UADBenchLib.methods.denoising_autoencoder import DenoisingAutoencoder, DenoisingAutoencoderConfig


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(steps=2, batch=2, learning_rate=2e-3, warm_up=1)
    preset = Preset(DenoisingAutoencoderConfig(widths=(8, 16)), schedule)
    monkeypatch.setitem(DenoisingAutoencoder.presets, "compact", preset)
    monkeypatch.setattr(executors, "evaluate", benchmarks.quick_evaluate)
    monkeypatch.setattr(benchmarks, "SECONDS", 0.0)


@pytest.fixture
def cohort(laboratory: Laboratory, tmp_path: Path) -> Path:
    """The laboratory's brains to train and calibrate on, and scans that cost nothing to test on."""
    rows = [table_row(row) for row in read_cohort(laboratory.cohort)]
    for row in rows:
        row |= {name: str(laboratory.cohort.parent / row[name]) for name in ("scan", "brain_mask")}
    test = benchmarks.make_cohort(tmp_path / "test", 16, split="test")
    for row in pd.read_csv(test, dtype=str, keep_default_na=False).to_dict("records"):
        files = {name: str(test.parent / row[name]) if row[name] else "" for name in ("scan", "reference")}
        rows.append(row | files)
    return write_cohort(tmp_path / "cohort.csv", rows)


def run(cohort: Path, laboratory: Laboratory, out: Path, **options) -> dict:
    options = {"contrast": "T1w", "fractions": (1.0, 0.5), "seeds": 1, "device": "cpu"} | options
    return scaling.scaling("denoising_autoencoder", cohort, out, store=laboratory.store, **options)


def test_from_cohort_to_curve(tiny, cohort, laboratory, tmp_path, monkeypatch):
    out, told = tmp_path / "run", []
    document = run(cohort, laboratory, out, progress=lambda *now: told.append(now))
    half, whole = sorted(document["cells"], key=lambda cell: cell["fraction"])
    assert (half["subjects"], whole["subjects"]) == (3, 6)
    subjects = [set(load_metadata(Path(f"{out}.models") / c["model"]).trained_on["subjects"]) for c in (half, whole)]
    assert subjects[0] < subjects[1]
    assert half["steps"] == whole["steps"] == 2
    dice = [row for row in document["curve"] if row["measure"] == "dice"]
    assert [row["fraction"] for row in dice] == [0.5, 1.0] and all(row["scans"] == 8 for row in dice)
    assert dice[1]["change"] == 0 and dice[0]["low"] <= dice[0]["mean"] <= dice[0]["high"]
    written = json.loads((out / "scaling.json").read_text())
    assert {cell["model"] for cell in written["cells"]} == {half["model"], whole["model"]}
    assert (out / "scaling_curve.csv").is_file() and (out / "scaling_models.csv").is_file()
    assert all(0 <= fraction <= 1 for _, fraction in told) and told[-1][1] == 1

    # Begun again, nothing is trained and the tables are the same.
    monkeypatch.setattr(scaling, "train", lambda *_, **__: pytest.fail("trained again"))
    before = (out / "scaling.json").read_bytes()
    run(cohort, laboratory, out)
    assert (out / "scaling.json").read_bytes() == before
    with pytest.raises(InputError, match="SCALING_DIFFERENT.*steps"):
        run(cohort, laboratory, out, steps=3)


def cells(fractions=(0.1, 1.0), seeds=3) -> list[dict]:
    return [
        {"model": f"m-{f}-{s}", "fraction": f, "seed": s, "subjects": int(100 * f)}
        for s in range(seeds)
        for f in fractions
    ]


def test_curve():
    generator, own = np.random.default_rng(0), cells()
    rows = []
    for number in range(40):
        ease = generator.normal(0, 0.05)
        for cell in own:
            dice = 0.3 + 0.1 * (cell["fraction"] == 1.0) + ease + generator.normal(0, 0.02)
            rows.append({"scan_id": f"s{number}", "subject": f"p{number}", "model": cell["model"], "label": "lesion",
                         "dice": dice, "ap": np.nan, "best_dice": dice, "healthy_fpr": 0.01})  # fmt: skip
    few, many = (row for row in curve(pd.DataFrame(rows), own) if row["measure"] == "dice")
    assert few["mean"] == pytest.approx(0.3, abs=0.02) and many["mean"] == pytest.approx(0.4, abs=0.02)
    assert few["change"] == pytest.approx(-0.1, abs=0.01)
    # Scans differ far more than the change; the interval of the change is paired, and so does not include that.
    assert few["change_low"] < few["change"] < few["change_high"] < -0.08
    assert len(few["seeds"]) == 3 and few["subjects"] == 10 and many["test_subjects"] == 40
    assert own[0]["dice"] == pytest.approx(few["seeds"][0])
    assert {row["measure"] for row in curve(pd.DataFrame(rows), own)} == {"dice", "best_dice"}


@pytest.mark.parametrize("fractions", ["0,1", "0.5,2", "a"])
def test_fractions_are_checked(fractions, tmp_path, capsys):
    arguments = ["--cohort", str(tmp_path / "c.csv"), "--contrast", "T1w", "--out", str(tmp_path / "run")]
    assert main(["scaling", "intensity_norm", *arguments, "--fractions", fractions]) == 2
    assert "fractions" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
