"""What is asked of a benchmark run, and the answers: one row an effect, one row a group, and sentences for the rest.

For every model and operating point the same questions are asked: whether the healthy false-positive rate differs
between scanners and sites and changes with age and sex; whether Dice differs between scanners; which lesions are found.
A question that a cohort cannot answer (one scanner, no ages, too few subjects) is answered by a sentence that says so.
All tests of one model at one operating point form a family, and p values are corrected within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from UADBenchLib.bias.statistics import (
    RESAMPLES,
    Bootstrap,
    CannotFitError,
    Term,
    TooFewError,
    corrected,
    factor_term,
    fit_logit,
    interaction_term,
    numeric_term,
    rank_test,
)
from UADBenchLib.bias.tables import Tables
from UADBenchLib.scan import Progress

ALPHA = 0.05
SMALL_CELL = 10
"""Groups with fewer subjects are marked: their means and intervals are unsteady."""

LEAST_GROUP = 3
"""Groups with fewer subjects take part in no test."""

LEAST_KNOWN = 0.5
"""A covariate that is known for a smaller share of the rows is left out, so that the rows are not."""

PLACES = ("scanner", "site")
FALSE_POSITIVES, DICE, DETECTION = "healthy false-positive rate", "Dice", "lesion found"


@dataclass(frozen=True)
class Effect:
    """One effect size. Estimates are 0 without an effect, except epsilon squared, which then is about ``by_chance``.

    ``level`` names the group of a factor; effects of levels are descriptions that belong to their factor's test and
    have no p value of their own. ``ratio`` is the exponential of a log odds ratio; for false-positive rates, which are
    small, it is the ratio of rates.
    """

    model: str
    operating_point: str
    outcome: str
    term: str
    level: str
    measure: str
    unit: str
    adjusted_for: str
    estimate: float
    low: float
    high: float
    ratio: float
    by_chance: float
    p: float
    p_holm: float
    q: float
    rows: int
    subjects: int
    small: bool


EFFECT_COLUMNS = tuple(Effect.__dataclass_fields__)


@dataclass(frozen=True)
class Answers:
    """All answers for one model at one operating point."""

    model: str
    operating_point: str
    effects: list[Effect]
    notes: list[str]

    def found(self) -> list[Effect]:
        """Tests that stay below 5 % after Holm's correction."""
        return [effect for effect in self.effects if effect.p_holm < ALPHA]


def analyse(
    tables: Tables, seed: int = 0, resamples: int = RESAMPLES, progress: Progress | None = None
) -> list[Answers]:
    """Ask all questions of all models and operating points.

    Parameters
    ----------
    tables : Tables
    seed : int
        Of the bootstrap; every model and operating point draws from the same start, so that adding a model to a run
        changes no other model's intervals.
    resamples : int
        Of subjects.
    """
    answers, pairs = [], tables.pairs()
    for pair in pairs:
        bootstrap = Bootstrap(np.random.default_rng(seed), resamples)
        answers.append(_Inquiry(tables.of(*pair), *pair, bootstrap).answer())
        if progress is not None:
            progress("testing", len(answers) / len(pairs))
    return answers


def subset(table: pd.DataFrame, label: str, outcome: str) -> pd.DataFrame:
    """Rows of one label whose outcome is defined."""
    return table[(table["label"] == label) & table[outcome].notna()]


