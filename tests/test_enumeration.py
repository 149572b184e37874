"""Sums over every value of z: the E-step, the bound, and a Markov chain that joins the contract from outside."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import jaxem
from jaxem import CategoricalParams, Data, GaussianParams, Inference, Latent, LatentParams, pytree, static
from jaxem.model import num_examples

N, D = 5, 2
STRUCTURES = {"full": jaxem.Full(), "tied": jaxem.Tied(), "diagonal": jaxem.Diagonal(), "spherical": jaxem.Spherical()}
FAMILIES = (*STRUCTURES, "poisson")
E_STEP = jax.jit(lambda model, params, x, weights: model.e_step(params, x, weights))
ELBO = jax.jit(jaxem.elbo)


def second_order(name, x):
    """The second-order statistics of the structures, written out."""
    if name in ("full", "tied"):
        return np.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], axis=1)
    return x**2 if name == "diagonal" else np.sum(x**2, axis=1, keepdims=True)


@functools.cache
def problem(name, k, n=N):
    """(model, params, x, log p(x_n | k) in numpy, T(x_n) in numpy). The model keeps its centre at 0 and scale at 1."""
    rng = np.random.default_rng(k)
    weights = rng.dirichlet(np.ones(k))
    if name == "poisson":
        x = rng.poisson(3.0, (n, D)).astype(float)
        rate = rng.uniform(0.5, 6, (k, D))
        terms = scipy.stats.poisson.logpmf(x[:, None], rate)
        # With the centre at rate 1: T = (1, x − 1, log p(x | 1)).
        base = scipy.stats.poisson.logpmf(x, 1.0).sum(axis=1, keepdims=True)
        model = jaxem.Mixture(jaxem.Poisson(), k)
        return model, (weights, rate), x, terms.sum(axis=2), np.concatenate([np.ones((n, 1)), x - 1, base], axis=1)
    x, mean = rng.normal(size=(n, D)), rng.normal(size=(k, D))
    root = rng.normal(size=(k, D, D)) + 1.5 * np.eye(D)
    dense = root @ np.swapaxes(root, 1, 2)
    if name == "tied":
        dense[:] = dense[0]
    elif name == "diagonal":
        dense *= np.eye(D)
    elif name == "spherical":
        dense = dense[:, :1, :1] * np.eye(D)
    covariance = {
        "full": lambda: dense,
        "tied": lambda: dense[0],
        "diagonal": lambda: np.stack([np.diag(c) for c in dense]),
        "spherical": lambda: dense[:, 0, 0],
    }[name]()
    terms = [scipy.stats.multivariate_normal(m, c).logpdf(x) for m, c in zip(mean, dense, strict=True)]
    statistics = np.concatenate([np.ones((n, 1)), x, second_order(name, x)], axis=1)
    model = jaxem.Mixture(jaxem.Gaussian(STRUCTURES[name]), k)
    return model, (weights, mean, covariance), x, np.stack(terms, axis=1), statistics


def params_of(name, parts):
    weights, *rest = (jnp.asarray(a) for a in parts)
    likelihood = jaxem.PoissonParams(*rest) if name == "poisson" else GaussianParams(*rest)
    return LatentParams(CategoricalParams(weights), likelihood)


def enumerate_assignments(log_weights, terms, statistics):
    """Log-likelihood, expected counts and expected statistics by summing over all K^N assignments z."""
    n, k = terms.shape
    every = np.array(list(itertools.product(range(k), repeat=n)))
    joint = np.sum(log_weights[every] + terms[np.arange(n), every], axis=1)
    log_likelihood = scipy.special.logsumexp(joint)
    p = np.exp(joint - log_likelihood)
    one_hot = np.eye(k)[every]  # [K^N, N, K]
    counts = np.einsum("a,ank->k", p, one_hot)
    return log_likelihood, counts, np.einsum("a,ank,np->kp", p, one_hot, statistics)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("weights", [None, (2.0, 0.0, 1.0, 0.0, 3.0)], ids=["plain", "weights"])
def test_e_step_is_the_sum_over_all_assignments(float64, name, k, weights):
    """Weights are rows repeated, or left out, in the enumeration: six rows of five."""
    model, parts, x, terms, statistics = problem(name, k)
    rows = np.arange(N) if weights is None else np.repeat(np.arange(N), np.array(weights, int))
    expected = enumerate_assignments(np.log(parts[0]), terms[rows], statistics[rows])
    ours = E_STEP(model, params_of(name, parts), jnp.asarray(x), None if weights is None else jnp.asarray(weights))
    np.testing.assert_allclose(ours.log_likelihood, expected[0], rtol=1e-12)
    np.testing.assert_allclose(ours.stats.latent, expected[1], rtol=1e-11)
    np.testing.assert_allclose(ours.stats.likelihood, expected[2], rtol=1e-10, atol=1e-12)
    assert ours.weight == len(rows)


@pytest.mark.parametrize("k", [2, 3])
def test_a_component_of_weight_zero_takes_no_part(float64, k):
    """Exact zeros: −inf among the potentials of every row, and nothing of it in any sum."""
    model, (weights, rate), x, terms, statistics = problem("poisson", k)
    weights = np.where(np.arange(k) == 0, 0, weights)
    weights /= weights.sum()
    with np.errstate(divide="ignore"):
        expected = enumerate_assignments(np.log(weights), terms, statistics)
    ours = E_STEP(model, params_of("poisson", (weights, rate)), jnp.asarray(x), None)
    np.testing.assert_allclose(ours.log_likelihood, expected[0], rtol=1e-12)
    np.testing.assert_allclose(ours.stats.likelihood, expected[2], rtol=1e-10, atol=1e-13)
    assert ours.stats.latent[0] == 0
    assert np.all(np.asarray(ours.stats.likelihood[0]) == 0)


@pytest.mark.parametrize("name", FAMILIES)
class TestBound:
    @pytest.mark.parametrize("weights", [None, (2.0, 0.5, 1.0, 0.0, 3.0)], ids=["plain", "weights"])
    def test_the_posterior_touches_and_any_other_q_is_below_by_its_divergence(self, float64, name, weights):
        k = 3
        model, parts, x, terms, _ = problem(name, k)
        params, w = params_of(name, parts), np.ones(N) if weights is None else np.array(weights)
        given = None if weights is None else jnp.asarray(w)
        joint = terms + np.log(parts[0])
        log_normalizer = scipy.special.logsumexp(joint, axis=1)
        log_likelihood = np.sum(w * log_normalizer)
        log_posterior = joint - log_normalizer[:, None]
        at_posterior = ELBO(model, params, jnp.asarray(x), jnp.exp(log_posterior), given)
        np.testing.assert_allclose(at_posterior, log_likelihood, rtol=1e-11)
        rng = np.random.default_rng(0)
        for concentration in (0.05, 0.3, 1.0, 30.0):
            q = rng.dirichlet(np.full(k, concentration), N)
            divergence = np.sum(w[:, None] * scipy.special.rel_entr(q, np.exp(log_posterior)))
            assert divergence > 1e-3  # else the gap is not tested
            bound = ELBO(model, params, jnp.asarray(x), jnp.asarray(q), given)
            np.testing.assert_allclose(log_likelihood - bound, divergence, rtol=1e-8)


# A latent that jaxem does not know. Everything below must work without a change to the joint E-step or M-step.


@pytree
class MarkovChainParams:
    """initial: [K]; transition: [K, K], rows that sum to 1."""

    initial: jax.Array
    transition: jax.Array


@pytree
class MarkovChain(Latent):
    """``p(z) = initial(z_1) Π_t transition(z_t−1, z_t)`` for B independent sequences of T steps, all of one length."""

    num_components: int = static()

    def infer(self, params, potentials, data, weights):
        """Forward-backward in log space over potentials [B, T, K]."""
        log_transition = jnp.log(params.transition)

        def forward(alpha, potential):
            new = jax.nn.logsumexp(alpha[:, :, None] + log_transition, axis=1) + potential
            return new, alpha

        def backward(beta, potential):
            new = jax.nn.logsumexp(log_transition + (potential + beta)[:, None, :], axis=2)
            return new, (new, potential + beta)

        steps = jnp.swapaxes(potentials, 0, 1)  # [T, B, K]
        first = jnp.log(params.initial) + steps[0]
        last, alphas = jax.lax.scan(forward, first, steps[1:])
        alphas = jnp.concatenate([alphas, last[None]])
        _, (betas, ahead) = jax.lax.scan(backward, jnp.zeros_like(first), steps[1:], reverse=True)
        betas = jnp.concatenate([betas, jnp.zeros_like(first)[None]])
        log_normalizer = jax.nn.logsumexp(last, axis=-1)
        scale = jnp.ones_like(log_normalizer) if weights is None else weights
        marginals = jnp.exp(alphas + betas - log_normalizer[:, None]) * scale[:, None]
        pairs = alphas[:-1, :, :, None] + log_transition + ahead[:, :, None, :] - log_normalizer[:, None, None]
        pairs = jnp.sum(jnp.exp(pairs) * scale[:, None, None], axis=(0, 1))
        stats = MarkovChainParams(jnp.sum(marginals[0], axis=0), pairs)
        return Inference(jnp.swapaxes(marginals, 0, 1), stats, log_normalizer)

    def accumulate(self, marginals, data):
        """As if the steps of a sequence were independent: all that marginals alone can say."""
        pairs = jnp.einsum("bti,btj->ij", marginals[:, :-1], marginals[:, 1:])
        return MarkovChainParams(jnp.sum(marginals[:, 0], axis=0), pairs)

    def pseudo_statistics(self):
        k = self.num_components
        return MarkovChainParams(jnp.ones(k), jnp.ones((k, k)))

    def maximize(self, params, stats, frozen):
        rows = jnp.sum(stats.transition, axis=1, keepdims=True)
        return MarkovChainParams(stats.initial / jnp.sum(stats.initial), stats.transition / rows)

    def q(self, params, stats):
        return sum(jnp.sum(jax.scipy.special.xlogy(s, p)) for s, p in zip(*map(jax.tree.leaves, (stats, params))))


B, T = 2, 4


def chain(k=2, b=B, t=T):
    """A hidden Markov model with Gaussian emissions, parameters, and data [B, T, D]."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(b, t, D)) * 2
    params = LatentParams(
        MarkovChainParams(rng.dirichlet(np.ones(k)), rng.dirichlet(np.ones(k), k)),
        GaussianParams(rng.normal(size=(k, D)), np.stack([np.eye(D) * s for s in (1.0, 2.5, 0.7)[:k]])),
    )
    model = jaxem.LatentModel(MarkovChain(k), jaxem.Gaussian())
    return model, jax.tree.map(jnp.asarray, params), jnp.asarray(x)


