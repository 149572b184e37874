"""Data larger than memory: blocks of examples from files or loaders, cut to one size, read ahead of the computation.

A `Stream` is read from the beginning for every pass. Its source gives pieces of any length; they are cut anew into blocks
of one size, so that one compiled program serves all of them, and the last block is filled up with rows of weight 0,
which are absent by law. A `Reader` reads and moves to the device the next blocks while the last one is computed with.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxem import validate
from jaxem.model import Data, float_type, pytree

# A block has so many bytes of data, or so many rows, at most: enough that what a block costs beside its rows is nothing,
# and little enough that several of them are nothing to the memory.
_BLOCK_BYTES = 2**24
_BLOCK_ROWS = 2**18
# What calibration and starts look at.
SAMPLE_ROWS = 2**17
_SAMPLE_BYTES = 2**28

_FIELDS = tuple(field.name for field in dataclasses.fields(Data))


@pytree
class Block:
    """Examples and their weights, as a loader may yield them; weights, one for every example, are None where all are 1."""

    data: Any
    weights: Any = None


class StreamError(RuntimeError):
    """A block of a stream cannot be read; the message has its number, the cause is the error of the source."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """One block as it is computed with: ``rows`` of its examples are real, the others have weight 0.

    number: of the block in a pass. begin: the number of its first row in the stream. last: whether the pass ends with it.
    present: real rows of positive weight. steps: of sequences, those in the real rows.
    """

    number: int
    begin: int
    rows: int
    present: int
    steps: int
    last: bool
    data: Any
    weights: Any


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows drawn without replacement, in the order of the stream; ``whole`` where they are all of it. rows: their numbers."""

    data: Any
    weights: Any
    rows: np.ndarray
    whole: bool


