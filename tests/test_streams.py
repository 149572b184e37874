"""Data in blocks: the plain fit's numbers, from every source, with errors that say where, and no thread left behind."""

import itertools
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import x64

import jaxem
from jaxem import Block, Control, Data, Incremental, Online, Status, StochasticEM, Stream, StreamError, UnsupportedError
from jaxem.lane import Lane
from jaxem.read_ahead import Reader
from jaxem.streaming import StreamWork, begin_stream

_RNG = np.random.default_rng(0)
X = np.concatenate([_RNG.normal(0, 1, (60, 2)), _RNG.normal([3, 1], 0.7, (43, 2))])
_RNG.shuffle(X)
WEIGHTS = _RNG.integers(0, 3, len(X)).astype(float)
MODEL = jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 2)
KEY = jax.random.key(1)
SIZE = 20  # five blocks of 20 rows, and one of 3


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert [t.name for t in threading.enumerate() if t.name == "jaxem reader" and t.is_alive()] == []


@pytest.fixture(scope="module")
def start():
    """A calibrated model and a start: all fits of the module share the compiled programs of these shapes."""
    with x64(True):
        yield jax.jit(lambda x: (MODEL.calibrate(x), MODEL.calibrate(x).init(KEY, x)))(jnp.asarray(X))


