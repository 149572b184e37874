"""The loadings of a factor model, as a table of shades."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxem.plot.style import INK, cut, style
from jaxem.plot.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

# More columns than this cannot be read.
_MOST_ROWS = 40


def draw_loadings(figure: SubFigure, shown: Subject) -> None:
    """Loadings on standardized columns: red where a factor raises the column, blue where it lowers it."""
    axes = figure.subplots()
    loadings = np.asarray(shown.loadings)
    largest = np.sort(np.argsort(-np.sum(loadings**2, axis=1), kind="stable")[:_MOST_ROWS])
    drawn = loadings[largest]
    d, count = drawn.shape
    limit = max(1.0, float(np.max(np.abs(drawn))))
    axes.imshow(drawn, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    if d <= 32 and count <= 12:
        for (i, k), value in np.ndenumerate(drawn):
            ink = "white" if abs(value) > 0.65 * limit else INK
            axes.text(k, i, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=8, color=ink)
    note = "" if d == len(loadings) else f"\n{d} of {len(loadings)} columns: those with the largest loadings"
    style(axes, "Loadings on the standardized columns" + note, "factor: share of the variance", "")
    axes.grid(False)
    axes.set_yticks(range(d), [cut(shown.columns[i]) for i in largest])
    share = np.mean(loadings**2, axis=0)
    axes.set_xticks(range(count), [f"{k}: {share[k]:.0%}" if count <= 8 else str(k) for k in range(count)])
