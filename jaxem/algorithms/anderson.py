"""Anderson acceleration of EM: damped, restarted, guarded by the objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.em import EM
from jaxem.algorithms.guarded import check_inner, holds, mapped, near, select, to_vector
from jaxem.linalg import dot
from jaxem.model import Algorithm, Info, Model, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


# The objective may be below the highest seen for so many evaluations.
_PATIENCE = 12
# A proposal gains next to nothing below this share of what a step of EM gained.
_WEAK = 1e-3
# λ, relative to the trace of ΔF ΔFᵀ: at first, and by what a success multiplies it; a refusal takes back four of them.
_FIRST_DAMPING, _DECAY, _MOST = 1e-2, 0.1, 12.0
_PENALTY = 4.0


@pytree
class AndersonState:
    """params: evaluated next. point, residual: free coordinates θ evaluated last, and M(θ) − θ.

    steps, changes: differences of successive points and residuals, [memory, P]; count: how many of them are filled.
    successes: how far the damping has been lifted. highest: the highest objective seen, fallback: one EM step from there,
    and low: for how many evaluations the objective has been below it. settled: whether EM has come near an optimum.
    proposed: whether ``params`` are a proposal; gain: what the last step of EM itself gained.
    """

    params: Any
    point: Float[Array, " P"]
    residual: Float[Array, " P"]
    steps: Float[Array, "M P"]
    changes: Float[Array, "M P"]
    count: Int[Array, ""]
    successes: Float[Array, ""]
    fallback: Any
    highest: Float[Array, ""]
    settled: Bool[Array, ""]
    proposed: Bool[Array, ""]
    gain: Float[Array, ""]
    low: Int[Array, ""]


@pytree
class Anderson(Algorithm):
    """Damped Anderson acceleration with restarts and a guard, after DAAREM (Henderson & Varadhan 2019): ``Anderson(EM())``.

    With the last m differences Δθ and Δf of points and residuals f(θ) = M(θ) − θ, in free coordinates,

        θ⁺ = M(θ) − (ΔΘ + ΔF)ᵀ γ,    γ = argmin ‖f − ΔFᵀ γ‖² + λ ‖γ‖²,

    a quasi-Newton step for the fixed point that asks only EM steps. λ is large at first and after refusals, so that steps
    begin as EM's, and falls as they succeed. What is below the highest objective seen is provisional, is never reported,
    and is abandoned, with the differences, where it does not come back above within a few steps: the objective never
    falls. memory: m at most (a full memory starts anew); no more than there are free coordinates.
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
            fallback=params,
            highest=jnp.full((), -jnp.inf, vector.dtype),
            settled=jnp.array(False),
            proposed=jnp.array(False),
            gain=jnp.zeros((), vector.dtype),
            low=jnp.int32(0),
        )

    def step(self, model: Model, state: AndersonState, data: Any, weights: Any) -> tuple[AndersonState, Info]:
        updated, info = mapped(self.inner, model, state.params, data, weights)
        here, _ = to_vector(model, state.params)
        there, back = to_vector(model, updated)
        residual = there - here
        above = holds(info, state.highest)
        low = jnp.where(above, 0, state.low + 1)
        # A proposal that gains next to nothing may be stuck, or the end: a step of EM says which, and only that is judged.
        gain = info.objective - state.highest
        weak = state.proposed & above & (gain < _WEAK * state.gain)
        refused = (low > _PATIENCE) | ~holds(info, state.highest - near(info))

        # A full memory starts anew, with the latest difference.
        memory = state.steps.shape[0]
        place = jnp.where(state.count >= memory, 0, jnp.maximum(state.count, 0))
        count = jnp.where(refused | weak, -1, jnp.where(state.count < 0, 0, place + 1))
        steps = state.steps.at[place].set(here - state.point)
        changes = state.changes.at[place].set(residual - state.residual)
        filled = (jnp.arange(memory) < count)[:, None]
        used = jnp.where(filled, steps, 0), jnp.where(filled, changes, 0)
        correction = _correction(residual, *used, state.successes)
        # Far from an optimum a step of EM is safer: an extrapolation could leave its basin.
        settled = state.settled | (above & (info.objective - state.highest < near(info)))
        proposes = ~weak & settled & (count > 0) & jnp.all(jnp.isfinite(correction))
        params = select(proposes, back(there - correction), updated)
        successes = jnp.where(above, jnp.minimum(state.successes + 1, _MOST), state.successes)
        return AndersonState(
            params=select(refused, state.fallback, params),
            point=here,
            residual=residual,
            steps=steps,
            changes=changes,
            count=count.astype(jnp.int32),
            successes=jnp.where(refused, jnp.maximum(state.successes - _PENALTY, 0), successes),
            fallback=select(above, updated, state.fallback),
            highest=jnp.where(above, info.objective.astype(here.dtype), state.highest),
            settled=settled,
            proposed=proposes & ~refused,
            gain=jnp.where(above & ~state.proposed & jnp.isfinite(gain), gain, state.gain).astype(here.dtype),
            low=jnp.where(refused, 0, low).astype(jnp.int32),
        ), Info(info.objective, info.log_likelihood, info.weight, (~above & (state.highest > -jnp.inf)) | weak)


def _correction(residual: Array, steps: Float[Array, "M P"], changes: Float[Array, "M P"], successes: Array) -> Array:
    """(ΔΘ + ΔF)ᵀ γ."""
    gram = dot(changes, changes.T)
    m = gram.shape[0]
    size = jnp.trace(gram)
    eps = jnp.finfo(gram.dtype).eps
    ridge = jnp.maximum(_FIRST_DAMPING * _DECAY**successes, 16 * eps) * jnp.where(size > 0, size, 1)
    gamma = jnp.linalg.solve(gram + ridge * jnp.eye(m, dtype=gram.dtype), dot(changes, residual))
    return dot(gamma, steps + changes)
