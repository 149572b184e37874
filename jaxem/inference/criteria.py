"""Criteria of a fit that need the posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax.scipy.special import entr

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
