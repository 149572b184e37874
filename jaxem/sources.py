"""Where the blocks of a stream come from: arrays, files and loaders, as pieces in memory of their own."""

from __future__ import annotations

import dataclasses
import mmap
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxem.model import Data, pytree, unsupported

_FIELDS = tuple(field.name for field in dataclasses.fields(Data))


@pytree
class Block:
    """Examples and their weights, as a loader may yield them; weights, one for every example, are None where all are 1."""

    data: Any
    weights: Any = None


def length(piece: Block) -> int:
    return len(jax.tree.leaves(piece.data)[0])


class Source:
    """Where pieces come from, and how many rows they have in all, as soon as that is known."""

    num_rows: int | None = None

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        """Pieces from row ``begin`` on, of about ``size`` rows where the source can choose."""
        raise unsupported(self, "pieces", "a Stream")

    def take(self, rows: np.ndarray) -> Block | None:
        """These rows, in order, where the source can reach them one by one."""
        return None

    def finished(self, rows: int) -> None:
        """A pass has ended after so many rows: always the same number."""
        if self.num_rows is not None and self.num_rows != rows:
            raise ValueError(
                f"the stream gave {rows} rows in this pass and {self.num_rows} before: it must give the same rows always"
            )
        self.num_rows = rows


def open_source(blocks: Any, weights: Any, columns: Sequence[str] | None) -> Source:
    paths = [blocks] if isinstance(blocks, (str, os.PathLike)) else blocks
    if isinstance(paths, (list, tuple)) and paths and all(isinstance(p, (str, os.PathLike)) for p in paths):
        files = [Path(p) for p in paths]
        parquet = all(file.suffix == ".parquet" for file in files)
        if columns is not None and not parquet:
            raise ValueError("columns are those of Parquet files")
        if weights is not None and not (parquet and isinstance(weights, str)):
            if len(files) == 1 and files[0].suffix == ".npy":
                return _Arrays(Block(_npy(files[0]), _rows_of(weights)))
            raise ValueError(
                "weights of files are a member of each .npz file, or the name of a column of Parquet files, or one "
                f"array beside a single .npy file; got {type(weights).__name__}"
            )
        return _Files([_shard(file, columns, weights) for file in files])
    if columns is not None or isinstance(weights, str):
        raise ValueError("columns and names of weights are for Parquet files")
    if isinstance(blocks, (np.ndarray, jax.Array, Data)):
        return _Arrays(Block(jax.tree.map(_rows_of, blocks), None if weights is None else _rows_of(weights)))
    if weights is not None:
        raise ValueError("weights come with the blocks: yield jaxem.Block(data, weights)")
    if not isinstance(blocks, Iterable):
        raise ValueError(
            "a Stream is an array, a Data, a path, a list of paths, or something to iterate over; "
            f"got {type(blocks).__name__}"
        )
    if isinstance(blocks, Iterator):
        raise ValueError(
            f"a Stream is read anew for every pass, and a {type(blocks).__name__} can be iterated over only once: give an "
            "object whose __iter__ begins anew each time, such as a list, a data loader or a class"
        )
    return _Loader(blocks)


