"""Prior times likelihood: the one E-step and the one M-step of every latent joined with every family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.blocks import block_size_near, sum_over_blocks
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.model import (
    Data,
    Diagnosis,
    EStep,
    Family,
    Latent,
    Model,
    Prepared,
    as_data,
    num_examples,
    pytree,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# A float32 product over more rows than this loses digits (4e-6 of a count at 200 000 rows, everything at 30 million).
_LONG = 2**18
_LONG_BLOCK = 2**16
# Starts look at no more rows than this, drawn at random for each start: centres do not get better by looking at all.
_START_ROWS = 2**14


@pytree
class LatentParams:
    """The parameters of p(z | θ) and of p(x | z, θ)."""

    latent: Any
    likelihood: Any


@pytree
class LatentStats:
    """Expected sufficient statistics of the two factors."""

    latent: Any
    likelihood: Any


@pytree
class LatentModel(Model):
    """``p(x, z) = p(z) p(x | z)`` for any discrete latent and any family."""

    latent: Latent
    likelihood: Family

    def __post_init__(self):
        for part, kind in ((self.latent, Latent), (self.likelihood, Family)):
            if not isinstance(part, kind):
                hint = " (call it: Gaussian(), not Gaussian)" if isinstance(part, type) else ""
                raise ValueError(f"expected a {kind.__name__}; got {part!r}{hint}")

    @property
    def num_components(self) -> int:
        return self.latent.num_components

    @property
    def min_examples(self) -> int:
        return self.latent.min_examples

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable | self.likelihood.freezable

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable_by_component | self.likelihood.freezable_by_component

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.latent.sweepable

    def with_components(self, num_components: int) -> LatentModel:
        return LatentModel(self.latent.with_components(num_components), self.likelihood)

    # The data's road: raw → calibrate (once, the whole) → prepare (once, or once a chunk) → e_step.

    def _read(self, data: Any) -> Data:
        data = as_data(data)
        ignored = data.given() - self.latent.reads - self.likelihood.reads
        if ignored:
            latent, family = type(self.latent).__name__, type(self.likelihood).__name__
            raise ValueError(f"{', '.join(sorted(ignored))} given, but neither {latent} nor {family} reads it")
        return jax.tree.map(jnp.asarray, data)

    def calibrate(self, data: Any, weights: Array | None = None) -> LatentModel:
        if self.likelihood.calibrated:
            return self
        return LatentModel(self.latent, self.likelihood.calibrate(self._read(data), weights))

    def prepare(self, data: Any) -> Prepared:
        if isinstance(data, Prepared):
            return data
        data = self._read(data)
        rest = Data(**{name: getattr(data, name) for name in data.given() & self.latent.reads})
        return Prepared(self.likelihood.statistics(data), rest)

    def validate(self, data: Any) -> None:
        self.likelihood.validate(self._read(data))

    # EM.

    def e_step(self, params: LatentParams, data: Any, weights: Float[Array, " N"] | None = None) -> EStep:
        data = self.prepare(data)
        if num_examples(data) <= _LONG:
            return self._e_step(params, data, weights)
        dtype = jnp.result_type(*jax.tree.leaves(data.statistics))
        size = block_size_near(num_examples(data), _LONG_BLOCK)
        return sum_over_blocks(lambda block, w: self._e_step(params, block, w), data, weights, size, dtype)

    def _e_step(self, params: LatentParams, data: Prepared, weights: Array | None) -> EStep:
        potentials = self.likelihood.log_prob(params.likelihood, data.statistics)
        inferred = self.latent.infer(params.latent, potentials, data.rest, weights)
        likelihood = self.likelihood.accumulate(params.likelihood, data.statistics, inferred.marginals)
        terms = inferred.log_normalizer
        if weights is None:
            weight = jnp.asarray(terms.shape[0], terms.dtype)
        else:
            weight = jnp.sum(weights)
            terms = jnp.where(weights == 0, 0, weights * terms)
        return EStep(LatentStats(inferred.stats, likelihood), jnp.sum(terms), weight)

    def m_step(self, params: LatentParams | None, stats: LatentStats, frozen=None) -> LatentParams:
        frozen = frozen or {}
        latent, likelihood = (None, None) if params is None else (params.latent, params.likelihood)
        return LatentParams(
            self.latent.maximize(latent, stats.latent, frozen),
            self.likelihood.maximize(likelihood, stats.likelihood, frozen),
        )

    def q(self, params: LatentParams, stats: LatentStats) -> Float[Array, ""]:
        return self.latent.q(params.latent, stats.latent) + self.likelihood.q(params.likelihood, stats.likelihood)

    # Starts.

    def init(
        self,
        key: Array,
        data: Any,
        weights: Float[Array, " N"] | None = None,
        strategy: Start | None = None,
        used: Bool[Array, " K"] | None = None,
    ) -> LatentParams:
        """Parameters from the responsibilities that ``strategy`` (k-means++ by default) gives to the rows.

        used: the components in use, all by default. The others start, and by EM's own arithmetic stay, at weight 0.
        """
        data = self._read(data)
        n = num_examples(data)
        if n > _START_ROWS:
            key, rows_key = jax.random.split(key)
            rows = jax.random.randint(rows_key, (_START_ROWS,), 0, n)
            data = jax.tree.map(lambda a: a[rows], data)
            weights = None if weights is None else weights[rows]
        features = self.likelihood.features(data)
        rows = features.shape[:-1]  # [N], or [B, T] for sequences, whose weight is that of each of their steps
        ones = jnp.ones(rows[0], features.dtype)
        weights = ones if weights is None else weights / jnp.maximum(jnp.mean(weights), jnp.finfo(weights.dtype).tiny)
        strategy = KMeansPlusPlus() if strategy is None else strategy
        used = jnp.ones(self.num_components, bool) if used is None else used
        flat = features.reshape(-1, features.shape[-1])
        each = jnp.broadcast_to(_per_row(weights, len(rows)), rows).reshape(-1)
        responsibilities = strategy.responsibilities(key, flat, each, used)
        return self.from_responsibilities(responsibilities.reshape(*rows, -1), data, weights)

    def from_responsibilities(self, responsibilities: Float[Array, "N K"], data: Any, weights: Array) -> LatentParams:
        """The M-step at given responsibilities, with one imagined example of the whole data in every component.

        The imagined example keeps a component of one row, or none, from starting at a point of infinite density.
        """
        stats = self.complete_statistics(responsibilities, data, weights)
        likelihood = jax.tree.map(jnp.add, stats.likelihood, self._overall(data, weights))
        return self.m_step(None, LatentStats(stats.latent, likelihood))

    def complete_statistics(self, responsibilities: Array, data: Any, weights: Array | None = None) -> LatentStats:
        """The statistics when q(z) is given instead of inferred: E_q[T(x, z)] summed over examples."""
        data = self.prepare(data)
        marginals = responsibilities
        if weights is not None:
            marginals = responsibilities * _per_row(weights, responsibilities.ndim)
        return LatentStats(
            self.latent.accumulate(marginals, data.rest),
            self.likelihood.accumulate(None, data.statistics, marginals),
        )

    def _overall(self, data: Any, weights: Array | None) -> Any:
        """The family's statistics per row (of a sequence: per step), the same for every component."""
        data = self._read(data)
        n = num_examples(data)
        prepared = self.prepare(data)
        dtype = jnp.result_type(*jax.tree.leaves(prepared.statistics))
        rows = jax.eval_shape(self.likelihood.features, data).shape[1:-1]

        def total(block: Prepared, w: Any) -> tuple[Any, Array]:
            share = jnp.broadcast_to(_per_row(w, len(rows) + 2), (w.shape[0], *rows, 1))
            return self.likelihood.accumulate(None, block.statistics, share), jnp.sum(share)

        weights = jnp.ones(n, dtype) if weights is None else weights
        stats, weight = sum_over_blocks(total, prepared, weights, _LONG_BLOCK, dtype)
        k = self.num_components
        return jax.tree.map(lambda a: jnp.broadcast_to(a / weight, (k, *a.shape[1:])), stats)

    def pseudo_statistics(self, data: Any, weights: Array | None = None) -> LatentStats:
        overall = self._overall(data, weights)
        return LatentStats(self.latent.pseudo_statistics(), self.likelihood.pseudo_statistics(overall))

    # What a fitted model is asked.

    def _potentials(self, params: LatentParams, data: Any) -> tuple[Array, Data]:
        # Outside the loop nobody calibrated: take the centre from the data at hand, so that float32 stays accurate.
        model = self if isinstance(data, Prepared) else self.calibrate(data)
        prepared = model.prepare(data)
        return model.likelihood.log_prob(params.likelihood, prepared.statistics), prepared.rest

    def log_likelihood(self, params: LatentParams, data: Any) -> Float[Array, " N"]:
        potentials, rest = self._potentials(params, data)
        return self.latent.infer(params.latent, potentials, rest, None).log_normalizer

    def posterior(self, params: LatentParams, data: Any) -> Float[Array, "N K"]:
        potentials, rest = self._potentials(params, data)
        return self.latent.infer(params.latent, potentials, rest, None).marginals

    def predict(self, params: LatentParams, data: Any) -> Array:
        potentials, rest = self._potentials(params, data)
        return self.latent.mode(params.latent, potentials, rest)

    def sample(self, key: Array, params: LatentParams, num_examples: int) -> tuple[Array, Array]:
        latent_key, likelihood_key = jax.random.split(key)
        z = self.latent.sample(latent_key, params.latent, num_examples)
        return self.likelihood.sample(likelihood_key, params.likelihood, z), z

    def take_components(self, params: LatentParams, components: Int[Array, " C"]) -> LatentParams:
        return LatentParams(
            self.latent.take_components(params.latent, components),
            self.likelihood.take_components(params.likelihood, components),
        )

    def diagnose(self, params: LatentParams, weight: Array) -> Diagnosis:
        return Diagnosis(self.likelihood.degenerate(params.likelihood), self.latent.empty(params.latent, weight))

    def to_free(self, params: LatentParams) -> LatentParams:
        return LatentParams(self.latent.to_free(params.latent), self.likelihood.to_free(params.likelihood))

    def from_free(self, free: LatentParams) -> LatentParams:
        return LatentParams(self.latent.from_free(free.latent), self.likelihood.from_free(free.likelihood))


def _per_row(weights: Array, ndim: int) -> Array:
    """One number per example, with axes of length 1 for whatever an example has: steps, components."""
    return weights.reshape(weights.shape + (1,) * (ndim - weights.ndim))
