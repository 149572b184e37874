"""What is promised when things go wrong, row by row of the table of promises; the numbers in the names are its rows.

Where both apply, the host door (`fit`: a sentence that names things) and the pure functions (`run`: a status per lane and
finite parameters) are tested.
"""

import dataclasses
import functools
import inspect
import warnings

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.cases import faithful

import jaxem
from jaxem import CategoricalParams, GaussianParams, LatentParams, Status
from jaxem.driver import rankable
from jaxem.wrappers.base import Wrapper

FULL2 = jaxem.Mixture(jaxem.Gaussian(), 2)
KEY = jax.random.key(0)
STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diagonal": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
RUN = jax.jit(jaxem.run, static_argnames="trace_size")
LANES = jax.jit(jaxem.run_lanes, static_argnames="trace_size")
quiet = functools.partial(jaxem.fit, on_failure="ignore")


def two_clusters(n=40, d=2, dtype=None):
    """Two groups of rows that nobody would confuse, in the default floating-point type."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) + 6 * (np.arange(n) % 2)[:, None]
    return x.astype(jnp.zeros(0).dtype if dtype is None else dtype)


def start_at(model, x, key=KEY):
    """(calibrated model, a start of it)."""
    model = model.calibrate(jnp.asarray(x))
    return model, model.init(key, jnp.asarray(x))


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class TestRow01NotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_the_door_names_row_and_column(self, dtype, value):
        x = two_clusters()
        x[7, 1] = x[9, 0] = value
        with pytest.raises(ValueError, match=rf"{value} in row 7, column 1 \(2 of 40 rows"):
            jaxem.fit(FULL2, x, key=KEY)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_pure_code_gives_a_status_and_keeps_the_start(self, dtype, value):
        x = two_clusters()
        model, start = start_at(FULL2, x)
        x[7, 1] = value
        run = RUN(model, start, jnp.asarray(x))
        assert run.status == Status.NON_FINITE_INPUT
        assert run.steps == 0
        chex.assert_trees_all_equal(run.params, start)

    def test_weights_are_input_too(self, dtype):
        x = two_clusters()
        with pytest.raises(ValueError, match=r"weight \[3\] is nan"):
            jaxem.fit(FULL2, x, key=KEY, weights=np.where(np.arange(40) == 3, np.nan, 1))
        model, start = start_at(FULL2, x)
        run = RUN(model, start, jnp.asarray(x), jnp.ones(40, dtype).at[3].set(jnp.nan))
        assert run.status == Status.NON_FINITE_INPUT
        chex.assert_trees_all_equal(run.params, start)

    def test_an_objective_that_overflows_keeps_the_last_finite_parameters(self, dtype):
        """Finite data whose squares are not: the data pass, the objective does not."""
        x = two_clusters()
        model, start = start_at(FULL2, x)
        x[0] = np.sqrt(np.finfo(dtype).max) * 1e3
        run = RUN(model, start, jnp.asarray(x))
        assert run.status in (Status.NON_FINITE, Status.ZERO_LIKELIHOOD)
        chex.assert_tree_all_finite(run.params)

    def test_a_bad_data_set_disturbs_no_other(self, dtype):
        sets = np.stack([two_clusters(), two_clusters() + 1, two_clusters() * 2])
        bad = sets.copy()
        bad[1, 5, 0] = np.nan
        clean, with_bad = (jaxem.fit_batch(FULL2, s, key=KEY, num_starts=2, on_failure="ignore") for s in (sets, bad))
        assert with_bad.status[1] == Status.NON_FINITE_INPUT
        chex.assert_tree_all_finite(with_bad.params)
        for d in (0, 2):
            chex.assert_trees_all_equal(clean[d].params, with_bad[d].params)
            assert clean[d].objective == with_bad[d].objective
        with pytest.warns(jaxem.ConvergenceWarning, match="data set 1: the data or weights hold NaN"):
            jaxem.fit_batch(FULL2, bad, key=KEY, num_starts=2)


class TestRow02Masked:
    """Every model that takes a mask: what is hidden is never read, neither by a fit nor by a gradient."""

    MODELS = {
        **{f"gaussian {name}": jaxem.Mixture(jaxem.Gaussian(s), 2) for name, s in STRUCTURES.items()},
        "gaussian, row by row": jaxem.Mixture(jaxem.Gaussian(), 2),
        "chunked": jaxem.Chunked(jaxem.Mixture(jaxem.Gaussian(), 2), 16),
        "with prior": jaxem.WithPrior(jaxem.Mixture(jaxem.Gaussian(), 2), 1.0),
        "chain of gaussians": jaxem.HMM(jaxem.Gaussian(), 2),
        "poisson": jaxem.Mixture(jaxem.Poisson(), 2),
        "gamma": jaxem.Mixture(jaxem.Gamma(), 2),
        "factor analysis": jaxem.FactorAnalysis(1),
    }

    def data(self, name, value, dtype):
        """Counts, of which a quarter is hidden, a row is hidden whole, and a row is not."""
        rng = np.random.default_rng(0)
        shape = (12, 5) if name == "gaussian, row by row" else (40, 3)
        x = rng.poisson([2.0, 9.0, 5.0, 4.0, 3.0][: shape[1]], shape) + 1.0
        mask = rng.random(shape) > 0.25
        mask[0], mask[1] = False, True
        x = np.where(mask, x, value).astype(dtype)
        lengths = None
        if name.startswith("chain"):
            x, mask, lengths = x.reshape(4, 10, 3), mask.reshape(4, 10, 3), np.array([10, 7, 0, 9])
            x[np.arange(10) >= lengths[:, None]] = value
        return jaxem.Data(*(None if a is None else jnp.asarray(a) for a in (x, mask, None, lengths)))

    @pytest.mark.parametrize("name", MODELS)
    def test_poison(self, float32, name):
        model, dtype = self.MODELS[name], float32

        @jax.jit
        def look(model, params, data):
            def value(params, x):
                return model.e_step(params, dataclasses.replace(data, x=x)).log_likelihood

            return model.e_step(params, data), jax.grad(value, argnums=(0, 1))(params, data.x)

        clean = self.data(name, 1.0, dtype)
        first = quiet(model, clean, key=KEY, max_steps=5)
        seen = look(first.model, first.params, clean)
        for value in (np.nan, np.inf, 1e30):
            spoilt = self.data(name, value, dtype)
            again = quiet(model, spoilt, key=KEY, max_steps=5)
            assert again.status == first.status
            chex.assert_trees_all_equal(again.params, first.params)
            assert again.objective == first.objective
            looked = look(first.model, first.params, spoilt)
            chex.assert_trees_all_equal(looked, seen)
            chex.assert_tree_all_finite(looked)

    def test_pure_code_looks_at_what_is_seen_only(self, dtype):
        model, start = start_at(FULL2, two_clusters())
        x, mask = two_clusters(), np.ones((40, 2), bool)
        x[7, 1], mask[7, 1] = np.nan, False
        data = jaxem.Data(x=jnp.asarray(x), mask=jnp.asarray(mask))
        assert RUN(model, start, data).status in (Status.CONVERGED, Status.STALLED)
        data = dataclasses.replace(data, x=data.x.at[9, 0].set(jnp.inf))
        assert RUN(model, start, data).status == Status.NON_FINITE_INPUT


class TestRow03TooFewRows:
    def test_the_door_says_both_numbers(self, dtype):
        with pytest.raises(ValueError, match=r"3 components.*got 2"):
            jaxem.fit(jaxem.Mixture(jaxem.Gaussian(), 3), two_clusters(2), key=KEY)

    @pytest.mark.parametrize("shape", [(0, 2), (5, 0)])
    def test_no_rows_or_no_columns(self, dtype, shape):
        with pytest.raises(ValueError, match=r"empty.*" + str(shape[0])):
            jaxem.fit(FULL2, np.zeros(shape, dtype), key=KEY)

    def test_a_row_of_weight_zero_is_not_a_row(self, dtype):
        weights = np.where(np.arange(40) == 3, 1.0, 0.0)
        with pytest.raises((ValueError, jaxem.FitError), match=r"2 components.*1"):
            jaxem.fit(FULL2, two_clusters(), key=KEY, weights=weights)

    def test_pure_code_gives_a_status(self, dtype):
        x = jnp.asarray(two_clusters())
        model, start = start_at(FULL2, x)
        run = RUN(model, start, x, jnp.zeros(40, dtype).at[3].set(1))
        assert run.status == Status.TOO_FEW_ROWS
        chex.assert_trees_all_equal(run.params, start)
        assert RUN(model, start, x, jnp.zeros(40, dtype)).status == Status.TOO_FEW_ROWS

    def test_as_many_rows_as_components_is_enough(self, dtype):
        result = quiet(FULL2, two_clusters(2), key=KEY)
        assert result.status != Status.TOO_FEW_ROWS
        chex.assert_tree_all_finite(result.params)


@pytest.mark.parametrize("name", STRUCTURES)
class TestRow04NoSpread:
    def model(self, name):
        return jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), 2)

    @pytest.mark.parametrize("value", [0.0, 5.0, -3e7])
    def test_all_points_equal(self, dtype, name, value):
        x = np.full((40, 2), value, dtype)
        with pytest.warns(jaxem.ConvergenceWarning) as caught:
            result = jaxem.fit(self.model(name), x, key=KEY)
        assert result.status == Status.DEGENERATE
        assert result.degenerate == (0, 1)
        chex.assert_tree_all_finite(result.params)
        assert np.all(np.linalg.eigvalsh(dense(name, result.params.likelihood.covariance, 2)) > 0)
        np.testing.assert_allclose(result.params.likelihood.mean, np.full((2, 2), value), rtol=1e-5)
        texts = [str(w.message) for w in caught]
        assert any("components 0, 1" in text for text in texts)
        assert any("constant columns" in text and "0, 1" in text for text in texts)

    def test_a_duplicated_point_collapses_its_component_only(self, dtype, name):
        x = two_clusters()
        x[::2] = x[0]
        means = np.array([x[0], x[1::2].mean(axis=0)])
        covariance = {
            "full": np.tile(np.eye(2), (2, 1, 1)),
            "tied": np.eye(2),
            "diagonal": np.ones((2, 2)),
            "spherical": np.ones(2),
        }[name]
        params = LatentParams(CategoricalParams(np.array([0.5, 0.5])), GaussianParams(means, covariance))
        if name == "tied":  # the spread is shared, and the other half of the rows has some
            assert jaxem.fit(self.model(name), x, params=params).degenerate == ()
            return
        with pytest.warns(jaxem.ConvergenceWarning, match=r"collapsed.*\(components 0\)"):
            result = jaxem.fit(self.model(name), x, params=params)
        assert result.status == Status.DEGENERATE
        assert result.degenerate == (0,)
        chex.assert_tree_all_finite(result.params)

    def test_the_warning_names_a_constant_column(self, dtype, name):
        x = two_clusters(d=3)
        x[:, 1] = 7
        with pytest.warns(jaxem.ConvergenceWarning) as caught:
            result = jaxem.fit(self.model(name), x, key=KEY)
        assert any(str(w.message).endswith("constant columns carry no information: 1") for w in caught)
        chex.assert_tree_all_finite(result.params)
        if name != "spherical":  # whose one variance is that of the other columns
            assert result.status == Status.DEGENERATE

    def test_the_floor_is_relative(self, dtype, name):
        """The same collapse at every scale: the smallest variance is the same share of the data's."""
        x = two_clusters()
        x[::2] = x[0]
        floors = []
        for scale in (1e-6, 1.0, 1e6):
            data = (x * scale).astype(dtype)
            result = quiet(jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), 2), data, key=KEY)
            variance = np.min(np.linalg.eigvalsh(np.asarray(dense(name, result.params.likelihood.covariance, 2))))
            floors.append(variance / scale**2)
        assert floors[1] > 0
        # float32's floor is 64 roundings, and the matrix it is added to is right to a few.
        np.testing.assert_allclose(floors, floors[1], rtol=0.1 if dtype == np.float32 else 1e-3)


