"""Structural similarity of images and feature maps: SSIM (Wang et al. 2004) and gradient magnitude similarity (Xue et
al. 2014), as maps, for losses and scores alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    first, second = first.float(), second.float()
    channels = first.shape[1]
    offsets = torch.arange(window, device=first.device) - window // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(channels, 1, window)
    pad = window // 2 if padded else 0

    def smooth(values: Tensor) -> Tensor:
        values = F.conv2d(values, weights[..., None], padding=(pad, 0), groups=channels)
        return F.conv2d(values, weights[:, :, None], padding=(0, pad), groups=channels)

    mean1, mean2 = smooth(first), smooth(second)
    variance1, variance2 = smooth(first**2) - mean1**2, smooth(second**2) - mean2**2
    covariance = smooth(first * second) - mean1 * mean2
    c1, c2 = (0.01 * unit) ** 2, (0.03 * unit) ** 2
    luminance = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return luminance * (2 * covariance + c2) / (variance1.clamp(min=0) + variance2.clamp(min=0) + c2)


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
    edge = images.new_tensor([1.0, 0.0, -1.0]).expand(3, 3) / 3
    across = F.conv2d(images, edge[None, None])
    down = F.conv2d(images, edge.T[None, None])
    return (across**2 + down**2 + 1e-12).sqrt()
