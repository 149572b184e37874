"""Long fits: slices that change no number, checkpoints, kill -9, Ctrl-C, progress, and memory that runs out."""

import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
import zipfile

import chex
import jax
import numpy as np
import pytest

import jaxem
from jaxem import checkpoint as files
from jaxem import host, memory, progress
from jaxem.one_program import OneProgram
from jaxem.work import LanesWork, Work

# The functions of these names hide the modules.
fit_module, fit_batch_module = sys.modules["jaxem.fit"], sys.modules["jaxem.fit_batch"]

_RNG = np.random.default_rng(0)
COUNTS = np.concatenate([_RNG.poisson(2.0, (40, 1)), _RNG.poisson(5.0, (50, 1))]).astype(np.float32)
MANY = _RNG.poisson(np.where(_RNG.random((6, 40, 1)) < 0.4, 1.5, 6.0)).astype(np.float32)
MODEL = jaxem.Mixture(jaxem.Poisson(), 2)
OPTIONS = {"key": jax.random.key(0), "num_starts": 12, "tol": 1e-7, "on_failure": "ignore"}


class Killed(Exception):
    """Stands for whatever ends a process."""


def slices_begin_with(monkeypatch, steps):
    for kind in (Work, OneProgram):
        monkeypatch.setattr(kind, "first_budget", steps)


def killed_after(slices):
    left = iter(range(slices))

    def tell(report):
        if next(left, None) is None:
            raise Killed

    return tell


def single(**more):
    return jaxem.fit(MODEL, COUNTS, **OPTIONS, **more)


def raced(**more):
    return jaxem.fit(MODEL, COUNTS, race=jaxem.Race(5, 3), **OPTIONS, **more)


def batched(**more):
    return jaxem.fit_batch(MODEL, MANY, batch_size=4, **{**OPTIONS, "num_starts": 3}, **more)


def swept(**more):
    models = [jaxem.Mixture(jaxem.Poisson(), k) for k in (1, 2, 3)]
    return jaxem.select(models, COUNTS, **{**OPTIONS, "num_starts": 3}, **more)


def streamed(**more):
    return jaxem.fit(MODEL, jaxem.streams.Stream(COUNTS, block_size=32), **{**OPTIONS, "num_starts": 3}, **more)


def spread(**more):
    return jaxem.fit(MODEL, COUNTS, mesh=jaxem.make_mesh(lanes=2, data=2), **{**OPTIONS, "num_starts": 5}, **more)


@pytest.mark.parametrize("door", [single, raced, batched, swept, streamed, spread], ids=lambda f: f.__name__)
def test_a_resumed_fit_is_the_undisturbed_one_to_the_last_bit(door, tmp_path):
    """Row 16: killed after a few slices, and killed again, wherever that was."""
    undisturbed = door()
    path = tmp_path / "fit.ckpt"
    every = jaxem.Checkpoint(path, steps=3)
    for slices in (1, 4):
        with pytest.raises(Killed):
            door(resume=every, progress=killed_after(slices))
        assert path.exists()
    chex.assert_trees_all_equal(door(resume=path), undisturbed)
    chex.assert_trees_all_equal(door(resume=path), undisturbed)  # and once more, from the end
    assert [p.name for p in tmp_path.iterdir()] == ["fit.ckpt"]


@pytest.mark.parametrize("door", [single, spread], ids=lambda f: f.__name__)
def test_shards_are_written_where_they_are(door, tmp_path):
    """By Orbax: the state stays over the devices, and the end is the same to the last bit."""
    pytest.importorskip("orbax.checkpoint")
    undisturbed, path = door(), tmp_path / "fit"
    every = jaxem.Checkpoint(path, steps=3, sharded=True)
    for slices in (1, 4):
        with pytest.raises(Killed):
            door(resume=every, progress=killed_after(slices))
    chex.assert_trees_all_equal(door(resume=every), undisturbed)
    with pytest.raises(ValueError, match="another fit: data"):
        jaxem.fit(MODEL, COUNTS + 1, resume=every, **OPTIONS)


