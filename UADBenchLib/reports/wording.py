"""How results of the bias analysis are put into words, the same on the command line and in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from UADBenchLib.bias.analysis import LABELS

Row = Mapping[str, Any]


def label_of(name: str) -> str:
    """A column's name in words."""
    return LABELS.get(name, name)


def effect_name(effect: Row) -> str:
    """What an odds ratio compares, in a few words: ``scanner B``, ``age, per decade``, ``sex, F against M``."""
    term, level, unit = label_of(effect["term"]), effect["level"], effect["unit"]
    if not level:
        return f"{term}, {_short(unit)}"
    return f"{term} {level}" if "mean" in unit else f"{term}, {level} {unit}"


def _short(unit: str) -> str:
    return {"per doubling of the volume": "per doubling", "per standard deviation": "per SD"}.get(unit, unit)


def tests_of(bias: Row) -> list[dict[str, Any]]:
    """One row a test: model, operating point, outcome, ``by`` what and ``how``, p, n, and whether it was ``found``;
    ``effects`` are pairs of texts, a size and its interval."""
    rows = []
    for family in bias["families"]:
        own = [e for e in bias["effects"] if all(e[key] == family[key] for key in ("model", "operating_point"))]
        for whole in own:
            if whole["p_holm"] is None or whole["p_holm"] != whole["p_holm"]:
                continue  # a level, which belongs to its factor's test
            ranks = whole["measure"] == "epsilon squared"
            measure = "Cliff's delta" if ranks else "log odds ratio"
            same = [e for e in own if all(e[key] == whole[key] for key in ("outcome", "term"))]
            parts = sorted((e for e in same if e["measure"] == measure), key=lambda e: -e["estimate"])
            adjusted = ", ".join(label_of(name) for name in whole["adjusted_for"].split(", ") if name)
            rows.append(
                {
                    **{key: whole[key] for key in ("model", "operating_point", "outcome", "subjects", "rows")},
                    "by": label_of(whole["term"]),
                    "how": "ranks" if ranks else f"adjusted for {adjusted}" if adjusted else "unadjusted",
                    "effects": _ranks(whole, parts) if ranks else _odds(parts),
                    "p": "p < 0.001" if whole["p_holm"] < 0.001 else f"p = {whole['p_holm']:.3f}",
                    "found": whole["p_holm"] < bias["alpha"],
                    "small": whole["small"] or any(part["small"] for part in parts),
                }
            )
    return rows


def _ranks(whole: Row, levels: Sequence[Row]) -> list[tuple[str, str]]:
    """Epsilon squared with its value by chance, and the groups that stand out most with their intervals."""
    ends = [(f"{e['level']} δ {_signed(e['estimate'])}", _span(e, _signed)) for e in (levels[0], levels[-1])]
    return [(f"ε² {whole['estimate']:.2f}", f"by chance {whole['by_chance']:.2f}"), *ends]


def _odds(effects: Sequence[Row]) -> list[tuple[str, str]]:
    """The odds ratio of a slope or of two groups, or of the groups that stand out most; each with its interval."""

    def ratio(value: float) -> str:
        odds = np.exp(np.clip(value, -20, 20))
        return ">1000" if odds > 1000 else "<0.01" if odds < 0.01 else f"{odds:.2f}"

    texts = []
    for effect in effects if len(effects) == 1 else (effects[0], effects[-1]):
        unit = "" if "mean" in effect["unit"] else _short(effect["unit"])
        words = [effect["level"], f"× {ratio(effect['estimate'])}", unit]
        texts.append((" ".join(word for word in words if word), _span(effect, ratio)))
    return texts


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _span(effect: Row, form: Callable[[float], str]) -> str:
    if effect["low"] is None or not np.isfinite(effect["low"]):
        return "no interval"
    return f"{form(effect['low'])} to {form(effect['high'])}"


def notes_of(bias: Row, operating_point: str) -> list[tuple[str, str]]:
    """What could not be asked, each sentence once, with the models that it is said of ("" for all)."""
    families = [family for family in bias["families"] if family["operating_point"] == operating_point]
    said: dict[str, list[str]] = {}
    for family in families:
        for note in family["notes"]:
            said.setdefault(note, []).append(family["model"])
    return [(note, "" if len(models) == len(families) else ", ".join(models)) for note, models in said.items()]
