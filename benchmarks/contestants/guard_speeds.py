"""Short measures of jaxem, each beside a bare kernel of the same shapes, in one process and in turn.

A bare kernel is what the arithmetic cannot do without: the two matrix products of a mixture, the two scans of a hidden
Markov model, the plain EM of `plain_em`. The ratio of the two says what jaxem adds, on any machine.
"""

from __future__ import annotations

import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks import problems
from benchmarks.contestants import plain_em
from benchmarks.contestants.jaxem_gmm import _step, versions

__all__ = ["speed", "versions"]

# A measurement shorter than this is noise: the call is repeated until it lasts as long.
_LEAST_SECONDS = 0.04
_HIGHEST = jax.lax.Precision.HIGHEST


def _given(arrays, diagonal=False):
    """A mixture's given start."""
    covariance = arrays["covariances"][0]
    if diagonal:
        covariance = np.diagonal(covariance, axis1=-2, axis2=-1)
    return jaxem.LatentParams(
        jaxem.CategoricalParams(jnp.asarray(arrays["weights"][0])),
        jaxem.GaussianParams(jnp.asarray(arrays["means"][0]), jnp.asarray(covariance)),
    )


def _check_steps(steps, wanted):
    """A lane that ended early has not done the work that is timed."""
    made = np.unique(np.asarray(steps))
    if made.tolist() != [wanted]:
        raise RuntimeError(f"made {made.tolist()} steps, wanted {wanted} of every lane")


@jax.jit
def _two_products(statistics, natural, responsibilities):
    """Log-densities from statistics, and sums of statistics by responsibilities."""
    return (
        jnp.matmul(statistics, natural.T, precision=_HIGHEST),
        jnp.matmul(responsibilities.T, statistics, precision=_HIGHEST),
    )


def _products(n, size, k):
    """The two products of a mixture of K components with ``size`` statistics a row."""
    rng = np.random.default_rng(0)
    shapes = (n, size), (k, size), (n, k)
    arrays = [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    return lambda: _two_products(*arrays)


def _size(d, diagonal):
    """Statistics of a row of a Gaussian: features and their squares or products; the column of ones is the library's."""
    return 2 * d if diagonal else d + d * (d + 1) // 2


def _mixture(n, d, k, diagonal=False, chunked=False):
    """One EM step, with T(x) kept or rebuilt in chunks, beside its two products."""
    x = problems.mixture(0, n, d, k, spread=2.0)
    params = _given(problems.starts(1, x, k, 1), diagonal)
    family = jaxem.Gaussian(jaxem.Diagonal() if diagonal else jaxem.Full())
    model = jaxem.Mixture(family, k).calibrate(jnp.asarray(x))
    data = jaxem.model.as_data(jnp.asarray(x))
    if chunked:
        model = jaxem.Chunked(model)
    else:
        data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, data))
    return lambda: _step(model, params, data), _products(n, _size(d, diagonal), k)


def _student_t(n, d, k):
    x = problems.mixture(0, n, d, k, spread=2.0)
    given = _given(problems.starts(1, x, k, 1))
    own = given.likelihood
    params = jaxem.LatentParams(given.latent, jaxem.StudentTParams(own.mean, own.covariance, jnp.full(k, 5.0)))
    model = jaxem.Mixture(jaxem.StudentT(), k).calibrate(jnp.asarray(x))
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, jnp.asarray(x)))
    return lambda: _step(model, params, data), _products(n, _size(d, False), k)


def _classes(n, d, k):
    arrays = problems.items(0, n, d, k, 1)
    params = jaxem.LatentParams(
        jaxem.CategoricalParams(jnp.asarray(arrays["weights"][0])),
        jaxem.BernoulliParams(jnp.asarray(arrays["probs"][0])),
    )
    model = jaxem.Mixture(jaxem.Bernoulli(), k).calibrate(jnp.asarray(arrays["x"]))
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, jnp.asarray(arrays["x"])))
    return lambda: _step(model, params, data), _products(n, d, k)


def _missing(n, d, k):
    """A fifth of the cells missing, as the loop of a fit has them, beside the products of complete rows."""
    x = problems.mixture(0, n, d, k, spread=2.0)
    params = _given(problems.starts(1, x, k, 1))
    mask = np.random.default_rng(2).random(x.shape) > 0.2
    mask[:, 0] |= ~mask.any(axis=1)
    data = jaxem.Data(jnp.asarray(np.where(mask, x, np.nan)), mask=jnp.asarray(mask))
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), k).specialize(data).calibrate(data)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.compress(a)[0])(model, data))
    return lambda: _step(model, params, data), _products(n, _size(d, False), k)


