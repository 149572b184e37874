"""Covariance structures of the Gaussian family: what each needs of y yᵀ, and its M-step.

A structure works in columns: ``columns(y)`` are the second-order statistics it reads, the same map is used on means (a
second moment about m is E[columns(y)] − columns(ȳ) + columns(ȳ − m)), and ``precision`` gives their coefficients.
Structures see standardized coordinates, in which the data have unit variance, so a floor on them is relative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxem.linalg import add_to_diagonal, cholesky, diagonal, dot, precision_and_log_det
from jaxem.model import pytree, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Float


# Products of so few features are slices, which XLA fuses with what reads them; of more they are gathered, in operations
# whose number does not grow.
_FEW_FEATURES = 16
# More products of two features than this are no statistics of a row: D = 1024 and its covariances of a million numbers.
_MOST_PRODUCTS = 2**19


def _outer_columns(y: Float[Array, "*N D"]) -> Float[Array, "*N Q"]:
    """The upper triangle of y yᵀ row by row."""
    d = y.shape[-1]
    if d > _FEW_FEATURES:
        i, j = np.triu_indices(d)
        return y[..., i] * y[..., j]
    return jnp.concatenate([y[..., i : i + 1] * y[..., i:] for i in range(d)], axis=-1)


def _pack(symmetric: Float[Array, "*K D D"]) -> Float[Array, "*K Q"]:
    """The upper triangle, row by row: the order of `_outer_columns`."""
    d = symmetric.shape[-1]
    i, j = np.triu_indices(d)
    return symmetric.reshape(*symmetric.shape[:-2], d * d)[..., i * d + j]


def _unpack(columns: Float[Array, "*K Q"], d: int) -> Float[Array, "*K D D"]:
    """The symmetric matrix of an upper triangle."""
    index = np.zeros((d, d), np.int32)
    index[np.triu_indices(d)] = np.arange(d * (d + 1) // 2)
    return columns[..., np.maximum(index, index.T)]


def _floored(
    scatter: Float[Array, "*K D D"], floor: Array, old: Float[Array, "*K D D"] | None
) -> Float[Array, "*K D D"]:
    """The scatter, with its diagonal raised where a pivot of it (a conditional variance) is below the floor.

    By just what is missing: the lift grows continuously from 0. A lifted matrix is not quite the best one above the
    floor (eigenvalues would have to be cut off, and they are too slow for this loop), so a component whose covariance
    before the step is better than the lifted one keeps that: the objective does not fall at the floor either.
    """
    squares = diagonal(cholesky(scatter)) ** 2
    # Not min(squares): where a matrix is not positive definite, NaN does not survive every vectorized minimum.
    pivot = jnp.min(jnp.where(squares > 0, squares, 0), axis=-1)
    missing = jnp.maximum(floor - pivot, 0)
    lifted = add_to_diagonal(scatter, missing)
    if old is None:
        return lifted

    precision, log_det = precision_and_log_det(jnp.stack([old, lifted]))
    cost_of_old, cost_of_lifted = log_det + jnp.sum(precision * scatter, axis=(-2, -1))
    keep = (missing > 0) & (cost_of_old < cost_of_lifted)
    return jnp.where(keep[..., None, None], old, lifted)


def _quadratic_coefficients(precision: Float[Array, "*K D D"]) -> Float[Array, "*K Q"]:
    """Coefficients of `_outer_columns` in −½ yᵀ P y: off-diagonal products stand once, so they count twice."""
    d = precision.shape[-1]
    return _pack(precision * (0.5 * jnp.eye(d, dtype=precision.dtype) - 1.0))


class Covariance:
    """One structure: how many parameters, which statistics, which M-step. Covariances are those of all components."""

    #: One scale for all features: the structure is not invariant under a scale per feature.
    isotropic = False
    #: Part of it is shared by all components: it cannot be frozen for some of them only, and what a component without
    #: weight shares moves with the others.
    shared = False
    #: All of it is shared: there is no component axis.
    tied = False

    def columns(self, y: Float[Array, "*N D"]) -> Float[Array, "*N Q"]:
        """Second-order statistics of each row."""
        raise unsupported(self, "columns", "the Gaussian family")

    def num_columns(self, d: int) -> int:
        """Q, for D features."""
        raise unsupported(self, "num_columns", "the Gaussian family")

    def check_dimension(self, d: int) -> None:
        """Raise ValueError where D features have too many second-order statistics."""
        if self.num_columns(d) > max(d, _MOST_PRODUCTS):
            raise ValueError(
                f"a covariance matrix of {d} columns has {self.num_columns(d)} entries to estimate, and as many "
                "statistics for each row: use covariance=jaxem.Diagonal(), or factors, "
                "jaxem.FactorAnalysis(2) and jaxem.families.OfModel(jaxem.FactorAnalysis(2))"
            )

    def rescale(self, covariance: Array, scale: Float[Array, " D"]) -> Array:
        """The covariance of ``scale · y``."""
        raise unsupported(self, "rescale", "the Gaussian family")

    def precision(self, covariance: Array, mean: Float[Array, "K D"]) -> tuple[Array, Array, Array]:
        """Quadratic coefficients [K, Q], linear ones P μ [K, D], and log-determinants [K]."""
        raise unsupported(self, "precision", "the Gaussian family")

    def estimate(
        self, scatter: Float[Array, "K Q"], count: Float[Array, " K"], d: int, floor: Array, old: Array | None
    ) -> Array:
        """The covariance that maximizes q, given scatter/count in columns, not below the floor.

        ``old`` is the covariance before the step, None at a start: at the floor a step may do no better than keep it,
        and a structure without a closed form goes on from there. The scatter of a component without weight is 0.
        """
        raise unsupported(self, "estimate", "the Gaussian family")

    def smallest(self, covariance: Array, k: int) -> Float[Array, " K"]:
        """The smallest eigenvalue of each component's covariance."""
        raise unsupported(self, "smallest", "the Gaussian family")

    def dense(self, covariance: Array, k: int, d: int) -> Float[Array, "K D D"]:
        """The covariance of each component as a matrix."""
        raise unsupported(self, "dense", "the Gaussian family")

    def to_free(self, covariance: Array) -> Array:
        """Unconstrained coordinates: logarithms of variances, Cholesky factors with a logarithmic diagonal."""
        return jnp.log(covariance)

    def from_free(self, free: Array, k: int, d: int) -> Array:
        """The inverse of `to_free`."""
        return jnp.exp(free)


