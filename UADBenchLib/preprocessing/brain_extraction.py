"""Which voxels are brain: given by the user, already extracted, or found by a network that does not depend on contrast.

The network was trained on heads synthesised with random contrast and on real T1w heads (``training.brain_extraction``),
after Hoopes et al. 2022 (SynthStrip). Its mask is what automatic and manual outlines of the intracranial brain are: the
hull with the CSF in the sulci. What it gives is checked (one piece, no holes, a plausible volume, not cut by the field
of view); doubt is said, never passed over.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from UADBenchLib.errors import InputError
from UADBenchLib.geometry import resample
from UADBenchLib.scan import Check, no_check

if TYPE_CHECKING:
    from UADBenchLib.networks.outline import OutlineNet

SMALLEST_BRAIN_ML, LARGEST_BRAIN_ML = 600.0, 1950.0
"""Plausible brain mask volumes: below lie cropped fields of view, above lie heads."""

WORK_MM = 2.0
"""Edge of the grid that the network works on."""

STEP = 16
"""Its sides are multiples of this when the network sees it."""

AIR, AIR_MM = 0.05, 20.0
"""What is darker than the first, of the head's brightest, may be air; the network is shown the second around a head."""

BEYOND_MM = 12.0
"""Where the field of view cuts a head, the network is shown its last slice again for this far. What ends at the border
looks like the end of the brain to it; where the head goes on for longer, masks run into the skull."""

SIZES = ("widths", "stem", "border", "layers")
"""What ``build_network`` takes, by the names that the metadata have."""

CERTAIN, DOUBTFUL = 0.7, 0.55
"""Certainty is 1 less the volume with probabilities between 0.1 and 0.9 as a share of the mask's. Good outlines
reach 0.7 to 0.8, since a border of a voxel is always doubtful; noise without a head reaches 0.4. Below the first the
head is turned, and a warning is given if that does not help; below the second there is no head."""

TURN = 20.0
"""By how many degrees a head is turned that may lie askew: in training heads were turned by up to 18."""

BRIGHT_RIM, BRIGHT_RIM_ML, RIM_MM = 1.1, 3.0, 8.0
"""Where grey and white matter are bright (T1w, FLAIR), no healthy tissue in the rim, as thick as the last says, is
brighter than what lies deep by more than the first factor: 26 heads measure less than the second of it, one with fat in
it more."""

FAT = 1.05
"""What is brighter than the deep brain by this factor, and thick, may be fat."""

SMOOTHED_MM, NEAR_FAT_MM = 3.0, 15.0
"""Where fat was taken out of a mask, tongues thinner than twice the first go too, as far from it as the second."""


@dataclass(frozen=True)
class BrainMask:
    """A mask on the scan's grid, where it came from (``given``, ``already extracted``, ``network``) and remarks."""

    mask: np.ndarray
    source: str
    checks: tuple[Check, ...] = ()


