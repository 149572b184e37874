"""How stochastic EM follows the statistics of all the data while it sees one mini-batch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.blocks import two_sum
from jaxem.model import pytree, static, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@pytree
class Visit:
    """Which mini-batch is being looked at, and when.

    sweep: passes before this one. block: its number, of num_blocks (None where that is not known). last: whether the pass
    ends with it. weight: of its examples. share: that against what a mini-batch weighs on average. total: the weight of
    all the data.
    """

    sweep: Int[Array, ""]
    block: Int[Array, ""]
    last: Bool[Array, ""]
    share: Float[Array, ""]
    weight: Float[Array, ""]
    total: Float[Array, ""]
    num_blocks: int | None = static()


class Update:
    """A rule with a memory: from the statistics of a mini-batch to those of all the data, and whether to move by them."""

    #: True where the objective summed over a pass is that of parameters which move meanwhile.
    estimates: bool = True
    #: True where what is followed is noise, in which single gains say nothing.
    noisy: bool = True
    #: Passes whose mean objective `Plateau` compares, where it is noisy.
    window: int = 5
    #: True where the number of mini-batches must be known.
    counts_blocks: bool = True

    def start(self, stats: Any, num_blocks: int | None) -> Any:
        """The memory before the first pass; ``stats`` has the shapes of the statistics."""
        raise unsupported(self, "start", "StochasticEM")

    def absorb(self, memory: Any, stats: Any, visit: Visit) -> tuple[Any, Any, Bool[Array, ""]]:
        """The next memory, statistics of all the data, and True where the M-step is to be made of them."""
        raise unsupported(self, "absorb", "StochasticEM")

    def provisional(self, sweep: Int[Array, ""], num_blocks: int | None) -> Bool[Array, ""] | bool:
        """True of a pass whose objective is not to be judged (see `jaxem.Info`)."""
        return False


def _zeros(stats: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), stats)


def _tables(stats: Any, num_blocks: int | None) -> Any:
    """Room for the statistics of every mini-batch."""
    assert num_blocks is not None
    return jax.tree.map(lambda a: jnp.zeros((num_blocks, *a.shape), a.dtype), stats)


@pytree
class RunningMean:
    """mean: of the statistics per unit weight, in which a start of 0 still has the part 1 − known.

    visits: mini-batches seen. weight: of them, in units of the mean one's.
    """

    mean: Any
    known: Float[Array, ""]
    visits: Int[Array, ""]
    weight: Float[Array, ""]


@pytree
class Online(Update):
    """Online EM: a running mean of the statistics, ``s ← s + ρ_t (s_t − s)`` with ``ρ_t = (offset + t)^(−decay)``.

    Cappé & Moulines 2009 (J. R. Statist. Soc. B 71). t counts mini-batches, s_t is per unit weight, and the M-step
    follows every mini-batch. The parameters converge to a stationary point of the likelihood, with noise of size √ρ_t.
    decay: in (1/2, 1]; small values forget the start sooner, large ones are less noisy. offset: at least 0. warm_up:
    mini-batches before the first M-step, whose plain mean it takes: components collapse on the statistics of a few rows.
    None is the whole first pass, which then is a step of EM; fewer pay where mini-batches are large. Raises ValueError
    for others.
    """

    decay: float | jax.Array = 0.6
    offset: float | jax.Array = 0.0
    warm_up: int | jax.Array | None = None

    counts_blocks = False

    def __post_init__(self):
        if isinstance(self.decay, (int, float)) and not 0.5 < self.decay <= 1:
            raise ValueError(f"decay must lie in (1/2, 1]; got {self.decay}")
        for name in ("offset", "warm_up"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number, at least 0; got {value}")

    def start(self, stats: Any, num_blocks: int | None) -> RunningMean:
        return _nothing(stats)

    def absorb(self, memory: RunningMean, stats: Any, visit: Visit) -> tuple[RunningMean, Any, Bool[Array, ""]]:
        t = memory.visits + 1
        # None: until the first pass has ended.
        warming = visit.sweep == 0 if self.warm_up is None else t <= self.warm_up
        ready = (visit.sweep > 0) | visit.last if self.warm_up is None else t >= self.warm_up
        count = t.astype(visit.share.dtype)
        # A mini-batch counts as its weight, so that what the mean settles at is the mean of all the data.
        later = jnp.minimum(visit.share * (self.offset + count) ** -jnp.asarray(self.decay, count.dtype), 1)
        seen = memory.weight.astype(visit.share.dtype) + visit.share
        plain = visit.share / jnp.where(seen > 0, seen, 1)
        memory, whole, known = _averaged(memory, stats, visit, jnp.where(warming, plain, later))
        return memory, whole, known & ready


@pytree
class Averaging(Update):
    """SAEM: the mean of the statistics since a burn-in, ``s ← s + γ_t (s_t − s)``; γ_t is 1 first, then 1/(t − burn_in).

    Delyon, Lavielle & Moulines 1999 (Ann. Statist. 27). t counts mini-batches. burn_in: mini-batches of which none is
    remembered; the parameters come to wander about the optimum, are not judged yet, and average out after. Raises
    ValueError for a negative one.
    """

    burn_in: int | jax.Array = 50

    window = 20

    def __post_init__(self):
        if isinstance(self.burn_in, (int, float)) and not 0 <= self.burn_in < float("inf"):
            raise ValueError(f"burn_in must be a number of mini-batches, at least 0; got {self.burn_in}")

    def start(self, stats: Any, num_blocks: int | None) -> RunningMean:
        return _nothing(stats)

    def absorb(self, memory: RunningMean, stats: Any, visit: Visit) -> tuple[RunningMean, Any, Bool[Array, ""]]:
        since = (memory.visits + 1 - self.burn_in).astype(visit.share.dtype)
        rate = jnp.minimum(visit.share / jnp.maximum(since, 1), 1)
        return _averaged(memory, stats, visit, rate)

    def provisional(self, sweep: Int[Array, ""], num_blocks: int | None) -> Bool[Array, ""] | bool:
        assert num_blocks is not None
        return sweep * num_blocks < self.burn_in


def _nothing(stats: Any) -> RunningMean:
    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(stats)))
    return RunningMean(_zeros(stats), zero, jnp.int32(0), zero)


def _averaged(memory: RunningMean, stats: Any, visit: Visit, rate: Array) -> tuple[RunningMean, Any, Bool[Array, ""]]:
    """The mean moved by ``rate`` to that of a mini-batch, the statistics of all the data by it, and if it is one yet."""
    per_unit = 1 / jnp.where(visit.weight > 0, visit.weight, 1)
    mean = jax.tree.map(lambda m, s: m + rate.astype(m.dtype) * (s * per_unit.astype(m.dtype) - m), memory.mean, stats)
    known = memory.known + rate.astype(memory.known.dtype) * (1 - memory.known)
    scale = visit.total / jnp.where(known > 0, known, 1)
    whole = jax.tree.map(lambda m: m * scale.astype(m.dtype), mean)
    seen = memory.weight + visit.share.astype(memory.weight.dtype)
    return RunningMean(mean, known, memory.visits + 1, seen), whole, known > 0


@pytree
class BlockSums:
    """tables: the statistics of every mini-batch, [B, …]. total and error: their compensated sum."""

    tables: Any
    total: Any
    error: Any


@pytree
class Incremental(Update):
    """Incremental EM: the newest statistics of every mini-batch are kept, and each replaces its own in their sum.

    Neal & Hinton 1998. Every M-step raises the bound on the likelihood, whose other half every mini-batch's E-step
    raises; the limit is an optimum of EM, reached in fewer passes. The first pass, in which the sum fills, is a step of
    EM. Memory: B times that of the statistics.
    """

    noisy = False

    def start(self, stats: Any, num_blocks: int | None) -> BlockSums:
        return BlockSums(_tables(stats, num_blocks), _zeros(stats), _zeros(stats))

    def absorb(self, memory: BlockSums, stats: Any, visit: Visit) -> tuple[BlockSums, Any, Bool[Array, ""]]:
        sums = _replaced(memory, stats, visit)
        return sums, jax.tree.map(jnp.add, sums.total, sums.error), (visit.sweep > 0) | visit.last


def _replaced(memory: BlockSums, stats: Any, visit: Visit) -> BlockSums:
    """The sums with a mini-batch's statistics instead of its old ones."""

    def one(table: Array, total: Array, error: Array, new: Array) -> tuple[Array, Array, Array]:
        total, error = two_sum(*two_sum(total, error, -table[visit.block]), new)
        return table.at[visit.block].set(new), total, error

    triples = jax.tree.map(one, memory.tables, memory.total, memory.error, stats)
    return BlockSums(*jax.tree.transpose(jax.tree.structure(stats), jax.tree.structure((0, 0, 0)), triples))


