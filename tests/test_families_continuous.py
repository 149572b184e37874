"""The continuous families against scipy, and what is promised of them when things go wrong.

The numbers in the names are the rows of the table of promises.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import jaxem
from jaxem import CategoricalParams, LatentParams, Status, special

KEY = jax.random.key(0)
RUN = jax.jit(jaxem.run, static_argnames="trace_size")
quiet = functools.partial(jaxem.fit, on_failure="ignore")


@dataclasses.dataclass(frozen=True, eq=False)
class Positive:
    """A family of positive columns with scipy's law of the same name.

    law: the columns' leaves → a frozen scipy law. leaves: of two components with two columns, in the order of the
    parameters' fields. scales: the power of the unit of x in each leaf (of the logarithm of x, "log").
    """

    name: str
    family: Any
    params: Any
    law: Callable[..., Any]
    leaves: tuple[Any, ...]
    scales: tuple[Any, ...]

    def __str__(self):
        return self.name

    def at(self, *leaves, scale=1.0, dtype=None):
        """The parameters for data that are ``scale`` times as large."""

        def moved(leaf, power):
            leaf = np.asarray(leaf, float)
            return jnp.asarray(leaf + np.log(scale) if power == "log" else leaf * scale**power, dtype)

        return self.params(*(moved(leaf, power) for leaf, power in zip(leaves or self.leaves, self.scales)))

    def rows(self, n=60, seed=0):
        """Draws from both components, [n, 2]."""
        rng = np.random.default_rng(seed)
        first, second = (self.law(*(np.array(leaf)[k] for leaf in self.leaves)) for k in (0, 1))
        x = np.where(np.arange(n)[:, None] % 2 == 0, *(law.rvs((n, 2), random_state=rng) for law in (first, second)))
        return np.maximum(x, 1e-12)

    def log_prob(self, x, *leaves):
        """scipy's, summed over the columns, [N, K]."""
        return self.law(*(np.asarray(leaf, float) for leaf in leaves or self.leaves)).logpdf(x[:, None, :]).sum(axis=-1)


POSITIVE = [
    Positive(
        "Exponential",
        jaxem.Exponential(),
        jaxem.ExponentialParams,
        lambda rate: scipy.stats.expon(scale=1 / rate),
        ([[0.3, 4.0], [2.0, 1.0]],),
        (-1,),
    ),
    Positive(
        "Gamma",
        jaxem.Gamma(),
        jaxem.GammaParams,
        lambda shape, rate: scipy.stats.gamma(shape, scale=1 / rate),
        ([[0.4, 3.0], [25.0, 8.0]], [[0.2, 2.0], [4.0, 1.0]]),
        (0, -1),
    ),
    Positive(
        "LogNormal",
        jaxem.LogNormal(),
        jaxem.LogNormalParams,
        lambda mean, variance: scipy.stats.lognorm(np.sqrt(variance), scale=np.exp(mean)),
        ([[0.5, 2.0], [-1.0, 3.0]], [[1.0, 0.1], [0.3, 0.02]]),
        ("log", 0),
    ),
    Positive(
        "InverseGaussian",
        jaxem.InverseGaussian(),
        jaxem.InverseGaussianParams,
        lambda mean, shape: scipy.stats.invgauss(mean / shape, scale=shape),
        ([[1.0, 0.5], [6.0, 2.0]], [[2.0, 5.0], [0.8, 30.0]]),
        (1, 1),
    ),
]
SHAPED = POSITIVE[1:]  # those whose density grows without bound at equal values that are not 0
positive = pytest.mark.parametrize("c", POSITIVE, ids=str)
shaped = pytest.mark.parametrize("c", SHAPED, ids=str)


def mixture(c):
    return jaxem.Mixture(c.family, 2)


def both(likelihood):
    dtype = jax.tree.leaves(likelihood)[0].dtype
    return LatentParams(CategoricalParams(jnp.asarray([0.5, 0.5], dtype)), likelihood)


@jax.jit
def _log_prob(family, params, data):
    family = family.calibrate(data, None)
    return family.log_prob(params, family.statistics(data))


def log_prob(family, params, x, mask=None):
    """With the family's constants taken from x."""
    data = jaxem.Data(jnp.asarray(x), None if mask is None else jnp.asarray(mask))
    return np.asarray(_log_prob(family, params, data), float)


