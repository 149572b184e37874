"""Forward-backward on a chain of K states, normalized at every step: sequential, or in blocks of time.

Messages are probabilities, so transitions of exactly 0 need no special care. A step weighs the states that can be
reached at all, on the way back also the other way, against the most likely *of those*; a float32 chain of a million
steps neither underflows nor drifts, and a state that is almost impossible but alone possible keeps its weight.

Inside, time comes first and rows last, [L, K, R], so that everything a step does runs along the rows R: sequences and,
in blocks, S blocks of time side by side, each S times shorter. Their messages start from those at their borders. Chains
forget, so the borders are first guessed by scanning the last steps before each of them from nothing. Whether that was
enough is then *seen*: the blocks next door must arrive where they were guessed to. Where they do not, the borders are
computed exactly, by composing the blocks' K x K operators, which costs K times a scan. Either way the numbers are the
sequential ones up to rounding.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.blocks import two_sum
from jaxem.linalg import dot
from jaxem.model import pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# Blocks pay for few and long sequences. So many rows fill the vector units of a processor, whose scans are cheap; the
# steps of an accelerator's scan cost what a kernel's launch does, and it has room for many more rows.
_ROWS, _ROWS_OF_ACCELERATOR = 1024, 2**14
_LONG, _LONG_ON_ACCELERATOR = 4096, 2048
# Steps from which a border is guessed, and how many times more a block has.
_WARM_UP = 128
_BLOCK = 6
# Guessed borders agree with the blocks beside them to so many roundings, relative to each entry.
_AGREEMENT = 256


@pytree
class Smoothed:
    """What forward-backward leaves behind.

    marginals: p(z_t | x), [B, T, K]. evidence: log p(x_t | x_1 … x_{t−1}), [B, T]. pairs: Σ_t w_t p(z_t = i,
    z_{t+1} = j | x) divided by the transition i → j, [K, K]. With ``keep`` also the messages, [B, T, K]: filtered,
    p(z_t | x_1 … x_t); ahead, ∝ p(x_t … x_T | z_t), which sums to 1; and factor, [B, T], with which
    p(z_t = i, z_{t+1} = j | x) = factor_t filtered_t(i) transition(i, j) ahead_{t+1}(j).
    """

    marginals: Float[Array, "B T K"]
    evidence: Float[Array, "B T"]
    pairs: Any = None
    filtered: Any = None
    ahead: Any = None
    factor: Any = None


def forward_backward(
    initial: Float[Array, " K"],
    transition: Float[Array, "K K"] | Float[Array, "B T K K"],
    potentials: Float[Array, "B T K"],
    starts: Bool[Array, "B T"] | None = None,
    pair_weights: Float[Array, "B T"] | None = None,
    *,
    blocks: int | None = None,
    keep: bool = False,
) -> Smoothed:
    """Posterior of B chains at once, ``p(z, x) ∝ p(z_1) Π p(z_{t+1} | z_t) Π exp(potentials_t(z_t))``.

    initial, transition: probabilities. A transition of every step, [B, T, K, K], goes *out of* step t (that of the last
    is not read). starts: True where another sequence begins; no transition leads over such a border. A potential of 0 in
    all states is a step without an observation; padding at the end changes nothing before it. pair_weights: w_t of the
    pair (t, t + 1) in ``pairs``, 0 where no step follows. blocks: how many blocks of time, 1 being sequential; by default
    chosen from the shape. An impossible step has evidence −∞ (Rabiner 1989; Hassan, Särkkä & García-Fernández 2021 for
    operators of blocks).
    """
    if blocks is None:
        blocks = _choose_blocks(*potentials.shape[:2])
    chain = _Chain(initial, transition, potentials, starts, pair_weights)
    return _sequential(keep, chain) if blocks == 1 else _in_blocks(blocks, keep, chain)


class _Chain(NamedTuple):
    initial: Any
    transition: Any
    potentials: Any
    starts: Any
    pair_weights: Any


class _Rows(NamedTuple):
    """A chain inside: [L, K, R]; ``ends`` marks the last step of a sequence, ``start`` the first."""

    initial: Any  # [K, 1]
    transition: Any  # [K, K], or None where every step has its own
    potentials: Any  # [L, R, K]: a step turns its own, which is in the cache, around
    starts: Any
    ends: Any
    pair_weights: Any
    own: Any  # [L, K, K, R] or None


def _choose_blocks(sequences: int, steps: int) -> int:
    processor = jax.default_backend() == "cpu"
    rows, long = (_ROWS, _LONG) if processor else (_ROWS_OF_ACCELERATOR, _LONG_ON_ACCELERATOR)
    if steps < long or sequences * 2 > rows:
        return 1
    return max(1, min(rows // sequences, steps // (_BLOCK * _WARM_UP)))


def _weigh(message: Array, potential: Array, possible: Array | None = None) -> tuple[Array, tuple[Array, Array]]:
    """``message · exp(potential)`` normalized over K, and its sum as (total, peak), the sum being total · exp(peak).

    possible: which states matter, by default those with a message; what the others get is never read.
    """
    possible = message > 0 if possible is None else possible
    peak = jnp.max(jnp.where(possible, potential, -jnp.inf), axis=0, keepdims=True)
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    weighed = message * jnp.exp(jnp.minimum(potential - peak, 0))
    total = jnp.sum(weighed, axis=0, keepdims=True)
    return weighed / jnp.where(total == 0, 1, total), (total[0], peak[0])


def _evidence(total: Array, peak: Array) -> Array:
    """log(total · exp(peak)), −∞ where nothing is possible."""
    return jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)) + peak)


def _onward(rows: _Rows, message: Array, own: Array | None) -> Array:
    """p(z_{t+1}) from p(z_t): [K, R] to [K, R]."""
    if own is None:
        return dot(rows.transition.T, message)
    return jnp.sum(own * message[:, None], axis=0)


def _back(rows: _Rows, message: Array, own: Array | None) -> Array:
    """p(· | z_t) from p(· | z_{t+1}): [K, R] to [K, R]."""
    if own is None:
        return dot(rows.transition, message)
    return jnp.sum(own * message[None], axis=1)


def _forward(rows: _Rows, predicted: Array, emit: bool = True) -> tuple[Array, Any]:
    """From p(z | before) at the first step to the same after the last one; filtered messages and evidence on the way."""

    def step(predicted, xs):
        potential, start, own = xs
        if start is not None:
            predicted = jnp.where(start, rows.initial, predicted)
        filtered, weight = _weigh(predicted, potential.T)
        return _onward(rows, filtered, own), (filtered, _evidence(*weight)) if emit else None

    return jax.lax.scan(step, predicted, (rows.potentials, rows.starts, rows.own))


def _backward(rows: _Rows, ahead: Array, filtered: Array, keep: bool) -> tuple[Array, Array, Any]:
    """From ``ahead`` of the step after the last one to that of the first; marginals and pair sums on the way."""
    k = rows.initial.shape[0]
    nothing = jnp.zeros((k, k), ahead.dtype)
    counted = rows.pair_weights is not None

    def step(carry, xs):
        following, pairs, error = carry
        potential, end, weight, own, filtered = xs
        behind = _back(rows, following, own)
        if end is not None:
            behind = jnp.where(end, 1, behind)
        joint = filtered * behind
        total = jnp.sum(joint, axis=0, keepdims=True)
        # A NaN total is kept: data that are not numbers must be seen, not turned into "impossible".
        factor = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
        if counted:
            pairs, error = two_sum(pairs, error, dot(filtered * (factor * weight), following.T))
        # A likelier state that cannot be reached must not take the digits of those that can.
        ahead, _ = _weigh(behind, potential.T, (filtered > 0) & (behind > 0))
        kept = (filtered.T, ahead.T, factor[0]) if keep else None
        return (ahead, pairs, error), ((joint * factor).T, kept)

    xs = (rows.potentials, rows.ends, rows.pair_weights, rows.own, filtered)
    (ahead, pairs, error), emitted = jax.lax.scan(step, (ahead, nothing, nothing), xs, reverse=True)
    return ahead, pairs + error, emitted


def _backward_only(rows: _Rows, ahead: Array) -> Array:
    def step(following, xs):
        potential, end, own = xs
        behind = _back(rows, following, own)
        if end is not None:
            behind = jnp.where(end, 1, behind)
        return _weigh(behind, potential.T)[0], None

    return jax.lax.scan(step, ahead, (rows.potentials, rows.ends, rows.own), reverse=True)[0]


def _rows_of(chain: _Chain, blocks: int) -> _Rows:
    ends = None if chain.starts is None else jnp.concatenate([chain.starts[:, 1:], chain.starts[:, :1] & False], axis=1)
    own = chain.transition.ndim > 2
    first, last = (None if mark is None else _cut(mark, blocks, False)[:, None] for mark in (chain.starts, ends))
    weights = None if chain.pair_weights is None else _cut(chain.pair_weights, blocks, 0)[:, None]
    return _Rows(
        chain.initial[:, None],
        None if own else chain.transition,
        _cut(chain.potentials, blocks, 0),
        first,
        last,
        weights,
        jnp.moveaxis(_cut(chain.transition, blocks, 1), 1, -1) if own else None,
    )


def _cut(a: Array, blocks: int, fill: float | bool) -> Array:
    """[B, T, …] to [L, R, …], row s·B + b being block s of sequence b; the end is padded with ``fill``."""
    sequences, steps = a.shape[:2]
    size = -(-steps // blocks)
    if blocks * size > steps:
        a = jnp.concatenate([a, jnp.full((sequences, blocks * size - steps, *a.shape[2:]), fill, a.dtype)], axis=1)
    a = a.reshape(sequences, blocks, size, *a.shape[2:])
    return jnp.transpose(a, (2, 1, 0, *range(3, a.ndim))).reshape(size, blocks * sequences, *a.shape[3:])


def _join(a: Array, sequences: int, steps: int) -> Array:
    """The inverse of `_cut`."""
    a = a.reshape(a.shape[0], -1, sequences, *a.shape[2:])
    a = jnp.transpose(a, (2, 1, 0, *range(3, a.ndim)))
    return a.reshape(sequences, -1, *a.shape[3:])[:, :steps]


def _smoothed(chain: _Chain, keep: bool, evidence: Array, pairs: Array, emitted: Any) -> Smoothed:
    join = functools.partial(_join, sequences=chain.potentials.shape[0], steps=chain.potentials.shape[1])
    marginals, kept = emitted
    messages = tuple(join(message) for message in kept) if keep else ()
    return Smoothed(join(marginals), join(evidence), None if chain.pair_weights is None else pairs, *messages)


def _sequential(keep: bool, chain: _Chain) -> Smoothed:
    rows = _rows_of(chain, 1)
    shape = rows.potentials.shape[:0:-1]
    _, (filtered, evidence) = _forward(rows, jnp.broadcast_to(rows.initial, shape))
    _, pairs, emitted = _backward(rows, jnp.ones(shape, filtered.dtype), filtered, keep)
    return _smoothed(chain, keep, evidence, pairs, emitted)


# In blocks.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_blocks(blocks: int, keep: bool, chain: _Chain) -> Smoothed:
    rows = _rows_of(chain, blocks)
    k, sequences = rows.initial.shape[0], chain.potentials.shape[0]
    edge = jnp.broadcast_to(rows.initial, (k, sequences)), jnp.ones((k, sequences), rows.potentials.dtype)

    def scan(borders):
        predicted, (filtered, evidence) = _forward(rows, borders[0])
        ahead, pairs, emitted = _backward(rows, borders[1], filtered, keep)
        return _smoothed(chain, keep, evidence, pairs, emitted), _beside(predicted, ahead, edge)

    guessed = _guess(rows, edge)
    smoothed, arrived = scan(guessed)
    # Only what can be reached is read of the way back.
    back = [_normalized(jnp.where(arrived[0] > 0, ahead, 0)) for ahead in (guessed[1], arrived[1])]
    agreed = _agree(guessed[0], arrived[0]) & _agree(*back)

    def exactly(_):
        return scan(_compose(rows, edge))[0], jnp.array(True)

    return jax.lax.while_loop(lambda state: ~state[1], exactly, (smoothed, agreed))[0]


@_in_blocks.defjvp
def _in_blocks_jvp(blocks, keep, primals, tangents):
    # The derivative of the same mathematics, by the scan: a loop until borders agree is not differentiable in reverse.
    _, tangent = jax.jvp(functools.partial(_sequential, keep), primals, tangents)
    return _in_blocks(blocks, keep, *primals), tangent


def _beside(predicted: Array, ahead: Array, edge: tuple[Array, Array]) -> tuple[Array, Array]:
    """Where the scan of one block ends, the next one begins; the chain's own ends at the edges."""
    sequences = edge[0].shape[1]
    return (
        jnp.concatenate([edge[0], predicted[:, :-sequences]], axis=1),
        jnp.concatenate([ahead[:, sequences:], edge[1]], axis=1),
    )


