"""dynamax's Gaussian hidden Markov model."""

from __future__ import annotations

import time
from functools import partial

import dynamax
import jax
import jax.numpy as jnp
from dynamax.hidden_markov_model import GaussianHMM


def versions():
    return {"dynamax": dynamax.__version__, "jax": jax.__version__}


def iteration(arrays, options):
    """Some of the steps that its `fit_em` makes, compiled as there; seconds for one."""
    x, steps = jnp.asarray(arrays["x"]), options["steps"]
    k, d = arrays["means"].shape
    # Its own priors are as near to none as it takes.
    model = GaussianHMM(k, d, initial_probs_concentration=1.0, transition_matrix_concentration=1.0)
    begin, props = model.initialize(
        jax.random.key(0),
        initial_probs=jnp.asarray(arrays["initial"]),
        transition_matrix=jnp.asarray(arrays["transition"]),
        emission_means=jnp.asarray(arrays["means"]),
        emission_covariances=jnp.asarray(arrays["covariances"]),
    )

    @jax.jit
    def step(params, state):
        stats, log_likelihood = jax.vmap(partial(model.e_step, params))(x, None)
        params, state = model.m_step(params, props, stats, state)
        return params, state, jnp.sum(log_likelihood)

    def advance():
        params, state = begin, model.initialize_m_step_state(begin, props)
        for _ in range(steps):
            params, state, _ = step(params, state)
        return jax.block_until_ready(params)

    started = time.perf_counter()
    advance()
    compile_seconds = time.perf_counter() - started

    def run():
        started = time.perf_counter()
        params = advance()
        seconds = (time.perf_counter() - started) / steps
        total = jnp.sum(jax.vmap(partial(model.marginal_log_prob, params))(x))
        return {"seconds": seconds, "log_likelihood": float(total) / x[..., 0].size}

    return {"compile_seconds": compile_seconds}, run
