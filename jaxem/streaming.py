"""EM over a stream: a step is a pass over its blocks, for any number of starts at once; and what `fit` makes of it.

`StreamWork` carries all that changes as arrays, and may pause after any block: what it goes on to is bit-equal.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import layout, passes, validate
from jaxem.algorithms.em import EM
from jaxem.distributed import GlobalRows
from jaxem.doors import given_starts, make_result, report
from jaxem.driver import Run, finish_lanes, rankable
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.lane import Control, Lane, enter, judge
from jaxem.model import Algorithm, Data, EStep, Model, UnsupportedError, num_examples
from jaxem.passes import Place, Seen, Sums
from jaxem.read_ahead import Reader
from jaxem.result import FitError, Result
from jaxem.slots import Index, put, take
from jaxem.status import USABLE, Status
from jaxem.streams import Cut, Sample, Stream
from jaxem.work import Work
from jaxem.wrappers.chunked import Chunked
from jaxem.wrappers.sharded import Sharded

if TYPE_CHECKING:
    from jaxtyping import Array

# The compiled pieces. A single lane has no lane axis, so that nothing is computed for the sake of one.


def _over_lanes(f: Any, *trees: Any) -> Any:
    if jax.tree.leaves(trees[0])[0].shape[0] > 1:
        return jax.vmap(f)(*trees)
    alone = f(*jax.tree.map(lambda a: a[0], trees))
    return jax.tree.map(lambda a: jnp.asarray(a)[None], alone)


@jax.jit
def _enter(algorithm, model, control, params, trace, block, weights, num_blocks: _Count) -> Lane:
    data, weights = model.compress(block, weights)

    def one(start: Any) -> Lane:
        state = algorithm.init_pass(model, start, data, weights, num_blocks.value)
        return enter(start, state, control, trace, jnp.int32(Status.RUNNING))

    return _over_lanes(one, params)


@jax.jit
def _begin(algorithm, model, lanes: Lane, block, weights) -> Any:
    data, weights = model.compress(block, weights)
    return _over_lanes(lambda lane: algorithm.begin_pass(model, lane.state, data, weights), lanes)


@jax.jit
def _see(algorithm, model, lanes: Lane, carry, block, weights, place: Place) -> Any:
    data, weights = model.compress(block, weights)
    return _over_lanes(lambda lane, c: algorithm.see(model, lane.state, c, data, weights, place), lanes, carry)


@jax.jit
def _end(algorithm, model, control, lanes: Lane, carry) -> Lane:
    def one(lane: Lane, c: Any) -> Lane:
        state, info = algorithm.end_pass(model, lane.state, c)
        after = judge(lane, state, info, model, algorithm, control)
        if algorithm.estimates:
            # The objective of what is returned is evaluated anyway: the last update is not thrown away.
            done = (after.status == Status.RUNNING) & (after.step >= control.max_steps)
            best = jax.tree.map(lambda new, old: jnp.where(done, new, old), state.params, after.best)
            status = jnp.where(done, jnp.int32(Status.MAX_STEPS), after.status)
            after = dataclasses.replace(after, best=best, status=status, step=after.step + done)
        return jax.tree.map(lambda new, old: jnp.where(lane.status == Status.RUNNING, new, old), after, lane)

    return _over_lanes(one, lanes, carry)


@jax.jit
def _begin_exact(model, params, block, weights) -> Sums:
    data, weights = model.compress(block, weights)
    return _over_lanes(lambda p: passes.begin(model, p, data, weights), params)


@jax.jit
def _see_exact(model, params, sums: Sums, block, weights) -> Sums:
    data, weights = model.compress(block, weights)
    return _over_lanes(lambda p, s: s.plus(model.e_step(p, data, weights)), params, sums)


@jax.jit
def _end_exact(model, lanes: Lane, sums: Sums) -> Lane:
    """Lanes whose objectives were estimates, with those of their parameters."""

    def one(lane: Lane, s: Sums) -> Lane:
        expected: EStep = s.value
        objective = (expected.log_likelihood + model.log_prior(lane.best)).astype(lane.objective.dtype)
        usable = jnp.isin(lane.status, jnp.array(USABLE))
        status = jnp.where(usable & ~jnp.isfinite(objective), jnp.int32(Status.NON_FINITE), lane.status)
        log_likelihood = expected.log_likelihood.astype(lane.objective.dtype)
        return dataclasses.replace(
            lane,
            objective=jnp.where(usable, objective, lane.objective),
            log_likelihood=jnp.where(usable, log_likelihood, lane.log_likelihood),
            status=jnp.where(usable & (objective == -jnp.inf), jnp.int32(Status.ZERO_LIKELIHOOD), status),
        )

    return _over_lanes(one, lanes, sums)


@jax.jit
def _look(model, data: Any, weights: Array) -> tuple[Array, Array]:
    """Whether all that is read of a block is finite, and its weight."""
    read = layout.hidden(data, 0.0) if isinstance(data, Data) else data
    floats = [leaf for leaf in jax.tree.leaves(read) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = jnp.array(True)
    for leaf in floats:
        finite &= jnp.all(jnp.isfinite(leaf))
    return finite, model.num_observations(data, weights)


_take = jax.jit(take)
_put = jax.jit(put)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Count:
    """A number that is part of a program."""

    value: int | None


class StreamWork(Work):
    """Lanes on a stream, pass after pass; it can pause after any block.

    All lanes that run share a pass. Those that have stopped stay as they are, and are gathered away when half of them have.
    An algorithm that only estimates its objective is followed by one more pass, for the exact one. In the first pass the
    data are checked: ValueError names the row of the stream.
    waited: seconds for which blocks were not there yet when they were wanted. `close` ends the thread that reads ahead, as
    the end of every pass does.
    """

    unit = "block"

    def __init__(
        self, model: Model, stream: Stream, params: Any, algorithm: Algorithm, control: Control, trace_size: int = 0
    ):
        self.model, self.stream, self.control = model, stream, control
        self.algorithm = algorithm.on_blocks(stream.block_size)
        if self.algorithm.counts_blocks:
            stream.count()
        self.ticks, self.waited = 0, 0.0
        self._reader: Reader | None = None
        self._phase, self._sweep, self._block = "steps", 0, 0
        self._rows = self._present = self._steps = 0
        self._weight = 0.0

        first = self._next()
        self.close()
        model.check_divisible(first.data)
        self._model = _by_chunks(model, first)
        self._shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (first.data, first.weights))
        params = jax.tree.map(jnp.asarray, params)
        dtype = jnp.result_type(*(a for a in jax.tree.leaves(params) if jnp.issubdtype(a.dtype, jnp.floating)))
        trace = jnp.full(trace_size, jnp.nan, dtype)
        count = _Count(stream.num_blocks if self.algorithm.counts_blocks else None)
        self._lanes = _enter(self.algorithm, self._model, control, params, trace, first.data, first.weights, count)
        self._index = np.arange(self._lanes.status.shape[0])
        self._active = self._lanes
        self._carry: Any = ()
        self._in_flight: Any = ()

    @property
    def finished(self) -> bool:
        return self._phase == "finished"

    def forward(self, budget: int) -> None:
        """Go on for at most ``budget`` blocks."""
        for _ in range(budget):
            if self.finished:
                break
            self._one_block()
        jax.block_until_ready(self._carry)

    def close(self) -> None:
        """End the thread that reads ahead; `forward` begins one anew."""
        if self._reader is not None:
            self._reader.close()
            self.waited += self._reader.waited
            self._reader = None

    @property
    def lanes(self) -> Lane:
        """All lanes as they were at the end of the last pass."""
        return self._lanes

    @property
    def totals(self) -> tuple[int, int, float]:
        """Rows of the stream, their steps where they are sequences, and its weight: known after the first pass."""
        return self._rows, self._steps, self._weight

    @property
    def place(self) -> dict[str, Any]:
        counted = {"rows": self._rows, "present": self._present, "steps": self._steps, "weight": self._weight}
        where = {"phase": self._phase, "sweep": self._sweep, "block": self._block, "index": self._index.tolist()}
        return {"ticks": self.ticks, **where, **counted}

    @property
    def state(self) -> Any:
        return self._lanes, self._carry

    def expect(self, place: dict[str, Any]) -> Any:
        lanes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._lanes)
        if not place["block"]:
            return lanes, ()
        own = jax.eval_shape(take, lanes, jnp.asarray(place["index"]))
        return lanes, jax.eval_shape(lambda lanes: self._begun(lanes, place["phase"], *self._shapes), own)

    def restore(self, place: dict[str, Any], state: Any) -> None:
        self.close()
        self.ticks = place["ticks"]
        self._phase, self._sweep, self._block = place["phase"], place["sweep"], place["block"]
        self._rows, self._present, self._steps = place["rows"], place["present"], place["steps"]
        self._weight = place["weight"]
        self._lanes, self._carry = jax.tree.map(jnp.asarray, state)
        self._index = np.asarray(place["index"])
        self._active = _take(self._lanes, self._index)

    # A pass.

    def _next(self) -> Cut:
        if self._reader is None:
            self._reader = Reader(self.stream, self._block, self.model.keeps_types)
        return self._reader.next()

    def _one_block(self) -> None:
        cut = self._next()
        if self._sweep == 0:
            self._check(cut)
        if self._block == 0:
            self._gather()
            self._carry = self._begun(self._active, self._phase, cut.data, cut.weights)
        # One block is computed with and one waits: with more, their memory would pile up.
        jax.block_until_ready(self._in_flight)
        self._in_flight = self._carry
        if self._phase == "exact":
            self._carry = _see_exact(self._model, self._active.best, self._carry, cut.data, cut.weights)
        else:
            place = Place(jnp.int32(cut.number), jnp.array(cut.last))
            seen = self._active, self._carry, cut.data, cut.weights
            self._carry = _see(self.algorithm, self._model, *seen, place)
        self.ticks += 1
        self._block += 1
        if cut.last:
            self.close()
            self._end_pass()

    def _begun(self, lanes: Lane, phase: str, data: Any, weights: Any) -> Any:
        if phase == "exact":
            return _begin_exact(self._model, lanes.best, data, weights)
        return _begin(self.algorithm, self._model, lanes, data, weights)

    def _gather(self) -> None:
        """The lanes of this pass: all that run, and of those that have stopped no more than there are others."""
        status = np.asarray(self._lanes.status)
        if self._phase == "exact":
            usable = np.flatnonzero(np.isin(status, USABLE))
            self._index = usable if len(usable) else np.arange(1)
        else:
            # Sizes that are halved again and again are few programs.
            running, size = status == Status.RUNNING, len(self._index)
            while size > 1 and running.sum() <= size // 2:
                size = size // 2
            first = np.argsort(~running[self._index], kind="stable")
            self._index = np.sort(self._index[first[:size]])
        self._active = _take(self._lanes, self._index)

    def _end_pass(self) -> None:
        if self._sweep == 0:
            self._check_all()
        if self._phase == "exact":
            self._active = _end_exact(self._model, self._active, self._carry)
        else:
            self._active = _end(self.algorithm, self._model, self.control, self._active, self._carry)
        self._lanes = _put(self._lanes, self._index, self._active)
        self._carry = self._in_flight = ()
        self._block = 0
        self._sweep += 1
        running = bool(np.any(np.asarray(self._lanes.status) == Status.RUNNING))
        if not running:
            evaluate = self._phase == "steps" and self.algorithm.estimates
            self._phase = "exact" if evaluate else "finished"

    def _check(self, cut: Cut) -> None:
        """What `fit` checks of data that are there at once, of one block; and what is counted."""
        finite, weight = jax.device_get(_look(self._model, cut.data, cut.weights))
        if not finite:
            check_finite(cut.data, np.arange(cut.begin, cut.begin + len(cut.weights)))
        try:
            self.model.validate(cut.data)
        except ValueError as error:
            raise ValueError(f"block {cut.number}, whose row 0 is row {cut.begin} of the stream: {error}") from None
        self._rows, self._present = self._rows + cut.rows, self._present + cut.present
        self._steps, self._weight = self._steps + cut.steps, self._weight + float(weight)

    def _check_all(self) -> None:
        if self._present == 0:
            raise ValueError("all weights are 0: there is nothing to fit")
        least = self.model.min_examples
        if self._present < least:
            raise ValueError(f"a fit of {least} components needs at least {least} rows; got {self._present}")


def _by_chunks(model: Model, first: Cut) -> Model:
    """The model that computes with a block in pieces that fit in the cache, unless the block's moments are all it needs."""
    if isinstance(model, Sharded):
        return dataclasses.replace(model, model=_by_chunks(model.model, first))
    compressed, _ = jax.eval_shape(model.compress, first.data, first.weights)
    return Chunked(model, keep=False) if num_examples(compressed) == num_examples(first.data) else model


