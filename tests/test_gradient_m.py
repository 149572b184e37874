"""M-steps by derivatives: the optimum of the closed form, never a fall, priors that are not conjugate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(np.repeat([[6.0, 1.0], [2.0, 9.0]], [20, 25], axis=0)).astype(float)
MIXTURE = jaxem.Mixture(jaxem.Poisson(), 2)
START = jaxem.LatentParams(
    jaxem.CategoricalParams(np.array([0.4, 0.6])), jaxem.PoissonParams(np.array([[5.0, 2.0], [3.0, 6.0]]))
)


@pytest.fixture(autouse=True)
def double(float64):
    return float64


def fit(model, **options):
    return jaxem.fit(model, COUNTS, params=START, **({"tol": 1e-9, "max_steps": 3000} | options))


@pytest.mark.parametrize(
    "method",
    [(None, None), (jaxem.Newton(3), None), (optax.lbfgs(), 5), (optax.adam(0.05), 20), (optax.sgd(10.0), 2)],
    ids=["default", "newton", "lbfgs", "adam", "much too long steps"],
)
def test_the_optimum_of_the_closed_form(method):
    result = fit(jaxem.GradientM(MIXTURE, *method))
    assert np.all(np.diff(result.trace) >= -1e-9)
    # Adam's steps are of one size: none is short enough at the end, and the best of them is kept.
    accuracy = {20: 1e-4, 2: 1.0}.get(method[1], 1e-7)
    assert result.log_likelihood == pytest.approx(fit(MIXTURE).log_likelihood, rel=accuracy)


def test_a_prior_that_is_not_conjugate():
    """At the MAP the gradient of log-likelihood + log-prior is 0; the prior is part of the objective."""

    def log_prior(params):
        return -jnp.sum(jnp.abs(params.likelihood.rate - 4.0) ** 1.5)

    model = jaxem.GradientM(MIXTURE, log_prior=log_prior)
    result = fit(model, tol=1e-13)
    assert result.objective == pytest.approx(result.log_likelihood + float(log_prior(result.params)), rel=1e-12)

    def objective(rate):
        params = jaxem.LatentParams(result.params.latent, jaxem.PoissonParams(rate))
        return jnp.sum(MIXTURE.log_likelihood(params, COUNTS)) + log_prior(params)

    np.testing.assert_allclose(jax.grad(objective)(jnp.asarray(result.params.likelihood.rate)), 0, atol=1e-4)


def test_leaves_that_the_closed_form_cannot_hold():
    family = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)
    model = jaxem.Frozen(jaxem.GradientM(family), ["mean"], {"mean": np.array([[1.0, 8.0], [6.0, 1.0]])})
    result = jaxem.fit(model, COUNTS, key=jax.random.key(0), tol=1e-9)
    np.testing.assert_array_equal(result.params.likelihood.mean, [[1.0, 8.0], [6.0, 1.0]])
    closed = jaxem.Frozen(family, ["mean"], {"mean": np.array([[1.0, 8.0], [6.0, 1.0]])})
    same = jaxem.fit(closed, COUNTS, key=jax.random.key(0), tol=1e-9)
    assert result.log_likelihood == pytest.approx(same.log_likelihood, rel=1e-7)


def test_what_is_refused():
    with pytest.raises(ValueError, match="GradientM holds a model"):
        jaxem.GradientM(jaxem.Poisson())
    with pytest.raises(ValueError, match="log_prior is a function"):
        jaxem.GradientM(MIXTURE, log_prior=1.0)
    with pytest.raises(ValueError, match="expected an optax optimizer"):
        jaxem.GradientM(MIXTURE, "adam")

    @jaxem.pytree
    class Bare(jaxem.Model):
        def e_step(self, params, data, weights=None):
            return jaxem.EStep(0.0, 0.0, 1.0)

    with pytest.raises(jaxem.UnsupportedError, match="Bare does not define q, which GradientM needs"):
        jaxem.GradientM(Bare())