@functools.partial(jax.jit, static_argnames="frozen")
def _m_step(family, params, data, weights, frozen):
    family = family.calibrate(data, None)
    return family.maximize(params, family.accumulate(params, family.statistics(data), weights), dict(frozen))


def m_step(family, x, weights, params=None, frozen=()):
    """The M-step with one column of responsibilities for each component."""
    return _m_step(family, params, jaxem.Data(jnp.asarray(x)), jnp.asarray(weights, x.dtype), frozen)


def all_finite(tree):
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def same_bits(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


class TestSpecialFunctions:
    A = np.concatenate([np.logspace(-5, 1.5, 60), np.linspace(9.5, 10.5, 11)])

    def test_digamma_equals_scipy(self, float64):
        ours = special.log_minus_digamma(jnp.asarray(self.A))
        np.testing.assert_allclose(ours, np.log(self.A) - scipy.special.digamma(self.A), rtol=2e-13)

    def test_gamma_function_equals_scipy(self, float64):
        a = self.A
        ours = special.stirling(jnp.asarray(a)) + (a - 0.5) * np.log(a) - a + 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(ours, scipy.special.gammaln(a), rtol=1e-13, atol=1e-13)

    def test_large_arguments_equal_the_leading_terms(self, float64):
        a = np.logspace(4, 12, 9)
        np.testing.assert_allclose(special.log_minus_digamma(jnp.asarray(a)), 1 / (2 * a) + 1 / (12 * a**2), rtol=1e-13)
        np.testing.assert_allclose(special.stirling(jnp.asarray(a)), 1 / (12 * a) - 1 / (360 * a**3), rtol=1e-15)

    def test_derivatives(self, float64):
        a = jnp.asarray(self.A)
        np.testing.assert_allclose(
            jax.vmap(jax.grad(special.stirling))(a), 1 / (2 * a) - special.log_minus_digamma(a), rtol=1e-9
        )
        slope = jax.vmap(jax.grad(special.log_minus_digamma))(a)
        np.testing.assert_allclose(slope, 1 / self.A - scipy.special.polygamma(1, self.A), rtol=1e-11)

    def test_inverses(self, dtype):
        a = jnp.asarray(np.logspace(-4, 6, 80), dtype)
        rounding = 30 * jnp.finfo(dtype).eps
        shapes, arguments = jax.jit(
            lambda a: (
                special.gamma_shape(special.log_minus_digamma(a)),
                special.inverse_digamma(special.digamma(a)),
            )
        )(a)
        np.testing.assert_allclose(shapes, a, rtol=rounding)
        np.testing.assert_allclose(arguments, a, rtol=rounding)

    def test_their_derivatives_are_those_of_the_inverse_function(self, float64):
        def slope(f, a):
            return np.asarray(jax.jit(jax.vmap(jax.grad(f)))(a))

        s = jnp.asarray([1e-6, 1e-2, 1.0, 30.0])
        a = special.gamma_shape(s)
        np.testing.assert_allclose(
            slope(special.gamma_shape, s) * slope(special.log_minus_digamma, a), np.ones(4), rtol=1e-12
        )
        y = special.digamma(a)
        np.testing.assert_allclose(
            slope(special.inverse_digamma, y) * slope(special.digamma, a), np.ones(4), rtol=1e-12
        )


@positive
class TestAgainstScipy:
    def test_log_prob(self, float64, c):
        x = np.concatenate([c.rows(), np.full((1, 2), 1e-9), np.full((1, 2), 50.0)])
        np.testing.assert_allclose(log_prob(c.family, c.at(), x), c.log_prob(x), rtol=1e-11)

    def test_log_prob_of_missing_cells(self, float64, c):
        x = c.rows()
        mask = np.random.default_rng(1).random(x.shape) < 0.6
        each = c.law(*(np.asarray(leaf, float) for leaf in c.leaves)).logpdf(x[:, None, :])
        expected = np.where(mask[:, None, :], each, 0).sum(axis=-1)
        np.testing.assert_allclose(log_prob(c.family, c.at(), x, mask), expected, rtol=1e-11, atol=1e-12)

    def test_without_calibration(self, float64, c):
        x = c.rows()
        ours = c.family.log_prob(c.at(), c.family.statistics(jaxem.Data(jnp.asarray(x))))
        np.testing.assert_allclose(ours, c.log_prob(x), rtol=1e-10)

    @pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
    def test_log_prob_in_float32(self, c, scale):
        x = (c.rows() * scale).astype(np.float32)
        expected = log_prob_64(c, x, scale)
        with jax.enable_x64(False):
            ours = log_prob(c.family, c.at(scale=scale, dtype=jnp.float32), x)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)

    def test_m_step_is_the_maximum(self, float64, c):
        """No point that scipy's search finds has a higher weighted likelihood."""
        x = c.rows()
        weights = np.random.default_rng(2).random((60, 1))
        params = m_step(c.family, x, weights)
        leaves = [np.asarray(leaf)[0] for leaf in jax.tree.leaves(params)]

        def loss(free):
            moved = [leaf * np.exp(f) for leaf, f in zip(leaves, np.reshape(free, (-1, 2)), strict=True)]
            return -np.sum(weights * c.law(*moved).logpdf(x))

        at = np.zeros(2 * len(leaves))
        best = scipy.optimize.minimize(loss, at, method="BFGS", options={"gtol": 1e-9})
        assert loss(at) <= best.fun + 1e-9
        np.testing.assert_allclose(best.x, 0, atol=1e-5)

    def test_draws_follow_the_law(self, float64, c):
        z = jnp.arange(4000) % 2
        x = np.asarray(c.family.sample(KEY, c.at(), z, jaxem.Data()))
        for k in range(2):
            for d in range(2):
                law = c.law(*(np.asarray(leaf)[k, d] for leaf in c.leaves))
                assert scipy.stats.kstest(x[k::2, d], law.cdf).pvalue > 1e-4
        mean, variance = c.family.mean(c.at(), jaxem.Data()), c.family.variance(c.at())
        law = c.law(*(np.asarray(leaf) for leaf in c.leaves))
        np.testing.assert_allclose(mean, law.mean(), rtol=1e-12)
        np.testing.assert_allclose(variance, law.var(), rtol=1e-9)


