"""The Bernoulli family: D independent yes-or-no answers per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.families.base import (
    divide,
    free_log,
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
class BernoulliParams:
    """prob: p(x = 1), [K, D]; exactly 0 and 1 are proper values."""

    prob: Float[Array, "K D"]


@pytree
class Bernoulli(IndependentColumns):
    """Independent answers 0 or 1, ``log p(x | k) = Σ_d x_d log p_kd + (1 − x_d) log(1 − p_kd)``.

    A mixture of these is the latent class model of binary items (Lazarsfeld & Henry 1968). A probability of exactly 0
    or 1 stays it, and gives an answer that contradicts it log p = −∞. Raises ValueError for x other than 0 and 1.
    """

    freezable = frozenset({"prob"})
    freezable_by_component = freezable
    num_terms = 2
    domain = "Bernoulli observations are 0 or 1"

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return (x == 0) | (x == 1)

    def features(self, data: Data) -> Float[Array, "N D"]:
        return mean_where_missing(observations(data), data.mask)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array, Array]:
        return x, 1 - x

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return jnp.zeros_like(x)

    def natural_columns(self, params: BernoulliParams) -> tuple[Array, tuple[Array, Array]]:
        prob = params.prob
        return jnp.zeros_like(prob), (log_or_zero(prob), log_of_complement(prob))

    def estimate(self, params: BernoulliParams | None, count, terms, used, frozen) -> BernoulliParams:
        ones, zeros = terms
        return BernoulliParams(jnp.where(used, divide(ones, ones + zeros, used), 0.5))

    def mean(self, params: BernoulliParams, data: Data) -> Float[Array, "K D"]:
        return params.prob

    def variance(self, params: BernoulliParams) -> Float[Array, "K D"]:
        return params.prob * (1 - params.prob)

    def sample(self, key: jax.Array, params: BernoulliParams, z: Array, data: Data) -> Array:
        return jax.random.bernoulli(key, params.prob[z]).astype(params.prob.dtype)

    def to_free(self, params: BernoulliParams) -> BernoulliParams:
        return BernoulliParams(free_log(params.prob) - free_log(1 - params.prob))

    def from_free(self, free: BernoulliParams) -> BernoulliParams:
        return BernoulliParams(jax.nn.sigmoid(free.prob))
