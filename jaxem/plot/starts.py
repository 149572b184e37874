"""The way from every start to where it ended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxem.plot.style import INK, OTHER_STATUS, STATUS_COLORS, legend, number, style, whole_numbers
from jaxem.result import Result
from jaxem.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_starts(axes: Axes, result: Result) -> None:
    """Objective against step, for every start; what stopped it by color, the best on top."""
    starts, best = result.starts, result.best
    recorded = starts.trace.shape[1]
    # The common way to end is drawn first, so that the others are seen.
    for i in sorted(range(len(starts)), key=lambda i: starts.status[i] == Status.CONVERGED, reverse=True):
        color = STATUS_COLORS.get(Status(int(starts.status[i])), OTHER_STATUS)
        _draw_start(axes, result, i, color=color, linewidth=1, alpha=0.4, zorder=2, markersize=3.5)
    _draw_start(axes, result, best, color=INK, linewidth=2, zorder=4, markersize=6)
    axes.plot([], [], color=INK, linewidth=2, label=f"best: {number(result.objective)}")
    for status in sorted(set(starts.status.tolist())):
        count = int((starts.status == status).sum())
        color = STATUS_COLORS.get(Status(status), OTHER_STATUS)
        axes.plot([], [], color=color, linewidth=2, label=f"{Status(status).label}: {count}")
    legend(axes, loc="lower right")
    longest = max(int(starts.steps.max()), 1)
    if longest > 60:
        _compress_steps(axes)
    else:
        whole_numbers(axes)
    axes.set_xlim(-0.01 * longest if longest <= 60 else -0.2, longest * 1.04)
    _limit_objective(axes, result)
    cut = f" (dotted: after the {recorded} recorded steps)" if longest >= recorded > 0 else ""
    what = "log-likelihood" if result.objective == result.log_likelihood else "log-likelihood + log-prior"
    style(axes, f"{len(starts)} start{'s' if len(starts) > 1 else ''}{cut}", "step", what)


def _draw_start(axes: Axes, result: Result, i: int, *, markersize: float, alpha: float = 1.0, **line: Any) -> None:
    """The trace of a start, on to where it ended; what was not recorded is dotted."""
    starts = result.starts
    trace = starts.trace[i][np.isfinite(starts.trace[i])]
    axes.plot(np.arange(len(trace)), trace, alpha=alpha, **line)
    end = (int(starts.steps[i]), float(starts.objective[i]))
    if 0 < len(trace) <= end[0]:
        axes.plot([len(trace) - 1, end[0]], [trace[-1], end[1]], linestyle=":", alpha=alpha, **line)
    if math.isfinite(end[1]):
        axes.plot(*end, marker="o", markersize=markersize, color=line["color"], zorder=line["zorder"] + 1, mew=0)


def _compress_steps(axes: Axes) -> None:
    """Logarithmic steps: the climb is at the beginning, the wait at the end."""
    from matplotlib.ticker import FixedLocator, ScalarFormatter

    axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    axes.xaxis.set_major_locator(FixedLocator([0, *(m * 10**e for e in range(7) for m in (1, 2, 5))]))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _limit_objective(axes: Axes, result: Result) -> None:
    """From where most starts stand after a step or two up to the best: the first climb would flatten all the rest."""
    trace = result.starts.trace
    ends = result.starts.objective[np.isfinite(result.starts.objective)]
    if not len(ends):
        return
    top = float(np.max(ends))
    early = trace[:, :2][:, -1:]
    early = early[np.isfinite(early)]
    bottom = min(float(np.quantile(ends, 0.02)), float(np.median(early)) if len(early) else top)
    span = max(top - bottom, 1e-6 * max(abs(top), 1.0))
    axes.set_ylim(bottom - 0.08 * span, top + 0.08 * span)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
