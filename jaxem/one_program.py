"""Small fits as one compiled program: starts, a bounded number of steps, and the diagnosis of what came out.

What a small fit waits for is the compiler, and every program has a price of its own. The loop pauses and goes on in the
same program: it gets the flight where it stopped, and throws away the starts that it makes once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from jaxem.cost import nbytes
from jaxem.lane import Control, Lane
from jaxem.model import Algorithm
from jaxem.programs import jit
from jaxem.slots import Flight, bytes_per_lane, enter, fly, leave
from jaxem.work import Problem, Programs, Recipe, Work

if TYPE_CHECKING:
    from jaxtyping import Array

# Every slice makes the statistics of all rows and the starts once more, so they must cost little beside its steps.
_SMALL_DATA = 2**24
_FIRST_BUDGET = 256
# Where the potentials of a step take so few bytes, most of its time is the overhead of operations and the products, which
# are a library's, and the code of the others need not be the best. It is compiled with less optimization in few parts,
# and before XLA 0.11 by the emitters that compile sooner. Measured on a 4-dimensional mixture with 64 starts: 4.7 instead
# of 9.2 seconds of the processor, and fits as fast.
_SMALL_STEP = 2**18
_SOON: dict[str, Any] = {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": 4}
if tuple(int(part) for part in jaxlib.version.__version__.split(".")[:2]) < (0, 11):
    _SOON["xla_cpu_use_fusion_emitters"] = False


def _slice(
    flight: Flight,
    begun: Array,
    until: Array,
    arguments: tuple[Any, ...],
    algorithm: Algorithm,
    control: Control,
    *,
    prepare: Callable[..., tuple[Lane, Problem]],
    finish: Callable[..., Any],
    options: tuple[tuple[str, Any], ...],
) -> tuple[Flight, Any, tuple[Array, Array]]:
    """The flight after tick ``until``, what ``finish`` makes of it, and its numbers of unfinished lanes and ticks."""
    lanes, problem = prepare(*arguments, **dict(options))
    stage = _stages(lanes, problem)[0]
    flight = jax.tree.map(lambda old, new: jnp.where(begun, old, new), flight, enter(lanes, stage))
    parts = (problem.model, problem.data, problem.weights, problem.index)
    flight = fly(flight, jnp.int32(stage.target), until, *parts, algorithm, control)
    return flight, finish(leave(flight), problem, algorithm), (flight.unfinished, flight.ticks)


_STATIC = ("prepare", "finish", "options")
_slice_as_it_is = jit(_slice, static_argnames=_STATIC)
_slice_soon = jit(_slice, static_argnames=_STATIC, compiler_options=_SOON)
_leave = jax.jit(leave)
_stages = Programs().stages


def _compiled(small: bool) -> Callable[..., Any]:
    """`_slice`, compiled as soon as may be where the work is small and the compiler has that choice."""
    if not small or not _Compiler.has_choice or jax.default_backend() != "cpu":
        return _slice_as_it_is

    def either(*arguments: Any, **options: Any) -> Any:
        try:
            return _slice_soon(*arguments, **options)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            _Compiler.has_choice = False
            return _slice_as_it_is(*arguments, **options)

    return either


class _Compiler:
    """What is known of the compiler at hand: whether it takes `_SOON`."""

    has_choice = True


class OneProgram(Work):
    """A fit of small data from its starts to its diagnosis (see `fits_one_program`).

    lanes, problem: shapes and types of what the recipe makes (`Recipe.shapes`).
    """

    def __init__(self, recipe: Recipe, algorithm: Algorithm, control: Control, lanes: Lane, problem: Problem):
        self._given = (recipe.arguments, algorithm, control)
        stage = _stages(lanes, problem)[0]
        each = bytes_per_lane(problem.model, problem.data, problem.index)
        step = _compiled(stage.size * each <= _SMALL_STEP)
        options = tuple(sorted(recipe.options.items()))
        static = {"prepare": recipe.prepare, "finish": recipe.finish, "options": options}
        self._step = functools.partial(step, **static)
        self._traced = functools.partial(_slice, **static)  # which options of the compiler do not belong to
        self._shapes = jax.eval_shape(lambda lanes: enter(lanes, stage), lanes)
        self._flight: Flight | None = None
        self._ended: Any = None
        self._unfinished = lanes.status.shape[0]
        self.ticks = 0

    first_budget = _FIRST_BUDGET

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    def forward(self, budget: int) -> None:
        self._run(min(self.ticks + budget, np.iinfo(np.int32).max))

    def _run(self, until: int) -> None:
        begun = self._flight is not None
        flight = self._flight if begun else jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), self._shapes)
        self._flight, self._ended, counts = self._step(flight, np.bool_(begun), np.int32(until), *self._given)
        self._unfinished, self.ticks = (int(count) for count in jax.device_get(counts))

    def _begin(self) -> None:
        if self._flight is None:
            self._run(0)

    @property
    def ended(self) -> Any:
        """What ``finish`` makes of the lanes as they are now."""
        if self._ended is None:
            self._run(self.ticks)
        return self._ended

    @property
    def ended_like(self) -> Any:
        """The shapes and types of `ended`."""
        flag, number = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), np.int32)
        return jax.eval_shape(self._traced, self._shapes, flag, number, *self._given)[1]

    @property
    def lanes(self) -> Lane:
        self._begin()
        return _leave(self._flight)

    @property
    def place(self) -> dict[str, Any]:
        return {"stage": 0, "ticks": self.ticks}

    @property
    def state(self) -> Any:
        self._begin()
        return self._flight

    def expect(self, place: dict[str, Any]) -> Any:
        return self._shapes

    def restore(self, place: dict[str, Any], state: Any) -> None:
        self._flight, self._ended = state, None
        # A flight counts its ticks itself; until it has been asked, some lane may still run.
        self.ticks = int(state.ticks)


def fits_one_program(lanes: Lane, problem: Problem) -> bool:
    """Whether lanes on a problem of such shapes are little enough work to be one program."""
    return nbytes(problem.data) <= _SMALL_DATA and len(_stages(lanes, problem)) == 1
