"""Factor analysis and probabilistic PCA against the dense joint Gaussian, scikit-learn, closed forms and R's rotations."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.decomposition
from data.cases import fit_of

import jaxem
from jaxem.model import Prepared
from jaxem.models.factor_analysis import Moments

N, D, L = 40, 5, 2


@pytest.fixture(scope="module")
def x():
    """Two factors that are well determined, also with a third of the cells missing."""
    rng = np.random.default_rng(4)
    loadings = np.array([[1.0, 0.2], [-0.5, 0.9], [0.8, 0.6], [0.3, -1.0], [1.2, -0.5]])
    return rng.normal(size=(N, L)) @ loadings.T + rng.normal(size=(N, D)) * [0.9, 0.8, 0.8, 0.9, 0.9] + 3


@pytest.fixture(scope="module")
def mask():
    mask = np.random.default_rng(4).random((N, D)) < 0.7
    mask[:3] = [[False] * D, [True] * D, [True] + [False] * (D - 1)]
    return mask


PARAMS = jaxem.FactorParams(
    np.array([2.0, 3, 4, 3, 2]),
    np.array([[1.0, 0.2], [-0.5, 0.7], [0.3, 0.3], [0.0, -1.0], [2.0, 0.5]]),
    np.array([0.5, 0.8, 0.2, 1.0, 3.0]),
)
ISOTROPIC = dataclasses.replace(PARAMS, noise=np.array(0.7))
# Every model with parameters to look at, and data whole or with holes.
MODELS = [(jaxem.FactorAnalysis(L), PARAMS), (jaxem.PPCA(L), ISOTROPIC)]
models = pytest.mark.parametrize(("model", "params"), MODELS, ids=["fa", "ppca"])
holes = pytest.mark.parametrize("with_holes", [False, True], ids=["whole", "holes"])


def given(x, mask, with_holes):
    return (jaxem.Data(jnp.asarray(x), mask=jnp.asarray(mask)), mask) if with_holes else (jnp.asarray(x), mask | True)


def dense(params):
    """Mean and covariance of (x, z)."""
    loadings, noise = params.loadings, np.broadcast_to(params.noise, (D,))
    covariance = np.block([[loadings @ loadings.T + np.diag(noise), loadings], [loadings.T, np.eye(L)]])
    return np.concatenate([params.mean, np.zeros(L)]), covariance


def conditional(params, row, seen):
    """log p(x_o), and the moments of (x, z) given x_o, one row at a time."""
    mean, covariance = dense(params)
    o = np.flatnonzero(seen)
    if not len(o):
        return 0.0, mean, covariance
    inner = covariance[np.ix_(o, o)]
    gain = np.linalg.solve(inner, covariance[o]).T
    log_p = scipy.stats.multivariate_normal(mean[o], inner).logpdf(row[o])
    return log_p, mean + gain @ (row[o] - mean[o]), covariance - gain @ covariance[o]


@models
@holes
class TestDenseGaussian:
    def test_log_likelihood(self, float64, x, mask, model, params, with_holes):
        data, seen = given(x, mask, with_holes)
        expected = [conditional(params, *row)[0] for row in zip(x, seen, strict=True)]
        np.testing.assert_allclose(jax.jit(model.log_likelihood)(params, data), expected, rtol=1e-11, atol=1e-12)

    def test_scores_and_imputation(self, float64, x, mask, model, params, with_holes):
        data, seen = given(x, mask, with_holes)
        scores, imputed = jax.jit(lambda p, d: (model.factor_scores(p, d), model.impute(p, d)))(params, data)
        for n in range(N):
            _, mean, covariance = conditional(params, x[n], seen[n])
            np.testing.assert_allclose(scores.mean[n], mean[D:], atol=1e-11)
            spread = scores.covariance[n] if with_holes else scores.covariance
            np.testing.assert_allclose(spread, covariance[D:, D:], atol=1e-11)
            np.testing.assert_allclose(imputed.mean[n], np.where(seen[n], x[n], mean[:D]), atol=1e-11)
            np.testing.assert_allclose(imputed.covariance[n], covariance[:D, :D], atol=1e-11)
            assert not np.any(imputed.covariance[n][seen[n]])

    def test_one_step_is_that_of_the_dense_posterior(self, float64, x, mask, model, params, with_holes):
        """Rubin & Thayer's step, row by row and feature by feature; weights 0 to 3."""
        data, seen = given(x, mask, with_holes)
        weights = np.arange(N) % 4.0
        plain = dataclasses.replace(model, expanded=False)
        expected = [conditional(params, *row) for row in zip(x, seen, strict=True)]
        mean, loadings, left, count = np.zeros(D), np.zeros((D, L)), np.zeros(D), np.zeros(D)
        for d in range(D):
            rows = [n for n in range(N) if seen[n, d]]
            second, cross = np.zeros((L + 1, L + 1)), np.zeros(L + 1)
            for n in rows:
                _, m, c = expected[n]
                z = np.append(m[D:], 1)
                second += weights[n] * (np.pad(c[D:, D:], (0, 1)) + np.outer(z, z))
                cross += weights[n] * x[n, d] * z
            solution = np.linalg.solve(second, cross)
            mean[d], loadings[d], count[d] = solution[-1], solution[:-1], weights[rows].sum()
            left[d] = np.sum(weights[rows] * x[rows, d] ** 2) - cross @ solution
        noise = left / count if params is PARAMS else left.sum() / count.sum()

        @jax.jit
        def step(data, weights):
            own = plain.calibrate(data, weights)
            prepared, kept = own.compress(data, weights)
            expected = own.e_step(params, prepared, kept)
            return expected, own.m_step(params, expected.stats), own.num_observations(prepared, kept)

        e_step, new, observations = step(data, jnp.asarray(weights))
        total = sum(w * log_p for w, (log_p, *_) in zip(weights, expected, strict=True))
        np.testing.assert_allclose(e_step.log_likelihood, total, rtol=1e-11)
        assert e_step.weight == observations == weights.sum()
        np.testing.assert_allclose(new.mean, mean, rtol=1e-9)
        np.testing.assert_allclose(new.loadings, loadings, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(new.noise, noise, rtol=1e-9)


@models
def test_moments_and_rows_have_the_same_e_step(float64, x, model, params):
    weights = jnp.asarray(np.arange(N) % 3.0)
    own = model.calibrate(x, weights)
    compressed, none = own.compress(x, weights)
    assert isinstance(compressed.statistics, Moments)
    assert none is None
    assert all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(compressed))
    rows = own.e_step(params, own.prepare(x), weights)
    moments = own.e_step(params, compressed)
    doubled = own.e_step(params, compressed, jnp.full(1, 2.0))
    for ours, expected, twice in zip(*map(jax.tree.leaves, (moments, rows, doubled)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(twice, 2 * expected, rtol=1e-10, atol=1e-10)


def test_fewer_rows_than_features_stay_rows(float64, x):
    model = jaxem.FactorAnalysis(1).calibrate(x[:4])
    prepared, _ = model.compress(x[:4])
    assert isinstance(prepared, Prepared)
    assert not isinstance(prepared.statistics, Moments)
    assert jaxem.fit(jaxem.FactorAnalysis(1), x[:4], key=jax.random.key(0), on_failure="ignore").status.usable


class TestScikitLearn:
    def test_optimum_and_scores(self, float64):
        """Their log-likelihood at our optimum, ours at theirs, and the optimum itself."""
        rng = np.random.default_rng(5)
        x = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 8)) + rng.normal(size=(300, 8)) * np.linspace(0.5, 2, 8)
        theirs = sklearn.decomposition.FactorAnalysis(3, tol=1e-12, max_iter=10_000, svd_method="lapack").fit(x)
        model = jaxem.FactorAnalysis(3)
        result = jaxem.fit(model, x, key=jax.random.key(0), num_starts=4, tol=1e-14, max_steps=20_000, trace_size=0)
        assert result.converged
        np.testing.assert_allclose(result.log_likelihood, theirs.score(x) * len(x), rtol=1e-10)

        params = jaxem.FactorParams(theirs.mean_, theirs.components_.T, theirs.noise_variance_)
        np.testing.assert_allclose(model.log_likelihood(params, jnp.asarray(x)), theirs.score_samples(x), rtol=1e-9)
        scores = model.factor_scores(params, jnp.asarray(x))
        np.testing.assert_allclose(scores.mean, theirs.transform(x), rtol=1e-9, atol=1e-9)
        theirs.components_, theirs.noise_variance_ = result.params.loadings.T, result.params.noise
        np.testing.assert_allclose(theirs.score(x) * len(x), result.log_likelihood, rtol=1e-11)

    def test_ppca_is_their_pca(self, float64, x):
        """Up to their divisor, N − 1."""
        theirs = sklearn.decomposition.PCA(L).fit(x)
        ours = jax.jit(jaxem.PPCA(L).closed_form)(jnp.asarray(x))
        np.testing.assert_allclose(ours.noise, theirs.noise_variance_ * (N - 1) / N, rtol=1e-10)
        covariance = ours.loadings @ ours.loadings.T + ours.noise * np.eye(D)
        np.testing.assert_allclose(covariance, theirs.get_covariance() * (N - 1) / N, rtol=1e-9, atol=1e-10)


