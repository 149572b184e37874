"""Regressions as families: solutions of other systems for one component, and what must hold for any number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import gammaln, logsumexp
from sklearn.linear_model import LogisticRegression, PoissonRegressor

import jaxem
from jaxem import Data

RNG = np.random.default_rng(5)
N = 80
INPUTS = RNG.normal(size=(N, 2)) * [1.0, 20.0] + [0.0, 300.0]
COLUMNS = np.c_[np.ones(N), INPUTS]
PREDICTOR = 0.7 * INPUTS[:, :1] - 0.06 * (INPUTS[:, 1:] - 300) + [[0.3, -0.5]]
WEIGHTS = RNG.integers(0, 4, N).astype(float)
GAUSSIAN = PREDICTOR + 0.3 * RNG.normal(size=(N, 2))
BINARY = (RNG.random((N, 2)) < 1 / (1 + np.exp(-PREDICTOR))).astype(float)
_UTILITIES = np.c_[PREDICTOR, np.zeros(N)] + RNG.gumbel(size=(N, 3))
CODES = np.argmax(_UTILITIES, axis=1)[:, None].astype(float)
COUNTS = RNG.poisson(np.exp(PREDICTOR)).astype(float)


def one(family, x, inputs=INPUTS, weights=None, **options):
    """The fit of a single component from its own start."""
    options = {"tol": 1e-15, "max_steps": 200, "trace_size": 200, **options}
    return jaxem.fit(
        jaxem.Mixture(family, 1), Data(x=x, inputs=inputs), weights=weights, key=jax.random.key(0), **options
    )


def softmax_peer(codes, weights=None):
    """Coefficients relative to the last code, in the units of the inputs."""
    peer = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cg", max_iter=1000)
    peer.fit((INPUTS - INPUTS.mean(0)) / INPUTS.std(0), codes, weights)
    slopes = peer.coef_ / INPUTS.std(0)
    every = np.c_[peer.intercept_ - slopes @ INPUTS.mean(0), slopes]
    return every - every[-1]


class TestOneComponent:
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_linear_is_least_squares(self, float64, weights):
        fitted = one(jaxem.LinearRegression(), GAUSSIAN, weights=weights)
        w = np.ones(N) if weights is None else weights
        root = np.sqrt(w)[:, None]
        coefficients, *_ = np.linalg.lstsq(root * COLUMNS, root * GAUSSIAN, rcond=None)
        np.testing.assert_allclose(fitted.params.likelihood.coefficients[0], coefficients.T, rtol=1e-10)
        residual = GAUSSIAN - COLUMNS @ coefficients
        np.testing.assert_allclose(fitted.params.likelihood.variance[0], w @ residual**2 / w.sum(), rtol=1e-10)

    def test_linear_without_intercept(self, float64):
        fitted = one(jaxem.LinearRegression(intercept=False), GAUSSIAN)
        coefficients, *_ = np.linalg.lstsq(INPUTS, GAUSSIAN, rcond=None)
        np.testing.assert_allclose(fitted.params.likelihood.coefficients[0], coefficients.T, rtol=1e-10)

    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_logistic(self, float64, weights):
        fitted = one(jaxem.LogisticRegression(), BINARY, weights=weights)
        centered = (INPUTS - INPUTS.mean(0)) / INPUTS.std(0)
        for d in range(2):
            peer = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky", max_iter=1000)
            peer.fit(centered, BINARY[:, d], weights)
            slopes = peer.coef_[0] / INPUTS.std(0)
            expected = np.r_[peer.intercept_ - slopes @ INPUTS.mean(0), slopes]
            np.testing.assert_allclose(fitted.params.likelihood.coefficients[0, d], expected, rtol=1e-8)

    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_poisson(self, float64, weights):
        fitted = one(jaxem.PoissonRegression(), COUNTS, weights=weights)
        centered = (INPUTS - INPUTS.mean(0)) / INPUTS.std(0)
        for d in range(2):
            peer = PoissonRegressor(alpha=0, tol=1e-12, solver="newton-cholesky", max_iter=1000)
            peer.fit(centered, COUNTS[:, d], weights)
            slopes = peer.coef_ / INPUTS.std(0)
            expected = np.r_[peer.intercept_ - slopes @ INPUTS.mean(0), slopes]
            np.testing.assert_allclose(fitted.params.likelihood.coefficients[0, d], expected, rtol=1e-8)

    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_multinomial(self, float64, weights):
        fitted = one(jaxem.MultinomialRegression(3), CODES, weights=weights)
        coefficients = np.asarray(fitted.params.likelihood.coefficients[0])
        np.testing.assert_allclose(coefficients - coefficients[-1], softmax_peer(CODES[:, 0], weights), rtol=1e-7)
        assert np.all(coefficients[-1] == 0)

    def test_an_offset_is_an_exposure(self, float64):
        exposure = RNG.uniform(0.5, 40, N)
        counts = RNG.poisson(exposure[:, None] * np.exp(0.1 * PREDICTOR[:, :1])).astype(float)
        fitted = one(jaxem.PoissonRegression(offset=True), counts, np.c_[INPUTS, np.log(exposure)])
        centered = (INPUTS - INPUTS.mean(0)) / INPUTS.std(0)
        peer = PoissonRegressor(alpha=0, tol=1e-12, solver="newton-cholesky", max_iter=1000)
        peer.fit(centered, counts[:, 0] / exposure, exposure)
        np.testing.assert_allclose(
            fitted.params.likelihood.coefficients[0, 0, 1:], peer.coef_ / INPUTS.std(0), rtol=1e-8
        )

    def test_missing_responses_are_left_out_cell_by_cell(self, float64):
        mask = RNG.random((N, 2)) < 0.7
        for family, x in (
            (jaxem.LinearRegression(), GAUSSIAN),
            (jaxem.LogisticRegression(), BINARY),
            (jaxem.PoissonRegression(), COUNTS),
        ):
            poisoned = np.where(mask, x, np.nan)
            data = Data(x=poisoned, inputs=INPUTS, mask=mask)
            options = {"key": jax.random.key(0), "tol": 1e-15, "max_steps": 200}
            both = jaxem.fit(jaxem.Mixture(family, 1), data, **options)
            for d in range(2):
                alone = one(family, x[:, d : d + 1], weights=mask[:, d] * 1.0)
                np.testing.assert_allclose(
                    both.params.likelihood.coefficients[0, d], alone.params.likelihood.coefficients[0, 0], rtol=1e-7
                )


def log_density(kind, predictor, x, variance=None):
    """log p(x | η), summed over responses, written without the library."""
    if kind == "multinomial":
        return np.take_along_axis(predictor - logsumexp(predictor, axis=-1, keepdims=True), x.astype(int), -1)[:, 0]
    if kind == "linear":
        terms = -0.5 * (x - predictor) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    elif kind == "logistic":
        terms = x * predictor - np.logaddexp(0, predictor)
    else:
        terms = x * predictor - np.exp(predictor) - gammaln(x + 1)
    return terms.sum(-1)


@pytest.mark.parametrize("kind", ["linear", "logistic", "poisson"])
def test_log_likelihood_is_the_formula(float64, kind):
    family, x = {
        "linear": (jaxem.LinearRegression(), GAUSSIAN),
        "logistic": (jaxem.LogisticRegression(), BINARY),
        "poisson": (jaxem.PoissonRegression(), COUNTS * 7),  # above and below the saddle point's counts
    }[kind]
    coefficients = RNG.normal(size=(3, 2, 3)) * [1.0, 0.5, 0.003]
    variance = RNG.uniform(0.5, 2, size=(3, 2))
    params = (
        jaxem.LinearRegressionParams(coefficients, variance)
        if kind == "linear"
        else jaxem.RegressionParams(coefficients)
    )
    weights = np.array([0.2, 0.5, 0.3])
    model = jaxem.Mixture(family, 3)
    got = model.log_likelihood(
        jaxem.LatentParams(jaxem.CategoricalParams(jnp.array(weights)), params), Data(x=x, inputs=INPUTS)
    )
    parts = [log_density(kind, COLUMNS @ coefficients[k].T, x, variance[k]) + np.log(weights[k]) for k in range(3)]
    np.testing.assert_allclose(got, logsumexp(parts, axis=0), rtol=1e-11)


@pytest.mark.parametrize("kind", ["logistic", "poisson", "multinomial"])
@pytest.mark.parametrize("seed", range(12))
def test_a_newton_step_never_lowers_the_weighted_likelihood(float64, kind, seed):
    """From wild coefficients and arbitrary responsibilities, over the rows, not as its expansion."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    inputs = rng.standard_t(2, size=(n, 2)) * 10.0 ** rng.uniform(-2, 2, 2) + rng.normal(size=2)
    family, x = {
        "logistic": (jaxem.LogisticRegression(), rng.random((n, 1)) < 0.5),
        "poisson": (jaxem.PoissonRegression(), rng.poisson(rng.uniform(0, 20, (n, 1)))),
        "multinomial": (jaxem.MultinomialRegression(4), rng.integers(0, 4, (n, 1))),
    }[kind]
    x, d = x.astype(float), 4 if kind == "multinomial" else 1
    data = Data(x=jnp.array(x), inputs=jnp.array(inputs))
    family = family.calibrate(data, None)
    rows = family.statistics(data)
    marginals = jnp.array(rng.dirichlet([0.2] * 3, n))
    spread = inputs.std(0)
    slopes = rng.normal(size=(3, d, 2)) * 10.0 ** rng.uniform(-1, 1.0) / spread
    coefficients = np.concatenate([rng.normal(size=(3, d, 1)) - slopes @ inputs.mean(0)[:, None], slopes], axis=-1)
    if kind == "multinomial":
        coefficients[:, -1] = 0
    params = jaxem.RegressionParams(jnp.array(coefficients))

    @jax.jit
    def advance(params):
        return family.maximize(params, family.accumulate(params, rows, marginals), {})

    def value(params):
        columns = np.c_[np.ones(n), inputs]
        each = [log_density(kind, columns @ np.asarray(b).T, x) for b in params.coefficients]
        return np.sum(np.where(marginals > 0, marginals * np.stack(each, -1), 0), axis=0)

    values = [value(params)]
    for _ in range(40):
        params = advance(params)
        values.append(value(params))
    steps = np.diff(values, axis=0)
    assert np.all(steps >= -1e-9 * np.maximum(1, np.abs(values[:-1])))
    assert np.all(np.isfinite(params.coefficients))
    assert np.all(steps[0] > 0)  # and it does move


