"""A labelled cohort that nobody belongs to: heads in three contrasts with covariates, references and known effects.

Age widens ventricles and sulci, sex changes the size of the head, a scanner brings its noise, bias, resolution and
contrast; whatever a plan adds on top is written down beside the data, so that an analysis of bias can be tried where
the truth is known. Every participant is drawn from the seed and a number of its own: the same seed gives the same
files, on any number of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from UADBenchLib import __version__
from UADBenchLib.errors import InputError
from UADBenchLib.preprocessing.registration import register_brain
from UADBenchLib.scan import CONTRASTS, Progress
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
from UADBenchLib.synthesis.lesions import KINDS, Lesion, draw_lesion
from UADBenchLib.synthesis.tissue import TissueMaps, tissue_from_anatomy
from UADBenchLib.writing import write_csv, write_json, write_text, write_volume

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
    "lesion_type",
    "lesion_ml",
)
COHORT_COLUMNS = (
    "scan", "contrast", "label", "subject", "reference", "brain_mask", "age", "sex", "scanner", "site", "lesion_type",
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
    "lesion_ml": {"Description": "volume of the reference, largest over the contrasts", "Units": "ml"},
}
README = """Synthetic heads made by `uadbench synthesise`. Nobody was scanned.

cohort.csv lists every scan with its reference and brain mask; truth.json holds all that was drawn, and the effects that
were planted. Participants that were made from the same label map share an anatomy: keep them in one split.
"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scanner(_Strict):
    """An imaginary scanner: what it multiplies, the voxels it measures, and how strong its tissue contrast is."""

    site: str
    noise: float = Field(1.0, gt=0, le=10)
    bias: float = Field(1.0, ge=0, le=5)
    blur_mm: float = Field(0.0, ge=0, le=3)
    contrast: float = Field(1.0, gt=0.2, le=2)
    voxel_mm: dict[Literal["T1w", "T2w", "FLAIR"], tuple[float, float, float]] = {}

    def voxel(self, contrast: str) -> tuple[float, float, float]:
        """Edges of a voxel; 1 mm where nothing is said."""
        return self.voxel_mm.get(contrast, (1.0, 1.0, 1.0))  # type: ignore[call-overload]


SCANNERS = {
    "A": Scanner(site="north"),
    "B": Scanner(site="north", noise=1.6, bias=0.6, contrast=0.85, voxel_mm={"FLAIR": (1.0, 1.0, 3.0)}),
    "C": Scanner(site="south", noise=0.8, bias=1.8, blur_mm=0.3, contrast=1.1),
    "D": Scanner(
        site="south",
        bias=0.8,
        voxel_mm={"T1w": (1.0, 1.0, 1.5), "T2w": (0.9, 0.9, 4.0), "FLAIR": (0.9, 0.9, 5.0)},
    ),
}  # fmt: skip

MULTIPLIED = ("noise", "bias", "ghost", "blur_mm", "visibility", "ventricles", "thinning", "size")


class Effect(_Strict):
    """An effect that is planted: where all conditions hold, quantities are multiplied.

    ``where`` names columns (scanner, site, sex, lesion_type, contrast: a value or a list; age, lesion_ml: a range
    [from, below]); ``multiply`` names quantities.
    """

    where: dict[Literal["scanner", "site", "sex", "lesion_type", "contrast", "age", "lesion_ml"], Any] = {}
    multiply: dict[str, float]

    @model_validator(mode="after")
    def _known(self) -> Effect:
        for name, factor in self.multiply.items():
            if name not in MULTIPLIED:
                raise ValueError(f"there is no quantity {name!r}; choose among {', '.join(MULTIPLIED)}")
            if not 0 <= factor <= 100:
                raise ValueError(f"{name} is multiplied by {factor}, which is not in 0 to 100")
        for name in ("age", "lesion_ml"):
            bounds = self.where.get(name)
            if bounds is not None and not (isinstance(bounds, list) and len(bounds) == 2 and bounds[0] <= bounds[1]):
                raise ValueError(f"{name} wants a range [from, below], not {bounds!r}")
        return self

    def applies(self, facts: dict[str, Any]) -> bool:
        """Whether all conditions hold for ``facts``; one about something that is not there does not."""
        return all(name in facts and _holds(facts[name], wanted) for name, wanted in self.where.items())