def _guess(rows: _Rows, edge: tuple[Array, Array]) -> tuple[Array, Array]:
    """Borders from scanning the steps before them (after them, for the way back) from no knowledge at all."""
    count = min(_WARM_UP, rows.potentials.shape[0])
    flat = jnp.full(rows.potentials.shape[:0:-1], 1 / rows.initial.shape[0], rows.potentials.dtype)
    last, first = (_part(rows, cut) for cut in (slice(-count, None), slice(None, count)))
    predicted, _ = _forward(last, flat, emit=False)
    return _beside(predicted, _backward_only(first, flat), edge)


def _part(rows: _Rows, steps: slice) -> _Rows:
    cut = {
        name: value[steps]
        for name in ("potentials", "starts", "ends", "own")
        if (value := getattr(rows, name)) is not None
    }
    return rows._replace(**cut)


def _normalized(message: Array) -> Array:
    total = jnp.sum(message, axis=0, keepdims=True)
    return message / jnp.where(total == 0, 1, total)


def _agree(guessed: Array, arrived: Array) -> Bool[Array, ""]:
    """Equal up to rounding, every entry relative to its own size (messages contract in just that distance)."""
    info = jnp.finfo(guessed.dtype)
    near = jnp.abs(guessed - arrived) <= _AGREEMENT * info.eps * jnp.maximum(guessed, arrived) + info.tiny
    return jnp.all(near)


