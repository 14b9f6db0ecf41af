"""Measure the shipped models and write the tables that README, docs and model cards quote.

Two benchmark runs a contrast, test and development cases apart: healthy test scans with and without synthetic
lesions (T1w) and synthesised test heads (T2w, FLAIR), then the development cases. ``models.csv``: for every model
and kind of case Dice at the threshold of 1 % healthy false positives, best Dice, average precision calibrated and
not, seconds on one core. ``healthy.csv``: mean false-positive rate of every group of healthy test scans. The rows
of a model also go into its bundle, from which its card is written. ``--models`` measures some models alone,
``--development`` the development cases alone; the other rows stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas

from UADBenchLib.benchmark.runner import benchmark
from UADBenchLib.benchmark.tables import SCANS, TIMING, read_table
from UADBenchLib.bundles.bundle import load_bundle, load_metadata, save_bundle
from UADBenchLib.bundles.card import table as markdown
from UADBenchLib.bundles.catalogue import find_model
from UADBenchLib.cohort import CohortScan, read_cohort, select
from UADBenchLib.scan import CONTRASTS
from UADBenchLib.writing import write_csv, write_text

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ROOT / "Resources" / "Splits"
LARGE_ML = 10.0
SYNTHETIC = {"T1w": "t1w-lesions", "T2w": "test", "FLAIR": "test"}
"""The cohort of `make cohorts` that holds the synthetic cases of a contrast."""
METRICS = ("dice", "best_dice", "ap", "ap_uncalibrated")


def cohort_rows(data: Path, cohorts: Path, most: int, contrasts: list[str]) -> list[tuple[str, CohortScan]]:
    """Every scan of the contrasts with the name of the data it belongs to; of healthy scans at most ``most`` a
    group."""
    rows: list[tuple[str, CohortScan]] = []
    groups: dict[tuple[str, str], int] = {}
    for row in select(read_cohort(SPLITS / "t1w.csv", data), split="test"):
        key = (row.site, row.group)
        groups[key] = groups.get(key, 0) + 1
        if groups[key] <= most:
            # The 34 scans of people with depression show no lesion that was reported: false positives are counted.
            rows.append((f"{row.site} {row.group}", replace(row, label="healthy")))
    for name in sorted({SYNTHETIC[contrast] for contrast in contrasts}):
        for row in read_cohort(cohorts / name / "cohort.csv"):
            kind = f"synthetic {row.lesion_type}" if row.lesion_type else f"synthetic healthy, {row.site}"
            rows.append((kind, replace(row, split="test", subject=f"{name}-{row.subject}")))
    rows += [(row.site, row) for row in read_cohort(SPLITS / "lesions.csv", data)]
    return [one for one in rows if one[1].contrast in contrasts]


def write_cohort(rows: list[tuple[str, CohortScan]], path: Path) -> None:
    """The table that the benchmark reads, with absolute paths."""
    names = [field.name for field in fields(CohortScan)]
    table = []
    for dataset, row in rows:
        values = {name: "" if value is None else str(value) for name, value in asdict(row).items()}
        paths = {
            name: str(Path(values[name]).resolve()) for name in ("scan", "reference", "brain_mask") if values[name]
        }
        table.append({**values, **paths, "dataset": dataset})
    write_csv(path, table, names)


def evaluate(rows: list[tuple[str, CohortScan]], run: Path, workers: int | None, models: list[str]) -> None:
    """Run the benchmark, or go on with it."""
    # The benchmark evaluates split "test"; that development cases are none is said where their figures are.
    table = run.with_suffix(".csv")
    write_cohort([(dataset, replace(row, split="test")) for dataset, row in rows], table)
    failed = benchmark(table, models or "all", run, workers=workers)["failed"]
    if failed:
        sys.stderr.write(f"{failed} scans failed: {run / 'failures.csv'}\n")


def lesion_table(scans: pandas.DataFrame, timing: pandas.DataFrame) -> list[dict[str, object]]:
    """One row a model and kind of case with a reference."""
    seconds = timing.groupby("model")["score_seconds"].median()
    cases = scans[(scans["reference_ml"] > 0) & (scans["operating_point"] == "fpr-1pct")]
    large = cases[(cases["dataset"] == "synthetic tumour") & (cases["reference_ml"] >= LARGE_ML)]
    cases = pandas.concat([cases, large.assign(dataset=f"synthetic tumour of at least {LARGE_ML:g} ml")])
    rows = []
    for (model, dataset), part in cases.groupby(["model", "dataset"], sort=True):
        means = {name: round(float(part[name].mean()), 3) for name in METRICS}
        rows.append({"model": model, "cases": dataset, "n": len(part), **means, "seconds": round(seconds[model], 1)})
    return rows


def healthy_table(scans: pandas.DataFrame) -> list[dict[str, object]]:
    """One row a model, operating point and group of healthy test scans: mean and highest false-positive rate."""
    rows = []
    healthy = scans[scans["label"] == "healthy"]
    for (model, dataset, point), part in healthy.groupby(["model", "dataset", "operating_point"], sort=True):
        rate = part["healthy_fpr"]
        row = {"model": model, "group": dataset, "n": len(part), "operating_point": point}
        rows.append(row | {"fpr": round(float(rate.mean()), 5), "fpr_highest": round(float(rate.max()), 5)})
    return rows


def kept(path: Path, new: list[dict[str, object]], *key: str) -> list[dict[str, object]]:
    """The rows of a table that no new row has the key of."""
    replaced = {tuple(row[name] for name in key) for row in new}
    rows = pandas.read_csv(path).to_dict("records")
    return [row for row in rows if tuple(row[name] for name in key) not in replaced]


def same_seconds(new: list[dict[str, object]], old: list[dict[str, object]]) -> None:
    """Give new rows of a model the seconds of its other rows: a handful of cases is no timing."""
    seconds = {row["model"]: row["seconds"] for row in old}
    for row in new:
        row["seconds"] = seconds[row["model"]]


def contrast_of(model: str) -> str:
    """The contrast of an installed model."""
    return load_metadata(Path(find_model(model))).contrast


def in_order(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """By contrast, then by model, then as ``lesion_table`` and ``healthy_table`` have them."""
    models = {str(row["model"]) for row in rows}
    places = {model: (CONTRASTS.index(contrast_of(model)), model) for model in models}

    def place(row: dict[str, object]) -> tuple[object, ...]:
        return *places[str(row["model"])], row.get("cases", row.get("group")), row.get("operating_point", "")

    return sorted(rows, key=place)


PAGE = """# The shipped models in figures

