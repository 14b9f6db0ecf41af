"""What the model and operating point choices offer: the catalogue's entries, put into words and combinations.

Nothing is loaded; the catalogue reads metadata files only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from UADBenchLib.bundles import catalogue

DEFAULT_POINT = "fpr-1pct"


@dataclass(frozen=True)
class Choice:
    """One entry of the model choice: its label, and the ids of one model or of several that give a
    consensus.
    """

    label: str
    ids: tuple[str, ...]
    contrast: str


def usable_models() -> list[dict[str, Any]]:
    """Return the metadata of the models that can be used; a bundle that cannot be read is left out."""
    return [entry for entry in catalogue.list_models() if "broken" not in entry]


def model_choices(models: list[dict[str, Any]]) -> list[Choice]:
    """Return each model, and for a contrast with several models their consensus, best first within a
    contrast.
    """
    rank = {name: number for number, name in enumerate(catalogue.PREFERENCE)}
    choices: list[Choice] = []
    for contrast in sorted({entry["contrast"] for entry in models}):
        fitting = [entry for entry in models if entry["contrast"] == contrast]
        fitting.sort(key=lambda entry: (rank.get(entry["method"], len(rank)), entry["id"]))
        for entry in fitting:
            method = entry["method"].replace("_", " ")
            choices.append(Choice(f"{contrast}: {method} ({entry['preset']})", (entry["id"],), contrast))
        if len(fitting) > 1:
            ids = tuple(entry["id"] for entry in fitting)
            choices.append(Choice(f"{contrast}: all {len(ids)} models and their consensus", ids, contrast))
    return choices


def operating_points(models: list[dict[str, Any]], ids: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return name and label of the operating points that all of the named models have, the default first."""
    chosen = [entry.get("operating_points", {}) for entry in models if entry["id"] in ids]
    if not chosen:
        return []
    common = set(chosen[0]).intersection(*chosen[1:])
    points = []
    for name in sorted(common, key=lambda name: (name != DEFAULT_POINT, name)):
        label = f"{name} (z ≥ {chosen[0][name]['threshold']:.2f})" if len(chosen) == 1 else name
        points.append((name, label))
    return points
