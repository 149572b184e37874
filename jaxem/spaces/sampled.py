"""A user's own sampler of z: importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.model import num_examples, pytree, static
from jaxem.same_function import same
from jaxem.spaces import points
from jaxem.spaces.base import LatentSpace, describe, first_row, rows_of, trace_one

if TYPE_CHECKING:
    from jaxtyping import Array


@pytree
class Sampled(LatentSpace):
    """z by a user's sampler: ``sampler(key, params, x) -> (z, log_density)``, one draw for one example.

    log_density is log of the density (or probability) with which z was drawn, and makes the draws importance samples:
    ``p(x) ≈ (1/S) Σ_s p(x, z_s)/density(z_s)``; with draws from the posterior itself this is p(x) exactly. z is any
    pytree. The random numbers are the same in every step; where the draws move with the parameters the objective may fall
    by the error of its estimate, and it settles as the parameters do. The maximum is that of the likelihood up to an
    error of order 1/√S. `redraw` changes the numbers, as Monte-Carlo EM does.
    num_samples: S. Raises ValueError where the sampler does not return a pair, or S is below 1.
    """

    sampler: Callable[[Array, Any, Any], tuple[Any, Any]] = static()
    num_samples: int = static(default=100)
    key: Any = None

    monotone = False
    objective_name = "estimated log-likelihood"

    def __post_init__(self):
        if not callable(self.sampler):
            raise ValueError(
                f"Sampled takes a function sampler(key, params, x) -> (z, log_density); got {self.sampler!r}"
            )
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ValueError(f"num_samples must be a whole number, at least 1; got {self.num_samples!r}")
        object.__setattr__(self, "sampler", same(self.sampler))

    def redraw(self, key):
        return Sampled(self.sampler, self.num_samples, key)

    def check(self, log_joint, params, data):
        x = first_row(rows_of(data))
        if self.key is None:
            raise ValueError("Sampled needs a key: jaxem.Sampled(sampler, num_samples, jax.random.key(0))")
        out = jax.eval_shape(self.sampler, self.key, params, x)
        if not (isinstance(out, tuple) and len(out) == 2 and jnp.shape(out[1]) == ()):
            raise ValueError(
                f"sampler(key, params, x) must return (z, log_density of one draw); it returned {describe(out)}"
            )
        trace_one("log_joint(params, x, z)", log_joint, params=params, x=x, z=out[0])

    def infer(self, log_joint, params, data, weights):
        rows = rows_of(data)
        n = num_examples(rows)
        keys = jax.random.split(self.key, (n, self.num_samples))
        draw = jax.vmap(jax.vmap(self.sampler, in_axes=(0, None, None)), in_axes=(0, None, 0))
        # The points do not depend on the parameters: what is climbed is the sum over these very draws.
        z, log_density = jax.lax.stop_gradient(draw(keys, params, rows))
        return points.infer(log_joint, params, rows, z, -log_density - jnp.log(float(self.num_samples)), weights)

    def expected(self, log_joint, params, expectation):
        return points.expected(log_joint, params, expectation)

    def sums(self, statistic, expectation):
        return points.sums(statistic, expectation)

    def extent(self, expectation):
        return expectation.coefficients.shape[0], jnp.sum(expectation.coefficients)

    def thin(self, expectation, num_rows):
        return points.thin(expectation, num_rows)

    def posterior(self, log_joint, params, data):
        """Weighted draws: ``z``, leading axes [N, S], and their ``coefficients``, [N, S], rows that sum to 1."""
        return self.infer(log_joint, params, data, None)[0]
