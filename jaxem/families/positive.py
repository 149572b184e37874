"""What the families of positive observations have in common: the support, the scale of the data, floors.

Their statistics are those of y = x/scale, so that float32 holds at any scale, and the log-likelihood of s·x is that of x
less N·D·log s. Where the data's logarithms vary little (`tight`), statistics are taken about y = 1, because the raw ones
cancel; where they vary much, the raw ones are the accurate ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from jaxem.families.base import observations, refuse_outside, weighted_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from jaxem.model import Data

# Variance of the logarithms below which statistics are taken about 1.
_TIGHT = 0.1


def validate_positive(data: Data, name: str) -> None:
    """Raise ValueError for the first observed value that is not positive."""
    refuse_outside(lambda x: x > 0, data, f"{name} values are positive")


def inside(x: Array) -> Array:
    """x, with 1 for what is not positive: such a row is impossible by its `support` alone."""
    return jnp.where(x <= 0, 1, x)


def support(x: Array) -> Array:
    """0 where x is positive, −∞ where it is not."""
    return jnp.where(x <= 0, -jnp.inf, jnp.zeros_like(x))


def center_and_spread(data: Data, weights: Array | None) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Mean and variance of log x, by column; the variance of a constant column is 1."""
    log_x = jnp.log(inside(observations(data)))
    center = weighted_mean(log_x, weights, data.mask)
    spread = weighted_mean((log_x - center) ** 2, weights, data.mask)
    rounding = (8 * jnp.finfo(log_x.dtype).eps * (1 + jnp.abs(center))) ** 2
    return center, jnp.where(spread > rounding, spread, 1)


def standardized_logs(x: Array, scale: Array, spread: Array) -> Array:
    """log(x/scale)/√spread: coordinates for starts."""
    return (jnp.log(inside(x)) - jnp.log(scale)) / jnp.sqrt(spread)


def mean_of(data: Data, weights: Array | None) -> Float[Array, " D"]:
    """The mean of every column, 1 for one without any."""
    mean = weighted_mean(observations(data), weights, data.mask)
    return jnp.where(mean > 0, mean, 1)


def tight(spread: Float[Array, " D"]) -> Bool[Array, " D"]:
    """Columns whose logarithms vary little."""
    return spread < _TIGHT


def least(floor: Array | float, dtype) -> Array:
    """A relative floor, in float32 no less than 64 roundings."""
    return jnp.maximum(jnp.asarray(floor, dtype), 64 * jnp.finfo(dtype).eps)


def check_floor(floor: object) -> None:
    if isinstance(floor, (int, float)) and not floor > 0:
        raise ValueError(f"floor must be positive; got {floor}")
