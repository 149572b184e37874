"""Derivatives through a fit: both solvers against closed forms, second derivatives, and the size of their programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

RNG = np.random.default_rng(0)
TIGHT = jaxem.Control(jaxem.ParameterChange(1e-14), 2000)


@pytest.mark.parametrize("size", [3, 9, 70], ids=["one batch of columns", "an uneven number of columns", "by products"])
def test_closed_form(float64, size):
    """p ← A p + (I − A) d², whose fixed point is d²; the log-likelihood has a slope there that the prior's balances."""
    direction = RNG.normal(size=size)
    matrix = 0.3 * np.eye(size) + 0.5 * np.outer(direction, direction) / (direction @ direction)
    slope, d, along = (jnp.asarray(RNG.uniform(0.5, 1.5, size)) for _ in range(3))
    model = jaxem.FixedPoint(
        lambda p, d: {"p": d**2 + matrix @ (p["p"] - d**2)},
        lambda p, d: -0.5 * jnp.sum((p["p"] - d**2) ** 2) - slope @ p["p"],
        log_prior=lambda p: slope @ p["p"],
    )

    def results(d):
        run = jaxem.run(model, {"p": jnp.ones(size)}, d, control=TIGHT)
        return jnp.stack([slope @ run.params["p"], run.log_likelihood, run.objective])

    rows, column = jax.jit(lambda d: (jax.jacrev(results)(d), jax.jvp(results, (d,), (along,))[1]))(d)
    expected = jnp.stack([2 * slope * d, -2 * slope * d, 0 * d])
    np.testing.assert_allclose(rows, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(column, expected @ along, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("second", [jax.jacfwd, jax.jacrev], ids=["forward over reverse", "reverse over reverse"])
def test_second_derivatives(float64, second):
    """Of the genetic linkage fit in one of its counts, against the root of its quadratic score equation."""

    def step(params, counts):
        extra = counts[0] * params["t"] / (2 + params["t"])
        return {"t": (extra + counts[3]) / (extra + counts[1] + counts[2] + counts[3])}

    def log_likelihood(params, counts):
        t = params["t"]
        return jnp.sum(counts * jnp.log(jnp.array([2 + t, 1 - t, 1 - t, t])))

    model = jaxem.FixedPoint(step, log_likelihood)
    counts = jnp.array([125.0, 18.0, 20.0, 34.0])

    def fitted(first):
        own = counts.at[0].set(first)
        run = jaxem.run(model, {"t": jnp.array(0.5)}, own, control=TIGHT)
        return jnp.stack([run.params["t"], run.objective])

    def exact(first):
        a, b, c, d = counts.at[0].set(first)
        n = a + b + c + d
        linear = a - 2 * (b + c) - d
        t = (linear + jnp.sqrt(linear**2 + 8 * n * d)) / (2 * n)
        return jnp.stack([t, log_likelihood({"t": t}, jnp.stack([a, b, c, d]))])

    np.testing.assert_allclose(
        jax.jit(second(jax.jacrev(fitted)))(125.0), jax.jacfwd(jax.jacfwd(exact))(125.0), rtol=1e-8
    )


def test_size_of_the_program():
    """Reverse mode through a fit holds one more copy of the step, linearized, not one for each of its derivatives."""
    x = jnp.asarray(RNG.normal(size=(20, 2)).astype(np.float32))
    model = jaxem.Mixture(jaxem.Gaussian(), 2).calibrate(x)
    start = jax.eval_shape(model.init, jax.random.key(0), x)

    def mean(x, start):
        return jnp.sum(jaxem.run(model, start, x).params.likelihood.mean)

    def operations(f):
        return len(re.findall(r"^\s+%\S+ = ", jax.jit(f).lower(x, start).as_text(), re.MULTILINE))

    assert operations(jax.grad(mean)) <= 3.5 * operations(mean)


def test_no_tangent_no_derivative(float64):
    """The start has no influence: gradients by it are 0, also where nothing else has a tangent."""
    model = jaxem.FixedPoint(lambda p, d: {"t": 0.5 * (p["t"] + d[0])}, lambda p, d: -((p["t"] - d[0]) ** 2))
    data = jnp.array([2.0])
    gradient = jax.grad(lambda t: jaxem.run(model, {"t": t}, data, control=TIGHT).params["t"])(jnp.array(1.0))
    assert gradient == 0
