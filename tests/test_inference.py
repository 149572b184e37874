"""Standard errors and EM's rate: published numbers, numbers by hand, and what must be said where there are none."""

import dataclasses
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data.cases import case, deaths, faithful, fit_of, table

import jaxem
from jaxem import (
    BernoulliParams,
    BinomialParams,
    CategoricalParams,
    GaussianParams,
    LatentParams,
    MarkovChainParams,
    PoissonParams,
    ZeroInflatedParams,
)
from jaxem.implicit import jacobian
from jaxem.inference.chart import chart_at
from jaxem.inference.information import em_map

INFORMATION = ("hessian", "oakes", "louis", "sem")
TIGHT = {"stopping": jaxem.ParameterChange(1e-11), "max_steps": 50_000, "trace_size": 0}


def relative(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=tolerance)


# Incomplete counts: a model of four methods and two coordinates.


@jaxem.pytree
class Counts(jaxem.Model):
    """Observed cells, of which each holds some cells of a complete multinomial table, one row of counts an example.

    cells: [observed, complete], True where a complete cell is part of an observed one.
    """

    cells: tuple = jaxem.static()

    def probability(self, params):
        raise NotImplementedError

    def sufficient(self, complete):
        raise NotImplementedError

    def e_step(self, params, data, weights=None):
        w = jnp.ones(data.shape[0]) if weights is None else weights
        inside = jnp.asarray(self.cells) * self.probability(params)
        observed = inside.sum(axis=1)
        complete = (w @ data) @ (inside / observed[:, None])
        return jaxem.EStep(self.sufficient(complete), w @ (data @ jnp.log(observed)), w.sum())


@jaxem.pytree
class Linkage(Counts):
    """Dempster, Laird & Rubin (1977): cells 1/2 + t/4, (1 − t)/4, (1 − t)/4, t/4; params is t, stats how many are not
    fixed and have t, or 1 − t."""

    def probability(self, params):
        t = params
        return jnp.stack([jnp.full_like(t, 0.5), t / 4, (1 - t) / 4, (1 - t) / 4, t / 4])

    def sufficient(self, complete):
        return jnp.stack([complete[1] + complete[4], complete[2] + complete[3]])

    def m_step(self, params, stats):
        return stats[0] / stats.sum()

    def q(self, params, stats):
        return stats[0] * jnp.log(params) + stats[1] * jnp.log1p(-params)

    def to_free(self, params):
        return jnp.log(params) - jnp.log1p(-params)

    def from_free(self, free):
        return jax.nn.sigmoid(free)


LINKAGE = Linkage(((1, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)))
# Genotypes AA, AO, BB, BO, AB, OO and how many of each allele they have.
ALLELES = np.array([[2, 0, 0], [1, 0, 1], [0, 2, 0], [0, 1, 1], [1, 1, 0], [0, 0, 2]])


@jaxem.pytree
class Blood(Counts):
    """Blood groups A, B, AB, O in Hardy-Weinberg proportions (Rao 1973): params are the frequencies of A, B and O."""

    def probability(self, params):
        return jnp.array([1, 2, 1, 2, 2, 1]) * jnp.exp(ALLELES @ jnp.log(params))

    def sufficient(self, complete):
        return complete @ ALLELES

    def m_step(self, params, stats):
        return stats / stats.sum()

    def q(self, params, stats):
        return stats @ jnp.log(params)

    def to_free(self, params):
        return jnp.log(params[:2]) - jnp.log(params[2])

    def from_free(self, free):
        return jax.nn.softmax(jnp.append(free, 0.0))


BLOOD = Blood(((1, 1, 0, 0, 0, 0), (0, 0, 1, 1, 0, 0), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)))


