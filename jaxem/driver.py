"""The one loop: lanes of (start, data set) pairs, stopped one by one, never waiting for the slowest.

Everything here is pure: jit and vmap go through `run`, and gradients go through it by the implicit function theorem.

A *lane* is one start on one data set. `run_lanes` steps a fixed number of slots at once, in one compiled body. A slot whose
lane has stopped takes the next waiting lane; when none is waiting and three quarters of the slots are idle, the lanes that
still run are gathered into a quarter of the slots, and so on down to one. All shapes are static, the number of compiled
bodies grows with the logarithm of the number of slots, and memory is that of the slots, not of the lanes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.algorithms.em import EM
from jaxem.implicit import fixed_point_tangent
from jaxem.model import Algorithm, Model, num_examples, pytree, static
from jaxem.status import USABLE, Status
from jaxem.stopping import Progress, RelativeGain, Stopping

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Lanes are gathered into a quarter of the slots when three quarters have stopped; waiting lanes enter when an eighth has.
_SHRINK = 4
_REFILL = 8
# Numbers of prepared data that one step should touch: enough to fill the vector units and threads, little enough to stay
# in the cache. Below the second figure a step costs its overhead, and fewer slots would save nothing.
_FULL_STEP = 2**19
_SMALL_STEP = 2**15
# A fall of the objective beyond this many roundings of it is real; a gain below one rounding, three times, is a stall.
_FALL_ROUNDINGS = 64
_STALL_ROUNDINGS = 1
_STALLS = 3
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
class Run:
    """How a lane ended. The objective and the log-likelihood belong to ``params``.

    steps: parameter updates made. status: a `Status`. trace: objectives of the first steps, padded with NaN.
    """

    params: Any
    objective: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    trace: Float[Array, " S"]


@pytree
class Lane:
    """A lane in flight: the algorithm's state, the best parameters evaluated so far, and what the rules remember.

    objective and log_likelihood are those of ``best``; highest is the highest objective seen.
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


@pytree
class Index:
    """Which lane sees which data set. None: all lanes share the one given; else [L] indices into a leading axis."""

    data: Int[Array, " L"] | None = None
    weights: Int[Array, " L"] | None = None


def run(
    model: Model,
    params: Any,
    data: Any,
    weights: Float[Array, " N"] | None = None,
    *,
    algorithm: Algorithm = EM(),
    control: Control = Control(),
    trace_size: int = 0,
) -> Run:
    """Iterate from ``params`` to a fixed point: one lane, pure; jit, vmap and grad go through.

    ``data`` may be raw or prepared, ``model`` calibrated or not. Gradients of the result with respect to ``model`` (a
    prior's strength), ``data`` and ``weights`` are those of the fixed point, by the implicit function theorem: they hold
    at an interior, isolated optimum, to the accuracy that the stopping rule leaves, and are NaN where the lane did not
    converge, so stop by ``ParameterChange(1e-12)``. The start has no influence on an isolated optimum: its gradient is 0.
    """
    return _run(trace_size, (model, data, weights), params, algorithm, control)


@jax.custom_jvp
def _run_primal(trace: Array, problem: Any, params: Any, algorithm: Algorithm, control: Control) -> Run:
    model, data, weights = problem
    start = jax.tree.map(lambda a: jnp.asarray(a)[None], params)
    lanes = _start(model, start, data, weights, Index(), algorithm, control, trace)
    lanes = _drive(lanes, model, data, weights, Index(), algorithm, control, 1)
    return jax.tree.map(lambda a: a[0], _finish(lanes, model, data, weights, Index()))


def _run(trace_size: int, problem: Any, params: Any, algorithm: Algorithm, control: Control) -> Run:
    dtype = _dtype(params)
    return _run_primal(jnp.full(trace_size, jnp.nan, dtype), problem, params, algorithm, control)


@_run_primal.defjvp
def _run_jvp(primals, tangents):
    _, problem, _, algorithm, _ = primals
    _, problem_dot, *_ = tangents
    result = _run_primal(*primals)

    def step(params, problem):
        model, data, weights = problem
        state, info = algorithm.step(model, algorithm.init(model, params, data, weights), data, weights)
        return state.params, (info.objective, info.log_likelihood)

    success = (result.status == Status.CONVERGED) | (result.status == Status.STALLED)
    params_dot, (objective_dot, log_likelihood_dot) = fixed_point_tangent(
        step, result.params, problem, problem_dot, success
    )
    zero = jax.tree.map(_zero_tangent, (result.steps, result.status, result.trace))
    return result, Run(params_dot, objective_dot, log_likelihood_dot, *zero)


