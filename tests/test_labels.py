"""Partly labelled data: a label says which component an example, or a step, belongs to; −1 says nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxem

RNG = np.random.default_rng(0)
Z = RNG.integers(0, 2, 60)
X = RNG.normal(size=(60, 2)) + 2.0 * Z[:, None]
LABELS = np.where(RNG.random(60) < 0.4, Z, -1)
MODEL = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)


def params():
    mean, variance = jnp.array([[0.1, -0.2], [1.9, 2.2]]), jnp.array([[1.0, 1.3], [0.8, 1.1]])
    return jaxem.LatentParams(jaxem.CategoricalParams(jnp.array([0.3, 0.7])), jaxem.GaussianParams(mean, variance))


def joint(p):
    terms = scipy.stats.norm.logpdf(X[:, None], p.likelihood.mean, np.sqrt(p.likelihood.covariance)).sum(axis=2)
    return terms + np.log(p.latent.weights)


def test_a_labelled_row_has_the_joint_density_of_its_component(float64):
    p = params()
    expected = scipy.special.logsumexp(joint(p), axis=1)
    known = LABELS >= 0
    expected[known] = joint(p)[known, LABELS[known]]
    data = jaxem.Data(x=jnp.asarray(X), labels=jnp.asarray(LABELS))
    np.testing.assert_allclose(MODEL.log_likelihood(p, data), expected, rtol=1e-12)
    posterior = np.asarray(MODEL.posterior(p, data))
    np.testing.assert_array_equal(posterior[known], np.eye(2)[LABELS[known]])
    np.testing.assert_array_equal(np.asarray(MODEL.predict(p, data))[known], LABELS[known])
    np.testing.assert_allclose(MODEL.e_step(p, data).log_likelihood, expected.sum(), rtol=1e-12)


def test_all_labels_are_one_step_and_no_labels_are_none(float64):
    every = jaxem.fit(MODEL, jaxem.Data(x=X, labels=Z), key=jax.random.key(0))
    for k in range(2):
        np.testing.assert_allclose(every.params.likelihood.mean[k], X[k == Z].mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(every.params.likelihood.covariance[k], X[k == Z].var(axis=0), rtol=1e-8)
    np.testing.assert_allclose(every.params.latent.weights, np.bincount(Z) / 60, rtol=1e-9)
    plain = jaxem.fit(MODEL, X, key=jax.random.key(0))
    unknown = jaxem.fit(MODEL, jaxem.Data(x=X, labels=np.full(60, -1)), key=jax.random.key(0))
    np.testing.assert_allclose(unknown.log_likelihood, plain.log_likelihood, rtol=1e-12)


def test_components_have_the_numbers_of_the_labels(float64):
    """No switching, and a component that no label names finds the rest."""
    three = np.concatenate([X, RNG.normal(size=(30, 2)) * 0.5 + [8.0, -8.0]])
    labels = np.concatenate([LABELS, np.full(30, -1)])
    data = jaxem.Data(x=three, labels=labels)
    result = jaxem.fit(jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 3), data, key=jax.random.key(3), num_starts=3)
    np.testing.assert_allclose(result.params.likelihood.mean, [[0, 0], [2, 2], [8, -8]], atol=0.6)
    assert result.share_at_best() > 0.5


@pytest.mark.parametrize("wrong", [2, -2, 0.5])
def test_a_label_that_is_no_component_is_an_error(wrong):
    labels = np.where(np.arange(60) == 7, wrong, LABELS)
    with pytest.raises(ValueError, match=r"labels are components from 0 to 1.*label \[7\]"):
        jaxem.fit(MODEL, jaxem.Data(x=X, labels=labels), key=jax.random.key(0))


def test_labels_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match="labels needs shape"):
        jaxem.fit(MODEL, jaxem.Data(x=X, labels=LABELS[:, None]), key=jax.random.key(0))


def test_blocks_of_labelled_rows_add_up(float64):
    data = jaxem.Data(x=jnp.asarray(X), labels=jnp.asarray(LABELS))
    whole, chunked = (m.e_step(params(), data) for m in (MODEL, jaxem.Chunked(MODEL, 16)))
    chex.assert_trees_all_close(whole, chunked, rtol=1e-12)
