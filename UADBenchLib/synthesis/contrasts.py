"""What tissues look like in T1w, T2w and FLAIR: priors to draw from, relative to the white matter of the same scan.

The rows of brain tissue are measured in real scans (``Testing/fit_contrasts.py``: T1w in 50 heads of IXI, T2w and FLAIR
in the three contrasts of one healthy head and in the normal-appearing tissue of five patients). Those of the tissues
around the brain are set by eye, with wide spreads; nothing that is measured in a brain depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from UADBenchLib.scan import CONTRASTS
from UADBenchLib.synthesis.anatomy import CLASS, NAMES

_AROUND: dict[str, tuple[tuple[float, float, float], ...]] = {
    # T1w, T2w, FLAIR: (mean, spread between scans, spread within)
    "air": ((0.0, 0.0, 0.005), (0.0, 0.0, 0.005), (0.0, 0.0, 0.005)),
    "choroid plexus": ((0.55, 0.08, 0.08), (2.0, 0.25, 0.25), (1.1, 0.15, 0.12)),
    "optic nerve": ((0.85, 0.1, 0.06), (1.1, 0.15, 0.1), (1.0, 0.15, 0.1)),
    "vessel": ((0.4, 0.2, 0.1), (0.4, 0.15, 0.1), (0.4, 0.15, 0.1)),
    "eye": ((0.3, 0.08, 0.04), (2.6, 0.4, 0.1), (0.4, 0.15, 0.06)),
    "soft tissue": ((0.55, 0.1, 0.08), (0.6, 0.15, 0.08), (0.7, 0.15, 0.08)),
    "muscle": ((0.6, 0.1, 0.05), (0.55, 0.12, 0.05), (0.65, 0.12, 0.05)),
    "mucosa": ((0.6, 0.15, 0.12), (1.7, 0.3, 0.3), (1.2, 0.25, 0.2)),
    "skin": ((0.85, 0.2, 0.12), (0.7, 0.2, 0.12), (0.75, 0.2, 0.12)),
    "spinal cord": ((0.9, 0.06, 0.04), (1.1, 0.1, 0.08), (1.05, 0.08, 0.06)),
    "bone": ((0.12, 0.06, 0.05), (0.1, 0.05, 0.05), (0.15, 0.06, 0.05)),
    "marrow": ((0.85, 0.2, 0.12), (0.7, 0.2, 0.12), (0.7, 0.2, 0.12)),
}  # fmt: skip
"""Tissues that are not measured, set by eye."""

_BRAIN: dict[str, dict[str, tuple[float, float, float]]] = {
    "T1w": {
        "white matter": (1.0, 0.0, 0.04),
        "cortex": (0.71, 0.05, 0.05),
        "csf": (0.36, 0.1, 0.07),
        "ventricle": (0.33, 0.1, 0.05),
        "thalamus": (0.95, 0.04, 0.04),
        "caudate": (0.85, 0.05, 0.04),
        "putamen": (0.91, 0.05, 0.04),
        "pallidum": (1.0, 0.03, 0.04),
        "limbic": (0.8, 0.05, 0.05),
        "ventral diencephalon": (1.0, 0.04, 0.05),
        "brain stem": (0.97, 0.03, 0.04),
        "cerebellar white matter": (1.0, 0.02, 0.04),
        "cerebellar cortex": (0.76, 0.06, 0.06),
    },
    "T2w": {
        "white matter": (1.0, 0.0, 0.08),
        "cortex": (1.38, 0.1, 0.12),
        "csf": (4.2, 0.9, 0.5),
        "ventricle": (4.6, 1.0, 0.4),
        "thalamus": (1.05, 0.06, 0.09),
        "caudate": (1.2, 0.1, 0.1),
        "putamen": (1.07, 0.08, 0.1),
        "pallidum": (0.72, 0.1, 0.1),
        "limbic": (1.45, 0.1, 0.15),
        "ventral diencephalon": (1.03, 0.08, 0.15),
        "brain stem": (1.1, 0.06, 0.12),
        "cerebellar white matter": (0.98, 0.06, 0.1),
        "cerebellar cortex": (1.36, 0.06, 0.15),
    },
    "FLAIR": {
        "white matter": (1.0, 0.0, 0.07),
        "cortex": (1.14, 0.04, 0.08),
        "csf": (0.3, 0.1, 0.12),
        "ventricle": (0.24, 0.06, 0.08),
        "thalamus": (1.02, 0.06, 0.07),
        "caudate": (1.07, 0.06, 0.06),
        "putamen": (1.0, 0.06, 0.07),
        "pallidum": (0.66, 0.1, 0.07),
        "limbic": (1.24, 0.06, 0.09),
        "ventral diencephalon": (1.0, 0.06, 0.12),
        "brain stem": (1.05, 0.05, 0.1),
        "cerebellar white matter": (0.96, 0.05, 0.08),
        "cerebellar cortex": (1.12, 0.05, 0.09),
    },
}
"""Contrast -> tissue -> (mean, spread of the mean between scans, spread within the tissue of one scan).

