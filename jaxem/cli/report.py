"""What is printed: the data, the choice, the best fit and its parameters."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxem.cli.fitting import Factors, Fitted
from jaxem.cli.inputs import Input
from jaxem.cli.models import Kind
from jaxem.families import GaussianParams, LinearRegressionParams, RegressionParams, StudentTParams
from jaxem.latents import GatedParams, MarkovChainParams
from jaxem.plot.subject import Block, blocks, covariances, family
from jaxem.result import Result, has_noise, labels

# The parameters of no more columns than this are printed; fit.json has them all.
_PRINTED_COLUMNS = 24
_PRINTED_ROWS = 40

#: Columns of numbers, or words, by their headings.
Columns = dict[str, Any]


def text(kind: Kind, data: Input, fitted: Fitted) -> str:
    """All that is printed about a fit."""
    parts = [data.title]
    if fitted.selection is not None:
        parts.append(str(fitted.selection))
    found = fitted.found
    shown = _factors(data, found) if isinstance(found, Factors) else _components(kind, data, fitted.best)
    parts += [str(fitted.best), shown]
    return "\n\n".join(parts) + "\n"


def _components(kind: Kind, data: Input, result: Result) -> str:
    """The parameters of every component, a line each, as many columns side by side as the terminal has room for."""
    named = labels(result.model)
    latent = _of_latent(kind, data, result.params.latent)
    first = _side_by_side([cells("", {kind.unit: named}), *(cells(title, columns) for title, columns in latent)])
    groups = [*_of_components(data, result), *_of_columns(data, result)]
    if has_noise(result.model):
        groups = [(title, {name: [*values, ""] for name, values in columns.items()}) for title, columns in groups]
    tables = [cells(title, columns) for title, columns in groups if columns]
    width = shutil.get_terminal_size((120, 24)).columns - len(first[0]) - 3
    lines = [_join_lines(first, table) for table in _fill(tables, width)] or ["\n".join(first)]
    if has_noise(result.model):
        lines.append(_noise(data, result))
    hidden = max(len(data.columns), len(data.inputs) + 1 if data.inputs else 0) - _PRINTED_COLUMNS
    if hidden > 0:
        lines.append(f"… and {hidden} more columns: see fit.json")
    return "\n\n".join(lines)


def _noise(data: Input, result: Result) -> str:
    """Where the noise is."""
    noise: Any = family(result)
    sides = zip(data.columns, noise.low.tolist(), noise.high.tolist(), strict=True)
    box = [f"{name} {_format(low)} to {_format(high)}" for name, low, high in sides]
    more = ", …" if len(box) > _PRINTED_COLUMNS else ""
    return f"noise is uniform over {', '.join(box[:_PRINTED_COLUMNS])}{more}"


def _of_latent(kind: Kind, data: Input, latent: Any) -> list[tuple[str, Columns]]:
    if isinstance(latent, MarkovChainParams):
        count = len(latent.initial)
        to = {str(k): latent.transition[:, k] for k in range(count)} if count <= _PRINTED_COLUMNS else {}
        return [("", {"initial": latent.initial}), *([("transition to", to)] if to else [])]
    if isinstance(latent, GatedParams):
        gate = {name: latent.gate[:, i] for i, name in enumerate(("intercept", *data.inputs)[:_PRINTED_COLUMNS])}
        return [("gate", gate)]
    return [("", {"weight": latent.weights})]


def _of_components(data: Input, result: Result) -> Iterator[tuple[str, Columns]]:
    """Numbers that a component has one of, whatever the number of columns."""
    for block in blocks(result, len(data.columns)):
        if isinstance(block.params, GaussianParams):  # a number of each is a spherical covariance
            continue
        for name, values in _leaves(block.params):
            if values.ndim == 1 and name != "scatter":
                yield "", {name: values}


def _leaves(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of parameters by their names, those of parts among them."""
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value)
        elif value is not None:
            yield field.name, np.asarray(value)


def _of_columns(data: Input, result: Result) -> Iterator[tuple[str, Columns]]:
    """What a component has for every column; of a regression its coefficients, and the spread of the noise."""
    likelihood = result.params.likelihood
    if isinstance(likelihood, (LinearRegressionParams, RegressionParams)):
        for i, name in enumerate(("intercept", *data.inputs)[:_PRINTED_COLUMNS]):
            yield "", {name: likelihood.coefficients[:, 0, i]}
        if isinstance(likelihood, LinearRegressionParams):
            yield "", {"sd": np.sqrt(likelihood.variance[:, 0])}
        return
    owner = {column: block for block in blocks(result, len(data.columns)) for column in block.columns}
    for i, name in enumerate(data.columns[:_PRINTED_COLUMNS]):
        yield name, _of_column(owner[i], owner[i].columns.index(i), data.table.categories[i])


def _of_column(block: Block, i: int, categories: tuple[str, ...] | None) -> Columns:
    """Numbers that a component has for every column: [K, D], or [K, D, C] where the column has categories."""
    covariance = covariances(block.family, block.params)
    if covariance is not None:
        spread = "scale" if isinstance(block.params, StudentTParams) else "sd"
        return {"mean": block.params.mean[:, i], spread: np.sqrt(covariance[:, i, i])}
    fields = dict(_leaves(block.params))
    if categories is not None:
        prob = next(values for values in fields.values() if values.ndim == 3)
        return {name: prob[:, i, code] for code, name in enumerate(categories)}
    return {name: values[:, i] for name, values in fields.items() if values.ndim == 2}


def _factors(data: Input, found: Factors) -> str:
    """The loadings on standardized columns, a line for every column; of oblique factors their correlations."""
    shown = slice(_PRINTED_ROWS)
    count = found.loadings.shape[1]
    width = max(map(len, ["column", *data.columns[shown]]))
    names = [" " * width, "column".ljust(width), *(name.ljust(width) for name in data.columns[shown])]
    loadings = {str(k): found.standardized[shown, k] for k in range(count)}
    blocks = [names, cells("standardized loadings", loadings)]
    blocks.append(cells("", {"communality": found.communalities[shown], "noise sd": np.sqrt(found.noise[shown])}))
    parts = [_side_by_side(blocks)]
    if len(data.columns) > _PRINTED_ROWS:
        parts[0].append(f"… and {len(data.columns) - _PRINTED_ROWS} more columns: see loadings.csv")
    if not np.allclose(found.covariance, np.eye(count)):
        first = cells("", {"factor": range(count)})
        parts.append(
            _side_by_side([first, cells("correlations", {str(k): found.covariance[:, k] for k in range(count)})])
        )
    return "\n\n".join("\n".join(line.rstrip() for line in lines) for lines in parts)


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
    return value if isinstance(value, str) else f"{float(value):.5g}"


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
    if row:
        yield _side_by_side(row)
