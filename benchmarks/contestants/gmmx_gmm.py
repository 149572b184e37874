"""gmmx's Gaussian mixture (JAX)."""

from __future__ import annotations

import time
from importlib import metadata

import jax
import jax.numpy as jnp
from gmmx import EMFitter, GaussianMixtureModelJax


def versions():
    return {"gmmx": metadata.version("gmmx"), "jax": jax.__version__}


def iteration(arrays, options):
    """Its compiled fit, stopped after some steps; seconds for one."""
    x, steps = jnp.asarray(arrays["x"]), options["steps"]
    mixture = GaussianMixtureModelJax.from_squeezed(
        means=arrays["means"][0], covariances=arrays["covariances"][0], weights=arrays["weights"][0]
    )
    fitter = EMFitter(max_iter=steps, tol=0.0)
    begin = time.perf_counter()
    fitter.fit(x, mixture)
    compile_seconds = time.perf_counter() - begin

    def run():
        begin = time.perf_counter()
        result = jax.block_until_ready(fitter.fit(x, mixture))
        seconds = (time.perf_counter() - begin) / int(result.n_iter)
        log_prob = result.gmm.log_prob(x)
        log_likelihood = jnp.mean(jax.scipy.special.logsumexp(log_prob, axis=1))
        return {"seconds": seconds, "log_likelihood": float(log_likelihood)}

    return {"compile_seconds": compile_seconds}, run
