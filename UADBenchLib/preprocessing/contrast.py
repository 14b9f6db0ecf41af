"""Which contrast a scan has, read off its tissues: T1w, T2w, FLAIR, or none of these.

A prepared scan lies on the template, so the template's tissue probabilities say where cerebrospinal fluid, grey and
white matter are to be expected, and the medians there put the three in an order that differs between contrasts. Nothing
is learned and no lesion matters much: a median does not move before half of a tissue is ill. It does not tell sequences
apart that order the tissues alike: a b = 0 diffusion image is T2-weighted, and a negative of T1w with dark fluid looks
like T2w.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.preprocessing.registration import load_template
from UADBenchLib.scan import Check

OTHER = "other"

WHITE_OVER_GREY = 0.083
"""White minus grey matter, in prepared intensity (the brain's 2nd to 98th percentile spans 0.8), above which a scan
with dark fluid is T1w and below which it is FLAIR. Measured in 205 T1w scans (IXI, ds002748, gliomas, sclerosis)
0.09 to 0.33, in 8 FLAIR scans -0.11 to 0.01, in synthesised FLAIR up to 0.077."""

FLUID_FROM_GREY = 0.04
"""How much cerebrospinal fluid must differ from grey matter at least. Measured in the same: T1w -0.53 to -0.08, FLAIR
-0.51 to -0.15, T2w 0.22 to 0.64; proton density lies between."""

GREY_OVER_WHITE_T2W = 0.03
"""Grey minus white matter that a T2w scan has at least (measured 0.05 to 0.14); maps of diffusivity have none.
Fluid must then be farther from grey matter than that: 1.8 to 7 times as far in T2w, once or less in most negatives of
T1w."""

VESSELS = 0.004
"""Share of the brain at more than 1.4 in prepared intensity, far beyond all tissue, above which a scan with dark fluid
shows vessels. T1w after contrast agent, with bright vessels and plexus, reaches 0.0013 and is to pass as T1w; a faint
angiography passes with it."""


@dataclass(frozen=True)
class Tissues:
    """Where the template has mostly one tissue, away from its borders: boolean masks on the model grid."""

    csf: np.ndarray
    grey: np.ndarray
    white: np.ndarray


@dataclass(frozen=True)
class ContrastFound:
    """What the image says: ``"T1w"``, ``"T2w"``, ``"FLAIR"`` or ``"other"``, why, and the medians it rests on.

    ``csf``, ``grey`` and ``white`` are in prepared intensity and None where the scan shows nothing of the tissue;
    ``vessels`` is the share of the brain that is far brighter than any tissue.
    """

    contrast: str
    reason: str
    csf: float | None
    grey: float | None
    white: float | None
    vessels: float

    def record(self) -> dict[str, Any]:
        """The finding as it enters the recipe's steps; JSON-serialisable."""
        return asdict(self)

    def numbers(self) -> str:
        """The medians as a phrase."""
        parts = (("fluid", self.csf), ("grey matter", self.grey), ("white matter", self.white))
        return ", ".join(f"{name} {'not seen' if value is None else f'{value:.2f}'}" for name, value in parts)


@lru_cache(maxsize=2)
def load_tissues(shape: tuple[int, int, int], voxel_mm: float, origin_mm: tuple[float, float, float]) -> Tissues:
    """The tissues of the ICBM 2009a template on a model grid, from the probabilities that nilearn carries.

    Fluid is what is neither grey nor white, at least 20 mm below the brain's surface: the ventricles, since fluid at
    the surface is cut off by brain masks of one kind and left in by others.
    """
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from scipy.ndimage import distance_transform_edt

    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = origin_mm

    def on_grid(values: np.ndarray, source: np.ndarray) -> np.ndarray:
        return resample(np.asarray(values, dtype=np.float32), source, shape, affine, order=1)

    template = load_template(2)
    depth = distance_transform_edt(on_grid(template.mask, template.affine) > 0.5, sampling=voxel_mm)
    grey, white = (
        on_grid(image.get_fdata(dtype=np.float32), image.affine)
        for image in (load_mni152_gm_template(resolution=2), load_mni152_wm_template(resolution=2))
    )
    tissues = Tissues(
        (depth > 20) & (1 - grey - white > 0.5), (depth > 6) & (grey > 0.75), (depth > 10) & (white > 0.9)
    )
    for mask in (tissues.csf, tissues.grey, tissues.white):
        mask.setflags(write=False)
    return tissues


def find_contrast(voxels: np.ndarray, mask: np.ndarray, tissues: Tissues, hounsfield: bool = False) -> ContrastFound:
    """Read the contrast off a prepared scan.

    Parameters
    ----------
    voxels, mask : numpy.ndarray
        Prepared intensity and boolean brain mask on the model grid.
    tissues : Tissues
        On the same grid.
    hounsfield : bool
        The scan has Hounsfield units (``looks_like_ct``).
    """
    medians = [
        float(np.median(voxels[tissue & mask])) if np.count_nonzero(tissue & mask) >= 50 else None
        for tissue in (tissues.csf, tissues.grey, tissues.white)
    ]
    rounded = [None if value is None else round(value, 4) for value in medians]
    vessels = round(float((voxels[mask] > 1.4).mean()), 5) if mask.any() else 0.0
    contrast, reason = (OTHER, "Hounsfield units, as in CT") if hounsfield else _judged(*medians, vessels)
    return ContrastFound(contrast, reason, *rounded, vessels)


def _judged(csf: float | None, grey: float | None, white: float | None, vessels: float) -> tuple[str, str]:
    """Contrast and the reason for it, from the medians."""
    if csf is None or grey is None or white is None:
        return OTHER, "a tissue lies outside the scan"
    if csf - grey > FLUID_FROM_GREY:
        if grey - white >= GREY_OVER_WHITE_T2W and csf - grey < grey - white:
            return OTHER, "fluid is brightest, but nearer to grey matter than grey is to white, as in a negative of T1w"
        if grey - white >= GREY_OVER_WHITE_T2W:
            return "T2w", "fluid brightest, white matter darkest"
        return OTHER, "fluid is brightest, but white matter is not darker than grey"
    if min(grey, white) - csf <= FLUID_FROM_GREY:
        return OTHER, "fluid is as bright as tissue"
    if vessels > VESSELS:
        return OTHER, f"{vessels:.1%} of the brain are far brighter than tissue, as in angiography"
    if white - grey > WHITE_OVER_GREY:
        return "T1w", "fluid darkest, white matter brightest"
    return "FLAIR", "fluid darkest, white matter no brighter than grey"


def looks_like_ct(voxels: np.ndarray, mask: np.ndarray) -> bool:
    """Whether a scan is in Hounsfield units: air at about -1000, brain at 0 to 80, something as dense as bone."""
    return bool(voxels.min() < -500 and 0 < np.median(voxels[mask]) < 80 and voxels.max() > 200)


def settle_contrast(
    stated: str | None, found: ContrastFound, *, by: str = "the file name or --contrast", force: bool = False
) -> tuple[str, tuple[Check, ...]]:
    """Which contrast to go by, and what to say about it.

    Parameters
    ----------
    stated : str or None
        What the user, the file name or the chosen model says; it wins.
    found : ContrastFound
        What the image says.
    by : str
        Who stated it, for the message.
    force : bool
        Go on where the image shows no contrast that is known; as T1w then.

    Raises
    ------
    InputError
        ``CONTRAST_OTHER`` when nothing is stated and the image shows no contrast that is known.
    """
    if stated is not None:
        if stated == found.contrast:
            return stated, ()
        message = (
            f"{by} says {stated}, the image looks like {found.contrast} ({found.reason}: {found.numbers()} on a scale "
            "from 0 to 1)"
        )
        advice = "look at the scan; if it is of another contrast the map means nothing"
        return stated, (Check("warning", "CONTRAST_DISAGREES", message, advice),)
    if found.contrast != OTHER:
        return found.contrast, ()
    seen = f"{found.reason}: {found.numbers()} on a scale from 0 to 1"
    message = f"the image looks like neither T1w, T2w nor FLAIR ({seen})"
    if not force:
        raise InputError(
            "CONTRAST_OTHER",
            message,
            "name it with --contrast or at the end of the file name (_T1w), or go on with --force",
        )
    return "T1w", (Check("warning", "CONTRAST_OTHER", message, "it was taken for T1w; the map may mean nothing"),)
