"""Pictures of a fit, drawn on a `matplotlib.figure.Figure` of their own: no pyplot, no global state, any backend.

matplotlib is imported inside the functions: the rest of jaxem neither needs nor loads it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxem.families import Gaussian, GaussianParams, PoissonParams
from jaxem.io import write_atomically
from jaxem.result import Result
from jaxem.select import Selection
from jaxem.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's "bright" scheme, in the order of most contrast: distinct for all common kinds of color vision.
_COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE", "#777777")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_INK, _FAINT, _GRID, _DATA = "#222222", "#777777", "#E6E6E6", "#D5D8DC"
_DASHES = (0, (5, 2))
_STATUS_COLORS = {
    Status.CONVERGED: "#4477AA",
    Status.STALLED: "#66CCEE",
    Status.MAX_STEPS: "#CCBB44",
    Status.OUTRACED: "#BBBBBB",
    Status.DEGENERATE: "#EE6677",
}
_OTHER_STATUS = "#AA3377"
# More points than this hide each other and make a heavy file.
_MOST_POINTS = 20_000
# More columns than this are not all tried in pairs.
_MOST_COLUMNS = 40


def fit_picture(
    fit: Result | Selection,
    x: Any,
    columns: Sequence[str] | None = None,
    *,
    weights: Any = None,
    responsibilities: Any = None,
    title: str = "",
) -> Figure:
    """The data with the components that were found, the way there from every start, and, for a selection, the choice.

    x: the data of the fit, [N, D]; with D > 2 the two columns in which the components differ most are shown. columns:
    their names. weights: of the rows. responsibilities: p(z | x), [N, K], computed when not given. Raises ImportError
    without matplotlib and ValueError for data of another shape than the fit's.
    """
    from matplotlib.figure import Figure

    result = fit.best if isinstance(fit, Selection) else fit
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) != result.num_examples:
        raise ValueError(f"x needs the {result.num_examples} rows of the fit, [N, D]; got shape {x.shape}")
    names = [f"x{i}" for i in range(x.shape[1])] if columns is None else list(columns)
    if len(names) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} columns need as many names; got {len(names)}")
    if responsibilities is None:
        responsibilities = jax.jit(result.model.posterior)(result.params, x)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)

    figure = Figure(figsize=(11.5, 5.6), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    if isinstance(fit, Selection) and len(fit.results) > 1:
        axes = figure.subplot_mosaic([["data", "starts"], ["data", "choice"]], width_ratios=[1.35, 1])
        _draw_choice(axes["choice"], fit)
    else:
        axes = figure.subplot_mosaic([["data", "starts"]], width_ratios=[1.35, 1])
    _draw_data(axes["data"], result, x, names, weights, np.asarray(responsibilities))
    _draw_starts(axes["starts"], result)
    figure.suptitle(_headline(result, title), x=0.012, ha="left", fontsize=13, color=_INK, fontweight="bold")
    return figure


def save_picture(path: str | os.PathLike, figure: Figure, dpi: int = 150) -> None:
    """Write a figure as png, whole or not at all."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def component_moments(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight [K], mean [K, D] and covariance [K, D, D] of every component of a Gaussian or Poisson mixture.

    Raises TypeError for other families.
    """
    params = result.params.likelihood
    weights = np.asarray(result.params.latent.weights)
    if isinstance(params, GaussianParams):
        k, d = params.mean.shape
        covariance = _gaussian(result.model).covariance.dense(np.asarray(params.covariance), k, d)
        return weights, np.asarray(params.mean), np.asarray(covariance)
    if isinstance(params, PoissonParams):
        rate = np.asarray(params.rate)
        return weights, rate, rate[:, :, None] * np.eye(rate.shape[1])
    raise TypeError(
        f"means and covariances are known of Gaussian and Poisson components, not of {type(params).__name__}"
    )


def _gaussian(model: Any) -> Gaussian:
    """The family inside any wrappers."""
    while not hasattr(model, "likelihood"):
        model = model.model
    return model.likelihood


def _headline(result: Result, title: str) -> str:
    k = result.model.num_components
    parts = [f"{k} component{'s' if k > 1 else ''}", f"log-likelihood {_number(result.log_likelihood)}"]
    if result.num_free_parameters is not None:
        parts.append(f"BIC {_number(result.bic)}")
    parts.append(result.status.label)
    return (f"{title}: " if title else "") + "  ·  ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _whole_numbers(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole numbers only: there is no half step and no half count."""
    axes.xaxis.get_major_locator().set_params(integer=True)


