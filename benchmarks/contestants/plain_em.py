"""The least that a full Gaussian mixture needs in JAX: what a compiler's time and a loop's time are compared with.

Plain `jax.numpy`, no checks, no floor but a constant, no status: one while loop, vmapped over the starts.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np


def versions():
    return {"jax": jax.__version__}


def e_step(params, x):
    """Responsibilities [N, K] and the log-likelihood."""
    weights, mean, covariance = params
    cholesky = jnp.linalg.cholesky(covariance)
    away = jnp.swapaxes(x[None] - mean[:, None], -1, -2)
    scaled = jax.scipy.linalg.solve_triangular(cholesky, away, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(cholesky, axis1=-2, axis2=-1)), -1)
    constant = 0.5 * x.shape[1] * jnp.log(2 * jnp.pi)
    joint = jnp.log(weights) - 0.5 * jnp.sum(scaled**2, axis=1).T - log_det - constant
    total = jax.scipy.special.logsumexp(joint, axis=1, keepdims=True)
    return jnp.exp(joint - total), jnp.sum(total)


def m_step(responsibilities, x):
    """Weights [K], means [K, D], covariances [K, D, D]."""
    count = responsibilities.sum(0)
    mean = (responsibilities.T @ x) / count[:, None]
    away = x[None] - mean[:, None]
    second = jnp.einsum("nk,kni,knj->kij", responsibilities, away, away)
    return count / x.shape[0], mean, second / count[:, None, None] + 1e-6 * jnp.eye(x.shape[1])


def climb(params, x, tol, max_steps):
    """EM from these parameters until the gain per example is below ``tol``: parameters, log-likelihood, steps."""

    def unfinished(carry):
        _, now, before, steps = carry
        return (steps < max_steps) & ~(now - before < tol * x.shape[0])

    def step(carry):
        params, before, _, steps = carry
        responsibilities, now = e_step(params, x)
        return m_step(responsibilities, x), now, before, steps + 1

    start = params, jnp.array(-jnp.inf, x.dtype), jnp.array(-jnp.inf, x.dtype), 0
    params, log_likelihood, _, steps = jax.lax.while_loop(unfinished, step, start)
    return params, log_likelihood, steps


def _random_start(key, x, k):
    centers = x[jax.random.choice(key, x.shape[0], (k,), replace=False)]
    nearest = jnp.argmin(((x[:, None] - centers) ** 2).sum(-1), axis=1)
    return m_step(0.9 * jax.nn.one_hot(nearest, k) + 0.1 / k, x)


@functools.partial(jax.jit, static_argnames=("k", "starts"))
def fit(key, x, k, starts):
    """The best of some random starts: parameters, log-likelihood, steps."""
    keys = jax.random.split(key, starts)
    ends = jax.vmap(lambda key: climb(_random_start(key, x, k), x, 1e-6, 1000))(keys)
    best = jnp.argmax(ends[1])
    return jax.tree.map(lambda a: a[best], ends)


def first_call(arrays, options):
    """Random starts on given rows: nothing has been compiled when it is first called."""
    x, key = arrays["x"], jax.block_until_ready(jax.random.key(0))

    def run():
        begin = time.perf_counter()
        _, log_likelihood, steps = jax.device_get(fit(key, x, options["k"], options["starts"]))
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "log_likelihood": float(np.asarray(log_likelihood)) / len(x), "steps": int(steps)}

    return {}, run
