"""The recipe's steps: brain mask, bias field, registration, intensity, and a preparation that can be stopped any time.

Whether sides and places survive preparation is in ``test_geometry_of_results``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import affine_of, ball, dice, on_grid, rotation
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.geometry import corners, resample
from UADBenchLib.preprocessing import registration
from UADBenchLib.preprocessing.bias_field import correct_bias_field
from UADBenchLib.preprocessing.brain_extraction import find_brain
from UADBenchLib.preprocessing.intensity import CLIP, normalise
from UADBenchLib.preprocessing.recipe import STAGES, Prepared, Recipe, _as_scan, prepare
from UADBenchLib.preprocessing.registration import (
    Quality,
    Registration,
    centre_start,
    load_template,
    register,
    register_brain,
)
from UADBenchLib.scan import Scan

Sample = tuple[Scan, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def coarse(sample: Sample) -> Sample:
    """The sample on an upright grid of 3 mm."""
    return on_grid("ras", *sample)


class TestRecipe:
    def test_the_hash_is_the_same_in_every_process(self, repository: Path) -> None:
        """That shipped bundles carry it is in ``test_bundles``."""
        code = "from UADBenchLib.preprocessing.recipe import Recipe; print(Recipe().hash)"
        seeded = os.environ | {"PYTHONHASHSEED": "77"}
        done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=seeded, capture_output=True, text=True)
        assert done.stdout.strip() == Recipe().hash == Recipe(**dataclasses.asdict(Recipe())).hash
        assert len(Recipe().hash) == 16 and int(Recipe().hash, 16)

    @pytest.mark.parametrize(
        "change",
        [{"voxel_mm": 1.0}, {"shape": (80, 96, 88)}, {"origin_mm": (0.0, 0.0, 0.0)}, {"low": 1.0}, {"version": 2}],
        ids=lambda change: next(iter(change)),
    )
    def test_every_parameter_counts(self, change: dict[str, object]) -> None:
        assert replace(Recipe(), **change).hash != Recipe().hash

    def test_the_grid_is_symmetric_and_holds_the_template(self) -> None:
        recipe, template = Recipe(), load_template(2)
        places = corners(recipe.shape, recipe.affine)
        np.testing.assert_allclose(places[:, 0].min(), -places[:, 0].max())
        brain = template.affine[:3, :3] @ np.argwhere(template.mask).T + template.affine[:3, 3:]
        assert (brain.min(axis=1) >= places.min(axis=0)).all() and (brain.max(axis=1) <= places.max(axis=0)).all()


GOOD = Quality(0.5, 0.95, (0.85, 0.9, 0.95), 0.05, False)


def tilted(degrees: tuple[float, float, float]) -> np.ndarray:
    """A world matrix that turns about the origin."""
    world = np.eye(4)
    world[:3, :3] = rotation(degrees)
    return world


def farthest(found: np.ndarray, known: np.ndarray) -> float:
    """Largest distance (mm) between what two affines make of places all over the template's brain."""
    template = load_template(2)
    places = np.argwhere(template.mask)[::4001] @ template.affine[:3, :3].T + template.affine[:3, 3]
    difference = found - known
    return float(np.linalg.norm(places @ difference[:3, :3].T + difference[:3, 3], axis=1).max())


