"""What a picture is of: a fit and its data, as numpy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxem.families import Gaussian, GaussianParams, Product, StudentT, WithNoise
from jaxem.latents import MarkovChain
from jaxem.model import Data, Family, Model, UnsupportedError, as_data
from jaxem.models import FactorParams, LatentModel
from jaxem.plot import style
from jaxem.result import Result, has_noise, labels


@dataclasses.dataclass(frozen=True)
class Block:
    """Columns of x, their family and its parameters."""

    family: Family
    params: Any
    columns: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Subject:
    """x: [N, D], NaN where a cell is missing. assigned: −1 where a row is missing whole. starts: where sequences begin,
    None where rows are independent. categories: for every column of codes their names. inputs: of regressions, [N, C].
    loadings: of a factor model. block: the family and its parameters, of a product one block of its columns. shares: of
    the components, [K].
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
    block: Block | None = None

    @property
    def family(self) -> Family:
        return family(self.result) if self.block is None else self.block.family

    @property
    def params(self) -> Any:
        """The family's parameters."""
        return self.result.params.likelihood if self.block is None else self.block.params

    @property
    def noisy(self) -> bool:
        """Whether the last component is noise."""
        return has_noise(self.result.model)

    @property
    def labels(self) -> list[str]:
        """What the components are called."""
        return labels(self.result.model)

    def color(self, k: int) -> str:
        return style.NOISE if self.noisy and k == len(self.labels) - 1 else style.color(k)

    def marker(self, k: int) -> str:
        return "." if self.noisy and k == len(self.labels) - 1 else style.marker(k)

    def narrowed(self, block: Block) -> Subject:
        """Of the columns of one block alone."""
        where = list(block.columns)
        categories = None if self.categories is None else [self.categories[i] for i in where]
        names = [self.columns[i] for i in where]
        return dataclasses.replace(self, x=self.x[:, where], columns=names, categories=categories, block=block)

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


def blocks(result: Result, num_columns: int) -> list[Block]:
    """The blocks of a product, or the one block of any other family."""
    known, params = family(result), result.params.likelihood
    if not isinstance(known, Product):
        return [Block(known, params, tuple(range(num_columns)))]
    return [Block(known.families[name], params[name], where) for name, where in known.columns or ()]


def means(known: Family, params: Any) -> np.ndarray | None:
    """E[x | z = k], [K, D], where the family says so; noise has none."""
    if isinstance(params, FactorParams):
        return np.asarray(params.mean)
    if isinstance(known, WithNoise):
        return means(known.family, params)
    try:
        mean = np.asarray(known.mean(params, Data()))
    except UnsupportedError:
        return None
    return mean if mean.ndim == 2 else None


def covariances(known: Family, params: Any) -> np.ndarray | None:
    """The covariance of x given each component, [K, D, D], where that is Gaussian; of Student t components the scatter."""
    if isinstance(known, WithNoise):
        return covariances(known.family, params)
    if isinstance(params, FactorParams):
        loadings, noise = np.asarray(params.loadings), np.asarray(params.noise)
        noise = np.broadcast_to(noise[:, None] if noise.ndim == 1 else noise, params.mean.shape)
        return loadings @ np.swapaxes(loadings, 1, 2) + noise[:, :, None] * np.eye(noise.shape[1])
    if not isinstance(known, (Gaussian, StudentT)):
        return None
    k, d = params.mean.shape
    packed = params.covariance if isinstance(params, GaussianParams) else params.scatter
    return np.asarray(known.covariance.dense(jax.tree.map(np.asarray, packed), k, d))
