"""The one loop: lanes of (start, data set) pairs, stopped one by one, never waiting for the slowest.

Everything here is pure: jit and vmap go through `run`, and gradients go through it by the implicit function theorem.

A *lane* is one start on one data set. `run_lanes` steps a fixed number of slots at once, in one compiled body. A slot
whose lane has stopped takes the next waiting lane; when none is waiting and three quarters of the slots are idle, the
lanes that still run are gathered into a quarter of the slots, and so on. All shapes are static, the number of compiled
bodies grows with the logarithm of the number of slots, and memory is that of the slots, not of the lanes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.algorithms.em import EM
from jaxem.implicit import fixed_point_tangent
from jaxem.lane import Control, Lane, begin, input_status
from jaxem.model import Algorithm, Diagnosis, Model, pytree
from jaxem.slots import Index, axes_of, drive, problem_of, put, take
from jaxem.status import USABLE, Status

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


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
    converge, so stop by ``ParameterChange(1e-12)``, and where the optimum is not isolated (what does not determine it is
    named by `jaxem.standard_errors`). The start has no influence on an isolated optimum: its gradient is 0.
    """
    return _run(trace_size, (model, data, weights), params, algorithm, control)


@jax.custom_jvp
def _run_primal(trace: Array, problem: Any, params: Any, algorithm: Algorithm, control: Control) -> Run:
    model, data, weights = problem
    start = jax.tree.map(lambda a: jnp.asarray(a)[None], params)
    lanes = _start(model, start, data, weights, Index(), algorithm, control, trace)
    lanes = drive(lanes, model, data, weights, Index(), algorithm, control, 1)
    return jax.tree.map(lambda a: a[0], finish_lanes(lanes, model, data, weights, Index(), algorithm))


def _run(trace_size: int, problem: Any, params: Any, algorithm: Algorithm, control: Control) -> Run:
    dtype = _dtype(params)
    return _run_primal(jnp.full(trace_size, jnp.nan, dtype), problem, params, algorithm, control)


def _run_jvp(primals, tangents):
    _, problem, _, algorithm, _ = primals
    algorithm = algorithm.limit()
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


# What has no tangent is said so: its derivatives are not compiled.
_run_primal.defjvp(_run_jvp, symbolic_zeros=True)


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
    lanes = start_lanes(model, params, data, weights, index, algorithm, control, trace_size)
    lanes = drive(lanes, model, data, weights, index, algorithm, control, slots)
    return finish_lanes(lanes, model, data, weights, index, algorithm)


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
    lanes = start_lanes(model, params, data, weights, index, algorithm, control, trace_size)
    lanes = drive(lanes, model, data, weights, index, algorithm, short_run(control, short_steps), slots)
    lanes, chosen = race(lanes, control, keep, num_groups)
    finalists = drive(take(lanes, chosen), model, data, weights, take(index, chosen), algorithm, control, slots)
    return finish_lanes(put(lanes, chosen, finalists), model, data, weights, index, algorithm)


def short_run(control: Control, short_steps: int | Array) -> Control:
    """The rules of the run after which a race is decided."""
    return Control(control.stopping, jnp.minimum(control.max_steps, short_steps), control.min_steps)


def race(lanes: Lane, control: Control, keep: int, num_groups: int) -> tuple[Lane, Int[Array, " F"]]:
    """After the short run: all lanes, those that lost stopped, and which are the best ``keep`` of every group."""
    groups = (num_groups, -1)
    rank = rankable(lanes.objective.reshape(groups), lanes.status.reshape(groups))
    size = rank.shape[1]
    _, best = jax.lax.top_k(rank, keep)
    chosen = (best + size * jnp.arange(num_groups)[:, None]).reshape(-1)
    paused = (lanes.status == Status.MAX_STEPS) & (lanes.step <= control.max_steps)
    ahead = jnp.zeros(lanes.status.shape, bool).at[chosen].set(True)
    status = jnp.where(paused, jnp.where(ahead, Status.RUNNING, Status.OUTRACED), lanes.status)
    return dataclasses.replace(lanes, status=status), chosen.astype(jnp.int32)


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


# Before and after the loop.


def _dtype(params: Any) -> Any:
    floats = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)]
    if not floats:
        raise ValueError("params hold no floating-point leaf: there is nothing to fit")
    return jnp.result_type(*floats)