class TestPPCA:
    def test_closed_form_is_the_optimum_of_em(self, float64, x):
        weights = np.arange(N) % 3.0
        model = jaxem.PPCA(L)
        closed = model.closed_form(jnp.asarray(x), jnp.asarray(weights))
        result = jaxem.fit(model, x, weights=weights, key=jax.random.key(1), tol=1e-15, max_steps=20_000, trace_size=0)
        expected = np.sum(weights * model.log_likelihood(closed, jnp.asarray(x)))
        np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-11)
        np.testing.assert_allclose(result.params.noise, closed.noise, rtol=1e-5)
        outer = [p.loadings @ p.loadings.T for p in (result.params, closed)]
        np.testing.assert_allclose(*outer, atol=1e-4)
        np.testing.assert_allclose(result.params.mean, closed.mean, rtol=1e-9)
        assert jaxem.fit(model, x, weights=weights, params=closed, tol=1e-12).steps <= 5

    def test_no_closed_form_with_holes(self, float64, x, mask):
        with pytest.raises(ValueError, match="missing cells"):
            jaxem.PPCA(L).closed_form(jaxem.Data(jnp.asarray(x), mask=jnp.asarray(mask)))


class TestExpanded:
    """What the larger model buys, and that it ends in the same place."""

    @pytest.mark.parametrize(("model", "least"), [(jaxem.FactorAnalysis(L), 1.0), (jaxem.PPCA(L), 1.5)])
    def test_same_optimum_in_fewer_steps(self, float64, x, model, least):
        ends = {}
        for expanded in (True, False):
            own = dataclasses.replace(model, expanded=expanded)
            ends[expanded] = jaxem.fit(own, x, key=jax.random.key(0), tol=1e-13, max_steps=20_000, trace_size=0)
        np.testing.assert_allclose(ends[True].log_likelihood, ends[False].log_likelihood, rtol=1e-10)
        outer = [end.params.loadings @ end.params.loadings.T for end in ends.values()]
        np.testing.assert_allclose(*outer, atol=1e-4)
        assert least * ends[True].steps < ends[False].steps

    def test_the_mean_is_there_after_one_step(self, float64, x):
        model = jaxem.FactorAnalysis(L).calibrate(x)
        start = dataclasses.replace(PARAMS, mean=PARAMS.mean + 5)
        new = model.m_step(start, model.e_step(start, x).stats)
        np.testing.assert_allclose(new.mean, x.mean(axis=0), rtol=1e-12)


