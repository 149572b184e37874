"""What a function needs, counted in its trace: bytes alive at once, and numbers written on the way.

Nothing is compiled, so the counts are those of a program whose operations are not fused: never much below what XLA
allocates, and up to three times as much where it fuses a lot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jax.extend.core import Jaxpr


def nbytes(tree: Any) -> int:
    """Bytes of all leaves, arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shapes(tree: Any, rows: int | None = None) -> Any:
    """Shapes in place of arrays, with another leading axis if ``rows`` is given; numbers of Python stay."""

    def shape(leaf: Any) -> Any:
        if isinstance(leaf, (bool, int, float)):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape if rows is None else (rows, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, tree)


def peak_bytes(f: Callable[..., Any], *args: Any) -> int:
    """The most bytes that ``f`` holds at once beside its arguments, results included; ``args`` are arrays or shapes."""
    return _peak(jax.make_jaxpr(f)(*args).jaxpr)


def numbers_written(f: Callable[..., Any], *args: Any) -> int:
    """How many numbers the operations of ``f`` write, intermediate ones included: what it costs to compute."""
    return _written(jax.make_jaxpr(f)(*args).jaxpr)


def _peak(jaxpr: Jaxpr) -> int:
    last_use = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if not _is_literal(v)}
    last_use |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not _is_literal(v)}
    alive: dict[Any, int] = {}
    most = 0
    for i, equation in enumerate(jaxpr.eqns):
        inside = max((_peak(inner) for inner in _inner(equation)), default=0)
        # What the inside returns is counted there already, unless it is stacked up (a scan).
        results = {v: _bytes(v) for v in equation.outvars}
        most = max(most, sum(alive.values()) + max(inside, sum(results.values())))
        alive |= results
        for v in (*equation.invars, *equation.outvars):
            if not _is_literal(v) and last_use.get(v, i) <= i:
                alive.pop(v, None)
    return most


def _written(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_written(one) for one in _inner(equation)]
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += repeats * sum(inner) if inner else sum(math.prod(_shape(v)) for v in equation.outvars)
    return total


def _inner(equation: Any) -> Iterator[Jaxpr]:
    """The jaxprs that an equation holds: of calls, loops and branches."""
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            # By what they have: their classes are in jax.extend, which takes as long to import as half of this package.
            if hasattr(part, "jaxpr") and hasattr(part, "consts"):
                yield part.jaxpr
            elif hasattr(part, "eqns") and hasattr(part, "invars"):
                yield part


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _bytes(variable: Any) -> int:
    return math.prod(_shape(variable)) * getattr(getattr(variable.aval, "dtype", None), "itemsize", 0)


def free_bytes() -> int | None:
    """Bytes that are free on the first device of this process; None where it does not say (a CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
