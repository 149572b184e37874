"""The geometric family: D independent numbers of failures before the first success per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.families.base import (
    divide,
    free_log,
    is_count,
    log_of_complement,
    log_or_zero,
    mean_where_missing,
    observations,
)
from jaxem.families.columns import IndependentColumns
from jaxem.model import Data, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class GeometricParams:
    """prob: of success at each trial, [K, D]; 1 is a proper value (x is always 0)."""

    prob: Float[Array, "K D"]


@pytree
class Geometric(IndependentColumns):
    """Failures before the first success, x = 0, 1, 2, …: ``p(x | k) = Π_d p_kd (1 − p_kd)^x_d``.

    Data that count the trials, 1, 2, 3, …, are one more than that. Raises ValueError for x that is no count.
    """

    freezable = frozenset({"prob"})
    freezable_by_component = freezable
    domain = "geometric observations are numbers of failures, 0, 1, 2, …"

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return is_count(x)

    def features(self, data: Data) -> Float[Array, "N D"]:
        """arsinh √x, whose variance hardly depends on the probability."""
        return mean_where_missing(2 * jnp.arcsinh(jnp.sqrt(jnp.maximum(observations(data), 0))), data.mask)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array]:
        return (x,)

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return jnp.zeros_like(x)

    def natural_columns(self, params: GeometricParams) -> tuple[Array, tuple[Array]]:
        return log_or_zero(params.prob), (log_of_complement(params.prob),)

    def estimate(self, params: GeometricParams | None, count, terms, used, frozen) -> GeometricParams:
        return GeometricParams(jnp.where(used, divide(count, count + terms[0], used), 0.5))

    def mean(self, params: GeometricParams, data: Data) -> Float[Array, "K D"]:
        return (1 - params.prob) / params.prob

    def variance(self, params: GeometricParams) -> Float[Array, "K D"]:
        return (1 - params.prob) / params.prob**2

    def sample(self, key: jax.Array, params: GeometricParams, z: Array, data: Data) -> Array:
        prob = params.prob[z]
        # Of (0, 1], so that the logarithm is finite.
        uniform = 1 - jax.random.uniform(key, prob.shape, prob.dtype)
        return jnp.floor(jnp.log(uniform) / jnp.log1p(-prob))

    def to_free(self, params: GeometricParams) -> GeometricParams:
        return GeometricParams(free_log(params.prob) - free_log(1 - params.prob))

    def from_free(self, free: GeometricParams) -> GeometricParams:
        return GeometricParams(jax.nn.sigmoid(free.prob))
