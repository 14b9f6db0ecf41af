"""Synthetic lesions with exact masks: tumours, strokes, multiple-sclerosis plaques and white-matter hyperintensities.

What is random is drawn first (``draw_lesion``) and kept, so that any lesion can be made again;
``insertion.apply_lesion`` then puts it into all contrasts of a head at once, in one geometry. Places, sizes and shapes
of strokes and plaques follow statistics of real lesions (``places``), contrasts follow what the sequences show in vivo.
They are stand-ins for validation and demonstration, not simulations of a disease, and share no code with the anomalies
that methods are trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.synthesis.places import load_places
from UADBenchLib.synthesis.tissue import TissueMaps

KINDS: dict[str, tuple[str, ...]] = {
    "tumour": ("necrotic", "solid"),
    "stroke": ("acute", "chronic"),
    "ms": ("plaques",),
    "wmh": ("hyperintensities",),
}
"""Kinds of lesion and their variants."""

VOLUME_ML = (0.05, 150.0)
"""Volumes that may be asked for."""

CONTRASTS = ("T1w", "T2w", "FLAIR")

SMALLEST_FOCUS_ML = 0.005
CONFLUENT_ML = 1.0
"""Volume from which the largest plaque of multiple sclerosis is taken to have grown together around the ventricles."""


@dataclass(frozen=True)
class Change:
    """How a compartment looks in one contrast.

    Attributes
    ----------
    fluid : float
        Share of the way from the tissue's intensity to that of cerebrospinal fluid, in [0, 1].
    bright : float
        What is added, in intensities of white matter.
    """

    fluid: float
    bright: float


@dataclass(frozen=True)
class Compartment:
    """A part of a lesion: its name, its share of the grown body from the inside out, and its ``Change`` by contrast.

    Oedema lies around the body and has the share 0.
    """

    name: str
    share: float
    changes: dict[str, Change]


@dataclass(frozen=True)
class Focus:
    """One body that grows from one start.

    Attributes
    ----------
    centre : tuple of float
        RAS mm in the scan.
    volume_ml : float
        Volume that it adds to the lesion.
    elongation : float
        Length over width of the capsule that it would be in homogeneous tissue, at least 1.
    direction : tuple of float
        Unit vector of the long axis, RAS.
    from_ventricles : bool
        Grow from the walls of the lateral ventricles instead of from the centre.
    seed : int
        Of the field that roughens its border.
    """

    centre: tuple[float, float, float]
    volume_ml: float
    elongation: float
    direction: tuple[float, float, float]
    from_ventricles: bool
    seed: int


@dataclass(frozen=True)
class Lesion:
    """What was drawn for one lesion.

    Attributes
    ----------
    kind, variant : str
        One of ``KINDS`` and of its variants.
    visibility : float
        Scales all changes of intensity and the mass effect, in [0, 1]; the lesion's size does not depend on it.
    foci : tuple of Focus
        Bodies that make up the lesion without its oedema.
    oedema_ml : float
        Volume of oedema.
    compartments : tuple of Compartment
        From the inside out.
    tissue_speed : tuple of float
        Speed of growth in white matter, grey matter.
    place : str
        Map of ``LesionPlaces`` that steers growth; empty for none.
    territory : int
        Number of the map within ``stroke_territories``, else 0.
    attraction : float
        Exponent of that map.
    roughness : float
        Standard deviation of the logarithm of the speed.
    edge_mm : float
        Width over which the change fades in at the border.
    mass_effect : float
        Share of the body's volume that pushed tissue aside, in [0, 1).
    mottling : float
        Standard deviation of the change within the lesion, as a share of it.
    seed : int
        Of the fields that divide and mottle it.
    """

    kind: str
    variant: str
    visibility: float
    foci: tuple[Focus, ...]
    oedema_ml: float
    compartments: tuple[Compartment, ...]
    tissue_speed: tuple[float, float]
    place: str
    territory: int
    attraction: float
    roughness: float
    edge_mm: float
    mass_effect: float
    mottling: float
    seed: int

    @property
    def volume_ml(self) -> float:
        """Volume of the whole lesion, which ``insertion.apply_lesion`` meets to the voxel."""
        return sum(focus.volume_ml for focus in self.foci) + self.oedema_ml


def lesion_from_json(document: Mapping[str, Any]) -> Lesion:
    """Rebuild a lesion from ``dataclasses.asdict`` or its JSON.

    Raises
    ------
    InputError
        ``LESION_INVALID`` when fields are missing or of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Lesion).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            "LESION_INVALID", f"{where}: {first['msg'].lower()}", "give what was recorded for a lesion"
        ) from error