def _holds(value: Any, wanted: Any) -> bool:
    if isinstance(value, float):
        return wanted[0] <= value < wanted[1]
    return value in (wanted if isinstance(wanted, list) else [wanted])


class Plan(_Strict):
    """What a cohort is made by: scanners, effects, kinds of lesions and how visible they are."""

    scanners: dict[str, Scanner] = SCANNERS
    effects: tuple[Effect, ...] = ()
    lesion_types: tuple[str, ...] = tuple(KINDS)
    visibility: tuple[float, float] = (0.6, 1.0)
    contrasts: tuple[Literal["T1w", "T2w", "FLAIR"], ...] = CONTRASTS  # type: ignore[assignment]

    @model_validator(mode="after")
    def _possible(self) -> Plan:
        unknown = [kind for kind in self.lesion_types if kind not in KINDS]
        if unknown or not self.lesion_types or not self.scanners or not self.contrasts:
            what = (
                f"there is no lesion type {unknown[0]!r}" if unknown else "scanners, contrasts, lesion_types: name some"
            )
            raise ValueError(f"{what}; the types are {', '.join(KINDS)}")
        return self


def read_plan(path: str | os.PathLike[str] | None) -> Plan:
    """Read a plan from YAML; None gives the default one.

    Raises
    ------
    InputError
        ``PLAN_INVALID``, naming the entry.
    """
    if path is None:
        return Plan()
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        return Plan.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            "PLAN_INVALID", f"{Path(path).name} cannot be read as YAML", "give a readable YAML file"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the plan"
        raise InputError("PLAN_INVALID", f"{where}: {first['msg']}", "see `uadbench synthesise --help`") from error


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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("OUT_NOT_EMPTY", f"{out} holds something already", "give a new or empty folder")
    paths = read_anatomies(maps)
    participants, rows = [], []
    with _whole(out) as folder:
        tasks = [(number, number >= healthy, seed, paths, plan, folder) for number in range(healthy + lesions)]
        for number, (drawn, volumes) in enumerate(_each(tasks, workers), start=1):
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


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that takes its name when the block ends well, and is removed when it does not."""
    part = out.absolute().with_name(f".{out.name}-{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError("NOT_WRITABLE", f"cannot write {out}", "choose a folder that you may write to") from error
    try:
        yield part
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _each(tasks: list[tuple], workers: int) -> Iterator[tuple[Participant, dict[str, float]]]:
    if workers == 1:
        yield from map(_one, tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks))) as pool:
        try:
            yield from pool.map(_one, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _one(task: tuple[int, bool, int, list[Path], Plan, Path]) -> tuple[Participant, dict[str, float]]:
    """Draw and write one participant; returns what was drawn and the lesion volume of each scan in ml."""
    import torch

    torch.set_num_threads(1)  # sums in another order would give other bytes
    number, sick, seed, paths, plan, out = task
    rng = np.random.default_rng((seed, number))
    # Every map is used once before any is used twice.
    path = paths[(number + int(np.random.default_rng(seed).integers(len(paths)))) % len(paths)]
    return _make(*_draw(number, sick, read_anatomy(path), plan, rng), out)


def _draw(
    number: int, sick: bool, source: Anatomy, plan: Plan, rng: np.random.Generator
) -> tuple[Participant, Anatomy, TissueMaps | None]:
    """Draw a participant, bend the head, and describe its tissue where a lesion is to be put in."""
    age, sex = float(np.round(rng.uniform(*AGES), 1)), str(rng.choice(["F", "M"]))
    scanner = sorted(plan.scanners)[int(rng.integers(len(plan.scanners)))]
    kind = plan.lesion_types[number % len(plan.lesion_types)] if sick else ""
    facts: dict[str, Any] = {"age": age, "sex": sex, "scanner": scanner, "site": plan.scanners[scanner].site}
    facts |= {"lesion_type": kind} if kind else {}
    years = age - AGES[0]
    factor = _factors(plan, facts)
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
    anatomy = deform(source, deformation)
    tissue, lesions = _lesions(kind, anatomy, plan, facts, rng) if sick else (None, ())
    looks = {contrast: _look(contrast, plan.scanners[scanner], rng) for contrast in plan.contrasts}
    acquisitions = {c: _acquisition(c, plan, facts, rng) for c in plan.contrasts}
    drawn = Participant(
        f"sub-{number + 1:03d}", age, sex, scanner, facts["site"], source.name, kind,
        deformation, looks, acquisitions, lesions, int(rng.integers(2**31)),
    )  # fmt: skip
    return drawn, anatomy, tissue


def _factors(plan: Plan, facts: dict[str, Any]) -> dict[str, float]:
    """The product of all planted effects that apply, for every quantity."""
    result = dict.fromkeys(MULTIPLIED, 1.0)
    for effect in plan.effects:
        if effect.applies(facts):
            for name, factor in effect.multiply.items():
                result[name] *= factor
    return result


def _look(contrast: str, scanner: Scanner, rng: np.random.Generator) -> Look:
    """The tissue contrast of a scanner: all means drawn towards white matter, or away from it."""
    look = draw_look(contrast, rng)
    return replace(look, means=tuple(max(0.0, 1 + scanner.contrast * (m - 1)) if m > 0 else 0.0 for m in look.means))


def _acquisition(contrast: str, plan: Plan, facts: dict[str, Any], rng: np.random.Generator) -> Acquisition:
    scanner = plan.scanners[facts["scanner"]]
    factor = _factors(plan, facts | {"contrast": contrast})
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
    factor = _factors(plan, facts | {"lesion_ml": lesion.volume_ml})["visibility"]
    return tissue, (replace(lesion, visibility=float(min(1.0, lesion.visibility * factor))),)


def to_template(anatomy: Anatomy) -> np.ndarray:
    """RAS mm of a head to RAS mm of the MNI152 template, by registering its own T1w look."""
    import SimpleITK as sitk

    means = [PRIORS["T1w"][name][0] for name in NAMES]
    mask = brain_mask(anatomy)
    image = np.array(means, dtype=np.float32)[anatomy.classes]
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # Sums over several threads come in any order; one thread and four decimals give the same matrix every time.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        found = register_brain(image, anatomy.affine, mask)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
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
            }
        )
    return rows


def _write_tables(
    out: Path, made: list[tuple[Participant, dict[str, float]]], rows: list[dict[str, Any]], plan: Plan, seed: int
) -> None:
    """Describe the folder: BIDS, the cohort table, and the truth."""
    about = {"Name": "UADBench synthetic cohort", "BIDSVersion": "1.10.0", "License": "CC0"}
    origin = [{"Name": "UADBench", "Version": __version__}]
    write_json(out / "dataset_description.json", {**about, "DatasetType": "raw", "GeneratedBy": origin})
    derived = {**about, "Name": f"{about['Name']}: masks", "DatasetType": "derivative", "GeneratedBy": origin}
    write_json(out / DERIVATIVES / "dataset_description.json", derived)
    lines = ["\t".join(PARTICIPANT_COLUMNS)]
    for drawn, volumes in made:
        volume = f"{max(volumes.values()):.3f}" if volumes else "n/a"
        facts = (drawn.participant_id, drawn.age, drawn.sex, "lesion" if drawn.lesion_type else "healthy", drawn.site)
        rest = (drawn.scanner, drawn.label_map, drawn.lesion_type or "n/a", volume)
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
