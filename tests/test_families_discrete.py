"""Discrete families against scipy and enumeration, at the edges of their parameters, with cells missing, on bad data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import jaxem
from jaxem import Data, Status

KEY = jax.random.key(0)
RUN = jax.jit(jaxem.run, static_argnames="trace_size")


def two_groups(*columns):
    """[40, D]: of every column (one sampler for even rows, another for odd ones)."""
    rng = np.random.default_rng(0)
    odd = np.arange(40) % 2 == 1
    return np.stack([np.where(odd, b(rng), a(rng)) for a, b in columns], axis=1).astype(float)


FAMILIES = {
    "bernoulli": (
        jaxem.Bernoulli(),
        two_groups(*[(lambda r: r.random(40) < 0.2, lambda r: r.random(40) < 0.7)] * 3),
    ),
    "binomial": (
        jaxem.Binomial([5, 9, 1]),
        two_groups(
            *[(lambda r, t=t: r.binomial(t, 0.2, 40), lambda r, t=t: r.binomial(t, 0.8, 40)) for t in (5, 9, 1)]
        ),
    ),
    "categorical": (
        jaxem.Categorical((3, 2, 4)),
        two_groups(*[(lambda r: r.integers(0, 2, 40), lambda r, c=c: r.integers(0, c, 40)) for c in (3, 2, 4)]),
    ),
    "geometric": (
        jaxem.Geometric(),
        two_groups(*[(lambda r: r.geometric(0.2, 40) - 1, lambda r: r.geometric(0.6, 40) - 1)] * 3),
    ),
    "poisson": (jaxem.Poisson(), two_groups(*[(lambda r: r.poisson(2, 40), lambda r: r.poisson(9, 40))] * 3)),
    "negative binomial": (
        jaxem.NegativeBinomial(),
        two_groups(*[(lambda r: r.poisson(r.gamma(2, 1, 40)), lambda r: r.poisson(r.gamma(3, 4, 40)))] * 3),
    ),
    "zero inflated": (
        jaxem.ZeroInflated(jaxem.Poisson()),
        two_groups(
            *[(lambda r: r.poisson(2 * (r.random(40) < 0.7)), lambda r: r.poisson(9 * (r.random(40) < 0.5)))] * 3
        ),
    ),
}
AUGMENTED = ("negative binomial", "zero inflated")
BAD = {
    "bernoulli": (-1.0, 2.0, 0.5),
    "binomial": (-1.0, 10.0, 0.5),
    "categorical": (-1.0, 4.0, 1.5),
    "geometric": (-1.0, 0.5),
    "poisson": (-1.0, 0.5),
    "negative binomial": (-1.0, 0.5),
    "zero inflated": (-1.0, 0.5),
    "multinomial": (-1.0, 0.5),
}
every_family = pytest.mark.parametrize("name", FAMILIES)


def fitted_start(name, x=None):
    """(calibrated mixture, data, a start)."""
    family, data = FAMILIES[name]
    x = jnp.asarray(data if x is None else x)
    model = jaxem.Mixture(family, 2).calibrate(x)
    return model, x, model.init(KEY, x)


def log_prob(family, params, x, mask=None):
    data = Data(x=jnp.asarray(x), mask=mask)
    return family.log_prob(params, family.statistics(data))


class TestScipy:
    """log p of every family, at and away from the centre it is calibrated to, one member per row of parameters."""

    PROB = np.array([[0.2, 0.9], [0.55, 0.01]])

    def check(self, family, params, columns, expected, tolerance=1e-12):
        x = np.stack(np.meshgrid(*columns, indexing="ij"), axis=-1).reshape(-1, len(columns)).astype(float)
        want = np.sum([expected(x[:, None, d], d) for d in range(len(columns))], axis=0)
        for own in (family, family.calibrate(Data(x=jnp.asarray(x)), None)):
            np.testing.assert_allclose(log_prob(own, params, x), want, rtol=tolerance, atol=tolerance)

    def test_bernoulli(self, float64):
        params = jaxem.BernoulliParams(jnp.asarray(self.PROB))
        self.check(
            jaxem.Bernoulli(), params, [[0, 1]] * 2, lambda x, d: scipy.stats.bernoulli.logpmf(x, self.PROB[:, d])
        )

    @pytest.mark.parametrize("trials", [12, [12, 40]], ids=str)
    def test_binomial(self, float64, trials):
        params = jaxem.BinomialParams(jnp.asarray(self.PROB))
        n = np.broadcast_to(trials, 2)
        columns = [np.arange(n[0] + 1), np.arange(n[1] + 1)]
        self.check(
            jaxem.Binomial(trials), params, columns, lambda x, d: scipy.stats.binom.logpmf(x, n[d], self.PROB[:, d])
        )

    def test_geometric(self, float64):
        params = jaxem.GeometricParams(jnp.asarray(self.PROB))
        self.check(
            jaxem.Geometric(),
            params,
            [np.arange(8), [0, 3, 1000]],
            lambda x, d: scipy.stats.geom.logpmf(x, self.PROB[:, d], loc=-1),
        )

    def test_categorical(self, float64):
        prob = np.array([[[0.2, 0.3, 0.5], [0.9, 0.1, 0]], [[0.1, 0.1, 0.8], [0.5, 0.5, 0]]])
        self.check(
            jaxem.Categorical((3, 2)),
            jaxem.CategoryParams(jnp.asarray(prob)),
            [[0, 1, 2], [0, 1]],
            lambda x, d: np.log(prob[:, d][np.arange(2), x.astype(int)]),
        )

    def test_multinomial(self, float64):
        x = np.array([[3, 0, 5], [0, 0, 0], [120, 30, 50], [0, 0, 7], [2e6, 1e6, 3e6]])
        prob = np.array([[0.2, 0.3, 0.5], [0.35, 0.15, 0.5]])
        want = np.stack([scipy.stats.multinomial.logpmf(x, x.sum(axis=1), p) for p in prob], axis=1)
        for family in (jaxem.Multinomial(), jaxem.Multinomial().calibrate(Data(x=jnp.asarray(x)), None)):
            got = log_prob(family, jaxem.MultinomialParams(jnp.asarray(prob)), x)
            np.testing.assert_allclose(got, want, rtol=1e-9)

    def test_big_counts_in_float32(self, float32):
        """At a million trials log C(n, x) and x log p are of size 1e6, log p of size 7."""
        n, prob = 10**6, np.float32(0.3)
        x = np.array([[300_000.0], [299_000], [300_777]], np.float32)
        binomial = jaxem.Binomial(n).calibrate(Data(x=jnp.asarray(x)), None)
        got = log_prob(binomial, jaxem.BinomialParams(jnp.full((1, 1), prob)), x)[:, 0]
        np.testing.assert_allclose(got, scipy.stats.binom.logpmf(x[:, 0], n, float(prob)), atol=2e-4)
        rows = np.concatenate([x, n - x], axis=1)
        multinomial = jaxem.Multinomial().calibrate(Data(x=jnp.asarray(rows)), None)
        params = jaxem.MultinomialParams(jnp.array([[prob, 1 - prob]]))
        np.testing.assert_allclose(log_prob(multinomial, params, rows)[:, 0], got, atol=2e-4)


class TestNegativeBinomial:
    """Against sums of logarithms in extended precision, scipy and its optimizers."""

    MEANS, SIZES = (1e-3, 0.5, 4.0, 60.0, 1e3, 1e6), (1e-2, 0.3, 2.0, 15.0, 300.0, 1e5, 1e8)
    X = np.array([[0.0], [1], [2], [7], [50], [1000], [100_000]])

    def exact(self, x, mean, size):
        j = np.arange(int(x)).astype(np.longdouble)
        mean, size = np.longdouble(mean), np.longdouble(size)
        terms = np.log((size + j) / (j + 1)) + np.log(mean / (size + mean))
        return float(np.sum(terms) - size * np.log1p(mean / size))

    def test_log_p_at_all_sizes(self, dtype):
        """Means, sizes and counts of any order, also where log Γ is a million times log p."""
        grid = np.array([(m, r) for m in self.MEANS for r in self.SIZES]).astype(dtype)
        params = jaxem.NegativeBinomialParams(*jnp.asarray(grid.T[:, :, None]))
        got = log_prob(jaxem.NegativeBinomial(), params, self.X.astype(dtype))
        want = np.array([[self.exact(x, m, r) for m, r in grid] for x in self.X[:, 0]])
        np.testing.assert_allclose(got, want, rtol=2e-6 if dtype == np.float32 else 1e-12, atol=1e-6)

    def test_log_p_equals_scipy(self, float64):
        mean, size = np.array([[0.5, 9.0], [4.0, 30.0]]), np.array([[0.7, 2.0], [25.0, 0.1]])
        x = np.stack(np.meshgrid(np.arange(12), np.arange(40)), axis=-1).reshape(-1, 2).astype(float)
        params = jaxem.NegativeBinomialParams(jnp.asarray(mean), jnp.asarray(size))
        want = scipy.stats.nbinom.logpmf(x[:, None], size, size / (size + mean)).sum(axis=-1)
        np.testing.assert_allclose(log_prob(jaxem.NegativeBinomial(), params, x), want, rtol=1e-11)

    def test_groups_are_tables_of_a_chinese_restaurant(self, float64):
        """x − E[m | x] = Σ_j j/(r + j): the sum the statistics are accurate for, at sizes where digammas cancel."""
        x, size = np.array([[0.0], [1], [2], [40], [3000]]), np.array([[1e-3], [0.5], [20.0], [1e4], [1e8]])
        params = jaxem.NegativeBinomialParams(jnp.ones((5, 1)), jnp.asarray(size))
        family = jaxem.NegativeBinomial()
        for row in x:
            stats = family.accumulate(params, family.statistics(Data(x=jnp.asarray(row[None]))), jnp.ones((1, 5)))
            got = stats.split(2)[1][1][:, 0]
            want = [np.sum(np.arange(row[0]) / (r + np.arange(row[0]))) for r in size[:, 0]]
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)

    def negative(self, x, weights, mean, size):
        return -np.sum(weights * scipy.stats.nbinom.logpmf(x, size, size / (size + mean)))

    def test_the_fit_is_the_maximum(self, float64):
        rng = np.random.default_rng(0)
        x, weights = rng.negative_binomial(2.5, 0.4, 200).astype(float), rng.integers(0, 4, 200).astype(float)
        best = scipy.optimize.minimize(
            lambda t: self.negative(x, weights, *np.exp(t)), [1.0, 1.0], method="Nelder-Mead", options={"fatol": 1e-12}
        )
        model = jaxem.Mixture(jaxem.NegativeBinomial(), 1)
        result = jaxem.fit(model, x[:, None], weights=weights, key=KEY, tol=1e-13)
        np.testing.assert_allclose(result.log_likelihood, -best.fun, rtol=1e-10)
        found = result.params.likelihood
        np.testing.assert_allclose([found.mean[0, 0], found.size[0, 0]], np.exp(best.x), rtol=1e-4)
        np.testing.assert_allclose(found.mean[0, 0], np.average(x, weights=weights), rtol=1e-12)
        assert np.min(np.diff(result.trace)) > -1e-9

    def test_the_best_size_for_a_given_mean(self, float64):
        x = np.random.default_rng(0).negative_binomial(2.5, 0.4, 200).astype(float)
        for mean in (2.0, 3.75, 9.0):
            best = scipy.optimize.minimize_scalar(lambda t, m=mean: self.negative(x, 1, m, np.exp(t)), bounds=(-4, 9))
            model = jaxem.Frozen(jaxem.Mixture(jaxem.NegativeBinomial(), 1), ["mean"], {"mean": np.array([[mean]])})
            result = jaxem.fit(model, x[:, None], key=KEY, tol=1e-13)
            np.testing.assert_allclose(result.params.likelihood.mean, mean)
            np.testing.assert_allclose(result.params.likelihood.size[0, 0], np.exp(best.x), rtol=1e-4)

    def test_data_that_are_not_overdispersed_end_as_poisson(self, dtype):
        x = np.random.default_rng(1).binomial(9, 0.5, (300, 1)).astype(dtype)
        result = jaxem.fit(jaxem.Mixture(jaxem.NegativeBinomial(), 1), x, key=KEY, on_failure="ignore", tol=1e-9)
        poisson = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 1), x, key=KEY, on_failure="ignore")
        np.testing.assert_allclose(result.log_likelihood, poisson.log_likelihood, rtol=3e-6)
        assert 1e4 < result.params.likelihood.size[0, 0] < np.inf

    def test_a_column_of_zeros(self, dtype):
        """Its mean is exactly 0, any other count impossible, and the size whatever it was."""
        x = np.zeros((20, 1), dtype)
        result = jaxem.fit(jaxem.Mixture(jaxem.NegativeBinomial(), 1), x, key=KEY, on_failure="ignore")
        assert result.params.likelihood.mean[0, 0] == 0
        assert result.log_likelihood == 0
        assert np.isfinite(result.params.likelihood.size[0, 0])
        np.testing.assert_array_equal(log_prob(result.model.likelihood, result.params.likelihood, x[:1] + 1), -np.inf)


class TestZeroInflated:
    def test_log_p(self, float64):
        """w 1[x = 0] + (1 − w) p(x), by column."""
        w, rate = np.array([[0.0, 0.3], [0.9, 1.0]]), np.array([[0.5, 9.0], [4.0, 30.0]])
        x = np.stack(np.meshgrid(np.arange(5), np.arange(4)), axis=-1).reshape(-1, 2).astype(float)
        params = jaxem.ZeroInflatedParams(jnp.asarray(w), jaxem.PoissonParams(jnp.asarray(rate)))
        with np.errstate(divide="ignore"):
            want = np.log(w * (x[:, None] == 0) + (1 - w) * scipy.stats.poisson.pmf(x[:, None], rate)).sum(axis=-1)
        got = log_prob(jaxem.ZeroInflated(jaxem.Poisson()), params, x)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert np.any(np.isneginf(want))

    @pytest.mark.parametrize("family", [jaxem.Poisson(), jaxem.NegativeBinomial(), jaxem.Geometric()], ids=str)
    def test_the_fit_is_the_maximum(self, float64, family):
        rng = np.random.default_rng(0)
        x = rng.negative_binomial(2.5, 0.3, 400) * (rng.random(400) < 0.6)
        law = {
            "Poisson": lambda x, t: scipy.stats.poisson.logpmf(x, t[0]),
            "NegativeBinomial": lambda x, t: scipy.stats.nbinom.logpmf(x, t[1], t[1] / (t[1] + t[0])),
            "Geometric": lambda x, t: scipy.stats.geom.logpmf(x, 1 / (1 + t[0]), loc=-1),
        }[type(family).__name__]

        def negative(t):
            w = 1 / (1 + np.exp(-t[0]))
            return -np.sum(np.log(w * (x == 0) + (1 - w) * np.exp(law(x, np.exp(t[1:])))))

        start = [0.0, 1.0, 1.0] if isinstance(family, jaxem.NegativeBinomial) else [0.0, 1.0]
        options = {"fatol": 1e-11, "xatol": 1e-8, "maxfev": 5000}
        best = scipy.optimize.minimize(negative, start, method="Nelder-Mead", options=options)
        model = jaxem.Mixture(jaxem.ZeroInflated(family), 1)
        result = jaxem.fit(model, x[:, None].astype(float), key=KEY, tol=1e-13, max_steps=20_000)
        np.testing.assert_allclose(result.log_likelihood, -best.fun, rtol=1e-9)
        np.testing.assert_allclose(result.params.likelihood.inflation[0, 0], 1 / (1 + np.exp(-best.x[0])), atol=1e-4)
        assert np.min(np.diff(result.trace)) > -1e-9

    def test_shares_of_exactly_0_and_1_stay(self, dtype):
        x = jnp.asarray(np.array([[0.0], [0], [3], [1], [0], [4]]), dtype)
        model = jaxem.Mixture(jaxem.ZeroInflated(jaxem.Poisson()), 3).calibrate(x)
        family = jaxem.PoissonParams(jnp.array([[2.0], [2.0], [1.0]], dtype))
        params = jaxem.LatentParams(
            jaxem.CategoricalParams(jnp.full(3, 1 / 3, dtype)),
            jaxem.ZeroInflatedParams(jnp.array([[0.0], [1.0], [0.5]], dtype), family),
        )
        value, gradient = jax.value_and_grad(lambda p: model.e_step(p, x).log_likelihood)(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, gradient)))
        run = RUN(model, params, x, control=jaxem.Control(jaxem.Never(), 20))
        inflation = run.params.likelihood.inflation[:, 0]
        assert inflation[0] == 0
        assert inflation[1] == 1
        assert 0 < inflation[2] < 1

    def test_only_families_of_independent_columns(self):
        for family in (jaxem.Gaussian(), jaxem.Poisson, jaxem.Multinomial()):
            with pytest.raises(ValueError, match="independent columns"):
                jaxem.ZeroInflated(family)

    def test_frozen_leaves_by_their_own_names(self, float64):
        _, x = FAMILIES["zero inflated"]
        model = jaxem.Frozen(
            jaxem.Mixture(jaxem.ZeroInflated(jaxem.Poisson()), 2), {"inflation": True, "rate": [True, False]}
        )
        start = model.calibrate(jnp.asarray(x)).init(KEY, jnp.asarray(x))
        result = jaxem.fit(model, x, params=start, max_steps=10, on_failure="ignore")
        np.testing.assert_array_equal(result.params.likelihood.inflation, start.likelihood.inflation)
        np.testing.assert_array_equal(result.params.likelihood.family.rate[0], start.likelihood.family.rate[0])
        assert np.all(result.params.likelihood.family.rate[1] != start.likelihood.family.rate[1])
        assert result.num_free_parameters == 1 + 3


@pytest.mark.parametrize("name", AUGMENTED)
def test_q_of_augmented_statistics_is_a_lower_bound(float64, name):
    """q(θ', stats at θ) − q(θ, stats at θ) ≤ Σ r log p(x | θ') − Σ r log p(x | θ), for any θ' (Jensen)."""
    model, x, start = fitted_start(name)
    family, here = model.likelihood, start.likelihood
    statistics = family.statistics(Data(x=x))
    marginals = jax.random.dirichlet(KEY, jnp.ones(2), (len(x),))
    stats = family.accumulate(here, statistics, marginals)

    @jax.jit
    def both(params):
        return family.q(params, stats), jnp.sum(marginals * family.log_prob(params, statistics))

    q, exact = both(here)
    gaps = []
    for i in range(20):
        free = family.to_free(here)
        keys = jax.random.split(jax.random.key(i), len(jax.tree.leaves(free)))
        noise = [0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, jax.tree.leaves(free), strict=True)]
        there = family.from_free(jax.tree.map(jnp.add, free, jax.tree.unflatten(jax.tree.structure(free), noise)))
        q_there, exact_there = both(there)
        gaps.append((exact_there - exact) - (q_there - q))
    assert np.min(gaps) > 1e-6


