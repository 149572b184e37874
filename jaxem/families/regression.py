"""Linear regression with Gaussian noise: responses x given inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxem.design import Design, calibrate_design, check_inputs, pairs, symmetric
from jaxem.families.base import divide, hold, keep, observations, occupied, weighted_mean
from jaxem.linalg import dot
from jaxem.model import Data, Family, pytree, static
from jaxem.newton import product, solve, summed

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class RegressionRows:
    """What a regression wants of each row: the design's columns, the response, and which cells of it are observed."""

    columns: Float[Array, "N P"]
    response: Float[Array, "N D"]
    observed: Float[Array, "N D"] | None = None
    offset: Float[Array, "N 1"] | None = None

    def weights(self, marginals: Float[Array, "N K"]) -> Float[Array, "K #D N"]:
        """The marginals, 0 where a cell is not observed."""
        each = marginals.T[:, None, :]
        return each if self.observed is None else each * self.observed.T


def regression_rows(data: Data, design: Design, name: str, offset: bool = False) -> RegressionRows:
    """The rows of responses and inputs; with ``offset`` the last input is one."""
    x = observations(data)
    inputs = check_inputs(data.inputs, name)
    observed = None if data.mask is None else data.mask.astype(x.dtype)
    given = inputs[:, -1:].astype(x.dtype) if offset else None
    return RegressionRows(design.columns(inputs[:, :-1] if offset else inputs, x.dtype), x, observed, given)


@pytree
class LinearRegressionParams:
    """coefficients: of the intercept, then of every input, [K, D, P]. variance: of the noise, [K, D], or [D] if tied."""

    coefficients: Float[Array, "K D P"]
    variance: Float[Array, "*K D"]


@pytree
class LinearStats:
    """Of every component and response: Σr, Σ r u uᵀ, Σ r u x and Σ r x², in standardized units.

    Components share the first two over the responses (an axis of length 1) unless cells are missing.
    """

    count: Float[Array, "K #D"]
    gram: Float[Array, "K #D P P"]
    cross: Float[Array, "K D P"]
    square: Float[Array, "K D"]


