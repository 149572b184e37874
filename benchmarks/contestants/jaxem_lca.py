"""jaxem's latent class model of binary items."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.contestants.jaxem_gmm import _mean_log_likelihood, _step, _timed, versions

__all__ = ["iteration", "starts", "versions"]


def _params(arrays):
    return jaxem.LatentParams(
        jaxem.CategoricalParams(jnp.asarray(arrays["weights"])), jaxem.BernoulliParams(jnp.asarray(arrays["probs"]))
    )


def iteration(arrays, options):
    """Some EM iterations with T(x) kept; seconds for one."""
    x, steps = jnp.asarray(arrays["x"]), options["steps"]
    params = jax.tree.map(lambda a: a[0], _params(arrays))
    model = jaxem.Mixture(jaxem.Bernoulli(), arrays["weights"].shape[1]).calibrate(x)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, x))
    compile_seconds, _ = _timed(_step, model, params, data)

    def advance():
        current = params
        for _ in range(steps):
            current, _ = _step(model, current, data)
        return current

    def run():
        seconds, fitted = _timed(advance)
        return {"seconds": seconds / steps, "log_likelihood": _mean_log_likelihood(model, fitted, x)}

    return {"compile_seconds": compile_seconds}, run


def starts(arrays, options):
    """All starts to convergence, through the host door, checks and all."""
    x, params = arrays["x"], _params(arrays)
    count, n = len(arrays["weights"]), len(arrays["x"])
    model = jaxem.Mixture(jaxem.Bernoulli(), arrays["weights"].shape[1])
    control = {"stopping": jaxem.AbsoluteGain(options["tol"] * n), "min_steps": 1, "max_steps": options["max_steps"]}

    def fit():
        return jaxem.fit(model, x, starts=params, num_starts=count, trace_size=0, on_failure="ignore", **control)

    compile_seconds, _ = _timed(lambda: fit().params)

    def run():
        seconds, result = _timed(fit)
        each = np.asarray(result.starts.log_likelihood, np.float64) / n
        steps = np.asarray(result.starts.steps)
        return {
            "seconds": seconds,
            "log_likelihood": float(each.mean()),
            "best": float(each.max()),
            "steps": int(steps.sum()),
        }

    return {"compile_seconds": compile_seconds}, run
