"""The slice store: prepared scans on disk, one safetensors file a scan, read slice by slice.

A file holds ``voxels`` (float16) and ``mask`` (uint8), both (Z, X, Y), so that an axial slice is contiguous and a
training step reads only the slices it needs; memory does not grow with the cohort. Files are named by what went into
them (scan, brain mask, recipe), so a store is filled once and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from UADBenchLib.cohort import CohortScan
from UADBenchLib.errors import UADBenchError
from UADBenchLib.parallel import map_processes
from UADBenchLib.preprocessing.recipe import Prepared, Recipe, prepare
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.writing import atomic

log = logging.getLogger(__name__)

MINIMUM_BRAIN = 0.05
"""Share of a slice that must be brain for the slice to be trained on."""


def default_store() -> Path:
    """The user's own store, in the cache folder of this machine; it may be deleted at any time."""
    from platformdirs import user_cache_path

    return user_cache_path("uadbench") / "prepared"


@dataclass(frozen=True)
class StoredScan:
    """One prepared scan of a store: its row of the cohort and its file."""

    row: CohortScan
    file: Path

    def volume(self) -> tuple[np.ndarray, np.ndarray]:
        """Return voxels (X, Y, Z) as float32 and brain mask (X, Y, Z) as bool."""
        from safetensors.numpy import load_file

        arrays = load_file(self.file)
        return (
            arrays["voxels"].astype(np.float32).transpose(1, 2, 0),
            arrays["mask"].astype(bool).transpose(1, 2, 0),
        )


def build_store(
    rows: Sequence[CohortScan],
    folder: Path,
    recipe: Recipe,
    *,
    workers: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[list[StoredScan], list[tuple[CohortScan, UADBenchError]]]:
    """Prepare every scan that the store does not hold yet.

    Parameters
    ----------
    rows : sequence of CohortScan
        The scans wanted.
    folder : path
        The store; made when needed.
    recipe : Recipe
        How to prepare.
    workers : int
        Processes to prepare with.

    Returns
    -------
    (list of StoredScan, list of (CohortScan, UADBenchError))
        What is in the store, in the order of ``rows``, and what could not be prepared and why.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored: list[StoredScan] = []
    failed: list[tuple[CohortScan, UADBenchError]] = []
    tasks = [(row, folder, recipe) for row in rows]
    results = map_processes(_store_one, tasks, workers, initializer=_share_cores, initargs=(workers,))
    for number, (row, outcome) in enumerate(zip(rows, results, strict=True), start=1):
        if isinstance(outcome, UADBenchError):
            log.warning("%s was left out: %s", row.scan.name, outcome)
            failed.append((row, outcome))
        else:
            stored.append(StoredScan(row, outcome))
        if progress is not None:
            progress("preparing scans", number / len(rows))
    return stored, failed


def _store_one(task: tuple[CohortScan, Path, Recipe]) -> Path | UADBenchError:
    row, folder, recipe = task
    try:
        file = folder / f"{_key(row, recipe)}.safetensors"
        if not file.exists():
            scan = read_scan(row.scan, row.contrast)
            mask = None if row.brain_mask is None else read_mask(row.brain_mask, scan, "brain mask")
            _save(prepare(scan, recipe, brain_mask=mask), file)
        return file
    except UADBenchError as error:
        return error


def _share_cores(workers: int) -> None:
    import SimpleITK as sitk
    import torch

    threads = max(1, (os.cpu_count() or 1) // workers)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    torch.set_num_threads(threads)


def _key(row: CohortScan, recipe: Recipe) -> str:
    digest = hashlib.sha256(recipe.hash.encode())
    for path in (row.scan, row.brain_mask):
        files = sorted(path.rglob("*")) if path is not None and path.is_dir() else [path]
        for file in files:
            digest.update(b"-" if file is None else file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()[:32]


def _save(prepared: Prepared, file: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {
        "voxels": np.ascontiguousarray(prepared.voxels.transpose(2, 0, 1), dtype=np.float16),
        "mask": np.ascontiguousarray(prepared.mask.transpose(2, 0, 1), dtype=np.uint8),
    }
    with atomic(file) as temporary:
        save_file(arrays, temporary)


class SliceSampler:
    """Draws random training slices from a store; nothing is held but the list of where they are.

    Parameters
    ----------
    scans : sequence of StoredScan
        What to draw from.
    minimum_brain : float
        Share of a slice that must be brain; slices with less are left out, and those without any always.
    open_files : int
        How many files stay memory-mapped at once.
    """

    def __init__(
        self, scans: Sequence[StoredScan], minimum_brain: float = MINIMUM_BRAIN, open_files: int = 256
    ) -> None:
        self.scans = list(scans)
        self._open: OrderedDict[Path, object] = OrderedDict()
        self._limit = open_files
        self.places = [(n, z) for n, scan in enumerate(self.scans) for z in _useful(scan, minimum_brain)]
        if not self.places:
            raise ValueError("the store holds no slice with enough brain")

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return images (N, 1, X, Y) float32, masks (N, 1, X, Y) bool and axial positions (N,) int64 of the given
        places."""
        images, masks, positions = [], [], []
        for index in indices:
            number, z = self.places[index]
            file = self._handle(self.scans[number].file)
            images.append(file.get_slice("voxels")[z : z + 1])
            masks.append(file.get_slice("mask")[z : z + 1])
            positions.append(z)
        return np.stack(images).astype(np.float32), np.stack(masks).astype(bool), np.array(positions, dtype=np.int64)

    def _handle(self, file: Path):
        from safetensors import safe_open

        if file in self._open:
            self._open.move_to_end(file)
        else:
            self._open[file] = safe_open(file, framework="numpy")
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        return self._open[file]


def _useful(scan: StoredScan, minimum_brain: float) -> list[int]:
    from safetensors.numpy import load_file

    share = load_file(scan.file)["mask"].mean(axis=(1, 2))
    return np.flatnonzero((share >= minimum_brain) & (share > 0)).tolist()
