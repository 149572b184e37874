"""Special functions of the families, each accurate where its obvious form cancels; elementwise, any derivative.

Large arguments are where fits end up (a component of small spread has a large shape), and log Γ, ψ and log I_ν are large
numbers there whose difference is what counts: these functions are those differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LOG_2PI = math.log(2 * math.pi)

# Below this the asymptotic series in 1/a are not exact yet: the argument is moved up by as much.
_SERIES_FROM = 10


def excess_over_log(u: Array) -> Array:
    """u − log(1 + u), by its series where the difference cancels."""
    near = jnp.abs(u) < jnp.finfo(u.dtype).eps ** (1 / 6)
    small = jnp.where(near, u, 0)
    series = small**2 * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small * (1 / 5 - small * (1 / 6 - small / 7)))))
    return jnp.where(near, series, u - jnp.log1p(jnp.where(near, 0, u)))


def stirling(a: Array) -> Array:
    """log Γ(a) − (a − ½) log a + a − ½ log 2π: what Stirling's formula leaves, 1/(12a) − …, for a > 0."""
    low = a < _SERIES_FROM
    moved = jnp.where(low, a + _SERIES_FROM, a)
    w = 1 / moved**2
    tail = w * (1 / 1188 - w * (691 / 360360 - w / 156))
    series = (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - tail)))) / moved
    small = jnp.where(low, a, 1)
    # log Γ(a) = log Γ(a + 10) − Σ_i log(a + i), with every logarithm taken relative to a + 10.
    steps = jnp.log((small + _SERIES_FROM)[..., None] / _climb(small)[..., 1:])
    shift = (small + 0.5) * jnp.log1p(_SERIES_FROM / small) + jnp.sum(steps, axis=-1) - _SERIES_FROM
    return series + jnp.where(low, shift, 0)


def _climb(a: Array) -> Array:
    """a, a + 1, …, a + 9 along a new last axis."""
    return a[..., None] + jnp.arange(_SERIES_FROM, dtype=a.dtype)


def log_minus_digamma(a: Array) -> Array:
    """log a − ψ(a), between 1/(2a) and 1/a, for a > 0."""
    low = a < _SERIES_FROM
    moved = jnp.where(low, a + _SERIES_FROM, a)
    w = 1 / moved**2
    tail = w * (1 / 240 - w * (1 / 132 - w * (691 / 32760 - w / 12)))
    series = 1 / (2 * moved) + w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - tail)))
    small = jnp.where(low, a, 1)
    shift = jnp.sum(1 / _climb(small), axis=-1) - jnp.log1p(_SERIES_FROM / small)
    return series + jnp.where(low, shift, 0)


def digamma(a: Array) -> Array:
    """ψ(a) for a > 0."""
    return jnp.log(a) - log_minus_digamma(a)


def solve(step: Callable[[Array], Array], start: Array, iterations: int) -> Array:
    """A fixed point of ``step``, an iteration that converges faster than linearly (Newton's), after so many of them.

    Its derivative is that of the last iteration, taken at the fixed point: the implicit function theorem.
    """
    frozen = jax.lax.stop_gradient
    found = jax.lax.fori_loop(0, iterations - 1, lambda _, a: frozen(step(a)), frozen(start))
    return step(frozen(found))


def gamma_shape(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """The a with log a − ψ(a) = s > 0: the shape of a Gamma law with s = log E x − E log x.

    Newton's method in logarithms, in which the equation is almost linear, from the start of Minka (2002), which is off
    by less than 2 %; kept between the bounds 1/(2s) < a < 1/s.
    """

    def step(a: Array) -> Array:
        value, slope = jax.jvp(log_minus_digamma, (a,), (a,))
        newton = a * jnp.exp(value * jnp.log(value / s) / -slope)
        return jnp.clip(newton, 0.5 / s, 1 / s)

    start = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    return solve(step, start, 5)


def inverse_digamma(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The a > 0 with ψ(a) = y: Newton's method in log a, from the start of Minka (2002)."""

    def step(a: Array) -> Array:
        value, slope = jax.jvp(log_minus_digamma, (a,), (a,))
        return a * jnp.exp((y - jnp.log(a) + value) / (1 - slope))

    low = y < -2.22
    start = jnp.where(low, 1 / (jnp.euler_gamma - jnp.where(low, y, -3.0)), jnp.exp(y) + 0.5)
    return solve(step, start, 6)
