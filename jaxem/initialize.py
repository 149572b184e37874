"""Where a fit starts: responsibilities from distances or from chance, on the device, weighted, one key each.

A strategy sees coordinates in which distance makes sense (`Family.features`) and knows no model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import pytree, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


# Up to so many keys, random numbers are drawn for one key after the other.
_FEW_KEYS = 2**10


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


def split_keys(key: Array, num: int) -> Array:
    """``jax.random.split(key, num)``, in a program that compiles in a third of the time.

    The two are equal bit for bit where the generator is JAX's default one (``jax_threefry_partitionable``).
    """
    if num > _FEW_KEYS:
        return jax.random.split(key, num)
    return jax.lax.map(lambda i: jax.random.fold_in(key, i), jnp.arange(num, dtype=jnp.uint32))


@functools.cache
def _uniform(count: int, dtype: Any) -> Callable[[Array], Array]:
    """A function from a key to ``count`` uniform numbers.

    A few keys are served one after the other, not side by side: the compiler turns the rounds of the generator into
    vector code, which takes it longer the more numbers there are.
    """

    @jax.custom_batching.custom_vmap
    def draw(key: Array) -> Array:
        return jax.random.uniform(key, (count,), dtype)

    @draw.def_vmap
    def _(axis_size: int, in_batched: list[bool], key: Array) -> tuple[Array, bool]:
        if not in_batched[0]:
            return draw(key), False
        return (jax.lax.map(draw, key) if axis_size <= _FEW_KEYS else jax.vmap(draw.fun)(key)), True

    return draw


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
        uniform = _uniform(-(-k // 8) * 8, features.dtype)(key)[:k]

        def add(nearest: Array, u: Array) -> tuple[Array, Array]:
            # Before the first centre all distances are infinite, and the rows are drawn by weight, as where all are 0.
            potential = weights * nearest
            total = jnp.sum(potential)
            potential = jnp.where((total > 0) & (total < jnp.inf), potential, weights)
            center = features[_pick(u, potential)]
            return jnp.minimum(nearest, _squared_distance(features, center)), center

        _, centers = jax.lax.scan(add, jnp.full_like(weights, jnp.inf), uniform)
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
