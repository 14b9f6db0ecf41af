"""One bundle: a trained method with everything that is needed to use it and to say where it came from.

The folder has the layout of a MONAI bundle. Two things of it are read, ``configs/metadata.json`` (checked against a
schema) and safetensors files (checked against the hashes in the metadata); nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from UADBenchLib.errors import InputError
from UADBenchLib.methods.base import Method
from UADBenchLib.methods.registry import create_method
from UADBenchLib.preprocessing.recipe import Recipe
from UADBenchLib.writing import atomic, write_json, write_text

REFERENCE = "models/reference.safetensors"
LARGEST_WEIGHTS = 2 * 1024**3
"""Bytes; larger files are not opened."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OperatingPoint(_Strict):
    """A threshold on the calibrated map, the healthy false-positive rate it gave on validation scans, and where it came
    from.

    ``ci`` is the 95 % interval of the threshold over resampled validation subjects. ``subjects`` are those of the
    scans that it was read off; none for bundles written before they were kept, whose calibration names them.
    """

    threshold: float
    healthy_fpr: float | None = Field(ge=0, le=1)
    ci: tuple[float, float]
    origin: str
    subjects: tuple[str, ...] = ()


class Calibration(_Strict):
    """How raw scores become z; see ``inference.calibration``."""

    version: int
    voxel_mm: float
    smoothing_mm: float
    rescaled: bool
    level: float
    floor: float
    subjects: tuple[str, ...]
    sites: dict[str, int]


class Domain(_Strict):
    """What healthy validation scans look like; see ``inference.domain``. ``features`` holds centre and spread of each
    figure, ``limit`` the distance from which a scan counts as unlike them."""

    features: dict[str, tuple[float, float]]
    limit: float
    scans: int
    origin: str


class Space(_Strict):
    """Where the model works."""

    template: str
    voxel_mm: float
    shape: tuple[int, int, int]
    registration: str


class Metadata(_Strict):
    """Contents of ``configs/metadata.json``."""

    schema_version: int = 1
    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    version: str
    method: str
    paper: str
    preset: str
    contrast: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    recipe_hash: str
    space: Space
    trained_on: dict[str, Any]
    seed: int
    steps: int
    seconds_per_scan: float | None = None
    calibration: Calibration | None = None
    domain: Domain | None = None
    operating_points: dict[str, OperatingPoint] = {}
    metrics: dict[str, Any] = {}
    versions: dict[str, str]
    sha256: dict[str, str]
    licence: str = "not stated"
    intended_use: str = "Research only; not a medical device."


@dataclass
class Bundle:
    """A bundle in memory.

    Attributes
    ----------
    metadata : Metadata
    method : Method
        In evaluation mode, on the CPU, float32.
    recipe : Recipe
    reference : dict or None
        Healthy reference ``mean`` and ``spread`` of the score, float32 on the coarse grid of the calibration.
    path : Path or None
    """

    metadata: Metadata
    method: Method
    recipe: Recipe
    reference: dict[str, np.ndarray] | None = None
    path: Path | None = None


def bundle_id(method: str, contrast: str, preset: str) -> str:
    """The id of a bundle: ``<method>-<contrast>-<preset>`` in lower case, words joined by hyphens."""
    return f"{method}-{contrast}-{preset}".lower().replace("_", "-")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def load_metadata(path: Path) -> Metadata:
    """Read and check the metadata of a bundle.

    Raises
    ------
    InputError
        ``BUNDLE_INVALID``.
    """
    file = Path(path) / "configs" / "metadata.json"
    try:
        return Metadata.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "BUNDLE_INVALID", f"{file.name} of {path} cannot be read", "is this a bundle's folder?"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError("BUNDLE_INVALID", f"metadata.json: {where}: {first['msg']}", "get the bundle again") from error