class TestQuality:
    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"similarity": 0.15}, "mutual information 0.15"),
            ({"similarity": float("nan")}, "mutual information nan"),
            ({"overlap": 0.6}, "Dice of the brain masks 0.60"),
            ({"scales": (0.4, 0.9, 1.0)}, "0.40 to 1.00 times"),
            ({"scales": (0.9, 1.0, 1.5)}, "0.90 to 1.50 times"),
            ({"shear": 0.4}, "shear 0.40"),
            ({"mirrored": True}, "swapped"),
        ],
    )
    def test_each_fault_is_named(self, change: dict[str, object], word: str) -> None:
        (fault,) = replace(GOOD, **change).faults()
        assert word in fault
        assert GOOD.merit > replace(GOOD, **change).merit

    def test_a_good_one_has_none(self) -> None:
        assert GOOD.faults() == GOOD.faults(reliable=True) == []
        assert replace(GOOD, overlap=None).faults(reliable=True) == []

    def test_reliable_asks_for_more(self) -> None:
        fair = replace(GOOD, similarity=0.3, overlap=0.88, shear=0.2)
        assert fair.faults() == [] and len(fair.faults(reliable=True)) == 3

    def test_it_is_measured(self) -> None:
        template = load_template(2)
        found = register_brain(template.voxels, template.affine, template.mask)
        assert found.quality.overlap > 0.99 and found.quality.shear < 0.01 and found.quality.similarity > 0.8
        np.testing.assert_allclose(found.quality.scales, 1, atol=0.01)
        assert (found.start, found.retries) == ("centre", 0)
        json.dumps(found.quality.record(), allow_nan=False)


class TestStarts:
    """A head that lies otherwise than its header says is found from another start."""

    def test_an_upright_brain_needs_no_other(self, monkeypatch: pytest.MonkeyPatch, coarse: Sample) -> None:
        def never(*_: object) -> None:
            raise AssertionError("looked for other starts")

        monkeypatch.setattr(registration, "_further_starts", never)
        scan, _, mask = coarse
        one = register_brain(scan.voxels, scan.affine, mask)
        other = register(scan.voxels, scan.affine, centre_start(scan.affine, mask), mask=mask)
        np.testing.assert_allclose(one.world, other.world, atol=0.05)

    @pytest.mark.slow
    @pytest.mark.parametrize("degrees", [(-30.0, 0.0, 20.0), (55.0, 0.0, 0.0), (0.0, 180.0, 0.0), (90.0, 0.0, 0.0)])
    def test_a_turned_brain(self, degrees: tuple[float, float, float]) -> None:
        template = load_template(2)
        world = tilted(degrees)
        found = register_brain(template.voxels, world @ template.affine, template.mask)
        assert farthest(found.world, world) < 3.0
        assert found.retries <= 2 and (degrees[0] == -30 or found.retries == 1)

    def test_the_first_guesses_hold_the_right_one(self) -> None:
        template = load_template(2)
        world = tilted((80.0, 170.0, 25.0))
        pair = registration._Pair.of(template.voxels, world @ template.affine, template.mask)
        starts = registration._further_starts(pair, lambda: None)
        assert len(starts) == registration.MOST_STARTS
        assert min(farthest(start, world) for _, start in starts) < 45

    @pytest.mark.parametrize(
        ("turned", "off", "followed"),
        [(20.0, 3.0, 1), (5.0, 3.0, 4), (20.0, 8.0, 4)],
        ids=["from afar to the same place", "from nearby", "to another place"],
    )
    def test_a_place_that_is_found_twice_is_settled(
        self, monkeypatch: pytest.MonkeyPatch, turned: float, off: float, followed: int
    ) -> None:
        """Figures that are fair and no more keep it looking, until another start confirms what was found."""

        def attempt(pair: object, name: str, start: np.ndarray, check: object, **_: object) -> Registration:
            world = np.eye(4)
            world[0, 3] = 0 if name == "centre" else off
            return Registration(world, replace(GOOD, similarity=0.3), name)

        monkeypatch.setattr(registration._Pair, "of", classmethod(lambda *_: None))
        monkeypatch.setattr(registration, "_attempt", attempt)
        starts = [(f"start {number}", tilted((turned, 0.0, 0.0))) for number in range(4)]
        monkeypatch.setattr(registration, "_further_starts", lambda *_: starts)
        template = load_template(2)
        found = register_brain(template.voxels, template.affine, template.mask)
        assert (found.start, found.retries) == ("centre", followed)

    def upright(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[registration._Pair, Registration, list[tuple[int, ...]]]:
        """The template against itself, that registration, and a list of this stage and all that follow."""
        stages, optimise = [], registration._optimise

        def counted(*given: object, **options: object) -> float:
            stages.append(options["shrink"])
            return optimise(*given, **options)

        monkeypatch.setattr(registration, "_optimise", counted)
        template = load_template(2)
        pair = registration._Pair.of(template.voxels, template.affine, template.mask)
        return pair, registration._attempt(pair, "centre", np.eye(4), lambda: None), stages

    def test_a_start_without_hope_is_left_after_the_rigid_stage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Back to front the brain of a template overlaps well, and looks like itself much less."""
        pair, best, stages = self.upright(monkeypatch)
        turned = tilted((0.0, 0.0, 180.0))
        other = registration._attempt(pair, "turned", turned, lambda: None, before=best)
        assert stages == [(4,), (4, 2), (4,)]
        assert other.quality.faults() and not best.quality.faults()  # so that it is never taken
        registration._attempt(pair, "centre", np.eye(4), lambda: None, before=best)
        assert stages[3:] == [(4,), (4, 2)]

    def test_a_start_that_confirms_ends_after_the_rigid_stage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that sets out 12 degrees off comes to the same place; one that sets out there says nothing."""
        pair, best, stages = self.upright(monkeypatch)
        afar = tilted((0.0, 12.0, 0.0))
        other = registration._attempt(pair, "afar", afar, lambda: None, before=best)
        assert stages == [(4,), (4, 2), (4,)]
        assert other.rigid >= registration.HOPEFUL * best.rigid  # so that want of hope did not end it
        assert registration._confirms(other.world, afar, best)
        assert not registration._confirms(other.world, other.world, best)
        assert not registration._confirms(other.world, afar, replace(best, quality=replace(GOOD, similarity=0.0)))

    def test_what_is_no_brain_is_refused_after_all_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registration, "MOST_STARTS", 1)
        template = load_template(2)
        noise = np.random.default_rng(0).uniform(50, 100, template.mask.shape).astype(np.float32) * template.mask
        with pytest.raises(InputError) as refusal:
            register_brain(noise, template.affine, np.roll(template.mask, 1, axis=0))
        assert refusal.value.code == "REGISTRATION_FAILED"
        assert "after 1 further starts" in refusal.value.message and "mutual information" in refusal.value.message

    def test_cancelling_while_looking_for_starts(self) -> None:
        template = load_template(2)
        pair = registration._Pair.of(template.voxels, template.affine, template.mask)
        check, made = _after(3, CancelledError)
        with pytest.raises(CancelledError):
            registration._further_starts(pair, check)
        assert len(made) == 3


