"""Models from their log joint alone: against closed forms, enumeration, and integrals that are known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm, poisson

import jaxem

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
POINTS = np.concatenate([RNG.normal(size=(30, 2)), RNG.normal(size=(30, 2)) * [1, 2] + 3])
COUNTS = np.concatenate([RNG.poisson([6.0, 1.0], (20, 2)), RNG.poisson([2.0, 9.0], (25, 2))])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def gaussian(params, x, z):
    lower = jnp.linalg.cholesky(params["covariance"][z])
    y = jax.scipy.linalg.solve_triangular(lower, x - params["mean"][z], lower=True)
    return jnp.log(params["weights"][z]) + jnp.sum(norm.logpdf(y)) - jnp.sum(jnp.log(jnp.diagonal(lower)))


def poissons(params, x, z):
    return jnp.log(params["weights"][z]) + jnp.sum(poisson.logpmf(x, params["rate"][z]))


POISSONS = {"weights": np.array([0.4, 0.6]), "rate": np.array([[5.0, 2.0], [3.0, 6.0]])}
BOUNDS = {"weights": "simplex", "rate": "positive"}


class TestLinkage:
    """Dempster, Laird & Rubin 1977: 197 animals, cells ½ + t/4, (1 − t)/4, (1 − t)/4, t/4, the first of two kinds."""

    COUNTS = np.array([125.0, 18.0, 20.0, 34.0])

    @staticmethod
    def model():
        def log_joint(t, x, z):
            cells = jnp.array([[0.5, t / 4], [(1 - t) / 4, 0], [(1 - t) / 4, 0], [t / 4, 0]])
            return jnp.log(cells[x, z])

        return jaxem.LogJoint(
            lambda p, x, z: log_joint(p["t"], x, z),
            latent=jaxem.Discrete(2),
            init=lambda key: {"t": jnp.array(0.5)},
            constraints={"t": "unit interval"},
        )

    @functools.cached_property
    def result(self):
        return jaxem.fit(
            self.model(), np.arange(4), weights=self.COUNTS, key=KEY, stopping=jaxem.ParameterChange(1e-14)
        )

    def test_the_optimum(self, float64):
        result = self.result
        assert result.converged
        assert result.params["t"] == pytest.approx(0.626821497870982, abs=1e-12)
        assert result.log_likelihood == pytest.approx(-205.71588704589828, rel=1e-12)
        assert result.num_free_parameters == 1

    def test_the_rate(self, float64):
        rate = jaxem.convergence_rate(self.result.model, self.result.params, np.arange(4), self.COUNTS)
        assert rate.rate == pytest.approx(0.13277873374559881, abs=1e-7)

    @pytest.mark.parametrize("method", ["hessian", "oakes", "louis", "sem"])
    def test_the_information(self, float64, method):
        errors = jaxem.standard_errors(self.result.model, self.result.params, np.arange(4), self.COUNTS, method=method)
        assert 1 / errors.natural_covariance[0, 0] == pytest.approx(377.5169003946873, abs=1e-3)

    def test_the_law_of_lanes_with_whole_numbers_as_data(self):
        """They cannot hold NaN: the law asks for none."""

        def m_step(params, expect):
            second = expect(lambda x, z: ((x == 0) & (z == 1)) | (x == 3))
            return {"t": second / (second + expect(lambda x, z: (x == 1) | (x == 2)))}

        model = jaxem.LogJoint(
            self.model().log_joint, jaxem.Discrete(2), constraints={"t": "unit interval"}, m_step=m_step
        )
        cells, start = np.repeat(np.arange(4), [25, 4, 4, 7]), {"t": np.array(0.4)}
        skip = set(jaxem.testing.LAWS) - {"lanes"}
        outcome = jaxem.testing.check_model(model, cells, key=KEY, params=start, skip=skip)
        assert outcome["lanes"] == "passed"

    def test_its_first_step_is_the_published_one_when_the_m_step_is_whole(self, float64):
        model = jaxem.LogJoint(self.model().log_joint, jaxem.Discrete(2), constraints={"t": "unit interval"}, steps=12)
        step = jax.jit(lambda p: model.m_step(p, model.e_step(p, jnp.arange(4), jnp.asarray(self.COUNTS)).stats))
        params = {"t": jnp.array(0.5)}
        for published in (0.608247423, 0.624321051, 0.626488879):
            params = step(params)
            assert params["t"] == pytest.approx(published, abs=1e-9)


class TestAgainstClosedForms:
    def test_gaussian_mixture(self, float64):
        start = {
            "weights": np.array([0.5, 0.5]),
            "mean": POINTS[[0, 50]],
            "covariance": np.stack([np.cov(POINTS.T)] * 2),
        }
        model = jaxem.LogJoint(
            gaussian, jaxem.Discrete(2), constraints={"weights": "simplex", "covariance": "positive definite"}
        )
        closed = jaxem.Mixture(jaxem.Gaussian(), 2)
        same = jaxem.LatentParams(
            jaxem.CategoricalParams(start["weights"]), jaxem.GaussianParams(start["mean"], start["covariance"])
        )
        ours = jaxem.fit(model, POINTS, params=start, tol=1e-13, max_steps=5000)
        theirs = jaxem.fit(closed, POINTS, params=same, tol=1e-13, max_steps=5000)
        assert ours.trace[0] == pytest.approx(theirs.trace[0], rel=1e-12)
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-9)
        np.testing.assert_allclose(ours.params["mean"], theirs.params.likelihood.mean, rtol=1e-4)
        assert ours.num_free_parameters == theirs.num_free_parameters
        np.testing.assert_allclose(
            ours.model.posterior(ours.params, POINTS), theirs.model.posterior(theirs.params, POINTS), atol=1e-4
        )

    @pytest.mark.parametrize("shape", ["flat", "padded"])
    def test_hidden_markov_model(self, float64, shape):
        model = jaxem.LogJoint(
            jaxem.ChainLogJoint(
                initial=lambda p, z: jnp.log(p["initial"][z]),
                transition=lambda p, z, z_next: jnp.log(p["transition"][z, z_next]),
                emission=poissons_of_a_step,
            ),
            jaxem.Chain(2),
            constraints={"initial": "simplex", "transition": "simplex", "rate": "positive"},
        )
        x = COUNTS[:44].astype(float)
        data = jaxem.Data(x, starts=np.arange(44) % 11 == 0)
        if shape == "padded":
            lengths, seen = np.array([11, 8, 11, 0]), np.ones((4, 11), bool)
            seen[0, 3] = False
            data = jaxem.Data(x.reshape(4, 11, 2), mask=seen, lengths=lengths)
        start = {
            "initial": np.array([0.3, 0.7]),
            "transition": np.array([[0.8, 0.2], [0.4, 0.6]]),
            "rate": np.array([[5.0, 2.0], [3.0, 6.0]]),
        }
        closed = jaxem.HMM(jaxem.Poisson(), 2)
        same = jaxem.LatentParams(
            jaxem.MarkovChainParams(start["initial"], start["transition"]), jaxem.PoissonParams(start["rate"])
        )
        ours = jaxem.fit(model, data, params=start, tol=1e-11, max_steps=3000)
        theirs = jaxem.fit(closed, data, params=same, tol=1e-11, max_steps=3000)
        assert ours.trace[0] == pytest.approx(theirs.trace[0], rel=1e-12)
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-7)
        assert ours.weight == theirs.weight
        np.testing.assert_array_equal(model.predict(start, data), closed.predict(same, data))
        np.testing.assert_allclose(model.posterior(start, data), closed.posterior(same, data), atol=1e-12)

    def test_a_closed_m_step_is_the_closed_form(self, float64):
        stats, m_step = poisson_sums, poisson_m_step
        closed = jaxem.Mixture(jaxem.Poisson(), 2)
        same = jaxem.LatentParams(jaxem.CategoricalParams(POISSONS["weights"]), jaxem.PoissonParams(POISSONS["rate"]))
        by_expectation = jaxem.LogJoint(
            poissons, jaxem.Discrete(2), constraints=BOUNDS, m_step=lambda p, expect: m_step(p, expect(stats))
        )
        by_sums = jaxem.LogJoint(poissons, jaxem.Discrete(2), constraints=BOUNDS, m_step=m_step, statistics=stats)
        chunked = jaxem.Chunked(by_sums, 7)
        theirs = jaxem.fit(closed, COUNTS, params=same, tol=1e-9)
        for model in (by_expectation, by_sums, chunked):
            ours = jaxem.fit(model, COUNTS, params=POISSONS, tol=1e-9)
            assert ours.steps == theirs.steps
            np.testing.assert_allclose(ours.params["rate"], theirs.params.likelihood.rate, rtol=1e-9)

    def test_many_starts_find_it_in_float32(self):
        def init(key, data):
            return {"weights": jnp.array([0.5, 0.5]), "rate": 1 + 8 * jax.random.uniform(key, (2, 2))}

        model = jaxem.LogJoint(poissons, jaxem.Discrete(2), init, constraints=BOUNDS)
        ours = jaxem.fit(model, COUNTS.astype(np.float32), key=KEY, num_starts=6)
        theirs = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), COUNTS, key=KEY, num_starts=6)
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-5)
        assert ours.params["rate"].dtype == jnp.float32


def poissons_of_a_step(params, x, z):
    return jnp.sum(poisson.logpmf(x, params["rate"][z]))


def poisson_sums(x, z):
    one = jax.nn.one_hot(z, 2)
    return {"n": one, "x": one[:, None] * x}


def poisson_m_step(params, sums):
    return {"weights": sums["n"] / jnp.sum(sums["n"]), "rate": sums["x"] / sums["n"][:, None]}


class TestDiscrete:
    def test_a_product_is_every_pair(self, float64):
        """Two binary causes of three binary effects: against a sum over all four pairs, in numpy."""

        params = {
            "p": np.array([0.3, 0.7]),
            "r": np.array([0.6, 0.4]),
            "base": np.zeros(3),
            "first": np.array([1.0, -2.0, 0.5]),
            "second": np.array([-1.0, 0.5, 3.0]),
        }
        x = np.random.default_rng(3).integers(0, 2, (12, 3)).astype(float)
        model = jaxem.LogJoint(two_causes, jaxem.Discrete((2, 2)), constraints={"p": "simplex", "r": "simplex"})
        joint = np.zeros((12, 2, 2))
        for i, j in itertools.product(range(2), repeat=2):
            logit = params["base"] + i * params["first"] + j * params["second"]
            joint[:, i, j] = params["p"][i] * params["r"][j] * np.prod(np.exp(x * logit) / (1 + np.exp(logit)), axis=1)
        evidence = joint.sum((1, 2))
        np.testing.assert_allclose(model.log_likelihood(params, x), np.log(evidence), rtol=1e-12)
        np.testing.assert_allclose(model.posterior(params, x), joint / evidence[:, None, None], atol=1e-12)
        first, second = model.predict(params, x)
        best = joint.reshape(12, 4).argmax(1)
        np.testing.assert_array_equal(2 * first + second, best)
        assert model.num_free_parameters(params) == 11

    def test_impossible_values_and_weight_0(self, float64):
        """−inf for a value of z is a value that cannot be; an example that nothing allows has weight 0 and counts not."""

        def log_joint(params, x, z):
            return jnp.where((x == z) | (x == 2), jnp.log(params["p"][z]), -jnp.inf)

        model = jaxem.LogJoint(log_joint, jaxem.Discrete(2), constraints={"p": "simplex"})
        x, weights = np.array([0, 0, 0, 1, 2, 9]), np.array([1.0, 1, 1, 1, 1, 0])
        result = jaxem.fit(model, x, weights=weights, params={"p": np.array([0.5, 0.5])}, tol=1e-14)
        np.testing.assert_allclose(result.params["p"], [0.75, 0.25], atol=1e-6)
        impossible = jaxem.run(model, {"p": jnp.array([0.5, 0.5])}, jnp.asarray(x))
        assert jaxem.Status(int(impossible.status)) == jaxem.Status.ZERO_LIKELIHOOD

    def test_any_pytree_is_data(self, float64):
        data = {"n": COUNTS[:, 0], "exposure": np.linspace(1.0, 2.0, 45)}

        def log_joint(params, x, z):
            return jnp.log(params["w"][z]) + poisson.logpmf(x["n"], params["rate"][z] * x["exposure"])

        model = jaxem.LogJoint(log_joint, jaxem.Discrete(2), constraints={"w": "simplex", "rate": "positive"})
        result = jaxem.fit(model, data, params={"w": np.full(2, 0.5), "rate": np.array([1.0, 5.0])})
        assert result.converged
        assert result.num_examples == 45

    def test_rare_values_keep_their_curvature(self, float64):
        """The curvature comes from some of the rows; a component with five of five thousand must not be missed."""
        rng = np.random.default_rng(1)
        x = np.concatenate([rng.poisson(3.0, 4995), rng.poisson(60.0, 5)])[:, None].astype(float)
        start = {"weights": np.array([0.9, 0.1]), "rate": np.array([[2.0], [30.0]])}
        model = jaxem.LogJoint(poissons, jaxem.Discrete(2), constraints=BOUNDS)
        same = jaxem.LatentParams(jaxem.CategoricalParams(start["weights"]), jaxem.PoissonParams(start["rate"]))
        ours = jaxem.fit(model, x, params=start, tol=1e-10)
        theirs = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), x, params=same, tol=1e-10)
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-9)
        assert ours.steps < 40


def factor(params, x, z):
    """One factor: x = m + w z + noise."""
    return norm.logpdf(z) + jnp.sum(norm.logpdf(x, params["m"] + params["w"] * z, params["sd"]))


FACTOR = {"m": np.array([0.5, -1.0, 2.0]), "w": np.array([1.0, -0.5, 2.0]), "sd": np.array([0.7, 1.2, 0.4])}


def factor_evidence(x):
    covariance = np.outer(FACTOR["w"], FACTOR["w"]) + np.diag(FACTOR["sd"] ** 2)
    away = x - FACTOR["m"]
    return -0.5 * (
        np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away) + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )


class TestGaussianLatent:
    X = RNG.normal(size=(9, 3)) * 2

    @pytest.mark.parametrize("method", [jaxem.Quadrature(3), jaxem.Laplace()], ids=str)
    def test_exact_where_the_posterior_is_gaussian(self, float64, method):
        model = jaxem.LogJoint(factor, jaxem.GaussianLatent(method=method))
        np.testing.assert_allclose(model.log_likelihood(FACTOR, self.X), factor_evidence(self.X), rtol=1e-10)
        mean, covariance = model.posterior(FACTOR, self.X)
        precision = 1 + np.sum(FACTOR["w"] ** 2 / FACTOR["sd"] ** 2)
        expected = (self.X - FACTOR["m"]) @ (FACTOR["w"] / FACTOR["sd"] ** 2) / precision
        np.testing.assert_allclose(mean[:, 0], expected, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(covariance[:, 0, 0], 1 / precision, rtol=1e-7)
        np.testing.assert_allclose(model.predict(FACTOR, self.X), expected, rtol=1e-6, atol=1e-8)

    def test_two_dimensions_by_every_method(self, float64):
        def log_joint(params, x, z):
            eta = params["a"] @ z + params["b"]
            return jnp.sum(norm.logpdf(z)) + jnp.sum(x * eta - jax.nn.softplus(eta))

        params = {"a": np.array([[1.0, 0.3], [-0.5, 1.0], [0.8, 0.8]]), "b": np.array([0.2, -0.4, 0.0])}
        x = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
        # A fine grid of the prior's plane.
        axis = np.linspace(-8, 8, 401)
        z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        table = jax.vmap(jax.vmap(log_joint, (None, None, 0)), (None, 0, None))(params, x, z)
        exact = np.log(np.sum(np.exp(table), axis=1) * (axis[1] - axis[0]) ** 2)
        tolerance = {
            jaxem.Quadrature(15): 1e-6,
            jaxem.Quadrature(25, adaptive=False): 1e-6,
            jaxem.Laplace(): 0.06,
            jaxem.MonteCarlo(4000, KEY): 0.02,
        }
        for method, worst in tolerance.items():
            model = jaxem.LogJoint(log_joint, jaxem.GaussianLatent(2, method))
            found = model.log_likelihood(params, x)
            assert np.max(np.abs(found - exact)) < worst, method
        # Probabilities of all answers sum to 1.
        assert np.sum(np.exp(exact)) == pytest.approx(1, abs=1e-9)

    def test_laplace_climbs_its_own_likelihood(self, float64):
        model = jaxem.LogJoint(factor, jaxem.GaussianLatent(method=jaxem.Laplace()), constraints={"sd": "positive"})
        rng = np.random.default_rng(2)
        x = FACTOR["m"] + rng.normal(size=(60, 1)) * FACTOR["w"] + rng.normal(size=(60, 3)) * FACTOR["sd"]
        result = jaxem.fit(model, x, params=FACTOR, tol=1e-10, max_steps=300)
        by_quadrature = jaxem.LogJoint(
            factor, jaxem.GaussianLatent(method=jaxem.Quadrature(3)), constraints={"sd": "positive"}
        )
        again = jaxem.fit(by_quadrature, x, params=FACTOR, tol=1e-10, algorithm=jaxem.Anderson(), max_steps=3000)
        assert result.log_likelihood == pytest.approx(again.log_likelihood, rel=1e-6)
        assert np.all(np.diff(result.trace) >= -1e-9)


class TestSampled:
    def test_draws_from_the_posterior_give_the_evidence_exactly(self, float64):
        precision = 1 + np.sum(FACTOR["w"] ** 2 / FACTOR["sd"] ** 2)

        def sampler(key, params, x):
            mean = jnp.sum((x - params["m"]) * params["w"] / params["sd"] ** 2) / precision
            z = mean + jax.random.normal(key) / jnp.sqrt(precision)
            return z, norm.logpdf(z, mean, 1 / jnp.sqrt(precision))

        model = jaxem.LogJoint(factor, jaxem.Sampled(sampler, 5, KEY))
        x = TestGaussianLatent.X
        np.testing.assert_allclose(model.log_likelihood(FACTOR, x), factor_evidence(x), rtol=1e-9)
        again = model.redraw(jax.random.key(7))
        assert not np.allclose(again.posterior(FACTOR, x).z, model.posterior(FACTOR, x).z)

    def test_a_wide_proposal_is_corrected(self, float64):
        def sampler(key, params, x):
            z = 1.5 * jax.random.normal(key)
            return z, norm.logpdf(z, 0, 1.5)

        model = jaxem.LogJoint(factor, jaxem.Sampled(sampler, 40_000, KEY))
        x = TestGaussianLatent.X[:3]
        np.testing.assert_allclose(model.log_likelihood(FACTOR, x), factor_evidence(x), atol=0.1)

    def test_what_it_refuses(self):
        with pytest.raises(ValueError, match="num_samples"):
            jaxem.Sampled(lambda key, params, x: (0.0, 0.0), 0, KEY)
        model = jaxem.LogJoint(factor, jaxem.Sampled(lambda key, params, x: 1.0, 3, KEY))
        with pytest.raises(ValueError, match=r"must return \(z, log_density"):
            jaxem.fit(model, TestGaussianLatent.X, params=FACTOR)


class TestPrior:
    def test_the_map_of_a_rate_is_the_known_one(self, float64):
        """One Poisson rate with a Gamma(3, 2) prior: (Σx + 2)/(n + 2)."""
        model = jaxem.LogJoint(
            lambda p, x, z: poisson.logpmf(x, p["rate"]),
            jaxem.Discrete(1),
            constraints={"rate": "positive"},
            log_prior=lambda p: 2 * jnp.log(p["rate"]) - 2 * p["rate"],
        )
        x = COUNTS[:, 0]
        result = jaxem.fit(model, x, params={"rate": np.array(1.0)}, tol=1e-14)
        assert result.params["rate"] == pytest.approx((x.sum() + 2) / (len(x) + 2), rel=1e-7)
        assert result.objective != result.log_likelihood

    def test_what_is_frozen_stays(self, float64):
        model = jaxem.Frozen(jaxem.LogJoint(poissons, jaxem.Discrete(2), constraints=BOUNDS), ["weights"])
        result = jaxem.fit(model, COUNTS, params=POISSONS)
        np.testing.assert_array_equal(result.params["weights"], POISSONS["weights"])
        assert result.num_free_parameters == 4
        assert result.converged
        stray = jaxem.Frozen(jaxem.LogJoint(poissons, jaxem.Discrete(2), constraints=BOUNDS), ["height"])
        with pytest.raises(ValueError, match="height cannot be held: the parameters are rate, weights"):
            jaxem.fit(stray, COUNTS, params=POISSONS)


class TestMessages:
    """Every error names what was given and what was expected."""

    def fails(self, match, **changes):
        given = {"log_joint": poissons, "latent": jaxem.Discrete(2), "constraints": BOUNDS} | changes
        with pytest.raises(ValueError, match=match):
            jaxem.fit(jaxem.LogJoint(**given), COUNTS, params=POISSONS)

    def test_a_log_joint_that_returns_a_vector(self):
        def cells(params, x, z):
            return poisson.logpmf(x, params["rate"][z])

        self.fails(r"must return one number.*returned float32\[2\].*x is \w+\[2\]", log_joint=cells)

    def test_an_error_inside_says_what_came_in(self):
        def broken(params, x, z):
            return params["rate"] @ x[:1]

        with pytest.raises(TypeError) as caught:
            jaxem.fit(jaxem.LogJoint(broken, jaxem.Discrete(2)), COUNTS, params=POISSONS)
        assert "log_joint(params, x, z) was called for one example" in "".join(caught.value.__notes__)

    def test_constraints(self):
        self.fails("constraint of 'rate' is one of 'real', 'positive'", constraints={"rate": "negative"})
        self.fails("given for height; the parameters are rate, weights", constraints={"height": "positive"})

    def test_arguments(self):
        self.fails("latent is a space", latent=2)
        self.fails(r"call it: jaxem.Discrete\(2\)", latent=jaxem.Discrete)
        self.fails("init is a function", init=POISSONS)
        self.fails("statistics are for an m_step", statistics=poisson_sums)
        self.fails("takes no optimizer", m_step=poisson_m_step, steps=3)
        self.fails("expected an optax optimizer", optimizer="adam")
        self.fails("steps must be a whole number", steps=0)
        self.fails("the log joint of a Chain is jaxem.ChainLogJoint", latent=jaxem.Chain(2))
        for n in (0, 1.5, (2, 0)):
            with pytest.raises(ValueError, match="whole number of values"):
                jaxem.Discrete(n)
        with pytest.raises(ValueError, match="num_nodes"):
            jaxem.Quadrature(0)
        with pytest.raises(ValueError, match="needs a key"):
            jaxem.MonteCarlo(10)

    def test_an_m_step_of_another_shape(self):
        def short(params, expect):
            return {"weights": params["weights"]}

        self.fails("m_step must return parameters like those it got", m_step=short)

    def test_no_init(self):
        with pytest.raises(jaxem.UnsupportedError, match="init"):
            jaxem.fit(jaxem.LogJoint(poissons, jaxem.Discrete(2)), COUNTS, key=KEY)

    def test_statistics_of_every_example_are_not_cut(self):
        with pytest.raises(jaxem.UnsupportedError, match="not a sum over examples"):
            jaxem.Chunked(jaxem.LogJoint(poissons, jaxem.Discrete(2)), 10)


class TestFixedPoint:
    """An EM that exists already: Dempster, Laird & Rubin's, as the map t → M(t)."""

    @staticmethod
    def step(params, counts):
        t = params["t"]
        second = counts[0] * (t / 4) / (0.5 + t / 4)
        return {"t": (second + counts[3]) / (second + counts[1] + counts[2] + counts[3])}

    @staticmethod
    def log_likelihood(params, counts):
        t = params["t"]
        return jnp.sum(counts * jnp.log(jnp.array([0.5 + t / 4, (1 - t) / 4, (1 - t) / 4, t / 4])))

    def model(self, **changes):
        given = {"step": self.step, "log_likelihood": self.log_likelihood, "constraints": {"t": "unit interval"}}
        return jaxem.FixedPoint(**(given | changes))

    @pytest.mark.parametrize("algorithm", [jaxem.EM(), jaxem.Squarem(), jaxem.Anderson()], ids=str)
    def test_every_algorithm_reaches_the_optimum(self, float64, algorithm):
        model = self.model(init=lambda key: {"t": jax.random.uniform(key)})
        result = jaxem.fit(
            model,
            TestLinkage.COUNTS,
            key=KEY,
            num_starts=3,
            algorithm=algorithm,
            stopping=jaxem.ParameterChange(1e-13),
        )
        np.testing.assert_allclose(result.starts.params["t"], 0.626821497870982, rtol=1e-10)

    def test_standard_errors_and_rate(self, float64):
        params = {"t": np.array(0.6268214978709824)}
        errors = jaxem.standard_errors(self.model(), params, TestLinkage.COUNTS)
        assert errors.standard_errors["t"] == pytest.approx(0.05146734920088868, rel=1e-6)
        rate = jaxem.convergence_rate(self.model(), params, TestLinkage.COUNTS)
        assert rate.rate == pytest.approx(0.13277873374559881, abs=1e-8)

    def test_what_it_refuses(self, float64):
        start = {"t": np.array(0.5)}
        with pytest.raises(ValueError, match="takes no weights"):
            jaxem.fit(self.model(), TestLinkage.COUNTS, weights=np.ones(4), params=start)
        with pytest.raises(ValueError, match="step is a function"):
            self.model(step=0.5)
        with pytest.raises(ValueError, match=r"step\(params, data\) must return parameters like"):
            jaxem.fit(self.model(step=lambda p, d: {"s": p["t"]}), TestLinkage.COUNTS, params=start)
        with pytest.raises(ValueError, match="must return one number"):
            jaxem.fit(self.model(log_likelihood=lambda p, d: jnp.log(d)), TestLinkage.COUNTS, params=start)


