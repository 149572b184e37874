"""A choice between two programs that stays one under vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def either(quick: jax.Array, fast: Callable[[Any], Any], always: Callable[[Any], Any], operand: Any) -> Any:
    """``fast(operand)`` where ``quick`` holds, ``always(operand)`` elsewhere; the two agree where both are right.

    `jax.lax.cond` over lanes computes both for every lane. Here all lanes go the way that is right for each of them.
    """

    @jax.custom_batching.custom_vmap
    def run(quick: jax.Array, operand: Any) -> Any:
        return jax.lax.cond(quick, fast, always, operand)

    @run.def_vmap
    def run_lanes(size: int, batched: Any, quick: jax.Array, operand: Any) -> Any:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched[1])
        all_fast, all_always = (jax.vmap(branch, in_axes=(axes,), axis_size=size) for branch in (fast, always))
        result = either(jnp.all(quick), all_fast, all_always, operand)
        return result, jax.tree.map(lambda _: True, result)

    return run(quick, operand)
