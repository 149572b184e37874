"""Small dense linear algebra for batches of K matrices: loops over blocks of columns, in few operations for every D.

LAPACK is not called. Its batched calls share a thread pool with the operations that XLA runs beside them, and triangular
solves on a pool of two threads can wait for each other for ever.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

#: Statistics are contracted at full precision: the float32 default of recent GPUs is TF32, accurate to 1e-3.
dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# Matrices are eliminated column by column up to this dimension; larger ones in blocks of so many columns, the rest of the
# work being matrix products.
_BLOCK = 16
# Below so many rows, arithmetic on [N, K] is done on its transpose.
_FEW_ROWS = 2**13


def rows_last(rows: jax.Array) -> bool:
    """True where arithmetic on [N, K] is done on its transpose: a few thousand rows, few components.

    Sums and maxima over a short last axis do not vectorize; over the rows they do, two to three times as fast. For more
    rows the transposed products no longer stream, and it turns around.
    """
    return rows.ndim == 2 and rows.shape[0] < _FEW_ROWS


def cholesky(a: jax.Array) -> jax.Array:
    """Lower Cholesky factors of a batch [..., D, D]; NaN where a matrix is not positive definite."""
    return factor(a)[0]


@jax.custom_jvp
def factor(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Lower Cholesky factors L of a batch of symmetric matrices [..., D, D], and L⁻¹.

    NaN where a matrix is not positive definite. Derivatives are matrix products of L and L⁻¹.
    """
    eliminated = _eliminate(a) if a.shape[-1] <= _BLOCK else _eliminate_blocks(a)
    inverse = jnp.tril(eliminated)
    pivots = diagonal(inverse)
    # Also where a later pivot was the first that is not positive: no part of the answer looks right.
    valid = jnp.all((pivots > 0) & (pivots < jnp.inf), axis=-1)[..., None, None]
    above = jnp.swapaxes(jnp.triu(eliminated, 1), -1, -2)
    lower = above + np.eye(a.shape[-1], dtype=a.dtype) * (1 / pivots)[..., None]
    return jnp.where(valid, lower, jnp.nan), jnp.where(valid, inverse, jnp.nan)


@factor.defjvp
def _factor_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple:
    """With Φ the lower triangle, half of the diagonal: dL = L Φ(L⁻¹ dA L⁻ᵀ) and dL⁻¹ = −Φ(L⁻¹ dA L⁻ᵀ) L⁻¹."""
    lower, inverse = factor(primals[0])
    tangent = 0.5 * (tangents[0] + jnp.swapaxes(tangents[0], -1, -2))
    inner = dot(dot(inverse, tangent), jnp.swapaxes(inverse, -1, -2))
    d = inner.shape[-1]
    inner = inner * (np.tril(np.ones((d, d))) - 0.5 * np.eye(d)).astype(inner.dtype)
    return (lower, inverse), (dot(lower, inner), -dot(inner, inverse))


def precision_and_log_det(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverses and log-determinants of a batch of positive definite matrices [..., D, D]."""
    lower, inverse = factor(a)
    return gram(inverse), 2 * jnp.sum(jnp.log(diagonal(lower)), axis=-1)


def gram(root: jax.Array) -> jax.Array:
    """``rootᵀ root`` of a batch of matrices."""
    return dot(jnp.swapaxes(root, -1, -2), root)


def _eliminate(a: jax.Array) -> jax.Array:
    """L⁻¹ on and below the diagonal, Lᵀ above it: Gaussian elimination of [A | I] within one array.

    Once column j is eliminated nothing below its pivot is needed in A, and column j of what stood for I is needed from
    there on only: they share their place.
    """
    d = a.shape[-1]
    at = np.arange(d)

    def step(j: jax.Array, m: jax.Array) -> jax.Array:
        # Products with 0 and 1 compile to less than choices do; what is not finite spreads, and is seen at the end.
        here, below = (at == j).astype(a.dtype), (at > j).astype(a.dtype)
        row = jnp.sum(m * here[:, None], axis=-2)
        pivot = jnp.sum(row * here, axis=-1, keepdims=True)
        row = (row * (1 - here) + here) / jnp.sqrt(pivot)
        kept = m * (1 - here[:, None] - below[:, None] * here)
        return kept + (here[:, None] - below[:, None] * row[..., None]) * row[..., None, :]

    return jax.lax.fori_loop(0, d, step, a)


def _eliminate_blocks(a: jax.Array) -> jax.Array:
    """`_eliminate`, by blocks of rows."""
    d = a.shape[-1]
    missing = -d % _BLOCK
    ones = np.diag(np.r_[np.zeros(d), np.ones(missing)]).astype(a.dtype)
    padded = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, missing)] * 2) + ones
    at = np.arange(d + missing)

    def step(block: jax.Array, m: jax.Array) -> jax.Array:
        begin = block * _BLOCK
        rows = jax.lax.dynamic_slice_in_dim(m, begin, _BLOCK, -2)
        corner = _eliminate(jax.lax.dynamic_slice_in_dim(rows, begin, _BLOCK, -1))
        root = jnp.tril(corner)
        rows = dot(root, rows)
        below = at >= begin + _BLOCK
        left = jnp.swapaxes(jnp.where(below, rows, 0), -1, -2)
        m = jnp.where(below[:, None] & (at >= begin) & ~below, 0, m)
        m = m - dot(left, jax.lax.dynamic_update_slice_in_dim(rows, root, begin, -1))
        rows = jax.lax.dynamic_update_slice_in_dim(rows, corner, begin, -1)
        return jax.lax.dynamic_update_slice_in_dim(m, rows, begin, -2)

    return jax.lax.fori_loop(0, (d + missing) // _BLOCK, step, padded)[..., :d, :d]


def diagonal(a: jax.Array) -> jax.Array:
    """The diagonals of a batch of square matrices."""
    # A masked sum fuses with its neighbours; jnp.diagonal is a gather and does not.
    return jnp.sum(jnp.where(np.eye(a.shape[-1], dtype=bool), a, 0), axis=-1)


def add_to_diagonal(a: jax.Array, value: jax.Array) -> jax.Array:
    """``a + value · I`` for a batch [..., D, D] and values [...]."""
    return a + value[..., None, None] * np.eye(a.shape[-1], dtype=a.dtype)
