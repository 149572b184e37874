"""The inverse Gaussian family: D independent positive variables per row, first passage times of a drift."""

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
class InverseGaussianParams:
    """mean, shape: μ and λ, [K, D], both in the units of x; the variance is μ³/λ."""

    mean: Float[Array, "K D"]
    shape: Float[Array, "K D"]


@pytree
class InverseGaussian(IndependentColumns):
    """Independent inverse Gaussian variables, ``log p(x | k) = Σ_d ½ log λ/(2π x_d³) − λ (x_d − μ)²/(2 μ² x_d)``.

    floor: the smallest 1/λ a component may have, relative to the variance of the data's logarithms over their mean; in
    float32 no less than 64 roundings. A component that reaches it is reported as degenerate.
    scale, spread: [D], set by `calibrate`: the data's mean, and the variance of their logarithms.
    """

    floor: float = 1e-6
    scale: Float[Array, " D"] | None = None
    spread: Float[Array, " D"] | None = None

    filler = 1.0
    num_terms = 2
    freezable = frozenset({"mean", "shape"})
    freezable_by_component = freezable

    def __post_init__(self):
        positive.check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.scale is not None

    def calibrate(self, data: Data, weights: Array | None) -> InverseGaussian:
        _, spread = positive.center_and_spread(data, weights)
        return InverseGaussian(self.floor, positive.mean_of(data, weights), spread)

    def validate(self, data: Data) -> None:
        positive.validate_positive(data, "InverseGaussian")

    def features(self, data: Data) -> Float[Array, "N D"]:
        x = observations(data)
        return positive.standardized_logs(x, *self._constants(x.shape[-1], x.dtype))

    # With y = x/scale, u = y − 1 and t = 1/y − 1 + α u, where α is 1 for tight columns and 0 for the others,
    # (y − m)²/(m² y) = t + u (1/m² − α) + (1 − m)²/m².

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array, Array]:
        scale, spread = self._constants(x.shape[-1], x.dtype)
        x = positive.inside(x)
        u, inverse = (x - scale) / scale, scale / x
        return jnp.where(positive.tight(spread), u**2 * inverse, -u * inverse), u

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        scale, _ = self._constants(x.shape[-1], x.dtype)
        log_x = jnp.log(positive.inside(x))
        # λ is in the units of x, and so is one of the three powers of it.
        return positive.support(x) - log_x - 0.5 * (log_x - jnp.log(scale)) - 0.5 * LOG_2PI

    def natural_columns(self, params: InverseGaussianParams) -> tuple[Array, tuple[Array, Array]]:
        scale, spread = self._constants(params.mean.shape[1], params.mean.dtype)
        shape = params.shape / scale
        constant, linear = _distance(params.mean, scale, spread)
        return 0.5 * jnp.log(shape) - 0.5 * shape * constant, (-0.5 * shape, -0.5 * shape * linear)

    def estimate(self, params: InverseGaussianParams | None, count, terms, used, frozen) -> InverseGaussianParams:
        scale, spread = self._constants(count.shape[1], count.dtype)
        first, u = (divide(term, count, used) for term in terms)
        mean = scale * (1 + u)
        about = hold(frozen.get("mean"), mean, None if params is None else params.mean)
        constant, linear = _distance(about, scale, spread)
        inverse_shape = jnp.maximum(first + linear * u + constant, self._floor(spread))
        return InverseGaussianParams(mean, scale / inverse_shape)

    def degenerate(self, params: InverseGaussianParams) -> Bool[Array, " K"]:
        scale, spread = self._constants(params.mean.shape[1], params.mean.dtype)
        return ~jnp.all(scale / params.shape > 1.05 * self._floor(spread), axis=-1)

    def mean(self, params: InverseGaussianParams, data: Data) -> Float[Array, "K D"]:
        return params.mean

    def variance(self, params: InverseGaussianParams) -> Float[Array, "K D"]:
        return params.mean**2 * (params.mean / params.shape)

    def sample(self, key: jax.Array, params: InverseGaussianParams, z: Array, data: Data) -> Array:
        """Michael, Schucany & Haas (1976): a root of a quadratic in a squared normal, or the other one."""
        mean, shape = params.mean[z], params.shape[z]
        normal_key, uniform_key = jax.random.split(key)
        w = mean / shape * jax.random.normal(normal_key, mean.shape, mean.dtype) ** 2 / 2
        ratio = 1 / (1 + w + jnp.sqrt(w * (w + 2)))  # of the smaller root to the mean; the roots' product is 1
        smaller = jax.random.uniform(uniform_key, mean.shape, mean.dtype) * (1 + ratio) < 1
        return mean * jnp.where(smaller, ratio, 1 / ratio)

    def to_free(self, params: InverseGaussianParams) -> InverseGaussianParams:
        return InverseGaussianParams(jnp.log(params.mean), jnp.log(params.shape))

    def from_free(self, free: InverseGaussianParams) -> InverseGaussianParams:
        return InverseGaussianParams(jnp.exp(free.mean), jnp.exp(free.shape))

    def _floor(self, spread: Array) -> Array:
        return positive.least(self.floor, spread.dtype) * spread

    def _constants(self, d: int, dtype) -> tuple[Array, Array]:
        if self.scale is None or self.spread is None:
            return jnp.ones(d, dtype), jnp.ones(d, dtype)
        return self.scale, self.spread


def _distance(mean: Array, scale: Array, spread: Array) -> tuple[Array, Array]:
    """(1 − m)²/m² and 1/m² − α, for the mean m in units of the scale."""
    m, away = mean / scale, (scale - mean) / mean
    return away**2, jnp.where(positive.tight(spread), away * (1 + 1 / m), 1 / m**2)
