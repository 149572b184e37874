"""Hidden Markov models whose transitions depend on inputs, against sums over every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paths import every_path
from scipy.special import log_softmax, softmax
from scipy.stats import poisson
from sklearn.linear_model import LogisticRegression

import jaxem
from jaxem import Data

K, STEPS = 3, 5
LENGTHS = np.array([5, 1, 4, 0, 3])
RNG = np.random.default_rng(2)
INPUTS = RNG.normal(size=(5, STEPS, 2)) * [1.0, 5.0] + [0.0, 40.0]
X = RNG.poisson(5.0, size=(5, STEPS, 1)).astype(float)
INITIAL = np.array([0.5, 0.2, 0.3])
GATE = RNG.normal(size=(K, K, 3)) * [0.5, 1.0, 0.1]
GATE[..., 0] -= 40 * GATE[..., 2]
GATE[:, -1] = 0
RATES = np.array([[2.0], [5.0], [9.0]])
MODEL = jaxem.InputOutputHMM(jaxem.Poisson(), K)


def given():
    latent = jaxem.InputMarkovChainParams(jnp.array(INITIAL), jnp.array(GATE))
    return jaxem.LatentParams(latent, jaxem.PoissonParams(jnp.array(RATES)))


def paths():
    """Every sequence by itself; its transition out of a step has the inputs of the next one."""
    columns = np.concatenate([np.ones((5, STEPS, 1)), INPUTS], axis=-1)
    into = softmax(np.einsum("btp,ijp->btij", columns, GATE), axis=-1)
    out_of = np.roll(into, -1, axis=1)
    potentials = poisson.logpmf(X, RATES[:, 0])
    return [every_path(INITIAL, out_of[b, :t], potentials[b, :t]) for b, t in enumerate(LENGTHS)]


def flat():
    rows = np.concatenate([[b] * t for b, t in enumerate(LENGTHS)]).astype(int)
    steps = np.concatenate([np.arange(t) for t in LENGTHS]).astype(int)
    return Data(x=X[rows, steps], inputs=INPUTS[rows, steps], starts=steps == 0)


class TestAgainstAllPaths:
    def test_padded(self, float64):
        # What lies beyond a length is never read.
        beyond = np.arange(STEPS)[:, None] >= LENGTHS[:, None, None]
        data = Data(x=X, inputs=np.where(beyond, np.nan, INPUTS), lengths=LENGTHS)
        params, every = given(), paths()
        np.testing.assert_allclose(MODEL.log_likelihood(params, data), [p.log_normalizer for p in every], rtol=1e-11)
        posterior, best = MODEL.posterior(params, data), MODEL.predict(params, data)
        pairs = jaxem.pair_posterior(MODEL, params, data)
        for b, (t, p) in enumerate(zip(LENGTHS, every, strict=True)):
            np.testing.assert_allclose(posterior[b, :t], p.marginals, atol=1e-12)
            np.testing.assert_array_equal(best[b, :t], p.best)
            if t:
                np.testing.assert_allclose(pairs[b, : t - 1], p.pairs, atol=1e-12)
            assert np.all(np.asarray(pairs)[b, max(t - 1, 0) :] == 0)

    def test_flat(self, float64):
        params, data, every = given(), flat(), paths()
        total = np.sum(MODEL.log_likelihood(params, data))
        assert total == pytest.approx(sum(p.log_normalizer for p in every), rel=1e-12)
        np.testing.assert_allclose(
            MODEL.posterior(params, data), np.concatenate([p.marginals for p in every]), atol=1e-12
        )
        np.testing.assert_array_equal(MODEL.predict(params, data), np.concatenate([p.best for p in every]))

    def test_the_density_of_a_path(self, float64):
        params, latent = given(), MODEL.latent
        z = RNG.integers(0, K, (5, STEPS))
        data = Data(x=X, inputs=jnp.array(INPUTS), lengths=jnp.array(LENGTHS))
        columns = np.concatenate([np.ones((5, STEPS, 1)), INPUTS], axis=-1)
        log_into = log_softmax(np.einsum("btp,ijp->btij", columns, GATE), axis=-1)
        expected = [
            (np.log(INITIAL)[z[b, 0]] if t else 0) + sum(log_into[b, s, z[b, s - 1], z[b, s]] for s in range(1, t))
            for b, t in enumerate(LENGTHS)
        ]
        np.testing.assert_allclose(latent.log_prob(params.latent, jnp.array(z), data), expected, rtol=1e-11)


def test_padded_and_flat_sequences_are_fitted_alike(float64):
    padded = Data(x=X, inputs=INPUTS, lengths=LENGTHS)
    traces = []
    for data in (padded, flat()):
        fitted = jaxem.fit(
            MODEL, data, params=given(), stopping=jaxem.Never(), max_steps=15, trace_size=15, on_failure="ignore"
        )
        traces.append(np.asarray(fitted.starts.trace[0]))
    np.testing.assert_allclose(traces[0], traces[1], rtol=1e-9)
    assert np.diff(traces[0]).min() > -1e-9


def test_known_states_make_it_a_regression_for_each(float64):
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(40, 12, 1))
    z = np.zeros((40, 12), int)
    for t in range(1, 12):
        logits = np.stack([0.5 * inputs[:, t, 0], np.where(z[:, t - 1] == 0, 1.0, -0.5) * inputs[:, t, 0]], -1)
        z[:, t] = np.argmax(logits + rng.gumbel(size=(40, 2)), axis=-1)
    data = Data(x=rng.poisson(3.0 + z)[..., None].astype(float), inputs=inputs, labels=z)
    model = jaxem.InputOutputHMM(jaxem.Poisson(), 2)
    fitted = jaxem.fit(model, data, key=jax.random.key(0), tol=1e-15, max_steps=100)
    for i in range(2):
        left = z[:, :-1] == i
        peer = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky", max_iter=1000)
        peer.fit(inputs[:, 1:][left], z[:, 1:][left] == 0)
        np.testing.assert_allclose(
            fitted.params.latent.gate[i, 0], np.r_[peer.intercept_, peer.coef_[0]], rtol=1e-7, atol=1e-9
        )
    assert np.all(np.asarray(fitted.params.latent.gate[:, 1]) == 0)
    assert fitted.num_free_parameters == 1 + 2 * 2 + 2


def test_constant_inputs_make_it_a_hidden_markov_model(float64):
    rng = np.random.default_rng(4)
    x = rng.poisson(np.array([2.0, 9.0])[np.cumsum(rng.random((6, 30)) < 0.15, axis=1) % 2])[..., None] * 1.0
    options = {"key": jax.random.key(0), "tol": 1e-13, "max_steps": 3000}
    plain = jaxem.fit(jaxem.HMM(jaxem.Poisson(), 2), Data(x=x), **options)
    same = jaxem.fit(jaxem.InputOutputHMM(jaxem.Poisson(), 2), Data(x=x, inputs=np.full((6, 30, 1), 7.0)), **options)
    assert same.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-9)
    transition = softmax(np.asarray(same.params.latent.gate[..., 0]), axis=-1)
    np.testing.assert_allclose(
        np.sort(np.diag(transition)), np.sort(np.diag(plain.params.latent.transition)), rtol=1e-4
    )


class TestStates:
    def test_order_and_the_reference(self, float64):
        data, params = Data(x=X, inputs=INPUTS, lengths=LENGTHS), given()
        turned = MODEL.take_components(params, np.array([1, 2, 0]))
        assert np.all(np.asarray(turned.latent.gate[:, -1]) == 0)
        np.testing.assert_allclose(
            MODEL.posterior(turned, data), np.asarray(MODEL.posterior(params, data))[..., [1, 2, 0]], atol=1e-10
        )

    def test_an_empty_one_is_named(self, float64):
        latent = MODEL.calibrate(Data(x=X, inputs=INPUTS)).latent
        gate = jnp.array(GATE).at[:, 0].set(jnp.array([-80.0, 0.1, 0.0]))
        params = jaxem.InputMarkovChainParams(jnp.array([0.0, 0.5, 0.5]), gate)
        assert latent.empty(params, jnp.array(25.0)).tolist() == [True, False, False]
        assert not np.any(latent.empty(given().latent, jnp.array(25.0)))

    def test_a_number_of_them_that_is_none(self):
        with pytest.raises(ValueError, match="num_components"):
            jaxem.InputOutputHMM(jaxem.Poisson(), 0)


def test_the_next_steps_have_no_inputs():
    data = Data(x=X, inputs=INPUTS, lengths=LENGTHS)
    with pytest.raises(jaxem.UnsupportedError, match="inputs"):
        jaxem.forecast(MODEL, given(), data)
