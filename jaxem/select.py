"""Choosing among models by an information criterion; numbers of components in one program."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import validate
from jaxem.algorithms.em import EM
from jaxem.checkpoint import Checkpoint, fingerprint
from jaxem.doors import begin_work, check_on_failure, checked, control_of, make_result, report
from jaxem.driver import finish_and_diagnose, rankable, start_lanes
from jaxem.fit import fit
from jaxem.host import Watch, drive
from jaxem.inference import icl
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.model import Data, Diagnosis, Model, pytree, static
from jaxem.programs import jit
from jaxem.progress import Report
from jaxem.result import Result, describe, size
from jaxem.slots import Index
from jaxem.stopping import Stopping
from jaxem.work import Problem, Recipe

if TYPE_CHECKING:
    from jaxtyping import Array

Criterion = Literal["bic", "aic", "icl"]

# One program for K = 1 … 16 computes 1.9 times what sixteen would, and compiles in a seventh of their time (10 s against
# 70 s); three programs, in which K is padded by 2.3 at most, compute 1.2 times as much and compile in a quarter. From so
# many rows x starts x models on, computing counts.
_PADDING = 2.3
_MUCH = 2**20


@pytree
class Selection:
    """Fits of several models to the same data, and the one with the smallest criterion that is not degenerate."""

    results: tuple[Result, ...]
    values: tuple[float, ...] = static()
    criterion: str = static()
    chosen: int = static()

    @property
    def best(self) -> Result:
        return self.results[self.chosen]

    def __str__(self) -> str:
        header = f"{'':2}{'K':>4} {'log-likelihood':>16} {'parameters':>11} {self.criterion.upper():>14}"
        lines = [f"{header} {'at best':>8}  status"]
        for i, (result, value) in enumerate(zip(self.results, self.values, strict=True)):
            mark = "*" if i == self.chosen else " "
            row = f"{mark:2}{size(result.model):>4} {result.log_likelihood:>16.3f}"
            row += f" {result.num_free_parameters:>11} {value:>14.3f} {result.share_at_best():>8.0%}"
            lines.append(f"{row}  {result.status.label}")
        lines.append(f"* smallest {self.criterion.upper()}: {describe(self.best.model)}")
        return "\n".join(lines)


def select(
    models: Sequence[Model],
    data: Any,
    *,
    key: Array,
    num_starts: int = 16,
    criterion: Criterion = "bic",
    weights: Any = None,
    start: Start | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    min_steps: int = 5,
    stopping: Stopping | None = None,
    trace_size: int = 256,
    on_failure: Literal["warn", "ignore"] = "ignore",
    progress: bool | Callable[[Report], Any] = False,
    checkpoint: str | os.PathLike | Checkpoint | None = None,
    resume: str | os.PathLike | Checkpoint | None = None,
) -> Selection:
    """Fit every model from ``num_starts`` starts and choose the one with the smallest criterion.

    Models that differ only in their number of components (``[Mixture(Gaussian(), k) for k in range(1, 10)]``) are lanes
    of one program, in which the components beyond a lane's K have weight 0 and keep it: compiled once instead of for each
    K. Where there is much to compute they are a few programs, in which K is padded less. A degenerate fit, whose
    likelihood is not real, is chosen only if all are so. Arguments as for `fit`; checkpoints are for models that are one
    program. Raises ValueError for an empty list.
    """
    models = list(models)
    if not models:
        raise ValueError("select needs at least one model; got an empty list")
    if criterion not in ("bic", "aic", "icl"):
        raise ValueError(f"criterion is 'bic', 'aic' or 'icl'; got {criterion!r}")
    for model in models:
        validate.check_model(model)
    check_on_failure(on_failure)
    common: dict[str, Any] = {"num_starts": num_starts, "weights": weights, "start": start, "trace_size": trace_size}
    common |= {"tol": tol, "max_steps": max_steps, "min_steps": min_steps, "stopping": stopping}
    keeps = not (checkpoint is None and resume is None)
    together = _one_program(models)
    if keeps and not together:
        raise ValueError(
            "these models are fitted one by one, each by a program of its own: fit them with checkpoints each"
        )
    work = num_starts * len(models) * (_num_rows(data) if together else 0)
    groups = _groups(models) if together and work >= _MUCH and not keeps else [list(range(len(models)))]
    keys = jax.random.split(validate.check_key(key, "a random start"), len(models if not together else groups))
    found: dict[int, Result] = {}
    if together:
        for own_key, group in zip(keys if len(groups) > 1 else [key], groups, strict=True):
            watch = Watch(progress, checkpoint, resume)
            own = [models[i] for i in group]
            found |= zip(
                group, _sweep(own, data, key=own_key, on_failure=on_failure, watch=watch, **common), strict=True
            )
    else:
        for i, (own_key, model) in enumerate(zip(keys, models, strict=True)):
            found[i] = fit(model, data, key=own_key, on_failure=on_failure, progress=progress, **common)
    results = [found[i] for i in range(len(models))]
    values = [_criterion(result, criterion, data, weights) for result in results]
    order = [(not r.status.usable, bool(r.degenerate), v) for r, v in zip(results, values, strict=True)]
    chosen = min(range(len(results)), key=order.__getitem__)
    return Selection(tuple(results), tuple(values), criterion, chosen)


def _num_rows(data: Any) -> int:
    """Rows, of sequences their steps: what a sweep's cost grows with."""
    x = data.x if isinstance(data, Data) else data
    return math.prod(np.shape(x)[:-1])


