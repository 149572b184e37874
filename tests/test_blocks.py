"""Sums over blocks of rows: in float32 they lose nothing that an addition has lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.blocks import FEW_TERMS, long_sum, map_over_blocks, sum_over_blocks, two_sum
from jaxem.passes import nothing

SUM = jax.jit(lambda x, weights, size: sum_over_blocks(_weighted, x, weights, size, x.dtype), static_argnums=2)
# In float32 a one is lost beside 2^25. Exactly 7 is left of them: when the large terms come first, in the middle, last.
LARGE = 2.0**25
ORDERS = {
    "large first": [LARGE, *[1.0] * 7, -LARGE],
    "large last": [*[1.0] * 7, LARGE, -LARGE],
    "large between": [1.0, 1.0, LARGE, 1.0, 1.0, 1.0, -LARGE, 1.0, 1.0],
}


def _weighted(x, weights):
    return {"x": jnp.sum(x if weights is None else weights * x), "n": jnp.asarray(x.shape[0], x.dtype)}


@pytest.mark.parametrize("order", ORDERS)
def test_what_an_addition_loses_is_kept(float32, order):
    x = np.array(ORDERS[order], np.float32)
    assert SUM(x, None, 1)["x"] == 7
    sums = nothing(jnp.zeros((), jnp.float32))
    for term in x:
        sums = sums.plus(jnp.asarray(term))
    assert sums.value == 7


def test_a_sum_that_is_not_finite_stays_it(float32):
    total, error = two_sum(jnp.float32(jnp.inf), jnp.float32(0), jnp.float32(1))
    assert total == jnp.inf
    assert error == 0


@pytest.mark.parametrize("size", [1, 4, 7, 10, 11, 20])
def test_every_row_counts_once_whatever_the_size_of_a_block(float64, size):
    """Blocks that divide the rows, that do not, of one row and of all; a repeated row's weight does not matter."""
    x = np.random.default_rng(0).normal(size=11)
    weights = np.random.default_rng(1).exponential(size=11)
    np.testing.assert_allclose(SUM(x, None, size)["x"], x.sum(), rtol=1e-13)
    np.testing.assert_allclose(SUM(x, weights, size)["x"], (weights * x).sum(), rtol=1e-13)
    np.testing.assert_array_equal(map_over_blocks(lambda block: 2 * block, jnp.asarray(x), size), 2 * x)


@pytest.mark.parametrize("n", [FEW_TERMS, FEW_TERMS + 1, 3 * FEW_TERMS + 5])
def test_a_long_sum_is_the_sum_of_all_its_terms(float64, n):
    terms = np.random.default_rng(2).exponential(size=(n, 2))
    np.testing.assert_allclose(long_sum(jnp.asarray(terms)), terms.sum(axis=0), rtol=1e-12)