def dense(name, covariance, d):
    covariance = np.asarray(covariance, float)
    if name == "diagonal":
        return covariance[..., None] * np.eye(d)
    return covariance[:, None, None] * np.eye(d) if name == "spherical" else covariance


@pytest.mark.parametrize("lanes", [4, 2048])
def test_row_04_a_flat_covariance_is_lifted_in_every_lane(dtype, lanes):
    """Rank 2 of 4, where Cholesky gives NaN: few matrices and many are different machine code."""
    d, rng = 4, np.random.default_rng(0)
    model = jaxem.Mixture(jaxem.Gaussian(floor=1e-4), 1)

    def covariance(points):
        return model.m_step(None, model.complete_statistics(jnp.ones((3, 1)), points)).likelihood.covariance[0]

    points = jnp.asarray(rng.normal(size=(lanes, 3, d)))
    smallest = np.linalg.eigvalsh(np.asarray(jax.jit(jax.vmap(covariance))(points), float))[:, 0]
    assert np.min(smallest) > 0.9e-4


class TestRow05EmptyComponent:
    def far(self, x):
        """The second component so far off that it gets exactly nothing."""
        weights, means = np.array([0.5, 0.5]), np.array([x.mean(axis=0), [1e6 / 3, -1e6 / 7]])
        return LatentParams(CategoricalParams(weights), GaussianParams(means, np.tile(np.eye(2) / 3, (2, 1, 1))))

    def test_it_keeps_its_parameters_and_is_named(self, dtype):
        x = two_clusters()
        params = self.far(x)
        with pytest.warns(jaxem.ConvergenceWarning, match="less than half a row: 1"):
            result = jaxem.fit(FULL2, x, params=params)
        assert result.empty == (1,)
        chex.assert_tree_all_finite(result.params)
        assert result.params.latent.weights[1] == 0
        np.testing.assert_allclose(result.params.likelihood.mean[1], params.likelihood.mean[1], rtol=1e-5)
        np.testing.assert_allclose(result.params.likelihood.covariance[1], params.likelihood.covariance[1], rtol=1e-5)
        # The other one is the fit of one component.
        alone = jaxem.fit(jaxem.Mixture(jaxem.Gaussian(), 1), x, key=KEY)
        np.testing.assert_allclose(result.log_likelihood, alone.log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(result.params.likelihood.mean[0], alone.params.likelihood.mean[0], rtol=1e-4)

    def test_it_keeps_them_to_the_last_bit(self, dtype):
        x = jnp.asarray(two_clusters())
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), self.far(two_clusters()))
        run = RUN(FULL2.calibrate(x), params, x, control=jaxem.Control(jaxem.Never(), 50))
        assert np.array_equal(run.params.likelihood.mean[1], params.likelihood.mean[1])
        assert np.array_equal(run.params.likelihood.covariance[1], params.likelihood.covariance[1])

    def test_poisson(self, dtype):
        x = np.array([[0.0], [1], [2], [1]], dtype)
        params = LatentParams(CategoricalParams(np.array([1.0, 0.0])), jaxem.PoissonParams(np.array([[1.0], [9.0]])))
        with pytest.warns(jaxem.ConvergenceWarning, match="less than half a row: 1"):
            result = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), x, params=params)
        np.testing.assert_allclose(result.params.likelihood.rate, [[1.0], [9.0]], rtol=1e-6)


