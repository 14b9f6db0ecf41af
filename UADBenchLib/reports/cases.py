"""The best and the worst cases of a run as pictures: which scans those are, and their drawing from the cohort's files.

A run keeps no maps, so that pictures are made by detecting again, which gives the same maps; without the cohort only
those pictures are shown that lie in the run's folder already.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from UADBenchLib.scan import Progress

EACH = 2


@dataclass(frozen=True)
class Case:
    """One scan under one model: why it is shown, its numbers as text, and the picture as a data URI ("" for none)."""

    scan_id: str
    model: str
    why: str
    numbers: str
    picture: str


def choose_cases(scans: pd.DataFrame) -> list[Case]:
    """The best and worst scans by Dice under the model with the highest mean, and the healthy scan flagged most.

    Parameters
    ----------
    scans : pandas.DataFrame
        Rows of one operating point.
    """
    chosen = []
    ill = scans[(scans["label"] == "lesion") & scans["dice"].notna()]
    if len(ill):
        model = ill.groupby("model")["dice"].mean().idxmax()
        order = ill[ill["model"] == model].sort_values(["dice", "scan_id"], ascending=[False, True])
        count = min(EACH, len(order) // 2) or 1
        parts = [("best Dice", order.head(count))] + ([("worst Dice", order.tail(count))] if len(order) > 1 else [])
        for why, rows in parts:
            for row in rows.itertuples():
                numbers = f"Dice {row.dice:.3f}, reference {row.reference_ml:.1f} ml"
                chosen.append(Case(row.scan_id, model, why, numbers, ""))
    healthy = scans[(scans["label"] == "healthy") & scans["healthy_fpr"].notna()]
    healthy = healthy[healthy["model"] == chosen[0].model] if chosen else healthy
    if len(healthy):
        row = healthy.loc[healthy["healthy_fpr"].idxmax()]
        numbers = f"{100 * row['healthy_fpr']:.2f} % of healthy voxels flagged"
        chosen.append(Case(row["scan_id"], row["model"], "healthy scan with most false positives", numbers, ""))
    return chosen


def draw_cases(
    run: Path,
    scans: pd.DataFrame,
    cohort: str | Path | None,
    data: str | Path | None,
    device: str,
    progress: Progress | None,
) -> list[Case]:
    """The chosen cases with their pictures, which are kept in ``pictures/`` of the run.

    Parameters
    ----------
    run : path
        Folder of the run.
    scans : pandas.DataFrame
        Rows of one operating point.
    cohort, data : path, optional
        What the run was made from; None draws nothing anew.
    """
    cases = choose_cases(scans)
    point = scans["operating_point"].iloc[0]
    files = {case: run / "pictures" / f"{case.scan_id}_model-{case.model}_{point}.png" for case in cases}
    missing = [case for case, file in files.items() if not file.is_file()]
    if cohort is not None and missing:
        _draw(missing, files, point, cohort, data, device, progress)
    return [
        Case(case.scan_id, case.model, case.why, case.numbers, _data_uri(file) if file.is_file() else "")
        for case, file in files.items()
    ]


def _data_uri(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def _draw(
    cases: list[Case],
    files: dict[Case, Path],
    point: str,
    cohort: str | Path,
    data: str | Path | None,
    device: str,
    progress: Progress | None,
) -> None:
    from UADBenchLib.benchmark.plan import scan_ids
    from UADBenchLib.cohort import read_cohort, select
    from UADBenchLib.inference.detector import detect
    from UADBenchLib.reading import read_mask, read_scan
    from UADBenchLib.reports.figure import detection_figure

    rows = select(read_cohort(cohort, data), split="test")
    known = dict(zip(scan_ids(rows), rows, strict=True))
    for number, case in enumerate(cases):
        row = known.get(case.scan_id)
        if row is None:
            continue  # the cohort has changed since: the page says that there is no picture
        scan = read_scan(row.scan, row.contrast)
        brain = None if row.brain_mask is None else read_mask(row.brain_mask, scan, "brain mask")
        reference = None if row.reference is None else read_mask(row.reference, scan, "reference")
        found = detect(
            scan, [case.model], brain_mask=brain, reference=reference, operating_point=point, device=device, force=True
        )
        detection_figure(files[case], scan, found, reference)
        if progress is not None:
            progress("drawing cases", (number + 1) / len(cases))
