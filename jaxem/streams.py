"""Data larger than memory: blocks of examples from files or loaders, cut to one size, read ahead of the computation.

A `Stream` is read from the beginning for every pass. Its source gives pieces of any length; they are cut anew into blocks
of one size, so that one compiled program serves all of them, and the last block is filled up with rows of weight 0,
which are absent by law. A `Reader` reads and moves to the device the next blocks while the last one is computed with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxem import validate
from jaxem.model import Data, float_type
from jaxem.sources import Block, length, open_source

# A block has so many bytes of data, or so many rows, at most: enough that what a block costs beside its rows is nothing,
# and little enough that several of them are nothing to the memory.
_BLOCK_BYTES = 2**24
_BLOCK_ROWS = 2**18
# What calibration and starts look at.
SAMPLE_ROWS = 2**17
_SAMPLE_BYTES = 2**28


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
    """Rows drawn without replacement, in the order of the stream. rows: their numbers; whole: whether they are all."""

    data: Any
    weights: Any
    rows: np.ndarray
    whole: bool


class Stream:
    """Blocks of examples, read anew for every pass: ``jaxem.fit(model, Stream("rows.npy"))``.

    blocks is one of: an array or `numpy.memmap`, or a `Data` of such; the path of a .npy, .npz or .parquet file, or a list
    of them (members of .npz files are named x, mask, inputs, lengths, labels, weights; each file is read whole, the others
    in parts); or anything that can be iterated over again and again, a data loader, whose items are arrays, `Data`, dicts
    with those names, or ``Block(data, weights)``. An example is a row, or a padded sequence.
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
        self._source = open_source(blocks, weights, columns)
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
            rows += length(piece)
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
            if length(piece):
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
            count += length(piece)
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
        cut = to_device(next(self.cuts()), keep_types)
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
            end = begin + length(piece)
            own = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, end)] - begin
            if len(own):
                parts.append(jax.tree.map(lambda a, own=own: a[own], piece))
            begin = end
        return _joined(parts)

    def count(self) -> int:
        """The number of rows: known, or counted by reading them all."""
        if self.num_examples is None:
            self._source.finished(sum(length(piece) for piece in self._pieces(0, self.block_size)))
        assert self.num_examples is not None
        return self.num_examples


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: "


# Pieces: Blocks of numpy arrays.


def _row_bytes(piece: Block) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(piece)) // max(1, length(piece))


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
        n = length(piece)
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
    rows, begin = length(piece), number * size
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
        n = length(piece)
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


def to_device(cut: Cut, keep_types: bool) -> Cut:
    try:
        data = validate.to_device(cut.data, keep_types)
    except ValueError as error:
        raise ValueError(f"{error} (row 0 of which is row {cut.begin} of the stream)") from None
    weights = jax.device_put(cut.weights.astype(float_type(data)))
    return dataclasses.replace(cut, data=data, weights=weights)
