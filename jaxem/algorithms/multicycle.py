"""Multicycle ECM: an E-step before every block of the M-step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxem.algorithms.em import EM
from jaxem.ascent import Ascent, Newton
from jaxem.free import held_leaves, keep_leaves
from jaxem.model import Algorithm, Info, Model, leaf_name, pytree, static
from jaxem.wrappers.ecm import Blocks, check_blocks, held

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
    blocks: as of `ECM`. on_likelihood: leaves that are raised on log-likelihood + log-prior itself instead of q, where q
    says little of them (ECME; Liu & Rubin 1994), by the derivatives of the E-step's log-likelihood in free coordinates:
    each evaluation is one more E-step, and limits that only the M-step knows (floors) are not kept. ascent: the method,
    two steps of `Newton` by default, which suits a few coordinates.
    Raises ValueError for blocks that the model's M-step cannot hold, or of which only a part is in on_likelihood.
    """

    blocks: tuple[tuple[str, ...], ...] = static()
    on_likelihood: tuple[str, ...] = static(default=())
    ascent: Ascent = Newton()

    def __post_init__(self):
        if not isinstance(self.blocks, str):
            object.__setattr__(self, "blocks", tuple(b if isinstance(b, str) else tuple(b) for b in self.blocks))
        if isinstance(self.on_likelihood, str):
            raise ValueError(f"on_likelihood is a list of names of leaves; got the string {self.on_likelihood!r}")
        object.__setattr__(self, "on_likelihood", tuple(self.on_likelihood))
        if not isinstance(self.ascent, Ascent):
            raise ValueError(f"ascent is a method such as jaxem.Newton(2); got {self.ascent!r}")

    def limit(self) -> EM:
        return EM()

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> MulticycleState:
        self._blocks(model)
        return MulticycleState(params, jnp.int32(0))

    def step(self, model: Model, state: MulticycleState, data: Any, weights: Any) -> tuple[MulticycleState, Info]:
        blocks = self._blocks(model)
        expected = model.e_step(state.params, data, weights)
        objective = expected.log_likelihood + model.log_prior(state.params)
        block = state.steps % len(blocks)

        def over(b: int) -> Callable[[], Any]:
            others = held(blocks, b)
            if blocks[b][0] in self.on_likelihood:
                return lambda: self._climb(model, state.params, data, weights, others, expected.weight)
            return lambda: model.m_step(state.params, expected.stats, others)

        params = jax.lax.switch(block, [over(b) for b in range(len(blocks))])
        info = Info(objective, expected.log_likelihood, expected.weight, block != 0)
        return MulticycleState(params, state.steps + 1), info

    def _climb(self, model: Model, params: Any, data: Any, weights: Any, others: Any, weight: Array) -> Any:
        """The parameters with the leaves that are no others' raised on the likelihood."""
        stays = held_leaves(model, params) | set(others)
        leaves, structure = jax.tree_util.tree_flatten_with_path(model.to_free(params))
        own = [i for i, (path, _) in enumerate(leaves) if leaf_name(path) not in stays]
        start, unravel = ravel_pytree([leaves[i][1] for i in own])

        def moved(v: Array) -> Any:
            free = [leaf for _, leaf in leaves]
            for i, leaf in zip(own, unravel(v), strict=True):
                free[i] = leaf
            return model.from_free(jax.tree.unflatten(structure, free))

        def height(v: Array) -> Array:
            return model.e_step(moved(v), data, weights).log_likelihood + model.log_prior(moved(v))

        climbed = moved(self.ascent.climb(height, start, size=weight))
        return keep_leaves(stays, climbed, params)

    def _blocks(self, model: Model) -> Blocks:
        blocks = check_blocks(model, self.blocks)
        chosen = set(self.on_likelihood)
        for block in blocks:
            if chosen & set(block) and not chosen >= set(block):
                raise ValueError(f"a block is raised on the likelihood as a whole; on_likelihood has a part of {block}")
        stray = chosen - {name for block in blocks for name in block}
        if stray:
            raise ValueError(f"on_likelihood names {', '.join(sorted(stray))}, which no block has")
        return blocks