def _zero_tangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


def run_lanes(
    model: Model,
    params: Any,
    data: Any,
    weights: Array | None = None,
    *,
    index: Index = Index(),
    algorithm: Algorithm = EM(),
    control: Control = Control(),
    trace_size: int = 0,
    slots: int | None = None,
) -> Run:
    """`run` for L lanes at once: every leaf of ``params`` and of the result has a leading axis of L.

    With ``index.data`` every leaf of ``model`` and ``data`` has a leading axis of data sets, and lane l works on data set
    ``index.data[l]``; ``index.weights`` the same for the weights alone (bootstrap, folds). slots: lanes stepped at once,
    by default as many as fill the machine.
    A lane's result is that of `run` on it alone, up to the rounding of differently shaped products. Not differentiable
    in reverse mode: use ``jax.vmap`` of `run` for gradients.
    """
    trace = jnp.full(trace_size, jnp.nan, _dtype(params))
    lanes = _start(model, params, data, weights, index, algorithm, control, trace)
    lanes = _drive(lanes, model, data, weights, index, algorithm, control, slots)
    return _finish(lanes, model, data, weights, index)


def race_lanes(
    model: Model,
    params: Any,
    data: Any,
    weights: Array | None = None,
    *,
    index: Index = Index(),
    algorithm: Algorithm = EM(),
    control: Control = Control(),
    short_steps: int | Array,
    keep: int,
    num_groups: int = 1,
    trace_size: int = 0,
    slots: int | None = None,
) -> Run:
    """Start racing (emEM, Biernacki, Celeux & Govaert 2003): all lanes for ``short_steps``, then only the best ``keep``.

    Lanes come in ``num_groups`` groups of equal size (the starts of one data set), and each group keeps its own best. The
    others end with status `Status.OUTRACED` where they were.
    """
    trace = jnp.full(trace_size, jnp.nan, _dtype(params))
    lanes = _start(model, params, data, weights, index, algorithm, control, trace)
    short = Control(control.stopping, jnp.minimum(control.max_steps, short_steps), control.min_steps)
    lanes = _drive(lanes, model, data, weights, index, algorithm, short, slots)

    groups = (num_groups, -1)
    rank = rankable(lanes.objective.reshape(groups), lanes.status.reshape(groups))
    size = rank.shape[1]
    _, best = jax.lax.top_k(rank, keep)
    chosen = (best + size * jnp.arange(num_groups)[:, None]).reshape(-1)
    paused = (lanes.status == Status.MAX_STEPS) & (lanes.step < control.max_steps)
    ahead = jnp.zeros(lanes.status.shape, bool).at[chosen].set(True)
    status = jnp.where(paused, jnp.where(ahead, Status.RUNNING, Status.OUTRACED), lanes.status)
    lanes = dataclasses.replace(lanes, status=status)

    finalists = _take(lanes, chosen)
    picked = Index(*(None if i is None else i[chosen] for i in (index.data, index.weights)))
    finalists = _drive(finalists, model, data, weights, picked, algorithm, control, slots)
    lanes = _put(lanes, chosen, finalists)
    return _finish(lanes, model, data, weights, index)


def rankable(objective: Float[Array, "*G S"], status: Int[Array, "*G S"]) -> Float[Array, "*G S"]:
    """What the S starts of a group are ranked by: their objective, −inf where a start is not usable; NaN-safe.

    A degenerate start, whose likelihood is not real, comes behind every other usable one.
    """
    usable = jnp.isin(status, jnp.array(USABLE)) & jnp.isfinite(objective)
    sound = usable & (status != Status.DEGENERATE)
    lowest = jnp.min(jnp.where(sound, objective, jnp.inf), axis=-1, keepdims=True)
    size = jnp.max(jnp.where(usable, jnp.abs(objective), 0), axis=-1, keepdims=True)
    behind = jnp.where(jnp.isfinite(lowest), lowest, 0) - 2 * size - 1 + objective
    return jnp.where(sound, objective, jnp.where(usable, behind, -jnp.inf))


# One lane.


