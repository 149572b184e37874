"""Algorithms: how the iterates move."""

from jaxem.algorithms.anderson import Anderson, AndersonState
from jaxem.algorithms.em import EM, EMState
from jaxem.algorithms.squarem import Squarem, SquaremState

__all__ = ["EM", "Anderson", "AndersonState", "EMState", "Squarem", "SquaremState"]
