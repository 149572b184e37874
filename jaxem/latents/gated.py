"""A component whose probability depends on inputs: the gate of a mixture of experts, latent class regression."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.design import Design, calibrate_design, check_inputs
from jaxem.families.base import hold
from jaxem.latents.categorical import posterior_and_evidence
from jaxem.linalg import dot
from jaxem.model import Data, Inference, Latent, pytree, static
from jaxem.newton import (
    Quadratic,
    equal_shares,
    least_log_odds,
    softmax_expansion,
    softmax_step,
    softmax_value,
    summed,
    with_reference,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@pytree
class GatedParams:
    """gate: of every component the coefficients of the intercept, then of every input, [K, P]; those of the last are 0."""

    gate: Float[Array, "K P"]


@pytree
class Gated(Latent):
    """``p(z_n = k | inputs_n) ∝ exp(γ_k · (1, inputs_n))``, independent over examples; the last component is the reference.

    The M-step takes one damped Newton step from the incoming coefficients, which never lowers the likelihood
    (`jaxem.newton`). A gate that the inputs decide with certainty has no finite optimum: it grows until nothing is gained,
    and stays finite. num_components: K, at least 1. intercept: whether a column of ones is added; it comes first. design:
    set by `calibrate`. (Jacobs et al. 1991, Neural Comp. 3; Dayton & Macready 1988, JASA 83.)
    """

    num_components: int = static()
    intercept: bool = static(default=True)
    design: Design | None = None

    reads = frozenset({"inputs"})
    freezable = frozenset({"gate"})
    independent = True
    generalized = True

    def __post_init__(self):
        if not isinstance(self.num_components, int) or self.num_components < 1:
            raise ValueError(f"num_components must be a whole number, at least 1; got {self.num_components!r}")

    @property
    def min_examples(self) -> int:  # type: ignore[override]
        return self.num_components

    def with_components(self, num_components: int) -> Gated:
        return dataclasses.replace(self, num_components=num_components)

    def calibrate(self, data: Data, weights: Array | None) -> Gated:
        if self.design is not None:
            return self
        inputs = check_inputs(data.inputs, "Gated")
        return dataclasses.replace(self, design=calibrate_design(inputs, weights, self.intercept, data.x.dtype))

    def infer(
        self, params: GatedParams, potentials: Float[Array, "N K"], data: Data, weights: Array | None
    ) -> Inference:
        """r_nk ∝ p(z_n = k | inputs) p(x_n | k), as of a `Categorical`."""
        log_prior = self.log_probabilities(params, data, potentials.dtype)
        marginals, evidence = posterior_and_evidence(potentials, log_prior, weights)
        return Inference(marginals, self.accumulate(marginals, data, params), evidence)

    def infer_tempered(
        self, params: GatedParams, potentials: Float[Array, "N K"], data: Data, weights, inverse_temperature
    ) -> Inference:
        log_prior = inverse_temperature * self.log_probabilities(params, data, potentials.dtype)
        marginals, evidence = posterior_and_evidence(inverse_temperature * potentials, log_prior, weights)
        return Inference(marginals, self.accumulate(marginals, data, params), evidence)

    def log_probabilities(self, params: GatedParams, data: Data, dtype: Any) -> Float[Array, "N K"]:
        """log p(z_n = k | inputs_n) of every example."""
        columns = self._design().columns(data.inputs, dtype)
        return jax.nn.log_softmax(self._predictor(params, columns), axis=0).T

    def accumulate(self, marginals: Float[Array, "N K"], data: Data, params: GatedParams | None = None) -> Quadratic:
        """The expansion of Σ r log p(z | inputs) about ``params``; at a start about equal shares."""
        columns = self._design().columns(data.inputs, marginals.dtype)

        def term(columns: Array, marginals: Array) -> Quadratic:
            predictor = jnp.zeros_like(marginals.T) if params is None else self._predictor(params, columns)
            return softmax_expansion(columns, predictor[None], marginals.T[None])

        return summed(term, columns, marginals)

    def maximize(self, params: GatedParams | None, stats: Quadratic, frozen: Any) -> GatedParams:
        design = self._design()
        old = None if params is None else design.standardized(params.gate)[None]
        gate = design.in_units(softmax_step(stats, old, design.num_columns, design.reach)[0])
        return GatedParams(hold(frozen.get("gate"), gate, None if params is None else params.gate))

    def q(self, params: GatedParams, stats: Quadratic) -> Float[Array, ""]:
        return jnp.sum(softmax_value(stats, self._design().standardized(params.gate)[None]))

    def mode(self, params: GatedParams, potentials: Float[Array, "N K"], data: Data) -> Int[Array, " N"]:
        return jnp.argmax(potentials + self.log_probabilities(params, data, potentials.dtype), axis=-1)

    def log_prob(self, params: GatedParams, z: Int[Array, " N"], data: Data) -> Float[Array, " N"]:
        return jnp.take_along_axis(self.log_probabilities(params, data, params.gate.dtype), z[:, None], axis=-1)[:, 0]

    def sample(self, key: jax.Array, params: GatedParams, shape: tuple[int, ...], data: Data) -> Int[Array, " N"]:
        return jax.random.categorical(key, self.log_probabilities(params, data, params.gate.dtype), shape=shape)

    def pseudo_statistics(self) -> Quadratic:
        """K imagined examples with inputs like those of the data, and equal shares of every component."""
        return equal_shares(self._design().calibrated_moment(), 1, self.num_components)

    def take_components(self, params: GatedParams, components: Any) -> GatedParams:
        chosen = params.gate[components]
        return GatedParams(chosen - chosen[-1])

    def empty(self, params: GatedParams, weight: Array) -> Bool[Array, " K"]:
        """Components that some other one outweighs by so much, over the whole range of the inputs, that none is left."""
        design = self._design()
        if design.moment is None:
            return jnp.zeros(self.num_components, bool)
        return least_log_odds(design, design.standardized(params.gate)) > jnp.log(2 * weight)

    def to_free(self, params: GatedParams) -> GatedParams:
        return GatedParams(params.gate[..., :-1, :])

    def from_free(self, free: GatedParams) -> GatedParams:
        return GatedParams(with_reference(free.gate))

    def _design(self) -> Design:
        return Design(self.intercept) if self.design is None else self.design

    def _predictor(self, params: GatedParams, columns: Float[Array, "N P"]) -> Float[Array, "K N"]:
        return dot(self._design().standardized(params.gate), columns.T)