class _Inquiry:
    """The questions to one model at one operating point."""

    def __init__(self, tables: Tables, model: str, operating_point: str, bootstrap: Bootstrap) -> None:
        self.model, self.operating_point, self.bootstrap = model, operating_point, bootstrap
        self.healthy = subset(tables.scans, "healthy", "healthy_fpr")
        self.ill = subset(tables.scans, "lesion", "dice")
        self.lesions = tables.lesions[tables.lesions["found"].notna()]
        self.effects: list[Effect] = []
        self.notes: list[str] = []

    def answer(self) -> Answers:
        for outcome, column, table in (
            (FALSE_POSITIVES, "healthy_fpr", self.healthy),
            (DICE, "dice", self.ill),
        ):
            if table.empty:
                kind = "healthy scan" if column == "healthy_fpr" else "lesion scan with a reference"
                self.notes.append(f"{outcome}: the run has no {kind}")
                continue
            for grouping in self._places(table, outcome):
                self._ranks(table, column, outcome, grouping)
        self._models()
        return Answers(self.model, self.operating_point, self._corrected(), self.notes)

    def _models(self) -> None:
        place = self._place(self.healthy)
        if len(self.healthy):
            self._logit(self.healthy, "healthy_fpr", FALSE_POSITIVES, (place, "age", "sex"))
            self._interaction(self.healthy, place)
        if len(self.ill):
            self._logit(self.ill, "dice", DICE, (self._place(self.ill), "log_volume", "lesion_type"))
        if len(self.lesions):
            self._logit(self.lesions, "found", DETECTION, ("log_volume", "contrast_to_noise", "lesion_type"))
        else:
            self.notes.append(f"{DETECTION}: the run has no reference lesion")

    def _places(self, table: pd.DataFrame, outcome: str) -> list[str]:
        """Scanner and site as far as they have groups to compare, without one that only repeats the other."""
        usable = [name for name in PLACES if len(_groups_in(table, name)) > 1]
        for name in PLACES:
            if name not in usable:
                self.notes.append(f"{outcome}: {_why_not(table, name)}, so that {name}s cannot be compared")
        if len(usable) == 2 and _same_partition(table["scanner"], table["site"]):
            self.notes.append(f"{outcome}: scanner and site are the same division of these scans; scanners are shown")
            return ["scanner"]
        return usable

    def _place(self, table: pd.DataFrame) -> str:
        """What models adjust for: scanner, or site where scanners cannot be compared."""
        return "site" if len(_groups_in(table, "scanner")) < 2 < 1 + len(_groups_in(table, "site")) else "scanner"

    def _ranks(self, table: pd.DataFrame, column: str, outcome: str, grouping: str) -> None:
        known = table[table[grouping].isin(_groups_in(table, grouping))]
        # One value a subject and group: the test takes values as independent.
        once = known.groupby(["subject", grouping], as_index=False, sort=True)[column].mean()
        try:
            test = rank_test(once[column].to_numpy(), once[grouping], once["subject"], self.bootstrap)
        except CannotFitError as reason:
            self.notes.append(f"{outcome} by {grouping}: {reason}")
            return
        subjects, common = once["subject"].nunique(), {"outcome": outcome, "term": grouping}
        sizes = once.groupby(grouping)["subject"].nunique()
        self._add(
            **common, measure="epsilon squared", estimate=test.epsilon_squared, by_chance=test.by_chance, p=test.p,
            rows=len(once), subjects=subjects, small=bool(sizes.min() < SMALL_CELL),
        )  # fmt: skip
        for name, delta in test.delta.items():
            self._add(
                **common, level=name, measure="Cliff's delta", unit="against all others", estimate=delta,
                low=test.low[name], high=test.high[name], rows=int((once[grouping] == name).sum()),
                subjects=int(sizes[name]), small=bool(sizes[name] < SMALL_CELL),
            )  # fmt: skip

    def _logit(self, table: pd.DataFrame, column: str, outcome: str, names: Sequence[str]) -> None:
        rows, terms = self._terms(table, outcome, names)
        if terms:
            self._fit(rows, column, outcome, terms)

    def _fit(self, rows: pd.DataFrame, column: str, outcome: str, terms: list[Term]) -> None:
        """Fit terms adjusted for one another, or each alone where there are too few subjects for all of them."""
        try:
            fit = fit_logit(rows[column].to_numpy(float), terms, rows["subject"], self.bootstrap)
        except CannotFitError as reason:
            alone = isinstance(reason, TooFewError) and len(terms) > 1
            more = "; each is tested alone, unadjusted" if alone else ""
            self.notes.append(f"{outcome}, model: {_in_words(reason)}{more}")
            for term in terms if alone else ():
                self._fit(rows, column, outcome, [term])
            return
        for term in terms:
            self._add_term(rows, outcome, term, fit, [other.name for other in terms if other is not term])

    def _interaction(self, table: pd.DataFrame, place: str) -> None:
        """Whether the change with age differs between two sexes, with place as it is."""
        rows, terms = self._terms(table, "", (place, "age", "sex"), quiet=True)
        by_name = {term.name: term for term in terms}
        if not {"age", "sex"} <= set(by_name) or by_name["sex"].columns.shape[1] != 1:
            return
        product = interaction_term(by_name["age"], by_name["sex"])
        try:
            fit = fit_logit(rows["healthy_fpr"].to_numpy(float), [*terms, product], rows["subject"], self.bootstrap)
        except CannotFitError as reason:
            self.notes.append(f"{FALSE_POSITIVES}, model: {_in_words(reason)}")
            return
        self._add_term(rows, FALSE_POSITIVES, product, fit, list(by_name))

    def _add_term(self, rows: pd.DataFrame, outcome: str, term: Term, fit: Any, others: list[str]) -> None:
        common = {
            "outcome": outcome, "term": term.name, "measure": "log odds ratio", "adjusted_for": ", ".join(others),
        }  # fmt: skip
        if "" not in term.levels:  # a factor: its test, then what each level is against the mean of all
            self._add(**{**common, "measure": "Wald test"}, p=fit.p[term.name], rows=fit.rows, subjects=fit.subjects)
        for level in term.levels:
            key = (term.name, level)
            inside = rows if not level else rows[rows[term.name] == level]
            subjects = int(inside["subject"].nunique())
            self._add(
                **common, level=level, unit=term.unit,
                estimate=fit.estimates[key], low=fit.low[key], high=fit.high[key],
                ratio=float(np.exp(np.clip(fit.estimates[key], -50, 50))), p=np.nan if level else fit.p[term.name],
                rows=len(inside), subjects=subjects, small=subjects < SMALL_CELL,
            )  # fmt: skip

    def _terms(
        self, table: pd.DataFrame, outcome: str, names: Sequence[str], quiet: bool = False
    ) -> tuple[pd.DataFrame, list[Term]]:
        """The rows in which all usable covariates are known, and those covariates as terms."""
        notes: list[str] = []
        kept, rows = [], table
        for name in names:
            if name not in table or table[name].notna().mean() < LEAST_KNOWN or not _varies(table, name):
                if name not in PLACES:  # of which rank tests have said so already
                    notes.append(f"{outcome}: {_why_not(table, name)}; the model goes without it")
                continue
            kept.append(name)
            allowed = rows[name].isin(_groups_in(table, name)) if _is_factor(name) else rows[name].notna()
            rows = rows[allowed]
        # Leaving out rows for one covariate may have left another without anything to compare.
        kept = [name for name in kept if _varies(rows, name)]
        if kept and len(rows) < len(table):
            names = ", ".join(LABELS.get(name, name) for name in kept)
            notes.append(
                f"{outcome}, model: {len(table) - len(rows)} of {len(table)} rows are left out, where {names} are not "
                f"all known or a group has fewer than {LEAST_GROUP} subjects"
            )
        if not quiet:
            self.notes += notes
        return rows, [_term(rows, name) for name in kept]

    def _add(self, **values: Any) -> None:
        given = {"level": "", "unit": "", "adjusted_for": "", "small": False, **values}
        numbers = dict.fromkeys(("estimate", "low", "high", "ratio", "by_chance", "p", "p_holm", "q"), np.nan)
        self.effects.append(Effect(self.model, self.operating_point, **{**numbers, **given}))

    def _corrected(self) -> list[Effect]:
        tests = [number for number, effect in enumerate(self.effects) if np.isfinite(effect.p)]
        holm, false_discovery = corrected([self.effects[number].p for number in tests])
        result = list(self.effects)
        for number, p_holm, q in zip(tests, holm, false_discovery, strict=True):
            result[number] = replace(result[number], p_holm=float(p_holm), q=float(q))
        return result


