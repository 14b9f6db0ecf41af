"""The report of a run: everything on one page, nothing from elsewhere, and plain words where there is nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from benchmarks import make_cohort
from matplotlib.figure import Figure

from UADBenchLib.benchmark.tables import LESIONS, SCANS, read_run, read_table, write_run, write_table
from UADBenchLib.bias.files import analyse_run
from UADBenchLib.bias.simulation import simulate_run
from UADBenchLib.cli.main import main
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.plain import plain
from UADBenchLib.reports import cases, charts, wording
from UADBenchLib.reports.benchmark import write_report

MODELS = ("first-t1w-compact", "second-t1w-compact")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated run with its bias analysis, from few resamples."""
    folder = simulate_run(tmp_path_factory.mktemp("report") / "run", healthy=24, ill=24, models=MODELS)
    analyse_run(folder, resamples=100)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


@pytest.fixture(scope="module")
def page(original: Path) -> str:
    return write_report(original)[0].read_text(encoding="utf-8")


def narrowed(run: Path, keep) -> None:
    """Leave only some rows in the run's tables."""
    scans, lesions = read_table(run, SCANS), read_table(run, LESIONS)
    kept = scans[keep(scans)]
    write_table(run, SCANS, kept.to_dict("records"))
    write_table(run, LESIONS, lesions[lesions["scan_id"].isin(kept["scan_id"])].to_dict("records"))


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>|data:[^\"]*", " ", page))


class TestPage:
    def test_needs_nothing_else(self, page):
        assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
        assert "http" not in re.sub(r"data:[^\"]*", "", page) and "<script" not in page
        assert len(page) < 3_000_000

    @pytest.mark.parametrize(
        "heading",
        ["Dice at estimated and at best thresholds", "All metrics", "Precision and recall", "Which lesions are found",
         "Healthy scans: false positives", "Bias", "At equal false-positive rates", "Triage", "Best and worst cases",
         "Thresholds", "Methods and versions"],
    )  # fmt: skip
    def test_has_its_sections(self, page, heading):
        assert f"{heading}" in page

    def test_says_what_it_is_and_by_which_rules(self, page, original):
        text, run = text_of(page), read_run(original)
        assert "Research software; not a medical device." in text
        assert run.policy["sentence"] in text and run.lesion_rule["sentence"] in text
        assert "numpy" in text and "Holm" in text and run.fingerprint in text
        assert "n = 24 lesion scans" in text

    def test_numbers_are_those_of_the_table(self, page, original):
        scans = read_table(original, SCANS)
        own = scans[(scans["model"] == MODELS[0]) & (scans["operating_point"] == "fpr-1pct")]
        assert f"Dice {own['dice'].mean():.3f}" in page
        assert f"{100 * own.loc[own['label'] == 'healthy', 'healthy_fpr'].mean():.2f} % of healthy voxels" in page

    def test_tables_lie_beside_it(self, original, page):
        dice = pd.read_csv(original / "report_dice.csv")
        assert set(dice["set"]) == {"all lesion scans", "stroke", "tumour", "white matter"}
        assert (dice["optimal"] >= dice["mean"] - 0.01).all()
        curve = pd.read_csv(original / "report_precision_recall.csv")
        assert curve["recall"].between(0, 1).all() and curve["precision"].between(0, 1).all()
        assert len(pd.read_csv(original / "triage_scans.csv")) == 48
        assert "report_dice.csv" in page and "bias_effects.csv" in page

    def test_is_the_same_again(self, run):
        write_report(run)
        first = (run / "report.html").read_bytes()
        write_report(run)
        assert (run / "report.html").read_bytes() == first


class TestRuns:
    @pytest.mark.parametrize(
        ("label", "sentence"), [("healthy", "there is no Dice"), ("lesion", "no two groups of healthy scans")]
    )
    def test_one_kind_of_scans(self, run, label, sentence):
        narrowed(run, lambda scans: scans["label"] == label)
        assert sentence in write_report(run)[0].read_text(encoding="utf-8")

    def test_the_bias_analysis_is_made_anew_when_the_tables_changed(self, run):
        before = json.loads((run / "bias.json").read_text())["tables_sha256"]
        narrowed(run, lambda scans: scans["model"] == MODELS[0])
        write_report(run)
        assert json.loads((run / "bias.json").read_text())["tables_sha256"] != before

    def test_names_from_outside_are_escaped(self, run):
        write_run(run, read_run(run).model_copy(update={"cohort": "<b>cohort</b>"}))
        assert "&lt;b&gt;cohort&lt;/b&gt;" in write_report(run)[0].read_text(encoding="utf-8")

    def test_another_operating_point(self, run):
        assert "Dice at opt-dice" in write_report(run, operating_point="opt-dice")[0].read_text(encoding="utf-8")
        with pytest.raises(InputError, match="OPERATING_POINT_UNKNOWN.*choose of fpr-1pct, opt-dice"):
            write_report(run, operating_point="other")

    def test_scaling_is_shown(self, run, tmp_path):
        rows = [
            {"measure": "dice", "fraction": f, "subjects": int(100 * f), "mean": f, "low": f / 2, "high": 1.0,
             "seeds": [f, f], "scans": 5, "test_subjects": 5}
            for f in (0.1, 0.5, 1.0)
        ]  # fmt: skip
        document = {"method": "disyre", "preset": "compact", "contrast": "T1w", "operating_point": "fpr-1pct",
                    "cells": [{"model": MODELS[0], "fraction": 1.0}], "curve": rows}  # fmt: skip
        (tmp_path / "scaling").mkdir()
        (tmp_path / "scaling" / "scaling.json").write_text(json.dumps(document))
        page = write_report(run, scaling=tmp_path / "scaling")[0].read_text(encoding="utf-8")
        assert "How much healthy data" in page and "Results against the number of training subjects" in page
        with pytest.raises(InputError, match="RUN_NOT_FOUND"):
            write_report(run, scaling=tmp_path)

    def test_an_empty_run_is_refused(self, run, capsys):
        narrowed(run, lambda scans: scans["label"] == "nothing")
        assert main(["report", str(run)]) == 2
        assert "error RUN_EMPTY" in capsys.readouterr().err

    def test_command(self, run, capsys):
        assert main(["report", str(run), "--json"]) == 0
        files = json.loads(capsys.readouterr().out)["files"]
        assert Path(files[0]).name == "report.html" and all(Path(file).is_file() for file in files)


