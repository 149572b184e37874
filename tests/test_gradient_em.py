"""Gradient EM: the gradient is that of the likelihood, and optax optimizers climb it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import GradientEM, Status

_RNG = np.random.default_rng(0)
X = np.concatenate([_RNG.poisson([1.0, 6.0], (50, 2)), _RNG.poisson([7.0, 2.0], (40, 2))]).astype(float)
MODEL = jaxem.Mixture(jaxem.Poisson(), 2)
KEY = jax.random.key(3)


def problem(model=MODEL):
    x = jnp.asarray(X)
    model = model.calibrate(x)
    return model, model.init(jax.random.key(1), x), x


@pytest.mark.parametrize("prior", [False, True])
def test_one_step_is_the_gradient(float64, prior):
    model, params, x = problem(jaxem.WithPrior(MODEL, 2.0) if prior else MODEL)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0, 2, len(X)))
    free = model.to_free(params)

    def objective(free):
        moved = model.from_free(free)
        return (model.e_step(moved, x, weights).log_likelihood + model.log_prior(moved)) / jnp.sum(weights)

    expected = jax.tree.map(lambda v, g: v + 0.5 * g, free, jax.jit(jax.grad(objective))(free))
    algorithm = GradientEM(optax.sgd(0.5))
    state, info = algorithm.step(model, algorithm.init(model, params, x, weights), x, weights)
    chex.assert_trees_all_close(model.to_free(state.params), expected, rtol=1e-10)
    assert float(info.objective) == pytest.approx(float(objective(free) * jnp.sum(weights)), rel=1e-12)


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.lbfgs()], ids=["adam", "lbfgs"])
def test_the_optimum_of_em(float64, optimizer):
    _, params, x = problem()
    em = jaxem.fit(MODEL, x, params=params, tol=1e-11)
    fitted = jaxem.fit(MODEL, x, params=params, algorithm=GradientEM(optimizer), tol=1e-9)
    assert fitted.status == Status.CONVERGED
    assert fitted.objective == pytest.approx(em.objective, abs=1e-6 * len(X))


def test_mini_batches(float64):
    """Steps of Adam keep their size, and so does the noise: a hundredth of what a parameter is worth."""
    _, params, x = problem()
    em = jaxem.fit(MODEL, x, params=params, tol=1e-11)
    algorithm = GradientEM(optax.adam(optax.exponential_decay(0.1, 10, 0.8)), 20, KEY)
    fitted = jaxem.fit(MODEL, x, params=params, algorithm=algorithm, tol=1e-6)
    assert fitted.status == Status.CONVERGED
    assert em.objective - 0.1 < fitted.objective <= em.objective + 1e-9
    exact = MODEL.e_step(fitted.params, x).log_likelihood
    assert fitted.objective == pytest.approx(float(exact), rel=1e-12)


def test_frozen_leaves_stay(float64):
    _, params, x = problem()
    model = jaxem.Frozen(MODEL, ["rate"])
    algorithm = GradientEM(optax.adamw(0.1, weight_decay=0.1))
    state = algorithm.init(model, params, x, None)
    step = jax.jit(lambda s: algorithm.step(model, s, x, None)[0])
    moved = step(step(state)).params
    np.testing.assert_array_equal(moved.likelihood.rate, params.likelihood.rate)
    assert not np.allclose(moved.latent.weights, params.latent.weights)
    with pytest.raises(jaxem.UnsupportedError, match="components of rate"):
        algorithm.init(jaxem.Frozen(MODEL, {"rate": [True, False]}), params, x, None)


def test_lanes(float64):
    _, params, x = problem()
    starts = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), params)
    options = {"algorithm": GradientEM(optax.adam(0.1), 30, KEY), "control": jaxem.Control(jaxem.Never(), 5)}
    lanes = jax.jit(lambda p: jaxem.run_lanes(MODEL, p, x, **options))(starts)
    alone = jax.jit(lambda p: jaxem.run(MODEL, p, x, **options))(jax.tree.map(lambda a: a[1], starts))
    np.testing.assert_allclose(lanes.objective[1], alone.objective, rtol=1e-10)


def test_a_model_without_q_is_named():
    @jaxem.pytree
    class Plain(jaxem.Model):
        def e_step(self, params, data, weights=None):
            return MODEL.e_step(params, data, weights)

        def to_free(self, params):
            return MODEL.to_free(params)

        def from_free(self, free):
            return MODEL.from_free(free)

    _, params, x = problem()
    with pytest.raises(jaxem.UnsupportedError, match="Plain does not define q"):
        jaxem.fit(Plain(), x, params=params, algorithm=GradientEM(optax.sgd(0.1)))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GradientEM("adam"), "optax"),
        (lambda: GradientEM(optax.sgd(0.1), 20), "no default"),
        (lambda: GradientEM(optax.sgd(0.1), key=KEY), "batch_size"),
        (lambda: GradientEM(optax.sgd(0.1), -1, KEY), "batch_size"),
    ],
)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
