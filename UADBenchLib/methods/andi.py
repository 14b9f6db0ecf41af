"""ANDi: aggregated normative diffusion (Frotscher et al. 2023, arXiv 2312.04275).

A diffusion model learns healthy slices under noise that has structure at all scales. A slice to be scored is noised to
many moderate levels; at each the model says what the clean slice is, and the squared differences from the true slice
are averaged geometrically over the levels, which keeps only what every level finds wrong. The published score compares
one reverse step with the exact posterior step; that difference is the difference of the clean slices times a factor of
the level alone, so no step needs to be taken. The compact preset differs in training only on the noise that scoring
uses, and in its levels, spaced evenly in log signal-to-noise ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from UADBenchLib.corruption import augmentation
from UADBenchLib.corruption.noise import pyramid_noise, slice_noise
from UADBenchLib.methods.base import Method, Preset, Schedule, Slices, brain_average, layer_randomness, published
from UADBenchLib.methods.frame import Frame
from UADBenchLib.networks.diffusion_unet import DiffusionUNet, DiffusionUNetSettings
from UADBenchLib.networks.unet import UNet

EXTREME = 15.0
"""Log signal-to-noise ratio at the ends of the schedule, before it is shifted."""
STEP = 1e-3
"""Length of the reverse step of the published score, in units of time."""


@dataclass(frozen=True)
class AndiConfig:
    """Configuration of ANDi.

    Attributes
    ----------
    widths, stem : tuple of int, int
        Channels per level; folding of the compact U-Net.
    blocks : tuple of int
        Residual blocks per level of the published U-Net; empty for the compact one.
    size, scale : int
        See ``Frame``.
    side : int
        Pixels of a 224 mm field of view; shifts the noise schedule, since larger pixels average noise away.
    train_times, test_times : (float, float)
        Range of the time in [0, 1]; 0 is clean, 1 is noise.
    levels : int
        Noise levels that a slice is scored at.
    even_times : bool
        Space them evenly in time, as published, instead of in log signal-to-noise ratio.
    discount : float
        Weight of each coarser field of the training noise relative to the next finer one.
    highest : float
        Largest intensity that the model may answer.
    averaged : int
        Side of the square over which the difference is averaged before its size is taken, in pixels of the frame; 1
        as published. See ``brain_average``.
    floor : float
        Added to squared differences, in units of [-1, 1], before the logarithm.
    published_scale : bool
        Score as published (a squared difference of posterior means) instead of as the geometric mean absolute
        difference in prepared intensity.
    noise_per_batch, causal, single_activation, unscaled_time : bool
        Habits of the released code: see ``pyramid_noise`` and ``DiffusionUNetSettings``; time in [0, 1] instead of
        [0, 1000] to the embedding.
    """

    widths: tuple[int, ...] = (16, 32, 64, 80)
    stem: int = 2
    blocks: tuple[int, ...] = ()
    size: int = 0
    scale: int = 1
    side: int = 112
    train_times: tuple[float, float] = (0.01, 0.4)
    test_times: tuple[float, float] = (0.026, 0.125)
    levels: int = 20
    even_times: bool = False
    discount: float = 0.9
    highest: float = 1.5
    averaged: int = 5
    floor: float = 1e-6
    published_scale: bool = False
    augment: bool = True
    noise_per_batch: bool = False
    causal: bool = False
    single_activation: bool = False
    unscaled_time: bool = False


PAPER = AndiConfig(
    widths=(32, 32, 32, 64, 96, 128),
    blocks=(1, 1, 1, 2, 4, 2),
    size=224,
    scale=2,
    side=224,
    train_times=(0.0, 1.0),
    levels=100,
    even_times=True,
    highest=1.0,
    averaged=1,
    floor=1e-12,
    published_scale=True,
    augment=False,
)


class Andi(Method):
    """Score: geometric mean over noise levels of the difference between a slice and what the model makes of it."""

    name = "andi"
    paper = "Frotscher et al. 2023, arXiv 2312.04275"
    presets = {
        "compact": Preset(AndiConfig(), Schedule(steps=5_000, learning_rate=8e-4)),
        "paper": Preset(PAPER, published(15_000, ema=0.9999)),
    }

    def __init__(self, config: AndiConfig) -> None:
        super().__init__(config)
        self.frame = Frame(config.size, config.scale)
        if config.blocks:
            settings = DiffusionUNetSettings(
                config.widths,
                config.blocks,
                attention=(4, 5),
                rescale=True,
                causal=config.causal,
                activate_twice=not config.single_activation,
            )
            self.network = DiffusionUNet(settings, conditioned=True)
        else:
            self.network = UNet(config.widths, config.stem, conditioned=True)

    def log_snr(self, time: Tensor) -> Tensor:
        """Log signal-to-noise ratio at times in [0, 1]: a cosine schedule, shifted by the size of the pixels."""
        low, high = math.atan(math.exp(-EXTREME / 2)), math.atan(math.exp(EXTREME / 2))
        return -2 * torch.log(torch.tan(low + time * (high - low))) + 2 * math.log(56 / self.config.side)

    def _velocity(self, noisy: Tensor, time: Tensor) -> Tensor:
        return self.network(noisy, time if self.config.unscaled_time else 1000 * time).float()

    def training_loss(self, slices: Slices, generator: torch.Generator) -> Tensor:
        slices = self.augmented(slices, generator)
        images, _ = self.frame.enter(slices.images, slices.masks)
        time = augmentation.uniform(len(images), *self.config.train_times, generator, self.device)
        noise = pyramid_noise(
            images.shape,
            generator,
            discount=self.config.discount,
            per_slice=not self.config.noise_per_batch,
            device=self.device,
        )
        alpha, sigma = self._signal_and_noise(time)
        noisy = alpha * (2 * images - 1) + sigma * noise
        with layer_randomness(generator, self.device):
            guess = sigma * noisy + alpha * self._velocity(noisy, time)
        return (guess - noise).square().mean()

    def _signal_and_noise(self, time: Tensor) -> tuple[Tensor, Tensor]:
        ratio = self.log_snr(time)[:, None, None, None]
        return torch.sigmoid(ratio).sqrt(), torch.sigmoid(-ratio).sqrt()

    def times(self) -> Tensor:
        """The times (levels,) that slices are scored at, noisiest first."""
        first, last = self.config.test_times
        times = torch.linspace(last, first, self.config.levels)
        if self.config.even_times:
            return times
        fine = torch.linspace(last, first, 10_000, dtype=torch.float64)
        ratios = self.log_snr(fine)
        wanted = torch.linspace(float(ratios[0]), float(ratios[-1]), self.config.levels, dtype=torch.float64)
        return fine[torch.searchsorted(ratios, wanted).clamp(max=len(fine) - 1)].float()

    def posterior_factor(self) -> float:
        """What turns the geometric mean of squared differences into that of the posterior means' differences."""
        times = self.times().double()
        later, sooner = self.log_snr(times), self.log_snr(times - STEP)
        factors = (1 - torch.exp(later - sooner)) * torch.sigmoid(sooner).sqrt()
        return float(factors.square().log().mean().exp())

    def _cleaned(self, images: Tensor, time: float, noise: Tensor) -> Tensor:
        """What the model takes the noised images (in [-1, 1]) for."""
        times = torch.full((len(images),), time, device=images.device)
        alpha, sigma = self._signal_and_noise(times)
        noisy = alpha * images + sigma * noise
        return (alpha * noisy - sigma * self._velocity(noisy, times)).clamp(-1, 2 * self.config.highest - 1)

    def score(self, slices: Slices, generator: torch.Generator) -> Tensor:
        images, masks = self.frame.enter(slices.images, slices.masks)
        images, total = 2 * images - 1, torch.zeros_like(images)
        times = self.times().tolist()
        for time in times:
            noise = slice_noise(slices.positions, images.shape, generator)
            difference = brain_average(self._cleaned(images, time, noise) - images, masks, self.config.averaged)
            total += (difference.square() + self.config.floor).log()
        mean = (total / len(times)).exp()
        mean = self.posterior_factor() * mean if self.config.published_scale else mean.sqrt() / 2
        return self.frame.leave(mean, slices.images.shape) * slices.masks

    def reconstruct(self, slices: Slices, generator: torch.Generator) -> Tensor:
        """What the model takes the slice for at the middle level."""
        images, _ = self.frame.enter(slices.images, slices.masks)
        noise = slice_noise(slices.positions, images.shape, generator)
        cleaned = self._cleaned(2 * images - 1, float(self.times()[self.config.levels // 2]), noise)
        return self.frame.leave((cleaned + 1) / 2, slices.images.shape) * slices.masks


METHOD = Andi
