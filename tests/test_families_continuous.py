"""The continuous families against scipy, and what is promised of them when things go wrong.

The numbers in the names are the rows of the table of promises.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import jaxem
from jaxem import CategoricalParams, LatentParams, Status, bessel, special

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
    chex.assert_trees_all_close(ours, expected, rtol=1e-4)


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


@positive
class TestRow02Missing:
    def masked(self, c, poison, dtype):
        x = c.rows().astype(dtype)
        mask = np.random.default_rng(1).random(x.shape) < 0.7
        mask[3] = False
        return jaxem.Data(jnp.asarray(np.where(mask, x, poison).astype(dtype)), jnp.asarray(mask))

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
        chex.assert_tree_all_finite(result.params)
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
        chex.assert_tree_all_finite(result.params)

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
    def test_a_column_that_a_component_never_sees(self, dtype, c):
        """All of column 1 is missing: its parameters stay, the others are those of column 0 alone."""
        x = c.rows().astype(dtype)
        mask = jnp.asarray(np.array([[True, False]]).repeat(len(x), axis=0))
        model = mixture(c).calibrate(jaxem.Data(jnp.asarray(x), mask))
        params = both(c.at(dtype=dtype))
        run = RUN(model, params, jaxem.Data(jnp.asarray(x), mask), control=jaxem.Control(jaxem.Never(), 5))
        chex.assert_tree_all_finite(run.params)
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


@positive
@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_row_15_a_floor_is_positive(c, floor):
    with pytest.raises(ValueError, match=rf"floor must be positive; got {floor}"):
        dataclasses.replace(c.family, floor=floor)


@dataclasses.dataclass(frozen=True, eq=False)
class Bounded:
    """A family of rows in a bounded set. laws: scipy's, of the two components. leaves: in the order of the fields.

    floored: what the mean of a collapsed component is compared with. outside: a row that is no observation, and what
    the error says of it.
    """

    name: str
    family: Any
    params: Any
    leaves: tuple[Any, ...]
    laws: tuple[Any, ...]
    outside: tuple[list[float], str]

    def __str__(self):
        return self.name

    def at(self, dtype=None):
        return self.params(*(jnp.asarray(leaf, dtype) for leaf in self.leaves))

    def rows(self, n=60, seed=0):
        """Draws from both components in turn, [n, D]."""
        rng = np.random.default_rng(seed)
        x = np.empty((n, np.shape(self.leaves[0])[1]))
        for k, law in enumerate(self.laws):
            size = (len(x[k::2]), x.shape[1]) if self.name == "Beta" else len(x[k::2])
            x[k::2] = law.rvs(size=size, random_state=rng)
        return x

    def log_prob(self, x):
        """scipy's, [N, K]."""
        if self.name == "Beta":
            return np.stack([law.logpdf(x).sum(axis=-1) for law in self.laws], axis=-1)
        turned = x.T if self.name == "Dirichlet" else x
        return np.stack([law.logpdf(turned) for law in self.laws], axis=-1)


def _bounded():
    a, b = np.array([[0.6, 9.0], [20.0, 3.0]]), np.array([[2.0, 3.0], [5.0, 12.0]])
    shares = np.array([[0.7, 2.0, 4.0], [30.0, 9.0, 5.0]])
    means, kappa = np.array([[2.0, 1.0, -2.0], [0.0, -0.6, 0.8]]), np.array([1.5, 40.0])
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    circle = np.array([[0.6, 0.8], [0.0, -1.0]])
    sphere = tuple(scipy.stats.vonmises_fisher(m, k) for m, k in zip(means, kappa))
    arcs = tuple(scipy.stats.vonmises_fisher(m, k) for m, k in zip(circle, kappa))
    direction, params = jaxem.VonMisesFisher(), jaxem.VonMisesFisherParams
    return [
        Bounded(
            "Beta",
            jaxem.Beta(),
            jaxem.BetaParams,
            (a, b),
            tuple(scipy.stats.beta(*p) for p in zip(a, b)),
            ([0.5, 1.0], r"Beta values lie between 0 and 1; got 1\.0 in row 7, column 1"),
        ),
        Bounded(
            "Dirichlet",
            jaxem.Dirichlet(),
            jaxem.DirichletParams,
            (shares,),
            tuple(scipy.stats.dirichlet(p) for p in shares),
            ([0.5, 0.0, 0.5], r"Dirichlet values are positive; got 0\.0 in row 7, column 1"),
        ),
        Bounded(
            "VonMisesFisher",
            direction,
            params,
            (means, kappa),
            sphere,
            ([0.0, 2.0, 0.0], "VonMisesFisher rows have length 1; row 7 has length 2"),
        ),
        Bounded(
            "circle",
            direction,
            params,
            (circle, kappa),
            arcs,
            ([0.0, 0.0], "VonMisesFisher rows have length 1; row 7 has length 0"),
        ),
    ]


