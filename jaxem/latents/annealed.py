"""Tempered posteriors: q is flattened, so that EM forgets a bad start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxem.latents.wrapper import LatentWrapper
from jaxem.model import Data, Inference, Latent, pytree

if TYPE_CHECKING:
    from jaxtyping import Array


@pytree
class Annealed(LatentWrapper):
    """The latent with its posterior at a temperature T: ``q(z) ∝ p(x, z | θ)^(1/T)``.

    EM then climbs the free energy ``T log Σ_z p(x, z | θ)^(1/T)``, which is what it reports: the
    maximum over q of E_q[log p(x, z | θ)] + T H[q]. At T = 1 it is the log-likelihood, and the smaller T, the nearer it
    is to that of `Hard` (of chains down to some hundredths, below which messages underflow). `jaxem.Annealing` lowers T
    from step to step (Ueda & Nakano 1998, Neural Networks 11).
    temperature: T, positive; traced. Raises ValueError for another.
    """

    latent: Latent
    temperature: float | Array = 1.0

    objective_name = "free energy"

    def __post_init__(self):
        LatentWrapper.__post_init__(self)
        if isinstance(self.temperature, (int, float)) and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number; got {self.temperature}")

    def infer(self, params: Any, potentials: Array, data: Data, weights: Array | None) -> Inference:
        temperature = jnp.asarray(self.temperature, potentials.dtype)
        inferred = self.latent.infer_tempered(params, potentials, data, weights, 1 / temperature)
        return Inference(inferred.marginals, inferred.stats, temperature * inferred.log_normalizer)
