"""jaxem's Gaussian hidden Markov model."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

import jaxem
from benchmarks.contestants.jaxem_gmm import _timed, versions

__all__ = ["iteration", "precision", "starts", "versions"]


def _params(arrays):
    return jaxem.LatentParams(
        jaxem.MarkovChainParams(jnp.asarray(arrays["initial"]), jnp.asarray(arrays["transition"])),
        jaxem.GaussianParams(jnp.asarray(arrays["means"]), jnp.asarray(arrays["covariances"])),
    )


def _problem(arrays, dtype=None):
    x = jnp.asarray(arrays["x"], dtype)
    model = jaxem.HMM(jaxem.Gaussian(jaxem.Full()), arrays["means"].shape[-2]).calibrate(x)
    return x, model, jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, x))


def _fit_of(model, steps):
    """The loop that `jaxem.fit` runs, for so many steps."""
    control = jaxem.Control(jaxem.Never(), max_steps=steps)
    return jax.jit(lambda params, data: jaxem.run(model, params, data, control=control))


def iteration(arrays, options):
    """A fit of some iterations with T(x) kept; seconds for one."""
    x, model, data = _problem(arrays)
    params, steps = _params(arrays), options["steps"]
    program = _fit_of(model, steps)
    compile_seconds, _ = _timed(program, params, data)

    def run():
        seconds, fitted = _timed(program, params, data)
        # The evaluation of the last parameters is an E-step too.
        return {"seconds": seconds / (steps + 1), "log_likelihood": float(fitted.log_likelihood) / x[..., 0].size}

    return {"compile_seconds": compile_seconds}, run


def starts(arrays, options):
    """Some EM iterations of many starts as lanes of one program; seconds for one iteration of one start."""
    x, model, data = _problem(arrays)
    lanes, steps = _params(arrays), options["steps"]
    count = lanes.latent.initial.shape[0]
    control = jaxem.Control(jaxem.Never(), max_steps=steps)
    program = jax.jit(lambda p: jaxem.run_lanes(model, p, data, control=control))
    compile_seconds, _ = _timed(program, lanes)

    def run():
        seconds, result = _timed(program, lanes)
        # The last evaluation of every lane is an E-step too.
        per_step = seconds / (count * (steps + 1))
        return {"seconds": per_step, "log_likelihood": float(result.log_likelihood[0]) / x[..., 0].size}

    return {"compile_seconds": compile_seconds}, run


def precision(arrays, options):
    """The objective of the same parameters in float32 and in float64."""

    def objective(dtype):
        _, model, data = _problem(arrays, dtype)
        params = jax.tree.map(lambda a: a.astype(dtype), _params(arrays))
        step = jax.jit(lambda m, p, d: m.e_step(p, d))(model, params, data)
        return float(step.log_likelihood), bool(jax.tree.all(jax.tree.map(lambda a: jnp.all(jnp.isfinite(a)), step)))

    def run():
        begin = time.perf_counter()
        single, finite = objective(jnp.float32)
        with jax.enable_x64(True):
            double, _ = objective(jnp.float64)
        error = abs(single - double) / abs(double) if finite else float("inf")
        return {"seconds": time.perf_counter() - begin, "relative_error": error, "float32": single, "float64": double}

    return {}, run