class Stream:
    """Blocks of examples, read anew for every pass: ``jaxem.fit(model, Stream("rows.npy"))``.

    blocks is one of: an array or `numpy.memmap`, or a `Data` of such; the path of a .npy, .npz or .parquet file, or a list
    of them (members of .npz files are named x, mask, inputs, lengths, labels, weights; each is read whole, the others in
    parts); or anything that can be iterated over again and again, whose items are arrays, `Data`, dicts with those names, or
    ``Block(data, weights)``: a data loader. An example is a row, or a padded sequence.
    weights: one for every example, for arrays; the name of a column, for Parquet. columns: those of a Parquet file that are
    the features, by default all but the weights. block_size: examples computed with at once; by default what has 16 MB.
    ahead: blocks read ahead, by a thread; 0 reads them when they are wanted, without a thread.

    Exact EM does not care for the order of rows; methods with mini-batches want rows that are shuffled.
    Raises ValueError for what can be iterated over only once (a generator), unknown files, and bad sizes; while reading,
    `StreamError` where the source fails, and ValueError for blocks that do not belong together, with their number.
    """

    def __init__(
        self,
        blocks: Any,
        *,
        weights: Any = None,
        columns: Sequence[str] | None = None,
        block_size: int | None = None,
        ahead: int = 2,
    ):
        self._given_size = None if block_size is None else validate.check_count("block_size", block_size, 1)
        self.ahead = validate.check_count("ahead", ahead, 0)
        self._source = _source(blocks, weights, columns)
        self._size: int | None = None

    @property
    def num_examples(self) -> int | None:
        """Rows, or padded sequences; None until a source that does not know has been read once."""
        return self._source.num_rows

    @property
    def block_size(self) -> int:
        """Examples in a block."""
        if self._size is None:
            self._size = self._choose_size()
        return self._size

    @property
    def num_blocks(self) -> int | None:
        n = self.num_examples
        return None if n is None else -(-n // self.block_size)

    def _choose_size(self) -> int:
        size, rows = self._given_size, 0
        for piece in self._pieces(0, 1 if size is None else size):
            rows += _length(piece)
            if size is None:
                size = max(1, min(_BLOCK_BYTES // max(1, _row_bytes(piece)), _BLOCK_ROWS))
            if self.num_examples is not None or rows > size:
                break
        else:
            self._source.num_rows = rows
        if size is None or self.num_examples == 0:
            raise ValueError("the stream is empty")
        n = self.num_examples
        if n is None:
            return size
        # Blocks of one length, so that as little as possible is filled up.
        return min(size, n) if self._given_size is not None else -(-n // -(-n // size))

    def _pieces(self, begin: int, size: int) -> Iterator[Block]:
        """What the source gives from row ``begin`` on, checked to be of one kind; numbers of pieces in errors."""
        first: Any = None
        number = 0
        pieces = self._source.pieces(begin, size)
        while True:
            try:
                piece = next(pieces, None)
            except (MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:
                raise StreamError(f"reading block {number} of the stream failed: {_name(error)}{error}") from error
            if piece is None:
                return
            if _length(piece):
                kind = _kind(piece)
                first = kind if first is None else first
                if kind != first:
                    raise ValueError(f"block {number} of the stream holds {_words(kind)}; others hold {_words(first)}")
                yield piece
            number += 1

    def cuts(self, begin: int = 0) -> Iterator[Cut]:
        """The blocks of one pass from block number ``begin`` on, on the host."""
        size = self.block_size
        held: list[Block] = []
        count, number = 0, begin
        for piece in self._pieces(begin * size, size):
            held.append(piece)
            count += _length(piece)
            # Only when something follows a block is it known not to be the last.
            while count > size:
                taken, held = _take(held, size)
                yield _cut(taken, number, size, False)
                count -= size
                number += 1
        if count == 0:
            raise ValueError("the stream is empty" if begin == 0 else f"the stream ends before block {begin}")
        self._source.finished(number * size + count)
        yield _cut(_joined(held), number, size, True)

    def first(self, keep_types: bool = False) -> Sample:
        """The first block, on the device."""
        cut = _to_device(next(self.cuts()), keep_types)
        rows = np.arange(len(cut.weights))
        return Sample(cut.data, cut.weights, rows, cut.last)

    def sample(self, seed: Any = 0, keep_types: bool = False) -> Sample:
        """At most 2¹⁷ rows (and 256 MB) drawn uniformly without replacement, on the device; all where there are no more."""
        block, rows, whole = self._sampled(seed)
        data = validate.to_device(block.data, keep_types)
        weights = None if block.weights is None else jax.device_put(block.weights.astype(float_type(data)))
        return Sample(data, weights, rows, whole)

    def _sampled(self, seed: Any) -> tuple[Block, np.ndarray, bool]:
        size = self.block_size
        first = next(self._pieces(0, 1))
        most = max(1, min(SAMPLE_ROWS, _SAMPLE_BYTES // max(1, _row_bytes(first))))
        rng = np.random.default_rng(seed)
        n = self.num_examples
        if n is not None and n > most:
            rows = np.sort(rng.choice(n, most, replace=False))
            taken = self._source.take(rows) or self._picked(rows, size)
            return taken, rows, False
        kept, chosen, total = _keep(self._pieces(0, size), most, rng)
        self._source.finished(total)
        return kept, chosen, len(chosen) == total

    def _picked(self, rows: np.ndarray, size: int) -> Block:
        parts, begin = [], 0
        for piece in self._pieces(0, size):
            end = begin + _length(piece)
            own = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)] - begin
            if len(own):
                parts.append(jax.tree.map(lambda a, own=own: a[own], piece))
            begin = end
        return _joined(parts)

    def count(self) -> int:
        """The number of rows: known, or counted by reading them all."""
        if self.num_examples is None:
            self._source.finished(sum(_length(piece) for piece in self._pieces(0, self.block_size)))
        assert self.num_examples is not None
        return self.num_examples


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: "


# Pieces: Blocks of numpy arrays.


def _length(piece: Block) -> int:
    return len(jax.tree.leaves(piece.data)[0])


def _row_bytes(piece: Block) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(piece)) // max(1, _length(piece))


def _kind(piece: Block) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(piece)
    return tuple((jax.tree_util.keystr(path).lstrip("."), leaf.shape[1:], leaf.dtype) for path, leaf in leaves)


def _words(kind: Any) -> str:
    return ", ".join(f"{name} of rows {shape} {dtype}" for name, shape, dtype in kind)


def _joined(parts: list[Block]) -> Block:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *a: np.concatenate(a), *parts)


def _take(held: list[Block], size: int) -> tuple[Block, list[Block]]:
    """The first ``size`` rows of the pieces, and the pieces that are left."""
    taken: list[Block] = []
    for i, piece in enumerate(held):
        n = _length(piece)
        if n > size:
            taken.append(jax.tree.map(lambda a, size=size: a[:size], piece))
            rest = jax.tree.map(lambda a, size=size: a[size:], piece)
            return _joined(taken), [rest, *held[i + 1 :]]
        taken.append(piece)
        size -= n
        if size == 0:
            return _joined(taken), held[i + 1 :]
    raise AssertionError("more rows were asked for than are held")


def _cut(piece: Block, number: int, size: int, last: bool) -> Cut:
    """The piece filled up to ``size`` rows by repeating its first one, with weight 0."""
    rows, begin = _length(piece), number * size
    weights = np.ones(rows, np.float32) if piece.weights is None else np.asarray(piece.weights)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(
            f"weights must be finite and at least 0; that of row {begin + bad[0]} of the stream is {weights[bad[0]]}"
        )
    present, steps = int(np.count_nonzero(weights)), _steps(piece.data, rows)
    data, over = piece.data, size - rows
    if over:
        data = jax.tree.map(lambda a: np.concatenate([a, np.broadcast_to(a[:1], (over, *a.shape[1:]))]), data)
        weights = np.concatenate([weights, np.zeros(over, weights.dtype)])
    return Cut(number, begin, rows, present, steps, last, data, weights)


def _steps(data: Any, rows: int) -> int:
    """Steps of padded sequences; rows of anything else."""
    lengths, x = (data.lengths, data.x) if isinstance(data, Data) else (None, data)
    if lengths is not None:
        return int(np.sum(lengths))
    return rows * x.shape[1] if getattr(x, "ndim", 0) == 3 else rows


def _keep(pieces: Iterator[Block], most: int, rng: np.random.Generator) -> tuple[Block, np.ndarray, int]:
    """``most`` rows drawn uniformly from pieces whose number is not known, those rows' numbers, and how many there were."""
    parts: list[Block] = []
    lots, rows = np.empty(0), np.empty(0, np.int64)
    total = held = 0
    for piece in pieces:
        n = _length(piece)
        parts.append(piece)
        lots = np.concatenate([lots, rng.random(n)])
        rows = np.concatenate([rows, np.arange(total, total + n)])
        total, held = total + n, held + n
        if held > 2 * most:
            parts, lots, rows = _lowest(parts, lots, rows, most)
            held = most
    if held > most:
        parts, lots, rows = _lowest(parts, lots, rows, most)
    if not parts:
        raise ValueError("the stream is empty")
    return _joined(parts), rows, total


def _lowest(parts: list[Block], lots: np.ndarray, rows: np.ndarray, most: int) -> Any:
    chosen = np.sort(np.argpartition(lots, most - 1)[:most])
    return [jax.tree.map(lambda a: a[chosen], _joined(parts))], lots[chosen], rows[chosen]


# Sources.


class _Source:
    """Where pieces come from, and how many rows they have in all, as soon as that is known."""

    num_rows: int | None = None

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        """Pieces from row ``begin`` on, of about ``size`` rows where the source can choose."""
        raise NotImplementedError

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


def _source(blocks: Any, weights: Any, columns: Sequence[str] | None) -> _Source:
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

    shape: tuple[int, ...]

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
        view = memoryview(out.reshape(-1).view(np.uint8))
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
        mapped = leaf.offset - leaf.offset % _granularity()
        offset = mapped + leaf.__array_interface__["data"][0] - page
        return _InFile(os.fspath(leaf.filename), offset, leaf.shape, leaf.dtype)
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise ValueError(f"a Stream needs arrays with the examples as their leading axis; got {leaf!r}")
    return _InMemory(array)


def _granularity() -> int:
    import mmap

    return mmap.ALLOCATIONGRANULARITY


class _Arrays(_Source):
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


class _Files(_Source):
    """Files one after another."""

    def __init__(self, shards: list[_Source]):
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


def _shard(path: Path, columns: Sequence[str] | None, weights: str | None) -> _Source:
    if path.suffix == ".npy":
        return _Arrays(Block(_npy(path)))
    if path.suffix == ".npz":
        return _Npz(path)
    if path.suffix == ".parquet":
        return _Parquet(path, columns, weights)
    raise ValueError(f"a Stream reads .npy, .npz and .parquet files; got {path}")


def _npy(path: Path) -> _Rows:
    return _rows_of(np.load(path, mmap_mode="r", allow_pickle=False))


class _Npz(_Source):
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


class _Parquet(_Source):
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


class _Loader(_Source):
    """Whatever can be iterated over again and again."""

    def __init__(self, blocks: Iterable[Any]):
        self._blocks = blocks

    def pieces(self, begin: int, size: int) -> Iterator[Block]:
        items = iter(self._blocks)
        for item in items:
            piece = _as_block(item)
            rows = _length(piece)
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
        names = set(item) if isinstance(item, dict) else set()
        item = _by_name(item) if "x" in names and names <= {*_FIELDS, "weights"} else Block(item)
    piece = jax.tree.map(np.asarray, item)
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(piece)}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(f"every part of a block needs the examples as its leading axis; got leading sizes {sizes}")
    return piece


# Reading ahead.


class Reader:
    """The blocks of one pass on the device, one after the other, read ahead by a thread; `close` ends it.

    waited: seconds for which blocks were not there yet when they were asked for.
    """

    def __init__(self, stream: Stream, begin: int = 0, keep_types: bool = False):
        self.waited = 0.0
        cuts = stream.cuts(begin)
        # A thread does not know the types and the device that the caller has chosen for a while.
        x64, device = bool(jax.config.jax_enable_x64), jax.config.jax_default_device  # type: ignore[attr-defined]

        def read() -> Cut:
            with _x64(x64), jax.default_device(device):
                return _to_device(next(cuts), keep_types)

        self._read = read
        self._thread: threading.Thread | None = None
        if stream.ahead:
            self._cuts: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._room = threading.Semaphore(stream.ahead)
            self._stop = threading.Event()
            arguments = (read, self._cuts, self._room, self._stop)
            self._thread = threading.Thread(target=_read_ahead, args=arguments, name="jaxem reader", daemon=True)
            # Also where the reader is forgotten: the thread holds nothing of it.
            self._end = weakref.finalize(self, _end, self._stop, self._room)
            self._thread.start()

    def next(self) -> Cut:
        """The next block. Raises what reading it raised."""
        begin = time.perf_counter()
        if self._thread is None:
            cut = self._read()
        else:
            cut = self._cuts.get()
            self._room.release()
        self.waited += time.perf_counter() - begin
        if isinstance(cut, BaseException):
            self.close()
            raise cut
        return cut

    def close(self) -> None:
        """End the thread, and wait for its end."""
        if self._thread is not None:
            self._end()
            self._thread.join()


def _read_ahead(read: Callable[[], Cut], cuts: Any, room: threading.Semaphore, stop: threading.Event) -> None:
    last = False
    while not last:
        room.acquire()
        if stop.is_set():
            return
        try:
            cut = read()
        except BaseException as error:
            cuts.put(error)
            return
        last = cut.last
        cuts.put(cut)


def _end(stop: threading.Event, room: threading.Semaphore) -> None:
    stop.set()
    room.release()


def _to_device(cut: Cut, keep_types: bool) -> Cut:
    try:
        data = validate.to_device(cut.data, keep_types)
    except ValueError as error:
        raise ValueError(f"{error} (row 0 of which is row {cut.begin} of the stream)") from None
    weights = jax.device_put(cut.weights.astype(float_type(data)))
    return dataclasses.replace(cut, data=data, weights=weights)


def _x64(enabled: bool) -> Any:
    return jax.enable_x64(enabled)  # type: ignore[attr-defined]
