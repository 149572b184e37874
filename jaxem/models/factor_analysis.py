"""Factor analysis and probabilistic PCA: a Gaussian latent with a linear-Gaussian likelihood.

    x = μ + Λ z + ε,    z ~ N(0, I_L),    ε ~ N(0, Ψ),    Ψ diagonal (of PPCA σ² I)

so x ~ N(μ, Λ Λᵀ + Ψ). All that is inverted is L x L: with M = I + Λᵀ Ψ⁻¹ Λ, z | x ~ N(M⁻¹ Λᵀ Ψ⁻¹ (x − μ), M⁻¹), and of a
row with missing cells the same with the rows of Λ and Ψ that it observes (Woodbury; Rubin & Thayer 1982).

When nothing is missing, the E-step needs no more of the data than their moments (`Moments`): a step then costs D² L,
whatever N is.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import layout, programs
from jaxem.blocks import LONG_BLOCK, block_size_near, map_over_blocks, sum_over_blocks
from jaxem.families.base import occupied, weighted_mean
from jaxem.linalg import cholesky, diagonal, dot, precision_and_log_det
from jaxem.model import (
    Data,
    Diagnosis,
    EStep,
    FrozenLeaves,
    Imputation,
    Model,
    Prepared,
    as_data,
    float_type,
    num_examples,
    pytree,
    static,
    unsupported,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# Rows with missing cells have L x L matrices of their own: so many rows at a time.
_MASKED_BLOCK = 2**13
# Rows without missing cells: so many numbers at a time.
_BLOCK_NUMBERS = 2**21
# Moments are exact to the last digits in short blocks, whose sums are carried with compensation.
_MOMENT_BLOCK = 2**13
# Random starts move the loadings of the principal components by so much of a feature's standard deviation.
_PERTURBATION = 0.3
# A feature starts with at least so much of its variance as noise.
_LEAST_START_NOISE = 0.1


@pytree
class FactorParams:
    """mean: [D]. loadings: [D, L]. noise: variances, [D], of PPCA one for all, []; in the data's units."""

    mean: Float[Array, " D"]
    loadings: Float[Array, "D L"]
    noise: Float[Array, "..."]


@pytree
class Moments:
    """Of each of R groups of examples the sums of 1, y and y yᵀ: count [R], first [R, D], second [R, D, D]."""

    count: Float[Array, " R"]
    first: Float[Array, "R D"]
    second: Float[Array, "R D D"]


@pytree
class FactorStats:
    """Expected statistics of y, the standardized x, and z̃ = (z, 1), summed with the examples' weights.

    gram: E[z̃ z̃ᵀ], [L+1, L+1]. grams: the same over the rows that observe each feature, [D, L+1, L+1]; None where nothing
    is missing. cross: y_d E[z̃], [D, L+1]. square: y_d², [D].
    """

    gram: Float[Array, "L1 L1"]
    grams: Float[Array, "D L1 L1"] | None
    cross: Float[Array, "D L1"]
    square: Float[Array, " D"]

    @property
    def each_gram(self) -> Float[Array, "#D L1 L1"]:
        """One for each feature, or one for all of them."""
        return self.gram[None] if self.grams is None else self.grams


@pytree
class FactorScores:
    """Scores of the rows on the factors, [N, L], and their covariance: [L, L] where nothing is missing, else [N, L, L]."""

    mean: Float[Array, "N L"]
    covariance: Float[Array, "*N L L"]


