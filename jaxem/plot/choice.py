"""The choice among several numbers of components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxem.plot.style import COLORS, INK, STATUS_COLORS, legend, style
from jaxem.result import size
from jaxem.select import Selection
from jaxem.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_choice(axes: Axes, selection: Selection, unit: str) -> None:
    """The criterion of every model; hollow where the fit is degenerate, and so its likelihood not real."""
    from matplotlib.ticker import MaxNLocator

    counts = np.array([size(result.model) for result in selection.results])
    values = np.array(selection.values, float)
    sound = np.array([result.status.usable and not result.degenerate for result in selection.results])
    shown = np.isfinite(values)
    line = shown & sound
    axes.plot(counts[line], values[line], color=COLORS[0], linewidth=1.4, marker="o", markersize=5, zorder=2)
    doubtful = shown & ~sound
    if doubtful.any():
        axes.plot(
            counts[doubtful], values[doubtful], linestyle="none", marker="o", markersize=6, markerfacecolor="white",
            markeredgecolor=STATUS_COLORS[Status.DEGENERATE], label="degenerate or failed", zorder=2,
        )  # fmt: skip
    best = selection.chosen
    axes.plot(counts[best], values[best], linestyle="none", marker="o", markersize=9, color=INK, zorder=3)
    legend(axes, loc="best")
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    name = selection.criterion.upper()
    style(axes, f"{name} (smaller is better): {counts[best]} chosen", f"number of {unit}s", name)
