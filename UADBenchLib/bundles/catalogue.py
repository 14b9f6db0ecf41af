"""Which bundles there are. Standard library only, since Slicer's own process reads it too; weights are opened by
``bundle``.

Bundles lie in ``Resources/Models`` beside the package (source tree, installed extension), in
``UADBenchLib/Resources/Models`` (wheel), in the user's own folder (``user_folder``), and in the folders named by
``UADBENCH_MODELS``; the last come first, and the user's before what was shipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from UADBenchLib.errors import InputError

_PACKAGE = Path(__file__).resolve().parent.parent
PREFERENCE = ("disyre", "denoising_autoencoder", "intensity_norm")
"""Methods in the order in which the default model of a contrast is looked for."""
_NAMED: ContextVar[tuple[Path, ...]] = ContextVar("named", default=())


@contextlib.contextmanager
def models_in(folder: Path) -> Iterator[None]:
    """Let the bundles of a folder count as installed, before all others, while the block runs."""
    token = _NAMED.set((folder, *_NAMED.get()))
    try:
        yield
    finally:
        _NAMED.reset(token)


def user_folder() -> Path:
    """Where models go that a user adds; it need not exist."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "uadbench" / "models"


def bundle_folders() -> list[Path]:
    """Folders that hold bundles, the user's first."""
    named = [*_NAMED.get(), *(Path(p) for p in os.environ.get("UADBENCH_MODELS", "").split(os.pathsep) if p)]
    shipped = [_PACKAGE.parent / "Resources" / "Models", _PACKAGE / "Resources" / "Models"]
    return [folder for folder in (*named, user_folder(), *shipped) if folder.is_dir()]


def list_models() -> list[dict[str, Any]]:
    """Metadata of every bundle, with its ``path``, sorted by id; of two with one id the first folder's counts.

    A folder whose metadata cannot be read is listed with ``"broken"``: the reason, instead of being passed over in
    silence.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in bundle_folders():
        for file in sorted(folder.glob("*/configs/metadata.json")):
            path = file.parent.parent
            try:
                entry = json.loads(file.read_text(encoding="utf-8"))
                entry["id"] = str(entry["id"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                entry = {"id": path.name, "broken": f"metadata.json cannot be read ({type(error).__name__})"}
            found.setdefault(entry["id"], {**entry, "path": str(path)})
    return [found[name] for name in sorted(found)]


def find_model(name: str) -> Path:
    """Return the folder of the bundle with id ``name``.

    Raises
    ------
    InputError
        ``MODEL_UNKNOWN``, naming the ids there are.
    """
    models = list_models()
    for entry in models:
        if entry["id"] == name:
            return Path(entry["path"])
    known = ", ".join(entry["id"] for entry in models) or "none installed"
    raise InputError("MODEL_UNKNOWN", f"there is no model {name!r}", f"the models are: {known}")


def models_for(contrast: str) -> list[str]:
    """Return the ids of the sound bundles for a contrast, the one to use when the user names none first.

    Raises
    ------
    InputError
        ``MODEL_MISSING`` when no bundle was trained for the contrast.
    """
    fitting = [entry for entry in list_models() if entry.get("contrast") == contrast and "broken" not in entry]
    if not fitting:
        raise InputError(
            "MODEL_MISSING",
            f"no model for {contrast} is installed",
            "`uadbench models` lists what there is; `uadbench train` makes one",
        )
    rank = {name: number for number, name in enumerate(PREFERENCE)}
    fitting.sort(key=lambda entry: (rank.get(entry.get("method"), len(rank)), entry["id"]))
    return [entry["id"] for entry in fitting]


def default_model(contrast: str) -> str:
    """Return the id of the model to use for a contrast when the user names none; raises as ``models_for``."""
    return models_for(contrast)[0]
