"""The one loop over iterations: slots that lanes pass through, a queue before them, and fewer slots at the end."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxem.lane import Control, Lane, advance
from jaxem.model import Algorithm, Model, num_examples, pytree, static
from jaxem.status import Status

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Lanes are gathered into a quarter of the slots when three quarters have stopped; waiting lanes enter when an eighth
# has.
_SHRINK = 4
_REFILL = 8
# Bytes that one step should touch: enough to fill the vector units and threads, little enough to stay in the cache.
# Below the second figure a step costs its overhead, and fewer slots would save nothing. Fewer slots are one more program,
# so on a CPU a step begins with no more slots than leave nothing to save: measured, 64 starts of 5 000 x 4 and 2 000 data
# sets of 200 x 2 end as soon as with two and three programs.
_FULL_STEP = {"cpu": 2**19}
_FULL_STEP_ELSEWHERE = 5 * 2**18
_SMALL_STEP = {"cpu": 2**20}
_SMALL_STEP_ELSEWHERE = 3 * 2**17


@pytree
class Index:
    """Which lane sees which data set. None: all lanes share the one given; else [L] indices into a leading axis."""

    data: Int[Array, " L"] | None = None
    weights: Int[Array, " L"] | None = None


def axes_of(index: Index) -> tuple[int | None, int | None, int | None]:
    """vmap axes of (model, data, weights): what is shared by all lanes is not copied for each."""
    data = None if index.data is None else 0
    return data, data, (0 if index.weights is not None else data)


def problem_of(model, data, weights, index: Index, lanes) -> tuple[Any, Any, Any]:
    """(model, data, weights) of some lanes: gathered where lanes differ, as given where they share."""
    if index.data is not None:
        rows = index.data[lanes]
        model, data = take((model, data), rows)
        if index.weights is None:
            weights = take(weights, rows)
    if index.weights is not None:
        weights = take(weights, index.weights[lanes])
    return model, data, weights


def _step_slots(slots: Lane, problem: tuple[Any, Any, Any], axes, algorithm: Algorithm, control: Control) -> Lane:
    """One step of all slots, whether their lanes run or not."""
    if slots.status.shape[0] == 1:
        # The last lane, and a single fit: no lane axis, so that nothing is computed for the sake of one.
        lane = jax.tree.map(lambda a: a[0], slots)
        own = [p if axis is None else jax.tree.map(lambda a: a[0], p) for p, axis in zip(problem, axes, strict=True)]
        return jax.tree.map(lambda a: a[None], advance(lane, own[0], own[1], own[2], algorithm, control))

    def one(lane: Lane, model: Any, data: Any, weights: Any) -> Lane:
        return advance(lane, model, data, weights, algorithm, control)

    return jax.vmap(one, in_axes=(0, *axes))(slots, *problem)


def drive(lanes: Lane, model, data, weights, index: Index, algorithm, control, slots: int | None) -> Lane:
    """Run every lane that is RUNNING until it has stopped."""
    for stage in stages(lanes.status.shape[0], model, data, index, slots):
        flight = fly(enter(lanes, stage), stage.target, None, model, data, weights, index, algorithm, control)
        lanes = leave(flight)
    return lanes


def bytes_per_lane(model: Model, data: Any, index: Index) -> int:
    """What a step touches for the sake of one lane: its potentials, and its data unless they are shared."""
    leaves = jax.tree.leaves(data)
    itemsize = leaves[0].dtype.itemsize
    if index.data is None:
        rows = num_examples(data)
        return rows * itemsize * max(1, model.num_components)
    sets = leaves[0].shape[0]
    rows = leaves[0].shape[1] if leaves[0].ndim > 1 else 1
    return rows * itemsize * model.num_components + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // sets


def _slot_sizes(num_lanes: int, per_lane: int, slots: int | None) -> list[int]:
    """How many slots each stage steps: the first as asked or as fills the machine, then fewer and fewer."""
    backend = jax.default_backend()
    full_step = _FULL_STEP.get(backend, _FULL_STEP_ELSEWHERE)
    small_step = _SMALL_STEP.get(backend, _SMALL_STEP_ELSEWHERE)
    full = 2 ** max(0, round(math.log2(full_step / per_lane))) if slots is None else slots
    sizes = [max(1, min(int(full), num_lanes))]
    while sizes[-1] > 1 and sizes[-1] * per_lane > small_step:
        sizes.append(max(1, sizes[-1] // _SHRINK))
    return sizes


class Stage(NamedTuple):
    """How many slots are stepped at once, and the number of running lanes at which fewer slots would do."""

    size: int
    target: int


def stages(num_lanes: int, model: Model, data: Any, index: Index, slots: int | None) -> list[Stage]:
    """The stages that lanes pass through one after the other; shapes are all that is looked at."""
    sizes = _slot_sizes(num_lanes, bytes_per_lane(model, data, index), slots)
    return [Stage(size, target) for size, target in zip(sizes, [*sizes[1:], 0], strict=True)]


@pytree
class Flight:
    """Lanes on their way through a stage: all that a loop over iterations carries, so that it can pause anywhere.

    pool: all lanes, as they were when they last left a slot; () where every lane has a slot of its own. slots: those that
    are stepped, and lane_of: which lanes these are. order: running lanes first; running: how many these were at the
    beginning; waiting: how many of them have not had a slot yet. ticks: steps made.
    """

    pool: Any
    slots: Any
    lane_of: Any
    order: Any
    running: Int[Array, ""]
    waiting: Int[Array, ""]
    ticks: Int[Array, ""]

    @property
    def unfinished(self) -> Int[Array, ""]:
        """Lanes that run or wait."""
        return _num_active(self.slots) + self.waiting


def enter(lanes: Lane, stage: Stage) -> Flight:
    """The lanes at the beginning of a stage: the first of those that run have the slots."""
    total, size = lanes.status.shape[0], stage.size
    zero = jnp.int32(0)
    pool = _pack(lanes)
    if total == size:
        return Flight((), pool, (), (), zero, zero, zero)
    running = lanes.status == Status.RUNNING
    num_running = jnp.sum(running, dtype=jnp.int32)
    # Running lanes first, in their order: what a stable sort on (not running) gives, by counting.
    place = jnp.where(running, jnp.cumsum(running) - 1, num_running + jnp.cumsum(~running) - 1)
    order = jnp.zeros(total, jnp.int32).at[place].set(jnp.arange(total, dtype=jnp.int32))
    lane_of = order[:size]
    return Flight(pool, take(pool, lane_of), lane_of, order, num_running, jnp.maximum(num_running - size, 0), zero)


def leave(flight: Flight) -> Lane:
    """All lanes as they are now: also in the middle of a stage."""
    return (flight.slots if flight.pool == () else put(flight.pool, flight.lane_of, flight.slots)).tree


def fly(flight: Flight, target, until, model, data, weights, index: Index, algorithm, control) -> Flight:
    """Step the slots until no more than ``target`` lanes run, or ``ticks`` is ``until``. The loop over iterations.

    It may stop and go on at any tick without a change in any number.
    """
    axes = axes_of(index)
    shared = all(axis is None for axis in axes)
    roomy = flight.pool == ()
    size = _num_slots(flight.slots)
    total = size if roomy else flight.order.shape[0]

    def gather(lane_of):
        return () if shared else problem_of(model, data, weights, index, lane_of)

    def cond(carry):
        flight, _ = carry
        more = flight.unfinished > target
        return more if until is None else more & (flight.ticks < until)

    def refill(carry):
        """Write what has stopped to the pool and give its slots the next waiting lanes."""
        flight, _ = carry
        pool = put(flight.pool, flight.lane_of, flight.slots)
        done = flight.slots.tree.status != Status.RUNNING
        rank = jnp.cumsum(done) - 1
        # Running lanes come first in the order, and those after the slots wait in it.
        position = jnp.clip(flight.running - flight.waiting + rank, 0, total - 1)
        takes = done & (rank < flight.waiting)
        lane_of = jnp.where(takes, flight.order[position], flight.lane_of)
        waiting = flight.waiting - jnp.sum(takes, dtype=jnp.int32)
        slots = take(pool, lane_of)
        return dataclasses.replace(flight, pool=pool, slots=slots, lane_of=lane_of, waiting=waiting), gather(lane_of)

    def body(carry):
        flight, problem = carry
        before = flight.slots.tree
        problem_now = (model, data, weights) if shared else problem
        after = _pack(_step_slots(before, problem_now, axes, algorithm, control))
        # A slot whose lane has stopped stays as it is.
        active = (before.status == Status.RUNNING)[:, None]
        slots = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, flight.slots)
        flight = dataclasses.replace(flight, slots=slots, ticks=flight.ticks + 1)
        if roomy:
            return flight, problem
        done = size - _num_active(slots)
        return jax.lax.cond((flight.waiting > 0) & (done * _REFILL >= size), refill, lambda c: c, (flight, problem))

    problem = gather(jnp.arange(total) if roomy else flight.lane_of)
    return jax.lax.while_loop(cond, body, (flight, problem))[0]


def _num_active(slots: _Packed) -> Int[Array, ""]:
    return jnp.sum(slots.tree.status == Status.RUNNING, dtype=jnp.int32)


def _num_slots(slots: _Packed) -> int:
    return next(iter(slots.matrices.values())).shape[0]


def take(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a)[rows], tree)


def put(tree: Any, rows: Array, new: Any) -> Any:
    return jax.tree.map(lambda a, b: a.at[rows].set(b), tree, new)


@pytree
class _Packed:
    """All leaves of a pytree with a lane axis as one matrix per dtype.

    The loop gathers, scatters and selects lanes; on two matrices instead of some twenty leaves that is two operations to
    compile instead of forty.
    """

    matrices: dict[str, Array]
    layout: Any = static()  # treedef, and (dtype, shape without the lane axis) of every leaf

    @property
    def tree(self) -> Any:
        treedef, leaves = self.layout
        num_lanes = _num_slots(self)
        offset = dict.fromkeys(self.matrices, 0)
        out = []
        for dtype, shape in leaves:
            size = math.prod(shape)
            if size == 0:
                out.append(jnp.zeros((num_lanes, *shape), dtype))
                continue
            begin = offset[dtype]
            offset[dtype] = begin + size
            out.append(self.matrices[dtype][:, begin : begin + size].reshape(-1, *shape))
        return jax.tree.unflatten(treedef, out)


def _pack(tree: Any) -> _Packed:
    leaves, treedef = jax.tree.flatten(tree)
    groups: dict[str, list[Array]] = {}
    for leaf in leaves:
        if leaf.size == 0:  # a trace nobody asked for; XLA does not survive a program that only concatenates nothing
            continue
        groups.setdefault(str(leaf.dtype), []).append(leaf.reshape(leaf.shape[0], -1))
    matrices = {dtype: jnp.concatenate(parts, axis=1) for dtype, parts in groups.items()}
    layout = (treedef, tuple((str(leaf.dtype), leaf.shape[1:]) for leaf in leaves))
    return _Packed(matrices, layout)
