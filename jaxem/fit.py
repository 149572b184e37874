"""The host door: checks what it is given, runs all starts as lanes of one program, and says how they ended."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxem import layout, memory, validate
from jaxem.algorithms.em import EM
from jaxem.checkpoint import Checkpoint, fingerprint
from jaxem.distributed import GlobalRows, global_rows
from jaxem.driver import finish_lanes, rankable, start_lanes
from jaxem.host import Watch, drive
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.lane import Control, Lane
from jaxem.model import (
    Algorithm,
    Data,
    Diagnosis,
    Model,
    UnsupportedError,
    as_data,
    float_type,
)
from jaxem.progress import Report
from jaxem.result import BatchResult, ConvergenceWarning, FitError, Result, Starts, labels
from jaxem.slots import Index
from jaxem.spread import LANES, ROWS, MeshPrograms, check_axes, replicated
from jaxem.status import Status
from jaxem.stopping import RelativeGain, Stopping
from jaxem.work import Groups, LanesWork, Problem, Programs, Race, RaceWork, Work
from jaxem.wrappers.sharded import Sharded

if TYPE_CHECKING:
    from jaxtyping import Array

OnFailure = Literal["raise", "warn", "ignore"] | None
# Starts of many data sets are drawn for so many rows at a time.
_INIT_ROWS = 2**20


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
    trace_size: int = 256,
    on_failure: OnFailure = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[Report], Any] = False,
    checkpoint: str | os.PathLike | Checkpoint | None = None,
    resume: str | os.PathLike | Checkpoint | None = None,
) -> Result:
    """Fit a model to one data set from many starts at once, and keep the best.

    data: [N, D], a `jaxem.Data`, or whatever the model takes with examples as the leading axis of every leaf.
    weights: one number per example, [N]; 3 is the row three times, 0 is its absence.
    key: needed for random starts; there is no default. num_starts: how many. start: where they come from
    (`KMeansPlusPlus`, `RandomPoints`, `RandomResponsibilities`). params: one given start instead (a warm start); starts:
    several, with a leading axis. tol: the least gain per example worth another step (shorthand for
    ``stopping=RelativeGain(tol)``, 1e-6 by default; an algorithm with noisy objectives has a rule of its own).
    max_steps, min_steps: bounds on the parameter updates.
    race: drop starts that are behind after a short run. trace_size: how many objectives to keep of every start.
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
    control = _control(tol, stopping, algorithm, max_steps, min_steps)
    _check_on_failure(on_failure)
    model, rows = _checked(model, data, weights, mesh)
    data, weights, dtype = rows.data, rows.weights, float_type(rows.data)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    trace_size = validate.check_count("trace_size", trace_size, 0)
    given = _given_starts(model, data, params, starts, num_starts)
    if given is None:
        key = validate.check_key(key, "a random start")
    key = None if given is not None else key
    start = start or KMeansPlusPlus()

    def asked() -> dict[str, str]:
        rules = (control, race, trace_size)
        return fingerprint(
            model=model,
            data=data,
            weights=weights,
            starts=(given, key, num_starts, start),
            algorithm=algorithm,
            rules=rules,
        )

    def attempt(model: Model) -> Result:
        lanes, problem = _prepare(
            start, algorithm, control, model, data, weights, key, given, num_starts=num_starts, trace_size=trace_size
        )
        programs = Programs() if mesh is None else MeshPrograms(mesh)
        work = _work(race, 1, lanes, problem, algorithm, control, programs)
        drive(work, watch, asked)
        ended = programs.everywhere((*_finish(work.lanes, problem, algorithm), problem.model))
        run, diagnosis, best, weight, fitted = jax.device_get(ended)
        fitted = (fitted.model if isinstance(fitted, Sharded) and mesh is not None else fitted).specialize(None)
        return make_result(fitted, run, diagnosis, int(best), rows, float(weight))

    model_now = memory.fitted_in(model, data, weights, dtype)
    result = memory.retried(
        attempt,
        model_now,
        lambda m: memory.in_blocks(m, data),
        lambda m: "the E-step in smaller blocks (jaxem.Chunked)",
    )
    report(result, data, on_failure)
    return result


