"""Classification EM: q puts everything on the most probable z."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.latents.axes import times_weights
from jaxem.latents.wrapper import LatentWrapper
from jaxem.model import Data, Inference, Latent, pytree

if TYPE_CHECKING:
    from jaxtyping import Array


@pytree
class Hard(LatentWrapper):
    """The latent with its posterior replaced by its mode: hard clusters, or the Viterbi path of a chain.

    EM then climbs the classification likelihood ``max_z log p(x, z | θ)``, which is what it reports;
    of a chain this is segmental, or Viterbi, training. It is not the log-likelihood: it is a bound from below that
    touches only where the posterior is certain, and its maximum is biased towards well separated components.
    Give it where a latent stands: ``LatentModel(Hard(Categorical(3)), Gaussian())`` (Celeux & Govaert 1992; Juang &
    Rabiner 1990).
    """

    latent: Latent

    objective_name = "classification log-likelihood"

    def infer(self, params: Any, potentials: Array, data: Data, weights: Array | None) -> Inference:
        path = self.latent.mode(params, potentials, data)
        chosen = jax.nn.one_hot(path, self.num_components, dtype=potentials.dtype)
        best = jnp.sum(jnp.where(chosen > 0, potentials, 0), axis=-1)
        padded = self.sequential and data.starts is None
        joint = self.latent.log_prob(params, path, data) + (jnp.sum(best, axis=1) if padded else best)
        chosen = times_weights(chosen, weights)
        return Inference(chosen, self.latent.accumulate(chosen, data, params), joint)