def log_prob_64(c, x, scale):
    """scipy's, at the same, already rounded, rows and parameters."""
    with jax.enable_x64(False):
        leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(c.at(scale=scale, dtype=jnp.float32))]
    return c.log_prob(x.astype(float), *leaves)


class TestGammaMStep:
    @pytest.mark.parametrize("shape", [1e-2, 0.3, 1.0, 7.5, 300.0, 1e5])
    def test_shape_solves_its_equation(self, float64, shape):
        x = scipy.stats.gamma(shape, scale=3.0).rvs((200, 1), random_state=0)
        x = np.maximum(x, 1e-300)
        params = m_step(jaxem.Gamma(), x, np.ones((200, 1)))
        a, rate = float(params.shape[0, 0]), float(params.rate[0, 0])
        log_y = np.log(x / x.mean()) if shape < 1e4 else np.log1p((x - x.mean()) / x.mean())
        s = np.mean((x - x.mean()) / x.mean() - log_y)  # the first sum is 0, and cancels roundings

        def excess(log_a):
            b = np.exp(log_a)
            gap = np.log(b) - scipy.special.digamma(b) if b < 1e3 else 1 / (2 * b) + 1 / (12 * b**2)
            return gap / s - 1

        expected = np.exp(scipy.optimize.brentq(excess, -20, 20, xtol=1e-14, rtol=1e-14))
        np.testing.assert_allclose(a, expected, rtol=1e-8)
        np.testing.assert_allclose(a / rate, x.mean(), rtol=1e-12)

    @pytest.mark.parametrize("name", ["shape", "rate"])
    def test_frozen_in_one_component(self, float64, name):
        """One component is held, the other is free: each is the maximum of scipy's likelihood."""
        c = POSITIVE[1]
        x, weights = c.rows(), np.random.default_rng(2).random((60, 2))
        old = c.at()
        new = m_step(c.family, x, weights, old, ((name, (True, False)),))
        assert np.array_equal(getattr(new, name)[0], getattr(old, name)[0])
        other = "rate" if name == "shape" else "shape"
        for d in range(2):
            held = float(getattr(old, name)[0, d])

            def loss(log_value, d=d, held=held):
                given = {name: held, other: np.exp(log_value)}
                return -np.sum(weights[:, 0] * c.law(**given).logpdf(x[:, d]))

            best = scipy.optimize.minimize_scalar(loss, (-1, 1), tol=1e-12)
            np.testing.assert_allclose(getattr(new, other)[0, d], np.exp(best.x), rtol=1e-6)
        free = m_step(c.family, x, weights, old)
        assert np.array_equal(new.shape[1], free.shape[1])
        assert np.array_equal(new.rate[1], free.rate[1])


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.1, 1.0])
@shaped
def test_m_step_in_float32_at_any_spread(c, spread):
    """Tight data, whose raw statistics cancel, and wide ones."""
    x = np.exp(np.random.default_rng(0).normal(size=(200, 1)) * spread + 3).astype(np.float32)
    weights = np.random.default_rng(1).random((200, 1))
    with jax.enable_x64(True):
        expected = m_step(c.family, x.astype(float), weights)
    with jax.enable_x64(False):
        ours = m_step(c.family, x, weights.astype(np.float32))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@positive
