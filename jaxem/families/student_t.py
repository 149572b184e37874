"""The multivariate Student t family over any covariance structure: Gaussian components with heavy tails."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import divide, hold, keep, linear, observations, occupied, weighted_sums
from jaxem.families.covariance import Covariance, Full
from jaxem.families.gaussian import Gaussian, GaussianParams
from jaxem.linalg import cholesky, dot
from jaxem.model import Data, Family, UnsupportedError, pytree, static
from jaxem.special import LOG_2PI, excess_over_log, gamma_shape, log_minus_digamma, stirling

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# Degrees of freedom are kept between these; at the upper one the law is the Gaussian to 1e-5 of its logarithm.
_LEAST_DOF, _MOST_DOF = 0.1, 1e6
# Where a start begins: tails that the first steps can make heavier or lighter.
_START_DOF = 30.0
# Candidates for the degrees of freedom, as multiples of them.
_JUMPS = (1 / 3, 3.0)
# The interquartile range of a standard Gaussian.
_GAUSSIAN_RANGE = 1.349


@pytree
class StudentTParams:
    """mean: [K, D]. scatter: shaped like a Gaussian's covariance; the covariance is dof/(dof − 2) times as large.

    dof: degrees of freedom, [K], of all components together [], None where the family gives them.
    """

    mean: Float[Array, "K D"]
    scatter: Float[Array, "..."]
    dof: Float[Array, "..."] | None


@pytree
class StudentTStats:
    """Sums of E[·| x] over rows, with u the latent precision: r, [K]; r u T(x), [K, P]; r (u − 1 − log u), [K].

    jumps: what other degrees of freedom would add to Σ r log p, [K, 2]; None where they are given or not expanded.
    """

    count: Float[Array, " K"]
    weighted: Float[Array, "K P"]
    spread: Float[Array, " K"]
    jumps: Float[Array, "K J"] | None


@pytree
class StudentT(Family):
    """Student t components, ``log p(x | k) = c(ν_k) − ½ log |Σ_k| − ½ (ν_k + D) log(1 + δ_k/ν_k)``.

    δ_k = (x − μ_k)ᵀ Σ_k⁻¹ (x − μ_k). A Gaussian whose precision is multiplied by a latent u ~ Gamma(ν/2, ν/2) of each
    row, so that a row far off counts less: E[u | x] = (ν + D)/(ν + δ) (Liu & Rubin 1995; Peel & McLachlan 2000).

    covariance: the structure of the scatter Σ, as for `Gaussian`. dof: given degrees of freedom, one number or [K]; None
    to learn them, between 0.1 and 1e6. shared_dof: one number is learnt for all components. expanded: the faster M-step
    of a larger model (see `maximize`), which a prior does not go with. floor, center, scale: as for `Gaussian`, but taken
    from the quartiles of the data, which outliers do not move.
    """

    covariance: Covariance = Full()
    dof: Any = None
    floor: float = 1e-6
    shared_dof: bool = static(default=False)
    expanded: bool = static(default=True)
    center: Float[Array, " D"] | None = None
    scale: Float[Array, " D"] | None = None

    def __post_init__(self):
        number = isinstance(self.dof, (int, float)) and 0 < self.dof < math.inf
        if not (number or self.dof is None or isinstance(self.dof, (np.ndarray, jax.Array))):
            raise ValueError(f"dof takes a positive number, or None to learn it; got {self.dof!r}")
        if self.dof is not None and self.shared_dof:
            raise ValueError("dof is given, so shared_dof has nothing to share")
        _ = self._gaussian  # which checks the rest

    @property
    def _gaussian(self) -> Gaussian:
        """The family of the components when u is known."""
        return Gaussian(self.covariance, self.floor, self.center, self.scale)

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"mean", "scatter"} | ({"dof"} if self.dof is None else set()))

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        shared = {"dof"} if self.shared_dof else set()
        if not self._own_scatter:
            shared.add("scatter")
        return self.freezable - shared

    @property
    def _own_scatter(self) -> bool:
        """True where no part of the scatter is shared by the components."""
        return "covariance" in self._gaussian.freezable_by_component

    @property
    def averageable(self) -> bool:  # type: ignore[override]
        return not self.expanded

    @property
    def _jumps(self) -> bool:
        """True where other degrees of freedom are looked at in every step."""
        return self.expanded and self.dof is None

    @property
    def calibrated(self) -> bool:
        return self.center is not None

    def augmented(self, statistics: Array) -> bool:
        return True

    def calibrate(self, data: Data, weights: Array | None) -> StudentT:
        x = observations(data)
        low, center, high = _quartiles(x, jnp.ones(x.shape[0], x.dtype) if weights is None else weights)
        wide = self._gaussian.calibrate(data, weights).scale
        assert wide is not None
        scale = (high - low) / _GAUSSIAN_RANGE
        # Where half of the rows are alike the quartiles say nothing of the scale.
        scale = jnp.where(high - low > 8 * jnp.finfo(x.dtype).eps * jnp.abs(center), scale, wide)
        if self.covariance.isotropic:
            scale = jnp.full_like(scale, jnp.sqrt(jnp.mean(scale**2)))
        return dataclasses.replace(self, center=center, scale=scale)

    def features(self, data: Data) -> Float[Array, "N D"]:
        """Standardized, and drawn in where they are large: a start by distances takes to outliers."""
        return jnp.arcsinh(self._gaussian.features(data))

    def statistics(self, data: Data) -> Float[Array, "N P"]:
        return self._gaussian.statistics(Data(observations(data)))

    def log_prob(self, params: StudentTParams, statistics: Float[Array, "N P"]) -> Float[Array, "N K"]:
        distance, log_det = self._distance(params, statistics)
        dof, d = self._dof(params), params.mean.shape[1]
        constant = _log_profile_constant(dof, d) - 0.5 * log_det
        return constant - 0.5 * (dof + d) * jnp.log1p(distance / dof)

    def accumulate(
        self, params: StudentTParams | None, statistics: Float[Array, "N P"], marginals: Float[Array, "N K"]
    ) -> StudentTStats:
        count = jnp.sum(marginals, axis=0)
        if params is None:
            # Weights about the centre of all the data: outliers start no component.
            d = self._gaussian._dimension(statistics)
            u = (_START_DOF + d) / (_START_DOF + jnp.sum(statistics[:, 1 : 1 + d] ** 2, axis=1, keepdims=True))
            jumps = jnp.zeros((*count.shape, len(_JUMPS)), count.dtype) if self._jumps else None
            return StudentTStats(count, weighted_sums(marginals * u, statistics), jnp.zeros_like(count), jumps)
        d = params.mean.shape[1]
        distance, _ = self._distance(params, statistics)
        dof = self._dof(params)
        above = (d - distance) / (dof + distance)  # u − 1
        tried = jnp.concatenate([dof[None], _candidates(dof)]) if self._jumps else dof[None]
        log_tails = jnp.log1p(distance / tried[:, None])
        excess = excess_over_log(above, jnp.log1p(d / dof) - log_tails[0])
        # E[log u] is less than log E[u]
        spread = _weighted_sum(marginals, excess) + count * log_minus_digamma(0.5 * (dof + d))
        jumps = None
        if self._jumps:
            constant = _log_profile_constant(tried, d)
            rest = 0.5 * (tried + d)[:, None] * log_tails
            gains = (constant[1:] - constant[0])[:, None] - (rest[1:] - rest[0])
            jumps = _weighted_sum(marginals, gains).T
        return StudentTStats(count, weighted_sums(marginals * (1 + above), statistics), spread, jumps)

    def maximize(self, params: StudentTParams | None, stats: StudentTStats, frozen) -> StudentTParams:
        """Means and scatters weighted by u, and the degrees of freedom that go with its spread.

        With ``expanded`` the M-step is that of a larger model, u ~ α_k Gamma(ν/2, ν/2), which has the same likelihoods:
        its maximum, with α moved into Σ, raises the log-likelihood as surely, in fewer steps (PX-EM; Liu, Rubin & Wu
        1998, section 5.1; Kent, Tyler & Vardi 1994). Where the degrees of freedom alone, three times or a third of what
        they are, raise it more, the step is that: EM moves large ones by about D a step, however far they have to go
        (a maximization of the likelihood itself over them, as in ECME; Liu & Rubin 1995). Without, it is the maximum of
        `q`.
        """
        new, alpha = self._maximize(params, stats, frozen)
        if params is None or params.dof is None or stats.jumps is None:
            return new
        gains = jnp.where(jnp.isfinite(stats.jumps), stats.jumps, 0)
        if self.shared_dof:
            gains = jnp.sum(gains, axis=0)
        best = jnp.max(gains, axis=-1)
        lower, higher = _candidates(params.dof)
        moved = jnp.where(gains[..., 0] > gains[..., 1], lower, higher)
        dof = hold(frozen.get("dof"), jnp.where(best > 0, moved, params.dof), params.dof)
        gained = jnp.sum(jnp.where(dof != params.dof, best, 0))
        rounding = 16 * jnp.finfo(best.dtype).eps * jnp.sum(stats.count)
        jump = gained > jnp.maximum(self._gain(params, new, alpha, stats), 0) + rounding
        jumped = StudentTParams(params.mean, params.scatter, dof)
        return jax.tree.map(lambda a, b: jnp.where(jump, a, b), jumped, new)

    def _gain(self, old: StudentTParams, new: StudentTParams, alpha: Array, stats: StudentTStats) -> Array:
        """What the M-step adds to q of the larger model, and so at least to the log-likelihood."""
        log_alpha, total = stats.count * jnp.log(alpha), stats.weighted[:, 0]
        reduced = StudentTStats(
            stats.count, stats.weighted / alpha[:, None], stats.spread + total / alpha - total + log_alpha, None
        )
        both = jax.tree.map(lambda *a: jnp.stack(a), (new, reduced), (old, dataclasses.replace(stats, jumps=None)))
        after, before = jax.vmap(self.q)(*both)
        return after - jnp.sum(log_alpha) - before

    def _maximize(
        self, params: StudentTParams | None, stats: StudentTStats, frozen
    ) -> tuple[StudentTParams, Float[Array, " K"]]:
        """The M-step without jumps, and α."""
        count, weighted, gaussian = stats.count, stats.weighted, self._gaussian
        d = gaussian._dimension(weighted)
        used = occupied(count)
        total = weighted[:, 0]
        average = divide(weighted[:, 1 : 1 + d], total, used)
        old_mean, old_scatter = (None, None) if params is None else gaussian._standardized(_as_gaussian(params))
        mean = hold(frozen.get("mean"), keep(used, average, old_mean), old_mean)
        columns = self.covariance.columns
        about = divide(weighted[:, 1 + d :], total, used) - columns(average) + columns(average - mean)
        about = jnp.where(used[:, None], about * divide(total, count, used)[:, None], 0)

        def estimate(alpha: Array, floor: Array) -> Array:
            return self.covariance.estimate(about / alpha[..., None], count, d, floor, old_scatter)

        floor = gaussian._floor(count.dtype)
        alpha = self._expansion(stats, used, params, frozen)
        if alpha is None:
            alpha = jnp.ones_like(count)
            scatter = estimate(alpha, floor)
        else:
            # On the floor the maximum of the larger model is not known: there α stays 1.
            one, zero = jnp.ones_like(alpha), jnp.zeros_like(floor)
            expanded, free, plain = jax.vmap(estimate)(jnp.stack([alpha, alpha, one]), jnp.stack([floor, zero, floor]))
            lifted = expanded != free
            own_axes = tuple(range(1 if self._own_scatter else 0, lifted.ndim))
            lifted = jnp.any(lifted, axis=own_axes)
            alpha = jnp.where(lifted, 1, alpha)
            scatter = keep(lifted, plain, expanded) if self._own_scatter else jnp.where(lifted, plain, expanded)
        new = gaussian._in_units(mean, scatter)
        dof = self._estimate_dof(stats, used, alpha, None if params is None else params.dof)
        if params is None:
            return StudentTParams(new.mean, new.covariance, dof), alpha
        # What is kept is kept to the last bit, not standardized and back.
        scatter = keep(used, new.covariance, params.scatter) if self._own_scatter else new.covariance
        kept = StudentTParams(
            hold(frozen.get("mean"), keep(used, new.mean, params.mean), params.mean),
            hold(frozen.get("scatter"), scatter, params.scatter),
            None if dof is None else hold(frozen.get("dof"), dof, params.dof),
        )
        return kept, alpha

    def _expansion(
        self, stats: StudentTStats, used: Array, params: StudentTParams | None, frozen
    ) -> Float[Array, " K"] | None:
        """α of the larger model at its maximum: the mean of u; 1 where it is not known, None where that is everywhere."""
        count, total = stats.count, stats.weighted[:, 0]
        one = jnp.ones_like(count)
        held = frozen.get("scatter")
        if not self.expanded or params is None or held is True:
            return None
        if self._own_scatter:
            return hold(held, jnp.where(used, divide(total, count, used), 1), one)
        # One α for all components, whose scatters have something in common.
        if self.dof is None and not self.shared_dof:
            return None
        dof = self._dof(params)
        return jnp.broadcast_to(jnp.sum(dof * total) / jnp.sum(dof * count), count.shape)

    def _estimate_dof(self, stats: StudentTStats, used: Array, alpha: Array, old: Array | None) -> Array | None:
        """The root of log(ν/2) − ψ(ν/2) = E[u/α − 1 − log(u/α)], with α the mean of u, or 1.

        q is concave in ν, so the root cut off at the bounds is its maximum between them.
        """
        if self.dof is not None:
            return None
        count = stats.count
        if old is None:
            return jnp.full(() if self.shared_dof else count.shape, _START_DOF, count.dtype)
        spread = stats.spread - count * excess_over_log(alpha - 1)
        spread = jnp.sum(spread) / jnp.sum(count) if self.shared_dof else divide(spread, count, used)
        dof = 2 * gamma_shape(jnp.maximum(spread, 1 / _MOST_DOF))
        dof = jnp.clip(dof, _LEAST_DOF, _MOST_DOF)
        return dof if self.shared_dof else keep(used, dof, old)

    def q(self, params: StudentTParams, stats: StudentTStats) -> Float[Array, ""]:
        half, x = 0.5 * params.mean.shape[1], 0.5 * self._dof(params)
        natural, log_det = self._natural(params)
        quadratic = jnp.sum(natural * stats.weighted, axis=-1)
        log_u = stats.weighted[:, 0] - stats.count - stats.spread
        # The Gaussian given u, and the Gamma law of u with Stirling's formula taken out.
        constant = 0.5 * (jnp.log(x) - log_det) - (half + 0.5) * LOG_2PI - stirling(x)
        each = quadratic + stats.count * constant + (half - 1) * log_u - x * stats.spread
        return jnp.sum(jnp.where(stats.count == 0, 0, each))

    def pseudo_statistics(self, overall: StudentTStats) -> StudentTStats:
        """As for the Gaussian; of the tails it says what the given degrees of freedom would, or those of a start."""
        if self.expanded:
            raise UnsupportedError(
                "the expanded M-step of StudentT is not one of a prior: use StudentT(expanded=False)"
            )
        k = overall.count.shape[0]
        dof = jnp.broadcast_to(jnp.asarray(_START_DOF if self.dof is None else self.dof, overall.count.dtype), (k,))
        weighted = self._gaussian.pseudo_statistics(overall.weighted)
        return StudentTStats(overall.count, weighted, overall.count * log_minus_digamma(0.5 * dof), None)

    def mean(self, params: StudentTParams, data: Data) -> Float[Array, "K D"]:
        """The location, which is the mean for dof > 1."""
        return params.mean

    def sample(self, key: jax.Array, params: StudentTParams, z: Array, data: Data) -> Array:
        k, d = params.mean.shape
        normal_key, gamma_key = jax.random.split(key)
        root = cholesky(self.covariance.dense(params.scatter, k, d))
        noise = jax.random.normal(normal_key, (*z.shape, d), params.mean.dtype)
        half = 0.5 * self._dof(params)[z]
        # In logarithms: draws of a small shape leave the range of the floating-point type.
        log_u = jax.random.loggamma(gamma_key, half, dtype=half.dtype) - jnp.log(half)
        return params.mean[z] + jnp.exp(-0.5 * log_u)[:, None] * dot(root[z], noise[..., None])[..., 0]

    def take_components(self, params: StudentTParams, components) -> StudentTParams:
        taken = self._gaussian.take_components(_as_gaussian(params), components)
        dof = params.dof if params.dof is None or self.shared_dof else params.dof[components]
        return StudentTParams(taken.mean, taken.covariance, dof)

    def degenerate(self, params: StudentTParams) -> Bool[Array, " K"]:
        return self._gaussian.degenerate(_as_gaussian(params))

    def to_free(self, params: StudentTParams) -> StudentTParams:
        free = self._gaussian.to_free(_as_gaussian(params))
        return StudentTParams(free.mean, free.covariance, None if params.dof is None else jnp.log(params.dof))

    def from_free(self, free: StudentTParams) -> StudentTParams:
        params = self._gaussian.from_free(_as_gaussian(free))
        return StudentTParams(params.mean, params.covariance, None if free.dof is None else jnp.exp(free.dof))

    def _dof(self, params: StudentTParams) -> Float[Array, " K"]:
        dof = params.dof if self.dof is None else self.dof
        return jnp.broadcast_to(jnp.asarray(dof, params.mean.dtype), params.mean.shape[:1])

    def _natural(self, params: StudentTParams) -> tuple[Float[Array, "K P"], Float[Array, " K"]]:
        """Coefficients of T(x) in −½ δ, and log |Σ| in the units of the data."""
        mean, scatter = self._gaussian._standardized(_as_gaussian(params))
        quadratic, coefficients, log_det = self.covariance.precision(scatter, mean)
        constant = -0.5 * jnp.sum(coefficients * mean, axis=-1, keepdims=True)
        log_scale = 0.0 if self.scale is None else jnp.sum(jnp.log(self.scale))
        return jnp.concatenate([constant, coefficients, quadratic], axis=-1), log_det + 2 * log_scale

    def _distance(self, params: StudentTParams, statistics: Array) -> tuple[Float[Array, "N K"], Float[Array, " K"]]:
        """δ of every row and component: the matrix product of the Gaussian. And log |Σ|."""
        natural, log_det = self._natural(params)
        return jnp.maximum(-2 * linear(statistics, natural), 0), log_det


def _as_gaussian(params: StudentTParams) -> GaussianParams:
    return GaussianParams(params.mean, params.scatter)


def _candidates(dof: Float[Array, "..."]) -> Float[Array, "J ..."]:
    """Other degrees of freedom to look at."""
    jumps = np.asarray(_JUMPS, dof.dtype).reshape(-1, *[1] * dof.ndim)
    return jnp.clip(jumps * dof, _LEAST_DOF, _MOST_DOF)


def _log_profile_constant(dof: Float[Array, "..."], d: int) -> Float[Array, "..."]:
    """What log p of a t with |Σ| = 1 has beside −½ (ν + D) log(1 + δ/ν)."""
    x, half = 0.5 * dof, 0.5 * d
    # log Γ((ν + D)/2) − log Γ(ν/2) − (D/2) log(ν/2), whose terms are large numbers for large ν.
    above, below = stirling(jnp.stack([x + half, x]))
    return (x + half - 0.5) * jnp.log1p(half / x) + above - below - half * (1 + LOG_2PI)


def _weighted_sum(marginals: Float[Array, "N K"], values: Float[Array, "*J N K"]) -> Float[Array, "*J K"]:
    """Σ_n r_nk v_nk; a row of weight 0 does not count, whatever its value."""
    return jnp.sum(jnp.where(marginals == 0, 0, marginals * values), axis=-2)


def _quartiles(x: Float[Array, "N D"], weights: Float[Array, " N"]) -> tuple[Array, Array, Array]:
    """The first values of every column at which the running weight reaches a quarter, a half, three quarters."""
    # By a power of two, which keeps the sums of huge weights in range and those of whole ones exact.
    scaled = weights / jnp.exp2(jnp.floor(jnp.log2(jnp.max(weights))))
    ranked, scaled = jax.lax.sort((x, jnp.broadcast_to(scaled[:, None], x.shape)), dimension=0, num_keys=1)
    share = jnp.cumsum(scaled, axis=0)
    levels = np.array([0.25, 0.5, 0.75], x.dtype)[:, None] * share[-1]
    rows = jnp.minimum(jnp.sum(share < levels[:, None], axis=1), x.shape[0] - 1)
    low, middle, high = jnp.take_along_axis(ranked, rows, axis=0)
    return low, middle, high