@functools.cache
def reference_fit(name, rows):
    """A float64 fit, from the same labels."""
    return fit_rows(name, np.frombuffer(rows, float).reshape(-1, 2))


def fit_rows(name, x):
    model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), 2)
    one_hot = np.eye(2)[(faithful()[:, 0] > 3).astype(int)]
    program = _labelled_fit(model, jnp.asarray(x), jnp.asarray(one_hot, x.dtype))
    return jax.device_get(program)


@jax.jit
def _labelled_fit(model, x, one_hot):
    model = model.calibrate(x)
    start = model.m_step(None, model.complete_statistics(one_hot, x))
    return jaxem.run(model, start, model.prepare(x), control=jaxem.Control(jaxem.RelativeGain(1e-6), 500))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_row_06_the_same_fit_in_float32_at_every_scale_and_offset(name, scale, offset):
    """float32 against float64 on the same, already rounded, rows; and float64 against the law of scales."""
    x = ((faithful() + offset) * scale).astype(np.float32)
    n, d = x.shape
    with jax.enable_x64(True):
        wide = reference_fit(name, x.astype(float).tobytes())
        unscaled = reference_fit(name, (x.astype(float) / scale).tobytes())
    with jax.enable_x64(False):
        single = fit_rows(name, x)
    assert Status(int(single.status)).success, Status(int(single.status)).text
    # Per row, against a size of 20 at the outer scales: a few dozen roundings.
    assert abs(float(single.objective) - float(wide.objective)) / n < 1e-5
    spread = x.std(axis=0)
    assert np.max(np.abs(single.params.likelihood.mean - wide.params.likelihood.mean) / spread) < 2e-3
    # The law of scales, for the float64 fit of the same rows, and so for the float32 one to 1e-5 a row.
    assert abs(float(wide.objective) - float(unscaled.objective) + n * d * np.log(scale)) / n < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("family", ["poisson", "gaussian"])