@functools.partial(jax.jit, static_argnames="steps")
def _two_scans(potentials, transition, steps):
    """The normalized recursions of a hidden Markov model both ways, [T, ..., K], so many times over."""

    def forward(carry, potential):
        now = jnp.matmul(carry, transition, precision=_HIGHEST) * potential
        now = now / jnp.sum(now, axis=-1, keepdims=True)
        return now, now

    def backward(carry, potential):
        now = jnp.matmul(carry * potential, transition.T, precision=_HIGHEST)
        now = now / jnp.sum(now, axis=-1, keepdims=True)
        return now, now

    def both(start, _):
        _, ahead = jax.lax.scan(forward, start, potentials)
        last, behind = jax.lax.scan(backward, jnp.ones_like(start), potentials, reverse=True)
        return start + 1e-9 * last, jnp.sum(ahead * behind)

    start = jnp.full(potentials.shape[1:], 1 / potentials.shape[-1], potentials.dtype)
    return jax.lax.scan(both, start, length=steps)


def _chain(count, length, d, k, spread, steps=5):
    """A fit of some iterations, as the loop of `jaxem.fit` runs it, beside as many pairs of scans with the same carry."""
    arrays = problems.sequences(0, count, length, d, k, spread=spread)
    params = jaxem.LatentParams(
        jaxem.MarkovChainParams(jnp.asarray(arrays["initial"]), jnp.asarray(arrays["transition"])),
        jaxem.GaussianParams(jnp.asarray(arrays["means"]), jnp.asarray(arrays["covariances"])),
    )
    x = jnp.asarray(arrays["x"])
    model = jaxem.HMM(jaxem.Gaussian(jaxem.Full()), k).calibrate(x)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, x))
    control = jaxem.Control(jaxem.Never(), max_steps=steps - 1)  # the last evaluation is an E-step too
    program = jax.jit(lambda params, data: jaxem.run(model, params, data, control=control))
    _check_steps(program(params, data).steps, steps - 1)
    shape = (length, k) if count == 1 else (length, count, k)
    potentials = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32))
    transition = jnp.asarray(arrays["transition"])
    return lambda: program(params, data), lambda: _two_scans(potentials, transition, steps)


@functools.partial(jax.jit, static_argnames="steps")
def _plain_factors(second, loadings, noise, steps):
    """EM for factor analysis on the second moments [D, D], in its shortest form."""

    def step(carry, _):
        loadings, noise = carry
        scaled = loadings / noise[:, None]
        posterior = jnp.linalg.inv(jnp.eye(loadings.shape[1]) + scaled.T @ loadings)
        cross = second @ scaled @ posterior
        inner = posterior + posterior @ scaled.T @ cross
        loadings = jnp.linalg.solve(inner, cross.T).T
        return (loadings, jnp.diagonal(second) - jnp.sum(loadings * cross, axis=1)), None

    return jax.lax.scan(step, (loadings, noise), length=steps)[0]


def _factors(n, d, size, steps=50):
    """So many steps on the moments of the data, beside the same steps by hand."""
    x = jnp.asarray(problems.factors(0, n, d, size)["x"])
    model = jaxem.FactorAnalysis(size).calibrate(x)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.compress(a)[0])(model, x))
    params = jax.jit(lambda m, k, a: m.init(k, a))(model, jax.random.key(0), x)
    program = jax.jit(lambda p, a: jaxem.run(model, p, a, control=jaxem.Control(jaxem.Never(), max_steps=steps)))
    _check_steps(program(params, data).steps, steps)
    rng = np.random.default_rng(0)
    second = jnp.asarray(np.cov(np.asarray(x), rowvar=False).astype(np.float32))
    loadings, noise = jnp.asarray(rng.normal(size=(d, size)).astype(np.float32)), jnp.ones(d)
    return lambda: program(params, data), lambda: _plain_factors(second, loadings, noise, steps)


def _starting(arrays):
    return jaxem.LatentParams(
        jaxem.CategoricalParams(jnp.asarray(arrays["weights"])),
        jaxem.GaussianParams(jnp.asarray(arrays["means"]), jnp.asarray(arrays["covariances"])),
    )


_climb_starts = jax.jit(jax.vmap(plain_em.climb, (0, None, None, None)))
_climb_sets = jax.jit(jax.vmap(plain_em.climb, (0, 0, None, None)))


def _plain(arrays):
    return tuple(jnp.asarray(arrays[name]) for name in ("weights", "means", "covariances"))


