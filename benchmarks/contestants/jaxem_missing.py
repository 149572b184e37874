"""jaxem's Gaussian mixture of rows with missing cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.contestants.jaxem_gmm import _advance, _first, _full, _mean_log_likelihood, _params, _timed, versions

__all__ = ["against_complete", "iteration", "versions"]


def _data(arrays):
    """Not a number where a cell is missing."""
    mask = jnp.asarray(arrays["mask"])
    return jaxem.Data(x=jnp.where(mask, jnp.asarray(arrays["x"]), jnp.nan), mask=mask)


def _ready(arrays, data):
    """The model and the data as the loop of a fit has them."""
    model = _full(arrays).specialize(data).calibrate(data)
    return model, jax.block_until_ready(jax.jit(lambda m, a: m.compress(a)[0])(model, data))


def iteration(arrays, options):
    """Some iterations; seconds for one."""
    params, data, steps = _first(_params(arrays)), _data(arrays), options["steps"]
    model, prepared = _ready(arrays, data)
    compile_seconds, _ = _timed(_advance, model, params, prepared, 1)

    def run():
        seconds, fitted = _timed(_advance, model, params, prepared, steps)
        return {"seconds": seconds / steps, "log_likelihood": _mean_log_likelihood(model, fitted, data)}

    return {"compile_seconds": compile_seconds}, run


def against_complete(arrays, options):
    """One iteration with the mask and one without it, in turn."""
    params, steps = _first(_params(arrays)), options["steps"]
    masked, complete = _data(arrays), jaxem.Data(x=jnp.asarray(arrays["x"]))
    contests = {"masked": (*_ready(arrays, masked), masked), "complete": (*_ready(arrays, complete), complete)}
    compile_seconds = {name: _timed(_advance, model, params, data, 1)[0] for name, (model, data, _) in contests.items()}

    def run():
        answer = {}
        for name, (model, prepared, data) in contests.items():
            seconds, fitted = _timed(_advance, model, params, prepared, steps)
            answer[name] = seconds / steps
            answer[f"log_likelihood_{name}"] = _mean_log_likelihood(model, fitted, data)
        return answer

    patterns = len(np.unique(arrays["mask"], axis=0))
    return {"compile_seconds": compile_seconds["masked"], "patterns": patterns}, run
