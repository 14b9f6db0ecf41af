"""The bias analysis: planted effects are found, absent ones are not, and a cohort that cannot answer says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from UADBenchLib.benchmark.tables import LESIONS, SCANS, write_table
from UADBenchLib.bias import simulation
from UADBenchLib.bias.analysis import DETECTION, DICE, FALSE_POSITIVES, Answers, analyse
from UADBenchLib.bias.disparity import disparities, group_means, group_thresholds
from UADBenchLib.bias.files import analyse_run
from UADBenchLib.bias.simulation import Planted, simulate_run, simulate_tables
from UADBenchLib.bias.statistics import (
    Bootstrap,
    CannotFitError,
    corrected,
    factor_term,
    fit_logit,
    interval,
    numeric_term,
    rank_test,
    weighted_logit,
)
from UADBenchLib.bias.tables import Tables, prepared, read_histograms, read_tables
from UADBenchLib.cli.main import main

STRONG = Planted({"B": 0.9, "D": -0.9}, age=0.35, sex=0.7, age_and_sex=0.6, volume=0.9, contrast=1.5)
"""Effects that 60 subjects of each kind are enough for."""


def tables(planted: Planted = STRONG, seed: int = 0, **more) -> Tables:
    return prepared(*simulate_tables(np.random.default_rng(seed), planted, **more))


def bootstrap(seed: int = 0, resamples: int = 300) -> Bootstrap:
    return Bootstrap(np.random.default_rng(seed), resamples)


@pytest.fixture(scope="module")
def strong() -> Answers:
    (answers,) = analyse(tables())
    return answers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "run"
    return simulate_run(folder, healthy=40, ill=40, models=("first-t1w-compact", "second-t1w-compact"))


class TestPlantedEffects:
    """With a fixed seed; the interval excludes zero and the sign is that of what was planted."""

    @pytest.mark.parametrize(
        ("outcome", "term", "level", "measure", "sign"),
        [
            (FALSE_POSITIVES, "scanner", "B", "Cliff's delta", 1),
            (FALSE_POSITIVES, "scanner", "D", "Cliff's delta", -1),
            (FALSE_POSITIVES, "scanner", "B", "log odds ratio", 1),
            (FALSE_POSITIVES, "scanner", "D", "log odds ratio", -1),
            (FALSE_POSITIVES, "age", "", "log odds ratio", 1),
            (FALSE_POSITIVES, "sex", "F", "log odds ratio", 1),
            (FALSE_POSITIVES, "age x sex", "", "log odds ratio", 1),
            (DICE, "scanner", "B", "Cliff's delta", -1),
            (DICE, "scanner", "D", "log odds ratio", 1),
            (DETECTION, "log_volume", "", "log odds ratio", 1),
            (DETECTION, "contrast_to_noise", "", "log odds ratio", 1),
        ],
    )
    def test_is_found(self, strong, outcome, term, level, measure, sign):
        (effect,) = [
            one
            for one in strong.effects
            if (one.outcome, one.term, one.level, one.measure) == (outcome, term, level, measure)
        ]
        assert sign * effect.estimate > 0
        assert min(sign * effect.low, sign * effect.high) > 0
        assert effect.low < effect.estimate < effect.high
        assert (outcome, term) in {(one.outcome, one.term) for one in strong.found()}

    def test_has_its_size(self):
        """With many subjects the estimates come close to what was planted."""
        planted = Planted({"B": 0.9, "D": -0.9}, age=0.35, sex=0.4, volume=0.9)
        (answers,) = analyse(tables(planted, healthy=600, ill=300), resamples=100)
        sizes = {(e.outcome, e.term, e.level): e.estimate for e in answers.effects if e.measure == "log odds ratio"}
        # Four equally frequent scanners with 0, 0.9, 0 and -0.9: their mean is 0.
        assert sizes[FALSE_POSITIVES, "scanner", "B"] == pytest.approx(0.9, abs=0.1)
        assert sizes[FALSE_POSITIVES, "age", ""] == pytest.approx(0.35, abs=0.05)
        assert sizes[FALSE_POSITIVES, "sex", "F"] == pytest.approx(0.4, abs=0.1)
        assert sizes[FALSE_POSITIVES, "age x sex", ""] == pytest.approx(0, abs=0.1)
        assert sizes[DETECTION, "log_volume", ""] == pytest.approx(0.85, abs=0.15)

    def test_what_was_not_planted_is_not_found(self):
        (answers,) = analyse(tables(Planted(age=0.35)))
        assert {(one.outcome, one.term) for one in answers.found()} == {(FALSE_POSITIVES, "age")}


def test_null_tables_give_few_false_alarms():
    """Of 100 cohorts without any effect, no more than 7 are called biased in any way (after Holm's correction), and no
    more than 7 % of all tests and of all intervals are off by themselves."""
    alarms, p, excluded = 0, [], []
    for seed in range(100):
        (answers,) = analyse(tables(Planted(), seed=seed, healthy=50, ill=50), resamples=200)
        alarms += bool(answers.found())
        p += [effect.p for effect in answers.effects if np.isfinite(effect.p)]
        excluded += [effect.low > 0 or effect.high < 0 for effect in answers.effects if np.isfinite(effect.low)]
    assert len(p) >= 1200 and len(excluded) >= 2500
    assert alarms <= 7
    assert np.mean(np.array(p) < 0.05) <= 0.07
    assert np.mean(excluded) <= 0.07


class TestStatistics:
    def test_weighted_logit_is_that_of_statsmodels(self):
        import statsmodels.api as sm

        generator = np.random.default_rng(3)
        design = np.column_stack([np.ones(80), generator.normal(size=(80, 2))])
        outcome = generator.beta(1, 30, 80)
        weights = generator.integers(0, 4, (5, 80)).astype(float)
        found = weighted_logit(outcome, design, weights)
        for row, own in zip(found, weights, strict=True):
            expected = sm.GLM(outcome, design, family=sm.families.Binomial(), freq_weights=own).fit().params
            np.testing.assert_allclose(row, expected, atol=1e-6)

    def test_scans_of_a_subject_are_no_new_evidence(self):
        """Five copies of every scan change neither estimates nor p values nor intervals."""
        generator = np.random.default_rng(4)
        age, subjects = generator.uniform(20, 80, 60), [f"s{n}" for n in range(60)]
        outcome = 1 / (1 + np.exp(4 - 0.01 * age - 0.5 * generator.normal(size=60)))
        once = fit_logit(outcome, [numeric_term("age", age, "")], subjects, bootstrap())
        copied = fit_logit(
            np.repeat(outcome, 5), [numeric_term("age", np.repeat(age, 5), "")], np.repeat(subjects, 5), bootstrap()
        )
        assert copied.p["age"] == pytest.approx(once.p["age"], rel=1e-6)
        for name in ("estimates", "low", "high"):
            assert getattr(copied, name)["age", ""] == pytest.approx(getattr(once, name)["age", ""], rel=1e-6)

    def test_rank_test(self):
        generator = np.random.default_rng(5)
        values, groups = generator.normal(size=40), np.repeat(["a", "b", "c", "d"], 10)
        values[groups == "c"] += 1
        test = rank_test(values, groups, [str(n) for n in range(40)], bootstrap())
        statistic, p = stats.kruskal(*(values[groups == name] for name in "abcd"))
        assert test.p == pytest.approx(p)
        ranks = stats.rankdata(values)
        between = sum(10 * (ranks[groups == name].mean() - ranks.mean()) ** 2 for name in "abcd")
        assert test.epsilon_squared == pytest.approx(between / ((ranks - ranks.mean()) ** 2).sum())
        u = stats.mannwhitneyu(values[groups == "c"], values[groups != "c"]).statistic
        assert test.delta["c"] == pytest.approx(2 * u / 300 - 1)
        assert test.low["c"] < test.delta["c"] < test.high["c"]

    def test_intervals_widen_for_few_subjects(self):
        draws = np.random.default_rng(6).normal(size=20000)
        few, many = interval(draws, 8), interval(draws, 10000)
        assert few[0] < many[0] < many[1] < few[1]
        assert many[1] == pytest.approx(1.96, abs=0.05)
        assert np.isnan(interval(draws, 2)).all()
        assert np.isnan(interval(np.full(100, np.nan), 50)).all()

    def test_corrected(self):
        holm, false_discovery = corrected([0.01, 0.04, 0.03])
        np.testing.assert_allclose(holm, [0.03, 0.06, 0.06])
        p = np.random.default_rng(7).uniform(size=20) ** 3
        for own, method in zip(corrected(p), ("holm", "fdr_bh"), strict=True):
            np.testing.assert_allclose(own, multipletests(p, method=method)[1])
        np.testing.assert_allclose(false_discovery, [0.03, 0.04, 0.04])
        assert corrected([])[0].size == 0

    def test_factor_of_three_levels_sums_to_zero(self):
        term = factor_term("scanner", ["a", "b", "c", "a"])
        np.testing.assert_allclose(sum(term.levels.values()), 0)

    @pytest.mark.parametrize(
        ("outcome", "columns", "why"),
        [
            (np.zeros(40), {"age": np.arange(40)}, "is 0 in all 40 rows"),
            (np.arange(40) / 40, {"age": np.arange(40), "years": 2 * np.arange(40)}, "cannot be told apart"),
            ((np.arange(40) >= 20).astype(float), {"age": np.arange(40)}, "separates the outcomes"),
            ((np.arange(40) >= 38).astype(float), {"age": np.arange(40)}, "occurs 2 times"),
            (np.arange(6) / 6, {"age": np.arange(6)}, "6 subjects are too few"),
        ],
    )
    def test_what_cannot_be_fitted_is_refused(self, outcome, columns, why):
        terms = [numeric_term(name, values, "") for name, values in columns.items()]
        with pytest.raises(CannotFitError, match=why):
            fit_logit(outcome, terms, [str(n) for n in range(len(outcome))], bootstrap())


def _without(table: pd.DataFrame, **values) -> pd.DataFrame:
    return table.assign(**values)


class TestCohortsThatCannotAnswer:
    """A plain sentence, and the questions that can be answered are."""

    @pytest.mark.parametrize(
        ("change", "sentence", "left"),
        [
            ({"scanner": "A", "site": "x"}, "same (A), so that scanners cannot be compared", "age"),
            ({"scanner": "", "site": ""}, "no scanner is known, so that scanners cannot be compared", "age"),
            ({"age": np.nan}, "no age is known; the model goes without it", "scanner"),
            ({"sex": ""}, "no sex is known; the model goes without it", "scanner"),
        ],
    )
    def test_covariates(self, change, sentence, left):
        scans, lesions = simulate_tables(np.random.default_rng(0), STRONG)
        (answers,) = analyse(prepared(scans.assign(**change), lesions.assign(**change)), resamples=100)
        assert any(sentence in note for note in answers.notes)
        assert any(effect.term == left and effect.outcome == FALSE_POSITIVES for effect in answers.effects)

    def test_nothing_is_known(self):
        scans, lesions = simulate_tables(np.random.default_rng(0), STRONG)
        nothing = {"scanner": "", "site": "", "age": np.nan, "sex": "", "lesion_type": ""}
        (answers,) = analyse(prepared(scans.assign(**nothing), lesions.assign(**nothing)), resamples=100)
        assert {effect.outcome for effect in answers.effects} == {DICE, DETECTION}  # volume is still known
        assert all(note.strip() for note in answers.notes)

    @pytest.mark.parametrize("label", ["healthy", "lesion"])
    def test_one_kind_of_scans(self, label):
        scans, lesions = simulate_tables(np.random.default_rng(0), STRONG)
        scans = scans[scans["label"] == label]
        (answers,) = analyse(prepared(scans, lesions[lesions["scan_id"].isin(scans["scan_id"])]), resamples=100)
        absent = "healthy scan" if label == "lesion" else "lesion scan with a reference"
        assert any(f"the run has no {absent}" in note for note in answers.notes)
        assert answers.effects

    @pytest.mark.parametrize("subjects", [1, 2, 5, 12])
    def test_few_subjects(self, subjects):
        (answers,) = analyse(tables(healthy=subjects, ill=subjects), resamples=100)
        assert answers.notes
        assert all(effect.rows > 0 for effect in answers.effects)

    def test_all_lesions_are_found(self):
        scans, lesions = simulate_tables(np.random.default_rng(0), STRONG)
        (answers,) = analyse(prepared(scans, lesions.assign(found=1)), resamples=100)
        assert any("lesion found, model: the outcome is 1 in all" in note for note in answers.notes)

    def test_site_and_scanner_are_one(self):
        scans, lesions = simulate_tables(np.random.default_rng(0), STRONG)
        (answers,) = analyse(prepared(scans.assign(site=scans["scanner"]), lesions), resamples=100)
        assert any("same division" in note for note in answers.notes)
        assert "site" not in {effect.term for effect in answers.effects}

    def test_small_groups_are_named(self):
        scans, lesions = simulate_tables(np.random.default_rng(0), STRONG)
        rare = scans["subject"].isin(["sub-001", "sub-002"])
        (answers,) = analyse(prepared(scans.assign(scanner=scans["scanner"].where(~rare, "rare")), lesions))
        assert "rare" not in {effect.level for effect in answers.effects}
        assert any("2 of 60 rows are left out" in note for note in answers.notes)


class TestGroups:
    def test_means_are_those_of_the_table(self):
        rows, own = list(group_means(tables(), bootstrap())), tables()
        (row,) = [r for r in rows if (r["outcome"], r["group"]) == (FALSE_POSITIVES, "B")]
        values = own.scans.query("label == 'healthy' and scanner == 'B'")["healthy_fpr"]
        assert row["mean"] == pytest.approx(values.mean())
        assert (row["rows"], row["subjects"]) == (len(values), len(values))
        assert row["low"] < row["mean"] < row["high"]
        ages = [r["group"] for r in rows if (r["outcome"], r["grouping"]) == (DICE, "age_band")]
        assert ages == ["under 30", "30 to 49", "50 to 69", "70 and over"]
        assert all(r["small"] == (r["subjects"] < 10) for r in rows)

    def test_gap(self):
        (row,) = [
            r
            for r in disparities(tables(), bootstrap())
            if (r["outcome"], r["grouping"]) == (FALSE_POSITIVES, "scanner")
        ]
        means = tables().scans.query("label == 'healthy'").groupby("scanner")["healthy_fpr"].mean()
        assert row["difference"] == pytest.approx(means.max() - means.min())
        assert row["ratio"] == pytest.approx(means.min() / means.max())
        assert (row["lowest_group"], row["highest_group"]) == ("D", "B")
        assert 0 < row["by_chance"] < row["difference"]

    def test_gap_by_chance_holds(self):
        beyond = [
            row["difference"] > row["by_chance"]
            for seed in range(40)
            for row in disparities(tables(Planted(), seed=seed), bootstrap(seed, 200))
        ]
        assert len(beyond) == 40 * 12
        assert np.mean(beyond) <= 0.07

    def test_group_thresholds_even_out_false_positives(self, run):
        own = read_tables(run).of("first-t1w-compact", "fpr-1pct")
        histograms = read_histograms(run, own.scans)
        rows = pd.DataFrame(group_thresholds(own.scans, histograms, "scanner", bootstrap()))
        known = rows[rows["note"] == ""]
        assert len(known) >= 3
        assert np.ptp(known["fpr_group"]) < 0.5 * np.ptp(known["fpr_shared"])
        # More false positives at the shared threshold ask for a higher threshold of one's own.
        assert stats.spearmanr(known["fpr_shared"], known["threshold_group"]).statistic == pytest.approx(1)
        healthy = own.scans.query("label == 'healthy'")
        assert (rows["fpr_shared"] * rows["healthy_subjects"]).sum() / len(healthy) == pytest.approx(
            healthy["healthy_fpr"].mean(), rel=1e-6
        )
        np.testing.assert_allclose(rows["dice_change"], rows["dice_group"] - rows["dice_shared"])

    def test_a_small_group_keeps_the_shared_threshold(self, run):
        own = read_tables(run).of("first-t1w-compact", "fpr-1pct").scans
        rare = own["subject"].isin(own["subject"].unique()[:2])
        own = own.assign(scanner=own["scanner"].where(~rare, "rare"))
        (row,) = [
            r for r in group_thresholds(own, read_histograms(run, own), "scanner", bootstrap()) if r["group"] == "rare"
        ]
        assert row["threshold_group"] == row["threshold_shared"] == 3.0
        assert "too few" in row["note"]


class TestCommand:
    def test_writes_everything_and_the_same_again(self, run, capsys):
        assert main(["bias", str(run), "--resamples", "100"]) == 0
        told = capsys.readouterr().out
        assert "first-t1w-compact at fpr-1pct: 14 tests" in told and "B δ +" in told
        names = ["bias.json", *(f"bias_{n}.csv" for n in ("effects", "groups", "disparities", "group_thresholds"))]
        names += ["bias_scans.csv", "bias_lesions.csv"]
        first = {name: (run / name).read_bytes() for name in names}
        assert main(["bias", str(run), "--resamples", "100"]) == 0
        assert {name: (run / name).read_bytes() for name in names} == first
        document = json.loads(first["bias.json"])
        assert {row["model"] for row in document["effects"]} == {"first-t1w-compact", "second-t1w-compact"}
        assert len(pd.read_csv(run / "bias_scans.csv")) == len(pd.read_csv(run / "scans.csv"))
        assert {"age", "scanner", "found"} <= set(pd.read_csv(run / "bias_lesions.csv").columns)

    def test_json(self, run, capsys):
        assert main(["bias", str(run), "--resamples", "100", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["resamples"] == 100

    def test_no_run(self, tmp_path, capsys):
        assert main(["bias", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error RUN_NOT_FOUND")

    def test_an_empty_run(self, tmp_path):
        write_table(tmp_path, SCANS, [])
        write_table(tmp_path, LESIONS, [])
        assert analyse_run(tmp_path, resamples=100)["effects"] == []

    def test_a_model_changes_no_other(self, run):
        whole, tables_ = analyse_run(run, resamples=100), read_tables(run)
        (alone,) = analyse(tables_.of("second-t1w-compact", "opt-dice"), resamples=100)
        shared = [
            row for row in whole["effects"] if (row["model"], row["operating_point"]) == (alone.model, "opt-dice")
        ]
        assert [row["low"] for row in shared] == pytest.approx([e.low for e in alone.effects], nan_ok=True)

    def test_simulated_run_is_written_by_its_module(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.argv", ["simulation", "--out", str(tmp_path / "run"), "--no-effects"])
        monkeypatch.setattr(simulation, "simulate_run", lambda out, planted, seed: out.mkdir() or planted)
        simulation.main()
        assert (tmp_path / "run").is_dir()
