"""Single steps and scores against independent implementations: scikit-learn, scipy.stats, sums by hand."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from data.cases import iris
from sklearn.exceptions import ConvergenceWarning as PeerWarning
from sklearn.mixture import GaussianMixture

import jaxem
from jaxem import CategoricalParams, GaussianParams, LatentParams

STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diag": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
K = 3


@functools.cache
def start(name):
    """Parameters that are nobody's optimum: three rows as means, a covariance wider than the parts."""
    x = iris()
    weights, means = np.array([0.2, 0.5, 0.3]), x[[0, 60, 120]]
    whole = np.cov(x.T)
    spread = np.array([0.3, 0.5, 0.8])
    covariance = {
        "full": spread[:, None, None] * whole,
        "tied": 0.5 * whole,
        "diag": spread[:, None] * np.diag(whole),
        "spherical": spread,
    }[name]
    return weights, means, covariance


def peer(name, x, steps, tol=0.0):
    """scikit-learn after so many steps from the same parameters."""
    weights, means, covariance = start(name)
    precision = np.linalg.inv(covariance) if name in ("full", "tied") else 1 / covariance
    mixture = GaussianMixture(
        K,
        covariance_type=name,
        tol=tol,
        reg_covar=0.0,
        max_iter=steps,
        weights_init=weights,
        means_init=means,
        precisions_init=precision,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeerWarning)
        return mixture.fit(x)


def params_of(name):
    weights, means, covariance = (jnp.asarray(a) for a in start(name))
    return LatentParams(CategoricalParams(weights), GaussianParams(means, covariance))


@jax.jit
def one_step(model, params, x, weights):
    expected = model.e_step(params, x, weights)
    return expected, model.m_step(params, expected.stats)


@jax.jit
def scores(model, params, x):
    return model.log_likelihood(params, x), model.posterior(params, x)


@pytest.mark.parametrize("name", STRUCTURES)
class TestScikitLearn:
    def check(self, ours, theirs, tol):
        np.testing.assert_allclose(ours.latent.weights, theirs.weights_, rtol=tol)
        np.testing.assert_allclose(ours.likelihood.mean, theirs.means_, rtol=tol)
        np.testing.assert_allclose(ours.likelihood.covariance, theirs.covariances_, rtol=tol, atol=tol)

    # Weight 0 counts as well: repeating a row no times leaves it out.
    @pytest.mark.parametrize("counts", [None, np.arange(150) % 4], ids=["plain", "weights"])
    def test_one_step_equals_theirs(self, float64, name, counts):
        x = iris()
        model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), K).calibrate(jnp.asarray(x))
        weights = np.ones(len(x)) if counts is None else counts.astype(float)
        expected, updated = one_step(model, params_of(name), jnp.asarray(x), jnp.asarray(weights))
        theirs = peer(name, x if counts is None else np.repeat(x, counts, axis=0), 1)
        self.check(updated, theirs, 1e-9)
        np.testing.assert_allclose(expected.log_likelihood / expected.weight, theirs.lower_bound_, rtol=1e-11)
        assert expected.weight == weights.sum()

    def test_scores_and_responsibilities_equal_theirs(self, float64, name):
        x = iris()
        model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), K)
        theirs = peer(name, x, 3)
        parts = (theirs.weights_, theirs.means_, theirs.covariances_)
        weights, means, covariance = (jnp.asarray(a) for a in parts)
        params = LatentParams(CategoricalParams(weights), GaussianParams(means, covariance))
        log_likelihood, posterior = scores(model, params, jnp.asarray(x))
        np.testing.assert_allclose(log_likelihood, theirs.score_samples(x), rtol=1e-9)
        np.testing.assert_allclose(posterior, theirs.predict_proba(x), atol=1e-9)
        np.testing.assert_array_equal(model.predict(params, jnp.asarray(x)), theirs.predict(x))

    def test_optimum_and_criteria_equal_theirs(self, float64, name):
        x = iris()
        model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), K)
        result = jaxem.fit(model, x, params=params_of(name), tol=1e-13, max_steps=3000, trace_size=0)
        theirs = peer(name, x, 3000, tol=1e-13)
        assert result.converged
        np.testing.assert_allclose(result.log_likelihood / len(x), theirs.lower_bound_, rtol=1e-9)
        # 1e-13 per row is where both stop: flat directions are known to the root of it.
        self.check(result.params, theirs, 1e-5)
        assert result.num_free_parameters == theirs._n_parameters()
        np.testing.assert_allclose(result.aic, theirs.aic(x), rtol=1e-9)
        np.testing.assert_allclose(result.bic, theirs.bic(x), rtol=1e-9)


