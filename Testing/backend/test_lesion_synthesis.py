"""Synthetic lesions: of the size asked for, in brain tissue, looking as each sequence shows them, the same again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
from builders import affine_of, rotation
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from phantom import phantom_labels

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.synthesis import places
from UADBenchLib.synthesis.anatomy import CLASS, TISSUES, Anatomy
from UADBenchLib.synthesis.growth import pull, push_outward, random_field, signed_distance, spread
from UADBenchLib.synthesis.insertion import apply_lesion
from UADBenchLib.synthesis.lesions import CONTRASTS, KINDS, Lesion, bounding_box, draw_lesion, lesion_from_json
from UADBenchLib.synthesis.tissue import TissueMaps, tissue_from_anatomy, tissue_from_scan, tissue_of_template

LEVELS = {"T1w": (1.0, 0.65, 0.2), "T2w": (1.0, 1.35, 3.5), "FLAIR": (1.0, 1.2, 0.4)}
"""Intensities of white matter, grey matter and fluid."""

VARIANTS = [(kind, variant) for kind, variants in KINDS.items() for variant in variants]


def phantom_anatomy(voxel_mm: float) -> Anatomy:
    labels, affine = phantom_labels(voxel_mm)
    classes = np.zeros(labels.shape, dtype=np.uint8)
    for name, numbers in TISSUES.items():
        classes[np.isin(labels, numbers)] = CLASS[name]
    return Anatomy(classes, affine)


@lru_cache(maxsize=3)
def head(voxel_mm: float) -> TissueMaps:
    """The phantom's tissue, which lies about where the template's does; 1 mm is sampled from 2 mm, which is faster."""
    if voxel_mm == 1.0:
        coarse = head(2.0)
        return on_grid(coarse, tuple(2 * n for n in coarse.brain.shape), np.eye(3), (1.0, 1.0, 1.0))
    tissue = tissue_from_anatomy(phantom_anatomy(voxel_mm), np.eye(4))
    return tissue.crop(bounding_box(tissue.brain))


def images_of(tissue: TissueMaps, noise: float = 0.02) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        contrast: (
            white * tissue.white
            + grey * tissue.grey
            + fluid * tissue.csf
            + noise * rng.standard_normal(tissue.brain.shape)
        ).astype(np.float32)
        for contrast, (white, grey, fluid) in LEVELS.items()
    }


def drawn(kind: str, tissue: TissueMaps, seed: int = 0, **options: object) -> Lesion:
    return draw_lesion(kind, tissue, np.random.default_rng(seed), **options)


class TestVolumes:
    @given(st.sampled_from(VARIANTS), st.integers(0, 2**31 - 1), st.floats(np.log(1.0), np.log(150.0)))
    @hypothesis_settings(max_examples=10, deadline=None)
    def test_any_lesion_is_of_its_volume_and_in_tissue(self, which: tuple[str, str], seed: int, log_ml: float) -> None:
        tissue, volume = head(3.0), float(np.exp(log_ml))
        lesion = drawn(which[0], tissue, seed, variant=which[1], volume_ml=volume)
        result = apply_lesion({}, tissue, lesion)
        assert result.mask.sum() * tissue.voxel_ml == pytest.approx(lesion.volume_ml, abs=1.1 * tissue.voxel_ml)
        assert lesion.volume_ml == pytest.approx(volume, rel=0.02)
        assert (result.mask <= tissue.brain).all()
        assert (result.tissue.csf[result.mask] < 0.5).all(), "fluid does not become a lesion"

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("volume_ml", "voxel_mm"), [(0.05, 1.0), (0.4, 1.0), (150.0, 2.0)])
    def test_the_ends_of_the_range(self, kind: str, volume_ml: float, voxel_mm: float) -> None:
        tissue = head(voxel_mm)
        result = apply_lesion({}, tissue, drawn(kind, tissue, 5, volume_ml=volume_ml))
        assert result.mask.sum() * tissue.voxel_ml == pytest.approx(volume_ml, rel=0.15)

    @pytest.mark.parametrize("kind", KINDS)
    def test_volumes_by_themselves_are_those_of_subjects(self, kind: str) -> None:
        volumes = [drawn(kind, head(3.0), seed).volume_ml for seed in range(12)]
        assert 0.05 <= min(volumes) < max(volumes) <= 150.1
        assert len(set(volumes)) > 8


class TestLooks:
    @pytest.mark.parametrize(("kind", "variant"), VARIANTS)
    def test_signs_by_sequence(self, kind: str, variant: str) -> None:
        tissue = head(3.0)
        result = apply_lesion(images_of(tissue), tissue, drawn(kind, tissue, 3, variant=variant, volume_ml=30.0))
        plain = images_of(result.tissue)
        change = {c: result.images[c] - plain[c] for c in CONTRASTS}
        assert change["T1w"][result.mask].mean() < -0.03
        assert change["T2w"][result.mask].mean() > 0.1
        cavity = result.compartments == (1 if variant == "chronic" else 99)
        assert change["FLAIR"][result.mask & ~cavity].mean() > 0.15
        if variant == "chronic":
            assert result.images["FLAIR"][cavity].mean() < 0.8, "a cavity is filled with fluid"
            assert change["T1w"][cavity].mean() < change["T1w"][result.mask & ~cavity].mean()

    @pytest.mark.parametrize("kind", KINDS)
    def test_visibility_grades_the_change_and_0_is_none(self, kind: str) -> None:
        tissue = head(3.0)
        images, lesion = images_of(tissue), drawn(kind, tissue, 2, volume_ml=20.0)
        results = [apply_lesion(images, tissue, replace(lesion, visibility=v)) for v in (0.0, 0.3, 1.0)]
        for contrast in CONTRASTS:
            np.testing.assert_array_equal(results[0].images[contrast], images[contrast])
            sizes = [np.abs(r.images[contrast] - images[contrast])[r.mask].mean() for r in results]
            assert sizes[0] == 0 < sizes[1] < 0.6 * sizes[2]
        assert results[0].mask.sum() == results[2].mask.sum()

    def test_scaling_and_bias_field_carry_over(self) -> None:
        tissue = head(3.0)
        lesion = drawn("ms", tissue, 1, volume_ml=20.0)
        gain = np.exp(np.linspace(-0.3, 0.3, tissue.brain.shape[1]))[None, :, None].astype(np.float32)
        image = images_of(tissue)["FLAIR"]
        plain, scaled = (
            apply_lesion({"FLAIR": image * g}, tissue, lesion).images["FLAIR"] / g for g in (1, 700 * gain)
        )
        mask = apply_lesion({}, tissue, lesion).mask
        assert scaled[mask].mean() == pytest.approx(plain[mask].mean(), rel=0.1)

    def test_far_from_the_lesion_nothing_changes_and_inputs_stay(self) -> None:
        tissue = head(3.0)
        images = images_of(tissue)
        before = {c: v.copy() for c, v in images.items()}
        result = apply_lesion(images, tissue, drawn("stroke", tissue, 4, volume_ml=5.0))
        far = signed_distance(result.mask, tissue.voxel_mm) < -12
        for contrast in CONTRASTS:
            np.testing.assert_array_equal(images[contrast], before[contrast])
            np.testing.assert_array_equal(result.images[contrast][far], before[contrast][far])
            assert np.isfinite(result.images[contrast]).all()


class TestKinds:
    def test_plaques_are_many_and_in_white_matter(self) -> None:
        tissue = head(2.0)
        lesion = drawn("ms", tissue, 3, volume_ml=5.0)
        result = apply_lesion({}, tissue, lesion)
        assert len(lesion.foci) > 5
        assert tissue.white[result.mask].mean() > 0.75

    def test_hyperintensities_lie_around_the_ventricles(self) -> None:
        tissue = head(3.0)
        result = apply_lesion({}, tissue, drawn("wmh", tissue, 3, volume_ml=20.0))
        distance = -signed_distance(tissue.ventricles, tissue.voxel_mm)
        assert np.median(distance[result.mask]) < 0.6 * np.median(distance[tissue.white > 0.5])
        assert tissue.white[result.mask].mean() > 0.9

    def test_strokes_reach_the_cortex_and_keep_to_a_side(self) -> None:
        tissue = tissue_of_template(2)
        for seed in range(3):
            mask = apply_lesion({}, tissue, drawn("stroke", tissue, seed, volume_ml=60.0)).mask
            assert tissue.grey[mask].mean() > 0.2
            x = (tissue.affine[:3, :3] @ np.argwhere(mask).T)[0] + tissue.affine[0, 3]
            assert max((x > 0).mean(), (x < 0).mean()) > 0.8

    def test_oedema_follows_white_matter_around_the_core(self) -> None:
        tissue = head(3.0)
        result = apply_lesion({}, tissue, drawn("tumour", tissue, 1, variant="necrotic", volume_ml=60.0))
        assert set(np.unique(result.compartments)) == {0, 1, 2, 3}
        oedema = result.compartments == 3
        assert result.tissue.white[oedema].mean() > 0.85
        assert 0.3 < oedema.sum() / result.mask.sum() < 0.7
        rim = signed_distance((result.compartments == 1) | (result.compartments == 2), tissue.voxel_mm)
        assert rim[result.compartments == 1].mean() > rim[result.compartments == 2].mean()

    def test_tumours_press_the_ventricles(self) -> None:
        tissue = head(3.0)
        lesion = replace(drawn("tumour", tissue, 1, volume_ml=80.0, centre=(34.0, 5.0, 22.0)), mass_effect=0.6)
        result = apply_lesion(images_of(tissue), tissue, lesion)
        assert result.tissue.ventricles.sum() < 0.98 * tissue.ventricles.sum()
        assert 2 < np.linalg.norm(result.displacement, axis=0).max() < 15
        assert not result.displacement[:, ~tissue.brain].any()
        moved = pull(tissue.ventricles, result.displacement, tissue.affine)
        np.testing.assert_array_equal(moved & tissue.brain, result.tissue.ventricles)

    def test_other_kinds_push_nothing(self) -> None:
        tissue = head(3.0)
        result = apply_lesion({}, tissue, drawn("stroke", tissue, 1, volume_ml=20.0))
        assert result.displacement is None and result.tissue is tissue


class TestReplay:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_lesion_comes_back_from_json_and_gives_the_same_bytes(self, kind: str) -> None:
        tissue = head(3.0)
        lesion = drawn(kind, tissue, 9, volume_ml=12.0)
        assert lesion == drawn(kind, tissue, 9, volume_ml=12.0) != drawn(kind, tissue, 10, volume_ml=12.0)
        again = lesion_from_json(json.loads(json.dumps(asdict(lesion))))
        assert again == lesion
        first, second = (apply_lesion(images_of(tissue), tissue, one) for one in (lesion, again))
        np.testing.assert_array_equal(first.mask, second.mask)
        for contrast in CONTRASTS:
            np.testing.assert_array_equal(first.images[contrast], second.images[contrast])

    @pytest.mark.parametrize("kind", ["tumour", "stroke"])
    def test_the_same_lesion_on_an_oblique_left_handed_anisotropic_grid(self, kind: str) -> None:
        tissue = head(2.0)
        lesion = drawn(kind, tissue, 6, volume_ml=25.0)
        straight = apply_lesion({}, tissue, lesion).mask
        other = on_grid(tissue, (84, 96, 40), rotation((9.0, -6.0, 5.0)) * [-1, 1, 1], (2.0, 2.2, 4.0))
        assert np.linalg.det(other.affine[:3, :3]) < 0
        oblique = apply_lesion({}, other, lesion).mask
        back = resample(oblique.astype(np.float32), other.affine, straight.shape, tissue.affine, order=1) > 0.5
        assert 2 * (back & straight).sum() / (back.sum() + straight.sum()) > 0.7


def on_grid(tissue: TissueMaps, shape: tuple[int, int, int], axes: np.ndarray, voxel_mm: tuple) -> TissueMaps:
    """The same tissue, sampled on another grid around the same place."""
    middle = (tissue.affine @ [*((np.array(tissue.brain.shape) - 1) / 2), 1.0])[:3]
    affine = affine_of(shape, axes, voxel_mm, middle)

    def carry(part: np.ndarray) -> np.ndarray:
        moved = resample(part.astype(np.float32), tissue.affine, shape, affine, order=1, antialias=True)
        return moved > 0.5 if part.dtype == bool else moved

    names = ("white", "grey", "csf", "ventricles", "brain")
    return replace(tissue, affine=affine, **{name: carry(getattr(tissue, name)) for name in names})


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "options"),
        [
            ("LESION_KIND", {"kind": "abscess"}),
            ("LESION_KIND", {"variant": "chronic"}),
            ("LESION_VOLUME", {"volume_ml": 0.01}),
            ("LESION_VOLUME", {"volume_ml": 151.0}),
            ("LESION_VISIBILITY", {"visibility": 1.2}),
        ],
    )
    def test_what_cannot_be_drawn(self, code: str, options: dict) -> None:
        with pytest.raises(InputError) as refusal:
            drawn(options.pop("kind", "tumour"), head(3.0), **options)
        assert refusal.value.code == code

    def test_no_brain_no_white_matter_no_fluid(self) -> None:
        tissue = head(3.0)
        nothing = np.zeros(tissue.brain.shape, dtype=np.float32)
        lesion = drawn("ms", tissue, volume_ml=5.0)
        cases: dict[str, Callable[[], object]] = {
            "BRAIN_MASK_EMPTY": lambda: drawn("ms", replace(tissue, brain=nothing > 0)),
            "LESION_NO_ROOM": lambda: drawn("ms", replace(tissue, white=nothing)),
            "TISSUE_MISSING": lambda: apply_lesion(
                {"T1w": nothing}, replace(tissue, csf=nothing, ventricles=nothing > 0), lesion
            ),
            "CONTRAST_UNKNOWN": lambda: apply_lesion({"CT": nothing}, tissue, lesion),
            "GRID_MISMATCH": lambda: apply_lesion({"T1w": nothing[1:]}, tissue, lesion),
        }
        for code, case in cases.items():
            with pytest.raises(InputError) as refusal:
                case()
            assert refusal.value.code == code

    def test_more_than_there_is_room_for(self) -> None:
        tissue = head(3.0)
        small = replace(tissue, brain=tissue.brain & (np.arange(tissue.brain.shape[0]) < 8)[:, None, None])
        with pytest.raises(InputError) as refusal:
            apply_lesion({}, small, drawn("stroke", tissue, volume_ml=150.0))
        assert refusal.value.code == "LESION_NO_ROOM"

    def test_records_that_are_none(self) -> None:
        record = asdict(drawn("ms", head(3.0), volume_ml=5.0))
        record["foci"] = [{"centre": [0, 0]}]
        with pytest.raises(InputError) as refusal:
            lesion_from_json(record)
        assert refusal.value.code == "LESION_INVALID" and "foci" in refusal.value.message

    def test_an_installation_without_the_statistics(self, monkeypatch, tmp_path) -> None:
        monkeypatch.setattr(places, "_PACKAGE", tmp_path / "UADBenchLib")
        places.load_places.cache_clear()
        with pytest.raises(InputError) as refusal:
            places.load_places()
        assert refusal.value.code == "RESOURCE_MISSING"


class TestTissue:
    def test_shares_add_up_and_agree_with_the_anatomy(self) -> None:
        tissue = head(3.0)
        np.testing.assert_allclose((tissue.white + tissue.grey + tissue.csf)[tissue.brain], 1, atol=1e-5)
        assert not (tissue.white + tissue.grey + tissue.csf)[~tissue.brain].any()
        assert tissue.ventricles.any() and (tissue.csf[tissue.ventricles & tissue.brain] > 0.9).all()

    @pytest.mark.parametrize("contrast", CONTRASTS)
    def test_a_scan_gives_its_own_tissue_not_the_templates(self, contrast: str) -> None:
        template = tissue_of_template(2)
        step = (slice(None, None, 2),) * 3
        affine = template.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
        # Another brain than the template's: a few millimetres off, as an affine leaves it.
        truth = [np.roll(part, 1, axis=0)[step] for part in (template.white, template.grey, template.csf)]
        brain = np.roll(template.brain, 1, axis=0)[step]
        sharp = np.argmax(truth, axis=0)
        image = np.array(LEVELS[contrast])[sharp] + 0.03 * np.random.default_rng(0).standard_normal(brain.shape)
        found = tissue_from_scan((image * brain).astype(np.float32), affine, brain, np.eye(4))
        agreement = (np.argmax([found.white, found.grey, found.csf], axis=0) == sharp)[brain].mean()
        assert agreement > 0.9
        assert found.ventricles.any()
        np.testing.assert_allclose((found.white + found.grey + found.csf)[brain], 1, atol=1e-5)

    def test_a_mask_elsewhere_is_refused(self) -> None:
        voxels = np.ones((20, 20, 20), dtype=np.float32)
        far = np.eye(4)
        far[:3, 3] = 900
        with pytest.raises(InputError) as refusal:
            tissue_from_scan(voxels, np.diag([2.0, 2, 2, 1]), voxels > 0, far)
        assert refusal.value.code == "TISSUE_MISSING"
        with pytest.raises(InputError) as refusal:
            tissue_from_scan(voxels, np.eye(4), voxels[1:] > 0, np.eye(4))
        assert refusal.value.code == "GRID_MISMATCH"


class TestGrowth:
    def test_the_front_takes_the_nearest_voxels_and_stops_at_walls(self) -> None:
        speed = np.ones((15, 15, 15))
        speed[9] = 0
        start = np.zeros(speed.shape, dtype=bool)
        start[7, 7, 7] = True
        grown = spread(speed, start, speed > 0, 300, np.array([1.0, 1.0, 2.0]))
        assert grown.sum() == 300 and not grown[9:].any()
        extent = [np.ptp(index) + 1 for index in np.nonzero(grown[:9])]
        assert extent[1] > 1.5 * extent[2], "millimetres count, not voxels"
        with pytest.raises(InputError, match="LESION_NO_ROOM"):
            spread(speed, start, speed > 0, 9 * 15 * 15 + 1, np.ones(3))

    def test_a_front_crosses_speeds_of_many_orders_of_magnitude(self) -> None:
        speed = np.exp(np.random.default_rng(0).uniform(np.log(1e-20), 0, (24, 24, 24)))
        start = np.zeros(speed.shape, dtype=bool)
        start[12:14, 12:14, 12] = True
        assert spread(speed, start, speed > 0, speed.size, np.array([0.9, 0.9, 4.0])).all()

    def test_fields_are_standard_and_the_same_on_any_grid(self) -> None:
        fine, coarse = np.diag([1.0, 1, 1, 1]), np.diag([-2.0, 2, 4, 1])
        coarse[0, 3] = 58
        field = random_field((60, 60, 60), fine, (3.0, 4.0, 5.0), 8.0, seed=1)
        assert abs(field.mean()) < 0.2 and field.std() == pytest.approx(1, abs=0.2)
        same = random_field((30, 30, 15), coarse, (3.0, 4.0, 5.0), 8.0, seed=1)
        np.testing.assert_allclose(same, field[58::-2, ::2, ::4], atol=0.25)

    def test_the_push_keeps_volume_order_and_skull(self) -> None:
        i, j, k = np.meshgrid(*(np.arange(40) - 19.5,) * 3, indexing="ij")
        radius = np.sqrt(i**2 + j**2 + k**2)
        affine = np.diag([2.0, -2.0, 2.0, 1.0])
        displacement = push_outward(radius < 6, radius < 18, affine, 0.5)
        assert not displacement[:, radius >= 18].any()
        inward = -(displacement * np.stack([i, -j, k])).sum(axis=0) / np.maximum(radius, 1)
        assert (inward[(radius > 4) & (radius < 12)] > 0).all()
        came_from = radius * 2 - inward
        order = [came_from[(radius >= r) & (radius < r + 1)].mean() for r in range(2, 18)]
        assert (np.diff(order) > 0).all(), "shells do not overtake each other"


class TestPlaces:
    def test_territories_are_places_and_tell_the_sides_apart(self) -> None:
        from scipy.ndimage import gaussian_filter

        found = places.load_places()
        x = found.affine[0, 0] * np.arange(found.maps["stroke_territories"].shape[1]) + found.affine[0, 3]
        for territory in found.maps["stroke_territories"]:
            assert np.corrcoef(territory.ravel(), gaussian_filter(territory, 1.0).ravel())[0, 1] > 0.9, "in one piece"
        sides = [np.average(x, weights=t.sum(axis=(1, 2)) + 1e-6) for t in found.maps["stroke_territories"]]
        assert min(sides) < -20 and max(sides) > 20

    def test_plaques_lie_in_the_brain_on_both_sides_alike(self) -> None:
        tissue = tissue_of_template(2)
        for name in ("ms_voxels", "ms_centres"):
            values = places.load_places().maps[name]
            there = resample(values, places.load_places().affine, tissue.brain.shape, tissue.affine, order=1)
            assert there[tissue.brain].sum() > 0.95 * there.sum()
            assert there[:49].sum() == pytest.approx(there[50:].sum(), rel=0.05)
