"""Families whose columns are independent given z: one exponential family per column, missing cells for nothing.

    log p(x | z = k) = Σ_d m_d [ c_kd + Σ_j η_jkd t_j(x_d) + h(x_d) ]

with m_d = 1 where the cell is observed. A row's statistics are ones (one column of them, or the mask, one for each
column of x), then t_1, t_2, … of every column, then Σ_d h; a masked cell is a row of zeros, so both products of the
E-step stay what they are. A concrete family is its terms, its natural parameters, its M-step and its sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.families.base import hold, keep, linear, observations, occupied, weighted_sums
from jaxem.model import Data, Family, pytree, static, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class ColumnStatistics:
    """table: [N, P], of rows, or sums of them, [K, P]. num_columns: D, which P alone does not tell."""

    table: Float[Array, "*N P"]
    num_columns: int = static()

    def split(self, num_terms: int) -> tuple[Array, tuple[Array, ...]]:
        """Counts, [N, D] or [N, 1], and the terms, [N, D] each (of a term of C numbers [N, D, C])."""
        d = self.num_columns
        ones = self.table.shape[-1] - 1 - num_terms * d
        count, rest = self.table[..., :ones], self.table[..., ones:-1]
        return count, tuple(rest[..., j * d : (j + 1) * d] for j in range(num_terms))


class IndependentColumns(Family):
    """A family with independent columns. Owns both products, the mask, frozen leaves and members without examples."""

    reads = frozenset({"x", "mask"})
    #: J, the number of statistics of a cell.
    num_terms: int = 1

    def terms(self, x: Float[Array, "N D"]) -> tuple[Float[Array, "N D"], ...]:
        """The statistics t_1, …, t_J of every cell."""
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

    def statistics(self, data: Data) -> ColumnStatistics:
        x = observations(data)
        terms, base = self.terms(x), self.base(x)
        if data.mask is None:
            count = jnp.ones_like(x[:, :1])
        else:
            count = data.mask.astype(x.dtype)
            terms = tuple(jnp.where(data.mask, term, 0) for term in terms)
            base = jnp.where(data.mask, base, 0)
        parts = [count, *terms, jnp.sum(base, axis=-1, keepdims=True)]
        return ColumnStatistics(jnp.concatenate(parts, axis=-1), x.shape[-1])

    def natural(self, params: Any, statistics: ColumnStatistics) -> Float[Array, "K P"]:
        constant, coefficients = self.natural_columns(params)
        d = statistics.num_columns
        masked = statistics.table.shape[-1] - 1 - self.num_terms * d == d
        constant = constant if masked else jnp.sum(constant, axis=-1, keepdims=True)
        return jnp.concatenate([constant, *coefficients, jnp.ones_like(constant[:, :1])], axis=-1)

    def log_prob(self, params: Any, statistics: ColumnStatistics) -> Float[Array, "N K"]:
        return linear(statistics.table, self.natural(params, statistics))

    def accumulate(self, params: Any, statistics: ColumnStatistics, marginals: Float[Array, "N K"]) -> ColumnStatistics:
        return ColumnStatistics(weighted_sums(marginals, statistics.table), statistics.num_columns)

    def q(self, params: Any, stats: ColumnStatistics) -> Float[Array, ""]:
        return jnp.sum(jnp.where(stats.table == 0, 0.0, self.natural(params, stats) * stats.table))

    def maximize(self, params: Any, stats: ColumnStatistics, frozen: Any) -> Any:
        count, terms = stats.split(self.num_terms)
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

    def take_components(self, params: Any, components: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[components], params)

    def degenerate(self, params: Any) -> Bool[Array, " K"]:
        """None: a value at the boundary is proper. A family whose density can grow without bound says otherwise."""
        return jnp.zeros(jax.tree.leaves(params)[0].shape[0], bool)
