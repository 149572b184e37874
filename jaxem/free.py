"""Parameters as one vector of free coordinates: what gradients, acceleration and standard errors move in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jax.flatten_util import ravel_pytree

from jaxem.model import Model

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def coordinates(model: Model, params: Any) -> tuple[Float[Array, " P"], Callable[[Float[Array, " P"]], Any]]:
    """The free coordinates of ``params`` as one vector, and the map from such vectors back to parameters.

    Raises UnsupportedError where the model does not define `Model.to_free`.
    """
    vector, unravel = ravel_pytree(model.to_free(params))
    return vector, lambda v: model.from_free(unravel(v))
