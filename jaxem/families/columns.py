"""Families whose columns are independent given z: one exponential family per column, missing cells for nothing.

    log p(x | z = k) = Σ_d m_d [ c_kd + Σ_j η_jkd t_j(x_d) + h(x_d) ]

with m_d = 1 where the cell is observed. A row's statistics are ones (one column of them, or the mask, one for each
column of x), then t_1, t_2, … of every column, then Σ_d h; a masked cell is a row of zeros, so both products of the
E-step stay what they are. A concrete family is its terms, its natural parameters, its M-step and its sampler.

The edge of the parameters' domain belongs to it (a probability of exactly 0): an η there is `LOG_ZERO`, times t_j = 0
nothing and times anything else log p = −∞; such a family has t_j ≥ 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.families.base import (
    LOG_ZERO,
    hold,
    impossible_to_infinity,
    keep,
    linear,
    observations,
    occupied,
    refuse_outside,
    weighted_sums,
)
from jaxem.layout import namespace
from jaxem.model import Data, Family, pytree, static, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class ColumnStatistics:
    """table: [N, P], of rows, or sums of them, [K, P]. num_columns: D, which P alone does not tell."""

    table: Float[Array, "*N P"]
    num_columns: int = static()

    def split(self, num_terms: int, size: int | None = None) -> tuple[Array, tuple[Array, ...]]:
        """Counts, [N, D] or [N, 1], and the terms, [N, D] each (of ``size`` numbers a cell [N, D, size])."""
        d = self.num_columns
        width = d if size is None else d * size
        ones = self.table.shape[-1] - 1 - num_terms * width
        count, rest = self.table[..., :ones], self.table[..., ones:-1]
        terms = tuple(rest[..., j * width : (j + 1) * width] for j in range(num_terms))
        if size is not None:
            terms = tuple(term.reshape(*term.shape[:-1], d, size) for term in terms)
        return count, terms


def pack(count: Array, terms: tuple[Array, ...], base: Float[Array, "N 1"], num_columns: int) -> ColumnStatistics:
    """The inverse of `ColumnStatistics.split`, with Σ_d h as ``base``."""
    flat = [term.reshape(term.shape[0], -1) for term in terms]
    return ColumnStatistics(jnp.concatenate([count, *flat, base], axis=-1), num_columns)


def conditional_moments(
    mean: Float[Array, "K D"], variance: Float[Array, "K D"], data: Data
) -> tuple[Float[Array, "N K D"], Float[Array, "N K D D"]]:
    """Cells that are missing have the moments of their column: what is observed says nothing of them but z."""
    x = observations(data)
    known = jnp.ones(x.shape, bool) if data.mask is None else data.mask
    variance = jnp.where(known[:, None], 0, variance)
    return jnp.where(known[:, None], x[:, None], mean), variance[..., None] * jnp.eye(x.shape[1], dtype=variance.dtype)


class Columns(Family):
    """A family with independent columns, the part that no density matters to.

    Owns the statistics of rows with their mask, frozen leaves, members without examples, q, and the moments of cells.
    """

    reads = frozenset({"x", "mask"})
    #: J, the number of statistics of a cell that the M-step sees.
    num_terms: int = 1
    #: C where each of them is C numbers, [N, D, C].
    term_size: int | None = None
    #: What the observations are, for the error that names one that is not.
    domain: str = "observations are finite numbers"

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        """Which cells lie inside the support; the others have log p = −∞."""
        return namespace(x).isfinite(x)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Float[Array, "N D"], ...]:
        """The statistics t_1, …, t_J of every cell; it is inside the support."""
        raise unsupported(self, "terms", "the E-step")

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """h(x): what does not depend on the parameters."""
        raise unsupported(self, "base", "the E-step")

    def natural_columns(self, params: Any) -> tuple[Float[Array, "K D"], tuple[Float[Array, "K D"], ...]]:
        """The constant c and the coefficients η_1, …, η_J of every column."""
        raise unsupported(self, "natural_columns", "the E-step")

    def estimate(
        self, params: Any, count: Float[Array, "K D"], terms: tuple[Array, ...], used: Bool[Array, "K D"], frozen: Any
    ) -> Any:
        """The parameters that maximize q, given the count and the sums of the terms of every column.

        ``params`` are those before the step, None at a start. Finite for columns not ``used`` too, whatever they are
        there. With leaves in ``frozen`` the maximum over the others given them; keeping the frozen ones is not asked.
        """
        raise unsupported(self, "estimate", "the M-step")

    def variance(self, params: Any) -> Float[Array, "K D"]:
        """Var[x | z = k] of every column, [K, D]."""
        raise unsupported(self, "variance", "imputation")

    def validate(self, data: Data) -> None:
        refuse_outside(self.supported, data, self.domain)

    def statistics(self, data: Data) -> ColumnStatistics:
        x = observations(data)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        supported = self.supported(x)
        safe = jnp.where(supported, x, jnp.asarray(self.filler, x.dtype))
        terms, base = self.terms(safe), self.base(safe)
        # What is no number must be seen, not called impossible.
        outside = jnp.where(jnp.isfinite(x), LOG_ZERO, jnp.nan)
        base = jnp.where(supported, base, outside)
        if data.mask is None:
            count = jnp.ones_like(x[:, :1])
        else:
            mask = data.mask
            count = mask.astype(x.dtype)
            terms = tuple(jnp.where(mask if term.ndim == 2 else mask[..., None], term, 0) for term in terms)
            base = jnp.where(mask, base, 0)
        return pack(count, terms, jnp.sum(base, axis=-1, keepdims=True), x.shape[-1])

    def natural(self, params: Any, statistics: ColumnStatistics) -> Float[Array, "K P"]:
        constant, coefficients = self.natural_columns(params)
        d = statistics.num_columns
        masked = statistics.table.shape[-1] - 1 - self.num_terms * d * (self.term_size or 1) == d
        constant = constant if masked else jnp.sum(constant, axis=-1, keepdims=True)
        return pack(constant, coefficients, jnp.ones_like(constant[:, :1]), d).table

    def q(self, params: Any, stats: ColumnStatistics) -> Float[Array, ""]:
        products = jnp.where(stats.table == 0, 0.0, self.natural(params, stats) * stats.table)
        return impossible_to_infinity(jnp.sum(products))

    def maximize(self, params: Any, stats: ColumnStatistics, frozen: Any) -> Any:
        count, terms = stats.split(self.num_terms, self.term_size)
        count = jnp.broadcast_to(count, (count.shape[0], stats.num_columns))
        used = occupied(count)
        new = self.estimate(params, count, terms, used, frozen)
        if params is None:
            return new

        def settle(path: Any, leaf: Array, old: Array) -> Array:
            return hold(frozen.get(path[-1].name), keep(used, leaf, old), old)

        return jax.tree_util.tree_map_with_path(settle, new, params)

    def pseudo_statistics(self, overall: ColumnStatistics) -> ColumnStatistics:
        return overall

    def conditional_moments(self, params: Any, data: Data) -> tuple[Array, Array]:
        return conditional_moments(self.mean(params, data), self.variance(params), data)

    def take_components(self, params: Any, components: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[components], params)

    def degenerate(self, params: Any) -> Bool[Array, " K"]:
        """None: a value at the boundary is proper. A family whose density can grow without bound says otherwise."""
        return jnp.zeros(jax.tree.leaves(params)[0].shape[0], bool)


class IndependentColumns(Columns):
    """A family with independent columns, each an exponential family. Owns both products."""

    def log_prob(self, params: Any, statistics: ColumnStatistics) -> Float[Array, "N K"]:
        return impossible_to_infinity(linear(statistics.table, self.natural(params, statistics)))

    def accumulate(self, params: Any, statistics: ColumnStatistics, marginals: Float[Array, "N K"]) -> ColumnStatistics:
        return ColumnStatistics(weighted_sums(marginals, statistics.table), statistics.num_columns)
