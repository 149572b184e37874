"""jaxem on data larger than memory: a file in blocks, one pass of online EM, and what reading ahead is worth."""

from __future__ import annotations

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.passes import Place
from jaxem.read_ahead import Reader
from jaxem.streaming import _begin, _see, begin_stream


def versions():
    return {"jaxem": jaxem.__version__, "jax": jax.__version__}


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(function, *args, **options):
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*args, **options))
    return time.perf_counter() - begin, result


def _covariance(options):
    return jaxem.Full() if options["covariance"] == "full" else jaxem.Diagonal()


def _begun(stream, options):
    """A calibrated model and a start, from a sample of the rows."""
    model = jaxem.Mixture(jaxem.Gaussian(_covariance(options)), options["k"])
    sample = stream.sample(0)
    model = jax.jit(lambda x: model.calibrate(x))(sample.data)
    return model, jax.jit(lambda x: model.init(jax.random.key(0), x))(sample.data)


def memmap(arrays, options):
    """Two passes over a file, and two over a part of it in memory, `Chunked`; the peak is that of the stream alone."""
    stream = jaxem.Stream(options["path"])
    model, params = _begun(stream, options)
    fixed = {"params": params, "stopping": jaxem.Never(), "max_steps": 1, "min_steps": 0, "on_failure": "ignore"}
    imports = _peak_bytes()
    first_seconds, _ = _timed(jaxem.fit, model, stream, **fixed)
    peak = _peak_bytes()
    n, part = stream.num_examples, options["part"]
    x = np.array(np.load(options["path"], mmap_mode="r")[:part])
    chunked = jaxem.Chunked(model)
    _timed(jaxem.fit, chunked, x, **fixed)

    def in_memory():
        """Seconds of an E-step and an M-step, without what a fit does once."""
        few, _ = _timed(jaxem.fit, chunked, x, **fixed)
        more, _ = _timed(jaxem.fit, chunked, x, **{**fixed, "max_steps": 5})
        return (more - few) / 4

    def run():
        before = in_memory()
        seconds, result = _timed(jaxem.fit, model, stream, **fixed)
        return {
            "seconds": seconds / (2 * n),
            "in_memory": (before + in_memory()) / 2 / part,
            "log_likelihood": result.log_likelihood / n,
        }

    facts = {"peak_bytes": peak, "bytes_before": imports, "rows": n, "file_bytes": n * x.itemsize * x.shape[1]}
    return {**facts, "first_seconds": first_seconds}, run


def online(arrays, options):
    """One pass of online EM over rows of an array, against EM to its optimum, on other rows."""
    x, held_out = arrays["x"], arrays["held_out"]
    stream = jaxem.Stream(x)
    model, params = _begun(stream, options)
    chunked = jaxem.Chunked(model)
    score = jax.jit(chunked.log_likelihood)

    def held(result):
        return float(np.mean(np.asarray(score(result.params, jnp.asarray(held_out)), np.float64)))

    options = {"params": params, "on_failure": "ignore"}
    batch = jaxem.fit(chunked, x, **options)
    optimum = jaxem.fit(chunked, x, tol=1e-8, **options)
    gap = (optimum.objective - optimum.trace) / len(x)
    facts = {
        "optimum": held(optimum),
        "batch_passes": batch.steps + 1,
        "batch_held_out": held(batch),
        "batch_passes_to_bar": int(np.flatnonzero(gap <= 1e-3)[0]),
    }

    def run():
        algorithm = jaxem.StochasticEM(jax.random.key(1), 1024, jaxem.Online(0.6, warm_up=5))
        seconds, result = _timed(jaxem.fit, model, stream, algorithm=algorithm, max_steps=1, **options)
        return {"seconds": seconds, "held_out": held(result), "steps": result.steps}

    return facts, run


def prefetch(arrays, options):
    """Passes over a cached file with and without reading ahead, the E-steps alone, and the reading alone."""
    ahead, behind = (jaxem.Stream(options["path"], ahead=count) for count in (2, 0))
    model, params = _begun(ahead, options)
    reader = Reader(behind)
    blocks = [reader.next() for _ in range(behind.num_blocks)]

    def work_on(stream):
        common = {"key": None, "num_starts": 1, "starts": None, "start": None, "trace_size": 0}
        control = jaxem.Control(jaxem.Never(), 10**6, 0)
        work, _ = begin_stream(model, stream, params=params, algorithm=jaxem.EM(), control=control, **common)
        work.forward(2 * stream.num_blocks)  # what the first passes check and compile
        return work

    works = {"ahead": work_on(ahead), "behind": work_on(behind)}

    def one_pass(work):
        before = work.waited
        work.forward(work.stream.num_blocks)
        return work.waited - before

    def compute():
        work = works["ahead"]
        carry = _begin(work.algorithm, work._model, work._lanes, blocks[0].data, blocks[0].weights)
        for cut in blocks:
            before = carry
            place = Place(jnp.int32(cut.number), jnp.array(cut.last))
            carry = _see(work.algorithm, work._model, work._lanes, carry, cut.data, cut.weights, place)
            jax.block_until_ready(before)
        return carry

    def read():
        reader = Reader(behind)
        for _ in range(behind.num_blocks):
            reader.next()
        return 0

    _timed(compute)

    def run():
        answer = {}
        for name, work in works.items():
            answer[name], answer[f"{name}_waited"] = _timed(one_pass, work)
        answer["compute"], _ = _timed(compute)
        answer["read"], _ = _timed(read)
        return answer

    return {"blocks": len(blocks), "rows": ahead.block_size}, run
