"""Colors, markers, axes: what all panels look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxem.status import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's "bright" scheme, in the order of most contrast: distinct for all common kinds of color vision.
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, GRID, DATA = "#222222", "#777777", "#E6E6E6", "#D5D8DC"
# What fits nowhere: unlike any component.
NOISE = "#555555"
# Labels longer than this are cut.
_LONGEST = 24
DASHES = (0, (5, 2))
STATUS_COLORS = {
    Status.CONVERGED: "#4477AA",
    Status.STALLED: "#66CCEE",
    Status.MAX_STEPS: "#CCBB44",
    Status.OUTRACED: "#BBBBBB",
    Status.DEGENERATE: "#EE6677",
}
OTHER_STATUS = "#AA3377"


def number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def cut(text: str) -> str:
    """A label that leaves room for the picture."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def whole_numbers(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole numbers only: there is no half step and no half count."""
    axes.xaxis.get_major_locator().set_params(integer=True)


def style(axes: Axes, title: str, xlabel: str, ylabel: str, grid: str = "both") -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=8)
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=FAINT, labelcolor=INK, length=3)
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def legend(axes: Axes, **options: Any) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=8.5, labelcolor=INK, frameon=True, framealpha=0.9, edgecolor="none", **options)


def color(k: int) -> str:
    return COLORS[k % len(COLORS)]


def marker(k: int) -> str:
    return MARKERS[k // len(COLORS) % len(MARKERS)]
