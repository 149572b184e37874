"""q as weighted points: what quadrature, importance sampling and a user's own sampler have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import pytree
from jaxem.spaces.base import possible, share_and_evidence, systematic, weighted_total

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@pytree
class Points:
    """q_n as points z_ns, leading axes [N, S], with coefficients w_n q_ns, [N, S]; rows are the examples."""

    rows: Any
    z: Any
    coefficients: Float[Array, "N S"]


def table(log_joint: Any, params: Any, rows: Any, z: Any) -> Float[Array, "N S"]:
    """log p(x_n, z_ns | params)."""
    every_point = jax.vmap(log_joint, in_axes=(None, None, 0))
    return possible(jax.vmap(every_point, in_axes=(None, 0, 0))(params, rows, z))


def infer(
    log_joint: Any, params: Any, rows: Any, z: Any, log_measure: Float[Array, "N S"], weights: Array | None
) -> tuple[Points, Float[Array, " N"]]:
    """∫ p(x, z) dz ≈ Σ_s exp(log_joint(z_s) + log_measure_s), and the posterior that the terms are."""
    terms = table(log_joint, params, rows, z) + log_measure
    coefficients, evidence = share_and_evidence(terms.T, weights)
    return Points(rows, z, coefficients.T), evidence


def expected(log_joint: Any, params: Any, points: Points) -> Float[Array, ""]:
    return weighted_total(points.coefficients, table(log_joint, params, points.rows, points.z))


def sums(statistic: Any, points: Points) -> Any:
    values = jax.vmap(jax.vmap(statistic, in_axes=(None, 0)))(points.rows, points.z)
    flat = points.coefficients.reshape(-1)

    def contract(leaf: Array) -> Array:
        leaf = leaf.astype(jnp.result_type(leaf, flat))
        return dot(flat, leaf.reshape(flat.size, -1)).reshape(leaf.shape[2:])

    return jax.tree.map(contract, values)


def thin(points: Points, num_rows: int) -> Points:
    if points.coefficients.shape[0] <= num_rows:
        return points
    rows, factor = systematic(jnp.sum(points.coefficients, axis=1), num_rows)
    chosen, z = jax.tree.map(lambda a: a[rows], (points.rows, points.z))
    return Points(chosen, z, points.coefficients[rows] * factor[:, None])


def mean_and_covariance(points: Points) -> tuple[Array, Array]:
    """E[z | x_n], [N, L], and Cov[z | x_n], [N, L, L]."""
    mean = jnp.einsum("ns,nsl->nl", points.coefficients, points.z)
    centered = points.z - mean[:, None]
    return mean, jnp.einsum("ns,nsl,nsm->nlm", points.coefficients, centered, centered)