class _Rows(Protocol):
    """An array of which rows are read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, begin: int, end: int) -> np.ndarray: ...

    def take(self, rows: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class _InMemory:
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self, begin: int, end: int) -> np.ndarray:
        return self.array[begin:end]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


@dataclasses.dataclass(frozen=True)
class _InFile:
    """Rows of a file, read into memory of their own: pages of a mapping, once touched, would count as the process's."""

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, begin: int, end: int) -> np.ndarray:
        out = np.empty((end - begin, *self.shape[1:]), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            self._fill(file, begin, out)
        return out

    def take(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        with open(self.path, "rb", buffering=0) as file:
            for i, row in enumerate(rows):
                self._fill(file, int(row), out[i : i + 1])
        return out

    def _fill(self, file: Any, begin: int, out: np.ndarray) -> None:
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        file.seek(self.offset + begin * (out.nbytes // max(1, len(out))))
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise OSError(f"{self.path} ends in the middle of row {begin + done * len(out) // max(1, len(view))}")
            done += count


def _rows_of(leaf: Any) -> _Rows:
    if isinstance(leaf, (_InMemory, _InFile)):
        return leaf
    if isinstance(leaf, np.memmap) and leaf.filename is not None and leaf.mode != "c":
        if not leaf.flags.c_contiguous:
            raise ValueError(
                f"{leaf.filename} is not stored row after row (Fortran order, or a view with steps): blocks of rows "
                "cannot be read from it; store it as numpy.ascontiguousarray makes it"
            )
        # The mapping begins at a page; the array, which may be a part of another, somewhere in it.
        page = np.frombuffer(leaf._mmap, np.uint8).__array_interface__["data"][0]  # type: ignore[attr-defined]
        mapped = leaf.offset - leaf.offset % mmap.ALLOCATIONGRANULARITY
        offset = mapped + leaf.__array_interface__["data"][0] - page
        return _InFile(os.fspath(leaf.filename), offset, leaf.shape, leaf.dtype)
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise ValueError(f"a Stream needs arrays with the examples as their leading axis; got {leaf!r}")
    return _InMemory(array)


class _Arrays(Source):
    """Arrays in memory or in files, one row of each for every example."""

    def __init__(self, rows: Block):
        # _InMemory and _InFile are no pytrees: the leaves of this one.
        self._rows = rows
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(rows)}
        if len(sizes) != 1:
            raise ValueError(f"all arrays of a Stream need the same number of rows; got {sorted(sizes)}")
        self.num_rows = sizes.pop()

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        assert self.num_rows is not None
        for a in range(begin, self.num_rows, size):
            b = min(a + size, self.num_rows)
            yield jax.tree.map(lambda leaf, a=a, b=b: leaf.read(a, b), self._rows)

    def take(self, rows: np.ndarray) -> Block:
        return jax.tree.map(lambda leaf: leaf.take(rows), self._rows)


class _Files(Source):
    """Files one after another."""

    def __init__(self, shards: list[Source]):
        self._shards = shards
        self.num_rows = sum(shard.num_rows or 0 for shard in shards)

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        for shard in self._shards:
            rows = shard.num_rows or 0
            if begin < rows:
                yield from shard.pieces(begin, size)
            begin = max(0, begin - rows)

    def take(self, rows: np.ndarray) -> Block | None:
        return self._shards[0].take(rows) if len(self._shards) == 1 else None


def _shard(path: Path, columns: Sequence[str] | None, weights: str | None) -> Source:
    if path.suffix == ".npy":
        return _Arrays(Block(_npy(path)))
    if path.suffix == ".npz":
        return _Npz(path)
    if path.suffix == ".parquet":
        return _Parquet(path, columns, weights)
    raise ValueError(f"a Stream reads .npy, .npz and .parquet files; got {path}")


def _npy(path: Path) -> _Rows:
    try:
        return _rows_of(np.load(path, mmap_mode="r", allow_pickle=False))
    except EOFError:
        raise ValueError(f"{path} is empty: not a .npy file") from None


class _Npz(Source):
    """The members of an .npz file, read whole."""

    def __init__(self, path: Path):
        self._path = path
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            _check_names(names, str(path))
            with archive.open("x.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, _ = read(member)
        self.num_rows = shape[0]

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        with np.load(self._path, allow_pickle=False) as archive:
            whole = _by_name({name: archive[name] for name in archive.files})
        yield jax.tree.map(lambda a: a[begin:], whole)


def _check_names(names: Iterable[str], where: str) -> None:
    names = set(names)
    stray = names - {*_FIELDS, "weights"}
    if stray or "x" not in names:
        raise ValueError(
            f"{where} needs a member x, and may have {', '.join(_FIELDS[1:])} and weights; got {', '.join(sorted(names))}"
        )


def _by_name(arrays: dict[str, Any]) -> Block:
    fields = {name: array for name, array in arrays.items() if name != "weights"}
    return Block(fields["x"] if set(fields) == {"x"} else Data(**fields), arrays.get("weights"))


class _Parquet(Source):
    """The row groups of a Parquet file."""

    def __init__(self, path: Path, columns: Sequence[str] | None, weights: str | None):
        try:
            import pyarrow.parquet
        except ImportError:
            raise ValueError(f'{path}: reading parquet needs pyarrow: pip install "jaxem[parquet]"') from None
        self._open: Callable[[], Any] = lambda: pyarrow.parquet.ParquetFile(path)
        with self._open() as file:
            self.num_rows = file.metadata.num_rows
            self._groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            there_are = list(file.schema_arrow.names)
        self._weights = weights
        self._columns = [name for name in there_are if name != weights] if columns is None else list(columns)
        missing = [name for name in (*self._columns, *([] if weights is None else [weights])) if name not in there_are]
        if missing or not self._columns:
            raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(there_are)}")

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        ends = np.cumsum(self._groups)
        groups = [i for i, end in enumerate(ends) if end > begin]
        if groups:
            begin -= int(ends[groups[0]] - self._groups[groups[0]])
        names = self._columns if self._weights is None else [*self._columns, self._weights]
        with self._open() as file:
            for batch in file.iter_batches(size, row_groups=groups, columns=names):
                if begin >= batch.num_rows:
                    begin -= batch.num_rows
                    continue
                arrays = {name: batch.column(name).to_numpy(zero_copy_only=False)[begin:] for name in names}
                begin = 0
                weights = None if self._weights is None else np.array(arrays[self._weights])
                yield Block(np.stack([arrays[name] for name in self._columns], axis=1), weights)


class _Loader(Source):
    """Whatever can be iterated over again and again."""

    def __init__(self, blocks: Iterable[Any]):
        self._blocks = blocks

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        items = iter(self._blocks)
        for item in items:
            piece = _as_block(item)
            rows = length(piece)
            if begin >= rows:
                begin -= rows
                continue
            # A copy: a loader may fill the same memory again for its next item.
            skipped = begin
            yield jax.tree.map(lambda a, skipped=skipped: np.array(a[skipped:]), piece)
            begin = 0


def _as_block(item: Any) -> Block:
    """A loader's item as a piece."""
    if isinstance(item, (list, tuple)) and len(item) == 1:  # a loader of one tensor yields lists of it
        item = item[0]
    if not isinstance(item, Block):
        named = isinstance(item, dict) and "x" in item and set(item) <= {*_FIELDS, "weights"}
        item = _by_name(dict(item)) if named else Block(item)
    piece = jax.tree.map(np.asarray, item)
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(piece)}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(f"every part of a block needs the examples as its leading axis; got leading sizes {sizes}")
    return piece
