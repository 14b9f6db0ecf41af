"""The model card of a bundle, written from its metadata alone, so that it cannot say anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from UADBenchLib.bundles.bundle import Metadata
from UADBenchLib.methods.registry import configuration_changes

LIMITS = (
    "Research software; not a medical device. A finding is a place worth a look, not a diagnosis; an empty map does "
    "not mean healthy.",
    "Works on one contrast, on adult brains, after affine registration on a 2 mm grid: lesions of a few voxels there "
    "are mostly missed.",
    "What is bright or dark in health and disease alike (vessels, meninges, air, calcification), brain masks that "
    "leave skull or cut "
    "cortex, contrast agents and unusual sequences give false positives; thresholds hold for scans like the "
    "validation scans.",
)


def render_card(metadata: Metadata) -> str:
    """Return the card as Markdown."""
    parts = [
        f"# {metadata.id}\n\nUnsupervised anomaly detection in {metadata.contrast} brain MRI: learns from healthy "
        f"scans alone and "
        f"scores what deviates. Method: `{metadata.method}` ({metadata.paper}), preset `{metadata.preset}`.",
        "## Training\n\n" + _training(metadata),
        "## Calibration\n\n" + _calibration(metadata),
    ]
    if metadata.metrics:
        parts.append("## Figures\n\n" + _figures(metadata.metrics))
    parts.append("## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS))
    parts.append(
        f"## Use\n\n```\nuadbench detect scan_{metadata.contrast}.nii.gz --model "
        f"{metadata.id} --out results\n```\n\nLicence of the weights: {metadata.licence}."
    )
    return "\n\n".join(parts) + "\n"


def _training(metadata: Metadata) -> str:
    trained = metadata.trained_on
    rows = [
        {"site": site, "scans": count, "licence of the data": trained.get("licences", {}).get(site, "not stated")}
        for site, count in sorted(trained["sites"].items())
    ]
    # The plan that synthesised heads were made by says so where it names the licence of the label maps.
    made = any("synthesised" in str(licence) for licence in trained.get("licences", {}).values())
    nobody = " Nobody was scanned for them, and no real healthy scan of this contrast was seen." if made else ""
    steps = f"{metadata.steps} steps" if metadata.steps else "one pass, no gradient steps"
    history = f"\n\n{trained['history']}" if trained.get("history") else ""
    if backbone := trained.get("backbone"):
        file = f", SHA-256 of its weights `{backbone['sha256']}`" if "sha256" in backbone else ""
        history = f"\n\nFeature backbone: {backbone['source']}{file}." + history
    return (
        f"{trained['scans']} healthy {metadata.contrast} scans of {len(trained['subjects'])} subjects, {steps}, seed "
        f"{metadata.seed}.{nobody} "
        f"Prepared by recipe `{metadata.recipe_hash}` (registration: {metadata.space.registration}, to "
        f"{metadata.space.template}, "
        f"{metadata.space.voxel_mm:g} mm).\n\n" + table(rows) + history + f"\n\n```\n{_commands(metadata)}\n```"
    )


def _commands(metadata: Metadata) -> str:
    """The commands that a bundle like this one is made by."""
    steps = f"--steps {metadata.steps} " if metadata.steps else ""
    fraction = metadata.trained_on.get("fraction", 1)
    share = f"--fraction {fraction:g} " if fraction != 1 else ""
    changes = "".join(
        f"--set {change} " for change in configuration_changes(metadata.method, metadata.preset, metadata.config)
    )
    return (
        f"uadbench train {metadata.method} --cohort COHORT --contrast {metadata.contrast} --preset {metadata.preset} "
        f"{changes}{steps}{share}--seed {metadata.seed} --out {metadata.id}\n"
        f"uadbench calibrate {metadata.id} --healthy COHORT"
    )


def _calibration(metadata: Metadata) -> str:
    if metadata.calibration is None:
        return "Not calibrated: run `uadbench calibrate`."
    sites = ", ".join(f"{site}: {count}" for site, count in sorted(metadata.calibration.sites.items()))
    rows = [
        {
            "operating point": name,
            "threshold (z)": f"{point.threshold:.2f}",
            "95 % interval": f"{point.ci[0]:.2f} to {point.ci[1]:.2f}",
            "healthy FPR on validation": "" if point.healthy_fpr is None else f"{point.healthy_fpr:.3%}",
            "origin": point.origin,
        }
        for name, point in metadata.operating_points.items()
    ]
    return f"Healthy validation scans that were not trained on ({sites}).\n\n" + table(rows)


def _figures(metrics: dict[str, Any]) -> str:
    notes = {
        "healthy": "False-positive rate in test scans without lesions (share of brain voxels above the threshold): "
        "mean over scans, and the highest.",
        "lesions": "Cases with a reference, on the scan's own grid, means over scans: Dice at `fpr-1pct`, the best "
        "Dice of any threshold, and average precision in the brain mask with the healthy reference and without. "
        "Synthetic cases are lesions put into test scans; the others are development cases, not a test set: they were "
        "looked at while the methods were built, though no threshold was set on them. Seconds are the median a scan, "
        "on one core.",
    }
    return "\n\n".join(f"{notes.get(name, name)}\n\n{table(rows)}" for name, rows in metrics.items() if rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of rows with equal keys."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines)