def _free(covariance: Float[Array, "*K D D"]) -> Float[Array, "*K Q"]:
    """The Cholesky factor: the logarithm of its diagonal, then what is below."""
    lower = cholesky(covariance)
    d = lower.shape[-1]
    logs = jnp.log(diagonal(lower))
    below = np.tril_indices(d, -1)
    return jnp.concatenate([logs, lower[..., below[0], below[1]]], axis=-1)


def _from_free(free: Float[Array, "*K Q"], d: int) -> Float[Array, "*K D D"]:
    """The inverse of `_free`."""
    below = np.tril_indices(d, -1)
    lower = jnp.zeros((*free.shape[:-1], d, d), free.dtype)
    lower = lower.at[..., jnp.arange(d), jnp.arange(d)].set(jnp.exp(free[..., :d]))
    lower = lower.at[..., below[0], below[1]].set(free[..., d:])
    return dot(lower, jnp.swapaxes(lower, -1, -2))


class Matrices(Covariance):
    """What one matrix per component and one matrix for all have in common."""

    def columns(self, y):
        return _outer_columns(y)

    def num_columns(self, d):
        return d * (d + 1) // 2

    def rescale(self, covariance, scale):
        return covariance * scale[:, None] * scale

    def precision(self, covariance, mean):
        k, d = mean.shape
        precision, log_det = precision_and_log_det(covariance)
        quadratic = jnp.broadcast_to(_quadratic_coefficients(precision), (k, self.num_columns(d)))
        return quadratic, jnp.sum(precision * mean[:, None, :], axis=-1), jnp.broadcast_to(log_det, (k,))

    def smallest(self, covariance, k):
        return jnp.broadcast_to(jnp.linalg.eigvalsh(covariance)[..., 0], (k,))

    def dense(self, covariance, k, d):
        return jnp.broadcast_to(covariance, (k, d, d))


@pytree
class Full(Matrices):
    """A covariance matrix of its own for every component, [K, D, D] (mclust's VVV)."""

    def estimate(self, scatter, count, d, floor, old):
        return _floored(_unpack(scatter, d), floor, old)

    def to_free(self, covariance):
        return _free(covariance)

    def from_free(self, free, k, d):
        return _from_free(free, d)


@pytree
class Tied(Matrices):
    """One covariance matrix for all components, [D, D] (mclust's EEE, scikit-learn's tied)."""

    shared = tied = True

    def estimate(self, scatter, count, d, floor, old):
        pooled = jnp.sum(count[:, None] * scatter, axis=0) / jnp.sum(count)
        return _floored(_unpack(pooled, d), floor, old)

    def to_free(self, covariance):
        return _free(covariance)

    def from_free(self, free, k, d):
        return _from_free(free, d)


class Variances(Covariance):
    """What a variance per feature, for every component or for all, has in common."""

    def columns(self, y):
        return y * y

    def num_columns(self, d):
        return d

    def rescale(self, covariance, scale):
        return covariance * scale**2

    def precision(self, covariance, mean):
        variance = jnp.broadcast_to(covariance, mean.shape)
        return -0.5 / variance, mean / variance, jnp.sum(jnp.log(variance), axis=-1)

    def smallest(self, covariance, k):
        return jnp.broadcast_to(jnp.min(covariance, axis=-1), (k,))

    def dense(self, covariance, k, d):
        return jnp.broadcast_to(covariance, (k, d))[:, :, None] * jnp.eye(d, dtype=covariance.dtype)


@pytree
class Diagonal(Variances):
    """A variance per feature and component, [K, D] (mclust's VVI)."""

    def estimate(self, scatter, count, d, floor, old):
        return jnp.maximum(scatter, floor)


class Spheres(Covariance):
    """What one variance, for every component or for all, has in common."""

    isotropic = True

    def columns(self, y):
        return jnp.sum(y * y, axis=-1, keepdims=True)

    def num_columns(self, d):
        return 1

    def rescale(self, covariance, scale):
        return covariance * scale[0] ** 2

    def precision(self, covariance, mean):
        k, d = mean.shape
        variance = jnp.broadcast_to(covariance, (k,))
        return -0.5 / variance[:, None], mean / variance[:, None], d * jnp.log(variance)

    def smallest(self, covariance, k):
        return jnp.broadcast_to(covariance, (k,))

    def dense(self, covariance, k, d):
        return jnp.broadcast_to(covariance, (k,))[:, None, None] * jnp.eye(d, dtype=covariance.dtype)


@pytree
class Spherical(Spheres):
    """One variance per component, [K] (mclust's VII)."""

    def estimate(self, scatter, count, d, floor, old):
        return jnp.maximum(scatter[:, 0] / d, floor)