class TestHoles:
    def fit(self, data):
        return jaxem.fit(jaxem.FactorAnalysis(L), data, key=jax.random.key(2), max_steps=40, on_failure="ignore")

    @pytest.mark.parametrize("poison", [1e30, -7.0])
    def test_what_is_masked_is_never_read(self, dtype, x, mask, poison):
        clean, spoilt = (jaxem.Data(np.where(mask, x, value).astype(dtype), mask=mask) for value in (0.0, poison))
        ours, theirs = self.fit(clean), self.fit(spoilt)
        chex.assert_trees_all_equal(ours.params, theirs.params)
        np.testing.assert_array_equal(ours.trace, theirs.trace)

    def test_nan_under_the_mask_leaves_gradients_finite(self, float64, x, mask):
        model = jaxem.FactorAnalysis(L)
        data = jaxem.Data(jnp.asarray(np.where(mask, x, np.nan)), mask=jnp.asarray(mask))

        def total(params, data):
            own = model.calibrate(data)
            return own.e_step(params, data).log_likelihood + jnp.sum(model.log_likelihood(params, data))

        for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(PARAMS, data)):
            assert np.all(np.isfinite(leaf))

    def test_no_hole_is_as_no_mask(self, float64, x):
        whole, masked = self.fit(x), self.fit(jaxem.Data(x, mask=np.ones(x.shape, bool)))
        np.testing.assert_allclose(masked.log_likelihood, whole.log_likelihood, rtol=1e-9)
        np.testing.assert_allclose(masked.params.loadings, whole.params.loadings, rtol=1e-6, atol=1e-8)

    def test_the_optimum_is_that_of_the_dense_marginals(self, float64, x, mask):
        """The gradient of Σ log N(x_o; μ_o, Σ_oo), row by row, is 0."""
        model = jaxem.FactorAnalysis(L)
        data = jaxem.Data(x, mask=mask)
        result = jaxem.fit(model, data, key=jax.random.key(1), tol=1e-14, max_steps=20_000, trace_size=0)
        assert result.converged
        params = jax.tree.map(jnp.asarray, result.params)

        def dense_log_likelihood(params):
            covariance = params.loadings @ params.loadings.T + jnp.diag(params.noise)
            total = 0.0
            for o in map(np.flatnonzero, mask):
                if len(o):
                    away, inner = jnp.asarray(x[len(done)][o]) - params.mean[o], covariance[np.ix_(o, o)]
                    _, log_det = jnp.linalg.slogdet(2 * np.pi * inner)
                    total += -0.5 * (away @ jnp.linalg.solve(inner, away) + log_det)
                done.append(None)
            return total

        done = []
        value, gradient = jax.value_and_grad(dense_log_likelihood)(params)
        np.testing.assert_allclose(value, result.log_likelihood, rtol=1e-11)
        for leaf in jax.tree.leaves(gradient):
            assert np.max(np.abs(leaf)) < 1e-3

    def test_rows_masked_whole_are_not_there(self, float64, x):
        rows = np.arange(N) % 5 > 0
        part, masked = self.fit(x[rows]), self.fit(jaxem.Data(np.where(rows[:, None], x, 1e30), mask=rows))
        # They count as examples, of log-likelihood 0, and pull the expanded step towards z ~ N(0, I).
        model = jaxem.FactorAnalysis(L)
        one, other = (
            model.e_step(PARAMS, d).log_likelihood
            for d in (x[rows], jaxem.Data(jnp.asarray(x), mask=jnp.asarray(rows)))
        )
        np.testing.assert_allclose(one, other, rtol=1e-12)
        np.testing.assert_allclose(part.log_likelihood, masked.log_likelihood, rtol=1e-5)

    def test_a_column_never_seen_is_named(self, x):
        mask = np.ones(x.shape, bool)
        mask[:, 2] = False
        with pytest.raises(ValueError, match="column 2 has no observed cell"):
            self.fit(jaxem.Data(x, mask=mask))

    def test_a_column_without_weight_keeps_its_parameters(self, float64, x):
        mask = np.ones(x.shape, bool)
        mask[5:, 2] = False
        weights = jnp.asarray(np.arange(N) >= 5, float)
        model = jaxem.FactorAnalysis(L)
        data = jaxem.Data(jnp.asarray(x), mask=jnp.asarray(mask))
        own = model.calibrate(data, weights)
        new = own.m_step(PARAMS, own.e_step(PARAMS, data, weights).stats)
        assert (new.mean[2], new.noise[2]) == (PARAMS.mean[2], PARAMS.noise[2])
        np.testing.assert_array_equal(new.loadings[2], PARAMS.loadings[2])
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(new))