# ---------------------------------------------------------------------------------------------------------- drawing

Span = tuple[float, float]
NOTHING: Span = (0.0, 0.0)


def _look(t1w: Span, t2w: Span, flair: Span, flair_fluid: Span = NOTHING) -> dict[str, tuple[Span, Span]]:
    """Ranges of (fluid, bright) by contrast: dark on T1w, bright on T2w and FLAIR."""
    return {"T1w": (t1w, NOTHING), "T2w": (t2w, NOTHING), "FLAIR": (flair_fluid, flair)}


_LOOKS: dict[str, dict[str, dict[str, tuple[Span, Span]]]] = {
    "necrotic": {
        "necrosis": _look((0.60, 0.85), (0.50, 0.80), (0.10, 0.40), (0.20, 0.50)),
        "rim": _look((0.15, 0.35), (0.20, 0.35), (0.35, 0.60)),
        "oedema": _look((0.25, 0.40), (0.30, 0.50), (0.60, 0.90)),
    },
    "solid": {
        "core": _look((0.50, 0.70), (0.40, 0.65), (0.55, 0.90)),
        "oedema": _look((0.20, 0.35), (0.25, 0.40), (0.40, 0.65)),
    },
    "acute": {"lesion": _look((0.08, 0.20), (0.15, 0.30), (0.30, 0.60))},
    "chronic": {
        "cavity": _look((0.75, 0.95), (0.75, 0.95), NOTHING, (0.70, 0.95)),
        "gliosis": _look((0.30, 0.50), (0.35, 0.50), (0.50, 0.80)),
    },
    "plaques": {"plaque": _look((0.25, 0.55), (0.25, 0.45), (0.60, 1.00))},
    "hyperintensities": {"hyperintensity": _look((0.15, 0.35), (0.20, 0.35), (0.50, 0.90))},
}
"""How the compartments of each variant look, from the inside out."""

_INNER_SHARE: dict[str, Span] = {"necrotic": (0.25, 0.65), "chronic": (0.45, 0.75)}
"""Share of the innermost of two compartments of a body."""

_USUAL_ML: dict[str, Span] = {"tumour": (5.0, 120.0), "wmh": (0.5, 50.0)}
"""Volumes to draw from, log-uniform, where no masks were measured."""

_GROWTH: dict[str, dict[str, Any]] = {
    "tumour": {"tissue_speed": (1.0, 0.6), "place": "", "attraction": 0.0},
    "stroke": {"tissue_speed": (0.9, 1.0), "place": "stroke_territories", "attraction": 0.7},
    "ms": {"tissue_speed": (1.0, 0.9), "place": "ms_voxels", "attraction": 2.5},
    "wmh": {"tissue_speed": (1.0, 0.08), "place": "ms_voxels", "attraction": 0.7},
}
_ROUGHNESS: dict[str, Span] = {"tumour": (0.3, 0.6), "stroke": (0.6, 1.1), "ms": (0.8, 1.4), "wmh": (0.4, 0.7)}
_EDGE_MM: dict[str, Span] = {"tumour": (1.5, 3.0), "stroke": (1.5, 3.0), "ms": (1.0, 2.0), "wmh": (2.0, 3.5)}