@pytest.mark.parametrize("family", [jaxem.LogisticRegression(), jaxem.PoissonRegression()])
def test_no_direction_of_the_design_reaches_further_than_its_bound(float64, family):
    data = Data(x=jnp.array(COUNTS[:, :1] > 0, float), inputs=jnp.array(INPUTS))
    design = family.calibrate(data, None).design
    columns = design.columns(data.inputs, float)
    directions = RNG.normal(size=(500, 3)) * 10.0 ** RNG.uniform(-3, 3, (500, 3))
    farthest = np.abs(columns @ directions.T).max(0)
    reach = np.asarray(design.reach(jnp.array(directions)))
    assert np.all(reach >= farthest)
    assert np.median(reach / farthest) < 2  # a bound that is no use would damp every step


class TestInputsThatSayNothingNew:
    COLLINEAR = np.c_[INPUTS, INPUTS @ [1.0, 0.5], np.full(N, 0.1)]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_linear(self, dtype):
        with jax.enable_x64(dtype == np.float64):
            full = one(jaxem.LinearRegression(), GAUSSIAN.astype(dtype), self.COLLINEAR.astype(dtype))
            plain = one(jaxem.LinearRegression(), GAUSSIAN.astype(dtype), INPUTS.astype(dtype))
        tolerance = 1e-12 if dtype == np.float64 else 1e-5
        assert full.log_likelihood == pytest.approx(plain.log_likelihood, rel=tolerance)
        assert np.all(np.asarray(full.params.likelihood.coefficients)[..., 3:] == 0)

    def test_poisson(self, float64):
        full = one(jaxem.PoissonRegression(), COUNTS, self.COLLINEAR)
        plain = one(jaxem.PoissonRegression(), COUNTS)
        assert full.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-12)
        assert np.all(np.asarray(full.params.likelihood.coefficients)[..., 3:] == 0)


