"""What methods on a frozen feature backbone share: their configuration, where the backbone's weights come from, and its
standardisation on healthy slices. A bundle of such a method holds the backbone's weights, so that it stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.anomalies import with_anomalies
from UADBenchLib.methods.base import Method, Slices
from UADBenchLib.methods.frame import Frame
from UADBenchLib.networks.backbones import Backbone


@dataclass(frozen=True)
class FeatureConfig:
    """Configuration of the backbone.

    Attributes
    ----------
    architecture, taps : str, tuple of str
        See ``Backbone``.
    source : str
        Where training takes the weights from: ``"ssl"`` (the bundle of method ``ssl_backbone`` for the contrast),
        ``"imagenet"`` or ``"random"``; a file or another bundle is named when training. See ``Backbone.load``.
    standardise : bool
        Standardise the maps channel by channel on healthy slices.
    imagenet_statistics : bool
        See ``Backbone``.
    size, scale : int
        See ``Frame``.
    restore : bool
        Train on slices with synthetic anomalies and ask for the features of the healthy ones, as the student of DeSTSeg
        is taught (Zhang et al. 2023, arXiv 2211.11317); otherwise features in are features out, as published. For
        methods that are trained.
    """

    architecture: str = "b32"
    taps: tuple[str, ...] = ("stem", "stage1", "stage2")
    source: str = "ssl"
    standardise: bool = True
    imagenet_statistics: bool = False
    size: int = 0
    scale: int = 1
    augment: bool = True
    restore: bool = False


class FeatureMethod(Method):
    """Base of the methods that look at feature maps instead of intensities."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        self.backbone = Backbone(config.architecture, config.taps, imagenet_statistics=config.imagenet_statistics)

    def load_pretrained(self, contrast: str, source: str | None = None) -> dict[str, Any]:
        """Fill the backbone; see ``Method.load_pretrained`` and ``FeatureConfig.source``.

        Raises
        ------
        InputError
            ``MODEL_UNKNOWN`` when there is no self-supervised backbone for the contrast, whatever ``load_bundle``
            raises for a damaged one, and see ``Backbone.load``.
        """
        from UADBenchLib.bundles.bundle import load_bundle
        from UADBenchLib.bundles.catalogue import find_model

        source = source or self.config.source
        if source == "ssl":
            source = str(find_model(f"ssl-backbone-{contrast.lower()}-compact"))
        if not Path(source).is_dir():
            return {"backbone": self.backbone.load(source)}
        bundle = load_bundle(source)  # checks the hash
        origin = self.backbone.load(str(Path(source) / "models" / "model.safetensors"))
        return {"backbone": origin | {"source": bundle.metadata.id}}

    def fit(self, batches: Iterable[Slices]) -> None:
        """Standardise the maps, where the configuration wants it."""
        if self.config.standardise:
            self.backbone.measure(self.frame.enter(batch.images, batch.masks) for batch in batches)

    def maps(self, slices: Slices) -> list[Tensor]:
        """The feature maps of slices, on the backbone's device."""
        images, _ = self.frame.enter(slices.images, slices.masks)
        return self.backbone(images.to(self.device))

    def training_maps(self, slices: Slices, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The maps that training shows, those that it asks for, and the framed brain masks; of augmented slices, and
        different ones, where the configuration wants that."""
        slices = self.augmented(slices, generator)
        wanted, masks = self.maps(slices), self.frame.enter(slices.images, slices.masks)[1]
        if not self.config.restore:
            return wanted, wanted, masks
        spoiled = with_anomalies(slices.images, slices.masks, generator)
        return self.maps(Slices(spoiled, slices.masks, slices.positions)), wanted, masks

    def to_grid(self, values: Tensor, slices: Slices, *, align_corners: bool = True) -> Tensor:
        """Enlarge values (N, 1, h, w) on a feature grid to the slices' grid; zero outside the brain."""
        framed = [self.config.size or size for size in slices.images.shape[-2:]]
        large = F.interpolate(values.float(), framed, mode="bilinear", align_corners=align_corners)
        return self.frame.leave(large, slices.images.shape) * slices.masks


def stacked(maps: list[Tensor], size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """All maps at one size, as the channels of one (N, C, *size)."""
    return torch.cat(list(_resized(maps, size, align_corners)), dim=1)


def _resized(maps: list[Tensor], size: tuple[int, int], align_corners: bool) -> Iterator[Tensor]:
    for values in maps:
        same = tuple(values.shape[-2:]) == tuple(size)
        yield values if same else F.interpolate(values, size, mode="bilinear", align_corners=align_corners)
