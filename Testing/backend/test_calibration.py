"""Calibration: z against held-out healthy scans, thresholds at their nominal rate, refusals, what bundles keep of it.

The numbers are tested on maps made of noise, the way through files on the laboratory's model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import Laboratory, make_bundle, on_grid, table_row, write_cohort
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from UADBenchLib.bundles.bundle import Calibration, load_bundle
from UADBenchLib.cohort import read_cohort
from UADBenchLib.errors import InputError
from UADBenchLib.evaluation.metrics import Histogram
from UADBenchLib.inference import calibration
from UADBenchLib.inference.calibration import (
    RATES,
    HealthyReference,
    RawMap,
    calibrate,
    fit_reference,
    pack_reference,
    unpack_reference,
)
from UADBenchLib.inference.weights import FOLDS, folds_of, site_weights
from UADBenchLib.preprocessing.recipe import Recipe
from UADBenchLib.writing import write_volume

RECIPE = Recipe(shape=(40, 48, 40), origin_mm=(-40.0, -48.0, -40.0))


def ellipsoid() -> np.ndarray:
    i, j, k = (np.linspace(-1, 1, n) for n in RECIPE.shape)
    return i[:, None, None] ** 2 + j[None, :, None] ** 2 + k[None, None] ** 2 < 0.8


def typical() -> np.ndarray:
    """The healthy mean of a score that differs from place to place."""
    return 0.05 * (1 + 0.8 * np.linspace(-1, 1, RECIPE.shape[1])[None, :, None]) * np.ones(RECIPE.shape)


def raw_map(seed: int, site: str = "a", gain: float = 1.0) -> RawMap:
    rng = np.random.default_rng(seed)
    scores = typical() * np.exp(0.3 * gaussian_filter(rng.standard_normal(RECIPE.shape), 1) / 0.17)
    return RawMap((gain * scores).astype(np.float32), ellipsoid(), f"s{seed}", site, f"s{seed}")


@pytest.fixture(scope="module")
def maps() -> list[RawMap]:
    return [raw_map(seed, "ab"[seed % 3 == 0], gain=(0.5, 1.0, 2.0)[seed % 3]) for seed in range(14)]


@pytest.fixture(scope="module")
def reference(maps: list[RawMap]) -> HealthyReference:
    return fit_reference(maps, RECIPE.voxel_mm)


def rate_above(reference: HealthyReference, fresh: list[RawMap], threshold: float) -> float:
    return float(np.mean([(reference.z(m.scores, m.scored)[m.scored] > threshold).mean() for m in fresh]))


class TestNumbers:
    @pytest.mark.parametrize("name", RATES)
    def test_fresh_healthy_scans_are_flagged_at_the_nominal_rate(
        self, name: str, maps: list[RawMap], reference: HealthyReference
    ) -> None:
        points = calibration._operating_points(calibration._held_out_histograms(maps, RECIPE), maps, "healthy.csv")
        point = points[name]
        fresh = [raw_map(seed, gain=0.7) for seed in range(100, 108)]
        assert RATES[name] / 2 < rate_above(reference, fresh, point.threshold) < RATES[name] * 2
        assert 0.8 * RATES[name] < point.healthy_fpr <= RATES[name]
        assert point.ci[0] <= point.threshold <= point.ci[1]
        assert "healthy.csv" in point.origin and "held-out" in point.origin

    def test_held_out_folds_do_not_flatter(self, maps: list[RawMap]) -> None:
        few = maps[:6]
        held_out = sum(calibration._held_out_histograms(few, RECIPE), Histogram())
        own = fit_reference(few, RECIPE.voxel_mm)
        flattered = Histogram()
        for m in few:
            flattered.add(own.z(m.scores, m.scored), None, m.scored)
        assert held_out.threshold_at_fpr(0.01) > flattered.threshold_at_fpr(0.01)

    def test_scans_of_one_anatomy_do_not_vouch_for_each_other(self) -> None:
        # Four anatomies in twelve scans, each with places of its own that score higher than anywhere else.
        kin = []
        for seed in range(12):
            pattern = gaussian_filter(np.random.default_rng(1000 + seed % 4).standard_normal(RECIPE.shape), 6)
            m = raw_map(seed)
            scores = m.scores * (1 + 2 * (pattern > 1.5 * pattern.std())).astype(np.float32)
            kin.append(replace(m, scores=scores, held_out_with=f"map {seed % 4}"))
        across = [replace(m, held_out_with=f"all maps {seed // 4}") for seed, m in enumerate(kin)]
        first, second = (
            calibration._operating_points(calibration._held_out_histograms(maps, RECIPE), maps, "healthy.csv")
            for maps in (kin, across)
        )
        assert first["fpr-1pct"].threshold > 1.2 * second["fpr-1pct"].threshold
        assert len(first["fpr-1pct"].subjects) == 12

    @given(st.lists(st.text("abcdef", min_size=1, max_size=2), min_size=1, max_size=30))
    def test_folds(self, names: list[str]) -> None:
        folds = folds_of(names)
        assert len({(name, fold) for name, fold in zip(names, folds, strict=True)}) == len(set(names))
        assert all(0 <= fold < FOLDS for fold in folds)
        if len(set(names)) <= FOLDS:
            assert len(set(folds)) == len(set(names))
        assert len(set(folds)) > 1 or len(set(names)) == 1
        shuffled = dict(zip(reversed(names), folds_of(names[::-1]), strict=True))
        assert [shuffled[name] for name in names] == folds

    def test_folds_of_names_that_hash_alike(self) -> None:
        drawn = (f"s{number}" for number in range(1000))
        alike = [name for name in drawn if int(hashlib.sha256(name.encode()).hexdigest(), 16) % FOLDS == 2]
        assert sorted(set(folds_of(alike[: FOLDS + 2]))) == list(range(FOLDS))

    def test_all_scans_of_a_subject_are_held_out_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        used: list[set[str]] = []
        real = fit_reference

        def watched(others: list[RawMap], voxel_mm: float) -> HealthyReference:
            used.append({m.held_out_with for m in others})
            return real(others, voxel_mm)

        monkeypatch.setattr(calibration, "fit_reference", watched)
        twice = [replace(raw_map(seed), held_out_with=f"s{seed // 2}") for seed in range(10)]
        assert len(calibration._held_out_histograms(twice, RECIPE)) == 10
        everyone = {m.held_out_with for m in twice}
        left_out = [everyone - subjects for subjects in used]
        assert set().union(*left_out) == everyone
        assert sum(map(len, left_out)) == len(everyone)

    @given(st.floats(min_value=1e-3, max_value=1e3))
    @hypothesis_settings(max_examples=8)
    def test_z_does_not_depend_on_the_gain_of_a_scan(self, factor: float) -> None:
        healthy = HealthyReference(typical().astype(np.float32), np.full(RECIPE.shape, 0.02, np.float32), 0.05)
        m = raw_map(50)
        np.testing.assert_allclose(
            healthy.z(np.float32(factor) * m.scores, m.scored), healthy.z(m.scores, m.scored), rtol=1e-3, atol=1e-3
        )

    def test_z_is_0_at_the_healthy_mean_and_grows_by_1_a_spread(self, reference: HealthyReference) -> None:
        inside = ellipsoid()
        level = calibration.scan_level(reference.mean, inside)
        same = HealthyReference(reference.mean, reference.spread, level)
        lesion = np.zeros(RECIPE.shape, dtype=bool)
        lesion[18:22, 22:26, 18:22] = True
        z = same.z(reference.mean + 3 * reference.spread * lesion, inside)
        assert z[lesion].mean() == pytest.approx(3, abs=0.05)
        assert z[inside & ~lesion].max() < 0.05
        assert z.dtype == np.float32 and not z[~inside].any()

    def test_z_is_never_negative_nor_boundless(self, reference: HealthyReference) -> None:
        inside = ellipsoid()
        scores = np.zeros(RECIPE.shape, np.float32)
        scores[20, 24, 20] = 1e9
        z = reference.z(scores, inside)
        assert z.min() == 0 and z.max() == 1000

    def test_nothing_scored_is_nothing_abnormal(self, reference: HealthyReference) -> None:
        nothing = np.zeros(RECIPE.shape, dtype=bool)
        assert not reference.z(np.ones(RECIPE.shape, np.float32), nothing).any()

    def test_maps_that_never_vary_give_no_reference(self) -> None:
        constant = [replace(raw_map(seed), scores=np.zeros(RECIPE.shape, np.float32)) for seed in range(6)]
        with pytest.raises(InputError, match="MAPS_CONSTANT"):
            fit_reference(constant, RECIPE.voxel_mm)

    def test_the_reference_is_finite_and_positive_where_nobody_was_scored(self, reference: HealthyReference) -> None:
        assert np.isfinite(reference.mean).all() and np.isfinite(reference.spread).all()
        assert reference.spread.min() > 0

    def test_the_reference_follows_the_place(self, reference: HealthyReference) -> None:
        middle = reference.mean[20, 10:38, 20]
        assert (np.diff(middle) > -1e-3).all() and middle[-1] > 2 * middle[0]

    def test_a_lesion_raises_z_there(self, reference: HealthyReference) -> None:
        m = raw_map(60)
        scores = m.scores.copy()
        scores[18:23, 20:26, 18:23] *= 3
        before, after = (reference.z(values, m.scored)[18:23, 20:26, 18:23].mean() for values in (m.scores, scores))
        assert after > before + 3


class TestSites:
    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
    def test_weights_sum_to_1_and_sites_weigh_the_same(self, sites: list[str]) -> None:
        weights = site_weights(sites)
        assert weights.sum() == pytest.approx(1)
        shares = [sum(w for w, s in zip(weights, sites, strict=True) if s == site) for site in set(sites)]
        np.testing.assert_allclose(shares, 1 / len(shares))

    def test_many_scans_of_one_site_do_not_outvote_another(self) -> None:
        many = [raw_map(seed, "many") for seed in range(6)]
        few = [
            replace(
                raw_map(9, "few"), scores=raw_map(9).scores * np.linspace(0.5, 1.5, 40, dtype=np.float32)[:, None, None]
            )
        ]
        alone, both = fit_reference(few, 2.0), fit_reference([*many, *few], 2.0)
        rest = fit_reference(many, 2.0)
        inside = ellipsoid()
        expected = (rest.mean / rest.level + alone.mean / alone.level) / 2
        np.testing.assert_allclose((both.mean / both.level)[inside], expected[inside], rtol=0.05)


class TestPacking:
    def test_round_trip(self, tmp_path: Path) -> None:
        recipe = Recipe()
        rng = np.random.default_rng(0)
        smooth = gaussian_filter(rng.standard_normal(recipe.shape), 4).astype(np.float32)
        reference = HealthyReference(0.1 + 0.2 * (smooth - smooth.min()), 0.02 + 0.1 * (smooth - smooth.min()), 0.07)
        packed = pack_reference(reference, recipe)
        assert {name: value.shape for name, value in packed.items()} == dict.fromkeys(("mean", "spread"), (27, 32, 28))
        bundle = make_bundle(tmp_path / "a", "disyre", {"widths": (8, 16)})
        bundle.reference = {name: value.astype(np.float16) for name, value in packed.items()}
        record = Calibration(
            version=1,
            voxel_mm=6,
            smoothing_mm=6,
            rescaled=True,
            level=0.07,
            floor=0.02,
            subjects=("a",),
            sites={"x": 1},
        )
        bundle.metadata = bundle.metadata.model_copy(update={"calibration": record})
        back = unpack_reference(bundle)
        assert back.level == 0.07
        for name in ("mean", "spread"):
            difference = np.abs(getattr(back, name) - getattr(reference, name)) / getattr(reference, name)
            assert difference.max() < 0.15 and np.median(difference) < 0.01

    def test_the_floor_holds_after_packing(self, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "a", "disyre", {"widths": (8, 16)})
        bundle.reference = {name: np.zeros((40, 48, 42), np.float16) for name in ("mean", "spread")}
        record = Calibration(
            version=1, voxel_mm=4, smoothing_mm=6, rescaled=True, level=1, floor=0.02, subjects=("a",), sites={"x": 1}
        )
        bundle.metadata = bundle.metadata.model_copy(update={"calibration": record})
        assert unpack_reference(bundle).spread.min() == np.float32(0.02)

    def test_an_uncalibrated_bundle_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as refusal:
            unpack_reference(make_bundle(tmp_path / "a", "disyre", {"widths": (8, 16)}))
        assert refusal.value.code == "NOT_CALIBRATED"


class TestThroughFiles:
    """``calibrate`` itself; preparation is in the laboratory's store already."""

    @pytest.fixture
    def bundle(self, laboratory: Laboratory, tmp_path: Path) -> Path:
        """A copy of the laboratory's bundle."""
        return Path(shutil.copytree(laboratory.bundle, tmp_path / laboratory.model))

    def code(self, bundle: Path, cohort: Path, laboratory: Laboratory, **options: object) -> str:
        before = (bundle / "configs" / "metadata.json").read_bytes()
        with pytest.raises(InputError) as refusal:
            calibrate(bundle, cohort, data=laboratory.cohort.parent, store=laboratory.store, device="cpu", **options)
        assert (bundle / "configs" / "metadata.json").read_bytes() == before
        return refusal.value.code

    def test_what_is_written(self, laboratory: Laboratory) -> None:
        metadata = load_bundle(laboratory.bundle).metadata
        assert set(metadata.operating_points) == set(RATES)
        assert metadata.calibration.sites == {"east": 3, "west": 3} == laboratory.calibration["sites"]
        assert metadata.calibration.subjects == tuple(f"validation-{n}" for n in range(6))
        assert not set(metadata.calibration.subjects) & set(metadata.trained_on["subjects"])
        assert metadata.seconds_per_scan >= 0
        points = json.loads(json.dumps(laboratory.calibration["operating_points"]))
        assert points["fpr-1pct"]["threshold"] == metadata.operating_points["fpr-1pct"].threshold

    def test_calibrating_again_gives_the_same(self, laboratory: Laboratory, bundle: Path) -> None:
        calibrate(bundle, laboratory.cohort, store=laboratory.store, device="cpu")
        first, second = load_bundle(laboratory.bundle), load_bundle(bundle)
        assert first.metadata.operating_points == second.metadata.operating_points
        np.testing.assert_array_equal(first.reference["mean"], second.reference["mean"])

    def test_subjects_that_were_trained_on(self, laboratory: Laboratory, bundle: Path, tmp_path: Path) -> None:
        rows = [table_row(row) for row in read_cohort(laboratory.cohort) if row.split == "train"]
        cohort = write_cohort(tmp_path / "shared.csv", [row | {"split": "validation"} for row in rows])
        assert self.code(bundle, cohort, laboratory) == "SUBJECTS_SHARED"

    def test_too_few_subjects(self, laboratory: Laboratory, bundle: Path, tmp_path: Path) -> None:
        rows = [table_row(row) for row in read_cohort(laboratory.cohort) if row.split == "validation"]
        assert self.code(bundle, write_cohort(tmp_path / "few.csv", rows[:4]), laboratory) == "COHORT_TOO_SMALL"
        one = [row | {"subject": "validation-0"} for row in rows]
        assert self.code(bundle, write_cohort(tmp_path / "one.csv", one), laboratory) == "COHORT_TOO_SMALL"
        other = [row | {"contrast": "T2w"} for row in rows]
        assert self.code(bundle, write_cohort(tmp_path / "other.csv", other), laboratory) == "COHORT_TOO_SMALL"

    def test_anatomies_are_read_from_the_table(self, laboratory: Laboratory, bundle: Path, tmp_path: Path) -> None:
        rows = [table_row(row) for row in read_cohort(laboratory.cohort) if row.split == "validation"]
        same = [row | {"anatomy": "head"} for row in rows]
        assert self.code(bundle, write_cohort(tmp_path / "same.csv", same), laboratory) == "COHORT_TOO_SMALL"
        two = [row | {"anatomy": f"head {n % 2}"} for n, row in enumerate(rows)]
        folder = laboratory.cohort.parent
        calibrate(bundle, write_cohort(tmp_path / "two.csv", two), data=folder, store=laboratory.store, device="cpu")
        held_out = load_bundle(bundle).metadata
        by_subject = load_bundle(laboratory.bundle).metadata
        assert held_out.calibration.subjects == by_subject.calibration.subjects
        assert held_out.operating_points["fpr-1pct"].threshold != by_subject.operating_points["fpr-1pct"].threshold
        assert held_out.domain.features == by_subject.domain.features
        assert held_out.domain.limit != by_subject.domain.limit

    def test_too_few_that_can_be_prepared(self, laboratory: Laboratory, bundle: Path, tmp_path: Path) -> None:
        rows = [table_row(row) for row in read_cohort(laboratory.cohort) if row.split == "validation"]
        for row in rows[:3]:
            row["scan"] = str(tmp_path / row["scan"])
            Path(row["scan"]).write_bytes(b"not a scan")
        assert self.code(bundle, write_cohort(tmp_path / "broken.csv", rows), laboratory) == "COHORT_TOO_SMALL"

    def test_lesions_give_one_more_operating_point(
        self, laboratory: Laboratory, bundle: Path, sample: tuple, tmp_path: Path
    ) -> None:
        scan, reference, mask = on_grid("ras", *sample)
        for name, values in (("l_T1w", scan.voxels), ("l_reference", reference), ("l_mask", mask)):
            write_volume(tmp_path / f"{name}.nii.gz", values, scan.affine)
        row = {
            "scan": "l_T1w.nii.gz", "reference": "l_reference.nii.gz", "brain_mask": "l_mask.nii.gz", "contrast": "T1w",
            "label": "lesion", "subject": "l", "split": "validation",
        }  # fmt: skip
        lesions = write_cohort(tmp_path / "lesions.csv", [row])
        # Both tables name their scans from one folder.
        for path in laboratory.cohort.parent.glob("validation*"):
            (tmp_path / path.name).symlink_to(path)
        healthy = [table_row(r) for r in read_cohort(laboratory.cohort) if r.split == "validation"]
        summary = calibrate(
            bundle, write_cohort(tmp_path / "h.csv", healthy), lesions, store=laboratory.store, device="cpu"
        )
        point = summary["operating_points"]["opt-dice"]
        assert point["threshold"] > 0 and "lesions.csv" in point["origin"]
        assert load_bundle(bundle).metadata.operating_points["opt-dice"].threshold == point["threshold"]
        shared = write_cohort(tmp_path / "shared.csv", [row | {"subject": "train-0"}])
        with pytest.raises(InputError) as refusal:
            calibrate(bundle, tmp_path / "h.csv", shared, store=laboratory.store, device="cpu")
        assert refusal.value.code == "SUBJECTS_SHARED"
