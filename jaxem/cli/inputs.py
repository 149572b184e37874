"""The data of a fit: read, checked against what the model takes, and put in the order in which it is fitted."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxem import datasets, tables
from jaxem.cli.console import CommandError, say
from jaxem.cli.models import Kind
from jaxem.model import Data

DEFAULT_COMPONENTS = tuple(range(1, 10))
# A column of no more different numbers than this may hold categories.
_FEW_VALUES = 5


@dataclasses.dataclass(frozen=True)
class Input:
    """The data of a fit and what to call them.

    table: of what is modelled; of a regression of the response. data, weights: what is fitted. order: the row of the file
    of every row that is fitted, None where they are the same. inputs: the names of the columns of data.inputs.
    regression: whether the one column of the table is a response to them. counts: the places of the columns of counts.
    """

    name: str
    table: tables.Table
    data: Data
    weights: np.ndarray | None = None
    order: np.ndarray | None = None
    inputs: tuple[str, ...] = ()
    regression: bool = False
    counts: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.table.x.shape[0]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.table.columns

    @property
    def title(self) -> str:
        notes = "" if self.table.weights is None else f", weights with sum {self.table.weights.sum():g}"
        if len(self.table.group_names) > 1:
            notes += f", {len(self.table.group_names)} sequences"
        what = f"{len(self.columns)} column{'s' if len(self.columns) > 1 else ''} ({_listed(self.columns)})"
        if self.regression:
            what = f"response {_listed(self.columns)}"
        if self.inputs:
            what += f" given {_listed(self.inputs)}"
        return f"{self.name}: {self.num_rows} rows, {what}{notes}"

    def in_file_order(self, rows: np.ndarray) -> np.ndarray:
        """What was found for every row, in the order of the file."""
        if self.order is None:
            return rows
        back = np.empty_like(rows)
        back[self.order] = rows
        return back


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def read(args: argparse.Namespace, kind: Kind) -> Input:
    """The data file, or the data set, that was asked for."""
    name, path, columns, weights = _find(args)
    if "response" in kind.options:
        columns = _with_response(args, columns)
    try:
        table = tables.read(
            path,
            columns,
            weights,
            values=kind.values,
            missing=args.missing,
            groups=args.sequence,
            inputs=args.gate or (),
            categories=args.categories or (),
        )
    except tables.MissingValueError as error:
        if "missing" in kind.options:
            raise CommandError(f"{error}; --missing treats empty cells as missing") from None
        raise
    for column, reason in table.left_out:
        say(f"jaxem: note: column {column!r} is left out: {reason}")
    if "response" in kind.options:
        return _regression(name, path, args.response, table)
    mask = _mask(path, table, args.model, kind.cells)
    order, starts = _sequences(table, "sequence" in kind.options)
    x = table.x if mask is None else _filled(table.x)
    picked = [None if a is None or order is None else a[order] for a in (x, mask, table.weights)]
    x, mask, weights = picked if order is not None else (x, mask, table.weights)
    typed = Data(x=x, mask=mask, starts=starts, inputs=table.inputs)
    counts = _counts(path, table, args.counts or ())
    if kind.values == "mixed":
        _note_few_values(table, counts)
    return Input(name, table, typed, weights, order, inputs=tuple(args.gate or ()), counts=counts)


def _with_response(args: argparse.Namespace, columns: Sequence[str] | None) -> Sequence[str] | None:
    if args.response is None:
        raise CommandError(f"--model {args.model} needs --response, the column that is to be explained by the others")
    return columns if columns is None or args.response in columns else [*columns, args.response]


def _regression(name: str, path: Path, response: str, table: tables.Table) -> Input:
    """The column of the response, and the others as inputs."""
    if response not in table.columns:
        why = dict(table.left_out).get(response)
        reason = f"is no response: {why}" if why else f"is not there; the columns are {', '.join(table.columns)}"
        raise CommandError(f"{path}: column {response!r} {reason}")
    others = [i for i, column in enumerate(table.columns) if column != response]
    if not others:
        raise CommandError(f"{path}: there is no column of numbers besides the response {response!r}")
    at = table.columns.index(response)
    own = dataclasses.replace(table, x=table.x[:, [at]], columns=(response,), categories=(None,))
    inputs = tuple(table.columns[i] for i in others)
    return Input(name, own, Data(x=own.x, inputs=table.x[:, others]), table.weights, inputs=inputs, regression=True)


def _counts(path: Path, table: tables.Table, wanted: Sequence[str]) -> tuple[int, ...]:
    """The places in x of the columns of counts, given by name or by their number in the file."""
    numbers = {str(place): i for i, place in enumerate(table.places)}
    found = []
    for column in wanted:
        i = table.columns.index(column) if column in table.columns else numbers.get(column)
        if i is None:
            raise CommandError(f"{path}: column {column!r} of counts is not fitted; {', '.join(table.columns)} are")
        if table.categories[i] is not None:
            raise CommandError(f"{path}: column {table.columns[i]!r} holds categories, so no counts")
        found.append(i)
    return tuple(sorted(set(found)))


def _note_few_values(table: tables.Table, counts: tuple[int, ...]) -> None:
    """Numbers that may well be the names of categories; of a few values a normal distribution says little."""
    for i, (name, column) in enumerate(zip(table.columns, table.x.T, strict=True)):
        values = np.unique(column[~np.isnan(column)])
        if i not in counts and table.categories[i] is None and len(values) <= _FEW_VALUES:
            listed = ", ".join(f"{value:g}" for value in values)
            say(f"jaxem: note: column {name!r} has only the values {listed}, fitted as normal numbers; "
                "if they are categories, say so with --categories")  # fmt: skip


def _find(args: argparse.Namespace) -> tuple[str, Path, Sequence[str] | None, str | None]:
    """What to call the data, where they lie, their columns, and the one that holds the weights."""
    path = Path(args.data)
    if path.is_file():
        return path.stem, path, args.columns, args.weights
    if args.data in datasets.names():
        known = datasets.entry(args.data)
        taken = {args.weights, args.sequence, *(args.gate or ())}
        columns = args.columns or [column for column in known.columns if column not in taken]
        return args.data, datasets.path(args.data), columns, args.weights or known.weights
    if path.exists():
        raise CommandError(f"{path} is not a file")
    names = ", ".join(datasets.names())
    raise CommandError(f"there is no file {args.data!r}, nor a data set of that name; the data sets are {names}")


def _mask(path: Path, table: tables.Table, model: str, cells: bool) -> np.ndarray | None:
    """True where a cell is there, [N, D], or a row, [N]; None where all are."""
    there = ~np.isnan(table.x)
    if there.all():
        return None
    for name, column in zip(table.columns, there.T, strict=True):
        if not column.any():
            raise CommandError(f"{path}: all cells of column {name!r} are missing")
    rows = np.flatnonzero(~there.all(axis=1))
    say(
        f"jaxem: note: {there.size - there.sum()} of {there.size} cells are missing, in {len(rows)} of {len(there)} rows"
    )
    if cells:
        return there
    partly = rows[there[rows].any(axis=1)]
    if len(partly):
        column = table.columns[int(np.argmin(there[partly[0]]))]
        raise CommandError(
            f"{path}, row {partly[0]}: column {column!r} is missing and others are not; of a row --model {model} "
            "takes all or nothing"
        )
    return np.all(there, axis=1)


def _filled(x: np.ndarray) -> np.ndarray:
    """Missing cells hold a number of their column: nobody reads it, but everybody may check it."""
    first = np.argmax(~np.isnan(x), axis=0)
    return np.where(np.isnan(x), x[first, np.arange(x.shape[1])], x)


def _sequences(table: tables.Table, sequential: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The order that puts the rows of a sequence together, and where each sequence starts."""
    if not sequential:
        return None, None
    if table.groups is None:
        return None, np.arange(len(table.x)) == 0
    order = np.argsort(table.groups, kind="stable")
    groups = table.groups[order]
    starts = np.concatenate([[True], groups[1:] != groups[:-1]])
    if table.weights is not None:
        weights = table.weights[order]
        uneven = np.flatnonzero(~starts & (weights != np.concatenate([weights[:1], weights[:-1]])))
        if len(uneven):
            name = table.group_names[groups[uneven[0]]]
            raise CommandError(
                f"the weights are those of sequences, but the rows of sequence {name!r} differ in theirs"
            )
    return (None if np.array_equal(order, np.arange(len(order))) else order), starts


