"""Data files as arrays of numbers: csv, tsv, npy, npz and parquet. Every error names the file, the row and the column.

A column that is not made of numbers is left out by name when no columns were asked for, and is an error when it was;
or, where categories are asked for, it becomes codes. A missing value is an error unless missing values are asked for,
because a row that silently disappears changes the fit.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

#: What the columns of x hold: numbers; categories, each column's values as codes 0, 1, …; or each column what it
#: holds, words as codes and numbers as they are.
Values = Literal["numbers", "categories", "mixed"]

#: A column with more different values than this does not hold categories.
MOST_CATEGORIES = 100

#: Cells that stand for a missing value, compared in lower case.
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "-nan", "<na>"})


class TableError(ValueError):
    """A data file cannot be read as rows of numbers; the message names the file and the place in it."""


class MissingValueError(TableError):
    """A value of x is missing, and missing values were not asked for."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers.

    x: float64, [N, D], NaN where a value is missing. columns: D names. weights: one number per row, [N], if a column of
    weights was asked for. left_out: (name, reason) of the columns that are not part of x. categories: for every column
    of codes the names of the codes, for one of numbers None. groups: the group of each row, a number from 0 in the
    order in which the groups appear, [N], if a column of groups was asked for, and group_names what it holds. inputs:
    numbers of each row, [N, C], if columns of inputs were asked for. places: of every column its number in the file.
    """

    x: np.ndarray
    columns: tuple[str, ...]
    weights: np.ndarray | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    categories: tuple[tuple[str, ...] | None, ...] = ()
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    inputs: np.ndarray | None = None
    places: tuple[int, ...] = ()


def read(
    path: str | os.PathLike,
    columns: Sequence[str | int] | None = None,
    weights: str | int | None = None,
    *,
    values: Values = "numbers",
    missing: bool = False,
    groups: str | int | None = None,
    inputs: Sequence[str | int] = (),
    categories: Sequence[str | int] = (),
) -> Table:
    """Read a data file; the ending of its name says what it is.

    columns: names, or numbers counted from 0, of the columns of x in the order wanted; by default all that hold
    what ``values`` says. weights: the column that holds the weights of the rows, groups: the one that says which rows
    belong together, inputs: those that explain x; they are not part of it. categories: columns of x whose numbers are
    categories too, where ``values`` is "mixed". missing: let values of x be missing; they are NaN.
    Raises `TableError`, of which `MissingValueError` is one.
    """
    path = Path(path)
    _check_file(path, _READERS.get(path.suffix.lower()))
    source = _READERS[path.suffix.lower()](path)
    return _table(path, source, _Wanted(columns, weights, groups, tuple(inputs), values, missing, tuple(categories)))


def endings() -> tuple[str, ...]:
    """The endings of file names that can be read."""
    return tuple(_READERS)


def _check_file(path: Path, reader: Any) -> None:
    if not path.exists():
        raise TableError(f"{path}: there is no such file")
    if path.is_dir():
        raise TableError(f"{path} is a directory; expected a data file")
    if reader is None:
        given = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise TableError(f"{path} has {given}; files that can be read end in {', '.join(_READERS)}")
    if path.stat().st_size == 0:
        raise TableError(f"{path} is empty")


# From columns to a table: the same for all kinds of files.


@dataclasses.dataclass(frozen=True)
class _Source:
    """An opened file: the names of its columns, and how to get some of them.

    load(wanted, strict): an array per wanted column; where not strict, a string instead, saying why it has no numbers.
    words(wanted): the text of each wanted column, with None where it is missing. place(row): where a row is, in words.
    """

    names: list[str]
    load: Callable[[list[int], list[bool]], list[np.ndarray | str]]
    words: Callable[[list[int]], list[list[str | None]]]
    place: Callable[[int], str] = lambda row: f"row {row}"


@dataclasses.dataclass(frozen=True)
class _Wanted:
    columns: Sequence[str | int] | None
    weights: str | int | None
    groups: str | int | None
    inputs: tuple[str | int, ...]
    values: Values
    missing: bool
    categories: tuple[str | int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Column:
    values: np.ndarray
    categories: tuple[str, ...] | None = None


def _table(path: Path, source: _Source, wanted: _Wanted) -> Table:
    roles = {"weights": wanted.weights, "groups": wanted.groups}
    apart = {role: _find(path, source.names, column) for role, column in roles.items() if column is not None}
    given = [_find(path, source.names, column) for column in wanted.inputs]
    places = _places(path, source.names, wanted.columns, apart, given)
    groups, group_names = _groups(path, source, apart["groups"]) if "groups" in apart else (None, ())
    coded = {_find(path, source.names, column) for column in wanted.categories}
    if stray := sorted(coded - set(places)):
        raise TableError(f"{path}: column {source.names[stray[0]]!r} is to hold categories, but is not fitted")
    loaded, weights = _load(path, source, places, apart.get("weights"), wanted, coded)
    if weights is not None:
        _check_finite(path, source.names[apart["weights"]], weights, source.place)

    inputs = [np.asarray(values) for values in source.load(given, [True] * len(given))] if given else []
    for i, values in zip(given, inputs, strict=True):
        _check_finite(path, source.names[i], values, source.place)

    kept: list[tuple[str, _Column]] = []
    kept_places: list[int] = []
    left_out: list[tuple[str, str]] = []
    for i, column in zip(places, loaded, strict=True):
        name = source.names[i] or f"column {i}"
        if wanted.columns is None and isinstance(column, _Column) and _is_row_index(source.names[i], column):
            column = "it has no name and only counts the rows"
        if isinstance(column, str):
            left_out.append((name, column))
        else:
            kept.append((name, column))
            kept_places.append(i)
    if not kept:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_out)
        what = {"mixed": "numbers or categories"}.get(wanted.values, wanted.values)
        raise TableError(f"{path} has no column of {what} ({reasons or 'no columns'})")
    for name, column in kept:
        _check_finite(path, name, column.values, source.place, wanted.missing, optional=True)
    return Table(
        x=np.stack([column.values for _, column in kept], axis=1),
        columns=tuple(name for name, _ in kept),
        weights=weights,
        left_out=tuple(left_out),
        categories=tuple(column.categories for _, column in kept),
        groups=groups,
        group_names=group_names,
        inputs=np.stack(inputs, axis=1) if inputs else None,
        places=tuple(kept_places),
    )


def _load(
    path: Path, source: _Source, places: list[int], weight: int | None, wanted: _Wanted, coded: set[int]
) -> tuple[list[_Column | str], np.ndarray | None]:
    """Each column as asked for, or why it is not one; and the weights."""
    asked = wanted.columns is not None
    extra = [] if weight is None else [weight]
    # At once where it can be: a file of numbers is then read in one pass.
    numbers: list[np.ndarray | str] = [""] * len(places)
    plain = [] if wanted.values == "categories" else places
    strict = asked and wanted.values == "numbers"
    loaded = source.load(plain + extra, [strict] * len(plain) + [True] * len(extra))
    weights = np.asarray(loaded.pop()) if extra else None
    if wanted.values == "numbers":
        return [values if isinstance(values, str) else _Column(values) for values in loaded], weights
    numbers[: len(loaded)] = loaded
    numbers = ["" if i in coded else values for i, values in zip(places, numbers, strict=True)]
    texts = [i for i, values in zip(places, numbers, strict=True) if isinstance(values, str)]
    words = dict(zip(texts, source.words(texts), strict=True))
    columns: list[_Column | str] = []
    for i, values in zip(places, numbers, strict=True):
        column = _categories(words[i], source.place) if isinstance(values, str) else _Column(values)
        if (asked or i in coded) and isinstance(column, str):
            raise TableError(f"{path}, column {source.names[i]!r}: {column}")
        columns.append(column)
    return columns, weights


def _categories(cells: list[str | None], place: Callable[[int], str]) -> _Column | str:
    """A column's different values as codes, in the order of numbers or of the alphabet; or why it has no categories."""
    present = [cell for cell in cells if cell is not None]
    names: list[str] = sorted(set(present))
    if names and all(map(_is_number, names)):
        numbers = {name: float(name) for name in names}
        for name, number in numbers.items():
            if not number.is_integer():
                return f"{name!r} in {place(cells.index(name))} is neither a word nor a whole number"
        codes = {name: f"{number:.0f}" for name, number in numbers.items()}
        names = [f"{number:.0f}" for number in sorted(set(numbers.values()))]
    else:
        codes = {name: name for name in names}
    if len(names) > MOST_CATEGORIES:
        return f"it has {len(names)} different values, more than {MOST_CATEGORIES} categories"
    order = {name: code for code, name in enumerate(names)}
    values = np.array([np.nan if cell is None else order[codes[cell]] for cell in cells])
    return _Column(values, tuple(names))


