"""EM whose E-step is drawn: Monte-Carlo EM with ever more draws, and SAEM, which averages over the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.algorithms.stochastic import StochasticEM
from jaxem.algorithms.updates import Averaging
from jaxem.model import Algorithm, EStep, Info, Model, UnsupportedError, pytree
from jaxem.stopping import Plateau
from jaxem.validate import check_key

if TYPE_CHECKING:
    from jaxtyping import Array, Int


# Steps whose mean objective is compared: the noise of single ones must not look like an end.
_WINDOW = 10


@pytree
class MonteCarloState:
    """The current parameters, and the steps made."""

    params: Any
    steps: Int[Array, ""]


@pytree
class MonteCarloEM(Algorithm):
    """Monte-Carlo EM with growing samples: step t averages ``min(samples · growth^t, most)`` E-steps, each drawn anew.

    For models whose E-step draws, such as ``LatentModel(latents.Sampled(latents.Categorical(3), key), Gaussian())``. The
    noise of the parameters falls as the draws grow (Wei & Tanner 1990; Booth & Hobert 1999); with growth 1 it stays, and
    with one draw that is the stochastic EM of Celeux & Diebolt 1985. A step costs as many E-steps as it averages.
    key: a new one is derived for every E-step. growth: None is one E-step in every step and no average, for models whose
    statistics are no sums (a `LogJoint` without them, whose space has a number of draws of its own). It stops by
    `Plateau`, since single gains are chance. Raises ValueError for samples, growth or most below 1, UnsupportedError for
    a model that draws nothing, or whose statistics are to be averaged and are no sums.
    """

    key: Array
    samples: float | Array = 1.0
    growth: float | Array | None = 1.1
    most: float | Array = 100.0

    monotone = False

    def __post_init__(self):
        check_key(self.key, "MonteCarloEM")
        for name in ("samples", "growth", "most"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 1 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number, at least 1; got {value}")

    def stopping(self, tol: float | None) -> Plateau:
        return Plateau(window=_WINDOW) if tol is None else Plateau(tol, _WINDOW)

    def limit(self) -> Algorithm:
        raise UnsupportedError("draws have no derivative: MonteCarloEM has no fixed point to differentiate through")

    def init(self, model: Model, params: Any, data: Any, weights: Any) -> MonteCarloState:
        _check_draws(model, self.key)
        if self.growth is not None and not model.additive:
            raise UnsupportedError(
                f"the statistics of {type(model).__name__} are no sums, of which an average could be taken: set growth=None"
            )
        return MonteCarloState(params, jnp.int32(0))

    def step(self, model: Model, state: MonteCarloState, data: Any, weights: Any) -> tuple[MonteCarloState, Info]:
        key = jax.random.fold_in(self.key, state.steps)

        def expected(i: Array | int) -> EStep:
            return model.redraw(jax.random.fold_in(key, i)).e_step(state.params, data, weights)

        mean = expected(0) if self.growth is None else self._averaged(expected, state.steps)
        objective = mean.log_likelihood + model.log_prior(state.params)
        params = model.m_step(state.params, mean.stats)
        return MonteCarloState(params, state.steps + 1), Info(objective, mean.log_likelihood, mean.weight)

    def _averaged(self, expected: Callable[[Array | int], EStep], steps: Array) -> EStep:
        grown = jnp.asarray(self.samples, float) * jnp.asarray(self.growth, float) ** steps
        count = jnp.ceil(jnp.minimum(grown, self.most)).astype(jnp.int32)
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(expected, 0))
        total = jax.lax.fori_loop(0, count, lambda i, sums: sums + expected(i), zero)
        return jax.tree.map(lambda a: a / count.astype(a.dtype), total)


def SAEM(key: Array, burn_in: int = 50, batch_size: int | None = None) -> StochasticEM:
    """Stochastic approximation EM: one E-step of draws a step, whose statistics are averaged over the steps.

    ``s ← s + γ_t (s_t − s)`` with γ_t = 1 for the first ``burn_in`` steps and 1/(t − burn_in) after: the draws of all steps
    since then take part, and the parameters converge (Delyon, Lavielle & Moulines 1999). For models whose E-step draws,
    as for `MonteCarloEM`; with a batch_size in mini-batches, of which γ_t then counts each. It stops by `Plateau`.
    """
    return StochasticEM(key, batch_size, Averaging(burn_in))


def _check_draws(model: Model, key: Array) -> None:
    before, after = jax.tree.leaves(model), jax.tree.leaves(model.redraw(key))
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        raise UnsupportedError(
            f"MonteCarloEM needs a model that draws; {type(model).__name__} does not (wrap its latent in latents.Sampled)"
        )
