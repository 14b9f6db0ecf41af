"""Where in the template brain real lesions lie, how large they are and how many: the statistics that ``Testing/
fit_lesions.py`` computes from lesion masks, as shipped in ``Resources/Synthesis``.

Only low-resolution maps and numbers; no mask of any patient is in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError

PLACES = "lesion_places"
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class LesionPlaces:
    """Maps and numbers of stroke and multiple-sclerosis lesions.

    Attributes
    ----------
    maps : dict of str to numpy.ndarray
        ``ms_voxels``, ``ms_centres`` (I, J, K) and ``stroke_territories`` (T, I, J, K), float32 in [0, 1], each map
        scaled to a largest value of 1.
    affine : numpy.ndarray
        Shape (4, 4), map index to template RAS mm.
    numbers : dict
        Per kind (``ms``, ``stroke``) quantiles of volumes, counts and shapes; sources and licences.
    """

    maps: dict[str, np.ndarray]
    affine: np.ndarray
    numbers: dict[str, Any]


@lru_cache(maxsize=1)
def load_places() -> LesionPlaces:
    """Load the shipped statistics, which lie beside the package (source tree, extension) or in it (wheel).

    Raises
    ------
    InputError
        ``RESOURCE_MISSING`` when the installation lacks them.
    """
    from safetensors.numpy import load_file

    folders = [root / "Resources" / "Synthesis" for root in (_PACKAGE.parent, _PACKAGE)]
    folder = next((place for place in folders if (place / f"{PLACES}.safetensors").is_file()), None)
    if folder is None:
        raise InputError("RESOURCE_MISSING", f"{PLACES}.safetensors is not installed", "install uadbench again")
    stored = load_file(folder / f"{PLACES}.safetensors")
    affine = stored.pop("affine").astype(np.float64)
    maps = {name: values.astype(np.float32) / 255 for name, values in stored.items()}
    numbers = json.loads((folder / f"{PLACES}.json").read_text(encoding="utf-8"))
    return LesionPlaces(maps, affine, numbers)
