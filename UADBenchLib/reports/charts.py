"""Charts of a benchmark report: each takes rows that have been computed elsewhere and returns a Matplotlib figure.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; every model also has a marker of its own, so
that a chart survives a black-and-white printer. Nothing is computed here but positions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SOFT, LINE = "#5b6675", "#d9dee5"
WIDTH = 10.0
PANEL = 3.0

Row = Mapping[str, Any]


def as_svg(figure: Figure) -> str:
    """The figure as an SVG document; the same figure gives the same text."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "uadbench"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.06, metadata={"Date": None})
    return buffer.getvalue().decode("utf-8")


def as_data_uri(svg: str) -> str:
    """An SVG document as an image that a page can hold."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def style_of(models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and marker of every model, in the order given; they repeat from the eighth on, in other pairs."""
    return {
        model: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        }
        for number, model in enumerate(models)
    }


def _panels(count: int, height: float = PANEL, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """An empty figure with ``count`` panels in rows, in the report's plain style."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns / max(columns, 2) if columns > 1 else 6.4, height * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [grid[number // columns][number % columns] for number in range(rows * columns)]
    for one in axes:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color(SOFT)
        one.tick_params(labelsize=8, color=SOFT, length=3)
        one.grid(True, axis="both", color=LINE, linewidth=0.6)
        one.set_axisbelow(True)
    for one in axes[count:]:
        one.set_visible(False)
    figure.set_layout_engine("constrained")
    return figure, axes[:count]


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    columns = min(4, len(handles))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _model_handles(styles: Mapping[str, Mapping[str, str]], line: str = "") -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], linestyle=line or "none", label=model, **style) for model, style in styles.items()]


def _offsets(count: int) -> np.ndarray:
    """Where the marks of several models stand beside one another, around 0 within a category of width 1."""
    return np.linspace(-0.3, 0.3, count) if count > 1 else np.zeros(1)


def _whisker(axes: Axes, x: float, row: Row, scale: float, style: Mapping[str, str], **more: Any) -> None:
    """A mean with its interval, upright."""
    if row["low"] is not None and np.isfinite(row["low"]):
        axes.plot([x, x], [scale * row["low"], scale * row["high"]], color=style["color"], linewidth=1.4, zorder=2)
    axes.plot([x], [scale * row["mean"]], linestyle="none", markersize=5.5, zorder=3, **style, **more)


def dice_chart(rows: Sequence[Row], styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Dice of each model in each set of scans: filled with interval at the estimated threshold, hollow at the best one.

    Parameters
    ----------
    rows : sequence of mapping
        ``set``, ``model``, ``mean``, ``low``, ``high``, ``optimal``, ``scans``.
    """
    from matplotlib.lines import Line2D

    figure, (axes,) = _panels(1, height=3.4)
    sets = list(dict.fromkeys(row["set"] for row in rows))
    figure.set_size_inches(min(WIDTH, 2.5 + 1.6 * len(sets)) if len(sets) < 5 else WIDTH, 3.6)
    offsets = dict(zip(styles, _offsets(len(styles)), strict=True))
    for row in rows:
        x, style = sets.index(row["set"]) + offsets[row["model"]], styles[row["model"]]
        _whisker(axes, x, row, 1, style)
        axes.plot([x], [row["optimal"]], linestyle="none", markersize=6.5, markerfacecolor="white", zorder=1.5, **style)
    counts = {name: max(row["scans"] for row in rows if row["set"] == name) for name in sets}
    axes.set_xticks(range(len(sets)), [f"{name}\nn = {counts[name]}" for name in sets])
    axes.set_xlim(-0.5, len(sets) - 0.5)
    axes.set_ylim(0, None)
    axes.grid(False, axis="x")
    axes.set_ylabel("Dice, mean over scans", fontsize=9)
    plain = {"linestyle": "none", "marker": "o", "color": SOFT}
    kinds = [
        Line2D([], [], label="estimated threshold, 95 % interval", **plain),
        Line2D([], [], label="best threshold of the set", markerfacecolor="white", **plain),
    ]
    _legend(figure, [*_model_handles(styles), *kinds])
    return figure


def precision_recall_chart(curves: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Voxel-wise precision against recall, pooled over lesion scans; a mark stands at the operating point.

    Parameters
    ----------
    curves : mapping
        By model: ``recall``, ``precision`` (arrays), ``prevalence``, and ``at`` (recall, precision) of the operating
        point.
    """
    figure, (axes,) = _panels(1, height=4.0)
    for model, curve in curves.items():
        axes.plot(curve["recall"], curve["precision"], color=styles[model]["color"], linewidth=1.6)
        axes.plot(*[[value] for value in curve["at"]], linestyle="none", markersize=7, **styles[model])
    prevalence = max(curve["prevalence"] for curve in curves.values())
    axes.axhline(prevalence, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    # On the left, where precision is far above it.
    axes.annotate("share of lesion voxels", (0.01, prevalence), (0, 3), textcoords="offset points", fontsize=8,
                  color=SOFT)  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall of lesion voxels", fontsize=9)
    axes.set_ylabel("precision", fontsize=9)
    _legend(figure, _model_handles(styles, "-"))
    return figure


def lesion_chart(panels: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Share of lesions found against their volume and contrast, in quarters of the lesions.

    Parameters
    ----------
    panels : sequence of mapping
        ``label``, ``logarithmic``, ``rows`` with ``model``, ``x``, ``mean``, ``low``, ``high``, ``rows``.
    """
    figure, all_axes = _panels(len(panels), height=3.3, columns=2)
    for axes, panel in zip(all_axes, panels, strict=True):
        for number, (model, style) in enumerate(styles.items()):
            own = [row for row in panel["rows"] if row["model"] == model]
            shift = _offsets(len(styles))[number] * 0.06
            x = [row["x"] * (1 + shift) for row in own]
            axes.plot(x, [row["mean"] for row in own], color=style["color"], linewidth=1.2)
            for place, row in zip(x, own, strict=True):
                _whisker(axes, place, row, 1, style)
        if panel["logarithmic"]:
            _plain_log_axis(axes)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(panel["label"], fontsize=9)
        axes.set_ylabel("lesions found", fontsize=9)
    _legend(figure, _model_handles(styles, "-"))
    return figure


def _plain_log_axis(axes: Axes) -> None:
    """A logarithmic axis with few numbers, none of them as a power."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def group_chart(panels: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Means of groups with intervals, one panel a grouping; groups of few subjects are hollow.

    Parameters
    ----------
    panels : sequence of mapping
        ``label``, ``axis``, ``scale``, ``rows`` with ``group``, ``model``, ``mean``, ``low``, ``high``, ``subjects``,
        ``small``.
    """
    figure, all_axes = _panels(len(panels), height=3.1)
    for axes, panel in zip(all_axes, panels, strict=True):
        groups = list(dict.fromkeys(row["group"] for row in panel["rows"]))
        for model, offset in zip(styles, _offsets(len(styles)), strict=True):
            for row in (row for row in panel["rows"] if row["model"] == model):
                hollow = {"markerfacecolor": "white"} if row["small"] else {}
                _whisker(axes, groups.index(row["group"]) + offset, row, panel["scale"], styles[model], **hollow)
        counts = {row["group"]: row["subjects"] for row in panel["rows"]}
        labels = [f"{_broken(group)}\nn = {counts[group]}" for group in groups]
        axes.set_xticks(range(len(groups)), labels, fontsize=7.5)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(0, None)
        axes.grid(False, axis="x")
        axes.set_title(panel["label"], fontsize=9, loc="left")
        axes.set_ylabel(panel["axis"], fontsize=9)
    _legend(figure, _model_handles(styles))
    return figure


def _broken(name: str) -> str:
    """A group's name in lines of some twelve characters."""
    lines = [""]
    for word in name.replace("_", " ").split():
        if lines[-1] and len(lines[-1]) + len(word) > 12:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(line if len(line) <= 14 else line[:13] + "…" for line in lines)


def effect_chart(panels: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Odds ratios with intervals, one line an effect and model; 1 is no effect. Filled: found after correction.

    Parameters
    ----------
    panels : sequence of mapping
        ``label``, ``rows`` with ``name``, ``model``, ``estimate``, ``low``, ``high`` (log odds), ``found``.
    """
    heights = [len(dict.fromkeys(row["name"] for row in panel["rows"])) for panel in panels]
    figure, all_axes = _panels(len(panels), columns=len(panels))
    figure.set_size_inches(WIDTH * 1.25, 1.5 + max(heights) * max(0.32, 0.13 * len(styles)))
    for axes, panel in zip(all_axes, panels, strict=True):
        names = list(dict.fromkeys(row["name"] for row in panel["rows"]))
        offsets = dict(zip(styles, _offsets(len(styles)), strict=True))
        axes.axvline(1, color=SOFT, linewidth=1)
        for row in panel["rows"]:
            y, style = names.index(row["name"]) + offsets[row["model"]], styles[row["model"]]
            if row["low"] is not None:
                axes.plot(np.exp([row["low"], row["high"]]), [y, y], color=style["color"], linewidth=1.3, zorder=2)
            face = {} if row["found"] else {"markerfacecolor": "white"}
            axes.plot([np.exp(row["estimate"])], [y], linestyle="none", markersize=5, zorder=3, **style, **face)
        _ratio_axis(axes)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_title(panel["label"], fontsize=9, loc="left")
        axes.set_xlabel("odds ratio", fontsize=9)
    _legend(figure, _model_handles(styles))
    return figure


def _ratio_axis(axes: Axes) -> None:
    """A logarithmic axis around 1 with few plain numbers."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    low, high = max(min(low, 0.6), 1 / 64), min(max(high, 1.7), 64)
    axes.set_xlim(low, high)
    steps = [0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16, 32]
    shown = [step for step in steps if low <= step <= high]
    shown = [step for step in shown if step not in (0.75, 1.5) or len(shown) <= 6]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def remedy_chart(panels: Sequence[Mapping[str, Any]], styles: Mapping[str, Mapping[str, str]]) -> Figure:
    """Healthy false positives of groups at the shared threshold (hollow) and at their own (filled), and what it costs.

    Parameters
    ----------
    panels : sequence of mapping
        ``label``, ``rows`` with ``group``, ``model``, ``fpr_shared``, ``fpr_group``.
    """
    figure, all_axes = _panels(len(panels), height=3.0)
    for axes, panel in zip(all_axes, panels, strict=True):
        groups = list(dict.fromkeys(row["group"] for row in panel["rows"]))
        for model, offset in zip(styles, _offsets(len(styles)), strict=True):
            for row in (row for row in panel["rows"] if row["model"] == model):
                x, style = groups.index(row["group"]) + offset, styles[model]
                before, after = 100 * row["fpr_shared"], 100 * row["fpr_group"]
                axes.plot([x, x], [before, after], color=style["color"], linewidth=1, zorder=1)
                axes.plot([x], [before], linestyle="none", markersize=5, markerfacecolor="white", zorder=2, **style)
                axes.plot([x], [after], linestyle="none", markersize=5, zorder=3, **style)
        axes.set_xticks(range(len(groups)), [_broken(group) for group in groups], fontsize=7.5)
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set_ylim(0, None)
        axes.grid(False, axis="x")
        axes.set_title(panel["label"], fontsize=9, loc="left")
        axes.set_ylabel("healthy voxels flagged, %", fontsize=9)
    _legend(figure, _model_handles(styles))
    return figure


def coverage_chart(curves: Sequence[Row], labels: Mapping[str, str]) -> Figure:
    """Area under the ROC curve of the scans that are kept when the most uncertain ones are left to a human.

    Parameters
    ----------
    curves : sequence of mapping
        ``contrast``, ``uncertainty``, ``coverage``, ``auc``, ``low``, ``high``.
    labels : mapping
        How each uncertainty is called.
    """
    contrasts = list(dict.fromkeys(row["contrast"] for row in curves))
    figure, all_axes = _panels(len(contrasts), height=3.2)
    for axes, contrast in zip(all_axes, contrasts, strict=True):
        for number, (name, label) in enumerate(labels.items()):
            own = [row for row in curves if (row["contrast"], row["uncertainty"]) == (contrast, name)]
            if own:
                x, colour = [100 * row["coverage"] for row in own], COLOURS[number]
                bounds = [np.array([row[key] for row in own], dtype=float) for key in ("low", "high")]
                axes.fill_between(x, *bounds, color=colour, alpha=0.15, linewidth=0)
                areas = [row["auc"] for row in own]
                axes.plot(x, areas, color=colour, marker=MARKERS[number], markersize=4, label=label)
                axes.axhline(areas[0], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.invert_xaxis()
        axes.set_xlabel("scans kept, %", fontsize=9)
        axes.set_ylabel("area under the ROC curve", fontsize=9)
        axes.set_title(contrast, fontsize=9, loc="left")
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def scaling_chart(rows: Sequence[Row], measures: Mapping[str, tuple[str, float]]) -> Figure:
    """How results change with the share of the training subjects: mean over seeds, interval, and every seed as a dot.

    Parameters
    ----------
    rows : sequence of mapping
        ``measure``, ``subjects``, ``mean``, ``low``, ``high``, ``seeds`` (list of means).
    measures : mapping
        Label and scale of every measure that gets a panel.
    """
    shown = {name: label for name, label in measures.items() if any(row["measure"] == name for row in rows)}
    figure, all_axes = _panels(len(shown), height=3.2)
    for axes, (name, (label, scale)) in zip(all_axes, shown.items(), strict=True):
        own = sorted((row for row in rows if row["measure"] == name), key=lambda row: row["subjects"])
        x = [row["subjects"] for row in own]
        bounds = [scale * np.array([row[key] for row in own], dtype=float) for key in ("low", "high")]
        axes.fill_between(x, *bounds, color=COLOURS[0], alpha=0.15, linewidth=0)
        axes.plot(x, [scale * row["mean"] for row in own], color=COLOURS[0], marker="o", markersize=5)
        for row in own:
            axes.plot([row["subjects"]] * len(row["seeds"]), scale * np.array(row["seeds"]), linestyle="none",
                      marker=".", color=SOFT, markersize=5)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
        axes.set_ylim(0, None)
        axes.set_xlabel("training subjects", fontsize=9)
        axes.set_ylabel(label, fontsize=9)
    return figure