def check_finite(data: Any, rows: np.ndarray) -> None:
    """Raise ValueError where something that is read is not finite; ``rows``: the numbers of these rows in the stream."""
    read = layout.hidden(data, 0.0) if isinstance(data, Data) else data
    for path, leaf in jax.tree_util.tree_leaves_with_path(read):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(leaf)))
        if len(bad):
            axes = ("sequence", "step", "column") if len(bad[0]) == 3 else ("row", "column")
            numbers = (rows[bad[0][0]], *bad[0][1:])
            place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, numbers, strict=False))
            name = jax.tree_util.keystr(path).lstrip(".")
            raise ValueError(
                f"the data{f' ({name})' if name else ''} hold {np.asarray(leaf)[tuple(bad[0])]} in {place} of the stream; "
                "remove them, fill them in, or mask them: jaxem.Data(x, mask=numpy.isfinite(x))"
            )


# The door.


def begin_stream(
    model: Model,
    stream: Stream,
    *,
    key: Array | None,
    num_starts: int,
    params: Any,
    starts: Any,
    start: Start | None,
    algorithm: Algorithm,
    control: Control,
    trace_size: int,
) -> tuple[StreamWork, Sample]:
    """The work of a fit before its first pass, and the sample of the rows (or the first block) it begins from.

    What calibrates the model and makes random starts is a sample of the rows: all of them up to 2¹⁷ (and 256 MB), else so
    many drawn uniformly; a model that is calibrated already is used as it is. Raises UnsupportedError for flat sequences
    (pad them), models whose E-step is not a sum over examples, and algorithms that look at the data otherwise than by one
    E-step in a step, by name; ValueError as `fit`.
    """

    validate.check_model(model)
    if not model.additive:
        raise UnsupportedError(
            f"the E-step of {type(model).__name__} is not a sum over examples: no Stream can serve it"
        )
    model = model.specialize(None)
    first = stream.first(model.keeps_types)
    model.check_divisible(first.data)
    given = given_starts(model, first.data, params, starts, num_starts)
    if given is None:
        key = validate.check_key(key, "a random start")
    if given is not None and _is_calibrated(model, first):
        return StreamWork(model, stream, given, algorithm, control, trace_size), first
    sample = stream.sample(0 if key is None else _seed(key), model.keeps_types)
    check_finite(sample.data, sample.rows)
    if sample.whole:
        validate.check_data(model, sample.data)
        validate.check_weights(sample.weights, (len(sample.rows),), float, model.min_examples)
    model, given = _ready(start or KMeansPlusPlus(), model, sample.data, sample.weights, key, given, _Count(num_starts))
    return StreamWork(model, stream, given, algorithm, control, trace_size), sample


