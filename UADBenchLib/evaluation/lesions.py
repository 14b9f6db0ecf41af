"""Lesion-wise counting: which lesions were found and which findings are real, by a rule that is data.

Lesions and findings are 26-connected components. The rule is symmetric: a reference lesion is *hit* when the
mask covers at least a tenth of its volume (and one voxel), and a finding is *true* when at least a tenth of
its volume (and one voxel) lies in the reference. One voxel of contact is therefore not enough to claim a
large lesion, and one blob over the whole brain, which hits everything, is itself false. Specks in the
reference below a least volume are not asked for, but a finding on one is not called false either. Dice and
average precision are in ``metrics``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from UADBenchLib.evaluation.metrics import same_grid
from UADBenchLib.evaluation.policy import DEFAULT_POLICY, EmptyCasePolicy


@dataclass(frozen=True)
class LesionRule:
    """When a lesion counts as found and a finding as true.

    Attributes
    ----------
    name, version : str, int
        Printed beside every lesion-wise number.
    connectivity : int
        6, 18 or 26 neighbours.
    minimum_overlap : float
        Least share of a lesion's (or a finding's) volume that must be covered, in [0, 1].
    minimum_voxels : int
        Least number of voxels that must be covered.
    minimum_reference_ml : float
        Reference lesions smaller than this are not asked for.
    """

    name: str = "tenth-overlap-26"
    version: int = 1
    connectivity: int = 26
    minimum_overlap: float = 0.1
    minimum_voxels: int = 1
    minimum_reference_ml: float = 0.0

    def sentence(self) -> str:
        """Return the rule as one sentence for reports."""
        return (
            f"Lesion rule {self.name} v{self.version}: components are {self.connectivity}-connected; "
            f"a lesion is hit, and a finding is true, when at least {self.minimum_overlap:.0%} of its volume "
            f"and {self.minimum_voxels} voxel overlap; "
            f"reference lesions below {self.minimum_reference_ml:g} ml are not counted."
        )

    def record(self) -> dict[str, Any]:
        """Return the rule as a JSON-serialisable dictionary."""
        return asdict(self)


DEFAULT_RULE = LesionRule()


@dataclass(frozen=True)
class LesionCounts:
    """Outcome of a lesion-wise comparison of one scan; counts add up over scans, the ratios are derived.

    ``hit`` and ``missed`` count reference lesions, ``true_findings`` and ``false_findings`` count findings:
    one finding may cover two lesions, so the two kinds of true positive are kept apart. ``false_ml`` is the
    volume of the false findings.
    """

    hit: int
    missed: int
    true_findings: int
    false_findings: int
    false_ml: float

    def __add__(self, other: LesionCounts) -> LesionCounts:
        return LesionCounts(
            self.hit + other.hit,
            self.missed + other.missed,
            self.true_findings + other.true_findings,
            self.false_findings + other.false_findings,
            self.false_ml + other.false_ml,
        )

    def recall(self, policy: EmptyCasePolicy = DEFAULT_POLICY) -> float:
        """Share of reference lesions hit."""
        lesions = self.hit + self.missed
        return self.hit / lesions if lesions else policy.no_lesion_recall

    def precision(self, policy: EmptyCasePolicy = DEFAULT_POLICY) -> float:
        """Share of findings that are true."""
        findings = self.true_findings + self.false_findings
        return self.true_findings / findings if findings else policy.no_finding_precision

    def f1(self, policy: EmptyCasePolicy = DEFAULT_POLICY) -> float:
        """Harmonic mean of recall and precision; 0 when lesions exist and nothing was found."""
        if self.hit + self.missed == 0:
            return policy.no_lesion_recall
        recall = self.recall(policy)
        precision = self.precision(policy) if self.true_findings + self.false_findings else 0.0
        return 2.0 * recall * precision / (recall + precision) if recall + precision else 0.0

    def record(self, policy: EmptyCasePolicy = DEFAULT_POLICY) -> dict[str, float | int]:
        """Return counts and ratios as a dictionary (NaN where the policy leaves a ratio undefined)."""
        return {
            "lesions": self.hit + self.missed,
            "lesions_hit": self.hit,
            "lesions_missed": self.missed,
            "findings_true": self.true_findings,
            "findings_false": self.false_findings,
            "false_positive_ml": self.false_ml,
            "lesion_recall": self.recall(policy),
            "lesion_precision": self.precision(policy),
            "lesion_f1": self.f1(policy),
        }


def components(mask: np.ndarray, connectivity: int = 26) -> tuple[np.ndarray, int]:
    """Return (labels int32 of the mask's shape with 0 outside, number of connected components).

    Raises
    ------
    ValueError
        If the mask is not three-dimensional or the connectivity is not 6, 18 or 26.
    """
    from scipy import ndimage

    order = {6: 1, 18: 2, 26: 3}.get(connectivity)
    if mask.ndim != 3 or order is None:
        raise ValueError(f"three dimensions and 6, 18 or 26 neighbours, not {mask.ndim} and {connectivity}")
    labels = np.zeros(mask.shape, dtype=np.int32)
    inside = mask != 0
    if not inside.any():
        return labels, 0
    # Only the box that holds voxels is labelled: masks are small and scans are not.
    box = ndimage.find_objects(inside.view(np.uint8))[0]
    found, count = ndimage.label(inside[box], structure=ndimage.generate_binary_structure(3, order))
    labels[box] = found
    return labels, int(count)


def _covered(labels: np.ndarray, count: int, other: np.ndarray, rule: LesionRule) -> tuple[np.ndarray, np.ndarray]:
    """Return (sizes in voxels, covered enough by ``other``) for components 1..count."""
    inside = labels > 0
    ids = labels[inside]
    sizes = np.bincount(ids, minlength=count + 1)[1:]
    overlap = np.bincount(ids[other[inside] != 0], minlength=count + 1)[1:]
    return sizes, is_covered(overlap, sizes, rule)


def is_covered(overlap: np.ndarray, sizes: np.ndarray, rule: LesionRule = DEFAULT_RULE) -> np.ndarray:
    """Return whether components of ``sizes`` voxels, ``overlap`` of them covered, satisfy the rule."""
    return (overlap >= max(1, rule.minimum_voxels)) & (overlap >= rule.minimum_overlap * sizes)


def count_lesions(
    mask: np.ndarray, reference: np.ndarray, voxel_ml: float, rule: LesionRule = DEFAULT_RULE
) -> LesionCounts:
    """Compare a mask with a reference lesion by lesion.

    Parameters
    ----------
    mask, reference : numpy.ndarray
        Shape (I, J, K), equal; non-zero is inside.
    voxel_ml : float
        Volume of a voxel in millilitres.
    rule : LesionRule
        When a lesion is hit and a finding true.

    Raises
    ------
    InputError
        GRID_MISMATCH when the shapes differ.
    """
    same_grid(mask, reference, "mask and reference")
    lesions, n_lesions = components(reference, rule.connectivity)
    findings, n_findings = components(mask, rule.connectivity)
    lesion_sizes, hit = _covered(lesions, n_lesions, mask, rule)
    finding_sizes, true = _covered(findings, n_findings, reference, rule)
    asked = lesion_sizes * voxel_ml >= rule.minimum_reference_ml
    return LesionCounts(
        hit=int(np.count_nonzero(hit & asked)),
        missed=int(np.count_nonzero(~hit & asked)),
        true_findings=int(np.count_nonzero(true)),
        false_findings=int(np.count_nonzero(~true)),
        false_ml=float(finding_sizes[~true].sum() * voxel_ml),
    )


@dataclass(frozen=True)
class Lesions:
    """The lesions of a reference, largest first.

    Attributes
    ----------
    labels : numpy.ndarray
        int32, shape (I, J, K): 1 for the largest lesion; 0 outside and in specks that are not asked for.
    volume_ml : numpy.ndarray
        Shape (N,).
    """

    labels: np.ndarray
    volume_ml: np.ndarray

    @property
    def count(self) -> int:
        return len(self.volume_ml)


def split_lesions(reference: np.ndarray, voxel_ml: float, rule: LesionRule = DEFAULT_RULE) -> Lesions:
    """Number the lesions of a reference of at least the rule's least volume, largest first (ties: first voxel)."""
    labels, count = components(reference, rule.connectivity)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] * voxel_ml >= rule.minimum_reference_ml]
    number = np.zeros(count + 1, dtype=np.int32)
    number[order + 1] = np.arange(1, len(order) + 1)
    return Lesions(number[labels], sizes[order] * voxel_ml)


