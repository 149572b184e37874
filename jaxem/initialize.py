"""Where a fit starts: responsibilities from distances or from chance, on the device, weighted, one key each.

A strategy sees coordinates in which distance makes sense (`Family.features`) and knows no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import pytree, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Start:
    """A strategy: responsibilities of K components for the rows, all of them among the components in use.

    ``used`` is [K]; the first components are in use, and the others get nothing (how one program serves several K).
    """

    def responsibilities(
        self,
        key: Array,
        features: Float[Array, "N F"],
        weights: Float[Array, " N"],
        used: Bool[Array, " K"],
    ) -> Float[Array, "N K"]:
        raise unsupported(self, "responsibilities", "a random start")


def _pick(uniform: Float[Array, ""], weights: Float[Array, " N"]) -> Int[Array, ""]:
    """One row, with probability proportional to its weight, from a uniform number: the inverse of the running sum."""
    cumulative = jnp.cumsum(weights)
    # Of (0, total], so that a row of weight 0 at the front is never drawn.
    level = cumulative[-1] * (1 - uniform)
    return jnp.minimum(jnp.sum(cumulative < level), weights.shape[0] - 1)


def _squared_distance(features: Float[Array, "N F"], point: Float[Array, " F"]) -> Float[Array, " N"]:
    return jnp.sum((features - point) ** 2, axis=-1)


def _nearest(
    features: Float[Array, "N F"], centers: Float[Array, "K F"], used: Bool[Array, " K"]
) -> Float[Array, "N K"]:
    """All of a row's responsibility to the nearest centre in use."""
    distance = jnp.where(used, jnp.sum(centers**2, axis=-1), jnp.inf) - 2 * dot(features, centers.T)
    return jax.nn.one_hot(jnp.argmin(distance, axis=-1), centers.shape[0], dtype=features.dtype)


@pytree
class KMeansPlusPlus(Start):
    """Centres drawn one after another with probability ∝ squared distance to the nearest one before.

    Each row then belongs to its nearest centre (Arthur & Vassilvitskii 2007). Rows count by their weights; when all
    distances are 0 (fewer distinct rows than components) the rest is drawn by weight alone.
    """

    def responsibilities(self, key, features, weights, used):
        k = used.shape[0]
        # A multiple of eight: the generator compiles three times as fast for it.
        uniform = jax.random.uniform(key, (-(-k // 8) * 8,), features.dtype)[:k]
        start = features[_pick(uniform[0], weights)]
        centers = jnp.zeros((k, features.shape[1]), features.dtype).at[0].set(start)

        def add(carry, args):
            centers, nearest = carry
            i, u = args
            potential = weights * nearest
            potential = jnp.where(jnp.sum(potential) > 0, potential, weights)
            center = features[_pick(u, potential)]
            nearest = jnp.minimum(nearest, _squared_distance(features, center))
            return (centers.at[i].set(center), nearest), None

        carry = (centers, _squared_distance(features, start))
        (centers, _), _ = jax.lax.scan(add, carry, (jnp.arange(1, k), uniform[1:]))
        return _nearest(features, centers, used)


@pytree
class RandomPoints(Start):
    """K different rows as centres, drawn by weight; each row belongs to the nearest centre."""

    def responsibilities(self, key, features, weights, used):
        # The Gumbel top-k: the k largest perturbed log-weights are a draw without replacement.
        noise = jax.random.gumbel(key, weights.shape, weights.dtype)
        _, rows = jax.lax.top_k(jnp.log(weights) + noise, used.shape[0])
        return _nearest(features, features[rows], used)


@pytree
class RandomResponsibilities(Start):
    """Independent Dirichlet responsibilities for every row.

    concentration: 1 is uniform on the simplex, which starts all components near the mean of the data, a flat start that
    EM leaves only slowly; the default 0.1 gives most of a row to one component.
    """

    concentration: float = 0.1

    def __post_init__(self):
        if isinstance(self.concentration, (int, float)) and not self.concentration > 0:
            raise ValueError(f"concentration must be positive; got {self.concentration}")

    def responsibilities(self, key, features, weights, used):
        # A Dirichlet draw is a normalized Gamma draw; logarithms, because small concentrations underflow.
        shape = (features.shape[0], used.shape[0])
        log_gamma = jax.random.loggamma(key, jnp.asarray(self.concentration, features.dtype), shape, features.dtype)
        return jax.nn.softmax(jnp.where(used, log_gamma, -jnp.inf), axis=-1)


@pytree
class Segments(Start):
    """Rows in the order of time, cut into K pieces one after another: a start for chains that only move on.

    position: of every row in its sequence, from 0 at the first to below 1, [N]. All sequences are cut at the same
    positions, which are drawn at random (see `jaxem.left_to_right`).
    """

    position: Float[Array, " N"]

    def responsibilities(self, key, features, weights, used):
        # Gamma gaps of shape 2: pieces as long as one another on average, seldom so short that no row is in one.
        gaps = jnp.where(used, jax.random.gamma(key, 2.0, used.shape, features.dtype), 0)
        ends = jnp.cumsum(gaps) / jnp.sum(gaps)
        piece = jnp.sum(self.position.astype(features.dtype)[:, None] >= ends[:-1], axis=1)
        return jax.nn.one_hot(jnp.minimum(piece, jnp.sum(used) - 1), used.shape[0], dtype=features.dtype)
