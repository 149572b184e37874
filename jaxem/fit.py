"""The host door: checks what it is given, runs all starts as lanes of one program, and says how they ended."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import layout, validate
from jaxem.algorithms.em import EM
from jaxem.driver import Run, race_lanes, rankable, run_lanes
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.lane import Control
from jaxem.model import (
    Algorithm,
    Data,
    Diagnosis,
    Model,
    UnsupportedError,
    as_data,
    float_type,
    num_examples,
    pytree,
    static,
)
from jaxem.result import BatchResult, ConvergenceWarning, FitError, Result, Starts, labels
from jaxem.slots import Index
from jaxem.status import Status
from jaxem.stopping import RelativeGain, Stopping

if TYPE_CHECKING:
    from jaxtyping import Array

OnFailure = Literal["raise", "warn", "ignore"] | None
# Starts of many data sets are drawn for so many rows at a time.
_INIT_ROWS = 2**20


@pytree
class Race:
    """Start racing (emEM): every start runs for ``steps``, then only the best ``keep`` of each data set go on."""

    steps: int | jax.Array = 10
    keep: int = static(default=8)

    def __post_init__(self):
        validate.check_count("keep", self.keep, 1)
        if isinstance(self.steps, (int, float)):
            validate.check_count("steps", self.steps, 1)


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

    Raises ValueError for bad input, `FitError` as ``on_failure`` says; warns with `ConvergenceWarning`.
    """
    validate.check_model(model)
    control = _control(tol, stopping, algorithm, max_steps, min_steps)
    _check_on_failure(on_failure)
    data = validate.to_device(data, model.keeps_types)
    n = validate.check_data(model, data)
    model = model.specialize(data)
    dtype = float_type(data)
    weights = validate.check_weights(weights, (n,), dtype, model.min_examples)
    validate.check_weights_of_sequences(model, data, weights)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    trace_size = validate.check_count("trace_size", trace_size, 0)
    given = _given_starts(model, data, params, starts, num_starts)
    if given is None:
        key = validate.check_key(key, "a random start")
    program = functools.partial(
        _fit_program, start or KMeansPlusPlus(), algorithm, control, race, num_starts=num_starts, trace_size=trace_size
    )
    fitted, run, diagnosis, best, weight = program(model, data, weights, None if given is not None else key, given)
    fitted = fitted.specialize(None)
    result = make_result(fitted, jax.device_get(run), jax.device_get(diagnosis), int(best), data, float(weight))
    report(result, data, on_failure)
    return result


@functools.partial(jax.jit, static_argnames=("num_starts", "trace_size"))
def _fit_program(start, algorithm, control, race, model, data, weights, key, given, *, num_starts, trace_size):
    model = model.calibrate(data, weights)
    if given is None:
        keys = jax.random.split(key, num_starts)
        given = jax.vmap(lambda k: model.init(k, data, weights, start))(keys)
    prepared, weights = model.compress(data, weights)
    run = _run_or_race(race, model, given, prepared, weights, Index(), algorithm, control, trace_size, 1)
    best = jnp.argmax(rankable(run.objective, run.status))
    weight = model.num_observations(prepared, weights)
    return model, run, jax.vmap(lambda p: model.diagnose(p, weight))(run.params), best, weight