@pytree
class LinearRegression(Family):
    """Linear regressions of the responses on the inputs, ``x_d = β_kd · (1, inputs) + noise``, noise ~ N(0, σ²_kd).

    Responses are independent given the inputs. The M-step is exact: weighted normal equations, and the maximum-likelihood
    variance (divisor Σ r). An input that says nothing new in a component (constant there, or a combination of those before
    it) keeps its coefficient; at a start that is 0.
    intercept: whether a column of ones is added; it comes first. tied_noise: one variance per response for all components.
    floor: the smallest variance, relative to that of the responses, as in `Gaussian`; a component that reaches it is
    reported as degenerate. design, center, scale: set by `calibrate`. Inputs far from 0 relative to their spread cost
    float32 digits of the intercept.
    (DeSarbo & Cron 1988, J. Classification 5.)
    """

    intercept: bool = static(default=True)
    tied_noise: bool = static(default=False)
    floor: float = 1e-6
    design: Design | None = None
    center: Float[Array, " D"] | None = None
    scale: Float[Array, " D"] | None = None

    reads = frozenset({"x", "mask", "inputs"})
    freezable = frozenset({"coefficients", "variance"})

    def __post_init__(self):
        if isinstance(self.floor, (int, float)) and not self.floor > 0:
            raise ValueError(f"floor must be positive; got {self.floor}")

    @property
    def freezable_by_component(self) -> frozenset[str]:
        return frozenset({"coefficients"}) if self.tied_noise else self.freezable

    @property
    def calibrated(self) -> bool:
        return self.design is not None

    def calibrate(self, data: Data, weights: Array | None) -> LinearRegression:
        x = observations(data)
        inputs = check_inputs(data.inputs, "LinearRegression")
        center = weighted_mean(x, weights, data.mask)
        variance = weighted_mean((x - center) ** 2, weights, data.mask)
        # A response that varies by no more than its rounding is constant: its size is the only scale it has.
        constant = variance <= (4 * jnp.finfo(x.dtype).eps * jnp.abs(center)) ** 2
        size = jnp.where(center == 0, 1, jnp.abs(center))
        scale = jnp.where(constant, size, jnp.sqrt(jnp.where(constant, 1, variance)))
        design = calibrate_design(inputs, weights, self.intercept, x.dtype)
        center = center if self.intercept else jnp.zeros_like(center)
        return dataclasses.replace(self, design=design, center=center, scale=scale)

    def features(self, data: Data) -> Float[Array, "N F"]:
        """Standardized responses and inputs."""
        rows = self.statistics(data)
        return jnp.concatenate([rows.response, rows.columns], axis=-1)

    def statistics(self, data: Data) -> RegressionRows:
        rows = regression_rows(data, self._design(), "LinearRegression")
        x = rows.response
        if self.center is not None and self.scale is not None:
            x = (x - self.center) / self.scale
        return dataclasses.replace(rows, response=x)

    def log_prob(self, params: LinearRegressionParams, statistics: RegressionRows) -> Float[Array, "N K"]:
        coefficients, variance = self._standardized(params)
        k, d, p = coefficients.shape
        # From residuals, not from the expanded square, which cancels where the fit is close.
        fitted = dot(coefficients.reshape(k * d, p), statistics.columns.T).reshape(k, d, -1)
        square = (statistics.response.T - fitted) ** 2 / variance[..., None]
        terms = -0.5 * square - self._log_scale(variance)[..., None]
        if statistics.observed is not None:
            terms = terms * statistics.observed.T
        return jnp.sum(terms, axis=1).T

    def accumulate(self, params, statistics: RegressionRows, marginals: Float[Array, "N K"]) -> LinearStats:
        return summed(_linear_sums, statistics, marginals)

    def maximize(self, params: LinearRegressionParams | None, stats: LinearStats, frozen) -> LinearRegressionParams:
        k, d, p = stats.cross.shape
        count = jnp.broadcast_to(stats.count, (k, d))
        used = occupied(stats.count)
        old = None if params is None else self._standardized(params)[0]
        start = jnp.zeros_like(stats.cross) if old is None else old
        gram = jnp.broadcast_to(stats.gram, (k, d, p, p))
        rest = stats.cross - product(gram, start)
        new = start + solve(gram, rest, jnp.finfo(count.dtype).eps * count)
        new = hold(frozen.get("coefficients"), keep(used, new, old), old)
        squares = jnp.where(used, _residual_squares(stats, gram, new), 0)
        used = jnp.broadcast_to(used, (k, d))
        if self.tied_noise:
            count, squares = jnp.sum(count, axis=0), jnp.sum(squares, axis=0)
            used = count > 0
        variance = jnp.maximum(divide(squares, count, used), self._floor(count.dtype))
        answer = self._in_units(new, variance)
        if params is None:
            return answer
        # What is kept is kept to the last bit, not standardized and back.
        return LinearRegressionParams(
            hold(
                frozen.get("coefficients"),
                keep(occupied(stats.count), answer.coefficients, params.coefficients),
                params.coefficients,
            ),
            hold(frozen.get("variance"), keep(used, answer.variance, params.variance), params.variance),
        )

    def q(self, params: LinearRegressionParams, stats: LinearStats) -> Float[Array, ""]:
        coefficients, variance = self._standardized(params)
        squares = _residual_squares(stats, stats.gram, coefficients)
        return jnp.sum(-0.5 * squares / variance - stats.count * self._log_scale(variance))

    def pseudo_statistics(self, overall: LinearStats) -> LinearStats:
        return overall

    def mean(self, params: LinearRegressionParams, data: Data) -> Float[Array, "N K D"]:
        inputs = check_inputs(data.inputs, "LinearRegression")
        columns = Design(self.intercept).columns(inputs, params.coefficients.dtype)
        return jnp.einsum("np,kdp->nkd", columns, params.coefficients, precision="highest")

    def sample(self, key: jax.Array, params: LinearRegressionParams, z: Array, data: Data) -> Array:
        mean = jnp.take_along_axis(self.mean(params, data), z[:, None, None], axis=1)[:, 0]
        variance = jnp.broadcast_to(params.variance, params.coefficients.shape[:2])
        return mean + jnp.sqrt(variance)[z] * jax.random.normal(key, mean.shape, mean.dtype)

    def take_components(self, params: LinearRegressionParams, components) -> LinearRegressionParams:
        variance = params.variance if self.tied_noise else params.variance[components]
        return LinearRegressionParams(params.coefficients[components], variance)

    def degenerate(self, params: LinearRegressionParams) -> Bool[Array, " K"]:
        _, variance = self._standardized(params)
        collapsed = jnp.any(~(variance > 1.05 * self._floor(variance.dtype)), axis=-1)
        return jnp.broadcast_to(collapsed, params.coefficients.shape[:1])

    def to_free(self, params: LinearRegressionParams) -> LinearRegressionParams:
        return LinearRegressionParams(params.coefficients, jnp.log(params.variance))

    def from_free(self, free: LinearRegressionParams) -> LinearRegressionParams:
        return LinearRegressionParams(free.coefficients, jnp.exp(free.variance))

    def _design(self) -> Design:
        return Design(self.intercept) if self.design is None else self.design

    def _standardized(self, params: LinearRegressionParams) -> tuple[Array, Array]:
        coefficients, variance = self._design().standardized(params.coefficients), params.variance
        if self.center is None or self.scale is None:
            return coefficients, variance
        if self.intercept:
            coefficients = coefficients.at[..., 0].add(-self.center)
        return coefficients / self.scale[:, None], variance / self.scale**2

    def _in_units(self, coefficients: Array, variance: Array) -> LinearRegressionParams:
        if self.center is not None and self.scale is not None:
            coefficients, variance = coefficients * self.scale[:, None], variance * self.scale**2
            if self.intercept:
                coefficients = coefficients.at[..., 0].add(self.center)
        return LinearRegressionParams(self._design().in_units(coefficients), variance)

    def _log_scale(self, variance: Array) -> Array:
        """½ log 2πσ² in the units of the response, from the variance in standardized ones."""
        half = 0.5 * jnp.log(2 * math.pi * variance)
        return half if self.scale is None else half + jnp.log(self.scale)

    def _floor(self, dtype) -> Array:
        return jnp.maximum(jnp.asarray(self.floor, dtype), 64 * jnp.finfo(dtype).eps)


def _linear_sums(rows: RegressionRows, marginals: Float[Array, "N K"]) -> LinearStats:
    weights, p = rows.weights(marginals), rows.columns.shape[-1]
    k, m, n = weights.shape
    gram = dot(weights.reshape(k * m, n), pairs(rows.columns)).reshape(k, m, -1)
    weighted = weights * rows.response.T
    cross = dot(weighted.reshape(-1, n), rows.columns).reshape(k, -1, p)
    square = jnp.sum(weighted * rows.response.T, axis=-1)
    return LinearStats(jnp.sum(weights, axis=-1), symmetric(gram, p), cross, square)


def _residual_squares(stats: LinearStats, gram: Array, coefficients: Array) -> Float[Array, "K D"]:
    """Σ r (x − u·β)² from the sums."""
    slope = 2 * stats.cross - product(gram, coefficients)
    return jnp.maximum(stats.square - jnp.sum(slope * coefficients, axis=-1), 0)
