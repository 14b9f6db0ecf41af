"""PatchCore (Roth et al. 2022, arXiv 2106.08265): a memory of local features of healthy slices.

Every patch of the healthy slices is described by the features around it; a subset that covers them all is kept (greedy
farthest points), and a patch to be scored is as abnormal as it is far from its nearest neighbour there. Nothing is
trained by gradient. The compact preset describes a patch by standardised features of the small backbone and by its
place in registered space, and looks at patches with brain alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.methods.base import Preset, Slices
from UADBenchLib.methods.features import FeatureConfig, FeatureMethod, stacked

CHUNK = 2_048
"""Patches that are compared with the memory at a time."""
GRID_MM = 2.0
"""Edge of a pixel of the model grid, and distance of its slices."""


@dataclass(frozen=True)
class PatchCoreConfig(FeatureConfig):
    """Configuration of PatchCore, beside that of its backbone.

    Attributes
    ----------
    neighbourhood : int
        Side of the square around a patch whose features describe it.
    pooled : int
        Length of the description: each map's neighbourhoods are pooled to it, then all maps together, as published; 0
        averages neighbourhoods instead and keeps every channel.
    memory, pool : int
        Descriptions kept, and drawn at random from all, which those kept are chosen from; 1 % as published.
    projection : int
        Dimensions of the random projection in which distances are measured while choosing.
    starts : int
        Random descriptions that choosing starts from.
    place_mm : float
        Distance in the brain that counts as one unit of feature distance; 0 leaves places out.
    brain_only : bool
        Leave patches without brain out of the memory.
    squared : bool
        Score squared distances, as published.
    seed : int
        Of all that is drawn.
    """

    taps: tuple[str, ...] = ("stage1", "stage2")
    neighbourhood: int = 3
    pooled: int = 0
    memory: int = 6_000
    pool: int = 100_000
    projection: int = 32
    starts: int = 10
    place_mm: float = 2.5
    brain_only: bool = True
    squared: bool = False
    seed: int = 0


PAPER = PatchCoreConfig(
    architecture="wide_resnet50_2",
    taps=("layer2", "layer3"),
    source="imagenet",
    standardise=False,
    size=224,
    scale=2,
    augment=False,
    neighbourhood=5,
    pooled=1024,
    pool=1_000_000,
    projection=128,
    place_mm=0.0,
    brain_only=False,
    squared=True,
)


class PatchCore(FeatureMethod):
    """Score: distance of a patch's features to the nearest ones in memory."""

    name = "patchcore"
    paper = "Roth et al. 2022, arXiv 2106.08265"
    presets = {"compact": Preset(PatchCoreConfig(), None), "paper": Preset(PAPER, None)}

    def __init__(self, config: PatchCoreConfig) -> None:
        super().__init__(config)
        length = (config.pooled or sum(self.backbone.channels)) + (3 if config.place_mm else 0)
        self.register_buffer("memory", torch.zeros(config.memory, length))

    def fit(self, batches: Iterable[Slices]) -> None:
        """Standardise the features on the first slices, then gather descriptions of all and keep those that cover
        them."""
        batches = list(batches) if self.config.standardise else batches
        super().fit(batches)
        generator = torch.Generator().manual_seed(self.config.seed)
        pool = self._gather(batches, generator)
        self.memory.copy_(pool[farthest_points(pool, self.config, generator)])

    @torch.no_grad()
    def _gather(self, batches: Iterable[Slices], generator: torch.Generator) -> Tensor:
        """An even random sample of all descriptions (at most ``pool``), in one pass and bounded memory: each gets a
        random key, and the smallest keys stay."""
        kept, keys = torch.zeros(self.config.pool, self.memory.shape[1]), torch.zeros(0)
        for batch in batches:
            found = self._describe(batch).cpu()
            if self.config.brain_only:
                found = found[self._with_brain(batch)]
            fresh = torch.rand(len(found), generator=generator)
            room = min(len(kept) - len(keys), len(found))
            kept[len(keys) : len(keys) + room] = found[:room]
            keys = torch.cat([keys, fresh[:room]])
            if room < len(found):
                _replace(kept, keys, found[room:], fresh[room:])
        return kept[: len(keys)]

    def _grid(self, slices: Slices) -> tuple[int, int]:
        """Patches down and across."""
        stride = self.backbone.strides[0]
        return tuple((self.config.size or size) // stride for size in slices.images.shape[-2:])

    def _with_brain(self, slices: Slices) -> Tensor:
        _, masks = self.frame.enter(slices.images, slices.masks)
        return (F.adaptive_avg_pool2d(masks.float(), self._grid(slices)) > 0.5).flatten().cpu()

    def _describe(self, slices: Slices) -> Tensor:
        """Descriptions (N * patches, length) of all patches, slice by slice, row by row."""
        maps = self.maps(slices)
        size = maps[0].shape[-2:]
        if self.config.pooled:
            values = self._pooled(maps)
        else:
            side = self.config.neighbourhood
            means = [F.avg_pool2d(part, side, 1, side // 2, count_include_pad=False) for part in maps]
            values = stacked(means, size, align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)
        if not self.config.place_mm:
            return values
        return torch.cat([values, self._places(slices, size).to(values.device)], dim=1)

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        """As published: the features of each neighbourhood in a row, pooled; all maps in a row, pooled again."""
        side, length, size = self.config.neighbourhood, self.config.pooled, maps[0].shape[-2:]
        described = []
        for part in maps:
            rows = F.unfold(part, side, padding=side // 2).transpose(1, 2)  # (N, patches, C * side ** 2)
            if part.shape[-2:] != size:
                square = rows.transpose(1, 2).unflatten(2, part.shape[-2:])
                rows = F.interpolate(square, size, mode="bilinear").flatten(2).transpose(1, 2)
            described.append(F.adaptive_avg_pool1d(rows, length).flatten(0, 1))
        return F.adaptive_avg_pool1d(torch.stack(described, dim=1).flatten(1)[:, None], length)[:, 0]

    def _places(self, slices: Slices, size: tuple[int, int]) -> Tensor:
        """Where each patch lies (N * patches, 3), in units of ``place_mm``."""
        unit = GRID_MM / self.config.place_mm
        x, y = (
            (torch.arange(count) + 0.5) / count * full * unit
            for count, full in zip(size, slices.images.shape[-2:], strict=True)
        )
        z = slices.positions.cpu().float() * unit
        return torch.stack(torch.meshgrid(z, x, y, indexing="ij"), dim=-1).flatten(0, 2)

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        descriptions = self._describe(slices)
        wanted = self._with_brain(slices) if self.config.brain_only else slice(None)
        nearest = torch.zeros(len(descriptions), device=descriptions.device)
        nearest[wanted] = self._nearest(descriptions[wanted])
        patches = nearest.reshape(len(slices), 1, *self._grid(slices))
        if self.config.brain_only:  # the brain's edge must not be diluted by patches that were left out
            known = self._with_brain(slices).reshape(patches.shape).float().to(patches.device)
            spread = F.avg_pool2d(patches, 3, 1, 1) / F.avg_pool2d(known, 3, 1, 1).clamp(min=1e-6)
            patches = torch.where(known > 0, patches, spread * (F.max_pool2d(known, 3, 1, 1) > 0))
        return self.to_grid(patches, slices, align_corners=False)

    def _nearest(self, descriptions: Tensor) -> Tensor:
        """Distance (or its square) to the nearest description in memory, in chunks that fit into memory."""
        memory = self.memory
        squares = memory.square().sum(dim=1)
        found = [torch.zeros(0, device=descriptions.device)]
        for part in descriptions.split(CHUNK):
            nearest = memory[(squares - 2 * part @ memory.T).argmin(dim=1)]
            found.append((part - nearest).square().sum(dim=1))  # anew: the product rounds small distances away
        distances = torch.cat(found)
        return distances if self.config.squared else distances.sqrt()


def _replace(kept: Tensor, keys: Tensor, found: Tensor, fresh: Tensor) -> None:
    """Let rows of ``found`` with keys ``fresh`` take the places of rows whose keys are larger, in place."""
    together = torch.cat([keys, fresh])
    stays = torch.zeros(len(together), dtype=torch.bool)
    stays[together.topk(len(keys), largest=False).indices] = True
    free, enters = ~stays[: len(keys)], stays[len(keys) :]
    kept[free], keys[free] = found[enters], fresh[enters]


def farthest_points(pool: Tensor, config: PatchCoreConfig, generator: torch.Generator) -> Tensor:
    """Indices (config.memory,) into ``pool`` (M, length) of points that cover it: each is the one farthest from those
    before, by a random projection. When the pool is smaller than the memory, indices repeat."""
    scale = config.projection**-0.5
    near = pool @ (torch.randn(pool.shape[1], config.projection, generator=generator) * scale)
    squares = near.square().sum(dim=1)

    def distance(index: int) -> Tensor:
        return squares - 2 * near @ near[index] + squares[index]

    starts = torch.randint(len(pool), (config.starts,), generator=generator).tolist()
    least = torch.stack([distance(index).clamp(min=0).sqrt() for index in starts]).mean(dim=0).square()
    chosen = []
    for _ in range(min(config.memory, len(pool))):
        index = int(least.argmax())
        chosen.append(index)
        least = torch.minimum(least, distance(index))
        least[index] = -1
    repeats = -(-config.memory // len(chosen))
    return torch.tensor(chosen).repeat(repeats)[: config.memory]


METHOD = PatchCore
