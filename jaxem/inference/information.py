"""The observed information, −∂² log p(x | θ)/∂θ², in five ways, and what EM does not see of it.

With q(θ' | θ) = E[log p(x, z | θ') | x, θ], the score of the complete data has the expectation ∂q/∂θ' at θ' = θ, which is
the score of the observed data (Fisher's identity). Hence, with derivatives of q at θ' = θ,

    observed  =  complete − missing,    complete = −∂²q/∂θ'²,    missing = ∂²q/∂θ'∂θ = Cov[complete-data score | x]

(Louis 1982; Oakes 1999), and the EM map M has the Jacobian complete⁻¹ · missing (Dempster, Laird & Rubin 1977): the
fraction of the information that is missing. A prior is part of the objective and of q alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from jaxem.implicit import jacobian
from jaxem.inference.chart import Chart
from jaxem.model import Model, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Examples whose scores are taken at once.
_ROWS_AT_ONCE = 2**10


@pytree
class Information:
    """In the coordinates of a chart: the gradient of the objective, [U], and the observed information, [U, U].

    complete: the complete-data information, of the methods that compute it. asymmetry: the largest relative difference
    of the observed information to its transpose, before it was made symmetric.
    """

    gradient: Float[Array, " U"]
    observed: Float[Array, "U U"]
    complete: Float[Array, "U U"] | None
    asymmetry: Float[Array, ""]


def information(
    method: Literal["hessian", "oakes", "louis", "sem"],
    model: Model,
    params: Any,
    chart: Chart,
    data: Any,
    weights: Any,
) -> Information:
    """The observed information of the objective at ``params``.

    hessian: by differentiating the objective twice. oakes: by differentiating its gradient as EM has it, ∂q/∂θ' at
    θ' = θ, once: the log-likelihood itself is not needed. louis: complete less missing information. sem: complete · (I − J)
    with J the Jacobian of the EM map (Meng & Rubin 1991), of which an M-step that only raises q has that of the whole
    maximization.
    """
    back = chart.back(model, params)
    here = jnp.zeros(chart.size, chart.tangent.dtype)

    def objective(u: Array) -> Array:
        own = back(u)
        return model.e_step(own, data, weights).log_likelihood + model.log_prior(own)

    explicit = model.explicit()

    def stats(u: Array) -> Any:
        return explicit.e_step(back(u), data, weights).stats

    def score(new: Array, expected: Any) -> Array:
        def penalized(u: Array) -> Array:
            own = back(u)
            return explicit.q(own, expected) + model.log_prior(own)

        return jax.grad(penalized)(new)

    if method == "hessian":
        gradient, observed = jax.grad(objective)(here), -jacobian(jax.grad(objective), here)
        return _symmetric(gradient, observed, None)
    expected = stats(here)
    gradient = score(here, expected)
    if method == "oakes":
        return _symmetric(gradient, -jacobian(lambda u: score(u, stats(u)), here), None)
    complete = -jacobian(lambda u: score(u, expected), here)
    if method == "louis":
        missing = jacobian(lambda u: score(here, stats(u)), here)
        return _symmetric(gradient, complete - missing, complete)
    if model.generalized:
        # What the whole maximization would have, by the implicit function theorem.
        rate = jnp.linalg.solve(complete, jacobian(lambda u: score(here, stats(u)), here))
    else:
        rate = jacobian(em_map(model, params, chart, data, weights), here)
    return _symmetric(gradient, complete @ (jnp.eye(chart.size, dtype=rate.dtype) - rate), complete)


def em_map(model: Model, params: Any, chart: Chart, data: Any, weights: Any) -> Callable[[Array], Array]:
    """One step of EM in the coordinates of the chart."""
    back = chart.back(model, params)

    def step(u: Float[Array, " U"]) -> Float[Array, " U"]:
        own = back(u)
        return chart.to(model, params, model.m_step(own, model.e_step(own, data, weights).stats))

    return step


def _symmetric(gradient: Array, observed: Array, complete: Array | None) -> Information:
    size = jnp.sqrt(jnp.abs(jnp.diagonal(observed)))
    scale = jnp.where(size > 0, size, 1)
    away = jnp.abs(observed - observed.T) / (scale[:, None] * scale)
    return Information(gradient, (observed + observed.T) / 2, complete, jnp.max(away, initial=0.0))


def scores(model: Model, params: Any, chart: Chart, data: Any) -> Float[Array, "N U"]:
    """The gradient of log p(x_n | θ) of every example, without its weight."""
    back = chart.back(model, params)
    here = jnp.zeros(chart.size, chart.tangent.dtype)

    def one(row: Any) -> Array:
        alone = jax.tree.map(lambda a: a[None], row)

        def log_likelihood(u: Array) -> Array:
            # An E-step that is no sum over examples need not be that of the example alone.
            own = back(u)
            return model.e_step(own, alone).log_likelihood if model.additive else model.log_likelihood(own, alone)[0]

        return jax.grad(log_likelihood)(here)

    return jax.lax.map(one, data, batch_size=_ROWS_AT_ONCE)