@pytest.mark.parametrize("chunked", [False, True], ids=["plain", "chunked"])
def test_row_07_counts_are_right_past_the_range_of_float32(float32, family, chunked):
    """Thirty million rows of two values: 10 000 000 and 20 000 000, neither of which a float32 sum of ones reaches."""
    n = 30_000_000
    x = jnp.where(jnp.arange(n, dtype=jnp.int32) % 3 == 0, 0.0, 40.0)[:, None]
    weights = jnp.array([0.5, 0.5])
    if family == "poisson":
        params = LatentParams(CategoricalParams(weights), jaxem.PoissonParams(jnp.array([[0.01], [40.0]])))
        model = jaxem.Mixture(jaxem.Poisson(), 2)
    else:
        params = LatentParams(
            CategoricalParams(weights), GaussianParams(jnp.array([[0.0], [40.0]]), jnp.ones((2, 1, 1)))
        )
        model = jaxem.Mixture(jaxem.Gaussian(), 2)
    model = jaxem.Chunked(model) if chunked else model

    @jax.jit
    def once(x):
        own = model.calibrate(x[:3000])
        data = own.prepare(x)
        expected = own.e_step(params, data)
        return expected, own.log_likelihood(params, x[:3])

    expected, per_row = once(x)
    expected = jax.device_get(expected)
    assert expected.weight == n
    np.testing.assert_allclose(expected.stats.latent, [n / 3, 2 * n / 3], rtol=1e-7)
    np.testing.assert_allclose(jax.tree.leaves(expected.stats.likelihood)[0][:, 0], [n / 3, 2 * n / 3], rtol=1e-7)
    # Every third row is the same, and so is its rounding (some 4e-6); a sum that lost rows would be off by a half.
    np.testing.assert_allclose(expected.log_likelihood, np.sum(per_row, dtype=float) * n / 3, rtol=1e-5)


@jaxem.pytree
class Broken(Wrapper):
    """A model whose M-step overshoots once it is near: the means go wrong by ``shift`` from some objective on."""

    model: jaxem.Model
    shift: float | jax.Array = 1.0

    def calibrate(self, data, weights=None):
        return Broken(self.model.calibrate(data, weights), self.shift)

    def m_step(self, params, stats, frozen=None):
        good = self.model.m_step(params, stats)
        change = jnp.max(jnp.abs(good.likelihood.mean - params.likelihood.mean))
        mean = good.likelihood.mean + jnp.where(change < 0.05, self.shift, 0)
        return LatentParams(good.latent, GaussianParams(mean, good.likelihood.covariance))


class TestRow10TheObjectiveFalls:
    def test_best_so_far_is_kept(self, dtype):
        x = faithful().astype(dtype)
        model = Broken(FULL2)
        calibrated, start = start_at(model, x)
        run = RUN(calibrated, start, jnp.asarray(x), trace_size=100)
        trace = np.asarray(run.trace)[: int(run.steps) + 1]
        assert run.status == Status.DECREASED
        assert np.all(np.diff(trace[:-1]) >= 0)
        assert trace[-1] < trace[-2]  # the fall, seen
        assert run.objective == np.max(trace)
        again = calibrated.e_step(run.params, jnp.asarray(x)).log_likelihood
        np.testing.assert_allclose(run.objective, again, rtol=10 * np.finfo(dtype).eps)

    def test_the_door_says_what_to_look_for(self, float64):
        with pytest.warns(jaxem.ConvergenceWarning, match=r"objective fell.*best parameters.*M-step.*float64"):
            result = jaxem.fit(Broken(FULL2), faithful(), key=KEY)
        assert not result.converged
        with pytest.raises(jaxem.FitError, match="objective fell"):
            jaxem.fit(Broken(FULL2), faithful(), key=KEY, on_failure="raise")

    def test_rounding_is_not_a_fall(self, float32):
        """Past the optimum float32 objectives go up and down by roundings: that is no decrease."""
        x = jnp.asarray(faithful().astype(np.float32))
        model, _ = start_at(FULL2, x)
        starts = jax.vmap(lambda k: model.init(k, x))(jax.random.split(KEY, 16))
        # Without the centre and scale of the data, which leave nearly no rounding to be seen.
        runs = LANES(FULL2, starts, x, control=jaxem.Control(jaxem.Never(), 300))
        assert not np.any(np.asarray(runs.status) == Status.DECREASED)


class TestRow11MaxSteps:
    def test_status_and_a_warning(self, dtype):
        x = faithful().astype(dtype)
        with pytest.warns(jaxem.ConvergenceWarning, match=r"max_steps.*raise max_steps"):
            result = jaxem.fit(FULL2, x, key=KEY, max_steps=3)
        assert result.status == Status.MAX_STEPS
        assert not result.converged
        assert result.steps == 3
        assert len(result.trace) == 4
        with pytest.raises(jaxem.FitError, match="max_steps"):
            jaxem.fit(FULL2, x, key=KEY, max_steps=3, on_failure="raise")


