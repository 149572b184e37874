"""The axes of sequential latents: sequences are [B, T, …] as given; flat ones, [N, …], are one chain with starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.blocks import long_sum

if TYPE_CHECKING:
    from jaxtyping import Array

    from jaxem.model import Data


def as_chains(a: Array, data: Data) -> Array:
    return a if data.starts is None else a[None]


def as_given(a: Array, data: Data) -> Array:
    return a if data.starts is None else a[0]


def within(data: Data, potentials: Array) -> Array | None:
    """Which steps are not beyond the end of their sequence; None where all are."""
    return None if data.lengths is None else jnp.arange(potentials.shape[1]) < data.lengths[:, None]


def followed(data: Data, potentials: Array) -> Array:
    """True where a step is followed by another one of its sequence."""
    if data.starts is not None:
        return ~jnp.concatenate([data.starts[1:], jnp.ones(1, bool)])
    sequences, steps = potentials.shape[:2]
    lengths = jnp.full(sequences, steps) if data.lengths is None else data.lengths
    return jnp.arange(1, steps + 1) < lengths[:, None]


def step_weights(data: Data, weights: Array | None, potentials: Array) -> Array | None:
    """The weight of every step, 0 beyond the end of a sequence; None where all are 1."""
    inside = within(data, potentials)
    if weights is None:
        return None if inside is None else inside.astype(potentials.dtype)
    each = jnp.broadcast_to(weights if data.starts is not None else weights[:, None], potentials.shape[:-1])
    return each if inside is None else jnp.where(inside, each, 0)


def times_weights(shares: Array, weights: Array | None) -> Array:
    """Shares of every example, [N, K] or [B, T, K], times its weight."""
    return shares if weights is None else shares * weights.reshape(weights.shape + (1,) * (shares.ndim - weights.ndim))


def first(marginals: Array, data: Data) -> Array:
    """The marginals of the first steps, summed; beyond the end of a sequence they are 0."""
    if data.starts is None:
        return jnp.sum(marginals[:, 0], axis=0)
    return jnp.sum(jnp.where(data.starts[:, None], marginals, 0), axis=0)


def tempered(probabilities: Array, power: Array | float) -> tuple[Array, Array]:
    """p^power normalized along the last axis, and the logarithm of what it is divided by. What is 0 stays 0."""
    possible = probabilities > 0
    logs = power * jnp.log(jnp.where(possible, probabilities, 1))
    total = jax.nn.logsumexp(logs, axis=-1, where=possible)
    return jnp.where(possible, jnp.exp(jnp.where(possible, logs - total[..., None], 0)), 0), total


def owed(begins: Array, leaves: Array, data: Data, potentials: Array) -> Array:
    """What potentials get for normalized messages: at the first step of a sequence, and wherever a state is left.

    begins: a number. leaves: [K], or one for every step, shaped like the potentials.
    """
    first = (jnp.arange(potentials.shape[1]) == 0)[None] if data.starts is None else data.starts
    at_first = jnp.where(first, begins, 0)[..., None]
    return at_first + jnp.where(followed(data, potentials)[..., None], leaves, 0)


def per_example(terms: Array, data: Data) -> Array:
    """Sums over the steps of each sequence; of flat sequences the steps themselves."""
    if data.starts is not None:
        return terms
    inside = within(data, terms)
    return long_sum((terms if inside is None else jnp.where(inside, terms, 0)).T)


def borders(data: Data, potentials: Array) -> Array | None:
    """[B, T], True where another sequence begins: padding too, so that no best way leads on into it."""
    if data.starts is not None:
        return data.starts[None]
    return None if data.lengths is None else jnp.arange(potentials.shape[1]) == data.lengths[:, None]
