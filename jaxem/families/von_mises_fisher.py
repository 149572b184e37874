"""The von Mises-Fisher family: directions, as rows of length 1."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.bessel import bessel_gap, von_mises_fisher_concentration, von_mises_fisher_constant
from jaxem.families import positive
from jaxem.families.base import (
    LOG_ZERO,
    ExponentialFamily,
    divide,
    free_log,
    hold,
    is_not_one,
    keep,
    observations,
    occupied,
    weighted_mean,
)
from jaxem.layout import namespace
from jaxem.model import Data, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class VonMisesFisherParams:
    """mean: directions of length 1, [K, D]. concentration: κ, [K], 0 where all directions are alike."""

    mean: Float[Array, "K D"]
    concentration: Float[Array, " K"]


@pytree
class VonMisesFisher(ExponentialFamily):
    """Directions x on the sphere in D ≥ 2 dimensions, ``log p(x | k) = κ_k μ_kᵀx + log C_D(κ_k)`` (Banerjee et al. 2005).

    Rows have length 1; on the circle, x = (cos φ, sin φ), it is von Mises' law of φ. floor: the smallest 1 − E μᵀx,
    about (D − 1)/(2κ), a component may have, relative to the data's; in float32 no less than 64 roundings. A component
    that reaches it is reported as degenerate.
    center: [D], set by `calibrate`, the mean direction of the data; statistics are x − center, ‖x − center‖²/2
    and log 0 for a row of another length (its log p is −∞).
    spread: 1 − ‖mean‖ of the data. Raises ValueError for D < 2 and for rows of another length.
    """

    floor: float = 1e-6
    center: Float[Array, " D"] | None = None
    spread: Float[Array, ""] | None = None

    # What a row that is missing whole holds; no row of length 1 with D ≥ 2 equal columns does.
    filler = 0.734375
    bounded = True
    freezable = frozenset({"mean", "concentration"})
    freezable_by_component = freezable

    def __post_init__(self):
        positive.check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> VonMisesFisher:
        x = _directions(observations(data))
        center, _ = _unit(weighted_mean(x, weights), _first(x.shape[-1], x.dtype))
        _, gap = _mean_direction(weighted_mean(_about(x, center), weights), center, center)
        rounding = 64 * jnp.finfo(x.dtype).eps ** 2
        return dataclasses.replace(self, center=center, spread=jnp.where(gap > rounding, gap, 1))

    def validate(self, data: Data) -> None:
        x = np.asarray(observations(data))
        if x.shape[-1] < 2:
            raise ValueError(f"VonMisesFisher rows are directions in at least 2 dimensions; got {x.shape[-1]} column")
        off = np.flatnonzero(self._off(x))
        if len(off):
            length = np.sqrt(np.sum(np.square(x[off[0]], dtype=float)))
            raise ValueError(f"VonMisesFisher rows have length 1; row {off[0]} has length {length:.6g}")

    def _off(self, x: Any) -> Bool[Array, " N"]:
        """Rows, [N, D], whose length is not 1."""
        xp = namespace(x)
        return is_not_one(xp.sqrt(xp.sum(xp.square(x), axis=-1)), x, self.filler)

    def features(self, data: Data) -> Float[Array, "N D"]:
        return _directions(observations(data))

    # log p = κ + log C(κ) − κ‖x − μ‖²/2, with the square written about the center: of tight data κ μᵀx cancels.

    def statistics(self, data: Data) -> Float[Array, "N P"]:
        x = observations(data)
        base = jnp.where(self._off(x)[:, None], LOG_ZERO, jnp.zeros_like(x[:, :1]))
        about = _about(_directions(x), self._center(x.shape[-1], x.dtype))
        return jnp.concatenate([jnp.ones_like(base), about, base], axis=-1)

    def natural(self, params: VonMisesFisherParams) -> Float[Array, "K P"]:
        d, kappa = params.mean.shape[1], params.concentration
        away = params.mean - self._center(d, kappa.dtype)
        constant = von_mises_fisher_constant(kappa, d) - 0.5 * kappa * jnp.sum(away**2, axis=-1)
        kappa = kappa[:, None]
        return jnp.concatenate([constant[:, None], kappa * away, -kappa, jnp.ones_like(kappa)], axis=-1)

    def maximize(self, params: VonMisesFisherParams | None, stats: Float[Array, "K P"], frozen) -> VonMisesFisherParams:
        count, d = stats[:, 0], stats.shape[1] - 3
        used = occupied(count)
        center = self._center(d, stats.dtype)
        moments = divide(stats[:, 1:-1], count, used)
        otherwise = self._pole(moments[:, :-1]) if params is None else params.mean
        mean, gap = _mean_direction(moments, center, otherwise)
        held = frozen.get("mean")
        if params is not None and held is not None:
            away = params.mean - center
            square = 0.5 * jnp.sum(away**2, axis=-1)
            gap = hold(held, gap, moments[:, -1] - jnp.sum(moments[:, :-1] * away, axis=-1) + square)
            mean = hold(held, mean, params.mean)
        kappa = von_mises_fisher_concentration(jnp.clip(gap, self._least_gap(gap.dtype), 1), d)
        if params is None:
            return VonMisesFisherParams(mean, kappa)
        kappa = hold(frozen.get("concentration"), keep(used, kappa, params.concentration), params.concentration)
        return VonMisesFisherParams(keep(used, mean, params.mean), kappa)

    def degenerate(self, params: VonMisesFisherParams) -> Bool[Array, " K"]:
        gap = bessel_gap(params.concentration, params.mean.shape[1])
        return ~(gap > 1.05 * self._least_gap(gap.dtype))

    def mean(self, params: VonMisesFisherParams, data: Data) -> Float[Array, "K D"]:
        return (1 - bessel_gap(params.concentration, params.mean.shape[1]))[:, None] * params.mean

    def sample(self, key: jax.Array, params: VonMisesFisherParams, z: Array, data: Data) -> Array:
        mean, kappa = params.mean[z], params.concentration[z]
        d = mean.shape[1]
        one, other = jax.random.split(key)
        gap = _draw_gap(one, kappa, d)[:, None]
        aside, _ = _unit(jax.random.normal(other, (len(z), d - 1), mean.dtype), _first(d - 1, mean.dtype))
        return _directions(_turn(mean, jnp.concatenate([1 - gap, jnp.sqrt(gap * (2 - gap)) * aside], axis=-1)))

    def take_components(self, params: VonMisesFisherParams, components) -> VonMisesFisherParams:
        return jax.tree.map(lambda leaf: leaf[components], params)

    def to_free(self, params: VonMisesFisherParams) -> VonMisesFisherParams:
        """log κ, and the stereographic projection of the mean from the point opposite to the center, [K, D − 1]."""
        y = _turn(self._pole(params.mean), params.mean)
        along, aside = y[:, :1], y[:, 1:]
        square = jnp.sum(aside**2, axis=-1, keepdims=True)
        behind = (along < 0) & (square > jnp.finfo(y.dtype).eps ** 2)
        plane = jnp.where(
            behind,
            aside * (1 - along) / jnp.where(behind, square, 1),
            aside / jnp.where(along < 0, 1, 1 + along),
        )
        opposite = (along < 0) & ~behind  # projected to infinity: the farthest point there is instead
        farthest = _first(aside.shape[1], y.dtype) / jnp.finfo(y.dtype).eps
        return VonMisesFisherParams(jnp.where(opposite, farthest, plane), free_log(params.concentration))

    def from_free(self, free: VonMisesFisherParams) -> VonMisesFisherParams:
        square = jnp.sum(free.mean**2, axis=-1, keepdims=True)
        y = jnp.concatenate([(1 - square) / (1 + square), 2 * free.mean / (1 + square)], axis=-1)
        return VonMisesFisherParams(_turn(self._pole(y), y), jnp.exp(free.concentration))

    def _pole(self, like: Float[Array, "K D"]) -> Float[Array, "K D"]:
        # Not an axis without data: means along axes, and opposite to each other, are common.
        d = like.shape[1]
        center = jnp.full(d, d**-0.5, like.dtype) if self.center is None else self.center
        return jnp.broadcast_to(center, like.shape)

    def _center(self, d: int, dtype) -> Array:
        return jnp.zeros(d, dtype) if self.center is None else self.center

    def _least_gap(self, dtype) -> Array:
        spread = jnp.ones((), dtype) if self.spread is None else self.spread
        return positive.least(self.floor, dtype) * spread


def _first(d: int, dtype) -> Float[Array, " D"]:
    """The first axis."""
    return jnp.zeros(d, dtype).at[0].set(1)


def _unit(x: Float[Array, "*N D"], otherwise: Array) -> tuple[Float[Array, "*N D"], Float[Array, "*N 1"]]:
    """x/‖x‖ and ‖x‖; ``otherwise`` in place of the direction of what is nothing but rounding."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    some = square > jnp.finfo(x.dtype).eps ** 2
    length = jnp.sqrt(jnp.where(some, square, 1))
    return jnp.where(some, x / length, otherwise), jnp.where(some, length, 0)


