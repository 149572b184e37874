"""Student t components against scipy, the paper's EM step written out, and what is promised when things go wrong.

The numbers in the names are the rows of the table of promises.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from data.cases import faithful, fit_of

import jaxem
from jaxem import CategoricalParams, LatentParams, Status, StudentT, StudentTParams
from jaxem.families.student_t import _quartiles

KEY = jax.random.key(0)
RUN = jax.jit(jaxem.run, static_argnames="trace_size")
quiet = functools.partial(jaxem.fit, on_failure="ignore")
STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diagonal": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
K, D = 2, 3


def heavy(n=80, d=D, seed=0):
    """Two groups of rows with heavy tails."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(2.5, (n, d)) * np.linspace(1, 2, d) + 6 * (np.arange(n) % 2)[:, None]


def scatters(name):
    """(as jaxem shapes it, dense [K, D, D])."""
    rng = np.random.default_rng(3)
    full = np.array([a @ a.T + np.eye(D) for a in rng.normal(size=(K, D, D))])
    variances = rng.uniform(0.5, 3, (K, D))
    return {
        "full": (full, full),
        "tied": (full[0], np.tile(full[0], (K, 1, 1))),
        "diagonal": (variances, np.array([np.diag(v) for v in variances])),
        "spherical": (variances[:, 0], np.array([v * np.eye(D) for v in variances[:, 0]])),
    }[name]


def params_of(name, dof):
    mean = np.array([[0.5, -1.0, 2.0], [6.0, 5.0, 7.0]])
    return StudentTParams(*(jnp.asarray(a, float) for a in (mean, scatters(name)[0], dof)))


@jax.jit
def _log_prob(family, params, data):
    family = family.calibrate(data, None)
    return family.log_prob(params, family.statistics(data))


@jax.jit
def _step(family, params, data, marginals):
    family = family.calibrate(data, None)
    return family.maximize(params, family.accumulate(params, family.statistics(data), marginals), {})


def distances(params, dense, x):
    away = x[:, None, :] - np.asarray(params.mean)
    return np.einsum("nkd,kde,nke->nk", away, np.linalg.inv(dense), away)


@pytest.mark.parametrize("name", STRUCTURES)
class TestAgainstScipy:
    @pytest.mark.parametrize("dof", [(0.3, 4.0), (30.0, 1e5)])
    def test_log_prob(self, float64, name, dof):
        x = np.concatenate([heavy(), [[1e4, -1e5, 3.0]]])
        params = params_of(name, dof)
        ours = _log_prob(StudentT(STRUCTURES[name]), params, jaxem.Data(jnp.asarray(x)))
        dense = scatters(name)[1]
        for k in range(K):
            law = scipy.stats.multivariate_t(params.mean[k], dense[k], df=dof[k])
            # scipy takes differences of log Γ, which lose digits for large dof.
            np.testing.assert_allclose(ours[:, k], law.logpdf(x), rtol=1e-8, atol=1e-9)

    def test_one_step_is_the_papers(self, float64, name):
        """Peel & McLachlan (2000), equations 29 to 32, written out."""
        x, dof = heavy(), np.array([3.0, 8.0])
        params, dense = params_of(name, dof), scatters(name)[1]
        r = np.random.default_rng(1).dirichlet(np.ones(K), len(x))
        new = _step(StudentT(STRUCTURES[name], expanded=False), params, jaxem.Data(jnp.asarray(x)), jnp.asarray(r))
        u = (dof + D) / (dof + distances(params, dense, x))
        mean = np.einsum("nk,nd->kd", r * u, x) / np.sum(r * u, axis=0)[:, None]
        np.testing.assert_allclose(new.mean, mean, rtol=1e-11)
        away = x[:, None, :] - mean
        each = np.einsum("nk,nkd,nke->kde", r * u, away, away) / np.sum(r, axis=0)[:, None, None]
        expected = {
            "full": each,
            "tied": np.einsum("nk,nkd,nke->de", r * u, away, away) / len(x),
            "diagonal": np.diagonal(each, axis1=1, axis2=2),
            "spherical": np.trace(each, axis1=1, axis2=2) / D,
        }[name]
        np.testing.assert_allclose(new.scatter, expected, rtol=1e-10, atol=1e-12)
        for k in range(K):
            half = (dof[k] + D) / 2
            log_u = np.log(u[:, k]) + scipy.special.digamma(half) - np.log(half)
            s = np.sum(r[:, k] * (u[:, k] - log_u - 1)) / np.sum(r[:, k])
            root = scipy.optimize.brentq(lambda v, s=s: np.log(v / 2) - scipy.special.digamma(v / 2) - s, 0.1, 1e3)
            np.testing.assert_allclose(new.dof[k], root, rtol=1e-8)

    def test_draws_follow_the_law(self, float64, name):
        """δ/D of a t is F with D and ν degrees of freedom, and its direction has no mean."""
        params, dense = params_of(name, [3.0, 12.0]), scatters(name)[1]
        z = jnp.arange(4000) % K
        x = np.asarray(StudentT(STRUCTURES[name]).sample(KEY, params, z, jaxem.Data()))
        distance = distances(params, dense, x)
        for k in range(K):
            law = scipy.stats.f(D, params.dof[k])
            assert scipy.stats.kstest(distance[k::K, k] / D, law.cdf).pvalue > 1e-4
            above = np.mean(x[k::K] > np.asarray(params.mean[k]), axis=0)
            np.testing.assert_allclose(above, 0.5, atol=5 * 0.5 / np.sqrt(2000))


