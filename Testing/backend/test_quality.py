"""Quality of a scan and its distance from healthy validation scans: planted faults are measured and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import Laboratory
from scipy.ndimage import gaussian_filter

from UADBenchLib.bundles.bundle import Domain, load_bundle, load_metadata
from UADBenchLib.cohort import read_cohort, select
from UADBenchLib.inference import domain
from UADBenchLib.inference.domain import describe_domain, domain_checks, refresh_domain
from UADBenchLib.preprocessing.quality import (
    domain_features,
    measure_quality,
    noise_level,
    quality_checks,
)
from UADBenchLib.preprocessing.recipe import Prepared, Recipe
from UADBenchLib.preprocessing.registration import load_template
from UADBenchLib.training.slices import build_store

EYE = np.eye(4)


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A brain of fluid, grey and white matter in a head in air: voxels, affine, brain mask."""
    recipe, template = Recipe(), load_template(2)
    shape = tuple(n + 40 for n in template.mask.shape)
    affine = template.affine.copy()
    affine[:3, 3] -= 40
    mask = np.pad(template.mask, 20)
    voxels = np.zeros(shape, np.float32)
    voxels[gaussian_filter(mask.astype(np.float32), 3) > 0.05] = 300
    voxels[mask] = 500
    offset = np.round((recipe.affine[:3, 3] - affine[:3, 3]) / 2).astype(int)
    place = tuple(slice(o, o + n) for o, n in zip(offset, recipe.shape, strict=True))
    voxels[place][recipe.tissues.white] = 800
    return voxels, affine, mask


def measured(voxels: np.ndarray, affine: np.ndarray, mask: np.ndarray, whole: bool = True) -> dict:
    recipe = Recipe()
    return measure_quality(voxels, affine, mask, recipe.tissues, recipe.affine, EYE, whole)


