"""Hard assignments: classification EM, against the loop as it is written in the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from data.cases import iris

import jaxem
from jaxem import CategoricalParams, GaussianParams, LatentParams
from jaxem.latents import Categorical, Hard

K = 3
MODEL = jaxem.LatentModel(Hard(Categorical(K)), jaxem.Gaussian())
SOFT = jaxem.Mixture(jaxem.Gaussian(), K)


def start():
    x = iris()
    covariance = np.cov(x.T) * np.array([0.3, 0.5, 0.8])[:, None, None]
    return np.array([0.2, 0.5, 0.3]), x[[0, 60, 120]], covariance


def params_of(weights, mean, covariance):
    parts = (jnp.asarray(a) for a in (weights, mean, covariance))
    return LatentParams(CategoricalParams(next(parts)), GaussianParams(*parts))


def by_hand(x, counts, steps):
    """Celeux and Govaert's three steps: expectation, classification, maximization; the criterion before each update."""
    weights, mean, covariance = start()
    criterion, total = [], counts.sum()
    for _ in range(steps):
        terms = [scipy.stats.multivariate_normal(m, c).logpdf(x) for m, c in zip(mean, covariance, strict=True)]
        joint = np.stack(terms, axis=1) + np.log(weights)
        z = np.argmax(joint, axis=1)
        criterion.append(np.sum(counts * joint[np.arange(len(x)), z]))
        shares = np.eye(K)[z] * counts[:, None]
        weights = shares.sum(axis=0) / total
        mean = shares.T @ x / shares.sum(axis=0)[:, None]
        covariance = np.stack([
            ((x - m).T * s) @ (x - m) / s.sum() for m, s in zip(mean, shares.T, strict=True)
        ])  # fmt: skip
    return criterion, (weights, mean, covariance), z


@pytest.mark.parametrize("counts", [None, np.arange(150) % 4], ids=["plain", "weights"])
def test_the_steps_of_classification_em(float64, counts):
    x, steps = iris(), 6
    weights = np.ones(len(x)) if counts is None else counts.astype(float)
    criterion, (mixing, mean, covariance), z = by_hand(x, weights, steps)
    assert np.min(np.diff(criterion)) >= 0
    assert criterion[-1] > criterion[0] + 10
    model = MODEL.calibrate(jnp.asarray(x))
    control = jaxem.Control(jaxem.Never(), steps)
    run = jax.jit(jaxem.run, static_argnames="trace_size")(
        model, params_of(*start()), jnp.asarray(x), jnp.asarray(weights), control=control, trace_size=steps + 1
    )
    np.testing.assert_allclose(run.trace[:steps], criterion, rtol=1e-10)
    np.testing.assert_allclose(run.params.latent.weights, mixing, rtol=1e-10)
    np.testing.assert_allclose(run.params.likelihood.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(run.params.likelihood.covariance, covariance, rtol=1e-8, atol=1e-10)
    assert z.shape == MODEL.predict(run.params, jnp.asarray(x)).shape


def test_it_ends_at_a_partition_that_gives_itself(float64):
    x = iris()
    result = jaxem.fit(MODEL, x, params=params_of(*start()), tol=0.0)
    assert result.converged
    assert result.steps < 50  # there are finitely many partitions, and none comes twice
    z = np.asarray(result.model.predict(result.params, x))
    for k in range(K):
        np.testing.assert_allclose(result.params.likelihood.mean[k], x[z == k].mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(result.params.likelihood.covariance[k], np.cov(x[z == k].T, ddof=0), rtol=1e-8)
    np.testing.assert_allclose(result.params.latent.weights, np.bincount(z) / len(x), rtol=1e-12)
    # The classification likelihood is a bound from below of the likelihood of the same parameters.
    soft = np.sum(SOFT.log_likelihood(result.params, jnp.asarray(x)))
    assert result.log_likelihood < soft
    posterior = np.asarray(result.model.posterior(result.params, x))
    np.testing.assert_array_equal(posterior, np.eye(K)[z])


def test_two_equal_spheres_are_k_means(float64):
    """With one known spread and equal weights classification EM is Lloyd's algorithm."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + 3])
    model = jaxem.LatentModel(Hard(Categorical(2)), jaxem.Gaussian(jaxem.Spherical()))
    frozen = jaxem.Frozen(model, ["weights", "covariance"])
    centers = x[[0, 1]]
    params = LatentParams(CategoricalParams(np.full(2, 0.5)), GaussianParams(centers, np.ones(2)))
    result = jaxem.fit(frozen, x, params=params, tol=0.0)
    for _ in range(200):
        label = np.argmin(((x[:, None] - centers) ** 2).sum(axis=2), axis=1)
        centers = np.stack([x[label == k].mean(axis=0) for k in range(2)])
    np.testing.assert_allclose(result.params.likelihood.mean, centers, rtol=1e-10)


@pytest.mark.parametrize("start", [jaxem.KMeansPlusPlus(), jaxem.RandomPoints(), jaxem.RandomResponsibilities()])
def test_it_never_falls_from_any_start(float64, start):
    x = iris()
    result = jaxem.fit(
        jaxem.WithPrior(MODEL, 1.0), x, key=jax.random.key(0), num_starts=8, start=start, stopping=jaxem.Never(),
        max_steps=40, on_failure="ignore",
    )  # fmt: skip
    assert np.nanmin(np.diff(result.starts.trace, axis=1)) >= -1e-9
    assert np.all(np.isfinite(result.starts.objective))


def test_labels_and_missing_cells(float64):
    """A label is kept; a missing cell adds nothing to the row's score."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.poisson(2.0, (20, 2)), rng.poisson(9.0, (20, 2))]).astype(float)
    mask, labels = rng.random((40, 2)) < 0.8, np.where(rng.random(40) < 0.3, rng.integers(0, 2, 40), -1)
    model = jaxem.LatentModel(Hard(Categorical(2)), jaxem.Poisson())
    rate, weights = np.array([[2.0, 2.0], [9.0, 8.0]]), np.array([0.4, 0.6])
    params = LatentParams(CategoricalParams(weights), jaxem.PoissonParams(rate))
    data = jaxem.Data(jnp.asarray(x), mask=jnp.asarray(mask), labels=jnp.asarray(labels))
    joint = np.where(mask[:, None], scipy.stats.poisson.logpmf(x[:, None], rate), 0).sum(axis=2) + np.log(weights)
    joint = np.where((labels[:, None] < 0) | (labels[:, None] == np.arange(2)), joint, -np.inf)
    np.testing.assert_array_equal(model.predict(params, data), joint.argmax(axis=1))
    np.testing.assert_allclose(model.log_likelihood(params, data), joint.max(axis=1), rtol=1e-11)


def test_what_it_holds_is_checked():
    with pytest.raises(ValueError, match="Hard holds a latent"):
        Hard(3)
    from jaxem.result import describe

    assert describe(MODEL) == "Gaussian mixture, 3 components, full covariance, hard assignments"
