"""Variational EM: q factorizes as the user says, and the bound is what is climbed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from jaxem.bijections import Simplex
from jaxem.model import EStep, Model, num_examples, pytree, static
from jaxem.models.log_joint import LogJointModel
from jaxem.spaces.base import rows_of
from jaxem.spaces.discrete import Discrete, Enumerated
from jaxem.wrappers.base import Wrapper

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Blocks = tuple[tuple[int, ...], ...]


@pytree
class VariationalParams:
    """model: the parameters of the model. q: one factor for each block of variables, [N, n₁ · n₂ · …] over its values."""

    model: Any
    q: tuple[Float[Array, "N *n"], ...]


@pytree
class _VariationalStats:
    q: tuple[Any, ...]
    expectation: Enumerated


@pytree
class _Variational(Wrapper):
    model: LogJointModel
    blocks: Blocks = static()

    additive = False  # type: ignore[assignment]
    objective_name = "ELBO"  # type: ignore[assignment]

    @property
    def num_components(self) -> int:
        return 0

    def init(self, key, data, weights=None, strategy=None, used=None):
        start_key, key = jax.random.split(key)
        params = self.model.init(start_key, data, weights, strategy, used)
        n, dtype = num_examples(data), jnp.result_type(*jax.tree.leaves(params))
        keys = jax.random.split(key, len(self.blocks))
        draws = [
            jax.random.dirichlet(k, jnp.ones(size, dtype), (n,)) for k, size in zip(keys, self._sizes, strict=True)
        ]
        return VariationalParams(params, tuple(draws))

    @property
    def _space(self) -> Discrete:
        return self.model.latent  # type: ignore[return-value]

    @property
    def _sizes(self) -> list[int]:
        """The number of values of each block."""
        return [math.prod(self._space.sizes[i] for i in block) for block in self.blocks]

    def _shaped(self, q: Sequence[Array]) -> list[Array]:
        """Every factor with the axes of all variables, of length 1 where it says nothing, and the examples last."""
        sizes = self._space.sizes
        shapes = [[sizes[i] if i in block else 1 for i in range(len(sizes))] for block in self.blocks]
        return [factor.T.reshape(*shape, factor.shape[0]) for factor, shape in zip(q, shapes, strict=True)]

    def e_step(self, params, data, weights=None):
        """The bound at the incoming θ and q, and the factors after one round of coordinate ascent from there."""
        data = self.model.prepare(data)
        space = self._space
        rows = rows_of(data)
        space.check(self.model.log_joint, params.model, data)
        table = space.table(self.model.log_joint, params.model, rows)
        table = table.reshape(*space.sizes, table.shape[-1])
        factors = self._shaped(params.q)
        each = jnp.ones(table.shape[-1], table.dtype) if weights is None else weights
        joint = jnp.sum(_weighted(math.prod(factors[1:], start=factors[0]), table), axis=tuple(range(table.ndim - 1)))
        entropy = sum(jnp.sum(entr(q), axis=-1) for q in params.q)
        bound = jnp.sum(jnp.where(each == 0, 0, each * (joint + entropy)))
        for b in range(len(factors)):
            factors[b] = self._best_factor(table, factors, b)
        whole = math.prod(factors[1:], start=factors[0])
        coefficients = jnp.broadcast_to(whole * each, table.shape).reshape(-1, table.shape[-1])
        q = tuple(f.reshape(-1, f.shape[-1]).T for f in factors)
        return EStep(_VariationalStats(q, Enumerated(rows, coefficients)), bound, jnp.sum(each))

    def _best_factor(self, table: Array, factors: list[Array], b: int) -> Array:
        """q_b ∝ exp E[log p(x, z)] over the other factors."""
        others = [factor for i, factor in enumerate(factors) if i != b]
        away = tuple(i for i in range(table.ndim - 1) if i not in self.blocks[b])
        expected = table
        if others:
            expected = jnp.sum(_weighted(math.prod(others[1:], start=others[0]), table), axis=away, keepdims=True)
        axes = tuple(range(table.ndim - 1))
        return jnp.exp(expected - jax.scipy.special.logsumexp(expected, axis=axes, keepdims=True))

    def m_step(self, params, stats, frozen=None):
        updated = self.model.m_step(params.model, stats.expectation, frozen)
        return VariationalParams(updated, stats.q)

    def q(self, params, stats):
        return self.model.q(params.model, stats.expectation)

    def log_prior(self, params):
        return self.model.log_prior(params.model)

    def log_likelihood(self, params, data):
        """log p(x_n | θ) itself, by enumeration: q has no part in it."""
        return self.model.log_likelihood(params.model, data)

    def posterior(self, params, data):
        """The factors of q."""
        return params.q

    def predict(self, params, data):
        """The most probable values of each block under q, numbered in the order of their enumeration."""
        return tuple(jnp.argmax(q, axis=-1) for q in params.q)

    def sample(self, key, params, num_examples, num_steps=None, inputs=None):
        return self.model.sample(key, params.model, num_examples, num_steps, inputs)

    def to_free(self, params):
        return VariationalParams(self.model.to_free(params.model), tuple(map(Simplex().to_free, params.q)))

    def from_free(self, free):
        return VariationalParams(self.model.from_free(free.model), tuple(map(Simplex().from_free, free.q)))

    def num_free_parameters(self, params) -> int:
        """Those of the model: the factors of q are no parameters of p."""
        return self.model.num_free_parameters(params.model)


def Variational(model: Model, blocks: Sequence[Sequence[int]] | None = None) -> Model:
    """Variational EM for a `LogJoint` over a product of discrete variables: ``q(z) = Π_b q_b(z_b)`` for every example.

    The objective is the bound, E_q[log p(x, z | θ)] + H[q] ≤ log p(x | θ), and is called so: a step updates one factor
    after the other, q_b ∝ exp E_{q_−b}[log p(x, z | θ)], then θ, each of which raises it. Its maximum is biased towards
    models whose posterior factorizes; `kl_gap` says how far the bound is from the log-likelihood. The factors of every
    example are kept beside the parameters (`VariationalParams`), so that each step begins where the last one ended.

    blocks: which variables go together in a factor, [[0], [1, 2]] say; by default each is alone (mean field). One block
    of all is exact EM. Raises ValueError for another model, or blocks that are no partition (Jordan et al. 1999).
    """
    if (
        not isinstance(model, LogJointModel)
        or not isinstance(model.latent, Discrete)
        or isinstance(model.latent.n, int)
    ):
        raise ValueError("Variational holds a LogJoint over a product of discrete variables, such as Discrete((3, 2))")
    if model.statistic is not None:
        raise ValueError("Variational needs the posterior of every example: leave statistics out of the LogJoint")
    count = len(model.latent.n)
    given = tuple((i,) for i in range(count)) if blocks is None else tuple(tuple(int(i) for i in b) for b in blocks)
    if sorted(i for block in given for i in block) != list(range(count)) or not all(given):
        raise ValueError(f"blocks must have each of the variables 0 … {count - 1} exactly once; got {blocks}")
    return _Variational(model, tuple(tuple(sorted(block)) for block in given))


def _weighted(weights: Array, table: Array) -> Array:
    """weights · table, 0 where the weight is 0, whatever the table says there."""
    used = weights > 0
    return jnp.where(used, weights * jnp.where(used, table, 0), 0)
