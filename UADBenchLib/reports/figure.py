"""The picture of a detection: slices of the scan, and below them each model's map and outline.

Only voxels of the brain mask are drawn, so no face can be recognised. Colours are safe for colour-blind
readers and stand for the same z in every picture; the page around the picture is ``detection``'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from UADBenchLib.evaluation.metrics import dice
from UADBenchLib.geometry import canonical
from UADBenchLib.scan import Scan
from UADBenchLib.writing import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from UADBenchLib.inference.detector import Detection

Z_RANGE = (0.0, 10.0)
COLUMNS = 5
MODELS = 4
LEAST_GAP_MM = 8.0
MASK_COLOUR = "#56b4e9"
REFERENCE_COLOUR = "#ffffff"
CONVENTION = "Radiological convention: the patient's right is on the left of each slice."
_AXIS_NAMES = (("R", "sagittal"), ("A", "coronal"), ("S", "axial"))


@dataclass
class _View:
    """How a canonical volume is cut: across ``axis``, at ``slices``, shown within ``box``."""

    axis: int
    slices: list[int]
    box: tuple[slice, slice]
    affine: np.ndarray
    centre: np.ndarray

    def cut(self, volume: np.ndarray, index: int) -> np.ndarray:
        """Return a slice as an image: superior (axial: anterior) up, right (sagittal: anterior) left."""
        whole: list[slice | int] = [slice(None)] * 3
        whole[self.axis] = index
        return volume[tuple(whole)][self.box].T[::-1, ::-1]

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        edges = np.delete(np.linalg.norm(self.affine[:3, :3], axis=0), self.axis)
        return float(edges[1] / edges[0])

    def title(self, index: int) -> str:
        """Return the place of a slice through the middle of the brain, in millimetres."""
        voxel = self.centre.copy()
        voxel[self.axis] = index
        position = (self.affine[:3, :3] @ voxel + self.affine[:3, 3])[self.axis]
        return f"{_AXIS_NAMES[self.axis][0]} {position:+.0f} mm"

    @property
    def sides(self) -> tuple[str, str]:
        """Letters for the left and the right edge of a slice."""
        return ("A", "P") if self.axis == 0 else ("R", "L")

    @property
    def plane(self) -> str:
        """Name of the plane."""
        return _AXIS_NAMES[self.axis][1]


def detection_figure(
    path: str | Path, scan: Scan, detections: list[Detection], reference: np.ndarray | None = None
) -> Path:
    """Write a PNG of one scan and what the models flagged in it.

    The first row is the scan, with the outline of the reference where there is one; each further row is a
    model: the map in colour above the threshold, the outline of its mask, and the reference again. Slices lie
    across the axis with the thickest voxels (axial for isotropic ones) through the highest findings of all
    models, at least 8 mm apart.

    Parameters
    ----------
    path : path-like
        Ends in ``.png``; written atomically.
    scan : Scan
        Shape (I, J, K), any orientation.
    detections : list of Detection
        Of this scan; the first four models are shown, and the consensus if there is one.
    reference : numpy.ndarray, optional
        Shape (I, J, K); non-zero is lesion.

    Returns
    -------
    pathlib.Path
        ``path``.

    Raises
    ------
    ValueError
        If there is no detection or the brain mask is empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not detections:
        raise ValueError("there is no detection to draw")
    shown = [one for one in detections if one.model != "consensus"][:MODELS]
    shown += [one for one in detections if one.model == "consensus"][:1]
    volumes = _canonical_volumes(scan, shown, reference)
    view = _view(volumes)
    figure, grid = _layout(view, len(shown) + 1)
    for column, index in enumerate(view.slices):
        for row in range(len(shown) + 1):
            _panel(grid[row][column], view, volumes, index, None if row == 0 else row - 1, shown)
        grid[0][column].set_title(view.title(index), fontsize=8, pad=3)
    _row_labels(figure, grid, scan, shown, volumes)
    _key(figure, view, reference is not None)
    FigureCanvasAgg(figure)
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Path(path)


def _canonical_volumes(scan: Scan, shown: list[Detection], reference: np.ndarray | None) -> dict[str, Any]:
    """Return every array that is drawn in canonical orientation, with the affine they share."""

    def turned(array: np.ndarray) -> np.ndarray:
        return canonical(np.asarray(array), scan.affine)[0]

    voxels, affine = canonical(scan.voxels, scan.affine)
    brain = turned(shown[0].brain_mask) != 0
    if not brain.any():
        raise ValueError("the brain mask is empty")
    low, high = np.percentile(voxels[brain], (1.0, 99.5))
    return {
        "scan": voxels,
        "window": (low - 0.15 * (high - low), high),
        "affine": np.asarray(affine, dtype=np.float64),
        "brain": brain,
        "maps": [turned(one.map) for one in shown],
        "masks": [turned(one.mask) != 0 for one in shown],
        "reference": None if reference is None else turned(reference) != 0,
    }