class TestRow12FlatStart:
    FLAT = jaxem.RandomResponsibilities(concentration=50.0)

    def test_a_minimum_of_steps_is_made(self, float64):
        """From a flat start the first gains are below any tolerance, and the optimum is far."""
        common = {"start": self.FLAT, "tol": 1e-2, "key": KEY}
        early = jaxem.fit(FULL2, faithful(), min_steps=0, **common)
        late = jaxem.fit(FULL2, faithful(), min_steps=60, **common)
        assert early.steps < 5
        assert late.steps == 60
        assert late.log_likelihood > early.log_likelihood + 50

    def test_default_starts_differ_and_find_the_best(self, float64):
        result = jaxem.fit(FULL2, faithful(), key=KEY, num_starts=16)
        first = result.starts.trace[:, 0]
        assert len(np.unique(first)) > 8
        np.testing.assert_allclose(result.log_likelihood, -1130.26396, atol=1e-3)

    def test_the_share_of_starts_at_the_best_is_reported(self, float64):
        model = jaxem.Mixture(jaxem.Gaussian(), 3)
        result = quiet(model, faithful(), key=KEY, num_starts=16, tol=1e-9, max_steps=2000)
        sound = np.isin(result.starts.status, [Status.CONVERGED, Status.STALLED, Status.MAX_STEPS])
        near = sound & (result.starts.objective >= result.objective - 1e-5 * 272)
        assert 0 < near.mean() < 1  # else nothing is tested
        assert result.share_at_best() == near.mean()
        assert f"{near.mean():.0%} of them" in str(result)


def test_row_12_a_collapsed_start_is_not_near_the_best(float64):
    """Its likelihood is not real, however high: it says nothing about how hard the best optimum is to find."""
    result = jaxem.fit(FULL2, faithful(), key=KEY, num_starts=4)
    objective = np.array([0.0, -1.0, -1.0, -1e3]) * 272 + result.objective
    objective[1] = result.objective + 1e3
    status = np.array([Status.CONVERGED, Status.DEGENERATE, Status.CONVERGED, Status.CONVERGED])
    starts = dataclasses.replace(result.starts, objective=objective, status=status)
    assert dataclasses.replace(result, starts=starts, best=0).share_at_best() == 0.25


class TestRow13TheReportedLikelihoodIsThatOfTheParameters:
    def close(self, log_likelihood, model, params, x, weights=None):
        rows = np.asarray(model.log_likelihood(params, jnp.asarray(x)), float)
        total = np.sum(rows if weights is None else rows * weights)
        eps = np.finfo(jnp.zeros(0).dtype).eps
        assert abs(float(log_likelihood) - total) <= 64 * eps * np.sum(np.abs(rows))

    @pytest.mark.parametrize("max_steps", [1, 2, 100])
    def test_fit(self, dtype, max_steps):
        x = faithful().astype(dtype)
        weights = np.arange(272) % 3.0
        result = quiet(FULL2, x, key=KEY, num_starts=4, weights=weights, max_steps=max_steps)
        self.close(result.log_likelihood, result.model, result.params, x, weights)
        for lane in range(4):
            params = jax.tree.map(lambda a, i=lane: a[i], result.starts.params)
            self.close(result.starts.log_likelihood[lane], result.model, params, x, weights)

    def test_fit_batch(self, dtype):
        sets = np.stack([faithful(), faithful() * 2 + 1]).astype(dtype)
        result = jaxem.fit_batch(FULL2, sets, key=KEY, num_starts=2, max_steps=7, on_failure="ignore")
        for d in range(2):
            self.close(result[d].log_likelihood, result[d].model, result[d].params, sets[d])

    def test_race(self, dtype):
        x = faithful().astype(dtype)
        result = quiet(FULL2, x, key=KEY, num_starts=8, race=jaxem.Race(3, keep=2))
        assert np.sum(result.starts.status == Status.OUTRACED) == 6
        for lane in range(8):
            params = jax.tree.map(lambda a, i=lane: a[i], result.starts.params)
            self.close(result.starts.log_likelihood[lane], result.model, params, x)

    def test_with_prior(self, dtype):
        x = faithful().astype(dtype)
        result = quiet(jaxem.WithPrior(FULL2, 2.0), x, key=KEY, num_starts=2)
        self.close(result.log_likelihood, result.model, result.params, x)
        penalty = float(result.model.log_prior(result.params))
        assert abs(penalty) > 1  # else the sum is not tested
        tolerance = 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(result.objective, result.log_likelihood + penalty, rtol=tolerance)


class TestRow14TheBestOfStartsWithFailures:
    def test_nan_is_never_the_best(self, dtype):
        objective = jnp.array([1.0, jnp.nan, 3.0, 2.0, 9.0, jnp.inf])
        status = jnp.array([Status.CONVERGED, Status.CONVERGED, Status.CONVERGED, 1, Status.NON_FINITE, 1])
        assert jnp.argmax(rankable(objective, status)) == 2
        assert jnp.argmax(rankable(objective, status.at[2].set(Status.ZERO_LIKELIHOOD))) == 3

    def test_a_degenerate_start_is_behind_a_sound_one_and_before_a_failed_one(self, dtype):
        objective = jnp.array([1e6, -5e6, 1e7])
        status = jnp.array([Status.DEGENERATE, Status.MAX_STEPS, Status.NON_FINITE])
        order = jnp.argsort(-rankable(objective, status))
        np.testing.assert_array_equal(order, [1, 0, 2])

    def impossible(self, lanes):
        """Starts of which some give every row of x the probability 0."""
        x = two_clusters()
        good = LatentParams(
            CategoricalParams(np.array([0.5, 0.5])),
            GaussianParams(np.array([[0.0, 0], [6, 6]]), np.tile(np.eye(2), (2, 1, 1))),
        )
        bad = LatentParams(good.latent, GaussianParams(good.likelihood.mean + 1e30, good.likelihood.covariance))
        params = [bad if lane in lanes else good for lane in range(3)]
        return x, stack([jax.tree.map(jnp.asarray, p) for p in params])

    def test_one_failed_start_beside_good_ones(self, float32):
        x, starts = self.impossible({0, 2})
        result = jaxem.fit(FULL2, x, starts=starts, num_starts=3)
        assert result.best == 1
        assert result.converged
        assert not Status(int(result.starts.status[0])).usable
        chex.assert_tree_all_finite(result.starts.params)

    def test_when_all_have_failed_the_error_lists_how(self, float32):
        x, starts = self.impossible({0, 1, 2})
        with pytest.raises(jaxem.FitError, match=r"no start is usable: 3 (zero likelihood|non-finite)"):
            jaxem.fit(FULL2, x, starts=starts, num_starts=3)
        with pytest.raises(jaxem.FitError, match=r"of 2 data sets: 2 non-finite input"):
            jaxem.fit_batch(FULL2, np.full((2, 9, 2), np.nan), key=KEY)


