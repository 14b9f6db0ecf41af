"""Fixtures that backend tests share: small synthetic volumes on awkward lattices, and a small trained model."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock, Timeout
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from builders import BRAINS, Laboratory, healthy_rows, prepare_pair, rotation, train_and_calibrate  # noqa: E402

if TYPE_CHECKING:
    from UADBenchLib.scan import Scan

# The same examples on every run, and no example database left in the source tree.
settings.register_profile("backend", database=None, derandomize=True, deadline=None)
settings.load_profile("backend")


def _affine(
    voxel_mm: tuple[float, float, float],
    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0),
    flip: tuple[int, int, int] = (1, 1, 1),
    origin: tuple[float, float, float] = (-40.0, -60.0, -30.0),
) -> np.ndarray:
    """Return an affine (4, 4) to RAS mm from edge lengths, angles, axis signs and the first voxel's place."""
    result = np.eye(4)
    result[:3, :3] = rotation(degrees) * np.array(voxel_mm) * np.array(flip)
    result[:3, 3] = origin
    return result


LATTICES = {
    "plain": _affine((2.0, 2.0, 2.0)),
    "left-handed": _affine((2.0, 2.0, 2.0), flip=(-1, 1, 1)),
    "anisotropic": _affine((2.0, 2.5, 5.0), flip=(-1, -1, 1)),
    "oblique": _affine((2.0, 2.25, 3.0), degrees=(12.0, -20.0, 7.0)),
    "oblique-left-handed": _affine((2.5, 2.0, 3.5), degrees=(-8.0, 15.0, 31.0), flip=(1, -1, 1)),
    "sagittal": _affine((2.0, 2.0, 3.0))[:, [1, 2, 0, 3]],
}


@pytest.fixture
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture
def make_affine() -> Callable[..., np.ndarray]:
    """Builds an affine from ``voxel_mm``, and optionally ``degrees``, ``flip`` and ``origin``."""
    return _affine


@pytest.fixture(params=sorted(LATTICES))
def affine(request: pytest.FixtureRequest) -> np.ndarray:
    """Each of the awkward affines in turn."""
    return LATTICES[request.param].copy()


@pytest.fixture
def oblique() -> np.ndarray:
    """One affine that is oblique, left-handed and anisotropic at once."""
    return LATTICES["oblique-left-handed"].copy()


@pytest.fixture
def volume() -> np.ndarray:
    """An asymmetric blob in noise, shape (50, 52, 40), float32: large enough in mm to pass for a head."""
    shape = (50, 52, 40)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    blob = np.exp(-3 * ((i + 0.2) ** 2 + 1.3 * (j - 0.1) ** 2 + 0.8 * k**2)) * (1 + 0.3 * i + 0.2 * j * k)
    noise = np.random.default_rng(7).normal(0, 0.01, shape)
    return np.asarray(100 * (blob + noise), dtype=np.float32)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test run have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two workers on two cores: more threads would only make them wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample() -> tuple[Scan, np.ndarray, np.ndarray]:
    """The demo case: scan, reference, brain mask. Read-only: whoever writes into one of them is noticed."""
    from UADBenchLib.synthesis.sample import make_sample

    scan, reference, mask = make_sample()
    for array in (scan.voxels, reference, mask):
        array.setflags(write=False)
    return scan, reference, mask


@pytest.fixture(scope="session")
def laboratory(shared: Path) -> Laboratory:
    """A trained and calibrated ``intensity_norm``, made once for all workers, who share the work of preparing scans."""
    root = shared / "laboratory"
    root.mkdir(exist_ok=True)
    rows = healthy_rows(root, BRAINS)
    for wait in (0, -1):  # first whatever nobody is at, then what the others have not finished
        for number, row in enumerate(rows):
            with contextlib.suppress(Timeout), FileLock(root / f"{number}.lock").acquire(timeout=wait):
                prepare_pair(root, row, seed=10 + number)
    with FileLock(root / "model.lock"):
        if not (root / "summary.json").exists():
            train_and_calibrate(root, rows)
    summary, calibration = json.loads((root / "summary.json").read_text())
    return Laboratory(root, summary["id"], summary, calibration)


@pytest.fixture
def installed(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> str:
    """The laboratory's model in the catalogue; its id."""
    monkeypatch.setenv("UADBENCH_MODELS", str(laboratory.models))
    return laboratory.model
