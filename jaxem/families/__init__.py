"""Families p(x | z = k, θ)."""

from jaxem.families.base import ExponentialFamily
from jaxem.families.bernoulli import Bernoulli, BernoulliParams
from jaxem.families.beta import Beta, BetaParams
from jaxem.families.binomial import Binomial, BinomialParams
from jaxem.families.categorical import Categorical, CategoryParams
from jaxem.families.columns import Columns, IndependentColumns
from jaxem.families.covariance import Covariance, Diagonal, Full, Spherical, Tied
from jaxem.families.dirichlet import Dirichlet, DirichletParams
from jaxem.families.eigen_covariance import EigenDecomposed
from jaxem.families.exponential import Exponential, ExponentialParams
from jaxem.families.gamma import Gamma, GammaParams
from jaxem.families.gaussian import Gaussian, GaussianParams
from jaxem.families.generalized_linear import LogisticRegression, PoissonRegression, RegressionParams
from jaxem.families.geometric import Geometric, GeometricParams
from jaxem.families.inverse_gaussian import InverseGaussian, InverseGaussianParams
from jaxem.families.lognormal import LogNormal, LogNormalParams
from jaxem.families.multinomial import Multinomial, MultinomialParams
from jaxem.families.multinomial_regression import MultinomialRegression
from jaxem.families.negative_binomial import NegativeBinomial, NegativeBinomialParams
from jaxem.families.noise import WithNoise
from jaxem.families.of_model import OfModel
from jaxem.families.poisson import Poisson, PoissonParams
from jaxem.families.product import Product
from jaxem.families.regression import LinearRegression, LinearRegressionParams
from jaxem.families.student_t import StudentT, StudentTParams
from jaxem.families.von_mises_fisher import VonMisesFisher, VonMisesFisherParams
from jaxem.families.zero_inflated import ZeroInflated, ZeroInflatedParams

__all__ = [
    "Bernoulli",
    "BernoulliParams",
    "Beta",
    "BetaParams",
    "Binomial",
    "BinomialParams",
    "Categorical",
    "CategoryParams",
    "Columns",
    "Covariance",
    "Diagonal",
    "Dirichlet",
    "DirichletParams",
    "EigenDecomposed",
    "Exponential",
    "ExponentialFamily",
    "ExponentialParams",
    "Full",
    "Gamma",
    "GammaParams",
    "Gaussian",
    "GaussianParams",
    "Geometric",
    "GeometricParams",
    "IndependentColumns",
    "InverseGaussian",
    "InverseGaussianParams",
    "LinearRegression",
    "LinearRegressionParams",
    "LogNormal",
    "LogNormalParams",
    "LogisticRegression",
    "Multinomial",
    "MultinomialParams",
    "MultinomialRegression",
    "NegativeBinomial",
    "NegativeBinomialParams",
    "OfModel",
    "Poisson",
    "PoissonParams",
    "PoissonRegression",
    "Product",
    "RegressionParams",
    "Spherical",
    "StudentT",
    "StudentTParams",
    "Tied",
    "VonMisesFisher",
    "VonMisesFisherParams",
    "WithNoise",
    "ZeroInflated",
    "ZeroInflatedParams",
]
