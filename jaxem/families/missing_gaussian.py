"""Gaussian rows with missing cells: the density of what is observed, and the moments that fill in the rest.

With o the observed and u the missing cells of a row y, and B = Σ_uo Σ_oo⁻¹,

    log p(y_o) = −½ (y_o − μ_o)ᵀ Σ_oo⁻¹ (y_o − μ_o) − ½ log |2π Σ_oo|
    E[y_u | y_o] = μ_u + B (y_o − μ_o),        Cov[y_u | y_o] = Σ_uu − B Σ_ou

(Little & Rubin 2019, section 11.2; of mixtures Ghahramani & Jordan 1994). With zeros in place of the missing cells the
first is linear in (1, y, y yᵀ) and the second in (1, y). The coefficients depend on a row by its *pattern* alone, by which
cells are observed: D × D matrices are factorized once for each pattern and component, and rows gather what they need. The
same D × D routines serve every pattern, because a missing cell is put in as one of variance 1 that nothing depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.blocks import block_size_near, map_over_blocks, sum_over_blocks
from jaxem.families.base import weighted_sums
from jaxem.families.covariance import _outer_columns, _quadratic_coefficients, _unpack
from jaxem.linalg import diagonal, dot, factor, gram
from jaxem.model import num_examples, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Rows, or patterns, are worked on in blocks whose D × D matrices hold no more numbers than this.
_BLOCK = 2**20
# Components are worked on one by one when an array of all their rows would hold more numbers than this.
_AT_ONCE = 2**20
_HIGHEST = jax.lax.Precision.HIGHEST


@pytree
class MissingRows:
    """Rows of a Gaussian with covariances.

    table: 1, y and the upper triangle of y yᵀ, y = 0 where a cell is missing, [N, P]. mask: which cells are observed,
    [N, D]. pattern: the number of each row's pattern, [N], below num_patterns; the same for all parts of a data set.
    """

    table: Float[Array, "N P"]
    mask: Bool[Array, "N D"]
    pattern: Int[Array, " N"]
    num_patterns: int = static()

    @property
    def grouped(self) -> bool:
        """Whether working pattern by pattern is less work than row by row."""
        return 2 * self.num_patterns <= self.table.shape[0]


@pytree
class MissingCells:
    """Rows of a Gaussian with independent features. table: 1, m, m y and m y², [N, 1 + 3 D]; m = 0 where missing."""

    table: Float[Array, "N P"]


def count_patterns(mask: np.ndarray) -> int:
    """How many patterns there are, on the host; rounded up by less than a fifth, so that few programs are compiled."""
    words = np.packbits(mask, axis=-1)
    words = np.pad(words, ((0, 0), (0, -words.shape[1] % 8)))
    keys = np.ascontiguousarray(words).view(np.uint64)
    exact = len(np.unique(keys[:, 0] if keys.shape[1] == 1 else keys, axis=0))
    step = 2 ** max(0, exact.bit_length() - 3)
    return -(-exact // step) * step


def _number_patterns(mask: Bool[Array, "N D"], num_patterns: int | None) -> tuple[Int[Array, " N"], int]:
    """A number for each row's pattern, and a bound on these numbers; N where there are about as many as rows."""
    n, d = mask.shape
    bound = 2**d if num_patterns is None else min(num_patterns, 2**d)
    if 2 * bound > n:
        return jnp.zeros(n, jnp.int32), n
    if 2 * 2**d <= min(3 * bound, n):
        return jnp.sum(mask * (2 ** np.arange(d, dtype=np.int32)), axis=-1, dtype=jnp.int32), 2**d
    bits = jnp.pad(mask, ((0, 0), (0, -d % 31))).reshape(n, -1, 31)
    words = jnp.sum(bits * (2 ** np.arange(31, dtype=np.int32)), axis=-1, dtype=jnp.int32)
    _, pattern = jnp.unique(words, axis=0, size=bound, return_inverse=True)
    return pattern.reshape(-1).astype(jnp.int32), bound


def row_statistics(y: Float[Array, "N D"], mask: Bool[Array, "N D"], num_patterns: int | None) -> MissingRows:
    """num_patterns: a bound on the number of patterns, if one is known. Rows beyond it would be NaN, not wrong."""
    y = jnp.where(mask, y, 0)
    pattern, num_patterns = _number_patterns(mask, num_patterns)
    table = jnp.concatenate([jnp.ones_like(y[:, :1]), y, _outer_columns(y)], axis=-1)
    table = jnp.where((pattern < num_patterns)[:, None], table, jnp.nan)
    return MissingRows(table, mask, pattern, num_patterns)