def _groups(models: list[Model]) -> list[list[int]]:
    """Numbers of models that are one program each: none has more than so many times its own components."""
    left = sorted(range(len(models)), key=lambda i: -models[i].num_components)
    groups = []
    while left:
        most = models[left[0]].num_components
        groups.append([i for i in left if models[i].num_components * _PADDING >= most])
        left = left[len(groups[-1]) :]
    return groups


def _criterion(result: Result, criterion: str, data: Any, weights: Any) -> float:
    if not math.isfinite(result.log_likelihood):
        return math.inf
    return icl(result, data, weights) if criterion == "icl" else getattr(result, criterion)


def _one_program(models: list[Model]) -> bool:
    """True when the models are the largest one with fewer components."""
    largest = max(models, key=lambda m: m.num_components)
    if len(models) < 2 or not largest.sweepable:
        return False

    def same(model: Model) -> bool:
        like = largest.with_components(model.num_components) if type(model) is type(largest) else None
        if jax.tree.structure(like) != jax.tree.structure(model):
            return False
        return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(like), jax.tree.leaves(model), strict=True))

    return all(same(model) for model in models)


def _sweep(
    models,
    data,
    *,
    key,
    num_starts,
    weights,
    start,
    trace_size,
    tol,
    max_steps,
    min_steps,
    stopping,
    on_failure,
    watch,
):
    control = control_of(tol, stopping, EM(), max_steps, min_steps)
    largest = max(models, key=lambda m: m.num_components)
    largest, rows = checked(largest, data, weights, None)
    data, weights = rows.data, rows.weights
    num_starts = validate.check_count("num_starts", num_starts, 1)
    counts = jnp.array([model.num_components for model in models])
    key, start = validate.check_key(key, "a random start"), start or KMeansPlusPlus()
    arguments = (start, control, largest, data, weights, key, counts)
    options = {"num_starts": num_starts, "trace_size": trace_size}
    recipe = Recipe(_prepare, _finish(len(models)), arguments, options)
    work, ending = begin_work(recipe, EM(), control, num_groups=len(models))

    def asked() -> dict[str, str]:
        parts = {"models": largest, "components": counts, "data": data, "weights": weights}
        return fingerprint(starts=(key, start), rules=(control, num_starts, trace_size), **parts)

    drive(work, watch, asked)
    run, diagnosis, best, weight, fitted = jax.device_get(ending.end())
    fitted = fitted.specialize(None)
    results = []
    for i, model in enumerate(models):
        k = model.num_components
        own = dataclasses.replace(_slice(run, i), params=_trim(fitted, _slice(run.params, i), k))
        marks = Diagnosis(diagnosis.degenerate[i][:, :k], diagnosis.empty[i][:, :k])
        result = make_result(fitted.with_components(k), own, marks, int(best[i]), rows, float(weight))
        report(result, data, on_failure)
        results.append(result)
    return results


def _slice(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda a: a[i], tree)


def _trim(model: Model, params: Any, k: int) -> Any:
    """The first k components of every start. On the host, start by start: nothing to compile for each k."""
    starts = range(jax.tree.leaves(params)[0].shape[0])
    trimmed = [model.take_components(_slice(params, s), np.arange(k)) for s in starts]
    return jax.tree.map(lambda *a: np.stack(a), *trimmed)


@functools.partial(jit, static_argnames=("num_starts", "trace_size"))
def _prepare(start, control, model, data, weights, key, counts, *, num_starts, trace_size):
    model = model.calibrate(data, weights)
    keys = jax.random.split(key, (counts.shape[0], num_starts))

    def draw(count, key):
        return model.init(key, data, weights, start, jnp.arange(model.num_components) < count)

    starts = jax.vmap(lambda count, keys: jax.vmap(lambda k: draw(count, k))(keys))(counts, keys)
    params = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), starts)
    prepared, weights = model.compress(data, weights)
    lanes = start_lanes(model, params, prepared, weights, Index(), EM(), control, trace_size)
    return lanes, Problem(model, prepared, weights)


@functools.cache
def _finish(num_models: int) -> Any:
    """What is kept of the lanes of so many models, jitted: the same function for the same number."""

    @jit
    def finish(lanes, problem: Problem, algorithm):
        model, data, weights = problem.model, problem.data, problem.weights
        run, diagnosis = finish_and_diagnose(lanes, model, data, weights, problem.index, algorithm)
        weight = model.num_observations(data, weights)
        axes = (num_models, lanes.status.shape[0] // num_models)
        run, diagnosis = jax.tree.map(lambda a: a.reshape(*axes, *a.shape[1:]), (run, diagnosis))
        best = jnp.argmax(rankable(run.objective, run.status), axis=1)
        return run, diagnosis, best, weight, model

    return finish
