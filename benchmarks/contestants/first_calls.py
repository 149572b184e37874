"""What a user waits for before the first number: calls of jaxem in a process where nothing has been compiled yet."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import numpy as np

_begin = time.perf_counter()
import jax  # noqa: E402

_middle = time.perf_counter()
import jaxem  # noqa: E402

_end = time.perf_counter()
import jax.numpy as jnp  # noqa: E402

from benchmarks import problems  # noqa: E402
from benchmarks.operations import two_normals  # noqa: E402

_FULL = jaxem.Gaussian(jaxem.Full())
_programs: list[str] = []


def versions():
    return {"jaxem": jaxem.__version__, "jax": jax.__version__}


def _count_programs(event, _, fun_name="?", **__):
    if event.endswith("backend_compile_duration"):
        _programs.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_count_programs)


def _keep_programs(folder):
    """What `jaxem.cache_programs` does, also where jaxem has no such function yet."""
    if hasattr(jaxem, "cache_programs"):
        jaxem.cache_programs(folder)
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _resident_bytes():
    """What this process holds now, not at its peak."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return 0


def _load(name):
    return jaxem.datasets.load(name).x.astype(np.float32)


def _fit(model, x, starts=1, **options):
    return lambda: jaxem.fit(model, x, key=jax.random.key(0), num_starts=starts, on_failure="ignore", **options)


def _many():
    x = problems.many(4, 2000, 200, 2, 3, spread=3.0)["x"]
    model = jaxem.Mixture(_FULL, 3)
    return lambda: jaxem.fit_batch(model, x, key=jax.random.key(0), on_failure="ignore")


def _airquality():
    data = jaxem.datasets.load("airquality")
    return _fit(jaxem.Mixture(_FULL, 2), jaxem.Data(data.x.astype(np.float32), mask=data.mask))


def _forward(model, start, x, control):
    def weighted(strength):
        fitted = jaxem.run(jaxem.WithPrior(model, strength).calibrate(x), start, x, control=control)
        return jnp.sum(fitted.params.likelihood.mean)

    return weighted


def _through_a_fit(transform):
    """What a fit of two components says of its means, or that number's slope in the strength of the prior."""
    x = _load("faithful")
    rng = np.random.default_rng(0)
    start = jaxem.LatentParams(
        jaxem.CategoricalParams(np.full(2, 0.5, np.float32)),
        jaxem.GaussianParams(x[rng.choice(len(x), 2, replace=False)], np.stack([np.cov(x.T)] * 2).astype(np.float32)),
    )
    forward = _forward(jaxem.Mixture(_FULL, 2), start, x, jaxem.Control(jaxem.ParameterChange(1e-5)))
    program = jax.jit(transform(forward))
    return lambda: program(1.0)


def _wide(covariance, d):
    x = np.random.default_rng(0).normal(size=(300, d)).astype(np.float32)
    family = jaxem.StudentT() if covariance == "t" else _FULL
    return _fit(jaxem.Mixture(family, 1), x)


#: Name → a function that makes the data and returns the call.
CALLS = {
    "gmm": lambda: _fit(jaxem.Mixture(_FULL, 3), _load("iris")),
    "gmm_64": lambda: _fit(jaxem.Mixture(_FULL, 3), _load("iris"), 64),
    "gmm_5000": lambda: _fit(jaxem.Mixture(_FULL, 5), problems.mixture(2, 5000, 4, 5, spread=2.0), 64),
    "batch": _many,
    "poisson_hmm": lambda: _fit(jaxem.HMM(jaxem.Poisson(), 3), _load("earthquakes")[None], 8),
    "gaussian_hmm": lambda: _fit(jaxem.HMM(_FULL, 3), _load("faithful")[None], 8),
    "factors": lambda: _fit(jaxem.FactorAnalysis(2), _load("iris")),
    "classes": lambda: _fit(jaxem.Mixture(jaxem.Bernoulli(), 2), _load("values") - 1),
    "student_t": lambda: _fit(jaxem.Mixture(jaxem.StudentT(), 3), _load("iris")),
    "vev": lambda: _fit(jaxem.Mixture(jaxem.Gaussian(jaxem.EigenDecomposed("VEV")), 3), _load("iris")),
    "missing": _airquality,
    "squarem": lambda: _fit(jaxem.Mixture(_FULL, 3), _load("iris"), algorithm=jaxem.Squarem()),
    "log_joint": lambda: _fit(two_normals(), _load("faithful")[:, :1]),
    "forward": lambda: _through_a_fit(lambda f: f),
    "gradient": lambda: _through_a_fit(jax.grad),
    **{f"full_{d}": lambda d=d: _wide("full", d) for d in (5, 20, 40, 80, 120)},
    **{f"t_{d}": lambda d=d: _wide("t", d) for d in (5, 20, 40, 80, 120)},
}


