"""jaxem's Gaussian mixture."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxem


def versions():
    return {"jaxem": jaxem.__version__, "jax": jax.__version__}


def _params(arrays):
    """The given starts; the leading axis is that of starts or data sets."""
    return jaxem.LatentParams(
        jaxem.CategoricalParams(jnp.asarray(arrays["weights"])),
        jaxem.GaussianParams(jnp.asarray(arrays["means"]), jnp.asarray(arrays["covariances"])),
    )


def _first(params):
    return jax.tree.map(lambda a: a[0], params)


def _full(arrays):
    return jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), arrays["means"].shape[1])


@jax.jit
def _step(model, params, data):
    """One EM iteration through the public contract."""
    algorithm = jaxem.EM()
    state, info = algorithm.step(model, algorithm.init(model, params, data, None), data, None)
    return state.params, info.objective


def _timed(function, *args):
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - begin, result


def _advance(model, params, data, steps):
    for _ in range(steps):
        params, _ = _step(model, params, data)
    return params


def _mean_log_likelihood(model, params, x):
    """In float64, so that what is compared is the parameters, not the summing."""
    return float(np.mean(np.asarray(model.log_likelihood(params, x), np.float64)))


def iteration(arrays, options):
    """Some iterations with T(x) kept; seconds for one."""
    x, steps = jnp.asarray(arrays["x"]), options["steps"]
    params = _first(_params(arrays))
    model = _full(arrays).calibrate(x)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, x))
    compile_seconds, _ = _timed(_step, model, params, data)

    def run():
        seconds, fitted = _timed(_advance, model, params, data, steps)
        return {"seconds": seconds / steps, "log_likelihood": _mean_log_likelihood(model, fitted, x)}

    return {"compile_seconds": compile_seconds}, run


def products(arrays, options):
    """One iteration, T(x) kept and rebuilt in chunks, and the two bare products of the same shapes, in turn."""
    x, steps = jnp.asarray(arrays["x"]), options["steps"]
    params = _first(_params(arrays))
    model = _full(arrays).calibrate(x)
    chunked = jaxem.Chunked(model)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, x))
    statistics = data.statistics
    natural = model.likelihood.natural(params.likelihood)
    responsibilities = model.posterior(params, data)

    @jax.jit
    def bare(statistics, natural, responsibilities):
        highest = jax.lax.Precision.HIGHEST
        return (
            jnp.matmul(statistics, natural.T, precision=highest),
            jnp.matmul(responsibilities.T, statistics, precision=highest),
        )

    def bare_steps():
        return [bare(statistics, natural, responsibilities) for _ in range(steps)]

    raw = jaxem.model.as_data(x)
    contests = {
        "kept": lambda: _advance(model, params, data, steps),
        "chunked": lambda: _advance(chunked, params, raw, steps),
        "products": bare_steps,
    }
    for contest in contests.values():
        jax.block_until_ready(contest())

    def run():
        answer, fitted = {}, {}
        for name, contest in contests.items():
            seconds, fitted[name] = _timed(contest)
            answer[name] = seconds / steps
        for name in ("kept", "chunked"):
            answer[f"log_likelihood_{name}"] = _mean_log_likelihood(model, fitted[name], x)
        return answer

    return {"shapes": {"T": statistics.shape, "natural": natural.shape}}, run


def starts(arrays, options):
    """`jaxem.fit` from all given starts: checks, calibration, preparation and results in."""
    x, params = jnp.asarray(arrays["x"]), _params(arrays)
    model, count = _full(arrays), len(arrays["means"])

    def fit():
        return jaxem.fit(model, x, starts=params, num_starts=count, on_failure="ignore", min_steps=0, **_rule(options))

    compile_seconds, _ = _timed(fit)

    def run():
        seconds, result = _timed(fit)
        return _answer(result.starts, x.shape[0], seconds)

    return {"compile_seconds": compile_seconds}, run


def batch(arrays, options):
    """`jaxem.fit_batch` from given starts: everything but putting the data on the device."""
    x = jnp.asarray(arrays["x"])
    params = jax.tree.map(lambda a: a[:, None], _params(arrays))
    model = _full(arrays)

    def fit():
        return jaxem.fit_batch(model, x, starts=params, on_failure="ignore", min_steps=0, **_rule(options))

    compile_seconds, _ = _timed(fit)

    def run():
        seconds, result = _timed(fit)
        return _answer(result.starts, x.shape[1], seconds)

    return {"compile_seconds": compile_seconds}, run


def _rule(options):
    return {"tol": options["tol"], "max_steps": options["max_steps"]}


def _answer(starts, n, seconds):
    # scikit-learn counts E-steps, jaxem the parameter updates between them.
    steps = starts.steps + 1
    per_example = starts.log_likelihood.astype(np.float64) / n
    status, count = np.unique(starts.status, return_counts=True)
    return {
        "seconds": seconds,
        "log_likelihood": float(np.mean(per_example)),
        "best": float(np.max(per_example)),
        "steps": int(np.sum(steps)),
        "most_steps": int(np.max(steps)),
        "status": {jaxem.Status(int(s)).label: int(c) for s, c in zip(status, count)},
    }


@jaxem.pytree
class Budget(jaxem.Stopping):
    """So many steps, and another number for the lane that starts at the means ``slow``."""

    slow: jax.Array
    steps: int | jax.Array
    slow_steps: int | jax.Array

    def start(self, params, objective):
        is_slow = jnp.all(params.likelihood.mean == self.slow)
        return jnp.where(is_slow, self.slow_steps, self.steps).astype(jnp.int32)

    def check(self, memory, progress):
        return memory - 1, memory <= 0


@jax.jit
def _lanes(model, params, data, rule):
    control = jaxem.Control(rule, max_steps=10_000, min_steps=0)
    return jaxem.run_lanes(model, params, data, control=control)


def slow_lane(arrays, options):
    """Lanes of which one takes many times the steps; and the same work in parts: all short, then the rest of one."""
    x, params = jnp.asarray(arrays["x"]), _params(arrays)
    model = _full(arrays).calibrate(x)
    data = jax.block_until_ready(jax.jit(lambda m, a: m.prepare(a))(model, x))
    few, many = options["steps"], options["slow_steps"]
    # The slow lane is one that is still gaining, above the rounding of float32, after all its steps.
    alone = _lanes(model, params, data, Budget(params.likelihood.mean[0], many, many))
    chosen = int(jnp.argmax(alone.steps))
    slow = params.likelihood.mean[chosen]
    one = jax.tree.map(lambda a: a[chosen : chosen + 1], params)
    contests = {
        "together": (params, Budget(slow, few, many)),
        "short": (params, Budget(slow, few, few)),
        "rest": (one, Budget(slow, few, many - few)),
    }
    for begin, rule in contests.values():
        jax.block_until_ready(_lanes(model, begin, data, rule))

    def run():
        answer = {}
        for name, (begin, rule) in contests.items():
            answer[name], result = _timed(_lanes, model, begin, data, rule)
            answer[f"steps_{name}"] = int(jnp.sum(result.steps))
            answer[f"most_steps_{name}"] = int(jnp.max(result.steps))
            if name == "together":
                answer["log_likelihood"] = float(jnp.mean(result.log_likelihood)) / x.shape[0]
        return {**answer, "seconds": answer["together"], "useful": answer["short"] + answer["rest"]}

    return {}, run


def _peak_bytes():
    """The most memory this process ever held."""
    with contextlib.suppress(OSError):
        # ru_maxrss starts at what the parent held when it forked; the high-water mark of Linux is our own.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(arrays, options):
    """A large data set, made in place block by block and handed over as a numpy array, fitted in chunks."""
    jnp.zeros(1).block_until_ready()
    baseline = _peak_bytes()
    n, d, k = options["n"], options["d"], options["k"]
    rng = np.random.default_rng(0)
    means = rng.normal(0, 3, (k, d)).astype(np.float32)
    x = np.empty((n, d), np.float32)
    block = 50_000
    for begin in range(0, n, block):
        rows = x[begin : begin + block]
        rng.standard_normal(out=rows, dtype=np.float32)
        rows += means[rng.integers(0, k, len(rows))]
    begin = jaxem.LatentParams(
        jaxem.CategoricalParams(np.full(k, 1 / k, np.float32)),
        jaxem.GaussianParams(means + rng.normal(0, 0.3, means.shape).astype(np.float32), np.ones((k, d), np.float32)),
    )
    model = jaxem.Chunked(jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), k))

    def fit(steps):
        return jaxem.fit(
            model, x, params=begin, stopping=jaxem.Never(), max_steps=steps, min_steps=0, on_failure="ignore"
        )

    compile_seconds, _ = _timed(fit, 1)

    def run():
        few, _ = _timed(fit, 1)
        more, result = _timed(fit, 1 + options["steps"])
        return {
            "seconds": (more - few) / options["steps"],
            "log_likelihood": float(result.log_likelihood) / n,
            "bytes_beyond_data": _peak_bytes() - x.nbytes,
            "bytes_of_imports": baseline,
            "bytes_of_data": x.nbytes,
        }

    return {"compile_seconds": compile_seconds}, run


def _load(name):
    from jaxem import datasets  # only two operations read shipped data

    return np.asarray(datasets.load(name).x, np.float64)


def _precision(dtype):
    return jax.enable_x64(dtype == "float64")


def faithful(arrays, options):
    """Old Faithful with two full components, from random starts."""
    x = _load("faithful").astype(options["dtype"])
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), 2)

    def run():
        with _precision(options["dtype"]):
            result = jaxem.fit(model, x, key=jax.random.key(0), num_starts=options["starts"], on_failure="ignore")
        found = np.abs(result.starts.log_likelihood - options["reference"]) <= 1e-5 * len(x)
        return {
            "log_likelihood": float(result.log_likelihood),
            "share": float(np.mean(found)),
            "status": result.status.label,
            "steps": int(result.starts.steps[result.best]),
        }

    return {}, run


def precision(arrays, options):
    """The same float32 numbers fitted in float32 and in float64, from the same start: the objective per example."""
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), options["k"])
    shapes = [(offset, scale) for offset in options["offsets"] for scale in options["scales"]]
    original = _load(options["data"])

    def compare(offset, scale):
        single = ((original + offset) * scale).astype(np.float32)
        with _precision("float64"):
            x = single.astype(np.float64)
            start = model.calibrate(jaxem.model.as_data(jnp.asarray(x))).init(jax.random.key(0), jnp.asarray(x))
            start = jax.device_get(start)
            double = _fit_from(model, x, start)
        start = jax.tree.map(lambda a: a.astype(np.float32), start)
        ours = _fit_from(model, single, start)
        wanted, got = double.objective / len(x), ours.objective / len(x)
        return {
            "offset": offset,
            "scale": scale,
            "relative_error": float(abs(got - wanted) / abs(wanted)),
            "float32": float(got),
            "float64": float(wanted),
            "status": [ours.status.label, double.status.label],
            "steps": [int(ours.starts.steps[0]), int(double.starts.steps[0])],
        }

    def run():
        cases = [compare(offset, scale) for offset, scale in shapes]
        worst = max(cases, key=lambda case: case["relative_error"])
        return {"relative_error": worst["relative_error"], "worst": worst, "cases": cases}

    return {}, run


def _fit_from(model, x, start):
    return jaxem.fit(model, x, params=start, tol=1e-7, max_steps=2000, on_failure="ignore")
