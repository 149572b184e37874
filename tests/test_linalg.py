"""Factorizations of batches of small matrices: accuracy, what is no covariance, derivatives, size, threads."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import linalg
from jaxem.families.covariance import Full

DIMENSIONS = (1, 2, 3, 4, 5, 8, 16, 17, 20, 60, 120)


def _matrices(d: int, condition: float, count: int = 3) -> np.ndarray:
    """Covariances with eigenvalues from 1 to 1/condition."""
    rng = np.random.default_rng(d)
    axes = np.linalg.qr(rng.normal(size=(count, d, d)))[0]
    return (axes * np.geomspace(1, 1 / condition, d)) @ np.swapaxes(axes, -1, -2)


def _num_operations(f, *args) -> int:
    return len(re.findall(r"= \"?stablehlo\.", jax.jit(f).lower(*args).as_text()))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_as_accurate_as_lapack(d):
    for condition in (1e1, 1e3, 1e6):
        a = _matrices(d, condition).astype("f4")
        exact = np.linalg.inv(a.astype(float))
        lower, inverse = map(np.asarray, jax.jit(linalg.factor)(a))
        if np.isnan(lower).any():  # rounding to float32 may have made the worst conditioned ones indefinite
            assert condition == 1e6
            assert np.linalg.eigvalsh(a.astype(float)).min() < d * 1e-6
            continue
        assert np.array_equal(lower, np.tril(lower))
        assert np.array_equal(inverse, np.tril(inverse))
        residual = np.abs(lower.astype(float) @ np.swapaxes(lower, -1, -2) - a).max()
        root = np.linalg.inv(np.linalg.cholesky(a).astype(float))
        of_lapack = np.abs(np.swapaxes(root, -1, -2) @ root - exact).max()
        error = np.abs(np.swapaxes(inverse, -1, -2).astype(float) @ inverse - exact).max()
        assert residual <= 2e-7 * max(4, np.sqrt(d))
        assert error <= max(4 * of_lapack, np.finfo(np.float32).eps * condition * np.abs(exact).max())


@pytest.mark.parametrize("d", [1, 2, 5, 20, 60])
def test_nan_where_not_positive_definite(d):
    a = _matrices(d, 10.0)
    a[1] -= 1.5 * np.eye(d)
    a[2, -1, -1] = a[2, -1, :-1] @ np.linalg.solve(a[2, :-1, :-1], a[2, :-1, -1]) - 1e-3 if d > 1 else 0
    for found in jax.jit(linalg.factor)(jnp.asarray(a, jnp.float32)):
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1:]).all()


@pytest.mark.parametrize("d", [3, 20])
def test_derivatives(d):
    a, tangent = _matrices(d, 10.0, 1)[0], _matrices(d, 3.0, 2)[1]

    def value(a):
        precision, log_det = linalg.precision_and_log_det(a)
        return log_det + jnp.sum(precision * np.arange(d))

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jit(jax.grad(value))(a))
        _, slope = jax.jit(lambda a, t: jax.jvp(value, (a,), (t,)))(a, tangent)
        inverse = np.linalg.inv(a)
        weights = np.broadcast_to(np.arange(d), (d, d))
        exact = np.trace(inverse @ tangent) - np.sum(weights * (inverse @ tangent @ inverse))
        np.testing.assert_allclose(slope, exact, rtol=1e-10)
        np.testing.assert_allclose(np.sum(gradient * tangent), exact, rtol=1e-10)
        np.testing.assert_allclose(gradient, gradient.T, rtol=1e-9, atol=1e-9)


def test_lanes_are_batches():
    a = jnp.asarray(_matrices(20, 10.0, 6), jnp.float32).reshape(2, 3, 20, 20)
    for one, other in zip(jax.vmap(linalg.factor)(a), linalg.factor(a), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", [jaxem.Gaussian(), jaxem.StudentT()], ids=["gaussian", "student_t"])
def test_programs_do_not_grow_with_the_dimension(family):
    def sizes(d: int) -> tuple[int, int]:
        x = np.random.default_rng(0).normal(size=(300, d)).astype("f4")
        model = jaxem.Mixture(family, 2).calibrate(x)
        prepared = jax.eval_shape(model.prepare, x)
        params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jnp.asarray(x))
        expected = jax.eval_shape(model.e_step, params, prepared)
        return _num_operations(model.e_step, params, prepared), _num_operations(model.m_step, params, expected.stats)

    # Above sixteen columns there is a loop over blocks around the loop over columns; from there on nothing grows.
    small, middle, large = sizes(5), sizes(20), sizes(120)
    assert all(b <= 1.6 * a for a, b in zip(small, large, strict=True)), (small, large)
    assert all(b <= a + 5 for a, b in zip(middle, large, strict=True)), (middle, large)


@pytest.mark.parametrize("num_columns", [3, 16, 17, 60])
def test_products_of_features(num_columns):
    y = np.random.default_rng(0).normal(size=(4, num_columns)).astype("f4")
    i, j = np.triu_indices(num_columns)
    np.testing.assert_array_equal(np.asarray(jax.jit(Full().columns)(y)), y[:, i] * y[:, j])


@pytest.mark.parametrize(
    "family",
    [
        jaxem.Gaussian(),
        jaxem.Gaussian(covariance=jaxem.Tied()),
        jaxem.Gaussian(covariance=jaxem.EigenDecomposed("VEV")),
        jaxem.StudentT(),
    ],
    ids=["full", "tied", "VEV", "student_t"],
)
def test_too_many_columns_for_a_matrix_are_refused(family):
    x = np.random.default_rng(0).normal(size=(50, 5000)).astype("f4")
    with pytest.raises(ValueError, match=r"5000 columns.*Diagonal.*FactorAnalysis"):
        jaxem.fit(jaxem.Mixture(family, 1), x, key=jax.random.key(0))
    with pytest.raises(ValueError, match="5000 columns"):
        jaxem.Mixture(family, 1).calibrate(x)


_STARTS = """
import jax, numpy as np, jaxem
x = np.random.default_rng(0).normal(size=(300, 20)).astype("f4")
model, key = jaxem.Mixture(jaxem.StudentT(), 2), jax.random.key(0)
fitted = jaxem.fit(model, x, key=key, num_starts=16, max_steps=2, on_failure="ignore")
assert np.isfinite(fitted.params.likelihood.scatter).all()
"""


def test_no_step_waits_for_its_own_threads():
    """Sixteen starts of Student t once stopped for ever on two threads, in batched triangular solves of LAPACK."""
    done = subprocess.run([sys.executable, "-c", _STARTS], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
