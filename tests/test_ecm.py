"""Conditional maximizations: against the M-step where they make one, against a search where they do not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxem
from jaxem import ECM, MulticycleECM, Status

_RNG = np.random.default_rng(0)
X = np.concatenate([_RNG.normal(0, 1, (25, 2)), _RNG.normal(2, [0.5, 2.0], (30, 2))])
HEAVY = np.concatenate([_RNG.standard_t(3, (30, 1)), _RNG.standard_t(4, (30, 1)) + 5])
MODEL = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)


def problem(model=MODEL, x=X):
    x = jnp.asarray(x)
    model = model.calibrate(x)
    params = model.init(jax.random.key(0), x)
    return model, params, jax.jit(model.e_step)(params, x).stats


def test_means_before_covariances_make_the_m_step(float64):
    model, params, stats = problem()
    whole = model.m_step(params, stats)
    conditional = ECM(model, [["mean"], ["covariance"], ["weights"]]).m_step(params, stats)
    chex.assert_trees_all_close(conditional, whole, rtol=1e-12)


def test_covariances_before_means(float64):
    """The first block is maximal about the old means; the weights, which no block names, come last."""
    model, params, stats = problem()
    other = ECM(model, [["covariance"], ["mean"]])
    assert other.blocks == (("covariance",), ("mean",), ("weights",))
    new = other.m_step(params, stats)

    def q(variance):
        moved = jaxem.GaussianParams(params.likelihood.mean, jnp.asarray(variance.reshape(2, 2)))
        return -float(model.q(jaxem.LatentParams(params.latent, moved), stats))

    found = scipy.optimize.minimize(
        lambda v: q(np.exp(v)), np.log(np.ravel(params.likelihood.covariance)), method="BFGS", options={"gtol": 1e-6}
    )
    np.testing.assert_allclose(np.ravel(new.likelihood.covariance), np.exp(found.x), rtol=1e-4)
    whole = model.m_step(params, stats)
    np.testing.assert_allclose(new.likelihood.mean, whole.likelihood.mean, rtol=1e-12)
    assert not np.allclose(new.likelihood.covariance, whole.likelihood.covariance, rtol=1e-3)


def test_the_optimum_of_em(float64):
    _, params, _ = problem()
    em = jaxem.fit(MODEL, X, params=params, tol=1e-11)
    blocks = [["covariance"], ["mean"]]
    fits = [
        jaxem.fit(ECM(MODEL, blocks), X, params=params, tol=1e-11),
        jaxem.fit(MODEL, X, params=params, tol=1e-11, algorithm=MulticycleECM(blocks)),
    ]
    for fitted in fits:
        assert fitted.status == Status.CONVERGED
        assert fitted.objective == pytest.approx(em.objective, abs=1e-7)
        assert np.all(np.diff(fitted.trace) >= -1e-9)
    # Whole cycles of three blocks.
    assert fits[1].steps % 3 == 0


def test_with_frozen_leaves(float64):
    _, params, _ = problem()
    frozen = jaxem.Frozen(ECM(MODEL, [["covariance"], ["mean"]]), {"mean": [True, False]})
    inner = ECM(jaxem.Frozen(MODEL, {"mean": [True, False]}), [["covariance"], ["mean"]])
    one, two = (jaxem.fit(m, X, params=params, tol=1e-9) for m in (frozen, inner))
    np.testing.assert_array_equal(one.params.likelihood.mean[0], params.likelihood.mean[0])
    assert not np.allclose(one.params.likelihood.mean[1], params.likelihood.mean[1])
    np.testing.assert_allclose(one.params.likelihood.mean, two.params.likelihood.mean, rtol=1e-12)


def test_multicycle_takes_statistics_anew(float64):
    """Student components with an expanded M-step rise with every block."""
    model = jaxem.Mixture(jaxem.StudentT(jaxem.Spherical()), 2)
    _, params, _ = problem(model, HEAVY)
    algorithm = MulticycleECM([["mean", "scatter"], ["dof"]])
    step = jax.jit(lambda state: algorithm.step(model.calibrate(jnp.asarray(HEAVY)), state, jnp.asarray(HEAVY), None))
    state, objectives = algorithm.init(model, params, HEAVY, None), []
    for _ in range(30):
        state, info = step(state)
        objectives.append(float(info.objective))
    assert np.all(np.diff(objectives) >= -1e-9)
    assert objectives[-1] > objectives[0] + 1


def test_degrees_of_freedom_on_the_likelihood(float64):
    """ECME of Liu & Rubin: the block is where a search over the likelihood ends, and fewer cycles are needed."""
    model = jaxem.Mixture(jaxem.StudentT(jaxem.Spherical(), expanded=False, shared_dof=True), 2)
    x = jnp.asarray(HEAVY)
    calibrated, params, _ = problem(model, HEAVY)
    blocks = [["dof"], ["mean", "scatter"]]
    algorithm = MulticycleECM(blocks, on_likelihood=["dof"], ascent=jaxem.Newton(12))
    state, _ = algorithm.step(calibrated, algorithm.init(calibrated, params, x, None), x, None)
    np.testing.assert_array_equal(state.params.likelihood.mean, params.likelihood.mean)

    @jax.jit
    def fall(log_dof):
        old = params.likelihood
        likelihood = jaxem.StudentTParams(old.mean, old.scatter, jnp.exp(log_dof[0]))
        return -calibrated.e_step(jaxem.LatentParams(params.latent, likelihood), x).log_likelihood

    found = scipy.optimize.minimize(
        fall, np.log([30.0]), jac=jax.jit(jax.grad(fall)), method="BFGS", options={"gtol": 1e-8}
    )
    assert 1 < np.exp(found.x[0]) < 20
    np.testing.assert_allclose(state.params.likelihood.dof, np.exp(found.x[0]), rtol=1e-4)
    plain, on_likelihood = (
        jaxem.fit(model, HEAVY, params=params, tol=1e-9, algorithm=algorithm)
        for algorithm in (MulticycleECM(blocks), MulticycleECM(blocks, on_likelihood=["dof"]))
    )
    assert on_likelihood.objective >= plain.objective - 1e-5
    assert on_likelihood.steps < plain.steps
    assert np.all(np.diff(on_likelihood.trace) >= -1e-9)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MulticycleECM([["mean"]], on_likelihood="mean"), "list of names"),
        (lambda: MulticycleECM([["mean"]], ascent=3), "Newton"),
        (lambda: fit_with(MulticycleECM([["mean", "weights"]], on_likelihood=["mean"])), "a part of"),
        (lambda: fit_with(MulticycleECM([["mean"]], on_likelihood=["rate"])), "no block has"),
    ],
)
def test_refused_on_the_likelihood(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def fit_with(algorithm):
    return jaxem.fit(MODEL, X, key=jax.random.key(0), algorithm=algorithm)


@pytest.mark.parametrize(
    ("blocks", "match"),
    [
        ([["mean"], ["rate"]], "'rate'.*can hold"),
        ([["mean"], ["mean", "covariance"]], "mean stands in several"),
        (["mean", "covariance"], "lists of names"),
        ("mean", "lists of names"),
        ([["mean"], []], "every block"),
        ([], "every block"),
    ],
)
def test_refused(blocks, match):
    with pytest.raises(ValueError, match=match):
        ECM(MODEL, blocks)
    with pytest.raises(ValueError, match=match):
        jaxem.fit(MODEL, X, key=jax.random.key(0), algorithm=MulticycleECM(blocks))


def test_an_expanded_m_step_is_refused():
    with pytest.raises(jaxem.UnsupportedError, match="MulticycleECM"):
        ECM(jaxem.Mixture(jaxem.StudentT(), 2), [["mean"], ["scatter"]])
