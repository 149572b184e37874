"""Long work in pieces: what the host drives forward a bounded number of steps at a time, and can lay down anywhere.

The loop over iterations stays compiled. A piece of it ends after so many steps, with everything that the loop carries in
the hands of the host, and the next piece goes on from there: no number depends on where the pieces end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxem import validate
from jaxem.lane import Control, Lane
from jaxem.model import Algorithm, pytree, static, unsupported
from jaxem.programs import jit
from jaxem.slots import Flight, Index, Stage, enter, fly, leave, stages

if TYPE_CHECKING:
    from jaxtyping import Array


class Work:
    """Something that goes forward a piece at a time. `place` and `state` together say all about where it is."""

    #: What a budget counts.
    unit: str = "step"
    #: Counted since the beginning.
    ticks: int
    #: The budget of the first slice, whose pace is not known.
    first_budget: int = 64

    @property
    def finished(self) -> bool:
        raise unsupported(self, "finished", "the host's driver")

    def forward(self, budget: int) -> None:
        """Go on for at most ``budget`` units, and wait for the end of them."""
        raise unsupported(self, "forward", "the host's driver")

    @property
    def lanes(self) -> Lane:
        """The lanes as they are now."""
        raise unsupported(self, "lanes", "a report of progress")

    @property
    def place(self) -> dict[str, Any]:
        """Numbers and names for a manifest, from which `expect` knows the shapes of the state."""
        return {}

    @property
    def state(self) -> Any:
        """All that changes, as a pytree of arrays."""
        raise unsupported(self, "state", "a checkpoint")

    def gathered(self, state: Any) -> Any:
        """The state where the host of every process can read it."""
        return state

    def expect(self, place: dict[str, Any]) -> Any:
        """The structure, shapes and types of the state at a place."""
        raise unsupported(self, "expect", "going on from a checkpoint")

    def restore(self, place: dict[str, Any], state: Any) -> None:
        """Go to that place."""
        raise unsupported(self, "restore", "going on from a checkpoint")


class Recipe(NamedTuple):
    """How lanes are made, and what is kept of them when they have ended.

    prepare: jitted, from ``arguments`` and ``options`` (static, by name) to lanes and the problem. finish: jitted, from
    lanes, problem and algorithm to what is kept.
    """

    prepare: Callable[..., Any]
    finish: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def prepared(self) -> tuple[Lane, Problem]:
        return self.prepare(*self.arguments, **self.options)

    def shapes(self) -> tuple[Any, Any]:
        """Shapes and types of what `prepared` returns."""
        return jax.eval_shape(functools.partial(self.prepare, **self.options), *self.arguments)


class Ending(NamedTuple):
    """What is kept of a work that has ended, a pytree of arrays, and its shapes and types before it has."""

    end: Callable[[], Any]
    like: Callable[[], Any]


@pytree
class Problem:
    """What lanes work on, and which lane sees which data set (see `jaxem.run_lanes`)."""

    model: Any
    data: Any
    weights: Any
    index: Index = Index()


class Programs:
    """The compiled pieces: how lanes enter a stage, fly through it and leave it."""

    def padded(self, lanes: Lane) -> Lane:
        """As many lanes as the programs need; those added have stopped."""
        return lanes

    def everywhere(self, tree: Any) -> Any:
        """Where the host of every process can read it."""
        return tree

    def laid_out(self, shapes: Any) -> Any:
        """The shapes of a flight, and how it lies over the devices."""
        return shapes

    def stages(self, lanes: Lane, problem: Problem) -> list[Stage]:
        return stages(lanes.status.shape[0], problem.model, problem.data, problem.index, None)

    def enter(self, lanes: Lane, stage: Stage) -> Flight:
        return _enter(lanes, stage)

    def fly(self, flight: Flight, stage: Stage, until: int, problem: Problem, algorithm, control) -> Flight:
        return _fly(flight, np.int32(stage.target), np.int32(until), problem, algorithm, control)

    def leave(self, flight: Flight) -> Lane:
        return _leave(flight)

    def counts(self, flight: Flight) -> tuple[int, int]:
        """Lanes that are not finished, and steps made in this stage."""
        unfinished, ticks = jax.device_get(_counts(flight))
        return int(unfinished), int(ticks)


_enter = jax.jit(enter, static_argnums=1)
_leave = jax.jit(leave)
_counts = jax.jit(lambda flight: (flight.unfinished, flight.ticks))


@jit
def _fly(flight: Flight, target: Array, until: Array, problem: Problem, algorithm: Algorithm, control: Control):
    return fly(flight, target, until, problem.model, problem.data, problem.weights, problem.index, algorithm, control)


def expected_flight(programs: Programs, lanes: Lane, problem: Problem, stage: int) -> Any:
    """Shapes and types of the flight of such lanes through a stage."""
    chosen = programs.stages(lanes, problem)[stage]
    return programs.laid_out(jax.eval_shape(lambda lanes: programs.enter(lanes, chosen), lanes))


class LanesWork(Work):
    """Lanes on data that lie on the device, through all stages (see `jaxem.slots`)."""

    def __init__(
        self, lanes: Lane, problem: Problem, algorithm: Algorithm, control: Control, programs: Programs = Programs()
    ):
        self.problem, self.algorithm, self.control, self.programs = problem, algorithm, control, programs
        self._count = lanes.status.shape[0]
        lanes = programs.padded(lanes)
        self.stages = programs.stages(lanes, problem)
        self.ticks = 0
        self._shapes = jax.eval_shape(lambda lanes: lanes, lanes)
        self._number = 0
        self._flight = programs.enter(lanes, self.stages[0])
        self._settle()

    def _settle(self) -> None:
        """Go on to the stage in which there is something to do."""
        self._unfinished, self._stage_ticks = self.programs.counts(self._flight)
        while self._unfinished <= self.stages[self._number].target and self._number + 1 < len(self.stages):
            self._number += 1
            self._flight = self.programs.enter(self.programs.leave(self._flight), self.stages[self._number])
            self._unfinished, self._stage_ticks = self.programs.counts(self._flight)

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    def forward(self, budget: int) -> None:
        before, stage = self._stage_ticks, self.stages[self._number]
        until = min(before + budget, np.iinfo(np.int32).max)
        self._flight = self.programs.fly(self._flight, stage, until, self.problem, self.algorithm, self.control)
        self._unfinished, self._stage_ticks = self.programs.counts(self._flight)
        self.ticks += self._stage_ticks - before
        if self._unfinished <= stage.target:
            self._settle()

    @property
    def lanes(self) -> Lane:
        lanes = self.programs.leave(self._flight)
        if lanes.status.shape[0] == self._count:
            return lanes
        return jax.tree.map(lambda a: a[: self._count], lanes)

    @property
    def lanes_like(self) -> Any:
        """The shapes and types of `lanes`."""
        return jax.eval_shape(lambda lanes: jax.tree.map(lambda a: a[: self._count], lanes), self._shapes)

    @property
    def place(self) -> dict[str, Any]:
        return {"stage": self._number, "ticks": self.ticks}

    @property
    def state(self) -> Flight:
        return self._flight

    def gathered(self, state: Any) -> Any:
        return self.programs.everywhere(state)

    def expect(self, place: dict[str, Any]) -> Any:
        return expected_flight(self.programs, self._shapes, self.problem, int(place["stage"]))

    def restore(self, place: dict[str, Any], state: Flight) -> None:
        self._number, self.ticks = int(place["stage"]), int(place["ticks"])
        self._flight = state
        self._settle()


@pytree
class Race:
    """Start racing (emEM): every start runs for ``steps``, then only the best ``keep`` of each data set go on."""

    steps: int | jax.Array = 10
    keep: int = static(default=8)

    def __post_init__(self):
        validate.check_count("keep", self.keep, 1)
        if isinstance(self.steps, (int, float)):
            validate.check_count("steps", self.steps, 1)


class Groups(Work):
    """Works one after the other, each begun when the one before has ended: of many data sets, as many as fit in memory.

    begin: for each of them a function that makes the work, and says what is kept of it: the same shapes for all.
    """

    def __init__(self, begin: Sequence[Callable[[], tuple[Work, Ending]]]):
        self._begin = begin
        self.kept: list[Any] = []
        self._before = 0
        self._current, self._ending = begin[0]()
        self._settle()

    @property
    def first_budget(self) -> int:  # type: ignore[override]
        return self._current.first_budget

    def _begin_next(self) -> None:
        del self._current, self._ending  # before the next one is made: there may be no room for two
        self._current, self._ending = self._begin[len(self.kept)]()

    def _settle(self) -> None:
        while self._current.finished and not self.finished:
            self.kept.append(jax.device_get(self._ending.end()))
            if not self.finished:
                self._before += self._current.ticks
                self._begin_next()

    def close(self, never: Callable[[Any], Any]) -> list[Any]:
        """What is kept of every group: of the one at work as it is, of those that were never begun what ``never`` says."""
        kept = list(self.kept)
        if not self.finished:
            kept.append(jax.device_get(self._ending.end()))
        return kept + [never(kept[-1])] * (len(self._begin) - len(kept))

    @property
    def ticks(self) -> int:  # type: ignore[override]
        return self._before + self._current.ticks

    @property
    def finished(self) -> bool:
        return len(self.kept) == len(self._begin)

    def forward(self, budget: int) -> None:
        self._current.forward(budget)
        self._settle()

    @property
    def lanes(self) -> Lane:
        return self._current.lanes

    @property
    def place(self) -> dict[str, Any]:
        return {"done": len(self.kept), "before": self._before, "current": self._current.place}

    @property
    def state(self) -> Any:
        return tuple(self.kept), self._current.state

    def gathered(self, state: Any) -> Any:
        return state[0], self._current.gathered(state[1])

    def expect(self, place: dict[str, Any]) -> Any:
        kept = self._ending.like()
        return (kept,) * int(place["done"]), self._current.expect(place["current"])

    def restore(self, place: dict[str, Any], state: Any) -> None:
        kept, current = state
        self.kept, self._before = [jax.tree.map(np.asarray, k) for k in kept], int(place["before"])
        if not self.finished:
            self._begin_next()
        self._current.restore(place["current"], current)
        self._settle()