def _run_or_race(race, model, params, data, weights, index, algorithm, control, trace_size, num_groups) -> Run:
    common = {"index": index, "algorithm": algorithm, "control": control, "trace_size": trace_size}
    per_group = jax.tree.leaves(params)[0].shape[0] // num_groups
    if race is None or race.keep >= per_group:
        return run_lanes(model, params, data, weights, **common)
    return race_lanes(
        model, params, data, weights, short_steps=race.steps, keep=race.keep, num_groups=num_groups, **common
    )


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
) -> BatchResult:
    """`fit` for many data sets of one shape, each with its own starts, all as lanes of one program.

    data: as for `fit`, with data sets as the leading axis: [B, N, D]. weights: [B, N]; weight 0 makes data sets of
    unequal size one shape. starts: given starts, leading axes [B, num_starts]. The other arguments are those of `fit`.
    A data set with NaN or infinity gets a status and disturbs no other; by default this raises only when no data set is
    usable, and warns when some are not.
    """
    validate.check_model(model)
    control = _control(tol, stopping, algorithm, max_steps, min_steps)
    _check_on_failure(on_failure)
    data = validate.to_device(data, model.keeps_types)
    n = validate.check_data(model, data, batch=1)
    model = model.specialize(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), data))
    sets = jax.tree.leaves(data)[0].shape[0]
    weights = validate.check_weights(weights, (sets, n), float_type(data), model.min_examples)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    if starts is not None:
        one = jax.tree.map(lambda a: a[0], data)
        starts = validate.check_params(model, starts, one, (sets, num_starts))
    else:
        key = validate.check_key(key, "a random start")
    program = functools.partial(_batch_program, start or KMeansPlusPlus(), algorithm, control, race)
    fitted, run, diagnosis, best, weight = program(
        model, data, weights, None if starts is not None else key, starts, num_starts=num_starts, trace_size=trace_size
    )
    run, diagnosis, best, weight = jax.device_get((run, diagnosis, best, weight))
    every = np.arange(sets)
    result = BatchResult(
        fitted.specialize(None),
        jax.tree.map(lambda a: a[every, best], run.params),
        _starts(run),
        best,
        weight,
        diagnosis.degenerate[every, best],
        diagnosis.empty[every, best],
        num_examples=n,
        num_free_parameters=_count(model, jax.tree.map(lambda a: a[0, 0], run.params)),
    )
    _report_batch(result, on_failure)
    return result


@functools.partial(jax.jit, static_argnames=("num_starts", "trace_size"))
def _batch_program(start, algorithm, control, race, model, data, weights, key, given, *, num_starts, trace_size):
    sets = jax.tree.leaves(data)[0].shape[0]

    def ready(data, weights):
        # A data set that is not finite keeps a finite centre and start; its status comes from the data themselves.
        clean = jax.tree.map(_finite, data)
        own = model.calibrate(clean, weights)
        return own, own.compress(data, weights), clean

    # Every leaf of the model gets the axis of data sets, the constants that do not differ too.
    models, compressed, clean = jax.vmap(ready)(data, weights)
    if given is None:
        keys = jax.random.split(key, (sets, num_starts))

        def draw(args):
            own, data, weights, keys = args
            return jax.vmap(lambda k: own.init(k, data, weights, start))(keys)

        per_set = num_starts * jax.tree.leaves(data)[0].shape[1]
        at_once = max(1, _INIT_ROWS // per_set)
        given = jax.lax.map(draw, (models, clean, weights, keys), batch_size=None if at_once == 1 else at_once)
    lanes = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), given)
    index = Index(data=jnp.repeat(jnp.arange(sets, dtype=jnp.int32), num_starts))
    prepared, weights = compressed
    run = _run_or_race(race, models, lanes, prepared, weights, index, algorithm, control, trace_size, sets)
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


def make_result(model: Model, run: Any, diagnosis: Diagnosis, best: int, data: Any, weight: float) -> Result:
    """A `Result` from the lanes of one data set, on the host."""
    num_sequences, num_steps = layout.count_sequences(as_data(data)) if model.sequential else (None, None)
    params = jax.tree.map(lambda a: a[best], run.params)
    fitted = Status(int(run.status[best])).usable  # components of what was never fitted are neither
    return Result(
        model,
        params,
        _starts(run),
        best=best,
        num_examples=num_examples(data),
        weight=weight,
        num_free_parameters=_count(model, params),
        degenerate=tuple(np.flatnonzero(diagnosis.degenerate[best] & fitted).tolist()),
        empty=tuple(np.flatnonzero(diagnosis.empty[best] & fitted).tolist()),
        num_sequences=num_sequences,
        num_steps=num_steps,
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
    first = _impossible(result.model, result.params, data)
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
