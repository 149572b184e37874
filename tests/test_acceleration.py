"""Squarem and Anderson: fewer E-steps, the same optimum, and never a fall; against SQUAREM's published counts."""

import acceleration_table
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.cases import faithful, fit_of, table

import jaxem
from jaxem import BinomialParams, CategoricalParams, GaussianParams, LatentParams, PoissonParams
from jaxem.model import pytree
from jaxem.stopping import Stopping

FILE = "acceleration-squarem"
ACCELERATED = [jaxem.Squarem(), jaxem.Squarem(scheme=3), jaxem.Anderson()]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytree
class Change(Stopping):
    """The files' own rule: ‖θ_t − θ_(t−1)‖ ≤ tol, over the parameters that they list."""

    tol: float = 1e-8

    watches_objective = False

    def start(self, params, objective):
        return params

    def check(self, memory, progress):
        squares = [jnp.sum((a - b) ** 2) for a, b in zip(*map(listed, (progress.params, memory)), strict=True)]
        return progress.params, jnp.sqrt(sum(squares)) <= self.tol


def listed(params):
    """The leaves, the last weight left out."""
    return [params.latent.weights[:-1], *jax.tree.leaves(params.likelihood)]


def weights_of(first):
    return CategoricalParams(jnp.array([*first, 1 - sum(first)]))


def problem(name):
    """Model, data, weights and the start of a file's problem."""
    start = fit_of(FILE, name)["start"]
    if name.startswith("poisson"):
        x, weights = table("hasselblad_deaths.csv", "deaths", "days").T
        return (
            jaxem.Mixture(jaxem.Poisson(), 2),
            x[:, None],
            weights,
            LatentParams(weights_of(start[:1]), PoissonParams(jnp.array(start[1:])[:, None])),
        )
    if name.startswith("binomial"):
        k = len(start) // 2 + 1
        x, weights = table("saxony.csv", "males", "families").T
        return (
            jaxem.Mixture(jaxem.Binomial([12]), k),
            x[:, None],
            weights,
            LatentParams(weights_of(start[: k - 1]), BinomialParams(jnp.array(start[k - 1 :])[:, None])),
        )
    means = np.reshape(start[2:8], (2, 3)).T
    covariances = np.stack([[[a, b], [b, c]] for a, b, c in np.reshape(start[8:], (3, 3))])
    return (
        jaxem.Mixture(jaxem.Gaussian(), 3),
        faithful(),
        None,
        LatentParams(weights_of(start[:2]), GaussianParams(jnp.array(means), jnp.array(covariances))),
    )


def fitted(name, algorithm, max_steps=5000):
    model, x, weights, start = problem(name)
    rule = Change(fit_of(FILE, name)["tol"])
    return jaxem.fit(
        model,
        x,
        weights=weights,
        params=start,
        algorithm=algorithm,
        stopping=rule,
        max_steps=max_steps,
        trace_size=max_steps,
    )


def best_of(name):
    return max(run["loglik"] for run in fit_of(FILE, name)["runs"])


def count_of(name, method):
    return next(r["fixed_point_evaluations"] for r in fit_of(FILE, name)["runs"] if r["method"].startswith(method))


PROBLEMS = [
    "poisson-deaths-vignette-start",
    "binomial-saxony-K2",
    "gmm-faithful-VVV-3",
]


@pytest.mark.parametrize("name", PROBLEMS)
def test_counts_of_e_steps(name):
    """Never more than twice SQUAREM's own count (the file's tolerance), at least three times fewer than EM's."""
    plain = count_of(name, "em")
    for algorithm in (jaxem.Squarem(), jaxem.Anderson()):
        result = fitted(name, algorithm)
        assert result.converged
        assert result.log_likelihood == pytest.approx(best_of(name), rel=1e-9)
        assert np.all(np.diff(result.trace) >= -1e-9)
        assert result.steps <= 2 * count_of(name, "squarem K=1 method=3"), (name, algorithm)
        assert result.steps <= plain / 3


