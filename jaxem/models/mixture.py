"""Finite mixtures: an independent latent, categorical or gated by inputs, with any family."""

from __future__ import annotations

from jaxem.families.of_model import family_of
from jaxem.latents import Categorical, Gated
from jaxem.model import Family, Model
from jaxem.models.latent_model import LatentModel


def Mixture(family: Family | Model, num_components: int) -> LatentModel:
    """A finite mixture, ``p(x_n) = Σ_k π_k p(x_n | k)``, of ``num_components`` members of a family.

    ``jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), 3)``; its parameters are ``params.latent.weights`` and
    ``params.likelihood`` (for a Gaussian: ``mean`` and ``covariance``). A model in place of the family gives a mixture of
    models, ``jaxem.Mixture(jaxem.FactorAnalysis(2), 3)``: see `jaxem.families.OfModel`. Raises ValueError for a
    number of components below 1 or a family that is not one (McLachlan & Peel 2000, section 2.8).
    """
    return LatentModel(Categorical(num_components), family_of(family))


def MixtureOfExperts(family: Family | Model, num_components: int, *, intercept: bool = True) -> LatentModel:
    """A mixture whose weights depend on inputs, ``p(x_n) = Σ_k p(k | inputs_n) p(x_n | k)``, a softmax of linear functions.

    With a family that reads the inputs too (``jaxem.LinearRegression()``) a mixture of experts; with one that does not,
    latent class regression, or a mixture with concomitant variables. Data are ``jaxem.Data(x=..., inputs=...)``; parameters
    ``params.latent.gate``, [K, P], the last component's 0, and ``params.likelihood``. intercept: whether the gate adds a
    column of ones. Raises ValueError as `Mixture` does (Jordan & Jacobs 1994; Dayton & Macready 1988).
    """
    return LatentModel(Gated(num_components, intercept), family_of(family))
