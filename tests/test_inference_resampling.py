"""Bootstrap, likelihood-ratio test, cross-validation and matching: against closed forms, mclust and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from data.cases import faithful, fit_of

import jaxem
from jaxem import CategoricalParams, Data, GaussianParams, LatentParams, MarkovChainParams, PoissonParams

TIED = jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 2)


MATCH = jax.jit(jaxem.match_components)


def draw(model, params, *shape):
    return jax.jit(lambda k, p: model.sample(k, p, *shape)[0])(jax.random.key(0), params)


def leaves(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def simulated():
    """400 rows of a mixture of two Gaussians four standard deviations apart, and its fit."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=400) + np.where(rng.random(400) < 0.4, -2.0, 2.0))[:, None]
    start = LatentParams(
        CategoricalParams(jnp.array([0.4, 0.6])), GaussianParams(jnp.array([[-2.0], [2.0]]), jnp.eye(1))
    )
    return jaxem.fit(TIED, x, params=start, tol=1e-12, trace_size=0), x


class TestStandardErrors:
    @pytest.mark.parametrize(
        "options",
        [
            {"method": "sandwich"},
            {"method": "scores"},
            {"method": "bootstrap", "key": jax.random.key(1)},
            {"method": "bootstrap", "key": jax.random.key(1), "parametric": True},
        ],
        ids=["sandwich", "scores", "bootstrap", "parametric"],
    )
    def test_all_agree_where_the_model_is_true(self, float64, options):
        """200 resamples give a spread to 5 %, the scores of 400 rows their fourth moments to 10 %: within 30 % at worst."""
        result, x = simulated()
        expected = leaves(jaxem.standard_errors(result.model, result.params, x).standard_errors)
        found = jaxem.standard_errors(result.model, result.params, x, **options)
        np.testing.assert_allclose(leaves(found.standard_errors), expected, rtol=0.3)
        low, high = found.confidence_intervals(0.9)
        assert np.all(leaves(low) < leaves(result.params))
        assert np.all(leaves(high) > leaves(result.params))

    def test_old_faithful_as_mclust_has_it(self, float64):
        """mclust's spread of 999 resamples; both are sure to some 3 %."""
        published = fit_of("se-gmm-faithful-EEE2", "observed-information")
        given, peer = published["params"], published["mclust_bootstrap"]
        start = LatentParams(
            CategoricalParams(jnp.array([given["weight_1"], 1 - given["weight_1"]])),
            GaussianParams(
                jnp.array([[given["mean_11"], given["mean_12"]], [given["mean_21"], given["mean_22"]]]),
                jnp.array([[given["cov_1_11"], given["cov_1_21"]], [given["cov_1_21"], given["cov_1_22"]]]),
            ),
        )
        found = jaxem.standard_errors(
            TIED, start, faithful(), method="bootstrap", key=jax.random.key(0), num_samples=400
        ).standard_errors
        np.testing.assert_allclose(found.latent.weights, peer["weights"], rtol=0.15)
        np.testing.assert_allclose(found.likelihood.mean, peer["means"], rtol=0.15)
        np.testing.assert_allclose(found.likelihood.covariance, peer["variances"][0], rtol=0.15)

    def test_one_poisson_mean(self, float64):
        """The spread of a resampled mean is σ̂/√n; weights are counts, and a key is needed."""
        x = np.random.default_rng(2).poisson(4.0, (30, 1)).astype(float)
        counts = np.random.default_rng(3).integers(0, 5, 30).astype(float)
        model = jaxem.Mixture(jaxem.Poisson(), 1)
        params = jaxem.fit(model, x, weights=counts, key=jax.random.key(0)).params
        options = {"method": "bootstrap", "key": jax.random.key(4), "num_samples": 1000}
        rows = np.repeat(x, counts.astype(int))
        found = jaxem.standard_errors(model, params, x, counts, **options)
        np.testing.assert_allclose(found.standard_errors.likelihood.rate, rows.std() / np.sqrt(rows.size), rtol=0.1)
        assert len(found.status) == 1000
        with pytest.raises(ValueError, match="the bootstrap needs a key"):
            jaxem.standard_errors(model, params, x, method="bootstrap")
        with pytest.raises(ValueError, match=r"whole numbers; got 4\.5"):
            jaxem.standard_errors(model, params, x, counts + 0.5, parametric=True, **options)

    def test_sequences(self, float64):
        """Sequences of unequal length: every one is an example."""
        lengths = np.random.default_rng(0).integers(15, 26, 50)
        model = jaxem.HMM(jaxem.Poisson(), 2)
        truth = LatentParams(
            MarkovChainParams(jnp.array([0.6, 0.4]), jnp.array([[0.8, 0.2], [0.3, 0.7]])),
            PoissonParams(jnp.array([[1.0], [8.0]])),
        )
        x = draw(model, truth, 50, 25)
        data = Data(x=x, lengths=jnp.asarray(lengths))
        result = jaxem.fit(model, data, params=truth, tol=1e-12, trace_size=0)
        expected = leaves(jaxem.standard_errors(result.model, result.params, data).standard_errors)
        # 50 sequences: their squared scores are sure to some 20 %.
        found = jaxem.standard_errors(result.model, result.params, data, method="sandwich")
        np.testing.assert_allclose(leaves(found.standard_errors), expected, rtol=0.5)

    def test_intervals_inside_the_domain(self, float64):
        """Of a small share, from its logarithm: never below 0; of a mean, the same as by the normal formula."""
        x = np.array([[0.0], [0.0], [0.0], [0.0], [0.0], [0.0], [0.0], [1.0]])
        model = jaxem.Mixture(jaxem.Bernoulli(), 1)
        result = jaxem.fit(model, x, key=jax.random.key(0))
        found = jaxem.standard_errors(result.model, result.params, x)
        plain, _ = found.confidence_intervals()
        assert plain.likelihood.prob[0, 0] < 0
        low, high = found.confidence_intervals(key=jax.random.key(0), num_draws=20_000)
        odds, error = np.log(1 / 7), np.sqrt(8 / 7)  # 1/√(n p (1 − p)) of the logit
        ends = 1 / (1 + np.exp(-(odds + np.array([-1.96, 1.96]) * error)))
        np.testing.assert_allclose([low.likelihood.prob[0, 0], high.likelihood.prob[0, 0]], ends, rtol=0.05)
        np.testing.assert_array_equal([low.latent.weights, high.latent.weights], 1)

    def test_rotations_have_no_spread(self, float64):
        x = np.random.default_rng(0).normal(size=(40, 4))
        model = jaxem.PPCA(2).calibrate(jnp.asarray(x))
        with pytest.warns(jaxem.InferenceWarning, match="1 directions without changing the likelihood"):
            jaxem.standard_errors(
                model, model.closed_form(jnp.asarray(x)), x, method="bootstrap", key=jax.random.key(0), num_samples=4
            )