def find_brain(
    voxels: np.ndarray,
    affine: np.ndarray,
    given: np.ndarray | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> BrainMask:
    """Return the brain mask of a scan in canonical orientation.

    Parameters
    ----------
    voxels : numpy.ndarray
        Shape (I, J, K), axes closest to R, A, S; any contrast.
    affine : numpy.ndarray
        Voxel index to RAS mm.
    given : numpy.ndarray, optional
        Boolean mask on the same grid; taken as it is.
    check : callable, optional
        Called often; what it raises ends the work.

    Raises
    ------
    InputError
        ``BRAIN_MASK_EMPTY`` or ``BRAIN_MASK_FAILED``.
    """
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000.0
    if given is not None:
        if not given.any():
            raise InputError("BRAIN_MASK_EMPTY", "the brain mask given holds no voxel", "give a mask of this scan")
        return BrainMask(given, "given", _volume_checks(given.sum() * voxel_ml))
    stripped = extracted_already(voxels, voxel_ml)
    if stripped is not None:
        return BrainMask(stripped, "already extracted", _volume_checks(stripped.sum() * voxel_ml))
    work, grid = to_work_grid(voxels, affine)
    probability, near, certainty = _outline(work, check=check)
    volume = (near & (probability > 0.5)).sum() * WORK_MM**3 / 1000.0
    if volume < SMALLEST_BRAIN_ML / 2 or certainty < DOUBTFUL:
        raise InputError(
            "BRAIN_MASK_FAILED",
            f"no brain was found in this head ({volume:.0f} ml with a certainty of {certainty:.2f})",
            "check that this is a head and its orientation, or give a brain mask with --brain-mask",
        )
    inside = near & (probability > 0.5)
    trimmed, remarks = _without_fat(work, inside)
    near &= trimmed | ~inside
    mask = resample(np.where(near, probability, 0), grid, voxels.shape, affine, order=1) > 0.5
    return BrainMask(mask, "network", (*_doubts(certainty), *remarks, *_volume_checks(mask.sum() * voxel_ml)))


def extracted_already(voxels: np.ndarray, voxel_ml: float) -> np.ndarray | None:
    """Return the mask of a scan whose background was set to one value, or None for a whole head."""
    from scipy.ndimage import binary_fill_holes, label

    corner = voxels[0, 0, 0]
    inside = voxels != corner
    if 1.0 - inside.mean() < 0.2:  # a head fills the field of view with noise; an extracted brain leaves exact zeros
        return None
    parts, count = label(inside)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    largest = parts == (1 + int(sizes.argmax()))
    volume = largest.sum() * voxel_ml
    if not SMALLEST_BRAIN_ML <= volume <= LARGEST_BRAIN_ML or sizes.max() < 0.95 * sizes.sum():
        return None
    return binary_fill_holes(largest)


def _outline(work: np.ndarray, *, check: Callable[[], None] | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """How probably each voxel of a head on the work grid is brain, and what ``_one_piece`` says of that. Where it is
    uncertain a head may lie askew: it is turned about one axis after the other, and what makes it more certain stays.
    """
    from scipy.spatial.transform import Rotation

    probability = brain_probability(work, check=check)
    best = (probability, *_one_piece(probability))
    turn, upright = np.eye(3), np.eye(4)
    wide = np.array(work.shape) + STEP  # so that a head that fills the work grid stays in the turned one
    for axis, degrees in itertools.product("xyz", (TURN, -TURN)):
        if not DOUBTFUL <= best[2] < CERTAIN:  # of many views of what is no head, one might pass for a brain
            break
        further = np.eye(4)  # from an index of the turned grid to one of the work grid
        further[:3, :3] = turn @ Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        further[:3, 3] = (np.array(work.shape) - 1) / 2 - further[:3, :3] @ ((wide - 1) / 2)
        seen = brain_probability(resample(work, upright, tuple(wide), further, order=1), check=check)
        probability = resample(seen, further, work.shape, upright, order=1)
        outline = (probability, *_one_piece(probability))
        if outline[2] > best[2]:
            best, turn = outline, further[:3, :3]
    return best


def brain_probability(work: np.ndarray, *, check: Callable[[], None] | None = None) -> np.ndarray:
    """Return how probably each voxel of a head on the work grid (``to_work_grid``) is brain, float32 in [0, 1].

    The network sees the head with as much air around it as the heads that it was trained on had: it normalises over all
    that it sees, and in a wide field of view it would take skull for brain.
    """
    import torch

    check = check or no_check
    network = _network()
    check()
    frame = frame_of(work)
    # A forward pass takes a second or two: look between its blocks whether somebody wants to stop.
    hooks = [module.register_forward_pre_hook(lambda *_: check()) for module in network.modules()]
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=_bfloat16()):
            image = torch.from_numpy(frame.show(work))[None, None]
            # Heads are nearly symmetric: the mirror image is a second opinion at no cost in training.
            logits = network(image).float() + network(image.flip(2)).float().flip(2)
    finally:
        for hook in hooks:
            hook.remove()
    return frame.back(torch.sigmoid(logits / 2)[0, 0].numpy(), work)


@dataclass(frozen=True)
class Frame:
    """What the network is shown of a head on the work grid: a box of it, and by how many voxels each side of that is
    continued with its last slice."""

    box: tuple[slice, ...]
    pads: tuple[tuple[int, int], ...]

    def show(self, volume: np.ndarray) -> np.ndarray:
        """The part of a volume on the work grid that is shown, its sides multiples of ``STEP``."""
        seen = np.pad(volume[self.box], self.pads, mode="edge")
        return np.pad(seen, [(0, -side % STEP) for side in seen.shape])

    def back(self, seen: np.ndarray, work: np.ndarray) -> np.ndarray:
        """What was made of ``show(work)``, on the work grid; 0 where nothing was shown."""
        result = np.zeros_like(work)
        place = tuple(slice(first, first + n) for (first, _), n in zip(self.pads, result[self.box].shape, strict=True))
        result[self.box] = seen[place]
        return result


def frame_of(work: np.ndarray) -> Frame:
    """The box around the largest thing in a head on the work grid, with ``AIR_MM`` on each side where there is that
    much, and continued by ``BEYOND_MM`` where the field of view cuts it. Below it is not: the network knows heads that
    end at the neck."""
    from scipy.ndimage import binary_opening, find_objects, label

    parts, count = label(binary_opening(work > AIR))
    if count == 0:
        return Frame((slice(None),) * 3, ((0, 0),) * 3)
    head = find_objects(parts)[int(np.bincount(parts.ravel())[1:].argmax())]
    air, beyond = round(AIR_MM / WORK_MM), round(BEYOND_MM / WORK_MM)
    box, pads = [], []
    for axis, (side, n) in enumerate(zip(head, work.shape, strict=True)):
        box.append(slice(max(0, side.start - air), min(n, side.stop + air)))
        pads.append((beyond if side.start == 0 and axis < 2 else 0, beyond if side.stop == n else 0))
    return Frame(tuple(box), tuple(pads))


def to_work_grid(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring a scan in canonical orientation to the network's grid and range.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        float32 in [0, 1] (the lowest value to 0, the 99.5th percentile of what lies above the mean to 1), which covers
        the field of view and no more than a voxel beyond; and the affine.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(np.ceil(n - 1e-3)) for n in np.array(voxels.shape) * edges / WORK_MM)
    grid = affine.copy()
    grid[:3, :3] = affine[:3, :3] / edges * WORK_MM
    middle = affine @ [*((np.array(voxels.shape) - 1) / 2), 1.0]
    grid[:3, 3] = middle[:3] - grid[:3, :3] @ ((np.array(shape) - 1) / 2)
    # With a margin of a voxel around the scan: what lies outside counts as 0 and would darken the border.
    margin = affine.copy()
    margin[:3, 3] -= affine[:3, :3].sum(axis=1)
    work = resample(np.pad(voxels, 1, mode="edge"), margin, shape, grid, order=1, antialias=True) - float(voxels.min())
    above = work[work > work.mean()]
    high = float(np.percentile(above, 99.5)) if above.size else 1.0
    return np.clip(work / max(high, 1e-6), 0, 1).astype(np.float32), grid


def network_folder() -> Path:
    """Folder of the network's weights and metadata: beside the package (source tree, extension) or in it (wheel)."""
    package = Path(__file__).resolve().parent.parent
    places = [package.parent / "Resources" / "BrainExtraction", package / "Resources" / "BrainExtraction"]
    return next((place for place in places if place.is_dir()), places[0])


@lru_cache(maxsize=1)
def _network() -> OutlineNet:
    """The trained network, in evaluation mode.

    Raises
    ------
    InputError
        ``BRAIN_EXTRACTION_DAMAGED`` when the installation lacks it or its checksum does not match.
    """
    from safetensors.torch import load_file

    folder = network_folder()
    try:
        metadata: dict[str, Any] = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        file = folder / "models" / "model.safetensors"
        if hashlib.sha256(file.read_bytes()).hexdigest() != metadata["sha256"]:
            raise ValueError("checksum")
        network = build_network(**{name: metadata["config"][name] for name in SIZES})
        network.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            "BRAIN_EXTRACTION_DAMAGED",
            f"the weights of the brain extraction cannot be used ({type(error).__name__})",
            "install uadbench again, or give a brain mask with --brain-mask",
        ) from error
    return network.eval().requires_grad_(False)


