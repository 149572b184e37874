"""The log-normal family: D independent positive variables per row whose logarithms are normal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.families import positive
from jaxem.families.base import divide, hold, observations
from jaxem.families.columns import IndependentColumns
from jaxem.model import Data, pytree
from jaxem.special import LOG_2PI

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class LogNormalParams:
    """mean, variance: of log x, [K, D]."""

    mean: Float[Array, "K D"]
    variance: Float[Array, "K D"]


@pytree
class LogNormal(IndependentColumns):
    """Independent log-normal variables, ``log p(x | k) = Σ_d log N(log x_d; m_kd, v_kd) − log x_d``.

    floor: the smallest variance of log x a component may have, relative to that of the data; in float32 no less than 64
    roundings. A component that reaches it is reported as degenerate.
    scale, spread: [D], set by `calibrate`: the data's geometric mean, and the variance of their logarithms; statistics
    are those of log(x/scale)/√spread, because raw second moments cancel.
    """

    floor: float = 1e-6
    scale: Float[Array, " D"] | None = None
    spread: Float[Array, " D"] | None = None

    filler = 1.0
    num_terms = 2
    freezable = frozenset({"mean", "variance"})
    freezable_by_component = freezable

    def __post_init__(self):
        positive.check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.scale is not None

    def calibrate(self, data: Data, weights: Array | None) -> LogNormal:
        center, spread = positive.center_and_spread(data, weights)
        return LogNormal(self.floor, jnp.exp(center), spread)

    def validate(self, data: Data) -> None:
        positive.validate_positive(data, "LogNormal")

    def features(self, data: Data) -> Float[Array, "N D"]:
        return self._standardize(observations(data))

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array, Array]:
        y = self._standardize(x)
        return y, y * y

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return positive.support(x) - jnp.log(positive.inside(x))

    def natural_columns(self, params: LogNormalParams) -> tuple[Array, tuple[Array, Array]]:
        center, spread = self._constants(params.mean.shape[1], params.mean.dtype)
        mean, variance = (params.mean - center) / jnp.sqrt(spread), params.variance / spread
        constant = -0.5 * (mean**2 / variance + jnp.log(params.variance) + LOG_2PI)
        return constant, (mean / variance, -0.5 / variance)

    def estimate(self, params: LogNormalParams | None, count, terms, used, frozen) -> LogNormalParams:
        center, spread = self._constants(count.shape[1], count.dtype)
        average, square = (divide(term, count, used) for term in terms)
        old = None if params is None else (params.mean - center) / jnp.sqrt(spread)
        mean = hold(frozen.get("mean"), average, old)
        variance = jnp.maximum(square - average**2 + (average - mean) ** 2, self._floor(count.dtype))
        return LogNormalParams(center + jnp.sqrt(spread) * mean, spread * variance)

    def degenerate(self, params: LogNormalParams) -> Bool[Array, " K"]:
        _, spread = self._constants(params.mean.shape[1], params.mean.dtype)
        return ~jnp.all(params.variance > 1.05 * self._floor(spread.dtype) * spread, axis=-1)

    def mean(self, params: LogNormalParams, data: Data) -> Float[Array, "K D"]:
        return jnp.exp(params.mean + params.variance / 2)

    def variance(self, params: LogNormalParams) -> Float[Array, "K D"]:
        return jnp.expm1(params.variance) * jnp.exp(2 * params.mean + params.variance)

    def sample(self, key: jax.Array, params: LogNormalParams, z: Array, data: Data) -> Array:
        mean = params.mean[z]
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return jnp.exp(mean + jnp.sqrt(params.variance[z]) * noise)

    def to_free(self, params: LogNormalParams) -> LogNormalParams:
        return LogNormalParams(params.mean, jnp.log(params.variance))

    def from_free(self, free: LogNormalParams) -> LogNormalParams:
        return LogNormalParams(free.mean, jnp.exp(free.variance))

    def _standardize(self, x: Array) -> Array:
        x = positive.inside(x)
        if self.scale is None or self.spread is None:
            return jnp.log(x)
        # Near the centre the logarithm of the ratio is exact; the difference of logarithms cannot leave the range.
        u = (x - self.scale) / self.scale
        near = jnp.abs(u) < 0.5
        far = jnp.log(x) - jnp.log(self.scale)
        return jnp.where(near, jnp.log1p(jnp.where(near, u, 0)), far) / jnp.sqrt(self.spread)

    def _floor(self, dtype) -> Array:
        return positive.least(self.floor, dtype)

    def _constants(self, d: int, dtype) -> tuple[Array, Array]:
        """The centre and the variance of the data's logarithms."""
        if self.scale is None or self.spread is None:
            return jnp.zeros(d, dtype), jnp.ones(d, dtype)
        return jnp.log(self.scale), self.spread