class TestMStep:
    """One member and one weight per row: the estimates of the textbooks."""

    def estimate(self, family, x, weights, mask=None):
        data = Data(x=jnp.asarray(x), mask=mask)
        family = family.calibrate(data, None)
        stats = family.accumulate(None, family.statistics(data), jnp.asarray(weights)[:, None])
        return family.maximize(None, stats, {})

    @pytest.mark.parametrize("name", [name for name in FAMILIES if name not in AUGMENTED])
    @pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
    def test_weighted_means(self, float64, name, masked):
        family, x = FAMILIES[name]
        weights = np.random.default_rng(1).exponential(size=len(x))
        mask = np.random.default_rng(2).random(x.shape) < 0.7 if masked else np.ones(x.shape, bool)
        params = self.estimate(family, x, weights, jnp.asarray(mask) if masked else None)
        cells = weights[:, None] * mask
        mean = np.sum(cells * x, axis=0) / np.sum(cells, axis=0)
        if name == "categorical":
            for d, count in enumerate((3, 2, 4)):
                shares = [np.sum(cells[:, d] * (x[:, d] == c)) for c in range(4)] / np.sum(cells[:, d])
                np.testing.assert_allclose(params.prob[0, d], shares, rtol=1e-12, atol=1e-14)
                assert np.all(params.prob[0, d, count:] == 0)
        elif name == "poisson":
            np.testing.assert_allclose(params.rate[0], mean, rtol=1e-12)
        else:
            n = {"bernoulli": 1, "binomial": np.array([5, 9, 1])}.get(name)
            np.testing.assert_allclose(params.prob[0], 1 / (1 + mean) if n is None else mean / n, rtol=1e-12)

    def test_multinomial(self, float64):
        x, weights = np.array([[3.0, 0, 5], [1, 1, 1]]), np.array([2.0, 0.5])
        params = self.estimate(jaxem.Multinomial(), x, weights)
        np.testing.assert_allclose(params.prob[0], weights @ x / (weights @ x).sum(), rtol=1e-14)

    @every_family
    def test_a_column_nobody_saw_stays_as_it_is(self, float64, name):
        family, x = FAMILIES[name]
        mask = np.ones(x.shape, bool)
        mask[:, 1] = False
        data = Data(x=jnp.asarray(x), mask=jnp.asarray(mask))
        family = family.calibrate(data, None)
        stats = family.accumulate(None, family.statistics(data), jnp.ones((len(x), 2)) / 2)
        start = family.maximize(None, stats, {})
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(start))
        moved = jax.tree.map(lambda a: a * 0.75, start)
        after = family.maximize(moved, stats, {})
        for old, new, first in zip(*map(jax.tree.leaves, (moved, after, start)), strict=True):
            assert np.array_equal(new[:, 1], old[:, 1])
            np.testing.assert_array_equal(new[:, 0], first[:, 0])