def build_network(widths: Sequence[int], stem: int, border: int, layers: int) -> OutlineNet:
    """The untrained network: logits of brain on the work grid."""
    from UADBenchLib.networks.outline import OutlineNet

    return OutlineNet(tuple(widths), stem, border, layers)


def _bfloat16() -> bool:
    """Whether this processor computes faster in bfloat16."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


def _one_piece(probability: np.ndarray) -> tuple[np.ndarray, float]:
    """Fill the holes of the largest piece in ``probability``; return where that piece may be, and how certain it is."""
    from scipy.ndimage import binary_dilation, binary_fill_holes, label

    parts, count = label(probability > 0.5)
    if count == 0:
        return np.zeros(probability.shape, dtype=bool), 0.0
    largest = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    filled = binary_fill_holes(largest)
    near = binary_dilation(filled, iterations=3)
    doubtful = (probability > 0.1) & (probability < 0.9) & near
    probability[filled & ~largest] = 1.0
    # What lies beyond the border keeps its small probabilities: they place the border between the voxels.
    return near, 1.0 - float(doubtful.sum() / max(1, filled.sum()))


def _doubts(certainty: float) -> tuple[Check, ...]:
    if certainty >= CERTAIN:
        return ()
    return (
        Check(
            "warning",
            "BRAIN_MASK_UNCERTAIN",
            f"the outline of the brain is uncertain ({1 - certainty:.0%} of its volume is doubtful)",
            "look at the mask; give a better one with --brain-mask",
        ),
    )


def _brightest(work: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    """How bright the brain in a head on the work grid can be, and what of the mask's rim is brighter: nothing if that
    is little, or if fluid is brightest, since bright sulci are healthy then."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(mask, sampling=WORK_MM)
    if not (depth > 12).any():
        return np.inf, np.zeros_like(mask)
    middle, high = np.percentile(work[depth > 12], (50, 99.5))
    rim = mask & (depth <= RIM_MM) & (work > BRIGHT_RIM * high)
    if middle < 0.6 * high or _ml(rim) < BRIGHT_RIM_ML:
        return np.inf, np.zeros_like(mask)
    return float(high), rim