def _view(volumes: dict[str, Any]) -> _View:
    """Choose plane, slices and the box around the brain."""
    affine, brain = volumes["affine"], volumes["brain"]
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    axis = int(np.argmax(edges)) if edges.max() > 1.5 * edges.min() else 2
    where = [np.flatnonzero(brain.any(axis=tuple(np.delete(range(3), side)))) for side in range(3)]
    margins = np.ceil(4.0 / edges).astype(int)
    box = tuple(
        slice(max(0, int(where[side][0] - margins[side])), int(where[side][-1] + margins[side] + 1))
        for side in range(3)
        if side != axis
    )
    centre = np.array([(side[0] + side[-1]) / 2 for side in where])
    slices = _slices(volumes, axis, float(edges[axis]), where[axis])
    return _View(axis, slices, box, affine, centre)  # type: ignore[arg-type]


def _slices(volumes: dict[str, Any], axis: int, edge_mm: float, inside: np.ndarray) -> list[int]:
    """Return up to ``COLUMNS`` slice numbers, ascending: the reference's largest, then the highest scores."""
    other = tuple(side for side in range(3) if side != axis)
    wanted: list[int] = []
    gap = max(1, round(LEAST_GAP_MM / edge_mm))

    def add(candidates: np.ndarray, limit: int) -> None:
        for index in candidates:
            if len(wanted) < limit and all(abs(int(index) - taken) >= gap for taken in wanted):
                wanted.append(int(index))

    if volumes["reference"] is not None:
        area = volumes["reference"].sum(axis=other)
        add(np.argsort(-area, kind="stable")[: int(np.count_nonzero(area))], 2)
    flagged = [
        np.where(mask, scores, 0).max(axis=other)
        for scores, mask in zip(volumes["maps"], volumes["masks"], strict=True)
    ]
    peaks = np.max(flagged, axis=0)
    add(np.argsort(-peaks, kind="stable")[: int(np.count_nonzero(peaks))], COLUMNS)
    # What is left is spread over the brain: a picture without findings shows that it was looked at.
    add(np.quantile(inside, np.linspace(0.25, 0.8, 4 * COLUMNS)[::3]).astype(int), COLUMNS)
    return sorted(wanted)


def _layout(view: _View, rows: int) -> tuple[Figure, list[list[Axes]]]:
    """Return an empty figure with a black panel for each row and slice, in the slices' shape."""
    from matplotlib.figure import Figure

    columns = len(view.slices)
    heights = [part.stop - part.start for part in view.box]
    ratio = heights[1] * view.aspect / heights[0]
    width = 1.75
    label, top, bottom, gap = 1.25, 0.28, 0.86, 0.04
    size = (label + columns * (width + gap) + 0.06, top + rows * (width * ratio + gap) + bottom)
    figure = Figure(figsize=size)
    grid = []
    for row in range(rows):
        line = []
        for column in range(columns):
            left = label + column * (width + gap)
            low = bottom + (rows - 1 - row) * (width * ratio + gap)
            axes = figure.add_axes((left / size[0], low / size[1], width / size[0], width * ratio / size[1]))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_facecolor("black")
            for spine in axes.spines.values():
                spine.set_visible(False)
            line.append(axes)
        grid.append(line)
    return figure, grid


def _panel(
    axes: Axes, view: _View, volumes: dict[str, Any], index: int, model: int | None, shown: list[Detection]
) -> None:
    """Draw one slice: the scan, and with a model its map and outlines."""
    brain = view.cut(volumes["brain"], index)
    low, high = volumes["window"]
    picture = np.where(brain, np.clip((view.cut(volumes["scan"], index) - low) / max(high - low, 1e-6), 0, 1), 0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=view.aspect, interpolation="nearest")
    if model is not None:
        scores = view.cut(volumes["maps"][model], index)
        hidden = ~(brain & (scores > max(shown[model].threshold, Z_RANGE[0])))
        layer = np.ma.masked_where(hidden, scores)
        axes.imshow(
            layer,
            cmap="inferno",
            vmin=Z_RANGE[0],
            vmax=Z_RANGE[1],
            aspect=view.aspect,
            interpolation="nearest",
            alpha=0.85,
        )
        _outline(axes, view.cut(volumes["masks"][model], index), MASK_COLOUR, "solid")
    if volumes["reference"] is not None:
        _outline(axes, view.cut(volumes["reference"], index), REFERENCE_COLOUR, (0, (2.2, 1.2)))
    for x, letter, side in ((0.02, view.sides[0], "left"), (0.98, view.sides[1], "right")):
        axes.text(x, 0.97, letter, transform=axes.transAxes, color="white", fontsize=7, ha=side, va="top")


