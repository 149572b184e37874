"""One lane: a start on a data set, its rules, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem import layout
from jaxem.model import Algorithm, Data, Info, Model, num_examples, pytree
from jaxem.status import Status
from jaxem.stopping import Progress, RelativeGain, Stopping

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

# A fall of the objective in the first seven tenths of its digits is real: the terms of the objective are larger than it
# is, and their rounding is seen in the rest. Not two roundings gained in five steps is a stall.
_FALL_DIGITS = 0.7
_STALL_ROUNDINGS = 2
_STALLS = 5
# Later parameters are kept when their objective is the highest seen up to its rounding: they are the better ones.
_KEEP_ROUNDINGS = 4


@pytree
class Control:
    """When a lane stops. All of it is traced: new values do not recompile (another class of rule does).

    max_steps: parameter updates at most. min_steps: the stopping rule is not asked before so many, because a flat start
    gains next to nothing at first.
    """

    stopping: Stopping = RelativeGain()
    max_steps: int | jax.Array = 1000
    min_steps: int | jax.Array = 5


@pytree
class Lane:
    """A lane in flight: the algorithm's state, the best parameters evaluated so far, and what the rules remember.

    objective and log_likelihood are those of ``best``; highest is the highest objective seen, up to rounding.
    """

    state: Any
    best: Any
    objective: Array
    highest: Array
    log_likelihood: Array
    previous_objective: Array
    memory: Any
    stalls: Array
    step: Array
    status: Array
    trace: Array


def begin(params: Any, model: Model, data: Any, weights: Any, algorithm, control, trace, status) -> Lane:
    """A lane before its first step."""
    return enter(params, algorithm.init(model, params, data, weights), control, trace, status)


def enter(params: Any, state: Any, control: Control, trace: Array, status: Any) -> Lane:
    """A lane with the algorithm's first state: nothing is evaluated yet."""
    nothing = jnp.full((), -jnp.inf, trace.dtype)
    return Lane(
        state=state,
        best=params,
        objective=nothing,
        highest=nothing,
        log_likelihood=nothing,
        previous_objective=nothing,
        memory=control.stopping.start(params, nothing),
        stalls=jnp.int32(0),
        step=jnp.int32(0),
        status=status,
        trace=trace,
    )


def advance(lane: Lane, model: Model, data: Any, weights: Any, algorithm: Algorithm, control: Control) -> Lane:
    """Evaluate the current parameters, decide whether to stop at them, and move to the next ones."""
    state, info = algorithm.step(model, lane.state, data, weights)
    return judge(lane, state, info, model, algorithm, control)


def judge(lane: Lane, state: Any, info: Info, model: Model, algorithm: Algorithm, control: Control) -> Lane:
    """The lane after a step that has led to ``state``: whether it stops, at which parameters, and what it remembers."""
    params = lane.state.params
    objective = info.objective.astype(lane.objective.dtype)
    log_likelihood = info.log_likelihood.astype(lane.objective.dtype)
    first = lane.previous_objective == -jnp.inf
    judged = ~jnp.asarray(info.provisional)

    eps = jnp.finfo(objective.dtype).eps
    scale = jnp.maximum(jnp.abs(objective), info.weight)
    rounding = scale * eps
    risen = first | (objective > lane.highest + _STALL_ROUNDINGS * rounding)
    finite = jnp.isfinite(objective)
    monotone = algorithm.monotone and model.monotone
    fell = monotone & ~first & (objective < lane.highest - scale * eps**_FALL_DIGITS)
    progress = Progress(params, objective, lane.previous_objective, info.weight)
    memory, met = control.stopping.check(lane.memory, progress)
    asked = ~first & (lane.step >= control.min_steps)
    flat = monotone & control.stopping.watches_objective & ~risen
    stalls = jnp.where(flat, lane.stalls + 1, 0)

    def choose(*cases: tuple[Array, Status]) -> Array:
        status = jnp.int32(Status.RUNNING)
        for condition, value in reversed(cases):
            status = jnp.where(condition, jnp.int32(value), status)
        return status

    status = choose(
        (judged & (objective == -jnp.inf), Status.ZERO_LIKELIHOOD),
        (judged & ~finite, Status.NON_FINITE),
        (judged & fell, Status.DECREASED),
        (judged & asked & met, Status.CONVERGED),
        (judged & asked & (stalls >= _STALLS), Status.STALLED),
        (lane.step >= control.max_steps, Status.MAX_STEPS),
    )
    # Of estimates the highest is the luckiest, not the best: then later parameters always take the place.
    better = judged & finite & (first | algorithm.estimates | (objective >= lane.highest - _KEEP_ROUNDINGS * rounding))
    stopped = status != Status.RUNNING
    current = jnp.where(judged, objective, lane.previous_objective)
    seen = jnp.where(current == -jnp.inf, jnp.nan, current)
    return Lane(
        state=state,
        best=where(better, params, lane.best),
        objective=jnp.where(better, objective, lane.objective),
        highest=jnp.where(judged & finite & risen, objective, lane.highest),
        log_likelihood=jnp.where(better, log_likelihood, lane.log_likelihood),
        previous_objective=current,
        memory=where(judged, memory, lane.memory),
        stalls=jnp.where(judged, stalls, lane.stalls),
        step=jnp.where(stopped & (status != Status.MAX_STEPS), lane.step, lane.step + 1),
        status=status,
        trace=lane.trace.at[lane.step].set(seen, mode="drop") if lane.trace.size else lane.trace,
    )


def input_status(model: Model, data: Any, weights: Any) -> Array:
    """RUNNING, or why this data set cannot be fitted at all."""
    data = layout.hidden(data, 0.0) if isinstance(data, Data) else data
    leaves = [leaf for leaf in jax.tree.leaves((data, weights)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = jnp.array(True)
    for leaf in leaves:
        finite &= jnp.all(jnp.isfinite(leaf))
    present = num_examples(data) if weights is None else jnp.sum(weights > 0)
    enough = jnp.asarray(present >= model.min_examples)
    status = jnp.where(enough, jnp.int32(Status.RUNNING), jnp.int32(Status.TOO_FEW_ROWS))
    return jnp.where(finite, status, jnp.int32(Status.NON_FINITE_INPUT))


def where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
