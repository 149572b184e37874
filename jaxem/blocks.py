"""Sums over blocks of examples, with a compensated carry between the blocks.

A float32 matrix product over 30 million rows loses counts (it stops at 16 777 216). The same product over blocks of
some thousand rows, carried with Neumaier's compensation, is right to the last digit, needs no second floating-point
type, and keeps each block's temporaries in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.model import num_examples


def _two_sum(total: jax.Array, error: jax.Array, term: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Neumaier's step: the new total and everything lost so far (a total that is not finite loses nothing)."""
    new = total + term
    lost = jnp.where(jnp.abs(total) >= jnp.abs(term), (total - new) + term, (term - new) + total)
    return new, jnp.where(jnp.isfinite(new), error + lost, error)


def sum_over_blocks(
    term: Callable[[Any, jax.Array], Any], data: Any, weights: jax.Array | None, block_size: int, dtype: Any
) -> Any:
    """Σ over blocks of ``term(block, block_weights)``, a pytree of sums over examples.

    The last block is moved back to end with the data, and the rows it repeats get weight 0: every block has the same
    shape, and nothing is padded or copied. Block size at most N.
    """
    n = num_examples(data)
    size = min(block_size, n)
    num_blocks = -(-n // size)

    def one(i: jax.Array) -> Any:
        begin = i * size
        start = jnp.minimum(begin, n - size)
        block = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), data)
        fresh = (start + jnp.arange(size) >= begin).astype(dtype)
        if weights is not None:
            # where, not a product: a repeated row's weight must not matter, whatever it is.
            own = jax.lax.dynamic_slice_in_dim(weights, start, size)
            fresh = jnp.where(fresh > 0, own, jnp.zeros_like(own))
        return term(block, fresh)

    if num_blocks == 1:
        return term(data, jnp.ones(n, dtype) if weights is None else weights)

    def body(carry: tuple[Any, Any], i: jax.Array) -> tuple[tuple[Any, Any], None]:
        total, error = carry
        pairs = jax.tree.map(_two_sum, total, error, one(i))
        return jax.tree.transpose(jax.tree.structure(total), jax.tree.structure((0, 0)), pairs), None

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, jnp.int32(0)))
    (total, error), _ = jax.lax.scan(body, (zero, zero), jnp.arange(num_blocks, dtype=jnp.int32))
    return jax.tree.map(jnp.add, total, error)


def map_over_blocks(f: Callable[[Any], Any], data: Any, block_size: int) -> Any:
    """``f(data)`` for a function that keeps the leading axis, computed block by block."""
    n = num_examples(data)
    size = min(block_size, n)
    whole = n - n % size
    blocks = jax.tree.map(lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), data)
    result = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), jax.lax.map(f, blocks))
    if whole == n:
        return result
    rest = f(jax.tree.map(lambda a: a[whole:], data))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), result, rest)
