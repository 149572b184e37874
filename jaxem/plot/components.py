"""The data of a mixture with its components: points, densities, or the shares of counts."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from jaxem.families import (
    BinomialParams,
    GeometricParams,
    MultinomialParams,
    NegativeBinomialParams,
    PoissonParams,
    StudentTParams,
    ZeroInflatedParams,
)
from jaxem.model import Data
from jaxem.plot.style import DASHES, DATA, INK, color, legend, marker, style, whole_numbers
from jaxem.plot.subject import Subject, covariances, means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

# More points than this hide each other and make a heavy file.
_MOST_POINTS = 20_000
# More columns than this are not all tried in pairs.
_MOST_COLUMNS = 40
# More different counts than this are not told apart.
_MOST_COUNTS = 200
# Families of counts.
_COUNTS = (
    PoissonParams,
    BinomialParams,
    GeometricParams,
    MultinomialParams,
    NegativeBinomialParams,
    ZeroInflatedParams,
)


def draw_components(figure: SubFigure, shown: Subject) -> None:
    """The panel that fits the number of columns and what they hold."""
    axes = figure.subplots()
    if shown.x.shape[1] > 1:
        _draw_points(axes, shown)
    elif not isinstance(shown.params, _COUNTS):
        _draw_densities(axes, shown)
    elif np.nanmax(shown.x) < _MOST_COUNTS:
        _draw_counts(axes, shown)
    else:
        _draw_assigned_histogram(axes, shown)


# Several columns.


def _draw_points(axes: Axes, shown: Subject) -> None:
    pair = list(_best_pair(shown)) if shown.x.shape[1] > 2 else [0, 1]
    rng = np.random.default_rng(0)
    whole = np.flatnonzero(~np.isnan(shown.x[:, pair]).any(axis=1))
    rows = whole if len(whole) <= _MOST_POINTS else rng.choice(whole, _MOST_POINTS, replace=False)
    points = shown.x[rows][:, pair]
    if isinstance(shown.params, _COUNTS):
        points = points + rng.uniform(-0.3, 0.3, points.shape)
    size = float(np.clip(6000 / max(len(rows), 1), 2.5, 22))
    for k in range(len(shown.shares)):
        mine = points[shown.assigned[rows] == k]
        axes.scatter(
            mine[:, 0],
            mine[:, 1],
            s=size,
            marker=shown.marker(k),
            color=shown.color(k),
            alpha=0.55,
            linewidths=0,
            zorder=2,
        )
    _draw_ellipses(axes, shown, pair)
    _label_means(axes, shown, pair)
    if len(points):
        _limit_to(axes, points)
    style(axes, _points_title(shown, pair, len(rows), len(whole)), shown.columns[pair[0]], shown.columns[pair[1]])


def _label(shown: Subject, k: int) -> str:
    return f"{shown.labels[k]}:  {shown.shares[k]:.1%}"


def _points_title(shown: Subject, pair: list[int], drawn: int, whole: int) -> str:
    what = "Rows by their most probable component"
    if covariances(shown.family, shown.params) is not None:
        what += f", ellipses at 1 and 2 {'scales' if isinstance(shown.params, StudentTParams) else 'sd'}"
    notes = []
    if shown.x.shape[1] > 2:
        best = "those in which the components differ most" if len(shown.shares) > 1 else "the first two"
        notes.append(f"2 of {shown.x.shape[1]} columns: {best}")
    if isinstance(shown.params, _COUNTS):
        notes.append("counts are jittered")
    if whole < len(shown.x):
        lacking = len(shown.x) - whole
        notes.append(f"{lacking:,} row{'s lack' if lacking > 1 else ' lacks'} one of them")
    if drawn < whole:
        notes.append(f"{drawn:,} of {whole:,} rows are shown")
    return what + ("\n" + "; ".join(notes) if notes else "")


def _best_pair(shown: Subject) -> tuple[int, int]:
    """The two columns with the largest ratio of total to within-component variance (the inverse of Wilks' lambda)."""
    x = np.where(np.isnan(shown.x), np.nanmean(shown.x, axis=0), shown.x)
    each = shown.weights[:, None] * shown.responsibilities
    each = each[:, :-1] if shown.noisy else each
    weights = each.sum(axis=1)
    x = x - np.average(x, axis=0, weights=weights)
    count = np.maximum(each.sum(axis=0), np.finfo(float).tiny)
    centers = (each.T @ x) / count[:, None]
    total = (weights[:, None] * x).T @ x / weights.sum()
    within = total - (count[:, None] * centers).T @ centers / weights.sum()
    tiny = np.finfo(float).tiny
    alone = np.diagonal(total) / np.maximum(np.diagonal(within), tiny)
    candidates = np.sort(np.argsort(-alone, kind="stable")[:_MOST_COLUMNS])

    def ratio(pair: tuple[int, int]) -> float:
        square = np.ix_(pair, pair)
        return float(np.linalg.det(total[square]) / max(np.linalg.det(within[square]), tiny))

    pairs = [(int(i), int(j)) for i, j in itertools.combinations(candidates, 2)]
    # Rounded, so that with nothing to choose the first pair is taken.
    return max(pairs, key=lambda pair: round(ratio(pair), 6))


def _draw_ellipses(axes: Axes, shown: Subject, pair: list[int]) -> None:
    from matplotlib.patches import Ellipse

    mean, covariance = means(shown.family, shown.params), covariances(shown.family, shown.params)
    if mean is None or covariance is None:
        return
    for k in range(len(mean)):
        values, vectors = np.linalg.eigh(covariance[k][np.ix_(pair, pair)])
        values = np.maximum(values, 0)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        for radius, width, alpha in ((1, 1.8, 1.0), (2, 1.2, 0.75)):
            size = 2 * radius * np.sqrt(values)
            ellipse = Ellipse(mean[k][pair], size[1], size[0], angle=angle, fill=False, zorder=3)
            ellipse.set(edgecolor=color(k), linewidth=width, alpha=alpha, linestyle="-" if radius == 1 else DASHES)
            axes.add_patch(ellipse)


def _label_means(axes: Axes, shown: Subject, pair: list[int]) -> None:
    """The number of each component at its mean, and its weight in the legend: color is never the only sign."""
    mean = means(shown.family, shown.params)
    for k in range(0 if mean is None else len(mean)):
        at = mean[k][pair]
        axes.plot(*at, marker="o", markersize=13, color="white", markeredgecolor=color(k), zorder=4, linestyle="none")
        axes.annotate(str(k), at, ha="center", va="center_baseline", fontsize=8.5, color=INK, zorder=5)
    for k in range(len(shown.shares)):
        axes.plot([], [], linestyle="none", marker=shown.marker(k), color=shown.color(k), label=_label(shown, k))
    columns = 1 + (len(shown.shares) - 1) // 10
    legend(axes, title="component: weight", title_fontsize=8.5, loc="best", ncols=columns)


def _limit_to(axes: Axes, points: np.ndarray) -> None:
    """Limits that show the points: a wide ellipse may leave the picture, rather than shrink what is in it."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.12 * np.where(high > low, high - low, 1)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


# One column.


def _densities(shown: Subject, at: np.ndarray) -> np.ndarray:
    """π_k p(x | k) at some places, [K, G]."""
    # In the type of the parameters, in which the family is calibrated.
    places = at[:, None].astype(np.asarray(shown.result.starts.objective).dtype)
    log_prob = shown.family.log_prob(shown.params, shown.family.statistics(Data(x=places)))
    return (shown.shares * np.exp(np.asarray(log_prob, np.float64))).T


def _draw_densities(axes: Axes, shown: Subject) -> None:
    there = ~np.isnan(shown.x[:, 0])
    x, weights = shown.x[there, 0], shown.weights[there]
    # Narrower than the rules for a single bump: the bumps are what is looked for.
    bins = int(np.clip(1.5 * math.sqrt(len(x)), 5, 100))
    axes.hist(x, bins=bins, weights=weights, density=True, color=DATA, edgecolor="white", linewidth=0.5)
    margin = 0.08 * (np.ptp(x) or 1.0)
    low, high = x.min() - margin, x.max() + margin
    if x.min() >= 0:
        low = max(low, 0.0)
    # Dense everywhere, and densest where a narrow component has its peak.
    grid = [np.linspace(low, high, 800)]
    each = weights[:, None] * shown.responsibilities[there]
    count = np.maximum(each.sum(axis=0), np.finfo(float).tiny)
    center = each.T @ x / count
    spread = np.sqrt(np.maximum(np.sum(each * (x[:, None] - center) ** 2, axis=0) / count, 0))
    grid.append((center + spread * np.linspace(-3, 3, 60)[:, None]).ravel())
    places = np.unique(np.concatenate(grid))
    places = places[(places > low) & (places < high)]
    _draw_curves(axes, places, _densities(shown, places), shown, filled=True)
    axes.fill_between([], [], color=DATA, label="data")
    legend(axes, title="component: weight", title_fontsize=8.5)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    style(axes, "Histogram of the data and densities of the components", shown.columns[0], "density", grid="y")


def _draw_curves(axes: Axes, at: np.ndarray, curves: np.ndarray, shown: Subject, filled: bool) -> None:
    """A curve for every component, and for all of them together."""
    for k, curve in enumerate(curves):
        if filled:
            axes.fill_between(at, curve, color=shown.color(k), alpha=0.15, linewidth=0)
            axes.plot(at, curve, color=shown.color(k), linewidth=1.8, label=_label(shown, k))
        else:
            axes.plot(
                at, curve, color=color(k), marker=marker(k * 7), markersize=5, linewidth=1.2, label=_label(shown, k)
            )
    if len(curves) > 1:
        axes.plot(at, curves.sum(axis=0), color=INK, linewidth=1.4, linestyle=DASHES, label="all components")


def _draw_counts(axes: Axes, shown: Subject) -> None:
    """Observed shares of each count against those the mixture expects."""
    there = ~np.isnan(shown.x[:, 0])
    x, weights = shown.x[there, 0].astype(int), shown.weights[there]
    counts = np.arange(x.max() + 1)
    observed = np.bincount(x, weights=weights, minlength=len(counts)) / weights.sum()
    axes.bar(counts, observed, width=0.85, color=DATA, label="data")
    _draw_curves(axes, counts, _densities(shown, counts.astype(float)), shown, filled=False)
    legend(axes, title="component: weight", title_fontsize=8.5)
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    style(axes, "Observed and expected shares of each count", shown.columns[0], "share of the rows", grid="y")


def _draw_assigned_histogram(axes: Axes, shown: Subject) -> None:
    x = shown.x[:, 0]
    groups = [(shown.assigned == k) & ~np.isnan(x) for k in range(len(shown.shares))]
    axes.hist(
        [x[g] for g in groups], bins=min(60, max(1, len(np.unique(x)))), weights=[shown.weights[g] for g in groups],
        stacked=True, color=[color(k) for k in range(len(groups))], label=[str(k) for k in range(len(groups))],
    )  # fmt: skip
    legend(axes, title="component", title_fontsize=8.5)
    style(axes, "Rows by their most probable component", shown.columns[0], "rows", grid="y")
