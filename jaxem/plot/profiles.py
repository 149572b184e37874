"""The profile of every latent class: the probability of each category of each item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxem.plot.style import INK, color, cut, legend, marker, style
from jaxem.plot.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# More items, or categories of items, than this cannot be read.
_MOST_ITEMS, _MOST_ROWS = 30, 32


def draw_profiles(figure: SubFigure, shown: Subject) -> None:
    """A line for every class where all items have two answers, else a table of shades."""
    axes = figure.subplots()
    prob, names = _probabilities(shown)
    if max(map(len, names)) <= 2:
        _draw_lines(axes, shown, prob, names)
    else:
        _draw_table(axes, shown, prob, names)


def _probabilities(shown: Subject) -> tuple[list[np.ndarray], list[list[str]]]:
    """Of every item the probabilities of its categories, [K, C], and what they are called."""
    prob = np.asarray(shown.params.prob, np.float64)
    if prob.ndim == 2:  # of a 1
        return [np.stack([1 - p, p], axis=1) for p in prob.T], [["0", "1"]] * prob.shape[1]
    known = shown.categories or [None] * prob.shape[1]
    names = [list(map(str, range(prob.shape[2]))) if given is None else list(given) for given in known]
    return [prob[:, d, : len(names[d])] for d in range(prob.shape[1])], names


def _most_telling(shown: Subject, prob: list[np.ndarray], names: list[list[str]], most: int, rows: bool) -> list[int]:
    """The items in which the classes differ most, in their own order, as many as there is room for."""
    overall = [shown.shares @ p for p in prob]
    spread = [float(shown.shares @ np.sum((p - mean) ** 2, axis=1)) for p, mean in zip(prob, overall)]
    room, chosen = most, []
    for item in sorted(range(len(prob)), key=lambda d: -spread[d]):
        room -= len(names[item]) if rows else 1
        if room < 0 and chosen:
            break
        chosen.append(item)
    return sorted(chosen)


def _note(drawn: int, items: int) -> str:
    return "" if drawn == items else f"\n{drawn} of {items} items: those in which the classes differ most"


def _draw_lines(axes: Axes, shown: Subject, prob: list[np.ndarray], names: list[list[str]]) -> None:
    items = _most_telling(shown, prob, names, _MOST_ITEMS, rows=False)
    answers = {tuple(names[d]) for d in items}
    same = answers.pop()[-1] if len(answers) == 1 else None
    labels = [cut(shown.columns[d] if same is not None else f"{shown.columns[d]}: {names[d][-1]}") for d in items]
    places = np.arange(len(items))
    for k, share in enumerate(shown.shares):
        values = [prob[d][k, -1] for d in items]
        axes.plot(
            places, values, color=color(k), marker=marker(k), markersize=6, linewidth=1.6, label=f"{k}:  {share:.1%}"
        )
    what = f"Probability of {same!r} in every class" if same is not None else "Probability of an answer in every class"
    style(axes, what + _note(len(items), len(prob)), "", "probability")
    slanted = sum(map(len, labels)) > 60
    axes.set_xticks(
        places, labels, rotation=35 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor"
    )
    axes.set_ylim(-0.03, 1.03)
    axes.margins(x=0.08)
    legend(axes, title=f"{shown.unit}: share", title_fontsize=8.5, loc="best")


def _draw_table(axes: Axes, shown: Subject, prob: list[np.ndarray], names: list[list[str]]) -> None:
    items = _most_telling(shown, prob, names, _MOST_ROWS, rows=True)
    rows = [(d, c) for d in items for c in range(len(names[d]))][: 2 * _MOST_ROWS]
    shades = np.array([prob[d][:, c] for d, c in rows])
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    count = len(shown.shares)
    if len(rows) <= _MOST_ROWS and count <= 12:
        for (i, k), value in np.ndenumerate(shades):
            ink = "white" if value > 0.55 else INK
            axes.text(k, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    style(axes, "Probability of every answer in every class" + _note(len(items), len(prob)), f"{shown.unit}: share", "")
    axes.grid(False)
    axes.set_yticks(range(len(rows)), [cut(f"{shown.columns[d]}: {names[d][c]}") for d, c in rows])
    axes.set_xticks(
        range(count), [f"{k}: {share:.0%}" if count <= 10 else str(k) for k, share in enumerate(shown.shares)]
    )
    for i in range(1, len(rows)):
        if rows[i][0] != rows[i - 1][0]:
            axes.axhline(i - 0.5, color="white", linewidth=3)