@pytree
class LinearGaussian(Model):
    """What factor analysis and probabilistic PCA share: all but the form of the noise and of the scale."""

    num_factors: int = static()
    floor: float = 1e-6
    least_uniqueness: float = 0.0
    expanded: bool = static(default=True)
    center: Float[Array, " D"] | None = None
    scale: Float[Array, " D"] | None = None

    reads = frozenset({"x", "mask"})
    freezable = frozenset({"mean", "noise"})
    shareable = frozenset({"noise"})

    def __post_init__(self):
        size = self.num_factors
        if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
            raise ValueError(f"num_factors must be a whole number, at least 1; got {size!r}")
        if isinstance(self.floor, (int, float)) and not self.floor > 0:
            raise ValueError(f"floor must be positive; got {self.floor}")
        share = self.least_uniqueness
        if isinstance(share, (int, float)) and not 0 <= share < 1:
            raise ValueError(f"least_uniqueness is a share of the variance, from 0 up to below 1; got {share}")

    @property
    def averageable(self) -> bool:  # type: ignore[override]
        return not self.expanded

    def pooled_noise(self, residual: Float[Array, " D"], count: Float[Array, " D"]) -> Float[Array, "..."]:
        """The noise variances of the standardized features from sums of squared residuals and their counts."""
        raise unsupported(self, "pooled_noise", "the M-step")

    def pooled_variance(self, variance: Float[Array, " D"]) -> Float[Array, " D"]:
        """The variances by which features are scaled, from those of the data."""
        raise unsupported(self, "pooled_variance", "calibrate")

    # The data's road: raw → calibrate → prepare (rows) or compress (moments) → e_step.

    def _read(self, data: Any, on_host: bool = False) -> Data:
        data = as_data(data) if on_host else jax.tree.map(jnp.asarray, as_data(data))
        ignored = data.given() - {"x", "mask"}
        if ignored:
            raise ValueError(f"{', '.join(sorted(ignored))} given, but {type(self).__name__} does not read it")
        data = layout.normal(data, False, 0.0)
        d = data.x.shape[-1]
        if self.num_factors >= d:
            raise ValueError(f"num_factors must be below the number of features, {d}; got {self.num_factors}")
        if data.mask is None or data.mask.ndim == data.x.ndim:
            return data
        return dataclasses.replace(
            data, mask=layout.namespace(data.mask).broadcast_to(data.mask[:, None], data.x.shape)
        )

    def calibrate(self, data: Any, weights: Array | None = None) -> LinearGaussian:
        if self.center is not None or isinstance(data, Prepared):
            return self
        data = self._read(data)
        center = weighted_mean(data.x, weights, data.mask)
        variance = self.pooled_variance(weighted_mean((data.x - center) ** 2, weights, data.mask))
        # A column that varies by no more than its rounding is constant: its size is the only scale it has.
        rounding = self.pooled_variance((4 * jnp.finfo(center.dtype).eps * jnp.abs(center)) ** 2)
        size = jnp.sqrt(self.pooled_variance(center**2))
        scale = jnp.where(variance > rounding, jnp.sqrt(variance), jnp.where(size > 0, size, 1))
        return dataclasses.replace(self, center=center, scale=scale)

    def prepare(self, data: Any) -> Prepared:
        if isinstance(data, Prepared):
            return data
        data = self._read(data)
        y = self._standardize(data.x)
        return Prepared(y if data.mask is None else jnp.where(data.mask, y, 0), Data(mask=data.mask))

    def compress(self, data: Any, weights: Array | None = None) -> tuple[Prepared, Array | None]:
        """The moments of the data as one example, where nothing is missing and there are more rows than features."""
        data = self._read(data)
        n, d = data.x.shape
        if data.mask is not None or n <= d:
            return self.prepare(data), weights
        return Prepared(self._moments(data.x, weights)), None

    def _moments(self, x: Float[Array, "N D"], weights: Array | None) -> Moments:
        def term(block: Array, w: Array | None) -> Moments:
            y = self._standardize(block)
            each = jnp.ones(y.shape[0], y.dtype) if w is None else w
            weighted = y if w is None else y * w[:, None]
            return Moments(jnp.sum(each)[None], jnp.sum(weighted, axis=0)[None], dot(weighted.T, y)[None])

        return sum_over_blocks(term, x, weights, block_size_near(x.shape[0], _MOMENT_BLOCK), x.dtype)

    def num_observations(self, data: Any, weights: Array | None = None) -> Float[Array, ""]:
        if isinstance(data, Prepared) and isinstance(data.statistics, Moments):
            count = data.statistics.count
            return jnp.sum(count if weights is None else weights * count)
        n = num_examples(data)
        return jnp.asarray(n, float_type(data)) if weights is None else jnp.sum(weights)

    def validate(self, data: Any) -> None:
        mask = self._read(layout.on_host(data), on_host=True).mask
        if mask is not None:
            never = np.flatnonzero(~np.any(np.asarray(mask), axis=0))
            if len(never):
                raise ValueError(f"column {never[0]} has no observed cell: nothing can be learnt of it")

    def _standardize(self, x: Array) -> Array:
        return x if self.center is None or self.scale is None else (x - self.center) / self.scale

    def _standardized(self, params: FactorParams) -> tuple[Array, Array, Array]:
        """μ [D], Λ [D, L] and the noise variances [D] of y."""
        noise = jnp.broadcast_to(params.noise, params.mean.shape)
        if self.center is None or self.scale is None:
            return params.mean, params.loadings, noise
        scale = self.scale
        return (params.mean - self.center) / scale, params.loadings / scale[:, None], noise / scale**2

    def _in_units(self, mean: Array, loadings: Array, noise: Array) -> FactorParams:
        if self.center is None or self.scale is None:
            return FactorParams(mean, loadings, noise)
        # The noise of PPCA is one number, and so is its scale.
        scale = self.scale[0] if noise.ndim == 0 else self.scale
        return FactorParams(mean * self.scale + self.center, loadings * self.scale[:, None], noise * scale**2)

    def _log_scale(self, d: int, dtype: Any) -> Float[Array, " D"]:
        return jnp.zeros(d, dtype) if self.scale is None else jnp.log(self.scale)

    def _floor(self, dtype: Any) -> Array:
        return jnp.maximum(jnp.asarray(self.floor, dtype), 64 * jnp.finfo(dtype).eps)

    # The E-step.

    def e_step(self, params: FactorParams, data: Any, weights: Float[Array, " N"] | None = None) -> EStep:
        data = self.prepare(data)
        if isinstance(data.statistics, Moments):
            return self._from_moments(params, data.statistics, weights)
        n, dtype = num_examples(data), data.statistics.dtype
        block = _block_of(data)
        if n <= 2 * block:
            return self._from_rows(params, data, weights)
        size = block_size_near(n, block)
        return sum_over_blocks(lambda rows, w: self._from_rows(params, rows, w), data, weights, size, dtype)

    def _from_moments(self, params: FactorParams, moments: Moments, weights: Array | None) -> EStep:
        """B = M⁻¹ Λᵀ Ψ⁻¹ maps the scatter about μ to that of E[z]: two products, D² L and D L²."""
        each = jnp.ones_like(moments.count) if weights is None else weights
        total = jax.tree.map(lambda a: jnp.tensordot(each, a, axes=1, precision="highest"), moments)
        count, first, second = total.count, total.first, total.second
        mean, loadings, noise = self._standardized(params)
        project, spread, log_det = _regression(loadings, noise)
        shift = dot(project, mean)
        away = first - count * mean
        # Σ E[z] (y − μ)ᵀ, from the moments about 0.
        cross = dot(project, second) - jnp.outer(shift, first) - jnp.outer(dot(project, away), mean)
        scores = dot(cross, project.T)
        z = dot(project, away)
        gram = jnp.block([[count * spread + scores, z[:, None]], [z[None], count[None, None]]])
        scatter = diagonal(second) - 2 * mean * first + count * mean**2
        residual = scatter - 2 * jnp.sum(cross.T * loadings, axis=1) + jnp.sum(dot(loadings, scores) * loadings, axis=1)
        distance = jnp.sum(residual / noise) + jnp.trace(scores)
        d, dtype = mean.shape[0], mean.dtype
        constant = log_det + jnp.sum(jnp.log(2 * math.pi * noise) + 2 * self._log_scale(d, dtype))
        sums = jnp.concatenate([cross.T + jnp.outer(mean, z), first[:, None]], axis=1)
        stats = FactorStats(gram, None, sums, diagonal(second))
        return EStep(stats, -0.5 * (distance + count * constant), count)

    def _from_rows(self, params: FactorParams, data: Prepared, weights: Array | None) -> EStep:
        y, mask = data.statistics, data.rest.mask
        z, spread, terms = self._infer(params, data)
        each = jnp.ones_like(terms) if weights is None else weights
        count = jnp.sum(each)
        z = jnp.concatenate([z, jnp.ones_like(z[:, :1])], axis=1)
        weighted = z if weights is None else z * each[:, None]
        cross = dot(y.T, weighted)
        if mask is None:
            gram = dot(z.T, weighted) + _bordered(count * spread)
            grams = None
        else:
            second = (_bordered(spread) + z[:, :, None] * z[:, None, :]) * each[:, None, None]
            gram = jnp.sum(second, axis=0)
            grams = dot(mask.astype(y.dtype).T, second.reshape(y.shape[0], -1)).reshape(-1, *gram.shape)
        square = jnp.sum(y**2 * each[:, None], axis=0)
        if weights is not None:
            terms = jnp.where(weights == 0, 0, weights * terms)
        return EStep(FactorStats(gram, grams, cross, square), jnp.sum(terms), count)

    def _infer(self, params: FactorParams, data: Prepared) -> tuple[Array, Array, Array]:
        """E[z | x], [N, L], Cov[z | x], [L, L] or with missing cells [N, L, L], and log p(x), [N].

        (x − μ)ᵀ (Λ Λᵀ + Ψ)⁻¹ (x − μ) is the smallest value over z of |x − μ − Λ z|²/Ψ + |z|²: a sum of squares, in which
        nothing cancels.
        """
        y, mask = data.statistics, data.rest.mask
        mean, loadings, noise = self._standardized(params)
        away = y - mean
        d, dtype = mean.shape[0], mean.dtype
        constants = jnp.log(2 * math.pi * noise) + 2 * self._log_scale(d, dtype)
        if mask is None:
            project, spread, log_det = _regression(loadings, noise)
            z = dot(away, project.T)
            residual = away - dot(z, loadings.T)
            constant = jnp.sum(constants) + log_det
        else:
            observed = mask.astype(dtype)
            away = jnp.where(mask, away, 0)
            precise = loadings / noise[:, None]
            outer = (precise[:, :, None] * loadings[:, None, :]).reshape(d, -1)
            size = loadings.shape[1]
            inner = dot(observed, outer).reshape(-1, size, size)
            spread, log_det = _inverse(inner)
            z = dot(spread, dot(away, precise)[:, :, None])[:, :, 0]
            residual = jnp.where(mask, away - dot(z, loadings.T), 0)
            constant = dot(observed, constants) + log_det
        distance = jnp.sum(residual**2 / noise, axis=1) + jnp.sum(z**2, axis=1)
        return z, spread, -0.5 * (distance + constant)

    # The M-step.

    def m_step(self, params: FactorParams, stats: FactorStats, frozen: FrozenLeaves | None = None) -> FactorParams:
        """Regressions of every feature on E[z̃], and what they leave over as noise.

        With ``expanded`` the M-step is that of a larger model, z ~ N(α, R), which has the same likelihoods: its maximum,
        with α and R moved into μ and Λ, raises the log-likelihood at least as surely, in far fewer steps (PX-EM; Liu,
        Rubin & Wu 1998, section 4.1). Without, it is the maximum of `q` (Rubin & Thayer 1982).
        """
        frozen = frozen or {}
        size = stats.gram.shape[0] - 1
        mean, loadings, _ = self._standardized(params)
        grams = stats.each_gram
        count = jnp.broadcast_to(grams[:, -1, -1], mean.shape)
        used = occupied(count)
        grams = jnp.where(occupied(grams[:, -1, -1])[:, None, None], grams, jnp.eye(size + 1, dtype=mean.dtype))
        if frozen.get("mean"):
            about = stats.cross[:, :size] - mean[:, None] * grams[:, :size, -1]
            loadings = _solve(grams[:, :size, :size], about)
        else:
            coefficients = _solve(grams, stats.cross)
            loadings, mean = coefficients[:, :size], coefficients[:, size]
        residual = jnp.where(used, _residual(mean, loadings, stats), 0)
        noise = jnp.maximum(self.pooled_noise(residual, count), self._floor(mean.dtype))
        if self.expanded:
            mean, loadings = _reduced(mean, loadings, stats.gram, fixed_mean=bool(frozen.get("mean")))
        new = self._in_units(mean, loadings, noise)
        measured = used if noise.ndim else jnp.any(used)
        kept = FactorParams(
            jnp.where(used, new.mean, params.mean),
            jnp.where(used[:, None], new.loadings, params.loadings),
            jnp.where(measured, new.noise, params.noise),
        )
        held = {name: getattr(params, name) for name in ("mean", "noise") if frozen.get(name)}
        return dataclasses.replace(kept, **held)

    def shared_m_step(
        self, params: FactorParams, stats: FactorStats, shared: tuple[str, ...], frozen: FrozenLeaves | None = None
    ) -> FactorParams:
        """The regressions do not feel the noise, so that of all is the average of what each member leaves over."""
        frozen = frozen or {}
        loose = dataclasses.replace(self, floor=jnp.zeros(()))
        new = jax.vmap(lambda p, s: loose.m_step(p, s, frozen))(params, stats)
        if frozen.get("noise"):
            return new
        count = jax.vmap(lambda s: jnp.broadcast_to(s.each_gram[:, -1, -1], s.square.shape))(stats)
        _, _, noise = jax.vmap(self._standardized)(new)
        total = jnp.sum(count, axis=0)
        pooled = jnp.maximum(self.pooled_noise(jnp.sum(noise * count, axis=0), total), self._floor(noise.dtype))
        mean, loadings, _ = self._standardized(jax.tree.map(lambda a: a[0], new))
        pooled = self._in_units(mean, loadings, pooled).noise
        measured = total > 0 if pooled.ndim else jnp.any(total > 0)
        one = jnp.where(measured, pooled, params.noise[0])
        return dataclasses.replace(new, noise=jnp.broadcast_to(one, params.noise.shape))

    def q(self, params: FactorParams, stats: FactorStats) -> Float[Array, ""]:
        mean, loadings, noise = self._standardized(params)
        d, size = loadings.shape
        count = stats.each_gram[:, -1, -1]
        residual = _residual(mean, loadings, stats)
        constants = jnp.log(2 * math.pi * noise) + 2 * self._log_scale(d, noise.dtype)
        prior = jnp.trace(stats.gram) - stats.gram[-1, -1] * (1 - size * math.log(2 * math.pi))
        return -0.5 * (jnp.sum(count * constants + residual / noise) + prior)

    # Starts.

    @programs.method
    def init(self, key, data, weights=None, strategy=None, used=None) -> FactorParams:
        """The principal components of what is observed, moved at random; the strategy of discrete latents is not used."""
        model = self.calibrate(data, weights)
        data = model.prepare(data)
        mean, covariance = _covariance(data, weights)
        d, dtype = mean.shape[0], mean.dtype
        variance = jnp.maximum(diagonal(covariance), model._floor(dtype))
        values, vectors = jnp.linalg.eigh(covariance)
        rest = jnp.maximum(jnp.mean(values[: d - self.num_factors]), model._floor(dtype))
        top = jnp.sqrt(jnp.maximum(values[d - self.num_factors :] - rest, _LEAST_START_NOISE * rest))
        moved = _PERTURBATION * jax.random.normal(key, (d, self.num_factors), dtype) / math.sqrt(self.num_factors)
        loadings = vectors[:, d - self.num_factors :] * top + moved * jnp.sqrt(variance)[:, None]
        explained = jnp.sum(loadings**2, axis=1)
        most = (1 - _LEAST_START_NOISE) * variance
        loadings = loadings * jnp.sqrt(jnp.minimum(most / jnp.maximum(explained, most), 1))[:, None]
        left = variance - jnp.minimum(explained, most)
        ones = jnp.ones(d, dtype)
        noise = jnp.maximum(self.pooled_noise(left, ones), model._floor(dtype))
        return model._in_units(mean, loadings, noise)

    # What a fitted model is asked.

    def _rows(self, params: FactorParams, data: Any) -> tuple[LinearGaussian, Prepared]:
        """Prepared data and the model they belong to: raw data in units of the noise about the mean."""
        if isinstance(data, Prepared):
            return self, data
        scale = jnp.broadcast_to(jnp.sqrt(params.noise), params.mean.shape)
        model = dataclasses.replace(self, center=params.mean, scale=scale)
        return model, model.prepare(data)

    @programs.method
    def log_likelihood(self, params: FactorParams, data: Any) -> Float[Array, " N"]:
        model, rows = self._rows(params, data)
        return map_over_blocks(lambda block: model._infer(params, block)[2], rows, _block_of(rows))

    @programs.method(static=("method",))
    def factor_scores(
        self, params: FactorParams, data: Any, method: Literal["regression", "bartlett"] = "regression"
    ) -> FactorScores:
        """Scores of the rows on the factors, and their covariance.

        "regression": E[z | x] and Cov[z | x] (Thomson 1939). "bartlett": the generalized least squares estimate of z,
        unbiased given z, and its covariance (Λᵀ Ψ⁻¹ Λ)⁻¹ (Bartlett 1937); NaN for a row that observes fewer features
        than there are factors, which has none. Raises ValueError for another method.
        """
        if method not in ("regression", "bartlett"):
            raise ValueError(f"method is 'regression' or 'bartlett'; got {method!r}")
        model, rows = self._rows(params, data)

        def score(block: Prepared) -> FactorScores:
            z, spread, _ = model._infer(params, block)
            if block.rest.mask is None:
                spread = jnp.broadcast_to(spread, (z.shape[0], *spread.shape))
            return FactorScores(z, spread)

        if rows.rest.mask is None:
            z, spread, _ = model._infer(params, rows)
            scores = FactorScores(z, spread)
        else:
            scores = map_over_blocks(score, rows, _block_of(rows))
        if method == "regression":
            return scores
        # M = I + Λᵀ Ψ⁻¹ Λ: what the prior N(0, I) added is taken away again.
        eye = jnp.eye(self.num_factors, dtype=scores.mean.dtype)
        information = jnp.linalg.inv(scores.covariance) - eye
        if rows.rest.mask is not None:
            enough = jnp.sum(rows.rest.mask, axis=1) >= self.num_factors
            information = jnp.where(enough[:, None, None], information, jnp.nan)
        covariance = jnp.linalg.inv(information)
        unshrunk = scores.mean[..., None] + dot(covariance, scores.mean[..., None])
        return FactorScores(unshrunk[..., 0], covariance)

    @programs.method(static=("num_examples", "num_steps"))
    def sample(self, key, params: FactorParams, num_examples: int, num_steps=None, inputs=None) -> tuple[Array, Array]:
        """Draws of x, [N, D], and of the factors z, [N, L]."""
        factors, noise = jax.random.split(key)
        d, size = params.loadings.shape
        dtype = params.mean.dtype
        z = jax.random.normal(factors, (num_examples, size), dtype)
        error = jnp.sqrt(params.noise) * jax.random.normal(noise, (num_examples, d), dtype)
        return params.mean + dot(z, params.loadings.T) + error, z

    @programs.method
    def impute(self, params: FactorParams, data: Any) -> Imputation:
        raw = self._read(data)
        scores = self.factor_scores(params, raw)
        mean = params.mean + dot(scores.mean, params.loadings.T)
        missing = jnp.zeros(mean.shape, bool) if raw.mask is None else ~raw.mask
        noise = jnp.broadcast_to(params.noise, params.mean.shape)
        covariance = dot(dot(params.loadings, scores.covariance), params.loadings.T) + jnp.diag(noise)
        return Imputation(
            jnp.where(missing, mean, raw.x),
            jnp.where(missing[:, :, None] & missing[:, None, :], covariance, 0),
        )

    def heywood_cases(self, params: FactorParams) -> Bool[Array, " D"]:
        """Features whose noise is at the floor, or less than `least_uniqueness` of their variance."""
        _, loadings, noise = self._standardized(params)
        variance = jnp.sum(loadings**2, axis=1) + noise
        # A little above the floor: what was put on it is read back through roundings.
        return ~((noise > 1.05 * self._floor(noise.dtype)) & (noise >= self.least_uniqueness * variance))

    def diagnose(self, params: FactorParams, weight: Array) -> Diagnosis:
        """One entry, that of the model as a whole: degenerate with a Heywood case, empty below half an example."""
        return Diagnosis(jnp.any(self.heywood_cases(params))[None], jnp.asarray(weight < 0.5)[None])

    def to_free(self, params: FactorParams) -> FactorParams:
        return dataclasses.replace(params, noise=jnp.log(params.noise))

    def from_free(self, free: FactorParams) -> FactorParams:
        return dataclasses.replace(free, noise=jnp.exp(free.noise))

    def num_free_parameters(self, params: FactorParams) -> int:
        """Means, loadings and noise variances, less the L (L − 1)/2 angles that rotate the factors."""
        size = self.num_factors
        return sum(leaf.size for leaf in jax.tree.leaves(params)) - size * (size - 1) // 2