def test_row_06_the_same_fit_in_float32_at_every_scale(c, scale):
    """float32 against float64 on the same, already rounded, rows; and float64 against the law of scales."""
    x = (c.rows(200) * scale).astype(np.float32)
    n, d = x.shape
    control = jaxem.Control(jaxem.RelativeGain(1e-7), 300)

    def fit_rows(x, scale):
        model = mixture(c).calibrate(jnp.asarray(x))
        start = both(c.at(scale=scale, dtype=x.dtype))
        return jax.device_get(RUN(model, start, jnp.asarray(x), control=control))

    with jax.enable_x64(True):
        wide, unscaled = fit_rows(x.astype(float), scale), fit_rows(x.astype(float) / scale, 1.0)
    with jax.enable_x64(False):
        single = fit_rows(x, scale)
    assert Status(int(single.status)).success, Status(int(single.status)).text
    assert abs(float(wide.objective) - float(unscaled.objective) + n * d * np.log(scale)) / n < 1e-9
    assert wide.steps == unscaled.steps
    assert abs(float(single.objective) - float(wide.objective)) / n < 2e-5


@jax.jit
def _everything(model, data):
    """An EM step from a start, and gradients by the parameters and by the cells."""
    model = model.calibrate(data)
    params = model.init(KEY, data)
    step = model.e_step(params, data)
    moved = model.m_step(params, step.stats)
    free = model.to_free(moved)
    gradient = jax.grad(lambda f: model.e_step(model.from_free(f), data).log_likelihood)(free)
    by_cells = jax.grad(lambda x: model.e_step(moved, jaxem.Data(x, data.mask)).log_likelihood)(data.x)
    return step, moved, gradient, by_cells


@positive
class TestRow02Missing:
    def masked(self, c, poison, dtype):
        x = c.rows().astype(dtype)
        mask = np.random.default_rng(1).random(x.shape) < 0.7
        mask[3] = False
        return jaxem.Data(jnp.asarray(np.where(mask, x, poison).astype(dtype)), jnp.asarray(mask))

    @pytest.mark.parametrize("poison", [np.nan, 1e30, -1.0])
    def test_what_is_masked_is_never_read(self, dtype, c, poison):
        clean, poisoned = (_everything(mixture(c), self.masked(c, value, dtype)) for value in (1.5, poison))
        assert same_bits(clean, poisoned)
        assert all_finite(poisoned)

    def test_the_door_takes_them(self, dtype, c):
        data = self.masked(c, 1.0, dtype)
        assert quiet(mixture(c), data, key=KEY, max_steps=5).status.usable