BOUNDED = _bounded()
bounded = pytest.mark.parametrize("c", BOUNDED, ids=str)


class TestSpecialFunctionsOfBoundedFamilies:
    KAPPA = np.concatenate([np.logspace(-3, 6, 37)])

    @pytest.mark.parametrize("d", [2, 3, 5, 30, 100, 101])
    def test_bessel_functions_equal_scipy(self, float64, d):
        order, kappa = d / 2 - 1, self.KAPPA
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = scipy.special.ive(order, kappa)
            constant = order * np.log(kappa) - d / 2 * np.log(2 * np.pi) - np.log(scaled)
            gap = 1 - scipy.special.ive(order + 1, kappa) / scaled
        normal = scaled > 1e-280  # scipy's underflow
        ours = jax.jit(bessel.von_mises_fisher_constant, static_argnums=1)(jnp.asarray(kappa), d)
        np.testing.assert_allclose(ours[normal], constant[normal], rtol=1e-13, atol=1e-12)
        ours = jax.jit(bessel.bessel_gap, static_argnums=1)(jnp.asarray(kappa), d)
        np.testing.assert_allclose(ours[normal], gap[normal], atol=2e-13)
        assert normal.sum() > 20

    @pytest.mark.parametrize("d", [2, 3, 300])
    def test_they_hold_in_float32_and_at_no_concentration(self, d):
        kappa = np.concatenate([[0], self.KAPPA]).astype(np.float32)

        def of(kappa):
            gap = bessel.bessel_gap(kappa, d)
            curvature = jax.vmap(jax.grad(jax.grad(lambda k: bessel.von_mises_fisher_constant(k, d))))(kappa)
            return (
                bessel.von_mises_fisher_constant(kappa, d),
                gap,
                bessel.von_mises_fisher_concentration(gap, d),
                curvature,
            )

        with jax.enable_x64(True):
            wide = jax.device_get(jax.jit(of)(jnp.asarray(kappa, float)))
        with jax.enable_x64(False):
            single = jax.device_get(jax.jit(of)(jnp.asarray(kappa)))
        area = np.log(2) + d / 2 * np.log(np.pi) - scipy.special.gammaln(d / 2)
        np.testing.assert_allclose(wide[0][0], -area, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(single[0], wide[0], rtol=2e-6, atol=2e-6)
        np.testing.assert_allclose(single[1], wide[1], rtol=1e-5)
        np.testing.assert_allclose(wide[2], kappa, rtol=1e-9, atol=1e-10 * d)
        np.testing.assert_allclose(single[2], kappa, rtol=1e-4, atol=1e-5 * d)
        chex.assert_tree_all_finite(single)
        slope = np.gradient(wide[1][:20], kappa[:20].astype(float))[1:-1]
        np.testing.assert_allclose(wide[3][1:19], slope, rtol=0.3, atol=1e-3)

    @pytest.mark.parametrize("n", [1e-2, 1.0, 30.0, 1e4, 1e6])
    def test_concentrations_from_mean_logarithms(self, float64, n):
        share, center = jnp.asarray([[0.1, 0.6, 0.3], [0.01, 0.01, 0.98]]), jnp.asarray([0.3, 0.4, 0.3])
        a = n * share

        def means(a):
            total = jnp.sum(a, axis=-1, keepdims=True)
            spread = special.log_minus_digamma(a) - special.log_minus_digamma(total)
            return special.log_ratio(a / total, center) - spread

        def found(mean):
            return special.dirichlet_concentration(mean, jnp.broadcast_to(center, mean.shape), jnp.full(2, 1e9))

        mean = means(a)
        if n <= 30:
            expected = scipy.special.digamma(a) - scipy.special.digamma(n) - np.log(center)
            np.testing.assert_allclose(mean, expected, rtol=1e-12)
        np.testing.assert_allclose(jax.jit(found)(mean), a, rtol=3e-8)
        for k in range(2):
            forth = jax.jacfwd(lambda row, k=k: means(a.at[k].set(row))[k])(a[k])
            back = jax.jit(jax.jacrev(lambda row, k=k: found(mean.at[k].set(row))[k]))(mean[k])
            np.testing.assert_allclose(back @ forth, np.eye(3), atol=1e-6)


@bounded
class TestBoundedAgainstScipy:
    def test_log_prob(self, float64, c):
        x = c.rows()
        expected = c.log_prob(x)
        np.testing.assert_allclose(log_prob(c.family, c.at(), x), expected, rtol=1e-10, atol=1e-11)
        plain = c.family.log_prob(c.at(), c.family.statistics(jaxem.Data(jnp.asarray(x))))
        np.testing.assert_allclose(plain, expected, rtol=1e-10, atol=1e-11)

    def test_log_prob_in_float32(self, float32, c):
        x = c.rows().astype(np.float32)
        x = np.clip(x, 1e-6, 1 - 1e-6) if c.name == "Beta" else x
        with jax.enable_x64(True):
            expected = log_prob(c.family, c.at(), x.astype(float))
        np.testing.assert_allclose(log_prob(c.family, c.at(jnp.float32), x), expected, rtol=1e-5, atol=2e-5)

    def test_m_step_is_the_maximum(self, float64, c):
        """Moving what it found in any direction lowers scipy's likelihood, and its equations hold to 1e-8."""
        x = c.rows()
        w = np.random.default_rng(2).random((60, 1))
        params = m_step(c.family, x, w)
        share = w[:, 0] / w.sum()
        if c.name == "Beta":
            for d in range(2):
                logs = share @ np.log(x[:, d]), share @ np.log1p(-x[:, d])
                expected = np.exp(_dirichlet_root(np.array(logs)))
                np.testing.assert_allclose([params.a[0, d], params.b[0, d]], expected, rtol=1e-8)
        elif c.name == "Dirichlet":
            expected = np.exp(_dirichlet_root(share @ np.log(x)))
            np.testing.assert_allclose(params.concentration[0], expected, rtol=1e-8)
        else:
            d, mean = x.shape[1], share @ x
            length = np.linalg.norm(mean)

            def excess(log_kappa):
                kappa = np.exp(log_kappa)
                return scipy.special.ive(d / 2, kappa) / scipy.special.ive(d / 2 - 1, kappa) - length

            expected = np.exp(scipy.optimize.brentq(excess, -10, 10, xtol=1e-13))
            np.testing.assert_allclose(params.concentration[0], expected, rtol=1e-8)
            np.testing.assert_allclose(params.mean[0], mean / length, rtol=1e-10)

    def test_draws_follow_the_law(self, float64, c):
        z = jnp.arange(6000) % 2
        x = np.asarray(c.family.sample(KEY, c.at(), z, jaxem.Data()))
        c.family.validate(jaxem.Data(x))
        for k in range(2):
            mine = x[k::2]
            np.testing.assert_allclose(
                c.family.mean(c.at(), jaxem.Data())[k], mine.mean(axis=0), atol=6 * mine.std() / np.sqrt(3000)
            )
            if c.name == "Beta":
                tests = [(mine[:, d], scipy.stats.beta(c.leaves[0][k, d], c.leaves[1][k, d]).cdf) for d in range(2)]
            elif c.name == "Dirichlet":
                a = c.leaves[0][k]
                tests = [(mine[:, d], scipy.stats.beta(a[d], a.sum() - a[d]).cdf) for d in range(3)]
            elif c.name == "circle":
                (cosine, sine), kappa = c.leaves[0][k], c.leaves[1][k]
                along, across = mine @ [cosine, sine], mine @ [-sine, cosine]
                tests = [(np.arctan2(across, along), scipy.stats.vonmises(kappa).cdf)]
            else:
                kappa, along = c.leaves[1][k], mine @ c.leaves[0][k]
                tests = [(along, lambda w, kappa=kappa: np.expm1(kappa * (w + 1)) / np.expm1(2 * kappa))]
            for draws, cdf in tests:
                assert scipy.stats.kstest(draws, cdf).pvalue > 1e-4


def _dirichlet_root(mean_logs):
    """log a with ψ(a_i) − ψ(Σ a) = E log x_i, by scipy."""

    def excess(log_a):
        a = np.exp(log_a)
        return scipy.special.digamma(a) - scipy.special.digamma(a.sum()) - mean_logs

    found = scipy.optimize.root(excess, np.zeros(len(mean_logs)), tol=1e-13)
    assert np.max(np.abs(found.fun)) < 1e-11
    return found.x


@pytest.mark.parametrize("name", ["a", "b"])
def test_beta_frozen_in_one_component(float64, name):
    """One component is held, the other is free: each is the maximum of scipy's likelihood."""
    c, other = BOUNDED[0], "b" if name == "a" else "a"
    x, weights = c.rows(), np.random.default_rng(2).random((60, 2))
    old = c.at()
    new = m_step(c.family, x, weights, old, ((name, (True, False)),))
    assert np.array_equal(getattr(new, name)[0], getattr(old, name)[0])
    for d in range(2):
        held = float(getattr(old, name)[0, d])

        def loss(log_value, d=d, held=held):
            given = {name: held, other: np.exp(log_value)}
            return -np.sum(weights[:, 0] * scipy.stats.beta(**given).logpdf(x[:, d]))

        best = scipy.optimize.minimize_scalar(loss, (-1, 1), tol=1e-12)
        np.testing.assert_allclose(getattr(new, other)[0, d], np.exp(best.x), rtol=1e-6)
    free = m_step(c.family, x, weights, old)
    assert np.array_equal(new.a[1], free.a[1])
    assert np.array_equal(new.b[1], free.b[1])


@pytest.mark.parametrize("given", [1e-4, 0.1, 3.0, 1e5])
@pytest.mark.parametrize("ratio", [1e-3, 0.5, 1.0, 50.0])
def test_beta_shape_given_the_other(float64, given, ratio):
    """From 1e-7 to 5e6: what is frozen can be anything."""
    a = given * ratio
    x = np.clip(np.random.default_rng(0).beta(a, given, (300, 1)), 1e-300, 1 - 1e-16)
    old = jaxem.BetaParams(jnp.ones((1, 1)), jnp.full((1, 1), given))
    family = jaxem.Beta(floor=1e-12)
    new = m_step(family, x, np.ones((300, 1)), old, (("b", True),))
    free = m_step(family, x, np.ones((300, 1)), dataclasses.replace(old, a=new.a), (("b", True),))
    np.testing.assert_allclose(free.a, new.a, rtol=1e-9)
    if a + given < 1e3:
        found = float(new.a[0, 0])
        residual = scipy.special.digamma(found) - scipy.special.digamma(found + given) - np.log(x).mean()
        assert abs(residual) < 1e-8 * (1 + abs(np.log(x).mean()))


def _tight(c, spread, n=200):
    """Rows about one point, as far apart as ``spread``, and of the family's support in float32."""
    noise = spread * np.random.default_rng(0).normal(size=(n, np.shape(c.leaves[0])[1]))
    if c.name == "Beta":
        return (0.3 + 0.1 * noise).astype(np.float32)
    if c.name == "Dirichlet":
        x = np.exp(noise) * [0.2, 0.5, 0.3]
        return (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)
    x = c.leaves[0][0] + noise
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("spread", [3e-3, 0.1, 0.5])
@bounded
def test_large_concentrations_in_float32(c, spread):
    """Tight data, whose raw statistics cancel: the M-step, log p there, and its gradient."""
    x, weights = _tight(c, spread), np.random.default_rng(1).random((200, 1))
    with jax.enable_x64(True):
        expected = m_step(c.family, x.astype(float), weights)
        exact = log_prob(c.family, expected, x.astype(float))
    with jax.enable_x64(False):
        ours = m_step(c.family, x, weights.astype(np.float32))
        density = log_prob(c.family, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), expected), x)
        free = c.family.to_free(ours)
        gradient = jax.grad(lambda f: jnp.sum(_log_prob(c.family, c.family.from_free(f), jaxem.Data(x))))(free)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected))
    assert spread > 0.01 or largest > 1e4
    chex.assert_trees_all_close(ours, expected, rtol=1e-3)
    np.testing.assert_allclose(density, exact, rtol=1e-4, atol=1e-3)
    assert abs(density.mean() - exact.mean()) < 2e-5 * max(1, abs(exact.mean()))
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("c", BOUNDED[:3], ids=str)
class TestBoundedPromises:
    def separated(self, c, dtype, floor=None):
        """Every other row is one and the same: its component collapses."""
        x = c.rows()
        x[::2] = x[4]
        x = np.clip(x, 1e-4, 1 - 1e-4) if c.name == "Beta" else x
        family = c.family if floor is None else dataclasses.replace(c.family, floor=floor)
        return x.astype(dtype), jaxem.Mixture(family, 2).calibrate(jnp.asarray(x, dtype))

    def masked(self, c, poison, dtype):
        x = c.rows().astype(dtype)
        mask = np.random.default_rng(1).random(x.shape) < 0.7
        mask[3] = False
        mask = mask if c.name == "Beta" else mask[:, 0]
        seen = mask if mask.ndim == 2 else mask[:, None]
        return jaxem.Data(jnp.asarray(np.where(seen, x, poison).astype(dtype)), jnp.asarray(mask))

    def test_row_02_the_door_takes_them(self, dtype, c):
        assert quiet(mixture(c), self.masked(c, 1.0, dtype), key=KEY, max_steps=5).status.usable

    def test_row_04_all_points_equal(self, dtype, c):
        x = np.repeat(c.rows()[4:5], 40, axis=0).astype(dtype)
        with pytest.warns(jaxem.ConvergenceWarning):
            result = jaxem.fit(mixture(c), x, key=KEY)
        assert result.status == Status.DEGENERATE
        assert result.degenerate == (0, 1)
        chex.assert_tree_all_finite(result.params)
        np.testing.assert_allclose(c.family.mean(result.params.likelihood, None), x[:2], rtol=1e-3, atol=1e-4)

    def test_row_04_a_duplicated_point_collapses_its_component_only(self, dtype, c):
        x, model = self.separated(c, dtype)
        one_hot = jax.nn.one_hot(jnp.arange(len(x)) % 2, 2, dtype=dtype)
        start = model.m_step(None, model.complete_statistics(one_hot, jnp.asarray(x)))
        with pytest.warns(jaxem.ConvergenceWarning, match=r"collapsed.*\(components 0\)"):
            result = jaxem.fit(model, x, params=start)
        assert result.degenerate == (0,)
        chex.assert_tree_all_finite(result.params)

    def test_row_04_the_objective_does_not_fall_onto_the_floor(self, float64, c):
        x, model = self.separated(c, float, floor=0.05)
        starts = jax.vmap(lambda k: model.init(k, jnp.asarray(x)))(jax.random.split(KEY, 8))
        control = jaxem.Control(jaxem.Never(), 60)
        runs = jax.jit(jax.vmap(lambda p: jaxem.run(model, p, jnp.asarray(x), control=control, trace_size=61)))(starts)
        assert np.any(runs.status == Status.DEGENERATE)
        assert np.min(np.diff(runs.trace, axis=1)) > -1e-9

    def test_row_06_the_same_fit_in_float32(self, c):
        x = c.rows(200).astype(np.float32)
        control = jaxem.Control(jaxem.RelativeGain(1e-7), 300)

        def fit_rows(x):
            return jax.device_get(
                RUN(mixture(c).calibrate(jnp.asarray(x)), both(c.at(x.dtype)), jnp.asarray(x), control=control)
            )

        with jax.enable_x64(True):
            wide = fit_rows(x.astype(float))
        with jax.enable_x64(False):
            single = fit_rows(x)
        assert Status(int(single.status)).success, Status(int(single.status)).text
        assert abs(float(single.objective) - float(wide.objective)) / len(x) < 2e-5

    def test_row_08_the_door_names_the_row(self, dtype, c):
        x = c.rows().astype(dtype)
        x[7], text = c.outside
        with pytest.raises(ValueError, match=text):
            jaxem.fit(mixture(c), x, key=KEY)
        mask = np.ones(x.shape if c.name == "Beta" else len(x), bool)
        mask[7] = False
        assert quiet(mixture(c), jaxem.Data(x, mask), key=KEY, max_steps=2).status.usable

    @pytest.mark.parametrize("floor", [0.0, -1.0])
    def test_row_15_a_floor_is_positive(self, c, floor):
        with pytest.raises(ValueError, match=rf"floor must be positive; got {floor}"):
            dataclasses.replace(c.family, floor=floor)