class TestCounts:
    DATA = np.array([case("linkage-dlr")["data"]["counts"]], float)

    @pytest.mark.parametrize("method", INFORMATION)
    def test_linkage_in_every_way(self, float64, method):
        published = fit_of("linkage-dlr", "t")
        t = published["params"]["t"]
        found = jaxem.standard_errors(LINKAGE, jnp.asarray(t), self.DATA, method=method)
        relative(1 / found.natural_covariance[0, 0], published["observed_information"], 1e-8)
        relative(found.standard_errors, published["standard_errors"]["t"], 1e-8)
        if found.complete_information is not None:
            slope = t * (1 - t)  # dt/dv of the logit
            relative(found.complete_information[0, 0] / slope**2, published["complete_information"], 1e-8)

    def test_linkage_rate(self, float64):
        published = fit_of("linkage-dlr", "t")
        found = jaxem.convergence_rate(LINKAGE, jnp.asarray(published["params"]["t"]), self.DATA)
        assert found.converged
        relative(found.rate, published["em_rate"], 1e-7)
        relative(
            found.missing_information, 1 - published["observed_information"] / published["complete_information"], 1e-7
        )

    @pytest.mark.parametrize("method", ["hessian", "sem"])
    def test_blood_groups(self, float64, method):
        published = fit_of("abo-rao", "pqr")
        x = np.array([[case("abo-rao")["data"]["counts"][g] for g in ("A", "B", "AB", "O")]], float)
        result = jaxem.fit(BLOOD, x, params=jnp.array([0.3, 0.2, 0.5]), **TIGHT)
        relative(result.params, [published["params"][name] for name in "pqr"], 1e-6)
        found = jaxem.standard_errors(BLOOD, result.params, x, method=method)
        relative(found.standard_errors, [published["standard_errors"][name] for name in "pqr"], 1e-3)


# Published errors of mixtures and chains.


class Fitted(NamedTuple):
    """Published optima have all the digits: there is nothing left to fit."""

    model: jaxem.Model
    params: LatentParams


def of_deaths():
    x, days = deaths()
    given = fit_of("poisson-mixture-deaths", "K2")["params"]
    params = LatentParams(
        CategoricalParams(jnp.array(given["weights"])), PoissonParams(jnp.array(given["values"])[:, None])
    )
    return Fitted(jaxem.Mixture(jaxem.Poisson(), 2), params), x, days


@pytest.mark.parametrize("method", INFORMATION)
def test_deaths(float64, method):
    published = fit_of("poisson-mixture-deaths", "K2")["standard_errors"]
    result, x, days = of_deaths()
    found = jaxem.standard_errors(result.model, result.params, x, days, method=method)
    tolerance = case("poisson-mixture-deaths")["tolerance"]["standard_errors_rel"]
    own = found.standard_errors
    relative(own.latent.weights, np.repeat(published["weights"], 2), tolerance)
    relative(own.likelihood.rate[:, 0], published["values"], tolerance)
    # The weights without the last, then the rates.
    relative(found.natural_covariance[np.ix_([0, 2, 3], [0, 2, 3])], published["covariance"], 2 * tolerance)


@pytest.mark.parametrize("k", [2, 3])
def test_boys(float64, k):
    published = fit_of("binomial-mixture-saxony", f"K{k}")
    given, expected = published["params"], published["standard_errors"]
    tolerance = case("binomial-mixture-saxony")["tolerance"]
    x, number = np.split(table("saxony.csv", "males", "families"), 2, axis=1)
    params = LatentParams(
        CategoricalParams(jnp.array(given["weights"])), BinomialParams(jnp.array(given["values"])[:, None])
    )
    problem = jaxem.Mixture(jaxem.Binomial(12), k), params, x, number[:, 0]
    found = jaxem.standard_errors(*problem)
    relative(found.standard_errors.latent.weights[:-1], expected["weights"], tolerance["standard_errors_rel"])
    relative(found.standard_errors.likelihood.prob[:, 0], expected["values"], tolerance["standard_errors_rel"])
    np.testing.assert_allclose(jaxem.convergence_rate(*problem).rate, published["em_rate"], atol=1e-5)