class TestNumbers:
    def test_a_million_rows_in_float32(self, float32):
        """Moments, log-likelihood and steps as those of float64, at an offset of a hundred standard deviations."""
        rng = np.random.default_rng(0)
        n, loadings = 1_000_000, np.array([[1.0, 0.2], [0.5, 0.5], [-1.0, 0.3], [0.3, 1.0]])
        x = (rng.normal(size=(n, 2)) @ loadings.T + 0.5 * rng.normal(size=(n, 4)) + 100).astype(np.float32)
        model = jaxem.FactorAnalysis(2)
        single = jaxem.fit(model, x, key=jax.random.key(0), max_steps=15, on_failure="ignore")
        prepared, _ = single.model.compress(jnp.asarray(x))
        y = (x.astype(float) - np.asarray(single.model.center, float)) / np.asarray(single.model.scale, float)
        moments = jax.tree.map(lambda a: np.asarray(a[0], float), prepared.statistics)
        assert moments.count == n
        np.testing.assert_allclose(moments.second, y.T @ y, atol=1e-6 * n)
        np.testing.assert_allclose(moments.first, y.sum(axis=0), atol=1e-6 * n)
        params = jax.tree.map(lambda a: np.asarray(a, float), single.params)
        covariance = params.loadings @ params.loadings.T + np.diag(params.noise)
        expected = scipy.stats.multivariate_normal(params.mean, covariance).logpdf(x.astype(float)).sum()
        assert single.log_likelihood == pytest.approx(expected, rel=2e-6)

    @pytest.mark.parametrize(("scale", "offset"), [(1e-8, 0.0), (1e8, 0.0), (1.0, 1e4)])
    def test_units_do_not_matter_in_float32(self, float32, x, scale, offset):
        plain, moved = (
            jaxem.fit(jaxem.FactorAnalysis(L), a, key=jax.random.key(0), num_starts=2, max_steps=2000)
            for a in (x.astype(np.float32), (x * scale + offset * scale).astype(np.float32))
        )
        expected = plain.log_likelihood - x.size * np.log(scale)
        assert moved.log_likelihood == pytest.approx(expected, abs=2e-2 if offset else 3e-3)

    def test_a_heywood_case_is_reported(self, float64):
        """Two columns that agree but for the rounding of their tenths: one factor takes one of them whole."""
        rng = np.random.default_rng(1)
        z = rng.normal(size=200)
        x = np.stack([z, z + rng.normal(size=200), rng.normal(size=200), z - 2 * rng.normal(size=200)], axis=1)
        x[:, 2] += 0.5 * x[:, 0]
        x = np.concatenate([x, x[:, :1] * 2 + 1], axis=1)
        model = jaxem.FactorAnalysis(1)
        with pytest.warns(jaxem.ConvergenceWarning):
            result = jaxem.fit(model, x, key=jax.random.key(0), max_steps=3000)
        assert result.status == jaxem.Status.DEGENERATE
        np.testing.assert_array_equal(result.model.heywood_cases(result.params), [True, False, False, False, True])
        assert np.isfinite(result.log_likelihood)

    def test_constant_data_stay_finite(self, dtype):
        x = np.full((20, 3), 7.0, dtype)
        x[:, 0] = np.arange(20)
        result = jaxem.fit(jaxem.FactorAnalysis(1), x, key=jax.random.key(0), max_steps=30, on_failure="ignore")
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))
        assert result.status == jaxem.Status.DEGENERATE

    def test_many_data_sets_at_once(self, float64, x):
        sets = np.stack([x, 2 * x[::-1], x[:, ::-1]])
        result = jaxem.fit_batch(jaxem.FactorAnalysis(L), sets, key=jax.random.key(0), num_starts=3, tol=1e-10)
        values = result.log_likelihood
        np.testing.assert_allclose(values[1:], [values[0] - x.size * np.log(2), values[0]], rtol=1e-9)

    def test_starts_differ(self, x):
        model = jaxem.FactorAnalysis(L).calibrate(x)
        starts = [model.init(key, x) for key in jax.random.split(jax.random.key(0), 2)]
        assert not np.allclose(starts[0].loadings, starts[1].loadings)
        # A start of any key beats that without factors: it knows the covariance.
        for start in starts:
            value = np.sum(model.log_likelihood(start, jnp.asarray(x)))
            assert value > scipy.stats.norm(x.mean(axis=0), x.std(axis=0)).logpdf(x).sum() - N / 2


