"""Classification EM: q puts everything on the most probable z."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.model import Data, Inference, Latent, pytree

if TYPE_CHECKING:
    from jaxtyping import Array


@pytree
class Hard(Latent):
    """The latent with its posterior replaced by its mode: hard clusters, or the Viterbi path of a chain.

    EM then climbs the classification likelihood ``max_z log p(x, z | θ)``, which is what it reports (as log-likelihood);
    of a chain this is segmental, or Viterbi, training. It is not the log-likelihood: it is a bound from below that
    touches only where the posterior is certain, and its maximum is biased towards well separated components.
    Give it where a latent stands: ``LatentModel(Hard(Categorical(3)), Gaussian())`` (Celeux & Govaert 1992; Juang &
    Rabiner 1990).
    """

    latent: Latent

    def __post_init__(self):
        if not isinstance(self.latent, Latent):
            raise ValueError(f"Hard holds a latent, such as jaxem.latents.Categorical(3); got {self.latent!r}")

    @property
    def num_components(self) -> int:  # type: ignore[override]
        return self.latent.num_components

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.reads

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable_by_component

    @property
    def min_examples(self) -> int:  # type: ignore[override]
        return self.latent.min_examples

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.latent.sequential

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return self.latent.generalized

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.latent.sweepable

    def calibrate(self, data: Data, weights: Array | None) -> Hard:
        return Hard(self.latent.calibrate(data, weights))

    def with_components(self, num_components: int) -> Hard:
        return Hard(self.latent.with_components(num_components))

    def infer(self, params: Any, potentials: Array, data: Data, weights: Array | None) -> Inference:
        path = self.latent.mode(params, potentials, data)
        chosen = jax.nn.one_hot(path, self.num_components, dtype=potentials.dtype)
        best = jnp.sum(jnp.where(chosen > 0, potentials, 0), axis=-1)
        padded = self.sequential and data.starts is None
        joint = self.latent.log_prob(params, path, data) + (jnp.sum(best, axis=1) if padded else best)
        if weights is not None:
            chosen = chosen * weights.reshape(weights.shape + (1,) * (chosen.ndim - weights.ndim))
        return Inference(chosen, self.latent.accumulate(chosen, data, params), joint)

    def accumulate(self, marginals: Array, data: Data, params: Any = None) -> Any:
        return self.latent.accumulate(marginals, data, params)

    def maximize(self, params: Any, stats: Any, frozen: Any) -> Any:
        return self.latent.maximize(params, stats, frozen)

    def q(self, params: Any, stats: Any) -> Array:
        return self.latent.q(params, stats)

    def mode(self, params: Any, potentials: Array, data: Data) -> Array:
        return self.latent.mode(params, potentials, data)

    def log_prob(self, params: Any, z: Array, data: Data) -> Array:
        return self.latent.log_prob(params, z, data)

    def sample(self, key: Array, params: Any, shape: tuple[int, ...], data: Data) -> Array:
        return self.latent.sample(key, params, shape, data)

    def pseudo_statistics(self) -> Any:
        return self.latent.pseudo_statistics()

    def take_components(self, params: Any, components: Any) -> Any:
        return self.latent.take_components(params, components)

    def empty(self, params: Any, weight: Array) -> Array:
        return self.latent.empty(params, weight)

    def to_free(self, params: Any) -> Any:
        return self.latent.to_free(params)

    def from_free(self, free: Any) -> Any:
        return self.latent.from_free(free)