def _style(axes: Axes, title: str, xlabel: str, ylabel: str, grid: str = "both") -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, pad=8)
    axes.set_xlabel(xlabel, fontsize=10, color=_INK)
    axes.set_ylabel(ylabel, fontsize=10, color=_INK)
    axes.tick_params(labelsize=9, colors=_FAINT, labelcolor=_INK, length=3)
    axes.grid(True, axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)


def _legend(axes: Axes, **options: Any) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=8.5, labelcolor=_INK, frameon=True, framealpha=0.9, edgecolor="none", **options)


def _color(k: int) -> str:
    return _COLORS[k % len(_COLORS)]


def _marker(k: int) -> str:
    return _MARKERS[k // len(_COLORS) % len(_MARKERS)]


# The data and the components.


def _draw_data(axes: Axes, result: Result, x, names, weights, responsibilities) -> None:
    params = result.params.likelihood
    known = isinstance(params, (GaussianParams, PoissonParams))
    if x.shape[1] == 1 and isinstance(params, GaussianParams):
        _draw_densities(axes, result, x[:, 0], names[0], weights)
    elif x.shape[1] == 1 and isinstance(params, PoissonParams):
        _draw_counts(axes, result, x[:, 0], names[0], weights)
    elif x.shape[1] == 1:
        _draw_assigned_histogram(axes, x[:, 0], names[0], weights, responsibilities)
    else:
        _draw_points(axes, result, x, names, responsibilities, known)


def _draw_points(axes: Axes, result: Result, x, names, responsibilities, known: bool) -> None:
    pair = _best_pair(result) if known and x.shape[1] > 2 else (0, 1)
    rng = np.random.default_rng(0)
    rows = np.arange(len(x)) if len(x) <= _MOST_POINTS else rng.choice(len(x), _MOST_POINTS, replace=False)
    points = x[rows][:, pair]
    counts = isinstance(result.params.likelihood, PoissonParams)
    if counts:
        points = points + rng.uniform(-0.3, 0.3, points.shape)
    assigned = responsibilities[rows].argmax(axis=1)
    size = float(np.clip(6000 / len(rows), 2.5, 22))
    for k in range(responsibilities.shape[1]):
        mine = points[assigned == k]
        axes.scatter(
            mine[:, 0], mine[:, 1], s=size, marker=_marker(k), color=_color(k), alpha=0.55, linewidths=0, zorder=2
        )
    if isinstance(result.params.likelihood, GaussianParams):
        _draw_ellipses(axes, result, pair)
    if known:
        _label_means(axes, result, pair)
    _limit_to(axes, points)
    _style(axes, _points_title(result, x, names, pair, len(rows), counts), names[pair[0]], names[pair[1]])


def _points_title(result: Result, x, names, pair, shown: int, counts: bool) -> str:
    what = "Rows by their most probable component"
    if isinstance(result.params.likelihood, GaussianParams):
        what += ", ellipses at 1 and 2 sd"
    notes = []
    if x.shape[1] > 2:
        best = "those in which the components differ most" if result.model.num_components > 1 else "the first two"
        notes.append(f"2 of {x.shape[1]} columns: {best}")
    if counts:
        notes.append("counts are jittered")
    if shown < len(x):
        notes.append(f"{shown:,} of {len(x):,} rows are shown")
    return what + ("\n" + "; ".join(notes) if notes else "")


def _best_pair(result: Result) -> tuple[int, int]:
    """The two columns with the largest ratio of total to within-component variance (the inverse of Wilks' lambda)."""
    weights, mean, covariance = component_moments(result)
    within = np.einsum("k,kij->ij", weights, covariance)
    deviation = mean - weights @ mean
    total = within + np.einsum("k,ki,kj->ij", weights, deviation, deviation)
    alone = np.diagonal(total) / np.diagonal(within)
    candidates = np.sort(np.argsort(-alone, kind="stable")[:_MOST_COLUMNS])

    def ratio(pair: tuple[int, int]) -> float:
        square = np.ix_(pair, pair)
        return float(np.linalg.det(total[square]) / max(np.linalg.det(within[square]), np.finfo(float).tiny))

    pairs = [(int(i), int(j)) for i, j in itertools.combinations(candidates, 2)]
    # Rounded, so that with nothing to choose the first pair is taken.
    return max(pairs, key=lambda pair: round(ratio(pair), 6))


def _draw_ellipses(axes: Axes, result: Result, pair: tuple[int, int]) -> None:
    from matplotlib.patches import Ellipse

    _, mean, covariance = component_moments(result)
    for k in range(len(mean)):
        values, vectors = np.linalg.eigh(covariance[k][np.ix_(pair, pair)])
        values = np.maximum(values, 0)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        for radius, width, alpha in ((1, 1.8, 1.0), (2, 1.2, 0.75)):
            size = 2 * radius * np.sqrt(values)
            ellipse = Ellipse(mean[k][list(pair)], size[1], size[0], angle=angle, fill=False, zorder=3)
            ellipse.set(edgecolor=_color(k), linewidth=width, alpha=alpha, linestyle="-" if radius == 1 else _DASHES)
            axes.add_patch(ellipse)


def _label_means(axes: Axes, result: Result, pair: tuple[int, int]) -> None:
    """The number of each component at its mean, and its weight in the legend: color is never the only sign."""
    weights, mean, _ = component_moments(result)
    for k in range(len(mean)):
        at = mean[k][list(pair)]
        axes.plot(*at, marker="o", markersize=13, color="white", markeredgecolor=_color(k), zorder=4, linestyle="none")
        axes.annotate(str(k), at, ha="center", va="center_baseline", fontsize=8.5, color=_INK, zorder=5)
    for k in range(len(mean)):
        axes.plot([], [], linestyle="none", marker=_marker(k), color=_color(k), label=f"{k}:  {weights[k]:.1%}")
    _legend(axes, title="component: weight", title_fontsize=8.5, loc="best", ncols=1 + (len(mean) - 1) // 10)


def _limit_to(axes: Axes, points: np.ndarray) -> None:
    """Limits that show the points: a wide ellipse may leave the picture, rather than shrink what is in it."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.12 * np.where(high > low, high - low, 1)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _draw_densities(axes: Axes, result: Result, x, name: str, weights) -> None:
    mixing, mean, covariance = component_moments(result)
    sd = np.sqrt(covariance[:, 0, 0])
    # Narrower than the rules for a single bump: the bumps are what is looked for.
    bins = int(np.clip(1.5 * math.sqrt(len(x)), 5, 100))
    axes.hist(x, bins=bins, weights=weights, density=True, color=_DATA, edgecolor="white", linewidth=0.5)
    margin = 0.08 * (np.ptp(x) or 1.0)
    # Dense everywhere, and densest where a narrow component has its peak.
    everywhere = np.linspace(x.min() - margin, x.max() + margin, 800)
    peaks = (mean + sd[:, None] * np.linspace(-3, 3, 60)).ravel()
    grid = np.sort(np.concatenate([everywhere, peaks]))
    grid = grid[(grid >= x.min() - margin) & (grid <= x.max() + margin)]
    z = (grid - mean[:, :1]) / sd[:, None]
    densities = mixing[:, None] * np.exp(-0.5 * z * z) / (sd[:, None] * math.sqrt(2 * math.pi))
    for k, density in enumerate(densities):
        axes.fill_between(grid, density, color=_color(k), alpha=0.15, linewidth=0)
        axes.plot(grid, density, color=_color(k), linewidth=1.8, label=f"{k}:  {mixing[k]:.1%}")
    if len(mixing) > 1:
        axes.plot(grid, densities.sum(axis=0), color=_INK, linewidth=1.4, linestyle=_DASHES, label="all components")
    axes.fill_between([], [], color=_DATA, label="data")
    _legend(axes, title="component: weight", title_fontsize=8.5)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(bottom=0)
    _style(axes, "Histogram of the data and densities of the components", name, "density", grid="y")


def _draw_counts(axes: Axes, result: Result, x, name: str, weights) -> None:
    """Observed shares of each count against those the mixture expects."""
    mixing, rate, _ = component_moments(result)
    counts = np.arange(int(x.max()) + 1)
    if len(counts) > 200:
        _draw_assigned_histogram(axes, x, name, weights, np.ones((len(x), 1)))
        return
    observed = np.bincount(x.astype(int), weights=weights, minlength=len(counts)) / weights.sum()
    axes.bar(counts, observed, width=0.85, color=_DATA, label="data")
    log_factorial = np.array([math.lgamma(count + 1) for count in counts])
    log_rate = np.log(np.maximum(rate, np.finfo(float).tiny))
    expected = mixing[:, None] * np.exp(counts * log_rate - rate - log_factorial)
    for k, share in enumerate(expected):
        axes.plot(
            counts, share, color=_color(k), marker=_MARKERS[k % len(_MARKERS)], markersize=5, linewidth=1.2,
            label=f"{k}:  {mixing[k]:.1%}, rate {rate[k, 0]:.3g}",
        )  # fmt: skip
    if len(mixing) > 1:
        axes.plot(counts, expected.sum(axis=0), color=_INK, linewidth=1.4, linestyle=_DASHES, label="all components")
    _legend(axes, title="component: weight", title_fontsize=8.5)
    axes.set_ylim(bottom=0)
    _whole_numbers(axes)
    _style(axes, "Observed and expected shares of each count", name, "share of the rows", grid="y")


def _draw_assigned_histogram(axes: Axes, x, name: str, weights, responsibilities) -> None:
    assigned = responsibilities.argmax(axis=1)
    groups = [assigned == k for k in range(responsibilities.shape[1])]
    axes.hist(
        [x[g] for g in groups], bins=min(60, max(1, len(np.unique(x)))), weights=[weights[g] for g in groups],
        stacked=True, color=[_color(k) for k in range(len(groups))], label=[str(k) for k in range(len(groups))],
    )  # fmt: skip
    _legend(axes, title="component", title_fontsize=8.5)
    _style(axes, "Rows by their most probable component", name, "rows", grid="y")


# The starts.


def _draw_starts(axes: Axes, result: Result) -> None:
    """Objective against step, for every start; what stopped it by color, the best on top."""
    starts, best = result.starts, result.best
    recorded = starts.trace.shape[1]
    # The common way to end is drawn first, so that the others are seen.
    for i in sorted(range(len(starts)), key=lambda i: starts.status[i] == Status.CONVERGED, reverse=True):
        color = _STATUS_COLORS.get(Status(int(starts.status[i])), _OTHER_STATUS)
        _draw_start(axes, result, i, color=color, linewidth=1, alpha=0.4, zorder=2, markersize=3.5)
    _draw_start(axes, result, best, color=_INK, linewidth=2, zorder=4, markersize=6)
    axes.plot([], [], color=_INK, linewidth=2, label=f"best: {_number(result.objective)}")
    for status in sorted(set(starts.status.tolist())):
        count = int((starts.status == status).sum())
        color = _STATUS_COLORS.get(Status(status), _OTHER_STATUS)
        axes.plot([], [], color=color, linewidth=2, label=f"{Status(status).label}: {count}")
    _legend(axes, loc="lower right")
    longest = max(int(starts.steps.max()), 1)
    if longest > 60:
        _compress_steps(axes)
    axes.set_xlim(-0.01 * longest if longest <= 60 else -0.2, longest * 1.04)
    _limit_objective(axes, result)
    cut = f" (dotted: after the {recorded} recorded steps)" if longest >= recorded > 0 else ""
    what = "log-likelihood" if result.objective == result.log_likelihood else "log-likelihood + log-prior"
    _whole_numbers(axes)
    _style(axes, f"{len(starts)} start{'s' if len(starts) > 1 else ''}{cut}", "step", what)


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


# The choice.


def _draw_choice(axes: Axes, selection: Selection) -> None:
    """The criterion of every model; hollow where the fit is degenerate, and so its likelihood not real."""
    from matplotlib.ticker import MaxNLocator

    counts = np.array([result.model.num_components for result in selection.results])
    values = np.array(selection.values, float)
    sound = np.array([result.status.usable and not result.degenerate for result in selection.results])
    shown = np.isfinite(values)
    line = shown & sound
    axes.plot(counts[line], values[line], color=_COLORS[0], linewidth=1.4, marker="o", markersize=5, zorder=2)
    doubtful = shown & ~sound
    if doubtful.any():
        axes.plot(
            counts[doubtful], values[doubtful], linestyle="none", marker="o", markersize=6, markerfacecolor="white",
            markeredgecolor=_STATUS_COLORS[Status.DEGENERATE], label="degenerate or failed", zorder=2,
        )  # fmt: skip
    best = selection.chosen
    axes.plot(counts[best], values[best], linestyle="none", marker="o", markersize=9, color=_INK, zorder=3)
    _legend(axes, loc="best")
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    name = selection.criterion.upper()
    _style(axes, f"{name} (smaller is better): {counts[best]} chosen", "number of components", name)