def lesion_contrast(voxels: np.ndarray, lesions: Lesions, brain_mask: np.ndarray) -> list[dict[str, float]]:
    """Say how each lesion stands out from the shell of brain around it.

    The shell is what two dilations (26 neighbours) add, in the brain and outside every lesion: near enough that a
    bias field hardly matters, so that the scan's own voxels serve.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K), the scan in any unit.
    lesions : Lesions
    brain_mask : numpy.ndarray
        Same shape; non-zero is inside.

    Returns
    -------
    list of dict
        A lesion each: ``contrast_to_noise`` |difference of the means| / standard deviation of the shell, and
        ``relative_difference`` (mean inside - mean of the shell) / mean of the shell. NaN without a shell.
    """
    from scipy import ndimage

    found = []
    for number, box in enumerate(ndimage.find_objects(lesions.labels), start=1):
        wide = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box)
        inside = lesions.labels[wide] == number
        near = ndimage.binary_dilation(inside, np.ones((3, 3, 3)), iterations=2)
        shell = voxels[wide][near & (lesions.labels[wide] == 0) & (brain_mask[wide] != 0)].astype(np.float64)
        middle, around = float(voxels[wide][inside].mean(dtype=np.float64)), float("nan")
        spread = float("nan")
        if shell.size >= 8:
            around, spread = float(shell.mean()), float(shell.std())
        found.append(
            {
                "contrast_to_noise": abs(middle - around) / spread if spread > 0 else float("nan"),
                "relative_difference": (middle - around) / around if around > 0 else float("nan"),
            }
        )
    return found


def lesion_records(
    map: np.ndarray, mask: np.ndarray, lesions: Lesions, rule: LesionRule = DEFAULT_RULE
) -> list[dict[str, float | int]]:
    """Say of each lesion whether it was found, its ``overlap`` with the mask (share of its volume), ``peak_z`` and
    ``mean_z`` of the map in it."""
    if lesions.count == 0:
        return []
    from scipy import ndimage

    numbers = np.arange(1, lesions.count + 1)
    where = lesions.labels > 0
    ids = lesions.labels[where]
    sizes = np.bincount(ids, minlength=lesions.count + 1)[1:]
    overlap = np.bincount(ids[mask[where] != 0], minlength=lesions.count + 1)[1:]
    found = is_covered(overlap, sizes, rule)
    values = map[where].astype(np.float64)
    peak, mean = ndimage.maximum(values, ids, numbers), ndimage.mean(values, ids, numbers)
    return [
        {
            "found": int(found[n]),
            "overlap": float(overlap[n] / sizes[n]),
            "peak_z": float(peak[n]),
            "mean_z": float(mean[n]),
        }
        for n in range(lesions.count)
    ]
