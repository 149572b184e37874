"""Stochastic EM: mini-batches reach the optimum of EM, refuse what cannot be cut or averaged, and say how they ended."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import x64

import jaxem
from jaxem import Incremental, Online, StochasticEM, VarianceReduced
from jaxem.status import Status
from jaxem.stopping import Never, Plateau, Progress, RelativeGain, Settled
from jaxem.testing.case import Counter, Traced

_RNG = np.random.default_rng(0)
COUNTS = np.concatenate([_RNG.poisson([1.0, 6.0], (60, 2)), _RNG.poisson([7.0, 2.0], (43, 2))]).astype(float)
MODEL = jaxem.Mixture(jaxem.Poisson(), 2)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def problem():
    """A start, and the optimum that EM reaches from it."""
    with x64(True):
        x = jnp.asarray(COUNTS)
        params = MODEL.init(jax.random.key(1), x)
        best = jaxem.fit(MODEL, x, params=params, tol=1e-12)
        yield x, params, best


def fit(problem, update, batch_size=20, **options):
    x, params, _ = problem
    return jaxem.fit(MODEL, x, params=params, algorithm=StochasticEM(KEY, batch_size, update), **options)


@pytest.mark.parametrize("update", [Incremental(), VarianceReduced()], ids=["incremental", "variance reduced"])
def test_the_optimum_of_em(float64, problem, update):
    result = fit(problem, update, tol=1e-9)
    assert result.status == Status.CONVERGED
    assert result.objective == pytest.approx(problem[2].objective, abs=1e-8 * len(COUNTS))
    chex.assert_trees_all_close(result.params, problem[2].params, rtol=1e-4)


def test_online_comes_near(float64, problem):
    # After some 50 passes of 6 mini-batches ρ is 0.03, and what the noise costs is about ρ times the cost of a parameter
    # (1/2 in log-likelihood), 0.1 in all.
    result = fit(problem, Online())
    assert result.status == Status.CONVERGED
    assert problem[2].objective - 0.1 < result.objective <= problem[2].objective
    exact = MODEL.e_step(result.params, problem[0]).log_likelihood
    assert result.objective == pytest.approx(float(exact), rel=1e-12)


def test_one_mini_batch_is_em(float64, problem):
    x, params, _ = problem
    control = jaxem.Control(Never(), max_steps=6)
    runs = [
        jaxem.run(MODEL, params, x, algorithm=algorithm, control=control, trace_size=7)
        for algorithm in (jaxem.EM(), StochasticEM(KEY, None), StochasticEM(KEY, 200))
    ]
    for one in runs[1:]:
        np.testing.assert_allclose(one.trace, runs[0].trace, rtol=1e-13)
    # The parameters returned are the last, and so is the objective.
    assert float(runs[2].objective) == pytest.approx(float(runs[0].objective), rel=1e-13)


@pytest.mark.parametrize(
    "update", [Online(), Incremental(), VarianceReduced()], ids=["online", "incremental", "reduced"]
)
def test_the_first_pass_is_a_step_of_em(float64, problem, update):
    """Nothing is learnt of a few rows, which are all that the first mini-batches are."""
    x, params, _ = problem
    weights = jnp.asarray(np.random.default_rng(2).uniform(0, 2, len(x)))
    algorithm = StochasticEM(KEY, 10, update)
    state, _ = jax.jit(lambda p: algorithm.step(MODEL, algorithm.init(MODEL, p, x, weights), x, weights))(params)
    expected = MODEL.m_step(params, MODEL.e_step(params, x, weights).stats)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-12)


def test_single_rows_collapse_nothing(float64):
    x = np.concatenate([_RNG.normal(0, 1, (60, 2)), _RNG.normal(4, 1, (60, 2))])
    model = jaxem.Mixture(jaxem.Gaussian(), 2)
    em = jaxem.fit(model, x, key=KEY)
    algorithm = StochasticEM(KEY, 1, Online())
    result = jaxem.fit(model, x, key=KEY, algorithm=algorithm, max_steps=30, on_failure="ignore")
    assert result.status in (Status.CONVERGED, Status.MAX_STEPS)
    assert em.objective - 1 < result.objective < em.objective + 0.1


@pytest.mark.parametrize("batch_size", [20, 21, 103, 1])
def test_every_example_once(float64, problem, batch_size):
    """103 examples leave a remainder; the first pass of incremental EM stands still, so its objective is exact."""
    x, params, _ = problem
    weights = jnp.asarray(np.random.default_rng(1).integers(0, 3, len(x)), float)
    algorithm = StochasticEM(KEY, batch_size)
    _, info = algorithm.step(MODEL, algorithm.init(MODEL, params, x, weights), x, weights)
    expected = MODEL.e_step(params, x, weights)
    assert float(info.log_likelihood) == pytest.approx(float(expected.log_likelihood), rel=1e-13)
    assert float(info.weight) == float(expected.weight)


def test_weights_are_repeated_rows(float64, problem):
    x, params, _ = problem
    repeats = np.random.default_rng(1).integers(0, 3, len(x))
    algorithm = StochasticEM(KEY, 20)
    weighted = jaxem.fit(MODEL, x, params=params, weights=repeats, algorithm=algorithm, tol=1e-10)
    repeated = jaxem.fit(MODEL, np.repeat(x, repeats, axis=0), params=params, tol=1e-12)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-9)


def test_lanes(float64, problem):
    x, params, _ = problem
    starts = jax.tree.map(lambda a: jnp.stack([a, a[::-1], a * 0.5 + 0.25]), params)
    options = {"algorithm": StochasticEM(KEY, 20, Online()), "control": jaxem.Control(Plateau(), max_steps=60)}
    lanes = jax.jit(lambda p: jaxem.run_lanes(MODEL, p, x, slots=2, **options))(starts)
    one = jax.jit(lambda p: jaxem.run(MODEL, p, x, **options))
    for lane in range(3):
        alone = one(jax.tree.map(lambda a, i=lane: a[i], starts))
        assert (int(lanes.steps[lane]), int(lanes.status[lane])) == (int(alone.steps), int(alone.status))
        np.testing.assert_allclose(lanes.objective[lane], alone.objective, rtol=1e-9)


def test_sequences(float64):
    rng = np.random.default_rng(2)
    x = rng.poisson(np.where(np.arange(8)[None, :, None] < 4, 2.0, 7.0), (13, 8, 1)).astype(float)
    data = jaxem.Data(x=jnp.asarray(x), lengths=jnp.asarray(rng.integers(4, 9, 13)))
    model = jaxem.HMM(jaxem.Poisson(), 2)
    params = model.init(jax.random.key(0), data)
    em = jaxem.fit(model, data, params=params, tol=1e-11)
    mine = jaxem.fit(model, data, params=params, algorithm=StochasticEM(KEY, 4), tol=1e-10)
    assert mine.objective == pytest.approx(em.objective, abs=1e-6 * em.weight)


def test_new_step_sizes_and_keys_do_not_trace_again(float64, problem):
    x, params, _ = problem
    count = Counter()
    model = Traced(MODEL, count)
    fitted = jax.jit(lambda a, c: jaxem.run(model, params, x, algorithm=a, control=c))
    fitted(StochasticEM(KEY, 20, Online(0.6)), jaxem.Control(Plateau(1e-3), max_steps=3))
    once = len(count)
    fitted(StochasticEM(jax.random.key(9), 20, Online(0.9, 2.0)), jaxem.Control(Plateau(1e-5), max_steps=4))
    assert len(count) == once > 0


class TestHonesty:
    def test_stopped_early(self, float64, problem):
        with pytest.warns(jaxem.ConvergenceWarning, match="max_steps"):
            result = fit(problem, Online(), max_steps=7)
        assert result.status == Status.MAX_STEPS
        assert result.steps == 7
        exact = MODEL.e_step(result.params, problem[0]).log_likelihood
        assert result.objective == pytest.approx(float(exact), rel=1e-12)

    def test_never_decreased_nor_stalled(self, float64, problem):
        best = problem[2]
        result = jaxem.fit(
            MODEL,
            problem[0],
            params=best.params,
            algorithm=StochasticEM(KEY, 10, Online()),
            stopping=RelativeGain(0.0),
            max_steps=40,
            on_failure="ignore",
        )
        assert result.status == Status.MAX_STEPS
        assert best.objective - 1 < result.objective < best.objective

    def test_no_derivative(self, float64, problem):
        x, params, _ = problem
        with pytest.raises(jaxem.UnsupportedError, match="fixed point"):
            jax.grad(lambda w: jaxem.run(MODEL, params, x, w, algorithm=StochasticEM(KEY, 20, Online())).objective)(
                jnp.ones(len(x))
            )

    @pytest.mark.parametrize("update", [Incremental(), Online()], ids=["incremental", "online"])
    def test_its_own_rule(self, update):
        rule = StochasticEM(KEY, 20, update).stopping(1e-3)
        assert rule is None if isinstance(update, Incremental) else (isinstance(rule, Plateau) and rule.tol == 1e-3)


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "x", "match"),
        [
            (jaxem.Mixture(jaxem.StudentT(), 2), COUNTS, "larger model"),
            (jaxem.Mixture(jaxem.PPCA(1), 2), COUNTS, "larger model"),
            (jaxem.FactorAnalysis(1, expanded=False), np.column_stack([COUNTS, COUNTS[::-1]]), "moments"),
            (jaxem.HMM(jaxem.Poisson(), 2), COUNTS, "flat sequences"),
        ],
        ids=["student t", "ppca", "factor analysis", "flat"],
    )
    def test_model(self, model, x, match):
        with pytest.raises(jaxem.UnsupportedError, match=match):
            jaxem.fit(model, x, key=KEY, algorithm=StochasticEM(KEY, 20))

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda: StochasticEM(None, 20), "no default"),
            (lambda: StochasticEM(KEY, 0), "batch_size"),
            (lambda: StochasticEM(KEY, 20, Online), "update"),
            (lambda: Online(0.5), "decay"),
            (lambda: Online(offset=-1.0), "offset"),
            (lambda: Online(warm_up=-1), "warm_up"),
            (lambda: VarianceReduced(0.0), "step_size"),
            (lambda: Plateau(window=0), "window"),
            (lambda: Settled(window=1), "window"),
        ],
    )
    def test_argument(self, make, match):
        with pytest.raises(ValueError, match=match):
            make()


def test_plateau():
    """Gains of 1, −1, 1, … about a rising mean: met once the mean of two windows rises by no more than tol."""
    objectives = np.array([-9.0, -7.0, -6.0, -4.0, -3.0, -2.0, -1.0, -2.0, -1.0, -2.0, -1.0])
    rule = Plateau(0.1, window=2)
    memory, met = rule.start(None, jnp.float32(0)), []
    for previous, objective in itertools.pairwise(objectives):
        memory, now = rule.check(memory, Progress(None, jnp.float32(objective), jnp.float32(previous), jnp.float32(10)))
        met.append(bool(now))
    means = np.convolve(objectives[1:], [0.5, 0.5], "valid")
    expected = [False] * 3 + list(means[2:] - means[:-2] <= 1.0)
    assert met == expected
    assert any(met)
    assert not all(met[3:])


def test_settled():
    """Not where an objective turns, but where three in a row lie within a tenth of ten examples."""
    objectives = [-9.0, -5.0, -3.0, -3.0, -5.0, -3.5, -3.0, -2.5, -3.0, -2.0]
    rule = Settled(0.1, window=3)
    memory, met = rule.start(None, jnp.float32(0)), []
    for previous, objective in itertools.pairwise(objectives):
        memory, now = rule.check(memory, Progress(None, jnp.float32(objective), jnp.float32(previous), jnp.float32(10)))
        met.append(bool(now))
    assert met == [False] * 6 + [True, True, True]


@pytest.mark.parametrize(
    "algorithm",
    [
        StochasticEM(KEY, 20),
        jaxem.MulticycleECM([["rate"]]),
        jaxem.Annealing([2.0, 1.5]),
    ],
    ids=["incremental", "multicycle", "annealing"],
)
def test_derivatives_of_the_limit(float64, problem, algorithm):
    """Whatever the way there, the optimum moves with the data as that of EM does."""
    x, _, best = problem
    control = jaxem.Control(jaxem.ParameterChange(1e-11), max_steps=2000)
    how = jnp.asarray(np.random.default_rng(4).normal(size=len(x)))

    def moved(algorithm):
        def rate(weights):
            return jaxem.run(
                MODEL, best.params, x, weights, algorithm=algorithm, control=control
            ).params.likelihood.rate

        return jax.jit(lambda w: jax.jvp(rate, (w,), (how,))[1])(jnp.ones(len(x)))

    np.testing.assert_allclose(moved(algorithm), moved(jaxem.EM()), rtol=1e-6)
