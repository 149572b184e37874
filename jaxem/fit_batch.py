"""Many data sets of one shape, each with its own starts: groups of them as lanes of one program."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxem import memory, validate
from jaxem.algorithms.em import EM
from jaxem.checkpoint import Checkpoint, fingerprint
from jaxem.cost import nbytes
from jaxem.doors import OnFailure, begin_work, check_on_failure, control_of, count_of, starts_of, tally
from jaxem.driver import finish_and_diagnose, rankable, start_lanes
from jaxem.host import Watch, drive
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.lane import Lane
from jaxem.model import Algorithm, Model, float_type
from jaxem.programs import jit
from jaxem.progress import Report
from jaxem.result import BatchResult, ConvergenceWarning, FitError
from jaxem.slots import Index
from jaxem.spread import LANES, check_axes, programs_of
from jaxem.status import Status
from jaxem.stopping import Stopping
from jaxem.work import Ending, Groups, Problem, Race, Recipe, Work

if TYPE_CHECKING:
    from jaxtyping import Array

# Starts of many data sets are drawn for so many rows at a time.
_INIT_ROWS = 2**20


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
    control = control_of(tol, stopping, algorithm, max_steps, min_steps)
    check_on_failure(on_failure)
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
        self.programs = programs_of(mesh)
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
        if free is None or nbytes(self._shapes) * self.num_starts < memory.SMALL:
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
        rules = (self.algorithm, self.control, self.race, self.programs)

        def begin(first: int) -> tuple[Work, Ending]:
            recipe = Recipe(_prepare_batch, _finish_batch, self._arguments(first, size), self._options)
            return begin_work(recipe, *rules, num_groups=size)

        return Groups([functools.partial(begin, first) for first in range(0, self.sets, size)])

    def result(self, kept: list[Any]) -> BatchResult:
        fitted, run, diagnosis, best, weight = jax.tree.map(lambda *parts: np.concatenate(parts)[: self.sets], *kept)
        every = np.arange(self.sets)
        return BatchResult(
            fitted.specialize(None),
            jax.tree.map(lambda a: a[every, best], run.params),
            starts_of(run),
            best,
            weight,
            diagnosis.degenerate[every, best],
            diagnosis.empty[every, best],
            num_examples=self.n,
            num_free_parameters=count_of(self.model, jax.tree.map(lambda a: a[0, 0], run.params)),
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


@functools.partial(jit, static_argnames=("num_starts", "trace_size"))
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


@jit
def _finish_batch(lanes: Lane, problem: Problem, algorithm):
    models, prepared, weights = problem.model, problem.data, problem.weights
    run, diagnosis = finish_and_diagnose(lanes, models, prepared, weights, problem.index, algorithm)
    sets = jax.tree.leaves(prepared)[0].shape[0]
    axes = (sets, lanes.status.shape[0] // sets)
    run, diagnosis = jax.tree.map(lambda a: a.reshape(*axes, *a.shape[1:]), (run, diagnosis))
    best = jnp.argmax(rankable(run.objective, run.status), axis=1)
    weight = jax.vmap(lambda m, d, w: m.num_observations(d, w))(models, prepared, weights)
    return models, run, diagnosis, best, weight


def _finite(leaf: Array) -> Array:
    return jnp.where(jnp.isfinite(leaf), leaf, 0) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _report_batch(result: BatchResult, on_failure: OnFailure) -> None:
    status = result.status
    unusable = np.array([not Status(int(s)).usable for s in status])
    failed = ~result.converged
    message = f"of {len(status)} data sets: {tally(status)}"
    first = np.flatnonzero(unusable if unusable.any() else failed)
    if len(first):
        worst = Status(int(status[first[0]]))
        message += f"; data set {first[0]}: {worst.text}" + (f"; {worst.advice}" if worst.advice else "")
    if (on_failure is None and unusable.all()) or (on_failure == "raise" and failed.any()):
        raise FitError(message, result)
    if on_failure != "ignore" and failed.any():
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
