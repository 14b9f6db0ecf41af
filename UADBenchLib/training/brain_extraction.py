"""Training of the brain extraction network: heads that nobody has, in contrasts that no scanner gives.

Most heads are synthesised from label maps with random intensities (Hoopes et al. 2022, SynthStrip) or from the priors
of real contrasts; the rest are real T1w heads with outlines, bent and recoloured. One seed draws everything.

Run as ``python -m UADBenchLib.training.brain_extraction --maps DIR --cohort CSV --data DIR --out DIR``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from UADBenchLib import __version__
from UADBenchLib.cohort import CohortScan, read_cohort, select
from UADBenchLib.geometry import canonical, resample
from UADBenchLib.inference.device import autocast
from UADBenchLib.networks.outline import OutlineNet
from UADBenchLib.networks.unet import fold
from UADBenchLib.preprocessing.brain_extraction import SIZES, STEP, WORK_MM, build_network, frame_of, to_work_grid
from UADBenchLib.reading import read_mask, read_scan
from UADBenchLib.scan import CONTRASTS, Progress
from UADBenchLib.synthesis.anatomy import (
    CLASS,
    Anatomy,
    brain_mask,
    deform,
    draw_deformation,
    read_anatomies,
    read_anatomy,
    source_places,
)
from UADBenchLib.synthesis.contrasts import draw_look, random_look
from UADBenchLib.synthesis.heads import acquire, draw_acquisition, paint, reference_on
from UADBenchLib.training.checkpoint import follow, load_checkpoint, save_checkpoint
from UADBenchLib.writing import atomic, write_json, write_text

log = logging.getLogger(__name__)

PATCH = 24
"""Side of the cubes that the border is learnt on, in folded voxels."""

LARGEST = (112, 128, 128)
"""Sides of the largest training volume on the work grid."""

HELD_OUT = 4
"""Label maps that are kept for measuring."""

HEAD_MM = 170.0
"""A field of view of less than this along an axis does not hold a whole head."""


@dataclass(frozen=True)
class Recipe:
    """Size of the network, schedule, and shares of the kinds of heads (the rest has random intensities).

    The guess is learnt in ``steps`` of one head each. The border is learnt after that, in ``border_steps`` of
    ``border_batch`` cubes of ``border_heads`` heads, with shares of their own.
    """

    widths: tuple[int, ...] = (16, 32, 64, 64)
    stem: int = 2
    border: int = 32
    layers: int = 4
    steps: int = 7400
    learning_rate: float = 1.5e-3
    warm_up: int = 50
    ema: float = 0.99
    real: float = 0.35
    priors: float = 0.3
    border_steps: int = 5500
    border_rate: float = 6e-4
    border_batch: int = 8
    border_heads: int = 480
    border_real: float = 0.25
    border_priors: float = 0.6


@dataclass(frozen=True)
class RealHead:
    """A real head and its brain mask in canonical orientation."""

    voxels: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


class HeadStream(IterableDataset):
    """Endless pairs of work volume (1, I, J, K) and brain mask (1, I, J, K), both float32."""

    def __init__(self, anatomies: list[Anatomy], real: list[RealHead], recipe: Recipe, seed: int, start: int) -> None:
        self.anatomies, self.real, self.recipe, self.seed, self.start = anatomies, real, recipe, seed, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.set_num_threads(1)
        # Several processes take turns, and are read in turn: the order is that of one.
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in itertools.count(self.start + first, step):
            yield self.pair(number)

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        """The pair with a running number: the same one however often and from wherever it is asked for."""
        rng = np.random.default_rng((self.seed, number))
        if self.real and rng.random() < self.recipe.real:
            voxels, affine, mask = _real(self.real[rng.integers(len(self.real))], rng)
        else:
            anatomy = self.anatomies[rng.integers(len(self.anatomies))]
            priors = rng.random() < self.recipe.priors / (1 - self.recipe.real)
            voxels, affine, mask = _synthetic(anatomy, rng, priors)
        if rng.random() < 0.08:  # scans that were stripped already, more or less closely
            voxels = voxels * _grown(mask, int(rng.integers(0, 4)))
        work, grid = to_work_grid(voxels, affine)
        target = resample(mask.astype(np.float32), affine, work.shape, grid, order=1)
        frame = frame_of(work)
        work, target = _window(frame.show(work), frame.show(target), rng)
        return torch.from_numpy(work)[None], torch.from_numpy(target)[None]


def _synthetic(anatomy: Anatomy, rng: np.random.Generator, priors: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A synthesised head: voxels, affine, brain mask."""
    tilted = 18.0 if rng.random() < 0.3 else 5.0
    drawn = draw_deformation(
        rng, degrees=tilted, scale=0.08, bend_mm=(1.0, 7.0), widening_mm=(0.0, 5.0), thinning=(0.0, 1.0)
    )
    head = deform(anatomy, drawn, voxel_mm=WORK_MM)
    mask = brain_mask(head)
    look = draw_look(str(rng.choice(CONTRASTS)), rng, 1.5) if priors else random_look(rng)
    if rng.random() < 0.5:  # fat outshines everything in sequences that do not suppress it, in the skull as well
        fat = float(rng.uniform(0.3, 2.5))
        means = list(look.means)
        means[CLASS["marrow"]] = fat * float(rng.uniform(0.3, 1.0))
        look = replace(look, fat=fat, means=tuple(means))
    acquisition = replace(
        draw_acquisition(rng, voxel_mm=_voxel(rng), noise=(0.005, 0.1), bias=(0.0, 0.6)),
        cut_mm=float(rng.uniform(-15.0, 110.0)) if rng.random() < 0.7 else 200.0,
    )
    image = paint(head, look, acquisition.seed)
    if rng.random() < 0.4:
        _spoil(image, mask, rng)
    if rng.random() < 0.4:
        _spoil(image, _beside(mask), rng)
    if rng.random() < 0.3:
        _cover(image, mask, rng)
    voxels, affine = acquire(image, head, acquisition)
    return voxels, affine, reference_on(mask, head, voxels.shape, affine)


