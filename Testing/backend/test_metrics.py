"""Voxel-wise metrics against scikit-learn and against counting by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.compare import compare
from UADBenchLib.evaluation.metrics import FINE, Histogram, average_precision, dice, mean_dice_curve
from UADBenchLib.evaluation.plain import plain
from UADBenchLib.evaluation.policy import DEFAULT_POLICY, EmptyCasePolicy, mean_of_defined


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map with a lesion, its reference and a brain mask; float32 as methods give it."""
    generator = np.random.default_rng(7)
    reference = np.zeros((24, 28, 20), bool)
    reference[8:13, 9:15, 6:11] = True
    brain = np.zeros(reference.shape, bool)
    brain[2:22, 2:26, 2:18] = True
    scores = (generator.normal(size=reference.shape) + 2.0 * reference).astype(np.float32) * brain
    return scores, reference, brain


def test_dice_counts_overlap() -> None:
    mask, reference = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), bool)
    mask[0] = 1
    reference[0, :2] = True
    reference[1, 0] = True
    assert dice(mask, reference) == pytest.approx(2 * 6 / (9 + 9))
    assert dice(mask, mask) == 1.0


def test_empty_cases_follow_the_policy() -> None:
    empty, full = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(dice(full, empty))
    assert dice(empty, full) == 0.0
    challenge = EmptyCasePolicy(name="one-if-clean", both_empty_dice=1.0, false_alarm_dice=0.0)
    assert dice(empty, empty, challenge) == 1.0
    assert dice(full, empty, challenge) == 0.0
    assert "one-if-clean v1" in challenge.sentence()
    assert json.loads(json.dumps(DEFAULT_POLICY.record(), allow_nan=False))["both_empty_dice"] is None


def test_mean_of_defined_leaves_undefined_out_and_says_n() -> None:
    assert mean_of_defined([0.5, math.nan, 1.0]) == (0.75, 2)
    mean, count = mean_of_defined([math.nan])
    assert math.isnan(mean) and count == 0


def test_average_precision_equals_scikit_learn(case: tuple) -> None:
    from sklearn.metrics import average_precision_score

    scores, reference, brain = case
    expected = average_precision_score(reference[brain], scores[brain])
    assert average_precision(scores, reference, brain) == pytest.approx(expected, abs=1e-12)


def test_average_precision_does_not_depend_on_the_order_of_ties() -> None:
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(3)
    scores = generator.integers(0, 5, 4000).astype(np.float32)
    labels = generator.random(4000) < 0.1 + 0.1 * scores
    expected = average_precision_score(labels, scores)
    order = generator.permutation(4000)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert average_precision(scores[order], labels[order]) == pytest.approx(expected, abs=1e-12)


def test_average_precision_without_lesion_is_undefined(case: tuple) -> None:
    scores, reference, brain = case
    assert math.isnan(average_precision(scores, np.zeros_like(reference), brain))


def test_histogram_counts_above_every_edge_exactly() -> None:
    generator = np.random.default_rng(11)
    # A third of the scores lie exactly on edges, where a rounding error would show.
    scores = np.concatenate([
        generator.normal(0, 3, 3000), generator.integers(-200, 200, 1500) / 64, [-40.0, 90.0, -16.0, 64.0]
    ]).astype(np.float32)  # fmt: skip
    labels = generator.random(scores.size) < 0.3
    histogram = Histogram().add(scores, labels)
    for edge in (-16.0, -1.0, 0.0, 1 / 64, 0.5, 2.984375, 64.0):
        expected = 2 * np.sum((scores > edge) & labels) / (np.sum(scores > edge) + labels.sum())
        index = int(np.flatnonzero(histogram.edges == edge)[0])
        assert histogram.dice_curve()[index] == pytest.approx(expected, abs=1e-12)
        assert histogram.fpr_at(edge) == pytest.approx(np.mean(scores[~labels] > edge), abs=1e-12)


def test_histogram_average_precision_is_close_to_exact(case: tuple) -> None:
    scores, reference, brain = case
    histogram = Histogram().add(scores, reference, brain)
    assert histogram.average_precision() == pytest.approx(average_precision(scores, reference, brain), abs=1e-4)


