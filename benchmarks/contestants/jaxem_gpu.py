"""jaxem on an accelerator, or on the processors beside it: data are made where they are used."""

from __future__ import annotations

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.contestants.jaxem_gmm import _advance, _step, _timed, versions
from jaxem.blocks import sum_over_blocks
from jaxem.messages import forward_backward

__all__ = ["blocks", "carry", "chain", "device", "fits", "mixture", "precision", "versions"]

# Rows that are drawn at a time.
_DRAWN = 2**16
#: Bytes a second and float32 operations a second outside the tensor cores, as the maker says.
_PEAKS = {"H100": (3.35e12, 67e12), "H200": (4.8e12, 67e12), "A100": (2.04e12, 19.5e12)}


def device(arrays, options):
    """What there is to run on."""
    first = jax.devices()[0]
    return {"platform": first.platform, "kind": first.device_kind}, lambda: {"seconds": 0.0}


def _facts():
    first = jax.devices()[0]
    peaks = next((list(p) for name, p in _PEAKS.items() if name in first.device_kind), None)
    return {"platform": first.platform, "kind": first.device_kind, "peaks": peaks}


def _peak_bytes():
    """The most bytes in use on the device so far, or None where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _clusters(n, d, k):
    """N rows of K clusters of unit variance, drawn on the device block by block, and their means."""
    means = 3 * jax.random.normal(jax.random.key(0), (k, d))

    def draw(key):
        which, noise = jax.random.split(key)
        return means[jax.random.randint(which, (min(n, _DRAWN),), 0, k)] + jax.random.normal(noise, (min(n, _DRAWN), d))

    keys = jax.random.split(jax.random.key(1), math.ceil(n / _DRAWN))
    x = jax.jit(lambda keys: jax.lax.map(draw, keys).reshape(-1, d)[:n])(keys)
    return jax.block_until_ready(x), means


def _gaussians(options, x, means):
    """The model, and a start beside the truth."""
    k, d = means.shape
    full = options["covariance"] == "full"
    mean = means + 0.3 * jax.random.normal(jax.random.key(2), means.shape)
    covariance = jnp.broadcast_to(jnp.eye(d), (k, d, d)) if full else jnp.ones((k, d))
    params = jaxem.LatentParams(jaxem.CategoricalParams(jnp.full(k, 1 / k)), jaxem.GaussianParams(mean, covariance))
    structure = jaxem.Full() if full else jaxem.Diagonal()
    return jax.jit(lambda m, x: m.calibrate(x))(jaxem.Mixture(jaxem.Gaussian(structure), k), x), params


def mixture(arrays, options):
    """Full EM iterations of a mixture in blocks: seconds for one, the bytes in use, and what the card could do."""
    n, d, k, steps = (options[name] for name in ("n", "d", "k", "steps"))
    x, means = _clusters(n, d, k)
    model, params = _gaussians(options, x, means)
    chunked = jaxem.Chunked(model)
    before = _peak_bytes()
    data = jax.block_until_ready(jax.jit(lambda m, x: m.prepare(jaxem.model.as_data(x)))(chunked, x))
    kept = isinstance(data, jaxem.model.Prepared)
    compile_seconds, _ = _timed(_step, chunked, params, data)
    columns = 1 + d + (d * (d + 1) // 2 if options["covariance"] == "full" else d)
    facts = {
        **_facts(),
        "compile_seconds": compile_seconds,
        "kept": kept,
        "rows_per_block": chunked.rows_per_block(data),
        "bytes_of_data": x.nbytes,
        "peak_bytes_before": before,
        # Both products, and one reading of what a row is made of.
        "flops": 4 * n * columns * k,
        "bytes": n * 4 * (columns if kept else d),
    }

    def run():
        seconds, fitted = _timed(_advance, chunked, params, data, steps)
        each = chunked.model.log_likelihood(fitted, x[: min(n, _DRAWN)])
        return {
            "seconds": seconds / steps,
            "log_likelihood": float(np.mean(np.asarray(each, np.float64))),
            "peak_bytes": _peak_bytes(),
        }

    return facts, run


def blocks(arrays, options):
    """The same iteration with blocks of other sizes, T(x) kept and rebuilt."""
    x, means = _clusters(options["n"], options["d"], options["k"])
    model, params = _gaussians(options, x, means)
    raw = jaxem.model.as_data(x)
    contests = {}
    for keep in (False, True):
        data = jax.block_until_ready(jax.jit(lambda m, x: m.prepare(x))(model, raw)) if keep else raw
        for size in options["sizes"]:
            contests[f"{'kept' if keep else 'rebuilt'}, {size} rows"] = (jaxem.Chunked(model, size, keep=keep), data)
    problems = {}
    for name, (chunked, data) in list(contests.items()):
        try:
            jax.block_until_ready(_step(chunked, params, data))
        except jax.errors.JaxRuntimeError as error:
            problems[name] = str(error).splitlines()[0][:200]
            del contests[name]

    def run():
        return {name: _timed(_step, chunked, params, data)[0] for name, (chunked, data) in contests.items()}

    return {**_facts(), "names": list(contests), "problems": problems}, run


def _chain(steps, k):
    """One sequence of a chain that stays with 4/5, without a loop over time: jumps, added up."""
    jumps = jax.random.bernoulli(jax.random.key(0), 0.2, (steps,)) * jax.random.randint(
        jax.random.key(1), (steps,), 1, k
    )
    means = 10 * jax.random.normal(jax.random.key(2), (k, 1))
    x = means[jnp.cumsum(jumps) % k] + jax.random.normal(jax.random.key(3), (steps, 1))
    transition = 0.8 * jnp.eye(k) + 0.2 / (k - 1) * (1 - jnp.eye(k))
    params = jaxem.LatentParams(
        jaxem.MarkovChainParams(jnp.full(k, 1 / k), transition), jaxem.GaussianParams(means, jnp.ones((k, 1, 1)))
    )
    return x[None], params


def chain(arrays, options):
    """The E-step of one long sequence; forward-backward alone in as many blocks as asked, and step by step."""
    steps, k = options["steps"], options["k"]
    x, params = _chain(steps, k)
    model = jaxem.HMM(jaxem.Gaussian(), k).calibrate(x)
    data = jax.block_until_ready(jax.jit(lambda m, x: m.prepare(x))(model, x))
    e_step = jax.jit(lambda m, p, d: m.e_step(p, d))
    potentials = jax.jit(lambda m, p, d: m.likelihood.log_prob(p, d.statistics[0])[None])(
        model, params.likelihood, data
    )
    weights = jnp.ones(potentials.shape[:2])
    initial, transition = params.latent.initial, params.latent.transition

    def messages(count):
        return jax.jit(lambda a, w: forward_backward(initial, transition, a, None, w, blocks=count))

    part = options["sequential_steps"]
    contests = {"E-step": (e_step, (model, params, data))}
    for count in (None, *options["blocks"]):
        name = "forward-backward" if count is None else f"forward-backward, {count} blocks"
        contests[name] = (messages(count), (potentials, weights))
    contests["sequential"] = (messages(1), (potentials[:, :part], weights[:, :part]))
    compile_seconds = {name: _timed(f, *args)[0] for name, (f, args) in contests.items()}

    def run():
        answer = {name: _timed(f, *args)[0] for name, (f, args) in contests.items()}
        answer["sequential"] *= steps / part
        answer["seconds"] = answer["E-step"]
        answer["log_likelihood"] = float(e_step(model, params, data).log_likelihood) / steps
        return answer

    return {**_facts(), "compile_seconds": compile_seconds["E-step"], "names": list(contests)}, run


def fits(arrays, options):
    """`jaxem.fit_batch` of many small data sets to convergence, starts drawn."""
    sets, n, d, k = (options[name] for name in ("sets", "n", "d", "k"))
    means = 3 * jax.random.normal(jax.random.key(0), (sets, k, d))
    which = jax.random.randint(jax.random.key(1), (sets, n), 0, k)
    x = jnp.take_along_axis(means, which[..., None], axis=1) + jax.random.normal(jax.random.key(2), (sets, n, d))
    model = jaxem.Mixture(jaxem.Gaussian(), k)

    def fit():
        return jaxem.fit_batch(model, x, key=jax.random.key(3), tol=1e-4, on_failure="ignore")

    compile_seconds, _ = _timed(fit)

    def run():
        seconds, result = _timed(fit)
        status, count = np.unique(result.status, return_counts=True)
        return {
            "seconds": seconds,
            "per_fit": seconds / sets,
            "log_likelihood": float(np.nanmean(result.log_likelihood)) / n,
            "status": {jaxem.Status(int(s)).label: int(c) for s, c in zip(status, count)},
        }

    return {**_facts(), "compile_seconds": compile_seconds}, run


def precision(arrays, options):
    """Both products of a diagonal mixture at every precision: seconds, and the largest error against float64.

    Of the potentials T η the error is absolute (they are logarithms), of the sums Rᵀ T relative to Σ_n r_nk |T_np|.
    """
    n, d, k = options["n"], options["d"], options["k"]
    x, means = _clusters(n, d, k)
    model, params = _gaussians({"covariance": "diagonal"}, x, means)
    statistics = jax.jit(lambda m, x: m.prepare(x))(model, x).statistics
    natural = model.likelihood.natural(params.likelihood)
    responsibilities = jax.nn.softmax(jnp.matmul(statistics, natural.T, precision="highest"))
    presets = jax.lax.DotAlgorithmPreset
    names = ("TF32_TF32_F32", "TF32_TF32_F32_X3", "BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6")
    levels = {"HIGHEST": jax.lax.Precision.HIGHEST, "default": None}
    levels |= {name: getattr(presets, name) for name in names if hasattr(presets, name)}

    def products(level):
        return jax.jit(lambda t, e, r: (jnp.matmul(t, e.T, precision=level), jnp.matmul(r.T, t, precision=level)))

    rows = min(n, 2**14)
    t, e, r = (np.asarray(a, np.float64) for a in (statistics[:rows], natural, responsibilities[:rows]))
    want, size = (t @ e.T, r.T @ t), r.T @ np.abs(t)
    programs, errors, problems = {}, {}, {}
    for name, level in levels.items():
        program = products(level)
        try:
            few = jax.device_get(program(statistics[:rows], natural, responsibilities[:rows]))
            jax.block_until_ready(program(statistics, natural, responsibilities))
        except Exception as error:  # whatever a compiler says of what it does not know
            problems[name] = str(error).splitlines()[0][:200]
            continue
        programs[name] = program
        sums = np.abs(few[1] - want[1]) / np.maximum(size, np.finfo(np.float64).tiny)
        errors[name] = [float(np.max(np.abs(few[0] - want[0]))), float(np.max(sums))]

    def run():
        return {name: _timed(f, statistics, natural, responsibilities)[0] for name, f in programs.items()}

    return {**_facts(), "errors": errors, "problems": problems, "flops": 4 * n * statistics.shape[1] * k}, run


def _x64(enabled) -> contextlib.AbstractContextManager:
    return jax.enable_x64(enabled)


def carry(arrays, options):
    """The E-step summed over blocks by a compensated carry, a float64 carry and a plain sum."""
    size = options["block"]
    x, means = _clusters(options["n"], options["d"], options["k"])
    model, params = _gaussians({"covariance": "diagonal"}, x, means)
    data = jax.jit(lambda m, x: m.prepare(x))(model, x)

    def term(params, block):
        return model._e_step(params, block, None)

    def compensated(params, data):
        return sum_over_blocks(lambda block, _: term(params, block), data, None, size, jnp.float32)

    def added(params, data, dtype):
        cut = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), data)

        def body(total, block):
            with _x64(False):
                own = term(params, block)
            return jax.tree.map(lambda a, b: a + b.astype(dtype), total, own), None

        with _x64(False):
            one = jax.eval_shape(term, params, jax.tree.map(lambda a: a[:size], data))
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, dtype), one)
        return jax.lax.scan(body, zero, cut)[0]

    plain = jax.jit(lambda p, d: added(p, d, jnp.float32))
    double = jax.jit(lambda p, d: added(p, d, jnp.float64))

    def in_double(params, data):
        with _x64(True):
            return double(params, data)

    contests = {"compensated": jax.jit(compensated), "float64": in_double, "plain": plain}
    results = {name: jax.device_get(f(params, data)) for name, f in contests.items()}

    def error(name):
        pairs = zip(jax.tree.leaves(results[name]), jax.tree.leaves(results["float64"]), strict=True)
        return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)

    def run():
        return {name: _timed(f, params, data)[0] for name, f in contests.items()}

    return {**_facts(), "errors": {name: error(name) for name in contests}}, run