def _voxel(rng: np.random.Generator) -> tuple[float, float, float]:
    """Isotropic voxels of the work grid, or thick slices along any axis."""
    voxel = [WORK_MM] * 3
    if rng.random() < 0.45:
        voxel[int(rng.choice([2, 2, 1, 0]))] = float(rng.uniform(3.0, 7.0))
    return tuple(voxel)


def _beside(mask: np.ndarray) -> np.ndarray:
    """What lies within 30 mm of the brain."""
    return _grown(mask, round(30 / WORK_MM)) & ~mask


def _spoil(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Put balls of any intensity into the mask, in place: a tumour is still inside, an eye or a muscle still outside.

    Label maps do not tell orbits, muscles and sinuses apart."""
    places = np.argwhere(mask)
    grid = np.ogrid[tuple(slice(n) for n in image.shape)]
    for _ in range(rng.integers(1, 4)):
        centre, radius = places[rng.integers(len(places))], rng.uniform(2.0, 15.0)
        ball = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2
        inside = ball & mask
        image[inside] += (rng.uniform(0, 1.5) - image[inside]) * rng.uniform(0.3, 1.0)


def _cover(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Paint sheets of marrow or vessel over parts of the brain's surface, in place: in some heads no dark bone is seen
    between it and what shines."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    distance = distance_transform_edt(~mask, sampling=WORK_MM)
    field = gaussian_filter(rng.standard_normal(image.shape).astype(np.float32), float(rng.uniform(3.0, 8.0)))
    nearest = float(rng.choice([0.0, 1.0, 2.0]) * WORK_MM)
    shell = (distance > nearest) & (distance <= nearest + float(rng.uniform(2.0, 7.0)))
    if shell.any():
        sheet = shell & (field > np.quantile(field[shell], float(rng.uniform(0.3, 0.9))))
        image[sheet] += (float(rng.uniform(0.4, 1.6)) - image[sheet]) * float(rng.uniform(0.5, 1.0))


def _real(head: RealHead, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A real head, bent and recoloured: voxels, affine, brain mask."""
    drawn = draw_deformation(rng, degrees=18.0 if rng.random() < 0.3 else 5.0, scale=0.07, bend_mm=(0.5, 5.0))
    shape = tuple(int(n * e / WORK_MM) for n, e in zip(head.voxels.shape, np.diag(head.affine)[:3], strict=True))
    affine = np.diag([WORK_MM] * 3 + [1.0])
    affine[:3, 3] = head.affine[:3, 3]
    middle = (head.affine @ [*(np.argwhere(head.mask).mean(axis=0)), 1.0])[:3]
    places = source_places(shape, affine, middle, drawn)
    both = _linear(np.stack([head.voxels, head.mask.astype(np.float32)]), head.affine, places)
    voxels, mask = both[0] / max(float(np.percentile(both[0], 99)), 1e-6), both[1] > 0.5
    if rng.random() < 0.5:
        voxels = _recoloured(voxels, rng)
    if rng.random() < 0.4:
        voxels = np.where(mask, voxels, voxels * np.float32(rng.uniform(0.5, 3.0)))
    # A head made of one class carries the real image through the same scanner as the synthesised ones.
    carrier = Anatomy(mask.astype(np.uint8) * 2, affine)
    acquisition = replace(
        draw_acquisition(rng, voxel_mm=_voxel(rng), noise=(0.0, 0.06), bias=(0.0, 0.5), defaced=0.0),
        cut_mm=float(rng.uniform(-15.0, 110.0)) if rng.random() < 0.4 else 300.0,
    )
    if rng.random() < 0.25:
        _spoil(voxels, mask, rng)
    if rng.random() < 0.25:
        _spoil(voxels, _beside(mask), rng)
    if rng.random() < 0.3:
        _cover(voxels, mask, rng)
    scanned, grid = acquire(voxels, carrier, acquisition)
    return scanned, grid, reference_on(mask, carrier, scanned.shape, grid)


def _linear(values: np.ndarray, affine: np.ndarray, places: Tensor) -> np.ndarray:
    """Channels (C, I, J, K) at RAS mm ``places``, interpolated; 0 outside."""
    matrix = torch.from_numpy(np.linalg.inv(affine)).float()
    index = places @ matrix[:3, :3].T + matrix[:3, 3]
    unit = 2 * index / (torch.tensor(values.shape[1:]).float() - 1) - 1
    source = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
    return F.grid_sample(source, unit.flip(-1)[None], align_corners=True)[0].numpy()


def _recoloured(voxels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Send intensities through a random curve; the background stays dark more often than not."""
    knots = rng.uniform(0, 1, 7)
    knots[0] = 0.0 if rng.random() < 0.8 else knots[0]
    return np.interp(voxels, np.linspace(0, 1.2, 7), knots).astype(np.float32)


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=steps) if steps else mask


def _window(work: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut what is larger than ``LARGEST``, at a random place."""
    starts = [int(rng.integers(0, max(1, n - m + 1))) for n, m in zip(work.shape, LARGEST, strict=True)]
    part = tuple(slice(s, s + m) for s, m in zip(starts, LARGEST, strict=True))
    return np.ascontiguousarray(work[part]), np.ascontiguousarray(target[part])


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy and soft Dice, half and half."""
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    probability = torch.sigmoid(logits)
    overlap = 2 * (probability * target).sum() + 1
    return entropy + 1 - overlap / (probability.sum() + target.sum() + 1)


def load_real(rows: list[CohortScan]) -> list[RealHead]:
    """Read whole heads with outlines."""
    heads = []
    for row in rows:
        scan = read_scan(row.scan, row.contrast)
        mask = read_mask(row.brain_mask, scan, "brain mask")
        voxels, affine = canonical(scan.voxels, scan.affine)
        heads.append(
            RealHead(
                np.ascontiguousarray(voxels), np.ascontiguousarray(canonical(mask, scan.affine)[0]), _upright(affine)
            )
        )
    return heads


def _upright(affine: np.ndarray) -> np.ndarray:
    """The lattice without its obliquity: to the network a head lies along the voxel axes."""
    result = np.diag([*np.linalg.norm(affine[:3, :3], axis=0), 1.0])
    result[:3, 3] = affine[:3, 3]
    return result


def whole_heads(rows: list[CohortScan]) -> list[CohortScan]:
    """Rows with an outline whose field of view holds a whole head, not only a brain with a margin."""
    import nibabel as nib

    def extent(row: CohortScan) -> float:
        header = nib.load(row.scan).header
        return min(n * e for n, e in zip(header.get_data_shape(), header.get_zooms(), strict=True))

    return [row for row in rows if row.brain_mask is not None and extent(row) >= HEAD_MM]


def train(
    maps: Path,
    cohort: Path,
    data: Path,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the network and write its folder.

    Parameters
    ----------
    maps : path
        Folder of whole-head label maps. The last ``HELD_OUT`` by name are not trained on, but kept for measuring.
    cohort, data : path
        Cohort table and the folder that its paths start from; whole heads with outlines of split ``train`` are used.
    out : path
        Folder of weights, metadata, card and licence; a checkpoint lies beside it in ``<out>.training``.
    workers : int
        Processes that make heads; the weights do not depend on it.
    """
    recipe = recipe or Recipe()
    rows = whole_heads(select(read_cohort(cohort, data), split="train"))
    paths = read_anatomies(maps)[:-HELD_OUT]
    anatomies, real = [read_anatomy(path) for path in paths], load_real(rows)
    torch.manual_seed(seed)
    network = build_network(**{name: getattr(recipe, name) for name in SIZES})
    folder = Path(f"{out}.training")
    total = recipe.steps + recipe.border_heads + recipe.border_steps

    def done(count: int) -> None:
        if progress is not None:
            progress("training", count / total)

    def heads(recipe: Recipe, seed: int, first: int) -> DataLoader:
        return DataLoader(HeadStream(anatomies, real, recipe, seed, first), batch_size=1, num_workers=workers)

    run = _Run(network.guess, recipe.steps, recipe.learning_rate, recipe, folder / "guess")
    for work, target in _while(run, heads(recipe, seed, run.step)):
        with autocast(work.device):
            logits = run.network(work)
        run.advance(loss_of(logits.float(), target))
        done(run.step)
    network.guess.load_state_dict(run.averaged.state_dict())

    run = _Run(network.border, recipe.border_steps, recipe.border_rate, recipe, folder / "border")
    parts = []
    others = heads(replace(recipe, real=recipe.border_real, priors=recipe.border_priors), seed + 1, 0)
    for (work, target), _ in zip(others, range(recipe.border_heads), strict=False):
        parts.append(_seen(network, work, target))
        done(recipe.steps + len(parts))
    for seen, guess, target in _while(run, _patches(parts, recipe.border_batch, seed, run.step)):
        with autocast(seen.device):
            change = run.network(seen)
        run.advance(F.binary_cross_entropy_with_logits(guess + change.float(), target))
        done(recipe.steps + recipe.border_heads + run.step)
    network.border.load_state_dict(run.averaged.state_dict())
    return _write(out, network, recipe, seed, paths, rows)


class _Run:
    """Gradient steps of a part of the network, with averaged weights and a checkpoint that it goes on from."""

    def __init__(self, network: nn.Module, steps: int, rate: float, recipe: Recipe, folder: Path) -> None:
        self.network, self.averaged = network.train(), copy.deepcopy(network)
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
        self.steps, self.rate, self.recipe, self.folder = steps, rate, recipe, folder
        found = load_checkpoint(folder, network, self.averaged, self.optimiser)
        self.step = 0 if found is None else int(found["step"])
        self.losses, self.started = [], time.perf_counter()

    def advance(self, loss: Tensor) -> None:
        """Take a step down the gradient of ``loss``."""
        warm, half_turn = min(1.0, (self.step + 1) / self.recipe.warm_up), math.pi * self.step / self.steps
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * warm * 0.5 * (1 + math.cos(half_turn))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        follow(self.averaged, self.network, self.step, self.recipe.ema)
        self.losses.append(float(loss.detach()))
        self.step += 1
        if self.step % 100 == 0:
            seconds = (time.perf_counter() - self.started) / len(self.losses)
            log.info("step %d: loss %.4f, %.2f s a step", self.step, np.mean(self.losses[-100:]), seconds)
            save_checkpoint(self.folder, self.network, self.averaged, self.optimiser, step=torch.tensor(self.step))


def _while(run: _Run, batches: Iterable) -> Iterator:
    """Batches for as long as the run has steps to take."""
    if run.step < run.steps:
        for batch in batches:
            yield batch
            if run.step >= run.steps:
                return


Part = tuple[Tensor, Tensor, Tensor, Tensor]


def _seen(network: OutlineNet, work: Tensor, target: Tensor) -> Part:
    """What the border of a head is learnt from: what is seen, the logits of the guess, the mask, all (C, i, j, k) in
    the box around the guess; and the places (N, 3) of the border."""
    with torch.inference_mode(), autocast(work.device):
        seen, logits, box = network.see(work)
    mask = fold(target, network.guess.fold_size)[box][0]
    guess = logits[box][0]
    share = mask.mean(dim=0)
    unsure = ((share > 0) & (share < 1)) | ((guess > 0).float().mean(dim=0) != share)
    return seen[0].half(), guess.half(), mask.half(), unsure.nonzero()


def _patches(parts: list[Part], count: int, seed: int, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of cubes of ``PATCH`` around places of the border, each from another head."""
    parts = [part for part in parts if len(part[3]) and min(part[0].shape[1:]) >= PATCH]
    if not parts:
        log.warning("the guess sees no brain in any of the heads: no border is learnt")
        return
    for number in itertools.count(first):
        rng = np.random.default_rng((seed, number))
        cubes = []
        for index in rng.choice(len(parts), count, replace=len(parts) < count):
            *arrays, places = parts[index]
            place = places[int(rng.integers(len(places)))]
            starts = [
                min(max(0, int(p) - PATCH // 2), n - PATCH) for p, n in zip(place, arrays[0].shape[1:], strict=True)
            ]
            cube = (slice(None), *(slice(start, start + PATCH) for start in starts))
            cubes.append([array[cube].float() for array in arrays])
        yield tuple(torch.stack(values) for values in zip(*cubes, strict=True))


def _write(out: Path, network, recipe: Recipe, seed: int, paths: list[Path], rows: list[CohortScan]) -> dict[str, Any]:
    (out / "models").mkdir(parents=True, exist_ok=True)
    file = out / "models" / "model.safetensors"
    with atomic(file) as temporary:
        save_file({n: v.detach().to(torch.float16).contiguous() for n, v in network.state_dict().items()}, temporary)
    metadata: dict[str, Any] = {
        "schema_version": 1,
        "id": "brain-extraction",
        "version": __version__,
        "config": {name: getattr(recipe, name) for name in SIZES} | {"voxel_mm": WORK_MM, "multiple": STEP},
        "training": asdict(recipe),
        "trained_on": {
            "label_maps": [path.name for path in paths],
            "scans": sorted(row.subject for row in rows),
            "licences": sorted({row.licence for row in rows if row.licence}),
        },
        "seed": seed,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "intended_use": "Research only; not a medical device.",
    }
    write_text(out / "LICENSE", f"Licence of the weights in this folder: Apache-2.0\n{metadata['intended_use']}\n")
    write_text(out / "docs" / "README.md", _card(metadata))
    write_json(out / "configs" / "metadata.json", metadata)
    return metadata


def _card(metadata: dict[str, Any]) -> str:
    trained = metadata["trained_on"]
    shares = metadata["training"]
    licences = "; ".join(trained["licences"]) or "licence not stated"
    parts = [
        "# brain-extraction",
        f"Outlines the brain in a head of any contrast: a 3-D U-Net at {WORK_MM:g} mm guesses it, wider convolutions "
        "around the guess draw the border. Trained on heads synthesised with random contrast (the idea of SynthStrip, "
        "Hoopes et al. 2022, NeuroImage 260:119474) and on real T1w heads. The outline is the hull of the brain with "
        "the CSF in its sulci.",
        "## Training",
        f"The guess: {shares['steps']} steps of one head each, seed {metadata['seed']}: {shares['real']:.0%} real "
        f"heads, bent and recoloured; {shares['priors']:.0%} synthesised with the tissue contrast of T1w, T2w or "
        "FLAIR; the rest with random intensities. "
        f"The border: {shares['border_steps']} steps of {shares['border_batch']} cubes around the borders of "
        f"{shares['border_heads']} heads, {shares['border_real']:.0%} of them real and {shares['border_priors']:.0%} "
        "with the contrast of T1w, T2w or FLAIR.",
        *([trained["history"]] if "history" in trained else []),
        f"- {len(trained['label_maps'])} whole-head label maps of SynthSeg (Apache-2.0).\n"
        f"- {len(trained['scans'])} whole T1w heads ({licences}); the outlines are automatic.",
        "```\npython -m UADBenchLib.training.brain_extraction --maps MAPS --cohort Resources/Splits/t1w.csv "
        "--data DATA --out Resources/BrainExtraction\n```",
        "## Figures",
        "`python Testing/measure_heads.py --data DATA --maps MAPS` writes docs/figures/brain_mask.csv.",
        "## Limits",
        f"{metadata['intended_use']} Adult heads. A field of view that cuts the brain, tilts beyond about 30 degrees, "
        "and large lesions at the brain's surface make the outline worse; an implausible volume and an uncertain "
        "outline are said in the checks of every result.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, what in (("maps", "label maps"), ("cohort", "cohort table"), ("data", "data"), ("out", "results")):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"path of the {what}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe(steps=given.steps)
    train(given.maps, given.cohort, given.data, given.out, recipe=recipe, seed=given.seed, workers=given.workers)


if __name__ == "__main__":
    main()