class Loader:
    """Something to iterate over again and again, which fills the same memory anew for each item."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        memory = None
        for item in self.items:
            if isinstance(item, np.ndarray):
                memory = np.empty_like(item) if memory is None or memory.shape != item.shape else memory
                memory[...] = item
                yield memory
            else:
                yield item


def assert_same(streamed, plain, tol=1e-9):
    assert streamed.status == plain.status
    assert streamed.starts.steps.tolist() == plain.starts.steps.tolist()
    assert streamed.objective == pytest.approx(plain.objective, rel=1e-12)
    assert streamed.num_examples == plain.num_examples
    assert streamed.weight == pytest.approx(plain.weight)
    chex.assert_trees_all_close(streamed.params, plain.params, rtol=tol, atol=tol)


# The plain fit's numbers.


def test_starts_share_the_passes_of_a_weighted_mixture(float64):
    options = {"key": KEY, "num_starts": 2, "tol": 1e-9}
    plain = jaxem.fit(MODEL, X, weights=WEIGHTS, **options)
    streamed = jaxem.fit(MODEL, Stream(X, weights=WEIGHTS, block_size=SIZE), **options)
    assert_same(streamed, plain)
    assert len(set(plain.starts.steps.tolist())) > 1  # lanes stop one by one, and the others go on
    np.testing.assert_allclose(streamed.starts.objective, plain.starts.objective, rtol=1e-12)
    np.testing.assert_allclose(streamed.trace, plain.trace, rtol=1e-12)


def hmm_data():
    states = np.cumsum(_RNG.random((23, 7)) < 0.3, axis=1) % 2
    x = _RNG.normal(3.0 * states[..., None], 1.0, (23, 7, 2))
    return Data(x=x, lengths=_RNG.integers(0, 8, 23).astype(np.int32))


def masked_data():
    mask = _RNG.random(X.shape) < 0.8
    return Data(x=np.where(mask, X, np.nan), mask=mask)


CASES = {
    "masked cells": (jaxem.Mixture(jaxem.Gaussian(), 2), masked_data(), SIZE),
    "padded sequences": (jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), 2), hmm_data(), 5),
    "factors": (jaxem.FactorAnalysis(1), X @ _RNG.normal(size=(2, 4)) + 0.5 * _RNG.normal(size=(len(X), 4)), SIZE),
    "wrapped, whole numbers": (
        jaxem.WithPrior(jaxem.Chunked(jaxem.Frozen(jaxem.Mixture(jaxem.Poisson(), 2), ["weights"]), 8), 2.0),
        _RNG.poisson(3.0, (50, 2)),
        16,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plain_fit(float64, name):
    model, data, size = CASES[name]
    device = jax.tree.map(jnp.asarray, data)
    device = device if isinstance(data, Data) else device.astype(float)
    model, params = jax.jit(lambda: (model.calibrate(device), model.calibrate(device).init(KEY, device)))()
    plain = jaxem.fit(model, data, params=params, tol=1e-8)
    assert_same(jaxem.fit(model, Stream(data, block_size=size), params=params, tol=1e-8), plain)


def test_one_block_is_not_filled_up(float64):
    stream = Stream(Loader([X[:50], X[50:]]))
    assert (stream.block_size, stream.num_examples, stream.num_blocks) == (len(X), len(X), 1)
    assert Stream(X).block_size == len(X)
    # Blocks of one length: 7 000 000 rows of 3 numbers are 27 blocks of at most 2¹⁸, with 8 rows filled up.
    many = Stream(np.broadcast_to(np.float32(0), (7_000_000, 3)))
    assert many.num_blocks == 27
    assert many.num_blocks * many.block_size - 7_000_000 < 27


@pytest.mark.parametrize(
    "algorithm",
    [
        jaxem.Squarem(),
        jaxem.GradientEM(optax.adam(0.1)),
        jaxem.MulticycleECM((("mean",), ("covariance",))),
        jaxem.Annealing(jaxem.Cooling(3.0, 4)),
    ],
    ids=lambda a: type(a).__name__,
)
def test_other_algorithms(float64, start, algorithm):
    model, params = start
    options = {"params": params, "algorithm": algorithm, "max_steps": 12, "on_failure": "ignore"}
    assert_same(jaxem.fit(model, Stream(X, block_size=SIZE), **options), jaxem.fit(model, X, **options))


# Sources.


def sources(folder):
    """The same rows and weights from everywhere, in uneven pieces."""
    cuts = [0, 7, 7, 50, 51, len(X)]
    parts = [(X[a:b], WEIGHTS[a:b]) for a, b in itertools.pairwise(cuts)]
    np.save(folder / "x.npy", X)
    np.save(folder / "longer.npy", np.concatenate([np.zeros((5, 2)), X, np.ones((2, 2))]))
    np.save(folder / "weights.npy", WEIGHTS)
    for i, (x, w) in enumerate(parts):
        np.savez(folder / f"{i}.npz", x=x, weights=w)
    shards = [folder / f"{i}.npz" for i in range(len(parts))]
    part_of_a_mapping = np.load(folder / "longer.npy", mmap_mode="r")[5:-2]
    yield "memmap", Stream(part_of_a_mapping, weights=np.load(folder / "weights.npy", mmap_mode="r"), block_size=SIZE)
    yield "npy", Stream(folder / "x.npy", weights=WEIGHTS, block_size=SIZE)
    yield "npz", Stream(shards, block_size=SIZE)
    yield "blocks", Stream(Loader([Block(jnp.asarray(x), w) for x, w in parts]), block_size=SIZE)
    yield "dicts", Stream([{"x": x, "weights": w} for x, w in parts], block_size=SIZE, ahead=0)
    yield "data", Stream([Block(Data(x=x), w) for x, w in parts], block_size=SIZE)
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"a": X[:, 0], "w": WEIGHTS, "b": X[:, 1], "text": ["-"] * len(X)})
    parquet.write_table(table, folder / "x.parquet", row_group_size=30)
    yield "parquet", Stream(folder / "x.parquet", columns=["a", "b"], weights="w", block_size=SIZE)


def test_every_source_gives_the_same_rows(tmp_path):
    expected = {}
    for name, stream in sources(tmp_path):
        for begin in (0, 3):
            found = list(stream.cuts(begin))
            assert [cut.last for cut in found] == [False] * (5 - begin) + [True], name
            x = np.concatenate([cut.data.x if isinstance(cut.data, Data) else cut.data for cut in found])
            weights = np.concatenate([cut.weights for cut in found])
            rows = len(X) - begin * SIZE
            np.testing.assert_array_equal(x[:rows], X[begin * SIZE :], err_msg=name)
            np.testing.assert_array_equal(weights[:rows], WEIGHTS[begin * SIZE :])
            assert len(x) == (6 - begin) * SIZE
            assert np.all(weights[rows:] == 0)
        sample = stream.sample()
        assert sample.whole
        expected[name] = stream.num_examples
    assert set(expected.values()) == {len(X)}
    assert len(expected) == 7


def test_plain_arrays_from_a_loader_that_uses_its_memory_again(float64, start):
    model, params = start
    loader = Loader([X[a : a + 10] for a in range(0, 100, 10)])
    streamed = jaxem.fit(model, Stream(loader, block_size=SIZE), params=params)
    assert_same(streamed, jaxem.fit(model, X[:100], params=params))


@pytest.mark.parametrize("known", [True, False])
def test_samples_are_uniform(known, monkeypatch):
    monkeypatch.setattr("jaxem.streams.SAMPLE_ROWS", 100)
    rows = np.arange(1000.0)[:, None]
    pieces = rows if known else [rows[a : a + 60] for a in range(0, 1000, 60)]
    found = []
    for seed in range(40):
        stream = Stream(pieces, block_size=64)
        sample = stream.sample(seed)
        assert not sample.whole
        assert stream.num_examples == 1000
        np.testing.assert_array_equal(np.asarray(sample.data)[:, 0], sample.rows)
        assert len(set(sample.rows.tolist())) == 100
        assert np.all(np.diff(sample.rows) > 0)
        found.append(sample.rows)
    # 4 000 draws, 400 expected in each tenth: standard deviation 18.
    counts = np.histogram(np.concatenate(found), bins=10, range=(0, 1000))[0]
    assert np.all(np.abs(counts - 400) < 90)


def test_starts_from_a_sample(float64, monkeypatch):
    monkeypatch.setattr("jaxem.streams.SAMPLE_ROWS", 50)
    plain = jaxem.fit(MODEL, X, key=KEY, tol=1e-10)
    streamed = jaxem.fit(MODEL, Stream(X, block_size=SIZE), key=KEY, tol=1e-10)
    assert streamed.objective == pytest.approx(plain.objective, abs=1e-6)
    assert streamed.num_examples == len(X)


# What cannot be.


def test_only_what_can_be_read_again():
    with pytest.raises(ValueError, match="iterated over only once"):
        Stream(x for x in [X])
    with pytest.raises(ValueError, match="iterated over only once"):
        Stream(map(np.asarray, [X]))
    with pytest.raises(ValueError, match="got int"):
        Stream(3)


def test_bad_sources(tmp_path):
    np.save(tmp_path / "columns.npy", np.asfortranarray(X))
    np.savez(tmp_path / "names.npz", x=X, y=X)
    (tmp_path / "text.csv").write_text("1,2")
    for path, words in (("columns.npy", "not stored row after row"), ("names.npz", "got x, y"), ("text.csv", ".npz")):
        with pytest.raises(ValueError, match=words):
            Stream(tmp_path / path)
    with pytest.raises(FileNotFoundError):
        Stream([tmp_path / "absent.npy"])
    with pytest.raises(ValueError, match="same number of rows"):
        Stream(X, weights=WEIGHTS[:5])
    with pytest.raises(ValueError, match=r"yield jaxem\.Block"):
        Stream([X], weights=WEIGHTS)
    with pytest.raises(ValueError, match="empty"):
        next(Stream([]).cuts())
    with pytest.raises(ValueError, match=r"block 1 of the stream holds data of rows \(3,\)"):
        list(Stream([X, np.zeros((4, 3))], block_size=SIZE).cuts())


def test_an_error_of_the_source_has_the_number_of_its_block(float64, start):
    class Breaks(Loader):
        def __iter__(self):
            yield from self.items
            raise OSError("the disk is gone")

    model, params = start
    for ahead in (0, 2):
        stream = Stream(Breaks([X[:30], X[30:60], X[60:90]]), block_size=SIZE, ahead=ahead)
        with pytest.raises(StreamError, match="block 3 of the stream failed: OSError: the disk is gone") as caught:
            jaxem.fit(model, stream, params=params)
        assert isinstance(caught.value.__cause__, OSError)


def test_rows_that_change_between_passes(float64, start):
    class Shrinks(Loader):
        def __iter__(self):
            self.items = self.items[:-1] if len(self.items) > 9 else self.items
            return super().__iter__()

    model, params = start
    stream = Stream(Shrinks([X[a : a + 10] for a in range(0, 100, 10)] + [X[:10]] * 4), block_size=SIZE)
    with pytest.raises(ValueError, match="the same rows always"):
        jaxem.fit(model, stream, params=params)


@pytest.mark.parametrize("calibrated", [True, False])
def test_what_is_not_finite_is_named_by_its_row(float64, start, calibrated):
    x = X.copy()
    x[67, 1] = np.nan
    model, params = start
    for data, words in ((x, "hold nan in row 67, column 1"), ([Data(x=x)], r"\(x\) hold nan in row 67, column 1")):
        with pytest.raises(ValueError, match=words):
            jaxem.fit(model if calibrated else MODEL, Stream(data, block_size=SIZE), params=params)
    mask = np.isfinite(x)
    full = jaxem.Mixture(jaxem.Gaussian(), 2)
    assert jaxem.fit(full, Stream(Data(x=x, mask=mask), block_size=SIZE), key=KEY, max_steps=2, on_failure="ignore")


def test_weights_and_values_outside_their_domain_name_the_row(float64, start):
    model, params = start
    weights = WEIGHTS.copy()
    weights[45] = -1
    with pytest.raises(ValueError, match=r"row 45 of the stream is -1\.0"):
        jaxem.fit(model, Stream(X, weights=weights, block_size=SIZE), params=params)
    with pytest.raises(ValueError, match="all weights are 0"):
        jaxem.fit(model, Stream(X, weights=0 * weights, block_size=SIZE), params=params)
    counts = np.ones((40, 2))
    counts[33, 0] = -2
    poisson = jaxem.Mixture(jaxem.Poisson(), 2)
    own, rates = jax.jit(lambda x: (poisson.calibrate(x), poisson.calibrate(x).init(KEY, x)))(jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"block 1, whose row 0 is row 20 of the stream: .*13"):
        jaxem.fit(own, Stream(counts, block_size=SIZE), params=rates)


def test_what_no_stream_can_serve(float64, start):
    model, params = start

    def refused(algorithm, model=model, params=params, data=X):
        with pytest.raises(UnsupportedError) as caught:
            jaxem.fit(model, Stream(data, block_size=SIZE), params=params, algorithm=algorithm)
        return str(caught.value)

    assert "MulticycleECM looks at the data more than once" in refused(
        jaxem.MulticycleECM((("mean",), ("covariance",)), on_likelihood=("mean",))
    )
    assert "GradientEM with a batch_size" in refused(jaxem.GradientEM(optax.adam(0.1), 10, KEY))
    sampled = jaxem.LatentModel(jaxem.latents.Sampled(jaxem.latents.Categorical(2), KEY), model.likelihood)
    assert "MonteCarloEM looks at the data more than once" in refused(jaxem.MonteCarloEM(KEY), sampled)
    assert "Annealing(StochasticEM())" in refused(jaxem.Annealing(inner=StochasticEM(KEY, 10)))
    flat = jaxem.HMM(jaxem.Gaussian(), 2)
    assert "pad them" in refused(jaxem.EM(), flat, None, X)
    assert "FixedPoint" in refused(jaxem.EM(), jaxem.FixedPoint(jnp.cos, jnp.sum), jnp.ones(()))


# Reading ahead.


def test_a_reader_that_is_left_ends_its_thread():
    reader = Reader(Stream(X, block_size=SIZE))
    assert reader.next().number == 0
    assert any(t.name == "jaxem reader" for t in threading.enumerate())
    reader.close()
    forgotten = Reader(Stream(X, block_size=SIZE))
    thread = forgotten._thread
    del forgotten
    thread.join(10)
    assert not thread.is_alive()


def test_blocks_are_read_ahead_and_no_further():
    read = []

    class Counts(Loader):
        def __iter__(self):
            for i, item in enumerate(self.items):
                read.append(i)
                yield item

    reader = Reader(Stream(Counts([X[:SIZE]] * 20), block_size=SIZE, ahead=3))
    read.clear()
    first = reader.next()
    threading.Event().wait(0.2)
    # One taken, at most three waiting, and one more that shows that the last of them is not the last of all.
    assert first.number == 0
    assert max(read) <= 1 + 3
    reader.close()


# Pauses.


def work_of(start, algorithm, stream=None, **options):
    model, params = start
    rest = {"key": None, "num_starts": 1, "starts": None, "start": None, "trace_size": 0}
    stream = Stream(X, block_size=SIZE) if stream is None else stream
    control = Control(max_steps=4)
    return begin_stream(model, stream, params=params, algorithm=algorithm, control=control, **{**rest, **options})[0]


@pytest.mark.parametrize("algorithm", [jaxem.EM(), StochasticEM(KEY, 7, Online())], ids=["EM", "online"])
@pytest.mark.parametrize("pause", [8, 26])  # in the second of five passes, and in the last, whose objective is exact
def test_a_pause_in_the_middle_of_a_pass_changes_no_bit(float64, start, algorithm, pause):
    whole = work_of(start, algorithm)
    while not whole.finished:
        whole.forward(100)
    first = work_of(start, algorithm)
    first.forward(pause)
    first.close()
    place, state = first.place, jax.tree.map(np.asarray, first.state)
    assert place["block"] == pause % 6
    second = work_of(start, algorithm)
    expected = second.expect(place)
    assert jax.tree.structure(expected) == jax.tree.structure(state)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (expected, state)]
    assert shapes[0] == shapes[1]
    second.restore(place, state)
    while not second.finished:
        second.forward(5)
    assert second.ticks == whole.ticks
    assert second.totals == whole.totals
    assert isinstance(second.lanes, Lane)
    jax.tree.map(np.testing.assert_array_equal, second.lanes, whole.lanes)
    assert isinstance(second, StreamWork)


def test_early_stops_leave_no_thread(float64, start):
    work = work_of(start, jaxem.EM())
    work.forward(2)
    assert any(t.name == "jaxem reader" for t in threading.enumerate())
    work.close()


# Mini-batches.


@pytest.mark.parametrize("update", [Incremental(), Online()], ids=["incremental", "online"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_mini_batches_reach_what_they_reach_in_memory(float64, start, update, batch_size):
    model, params = start
    best = jaxem.fit(model, X, params=params, tol=1e-12)
    options = {"params": params, "algorithm": StochasticEM(KEY, batch_size, update)}
    options |= {"tol": 1e-9} if isinstance(update, Incremental) else {}
    streamed = jaxem.fit(model, Stream(X, block_size=SIZE), **options)
    assert streamed.status == Status.CONVERGED
    slack = 1e-7 * len(X) if isinstance(update, Incremental) else 0.3
    assert best.objective - slack < streamed.objective <= best.objective + 1e-9
    exact = model.e_step(streamed.params, jnp.asarray(X)).log_likelihood
    assert streamed.objective == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_the_first_online_pass_is_a_step_of_em(float64, start, known):
    """Of weighted rows whose number, and whose weight, are not known before."""
    model, params = start
    prior = jaxem.WithPrior(model, 3.0).calibrate(jnp.asarray(X))
    blocks = Block(X, WEIGHTS) if not known else None
    stream = Stream(X, weights=WEIGHTS, block_size=SIZE) if known else Stream([blocks], block_size=SIZE)
    options = {"params": params, "max_steps": 1, "on_failure": "ignore"}
    online = jaxem.fit(prior, stream, algorithm=StochasticEM(KEY, 7, Online()), **options)
    expected = prior.m_step(params, prior.e_step(params, jnp.asarray(X), jnp.asarray(WEIGHTS)).stats)
    assert online.steps == 1
    chex.assert_trees_all_close(online.params, expected, rtol=1e-12)
