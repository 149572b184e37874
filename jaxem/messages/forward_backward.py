"""Forward-backward on a chain of K states, normalized at every step: sequential, or in blocks of time.

Messages are probabilities, so transitions of exactly 0 need no special care. A step weighs the states that can be
reached at all against the most likely *of those*; a float32 chain of a million steps neither underflows nor drifts, and
a state that is almost impossible but alone possible keeps its weight.

Sequential: one scan over time that carries the forward and the backward message together. In blocks: time is cut into
S blocks that are scanned side by side, S times shorter, from messages at their borders. Chains forget, so the borders
are first guessed by scanning the last steps before each of them from nothing. Whether that was enough is then *seen*:
the guesses must be where the blocks next door arrive. Where they are not, the borders are computed exactly, by composing
the blocks' K x K operators, which costs K times a scan. Both ways give the sequential numbers up to rounding.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# Blocks pay for few and long sequences: so many rows at once fill the vector units, and fewer steps are not worth it.
_ROWS = 256
_LONG = 4096
# Steps from which a border is guessed.
_WARM_UP = 256
# Guessed borders agree with the blocks beside them to so many roundings, relative to each entry.
_AGREEMENT = 256


@pytree
class Smoothed:
    """What forward-backward leaves behind, time first.

    filtered: p(z_t | x_1 … x_t), [T, B, K]. ahead: ∝ p(x_t … x_T | z_t), each normalized to sum 1, [T, B, K].
    behind: ∝ p(x_{t+1} … x_T | z_t), on the scale that ``ahead`` of the next step gives it, [T, B, K].
    evidence: log p(x_t | x_1 … x_{t−1}), [T, B].
    """

    filtered: Float[Array, "T B K"]
    ahead: Float[Array, "T B K"]
    behind: Float[Array, "T B K"]
    evidence: Float[Array, "T B"]

    def marginals(self) -> tuple[Float[Array, "T B K"], Float[Array, "T B"]]:
        """p(z_t | x), and the factor 1/Σ_k filtered · behind that makes them sum to 1 (0 where nothing is possible)."""
        joint = self.filtered * self.behind
        total = jnp.sum(joint, axis=-1)
        # A NaN total is kept: data that are not numbers must be seen, not turned into "impossible".
        factor = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
        return joint * factor[..., None], factor


def forward_backward(
    initial: Float[Array, " K"],
    transition: Float[Array, "K K"] | Float[Array, "T B K K"],
    potentials: Float[Array, "T B K"],
    starts: Bool[Array, "T B"] | None = None,
    blocks: int | None = None,
) -> Smoothed:
    """Messages both ways along B chains at once, ``p(z, x) ∝ p(z_1) Π p(z_t | z_{t−1}) exp(potentials_t(z_t))``.

    initial, transition: probabilities. A transition for every step, [T, B, K, K], goes *into* step t (that into the
    first is not read). starts: True where another sequence begins; none goes over such a border. A potential of 0 in
    all states is a step without an observation; padding at the end changes nothing. blocks: how many blocks of time; 1
    is sequential; by default chosen from the shape.
    """
    if blocks is None:
        blocks = _choose_blocks(*potentials.shape[:2]) if transition.ndim == 2 else 1
    chain = _Chain(initial, transition, starts)
    if blocks == 1:
        return _sequential(chain, potentials)
    return _in_blocks(blocks, chain, potentials)


class _Chain(NamedTuple):
    initial: jax.Array
    transition: jax.Array
    starts: jax.Array | None


def _choose_blocks(steps: int, sequences: int) -> int:
    if steps < _LONG or sequences * 2 > _ROWS:
        return 1
    return max(1, min(_ROWS // sequences, steps // _WARM_UP))


def _weigh(message: Array, potential: Array) -> tuple[Array, tuple[Array, Array]]:
    """``message · exp(potential)`` normalized, and its sum as (total, peak), the sum being total · exp(peak)."""
    reachable = message > 0
    peak = jnp.max(jnp.where(reachable, potential, -jnp.inf), axis=-1, keepdims=True)
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    weighed = message * jnp.exp(jnp.minimum(potential - peak, 0))
    total = jnp.sum(weighed, axis=-1, keepdims=True)
    return weighed / jnp.where(total == 0, 1, total), (total[..., 0], peak[..., 0])


def _evidence(total: Array, peak: Array) -> Array:
    """log(total · exp(peak)), −∞ where nothing is possible. Outside the scans, where logarithms vectorize."""
    return jnp.where(total == 0, -jnp.inf, jnp.log(jnp.where(total == 0, 1, total)) + peak)


def _forward(message: Array, transition: Array) -> Array:
    if transition.ndim == 2:
        return dot(message, transition)
    return jnp.sum(message[..., :, None] * transition, axis=-2)


def _backward(message: Array, transition: Array) -> Array:
    if transition.ndim == 2:
        return dot(message, transition.T)
    return jnp.sum(transition * message[..., None, :], axis=-1)


def _ends(starts: Array | None) -> Array | None:
    """True at the last step of each sequence; the last step of all needs no mark."""
    return None if starts is None else jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])


def _step_forward(chain: _Chain, predicted: Array, step: tuple) -> tuple[Array, tuple[Array, Any]]:
    """From p(z_t | before t) over step t to p(z_{t+1} | up to t). ``into`` is the transition into t + 1."""
    potential, start, into = step
    if start is not None:
        predicted = jnp.where(start[..., None], chain.initial, predicted)
    filtered, evidence = _weigh(predicted, potential)
    return _forward(filtered, chain.transition if into is None else into), (filtered, evidence)


def _step_backward(chain: _Chain, behind: Array, step: tuple) -> tuple[Array, tuple[Array, Array]]:
    """From p(after t | z_t) over step t to p(from t on | z_{t−1}). ``into`` is the transition into t."""
    potential, end, into = step
    if end is not None:
        behind = jnp.where(end[..., None], 1, behind)
    ahead, _ = _weigh(behind, potential)
    return _backward(ahead, chain.transition if into is None else into), (ahead, behind)


def _both_ways(chain: _Chain, potentials: Array, predicted: Array, behind: Array) -> tuple[tuple, Smoothed]:
    """One scan, forward from ``predicted`` at the first step and backward from ``behind`` at the last."""
    own = chain.transition.ndim > 2
    into = chain.transition if own else None
    out_of = jnp.concatenate([into[1:], into[:1]]) if own else None
    forward = (potentials, chain.starts, out_of)
    backward = jax.tree.map(lambda a: a[::-1], (potentials, _ends(chain.starts), into))

    def step(carry, xs):
        predicted, (filtered, evidence) = _step_forward(chain, carry[0], xs[0])
        behind, messages = _step_backward(chain, carry[1], xs[1])
        return (predicted, behind), (filtered, evidence, messages)

    carry, (filtered, evidence, messages) = jax.lax.scan(step, (predicted, behind), (forward, backward))
    ahead, behind = (a[::-1] for a in messages)
    return carry, Smoothed(filtered, ahead, behind, _evidence(*evidence))


def _sequential(chain: _Chain, potentials: Array) -> Smoothed:
    first = jnp.broadcast_to(chain.initial, potentials.shape[1:])
    return _both_ways(chain, potentials, first, jnp.ones_like(first))[1]


# In blocks: rows of the scan are [S, B] (block, sequence).


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_blocks(blocks: int, chain: _Chain, potentials: Array) -> Smoothed:
    steps, sequences, k = potentials.shape
    size = -(-steps // blocks)
    cut = functools.partial(_cut, blocks=blocks, size=size)
    own = _Chain(chain.initial, chain.transition, None if chain.starts is None else cut(chain.starts, fill=False))
    ends = None if chain.starts is None else cut(_ends(chain.starts), fill=False)
    rows = cut(potentials, fill=0.0)
    edge = jnp.broadcast_to(chain.initial, (1, sequences, k)), jnp.ones((1, sequences, k), rows.dtype)

    def scan(borders):
        carry, smoothed = _blocks_both_ways(own, ends, rows, *borders)
        arrived = _beside(carry, edge)
        return smoothed, arrived

    borders = _guess(own, ends, rows, edge)
    smoothed, arrived = scan(borders)
    agreed = _agree(borders[0], arrived[0]) & _agree(borders[1], arrived[1])

    def exactly(state):
        return *scan(_compose(own, ends, rows, edge))[:1], jnp.array(True)

    smoothed, _ = jax.lax.while_loop(lambda state: ~state[1], exactly, (smoothed, agreed))
    return jax.tree.map(lambda a: _join(a, steps), smoothed)


@_in_blocks.defjvp
def _in_blocks_jvp(blocks, primals, tangents):
    # The derivative of the same mathematics, by the scan: a loop until borders agree is not differentiable in reverse.
    chain, potentials = primals
    chain_dot, potentials_dot = tangents
    moving = (chain.initial, chain.transition, potentials)
    moving_dot = (chain_dot.initial, chain_dot.transition, potentials_dot)
    run = lambda initial, transition, p: _sequential(_Chain(initial, transition, chain.starts), p)  # noqa: E731
    _, tangent = jax.jvp(run, moving, moving_dot)
    return _in_blocks(blocks, chain, potentials), tangent


def _cut(a: Array, blocks: int, size: int, fill: float | bool) -> Array:
    """[T, B, …] to [L, S, B, …]: step l of block s is step s·L + l; the end is padded with ``fill``."""
    missing = blocks * size - a.shape[0]
    if missing:
        a = jnp.concatenate([a, jnp.full((missing, *a.shape[1:]), fill, a.dtype)])
    return jnp.swapaxes(a.reshape(blocks, size, *a.shape[1:]), 0, 1)


def _join(a: Array, steps: int) -> Array:
    """The inverse of `_cut`."""
    return jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:])[:steps]


def _blocks_both_ways(chain: _Chain, ends: Array | None, rows: Array, predicted: Array, behind: Array):
    """`_both_ways` for all blocks at once; the ends of sequences do not follow from the starts inside a block."""

    def step(carry, xs):
        forward, backward = xs
        predicted, (filtered, evidence) = _step_forward(chain, carry[0], (*forward, None))
        behind, messages = _step_backward(chain, carry[1], (*backward, None))
        return (predicted, behind), (filtered, evidence, messages)

    reverse = jax.tree.map(lambda a: a[::-1], (rows, ends))
    carry, (filtered, evidence, messages) = jax.lax.scan(step, (predicted, behind), ((rows, chain.starts), reverse))
    ahead, behind = (a[::-1] for a in messages)
    return carry, Smoothed(filtered, ahead, behind, _evidence(*evidence))


def _beside(arrived: tuple[Array, Array], edge: tuple[Array, Array]) -> tuple[Array, Array]:
    """Where the scan of one block ends, the next one begins; the chain's own ends at the edges."""
    predicted, behind = arrived
    return jnp.concatenate([edge[0], predicted[:-1]]), jnp.concatenate([behind[1:], edge[1]])


