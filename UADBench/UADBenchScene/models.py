"""The models that can be chosen, in words: what each is for, how long it takes, and whether its files are whole.

Nothing is loaded; the catalogue reads metadata files only. Models that are imported from a folder go into the user's
own folder, which is also where the command line finds them; those that came with the extension are never touched.
"""

from __future__ import annotations

import collections
import hashlib
import json
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from UADBenchLib.bundles import catalogue

from .texts import _
from .volumes import SceneError

DEFAULT_POINT = "fpr-1pct"


@dataclass(frozen=True)
class ModelRow:
    """One model as the list shows it.

    Attributes
    ----------
    id, contrast : str
    label : str
        The method in words, with its preset where that is not the usual one; the id where that leaves several alike.
    good_at : str
        What it was measured to find, from its metadata; says so when nothing was measured.
    best_at : str
        The lesion type of these that it was measured to find best, in short.
    seconds : float or None
        For one scan on the processor that it was calibrated on, preparation apart.
    megabytes : float
        Of its files.
    own : bool
        Whether it lies in the user's folder and can be removed.
    """

    id: str
    contrast: str
    label: str
    good_at: str
    best_at: str
    seconds: float | None
    megabytes: float
    own: bool


def usable_models() -> list[dict[str, Any]]:
    """Return the metadata of the models that can be used; a bundle that cannot be read, or does not say what it is, is
    left out.
    """
    stated = ("contrast", "method", "preset")
    return [entry for entry in catalogue.list_models() if all(isinstance(entry.get(name), str) for name in stated)]


def model_rows(models: list[dict[str, Any]]) -> list[ModelRow]:
    """Return the rows of the list: by contrast, the preferred methods first."""
    rank = {name: number for number, name in enumerate(catalogue.PREFERENCE)}
    ordered = sorted(models, key=lambda e: (e["contrast"], rank.get(e["method"], len(rank)), e["id"]))
    alike = collections.Counter((entry["contrast"], _label(entry)) for entry in models)
    return [
        ModelRow(
            entry["id"],
            entry["contrast"],
            _label(entry) if alike[entry["contrast"], _label(entry)] == 1 else entry["id"],
            *good_at(entry.get("metrics") or {}),
            entry.get("seconds_per_scan"),
            round(_bytes(Path(entry["path"])) / 1e6, 1),
            Path(entry["path"]).parent == catalogue.user_folder(),
        )
        for entry in ordered
    ]


def _label(entry: dict[str, Any]) -> str:
    """Return the method of a model in words, with its preset where that is not the usual one."""
    method = entry["method"].replace("_", " ")
    return method if entry["preset"] == "compact" else f"{method} ({entry['preset']})"


def matching(rows: list[ModelRow], contrast: str = "", words: str = "") -> list[ModelRow]:
    """Return the rows of a contrast (all with an empty one) that have every word somewhere."""
    wanted = words.lower().split()
    return [
        row
        for row in rows
        if contrast in ("", row.contrast)
        and all(word in f"{row.id} {row.label} {row.contrast} {row.good_at}".lower() for word in wanted)
    ]


def good_at(metrics: dict[str, Any]) -> tuple[str, str]:
    """Return what a model was measured to find, lesion types by the Dice that its map could reach: a phrase with all,
    and the best in short.
    """
    by_type: dict[str, list[float]] = {}
    for case in metrics.get("lesions") or []:
        if case.get("best_dice") is not None:
            by_type.setdefault(str(case.get("lesion_type", "lesion")), []).append(float(case["best_dice"]))
    if not by_type:
        return _("not measured"), _("not measured")
    means = sorted(((statistics.mean(values), name, len(values)) for name, values in by_type.items()), reverse=True)
    phrase = ", ".join(
        _("{name}: best Dice {mean:.2f} (n={count})").format(name=name, mean=mean, count=count)
        for mean, name, count in means
    )
    return phrase, f"{means[0][1]} {means[0][0]:.2f}"