def _dtype(params: Any) -> Any:
    floats = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)]
    if not floats:
        raise ValueError("params hold no floating-point leaf: there is nothing to fit")
    return jnp.result_type(*floats)


def _begin(params: Any, model: Model, data: Any, weights: Any, algorithm, control, trace, status) -> Lane:
    """A lane before its first step: nothing is evaluated yet."""
    nothing = jnp.full((), -jnp.inf, trace.dtype)
    return Lane(
        state=algorithm.init(model, params, data, weights),
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


def _advance(lane: Lane, model: Model, data: Any, weights: Any, algorithm: Algorithm, control: Control) -> Lane:
    """Evaluate the current parameters, decide whether to stop at them, and move to the next ones."""
    params = lane.state.params
    state, info = algorithm.step(model, lane.state, data, weights)
    objective = info.objective.astype(lane.objective.dtype)
    log_likelihood = info.log_likelihood.astype(lane.objective.dtype)
    first = lane.step == 0

    size = jnp.maximum(jnp.abs(objective), info.weight) * jnp.finfo(objective.dtype).eps
    gain = objective - lane.previous_objective
    finite = jnp.isfinite(objective)
    fell = algorithm.monotone & ~first & (objective < lane.highest - _FALL_ROUNDINGS * size)
    progress = Progress(params, objective, lane.previous_objective, info.weight)
    memory, met = control.stopping.check(lane.memory, progress)
    asked = ~first & (lane.step >= control.min_steps)
    flat = algorithm.monotone & control.stopping.watches_objective & ~first & (gain <= _STALL_ROUNDINGS * size)
    stalls = jnp.where(flat, lane.stalls + 1, 0)

    def choose(*cases: tuple[Array, Status]) -> Array:
        status = jnp.int32(Status.RUNNING)
        for condition, value in reversed(cases):
            status = jnp.where(condition, jnp.int32(value), status)
        return status

    status = choose(
        (objective == -jnp.inf, Status.ZERO_LIKELIHOOD),
        (~finite, Status.NON_FINITE),
        (fell, Status.DECREASED),
        (asked & met, Status.CONVERGED),
        (asked & (stalls >= _STALLS), Status.STALLED),
        (lane.step >= control.max_steps, Status.MAX_STEPS),
    )
    better = finite & (first | (objective >= lane.highest - _KEEP_ROUNDINGS * size))
    stopped = status != Status.RUNNING
    return Lane(
        state=state,
        best=_where(better, params, lane.best),
        objective=jnp.where(better, objective, lane.objective),
        highest=jnp.where(finite, jnp.maximum(lane.highest, objective), lane.highest),
        log_likelihood=jnp.where(better, log_likelihood, lane.log_likelihood),
        previous_objective=objective,
        memory=memory,
        stalls=stalls,
        step=jnp.where(stopped & (status != Status.MAX_STEPS), lane.step, lane.step + 1),
        status=status,
        trace=lane.trace.at[lane.step].set(objective, mode="drop") if lane.trace.size else lane.trace,
    )


# Many lanes.


def _start(model, params, data, weights, index: Index, algorithm, control, trace) -> Lane:
    """All lanes before their first step; those whose input cannot be fitted have already stopped."""
    axes = _axes(index)

    def check(model, data, weights):
        return _input_status(model, data, weights)

    if index.data is None and index.weights is None:
        status = check(model, data, weights)
        count = jax.tree.leaves(params)[0].shape[0]
        status = jnp.broadcast_to(status, (count,))
    elif index.weights is None or index.data is None:
        status = jax.vmap(check, in_axes=axes)(model, data, weights)
        status = status[index.weights if index.data is None else index.data]
    else:
        status = jax.lax.map(lambda i: check(*_problem(model, data, weights, index, i)), jnp.arange(index.data.shape[0]))

    def begin(lane, params, status):
        problem = _problem(model, data, weights, index, lane)
        return _begin(params, *problem, algorithm, control, trace, status)

    lanes = jnp.arange(status.shape[0], dtype=jnp.int32)
    return jax.vmap(begin)(lanes, params, status)


def _input_status(model: Model, data: Any, weights: Any) -> Array:
    """RUNNING, or why this data set cannot be fitted at all."""
    leaves = [leaf for leaf in jax.tree.leaves((data, weights)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = jnp.array(True)
    for leaf in leaves:
        finite &= jnp.all(jnp.isfinite(leaf))
    present = num_examples(data) if weights is None else jnp.sum(weights > 0)
    enough = jnp.asarray(present >= model.min_examples)
    status = jnp.where(enough, jnp.int32(Status.RUNNING), jnp.int32(Status.TOO_FEW_ROWS))
    return jnp.where(finite, status, jnp.int32(Status.NON_FINITE_INPUT))


def _axes(index: Index) -> tuple[int | None, int | None, int | None]:
    """vmap axes of (model, data, weights): what is shared by all lanes is not copied for each."""
    data = None if index.data is None else 0
    return data, data, (0 if index.weights is not None else data)


def _problem(model, data, weights, index: Index, lanes) -> tuple[Any, Any, Any]:
    """(model, data, weights) of some lanes: gathered where lanes differ, as given where they share."""
    if index.data is not None:
        rows = index.data[lanes]
        model, data = _take((model, data), rows)
        if index.weights is None:
            weights = _take(weights, rows)
    if index.weights is not None:
        weights = _take(weights, index.weights[lanes])
    return model, data, weights


def _step_slots(slots: Lane, problem: tuple[Any, Any, Any], axes, algorithm: Algorithm, control: Control) -> Lane:
    """One step of all slots, whether their lanes run or not."""
    if slots.status.shape[0] == 1:
        # The last lane, and a single fit: no lane axis, so that nothing is computed for the sake of one.
        lane = jax.tree.map(lambda a: a[0], slots)
        problem = tuple(p if axis is None else jax.tree.map(lambda a: a[0], p) for p, axis in zip(problem, axes))
        return jax.tree.map(lambda a: a[None], _advance(lane, *problem, algorithm, control))
    return jax.vmap(lambda lane, *p: _advance(lane, *p, algorithm, control), in_axes=(0, *axes))(slots, *problem)


def _drive(lanes: Lane, model, data, weights, index: Index, algorithm, control, slots: int | None) -> Lane:
    """Run every lane that is RUNNING until it has stopped."""
    sizes = _slot_sizes(lanes.status.shape[0], _numbers_per_lane(data, index), slots)
    for size, target in zip(sizes, [*sizes[1:], 0], strict=True):
        lanes = _stage(lanes, size, target, model, data, weights, index, algorithm, control)
    return lanes


def _numbers_per_lane(data: Any, index: Index) -> int:
    sets = 1 if index.data is None else num_examples(data)
    return max(1, sum(leaf.size for leaf in jax.tree.leaves(data)) // sets)


def _slot_sizes(num_lanes: int, numbers: int, slots: int | None) -> list[int]:
    """How many slots each stage steps: the first as asked or as fills the machine, then fewer and fewer."""
    if slots is None:
        slots = 2 ** max(0, round(math.log2(_FULL_STEP / numbers)))
    sizes = [max(1, min(slots, num_lanes))]
    while sizes[-1] > 1 and sizes[-1] * numbers > _SMALL_STEP:
        sizes.append(max(1, sizes[-1] // _SHRINK))
    return sizes


def _stage(lanes: Lane, size: int, target: int, model, data, weights, index, algorithm, control) -> Lane:
    """Step ``size`` slots until no more than ``target`` lanes run. The loop over iterations."""
    total = lanes.status.shape[0]
    axes = _axes(index)
    shared = all(axis is None for axis in axes)
    running = lanes.status == Status.RUNNING
    num_running = jnp.sum(running, dtype=jnp.int32)
    # Running lanes first, in their order: what a stable sort on (not running) gives, by counting.
    place = jnp.where(running, jnp.cumsum(running) - 1, num_running + jnp.cumsum(~running) - 1)
    order = jnp.zeros(total, jnp.int32).at[place].set(jnp.arange(total, dtype=jnp.int32))

    def gather(lane_of):
        return () if shared else _problem(model, data, weights, index, lane_of)

    def num_active(slots):
        return jnp.sum(slots.tree.status == Status.RUNNING, dtype=jnp.int32)

    def cond(carry):
        _, slots, _, _, waiting = carry
        return num_active(slots) + waiting > target

    def refill(carry):
        """Write what has stopped to the pool and give its slots the next waiting lanes."""
        pool, slots, _, lane_of, waiting = carry
        pool = _put(pool, lane_of, slots)
        done = slots.tree.status != Status.RUNNING
        rank = jnp.cumsum(done) - 1
        # Running lanes come first in the order, and those after the slots wait in it.
        position = jnp.clip(num_running - waiting + rank, 0, total - 1)
        takes = done & (rank < waiting)
        lane_of = jnp.where(takes, order[position], lane_of)
        return pool, _take(pool, lane_of), gather(lane_of), lane_of, waiting - jnp.sum(takes, dtype=jnp.int32)

    def body(carry):
        pool, slots, problem, lane_of, waiting = carry
        before = slots.tree
        problem_now = (model, data, weights) if shared else problem
        after = _pack(_step_slots(before, problem_now, axes, algorithm, control))
        # A slot whose lane has stopped stays as it is.
        active = (before.status == Status.RUNNING)[:, None]
        slots = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, slots)
        carry = (pool, slots, problem, lane_of, waiting)
        if total == size:
            return carry
        done = size - num_active(slots)
        return jax.lax.cond((waiting > 0) & (done * _REFILL >= size), refill, lambda c: c, carry)

    pool = _pack(lanes)
    if total == size:
        carry = ((), pool, gather(jnp.arange(total)), (), jnp.int32(0))
        return jax.lax.while_loop(cond, body, carry)[1].tree
    lane_of = order[:size]
    waiting = jnp.maximum(num_running - size, 0)
    carry = (pool, _take(pool, lane_of), gather(lane_of), lane_of, waiting)
    pool, slots, _, lane_of, _ = jax.lax.while_loop(cond, body, carry)
    return _put(pool, lane_of, slots).tree


def _finish(lanes: Lane, model, data, weights, index: Index) -> Run:
    """The result of every lane; a usable one with a collapsed component is degenerate."""
    axes = _axes(index)

    def total(data, weights):
        return jnp.asarray(num_examples(data), lanes.objective.dtype) if weights is None else jnp.sum(weights)

    def judge(params, lane):
        own_model, own_data, own_weights = (model, data, weights) if axes == (None,) * 3 else _problem(
            model, data, weights, index, lane
        )
        return jnp.any(own_model.diagnose(params, total(own_data, own_weights)).degenerate)

    degenerate = jax.vmap(judge)(lanes.best, jnp.arange(lanes.status.shape[0], dtype=jnp.int32))
    usable = jnp.isin(lanes.status, jnp.array(USABLE))
    status = jnp.where(usable & degenerate, jnp.int32(Status.DEGENERATE), lanes.status)
    # A lane that was cut short has already moved on from the parameters it reports.
    ahead = (lanes.status == Status.MAX_STEPS) | (lanes.status == Status.OUTRACED)
    steps = jnp.where(ahead, lanes.step - 1, lanes.step)
    return Run(lanes.best, lanes.objective, lanes.log_likelihood, steps, status, lanes.trace)


# Pytrees with a lane axis.


def _where(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _take(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda a: a[rows], tree)


def _put(tree: Any, rows: Array, new: Any) -> Any:
    return jax.tree.map(lambda a, b: a.at[rows].set(b), tree, new)


@pytree
class _Packed:
    """All leaves of a pytree with a lane axis as one matrix per dtype.

    The loop gathers, scatters and selects lanes; on two matrices instead of some twenty leaves that is two operations to
    compile instead of forty.
    """

    matrices: dict[str, Array]
    layout: Any = static()  # treedef, and (dtype, shape without the lane axis) of every leaf

    @property
    def tree(self) -> Any:
        treedef, leaves = self.layout
        offset = dict.fromkeys(self.matrices, 0)
        out = []
        for dtype, shape in leaves:
            matrix, begin = self.matrices[dtype], offset[dtype]
            offset[dtype] = begin + math.prod(shape)
            out.append(matrix[:, begin : offset[dtype]].reshape(matrix.shape[0], *shape))
        return jax.tree.unflatten(treedef, out)


def _pack(tree: Any) -> _Packed:
    leaves, treedef = jax.tree.flatten(tree)
    groups: dict[str, list[Array]] = {}
    for leaf in leaves:
        groups.setdefault(str(leaf.dtype), []).append(leaf.reshape(leaf.shape[0], -1))
    matrices = {dtype: jnp.concatenate(parts, axis=1) for dtype, parts in groups.items()}
    return _Packed(matrices, (treedef, tuple((str(leaf.dtype), leaf.shape[1:]) for leaf in leaves)))
