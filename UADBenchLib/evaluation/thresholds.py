"""Thresholds from validation scans, each with an interval: at a healthy false-positive rate, or at the best mean Dice.

One histogram of calibrated scores a scan goes in. Sites weigh the same, whatever their number of scans; intervals
resample subjects within their site, since scans of one person do not count twice. Whose scans may be used for what is
for the callers to keep apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.inference.weights import site_weights

RATES = {"fpr-1pct": 0.01, "fpr-0.1pct": 0.001}
"""Operating points that every calibration gives: name and share of healthy brain voxels above the threshold."""
BEST_DICE = "opt-dice"
RESAMPLES = 200
LEVEL = 0.95


@dataclass(frozen=True)
class Threshold:
    """A threshold, its 95 % interval, and what it reached (a rate or a mean Dice) on the scans it was read off."""

    value: float
    ci: tuple[float, float]
    reached: float


def rate_name(rate: float) -> str:
    """Name of the operating point at a healthy false-positive rate: 0.01 gives ``fpr-1pct``.

    Raises
    ------
    InputError
        ``OPTION_INVALID`` for a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise InputError("OPTION_INVALID", f"the false-positive rate is {rate}", "give a share between 0 and 1")
    return f"fpr-{rate * 100:g}pct"


def rate_of(name: str) -> float | None:
    """The healthy false-positive rate that the name of an operating point stands for; None for another kind."""
    found = re.fullmatch(r"fpr-([0-9.]+)pct", name)
    return float(found[1]) / 100 if found else None


def threshold_at_rate(
    histograms: Sequence[Histogram], rate: float, sites: Sequence[str], subjects: Sequence[str]
) -> Threshold:
    """The lowest edge at which healthy scans flag no more than ``rate`` on average, sites weighing the same.

    Parameters
    ----------
    histograms : sequence of Histogram
        One a healthy scan, equal bins.
    rate : float
        Share of voxels, between 0 and 1.
    sites, subjects : sequence of str
        Of each scan; anatomies may stand for subjects.

    Raises
    ------
    InputError
        ``NO_HEALTHY_VOXELS`` without scans, ``SCORES_OUT_OF_RANGE`` when the highest edge still flags more.
    """
    if not histograms:
        raise InputError("NO_HEALTHY_VOXELS", "there is no healthy validation scan", "give at least one")
    curves = np.array([_rate_curve(histogram) for histogram in histograms])
    names, edges = np.asarray(sites), histograms[0].edges

    def pick(rows: np.ndarray) -> tuple[float, float]:
        curve = site_weights(names[rows].tolist()) @ curves[rows]
        first = int(np.argmax(curve <= rate))
        if curve[first] > rate:
            raise InputError(
                "SCORES_OUT_OF_RANGE", "healthy z scores exceed the histogram", "check the validation scans"
            )
        return float(edges[first]), float(curve[first])

    return _with_interval(pick, sites, subjects)


def _rate_curve(histogram: Histogram) -> np.ndarray:
    counts = histogram.negatives
    return counts[::-1].cumsum()[::-1][1:] / max(1, int(counts.sum()))


def threshold_at_best_dice(histograms: Sequence[Histogram], sites: Sequence[str], subjects: Sequence[str]) -> Threshold:
    """The edge, from 0 on, with the highest mean Dice over scans that have a reference; scans weigh the same.

    Raises
    ------
    InputError
        ``NO_REFERENCE`` when no scan has a lesion: healthy scans alone cannot say where Dice is best.
    """
    lesion = [n for n, histogram in enumerate(histograms) if histogram.positives.sum() > 0]
    if not lesion:
        raise InputError(
            "NO_REFERENCE",
            "no validation scan has a lesion in its reference, and healthy scans cannot say where Dice is best",
            "add validation scans with references, or use a threshold at a healthy false-positive rate",
        )
    edges = histograms[0].edges
    # Below 0 a calibrated map has no scores: such a threshold would flag the whole brain.
    curves = np.array([histograms[n].dice_curve()[edges >= 0] for n in lesion])
    edges = edges[edges >= 0]

    def pick(rows: np.ndarray) -> tuple[float, float]:
        curve = curves[rows].mean(axis=0)
        best = int(np.argmax(curve))
        return float(edges[best]), float(curve[best])

    return _with_interval(pick, [sites[n] for n in lesion], [subjects[n] for n in lesion])


def _with_interval(
    pick: Callable[[np.ndarray], tuple[float, float]], sites: Sequence[str], subjects: Sequence[str]
) -> Threshold:
    """``pick`` on all scans, and its spread over resampled subjects; the generator's seed is fixed."""
    members: dict[str, dict[str, list[int]]] = {}
    for n, (site, subject) in enumerate(zip(sites, subjects, strict=True)):
        members.setdefault(site, {}).setdefault(subject, []).append(n)
    rng = np.random.default_rng(0)
    value, reached = pick(np.arange(len(sites)))
    draws = []
    for _ in range(RESAMPLES):
        rows: list[int] = []
        for site in sorted(members):
            people = sorted(members[site])
            for chosen in rng.choice(len(people), len(people)):
                rows += members[site][people[chosen]]
        draws.append(pick(np.array(rows))[0])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    return Threshold(value, (min(float(low), value), max(float(high), value)), reached)
