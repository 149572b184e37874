"""Families made of families, noise, and rows that are counted instead of repeated."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxem
from jaxem import Data

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N = 60
_GROUP = np.arange(N) % 2
# Columns: a length, a count, an answer, another length.
MIXED = np.column_stack(
    [
        RNG.normal(size=N) + 4 * _GROUP,
        RNG.poisson(np.where(_GROUP, 2, 9)),
        RNG.random(N) < np.where(_GROUP, 0.2, 0.8),
        1000 * RNG.normal(size=N),
    ]
)
BLOCKS = {
    "lengths": (jaxem.Gaussian(), [3, 0]),
    "visits": (jaxem.Poisson(), slice(1, 2)),
    "answer": (jaxem.Bernoulli(), 2),
}
PRODUCT = jaxem.Product(BLOCKS)


def moments(model, params, data, n=40_000):
    """Means and covariances of draws of every component, [K, D] and [K, D, D]."""
    found = []
    for k in range(model.num_components):
        drawn = np.asarray(model.likelihood.sample(jax.random.key(k), params.likelihood, jnp.full(n, k), data), float)
        found.append((drawn.mean(axis=0), np.cov(drawn.T)))
    return [np.stack(part) for part in zip(*found, strict=True)]


class TestProduct:
    def fitted(self, **options):
        return jaxem.fit(jaxem.Mixture(PRODUCT, 2), MIXED, key=KEY, num_starts=4, **options)

    def test_log_p_is_the_sum_over_blocks(self, float64):
        result = self.fitted()
        params = result.params.likelihood
        got = PRODUCT.log_prob(params, PRODUCT.statistics(Data(x=jnp.asarray(MIXED))))
        for k in range(2):
            want = scipy.stats.multivariate_normal.logpdf(
                MIXED[:, [3, 0]], params["lengths"].mean[k], params["lengths"].covariance[k]
            )
            want += scipy.stats.poisson.logpmf(MIXED[:, 1], params["visits"].rate[k, 0])
            want += scipy.stats.bernoulli.logpmf(MIXED[:, 2], params["answer"].prob[k, 0])
            np.testing.assert_allclose(got[:, k], want, rtol=1e-9)

    def test_groups_are_found_and_counted(self, float64):
        result = self.fitted()
        found = np.asarray(result.model.predict(result.params, MIXED))
        assert max(np.mean(found == _GROUP), np.mean(found != _GROUP)) > 0.95
        assert result.num_free_parameters == 1 + 2 * (2 + 3 + 1 + 1)
        assert set(result.params.likelihood) == {"lengths", "visits", "answer"}

    def test_one_block_is_its_family(self, float64):
        x = MIXED[:, [0, 3]]
        one, other = (
            jaxem.fit(jaxem.Mixture(family, 2), x, key=KEY, num_starts=2, tol=1e-9)
            for family in (jaxem.Gaussian(), jaxem.Product({"all": (jaxem.Gaussian(), slice(0, 2))}))
        )
        np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-10)

    def test_blocks_of_any_order_are_the_same_model(self, float64):
        """The dict's order, the names, the order of columns within a block: nothing of it matters to the likelihood."""
        turned = jaxem.Product(
            {"z": (jaxem.Bernoulli(), [2]), "b": (jaxem.Gaussian(), (0, 3)), "a": (jaxem.Poisson(), [1])}
        )
        model, other = jaxem.Mixture(PRODUCT, 2).calibrate(MIXED), jaxem.Mixture(turned, 2).calibrate(MIXED)
        responsibilities = jax.random.dirichlet(KEY, jnp.ones(2), (N,))
        x = jnp.asarray(MIXED)
        one, two = (m.from_responsibilities(responsibilities, x) for m in (model, other))
        np.testing.assert_allclose(model.log_likelihood(one, x), other.log_likelihood(two, x), rtol=1e-12)
        np.testing.assert_allclose(
            PRODUCT.mean(one.likelihood, Data()), turned.mean(two.likelihood, Data()), rtol=1e-12
        )
        np.testing.assert_allclose(PRODUCT.mean(one.likelihood, Data())[:, 3], one.likelihood["lengths"].mean[:, 0])

    def test_draws_have_the_columns_of_the_data(self, float64):
        result = self.fitted()
        mean, covariance = moments(result.model, result.params, Data())
        want_mean = np.asarray(PRODUCT.mean(result.params.likelihood, Data()))
        nothing = Data(x=jnp.zeros((1, 4)), mask=jnp.zeros((1, 4), bool))
        given_mean, given = result.model.likelihood.conditional_moments(result.params.likelihood, nothing)
        np.testing.assert_allclose(given_mean[0], want_mean, rtol=1e-9)
        deviations = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        np.testing.assert_array_less(np.abs(mean - want_mean), 6 * deviations / 200)
        size = deviations[:, :, None] * deviations[:, None, :]
        np.testing.assert_allclose(given[0] / size, covariance / size, atol=0.05)

    def test_a_mask_reaches_every_block(self, dtype):
        mask = np.random.default_rng(1).random(MIXED.shape) < 0.8
        mask[0], mask[1] = False, True
        results = []
        for poison in (0.5, 1e30, -7.0):
            data = Data(np.where(mask, MIXED, poison).astype(dtype), mask)
            results.append(jaxem.fit(jaxem.Mixture(PRODUCT, 2), data, key=KEY, on_failure="ignore", max_steps=20))
            imputed = results[-1].model.impute(results[-1].params, data).mean
            assert np.array_equal(np.asarray(imputed)[mask], MIXED.astype(dtype)[mask])
            assert np.all(np.isfinite(imputed))
        for other in results[1:]:
            chex.assert_trees_all_equal(other.params, results[0].params)

    def test_inputs_reach_the_families_that_read_them(self, float64):
        rng = np.random.default_rng(2)
        inputs = rng.normal(size=(N, 1))
        y = np.where(_GROUP, 2.0, -1.0) * inputs[:, 0] + 0.1 * rng.normal(size=N)
        family = jaxem.Product({"line": (jaxem.LinearRegression(), [1]), "level": (jaxem.Gaussian(), [0])})
        data = Data(x=np.column_stack([MIXED[:, 0], y]), inputs=inputs)
        result = jaxem.fit(jaxem.Mixture(family, 2), data, key=KEY, num_starts=4)
        slopes = np.sort(np.asarray(result.params.likelihood["line"].coefficients)[:, 0, -1])
        np.testing.assert_allclose(slopes, [-1, 2], atol=0.1)
        assert result.model.likelihood.mean(result.params.likelihood, jax.tree.map(jnp.asarray, data)).shape == (
            N,
            2,
            2,
        )
        with pytest.raises(ValueError, match="need inputs"):
            jaxem.fit(jaxem.Mixture(family, 2), data.x, key=KEY)

    def test_a_mask_is_refused_where_a_block_takes_none(self):
        family = jaxem.Product({"words": (jaxem.Multinomial(), [0, 1]), "size": (jaxem.Gaussian(), [2])})
        with pytest.raises(ValueError, match="mask given, but neither Categorical nor Product"):
            jaxem.fit(jaxem.Mixture(family, 2), Data(np.ones((9, 3)), np.ones((9, 3), bool)), key=KEY)

    def test_bad_data_name_the_block(self):
        bad = MIXED.copy()
        bad[7, 1] = -2
        with pytest.raises(ValueError, match=r"block 'visits', whose columns are 1.*got -2.0 in row 7, column 0"):
            jaxem.fit(jaxem.Mixture(PRODUCT, 2), bad, key=KEY)
        with pytest.raises(ValueError, match="Product have 4 columns; x has 3"):
            jaxem.fit(jaxem.Mixture(PRODUCT, 2), MIXED[:, :3], key=KEY)

    @pytest.mark.parametrize(
        ("blocks", "match"),
        [
            ({"a": (jaxem.Gaussian(), [0, 1]), "b": (jaxem.Poisson(), [1])}, "column 1 is in two blocks, 'a' and 'b'"),
            ({"a": (jaxem.Gaussian(), [0, 0])}, "column 0 is in two blocks"),
            ({"a": (jaxem.Gaussian(), [0, 2])}, "column 1 is in no block"),
            ({"a": (jaxem.Gaussian(), [-1])}, "numbers from 0; got"),
            ({"a": (jaxem.Gaussian(), [])}, "numbers from 0; got"),
            ({"a": (jaxem.Gaussian(), "01")}, "numbers from 0; got '01'"),
            ({"a": (jaxem.Gaussian(), slice(1, None))}, "need an end"),
            ({"a": (jaxem.Gaussian, [0])}, "takes .family, columns."),
            ({"a": jaxem.Gaussian()}, "takes .family, columns."),
            ({"a.b": (jaxem.Gaussian(), [0])}, "without dots; got 'a.b'"),
            ({}, "blocks by name"),
            ([(jaxem.Gaussian(), [0])], "blocks by name"),
        ],
    )
    def test_row_15_nonsense(self, blocks, match):
        with pytest.raises(ValueError, match=match):
            jaxem.Product(blocks)

    def test_row_20_leaves_are_frozen_by_block_and_name(self, float64):
        two = jaxem.Product({"one": (jaxem.Gaussian(), [0]), "other": (jaxem.Gaussian(), [3]), "n": (jaxem.Poisson(), 1),
                             "answer": (jaxem.Bernoulli(), 2)})  # fmt: skip
        model = jaxem.Frozen(
            jaxem.Mixture(two, 2), {"one.mean": True, "n.rate": [True, False]}, {"one.mean": np.array([[0.0], [4.0]])}
        )
        start = model.calibrate(jnp.asarray(MIXED)).init(KEY, jnp.asarray(MIXED))
        result = jaxem.fit(model, MIXED, params=start, max_steps=5, on_failure="ignore")
        before, after = start.likelihood, result.params.likelihood
        np.testing.assert_array_equal(after["one"].mean, [[0.0], [4.0]])
        assert np.all(after["other"].mean != before["other"].mean)
        assert after["n"].rate[0] == before["n"].rate[0]
        assert after["n"].rate[1] != before["n"].rate[1]
        assert result.num_free_parameters == 1 + 2 * (1 + 2 + 1 + 1) - 1
        for name in ("mean", "one.rate", "two.mean"):
            with pytest.raises(ValueError, match=f"cannot hold '{name}' fixed"):
                jaxem.Frozen(jaxem.Mixture(two, 2), [name])

    def test_a_collapsed_block_is_reported(self, dtype):
        x = MIXED.astype(dtype).copy()
        x[_GROUP == 1, 0] = 30.0
        x[_GROUP == 1, 3] = 7.0
        with pytest.warns(jaxem.ConvergenceWarning, match="collapsed"):
            result = jaxem.fit(jaxem.Mixture(PRODUCT, 2), x, key=KEY)
        assert len(result.degenerate) == 1

    def test_it_comes_back_from_a_file(self, float64, tmp_path):
        result = self.fitted(max_steps=3, on_failure="ignore")
        jaxem.save(tmp_path / "fit.npz", result)
        back = jaxem.load(tmp_path / "fit.npz")
        np.testing.assert_allclose(
            back.model.log_likelihood(back.params, MIXED),
            result.model.log_likelihood(result.params, MIXED),
            rtol=1e-13,
        )


