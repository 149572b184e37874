"""The contract of a latent space, and what the spaces share: evaluating a user's function at pairs (x, z)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.model import Data, num_examples, unsupported
from jaxem.same_function import same

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: log p(x, z | params) of one example: a function of (params, x, z); of a chain its factors.
LogJointFunction = Any


class LatentSpace:
    """What z ranges over: how q(z) = p(z | x, θ) is represented, and how E_q is taken.

    An *expectation* is whatever the space keeps of q: a pytree whose leading axis is the examples, with their weights in
    it, from which ``E_q[log p(x, z | ·)]`` can be evaluated at any parameters.
    """

    #: The number of values of z, where they can be told apart by one number.
    num_components: int = 0
    #: What Σ log p(x) is called, where it is only nearly that (see `Model.objective_name`).
    objective_name: str = "log-likelihood"
    #: False where p(x) is only estimated, at points that move with the parameters.
    monotone: bool = True
    #: True when an example is a sequence.
    sequential: bool = False
    #: The fields of `Data` that say something about z beside x; others reach the log joint.
    reads: frozenset[str] = frozenset()

    def read(self, data: Any) -> Any:
        """The data in the form that the other methods take; refuses by name what cannot be read."""
        return data

    def check(self, log_joint: LogJointFunction, params: Any, data: Any) -> None:
        """Raise ValueError, at trace time, where the log joint does not take or return what it should."""
        raise unsupported(self, "check", "LogJoint")

    def infer(
        self, log_joint: LogJointFunction, params: Any, data: Any, weights: Array | None
    ) -> tuple[Any, Float[Array, " N"]]:
        """The expectation under p(z | x, params), and log p(x_n | params) of every example, without its weight."""
        raise unsupported(self, "infer", "the E-step")

    def expected(self, log_joint: LogJointFunction, params: Any, expectation: Any) -> Float[Array, ""]:
        """Σ_n w_n E_q[log p(x_n, z | params)]: the M-step's objective."""
        raise unsupported(self, "expected", "the M-step")

    def sums(self, statistic: Callable[[Any, Any], Any], expectation: Any) -> Any:
        """Σ_n w_n E_q[statistic(x_n, z)], a pytree."""
        raise unsupported(self, "sums", "an M-step in closed form")

    def extent(self, expectation: Any) -> tuple[int, Float[Array, ""]]:
        """How many rows an expectation has, and their total weight: the size of its sums."""
        raise unsupported(self, "extent", "the M-step")

    def thin(self, expectation: Any, num_rows: int) -> Any:
        """An expectation over about so many examples whose objective is near that of all, for its curvature."""
        return expectation

    def posterior(self, log_joint: LogJointFunction, params: Any, data: Any) -> Any:
        """p(z | x_n, params) of every example."""
        raise unsupported(self, "posterior", "prediction")

    def predict(self, log_joint: LogJointFunction, params: Any, data: Any) -> Any:
        """The most probable z of every example."""
        raise unsupported(self, "predict", "prediction")

    def bound(
        self, log_joint: LogJointFunction, params: Any, data: Any, q: Any, weights: Array | None
    ) -> Float[Array, ""]:
        """Σ_n w_n (E_q[log p(x_n, z | params)] + H[q_n]) for any q."""
        raise unsupported(self, "bound", "the ELBO of a given q")

    def redraw(self, key: Array) -> LatentSpace:
        """The space with its random numbers drawn anew; itself where it has none."""
        return self

    def num_observations(self, data: Any, weights: Array | None, dtype: Any) -> Float[Array, ""]:
        """Σ_n w_n, of sequences times their steps."""
        return jnp.asarray(num_examples(data), dtype) if weights is None else jnp.sum(weights)


def as_function(function: Any) -> Any:
    """A function as a pytree: one of plain Python is part of the program (see `SameFunction`); None stays None."""
    compared = same(function)
    # Not a Partial of a Partial, whose arguments would be part of the program too.
    return (
        compared if compared is None or isinstance(compared, jax.tree_util.Partial) else jax.tree_util.Partial(compared)
    )


def rows_of(data: Any) -> Any:
    """What the log joint sees: x by itself where `Data` holds nothing else."""
    return data.x if isinstance(data, Data) and data.given() == {"x"} else data


def describe(tree: Any) -> str:
    """Types and shapes of a pytree, for messages."""
    return str(jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree))


def like(what: str, params: Any, updated: Any) -> Any:
    """``updated`` in the types of ``params``; raises ValueError unless it has the same structure and shapes."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (updated, params)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{what} must return parameters like those it got, {describe(params)}; got {describe(updated)}"
        )
    return jax.tree.map(lambda new, old: jnp.asarray(new).astype(jnp.result_type(old)), updated, params)


@jax.custom_jvp
def possible(values: Array) -> Array:
    """The values; where they are −∞, what is impossible has no derivative, instead of 0 · ∞."""
    return values


@possible.defjvp
def _possible_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (values,), (tangent,) = primals, tangents
    return possible(values), jnp.where(values == -jnp.inf, 0, tangent)


def trace_one(what: str, function: Callable[..., Any], **arguments: Any) -> None:
    """Trace a user's function once and check that it returns one floating-point number."""

    def named() -> str:
        return "; ".join(f"{name} is {describe(value)}" for name, value in arguments.items())

    try:
        out = jax.eval_shape(function, *arguments.values())
    except Exception as error:
        error.add_note(f"{what} was called for one example, where {named()}")
        raise
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(
            f"{what} must return one number, log p of one example and one z; it returned {describe(out)}, where {named()}"
        )


def first_row(rows: Any) -> Any:
    """The shapes of one example."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)


def share_and_evidence(
    table: Float[Array, "S N"], weights: Float[Array, " N"] | None
) -> tuple[Float[Array, "S N"], Float[Array, " N"]]:
    """w_n q_n(z_s) and log Σ_s exp(table), from the logarithms of joint weights; −∞ where everything is impossible."""
    peak = jnp.max(table, axis=0)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0))
    unnormalized = jnp.exp(table - peak)
    total = jnp.sum(unnormalized, axis=0)
    # A NaN total is kept: numbers that are none must be seen.
    possible = total != 0
    share = jnp.where(possible, 1 / jnp.where(possible, total, 1), 0)
    if weights is not None:
        share = jnp.where(weights == 0, 0, share * weights)
    evidence = jnp.where(possible, peak + jnp.log(jnp.where(possible, total, 1)), -jnp.inf)
    return unnormalized * share, evidence


def weighted_total(coefficients: Float[Array, "*S"], values: Float[Array, "*S"]) -> Float[Array, ""]:
    """Σ c v; what has no coefficient has no part in it, nor in its gradient, whatever its value."""
    counted = coefficients > 0
    return jnp.sum(jnp.where(counted, coefficients * jnp.where(counted, values, 0), 0))


def systematic(probability: Float[Array, " N"], num_rows: int) -> tuple[Array, Float[Array, " M"]]:
    """Indices of a systematic sample with these probabilities, and the factors that make its sums unbiased."""
    total = jnp.sum(probability)
    ends = jnp.cumsum(probability) / jnp.where(total > 0, total, 1)
    places = (jnp.arange(num_rows, dtype=ends.dtype) + 0.5) / num_rows
    rows = jnp.clip(jnp.searchsorted(ends, places), 0, probability.shape[0] - 1)
    share = probability[rows] / jnp.where(total > 0, total, 1)
    return rows, jnp.where(share > 0, 1 / (num_rows * jnp.where(share > 0, share, 1)), 0)