def _outline(axes: Axes, inside: np.ndarray, colour: str, style: Any) -> None:
    """Draw the outline of a mask with a dark rim, so that it shows on dark and on bright."""
    from matplotlib.patheffects import Normal, Stroke

    if not inside.any():
        return
    axes.set_autoscale_on(False)
    # A rim of zeros closes outlines at the edge of the picture.
    padded = np.pad(inside, 1).astype(np.float32)
    x, y = np.arange(-1, inside.shape[1] + 1), np.arange(-1, inside.shape[0] + 1)
    lines = axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=[style])
    lines.set(path_effects=[Stroke(linewidth=1.9, foreground="black", alpha=0.7), Normal()])


def _row_labels(
    figure: Figure, grid: list[list[Axes]], scan: Scan, shown: list[Detection], volumes: dict[str, Any]
) -> None:
    """Name each row, with the threshold and, where there is a reference, the Dice of the model."""
    texts = [(scan.contrast or "Scan", ["input scan"])]
    for number, one in enumerate(shown):
        lines = [f"z > {one.threshold:.2f}", f"{len(one.findings)} finding{'s' * (len(one.findings) != 1)}"]
        if volumes["reference"] is not None:
            overlap = dice(volumes["masks"][number], volumes["reference"])
            lines.append("Dice undefined" if np.isnan(overlap) else f"Dice {overlap:.2f}")
        texts.append((one.model, lines))
    for axes, (name, lines) in zip((row[0] for row in grid), texts, strict=True):
        place = axes.get_position()
        middle, right = (place.y0 + place.y1) / 2, place.x0 - 0.08 / figure.get_figwidth()
        # A model's id is broken at its hyphens: the label column is narrow.
        parts = _broken(name)
        style = {"ha": "right", "va": "center", "linespacing": 1.25}
        height = 0.14 / figure.get_figheight()
        shift = height * len(lines) / 2
        figure.text(right, middle + shift, "\n".join(parts), fontsize=8, fontweight="bold", **style)
        low = middle + shift - height * (len(parts) / 2 + len(lines) / 2 + 0.3)
        figure.text(right, low, "\n".join(lines), fontsize=7, color="#444444", **style)


def _broken(name: str) -> list[str]:
    """Return an id in lines of at most some 14 characters, broken after hyphens and underscores."""
    lines = [""]
    for part in name.replace("_", "_\0").replace("-", "-\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > 15:
            lines.append("")
        lines[-1] += part
    return lines


def _key(figure: Figure, view: _View, with_reference: bool) -> None:
    """Draw colour bar, legend and the statement of the convention below the panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    bar = figure.add_axes((1.25 / width, 0.60 / height, 2.4 / width, 0.11 / height))
    colours = ScalarMappable(Normalize(*Z_RANGE), "inferno")
    figure.colorbar(colours, cax=bar, orientation="horizontal", extend="max", ticks=range(0, 11, 2))
    bar.tick_params(labelsize=7, length=2, pad=2)
    bar.set_xlabel("anomaly map, z (drawn above the threshold)", fontsize=7, labelpad=2)
    entries = [Line2D([], [], color=MASK_COLOUR, linewidth=2, label="outline of the findings")]
    if with_reference:
        entries.append(Line2D([], [], color="#ffffff", linewidth=2, linestyle=(0, (2.2, 1.2)), label="reference"))
    legend = figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(4.0 / width, 0.80 / height), fontsize=7, ncols=2,
        facecolor="#303030", edgecolor="none", labelcolor="white", borderpad=0.6, handlelength=2.4,
    )  # fmt: skip
    legend.set_zorder(5)
    side = CONVENTION if view.axis != 0 else "Anterior is on the left of each slice."
    figure.text(
        4.07 / width, 0.36 / height, f"{view.plane.capitalize()} slices, positions in RAS mm.\n{side}",
        fontsize=7, color="#444444", va="center",
    )  # fmt: skip
