"""Latent variables p(z | θ) with exact inference."""

from jaxem.latents.categorical import Categorical, CategoricalParams

__all__ = ["Categorical", "CategoricalParams"]
