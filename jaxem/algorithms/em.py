"""Plain EM: one E-step, one M-step."""

from __future__ import annotations

from typing import Any

from jaxem.model import Algorithm, Info, Model, pytree


@pytree
class EMState:
    """The current parameters."""

    params: Any


@pytree
class EM(Algorithm):
    """Expectation-Maximization (Dempster, Laird & Rubin 1977): ``θ ← argmax_θ' E[log p(x, z | θ') | x, θ]``."""

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> EMState:
        return EMState(params)

    def step(self, model: Model, state: EMState, data: Any, weights: Any) -> tuple[EMState, Info]:
        expected = model.e_step(state.params, data, weights)
        objective = expected.log_likelihood + model.log_prior(state.params)
        updated = model.m_step(state.params, expected.stats)
        return EMState(updated), Info(objective, expected.log_likelihood, expected.weight)
