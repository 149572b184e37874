"""The categorical family: D independent codes per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import divide, free_log, is_count, log_or_zero, mean_where_missing, observations
from jaxem.families.columns import IndependentColumns
from jaxem.model import Data, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class CategoryParams:
    """prob: p(x = c), [K, D, C]; sums to 1 over c, with exact zeros beyond a column's own number of categories."""

    prob: Float[Array, "K D C"]


@pytree
class Categorical(IndependentColumns):
    """Independent codes 0, 1, …, C − 1, ``log p(x | k) = Σ_d log p_{k d x_d}``.

    A mixture of these is latent class analysis (Lazarsfeld & Henry 1968; Goodman 1974). num_categories: C, one number
    for all columns or one for each. A probability of exactly 0 stays 0, and gives its code log p = −∞.
    Raises ValueError for fewer than 1 category (2 where there is one number for all), for numbers that are not one for
    each column, and for x other than 0, 1, …, C − 1.
    """

    num_categories: int | tuple[int, ...] = static()

    freezable = frozenset({"prob"})
    freezable_by_component = freezable

    def __post_init__(self):
        given = self.num_categories
        try:
            counts = tuple(int(c) for c in given) if np.ndim(given) else int(given)  # type: ignore[arg-type, union-attr]
            sound = np.ndim(given) < 2 and np.all(np.equal(counts, given))
        except (TypeError, ValueError):
            raise ValueError(f"num_categories must be a whole number, or one for each column; got {given!r}") from None
        least = 1 if np.ndim(given) else 2
        if not sound or np.size(counts) == 0 or np.min(counts) < least:
            raise ValueError(f"num_categories must be whole numbers, at least {least}; got {given!r}")
        object.__setattr__(self, "num_categories", counts)

    @property
    def domain(self) -> str:  # type: ignore[override]
        return f"categorical observations are codes from 0 to num_categories − 1, num_categories={self.num_categories}"

    @property
    def term_size(self) -> int:  # type: ignore[override]
        counts = self.num_categories
        return max(counts) if isinstance(counts, tuple) else counts

    def supported(self, x: Float[Array, "N D"]) -> Bool[Array, "N D"]:
        return is_count(x) & (x < self._counts(x.shape[-1]))

    def features(self, data: Data) -> Float[Array, "N F"]:
        """One-hot codes: the squared distance of two rows is the number of columns in which they differ."""
        x = observations(data)
        return mean_where_missing(self._one_hot(x), data.mask).reshape(x.shape[0], -1) * np.sqrt(0.5).astype(x.dtype)

    def terms(self, x: Float[Array, "N D"]) -> tuple[Array]:
        return (self._one_hot(x),)

    def base(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        return jnp.zeros_like(x)

    def natural_columns(self, params: CategoryParams) -> tuple[Array, tuple[Array]]:
        return jnp.zeros_like(params.prob[..., 0]), (log_or_zero(params.prob),)

    def estimate(self, params: CategoryParams | None, count, terms, used, frozen) -> CategoryParams:
        total = jnp.sum(terms[0], axis=-1)
        even = self._valid(count.shape[1]) / self._counts(count.shape[1])[:, None]
        return CategoryParams(jnp.where(used[..., None], divide(terms[0], total, used), even))

    def mean(self, params: CategoryParams, data: Data) -> Float[Array, "K D"]:
        """The mean of the codes: of two categories the probability of the second."""
        return jnp.sum(params.prob * self._codes(params.prob.dtype), axis=-1)

    def variance(self, params: CategoryParams) -> Float[Array, "K D"]:
        away = self._codes(params.prob.dtype) - self.mean(params, Data())[..., None]
        return jnp.sum(params.prob * away**2, axis=-1)

    def sample(self, key: jax.Array, params: CategoryParams, z: Array, data: Data) -> Array:
        return jax.random.categorical(key, jnp.log(params.prob[z]), axis=-1).astype(params.prob.dtype)

    def to_free(self, params: CategoryParams) -> CategoryParams:
        """log p_c − log p_last of the other categories of every column, [K, Σ_d (C_d − 1)]."""
        d = params.prob.shape[1]
        logs, last = free_log(params.prob), self._counts(d) - 1
        relative = logs - logs[:, np.arange(d), last][..., None]
        return CategoryParams(relative[:, *self._free_places(d)])

    def from_free(self, free: CategoryParams) -> CategoryParams:
        counts = self.num_categories
        d = len(counts) if isinstance(counts, tuple) else free.prob.shape[1] // (counts - 1)
        floor = np.where(self._valid(d), 0, -np.inf)
        logits = jnp.broadcast_to(jnp.asarray(floor, free.prob.dtype), (free.prob.shape[0], *floor.shape))
        return CategoryParams(jax.nn.softmax(logits.at[:, *self._free_places(d)].set(free.prob), axis=-1))

    def _counts(self, d: int) -> np.ndarray:
        counts = self.num_categories
        if isinstance(counts, tuple) and len(counts) != d:
            raise ValueError(f"num_categories needs one number for each of {d} columns; got {len(counts)}")
        return np.broadcast_to(np.asarray(counts), (d,))

    def _valid(self, d: int) -> np.ndarray:
        """Which places of [D, C] are categories of their column."""
        return np.arange(self.term_size) < self._counts(d)[:, None]

    def _free_places(self, d: int) -> tuple[np.ndarray, ...]:
        """Every category of a column but its last."""
        return np.nonzero(np.arange(self.term_size) < self._counts(d)[:, None] - 1)

    def _codes(self, dtype) -> Array:
        return jnp.arange(self.term_size, dtype=dtype)

    def _one_hot(self, x: Float[Array, "N D"]) -> Float[Array, "N D C"]:
        return (x[..., None] == self._codes(x.dtype)).astype(x.dtype)
