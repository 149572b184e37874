"""An independent categorical latent: the component of each example of a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.linalg import rows_last
from jaxem.model import Data, Inference, Latent, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@pytree
class CategoricalParams:
    """weights: the mixing weights p(z = k), [K], which sum to 1. A weight of exactly 0 stays 0."""

    weights: Float[Array, " K"]


@pytree
class Categorical(Latent):
    """``p(z_n = k) = π_k``, independent over examples.

    num_components: K, at least 1.
    """

    num_components: int = static()

    freezable = frozenset({"weights"})
    freezable_by_component = freezable
    sweepable = True
    independent = True

    @property
    def min_examples(self) -> int:  # type: ignore[override]
        return self.num_components

    def with_components(self, num_components: int) -> Categorical:
        return Categorical(num_components)

    def __post_init__(self):
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ValueError(f"num_components must be a whole number, at least 1; got {self.num_components!r}")

    def infer(
        self, params: CategoricalParams, potentials: Float[Array, "N K"], data: Data, weights: Array | None
    ) -> Inference:
        """r_nk ∝ π_k p(x_n | k). An example that no component allows gets log-normalizer −inf and no responsibility."""
        marginals, evidence = posterior_and_evidence(potentials, log_or_infinity(params.weights)[None], weights)
        return Inference(marginals, self.accumulate(marginals, data), evidence)

    def infer_tempered(
        self, params: CategoricalParams, potentials: Float[Array, "N K"], data: Data, weights, inverse_temperature
    ) -> Inference:
        log_prior = inverse_temperature * jnp.log(params.weights)[None]
        marginals, evidence = posterior_and_evidence(inverse_temperature * potentials, log_prior, weights)
        return Inference(marginals, self.accumulate(marginals, data), evidence)

    def accumulate(self, marginals: Float[Array, "N K"], data: Data, params: Any = None) -> Float[Array, " K"]:
        # A reduction, not a product with ones: XLA sums it pairwise, where a product would lose counts.
        return jnp.sum(marginals, axis=tuple(range(marginals.ndim - 1)))

    def maximize(self, params: CategoricalParams | None, stats: Float[Array, " K"], frozen) -> CategoricalParams:
        total = jnp.sum(stats)
        weights = stats / jnp.where(total > 0, total, 1)
        mask = frozen.get("weights")
        if mask is None or mask is False or params is None:
            return CategoricalParams(weights)
        held = jnp.broadcast_to(jnp.asarray(mask), weights.shape)
        # The free components share what the held ones leave, in proportion to their counts.
        free_count = jnp.sum(jnp.where(held, 0, stats))
        left = 1 - jnp.sum(jnp.where(held, params.weights, 0))
        shared = left * stats / jnp.where(free_count > 0, free_count, 1)
        return CategoricalParams(jnp.where(held | (free_count <= 0), params.weights, shared))

    def q(self, params: CategoricalParams, stats: Float[Array, " K"]) -> Float[Array, ""]:
        return expected_log(stats, params.weights)

    def mode(self, params: CategoricalParams, potentials: Float[Array, "N K"], data: Data) -> Int[Array, " N"]:
        return jnp.argmax(potentials + jnp.log(params.weights), axis=-1)

    def log_prob(self, params: CategoricalParams, z: Int[Array, " N"], data: Data) -> Float[Array, " N"]:
        return jnp.log(params.weights)[z]

    def sample(self, key: jax.Array, params: CategoricalParams, shape: tuple[int, ...], data: Data) -> Int[Array, " N"]:
        return jax.random.categorical(key, jnp.log(params.weights), shape=shape)

    def pseudo_statistics(self) -> Float[Array, " K"]:
        return jnp.ones(self.num_components)

    def take_components(self, params: CategoricalParams, components) -> CategoricalParams:
        return CategoricalParams(params.weights[components])

    def empty(self, params: CategoricalParams, weight: Array) -> Bool[Array, " K"]:
        return params.weights * weight < 0.5

    def to_free(self, params: CategoricalParams) -> CategoricalParams:
        """log π_k − log π_K for k < K; of a weight of 0 the logarithm of the smallest number."""
        logs = jnp.log(jnp.maximum(params.weights, jnp.finfo(params.weights.dtype).tiny))
        return CategoricalParams(logs[..., :-1] - logs[..., -1:])

    def from_free(self, free: CategoricalParams) -> CategoricalParams:
        last = jnp.zeros((*free.weights.shape[:-1], 1), free.weights.dtype)
        return CategoricalParams(jax.nn.softmax(jnp.concatenate([free.weights, last], axis=-1), axis=-1))


def posterior_and_evidence(
    potentials: Float[Array, "N K"], log_prior: Float[Array, "#N K"], weights: Float[Array, " N"] | None
) -> tuple[Float[Array, "N K"], Float[Array, " N"]]:
    """w_n p(z_n = k | x_n) and log p(x_n) of independent examples, given log p(z_n = k)."""
    if rows_last(potentials):
        joint, axis = potentials.T + log_prior.T, 0
    else:
        joint, axis = potentials + log_prior, -1
    peak = jnp.max(joint, axis=axis, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    unnormalized = jnp.exp(joint - peak)
    total = jnp.sum(unnormalized, axis=axis, keepdims=True)
    # A NaN total is kept: data that are not numbers must be seen, not turned into "impossible".
    share = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    if weights is not None:
        share = share * jnp.expand_dims(weights, axis)
    log_total = jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)))
    marginals = unnormalized * share
    marginals = marginals.T if rows_last(potentials) else marginals
    return marginals, jnp.squeeze(peak + log_total, axis)


def log_or_infinity(probabilities: Array) -> Array:
    """log p, −∞ where p is 0 and without a derivative there."""
    possible = probabilities > 0
    return jnp.where(possible, jnp.log(jnp.where(possible, probabilities, 1)), -jnp.inf)


def expected_log(counts: Array, probabilities: Array) -> Float[Array, ""]:
    """Σ n log p; what has no count has no part in it, nor in its gradient, whatever its probability."""
    counted = counts > 0
    return jnp.sum(jnp.where(counted, counts * jnp.log(jnp.where(counted, probabilities, 1)), 0))
