"""What every wrapper does where it has nothing to say: ask the model it holds."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxem.model import Diagnosis, EStep, Model


class Wrapper(Model):
    """Forwards the whole contract to ``self.model``."""

    model: Model

    @property
    def freezable(self):  # type: ignore[override]
        return self.model.freezable

    @property
    def freezable_by_component(self):  # type: ignore[override]
        return self.model.freezable_by_component

    @property
    def reads(self):  # type: ignore[override]
        return self.model.reads

    @property
    def sequential(self):  # type: ignore[override]
        return self.model.sequential

    @property
    def keeps_types(self):  # type: ignore[override]
        return self.model.keeps_types

    @property
    def additive(self):  # type: ignore[override]
        return self.model.additive

    @property
    def generalized(self):  # type: ignore[override]
        return self.model.generalized

    @property
    def objective_name(self):  # type: ignore[override]
        return self.model.objective_name

    @property
    def monotone(self):  # type: ignore[override]
        return self.model.monotone

    @property
    def averageable(self):  # type: ignore[override]
        return self.model.averageable

    @property
    def min_examples(self) -> int:
        return self.model.min_examples

    @property
    def num_components(self) -> int:
        return self.model.num_components

    def e_step(self, params, data, weights=None) -> EStep:
        return self.model.e_step(params, data, weights)

    def m_step(self, params, stats, frozen=None) -> Any:
        return self.model.m_step(params, stats, frozen) if frozen else self.model.m_step(params, stats)

    def redraw(self, key) -> Model:
        return dataclasses.replace(self, model=self.model.redraw(key))  # type: ignore[type-var]

    def tempered(self, temperature) -> Model:
        return dataclasses.replace(self, model=self.model.tempered(temperature))  # type: ignore[type-var]

    def specialize(self, data) -> Model:
        return dataclasses.replace(self, model=self.model.specialize(data))  # type: ignore[type-var]

    def prepare(self, data) -> Any:
        return self.model.prepare(data)

    def compress(self, data, weights=None) -> Any:
        return self.model.compress(data, weights)

    def num_observations(self, data, weights=None):
        return self.model.num_observations(data, weights)

    def check_divisible(self, data) -> None:
        self.model.check_divisible(data)

    def validate(self, data) -> None:
        self.model.validate(data)

    def init(self, key, data, weights=None, strategy=None, used=None) -> Any:
        return self.model.init(key, data, weights, strategy, used)

    def q(self, params, stats):
        return self.model.q(params, stats)

    def explicit(self) -> Model:
        inner = self.model.explicit()
        return self if inner is self.model else dataclasses.replace(self, model=inner)  # type: ignore[type-var]

    def pseudo_statistics(self, data, weights=None) -> Any:
        return self.model.pseudo_statistics(data, weights)

    def log_prior(self, params):
        return self.model.log_prior(params)

    def to_free(self, params) -> Any:
        return self.model.to_free(params)

    def from_free(self, free) -> Any:
        return self.model.from_free(free)

    def held(self, params) -> Any:
        return self.model.held(params)

    def elbo(self, params, data, q, weights=None):
        return self.model.elbo(params, data, q, weights)

    def log_likelihood(self, params, data):
        return self.model.log_likelihood(params, data)

    def posterior(self, params, data):
        return self.model.posterior(params, data)

    def predict(self, params, data):
        return self.model.predict(params, data)

    def sample(self, key, params, num_examples, num_steps=None, inputs=None):
        return self.model.sample(key, params, num_examples, num_steps, inputs)

    def impute(self, params, data) -> Any:
        return self.model.impute(params, data)

    def take_components(self, params, components) -> Any:
        return self.model.take_components(params, components)

    def diagnose(self, params, weight) -> Diagnosis:
        return self.model.diagnose(params, weight)

    def num_free_parameters(self, params) -> int:
        return self.model.num_free_parameters(params)