class TestNoFiniteOptimum:
    """Coefficients that run to infinity stay finite, and the component is named."""

    @pytest.mark.parametrize("steps", [None, 3000])
    def test_separation(self, dtype, steps):
        x = (INPUTS[:, :1] > 0.2).astype(dtype)
        options = {"tol": 1e-6, "max_steps": 500} if steps is None else {"stopping": jaxem.Never(), "tol": None}
        options = options if steps is None else {**options, "max_steps": steps}
        fitted = one(jaxem.LogisticRegression(), x, INPUTS.astype(dtype), on_failure="ignore", **options)
        assert fitted.status == jaxem.Status.DEGENERATE
        assert fitted.degenerate == (0,)
        assert np.all(np.isfinite(fitted.params.likelihood.coefficients))
        assert fitted.log_likelihood == pytest.approx(0, abs=1e-2)

    def test_no_counts_at_all_in_a_component(self, dtype):
        rng = np.random.default_rng(0)
        z = rng.integers(0, 2, N)
        x = np.where(z == 0, 0, 20 + rng.poisson(5, N))[:, None].astype(dtype)
        fitted = jaxem.fit(
            jaxem.Mixture(jaxem.PoissonRegression(), 2),
            Data(x=x, inputs=INPUTS.astype(dtype)),
            key=jax.random.key(0),
            num_starts=4,
            tol=1e-8,
            on_failure="ignore",
        )
        assert np.all(np.isfinite(fitted.params.likelihood.coefficients))
        (k,) = fitted.degenerate
        assert fitted.params.latent.weights[k] == pytest.approx(np.mean(z == 0), abs=1e-4)

    def test_a_line_through_its_points(self, float64):
        x = np.where(np.arange(N) < 40, 2 * INPUTS[:, 0] + 1, GAUSSIAN[:, 0])[:, None]
        fitted = jaxem.fit(
            jaxem.Mixture(jaxem.LinearRegression(), 2),
            Data(x=x, inputs=INPUTS[:, :1], labels=np.where(np.arange(N) < 40, 0, 1)),
            key=jax.random.key(0),
            on_failure="ignore",
        )
        assert fitted.status == jaxem.Status.DEGENERATE
        assert fitted.degenerate == (0,)


