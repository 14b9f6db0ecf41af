"""Structural similarity of images and feature maps: SSIM (Wang et al. 2004) and gradient magnitude similarity (Xue et
al. 2014), as maps, for losses and scores alike."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which mixed precision is off."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


def ssim_map(
    first: Tensor, second: Tensor, *, window: int = 11, sigma: float = 1.5, padded: bool = False, unit: float = 1.0
) -> Tensor:
    """Return the SSIM (N, C, H', W') of two maps (N, C, H, W), channel by channel, in [-1, 1].

    Parameters
    ----------
    window, sigma : int, float
        Side and standard deviation of the Gaussian window, in pixels.
    padded : bool
        Pad with zeros to keep H and W; otherwise the borders are left out.
    unit : float
        Range of the values, which the stabilising constants belong to.
    """
    with full_precision(first.device):  # variances are small differences of large numbers
        first, second = first.float(), second.float()
        down, across = (_band(size, window, sigma, padded, first.device) for size in first.shape[-2:])

        def smooth(values: Tensor) -> Tensor:
            return torch.matmul(down, values) @ across.T

        mean1, mean2 = smooth(first), smooth(second)
        squares1, squares2, product = mean1**2, mean2**2, mean1 * mean2
        c1, c2 = (0.01 * unit) ** 2, (0.03 * unit) ** 2
        spread = (smooth(first**2) - squares1).clamp(min=0) + (smooth(second**2) - squares2).clamp(min=0)
        shared = smooth(first * second) - product
        return (2 * product + c1) * (2 * shared + c2) / ((squares1 + squares2 + c1) * (spread + c2))


def _band(size: int, window: int, sigma: float, padded: bool, device: torch.device) -> Tensor:
    """The matrix that takes a line of ``size`` values to its Gaussian means."""
    places = torch.arange(size, device=device)
    centres = places if padded else places[window // 2 : size - window // 2]
    offsets = places[None] - centres[:, None]
    one = torch.exp(-((torch.arange(window, device=device) - window // 2) ** 2) / (2 * sigma**2)).sum()
    return torch.exp(-(offsets**2) / (2 * sigma**2)) / one * (offsets.abs() <= window // 2)


GMS_CONSTANT = 0.0026


def gradient_similarity_maps(first: Tensor, second: Tensor, scales: int = 4) -> list[Tensor]:
    """Return the gradient magnitude similarity of two images (N, 1, H, W) in [0, 1] at ``scales`` resolutions, each
    half of the one before and two pixels smaller than the image there."""
    maps = []
    for scale in range(scales):
        if scale:
            first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        steep1, steep2 = _gradient(first.float()), _gradient(second.float())
        maps.append((2 * steep1 * steep2 + GMS_CONSTANT) / (steep1**2 + steep2**2 + GMS_CONSTANT))
    return maps


def _gradient(images: Tensor) -> Tensor:
    """Magnitude of the Prewitt gradient, borders left out."""
    with full_precision(images.device):
        edge = images.new_tensor([1.0, 0.0, -1.0]).expand(3, 3) / 3
        across = F.conv2d(images, edge[None, None])
        down = F.conv2d(images, edge.T[None, None])
        return (across**2 + down**2 + 1e-12).sqrt()
