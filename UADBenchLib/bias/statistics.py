"""The statistics that the bias analysis is made of: rank tests, logistic estimating equations, cluster bootstrap.

Estimates and tests come from SciPy and statsmodels. What is written out here is the bootstrap by subject, for which
thousands of refits are done at once by giving each subject a weight; a test holds its estimates against statsmodels.
What is asked of which table is ``analysis``'s matter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
SUBJECTS_PER_PARAMETER = 5
"""Fewest subjects for each coefficient; below it robust standard errors are too small to be trusted."""

LEAST_OUTCOMES = 5
"""Fewest events, and fewest non-events, for each slope of a yes-or-no outcome."""


@dataclass(frozen=True)
class Bootstrap:
    """Resampling of whole subjects: how many draws, and what draws them."""

    generator: np.random.Generator
    resamples: int = RESAMPLES

    def weights(self, clusters: np.ndarray) -> np.ndarray:
        """How often each row is drawn, shape (resamples, rows); ``clusters`` (rows,) numbers the rows' subjects."""
        count = int(clusters.max()) + 1
        drawn = self.generator.multinomial(count, np.full(count, 1 / count), size=self.resamples)
        return drawn[:, clusters].astype(float)


class CannotFitError(ValueError):
    """A model that the data do not support; the message says why in a sentence."""


class TooFewError(CannotFitError):
    """There are too few subjects or outcomes for so many covariates; fewer of them may do."""


@dataclass(frozen=True)
class Term:
    """A covariate as columns of a design matrix.

    Attributes
    ----------
    name : str
        As the tables name it.
    unit : str
        What one unit of a numeric covariate is, for example ``"per decade"``, or what a level is compared with.
    columns : numpy.ndarray
        Shape (rows, q), centred; a factor with q + 1 levels is coded so that its effects sum to zero.
    levels : dict
        For each effect that is reported, the weights (q,) that make it of the columns' coefficients.
    """

    name: str
    unit: str
    columns: np.ndarray
    levels: Mapping[str, np.ndarray]


def numeric_term(name: str, values: np.ndarray, unit: str) -> Term:
    """A slope over ``values`` (rows,), which are centred on their mean."""
    values = np.asarray(values, dtype=float)
    return Term(name, unit, (values - values.mean())[:, None], {"": np.ones(1)})


def factor_term(name: str, values: Sequence[str]) -> Term:
    """One effect a level, each against the mean of all levels; of two levels, the first against the second."""
    levels = sorted(set(values))
    coding = np.vstack([np.eye(len(levels) - 1), -np.ones(len(levels) - 1)])
    rows = np.array([levels.index(value) for value in values])
    if len(levels) == 2:
        return Term(name, f"against {levels[1]}", coding[rows], {levels[0]: np.array([2.0])})
    return Term(name, "against the mean of all groups", coding[rows], dict(zip(levels, coding, strict=True)))


def interaction_term(slope: Term, factor: Term) -> Term:
    """How much a slope differs between the two levels of a factor."""
    (level,) = factor.levels
    unit = f"{slope.unit}, {level} {factor.unit}"
    return Term(f"{slope.name} x {factor.name}", unit, slope.columns * factor.columns, {"": np.array([2.0])})


@dataclass(frozen=True)
class LogitFit:
    """A logistic model with standard errors that are robust to scans of one subject being alike.

    Attributes
    ----------
    estimates, low, high : dict
        By (term, level): log odds ratio and its interval from the cluster bootstrap.
    p : dict
        By term: Wald test with ``subjects - parameters`` degrees of freedom.
    rows, subjects : int
    """

    estimates: Mapping[tuple[str, str], float]
    low: Mapping[tuple[str, str], float]
    high: Mapping[tuple[str, str], float]
    p: Mapping[str, float]
    rows: int
    subjects: int


