"""Models: a latent joined with a likelihood, and the names users type."""

from jaxem.models.latent_model import LatentModel, LatentParams, LatentStats
from jaxem.models.mixture import Mixture

__all__ = ["LatentModel", "LatentParams", "LatentStats", "Mixture"]
