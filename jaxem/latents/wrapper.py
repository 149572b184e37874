"""What every wrapper of a latent does where it has nothing to say: ask the latent it holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jaxem.model import Data, Latent

if TYPE_CHECKING:
    from jaxtyping import Array


class LatentWrapper(Latent):
    """Forwards to ``self.latent`` all but the inference, which is what wrappers differ in."""

    latent: Latent

    def __post_init__(self):
        if not isinstance(self.latent, Latent):
            name = type(self).__name__
            raise ValueError(f"{name} holds a latent, such as jaxem.latents.Categorical(3); got {self.latent!r}")

    @property
    def num_components(self) -> int:  # type: ignore[override]
        return self.latent.num_components

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.reads

    @property
    def freezable(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable

    @property
    def freezable_by_component(self) -> frozenset[str]:  # type: ignore[override]
        return self.latent.freezable_by_component

    @property
    def min_examples(self) -> int:  # type: ignore[override]
        return self.latent.min_examples

    @property
    def independent(self) -> bool:  # type: ignore[override]
        return self.latent.independent

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.latent.sequential

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return self.latent.generalized

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.latent.monotone

    @property
    def sweepable(self) -> bool:  # type: ignore[override]
        return self.latent.sweepable

    def calibrate(self, data: Data, weights: Array | None) -> Latent:
        return self._around(self.latent.calibrate(data, weights))

    def with_components(self, num_components: int) -> Latent:
        return self._around(self.latent.with_components(num_components))

    def redraw(self, key: Array) -> Latent:
        return self._around(self.latent.redraw(key))

    def _around(self, latent: Latent) -> Latent:
        return dataclasses.replace(self, latent=latent)  # type: ignore[type-var]

    def accumulate(self, marginals: Array, data: Data, params: Any = None) -> Any:
        return self.latent.accumulate(marginals, data, params)

    def maximize(self, params: Any, stats: Any, frozen: Any) -> Any:
        return self.latent.maximize(params, stats, frozen)

    def q(self, params: Any, stats: Any) -> Array:
        return self.latent.q(params, stats)

    def mode(self, params: Any, potentials: Array, data: Data) -> Array:
        return self.latent.mode(params, potentials, data)

    def log_prob(self, params: Any, z: Array, data: Data) -> Array:
        return self.latent.log_prob(params, z, data)

    def sample(self, key: Array, params: Any, shape: tuple[int, ...], data: Data) -> Array:
        return self.latent.sample(key, params, shape, data)

    def pseudo_statistics(self) -> Any:
        return self.latent.pseudo_statistics()

    def take_components(self, params: Any, components: Any) -> Any:
        return self.latent.take_components(params, components)

    def empty(self, params: Any, weight: Array) -> Array:
        return self.latent.empty(params, weight)

    def to_free(self, params: Any) -> Any:
        return self.latent.to_free(params)

    def from_free(self, free: Any) -> Any:
        return self.latent.from_free(free)
