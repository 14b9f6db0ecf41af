"""The loss curve of a training, as a table and as a picture."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from UADBenchLib.writing import atomic, write_text

MEAN_OF = 50
"""Steps a row stands for: single losses are noise, and the file is read by people."""


def write_curve(folder: Path, log: list[dict[str, float]], title: str) -> None:
    """Write ``loss.csv`` and ``loss.png`` (a mean of ``MEAN_OF`` steps a row or point) from a log of single steps with
    ``step``, ``loss`` and ``learning_rate``."""
    parts = [log[start : start + MEAN_OF] for start in range(0, len(log), MEAN_OF)]
    steps = [int(part[-1]["step"]) + 1 for part in parts]
    losses = [float(np.mean([row["loss"] for row in part])) for part in parts]
    rates = [part[-1]["learning_rate"] for part in parts]
    write_text(folder / "loss.csv", _table(steps, losses, rates))
    _draw(folder / "loss.png", steps, losses, rates, title)


def _table(steps: list[int], losses: list[float], rates: list[float]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["step", "loss", "learning_rate"])
    writer.writerows(
        [step, f"{loss:.6g}", f"{rate:.4g}"] for step, loss, rate in zip(steps, losses, rates, strict=True)
    )
    return stream.getvalue()


def _draw(path: Path, steps: list[int], losses: list[float], rates: list[float], title: str) -> None:
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#0072b2", marker="o" if len(steps) < 3 else None)
    axes.set(xlabel="step", ylabel=f"loss, mean of {MEAN_OF} steps", title=title)
    if min(losses) > 0:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    rate = axes.twinx()
    rate.plot(steps, rates, color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    rate.tick_params(colors="0.5")
    rate.spines[["top"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=90, format="png")
    with atomic(path) as temporary:
        # A few colours do for two lines, and take a quarter of the space in every bundle.
        Image.open(picture).convert("RGB").quantize(32).save(temporary, format="PNG", optimize=True)