def _compose(rows: _Rows, edge: tuple[Array, Array]) -> tuple[Array, Array]:
    """Exact borders: the operator of every block on p(z | before), and then one step per block.

    Where a sequence begins inside a block, the block is left the same way however it was entered, or if it could not be
    entered at all; the way back sees the steps before the beginning only.
    """
    _, count, k = rows.potentials.shape
    sequences = edge[0].shape[1]

    def repeat(a: Array) -> Array:
        """Every row once for each state that a block is entered in."""
        return jnp.concatenate([a] * k, axis=-1)

    def relative(scale: Array) -> Array:
        """Less that of the best state to enter in; −∞ stays."""
        scale = scale.reshape(k, count)
        best = jnp.max(scale, axis=0)
        return (scale - jnp.where(jnp.isneginf(best), 0, best)).reshape(-1)

    entered = jnp.repeat(jnp.eye(k, dtype=rows.potentials.dtype), count, axis=1)

    def step(carry, xs):
        message, scale, begun = carry
        potential, start, own = xs
        if start is not None:
            begun = begun | start[0]
            message = jnp.where(repeat(start), rows.initial, message)
        filtered, evidence = _weigh(message, repeat(potential.T))
        # Only differences between the entered states matter, and only they keep their digits over a long block.
        scale = relative(scale + jnp.where(repeat(begun), 0, relative(_evidence(*evidence))))
        return (_onward(rows, filtered, None if own is None else repeat(own)), scale, begun), None

    begin = (entered, jnp.zeros(k * count, entered.dtype), jnp.zeros(count, bool))
    (left, scale, begun), _ = jax.lax.scan(step, begin, (rows.potentials, rows.starts, rows.own))
    # [S, K entered, K left, B]
    operators = jnp.transpose(left.reshape(k, k, -1, sequences), (2, 1, 0, 3))
    scales = jnp.transpose(scale.reshape(k, -1, sequences), (1, 0, 2))
    every = (operators, scales, begun.reshape(-1, sequences))

    def onward(predicted, xs):
        operator, scale, begun = xs
        weighed, _ = _weigh(predicted, scale)
        return jnp.where(begun, operator[0], jnp.sum(weighed[:, None] * operator, axis=0)), predicted

    def back(ahead, xs):
        (operator, scale, begun), predicted = xs
        through = jnp.where(begun, 1, jnp.sum(operator * ahead[None], axis=1))
        return _weigh(jnp.where(predicted > 0, through, 0), scale)[0], ahead

    _, predicted = jax.lax.scan(onward, edge[0], every)
    _, ahead = jax.lax.scan(back, edge[1], (every, predicted), reverse=True)
    # [S, K, B] to [K, S·B]
    return jnp.swapaxes(predicted, 0, 1).reshape(k, -1), jnp.swapaxes(ahead, 0, 1).reshape(k, -1)
