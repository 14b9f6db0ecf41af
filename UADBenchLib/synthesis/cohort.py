"""A labelled cohort that nobody belongs to: heads in three contrasts with covariates, references and known effects.

Age widens ventricles and sulci, sex changes the size of the head, a scanner brings its noise, bias, resolution and
contrast; whatever a plan adds on top is written down beside the data, so that an analysis of bias can be tried where
the truth is known. Every participant is drawn from the seed and a number of its own: the same seed gives the same
files, on any number of processes.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib import __version__
from UADBenchLib.errors import InputError
from UADBenchLib.parallel import map_processes, one_thread
from UADBenchLib.preprocessing.registration import register_brain
from UADBenchLib.scan import Progress
from UADBenchLib.synthesis.anatomy import (
    NAMES,
    Anatomy,
    Deformation,
    brain_mask,
    deform,
    draw_deformation,
    read_anatomies,
    read_anatomy,
    widening_for,
)
from UADBenchLib.synthesis.contrasts import PRIORS, Look, draw_look
from UADBenchLib.synthesis.heads import Acquisition, acquire, draw_acquisition, paint, reference_on
from UADBenchLib.synthesis.insertion import apply_lesion
from UADBenchLib.synthesis.lesions import Lesion, draw_lesion
from UADBenchLib.synthesis.plan import Plan, Scanner, factors
from UADBenchLib.synthesis.tissue import TissueMaps, tissue_from_anatomy
from UADBenchLib.writing import whole_folder, write_csv, write_json, write_text, write_volume

AGES = (20.0, 90.0)
VENTRICLES = (-5.48, 0.0241, 0.39)
"""Logarithm of the share of the brain mask that is ventricle: at age 0, per year, spread; measured in 48 heads of IXI
(``Testing/fit_contrasts.py`` lists the volumes)."""
THINNING_PER_YEAR = 0.013
"""Takes as much cortex from 20 to 90 years as those heads differ by: about a quarter."""
FEMALE_SIZE = 0.969
"""Linear size of a female head against a male one, cube root of the ratio of their mean brain volumes."""

PARTICIPANT_COLUMNS = (
    "participant_id",
    "age",
    "sex",
    "group",
    "site",
    "scanner",
    "label_map",
    "anatomy",
    "lesion_type",
    "lesion_ml",
)
COHORT_COLUMNS = (
    "scan", "contrast", "label", "subject", "reference", "brain_mask", "age", "sex", "scanner", "site", "lesion_type",
    "anatomy", "licence",
)  # fmt: skip
DERIVATIVES = "derivatives/uadbench"

PARTICIPANT_DESCRIPTIONS = {
    "age": {"Description": "age that the anatomy was made to look like", "Units": "years"},
    "sex": {
        "Description": "sex that the size of the head was made to look like",
        "Levels": {"F": "female", "M": "male"},
    },
    "group": {"Description": "with or without a synthetic lesion"},
    "scanner": {"Description": "imaginary scanner; what it does stands in truth.json"},
    "label_map": {"Description": "label map that the head was made from"},
    "anatomy": {"Description": "label map, and whether left and right were exchanged; held out together"},
    "lesion_ml": {"Description": "volume of the reference, largest over the contrasts", "Units": "ml"},
}
README = """Synthetic heads made by `uadbench synthesise`. Nobody was scanned.