@positive
class TestRow04NoSpread:
    def test_all_points_equal(self, dtype, c):
        value = 0.0 if c.name == "Exponential" else 3.7
        x = np.full((40, 2), value, dtype)
        with pytest.warns(jaxem.ConvergenceWarning) as caught:
            result = jaxem.fit(mixture(c), x, key=KEY)
        assert result.status == Status.DEGENERATE
        assert result.degenerate == (0, 1)
        assert all_finite(result.params)
        texts = [str(w.message) for w in caught]
        assert any("components 0, 1" in text for text in texts)
        assert any("constant columns" in text for text in texts)
        if c.name != "Exponential":
            np.testing.assert_allclose(c.family.mean(result.params.likelihood, None), x[:2], rtol=1e-4)

    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_a_duplicated_point_collapses_its_component_only(self, dtype, c, scale):
        x = c.rows()
        x[::2] = 0.0 if c.name == "Exponential" else 40 * np.max(x)
        x = (x * scale).astype(dtype)
        model = mixture(c).calibrate(jnp.asarray(x))
        one_hot = jax.nn.one_hot(jnp.arange(len(x)) % 2, 2, dtype=dtype)
        start = model.m_step(None, model.complete_statistics(one_hot, jnp.asarray(x)))
        with pytest.warns(jaxem.ConvergenceWarning, match=r"collapsed.*\(components 0\)"):
            result = jaxem.fit(model, x, params=start)
        assert result.degenerate == (0,)
        assert all_finite(result.params)

    def test_the_objective_does_not_fall_onto_the_floor(self, float64, c):
        x = c.rows()
        x[::2] = 0.0 if c.name == "Exponential" else 2.0
        family = dataclasses.replace(c.family, floor=0.05)
        model = jaxem.Mixture(family, 2).calibrate(jnp.asarray(x))
        starts = jax.vmap(lambda k: model.init(k, jnp.asarray(x)))(jax.random.split(KEY, 8))
        control = jaxem.Control(jaxem.Never(), 60)
        runs = jax.jit(jax.vmap(lambda p: jaxem.run(model, p, jnp.asarray(x), control=control, trace_size=61)))(starts)
        assert np.any(runs.status == Status.DEGENERATE)
        assert np.min(np.diff(runs.trace, axis=1)) > -1e-9


@positive
class TestRow05EmptyComponent:
    def test_it_keeps_its_parameters_to_the_last_bit(self, dtype, c):
        x = jnp.asarray(c.rows(), dtype)
        params = LatentParams(CategoricalParams(jnp.asarray([1.0, 0.0], dtype)), c.at(dtype=dtype))
        run = RUN(mixture(c).calibrate(x), params, x, control=jaxem.Control(jaxem.Never(), 30))
        assert all_finite(run.params)
        for new, old in zip(jax.tree.leaves(run.params.likelihood), jax.tree.leaves(params.likelihood), strict=True):
            assert np.array_equal(new[1], old[1])
            assert not np.array_equal(new[0], old[0])

    def test_a_column_that_a_component_never_sees(self, dtype, c):
        """All of column 1 is missing: its parameters stay, the others are those of column 0 alone."""
        x = c.rows().astype(dtype)
        mask = jnp.asarray(np.array([[True, False]]).repeat(len(x), axis=0))
        model = mixture(c).calibrate(jaxem.Data(jnp.asarray(x), mask))
        params = both(c.at(dtype=dtype))
        run = RUN(model, params, jaxem.Data(jnp.asarray(x), mask), control=jaxem.Control(jaxem.Never(), 5))
        assert all_finite(run.params)
        for new, old in zip(jax.tree.leaves(run.params.likelihood), jax.tree.leaves(params.likelihood), strict=True):
            assert np.array_equal(new[:, 1], old[:, 1])


@positive
class TestRow08OutsideTheSupport:
    @pytest.mark.parametrize("value", [-1.0, 0.0])
    def test_the_door_names_row_and_column(self, dtype, c, value):
        if c.name == "Exponential" and value == 0:
            return
        x = c.rows().astype(dtype)
        x[7, 1] = x[9, 0] = value
        with pytest.raises(ValueError, match=rf"{c.name} values are .*; got {value} in row 7, column 1"):
            jaxem.fit(mixture(c), x, key=KEY)
        mask = np.ones(x.shape, bool)
        mask[7, 1] = mask[9, 0] = False
        assert quiet(mixture(c), jaxem.Data(x, mask), key=KEY, max_steps=2).status.usable

    def test_row_09_pure_code_gives_a_status(self, dtype, c):
        x = jnp.asarray(c.rows(), dtype)
        model = mixture(c).calibrate(x)
        start = both(c.at(dtype=dtype))
        run = RUN(model, start, x.at[7, 1].set(-1))
        assert run.status == Status.ZERO_LIKELIHOOD
        assert same_bits(run.params, start)
        per_row = model.log_likelihood(start, x.at[7, 1].set(-1))
        assert np.flatnonzero(per_row == -np.inf).tolist() == [7]


@positive
@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_row_15_a_floor_is_positive(c, floor):
    with pytest.raises(ValueError, match=rf"floor must be positive; got {floor}"):
        dataclasses.replace(c.family, floor=floor)
