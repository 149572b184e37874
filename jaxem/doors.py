"""What the doors share: what they check, how a result is made of lanes, and what a person is told of it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxem import layout, validate
from jaxem.distributed import GlobalRows, global_rows
from jaxem.lane import Control, Lane
from jaxem.model import Algorithm, Data, Diagnosis, Model, UnsupportedError, as_data, float_type
from jaxem.one_program import OneProgram, fits_one_program
from jaxem.race_work import RaceWork
from jaxem.result import ConvergenceWarning, FitError, Result, Starts, labels
from jaxem.spread import LANES, ROWS, check_axes, replicated
from jaxem.status import Status
from jaxem.stopping import RelativeGain, Stopping
from jaxem.work import Ending, LanesWork, Problem, Programs, Race, Recipe, Work
from jaxem.wrappers.sharded import Sharded

if TYPE_CHECKING:
    pass

OnFailure = Literal["raise", "warn", "ignore"] | None


def control_of(
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


def check_on_failure(on_failure: Any) -> None:
    if on_failure not in (None, "raise", "warn", "ignore"):
        raise ValueError(f"on_failure is 'raise', 'warn', 'ignore' or None; got {on_failure!r}")


def given_starts(model: Model, data: Any, params: Any, starts: Any, num_starts: int) -> Any:
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


def starts_of(run: Any) -> Starts:
    return Starts(run.params, run.objective, run.log_likelihood, run.steps, run.status, run.trace)


def count_of(model: Model, params: Any) -> int | None:
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
        starts_of(run),
        best=best,
        num_examples=rows.num_examples,
        weight=weight,
        num_free_parameters=count_of(model, params),
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
        message = f"no start is usable: {tally(result.starts.status)}. {message}"
    bad = (not status.success) if on_failure == "raise" else (not status.usable)
    if bad and on_failure in (None, "raise"):
        raise FitError(message, result)
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


def tally(status: np.ndarray) -> str:
    values, counts = np.unique(status, return_counts=True)
    return ", ".join(f"{count} {Status(int(value)).label}" for value, count in zip(values, counts, strict=True))


def checked(model: Model, data: Any, weights: Any, mesh: Mesh | None) -> tuple[Model, GlobalRows]:
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


def work_on(race: Race | None, num_groups: int, lanes: Lane, problem: Problem, algorithm, control, programs) -> Work:
    per_group = lanes.status.shape[0] // num_groups
    if race is None or race.keep >= per_group:
        return LanesWork(lanes, problem, algorithm, control, programs)
    return RaceWork(race, num_groups, lanes, problem, algorithm, control, programs)


def begin_work(
    recipe: Recipe,
    algorithm: Algorithm,
    control: Control,
    race: Race | None = None,
    programs: Programs = Programs(),
    num_groups: int = 1,
) -> tuple[Work, Ending]:
    """Lanes ready to go, and how their end is told: one program where they are little work.

    num_groups: data sets of which the lanes are the starts.
    """
    if race is None and type(programs) is Programs:
        shapes = recipe.shapes()
        if fits_one_program(*shapes):
            small = OneProgram(recipe, algorithm, control, *shapes)
            return small, Ending(lambda: small.ended, lambda: small.ended_like)
    lanes, problem = recipe.prepared()
    work = work_on(race, num_groups, lanes, problem, algorithm, control, programs)

    def end() -> Any:
        return programs.everywhere(recipe.finish(work.lanes, problem, algorithm))

    return work, Ending(end, lambda: jax.eval_shape(end))
