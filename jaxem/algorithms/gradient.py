"""Gradient EM: steps along the gradient of the log-likelihood, which the E-step gives by Fisher's identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.em import EM
from jaxem.algorithms.mini_batches import check_batch_size, check_divisible, deal, mini_batch
from jaxem.ascent import check_optimizer
from jaxem.blocks import long_sum
from jaxem.free import held_leaves, keep_leaves
from jaxem.model import Algorithm, Info, Model, UnsupportedError, leaf_name, num_examples, pytree, static
from jaxem.same_function import same
from jaxem.stopping import Plateau, Settled, Stopping
from jaxem.validate import check_key

if TYPE_CHECKING:
    from jaxtyping import Array, Int


@pytree
class GradientState:
    """The current parameters, the optimizer's state, and the passes made."""

    params: Any
    optimizer: Any
    sweep: Int[Array, ""]


@pytree
class GradientEM(Algorithm):
    """An optax update for every E-step, along the gradient of the log-likelihood + log-prior in free coordinates.

    ``∇ log p(x | θ) = ∇_θ' E[log p(x, z | θ') | x, θ]`` at θ' = θ (Fisher's identity): the gradient of `Model.q` at the
    statistics of the E-step, so that nothing is differentiated through the E-step. The objective is per unit of weight,
    so that step sizes do not depend on N. It may fall: the best parameters seen are kept. It stops by `Settled`, and with
    mini-batches by `Plateau`.
    optimizer: any optax optimizer, such as ``optax.adam(0.05)``. batch_size: one update for each of so many examples, in
    passes over the data in random order, which then are the driver's steps; the objectives on the way are estimates. key:
    needed with a batch_size. Leaves held by `Frozen` stay; limits that only the M-step knows (floors) are not kept.
    Raises ValueError for another optimizer, a key that nothing uses or that is missing; UnsupportedError for a model
    without q or free coordinates, and for components held fixed.
    """

    optimizer: Any = static()
    batch_size: int | None = static(default=None)
    key: Array | None = None

    monotone = False

    def __post_init__(self):
        check_optimizer(self.optimizer, "optax.adam(0.05)")
        check_batch_size(self.batch_size)
        if self.batch_size is not None:
            check_key(self.key, "GradientEM with a batch_size")
        elif self.key is not None:
            raise ValueError("key is for mini-batches: give a batch_size too, or no key")
        object.__setattr__(self, "optimizer", same(self.optimizer))

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        return self.batch_size is not None

    def stopping(self, tol: float | None) -> Stopping:
        if self.batch_size is None:
            return Settled() if tol is None else Settled(tol)
        return Plateau() if tol is None else Plateau(tol)

    def limit(self) -> EM:
        if self.batch_size is not None:
            raise UnsupportedError(
                "steps on mini-batches have no fixed point to differentiate through: go on with EM()"
            )
        return EM()

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> GradientState:
        if self.batch_size is not None:
            check_divisible(model, data)
        params = jax.tree.map(jnp.asarray, params)
        held_leaves(model, params)
        return GradientState(params, self.optimizer.init(model.to_free(params)), jnp.int32(0))

    def step(self, model: Model, state: GradientState, data: Any, weights: Any) -> tuple[GradientState, Info]:
        dealt, ordered = (None, None) if self.key is None else jax.random.split(self.key)
        rows, used = deal(dealt, num_examples(data), self.batch_size)
        num_blocks = rows.shape[0]
        total = model.num_observations(data, weights)
        order = jnp.arange(num_blocks)
        if ordered is not None:
            order = jax.random.permutation(jax.random.fold_in(ordered, state.sweep), order)

        def visit(carry: tuple[Any, Any], block: Array) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
            params, optimizer = carry
            expected = model.e_step(params, *mini_batch(data, weights, rows, used, block))

            def loss(free: Any) -> Array:
                moved = model.from_free(free)
                value = num_blocks * model.q(moved, expected.stats) + model.log_prior(moved)
                return -value / jnp.where(total > 0, total, 1)

            return self._update(model, params, optimizer, loss), (expected.log_likelihood, expected.weight)

        carry = state.params, state.optimizer
        if num_blocks == 1:
            (params, optimizer), (log_likelihood, weight) = visit(carry, order[0])
        else:
            (params, optimizer), (terms, parts) = jax.lax.scan(visit, carry, order)
            log_likelihood, weight = long_sum(terms), long_sum(parts)
        objective = log_likelihood + model.log_prior(state.params)
        return GradientState(params, optimizer, state.sweep + 1), Info(objective, log_likelihood, weight)

    def on_blocks(self, block_size: int) -> GradientEM:
        if self.batch_size is not None:
            raise UnsupportedError(
                "GradientEM with a batch_size does not go over a Stream: leave batch_size out (a step is a pass), or use "
                "StochasticEM"
            )
        return self

    def _update(self, model: Model, params: Any, optimizer: Any, loss: Any) -> tuple[Any, Any]:
        """One update of the parameters, and of the optimizer's state."""
        import optax

        held = held_leaves(model, params)
        free = model.to_free(params)
        value, slope = jax.value_and_grad(loss)(free)
        slope = _without(slope, held)
        transform = optax.with_extra_args_support(self.optimizer)
        updates, optimizer = transform.update(slope, optimizer, free, value=value, grad=slope, value_fn=loss)
        updates = _without(updates, held)  # weight decay moves without a gradient
        moved = model.from_free(optax.apply_updates(free, updates))
        return keep_leaves(held, moved, params), optimizer


def _without(tree: Any, held: frozenset[str]) -> Any:
    """Zeros in the leaves that are held."""
    if not held:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if leaf_name(path) in held else leaf, tree
    )
