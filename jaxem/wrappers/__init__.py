"""Wrappers of a model: how its expectation or its maximization is computed."""

from jaxem.wrappers.chunked import Chunked
from jaxem.wrappers.ecm import ECM
from jaxem.wrappers.frozen import Frozen
from jaxem.wrappers.gradient_m import GradientM
from jaxem.wrappers.prior import WithPrior
from jaxem.wrappers.sharded import Sharded, Summed

__all__ = ["ECM", "Chunked", "Frozen", "GradientM", "Sharded", "Summed", "WithPrior"]
