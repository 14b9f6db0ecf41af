"""Synthetic lesions in real healthy scans: a cohort with exact references whose brains and scanners are real.

Rows of a healthy cohort are taken in turn; subject, split, age, sex, scanner and site are handed on, so that the rule
"splits are by subject" holds for the result as well. Of the scans' names nothing but the subject is kept.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib import __version__
from UADBenchLib.cohort import CohortScan, read_cohort, select
from UADBenchLib.errors import InputError
from UADBenchLib.geometry import canonical
from UADBenchLib.parallel import map_processes, one_thread
from UADBenchLib.preprocessing.brain_extraction import find_brain
from UADBenchLib.preprocessing.registration import register_brain
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.scan import Progress
from UADBenchLib.synthesis.cohort import COHORT_COLUMNS, DERIVATIVES, describe_folder
from UADBenchLib.synthesis.insertion import apply_lesion
from UADBenchLib.synthesis.lesions import draw_lesion
from UADBenchLib.synthesis.plan import Plan, factors
from UADBenchLib.synthesis.tissue import tissue_from_scan
from UADBenchLib.writing import whole_folder, write_csv, write_json, write_volume

ABOUT = "UADBench synthetic lesions in real scans"


def implant(
    cohort: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    lesions: int,
    split: str = "validation",
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a BIDS folder of real healthy scans with one synthetic lesion each.

    Parameters
    ----------
    cohort : path
        Cohort table; its healthy scans of ``split`` (all, where it has no splits) are used in turn.
    out : path
        New or empty folder; it appears when all of it is there.
    lesions : int
        Scans to make; kinds of lesions take turns.
    data : path, optional
        Folder that the table's paths start from.
    plan : Plan, optional
        Kinds, visibility, and effects on visibility.
    workers : int
        Processes; the files do not depend on it.

    Returns
    -------
    dict
        path, participants, scans, lesion volumes.

    Raises
    ------
    InputError
        ``COHORT_EMPTY``, ``OUT_NOT_EMPTY``, ``NOT_WRITABLE``, and what reading and preparing a scan refuse.
    """
    out, plan = Path(out), plan or Plan()
    rows = [row for row in select(read_cohort(cohort, data), split=split, label="healthy")]
    rows = [row for row in rows if row.contrast in plan.contrasts]
    if not rows or lesions < 1:
        raise InputError(
            "COHORT_EMPTY",
            f"{len(rows)} healthy scans of split {split}, {lesions} lesions",
            "check label, split and contrast, and ask for at least one",
        )
    made = []
    with whole_folder(out) as folder:
        tasks = [(number, rows[number % len(rows)], seed, plan, folder) for number in range(lesions)]
        for number, one in enumerate(map_processes(_one, tasks, workers), start=1):
            made.append(one)
            if progress is not None:
                progress("implanting lesions", number / lesions)
        describe_folder(folder, ABOUT)
        write_csv(folder / "cohort.csv", [row for row, _ in made], (*COHORT_COLUMNS, "split"))
        truth = {"seed": seed, "uadbench": __version__, "plan": plan.model_dump(mode="json")}
        write_json(folder / "truth.json", {**truth, "scans": [record for _, record in made]})
    volumes = {record["participant_id"]: {record["contrast"]: record["lesion_ml"]} for _, record in made}
    return {"path": str(out), "participants": lesions, "scans": lesions, "lesion_ml": volumes}


def _one(task: tuple[int, CohortScan, int, Plan, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Implant one lesion and write the scan; return its row of the cohort and what was drawn."""
    number, source, seed, plan, out = task
    rng = np.random.default_rng((seed, number))
    kind = plan.lesion_types[number % len(plan.lesion_types)]
    scan = read_scan(source.scan, source.contrast)
    given = None if source.brain_mask is None else read_mask(source.brain_mask, scan, "brain mask")
    voxels, affine = canonical(scan.voxels, scan.affine)
    with one_thread():
        brain = find_brain(voxels, affine, None if given is None else canonical(given, scan.affine)[0])
        found = register_brain(voxels, affine, brain.mask)
    tissue = tissue_from_scan(voxels, affine, brain.mask, np.round(found.world, 4))
    lesion = draw_lesion(kind, tissue, rng, visibility=float(rng.uniform(*plan.visibility)))
    facts = {"lesion_type": kind, "lesion_ml": lesion.volume_ml, "contrast": source.contrast}
    facts |= {"scanner": source.scanner, "site": source.site, "sex": source.sex}
    lesion = replace(lesion, visibility=float(min(1.0, lesion.visibility * factors(plan, facts)["visibility"])))
    done = apply_lesion({source.contrast: voxels}, tissue, lesion)
    name = f"sub-{number + 1:03d}"
    paths = {
        "scan": f"{name}/anat/{name}_{source.contrast}.nii.gz",
        "reference": f"{DERIVATIVES}/{name}/anat/{name}_space-{source.contrast}_label-lesion_mask.nii.gz",
        "brain_mask": f"{DERIVATIVES}/{name}/anat/{name}_space-{source.contrast}_desc-brain_mask.nii.gz",
    }
    arrays = (done.images[source.contrast], done.mask, brain.mask)
    for path, array in zip(paths.values(), arrays, strict=True):
        write_volume(out / path, array, affine)
    kept = ("contrast", "subject", "age", "sex", "scanner", "site", "split", "licence")
    row = paths | {"label": "lesion", "lesion_type": kind} | {key: getattr(source, key) for key in kept}
    volume = round(float(done.mask.sum() * scan.voxel_ml), 4)
    record = {"participant_id": name, "contrast": source.contrast, "lesion_ml": volume, "lesion": asdict(lesion)}
    return row, record