class TestPoisson:
    def log_prob(self, x, rate):
        """log p(x | rate) of every count under every rate, with the centre taken from the counts."""
        family = jaxem.Poisson().calibrate(jaxem.Data(x), None)
        return family.log_prob(jaxem.PoissonParams(rate), family.statistics(jaxem.Data(x)))

    def test_log_prob_equals_scipy(self, float64):
        x = np.concatenate([np.arange(40.0), [100, 1e3, 1e5, 1e7]])
        rate = np.array([1e-3, 0.5, 7.0, 16.5, 300.0, 1.01e5, 9.99e6])
        ours = self.log_prob(jnp.asarray(x)[:, None], jnp.asarray(rate)[:, None])
        expected = scipy.stats.poisson.logpmf(x[:, None], rate)
        # x log λ, λ and log x! reach 1e8 and cancel, in scipy too.
        np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-7)

    def test_small_counts_equal_scipy_to_rounding(self, float64):
        x, rate = np.arange(30.0), np.array([0.3, 2.0, 15.0, 22.0])
        ours = self.log_prob(jnp.asarray(x)[:, None], jnp.asarray(rate)[:, None])
        np.testing.assert_allclose(ours, scipy.stats.poisson.logpmf(x[:, None], rate), rtol=1e-12, atol=5e-12)

    def test_counts_a_few_percent_off_the_centre_in_float64(self, float64):
        """Where the deviance's series is longest: log p is −1e4, and scipy's own rounding of log x! is 3e-8."""
        x, rate = np.array([1e7, 1.02e7, 1.07e7, 1.09e7]), np.array([1.01e7, 1.08e7])
        ours = self.log_prob(jnp.asarray(x)[:, None], jnp.asarray(rate)[:, None])
        np.testing.assert_allclose(ours, scipy.stats.poisson.logpmf(x[:, None], rate), rtol=1e-10, atol=2e-7)

    @pytest.mark.parametrize("size", [30, 1_000, 100_000, 10_000_000])
    def test_big_counts_in_float32(self, float32, size):
        """Counts and rates within five standard deviations: log p is −20 to −4 where log x! is 1.5e8."""
        spread = np.linspace(-5, 5, 21) * np.sqrt(size)
        x = np.round(size + spread).astype(np.float32)
        rate = (size + 0.4 * spread).astype(np.float32)
        ours = self.log_prob(jnp.asarray(x)[:, None], jnp.asarray(rate)[:, None])
        expected = scipy.stats.poisson.logpmf(x.astype(float)[:, None], rate.astype(float))
        # About a dozen roundings of terms that are no larger than 25.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-5)

    def test_features_are_independent(self, float64):
        """Two columns: the log-probabilities add."""
        x, rate = np.array([[0.0, 3], [2, 5], [7, 1]]), np.array([[1.5, 4.0], [3.0, 0.2]])
        ours = self.log_prob(jnp.asarray(x), jnp.asarray(rate))
        expected = scipy.stats.poisson.logpmf(x[:, None, :], rate).sum(axis=-1)
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


class TestSampling:
    """Moments of 40 000 draws within five standard errors."""

    N = 40_000

    def within(self, ours, expected, standard_error):
        assert np.max(np.abs(np.asarray(ours) - expected) / standard_error) < 5

    def shares(self, z, weights):
        share = np.bincount(np.asarray(z), minlength=len(weights)) / self.N
        self.within(share, weights, np.sqrt(weights * (1 - weights) / self.N))

    @pytest.mark.parametrize("name", STRUCTURES)
    def test_gaussian(self, float64, name):
        model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), K)
        weights, means, covariance = start(name)
        x, z = model.sample(jax.random.key(7), params_of(name), self.N)
        self.shares(z, weights)
        dense = {
            "full": lambda k: covariance[k],
            "tied": lambda k: covariance,
            "diag": lambda k: np.diag(covariance[k]),
            "spherical": lambda k: covariance[k] * np.eye(4),
        }[name]
        for k in range(K):
            rows = np.asarray(x)[np.asarray(z) == k]
            c = dense(k)
            self.within(rows.mean(axis=0), means[k], np.sqrt(np.diag(c) / len(rows)))
            variance = np.diag(c)
            self.within(np.cov(rows.T), c, np.sqrt((np.outer(variance, variance) + c**2) / len(rows)))

    def test_poisson(self, float64):
        weights, rate = np.array([0.3, 0.7]), np.array([[2.0, 30.0], [9.0, 0.5]])
        params = LatentParams(CategoricalParams(jnp.asarray(weights)), jaxem.PoissonParams(jnp.asarray(rate)))
        x, z = jaxem.Mixture(jaxem.Poisson(), 2).sample(jax.random.key(7), params, self.N)
        self.shares(z, weights)
        for k in range(2):
            rows = np.asarray(x)[np.asarray(z) == k]
            self.within(rows.mean(axis=0), rate[k], np.sqrt(rate[k] / len(rows)))
            # The fourth central moment of a Poisson is λ + 3λ².
            self.within(rows.var(axis=0), rate[k], np.sqrt((rate[k] + 2 * rate[k] ** 2) / len(rows)))


def test_icl_is_bic_plus_twice_the_entropy(float64):
    """Summed by hand from scikit-learn's responsibilities, plain and with weights as repeated rows."""
    x, counts = iris(), np.arange(150) % 3
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), K)
    for rows, weights in ((x, None), (np.repeat(x, counts, axis=0), counts.astype(float))):
        result = jaxem.fit(model, x, params=params_of("tied"), weights=weights, tol=1e-12, trace_size=0)
        theirs = peer("tied", rows, 3000, tol=1e-12)
        r = theirs.predict_proba(rows)
        entropy = -np.sum(scipy.special.xlogy(r, r))
        assert entropy > 1  # else the term is not tested
        np.testing.assert_allclose(
            jaxem.icl(result, jnp.asarray(x), weights), theirs.bic(rows) + 2 * entropy, rtol=1e-6
        )