class TestTiedNoise:
    def test_one_variance_for_all_components(self, float64):
        labels = np.arange(N) % 2
        data = Data(x=GAUSSIAN, inputs=INPUTS, labels=labels)
        fitted = jaxem.fit(
            jaxem.Mixture(jaxem.LinearRegression(tied_noise=True), 2), data, key=jax.random.key(0), tol=1e-14
        )
        squares = 0
        for k in range(2):
            rows = labels == k
            coefficients, *_ = np.linalg.lstsq(COLUMNS[rows], GAUSSIAN[rows], rcond=None)
            squares += np.sum((GAUSSIAN[rows] - COLUMNS[rows] @ coefficients) ** 2, axis=0)
        np.testing.assert_allclose(fitted.params.likelihood.variance, squares / N, rtol=1e-10)
        assert fitted.num_free_parameters == 1 + 2 * 2 * 3 + 2


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e5, 0.0), (1.0, 1e3)])
def test_units_of_the_inputs_do_not_matter(float64, scale, shift):
    data = Data(x=GAUSSIAN, inputs=INPUTS)
    moved = Data(x=GAUSSIAN, inputs=INPUTS * scale + shift)
    model = jaxem.Mixture(jaxem.LinearRegression(), 2)
    a, b = (jaxem.fit(model, d, key=jax.random.key(0), num_starts=2, tol=1e-8) for d in (data, moved))
    assert a.log_likelihood == pytest.approx(b.log_likelihood, rel=1e-8)
    np.testing.assert_allclose(
        a.params.likelihood.coefficients[..., 1:], b.params.likelihood.coefficients[..., 1:] * scale, rtol=1e-5
    )


