"""The bound that EM climbs, for any q, and how far it is below the log-likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.scipy.special import entr

from jaxem.model import UnsupportedError
from jaxem.models.latent_model import LatentModel

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def elbo(
    model: LatentModel, params: Any, data: Any, q: Float[Array, "N K"], weights: Float[Array, " N"] | None = None
) -> Float[Array, ""]:
    """The evidence lower bound E_q[log p(x, z | params)] + H[q] for any q over an independent discrete latent.

    It is the log-likelihood when q is the posterior, and below it by KL(q ‖ p(z | x)) otherwise. q: [N, K], rows that
    sum to 1. ``model`` is calibrated to the data (as in a `Result`), or the sums are taken about 0. Raises
    UnsupportedError for a latent whose values depend on each other, for which [N, K] does not describe a q.
    """
    if not model.latent.independent:
        name = type(model.latent).__name__
        raise UnsupportedError(
            f"q of shape [N, K] does not describe a distribution over the dependent values of {name}"
        )
    expected = model.expected_log_joint(params, data, q, weights)
    entropy = jnp.sum(entr(q), axis=-1)
    return expected + jnp.sum(entropy if weights is None else entropy * weights)


def kl_gap(
    model: LatentModel, params: Any, data: Any, q: Float[Array, "N K"], weights: Float[Array, " N"] | None = None
) -> Float[Array, ""]:
    """How far the bound of q is below the log-likelihood, log p(x | params) − `elbo` = KL(q ‖ p(z | x)) ≥ 0.

    It is 0 where q is the posterior, to the rounding of the log-likelihood. Arguments and errors are those of `elbo`.
    """
    bound = elbo(model, params, data, q, weights)
    return model.e_step(params, model.prepare(data), weights).log_likelihood - bound
