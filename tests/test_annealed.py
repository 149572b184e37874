"""Tempered posteriors against sums over every z, and deterministic annealing."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from paths import every_path, random_chain

import jaxem
from jaxem import Annealing, CategoricalParams, Cooling, Data, GatedParams, MarkovChainParams, Status
from jaxem.latents import Annealed, Categorical, Gated, Hard, InputMarkovChain, InputMarkovChainParams, MarkovChain

K, T = 3, 2.5
LENGTHS = np.array([4, 0, 1, 5])
WEIGHTS = np.array([1.0, 2.0, 0.5, 3.0])
INFER = jax.jit(lambda latent, params, potentials, data, weights: latent.infer(params, potentials, data, weights))


def assert_inference(inferred, marginals, log_normalizer):
    np.testing.assert_allclose(inferred.marginals, marginals, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(inferred.log_normalizer, log_normalizer, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("temperature", [0.5, 1.0, T])
def test_independent(float64, temperature):
    rng = np.random.default_rng(0)
    potentials, weights = rng.normal(-3, 4, (6, K)), rng.uniform(0, 2, 6)
    mixing = np.array([0.3, 0.7, 0.0])
    with np.errstate(divide="ignore"):
        joint = (potentials + np.log(mixing)) / temperature
    latent = Annealed(Categorical(K), temperature)
    inferred = INFER(latent, CategoricalParams(jnp.asarray(mixing)), jnp.asarray(potentials), Data(), weights)
    expected = scipy.special.softmax(joint, axis=1) * weights[:, None]
    assert_inference(inferred, expected, temperature * scipy.special.logsumexp(joint, axis=1))
    np.testing.assert_allclose(inferred.stats, expected.sum(axis=0), rtol=1e-12)


def test_gate(float64):
    rng = np.random.default_rng(1)
    potentials, inputs = rng.normal(-3, 4, (6, K)), rng.normal(size=(6, 2))
    gate = np.concatenate([rng.normal(size=(K - 1, 3)), np.zeros((1, 3))])
    prior = scipy.special.log_softmax(np.column_stack([np.ones(6), inputs]) @ gate.T, axis=1)
    params, data = GatedParams(jnp.asarray(gate)), Data(inputs=jnp.asarray(inputs))
    latent = Annealed(Gated(K), T)
    inferred = INFER(latent, params, jnp.asarray(potentials), data, None)
    joint = (potentials + prior) / T
    assert_inference(inferred, scipy.special.softmax(joint, axis=1), T * scipy.special.logsumexp(joint, axis=1))
    assert_fisher(latent, params, jnp.asarray(potentials), data)


def assert_fisher(latent, params, potentials, data):
    """The gradient of the free energy is that of q at the tempered posterior."""
    free = latent.to_free(params)
    stats = INFER(latent, params, potentials, data, None).stats
    energy = lambda f: jnp.sum(latent.infer(latent.from_free(f), potentials, data, None).log_normalizer)  # noqa: E731
    got = jax.jit(jax.grad(lambda f: latent.q(latent.from_free(f), stats)))(free)
    chex.assert_trees_all_close(got, jax.jit(jax.grad(energy))(free), rtol=1e-8, atol=1e-9)


@functools.cache
def chains(varying):
    """Potentials of padded sequences, [B, T, K], the parameters of a chain, and its transitions out of every step."""
    rng = np.random.default_rng(2)
    potentials = rng.normal(-2, 2, (4, 5, K))
    if not varying:
        initial, transition = random_chain(rng, K, zeros=0.3)
        return potentials, MarkovChain(K), MarkovChainParams(initial, transition), Data(), [transition] * 4
    inputs = rng.normal(size=(4, 5, 1))
    gate = np.concatenate([rng.normal(size=(K, K - 1, 2)), np.zeros((K, 1, 2))], axis=1)
    params = InputMarkovChainParams(rng.dirichlet(np.ones(K)), gate)
    columns = np.concatenate([np.ones((4, 5, 1)), inputs], axis=-1)
    into = scipy.special.softmax(np.einsum("btp,ijp->btij", columns, gate), axis=-1)
    return potentials, InputMarkovChain(K), params, Data(inputs=inputs), list(np.roll(into, -1, axis=1))


@pytest.mark.parametrize("varying", [False, True], ids=["chain", "input chain"])
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_chain(float64, varying, layout):
    """All paths of every sequence, with unnormalized p(x, z)^(1/T)."""
    potentials, latent, params, data, transitions = chains(varying)
    params = jax.tree.map(jnp.asarray, params)
    found = []
    for b, length in enumerate(LENGTHS):
        out_of = transitions[b] if not varying else transitions[b][:length]
        found.append(every_path(np.asarray(params.initial) ** (1 / T), out_of ** (1 / T), potentials[b, :length] / T))
    pairs = sum(w * f.pairs.sum(axis=0) for w, f in zip(WEIGHTS, found, strict=True))
    first = sum(w * f.marginals[0] for w, f in zip(WEIGHTS, found, strict=True) if len(f.marginals))
    inside = np.arange(5) < LENGTHS[:, None]
    if layout == "padded":
        given, weights = jnp.asarray(np.where(inside[..., None], potentials, 0)), jnp.asarray(WEIGHTS)
        data = Data(inputs=data.inputs, lengths=jnp.asarray(LENGTHS))
        expected = np.zeros((4, 5, K))
        expected[inside] = np.concatenate([f.marginals * w for f, w in zip(found, WEIGHTS, strict=True)])
        energies = [T * f.log_normalizer for f in found]
    else:
        starts = (np.broadcast_to(np.arange(5), (4, 5)) == 0)[inside]
        given, weights = jnp.asarray(potentials[inside]), jnp.asarray(np.repeat(WEIGHTS, LENGTHS))
        data = Data(inputs=None if data.inputs is None else data.inputs[inside], starts=jnp.asarray(starts))
        expected = np.concatenate([f.marginals * w for f, w in zip(found, WEIGHTS, strict=True)])
        energies = T * sum(f.log_normalizer for f in found)
    data = jax.tree.map(jnp.asarray, data)
    inferred = INFER(Annealed(latent, T), params, given, data, weights)
    if layout == "flat":
        inferred = jaxem.Inference(inferred.marginals, inferred.stats, jnp.sum(inferred.log_normalizer))
    assert_inference(inferred, expected, energies)
    np.testing.assert_allclose(inferred.stats.initial, first, rtol=1e-11)
    if not varying:
        np.testing.assert_allclose(inferred.stats.transition, pairs, rtol=1e-11, atol=1e-14)
    elif layout == "padded":
        assert_fisher(Annealed(latent, T), params, given, data)


def test_cold_is_hard(float64):
    rng = np.random.default_rng(3)
    potentials, params = jnp.asarray(rng.normal(-3, 2, (6, K))), CategoricalParams(jnp.asarray([0.3, 0.5, 0.2]))
    cold = INFER(Annealed(Categorical(K), 1e-3), params, potentials, Data(), None)
    hard = INFER(Hard(Categorical(K)), params, potentials, Data(), None)
    np.testing.assert_allclose(cold.marginals, hard.marginals, atol=1e-12)
    np.testing.assert_allclose(cold.log_normalizer, hard.log_normalizer, rtol=1e-12)


_RNG = np.random.default_rng(0)
X = np.concatenate([_RNG.poisson(c, (25, 2)) for c in ([2, 3], [3, 20], [18, 2], [20, 22])]).astype(float)
MODEL = jaxem.Mixture(jaxem.Poisson(), 4)


def bad_start():
    """Three components in one cluster, and one between two others: EM ends with two clusters in one component."""
    rate = jnp.asarray([[18.0, 2.0], [19.0, 3.0], [17.0, 2.0], [10.0, 20.0]])
    return jaxem.LatentParams(CategoricalParams(jnp.full(4, 0.25)), jaxem.PoissonParams(rate))


def test_a_bad_start_is_forgotten(float64):
    best = jaxem.fit(MODEL, X, key=jax.random.key(0), num_starts=10, tol=1e-9)
    em = jaxem.fit(MODEL, X, params=bad_start(), tol=1e-9)
    annealed = jaxem.fit(MODEL, X, params=bad_start(), algorithm=Annealing(Cooling(10.0, 20)), tol=1e-9)
    assert em.objective < best.objective - 100
    assert annealed.status == Status.CONVERGED
    assert annealed.objective == pytest.approx(best.objective, abs=1e-6)
    assert annealed.steps > 20
    # From T = 1 on the objectives are log-likelihoods, and rise; before they are not judged, and not shown.
    assert len(annealed.trace) == annealed.steps - 20 + 1
    assert np.all(np.diff(annealed.trace) >= -1e-9)


def test_at_one_it_is_em(float64):
    control = jaxem.Control(jaxem.Never(), max_steps=5)
    fitted = jax.jit(
        lambda a: jaxem.run(MODEL, bad_start(), jnp.asarray(X), algorithm=a, control=control, trace_size=6)
    )
    em = fitted(jaxem.EM())
    for schedule in (Cooling(1.0, 3), [1.0, 1.0]):
        annealed = fitted(Annealing(schedule))
        np.testing.assert_allclose(annealed.trace, em.trace, rtol=1e-12)


def test_temperatures():
    cooling = [float(Cooling(8.0, 3).temperature(jnp.int32(t))) for t in range(5)]
    np.testing.assert_allclose(cooling, [8, 4, 2, 1, 1], rtol=1e-6)
    given = Annealing([3.0, 1.5]).schedule
    assert [float(given.temperature(jnp.int32(t))) for t in range(4)] == [3.0, 1.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Annealed(Categorical, 2.0), "holds a latent"),
        (lambda: Annealed(Categorical(2), 0.0), "temperature"),
        (lambda: Cooling(0.5), "start"),
        (lambda: Annealing([0.5]), "temperatures"),
        (lambda: Annealing(3.0), "schedule"),
        (lambda: Annealing(inner=jaxem.EM), "inner"),
    ],
)
def test_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_model_without_temperature_is_named():
    with pytest.raises(jaxem.UnsupportedError, match=r"tempered.*Annealing"):
        jaxem.fit(jaxem.PPCA(1), X, key=jax.random.key(0), algorithm=Annealing())
