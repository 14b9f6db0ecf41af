"""What a metric means when there is nothing to count, as data with a name and a version.

A scan without a lesion in its reference has no Dice worth averaging: scoring it 1 when the mask is empty and
0 otherwise mixes a yes-or-no question into a mean of overlaps, and leaving out only the clean ones biases the
mean downwards. Under the default policy every overlap metric of such a scan is undefined (NaN) and left out
of means, whose ``n`` says how many scans counted; what was flagged there is reported as false-positive count
and volume instead. It is not where thresholds or matching rules live.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EmptyCasePolicy:
    """Values of metrics in the cases where their formula is 0/0 or says nothing.

    Attributes
    ----------
    name, version : str, int
        Printed beside every number; a change of any value below needs a new version.
    both_empty_dice : float
        Dice when neither mask nor reference has a voxel.
    false_alarm_dice : float
        Dice when the reference is empty and the mask is not.
    missed_dice : float
        Dice when the reference has voxels and the mask is empty.
    no_positive_average_precision : float
        Average precision when the reference has no voxel inside the brain mask.
    no_lesion_recall : float
        Lesion-wise recall and F1 when the reference has no lesion of the least volume.
    no_finding_precision : float
        Lesion-wise precision when nothing was found.
    no_surface_distance : float
        Distance between the surfaces when mask or reference is empty.
    """

    name: str = "lesion-scans-only"
    version: int = 1
    both_empty_dice: float = math.nan
    false_alarm_dice: float = math.nan
    missed_dice: float = 0.0
    no_positive_average_precision: float = math.nan
    no_lesion_recall: float = math.nan
    no_finding_precision: float = math.nan
    no_surface_distance: float = math.nan

    def sentence(self) -> str:
        """Return the policy as one sentence for reports."""

        def value(number: float) -> str:
            return "undefined" if math.isnan(number) else f"{number:g}"

        return (
            f"Empty-case policy {self.name} v{self.version}: with an empty reference, Dice is "
            f"{value(self.both_empty_dice)} if nothing was flagged and {value(self.false_alarm_dice)} "
            f"otherwise, average precision is {value(self.no_positive_average_precision)} and lesion recall "
            f"{value(self.no_lesion_recall)}; a reference that was missed entirely has Dice "
            f"{value(self.missed_dice)}. Lesion precision is {value(self.no_finding_precision)} if nothing was "
            f"found, and surface distance {value(self.no_surface_distance)} if mask or reference is empty. "
            f"Undefined values are left out of means."
        )

    def record(self) -> dict[str, Any]:
        """Return the policy as a JSON-serialisable dictionary (NaN as None)."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }


DEFAULT_POLICY = EmptyCasePolicy()


def mean_of_defined(values: Iterable[float]) -> tuple[float, int]:
    """Return the mean of the values that are not NaN and how many those are; (NaN, 0) when there is none."""
    defined = [float(value) for value in values if not math.isnan(value)]
    return (math.fsum(defined) / len(defined), len(defined)) if defined else (math.nan, 0)
