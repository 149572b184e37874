"""Mixtures of regressions: the curves along one input, or what is seen against what is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxem.model import Data
from jaxem.plot.style import DASHES, FAINT, color, legend, marker, style
from jaxem.plot.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# More points than this hide each other and make a heavy file.
_MOST_POINTS = 20_000


def draw_regressions(figure: SubFigure, shown: Subject) -> None:
    """The first response, by the most probable component of each row."""
    axes = figure.subplots()
    rows = np.arange(len(shown.x))
    if len(rows) > _MOST_POINTS:
        rows = np.random.default_rng(0).choice(rows, _MOST_POINTS, replace=False)
    if shown.inputs.shape[1] == 1:
        _draw_curves(axes, shown, rows)
    else:
        _draw_expected(axes, shown, rows)
    legend(axes, title="component: weight", title_fontsize=8.5, loc="best")


def _expected(shown: Subject, inputs: np.ndarray) -> np.ndarray:
    """E[x | z = k, inputs] of the first response, [N, K]."""
    inputs = inputs.astype(np.asarray(shown.result.starts.objective).dtype)
    return np.asarray(shown.family.mean(shown.params, Data(inputs=inputs)))[:, :, 0]


def _points(axes: Axes, shown: Subject, x: np.ndarray, y: np.ndarray, assigned: np.ndarray, lines: bool) -> None:
    size = float(np.clip(6000 / max(len(x), 1), 2.5, 22))
    for k, share in enumerate(shown.shares):
        mine = assigned == k
        axes.scatter(x[mine], y[mine], s=size, marker=marker(k), color=color(k), alpha=0.6, linewidths=0, zorder=2)
        line = "-" if lines else "none"
        axes.plot([], [], linestyle=line, linewidth=2, marker=marker(k), color=color(k), label=f"{k}:  {share:.1%}")


def _draw_curves(axes: Axes, shown: Subject, rows: np.ndarray) -> None:
    x, y = shown.inputs[rows, 0], shown.x[rows, 0]
    _points(axes, shown, x, y, shown.assigned[rows], lines=True)
    grid = np.linspace(x.min(), x.max(), 200)
    for k, curve in enumerate(_expected(shown, grid[:, None]).T):
        axes.plot(grid, curve, color=color(k), linewidth=2, zorder=3)
    margin = 0.08 * (np.ptp(y) or 1.0)
    axes.set_ylim(y.min() - margin, y.max() + margin)
    style(axes, "Rows by their most probable component, and its regression", shown.input_names[0], shown.columns[0])


def _draw_expected(axes: Axes, shown: Subject, rows: np.ndarray) -> None:
    assigned = shown.assigned[rows]
    expected = np.take_along_axis(_expected(shown, shown.inputs[rows]), assigned[:, None], axis=1)[:, 0]
    y = shown.x[rows, 0]
    _points(axes, shown, expected, y, assigned, lines=False)
    ends = [min(y.min(), expected.min()), max(y.max(), expected.max())]
    axes.plot(ends, ends, color=FAINT, linewidth=1, linestyle=DASHES, zorder=1)
    style(
        axes, "Rows by their most probable component", f"{shown.columns[0]} expected in it", f"{shown.columns[0]} seen"
    )
