"""The host door: checks what it is given, runs all starts as lanes of one program, and says how they ended."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxem import memory, validate
from jaxem.algorithms.em import EM
from jaxem.buckets import pad
from jaxem.checkpoint import Checkpoint, fingerprint
from jaxem.doors import (
    OnFailure,
    begin_work,
    check_on_failure,
    checked,
    control_of,
    given_starts,
    make_result,
    report,
)
from jaxem.driver import finish_and_diagnose, rankable, start_lanes
from jaxem.host import Watch, drive
from jaxem.initialize import KMeansPlusPlus, Start, split_keys
from jaxem.lane import Lane
from jaxem.model import Algorithm, Model, float_type
from jaxem.programs import jit
from jaxem.progress import Report
from jaxem.result import Result
from jaxem.slots import Index
from jaxem.spread import ROWS, check_axes, programs_of
from jaxem.stopping import Stopping
from jaxem.streaming import begin_stream, end_stream
from jaxem.streams import Stream
from jaxem.work import Problem, Race, Recipe
from jaxem.wrappers.sharded import Sharded

if TYPE_CHECKING:
    from jaxtyping import Array


def fit(
    model: Model,
    data: Any,
    *,
    key: Array | None = None,
    num_starts: int = 1,
    weights: Any = None,
    params: Any = None,
    starts: Any = None,
    start: Start | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    min_steps: int = 5,
    stopping: Stopping | None = None,
    algorithm: Algorithm = EM(),
    race: Race | None = None,
    bucket: bool = True,
    trace_size: int = 256,
    on_failure: OnFailure = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[Report], Any] = False,
    checkpoint: str | os.PathLike | Checkpoint | None = None,
    resume: str | os.PathLike | Checkpoint | None = None,
) -> Result:
    """Fit a model to one data set from many starts at once, and keep the best.

    data: [N, D], a `jaxem.Data`, or whatever the model takes with examples as the leading axis of every leaf; a `Stream`
    of what does not fit into memory, each step a pass over it (what calibrates the model and makes random starts is a
    sample of at most 2¹⁷ rows).
    weights: one number per example, [N]; 3 is the row three times, 0 is its absence.
    key: needed for random starts; there is no default. num_starts: how many. start: where they come from
    (`KMeansPlusPlus`, `RandomPoints`, `RandomResponsibilities`). params: one given start instead (a warm start); starts:
    several, with a leading axis. tol: the least gain per example worth another step (shorthand for
    ``stopping=RelativeGain(tol)``, 1e-6 by default; an algorithm with noisy objectives has a rule of its own).
    max_steps, min_steps: bounds on the parameter updates.
    race: drop starts that are behind after a short run. bucket: False fits the data in their own size; by default small
    data are padded, with rows of weight 0, to one of a few sizes, so that data sets of many lengths share a program.
    trace_size: how many objectives to keep of every start.
    on_failure: "raise" unless the best start converged; "warn" or "ignore" whatever happens; by default raise when no
    start is usable, warn when the best one did not converge.
    mesh: devices (`jaxem.make_mesh`): rows are shared out over its axis "data", starts over its axis "lanes". Of several
    processes each gives the rows that it has read (see `jaxem.distributed`).
    progress: True shows on stderr how far it is; a function is called with a `Report` after every slice of the loop.
    checkpoint: a path (or a `Checkpoint`, with a period) where the state is kept, written atomically every minute. resume:
    the same, going on from the checkpoint if there is one: the end is the same to the last bit.

    Ctrl-C ends a fit after the slice at hand, half a second as a rule, and gives the best so far, with the status
    `Status.INTERRUPTED`. Where memory runs out, the E-step is computed in blocks, with a warning.
    Raises ValueError for bad input, `FitError` as ``on_failure`` says; warns with `ConvergenceWarning`.
    """
    validate.check_model(model)
    watch = Watch(progress, checkpoint, resume, max_steps)
    control = control_of(tol, stopping, algorithm, max_steps, min_steps)
    check_on_failure(on_failure)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    trace_size = validate.check_count("trace_size", trace_size, 0)
    if not isinstance(bucket, bool):
        raise ValueError(f"bucket is True or False; got {bucket!r}")
    if isinstance(data, Stream):
        given = {"weights": weights, "race": race}
        options = {"key": key, "num_starts": num_starts, "params": params, "starts": starts, "start": start}
        options |= {"algorithm": algorithm, "control": control, "trace_size": trace_size}
        return _fit_stream(model, data, mesh, watch, on_failure, given, options)
    model, rows = checked(model, data, weights, mesh)
    data, weights, dtype = rows.data, rows.weights, float_type(rows.data)
    given = given_starts(model, data, params, starts, num_starts)
    if given is None:
        key = validate.check_key(key, "a random start")
    key = None if given is not None else key
    start = start or KMeansPlusPlus()
    given_data, given_weights = data, weights
    if bucket and mesh is None:
        model, data, weights = pad(
            model, data, weights, start=None if given is not None else start, algorithm=algorithm
        )

    def asked() -> dict[str, str]:
        rules = (control, race, trace_size)
        return fingerprint(
            model=model,
            data=given_data,
            weights=given_weights,
            starts=(given, key, num_starts, start),
            algorithm=algorithm,
            rules=rules,
        )

    def attempt(model: Model) -> Result:
        arguments = (start, algorithm, control, model, data, weights, key, given)
        recipe = Recipe(_prepare, _finish, arguments, {"num_starts": num_starts, "trace_size": trace_size})
        work, ending = begin_work(recipe, algorithm, control, race, programs_of(mesh))
        drive(work, watch, asked)
        run, diagnosis, best, weight, fitted = jax.device_get(ending.end())
        fitted = (fitted.model if isinstance(fitted, Sharded) and mesh is not None else fitted).specialize(None)
        return make_result(fitted, run, diagnosis, int(best), rows, float(weight))

    model_now = memory.fitted_in(model, data, weights, dtype)
    result = memory.retried(
        attempt,
        model_now,
        lambda m: memory.in_blocks(m, data),
        lambda m: "the E-step in smaller blocks (jaxem.Chunked)",
    )
    report(result, given_data, on_failure)
    return result


def _fit_stream(model, stream: Stream, mesh, watch: Watch, on_failure, given: dict, options: dict) -> Result:
    """`fit` of a stream: pass after pass, over the devices of a mesh where there is one."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} cannot be given with a Stream" + (": it brings its own" if name == "weights" else "")
            )
    if mesh is not None:
        check_axes(mesh, (ROWS,))
        if jax.process_count() > 1:
            raise ValueError("a Stream is read by one process: of several each gives its rows as arrays")
    work, sample = begin_stream(model if mesh is None else Sharded(model, mesh, ROWS), stream, **options)

    def asked() -> dict[str, str]:
        rules = (options["control"], options["trace_size"], stream.block_size)
        starts = [options[name] for name in ("key", "num_starts", "params", "starts", "start")]
        return fingerprint(model=model, data=sample.data, starts=starts, algorithm=options["algorithm"], rules=rules)

    try:
        drive(work, watch, asked)
    finally:
        work.close()
    result = end_stream(work, sample, on_failure)
    own = result.model.model if mesh is not None else result.model  # type: ignore[attr-defined]
    return dataclasses.replace(result, model=own)


@functools.partial(jit, static_argnames=("num_starts", "trace_size"))
def _prepare(start, algorithm, control, model, data, weights, key, given, *, num_starts, trace_size):
    """Everything before the loop: lanes at their starts, and what they work on."""
    model = model.calibrate(data, weights)
    if given is None:
        keys = split_keys(key, num_starts)
        given = jax.vmap(lambda k: model.init(k, data, weights, start))(keys)
    prepared, weights = model.compress(data, weights)
    lanes = start_lanes(model, given, prepared, weights, Index(), algorithm, control, trace_size)
    return lanes, Problem(model, prepared, weights)


@jit
def _finish(lanes: Lane, problem: Problem, algorithm):
    """Everything after the loop: how each lane ended, and which is the best."""
    model, data, weights = problem.model, problem.data, problem.weights
    run, diagnosis = finish_and_diagnose(lanes, model, data, weights, problem.index, algorithm)
    best = jnp.argmax(rankable(run.objective, run.status))
    weight = model.num_observations(data, weights)
    return run, diagnosis, best, weight, model
