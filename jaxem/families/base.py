"""The exponential family: one matrix product each way.

    log p(x | z = k) = T(x) · η_k,        Σ_n r_nk T(x_n) = Rᵀ T

with a column of ones in T that carries the log-normalizer, and columns with coefficient 1 for what does not depend on
the parameters. A concrete family is its statistics, its natural parameters, its M-step and its sampler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.linalg import dot, rows_last
from jaxem.model import Data, Family, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ExponentialFamily(Family):
    """A family whose log-probability is linear in the statistics of a row. Owns both products."""

    def natural(self, params: Any) -> Float[Array, "K P"]:
        """η of each component: the coefficients of T(x) in log p(x | z = k)."""
        raise unsupported(self, "natural", "the E-step")

    def log_prob(self, params: Any, statistics: Float[Array, "*N P"]) -> Float[Array, "*N K"]:
        natural = self.natural(params)
        if rows_last(statistics):
            return dot(natural, statistics.T).T
        return dot(statistics, natural.T)

    def accumulate(
        self, params: Any, statistics: Float[Array, "*N P"], marginals: Float[Array, "*N K"]
    ) -> Float[Array, "K P"]:
        flat = marginals.reshape(-1, marginals.shape[-1])
        return dot(flat.T, statistics.reshape(-1, statistics.shape[-1]))

    def q(self, params: Any, stats: Float[Array, "K P"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(stats == 0, 0.0, self.natural(params) * stats))

    def pseudo_statistics(self, overall: Float[Array, "K P"]) -> Float[Array, "K P"]:
        return overall


def observations(data: Data) -> jax.Array:
    """``data.x`` as [..., D], or a clear error."""
    x = data.x
    if x is None or x.ndim < 2:
        given = "no x" if x is None else f"shape {x.shape}"
        hint = "; for one feature use x[:, None]" if x is not None and x.ndim == 1 else ""
        raise ValueError(f"x needs examples as rows and features as columns, [N, D]; got {given}{hint}")
    return x


def occupied(count: jax.Array) -> jax.Array:
    """Components with enough weight to divide by: more than rounding of the rounding of the total."""
    return count > jnp.finfo(count.dtype).eps ** 2 * jnp.sum(count)


def divide(numerator: jax.Array, count: jax.Array, used: jax.Array) -> jax.Array:
    """``numerator / count`` over trailing axes, 0 where a component is not used (and no NaN in the gradient)."""
    extra = (1,) * (numerator.ndim - count.ndim)
    safe = jnp.where(used, count, 1).reshape(count.shape + extra)
    return jnp.where(used.reshape(safe.shape), numerator / safe, 0)


def keep(used: jax.Array, new: jax.Array, old: jax.Array | None) -> jax.Array:
    """``new`` for the components in use, the parameters before the step for the others."""
    if old is None:
        return new
    return jnp.where(used.reshape(used.shape + (1,) * (new.ndim - used.ndim)), new, old)


def hold(frozen: Any, new: jax.Array, old: jax.Array | None) -> jax.Array:
    """``old`` where ``frozen`` (True, False, or a mask over components) says so, ``new`` elsewhere."""
    if frozen is False or frozen is None or old is None:
        return new
    mask = jnp.asarray(frozen)
    return jnp.where(mask.reshape(mask.shape + (1,) * (new.ndim - mask.ndim)), old, new)


def weighted_mean(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Mean over all axes but the last, with one weight per example."""
    axes = tuple(range(x.ndim - 1))
    if weights is None:
        return jnp.mean(x, axis=axes)
    w = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (x.ndim - weights.ndim)), (*x.shape[:-1], 1))
    # Scale first: the sum of huge or tiny weights must not leave the range of the dtype.
    w = w / jnp.max(w)
    return jnp.sum(w * x, axis=axes) / jnp.sum(w)
