"""Finite mixtures: an independent categorical latent with any family."""

from __future__ import annotations

from jaxem.latents import Categorical
from jaxem.model import Family
from jaxem.models.latent_model import LatentModel


def Mixture(family: Family, num_components: int) -> LatentModel:
    """A finite mixture, ``p(x_n) = Σ_k π_k p(x_n | k)``, of ``num_components`` members of a family.

    ``jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), 3)``; its parameters are ``params.latent.weights`` and
    ``params.likelihood`` (for a Gaussian: ``mean`` and ``covariance``). Raises ValueError for a number of components
    below 1 or a family that is not one (McLachlan & Peel 2000, section 2.8).
    """
    return LatentModel(Categorical(num_components), family)
