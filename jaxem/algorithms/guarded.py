"""What accelerators share: free coordinates of any parameters, and the guard that keeps EM's promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxem.free import coordinates
from jaxem.model import Algorithm, Info, Model, UnsupportedError, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# The guard lets an objective be lower by so many of its own roundings: less cannot be told apart.
_ROUNDINGS = 32
# What counts as near in objective, in units of the log-likelihood: at least, and per example.
_NEAR, _NEAR_EACH = 0.1, 1e-4


def to_vector(model: Model, params: Any) -> tuple[Float[Array, " P"], Callable[[Float[Array, " P"]], Any]]:
    """Free coordinates as a vector, or the parameters themselves where the model has none; and the way back.

    What the coordinates of these parameters cannot represent (a weight of exactly 0, say) makes the way back differ from
    the parameters; an extrapolation from there is a proposal like any other, which the guard judges.
    """
    try:
        vector, back = coordinates(model, params)
    except UnsupportedError:
        vector, back = ravel_pytree(params)

    def like_params(v: Array) -> Any:
        return jax.tree.map(lambda new, old: new.astype(jnp.asarray(old).dtype), back(v), params)

    return vector, like_params


def mapped(algorithm: Algorithm, model: Model, params: Any, data: Any, weights: Any) -> tuple[Any, Info]:
    """One step of the algorithm from these parameters: where it leads, and the objective of ``params``."""
    state, info = algorithm.step(model, algorithm.init(model, params, data, weights), data, weights)
    return state.params, info


def check_inner(inner: Any) -> None:
    """Raise ValueError where the objectives of an algorithm, by which proposals are judged, are noisy."""
    if isinstance(inner, Algorithm) and inner.estimates:
        raise ValueError(f"{type(inner).__name__} only estimates its objective, by which an acceleration is guarded")


@pytree
class Guard:
    """The highest objective seen, and the way back to it.

    fallback: one EM step from there, and retreated: whether that is evaluated next. low: for how many evaluations the
    objective has been below.
    """

    highest: Float[Array, ""]
    fallback: Any
    low: Int[Array, ""]
    retreated: Bool[Array, ""]

    @classmethod
    def start(cls, params: Any, dtype: Any) -> Guard:
        return cls(jnp.full((), -jnp.inf, dtype), params, jnp.int32(0), jnp.array(True))

    def gain(self, info: Info) -> Float[Array, ""]:
        return info.objective - self.highest

    def judge(self, info: Info, updated: Any, patience: int, slack: float) -> tuple[Guard, Bool[Array, ""], Array]:
        """The next guard, whether the objective counts, and whether this excursion ends and the fallback is next.

        An excursion below ends after ``patience`` evaluations, or where it is lower than ``slack`` times what is near.
        The step of EM that a retreat makes counts wherever it leads: an EM that does not rise is not to be cured here.
        """
        above = holds(info, self.highest) | (self.retreated & jnp.isfinite(info.objective))
        low = jnp.where(above, 0, self.low + 1)
        refused = ~above & ((low > patience) | ~holds(info, self.highest - slack * near(info)))
        following = Guard(
            highest=jnp.where(above, info.objective.astype(self.highest.dtype), self.highest),
            fallback=select(above, updated, self.fallback),
            low=jnp.where(refused, 0, low).astype(jnp.int32),
            retreated=refused,
        )
        return following, above, refused

    def provisional(self, above: Bool[Array, ""]) -> Bool[Array, ""]:
        """Whether the driver is not to judge this evaluation."""
        return ~above & ~self.retreated


def near(info: Info) -> Float[Array, ""]:
    """A difference in objective that is small: an excursion may be so low, and EM is settled when it gains no more."""
    return jnp.maximum(_NEAR, _NEAR_EACH * info.weight)


def holds(info: Info, least: Float[Array, ""]) -> Bool[Array, ""]:
    """True where an objective is a number and not below ``least``, up to rounding."""
    return jnp.isfinite(info.objective) & (info.objective >= least - rounding(info, least))


def rounding(info: Info, objective: Float[Array, ""]) -> Float[Array, ""]:
    """What cannot be told apart from an objective of this size."""
    size = jnp.maximum(jnp.abs(objective), info.weight.astype(objective.dtype))
    return _ROUNDINGS * jnp.finfo(objective.dtype).eps * jnp.where(jnp.isfinite(size), size, 0)


def select(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
