"""How validation scans count: every site the same, and every subject or anatomy held out once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

FOLDS = 5


def site_weights(sites: Sequence[str]) -> np.ndarray:
    """Weights (N,) that sum to 1, every site getting the same share."""
    counts = Counter(sites)
    weights = np.array([1.0 / counts[site] for site in sites])
    return weights / weights.sum()


def folds_of(names: Sequence[str]) -> list[int]:
    """Which fold each subject or anatomy is held out in: one of its own where there are no more than ``FOLDS`` of them,
    else that of its hash, which is the same on every machine, unless that leaves nobody to compare with. Two names and
    more have two folds and more."""
    unique = sorted(set(names))
    hashed = [int(hashlib.sha256(name.encode()).hexdigest(), 16) % FOLDS for name in names]
    if len(unique) <= FOLDS or len(set(hashed)) == 1:
        return [unique.index(name) % FOLDS for name in names]
    return hashed
