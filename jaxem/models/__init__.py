"""Models: a latent joined with a likelihood, and the names users type."""

from jaxem.models.factor_analysis import PPCA, FactorAnalysis, FactorParams, FactorScores
from jaxem.models.hmm import HMM, Forecast, InputOutputHMM, forecast, pair_posterior
from jaxem.models.latent_model import LatentModel, LatentParams, LatentStats
from jaxem.models.mixture import Mixture, MixtureOfExperts

__all__ = [
    "HMM",
    "PPCA",
    "FactorAnalysis",
    "FactorParams",
    "FactorScores",
    "Forecast",
    "InputOutputHMM",
    "LatentModel",
    "LatentParams",
    "LatentStats",
    "Mixture",
    "MixtureOfExperts",
    "forecast",
    "pair_posterior",
]