def _groups(path: Path, source: _Source, column: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The number of the group of each row, in the order in which the groups appear, and what they are called."""
    cells = source.words([column])[0]
    if None in cells:
        where = source.place(cells.index(None))
        raise TableError(f"{path}, {where}, column {source.names[column]!r}: the value is missing")
    order = {name: number for number, name in enumerate(dict.fromkeys(cells))}
    return np.array([order[cell] for cell in cells]), tuple(str(name) for name in order)


_DOES = {"weights": "hold the weights", "groups": "name the groups"}


def _places(
    path: Path, names: list[str], columns: Sequence[str | int] | None, apart: dict[str, int], inputs: list[int]
) -> list[int]:
    """The places of the columns of x."""
    if len(set(apart.values())) < len(apart):
        raise TableError(f"{path}: column {names[apart['weights']]!r} cannot hold the weights and name the groups too")
    taken = {**dict.fromkeys(inputs, "explain the others"), **{i: _DOES[role] for role, i in apart.items()}}
    if len(taken) < len(inputs) + len(apart):
        raise TableError(f"{path}: a column of inputs is asked for twice, or holds the weights or the groups too")
    if columns is None:
        return [i for i in range(len(names)) if i not in taken]
    wanted = [_find(path, names, column) for column in columns]
    if not wanted:
        raise TableError(f"{path}: the list of columns is empty")
    for i in wanted:
        if wanted.count(i) > 1:
            raise TableError(f"{path}: column {names[i]!r} is asked for twice")
        if i in taken:
            raise TableError(f"{path}: column {names[i]!r} cannot {taken[i]} and be fitted too")
    return wanted


def _find(path: Path, names: list[str], column: str | int) -> int:
    """The place of a column given by name, or by number where no column has such a name."""
    same = [place for place, name in enumerate(names) if name == column]
    if len(same) == 1:
        return same[0]
    if same:
        raise TableError(f"{path} has {len(same)} columns named {column!r}; say which by number, from 0")
    number = int(column) if isinstance(column, int) or column.isdecimal() else None
    if number is not None and 0 <= number < len(names):
        return number
    there = ", ".join(repr(name) for name in names[:30]) + (", …" if len(names) > 30 else "")
    raise TableError(f"{path} has no column {column!r}; its {len(names)} columns are {there}")


def _is_row_index(name: str, column: _Column) -> bool:
    """A column without a name that counts 0, 1, 2, … or 1, 2, 3, …: row numbers, as data frames are written out."""
    values = column.values
    if name or len(values) < 2 or column.categories is not None:
        return False
    return bool(values[0] in (0, 1) and np.array_equal(values, values[0] + np.arange(len(values))))


def _check_finite(
    path: Path,
    name: str,
    values: np.ndarray,
    place: Callable[[int], str],
    missing: bool = False,
    optional: bool = False,
) -> None:
    bad = np.flatnonzero(np.isinf(values) if missing else ~np.isfinite(values))
    if len(bad):
        nothing = bool(np.isnan(values[bad[0]]))
        what = "is missing" if nothing else f"is {values[bad[0]]}"
        more = f"; {len(bad)} of {len(values)} rows have such a value" if len(bad) > 1 else ""
        advice = "remove these rows or fill them in" if len(bad) > 1 else "remove the row or fill it in"
        error = MissingValueError if nothing and optional else TableError
        raise error(f"{path}, {place(int(bad[0]))}, column {name!r}: the value {what}{more} ({advice})")


# Text.


def _open_text(path: Path, delimiter: str) -> _Source:
    records = _records(path, delimiter)
    first = next(records, None)
    if first is None:
        raise TableError(f"{path} is empty")
    first_line, cells = first
    second = next(records, None)
    header = _is_header(cells, None if second is None else second[1])
    names = [cell.strip() for cell in cells] if header else [f"x{i}" for i in range(len(cells))]
    if header and second is None:
        raise TableError(f"{path} has a header ({', '.join(map(repr, names))}) but no rows")
    if len(names) == 1 and ";" in names[0]:
        raise TableError(
            f"{path}: line 1 is {cells[0]!r}; the columns of this kind of file are parted by {delimiter!r}"
        )
    skipped = first_line if header else 0
    lines: list[int] = []

    def load(wanted: list[int], strict: list[bool]) -> list[np.ndarray | str]:
        if len(wanted) == len(names):
            matrix = _all_numbers(path, delimiter, skipped, len(names))
            if matrix is not None:
                return [matrix[:, i] for i in wanted]
        text = _cells(path, delimiter, header, len(names), wanted, lines)
        pairs = zip(wanted, text, strict, strict=True)
        return [_numbers(path, names[i], column, must, lines) for i, column, must in pairs]

    def words(wanted: list[int]) -> list[list[str | None]]:
        text = _cells(path, delimiter, header, len(names), wanted, lines)
        return [[None if cell.strip().lower() in MISSING else cell.strip() for cell in column] for column in text]

    return _Source(names, load, words, lambda row: _place(row, lines))


def _place(row: int, lines: list[int]) -> str:
    """Rows are counted from 0, as everywhere in jaxem; the line is where an editor finds it."""
    return f"row {row} (line {lines[row]})"


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of every record that is not blank."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if cells and (len(cells) > 1 or cells[0].strip()):
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not text in UTF-8 (byte {error.start})") from None
    except csv.Error as error:
        raise TableError(f"{path}, line {reader.line_num}: {error}") from None


def _is_number(cell: str) -> bool:
    cell = cell.strip()
    if cell.lower() in MISSING - {""}:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _is_header(first: list[str], second: list[str] | None) -> bool:
    """A first row holds names when none of its cells is a number, or when one stands above a number and is none."""
    numeric = [_is_number(cell) for cell in first]
    if all(numeric) or not any(numeric) or second is None:
        return not any(numeric)
    return any(_is_number(below) and not number for number, below in zip(numeric, second))


def _all_numbers(path: Path, delimiter: str, skipped: int, width: int) -> np.ndarray | None:
    """The whole file by numpy's reader, or None where it meets anything but numbers: who then looks says where."""
    try:
        matrix = np.loadtxt(
            path, delimiter=delimiter, skiprows=skipped, ndmin=2, comments=None, quotechar='"', encoding="utf-8-sig"
        )
    except ValueError:
        return None
    return matrix if matrix.shape[1] == width and np.all(np.isfinite(matrix)) else None


def _cells(
    path: Path, delimiter: str, header: bool, width: int, wanted: list[int], lines: list[int]
) -> list[list[str]]:
    """The text of some columns; the line numbers of the rows are put into ``lines``."""
    lines.clear()
    records = _records(path, delimiter)
    if header:
        next(records)
    columns: list[list[str]] = [[] for _ in wanted]
    for line, cells in records:
        if len(cells) != width:
            raise TableError(f"{path}, line {line}: {len(cells)} cells where the first line has {width}")
        lines.append(line)
        for column, i in zip(columns, wanted, strict=True):
            column.append(cells[i])
    return columns


def _numbers(path: Path, name: str, cells: list[str], strict: bool, lines: list[int]) -> np.ndarray | str:
    """The numbers of a column, NaN where one is missing; or why it is not one of numbers."""
    try:
        if not any("_" in cell for cell in cells):
            return np.array(list(map(float, cells)))
    except ValueError:
        pass
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell.strip().lower() in MISSING:
            continue
        if not _is_number(cell):
            if strict:
                raise TableError(f"{path}, {_place(row, lines)}, column {name!r}: {cell!r} is not a number")
            return f"{cell!r} in {_place(row, lines)} is not a number"
        values[row] = float(cell)
    return values


# Binary.


def _open_npy(path: Path) -> _Source:
    with open(path, "rb") as file:
        try:
            array = read_array(file, path.stat().st_size)
        except ValueError as error:
            raise TableError(f"{path}: {error}") from None
    return _matrix(path, array)


def _open_npz(path: Path) -> _Source:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            name = next(iter(members)) if len(members) == 1 else "x"
            if name not in members:
                there = ", ".join(map(repr, members)) or "none"
                raise TableError(f"{path} needs one array, or one named 'x'; its arrays are {there}")
            with archive.open(members[name]) as file:
                array = read_array(file, members[name].file_size)
    except TableError:
        raise
    except Exception as error:  # a damaged archive fails in many ways: each of them is a bad file
        raise TableError(f"{path} is not a sound npz file: {error}") from None
    return _matrix(path, array)


def _matrix(path: Path, array: np.ndarray) -> _Source:
    if array.dtype.kind not in "biuf":
        raise TableError(f"{path} holds an array of dtype {array.dtype}; expected numbers")
    if array.ndim not in (1, 2):
        raise TableError(f"{path} holds an array of shape {array.shape}; expected rows and columns, [N, D]")
    array = array.reshape(len(array), -1) if array.size else array
    if array.size == 0:
        raise TableError(f"{path} holds an empty array, of shape {array.shape}")
    array = array.astype(np.float64)
    return _Source(
        [f"x{i}" for i in range(array.shape[1])],
        lambda wanted, strict: [array[:, i] for i in wanted],
        lambda wanted: [_as_words(array[:, i].tolist()) for i in wanted],
    )


def _as_words(values: list[Any]) -> list[str | None]:
    """Values as a text file has them: None where one is missing, whole numbers without a point."""
    words: list[str | None] = []
    for value in values:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = "" if value is None else str(value).strip()
        words.append(None if text.lower() in MISSING else text)
    return words


def read_array(file: BinaryIO | Any, size: int) -> np.ndarray:
    """One array of ``size`` bytes in numpy's format, its declared shape checked before anything is allocated.

    Raises ValueError for anything but a sound array of plain numbers.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the npy format is not known")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = header(file)
    except (ValueError, TypeError, EOFError, OSError, SyntaxError, RecursionError) as error:
        raise ValueError(f"not a sound array: {error}") from None
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of dtype {dtype} is not one of plain numbers")
    if any(length < 0 for length in shape):
        raise ValueError(f"an array cannot have the shape {shape}")
    declared = math.prod(shape) * dtype.itemsize
    if declared > size:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} needs {declared} bytes; there are {size}")
    data = file.read(declared)
    if len(data) != declared:
        raise ValueError(f"the array is cut short: {len(data)} of {declared} bytes")
    if file.read(1):
        raise ValueError("there is more than the array holds")
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran_order else "C")
    return array.copy()


def write_array(array: np.ndarray) -> bytes:
    """The array in numpy's format, without pickled objects."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _open_parquet(path: Path) -> _Source:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f'{path}: reading parquet needs pyarrow: pip install "jaxem[parquet]"') from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise TableError(f"{path} is not a sound parquet file: {error}") from None
    if rows == 0:
        raise TableError(f"{path} has no rows")
    types = pyarrow.types

    def is_number(kind: Any) -> bool:
        return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)

    def load(wanted: list[int], strict: list[bool]) -> list[np.ndarray | str]:
        kinds = [schema.field(i).type for i in wanted]
        for i, kind, must in zip(wanted, kinds, strict, strict=True):
            if must and not is_number(kind):
                raise TableError(f"{path}, column {schema.names[i]!r}: its type is {kind}, which is not a number")
        loaded: list[np.ndarray | str] = []
        for i, kind in zip(wanted, kinds, strict=True):
            if not is_number(kind):
                loaded.append(f"its type is {kind}")
                continue
            try:
                column = file.read(columns=[schema.names[i]]).column(0)
                loaded.append(column.cast(pyarrow.float64(), safe=False).to_numpy())
            except (pyarrow.ArrowException, OSError) as error:
                raise TableError(f"{path}, column {schema.names[i]!r} cannot be read: {error}") from None
        return loaded

    def words(wanted: list[int]) -> list[list[str | None]]:
        try:
            return [_as_words(file.read(columns=[schema.names[i]]).column(0).to_pylist()) for i in wanted]
        except (pyarrow.ArrowException, OSError) as error:
            raise TableError(f"{path} cannot be read: {error}") from None

    return _Source(list(schema.names), load, words)


_READERS: dict[str, Callable[[Path], _Source]] = {
    ".csv": lambda path: _open_text(path, ","),
    ".tsv": lambda path: _open_text(path, "\t"),
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".parquet": _open_parquet,
}