UNITS = {"age": ("per decade", 10.0), "log_volume": ("per doubling of the volume", 1.0)}
LABELS = {
    "log_volume": "lesion volume", "contrast_to_noise": "lesion contrast", "lesion_type": "lesion type",
    "age_band": "age", "volume_quarter": "lesion volume", "contrast_quarter": "lesion contrast",
    "age x sex": "age and sex",
}  # fmt: skip
"""How reports name columns; columns that are not listed are named as they are."""


def _is_factor(name: str) -> bool:
    return name in ("scanner", "site", "sex", "lesion_type")


def _term(rows: pd.DataFrame, name: str) -> Term:
    if _is_factor(name):
        return factor_term(name, rows[name].tolist())
    values = rows[name].to_numpy(float)
    unit, size = UNITS.get(name, ("per standard deviation", float(values.std())))
    return numeric_term(name, values / size, unit)


def _groups_in(table: pd.DataFrame, name: str) -> list[str]:
    """Groups with enough subjects to take part in a test."""
    if name not in table:
        return []
    sizes = table.groupby(name)["subject"].nunique()
    return sorted(sizes.index[sizes >= LEAST_GROUP])


def _varies(table: pd.DataFrame, name: str) -> bool:
    return len(_groups_in(table, name)) > 1 if _is_factor(name) else table[name].std() > 0


def _why_not(table: pd.DataFrame, name: str) -> str:
    """Why a covariate cannot be used, as the beginning of a sentence."""
    label = LABELS.get(name, name)
    known = table[name].dropna() if name in table else pd.Series(dtype=object)
    if known.empty:
        return f"no {label} is known"
    if known.nunique() == 1:
        return f"all scans with a known {label} have the same ({known.iloc[0]})"
    if known.size < LEAST_KNOWN * len(table):
        return f"{label} is known for {known.size} of {len(table)} rows only"
    return f"fewer than two groups of {label} have {LEAST_GROUP} subjects or more"


def _in_words(reason: CannotFitError) -> str:
    """Why a model could not be fitted, with covariates named as reports name them."""
    text = str(reason)
    for name, label in LABELS.items():
        text = text.replace(name, label)
    return text


def _same_partition(first: pd.Series, second: pd.Series) -> bool:
    pairs = pd.DataFrame({"first": first, "second": second}).dropna().drop_duplicates()
    return pairs["first"].is_unique and pairs["second"].is_unique


def effect_rows(answers: Sequence[Answers]) -> list[dict[str, Any]]:
    """All effects as rows of a table."""
    return [asdict(effect) for one in answers for effect in one.effects]