def test_zero_inflated_counts(float64):
    """R's zeroinfl gives errors of the free coordinates: a log rate and a logit."""
    published = fit_of("zip-biochemists", "zip-intercepts")
    log_rate, logit = published["params"].values()
    params = LatentParams(
        CategoricalParams(jnp.ones(1)),
        ZeroInflatedParams(jax.nn.sigmoid(jnp.full((1, 1), logit)), PoissonParams(jnp.exp(jnp.full((1, 1), log_rate)))),
    )
    model = jaxem.Mixture(jaxem.ZeroInflated(jaxem.Poisson()), 1)
    found = jaxem.standard_errors(model, params, table("biochemists.csv", "art"))
    expected = published["standard_errors"]
    errors = np.sqrt(np.diagonal(found.covariance))  # of the inflation, then of the rate
    relative(errors, [expected["zero_(Intercept)"], expected["count_(Intercept)"]], 1e-5)


def test_a_log_joint(float64):
    """Written down as a log joint, the mixture has the errors and the rate that it has."""
    result, x, days = of_deaths()

    def log_joint(params, x, z):
        return jnp.log(params["weights"])[z] + jax.scipy.stats.poisson.logpmf(x[0], params["rate"][z])

    model = jaxem.LogJoint(log_joint, jaxem.Discrete(2), constraints={"weights": "simplex", "rate": "positive"})
    params = {"weights": result.params.latent.weights, "rate": result.params.likelihood.rate[:, 0]}
    expected = jaxem.standard_errors(result.model, result.params, x, days, method="oakes").standard_errors
    found = jaxem.standard_errors(model, params, x, days, method="oakes")
    relative(found.standard_errors["weights"], expected.latent.weights, 1e-6)
    relative(found.standard_errors["rate"], expected.likelihood.rate[:, 0], 1e-6)
    assert "rate[1]" in str(found)
    relative(
        jaxem.convergence_rate(model, params, x, days).rate, fit_of("poisson-mixture-deaths", "K2")["em_rate"], 1e-5
    )
    held = jaxem.Frozen(model, ["weights"])
    found = jaxem.standard_errors(held, params, x, days)
    np.testing.assert_array_equal(found.standard_errors["weights"], 0)


def test_rate_of_the_deaths(float64):
    result, x, days = of_deaths()
    published = fit_of("poisson-mixture-deaths", "K2")["em_rate"]
    found = jaxem.convergence_rate(result.model, result.params, x, days, num=2)
    np.testing.assert_allclose(found.rate, published, atol=1e-5)

    # All eigenvalues, from the whole Jacobian.
    x, days = jnp.asarray(x), jnp.asarray(days)
    model, chart, _ = chart_at(result.model, result.params, x, days)
    step = em_map(model, result.params, chart, x, days)
    whole = np.linalg.eigvals(np.asarray(jax.jit(lambda u: jacobian(step, u))(jnp.zeros(3)))).real
    relative(found.eigenvalues, np.sort(whole)[::-1][:2], 1e-6)
    other = jaxem.convergence_rate(result.model, result.params, x, days, num=2, key=jax.random.key(5))
    relative(other.eigenvalues, found.eigenvalues, 1e-6)


def of_faithful():
    given = fit_of("se-gmm-faithful-EEE2", "observed-information")["params"]
    covariance = [[given["cov_1_11"], given["cov_1_21"]], [given["cov_1_21"], given["cov_1_22"]]]
    params = LatentParams(
        CategoricalParams(jnp.array([given["weight_1"], 1 - given["weight_1"]])),
        GaussianParams(
            jnp.array([[given["mean_11"], given["mean_12"]], [given["mean_21"], given["mean_22"]]]),
            jnp.array(covariance),
        ),
    )
    return Fitted(jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 2), params)