class TestRow15Nonsense:
    @pytest.mark.parametrize("k", [0, -1, 1.5, "3", None])
    def test_number_of_components(self, k):
        with pytest.raises(ValueError, match=rf"num_components.*at least 1; got {k!r}"):
            jaxem.Mixture(jaxem.Gaussian(), k)

    @pytest.mark.parametrize("tol", [-1e-6, np.nan, np.inf])
    @pytest.mark.parametrize("rule", [jaxem.RelativeGain, jaxem.AbsoluteGain, jaxem.Aitken, jaxem.ParameterChange])
    def test_tolerances(self, rule, tol):
        with pytest.raises(ValueError, match=rf"tol must be.*got {tol}"):
            rule(tol)
        with pytest.raises(ValueError, match=rf"tol must be.*got {tol}"):
            jaxem.fit(FULL2, two_clusters(), key=KEY, tol=tol)

    @pytest.mark.parametrize(
        ("given", "match"),
        [
            ({"max_steps": 0}, "max_steps.*at least 1; got 0"),
            ({"min_steps": -1}, "min_steps.*at least 0; got -1"),
            ({"num_starts": 0}, "num_starts.*at least 1; got 0"),
            ({"num_starts": 2.5}, "num_starts.*whole number.*got 2.5"),
            ({"trace_size": -1}, "trace_size.*at least 0; got -1"),
            ({"on_failure": "shout"}, "on_failure.*got 'shout'"),
            ({"tol": 1e-3, "stopping": jaxem.Never()}, "tol or stopping, not both"),
            ({"key": None}, "needs a key.*no default"),
            ({"weights": np.ones(39)}, r"shape \(40,\); got shape \(39,\)"),
            ({"weights": np.ones((40, 1))}, r"shape \(40,\); got shape \(40, 1\)"),
            ({"weights": -np.ones(40)}, r"at least 0; weight \[0\] is -1"),
            ({"weights": np.zeros(40)}, "all weights are 0"),
            ({"params": "nonsense", "starts": "nonsense"}, "params.*or starts"),
        ],
        ids=str,
    )
    def test_arguments_of_fit(self, given, match):
        with pytest.raises(ValueError, match=match):
            jaxem.fit(FULL2, two_clusters(), **{"key": KEY, **given})

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"\[N, D\]; got (shape )?\(40,\).*x\[:, None\]"):
            jaxem.fit(FULL2, two_clusters()[:, 0], key=KEY)
        with pytest.raises(ValueError, match="must be numbers"):
            jaxem.fit(FULL2, np.array([["a"], ["b"]]), key=KEY)
        params = LatentParams(CategoricalParams(np.ones(2) / 2), GaussianParams(np.zeros((2, 3)), np.ones((2, 3, 3))))
        with pytest.raises(ValueError, match=r"mean need shape \(2, 2\); got \(2, 3\)"):
            jaxem.fit(FULL2, two_clusters(), params=params)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: jaxem.Gaussian(floor=0.0),
            lambda: jaxem.Gaussian(floor=-1e-3),
            lambda: jaxem.Gaussian("full"),
            lambda: jaxem.Gaussian(jaxem.Full),
            lambda: jaxem.Mixture(jaxem.Gaussian, 2),
            lambda: jaxem.WithPrior(FULL2, -1.0),
            lambda: jaxem.WithPrior(FULL2, float("nan")),
            lambda: jaxem.Chunked(FULL2, 0),
            lambda: jaxem.Race(0),
            lambda: jaxem.Race(5, keep=0),
            lambda: jaxem.RandomResponsibilities(0.0),
            lambda: jaxem.select([], two_clusters(), key=KEY),
            lambda: jaxem.select([FULL2], two_clusters(), key=KEY, criterion="best"),
            lambda: jaxem.fit(jaxem.Gaussian(), two_clusters(), key=KEY),
            lambda: jaxem.fit(jaxem.Mixture, two_clusters(), key=KEY),
        ],
    )
    def test_construction(self, make):
        with pytest.raises(ValueError, match=r"got|at least one|expected"):
            make()

    def test_a_field_nobody_reads_is_refused(self):
        x = two_clusters()
        with pytest.raises(ValueError, match=r"inputs given, but neither Categorical nor Gaussian"):
            jaxem.fit(FULL2, jaxem.Data(x, inputs=x), key=KEY)