class TestCases:
    def test_best_and_worst_are_chosen(self, original):
        scans = read_table(original, SCANS).query("operating_point == 'fpr-1pct'")
        chosen = cases.choose_cases(scans)
        own = scans[(scans["model"] == chosen[0].model) & (scans["label"] == "lesion")].set_index("scan_id")["dice"]
        assert [case.why for case in chosen] == ["best Dice"] * 2 + ["worst Dice"] * 2 + [
            "healthy scan with most false positives"
        ]
        assert chosen[0].scan_id == own.idxmax() and chosen[3].scan_id == own.idxmin()

    def test_pictures_in_the_folder_are_shown(self, run):
        case = cases.choose_cases(read_table(run, SCANS).query("operating_point == 'fpr-1pct'"))[0]
        (run / "pictures").mkdir()
        (run / "pictures" / f"{case.scan_id}_model-{case.model}_fpr-1pct.png").write_bytes(b"png")
        page = write_report(run)[0].read_text(encoding="utf-8")
        assert 'src="data:image/png;base64,cG5n"' in page and page.count("No picture") == 4

    def test_missing_pictures_are_drawn_from_the_cohort(self, tmp_path, monkeypatch):
        cohort, drawn = make_cohort(tmp_path / "data", 8), []
        table = pd.read_csv(cohort).query("label == 'lesion'")
        names = [name.removesuffix(".nii.gz") for name in table["scan"]]
        scans = pd.DataFrame(
            {"scan_id": names, "model": "m", "operating_point": "p", "label": "lesion", "dice": np.arange(len(names)),
             "reference_ml": 1.0, "healthy_fpr": 0.0}
        )  # fmt: skip
        monkeypatch.setattr("UADBenchLib.reading.read_scan", lambda path, contrast: SimpleNamespace(stem=path.name))
        monkeypatch.setattr("UADBenchLib.reading.read_mask", lambda path, scan, kind: None)
        monkeypatch.setattr("UADBenchLib.inference.detector.detect", lambda scan, models, **options: [(scan, models)])
        monkeypatch.setattr(
            "UADBenchLib.reports.figure.detection_figure",
            lambda path, scan, found, reference: (
                drawn.append(scan.stem) or path.parent.mkdir(parents=True, exist_ok=True) or path.write_bytes(b"x")
            ),
        )
        shown = cases.draw_cases(tmp_path / "run", scans, cohort, None, "cpu", None)
        assert all(case.picture for case in shown) and len(drawn) == len(shown) == 4
        cases.draw_cases(tmp_path / "run", scans, cohort, None, "cpu", None)
        assert len(drawn) == 4


class TestWording:
    def test_every_test_is_worded_once(self, original):
        bias = json.loads((original / "bias.json").read_text())
        tests = wording.tests_of(bias)
        assert len(tests) == sum(family["tests"] for family in bias["families"])
        assert sum(test["found"] for test in tests) == sum(len(family["found"]) for family in bias["families"])
        ranks = next(test for test in tests if test["how"] == "ranks" and test["by"] == "scanner")
        assert ranks["effects"][0][0].startswith("ε² ") and " δ " in ranks["effects"][1][0]
        age = next(test for test in tests if test["by"] == "age")
        assert age["how"] == "unadjusted"  # 24 subjects are too few for age, sex and four scanners together
        assert re.fullmatch(r"× \d\.\d\d per decade", age["effects"][0][0]) and " to " in age["effects"][0][1]

    def test_written_and_fresh_results_read_alike(self, original):
        fresh = plain(analyse_run(original, resamples=100))
        assert wording.tests_of(fresh) == wording.tests_of(json.loads((original / "bias.json").read_text()))


class TestCharts:
    def test_models_differ_in_colour_and_marker(self):
        styles = charts.style_of([str(n) for n in range(14)])
        assert len({tuple(style.values()) for style in styles.values()}) == 14

    def test_a_figure_is_the_same_bytes_again(self):
        def drawn() -> str:
            figure = Figure()
            figure.subplots().plot([1, 2], [3, 4])
            return charts.as_svg(figure)

        assert drawn() == drawn()
        assert charts.as_data_uri(drawn()).startswith("data:image/svg+xml;base64,")


@pytest.mark.slow
def test_chromium_shows_the_page(original, page, tmp_path):
    """A browser lays the page out without a request to anywhere and prints it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    pdf = tmp_path / "report.pdf"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--proxy-server=127.0.0.1:9",
         f"--print-to-pdf={pdf}", (original / "report.html").as_uri()],
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    assert pdf.stat().st_size > 50_000
