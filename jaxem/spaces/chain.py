"""A latent Markov chain over the steps of a sequence: forward-backward on a user's log-potentials."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem import layout
from jaxem.latents import axes
from jaxem.latents.markov_chain import MarkovChain, MarkovChainParams
from jaxem.model import Data, as_data, pytree, static
from jaxem.spaces.base import (
    LatentSpace,
    as_function,
    describe,
    first_row,
    possible,
    rows_of,
    trace_one,
    weighted_total,
)
from jaxem.spaces.discrete import Discrete, Enumerated

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@pytree
class ChainLogJoint:
    """The log joint of a chain by its factors, each a function of one step, with z in 0 … n − 1.

    ``initial(params, z)``: log p(z_1). ``transition(params, z, z_next)``: log p(z_{t+1} | z_t). ``emission(params, x,
    z)``: log p(x_t | z_t), with x one row of `Data.x`, or, where `Data` holds inputs, a `Data` with x and inputs.
    ``initial`` and ``transition`` are logarithms of probabilities that sum to 1; −inf is a move that cannot be.
    """

    initial: Any
    transition: Any
    emission: Any

    def __post_init__(self):
        for name in ("initial", "transition", "emission"):
            function = getattr(self, name)
            if not callable(function):
                raise ValueError(f"{name} of a chain is a function; got {function!r}")
            object.__setattr__(self, name, as_function(function))


@pytree
class ChainExpectation:
    """q over paths, as far as the factors need it: what steps say, [n, M] over the steps, and counts of moves."""

    steps: Enumerated
    initial: Float[Array, " n"]
    transition: Float[Array, "n n"]


@pytree
class Chain(LatentSpace):
    """z is a path through ``n`` states, one for each step of a sequence; the log joint is a `ChainLogJoint`.

    Data are those of an `HMM`: one sequence [T, D], several flat ones (``Data(x, starts=…)``), or padded ones
    [B, T, D] with lengths; steps whose mask is False are not observed. Raises ValueError for fewer than 1 state.
    """

    n: int = static()

    sequential = True

    def __post_init__(self):
        if not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"Chain takes a whole number of states, at least 1; got {self.n!r}")

    @property
    def num_components(self) -> int:  # type: ignore[override]
        return self.n

    def read(self, data):
        data = jax.tree.map(jnp.asarray, as_data(data))
        stray = data.given() - {"x", "mask", "inputs", "lengths", "starts"}
        if stray:
            raise ValueError(f"{', '.join(sorted(stray))} given, but a Chain does not read it")
        if data.mask is not None and data.x is not None and data.mask.ndim == data.x.ndim:
            raise ValueError(
                f"a Chain takes a mask of whole steps, {data.x.shape[:-1]}; got one of cells, {data.mask.shape}"
            )
        data = layout.normal(data, True, 0)
        seen = layout.observed(data)
        if seen is None:
            return data
        # What is not observed is evaluated all the same, and counts for nothing: at a place where all is finite.
        typical = data.x.reshape(-1, data.x.shape[-1])[jnp.argmax(seen.reshape(-1))]
        return dataclasses.replace(data, x=jnp.where(seen[..., None], data.x, typical))

    def _steps(self, data: Data) -> Any:
        """The steps as rows of what an emission sees."""
        x = data.x.reshape(-1, data.x.shape[-1])
        inputs = None if data.inputs is None else data.inputs.reshape(x.shape[0], -1)
        return rows_of(Data(x=x, inputs=inputs))

    def check(self, log_joint, params, data):
        if not isinstance(log_joint, ChainLogJoint):
            raise ValueError(
                "the log joint of a Chain is jaxem.ChainLogJoint(initial, transition, emission); "
                f"got {describe_function(log_joint)}"
            )
        z = jnp.int32(0)
        trace_one("initial(params, z)", log_joint.initial, params=params, z=z)
        trace_one("transition(params, z, z_next)", log_joint.transition, params=params, z=z, z_next=z)
        x = first_row(self._steps(data))
        trace_one("emission(params, x, z)", log_joint.emission, params=params, x=x, z=z)

    def _prior(self, log_joint: ChainLogJoint, params: Any) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """log p(z_1) and log p(z_{t+1} | z_t) of all states."""
        states = jnp.arange(self.n)
        initial = jax.vmap(log_joint.initial, in_axes=(None, 0))(params, states)
        moves = jax.vmap(log_joint.transition, in_axes=(None, None, 0))
        return possible(initial), possible(jax.vmap(moves, in_axes=(None, 0, None))(params, states, states))

    def _potentials(self, log_joint: ChainLogJoint, params: Any, data: Data) -> Float[Array, "*T n"]:
        table = Discrete(self.n).table(log_joint.emission, params, self._steps(data))
        potentials = table.T.reshape(*layout.lead(data), self.n)
        seen = layout.observed(data)
        return potentials if seen is None else jnp.where(seen[..., None], potentials, 0)

    def _infer(self, log_joint: ChainLogJoint, params: Any, data: Data, weights: Array | None) -> Any:
        initial, transition = self._prior(log_joint, params)
        chain = MarkovChainParams(jnp.exp(initial), jnp.exp(transition))
        return MarkovChain(self.n).infer(chain, self._potentials(log_joint, params, data), data, weights)

    def infer(self, log_joint, params, data, weights):
        inferred = self._infer(log_joint, params, data, weights)
        marginals, seen = inferred.marginals, layout.observed(data)
        if seen is not None:
            marginals = jnp.where(seen[..., None], marginals, 0)
        steps = Enumerated(self._steps(data), marginals.reshape(-1, self.n).T)
        return ChainExpectation(steps, inferred.stats.initial, inferred.stats.transition), inferred.log_normalizer

    def expected(self, log_joint, params, expectation):
        initial, transition = self._prior(log_joint, params)
        moves = weighted_total(expectation.initial, initial) + weighted_total(expectation.transition, transition)
        return moves + Discrete(self.n).expected(log_joint.emission, params, expectation.steps)

    def sums(self, statistic, expectation):
        """Σ over the observed steps; how often states came first, and followed each other, are fields of it."""
        return Discrete(self.n).sums(statistic, expectation.steps)

    def extent(self, expectation):
        return Discrete(self.n).extent(expectation.steps)

    def thin(self, expectation, num_rows):
        steps = Discrete(self.n).thin(expectation.steps, num_rows)
        return ChainExpectation(steps, expectation.initial, expectation.transition)

    def posterior(self, log_joint, params, data):
        """p(z_t | x): [B, T, n], or [N, n] of flat sequences."""
        return self._infer(log_joint, params, data, None).marginals

    def predict(self, log_joint, params, data):
        """The most probable path (Viterbi); −1 beyond the end of a sequence."""
        initial, transition = self._prior(log_joint, params)
        chain = MarkovChainParams(jnp.exp(initial), jnp.exp(transition))
        return MarkovChain(self.n).mode(chain, self._potentials(log_joint, params, data), data)

    def num_observations(self, data, weights, dtype):
        within = axes.within(data, data.x) if data.x.ndim == 3 else None
        shape = layout.lead(data)
        each = jnp.ones(shape, dtype) if within is None else within.astype(dtype)
        if weights is not None:
            each = each * weights.reshape(weights.shape + (1,) * (len(shape) - 1))
        return jnp.sum(each)


def describe_function(function: Any) -> str:
    inner = function.func if isinstance(function, jax.tree_util.Partial) else function
    return getattr(inner, "__name__", repr(inner)) if callable(inner) else describe(inner)
