"""Sums over every value of z: the E-step of a mixture and its bound. (Chains have their own, test_hmm.py.)"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxem
from jaxem import CategoricalParams, GaussianParams, LatentParams

N, D = 5, 2
STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diagonal": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
FAMILIES = (*STRUCTURES, "poisson")
E_STEP = jax.jit(lambda model, params, x, weights: model.e_step(params, x, weights))
ELBO = jax.jit(jaxem.elbo)


def second_order(name, x):
    """The second-order statistics of the structures, written out."""
    if name in ("full", "tied"):
        return np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], axis=1)
    return x**2 if name == "diagonal" else np.sum(x**2, axis=1, keepdims=True)


@functools.cache
def problem(name, k, n=N):
    """(model, params, x, log p(x_n | k) in numpy, T(x_n) in numpy). The model keeps its centre at 0 and scale at 1."""
    rng = np.random.default_rng(k)
    weights = rng.dirichlet(np.ones(k))
    if name == "poisson":
        x = rng.poisson(3.0, (n, D)).astype(float)
        rate = rng.uniform(0.5, 6, (k, D))
        terms = scipy.stats.poisson.logpmf(x[:, None], rate)
        # With the centre at rate 1: T = (1, x − 1, log p(x | 1)).
        base = scipy.stats.poisson.logpmf(x, 1.0).sum(axis=1, keepdims=True)
        model = jaxem.Mixture(jaxem.Poisson(), k)
        return model, (weights, rate), x, terms.sum(axis=2), np.concatenate([np.ones((n, 1)), x - 1, base], axis=1)
    x, mean = rng.normal(size=(n, D)), rng.normal(size=(k, D))
    root = rng.normal(size=(k, D, D)) + 1.5 * np.eye(D)
    dense = root @ np.swapaxes(root, 1, 2)
    if name == "tied":
        dense[:] = dense[0]
    elif name == "diagonal":
        dense *= np.eye(D)
    elif name == "spherical":
        dense = dense[:, :1, :1] * np.eye(D)
    covariance = {
        "full": lambda: dense,
        "tied": lambda: dense[0],
        "diagonal": lambda: np.stack([np.diag(c) for c in dense]),
        "spherical": lambda: dense[:, 0, 0],
    }[name]()
    terms = [scipy.stats.multivariate_normal(m, c).logpdf(x) for m, c in zip(mean, dense, strict=True)]
    statistics = np.concatenate([np.ones((n, 1)), x, second_order(name, x)], axis=1)
    model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), k)
    return model, (weights, mean, covariance), x, np.stack(terms, axis=1), statistics


def params_of(name, parts):
    weights, *rest = (jnp.asarray(a) for a in parts)
    likelihood = jaxem.PoissonParams(*rest) if name == "poisson" else GaussianParams(*rest)
    return LatentParams(CategoricalParams(weights), likelihood)


def table(stats):
    """The sums of T(x), [K, P], of the families' statistics."""
    return getattr(stats.likelihood, "table", stats.likelihood)


def enumerate_assignments(log_weights, terms, statistics):
    """Log-likelihood, expected counts and expected statistics by summing over all K^N assignments z."""
    n, k = terms.shape
    every = np.array(list(itertools.product(range(k), repeat=n)))
    joint = np.sum(log_weights[every] + terms[np.arange(n), every], axis=1)
    log_likelihood = scipy.special.logsumexp(joint)
    p = np.exp(joint - log_likelihood)
    one_hot = np.eye(k)[every]  # [K^N, N, K]
    counts = np.einsum("a,ank->k", p, one_hot)
    return log_likelihood, counts, np.einsum("a,ank,np->kp", p, one_hot, statistics)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("weights", [None, (2.0, 0.0, 1.0, 0.0, 3.0)], ids=["plain", "weights"])
def test_e_step_is_the_sum_over_all_assignments(float64, name, k, weights):
    """Weights are rows repeated, or left out, in the enumeration: six rows of five."""
    model, parts, x, terms, statistics = problem(name, k)
    rows = np.arange(N) if weights is None else np.repeat(np.arange(N), np.array(weights, int))
    expected = enumerate_assignments(np.log(parts[0]), terms[rows], statistics[rows])
    ours = E_STEP(model, params_of(name, parts), jnp.asarray(x), None if weights is None else jnp.asarray(weights))
    np.testing.assert_allclose(ours.log_likelihood, expected[0], rtol=1e-12)
    np.testing.assert_allclose(ours.stats.latent, expected[1], rtol=1e-11)
    np.testing.assert_allclose(table(ours.stats), expected[2], rtol=1e-10, atol=1e-12)
    assert ours.weight == len(rows)


@pytest.mark.parametrize("k", [2, 3])
def test_a_component_of_weight_zero_takes_no_part(float64, k):
    """Exact zeros: −inf among the potentials of every row, and nothing of it in any sum."""
    model, (weights, rate), x, terms, statistics = problem("poisson", k)
    weights = np.where(np.arange(k) == 0, 0, weights)
    weights /= weights.sum()
    with np.errstate(divide="ignore"):
        expected = enumerate_assignments(np.log(weights), terms, statistics)
    ours = E_STEP(model, params_of("poisson", (weights, rate)), jnp.asarray(x), None)
    np.testing.assert_allclose(ours.log_likelihood, expected[0], rtol=1e-12)
    np.testing.assert_allclose(table(ours.stats), expected[2], rtol=1e-10, atol=1e-13)
    assert ours.stats.latent[0] == 0
    assert np.all(np.asarray(table(ours.stats)[0]) == 0)


@pytest.mark.parametrize("name", FAMILIES)
class TestBound:
    @pytest.mark.parametrize("weights", [None, (2.0, 0.5, 1.0, 0.0, 3.0)], ids=["plain", "weights"])
    def test_the_posterior_touches_and_any_other_q_is_below_by_its_divergence(self, float64, name, weights):
        k = 3
        model, parts, x, terms, _ = problem(name, k)
        params, w = params_of(name, parts), np.ones(N) if weights is None else np.array(weights)
        given = None if weights is None else jnp.asarray(w)
        joint = terms + np.log(parts[0])
        log_normalizer = scipy.special.logsumexp(joint, axis=1)
        log_likelihood = np.sum(w * log_normalizer)
        log_posterior = joint - log_normalizer[:, None]
        at_posterior = ELBO(model, params, jnp.asarray(x), jnp.exp(log_posterior), given)
        np.testing.assert_allclose(at_posterior, log_likelihood, rtol=1e-11)
        rng = np.random.default_rng(0)
        for concentration in (0.05, 0.3, 1.0, 30.0):
            q = rng.dirichlet(np.full(k, concentration), N)
            divergence = np.sum(w[:, None] * scipy.special.rel_entr(q, np.exp(log_posterior)))
            assert divergence > 1e-3  # else the gap is not tested
            bound = ELBO(model, params, jnp.asarray(x), jnp.asarray(q), given)
            np.testing.assert_allclose(log_likelihood - bound, divergence, rtol=1e-8)