def calibrated_map(seed: int = 0, size: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores like those of a calibrated map, a third of them cut off at 0, and which of them are lesion."""
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < 0.02
    scores = rng.gamma(1.0, 1.5, size) + labels * rng.gamma(2.0, 1.5, size) - 0.7
    return np.maximum(scores, 0).astype(np.float32), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_histogram_agrees_with_scikit_learn_and_monai(seed: int) -> None:
    """Average precision within 1e-6 of the exact value; Dice at an edge the same."""
    import torch
    from monai.metrics import compute_average_precision, compute_dice
    from sklearn.metrics import average_precision_score, f1_score

    scores, labels = calibrated_map(seed)
    histogram = Histogram(bins_per_unit=FINE).add(scores, labels)
    assert histogram.average_precision() == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert histogram.average_precision() == pytest.approx(average_precision(scores, labels), abs=1e-6)
    best, threshold = histogram.best_dice()
    flagged = scores > threshold
    assert best == pytest.approx(f1_score(labels, flagged), abs=1e-12)
    masks = [torch.from_numpy(np.asarray(m, np.float32)).reshape(1, 1, 100, 80, 50) for m in (flagged, labels)]
    assert best == pytest.approx(float(compute_dice(*masks)), abs=1e-6)
    # MONAI does not treat equal scores as one step: compared where there are none.
    values, counts = np.unique(scores, return_counts=True)
    single = np.isin(scores, values[counts == 1])
    few = Histogram(bins_per_unit=8 * FINE).add(scores[single], labels[single])
    monai = compute_average_precision(*(torch.from_numpy(x[single]).double() for x in (scores, labels)))
    assert few.average_precision() == pytest.approx(float(monai), abs=1e-6)


def test_equal_scores_at_zero_are_one_step() -> None:
    from sklearn.metrics import average_precision_score

    scores = np.zeros(1000, np.float32)
    scores[:10] = 5
    labels = np.arange(1000) % 4 == 0
    expected = average_precision_score(labels, scores)
    assert Histogram(bins_per_unit=1.0).add(scores, labels).average_precision() == pytest.approx(expected, abs=3e-3)


def test_low_roc_area_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_curve

    scores, labels = calibrated_map(3)
    histogram = Histogram(bins_per_unit=FINE).add(scores, labels)
    rate, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    for limit in (0.01, 0.05, 1.0):
        inside = rate < limit
        x, y = np.append(rate[inside], limit), np.append(recall[inside], np.interp(limit, rate, recall))
        assert histogram.roc_area(limit) == pytest.approx(np.trapezoid(y, x) / limit, abs=1e-5)


def test_roc_area_of_perfect_random_and_one_sided_maps() -> None:
    labels = np.arange(20000) % 2 == 0
    assert Histogram().add(labels * 4.0, labels).roc_area() == 1.0
    random = np.random.default_rng(0).random(20000)
    assert Histogram(bins_per_unit=FINE).add(random, labels).roc_area(1.0) == pytest.approx(0.5, abs=0.02)
    assert math.isnan(Histogram().add(random, None).roc_area())
    assert math.isnan(Histogram().add(random, np.ones(20000, bool)).roc_area())


def test_coarser_bins_hold_the_same_counts(case: tuple) -> None:
    fine = Histogram(bins_per_unit=FINE).add(*case)
    direct = Histogram().add(*case)
    np.testing.assert_array_equal(fine.coarser(int(FINE / 64)).positives, direct.positives)
    np.testing.assert_array_equal(fine.coarser(int(FINE / 64)).negatives, direct.negatives)
    with pytest.raises(ValueError):
        Histogram(low=0.0, high=1.5, bins_per_unit=2.0).coarser(4)


def test_best_dice_is_reached_at_its_threshold(case: tuple) -> None:
    scores, reference, brain = case
    best, threshold = Histogram().add(scores, reference, brain).best_dice()
    assert dice((scores > threshold) & brain, reference & brain) == pytest.approx(best, abs=1e-12)
    others = [dice((scores > t) & brain, reference & brain) for t in np.arange(-1, 4, 0.25)]
    assert best >= max(others)


def test_best_dice_can_be_kept_from_flagging_everything() -> None:
    scores, labels = np.zeros(100, np.float32), np.arange(100) < 40
    scores[50:60] = 1  # a map that is of no use
    histogram = Histogram().add(scores, labels)
    assert histogram.best_dice() == (pytest.approx(80 / 140), -16.0)
    assert histogram.best_dice(lowest=0.0) == (0.0, 0.0)


def test_merged_shards_equal_the_whole(case: tuple) -> None:
    scores, reference, brain = case
    whole = Histogram().add(scores, reference, brain)
    first = Histogram().add(scores[:10], reference[:10], brain[:10])
    second = Histogram().add(scores[10:], reference[10:], brain[10:])
    merged = first + second
    assert np.array_equal(merged.positives, whole.positives)
    assert np.array_equal(merged.negatives, whole.negatives)
    assert first.positives.sum() + second.positives.sum() == whole.positives.sum()
    with pytest.raises(ValueError, match="different bins"):
        whole.merge(Histogram(low=0.0))


def test_record_round_trip(case: tuple) -> None:
    histogram = Histogram().add(*case)
    back = Histogram.from_record(json.loads(json.dumps(histogram.record())))
    assert np.array_equal(back.positives, histogram.positives)
    assert np.array_equal(back.negatives, histogram.negatives)


def test_threshold_at_fpr_is_the_smallest_that_keeps_the_rate() -> None:
    scores = np.random.default_rng(5).normal(size=100_000).astype(np.float32)
    histogram = Histogram().add(scores, None)
    threshold = histogram.threshold_at_fpr(0.01)
    assert np.mean(scores > threshold) <= 0.01 < np.mean(scores > threshold - 1 / 64)
    assert threshold == pytest.approx(2.326, abs=0.05)


def test_threshold_at_fpr_refuses_what_it_cannot_know() -> None:
    with pytest.raises(InputError) as refusal:
        Histogram().threshold_at_fpr(0.01)
    assert refusal.value.code == "NO_HEALTHY_VOXELS"
    with pytest.raises(InputError) as refusal:
        Histogram().add(np.full(100, 80.0, np.float32), None).threshold_at_fpr(0.01)
    assert refusal.value.code == "SCORES_OUT_OF_RANGE"


def test_fpr_between_edges_is_never_understated() -> None:
    scores = np.array([0.0, 0.004, 0.01, 0.02], np.float32)
    histogram = Histogram().add(scores, None)
    assert histogram.fpr_at(0.008) >= np.mean(scores > 0.008)
    assert histogram.fpr_at(-100.0) == 1.0
    assert histogram.fpr_at(100.0) == 0.0


def test_mean_dice_curve_averages_scans_not_voxels() -> None:
    small, large = Histogram(), Histogram()
    small.add(np.array([0.0, 5.0], np.float32), np.array([True, False]))
    large.add(np.array([5.0] * 100 + [0.0] * 100, np.float32), np.array([True] * 100 + [False] * 100))
    healthy = Histogram().add(np.zeros(50, np.float32), None)
    edges, curve, count = mean_dice_curve([small, large, healthy])
    at_one = curve[np.flatnonzero(edges == 1.0)[0]]
    assert count == 2
    assert at_one == pytest.approx((0.0 + 1.0) / 2)
    assert (small + large).dice_curve()[np.flatnonzero(edges == 1.0)[0]] > 0.9


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_scores_are_refused(bad: float, case: tuple) -> None:
    scores, reference, brain = case
    scores[12, 12, 8] = bad
    for call in (
        lambda: Histogram().add(scores, reference, brain),
        lambda: average_precision(scores, reference, brain),
    ):
        with pytest.raises(InputError) as refusal:
            call()
        assert refusal.value.code == "NON_FINITE"


def test_shapes_must_agree(case: tuple) -> None:
    scores, reference, brain = case
    for call in (
        lambda: dice(reference[1:], reference),
        lambda: average_precision(scores, reference[1:]),
        lambda: Histogram().add(scores, reference, brain[1:]),
    ):
        with pytest.raises(InputError) as refusal:
            call()
        assert refusal.value.code == "GRID_MISMATCH"


def test_histogram_refuses_inexact_bins() -> None:
    with pytest.raises(ValueError, match="power of two"):
        Histogram(bins_per_unit=100)
    with pytest.raises(ValueError, match="power of two"):
        Histogram(low=0.001)


def test_compare_says_how_it_counted(case: tuple) -> None:
    scores, reference, brain = case
    mask = (scores > 1.5) & brain
    metrics = compare(scores, mask, reference, brain, 0.001)
    assert metrics["dice"] == dice(mask, reference)
    assert metrics["best_dice"] >= metrics["dice"] - 0.01
    assert metrics["reference_ml"] == pytest.approx(reference.sum() * 0.001)
    assert metrics["policy"]["name"] == DEFAULT_POLICY.name
    assert "26-connected" in metrics["rule"]["sentence"]
    healthy = compare(scores, mask, np.zeros_like(reference), brain, 0.001)
    assert math.isnan(healthy["dice"])
    assert healthy["findings_false"] > 0 and healthy["false_positive_ml"] == pytest.approx(mask.sum() * 0.001)
    assert plain(healthy)["dice"] is None
    json.dumps(plain(healthy), allow_nan=False)


def test_plain_refuses_what_has_no_plain_form() -> None:
    assert plain({"a": np.float32(1.5), "b": (np.int64(2), math.inf), "c": np.arange(2)}) == {
        "a": 1.5, "b": [2, None], "c": [0, 1],
    }  # fmt: skip
    with pytest.raises(TypeError):
        plain(object())
