"""Functions compared by what they are: one program for a model made anew, another one for whatever differs."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import same_function
from jaxem.same_function import SameFunction, same

SCALE = 2.0
TABLE = np.array([1.0, 2.0])
MUTABLE = {"scale": 1.0}


def _is_same(make, *values):
    """Whether the functions made of the values are the same, each made anew."""
    first, *others = [SameFunction(make(value)) for value in values]
    assert all(hash(first) == hash(other) for other in others if first == other)
    return all(first == other for other in others)


def _closing(value):
    return lambda x: x * value


def _name(value):
    """What a case is called: the same in every process, where what a function prints is its address."""
    return getattr(value, "__name__", None) or str(value)


class TestTheSame:
    @pytest.mark.parametrize(
        "value",
        [
            1,
            1.5,
            "a",
            None,
            (1, (2.0, "b")),
            np.float32(2),
            jnp.float32,
            np.arange(3),
            jnp.arange(3.0),
            jnp.log,
            np.sum,
        ],
        ids=_name,
    )
    def test_equal_values_in_a_closure(self, value):
        again = np.copy(value) if isinstance(value, np.ndarray) else value
        assert _is_same(_closing, value, again)

    def test_functions_in_a_closure_are_compared_the_same_way(self):
        assert _is_same(lambda scale: _closing(_closing(scale).__call__) and (lambda x: _closing(scale)(x)), 2.0, 2.0)

        def nested(scale):
            inner = _closing(scale)
            return lambda x: inner(x) + 1

        assert _is_same(nested, 2.0, 2.0)
        assert not _is_same(nested, 2.0, 3.0)

    def test_partial_and_recursive_functions(self):
        assert _is_same(lambda k: functools.partial(lambda x, k: x * k, k=k), 3, 3)
        assert not _is_same(lambda k: functools.partial(lambda x, k: x * k, k=k), 3, 4)

        def recursive(base):
            def f(n):
                return base if n == 0 else n * f(n - 1)

            return f

        assert _is_same(recursive, 1, 1)
        assert not _is_same(recursive, 1, 2)

    def test_transformed_functions(self):
        assert _is_same(lambda scale: jax.grad(_closing(scale)), 2.0, 2.0)
        assert not _is_same(lambda scale: jax.grad(_closing(scale)), 2.0, 3.0)
        assert not _is_same(lambda scale: jax.jit(_closing(scale)), 2.0, 2.0)  # as JAX compares them

    def test_jaxem_values(self):
        assert _is_same(_closing, jaxem.Discrete(2), jaxem.Discrete(2))
        assert not _is_same(_closing, jaxem.Discrete(2), jaxem.Discrete(3))

    def test_optax_optimizers(self):
        assert same(optax.adam(1e-3)) == same(optax.adam(1e-3))
        assert hash(same(optax.adam(1e-3))) == hash(same(optax.adam(1e-3)))
        assert same(optax.adam(1e-3)) != same(optax.adam(1e-2))
        assert same(optax.adam(1e-3)) != same(optax.sgd(1e-3))
        assert jax.tree.structure(jaxem.GradientEM(optax.adam(0.1))) == jax.tree.structure(
            jaxem.GradientEM(optax.adam(0.1))
        )


class TestNotTheSame:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            *[(1, 2), (1, 1.0), (1, True), (0.0, -0.0), ("a", b"a"), ((1, 2), (1, 3)), (jnp.log, jnp.exp)],
            *[
                (np.arange(3), np.arange(3.0)),
                (np.arange(4), np.arange(4).reshape(2, 2)),
                (np.arange(2), jnp.arange(2)),
            ],
            *[(np.array([0.0]), np.array([-0.0])), (jaxem.Gaussian(), jaxem.Poisson())],
        ],
        ids=_name,
    )
    def test_values_in_a_closure(self, one, other):
        assert not _is_same(_closing, one, other)

    def test_code(self):
        assert SameFunction(lambda x: x + 1) != SameFunction(lambda x: x + 2)

    def test_defaults(self):
        def make(a, b):
            def f(x, scale=a, *, shift=b):
                return x * scale + shift

            return SameFunction(f)

        assert make(1, 2) == make(1, 2)
        assert make(1, 2) != make(2, 2)
        assert make(1, 2) != make(1, 3)

    @pytest.mark.parametrize(
        "value", [[1], {"a": 1}, {1}, np.array([object()]), object()], ids=lambda v: type(v).__name__
    )
    def test_what_can_change_unseen(self, value):
        function = _closing(value)
        assert not _is_same(_closing, value, value)
        assert SameFunction(function) == SameFunction(function)

    def test_globals(self, monkeypatch):
        def make():
            return SameFunction(lambda x: x * SCALE)

        first = make()
        assert make() == first
        monkeypatch.setitem(globals(), "SCALE", 3.0)
        assert make() != first

    def test_a_mutable_global_and_an_assigned_one(self):
        assert not _is_same(lambda _: lambda x: x * MUTABLE["scale"], 0, 0)

        def counting(_):
            count = 0

            def f(x):
                nonlocal count
                count += 1
                return x

            return f

        assert not _is_same(counting, 0, 0)

    def test_an_array_changed_in_place(self, monkeypatch):
        def make():
            return SameFunction(lambda x: x * TABLE)

        array = np.array([1.0, 2.0])
        before, global_before = SameFunction(_closing(array)), make()
        array[1] = 5.0
        monkeypatch.setitem(globals(), "TABLE", array)
        assert SameFunction(_closing(array)) != before
        assert make() != global_before
        with pytest.raises(ValueError, match="has changed since the model was made"):
            before(1.0)

    def test_attributes_of_a_users_class(self):
        class Settings:
            scale = 1.0

        def make():
            return SameFunction(lambda x: x * Settings.scale)

        first = make()
        assert make() == first
        Settings.scale = 2.0
        assert make() != first

    def test_a_traced_value(self):
        def f(v):
            assert not _is_same(_closing, v, v)
            return v

        jax.make_jaxpr(f)(1.0)


def _two_normals(separation):
    return jaxem.LogJoint(
        lambda params, x, z: jax.scipy.stats.norm.logpdf(x, params["mean"][z], 1.0) + jnp.log(0.5) + 0 * separation,
        jaxem.Discrete(2),
        lambda key: {"mean": separation * jax.random.normal(key, (2,))},
    )


def test_a_model_made_anew_is_compiled_once():
    x = np.concatenate([np.random.default_rng(0).normal(m, 1, 30) for m in (0, 4)])
    from jaxem.one_program import _slice_as_it_is, _slice_soon

    def programs():
        return _slice_soon._cache_size() + _slice_as_it_is._cache_size()

    before = programs()
    results = [jaxem.fit(_two_normals(2.0), x, key=jax.random.key(0), on_failure="ignore") for _ in range(3)]
    assert programs() == before + 1
    assert results[0].objective == results[2].objective
    assert jax.tree.structure(_two_normals(2.0)) != jax.tree.structure(_two_normals(3.0))


class TestWarning:
    @pytest.fixture(autouse=True)
    def _anew(self, monkeypatch):
        monkeypatch.setattr(same_function, "_programs", {})

    def test_names_the_place_and_the_reason(self):
        functions = [SameFunction(_closing([i])) for i in range(8)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for function in functions[:7] + functions[:7]:
                function(1)
        with pytest.warns(UserWarning, match=r"8 programs were compiled for _closing.*line \d+.*list \[7\]"):
            functions[7](1)

    def test_not_for_the_same_function(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(20):
                SameFunction(_closing(2.0))(1)


def test_a_checkpoint_knows_the_function_as_before():
    function = _closing(1.0)
    assert repr(same(function)) == repr(function)