def operating_points(models: list[dict[str, Any]], ids: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return name and label of the operating points that all of the named models have, the default first.

    The label says which share of healthy voxels is expected above the threshold, and with one model the threshold.
    """
    chosen = [entry.get("operating_points", {}) for entry in models if entry["id"] in ids]
    if not chosen:
        return []
    common = set(chosen[0]).intersection(*chosen[1:])
    points = []
    for name in sorted(common, key=lambda name: (name != DEFAULT_POINT, name)):
        shares = [points_of[name].get("healthy_fpr") for points_of in chosen]
        facts = []
        if len(chosen) == 1:
            facts.append(f"z > {chosen[0][name]['threshold']:.2f}")
        if all(share is not None for share in shares):
            facts.append(_("{share:.2%} of healthy voxels").format(share=max(shares)))
        points.append((name, f"{name} ({', '.join(facts)})" if facts else name))
    return points


def threshold_of(models: list[dict[str, Any]], model: str, point: str) -> tuple[float, str] | None:
    """Return threshold and origin of a model's operating point, or None where it has none of that name."""
    for entry in models:
        found = entry.get("operating_points", {}).get(point)
        if entry["id"] == model and found is not None:
            return float(found["threshold"]), str(found.get("origin") or "")
    return None


# ---------------------------------------------------------------------------------------------------- files


def _bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def faults_of(folder: Path) -> list[str]:
    """Return what is wrong with a bundle's files: missing, or of another SHA-256 than its metadata says."""
    try:
        expected = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["sha256"]
        pairs = [(str(name), str(digest)) for name, digest in expected.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [_("its metadata cannot be read")]
    faults = []
    for name, digest in pairs:
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or path.is_symlink() or not path.is_file():
            faults.append(_("{name} is missing").format(name=name))
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            faults.append(_("{name} is damaged (its checksum differs)").format(name=name))
    return faults if pairs else [_("its metadata names no weights")]


def import_models(source: Path) -> list[str]:
    """Copy the models of a folder into the user's folder, each whole or not at all; no network is needed.

    Parameters
    ----------
    source : pathlib.Path
        A bundle, or a folder of bundles.

    Returns
    -------
    list of str
        Ids of what was imported.

    Raises
    ------
    SceneError
        NO_MODELS when there is none, MODEL_DAMAGED when a file is not what its checksum says; nothing is then imported.
    """
    here = [source] if (source / "configs" / "metadata.json").is_file() else sorted(source.glob("*"))
    bundles = [folder for folder in here if (folder / "configs" / "metadata.json").is_file()]
    if not bundles:
        raise SceneError(
            "NO_MODELS",
            _("there is no model in {name}").format(name=source.name),
            _("choose a folder with {file} in it").format(file="configs/metadata.json"),
        )
    for folder in bundles:
        if faults := faults_of(folder):
            raise SceneError(
                "MODEL_DAMAGED", f"{folder.name}: {faults[0]}", _("copy the folder again from where it came")
            )
    target = catalogue.user_folder()
    target.mkdir(parents=True, exist_ok=True)
    for folder in bundles:
        _copy_whole(folder, target / folder.name)
    return [folder.name for folder in bundles]


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder beside its target first, so that the target is whole or as it was."""
    if target.exists() and source.resolve() == target.resolve():
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".import-") as made:
        shutil.copytree(source, Path(made) / "new", symlinks=True)
        if target.exists():
            target.rename(Path(made) / "old")
        (Path(made) / "new").rename(target)


def clear_imported() -> list[str]:
    """Remove the imported models and return their ids; what came with the extension stays."""
    folder, removed = catalogue.user_folder(), []
    for path in sorted(folder.glob("*/configs/metadata.json")):
        shutil.rmtree(path.parent.parent)
        removed.append(path.parent.parent.name)
    return removed
