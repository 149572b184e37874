"""Multinomial (softmax) regression of one categorical response, by a damped Newton step each EM step."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.design import Design, calibrate_design, check_inputs
from jaxem.families.base import hold, is_count, keep, observations, occupied, refuse_outside
from jaxem.families.generalized_linear import RegressionParams, raw_predictor
from jaxem.families.regression import RegressionRows, regression_rows
from jaxem.linalg import dot
from jaxem.model import Data, Family, pytree, static
from jaxem.newton import Quadratic, far, softmax_expansion, softmax_step, softmax_value, summed, with_reference

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@pytree
class MultinomialRegression(Family):
    """Multinomial regressions of a code 0, …, M − 1: ``p(x = m | k) ∝ exp(β_km · (1, inputs))``, β of the last code 0.

    The M-step takes one damped Newton step from the incoming coefficients, which never lowers the likelihood
    (`jaxem.newton`). A code that a component does not have, or separation by the inputs, has no finite optimum: the
    coefficients grow until nothing is gained, stay finite, and the component is reported as degenerate.
    num_categories: M, at least 2. intercept: whether a column of ones is added; it comes first. design: set by
    `calibrate`. Raises ValueError for a number of categories below 2 (McLachlan & Peel 2000, section 5.6).
    """

    num_categories: int = static()
    intercept: bool = static(default=True)
    design: Design | None = None

    generalized = True
    reads = frozenset({"x", "mask", "inputs"})
    freezable = frozenset({"coefficients"})
    freezable_by_component = freezable

    def __post_init__(self):
        if not isinstance(self.num_categories, int) or self.num_categories < 2:
            raise ValueError(f"num_categories must be a whole number, at least 2; got {self.num_categories!r}")

    @property
    def calibrated(self) -> bool:
        return self.design is not None

    def augmented(self, statistics: RegressionRows) -> bool:
        return True

    def calibrate(self, data: Data, weights: Array | None) -> MultinomialRegression:
        inputs = check_inputs(data.inputs, "MultinomialRegression")
        design = calibrate_design(inputs, weights, self.intercept, observations(data).dtype)
        return dataclasses.replace(self, design=design)

    def validate(self, data: Data) -> None:
        last = self.num_categories - 1
        refuse_outside(lambda x: is_count(x) & (x <= last), data, f"codes are 0, …, {last}")

    def features(self, data: Data) -> Float[Array, "N F"]:
        """Codes as indicators, at twice their size, and standardized inputs."""
        rows = self.statistics(data)
        return jnp.concatenate([2 * rows.response, rows.columns], axis=-1)

    def statistics(self, data: Data) -> RegressionRows:
        x = observations(data)
        if x.shape[-1] != 1:
            raise ValueError(f"MultinomialRegression takes one response, x of shape [N, 1]; got {x.shape}")
        rows = regression_rows(data, self._design(), "MultinomialRegression")
        return dataclasses.replace(rows, response=(x == jnp.arange(self.num_categories)).astype(x.dtype))

    def log_prob(self, params: RegressionParams, statistics: RegressionRows) -> Float[Array, "N K"]:
        log_p = jax.nn.log_softmax(self._predictor(params, statistics), axis=1)
        # A code that is none is impossible, not certain.
        known = jnp.sum(statistics.response, axis=-1) > 0
        terms = jnp.where(known, jnp.sum(log_p * statistics.response.T, axis=1), -jnp.inf)
        return (terms if statistics.observed is None else jnp.where(statistics.observed[:, 0] > 0, terms, 0)).T

    def accumulate(
        self, params: RegressionParams | None, statistics: RegressionRows, marginals: Float[Array, "N K"]
    ) -> Quadratic:
        def term(rows: RegressionRows, marginals: Array) -> Quadratic:
            # At a start about the shares of (indicator + 1/M)/2, of each row by itself.
            start = jnp.log(rows.response.T + 1 / self.num_categories)[None]
            predictor = start if params is None else self._predictor(params, rows)
            return softmax_expansion(rows.columns, predictor, rows.weights(marginals) * rows.response.T)

        return summed(term, statistics, marginals)

    def maximize(self, params: RegressionParams | None, stats: Quadratic, frozen: Any) -> RegressionParams:
        design = self._design()
        num_columns = stats.linear.shape[-1] // (self.num_categories - 1)
        old = None if params is None else design.standardized(params.coefficients)
        new = design.in_units(softmax_step(stats, old, num_columns, design.reach))
        if params is None:
            return RegressionParams(new)
        new = keep(occupied(stats.count), new, params.coefficients)
        return RegressionParams(hold(frozen.get("coefficients"), new, params.coefficients))

    def q(self, params: RegressionParams, stats: Quadratic) -> Float[Array, ""]:
        return jnp.sum(softmax_value(stats, self._design().standardized(params.coefficients)))

    def pseudo_statistics(self, overall: Quadratic) -> Quadratic:
        return overall

    def mean(self, params: RegressionParams, data: Data) -> Float[Array, "N K M"]:
        """The probabilities of the codes."""
        return jax.nn.softmax(raw_predictor(params.coefficients, data.inputs, self.intercept), axis=-1)

    def sample(self, key: jax.Array, params: RegressionParams, z: Array, data: Data) -> Array:
        logits = raw_predictor(params.coefficients, data.inputs, self.intercept)
        chosen = jnp.take_along_axis(logits, z[:, None, None], axis=1)[:, 0]
        return jax.random.categorical(key, chosen)[:, None].astype(logits.dtype)

    def take_components(self, params: RegressionParams, components: Any) -> RegressionParams:
        return RegressionParams(params.coefficients[components])

    def degenerate(self, params: RegressionParams) -> Bool[Array, " K"]:
        design = self._design()
        return jnp.any(far(design.size(design.standardized(params.coefficients))), axis=-1)

    def to_free(self, params: RegressionParams) -> RegressionParams:
        return RegressionParams(params.coefficients[..., :-1, :])

    def from_free(self, free: RegressionParams) -> RegressionParams:
        return RegressionParams(with_reference(free.coefficients))

    def _design(self) -> Design:
        return Design(self.intercept) if self.design is None else self.design

    def _predictor(self, params: RegressionParams, rows: RegressionRows) -> Float[Array, "K M N"]:
        k, m, p = params.coefficients.shape
        coefficients = self._design().standardized(params.coefficients)
        return dot(coefficients.reshape(k * m, p), rows.columns.T).reshape(k, m, -1)