def enumerate_paths(params, x):
    """Per sequence: log-likelihood, marginals [T, K] and pair counts [K, K], by summing over all K^T paths."""
    params = jax.tree.map(np.asarray, params)
    k = len(params.latent.initial)
    paths = np.array(list(itertools.product(range(k), repeat=x.shape[1])))
    one_hot = np.eye(k)[paths]
    pairs = np.einsum("pti,ptj->pij", one_hot[:, :-1], one_hot[:, 1:])
    out = []
    for sequence in np.asarray(x):
        normals = map(scipy.stats.multivariate_normal, params.likelihood.mean, params.likelihood.covariance)
        terms = np.stack([normal.logpdf(sequence) for normal in normals], axis=1)
        joint = np.log(params.latent.initial)[paths[:, 0]] + terms[np.arange(len(sequence)), paths].sum(axis=1)
        joint += np.log(params.latent.transition)[paths[:, :-1], paths[:, 1:]].sum(axis=1)
        total = scipy.special.logsumexp(joint)
        p = np.exp(joint - total)
        out.append((total, np.einsum("p,ptk->tk", p, one_hot), np.einsum("p,pij->ij", p, pairs)))
    return tuple(np.stack(part) for part in zip(*out, strict=True))


class TestMarkovChainDropsIn:
    """The contract carries a latent whose examples are sequences; a weight belongs to a sequence."""

    @pytest.mark.parametrize("weights", [None, (1.0, 2.0), (0.0, 1.0)])
    def test_e_step_is_the_sum_over_all_paths(self, float64, weights):
        model, params, x = chain()
        w = np.ones(B) if weights is None else np.array(weights)
        log_likelihood, marginals, pairs = enumerate_paths(params, x)
        ours = E_STEP(model, params, x, None if weights is None else jnp.asarray(w))
        np.testing.assert_allclose(ours.log_likelihood, w @ log_likelihood, rtol=1e-11)
        np.testing.assert_allclose(ours.stats.latent.initial, w @ marginals[:, 0], rtol=1e-10)
        np.testing.assert_allclose(ours.stats.latent.transition, np.tensordot(w, pairs, 1), rtol=1e-10)
        rows = np.asarray(x).reshape(-1, D)
        statistics = np.concatenate([np.ones((len(rows), 1)), rows, second_order("full", rows)], axis=1)
        weighted = (marginals * w[:, None, None]).reshape(len(rows), -1)
        np.testing.assert_allclose(ours.stats.likelihood, weighted.T @ statistics, rtol=1e-10, atol=1e-12)
        assert ours.weight == w.sum()

    def test_scores_and_marginals_per_sequence(self, float64):
        model, params, x = chain()
        log_likelihood, marginals, _ = enumerate_paths(params, x)
        np.testing.assert_allclose(model.log_likelihood(params, x), log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(model.posterior(params, x), marginals, rtol=1e-9)

    def test_a_run_never_falls(self, float64):
        model, params, x = chain(b=12, t=20)
        model = model.calibrate(x)
        never = jaxem.Control(jaxem.Never(), 60)
        run = jax.jit(functools.partial(jaxem.run, trace_size=61))(model, params, x, control=never)
        trace = np.asarray(run.trace)
        assert run.status in (jaxem.Status.MAX_STEPS, jaxem.Status.STALLED)
        assert np.all(np.isfinite(trace[: int(run.steps) + 1]))
        assert np.nanmin(np.diff(trace)) >= -1e-9
        assert np.nanmax(trace) > trace[0] + 1  # it moved
        np.testing.assert_allclose(run.log_likelihood, np.sum(model.log_likelihood(run.params, x)), rtol=1e-10)

    def test_weight_two_is_the_sequence_twice(self, float64):
        model, params, x = chain(b=6, t=20)
        counts = np.array([2, 1, 0, 1, 2, 1])
        repeated = jnp.asarray(np.repeat(np.asarray(x), counts, axis=0))
        weights = jnp.asarray(counts, float)
        fits = [
            jax.jit(jaxem.run)(model.calibrate(data, w), params, data, w)
            for data, w in ((x, weights), (repeated, None))
        ]
        close(fits[0].params, fits[1].params)
        np.testing.assert_allclose(fits[0].objective, fits[1].objective, rtol=1e-9)
        assert fits[0].steps == fits[1].steps

    def test_one_long_sequence_is_enough_for_many_states(self, float64):
        """Examples are sequences: one of them can carry more states than there are sequences."""
        model, params, x = chain(k=3, b=1, t=40)
        run = jax.jit(jaxem.run)(model.calibrate(x), params, x)
        assert jaxem.Status(int(run.status)).usable, jaxem.Status(int(run.status)).text

    def test_chunks_of_sequences_add_up(self, float64):
        model, params, x = chain(b=7, t=T)
        whole = E_STEP(model, params, x, None)
        chunked = E_STEP(jaxem.Chunked(model, 3), params, x, None)
        close(whole, chunked)

    def test_an_imagined_example_is_one_step_of_the_data(self, float64):
        """The family's unit of a prior is one observation, not one sequence: count 1, the mean of all that was seen."""
        model, _, x = chain(b=3, t=T)
        unit = model.pseudo_statistics(x, jnp.array([1.0, 2.0, 0.0])).likelihood
        rows = np.asarray(x)
        mean = (rows[0] + 2 * rows[1]).sum(axis=0) / (3 * T)
        np.testing.assert_allclose(unit[:, 0], np.ones(2), rtol=1e-12)
        np.testing.assert_allclose(unit[:, 1 : 1 + D], np.tile(mean, (2, 1)), rtol=1e-11)

    def test_starts_see_the_steps_of_all_sequences(self, float64):
        model, params, x = chain(b=6, t=20)
        first, second = (model.calibrate(x).init(jax.random.key(i), x) for i in range(2))
        assert jax.tree.structure(first) == jax.tree.structure(params)
        for start in (first, second):
            assert [a.shape for a in jax.tree.leaves(start)] == [a.shape for a in jax.tree.leaves(params)]
            assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(start))
        assert not np.allclose(first.likelihood.mean, second.likelihood.mean)

    def test_the_host_door_takes_given_parameters(self, float64):
        model, params, x = chain(b=6, t=20)
        result = jaxem.fit(model, x, params=params)
        assert result.converged
        np.testing.assert_allclose(result.log_likelihood, np.sum(result.model.log_likelihood(result.params, x)))

    def test_weighted_responsibilities_belong_to_sequences(self, float64):
        """Statistics of a given q(z): the weight of a sequence multiplies all its steps (B equal to T on purpose)."""
        model, _, _ = chain()
        rng = np.random.default_rng(1)
        x, q = rng.normal(size=(3, 3, D)), rng.dirichlet(np.ones(2), (3, 3))
        w = np.array([1.0, 0.0, 5.0])
        latent = Counts(2)
        stats = jaxem.LatentModel(latent, model.likelihood).complete_statistics(jnp.asarray(q), jnp.asarray(x), w)
        np.testing.assert_allclose(stats.likelihood[:, 0], np.einsum("b,btk->k", w, q), rtol=1e-11)
        np.testing.assert_allclose(stats.likelihood[:, 1 : 1 + D], np.einsum("b,btk,btd->kd", w, q, x), rtol=1e-11)


@pytree
class Counts(Latent):
    """A latent of which only the counts are asked."""

    num_components: int = static()

    def accumulate(self, marginals, data):
        return jnp.sum(marginals, axis=(0, 1))


def close(a, b):
    for one, other in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-10)


def test_examples_are_counted_on_the_leading_axis():
    assert num_examples(Data(jnp.zeros((B, T, D)))) == B
