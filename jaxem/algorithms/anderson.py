"""Anderson acceleration of EM: damped, restarted, guarded by the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.em import EM
from jaxem.algorithms.guarded import Guard, check_inner, mapped, near, rounding, select, to_vector
from jaxem.linalg import dot
from jaxem.model import Algorithm, Info, Model, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


# The objective may be below the highest seen for so many evaluations.
_PATIENCE = 12
# How far below, in differences that count as near.
_SLACK = 1.0
# A proposal gains next to nothing below this share of what a step of EM gained.
_WEAK = 1e-3
# λ, relative to the trace of ΔF ΔFᵀ: at first, and by what a success multiplies it; a refusal takes back four of them.
_FIRST_DAMPING, _DECAY, _MOST = 1e-2, 0.1, 12.0
_PENALTY = 4.0
# The longest correction, in steps of EM: at first; it grows by this factor when it is reached, and a refusal takes it back.
_LONGEST, _GROWTH = 4.0, 4.0


@pytree
class AndersonState:
    """params: evaluated next. point, residual: free coordinates θ evaluated last, and M(θ) − θ.

    steps, changes: differences of successive points and residuals, [memory, P]; count: how many of them are filled.
    successes: how far the damping has been lifted. longest: the longest correction allowed, in steps of EM. settled:
    whether EM has come near an optimum. proposed: whether ``params`` are a proposal; gain: what the last step of EM itself
    gained.
    """

    params: Any
    point: Float[Array, " P"]
    residual: Float[Array, " P"]
    steps: Float[Array, "M P"]
    changes: Float[Array, "M P"]
    count: Int[Array, ""]
    successes: Float[Array, ""]
    longest: Float[Array, ""]
    settled: Bool[Array, ""]
    proposed: Bool[Array, ""]
    gain: Float[Array, ""]
    guard: Guard


@pytree
class Anderson(Algorithm):
    """Damped Anderson acceleration with restarts and a guard, after DAAREM (Henderson & Varadhan 2019): ``Anderson(EM())``.

    With the last m differences Δθ and Δf of points and residuals f(θ) = M(θ) − θ, in free coordinates,

        θ⁺ = M(θ) ∓ (ΔΘ + ΔF)ᵀ γ,    γ = argmin ‖f − ΔFᵀ γ‖² + λ ‖γ‖²,

    a quasi-Newton step for the fixed point that asks only EM steps. λ is large at first and after refusals, so that steps
    begin as EM's, and falls as they succeed; likewise the longest correction allowed, in steps of EM, grows from a few.
    A saddle of the likelihood is a fixed point too, which EM leaves: where − would go against EM's own step, + is taken,
    away from it. Extrapolation begins when EM gains little, and less at each step.
    What is below the highest objective seen is provisional, is never reported, and is abandoned, with the differences,
    where it does not come back above within a few steps: the objective never falls. memory: m at most (a full memory
    starts anew); no more than there are free coordinates.
    One E-step for every step of the driver. Raises ValueError for a memory below 1.
    """

    inner: Algorithm = EM()
    memory: int = static(default=10)

    def __post_init__(self):
        check_inner(self.inner)
        if not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"memory must be a whole number, at least 1; got {self.memory!r}")

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.inner.monotone

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> AndersonState:
        vector, _ = to_vector(model, params)
        p = vector.size
        memory = max(1, min(self.memory, p))
        params = jax.tree.map(jnp.asarray, params)
        return AndersonState(
            params=params,
            point=vector,
            residual=jnp.zeros_like(vector),
            steps=jnp.zeros((memory, p), vector.dtype),
            changes=jnp.zeros((memory, p), vector.dtype),
            count=jnp.int32(-1),
            successes=jnp.zeros((), vector.dtype),
            longest=jnp.full((), _LONGEST, vector.dtype),
            settled=jnp.array(False),
            proposed=jnp.array(False),
            gain=jnp.zeros((), vector.dtype),
            guard=Guard.start(params, vector.dtype),
        )

    def step(self, model: Model, state: AndersonState, data: Any, weights: Any) -> tuple[AndersonState, Info]:
        updated, info = mapped(self.inner, model, state.params, data, weights)
        here, _ = to_vector(model, state.params)
        there, back = to_vector(model, updated)
        residual = there - here
        guard, above, refused = state.guard.judge(info, updated, _PATIENCE, _SLACK)
        # A proposal that gains next to nothing may be stuck, or the end: a step of EM says which, and only that is judged.
        gain = state.guard.gain(info)
        weak = state.proposed & above & (gain < _WEAK * state.gain)

        # A full memory starts anew, with the latest difference.
        memory = state.steps.shape[0]
        place = jnp.where(state.count >= memory, 0, jnp.maximum(state.count, 0))
        count = jnp.where(refused | weak, -1, jnp.where(state.count < 0, 0, place + 1))
        steps = state.steps.at[place].set(here - state.point)
        changes = state.changes.at[place].set(residual - state.residual)
        filled = (jnp.arange(memory) < count)[:, None]
        used = jnp.where(filled, steps, 0), jnp.where(filled, changes, 0)
        correction, at_most = _held(_correction(residual, *used, state.successes), residual, state.longest)
        # Far from an optimum a step of EM is safer: an extrapolation could leave its basin. Gains that grow leave a saddle.
        plain = above & ~state.proposed
        eases = (gain < near(info)) & (gain <= state.gain + rounding(info, info.objective))
        settled = jnp.where(plain, eases, state.settled)
        proposes = ~weak & settled & (count > 0) & jnp.all(jnp.isfinite(correction))
        successes = jnp.where(above, jnp.minimum(state.successes + 1, _MOST), state.successes)
        longest = jnp.where(proposes & above & at_most, state.longest * _GROWTH, state.longest)
        return AndersonState(
            params=select(refused, guard.fallback, select(proposes, back(there - correction), updated)),
            point=here,
            residual=residual,
            steps=steps,
            changes=changes,
            count=count.astype(jnp.int32),
            successes=jnp.where(refused, jnp.maximum(state.successes - _PENALTY, 0), successes),
            longest=jnp.where(refused, jnp.maximum(1.0, state.longest / _GROWTH), longest),
            settled=settled,
            proposed=proposes & ~refused,
            gain=jnp.where(plain & jnp.isfinite(gain), gain, state.gain).astype(here.dtype),
            guard=guard,
        ), Info(info.objective, info.log_likelihood, info.weight, state.guard.provisional(above) | weak)


def _correction(residual: Array, steps: Float[Array, "M P"], changes: Float[Array, "M P"], successes: Array) -> Array:
    """(ΔΘ + ΔF)ᵀ γ."""
    gram = dot(changes, changes.T)
    m = gram.shape[0]
    size = jnp.trace(gram)
    eps = jnp.finfo(gram.dtype).eps
    ridge = jnp.maximum(_FIRST_DAMPING * _DECAY**successes, 16 * eps) * jnp.where(size > 0, size, 1)
    gamma = jnp.linalg.solve(gram + ridge * jnp.eye(m, dtype=gram.dtype), dot(changes, residual))
    return dot(gamma, steps + changes)


def _held(correction: Array, residual: Array, longest: Array) -> tuple[Array, Array]:
    """What is taken from M(θ): along EM's step, at most ``longest`` times as long; and whether it ended there."""
    correction = jnp.where(dot(residual - correction, residual) > 0, correction, -correction)
    size, most = jnp.sqrt(dot(correction, correction)), longest * jnp.sqrt(dot(residual, residual))
    at_most = size >= most
    return correction * jnp.where(at_most, most / jnp.where(size > 0, size, 1), 1), at_most
