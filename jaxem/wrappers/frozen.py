"""Parameters held fixed, exactly, by the M-step itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import hold
from jaxem.model import Model, leaf_name, pytree, static
from jaxem.wrappers.base import Wrapper


@pytree
class _Frozen(Wrapper):
    model: Model
    # (name, True or a tuple of one bool per component), sorted: part of the program.
    leaves: tuple[tuple[str, bool | tuple[bool, ...]], ...] = static()
    values: Any = None

    def calibrate(self, data, weights=None) -> _Frozen:
        return _Frozen(self.model.calibrate(data, weights), self.leaves, self.values)

    def init(self, key, data, weights=None, strategy=None, used=None) -> Any:
        """A start of the model, with the given values in the frozen places."""
        params = self.model.init(key, data, weights, strategy, used)
        masks = dict(self.leaves)

        def put(path: Any, leaf: jax.Array) -> jax.Array:
            value = (self.values or {}).get(leaf_name(path))
            if value is None:
                return leaf
            return hold(masks[leaf_name(path)], leaf, jnp.broadcast_to(jnp.asarray(value, leaf.dtype), leaf.shape))

        return jax.tree_util.tree_map_with_path(put, params)

    def m_step(self, params, stats, frozen=None) -> Any:
        return self.model.m_step(params, stats, {**dict(self.leaves), **(frozen or {})})

    def held(self, params) -> Any:
        masks = dict(self.leaves)

        def add(path: Any, leaf: Any, already: np.ndarray) -> np.ndarray:
            mask = np.asarray(masks.get(leaf_name(path), False))
            return already | mask.reshape(mask.shape + (1,) * (np.ndim(leaf) - mask.ndim))

        return jax.tree_util.tree_map_with_path(add, params, self.model.held(params))

    def num_free_parameters(self, params) -> int:
        count = self.model.num_free_parameters(params)
        free = jax.eval_shape(self.model.to_free, params)
        coordinates, leaves = _by_name(free), _by_name(params)
        for name, value in self.leaves:
            leaf, held = coordinates[name], np.asarray(value)
            if held.ndim == 0:
                count -= leaf.size
            elif leaf.shape[:1] == (self.num_components,) and (leaf.ndim > 1 or np.ndim(leaves[name]) == 1):
                count -= int(held.sum()) * leaf.size // self.num_components
            else:
                count -= self._determined(name, held, free)
        return count

    def _determined(self, name: str, held: np.ndarray, free: Any) -> int:
        """How many coordinates of a leaf the held components determine, where not each has its own (weights that sum
        to 1, say): the rank of the map from the coordinates to the held values."""
        rng = np.random.default_rng(0)
        # Of every floating-point type this is right at almost every point.
        place = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), free)

        def values(coordinates: jax.Array) -> jax.Array:
            moved = jax.tree_util.tree_map_with_path(
                lambda path, leaf: coordinates if leaf_name(path) == name else jnp.asarray(leaf, coordinates.dtype),
                place,
            )
            return _by_name(self.model.from_free(moved))[name][np.flatnonzero(held)]

        at = jnp.asarray(_by_name(place)[name])
        jacobian = np.asarray(jax.jacfwd(values)(at)).reshape(-1, at.size)
        return int(np.linalg.matrix_rank(jacobian, tol=1e-5 * np.max(np.abs(jacobian), initial=1e-30)))


def _by_name(tree: Any) -> dict[str, Any]:
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def Frozen(model: Model, leaves: Iterable[str] | Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Model:
    """The model with parameters held at given values, or at those they start from.

    leaves: names of parameter leaves (``["mean"]``), or a mapping from names to True or to one bool per component
    (``{"mean": [True, False]}``). The M-step maximizes over the rest given the frozen ones (a covariance about a frozen
    mean is not the covariance about the estimated one). values: name → array, shaped like the leaf, put into every
    start; without it the values are those of the start (see ``fit(..., params=...)``).
    Raises ValueError, when the model is built, for anything the M-step cannot honor; nothing is ever ignored.
    """
    if isinstance(leaves, str):
        raise ValueError(f"frozen leaves are a list of names or a mapping; got the string {leaves!r}")
    given = dict(leaves) if isinstance(leaves, Mapping) else dict.fromkeys(leaves, True)
    can = sorted(model.freezable)
    accepted: list[tuple[str, bool | tuple[bool, ...]]] = []
    for name, value in sorted(given.items()):
        if name not in model.freezable:
            raise ValueError(f"the M-step cannot hold {name!r} fixed; it can hold {can or 'nothing'}")
        mask = np.asarray(value)
        if mask.dtype != bool or mask.ndim > 1:
            raise ValueError(f"frozen {name!r} takes True or one bool per component; got {value!r}")
        if mask.ndim == 0:
            if mask:
                accepted.append((name, True))
        elif name not in model.freezable_by_component:
            raise ValueError(f"{name!r} is shared by all components: it can be frozen as a whole only, not by a mask")
        elif len(mask) != model.num_components:
            raise ValueError(f"frozen {name!r} needs {model.num_components} bools, one per component; got {len(mask)}")
        elif mask.any():
            accepted.append((name, tuple(bool(m) for m in mask)))
    stray = sorted(set(values or {}) - {name for name, _ in accepted})
    if stray:
        raise ValueError(f"values are given for {', '.join(stray)}, which nothing holds fixed")
    return _Frozen(model, tuple(accepted), dict(values) if values else None) if accepted else model
