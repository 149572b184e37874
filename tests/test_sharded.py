"""Rows over four virtual devices: the numbers of the plain fit, and nothing but statistics between the devices."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxem
from jaxem.model import num_examples

_ROWS = PartitionSpec("data")


def _two_groups(n):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-1, 1, (n // 2, 3)), rng.normal(1, 0.7, (n - n // 2, 3))])


def _case(name):
    """A model, data, weights and the number of starts."""
    rng = np.random.default_rng(1)
    x = _two_groups(103)
    mixture = jaxem.Mixture(jaxem.Gaussian(), 2)
    if name == "mixture":
        return mixture, x, None, 3
    if name == "masked":
        data = jaxem.Data(x=x[:72], mask=rng.uniform(size=(72, 3)) < 0.8)
        cells = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)
        return jaxem.WithPrior(jaxem.Chunked(cells, 5), 2.0), data, rng.uniform(0.2, 2, 72), 1
    if name == "hmm":
        steps = rng.normal(size=(30, 5, 2)) + 3 * (np.arange(5)[:, None] > 2)
        data = jaxem.Data(x=steps, lengths=rng.integers(2, 6, 30).astype(np.int32))
        return jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), 2), data, rng.uniform(0.2, 2, 30), 1
    factors = rng.normal(size=(102, 1)) @ rng.uniform(0.5, 1, (1, 5))
    return jaxem.FactorAnalysis(1), factors + rng.normal(size=(102, 5)), None, 1


@functools.partial(jax.jit, static_argnums=4)
def _begin(model, key, data, weights, num_starts):
    model = model.calibrate(data, weights)
    starts = jax.vmap(lambda k: model.init(k, data, weights))(jax.random.split(key, num_starts))
    return model, starts, *model.compress(data, weights)


@functools.cache
def _fitted(name, sharded):
    """How the lanes ended, the compiled loop as text, and the number of values in the statistics of all lanes."""
    model, data, weights, num_starts = _case(name)
    if sharded:
        mesh = jaxem.make_mesh(data=4)
        data, weights = jaxem.place(data, weights, mesh=mesh)
        model = jaxem.Sharded(model, mesh)
    args = _begin(model, jax.random.key(2), data, weights, num_starts)
    loop = jax.jit(lambda *args: jaxem.run_lanes(*args)).lower(*args).compile()
    model, params, *rows = args
    step = jax.eval_shape(model.e_step, jax.tree.map(lambda a: a[0], params), *rows)
    size = num_starts * sum(leaf.size for leaf in jax.tree.leaves(step))
    return jax.device_get(loop(*args)), loop.as_text(), size


_CASES = ["mixture", "masked", "hmm", "factors"]


@pytest.mark.parametrize("name", _CASES)
def test_the_fit_is_the_plain_one(float64, name):
    plain, sharded = _fitted(name, False)[0], _fitted(name, True)[0]
    assert np.all(plain.status == jaxem.Status.CONVERGED)
    np.testing.assert_array_equal(sharded.steps, plain.steps)
    np.testing.assert_array_equal(sharded.status, plain.status)
    chex.assert_trees_all_close(sharded, plain, rtol=1e-9, atol=1e-9)


_COLLECTIVE = re.compile(r"= (.+?) (all-|ragged-|reduce-scatter|collective-)([a-z-]+)\(")


@pytest.mark.parametrize("name", _CASES)
def test_devices_send_each_other_statistics_and_nothing_else(float64, name):
    _, text, size = _fitted(name, True)
    sent = [(kind + rest, shapes) for shapes, kind, rest in _COLLECTIVE.findall(text)]
    if name == "factors":  # every device holds the moments
        assert not sent
        return
    assert sent
    for kind, shapes in sent:
        assert kind in ("all-reduce", "all-reduce-start")
        values = sum(
            math.prod(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\w\[([\d,]*)\]", shapes)
        )
        assert values <= size


@pytest.mark.parametrize(
    "model", [jaxem.WithPrior(jaxem.Mixture(jaxem.Poisson(), 2)), jaxem.FactorAnalysis(1)], ids=str
)
def test_no_device_ever_holds_all_rows(model):
    """What comes before the loop: calibration, a prior's statistics and a start look at a sample, or add sums."""
    mesh, n = jaxem.make_mesh(data=4), 2**18
    x = jax.ShapeDtypeStruct(
        (n, 3), np.float32, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    )

    @jax.jit
    def before(key, x):
        own = jaxem.Sharded(model, mesh).calibrate(x)
        return own, own.init(key, x)

    text = before.lower(jax.random.key(0), x).compile().as_text()
    for shapes, _, _ in _COLLECTIVE.findall(text):
        for dims in re.findall(r"\w\[([\d,]*)\]", shapes):
            assert math.prod(map(int, filter(None, dims.split(",")))) <= n // 4, shapes


