"""The slice store: filled once, named by content, read slice by slice; bad scans are left out and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from UADBenchLib.cohort import CohortScan
from UADBenchLib.errors import InputError
from UADBenchLib.preprocessing.recipe import Prepared, Recipe
from UADBenchLib.scan import Scan
from UADBenchLib.training import slices
from UADBenchLib.training.slices import SliceSampler, StoredScan, build_store
from UADBenchLib.writing import write_volume

SHAPE = (20, 24, 16)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """Replaces preparation by cutting out the grid; the brain masks it was given are recorded."""
    given: list[np.ndarray | None] = []

    def prepare(
        scan: Scan, recipe: Recipe, *, brain_mask: np.ndarray | None = None, progress: object = None
    ) -> Prepared:
        given.append(brain_mask)
        voxels = scan.voxels[: SHAPE[0], : SHAPE[1], : SHAPE[2]] / 1000
        if voxels.max() > 0.9:
            raise InputError("REGISTRATION_FAILED", "no brain", "give one")
        mask = np.zeros(SHAPE, dtype=bool)
        mask[4:16, 4:20, 3:12] = True
        mask[9, 9, 13] = True
        return Prepared(voxels * mask, mask, np.eye(4), mask, np.eye(4), [], [])

    monkeypatch.setattr(slices, "prepare", prepare)
    return given


def row_of(folder: Path, number: int, *, masked: bool = False, bright: bool = False) -> CohortScan:
    """A row whose files are written: an asymmetric volume of 50 mm or more along each axis."""
    voxels = np.random.default_rng(number).uniform(100, 800, (48, 48, 48)).astype(np.float32)
    if bright:
        voxels[5, 5, 5] = 2000
    scan, mask = folder / f"{number}_T1w.nii.gz", folder / f"{number}_mask.nii.gz"
    write_volume(scan, voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    if masked:
        write_volume(mask, voxels > 300, np.diag([2.0, 2.0, 2.0, 1.0]))
    return CohortScan(scan, "T1w", "healthy", f"s{number}", brain_mask=mask if masked else None)


def test_what_is_stored_is_what_was_prepared(tmp_path: Path, prepared: list) -> None:
    rows = [row_of(tmp_path, 0), row_of(tmp_path, 1, masked=True)]
    told: list[float] = []
    stored, failed = build_store(rows, tmp_path / "store", Recipe(), progress=lambda _, share: told.append(share))
    assert failed == [] and [scan.row for scan in stored] == rows
    assert told == [0.5, 1.0]
    assert prepared[0] is None and prepared[1].dtype == bool
    voxels, mask = stored[0].volume()
    assert voxels.shape == mask.shape == SHAPE and voxels.dtype == np.float32 and mask.dtype == bool
    assert mask.sum() == 12 * 16 * 9 + 1
    expected = np.random.default_rng(0).uniform(100, 800, (48, 48, 48))[:20, :24, :16] / 1000 * mask
    np.testing.assert_allclose(voxels, expected, rtol=1e-3)


def test_a_filled_store_is_not_filled_again(tmp_path: Path, prepared: list) -> None:
    rows = [row_of(tmp_path, 0), row_of(tmp_path, 1)]
    first, _ = build_store(rows[:1], tmp_path / "store", Recipe())
    assert len(prepared) == 1
    again, _ = build_store(rows, tmp_path / "store", Recipe())
    assert len(prepared) == 2
    assert again[0].file == first[0].file


def test_several_processes_find_the_same(tmp_path: Path, prepared: list) -> None:
    rows = [row_of(tmp_path, number) for number in range(3)]
    single, _ = build_store(rows, tmp_path / "store", Recipe())
    several, failed = build_store(rows, tmp_path / "store", Recipe(), workers=2)
    assert several == single and failed == []


def test_names_follow_the_content(tmp_path: Path, prepared: list) -> None:
    plain, masked = row_of(tmp_path, 0), row_of(tmp_path, 0, masked=True)
    copy = CohortScan(tmp_path / "copy_T1w.nii.gz", "T1w", "healthy", "other")
    copy.scan.write_bytes(plain.scan.read_bytes())
    keys = [slices._key(row, Recipe()) for row in (plain, masked, row_of(tmp_path, 1))]
    assert len(set(keys)) == 3
    assert slices._key(copy, Recipe()) == keys[0]
    assert slices._key(plain, Recipe(high=97.0)) != keys[0]


def test_bad_scans_are_left_out_and_named(tmp_path: Path, prepared: list) -> None:
    broken = row_of(tmp_path, 1)
    broken.scan.write_bytes(broken.scan.read_bytes()[:2000])
    rows = [row_of(tmp_path, 0), broken, row_of(tmp_path, 2, bright=True), row_of(tmp_path, 3)]
    stored, failed = build_store(rows, tmp_path / "store", Recipe())
    assert [scan.row for scan in stored] == [rows[0], rows[3]]
    assert [row for row, _ in failed] == [rows[1], rows[2]]
    assert failed[1][1].code == "REGISTRATION_FAILED" and failed[0][1].code
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_an_interrupted_file_is_not_taken_for_a_scan(
    tmp_path: Path, prepared: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy

    def stop(arrays: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    row = row_of(tmp_path, 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(safetensors.numpy, "save_file", stop)
        build_store([row], tmp_path / "store", Recipe())
    assert list((tmp_path / "store").iterdir()) == []
    assert build_store([row], tmp_path / "store", Recipe())[0][0].volume()[1].any()


class TestSampler:
    @pytest.fixture
    def stored(self, tmp_path: Path, prepared: list) -> list[StoredScan]:
        return build_store([row_of(tmp_path, n) for n in range(3)], tmp_path / "store", Recipe())[0]

    def test_only_slices_with_enough_brain(self, stored: list[StoredScan]) -> None:
        assert SliceSampler(stored).places == [(n, z) for n in range(3) for z in range(3, 12)]
        assert SliceSampler(stored, minimum_brain=0.0).places[:10] == [(0, z) for z in [*range(3, 12), 13]]

    def test_a_slice_is_that_of_the_volume(self, stored: list[StoredScan]) -> None:
        sampler = SliceSampler(stored)
        wanted = [0, 13, 26, 13]
        images, masks, positions = sampler.read(wanted)
        assert images.shape == masks.shape == (4, 1, *SHAPE[:2])
        assert images.dtype == np.float32 and masks.dtype == bool and positions.dtype == np.int64
        for row, index in enumerate(wanted):
            number, z = sampler.places[index]
            voxels, mask = stored[number].volume()
            np.testing.assert_array_equal(images[row, 0], voxels[:, :, z])
            np.testing.assert_array_equal(masks[row, 0], mask[:, :, z])
            assert positions[row] == z

    def test_few_files_stay_open(self, stored: list[StoredScan]) -> None:
        sampler = SliceSampler(stored, open_files=2)
        expected = SliceSampler(stored).read(range(27))
        for got, wanted in zip(sampler.read(range(27)), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert len(sampler._open) == 2

    def test_no_slice_is_an_error(self, stored: list[StoredScan]) -> None:
        with pytest.raises(ValueError, match="enough brain"):
            SliceSampler(stored, minimum_brain=0.99)
