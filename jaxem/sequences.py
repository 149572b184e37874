"""Sequences of unequal length as arrays: padded, or one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxem.model import Data


def from_list(sequences: Sequence[Any]) -> Data:
    """Sequences [T_b, D] padded to the longest, with their lengths: ``Data(x=[B, T, D], lengths=[B])``.

    A sequence may be empty. Raises ValueError for arrays of another shape, or when there is none.
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("there is no sequence")
    widths = {a.shape[1] if a.ndim == 2 else -1 for a in arrays}
    if len(widths) != 1 or -1 in widths:
        raise ValueError(f"sequences need shapes [T, D] with one D; got {sorted({a.shape for a in arrays})[:4]}")
    lengths = np.array([len(a) for a in arrays], np.int32)
    x = np.zeros((len(arrays), max(1, int(lengths.max())), widths.pop()), np.result_type(*arrays))
    for row, a in zip(x, arrays, strict=True):
        row[: len(a)] = a
    return Data(x=x, lengths=lengths)


def from_concat(x: Any, lengths: Any) -> Data:
    """Sequences one after another, [N, D], cut by their lengths: ``Data(x=[N, D], starts=[N])``.

    Raises ValueError when the lengths do not add up to N, or one of them is 0 (leave it out, or use `from_list`).
    """
    x, lengths = np.asarray(x), np.asarray(lengths)
    if x.ndim != 2:
        raise ValueError(f"x needs the steps of all sequences as rows, [N, D]; got shape {x.shape}")
    if lengths.ndim != 1 or np.any(lengths < 1) or lengths.sum() != len(x):
        raise ValueError(f"lengths must be at least 1 and add up to {len(x)} rows; got {lengths.tolist()[:8]}")
    starts = np.zeros(len(x), bool)
    starts[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = True
    return Data(x=x, starts=starts)


def pad(data: Data) -> Data:
    """Flat sequences as padded ones; mask, inputs and labels go with them."""
    if data.starts is None:
        raise ValueError("pad takes flat sequences, with starts")
    x, starts = np.asarray(data.x), np.array(data.starts, bool)
    starts[0] = True
    begins = np.flatnonzero(starts)
    lengths = np.diff(np.append(begins, len(x))).astype(np.int32)
    within = np.arange(lengths.max()) < lengths[:, None]

    def padded(a: Any, fill: Any) -> Any:
        if a is None:
            return None
        a = np.asarray(a)
        out = np.full((*within.shape, *a.shape[1:]), fill, a.dtype)
        out[within] = a
        return out

    return Data(
        x=padded(x, 0),
        mask=padded(data.mask, False),
        inputs=padded(data.inputs, 0),
        labels=padded(data.labels, -1),
        lengths=lengths,
    )