class TestRegistration:
    def test_a_known_affine_is_recovered(self) -> None:
        template = load_template(2)
        known = np.eye(4)
        known[:3, :3] = rotation((9.0, -6.0, 11.0)) @ np.diag([1.08, 0.94, 1.05])
        known[:3, 3] = (14.0, -22.0, 9.0)
        grid = template.affine.copy()
        grid[:3, 3] += (12.0, -20.0, 6.0)
        back = np.linalg.inv(known)
        moved = resample(template.voxels, template.affine, template.voxels.shape, grid, order=1, world=back)
        mask = resample(template.mask, template.affine, template.mask.shape, grid, order=0, world=back)
        found = register(moved, grid, centre_start(grid, mask), mask=mask)
        inside = np.argwhere(template.mask)
        box = np.array([inside.min(axis=0), inside.max(axis=0)])
        places = corners(tuple(box[1] - box[0] + 1), template.affine) + template.affine[:3, :3] @ box[0]
        error = [np.linalg.norm((found.world - known) @ [*place, 1.0]) for place in places]
        assert max(error) < 4.0
        assert found.quality.similarity > 0.3 and found.quality.overlap > 0.9 and not found.quality.mirrored

    def test_noise_is_refused(self) -> None:
        rng = np.random.default_rng(0)
        noise = rng.uniform(0, 100, (60, 70, 60)).astype(np.float32)
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        affine[:3, 3] = (-90, -120, -80)
        with pytest.raises(InputError) as refusal:
            register(noise, affine, np.eye(4))
        assert refusal.value.code == "REGISTRATION_FAILED" and "--brain-mask" in refusal.value.advice

    @pytest.mark.parametrize("kind", [CancelledError, KeyboardInterrupt])
    def test_whatever_the_callback_raises_comes_out(self, kind: type[BaseException]) -> None:
        template = load_template(2)

        def stop() -> None:
            raise kind

        with pytest.raises(kind):
            register(template.voxels, template.affine, np.eye(4), check=stop)