class TestRow20Frozen:
    PARAMS = LatentParams(
        CategoricalParams(np.array([0.3, 0.7])),
        GaussianParams(np.array([[2.1, 54.3], [4.1, 79.9]]), np.array([np.diag([0.1, 30.0]), np.diag([0.2, 35.0])])),
    )

    @pytest.mark.parametrize(
        ("model", "leaves", "match"),
        [
            (FULL2, ["variance"], r"cannot hold 'variance'.*covariance.*mean.*weights"),
            (FULL2, {"mean": [True, False, True]}, "needs 2 bools.*got 3"),
            (FULL2, {"mean": [1, 0]}, "one bool per component"),
            (FULL2, "mean", "list of names"),
            (jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 2), {"covariance": [True, False]}, "shared by all components"),
            (jaxem.Mixture(jaxem.Poisson(), 2), ["mean"], r"cannot hold 'mean'.*rate"),
        ],
    )
    def test_what_the_m_step_cannot_honour_is_refused_when_built(self, model, leaves, match):
        with pytest.raises(ValueError, match=match):
            jaxem.Frozen(model, leaves)

    def test_values_of_what_is_not_frozen_are_refused(self):
        with pytest.raises(ValueError, match="covariance, which nothing holds fixed"):
            jaxem.Frozen(FULL2, ["mean"], {"covariance": np.eye(2)})

    def test_a_model_that_can_hold_nothing_says_so(self):
        class Plain(jaxem.Model):
            pass

        with pytest.raises(ValueError, match="it can hold nothing"):
            jaxem.Frozen(Plain(), ["mean"])

    @pytest.mark.parametrize(
        "leaves",
        [
            {"mean": True},
            {"covariance": True},
            {"weights": True},
            {"mean": [True, False]},
            {"covariance": [False, True]},
            {"weights": [True, False]},
            {"mean": True, "covariance": True},
        ],
        ids=str,
    )
    def test_frozen_parameters_are_held_to_the_last_bit(self, dtype, leaves):
        x = faithful().astype(dtype)
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), self.PARAMS)
        model = jaxem.Frozen(FULL2, leaves).calibrate(jnp.asarray(x))
        run = RUN(model, params, jnp.asarray(x), control=jaxem.Control(jaxem.Never(), 20))
        before = {"weights": params.latent.weights, **vars(params.likelihood)}
        after = {"weights": run.params.latent.weights, **vars(run.params.likelihood)}
        for name, old in before.items():
            held = np.broadcast_to(leaves.get(name, False), 2)
            for component in range(2):
                equal = np.array_equal(old[component], after[name][component])
                assert equal == bool(held[component] or (name == "weights" and held.any())), (name, component)


class TestRow21Repeatable:
    def test_two_fits_are_bit_equal(self, dtype):
        x = faithful().astype(dtype)
        one, other = (jaxem.fit(FULL2, x, key=jax.random.key(3), num_starts=4) for _ in range(2))
        chex.assert_trees_all_equal(one.starts, other.starts)

    def test_a_new_compilation_is_the_same_program(self, dtype):
        x = jnp.asarray(faithful().astype(dtype))
        model, start = start_at(FULL2, x)
        one, other = (jax.jit(lambda *args: jaxem.run(*args))(model, start, x) for _ in range(2))
        chex.assert_trees_all_equal(one, other)

    def test_another_key_is_another_start(self, dtype):
        x = faithful().astype(dtype)
        one, other = (jaxem.fit(FULL2, x, key=jax.random.key(i), num_starts=4).starts.trace for i in range(2))
        assert not np.array_equal(one[:, 0], other[:, 0])

    def test_no_key_has_a_default(self):
        """None is 'not given', and refused where one is needed."""
        found = 0
        for owner in vars(jaxem).values():
            if not callable(owner):
                continue
            functions = (
                [owner, *(f for f in vars(owner).values() if inspect.isfunction(f))]
                if inspect.isclass(owner)
                else [owner]
            )
            for function in functions:
                try:
                    parameters = inspect.signature(function).parameters
                except ValueError:
                    continue
                if "key" in parameters:
                    found += 1
                    assert parameters["key"].default in (inspect.Parameter.empty, None), function
        assert found > 10
        for call in (jaxem.fit, jaxem.fit_batch):
            x = two_clusters() if call is jaxem.fit else two_clusters()[None]
            with pytest.raises(ValueError, match="needs a key"):
                call(FULL2, x)
        with pytest.raises(ValueError, match="needs a key"):
            jaxem.select([FULL2], two_clusters(), key=None)


# The objective never falls.

MODELS = 120
N, D, K = 60, 3, 3


@functools.cache
def traces(name, prior):
    """(objectives of 40 steps [120, 41], status, collapsed or not) of random models, weights, data and starts."""
    rng = np.random.default_rng(11)
    if name == "poisson":
        family = jaxem.Poisson()
        x = rng.poisson(rng.gamma(2.0, 3.0, (MODELS, 1, D)), (MODELS, N, D)).astype(float)
    else:
        family = jaxem.Gaussian(STRUCTURES[name])
        centers = rng.normal(size=(MODELS, K, D)) * rng.uniform(0.5, 4, (MODELS, 1, 1))
        mix = rng.normal(size=(MODELS, D, D)) * np.exp(rng.normal(size=(MODELS, 1, D)))  # well and badly conditioned
        x = np.take_along_axis(centers, rng.integers(0, K, (MODELS, N, 1)), axis=1)
        x = (x + rng.normal(size=(MODELS, N, D))) @ mix
    weights = rng.exponential(size=(MODELS, N))
    plain = jaxem.Mixture(family, K)
    model = jaxem.WithPrior(plain, 0.7) if prior else plain

    def one(key, x, weights):
        own = model.calibrate(x, weights)
        start = own.init(key, x, weights, jaxem.RandomResponsibilities(0.5))
        never = jaxem.Control(jaxem.Never(), 40)
        run = jaxem.run(own, start, x, weights, control=never, trace_size=41)
        return run.trace, run.status, jnp.any(own.diagnose(run.params, jnp.sum(weights)).degenerate)

    with jax.enable_x64(True):
        out = jax.jit(jax.vmap(one))(jax.random.split(KEY, MODELS), jnp.asarray(x), jnp.asarray(weights))
    return tuple(map(np.asarray, out))


every_family = pytest.mark.parametrize("name", [*STRUCTURES, "poisson"])
plain_and_prior = pytest.mark.parametrize("prior", [False, True], ids=["plain", "prior"])


