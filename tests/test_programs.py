"""Programs of functions that are equal to themselves alone are let go; the others stay."""

import gc

import jax

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
