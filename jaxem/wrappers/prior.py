"""A conjugate prior, as imagined examples: EM then climbs log-likelihood + log-prior."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxem.model import Model, pytree
from jaxem.wrappers.base import Wrapper


@pytree
class WithPrior(Wrapper):
    """The model with a conjugate prior worth ``strength`` imagined examples in every component.

    A conjugate prior is a set of statistics τ that were never observed: ``log p(θ) = strength · q(θ, τ) + const``, so
    the M-step maximizes the posterior when it is given ``stats + strength · τ``, and the penalized objective never
    falls (Dempster, Laird & Rubin 1977, section 2). Components cannot collapse: the imagined examples have spread.

    strength: number of examples, at least 0; traced, so a new value does not recompile, and differentiable.
    statistics: τ, for one imagined example per component; by default, at `calibrate`, examples like the data as a whole
    (a Gaussian's are narrower, see `Gaussian.pseudo_statistics`). Raises ValueError for a negative strength.
    """

    model: Model
    strength: float | jax.Array = 1.0
    statistics: Any = None

    def __post_init__(self):
        if isinstance(self.strength, (int, float)) and not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength must be a finite number, at least 0; got {self.strength}")

    def calibrate(self, data, weights=None) -> WithPrior:
        model = self.model.calibrate(data, weights)
        statistics = self.statistics
        return WithPrior(
            model, self.strength, model.pseudo_statistics(data, weights) if statistics is None else statistics
        )

    def m_step(self, params, stats, frozen=None) -> Any:
        stats = jax.tree.map(lambda s, tau: s + jnp.asarray(self.strength, s.dtype) * tau, stats, self._statistics())
        return self.model.m_step(params, stats, frozen) if frozen else self.model.m_step(params, stats)

    def log_prior(self, params):
        penalty = self.model.q(params, self._statistics())
        return self.model.log_prior(params) + jnp.asarray(self.strength, penalty.dtype) * penalty

    def _statistics(self) -> Any:
        if self.statistics is None:
            raise ValueError(
                "the prior of WithPrior comes from the data: call model.calibrate(data) first, as fit does"
            )
        return self.statistics
