"""Start racing on the host: a short run of all lanes, and then a long one of the best of every group."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.driver import race, short_run
from jaxem.lane import Control, Lane
from jaxem.model import Algorithm
from jaxem.slots import put, take
from jaxem.work import LanesWork, Problem, Programs, Race, Work, expected_flight

if TYPE_CHECKING:
    from jaxtyping import Array


class RaceWork(Work):
    """All lanes for a short run, then the best of every group (see `jaxem.race_lanes`)."""

    def __init__(
        self,
        rules: Race,
        num_groups: int,
        lanes: Lane,
        problem: Problem,
        algorithm: Algorithm,
        control: Control,
        programs: Programs = Programs(),
    ):
        self._rules, self._num_groups = rules, num_groups
        self._problem, self._algorithm, self._control, self._programs = problem, algorithm, control, programs
        self._short = LanesWork(lanes, problem, algorithm, short_run(control, rules.steps), programs)
        self._final: LanesWork | None = None
        self._decide()

    def _decide(self) -> None:
        if self._short.finished:
            race = _race(self._short.lanes, self._control, self._rules.keep, self._num_groups)
            self._start_final(*race)

    def _start_final(self, lanes: Lane, chosen: Array) -> None:
        self._all, self._chosen = lanes, chosen
        finalists = _take(lanes, chosen)
        self._final = LanesWork(finalists, self._finalists(chosen), self._algorithm, self._control, self._programs)

    def _finalists(self, chosen: Any) -> Problem:
        """What the finalists work on."""
        return dataclasses.replace(self._problem, index=_take(self._problem.index, chosen))

    @property
    def ticks(self) -> int:  # type: ignore[override]
        return self._short.ticks + (0 if self._final is None else self._final.ticks)

    @property
    def finished(self) -> bool:
        return self._final is not None and self._final.finished

    def forward(self, budget: int) -> None:
        if self._final is not None:
            self._final.forward(budget)
            return
        self._short.forward(budget)
        self._decide()

    @property
    def lanes(self) -> Lane:
        return self._short.lanes if self._final is None else _put(self._all, self._chosen, self._final.lanes)

    @property
    def place(self) -> dict[str, Any]:
        return {"short": self._short.place, "final": None if self._final is None else self._final.place}

    @property
    def state(self) -> Any:
        return self._short.state if self._final is None else (self._all, self._chosen, self._final.state)

    def gathered(self, state: Any) -> Any:
        return self._programs.everywhere(state)

    def expect(self, place: dict[str, Any]) -> Any:
        if place["final"] is None:
            return self._short.expect(place["short"])
        lanes = self._short.lanes_like
        chosen = jax.ShapeDtypeStruct((self._rules.keep * self._num_groups,), jnp.int32)
        both = (lanes, self._problem.index)
        finalists, index = jax.eval_shape(take, both, chosen)
        problem = dataclasses.replace(self._problem, index=index)
        finalists = jax.eval_shape(self._programs.padded, finalists)
        return lanes, chosen, expected_flight(self._programs, finalists, problem, int(place["final"]["stage"]))

    def restore(self, place: dict[str, Any], state: Any) -> None:
        if place["final"] is None:
            self._short.restore(place["short"], state)
            self._decide()
            return
        lanes, chosen, flight = state
        self._short.ticks = int(place["short"]["ticks"])
        self._start_final(lanes, chosen)
        assert self._final is not None
        self._final.restore(place["final"], flight)


_race = jax.jit(race, static_argnums=(2, 3))
_take = jax.jit(take)
_put = jax.jit(put)