class TestMatching:
    ORDER = np.array([2, 0, 1])

    def turned(self, model, params):
        """Other values, in another order: the order that restores it is the inverse permutation."""
        near = jax.tree.map(lambda a: a * 1.02, params)
        return model.take_components(near, self.ORDER), np.argsort(self.ORDER)

    def test_mixture(self, float64):
        model = jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 3)
        params = LatentParams(
            CategoricalParams(jnp.array([0.2, 0.5, 0.3])),
            GaussianParams(jnp.array([[0.0, 1.0], [3.0, 1.0], [3.0, -2.0]]), jnp.eye(2)),
        )
        x = draw(model, params, 60)
        turned, expected = self.turned(model, params)
        np.testing.assert_array_equal(MATCH(model, params, turned), expected)
        # As lanes: one in order, one not.
        lanes = jax.tree.map(lambda *a: jnp.stack(a), params, turned)
        orders = jax.jit(jax.vmap(lambda p: jaxem.match_components(model, params, p, x, jnp.ones(60))))(lanes)
        np.testing.assert_array_equal(orders, [[0, 1, 2], expected])

    def test_chain(self, float64):
        model = jaxem.HMM(jaxem.Poisson(), 3)
        params = LatentParams(
            MarkovChainParams(jnp.ones(3) / 3, jnp.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])),
            PoissonParams(jnp.array([[1.0], [5.0], [15.0]])),
        )
        x = draw(model, params, 6, 10)
        # What lies beyond a length must not count: make it as misleading as can be.
        lengths = jnp.array([10, 9, 8, 7, 6, 5])
        data = Data(x=x, lengths=lengths)
        turned, expected = self.turned(model, params)
        np.testing.assert_array_equal(MATCH(model, params, turned), expected)
        np.testing.assert_array_equal(MATCH(model, params, turned, data), expected)
        flat = Data(x=x.reshape(-1, 1), starts=jnp.arange(60) % 10 == 0)
        np.testing.assert_array_equal(MATCH(model, params, turned, flat), expected)
        restored = model.take_components(turned, MATCH(model, params, turned, data))
        np.testing.assert_allclose(leaves(restored), leaves(params) * 1.02, rtol=1e-12)

    def test_noise_stays_last(self, float64):
        family = jaxem.WithNoise(jaxem.Gaussian())
        model = jaxem.Mixture(family, 3)
        x = np.random.default_rng(0).normal(size=(60, 1)) + np.repeat([-5.0, 5.0], 30)[:, None]
        result = jaxem.fit(model, x, key=jax.random.key(0), on_failure="ignore")
        turned = result.model.take_components(result.params, np.array([1, 0, 2]))
        order = MATCH(result.model, result.params, turned, x)
        np.testing.assert_array_equal(order, [1, 0, 2])
        with pytest.raises(ValueError, match="pass the data"):
            jaxem.match_components(result.model, result.params, turned)

    def test_resamples_in_the_order_of_the_fit(self, float64):
        """Two components that resamples exchange: matched, their means stay on their own sides."""
        from jaxem.inference.bootstrap import matched

        result, x = simulated()
        swapped = result.model.take_components(result.params, np.array([1, 0]))
        lanes = jax.tree.map(lambda *a: jnp.stack(a), result.params, swapped, result.params)
        found, exchanged = matched(result.model, result.params, lanes, jnp.asarray(x), None)
        assert exchanged == 0
        assert np.all(found.likelihood.mean[:, 0] < 0)
        assert np.all(found.likelihood.mean[:, 1] > 0)

    def test_no_components(self, float64):
        with pytest.raises(ValueError, match="FactorAnalysis has no components"):
            jaxem.match_components(jaxem.FactorAnalysis(1), {}, {})