@pytest.mark.parametrize("c", [*BOUNDED[:3], POSITIVE[1]], ids=str)
def test_row_09_outside_the_support_pure_code_gives_a_status(dtype, c):
    """A status for the fit, and the start kept; of which families, the law "outside" asks all."""
    x = jnp.asarray(c.rows(), dtype)
    model, start = mixture(c).calibrate(x), both(c.at(dtype=dtype))
    x = x.at[7].set(jnp.asarray(c.outside[0] if hasattr(c, "outside") else [1.0, -1.0], dtype))
    run = RUN(model, start, x)
    assert run.status == Status.ZERO_LIKELIHOOD
    chex.assert_trees_all_equal(run.params, start)
    assert np.flatnonzero(model.log_likelihood(start, x) == -np.inf).tolist() == [7]


class TestShapesOfRows:
    def test_a_single_column_is_refused(self):
        x = np.ones((9, 1))
        with pytest.raises(ValueError, match="Dirichlet rows need at least 2 columns; got 1"):
            jaxem.fit(jaxem.Mixture(jaxem.Dirichlet(), 2), x, key=KEY)
        with pytest.raises(ValueError, match="at least 2 dimensions; got 1 column"):
            jaxem.fit(jaxem.Mixture(jaxem.VonMisesFisher(), 2), x, key=KEY)

    def test_rows_that_do_not_sum_to_1_are_refused(self):
        x = BOUNDED[1].rows()
        x[5] *= 1.5
        with pytest.raises(ValueError, match=r"Dirichlet rows sum to 1; row 5 sums to 1\.5"):
            jaxem.fit(jaxem.Mixture(jaxem.Dirichlet(), 2), x, key=KEY)