class TestGradients:
    def test_through_a_fit_of_a_log_joint(self, float64):
        """d t/d counts of the linkage fit: against finite differences, and against the score equation's derivative."""
        model = TestLinkage.model()
        control = jaxem.Control(jaxem.ParameterChange(1e-14), 200)

        def optimum(counts):
            return jaxem.run(model, {"t": jnp.array(0.5)}, jnp.arange(4), counts, control=control).params["t"]

        counts = jnp.asarray(TestLinkage.COUNTS)
        reverse, forward = jax.jit(jax.grad(optimum))(counts), jax.jit(jax.jacfwd(optimum))(counts)
        # dt/dn_i = (∂ log p_i/∂t)/I, by the implicit function theorem on the score equation.
        t = 0.6268214978709824
        expected = np.array([1 / (2 + t), -1 / (1 - t), -1 / (1 - t), 1 / t]) / 377.5169003946873
        np.testing.assert_allclose(reverse, expected, rtol=1e-9)
        np.testing.assert_allclose(forward, expected, rtol=1e-9)

    def test_arguments_of_a_log_joint_are_differentiable(self, float64):
        """A prior's strength, as an argument of a Partial, without compiling again."""

        def log_prior(strength, params):
            return -strength * params["rate"]

        def optimum(strength):
            model = jaxem.LogJoint(
                lambda p, x, z: poisson.logpmf(x, p["rate"]),
                jaxem.Discrete(1),
                constraints={"rate": "positive"},
                log_prior=jax.tree_util.Partial(log_prior, strength),
            )
            control = jaxem.Control(jaxem.ParameterChange(1e-13), 100)
            return jaxem.run(model, {"rate": jnp.array(1.0)}, jnp.asarray(COUNTS[:, 0]), control=control).params["rate"]

        total, n = COUNTS[:, 0].sum(), len(COUNTS)
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(optimum)))(jnp.array([0.0, 3.0]))
        np.testing.assert_allclose(value, [total / n, total / (n + 3)], rtol=1e-9)
        np.testing.assert_allclose(slope, [-total / n**2, -total / (n + 3) ** 2], rtol=1e-8)

    def test_an_optimum_that_is_not_isolated_has_no_gradient(self, float64):
        """Only the sum of two parameters is determined."""
        model = jaxem.LogJoint(lambda p, x, z: norm.logpdf(x, p["a"] + p["b"]), jaxem.Discrete(1))
        control = jaxem.Control(jaxem.ParameterChange(1e-12), 100)

        def total(x):
            params = jaxem.run(model, {"a": jnp.array(0.3), "b": jnp.array(0.1)}, x, control=control).params
            return params["a"]

        assert np.all(np.isnan(jax.grad(total)(jnp.arange(3.0))))


