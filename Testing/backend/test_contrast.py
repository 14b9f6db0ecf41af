"""Contrast from the image: the rule, what is none of the three, and who wins when user and image disagree."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from UADBenchLib.errors import InputError
from UADBenchLib.preprocessing.contrast import (
    OTHER,
    ContrastFound,
    Tissues,
    find_contrast,
    looks_like_ct,
    settle_contrast,
)
from UADBenchLib.preprocessing.recipe import Recipe
from UADBenchLib.preprocessing.registration import load_template

# Fluid, grey matter, white matter, in prepared intensity.
PATTERNS = {
    "T1w": (0.35, 0.62, 0.84),
    "T1w, weak as after contrast agent": (0.47, 0.70, 0.80),
    "T2w": (0.85, 0.38, 0.27),
    "FLAIR": (0.40, 0.74, 0.68),
    "FLAIR, flat": (0.30, 0.72, 0.73),
}


@pytest.fixture(scope="module")
def tissues() -> Tissues:
    return Recipe().tissues


@pytest.fixture(scope="module")
def mask(tissues: Tissues) -> np.ndarray:
    from UADBenchLib.geometry import resample

    recipe, template = Recipe(), load_template(2)
    return resample(template.mask, template.affine, recipe.shape, recipe.affine, order=0)


def brain(tissues: Tissues, mask: np.ndarray, csf: float, grey: float, white: float, noise: float = 0.08) -> np.ndarray:
    values = np.full(mask.shape, grey, np.float32)
    values[tissues.csf], values[tissues.white] = csf, white
    values += np.random.default_rng(0).normal(0, noise, mask.shape)
    return np.where(mask, values.clip(0, 1.5), 0).astype(np.float32)


class TestTissues:
    def test_they_are_apart_and_of_fair_size(self, tissues: Tissues) -> None:
        for one, other in (("csf", "grey"), ("csf", "white"), ("grey", "white")):
            assert not (getattr(tissues, one) & getattr(tissues, other)).any()
        millilitres = [np.count_nonzero(m) * 8 / 1000 for m in (tissues.csf, tissues.grey, tissues.white)]
        assert 15 < millilitres[0] < 60 and min(millilitres[1:]) > 150

    def test_they_are_symmetric(self, tissues: Tissues) -> None:
        assert np.mean(tissues.white == tissues.white[::-1]) > 0.99

    def test_they_cannot_be_changed(self, tissues: Tissues) -> None:
        with pytest.raises(ValueError):
            tissues.csf[0, 0, 0] = True


class TestRule:
    @pytest.mark.parametrize("name", sorted(PATTERNS))
    def test_the_three(self, name: str, tissues: Tissues, mask: np.ndarray) -> None:
        found = find_contrast(brain(tissues, mask, *PATTERNS[name]), mask, tissues)
        assert found.contrast == name.split(",")[0]
        assert (found.csf, found.grey, found.white) == pytest.approx(PATTERNS[name], abs=0.02)
        json.dumps(found.record(), allow_nan=False)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("proton density", (0.62, 0.60, 0.45)),
            ("diffusivity", (0.90, 0.30, 0.29)),
            ("a negative of T1w", (0.66, 0.51, 0.15)),
            ("nothing but noise", (0.5, 0.5, 0.5)),
            ("fluid and white matter alike", (0.75, 0.50, 0.80)),
        ],
    )
    def test_none_of_them(self, name: str, values: tuple[float, ...], tissues: Tissues, mask: np.ndarray) -> None:
        found = find_contrast(brain(tissues, mask, *values), mask, tissues)
        assert found.contrast == OTHER and found.reason

    def test_vessels_are_seen(self, tissues: Tissues, mask: np.ndarray) -> None:
        voxels = brain(tissues, mask, 0.3, 0.6, 0.62)
        assert find_contrast(voxels, mask, tissues).contrast == "FLAIR"
        vessels = mask & (np.random.default_rng(1).random(mask.shape) < 0.01)
        found = find_contrast(np.where(vessels, 1.5, voxels), mask, tissues)
        assert found.contrast == OTHER and "angiography" in found.reason and found.vessels > 0.009

    @pytest.mark.parametrize("name", ["T1w", "T2w", "FLAIR"])
    def test_a_large_lesion_does_not_change_it(self, name: str, tissues: Tissues, mask: np.ndarray) -> None:
        voxels = brain(tissues, mask, *PATTERNS[name])
        voxels[48:70, 20:80, 30:60] = 1.1 - voxels[48:70, 20:80, 30:60]  # 300 ml in one hemisphere
        assert find_contrast(voxels, mask, tissues).contrast == name

    def test_a_tissue_out_of_view(self, tissues: Tissues, mask: np.ndarray) -> None:
        found = find_contrast(brain(tissues, mask, *PATTERNS["T1w"]), mask & ~tissues.csf, tissues)
        assert found.contrast == OTHER and found.csf is None and "not seen" in found.numbers()

    def test_hounsfield_units_are_none_of_them(self, tissues: Tissues, mask: np.ndarray) -> None:
        assert find_contrast(brain(tissues, mask, *PATTERNS["FLAIR"]), mask, tissues, True).contrast == OTHER

    def test_ct_by_its_units(self) -> None:
        head = np.full((30, 30, 30), -1000.0, np.float32)
        head[4:-4, 4:-4, 4:-4] = 1100
        head[6:-6, 6:-6, 6:-6] = 36
        inside = head == 36
        assert looks_like_ct(head, inside)
        assert not looks_like_ct(head + 1000, inside)
        assert not looks_like_ct(np.where(inside, head, 0), inside)


FOUND = {c: ContrastFound(c, "because", 0.3, 0.6, 0.8, 0.0) for c in ("T1w", "T2w", "FLAIR", OTHER)}


class TestSettling:
    def test_agreement_is_silent(self) -> None:
        assert settle_contrast("T2w", FOUND["T2w"]) == ("T2w", ())

    @pytest.mark.parametrize("found", ["FLAIR", OTHER])
    def test_the_user_wins_and_is_told(self, found: str) -> None:
        used, (check,) = settle_contrast("T1w", FOUND[found])
        assert used == "T1w" and (check.level, check.code) == ("warning", "CONTRAST_DISAGREES")
        assert found in check.message and "0.30" in check.message and check.advice

    def test_the_image_decides_where_nobody_does(self) -> None:
        assert settle_contrast(None, FOUND["FLAIR"]) == ("FLAIR", ())

    def test_other_is_refused_or_forced(self) -> None:
        with pytest.raises(InputError) as refusal:
            settle_contrast(None, FOUND[OTHER])
        assert refusal.value.code == "CONTRAST_OTHER" and "--force" in refusal.value.advice
        used, (check,) = settle_contrast(None, FOUND[OTHER], force=True)
        assert used == "T1w" and check.code == "CONTRAST_OTHER" and check.level == "warning"

    def test_numbers_that_are_missing_can_be_said(self) -> None:
        used, (check,) = settle_contrast("T1w", replace(FOUND[OTHER], csf=None))
        assert "fluid not seen" in check.message