def _after(calls: int, kind: type[BaseException]) -> tuple[Callable[[], None], list[int]]:
    """A check that raises ``kind`` at the given call, and the list of calls it got."""
    made: list[int] = []

    def check() -> None:
        made.append(len(made))
        if len(made) == calls:
            raise kind

    return check, made


class TestStopping:
    """A long step ends at the iteration that is stopped, not when it would have ended anyway, and says nothing."""

    @pytest.mark.parametrize("kind", [CancelledError, KeyboardInterrupt])
    @pytest.mark.parametrize("step", ["bias field", "registration"])
    def test_ends_at_once_and_silently(self, step: str, kind: type[BaseException], capfd) -> None:
        template = load_template(2)
        check, made = _after(8, kind)
        with pytest.raises(kind):
            if step == "bias field":
                correct_bias_field(template.voxels, template.affine, template.mask, check=check)
            else:
                register(template.voxels, template.affine, np.eye(4), mask=template.mask, check=check)
        assert len(made) == 8
        assert "Traceback" not in capfd.readouterr().err


class TestBrainMask:
    def test_given(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        found = find_brain(scan.voxels, scan.affine, mask)
        assert found.source == "given" and found.mask is mask and found.checks == ()

    def test_an_empty_one_is_refused(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        with pytest.raises(InputError) as refusal:
            prepare(scan, brain_mask=np.zeros_like(mask))
        assert refusal.value.code == "BRAIN_MASK_EMPTY"

    def test_a_small_one_is_remarked(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        half = mask.copy()
        half[: mask.shape[0] // 2] = False
        half[:, :, : mask.shape[2] // 2] = False
        assert [check.code for check in find_brain(scan.voxels, scan.affine, half).checks] == ["BRAIN_VOLUME"]

    def test_already_extracted(self, sample: Sample) -> None:
        scan, _, mask = sample
        found = find_brain(scan.voxels, scan.affine)
        assert found.source == "already extracted"
        assert dice(found.mask, mask) > 0.99

    def test_a_background_of_another_value_is_background(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        inner = scan.voxels * mask
        found = find_brain(np.where(mask, inner, -1000).astype(np.float32), scan.affine)
        assert found.source == "already extracted" and dice(found.mask, mask) > 0.99

    def test_the_brain_of_a_head_is_outlined(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        rng = np.random.default_rng(0)
        away = distance_transform_edt(~mask, sampling=scan.voxel_mm)
        head = np.where(mask, scan.voxels, 0)
        head[(away > 0) & (away <= 4)] = 120  # CSF
        head[(away > 4) & (away <= 9)] = 40  # skull
        head[(away > 9) & (away <= 15)] = 700  # scalp
        head = gaussian_filter(head, 0.4) + np.abs(rng.normal(0, 12, head.shape))
        found = find_brain(head.astype(np.float32), scan.affine)
        assert found.source == "network"
        assert dice(found.mask, mask) > 0.9
        assert not (found.mask & (away > 9)).any()


class TestBiasField:
    def test_a_planted_field_is_removed(self, coarse: Sample) -> None:
        scan, reference, mask = coarse
        white = (scan.voxels > np.quantile(scan.voxels[mask], 0.7)) & mask & ~binary_dilation(reference, iterations=3)

        def variation(voxels: np.ndarray) -> float:
            return float(voxels[white].std() / voxels[white].mean())

        slope = np.linspace(-1, 1, scan.shape[0])[:, None, None] + 0.5 * np.linspace(-1, 1, scan.shape[2]) ** 2
        biased = (scan.voxels * np.exp(0.45 * slope)).astype(np.float32)
        corrected = correct_bias_field(biased, scan.affine, mask)
        assert variation(biased) > 1.8 * variation(scan.voxels)
        assert variation(corrected) < 1.25 * variation(scan.voxels)
        assert corrected.shape == scan.shape and corrected.dtype == np.float32 and np.isfinite(corrected).all()

    def test_values_below_zero_survive(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        shifted = (scan.voxels - 200).astype(np.float32)
        corrected = correct_bias_field(shifted, scan.affine, mask)
        assert np.isfinite(corrected).all()
        assert np.corrcoef(corrected[mask], shifted[mask])[0, 1] > 0.95


class TestIntensity:
    def test_percentiles_are_met(self) -> None:
        rng = np.random.default_rng(0)
        voxels, mask = rng.gamma(4, 200, (30, 30, 30)).astype(np.float32), np.ones((30, 30, 30), dtype=bool)
        mask[:3] = False
        out, measured = normalise(voxels, mask)
        np.testing.assert_allclose(np.percentile(out[mask], (2, 98)), (0.1, 0.9), atol=1e-4)
        assert measured["low"] < measured["high"]
        assert not out[~mask].any() and out.min() >= CLIP[0] and out.max() <= CLIP[1]

    def test_it_forgets_the_scanner_s_unit(self) -> None:
        voxels = np.random.default_rng(0).random((10, 10, 10)).astype(np.float32)
        mask = voxels > 0.1
        np.testing.assert_allclose(normalise(voxels, mask)[0], normalise(37 * voxels + 11, mask)[0], atol=1e-4)

    def test_a_flat_brain_stays_finite(self) -> None:
        flat, _ = normalise(np.full((5, 5, 5), 7.0, np.float32), np.ones((5, 5, 5), dtype=bool))
        assert np.isfinite(flat).all()


class TestMasksThereAndBack:
    """A mask on the scan's grid keeps its shape through model space, on the models' own voxels of 2 mm and, where it
    is thin, on those of 1 mm for masks."""

    GRIDS = {
        "fine": ((150, 180, 150), np.eye(3), (1.0, 1.0, 1.0)),
        "left-handed, thick slices": ((180, 216, 30), np.diag([-1.0, 1.0, 1.0]), (0.9, 0.9, 5.5)),
        "oblique": ((110, 130, 60), rotation((20.0, -30.0, 12.0)), (1.4, 1.4, 2.5)),
        "oblique sagittal": ((72, 90, 90), rotation((14.0, -9.0, 11.0))[:, [1, 2, 0]] * [1, -1, 1], (3.0, 2.0, 2.0)),
    }

    def head(self, name: str) -> tuple[Scan, Prepared, np.ndarray]:
        """An empty scan, its way to model space, and a place in the middle of it."""
        shape, axes, voxel_mm = self.GRIDS[name]
        world = tilted((12.0, -5.0, 8.0))
        world[:3, :3] = world[:3, :3] @ np.diag([0.85, 0.88, 0.92])
        place = (world @ [18.0, -20.0, 25.0, 1.0])[:3]
        scan = Scan(np.zeros(shape, np.float32), affine_of(shape, axes, voxel_mm, place))
        recipe, everywhere = Recipe(), np.ones(shape, dtype=bool)
        inside = np.ones(recipe.shape, dtype=bool)
        return (
            scan,
            Prepared(np.zeros(recipe.shape, np.float32), inside, recipe.affine, everywhere, world, [], []),
            place,
        )

    @pytest.mark.parametrize("name", sorted(GRIDS))
    @pytest.mark.parametrize("kind", ["ball", "two lobes", "plate"])
    def test_dice(self, name: str, kind: str) -> None:
        scan, prepared, place = self.head(name)
        shape, affine = scan.shape, scan.affine
        lesion = ball(shape, affine, place, 6.5)
        if kind == "two lobes":
            lesion |= ball(shape, affine, place + [7.0, 4.0, -5.0], 6.5)
        if kind == "plate":  # 15 mm across, 9 mm thick
            lesion = ball(shape, affine, place, 15.0) & ball(shape, affine, place + [0.0, 0.0, 40.0], 44.5)
            lesion &= ball(shape, affine, place - [0.0, 0.0, 40.0], 44.5)
        assert lesion.sum() * scan.voxel_ml >= 1.0
        back = prepared.to_native(prepared.to_model(lesion.astype(np.float32), scan), scan) > 0.5
        assert dice(lesion, back) >= 0.9
        carried = prepared.mask_to_model(lesion, scan)
        assert carried.dtype == bool and carried.shape == tuple(2 * size for size in prepared.voxels.shape)
        assert dice(lesion, prepared.mask_to_native(carried, scan)) >= 0.9

    def test_ribbons_of_three_millimetres(self) -> None:
        """Like plaques along ventricles: on the models' own voxels they are no longer what they were."""
        scan, prepared, place = self.head("fine")
        lesion = ball(scan.shape, scan.affine, place, 14.0) & ~ball(scan.shape, scan.affine, place, 11.0)
        lesion &= ball(scan.shape, scan.affine, place + [12.0, 9.0, 0.0], 14.0)
        assert lesion.sum() * scan.voxel_ml >= 1.0
        assert dice(lesion, prepared.mask_to_native(prepared.mask_to_model(lesion, scan), scan)) >= 0.9

    def test_both_grids_cover_the_same_space(self) -> None:
        _, prepared, _ = self.head("fine")
        shape = np.array(prepared.voxels.shape)
        for corner in (-0.5 * np.ones(3), shape - 0.5):
            finer = 2 * (corner + 0.5) - 0.5
            np.testing.assert_allclose(prepared.mask_affine @ [*finer, 1], prepared.affine @ [*corner, 1])


class TestPrepare:
    def test_steps_are_recorded_in_order(self, coarse: Sample) -> None:
        scan, _, mask = coarse
        scan = replace(scan, voxels=scan.voxels * mask)  # resampling leaves a faint rim around the brain
        before = scan.voxels.copy()
        prepared = prepare(scan)
        assert [step["step"] for step in prepared.steps] == list(STAGES) == list(prepared.seconds)
        assert prepared.steps[1]["source"] == "already extracted"
        json.dumps(prepared.steps, allow_nan=False)
        np.testing.assert_allclose(prepared.steps[3]["world"], prepared.world_to_native)
        np.testing.assert_array_equal(scan.voxels, before)
        assert dice(prepared.native_mask, mask) > 0.99
        assert 900 < prepared.mask.sum() * 8 / 1000 < 2200

    @pytest.mark.parametrize("stage", ["brain mask", "bias field", "registration"])
    def test_cancelling_ends_it_promptly(self, stage: str, coarse: Sample) -> None:
        scan, _, mask = coarse
        asked: list[float] = []

        def stop(now: str, share: float) -> None:
            if now == stage:
                asked.append(time.perf_counter())
                if len(asked) >= (1 if stage == "brain mask" else 3):
                    raise CancelledError

        with pytest.raises(CancelledError):
            prepare(scan, brain_mask=mask, progress=stop)
        assert time.perf_counter() - asked[-1] < 3.0

    def test_a_brain_outside_the_field_of_view_is_refused(
        self, coarse: Sample, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from UADBenchLib.preprocessing import recipe
        from UADBenchLib.preprocessing.registration import Registration

        scan, _, mask = coarse
        away = np.eye(4)
        away[:3, 3] = (300, 0, 0)
        monkeypatch.setattr(recipe, "register_brain", lambda *_, **__: Registration(away, GOOD))
        monkeypatch.setattr(recipe, "correct_bias_field", lambda voxels, *_, **__: voxels)
        with pytest.raises(InputError) as refusal:
            prepare(scan, brain_mask=mask)
        assert refusal.value.code == "OUTSIDE_MODEL_SPACE"

    def test_masks_go_back_to_the_scan_s_axis_order(
        self, affine: np.ndarray, make_affine: Callable[..., np.ndarray]
    ) -> None:
        from UADBenchLib.geometry import canonical

        mask = np.random.default_rng(0).random((5, 6, 7)) > 0.5
        np.testing.assert_array_equal(_as_scan(canonical(mask, affine)[0], affine), mask)