class TestLikelihoodRatio:
    def test_one_against_two(self, float64):
        """Two clear groups: no draw of one reaches the statistic. One group: the statistic is one among the draws."""
        _, x = simulated()
        one = jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 1)
        options = {"key": jax.random.key(0), "num_samples": 39, "num_starts": 3}
        clear = jaxem.likelihood_ratio_test(one, TIED, x[:60], **options)
        assert clear.p_value == 1 / 40
        assert clear.statistic == 2 * (clear.alternative.log_likelihood - clear.null.log_likelihood)
        assert np.min(clear.draws) > -1e-6

        y = np.random.default_rng(5).normal(size=(60, 1))
        none = jaxem.likelihood_ratio_test(one, TIED, y, **options)
        assert none.p_value > 0.05
        assert none.p_value == (1 + np.sum(none.draws >= none.statistic)) / 40
        assert "p = " in str(none)

        # Weights are counts: the same test as with the rows written out.
        counts = np.r_[np.full(30, 2.0), np.zeros(30)]
        weighted = jaxem.likelihood_ratio_test(one, TIED, y, counts, **options)
        again = jaxem.likelihood_ratio_test(one, TIED, np.repeat(y[:30], 2, axis=0), **options)
        np.testing.assert_allclose(weighted.draws, again.draws, rtol=1e-9)

    def test_refusals(self, float64):
        chain = jaxem.HMM(jaxem.Poisson(), 2)
        x = np.ones((20, 1))
        with pytest.raises(jaxem.UnsupportedError, match="the likelihood ratio test needs independent examples"):
            jaxem.likelihood_ratio_test(chain, jaxem.HMM(jaxem.Poisson(), 3), x, key=jax.random.key(0))
        labelled = Data(x=np.arange(8.0)[:, None], labels=np.arange(8) % 2)
        with pytest.raises(ValueError, match="labels cannot be simulated"):
            jaxem.likelihood_ratio_test(TIED, TIED, labelled, key=jax.random.key(0), num_starts=1)
        with pytest.raises(ValueError, match="the bootstrap needs a key"):
            jaxem.likelihood_ratio_test(TIED, TIED, x, key=None)


