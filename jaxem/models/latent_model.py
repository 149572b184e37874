"""Prior times likelihood: the one E-step and the one M-step of every latent joined with every family."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

from jaxem import layout, programs
from jaxem.blocks import LONG, LONG_BLOCK, block_size_near, long_sum, sum_over_blocks
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.latents.annealed import Annealed
from jaxem.model import (
    Data,
    Diagnosis,
    EStep,
    Family,
    Imputation,
    Latent,
    Model,
    Prepared,
    UnsupportedError,
    as_data,
    float_type,
    nothing_held,
    num_examples,
    pytree,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Starts look at no more rows than this, drawn at random for each start: centres do not get better by looking at all.
START_ROWS = 2**14


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
        if self.latent.sequential and self.likelihood.sequential:
            raise ValueError(
                f"a step of {type(self.latent).__name__} is one observation, and cannot be a whole sequence"
            )

    @property
    def num_components(self) -> int:
        return self.latent.num_components

    @property
    def objective_name(self) -> str:  # type: ignore[override]
        return self.latent.objective_name

    @property
    def min_examples(self) -> int:
        return self.latent.min_examples

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return self.latent.generalized or self.likelihood.generalized

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.latent.monotone and self.likelihood.monotone

    @property
    def averageable(self) -> bool:  # type: ignore[override]
        return self.likelihood.averageable

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.reads | self.likelihood.reads | {"x", "labels"}

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.latent.sequential or self.likelihood.sequential

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable | self.likelihood.freezable

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable_by_component | self.likelihood.freezable_by_component

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.latent.sweepable and self.likelihood.sweepable

    def with_components(self, num_components: int) -> LatentModel:
        return LatentModel(self.latent.with_components(num_components), self.likelihood)

    def redraw(self, key: Array) -> LatentModel:
        latent_key, likelihood_key = jax.random.split(key)
        return LatentModel(self.latent.redraw(latent_key), self.likelihood.redraw(likelihood_key))

    def tempered(self, temperature: Float[Array, ""] | float) -> LatentModel:
        return LatentModel(Annealed(self.latent, temperature), self.likelihood)

    # The data's road: raw → calibrate (once, the whole) → prepare (once, or once a chunk) → e_step.

    def specialize(self, data: Any) -> LatentModel:
        rows = None if data is None else self._rows(self._read(layout.on_host(data), on_host=True))
        return LatentModel(self.latent, self.likelihood.specialize(rows))

    def _read(self, data: Any, on_host: bool = False) -> Data:
        """The data in their normal form: checked, and finite in every place that is not observed.

        on_host: NumPy arrays stay what they are, for checks that are to compile nothing.
        """
        data = as_data(data)
        latent, family = type(self.latent).__name__, type(self.likelihood).__name__
        data = data if on_host else jax.tree.map(jnp.asarray, data)
        reads = self.reads
        if data.mask is not None and data.x is not None and data.mask.ndim < data.x.ndim:
            reads |= {"mask"}  # observations that are missing whole are nobody's business but this model's
        ignored = data.given() - reads
        if ignored:
            raise ValueError(f"{', '.join(sorted(ignored))} given, but neither {latent} nor {family} reads it")
        missing = ({"inputs"} & (self.latent.reads | self.likelihood.reads)) - data.given()
        if missing:
            raise ValueError(f"{latent} and {family} need inputs: pass jaxem.Data(x=..., inputs=...)")
        if self.likelihood.sequential:
            return layout.whole(data, self.likelihood.filler)
        return layout.normal(data, self.latent.sequential, self.likelihood.filler)

    def _rows(self, data: Data) -> Data:
        """What the family sees: one row for every observation, or for every sequence."""
        if self.likelihood.sequential:
            inputs = data.inputs if "inputs" in self.likelihood.reads else None
            return Data(x=data.x, mask=data.mask, inputs=inputs, lengths=data.lengths)
        return layout.rows(data, self.likelihood.reads)

    def _lead(self, data: Data) -> tuple[int, ...]:
        """The axes of the rows: those of the latent."""
        return data.x.shape[:1] if self.likelihood.sequential else layout.lead(data)

    def _row_weights(self, data: Data, weights: Array | None) -> Array | None:
        return weights if self.likelihood.sequential else layout.row_weights(data, weights)

    def calibrate(self, data: Any, weights: Array | None = None) -> LatentModel:
        data = self._read(data)
        latent = self.latent.calibrate(data, weights)
        if self.likelihood.calibrated:
            return LatentModel(latent, self.likelihood)
        each = self._row_weights(data, weights)
        return LatentModel(latent, self.likelihood.calibrate(self._rows(data), each))

    def prepare(self, data: Any) -> Prepared:
        if isinstance(data, Prepared):
            return data
        data = self._read(data)
        statistics = self.likelihood.statistics(self._rows(data))
        rest = Data(
            mask=None if self.likelihood.sequential else layout.observed(data),
            inputs=data.inputs if "inputs" in self.latent.reads else None,
            lengths=data.lengths,
            starts=data.starts,
            labels=data.labels,
        )
        return Prepared(layout.by_examples(statistics, self._lead(data)), rest)

    def num_observations(self, data: Any, weights: Float[Array, " N"] | None = None) -> Float[Array, ""]:
        if isinstance(data, Prepared):
            axes, dtype, lengths = (
                layout.lead_of(data, self.latent.sequential),
                float_type(data.statistics),
                data.rest.lengths,
            )
        else:
            read = self._read(data)
            axes, dtype, lengths = self._lead(read), read.x.dtype, read.lengths
        if lengths is not None:
            steps = lengths.astype(dtype)
            return jnp.sum(steps if weights is None else weights * steps)
        return jnp.asarray(math.prod(axes) if weights is None else math.prod(axes[1:]) * jnp.sum(weights), dtype)

    def check_divisible(self, data: Any) -> None:
        flat = data.rest.starts is not None if isinstance(data, Prepared) else as_data(data).x.ndim < 3
        if self.latent.sequential and flat:
            raise UnsupportedError(
                "the rows of flat sequences cannot be cut into chunks or shards: pad them (jaxem.sequences.pad)"
            )

    def validate(self, data: Any) -> None:
        data = layout.on_host(as_data(data))
        layout.validate(data, self.num_components)
        data = self._read(data, on_host=True)
        if self.sequential:
            _, steps = layout.count_sequences(data)
            if steps < self.num_components:
                raise ValueError(f"{self.num_components} states need at least as many steps; got {steps}")
        self.likelihood.validate(self._rows(data))

    # EM.

    def e_step(self, params: LatentParams, data: Any, weights: Float[Array, " N"] | None = None) -> EStep:
        data = self.prepare(data)
        if not self.latent.independent or num_examples(data) <= LONG:
            return self._e_step(params, data, weights)
        dtype = float_type(data.statistics)
        size = block_size_near(num_examples(data), LONG_BLOCK)
        return sum_over_blocks(lambda block, w: self._e_step(params, block, w), data, weights, size, dtype)

    def _e_step(self, params: LatentParams, data: Prepared, weights: Array | None) -> EStep:
        potentials = self._prepared_potentials(params, data)
        inferred = self.latent.infer(params.latent, potentials, data.rest, weights)
        likelihood = self._accumulate(params.likelihood, data, inferred.marginals)
        terms = inferred.log_normalizer
        if weights is not None:
            terms = jnp.where(weights == 0, 0, weights * terms)
        return EStep(LatentStats(inferred.stats, likelihood), long_sum(terms), self.num_observations(data, weights))

    def _prepared_potentials(self, params: LatentParams, data: Prepared) -> Array:
        """log p(x | z = k) of every observation: 0 where nothing is observed, −∞ where a label says otherwise."""
        rest = data.rest
        axes = layout.lead_of(data, self.latent.sequential)
        potentials = self.likelihood.log_prob(params.likelihood, layout.flatten(data.statistics, axes))
        potentials = layout.by_examples(potentials, axes)
        if rest.mask is not None:
            potentials = jnp.where(rest.mask[..., None], potentials, 0)
        if rest.labels is not None:
            allowed = (rest.labels[..., None] < 0) | (rest.labels[..., None] == jnp.arange(self.num_components))
            potentials = jnp.where(allowed, potentials, -jnp.inf)
        return potentials

    def _accumulate(self, params: Any, data: Prepared, marginals: Array) -> Any:
        """The family's statistics: only of what is observed."""
        if data.rest.mask is not None:
            marginals = jnp.where(data.rest.mask[..., None], marginals, 0)
        rows = marginals.reshape(-1, marginals.shape[-1])
        axes = layout.lead_of(data, self.latent.sequential)
        return self.likelihood.accumulate(params, layout.flatten(data.statistics, axes), rows)

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

    @programs.method
    def init(
        self,
        key: Array,
        data: Any,
        weights: Float[Array, " N"] | None = None,
        strategy: Start | None = None,
        used: Bool[Array, " K"] | None = None,
    ) -> LatentParams:
        """Parameters from the responsibilities that ``strategy`` (k-means++ by default) gives to the observations.

        used: the components in use, all by default. The others start, and by EM's own arithmetic stay, at weight 0.
        Rows with a label belong to their component from the start, and rows without to one of those that no label names.
        """
        data = self._read(data)
        n = num_examples(data)
        most = max(1, START_ROWS // math.prod(data.x.shape[1:-1]))
        if n > most and not (self.latent.sequential and data.starts is not None):
            key, rows_key = jax.random.split(key)
            # Not from rows that only fill the data up to the size of a program: the draw is that without them.
            end = n if weights is None else n - jnp.argmax(weights[::-1] > 0)
            rows = jax.random.randint(rows_key, (most,), 0, end)
            data = jax.tree.map(lambda a: a[rows], data)
            weights = None if weights is None else weights[rows]
        features = self.likelihood.features(self._rows(data))
        each = self._row_weights(data, weights)
        each = jnp.ones(features.shape[0], features.dtype) if each is None else each
        strategy = KMeansPlusPlus() if strategy is None else strategy
        used = jnp.ones(self.num_components, bool) if used is None else used
        scaled = each / jnp.maximum(jnp.mean(each), jnp.finfo(each.dtype).tiny)
        responsibilities = strategy.responsibilities(key, features, scaled, used)
        if data.labels is not None:
            responsibilities = _labelled(responsibilities, data.labels.reshape(-1))
        lead = self._lead(data)
        return self.from_responsibilities(
            responsibilities.reshape(*lead, -1),
            data,
            weights,
            jax.random.fold_in(key, 1) if self.likelihood.starts_from_rows else None,
        )

    def from_responsibilities(
        self,
        responsibilities: Float[Array, "N K"],
        data: Any,
        weights: Array | None = None,
        key: Array | None = None,
    ) -> LatentParams:
        """The M-step at given responsibilities, with one imagined example of the whole data in every component.

        The imagined example keeps a component of one row, or none, from starting at a point of infinite density. key: for
        members that are models, which start at random.
        """
        if self.likelihood.starts_from_rows:
            return self._start_from_rows(responsibilities, data, weights, key)
        stats = self.complete_statistics(responsibilities, data, weights)
        likelihood = jax.tree.map(jnp.add, stats.likelihood, self._overall(data, weights))
        latent = stats.latent
        if self.latent.sequential:
            # A step that belongs to nobody may be in any state that holds something: else its neighbors had no neighbor.
            total = jnp.sum(responsibilities, axis=-1, keepdims=True)
            present = jnp.any(responsibilities > 0, axis=tuple(range(responsibilities.ndim - 1)))
            anywhere = jnp.where(total > 0, responsibilities, present / jnp.maximum(jnp.sum(present), 1))
            latent = self.complete_statistics(anywhere, data, weights).latent
        return self.m_step(None, LatentStats(latent, likelihood))

    def _start_from_rows(self, responsibilities: Array, data: Any, weights: Array | None, key: Any) -> LatentParams:
        if key is None:
            raise ValueError(f"members of {type(self.likelihood).__name__} start at random: pass a key")
        data = self._read(data)
        rows = self._rows(data)
        each = self._row_weights(data, weights)
        marginals = responsibilities.reshape(-1, self.num_components)
        each = jnp.ones(marginals.shape[0], marginals.dtype) if each is None else each
        total = jnp.sum(each)
        imagined = each / jnp.where(total > 0, total, 1)
        likelihood = self.likelihood.start(key, rows, marginals * each[:, None] + imagined[:, None])
        counts = self._latent_statistics(responsibilities, self.prepare(data), weights)
        return LatentParams(self.latent.maximize(None, counts, {}), likelihood)

    def _latent_statistics(self, responsibilities: Array, data: Prepared, weights: Array | None) -> Any:
        marginals = responsibilities
        if weights is not None:
            marginals = responsibilities * _per_row(weights, responsibilities.ndim)
        return self.latent.accumulate(marginals, data.rest)

    def complete_statistics(self, responsibilities: Array, data: Any, weights: Array | None = None) -> LatentStats:
        """The statistics when q(z) is given instead of inferred: E_q[T(x, z)] summed over examples."""
        data = self.prepare(data)
        marginals = responsibilities
        if weights is not None:
            marginals = responsibilities * _per_row(weights, responsibilities.ndim)
        return LatentStats(self.latent.accumulate(marginals, data.rest), self._accumulate(None, data, marginals))

    def expected_log_joint(
        self, params: LatentParams, data: Any, responsibilities: Float[Array, "N K"], weights: Array | None = None
    ) -> Float[Array, ""]:
        """E_q[log p(x, z | params)] for a given q(z), summed over examples."""
        data = self.prepare(data)
        marginals = responsibilities
        if weights is not None:
            marginals = responsibilities * _per_row(weights, responsibilities.ndim)
        latent = self.latent.q(params.latent, self.latent.accumulate(marginals, data.rest, params.latent))
        if not self.likelihood.augmented(data.statistics):
            return latent + self.likelihood.q(params.likelihood, self._accumulate(None, data, marginals))
        # Statistics at other parameters, or none, say nothing of the density of what is observed.
        terms = jnp.where(marginals == 0, 0, marginals * self._prepared_potentials(params, data))
        return latent + jnp.sum(terms)

    def elbo(self, params: LatentParams, data: Any, q: Float[Array, "N K"], weights: Array | None = None) -> Array:
        if not self.latent.independent:
            name = type(self.latent).__name__
            raise UnsupportedError(
                f"q of shape [N, K] does not describe a distribution over the dependent values of {name}"
            )
        entropy = jnp.sum(entr(q), axis=-1)
        entropy = jnp.sum(entropy if weights is None else entropy * weights)
        return self.expected_log_joint(params, data, q, weights) + entropy

    def _overall(self, data: Any, weights: Array | None) -> Any:
        """The family's statistics per observation, the same for every component."""
        data = self._read(data)
        each = layout.row_weights(data, weights)
        statistics = self.likelihood.statistics(self._rows(data))
        dtype = float_type(statistics)
        each = jnp.ones(num_examples(statistics), dtype) if each is None else each

        def total(block: Any, w: Any) -> tuple[Any, Array]:
            return self.likelihood.accumulate(None, block, w[:, None]), jnp.sum(w)

        stats, weight = sum_over_blocks(total, statistics, each, LONG_BLOCK, dtype)
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
        return model._prepared_potentials(params, prepared), prepared.rest

    @programs.method
    def log_likelihood(self, params: LatentParams, data: Any) -> Float[Array, " N"]:
        potentials, rest = self._potentials(params, data)
        return self.latent.infer(params.latent, potentials, rest, None).log_normalizer

    @programs.method
    def posterior(self, params: LatentParams, data: Any) -> Float[Array, "N K"]:
        potentials, rest = self._potentials(params, data)
        return self.latent.infer(params.latent, potentials, rest, None).marginals

    @programs.method
    def predict(self, params: LatentParams, data: Any) -> Array:
        potentials, rest = self._potentials(params, data)
        return self.latent.mode(params.latent, potentials, rest)

    @programs.method(static=("num_examples", "num_steps"))
    def sample(
        self, key: Array, params: LatentParams, num_examples: int, num_steps: int | None = None, inputs: Any = None
    ) -> tuple[Array, Array]:
        if self.sequential and num_steps is None:
            raise ValueError("a draw of sequences needs num_steps, their length")
        if "inputs" in self.latent.reads | self.likelihood.reads and inputs is None:
            raise ValueError("draws of this model need inputs, one row for every observation")
        shape = (num_examples, num_steps) if self.latent.sequential and num_steps is not None else (num_examples,)
        given = Data(inputs=None if inputs is None else jnp.asarray(inputs))
        latent_key, likelihood_key = jax.random.split(key)
        z = self.latent.sample(latent_key, params.latent, shape, given)
        rows = Data(inputs=None if given.inputs is None else given.inputs.reshape(-1, given.inputs.shape[-1]))
        options = {"num_steps": num_steps} if self.likelihood.sequential else {}
        x = self.likelihood.sample(likelihood_key, params.likelihood, z.reshape(-1), rows, **options)
        return x.reshape(*shape, *x.shape[1:]), z

    @programs.method
    def impute(self, params: LatentParams, data: Any) -> Imputation:
        """Mixes the components' conditional moments by the posterior: E[x] and its law of total covariance."""
        model = self.calibrate(data)
        read = model._read(data)
        seen = layout.seen(read)
        cells = jnp.ones(read.x.shape, bool) if seen is None else jnp.broadcast_to(seen, read.x.shape)
        cells, x = (a.reshape(-1, a.shape[-1]) for a in (cells, read.x))
        posterior = self.posterior(params, data)
        if self.likelihood.sequential:
            rows, posterior = model._rows(read), jnp.repeat(posterior, read.x.shape[1], axis=0)
        else:
            rows = dataclasses.replace(model._rows(read), mask=cells)
        posterior = posterior.reshape(-1, self.num_components)
        mean, covariance = model.likelihood.conditional_moments(params.likelihood, rows)
        # What is observed is known: not mixed, so that it keeps its last bit, and without covariance.
        overall = jnp.where(cells, x, jnp.einsum("nk,nkd->nd", posterior, mean, precision="highest"))
        away = mean - overall[:, None, :]
        spread = covariance + away[..., :, None] * away[..., None, :]
        total = jnp.einsum("nk,nkde->nde", posterior, spread, precision="highest")
        total = jnp.where(cells[:, :, None] | cells[:, None, :], 0, total)
        lead = layout.lead(read)
        return Imputation(layout.by_examples(overall, lead), layout.by_examples(total, lead))

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

    def held(self, params: LatentParams) -> LatentParams:
        return LatentParams(nothing_held(params.latent), self.likelihood.held(params.likelihood))

    def num_free_parameters(self, params: LatentParams) -> int:
        latent = jax.eval_shape(self.latent.to_free, params.latent)
        return sum(leaf.size for leaf in jax.tree.leaves(latent)) + self.likelihood.num_free_parameters(
            params.likelihood
        )


def _labelled(responsibilities: Float[Array, "N K"], labels: Int[Array, " N"]) -> Float[Array, "N K"]:
    """Rows with a label in their component; the others in components that no label names, if there are any.

    Those get the clusters of the start in which the fewest labelled rows lie.
    """
    k = responsibilities.shape[1]
    known = labels >= 0
    one_hot = (labels[:, None] == jnp.arange(k)).astype(responsibilities.dtype)
    named = jnp.any(one_hot > 0, axis=0)
    clusters = jnp.argsort(jnp.sum(jnp.where(known[:, None], responsibilities, 0), axis=0))
    own = responsibilities[:, clusters[jnp.maximum(jnp.cumsum(~named) - 1, 0)]]
    return jnp.where(known[:, None], one_hot, jnp.where(named, 0, own))


def _per_row(weights: Array, ndim: int) -> Array:
    """One number per example, with axes of length 1 for whatever an example has: steps, components."""
    return weights.reshape(weights.shape + (1,) * (ndim - weights.ndim))
