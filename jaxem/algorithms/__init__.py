"""Algorithms: how the iterates move."""

from jaxem.algorithms.anderson import Anderson, AndersonState
from jaxem.algorithms.annealing import Annealing, Cooling
from jaxem.algorithms.em import EM, EMState
from jaxem.algorithms.gradient import GradientEM
from jaxem.algorithms.monte_carlo import SAEM, MonteCarloEM
from jaxem.algorithms.multicycle import MulticycleECM
from jaxem.algorithms.squarem import Squarem, SquaremState
from jaxem.algorithms.stochastic import StochasticEM
from jaxem.algorithms.updates import Averaging, Incremental, Online, Update, VarianceReduced

__all__ = [
    "EM",
    "SAEM",
    "Anderson",
    "AndersonState",
    "Annealing",
    "Averaging",
    "Cooling",
    "EMState",
    "GradientEM",
    "Incremental",
    "MonteCarloEM",
    "MulticycleECM",
    "Online",
    "Squarem",
    "SquaremState",
    "StochasticEM",
    "Update",
    "VarianceReduced",
]