def _checked(model: Model, data: Any, weights: Any, mesh: Mesh | None) -> tuple[Model, GlobalRows]:
    """The data as a fit takes them, on the device or over the devices of a mesh, and a model that knows of it."""
    if mesh is not None:
        check_axes(mesh, (LANES, ROWS))
        if ROWS in mesh.axis_names:
            model = model.model if isinstance(model, Sharded) else model
            return Sharded(model, mesh, ROWS), global_rows(model, data, weights, mesh=mesh, axis=ROWS)
    data = validate.to_device(data, model.keeps_types)
    n = validate.check_data(model, data)
    model = model.specialize(data)
    weights = validate.check_weights(weights, (n,), float_type(data), model.min_examples)
    validate.check_weights_of_sequences(model, data, weights)
    sequences = layout.count_sequences(as_data(data)) if model.sequential else (None, None)
    if mesh is not None:
        data, weights = replicated((data, weights), mesh)
    return model, GlobalRows(data, weights, n, *sequences)


def _work(race: Race | None, num_groups: int, lanes: Lane, problem: Problem, algorithm, control, programs) -> Work:
    per_group = lanes.status.shape[0] // num_groups
    if race is None or race.keep >= per_group:
        return LanesWork(lanes, problem, algorithm, control, programs)
    return RaceWork(race, num_groups, lanes, problem, algorithm, control, programs)


@functools.partial(jax.jit, static_argnames=("num_starts", "trace_size"))
def _prepare(start, algorithm, control, model, data, weights, key, given, *, num_starts, trace_size):
    """Everything before the loop: lanes at their starts, and what they work on."""
    model = model.calibrate(data, weights)
    if given is None:
        keys = jax.random.split(key, num_starts)
        given = jax.vmap(lambda k: model.init(k, data, weights, start))(keys)
    prepared, weights = model.compress(data, weights)
    lanes = start_lanes(model, given, prepared, weights, Index(), algorithm, control, trace_size)
    return lanes, Problem(model, prepared, weights)


@jax.jit
def _finish(lanes: Lane, problem: Problem, algorithm):
    """Everything after the loop: how each lane ended, and which is the best."""
    model, data, weights = problem.model, problem.data, problem.weights
    run = finish_lanes(lanes, model, data, weights, problem.index, algorithm)
    best = jnp.argmax(rankable(run.objective, run.status))
    weight = model.num_observations(data, weights)
    return run, jax.vmap(lambda p: model.diagnose(p, weight))(run.params), best, weight