def _ml(mask: np.ndarray) -> float:
    return np.count_nonzero(mask) * WORK_MM**3 / 1000.0


def _without_fat(work: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[Check, ...]]:
    """Take the fat out of the rim of a mask: what is brighter than a brain can be and belongs to something thick that
    lies outside the mask for two thirds at least, as the fat of the orbits does; what enhances at the surface of the
    brain lies in the mask. Return the mask, and what is to be said of its rim."""
    from scipy.ndimage import binary_dilation, binary_fill_holes, binary_opening, binary_propagation, label
    from scipy.ndimage import distance_transform_edt as distance

    high, rim = _brightest(work, mask)
    if not rim.any():
        return mask, ()
    # The marrow of the skull, which could lead from fat to a tumour, is thin.
    bright = work > FAT * high
    thick, count = label(binary_opening(bright))
    within, without = (np.bincount(thick[where], minlength=count + 1) for where in (mask, ~mask))
    fat = np.isin(thick, 1 + np.flatnonzero(without[1:] >= 2 * within[1:]))
    fat = binary_dilation(fat, mask=bright, iterations=2)
    fat = binary_propagation(fat & ~mask, mask=fat) & mask
    if not fat.any():
        return mask, _rim_checks(rim)
    away = distance(~fat, sampling=WORK_MM)
    kept = mask & (away > 1.5 * WORK_MM)  # voxels beside it are partly fat
    core = distance(kept, sampling=WORK_MM) > SMOOTHED_MM
    kept &= (away > NEAR_FAT_MM) | (distance(~core, sampling=WORK_MM) <= SMOOTHED_MM + 0.5 * WORK_MM)
    parts, _ = label(kept)
    kept = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[:, 1, 1] = flat[1, :, 1] = True
    kept = mask & binary_fill_holes(kept, flat)  # level by level: vessels at the skull base are no fat
    taken = Check(
        "warning",
        "BRAIN_MASK_TRIMMED",
        f"{_ml(mask & ~kept):.0f} ml at the rim of the brain mask were taken for fat that reaches in from outside, and "
        "left out of it",
        "look at the mask, since nothing is found outside it; give a better one with --brain-mask",
    )
    return kept, (taken, *_rim_checks(_brightest(work, kept)[1]))


def _rim_checks(rim: np.ndarray) -> tuple[Check, ...]:
    """The warning for a mask with a rim that is brighter than a brain of its contrast can be."""
    if not rim.any():
        return ()
    return (
        Check(
            "warning",
            "BRAIN_MASK_RIM",
            f"{_ml(rim):.0f} ml at the rim of the brain mask are brighter than all tissue deeper in: fat from outside "
            "the brain may lie in it, or contrast agent at its surface",
            "do not trust findings at the rim; look at the mask, or give a better one with --brain-mask",
        ),
    )


def _volume_checks(volume_ml: float) -> tuple[Check, ...]:
    if SMALLEST_BRAIN_ML <= volume_ml <= LARGEST_BRAIN_ML:
        return ()
    return (
        Check(
            "warning",
            "BRAIN_VOLUME",
            f"the brain mask holds {volume_ml:.0f} ml; {SMALLEST_BRAIN_ML:.0f} to {LARGEST_BRAIN_ML:.0f} ml is usual",
            "look at the mask; give a better one with --brain-mask",
        ),
    )
