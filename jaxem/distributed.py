"""Many processes, on one host or many: every one reads its own rows, and all of them agree on what they were given.

The processes find each other by JAX's own runtime: call ``jax.distributed.initialize(...)`` in every process before
anything else. From then on ``jax.devices()`` are those of all processes, a mesh of them is a mesh like any other, and a
program over it is the same in all of them. This file adds what is not a program: rows from many hosts as one data set,
and errors that all processes raise, so that none waits for one that has stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxem import layout, validate
from jaxem.mesh import check_mesh, own_shards, place
from jaxem.model import Model, UnsupportedError, as_data, float_type

# Processes exchange texts of this many bytes.
_TEXT_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class GlobalRows:
    """The rows of all processes as one data set.

    data, weights: global arrays, their rows shared out over the axis of a mesh, filled up with rows of weight 0; weights
    are None where every row counts once and none was added. num_examples: rows of all processes, without those added.
    num_sequences, num_steps: of sequences; None of rows.
    """

    data: Any
    weights: jax.Array | None
    num_examples: int
    num_sequences: int | None = None
    num_steps: int | None = None


def global_rows(model: Model, data: Any, weights: Any = None, *, mesh: Mesh, axis: str = "data") -> GlobalRows:
    """The rows that every process gives, checked where they are, as global arrays over one axis of a mesh.

    Every process calls it with rows of its own, at least one, whose number may differ; of one process they are all rows.
    Rows go to the process's own devices and to no other. data: [N, D], a `jaxem.Data` or whatever the model takes, on
    the host. weights: one number per example, in all processes or in none.
    Raises ValueError, in all processes alike, for what is wrong in any of them: the message names the process, and rows
    as that process counts them. What a model checks of data as a whole (a column that nobody observes) is asked of each
    process's rows. Raises UnsupportedError for flat sequences and models that are not sums over examples.
    """
    with _agreed(), _on_host():
        validate.check_model(model)
        check_mesh(mesh, axis)
        shards = len(own_shards(mesh, axis))
        data = validate.to_device(data, model.keeps_types)
        rows = _num_rows(data)
    every = _gathered(rows, shards)
    total = sum(own_rows for own_rows, _ in every)
    per_shard = max(-(-own_rows // devices) for own_rows, devices in every)
    with _agreed(), _on_host():
        validate.check_data(model, data, total=total)
        model.check_divisible(data)
        weights = validate.check_weights(weights, (rows,), float_type(data), 0)
    _check_alike(data, weights)
    positive = rows if weights is None else int(np.count_nonzero(np.asarray(weights) > 0))
    sequences, steps = layout.count_sequences(as_data(data)) if model.sequential else (0, 0)
    positive, sequences, steps = map(sum, zip(*_gathered(positive, sequences, steps), strict=True))
    if positive < max(model.min_examples, 1):
        raise ValueError(
            f"a fit of this model needs at least {max(model.min_examples, 1)} rows of positive weight; "
            f"all processes together have {positive}"
        )
    if weights is None and total != per_shard * mesh.shape[axis]:
        weights = np.ones(rows, float_type(data))
    placed, weights = place(data, weights, mesh=mesh, axis=axis, rows_per_shard=per_shard)
    return GlobalRows(placed, weights, total, *((sequences, steps) if model.sequential else (None, None)))


@contextlib.contextmanager
def _agreed() -> Iterator[None]:
    """Every process comes here: an error in any of them is an error in all, with the same text."""
    error = None
    try:
        yield
    except Exception as own:  # whatever it is, the others must not wait for this process
        error = own
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return
    texts = _texts("" if error is None else f"{type(error).__name__}: {error}")
    wrong = [process for process, text in enumerate(texts) if text]
    if wrong:
        kind, _, text = texts[wrong[0]].partition(": ")
        others = f" (and processes {', '.join(map(str, wrong[1:]))} have errors of their own)" if wrong[1:] else ""
        raise _ERRORS.get(kind, ValueError)(f"process {wrong[0]} of {len(texts)}: {text}{others}") from error


_ERRORS: dict[str, type[Exception]] = {"UnsupportedError": UnsupportedError, "TypeError": TypeError}


def _check_alike(data: Any, weights: Any) -> None:
    """Raise ValueError, in all processes, where their rows are not rows of one data set."""
    leaves = jax.tree_util.tree_leaves_with_path((data, weights))
    names = ("data", "weights")
    parts = [
        f"{names[path[0].idx]}{jax.tree_util.keystr(path[1:])} of rows {leaf.shape[1:]} {leaf.dtype}"
        for path, leaf in leaves
    ]
    texts = _texts(", ".join(parts))
    for process, text in enumerate(texts):
        if text != texts[0]:
            raise ValueError(f"process 0 gives {texts[0]}; process {process} gives {text}")


def _num_rows(data: Any) -> int:
    leaves = jax.tree.leaves(data)
    if not leaves or not np.ndim(leaves[0]) or leaves[0].shape[0] == 0:
        raise ValueError("the data are empty: every process needs at least one row")
    return leaves[0].shape[0]


def _gathered(*numbers: int) -> list[list[int]]:
    """The numbers of every process."""
    return [json.loads(text) for text in _texts(json.dumps(numbers))]


def _texts(text: str) -> list[str]:
    """The text of every process, cut to some length."""
    if jax.process_count() == 1:
        return [text]
    own = text.encode()[:_TEXT_BYTES]
    buffer = np.frombuffer(own.ljust(_TEXT_BYTES, b"\0"), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(buffer))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in every]


def _on_host() -> contextlib.AbstractContextManager:
    """Rows are checked on the host: they need not fit on one of its devices."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # this process was started with a platform other than the CPU alone
        return contextlib.nullcontext()