class TestEdges:
    """Probabilities of exactly 0 and 1."""

    CASES = {
        "bernoulli": (jaxem.Bernoulli(), jaxem.BernoulliParams, [[0.0], [1.0], [0.5]], [0.0, 1.0]),
        "binomial": (jaxem.Binomial(3), jaxem.BinomialParams, [[0.0], [1.0], [0.5]], [0.0, 1.0, 3.0]),
        "geometric": (jaxem.Geometric(), jaxem.GeometricParams, [[1.0], [0.5]], [0.0, 2.0]),
        "categorical": (
            jaxem.Categorical(3),
            jaxem.CategoryParams,
            [[[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]], [[0.2, 0.3, 0.5]]],
            [0.0, 1.0, 2.0],
        ),
        "multinomial": (
            jaxem.Multinomial(),
            jaxem.MultinomialParams,
            [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]],
            [[0.0, 2.0], [3.0, 0.0], [1.0, 1.0], [0.0, 0.0]],
        ),
    }

    def expected(self, name, prob, x):
        prob = np.asarray(prob)
        with np.errstate(divide="ignore"):
            if name == "categorical":
                return np.log(prob[:, 0][:, x[:, 0].astype(int)]).T
            if name == "multinomial":
                return np.stack([scipy.stats.multinomial.logpmf(x, x.sum(axis=1), p) for p in prob], axis=1)
            p = prob[:, 0]
            law = {
                "bernoulli": lambda x: scipy.stats.bernoulli.logpmf(x, p),
                "binomial": lambda x: scipy.stats.binom.logpmf(x, 3, p),
                "geometric": lambda x: scipy.stats.geom.logpmf(x, p, loc=-1),
            }[name]
            return law(x)

    @pytest.mark.parametrize("name", CASES)
    def test_impossible_is_minus_infinity_and_all_else_is_exact(self, dtype, name):
        family, make, prob, values = self.CASES[name]
        x = np.asarray(values, dtype).reshape(len(values), -1)
        got = log_prob(family, make(jnp.asarray(prob, dtype)), x)
        want = self.expected(name, prob, x)
        assert np.array_equal(np.isneginf(got), np.isneginf(want))
        np.testing.assert_allclose(got, want, rtol=1e-6 if dtype == np.float32 else 1e-13, atol=1e-6)

    @pytest.mark.parametrize("name", CASES)
    def test_gradients_are_finite(self, dtype, name):
        """Of the mixture's log-likelihood, over weights, parameters and coordinates, where some members forbid rows."""
        family, make, prob, values = self.CASES[name]
        x = jnp.asarray(np.asarray(values, dtype).reshape(len(values), -1))
        k = len(prob)
        model = jaxem.Mixture(family, k).calibrate(x)
        params = jaxem.LatentParams(jaxem.CategoricalParams(jnp.full(k, 1 / k, dtype)), make(jnp.asarray(prob, dtype)))

        def total(params):
            return model.e_step(params, x).log_likelihood

        assert np.isfinite(total(params))
        for leaf in jax.tree.leaves(jax.grad(total)(params)):
            assert np.all(np.isfinite(leaf))
        free = model.to_free(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(free))
        back = model.from_free(free)
        np.testing.assert_allclose(back.likelihood.prob, params.likelihood.prob, atol=1e-6)
        np.testing.assert_array_equal(total(back) == -np.inf, False)
        for leaf in jax.tree.leaves(jax.grad(lambda f: total(model.from_free(f)))(free)):
            assert np.all(np.isfinite(leaf))

    @pytest.mark.parametrize("name", CASES)
    def test_steps_keep_exact_zeros(self, dtype, name):
        """Rows that contradict a member give it no weight at all, so its zeros are fixed points."""
        family, make, prob, values = self.CASES[name]
        x = jnp.asarray(np.repeat(np.asarray(values, dtype).reshape(len(values), -1), 5, axis=0))
        k = len(prob)
        model = jaxem.Mixture(family, k).calibrate(x)
        params = jaxem.LatentParams(jaxem.CategoricalParams(jnp.full(k, 1 / k, dtype)), make(jnp.asarray(prob, dtype)))
        run = RUN(model, params, x, control=jaxem.Control(jaxem.Never(), 5))
        before, after = np.asarray(prob), np.asarray(run.params.likelihood.prob)
        assert np.all(after[before == 0] == 0)
        np.testing.assert_allclose(after[before == 1], 1, rtol=1e-6)
        assert np.isfinite(run.objective)

    def test_a_hundred_certain_answers_outweigh_no_impossible_one(self, float32):
        """In float32 the smallest number has logarithm −87: one contradiction must still decide."""
        family = jaxem.Bernoulli()
        prob = np.stack([np.full(101, 1e-3), np.full(101, 0.9)]).astype(np.float32)
        prob[:, 0] = 0.5, 0.0
        x = jnp.concatenate([jnp.ones((1, 1)), jnp.ones((1, 100))], axis=1)
        params = jaxem.LatentParams(
            jaxem.CategoricalParams(jnp.array([0.5, 0.5])), jaxem.BernoulliParams(jnp.asarray(prob))
        )
        posterior = jaxem.Mixture(family, 2).posterior(params, x)
        np.testing.assert_array_equal(posterior, [[1.0, 0.0]])


