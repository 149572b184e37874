"""The E-step block by block: never an array of N rows beside the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.blocks import block_size_near, map_over_blocks, sum_over_blocks
from jaxem.model import EStep, Model, UnsupportedError, num_examples, pytree, static
from jaxem.wrappers.base import Wrapper

# A block's temporaries should stay in the second- or third-level cache; below this many rows, overhead wins.
_CACHE_BYTES = 7 * 2**20
_SMALLEST_BLOCK = 2**10
# A product in float32 over more rows loses digits.
_LARGEST_BLOCK = 2**16


@pytree
class Chunked(Wrapper):
    """The same model with its E-step computed over blocks of examples, the statistics of each row rebuilt per block.

    Memory is that of one block whatever N is, and sums are carried from block to block with compensation: float32
    counts stay right past 16 777 216. Any block size gives the same result; a number of rows it does not divide is
    handled without padding. block_size: rows per block; None chooses one for which a block's statistics stay in the
    cache, and which divides the number of rows where it can (a third faster).
    Raises UnsupportedError for a model whose E-step is not a sum over examples, ValueError for a block below 1 row.
    """

    model: Model
    block_size: int | None = static(default=None)

    def __post_init__(self):
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size must be at least 1; got {self.block_size}")
        if isinstance(self.model, Model) and not self.model.additive:
            raise UnsupportedError(f"the E-step of {type(self.model).__name__} is not a sum over examples: not Chunked")

    def calibrate(self, data, weights=None) -> Chunked:
        return Chunked(self.model.calibrate(data, weights), self.block_size)

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.model.sweepable

    def with_components(self, num_components: int) -> Chunked:
        return Chunked(self.model.with_components(num_components), self.block_size)

    def explicit(self) -> Model:
        inner = self.model.explicit()
        return self if inner is self.model else inner  # which keeps q of every example, and cannot be cut

    def prepare(self, data) -> Any:
        """Nothing yet: the statistics of each row are made where they are used."""
        return data

    def compress(self, data, weights=None) -> Any:
        return data, weights

    def e_step(self, params, data, weights=None) -> EStep:
        self.check_divisible(data)

        def term(block: Any, block_weights: jax.Array | None) -> EStep:
            return self.model.e_step(params, self.model.prepare(block), block_weights)

        dtype = jnp.result_type(*(leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)))
        return sum_over_blocks(term, data, weights, self._rows(data), dtype)

    def log_likelihood(self, params, data):
        return self._by_blocks(data, lambda model, block: model.log_likelihood(params, block))

    def posterior(self, params, data):
        return self._by_blocks(data, lambda model, block: model.posterior(params, block))

    def predict(self, params, data):
        return self._by_blocks(data, lambda model, block: model.predict(params, block))

    def _by_blocks(self, data: Any, f: Callable[[Model, Any], Any]) -> Any:
        self.check_divisible(data)
        model = self.model.calibrate(data)
        return map_over_blocks(lambda block: f(model, block), data, self._rows(data))

    def _rows(self, data: Any) -> int:
        """Rows per block: as given, or as many as keep statistics and three rows of K numbers in the cache."""
        n = num_examples(data)
        if self.block_size is not None:
            return min(self.block_size, n)
        row = jax.eval_shape(lambda d: self.model.prepare(jax.tree.map(lambda a: a[:1], d)), data)
        per_row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
        per_row += 3 * self.model.num_components * 4
        target = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, _CACHE_BYTES // max(per_row, 1)))
        return block_size_near(n, target)