@pytree
class FactorAnalysis(LinearGaussian):
    """Factor analysis, ``x ~ N(μ, Λ Λᵀ + Ψ)`` with L factors and a noise variance for each feature.

    num_factors: L, below the number of features. floor: the smallest noise variance, relative to that of the feature in
    the data. least_uniqueness: a fit in which noise is a smaller share than this of a feature's variance is degenerate
    (a Heywood case: see `heywood_cases`); EM comes near the boundary slowly, so it is looked for before the floor, where
    R's factanal does. expanded: parameter-expanded EM, which has the mean after one step and never needs more steps
    (of PPCA half as many; what is slow in factor analysis, the noise, is as slow: an accelerated algorithm helps); without
    it the M-step maximizes `q`. center, scale: [D], set by `calibrate`. Loadings are determined up to a rotation: see
    `jaxem.rotation`. Raises ValueError for num_factors below 1, a floor that is not positive or a share outside [0, 1)
    (Rubin & Thayer 1982; Liu, Rubin & Wu 1998).
    """

    least_uniqueness: float = 0.005

    def pooled_noise(self, residual, count):
        return residual / jnp.where(count > 0, count, 1)

    def pooled_variance(self, variance):
        return variance


@pytree
class PPCA(LinearGaussian):
    """Probabilistic PCA, ``x ~ N(μ, Λ Λᵀ + σ² I)`` with L components, the noise the same in all directions.

    The arguments are those of `FactorAnalysis`; the floor is relative to the average variance of the features. The
    maximum is also known in closed form (`closed_form`); EM goes on where cells are missing, and costs no D³.
    Raises ValueError for num_factors below 1 or a floor that is not positive (Tipping & Bishop 1999).
    """

    def pooled_noise(self, residual, count):
        total = jnp.sum(count)
        return jnp.sum(residual) / jnp.where(total > 0, total, 1)

    def pooled_variance(self, variance):
        return jnp.full_like(variance, jnp.mean(variance))

    def closed_form(self, data: Any, weights: Float[Array, " N"] | None = None) -> FactorParams:
        """The parameters of largest likelihood, by the eigenvectors of the covariance (Tipping & Bishop 1999, eq. 7, 8).

        The columns of the loadings are orthogonal, that of the largest variance first. Raises ValueError for missing
        cells, with which there is no closed form.
        """
        model = self.calibrate(data, weights)
        prepared = model.prepare(data)
        if prepared.rest.mask is not None:
            raise ValueError("there is no closed form with missing cells; fit the model by EM (jaxem.fit)")
        mean, covariance = _covariance(prepared, weights)
        values, vectors = jnp.linalg.eigh(covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        top, rest = values[: self.num_factors], values[self.num_factors :]
        noise = jnp.maximum(jnp.mean(rest), model._floor(mean.dtype))
        loadings = vectors[:, : self.num_factors] * jnp.sqrt(jnp.maximum(top - noise, 0))
        return model._in_units(mean, loadings, noise)


def _regression(loadings: Float[Array, "D L"], noise: Float[Array, " D"]) -> tuple[Array, Array, Array]:
    """B = M⁻¹ Λᵀ Ψ⁻¹, [L, D], M⁻¹ = Cov[z | x], [L, L], and log |M|, with M = I + Λᵀ Ψ⁻¹ Λ."""
    precise = loadings / noise[:, None]
    spread, log_det = _inverse(dot(precise.T, loadings))
    return dot(spread, precise.T), spread, log_det


def _inverse(inner: Float[Array, "*N L L"]) -> tuple[Array, Array]:
    """(I + inner)⁻¹ and log |I + inner| of symmetric matrices that are not negative."""
    return precision_and_log_det(inner + np.eye(inner.shape[-1], dtype=inner.dtype))


def _bordered(a: Float[Array, "*N L L"]) -> Float[Array, "*N L1 L1"]:
    """With a row and a column of zeros at the end."""
    return jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, 1), (0, 1)])


