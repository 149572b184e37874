"""Monte-Carlo E-steps: draws against sums over every z, and the algorithms that draw anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import x64
from paths import every_path, random_chain

import jaxem
from jaxem import SAEM, CategoricalParams, Data, MarkovChainParams, MonteCarloEM, Status, StochasticEM
from jaxem.latents import Annealed, Categorical, InputMarkovChain, InputMarkovChainParams, MarkovChain, Sampled
from jaxem.stopping import Plateau

K, DRAWS = 3, 3000
KEY = jax.random.key(4)
INFER = jax.jit(lambda latent, params, potentials, data, weights: latent.infer(params, potentials, data, weights))


def assert_frequencies(found, probability):
    """Six standard errors of DRAWS draws."""
    error = np.sqrt(probability * (1 - probability) / DRAWS)
    assert np.all(np.abs(np.asarray(found) - probability) <= 6 * error + 1e-9)


def test_independent(float64):
    rng = np.random.default_rng(0)
    potentials, weights = jnp.asarray(rng.normal(-3, 1, (5, K))).at[1].set(-jnp.inf), rng.uniform(0.5, 2, 5)
    params = CategoricalParams(jnp.asarray([0.3, 0.7, 0.0]))
    exact = INFER(Categorical(K), params, potentials, Data(), None)
    drawn = INFER(Sampled(Categorical(K), KEY, DRAWS), params, potentials, Data(), weights)
    assert_frequencies(drawn.marginals / weights[:, None], np.asarray(exact.marginals))
    np.testing.assert_array_equal(drawn.marginals[:, 2], 0)
    np.testing.assert_array_equal(drawn.marginals[1], 0)
    np.testing.assert_allclose(drawn.stats, np.sum(drawn.marginals, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(drawn.log_normalizer, exact.log_normalizer)
    one = INFER(Sampled(Categorical(K), KEY), params, potentials, Data(), None)
    assert set(np.unique(one.marginals)) == {0.0, 1.0}


@pytest.mark.parametrize("layout", ["padded", "flat"])
@pytest.mark.parametrize("varying", [False, True], ids=["chain", "input chain"])
def test_paths(float64, layout, varying):
    """Single steps and pairs of steps of every sequence, against all of its paths."""
    rng = np.random.default_rng(1)
    lengths = np.array([4, 2, 0])
    inside = np.arange(4) < lengths[:, None]
    potentials = np.where(inside[..., None], rng.normal(-2, 1, (3, 4, K)), 0)
    initial, transition = random_chain(rng, K, zeros=0.3)
    inputs = rng.normal(size=(3, 4, 1))
    latent, params = MarkovChain(K), MarkovChainParams(initial, transition)
    if varying:
        gate = np.concatenate([rng.normal(size=(K, K - 1, 2)), np.zeros((K, 1, 2))], axis=1)
        latent, params = InputMarkovChain(K), InputMarkovChainParams(initial, gate)
        columns = np.concatenate([np.ones((3, 4, 1)), inputs], axis=-1)
        into = np.exp(np.einsum("btp,ijp->btij", columns, gate))
        out_of = np.roll(into / into.sum(axis=-1, keepdims=True), -1, axis=1)
    found = [
        every_path(initial, out_of[b, :n] if varying else transition, potentials[b, :n]) for b, n in enumerate(lengths)
    ]
    given = Data(inputs=inputs if varying else None, lengths=lengths)
    if layout == "flat":
        starts = (np.broadcast_to(np.arange(4), (3, 4)) == 0)[inside]
        given = Data(inputs=inputs[inside] if varying else None, starts=starts)
        potentials = potentials[inside]
    params, given, potentials = jax.tree.map(jnp.asarray, (params, given, potentials))
    keys = jax.random.split(KEY, DRAWS)
    z = np.asarray(jax.jit(jax.vmap(lambda key: latent.draw(key, params, potentials, given)))(keys))
    if layout == "flat":
        padded = np.full((DRAWS, *inside.shape), -1)
        padded[:, inside] = z
        z = padded
    assert np.all((z >= 0) == inside)
    for b, n in enumerate(lengths):
        one_hot = np.eye(K)[z[:, b, :n]]
        assert_frequencies(one_hot.mean(axis=0), found[b].marginals)
        pairs = np.mean(one_hot[:, :-1, :, None] * one_hot[:, 1:, None, :], axis=0)
        assert_frequencies(pairs, found[b].pairs)


def test_statistics_of_paths(float64):
    """Averages of whole paths: a pair statistic of averaged marginals would be another one."""
    rng = np.random.default_rng(2)
    initial, transition = random_chain(rng, K, zeros=0.4)
    params = MarkovChainParams(jnp.asarray(initial), jnp.asarray(transition))
    potentials, weights = jnp.asarray(rng.normal(-2, 1, (2, 5, K))), jnp.asarray([1.0, 2.0])
    exact = INFER(MarkovChain(K), params, potentials, Data(), weights)
    drawn = INFER(Sampled(MarkovChain(K), KEY, DRAWS), params, potentials, Data(), weights)
    np.testing.assert_allclose(drawn.stats.transition, exact.stats.transition, atol=0.25)
    np.testing.assert_allclose(drawn.stats.initial, exact.stats.initial, atol=0.15)
    np.testing.assert_array_equal(np.asarray(drawn.stats.transition) == 0, np.asarray(transition) == 0)
    assert float(jnp.sum(drawn.stats.transition)) == pytest.approx(4 * 3, rel=1e-12)


_RNG = np.random.default_rng(3)
COUNTS = np.concatenate([_RNG.poisson([1.0, 6.0], (60, 2)), _RNG.poisson([5.0, 2.0], (43, 2))]).astype(float)
EXACT = jaxem.Mixture(jaxem.Poisson(), 2)
MODEL = jaxem.LatentModel(Sampled(Categorical(2), KEY), jaxem.Poisson())


@pytest.fixture(scope="module")
def best():
    with x64(True):
        yield jaxem.fit(EXACT, COUNTS, key=jax.random.key(1), tol=1e-10)


@pytest.mark.parametrize("algorithm", [MonteCarloEM(KEY), SAEM(KEY, 20)], ids=["growing samples", "saem"])
def test_near_the_optimum(float64, best, algorithm):
    """The noise left costs less than a tenth of what a parameter is worth (1/2 of log-likelihood)."""
    result = jaxem.fit(MODEL, COUNTS, params=best.params, algorithm=algorithm)
    assert result.status == Status.CONVERGED
    assert best.objective - 0.05 < result.objective <= best.objective + 1e-9
    exact = EXACT.e_step(result.params, jnp.asarray(COUNTS)).log_likelihood
    assert result.objective == pytest.approx(float(exact), rel=1e-12)


def test_one_draw_is_stochastic_em(float64, best):
    """Celeux & Diebolt: complete-data estimates of one draw, another one in every step."""
    x = jnp.asarray(COUNTS)
    algorithm = MonteCarloEM(KEY, growth=1.0)
    step = jax.jit(lambda state: algorithm.step(MODEL, state, x, None)[0])
    first = step(algorithm.init(MODEL, best.params, x, None))
    again = step(algorithm.init(MODEL, best.params, x, None))
    np.testing.assert_array_equal(first.params.latent.weights, again.params.latent.weights)
    for weights in (first.params.latent.weights, step(first).params.latent.weights):
        np.testing.assert_allclose(weights * len(x), np.round(weights * len(x)), atol=1e-9)
    assert not np.array_equal(first.params.likelihood.rate, step(first).params.likelihood.rate)


def test_samples_grow(float64, best):
    """Step t averages ceil(2^t) draws, 3 at most: the counts are that many parts of whole ones."""
    x = jnp.asarray(COUNTS)
    algorithm = MonteCarloEM(KEY, growth=2.0, most=3.0)
    step = jax.jit(lambda state: algorithm.step(MODEL, state, x, None)[0])
    state = algorithm.init(MODEL, best.params, x, None)
    for count in (1, 2, 3, 3):
        state = step(state)
        parts = np.asarray(state.params.latent.weights) * len(x) * count
        np.testing.assert_allclose(parts, np.round(parts), atol=1e-8)


def test_draws_of_a_log_joint(float64):
    """A user's model draws by itself, and its statistics are no sums: one E-step a step, or a refusal."""

    def log_joint(params, x, z):
        return -0.5 * jnp.sum((x - params["mean"] - z) ** 2) - 0.5 * jnp.sum(z**2)

    model = jaxem.LogJoint(log_joint, jaxem.GaussianLatent(2, method=jaxem.MonteCarlo(32, KEY)))
    x, params = jnp.asarray(COUNTS[:20]), {"mean": jnp.zeros(2)}
    with pytest.raises(jaxem.UnsupportedError, match="growth=None"):
        jaxem.fit(model, x, params=params, algorithm=MonteCarloEM(KEY))
    with pytest.raises(jaxem.UnsupportedError, match="no sums"):
        jaxem.fit(model, x, params=params, algorithm=SAEM(KEY))
    fitted = jaxem.fit(
        model, x, params=params, algorithm=MonteCarloEM(KEY, growth=None), tol=1e-2, max_steps=60, on_failure="ignore"
    )
    np.testing.assert_allclose(fitted.params["mean"], np.mean(x, axis=0), atol=0.2)


