"""What is printed: the data, the choice, the best fit and its parameters."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxem.cli.fitting import Fitted
from jaxem.cli.inputs import Input
from jaxem.cli.models import Kind
from jaxem.families import GaussianParams
from jaxem.latents import MarkovChainParams
from jaxem.plot.subject import covariances
from jaxem.result import Result

# The parameters of no more columns than this are printed; fit.json has them all.
_PRINTED_COLUMNS = 24

#: Columns of numbers, or words, by their headings.
Columns = dict[str, Any]


def text(kind: Kind, data: Input, fitted: Fitted) -> str:
    """All that is printed about a fit."""
    parts = [data.title]
    if fitted.selection is not None:
        parts.append(str(fitted.selection))
    parts += [str(fitted.best), _components(kind, data, fitted.best)]
    return "\n\n".join(parts) + "\n"


def _components(kind: Kind, data: Input, result: Result) -> str:
    """The parameters of every component, a line each, as many columns side by side as the terminal has room for."""
    params = result.params
    first = _side_by_side([cells(title, columns) for title, columns in _of_latent(kind, params.latent)])
    groups = [cells(title, columns) for title, columns in _of_components(params)]
    for i, name in enumerate(data.columns[:_PRINTED_COLUMNS]):
        categories = data.table.categories[i]
        groups.append(cells(name, _of_column(result, i, categories)))
    width = shutil.get_terminal_size((120, 24)).columns - len(first[0]) - 3
    lines = [_join_lines(first, block) for block in _fill([group for group in groups if group[0] or group[1]], width)]
    if len(data.columns) > _PRINTED_COLUMNS:
        lines.append(f"… and {len(data.columns) - _PRINTED_COLUMNS} more columns: see fit.json")
    return "\n\n".join(lines)


def _of_latent(kind: Kind, latent: Any) -> list[tuple[str, Columns]]:
    if isinstance(latent, MarkovChainParams):
        count = len(latent.initial)
        to = {str(k): latent.transition[:, k] for k in range(count)} if count <= _PRINTED_COLUMNS else {}
        return [
            ("", {kind.unit: range(count)}),
            ("", {"initial": latent.initial}),
            *([("transition to", to)] if to else []),
        ]
    return [("", {kind.unit: range(len(latent.weights))}), ("", {"weight": latent.weights})]


def _of_components(params: Any) -> Iterator[tuple[str, Columns]]:
    """Numbers that a component has one of, whatever the number of columns."""
    likelihood = params.likelihood
    for field in dataclasses.fields(likelihood):
        values = getattr(likelihood, field.name)
        if np.ndim(values) == 1 and not isinstance(likelihood, GaussianParams):
            yield "", {field.name: values}


def _of_column(result: Result, i: int, categories: tuple[str, ...] | None) -> Columns:
    """Numbers that a component has for every column: [K, D], or [K, D, C] where the column has categories."""
    likelihood = result.params.likelihood
    covariance = covariances(result)
    if covariance is not None:
        return {"mean": likelihood.mean[:, i], "sd": np.sqrt(covariance[:, i, i])}
    fields = {field.name: np.asarray(getattr(likelihood, field.name)) for field in dataclasses.fields(likelihood)}
    return {name: values[:, i] for name, values in fields.items() if values.ndim == 2}


# Cells.


def cells(title: str, columns: Columns) -> list[str]:
    """Right-aligned columns under a common title, as lines of one width."""
    written = {name: [_format(value) for value in values] for name, values in columns.items()}
    widths = {name: max(map(len, [name, *column])) for name, column in written.items()}
    width = max(sum(widths.values()) + 2 * (len(widths) - 1), len(title))
    rows = [list(written), *map(list, zip(*written.values(), strict=True))]
    lines = ["  ".join(cell.rjust(widths[name]) for name, cell in zip(written, row, strict=True)) for row in rows]
    return [title.center(width).rstrip().ljust(width), *(line.rjust(width) for line in lines)]


def _format(value: Any) -> str:
    return f"{float(value):.5g}"


def _side_by_side(blocks: list[list[str]]) -> list[str]:
    return ["   ".join(parts) for parts in zip(*blocks, strict=True)]


def _join_lines(first: list[str], block: list[str]) -> str:
    return "\n".join(line.rstrip() for line in _side_by_side([first, block]))


def _fill(groups: list[list[str]], width: int) -> Iterator[list[str]]:
    """Blocks of cells side by side, no wider than asked where that is possible."""
    row: list[list[str]] = []
    for group in groups:
        if row and sum(len(g[0]) + 3 for g in [*row, group]) > width:
            yield _side_by_side(row)
            row = []
        row.append(group)
    yield _side_by_side(row)
