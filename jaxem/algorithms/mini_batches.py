"""Examples dealt into mini-batches: every one once, whatever their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.model import Model, UnsupportedError, float_type, num_examples

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


def check_batch_size(batch_size: Any) -> None:
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise ValueError(f"batch_size must be a whole number, at least 1, or None; got {batch_size!r}")


def check_divisible(model: Model, data: Any) -> None:
    """Raise UnsupportedError where the data cannot be cut into examples."""
    model.check_divisible(data)
    if num_examples(data) == 1:
        raise UnsupportedError(
            f"{type(model).__name__} compresses these data to their moments, one example: a step of EM() costs no more "
            "than a mini-batch would"
        )


def num_mini_batches(n: int, batch_size: int | None) -> int:
    return 1 if batch_size is None else -(-n // batch_size)


def deal(key: Array | None, n: int, batch_size: int | None) -> tuple[Int[Array, "B S"], Bool[Array, "B S"] | None]:
    """The examples of each mini-batch, at random, in sizes that differ by one at most.

    And which of them are its own: the last of some mini-batches repeats an example of another; None where none does.
    """
    num_blocks = num_mini_batches(n, batch_size)
    if num_blocks == 1:
        return jnp.arange(n)[None], None
    assert key is not None
    size = -(-n // num_blocks)
    over = num_blocks * size - n
    dealt = jax.random.permutation(key, n)
    rows = jnp.concatenate([dealt, dealt[:over]]).reshape(size, num_blocks).T
    used = (jnp.arange(num_blocks * size) < n).reshape(size, num_blocks).T
    return rows, used if over else None


def mini_batch(
    data: Any, weights: Any, rows: Int[Array, "B S"], used: Bool[Array, "B S"] | None, block: Array | int
) -> tuple[Any, Any]:
    """The examples of one mini-batch and their weights, None where all are 1."""
    if rows.shape[0] == 1:
        return data, weights
    chosen, own = jax.tree.map(lambda a: a[rows[block]], (data, weights))
    if used is None:
        return chosen, own
    return chosen, jnp.where(used[block], jnp.ones(rows.shape[1], float_type(data)) if own is None else own, 0)
