"""Bounded parameters and their free coordinates: maps between a set such as the simplex and all of Rⁿ.

A bijection is named beside a parameter (``constraints={"weights": "simplex", "scale": "positive"}``), and from then on
gradients, acceleration, standard errors and the count of free parameters all move in the same coordinates. Each acts on
the last axis of an array, or the last two of a matrix; axes before those are batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.linalg import cholesky, diagonal, dot
from jaxem.model import leaf_name, pytree, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array


class Bijection:
    """A map between a constrained value and as many free coordinates as it has degrees of freedom."""

    def to_free(self, value: Array) -> Array:
        raise unsupported(self, "to_free", "free coordinates")

    def from_free(self, free: Array) -> Array:
        """The inverse of `to_free`."""
        raise unsupported(self, "from_free", "free coordinates")


@pytree
class Real(Bijection):
    """Any number: the identity."""

    def to_free(self, value):
        return value

    def from_free(self, free):
        return free


@pytree
class Positive(Bijection):
    """A positive number, by its logarithm."""

    def to_free(self, value):
        return jnp.log(value)

    def from_free(self, free):
        return jnp.exp(free)


@pytree
class Interval(Bijection):
    """A number between ``low`` and ``high``, by the logit of where it lies: log (x − low)/(high − x)."""

    low: float | jax.Array = 0.0
    high: float | jax.Array = 1.0

    def __post_init__(self):
        if isinstance(self.low, (int, float)) and isinstance(self.high, (int, float)) and not self.low < self.high:
            raise ValueError(f"an interval needs low < high; got {self.low} and {self.high}")

    def to_free(self, value):
        return jnp.log(value - self.low) - jnp.log(self.high - value)

    def from_free(self, free):
        return self.low + (self.high - self.low) * jax.nn.sigmoid(free)


@pytree
class Simplex(Bijection):
    """Numbers at least 0 that sum to 1, [..., K], by log p_k − log p_K for k < K; of a 0 the log of the least number."""

    def to_free(self, value):
        logs = jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny))
        return logs[..., :-1] - logs[..., -1:]

    def from_free(self, free):
        last = jnp.zeros((*free.shape[:-1], 1), free.dtype)
        return jax.nn.softmax(jnp.concatenate([free, last], axis=-1), axis=-1)


@pytree
class Ordered(Bijection):
    """Increasing numbers, [..., K]: the first, and the logarithms of the differences."""

    def to_free(self, value):
        return jnp.concatenate([value[..., :1], jnp.log(jnp.diff(value, axis=-1))], axis=-1)

    def from_free(self, free):
        return jnp.cumsum(jnp.concatenate([free[..., :1], jnp.exp(free[..., 1:])], axis=-1), axis=-1)


@pytree
class PositiveDefinite(Bijection):
    """A positive definite matrix, [..., D, D]: its Cholesky factor, the diagonal by its logarithm."""

    def to_free(self, value):
        lower = cholesky(value)
        below = np.tril_indices(lower.shape[-1], -1)
        return jnp.concatenate([jnp.log(diagonal(lower)), lower[..., below[0], below[1]]], axis=-1)

    def from_free(self, free):
        d = _side(free.shape[-1], "a positive definite matrix")
        lower = _below(free[..., d:], d) + jnp.exp(free[..., :d])[..., None] * jnp.eye(d, dtype=free.dtype)
        return dot(lower, jnp.swapaxes(lower, -1, -2))


@pytree
class Correlation(Bijection):
    """A correlation matrix, [..., D, D], by the inverse hyperbolic tangents of its canonical partial correlations.

    Row i of the Cholesky factor is a unit vector whose entries are L_ij = c_ij Π_{m<j} √(1 − c_im²) (Lewandowski,
    Kurowicka & Joe 2009).
    """

    def to_free(self, value):
        lower = cholesky(value)
        before = jnp.cumsum(lower**2, axis=-1) - lower**2
        left = jnp.sqrt(jnp.maximum(1 - before, jnp.finfo(lower.dtype).tiny))
        below = np.tril_indices(lower.shape[-1], -1)
        return jnp.arctanh((lower / left)[..., below[0], below[1]])

    def from_free(self, free):
        d = _side(free.shape[-1], "a correlation matrix", with_diagonal=False)
        partial = _below(jnp.tanh(free), d)
        left = jnp.cumprod(jnp.sqrt(1 - partial**2), axis=-1)
        before = jnp.concatenate([jnp.ones_like(left[..., :1]), left[..., :-1]], axis=-1)
        lower = jnp.tril((partial + jnp.eye(d, dtype=free.dtype)) * before)
        return dot(lower, jnp.swapaxes(lower, -1, -2))


def _side(size: int, what: str, with_diagonal: bool = True) -> int:
    """The side of a matrix of so many free coordinates."""
    d = round((np.sqrt(8 * size + 1) + (-1 if with_diagonal else 1)) / 2)
    if d * (d + 1 if with_diagonal else d - 1) // 2 != size:
        raise ValueError(f"{size} is not the number of free coordinates of {what}")
    return d


def _below(values: Array, d: int) -> Array:
    """A matrix with these values below its diagonal, row by row, and 0 elsewhere."""
    rows, columns = np.tril_indices(d, -1)
    return jnp.zeros((*values.shape[:-1], d, d), values.dtype).at[..., rows, columns].set(values)


#: The names by which `constraints` may call a bijection.
BIJECTIONS: dict[str, Bijection] = {
    "real": Real(),
    "positive": Positive(),
    "unit interval": Interval(),
    "simplex": Simplex(),
    "ordered": Ordered(),
    "positive definite": PositiveDefinite(),
    "correlation": Correlation(),
}


def read_constraints(given: Mapping[str, Any] | None) -> dict[str, Bijection]:
    """Leaf name → bijection, from bijections or their names. Raises ValueError for anything else."""
    constraints = {}
    for name, bijection in (given or {}).items():
        found = BIJECTIONS.get(bijection) if isinstance(bijection, str) else bijection
        if not isinstance(found, Bijection):
            known = ", ".join(repr(known) for known in BIJECTIONS)
            raise ValueError(
                f"the constraint of {name!r} is one of {known}, or a jaxem.bijections.Bijection; got {bijection!r}"
            )
        constraints[name] = found
    return constraints


def to_free(constraints: Mapping[str, Bijection], params: Any) -> Any:
    """Free coordinates of every leaf of ``params``; leaves without a constraint are free as they are."""
    _check_names(constraints, params)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: constraints.get(leaf_name(path), BIJECTIONS["real"]).to_free(jnp.asarray(leaf)), params
    )


def from_free(constraints: Mapping[str, Bijection], free: Any) -> Any:
    """The inverse of `to_free`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: constraints.get(leaf_name(path), BIJECTIONS["real"]).from_free(leaf), free
    )


def _check_names(constraints: Mapping[str, Bijection], params: Any) -> None:
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    stray = sorted(set(constraints) - set(names))
    if stray:
        raise ValueError(f"constraints are given for {', '.join(stray)}; the parameters are {', '.join(names)}")
