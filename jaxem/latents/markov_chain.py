"""A Markov chain of K states: the latent variable of a hidden Markov model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import divide, hold, keep, occupied, weighted_sums
from jaxem.latents import axes
from jaxem.latents.categorical import Categorical, CategoricalParams, expected_log
from jaxem.messages import Smoothed, forward_backward, sample_backwards, viterbi
from jaxem.model import Data, Inference, Latent, pytree, static

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Pattern = tuple[tuple[bool, ...], ...]


@pytree
class MarkovChainParams:
    """initial: p(z_1 = k), [K]. transition: p(z_{t+1} = j | z_t = i), [K, K], whose rows sum to 1.

    As statistics: how often each state came first, and how often j followed i.
    """

    initial: Float[Array, " K"]
    transition: Float[Array, "K K"]


@pytree
class MarkovChain(Latent):
    """``p(z) = p(z_1) Π_t p(z_{t+1} | z_t)`` over the steps of a sequence; sequences are independent.

    num_components: K, the number of states. allowed: a zero pattern, [K, K], True where a transition may happen (see
    `left_to_right`); by default all may. allowed_initial: the states a sequence may begin in. What is not allowed has
    probability exactly 0, in every start and after every step; so has, once there, whatever reaches 0.
    Raises ValueError for a pattern of another shape, or with a state that leads nowhere (Rabiner 1989).
    """

    num_components: int = static()
    allowed: Pattern | None = static(default=None)
    allowed_initial: tuple[bool, ...] | None = static(default=None)

    reads = frozenset({"lengths", "starts"})
    freezable = frozenset({"initial", "transition"})
    freezable_by_component = freezable
    sequential = True

    def __post_init__(self):
        k = self.num_components
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"num_components must be a whole number, at least 1; got {k!r}")
        # As tuples they are part of the program, like K itself.
        for name, shape in (("allowed", (k, k)), ("allowed_initial", (k,))):
            given = getattr(self, name)
            if given is None:
                continue
            pattern = np.asarray(given)
            if pattern.shape != shape or pattern.dtype != bool:
                raise ValueError(f"{name} needs booleans of shape {shape}; got {pattern.dtype} {pattern.shape}")
            if not np.all(np.any(pattern, axis=-1)):
                place = f"row {int(np.argmin(np.any(pattern, axis=-1)))} of it" if pattern.ndim == 2 else "it"
                raise ValueError(f"{name} must leave at least one way: {place} is all False")
            object.__setattr__(
                self, name, tuple(map(tuple, pattern.tolist())) if len(shape) == 2 else tuple(pattern.tolist())
            )

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.allowed is None and self.allowed_initial is None

    def with_components(self, num_components: int) -> MarkovChain:
        if self.allowed is None and self.allowed_initial is None:
            return MarkovChain(num_components)
        raise ValueError("a chain with a zero pattern has the number of states of the pattern")

    # Inference. Steps beyond a length have potentials of 0, which change nothing before them.

    def infer(self, params: MarkovChainParams, potentials: Array, data: Data, weights: Array | None) -> Inference:
        each = axes.step_weights(data, weights, potentials)
        pair_weights = jnp.where(axes.followed(data, potentials), 1 if each is None else each, 0).astype(
            potentials.dtype
        )
        smoothed = self._smooth(params, potentials, data, pair_weights=axes.as_chains(pair_weights, data))
        marginals = axes.as_given(smoothed.marginals, data)
        if each is not None:
            marginals = marginals * each[..., None]
        # Σ p(z_t = i, z_{t+1} = j | x): no array of pairs.
        stats = MarkovChainParams(axes.first(marginals, data), params.transition * smoothed.pairs)
        return Inference(marginals, stats, axes.per_example(axes.as_given(smoothed.evidence, data), data))

    def infer_tempered(
        self, params: MarkovChainParams, potentials: Array, data: Data, weights: Array | None, inverse_temperature
    ) -> Inference:
        """By a chain of proper probabilities, with what they are short of in the potentials: padding stays harmless."""
        initial, begins = axes.tempered(params.initial, inverse_temperature)
        transition, leaves = axes.tempered(params.transition, inverse_temperature)
        potentials = inverse_temperature * potentials + axes.owed(begins, leaves, data, potentials)
        return self.infer(MarkovChainParams(initial, transition), potentials, data, weights)

    def draw(self, key: jax.Array, params: MarkovChainParams, potentials: Array, data: Data) -> Int[Array, "B T"]:
        """A path, sampled backwards from the filtered states; −1 beyond the end of a sequence."""
        filtered = axes.as_chains(self.filtered(params, potentials, data), data)
        followed = axes.as_chains(axes.followed(data, potentials), data)
        path = axes.as_given(sample_backwards(key, filtered, params.transition, followed), data)
        inside = axes.within(data, potentials)
        return path if inside is None else jnp.where(inside, path, -1)

    def _smooth(self, params: MarkovChainParams, potentials: Array, data: Data, **options: Any) -> Smoothed:
        starts = None if data.starts is None else data.starts[None]
        return forward_backward(params.initial, params.transition, axes.as_chains(potentials, data), starts, **options)

    def pair_posterior(self, params: MarkovChainParams, potentials: Array, data: Data) -> Float[Array, "B T-1 K K"]:
        """p(z_t = i, z_{t+1} = j | x) of every step and its next; 0 where a sequence has none."""
        smoothed = self._smooth(params, potentials, data, keep=True)
        followed = axes.as_chains(axes.followed(data, potentials), data)
        share = jnp.where(followed, smoothed.factor, 0)[:, :-1, None, None]
        pairs = smoothed.filtered[:, :-1, :, None] * params.transition * smoothed.ahead[:, 1:, None, :] * share
        return axes.as_given(pairs, data)

    def filtered(self, params: MarkovChainParams, potentials: Array, data: Data) -> Float[Array, "B T K"]:
        """p(z_t | x_1 … x_t)."""
        return axes.as_given(self._smooth(params, potentials, data, keep=True).filtered, data)

    def accumulate(self, marginals: Array, data: Data, params: Any = None) -> MarkovChainParams:
        """As if steps were independent given q: exact where q is a path, and all that marginals alone can say."""
        followed = axes.as_chains(axes.followed(data, marginals), data)[:, :-1]
        within = axes.within(data, marginals)
        marginals = marginals if within is None else jnp.where(within[..., None], marginals, 0)
        chains = axes.as_chains(marginals, data)
        total = jnp.sum(chains, axis=-1)
        known = followed & (total[:, 1:] > 0)
        share = jnp.where(known, 1 / jnp.where(known, total[:, 1:], 1), 0)
        before = (chains[:, :-1] * share[..., None]).reshape(-1, self.num_components)
        pairs = weighted_sums(before, chains[:, 1:].reshape(-1, self.num_components))
        return MarkovChainParams(axes.first(marginals, data), pairs)

    def mode(self, params: MarkovChainParams, potentials: Array, data: Data) -> Int[Array, "B T"]:
        """The Viterbi path; −1 beyond the end of a sequence."""
        borders = axes.borders(data, potentials)
        path = viterbi(params.initial, params.transition, axes.as_chains(potentials, data), borders)
        path = axes.as_given(path, data)
        within = axes.within(data, potentials)
        return path if within is None else jnp.where(within, path, -1)

    def log_prob(self, params: MarkovChainParams, z: Array, data: Data) -> Array:
        followed = axes.as_chains(axes.followed(data, z[..., None]), data)[:, :-1]
        chains = jnp.maximum(axes.as_chains(z, data), 0)
        moves = jnp.where(followed, jnp.log(params.transition)[chains[:, :-1], chains[:, 1:]], 0)
        first = (jnp.arange(chains.shape[1]) == 0)[None] if data.starts is None else data.starts[None]
        begins = jnp.where(first, jnp.log(params.initial)[chains], 0)
        terms = begins + jnp.concatenate([jnp.zeros_like(moves[:, :1]), moves], axis=1)
        return axes.per_example(axes.as_given(terms, data), data)

    # Learning.

    def maximize(self, params: MarkovChainParams | None, stats: MarkovChainParams, frozen) -> MarkovChainParams:
        if params is None:
            stats = self._softened(stats)
        stats = MarkovChainParams(
            self._permitted(stats.initial, "allowed_initial"), self._permitted(stats.transition, "allowed")
        )
        total = jnp.sum(stats.transition, axis=1)
        used = occupied(total)
        rows = divide(stats.transition, total, used)
        start = None if params is None else CategoricalParams(params.initial)
        categorical = Categorical(self.num_components)
        initial = categorical.maximize(start, stats.initial, {"weights": frozen.get("initial")}).weights
        if params is None:
            # A pattern may leave a state only ways to states that hold nothing: then all of these are as likely.
            allowed_initial, allowed = self._allowed_arrays()
            initial = jnp.where(jnp.sum(initial) > 0, initial, allowed_initial / allowed_initial.sum())
            return MarkovChainParams(
                initial, jnp.where(used[:, None], rows, allowed / allowed.sum(axis=1, keepdims=True))
            )
        began = jnp.sum(stats.initial) > 0
        rows = keep(used, rows, params.transition)
        return MarkovChainParams(
            jnp.where(began, initial, params.initial), hold(frozen.get("transition"), rows, params.transition)
        )

    def _softened(self, stats: MarkovChainParams) -> MarkovChainParams:
        """A start has one imagined transition between any two states that hold anything: what is 0 stays 0 forever."""
        present = (jnp.sum(stats.transition, axis=0) + stats.initial > 0).astype(stats.initial.dtype)
        share = present / jnp.maximum(jnp.sum(present), 1)
        return MarkovChainParams(stats.initial + share, stats.transition + share)

    def _permitted(self, counts: Array, name: str) -> Array:
        pattern = getattr(self, name)
        return counts if pattern is None else jnp.where(np.array(pattern), counts, 0)

    def q(self, params: MarkovChainParams, stats: MarkovChainParams) -> Float[Array, ""]:
        return expected_log(stats.initial, params.initial) + expected_log(stats.transition, params.transition)

    def pseudo_statistics(self) -> MarkovChainParams:
        """One imagined beginning in every state, and one imagined transition between any two; none that is forbidden."""
        k = self.num_components
        return MarkovChainParams(
            self._permitted(jnp.ones(k), "allowed_initial"), self._permitted(jnp.ones((k, k)), "allowed")
        )

    # What is asked of it.

    def sample(
        self, key: jax.Array, params: MarkovChainParams, shape: tuple[int, ...], data: Data
    ) -> Int[Array, "B T"]:
        sequences, steps = shape
        first_key, key = jax.random.split(key)
        log_transition = jnp.log(params.transition)
        first = jax.random.categorical(first_key, jnp.log(params.initial), shape=(sequences,))

        def step(z, key):
            after = jax.random.categorical(key, log_transition[z])
            return after, after

        _, rest = jax.lax.scan(step, first, jax.random.split(key, steps - 1))
        return jnp.concatenate([first[None], rest]).T

    def take_components(self, params: MarkovChainParams, components: Any) -> MarkovChainParams:
        return MarkovChainParams(params.initial[components], params.transition[components][:, components])

    def empty(self, params: MarkovChainParams, weight: Array) -> Bool[Array, " K"]:
        """States with less than half an expected visit in a sequence as long as all steps together."""
        one = jnp.eye(self.num_components, dtype=params.initial.dtype)

        def double(i, carry):
            visits, power = carry
            longer = weight > 2.0**i
            # Rounding of the rows' sums would double with every square.
            square = power @ power / jnp.sum(power @ power, axis=1, keepdims=True)
            return jnp.where(longer, visits + power @ visits, visits), jnp.where(longer, square, power)

        visits, _ = jax.lax.fori_loop(0, 30, double, (one, params.transition))
        return params.initial @ visits < 0.5

    def to_free(self, params: MarkovChainParams) -> MarkovChainParams:
        """Logarithms relative to the last allowed one of the initial state and of each row; vectors of the allowed ones."""
        initial, transition = self._allowed_arrays()
        return MarkovChainParams(_to_free(params.initial[None], initial[None]), _to_free(params.transition, transition))

    def from_free(self, free: MarkovChainParams) -> MarkovChainParams:
        initial, transition = self._allowed_arrays()
        return MarkovChainParams(_from_free(free.initial, initial[None])[0], _from_free(free.transition, transition))

    def _allowed_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        k = self.num_components
        initial = np.ones(k, bool) if self.allowed_initial is None else np.array(self.allowed_initial)
        return initial, np.ones((k, k), bool) if self.allowed is None else np.array(self.allowed)


def left_to_right(num_components: int, reach: int = 1) -> Pattern:
    """The zero pattern of a chain that only stays or moves on, by at most ``reach`` states (Bakis models)."""
    step = np.arange(num_components)[None, :] - np.arange(num_components)[:, None]
    return tuple(map(tuple, ((step >= 0) & (step <= reach)).tolist()))


def _last_allowed(allowed: np.ndarray) -> np.ndarray:
    return allowed.shape[1] - 1 - np.argmax(allowed[:, ::-1], axis=1)


def _to_free(rows: Array, allowed: np.ndarray) -> Array:
    last = _last_allowed(allowed)
    logs = jnp.log(jnp.maximum(rows, jnp.finfo(rows.dtype).tiny))
    relative = logs - jnp.take_along_axis(logs, last[:, None], axis=1)
    free = allowed & (np.arange(allowed.shape[1]) != last[:, None])
    return relative[np.nonzero(free)]


def _from_free(free: Array, allowed: np.ndarray) -> Array:
    last = _last_allowed(allowed)
    index = np.nonzero(allowed & (np.arange(allowed.shape[1]) != last[:, None]))
    logits = jnp.where(allowed, jnp.zeros(allowed.shape, free.dtype), -jnp.inf)
    return jax.nn.softmax(logits.at[index].set(free), axis=1)