class TestRow02Missing:
    @every_family
    def test_log_p_is_the_marginal_of_what_is_observed(self, float64, name):
        model, x, start = fitted_start(name)
        mask = np.random.default_rng(6).random(x.shape) < 0.5
        got = log_prob(model.likelihood, start.likelihood, x, jnp.asarray(mask))
        for d in range(x.shape[1]):
            only = np.zeros_like(mask)
            only[:, d] = mask[:, d]
            got = got - log_prob(model.likelihood, start.likelihood, x, jnp.asarray(only))
        np.testing.assert_allclose(got, 0, atol=1e-12)

    @every_family
    def test_missing_cells_have_the_moments_of_their_column(self, float64, name):
        """Against draws of the family itself."""
        model, x, start = fitted_start(name)
        mask = np.ones(x.shape, bool)
        mask[0] = [False, True, False]
        data = Data(x=x[:1], mask=jnp.asarray(mask[:1]))
        mean, covariance = model.likelihood.conditional_moments(start.likelihood, data)
        n = 20_000
        for k in range(2):
            drawn = np.asarray(model.likelihood.sample(KEY, start.likelihood, jnp.full(n, k), Data()))
            error = 6 * drawn.std(axis=0) / np.sqrt(n) + 1e-12
            np.testing.assert_array_less(np.abs(mean[0, k] - drawn.mean(axis=0))[[0, 2]], error[[0, 2]])
            spread = np.asarray(covariance[0, k])
            np.testing.assert_allclose(np.diag(spread)[[0, 2]], drawn.var(axis=0)[[0, 2]], rtol=0.15, atol=1e-3)
            assert np.all(spread - np.diag(np.diag(spread)) == 0)
            assert spread[1, 1] == 0
        assert np.all(mean[0, :, 1] == x[0, 1])


