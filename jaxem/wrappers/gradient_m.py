"""The M-step by derivatives of q: generalized EM for a model, a prior or a frozen leaf that has no closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from jaxem.ascent import Ascent, as_ascent, default_ascent
from jaxem.free import EveryName, moving
from jaxem.model import Model, UnsupportedError, pytree
from jaxem.spaces.base import as_function
from jaxem.wrappers.base import Wrapper


@pytree
class _GradientM(Wrapper):
    model: Model
    ascent: Any
    prior: Any

    generalized = True  # type: ignore[assignment]

    @property
    def freezable(self):  # type: ignore[override]
        return EveryName()

    @property
    def freezable_by_component(self):  # type: ignore[override]
        return frozenset()

    def calibrate(self, data, weights=None) -> _GradientM:
        return _GradientM(self.model.calibrate(data, weights), self.ascent, self.prior)

    def log_prior(self, params):
        own = self.model.log_prior(params)
        return own if self.prior is None else own + self.prior(params)

    def m_step(self, params, stats, frozen=None) -> Any:
        free, unravel = ravel_pytree(self.model.to_free(params))

        def objective(v: jax.Array) -> jax.Array:
            updated = self.model.from_free(unravel(v))
            return self.model.q(updated, stats) + self.log_prior(updated)

        moves = moving(self.model, params, frozen)
        ascent: Ascent = default_ascent(free.size) if self.ascent is None else self.ascent
        return self.model.from_free(unravel(ascent.climb(objective, free, moves)))


def GradientM(
    model: Model, optimizer: Any = None, steps: int | None = None, *, log_prior: Callable[[Any], Any] | None = None
) -> Model:
    """The model with an M-step that climbs ``q(θ, stats) + log p(θ)`` by derivatives, in free coordinates.

    For a model without a closed M-step, a ``log_prior(params)`` that is not conjugate (MAP), or leaves that the model's
    own M-step cannot hold fixed (`Frozen`). It never lowers the objective: Newton steps are halved until they do not, of
    the iterates of an optax optimizer the best is taken, which may be the start.
    optimizer: `Newton` (the default for up to 100 coordinates), or an optax optimizer with its number of ``steps``.
    Raises UnsupportedError for a model without q or free coordinates.
    """
    if not isinstance(model, Model):
        raise ValueError(f"GradientM holds a model; got {model!r}")
    for method in ("q", "to_free", "from_free"):
        if getattr(type(model), method) is getattr(Model, method):
            raise UnsupportedError(f"{type(model).__name__} does not define {method}, which GradientM needs")
    if log_prior is not None and not callable(log_prior):
        raise ValueError(f"log_prior is a function of the parameters; got {log_prior!r}")
    return _GradientM(model, as_ascent(optimizer, steps), as_function(log_prior))
