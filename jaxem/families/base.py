"""The exponential family: one matrix product each way.

    log p(x | z = k) = T(x) · η_k,        Σ_n r_nk T(x_n) = Rᵀ T

with a column of ones in T that carries the log-normalizer, and columns with coefficient 1 for what does not depend on
the parameters. A concrete family is its statistics, its natural parameters, its M-step and its sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.blocks import LONG, LONG_BLOCK, block_size_near, few_results, product_over_rows, sum_over_blocks
from jaxem.layout import namespace
from jaxem.linalg import dot, rows_last
from jaxem.model import Data, Family, unsupported
from jaxem.special import log_ratio

if TYPE_CHECKING:
    from jaxtyping import Array, Float


# Products with a dimension this small are written out: XLA's own take up to five times as long on a CPU.
_FEW_STATISTICS = 8


class ExponentialFamily(Family):
    """A family whose log-probability is linear in the statistics of a row. Owns both products."""

    #: True where a coefficient can be `LOG_ZERO`: log p is −∞ where it takes part.
    bounded: bool = False

    def natural(self, params: Any) -> Float[Array, "K P"]:
        """η of each component: the coefficients of T(x) in log p(x | z = k)."""
        raise unsupported(self, "natural", "the E-step")

    def log_prob(self, params: Any, statistics: Any) -> Float[Array, "N K"]:
        if self.augmented(statistics):
            return self.augmented_log_prob(params, statistics)
        log_p = linear(statistics, self.natural(params))
        return impossible_to_infinity(log_p) if self.bounded else log_p

    def accumulate(self, params: Any, statistics: Any, marginals: Float[Array, "N K"]) -> Float[Array, "K P"]:
        if self.augmented(statistics):
            return self.augmented_sums(params, statistics, marginals)
        return weighted_sums(marginals, statistics)

    def augmented(self, statistics: Any) -> bool:
        """Statistics of rows that are not complete are of a type of their own, not an array."""
        return not isinstance(statistics, (jax.Array, np.ndarray))

    def augmented_log_prob(self, params: Any, statistics: Any) -> Float[Array, "N K"]:
        """log p of what is observed of each row."""
        raise unsupported(self, "augmented_log_prob", "rows that are not complete")

    def augmented_sums(self, params: Any, statistics: Any, marginals: Float[Array, "N K"]) -> Float[Array, "K P"]:
        """Σ_n r_nk E[T(x_n) | what is observed of x_n]. ``params`` is None at a start."""
        raise unsupported(self, "augmented_sums", "rows that are not complete")

    def q(self, params: Any, stats: Float[Array, "K P"]) -> Float[Array, ""]:
        expected = jnp.sum(jnp.where(stats == 0, 0.0, self.natural(params) * stats))
        return impossible_to_infinity(expected) if self.bounded else expected

    def pseudo_statistics(self, overall: Float[Array, "K P"]) -> Float[Array, "K P"]:
        return overall


def linear(statistics: Float[Array, "N P"], natural: Float[Array, "K P"]) -> Float[Array, "N K"]:
    """T(x_n) · η_k of every row and component."""
    if rows_last(statistics):
        return dot(natural, statistics.T).T
    if statistics.shape[-1] <= _FEW_STATISTICS:
        return sum((statistics[:, p, None] * natural[:, p] for p in range(statistics.shape[-1])), jnp.zeros(()))
    return dot(statistics, natural.T)


def weighted_sums(marginals: Float[Array, "N K"], statistics: Float[Array, "N P"]) -> Float[Array, "K P"]:
    """Σ_n r_nk T(x_n); over many rows block by block, because a long product in float32 loses digits."""
    n = statistics.shape[0]
    if n <= LONG or few_results(marginals, statistics):
        return product_over_rows(marginals, statistics)
    size = block_size_near(n, LONG_BLOCK)
    term = lambda block, _: product_over_rows(*block)  # noqa: E731
    return sum_over_blocks(term, (marginals, statistics), jnp.ones(n, statistics.dtype), size, statistics.dtype)


def observations(data: Data) -> jax.Array:
    """``data.x`` as [..., D], or a clear error."""
    x = data.x
    if x is None or x.ndim < 2:
        given = "no x" if x is None else f"shape {x.shape}"
        hint = "; for one feature use x[:, None]" if x is not None and x.ndim == 1 else ""
        raise ValueError(f"x needs examples as rows and features as columns, [N, D]; got {given}{hint}")
    return x


def seen(data: Data) -> np.ndarray:
    """On the host: which cells of x are observed, as a mask that broadcasts against x."""
    return np.asarray(True if data.mask is None else data.mask)


def refuse_outside(supported: Callable[[Any], Any], data: Data, domain: str) -> None:
    """On the host: raise ValueError where an observed cell of x lies outside the support, naming it. domain: in words."""
    x = np.asarray(observations(data))
    bad = np.argwhere(~np.asarray(supported(x)) & seen(data))
    if len(bad):
        row, column = bad[0]
        raise ValueError(f"{domain}; got {x[row, column]} in row {row}, column {column}")


def is_not_one(size: Any, x: Any, filler: float) -> Any:
    """Which rows of x, [N, D], have a size, [N], that is not 1, and are not the ``filler`` of a row that is missing whole.

    What is no number is not told here: it must be seen, not called impossible.
    """
    xp = namespace(x)
    return (xp.abs(size - 1) > 1e-4) & xp.any(x != filler, axis=-1)


def is_count(x: jax.Array) -> jax.Array:
    """Which cells hold 0, 1, 2, …"""
    xp = namespace(x)
    return (x >= 0) & (x == xp.floor(x)) & xp.isfinite(x)


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


# log 0 inside a matrix product, where 0 · (−∞) would be NaN: below anything possible, and finite in float32 times a count.
LOG_ZERO = -1e30


def log_or_zero(probability: jax.Array) -> jax.Array:
    """log p as a coefficient: `LOG_ZERO` where p is 0 (or too small to be told from it), no gradient there."""
    impossible = probability < jnp.finfo(probability.dtype).tiny
    return jnp.where(impossible, LOG_ZERO, jnp.log(jnp.where(impossible, 1, probability)))


def log_of_complement(probability: jax.Array) -> jax.Array:
    """log(1 − p) as a coefficient: `LOG_ZERO` where p is 1, no gradient there."""
    impossible = probability >= 1
    return jnp.where(impossible, LOG_ZERO, jnp.log1p(-jnp.where(impossible, 0, probability)))


def log_ratio_or_zero(probability: jax.Array, center: jax.Array) -> jax.Array:
    """log(p/c) as a coefficient, exact to rounding where p is near c: `LOG_ZERO` where p is 0, no gradient there."""
    impossible = probability < jnp.finfo(probability.dtype).tiny
    return jnp.where(impossible, LOG_ZERO, log_ratio(jnp.where(impossible, center, probability), center))


def impossible_to_infinity(log_p: jax.Array) -> jax.Array:
    """−∞ where a `LOG_ZERO` took part in a sum, the sum elsewhere."""
    return jnp.where(log_p < 0.1 * LOG_ZERO, -jnp.inf, log_p)


def free_log(probability: jax.Array) -> jax.Array:
    """log p as a free coordinate: finite at 0, and so low there that its exponential is 0 again."""
    tiny = float(jnp.finfo(probability.dtype).tiny)
    impossible = probability < tiny
    return jnp.where(impossible, math.log(tiny) - 4, jnp.log(jnp.where(impossible, 1, probability)))


def mean_where_missing(features: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[N, D, …] with what is missing at the mean of its column: no nearer to one example than to another."""
    if mask is None:
        return features
    mask = mask.reshape(mask.shape + (1,) * (features.ndim - 2))
    count = jnp.sum(mask, axis=0)
    mean = jnp.sum(jnp.where(mask, features, 0), axis=0) / jnp.maximum(count, 1)
    return jnp.where(mask, features, mean)


def weighted_mean(x: jax.Array, weights: jax.Array | None, mask: jax.Array | None = None) -> jax.Array:
    """Mean over the rows, with one weight per row, of the observed cells; 0 in a column without any."""
    if weights is None and mask is None:
        return jnp.mean(x, axis=0)
    w = jnp.ones(x.shape[:1], x.dtype) if weights is None else weights.astype(x.dtype)
    # Scale first: the sum of huge or tiny weights must not leave the range of the dtype.
    w = (w / jnp.max(w))[:, None]
    if mask is not None:
        w = jnp.where(mask, w, 0)
    total = jnp.sum(jnp.broadcast_to(w, x.shape), axis=0)
    return jnp.sum(w * x, axis=0) / jnp.where(total > 0, total, 1)