def noisy(voxels: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.hypot(voxels + rng.normal(0, sigma, voxels.shape), rng.normal(0, sigma, voxels.shape)).astype(np.float32)


class TestNoise:
    @pytest.mark.parametrize("sigma", [5.0, 20.0, 60.0])
    def test_it_is_measured_beside_slow_anatomy(self, sigma: float) -> None:
        rng = np.random.default_rng(0)
        slow = 1000 + 300 * gaussian_filter(rng.standard_normal((50, 60, 20)), 6) * 6**1.5
        voxels = slow + rng.normal(0, sigma, slow.shape)
        assert noise_level(voxels, np.ones(slow.shape, dtype=bool)) == pytest.approx(sigma, rel=0.08)

    def test_too_few_voxels(self) -> None:
        region = np.zeros((20, 20, 20), dtype=bool)
        region[8:12, 8:12, 8:12] = True
        assert noise_level(np.zeros((20, 20, 20)), region) is None

    @pytest.mark.parametrize("sigma", [10.0, 40.0, 160.0])
    def test_ratios(self, head: tuple, sigma: float) -> None:
        voxels, affine, mask = head
        found = measured(noisy(voxels, sigma), affine, mask)
        assert found["snr"] == pytest.approx(800 / sigma, rel=0.12)
        assert found["cnr"] == pytest.approx(300 / sigma, rel=0.2)
        assert ("NOISE" in [check.code for check in quality_checks(found)]) == (sigma == 160.0)

    def test_a_scan_without_noise_says_null(self, head: tuple) -> None:
        found = measured(*head)
        assert found["snr"] is None and found["cnr"] is None
        json.dumps(found, allow_nan=False)


class TestGhosting:
    def test_a_ghost_along_one_axis(self, head: tuple) -> None:
        voxels, affine, mask = head
        clean = measured(noisy(voxels, 10), affine, mask)
        ghost = voxels + 0.12 * np.roll(voxels, voxels.shape[1] // 2, 1)
        dirty = measured(noisy(ghost, 10), affine, mask)
        assert clean["ghosting"] < 0.01 and dirty["ghosting"] > 0.04
        (check,) = quality_checks(dirty)
        assert check.code == "GHOSTING" and "%" in check.message

    @pytest.mark.parametrize("whole", [True, False])
    def test_what_has_no_air_says_null(self, head: tuple, whole: bool) -> None:
        voxels, affine, mask = head
        only = np.where(mask, noisy(voxels, 10), 0).astype(np.float32)
        assert measured(only, affine, mask, whole)["ghosting"] is None

    def test_negative_values_say_null(self, head: tuple) -> None:
        voxels, affine, mask = head
        assert measured(noisy(voxels, 10) - 1000, affine, mask)["ghosting"] is None


def test_a_cut_brain_is_measured(head: tuple) -> None:
    voxels, affine, mask = head
    whole = measured(noisy(voxels, 10), affine, mask)
    assert whole["cut_cm2"] == 0 and whole["slice_mm"] == 2
    cut = slice(0, 75)
    found = measured(noisy(voxels, 10)[:, :, cut], affine, mask[:, :, cut])
    assert found["cut_cm2"] == pytest.approx(np.count_nonzero(mask[:, :, 74]) * 0.04, rel=1e-3)
    (check,) = quality_checks(found)
    assert check.code == "FIELD_OF_VIEW" and "cm2" in check.message


def stored_domain(laboratory: Laboratory) -> Domain:
    found = load_metadata(laboratory.bundle).domain
    assert found is not None
    return found


def prepared(laboratory: Laboratory) -> Prepared:
    """A validation scan of the laboratory."""
    rows = select(read_cohort(laboratory.cohort), split="validation")
    (scan, *_), _ = build_store(rows[:1], laboratory.store, Recipe())
    voxels, mask = scan.volume()
    return Prepared(voxels, mask, Recipe().affine, mask, EYE, [], [])


class TestDomain:
    def test_calibration_writes_it(self, laboratory: Laboratory) -> None:
        found = stored_domain(laboratory)
        assert {"csf", "grey", "white", "noise", "sharpness", "brain ml"} <= set(found.features)
        assert found.scans == 6 and "east: 3, west: 3" in found.origin and found.limit > 0

    def test_a_healthy_scan_is_inside(self, laboratory: Laboratory) -> None:
        described = describe_domain(stored_domain(laboratory), prepared(laboratory), Recipe())
        assert described["distance"] <= described["limit"] and domain_checks(described) == ()

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("noise", lambda v, m: v + np.random.default_rng(0).normal(0, 0.3, v.shape) * m),
            ("", lambda v, m: np.where(m, 1.0 - v, 0)),
        ],
    )
    def test_another_scan_is_not_and_the_farthest_is_named(self, name: str, change, laboratory: Laboratory) -> None:
        ready = prepared(laboratory)
        ready.voxels = change(ready.voxels, ready.mask).astype(np.float32)
        described = describe_domain(stored_domain(laboratory), ready, Recipe())
        (check,) = domain_checks(described)
        assert check.code == "OUT_OF_DOMAIN" and described["farthest"] in check.message
        assert described["farthest"].startswith(name)
        json.dumps(described, allow_nan=False)

    def test_a_bundle_without_one_says_null(self, laboratory: Laboratory) -> None:
        assert describe_domain(None, prepared(laboratory), Recipe()) is None
        assert domain_checks(None) == ()

    def test_a_figure_that_cannot_be_measured_counts(self, laboratory: Laboratory) -> None:
        ready = prepared(laboratory)
        ready.mask = ready.mask & ~Recipe().tissues.csf
        described = describe_domain(stored_domain(laboratory), ready, Recipe())
        assert described["farthest"] == "csf" and described["value"] is None
        assert "cannot be measured" in domain_checks({**described, "limit": 0.1})[0].message

    def test_refreshing_changes_nothing_else(self, laboratory: Laboratory, tmp_path: Path) -> None:
        import shutil

        folder = Path(shutil.copytree(laboratory.bundle, tmp_path / laboratory.model))
        before = load_metadata(folder)
        file = folder / "configs" / "metadata.json"
        file.write_text(before.model_copy(update={"domain": None}).model_dump_json())
        assert load_bundle(folder).metadata.domain is None
        refresh_domain(folder, laboratory.cohort, store=laboratory.store)
        assert load_metadata(folder) == before
        load_bundle(folder)

    def test_sites_weigh_the_same(self) -> None:
        figures = [{"x": 1.0}] * 9 + [{"x": 3.0}, {"x": 5.0}]
        centre, _ = domain._centres(figures, ["a"] * 9 + ["b"] * 2)["x"]
        assert centre == 1.0
        centre, _ = domain._centres(figures, ["a"] * 9 + ["b", "c"])["x"]
        assert centre == 3.0

    def test_features_do_without_a_tissue(self) -> None:
        recipe = Recipe()
        voxels = np.random.default_rng(0).random(recipe.shape).astype(np.float32)
        features = domain_features(voxels, np.zeros(recipe.shape, dtype=bool), recipe.tissues, 2.0)
        assert features == {"brain ml": 0.0}
