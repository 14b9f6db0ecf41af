"""Thresholds from validation histograms: what they promise on fresh scans, their intervals, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.evaluation.thresholds import rate_name, rate_of, threshold_at_best_dice, threshold_at_rate


def healthy(seed: int, scale: float = 1.0, voxels: int = 20_000) -> Histogram:
    scores = np.random.default_rng(seed).gamma(1.0, scale, voxels).astype(np.float32)
    return Histogram().add(scores, None)


def sick(seed: int, shift: float = 3.0) -> Histogram:
    rng = np.random.default_rng(seed)
    lesion = rng.random(20_000) < 0.05
    return Histogram().add((rng.gamma(1.0, 1.0, 20_000) + shift * lesion).astype(np.float32), lesion)


class TestRate:
    def test_fresh_scans_are_flagged_at_the_rate(self) -> None:
        found = threshold_at_rate([healthy(n) for n in range(12)], 0.01, ["x"] * 12, [str(n) for n in range(12)])
        fresh = np.mean([healthy(100 + n).fpr_at(found.value) for n in range(12)])
        assert found.reached <= 0.01 and fresh == pytest.approx(0.01, rel=0.15)
        assert found.ci[0] <= found.value <= found.ci[1]

    def test_a_site_with_many_scans_does_not_outvote_another(self) -> None:
        histograms = [*(healthy(n) for n in range(9)), healthy(50, scale=2.0)]
        sites, subjects = ["many"] * 9 + ["few"], [str(n) for n in range(10)]
        both = threshold_at_rate(histograms, 0.01, sites, subjects).value
        pooled = threshold_at_rate(histograms, 0.01, ["one"] * 10, subjects).value
        assert both > pooled + 0.5

    def test_repeated_scans_of_a_subject_do_not_narrow_the_interval(self) -> None:
        few = [healthy(n, scale=1 + 0.2 * n) for n in range(5)]
        once = threshold_at_rate(few, 0.01, ["x"] * 5, list("abcde"))
        often = threshold_at_rate(few * 4, 0.01, ["x"] * 20, list("abcde") * 4)
        naive = threshold_at_rate(few * 4, 0.01, ["x"] * 20, [str(n) for n in range(20)])
        width = [t.ci[1] - t.ci[0] for t in (once, often, naive)]
        assert width[1] == pytest.approx(width[0], rel=1e-9) and width[2] < 0.75 * width[0]

    def test_what_it_cannot_know(self) -> None:
        with pytest.raises(InputError, match="NO_HEALTHY_VOXELS"):
            threshold_at_rate([], 0.01, [], [])
        high = Histogram().add(np.full(100, 500.0), None)
        with pytest.raises(InputError, match="SCORES_OUT_OF_RANGE"):
            threshold_at_rate([high], 0.01, ["x"], ["a"])

    @given(st.floats(0.0001, 0.5))
    def test_names_and_rates(self, rate: float) -> None:
        assert rate_of(rate_name(rate)) == pytest.approx(rate, rel=1e-5)

    def test_known_names(self) -> None:
        assert (rate_name(0.01), rate_name(0.001), rate_name(0.005)) == ("fpr-1pct", "fpr-0.1pct", "fpr-0.5pct")
        assert rate_of("opt-dice") is None
        for rate in (0, 1, -0.1):
            with pytest.raises(InputError, match="OPTION_INVALID"):
                rate_name(rate)


class TestBestDice:
    def test_it_is_the_best_on_average(self) -> None:
        histograms = [sick(n, shift=2 + n) for n in range(4)]
        found = threshold_at_best_dice(histograms, ["x"] * 4, list("abcd"))
        curves = np.mean([h.dice_curve() for h in histograms], axis=0)
        assert found.reached == pytest.approx(curves.max())
        assert curves[histograms[0].edges == found.value] == pytest.approx(curves.max())
        assert found.ci[0] <= found.value <= found.ci[1] and found.ci[0] < found.ci[1]

    def test_a_useless_map_does_not_make_the_whole_brain_a_finding(self) -> None:
        lesion = np.arange(1000) < 600
        useless = Histogram().add(np.where(lesion, 0, 1).astype(np.float32), lesion)
        assert threshold_at_best_dice([useless], ["x"], ["a"]).value >= 0

    def test_healthy_scans_do_not_move_it(self) -> None:
        lesions = [sick(n) for n in range(3)]
        alone = threshold_at_best_dice(lesions, ["x"] * 3, list("abc"))
        mixed = threshold_at_best_dice([*lesions, healthy(9)], ["x"] * 4, list("abcd"))
        assert mixed == alone

    def test_healthy_scans_alone_cannot_say(self) -> None:
        with pytest.raises(InputError, match="NO_REFERENCE") as refusal:
            threshold_at_best_dice([healthy(0)], ["x"], ["a"])
        assert "healthy scans cannot say where Dice is best" in refusal.value.message
