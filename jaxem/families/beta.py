"""The Beta family: D independent shares per row, between 0 and 1."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.families import positive, simplex
from jaxem.families.base import divide, hold, mean_where_missing, observations, weighted_mean
from jaxem.families.columns import IndependentColumns
from jaxem.model import Data, pytree
from jaxem.special import dirichlet_concentration, dirichlet_constant, log_minus_digamma, solve

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class BetaParams:
    """a, b: the two shapes, [K, D]; the mean is a/(a + b)."""

    a: Float[Array, "K D"]
    b: Float[Array, "K D"]


@pytree
class Beta(IndependentColumns):
    """Independent Beta variables, ``log p(x | k) = Σ_d (a − 1) log x_d + (b − 1) log(1 − x_d) − log B(a, b)``.

    floor: the smallest 1/(a + b) a component may have, relative to the data's; in float32 no less than 64 roundings. A
    component that reaches it is reported as degenerate.
    center: [D], set by `calibrate`, the mean of the data; statistics are log(x/center) and log((1 − x)/(1 − center)).
    most: [D], the largest a + b.
    """

    floor: float = 1e-6
    center: Float[Array, " D"] | None = None
    most: Float[Array, " D"] | None = None

    filler = 0.5
    num_terms = 2
    domain = "Beta values lie between 0 and 1"
    freezable = frozenset({"a", "b"})
    freezable_by_component = freezable

    def __post_init__(self):
        positive.check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> Beta:
        x = _inside(observations(data))
        center = weighted_mean(x, weights, data.mask)
        about = simplex.as_center(_both(jnp.where(center > 0, center, 0.5)))
        center = about[..., 0]
        mean = jnp.stack([weighted_mean(term, weights, data.mask) for term in _log_ratios(x, center)], axis=-1)
        return dataclasses.replace(
            self,
            center=center,
            most=simplex.most_concentration(
                positive.least(self.floor, x.dtype), mean, about, 64 * float(jnp.finfo(x.dtype).eps) ** 2
            ),
        )

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return (x > 0) & (x < 1)

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Arcs of the square root, whose variance hardly depends on the mean."""
        return mean_where_missing(2 * jnp.arcsin(jnp.sqrt(_inside(observations(data)))), data.mask)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array, Array]:
        center, _ = self._constants(x.shape[-1], x.dtype)
        return _log_ratios(x, center)

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return -jnp.log(x) - jnp.log1p(-x)

    def natural_columns(self, params: BetaParams) -> tuple[Array, tuple[Array, Array]]:
        center, _ = self._constants(params.a.shape[1], params.a.dtype)
        both = jnp.stack([params.a, params.b], axis=-1)
        return dirichlet_constant(both, jnp.broadcast_to(_both(center), both.shape)), (params.a, params.b)

    def estimate(self, params: BetaParams | None, count, terms, used, frozen) -> BetaParams:
        center, most = self._constants(count.shape[1], count.dtype)
        mean = jnp.stack([divide(term, count, used) for term in terms], axis=-1)
        about = jnp.broadcast_to(_both(center), mean.shape)
        new = dirichlet_concentration(mean, about, jnp.broadcast_to(most, count.shape))
        a, b = new[..., 0], new[..., 1]
        if params is None:
            return BetaParams(a, b)
        held_a, held_b = frozen.get("a"), frozen.get("b")
        logs = mean + jnp.log(about)
        if held_b is not None:
            a = hold(held_b, a, _other(params.b, logs[..., 0], most))
        if held_a is not None:
            b = hold(held_a, b, _other(params.a, logs[..., 1], most))
        return BetaParams(a, b)

    def degenerate(self, params: BetaParams) -> Bool[Array, " K"]:
        both = jnp.stack([params.a, params.b], axis=-1)
        return jnp.any(simplex.collapsed(both, self._constants(params.a.shape[1], params.a.dtype)[1]), axis=-1)

    def mean(self, params: BetaParams, data: Data) -> Float[Array, "K D"]:
        return params.a / (params.a + params.b)

    def variance(self, params: BetaParams) -> Float[Array, "K D"]:
        n = params.a + params.b
        return (params.a / n) * (params.b / n) / (n + 1)

    def sample(self, key: jax.Array, params: BetaParams, z: Array, data: Data) -> Array:
        a, b = params.a[z], params.b[z]
        one, other = jax.random.split(key)
        # In logarithms: draws of small shapes leave the range of the floating-point type.
        odds = jax.random.loggamma(one, a, dtype=a.dtype) - jax.random.loggamma(other, b, dtype=b.dtype)
        limits = jnp.finfo(a.dtype)
        return jnp.clip(jax.nn.sigmoid(odds), limits.tiny, 1 - limits.epsneg)

    def to_free(self, params: BetaParams) -> BetaParams:
        return BetaParams(jnp.log(params.a), jnp.log(params.b))

    def from_free(self, free: BetaParams) -> BetaParams:
        return BetaParams(jnp.exp(free.a), jnp.exp(free.b))

    def _constants(self, d: int, dtype) -> tuple[Array, Array]:
        if self.center is None or self.most is None:
            return jnp.full(d, 0.5, dtype), jnp.full(d, 1 / positive.least(self.floor, dtype), dtype)
        return self.center, self.most


def _inside(x: Array) -> Array:
    """x, with ½ for what is not between 0 and 1: such a row is impossible by its base alone."""
    return jnp.where((x <= 0) | (x >= 1), 0.5, x)


def _log_ratios(x: Float[Array, "N D"], center: Float[Array, " D"]) -> tuple[Array, Array]:
    """log(x/c) and log((1 − x)/(1 − c)): their difference from 0 is not rounded where x is near c."""
    away, left = x - center, 1 - center
    near = jnp.abs(away) < 0.5 * jnp.minimum(center, left)
    small = jnp.where(near, away, 0)
    return (
        jnp.where(near, jnp.log1p(small / center), jnp.log(x) - jnp.log(center)),
        jnp.where(near, jnp.log1p(-small / left), jnp.log1p(-x) - jnp.log(left)),
    )


def _both(share: Array) -> Array:
    """A share and what is left, along a new last axis."""
    return jnp.stack([share, 1 - share], axis=-1)


def _other(given: Float[Array, "K D"], log_mean: Float[Array, "K D"], most: Float[Array, " D"]) -> Float[Array, "K D"]:
    """The shape a with ψ(a + b) − ψ(a) = −E log x where b is given: Newton's method between logarithms."""
    target = jnp.maximum(-log_mean, jnp.finfo(log_mean.dtype).tiny)

    def gap(a: Array) -> Array:
        return jnp.log1p(given / a) - log_minus_digamma(a + given) + log_minus_digamma(a)

    def step(a: Array) -> Array:
        value, slope = jax.jvp(gap, (a,), (a,))
        moved = a * jnp.exp(jnp.clip(-value * jnp.log(value / target) / slope, -3, 3))
        return jnp.minimum(moved, jnp.maximum(most - given, given))

    return solve(step, given / jnp.expm1(target) + 1 / target, 12)
