"""Data padded to the size of a bucket: the same fits, in a few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import buckets, doors
from jaxem.initialize import RandomPoints, RandomResponsibilities, Segments
from jaxem.model import Data
from jaxem.wrappers.base import Wrapper

_RNG = np.random.default_rng(7)
N = 41
POINTS = np.concatenate([_RNG.normal(size=(20, 2)), _RNG.normal(size=(21, 2)) * 2 + 4])
INPUTS = _RNG.normal(size=(N, 2))
MASK = _RNG.random((N, 2)) < 0.7
STEPS = np.cumsum(_RNG.normal(size=(9, 11, 2)), axis=1)
LENGTHS = _RNG.integers(0, 12, 9)
STARTS = np.arange(N) % 10 == 0
LABELS = np.where(np.arange(N) % 5 == 0, np.arange(N) // 20 % 2, -1)
MIXTURE = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)
CATEGORIES = jaxem.Mixture(jaxem.Categorical(3), 2)
HMM = jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), 2)

CASES = {
    "weights": (MIXTURE, POINTS, np.arange(N) % 4 * 1.0),
    "cells missing, labels": (MIXTURE, Data(x=POINTS, mask=MASK, labels=LABELS), None),
    "categories missing": (CATEGORIES, Data(x=_RNG.integers(0, 3, (N, 2)) * 1.0, mask=MASK), None),
    "inputs": (jaxem.MixtureOfExperts(jaxem.LinearRegression(), 2), Data(x=POINTS, inputs=INPUTS), None),
    "quartiles": (jaxem.Mixture(jaxem.StudentT(jaxem.Diagonal(), dof=4.0), 2), POINTS, None),
    "moments": (jaxem.FactorAnalysis(1), _RNG.normal(size=(N, 4)) @ _RNG.normal(size=(4, 4)), None),
    "sequences, steps missing": (HMM, Data(x=STEPS, lengths=LENGTHS, mask=STEPS[..., 0] < 2), np.arange(9) % 3 * 1.0),
    "flat sequences": (HMM, Data(x=POINTS, starts=STARTS), None),
}
SLOW_CASES = {
    "rows": (jaxem.Mixture(jaxem.Gaussian(), 2), POINTS, None),
    "quartiles, expanded": (jaxem.Mixture(jaxem.StudentT(), 2), POINTS, None),
    "sequences of one length": (HMM, Data(x=STEPS), None),
    "one sequence": (HMM, POINTS, None),
}


@jax.jit
def _first_step(model, data, weights, start):
    """All that a fit computes before and in its first step."""
    model = model.calibrate(data, weights)
    params = model.init(jax.random.key(3), data, weights, start)
    data, weights = model.compress(data, weights)
    expected = model.e_step(params, data, weights)
    updated = model.m_step(params, expected.stats)
    weight = model.num_observations(data, weights)
    return params, expected, updated, weight, model.diagnose(updated, weight)


def _both(model, data, weights=None, start=None):
    with jax.enable_x64(True):
        model, rows = doors.checked(model, data, weights, None)
        padded = buckets.pad(model, rows.data, rows.weights)
        assert padded[2] is not None
        return _first_step(model, rows.data, rows.weights, start), _first_step(*padded, start)


def _close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), one, other)


@pytest.mark.parametrize("name", CASES)
def test_the_same_step(name):
    _close(*_both(*CASES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_the_same_step_of_others(name):
    _close(*_both(*SLOW_CASES[name]))


@pytest.mark.parametrize("start", [RandomPoints(), RandomResponsibilities()], ids=lambda s: type(s).__name__)
def test_the_same_starts(start):
    _close(*_both(MIXTURE, POINTS, None, start))


def test_starts_on_a_sample_of_the_rows():
    x = _RNG.normal(size=(2**14 + 3, 1))
    with jax.enable_x64(True):
        model, rows = doors.checked(jaxem.Mixture(jaxem.Poisson(), 2), np.abs(np.round(x)), None, None)
        start = jax.jit(lambda m, d, w: m.init(jax.random.key(0), d, w))
        model_padded, *padded = buckets.pad(model, rows.data, rows.weights)
        assert len(padded[0]) > len(x)
        _close(start(model, rows.data, None), start(model_padded, *padded))


class TestSizes:
    @pytest.mark.parametrize("per_doubling", [4, 8, 16])
    def test_share_of_added_rows(self, per_doubling):
        sizes = [buckets.size_above(n, per_doubling) for n in range(1, 5000)]
        assert all(n <= size < n * (1 + 1 / per_doubling) for n, size in enumerate(sizes, 1))
        assert len({size for size in sizes if 2**10 < size <= 2**11}) == per_doubling

    def test_few_sizes_for_little_work(self):
        shapes = {np.shape(self.padded(np.ones((n, 2)))[1]) for n in range(200, 401)}
        assert len(shapes) == 5

    def test_more_sizes_for_more_work(self):
        assert len(self.padded(np.ones((5001, 4)))[1]) == 5120

    def test_one_structure_whatever_is_given(self):
        exact, short = self.padded(np.ones((256, 2))), self.padded(np.ones((250, 2)))
        weighted = self.padded(np.ones((250, 2)), jnp.ones(250))
        shapes = [[(np.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(p)] for p in (exact, short, weighted)]
        assert shapes[0] == shapes[1] == shapes[2]

    def padded(self, x, weights=None):
        return buckets.pad(MIXTURE, jnp.asarray(x), weights)


class TestNotPadded:
    """Where a padded fit would be another fit, or cost more than it saves, the arguments come back."""

    def off(self, model, data, **how):
        data = jax.tree.map(jnp.asarray, data)
        given = buckets.pad(model, data, None, **how)
        assert given[0] is model
        assert given[1] is data
        assert given[2] is None

    def test_models(self):
        @jaxem.pytree
        class Own(Wrapper):
            model: jaxem.Model

        self.off(Own(MIXTURE), POINTS)
        self.off(jaxem.Mixture(jaxem.HMM(jaxem.Gaussian(), 2), 2), Data(x=STEPS, lengths=LENGTHS))
        self.off(jaxem.Mixture(jaxem.Product({"a": (jaxem.Gaussian(), [0]), "b": (jaxem.Gaussian(), [1])}), 2), POINTS)
        self.off(
            jaxem.LatentModel(jaxem.latents.Sampled(jaxem.latents.Categorical(2), jax.random.key(0)), jaxem.Gaussian()),
            POINTS,
        )

    def test_a_start_by_the_user(self):
        def model(init):
            closed = {"statistics": lambda x, z: x, "m_step": lambda params, stats: params}
            return jaxem.LogJoint(lambda params, x, z: jnp.sum(params["a"] * x), jaxem.Discrete(2), init, **closed)

        self.off(model(lambda key, data: {"a": jnp.mean(data)}), POINTS)
        assert buckets.in_buckets(model(lambda key: {"a": jnp.ones(())}), jnp.asarray(POINTS))

    def test_data(self):
        self.off(MIXTURE, {"x": POINTS})
        self.off(MIXTURE, np.ones((2**19, 3), np.float32))
        self.off(HMM, np.ones((200, 100, 2), np.float32))

    def test_starts_and_algorithms(self):
        self.off(MIXTURE, POINTS, start=Segments(np.linspace(0, 1, N, endpoint=False)))
        stochastic = jaxem.GradientEM(optax.adam(0.1), batch_size=10, key=jax.random.key(0))
        self.off(MIXTURE, POINTS, algorithm=stochastic)


def test_a_fit_has_the_true_numbers():
    counts = _RNG.poisson([[2.0]] * 20 + [[9.0]] * 21).astype(float)
    given, rows = doors.checked(jaxem.Mixture(jaxem.Poisson(), 2), counts, None, None)
    model, data, weights = buckets.pad(given, rows.data, rows.weights)
    padded = jaxem.fit(model, data, weights=weights, key=jax.random.key(0))
    plain = jaxem.fit(given, counts, key=jax.random.key(0))
    np.testing.assert_array_equal(padded.starts.steps, plain.starts.steps)
    np.testing.assert_allclose(padded.objective, plain.objective, rtol=1e-5)
    assert padded.weight == plain.weight == rows.num_examples == N


def test_bucket_is_true_or_false():
    with pytest.raises(ValueError, match="bucket is True or False; got 'small'"):
        jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), np.ones((9, 1)), key=jax.random.key(0), bucket="small")
