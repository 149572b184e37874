"""Chunked: how large its blocks are, when T(x) is kept, and that neither changes a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.cost import nbytes, numbers_written, peak_bytes
from jaxem.model import Prepared, as_data, num_examples
from jaxem.wrappers import chunked

RNG = np.random.default_rng(0)
N = 20_011  # a prime: no block size divides it
WIDE = jnp.asarray(RNG.normal(size=(N, 8)), jnp.float32)
COUNTS = jnp.asarray(RNG.poisson(4.0, (N, 2)), jnp.float32)
INPUTS = jaxem.Data(x=WIDE[:, :1], inputs=WIDE)
SEQUENCES = WIDE[:2000].reshape(400, 5, 8)

MODELS = {
    "full": (jaxem.Mixture(jaxem.Gaussian(), 3), WIDE),
    "diagonal": (jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 3), WIDE),
    "regression": (jaxem.Mixture(jaxem.LinearRegression(), 2), INPUTS),
    "chain": (jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), 2), SEQUENCES),
}


def problem(name):
    model, data = MODELS[name]
    data = as_data(data)
    model = model.calibrate(data)
    return model, data, jax.eval_shape(model.init, jax.random.key(0), data)


class TestMemory:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_block_keeps_to_the_budget_and_uses_it(self, name):
        """As the compiler counts its temporaries; what no block size can change is in the smallest budget, too."""
        model, data, params = problem(name)
        memory = 600_000
        wrapped = jaxem.Chunked(model, memory=memory)
        prepared = jax.eval_shape(wrapped.prepare, data)
        kept = nbytes(prepared) if isinstance(prepared, Prepared) else 0
        compiled = jax.jit(wrapped.e_step).lower(params, prepared).compile().memory_analysis()
        assert kept + compiled.temp_size_in_bytes <= memory
        rows = wrapped.rows_per_block(data)
        assert rows == num_examples(data) or rows > 50

    def test_more_memory_is_never_less_rows(self):
        model, data, _ = problem("full")
        rows = [jaxem.Chunked(model, memory=m).rows_per_block(data) for m in (1, 10**4, 10**5, 10**6, 10**7, 10**9)]
        assert rows == sorted(rows)
        assert rows[0] == 1
        assert rows[-1] > 5_000

    def test_without_a_budget_a_part_of_what_is_free(self, monkeypatch):
        model, data, _ = problem("full")
        plenty = jaxem.Chunked(model).rows_per_block(data)
        assert isinstance(jax.eval_shape(jaxem.Chunked(model).prepare, data), Prepared)
        monkeypatch.setattr(chunked, "free_bytes", lambda: 4 * 10**5)
        assert jaxem.Chunked(model).rows_per_block(data) == jaxem.Chunked(model, memory=10**5).rows_per_block(data)
        assert jaxem.Chunked(model).rows_per_block(data) < plenty / 10
        assert not isinstance(jax.eval_shape(jaxem.Chunked(model).prepare, data), Prepared)

    @pytest.mark.parametrize("given", [{"memory": 0}, {"block_size": 0}])
    def test_less_than_one_is_refused(self, given):
        with pytest.raises(ValueError, match="at least 1"):
            jaxem.Chunked(MODELS["full"][0], **given)


class TestKeep:
    """T(x) of all rows is kept where it costs more to make than to read, and fits."""

    @pytest.mark.parametrize(
        ("family", "x", "kept"),
        [
            (jaxem.Gaussian(), WIDE, True),
            (jaxem.Gaussian(jaxem.Diagonal()), WIDE, False),
            (jaxem.Poisson(), COUNTS, True),
            (jaxem.Gamma(), COUNTS + 1, True),
            (jaxem.Bernoulli(), COUNTS.clip(0, 1), True),
            (jaxem.LinearRegression(), INPUTS, False),
        ],
        ids=["full", "diagonal", "poisson", "gamma", "bernoulli", "regression"],
    )
    def test_the_choice(self, family, x, kept):
        model = jaxem.Mixture(family, 2).calibrate(as_data(x))

        def keeps(**options):
            return isinstance(jax.eval_shape(jaxem.Chunked(model, **options).prepare, as_data(x)), Prepared)

        assert keeps() == kept
        assert keeps(keep=True)
        assert not keeps(keep=False)
        statistics = jax.eval_shape(model.prepare, as_data(x))
        assert not keeps(memory=nbytes(statistics))
        assert keeps(memory=3 * nbytes(statistics)) == kept

    def test_patterns_of_missing_cells_belong_to_their_block(self):
        data = jaxem.Data(x=WIDE, mask=WIDE < 1)
        model = jaxem.Mixture(jaxem.Gaussian(), 2).specialize(data).calibrate(data)
        assert not isinstance(jax.eval_shape(jaxem.Chunked(model, keep=True).prepare, data), Prepared)

    def test_what_is_kept_is_what_the_model_makes(self):
        model, data, _ = problem("full")
        kept = jax.jit(jaxem.Chunked(model, memory=10**7, keep=True).prepare)(data)
        np.testing.assert_array_equal(kept.statistics, jax.jit(model.prepare)(data).statistics)

    def test_moments_are_all_that_is_left_of_the_rows(self):
        model = jaxem.FactorAnalysis(2)
        wrapped = jaxem.Chunked(model, memory=10**5)
        data, weights = jax.eval_shape(lambda x: wrapped.calibrate(x).compress(x), WIDE)
        assert num_examples(data) == 1
        assert weights is None


class TestSameNumbers:
    def test_e_step_and_scores(self, float64):
        """Of two data sets side by side: every lane has its own blocks."""
        model = jaxem.Mixture(jaxem.Gaussian(), 3)
        x = jnp.asarray(np.asarray(WIDE[:602, :2], float).reshape(2, 301, 2))
        weights = jnp.linspace(0, 2, 602).reshape(2, 301)
        params = jax.jit(lambda x: model.calibrate(x).init(jax.random.key(0), x))(x[0])

        @jax.jit
        def of(model):
            def one(x, weights):
                own = model.calibrate(x)
                prepared, weights = own.compress(as_data(x), weights)
                return own.e_step(params, prepared, weights), own.log_likelihood(params, prepared)

            return jax.vmap(one)(x, weights)

        want = of(model)
        for options in ({"keep": True, "block_size": 64}, {"memory": 20_000}):
            got = of(jaxem.Chunked(model, **options))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), got, want)


class TestCost:
    """What is counted in a trace."""

    def test_bytes_alive_at_once(self):
        x = jax.ShapeDtypeStruct((100,), jnp.float32)
        assert peak_bytes(lambda x: x + 1, x) == 400
        assert peak_bytes(lambda x: (x + 1) * 2 - 3, x) == 800
        assert peak_bytes(lambda x: (x + 1, x + 2, x + 3), x) == 1200
        assert peak_bytes(lambda x: jnp.sum(jax.jit(lambda y: y * y + 1)(x)), x) == 800
        stacked = lambda x: jax.lax.scan(lambda c, a: (c + a, c * a), 0.0, x)[1]  # noqa: E731
        assert 400 <= peak_bytes(stacked, x) < 420

    def test_numbers_written(self):
        x = jax.ShapeDtypeStruct((100,), jnp.float32)
        assert numbers_written(lambda x: x * 2 + 1, x) == 200
        assert numbers_written(lambda x: jax.lax.scan(lambda c, a: (c + a, None), jnp.float32(0), x)[0], x) == 100