cohort.csv lists every scan with its reference and brain mask; truth.json holds all that was drawn, and the effects that
were planted. Keep participants that were made from the same label map in one split; calibration holds those of one
anatomy (a label map, as it is or mirrored) out together.
"""


@dataclass(frozen=True)
class Participant:
    """Everything that was drawn for one participant; enough to make the scans again."""

    participant_id: str
    age: float
    sex: str
    scanner: str
    site: str
    label_map: str
    lesion_type: str
    deformation: Deformation
    looks: dict[str, Look]
    acquisitions: dict[str, Acquisition]
    lesions: tuple[Lesion, ...]
    paint_seed: int

    @property
    def anatomy(self) -> str:
        """Label map and handedness: heads that share both have the same folds in the same places."""
        return f"{self.label_map}-mirrored" if self.deformation.mirrored else self.label_map


def synthesise(
    maps: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    healthy: int,
    lesions: int,
    seed: int = 0,
    plan: Plan | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a synthetic cohort as a BIDS folder.

    Parameters
    ----------
    maps : path
        Folder of whole-head label maps.
    out : path
        New or empty folder; it appears when all of it is there. ``cohort.csv`` is what ``train``, ``calibrate`` and
        ``benchmark`` take, ``truth.json`` holds everything drawn, and the effects.
    healthy, lesions : int
        Participants without and with lesions.
    workers : int
        Processes; the files do not depend on it.

    Returns
    -------
    dict
        path, participants, scans, lesion volumes.

    Raises
    ------
    InputError
        ``COHORT_EMPTY``, ``OUT_NOT_EMPTY``, ``LABELS_MISSING``, ``LABELS_INVALID``, ``NOT_WRITABLE``.
    """
    out, plan = Path(out), plan or Plan()
    if healthy < 0 or lesions < 0 or healthy + lesions == 0:
        raise InputError("COHORT_EMPTY", f"{healthy} healthy and {lesions} lesion participants", "ask for at least one")
    paths = read_anatomies(maps)
    participants, rows = [], []
    with whole_folder(out) as folder:
        tasks = [(number, number >= healthy, seed, paths, plan, folder) for number in range(healthy + lesions)]
        for number, (drawn, volumes) in enumerate(map_processes(_one, tasks, workers), start=1):
            participants.append((drawn, volumes))
            rows += _rows(drawn, plan, volumes)
            if progress is not None:
                progress("making heads", number / len(tasks))
        _write_tables(folder, participants, rows, plan, seed)
    return {
        "path": str(out),
        "participants": len(participants),
        "scans": len(rows),
        "lesion_ml": {drawn.participant_id: volume for drawn, volume in participants if drawn.lesion_type},
    }


def _one(task: tuple[int, bool, int, list[Path], Plan, Path]) -> tuple[Participant, dict[str, float]]:
    """Draw and write one participant; returns what was drawn and the lesion volume of each scan in ml."""
    number, sick, seed, paths, plan, out = task
    rng = np.random.default_rng((seed, number))
    # Every map is used once before any is used twice.
    path = paths[(number + int(np.random.default_rng(seed).integers(len(paths)))) % len(paths)]
    with one_thread():
        mirrored = None if plan.mirrored == "drawn" else number // len(paths) % 2 == 1
        return _make(*_draw(number, sick, read_anatomy(path), plan, rng, mirrored), out)


def _draw(
    number: int,
    sick: bool,
    source: Anatomy,
    plan: Plan,
    rng: np.random.Generator,
    mirrored: bool | None = None,
) -> tuple[Participant, Anatomy, TissueMaps | None]:
    """Draw a participant, bend the head, and describe its tissue where a lesion is to be put in; ``mirrored`` takes the
    place of what is drawn."""
    age, sex = float(np.round(rng.uniform(*AGES), 1)), str(rng.choice(["F", "M"]))
    scanner = sorted(plan.scanners)[int(rng.integers(len(plan.scanners)))]
    kind = plan.lesion_types[number % len(plan.lesion_types)] if sick else ""
    facts: dict[str, Any] = {"age": age, "sex": sex, "scanner": scanner, "site": plan.scanners[scanner].site}
    facts |= {"lesion_type": kind} if kind else {}
    years = age - AGES[0]
    factor = factors(plan, facts)
    brain_ml = float(brain_mask(source).sum() * source.voxel_mm.prod() / 1000)
    at_birth, yearly, spread = VENTRICLES
    ventricles_ml = brain_ml * float(np.exp(at_birth + yearly * age + spread * np.clip(rng.standard_normal(), -2, 2)))
    widening = widening_for(source, ventricles_ml * factor["ventricles"])
    thinning = max(0.0, years * THINNING_PER_YEAR * factor["thinning"] + 0.05 * rng.standard_normal())
    deformation = draw_deformation(
        rng,
        size=(FEMALE_SIZE if sex == "F" else 1.0) * factor["size"],
        widening_mm=(widening, widening),
        thinning=(thinning, thinning),
    )
    if mirrored is not None:
        deformation = replace(deformation, mirrored=mirrored)
    anatomy = deform(source, deformation)
    tissue, lesions = _lesions(kind, anatomy, plan, facts, rng) if sick else (None, ())
    looks = {contrast: _look(contrast, plan.scanners[scanner], rng) for contrast in plan.contrasts}
    acquisitions = {c: _acquisition(c, plan, facts, rng) for c in plan.contrasts}
    drawn = Participant(
        f"sub-{plan.prefix}{number + 1:03d}", age, sex, scanner, facts["site"], source.name, kind,
        deformation, looks, acquisitions, lesions, int(rng.integers(2**31)),
    )  # fmt: skip
    return drawn, anatomy, tissue