class TestPriors:
    def test_a_prior_keeps_separated_responses_sound(self, float64):
        x = (INPUTS[:, :1] > 0.2).astype(float)
        model = jaxem.WithPrior(jaxem.Mixture(jaxem.LogisticRegression(), 1), strength=5.0)
        options = {"key": jax.random.key(0), "tol": 1e-13, "max_steps": 200, "trace_size": 200}
        fitted = jaxem.fit(model, Data(x=x, inputs=INPUTS), **options)
        assert fitted.status.success
        trace = np.asarray(fitted.starts.trace[0])
        trace = trace[~np.isnan(trace)]
        assert np.diff(trace).min() > -1e-9

        # It is a quadratic in the coefficients: the maximum by another road.
        tau = fitted.model.statistics.likelihood
        design = fitted.model.model.likelihood.design
        columns = np.asarray(design.columns(jnp.array(INPUTS), float))
        H, b = np.asarray(tau.gram)[0, 0], np.asarray(tau.linear)[0, 0]

        def objective(beta):
            eta = columns @ beta
            return np.sum(np.logaddexp(0, eta) - x[:, 0] * eta) - 5 * (b @ beta - 0.5 * beta @ H @ beta)

        best = scipy.optimize.minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-10})
        got = design.standardized(fitted.params.likelihood.coefficients)[0, 0]
        np.testing.assert_allclose(got, best.x, atol=1e-6)


class TestErrors:
    def test_inputs_are_needed(self):
        with pytest.raises(ValueError, match="inputs"):
            jaxem.fit(jaxem.Mixture(jaxem.LinearRegression(), 2), GAUSSIAN, key=jax.random.key(0))

    @pytest.mark.parametrize(
        ("family", "x"),
        [
            (jaxem.LogisticRegression(), np.array([[0.0], [2.0]])),
            (jaxem.PoissonRegression(), np.array([[3.0], [0.5]])),
            (jaxem.MultinomialRegression(3), np.array([[2.0], [3.0]])),
        ],
    )
    def test_responses_outside_the_support_are_named(self, family, x):
        with pytest.raises(ValueError, match="row 1, column 0"):
            jaxem.fit(jaxem.Mixture(family, 1), Data(x=x, inputs=np.ones((2, 1))), key=jax.random.key(0))

    def test_a_multinomial_regression_has_one_response(self):
        with pytest.raises(ValueError, match=r"\[N, 1\]"):
            jaxem.fit(
                jaxem.Mixture(jaxem.MultinomialRegression(3), 1), Data(x=BINARY, inputs=INPUTS), key=jax.random.key(0)
            )

    @pytest.mark.parametrize("categories", [1, 2.0])
    def test_a_number_of_categories_that_is_none(self, categories):
        with pytest.raises(ValueError, match="num_categories"):
            jaxem.MultinomialRegression(categories)

    def test_a_damped_step_needs_the_range_of_the_inputs(self):
        family = jaxem.LogisticRegression()
        data = Data(x=jnp.array(BINARY), inputs=jnp.array(INPUTS))
        rows = family.statistics(data)
        params = jaxem.RegressionParams(jnp.zeros((1, 2, 3)))
        stats = family.accumulate(params, rows, jnp.ones((N, 1)))
        with pytest.raises(ValueError, match="calibrate"):
            family.maximize(params, stats, {})

    def test_a_floor_that_is_none(self):
        with pytest.raises(ValueError, match="floor"):
            jaxem.LinearRegression(floor=0.0)


def test_neither_an_intercept_nor_an_input():
    data = Data(x=np.ones((5, 1)), inputs=np.ones((5, 0)))
    with pytest.raises(ValueError, match=r"needs at least one input; got shape \(5, 0\)"):
        jaxem.fit(jaxem.Mixture(jaxem.LinearRegression(intercept=False), 1), data, key=jax.random.key(0))