Written by `python Testing/measure.py` (`make measure`), from two `uadbench benchmark` runs a contrast, test
and development cases apart; the same rows as
[figures/models.csv](figures/models.csv) and [figures/healthy.csv](figures/healthy.csv).

Means over scans, on each scan's own grid. Dice at the threshold `fpr-1pct`, which comes from healthy validation
scans; best Dice is what the map could reach with a threshold chosen on the scan itself, an upper bound; average
precision (AP) in the brain mask, with the healthy reference and without it; seconds are the median a scan for
scoring, calibration and the way back, on one core; they depend on the machine, and models that were measured later
than others (`--models`) may have been on a slower one.

Synthetic cases: lesions put into healthy test scans (T1w), or heads synthesised from label maps that were not
trained on (T2w, FLAIR). `tumour-auto` (glioma, automatic references), `ms-ljubljana` (expert references) and
`stroke` are real development cases: they were looked at while the methods were built, though no threshold was
set on them. n is the number of scans.

## At a glance

Dice at `fpr-1pct` / average precision; healthy FPR is the lowest and the highest mean over the groups of healthy test
scans, nominally 1 %; s are seconds a scan.

{overview}

## Lesions

{lesions}

## Healthy test scans: false-positive rate

Share of the brain's voxels above the threshold, mean and highest over scans. People with depression (ds002748)
have no lesion that was reported.

