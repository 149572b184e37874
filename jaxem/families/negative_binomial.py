"""The negative binomial family: D independent overdispersed counts per row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.families.base import (
    LOG_ZERO,
    divide,
    free_log,
    hold,
    impossible_to_infinity,
    is_count,
    log_or_zero,
    mean_where_missing,
    observations,
    weighted_mean,
    weighted_sums,
)
from jaxem.families.columns import Columns, ColumnStatistics
from jaxem.model import Data, pytree
from jaxem.special import LOG_2PI, excess_over_log, log_minus_digamma, solve, stirling

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# The least and the largest mean/size: beyond 10⁸ times the mean a size says "Poisson" to the last digit.
_RATIOS = 1e-8, 1e8


@pytree
class NegativeBinomialParams:
    """mean: μ, [K, D]. size: r, [K, D], the inverse of the overdispersion: the variance is μ + μ²/r."""

    mean: Float[Array, "K D"]
    size: Float[Array, "K D"]


@pytree
class NegativeBinomial(Columns):
    """Overdispersed counts, ``p(x | k) = Π_d Γ(x + r)/(Γ(r) x!) (r/(r + μ))^r (μ/(r + μ))^x`` with r, μ of k, d.

    Both mean and size are learnt. Not an exponential family in r, so the statistics are augmented: a count is a Poisson
    number m of groups of logarithmic sizes, E[m | x] = r (ψ(x + r) − ψ(r)), and given m the M-step is the weighted mean
    of x and one equation for r (Adamidis 1999; Zhou & Carin 2015). Where the data are not overdispersed r grows from
    step to step, and stops at 10⁸ times the mean. start_size: [D], the size at a start, set by `calibrate` from the
    moments of the data. Raises ValueError for x that is no count.
    """

    start_size: Float[Array, " D"] | None = None

    freezable = frozenset({"mean", "size"})
    freezable_by_component = freezable
    num_terms = 2
    domain = "negative binomial counts are 0, 1, 2, …"

    @property
    def calibrated(self) -> bool:
        return self.start_size is not None

    def calibrate(self, data: Data, weights: Array | None) -> NegativeBinomial:
        x = observations(data)
        mean = weighted_mean(x, weights, data.mask)
        variance = weighted_mean((x - mean) ** 2, weights, data.mask)
        over = jnp.maximum(variance - mean, 0.01 * mean**2)
        return NegativeBinomial(jnp.where(mean > 0, jnp.maximum(mean**2 / jnp.where(mean > 0, over, 1), 0.1), 1))

    def augmented(self, statistics: ColumnStatistics) -> bool:
        return True

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return is_count(x)

    def features(self, data: Data) -> Float[Array, "N D"]:
        """2 √r arsinh √(x/r) at the size of the start, whose variance hardly depends on the mean."""
        x = observations(data)
        size = self._start(x.shape[-1], x.dtype)
        return mean_where_missing(2 * jnp.sqrt(size) * jnp.arcsinh(jnp.sqrt(jnp.maximum(x, 0) / size)), data.mask)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array]:
        return (x,)

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """What log p has of x alone in the form of `_log_prob`."""
        some = jnp.where(x > 0, x, 1)
        return jnp.where(x > 0, -0.5 * jnp.log(some) - 0.5 * LOG_2PI - stirling(some), 0)

    def log_prob(self, params: NegativeBinomialParams, statistics: ColumnStatistics) -> Float[Array, "N K"]:
        count, (x,) = statistics.split(1)
        cells = _log_prob(x[:, None], params.mean, params.size)
        total = jnp.sum(jnp.where(count[:, None] == 0, 0, cells), axis=-1) + statistics.table[:, -1:]
        return impossible_to_infinity(total)

    def accumulate(
        self, params: NegativeBinomialParams | None, statistics: ColumnStatistics, marginals: Float[Array, "N K"]
    ) -> ColumnStatistics:
        """Sums of the count, of x, and of x − E[m | x], which is small where m is nearly x."""
        _, (x,) = statistics.split(1)
        size = self._start(x.shape[1], x.dtype)[None] if params is None else params.size
        grouped = jnp.sum(marginals[..., None] * _in_groups(x[:, None], size), axis=0)
        sums = weighted_sums(marginals, statistics.table)
        return ColumnStatistics(jnp.concatenate([sums[:, :-1], grouped, sums[:, -1:]], axis=-1), statistics.num_columns)

    def natural_columns(self, params: NegativeBinomialParams) -> tuple[Array, tuple[Array, Array]]:
        mean, size = params.mean, params.size
        spread = jnp.log1p(mean / size)
        return -size * spread, (log_or_zero(mean) - spread, -jnp.log(size))

    def estimate(self, params: NegativeBinomialParams | None, count, terms, used, frozen) -> NegativeBinomialParams:
        total, grouped = terms
        average = divide(total, count, used)
        some = used & (average > 0)
        share = jnp.clip(divide(grouped, total, some), 0, 1 - jnp.finfo(total.dtype).eps)
        ratio = _ratio(share)
        if params is not None and "mean" in frozen:
            given = jnp.where(params.mean > 0, params.mean, 1)
            level, share = divide(total, count * given, used), divide(grouped, count * given, used)
            ratio = hold(frozen["mean"], ratio, _ratio_given_mean(level, share))
            average = hold(frozen["mean"], average, params.mean)
        size = average / jnp.maximum(ratio, _RATIOS[0])
        # Where every count is 0 all sizes are alike.
        old = self._start(count.shape[1], count.dtype) if params is None else params.size
        return NegativeBinomialParams(average, jnp.where(used & (average > 0), size, old))

    def mean(self, params: NegativeBinomialParams, data: Data) -> Float[Array, "K D"]:
        return params.mean

    def variance(self, params: NegativeBinomialParams) -> Float[Array, "K D"]:
        return params.mean + params.mean**2 / params.size

    def sample(self, key: jax.Array, params: NegativeBinomialParams, z: Array, data: Data) -> Array:
        mean, size = params.mean[z], params.size[z]
        rate_key, key = jax.random.split(key)
        # In logarithms: the Gamma draws of a small shape underflow.
        rate = mean * jnp.exp(jax.random.loggamma(rate_key, size, dtype=size.dtype) - jnp.log(size))
        return jax.random.poisson(key, rate).astype(mean.dtype)

    def to_free(self, params: NegativeBinomialParams) -> NegativeBinomialParams:
        return NegativeBinomialParams(free_log(params.mean), jnp.log(params.size))

    def from_free(self, free: NegativeBinomialParams) -> NegativeBinomialParams:
        return NegativeBinomialParams(jnp.exp(free.mean), jnp.exp(free.size))

    def _start(self, d: int, dtype) -> Array:
        return jnp.ones(d, dtype) if self.start_size is None else self.start_size


def _log_prob(x: Array, mean: Array, size: Array) -> Array:
    """log p of a cell but for its `base`, without cancellation at large counts or sizes (after Loader 2000).

    With n = x + r it is, for x > 0, −½ log(1 + x/r) + stirling(n) − stirling(r) − D, where with s = (r + μ)/n
    D = x log(s x/μ) + r log s, and where x is near μ, D = x φ((μ − x)/x) − n φ((μ − x)/n) with φ(u) = u − log(1 + u).
    """
    some, possible = x > 0, mean >= jnp.finfo(mean.dtype).tiny
    count = jnp.where(some, x, 1)
    mean_or_one = jnp.where(possible, mean, 1)
    total = count + size
    u, w = (mean_or_one - count) / count, (mean_or_one - count) / total
    near = jnp.abs(u) < 0.5
    at, at_total = jnp.where(near, u, 0), jnp.where(near, w, 0)
    deviance_near = count * excess_over_log(at) - total * excess_over_log(at_total)
    ratio = (size + mean_or_one) / total
    log_ratio = jnp.where(w > -0.5, jnp.log1p(jnp.maximum(w, -0.5)), jnp.log(ratio))
    v = size / total * ((count - mean_or_one) / mean_or_one)
    log_both = jnp.where(v > -0.5, jnp.log1p(jnp.maximum(v, -0.5)), jnp.log(ratio * (count / mean_or_one)))
    deviance = jnp.where(near, deviance_near, count * log_both + size * log_ratio)
    positive = -0.5 * jnp.log1p(count / size) + stirling(total) - stirling(size) - deviance
    return jnp.where(some, jnp.where(possible, positive, LOG_ZERO), -size * jnp.log1p(mean / size))


def _in_groups(x: Array, size: Array) -> Array:
    """x − E[m | x] = x − r (ψ(x + r) − ψ(r)) = Σ_{j < x} j/(r + j), without cancellation at large sizes."""
    return size * (excess_over_log(x / size) + log_minus_digamma(x + size) - log_minus_digamma(size))


def _ratio(share: Array) -> Array:
    """The y = μ/r > 0 with 1 − log(1 + y)/y = s, for 0 ≤ s < 1.

    Newton's method on the concave s y − φ(y) from the right of its root: log(1 + y) ≤ y/√(1 + y) bounds the root by
    s (2 − s)/(1 − s)², exact to first order for small s.
    """

    def step(y: Array) -> Array:
        some = y > 0
        safe = jnp.where(some, y, 1)
        slope = safe / (1 + safe) - share
        return jnp.where(some, safe + (share * safe - excess_over_log(safe)) / jnp.where(slope > 0, slope, 1), 0)

    return solve(step, share * (2 - share) / (1 - share) ** 2, 12)


def _ratio_given_mean(level: Array, share: Array) -> Array:
    """The y = μ/r that is best for a mean that is held: x̄/μ is ``level``, and ``share`` the grouped part of it.

    The one root of φ(y)/y − s + (level − 1) y/(1 + y), negative before it, by bisection in log y.
    """

    def excess(log_y: Array) -> Array:
        y = jnp.exp(log_y)
        return excess_over_log(y) / y - share + (level - 1) * y / (1 + y)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        before = excess(middle) < 0
        return jnp.where(before, middle, low), jnp.where(before, high, middle)

    def step(log_y: Array) -> Array:
        value, slope = jax.jvp(excess, (log_y,), (jnp.ones_like(log_y),))
        inside = (log_y > ends[0]) & (log_y < ends[1]) & (slope > 0)
        return jnp.where(inside, log_y - value / jnp.where(slope > 0, slope, 1), log_y)

    ends = tuple(math.log(ratio) for ratio in _RATIOS)
    start = tuple(jnp.full_like(share, end) for end in ends)
    low, high = jax.lax.fori_loop(0, 30, halve, jax.lax.stop_gradient(start))
    return jnp.exp(jnp.clip(solve(step, (low + high) / 2, 3), *ends))
