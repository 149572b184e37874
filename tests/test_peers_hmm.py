"""One step of EM for hidden Markov models equal to hmmlearn's, from the same parameters, without priors."""

import functools
import logging
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.cases import iris

import jaxem
from jaxem import CategoryParams, GaussianParams, LatentParams, MarkovChainParams, PoissonParams, sequences

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from hmmlearn import hmm

K = 3
LENGTHS = (40, 1, 70, 39)
STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diag": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
INITIAL = np.array([0.2, 0.5, 0.3])
TRANSITION = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.05, 0.15, 0.8]])
STEP = jax.jit(
    lambda model, params, data: (
        model.e_step(params, data).log_likelihood,
        model.m_step(params, model.e_step(params, data).stats),
    )
)


def rows():
    """The irises in an order in which neighbors have to do with each other, but are not sorted."""
    order = np.random.default_rng(0).permutation(150)
    return iris()[np.concatenate([order[:75], np.sort(order[75:])])]


def fitted(peer, x, steps=1):
    """The peer after so many steps, silently."""
    peer.n_iter, peer.tol = steps, -np.inf
    peer.init_params = ""
    logging.getLogger("hmmlearn").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer.fit(x, LENGTHS)


def gaussian(name):
    x = rows()
    whole, spread = np.cov(x.T), np.array([0.3, 0.5, 0.8])
    covariance = {
        "full": spread[:, None, None] * whole,
        "tied": 0.5 * whole,
        "diag": spread[:, None] * np.diag(whole),
        "spherical": spread,
    }[name]
    mean = iris()[[0, 60, 120]]
    # No prior: hmmlearn's defaults are one. Its spherical and diagonal covariances are those of the maximum likelihood
    # only without weight on the prior.
    peer = hmm.GaussianHMM(K, name, min_covar=0.0, covars_prior=0.0, covars_weight=0.0, implementation="log")
    peer.startprob_, peer.transmat_, peer.means_ = INITIAL, TRANSITION, mean
    peer.covars_ = covariance
    model = jaxem.HMM(jaxem.Gaussian(STRUCTURES[name]), K)
    return model, peer, x, GaussianParams(mean, covariance)


def poisson():
    x = np.round(2 * rows())
    rate = x[[0, 60, 120]] + 0.5
    peer = hmm.PoissonHMM(K, lambdas_prior=0.0, lambdas_weight=0.0, implementation="log")
    peer.startprob_, peer.transmat_, peer.lambdas_ = INITIAL, TRANSITION, rate
    return jaxem.HMM(jaxem.Poisson(), K), peer, x, PoissonParams(rate)


def categorical():
    x = np.clip(np.round(rows()[:, :1] - 4), 0, 3).astype(int)
    prob = np.random.default_rng(1).dirichlet(np.ones(4), K)
    peer = hmm.CategoricalHMM(K, n_features=4, implementation="log")
    peer.startprob_, peer.transmat_, peer.emissionprob_ = INITIAL, TRANSITION, prob
    return jaxem.HMM(jaxem.Categorical(4), K), peer, x, CategoryParams(prob[:, None])


MODELS = {
    **{f"gaussian {name}": functools.partial(gaussian, name) for name in STRUCTURES},
    "poisson": poisson,
    "categorical": categorical,
}


def read(peer, name):
    """The peer's parameters as ours."""
    chain = MarkovChainParams(peer.startprob_, peer.transmat_)
    if name == "poisson":
        return LatentParams(chain, PoissonParams(peer.lambdas_))
    if name == "categorical":
        return LatentParams(chain, CategoryParams(peer.emissionprob_[:, None]))
    covariance = peer._covars_  # as it is learnt; of spherical ones once for each feature
    if name == "gaussian spherical":
        covariance = covariance[:, 0]
    return LatentParams(chain, GaussianParams(peer.means_, covariance))


@pytest.mark.parametrize("name", MODELS)
class TestHmmlearn:
    def data(self, x, layout):
        flat = sequences.from_concat(x, LENGTHS)
        return jax.tree.map(jnp.asarray, flat if layout == "flat" else sequences.pad(flat))

    @pytest.mark.parametrize("layout", ["flat", "padded"])
    def test_one_step_equals_theirs(self, float64, name, layout):
        model, peer, x, likelihood = MODELS[name]()
        data = self.data(x, layout)
        before = peer.score(x, LENGTHS)
        params = jax.tree.map(jnp.asarray, LatentParams(MarkovChainParams(INITIAL, TRANSITION), likelihood))
        log_likelihood, updated = STEP(model.calibrate(data), params, data)
        np.testing.assert_allclose(log_likelihood, before, rtol=1e-11)
        theirs = read(fitted(peer, x), name)
        chex.assert_trees_all_close(updated, theirs, rtol=1e-9, atol=1e-9)

    def test_after_more_steps_posterior_path_and_score_equal_theirs(self, float64, name):
        model, peer, x, _ = MODELS[name]()
        data = self.data(x, "flat")
        params = jax.tree.map(jnp.asarray, read(fitted(peer, x, 4), name))
        log_likelihood, posterior = peer.score_samples(x, LENGTHS)
        np.testing.assert_allclose(np.sum(model.log_likelihood(params, data)), log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(model.posterior(params, data), posterior, atol=1e-9)
        score, path = peer.decode(x, LENGTHS)
        np.testing.assert_array_equal(model.predict(params, data), path)
        hard = jaxem.LatentModel(jaxem.Hard(model.latent), model.likelihood)
        np.testing.assert_allclose(np.sum(hard.log_likelihood(params, data)), score, rtol=1e-10)
