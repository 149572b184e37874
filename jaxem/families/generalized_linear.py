"""Generalized linear regressions: 0/1 responses and counts, given inputs, by a damped Newton step each EM step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from jaxem.design import Design, calibrate_design, check_inputs
from jaxem.families.base import hold, is_count, keep, observations, occupied, refuse_outside, weighted_mean
from jaxem.families.poisson import saddle_point
from jaxem.families.regression import RegressionRows, regression_rows
from jaxem.linalg import dot
from jaxem.model import Data, Family, pytree, static, unsupported
from jaxem.newton import Quadratic, expansion, far, step, summed

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class RegressionParams:
    """coefficients: of the intercept, then of every input, [K, D, P] (of a multinomial regression [K, M, P])."""

    coefficients: Float[Array, "K D P"]


class GeneralizedLinear(Family):
    """Independent responses whose log-probability is concave in ``η = β_kd · (1, inputs)``. Owns the Newton step.

    The M-step takes one damped Newton step from the incoming coefficients, which never lowers the likelihood
    (`jaxem.newton`): EM is a generalized EM, with the optima of EM. A concrete family is the derivatives of its
    log-probability in η, and working values for a start.
    """

    intercept: bool
    design: Design | None

    generalized = True
    reads = frozenset({"x", "mask", "inputs"})
    freezable = frozenset({"coefficients"})
    freezable_by_component = freezable
    #: What the responses are, for the error that names one that is not.
    domain: ClassVar[str] = "responses are numbers"

    def log_density(self, predictor: Array, response: Array) -> Array:
        """log p(x | η)."""
        raise unsupported(self, "log_density", "the E-step")

    def derivatives(self, predictor: Array, response: Array) -> tuple[Array, Array]:
        """∂ log p/∂η and −∂² log p/∂η², of which the second's logarithm changes no faster than η."""
        raise unsupported(self, "derivatives", "the M-step")

    def working(self, response: Array) -> Array:
        """η of a row from its response alone: where the first expansion is taken."""
        raise unsupported(self, "working", "a start")

    def typical(self) -> Array | float:
        """The curvature of one typical row, [D] or a number."""
        raise unsupported(self, "typical", "the M-step")

    def origin(self) -> Array | float:
        """η of a typical row, [D] or a number."""
        raise unsupported(self, "origin", "a diagnosis")

    def supported(self, response: Array) -> Array:
        """Which responses can be at all; the others have log p = −∞."""
        raise unsupported(self, "supported", "the E-step")

    def rows(self, data: Data) -> RegressionRows:
        """The rows of the regression."""
        raise unsupported(self, "rows", "the E-step")

    @property
    def calibrated(self) -> bool:
        return self.design is not None

    def augmented(self, statistics: RegressionRows) -> bool:
        return True

    def validate(self, data: Data) -> None:
        refuse_outside(self.supported, data, self.domain)

    def statistics(self, data: Data) -> RegressionRows:
        return self.rows(data)

    def log_prob(self, params: RegressionParams, statistics: RegressionRows) -> Float[Array, "N K"]:
        predictor = self._predictor(params, statistics)
        if statistics.offset is not None:
            predictor = predictor + statistics.offset.T
        response = statistics.response.T
        terms = self.log_density(predictor, response)
        # What is no number must be seen, not called impossible.
        outside = jnp.where(jnp.isfinite(response), -jnp.inf, jnp.nan)
        terms = jnp.where(self.supported(response), terms, outside)
        if statistics.observed is not None:
            terms = jnp.where(statistics.observed.T > 0, terms, 0)
        return jnp.sum(terms, axis=1).T

    def accumulate(
        self, params: RegressionParams | None, statistics: RegressionRows, marginals: Float[Array, "N K"]
    ) -> Quadratic:
        def term(rows: RegressionRows, marginals: Array) -> Quadratic:
            response = rows.response.T
            offset = 0 if rows.offset is None else rows.offset.T
            predictor = (self.working(response) - offset)[None] if params is None else self._predictor(params, rows)
            whole = predictor + offset
            terms = self.log_density(whole, response), *self.derivatives(whole, response)
            return expansion(rows.columns, predictor, terms, rows.weights(marginals))

        return summed(term, statistics, marginals)

    def maximize(self, params: RegressionParams | None, stats: Quadratic, frozen: Any) -> RegressionParams:
        design = self._design()
        old = None if params is None else design.standardized(params.coefficients)
        new = design.in_units(step(stats, old, self.typical(), design.reach))
        if params is None:
            return RegressionParams(new)
        new = keep(occupied(stats.count), new, params.coefficients)
        return RegressionParams(hold(frozen.get("coefficients"), new, params.coefficients))

    def q(self, params: RegressionParams, stats: Quadratic) -> Float[Array, ""]:
        return jnp.sum(stats.value(self._design().standardized(params.coefficients)))

    def pseudo_statistics(self, overall: Quadratic) -> Quadratic:
        return overall

    def take_components(self, params: RegressionParams, components: Any) -> RegressionParams:
        return RegressionParams(params.coefficients[components])

    def degenerate(self, params: RegressionParams) -> Bool[Array, " K"]:
        design = self._design()
        coefficients = design.standardized(params.coefficients)
        if design.intercept:
            coefficients = coefficients.at[..., 0].add(-self.origin())
        return jnp.any(far(design.size(coefficients)), axis=-1)

    def to_free(self, params: RegressionParams) -> RegressionParams:
        return params

    def from_free(self, free: RegressionParams) -> RegressionParams:
        return free

    def _design(self) -> Design:
        return Design(self.intercept) if self.design is None else self.design

    def _predictor(self, params: RegressionParams, rows: RegressionRows) -> Float[Array, "K D N"]:
        """u·β, without the offset."""
        k, d, p = params.coefficients.shape
        coefficients = self._design().standardized(params.coefficients)
        return dot(coefficients.reshape(k * d, p), rows.columns.T).reshape(k, d, -1)


