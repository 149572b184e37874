"""Rotating and reading loadings: a factor model is the same under z → Tᵀ z, so the loadings are turned to be simple.

    jaxem.rotation.varimax(result.params.loadings).loadings

Rotated loadings are Λ T. Of an orthogonal T the factors stay independent; of an oblique one they have the covariance
(Tᵀ T)⁻¹, with ones on its diagonal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import pytree
from jaxem.models.factor_analysis import FactorParams

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# More sweeps than this were never seen; a criterion that is flat in some direction may not settle.
_MOST_SWEEPS = 2000


@pytree
class Rotation:
    """loadings: Λ T, [D, L]. rotation: T, [L, L]. factor_covariance: of the rotated factors, (Tᵀ T)⁻¹, [L, L]."""

    loadings: Float[Array, "D L"]
    rotation: Float[Array, "L L"]
    factor_covariance: Float[Array, "L L"]


def varimax(loadings: Float[Array, "D L"], normalize: bool = True) -> Rotation:
    """The orthogonal rotation with the largest variance of the squared loadings within the factors.

    Maximizes ``Σ_l [mean_d λ_dl⁴ − (mean_d λ_dl²)²]`` by T ← the orthogonal matrix nearest to the criterion's gradient.
    normalize: Kaiser's, every feature counts alike whatever its communality. Signs and order of the factors are free.
    Raises ValueError for loadings that are not a matrix (Kaiser 1958).
    """
    loadings = _matrix(loadings)
    factors = loadings.shape[1]
    length = jnp.sqrt(jnp.sum(loadings**2, axis=1, keepdims=True))
    unit = loadings / jnp.where(length > 0, length, 1) if normalize else loadings
    tolerance = 4 * jnp.finfo(unit.dtype).eps

    def sweep(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        rotation, _, before, count = carry
        turned = dot(unit, rotation)
        gradient = dot(unit.T, turned**3 - turned * jnp.mean(turned**2, axis=0))
        left, singular, right = jnp.linalg.svd(gradient)
        return dot(left, right), before, jnp.sum(singular), count + 1

    def rising(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, before, now, count = carry
        return (count < 2) | ((now > before * (1 + tolerance)) & (count < _MOST_SWEEPS))

    zero = jnp.zeros((), unit.dtype)
    rotation, *_ = jax.lax.while_loop(rising, sweep, (jnp.eye(factors, dtype=unit.dtype), zero, zero, jnp.int32(0)))
    return Rotation(dot(loadings, rotation), rotation, jnp.eye(factors, dtype=unit.dtype))


def promax(loadings: Float[Array, "D L"], power: float = 4.0, normalize: bool = True) -> Rotation:
    """The oblique rotation that comes nearest to the varimax loadings raised to a power.

    T is the least squares solution of Λ_v T ≈ sign(Λ_v) |Λ_v|^power, scaled so that the factors have variance 1.
    normalize: Kaiser's, in the varimax step. Raises ValueError for a power of 1 or less (Hendrickson & White 1964).
    """
    if isinstance(power, (int, float)) and not power > 1:
        raise ValueError(f"power must be above 1; got {power}")
    straight = varimax(loadings, normalize)
    target = straight.loadings * jnp.abs(straight.loadings) ** (power - 1)
    oblique = jnp.linalg.lstsq(straight.loadings, target)[0]
    oblique = oblique * jnp.sqrt(jnp.diagonal(jnp.linalg.inv(dot(oblique.T, oblique))))
    rotation = dot(straight.rotation, oblique)
    covariance = jnp.linalg.inv(dot(oblique.T, oblique))
    return Rotation(dot(straight.loadings, oblique), rotation, covariance)


def communalities(params: FactorParams) -> Float[Array, " D"]:
    """The share of each feature's variance that the factors explain, ``Σ_l λ_dl² / (Σ_l λ_dl² + ψ_d)``.

    Rotations leave it as it is; 1 minus it is the feature's uniqueness.
    """
    explained = jnp.sum(params.loadings**2, axis=-1)
    noise = params.noise if params.noise.ndim == explained.ndim else params.noise[..., None]
    return explained / (explained + noise)


def _matrix(loadings: Array) -> Array:
    loadings = jnp.asarray(loadings)
    if loadings.ndim != 2:
        raise ValueError(f"loadings need features as rows and factors as columns, [D, L]; got shape {loadings.shape}")
    return loadings
