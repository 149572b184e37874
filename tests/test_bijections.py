"""Bounded parameters: there and back, inside their set, with as many coordinates as degrees of freedom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem import bijections
from jaxem.bijections import BIJECTIONS, Interval


def random_matrix(seed, d):
    root = np.random.default_rng(seed).normal(size=(d, d + 2))
    return root @ root.T


def correlation(seed, d):
    matrix = random_matrix(seed, d)
    size = np.sqrt(np.diag(matrix))
    return matrix / size / size[:, None]


CASES = {
    "real": (np.array([-3.0, 0.0, 1e5]), 3),
    "positive": (np.array([1e-6, 1.0, 2e7]), 3),
    "unit interval": (np.array([0.001, 0.5, 0.97]), 3),
    "simplex": (np.array([[0.2, 0.3, 0.5], [0.98, 0.015, 0.005]]), 4),
    "ordered": (np.array([[-1.0, 0.5, 0.7, 9.0]]), 4),
    "positive definite": (np.stack([random_matrix(0, 4), random_matrix(1, 4)]), 20),
    "correlation": (np.stack([correlation(2, 4), correlation(3, 4)]), 12),
}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(float64, name):
    value, count = CASES[name]
    bijection = BIJECTIONS[name]
    free = bijection.to_free(jnp.asarray(value))
    assert free.size == count
    np.testing.assert_allclose(bijection.from_free(free), value, rtol=1e-9, atol=1e-12)
    again = bijection.to_free(bijection.from_free(free + 0.1))
    np.testing.assert_allclose(again, free + 0.1, rtol=1e-7, atol=1e-9)
    # No direction is lost: the way back has full rank.
    one, size = free.reshape(-1), free.size
    derivative = jax.jacfwd(lambda f: bijection.from_free(f.reshape(free.shape)).reshape(-1))(one)
    assert np.linalg.matrix_rank(np.asarray(derivative)) == size


def test_any_coordinates_lie_inside(float64):
    free = jax.random.normal(jax.random.key(0), (50, 6)) * 3
    matrices = BIJECTIONS["positive definite"].from_free(free)
    assert np.all(np.linalg.eigvalsh(matrices) > 0)
    correlations = BIJECTIONS["correlation"].from_free(free)
    np.testing.assert_allclose(np.diagonal(correlations, axis1=1, axis2=2), 1, rtol=1e-12)
    assert np.all(np.linalg.eigvalsh(correlations) > -1e-12)
    np.testing.assert_allclose(np.sum(BIJECTIONS["simplex"].from_free(free), axis=-1), 1, rtol=1e-12)
    assert np.all(np.diff(BIJECTIONS["ordered"].from_free(free)) > 0)
    inside = Interval(-2.0, 5.0).from_free(free)
    assert np.all((inside > -2) & (inside < 5))


def test_a_weight_of_0_has_finite_coordinates(float64):
    weights = jnp.array([1.0, 0.0, 0.0])
    free = BIJECTIONS["simplex"].to_free(weights)
    assert np.all(np.isfinite(free))
    np.testing.assert_allclose(BIJECTIONS["simplex"].from_free(free), weights, atol=1e-300)


def test_what_is_refused():
    with pytest.raises(ValueError, match="low < high; got 2 and 1"):
        Interval(2, 1)
    with pytest.raises(ValueError, match="5 is not the number of free coordinates of a positive definite matrix"):
        BIJECTIONS["positive definite"].from_free(jnp.zeros(5))
    with pytest.raises(ValueError, match="constraint of 'a' is one of"):
        bijections.read_constraints({"a": float})
