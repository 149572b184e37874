"""What follows from a fit: criteria that need the posterior, and the bound for any q."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.scipy.special import entr

from jaxem.model import UnsupportedError
from jaxem.models.latent_model import LatentModel
from jaxem.result import Result

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def icl(result: Result, data: Any, weights: Float[Array, " N"] | None = None) -> float:
    """The integrated completed likelihood criterion, BIC + 2 Σ_n H[p(z_n | x_n)]; smaller is better.

    Components that overlap are punished by the entropy of the assignment (Biernacki, Celeux & Govaert 2000, with soft
    assignments); of a sequence it is the entropy of the whole path.
    """
    if result.model.sequential:
        # The values of z depend on each other; at the posterior the bound is the log-likelihood: H[q] = log p − E_q[…].
        model, params = result.model, result.params
        given = None if weights is None else jnp.asarray(weights)
        expected = model.e_step(params, model.prepare(data), given)
        return result.bic + 2 * float(expected.log_likelihood - model.q(params, expected.stats))
    entropy = jnp.sum(entr(result.model.posterior(result.params, data)), axis=-1)
    total = jnp.sum(entropy if weights is None else entropy * jnp.asarray(weights))
    return result.bic + 2 * float(total)


def elbo(
    model: LatentModel, params: Any, data: Any, q: Float[Array, "N K"], weights: Float[Array, " N"] | None = None
) -> Float[Array, ""]:
    """The evidence lower bound E_q[log p(x, z | params)] + H[q] for any q over an independent discrete latent.

    It is the log-likelihood when q is the posterior, and below it by KL(q ‖ p(z | x)) otherwise. q: [N, K], rows that sum
    to 1. ``model`` is calibrated to the data (as in a `Result`), or the sums are taken about 0. Raises UnsupportedError
    for a latent whose values depend on each other, for which [N, K] does not describe a q.
    """
    if not model.latent.independent:
        name = type(model.latent).__name__
        raise UnsupportedError(
            f"q of shape [N, K] does not describe a distribution over the dependent values of {name}"
        )
    expected = model.expected_log_joint(params, data, q, weights)
    entropy = jnp.sum(entr(q), axis=-1)
    return expected + jnp.sum(entropy if weights is None else entropy * weights)
