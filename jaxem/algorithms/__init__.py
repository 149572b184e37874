"""Algorithms: how the iterates move."""

from jaxem.algorithms.anderson import Anderson, AndersonState
from jaxem.algorithms.em import EM, EMState
from jaxem.algorithms.squarem import Squarem, SquaremState
from jaxem.algorithms.stochastic import StochasticEM
from jaxem.algorithms.updates import Incremental, Online, Update, VarianceReduced

__all__ = [
    "EM",
    "Anderson",
    "AndersonState",
    "EMState",
    "Incremental",
    "Online",
    "Squarem",
    "SquaremState",
    "StochasticEM",
    "Update",
    "VarianceReduced",
]