@jax.jit
def _ready(start, model, data, weights, key, given, count: _Count) -> tuple[Model, Any]:
    model = model.calibrate(data, weights)
    if given is None:
        keys = jax.random.split(key, count.value or 1)
        given = jax.vmap(lambda k: model.init(k, data, weights, start))(keys)
    return model, given


def _is_calibrated(model: Model, first: Sample) -> bool:
    before, after = jax.tree.leaves(model), jax.tree.leaves(model.calibrate(first.data, first.weights))
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


def _seed(key: Array) -> Any:
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key).ravel()


def end_stream(work: StreamWork, sample: Sample, on_failure: Any) -> Result:
    """The result of a work, with what `fit` warns of or raises."""

    rows, steps, weight = work.totals
    run, diagnosis, best = jax.device_get(_finish(work.model, work.lanes, weight))
    sequences = (rows, steps) if work.model.sequential else (None, None)
    counted = GlobalRows(sample.data, sample.weights, rows, *sequences)
    result = make_result(work.model, run, diagnosis, int(best), counted, weight)
    if result.status == Status.ZERO_LIKELIHOOD and not sample.whole and on_failure in (None, "raise"):
        text, advice = result.status.text, result.status.advice
        first = _first_impossible(work, result.params)
        raise FitError(f"no start is usable. {text} (first impossible example: {first}); {advice}")
    report(result, sample.data, on_failure)
    return result


