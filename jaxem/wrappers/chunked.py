"""The E-step block by block: never an array of N rows beside the data, unless it is worth its memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxem import programs
from jaxem.blocks import block_size_near, map_over_blocks, sum_over_blocks
from jaxem.cost import free_bytes, nbytes, numbers_written, peak_bytes, shapes
from jaxem.model import EStep, Model, Prepared, UnsupportedError, num_examples, pytree, static
from jaxem.wrappers.base import Wrapper

# Without a budget: this part of what the device says is free, or so many bytes where it says nothing (a CPU).
_SHARE = 4
_UNKNOWN_MEMORY = 2**28
# On a CPU a block and its temporaries (counted too high) should stay in the cache; below this many rows, overhead wins.
# Time of an iteration over that with 4 000 rows a block (3 MB), 64 diagonal Gaussians of 16 features, float32, 2 cores
# that share 32 MB of third-level cache with others: 2 000 rows 1.1, 8 000 to 16 000 rows 1.3 to 1.4, and 2.5 to 4 where
# the others are busy.
_CACHE_BYTES = 3 * 2**20
_SMALLEST_BLOCK = 2**10
# A product in float32 over more rows loses digits.
_LARGEST_BLOCK = 2**16
# Costs per row are counted on so many rows, so that what does not depend on N counts little.
_PROBE = 2**12
# Reading a number of T from memory takes as long as about three operations on numbers in the cache. Counted per number
# of T, and time of an E-step with T rebuilt over that with T kept, 2 CPU cores, float32, 100 000 rows, K = 8:
#   diagonal Gaussian             2.5    1.0 … 1.1      rebuilt: a tie, and T is twice the data
#   full Gaussian, Student t      3.5 … 3.9    1.05 (D = 2), 1.1 (D = 8), 1.5 (D = 16), 3 (D = 64)
#   categorical, Bernoulli        7      1.1, 1.3
#   gamma, Poisson, multinomial   26, 57, 66   5.6, 7.5, 4.4 (logarithms)
_READING = 3


@pytree
class Chunked(Wrapper):
    """The same model with its E-step computed over blocks of examples, in a bounded amount of memory.

    Sums are carried from block to block with compensation: float32 counts stay right past 16 777 216. Any block size
    gives the same result; a number of rows it does not divide is handled without padding.

    memory: bytes for everything beyond the data: the temporaries of a block and, if they are kept, the statistics T(x) of
    all rows. By default a quarter of what the device reports as free, and 256 MB where it reports nothing. It is the
    memory of one lane: lanes that are stepped at once (starts, data sets, `jax.vmap`) multiply it.
    block_size: rows per block; None takes as many as fit into the memory, no more than a processor's cache holds, and a
    number that divides N where it can (a third faster).
    keep: whether T(x) of all rows is kept between iterations or rebuilt block by block; None keeps it where it takes
    half of the memory or less and costs more to make than to read (not that of a diagonal Gaussian). Statistics that are no
    `Prepared`, or that depend on which rows are together (missing cells by their patterns), are always rebuilt; a model
    that needs less than the rows (moments) keeps those in any case.
    Raises UnsupportedError for a model whose E-step is not a sum over examples, ValueError for a block below 1 row or a
    budget below 1 byte.
    """

    model: Model
    block_size: int | None = static(default=None)
    memory: int | None = static(default=None)
    keep: bool | None = static(default=None)

    def __post_init__(self):
        for name, unit in (("block_size", "row"), ("memory", "byte")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 {unit}; got {value}")
        if isinstance(self.model, Model) and not self.model.additive:
            raise UnsupportedError(f"the E-step of {type(self.model).__name__} is not a sum over examples: not Chunked")

    def calibrate(self, data, weights=None) -> Chunked:
        return dataclasses.replace(self, model=self.model.calibrate(data, weights))

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.model.sweepable

    def with_components(self, num_components: int) -> Chunked:
        return dataclasses.replace(self, model=self.model.with_components(num_components))

    def explicit(self) -> Model:
        inner = self.model.explicit()
        return self if inner is self.model else inner  # which keeps q of every example, and cannot be cut

    def prepare(self, data) -> Any:
        """T(x) of all rows, made block by block, where it is kept; else nothing yet: it is made where it is used."""
        if not self._keeps(data):
            return data
        return map_over_blocks(self.model.prepare, data, self._rows(_made, data))

    def compress(self, data, weights=None) -> Any:
        compressed = jax.eval_shape(self.model.compress, data, weights)[0]
        if num_examples(compressed) < num_examples(data):
            return self.model.compress(data, weights)
        return self.prepare(data), weights

    def e_step(self, params, data, weights=None) -> EStep:
        self.check_divisible(data)

        def term(block: Any, block_weights: jax.Array | None) -> EStep:
            return _e_step(self.model, params, block, block_weights)

        rows = self._rows(_e_step, data, params, weights)
        dtype = jnp.result_type(*(leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)))
        return sum_over_blocks(term, data, weights, rows, dtype)

    @programs.method
    def log_likelihood(self, params, data):
        return self._by_blocks(lambda model, params, block: model.log_likelihood(params, block), params, data)

    @programs.method
    def posterior(self, params, data):
        return self._by_blocks(lambda model, params, block: model.posterior(params, block), params, data)

    @programs.method
    def predict(self, params, data):
        return self._by_blocks(lambda model, params, block: model.predict(params, block), params, data)

    def _by_blocks(self, f: Callable[[Model, Any, Any], Any], params: Any, data: Any) -> Any:
        self.check_divisible(data)
        model = self.model if isinstance(data, Prepared) else self.model.calibrate(data)
        rows = dataclasses.replace(self, model=model)._rows(lambda m, p, block, _: f(m, p, block), data, params)
        return map_over_blocks(lambda block: f(model, params, block), data, rows)

    def rows_per_block(self, data: Any) -> int:
        """How many rows a block of these data has, as far as can be said without parameters."""

        def making(model: Model, params: Any, block: Any, weights: Any) -> Any:
            return _made(model, params, block, weights), jnp.zeros((num_examples(block), 4 * model.num_components))

        return self._rows(making, data)

    def _keeps(self, data: Any) -> bool:
        """Whether the statistics of all rows are kept: as asked, or where they fit and are worth it."""
        n = num_examples(data)
        if self.keep is False or isinstance(data, Prepared):
            return False
        made = jax.eval_shape(self.model.prepare, data)
        if not isinstance(made, Prepared) or any(leaf.shape[:1] != (n,) for leaf in jax.tree.leaves(made)):
            return False
        # What is made of one row must be made the same way as what is made of all: not sorted by patterns of missing cells.
        if jax.tree.structure(made) != jax.tree.structure(jax.eval_shape(self.model.prepare, shapes(data, 1))):
            return False
        if self.keep:
            return True
        probe = min(n, _PROBE)
        count = sum(leaf.size for leaf in jax.tree.leaves(made)) / n
        if numbers_written(_made, shapes(self.model), None, shapes(data, probe), None) < _READING * count * probe:
            return False
        # Half of the budget: the other half is for blocks, and for the copy that joining a last, shorter block makes.
        return 2 * nbytes(made) <= self._budget()

    def _budget(self) -> int:
        if self.memory is not None:
            return self.memory
        free = free_bytes()
        return _UNKNOWN_MEMORY if free is None else free // _SHARE

    def _rows(self, f: Callable[..., Any], data: Any, params: Any = None, weights: Any = None) -> int:
        """Rows per block for ``f(model, params, block, weights)``: as given, or as many as there is room for."""
        n = num_examples(data)
        if self.block_size is not None:
            return min(self.block_size, n)
        probe = min(n, _PROBE)
        block = shapes((data, weights), probe)
        per_row = max(1, peak_bytes(f, shapes(self.model), shapes(params), *block) / probe)
        kept = nbytes(data) if isinstance(data, Prepared) else 0
        budget = self._budget()
        room = budget - kept if kept < budget else budget  # kept although it does not fit: because it was asked for
        # A third less, because a size that divides N may be half as large again.
        fits = int(room / per_row * 2 / 3)
        if jax.default_backend() == "cpu":
            in_cache = int(_CACHE_BYTES / (per_row + nbytes(block) / probe))
            fits = min(fits, max(_SMALLEST_BLOCK, in_cache))
        return block_size_near(n, max(1, min(fits, _LARGEST_BLOCK)))


def _e_step(model: Model, params: Any, block: Any, weights: Any) -> EStep:
    return model.e_step(params, _made(model, params, block, weights), weights)


def _made(model: Model, params: Any, block: Any, weights: Any) -> Any:
    """T(x) of a block, unless it is made already."""
    return block if isinstance(block, Prepared) else model.prepare(block)