def raw_predictor(coefficients: Array, inputs: Array, intercept: bool) -> Float[Array, "N K D"]:
    """The linear predictor of every component, from inputs and coefficients in their units."""
    columns = Design(intercept).columns(check_inputs(inputs, "a regression"), coefficients.dtype)
    return jnp.einsum("np,kdp->nkd", columns, coefficients, precision="highest")


@pytree
class LogisticRegression(GeneralizedLinear):
    """Logistic regressions of 0/1 responses, ``log p(x_d = 1 | k)/p(x_d = 0 | k) = β_kd · (1, inputs)``.

    Components whose responses are separated by the inputs have no finite optimum: their coefficients grow until nothing is
    gained, stay finite, and the component is reported as degenerate. intercept: whether a column of ones is added; it
    comes first. design: set by `calibrate`. (Follmann & Lambert 1989, JASA 84; Jordan & Jacobs 1994, Neural Comp. 6.)
    """

    intercept: bool = static(default=True)
    design: Design | None = None

    def calibrate(self, data: Data, weights: Array | None) -> LogisticRegression:
        inputs = check_inputs(data.inputs, "LogisticRegression")
        return LogisticRegression(
            self.intercept, calibrate_design(inputs, weights, self.intercept, observations(data).dtype)
        )

    domain = "logistic responses are 0 or 1"

    def supported(self, response: Array) -> Array:
        return (response == 0) | (response == 1)

    def features(self, data: Data) -> Float[Array, "N F"]:
        """Responses, at twice their size, and standardized inputs."""
        rows = self.statistics(data)
        return jnp.concatenate([2 * rows.response, rows.columns], axis=-1)

    def rows(self, data: Data) -> RegressionRows:
        return regression_rows(data, self._design(), "LogisticRegression")

    def log_density(self, predictor: Array, response: Array) -> Array:
        return jax.nn.log_sigmoid(jnp.where(response > 0, predictor, -predictor))

    def derivatives(self, predictor: Array, response: Array) -> tuple[Array, Array]:
        # σ(−η) for x = 1, not 1 − σ(η), which is 0 long before it should be.
        sign = jnp.where(response > 0, 1.0, -1.0).astype(predictor.dtype)
        return sign * jax.nn.sigmoid(-sign * predictor), jax.nn.sigmoid(predictor) * jax.nn.sigmoid(-predictor)

    def working(self, response: Array) -> Array:
        """The logit of (x + ½)/2."""
        return jnp.where(response > 0, jnp.log(3.0), -jnp.log(3.0)).astype(response.dtype)

    def typical(self) -> float:
        return 0.25

    def origin(self) -> float:
        return 0.0

    def mean(self, params: RegressionParams, data: Data) -> Float[Array, "N K D"]:
        return jax.nn.sigmoid(raw_predictor(params.coefficients, data.inputs, self.intercept))

    def sample(self, key: jax.Array, params: RegressionParams, z: Array, data: Data) -> Array:
        mean = jnp.take_along_axis(self.mean(params, data), z[:, None, None], axis=1)[:, 0]
        return jax.random.bernoulli(key, mean).astype(mean.dtype)