def test_no_number_depends_on_where_slices_end():
    lanes, problem = fit_module._prepare(
        jaxem.KMeansPlusPlus(),
        jaxem.EM(),
        jaxem.Control(jaxem.RelativeGain(1e-7)),
        MODEL,
        COUNTS,
        None,
        jax.random.key(1),
        None,
        num_starts=40,
        trace_size=8,
    )

    def through(budget):
        work = LanesWork(lanes, problem, jaxem.EM(), jaxem.Control(jaxem.RelativeGain(1e-7)))
        while not work.finished:
            work.forward(budget)
        return work.lanes, work.ticks

    whole, ticks = through(10**6)
    for budget in (1, 7):
        pieces, count = through(budget)
        assert count == ticks
        chex.assert_trees_all_equal(pieces, whole)


def test_a_second_fit_over_a_mesh_compiles_nothing(caplog):
    def compiled():
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            spread(trace_size=7)
        return [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]

    assert compiled()
    assert not compiled()


# A process that begins fits as children of its own, so that jax is imported once: it is told of each on stdin.
_NURSERY = """
import os, pathlib, signal, sys, warnings
import numpy as np
import jax, jaxem
warnings.simplefilter("ignore")
folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
x = np.concatenate([rng.poisson(2.0, (60, 1)), rng.poisson(3.0, (60, 1))]).astype(np.float32)

def child(name, resume):
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A long trace makes a long file: most of the time passes in writing checkpoints.
    result = jaxem.fit(jaxem.Mixture(jaxem.Poisson(), 2), x, key=jax.random.key(0), num_starts=4, tol=0.0, max_steps=150,
                       trace_size=100_000, resume=jaxem.Checkpoint(folder / resume, steps=1) if resume else None,
                       on_failure="ignore")
    np.savez(folder / name, *jax.tree.leaves((result.params, result.starts)))

for line in sys.stdin:
    name, resume, seconds = line.split()
    pid = os.fork()
    if pid == 0:
        try:
            child(name, resume if resume != "-" else None)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    if float(seconds) > 0:
        # The clock runs from the first checkpoint on.
        import time
        until = time.monotonic() + 60
        while resume != "-" and not (folder / resume).exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(float(seconds))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_nine_at_ten_random_moments(tmp_path):
    """Row 16: killed by the system, in the middle of writes too; the end is that of the fit that was left alone."""
    nursery = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _NURSERY, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )

    def run(name, resume, seconds=0.0):
        nursery.stdin.write(f"{name} {resume} {seconds}\n")
        nursery.stdin.flush()
        return int(nursery.stdout.readline())

    try:
        assert run("alone.npz", "-") == 0
        moments = np.random.default_rng(1).uniform(0.05, 1.2, 10)
        codes = [run("killed.npz", "fit.ckpt", moment) for moment in moments]
        assert -signal.SIGKILL in codes
        assert (tmp_path / "fit.ckpt").exists()
        assert run("resumed.npz", "fit.ckpt") == 0
    finally:
        nursery.communicate(timeout=30)
    with np.load(tmp_path / "alone.npz") as alone, np.load(tmp_path / "resumed.npz") as resumed:
        assert alone.files == resumed.files
        for name in alone.files:
            np.testing.assert_array_equal(alone[name], resumed[name])


# Ctrl-C.


def interrupting(report):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("door", [single, batched, streamed], ids=lambda f: f.__name__)
def test_ctrl_c_gives_the_best_so_far(door, tmp_path, monkeypatch, caplog):
    slices_begin_with(monkeypatch, 6)
    before = signal.getsignal(signal.SIGINT)
    path = tmp_path / "fit.ckpt"
    result = door(progress=interrupting, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is before
    assert "interrupted" in caplog.text
    if door is batched:
        assert jaxem.Status.INTERRUPTED in result.status
        assert np.all(np.isnan(result.params.likelihood.rate[4:]))  # the second group was never begun
        assert np.all(np.isfinite(result.params.likelihood.rate[:4]))
        assert np.all(result.status[4:] == jaxem.Status.INTERRUPTED)
    else:
        assert result.status == jaxem.Status.INTERRUPTED
        assert np.all(np.isfinite(result.params.likelihood.rate))
        assert np.isfinite(result.log_likelihood)
        assert not result.converged
        assert "interrupted" in str(result)
    chex.assert_trees_all_equal(door(resume=path), door())


def test_an_interrupted_fit_says_so_and_keeps_what_it_has(monkeypatch):
    slices_begin_with(monkeypatch, 2)
    options = {**OPTIONS, "on_failure": None}
    with pytest.warns(jaxem.ConvergenceWarning, match="interrupted before the stopping rule was met"):
        result = jaxem.fit(MODEL, COUNTS, progress=interrupting, **options)
    scored = np.sum(np.asarray(result.model.log_likelihood(result.params, COUNTS)))
    assert result.log_likelihood == pytest.approx(scored, rel=1e-5)
    with pytest.raises(jaxem.FitError, match="interrupted") as raised:
        jaxem.fit(MODEL, COUNTS, progress=interrupting, **{**options, "on_failure": "raise"})
    assert raised.value.result.status == jaxem.Status.INTERRUPTED


# Progress.


def test_reports_say_how_far_a_fit_is(monkeypatch):
    slices_begin_with(monkeypatch, 3)
    reports = []
    result = single(progress=reports.append)
    assert [r.ticks for r in reports] == sorted({r.ticks for r in reports})
    assert reports[-1].lanes_done == reports[-1].lanes == 12
    assert reports[-1].objective == pytest.approx(result.objective, rel=1e-6)
    assert all(r.rate > 0 and r.unit == "step" for r in reports)
    assert reports[-1].seconds_left == pytest.approx(0)
    one = []
    jaxem.fit(MODEL, COUNTS, key=jax.random.key(0), tol=1e-7, progress=one.append)
    assert one[0].at_most
    assert "at most" in str(one[0])
    blocks = []
    streamed(progress=blocks.append)
    assert "blocks" in str(blocks[-1])


class Terminal:
    def __init__(self, tty):
        self.text, self._tty = "", tty

    def isatty(self):
        return self._tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    plain, terminal = Terminal(False), Terminal(True)
    monkeypatch.setattr(sys, "stderr", plain)
    single(progress=True)
    assert plain.text.startswith("jaxem: ")
    assert "lanes done" in plain.text
    assert "\x1b" not in plain.text
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)  # not installed
    single(progress=True)
    assert "\r\x1b[Kjaxem: " in terminal.text


def test_a_bar_where_tqdm_is_installed(monkeypatch):
    class Bar:
        made = []

        def __init__(self, **options):
            self.options, self.n, self.said, self.closed = options, 0, [], False
            Bar.made.append(self)

        def set_postfix_str(self, text, refresh):
            self.said.append(text)

        def close(self):
            self.closed = True

    monkeypatch.setattr(sys, "stderr", Terminal(True))
    monkeypatch.setitem(sys.modules, "tqdm", type("Module", (), {"tqdm": Bar}))
    single(progress=True)
    (bar,) = Bar.made
    assert bar.options["total"] == bar.n == 12
    assert bar.closed
    assert "objective" in bar.said[-1]


def test_a_slice_that_takes_far_longer_is_said(monkeypatch, caplog):
    slices_begin_with(monkeypatch, 5)
    monkeypatch.setattr(host, "_LONG_SECONDS", 0.05)
    monkeypatch.setattr(host, "_FAR_LONGER", 0.0)
    forward = OneProgram.forward

    def slow(self, budget):
        time.sleep(0.2)
        forward(self, budget)

    monkeypatch.setattr(OneProgram, "forward", slow)
    with caplog.at_level(logging.WARNING, "jaxem"):
        single()
    assert "the last slice took" in caplog.text


# What a checkpoint refuses.


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "fit.ckpt"
    single(checkpoint=path)
    return path


def test_what_is_refused(written, tmp_path):
    with pytest.raises(ValueError, match=r"there is a checkpoint at .* already: resume= goes on from it"):
        single(checkpoint=written)
    with pytest.raises(ValueError, match="another fit: data differs"):
        jaxem.fit(MODEL, COUNTS + 1, resume=written, **OPTIONS)
    with pytest.raises(ValueError, match="another fit: rules, starts differ"):
        jaxem.fit(MODEL, COUNTS, resume=written, **{**OPTIONS, "tol": 1e-3, "key": jax.random.key(1)})
    with pytest.raises(ValueError, match="another fit: model differs"):
        jaxem.fit(jaxem.Mixture(jaxem.Geometric(), 2), COUNTS, resume=written, **OPTIONS)
    with pytest.raises(ValueError, match="no directory for the checkpoint"):
        single(checkpoint=tmp_path / "nowhere" / "fit.ckpt")
    with pytest.raises(ValueError, match="resume is a path or a jaxem"):
        single(resume=3)
    with pytest.raises(ValueError, match="progress is True, False or a function"):
        single(progress="yes")
    with pytest.raises(ValueError, match="seconds between checkpoints must be positive"):
        jaxem.Checkpoint(tmp_path / "fit.ckpt", seconds=0)
    with pytest.raises(ValueError, match="fitted one by one"):
        jaxem.select(
            [MODEL, jaxem.Mixture(jaxem.Geometric(), 2)], COUNTS, key=OPTIONS["key"], checkpoint=tmp_path / "s"
        )


def test_a_damaged_file_is_a_clear_error(written, tmp_path):
    """Row 19: whatever the bytes are, a ValueError that names the file, and nothing large is allocated."""
    whole = written.read_bytes()
    path = tmp_path / "damaged.ckpt"
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(60):
        bad = bytearray(whole)
        if i % 3 == 0:
            bad = bad[: rng.integers(0, len(bad))]
        else:
            for place in rng.integers(0, len(bad), 1 + i % 7):
                bad[place] = rng.integers(0, 256)
        path.write_bytes(bytes(bad))
        # Changes in an array's numbers are caught by the archive's checksums; those in unused bytes change nothing.
        with contextlib.suppress(ValueError):
            assert len(files.read(path).arrays) == len(files.read(written).arrays)
            continue
        with pytest.raises(ValueError, match=r"damaged\.ckpt is not a sound checkpoint"):
            files.read(path)
        refused += 1
    assert refused > 40
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", '{"schema": "jaxem-checkpoint/999", "arrays": 0, "asked": {}, "place": {}}')
    with pytest.raises(ValueError, match="this version reads 'jaxem-checkpoint/1'"):
        single(resume=path)


def test_arrays_that_do_not_fit_are_refused(written):
    found = files.read(written)
    with pytest.raises(ValueError, match=r"holds \d+ arrays; this fit's state has 1"):
        files.rebuilt(written, found, np.zeros(3))
    like = [jax.ShapeDtypeStruct((2, *a.shape), a.dtype) for a in found.arrays]
    with pytest.raises(ValueError, match="where this fit has"):
        files.rebuilt(written, found, like)


def test_random_keys_are_kept(tmp_path):
    state = {"key": jax.random.key(3), "x": np.arange(3, dtype=np.float32)}
    path = tmp_path / "key.ckpt"
    files.write(path, {"a": "b"}, {"stage": 1}, state)
    found = files.read(path)
    back = files.rebuilt(path, found, jax.eval_shape(lambda: {**state, "x": jax.numpy.arange(3, dtype=np.float32)}))
    assert jax.random.key_data(back["key"]).tolist() == jax.random.key_data(state["key"]).tolist()
    assert (found.asked, found.place) == ({"a": "b"}, {"stage": 1})


def test_fingerprints_look_at_everything():
    big = np.zeros((2**21, 9))
    other = big.copy()
    other[: 2**10] = 1
    assert files.fingerprint(data=big) == files.fingerprint(data=big.copy())
    assert files.fingerprint(data=big) != files.fingerprint(data=other)
    assert files.fingerprint(model=MODEL) != files.fingerprint(model=jaxem.Mixture(jaxem.Poisson(), 3))


# Memory.


def exhausted_once(function):
    calls = []

    def wrapped(*arguments, **options):
        calls.append(options)
        if len(calls) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
        return function(*arguments, **options)

    return wrapped


def test_a_device_that_runs_out_of_memory_gets_smaller_blocks(monkeypatch):
    """Row 18."""
    plain = single()
    monkeypatch.setattr(fit_module, "_prepare", exhausted_once(fit_module._prepare))
    with pytest.warns(jaxem.ConvergenceWarning, match="ran out of memory: trying the E-step in smaller blocks"):
        result = single()
    assert isinstance(result.model, jaxem.Chunked)
    np.testing.assert_allclose(result.params.likelihood.rate, plain.params.likelihood.rate, rtol=1e-4)
    smaller = memory.in_blocks(jaxem.WithPrior(jaxem.Chunked(MODEL, 64)), COUNTS)
    assert smaller.model.block_size == 32
    assert memory.in_blocks(jaxem.Chunked(MODEL, 1), COUNTS) is None


def test_a_batch_that_does_not_fit_is_cut(monkeypatch):
    plain = jaxem.fit_batch(MODEL, MANY, **OPTIONS)
    monkeypatch.setattr(fit_batch_module, "_prepare_batch", exhausted_once(fit_batch_module._prepare_batch))
    with pytest.warns(jaxem.ConvergenceWarning, match="ran out of memory: trying 3 data sets at a time"):
        result = jaxem.fit_batch(MODEL, MANY, **OPTIONS)
    np.testing.assert_allclose(result.objective, plain.objective, rtol=1e-6)


def test_what_cannot_be_made_smaller_is_raised(monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(fit_batch_module, "_prepare_batch", exhausted)
    with (
        pytest.warns(jaxem.ConvergenceWarning, match="ran out of memory: trying . data sets at a time"),
        pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"),
    ):
        jaxem.fit_batch(MODEL, MANY, **OPTIONS)


def test_the_estimate_beforehand(monkeypatch):
    """Row 18: what would not fit is computed in blocks from the beginning, and said."""
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.warns(jaxem.ConvergenceWarning, match=r"of 1e-06 GB that are free: it is computed in blocks"):
        result = single()
    assert isinstance(result.model, jaxem.Chunked)


def test_groups_of_data_sets_are_as_large_as_memory_holds(monkeypatch):
    plain = jaxem.fit_batch(MODEL, MANY, **OPTIONS)
    monkeypatch.setattr(memory, "SMALL", 0)
    needs = []
    counted = memory.compiled_need
    monkeypatch.setattr(memory, "compiled_need", lambda lowered: needs.append(counted(lowered)) or needs[-1])
    monkeypatch.setattr(memory, "available", lambda: 2 * needs[0] - 2 if needs else 10**9)
    sizes = []
    groups = fit_batch_module._Batch.groups
    monkeypatch.setattr(fit_batch_module._Batch, "groups", lambda self, size: sizes.append(size) or groups(self, size))
    jaxem.fit_batch(MODEL, MANY, **OPTIONS)
    assert sizes == [6]
    result = jaxem.fit_batch(MODEL, MANY, **OPTIONS)
    assert sizes[1] == 3
    np.testing.assert_allclose(result.objective, plain.objective, rtol=1e-6)


def test_reports_are_words():
    report = progress.Report(7, "step", 1, 0, -12.5, 3.0, 2.0, 7200.0, True)
    assert str(report) == "7 steps, 3/s, objective -12.5, at most 2.0 h left"
    assert "left" not in str(dataclasses.replace(report, seconds_left=None))