def row_log_prob(
    rows: MissingRows, mean: Float[Array, "K D"], covariance: Float[Array, "K D D"], log_scale: Float[Array, " D"]
) -> Float[Array, "N K"]:
    """log p of the observed cells; the Gaussian is that of y, the density that of exp(log_scale) · y."""
    n, p = rows.table.shape
    masks = _masks(rows) if rows.grouped else None

    def one(mean: Array, covariance: Array) -> Array:
        def natural(masks: Array) -> Array:
            return _natural(masks, mean, covariance, log_scale)

        def density(table: Array, natural: Array) -> Array:
            return jnp.einsum("np,np->n", table, natural, precision=_HIGHEST)

        if masks is None:
            return _blockwise(lambda b: density(b[0], natural(b[1])), (rows.table, rows.mask), mean.shape[0] ** 2)
        known = _blockwise(natural, masks, mean.shape[0] ** 2)
        return _blockwise(lambda b: density(b[0], known[b[1]]), (rows.table, rows.pattern), p)

    return _over_components(one, (mean, covariance), n * p).T


def row_moments(
    rows: MissingRows, marginals: Float[Array, "N K"], mean: Float[Array, "K D"], covariance: Float[Array, "K D D"]
) -> tuple[Float[Array, "K 1"], Float[Array, "K D"], Float[Array, "K D D"]]:
    """Σ_n r_nk, Σ_n r_nk E[y_n | observed] and Σ_n r_nk E[y_n y_nᵀ | observed]."""
    (n, d), g = rows.mask.shape, rows.num_patterns
    masks = _masks(rows) if rows.grouped else None
    y = rows.table[:, 1 : 1 + d]

    def one(mean: Array, covariance: Array, share: Array) -> tuple[Array, Array]:
        """Sums of (1, ŷ)(1, ŷ)ᵀ, where ŷ is y with its gaps filled, and of the covariance of the gaps."""

        def term(block: tuple[Array, Array, Array], fresh: Array | None) -> tuple[Array, Array]:
            y, which, share = block
            share = share if fresh is None else share * fresh
            if known is None:
                fill, offset, left = _conditional(which, mean, covariance)
                gaps = jnp.einsum("n,nij->ij", share, left, precision=_HIGHEST)
            else:
                (fill, offset), gaps = jax.tree.map(lambda a: a[which], known[:2]), jnp.zeros_like(covariance)
            filled = jnp.einsum("nij,nj->ni", fill, y, precision=_HIGHEST) + offset
            filled = jnp.concatenate([jnp.ones_like(filled[:, :1]), filled], axis=-1)
            return dot((share[:, None] * filled).T, filled), gaps

        known = None
        if masks is not None:
            known = _blockwise(lambda m: _conditional(m, mean, covariance), masks, d * d)
        data = (y, rows.mask if known is None else rows.pattern, share)
        moments, gaps = sum_over_blocks(term, data, None, _block_size(n, d * d), y.dtype)
        if known is not None:
            # A long sum in float32 is cut into shorter ones.
            spread = max(1, min(64, n // (4 * g)))
            place = rows.pattern * spread + jnp.arange(n, dtype=jnp.int32) % spread
            counts = jnp.sum(jax.ops.segment_sum(share, place, g * spread).reshape(g, spread), axis=1)
            gaps = jnp.einsum("g,gij->ij", counts, known[2], precision=_HIGHEST)
        return moments, gaps

    moments, gaps = _over_components(one, (mean, covariance, marginals.T), n * d * d)
    return moments[:, 0, :1], moments[:, 0, 1:], moments[:, 1:, 1:] + gaps


def row_start_moments(
    rows: MissingRows, marginals: Float[Array, "N K"]
) -> tuple[Float[Array, "K 1"], Float[Array, "K D"], Float[Array, "K D D"]]:
    """`row_moments` with mean 0 and covariance I: before anything is known but the data's centre and scale."""
    d = rows.mask.shape[1]
    sums = weighted_sums(marginals, rows.table)
    missing = weighted_sums(marginals, (~rows.mask).astype(sums.dtype))
    second = _unpack(sums[:, 1 + d :], d) + missing[:, :, None] * np.eye(d, dtype=sums.dtype)
    return sums[:, :1], sums[:, 1 : 1 + d], second


def _masks(rows: MissingRows) -> Bool[Array, "G D"]:
    """What the patterns are. Read off the rows, so that any part of a data set knows its own; the others are empty."""
    nothing = jnp.zeros((rows.num_patterns, rows.mask.shape[1]), bool)
    return nothing.at[rows.pattern].set(rows.mask)


def _observed_precision(
    masks: Bool[Array, "G D"], covariance: Float[Array, "D D"]
) -> tuple[Float[Array, "G D D"], Float[Array, "G D D"]]:
    """Σ_oo⁻¹ with zeros in the missing rows and columns, and the Cholesky factor of Σ_oo, for every pattern."""
    both = masks[:, :, None] & masks[:, None, :]
    lower, root = factor(jnp.where(both, covariance, np.eye(masks.shape[1], dtype=covariance.dtype)))
    return jnp.where(both, gram(root), 0), lower


def _natural(
    masks: Bool[Array, "G D"],
    mean: Float[Array, " D"],
    covariance: Float[Array, "D D"],
    log_scale: Float[Array, " D"],
) -> Float[Array, "G P"]:
    """The coefficients of (1, y, y yᵀ) in log p(y_o), for every pattern."""
    precision, lower = _observed_precision(masks, covariance)
    log_det = 2 * jnp.sum(jnp.log(diagonal(lower)), axis=-1)
    linear = dot(precision, mean)
    per_cell = jnp.where(masks, 0.5 * math.log(2 * math.pi) + log_scale, 0)
    constant = -0.5 * (dot(linear, mean) + log_det) - jnp.sum(per_cell, axis=-1)
    return jnp.concatenate([constant[:, None], linear, _quadratic_coefficients(precision)], axis=-1)


def _conditional(
    masks: Bool[Array, "G D"], mean: Float[Array, " D"], covariance: Float[Array, "D D"]
) -> tuple[Float[Array, "G D D"], Float[Array, "G D"], Float[Array, "G D D"]]:
    """(F, f, C) with E[y | observed] = F y + f, where missing cells of y are 0, and covariance C."""
    missing = ~masks[:, :, None]
    # One more pattern, in which nothing is missing: its factor is that of the covariance.
    every = jnp.concatenate([masks, jnp.ones_like(masks[:1])])
    precisions, factors = _observed_precision(every, covariance)
    precision, lower = precisions[:-1], factors[-1]
    regression = jnp.where(missing, dot(covariance, precision), 0)
    offset = jnp.where(masks, 0, mean - dot(regression, mean))
    fill = regression + jnp.where(missing, 0, np.eye(masks.shape[1], dtype=mean.dtype))
    # As a product with its own transpose, because rounding must not make a variance negative.
    root = jnp.where(missing, lower - dot(regression, lower), 0)
    return fill, offset, dot(root, jnp.swapaxes(root, -1, -2))


def row_conditional_moments(
    y: Float[Array, "N D"],
    mask: Bool[Array, "N D"],
    mean: Float[Array, "K D"],
    covariance: Float[Array, "K D D"],
) -> tuple[Float[Array, "N K D"], Float[Array, "N K D D"]]:
    """E[y | observed] and Cov[y | observed] of every row, under every component."""
    y = jnp.where(mask, y, 0)

    def one(mean: Array, covariance: Array) -> tuple[Array, Array]:
        def block(part: tuple[Array, Array]) -> tuple[Array, Array]:
            fill, offset, covariance_left = _conditional(part[1], mean, covariance)
            return dot(fill, part[0][:, :, None])[:, :, 0] + offset, covariance_left

        return _blockwise(block, (y, mask), y.shape[1] ** 2)

    first, left = _over_components(one, (mean, covariance), y.size * y.shape[1])
    return jnp.moveaxis(first, 0, 1), jnp.moveaxis(left, 0, 1)


# Independent features.


def cell_statistics(y: Float[Array, "N D"], mask: Bool[Array, "N D"]) -> MissingCells:
    y, count = jnp.where(mask, y, 0), mask.astype(y.dtype)
    return MissingCells(jnp.concatenate([jnp.ones_like(y[:, :1]), count, y, y * y], axis=-1))


def cell_natural(
    mean: Float[Array, "K D"], variance: Float[Array, "K D"], log_scale: Float[Array, " D"]
) -> Float[Array, "K P"]:
    """The coefficients of (1, m, m y, m y²) in log p of the observed cells."""
    constant = -0.5 * (mean**2 / variance + jnp.log(2 * math.pi * variance)) - log_scale
    return jnp.concatenate([jnp.zeros_like(mean[:, :1]), constant, mean / variance, -0.5 / variance], axis=-1)


def cell_moments(
    cells: MissingCells, marginals: Float[Array, "N K"], mean: Float[Array, "K D"], variance: Float[Array, "K D"]
) -> tuple[Float[Array, "K 1"], Float[Array, "K D"], Float[Array, "K D"]]:
    """Σ_n r_nk, Σ_n r_nk E[y_n | observed] and Σ_n r_nk E[y_n² | observed]."""
    sums = weighted_sums(marginals, cells.table)
    count, observed, first, second = sums[:, :1], *jnp.split(sums[:, 1:], 3, axis=-1)
    missing = jnp.maximum(count - observed, 0)
    return count, first + missing * mean, second + missing * (mean**2 + variance)


def cell_start_moments(
    cells: MissingCells, marginals: Float[Array, "N K"]
) -> tuple[Float[Array, "K 1"], Float[Array, "K D"], Float[Array, "K D"]]:
    """`cell_moments` with mean 0 and variance 1."""
    one = jnp.ones((1, (cells.table.shape[1] - 1) // 3), cells.table.dtype)
    return cell_moments(cells, marginals, 0 * one, one)


# Components and blocks.


def _over_components(f: Callable[..., Any], args: tuple[Array, ...], size: int) -> Any:
    """``f`` for every component: all at once when ``size`` numbers for each of them are few, else one by one."""
    if args[0].shape[0] * size <= _AT_ONCE:
        return jax.vmap(f)(*args)
    return jax.lax.map(lambda each: f(*each), args)


def _block_size(n: int, width: int) -> int:
    """How many of n rows to work on at once, with ``width`` numbers for each."""
    return block_size_near(n, max(1, _BLOCK // width))


def _blockwise(f: Callable[[Any], Any], data: Any, width: int) -> Any:
    return map_over_blocks(f, data, _block_size(num_examples(data), width))
