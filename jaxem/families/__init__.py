"""Families p(x | z = k, θ)."""

from jaxem.families.base import ExponentialFamily
from jaxem.families.covariance import Covariance, Diagonal, Full, Spherical, Tied
from jaxem.families.gaussian import Gaussian, GaussianParams
from jaxem.families.poisson import Poisson, PoissonParams

__all__ = [
    "Covariance",
    "Diagonal",
    "ExponentialFamily",
    "Full",
    "Gaussian",
    "GaussianParams",
    "Poisson",
    "PoissonParams",
    "Spherical",
    "Tied",
]