class TestWithNoise:
    """A cluster and rows all over the place."""

    X = np.concatenate([RNG.normal(size=(150, 2)), RNG.uniform(-50, 50, (50, 2))])

    def fitted(self, x=X, k=2, **options):
        model = jaxem.Mixture(jaxem.WithNoise(jaxem.Gaussian()), k)
        return jaxem.fit(model, x, key=KEY, num_starts=8, **options)

    def test_outliers_spoil_no_component(self, float64):
        result = self.fitted()
        gaussian = result.params.likelihood
        assert gaussian.mean.shape == (1, 2)
        np.testing.assert_allclose(gaussian.mean[0], 0, atol=0.3)
        np.testing.assert_allclose(gaussian.covariance[0], np.eye(2), atol=0.4)
        np.testing.assert_allclose(result.params.latent.weights, [0.75, 0.25], atol=0.02)
        assert np.mean(result.model.predict(result.params, self.X)[150:] == 1) > 0.95
        assert result.num_free_parameters == 1 + 5

    def test_log_p_of_noise_is_minus_the_log_of_the_volume(self, float64):
        result = self.fitted()
        family = result.model.likelihood
        potentials = family.log_prob(result.params.likelihood, family.statistics(Data(x=jnp.asarray(self.X))))
        assert potentials.shape == (200, 2)
        volume = np.prod(np.ptp(self.X, axis=0))
        np.testing.assert_allclose(potentials[:, 1], -np.log(volume), rtol=1e-12)
        mask = np.ones((200, 2), bool)
        mask[:, 0] = False
        masked = family.log_prob(
            result.params.likelihood, family.statistics(Data(x=jnp.asarray(self.X), mask=jnp.asarray(mask)))
        )
        np.testing.assert_allclose(masked[:, 1], -np.log(np.ptp(self.X[:, 1])), rtol=1e-12)

    def test_the_fit_is_that_of_a_mixture_with_a_constant(self, float64):
        """Its step is the Gaussian step at responsibilities against 1/volume."""
        result = self.fitted(max_steps=3, on_failure="ignore")
        params, volume = result.params, np.prod(np.ptp(self.X, axis=0))
        weights = np.asarray(params.latent.weights)
        density = scipy.stats.multivariate_normal.pdf(
            self.X, params.likelihood.mean[0], params.likelihood.covariance[0]
        )
        r = weights[0] * density / (weights[0] * density + weights[1] / volume)
        new = result.model.m_step(params, result.model.e_step(params, jnp.asarray(self.X)).stats)
        np.testing.assert_allclose(new.likelihood.mean[0], r @ self.X / r.sum(), rtol=1e-9)
        np.testing.assert_allclose(new.likelihood.covariance[0], np.cov(self.X.T, aweights=r, ddof=0), rtol=1e-5)
        np.testing.assert_allclose(new.latent.weights, [r.mean(), 1 - r.mean()], rtol=1e-9)

    def test_the_box_is_that_of_rows_with_weight_and_of_cells_that_are_seen(self, dtype):
        x = np.array([[0.0, 1], [2, 5], [1e6, 3], [1, -9]], dtype)
        mask = np.array([[True, True], [True, True], [True, True], [True, False]])
        family = jaxem.WithNoise(jaxem.Gaussian()).calibrate(
            Data(x=jnp.asarray(x), mask=jnp.asarray(mask)), jnp.array([1.0, 1, 0, 1], dtype)
        )
        np.testing.assert_array_equal(family.low, [0, 1])
        np.testing.assert_array_equal(family.high, [2, 5])
        given = jaxem.WithNoise(jaxem.Gaussian(), low=[-1, -1], high=[1, 3])
        assert not given.calibrated
        np.testing.assert_array_equal(given.calibrate(Data(x=jnp.asarray(x)), None).high, [1, 3])

    def test_draws_and_moments(self, float64):
        result = self.fitted()
        mean, covariance = moments(result.model, result.params, Data())
        nothing = Data(x=jnp.zeros((1, 2)), mask=jnp.zeros((1, 2), bool))
        given_mean, given = result.model.likelihood.conditional_moments(result.params.likelihood, nothing)
        np.testing.assert_allclose(given_mean[0], result.model.likelihood.mean(result.params.likelihood, Data()))
        size = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        np.testing.assert_array_less(np.abs(mean - given_mean[0]), 6 * size / 200)
        largest = np.max(size**2, axis=1)[:, None, None]
        np.testing.assert_array_less(np.abs(given[0] - covariance), np.broadcast_to(0.05 * largest, covariance.shape))

    def test_numbers_of_components_are_chosen_as_if_fitted_alone(self, float64):
        """It is in use whatever their number is, and is not counted."""
        models = [jaxem.Mixture(jaxem.WithNoise(jaxem.Gaussian()), k) for k in (2, 3)]
        selection = jaxem.select(models, self.X, key=KEY, num_starts=8)
        assert selection.chosen == 0
        np.testing.assert_allclose(selection.best.log_likelihood, self.fitted().log_likelihood, rtol=1e-6)
        assert "* smallest BIC: Gaussian mixture, 1 component and noise, full covariance" in str(selection)
        assert str(selection).splitlines()[1].startswith("*    1 ")

    def test_it_stays_last(self, float64):
        result = self.fitted(k=3, max_steps=3, on_failure="ignore")
        turned = result.model.take_components(result.params, [1, 0, 2])
        np.testing.assert_array_equal(turned.likelihood.mean, result.params.likelihood.mean[::-1])
        np.testing.assert_allclose(
            result.model.log_likelihood(turned, self.X), result.model.log_likelihood(result.params, self.X), rtol=1e-12
        )
        for order in ([2, 0, 1], [0, 1], [0, 2, 2], [2]):
            with pytest.raises(jaxem.UnsupportedError, match="component 2, stays last"):
                result.model.take_components(result.params, order)

    def test_a_constant_column_and_equal_rows(self, dtype):
        x = self.X.astype(dtype).copy()
        x[:, 1] = 3
        result = self.fitted(x, on_failure="ignore")
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
        assert np.isfinite(result.objective)

    def test_around_a_product(self, float64):
        family = jaxem.WithNoise(PRODUCT)
        result = jaxem.fit(jaxem.Mixture(family, 3), MIXED, key=KEY, on_failure="ignore", max_steps=10)
        assert np.isfinite(result.log_likelihood)
        assert result.model.sample(KEY, result.params, 5)[0].shape == (5, 4)

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda: jaxem.WithNoise(jaxem.Gaussian), "takes a family"),
            (lambda: jaxem.WithNoise(jaxem.Gaussian(), low=[0.0]), "both corners"),
            (lambda: jaxem.WithNoise(jaxem.Gaussian(), low=[0.0, 2], high=[1.0, 1]), "low must lie below high"),
            (
                lambda: jaxem.fit(
                    jaxem.Mixture(jaxem.WithNoise(jaxem.Gaussian(), low=[0.0], high=[1.0]), 2), np.eye(3), key=KEY
                ),
                "each of 3 columns",
            ),
            (
                lambda: jaxem.fit(jaxem.Mixture(jaxem.WithNoise(jaxem.Gaussian()), 1), np.eye(3), key=KEY),
                "at least 2 components",
            ),
        ],
    )
    def test_row_15_nonsense(self, make, match):
        with pytest.raises(ValueError, match=match):
            make()