def test_what_a_fitted_model_is_asked(float64):
    model, x, _, _ = _case("mixture")
    params = jax.tree.map(lambda a: a[0], _fitted("mixture", False)[0].params)
    mesh = jaxem.make_mesh(data=4)
    sharded = jaxem.Sharded(model, mesh)

    @jax.jit
    def asked(model, x):
        return model.log_likelihood(params, x), model.posterior(params, x), model.predict(params, x)

    for ours, theirs in zip(asked(sharded, x), asked(model, x), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    rows = jax.device_put(x[:100], NamedSharding(mesh, _ROWS))
    assert asked(sharded, rows)[0].sharding.spec == _ROWS


def test_gradients_are_those_of_the_model(float64):
    model, x, _, _ = _case("mixture")
    params = jax.tree.map(lambda a: a[0], _fitted("mixture", False)[0].params)
    sharded = jaxem.Sharded(model, jaxem.make_mesh(data=4))

    @jax.jit
    def gradient(model, params, x):
        return jax.grad(lambda p, d: model.e_step(p, d).log_likelihood, argnums=(0, 1))(params, x)

    ours, theirs = gradient(sharded, params, x), gradient(model, params, x)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_frozen_parameters_inside_and_outside(float64):
    model, x, _, _ = _case("mixture")
    mesh = jaxem.make_mesh(data=4)
    params = jax.tree.map(lambda a: a[0], _fitted("mixture", False)[0].params)
    both = [
        jaxem.Sharded(jaxem.Frozen(model, ["mean"]), mesh),
        jaxem.Frozen(jaxem.Sharded(model, mesh), ["mean"]),
        jaxem.Frozen(model, ["mean"]),
    ]

    @jax.jit
    def step(model, x):
        return model.m_step(params, model.e_step(params, x).stats)

    inside, outside, plain = (step(one, x[:80]) for one in both)
    for ours in (inside, outside):
        chex.assert_trees_all_close(ours, plain, rtol=1e-12, atol=1e-14)


def test_lanes_and_rows_on_two_axes(float64):
    """Lanes of one half of the devices stop long before those of the other, and nobody waits for a sum."""
    model, x, _, _ = _case("mixture")
    model, params, data, weights = _begin(model, jax.random.key(2), x, None, 3)
    plain = _fitted("mixture", False)[0]
    mesh = jaxem.make_mesh(lanes=2, data=2)
    rows, weights = jaxem.place(data, weights, mesh=mesh)

    def lanes(model, params, data, weights, most):
        one = jax.tree.map(lambda a: a[0], params)
        control = jaxem.Control(max_steps=most[0])
        run = jaxem.run(jaxem.Summed(model), one, data, weights, control=control)
        return jax.tree.map(lambda a: a[None], run)

    own = PartitionSpec("lanes")
    program = jax.jit(
        jax.shard_map(
            lanes,
            mesh=mesh,
            in_specs=(PartitionSpec(), own, _ROWS, _ROWS, own),
            out_specs=own,
            check_vma=False,
        )
    )
    two = jax.tree.map(lambda a: a[:2], params)
    run = jax.device_get(program(model, two, rows, weights, jnp.array([3, 1000])))
    assert run.steps.tolist() == [3, plain.steps[1]]
    assert plain.steps[1] > 5
    for ours, theirs in zip(jax.tree.leaves(run.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9, atol=1e-9)


def test_rows_are_placed_where_they_are_worked_on(float64):
    mesh = jaxem.make_mesh(data=4)
    x = np.arange(20.0).reshape(10, 2)
    data, weights = jaxem.place(jaxem.Data(x=x, labels=np.arange(10)), mesh=mesh)
    assert num_examples(data) == 12
    assert weights.tolist() == [1.0] * 10 + [0.0] * 2
    np.testing.assert_array_equal(np.asarray(data.x), np.concatenate([x, x[-1:], x[-1:]]))
    assert {shard.data.shape for shard in data.x.addressable_shards} == {(3, 2)}
    whole, none = jaxem.place(x[:8], mesh=mesh)
    assert none is None
    np.testing.assert_array_equal(np.asarray(whole), x[:8])
    few, weights = jaxem.place(x[:2], np.array([2.0, 3.0]), mesh=mesh)
    assert weights.tolist() == [2.0, 3.0, 0.0, 0.0]
    np.testing.assert_array_equal(np.asarray(few), x[[0, 1, 1, 1]])


def test_a_memory_map_is_placed_in_its_own_type(float32, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    data, weights = jaxem.place(np.load(tmp_path / "x.npy", mmap_mode="r"), mesh=jaxem.make_mesh(data=4))
    assert data.dtype == weights.dtype == jnp.float32
    assert data.shape == (8, 2)


def test_refusals():
    model = jaxem.Mixture(jaxem.Gaussian(), 2)
    mesh = jaxem.make_mesh(data=2)
    explicit = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match="expected a mesh"):
        jaxem.Sharded(model, jax.devices())
    with pytest.raises(ValueError, match="no axis 'rows'; its axes are 'data'"):
        jaxem.Sharded(model, mesh, "rows")
    with pytest.raises(ValueError, match="type Auto"):
        jaxem.Sharded(model, explicit)
    with pytest.raises(jaxem.UnsupportedError, match="E-step of _FixedPoint is not a sum over examples"):
        jaxem.Sharded(jaxem.FixedPoint(jnp.cos, jnp.sum), mesh)
    x = np.zeros((8, 1))
    hmm = jaxem.Sharded(jaxem.HMM(jaxem.Gaussian(), 2), mesh)
    with pytest.raises(jaxem.UnsupportedError, match="flat sequences cannot be cut"):
        hmm.compress(x)
    with pytest.raises(jaxem.UnsupportedError, match="flat sequences cannot be cut"):
        hmm.e_step(None, x)
    with pytest.raises(jaxem.UnsupportedError, match="Summed does not define calibrate"):
        jaxem.Summed(model).calibrate(x)
    with pytest.raises(ValueError, match="needs 8 devices; there are 4"):
        jaxem.make_mesh(lanes=2, data=4)
    with pytest.raises(ValueError, match="axis 'data' of a mesh needs a whole number of devices"):
        jaxem.make_mesh(data=0)
    with pytest.raises(ValueError, match="no rows to place"):
        jaxem.place(x[:0], mesh=mesh)
    with pytest.raises(ValueError, match="need at least 4 rows per shard; got 3"):
        jaxem.place(x, mesh=mesh, rows_per_shard=3)
