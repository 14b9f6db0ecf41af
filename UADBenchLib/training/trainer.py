"""The training loop: one method, one cohort, one bundle. Seeded, resumable at any moment, with averaged weights and a
log of the loss.

Methods that only ``fit`` go once through the training slices. Checkpoints are safetensors like everything else:
weights, averaged weights, optimiser moments and the generator's state, so that a resumed run takes the very steps that
an unbroken one would have taken. Under ``torchrun`` the slices of a batch are shared among the processes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from UADBenchLib import __version__
from UADBenchLib.bundles.bundle import Bundle, Metadata, Space, bundle_id, recipe_values, save_bundle
from UADBenchLib.cohort import CohortScan, read_cohort, select
from UADBenchLib.errors import InputError, UADBenchError
from UADBenchLib.inference.device import autocast, choose_device
from UADBenchLib.methods.base import Method, Schedule, Slices
from UADBenchLib.methods.registry import changed_configuration, create_method
from UADBenchLib.preprocessing.recipe import Recipe
from UADBenchLib.scan import Progress
from UADBenchLib.training.checkpoint import follow, load_checkpoint, save_checkpoint
from UADBenchLib.training.curve import write_curve
from UADBenchLib.training.distributed import Group, own_device, process_group
from UADBenchLib.training.slices import SliceSampler, StoredScan, build_store, default_store

CHECKPOINT_EVERY = 250


def train(
    method: str,
    cohort: str | Path,
    *,
    contrast: str,
    out: str | Path,
    preset: str = "compact",
    changes: Sequence[str] = (),
    data: str | Path | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    licence: str = "not stated",
    device: str = "auto",
    store: str | Path | None = None,
    workers: int = 1,
    backbone: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a method on the healthy training scans of a cohort and write an uncalibrated bundle.

    Parameters
    ----------
    method, preset : str
        Registry name and preset.
    changes : sequence of str
        ``OPTION=VALUE`` instead of the preset's; see ``registry.changed_configuration``.
    cohort : path
        Cohort table; rows with label ``healthy`` of split ``train`` (or of no split) and the given contrast are used.
    contrast : str
        ``"T1w"``, ``"T2w"`` or ``"FLAIR"``.
    out : path
        Folder of the bundle; checkpoints and the loss log lie beside it in ``<out>.training``.
    fraction : float
        Share of the subjects to train on, in (0, 1]; smaller shares are subsets of larger ones.
    steps : int, optional
        Overrides the preset's number of steps.
    resume : bool
        Go on from the checkpoint when there is one.
    licence : str
        Under which the weights are given on; written into the bundle.
    backbone : str, optional
        Source of the feature backbone instead of the preset's; see ``methods.features``.

    Returns
    -------
    dict
        id, path, subjects, slices, steps, final loss, seconds.

    Raises
    ------
    InputError
        For an unknown method, preset or option, an unusable cohort, or a fraction out of range.
    """
    recipe, target = Recipe(), choose_device(own_device(device))
    torch.manual_seed(seed)  # initial weights are drawn by torch's layers from the global generator
    model = create_method(method, preset, changed_configuration(method, preset, changes))
    schedule = model.presets[preset].schedule
    if schedule is not None and steps is not None:
        schedule = replace(schedule, steps=steps)
    origin = model.load_pretrained(contrast, backbone)
    rows = _fraction(
        select(read_cohort(cohort, data), split="train", label="healthy", contrast=contrast), fraction, seed
    )
    started = time.perf_counter()
    with process_group() as group:
        progress = progress if group.first else None
        stored, failed = _stored(group, rows, Path(store) if store else default_store(), recipe, workers, progress)
        sampler = SliceSampler(stored) if schedule else SliceSampler(stored, minimum_brain=0.0)
        shuffled = torch.Generator().manual_seed(seed) if schedule else None
        model.to(target).fit(_batches(sampler, shuffled))
        log: list[dict[str, float]] = []
        if schedule is not None:
            run = _Run(model, schedule, sampler, seed, Path(f"{out}.training"), target, group)
            log = run.go(resume, progress)
            model = run.averaged
        model.eval().finish(_batches(sampler, torch.Generator().manual_seed(seed)))
        if group.first:
            metadata = _metadata(model, preset, contrast, recipe, stored, seed, len(log), fraction, licence)
            metadata.trained_on.update(origin)
            save_bundle(Bundle(metadata, model.cpu(), recipe), out)
            if log:
                write_curve(Path(out) / "docs", log, metadata.id)
        group.wait()
    return {
        "id": bundle_id(method, contrast, preset),
        "path": str(out),
        "subjects": len({scan.row.subject for scan in stored}),
        "left_out": [f"{row.scan.name}: {error}" for row, error in failed],
        "slices": len(sampler.places),
        "steps": len(log),
        "loss": log[-1]["loss"] if log else None,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _stored(
    group: Group, rows: list[CohortScan], store: Path, recipe: Recipe, workers: int, progress: Progress | None
) -> tuple[list[StoredScan], list[tuple[CohortScan, UADBenchError]]]:
    """The prepared scans; the first process prepares what is missing, the others find it there."""
    if group.first:
        stored, failed = build_store(rows, store, recipe, workers=workers, progress=progress)
    group.wait()
    if not group.first:
        stored, failed = build_store(rows, store, recipe)
    if not stored:
        raise InputError("COHORT_EMPTY", "no scan of the cohort could be prepared", "see the warnings above")
    return stored, failed


def _fraction(rows: list[CohortScan], fraction: float, seed: int) -> list[CohortScan]:
    """The scans of a share of the subjects; subjects are ordered by a hash, so that shares are nested."""
    if not 0 < fraction <= 1:
        raise InputError("FRACTION", f"the fraction is {fraction}", "give a number above 0 and up to 1")
    if not rows:
        raise InputError(
            "COHORT_EMPTY", "the cohort has no healthy training scan of this contrast", "check label, split, contrast"
        )
    subjects = sorted(
        {row.subject for row in rows}, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
    )
    kept = set(subjects[: max(1, round(fraction * len(subjects)))])
    return [row for row in rows if row.subject in kept]


def _batches(sampler: SliceSampler, generator: torch.Generator | None, size: int = 32) -> Iterator[Slices]:
    """All training slices once, in order or shuffled."""
    count = len(sampler.places)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for start in range(0, count, size):
        yield _slices(sampler, order[start : start + size].tolist())


def _slices(sampler: SliceSampler, indices: list[int]) -> Slices:
    images, masks, positions = sampler.read(indices)
    return Slices(torch.from_numpy(images), torch.from_numpy(masks), torch.from_numpy(positions))


class _Loss(nn.Module):
    """A method whose forward pass is its training loss: what processes average gradients of."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, slices: Slices, generator: torch.Generator) -> Tensor:
        return self.method.training_loss(slices, generator)


class _Run:
    """One run of gradient steps with its checkpoint."""

    def __init__(
        self,
        model: Method,
        schedule: Schedule,
        sampler: SliceSampler,
        seed: int,
        folder: Path,
        device: torch.device,
        group: Group,
    ) -> None:
        self.model, self.group = model.to(device).train(), group
        self.averaged = create_method(model.name, config=model.configuration()).to(device)
        self.averaged.load_state_dict(self.model.state_dict())
        self.schedule, self.sampler, self.folder, self.device = schedule, sampler, folder, device
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.loss = group.wrap(_Loss(self.model))
        self.log: list[dict[str, float]] = []

    def go(self, resume: bool, progress: Progress | None) -> list[dict[str, float]]:
        """Take the steps that are left; a checkpoint is written every ``CHECKPOINT_EVERY`` steps and at the end."""
        if resume:
            self._restore()
        total = self.schedule.steps
        while len(self.log) < total:
            loss = self._step(len(self.log))
            if not math.isfinite(loss):
                raise InputError(
                    "TRAINING_DIVERGED", f"the loss was {loss} at step {len(self.log)}", "lower the learning rate"
                )
            self.log.append(
                {"step": len(self.log), "loss": loss, "learning_rate": self.optimiser.param_groups[0]["lr"]}
            )
            if progress is not None:
                progress(
                    f"training, loss {np.mean([row['loss'] for row in self.log[-50:]]):.5f}", len(self.log) / total
                )
            if self.group.first and (len(self.log) % CHECKPOINT_EVERY == 0 or len(self.log) == total):
                self._save()
        return self.log

    def _step(self, step: int) -> float:
        schedule = self.schedule
        # All processes draw the same batch and number; each takes its share of the batch, and numbers of its own.
        indices = torch.randint(len(self.sampler.places), (schedule.batch,), generator=self.generator).tolist()
        draws = torch.Generator().manual_seed(
            int(torch.randint(2**62, (1,), generator=self.generator)) + self.group.rank
        )
        rate = schedule.learning_rate * min(1.0, (step + 1) / max(1, schedule.warm_up))
        if not schedule.constant:
            rate *= 0.5 * (1 + math.cos(math.pi * step / max(1, schedule.steps)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with autocast(self.device):
            loss = self.loss(_slices(self.sampler, self.group.share(indices)).to(self.device), draws)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), schedule.clip)
        self.optimiser.step()
        follow(self.averaged, self.model, step, schedule.ema)
        return float(self.group.mean(loss.detach()))

    def _save(self) -> None:
        rows = [[row["step"], row["loss"], row["learning_rate"]] for row in self.log]
        more = {"generator": self.generator.get_state(), "log": torch.tensor(rows, dtype=torch.float64)}
        save_checkpoint(self.folder, self.model, self.averaged, self.optimiser, **more)
        write_curve(self.folder, self.log, self.model.name)

    def _restore(self) -> None:
        arrays = load_checkpoint(self.folder, self.model, self.averaged, self.optimiser)
        if arrays is None:
            return
        self.generator.set_state(arrays["generator"])
        rows = arrays["log"].tolist()
        self.log = [{"step": int(s), "loss": loss, "learning_rate": rate} for s, loss, rate in rows]


def _metadata(
    model: Method,
    preset: str,
    contrast: str,
    recipe: Recipe,
    stored: list[StoredScan],
    seed: int,
    steps: int,
    fraction: float,
    licence: str,
) -> Metadata:
    sites: dict[str, int] = {}
    for scan in stored:
        sites[scan.row.site or "unknown"] = sites.get(scan.row.site or "unknown", 0) + 1
    return Metadata(
        id=bundle_id(model.name, contrast, preset),
        version=__version__,
        method=model.name,
        paper=model.paper,
        preset=preset,
        contrast=contrast,
        config=model.configuration(),
        recipe=recipe_values(recipe),
        recipe_hash=recipe.hash,
        space=Space(
            template=recipe.template, voxel_mm=recipe.voxel_mm, shape=recipe.shape, registration="affine, 12 parameters"
        ),
        trained_on={
            "scans": len(stored),
            "subjects": sorted({scan.row.subject for scan in stored}),
            "sites": sites,
            "licences": {scan.row.site or "unknown": scan.row.licence or "not stated" for scan in stored},
            "fraction": fraction,
            "healthy_only": True,
        },
        seed=seed,
        steps=steps,
        versions={"uadbench": __version__, "torch": torch.__version__.split("+")[0], "numpy": np.__version__},
        sha256={},
        licence=licence,
    )