class TestScores:
    def test_bartlett_is_generalized_least_squares(self, float64, x, mask):
        for data, seen in (given(x, mask, False), given(x, mask, True)):
            scores = jaxem.FactorAnalysis(L).factor_scores(PARAMS, data, method="bartlett")
            for n in range(N):
                o = seen[n]
                spread = scores.covariance if data is not None and not isinstance(data, jaxem.Data) else None
                spread = scores.covariance[n] if spread is None else spread
                if o.sum() < L:
                    assert np.all(np.isnan(scores.mean[n]))
                    continue
                root = 1 / np.sqrt(PARAMS.noise[o])
                design, target = PARAMS.loadings[o] * root[:, None], (x[n] - PARAMS.mean)[o] * root
                expected = np.linalg.lstsq(design, target, rcond=None)[0]
                np.testing.assert_allclose(scores.mean[n], expected, rtol=1e-8, atol=1e-9)
                np.testing.assert_allclose(spread, np.linalg.inv(design.T @ design), rtol=1e-8)

    def test_another_method_is_refused(self, x):
        with pytest.raises(ValueError, match="'thurstone'"):
            jaxem.FactorAnalysis(L).factor_scores(PARAMS, x, method="thurstone")


class TestDoors:
    @pytest.mark.parametrize("count", [0, -1, 1.5, True])
    def test_number_of_factors(self, count):
        with pytest.raises(ValueError, match="num_factors"):
            jaxem.FactorAnalysis(count)

    def test_floor(self):
        with pytest.raises(ValueError, match="floor"):
            jaxem.PPCA(1, floor=0.0)

    def test_more_factors_than_features(self, x):
        with pytest.raises(ValueError, match="below the number of features, 5; got 5"):
            jaxem.fit(jaxem.FactorAnalysis(5), x, key=jax.random.key(0))

    def test_fields_it_does_not_read(self, x):
        with pytest.raises(ValueError, match="inputs given, but PPCA"):
            jaxem.fit(jaxem.PPCA(1), jaxem.Data(x, inputs=x), key=jax.random.key(0))

    def test_counts_of_parameters(self):
        assert jaxem.FactorAnalysis(L).num_free_parameters(PARAMS) == D * L + D + D - 1
        assert jaxem.PPCA(L).num_free_parameters(ISOTROPIC) == D * L + D + 1 - 1