class TestCrossValidation:
    def test_one_gaussian_by_hand(self, float64):
        """Every fold's mean and variance are those of the other rows, with their weights."""
        rng = np.random.default_rng(0)
        x, w = rng.normal(size=(23, 1)), rng.integers(0, 3, 23).astype(float)
        found = jaxem.cross_validate(
            jaxem.Mixture(jaxem.Gaussian(), 1), x, w, key=jax.random.key(0), num_folds=4, num_starts=2
        )
        np.testing.assert_array_equal(found.folds < 0, w == 0)
        sizes = np.bincount(found.folds[found.folds >= 0])
        assert np.ptp(sizes) <= 1
        for f in range(4):
            train, test = (found.folds != f) & (w > 0), found.folds == f
            mean = np.average(x[train, 0], weights=w[train])
            spread = np.sqrt(np.average((x[train, 0] - mean) ** 2, weights=w[train]))
            expected = scipy.stats.norm.logpdf(x[test, 0], mean, spread)
            np.testing.assert_allclose(found.log_likelihood[test], expected, rtol=1e-9)
            np.testing.assert_allclose(found.per_fold[f], w[test] @ expected, rtol=1e-9)
        np.testing.assert_allclose(found.mean, found.total / w.sum(), rtol=1e-12)

    def test_two_components_are_found(self, float64):
        _, x = simulated()
        options = {"key": jax.random.key(0), "num_folds": 5, "num_starts": 3}
        one, two = (jaxem.cross_validate(jaxem.Chunked(TIED.with_components(k), 64), x, **options) for k in (1, 2))
        np.testing.assert_array_equal(one.folds, two.folds)
        assert two.total > one.total + 20
        assert two.status.shape == (5, 3)

    def test_each_fold_is_a_fit(self, float64):
        """As `fit` of the other rows has it, from the parameters of the fold."""
        model = jaxem.PPCA(1)
        x = np.random.default_rng(1).normal(size=(40, 3)) * np.array([3.0, 1.0, 1.0])
        found = jaxem.cross_validate(
            model, x, key=jax.random.key(0), num_folds=2, num_starts=2, tol=1e-12, max_steps=5000
        )
        start = jax.tree.map(lambda a: a[0], found.params)
        again = jaxem.fit(model, x[found.folds != 0], params=start, tol=1e-12, max_steps=5000)
        expected = again.model.log_likelihood(again.params, jnp.asarray(x[found.folds == 0]))
        np.testing.assert_allclose(found.log_likelihood[found.folds == 0], expected, rtol=1e-4)

    def test_sequences(self, float64):
        model = jaxem.HMM(jaxem.Poisson(), 1)
        x = np.random.default_rng(0).poisson(3.0, (6, 5, 1)).astype(float)
        lengths = np.array([5, 4, 3, 5, 2, 5])
        found = jaxem.cross_validate(
            model, Data(x=x, lengths=lengths), key=jax.random.key(0), num_folds=6, num_starts=1
        )
        inside = np.arange(5) < lengths[:, None]
        for n in range(6):
            others = np.arange(6) != n
            rate = x[others][inside[others]].mean()
            expected = scipy.stats.poisson.logpmf(x[n][inside[n]], rate).sum()
            np.testing.assert_allclose(found.log_likelihood[n], expected, rtol=1e-9)

    def test_refusals(self, float64):
        x = np.random.default_rng(0).normal(size=(9, 1))
        with pytest.raises(ValueError, match="at most the number of examples, 9; got 10"):
            jaxem.cross_validate(TIED, x, key=jax.random.key(0))
        with pytest.raises(ValueError, match="cross-validation needs a key"):
            jaxem.cross_validate(TIED, x, key=None, num_folds=3)
        with pytest.raises(jaxem.UnsupportedError, match="cross-validation needs independent examples"):
            jaxem.cross_validate(jaxem.HMM(jaxem.Gaussian(), 2), x, key=jax.random.key(0))
