"""Finite mixtures: an independent latent, categorical or gated by inputs, with any family."""

from __future__ import annotations

from jaxem.latents import Categorical, Gated
from jaxem.model import Family
from jaxem.models.latent_model import LatentModel


def Mixture(family: Family, num_components: int) -> LatentModel:
    """A finite mixture, ``p(x_n) = Σ_k π_k p(x_n | k)``, of ``num_components`` members of a family.

    ``jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), 3)``; its parameters are ``params.latent.weights`` and
    ``params.likelihood`` (for a Gaussian: ``mean`` and ``covariance``). Raises ValueError for a number of components
    below 1 or a family that is not one (McLachlan & Peel 2000, section 2.8).
    """
    return LatentModel(Categorical(num_components), family)


def MixtureOfExperts(family: Family, num_components: int, *, intercept: bool = True) -> LatentModel:
    """A mixture whose weights depend on inputs, ``p(x_n) = Σ_k p(k | inputs_n) p(x_n | k)``, a softmax of linear functions.

    With a family that reads the inputs too (``jaxem.LinearRegression()``) a mixture of experts; with one that does not,
    latent class regression, or a mixture with concomitant variables. Data are ``jaxem.Data(x=..., inputs=...)``; parameters
    ``params.latent.gate``, [K, P], the last component's 0, and ``params.likelihood``. intercept: whether the gate adds a
    column of ones. Raises ValueError as `Mixture` does (Jordan & Jacobs 1994; Dayton & Macready 1988).
    """
    return LatentModel(Gated(num_components, intercept), family)