@pytree
class Anchored:
    """sums: of the last full pass, at parameters that stood still. current: the statistics that are followed."""

    sums: BlockSums
    current: Any


@pytree
class VarianceReduced(Update):
    """Variance-reduced stochastic EM: mini-batches correct the statistics of the last full pass.

    ``s ← s + ρ (B (s_b(θ) − s_b(θ̃)) + S(θ̃) − s)``, with S the sum and s_b a mini-batch's part of it at the anchor θ̃:
    the noise vanishes with θ − θ̃, so the step size need not (sEM-vr; Chen, Zhu, Teh & Zhang 2018). Full passes, which
    are steps of EM and whose objective is exact, take turns with passes of mini-batches. Memory: B times that of the
    statistics. step_size: ρ in (0, 1], by default B^(−2/3) (Karimi, Wai, Moulines & Lavielle 2019). Raises ValueError
    for another.
    """

    step_size: float | jax.Array | None = None

    estimates = False
    noisy = False

    def __post_init__(self):
        if isinstance(self.step_size, (int, float)) and not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must lie in (0, 1]; got {self.step_size}")

    def start(self, stats: Any, num_blocks: int | None) -> Anchored:
        return Anchored(Incremental().start(stats, num_blocks), _zeros(stats))

    def absorb(self, memory: Anchored, stats: Any, visit: Visit) -> tuple[Anchored, Any, Bool[Array, ""]]:
        num_blocks = visit.num_blocks
        assert num_blocks is not None
        full = ~self.provisional(visit.sweep, num_blocks)
        rate = num_blocks ** (-2 / 3) if self.step_size is None else self.step_size
        anchored = jax.tree.map(lambda new, table: jnp.where(full, new, table[visit.block]), stats, memory.sums.tables)
        sums = _replaced(memory.sums, anchored, visit)

        def follow(current: Array, new: Array, table: Array, total: Array, error: Array) -> Array:
            whole = total + error
            aim = num_blocks * (new - table[visit.block]) + whole
            return jnp.where(full, whole, current + jnp.asarray(rate, current.dtype) * (aim - current))

        current = jax.tree.map(follow, memory.current, stats, sums.tables, sums.total, sums.error)
        return Anchored(sums, current), current, ~full | visit.last

    def provisional(self, sweep: Int[Array, ""], num_blocks: int | None) -> Bool[Array, ""]:
        return sweep % 2 == 1
