"""The multinomial family: a row is how often each of D outcomes came up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import (
    LOG_ZERO,
    ExponentialFamily,
    divide,
    free_log,
    hold,
    is_count,
    keep,
    log_ratio_or_zero,
    observations,
    occupied,
    refuse_outside,
    weighted_mean,
)
from jaxem.families.poisson import log_poisson
from jaxem.model import Data, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class MultinomialParams:
    """prob: of each outcome, [K, D]; sums to 1 over the columns, exact zeros are proper."""

    prob: Float[Array, "K D"]


@pytree
class Multinomial(ExponentialFamily):
    """Counts of D outcomes, given their total n: ``p(x | k) = n! Π_d p_kd^x_d / x_d!`` (words of a document).

    total: counts in a drawn row and in `mean`; by default, set by `calibrate`, the rounded mean of the data. Rows may
    have any totals, which say nothing of their component. center: [D], set by `calibrate`; log p is taken relative to
    those probabilities, because log n! and x log p are large numbers that cancel. Raises ValueError for x that is no
    count, and for a total that is none.
    """

    total: float | Float[Array, ""] | None = None
    center: Float[Array, " D"] | None = None

    freezable = frozenset({"prob"})
    freezable_by_component = freezable
    bounded = True

    def __post_init__(self):
        if isinstance(self.total, (int, float)) and not (self.total >= 0 and self.total == np.floor(self.total)):
            raise ValueError(f"total must be a whole number, at least 0; got {self.total}")

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> Multinomial:
        mean = weighted_mean(observations(data), weights)
        sum_ = jnp.sum(mean)
        share = mean / jnp.where(sum_ > 0, sum_, 1)
        # An outcome that never came up still needs a centre above 0, whatever it is.
        center = jnp.maximum(share, 1e-6)
        total = jnp.round(sum_) if self.total is None else self.total
        return Multinomial(total, center / jnp.sum(center))

    def validate(self, data: Data) -> None:
        refuse_outside(is_count, data, "multinomial counts are 0, 1, 2, …")

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Square roots of the shares: their distance is Hellinger's."""
        x = jnp.maximum(observations(data), 0)
        n = jnp.sum(x, axis=-1, keepdims=True)
        return jnp.sqrt(x / jnp.where(n > 0, n, 1))

    def statistics(self, data: Data) -> Float[Array, "N P"]:
        """x and the log-probability at the centre, a ratio of Poisson probabilities (Loader 2000)."""
        x = observations(data)
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
        supported = jnp.all(is_count(x), axis=-1, keepdims=True)
        safe = jnp.where(supported, x, 0)
        n = jnp.sum(safe, axis=-1, keepdims=True)
        each = log_poisson(safe, n * self._center(x.shape[-1], x.dtype))
        base = jnp.sum(each, axis=-1, keepdims=True) - log_poisson(n, n)
        finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
        base = jnp.where(supported, base, jnp.where(finite, LOG_ZERO, jnp.nan))
        return jnp.concatenate([safe, base], axis=-1)

    def natural(self, params: MultinomialParams) -> Float[Array, "K P"]:
        prob = params.prob
        center = self._center(prob.shape[1], prob.dtype)
        # Rounded probabilities do not sum to 1, nor does the centre: of a large total that would be seen.
        excess = jax.lax.stop_gradient(jnp.sum(prob - center, axis=-1, keepdims=True))
        ratio = log_ratio_or_zero(prob, center) - excess
        return jnp.concatenate([ratio, jnp.ones_like(prob[:, :1])], axis=-1)

    def maximize(self, params: MultinomialParams | None, stats: Float[Array, "K P"], frozen) -> MultinomialParams:
        counts = stats[:, :-1]
        total = jnp.sum(counts, axis=-1)
        used = occupied(total)
        prob = jnp.where(used[:, None], divide(counts, total, used), 1 / counts.shape[1])
        if params is None:
            return MultinomialParams(prob)
        return MultinomialParams(hold(frozen.get("prob"), keep(used, prob, params.prob), params.prob))

    def mean(self, params: MultinomialParams, data: Data) -> Float[Array, "K D"]:
        return self._total(params.prob.dtype) * params.prob

    def sample(self, key: jax.Array, params: MultinomialParams, z: Array, data: Data) -> Array:
        prob = params.prob[z]
        n = jnp.broadcast_to(self._total(prob.dtype), z.shape)
        return jax.random.multinomial(key, n, prob, shape=prob.shape, dtype=prob.dtype)

    def take_components(self, params: MultinomialParams, components) -> MultinomialParams:
        return MultinomialParams(params.prob[components])

    def degenerate(self, params: MultinomialParams) -> Bool[Array, " K"]:
        """None: a probability of 0 is proper."""
        return jnp.zeros(params.prob.shape[0], bool)

    def to_free(self, params: MultinomialParams) -> MultinomialParams:
        """log p_d − log p_D of the other outcomes."""
        logs = free_log(params.prob)
        return MultinomialParams(logs[:, :-1] - logs[:, -1:])

    def from_free(self, free: MultinomialParams) -> MultinomialParams:
        last = jnp.zeros((free.prob.shape[0], 1), free.prob.dtype)
        return MultinomialParams(jax.nn.softmax(jnp.concatenate([free.prob, last], axis=-1), axis=-1))

    def _total(self, dtype) -> Array:
        if self.total is None:
            raise ValueError("a draw of a multinomial row needs its total: Multinomial(total=…), or calibrate to data")
        return jnp.asarray(self.total, dtype)

    def _center(self, d: int, dtype) -> Array:
        return jnp.full(d, 1 / d, dtype) if self.center is None else self.center