def _starts(n, d, k, count, tol=1e-4):
    """`jaxem.fit` from given starts to convergence, checks and results in, beside plain EM vmapped over the starts."""
    x = problems.mixture(2, n, d, k, spread=2.0)
    arrays = problems.starts(3, x, k, count)
    params, plain, rows = _starting(arrays), _plain(arrays), jnp.asarray(x)
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), k)
    rule = {"stopping": jaxem.AbsoluteGain(tol * n), "min_steps": 0, "on_failure": "ignore", "trace_size": 0}

    def ours():
        return jaxem.fit(model, rows, starts=params, num_starts=count, **rule).params

    return ours, lambda: _climb_starts(plain, rows, tol, 1000)


def _batch(sets, n, d, k, steps=20):
    """`jaxem.fit_batch` of so many steps, beside plain EM vmapped over the data sets."""
    arrays = problems.many(4, sets, n, d, k, spread=3.0)
    params, plain = jax.tree.map(lambda a: a[:, None], _starting(arrays)), _plain(arrays)
    rows, model = jnp.asarray(arrays["x"]), jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), k)
    rule = {"stopping": jaxem.Never(), "max_steps": steps, "on_failure": "ignore"}

    def ours():
        return jaxem.fit_batch(model, rows, starts=params, **rule)

    _check_steps(ours().starts.steps, steps)
    # A tolerance far below zero is never met.
    return lambda: ours().params, lambda: _climb_sets(plain, rows, -1e9, steps)


def _gradient(n, d, k, steps=40):
    """The gradient of a fit in a prior's strength, compiled, beside as many steps of plain EM, forward."""
    x = problems.mixture(5, n, d, k, spread=3.0)
    arrays = problems.starts(6, x, k, 1)
    params, plain, rows = _given(arrays), tuple(a[0] for a in _plain(arrays)), jnp.asarray(x)
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), k).calibrate(rows)
    control = jaxem.Control(jaxem.ParameterChange(1e-4), max_steps=1000)

    def total(strength):
        prior = jaxem.WithPrior(model, strength).calibrate(rows)
        fitted = jaxem.run(prior, params, rows, control=control)
        return jnp.sum(fitted.params.likelihood.mean)

    slope = jax.jit(jax.grad(total))
    climb = jax.jit(plain_em.climb)
    return lambda: slope(1.0), lambda: climb(plain, rows, -1e9, steps)


SPEEDS = {
    "gmm_full_kept": lambda: _mixture(50_000, 16, 16),
    "gmm_full_chunked": lambda: _mixture(50_000, 16, 16, chunked=True),
    "gmm_full_few": lambda: _mixture(200_000, 4, 2),
    "gmm_diagonal_kept": lambda: _mixture(100_000, 16, 64, diagonal=True),
    "gmm_diagonal_chunked": lambda: _mixture(1_000_000, 16, 64, diagonal=True, chunked=True),
    "gmm_diagonal_many": lambda: _mixture(5_000, 8, 512, diagonal=True),
    "student_t": lambda: _student_t(50_000, 8, 8),
    "latent_classes": lambda: _classes(200_000, 10, 4),
    "missing_cells": lambda: _missing(20_000, 6, 4),
    "hmm_long": lambda: _chain(1, 100_000, 1, 4, 3.0),
    "hmm_wide": lambda: _chain(1, 20_000, 1, 32, 20.0),
    "hmm_short": lambda: _chain(500, 100, 2, 8, 3.0),
    "factor_analysis": lambda: _factors(20_000, 20, 4),
    "starts": lambda: _starts(2_000, 4, 5, 32),
    "batch": lambda: _batch(300, 200, 2, 3),
    "gradient": lambda: _gradient(2_000, 2, 2),
}


def _timed(call, times):
    begin = time.perf_counter()
    for _ in range(times):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / times


def _times(call):
    """How often to call for a measurement that is long enough; compiled and warm afterwards."""
    jax.block_until_ready(call())
    return max(1, min(500, math.ceil(_LEAST_SECONDS / _timed(call, 2))))


def speed(arrays, options):
    """One measure of `SPEEDS`; a repetition is both sides once, the kernel first and last in turn."""
    ours, kernel = SPEEDS[options["name"]]()
    times = {"ours": _times(ours), "kernel": _times(kernel)}

    def run():
        seconds = _timed(ours, times["ours"])
        return {"seconds": seconds, "kernel_seconds": _timed(kernel, times["kernel"])}

    return {"times": times}, run
