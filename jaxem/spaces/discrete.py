"""A latent variable with finitely many values, or several such: exact enumeration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from jaxem.linalg import dot
from jaxem.model import num_examples, pytree, static
from jaxem.spaces.base import (
    LatentSpace,
    first_row,
    possible,
    rows_of,
    share_and_evidence,
    systematic,
    trace_one,
    weighted_total,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@pytree
class Enumerated:
    """q over the Z values of z: coefficients are w_n q_n(z), [Z, N]; rows are the examples."""

    rows: Any
    coefficients: Float[Array, "Z N"]


@pytree
class Discrete(LatentSpace):
    """z is one of ``n`` values, 0 … n − 1, or a tuple of such: ``Discrete((3, 2))`` is z = (z₁, z₂), 6 values in all.

    Every value is enumerated: exact, at the price of their number. What the log joint computes from z alone is
    computed once for every value, not for every example.
    Raises ValueError for a number of values below 1.
    """

    n: int | tuple[int, ...] = static()

    def __post_init__(self):
        sizes = self.n if isinstance(self.n, (tuple, list)) else (self.n,)
        if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError(f"Discrete takes a whole number of values, at least 1, or a tuple of them; got {self.n!r}")
        if isinstance(self.n, list):
            object.__setattr__(self, "n", tuple(self.n))

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.n if isinstance(self.n, tuple) else (self.n,)

    @property
    def num_components(self) -> int:  # type: ignore[override]
        return self.n if isinstance(self.n, int) else 0

    def _values(self) -> Any:
        """All values of z along a leading axis: of a product a tuple of arrays."""
        if isinstance(self.n, int):
            return jnp.arange(self.n)
        grids = jnp.meshgrid(*(jnp.arange(size) for size in self.n), indexing="ij")
        return tuple(grid.reshape(-1) for grid in grids)

    def check(self, log_joint, params, data):
        z = jax.tree.map(lambda a: a[0], self._values())
        trace_one("log_joint(params, x, z)", log_joint, params=params, x=first_row(rows_of(data)), z=z)

    def table(self, log_joint: Any, params: Any, rows: Any) -> Float[Array, "Z N"]:
        """log p(x_n, z | params) of every value and every example."""
        every_row = jax.vmap(log_joint, in_axes=(None, 0, None))
        return possible(jax.vmap(every_row, in_axes=(None, None, 0))(params, rows, self._values()))

    def infer(self, log_joint, params, data, weights):
        rows = rows_of(data)
        coefficients, evidence = share_and_evidence(self.table(log_joint, params, rows), weights)
        return Enumerated(rows, coefficients), evidence

    def expected(self, log_joint, params, expectation):
        return weighted_total(expectation.coefficients, self.table(log_joint, params, expectation.rows))

    def sums(self, statistic, expectation):
        every_row = jax.vmap(statistic, in_axes=(0, None))
        values = jax.vmap(every_row, in_axes=(None, 0))(expectation.rows, self._values())
        flat = expectation.coefficients.reshape(-1)

        def contract(leaf: Array) -> Array:
            leaf = jnp.broadcast_to(leaf, (*expectation.coefficients.shape, *leaf.shape[2:]))
            leaf = leaf.astype(jnp.result_type(leaf, flat))
            return dot(flat, leaf.reshape(flat.size, -1)).reshape(leaf.shape[2:])

        return jax.tree.map(contract, values)

    def extent(self, expectation):
        return expectation.coefficients.shape[1], jnp.sum(expectation.coefficients)

    def thin(self, expectation, num_rows):
        if expectation.coefficients.shape[1] <= num_rows:
            return expectation
        # A value of z that few examples have gets as many of the rows as any other.
        held = jnp.sum(expectation.coefficients, axis=1, keepdims=True)
        lean = jnp.sum(expectation.coefficients / jnp.where(held > 0, held, 1), axis=0)
        rows, factor = systematic(lean, num_rows)
        chosen = jax.tree.map(lambda a: a[rows], expectation.rows)
        return Enumerated(chosen, expectation.coefficients[:, rows] * factor)

    def posterior(self, log_joint, params, data):
        """[N, n]; of a product [N, n₁, n₂, …]."""
        rows = rows_of(data)
        share, _ = share_and_evidence(self.table(log_joint, params, rows), None)
        return share.T.reshape(-1, *self.sizes)

    def predict(self, log_joint, params, data):
        """[N]; of a product a tuple of such."""
        best = jnp.argmax(self.table(log_joint, params, rows_of(data)), axis=0)
        return jax.tree.map(lambda values: values[best], self._values())

    def bound(self, log_joint, params, data, q, weights):
        """q: [N, n]; of a product [N, n₁, n₂, …]."""
        q, expected = jnp.asarray(q), (num_examples(data), *self.sizes)
        if q.shape != expected:
            raise ValueError(
                f"q needs shape {expected}, probabilities of the values of z for every example; got {q.shape}"
            )
        rows = q.reshape(expected[0], -1)
        each = jnp.ones(expected[0], rows.dtype) if weights is None else weights
        joint = self.expected(log_joint, params, Enumerated(rows_of(data), rows.T * each))
        return joint + jnp.sum(each * jnp.sum(entr(rows), axis=-1))