def draw_lesion(
    kind: str,
    tissue: TissueMaps,
    rng: np.random.Generator,
    *,
    variant: str | None = None,
    volume_ml: float | None = None,
    visibility: float = 1.0,
    centre: tuple[float, float, float] | None = None,
) -> Lesion:
    """Draw a lesion for a head.

    Parameters
    ----------
    kind : str
        One of ``KINDS``.
    tissue : TissueMaps
        The head's tissue.
    rng : numpy.random.Generator
        Source of all that is random.
    variant : str, optional
        One of the kind's variants; drawn by default.
    volume_ml : float, optional
        Volume, 0.05 to 150 ml; by default drawn as in real subjects (stroke, ms) or log-uniformly from the usual
        range (tumour 5 to 120 ml, wmh 0.5 to 50 ml).
    visibility : float
        In [0, 1]; scales what is changed.
    centre : tuple of float, optional
        RAS mm in the scan of the first focus; drawn by default.

    Raises
    ------
    InputError
        ``LESION_KIND``, ``LESION_VOLUME``, ``LESION_VISIBILITY``, ``LESION_NO_ROOM`` (no tissue to start in).
    """
    _check_request(kind, variant, volume_ml, visibility)
    variant = variant or KINDS[kind][rng.integers(len(KINDS[kind]))]
    box = bounding_box(tissue.brain)
    near = tissue.crop(box)
    volume = _draw_volume(kind, rng) if volume_ml is None else float(volume_ml)
    oedema = 0.0
    if kind == "tumour" and volume >= 1:
        oedema = volume * rng.uniform(*((0.35, 0.65) if variant == "necrotic" else (0.0, 0.35)))
    territory, foci = _FOCI[kind](near, volume - oedema, centre, rng)
    return Lesion(
        kind=kind,
        variant=variant,
        visibility=float(visibility),
        foci=foci,
        oedema_ml=oedema,
        compartments=_draw_compartments(variant, rng),
        territory=territory,
        roughness=float(rng.uniform(*_ROUGHNESS[kind])),
        edge_mm=float(rng.uniform(*_EDGE_MM[kind])),
        mass_effect=float(rng.uniform(0.2, 0.7)) if kind == "tumour" and volume >= 1 else 0.0,
        mottling=float(rng.uniform(0.05, 0.2)),
        seed=int(rng.integers(2**31)),
        **_GROWTH[kind],
    )


def _check_request(kind: str, variant: str | None, volume_ml: float | None, visibility: float) -> None:
    if kind not in KINDS:
        raise InputError("LESION_KIND", f"there is no lesion kind {kind!r}", f"use one of {', '.join(KINDS)}")
    if variant is not None and variant not in KINDS[kind]:
        raise InputError("LESION_KIND", f"{kind} has no variant {variant!r}", f"use one of {', '.join(KINDS[kind])}")
    if volume_ml is not None and not VOLUME_ML[0] <= volume_ml <= VOLUME_ML[1]:
        raise InputError("LESION_VOLUME", f"a lesion of {volume_ml} ml", f"ask for {VOLUME_ML[0]} to {VOLUME_ML[1]} ml")
    if not 0 <= visibility <= 1:
        raise InputError("LESION_VISIBILITY", f"a visibility of {visibility}", "give a number from 0 to 1")


def bounding_box(mask: np.ndarray, margin: int = 2) -> tuple[slice, slice, slice]:
    """Return the box around a boolean mask (I, J, K), ``margin`` voxels wider where the grid allows it.

    Raises
    ------
    InputError
        ``BRAIN_MASK_EMPTY`` when nothing is set.
    """
    from scipy.ndimage import find_objects

    found = find_objects(mask.astype(np.uint8))
    if not found:
        raise InputError("BRAIN_MASK_EMPTY", "the brain mask holds no voxel", "give tissue with a brain in it")
    return tuple(
        slice(max(0, side.start - margin), min(size, side.stop + margin))
        for side, size in zip(found[0], mask.shape, strict=True)
    )


