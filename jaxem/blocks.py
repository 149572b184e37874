"""Sums over blocks of examples, with a compensated carry between the blocks.

A float32 matrix product over 30 million rows loses counts (it stops at 16 777 216). The same product over blocks of
some thousand rows, carried with Neumaier's compensation, is right to the last digit, needs no second floating-point
type, and keeps each block's temporaries in the cache.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import num_examples

# A float32 product over more rows than this loses digits (4e-6 of a count at 200 000 rows, everything at 30 million).
LONG = 2**18
LONG_BLOCK = 2**16
# So many terms are added one after the other.
FEW_TERMS = 1024
_FEW_RESULTS = 9


def two_sum(total: jax.Array, error: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Neumaier's step: the new total and everything lost so far (a total that is not finite loses nothing)."""
    new = total + term
    lost = jnp.where(jnp.abs(total) >= jnp.abs(term), (total - new) + term, (term - new) + total)
    return new, jnp.where(jnp.isfinite(new), error + lost, error)


def sum_over_blocks(
    term: Callable[[Any, jax.Array | None], Any], data: Any, weights: jax.Array | None, block_size: int, dtype: Any
) -> Any:
    """Σ over blocks of ``term(block, block_weights)``, a pytree of sums over examples."""
    parts = _parts.get()
    if parts > 1 and num_examples(data) % parts == 0:
        split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), (data, weights))
        sums = jax.vmap(lambda own, w: _sum_over_blocks(term, own, w, block_size, dtype))(*split)
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)
    return _sum_over_blocks(term, data, weights, block_size, dtype)


_parts: contextvars.ContextVar[int] = contextvars.ContextVar("parts", default=1)


@contextlib.contextmanager
def in_parts(parts: int) -> Iterator[None]:
    """While a program is traced: rows lie over so many devices, each of which sums its own blocks.

    Left to itself, XLA would bring all rows together to go through them block by block.
    """
    token = _parts.set(parts)
    try:
        yield
    finally:
        _parts.reset(token)


def _sum_over_blocks(term: Any, data: Any, weights: jax.Array | None, block_size: int, dtype: Any) -> Any:
    n = num_examples(data)
    size = min(block_size, n)
    if size == n:
        return term(data, weights)
    if n % size == 0:
        # Whole blocks: a view of the data with an axis of blocks, whose slices XLA reads in place.
        blocks = jax.tree.map(lambda a: a.reshape(n // size, size, *a.shape[1:]), (data, weights))
        return _compensated_sum(lambda block: term(*block), blocks)

    def moved_back(i: jax.Array) -> Any:
        # The last block ends with the data, and the rows it repeats get weight 0: nothing is padded or copied.
        begin = i * size
        start = jnp.minimum(begin, n - size)
        block, own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), (data, weights))
        fresh = start + jnp.arange(size) >= begin
        # where, not a product: a repeated row's weight must not matter, whatever it is.
        return term(block, jnp.where(fresh, jnp.ones(size, dtype) if own is None else own, 0))

    return _compensated_sum(moved_back, jnp.arange(-(-n // size), dtype=jnp.int32))


def _compensated_sum(term: Callable[[Any], Any], blocks: Any) -> Any:
    """Σ of ``term`` over the leading axis of ``blocks``."""

    def body(carry: tuple[Any, Any], block: Any) -> tuple[tuple[Any, Any], None]:
        total, error = carry
        pairs = jax.tree.map(two_sum, total, error, term(block))
        return jax.tree.transpose(jax.tree.structure(total), jax.tree.structure((0, 0)), pairs), None

    shapes = jax.eval_shape(lambda b: term(jax.tree.map(lambda a: a[0], b)), blocks)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (total, error), _ = jax.lax.scan(body, (zero, zero), blocks)
    return jax.tree.map(jnp.add, total, error)


def long_sum(terms: jax.Array) -> jax.Array:
    """The sum over the first axis, first within blocks: a million terms lose no more digits than a thousand."""
    n = terms.shape[0]
    if n <= FEW_TERMS:
        return jnp.sum(terms, axis=0)
    whole = n - n % FEW_TERMS
    blocks = jnp.sum(terms[:whole].reshape(-1, FEW_TERMS, *terms.shape[1:]), axis=1)
    return jnp.sum(blocks, axis=0) + jnp.sum(terms[whole:], axis=0)


def few_results(left: jax.Array, right: jax.Array) -> bool:
    """Products of so few results XLA sums row after row: in float32 the fifth digit is wrong at a million rows."""
    k, p = left.shape[-1], right.shape[-1]
    return k == 1 or p == 1 or k * p <= _FEW_RESULTS


def product_over_rows(left: jax.Array, right: jax.Array) -> jax.Array:
    """leftᵀ right of [N, K] and [N, P]."""
    if left.shape[0] > FEW_TERMS and few_results(left, right):
        return long_sum(left[:, :, None] * right[:, None, :])
    return dot(left.T, right)


def block_size_near(n: int, target: int) -> int:
    """A block size that divides n, within a factor of 1.5 of the target; the target where there is none."""
    if n <= target:
        return n
    near = [size for size in range(max(1, 2 * target // 3), 3 * target // 2 + 1) if n % size == 0]
    return min(near, key=lambda size: abs(size - target), default=target)


def map_over_blocks(f: Callable[[Any], Any], data: Any, block_size: int) -> Any:
    """``f(data)`` for a function that keeps the leading axis, computed block by block."""
    n = num_examples(data)
    size = min(block_size, n)
    if size == n:
        return f(data)
    whole = n - n % size
    blocks = jax.tree.map(lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), data)
    result = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), jax.lax.map(f, blocks))
    if whole == n:
        return result
    rest = f(jax.tree.map(lambda a: a[whole:], data))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), result, rest)
