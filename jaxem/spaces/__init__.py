"""What the latent variable of a log joint ranges over, and how it is summed or integrated out."""

from jaxem.spaces.base import LatentSpace
from jaxem.spaces.chain import Chain, ChainLogJoint
from jaxem.spaces.discrete import Discrete
from jaxem.spaces.gaussian import GaussianLatent, Laplace, MonteCarlo, Quadrature
from jaxem.spaces.sampled import Sampled

__all__ = [
    "Chain",
    "ChainLogJoint",
    "Discrete",
    "GaussianLatent",
    "Laplace",
    "LatentSpace",
    "MonteCarlo",
    "Quadrature",
    "Sampled",
]
