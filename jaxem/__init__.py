"""jaxem: Expectation-Maximization on accelerators."""

from jaxem import datasets, latents, rotation, sequences, stopping, testing
from jaxem.algorithms import EM
from jaxem.driver import Run, race_lanes, run, run_lanes
from jaxem.families import (
    Diagonal,
    Exponential,
    ExponentialParams,
    Full,
    Gamma,
    GammaParams,
    Gaussian,
    GaussianParams,
    InverseGaussian,
    InverseGaussianParams,
    LogNormal,
    LogNormalParams,
    Poisson,
    PoissonParams,
    Spherical,
    Tied,
)
from jaxem.fit import Race, fit, fit_batch
from jaxem.inference import elbo, icl
from jaxem.initialize import KMeansPlusPlus, RandomPoints, RandomResponsibilities, Start
from jaxem.io import load, save
from jaxem.lane import Control
from jaxem.latents import CategoricalParams, Hard, MarkovChainParams, left_to_right
from jaxem.model import (
    Algorithm,
    Data,
    Diagnosis,
    EStep,
    Family,
    Imputation,
    Inference,
    Info,
    Latent,
    Model,
    UnsupportedError,
    pytree,
    static,
)
from jaxem.models import HMM, Forecast, LatentModel, LatentParams, LatentStats, Mixture, forecast, pair_posterior
from jaxem.models.factor_analysis import PPCA, FactorAnalysis, FactorParams, FactorScores
from jaxem.result import BatchResult, ConvergenceWarning, FitError, Result, Starts
from jaxem.select import Selection, select
from jaxem.slots import Index
from jaxem.status import Status
from jaxem.stopping import AbsoluteGain, Aitken, Never, ParameterChange, RelativeGain, Stopping
from jaxem.wrappers import Chunked, Frozen, WithPrior

__version__ = "0.1.0"

__all__ = [
    "EM",
    "HMM",
    "PPCA",
    "AbsoluteGain",
    "Aitken",
    "Algorithm",
    "BatchResult",
    "CategoricalParams",
    "Chunked",
    "Control",
    "ConvergenceWarning",
    "Data",
    "Diagnosis",
    "Diagonal",
    "EStep",
    "Exponential",
    "ExponentialParams",
    "FactorAnalysis",
    "FactorParams",
    "FactorScores",
    "Family",
    "FitError",
    "Forecast",
    "Frozen",
    "Full",
    "Gamma",
    "GammaParams",
    "Gaussian",
    "GaussianParams",
    "Hard",
    "Imputation",
    "Index",
    "Inference",
    "Info",
    "InverseGaussian",
    "InverseGaussianParams",
    "KMeansPlusPlus",
    "Latent",
    "LatentModel",
    "LatentParams",
    "LatentStats",
    "LogNormal",
    "LogNormalParams",
    "MarkovChainParams",
    "Mixture",
    "Model",
    "Never",
    "ParameterChange",
    "Poisson",
    "PoissonParams",
    "Race",
    "RandomPoints",
    "RandomResponsibilities",
    "RelativeGain",
    "Result",
    "Run",
    "Selection",
    "Spherical",
    "Start",
    "Starts",
    "Status",
    "Stopping",
    "Tied",
    "UnsupportedError",
    "WithPrior",
    "datasets",
    "elbo",
    "fit",
    "fit_batch",
    "forecast",
    "icl",
    "latents",
    "left_to_right",
    "load",
    "pair_posterior",
    "pytree",
    "race_lanes",
    "rotation",
    "run",
    "run_lanes",
    "save",
    "select",
    "sequences",
    "static",
    "stopping",
    "testing",
]
