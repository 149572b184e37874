"""Deterministic annealing EM: tempered posteriors first, the inner algorithm after."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxem.algorithms.em import EM
from jaxem.lane import where
from jaxem.model import Algorithm, Info, Model, UnsupportedError, pytree, unsupported

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Schedule:
    """A temperature for every step: at least 1, and exactly 1 from some step on."""

    def temperature(self, step: Int[Array, ""]) -> Float[Array, ""]:
        raise unsupported(self, "temperature", "Annealing")


@pytree
class Cooling(Schedule):
    """``T_t = start^(1 − t/steps)``: from ``start`` down to 1 in ``steps`` steps, each by the same factor.

    Raises ValueError for a start below 1 or a number of steps below 1.
    """

    start: float | Array = 5.0
    steps: int | Array = 20

    def __post_init__(self):
        for name in ("start", "steps"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 1 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number, at least 1; got {value}")

    def temperature(self, step: Int[Array, ""]) -> Float[Array, ""]:
        left = jnp.maximum(1 - step / self.steps, 0)
        return jnp.where(left > 0, jnp.asarray(self.start, left.dtype) ** left, 1)


@pytree
class Temperatures(Schedule):
    """The temperatures of the first steps, [S]; 1 after them. Raises ValueError for any below 1."""

    values: Any

    def __post_init__(self):
        if isinstance(self.values, (list, tuple, np.ndarray)):
            values = np.asarray(self.values, float)
            if values.ndim != 1 or not len(values) or not np.all((values >= 1) & np.isfinite(values)):
                raise ValueError(f"temperatures are a list of finite numbers, at least 1; got {self.values!r}")
            object.__setattr__(self, "values", jnp.asarray(values))

    def temperature(self, step: Int[Array, ""]) -> Float[Array, ""]:
        size = self.values.shape[0]
        return jnp.where(step < size, self.values[jnp.minimum(step, size - 1)], 1)


@pytree
class AnnealingState:
    """The current parameters, the state of the inner algorithm, and the steps made."""

    params: Any
    inner: Any
    steps: Int[Array, ""]


@pytree
class Annealing(Algorithm):
    """Deterministic annealing EM (Ueda & Nakano 1998): steps at temperatures that fall to 1, then the inner algorithm.

    At a temperature T the posterior is ``q(z) ∝ p(x, z)^(1/T)`` (see `jaxem.latents.Annealed`): far above 1 every
    component is responsible for everything, and the free energy that EM climbs has few optima; as T falls they appear,
    the deepest first. Some bad starts are forgotten, not all. Temperatures so high, or cooling so slow, that components
    become equal to the last digit leave nothing to part them by: begin where they nearly do. The steps above T = 1 are
    not judged; from then on what runs is ``inner``, from where they led.
    schedule: `Cooling`, or the temperatures of the first steps, [S]. Raises UnsupportedError for a model that defines
    no `Model.tempered`.
    """

    schedule: Any = Cooling()
    inner: Algorithm = EM()

    def __post_init__(self):
        if isinstance(self.schedule, (list, tuple, np.ndarray)) or hasattr(self.schedule, "dtype"):
            object.__setattr__(self, "schedule", Temperatures(self.schedule))
        if not isinstance(self.schedule, Schedule):
            raise ValueError(f"schedule is Cooling(start, steps) or a list of temperatures; got {self.schedule!r}")
        if not isinstance(self.inner, Algorithm):
            raise ValueError(f"inner is an algorithm, such as jaxem.EM(); got {self.inner!r}")

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.inner.monotone

    @property
    def estimates(self) -> bool:  # type: ignore[override]
        return self.inner.estimates

    def stopping(self, tol: float | None) -> Any:
        return self.inner.stopping(tol)

    def limit(self) -> Algorithm:
        return self.inner.limit()

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> AnnealingState:
        inner = self.inner.init(self._at(model, jnp.int32(0)), params, data, weights)
        return AnnealingState(params, inner, jnp.int32(0))

    def step(self, model: Model, state: AnnealingState, data: Any, weights: Any) -> tuple[AnnealingState, Info]:
        own = self._at(model, state.steps)
        fresh = self.inner.init(own, state.params, data, weights)
        return self._moved(state, *self.inner.step(own, self._now(state, fresh), data, weights))

    # Over blocks: the inner algorithm's passes, each at its temperature. Its state at the beginning of the pass goes along.

    def on_blocks(self, block_size: int) -> Annealing:
        if type(self.inner).see is not Algorithm.see:
            raise UnsupportedError(f"Annealing({type(self.inner).__name__}()) does not go over a Stream: use EM inside")
        return dataclasses.replace(self, inner=self.inner.on_blocks(block_size))

    def begin_pass(self, model: Model, state: AnnealingState, block: Any, weights: Any) -> tuple[Any, Any]:
        own = self._at(model, state.steps)
        inner = self._now(state, self.inner.init(own, state.params, block, weights))
        return inner, self.inner.begin_pass(own, inner, block, weights)

    def see(self, model: Model, state: AnnealingState, carry: Any, block: Any, weights: Any, place: Any) -> Any:
        inner, sums = carry
        return inner, self.inner.see(self._at(model, state.steps), inner, sums, block, weights, place)

    def end_pass(self, model: Model, state: AnnealingState, carry: Any) -> tuple[AnnealingState, Info]:
        return self._moved(state, *self.inner.end_pass(self._at(model, state.steps), *carry))

    def _now(self, state: AnnealingState, fresh: Any) -> Any:
        """The inner algorithm's state: what it remembers of one temperature is nothing to it at another."""
        hot = self.schedule.temperature(jnp.maximum(state.steps - 1, 0)) != 1
        return where(hot, fresh, state.inner)

    def _moved(self, state: AnnealingState, inner: Any, info: Info) -> tuple[AnnealingState, Info]:
        provisional = info.provisional | (self.schedule.temperature(state.steps) != 1)
        return AnnealingState(inner.params, inner, state.steps + 1), dataclasses.replace(info, provisional=provisional)

    def _at(self, model: Model, steps: Int[Array, ""]) -> Model:
        return model.tempered(self.schedule.temperature(steps))
