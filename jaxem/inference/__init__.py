"""What follows from a fit: standard errors, EM's rate, tests, cross-validation, criteria, the bound for any q."""

from jaxem.inference.bound import elbo, kl_gap
from jaxem.inference.criteria import icl
from jaxem.inference.cross_validation import CrossValidation, cross_validate
from jaxem.inference.likelihood_ratio import LikelihoodRatioTest, likelihood_ratio_test
from jaxem.inference.matching import match_components
from jaxem.inference.rate import ConvergenceRate, convergence_rate
from jaxem.inference.standard_errors import InferenceWarning, StandardErrors, standard_errors

__all__ = [
    "ConvergenceRate",
    "CrossValidation",
    "InferenceWarning",
    "LikelihoodRatioTest",
    "StandardErrors",
    "convergence_rate",
    "cross_validate",
    "elbo",
    "icl",
    "kl_gap",
    "likelihood_ratio_test",
    "match_components",
    "standard_errors",
]