class TestExpanded:
    def ends(self, family, x):
        common = {"key": KEY, "tol": 1e-12, "max_steps": 5000, "trace_size": 0}
        return [
            jaxem.fit(jaxem.Mixture(dataclasses.replace(family, expanded=expanded), 1), x, **common)
            for expanded in (True, False)
        ]

    @pytest.mark.parametrize("dof", [None, 1.0])
    def test_same_optimum_in_fewer_steps(self, float64, dof):
        fast, plain = self.ends(StudentT(dof=dof), np.random.default_rng(0).standard_t(1, (100, 4)))
        np.testing.assert_allclose(fast.log_likelihood, plain.log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(fast.params.likelihood.scatter, plain.params.likelihood.scatter, rtol=1e-4)
        assert fast.steps < plain.steps / 1.3

    def test_the_step_of_kent_tyler_and_vardi(self, float64):
        """With given degrees of freedom the scatter is divided by the sum of the weights."""
        x, dof = heavy(), np.array([3.0, 8.0])
        params, dense = params_of("full", dof), scatters("full")[1]
        r = np.random.default_rng(1).dirichlet(np.ones(K), len(x))
        new = _step(
            StudentT(dof=jnp.asarray(dof)), dataclasses.replace(params, dof=None), jaxem.Data(x), jnp.asarray(r)
        )
        w = r * (dof + D) / (dof + distances(params, dense, x))
        away = x[:, None, :] - np.asarray(new.mean)
        expected = np.einsum("nk,nkd,nke->kde", w, away, away) / np.sum(w, axis=0)[:, None, None]
        np.testing.assert_allclose(new.scatter, expected, rtol=1e-10, atol=1e-12)
        assert new.dof is None

    @pytest.mark.parametrize("family", [StudentT(), StudentT(jaxem.Tied(), shared_dof=True)], ids=["full", "tied"])
    def test_the_log_likelihood_rises_by_what_the_larger_model_gains_at_least(self, float64, family):
        @jax.jit
        def step(model, params, x):
            expected = model.e_step(params, x)
            own, stats = model.likelihood, expected.stats.likelihood
            new, alpha = own._maximize(params.likelihood, stats, {})
            updated = LatentParams(params.latent, new)
            gain = own._gain(params.likelihood, new, alpha, stats)
            return updated, gain, model.e_step(updated, x).log_likelihood - expected.log_likelihood

        x = jnp.asarray(heavy())
        model = jaxem.Mixture(family, 2).calibrate(x)
        params = model.init(KEY, x)
        for _ in range(8):
            params, gain, rise = step(model, params, x)
            assert 0 < gain <= rise

    @pytest.mark.parametrize("name", STRUCTURES)
    def test_the_objective_does_not_fall_on_the_floor_either(self, float64, name):
        x = heavy()
        x[::2, 1] = x[0, 1]
        x[::4] = x[0]
        model = jaxem.Mixture(StudentT(STRUCTURES[name], floor=0.02), K).calibrate(jnp.asarray(x))
        starts = jax.vmap(lambda k: model.init(k, jnp.asarray(x)))(jax.random.split(KEY, 12))
        control = jaxem.Control(jaxem.Never(), 80)
        runs = jax.jit(jax.vmap(lambda p: jaxem.run(model, p, jnp.asarray(x), control=control, trace_size=81)))(starts)
        assert name == "tied" or np.any(runs.status == Status.DEGENERATE)
        assert np.nanmin(np.diff(runs.trace, axis=1)) > -1e-9

    def test_a_prior_is_refused_by_name(self, float64):
        with pytest.raises(jaxem.UnsupportedError, match=r"use StudentT\(expanded=False\)"):
            jaxem.fit(jaxem.WithPrior(jaxem.Mixture(StudentT(), 2), 1.0), heavy(), key=KEY)
        assert quiet(
            jaxem.WithPrior(jaxem.Mixture(StudentT(expanded=False), 2), 1.0), heavy(), key=KEY, max_steps=5
        ).status.usable


class TestDegreesOfFreedom:
    def test_shared_given_and_free_count_as_they_should(self, float64):
        x = heavy()
        counts = {}
        for name, family in {
            "free": StudentT(),
            "shared": StudentT(shared_dof=True),
            "given": StudentT(dof=4.0),
        }.items():
            result = quiet(jaxem.Mixture(family, 2), x, key=KEY, max_steps=2)
            counts[name] = result.num_free_parameters
        assert counts == {"free": 1 + 2 * (3 + 6) + 2, "shared": 1 + 2 * (3 + 6) + 1, "given": 1 + 2 * (3 + 6)}

    def test_many_degrees_of_freedom_are_a_gaussian(self, float64):
        x = heavy()
        params = params_of("full", [1e6, 1e6])
        ours = _log_prob(StudentT(), params, jaxem.Data(jnp.asarray(x)))
        gaussian = jaxem.Gaussian()
        expected = gaussian.log_prob(
            jaxem.GaussianParams(params.mean, params.scatter), gaussian.statistics(jaxem.Data(jnp.asarray(x)))
        )
        near = np.asarray(expected) > -60
        np.testing.assert_allclose(np.asarray(ours)[near], np.asarray(expected)[near], atol=5e-3, rtol=0)
        np.testing.assert_allclose(ours[0, 0], expected[0, 0], rtol=2e-5)

    def test_many_are_reached_in_a_few_steps(self, float64):
        """Tails lighter than a Gaussian's: the optimum is at the bound, where EM alone would take 1e5 steps."""
        x = np.random.default_rng(0).uniform(size=(200, 2))
        result = jaxem.fit(jaxem.Mixture(StudentT(), 1), x, key=KEY, tol=1e-13)
        gaussian = jaxem.fit(jaxem.Mixture(jaxem.Gaussian(), 1), x, key=KEY)
        assert result.params.likelihood.dof[0] == 1e6
        assert result.steps < 40
        np.testing.assert_allclose(result.log_likelihood, gaussian.log_likelihood, rtol=1e-5)

    @pytest.mark.parametrize("start", [0.2, 30.0, 1e6])
    def test_they_are_found_from_anywhere(self, float64, start):
        """The same optimum as scipy's search, from tails that are far too heavy or too light."""
        x = np.random.default_rng(5).standard_t(4, (300, 1)) * 2 + 1
        model = jaxem.Mixture(StudentT(), 1)
        likelihood = StudentTParams(jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), jnp.asarray([start]))
        params = LatentParams(CategoricalParams(jnp.ones(1)), likelihood)
        result = jaxem.fit(model, x, params=params, tol=1e-12, max_steps=400)

        def loss(free):
            return -np.sum(scipy.stats.t(np.exp(free[0]), free[1], np.exp(free[2])).logpdf(x))

        best = scipy.optimize.minimize(loss, [1.0, 1.0, 0.5], method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(result.log_likelihood, -best.fun, rtol=1e-10)
        np.testing.assert_allclose(result.params.likelihood.dof[0], np.exp(best.x[0]), rtol=1e-3)
        assert result.steps < 200

    def test_frozen(self, float64):
        model = jaxem.Frozen(jaxem.Mixture(StudentT(), 2), {"dof": [True, False]}, values={"dof": np.array([3.0, 9.0])})
        result = quiet(model, heavy(), key=KEY, max_steps=20)
        assert result.params.likelihood.dof[0] == 3.0
        assert result.params.likelihood.dof[1] != 9.0
        with pytest.raises(ValueError, match="cannot hold 'dof'"):
            jaxem.Frozen(jaxem.Mixture(StudentT(dof=3.0), 2), ["dof"])
        with pytest.raises(ValueError, match="shared by all"):
            jaxem.Frozen(jaxem.Mixture(StudentT(shared_dof=True), 2), {"dof": [True, False]})

    @pytest.mark.parametrize("dof", [0, -1.0, np.inf, "tied", [3.0]])
    def test_row_15_nonsense(self, dof):
        with pytest.raises(ValueError, match="dof takes a positive number"):
            StudentT(dof=dof)

    def test_row_15_given_and_shared(self):
        with pytest.raises(ValueError, match="dof is given"):
            StudentT(dof=3.0, shared_dof=True)


class TestOutliers:
    def test_they_move_neither_the_centre_nor_the_scale(self, dtype):
        x = np.random.default_rng(0).normal(size=(100, 2)).astype(dtype)
        far = x.copy()
        far[:5] = [[1e6, -1e6]] * 5
        family = StudentT()
        clean, moved = (family.calibrate(jaxem.Data(jnp.asarray(rows)), None) for rows in (x, far))
        np.testing.assert_allclose(clean.center, moved.center, atol=0.2)
        np.testing.assert_allclose(clean.scale, moved.scale, rtol=0.2)
        result = quiet(jaxem.Mixture(family, 1), far, key=KEY, max_steps=300)
        np.testing.assert_allclose(result.params.likelihood.mean[0], [0, 0], atol=0.3)
        assert np.all(np.linalg.eigvalsh(result.params.likelihood.scatter[0]) < 2)

    def test_however_far(self, float32):
        x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
        x[0] = 1e16
        result = quiet(jaxem.Mixture(StudentT(), 1), x, key=KEY)
        chex.assert_tree_all_finite(result.params)
        assert result.status.usable

    def test_quartiles_count_weights_as_rows(self, float64):
        x, counts = heavy(25), np.arange(25) % 4
        weighted = _quartiles(jnp.asarray(x), jnp.asarray(counts, float))
        repeated = np.repeat(x, counts, axis=0)
        plain = _quartiles(jnp.asarray(repeated), jnp.ones(len(repeated)))
        np.testing.assert_array_equal(weighted, plain)
        expected = np.quantile(repeated, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(plain, expected)


class TestPromises:
    def test_row_04_all_points_equal(self, dtype):
        with pytest.warns(jaxem.ConvergenceWarning) as caught:
            result = jaxem.fit(jaxem.Mixture(StudentT(), 2), np.full((40, 2), 3.0, dtype), key=KEY)
        assert result.status == Status.DEGENERATE
        assert any("components 0, 1" in str(w.message) for w in caught)
        assert result.degenerate == (0, 1)
        chex.assert_tree_all_finite(result.params)

    @pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_row_06_the_same_fit_in_float32_at_every_scale_and_offset(self, scale, offset):
        x = ((heavy(200, 2) * 5 + offset) * scale).astype(np.float32)
        n, d = x.shape
        one_hot = np.eye(2)[(np.arange(n) % 2)]

        def fit_rows(x):
            return jax.device_get(_labelled_fit(jaxem.Mixture(StudentT(), 2), jnp.asarray(x), one_hot.astype(x.dtype)))

        with jax.enable_x64(True):
            wide, unscaled = fit_rows(x.astype(float)), fit_rows(x.astype(float) / scale)
        with jax.enable_x64(False):
            single = fit_rows(x)
        assert Status(int(single.status)).success, Status(int(single.status)).text
        assert abs(float(wide.objective) - float(unscaled.objective) + n * d * np.log(scale)) / n < 1e-9
        # Per row; at the outer scales a row's log p is about 45, and its rounding that of the terms it is made of.
        assert abs(float(single.objective) - float(wide.objective)) < 1e-5 * max(n, abs(float(wide.objective)))


@jax.jit
def _labelled_fit(model, x, one_hot):
    model = model.calibrate(x)
    start = model.m_step(None, model.complete_statistics(one_hot, x))
    return jaxem.run(model, start, model.prepare(x), control=jaxem.Control(jaxem.RelativeGain(1e-6), 500))


def test_the_first_steps_are_those_of_the_reference_case(float64):
    """Plain EM from k-means labels, computed in numpy."""
    fit = fit_of("t-mixture-faithful", "nu5-2")["em_from_kmeans"]
    x, labels = faithful(), np.array(fit["init_labels"])
    groups = [x[labels == k] for k in range(2)]
    likelihood = StudentTParams(
        jnp.asarray([rows.mean(axis=0) for rows in groups]),
        jnp.asarray([np.cov(rows.T, bias=True) for rows in groups]),
        None,
    )
    start = LatentParams(CategoricalParams(jnp.asarray([len(rows) / len(x) for rows in groups])), likelihood)
    model = jaxem.Mixture(StudentT(dof=5.0, expanded=False), 2).calibrate(x)
    first = fit["first_logliks"]
    run = RUN(model, start, jnp.asarray(x), control=jaxem.Control(jaxem.Never(), 5), trace_size=6)
    np.testing.assert_allclose(run.trace, first[:6], rtol=1e-12)
