"""Multicycle ECM: an E-step before every block of the M-step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.model import Algorithm, Info, Model, pytree, static
from jaxem.wrappers.ecm import check_blocks, held

if TYPE_CHECKING:
    from jaxtyping import Array, Int


@pytree
class MulticycleState:
    """The current parameters, and the steps made."""

    params: Any
    steps: Int[Array, ""]


@pytree
class MulticycleECM(Algorithm):
    """An E-step, the conditional maximization over one block of leaves, an E-step, the next block, and so on.

    Meng & Rubin 1993, section 5. Each conditional maximization meets statistics of the parameters as they are, so that the
    likelihood rises with every block, for models with an expanded M-step too. A driver's step is one E-step and one
    block; the stopping rule compares whole cycles, since one block may be at rest while another moves.
    blocks: as of `ECM`. Raises ValueError for blocks that the model's M-step cannot hold.
    """

    blocks: tuple[tuple[str, ...], ...] = static()

    def __post_init__(self):
        if not isinstance(self.blocks, str):
            object.__setattr__(self, "blocks", tuple(b if isinstance(b, str) else tuple(b) for b in self.blocks))

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> MulticycleState:
        check_blocks(model, self.blocks)
        return MulticycleState(params, jnp.int32(0))

    def step(self, model: Model, state: MulticycleState, data: Any, weights: Any) -> tuple[MulticycleState, Info]:
        blocks = check_blocks(model, self.blocks)
        expected = model.e_step(state.params, data, weights)
        objective = expected.log_likelihood + model.log_prior(state.params)
        block = state.steps % len(blocks)

        def over(block: int):
            return lambda: model.m_step(state.params, expected.stats, held(blocks, block))

        params = jax.lax.switch(block, [over(b) for b in range(len(blocks))])
        info = Info(objective, expected.log_likelihood, expected.weight, block != 0)
        return dataclasses.replace(state, params=params, steps=state.steps + 1), info
