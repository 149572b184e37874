"""What a picture is of: a fit and its data, as numpy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxem.families import Gaussian, GaussianParams, StudentT
from jaxem.latents import MarkovChain
from jaxem.model import Data, Family, Model, UnsupportedError, as_data
from jaxem.models import FactorParams, LatentModel
from jaxem.result import Result


@dataclasses.dataclass(frozen=True)
class Subject:
    """x: [N, D], NaN where a cell is missing. assigned: −1 where a row is missing whole. starts: where sequences begin,
    None where rows are independent. categories: for every column of codes their names. inputs: of regressions, [N, C].
    loadings: of a factor model. shares: of the components, [K].
    """

    result: Result
    x: np.ndarray
    columns: list[str]
    weights: np.ndarray
    categories: Sequence[Sequence[str] | None] | None = None
    responsibilities: Any = None
    assigned: Any = None
    starts: np.ndarray | None = None
    inputs: np.ndarray | None = None
    input_names: Sequence[str] = ()
    loadings: np.ndarray | None = None

    @property
    def params(self) -> Any:
        """The family's parameters."""
        return self.result.params.likelihood

    @property
    def shares(self) -> np.ndarray:
        mixing = getattr(self.result.params.latent, "weights", None)
        if mixing is not None:
            return np.asarray(mixing)
        total = self.weights @ self.responsibilities
        return total / max(total.sum(), np.finfo(float).tiny)

    @property
    def unit(self) -> str:
        if self.loadings is not None:
            return "factor"
        return "component" if self.starts is None else "state"


def subject(
    result: Result,
    data: Any,
    columns: Sequence[str] | None,
    categories: Sequence[Sequence[str] | None] | None,
    inputs: Sequence[str],
    weights: Any,
    responsibilities: Any,
    assigned: Any,
    loadings: Any,
) -> Subject:
    """Checks the shapes, and computes what is not given."""
    data = as_data(data)
    x = np.array(data.x, np.float64)
    if x.ndim != 2 or len(x) != result.num_examples:
        raise ValueError(f"x needs the {result.num_examples} rows of the fit, [N, D]; got shape {x.shape}")
    names = [f"x{i}" for i in range(x.shape[1])] if columns is None else list(columns)
    if len(names) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} columns need as many names; got {len(names)}")
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if isinstance(result.params, FactorParams):
        loadings = _standardized(result.params) if loadings is None else np.asarray(loadings)
        return Subject(result, x, names, weights, loadings=loadings)
    if responsibilities is None:
        responsibilities = jax.jit(result.model.posterior)(result.params, data)
    if assigned is None:
        assigned = jax.jit(result.model.predict)(result.params, data)
    if data.mask is not None:
        mask = np.asarray(data.mask)
        x[~(mask if mask.ndim == 2 else np.broadcast_to(mask[:, None], x.shape))] = np.nan
    starts = None
    if isinstance(inner(result.model).latent, MarkovChain):
        starts = np.arange(len(x)) == 0 if data.starts is None else np.asarray(data.starts, bool)
    covariates = None if data.inputs is None else np.asarray(data.inputs, np.float64)
    if covariates is not None and not inputs:
        inputs = [f"input {i}" for i in range(covariates.shape[-1])]
    return Subject(
        result,
        x,
        names,
        weights,
        categories,
        responsibilities=np.asarray(responsibilities),
        assigned=np.asarray(assigned),
        starts=starts,
        inputs=covariates,
        input_names=inputs,
    )


def _standardized(params: FactorParams) -> np.ndarray:
    """The loadings on columns of variance 1."""
    loadings = np.asarray(params.loadings, np.float64)
    return loadings / np.sqrt(np.sum(loadings**2, axis=1) + np.asarray(params.noise))[:, None]


def inner(model: Any) -> LatentModel:
    """The model inside any wrappers."""
    while not isinstance(model, LatentModel) and isinstance(getattr(model, "model", None), Model):
        model = model.model
    return model


def family(result: Result) -> Family:
    return inner(result.model).likelihood


def means(result: Result) -> np.ndarray | None:
    """E[x | z = k], [K, D], where the family says so."""
    if isinstance(result.params.likelihood, FactorParams):
        return np.asarray(result.params.likelihood.mean)
    try:
        mean = np.asarray(family(result).mean(result.params.likelihood, Data()))
    except UnsupportedError:
        return None
    return mean if mean.ndim == 2 else None


def covariances(result: Result) -> np.ndarray | None:
    """The covariance of x given each component, [K, D, D], where that is Gaussian; of Student t components the scatter."""
    params, known = result.params.likelihood, family(result)
    if isinstance(params, FactorParams):
        loadings, noise = np.asarray(params.loadings), np.asarray(params.noise)
        noise = np.broadcast_to(noise[:, None] if noise.ndim == 1 else noise, params.mean.shape)
        return loadings @ np.swapaxes(loadings, 1, 2) + noise[:, :, None] * np.eye(noise.shape[1])
    if not isinstance(known, (Gaussian, StudentT)):
        return None
    k, d = params.mean.shape
    packed = params.covariance if isinstance(params, GaussianParams) else params.scatter
    return np.asarray(known.covariance.dense(jax.tree.map(np.asarray, packed), k, d))
