"""The Poisson family: D independent counts per row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlogy

from jaxem.families.base import divide, free_log, is_count, mean_where_missing, observations, weighted_mean
from jaxem.families.columns import IndependentColumns
from jaxem.model import Data, pytree
from jaxem.special import excess_over_log

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class PoissonParams:
    """rate: expected counts, [K, D]."""

    rate: Float[Array, "K D"]


@pytree
class Poisson(IndependentColumns):
    """Independent Poisson counts, ``log p(x | k) = Σ_d x_d log λ_kd − λ_kd − log x_d!``.

    center: [D], set by `calibrate`; log p is taken relative to a Poisson of that rate, because x log λ, λ and log x!
    are large numbers that cancel. A rate may be exactly 0 (a boundary estimate); its logarithm is taken at the
    smallest positive number, so that impossible counts stay impossible to the arithmetic's last digit, never NaN.
    """

    center: Float[Array, " D"] | None = None

    freezable = frozenset({"rate"})
    freezable_by_component = freezable
    domain = "Poisson counts are 0, 1, 2, …"

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> Poisson:
        rate = weighted_mean(observations(data), weights, data.mask)
        return Poisson(jnp.where(rate > 0, rate, 1))

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return is_count(x)

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Anscombe's square roots, whose variance does not depend on the rate."""
        return mean_where_missing(2 * jnp.sqrt(jnp.maximum(observations(data), 0) + 0.375), data.mask)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array]:
        return (x - self._center(x.shape[-1], x.dtype),)

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return log_poisson(x, self._center(x.shape[-1], x.dtype))

    def natural_columns(self, params: PoissonParams) -> tuple[Array, tuple[Array]]:
        rate = params.rate
        center = self._center(rate.shape[1], rate.dtype)
        # Near the centre all is written in the relative distance from it; far from it nothing cancels.
        delta = (rate - center) / center
        near = jnp.abs(delta) < 0.5
        small = jnp.where(near, delta, 0)
        far_log = jnp.log(jnp.maximum(rate, jnp.finfo(rate.dtype).tiny)) - jnp.log(center)
        log_ratio = jnp.where(near, jnp.log1p(small), far_log)
        excess = jnp.where(near, excess_over_log(small), delta - far_log)
        return -center * excess, (log_ratio,)

    def estimate(self, params: PoissonParams | None, count, terms, used, frozen) -> PoissonParams:
        center = self._center(count.shape[1], count.dtype)
        return PoissonParams(jnp.maximum(center + divide(terms[0], count, used), 0))

    def mean(self, params: PoissonParams, data: Data) -> Float[Array, "K D"]:
        return params.rate

    def variance(self, params: PoissonParams) -> Float[Array, "K D"]:
        return params.rate

    def sample(self, key: jax.Array, params: PoissonParams, z: Array, data: Data) -> Array:
        return jax.random.poisson(key, params.rate[z]).astype(params.rate.dtype)

    def to_free(self, params: PoissonParams) -> PoissonParams:
        return PoissonParams(free_log(params.rate))

    def from_free(self, free: PoissonParams) -> PoissonParams:
        return PoissonParams(jnp.exp(free.rate))

    def _center(self, d: int, dtype) -> Array:
        return jnp.ones(d, dtype) if self.center is None else self.center


def log_poisson(x: Array, rate: Array) -> Array:
    """log Poisson(x; rate) without cancellation at large counts (Loader 2000, the saddle-point form).

    −½ log 2πx − stirling(x) − x·φ(rate/x), where φ(u) = u − 1 − log u; under 16 the direct form is exact enough.
    """
    large = x > 16
    safe = jnp.where(large, x, 16)
    saddle = saddle_point(safe, excess_over_log((rate - safe) / safe))
    modest = jnp.where(large, 0, x)
    return jnp.where(large, saddle, xlogy(modest, rate) - rate - gammaln(modest + 1))


def saddle_point(x: Array, excess: Array) -> Array:
    """log Poisson(x; rate) for x ≥ 16, from excess = φ(rate/x)."""
    stirling = (1 / 12 - (1 / 360 - 1 / (1260 * x**2)) / x**2) / x
    return -0.5 * jnp.log(2 * math.pi * x) - stirling - x * excess
