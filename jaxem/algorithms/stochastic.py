"""Stochastic EM: a pass over the data in mini-batches, with an M-step after each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.em import EM
from jaxem.algorithms.mini_batches import check_batch_size, check_divisible, deal, mini_batch, num_mini_batches
from jaxem.algorithms.updates import Incremental, Update, Visit
from jaxem.lane import where
from jaxem.model import Algorithm, EStep, Info, Model, UnsupportedError, num_examples, pytree, static
from jaxem.passes import Place, Sums, nothing
from jaxem.stopping import Plateau
from jaxem.validate import check_key

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@pytree
class StochasticState:
    """The current parameters, the update's memory, and the passes made.

    total: the weight of all the data, 0 where it is not known before the first pass. unit: what a mini-batch weighs, on
    average or, in data that come in blocks, the first one. num_batches: mini-batches in a pass, where that is known.
    """

    params: Any
    memory: Any
    sweep: Int[Array, ""]
    total: Float[Array, ""]
    unit: Float[Array, ""]
    num_batches: int | None = static(default=None)


@pytree
class Sweep:
    """A pass on its way: parameters, memory and unit as they are by now; seen: sums of log-likelihoods and weights."""

    params: Any
    memory: Any
    unit: Float[Array, ""]
    seen: Sums


@pytree
class StochasticEM(Algorithm):
    """EM with an M-step after every mini-batch, from statistics that `Update` objects make of those of mini-batches.

    One step of the driver is one pass over all the data. The examples are dealt at random, once, into mini-batches whose
    sizes differ by one at most, and every pass takes these in a new random order. Of a `jaxem.Stream` every block is dealt
    by itself, and blocks come in their order, so that rows should be shuffled. batch_size: examples in a mini-batch at
    most; None is all of them, or those of a block. key: of the orders; a lane's own is not needed. update: `Online`,
    `Incremental` or `VarianceReduced`.
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
        num_batches = num_mini_batches(num_examples(data), self.batch_size)
        total = model.num_observations(data, weights)
        return self._first(model, params, data, weights, num_batches, total)

    def step(self, model: Model, state: StochasticState, data: Any, weights: Any) -> tuple[StochasticState, Info]:
        carry = self.begin_pass(model, state, data, weights)
        return self.end_pass(model, state, self.see(model, state, carry, data, weights, Place()))

    # A pass over one block, which is all the data, or over many.

    @property
    def counts_blocks(self) -> bool:  # type: ignore[override]
        return self.update.counts_blocks

    def on_blocks(self, block_size: int) -> StochasticEM:
        return self if self.batch_size is not None else dataclasses.replace(self, batch_size=block_size)

    def init_pass(self, model: Model, params: Any, block: Any, weights: Any, num_blocks: int | None) -> StochasticState:
        per_block = num_mini_batches(num_examples(block), self.batch_size)
        num_batches = None if num_blocks is None else num_blocks * per_block
        return self._first(model, params, block, weights, num_batches, jnp.zeros((), weights.dtype))

    def begin_pass(self, model: Model, state: StochasticState, block: Any, weights: Any) -> Sweep:
        zero = nothing((state.total, state.total))
        return Sweep(state.params, state.memory, state.unit, zero)

    def see(self, model: Model, state: StochasticState, carry: Sweep, block: Any, weights: Any, place: Place) -> Sweep:
        deal_key, sweep_key = jax.random.split(self.key)
        rows, used = deal(deal_key, num_examples(block), self.batch_size)
        count = rows.shape[0]
        order_key, draw_key = jax.random.split(jax.random.fold_in(sweep_key, state.sweep))
        order_key, draw_key = (jax.random.fold_in(key, place.block) for key in (order_key, draw_key))
        order = jax.random.permutation(order_key, count)

        def visit(carry: Sweep, turn: Array) -> Sweep:
            drawn = model.redraw(jax.random.fold_in(draw_key, turn))
            expected = drawn.e_step(carry.params, *mini_batch(block, weights, rows, used, order[turn]))
            number = jnp.asarray(place.block, jnp.int32) * count + order[turn]
            return self._visited(model, state, carry, expected, number, place.last & (turn == count - 1))

        if count == 1:
            return visit(carry, jnp.int32(0))
        return jax.lax.scan(lambda c, turn: (visit(c, turn), None), carry, jnp.arange(count, dtype=jnp.int32))[0]

    def end_pass(self, model: Model, state: StochasticState, carry: Sweep) -> tuple[StochasticState, Info]:
        log_likelihood, weight = carry.seen.value
        objective = log_likelihood + model.log_prior(state.params)
        provisional = self.update.provisional(state.sweep, state.num_batches)
        moved = dataclasses.replace(
            state,
            params=carry.params,
            memory=carry.memory,
            sweep=state.sweep + 1,
            total=jnp.where(state.total > 0, state.total, weight),
            unit=carry.unit,
        )
        return moved, Info(objective, log_likelihood, weight, provisional)

    def _first(
        self, model: Model, params: Any, block: Any, weights: Any, num_batches: int | None, total: Array
    ) -> StochasticState:
        self._check(model, block)

        def statistics(p: Any) -> Any:
            dealt = deal(self.key, num_examples(block), self.batch_size)
            return model.e_step(p, *mini_batch(block, weights, *dealt, 0)).stats

        stats = jax.eval_shape(statistics, params)
        unit = total / (1 if num_batches is None else num_batches)
        return StochasticState(params, self.update.start(stats, num_batches), jnp.int32(0), total, unit, num_batches)

    def _visited(
        self, model: Model, state: StochasticState, carry: Sweep, expected: EStep, number: Array, last: Any
    ) -> Sweep:
        """The M-step, where the update says so, after the E-step of mini-batch ``number``."""
        seen = carry.seen.plus((expected.log_likelihood, expected.weight))
        # Where the weight of all the data is not known yet, the first pass takes what it has seen for all.
        unit = jnp.where(carry.unit > 0, carry.unit, expected.weight)
        total = jnp.where(state.total > 0, state.total, seen.value[1])
        share = expected.weight / jnp.where(unit > 0, unit, 1)
        visit = Visit(state.sweep, number, last, share, expected.weight, total, state.num_batches)
        memory, stats, moves = self.update.absorb(carry.memory, expected.stats, visit)
        params = where(moves, model.m_step(carry.params, stats), carry.params)
        return Sweep(params, memory, unit, seen)

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
