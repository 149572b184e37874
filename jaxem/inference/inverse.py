"""The inverse of an information matrix that may be singular, or none at all; numpy in float64, on the host."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

# A direction that counting parameters says is redundant is one if its curvature is less than this.
_FLAT = 0.05
# Where the gradient is not 0, curvature is uncertain by about this share of the distance from the optimum.
_BENT = 0.1
# A parameter that moves by more than this share along directions without information is not identified.
_SEEN = 1e-4


@dataclasses.dataclass(frozen=True)
class Inverse:
    """covariance: of the directions with information. lost: the others, [U, R], in units of ``scale``.

    flat, downhill: how many have none, or negative information. distance: of the optimum, in standard errors. seen:
    what share of a parameter's movement may be along lost directions, for the rounding of these.
    """

    covariance: Float[np.ndarray, "U U"]
    scale: Float[np.ndarray, " U"]
    lost: Float[np.ndarray, "U R"]
    flat: int
    downhill: int
    distance: float
    seen: float = _SEEN

    def sees(self, derivative: Float[np.ndarray, "M U"]) -> Bool[np.ndarray, " M"]:
        """Which functions of the coordinates, of these derivatives, have a variance."""
        rows = derivative / self.scale
        size = np.max(np.abs(rows), axis=1, keepdims=True, initial=0.0)
        rows = rows / np.where(size > 0, size, 1)
        return np.linalg.norm(rows @ self.lost, axis=1) <= self.seen * np.linalg.norm(rows, axis=1)


def invert(
    information: Float[np.ndarray, "U U"], gradient: Float[np.ndarray, " U"], dtype: Any, redundant: int = 0
) -> Inverse:
    """Invert in units in which the diagonal is 1, so that the units of the data do not matter.

    dtype: in which the numbers given were computed. redundant: how many directions are known to have no information.
    """
    size = len(gradient)
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    diagonal = np.abs(np.diagonal(information))
    # What has this little information belongs to a component that is as good as not there.
    scale = np.sqrt(np.where(diagonal > tiny**0.5, diagonal, 1))
    if not size or not np.all(np.isfinite(information)):
        nothing = np.full((size, size), np.nan)
        return Inverse(nothing, scale, np.eye(size), size, 0, float("nan"))
    values, vectors = np.linalg.eigh(information / scale[:, None] / scale)
    slope = vectors.T @ (gradient / scale)

    order = np.argsort(np.abs(values))
    known = np.zeros(size, bool)
    known[order[:redundant]] = np.abs(values[order[:redundant]]) < _FLAT
    least = max(size, 4) * eps**0.6
    sharp = ~known & (values > least)
    distance = float(np.sqrt(np.sum(slope[sharp] ** 2 / values[sharp])))

    least = max(least, _BENT * min(distance, 0.1))
    good = ~known & (values > least)
    inverse = vectors[:, good] / values[good] @ vectors[:, good].T
    return Inverse(
        covariance=inverse / scale[:, None] / scale,
        scale=scale,
        lost=vectors[:, ~good],
        flat=int(np.sum(~good)),
        downhill=int(np.sum(~known & (values < -least))),
        distance=distance,
        seen=max(_SEEN, eps**0.5, _BENT * min(distance, 0.1)),
    )