def _guess(chain: _Chain, ends: Array | None, rows: Array, edge: tuple[Array, Array]) -> tuple[Array, Array]:
    """Borders from scanning the steps before them (after them, for the way back) from no knowledge at all."""
    count = min(_WARM_UP, rows.shape[0])
    flat = jnp.full(rows.shape[1:], 1 / rows.shape[-1], rows.dtype)
    last, first = (
        jax.tree.map(part, (rows, chain.starts, ends)) for part in (lambda a: a[-count:], lambda a: a[:count])
    )
    reverse = jax.tree.map(lambda a: a[::-1], (first[0], first[2]))

    def step(carry, xs):
        forward, backward = xs
        predicted, _ = _step_forward(chain, carry[0], (*forward, None))
        behind, _ = _step_backward(chain, carry[1], (*backward, None))
        return (predicted, behind), None

    carry, _ = jax.lax.scan(step, (flat, flat), ((last[0], last[1]), reverse))
    return _beside(carry, edge)


def _agree(guessed: Array, arrived: Array) -> Bool[Array, ""]:
    """Equal up to rounding, every entry relative to its own size (messages contract in just that distance)."""
    info = jnp.finfo(guessed.dtype)
    near = jnp.abs(guessed - arrived) <= _AGREEMENT * info.eps * jnp.maximum(guessed, arrived) + info.tiny
    return jnp.all(near)