@pytree
class PoissonRegression(GeneralizedLinear):
    """Poisson regressions of counts with the log link, ``log E[x_d | k] = β_kd · (1, inputs) (+ offset)``.

    A component of zeros alone has no finite optimum: its coefficients fall until nothing is gained, stay finite, and it is
    reported as degenerate. intercept: whether a column of ones is added; it comes first. offset: the last column of the
    inputs is added as it is (the log of an exposure). design, rate: set by `calibrate`. (Wang et al. 1996, Biometrics 52.)
    """

    intercept: bool = static(default=True)
    offset: bool = static(default=False)
    design: Design | None = None
    rate: Float[Array, " D"] | None = None

    def calibrate(self, data: Data, weights: Array | None) -> PoissonRegression:
        x = observations(data)
        inputs = check_inputs(data.inputs, "PoissonRegression")
        covariates, offset = (inputs[:, :-1], inputs[:, -1:]) if self.offset else (inputs, None)
        design = calibrate_design(covariates, weights, self.intercept, x.dtype)
        rate = weighted_mean(x, weights, data.mask)
        if offset is not None:
            exposure = jnp.broadcast_to(jnp.exp(offset.astype(x.dtype)), x.shape)
            rate = rate / weighted_mean(exposure, weights, data.mask)
        return PoissonRegression(self.intercept, self.offset, design, jnp.where(rate > 0, rate, 1))

    domain = "Poisson counts are 0, 1, 2, …"

    def supported(self, response: Array) -> Array:
        return is_count(response)

    def features(self, data: Data) -> Float[Array, "N F"]:
        """Anscombe's square roots, whose variance does not depend on the rate, and standardized inputs."""
        rows = self.statistics(data)
        return jnp.concatenate([2 * jnp.sqrt(jnp.maximum(rows.response, 0) + 0.375), rows.columns], axis=-1)

    def rows(self, data: Data) -> RegressionRows:
        return regression_rows(data, self._design(), "PoissonRegression", self.offset)

    def log_density(self, predictor: Array, response: Array) -> Array:
        predictor = _below_overflow(predictor)
        rate = jnp.exp(predictor)
        # At large counts x η, λ and log x! are large numbers that cancel.
        large = response > 16
        safe = jnp.where(large, response, 16)
        near = saddle_point(safe, _excess_of_exp(predictor - jnp.log(safe)))
        modest = jnp.where(large, 0, response)
        return jnp.where(large, near, modest * predictor - rate - gammaln(modest + 1))

    def derivatives(self, predictor: Array, response: Array) -> tuple[Array, Array]:
        rate = jnp.exp(_below_overflow(predictor))
        return response - rate, rate

    def working(self, response: Array) -> Array:
        return jnp.log(jnp.maximum(response, 0) + 0.5)

    def typical(self) -> Array | float:
        return 1.0 if self.rate is None else self.rate

    def origin(self) -> Array | float:
        return 0.0 if self.rate is None else jnp.log(self.rate)

    def mean(self, params: RegressionParams, data: Data) -> Float[Array, "N K D"]:
        inputs = data.inputs[:, :-1] if self.offset else data.inputs
        predictor = raw_predictor(params.coefficients, inputs, self.intercept)
        return jnp.exp(predictor + data.inputs[:, None, -1:] if self.offset else predictor)

    def sample(self, key: jax.Array, params: RegressionParams, z: Array, data: Data) -> Array:
        mean = jnp.take_along_axis(self.mean(params, data), z[:, None, None], axis=1)[:, 0]
        return jax.random.poisson(key, mean).astype(mean.dtype)


def _below_overflow(predictor: Array) -> Array:
    """η where exp is finite, and its square too: beyond, counts are impossible anyway."""
    return jnp.minimum(predictor, 0.49 * jnp.log(jnp.finfo(predictor.dtype).max))


def _excess_of_exp(d: Array) -> Array:
    """e^d − 1 − d, by its series where the difference cancels."""
    near = jnp.abs(d) < jnp.finfo(d.dtype).eps ** (1 / 6)
    small = jnp.where(near, d, 0)
    series = small**2 * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small * (1 / 720)))))
    return jnp.where(near, series, jnp.expm1(d) - d)
