"""How much memory a device has left, what a fit needs of it, and what to do when it was not enough."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxem.blocks import LONG
from jaxem.cost import free_bytes, nbytes
from jaxem.model import Model, UnsupportedError, num_examples
from jaxem.result import ConvergenceWarning
from jaxem.wrappers.chunked import Chunked

T = TypeVar("T")

# Of what is free, a fit may take so much: the rest is for what no estimate sees.
SHARE = 0.5
# Below this, nothing is estimated: compiling would take longer than it could save.
SMALL = 2**28
# Arrays of one number per row and component that an E-step holds at a time.
_POTENTIALS = 4


def available() -> int | None:
    """Bytes that are free on the default device; None where nobody knows."""
    free = free_bytes()
    if free is not None:
        return free
    try:
        # What the system could give, files that it keeps in memory for speed included.
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def fitted_in(model: Model, data: Any, weights: Any, dtype: Any) -> Model:
    """The model; in `Chunked`, with a warning, where its statistics of all rows would not fit into the memory left."""
    free = available()
    if free is None or innermost_chunked(model) is not None:
        return model
    rows = num_examples(data)
    if rows * max(1, model.num_components) * dtype.itemsize < SMALL // _POTENTIALS and nbytes(data) < SMALL:
        return model
    prepared, _ = jax.eval_shape(lambda d, w: model.calibrate(d, w).compress(d, w), data, weights)
    # Of independent rows an E-step holds no more than a long block at a time.
    at_once = rows if model.sequential else min(rows, LONG)
    need = nbytes(prepared) + _POTENTIALS * at_once * max(1, model.num_components) * dtype.itemsize
    if need <= free * SHARE:
        return model
    smaller = in_blocks(model, data)
    if smaller is None:
        return model
    warnings.warn(
        f"the E-step would need about {_gigabytes(need)} beside the data, of {_gigabytes(free)} that are free: it is "
        "computed in blocks (jaxem.Chunked)",
        ConvergenceWarning,
        stacklevel=3,
    )
    return smaller


def compiled_need(lowered: Any) -> int:
    """Bytes that a program takes, arguments, results and temporaries, as its compiler counts them."""
    found = lowered.compile().memory_analysis()
    if found is None:
        return 0
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def innermost_chunked(model: Model) -> Chunked | None:
    """The `Chunked` among the wrappers of a model, or None."""
    while isinstance(model, Model):
        if isinstance(model, Chunked):
            return model
        model = getattr(model, "model", None)  # type: ignore[assignment]
    return None


def in_blocks(model: Model, data: Any) -> Model | None:
    """The model with its E-step in blocks, in half as large ones where it has some already; None where there is no way."""
    chunked = innermost_chunked(model)
    if chunked is None:
        try:
            model.check_divisible(data)
            return Chunked(model)
        except (UnsupportedError, AttributeError):
            return None
    size = chunked.rows_per_block(data)
    return None if size <= 1 else _with_block_size(model, size // 2)


def _with_block_size(model: Any, size: int) -> Any:
    if isinstance(model, Chunked):
        return dataclasses.replace(model, block_size=size, keep=False)
    return dataclasses.replace(model, model=_with_block_size(model.model, size))


def is_exhausted(error: BaseException) -> bool:
    """Whether an error of the runtime says that memory has run out."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def retried(attempt: Callable[[Any], T], size: Any, smaller: Callable[[Any], Any], words: Callable[[Any], str]) -> T:
    """``attempt(size)``, again with a smaller size as long as memory runs out; every warning says with which.

    ``smaller`` gives None where there is nothing smaller to try: then the error goes on its way.
    """
    while True:
        try:
            return attempt(size)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            less = smaller(size) if is_exhausted(error) else None
            if less is None:
                raise
        warnings.warn(f"the device ran out of memory: trying {words(less)}", ConvergenceWarning, stacklevel=3)
        size = less
