"""The exponential family of waiting times: D independent exponential variables per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.families.base import divide, observations, refuse_outside
from jaxem.families.columns import IndependentColumns
from jaxem.families.positive import check_floor, mean_of
from jaxem.model import Data, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class ExponentialParams:
    """rate: [K, D], in units of 1/x."""

    rate: Float[Array, "K D"]


@pytree
class Exponential(IndependentColumns):
    """Independent exponential variables, ``log p(x | k) = Σ_d log λ_kd − λ_kd x_d`` for x ≥ 0.

    floor: the smallest mean 1/λ a component may have, relative to the mean of the data; a component that holds nothing
    but zeros reaches it and is reported as degenerate.
    scale: [D], set by `calibrate`; statistics are those of x/scale.
    """

    floor: float = 1e-6
    scale: Float[Array, " D"] | None = None

    freezable = frozenset({"rate"})
    freezable_by_component = freezable

    def __post_init__(self):
        check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.scale is not None

    def calibrate(self, data: Data, weights: Array | None) -> Exponential:
        return Exponential(self.floor, mean_of(data, weights))

    def validate(self, data: Data) -> None:
        refuse_outside(lambda x: x >= 0, data, "Exponential values are at least 0")

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Cube roots, which are nearly normal (Wilson & Hilferty 1931)."""
        x = observations(data)
        return jnp.cbrt(x / self._scale(x.shape[-1], x.dtype))

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array]:
        return (jnp.where(x < 0, 0, x) / self._scale(x.shape[-1], x.dtype),)

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return jnp.where(x < 0, -jnp.inf, jnp.zeros_like(x)) - jnp.log(self._scale(x.shape[-1], x.dtype))

    def natural_columns(self, params: ExponentialParams) -> tuple[Array, tuple[Array]]:
        rate = params.rate * self._scale(params.rate.shape[1], params.rate.dtype)
        return jnp.log(rate), (-rate,)

    def estimate(self, params: ExponentialParams | None, count, terms, used, frozen) -> ExponentialParams:
        mean = jnp.maximum(divide(terms[0], count, used), self.floor)
        return ExponentialParams(1 / mean / self._scale(count.shape[1], count.dtype))

    def degenerate(self, params: ExponentialParams) -> Bool[Array, " K"]:
        mean = 1 / (params.rate * self._scale(params.rate.shape[1], params.rate.dtype))
        return ~jnp.all(mean > 1.05 * self.floor, axis=-1)

    def mean(self, params: ExponentialParams, data: Data) -> Float[Array, "K D"]:
        return 1 / params.rate

    def variance(self, params: ExponentialParams) -> Float[Array, "K D"]:
        return 1 / params.rate**2

    def sample(self, key: jax.Array, params: ExponentialParams, z: Array, data: Data) -> Array:
        rate = params.rate[z]
        return jax.random.exponential(key, rate.shape, rate.dtype) / rate

    def to_free(self, params: ExponentialParams) -> ExponentialParams:
        return ExponentialParams(jnp.log(params.rate))

    def from_free(self, free: ExponentialParams) -> ExponentialParams:
        return ExponentialParams(jnp.exp(free.rate))

    def _scale(self, d: int, dtype) -> Array:
        return jnp.ones(d, dtype) if self.scale is None else self.scale
