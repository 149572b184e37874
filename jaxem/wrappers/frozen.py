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

    def num_free_parameters(self, params) -> int:
        free = self.model.num_free_parameters(params)
        free_shapes = jax.eval_shape(self.model.to_free, params)
        shapes = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(free_shapes)}
        for name, value in self.leaves:
            size, held = shapes[name].size, np.asarray(value)
            if held.ndim == 0:
                free -= size
            elif shapes[name].shape[:1] == (self.num_components,):
                free -= int(held.sum()) * size // self.num_components
            else:  # K − 1 coordinates of K weights that sum to 1: one is determined as long as any is free
                free -= min(int(held.sum()), size)
        return free


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
