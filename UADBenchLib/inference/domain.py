"""Whether a scan looks like the healthy scans that a model was calibrated on: a distance in a few figures, and a limit.

Each figure (``quality.domain_features``) of the healthy validation scans gives a centre and a spread, their weighted
median and median absolute deviation, every site weighing the same. The distance of a scan is the root mean square of
its deviations in spreads, a Mahalanobis distance without correlations, which a few dozen scans of two sites do not
support. It says that a model is used on something it was not calibrated for, not that its map is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.bundles.bundle import Domain, load_bundle
from UADBenchLib.cohort import read_cohort, select
from UADBenchLib.inference.weights import folds_of, site_weights
from UADBenchLib.preprocessing.quality import domain_features
from UADBenchLib.preprocessing.recipe import Prepared, Recipe
from UADBenchLib.scan import Check
from UADBenchLib.training.slices import StoredScan, build_store, default_store
from UADBenchLib.writing import write_json

LIMIT_QUANTILE = 0.98
"""Share of healthy validation scans, sites weighing the same, that lie within the limit, each measured against the
centre and spread of the other folds."""

LEAST_SPREAD = 0.02
"""Of a figure's centre; below it a spread says more about rounding than about people."""


def fit_domain(scans: Sequence[StoredScan], recipe: Recipe, origin: str) -> Domain:
    """Measure centre, spread and limit from prepared healthy validation scans.

    Parameters
    ----------
    scans : sequence of StoredScan
    recipe : Recipe
        That they were prepared by.
    origin : str
        What they are, for the record.
    """
    figures = [domain_features(*scan.volume(), recipe.tissues, recipe.voxel_mm) for scan in scans]
    sites = [scan.row.site or "unknown" for scan in scans]
    folds = folds_of([scan.row.held_out_with for scan in scans])
    distances = np.zeros(len(scans))
    for number, fold in enumerate(folds):
        others = [n for n, other in enumerate(folds) if other != fold]
        features = _centres([figures[n] for n in others], [sites[n] for n in others])
        distances[number] = _distance(features, figures[number])[0]
    limit = _weighted_quantile(distances, site_weights(sites), LIMIT_QUANTILE)
    return Domain(features=_centres(figures, sites), limit=round(limit, 4), scans=len(scans), origin=origin)


def describe_domain(domain: Domain | None, prepared: Prepared, recipe: Recipe) -> dict[str, Any] | None:
    """Distance of a prepared scan from a model's healthy validation scans: ``distance``, ``limit``, the feature that
    is ``farthest`` with its ``value``, ``usual`` range and deviation; None for a bundle that does not know."""
    if domain is None:
        return None
    figures = domain_features(prepared.voxels, prepared.mask, recipe.tissues, recipe.voxel_mm)
    distance, farthest, deviation = _distance(domain.features, figures)
    centre, spread = domain.features[farthest]
    return {
        "distance": round(distance, 3),
        "limit": domain.limit,
        "farthest": farthest,
        "value": figures.get(farthest),
        "usual": [round(centre - 2 * spread, 4), round(centre + 2 * spread, 4)],
        "deviation": round(deviation, 2),
    }


def relative_distance(domain: Domain | None, figures: dict[str, float]) -> float | None:
    """Distance of a scan with these ``quality.domain_features`` in units of the limit: above 1 is unlike the healthy
    validation scans; None for a bundle that does not know."""
    return None if domain is None else round(_distance(domain.features, figures)[0] / domain.limit, 4)


def domain_checks(described: dict[str, Any] | None) -> tuple[Check, ...]:
    """The warning for a scan beyond the limit."""
    if described is None or described["distance"] <= described["limit"]:
        return ()
    value = "cannot be measured" if described["value"] is None else f"is {described['value']:.3g}"
    low, high = described["usual"]
    message = (
        f"the scan is unlike the healthy scans that the model was calibrated on (distance {described['distance']:.1f}, "
        f"limit {described['limit']:.1f}); most of all its {described['farthest']} {value}, "
        f"{low:.3g} to {high:.3g} is usual"
    )
    return (Check("warning", "OUT_OF_DOMAIN", message, "thresholds and false-positive rates may not hold for it"),)


def refresh_domain(
    bundle: str | Path, healthy: str | Path, *, data: str | Path | None = None, store: str | Path | None = None
) -> Domain:
    """Measure the domain of a calibrated bundle again and write nothing else into it.

    The scans are those that the bundle was calibrated on.
    """
    loaded = load_bundle(bundle)
    metadata, recipe = loaded.metadata, loaded.recipe
    rows = select(read_cohort(healthy, data), split="validation", label="healthy", contrast=metadata.contrast)
    stored, _ = build_store(rows, Path(store) if store else default_store(), recipe)
    domain = fit_domain(stored, recipe, domain_origin(stored, healthy))
    changed = metadata.model_copy(update={"domain": domain})
    write_json(Path(bundle) / "configs" / "metadata.json", json.loads(changed.model_dump_json()))
    return domain


def domain_origin(scans: Sequence[StoredScan], healthy: str | Path) -> str:
    """The sentence that says where a domain comes from."""
    sites = [scan.row.site or "unknown" for scan in scans]
    counts = ", ".join(f"{site}: {sites.count(site)}" for site in sorted(set(sites)))
    return (
        f"healthy validation scans of {Path(healthy).name} ({counts}), sites weigh the same; {LIMIT_QUANTILE:.0%} of "
        "them lie within the limit, held-out folds"
    )


def _centres(figures: Sequence[dict[str, float]], sites: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Centre and spread of every figure that all scans have."""
    weights = site_weights(sites)
    found = {}
    for name in figures[0]:
        if all(name in one for one in figures):
            values = np.array([one[name] for one in figures])
            centre = _weighted_quantile(values, weights, 0.5)
            spread = 1.4826 * _weighted_quantile(np.abs(values - centre), weights, 0.5)
            found[name] = (round(centre, 5), round(max(spread, LEAST_SPREAD * abs(centre), 1e-4), 5))
    return found


def _distance(features: dict[str, tuple[float, float]], figures: dict[str, float]) -> tuple[float, str, float]:
    """Root mean square deviation in spreads, and the figure that deviates most with its deviation.

    A figure that a scan does not have counts as ten spreads away.
    """
    deviations = {
        name: (figures[name] - centre) / spread if name in figures else 10.0
        for name, (centre, spread) in features.items()
    }
    farthest = max(deviations, key=lambda name: abs(deviations[name]))
    distance = float(np.sqrt(np.mean(np.square(list(deviations.values())))))
    return distance, farthest, float(deviations[farthest])


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value with at least ``share`` of the weight at or below it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, share - 1e-9)])
