"""The other door: a bare EM map θ → θ and its log-likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxem import bijections
from jaxem.model import EStep, Model, float_type, num_examples, pytree, unsupported
from jaxem.spaces.base import as_function, describe, like


def FixedPoint(
    step: Callable[[Any, Any], Any],
    log_likelihood: Callable[[Any, Any], Any],
    init: Callable[[Any], Any] | None = None,
    *,
    constraints: Mapping[str, Any] | None = None,
    log_prior: Callable[[Any], Any] | None = None,
) -> Model:
    """A model from an EM that exists already: ``step(params, data) -> params`` and ``log_likelihood(params, data)``.

    With it come lanes and restarts, stopping rules and status, acceleration, standard errors and gradients through the
    fit. step: one whole EM step on the whole data. log_likelihood: log p(data | params), one number, which a step never
    lowers. init: ``init(key) -> params``. constraints: as for `LogJoint`. data: any pytree with examples as the leading
    axis of every leaf. Weights, chunks and shards need an E-step by itself, and are refused.
    Raises ValueError, at trace time, where a function returns another shape than it should.
    """
    functions = {"step": step, "log_likelihood": log_likelihood, "init": init, "log_prior": log_prior}
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ValueError(f"{name} is a function; got {function!r}")
    bounds = bijections.read_constraints(constraints)
    return _FixedPoint(*(as_function(f) for f in (step, log_likelihood, init, log_prior)), constraints=bounds)


@pytree
class _FixedPoint(Model):
    step: Any
    total: Any
    starter: Any
    prior: Any
    constraints: Any

    additive = False
    keeps_types = True

    def init(self, key, data, weights=None, strategy=None, used=None):
        if self.starter is None:
            raise unsupported(self, "init", "a fit without given starting parameters")
        return jax.tree.map(lambda a: jnp.asarray(a).astype(float_type(data)), self.starter(key))

    def e_step(self, params, data, weights=None):
        if weights is not None:
            raise ValueError("a FixedPoint steps on its data as they are: it takes no weights (put them in the data)")
        log_likelihood = jnp.asarray(self.total(params, data))
        if log_likelihood.shape != () or not jnp.issubdtype(log_likelihood.dtype, jnp.floating):
            raise ValueError(
                f"log_likelihood(params, data) must return one number; it returned {describe(log_likelihood)}"
            )
        return EStep(data, log_likelihood, jnp.asarray(num_examples(data), log_likelihood.dtype))

    def m_step(self, params, stats, frozen=None):
        return like("step(params, data)", params, self.step(params, stats))

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior(params)

    def to_free(self, params):
        return bijections.to_free(self.constraints, params)

    def from_free(self, free):
        return bijections.from_free(self.constraints, free)