def first_call(arrays, options):
    """A call of `CALLS`; nothing has been compiled when it is first made. cache: a folder that keeps the programs."""
    if options.get("cache"):
        _keep_programs(options["cache"])
    call = CALLS[options["call"]]()
    jax.block_until_ready(jax.random.key(0))  # the key is the caller's, its programs too

    def run():
        before, begin = len(_programs), time.perf_counter()
        result = jax.block_until_ready(getattr(call_result := call(), "params", call_result))
        seconds = time.perf_counter() - begin
        del result
        value = getattr(call_result, "log_likelihood", None)
        own = None if value is None or np.ndim(value) else float(value)
        return {"seconds": seconds, "programs": len(_programs) - before, "log_likelihood": own}

    return {"import_jax": _middle - _begin, "import_jaxem": _end - _middle}, run


def one_by_one(arrays, options):
    """Data sets of different length, one fit after another, for at most so many seconds."""
    sets, model = problems.unequal(options["sets"]), jaxem.Mixture(_FULL, 3)
    jax.block_until_ready(jax.random.key(0))

    def run():
        memory, before, begin, done = {}, len(_programs), time.perf_counter(), 0
        for x in sets:
            jaxem.fit(model, x, key=jax.random.key(0), num_starts=8, on_failure="ignore")
            done += 1
            memory[done] = _resident_bytes()
            if time.perf_counter() - begin > options["most_seconds"]:
                break
        return {
            "seconds": time.perf_counter() - begin,
            "done": done,
            "programs": len(_programs) - before,
            "bytes_at_20": memory.get(20),
            "bytes_at_end": memory[done],
        }

    return {}, run


def count_programs(arrays, options):
    """How many programs each of some fits compiles, to data sets of as many lengths between 200 and 400."""
    sets, model = problems.unequal(options["sets"]), jaxem.Mixture(_FULL, 3)

    def run():
        programs = []
        for x in sets:
            before = len(_programs)
            jaxem.fit(model, x, key=jax.random.key(0), num_starts=8, max_steps=5, on_failure="ignore")
            programs.append(len(_programs) - before)
        return {"programs": programs}

    return {}, run


def made_anew(arrays, options):
    """A `LogJoint` made eight times from the same source and constants, and fitted each time."""
    x = _load("faithful")[:, :1]
    jax.block_until_ready(jax.random.key(0))

    def run():
        begin, programs = time.perf_counter(), []
        for _ in range(8):
            before = len(_programs)
            _fit(_written_here(), x)()
            programs.append(len(_programs) - before)
        return {"seconds": time.perf_counter() - begin, "programs": sum(programs), "each": programs}

    return {}, run


def _written_here():
    return jaxem.LogJoint(
        lambda params, x, z: (
            jnp.log(params["weights"][z]) + jax.scipy.stats.norm.logpdf(x[0], params["mean"][z], params["scale"][z])
        ),
        latent=jaxem.Discrete(2),
        init=lambda key: {"weights": jnp.full(2, 0.5), "mean": jax.random.normal(key, (2,)), "scale": jnp.ones(2)},
        constraints={"weights": "simplex", "scale": "positive"},
    )


class _TooLongError(Exception):
    pass


def _too_long(signum, frame):
    raise _TooLongError


def many_columns(arrays, options):
    """Full covariances of 50 rows x 5 000 columns: an answer, or a refusal, within so many seconds."""
    x = np.random.default_rng(0).normal(size=(50, options["columns"])).astype(np.float32)
    jax.block_until_ready(jax.random.key(0))

    def run():
        begin, said = time.perf_counter(), "an answer"
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(options["most_seconds"])
        try:
            _fit(jaxem.Mixture(_FULL, 2), x)()
        except _TooLongError:
            said = "nothing"
        except Exception as refusal:
            said = f"{type(refusal).__name__}: {refusal}"
        finally:
            signal.alarm(0)
        return {"seconds": time.perf_counter() - begin, "said": said}

    return {}, run
