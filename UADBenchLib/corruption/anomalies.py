"""Synthetic anomalies in disentangled parts, after DISYRE v2 (Naval Marimont et al. 2024): shape, texture and
intensity.

A shape is a soft mask in the brain; texture blends in a patch of a foreign slice, intensity makes tissue in the mask
darker or brighter. Each has a random strength; the largest is the strength of the corruption. Shapes come from one
smooth formula (rectangle, ellipse and blob are three settings of it), so that a batch is drawn without a loop and
without a library of stored shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from UADBenchLib.corruption.augmentation import normal, pick, uniform


@dataclass(frozen=True)
class ShapeRange:
    """What shapes may look like: radii in pixels, shapes in a slice at most, share of the edge that is soft."""

    radius: tuple[float, float] = (2.0, 20.0)
    most: int = 3
    softness: tuple[float, float] = (0.05, 0.6)


LEVELS = 5
"""Tissues that ``with_anomalies`` tells apart, evenly by intensity."""


def with_anomalies(images: Tensor, masks: Tensor, generator: torch.Generator, clean: float = 0.2) -> Tensor:
    """Return slices (N, 1, X, Y) with anomalies of every size, texture and strength; a share ``clean`` of them stays as
    it is."""
    shape = draw_shapes(masks, generator, ShapeRange())
    if clean:
        dirty = uniform(len(images), 0, 1, generator, images.device) >= clean
        shape = shape * dirty[:, None, None, None]
    textured, _ = foreign_texture(images, shape, generator)
    levels = torch.linspace(0.1, 0.9, LEVELS, device=images.device)
    return intensity_bias(textured, shape, generator, levels)[0] * masks


def draw_shapes(masks: Tensor, generator: torch.Generator, shapes: ShapeRange) -> Tensor:
    """Return soft masks (N, 1, X, Y) in [0, 1] within ``masks``; one to ``shapes.most`` shapes a slice."""
    count = len(masks)
    number = torch.randint(1, shapes.most + 1, (count,), generator=generator).to(masks.device)
    result = torch.zeros(masks.shape, device=masks.device)
    for index in range(shapes.most):
        wanted = (index < number)[:, None, None, None]
        result = torch.maximum(result, _one_shape(masks, generator, shapes) * wanted)
    return result * masks


def _one_shape(masks: Tensor, generator: torch.Generator, shapes: ShapeRange) -> Tensor:
    (count, _, height, width), device = masks.shape, masks.device
    centre = random_pixels(masks, generator)
    low, high = shapes.radius
    # Log-uniform radii: as many small lesions as large ones.
    radius = torch.exp(uniform(count, 0, math.log(high / low), generator, device)) * low
    aspect = torch.exp(uniform(count, -0.6, 0.6, generator, device))
    angle = uniform(count, 0, torch.pi, generator, device)
    y = torch.arange(height, device=device)[None, :, None] - centre[:, 0, None, None]
    x = torch.arange(width, device=device)[None, None, :] - centre[:, 1, None, None]
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    u = (cos * x + sin * y) / (radius * aspect)[:, None, None]
    v = (cos * y - sin * x) / (radius / aspect)[:, None, None]
    kind = torch.randint(3, (count,), generator=generator).to(device)[:, None, None]
    round_one = (u.square() + v.square()).sqrt()
    distance = torch.where(kind == 0, torch.maximum(u.abs(), v.abs()), round_one)
    small = normal((count, 1, 12, 14), generator, device)
    wobble = F.interpolate(small, (height, width), mode="bicubic", align_corners=False)[:, 0]
    distance = distance + torch.where(kind == 2, 0.45 * wobble, 0.0)
    soft = uniform(count, *shapes.softness, generator, device)[:, None, None]
    return ((1 - distance) / soft + 0.5).clamp(0, 1)[:, None]


def random_pixels(masks: Tensor, generator: torch.Generator) -> Tensor:
    """One random brain pixel of each slice as (N, 2) row and column; the centre of an empty slice."""
    height, width = masks.shape[-2:]
    weights = masks.flatten(1).float()
    index = pick(weights, 1, generator)[:, 0]
    index = torch.where(weights.any(dim=1), index, (height // 2) * width + width // 2)
    return torch.stack([index // width, index % width], dim=1).float()


def foreign_texture(images: Tensor, shape: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend another slice of the batch into ``shape``.

    The foreign slice is moved at random, smoothed flat in half of the batch (many lesions lose texture rather than gain
    it), and brought to the same mean inside the shape, so that only texture differs.

    Returns
    -------
    (Tensor, Tensor)
        Corrupted images, and the blending strength (N,) in [0.1, 1]; 0 where the foreign slice has no brain.
    """
    count, _, height, width = images.shape
    step = int(torch.randint(1, max(count, 2), (1,), generator=generator))
    shift = (
        int(torch.randint(-height // 4, height // 4, (1,), generator=generator)),
        int(torch.randint(-width // 4, width // 4, (1,), generator=generator)),
    )
    foreign = torch.roll(torch.roll(images, step, dims=0), shift, dims=(-2, -1))
    if torch.rand((), generator=generator) < 0.5:
        foreign = foreign.flip(-1)
    present = (foreign > 0).float()
    flat = F.avg_pool2d(foreign, 9, 1, 4) / F.avg_pool2d(present, 9, 1, 4).clamp(min=0.05) * present
    flatten = uniform(count, 0, 1, generator, images.device) < 0.5
    foreign = torch.where(flatten[:, None, None, None], flat, foreign)
    usable = shape * present
    area = usable.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-3)
    own = (images * usable).sum(dim=(-2, -1), keepdim=True) / area
    other = (foreign * usable).sum(dim=(-2, -1), keepdim=True) / area
    strength = uniform(count, 0.1, 1, generator, images.device)
    strength = strength * (usable.flatten(1).sum(1) > 1)
    alpha = strength[:, None, None, None] * usable
    return images + alpha * ((foreign - other + own).clamp(0, 1.5) - images), strength


def intensity_bias(
    images: Tensor, shape: Tensor, generator: torch.Generator, levels: Tensor, largest: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Make some tissues in ``shape`` darker or brighter.

    Slices are quantised to ``levels`` (K,); a level is changed with a probability that grows with its share of the
    shape, all when none was chosen, so that a lesion may spare one tissue.

    Returns
    -------
    (Tensor, Tensor)
        Corrupted images, and the change (N,) in units of prepared intensity.
    """
    count = len(images)
    nearest = (images - levels[:, None, None, None, None]).abs().argmin(dim=0)
    one_hot = F.one_hot(nearest[:, 0], len(levels)).permute(0, 3, 1, 2).float()
    inside = (one_hot * shape).sum(dim=(-2, -1))
    chance = inside / (inside.sum(dim=1, keepdim=True) + 20)
    chosen = (torch.rand(count, len(levels), generator=generator).to(images.device) < chance).float()
    chosen = torch.where(chosen.any(dim=1, keepdim=True), chosen, 1.0)
    tissue = F.avg_pool2d((one_hot * chosen[:, :, None, None]).sum(dim=1, keepdim=True), 3, 1, 1)
    strength = uniform(count, 0.02, largest, generator, images.device)
    sign = torch.where(uniform(count, 0, 1, generator, images.device) < 0.5, -1.0, 1.0)
    change = (sign * strength)[:, None, None, None] * shape * tissue
    return (images + change).clamp(0, 1.5), strength


def tissue_levels(values: Tensor, count: int = 5, rounds: int = 20) -> Tensor:
    """Return ``count`` sorted intensity levels of the brain by k-means on ``values`` (any shape), started at
    quantiles."""
    from sklearn.cluster import KMeans

    start = torch.quantile(values, (torch.arange(count) + 0.5) / count).numpy()[:, None]
    fitted = KMeans(count, init=start, n_init=1, max_iter=rounds).fit(values.reshape(-1, 1).numpy())
    return torch.as_tensor(fitted.cluster_centers_[:, 0]).float().sort().values
