"""Models as members of mixtures and as emissions, against the same densities written out."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxem
from jaxem import CategoricalParams, GaussianParams, LatentParams
from jaxem.families import OfModel
from jaxem.latents import MarkovChainParams

K, D, L = 2, 4, 1
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(25, D)), RNG.normal(size=(30, D)) @ RNG.normal(size=(D, D)) + 2])
MASK = RNG.random(X.shape) < 0.8
MASK[0] = False
ANALYZERS = LatentParams(
    CategoricalParams(np.array([0.4, 0.6])),
    jaxem.FactorParams(RNG.normal(size=(K, D)), RNG.normal(size=(K, D, L)), RNG.uniform(0.5, 2, size=(K, D))),
)


def dense(k):
    p = ANALYZERS.likelihood
    return p.mean[k], p.loadings[k] @ p.loadings[k].T + np.diag(p.noise[k])


def joint(x, mask):
    """log π_k N(x_o; μ_o, Σ_oo), [N, K], row by row."""
    log_p = np.zeros((len(x), K))
    for n, k in itertools.product(range(len(x)), range(K)):
        mean, covariance = dense(k)
        o = np.flatnonzero(mask[n])
        if len(o):
            log_p[n, k] = scipy.stats.multivariate_normal(mean[o], covariance[np.ix_(o, o)]).logpdf(x[n, o])
    return log_p + np.log(ANALYZERS.latent.weights)


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holes"])
class TestFactorAnalyzers:
    def data(self, holes):
        return (jaxem.Data(jnp.asarray(X), mask=jnp.asarray(MASK)), MASK) if holes else (jnp.asarray(X), MASK | True)

    def test_likelihood_and_posterior(self, float64, holes):
        data, seen = self.data(holes)
        model = jaxem.Mixture(jaxem.FactorAnalysis(L), K)
        log_joint = joint(X, seen)
        expected = scipy.special.logsumexp(log_joint, axis=1)
        np.testing.assert_allclose(model.log_likelihood(ANALYZERS, data), expected, rtol=1e-11, atol=1e-12)
        posterior = np.exp(log_joint - expected[:, None])
        np.testing.assert_allclose(model.posterior(ANALYZERS, data), posterior, atol=1e-11)

    def test_imputation_is_that_of_the_dense_mixture(self, float64, holes):
        data, seen = self.data(holes)
        model = jaxem.Mixture(jaxem.FactorAnalysis(L), K)
        imputed = model.impute(ANALYZERS, data)
        posterior = scipy.special.softmax(joint(X, seen), axis=1)
        for n in range(len(X)):
            o, m = np.flatnonzero(seen[n]), np.flatnonzero(~seen[n])
            np.testing.assert_array_equal(imputed.mean[n][o], X[n, o])
            means, seconds = [], []
            for k in range(K):
                mean, covariance = dense(k)
                gain = np.linalg.solve(covariance[np.ix_(o, o)], covariance[np.ix_(o, m)]).T
                means.append(mean[m] + gain @ (X[n, o] - mean[o]))
                left = covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(o, m)]
                seconds.append(left + np.outer(means[-1], means[-1]))
            mean = posterior[n] @ np.array(means)
            np.testing.assert_allclose(imputed.mean[n][m], mean, atol=1e-10)
            expected = np.tensordot(posterior[n], seconds, axes=1) - np.outer(mean, mean)
            np.testing.assert_allclose(imputed.covariance[n][np.ix_(m, m)], expected, atol=1e-10)

    def test_a_step_is_that_of_each_member_on_its_share(self, float64, holes):
        data, seen = self.data(holes)
        single = jaxem.FactorAnalysis(L).calibrate(data)
        model = jaxem.Mixture(single, K)

        @jax.jit
        def step(data):
            return model.m_step(ANALYZERS, model.e_step(ANALYZERS, data).stats)

        new = step(data)
        posterior = scipy.special.softmax(joint(X, seen), axis=1)
        np.testing.assert_allclose(new.latent.weights, posterior.mean(axis=0), rtol=1e-10)
        for k in range(K):
            own = jax.tree.map(lambda a, k=k: jnp.asarray(a[k]), ANALYZERS.likelihood)
            alone = single.m_step(own, single.e_step(own, data, jnp.asarray(posterior[:, k])).stats)
            for ours, expected in zip(jax.tree.leaves(new.likelihood), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(ours[k], expected, rtol=1e-9, atol=1e-10)


class TestSharedNoise:
    MODEL = jaxem.Mixture(OfModel(jaxem.FactorAnalysis(L), ["noise"]), K)

    def test_it_stays_shared_and_is_counted_once(self, float64):
        result = jaxem.fit(self.MODEL, X, key=jax.random.key(0), num_starts=2, max_steps=50, on_failure="ignore")
        noise = result.params.likelihood.noise
        np.testing.assert_array_equal(noise[0], noise[1])
        assert result.num_free_parameters == (K - 1) + K * (D + D * L) + D

    def test_another_leaf_is_refused_when_it_is_built(self):
        with pytest.raises(ValueError, match=r"share \['noise'\]; got 'loadings'"):
            OfModel(jaxem.FactorAnalysis(1), ["loadings"])
        with pytest.raises(ValueError, match="share nothing"):
            OfModel(jaxem.Mixture(jaxem.Poisson(), 2), ["rate"])

    def test_frozen_noise_is_left_alone(self, float64):
        model = jaxem.Frozen(self.MODEL, ["noise"]).calibrate(X)
        shared = np.broadcast_to(ANALYZERS.likelihood.noise[0], (K, D))
        params = LatentParams(
            ANALYZERS.latent, jaxem.FactorParams(ANALYZERS.likelihood.mean, ANALYZERS.likelihood.loadings, shared)
        )
        new = model.m_step(params, model.e_step(params, X).stats)
        np.testing.assert_array_equal(new.likelihood.noise, shared)
        assert not np.allclose(new.likelihood.mean, params.likelihood.mean)


def gaussians(mean, sd):
    return GaussianParams(np.array(mean, float)[:, None], np.array(sd, float)[:, None, None] ** 2)


class TestMixtureOfMixtures:
    def test_it_is_the_flat_mixture(self, float64):
        x = np.linspace(-3, 3, 20)[:, None]
        outer, inner = np.array([0.3, 0.7]), np.array([[0.2, 0.8], [0.5, 0.5]])
        mean, sd = np.array([[-2.0, 0], [1, 2]]), np.array([[0.5, 1], [0.7, 0.3]])
        members = jax.tree.map(lambda *a: np.stack(a), *(gaussians(mean[k], sd[k]) for k in range(2)))
        params = LatentParams(CategoricalParams(outer), LatentParams(CategoricalParams(inner), members))
        model = jaxem.Mixture(jaxem.Mixture(jaxem.Gaussian(), 2), 2)
        weights = (outer[:, None] * inner).ravel()
        expected = np.log(scipy.stats.norm(mean.ravel(), sd.ravel()).pdf(x) @ weights)
        np.testing.assert_allclose(model.log_likelihood(params, x), expected, rtol=1e-11)


# Two hidden Markov models of two states, told apart by how often they change.
CHAINS = MarkovChainParams(
    np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[[0.95, 0.05], [0.1, 0.9]], [[0.2, 0.8], [0.7, 0.3]]])
)
EMISSIONS = jax.tree.map(lambda *a: np.stack(a), gaussians([-1, 1], [0.5, 0.8]), gaussians([-1.5, 1], [0.6, 0.7]))
HMMS = LatentParams(CategoricalParams(np.array([0.35, 0.65])), LatentParams(CHAINS, EMISSIONS))


class TestMixtureOfHMMs:
    MODEL = jaxem.Mixture(jaxem.HMM(jaxem.Gaussian(), 2), 2)

    def sequences(self):
        x = np.random.default_rng(1).normal(size=(9, 7, 1))
        return x, np.array([7, 1, 0, 3, 7, 5, 2, 6, 4])

    def member(self, k):
        return jax.tree.map(lambda a: a[k], HMMS.likelihood)

    def test_likelihood_of_every_sequence(self, float64):
        """A sum over both models of a sum over all paths; a sequence of length 0 has probability 1."""
        x, lengths = self.sequences()
        ours = self.MODEL.log_likelihood(HMMS, jaxem.Data(jnp.asarray(x), lengths=jnp.asarray(lengths)))
        for b, length in enumerate(lengths):
            terms = []
            for k in range(2):
                chain, emission = self.member(k).latent, self.member(k).likelihood
                pdf = scipy.stats.norm(emission.mean[:, 0], np.sqrt(emission.covariance[:, 0, 0])).pdf(x[b])
                total = 0.0
                for path in itertools.product(range(2), repeat=int(length)):
                    p = chain.initial[path[0]] if path else 1.0
                    p *= np.prod([chain.transition[i, j] for i, j in itertools.pairwise(path)])
                    total += p * np.prod([pdf[t, s] for t, s in enumerate(path)])
                terms.append(HMMS.latent.weights[k] * total)
            np.testing.assert_allclose(ours[b], np.log(sum(terms)), rtol=1e-11, atol=1e-13)

    def test_what_lies_beyond_a_length_is_never_read(self, float64):
        x, lengths = self.sequences()
        beyond = np.arange(7)[None, :] >= lengths[:, None]
        results = []
        for poison in (0.0, 1e30, np.nan):
            data = jaxem.Data(jnp.asarray(np.where(beyond[..., None], poison, x)), lengths=jnp.asarray(lengths))
            model = self.MODEL.calibrate(data)
            start = model.init(jax.random.key(0), data)
            results.append((start, model.e_step(HMMS, data), model.impute(HMMS, data).mean))
        for other in results[1:]:
            chex.assert_trees_all_equal(results[0], other)

    def test_the_weight_is_that_of_the_steps(self, float64):
        x, lengths = self.sequences()
        data = jaxem.Data(jnp.asarray(x), lengths=jnp.asarray(lengths))
        model = self.MODEL.calibrate(data)
        assert model.e_step(HMMS, data).weight == lengths.sum()
        assert model.num_observations(model.prepare(data)) == lengths.sum()
        assert model.e_step(HMMS, jnp.asarray(x)).weight == 63

    def test_draws_are_told_apart_and_recovered(self, float64):
        x, z = self.MODEL.sample(jax.random.key(0), HMMS, 150, num_steps=40)
        assert x.shape == (150, 40, 1)
        result = jaxem.fit(self.MODEL, x, key=jax.random.key(1), num_starts=4, tol=1e-6, trace_size=0)
        truth = np.sum(self.MODEL.log_likelihood(HMMS, x))
        assert result.log_likelihood > truth
        found = self.MODEL.predict(result.params, x)
        agreement = np.mean(found == z)
        assert max(agreement, 1 - agreement) > 0.95

    def test_labels_belong_to_sequences(self, float64):
        x, lengths = self.sequences()
        labels = np.where(np.arange(9) < 3, 1, -1)
        data = jaxem.Data(jnp.asarray(x), lengths=jnp.asarray(lengths), labels=jnp.asarray(labels))
        posterior = self.MODEL.posterior(HMMS, data)
        np.testing.assert_array_equal(posterior[:3], [[0, 1]] * 3)
        assert np.all(posterior[3:] < 1)
        with pytest.raises(ValueError, match=r"labels of whole sequences need shape \(9,\); got \(9, 7\)"):
            self.MODEL.posterior(HMMS, jaxem.Data(jnp.asarray(x), labels=jnp.zeros((9, 7), int)))

    def test_missing_steps_are_summed_out(self, float64):
        """A step that is masked whole, against the same chain with nothing said at that step."""
        x, _ = self.sequences()
        mask = np.random.default_rng(2).random(x.shape[:2]) < 0.7
        data = jaxem.Data(jnp.asarray(np.where(mask[..., None], x, np.nan)), mask=jnp.asarray(mask))
        members = [
            jaxem.HMM(jaxem.Gaussian(), 2).log_likelihood(self.member(k), data) + np.log(HMMS.latent.weights[k])
            for k in range(2)
        ]
        expected = scipy.special.logsumexp(np.array(members), axis=0)
        np.testing.assert_allclose(self.MODEL.log_likelihood(HMMS, data), expected, rtol=1e-11)

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="whole sequences need x padded"):
            jaxem.fit(self.MODEL, np.zeros((20, 1)), key=jax.random.key(0))
        with pytest.raises(ValueError, match="cannot be a whole sequence"):
            jaxem.HMM(jaxem.HMM(jaxem.Gaussian(), 2), 2)
        with pytest.raises(ValueError, match="num_steps"):
            self.MODEL.sample(jax.random.key(0), HMMS, 3)


def test_hmm_of_mixtures_is_the_hmm_of_their_components(float64):
    """States and components together are the states of a larger chain."""
    x = np.random.default_rng(0).normal(size=(4, 6, 1)) * 2
    chain = jax.tree.map(lambda a: a[0], CHAINS)
    shares = np.array([[0.3, 0.7], [0.6, 0.4]])
    params = LatentParams(chain, LatentParams(CategoricalParams(shares), EMISSIONS))
    model = jaxem.HMM(jaxem.Mixture(jaxem.Gaussian(), 2), 2)
    flat = LatentParams(
        MarkovChainParams(
            (chain.initial[:, None] * shares).ravel(),
            np.repeat(np.repeat(chain.transition, 2, axis=0), 2, axis=1) * shares.ravel(),
        ),
        jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), EMISSIONS),
    )
    expected = jaxem.HMM(jaxem.Gaussian(), 4).log_likelihood(flat, x)
    np.testing.assert_allclose(model.log_likelihood(params, x), expected, rtol=1e-11)


class TestMembers:
    def test_a_member_without_examples_keeps_its_parameters(self, float64):
        model = jaxem.Mixture(jaxem.FactorAnalysis(L), K).calibrate(X)
        params = LatentParams(CategoricalParams(jnp.array([1.0, 0.0])), jax.tree.map(jnp.asarray, ANALYZERS.likelihood))
        new = model.m_step(params, model.e_step(params, X).stats)
        assert new.latent.weights[1] == 0
        for old, kept in zip(jax.tree.leaves(params.likelihood), jax.tree.leaves(new.likelihood), strict=True):
            np.testing.assert_array_equal(old[1], kept[1])
            assert np.all(np.isfinite(kept))

    def test_a_start_from_responsibilities_needs_a_key(self, float64):
        model = jaxem.Mixture(jaxem.FactorAnalysis(L), K)
        responsibilities = jnp.asarray(scipy.special.softmax(RNG.normal(size=(len(X), K)), axis=1))
        with pytest.raises(ValueError, match="pass a key"):
            model.from_responsibilities(responsibilities, X)
        starts = [model.from_responsibilities(responsibilities, X, key=jax.random.key(i)) for i in range(2)]
        assert not np.allclose(starts[0].likelihood.loadings, starts[1].likelihood.loadings)
        np.testing.assert_allclose(starts[0].likelihood.mean, starts[1].likelihood.mean)
        np.testing.assert_allclose(starts[0].latent.weights, responsibilities.mean(axis=0))

    def test_a_conjugate_prior_is_refused_by_name(self):
        with pytest.raises(jaxem.UnsupportedError, match="WithPrior"):
            jaxem.WithPrior(jaxem.Mixture(jaxem.FactorAnalysis(L), K)).calibrate(X)

    def test_what_is_no_model(self):
        with pytest.raises(ValueError, match="expected a model"):
            OfModel(jaxem.Gaussian())

    def test_numbers_of_components_in_one_program(self, float64):
        models = [jaxem.Mixture(jaxem.PPCA(1), k) for k in (1, 2, 3)]
        chosen = jaxem.select(models, X, key=jax.random.key(0), num_starts=4, tol=1e-8)
        values = [r.log_likelihood for r in chosen.results]
        assert values[0] < values[1] < values[2]
        closed = jaxem.PPCA(1).closed_form(jnp.asarray(X))
        np.testing.assert_allclose(values[0], np.sum(jaxem.PPCA(1).log_likelihood(closed, jnp.asarray(X))), rtol=1e-6)

    def test_a_result_comes_back_from_a_file(self, tmp_path, float64):
        model = jaxem.Mixture(OfModel(jaxem.FactorAnalysis(L), ["noise"]), K)
        result = jaxem.fit(model, X, key=jax.random.key(0), max_steps=5, on_failure="ignore")
        jaxem.save(tmp_path / "fit.npz", result)
        loaded = jaxem.load(tmp_path / "fit.npz")
        assert loaded.model.likelihood.shared == ("noise",)
        np.testing.assert_array_equal(
            loaded.model.posterior(loaded.params, X), result.model.posterior(result.params, X)
        )
        assert "mixture of (Factor analysis, 1 factor), 2 components" in str(loaded)