def bad_data(name, value):
    """(model, good data, the same with ``value`` in row 7, column 1)."""
    if name == "multinomial":
        family, x = jaxem.Multinomial(), np.random.default_rng(0).multinomial(9, [0.2, 0.3, 0.5], 30) * 1.0
    else:
        family, x = FAMILIES[name]
    bad = x.copy()
    bad[7, 1] = value
    return jaxem.Mixture(family, 2), x, bad


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
class TestRow08OutOfDomain:
    def test_the_door_names_row_and_column(self, float32, name, value):
        model, _, x = bad_data(name, value)
        with pytest.raises(ValueError, match=rf"got {value} in row 7, column 1"):
            jaxem.fit(model, x, key=KEY)

    def test_a_masked_cell_may_hold_anything(self, float32, name, value):
        if name != "multinomial":
            model, x, bad = bad_data(name, value)
            mask = np.ones(x.shape, bool)
            mask[7, 1] = False
            model.validate(Data(bad, mask))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_01_what_is_no_number_is_seen_as_such(dtype, name, value):
    model, good, x = bad_data(name, value)
    own = model.calibrate(jnp.asarray(good, dtype))
    start = own.init(KEY, jnp.asarray(good, dtype))
    run = RUN(own, start, jnp.asarray(x, dtype))
    assert run.status == Status.NON_FINITE_INPUT
    chex.assert_trees_all_equal(run.params, start)


