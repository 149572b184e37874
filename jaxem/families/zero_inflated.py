"""Counts with more zeros than their family gives them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.families.base import (
    divide,
    free_log,
    hold,
    impossible_to_infinity,
    keep,
    linear,
    log_of_complement,
    log_or_zero,
    observations,
    occupied,
    weighted_sums,
)
from jaxem.families.columns import Columns, conditional_moments
from jaxem.model import Data, Family, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class ZeroInflatedParams:
    """inflation: w, the share of structural zeros, [K, D]. family: the parameters of the family of the other counts."""

    inflation: Float[Array, "K D"]
    family: Any


@pytree
class ZeroInflatedStatistics:
    """Of rows: which cells are zero and which are not, [N, D], and the family's statistics of those that are not.

    Of sums, [K, D]: structural zeros, and all other observed cells, whose statistics are in ``family``.
    """

    zero: Float[Array, "*N D"]
    other: Float[Array, "*N D"]
    family: Any


@pytree
class ZeroInflated(Family):
    """A family of counts with structural zeros, ``p(x | k) = Π_d w_kd 1[x_d = 0] + (1 − w_kd) p(x_d | k)``.

    ``ZeroInflated(Poisson())`` (Lambert 1992); any family with independent columns. Which zeros are structural is a
    latent of its own, summed out in the density and filled in by its expectation in the statistics. A share of exactly
    0 or 1 stays it. Raises ValueError for anything but a family with independent columns.
    """

    family: Columns

    def __post_init__(self):
        if not isinstance(self.family, Columns):
            raise ValueError(f"ZeroInflated takes a family of independent columns of counts; got {self.family!r}")

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return self.family.reads

    @property
    def filler(self) -> float:  # type: ignore[override]
        return self.family.filler

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.family.freezable | {"inflation"}

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        return self.family.freezable_by_component | {"inflation"}

    @property
    def calibrated(self) -> bool:
        return self.family.calibrated

    def calibrate(self, data: Data, weights: Array | None) -> ZeroInflated:
        return dataclasses.replace(self, family=self.family.calibrate(data, weights))

    def augmented(self, statistics: ZeroInflatedStatistics) -> bool:
        return True

    def validate(self, data: Data) -> None:
        self.family.validate(data)

    def features(self, data: Data) -> Float[Array, "N F"]:
        return self.family.features(data)

    def statistics(self, data: Data) -> ZeroInflatedStatistics:
        x = observations(data)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        seen = jnp.ones(x.shape, bool) if data.mask is None else data.mask
        zero, other = seen & (x == 0), seen & (x != 0)
        return ZeroInflatedStatistics(
            zero.astype(x.dtype), other.astype(x.dtype), self.family.statistics(Data(x=x, mask=other))
        )

    def log_prob(self, params: ZeroInflatedParams, statistics: ZeroInflatedStatistics) -> Float[Array, "N K"]:
        inflation = params.inflation
        by_chance = self._by_chance(params, self._one_zero(inflation.shape[1], inflation.dtype))
        zero = log_or_zero(inflation + by_chance)
        coefficients = jnp.concatenate([zero, log_of_complement(inflation)], axis=-1)
        cells = jnp.concatenate([statistics.zero, statistics.other], axis=-1)
        return impossible_to_infinity(linear(cells, coefficients)) + self.family.log_prob(
            params.family, statistics.family
        )

    def accumulate(
        self, params: ZeroInflatedParams | None, statistics: ZeroInflatedStatistics, marginals: Float[Array, "N K"]
    ) -> ZeroInflatedStatistics:
        cells = weighted_sums(marginals, jnp.concatenate([statistics.zero, statistics.other], axis=-1))
        zero, other = jnp.split(cells, 2, axis=-1)
        one_zero = self._one_zero(zero.shape[1], zero.dtype)
        if params is None:
            own, share = None, jnp.full_like(zero, 0.5)  # nothing is known yet
        else:
            own, by_chance = params.family, self._by_chance(params, one_zero)
            at_all = params.inflation + by_chance
            share = divide(by_chance, at_all, at_all > 0)
        counted = share * zero
        counts = self.family.accumulate(own, statistics.family, marginals)
        zeros = self.family.accumulate(own, one_zero, counted.T)
        return ZeroInflatedStatistics(zero - counted, other + counted, jax.tree.map(jnp.add, counts, zeros))

    def maximize(self, params: ZeroInflatedParams | None, stats: ZeroInflatedStatistics, frozen) -> ZeroInflatedParams:
        total = stats.zero + stats.other
        used = occupied(total)
        inflation = jnp.where(used, divide(stats.zero, total, used), 0.5)
        family = self.family.maximize(None if params is None else params.family, stats.family, frozen)
        if params is None:
            return ZeroInflatedParams(inflation, family)
        kept = keep(used, inflation, params.inflation)
        return ZeroInflatedParams(hold(frozen.get("inflation"), kept, params.inflation), family)

    def q(self, params: ZeroInflatedParams, stats: ZeroInflatedStatistics) -> Float[Array, ""]:
        inflation = params.inflation
        pairs = ((stats.zero, log_or_zero(inflation)), (stats.other, log_of_complement(inflation)))
        shares = sum(jnp.sum(jnp.where(count == 0, 0, count * log_p)) for count, log_p in pairs)
        return impossible_to_infinity(jnp.asarray(shares)) + self.family.q(params.family, stats.family)

    def pseudo_statistics(self, overall: ZeroInflatedStatistics) -> ZeroInflatedStatistics:
        return ZeroInflatedStatistics(overall.zero, overall.other, self.family.pseudo_statistics(overall.family))

    def mean(self, params: ZeroInflatedParams, data: Data) -> Float[Array, "K D"]:
        return (1 - params.inflation) * self.family.mean(params.family, data)

    def variance(self, params: ZeroInflatedParams) -> Float[Array, "K D"]:
        mean = self.family.mean(params.family, Data())
        return (1 - params.inflation) * (self.family.variance(params.family) + params.inflation * mean**2)

    def conditional_moments(self, params: ZeroInflatedParams, data: Data) -> tuple[Array, Array]:
        return conditional_moments(self.mean(params, data), self.variance(params), data)

    def sample(self, key: jax.Array, params: ZeroInflatedParams, z: Array, data: Data) -> Array:
        zero_key, key = jax.random.split(key)
        counts = self.family.sample(key, params.family, z, data)
        return jnp.where(jax.random.bernoulli(zero_key, params.inflation[z]), 0, counts)

    def take_components(self, params: ZeroInflatedParams, components) -> ZeroInflatedParams:
        family = self.family.take_components(params.family, components)
        return ZeroInflatedParams(params.inflation[components], family)

    def degenerate(self, params: ZeroInflatedParams) -> Bool[Array, " K"]:
        return self.family.degenerate(params.family)

    def to_free(self, params: ZeroInflatedParams) -> ZeroInflatedParams:
        odds = free_log(params.inflation) - free_log(1 - params.inflation)
        return ZeroInflatedParams(odds, self.family.to_free(params.family))

    def from_free(self, free: ZeroInflatedParams) -> ZeroInflatedParams:
        return ZeroInflatedParams(jax.nn.sigmoid(free.inflation), self.family.from_free(free.family))

    def _one_zero(self, d: int, dtype) -> Any:
        """The family's statistics of D rows, the d-th of which is a zero in column d and nothing else."""
        return self.family.statistics(Data(x=jnp.zeros((d, d), dtype), mask=jnp.eye(d, dtype=bool)))

    def _by_chance(self, params: ZeroInflatedParams, one_zero: Any) -> Float[Array, "K D"]:
        """p(a zero that is not structural) of every column."""
        return (1 - params.inflation) * jnp.exp(self.family.log_prob(params.family, one_zero)).T