def test_the_vignettes_counts():
    """Hasselblad's deaths from the vignette's start: EM 2 909 there."""
    name = "poisson-deaths-vignette-start"
    assert 2600 <= fitted(name, jaxem.EM()).steps <= 2930
    assert fitted(name, jaxem.Squarem()).steps <= 75
    assert fitted(name, jaxem.Anderson()).steps <= 60


def test_a_case_where_em_takes_thousands_of_steps():
    """Three binomials for Geissler's families: EM takes 17 723 steps in the file."""
    name = "binomial-saxony-K3"
    plain = count_of(name, "em")
    for algorithm, least in ((jaxem.Squarem(), 10), (jaxem.Squarem(scheme=3), 15), (jaxem.Anderson(), 40)):
        result = fitted(name, algorithm)
        assert result.log_likelihood == pytest.approx(best_of(name), rel=1e-9)
        assert result.steps <= plain / least


POINTS = np.random.default_rng(3).normal(size=(60, 4)) @ np.random.default_rng(4).normal(size=(4, 4))
COUNTS = np.random.default_rng(5).poisson(np.repeat([[2.0], [6.0]], [40, 50], axis=0)).astype(float)
_RNG = np.random.default_rng(6)
FACTORS = _RNG.normal(size=(80, 1)) * [1.0, 0.8, 0.5, -0.6] + _RNG.normal(size=(80, 4))
MODELS = {
    "gaussian mixture": (jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 3), POINTS),
    "hidden Markov model": (jaxem.HMM(jaxem.Poisson(), 2), COUNTS),
    "factor analysis": (jaxem.FactorAnalysis(1, expanded=False), FACTORS),
    "with prior": (jaxem.WithPrior(jaxem.Mixture(jaxem.Poisson(), 2), 2.0), COUNTS),
}


@pytest.mark.parametrize("name", MODELS)
def test_never_worse_than_em_from_the_same_start(name):
    """Many starts as lanes: what EM's lane reaches, the accelerated lane reaches too, or something higher."""
    model, x = MODELS[name]
    starts = {"key": jax.random.key(1), "num_starts": 4, "tol": 1e-10, "max_steps": 3000, "trace_size": 3001}
    plain = jaxem.fit(model, x, **starts)
    for algorithm in (jaxem.Squarem(), jaxem.Anderson()):
        result = jaxem.fit(model, x, algorithm=algorithm, **starts)
        for ours, theirs, trace in zip(
            result.starts.objective, plain.starts.objective, result.starts.trace, strict=True
        ):
            assert ours >= theirs - 1e-6 * abs(theirs)
            assert np.all(np.diff(trace[~np.isnan(trace)]) >= -1e-9)
        assert result.converged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture of mixtures", "experts, linear regression"])
def test_rows_with_saddles(name):
    """Rows of the table on which EM passes saddles; ``python tests/acceleration_table.py`` goes through all rows."""
    for found in acceleration_table.outcomes(name, starts=10, max_steps=3000):
        for algorithm in acceleration_table.ACCELERATORS:
            assert found[algorithm].passes(found["EM"]), acceleration_table.line(name, found)


