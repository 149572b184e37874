"""The bound that EM climbs, for any q, and how far it is below the log-likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxem.model import Model

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def elbo(model: Model, params: Any, data: Any, q: Any, weights: Float[Array, " N"] | None = None) -> Float[Array, ""]:
    """The evidence lower bound E_q[log p(x, z | params)] + H[q] for any q(z).

    It is the log-likelihood when q is the posterior, and below it by KL(q ‖ p(z | x)) otherwise. q: [N, K], rows that
    sum to 1, over an independent discrete latent; of a `LogJoint` also [N, n₁, n₂, …] over a product, and over a
    `GaussianLatent` the (mean, covariance), [N, L] and [N, L, L], of normal distributions, whose expectation is taken by
    quadrature. ``model`` is calibrated to the data (as in a `Result`), or the sums are taken about 0. Raises
    UnsupportedError for a latent whose values depend on each other, for which [N, K] does not describe a q, ValueError
    for a q of another shape.
    """
    return model.elbo(params, data, q, weights)


def kl_gap(model: Model, params: Any, data: Any, q: Any, weights: Float[Array, " N"] | None = None) -> Float[Array, ""]:
    """How far the bound of q is below the log-likelihood, log p(x | params) − `elbo` = KL(q ‖ p(z | x)) ≥ 0.

    It is 0 where q is the posterior, to the rounding of the log-likelihood. Arguments and errors are those of `elbo`.
    """
    bound = elbo(model, params, data, q, weights)
    return model.e_step(params, model.prepare(data), weights).log_likelihood - bound
