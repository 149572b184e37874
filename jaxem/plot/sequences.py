"""The longest sequence of a hidden Markov model: what was seen, the most probable path, and how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxem.families import CategoryParams
from jaxem.plot.style import FAINT, INK, color, legend, marker, style, whole_numbers
from jaxem.plot.subject import Subject, means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# More steps than this run into each other.
_MOST_STEPS = 400
# More columns than this leave no height to any of them.
_MOST_COLUMNS = 4


def draw_sequences(figure: SubFigure, shown: Subject) -> None:
    """Every column along time with the states by color, above the posterior probability of each state."""
    begin, end = _longest(shown)
    steps = slice(begin, min(end, begin + _MOST_STEPS))
    count = min(shown.x.shape[1], _MOST_COLUMNS)
    panels = figure.subplots(count + 1, 1, sharex=True, height_ratios=[2.0 / count] * count + [0.8])
    mean = None if _coded(shown) else means(shown.family, shown.params)
    for i, axes in enumerate(panels[:-1]):
        _draw_column(axes, shown, steps, i, mean)
        style(axes, _title(shown, begin, end) if i == 0 else "", "", shown.columns[i], grid="y")
    for k, share in enumerate(shown.shares):
        panels[0].plot([], [], linestyle="none", marker=marker(k), color=color(k), label=f"{k}:  {share:.1%}")
    legend(panels[0], title="state: share", title_fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
    _draw_posterior(panels[-1], shown, steps)


def _coded(shown: Subject) -> bool:
    """Whether columns hold codes, of which there is no mean."""
    return isinstance(shown.params, CategoryParams)


def _longest(shown: Subject) -> tuple[int, int]:
    begins = np.flatnonzero(shown.starts)
    ends = np.append(begins[1:], len(shown.x))
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest])


def _title(shown: Subject, begin: int, end: int) -> str:
    count = int(shown.starts.sum())
    notes = [] if count == 1 else [f"the longest of {count} sequences"]
    if end - begin > _MOST_STEPS:
        notes.append(f"its first {_MOST_STEPS} of {end - begin:,} steps")
    if shown.x.shape[1] > _MOST_COLUMNS:
        notes.append(f"{_MOST_COLUMNS} of {shown.x.shape[1]} columns")
    what = "Steps by the state of the most probable path" + ("" if _coded(shown) else ", and the mean of that state")
    return what + ("\n" + "; ".join(notes) if notes else "")


def _draw_column(axes: Axes, shown: Subject, steps: slice, i: int, mean: np.ndarray | None) -> None:
    x, path = shown.x[steps, i], shown.assigned[steps]
    time = np.arange(len(x))
    if not _coded(shown):
        axes.plot(time, x, color=FAINT, linewidth=0.8, alpha=0.6, zorder=1)
    elif shown.categories is not None and shown.categories[i] is not None:
        names = shown.categories[i]
        axes.set_yticks(range(len(names)), names)
        axes.margins(y=0.2)
    if mean is not None:
        expected = np.where(path >= 0, mean[np.maximum(path, 0), i], np.nan)
        axes.step(time, expected, where="mid", color=INK, linewidth=1.2, alpha=0.8, zorder=2)
    size = float(np.clip(3000 / len(x), 6, 24))
    for k in range(len(shown.shares)):
        mine = path == k
        axes.scatter(time[mine], x[mine], s=size, marker=marker(k), color=color(k), linewidths=0, zorder=3)


def _draw_posterior(axes: Axes, shown: Subject, steps: slice) -> None:
    posterior = shown.responsibilities[steps]
    time = np.arange(len(posterior))
    # One bar per step: lines from step to step would show probabilities at times that do not exist.
    bottom = np.zeros(len(posterior))
    for k in range(posterior.shape[1]):
        axes.bar(time, posterior[:, k], bottom=bottom, width=1.0, color=color(k), linewidth=0, alpha=0.75)
        bottom = bottom + posterior[:, k]
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.5 - 0.01 * len(time), len(time) - 0.5 + 0.01 * len(time))
    whole_numbers(axes)
    style(axes, "", "step", "p(state)", grid="y")