def place_map(tissue: TissueMaps, name: str, territory: int = 0) -> np.ndarray:
    """Return one of the maps of ``LesionPlaces`` on the tissue's grid, (I, J, K), float32 in [0, 1]."""
    places = load_places()
    values = places.maps[name]
    values = values[territory] if values.ndim == 4 else values
    return resample(values, places.affine, tissue.brain.shape, tissue.affine, order=1, world=tissue.to_template)


def _quantile(table: list[float], rng: np.random.Generator, size: int | None = None) -> Any:
    """Draw from a table of quantiles, between its entries log-uniformly."""
    return np.exp(np.interp(rng.uniform(size=size), load_places().numbers["quantiles"], np.log(table)))


def _draw_volume(kind: str, rng: np.random.Generator) -> float:
    if kind in _USUAL_ML:
        return float(np.exp(rng.uniform(*np.log(_USUAL_ML[kind]))))
    return float(np.clip(_quantile(load_places().numbers[kind]["volume_ml"], rng), *VOLUME_ML))


def _draw_compartments(variant: str, rng: np.random.Generator) -> tuple[Compartment, ...]:
    inner = float(rng.uniform(*_INNER_SHARE[variant])) if variant in _INNER_SHARE else 1.0
    shares = iter((inner, 1 - inner))
    return tuple(
        Compartment(
            name,
            0.0 if name == "oedema" else next(shares),
            {c: Change(*(float(rng.uniform(*span)) for span in spans)) for c, spans in look.items()},
        )
        for name, look in _LOOKS[variant].items()
    )


