"""Voxel-wise metrics: exact ones for one scan, and a histogram of scores that streams and merges.

A voxel counts as flagged when its score is **greater than** the threshold, here as everywhere in UADBench.
``Histogram`` keeps two rows of counts (reference voxels and the others), so that its size does not grow with
the number of scans and shards add up exactly. It chooses no threshold by itself: which cohort a threshold may
come from is decided elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.policy import DEFAULT_POLICY, EmptyCasePolicy


def same_grid(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Raise ``InputError`` GRID_MISMATCH unless two arrays have one shape."""
    if first.shape != second.shape:
        raise InputError(
            "GRID_MISMATCH",
            f"{names} differ in shape: {first.shape} and {second.shape}",
            "bring both onto the scan's own grid first",
        )


def dice(mask: np.ndarray, reference: np.ndarray, policy: EmptyCasePolicy = DEFAULT_POLICY) -> float:
    """Return the Dice overlap of two masks of the same shape, ``2 |A and B| / (|A| + |B|)``.

    Parameters
    ----------
    mask, reference : numpy.ndarray
        Any shape, equal; non-zero is inside.
    policy : EmptyCasePolicy
        What an empty mask or reference gives.

    Returns
    -------
    float
        In [0, 1], or NaN where the policy leaves it undefined.

    Raises
    ------
    InputError
        GRID_MISMATCH when the shapes differ.
    """
    same_grid(mask, reference, "mask and reference")
    flagged, true = mask != 0, reference != 0
    n_flagged, n_true = int(np.count_nonzero(flagged)), int(np.count_nonzero(true))
    if n_true == 0:
        return policy.both_empty_dice if n_flagged == 0 else policy.false_alarm_dice
    if n_flagged == 0:
        return policy.missed_dice
    return 2.0 * int(np.count_nonzero(flagged & true)) / (n_flagged + n_true)


def average_precision(
    scores: np.ndarray,
    reference: np.ndarray,
    brain_mask: np.ndarray | None = None,
    policy: EmptyCasePolicy = DEFAULT_POLICY,
) -> float:
    """Return the exact average precision of a map: the sum of (recall gained) x (precision there).

    Equal scores form one step, so the value does not depend on the order of voxels. Only voxels inside the
    brain mask count: background, which every method scores 0, would otherwise be counted as correct.

    Parameters
    ----------
    scores : numpy.ndarray
        Anomaly map, any shape, finite; higher is more abnormal.
    reference : numpy.ndarray
        Same shape; non-zero is lesion.
    brain_mask : numpy.ndarray, optional
        Same shape; non-zero voxels count. None counts all.
    policy : EmptyCasePolicy
        What a reference without a voxel in the brain gives.

    Raises
    ------
    InputError
        GRID_MISMATCH when shapes differ, NON_FINITE when a score is NaN or infinite.
    """
    same_grid(scores, reference, "map and reference")
    if brain_mask is not None:
        same_grid(scores, brain_mask, "map and brain mask")
        inside = brain_mask != 0
        values, labels = scores[inside], reference[inside] != 0
    else:
        values, labels = scores.ravel(), reference.ravel() != 0
    _require_finite(values)
    positives = int(np.count_nonzero(labels))
    if positives == 0:
        return policy.no_positive_average_precision
    order = np.argsort(values, kind="stable")[::-1]
    values, labels = values[order], labels[order]
    step_ends = np.append(np.flatnonzero(values[1:] != values[:-1]), values.size - 1)
    true_positives = np.cumsum(labels, dtype=np.int64)[step_ends]
    precision = true_positives / (step_ends + 1.0)
    return float(np.sum(np.diff(true_positives, prepend=0) * precision) / positives)


def _require_finite(values: np.ndarray) -> None:
    if not np.all(np.isfinite(values)):
        raise InputError(
            "NON_FINITE",
            "the map contains NaN or infinite scores",
            "report this: a map is finite by contract",
        )


