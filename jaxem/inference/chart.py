"""Coordinates of the parameters in which everything can move: what information and rates are measured in.

The free coordinates v of `Model.to_free` may hold more than can move: a frozen parameter, a mixing weight of exactly 0,
an initial state that is certain. A chart has coordinates u of its own, 0 at the parameters, with as many as can move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxem.free import coordinates
from jaxem.model import Model, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@pytree
class Chart:
    """``v(u) = v₀ + tangent · u``, bent so that held parameters keep their values to third order.

    tangent: [P, U]. cotangent: its left inverse, [U, P]. held: the entries of the natural parameters, as one vector,
    that are held and could move. correction: [P, H], a right inverse of their derivatives by v. fixed: the entries that
    lie on a boundary, where no v moves them.
    """

    tangent: Float[Array, "P U"]
    cotangent: Float[Array, "U P"]
    held: Int[Array, " H"]
    correction: Float[Array, "P H"]
    fixed: Int[Array, " F"]

    @property
    def size(self) -> int:
        return self.tangent.shape[1]

    def back(self, model: Model, params: Any) -> Callable[[Float[Array, " U"]], Any]:
        """The map from u to parameters; u = 0 are ``params``."""
        origin, from_vector = coordinates(model, params)
        given, unravel = ravel_pytree(params)

        def back(u: Float[Array, " U"]) -> Any:
            v = origin + self.tangent @ u
            if self.held.size:
                v = v - self.correction @ (ravel_pytree(from_vector(v))[0][self.held] - given[self.held])
            moved = from_vector(v)
            if not self.fixed.size:
                return moved
            # Exactly: a coordinate says 0 by a number so small that its square is out of range.
            return unravel(ravel_pytree(moved)[0].at[self.fixed].set(given[self.fixed]))

        return back

    def to(self, model: Model, params: Any, moved: Any) -> Float[Array, " U"]:
        """The coordinates of other parameters near ``params``, to first order."""
        away = coordinates(model, moved)[0] - coordinates(model, params)[0]
        return self.cotangent @ away


def chart_at(
    model: Model, params: Any, data: Any, weights: Any = None
) -> tuple[Model, Chart, Float[np.ndarray, "M P"]]:
    """The model calibrated to the data, the chart at ``params``, and the derivatives of these by the free coordinates.

    On the host: how many directions there are to move in depends on the values. Raises UnsupportedError where the model
    does not define `Model.to_free`.
    """
    model, derivative = _derivative(model, params, data, weights)
    derivative = np.asarray(derivative, float)
    held = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model.held(params))])
    dtype = ravel_pytree(params)[0].dtype
    finfo = jnp.finfo(dtype)
    # At a boundary the coordinates are as low as the floating-point type goes, and so are the derivatives there.
    alive = np.max(np.abs(derivative), axis=1, initial=0.0) > float(finfo.tiny) ** 0.75
    derivative = np.where(alive[:, None], derivative, 0)
    tangent, cotangent, correction = _tangents(derivative, held & alive, float(finfo.eps))
    chart = Chart(
        tangent=jnp.asarray(tangent, dtype),
        cotangent=jnp.asarray(cotangent, dtype),
        held=jnp.asarray(np.flatnonzero(held & alive)),
        correction=jnp.asarray(correction, dtype),
        fixed=jnp.asarray(np.flatnonzero(~alive)),
    )
    return model, chart, derivative


@jax.jit
def _derivative(model: Model, params: Any, data: Any, weights: Any) -> tuple[Model, Float[Array, "M P"]]:
    model = model.calibrate(data, weights)
    origin, from_vector = coordinates(model, params)
    return model, jax.jacfwd(lambda v: ravel_pytree(from_vector(v))[0])(origin)


def _tangents(derivative: np.ndarray, held: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions that move some parameter and, to first order, no held one; see `Chart`."""
    p = derivative.shape[1]
    reach = np.max(np.abs(derivative), axis=1, keepdims=True, initial=0.0)
    rows = derivative / np.where(reach > 0, reach, 1)
    size = np.max(np.abs(rows), axis=0, initial=0.0)
    moving = np.flatnonzero(size > eps)
    # Rows and columns of size 1: what is a null direction must not depend on the units of the data.
    rows, size = rows[:, moving] / size[moving], size[moving]
    basis, constraints = _split(rows, eps)[0], rows[held]
    basis = basis @ _split(constraints @ basis, eps)[1]
    correction = np.zeros((p, len(constraints)))
    inverse = np.linalg.pinv(constraints, rcond=_cut(eps, len(moving))) if constraints.size else constraints.T
    correction[moving] = inverse / size[:, None] / reach[held, 0]

    share = np.sum(basis**2, axis=1)
    tangent, cotangent = np.zeros((p, basis.shape[1])), np.zeros((basis.shape[1], p))
    if np.all(np.minimum(share, np.abs(1 - share)) < 1e-6):  # whole coordinates: they keep their meaning
        chosen = moving[share > 0.5]
        tangent[chosen, np.arange(len(chosen))] = cotangent[np.arange(len(chosen)), chosen] = 1
    else:
        tangent[moving], cotangent[:, moving] = basis / size[:, None], basis.T * size
    return tangent, cotangent, correction


def _cut(eps: float, size: int) -> float:
    return max(1, size) * eps**0.75


def _split(rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the directions that the rows see, and of those that they do not."""
    if not rows.size:
        return np.zeros((rows.shape[1], 0)), np.eye(rows.shape[1])
    _, values, vectors = np.linalg.svd(np.linalg.qr(rows, mode="r"))
    rank = int(np.sum(values > _cut(eps, rows.shape[1]) * np.max(values, initial=0.0)))
    return vectors[:rank].T, vectors[rank:].T