def _look(contrast: str, scanner: Scanner, rng: np.random.Generator) -> Look:
    """The tissue contrast of a scanner: all means drawn towards white matter, or away from it."""
    look = draw_look(contrast, rng)
    return replace(look, means=tuple(max(0.0, 1 + scanner.contrast * (m - 1)) if m > 0 else 0.0 for m in look.means))


def _acquisition(contrast: str, plan: Plan, facts: dict[str, Any], rng: np.random.Generator) -> Acquisition:
    scanner = plan.scanners[facts["scanner"]]
    factor = factors(plan, facts | {"contrast": contrast})
    drawn = draw_acquisition(rng, voxel_mm=scanner.voxel(contrast), noise=(0.02, 0.04), bias=(0.1, 0.2))
    return replace(
        drawn,
        noise=drawn.noise * scanner.noise * factor["noise"],
        bias=drawn.bias * scanner.bias * factor["bias"],
        ghost=drawn.ghost * factor["ghost"],
        blur_mm=(drawn.blur_mm + scanner.blur_mm) * factor["blur_mm"],
        cut_mm=max(drawn.cut_mm, 10.0),
    )


def _lesions(
    kind: str, anatomy: Anatomy, plan: Plan, facts: dict[str, Any], rng: np.random.Generator
) -> tuple[TissueMaps, tuple[Lesion, ...]]:
    """The tissue of a head, and a lesion drawn for it; planted effects scale its visibility."""
    tissue = tissue_from_anatomy(anatomy, to_template(anatomy))
    lesion = draw_lesion(kind, tissue, rng, visibility=float(rng.uniform(*plan.visibility)))
    factor = factors(plan, facts | {"lesion_ml": lesion.volume_ml})["visibility"]
    return tissue, (replace(lesion, visibility=float(min(1.0, lesion.visibility * factor))),)


def to_template(anatomy: Anatomy) -> np.ndarray:
    """RAS mm of a head to RAS mm of the MNI152 template, by registering its own T1w look."""
    means = [PRIORS["T1w"][name][0] for name in NAMES]
    mask = brain_mask(anatomy)
    image = np.array(means, dtype=np.float32)[anatomy.classes]
    with one_thread():
        found = register_brain(image, anatomy.affine, mask)
    return np.round(np.linalg.inv(found.world), 4)


