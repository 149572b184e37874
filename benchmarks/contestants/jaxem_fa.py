"""jaxem's factor analysis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import jaxem
from benchmarks.contestants.jaxem_gmm import _mean_log_likelihood, _timed, versions

__all__ = ["versions", "whole_fit"]


def whole_fit(arrays, options):
    """`jaxem.fit` from a random start: checks, calibration, moments and results in."""
    x, model = jnp.asarray(arrays["x"]), jaxem.FactorAnalysis(options["factors"])
    rule = {"stopping": jaxem.Never(), "max_steps": options["steps"], "trace_size": 0, "on_failure": "ignore"}

    def fit():
        return jaxem.fit(model, x, key=jax.random.key(0), **rule)

    compile_seconds, _ = _timed(lambda: fit().params)

    def run():
        seconds, result = _timed(fit)
        each = _mean_log_likelihood(model, result.params, x)
        return {"seconds": seconds, "log_likelihood": each, "steps": result.steps}

    return {"compile_seconds": compile_seconds}, run