def start_lanes(model, params, data, weights, index: Index, algorithm, control, trace_size: int) -> Lane:
    """All lanes before their first step; those whose input cannot be fitted have already stopped."""
    trace = jnp.full(trace_size, jnp.nan, _dtype(params))
    return _start(model, params, data, weights, index, algorithm, control, trace)


def _start(model, params, data, weights, index: Index, algorithm, control, trace) -> Lane:
    axes = axes_of(index)

    if index.data is None and index.weights is None:
        status = input_status(model, data, weights)
        count = jax.tree.leaves(params)[0].shape[0]
        status = jnp.broadcast_to(status, (count,))
    elif index.weights is None or index.data is None:
        status = jax.vmap(input_status, in_axes=axes)(model, data, weights)
        status = status[index.weights if index.data is None else index.data]
    else:
        status = jax.lax.map(
            lambda i: input_status(*problem_of(model, data, weights, index, i)), jnp.arange(index.data.shape[0])
        )

    def one(lane, params, status):
        problem = problem_of(model, data, weights, index, lane)
        return begin(params, *problem, algorithm, control, trace, status)

    lanes = jnp.arange(status.shape[0], dtype=jnp.int32)
    return jax.vmap(one)(lanes, params, status)


def _evaluated(lanes: Lane, model, data, weights, index: Index) -> Lane:
    """Lanes whose objectives were estimates, with those of their parameters: one full E-step each, one after the other."""

    def one(lane):
        own_model, own_data, own_weights = problem_of(model, data, weights, index, lane)
        params = take(lanes.best, lane)
        expected = own_model.e_step(params, own_data, own_weights)
        objective = expected.log_likelihood + own_model.log_prior(params)
        return objective.astype(lanes.objective.dtype), expected.log_likelihood.astype(lanes.objective.dtype)

    objective, log_likelihood = jax.lax.map(one, jnp.arange(lanes.status.shape[0], dtype=jnp.int32))
    usable = jnp.isin(lanes.status, jnp.array(USABLE))
    status = jnp.where(usable & ~jnp.isfinite(objective), jnp.int32(Status.NON_FINITE), lanes.status)
    return dataclasses.replace(
        lanes,
        objective=jnp.where(usable, objective, lanes.objective),
        log_likelihood=jnp.where(usable, log_likelihood, lanes.log_likelihood),
        status=jnp.where(usable & (objective == -jnp.inf), jnp.int32(Status.ZERO_LIKELIHOOD), status),
    )


def finish_lanes(lanes: Lane, model, data, weights, index: Index, algorithm: Algorithm) -> Run:
    """The result of every lane; a usable one with a collapsed component is degenerate, one that still runs interrupted."""
    return finish_and_diagnose(lanes, model, data, weights, index, algorithm)[0]


def finish_and_diagnose(lanes: Lane, model, data, weights, index: Index, algorithm: Algorithm) -> tuple[Run, Diagnosis]:
    """`finish_lanes`, and what `Model.diagnose` says of every lane."""
    interrupted = lanes.status == Status.RUNNING
    lanes = dataclasses.replace(lanes, status=jnp.where(interrupted, jnp.int32(Status.INTERRUPTED), lanes.status))
    if algorithm.estimates:
        lanes = _evaluated(lanes, model, data, weights, index)
    axes = axes_of(index)

    def judge(params, lane):
        own_model, own_data, own_weights = (
            (model, data, weights) if axes == (None,) * 3 else problem_of(model, data, weights, index, lane)
        )
        return own_model.diagnose(params, own_model.num_observations(own_data, own_weights))

    diagnosis = jax.vmap(judge)(lanes.best, jnp.arange(lanes.status.shape[0], dtype=jnp.int32))
    degenerate = jnp.any(diagnosis.degenerate.reshape(lanes.status.shape[0], -1), axis=1)
    usable = jnp.isin(lanes.status, jnp.array(USABLE))
    status = jnp.where(usable & degenerate, jnp.int32(Status.DEGENERATE), lanes.status)
    # A lane that was cut short has already moved on from the parameters it reports.
    ahead = (lanes.status == Status.MAX_STEPS) | (lanes.status == Status.OUTRACED) | interrupted
    steps = jnp.where(ahead, jnp.maximum(lanes.step - 1, 0), lanes.step)
    return Run(lanes.best, lanes.objective, lanes.log_likelihood, steps, status, lanes.trace), diagnosis