def test_old_faithful(float64):
    published = fit_of("se-gmm-faithful-EEE2", "observed-information")
    result = of_faithful()
    found = jaxem.standard_errors(result.model, result.params, faithful())
    own = found.standard_errors
    ours = [own.latent.weights[0], *own.likelihood.mean.ravel(), *own.likelihood.covariance[[0, 1, 1], [0, 0, 1]]]
    relative(
        ours,
        list(published["standard_errors"].values()),
        case("se-gmm-faithful-EEE2")["tolerance"]["standard_errors_rel"],
    )
    chosen = [0, 2, 3, 4, 5, 6, 8, 9]
    away = np.abs(found.natural_covariance[np.ix_(chosen, chosen)] - np.array(published["covariance"]))
    assert np.max(away / np.outer(ours, ours)) < 1e-3

    low, high = found.confidence_intervals(0.95)
    mean, error = result.params.likelihood.mean, own.likelihood.mean
    relative(low.likelihood.mean, mean - 1.959963984540054 * error, 1e-9)
    relative(high.likelihood.mean, mean + 1.959963984540054 * error, 1e-9)


def of_earthquakes():
    x = table("earthquakes.csv", "count")
    given = fit_of("se-hmm-earthquakes-K2", "observed-information")["params"]
    a, b = given["transmat_12"], given["transmat_21"]
    params = LatentParams(
        MarkovChainParams(jnp.array([1.0, 0.0]), jnp.array([[1 - a, a], [b, 1 - b]])),
        PoissonParams(jnp.array([[given["rate_1"]], [given["rate_2"]]])),
    )
    return Fitted(jaxem.HMM(jaxem.Poisson(), 2), params), x


@pytest.mark.parametrize("method", ["hessian", "sem"])
def test_earthquakes(float64, method):
    """The chain begins in its first state for certain: that is on the boundary, and stays out of the information."""
    published = fit_of("se-hmm-earthquakes-K2", "observed-information")["standard_errors"]
    result, x = of_earthquakes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jaxem.standard_errors(result.model, result.params, x, method=method)
    own = found.standard_errors
    ours = [own.latent.transition[0, 1], own.latent.transition[1, 0], *own.likelihood.rate[:, 0]]
    relative(ours, list(published.values()), case("se-hmm-earthquakes-K2")["tolerance"]["standard_errors_rel"])
    np.testing.assert_array_equal(own.latent.initial, 0)
    assert np.all(found.held.latent.initial)
    assert not np.any(found.held.latent.transition)


def test_latent_classes_by_scores(float64):
    """poLCA inverts the sum of the squared scores."""
    x = table("cheating.csv", "LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM") - 1
    published = fit_of("lca-cheating", "k2")["standard_errors"]
    given = fit_of("lca-cheating", "k2")["params"]
    names = list(given["item_probabilities"])
    start = LatentParams(
        CategoricalParams(jnp.array(given["class_shares"])),
        BernoulliParams(jnp.array([[given["item_probabilities"][name][c][1] for name in names] for c in (0, 1)])),
    )
    result = jaxem.fit(jaxem.Mixture(jaxem.Bernoulli(), 2), x, params=start, **TIGHT)
    rows, count = jaxem.collapse_duplicates(x)
    for data, weights in ((x, None), (rows, count)):
        found = jaxem.standard_errors(result.model, result.params, data, weights, method="scores").standard_errors
        relative(found.latent.weights, published["class_shares"], 1e-3)
        items = np.array([[published["item_probabilities"][name][c][1] for name in names] for c in (0, 1)])
        relative(found.likelihood.prob, items, 1e-3)


# Numbers by hand.