def test_row_08_whole_numbers_that_the_floating_point_type_does_not_hold(dtype):
    limit = 2 ** (24 if dtype == np.float32 else 53)
    x = np.full((20, 1), 3, np.int64)
    x[4] = limit + 1
    with pytest.raises(
        ValueError, match=rf"beyond {limit} are not exact in {dtype.name}; got {limit + 1} in row 4, column 0"
    ):
        jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), x, key=KEY)
    x[4] = limit
    result = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 1), x, key=KEY, on_failure="ignore")
    np.testing.assert_allclose(result.params.likelihood.rate[0, 0], x.mean(), rtol=1e-5)


def test_row_08_wide_integers_do_not_wrap(float32):
    """A 64-bit integer on a device that has none of them: 2^40 is not 0."""
    x = np.array([[2**40], [2**40], [2**40 + 2**30]], float)
    result = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 1), x, key=KEY, on_failure="ignore")
    np.testing.assert_allclose(result.params.likelihood.rate[0, 0], x.mean(), rtol=1e-6)


def test_row_09_the_first_impossible_example_is_named(float64):
    x = np.array([[0.0], [1], [0], [1]])
    params = jaxem.LatentParams(
        jaxem.CategoricalParams(np.array([0.5, 0.5])), jaxem.BernoulliParams(np.array([[0.0], [0.0]]))
    )
    with pytest.raises(jaxem.FitError, match=r"zero likelihood.*first impossible example: 1"):
        jaxem.fit(jaxem.Mixture(jaxem.Bernoulli(), 2), x, params=params)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: jaxem.Binomial(0), "above 0.*got 0"),
        (lambda: jaxem.Binomial(2.5), "whole number.*got 2.5"),
        (lambda: jaxem.Binomial([3, -1]), r"got \[3, -1\]"),
        (lambda: jaxem.Binomial([[3]]), r"got \[\[3\]\]"),
        (lambda: jaxem.Categorical(1), "at least 2; got 1"),
        (lambda: jaxem.Categorical((3, 0)), r"at least 1; got \(3, 0\)"),
        (lambda: jaxem.Categorical(()), r"got \(\)"),
        (lambda: jaxem.Categorical(2.5), "got 2.5"),
        (lambda: jaxem.Categorical("three"), "got 'three'"),
        (lambda: jaxem.Multinomial(total=-1), "at least 0; got -1"),
        (lambda: jaxem.fit(jaxem.Mixture(jaxem.Binomial([3, 4]), 2), np.ones((9, 3)), key=KEY), "3 columns; got 2"),
        (lambda: jaxem.fit(jaxem.Mixture(jaxem.Categorical((3, 4)), 2), np.ones((9, 3)), key=KEY), "3 columns; got 2"),
    ],
)  # fmt: skip
def test_row_15_nonsense(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_draw_of_a_multinomial_row_needs_a_total(float64):
    params = jaxem.MultinomialParams(jnp.array([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="total"):
        jaxem.Multinomial().sample(KEY, params, jnp.zeros(3, int), Data())
    assert np.all(np.sum(jaxem.Multinomial(total=7).sample(KEY, params, jnp.zeros(3, int), Data()), axis=1) == 7)


def test_free_parameters_are_those_of_a_latent_class_model(float64):
    """K − 1 shares and C − 1 probabilities for every column and class."""
    family, x = FAMILIES["categorical"]
    model = jaxem.Mixture(family, 3)
    start = model.init(KEY, jnp.asarray(x))
    assert model.num_free_parameters(start) == 2 + 3 * (2 + 1 + 3)
    back = model.from_free(model.to_free(start))
    np.testing.assert_allclose(back.likelihood.prob, start.likelihood.prob, atol=1e-15)
    assert np.all(np.asarray(back.likelihood.prob)[:, 1, 2:] == 0)


def test_two_categories_are_a_bernoulli(float64):
    _, x = FAMILIES["bernoulli"]
    one, other = (
        jaxem.fit(jaxem.Mixture(family, 2), x, key=jax.random.key(4), num_starts=4, tol=1e-9)
        for family in (jaxem.Bernoulli(), jaxem.Categorical(2))
    )
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(one.params.likelihood.prob, other.params.likelihood.prob[..., 1], atol=1e-4)
    assert one.num_free_parameters == other.num_free_parameters == 7
