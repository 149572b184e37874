"""Models: a latent joined with a likelihood, and the names users type."""

from jaxem.models.factor_analysis import PPCA, FactorAnalysis, FactorParams, FactorScores
from jaxem.models.fixed_point import FixedPoint
from jaxem.models.hmm import HMM, Forecast, InputOutputHMM, forecast, pair_posterior
from jaxem.models.latent_model import LatentModel, LatentParams, LatentStats
from jaxem.models.log_joint import Expectation, LogJoint
from jaxem.models.mixture import Mixture, MixtureOfExperts
from jaxem.models.variational import Variational, VariationalParams

__all__ = [
    "HMM",
    "PPCA",
    "Expectation",
    "FactorAnalysis",
    "FactorParams",
    "FactorScores",
    "FixedPoint",
    "Forecast",
    "InputOutputHMM",
    "LatentModel",
    "LatentParams",
    "LatentStats",
    "LogJoint",
    "Mixture",
    "MixtureOfExperts",
    "Variational",
    "VariationalParams",
    "forecast",
    "pair_posterior",
]