class TestCollapseDuplicates:
    X = np.array([[1.0, 0], [0, 1], [1, 0], [1, 1], [1, 0]])

    def test_rows_in_the_order_in_which_they_appear(self):
        x, weights = jaxem.collapse_duplicates(self.X)
        np.testing.assert_array_equal(x, [[1, 0], [0, 1], [1, 1]])
        np.testing.assert_array_equal(weights, [3, 1, 1])
        _, weights = jaxem.collapse_duplicates(self.X, [0.5, 1, 2, 0, 1])
        np.testing.assert_array_equal(weights, [3.5, 1, 0])

    def test_what_is_masked_does_not_matter_and_all_else_does(self):
        mask = np.array([[True, True], [True, True], [True, False], [False, True], [True, True]])
        poisoned = np.where(mask, self.X, [[np.nan, 1e30]])
        data, weights = jaxem.collapse_duplicates(Data(x=poisoned, mask=mask))
        assert len(weights) == 4
        np.testing.assert_array_equal(weights, [2, 1, 1, 1])
        np.testing.assert_array_equal(data.mask, mask[:4])
        other = jaxem.collapse_duplicates(Data(x=np.where(mask, self.X, 5.0), mask=mask))[0]
        np.testing.assert_array_equal(data.x, other.x)
        for extra in ({"labels": np.array([0, 0, 1, 0, 0])}, {"inputs": np.array([[0.0], [0], [1], [0], [0]])}):
            assert len(jaxem.collapse_duplicates(Data(x=self.X, **extra))[1]) == 4
        rows = np.array([True, True, False, True, True])
        np.testing.assert_array_equal(jaxem.collapse_duplicates(Data(x=self.X, mask=rows))[1], [2, 1, 1, 1])

    @pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
    def test_the_fit_is_the_same(self, float64, masked):
        rng = np.random.default_rng(0)
        x = (rng.random((500, 4)) < np.where(np.arange(500)[:, None] % 2, 0.3, 0.8)).astype(float)
        data = Data(x, rng.random(x.shape) < 0.9) if masked else x
        few, weights = jaxem.collapse_duplicates(data)
        assert len(weights) <= (81 if masked else 16)
        assert weights.sum() == 500
        model = jaxem.Mixture(jaxem.Bernoulli(), 2)
        start = model.init(KEY, jax.tree.map(jnp.asarray, data))
        options = {"params": start, "tol": 1e-9}
        one, other = jaxem.fit(model, data, **options), jaxem.fit(model, few, weights=weights, **options)
        assert one.steps == other.steps
        np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-12)
        np.testing.assert_allclose(one.params.likelihood.prob, other.params.likelihood.prob, rtol=1e-8)
        assert one.bic == pytest.approx(other.bic, rel=1e-12)

    @pytest.mark.parametrize(
        ("data", "weights", "match"),
        [
            (np.zeros((2, 3, 1)), None, "not sequences"),
            (Data(x=np.zeros((3, 1)), starts=np.array([True, False, False])), None, "not sequences"),
            (np.zeros(3), None, r"rows, \[N, D\]"),
            (np.zeros((3, 1)), np.ones(2), r"shape \(3,\); got shape \(2,\)"),
        ],
    )
    def test_nonsense(self, data, weights, match):
        with pytest.raises(ValueError, match=match):
            jaxem.collapse_duplicates(data, weights)