@jax.jit
def _finish(model, lanes: Lane, weight: Array) -> tuple[Run, Any, Array]:
    """What `jaxem.driver.finish_lanes` makes of lanes, and `fit` of runs, without the data."""
    zero = jnp.zeros((), lanes.objective.dtype)
    known: Any = Seen(model, None, EStep(None, zero, jnp.asarray(weight, zero.dtype)))
    run = finish_lanes(lanes, known, jnp.zeros(1), None, Index(), EM())
    diagnosis = jax.vmap(lambda p: model.diagnose(p, known.expected.weight))(run.params)
    return run, diagnosis, jnp.argmax(rankable(run.objective, run.status))


def _first_impossible(work: StreamWork, params: Any) -> int | str:
    """The number of the first row that cannot be: one more pass."""
    log_likelihood = jax.jit(work.model.log_likelihood)
    reader = Reader(work.stream, 0, work.model.keeps_types)
    try:
        while True:
            cut = reader.next()
            each = np.asarray(log_likelihood(params, cut.data))[: cut.rows]
            impossible = np.flatnonzero((each == -np.inf) & (np.asarray(cut.weights)[: cut.rows] > 0))
            if len(impossible):
                return cut.begin + int(impossible[0])
            if cut.last:
                return "not found again"
    finally:
        reader.close()
