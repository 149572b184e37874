"""When to stop: rules as objects. Their tolerances are traced, so a new value does not recompile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.model import pytree, static, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class Progress:
    """What a rule sees after a step: these parameters, their objective, the objective before, and the total weight."""

    params: Any
    objective: Float[Array, ""]
    previous_objective: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def gain(self) -> Float[Array, ""]:
        return self.objective - self.previous_objective


class Stopping:
    """A rule with a memory: ``start`` gives the memory, ``check`` the next memory and whether the rule is met."""

    #: True where the rule looks at the objective, and so has nothing more to see when gains drown in its rounding.
    #: Parameters still gain digits then: they are good to the square root of the rounding of the objective.
    watches_objective: bool = True

    def start(self, params: Any, objective: Float[Array, ""]) -> Any:
        """The memory before the first step; rules that need none have an empty one."""
        return ()

    def check(self, memory: Any, progress: Progress) -> tuple[Any, Bool[Array, ""]]:
        raise unsupported(self, "check", "the driver")


def _check_tol(tol: Any) -> None:
    if isinstance(tol, (int, float)) and not 0 <= tol < float("inf"):
        raise ValueError(f"tol must be a finite number, at least 0; got {tol}")


def _check_window(window: Any, least: int) -> None:
    if not isinstance(window, int) or window < least:
        raise ValueError(f"window must be a whole number of steps, at least {least}; got {window!r}")


@pytree
class RelativeGain(Stopping):
    """Stop when a step gains no more than ``tol`` per example: |L_t − L_(t−1)| ≤ tol · Σ_n w_n."""

    tol: float | jax.Array = 1e-6

    def __post_init__(self):
        _check_tol(self.tol)

    def check(self, memory, progress):
        return memory, jnp.abs(progress.gain) <= self.tol * progress.weight


@pytree
class AbsoluteGain(Stopping):
    """Stop when a step gains no more than ``tol`` in all: |L_t − L_(t−1)| ≤ tol."""

    tol: float | jax.Array = 1e-6

    def __post_init__(self):
        _check_tol(self.tol)

    def check(self, memory, progress):
        return memory, jnp.abs(progress.gain) <= self.tol


@pytree
class Aitken(Stopping):
    """Stop when what is left to gain, extrapolated, is no more than ``tol`` per example.

    With a = gain_t / gain_(t−1) the limit of a geometric sequence is L_t + gain_t · a/(1 − a) (Böhning et al. 1994).
    Slow convergence, where each gain is small and much is left, does not fool it.
    """

    tol: float | jax.Array = 1e-6

    def __post_init__(self):
        _check_tol(self.tol)

    def start(self, params, objective):
        return jnp.full_like(objective, jnp.inf)

    def check(self, memory, progress):
        gain = progress.gain
        ratio = gain / jnp.where(memory == 0, 1, memory)
        left = gain * ratio / jnp.where(ratio < 1, 1 - ratio, 1)
        known = (ratio >= 0) & (ratio < 1) & jnp.isfinite(memory)
        return gain, (known & (jnp.abs(left) <= self.tol * progress.weight)) | (gain == 0)


@pytree
class ParameterChange(Stopping):
    """Stop when no parameter leaf moves by more than ``tol`` of its size: ‖θ_t − θ_(t−1)‖ ≤ tol · ‖θ_t‖, leaf by leaf.

    The rule for a gradient through the fit, with a tol near the rounding of the parameters (1e-12 in float64).
    """

    tol: float | jax.Array = 1e-4

    watches_objective = False

    def __post_init__(self):
        _check_tol(self.tol)

    def start(self, params, objective):
        return params

    def check(self, memory, progress):
        def still(new: Array, old: Array) -> Array:
            return jnp.linalg.norm((new - old).ravel()) <= self.tol * jnp.linalg.norm(new.ravel())

        leaves = jax.tree.leaves(jax.tree.map(still, progress.params, memory))
        return progress.params, jnp.all(jnp.stack(leaves))


@pytree
class Plateau(Stopping):
    """Stop when the mean objective of the last ``window`` steps is above that of the ``window`` before by at most tol.

    tol is per example. The rule for objectives that are noisy, or estimates: it sees a trend where single gains are
    chance, and needs twice ``window`` steps. Raises ValueError for a window below 1.
    """

    tol: float | jax.Array = 1e-5
    window: int = static(default=5)

    def __post_init__(self):
        _check_tol(self.tol)
        _check_window(self.window, 1)

    def start(self, params, objective):
        return jnp.full((2 * self.window,), jnp.nan, objective.dtype)

    def check(self, memory, progress):
        memory = jnp.concatenate([memory[1:], progress.objective[None]])
        before, last = memory[: self.window], memory[self.window :]
        # Of NaN, steps that were not made yet, nothing is less.
        return memory, jnp.mean(last) - jnp.mean(before) <= self.tol * progress.weight


@pytree
class Settled(Stopping):
    """Stop when the objectives of the last ``window`` steps lie within ``tol`` per example of each other.

    The rule for methods that overshoot: where their objective turns, single gains are small too. Raises ValueError for a
    window below 2.
    """

    tol: float | jax.Array = 1e-6
    window: int = static(default=10)

    def __post_init__(self):
        _check_tol(self.tol)
        _check_window(self.window, 2)

    def start(self, params, objective):
        return jnp.full((self.window,), jnp.nan, objective.dtype)

    def check(self, memory, progress):
        memory = jnp.concatenate([memory[1:], progress.objective[None]])
        return memory, jnp.max(memory) - jnp.min(memory) <= self.tol * progress.weight


@pytree
class Never(Stopping):
    """Run to max_steps."""

    watches_objective = False

    def check(self, memory, progress):
        return memory, jnp.zeros((), bool)