FINE = 1024.0
"""Bins per unit at which the average precision of a calibrated map is exact to about 1e-7."""

_PIECE = 1 << 17
"""Scores that are sorted into bins at once."""


@dataclass
class Histogram:
    """Counts of scores in equal bins, apart for reference voxels and the others; streaming and mergeable.

    Bin k holds the scores in ``(edge[k], edge[k + 1]]``; one more bin on each side holds what lies below and
    above. The width is a power of two and the limits are whole multiples of it, so edges are exact in
    floating point and every count of "score > edge" is exact. What is not exact: thresholds between edges
    (the defaults resolve 1/64 of a standard deviation), and average precision and ROC area, which know the order
    of scores from bin to bin only: see there. Scores beyond the limits stay counted, as one bin.

    Attributes
    ----------
    low, high : float
        Limits of the bins, in the unit of the scores (z for calibrated maps).
    bins_per_unit : float
        A power of two; a raw score with a small range takes a larger one.
    positives, negatives : numpy.ndarray
        int64 counts, shape (bins + 2,).
    """

    low: float = -16.0
    high: float = 64.0
    bins_per_unit: float = 64.0
    positives: np.ndarray = field(default=None, repr=False)  # type: ignore[assignment]
    negatives: np.ndarray = field(default=None, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        mantissa, _ = math.frexp(self.bins_per_unit)
        first, last = self.low * self.bins_per_unit, self.high * self.bins_per_unit
        if mantissa != 0.5 or first != int(first) or last != int(last) or not last > first:
            raise ValueError("bins per unit is a power of two, and limits are whole multiples of a bin's width")
        self._first, self._bins = int(first), int(last - first)
        if self._bins > 1 << 22:
            raise ValueError(f"{self._bins} bins are too many; the limit is {1 << 22}")
        for name in ("positives", "negatives"):
            counts = getattr(self, name)
            counts = np.zeros(self._bins + 2, dtype=np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
            if counts.shape != (self._bins + 2,):
                raise ValueError(f"{name} has shape {counts.shape}, expected ({self._bins + 2},)")
            setattr(self, name, counts)

    @property
    def edges(self) -> np.ndarray:
        """Thresholds that the counts are exact for, shape (bins + 1,), ascending."""
        return (np.arange(self._bins + 1, dtype=np.float64) + self._first) / self.bins_per_unit

    def add(self, scores: np.ndarray, reference: np.ndarray | None, brain_mask: np.ndarray | None = None) -> Histogram:
        """Count one scan and return self.

        Parameters
        ----------
        scores : numpy.ndarray
            Anomaly map, finite, any shape.
        reference : numpy.ndarray or None
            Same shape, non-zero is lesion; None states that no voxel is (a healthy scan).
        brain_mask : numpy.ndarray, optional
            Same shape; only its non-zero voxels count.

        Raises
        ------
        InputError
            GRID_MISMATCH or NON_FINITE.
        """
        for other, name in ((reference, "reference"), (brain_mask, "brain mask")):
            if other is not None:
                same_grid(scores, other, f"map and {name}")
        inside = ... if brain_mask is None else brain_mask != 0
        values = np.ravel(scores[inside])
        lesion = np.zeros(values.size, bool) if reference is None else np.ravel(reference[inside]) != 0
        _require_finite(values)
        # Piece by piece, so that what is computed on the way stays in the processor's cache.
        for start in range(0, values.size, _PIECE):
            piece = slice(start, start + _PIECE)
            # A power-of-two factor is exact in float32, and so is ceil: no score lands in the wrong bin.
            index = np.ceil(values[piece] * values.dtype.type(self.bins_per_unit))
            np.clip(index, self._first, self._first + self._bins + 1, out=index)
            # Even places count the others, odd ones the reference voxels.
            place = (index.astype(np.intp) - self._first) * 2 + lesion[piece]
            counts = np.bincount(place, minlength=2 * (self._bins + 2)).reshape(-1, 2)
            self.negatives += counts[:, 0]
            self.positives += counts[:, 1]
        return self

    def merge(self, other: Histogram) -> Histogram:
        """Add the counts of ``other``, which must have the same bins, and return self."""
        if (self.low, self.high, self.bins_per_unit) != (other.low, other.high, other.bins_per_unit):
            raise ValueError("histograms with different bins cannot be merged")
        self.positives += other.positives
        self.negatives += other.negatives
        return self

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.low, self.high, self.bins_per_unit, self.positives.copy(), self.negatives.copy()).merge(
            other
        )

    def _above(self, counts: np.ndarray) -> np.ndarray:
        """Number of scores greater than each edge."""
        return counts[::-1].cumsum()[::-1][1:]

    def dice_curve(self, policy: EmptyCasePolicy = DEFAULT_POLICY) -> np.ndarray:
        """Return the Dice of everything counted, pooled, at each edge; shape (bins + 1,)."""
        true_positives, false_positives = self._above(self.positives), self._above(self.negatives)
        n_true, flagged = int(self.positives.sum()), true_positives + false_positives
        if n_true == 0:
            return np.where(flagged == 0, policy.both_empty_dice, policy.false_alarm_dice)
        curve = 2.0 * true_positives / (flagged + n_true)
        return np.where(flagged == 0, policy.missed_dice, curve)

    def best_dice(self, policy: EmptyCasePolicy = DEFAULT_POLICY, lowest: float = -math.inf) -> tuple[float, float]:
        """Return (best pooled Dice, the threshold where it is reached); (NaN, NaN) without a reference voxel.

        Only thresholds of at least ``lowest`` count: 0 for a calibrated map, below which the whole brain is flagged.
        The threshold is chosen on the very scans it is scored on: an upper bound, never an operating point
        for them.
        """
        curve = self.dice_curve(policy)
        if int(self.positives.sum()) == 0 or np.all(np.isnan(curve)):
            return math.nan, math.nan
        allowed = np.where(self.edges >= lowest, curve, -math.inf)
        best = int(np.nanargmax(allowed))
        return float(curve[best]), float(self.edges[best])

    def coarser(self, factor: int) -> Histogram:
        """Return the same counts in bins that are ``factor`` (a power of two) times as wide.

        Raises
        ------
        ValueError
            When the limits are not whole multiples of the new width.
        """
        coarse = Histogram(self.low, self.high, self.bins_per_unit / factor)
        for name in ("positives", "negatives"):
            counts = getattr(self, name)
            inner = counts[1:-1].reshape(-1, factor).sum(axis=1)
            setattr(coarse, name, np.concatenate([counts[:1], inner, counts[-1:]]))
        return coarse

    def average_precision(self, policy: EmptyCasePolicy = DEFAULT_POLICY) -> float:
        """Return the average precision of everything counted.

        Scores of a bin count as lying in random order: the k-th of p reference voxels among n scores comes at
        rank k (n + 1) / (p + 1), of which the middle one stands for all. What lies in one bin for want of limits,
        and what ends at 0 exactly, where calibrated maps are cut off, is one step of equal scores instead.
        """
        positives, n_true = self.positives[::-1].astype(np.float64), int(self.positives.sum())
        if n_true == 0:
            return policy.no_positive_average_precision
        scores = positives + self.negatives[::-1]
        before_true, before = np.cumsum(positives) - positives, np.cumsum(scores) - scores
        tied = self._tied()[::-1]
        hits = before_true + np.where(tied, positives, (positives + 1) / 2)
        flagged = before + np.where(tied, scores, (scores + 1) / 2)
        return float(np.sum(positives * hits / np.maximum(flagged, 1)) / n_true)

    def _tied(self) -> np.ndarray:
        """Bins (bins + 2,) whose scores are equal or might be anything: the outer two, and the one that ends at 0."""
        tied = np.zeros(self._bins + 2, dtype=bool)
        tied[[0, -1]] = True
        if self._first <= 0 <= self._first + self._bins:
            tied[-self._first] = True
        return tied

    def roc_area(self, limit: float = 0.05) -> float:
        """Return the area under the ROC curve up to a false-positive rate of ``limit``, divided by ``limit``.

        1 for a perfect map and ``limit / 2`` for a random one. Straight lines join the points at the edges. NaN
        unless both kinds of voxels were counted.
        """
        n_true, n_false = int(self.positives.sum()), int(self.negatives.sum())
        if n_true == 0 or n_false == 0:
            return math.nan
        recall = np.concatenate([[0], self.positives[::-1].cumsum()]) / n_true
        rate = np.concatenate([[0], self.negatives[::-1].cumsum()]) / n_false
        inside = int(np.searchsorted(rate, limit, side="right"))
        at_limit = np.interp(limit, rate, recall)
        rate, recall = np.append(rate[:inside], limit), np.append(recall[:inside], at_limit)
        return float(np.trapezoid(recall, rate) / limit)

    def fpr_at(self, threshold: float) -> float:
        """Return the share of the other (not lesion) voxels above ``threshold``; NaN when there are none.

        Between two edges the lower one is taken, so that the rate is never understated.
        """
        total = int(self.negatives.sum())
        if total == 0:
            return math.nan
        index = math.floor(threshold * self.bins_per_unit) - self._first
        if index < 0:
            return 1.0
        return float(self._above(self.negatives)[min(index, self._bins)] / total)

    def threshold_at_fpr(self, rate: float) -> float:
        """Return the smallest edge at which no more than ``rate`` of the other voxels are flagged.

        Raises
        ------
        InputError
            NO_HEALTHY_VOXELS when nothing was counted; SCORES_OUT_OF_RANGE when even the highest edge flags
            more.
        """
        total = int(self.negatives.sum())
        if total == 0:
            raise InputError("NO_HEALTHY_VOXELS", "no healthy voxel was counted", "give at least one healthy scan")
        allowed = np.flatnonzero(self._above(self.negatives) <= rate * total)
        if allowed.size == 0:
            raise InputError(
                "SCORES_OUT_OF_RANGE",
                f"more than {rate:.3%} of healthy voxels score above {self.high:g}",
                "count with a histogram whose limits cover the scores",
            )
        return float(self.edges[allowed[0]])

    def record(self) -> dict[str, Any]:
        """Return the histogram as a JSON-serialisable dictionary; ``from_record`` reads it back."""
        return {
            "low": self.low,
            "high": self.high,
            "bins_per_unit": self.bins_per_unit,
            "positives": _sparse(self.positives),
            "negatives": _sparse(self.negatives),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Histogram:
        """Build a histogram from what ``record`` returned."""
        histogram = cls(float(record["low"]), float(record["high"]), float(record["bins_per_unit"]))
        for name in ("positives", "negatives"):
            for index, count in record[name]:
                getattr(histogram, name)[int(index)] = int(count)
        return histogram


def _sparse(counts: np.ndarray) -> list[list[int]]:
    """Return the (index, count) pairs of a mostly empty row of counts."""
    index = np.flatnonzero(counts)
    return [[int(i), int(counts[i])] for i in index]


def mean_dice_curve(
    histograms: list[Histogram], policy: EmptyCasePolicy = DEFAULT_POLICY
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (edges, mean over scans of the Dice at each edge, number of scans with a reference voxel).

    One histogram a scan: the benchmark's figure is a mean of scans, not a Dice of pooled voxels. Scans whose
    Dice the policy leaves undefined do not count.
    """
    if not histograms:
        raise ValueError("no histogram was given")
    curves = [histogram.dice_curve(policy) for histogram in histograms]
    defined = np.array([curve for curve in curves if not np.all(np.isnan(curve))])
    if defined.size == 0:
        return histograms[0].edges, np.full(histograms[0].edges.shape, math.nan), 0
    return histograms[0].edges, defined.mean(axis=0), len(defined)
