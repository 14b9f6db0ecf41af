"""Frozen feature extractors behind one interface: which network, which of its maps, and where its weights come from.

Three networks are the ones that published detectors use, pretrained on photographs (ResNet-18, Wide ResNet-50-2,
EfficientNet-B4); they are built here, with the parameter names of torchvision, so that weights made for torchvision's
fit and torchvision itself is needed for its own weights alone. The fourth, ``b32``, is small, takes single-channel
slices and is trained on them (method ``ssl_backbone``). Only the layers up to the last map that is wanted are built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.errors import InputError

IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREFIX = "backbone.net."
"""What the parameters of a backbone are called in a bundle."""


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps or divides the size, without bias, and its batch normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_norm(outputs, outputs, 3)
        change = stride > 1 or inputs != outputs
        self.downsample = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if change else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + (x if self.downsample is None else self.downsample(x)))


class WideBottleneck(nn.Module):
    """Residual block 1 x 1, 3 x 3, 1 x 1 whose inner width is half of its outputs (Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(inputs, outputs // 2, 1)
        self.conv2, self.bn2 = conv_norm(outputs // 2, outputs // 2, 3, stride)
        self.conv3, self.bn3 = conv_norm(outputs // 2, outputs, 1)
        change = stride > 1 or inputs != outputs
        self.downsample = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if change else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(h)) + (x if self.downsample is None else self.downsample(x)))


class _MobileBlock(nn.Module):
    """Inverted bottleneck with squeeze and excitation (Tan & Le 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers = [] if expansion == 1 else [nn.Sequential(*conv_norm(inputs, inner, 1), nn.SiLU())]
        layers.append(nn.Sequential(*conv_norm(inner, inner, kernel, stride, groups=inner), nn.SiLU()))
        layers.append(_SqueezeExcitation(inner, inputs // 4))
        layers.append(nn.Sequential(*conv_norm(inner, outputs, 1)))
        self.block = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + x if self.adds else self.block(x)


class _SqueezeExcitation(nn.Module):
    """Channels weighed by what the whole map says."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


def _stage(block: Callable[..., nn.Module], inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    rest = [block(outputs, outputs) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, outputs, stride=stride), *rest)


class _ResNet(nn.Module):
    """The residual networks of torchvision up to a layer, by its parameter names; their classifier is left out."""

    def __init__(self, last: str, block: type[nn.Module], widths: tuple[int, ...], counts: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(3, 64, 7, 2)
        self.stages, inputs = ["stem"], 64
        for number, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
            if self.stages[-1] == last:
                break
            self.stages.append(f"layer{number}")
            self.add_module(f"layer{number}", _stage(block, inputs, width, count, 1 if number == 1 else 2))
            inputs = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = {"stem": x}
        for name in self.stages[1:]:
            x = maps[name] = self.get_submodule(name)(x)
        return maps


class _EfficientNet(nn.Module):
    """EfficientNet-B4 up to a stage, by torchvision's parameter names."""

    # Outputs, kernel, stride, expansion and blocks of each stage.
    STAGES = ((24, 3, 1, 1, 2), (32, 3, 2, 6, 4), (56, 5, 2, 6, 4), (112, 3, 2, 6, 6))

    def __init__(self, last: str) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Sequential(*conv_norm(3, 48, 3, 2), nn.SiLU())]
        inputs = 48
        for outputs, kernel, stride, expansion, count in self.STAGES[: int(last.removeprefix("stage"))]:
            blocks = [_MobileBlock(inputs, outputs, kernel, stride, expansion)]
            blocks += [_MobileBlock(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.features = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x, maps = self.features[0](x), {}
        for number, stage in enumerate(self.features[1:], start=1):
            x = maps[f"stage{number}"] = stage(x)
        return maps


class _B32(nn.Module):
    """A small residual network for slices of 2 mm pixels: no pooling after the stem, since lesions are small there."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(1, 32, 5, 2), nn.ReLU())
        self.stages, inputs = ["stem"], 32
        for name, width, stride in (("stage1", 32, 1), ("stage2", 48, 2), ("stage3", 64, 2)):
            if self.stages[-1] == last:
                break
            self.stages.append(name)
            self.add_module(name, _stage(BasicBlock, inputs, width, 2, stride))
            inputs = width

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name in self.stages:
            x = maps[name] = self.get_submodule(name)(x)
        return maps


@dataclass(frozen=True)
class Architecture:
    """A network: how to build it up to a map, channels and stride of each map, and torchvision's name for its weights
    (empty for none)."""

    build: Callable[[str], nn.Module]
    maps: dict[str, tuple[int, int]]
    imagenet: str
    channels: int = 3


ARCHITECTURES = {
    "b32": Architecture(_B32, {"stem": (32, 2), "stage1": (32, 2), "stage2": (48, 4), "stage3": (64, 8)}, "", 1),
    "resnet18": Architecture(
        lambda last: _ResNet(last, BasicBlock, (64, 128, 256, 512), (2, 2, 2, 2)),
        {"stem": (64, 4), "layer1": (64, 4), "layer2": (128, 8), "layer3": (256, 16), "layer4": (512, 32)},
        "ResNet18_Weights.IMAGENET1K_V1",
    ),
    "wide_resnet50_2": Architecture(
        lambda last: _ResNet(last, WideBottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3)),
        {"stem": (64, 4), "layer1": (256, 4), "layer2": (512, 8), "layer3": (1024, 16), "layer4": (2048, 32)},
        "Wide_ResNet50_2_Weights.IMAGENET1K_V1",
    ),
    "efficientnet_b4": Architecture(
        _EfficientNet,
        {"stage1": (24, 2), "stage2": (32, 4), "stage3": (56, 8), "stage4": (112, 16)},
        "EfficientNet_B4_Weights.IMAGENET1K_V1",
    ),
}


class Backbone(nn.Module):
    """Feature maps of slices.

    Frozen unless said otherwise: no gradient reaches its weights, and its batch normalisation stays in evaluation mode.
    Maps are standardised channel by channel once ``measure`` was called.

    Parameters
    ----------
    architecture : str
        Key of ``ARCHITECTURES``.
    taps : tuple of str
        Maps to return, shallow ones first.
    imagenet_statistics : bool
        Shift and scale inputs as photographs were for the ImageNet weights.
    frozen : bool
        Off only where the backbone itself is trained.

    Attributes
    ----------
    channels, strides : tuple of int
        Of each tap.
    """

    def __init__(
        self, architecture: str, taps: tuple[str, ...], *, imagenet_statistics: bool = False, frozen: bool = True
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"there is no backbone {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        self.architecture = ARCHITECTURES[architecture]
        order = list(self.architecture.maps)
        if not taps or sorted(taps, key=lambda tap: order.index(tap) if tap in order else -1) != list(taps):
            raise ValueError(f"taps of {architecture} are {order}, shallow ones first, not {taps}")
        if not set(taps) <= set(order):
            raise ValueError(f"{architecture} has no map {sorted(set(taps) - set(order))}: its maps are {order}")
        self.taps, self.imagenet_statistics, self.frozen = taps, imagenet_statistics, frozen
        self.channels, self.strides = zip(*(self.architecture.maps[tap] for tap in taps), strict=True)
        self.net = self.architecture.build(taps[-1])
        for layer in self.net.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        for tap, channels in zip(taps, self.channels, strict=True):
            self.register_buffer(f"mean_{tap}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"spread_{tap}", torch.ones(channels, 1, 1))
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Backbone:
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the standardised map (N, C, H / stride, W / stride) float32 of each tap for images (N, 1, H, W)."""
        maps = self.raw(images)
        return [
            (values - self.get_buffer(f"mean_{tap}")) / self.get_buffer(f"spread_{tap}")
            for tap, values in zip(self.taps, maps, strict=True)
        ]

    def raw(self, images: Tensor) -> list[Tensor]:
        """The maps as the network gives them."""
        images = images.expand(-1, self.architecture.channels, -1, -1)
        if self.imagenet_statistics:
            mean, spread = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_SPREAD))
            images = (images - mean) / spread
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.net(images)
        return [maps[tap].float() for tap in self.taps]

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]], slices: int = 2_000) -> None:
        """Measure mean and spread of every channel over the brain of ``slices`` healthy slices, given as batches of
        images and boolean masks (N, 1, H, W)."""
        device = self.get_buffer(f"mean_{self.taps[0]}").device
        sums = {tap: torch.zeros(3, n, dtype=torch.float64) for tap, n in zip(self.taps, self.channels, strict=True)}
        seen = 0
        for images, masks in batches:
            for tap, values in zip(self.taps, self.raw(images.to(device)), strict=True):
                inside = F.adaptive_avg_pool2d(masks.float(), values.shape[-2:])[:, 0] > 0.5
                chosen = values.permute(0, 2, 3, 1).cpu()[inside].double()
                sums[tap] += torch.stack(
                    [chosen.sum(0), chosen.square().sum(0), torch.full_like(chosen[0], len(chosen))]
                )
            seen += len(images)
            if seen >= slices:
                break
        for tap, (total, squares, count) in sums.items():
            mean = total / count.clamp(min=1)
            spread = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
            # A channel that is silent in healthy brains must not turn rounding errors into anomalies.
            spread = spread.clamp(min=max(1e-6, 0.01 * float(spread.mean())))
            self.get_buffer(f"mean_{tap}").copy_(mean[:, None, None])
            self.get_buffer(f"spread_{tap}").copy_(spread[:, None, None])

    def load(self, source: str) -> dict[str, Any]:
        """Take over weights.

        Parameters
        ----------
        source : str
            ``"random"`` keeps the initial ones; ``"imagenet"`` takes torchvision's from the user's cache; anything else
            is a safetensors file of this network's weights, or of a bundle that holds them.

        Returns
        -------
        dict
            ``source`` and, for all but random ones, ``sha256`` of the file: plain values for a bundle's metadata.

        Raises
        ------
        InputError
            ``TORCHVISION_MISSING``, ``WEIGHTS_MISSING``, ``WEIGHTS_DAMAGED`` or ``WEIGHTS_MISMATCH``; nothing else is
            taken instead.
        """
        if source == "random":
            return {"source": "random"}
        file, weights = _imagenet(self.architecture) if source == "imagenet" else _from_file(Path(source))
        if any(name.startswith(PREFIX) for name in weights):
            weights = {name[len(PREFIX) :]: v for name, v in weights.items() if name.startswith(PREFIX)}
        own = self.net.state_dict()
        beyond = _beyond(own, weights)
        try:
            self.net.load_state_dict({name: v for name, v in weights.items() if name not in beyond})
        except RuntimeError as error:
            raise InputError(
                "WEIGHTS_MISMATCH",
                f"{file.name} does not hold the weights of this backbone",
                "give the weights of the same network",
            ) from error
        return {"source": source if source == "imagenet" else "file", "file": file.name, "sha256": _sha256(file)}


