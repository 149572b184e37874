"""Squared extrapolation of two EM steps, guarded by the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.em import EM
from jaxem.algorithms.guarded import Guard, check_inner, mapped, near, select, to_vector
from jaxem.model import Algorithm, Info, Model, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# A cycle evaluates θ₀, θ₁ = M(θ₀), and the extrapolation of θ₀, θ₁ and θ₂ = M(θ₁).
_FIRST, _SECOND, _PROPOSED = 0, 1, 2
# The longest extrapolation grows by this factor when it is reached, and shrinks by it when the guard refuses one.
_GROWTH = 4.0
# The objective may be below the highest seen for so many evaluations.
_PATIENCE = 8
# How far below, in differences that count as near.
_SLACK = 10.0


@pytree
class SquaremState:
    """params: evaluated next. start: the free coordinates of θ₀; residual: those of θ₁ less those of θ₀.

    longest: the longest extrapolation allowed.
    """

    params: Any
    phase: Int[Array, ""]
    start: Float[Array, " P"]
    residual: Float[Array, " P"]
    longest: Float[Array, ""]
    guard: Guard


@pytree
class Squarem(Algorithm):
    """SQUAREM (Varadhan & Roland 2008) around another algorithm: ``Squarem(EM())``.

    With r = M(θ₀) − θ₀ and v = (M(θ₁) − θ₁) − r in free coordinates, the next cycle starts from M of

        θ₀ + 2 a r + a² v,    a = |r·v|/v·v  (scheme 1)  or  ‖r‖/‖v‖  (scheme 3),    a ≥ 1,

    where a = 1 is the plain step θ₂. So it always goes where EM goes: near a saddle, where r·v > 0 and the paper's
    −r·v/v·v would lead back to it, it leaves as boldly as it approaches a maximum. It begins when EM gains little, for far
    from an optimum an extrapolation could leave its basin. Extrapolations may lower the objective for a while, and gain by
    it: what is below the highest seen is provisional, is never reported, and is abandoned where it does not come back
    above within a few steps. So the objective never falls, and the worst case is EM itself.
    A cycle costs three E-steps, each one step of the driver. It pays where EM is slow. scheme: 1 takes the shorter steps,
    3 is bolder. Raises ValueError for another scheme.
    """

    inner: Algorithm = EM()
    scheme: int = static(default=1)

    def __post_init__(self):
        check_inner(self.inner)
        if self.scheme not in (1, 3):
            raise ValueError(f"scheme is 1 or 3; got {self.scheme!r}")

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.inner.monotone

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> SquaremState:
        vector, _ = to_vector(model, params)
        params = jax.tree.map(jnp.asarray, params)
        guard = Guard.start(params, vector.dtype)
        return SquaremState(
            params, jnp.int32(_FIRST), vector, jnp.zeros_like(vector), jnp.ones((), vector.dtype), guard
        )

    def step(self, model: Model, state: SquaremState, data: Any, weights: Any) -> tuple[SquaremState, Info]:
        updated, info = mapped(self.inner, model, state.params, data, weights)
        here, _ = to_vector(model, state.params)
        there, back = to_vector(model, updated)
        first, second = state.phase == _FIRST, state.phase == _SECOND
        guard, above, refused = state.guard.judge(info, updated, _PATIENCE, _SLACK)

        change = there - here
        length, at_most = _step_length(state.residual, change - state.residual, state.longest, self.scheme)
        extrapolated = back(state.start + 2 * length * state.residual + length**2 * (change - state.residual))
        longest = jnp.where(second & at_most, state.longest * _GROWTH, state.longest)
        longest = jnp.where(refused, jnp.maximum(1.0, state.longest / _GROWTH), longest)

        proposes = second & (length > 1) & (state.guard.gain(info) <= near(info))
        params = select(refused, guard.fallback, select(proposes, extrapolated, updated))
        phase = jnp.where(refused, _FIRST, jnp.where(proposes, _PROPOSED, jnp.where(first, _SECOND, _FIRST)))
        return SquaremState(
            params=params,
            phase=phase.astype(jnp.int32),
            start=jnp.where(first, here, state.start),
            residual=jnp.where(first, change, state.residual),
            longest=longest,
            guard=guard,
        ), Info(info.objective, info.log_likelihood, info.weight, state.guard.provisional(above))


def _step_length(r: Float[Array, " P"], v: Float[Array, " P"], longest: Array, scheme: int) -> tuple[Array, Array]:
    """The step length between 1 and ``longest``, and whether that is where it ended."""
    bend = jnp.sum(v * v)
    bent = bend > 0
    along = jnp.abs(jnp.sum(r * v)) if scheme == 1 else jnp.sqrt(jnp.sum(r * r) * bend)
    length = along / jnp.where(bent, bend, 1)
    length = jnp.where(bent & jnp.isfinite(length), length, 1)
    return jnp.clip(length, 1, longest), length >= longest