@pytest.mark.parametrize("algorithm", ACCELERATED, ids=str)
def test_a_saddle_is_left(algorithm):
    """EM, which takes 819 steps, leaves a saddle ever faster; to extrapolate its steps backwards would lead into it."""

    def step(params, data):
        u, v = params["u"], params["v"]
        return {"u": u + 0.02 * u * (1 - u**2), "v": v + 0.1 * (1 - v)}

    def log_likelihood(params, data):
        u, v = params["u"], params["v"]
        return u**2 / 2 - u**4 / 4 - (v - 1) ** 2

    result = jaxem.fit(
        jaxem.FixedPoint(step, log_likelihood),
        np.zeros(3),
        params={"u": np.array(1e-3), "v": np.array(0.3)},
        algorithm=algorithm,
        stopping=jaxem.ParameterChange(1e-10),
        max_steps=400,
    )
    assert result.converged
    assert abs(result.params["u"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("algorithm", ACCELERATED, ids=str)
def test_an_em_that_ends_beside_the_maximum_ends(algorithm):
    """A map whose fixed point is a little lower than what it passes: a guard that insists would try again for ever."""
    model = jaxem.FixedPoint(lambda p, d: {"t": p["t"] + 0.02 * (1 - p["t"])}, lambda p, d: -((p["t"] - 1 + 1e-6) ** 2))
    result = jaxem.fit(
        model,
        np.zeros(3),
        params={"t": np.array(1 - 1e-6)},
        algorithm=algorithm,
        stopping=jaxem.ParameterChange(1e-10),
        max_steps=1500,
    )
    assert result.converged
    assert result.params["t"] == pytest.approx(1, abs=1e-5)


def test_a_frozen_leaf_and_an_exact_zero_stay():
    chain = jaxem.HMM(jaxem.Poisson(), 2, allowed=jaxem.left_to_right(2))
    model = jaxem.Frozen(chain, ["rate"], {"rate": np.array([[2.0], [6.0]])})
    for algorithm in (jaxem.Squarem(), jaxem.Anderson()):
        result = jaxem.fit(model, COUNTS, key=jax.random.key(0), algorithm=algorithm, tol=1e-9)
        np.testing.assert_array_equal(result.params.likelihood.rate, [[2.0], [6.0]])
        assert result.params.latent.transition[1, 0] == 0


def test_a_proposal_that_is_not_a_number_is_turned_down():
    """A likelihood that is NaN beyond a point: the extrapolation lands there, and EM goes on without it."""

    def log_likelihood(params, data):
        t = params["t"]
        return jnp.where(t > 1.05, jnp.nan, -((t - 1) ** 2))

    model = jaxem.FixedPoint(lambda p, d: {"t": p["t"] + 0.02 * (1 - p["t"])}, log_likelihood)
    # Noise in the map makes the extrapolation overshoot.
    noisy = jaxem.FixedPoint(
        lambda p, d: {"t": p["t"] + 0.02 * (1 - p["t"]) * (1 + 0.3 * jnp.sin(40 * p["t"]))}, log_likelihood
    )
    for given in (model, noisy):
        for algorithm in ACCELERATED:
            result = jaxem.fit(
                given,
                np.zeros(3),
                params={"t": np.array(0.0)},
                algorithm=algorithm,
                stopping=jaxem.ParameterChange(1e-10),
                max_steps=2000,
            )
            assert result.status.usable
            assert result.params["t"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("algorithm", [jaxem.Squarem(), jaxem.Anderson()], ids=str)
def test_a_start_that_cannot_be_is_said_so(algorithm):
    """The first evaluation is judged, whatever it is: impossible data, or a likelihood that is not a number."""
    model = jaxem.FixedPoint(lambda p, d: p, lambda p, d: jnp.log(p["t"]))
    for start, status in ((0.0, jaxem.Status.ZERO_LIKELIHOOD), (-1.0, jaxem.Status.NON_FINITE)):
        run = jaxem.run(model, {"t": jnp.array(start)}, jnp.zeros(3), algorithm=algorithm)
        assert jaxem.Status(int(run.status)) == status


def test_what_is_refused():
    with pytest.raises(ValueError, match="memory must be a whole number"):
        jaxem.Anderson(memory=0)
    with pytest.raises(ValueError, match="StochasticEM only estimates its objective"):
        jaxem.Squarem(jaxem.StochasticEM(key=jax.random.key(0), batch_size=10))
    with pytest.raises(ValueError, match="scheme is 1 or 3"):
        jaxem.Squarem(scheme=2)