Rounded from what ``Testing/fit_contrasts.py`` measures. Where partial volume is part of the measured spread (cortex,
sulci) the inner spread of deep tissue stands instead, since the border is blurred after painting.
"""

PRIORS = {
    contrast: _BRAIN[contrast] | {tissue: rows[number] for tissue, rows in _AROUND.items()}
    for number, contrast in enumerate(CONTRASTS)
}
"""Contrast -> tissue -> (mean, spread of the mean between scans, spread within the tissue of one scan)."""

FAT: dict[str, tuple[float, float]] = {"T1w": (1.25, 0.25), "T2w": (0.9, 0.25), "FLAIR": (0.9, 0.25)}
"""Mean and spread of subcutaneous and other fat, which label maps do not tell from the rest of the soft tissue."""


@dataclass(frozen=True)
class Look:
    """Intensities drawn for one scan.

    Attributes
    ----------
    contrast : str
        ``T1w``, ``T2w``, ``FLAIR`` or ``random``.
    means : tuple of float
        Mean of every tissue of ``anatomy.NAMES``; white matter is 1 but for ``random``.
    spreads : tuple of float
        Standard deviation of the texture within every tissue.
    fat : float
        Mean of the fat among the soft tissue.
    """

    contrast: str
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    fat: float


def draw_look(contrast: str, rng: np.random.Generator, variation: float = 1.0) -> Look:
    """Draw the intensities of a scan from the priors of its contrast; ``variation`` scales the spread between scans.

    Raises
    ------
    ValueError
        For a contrast without priors.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"there are priors for {', '.join(CONTRASTS)}, not for {contrast!r}")
    table = np.array([PRIORS[contrast][name] for name in NAMES])
    # Sequence parameters move all grey matter together; the rest of the spread is each tissue's own.
    common, own = np.clip(rng.standard_normal(), -2, 2), np.clip(rng.standard_normal(len(NAMES)), -2, 2)
    means = table[:, 0] + variation * table[:, 1] * (0.8 * common + 0.6 * own)
    means[CLASS["white matter"]] = 1.0
    fat, spread = FAT[contrast]
    return Look(
        contrast,
        means=tuple(float(v) for v in np.maximum(means, 0.0)),
        spreads=tuple(float(v) for v in table[:, 2] * rng.uniform(0.8, 1.2)),
        fat=float(max(0.05, fat + spread * rng.uniform(-1, 1))),
    )


def random_look(rng: np.random.Generator) -> Look:
    """Draw intensities that mean nothing: every tissue anywhere in [0, 1], after Billot et al. 2023 (SynthSeg) and
    Hoopes et al. 2022 (SynthStrip), for networks that shall not depend on contrast."""
    means = rng.uniform(0.0, 1.0, len(NAMES))
    means[CLASS["air"]] = rng.choice([0.0, rng.uniform(0.0, 0.15)])
    return Look(
        "random",
        means=tuple(float(v) for v in means),
        spreads=tuple(float(v) for v in rng.uniform(0.01, 0.12, len(NAMES))),
        fat=float(rng.uniform(0, 1)),
    )
