"""The binomial family: D independent numbers of successes per row, of known numbers of trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import (
    divide,
    free_log,
    is_count,
    log_of_complement,
    log_ratio_or_zero,
    mean_where_missing,
    observations,
    weighted_mean,
)
from jaxem.families.columns import IndependentColumns
from jaxem.families.poisson import log_poisson
from jaxem.layout import namespace
from jaxem.model import Data, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@pytree
class BinomialParams:
    """prob: of success, [K, D]; exactly 0 and 1 are proper values."""

    prob: Float[Array, "K D"]


@pytree
class Binomial(IndependentColumns):
    """Successes in known numbers of trials, ``p(x | k) = Π_d C(n_d, x_d) p_kd^x_d (1 − p_kd)^(n_d − x_d)``.

    trials: n, one number or one for every column, [D]. center: [D], set by `calibrate`; log p is taken relative to that
    probability of success, because log C(n, x) and x log p are large numbers that cancel.
    Raises ValueError for trials that are not whole numbers above 0, and for x other than 0, 1, …, n.
    """

    trials: int | Int[Array, " D"]
    center: Float[Array, " D"] | None = None

    freezable = frozenset({"prob"})
    freezable_by_component = freezable
    num_terms = 2

    def __post_init__(self):
        try:
            trials = np.asarray(self.trials)
        except jax.errors.TracerArrayConversionError:
            return
        whole = trials.dtype.kind in "iuf" and trials.ndim < 2 and np.all((trials >= 1) & (trials == np.floor(trials)))
        if not whole:
            raise ValueError(f"trials must be a whole number above 0, or one for each column; got {self.trials!r}")
        if trials.ndim:
            object.__setattr__(self, "trials", trials)

    @property
    def domain(self) -> str:  # type: ignore[override]
        return f"binomial observations are whole numbers from 0 to trials={self.trials}"

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def calibrate(self, data: Data, weights: Array | None) -> Binomial:
        x = observations(data)
        share = weighted_mean(x, weights, data.mask) / self._trials(x.shape[-1], x.dtype)
        inside = (share > 1e-6) & (share < 1 - 1e-6)
        return Binomial(self.trials, jnp.where(inside, share, 0.5))

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return is_count(x) & (
            x <= namespace(x).asarray(self._trials(x.shape[-1], jax.dtypes.canonicalize_dtype(x.dtype)))
        )

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Anscombe's arcsines, whose variance does not depend on the probability."""
        x = observations(data)
        n = self._trials(x.shape[-1], x.dtype)
        share = jnp.clip((x + 0.375) / (n + 0.75), 0, 1)
        return mean_where_missing(2 * jnp.sqrt(n + 0.5) * jnp.arcsin(jnp.sqrt(share)), data.mask)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array, Array]:
        return x, self._trials(x.shape[-1], x.dtype) - x

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """log of the binomial probability at the centre: a ratio of Poisson probabilities (Loader 2000)."""
        n, center = self._trials(x.shape[-1], x.dtype), self._center(x.shape[-1], x.dtype)
        return log_poisson(x, n * center) + log_poisson(n - x, n * (1 - center)) - log_poisson(n, n)

    def natural_columns(self, params: BinomialParams) -> tuple[Array, tuple[Array, Array]]:
        prob = params.prob
        center = self._center(prob.shape[1], prob.dtype)
        shift = (center - prob) / (1 - center)
        near = jnp.abs(shift) < 0.5
        failure = jnp.where(near, jnp.log1p(jnp.where(near, shift, 0)), log_of_complement(prob) - jnp.log1p(-center))
        return jnp.zeros_like(prob), (log_ratio_or_zero(prob, center), failure)

    def estimate(self, params: BinomialParams | None, count, terms, used, frozen) -> BinomialParams:
        successes, failures = terms
        return BinomialParams(jnp.where(used, divide(successes, successes + failures, used), 0.5))

    def mean(self, params: BinomialParams, data: Data) -> Float[Array, "K D"]:
        return self._trials(params.prob.shape[1], params.prob.dtype) * params.prob

    def variance(self, params: BinomialParams) -> Float[Array, "K D"]:
        return self.mean(params, Data()) * (1 - params.prob)

    def sample(self, key: jax.Array, params: BinomialParams, z: Array, data: Data) -> Array:
        prob = params.prob[z]
        return jax.random.binomial(key, self._trials(prob.shape[1], prob.dtype), prob, dtype=prob.dtype)

    def to_free(self, params: BinomialParams) -> BinomialParams:
        return BinomialParams(free_log(params.prob) - free_log(1 - params.prob))

    def from_free(self, free: BinomialParams) -> BinomialParams:
        return BinomialParams(jax.nn.sigmoid(free.prob))

    def _trials(self, d: int, dtype) -> Array:
        trials = jnp.asarray(self.trials, dtype)
        if trials.ndim and trials.shape != (d,):
            raise ValueError(f"trials need one number for each of {d} columns; got {trials.shape[0]}")
        return jnp.broadcast_to(trials, (d,))

    def _center(self, d: int, dtype) -> Array:
        return jnp.full(d, 0.5, dtype) if self.center is None else self.center