def two_causes(params, x, z):
    """Two binary causes of several binary effects."""
    first, second = z
    logit = params["base"] + first * params["first"] + second * params["second"]
    prior = jnp.log(params["p"])[first] + jnp.log(params["r"])[second]
    return prior + jnp.sum(x * logit - jax.nn.softplus(logit))


CAUSES = {
    "p": np.array([0.3, 0.7]),
    "r": np.array([0.6, 0.4]),
    "base": np.array([-1.0, 0.0, -2.0, 0.5]),
    "first": np.array([1.0, -2.0, 2.5, 0.0]),
    "second": np.array([2.0, -1.5, 3.0, 1.0]),
}
EFFECTS = RNG.integers(0, 2, (40, 4)).astype(float)


class TestBound:
    def test_of_a_product(self, float64):
        model = jaxem.LogJoint(two_causes, jaxem.Discrete((2, 2)))
        q = jax.random.dirichlet(KEY, jnp.ones(4), (40,)).reshape(40, 2, 2)
        joint = np.array([[[two_causes(CAUSES, x, (i, j)) for j in (0, 1)] for i in (0, 1)] for x in EFFECTS])
        expected = float(np.sum(q * (joint - np.log(q))))
        assert jaxem.elbo(model, CAUSES, EFFECTS, q) == pytest.approx(expected, rel=1e-12)
        posterior = model.posterior(CAUSES, EFFECTS)
        assert jaxem.kl_gap(model, CAUSES, EFFECTS, posterior) == pytest.approx(0, abs=1e-10)
        gap = float(jnp.sum(q * jnp.log(q / posterior)))
        assert jaxem.kl_gap(model, CAUSES, EFFECTS, q) == pytest.approx(gap, rel=1e-10)
        with pytest.raises(ValueError, match=r"q needs shape \(40, 2, 2\)"):
            jaxem.elbo(model, CAUSES, EFFECTS, q[:3])

    def test_of_normal_distributions(self, float64):
        """In the factor model the posterior is normal: the bound touches there, and the gap elsewhere is a known KL."""
        x = TestGaussianLatent.X
        model = jaxem.LogJoint(factor, jaxem.GaussianLatent())
        mean, covariance = model.posterior(FACTOR, x)
        assert jaxem.kl_gap(model, FACTOR, x, (mean, covariance)) == pytest.approx(0, abs=1e-9)
        ratio = 2.0 * covariance / covariance
        kl = float(0.5 * jnp.sum(ratio - 1 - jnp.log(ratio)) + 0.5 * jnp.sum(0.3**2 / covariance))
        assert jaxem.kl_gap(model, FACTOR, x, (mean + 0.3, 2 * covariance)) == pytest.approx(kl, rel=1e-9)

    def test_a_chain_has_none(self):
        model = jaxem.LogJoint(
            jaxem.ChainLogJoint(lambda p, z: 0.0, lambda p, z, w: 0.0, lambda p, x, z: 0.0), jaxem.Chain(2)
        )
        with pytest.raises(jaxem.UnsupportedError, match="bound"):
            jaxem.elbo(model, {"a": 1.0}, COUNTS, np.full((45, 2), 0.5))


