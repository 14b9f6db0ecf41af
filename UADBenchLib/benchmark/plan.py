"""What a benchmark consists of, settled before it begins: which scans, which models at which thresholds, and whether
these may be judged on those at all.

Nothing is computed or written here; that is the ``runner``'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from UADBenchLib import __version__
from UADBenchLib.benchmark.evaluate import Job
from UADBenchLib.benchmark.tables import Run, RunModel, RunPoint
from UADBenchLib.bundles.bundle import Metadata, OperatingPoint, load_metadata
from UADBenchLib.bundles.catalogue import find_model, list_models
from UADBenchLib.cohort import CohortScan, check_files, read_cohort, select
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.lesions import LesionRule
from UADBenchLib.evaluation.policy import DEFAULT_POLICY
from UADBenchLib.inference.detector import MINIMUM_ML
from UADBenchLib.reading import stem_of
from UADBenchLib.scan import Check

MINIMUM_LESION_ML = 0.01
"""Reference lesions below this, ten cubic millimetres, are specks of the drawing."""
SEED = 0
"""Of the resampling in the summary; nothing else is random."""


@dataclass(frozen=True)
class Plan:
    """A run that is settled and not begun: what is done, by which models, with what was noticed about the cohort."""

    run: Run
    jobs: list[Job]
    checks: list[Check]


def make_plan(
    cohort: str | Path,
    models: Sequence[str] | str,
    data: str | Path | None = None,
    operating_points: Sequence[str] = (),
    device: str = "cpu",
    minimum_ml: float = MINIMUM_ML,
    minimum_lesion_ml: float = MINIMUM_LESION_ML,
    *,
    split: str = "test",
    points: Mapping[str, Mapping[str, OperatingPoint]] | None = None,
) -> Plan:
    """Settle what a run consists of, and refuse what cannot be one; see ``benchmark``.

    ``device`` is the kind of device; ``points`` are operating points, by model, beside those of the bundles and
    instead of those with the same name.
    """
    rows = select(read_cohort(cohort, data), split=split)
    if not rows:
        raise InputError(
            "COHORT_EMPTY", f"{cohort} has splits and no scan of split {split}", f"name the split of some {split}"
        )
    chosen = _models(models, {row.contrast for row in rows})
    for model, further in (points or {}).items():
        known = chosen[model].operating_points | dict(further)
        chosen[model] = chosen[model].model_copy(update={"operating_points": known})
    names = _point_names(chosen, operating_points)
    checks = [*_refuse_shared(chosen, names, rows), *_without_model(chosen, rows)]
    rows = [row for row in rows if row.contrast in {metadata.contrast for metadata in chosen.values()}]
    rule = LesionRule(minimum_reference_ml=minimum_lesion_ml)
    ids = scan_ids(rows)
    run = Run(
        cohort=_cohort_name(Path(cohort)),
        fingerprint=_digest([_facts(row, scan_id) for row, scan_id in zip(rows, ids, strict=True)]),
        scans=len(rows),
        models={model: _run_model(metadata, names) for model, metadata in chosen.items()},
        operating_points=tuple(names),
        minimum_ml=minimum_ml,
        device=device,
        policy=DEFAULT_POLICY.record() | {"sentence": DEFAULT_POLICY.sentence()},
        lesion_rule=rule.record() | {"sentence": rule.sentence()},
        seed=SEED,
        versions=versions(),
    )
    return Plan(run, _jobs(run, rows, ids, rule), [*checks, *check_files(rows)])


def _jobs(run: Run, rows: Sequence[CohortScan], ids: Sequence[str], rule: LesionRule) -> list[Job]:
    """What there is to do for each scan: the models of its contrast, at the thresholds of the run."""
    fingerprint = _digest(run.model_dump(mode="json"))
    paths = {model: find_model(model) for model in run.models}
    jobs = []
    for row, scan_id in zip(rows, ids, strict=True):
        fitting = [model for model, known in run.models.items() if known.contrast == row.contrast]
        points = {
            model: {name: point.threshold for name, point in run.models[model].operating_points.items()}
            for model in fitting
        }
        own = {model: paths[model] for model in fitting}
        jobs.append(Job(scan_id, row.dataset or run.cohort, row, own, points, run.minimum_ml, rule, fingerprint))
    return jobs


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    names = ("numpy", "scipy", "torch", "SimpleITK", "nibabel", "nilearn")
    return {"uadbench": __version__} | {name: version(name) for name in names}


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def _cohort_name(path: Path) -> str:
    """The name of a folder or table; a table that is called cohort goes by its folder."""
    path = path.absolute()
    return path.name if path.is_dir() else path.stem if path.stem != "cohort" else path.parent.name


def scan_ids(rows: Sequence[CohortScan]) -> list[str]:
    """A name for every scan: its file's stem, with some digits of its path's hash where two have the same.

    Names differ in more than case, since they become names of files.
    """
    stems = [re.sub(r"[^A-Za-z0-9._-]+", "-", stem_of(row.scan)) for row in rows]
    count = Counter(stem.lower() for stem in stems)
    common = Path(os.path.commonpath([row.scan.absolute().parent for row in rows])) if rows else Path()
    return [
        stem
        if count[stem.lower()] == 1
        else f"{stem}-{_digest(row.scan.absolute().relative_to(common).as_posix())[:8]}"
        for stem, row in zip(stems, rows, strict=True)
    ]


def _facts(row: CohortScan, scan_id: str) -> dict[str, Any]:
    """What the tables take from a row; the data may be moved between two attempts at a run."""
    known = {key: value for key, value in asdict(row).items() if not isinstance(value, Path)}
    return known | {
        "scan_id": scan_id,
        "reference": row.reference is not None,
        "brain_mask": row.brain_mask is not None,
    }


def _models(wanted: Sequence[str] | str, contrasts: set[str]) -> dict[str, Metadata]:
    """Metadata of the models, by id; what cannot be used is refused if it was named."""
    if wanted == "all":
        listed = [entry for entry in list_models() if "broken" not in entry and entry.get("operating_points")]
        ids = [entry["id"] for entry in listed if entry.get("contrast") in contrasts]
        if not ids:
            raise InputError(
                "MODEL_MISSING",
                f"no calibrated model for {', '.join(sorted(contrasts))} is installed",
                "`uadbench models` lists what there is; `uadbench train` and `calibrate` make one",
            )
    else:
        ids = list(dict.fromkeys(wanted))
    chosen = {model: load_metadata(find_model(model)) for model in sorted(ids)}
    for model, metadata in chosen.items():
        if not metadata.operating_points:
            raise InputError("NOT_CALIBRATED", f"{model} has no healthy reference", "run `uadbench calibrate` on it")
        if metadata.contrast not in contrasts:
            raise InputError(
                "CONTRAST_MISMATCH",
                f"{model} was trained on {metadata.contrast}, the cohort has {', '.join(sorted(contrasts))}",
                "choose models of the cohort's contrasts",
            )
    return chosen


def _point_names(models: dict[str, Metadata], wanted: Sequence[str]) -> list[str]:
    """The operating points to evaluate at: those wanted, else all that every model has."""
    shared = [
        n for n in next(iter(models.values())).operating_points if all(n in m.operating_points for m in models.values())
    ]
    names = list(dict.fromkeys(wanted)) or shared
    unknown = [name for name in names if name not in shared]
    if unknown or not names:
        raise InputError(
            "OPERATING_POINT_UNKNOWN",
            f"not every model has an operating point {unknown[0]!r}" if unknown else "none is common to the models",
            f"choose of {', '.join(shared)}" if shared else "benchmark them apart, or calibrate them alike",
        )
    return names


def _run_model(metadata: Metadata, names: Sequence[str]) -> RunModel:
    points = {}
    for name in names:
        point = metadata.operating_points[name]
        points[name] = RunPoint(
            threshold=point.threshold, ci=point.ci, healthy_fpr=point.healthy_fpr, origin=point.origin
        )
    return RunModel(
        id=metadata.id,
        method=metadata.method,
        preset=metadata.preset,
        contrast=metadata.contrast,
        weights_sha256=metadata.sha256["models/model.safetensors"],
        recipe_hash=metadata.recipe_hash,
        operating_points=points,
    )


def _refuse_shared(models: dict[str, Metadata], names: Sequence[str], rows: Sequence[CohortScan]) -> list[Check]:
    """Refuse subjects that a model was trained or calibrated on, or that a threshold came from; names that agree but
    for the name of a data set in front are told as a warning."""
    checks = []
    for model, metadata in models.items():
        subjects = {row.subject for row in rows if row.contrast == metadata.contrast}
        known = set(metadata.trained_on["subjects"])
        known |= set(metadata.calibration.subjects if metadata.calibration else ())
        known |= {subject for name in names for subject in metadata.operating_points[name].subjects}
        shared = sorted(subjects & known)
        if shared:
            raise InputError(
                "SUBJECTS_SHARED",
                f"{model} was trained or calibrated on {len(shared)} subjects of the cohort ({shared[0]}, ...)",
                "give other subjects, or mark these rows with a split other than test",
            )
        alike = sorted(subjects & {_bare(subject) for subject in known} | {s for s in subjects if _bare(s) in known})
        if alike:
            checks.append(
                Check(
                    "warning",
                    "SUBJECTS_MAYBE_SHARED",
                    f"{model} was trained or calibrated on subjects with the same names, {alike[0]} for one",
                    "make sure that they are others; a column dataset tells them apart",
                )
            )
    return checks


def _bare(subject: str) -> str:
    """A subject's name without that of its data set: ``ixi-sub-IXI012`` gives ``sub-IXI012``."""
    return subject[subject.index("sub-") :] if "sub-" in subject else subject


def _without_model(models: dict[str, Metadata], rows: Sequence[CohortScan]) -> list[Check]:
    left = Counter(row.contrast for row in rows if row.contrast not in {m.contrast for m in models.values()})
    return [
        Check(
            "warning", "NO_MODEL", f"{count} {contrast} scans are left out: no model of theirs", "add one with --models"
        )
        for contrast, count in sorted(left.items())
    ]