def _times(rows: Float[Array, "D J"], symmetric: Float[Array, "#D J J"]) -> Float[Array, "D J"]:
    """Every row times its own matrix, or times the one of all."""
    if symmetric.shape[0] == 1:
        return dot(rows, symmetric[0])
    return dot(rows[:, None, :], symmetric)[:, 0, :]


def _solve(grams: Float[Array, "#D J J"], sums: Float[Array, "D J"]) -> Float[Array, "D J"]:
    """The coefficients of each feature's regression: its normal equations, solved."""
    return _times(sums, precision_and_log_det(grams)[0])


def _residual(mean: Array, loadings: Array, stats: FactorStats) -> Float[Array, " D"]:
    """Σ E[(y_d − μ_d − Λ_d z)²]; at its minimum it does not feel the rounding of the coefficients."""
    coefficients = jnp.concatenate([loadings, mean[:, None]], axis=1)
    fitted = _times(coefficients, stats.each_gram) - 2 * stats.cross
    return stats.square + jnp.sum(coefficients * fitted, axis=1)


def _reduced(mean: Array, loadings: Array, gram: Array, fixed_mean: bool) -> tuple[Array, Array]:
    """z ~ N(α, R) taken back to N(0, I): μ + Λ α and Λ R^½, with α and R the moments of E[z] and their spread."""
    count = gram[-1, -1]
    average = jnp.where(count > 0, gram / jnp.where(count > 0, count, 1), jnp.eye(gram.shape[0], dtype=gram.dtype))
    shift = jnp.zeros_like(average[:-1, -1]) if fixed_mean else average[:-1, -1]
    root = cholesky(average[:-1, :-1] - jnp.outer(shift, shift))
    return mean + dot(loadings, shift), dot(loadings, root)


def _covariance(data: Prepared, weights: Array | None) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """Mean and covariance of the observed cells, each entry from the rows that observe both features."""
    y, mask = data.statistics, data.rest.mask
    mean = weighted_mean(y, weights, mask)

    def term(block: Any, w: Array | None) -> tuple[Array, Array]:
        y, mask = block
        away = y - mean if mask is None else jnp.where(mask, y - mean, 0)
        seen = jnp.ones_like(y[:, :1]) if mask is None else mask.astype(y.dtype)
        weighted = (away, seen) if w is None else (away * w[:, None], seen * w[:, None])
        return dot(weighted[0].T, away), dot(weighted[1].T, seen)

    total, count = sum_over_blocks(term, (y, mask), weights, block_size_near(y.shape[0], _MOMENT_BLOCK), y.dtype)
    return mean, jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def _block_of(rows: Prepared) -> int:
    """Rows at a time: some arrays of their size, for every member of a mixture, are all that an E-step holds."""
    if rows.rest.mask is not None:
        return _MASKED_BLOCK
    return max(_MASKED_BLOCK, min(LONG_BLOCK, _BLOCK_NUMBERS // rows.statistics.shape[1]))
