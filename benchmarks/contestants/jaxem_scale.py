"""jaxem where there is much to fit: data sets by the ten thousand, and numbers of components."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from benchmarks.contestants.jaxem_gmm import _params, _peak_bytes, _timed, versions

__all__ = ["each_chains", "each_mixtures", "many", "sweep_chains", "sweep_mixtures", "versions"]


def many(arrays, options):
    """`jaxem.fit_batch` of a host array, with everything that belongs to it."""
    jnp.zeros(1).block_until_ready()
    imports = _peak_bytes()
    x = arrays["x"]
    params = _params(arrays)
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), arrays["means"].shape[2])
    rule = {"stopping": jaxem.RelativeGain(options["tol"]), "max_steps": options["max_steps"], "min_steps": 0}
    sets, starts = arrays["weights"].shape[:2]

    def fit():
        return jaxem.fit_batch(model, x, starts=params, num_starts=starts, on_failure="ignore", **rule)

    compile_seconds, _ = _timed(fit)

    def run():
        seconds, result = _timed(fit)
        first = result.starts.objective[: options["some"]] / x.shape[1]
        return {
            "seconds": seconds / (sets * starts),
            "total": seconds,
            "log_likelihood": float(np.mean(first)),
            "bytes_beyond_data": _peak_bytes() - sum(a.nbytes for a in arrays.values()),
            "bytes_of_imports": imports,
        }

    return {"compile_seconds": compile_seconds}, run


def _answered(fit):
    compile_seconds, _ = _timed(fit)

    def run():
        seconds, results = _timed(fit)
        best = [result.log_likelihood for result in results]
        return {"seconds": seconds, "log_likelihood": float(np.mean(best)) / results[0].weight}

    return {"compile_seconds": compile_seconds}, run


def _swept(model_of, x, options):
    models = [model_of(k) for k in range(1, options["most"] + 1)]
    common = {"key": jax.random.key(0), "num_starts": options["starts"], "tol": options["tol"]}
    return _answered(lambda: jaxem.select(models, x, on_failure="ignore", **common).results)


def _each(model_of, x, options):
    keys = jax.random.split(jax.random.key(0), options["most"])
    common = {"num_starts": options["starts"], "tol": options["tol"], "on_failure": "ignore"}
    return _answered(lambda: [jaxem.fit(model_of(k + 1), x, key=key, **common) for k, key in enumerate(keys)])


def _mixture(k):
    return jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), k)


def _chain(k):
    return jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), k)


def sweep_mixtures(arrays, options):
    return _swept(_mixture, arrays["x"], options)


def each_mixtures(arrays, options):
    return _each(_mixture, arrays["x"], options)


def sweep_chains(arrays, options):
    return _swept(_chain, arrays["x"], options)


def each_chains(arrays, options):
    return _each(_chain, arrays["x"], options)