def fit_logit(outcome: np.ndarray, terms: Sequence[Term], subjects: Sequence[str], bootstrap: Bootstrap) -> LogitFit:
    """Fit logit(outcome) by generalised estimating equations, clustered by subject.

    The outcome is 0/1 or a share; for shares this is the fractional logit of Papke and Wooldridge (1996), which needs
    no transformation and takes zeros as they are. Working independence; bias-reduced covariance (Mancl and DeRouen
    2001), since cohorts are small.

    Parameters
    ----------
    outcome : numpy.ndarray
        Shape (rows,), in [0, 1].
    terms : sequence of Term
    subjects : sequence of str
        Length rows.
    bootstrap : Bootstrap

    Raises
    ------
    CannotFitError
        When terms cannot be told apart, or there are too few subjects or outcomes, or one term separates the outcomes.
    """
    import statsmodels.api as sm
    from scipy import stats

    clusters = np.unique(np.asarray(subjects), return_inverse=True)[1]
    design = np.column_stack([np.ones(len(outcome)), *(term.columns for term in terms)])
    _refuse_unsupported(np.asarray(outcome, float), design, terms, int(clusters.max()) + 1)
    family = sm.families.Binomial()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sm.GEE(outcome, design, groups=clusters, family=family, cov_struct=sm.cov_struct.Independence())
        result = model.fit(cov_type="bias_reduced", maxiter=100)
    if not np.all(np.isfinite(result.bse)) or np.abs(result.params[1:] * design[:, 1:].std(axis=0)).max() > 15:
        raise CannotFitError("a covariate separates the outcomes completely, so that the model has no finite estimate")
    freedom = clusters.max() + 1 - design.shape[1]
    draws = weighted_logit(outcome, design, bootstrap.weights(clusters))
    estimates, low, high, p = {}, {}, {}, {}
    first = 1
    for term in terms:
        part = slice(first, first + term.columns.shape[1])
        wald = result.wald_test(np.eye(design.shape[1])[part], scalar=True, use_f=False)
        width = term.columns.shape[1]
        p[term.name] = float(stats.f.sf(float(wald.statistic) / width, width, freedom))
        for level, weights in term.levels.items():
            key = (term.name, level)
            estimates[key] = float(weights @ result.params[part])
            low[key], high[key] = interval(draws[:, part] @ weights, clusters.max() + 1)
        first = part.stop
    return LogitFit(estimates, low, high, p, len(outcome), int(clusters.max()) + 1)


def _refuse_unsupported(outcome: np.ndarray, design: np.ndarray, terms: Sequence[Term], subjects: int) -> None:
    names = ", ".join(term.name for term in terms)
    if np.ptp(outcome) == 0:
        raise CannotFitError(f"the outcome is {outcome[0]:g} in all {len(outcome)} rows")
    if subjects < SUBJECTS_PER_PARAMETER * design.shape[1]:
        raise TooFewError(
            f"{subjects} subjects are too few for {names}; {SUBJECTS_PER_PARAMETER * design.shape[1]} are the least"
        )
    if np.linalg.matrix_rank(design / np.maximum(np.abs(design).max(axis=0), 1e-12)) < design.shape[1]:
        raise CannotFitError(f"{names} cannot be told apart: one follows from the others in these scans")
    if set(np.unique(outcome)) == {0.0, 1.0}:
        fewer = int(min(outcome.sum(), (1 - outcome).sum()))
        if fewer < LEAST_OUTCOMES * (design.shape[1] - 1):
            raise TooFewError(
                f"the rarer outcome occurs {fewer} times, too few for {names}; "
                f"{LEAST_OUTCOMES * (design.shape[1] - 1)} are the least"
            )


def weighted_logit(outcome: np.ndarray, design: np.ndarray, weights: np.ndarray, steps: int = 25) -> np.ndarray:
    """Coefficients (draws, parameters) of a logistic model for every row of ``weights`` (draws, rows), by Newton steps.

    Steps are damped by a millionth of the curvature and limited in length, so that a resample in which a covariate
    happens to separate the outcomes gives a large coefficient and not an error.
    """
    from scipy.special import expit

    scale = np.maximum(design.std(axis=0), 1e-12)
    scale[0] = 1.0
    scaled = design / scale
    beta = np.zeros((len(weights), design.shape[1]))
    mean = np.clip(weights @ outcome / weights.sum(axis=1), 1e-9, 1 - 1e-9)
    beta[:, 0] = np.log(mean / (1 - mean))
    damping = 1e-6 * np.eye(design.shape[1])
    squares = (scaled[:, :, None] * scaled[:, None, :]).reshape(len(design), -1)
    for _ in range(steps):
        fitted = expit(np.clip(beta @ scaled.T, -30, 30))
        slope = (weights * (outcome - fitted)) @ scaled
        curvature = ((weights * fitted * (1 - fitted)) @ squares).reshape(-1, *damping.shape)
        size = np.einsum("bii->b", curvature)[:, None, None] / len(damping)
        change = np.linalg.solve(curvature + np.maximum(size, 1e-9) * damping, slope[:, :, None])[:, :, 0]
        change = np.clip(change, -3, 3)
        beta += change
        if np.abs(change).max() < 1e-8:
            break
    return beta / scale


