"""Monte-Carlo E-steps: q is replaced by draws from it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.latents.axes import times_weights
from jaxem.latents.wrapper import LatentWrapper
from jaxem.model import Data, Inference, Latent, pytree, static
from jaxem.validate import check_key

if TYPE_CHECKING:
    from jaxtyping import Array


@pytree
class Sampled(LatentWrapper):
    """The latent with its posterior replaced by ``num_samples`` draws of z from it, whole paths of a chain.

    The statistics are the average of those of the draws; the log-likelihood reported is exact. With the same key the
    draws are the same; `jaxem.MonteCarloEM`, `jaxem.SAEM` and `jaxem.StochasticEM` change it (`Model.redraw`) before
    every E-step. One draw and plain EM steps are the stochastic EM of Celeux & Diebolt 1985; see also Wei & Tanner 1990.
    Where the E-step goes block by block, all blocks draw with the same key.
    key: of the draws. num_samples: at least 1. Raises ValueError for another number, or without a key.
    """

    latent: Latent
    key: Array
    num_samples: int = static(default=1)

    monotone = False  # type: ignore[assignment]

    def __post_init__(self):
        LatentWrapper.__post_init__(self)
        check_key(self.key, "Sampled")
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ValueError(f"num_samples must be a whole number, at least 1; got {self.num_samples!r}")

    def redraw(self, key: Array) -> Sampled:
        own, inner = jax.random.split(key)
        return dataclasses.replace(self, latent=self.latent.redraw(inner), key=own)

    def infer(self, params: Any, potentials: Array, data: Data, weights: Array | None) -> Inference:
        exact = self.latent.infer(params, potentials, data, None)
        keys = jax.random.split(self.key, self.num_samples)

        def one(key: Array) -> tuple[Array, Any]:
            z = self._draw(key, params, potentials, exact.marginals, data)
            chosen = jax.nn.one_hot(z, self.num_components, dtype=potentials.dtype)
            chosen = times_weights(chosen, weights)
            # Of independent z the statistics are linear in the shares: those of the average are enough.
            return chosen, () if self.independent else self.latent.accumulate(chosen, data, params)

        first = one(keys[0])

        def add(total: Any, key: Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(key)), None

        total = first if self.num_samples == 1 else jax.lax.scan(add, first, keys[1:])[0]
        shares, stats = jax.tree.map(lambda a: a / self.num_samples, total)
        if self.independent:
            stats = self.latent.accumulate(shares, data, params)
        return Inference(shares, stats, exact.log_normalizer)

    def _draw(self, key: Array, params: Any, potentials: Array, marginals: Array, data: Data) -> Array:
        """A draw of z; −1 for an example that no z allows."""
        if not self.independent:
            return self.latent.draw(key, params, potentials, data)
        z = jax.random.categorical(key, jnp.log(marginals), axis=-1)
        return jnp.where(jnp.sum(marginals, axis=-1) > 0, z, -1)
