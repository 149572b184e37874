"""The Gamma family: D independent positive variables per row, of any skewness."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.families import positive
from jaxem.families.base import divide, hold, observations
from jaxem.families.columns import IndependentColumns
from jaxem.model import Data, pytree
from jaxem.special import LOG_2PI, excess_over_log, gamma_shape, inverse_digamma, stirling

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class GammaParams:
    """shape: [K, D]. rate: [K, D], in units of 1/x; the mean is shape/rate."""

    shape: Float[Array, "K D"]
    rate: Float[Array, "K D"]


@pytree
class Gamma(IndependentColumns):
    """Independent Gamma variables, ``log p(x | k) = Σ_d a log b − log Γ(a) + (a − 1) log x_d − b x_d`` with a, b of k, d.

    floor: the smallest relative variance 1/a a component may have, relative to the variance of the data's logarithms; in
    float32 no less than 64 roundings. A component that reaches it is reported as degenerate.
    scale, spread: [D], set by `calibrate`: the data's mean, and the variance of their logarithms.
    """

    floor: float = 1e-6
    scale: Float[Array, " D"] | None = None
    spread: Float[Array, " D"] | None = None

    filler = 1.0
    num_terms = 2
    freezable = frozenset({"shape", "rate"})
    freezable_by_component = freezable

    def __post_init__(self):
        positive.check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.scale is not None

    def calibrate(self, data: Data, weights: Array | None) -> Gamma:
        _, spread = positive.center_and_spread(data, weights)
        return Gamma(self.floor, positive.mean_of(data, weights), spread)

    def validate(self, data: Data) -> None:
        positive.validate_positive(data, "Gamma")

    def features(self, data: Data) -> Float[Array, "N D"]:
        x = observations(data)
        return positive.standardized_logs(x, *self._constants(x.shape[-1], x.dtype))

    # With y = x/scale and t = y − 1 − α log y, where α is 1 for tight columns and 0 for the others,
    # a log y − b y = −b t + (a − α b) log y − b.

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array, Array]:
        scale, spread = self._constants(x.shape[-1], x.dtype)
        x = positive.inside(x)
        u = (x - scale) / scale
        # Relative to its size log y is exact where y is near 1, and where y is near 0.
        near = jnp.maximum(u, -0.5)
        log_y = jnp.where(u > -0.5, jnp.log1p(near), jnp.log(x) - jnp.log(scale))
        about_one = jnp.where(u > -0.5, excess_over_log(near), u - log_y)
        return jnp.where(positive.tight(spread), about_one, u), log_y

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return positive.support(x) - jnp.log(positive.inside(x))

    def natural_columns(self, params: GammaParams) -> tuple[Array, tuple[Array, Array]]:
        scale, spread = self._constants(params.shape.shape[1], params.shape.dtype)
        a, b = params.shape, params.rate * scale
        # a log b − log Γ(a) − b, with b = a where the component's mean is the data's.
        constant = -a * excess_over_log((b - a) / a) + 0.5 * jnp.log(a) - 0.5 * LOG_2PI - stirling(a)
        return constant, (-b, jnp.where(positive.tight(spread), a - b, a))

    def estimate(self, params: GammaParams | None, count, terms, used, frozen) -> GammaParams:
        scale, spread = self._constants(count.shape[1], count.dtype)
        narrow = positive.tight(spread)
        first, log_y = (divide(term, count, used) for term in terms)
        excess = first + jnp.where(narrow, log_y, 0)  # E y − 1
        # log E y − E log y, which the variance of log y is about twice of
        s = jnp.where(narrow, first - excess_over_log(excess), jnp.log1p(excess) - log_y)
        largest = self._largest_shape(spread)
        shape = gamma_shape(jnp.maximum(s, 0.5 / largest))
        held = frozen.get("rate")
        if params is not None and held is not None:
            given = inverse_digamma(jnp.log(params.rate * scale) + log_y)
            shape = hold(held, shape, given)
        shape = hold(frozen.get("shape"), jnp.minimum(shape, largest), None if params is None else params.shape)
        return GammaParams(shape, shape / (1 + excess) / scale)

    def degenerate(self, params: GammaParams) -> Bool[Array, " K"]:
        _, spread = self._constants(params.shape.shape[1], params.shape.dtype)
        return ~jnp.all(1.05 * params.shape < self._largest_shape(spread), axis=-1)

    def mean(self, params: GammaParams, data: Data) -> Float[Array, "K D"]:
        return params.shape / params.rate

    def variance(self, params: GammaParams) -> Float[Array, "K D"]:
        return params.shape / params.rate**2

    def sample(self, key: jax.Array, params: GammaParams, z: Array, data: Data) -> Array:
        shape, rate = params.shape[z], params.rate[z]
        # In logarithms: draws of a small shape leave the range of the floating-point type.
        draws = jnp.exp(jax.random.loggamma(key, shape, dtype=shape.dtype) - jnp.log(rate))
        return jnp.maximum(draws, jnp.finfo(draws.dtype).tiny)

    def to_free(self, params: GammaParams) -> GammaParams:
        return GammaParams(jnp.log(params.shape), jnp.log(params.rate))

    def from_free(self, free: GammaParams) -> GammaParams:
        return GammaParams(jnp.exp(free.shape), jnp.exp(free.rate))

    def _largest_shape(self, spread: Array) -> Array:
        return 1 / (positive.least(self.floor, spread.dtype) * spread)

    def _constants(self, d: int, dtype) -> tuple[Array, Array]:
        if self.scale is None or self.spread is None:
            return jnp.ones(d, dtype), jnp.ones(d, dtype)
        return self.scale, self.spread