def check_components(given: tuple[int, ...] | None, kind: Kind, data: Input) -> tuple[int, ...]:
    """The numbers of components to try: as asked for, or as many of the default ones as the data allow."""
    if kind.unit == "factor":
        return _check_factors(given, data)
    rows = data.num_rows if data.weights is None else int(np.count_nonzero(data.weights))
    rows -= kind.noise
    if given is None:
        return tuple(k for k in DEFAULT_COMPONENTS if k <= max(rows, 1))
    if max(given) > rows:
        rows_of = "rows" if data.weights is None else "rows of positive weight"
        what = f"{max(given)} {kind.unit}s and noise" if kind.noise else f"{max(given)} {kind.unit}s"
        raise CommandError(f"{what} need at least as many rows; {data.name} has {rows + kind.noise} {rows_of}")
    return given


def _check_factors(given: tuple[int, ...] | None, data: Input) -> tuple[int, ...]:
    """By default as many factors as the covariances of the columns can tell apart (Ledermann 1937), but always one."""
    d = len(data.columns)
    most = max(given) if given else 1
    if most >= d:
        plural = "s" if most > 1 else ""
        raise CommandError(f"{most} factor{plural} need more columns; {data.name} has {d} ({', '.join(data.columns)})")
    return given or tuple(k for k in DEFAULT_COMPONENTS if k == 1 or (k < d and (d - k) ** 2 >= d + k))
