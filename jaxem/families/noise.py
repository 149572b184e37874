"""A family with one member more that takes what fits nowhere: uniform noise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import observations, weighted_sums
from jaxem.model import Data, Family, UnsupportedError, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class NoiseStatistics:
    """family: the statistics of the other members. noise: of rows the log-density of noise, [N]; of sums its sum, [K]."""

    family: Any
    noise: Float[Array, "*N"]


@pytree
class WithNoise(Family):
    """A family whose last member is uniform noise over the box around the data: outliers spoil no other component.

    ``Mixture(WithNoise(Gaussian()), 4)`` has three Gaussian components and the noise, with parameters of three: the noise
    has none but its weight (Banfield & Raftery 1993; Fraley & Raftery 2002, section 5.4). Its density is 1/volume of the
    box, everywhere, so that rows of other data that lie outside of the box count as noise too. Where cells are missing it
    is that of the observed ones. It stays last: `take_components` reorders the others only.
    low, high: corners of the box, [D]; by default, set by `calibrate`, the least and largest values of the data.
    Raises ValueError for anything but a family, and for corners in the wrong order.
    """

    family: Family
    low: Float[Array, " D"] | None = None
    high: Float[Array, " D"] | None = None

    # The last member is always in use.
    sweepable = False

    def __post_init__(self):
        if not isinstance(self.family, Family):
            raise ValueError(f"WithNoise takes a family; got {self.family!r}")
        if (self.low is None) != (self.high is None):
            raise ValueError("give both corners of the box, low and high, or none")
        if self.low is None or self.high is None or isinstance(self.low, jax.Array):
            return
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if low.shape != high.shape or not np.all(low <= high):
            raise ValueError(f"low must lie below high in every column; got low={low}, high={high}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return self.family.reads

    @property
    def filler(self) -> float:  # type: ignore[override]
        return self.family.filler

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.family.monotone

    @property
    def averageable(self) -> bool:  # type: ignore[override]
        return self.family.averageable

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return self.family.generalized

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.family.freezable

    @property
    def calibrated(self) -> bool:
        return self.low is not None and self.family.calibrated

    def calibrate(self, data: Data, weights: Array | None) -> WithNoise:
        family = self.family if self.family.calibrated else self.family.calibrate(data, weights)
        if self.low is not None:
            return dataclasses.replace(self, family=family)
        x = observations(data)
        seen = jnp.ones(x.shape, bool) if data.mask is None else data.mask
        seen = seen if weights is None else seen & (weights > 0)[:, None]
        low = jnp.min(jnp.where(seen, x, jnp.inf), axis=0)
        high = jnp.max(jnp.where(seen, x, -jnp.inf), axis=0)
        some = high >= low
        return WithNoise(family, jnp.where(some, low, 0), jnp.where(some, high, 0))

    def specialize(self, data: Data | None) -> WithNoise:
        return dataclasses.replace(self, family=self.family.specialize(data))

    def validate(self, data: Data) -> None:
        self.family.validate(data)

    def augmented(self, statistics: NoiseStatistics) -> bool:
        return self.family.augmented(statistics.family)

    def features(self, data: Data) -> Float[Array, "N F"]:
        return self.family.features(data)

    def statistics(self, data: Data) -> NoiseStatistics:
        x = observations(data)
        logs = jnp.log(self._widths(x.shape[-1], x.dtype))
        seen = jnp.ones(x.shape, bool) if data.mask is None else data.mask
        return NoiseStatistics(self.family.statistics(data), -jnp.sum(jnp.where(seen, logs, 0), axis=-1))

    def log_prob(self, params: Any, statistics: NoiseStatistics) -> Float[Array, "N K"]:
        others = self.family.log_prob(params, statistics.family)
        return jnp.concatenate([others, statistics.noise[:, None].astype(others.dtype)], axis=-1)

    def accumulate(self, params: Any, statistics: NoiseStatistics, marginals: Float[Array, "N K"]) -> NoiseStatistics:
        """Sums for all K members; those of the family for its last one are not read, and 0 once there are parameters."""
        noise = weighted_sums(marginals, statistics.noise[:, None])[:, 0]
        if params is None:
            return NoiseStatistics(self.family.accumulate(None, statistics.family, marginals), noise)
        others = self.family.accumulate(params, statistics.family, marginals[:, :-1])
        return NoiseStatistics(jax.tree.map(_with_a_zero, others), noise)

    def maximize(self, params: Any, stats: NoiseStatistics, frozen) -> Any:
        if stats.noise.shape[0] < 2:
            raise ValueError("WithNoise needs at least 2 components: the last of them is the noise")
        return self.family.maximize(params, jax.tree.map(_but_the_last, stats.family), frozen)

    def q(self, params: Any, stats: NoiseStatistics) -> Float[Array, ""]:
        return self.family.q(params, jax.tree.map(_but_the_last, stats.family)) + stats.noise[-1]

    def pseudo_statistics(self, overall: NoiseStatistics) -> NoiseStatistics:
        others = self.family.pseudo_statistics(jax.tree.map(_but_the_last, overall.family))
        return NoiseStatistics(jax.tree.map(_with_a_zero, others), jnp.zeros_like(overall.noise))

    def mean(self, params: Any, data: Data) -> Array:
        """That of the noise is the middle of the box."""
        others = self.family.mean(params, data)
        low, widths = self._box(others.shape[-1], others.dtype)
        middle = jnp.broadcast_to(low + 0.5 * widths, (*others.shape[:-2], 1, others.shape[-1]))
        return jnp.concatenate([others, middle], axis=-2)

    def conditional_moments(self, params: Any, data: Data) -> tuple[Array, Array]:
        mean, covariance = self.family.conditional_moments(params, data)
        x = observations(data)
        d = x.shape[-1]
        known = jnp.ones(x.shape, bool) if data.mask is None else data.mask
        low, widths = self._box(d, mean.dtype)
        middle = jnp.where(known, x, low + 0.5 * widths)
        spread = jnp.where(known, 0, widths**2 / 12)[..., None] * jnp.eye(d, dtype=mean.dtype)
        mean = jnp.concatenate([mean, middle[:, None]], axis=1)
        return mean, jnp.concatenate([covariance, spread[:, None]], axis=1)

    def sample(self, key: jax.Array, params: Any, z: Array, data: Data) -> Array:
        noise_key, key = jax.random.split(key)
        last = self._members(params)
        x = self.family.sample(key, params, jnp.minimum(z, last - 1), data)
        low, widths = self._box(x.shape[-1], x.dtype)
        noise = low + widths * jax.random.uniform(noise_key, x.shape, x.dtype)
        return jnp.where((z == last)[:, None], noise, x)

    def take_components(self, params: Any, components: Any) -> Any:
        last = self._members(params)
        try:
            order = np.asarray(components)
        except jax.errors.TracerArrayConversionError:
            raise UnsupportedError("WithNoise reorders components by numbers that are known when tracing") from None
        if order.ndim != 1 or order.size < 2 or order[-1] != last or np.any(order[:-1] == last):
            raise UnsupportedError(f"the noise of WithNoise, component {last}, stays last; got the order {components}")
        return self.family.take_components(params, order[:-1])

    def degenerate(self, params: Any) -> Bool[Array, " K"]:
        return jnp.append(self.family.degenerate(params), False)

    def to_free(self, params: Any) -> Any:
        return self.family.to_free(params)

    def from_free(self, free: Any) -> Any:
        return self.family.from_free(free)

    def held(self, params: Any) -> Any:
        return self.family.held(params)

    def _members(self, params: Any) -> int:
        """How many members there are beside the noise."""
        return jax.eval_shape(self.family.degenerate, params).shape[0]

    def _box(self, d: int, dtype) -> tuple[Array, Array]:
        low = jnp.zeros(d, dtype) if self.low is None else jnp.asarray(self.low, dtype)
        return low, self._widths(d, dtype)

    def _widths(self, d: int, dtype) -> Array:
        """Sides of the box; a column that does not vary says nothing of noise."""
        if self.low is None or self.high is None:
            return jnp.ones(d, dtype)
        if np.shape(self.low) != (d,):
            raise ValueError(
                f"the corners of the box need one number for each of {d} columns; got {np.shape(self.low)}"
            )
        widths = jnp.asarray(self.high - self.low, dtype)
        return jnp.where(widths > 0, widths, 1)


def _but_the_last(stats: Array) -> Array:
    return stats[:-1]


def _with_a_zero(stats: Array) -> Array:
    """One member more, of which nothing is known."""
    return jnp.concatenate([stats, jnp.zeros_like(stats[:1])])
