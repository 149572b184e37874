"""Paths of a chain drawn from its posterior: forward filtering, backward sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


def sample_backwards(
    key: Array,
    filtered: Float[Array, "B T K"],
    transition: Float[Array, "K K"] | Float[Array, "B T K K"],
    followed: Bool[Array, "B T"],
) -> Int[Array, "B T"]:
    """A path of each of B chains: z_T ~ filtered_T, then z_t ∝ filtered_t(z_t) transition(z_t, z_{t+1}).

    filtered: p(z_t | x_1 … x_t). A transition of every step goes *out of* it. followed: False at the last step of a
    sequence, which nothing behind it says anything of (Carter & Kohn 1994; Frühwirth-Schnatter 1994).
    """
    own = transition.ndim > 2
    moves = jnp.moveaxis(transition, 1, 0) if own else None

    def step(after: Array, xs: tuple) -> tuple[Array, Array]:
        key, filtered, followed, moves = xs
        towards = jnp.take_along_axis(moves, after[:, None, None], axis=2)[..., 0] if own else transition.T[after]
        weight = filtered * jnp.where(followed[:, None], towards, 1)
        z = jax.random.categorical(key, jnp.log(weight), axis=-1).astype(jnp.int32)
        return z, z

    sequences, steps = filtered.shape[:2]
    keys = jax.random.split(key, steps)
    xs = keys, jnp.moveaxis(filtered, 1, 0), followed.T, moves
    return jax.lax.scan(step, jnp.zeros(sequences, jnp.int32), xs, reverse=True)[1].T