def _directions(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows of length 1 to the last digit."""
    return _unit(x, _first(x.shape[-1], x.dtype))[0]


def _about(x: Float[Array, "N D"], center: Float[Array, " D"]) -> Float[Array, "N D+1"]:
    """x − center, and half its square."""
    away = x - center
    return jnp.concatenate([away, 0.5 * jnp.sum(away**2, axis=-1, keepdims=True)], axis=-1)


def _mean_direction(
    moments: Float[Array, "*K D+1"], center: Float[Array, " D"], otherwise: Array
) -> tuple[Float[Array, "*K D"], Float[Array, "*K"]]:
    """The direction of a mean of rows, and 1 − its length, from the means of the rows' statistics.

    1 − ‖c + s‖² = 2q − ‖s‖² for rows of length 1, any c, s the mean of x − c and q that of ‖x − c‖²/2.
    """
    away = moments[..., :-1]
    direction, length = _unit(center + away, otherwise)
    lack = 2 * moments[..., -1] - jnp.sum(away**2, axis=-1)
    return direction, lack / (1 + length[..., 0])


def _turn(to: Float[Array, "*N D"], x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """x under the reflection that exchanges the first axis and the direction ``to``."""
    side = jnp.where(to[..., :1] < 0, 1.0, -1.0).astype(x.dtype)
    normal = to - side * _first(to.shape[-1], to.dtype)  # of the reflection to −side · to, which cancels nothing
    along = 2 * jnp.sum(normal * x, axis=-1, keepdims=True) / jnp.sum(normal**2, axis=-1, keepdims=True)
    return side * (x - along * normal)


def _draw_gap(key: jax.Array, kappa: Float[Array, " N"], d: int) -> Float[Array, " N"]:
    """Draws of 1 − μᵀx: the rejection sampler of Wood (1994), written in the distance from 1."""
    shape = 0.5 * (d - 1)
    b = 2 * shape / (2 * kappa + jnp.sqrt(4 * kappa**2 + 4 * shape**2))
    typical = 2 * b / (1 + b)

    def propose(carry: tuple[jax.Array, Array, Array]) -> tuple[jax.Array, Array, Array]:
        key, gap, done = carry
        key, one, other = jax.random.split(key, 3)
        share = jax.random.beta(one, shape, shape, kappa.shape, kappa.dtype)
        new = 2 * b * share / (1 - (1 - b) * share)
        ratio = (typical + new - typical * new) / (typical * (2 - typical))
        log_accept = kappa * (typical - new) + 2 * shape * jnp.log(ratio)
        accepted = jnp.log1p(-jax.random.uniform(other, kappa.shape, kappa.dtype)) <= log_accept
        return key, jnp.where(done, gap, new), done | accepted

    start = key, jnp.zeros_like(kappa), jnp.zeros(kappa.shape, bool)
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), propose, start)[1]
