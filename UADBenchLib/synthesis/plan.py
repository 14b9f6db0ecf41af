"""What a synthetic cohort is made by: imaginary scanners, kinds of lesions, and effects that are planted in it.

A plan is read from YAML and checked; everything in it has a default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from UADBenchLib.errors import InputError
from UADBenchLib.scan import CONTRASTS
from UADBenchLib.synthesis.lesions import KINDS


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
    """What a cohort is made by: scanners, effects, kinds of lesions and how visible they are.

    ``prefix`` goes before the participants' numbers, so that cohorts made for training, validation and test share no
    name. ``licence`` is that of the label maps, handed on to the table and from there to the cards of models.
    ``mirrored`` says which heads have left and right exchanged: any (``drawn``), or every other round through the label
    maps (``in turn``), which makes two anatomies of each map and uses them equally often.
    """

    prefix: str = Field("", pattern="^[A-Za-z0-9]*$", max_length=20)
    licence: str = Field("", max_length=200)
    scanners: dict[str, Scanner] = SCANNERS
    effects: tuple[Effect, ...] = ()
    lesion_types: tuple[str, ...] = tuple(KINDS)
    visibility: tuple[float, float] = (0.6, 1.0)
    mirrored: Literal["drawn", "in turn"] = "drawn"
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


def factors(plan: Plan, facts: dict[str, Any]) -> dict[str, float]:
    """The product of all planted effects that apply, for every quantity."""
    result = dict.fromkeys(MULTIPLIED, 1.0)
    for effect in plan.effects:
        if effect.applies(facts):
            for name, factor in effect.multiply.items():
                result[name] *= factor
    return result
