"""Context-encoding variational autoencoder (Zimmerer et al. 2018, arXiv 1812.05941; sizes of StRegA, Chatterjee et al.
2022, arXiv 2201.13271).

A variational autoencoder reconstructs healthy slices from a small code, and the same network also fills in squares that
were painted over. Three scores: the residual; the residual weighed by how much each pixel pulls the code away from the
prior (gradient of the Kullback-Leibler divergence); and the distance between the codes of a slice and of its own
reconstruction (Albu et al. 2020, arXiv 2007.12528), one number a slice, which is also what ``slice_scores`` gives,
whatever the score of the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from UADBenchLib.corruption import augmentation
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices, brain_average, published
from UADBenchLib.methods.frame import Frame

SCORES = ("residual", "gradient", "latent")


@dataclass(frozen=True)
class ContextVaeConfig:
    """Configuration of the autoencoder.

    Attributes
    ----------
    widths : tuple of int
        Channels of the encoder's levels, each with half the resolution of the one before.
    code : int
        Length of the latent code.
    pixels : (int, int)
        Of what the network sees: the model grid, or the frame.
    kernel : int
        Of the encoder; the decoder's is 4.
    plain : bool
        PReLU and no normalisation, as published, instead of instance normalisation and leaky ReLU.
    context : float
        Weight of the loss of filling in; the rest is that of the autoencoder.
    divergence : float
        Weight of the Kullback-Leibler divergence, a mean over the code.
    squares : int
        Squares painted over in a slice, at most; their sides are up to half of the slice.
    score : str
        ``"residual"``, ``"gradient"`` or ``"latent"``.
    averaged : int
        Side of the square over which the difference is averaged before its size is taken, in pixels of the frame; 1
        as published. See ``brain_average``.
    smoothing : int
        Side of the mean filter over gradients, in pixels.
    size, scale
        See ``Frame``.
    """

    widths: tuple[int, ...] = (16, 32, 64, 96)
    code: int = 32
    pixels: tuple[int, int] = (80, 96)
    kernel: int = 4
    plain: bool = False
    context: float = 0.5
    divergence: float = 0.01
    squares: int = 3
    score: str = "residual"
    averaged: int = 7
    smoothing: int = 5
    size: int = 0
    scale: int = 1
    augment: bool = True

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score is {self.score!r}, not one of {', '.join(SCORES)}")


PAPER = ContextVaeConfig(
    widths=(16, 64, 256, 1024),
    code=1024,
    pixels=(256, 256),
    kernel=3,
    plain=True,
    averaged=1,
    size=256,
    scale=2,
    augment=False,
)


class ContextVae(Method):
    """Score: residual, gradient-weighted residual, or latent distance, as configured."""

    name = "context_vae"
    paper = "Zimmerer et al. 2018, arXiv 1812.05941; Chatterjee et al. 2022, arXiv 2201.13271"
    presets = {
        "compact": Preset(ContextVaeConfig(), Schedule(steps=4_000, batch=32, learning_rate=1e-3)),
        # The number of steps is not published.
        "paper": Preset(PAPER, published(50_000, batch=32)),
    }

    def __init__(self, config: ContextVaeConfig) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        widths = config.widths
        bottom = tuple(size // 2 ** len(widths) for size in config.pixels)

        def dressed(layer: nn.Module, outputs: int) -> list[nn.Module]:
            rest = [nn.PReLU()] if config.plain else [nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.01)]
            return [layer, *rest]

        encoder: list[nn.Module] = []
        for inputs, outputs in zip((1, *widths[:-1]), widths, strict=True):
            encoder += dressed(nn.Conv2d(inputs, outputs, config.kernel, 2, 1), outputs)
        self.encoder = nn.Sequential(*encoder)
        self.mean, self.log_spread = (nn.Conv2d(widths[-1], config.code, bottom) for _ in range(2))
        decoder = dressed(nn.ConvTranspose2d(config.code, widths[-1], bottom), widths[-1])
        for inputs, outputs in zip(widths[:0:-1], widths[-2::-1], strict=True):
            decoder += dressed(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), outputs)
        self.decoder = nn.Sequential(*decoder, nn.ConvTranspose2d(widths[0], 1, 4, 2, 1))

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (N, code, 1, 1) of the code."""
        h = self.encoder(images)
        return self.mean(h).float(), self.log_spread(h).float().clamp(-8, 8)

    def _decode(self, code: Tensor) -> Tensor:
        return self.decoder(code).float()

    @staticmethod
    def _divergence(mean: Tensor, log_spread: Tensor) -> Tensor:
        """Kullback-Leibler divergence of every component of the code from the standard normal."""
        return 0.5 * (mean.square() + torch.exp(2 * log_spread) - 2 * log_spread - 1)

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        slices = self.augmented(slices, generator)
        images, _ = self.frame.enter(slices.images, slices.masks)
        painted = paint_squares(images, generator, self.config.squares)
        noise = augmentation.normal((len(images), self.config.code, 1, 1), generator, self.device)
        mean, log_spread = self._encode(images)
        restored = self._decode(mean + torch.exp(log_spread) * noise)
        own = F.l1_loss(restored, images) + self.config.divergence * self._divergence(mean, log_spread).mean()
        filled = F.l1_loss(self._decode(self._encode(painted)[0]), images)
        return (1 - self.config.context) * own + self.config.context * filled

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, _ = self.frame.enter(slices.images, slices.masks)
        return self.frame.leave(self._decode(self._encode(images)[0]), slices.images.shape) * slices.masks

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        if self.config.score == "latent":
            return self.slice_scores(slices, generator)[:, None, None, None] * slices.masks
        images, masks = self.frame.enter(slices.images, slices.masks)
        difference = images - self._decode(self._encode(images)[0])
        residual = brain_average(difference, masks, self.config.averaged).abs()
        if self.config.score == "gradient":
            residual = residual * self._pull(images)
        return self.frame.leave(residual, slices.images.shape) * slices.masks

    def _pull(self, images: Tensor) -> Tensor:
        """How strongly each pixel changes the divergence of its slice's code, smoothed."""
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone().requires_grad_(True)
            divergence = self._divergence(*self._encode(images)).sum()
            (gradient,) = torch.autograd.grad(divergence, images)
        side = self.config.smoothing
        return F.avg_pool2d(gradient.abs(), side, 1, side // 2)

    def slice_scores(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """Wasserstein distance between the codes of each slice and of its reconstruction, as two normal laws."""
        images, masks = self.frame.enter(slices.images, slices.masks)
        mean, log_spread = self._encode(images)
        again_mean, again_log_spread = self._encode(self._decode(mean) * masks)
        spreads = torch.exp(log_spread) - torch.exp(again_log_spread)
        distance = ((mean - again_mean).square() + spreads.square()).flatten(1).sum(dim=1).sqrt()
        return distance * masks.flatten(1).any(dim=1)


def paint_squares(images: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """Paint over up to ``most`` squares of each slice (N, 1, X, Y), each in one intensity between the batch's least and
    largest."""
    count, _, height, width = images.shape
    low, high = images.aminmax()
    wanted = torch.randint(0, most + 1, (count,), generator=generator).to(images.device)
    painted = images.clone()
    y, x = (torch.arange(size, device=images.device) for size in (height, width))
    rows, columns = y[None, :, None], x[None, None, :]

    def share() -> Tensor:
        return augmentation.uniform(count, 0, 1, generator, images.device)[:, None, None]

    for number in range(most):
        side = share() * min(height, width) / 2
        top, left = (share() * (size - side) for size in (height, width))
        tone = low + (high - low) * share()[:, None]
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        inside = inside & (number < wanted)[:, None, None]
        painted = torch.where(inside[:, None], tone, painted)
    return painted


METHOD = ContextVae
