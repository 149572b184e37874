"""The multivariate Gaussian family over any covariance structure."""

from __future__ import annotations

import bisect
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families import missing_gaussian as missing
from jaxem.families.base import (
    ExponentialFamily,
    divide,
    hold,
    keep,
    linear,
    observations,
    occupied,
    weighted_mean,
)
from jaxem.families.covariance import Covariance, Full, _pack
from jaxem.linalg import cholesky, dot
from jaxem.model import Data, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class GaussianParams:
    """mean: [K, D]. covariance, in the data's units: [K, D, D] full, [D, D] tied, [K, D] diagonal, [K] spherical; those
    of other structures are told by `jaxem.EigenDecomposed`.
    """

    mean: Float[Array, "K D"]
    covariance: Float[Array, "..."]


@pytree
class Gaussian(ExponentialFamily):
    """Gaussian components, ``log p(x | k) = −½ (x − μ_k)ᵀ Σ_k⁻¹ (x − μ_k) − ½ log |2π Σ_k|``.

    covariance: the structure, `Full`, `Diagonal`, `Spherical`, `Tied` or one of mclust's fourteen, `EigenDecomposed`.
    floor: the smallest variance a component may have, relative to the variance of the data (a standard deviation of
    1/1000 of the feature's by default); in float32 no less than 64 roundings. A component that reaches it is reported
    as degenerate. It is a guard, not a prior: for a proper one see `jaxem.WithPrior`.
    center, scale: [D], set by `calibrate`; statistics are taken of (x − center)/scale, because raw second moments cancel.
    num_patterns: a bound on how many different rows the mask has, set by `specialize`.

    With a mask, log p(x | k) is that of the observed cells, and the E-step fills in the others by their conditional
    moments, exactly (see `jaxem.families.missing_gaussian`).
    """

    covariance: Covariance = Full()
    floor: float = 1e-6
    center: Float[Array, " D"] | None = None
    scale: Float[Array, " D"] | None = None
    num_patterns: int | None = static(default=None)

    reads = frozenset({"x", "mask"})
    freezable = frozenset({"mean", "covariance"})

    def __post_init__(self):
        if not isinstance(self.covariance, Covariance):
            raise ValueError(f"covariance takes a structure such as jaxem.Full(); got {self.covariance!r}")
        if isinstance(self.floor, (int, float)) and not self.floor > 0:
            raise ValueError(f"floor must be positive; got {self.floor}")

    @property
    def freezable_by_component(self) -> frozenset[str]:
        return frozenset({"mean"}) if self.covariance.shared else self.freezable

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> Gaussian:
        x = _cells(data)
        self.covariance.check_dimension(x.shape[-1])
        center = weighted_mean(x, weights, data.mask)
        variance = weighted_mean((x - center) ** 2, weights, data.mask)
        # A column that varies by no more than its rounding is constant: its size is the only scale it has.
        rounding = (4 * jnp.finfo(x.dtype).eps * jnp.abs(center)) ** 2
        if self.covariance.isotropic:
            variance = jnp.full_like(variance, jnp.mean(variance))
            rounding = jnp.full_like(rounding, jnp.mean(rounding))
            center_size = jnp.full_like(center, jnp.max(jnp.abs(center)))
        else:
            center_size = jnp.abs(center)
        size = jnp.where(center_size > 0, center_size, 1)
        scale = jnp.where(variance > rounding, jnp.sqrt(variance), size)
        return dataclasses.replace(self, center=center, scale=scale)

    def specialize(self, data: Data | None) -> Gaussian:
        mask = None if data is None else data.mask
        grouped = mask is not None and not self._independent(mask.shape[-1])
        return dataclasses.replace(self, num_patterns=missing.count_patterns(np.asarray(mask)) if grouped else None)

    def validate(self, data: Data) -> None:
        self.covariance.check_dimension(np.shape(data.x)[-1])
        if data.mask is not None:
            never = np.flatnonzero(~np.any(np.asarray(data.mask), axis=0))
            if len(never):
                raise ValueError(f"column {never[0]} has no observed cell: nothing can be learnt of it")

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Standardized x; a missing cell is at the centre."""
        y = self._standardize(_cells(data))
        return y if data.mask is None else jnp.where(data.mask, y, 0)

    def statistics(self, data: Data) -> Any:
        y = self._standardize(_cells(data))
        if data.mask is None:
            return jnp.concatenate([jnp.ones_like(y[..., :1]), y, self.covariance.columns(y)], axis=-1)
        if self._independent(y.shape[-1]):
            return missing.cell_statistics(y, data.mask)
        return missing.row_statistics(y, data.mask, self.num_patterns)

    def natural(self, params: GaussianParams) -> Float[Array, "K P"]:
        mean, covariance = self._standardized(params)
        d = mean.shape[1]
        quadratic, linear, log_det = self.covariance.precision(covariance, mean)
        log_scale = 0.0 if self.scale is None else jnp.sum(jnp.log(self.scale))
        constant = -0.5 * (jnp.sum(linear * mean, axis=-1) + log_det + d * math.log(2 * math.pi)) - log_scale
        return jnp.concatenate([constant[:, None], linear, quadratic], axis=-1)

    def augmented_log_prob(self, params: GaussianParams, statistics: Any) -> Float[Array, "N K"]:
        mean, covariance = self._standardized(params)
        log_scale = jnp.zeros_like(mean[0]) if self.scale is None else jnp.log(self.scale)
        if isinstance(statistics, missing.MissingCells):
            natural = missing.cell_natural(mean, self._variances(mean, covariance), log_scale)
            return linear(statistics.table, natural)
        return missing.row_log_prob(statistics, mean, self.covariance.dense(covariance, *mean.shape), log_scale)

    def augmented_sums(
        self, params: GaussianParams | None, statistics: Any, marginals: Float[Array, "N K"]
    ) -> Float[Array, "K P"]:
        """At a start a missing cell has the mean and the variance of its column, and no covariance."""
        rows = isinstance(statistics, missing.MissingRows)
        if params is None:
            start = missing.row_start_moments if rows else missing.cell_start_moments
            count, first, second = start(statistics, marginals)
        else:
            mean, covariance = self._standardized(params)
            if rows:
                dense = self.covariance.dense(covariance, *mean.shape)
                count, first, second = missing.row_moments(statistics, marginals, mean, dense)
            else:
                variance = self._variances(mean, covariance)
                count, first, second = missing.cell_moments(statistics, marginals, mean, variance)
        if rows:
            columns = _pack(second)
        else:  # sums of squares: those of a feature by itself say which
            columns = dot(second, self.covariance.columns(jnp.eye(first.shape[1], dtype=first.dtype)))
        return jnp.concatenate([count, first, columns], axis=-1)

    def conditional_moments(self, params: GaussianParams, data: Data) -> tuple[Array, Array]:
        x = _cells(data)
        mask = jnp.ones(x.shape, bool) if data.mask is None else data.mask
        mean, covariance = self._standardized(params)
        dense = self.covariance.dense(covariance, *mean.shape)
        mean, covariance = missing.row_conditional_moments(self._standardize(x), mask, mean, dense)
        if self.center is not None and self.scale is not None:
            mean, covariance = mean * self.scale + self.center, covariance * self.scale[:, None] * self.scale
        return jnp.where(mask[:, None, :], x[:, None, :], mean), covariance

    def maximize(self, params: GaussianParams | None, stats: Float[Array, "K P"], frozen) -> GaussianParams:
        d = self._dimension(stats)
        count, first, second = stats[:, 0], stats[:, 1 : 1 + d], stats[:, 1 + d :]
        used = occupied(count)
        average = divide(first, count, used)
        old_mean, old_covariance = (None, None) if params is None else self._standardized(params)
        mean = hold(frozen.get("mean"), keep(used, average, old_mean), old_mean)
        columns = self.covariance.columns
        scatter = divide(second, count, used) - columns(average) + columns(average - mean)
        scatter = jnp.where(used[:, None], scatter, 0)
        covariance = self.covariance.estimate(scatter, count, d, self._floor(stats.dtype), old_covariance)
        new = self._in_units(mean, covariance)
        if params is None:
            return new
        # What is kept is kept to the last bit, not standardized and back.
        covariance = new.covariance if self.covariance.shared else keep(used, new.covariance, params.covariance)
        return GaussianParams(
            hold(frozen.get("mean"), keep(used, new.mean, params.mean), params.mean),
            hold(frozen.get("covariance"), covariance, params.covariance),
        )

    def pseudo_statistics(self, overall: Float[Array, "K P"]) -> Float[Array, "K P"]:
        """As the data, but narrower: one of K components covers K^(−2/D) of the variance (Fraley & Raftery 2007)."""
        d = self._dimension(overall)
        columns = self.covariance.columns(overall[:, 1 : 1 + d])
        narrow = overall.shape[0] ** (-2.0 / d)
        return overall.at[:, 1 + d :].set(columns + narrow * (overall[:, 1 + d :] - columns))

    def mean(self, params: GaussianParams, data: Data) -> Float[Array, "K D"]:
        return params.mean

    def sample(self, key: jax.Array, params: GaussianParams, z: Array, data: Data) -> Array:
        k, d = params.mean.shape
        root = cholesky(self.covariance.dense(params.covariance, k, d))
        noise = jax.random.normal(key, (*z.shape, d), params.mean.dtype)
        return params.mean[z] + dot(root[z], noise[..., None])[..., 0]

    def take_components(self, params: GaussianParams, components) -> GaussianParams:
        covariance = params.covariance if self.covariance.tied else params.covariance[components]
        return GaussianParams(params.mean[components], covariance)

    def degenerate(self, params: GaussianParams) -> Bool[Array, " K"]:
        _, covariance = self._standardized(params)
        floor = self._floor(params.mean.dtype)
        # A little above the floor: what was put on it is read back through roundings.
        return ~(self.covariance.smallest(covariance, params.mean.shape[0]) > 1.05 * floor)

    def to_free(self, params: GaussianParams) -> GaussianParams:
        return GaussianParams(params.mean, self.covariance.to_free(params.covariance))

    def from_free(self, free: GaussianParams) -> GaussianParams:
        return GaussianParams(free.mean, self.covariance.from_free(free.covariance, *free.mean.shape))

    def _independent(self, d: int) -> bool:
        """True where the structure reads no products of two features: then each cell can be missing by itself."""
        return self.covariance.num_columns(d) <= d

    def _variances(self, mean: Array, covariance: Array) -> Float[Array, "K D"]:
        quadratic, _, _ = self.covariance.precision(covariance, mean)
        return jnp.broadcast_to(-0.5 / quadratic, mean.shape)

    def _standardize(self, x: Array) -> Array:
        return x if self.center is None or self.scale is None else (x - self.center) / self.scale

    def _standardized(self, params: GaussianParams) -> tuple[Array, Array]:
        if self.center is None or self.scale is None:
            return params.mean, params.covariance
        return (params.mean - self.center) / self.scale, self.covariance.rescale(params.covariance, 1 / self.scale)

    def _in_units(self, mean: Array, covariance: Array) -> GaussianParams:
        if self.center is None or self.scale is None:
            return GaussianParams(mean, covariance)
        return GaussianParams(mean * self.scale + self.center, self.covariance.rescale(covariance, self.scale))

    def _floor(self, dtype) -> Array:
        return jnp.maximum(jnp.asarray(self.floor, dtype), 64 * jnp.finfo(dtype).eps)

    def _dimension(self, stats: Array) -> int:
        """D, from the number of statistics: 1 + D + Q(D)."""
        p = stats.shape[-1]
        return bisect.bisect_left(range(p), p, lo=1, key=lambda d: 1 + d + self.covariance.num_columns(d))


def _cells(data: Data) -> Float[Array, "*N D"]:
    """x, with zeros in the missing cells."""
    x = observations(data)
    return x if data.mask is None else jnp.where(data.mask, x, 0)