def load_bundle(path: str | Path) -> Bundle:
    """Load a bundle from its folder.

    Raises
    ------
    InputError
        ``BUNDLE_INVALID`` (schema, missing file, shapes), ``BUNDLE_DAMAGED`` (hash), ``RECIPE_MISMATCH``.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    metadata = load_metadata(path)
    recipe = _recipe(metadata)
    method = create_method(metadata.method, metadata.preset, metadata.config)
    file = _checked(path, metadata)
    try:
        weights = {name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()}
        method.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        raise InputError(
            "BUNDLE_INVALID", "the weights do not fit the configuration", "get the bundle again"
        ) from error
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise InputError("BUNDLE_INVALID", "the weights hold values that are not finite", "get the bundle again")
    reference = _reference(path, metadata) if REFERENCE in metadata.sha256 else None
    return Bundle(metadata, method.eval().requires_grad_(False), recipe, reference, path)


def _reference(path: Path, metadata: Metadata) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = _checked(path, metadata, REFERENCE)
    try:
        reference = {name: value.astype(np.float32) for name, value in load_file(file).items()}
    except SafetensorError as error:
        raise InputError("BUNDLE_INVALID", f"{REFERENCE} cannot be read", "get the bundle again") from error
    shapes = {value.shape for value in reference.values()}
    sound = (
        set(reference) == {"mean", "spread"}
        and len(shapes) == 1
        and all(np.isfinite(v).all() for v in reference.values())
    )
    if not sound:
        raise InputError("BUNDLE_INVALID", f"{REFERENCE} is no healthy reference", "calibrate the bundle again")
    return reference


def _recipe(metadata: Metadata) -> Recipe:
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in metadata.recipe.items()}
    try:
        recipe = Recipe(**values)
    except TypeError as error:
        raise InputError("BUNDLE_INVALID", f"the recipe is not known ({error})", "update uadbench") from error
    if recipe.hash != metadata.recipe_hash or recipe.version != Recipe().version:
        raise InputError(
            "RECIPE_MISMATCH",
            f"{metadata.id} was trained on scans prepared by another recipe ({metadata.recipe_hash})",
            "use a bundle of this version of uadbench, or train it again",
        )
    return recipe


def _checked(path: Path, metadata: Metadata, name: str = "models/model.safetensors") -> Path:
    file = path / name
    if not file.is_file():
        raise InputError("BUNDLE_INVALID", f"{metadata.id} lacks {name}", "get the bundle again")
    if file.stat().st_size > LARGEST_WEIGHTS:
        raise InputError("BUNDLE_INVALID", f"{name} of {metadata.id} is larger than 2 GiB", "get the bundle again")
    if sha256_of(file) != metadata.sha256.get(name):
        raise InputError(
            "BUNDLE_DAMAGED", f"{name} of {metadata.id} does not match its checksum", "get the bundle again"
        )
    return file


def save_bundle(bundle: Bundle, path: str | Path) -> Bundle:
    """Write a bundle: weights as float16, reference, metadata with fresh hashes, card and licence. Returns it with its
    path.

    Metadata is written last, so that a bundle that was cut short does not verify.
    """
    import torch
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    from UADBenchLib.bundles.card import render_card

    path = Path(path)
    weights = {
        name: (
            value.detach().cpu().to(torch.float16) if value.is_floating_point() else value.detach().cpu()
        ).contiguous()
        for name, value in bundle.method.state_dict().items()
    }
    (path / "models").mkdir(parents=True, exist_ok=True)
    hashes = {}
    with atomic(path / "models" / "model.safetensors") as temporary:
        save_file(weights, temporary)
    hashes["models/model.safetensors"] = sha256_of(path / "models" / "model.safetensors")
    if bundle.reference is not None:
        with atomic(path / REFERENCE) as temporary:
            save_arrays({name: v.astype(np.float16) for name, v in bundle.reference.items()}, temporary)
        hashes[REFERENCE] = sha256_of(path / REFERENCE)
    (path / "docs").mkdir(exist_ok=True)
    (path / "configs").mkdir(exist_ok=True)
    metadata = bundle.metadata.model_copy(update={"sha256": hashes})
    write_text(path / "docs" / "README.md", render_card(metadata))
    write_text(
        path / "LICENSE", f"Licence of the weights in this bundle: {metadata.licence}\n{metadata.intended_use}\n"
    )
    write_json(path / "configs" / "inference.json", _inference_summary(metadata))
    write_json(path / "configs" / "metadata.json", json.loads(metadata.model_dump_json()))
    return Bundle(metadata, bundle.method, bundle.recipe, bundle.reference, path)


def _inference_summary(metadata: Metadata) -> dict[str, Any]:
    """What a reader of bundles expects in ``inference.json``; a description, which UADBench itself does not read."""
    return {
        "command": f"uadbench detect SCAN --model {metadata.id} --out DIR",
        "input": {"contrast": metadata.contrast, "space": metadata.space.model_dump(mode="json")},
        "output": "anomaly map, calibrated z, on the scan's own grid",
    }


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values for the metadata."""
    return asdict(recipe)