def _compose(chain: _Chain, ends: Array | None, rows: Array, edge: tuple[Array, Array]) -> tuple[Array, Array]:
    """Exact borders: the operator of every block, p(z_L, x of the block | z_0), and then one step per block."""
    _, blocks, sequences, k = rows.shape
    one = jnp.broadcast_to(jnp.eye(k, dtype=rows.dtype), (blocks, sequences, k, k))

    def step(carry, xs):
        operator, scale = carry
        potential, start = xs
        if start is not None:
            start = start[..., None]
        operator, (_, evidence) = _step_forward(chain, operator, (potential[..., None, :], start, None))
        # An operator without any way through would be −∞ beside −∞: 0 carries no weight either way.
        return (operator, scale + _evidence(*evidence)), None

    (operators, scales), _ = jax.lax.scan(step, (one, jnp.zeros(one.shape[:-1], rows.dtype)), (rows, chain.starts))

    def forward(message, xs):
        operator, scale = xs
        weighed, _ = _weigh(message, scale)
        return jnp.sum(weighed[..., :, None] * operator, axis=-2), message

    def backward(message, xs):
        operator, scale = xs
        through = jnp.sum(operator * message[..., None, :], axis=-1)
        weighed, _ = _weigh(through, scale)
        return weighed, message

    _, predicted = jax.lax.scan(forward, edge[0][0], (operators, scales))
    _, behind = jax.lax.scan(backward, edge[1][0], (operators, scales), reverse=True)
    return predicted, behind
