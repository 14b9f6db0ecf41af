"""Brain extraction: the shipped network on heads of every contrast and posture, its safeguards, and its training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import affine_of, dice, rotation, write_cohort
from hypothesis import given
from hypothesis import strategies as st
from phantom import phantom_labels, write_phantom
from safetensors.torch import load_file
from scipy.ndimage import distance_transform_edt, gaussian_filter

from UADBenchLib.errors import CancelledError, InputError
from UADBenchLib.geometry import canonical, resample
from UADBenchLib.networks.outline import MARGIN, OutlineNet
from UADBenchLib.networks.unet import unfold
from UADBenchLib.preprocessing import brain_extraction
from UADBenchLib.preprocessing.brain_extraction import (
    BRIGHT_RIM_ML,
    CERTAIN,
    DOUBTFUL,
    STEP,
    WORK_MM,
    Frame,
    _outline,
    _without_fat,
    brain_probability,
    build_network,
    find_brain,
    frame_of,
    to_work_grid,
)
from UADBenchLib.preprocessing.recipe import _as_scan
from UADBenchLib.scan import CONTRASTS
from UADBenchLib.synthesis.anatomy import Anatomy, brain_mask, read_anatomy
from UADBenchLib.synthesis.contrasts import draw_look
from UADBenchLib.synthesis.heads import Acquisition, render
from UADBenchLib.training import brain_extraction as training
from UADBenchLib.writing import write_volume

PLAIN = Acquisition(voxel_mm=(3.0, 3.0, 3.0), noise=0.03, bias=0.1, cut_mm=500.0)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    return read_anatomy(write_phantom(tmp_path_factory.mktemp("maps") / "head_dseg.nii.gz"))


def scanned(head: Anatomy, contrast: str = "T2w") -> np.ndarray:  # in T1w the phantom is doubtful, which takes long
    return render(head, draw_look(contrast, np.random.default_rng(2)), PLAIN)[0]


def sphere(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> np.ndarray:
    return np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1) <= radius


class TestNetwork:
    @pytest.mark.parametrize("contrast", CONTRASTS)
    def test_every_contrast(self, head: Anatomy, contrast: str) -> None:
        found = find_brain(scanned(head, contrast), head.affine)
        assert found.source == "network"
        assert dice(found.mask, brain_mask(head)) > 0.9  # the phantom's skull is thinner than any

    def test_units_do_not_matter(self, head: Anatomy) -> None:
        voxels = scanned(head)
        first = find_brain(voxels, head.affine).mask
        other = find_brain((voxels * 0.01 - 300).astype(np.float32), head.affine).mask
        assert dice(first, other) > 0.999

    def test_a_tilted_head_on_an_oblique_left_handed_grid(self, head: Anatomy) -> None:
        axes = rotation((20.0, -12.0, 9.0)) @ np.diag([-1.0, 1.0, 1.0])
        shape, edges = (90, 92, 46), (2.6, 3.0, 5.0)
        middle = head.affine @ [*((np.array(head.classes.shape) - 1) / 2), 1.0]
        affine = affine_of(shape, axes, edges, middle[:3])
        voxels = resample(scanned(head), head.affine, shape, affine, order=1, antialias=True)
        truth = resample(brain_mask(head).astype(np.float32), head.affine, shape, affine, order=1) > 0.5
        upright, canonical_affine = canonical(voxels, affine)
        found = _as_scan(find_brain(upright, canonical_affine).mask, affine)
        assert dice(found, truth) > 0.8

    def test_one_piece_without_holes(self, head: Anatomy) -> None:
        from scipy.ndimage import binary_fill_holes, label

        mask = find_brain(scanned(head), head.affine).mask
        assert label(mask)[1] == 1
        np.testing.assert_array_equal(binary_fill_holes(mask), mask)

    def test_no_head_at_all(self) -> None:
        noise = np.abs(np.random.default_rng(0).normal(0, 20, (60, 60, 60))).astype(np.float32)
        with pytest.raises(InputError) as refusal:
            find_brain(noise, np.diag([3.0, 3.0, 3.0, 1.0]))
        assert refusal.value.code == "BRAIN_MASK_FAILED"

    def test_it_stops_when_asked_to(self, head: Anatomy) -> None:
        calls = []

        def check() -> None:
            calls.append(1)
            if len(calls) == 5:
                raise CancelledError

        with pytest.raises(CancelledError):
            find_brain(scanned(head), head.affine, check=check)
        assert len(calls) == 5
        assert find_brain(scanned(head), head.affine).mask.any(), "and leaves the network as it was"

    def test_air_around_a_head_changes_little(self, head: Anatomy) -> None:
        voxels, air = scanned(head), 20
        wide = head.affine.copy()
        wide[:3, 3] -= wide[:3, :3] @ [air, air, air]
        narrow, padded = find_brain(voxels, head.affine).mask, find_brain(np.pad(voxels, air), wide).mask
        assert dice(padded[air:-air, air:-air, air:-air], narrow) > 0.95 and padded.sum() < 1.1 * narrow.sum()

    def test_a_field_of_view_that_cuts_the_brain(self, head: Anatomy) -> None:
        truth = brain_mask(head)
        levels = np.flatnonzero(truth.any(axis=(0, 1)))[-1] - 7
        cut = find_brain(scanned(head)[:, :, :levels], head.affine).mask
        assert dice(cut[:, :, -5:], truth[:, :, levels - 5 : levels]) > 0.85, "the brain goes on to the border"

    def test_a_head_that_lies_askew(self, head: Anatomy) -> None:
        shape = (80, 80, 80)
        middle = head.affine @ [*((np.array(head.classes.shape) - 1) / 2), 1.0]
        affine = affine_of(shape, rotation((30.0, 15.0, 0.0)), (3.0, 3.0, 3.0), middle[:3])
        voxels = resample(scanned(head, "T1w"), head.affine, shape, affine, order=1)
        truth = resample(brain_mask(head).astype(np.float32), head.affine, shape, affine, order=1) > 0.5
        work, grid = to_work_grid(voxels, affine)
        once = resample(brain_probability(work), grid, shape, affine, order=1) > 0.5
        found = find_brain(voxels, affine).mask
        assert dice(found, truth) > dice(once, truth) + 0.01

    @pytest.mark.parametrize(("blur", "views"), [(0.5, 1), (1.0, 7), (2.5, 1)])
    def test_only_what_may_lie_askew_is_turned(self, monkeypatch: pytest.MonkeyPatch, blur: float, views: int) -> None:
        seen = []

        def looked(work: np.ndarray, **_: object) -> np.ndarray:
            seen.append(work.shape)
            return work.copy()

        monkeypatch.setattr(brain_extraction, "brain_probability", looked)
        ball = gaussian_filter(sphere((60, 60, 60), (30, 30, 30), 20).astype(np.float32), blur)
        probability, _, certainty = _outline(ball)
        assert seen == [(60, 60, 60)] + [(76, 76, 76)] * (views - 1)
        assert (certainty < CERTAIN) == (blur > 0.5) and (certainty < DOUBTFUL) == (blur > 1.0)
        assert dice(probability > 0.5, ball > 0.5) > 0.99

    def test_the_frame_of_a_head(self) -> None:
        noise = np.random.default_rng(0).random((40, 48, 32)).astype(np.float32)
        everything = (slice(0, 40), slice(0, 48), slice(0, 32))
        assert noise[frame_of(noise).box].shape == noise[frame_of(0 * noise).box].shape == noise.shape
        noise *= 0.04
        noise[15:30, 20:24, 12:20] = 0.5
        assert frame_of(noise) == Frame((slice(5, 40), slice(10, 34), slice(2, 30)), ((0, 0),) * 3)
        noise[0:30, :, :] = 0.5  # cut on every side but the right one; below, necks are
        assert frame_of(noise) == Frame(everything, ((6, 0), (6, 6), (0, 6)))

    @given(st.lists(st.integers(1, 40), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=6, max_size=6))
    def test_a_frame_there_and_back(self, shape: list[int], pads: list[int]) -> None:
        work = np.random.default_rng(0).random(shape)
        box = tuple(slice(n // 3, n) for n in shape)
        frame = Frame(box, tuple(zip(pads[::2], pads[1::2], strict=True)))
        seen = frame.show(work)
        assert all(side % STEP == 0 for side in seen.shape)
        back = frame.back(seen, work)
        np.testing.assert_array_equal(back[box], work[box])
        back[box] = 0
        assert not back.any()

    def test_the_work_grid(self, head: Anatomy) -> None:
        voxels = scanned(head, "T1w")
        work, grid = to_work_grid(voxels, head.affine)
        assert work.dtype == np.float32 and 0 <= work.min() and work.max() == 1
        assert work.shape == (93, 113, 117), "2 mm voxels over a field of view of 186 x 225 x 234 mm"
        np.testing.assert_allclose(np.linalg.norm(grid[:3, :3], axis=0), WORK_MM)
        back = resample(work, grid, voxels.shape, head.affine, order=1)
        assert np.corrcoef(back.ravel(), voxels.ravel())[0, 1] > 0.97

    def test_the_border_of_the_work_grid_is_no_darker(self) -> None:
        voxels = np.ones((21, 30, 17), dtype=np.float32)
        voxels[10, 10, 10] = 0
        work, _ = to_work_grid(voxels, np.diag([1.3, 1.0, 3.3, 1.0]))
        for axis in range(3):
            assert work.take([0, -1], axis).min() == 1

    @pytest.mark.parametrize("contrast", CONTRASTS)
    def test_fat_in_the_mask_is_said(self, head: Anatomy, contrast: str) -> None:
        work, grid = to_work_grid(scanned(head, contrast), head.affine)
        mask = resample(brain_mask(head).astype(np.float32), head.affine, work.shape, grid, order=1) > 0.5
        kept, checks = _without_fat(work, mask)
        assert kept is mask and checks == ()
        depth = distance_transform_edt(mask) * WORK_MM
        side = np.indices(mask.shape)[0] < mask.shape[0] // 2
        work[(depth > 0) & (depth <= 4) & side] = 2.0
        kept, checks = _without_fat(work, mask)
        assert [check.code for check in checks] == ([] if contrast == "T2w" else ["BRAIN_MASK_RIM"])
        np.testing.assert_array_equal(kept, mask)

    @pytest.mark.parametrize("contrast", ["T1w", "T2w"])
    def test_fat_that_reaches_in_is_taken_out_and_tumours_are_not(self, contrast: str) -> None:
        shape, size = (96, 112, 96), WORK_MM**3 / 1000.0
        brain = sphere(shape, (48, 56, 48), 35)
        orbit, tumour = sphere(shape, (48, 96, 36), 12), sphere(shape, (17, 56, 48), 6) & brain
        work = np.where(brain, 0.5, 0.05).astype(np.float32)
        work[sphere(shape, (48, 56, 48), 8)] = 0.3 if contrast == "T1w" else 1.1
        work[orbit | tumour] = 1.0
        kept, checks = _without_fat(work, brain)
        if contrast == "T2w":  # where ventricles are brighter than tissue, so may sulci be
            assert (kept == brain).all() and checks == ()
            return
        reaching = orbit & brain
        assert min(reaching.sum(), tumour.sum()) * size > BRIGHT_RIM_ML
        assert not (kept & reaching).any() and (kept & tumour).sum() == tumour.sum()
        away = distance_transform_edt(~reaching) * WORK_MM
        assert (kept == brain)[away > 8].all() and not (kept & ~brain).any()
        assert [check.code for check in checks] == ["BRAIN_MASK_TRIMMED", "BRAIN_MASK_RIM"]

    def test_the_mask_on_the_scan_s_grid_is_without_the_fat(
        self, head: Anatomy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        voxels = scanned(head)
        whole = find_brain(voxels, head.affine)
        left = np.indices(to_work_grid(voxels, head.affine)[0].shape)[0] < 48
        monkeypatch.setattr(brain_extraction, "_without_fat", lambda work, mask: (mask & ~left, ("remark",)))
        found = find_brain(voxels, head.affine)
        assert "remark" in found.checks and not (found.mask & ~whole.mask).any()
        assert 0.1 < found.mask.sum() / whole.mask.sum() < 0.9

    def test_probabilities(self, head: Anatomy) -> None:
        probability = brain_probability(to_work_grid(scanned(head), head.affine)[0])
        assert probability.dtype == np.float32 and 0 <= probability.min() and probability.max() <= 1


class TestBorder:
    @pytest.fixture
    def network(self) -> OutlineNet:
        torch.manual_seed(0)
        network = build_network((8, 8), stem=2, border=8, layers=1).eval().requires_grad_(False)
        torch.nn.init.normal_(network.border.last.weight)
        return network

    @staticmethod
    def guessing(network: OutlineNet, guess: torch.Tensor) -> torch.Tensor:
        """The answer to a random head whose folded guess is given."""
        network.guess.last.register_forward_hook(lambda *_: guess.clone())
        return network(torch.rand(1, 1, *(2 * side for side in guess.shape[2:])))

    def test_it_is_drawn_near_the_guess_alone(self, network: OutlineNet) -> None:
        guess = torch.full((1, 8, 20, 18, 16), -5.0)
        guess[0, 3, 10, 1:4, 6:9] = 2.0
        changed = (self.guessing(network, guess) != unfold(guess, 2))[0, 0].nonzero()
        assert changed.min(0).values.tolist() == [2 * (10 - MARGIN), 0, 2 * (6 - MARGIN)]
        assert changed.max(0).values.tolist() == [2 * (10 + MARGIN) + 1, 2 * (3 + MARGIN) + 1, 2 * (8 + MARGIN) + 1]

    def test_where_no_brain_is_guessed_there_is_none(self, network: OutlineNet) -> None:
        assert (self.guessing(network, torch.full((1, 8, 8, 8, 8), -5.0)) == -5).all()

    def test_untrained_it_changes_nothing(self) -> None:
        network, guess = build_network((8, 8), stem=2, border=8, layers=1), torch.randn(1, 8, 8, 8, 8)
        assert torch.equal(self.guessing(network, guess), unfold(guess, 2))

    def test_a_part_of_a_head_gives_what_the_whole_gives(self, network: OutlineNet) -> None:
        seen = torch.randn(1, 24, 16, 16, 16)
        whole, part = network.border(seen), network.border(seen[:, :, 2:14, 2:14, 2:14])
        torch.testing.assert_close(whole[:, :, 5:11, 5:11, 5:11], part[:, :, 3:9, 3:9, 3:9])

    def test_it_is_learnt_on_cubes_around_the_border(self, network: OutlineNet) -> None:
        torch.nn.init.constant_(network.guess.last.bias, 1.0)  # brain everywhere
        target = torch.zeros(1, 1, 64, 64, 64)
        target[..., 40:, :, :] = 1
        part = training._seen(network, torch.rand(1, 1, 64, 64, 64), target)
        assert set(part[3][:, 0].tolist()) == set(range(20))
        cubes = next(training._patches([part], 3, seed=0, first=0))
        assert [tuple(values.shape[:2]) for values in cubes] == [(3, 24), (3, 8), (3, 8)]
        assert {tuple(values.shape[2:]) for values in cubes} == {(training.PATCH,) * 3}
        again = next(training._patches([part], 3, seed=0, first=0))
        assert all(torch.equal(one, other) for one, other in zip(cubes, again, strict=True))


class TestWeights:
    @pytest.fixture
    def copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "BrainExtraction"
        shutil.copytree(brain_extraction.network_folder(), folder)
        monkeypatch.setattr(brain_extraction, "network_folder", lambda: folder)
        brain_extraction._network.cache_clear()
        yield folder
        brain_extraction._network.cache_clear()

    def test_they_are_small_enough_to_ship(self) -> None:
        files = [path for path in brain_extraction.network_folder().rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 4 * 1024**2

    def test_the_card_says_what_the_metadata_say(self) -> None:
        folder = brain_extraction.network_folder()
        metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        assert (folder / "docs" / "README.md").read_text(encoding="utf-8") == training._card(metadata)

    @pytest.mark.parametrize("damage", ["weights", "metadata", "missing"])
    def test_damage_is_named(self, copy: Path, damage: str, head: Anatomy) -> None:
        if damage == "weights":
            file = copy / "models" / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-4] + b"\x00\x01\x02\x03")
        elif damage == "metadata":
            (copy / "configs" / "metadata.json").write_text("{}", encoding="utf-8")
        else:
            shutil.rmtree(copy / "models")
        with pytest.raises(InputError) as refusal:
            find_brain(scanned(head), head.affine)
        assert refusal.value.code == "BRAIN_EXTRACTION_DAMAGED"


class TestTraining:
    small = replace(
        training.Recipe(), widths=(8, 8, 8, 8), border=8, layers=1, steps=2, border_heads=1, border_steps=2, real=0.5
    )

    @pytest.fixture(scope="class")
    @classmethod
    def material(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("material")
        for number in range(training.HELD_OUT + 1):
            write_phantom(folder / "maps" / f"head{number}_dseg.nii.gz", voxel_mm=5.0)
        labels, affine = phantom_labels(5.0)
        head = read_anatomy(folder / "maps" / "head0_dseg.nii.gz")
        voxels, _ = render(head, draw_look("T1w", np.random.default_rng(0)), replace(PLAIN, voxel_mm=(5.0, 5.0, 5.0)))
        write_volume(folder / "real_T1w.nii.gz", voxels, affine)
        write_volume(folder / "real_mask.nii.gz", brain_mask(head), affine)
        row = {"scan": "real_T1w.nii.gz", "contrast": "T1w", "label": "healthy", "subject": "a"}
        write_cohort(folder / "cohort.csv", [{**row, "brain_mask": "real_mask.nii.gz", "split": "train"}])
        return folder

    def run(self, material: Path, out: Path, **changes: object) -> dict:
        recipe = replace(self.small, **changes)
        torch.manual_seed(99)
        return training.train(material / "maps", material / "cohort.csv", material, out, recipe=recipe, workers=0)

    def test_it_writes_what_is_read_again(self, material: Path, tmp_path: Path, monkeypatch, head: Anatomy) -> None:
        metadata = self.run(material, tmp_path / "network")
        assert metadata["trained_on"]["label_maps"] == ["head0_dseg.nii.gz"]
        assert metadata["trained_on"]["scans"] == ["a"]
        monkeypatch.setattr(brain_extraction, "network_folder", lambda: tmp_path / "network")
        brain_extraction._network.cache_clear()
        try:
            assert brain_probability(to_work_grid(scanned(head), head.affine)[0]).shape
        finally:
            brain_extraction._network.cache_clear()

    def test_the_same_seed_gives_the_same_weights(self, material: Path, tmp_path: Path) -> None:
        assert self.run(material, tmp_path / "a")["sha256"] == self.run(material, tmp_path / "b")["sha256"]

    def test_the_border_is_learnt_where_brain_is_guessed(self, material: Path, tmp_path: Path, monkeypatch) -> None:
        def sees_brain(**sizes: object) -> torch.nn.Module:
            network = build_network(**sizes)
            torch.nn.init.constant_(network.guess.last.bias, 3.0)  # untrained, it would see none
            return network

        monkeypatch.setattr(training, "build_network", sees_brain)
        self.run(material, tmp_path / "network")
        weights = load_file(tmp_path / "network" / "models" / "model.safetensors")
        assert weights["border.last.weight"].abs().max() > 0, "the border's last layer starts at 0"

    def test_sheets_lie_on_the_brain_and_not_in_it(self) -> None:
        mask = np.zeros((40, 40, 40), dtype=bool)
        mask[12:28, 12:28, 12:28] = True
        changed = np.zeros_like(mask)
        for seed in range(8):
            image = np.full(mask.shape, 0.2, dtype=np.float32)
            training._cover(image, mask, np.random.default_rng(seed))
            changed |= image != np.float32(0.2)
        assert not (changed & mask).any()
        distance = distance_transform_edt(~mask, sampling=2.0)[changed]
        assert distance.min() == 2.0 and distance.max() <= 11.0

    def test_heads_come_in_one_order_from_any_number_of_processes(self, material: Path) -> None:
        anatomies = [read_anatomy(material / "maps" / "head0_dseg.nii.gz")]

        def first(workers: int) -> list[float]:
            stream = training.HeadStream(anatomies, [], self.small, seed=1, start=0)
            loader = iter(torch.utils.data.DataLoader(stream, batch_size=1, num_workers=workers))
            return [float(next(loader)[0].sum()) for _ in range(3)]

        assert first(0) == first(2)

    def test_a_perfect_answer_has_the_least_loss(self) -> None:
        target = (torch.rand(1, 1, 8, 8, 8) > 0.5).float()
        good, bad = training.loss_of(20 * (target - 0.5), target), training.loss_of(20 * (0.5 - target), target)
        assert good < 0.01 < 1 < bad