class TestVariational:
    MODEL = jaxem.LogJoint(two_causes, jaxem.Discrete((2, 2)), constraints={"p": "simplex", "r": "simplex"})

    def start(self):
        return jaxem.VariationalParams(CAUSES, tuple(np.full((40, 2), 0.5) for _ in range(2)))

    def test_the_bound_rises_and_is_below_the_likelihood(self, float64):
        model = jaxem.Variational(self.MODEL)
        result = jaxem.fit(model, EFFECTS, params=self.start(), tol=1e-9)
        assert np.all(np.diff(result.trace) >= -1e-9)
        likelihood = np.sum(model.log_likelihood(result.params, EFFECTS))
        first, second = result.params.q
        product = first[:, :, None] * second[:, None, :]
        bound = float(jaxem.elbo(self.MODEL, result.params.model, EFFECTS, product))
        assert result.log_likelihood == pytest.approx(bound, rel=1e-12)
        assert bound < likelihood
        assert str(result).splitlines()[1].startswith("ELBO")
        assert result.num_free_parameters == 14

    def test_each_factor_is_the_best_given_the_other(self, float64):
        model = jaxem.Variational(self.MODEL)
        step = jax.jit(lambda p: jaxem.VariationalParams(CAUSES, model.e_step(p, jnp.asarray(EFFECTS)).stats.q))
        params = jax.tree.map(jnp.asarray, self.start())
        for _ in range(60):
            params = step(params)
        joint = np.array([[[two_causes(CAUSES, x, (i, j)) for j in (0, 1)] for i in (0, 1)] for x in EFFECTS])
        expected = np.exp(np.einsum("nij,nj->ni", joint, params.q[1]))
        np.testing.assert_allclose(params.q[0], expected / expected.sum(1, keepdims=True), atol=1e-9)

    def test_one_block_is_exact_em(self, float64):
        model = jaxem.Variational(self.MODEL, [[0, 1]])
        start = jaxem.VariationalParams(CAUSES, (np.asarray(self.MODEL.posterior(CAUSES, EFFECTS)).reshape(40, 4),))
        few = jaxem.Control(jaxem.Never(), 4)
        ours = jax.jit(lambda p: jaxem.run(model, p, EFFECTS, control=few))(start)
        theirs = jax.jit(lambda p: jaxem.run(self.MODEL, p, EFFECTS, control=few))(CAUSES)
        np.testing.assert_allclose(ours.params.model["first"], theirs.params["first"], rtol=1e-10)
        assert ours.log_likelihood < theirs.log_likelihood  # q is that of the step before

    def test_what_it_refuses(self):
        with pytest.raises(ValueError, match="over a product of discrete variables"):
            jaxem.Variational(jaxem.LogJoint(poissons, jaxem.Discrete(2)))
        with pytest.raises(ValueError, match=r"each of the variables 0 … 1 exactly once; got \[\[0\]\]"):
            jaxem.Variational(self.MODEL, [[0]])
