"""A Markov chain whose transitions depend on inputs: the latent variable of an input-output hidden Markov model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem import layout
from jaxem.design import Design, calibrate_design
from jaxem.families.base import hold, keep, occupied
from jaxem.latents import axes
from jaxem.latents.categorical import Categorical, CategoricalParams, expected_log
from jaxem.linalg import dot
from jaxem.messages import Smoothed, forward_backward, sample_backwards, viterbi
from jaxem.model import Data, Inference, Latent, pytree, static
from jaxem.newton import (
    Quadratic,
    equal_shares,
    least_log_odds,
    softmax_expansion,
    softmax_step,
    softmax_value,
    summed,
    with_reference,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@pytree
class InputMarkovChainParams:
    """initial: p(z_1 = k), [K]. gate: of the transition i → j the coefficients of the intercept, then of every input,
    [K, K, P]; those into the last state are 0."""

    initial: Float[Array, " K"]
    gate: Float[Array, "K K P"]


@pytree
class InputMarkovChainStats:
    """How often each state came first, [K], and the expansions of the K transition regressions."""

    initial: Float[Array, " K"]
    moves: Quadratic


@pytree
class InputMarkovChain(Latent):
    """``p(z_t = j | z_{t−1} = i, inputs_t) ∝ exp(γ_ij · (1, inputs_t))``: softmax regressions, one for every state left.

    The inputs are those of the step arrived at; those of the first step of a sequence say nothing of z. The M-step takes
    one damped Newton step from the incoming coefficients, which never lowers the likelihood (`jaxem.newton`).
    num_components: K, at least 1. intercept: whether a column of ones is added; it comes first. design: set by
    `calibrate`. (Bengio & Frasconi 1995, NIPS 7; Hughes, Guttorp & Charles 1999, Appl. Stat. 48.)
    """

    num_components: int = static()
    intercept: bool = static(default=True)
    design: Design | None = None

    reads = frozenset({"lengths", "starts", "inputs"})
    freezable = frozenset({"initial", "gate"})
    freezable_by_component = freezable
    sequential = True
    generalized = True

    def __post_init__(self):
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ValueError(f"num_components must be a whole number, at least 1; got {self.num_components!r}")

    def with_components(self, num_components: int) -> InputMarkovChain:
        return dataclasses.replace(self, num_components=num_components)

    def calibrate(self, data: Data, weights: Array | None) -> InputMarkovChain:
        if self.design is not None:
            return self
        inputs = data.inputs.reshape(-1, data.inputs.shape[-1])
        design = calibrate_design(inputs, layout.row_weights(data, weights), self.intercept, data.x.dtype)
        return dataclasses.replace(self, design=design)

    # Inference.

    def infer(self, params: InputMarkovChainParams, potentials: Array, data: Data, weights: Array | None) -> Inference:
        transition = self.transition(params, data)
        return self._infer(params, params.initial, transition, potentials, data, weights)

    def infer_tempered(
        self, params: InputMarkovChainParams, potentials: Array, data: Data, weights: Array | None, inverse_temperature
    ) -> Inference:
        """As of a `MarkovChain`; the statistics expand about ``params``, not about what the messages use."""
        initial, begins = axes.tempered(params.initial, inverse_temperature)
        transition, into = axes.tempered(self.transition(params, data), inverse_temperature)
        leaves = axes.as_given(_out_of_steps(into), data)
        potentials = inverse_temperature * potentials + axes.owed(begins, leaves, data, potentials)
        return self._infer(params, initial, transition, potentials, data, weights)

    def _infer(
        self, params: InputMarkovChainParams, initial: Array, transition: Array, potentials, data: Data, weights
    ) -> Inference:
        each = axes.step_weights(data, weights, potentials)
        smoothed = self._smooth(initial, transition, potentials, data)
        pairs = self._pairs(smoothed, transition, potentials, data)
        if each is not None:
            pairs = pairs * axes.as_chains(each, data)[:, :-1, None, None]
        marginals = axes.as_given(smoothed.marginals, data)
        if each is not None:
            marginals = marginals * each[..., None]
        stats = InputMarkovChainStats(axes.first(marginals, data), self._moves(params, pairs, data))
        return Inference(marginals, stats, axes.per_example(axes.as_given(smoothed.evidence, data), data))

    def transition(self, params: InputMarkovChainParams, data: Data) -> Float[Array, "B T K K"]:
        """p(z_t = j | z_{t−1} = i, inputs_t) into every step; of flat sequences with a leading axis of 1."""
        return jnp.exp(self._log_transition(params, data))

    def pair_posterior(
        self, params: InputMarkovChainParams, potentials: Array, data: Data
    ) -> Float[Array, "B T-1 K K"]:
        """p(z_t = i, z_{t+1} = j | x) of every step and its next; 0 where a sequence has none."""
        transition = self.transition(params, data)
        smoothed = self._smooth(params.initial, transition, potentials, data)
        return axes.as_given(self._pairs(smoothed, transition, potentials, data), data)

    def draw(self, key: jax.Array, params: InputMarkovChainParams, potentials: Array, data: Data) -> Int[Array, "B T"]:
        """A path, sampled backwards from the filtered states; −1 beyond the end of a sequence."""
        transition = self.transition(params, data)
        filtered = self._smooth(params.initial, transition, potentials, data).filtered
        followed = axes.as_chains(axes.followed(data, potentials), data)
        path = axes.as_given(sample_backwards(key, filtered, _out_of_steps(transition), followed), data)
        inside = axes.within(data, potentials)
        return path if inside is None else jnp.where(inside, path, -1)

    def accumulate(
        self, marginals: Array, data: Data, params: InputMarkovChainParams | None = None
    ) -> InputMarkovChainStats:
        """As if steps were independent given q: exact where q is a path, and all that marginals alone can say."""
        inside = axes.within(data, marginals)
        marginals = marginals if inside is None else jnp.where(inside[..., None], marginals, 0)
        chains = axes.as_chains(marginals, data)
        total = jnp.sum(chains, axis=-1)
        known = axes.as_chains(axes.followed(data, marginals), data)[:, :-1] & (total[:, 1:] > 0)
        share = jnp.where(known, 1 / jnp.where(known, total[:, 1:], 1), 0)
        pairs = (chains[:, :-1] * share[..., None])[..., :, None] * chains[:, 1:, None, :]
        return InputMarkovChainStats(axes.first(marginals, data), self._moves(params, pairs, data))

    def mode(self, params: InputMarkovChainParams, potentials: Array, data: Data) -> Int[Array, "B T"]:
        """The Viterbi path; −1 beyond the end of a sequence."""
        borders = axes.borders(data, potentials)
        transition = _out_of_steps(self.transition(params, data))
        path = axes.as_given(viterbi(params.initial, transition, axes.as_chains(potentials, data), borders), data)
        inside = axes.within(data, potentials)
        return path if inside is None else jnp.where(inside, path, -1)

    def log_prob(self, params: InputMarkovChainParams, z: Array, data: Data) -> Array:
        follows = axes.as_chains(axes.followed(data, z[..., None]), data)[:, :-1]
        chains = jnp.maximum(axes.as_chains(z, data), 0)
        into = self._log_transition(params, data)[:, 1:]
        left = jnp.take_along_axis(into, chains[:, :-1, None, None], axis=2)[:, :, 0]
        moves = jnp.where(follows, jnp.take_along_axis(left, chains[:, 1:, None], axis=2)[..., 0], 0)
        first = (jnp.arange(chains.shape[1]) == 0)[None] if data.starts is None else data.starts[None]
        begins = jnp.where(first, jnp.log(params.initial)[chains], 0)
        terms = begins + jnp.concatenate([jnp.zeros_like(moves[:, :1]), moves], axis=1)
        return axes.per_example(axes.as_given(terms, data), data)

    def _smooth(self, initial: Array, transition: Array, potentials: Array, data: Data) -> Smoothed:
        starts = None if data.starts is None else data.starts[None]
        chains = axes.as_chains(potentials, data)
        return forward_backward(initial, _out_of_steps(transition), chains, starts, keep=True)

    def _pairs(self, smoothed: Smoothed, transition: Array, potentials: Array, data: Data) -> Array:
        share = jnp.where(axes.as_chains(axes.followed(data, potentials), data), smoothed.factor, 0)[:, :-1, None, None]
        return smoothed.filtered[:, :-1, :, None] * transition[:, 1:] * smoothed.ahead[:, 1:, None, :] * share

    def _moves(self, params: InputMarkovChainParams | None, pairs: Float[Array, "B S K K"], data: Data) -> Quadratic:
        """The expansions of Σ pairs log p(z_t | z_{t−1}, inputs_t) about ``params``; at a start about equal shares."""
        k = self.num_components
        columns = self._design().columns(axes.as_chains(data.inputs, data)[:, 1:], pairs.dtype)

        def term(columns: Array, pairs: Array) -> Quadratic:
            n = columns.shape[0]
            predictor = jnp.zeros((1, k, n), pairs.dtype) if params is None else self._predictor(params, columns)
            return softmax_expansion(columns, predictor, pairs.transpose(1, 2, 0))

        return summed(term, columns.reshape(-1, columns.shape[-1]), pairs.reshape(-1, k, k))

    # Learning.

    def maximize(
        self, params: InputMarkovChainParams | None, stats: InputMarkovChainStats, frozen: Any
    ) -> InputMarkovChainParams:
        design, k = self._design(), self.num_components
        old = None if params is None else design.standardized(params.gate)
        gate = design.in_units(softmax_step(stats.moves, old, design.num_columns, design.reach))
        if params is None:
            # One imagined beginning in all: what is 0 at a start stays 0 forever.
            return InputMarkovChainParams((stats.initial + 1 / k) / (jnp.sum(stats.initial) + 1), gate)
        gate = keep(occupied(stats.moves.count), gate, params.gate)
        start = CategoricalParams(params.initial)
        initial = Categorical(k).maximize(start, stats.initial, {"weights": frozen.get("initial")}).weights
        initial = jnp.where(jnp.sum(stats.initial) > 0, initial, params.initial)
        return InputMarkovChainParams(initial, hold(frozen.get("gate"), gate, params.gate))

    def q(self, params: InputMarkovChainParams, stats: InputMarkovChainStats) -> Float[Array, ""]:
        moves = softmax_value(stats.moves, self._design().standardized(params.gate))
        return expected_log(stats.initial, params.initial) + jnp.sum(moves)

    def pseudo_statistics(self) -> InputMarkovChainStats:
        """One imagined beginning in every state, and K imagined steps from each that go everywhere alike."""
        moment, k = self._design().calibrated_moment(), self.num_components
        return InputMarkovChainStats(jnp.ones(k, moment.dtype), equal_shares(moment, k, k))

    # What is asked of it.

    def sample(
        self, key: jax.Array, params: InputMarkovChainParams, shape: tuple[int, ...], data: Data
    ) -> Int[Array, "B T"]:
        first_key, key = jax.random.split(key)
        log_transition = jnp.swapaxes(self._log_transition(params, data), 0, 1)
        first = jax.random.categorical(first_key, jnp.log(params.initial), shape=shape[:1])

        def step(z, xs):
            key, logits = xs
            after = jax.random.categorical(key, jnp.take_along_axis(logits, z[:, None, None], axis=1)[:, 0])
            return after, after

        _, rest = jax.lax.scan(step, first, (jax.random.split(key, shape[1] - 1), log_transition[1:]))
        return jnp.concatenate([first[None], rest]).T

    def take_components(self, params: InputMarkovChainParams, components: Any) -> InputMarkovChainParams:
        chosen = params.gate[components][:, components]
        return InputMarkovChainParams(params.initial[components], chosen - chosen[:, -1:])

    def empty(self, params: InputMarkovChainParams, weight: Array) -> Bool[Array, " K"]:
        """States in which no step begins or arrives, whatever the inputs and the state before."""
        design = self._design()
        if design.moment is None:
            return jnp.zeros(self.num_components, bool)
        outweighed = least_log_odds(design, design.standardized(params.gate)) > jnp.log(2 * weight)
        return jnp.all(outweighed, axis=0) & (params.initial * weight < 0.5)

    def to_free(self, params: InputMarkovChainParams) -> InputMarkovChainParams:
        initial = Categorical(self.num_components).to_free(CategoricalParams(params.initial)).weights
        return InputMarkovChainParams(initial, params.gate[..., :-1, :])

    def from_free(self, free: InputMarkovChainParams) -> InputMarkovChainParams:
        initial = Categorical(self.num_components).from_free(CategoricalParams(free.initial)).weights
        return InputMarkovChainParams(initial, with_reference(free.gate))

    def _design(self) -> Design:
        return Design(self.intercept) if self.design is None else self.design

    def _predictor(self, params: InputMarkovChainParams, columns: Float[Array, "N P"]) -> Float[Array, "K K N"]:
        k, _, p = params.gate.shape
        gate = self._design().standardized(params.gate)
        return dot(gate.reshape(k * k, p), columns.T).reshape(k, k, -1)

    def _log_transition(self, params: InputMarkovChainParams, data: Data) -> Float[Array, "B T K K"]:
        inputs = axes.as_chains(data.inputs, data)
        columns = self._design().columns(inputs, params.gate.dtype)
        predictor = self._predictor(params, columns.reshape(-1, columns.shape[-1]))
        k = self.num_components
        return jax.nn.log_softmax(predictor, axis=1).transpose(2, 0, 1).reshape(*inputs.shape[:2], k, k)


def _out_of_steps(into: Float[Array, "B T K K"]) -> Float[Array, "B T K K"]:
    """Transitions into each step as those out of the one before it."""
    return jnp.concatenate([into[:, 1:], into[:, :1]], axis=1)
