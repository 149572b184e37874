"""Parameters as one vector of free coordinates: what gradients, acceleration and standard errors move in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxem.model import Model, UnsupportedError, leaf_name

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def coordinates(model: Model, params: Any) -> tuple[Float[Array, " P"], Callable[[Float[Array, " P"]], Any]]:
    """The free coordinates of ``params`` as one vector, and the map from such vectors back to parameters.

    Raises UnsupportedError where the model does not define `Model.to_free`.
    """
    vector, unravel = ravel_pytree(model.to_free(params))
    return vector, lambda v: model.from_free(unravel(v))


class EveryName(frozenset):
    """Every name: what parameters are called is only known when they are seen."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)


def moving(model: Model, params: Any, frozen: Any) -> Array | None:
    """Which free coordinates may move when some leaves are held; None where all may. Raises ValueError for other names."""
    if not frozen:
        return None
    names = {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    stray = sorted(set(frozen) - names)
    if stray:
        raise ValueError(f"{', '.join(stray)} cannot be held: the parameters are {', '.join(sorted(names))}")
    free = model.to_free(params)
    held = jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.full(leaf.shape, leaf_name(path) in frozen), free)
    return ~ravel_pytree(held)[0]


def held_leaves(model: Model, params: Any) -> frozenset[str]:
    """The names of the leaves that the model holds fixed; raises UnsupportedError where only some components are held."""
    names = set()
    for path, mask in jax.tree_util.tree_leaves_with_path(model.held(params)):
        if np.all(mask):
            names.add(leaf_name(path))
        elif np.any(mask):
            raise UnsupportedError(f"gradients hold whole leaves only, not some components of {leaf_name(path)}")
    return frozenset(names)


def keep_leaves(names: Any, new: Any, old: Any) -> Any:
    """``new`` in the floating-point types of ``old``, with the leaves of these names as they were, to the last bit."""

    def settle(path: Any, after: Array, before: Array) -> Array:
        return before if leaf_name(path) in names else after.astype(jnp.asarray(before).dtype)

    return jax.tree_util.tree_map_with_path(settle, new, old)