def test_one_gaussian(float64):
    """σ²/n of the mean, 2σ⁴/n of the variance; the sandwich has (μ₄ − σ⁴)/n, and weights are counts."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (60, 1))
    model = jaxem.Mixture(jaxem.Gaussian(), 1)

    def optimum(rows):
        likelihood = GaussianParams(jnp.asarray(rows.mean()).reshape(1, 1), jnp.asarray(rows.var()).reshape(1, 1, 1))
        return LatentParams(CategoricalParams(jnp.ones(1)), likelihood)

    found = jaxem.standard_errors(model, optimum(x), x)
    variance, n = x.var(), len(x)
    relative(found.standard_errors.likelihood.mean[0, 0], np.sqrt(variance / n), 1e-8)
    relative(found.standard_errors.likelihood.covariance[0, 0, 0], np.sqrt(2 * variance**2 / n), 1e-8)
    assert found.standard_errors.latent.weights == 0

    counts = np.random.default_rng(1).integers(0, 4, n).astype(float)
    rows = np.repeat(x, counts.astype(int), axis=0)
    robust = jaxem.standard_errors(model, optimum(rows), x, counts, method="sandwich").standard_errors
    variance, n = rows.var(), len(rows)
    fourth = np.mean((rows - rows.mean()) ** 4)
    relative(robust.likelihood.mean[0, 0], np.sqrt(variance / n), 1e-8)
    relative(robust.likelihood.covariance[0, 0, 0], np.sqrt((fourth - variance**2) / n), 1e-8)


def test_frozen_parameters(float64):
    """Held weights and a held mean: as if the problem had only the other parameters."""
    x, days = deaths()
    inner = jaxem.Mixture(jaxem.Poisson(), 2)
    start = LatentParams(CategoricalParams(jnp.array([0.3, 0.7])), PoissonParams(jnp.array([[1.2], [2.6]])))
    model = jaxem.Frozen(inner, {"rate": [True, False]})
    result = jaxem.fit(model, x, weights=days, params=start, **TIGHT)
    found = jaxem.standard_errors(result.model, result.params, x, days)
    assert found.standard_errors.likelihood.rate[0, 0] == 0
    np.testing.assert_array_equal(found.held.likelihood.rate, [[True], [False]])

    def objective(free):
        weights = jnp.stack([free[0], 1 - free[0]])
        params = LatentParams(CategoricalParams(weights), PoissonParams(jnp.stack([jnp.asarray([1.2]), free[1:]])))
        return -inner.e_step(params, jnp.asarray(x), jnp.asarray(days)).log_likelihood

    at = jnp.array([result.params.latent.weights[0], result.params.likelihood.rate[1, 0]])
    covariance = np.linalg.inv(jax.jit(jax.hessian(objective))(at))
    relative(found.natural_covariance[np.ix_([0, 3], [0, 3])], covariance, 1e-6)
    assert jaxem.convergence_rate(result.model, result.params, x, days).rate < 0.9956


@pytest.mark.parametrize("method", ["hessian", "sem"])
def test_a_frozen_weight_among_three(float64, method):
    """The free coordinates are ratios of weights: what holds one of them is a curve in them, not a coordinate."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 1)) + np.repeat([-6.0, 0.0, 5.0], 100)[:, None]
    inner = jaxem.Mixture(jaxem.Gaussian(jaxem.Tied()), 3)
    start = LatentParams(
        CategoricalParams(jnp.array([0.2, 0.4, 0.4])),
        GaussianParams(jnp.array([[-6.0], [0.0], [5.0]]), jnp.ones((1, 1))),
    )
    model = jaxem.Frozen(inner, {"weights": [True, False, False], "mean": [False, False, True]})
    result = jaxem.fit(model, x, params=start, **TIGHT)
    found = jaxem.standard_errors(result.model, result.params, x, method=method)

    def objective(free):
        weights = jnp.stack([jnp.asarray(0.2), free[0], 0.8 - free[0]])
        mean = jnp.stack([free[1], free[2], jnp.asarray(5.0)])[:, None]
        params = LatentParams(CategoricalParams(weights), GaussianParams(mean, free[3].reshape(1, 1)))
        return -inner.e_step(params, jnp.asarray(x)).log_likelihood

    fitted = result.params
    at = jnp.array([fitted.latent.weights[1], *fitted.likelihood.mean[:2, 0], fitted.likelihood.covariance[0, 0]])
    covariance = np.linalg.inv(jax.jit(jax.hessian(objective))(at))
    chosen = np.ix_([1, 3, 4, 6], [1, 3, 4, 6])
    relative(np.diagonal(found.natural_covariance[chosen]), np.diagonal(covariance), 1e-6)
    np.testing.assert_allclose(found.standard_errors.latent.weights[[0]], 0, atol=1e-9)
    np.testing.assert_allclose(found.standard_errors.likelihood.mean[2], 0, atol=1e-9)