def _pick(tissue: TissueMaps, weight: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` places (count, 3), RAS mm, with chances proportional to ``weight`` (I, J, K)."""
    chances = np.cumsum(weight.ravel(), dtype=np.float64)
    if chances[-1] <= 0:
        raise InputError(
            "LESION_NO_ROOM", "the head shows no tissue where such lesions lie", "choose another kind or give a centre"
        )
    drawn = np.searchsorted(chances, rng.uniform(0, chances[-1], size=count), side="right")
    index = np.array(np.unravel_index(drawn, weight.shape))
    return (tissue.affine[:3, :3] @ index).T + tissue.affine[:3, 3]


def _focus(
    centre: np.ndarray,
    volume_ml: float,
    rng: np.random.Generator,
    *,
    elongation: float = 1.0,
    direction: np.ndarray | None = None,
    from_ventricles: bool = False,
) -> Focus:
    axis = rng.standard_normal(3) if direction is None else direction + 0.4 * rng.standard_normal(3)
    axis = axis / max(float(np.linalg.norm(axis)), 1e-6)
    return Focus(
        centre=tuple(float(v) for v in centre),
        volume_ml=float(volume_ml),
        elongation=float(elongation),
        direction=tuple(float(v) for v in axis),
        from_ventricles=from_ventricles,
        seed=int(rng.integers(2**31)),
    )


def _split(kind: str, volume_ml: float, rng: np.random.Generator) -> np.ndarray:
    """Divide a subject's volume among foci as real lesions do: their number, the largest's share, then the others."""
    numbers = load_places().numbers[kind]
    law = numbers["log_count"]
    count = np.exp(law["at_1_ml"] + law["slope"] * np.log(volume_ml) + law["sd"] * rng.standard_normal())
    count = int(np.clip(round(count), 1, max(1, volume_ml / (2 * SMALLEST_FOCUS_ML))))
    if count == 1:
        return np.array([volume_ml])
    largest = max(float(_quantile(numbers["largest_share"], rng)), 1.2 / count)
    others = np.maximum(_quantile(numbers["others_ml"], rng, count - 1), SMALLEST_FOCUS_ML)
    others *= (1 - min(largest, 0.995)) * volume_ml / others.sum()
    others = others[others >= SMALLEST_FOCUS_ML / 2]
    return np.array([volume_ml - others.sum(), *others])


def _stroke_foci(
    tissue: TissueMaps, volume_ml: float, centre: tuple[float, float, float] | None, rng: np.random.Generator
) -> tuple[int, tuple[Focus, ...]]:
    """A main focus in a vascular territory whose strokes are of this size, and satellites near it."""
    law = load_places().numbers["stroke"]["territories"]
    frequency, mean, sd = (np.array([t[k] for t in law]) for k in ("frequency", "log_volume_mean", "log_volume_sd"))
    chance = frequency / sd * np.exp(-0.5 * ((np.log(volume_ml) - mean) / sd) ** 2)
    solid = tissue.brain * (1 - tissue.csf)
    if centre is None:
        territory = int(rng.choice(len(law), p=chance / chance.sum()))
        weight = place_map(tissue, "stroke_territories", territory) ** 2 * solid
        main = _pick(tissue, weight, 1, rng)[0]
    else:
        main = np.asarray(centre, dtype=float)
        there = _territories_at(tissue, main) * chance + 1e-12
        territory = int(rng.choice(len(law), p=there / there.sum()))
    volumes = _split("stroke", volume_ml, rng)
    foci = [_focus(main, volumes[0], rng)]
    if len(volumes) > 1:
        weight = place_map(tissue, "stroke_territories", territory) * solid
        radius = (volumes[0] * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
        squared = _squared_distance(tissue, main)
        weight *= np.exp(-0.5 * squared / (25.0 + 2 * radius) ** 2)
        weight *= np.clip(squared / (2.2 * radius) ** 2, 0, 1) ** 4  # or they would be part of the main focus
        for place, volume in zip(_pick(tissue, weight, len(volumes) - 1, rng), volumes[1:], strict=True):
            foci.append(_focus(place, volume, rng, elongation=1 + rng.exponential(0.4)))
    return territory, tuple(foci)


def _territories_at(tissue: TissueMaps, point: np.ndarray) -> np.ndarray:
    """Values of all territory maps at one place, RAS mm in the scan."""
    places = load_places()
    to_map = np.linalg.inv(places.affine) @ tissue.to_template
    maps = places.maps["stroke_territories"]
    index = np.round((to_map @ [*point, 1.0])[:3]).astype(int)
    return maps[(slice(None), *np.clip(index, 0, np.array(maps.shape[1:]) - 1))]


def _squared_distance(tissue: TissueMaps, point: np.ndarray) -> np.ndarray:
    index = np.linalg.solve(tissue.affine[:3, :3], point - tissue.affine[:3, 3])
    grids = np.ogrid[tuple(slice(0, n) for n in tissue.brain.shape)]
    return sum(((g - i) * e) ** 2 for g, i, e in zip(grids, index, tissue.voxel_mm, strict=True)).astype(np.float32)


def _ms_foci(
    tissue: TissueMaps, volume_ml: float, centre: tuple[float, float, float] | None, rng: np.random.Generator
) -> tuple[int, tuple[Focus, ...]]:
    """Ovoid plaques, whose long axes point away from the lateral ventricles; a large one is confluent around them."""
    volumes = _split("ms", volume_ml, rng)
    centres = _pick(tissue, place_map(tissue, "ms_centres") * tissue.white * tissue.brain, len(volumes), rng)
    if centre is not None:
        centres[0] = centre
    confluent = centre is None and volumes[0] >= CONFLUENT_ML and bool(tissue.ventricles.any())
    axes = _away_from_ventricles(tissue, centres)
    longest = _quantile(load_places().numbers["ms"]["elongation"], rng, len(volumes))
    foci = [
        _focus(place, volume, rng, elongation=length, direction=axis, from_ventricles=confluent and number == 0)
        for number, (place, volume, length, axis) in enumerate(zip(centres, volumes, longest, axes, strict=True))
    ]
    return 0, tuple(foci)


def _away_from_ventricles(tissue: TissueMaps, points: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 3), RAS, from the nearest ventricle voxel to each point; zeros where there is no ventricle."""
    from scipy.spatial import cKDTree

    walls = np.argwhere(tissue.ventricles)
    if not len(walls):
        return np.zeros_like(points)
    walls = walls @ tissue.affine[:3, :3].T + tissue.affine[:3, 3]
    away = points - walls[cKDTree(walls).query(points)[1]]
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)


def _wmh_foci(
    tissue: TissueMaps, volume_ml: float, centre: tuple[float, float, float] | None, rng: np.random.Generator
) -> tuple[int, tuple[Focus, ...]]:
    """Caps and bands around the lateral ventricles, and deep foci that grow in number with the volume."""
    deep = int(np.clip(rng.poisson(2 + 0.6 * volume_ml), 0, volume_ml / (8 * SMALLEST_FOCUS_ML)))
    around = bool(tissue.ventricles.any()) and centre is None
    share = (rng.uniform(0.6, 0.9) if deep else 1.0) if around else 0.0
    deep = max(deep, 0 if around else 1)
    parts = np.exp(0.8 * rng.standard_normal(deep))
    volumes = (1 - share) * volume_ml * parts / max(parts.sum(), 1e-9)
    weight = place_map(tissue, "ms_centres") * tissue.white * tissue.brain
    centres = _pick(tissue, weight, deep + 1, rng)
    foci = [_focus(c, v, rng, elongation=1 + rng.exponential(0.3)) for c, v in zip(centres, volumes, strict=False)]
    if centre is not None:
        foci[0] = replace(foci[0], centre=tuple(float(v) for v in centre))
    if around:
        foci.insert(0, _focus(centres[-1], share * volume_ml, rng, from_ventricles=True))
    return 0, tuple(foci)


def _tumour_foci(
    tissue: TissueMaps, volume_ml: float, centre: tuple[float, float, float] | None, rng: np.random.Generator
) -> tuple[int, tuple[Focus, ...]]:
    """One to four lobes around a place in the white matter of the cerebrum."""
    radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    main = _pick(tissue, _cerebral_white(tissue), 1, rng)[0] if centre is None else np.asarray(centre, dtype=float)
    lobes = int(rng.integers(1, 5)) if volume_ml >= 1 else 1
    parts = np.array([1.5, *rng.uniform(0.3, 1.0, lobes - 1)])
    volumes = volume_ml * parts / parts.sum()
    foci = [_focus(main, volumes[0], rng, elongation=1 + rng.exponential(0.2))]
    for volume in volumes[1:]:
        away = rng.standard_normal(3)
        place = main + away / np.linalg.norm(away) * radius * rng.uniform(0.5, 0.9)
        foci.append(_focus(place, volume, rng))
    return 0, tuple(foci)


def _cerebral_white(tissue: TissueMaps) -> np.ndarray:
    """White matter above the tentorium and at least 12 mm below the brain's surface, (I, J, K)."""
    from scipy.ndimage import distance_transform_edt

    to_template = tissue.to_template @ tissue.affine
    grids = np.ogrid[tuple(slice(0, n) for n in tissue.brain.shape)]
    y, z = (sum(to_template[row, axis] * grids[axis] for axis in range(3)) + to_template[row, 3] for row in (1, 2))
    above = z > np.where(y < -30, 0.0, -20.0)  # MNI mm: the tentorium rises towards the back
    deep = distance_transform_edt(tissue.brain, sampling=tissue.voxel_mm) >= 12
    return tissue.white * (above & deep & tissue.brain)


_FOCI = {"tumour": _tumour_foci, "stroke": _stroke_foci, "ms": _ms_foci, "wmh": _wmh_foci}