def interval(draws: np.ndarray, clusters: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of bootstrap draws (resamples,), widened for few clusters (Hesterberg 2015, section 5.3).

    Draws that are NaN, from resamples without a group, do not count; (NaN, NaN) when most are.
    """
    from scipy import stats

    asked, draws = len(draws), draws[np.isfinite(draws)]
    if clusters < 3 or len(draws) < asked / 2:
        return np.nan, np.nan
    tail = stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf((1 - confidence) / 2, clusters - 1))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, subjects: Sequence[str], bootstrap: Bootstrap) -> tuple[float, float, float]:
    """Mean of ``values`` (rows,) with its interval from the cluster bootstrap."""
    clusters = np.unique(np.asarray(subjects), return_inverse=True)[1]
    weights = bootstrap.weights(clusters)
    return float(np.mean(values)), *interval(weights @ values / weights.sum(axis=1), int(clusters.max()) + 1)


@dataclass(frozen=True)
class RankTest:
    """Kruskal-Wallis test with its effect sizes.

    Attributes
    ----------
    p, epsilon_squared : float
        Epsilon squared (Tomczak and Tomczak 2014) is the share of the ranks' variance that lies between groups, in
        [0, 1]; without any effect it is about (groups - 1) / (rows - 1), not zero.
    by_chance : float
        That value.
    delta, low, high : dict
        By group: Cliff's delta against all other groups, in [-1, 1], above 0 when the group's values tend to be higher.
    """

    p: float
    epsilon_squared: float
    by_chance: float
    delta: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]


def rank_test(values: np.ndarray, groups: Sequence[str], subjects: Sequence[str], bootstrap: Bootstrap) -> RankTest:
    """Compare groups by ranks; give one value a subject and group, since the test takes values as independent.

    Raises
    ------
    CannotFitError
        With fewer than two groups, or when all values are equal.
    """
    from scipy import stats

    groups = np.asarray(groups)
    names = sorted(set(groups.tolist()))
    if len(names) < 2:
        raise CannotFitError(f"all values come from one group ({names[0] if names else 'none'})")
    if np.ptp(values) == 0:
        raise CannotFitError(f"the outcome is {values[0]:g} in all {len(values)} rows")
    statistic, p = stats.kruskal(*(values[groups == name] for name in names))
    clusters = np.unique(np.asarray(subjects), return_inverse=True)[1]
    weights = bootstrap.weights(clusters).astype(np.float32)
    order = np.sign(values[:, None] - values[None, :]).astype(np.float32)
    delta, low, high = {}, {}, {}
    for name in names:
        inside = groups == name
        part = order[np.ix_(inside, ~inside)]
        delta[name] = float(part.mean())
        draws = weighted_mean_of_pairs(part, weights[:, inside], weights[:, ~inside])
        low[name], high[name] = interval(draws, int(clusters.max()) + 1)
    return RankTest(
        float(p), float(statistic / (len(values) - 1)), (len(names) - 1) / (len(values) - 1), delta, low, high
    )


def weighted_mean_of_pairs(pairs: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean of ``pairs`` (n, m) for every draw of weights of its rows (draws, n) and columns (draws, m); NaN where a
    draw has no row or no column."""
    with np.errstate(invalid="ignore"):
        return ((rows @ pairs) * columns).sum(axis=1) / (rows.sum(axis=1) * columns.sum(axis=1))


def corrected(p: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """P values of one family after Holm (family-wise error) and Benjamini and Hochberg (false discovery rate)."""
    from scipy.stats import false_discovery_control

    values = np.asarray(p, dtype=float)
    if values.size == 0:
        return values, values
    order = np.argsort(values)
    holm = np.empty_like(values)
    holm[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)))
    return holm, false_discovery_control(values)
