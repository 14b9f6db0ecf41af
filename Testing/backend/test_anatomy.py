"""Label maps and what is made of them: tissues, brain mask, deformation, looks, acquisition."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from builders import dice
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from phantom import phantom_labels, write_phantom

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.scan import CONTRASTS
from UADBenchLib.synthesis.anatomy import (
    CLASS,
    NAMES,
    TISSUES,
    Anatomy,
    brain_mask,
    deform,
    draw_deformation,
    read_anatomies,
    read_anatomy,
)
from UADBenchLib.synthesis.contrasts import PRIORS, draw_look, random_look
from UADBenchLib.synthesis.heads import Acquisition, acquire, draw_acquisition, paint, reference_on, render
from UADBenchLib.writing import write_volume

STILL = replace(
    draw_deformation(np.random.default_rng(0)),
    degrees=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0), shear=(0.0, 0.0, 0.0), mirrored=False, bend_mm=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    return read_anatomy(write_phantom(tmp_path_factory.mktemp("maps") / "head_dseg.nii.gz"))


def ml(anatomy: Anatomy, *names: str) -> float:
    return float(anatomy.of(*names).sum() * anatomy.voxel_mm.prod() / 1000)


class TestReading:
    def test_every_number_has_one_tissue(self) -> None:
        numbers = [number for tissue in TISSUES.values() for number in tissue]
        assert len(numbers) == len(set(numbers))

    def test_lesions_of_a_map_are_white_matter(self) -> None:
        assert {25, 57, 77, 78, 79} <= set(TISSUES["white matter"])

    def test_axes_are_brought_to_ras(self, head: Anatomy, tmp_path: Path) -> None:
        labels, affine = phantom_labels()
        turned = affine @ np.array([[0, 0, -1, labels.shape[0] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
        write_volume(tmp_path / "turned.nii.gz", labels[::-1].transpose(1, 2, 0).astype(np.float32), turned)
        read = read_anatomy(tmp_path / "turned.nii.gz")
        np.testing.assert_array_equal(read.classes, head.classes)
        np.testing.assert_allclose(read.affine, head.affine, atol=1e-4)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (lambda a: np.where(a == 511, 900, a), "900"),
            (lambda a: a + 0.25 * (a == 511), "no label numbers"),
            (lambda a: np.where(a == 515, 507, a), "lacks bone"),
            (lambda a: np.where(a >= 500, 0, a) * (a != 3) * (a != 42) + 515 * (a == 511), "lacks cortex"),
        ],
    )
    def test_what_is_no_whole_head_is_refused(self, tmp_path: Path, change, what: str) -> None:
        labels, affine = phantom_labels()
        write_volume(tmp_path / "bad.nii.gz", change(labels).astype(np.float32), affine)
        with pytest.raises(InputError, match=what) as caught:
            read_anatomy(tmp_path / "bad.nii.gz")
        assert caught.value.code == "LABELS_INVALID"

    def test_a_folder_without_maps(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            read_anatomies(tmp_path)
        assert caught.value.code == "LABELS_MISSING"


def test_the_brain_mask_holds_the_brain_and_its_sulci(head: Anatomy) -> None:
    mask = brain_mask(head)
    tissue = head.of("white matter", "cortex", "ventricle", "thalamus", "cerebellar cortex", "brain stem")
    assert not (tissue & ~mask).any()
    assert not (mask & head.of("air", "skin", "soft tissue", "bone", "marrow", "eye", "spinal cord")).any()
    gap = head.of("csf")[:, :, :] & mask
    middle = head.classes.shape[0] // 2
    assert gap[middle - 1 : middle + 1].any(), "the fissure between the hemispheres belongs to the mask"


class TestDeformation:
    def test_none_at_all_is_the_same_head(self, head: Anatomy) -> None:
        same = deform(head, STILL)
        assert same.classes.shape == head.classes.shape
        assert (same.classes == head.classes).mean() > 0.999

    @given(st.integers(0, 2**31 - 1))
    @hypothesis_settings(max_examples=6)
    def test_any_draw_is_replayable_and_a_head(self, head: Anatomy, seed: int) -> None:
        drawn = draw_deformation(np.random.default_rng(seed), bend_mm=(1.0, 6.0))
        first, second = deform(head, drawn), deform(head, drawn)
        np.testing.assert_array_equal(first.classes, second.classes)
        scale = np.prod(drawn.scale)
        assert ml(first, "white matter", "cortex") == pytest.approx(
            scale * ml(head, "white matter", "cortex"), rel=0.12
        )
        assert set(np.unique(first.classes)) <= set(np.unique(head.classes))

    def test_size_and_turn(self, head: Anatomy) -> None:
        large = deform(head, replace(STILL, scale=(1.1, 1.1, 1.1)))
        assert ml(large, "cortex") == pytest.approx(1.331 * ml(head, "cortex"), rel=0.03)
        tilted = deform(head, replace(STILL, degrees=(0.0, 0.0, 20.0)))
        front = [np.argwhere(a.of("eye")).mean(axis=0) @ np.diag(a.voxel_mm) + a.affine[:3, 3] for a in (head, tilted)]
        assert front[1][0] < front[0][0] - 10, "turning about S by a positive angle moves the eyes to the left"

    def test_a_mirrored_head(self, head: Anatomy) -> None:
        mirrored = deform(head, replace(STILL, mirrored=True))
        assert dice(mirrored.of("cortex"), head.of("cortex")) > 0.9  # the phantom is symmetric but for sampling

    def test_age_widens_ventricles_and_sulci(self, head: Anatomy) -> None:
        young, thin = (deform(head, replace(STILL, thinning=t), voxel_mm=1.5) for t in (0.0, 1.0))
        assert ml(thin, "cortex") < 0.99 * ml(young, "cortex") and ml(thin, "csf") > ml(young, "csf")
        old = deform(head, replace(STILL, widening_mm=4.0, thinning=1.0))
        assert ml(old, "ventricle") > 1.3 * ml(head, "ventricle")
        assert brain_mask(old).sum() == pytest.approx(brain_mask(head).sum(), rel=0.05)

    def test_another_voxel_size(self, head: Anatomy) -> None:
        coarse = deform(head, STILL, voxel_mm=5.0)
        np.testing.assert_allclose(coarse.voxel_mm, 5.0)
        assert ml(coarse, "cortex") == pytest.approx(ml(head, "cortex"), rel=0.1)


class TestLooks:
    def test_priors_name_every_tissue(self) -> None:
        for contrast in CONTRASTS:
            assert set(PRIORS[contrast]) == set(NAMES)

    @given(st.integers(0, 2**31 - 1))
    @hypothesis_settings(max_examples=25)
    def test_tissues_are_ordered_as_in_vivo(self, seed: int) -> None:
        means = {}
        for contrast in CONTRASTS:
            look = draw_look(contrast, np.random.default_rng(seed))
            means[contrast] = dict(zip(NAMES, look.means, strict=True))
        assert means["T1w"]["ventricle"] < means["T1w"]["cortex"] < means["T1w"]["white matter"] == 1
        assert means["T2w"]["ventricle"] > means["T2w"]["cortex"] > means["T2w"]["white matter"] == 1
        assert means["FLAIR"]["ventricle"] < means["FLAIR"]["white matter"] < means["FLAIR"]["cortex"]

    def test_random_looks_have_no_order(self) -> None:
        looks = [random_look(np.random.default_rng(seed)).means for seed in range(20)]
        assert len({look[CLASS["cortex"]] > look[CLASS["white matter"]] for look in looks}) == 2

    def test_an_unknown_contrast(self) -> None:
        with pytest.raises(ValueError, match="PD"):
            draw_look("PD", np.random.default_rng(0))


class TestAcquisition:
    clean = Acquisition(voxel_mm=(3.0, 3.0, 3.0), noise=0.0, bias=0.0, gain=100.0, cut_mm=500.0)

    def test_white_matter_has_the_gain(self, head: Anatomy) -> None:
        look = draw_look("T1w", np.random.default_rng(1))
        voxels, affine = render(head, look, self.clean)
        np.testing.assert_allclose(affine, head.affine)
        from scipy.ndimage import binary_erosion

        assert np.median(voxels[binary_erosion(head.of("white matter"), iterations=2)]) == pytest.approx(100, rel=0.03)

    @given(st.integers(0, 2**31 - 1))
    @hypothesis_settings(max_examples=6)
    def test_any_draw_is_replayable_and_finite(self, head: Anatomy, seed: int) -> None:
        rng = np.random.default_rng(seed)
        look, acquisition = draw_look("FLAIR", rng), draw_acquisition(rng, voxel_mm=(3.0, 4.0, 6.0))
        first, second = (render(head, look, acquisition) for _ in range(2))
        np.testing.assert_array_equal(first[0], second[0])
        assert first[0].dtype == np.float32 and np.isfinite(first[0]).all() and first[0].min() >= 0
        np.testing.assert_allclose(np.diag(first[1])[:3], (3.0, 4.0, 6.0))

    def test_a_place_keeps_its_millimetres(self, head: Anatomy) -> None:
        marked = np.zeros(head.classes.shape, dtype=np.float32)
        marked[30:34, 40:44, 45:49] = 1.0
        thick = replace(self.clean, voxel_mm=(3.0, 3.0, 6.0), cut_mm=40.0)
        voxels, affine = acquire(marked, head, thick)
        seen = np.argwhere(voxels > 0)
        weights = voxels[voxels > 0]
        place = affine[:3, :3] @ (weights @ seen / weights.sum()) + affine[:3, 3]
        np.testing.assert_allclose(place, head.affine[:3, :3] @ [31.5, 41.5, 46.5] + head.affine[:3, 3], atol=0.8)

    def test_a_reference_follows_the_scan(self, head: Anatomy) -> None:
        mask = brain_mask(head)
        voxels, affine = render(head, random_look(np.random.default_rng(0)), replace(self.clean, cut_mm=20.0))
        carried = reference_on(mask, head, voxels.shape, affine)
        back = resample(carried, affine, mask.shape, head.affine, order=0)
        assert dice(back, mask) > 0.99

    @pytest.mark.parametrize("field", ["noise", "bias", "ghost"])
    def test_each_part_does_something(self, head: Anatomy, field: str) -> None:
        look = draw_look("T1w", np.random.default_rng(1))
        plain = render(head, look, self.clean)[0]
        changed = render(head, look, replace(self.clean, **{field: 0.2}))[0]
        assert np.abs(plain - changed).mean() > 0.5

    def test_less_of_k_space_rings(self, head: Anatomy) -> None:
        image = head.of("white matter").astype(np.float32)
        rung = acquire(image, head, replace(self.clean, kept=0.5))[0]
        assert rung.max() > 104

    def test_a_removed_face_takes_no_brain(self, head: Anatomy) -> None:
        look = draw_look("T1w", np.random.default_rng(1))
        voxels = render(head, look, replace(self.clean, defaced=True))[0]
        assert not voxels[head.of("eye")].all()
        assert voxels[brain_mask(head)].min() > 0

    def test_draws_are_plain_values(self) -> None:
        import json

        rng = np.random.default_rng(0)
        document = [asdict(draw_deformation(rng)), asdict(draw_look("T2w", rng)), asdict(draw_acquisition(rng))]
        assert json.loads(json.dumps(document))

    def test_texture_is_drawn_from_the_seed(self, head: Anatomy) -> None:
        look = draw_look("T1w", np.random.default_rng(1))
        np.testing.assert_array_equal(paint(head, look, 5), paint(head, look, 5))
        assert (paint(head, look, 5) != paint(head, look, 6)).any()
