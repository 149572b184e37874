"""Pictures of a fit, drawn on a `matplotlib.figure.Figure` of their own: no pyplot, no global state, any backend.

matplotlib is imported inside the functions: the rest of jaxem neither needs nor loads it. Panels do not know each other:
`components` and `sequences` draw the data with what was found in them, `starts` the way there, `choice` the criterion.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxem.atomic import write_atomically
from jaxem.families import BernoulliParams, CategoryParams, LinearRegressionParams, Product, RegressionParams
from jaxem.plot.choice import draw_choice
from jaxem.plot.components import draw_components
from jaxem.plot.factors import draw_loadings
from jaxem.plot.mixed import draw_blocks
from jaxem.plot.profiles import draw_profiles
from jaxem.plot.regressions import draw_regressions
from jaxem.plot.sequences import draw_sequences
from jaxem.plot.starts import draw_starts
from jaxem.plot.style import INK, number
from jaxem.plot.subject import Subject, blocks, subject
from jaxem.result import Result, has_noise, size
from jaxem.select import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["fit_picture", "save_picture"]


def fit_picture(
    fit: Result | Selection,
    data: Any,
    columns: Sequence[str] | None = None,
    *,
    categories: Sequence[Sequence[str] | None] | None = None,
    inputs: Sequence[str] = (),
    weights: Any = None,
    responsibilities: Any = None,
    assigned: Any = None,
    loadings: Any = None,
    title: str = "",
) -> Figure:
    """The data with what was found in them, the way there from every start, and, for a selection, the choice.

    data: what was fitted, an array [N, D] or a `Data`; of a mixture with D > 2 the two columns in which the components
    differ most are shown, of flat sequences the longest. columns: their names. categories: for every column of codes what
    the codes are called. inputs: the names of the inputs of regressions. weights: of the rows. responsibilities:
    p(z | x), [N, K], and assigned: the most probable z, [N]; both are computed when not given. loadings: of a factor
    model on standardized columns, [D, L], by default those of the fit. Raises ImportError without matplotlib and
    ValueError for data of another shape than the fit's.
    """
    from matplotlib.figure import Figure

    result = fit.best if isinstance(fit, Selection) else fit
    shown = subject(result, data, columns, categories, inputs, weights, responsibilities, assigned, loadings)
    panels = 1 if shown.loadings is not None else len(blocks(result, shown.x.shape[1]))
    figure = Figure(figsize=(11.5, 5.6 if panels == 1 else 3.9 * panels), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    left, right = figure.subfigures(1, 2, width_ratios=[1.35, 1])
    _panel(shown)(left, shown)
    if isinstance(fit, Selection) and len(fit.results) > 1:
        above, below = right.subplots(2, 1)
        draw_choice(below, fit, shown.unit)
    else:
        above = right.subplots()
    draw_starts(above, result)
    figure.suptitle(_headline(shown, title), x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")
    return figure


def _panel(shown: Subject) -> Callable[[SubFigure, Subject], None]:
    if shown.loadings is not None:
        return draw_loadings
    if isinstance(shown.params, (LinearRegressionParams, RegressionParams)):
        return draw_regressions
    if shown.starts is not None:
        return draw_sequences
    if isinstance(shown.family, Product):
        return draw_blocks
    return draw_profiles if isinstance(shown.params, (BernoulliParams, CategoryParams)) else draw_components


def save_picture(path: str | os.PathLike, figure: Figure, dpi: int = 150) -> None:
    """Write a figure as png, whole or not at all."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=dpi))


def _headline(shown: Subject, title: str) -> str:
    result, k = shown.result, size(shown.result.model)
    noise = " and noise" if has_noise(result.model) else ""
    parts = [f"{k} {shown.unit}{'s' if k > 1 else ''}{noise}", f"log-likelihood {number(result.log_likelihood)}"]
    if result.num_free_parameters is not None:
        parts.append(f"BIC {number(result.bic)}")
    parts.append(result.status.label)
    return (f"{title}: " if title else "") + "  ·  ".join(parts)