def test_a_weight_of_zero_is_left_out(float64):
    """Nothing of an unused component is known, and the others have the errors that they have without it."""
    result, x, days = of_deaths()
    params = LatentParams(
        CategoricalParams(jnp.append(result.params.latent.weights, 0.0)),
        PoissonParams(jnp.append(result.params.likelihood.rate, jnp.array([[7.0]]), axis=0)),
    )
    three = jaxem.Mixture(jaxem.Poisson(), 3)
    with pytest.warns(jaxem.InferenceWarning, match=r"likelihood.rate\[2, 0\]"):
        found = jaxem.standard_errors(three, params, x, days).standard_errors
    expected = jaxem.standard_errors(result.model, result.params, x, days).standard_errors
    relative(found.latent.weights[:2], expected.latent.weights, 1e-6)
    relative(found.likelihood.rate[:2], expected.likelihood.rate, 1e-6)
    assert found.latent.weights[2] == 0
    assert np.isnan(found.likelihood.rate[2, 0])


def test_factors_are_determined_up_to_a_rotation(float64):
    """Means and noise have errors whatever the rotation; loadings have none, unless there is only one factor."""
    x = table("usarrests.csv", "Murder", "Assault", "UrbanPop", "Rape")
    model = jaxem.PPCA(2).calibrate(jnp.asarray(x))
    params = model.closed_form(jnp.asarray(x))
    turn = jnp.array([[0.8, 0.6], [-0.6, 0.8]])
    params = dataclasses.replace(params, loadings=params.loadings @ turn)
    with pytest.warns(jaxem.InferenceWarning, match=r"singular in 1 directions.*loadings\[0, 0\]"):
        found = jaxem.standard_errors(model, params, x)
    assert np.all(np.isnan(found.standard_errors.loadings))
    relative(
        found.standard_errors.mean,
        np.sqrt(np.diagonal(params.loadings @ params.loadings.T + params.noise * np.eye(4)) / len(x)),
        1e-6,
    )
    # σ² is a mean of N (D − L) squares: twice its square over their number.
    relative(found.standard_errors.noise, params.noise * np.sqrt(2 / (len(x) * 2)), 1e-6)

    one = jaxem.PPCA(1).calibrate(jnp.asarray(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jaxem.standard_errors(one, one.closed_form(jnp.asarray(x)), x)
    assert np.all(found.identified.loadings)
    assert np.all(found.standard_errors.loadings > 0)


def test_wrappers(float64):
    """Blocks change nothing; a prior of nearly no strength changes next to nothing, a strong one makes errors smaller."""
    result, x, days = of_deaths()
    plain = jaxem.standard_errors(result.model, result.params, x, days)
    blocks = jaxem.standard_errors(jaxem.Chunked(result.model, 4), result.params, x, days)
    relative(blocks.natural_covariance, plain.natural_covariance, 1e-8)

    start = {"params": result.params, **TIGHT, "key": None}
    for strength in (1e-6, 50.0):
        prior = jaxem.fit(jaxem.WithPrior(jaxem.Mixture(jaxem.Poisson(), 2), strength), x, weights=days, **start)
        found, other = (
            jaxem.standard_errors(prior.model, prior.params, x, days, method=method) for method in ("hessian", "sem")
        )
        relative(other.natural_covariance, found.natural_covariance, 1e-5)
        if strength < 1:
            relative(found.natural_covariance, plain.natural_covariance, 1e-2)
        else:
            assert np.all(np.diagonal(found.natural_covariance) < np.diagonal(plain.natural_covariance))


def test_float32(float32):
    """Old Faithful in float32: two digits, without a warning."""
    published = fit_of("se-gmm-faithful-EEE2", "observed-information")
    x = faithful().astype(np.float32)
    model, params = of_faithful()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = jaxem.standard_errors(model, params, x).standard_errors
    errors = published["standard_errors"]
    relative(found.likelihood.mean.ravel(), [errors[f"mean_{k}{d}"] for k in (1, 2) for d in (1, 2)], 1e-2)


# What is said.


def test_params_that_are_no_optimum(float64):
    result, x, days = of_deaths()
    off = LatentParams(result.params.latent, PoissonParams(result.params.likelihood.rate + 0.1))
    with pytest.warns(jaxem.InferenceWarning, match="standard errors from the optimum; fit with a smaller tol"):
        jaxem.standard_errors(result.model, off, x, days)
    # Two equal components: a saddle.
    equal = LatentParams(CategoricalParams(jnp.array([0.5, 0.5])), PoissonParams(jnp.full((2, 1), 2.156934306569343)))
    with pytest.warns(jaxem.InferenceWarning, match="no maximum"):
        found = jaxem.standard_errors(result.model, equal, x, days)
    assert np.all(np.isnan(found.standard_errors.likelihood.rate))


def test_refusals(float64):
    result, x = of_earthquakes()
    for method in ("sandwich", "scores"):
        with pytest.raises(jaxem.UnsupportedError, match=r"flat sequences depend on each other: pad them"):
            jaxem.standard_errors(result.model, result.params, x, method=method)
    with pytest.raises(ValueError, match="method is one of hessian, oakes, louis, sem"):
        jaxem.standard_errors(result.model, result.params, x, method="fisher")
    with pytest.raises(ValueError, match="num must be at most 4"):
        jaxem.convergence_rate(result.model, result.params, x, num=5)
    found = jaxem.standard_errors(result.model, result.params, x)
    with pytest.raises(ValueError, match="between 0 and 1; got 95"):
        found.confidence_intervals(95)
    assert "latent.transition[0, 1]" in str(found)

    arrests = table("usarrests.csv", "Murder", "Assault", "UrbanPop", "Rape")
    expanded = jaxem.PPCA(1).calibrate(jnp.asarray(arrests))
    with pytest.raises(ValueError, match="parameter-expanded"):
        jaxem.standard_errors(expanded, expanded.closed_form(jnp.asarray(arrests)), arrests, method="sem")


def test_gap_of_the_bound(float64):
    """KL(q ‖ posterior), summed over rows by hand."""
    result, x, days = of_deaths()
    x, days = jnp.asarray(x), jnp.asarray(days)
    posterior, gap = jax.jit(result.model.posterior)(result.params, x), jax.jit(jaxem.kl_gap)
    np.testing.assert_allclose(gap(result.model, result.params, x, posterior, days), 0, atol=1e-9)
    q = jnp.full_like(posterior, 0.5)
    expected = jnp.sum(days[:, None] * q * (jnp.log(q) - jnp.log(posterior)))
    relative(gap(result.model, result.params, x, q, days), expected, 1e-9)


def test_what_is_held_has_a_name(float64):
    """Through wrappers, and through members that are models."""
    inner = jaxem.Mixture(jaxem.Poisson(), 2)
    params = LatentParams(CategoricalParams(jnp.array([0.3, 0.7])), PoissonParams(jnp.ones((2, 3))))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(inner.held(params)))
    frozen = jaxem.Chunked(jaxem.Frozen(jaxem.Frozen(inner, {"rate": [True, False]}), ["weights"]), 4)
    held = frozen.held(params)
    np.testing.assert_array_equal(held.latent.weights, [True, True])
    np.testing.assert_array_equal(held.likelihood.rate, [[True] * 3, [False] * 3])

    members = jaxem.Mixture(jaxem.Frozen(jaxem.PPCA(1), ["noise"]), 2)
    own = jaxem.FactorParams(jnp.zeros((2, 3)), jnp.ones((2, 3, 1)), jnp.ones(2))
    held = members.held(LatentParams(CategoricalParams(jnp.array([0.3, 0.7])), own))
    np.testing.assert_array_equal(held.likelihood.noise, [True, True])
    assert not np.any(held.likelihood.loadings)
