"""Small dense linear algebra for batches of K matrices: written out for tiny dimensions, LAPACK above."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

#: Statistics are contracted at full precision: the float32 default of recent GPUs is TF32, accurate to 1e-3.
dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# A batched LAPACK call costs about a microsecond a matrix; up to this dimension straight-line code fuses and is faster.
_WRITTEN_OUT = 4
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
    d = a.shape[-1]
    if d > _WRITTEN_OUT:
        return jnp.linalg.cholesky(a, symmetrize_input=False)
    rows: list[list[jax.Array]] = []
    for i in range(d):
        row: list[jax.Array] = []
        for j in range(i):
            row.append((a[..., i, j] - sum((row[m] * rows[j][m] for m in range(j)), 0.0)) / rows[j][j])
        row.append(jnp.sqrt(a[..., i, i] - sum((r * r for r in row), 0.0)))
        rows.append(row)
    return _from_rows(rows)


def inverse_lower(lower: jax.Array) -> jax.Array:
    """Inverses of a batch of lower triangular matrices [..., D, D]."""
    d = lower.shape[-1]
    if d > _WRITTEN_OUT:
        eye = jnp.broadcast_to(jnp.eye(d, dtype=lower.dtype), lower.shape)
        return solve_triangular(lower, eye, lower=True)
    rows: list[list[jax.Array]] = []
    for i in range(d):
        pivot = 1 / lower[..., i, i]
        row = [-sum((lower[..., i, m] * rows[m][j] for m in range(j, i)), 0.0) * pivot for j in range(i)]
        rows.append([*row, pivot])
    return _from_rows(rows)


def _from_rows(rows: list[list[jax.Array]]) -> jax.Array:
    """Stack the rows of lower triangular matrices, zeros above the diagonal."""
    zero = jnp.zeros_like(rows[0][0])
    d = len(rows)
    return jnp.stack([jnp.stack([*row, *[zero] * (d - len(row))], axis=-1) for row in rows], axis=-2)


def diagonal(a: jax.Array) -> jax.Array:
    """The diagonals of a batch of square matrices."""
    # A masked sum fuses with its neighbours; jnp.diagonal is a gather and does not.
    return jnp.sum(jnp.where(np.eye(a.shape[-1], dtype=bool), a, 0), axis=-1)


def add_to_diagonal(a: jax.Array, value: jax.Array) -> jax.Array:
    """``a + value · I`` for a batch [..., D, D] and values [...]."""
    return a + value[..., None, None] * np.eye(a.shape[-1], dtype=a.dtype)
