"""Inputs as the columns of a regression: an intercept, a common scale, and how far a step of coefficients can reach.

Coefficients that users see are in the units of the inputs; all arithmetic is done on standardized columns
``u = (1, (inputs − center)/scale)``, whose normal equations are as well conditioned as the inputs allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.linalg import add_to_diagonal, dot, factor
from jaxem.model import pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@pytree
class Design:
    """The numerical constants of the inputs, set by `calibrate_design`; without them columns are taken as they are.

    center, scale: [C]. moment: E[u uᵀ], [P, P], of the P standardized columns. radius: max_n (u_nᵀ moment⁻¹ u_n)^½.
    box: max_n |u_nj|, [P].
    """

    intercept: bool = static(default=True)
    center: Float[Array, " C"] | None = None
    scale: Float[Array, " C"] | None = None
    moment: Float[Array, "P P"] | None = None
    radius: Float[Array, ""] | None = None
    box: Float[Array, " P"] | None = None

    @property
    def num_columns(self) -> int:
        """P."""
        return self.calibrated_moment().shape[0]

    def calibrated_moment(self) -> Float[Array, "P P"]:
        if self.moment is None:
            raise _uncalibrated()
        return self.moment

    def columns(self, inputs: Array, dtype) -> Float[Array, "*N P"]:
        """u of every row."""
        inputs = inputs.astype(dtype)
        if self.center is not None and self.scale is not None:
            inputs = (inputs - self.center) / self.scale
        if not self.intercept:
            return inputs
        return jnp.concatenate([jnp.ones_like(inputs[..., :1], shape=(*inputs.shape[:-1], 1)), inputs], axis=-1)

    def standardized(self, coefficients: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
        """Coefficients of u from those of the inputs: the same linear predictor."""
        if self.center is None or self.scale is None:
            return coefficients
        if not self.intercept:
            return coefficients * self.scale
        slopes = coefficients[..., 1:]
        intercept = coefficients[..., :1] + jnp.sum(slopes * self.center, axis=-1, keepdims=True)
        return jnp.concatenate([intercept, slopes * self.scale], axis=-1)

    def in_units(self, coefficients: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
        """The inverse of `standardized`."""
        if self.center is None or self.scale is None:
            return coefficients
        if not self.intercept:
            return coefficients / self.scale
        slopes = coefficients[..., 1:] / self.scale
        intercept = coefficients[..., :1] - jnp.sum(slopes * self.center, axis=-1, keepdims=True)
        return jnp.concatenate([intercept, slopes], axis=-1)

    def size(self, coefficients: Float[Array, "*K P"]) -> Float[Array, "*K"]:
        """The root mean square of ``u · coefficients`` over the calibration rows (standardized coefficients)."""
        moment = self.calibrated_moment()
        square = jnp.einsum("...i,ij,...j->...", coefficients, moment, coefficients, precision="highest")
        positive = square > 0
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)

    def reach(self, direction: Float[Array, "*K P"]) -> Float[Array, "*K"]:
        """A bound on ``max_n |u_n · direction|`` over the calibration rows: the smaller of two.

        Cauchy–Schwarz in the metric of the moment, ``|u·δ| ≤ radius · (δᵀ moment δ)^½``, true for any positive definite
        moment; and ``|u·δ| ≤ Σ_j box_j |δ_j|``.
        """
        if self.radius is None or self.box is None:
            raise _uncalibrated()
        return jnp.minimum(self.radius * self.size(direction), dot(jnp.abs(direction), self.box))


def calibrate_design(inputs: Array, weights: Array | None, intercept: bool, dtype) -> Design:
    """The constants of a `Design` from the rows of positive weight."""
    if not intercept and inputs.shape[-1] == 0:
        raise ValueError(f"a regression without an intercept needs at least one input; got shape {inputs.shape}")
    inputs = inputs.astype(dtype)
    each = jnp.ones(inputs.shape[:1], dtype) if weights is None else weights.astype(dtype)
    # Scale first: the sum of huge or tiny weights must not leave the range of the dtype.
    each = each / jnp.max(each)
    each = each / jnp.sum(each)
    mean = dot(each, inputs)
    center = mean if intercept else jnp.zeros_like(mean)
    variance = dot(each, (inputs - center) ** 2)
    # A column that varies by no more than its rounding is constant: its size is the only scale it has.
    eps = jnp.finfo(dtype).eps
    constant = variance <= (4 * eps * jnp.abs(center)) ** 2
    size = jnp.where(center == 0, 1, jnp.abs(center))
    scale = jnp.where(constant, size, jnp.sqrt(jnp.where(constant, 1, variance)))
    columns = Design(intercept, center, scale).columns(inputs, dtype)
    p = columns.shape[-1]
    moment = add_to_diagonal(dot(columns.T * each, columns), 64 * p * eps * jnp.ones((), dtype))
    white = dot(columns, factor(moment)[1].T)
    present = each > 0
    radius = jnp.sqrt(jnp.max(jnp.where(present, jnp.sum(white**2, axis=-1), 0)))
    box = jnp.max(jnp.where(present[:, None], jnp.abs(columns), 0), axis=0)
    slack = 1 + 16 * p * eps
    return Design(intercept, center, scale, moment, slack * radius, slack * box)


def pairs(columns: Float[Array, "N P"]) -> Float[Array, "N Q"]:
    """The products u_i u_j, i ≤ j, of every row."""
    # Not columns[..., i] * columns[..., j]: XLA of JAX 0.8 evaluates that wrongly where the columns are constants.
    return jnp.concatenate([columns[..., i : i + 1] * columns[..., i:] for i in range(columns.shape[-1])], axis=-1)


def symmetric(packed: Float[Array, "*K Q"], p: int) -> Float[Array, "*K P P"]:
    """The matrices whose entries i ≤ j are the sums of `pairs`."""
    i, j = np.triu_indices(p)
    place = np.zeros((p, p), int)
    place[i, j] = place[j, i] = np.arange(len(i))
    return packed[..., place]


def _uncalibrated() -> ValueError:
    return ValueError(
        "a regression's M-step needs the range of the inputs: call model.calibrate(data) first, as fit does"
    )


def check_inputs(inputs: jax.Array | None, name: str) -> jax.Array:
    """``inputs`` as [N, C], or a clear error."""
    if inputs is None or inputs.ndim != 2:
        given = "none" if inputs is None else f"shape {inputs.shape}"
        raise ValueError(f"{name} needs inputs, [N, C], one row for every observation; got {given}")
    return inputs
