"""Programs of functions that are equal to themselves alone are let go; the others stay."""

import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import programs
from jaxem.same_function import SameFunction


def _apply(function, x):
    return function(x)


def _lone(values):
    return jax.tree_util.Partial(SameFunction(lambda x: x + values[0]))


def _shared(value):
    return jax.tree_util.Partial(SameFunction(lambda x: x + value))


def test_results_and_kept_programs():
    jitted = programs.jit(_apply)
    functions = [_lone([i]) for i in range(programs._KEPT + 4)]
    assert [int(jitted(f, 1)) for f in functions] == list(range(1, programs._KEPT + 5))
    assert jitted._cache_size() == programs._KEPT
    assert int(jitted(functions[0], 1)) == 1  # compiled again, and right


def test_what_is_let_go_is_freed():
    jitted, client = programs.jit(_apply), jax.devices()[0].client
    gc.collect()
    before = len(client.live_executables())
    for i in range(programs._KEPT + 6):
        jitted(_lone([i]), 1)
    gc.collect()
    assert len(client.live_executables()) == before + programs._KEPT


def test_equal_functions_share_a_program():
    jitted = programs.jit(_apply, static_argnums=())
    for _ in range(5):
        assert int(jitted(_shared(2), 1)) == 3
    assert jitted._cache_size() == 1
    jitted.clear_cache()
    assert jitted._cache_size() == 0


class TestMethod:
    """A question to a model is one program where it is asked by itself."""

    def test_it_is_traced_once(self, float32):
        @programs.method
        @chex.assert_max_traces(n=1)
        def total(model, x):
            return jnp.sum(x) + model

        for scale in (1.0, 2.0):
            assert total(1.0, np.full(3, scale)) == 3 * scale + 1
        assert total(x=np.ones(3), model=1.0) == 4

    def test_static_arguments_are_part_of_the_program(self):
        @programs.method(static=("count",))
        def repeated(x, count=2):
            return jnp.stack([x] * count)

        assert repeated(np.zeros(3)).shape == (2, 3)
        assert repeated(np.zeros(3), 4).shape == (4, 3)
        assert repeated(np.zeros(3), count=1).shape == (1, 3)

    def test_inside_of_a_program_it_is_the_function(self):
        kinds = []

        @programs.method
        def question(x):
            kinds.append(type(x))
            return x + 1

        text = jax.jit(lambda x: question(x)).lower(1.0).as_text()
        assert text.count("func.func") == 1
        assert jax.grad(question)(1.0) == 1

    @pytest.mark.parametrize("given", ["a word", None, {"a": np.array(["word"])}])
    def test_what_no_program_takes_reaches_the_function(self, given):
        assert programs.method(lambda x: x)(given) is given

    def test_wide_integers_do_not_wrap(self, float32):
        @programs.method
        def question(x):
            return jnp.sum(x)

        assert question(np.array([2**40, 0])) == 2.0**40
        assert question(np.array([2**30, 0])) == 2**30
        # And so a row that lies far off is not taken for one in the middle.
        model = jaxem.Mixture(jaxem.Gaussian(), 2)
        x = np.random.default_rng(0).normal(size=(31, 2)).astype(np.float32)
        params = model.init(jax.random.key(0), x)
        far = np.array([[2**40, 0]])
        assert model.log_likelihood(params, far)[0] == model.log_likelihood(params, far.astype(np.float32))[0] < -1e20

    @pytest.mark.parametrize("name", ["log_likelihood", "posterior", "predict", "impute"])
    def test_a_question_to_a_model_is_one_program(self, float32, caplog, name):
        x = np.random.default_rng(0).normal(size=(31, 2)).astype(np.float32)
        model = jaxem.Mixture(jaxem.Gaussian(), 2)
        params = jax.block_until_ready(model.init(jax.random.key(0), x))
        with jax.log_compiles():
            first = getattr(model, name)(params, x)
        compiled = [record for record in caplog.records if record.getMessage().startswith("Compiling ")]
        assert len(compiled) == 1
        chex.assert_trees_all_equal(first, getattr(model, name)(params, x))
