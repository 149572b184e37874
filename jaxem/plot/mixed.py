"""A product of families: a panel for every block of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxem.families import BernoulliParams, CategoryParams
from jaxem.plot.components import draw_components
from jaxem.plot.profiles import draw_profiles
from jaxem.plot.subject import Subject, blocks

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure


def draw_blocks(figure: SubFigure, shown: Subject) -> None:
    """Below each other, in the order of the product."""
    parts = blocks(shown.result, shown.x.shape[1])
    panels = [figure] if len(parts) == 1 else figure.subfigures(len(parts), 1)
    for panel, block in zip(panels, parts, strict=True):
        draw = draw_profiles if isinstance(block.params, (BernoulliParams, CategoryParams)) else draw_components
        draw(panel, shown.narrowed(block))
