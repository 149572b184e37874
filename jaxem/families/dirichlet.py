"""The Dirichlet family: rows of shares that sum to 1."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families import positive, simplex
from jaxem.families.base import (
    LOG_ZERO,
    ExponentialFamily,
    divide,
    hold,
    is_not_one,
    keep,
    observations,
    occupied,
    weighted_mean,
)
from jaxem.layout import namespace
from jaxem.model import Data, pytree
from jaxem.special import dirichlet_concentration, dirichlet_constant, log_ratio

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class DirichletParams:
    """concentration: [K, D]; the mean is its share of the sum."""

    concentration: Float[Array, "K D"]


@pytree
class Dirichlet(ExponentialFamily):
    """Dirichlet components, ``log p(x | k) = Σ_d (a_kd − 1) log x_d + log Γ(Σ_d a_kd) − Σ_d log Γ(a_kd)``.

    Rows are positive and sum to 1. floor: the smallest 1/Σ_d a_kd a component may have, relative to the data's; in float32
    no less than 64 roundings. A component that reaches it is reported as degenerate.
    center: [D], set by `calibrate`, the mean of the data; statistics are log(x/center). most: the largest Σ_d a_kd.
    """

    floor: float = 1e-6
    center: Float[Array, " D"] | None = None
    most: Float[Array, ""] | None = None

    # What a row that is missing whole holds; no row of D ≥ 2 equal shares does.
    filler = 0.734375
    bounded = True
    freezable = frozenset({"concentration"})
    freezable_by_component = freezable

    def __post_init__(self):
        positive.check_floor(self.floor)

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> Dirichlet:
        x = positive.inside(observations(data))
        center = weighted_mean(x, weights)
        center = simplex.as_center(center / jnp.sum(center))
        mean = weighted_mean(log_ratio(x, center), weights)
        # Rows sum to 1 up to rounding only.
        rounding = 8 * float(jnp.finfo(x.dtype).eps)
        most = simplex.most_concentration(positive.least(self.floor, x.dtype), mean, center, rounding)
        return dataclasses.replace(self, center=center, most=most)

    def validate(self, data: Data) -> None:
        x = np.asarray(observations(data))
        if x.shape[-1] < 2:
            raise ValueError(f"Dirichlet rows need at least 2 columns; got {x.shape[-1]}")
        bad = np.argwhere(~(x > 0))
        if len(bad):
            row, column = bad[0]
            raise ValueError(f"Dirichlet values are positive; got {x[row, column]} in row {row}, column {column}")
        off = np.flatnonzero(self._off(x))
        if len(off):
            total = np.sum(x[off[0]], dtype=float)
            raise ValueError(f"Dirichlet rows sum to 1; row {off[0]} sums to {total:.6g}")

    def _off(self, x: Any) -> Bool[Array, " N"]:
        """Rows, [N, D], that do not sum to 1."""
        return is_not_one(namespace(x).sum(x, axis=-1), x, self.filler)

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Square roots: their distance is Hellinger's."""
        return jnp.sqrt(positive.inside(observations(data)))

    def statistics(self, data: Data) -> Float[Array, "N P"]:
        x = observations(data)
        safe = positive.inside(x)
        center, _ = self._constants(x.shape[-1], x.dtype)
        base = -jnp.sum(jnp.log(safe), axis=-1, keepdims=True)
        outside = jnp.any(x <= 0, axis=-1) | self._off(x)
        base = jnp.where(outside[:, None], LOG_ZERO, base)
        return jnp.concatenate([jnp.ones_like(base), log_ratio(safe, center), base], axis=-1)

    def natural(self, params: DirichletParams) -> Float[Array, "K P"]:
        a = params.concentration
        center, _ = self._constants(a.shape[1], a.dtype)
        constant = dirichlet_constant(a, center)[:, None]
        return jnp.concatenate([constant, a, jnp.ones_like(constant)], axis=-1)

    def maximize(self, params: DirichletParams | None, stats: Float[Array, "K P"], frozen) -> DirichletParams:
        count = stats[:, 0]
        used = occupied(count)
        mean = divide(stats[:, 1:-1], count, used)
        center, most = self._constants(mean.shape[1], mean.dtype)
        new = dirichlet_concentration(mean, jnp.broadcast_to(center, mean.shape), jnp.broadcast_to(most, count.shape))
        if params is None:
            return DirichletParams(new)
        old = params.concentration
        return DirichletParams(hold(frozen.get("concentration"), keep(used, new, old), old))

    def degenerate(self, params: DirichletParams) -> Bool[Array, " K"]:
        a = params.concentration
        return simplex.collapsed(a, self._constants(a.shape[1], a.dtype)[1])

    def mean(self, params: DirichletParams, data: Data) -> Float[Array, "K D"]:
        return params.concentration / jnp.sum(params.concentration, axis=-1, keepdims=True)

    def sample(self, key: jax.Array, params: DirichletParams, z: Array, data: Data) -> Array:
        a = params.concentration[z]
        # In logarithms: draws of small concentrations leave the range of the floating-point type.
        shares = jax.nn.softmax(jax.random.loggamma(key, a, dtype=a.dtype), axis=-1)
        return jnp.maximum(shares, jnp.finfo(a.dtype).tiny)

    def take_components(self, params: DirichletParams, components) -> DirichletParams:
        return DirichletParams(params.concentration[components])

    def to_free(self, params: DirichletParams) -> DirichletParams:
        return DirichletParams(jnp.log(params.concentration))

    def from_free(self, free: DirichletParams) -> DirichletParams:
        return DirichletParams(jnp.exp(free.concentration))

    def _constants(self, d: int, dtype) -> tuple[Array, Array]:
        if self.center is None or self.most is None:
            return simplex.as_center(jnp.full(d, 1 / d, dtype)), 1 / positive.least(self.floor, dtype)
        return self.center, self.most