class TestRotation:
    # R, factanal(factors = 2, covmat = ability.cov), with rotation "varimax" and "promax", as it prints them; its varimax
    # stops at a relative gain of 1e-5, an angle of 0.003 before the maximum.
    VARIMAX = np.array([[0.499, 0.543], [0.156, 0.622], [0.206, 0.860], [0.109, 0.468], [0.956, 0.182], [0.785, 0.225]])
    PROMAX = np.array(
        [[0.364, 0.470], [np.nan, 0.671], [np.nan, 0.932], [np.nan, 0.508], [1.023, np.nan], [0.811, np.nan]]
    )
    CORRELATION = 0.557

    @pytest.fixture
    def loadings(self):
        # The published optimum, unrotated: the leading eigenvectors of L Lᵀ.
        outer = np.array(fit_of("fa-factanal-ability", "k2")["params"]["loadings_standardised_LLt"])
        values, vectors = np.linalg.eigh(outer)
        return vectors[:, -2:] * np.sqrt(values[-2:])

    def matched(self, ours, published):
        """Columns of ours in the order and with the signs of the published ones."""
        ours = np.asarray(ours)
        known = ~np.isnan(published)
        options = [
            ours[:, list(order)] * signs
            for order in itertools.permutations(range(2))
            for signs in itertools.product([1, -1], repeat=2)
        ]
        return min(options, key=lambda a: np.max(np.abs(a - published)[known]))

    def test_varimax_is_the_published_one(self, float64, loadings):
        rotated = jax.jit(jaxem.rotation.varimax)(loadings)
        ours = self.matched(rotated.loadings, self.VARIMAX)
        np.testing.assert_allclose(ours, self.VARIMAX, atol=4e-3)
        np.testing.assert_allclose(rotated.rotation.T @ rotated.rotation, np.eye(2), atol=1e-12)
        np.testing.assert_allclose(loadings @ rotated.rotation, rotated.loadings, atol=1e-12)

    def test_promax_is_the_published_one(self, float64, loadings):
        rotated = jax.jit(jaxem.rotation.promax)(loadings)
        ours = self.matched(rotated.loadings, self.PROMAX)
        known = ~np.isnan(self.PROMAX)
        np.testing.assert_allclose(ours[known], self.PROMAX[known], atol=1.5e-3)
        assert np.max(np.abs(ours[~known])) < 0.1  # what R leaves blank
        assert abs(rotated.factor_covariance[0, 1]) == pytest.approx(self.CORRELATION, abs=1.5e-3)
        np.testing.assert_allclose(np.diag(rotated.factor_covariance), 1, rtol=1e-12)
        implied = rotated.loadings @ rotated.factor_covariance @ rotated.loadings.T
        np.testing.assert_allclose(implied, loadings @ loadings.T, atol=1e-12)

    @pytest.mark.parametrize("normalize", [True, False])
    def test_no_angle_in_any_plane_is_better(self, float64, normalize):
        loadings = np.random.default_rng(0).normal(size=(12, 4)) * np.linspace(0.2, 2, 12)[:, None]
        rotated = np.asarray(jaxem.rotation.varimax(loadings, normalize).loadings)

        def criterion(a):
            a = a / np.linalg.norm(a, axis=1, keepdims=True) if normalize else a
            return np.sum(np.var(a**2, axis=0))

        best = criterion(rotated)
        assert best > criterion(loadings)
        for i, j in itertools.combinations(range(4), 2):
            for angle in np.linspace(-np.pi / 4, np.pi / 4, 201):
                turn = np.eye(4)
                turn[[i, j], [i, j]] = np.cos(angle)
                turn[i, j], turn[j, i] = np.sin(angle), -np.sin(angle)
                assert criterion(rotated @ turn) <= best * (1 + 1e-10)

    def test_features_and_factors_of_nothing(self, float64):
        loadings = np.array([[1.0, 0.5, 0], [0, 0, 0], [0.3, -1, 0], [0.7, 0.2, 0]])
        rotated = jaxem.rotation.varimax(loadings)
        np.testing.assert_allclose(rotated.loadings @ rotated.loadings.T, loadings @ loadings.T, atol=1e-12)

    def test_one_factor_stays(self, float64):
        loadings = np.array([[1.0], [-0.5], [0.2]])
        np.testing.assert_allclose(np.abs(jaxem.rotation.promax(loadings).loadings), np.abs(loadings), rtol=1e-12)

    def test_communalities_do_not_feel_rotations(self, float64):
        expected = 1 - PARAMS.noise / np.diag(dense(PARAMS)[1])[:D]
        turned = dataclasses.replace(PARAMS, loadings=jaxem.rotation.varimax(PARAMS.loadings).loadings)
        for params in (PARAMS, turned):
            np.testing.assert_allclose(jaxem.rotation.communalities(params), expected, rtol=1e-12)

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="features as rows"):
            jaxem.rotation.varimax(np.ones(3))
        with pytest.raises(ValueError, match="power"):
            jaxem.rotation.promax(np.ones((3, 2)), power=1.0)
