"""Gates: components whose probability depends on inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import poisson
from test_regression import CODES, INPUTS, N, softmax_peer

import jaxem
from jaxem import Data

COLUMNS = np.c_[np.ones(N), INPUTS]
Z = CODES[:, 0].astype(int)
RNG = np.random.default_rng(1)
X = RNG.poisson(np.array([2.0, 6.0, 15.0])[Z])[:, None].astype(float)
GATE = np.array([[-1.0, 0.8, 0.0], [9.0, -0.5, -0.03], [0.0, 0.0, 0.0]])
RATES = np.array([[2.0], [5.0], [14.0]])
EXPERTS = jaxem.MixtureOfExperts(jaxem.Poisson(), 3)


def joint():
    return log_softmax(COLUMNS @ GATE.T, axis=1) + poisson.logpmf(X, RATES[:, 0])


def given():
    return jaxem.LatentParams(jaxem.GatedParams(jnp.array(GATE)), jaxem.PoissonParams(jnp.array(RATES)))


def test_likelihood_and_posterior_are_the_formulas(float64):
    data = Data(x=X, inputs=INPUTS)
    params = given()
    evidence = logsumexp(joint(), axis=1)
    np.testing.assert_allclose(EXPERTS.log_likelihood(params, data), evidence, rtol=1e-11)
    np.testing.assert_allclose(
        EXPERTS.posterior(params, data), np.exp(joint() - evidence[:, None]), rtol=1e-9, atol=1e-300
    )
    np.testing.assert_array_equal(EXPERTS.predict(params, data), np.argmax(joint(), axis=1))


@pytest.mark.parametrize("weights", [None, RNG.integers(0, 4, N).astype(float)])
def test_known_components_make_it_a_multinomial_regression(float64, weights):
    fitted = jaxem.fit(
        EXPERTS,
        Data(x=X, inputs=INPUTS, labels=Z),
        weights=weights,
        key=jax.random.key(0),
        tol=1e-15,
        max_steps=200,
    )
    np.testing.assert_allclose(fitted.params.latent.gate, softmax_peer(CODES[:, 0], weights), rtol=1e-7)
    assert np.all(np.asarray(fitted.params.latent.gate[-1]) == 0)
    assert fitted.num_free_parameters == 2 * 3 + 3


def test_a_gate_without_inputs_that_matter_is_a_mixture(float64):
    """Constant inputs: only the intercepts remain."""
    options = {"key": jax.random.key(0), "tol": 1e-13, "max_steps": 5000}
    gated = jaxem.fit(EXPERTS, Data(x=X, inputs=np.full((N, 1), 3.0)), **options)
    plain = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 3), X, **options)
    assert gated.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-9)
    weights = np.sort(np.exp(log_softmax(np.asarray(gated.params.latent.gate[:, 0]))))
    np.testing.assert_allclose(weights, np.sort(plain.params.latent.weights), rtol=1e-4)
    assert np.all(np.asarray(gated.params.latent.gate[:, 1]) == 0)


def test_experts_whose_inputs_decide_stay_finite(dtype):
    """Two lines, one left of 0 and one right of it, without noise in which is which."""
    rng = np.random.default_rng(0)
    inputs = np.concatenate([rng.uniform(-2, -0.3, 60), rng.uniform(0.3, 2, 60)])[:, None]
    x = np.where(inputs < 0, 3 + inputs, -2 * inputs) + 0.1 * rng.normal(size=(120, 1))
    fitted = jaxem.fit(
        jaxem.MixtureOfExperts(jaxem.LinearRegression(), 2),
        Data(x=x.astype(dtype), inputs=inputs.astype(dtype)),
        key=jax.random.key(0),
        num_starts=8,
        stopping=jaxem.Never(),
        max_steps=300,
        on_failure="ignore",
    )
    assert np.all(np.isfinite(fitted.params.latent.gate))
    slopes = np.sort(np.asarray(fitted.params.likelihood.coefficients[:, 0, 1]))
    np.testing.assert_allclose(slopes, [-2, 1], atol=0.05)


def test_one_component_needs_no_gate(float64):
    fitted = jaxem.fit(jaxem.MixtureOfExperts(jaxem.Poisson(), 1), Data(x=X, inputs=INPUTS), key=jax.random.key(0))
    assert fitted.log_likelihood == pytest.approx(poisson.logpmf(X, X.mean()).sum(), rel=1e-10)
    assert fitted.params.latent.gate.shape == (1, 3)


class TestComponents:
    def test_order_and_the_reference(self, float64):
        data = Data(x=X, inputs=INPUTS)
        params = given()
        turned = EXPERTS.take_components(params, np.array([2, 0, 1]))
        assert np.all(np.asarray(turned.latent.gate[-1]) == 0)
        np.testing.assert_allclose(
            EXPERTS.posterior(turned, data), np.asarray(EXPERTS.posterior(params, data))[:, [2, 0, 1]], rtol=1e-9
        )

    def test_an_empty_one_is_named(self, float64):
        latent = jaxem.latents.Gated(3).calibrate(Data(x=jnp.array(X), inputs=jnp.array(INPUTS)), None)
        gate = jnp.array(GATE).at[1].set(jnp.array([-60.0, 0.5, 0.0]))
        assert latent.empty(jaxem.GatedParams(gate), jnp.array(80.0)).tolist() == [False, True, False]
        assert not np.any(latent.empty(jaxem.GatedParams(jnp.array(GATE)), jnp.array(80.0)))

    def test_numbers_of_them_are_compared(self, float64):
        data = Data(x=X, inputs=INPUTS)
        models = [jaxem.MixtureOfExperts(jaxem.Poisson(), k) for k in (1, 2)]
        selection = jaxem.select(models, data, key=jax.random.key(0), num_starts=4)
        assert selection.best.num_free_parameters == 3 + 2
        with pytest.raises(ValueError, match="num_components"):
            jaxem.latents.Gated(0)


def test_hard_assignments(float64):
    """Classification EM moves the gate too: its objective is max_z log p(x, z)."""
    model = jaxem.LatentModel(jaxem.Hard(jaxem.latents.Gated(3)), jaxem.Poisson())
    fitted = jaxem.fit(model, Data(x=X, inputs=INPUTS), params=given(), tol=1e-12, trace_size=50)
    trace = np.asarray(fitted.starts.trace[0])
    trace = trace[~np.isnan(trace)]
    assert trace[0] == pytest.approx(joint().max(axis=1).sum(), rel=1e-10)
    assert len(trace) > 3
    assert np.diff(trace).min() > -1e-9


def test_inputs_are_needed():
    with pytest.raises(ValueError, match="inputs"):
        jaxem.fit(EXPERTS, X, key=jax.random.key(0))
