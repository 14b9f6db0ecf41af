"""All metrics of one scan against its reference in one call, with the policy and rule they were counted by.

The result is what a detection carries, what its JSON and report print, and one row of a benchmark's table.
Nothing here is tuned on the reference: ``best_dice`` is what the bare map could
reach, and no operating point may be taken from it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from UADBenchLib.evaluation.lesions import DEFAULT_RULE, LesionRule, count_lesions
from UADBenchLib.evaluation.metrics import Histogram, average_precision, dice
from UADBenchLib.evaluation.policy import DEFAULT_POLICY, EmptyCasePolicy


def compare(
    map: np.ndarray,
    mask: np.ndarray,
    reference: np.ndarray,
    brain_mask: np.ndarray,
    voxel_ml: float,
    *,
    policy: EmptyCasePolicy = DEFAULT_POLICY,
    rule: LesionRule = DEFAULT_RULE,
) -> dict[str, Any]:
    """Return the metrics of one scan.

    Parameters
    ----------
    map : numpy.ndarray
        Shape (I, J, K), calibrated z, finite.
    mask, reference, brain_mask : numpy.ndarray
        Same shape; non-zero is inside.
    voxel_ml : float
        Volume of a voxel in millilitres.
    policy, rule : EmptyCasePolicy, LesionRule
        How empty cases and lesions are counted; recorded in the result.

    Returns
    -------
    dict
        ``dice``, ``average_precision``, ``best_dice`` and ``best_dice_threshold`` (to 1/64 z, from 0 on, no
        minimum volume), ``false_positive_rate`` (flagged share of the brain outside the reference), the lesion-wise
        counts and ratios, ``reference_ml``, ``mask_ml``, and ``policy``, ``rule`` as records with a
        ``sentence``. Undefined values are NaN. ``average_precision``, ``best_dice`` and the rate count voxels
        of the brain mask; ``dice`` counts all.

    Raises
    ------
    InputError
        GRID_MISMATCH when shapes differ, NON_FINITE when the map is not finite.
    """
    histogram = Histogram().add(map, reference, brain_mask)
    best, threshold = histogram.best_dice(policy, lowest=0.0)
    healthy = (brain_mask != 0) & (reference == 0)
    n_healthy = int(np.count_nonzero(healthy))
    flagged = int(np.count_nonzero((mask != 0) & healthy))
    return {
        "dice": dice(mask, reference, policy),
        "average_precision": average_precision(map, reference, brain_mask, policy),
        "best_dice": best,
        "best_dice_threshold": threshold,
        "false_positive_rate": flagged / n_healthy if n_healthy else float("nan"),
        **count_lesions(mask, reference, voxel_ml, rule).record(policy),
        "reference_ml": float(np.count_nonzero(reference) * voxel_ml),
        "mask_ml": float(np.count_nonzero(mask) * voxel_ml),
        "policy": policy.record() | {"sentence": policy.sentence()},
        "rule": rule.record() | {"sentence": rule.sentence()},
    }


def dice_by_threshold(
    map: np.ndarray,
    reference: np.ndarray,
    brain_mask: np.ndarray,
    *,
    step: float = 0.125,
    policy: EmptyCasePolicy = DEFAULT_POLICY,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Dice of the bare map (no least volume) at thresholds from 0 to its highest value.

    Parameters
    ----------
    map, reference, brain_mask : numpy.ndarray
        As ``compare``; voxels of the brain mask count.
    step : float
        Distance of the thresholds in z, a multiple of 1/64.

    Returns
    -------
    thresholds, dice : numpy.ndarray
        Shape (T,), T at least 2.

    Raises
    ------
    InputError
        As ``compare``.
    """
    histogram = Histogram().add(map, reference, brain_mask)
    stride = max(1, round(step * histogram.bins_per_unit))
    edges, curve = histogram.edges, histogram.dice_curve(policy)
    first = int(np.searchsorted(edges, 0.0))
    last = int(np.searchsorted(edges, max(step, float(map.max(initial=0.0))))) + stride
    return edges[first:last:stride], curve[first:last:stride]
