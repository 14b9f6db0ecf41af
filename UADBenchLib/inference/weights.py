"""How validation scans count: every site the same, and every subject held out once."""

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


def fold_of(subject: str) -> int:
    """Which of the ``FOLDS`` a subject is held out with; the same on every machine."""
    return int(hashlib.sha256(subject.encode()).hexdigest(), 16) % FOLDS