def _make(
    drawn: Participant, anatomy: Anatomy, tissue: TissueMaps | None, out: Path
) -> tuple[Participant, dict[str, float]]:
    """Paint, scan and write one participant."""
    images = {contrast: paint(anatomy, look, drawn.paint_seed) for contrast, look in drawn.looks.items()}
    mask, reference = brain_mask(anatomy), None
    for lesion in drawn.lesions:
        applied = apply_lesion(images, tissue, lesion)
        images, reference = applied.images, applied.mask
    anat = Path(drawn.participant_id) / "anat"
    volumes = {}
    for contrast, acquisition in drawn.acquisitions.items():
        voxels, affine = acquire(images[contrast], anatomy, acquisition)
        name = f"{drawn.participant_id}_{contrast}"
        # Scanners store integers, and they pack better.
        write_volume(out / anat / f"{name}.nii.gz", np.rint(voxels), affine)
        derived = out / DERIVATIVES / anat / f"{drawn.participant_id}_space-{contrast}"
        inside = reference_on(mask, anatomy, voxels.shape, affine)
        write_volume(derived.with_name(f"{derived.name}_desc-brain_mask.nii.gz"), inside, affine)
        if reference is not None:
            truth = reference_on(reference, anatomy, voxels.shape, affine)
            write_volume(derived.with_name(f"{derived.name}_label-lesion_mask.nii.gz"), truth, affine)
            volumes[contrast] = round(float(truth.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000), 4)
    return drawn, volumes


def _rows(drawn: Participant, plan: Plan, volumes: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of a participant in ``cohort.csv``."""
    rows = []
    for contrast in plan.contrasts:
        name, anat = drawn.participant_id, f"{drawn.participant_id}/anat"
        derived = f"{DERIVATIVES}/{anat}/{name}_space-{contrast}"
        rows.append(
            {
                "scan": f"{anat}/{name}_{contrast}.nii.gz",
                "contrast": contrast,
                "label": "lesion" if drawn.lesion_type else "healthy",
                "subject": name,
                "reference": f"{derived}_label-lesion_mask.nii.gz" if contrast in volumes else "",
                "brain_mask": f"{derived}_desc-brain_mask.nii.gz",
                "age": drawn.age,
                "sex": drawn.sex,
                "scanner": drawn.scanner,
                "site": drawn.site,
                "lesion_type": drawn.lesion_type,
                "anatomy": drawn.anatomy,
                "licence": plan.licence,
            }
        )
    return rows


def describe_folder(out: Path, name: str) -> None:
    """Write the descriptions that BIDS wants of raw data and of derivatives."""
    about = {"Name": name, "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "UADBench", "Version": __version__}]}
    write_json(out / "dataset_description.json", {**about, "DatasetType": "raw"})
    derived = {**about, "Name": f"{name}: masks", "DatasetType": "derivative"}
    write_json(out / DERIVATIVES / "dataset_description.json", derived)


def _write_tables(
    out: Path, made: list[tuple[Participant, dict[str, float]]], rows: list[dict[str, Any]], plan: Plan, seed: int
) -> None:
    """Describe the folder: BIDS, the cohort table, and the truth."""
    describe_folder(out, "UADBench synthetic cohort")
    lines = ["\t".join(PARTICIPANT_COLUMNS)]
    for drawn, volumes in made:
        volume = f"{max(volumes.values()):.3f}" if volumes else "n/a"
        facts = (drawn.participant_id, drawn.age, drawn.sex, "lesion" if drawn.lesion_type else "healthy", drawn.site)
        rest = (drawn.scanner, drawn.label_map, drawn.anatomy, drawn.lesion_type or "n/a", volume)
        lines.append("\t".join(str(value) for value in (*facts, *rest)))
    write_text(out / "participants.tsv", "\n".join(lines) + "\n")
    write_json(out / "participants.json", PARTICIPANT_DESCRIPTIONS)
    write_text(out / "README", README)
    write_csv(out / "cohort.csv", rows, COHORT_COLUMNS)
    truth = {
        "seed": seed,
        "uadbench": __version__,
        "plan": json.loads(plan.model_dump_json()),
        "age": {"ventricles": VENTRICLES, "thinning_per_year": THINNING_PER_YEAR, "from": AGES[0]},
        "sex": {"female_size": FEMALE_SIZE},
        "participants": [{**asdict(drawn), "lesion_ml": volumes} for drawn, volumes in made],
    }
    write_json(out / "truth.json", truth)
