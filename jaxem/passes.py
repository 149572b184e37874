"""A pass over data that come in blocks, for any algorithm whose step is one E-step: sums of E-steps, and then that step.

Every leaf of an `EStep` is a sum over examples. So a step of an algorithm that looks at the data by one E-step at its
current parameters is a pass over the blocks that adds theirs, followed by the step itself on a model whose E-step is
known (`Seen`). EM and its accelerations need not know that their data were not there at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.blocks import two_sum
from jaxem.model import Algorithm, EStep, Info, Model, UnsupportedError, pytree, static
from jaxem.wrappers.base import Wrapper

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


@pytree
class Place:
    """Which block of a pass is being looked at, and whether the pass ends with it."""

    block: Int[Array, ""] | int = 0
    last: Bool[Array, ""] | bool = True


@pytree
class Sums:
    """A compensated sum: what it is so far, and what the additions have lost."""

    total: Any
    error: Any

    def plus(self, term: Any) -> Sums:
        pairs = jax.tree.map(two_sum, self.total, self.error, term)
        outer, inner = jax.tree.structure(self.total), jax.tree.structure((0, 0))
        return Sums(*jax.tree.transpose(outer, inner, pairs))

    @property
    def value(self) -> Any:
        return jax.tree.map(jnp.add, self.total, self.error)


def nothing(shapes: Any) -> Sums:
    """An empty sum of terms of these shapes."""
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return Sums(zero, zero)


def begin(model: Model, params: Any, block: Any, weights: Any) -> Sums:
    """An empty sum of E-steps of such blocks."""
    return nothing(jax.eval_shape(model.e_step, params, block, weights))


def end(algorithm: Algorithm, model: Model, state: Any, sums: Sums) -> tuple[Any, Info]:
    """The algorithm's step, its E-step known. Raises UnsupportedError where it wants to know more of the data."""
    seen: Any = Seen(model, state.params, sums.value, type(algorithm).__name__)
    # All that is left of the data is that there are some.
    return algorithm.step(seen, state, jnp.zeros(1), None)


@pytree
class Seen(Wrapper):
    """A model whose E-step at ``params`` is known, whatever the data; it can say nothing else of them."""

    model: Model
    params: Any
    expected: EStep
    asked_by: str = static(default="it")

    def e_step(self, params, data, weights=None) -> EStep:
        given, known = jax.tree.leaves(params), jax.tree.leaves(self.params)
        if len(given) != len(known) or any(a is not b for a, b in zip(given, known, strict=True)):
            self._refuse()
        return self.expected

    def num_observations(self, data, weights=None):
        return self.expected.weight

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise UnsupportedError(
            f"{self.asked_by} looks at the data more than once in a step, and of a Stream a step is one pass: fit with "
            "EM, an acceleration of it, or StochasticEM"
        )

    redraw = tempered = prepare = compress = check_divisible = init = _refuse
    calibrate = elbo = log_likelihood = posterior = predict = impute = pseudo_statistics = _refuse