@every_family
@plain_and_prior
def test_the_objective_never_falls(name, prior):
    """The least of all differences of 120 random models, to 1e-9."""
    trace, status, degenerate = traces(name, prior)
    assert not np.any(np.isin(status, (Status.NON_FINITE, Status.ZERO_LIKELIHOOD)))
    assert np.mean(~degenerate) > 0.75
    assert np.nanmin(np.diff(trace[~degenerate])) >= -1e-9
    gained = np.nanmax(trace, axis=1) - trace[:, 0]
    assert np.all(gained > 1e-3)  # every one of them moved
    assert np.mean(~np.isnan(trace)) > 0.5


@every_family
def test_the_objective_does_not_fall_at_the_floor_either(name):
    """Where a component has collapsed, the M-step maximizes over the covariances that are not below the floor."""
    trace, _, degenerate = traces(name, False)
    if name in ("full", "diagonal", "spherical"):
        assert np.any(degenerate)  # else nothing is tested
    # Relative here: at the floor the terms of the objective are a million times larger than it is.
    assert np.nanmin(np.diff(trace[degenerate]), initial=0) >= -1e-9 * np.nanmax(np.abs(trace))


@every_family
@plain_and_prior
def test_rounding_at_the_optimum_is_not_called_a_fall(name, prior):
    """The rule is never to stop: the objective stands still but for its last digits, on badly conditioned data too."""
    trace, status, _ = traces(name, prior)
    real = np.nanmin(np.diff(trace), axis=1) < -1e-9
    assert not np.any((status == Status.DECREASED) & ~real)


# Weights, shapes, scales, conditioning: properties.

SHAPES = [(12, 1), (30, 5)]
E_STEP = jax.jit(lambda model, params, x, w: model.e_step(params, x, w))


class TestProperties:
    @hypothesis.given(
        shape=st.sampled_from(SHAPES),
        name=st.sampled_from([*STRUCTURES]),
        counts_seed=st.integers(0, 2**16),
        exponent=st.integers(-8, 8),
        offset=st.sampled_from([0.0, 100.0]),
        conditioning=st.integers(0, 6),
    )
    def test_every_fit_ends_finite_with_a_status(self, shape, name, counts_seed, exponent, offset, conditioning):
        """float32, whatever the shape, weights, scale and conditioning: finite, named, never a fall."""
        (n, d), rng = shape, np.random.default_rng(counts_seed)
        scales = np.logspace(0, -conditioning, d)  # columns of very different size
        x = ((rng.normal(size=(n, d)) + offset) * scales * 10.0**exponent).astype(np.float32)
        weights = rng.integers(0, 4, n).astype(np.float32)
        weights[:3] = 1  # enough rows
        with jax.enable_x64(False):
            result = quiet(
                jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), 2), x, key=KEY, weights=weights, num_starts=3
            )
        chex.assert_tree_all_finite(result.starts.params)
        assert result.status.usable, result.status.text
        assert not np.any(result.starts.status == Status.NON_FINITE)
        assert np.isfinite(result.objective)
        np.testing.assert_allclose(np.sum(result.params.latent.weights), 1, rtol=1e-5)

    @hypothesis.given(seed=st.integers(0, 2**16), name=st.sampled_from([*STRUCTURES]))
    def test_scaling_all_weights_scales_every_sum(self, seed, name):
        rng = np.random.default_rng(seed)
        with jax.enable_x64(True):
            x, weights = jnp.asarray(rng.normal(size=(30, 2))), jnp.asarray(rng.exponential(size=30))
            model, start = start_at(jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), 2), x)
            one, seven = (E_STEP(model, start, x, factor * weights) for factor in (1.0, 7.0))
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(seven), strict=True):
                np.testing.assert_allclose(7 * a, b, rtol=1e-11, atol=1e-11)

    @hypothesis.given(seed=st.integers(0, 2**16), name=st.sampled_from(["full", "spherical", "poisson"]))
    def test_a_weight_is_so_many_rows_and_zero_is_absence_through_fit(self, seed, name):
        """The same 40 rows in all, so that one program serves every example."""
        rng = np.random.default_rng(seed)
        counts = rng.permutation([3] * 10 + [1] * 10 + [0] * 10)
        if name == "poisson":
            model, x = jaxem.Mixture(jaxem.Poisson(), 2), rng.poisson(3.0 + 9 * (np.arange(30) % 2)[:, None]) * 1.0
        else:
            model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), 2)
            x = rng.normal(size=(30, 2)) + 4 * (np.arange(30) % 2)[:, None]
        x[counts == 0] *= 100  # what is absent must not matter, not even to the centre and the floor
        repeated = np.repeat(x, counts, axis=0)
        with jax.enable_x64(True):
            _, start = start_at(model, repeated)
            weighted = quiet(model, x, weights=counts.astype(float), params=start, tol=1e-9)
            rows = quiet(model, repeated, params=start, tol=1e-9)
        assert weighted.steps == rows.steps
        assert weighted.status == rows.status
        np.testing.assert_allclose(weighted.objective, rows.objective, rtol=1e-10)
        chex.assert_trees_all_close(weighted.params, rows.params, rtol=1e-6, atol=1e-9)
        assert weighted.weight == rows.weight == 40
        np.testing.assert_allclose(weighted.bic, rows.bic, rtol=1e-10)


def test_a_selection_without_a_trace(float32):
    """No objectives are kept where none are asked for, as in `fit`."""
    models = [jaxem.Mixture(jaxem.Gaussian(), k) for k in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.ConvergenceWarning)
        chosen = jaxem.select(models, two_clusters(), key=KEY, num_starts=2, trace_size=0)
    assert chosen.best.model.num_components == 2