{healthy}
"""


COLUMNS = {
    "tumours ≥ 10 ml": "synthetic tumour of at least 10 ml",
    "strokes": "synthetic stroke",
    "MS": "synthetic ms",
    "WMH": "synthetic wmh",
    "tumour-auto": "tumour-auto",
    "ms-ljubljana": "ms-ljubljana",
    "stroke": "stroke",
}
"""Kinds of cases by the names that the overview has for them; the first four are synthetic."""


def overview(lesions: list[dict[str, object]], healthy: list[dict[str, object]]) -> str:
    """A table a contrast, with one row a model: Dice and average precision for each kind of case."""
    tables = []
    for contrast in CONTRASTS:
        models = dict.fromkeys(str(row["model"]) for row in lesions if contrast_of(str(row["model"])) == contrast)
        rows = []
        for model in models:
            rates = [
                100 * float(row["fpr"])
                for row in healthy
                if (row["model"], row["operating_point"]) == (model, "fpr-1pct")
            ]
            cases = {row["cases"]: row for row in lesions if row["model"] == model}
            columns = {name: cases[kind] for name, kind in COLUMNS.items() if kind in cases}
            rows.append(
                {"model": f"`{model}`", "healthy FPR": f"{min(rates):.2f} to {max(rates):.2f} %"}
                | {f"{name} (n = {row['n']})": f"{row['dice']:.2f} / {row['ap']:.2f}" for name, row in columns.items()}
                | {"s": next(iter(cases.values()))["seconds"]}
            )
        tables.append(f"### {contrast}\n\n{markdown(rows)}")
    return "\n\n".join(tables)


def write_card(model: str, healthy: list[dict[str, object]], lesions: list[dict[str, object]]) -> None:
    """Put the figures of one model into its bundle."""
    bundle = load_bundle(find_model(model))
    metrics = {
        name: [{key: value for key, value in row.items() if key != "model"} for row in rows if row["model"] == model]
        for name, rows in (("healthy", healthy), ("lesions", lesions))
    }
    bundle.metadata = bundle.metadata.model_copy(update={"metrics": metrics})
    save_bundle(bundle, bundle.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that the cohort tables' paths start from")
    parser.add_argument("--cohorts", type=Path, required=True, help="what `make cohorts` made")
    parser.add_argument("--run", type=Path, required=True, help="folder of the runs; gone on with where they are there")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--contrast", choices=CONTRASTS, action="append", help="run this one only, write no table")
    parser.add_argument("--models", default="", help="ids of the models to measure, with commas; default: all")
    parser.add_argument("--development", action="store_true", help="measure the development cases alone")
    parser.add_argument("--most", type=int, default=8, help="healthy scans of a group at most")
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    models = given.models.split(",") if given.models else []
    chosen_contrasts = {contrast_of(model) for model in models} or CONTRASTS
    contrasts = given.contrast or [contrast for contrast in CONTRASTS if contrast in chosen_contrasts]
    rows = cohort_rows(given.data, given.cohorts, given.most, contrasts)
    healthy, lesions = [], []
    for contrast in contrasts:
        scans, timing = [], []
        for split, name in (("test", contrast), ("development", f"{contrast}-development")):
            chosen = [one for one in rows if (one[1].contrast, one[1].split) == (contrast, split)]
            if given.development and split == "test":
                continue
            run = given.run / name
            evaluate(chosen, run, given.workers, [model for model in models if contrast_of(model) == contrast])
            scans.append(read_table(run, SCANS))
            timing.append(read_table(run, TIMING))
        healthy += healthy_table(pandas.concat(scans))
        lesions += lesion_table(pandas.concat(scans), pandas.concat(timing))
    if given.contrast:
        return  # part of a table is no table
    measured = sorted({str(row["model"]) for row in lesions})
    if models or given.development:
        key = ("model", "cases") if given.development else ("model",)
        others = kept(given.out / "models.csv", lesions, *key)
        if given.development:
            same_seconds(lesions, others)
        lesions = in_order(lesions + others)
        healthy = in_order(healthy + kept(given.out / "healthy.csv", healthy, "model"))
    for model in measured:
        write_card(model, healthy, lesions)
    write_csv(given.out / "healthy.csv", healthy, list(healthy[0]))
    write_csv(given.out / "models.csv", lesions, list(lesions[0]))
    page = PAGE.format(overview=overview(lesions, healthy), lesions=markdown(lesions), healthy=markdown(healthy))
    write_text(given.out.parent / "models.md", page)


if __name__ == "__main__":
    main()