def fit_batch(
    model: Model,
    data: Any,
    *,
    key: Array | None = None,
    num_starts: int = 1,
    weights: Any = None,
    starts: Any = None,
    start: Start | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    min_steps: int = 5,
    stopping: Stopping | None = None,
    algorithm: Algorithm = EM(),
    race: Race | None = None,
    trace_size: int = 0,
    on_failure: OnFailure = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[Report], Any] = False,
    checkpoint: str | os.PathLike | Checkpoint | None = None,
    resume: str | os.PathLike | Checkpoint | None = None,
) -> BatchResult:
    """`fit` for many data sets of one shape, each with its own starts, all as lanes of one program.

    data: as for `fit`, with data sets as the leading axis: [B, N, D]. weights: [B, N]; weight 0 makes data sets of
    unequal size one shape. starts: given starts, leading axes [B, num_starts]. batch_size: data sets on the device at a
    time, one group of them after the other; by default as many as its free memory holds, fewer, with a warning, where
    that was not enough. The other arguments are those of `fit`.
    A data set with NaN or infinity gets a status and disturbs no other; by default this raises only when no data set is
    usable, and warns when some are not. After Ctrl-C data sets that were never begun have NaN parameters.
    """
    validate.check_model(model)
    watch = Watch(progress, checkpoint, resume)
    control = _control(tol, stopping, algorithm, max_steps, min_steps)
    _check_on_failure(on_failure)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    batch_size = None if batch_size is None else validate.check_count("batch_size", batch_size, 1)
    batch = _Batch(
        model,
        data,
        weights,
        starts,
        key,
        num_starts,
        start or KMeansPlusPlus(),
        algorithm,
        control,
        race,
        trace_size,
        mesh,
    )

    def attempt(size: int) -> BatchResult:
        work = batch.groups(size)
        drive(work, watch, batch.asked)
        return batch.result(work.close(_never))

    size = min(batch.sets, batch_size or batch.largest_group())
    result = memory.retried(attempt, size, lambda s: s // 2 or None, lambda s: f"{s} data sets at a time")
    _report_batch(result, on_failure)
    return result


class _Batch:
    """Many data sets, in groups of one size that are fitted one after the other."""

    def __init__(
        self, model, data, weights, starts, key, num_starts, start, algorithm, control, race, trace_size, mesh
    ):
        self.model, self.start, self.algorithm, self.control, self.race = model, start, algorithm, control, race
        self.num_starts, self.trace_size = num_starts, trace_size
        if mesh is not None:
            check_axes(mesh, (LANES,))
        self.devices = 1 if mesh is None else mesh.shape[LANES]
        self.programs = Programs() if mesh is None else MeshPrograms(mesh)
        self.data = validate.as_arrays(data)
        self._shapes = jax.eval_shape(lambda d: validate.to_device(d, model.keeps_types), self.data)
        self.n = validate.check_data(model, self._shapes, batch=1)
        self.sets = jax.tree.leaves(self._shapes)[0].shape[0]
        each = (self.sets, self.n)
        self.weights = validate.check_weights(weights, each, float_type(self._shapes), model.min_examples)
        self.starts = self.keys = None
        if starts is None:
            self.keys = jax.random.split(validate.check_key(key, "a random start"), (self.sets, num_starts))
        else:
            one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), self._shapes)
            self.starts = validate.check_params(model, starts, one, (self.sets, num_starts))

    def asked(self) -> dict[str, str]:
        rules = (self.control, self.race, self.num_starts, self.trace_size)
        parts = {"model": self.model, "data": self.data, "weights": self.weights, "algorithm": self.algorithm}
        return fingerprint(starts=(self.starts, self.keys, self.start), rules=rules, **parts)

    def _slice(self, tree: Any, begin: int, size: int) -> Any:
        """Some of the data sets; the last one again where there are no more."""
        rows = slice(begin, begin + size)
        if begin + size > self.sets:
            rows = np.minimum(np.arange(begin, begin + size), self.sets - 1)
        return jax.tree.map(lambda a: a[rows], tree)

    def _arguments(self, begin: int, size: int) -> tuple[Any, ...]:
        model, data = self.model, validate.to_device(self._slice(self.data, begin, size), self.model.keeps_types)
        if size == self.sets:
            model = model.specialize(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), data))
        own = self._slice((self.weights, self.keys, self.starts), begin, size)
        return (self.start, self.algorithm, self.control, model, data, *own)

    @property
    def _options(self) -> dict[str, int]:
        return {"num_starts": self.num_starts, "trace_size": self.trace_size}

    def largest_group(self) -> int:
        """As many data sets as fit into the memory that is free, as the compiler counts it."""
        free, size = memory.available(), self.sets
        if free is None or memory.nbytes(self._shapes) * self.num_starts < memory.SMALL:
            return size

        def need(size: int) -> int:
            parts = (self._shapes, self.weights, self.keys, self.starts)
            own = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), parts)
            program = _prepare_batch.lower(self.start, self.algorithm, self.control, self.model, *own, **self._options)
            return memory.compiled_need(program)

        while size > 1 and need(size) > free * memory.SHARE:
            size = -(-size // 2)
        return size

    def groups(self, size: int) -> Groups:
        size = -(-size // self.devices) * self.devices
        problem: Problem | None = None

        def begin(first: int) -> Work:
            nonlocal problem
            problem = None  # before the next one is made: there may be no room for two
            lanes, problem = _prepare_batch(*self._arguments(first, size), **self._options)
            return _work(self.race, size, lanes, problem, self.algorithm, self.control, self.programs)

        def end(work: Work) -> Any:
            assert problem is not None
            ended = _finish_batch(work.lanes, problem, self.algorithm, num_starts=self.num_starts)
            return self.programs.everywhere(ended)

        return Groups([functools.partial(begin, first) for first in range(0, self.sets, size)], end)

    def result(self, kept: list[Any]) -> BatchResult:
        fitted, run, diagnosis, best, weight = jax.tree.map(lambda *parts: np.concatenate(parts)[: self.sets], *kept)
        every = np.arange(self.sets)
        return BatchResult(
            fitted.specialize(None),
            jax.tree.map(lambda a: a[every, best], run.params),
            _starts(run),
            best,
            weight,
            diagnosis.degenerate[every, best],
            diagnosis.empty[every, best],
            num_examples=self.n,
            num_free_parameters=_count(self.model, jax.tree.map(lambda a: a[0, 0], run.params)),
        )


def _never(kept: Any) -> Any:
    """What is said of data sets that were never begun, shaped like what is said of others."""
    fitted, run, diagnosis, best, weight = kept

    def unknown(tree: Any) -> Any:
        return jax.tree.map(lambda a: np.full_like(a, np.nan) if a.dtype.kind == "f" else np.zeros_like(a), tree)

    status = np.full_like(run.status, Status.INTERRUPTED)
    lowest = np.full_like(run.objective, -np.inf)
    run = dataclasses.replace(unknown(run), status=status, objective=lowest, log_likelihood=lowest)
    return unknown(fitted), run, unknown(diagnosis), unknown(best), unknown(weight)


@functools.partial(jax.jit, static_argnames=("num_starts", "trace_size"))
def _prepare_batch(start, algorithm, control, model, data, weights, keys, given, *, num_starts, trace_size):
    sets = jax.tree.leaves(data)[0].shape[0]

    def ready(data, weights):
        # A data set that is not finite keeps a finite centre and start; its status comes from the data themselves.
        clean = jax.tree.map(_finite, data)
        own = model.calibrate(clean, weights)
        return own, own.compress(data, weights), clean

    # Every leaf of the model gets the axis of data sets, the constants that do not differ too.
    models, compressed, clean = jax.vmap(ready)(data, weights)
    if given is None:

        def draw(args):
            own, data, weights, keys = args
            return jax.vmap(lambda k: own.init(k, data, weights, start))(keys)

        per_set = num_starts * jax.tree.leaves(data)[0].shape[1]
        at_once = max(1, _INIT_ROWS // per_set)
        given = jax.lax.map(draw, (models, clean, weights, keys), batch_size=None if at_once == 1 else at_once)
    params = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), given)
    index = Index(data=jnp.repeat(jnp.arange(sets, dtype=jnp.int32), num_starts))
    prepared, weights = compressed
    lanes = start_lanes(models, params, prepared, weights, index, algorithm, control, trace_size)
    return lanes, Problem(models, prepared, weights, index)


@functools.partial(jax.jit, static_argnames=("num_starts",))
def _finish_batch(lanes: Lane, problem: Problem, algorithm, *, num_starts):
    models, prepared, weights = problem.model, problem.data, problem.weights
    run = finish_lanes(lanes, models, prepared, weights, problem.index, algorithm)
    sets = lanes.status.shape[0] // num_starts
    run = jax.tree.map(lambda a: a.reshape(sets, num_starts, *a.shape[1:]), run)
    best = jnp.argmax(rankable(run.objective, run.status), axis=1)
    weight = jax.vmap(lambda m, d, w: m.num_observations(d, w))(models, prepared, weights)
    diagnosis = jax.vmap(lambda m, p, w: jax.vmap(lambda q: m.diagnose(q, w))(p))(models, run.params, weight)
    return models, run, diagnosis, best, weight


def _finite(leaf: Array) -> Array:
    return jnp.where(jnp.isfinite(leaf), leaf, 0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


# Shared by the doors.


def _control(
    tol: float | None, stopping: Stopping | None, algorithm: Algorithm, max_steps: Any, min_steps: Any
) -> Control:
    if tol is not None and stopping is not None:
        raise ValueError("give tol or stopping, not both: tol is shorthand for stopping=RelativeGain(tol)")
    if stopping is None:
        stopping = algorithm.stopping(tol)
    if stopping is None:
        stopping = RelativeGain(1e-6 if tol is None else tol)
    max_steps = validate.check_count("max_steps", max_steps, 1)
    return Control(stopping, max_steps, min(validate.check_count("min_steps", min_steps, 0), max_steps))


def _check_on_failure(on_failure: Any) -> None:
    if on_failure not in (None, "raise", "warn", "ignore"):
        raise ValueError(f"on_failure is 'raise', 'warn', 'ignore' or None; got {on_failure!r}")


def _given_starts(model: Model, data: Any, params: Any, starts: Any, num_starts: int) -> Any:
    """Given starting parameters with a leading axis of starts, or None."""
    if params is not None and starts is not None:
        raise ValueError("give params (one start) or starts (several, with a leading axis), not both")
    if params is not None:
        if num_starts != 1:
            raise ValueError(f"params is one start; got num_starts={num_starts} (use starts= for several)")
        return jax.tree.map(lambda a: a[None], validate.check_params(model, params, data))
    if starts is not None:
        lead = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(starts)}
        if lead != {(num_starts,)}:
            raise ValueError(f"starts need a leading axis of num_starts={num_starts}; got leading axes {sorted(lead)}")
        return validate.check_params(model, starts, data, (num_starts,))
    return None


def _starts(run: Any) -> Starts:
    return Starts(run.params, run.objective, run.log_likelihood, run.steps, run.status, run.trace)


def _count(model: Model, params: Any) -> int | None:
    try:
        return model.num_free_parameters(params)
    except UnsupportedError:
        return None


def make_result(model: Model, run: Any, diagnosis: Diagnosis, best: int, rows: GlobalRows, weight: float) -> Result:
    """A `Result` from the lanes of one data set, on the host."""
    params = jax.tree.map(lambda a: a[best], run.params)
    fitted = Status(int(run.status[best])).usable  # components of what was never fitted are neither
    return Result(
        model,
        params,
        _starts(run),
        best=best,
        num_examples=rows.num_examples,
        weight=weight,
        num_free_parameters=_count(model, params),
        degenerate=tuple(np.flatnonzero(diagnosis.degenerate[best] & fitted).tolist()),
        empty=tuple(np.flatnonzero(diagnosis.empty[best] & fitted).tolist()),
        num_sequences=rows.num_sequences,
        num_steps=rows.num_steps,
    )


def report(result: Result, data: Any, on_failure: OnFailure) -> None:
    """Warn or raise, as asked, with what a person can do about it."""
    status = result.status
    if status == Status.ZERO_LIKELIHOOD and on_failure != "ignore":
        status_text = f"{status.text}{_first_impossible(result, data)}"
    else:
        status_text = status.text
    message = status_text + (f"; {status.advice}" if status.advice else "")
    if result.degenerate:
        message += f" (components {', '.join(map(str, result.degenerate))})"
    if not status.usable:
        message = f"no start is usable: {_tally(result.starts.status)}. {message}"
    bad = (not status.success) if on_failure == "raise" else (not status.usable)
    if bad and on_failure in (None, "raise"):
        raise FitError(message)
    if on_failure == "ignore":
        return
    if not status.success:
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
    constant = validate.constant_columns(data)
    if constant:
        names = ", ".join(map(str, constant))
        warnings.warn(f"constant columns carry no information: {names}", ConvergenceWarning, stacklevel=3)
    if result.empty:
        named = labels(result.model)
        names = ", ".join(named[k] for k in result.empty)
        warnings.warn(f"components that hold less than half a row: {names}", ConvergenceWarning, stacklevel=3)


def _first_impossible(result: Result, data: Any) -> str:
    addressable = all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(data))
    first = _impossible(result.model, result.params, data) if addressable else None
    if first is None:
        return ""
    x = validate.observations(data)
    if not result.model.sequential or x is None:
        return f" (first impossible example: {first})"
    if x.ndim < 3:
        return f" (first impossible step: row {first})"
    # The steps of the one sequence, as a flat one, whose log-likelihoods are those of its steps.
    steps = x.shape[1] if getattr(data, "lengths", None) is None else int(data.lengths[first])
    one = {
        f: getattr(data, f)[first, :steps] for f in ("mask", "inputs", "labels") if getattr(data, f, None) is not None
    }
    model: Any = result.model
    while isinstance(getattr(model, "model", None), Model):  # what a wrapper says of sequences, it says of whole ones
        model = model.model
    step = _impossible(model, result.params, Data(x=x[first, :steps], **one))
    return f" (first impossible: step {step} of sequence {first})"


def _impossible(model: Model, params: Any, data: Any) -> int | None:
    """The first example that cannot be, or None."""
    try:
        log_likelihood = np.asarray(model.log_likelihood(params, data))
    except UnsupportedError:
        return None
    impossible = np.flatnonzero(log_likelihood == -np.inf)
    return int(impossible[0]) if len(impossible) else None


def _tally(status: np.ndarray) -> str:
    values, counts = np.unique(status, return_counts=True)
    return ", ".join(f"{count} {Status(int(value)).label}" for value, count in zip(values, counts, strict=True))


def _report_batch(result: BatchResult, on_failure: OnFailure) -> None:
    status = result.status
    unusable = np.array([not Status(int(s)).usable for s in status])
    failed = ~result.converged
    message = f"of {len(status)} data sets: {_tally(status)}"
    first = np.flatnonzero(unusable if unusable.any() else failed)
    if len(first):
        worst = Status(int(status[first[0]]))
        message += f"; data set {first[0]}: {worst.text}" + (f"; {worst.advice}" if worst.advice else "")
    if (on_failure is None and unusable.all()) or (on_failure == "raise" and failed.any()):
        raise FitError(message)
    if on_failure != "ignore" and failed.any():
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
