"""What a picture is of: a fit and its data, as numpy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxem.families import Gaussian, GaussianParams
from jaxem.latents import MarkovChain
from jaxem.model import Data, Family, Model, UnsupportedError, as_data
from jaxem.models import LatentModel
from jaxem.result import Result


@dataclasses.dataclass(frozen=True)
class Subject:
    """x: [N, D], NaN where a cell is missing. assigned: −1 where a row is missing whole. starts: where sequences begin,
    None where rows are independent. shares: of the components in the data, [K]."""

    result: Result
    x: np.ndarray
    columns: list[str]
    weights: np.ndarray
    responsibilities: np.ndarray
    assigned: np.ndarray
    starts: np.ndarray | None

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
        return "component" if self.starts is None else "state"


def subject(
    result: Result, data: Any, columns: Sequence[str] | None, weights: Any, responsibilities: Any, assigned: Any
) -> Subject:
    """Checks the shapes, and computes what is not given."""
    data = as_data(data)
    x = np.array(data.x, np.float64)
    if x.ndim != 2 or len(x) != result.num_examples:
        raise ValueError(f"x needs the {result.num_examples} rows of the fit, [N, D]; got shape {x.shape}")
    names = [f"x{i}" for i in range(x.shape[1])] if columns is None else list(columns)
    if len(names) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} columns need as many names; got {len(names)}")
    if responsibilities is None:
        responsibilities = jax.jit(result.model.posterior)(result.params, data)
    if assigned is None:
        assigned = jax.jit(result.model.predict)(result.params, data)
    if data.mask is not None:
        mask = np.asarray(data.mask)
        x[~(mask if mask.ndim == 2 else np.broadcast_to(mask[:, None], x.shape))] = np.nan
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    starts = None
    if isinstance(inner(result.model).latent, MarkovChain):
        starts = np.arange(len(x)) == 0 if data.starts is None else np.asarray(data.starts, bool)
    return Subject(result, x, names, weights, np.asarray(responsibilities), np.asarray(assigned), starts)


def inner(model: Any) -> LatentModel:
    """The model inside any wrappers."""
    while not isinstance(model, LatentModel) and isinstance(getattr(model, "model", None), Model):
        model = model.model
    return model


def family(result: Result) -> Family:
    return inner(result.model).likelihood


def means(result: Result) -> np.ndarray | None:
    """E[x | z = k], [K, D], where the family says so."""
    try:
        mean = np.asarray(family(result).mean(result.params.likelihood, Data()))
    except UnsupportedError:
        return None
    return mean if mean.ndim == 2 else None


def covariances(result: Result) -> np.ndarray | None:
    """The covariance of x given each component, [K, D, D], of Gaussian ones."""
    params, known = result.params.likelihood, family(result)
    if not isinstance(params, GaussianParams) or not isinstance(known, Gaussian):
        return None
    k, d = params.mean.shape
    return np.asarray(known.covariance.dense(np.asarray(params.covariance), k, d))