LATER = {"fc", "classifier"} | {f"layer{n}" for n in range(1, 5)} | {f"stage{n}" for n in range(1, 4)}
LATER |= {f"features.{n}" for n in range(1, 9)}
"""Layers that a file may hold and a backbone, which ends at its last tap, may lack."""


def _beyond(own: dict[str, Tensor], weights: dict[str, Tensor]) -> set[str]:
    """Weights of whole layers that were not built."""

    def layer(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[:2]) if parts[0] == "features" else parts[0]

    missing = LATER - {layer(name) for name in own}
    return {name for name in weights if layer(name) in missing}


def _from_file(file: Path) -> tuple[Path, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise InputError(
            "WEIGHTS_MISSING", f"{file} is no file", "give ssl, imagenet, random, a bundle or a safetensors file"
        )
    try:
        return file, {name: v.float() if v.is_floating_point() else v for name, v in load_file(file).items()}
    except SafetensorError as error:
        raise InputError("WEIGHTS_DAMAGED", f"{file.name} is no safetensors file", "convert or get it again") from error


def _imagenet(architecture: Architecture) -> tuple[Path, dict[str, Tensor]]:
    if not architecture.imagenet:
        raise InputError("WEIGHTS_MISSING", "there are no ImageNet weights of this backbone", "use ssl or a file")
    try:
        from torchvision.models import get_weight
    except ImportError as error:
        raise InputError(
            "TORCHVISION_MISSING",
            "the ImageNet weights are torchvision's, which is not installed",
            "`pip install torchvision`, or convert the weights to a safetensors file and name it with --backbone",
        ) from error
    weights = get_weight(architecture.imagenet)
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not file.is_file():
        raise InputError("WEIGHTS_MISSING", f"{file} does not exist", f"download {weights.url} to it")
    # The file's name ends with the start of its hash.
    if not _sha256(file).startswith(file.stem.rsplit("-", 1)[-1]):
        raise InputError("WEIGHTS_DAMAGED", f"{file} does not match the hash in its name", "download it again")
    return file, weights.get_state_dict(progress=False, weights_only=True)


def _sha256(file: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
