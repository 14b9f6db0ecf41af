"""UniAD (You et al. 2022, arXiv 2206.03687): a transformer reconstructs the features of healthy slices.

Feature maps of a frozen backbone become the tokens of one grid; a transformer that cannot simply copy them (see
``networks.query_transformer``) reconstructs them, from jittered tokens in training. The score is the length of the
error. The compact preset standardises features, so that no loud channel rules the others, jitters slices too, with
synthetic anomalies, learns where the brain is alone, and scores the direction of features, map by map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.augmentation import normal, uniform
from UADBenchLib.methods.base import Preset, Schedule, Slices, layer_randomness, published
from UADBenchLib.methods.features import FeatureConfig, FeatureMethod, stacked
from UADBenchLib.networks.query_transformer import QueryTransformer


@dataclass(frozen=True)
class UniadConfig(FeatureConfig):
    """Configuration of UniAD, beside that of its backbone.

    Attributes
    ----------
    grid : (int, int)
        Rows and columns of tokens.
    width, heads, inner, encoders, decoders, neighbourhood
        See ``QueryTransformer``.
    jitter : (float, float)
        Range of the noise on tokens in training, relative to a token's length over the number of its channels.
    cosine : bool
        Score the distance between the directions of a place's features and of their reconstruction (the chord, the root
        of 2 - 2 cos), mean over the backbone's maps, instead of the length of the difference: how loud the features of
        a place are then no longer counts. Unlike 1 - cos it grows with the angle and not with its square, which keeps
        the healthy scores from having a long tail.
    brain_only : bool
        Weigh the loss by the share of brain in a token: standardised features of the background lie so far off that
        they would outweigh the brain.
    """

    taps: tuple[str, ...] = ("stem", "stage1", "stage2", "stage3")
    restore: bool = True
    grid: tuple[int, int] = (15, 18)
    width: int = 96
    heads: int = 4
    inner: int = 256
    encoders: int = 2
    decoders: int = 2
    neighbourhood: int = 7
    jitter: tuple[float, float] = (5.0, 20.0)
    cosine: bool = True
    brain_only: bool = True


PAPER = UniadConfig(
    architecture="efficientnet_b4",
    taps=("stage1", "stage2", "stage3", "stage4"),
    source="imagenet",
    standardise=False,
    size=224,
    scale=2,
    augment=False,
    restore=False,
    grid=(14, 14),
    width=256,
    heads=8,
    inner=1024,
    encoders=4,
    decoders=4,
    neighbourhood=7,
    jitter=(5.0, 5.0),
    cosine=False,
    brain_only=False,
)


class Uniad(FeatureMethod):
    """Score: difference between a place's features and their reconstruction, in direction or in length."""

    name = "uniad"
    paper = "You et al. 2022, arXiv 2206.03687"
    presets = {
        "compact": Preset(UniadConfig(), Schedule(steps=2_500, learning_rate=1e-3, clip=0.1)),
        "paper": Preset(PAPER, published(25_000, clip=0.1)),
    }

    def __init__(self, config: UniadConfig) -> None:
        super().__init__(config)
        self.network = QueryTransformer(
            sum(self.backbone.channels),
            config.grid,
            width=config.width,
            heads=config.heads,
            inner=config.inner,
            encoders=config.encoders,
            decoders=config.decoders,
            neighbourhood=config.neighbourhood,
        )

    def _tokens(self, maps: list[Tensor]) -> Tensor:
        return stacked(maps, self.config.grid).flatten(2).transpose(1, 2)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        shown, wanted, masks = self.training_maps(slices, generator)
        tokens, wanted = self._tokens(shown), self._tokens(wanted)
        noise = normal(tokens.shape, generator, self.device)
        noise = noise * uniform(len(tokens), *self.config.jitter, generator, self.device)[:, None, None]
        length = tokens.norm(dim=2, keepdim=True) / tokens.shape[2]
        with layer_randomness(generator, self.device):
            restored = self.network(tokens + noise * length).float()
        error = (restored - wanted).square().mean(dim=2)
        if not self.config.brain_only:
            return error.mean()
        share = F.adaptive_avg_pool2d(masks.to(error), self.config.grid).flatten(1)
        return (error * share).sum() / share.sum().clamp(min=1e-6)

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        tokens = self._tokens(self.maps(slices))
        restored = self.network(tokens).float()
        if self.config.cosine:
            parts = zip(*(values.split(self.backbone.channels, dim=2) for values in (restored, tokens)), strict=True)
            chords = [(F.normalize(mine, dim=2) - F.normalize(its, dim=2)).norm(dim=2) for mine, its in parts]
            error = torch.stack(chords).mean(dim=0)
        else:
            error = (restored - tokens).norm(dim=2)
        return self.to_grid(error.unflatten(1, self.config.grid)[:, None], slices)


METHOD = Uniad
