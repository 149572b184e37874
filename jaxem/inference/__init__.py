"""What follows from a fit: standard errors, EM's rate, criteria, the bound for any q."""

from jaxem.inference.bound import elbo, kl_gap
from jaxem.inference.criteria import icl
from jaxem.inference.rate import ConvergenceRate, convergence_rate
from jaxem.inference.standard_errors import InferenceWarning, StandardErrors, standard_errors

__all__ = [
    "ConvergenceRate",
    "InferenceWarning",
    "StandardErrors",
    "convergence_rate",
    "elbo",
    "icl",
    "kl_gap",
    "standard_errors",
]
