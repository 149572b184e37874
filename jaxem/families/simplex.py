"""What Beta and Dirichlet variables have in common: statistics log(x_i/c_i) about a center c, and a floor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxem.special import log_weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def as_center(share: Float[Array, "*K D"]) -> Float[Array, "*K D"]:
    """Nearly the same shares, none of them 0, in whole roundings of 1: their sum is 1 to the last digit.

    What is missing to 1 would be multiplied by Σ a.
    """
    eps = jnp.finfo(share.dtype).eps
    whole = jnp.maximum(jnp.round(share / eps), 1) * eps
    largest = jnp.argmax(whole, axis=-1, keepdims=True)
    rest = 1 - jnp.sum(whole, axis=-1, keepdims=True)
    return jnp.where(jnp.arange(share.shape[-1]) == largest, whole + rest, whole)


def most_concentration(
    floor: Array, mean: Float[Array, "*K D"], center: Float[Array, "*K D"], rounding: float
) -> Float[Array, "*K"]:
    """The largest Σ a a component may have: 1/floor times that of the data, whose E log(x_i/c_i) is ``mean``.

    rounding: data whose 1/Σ a is no more than that do not vary; they count as data with Σ a = 1.
    """
    lack = -log_weighted_sum(center, mean)  # about (D − 1)/(2 Σ a)
    spread = 2 * lack / (center.shape[-1] - 1)
    return 1 / (floor * jnp.where(lack > rounding, jnp.minimum(spread, 1), 1))


def collapsed(a: Float[Array, "*K D"], most: Float[Array, "*K"]) -> Bool[Array, "*K"]:
    """Where the concentration has reached what it may be at most."""
    return ~(1.05 * jnp.sum(a, axis=-1) < most)