class TestDirections:
    def test_the_circle_equals_von_mises(self, float64):
        c = BOUNDED[3]
        angle = np.linspace(-3, 3, 40)
        x = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        expected = [
            scipy.stats.vonmises(kappa, loc=np.arctan2(*mean[::-1])).logpdf(angle) for mean, kappa in zip(*c.leaves)
        ]
        np.testing.assert_allclose(log_prob(c.family, c.at(), x), np.transpose(expected), rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("d", [2, 3, 40])
    def test_opposite_directions_and_axes_have_coordinates(self, dtype, d):
        mean = np.concatenate([np.eye(d)[:2], -np.eye(d)[:2], np.full((2, d), d**-0.5) * [[1], [-1]]]).astype(dtype)
        params = jaxem.VonMisesFisherParams(jnp.asarray(mean), jnp.asarray([0, 1e-3, 1, 10, 1e4, 1e6], dtype))
        family = jaxem.VonMisesFisher()
        calibrated = family.calibrate(jaxem.Data(jnp.asarray(mean[:1])), None)
        for one in (family, calibrated):
            free = one.to_free(params)
            chex.assert_tree_all_finite(free)
            assert free.mean.shape == (6, d - 1)
            back = one.from_free(free)
            np.testing.assert_allclose(back.mean, mean, atol=10 * jnp.finfo(dtype).eps)
            np.testing.assert_allclose(back.concentration, params.concentration, rtol=100 * jnp.finfo(dtype).eps)

    @pytest.mark.parametrize("d", [2, 3, 40])
    @pytest.mark.parametrize("kappa", [0.0, 0.3, 50.0, 1e5])
    def test_draws_at_any_concentration(self, dtype, d, kappa):
        family = jaxem.VonMisesFisher()
        params = jaxem.VonMisesFisherParams(jnp.eye(d, dtype=dtype)[-1:], jnp.asarray([kappa], dtype))
        x = family.sample(KEY, params, jnp.zeros(3000, int), jaxem.Data())
        np.testing.assert_allclose(jnp.sum(x**2, axis=-1), 1, atol=10 * jnp.finfo(dtype).eps)
        gap = 0.5 * np.sum(np.square(np.asarray(x - params.mean, float)), axis=-1)
        expected = float(bessel.bessel_gap(params.concentration, d)[0])
        assert abs(gap.mean() - expected) < 5 * gap.std() / np.sqrt(3000)

    def test_rows_without_a_direction_of_their_own(self, dtype):
        """The mean of opposite rows is no direction: concentration 0, and nothing that is not finite."""
        x = jnp.asarray(np.repeat([[1.0, 0, 0], [-1, 0, 0]], 10, axis=0), dtype)
        model = jaxem.Mixture(jaxem.VonMisesFisher(), 1).calibrate(x)
        params = model.m_step(None, model.complete_statistics(jnp.ones((20, 1), dtype), x))
        assert float(params.likelihood.concentration[0]) < 1e-5
        step = model.e_step(params, x)
        np.testing.assert_allclose(step.log_likelihood, -20 * np.log(4 * np.pi), rtol=1e-5)
        again = model.m_step(params, step.stats)
        assert np.array_equal(again.likelihood.mean, params.likelihood.mean)
        chex.assert_tree_all_finite(
            jax.grad(lambda f: model.e_step(model.from_free(f), x).log_likelihood)(model.to_free(params))
        )
