"""Algorithms: how the iterates move."""

from jaxem.algorithms.em import EM, EMState

__all__ = ["EM", "EMState"]
