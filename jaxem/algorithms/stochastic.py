"""Stochastic EM: a pass over the data in mini-batches, with an M-step after each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.em import EM
from jaxem.algorithms.mini_batches import check_batch_size, check_divisible, deal, mini_batch
from jaxem.algorithms.updates import Incremental, Update, Visit
from jaxem.blocks import long_sum
from jaxem.lane import where
from jaxem.model import Algorithm, Info, Model, UnsupportedError, num_examples, pytree, static
from jaxem.stopping import Plateau
from jaxem.validate import check_key

if TYPE_CHECKING:
    from jaxtyping import Array, Int


@pytree
class StochasticState:
    """The current parameters, the update's memory, and the passes made."""

    params: Any
    memory: Any
    sweep: Int[Array, ""]


@pytree
class StochasticEM(Algorithm):
    """EM with an M-step after every mini-batch, from statistics that `Update` objects make of those of mini-batches.

    One step of the driver is one pass over all the data. The examples are dealt at random, once, into mini-batches whose
    sizes differ by one at most, and every pass takes these in a new random order. batch_size: examples in a mini-batch at
    most; None is all of them. key: of the orders; a lane's own is not needed. update: `Online`, `Incremental` or
    `VarianceReduced`.
    The objective reported on the way is summed over a pass whose parameters move, so an estimate; that of the result is
    exact. The stopping rule is the ordinary one where the update converges (Incremental, VarianceReduced), and
    `Plateau` where it is noisy. Raises UnsupportedError for a model whose E-step is not a sum over examples, whose
    M-step takes only statistics of one set of parameters (expanded=True), or whose data are compressed to their moments.
    """

    key: Array
    batch_size: int | None = static(default=None)
    update: Update = Incremental()

    monotone = False

    def __post_init__(self):
        check_key(self.key, "StochasticEM")
        check_batch_size(self.batch_size)
        if not isinstance(self.update, Update):
            raise ValueError(f"update is Online(), Incremental() or VarianceReduced(); got {self.update!r}")

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        return self.update.estimates and self.batch_size is not None

    def stopping(self, tol: float | None) -> Plateau | None:
        if not self.update.noisy:
            return None
        window = self.update.window
        return Plateau(window=window) if tol is None else Plateau(tol, window)

    def limit(self) -> EM:
        if self.update.noisy:
            name = type(self.update).__name__
            raise UnsupportedError(
                f"{name} EM has no fixed point to differentiate through: go on from its params with EM()"
            )
        return EM()

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> StochasticState:
        self._check(model, data)
        rows, used = deal(self._keys()[0], num_examples(data), self.batch_size)
        block, own = mini_batch(data, weights, rows, used, 0)
        stats = jax.eval_shape(lambda p: model.e_step(p, block, own).stats, params)
        return StochasticState(params, self.update.start(stats, rows.shape[0]), jnp.int32(0))

    def step(self, model: Model, state: StochasticState, data: Any, weights: Any) -> tuple[StochasticState, Info]:
        rows, used = deal(self._keys()[0], num_examples(data), self.batch_size)
        num_blocks = rows.shape[0]
        total = model.num_observations(data, weights)
        order_key, draw_key = jax.random.split(jax.random.fold_in(self._keys()[1], state.sweep))
        order = jax.random.permutation(order_key, num_blocks)

        def visit(carry: tuple[Any, Any], place: Array) -> tuple[tuple[Any, Any], tuple[Array, Array]]:
            params, memory = carry
            block = order[place]
            drawn = model.redraw(jax.random.fold_in(draw_key, place))
            expected = drawn.e_step(params, *mini_batch(data, weights, rows, used, block))
            share = expected.weight * num_blocks / jnp.where(total > 0, total, 1)
            seen = Visit(state.sweep, place, block, share, total, num_blocks)
            memory, stats, moves = self.update.absorb(memory, expected.stats, seen)
            params = where(moves, model.m_step(params, stats), params)
            return (params, memory), (expected.log_likelihood, expected.weight)

        carry = state.params, state.memory
        (params, memory), (terms, parts) = jax.lax.scan(visit, carry, jnp.arange(num_blocks, dtype=jnp.int32))
        log_likelihood, weight = long_sum(terms), long_sum(parts)
        objective = log_likelihood + model.log_prior(state.params)
        provisional = self.update.provisional(state.sweep, num_blocks)
        return StochasticState(params, memory, state.sweep + 1), Info(objective, log_likelihood, weight, provisional)

    def _check(self, model: Model, data: Any) -> None:
        name = type(model).__name__
        if not model.averageable:
            raise UnsupportedError(
                f"the M-step of {name} is that of a larger model, and takes no average of statistics: set expanded=False"
            )
        if not model.additive:
            raise UnsupportedError(f"the statistics of {name} are no sums over examples, which StochasticEM follows")
        if self.batch_size is not None:
            check_divisible(model, data)

    def _keys(self) -> Array:
        return jax.random.split(self.key)
