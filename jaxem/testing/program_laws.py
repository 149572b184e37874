"""Laws of a model as a program: compiled, in lanes, with other values, in single precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.driver import run_lanes
from jaxem.lane import Control
from jaxem.slots import Index
from jaxem.status import Status
from jaxem.stopping import RelativeGain
from jaxem.testing.case import STEPS, Case, close


def jit(case: Case) -> None:
    """Compiled and eager agree; eager compiles one program for every operation, so ask it of few models."""
    close("jit", case.e_step(), case.model.e_step(case.params, case.data), case.rtol, "compiled E-step against eager")


def lanes(case: Case) -> None:
    """Lanes against one by one; a lane on data that hold NaN disturbs none."""
    control = Control(RelativeGain(1e-7), max_steps=STEPS)
    clean = case.data
    stacked = jax.tree.map(lambda a: np.stack([a, _spoilt(np.asarray(a))]), clean)
    models = jax.tree.map(lambda a: np.broadcast_to(a, (2, *np.shape(a))), case.model)
    starts = jax.tree.map(lambda *a: np.stack(a), case.params, case.params, case.updated, case.params)
    index = Index(data=jnp.array([0, 1, 0, 0]))

    # Two slots, and three lanes that run at all: one waits, and is taken in beside another that runs or has stopped.
    program = jax.jit(lambda m, p, d: run_lanes(m, p, d, index=index, control=control, slots=2))
    lanes = jax.device_get(program(models, starts, stacked))
    for lane in (0, 2, 3):
        mine = jax.tree.map(lambda a, i=lane: a[i], lanes)
        one = case.fitted(jax.tree.map(lambda a, i=lane: a[i], starts), control)
        if (int(mine.steps), int(mine.status)) != (int(one.steps), int(one.status)):
            raise AssertionError(f"law lanes: {int(mine.steps)} steps as a lane, {int(one.steps)} alone")
        close("lanes", mine.params, one.params, 1e4 * case.rtol, "parameters of a lane against the fit alone")
    spoilt_status = Status(int(lanes.status[1]))
    # Whole numbers cannot hold NaN.
    spoilt = any(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(clean))
    if spoilt and spoilt_status != Status.NON_FINITE_INPUT:
        raise AssertionError(f"law lanes: data that hold NaN end as {spoilt_status.label}")
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(lanes.params)):
        raise AssertionError("law lanes: a lane ended with parameters that are not finite")


def _spoilt(a: np.ndarray) -> np.ndarray:
    """With NaN in the first example."""
    if not np.issubdtype(a.dtype, np.floating):
        return a
    a = a.copy()
    a[0] = np.nan
    return a


def retrace(case: Case) -> None:
    """New values of tolerances, steps and hyper-parameters run the program that is there."""
    count = case.traced.count
    moved = _moved(case.traced)
    case.fitted(case.params, Control(RelativeGain(1e-3), max_steps=3))
    traced = len(count)
    case.fitted(case.params, Control(RelativeGain(1e-5), max_steps=7, min_steps=2))
    case.fitted(case.params, Control(RelativeGain(1e-5), max_steps=7, min_steps=2), moved)
    if len(count) != traced:
        raise AssertionError(
            f"law retrace: new values of tol, max_steps or hyper-parameters trace again ({len(count)})"
        )


@jax.jit
def _moved(tree: Any) -> Any:
    """Other values of the same types; compiled, so that what was a Python number stays one to JAX (a weak type)."""
    return jax.tree.map(lambda leaf: leaf * 1.5 if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf, tree)


def precision(case: Case) -> None:
    exact = float(case.e_step().log_likelihood)
    single = jax.tree.map(_to_float32, (case.model, case.params, case.data))
    with jax.enable_x64(False):
        model, params, data = single
        rounded = float(jax.jit(model.e_step)(params, data).log_likelihood)
    if not abs(rounded - exact) <= 1e-5 * max(abs(exact), case.rows):
        raise AssertionError(f"law precision: log-likelihood {rounded} in float32, {exact} in float64")


def _to_float32(leaf: Any) -> Any:
    leaf = np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
