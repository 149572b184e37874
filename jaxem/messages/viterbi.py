"""The most probable path of a chain of K states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def viterbi(
    initial: Float[Array, " K"],
    transition: Float[Array, "K K"] | Float[Array, "B T K K"],
    potentials: Float[Array, "B T K"],
    starts: Bool[Array, "B T"] | None = None,
) -> Int[Array, "B T"]:
    """argmax over paths of ``log p(z_1) + Σ log p(z_{t+1} | z_t) + Σ potentials_t(z_t)`` for B chains at once.

    Arguments as for `forward_backward` (Viterbi 1967). Scores are kept relative to the best state, so that they do not
    lose digits over long chains.
    """
    log_initial, log_transition = jnp.log(initial), jnp.log(transition)
    stepwise = transition.ndim > 2
    if stepwise:
        log_transition = jnp.swapaxes(log_transition, 0, 1)
    potentials = jnp.swapaxes(potentials, 0, 1)
    starts = None if starts is None else starts.T

    def relative(score: Array) -> Array:
        best = jnp.max(score, axis=-1, keepdims=True)
        return score - jnp.where(jnp.isfinite(best), best, 0)

    def forward(score, xs):
        potential, start, out_of = xs
        ways = score[..., :, None] + (out_of if stepwise else log_transition)
        best, origin = jnp.max(ways, axis=-2), jnp.argmax(ways, axis=-2)
        if start is not None:
            # Before a start lies the best end of the sequence before, whatever comes after.
            fresh = start[..., None]
            best = jnp.where(fresh, log_initial, best)
            origin = jnp.where(fresh, jnp.argmax(score, axis=-1, keepdims=True), origin)
        return relative(best + potential), origin.astype(jnp.int32)

    first = relative(log_initial + potentials[0])
    rest = (potentials[1:], None if starts is None else starts[1:], log_transition[:-1] if stepwise else None)
    score, origins = jax.lax.scan(forward, first, rest)

    def backward(state, origin):
        return jnp.take_along_axis(origin, state[..., None], axis=-1)[..., 0], state

    last = jnp.argmax(score, axis=-1).astype(jnp.int32)
    state, path = jax.lax.scan(backward, last, origins, reverse=True)
    return jnp.concatenate([state[None], path]).T
