"""Missing cells: the exact density of what is observed, exact conditional moments, and nothing hidden is ever read."""

import functools
import itertools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import jaxem
from jaxem import CategoricalParams, Data, GaussianParams, LatentParams, Status
from jaxem.validate import constant_columns

STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diagonal": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
KEY = jax.random.key(0)
quiet = functools.partial(jaxem.fit, on_failure="ignore")


def mixture(name, k):
    return jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), k)


def rows(seed, n, d, share=0.25):
    """(x without gaps, mask); the first row has nothing, the second everything."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3 * rng.normal(size=d)
    mask = rng.random((n, d)) > share
    mask[0], mask[1] = False, True
    return x, mask


def few_patterns(seed, n, d, count):
    """As `rows`, with no more than ``count`` patterns."""
    x, _ = rows(seed, n, d)
    rng = np.random.default_rng(seed)
    patterns = rng.random((count, d)) > 0.4
    return x, patterns[rng.integers(0, count, n)]


def hidden(x, mask, value=np.nan):
    return Data(x=jnp.asarray(np.where(mask, x, value)), mask=jnp.asarray(mask))


def some_params(seed, name, k, x):
    """Parameters, and their covariances as matrices."""
    d = x.shape[1]
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(k, d, d + 2))
    dense = factors @ np.swapaxes(factors, 1, 2)
    covariance = {
        "full": dense,
        "tied": dense[0],
        "diagonal": np.array([np.diag(m) for m in dense]),
        "spherical": dense[:, 0, 0],
    }[name]
    matrices = np.array(STRUCTURES[name].dense(jnp.asarray(covariance), k, d))
    mean = x.mean(0) + rng.normal(size=(k, d))
    weights = rng.dirichlet(np.full(k, 3.0))
    params = LatentParams(CategoricalParams(jnp.asarray(weights)), GaussianParams(jnp.asarray(mean), covariance))
    return jax.tree.map(jnp.asarray, params), weights, mean, matrices


# The plain implementation: one row, one component, one small solve at a time.


def row_log_prob(x, seen, mean, covariance):
    if not seen.any():
        return 0.0
    return multivariate_normal.logpdf(x[seen], mean[seen], covariance[np.ix_(seen, seen)])


def row_moments(x, seen, mean, covariance):
    """E[x] and Cov[x] given the observed cells."""
    gap = ~seen
    filled, left = np.where(seen, x, mean), np.zeros_like(covariance)
    regression = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, gap)]).T
    filled[gap] += regression @ (x[seen] - mean[seen])
    left[np.ix_(gap, gap)] = covariance[np.ix_(gap, gap)] - regression @ covariance[np.ix_(seen, gap)]
    return filled, left


def log_joint(x, mask, weights, mean, covariance):
    """log π_k p(x_n | k), [N, K]."""
    return np.array(
        [[np.log(w) + row_log_prob(*r, m, c) for w, m, c in zip(weights, mean, covariance)] for r in zip(x, mask)]
    )


def posterior_of(joint):
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


def plain_step(name, x, mask, each, weights, mean, covariance):
    """(log-likelihood, new weights, new means, new covariances in the shape of the structure)."""
    joint = log_joint(x, mask, weights, mean, covariance)
    r = posterior_of(joint) * each[:, None]
    count = r.sum(0)
    new_mean, scatter = [], []
    for k in range(len(weights)):
        moments = [row_moments(*row, mean[k], covariance[k]) for row in zip(x, mask)]
        center = sum(rn * filled for rn, (filled, _) in zip(r[:, k], moments)) / count[k]
        away = [(filled - center, left) for filled, left in moments]
        new_mean.append(center)
        scatter.append(sum(rn * (np.outer(a, a) + left) for rn, (a, left) in zip(r[:, k], away)) / count[k])
    scatter = np.array(scatter)
    new = {
        "full": lambda: scatter,
        "tied": lambda: np.einsum("k,kde->de", count, scatter) / count.sum(),
        "diagonal": lambda: np.array([np.diag(s) for s in scatter]),
        "spherical": lambda: np.array([np.trace(s) for s in scatter]) / x.shape[1],
    }[name]()
    return each @ logsumexp(joint, axis=1), count / count.sum(), np.array(new_mean), new


@jax.jit
def step(model, params, data, weights=None):
    """One EM step of a calibrated model."""
    prepared, weights = model.compress(data, weights)
    e = model.e_step(params, prepared, weights)
    return e.log_likelihood, model.m_step(params, e.stats)


LOG_LIKELIHOOD = jax.jit(lambda model, params, data: model.log_likelihood(params, data))


def ready(model, data):
    """Calibrated, and told how many patterns there are."""
    return model.specialize(data).calibrate(data)


# Eight patterns of three features, each pattern a number; a few known ones of nine; more patterns than half the rows.
WAYS = {"all patterns": rows(1, 40, 3), "known patterns": few_patterns(2, 40, 9, 5), "row by row": rows(3, 24, 6)}


@pytest.mark.parametrize(
    ("name", "k", "way"),
    [
        *(("full", k, way) for k in (1, 2, 3) for way in WAYS),
        *((name, 2, way) for name in ("tied", "diagonal", "spherical") for way in WAYS),
        *((name, k, "all patterns") for name in ("tied", "diagonal", "spherical") for k in (1, 3)),
    ],
)
def test_one_step_is_that_of_plain_em(float64, name, k, way):
    x, mask = WAYS[way]
    params, *dense = some_params(k, name, k, x)
    each = np.random.default_rng(0).integers(0, 3, len(x)).astype(float)
    log_likelihood, weights, mean, covariance = plain_step(name, x, mask, each, *dense)
    data = hidden(x, mask)
    got, new = step(ready(mixture(name, k), data), params, data, jnp.asarray(each))
    np.testing.assert_allclose(got, log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(new.latent.weights, weights, rtol=1e-8)
    np.testing.assert_allclose(new.likelihood.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(new.likelihood.covariance, covariance, rtol=1e-7, atol=1e-9)


class TestDensity:
    @hypothesis.given(mask=hnp.arrays(bool, (12, 3)))
    def test_any_mask(self, float64, mask):
        x, _ = rows(0, 12, 3)
        params, *dense = some_params(0, "full", 2, x)
        got = LOG_LIKELIHOOD(mixture("full", 2), params, hidden(x, mask, 1e30))
        np.testing.assert_allclose(got, logsumexp(log_joint(x, mask, *dense), axis=1), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("name", STRUCTURES)
    def test_a_row_with_nothing_says_nothing(self, dtype, name):
        x, mask = rows(0, 12, 3)
        x = x.astype(dtype)
        params = jax.tree.map(lambda a: a.astype(dtype), some_params(0, name, 2, x)[0])
        model, data = mixture(name, 2), hidden(x, mask)
        np.testing.assert_allclose(LOG_LIKELIHOOD(model, params, data)[0], 0, atol=1e-6)
        np.testing.assert_allclose(model.posterior(params, data)[0], params.latent.weights, rtol=1e-6)

    def test_a_row_by_itself_is_what_it_is_among_others(self, float64):
        """40 rows go pattern by pattern, a single one does not; fitted models know nothing of the old patterns."""
        x, mask = rows(0, 40, 3)
        data = hidden(x, mask)
        result = quiet(mixture("full", 2), data, key=KEY, max_steps=3, min_steps=3)
        one = LOG_LIKELIHOOD(result.model, result.params, jax.tree.map(lambda a: a[5:6], data))
        np.testing.assert_allclose(one, LOG_LIKELIHOOD(result.model, result.params, data)[5], rtol=1e-12)
        assert result.model.likelihood.num_patterns is None

    def test_what_a_model_was_told_of_other_data_is_never_silently_wrong(self, float64):
        x, mask = few_patterns(2, 40, 9, 3)
        other = few_patterns(5, 40, 9, 20)[1]
        model = ready(mixture("full", 1), hidden(x, mask))
        params = some_params(0, "full", 1, x)[0]
        assert np.isfinite(step(model, params, hidden(x, mask))[0])
        assert np.isnan(step(model, params, hidden(x, other))[0])

    def test_float32_is_as_float64(self):
        x, mask = rows(0, 400, 4, 0.4)
        wide = x + 1e3
        with jax.enable_x64(True):
            params = some_params(0, "full", 2, wide)[0]
            data = hidden(wide, mask)
            exact, stepped = step(ready(mixture("full", 2), data), params, data)
        single = jax.tree.map(lambda a: np.asarray(a).astype(np.float32), params)
        data = Data(x=jnp.asarray(np.where(mask, wide, np.nan).astype(np.float32)), mask=jnp.asarray(mask))
        rounded, stepped_single = step(ready(mixture("full", 2), data), single, data)
        assert rounded.dtype == jnp.float32
        np.testing.assert_allclose(rounded, exact, rtol=1e-4)
        np.testing.assert_allclose(stepped_single.likelihood.covariance, stepped.likelihood.covariance, rtol=5e-3)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_mask_of_all_true_is_no_mask(float64, name):
    x, mask = rows(4, 60, 3)
    model = mixture(name, 2)
    plain, masked = (
        quiet(model, data, key=KEY, max_steps=20, min_steps=20) for data in (x, hidden(x, np.ones_like(mask)))
    )
    assert plain.steps == masked.steps
    np.testing.assert_allclose(masked.log_likelihood, plain.log_likelihood, rtol=1e-12)
    chex.assert_trees_all_close(masked.params, plain.params, rtol=1e-10)


class TestFits:
    def test_many_data_sets_are_fitted_as_each_by_itself(self, float64):
        sets = [rows(seed, 40, 3) for seed in range(3)]
        x, mask = np.stack([np.where(m, x, np.nan) for x, m in sets]), np.stack([m for _, m in sets])
        x[1][tuple(np.argwhere(mask[1])[0])] = np.nan
        model = mixture("full", 2)
        options = {"max_steps": 15, "min_steps": 15, "on_failure": "ignore"}
        starts = [quiet(model, hidden(*s), key=KEY, max_steps=1).params for s in sets]
        stacked = jax.tree.map(lambda *a: np.stack(a)[:, None], *starts)
        batch = jaxem.fit_batch(model, Data(x=x, mask=mask), starts=stacked, **options)
        assert batch.status[1] == Status.NON_FINITE_INPUT
        for i in (0, 2):
            alone = jaxem.fit(model, hidden(*sets[i]), params=starts[i], **options)
            np.testing.assert_allclose(batch[i].log_likelihood, alone.log_likelihood, rtol=1e-10)

    def test_starts_differ_and_the_likelihood_rises_from_each(self, float64):
        x, mask = rows(7, 60, 3, 0.4)
        result = quiet(mixture("full", 3), hidden(x, mask), key=KEY, num_starts=8, max_steps=40, min_steps=40)
        traces = np.asarray(result.starts.trace)
        assert len(np.unique(np.round(traces[:, 0], 6))) == 8
        for trace in traces:
            seen = trace[~np.isnan(trace)]
            assert np.min(np.diff(seen)) >= -1e-9 * np.abs(seen).max()

    def test_numbers_of_components_are_compared(self, float64):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(200, 2)) + 6 * (np.arange(200) % 2)[:, None]
        mask = rng.random(x.shape) > 0.2
        models = [mixture("diagonal", k) for k in (1, 2, 3)]
        chosen = jaxem.select(models, hidden(x, mask), key=KEY, num_starts=4)
        assert chosen.best.model.num_components == 2
        for result in chosen.results:
            again = np.sum(LOG_LIKELIHOOD(result.model, result.params, hidden(x, mask)))
            np.testing.assert_allclose(result.log_likelihood, again, rtol=1e-8)

    def test_the_truth_is_recovered_when_cells_go_missing_at_random(self, float64):
        rng = np.random.default_rng(0)
        mean = np.array([[-4.0, 0, 1], [4, 2, -1]])
        root = np.array([[[1.0, 0, 0], [0.8, 0.6, 0], [0, 0.5, 1]], [[0.5, 0, 0], [-0.3, 1, 0], [0.2, 0.2, 0.7]]])
        z = rng.integers(0, 2, 4000)
        x = mean[z] + np.einsum("nij,nj->ni", root[z], rng.normal(size=(4000, 3)))
        mask = rng.random(x.shape) > 0.3
        result = jaxem.fit(mixture("full", 2), hidden(x, mask), key=KEY, num_starts=4, tol=1e-8)
        order = np.argsort(result.params.likelihood.mean[:, 0])
        np.testing.assert_allclose(result.params.likelihood.mean[order], mean, atol=0.1)
        np.testing.assert_allclose(
            result.params.likelihood.covariance[order], root @ np.swapaxes(root, 1, 2), atol=0.12
        )

    def test_blocks_give_the_same(self, float64):
        x, mask = rows(5, 50, 4)
        data = hidden(x, mask)
        params = some_params(0, "full", 2, x)[0]
        model = ready(mixture("full", 2), data)
        whole, blocks = step(model, params, data), step(jaxem.Chunked(model, 16), params, data)
        chex.assert_trees_all_close(blocks, whole, rtol=1e-9)

    def test_a_prior(self, float64):
        x, mask = rows(5, 50, 3)
        model = jaxem.WithPrior(mixture("full", 2), 2.0)
        result = quiet(model, hidden(x, mask), key=KEY, max_steps=30, min_steps=30)
        assert np.min(np.diff(result.trace[~np.isnan(result.trace)])) >= -1e-9 * abs(result.objective)


class TestImputation:
    @pytest.mark.parametrize("name", STRUCTURES)
    def test_mixtures(self, float64, name):
        x, mask = rows(6, 12, 3)
        params, weights, mean, covariance = some_params(1, name, 2, x)
        labels = np.where(np.arange(12) < 4, np.arange(12) % 2, -1)
        data = Data(x=jnp.asarray(np.where(mask, x, np.nan)), mask=jnp.asarray(mask), labels=jnp.asarray(labels))
        joint = log_joint(x, mask, weights, mean, covariance)
        joint = np.where((labels[:, None] < 0) | (labels[:, None] == np.arange(2)), joint, -np.inf)
        self.check(mixture(name, 2), params, data, x, mask, posterior_of(joint), mean, covariance)

    def test_sequences(self, float64):
        x, mask = rows(6, 12, 3)
        model = jaxem.HMM(jaxem.Gaussian(), 2)
        full, _, mean, covariance = some_params(1, "full", 2, x)
        start = model.init(KEY, Data(x=jnp.asarray(x.reshape(3, 4, 3))))
        params = LatentParams(start.latent, full.likelihood)
        lengths = np.array([4, 2, 3])
        mask = mask & (np.arange(4) < lengths[:, None]).reshape(-1, 1)
        data = Data(
            x=jnp.asarray(np.where(mask, x, np.nan).reshape(3, 4, 3)),
            mask=jnp.asarray(mask.reshape(3, 4, 3)),
            lengths=jnp.asarray(lengths),
        )
        posterior = np.asarray(model.posterior(params, data)).reshape(12, 2)
        inside = (np.arange(4) < lengths[:, None]).reshape(-1)
        imputed = jax.tree.map(lambda a: np.asarray(a).reshape(12, *a.shape[2:])[inside], model.impute(params, data))
        self.compare(imputed, x[inside], mask[inside], posterior[inside], mean, covariance)

    def test_rows_missing_whole_are_the_mixture(self, float64):
        x, _ = rows(6, 12, 3)
        params, weights, mean, _ = some_params(1, "full", 2, x)
        whole = np.arange(12) % 3 > 0
        data = Data(x=jnp.asarray(np.where(whole[:, None], x, np.inf)), mask=jnp.asarray(whole))
        imputed = mixture("full", 2).impute(params, data)
        np.testing.assert_array_equal(imputed.mean[whole], x[whole])
        np.testing.assert_allclose(imputed.mean[~whole], np.tile(weights @ mean, (4, 1)), rtol=1e-10)

    def check(self, model, params, data, x, mask, posterior, mean, covariance):
        self.compare(jax.jit(model.impute)(params, data), x, mask, posterior, mean, covariance)

    def compare(self, imputed, x, mask, posterior, mean, covariance):
        np.testing.assert_array_equal(np.asarray(imputed.mean)[mask], x[mask])
        for n in range(len(x)):
            filled, left = zip(*(row_moments(x[n], mask[n], m, c) for m, c in zip(mean, covariance)))
            overall = posterior[n] @ np.array(filled)
            spread = sum(p * (c + np.outer(f - overall, f - overall)) for p, f, c in zip(posterior[n], filled, left))
            spread[mask[n]] = spread[:, mask[n]] = 0
            np.testing.assert_allclose(imputed.mean[n], overall, rtol=1e-9)
            np.testing.assert_allclose(imputed.covariance[n], spread, rtol=1e-7, atol=1e-10)
            assert np.all(np.asarray(imputed.covariance[n])[mask[n]] == 0)


def test_paths_of_a_chain_summed_one_by_one(float64):
    x, mask = rows(8, 5, 2, 0.4)
    model = jaxem.HMM(jaxem.Gaussian(), 2)
    full, _, mean, covariance = some_params(1, "full", 2, x)
    start = model.init(KEY, jnp.asarray(x[None]))
    params = LatentParams(start.latent, full.likelihood)
    initial, transition = np.asarray(start.latent.initial), np.asarray(start.latent.transition)
    potentials = [[row_log_prob(*r, m, c) for m, c in zip(mean, covariance)] for r in zip(x, mask)]
    paths = [
        np.log(initial[z[0]])
        + sum(np.log(transition[a, b]) for a, b in itertools.pairwise(z))
        + sum(potentials[t][k] for t, k in enumerate(z))
        for z in itertools.product(range(2), repeat=5)
    ]
    data = Data(x=jnp.asarray(np.where(mask, x, np.nan)[None]), mask=jnp.asarray(mask[None]))
    np.testing.assert_allclose(LOG_LIKELIHOOD(model, params, data)[0], logsumexp(paths), rtol=1e-10)


class TestTheDoor:
    def test_a_column_that_nobody_observed(self):
        x, mask = rows(0, 20, 3)
        mask[:, 1] = False
        with pytest.raises(ValueError, match="column 1 has no observed cell"):
            jaxem.fit(mixture("full", 1), hidden(x, mask), key=KEY)

    def test_nan_beside_the_mask_is_named(self):
        x, mask = rows(0, 20, 3)
        x[7, 2] = np.nan
        mask[7, 2] = True
        with pytest.raises(ValueError, match=r"nan in row 7, column 2 \(1 of 20"):
            jaxem.fit(mixture("full", 1), hidden(x, mask), key=KEY)

    def test_nan_in_a_sequence_is_named(self):
        x = np.zeros((2, 5, 3))
        x[1, 4] = np.nan
        model = jaxem.HMM(jaxem.Gaussian(), 2)
        with pytest.raises(ValueError, match=r"nan in sequence 1, step 4, column 0 \(1 of 2 sequences"):
            jaxem.fit(model, Data(x=x), key=KEY)
        x[1, 3, 0] = 1.0
        shorter = Data(x=x + np.random.default_rng(0).normal(size=x.shape), lengths=np.array([5, 4]))
        assert quiet(model, shorter, key=KEY, max_steps=2).status.usable

    def test_constant_is_what_is_observed_to_be(self):
        x, mask = rows(0, 20, 3)
        x[:, 1] = np.where(mask[:, 1], 2.0, x[:, 1])
        assert constant_columns(hidden(x, mask, 7.0)) == [1]
        assert constant_columns(hidden(x, np.ones_like(mask))) == []