def test_a_fall_is_no_failure(float64, best):
    """Plain EM on fixed draws may fall: what draws says that it is not monotone, through everything that holds it."""
    assert not jaxem.WithPrior(MODEL, 1.0).monotone
    assert not jaxem.Mixture(MODEL, 2).monotone
    fitted = jaxem.fit(MODEL, COUNTS, params=best.params, max_steps=20, on_failure="ignore")
    assert fitted.status != Status.DECREASED


def test_redraw():
    wrapped = jaxem.Chunked(jaxem.WithPrior(MODEL, 1.0), 40)
    redrawn = wrapped.redraw(jax.random.key(0))
    assert not np.array_equal(
        jax.random.key_data(redrawn.model.model.latent.key), jax.random.key_data(MODEL.latent.key)
    )
    assert jaxem.PPCA(1).redraw(KEY).num_factors == 1
    tempered = Sampled(Annealed(Categorical(2), 3.0), KEY).redraw(jax.random.key(0))
    assert tempered.latent.temperature == 3.0


def test_in_mini_batches_and_lanes(float64, best):
    starts = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), best.params)
    options = {
        "algorithm": SAEM(KEY, 12, batch_size=30),
        "control": jaxem.Control(Plateau(1e-3, 3), max_steps=90),
    }
    lanes = jax.jit(lambda p: jaxem.run_lanes(MODEL, p, jnp.asarray(COUNTS), **options))(starts)
    assert np.all(lanes.status == Status.CONVERGED)
    assert np.all(np.abs(lanes.objective - best.objective) < 0.5)
    np.testing.assert_allclose(lanes.objective[0], lanes.objective[1], rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Sampled(Categorical(2), None), ValueError, "no default"),
        (lambda: Sampled(Categorical(2), KEY, 0), ValueError, "num_samples"),
        (lambda: Sampled(Categorical, KEY), ValueError, "holds a latent"),
        (lambda: MonteCarloEM(KEY, growth=0.9), ValueError, "growth"),
        (lambda: SAEM(KEY, -1), ValueError, "burn_in"),
        (lambda: jaxem.fit(EXACT, COUNTS, key=KEY, algorithm=MonteCarloEM(KEY)), jaxem.UnsupportedError, "draws"),
    ],
)
def test_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_its_own_rule():
    assert isinstance(MonteCarloEM(KEY).stopping(None), Plateau)
    assert MonteCarloEM(KEY).stopping(1e-3).tol == 1e-3
    assert isinstance(SAEM(KEY), StochasticEM)
