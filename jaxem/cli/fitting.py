"""The fit, the choice among numbers of components, and what the best model says of every row."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

import jaxem
from jaxem.cli.console import CommandError, Progress, in_background
from jaxem.cli.inputs import Input
from jaxem.cli.models import Kind
from jaxem.cli.process import arithmetic
from jaxem.doors import report
from jaxem.model import Data, UnsupportedError
from jaxem.plot.subject import blocks
from jaxem.result import FitError, Result
from jaxem.select import Selection


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a discrete latent says of every row, in the order in which the rows were fitted.

    responsibilities: p(z | x), [N, K]. assigned: the most probable component, of sequences the most probable path, [N].
    """

    responsibilities: np.ndarray
    assigned: np.ndarray


@dataclasses.dataclass(frozen=True)
class Factors:
    """Rotated loadings, [D, L], in the order of the variance that they explain, and the scores of the rows, [N, L].

    standardized: the loadings on columns of variance 1. communalities: the share of each column's variance that the
    factors explain, [D]. noise: the variance that they do not, [D]. covariance: of the factors, [L, L].
    """

    scores: np.ndarray
    loadings: np.ndarray
    standardized: np.ndarray
    communalities: np.ndarray
    noise: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a fit gave.

    best: the best result. selection: the choice it came from, None for one number of components. found: what it says of
    the rows. imputed: x with its missing cells filled in, in the order of the file, None where none are missing or the
    model does not know how.
    """

    best: Result
    selection: Selection | None
    found: Assignment | Factors
    imputed: np.ndarray | None = None


def fit(args: argparse.Namespace, kind: Kind, data: Input, components: tuple[int, ...], progress: Progress) -> Fitted:
    """The fit that was asked for, or one line that says why there is none."""
    typed = cast(data.data, args.dtype)

    def job() -> Fitted:
        # Whether 64 bits are allowed is a setting of each thread.
        with arithmetic(args.dtype):
            return compute(args, kind, data, typed, components)

    fewest, most = min(components), max(components)
    what = f"{fewest} to {most} {kind.unit}s" if fewest < most else f"{most} {kind.unit}{'s' if most > 1 else ''}"
    starts = f"{args.starts} start{'s' if args.starts > 1 else ''}"
    progress.stage(f"fitting {what} from {starts} on {jax.default_backend()}")
    try:
        fitted = in_background(job, progress)
        report(fitted.best, Data(x=typed.x), None)
    except FitError as error:
        raise CommandError(str(error), status=1) from None
    except jax.errors.JaxRuntimeError as error:
        reason = (
            "out of memory: try fewer --starts, or --dtype float32" if "RESOURCE_EXHAUSTED" in str(error) else error
        )
        raise CommandError(str(reason), status=1) from None
    return fitted


def cast(data: Data, dtype: str) -> Data:
    """The data with their numbers in the type of the arithmetic."""
    numbers = {name: getattr(data, name).astype(dtype) for name in data.given() & {"x", "inputs"}}
    return dataclasses.replace(data, **numbers)


def compute(args: argparse.Namespace, kind: Kind, data: Input, typed: Data, components: tuple[int, ...]) -> Fitted:
    models = [kind.build(args, data, k) for k in components]
    key = jax.random.key(args.seed)
    common: dict[str, Any] = {"key": key, "num_starts": args.starts, "weights": data.weights}
    common |= {"tol": args.tol, "max_steps": args.max_steps, "on_failure": "ignore"}
    if args.left_to_right:
        common["start"] = jaxem.Segments(jax.numpy.asarray(_position(data)))
    if len(models) > 1:
        selection = jaxem.select(models, typed, criterion=args.criterion, **common)
        best = selection.best
    else:
        selection, best = None, jaxem.fit(models[0], typed, **common)
    found = _factors(args, best, typed) if isinstance(best.params, jaxem.FactorParams) else _assignment(best, typed)
    return Fitted(best, selection, found, _impute(best, data, typed, found))


def _position(data: Input) -> np.ndarray:
    """Of every row in its sequence, from 0 at the first row to below 1."""
    begins = np.flatnonzero(data.data.starts)
    lengths = np.diff(np.append(begins, data.num_rows))
    return np.concatenate([np.arange(length) / length for length in lengths])


def _assignment(best: Result, data: Data) -> Assignment:
    responsibilities, assigned = jax.device_get(_posterior_and_mode(best.model, best.params, data))
    return Assignment(np.asarray(responsibilities), np.asarray(assigned))


@jax.jit
def _posterior_and_mode(model: jaxem.Model, params: Any, data: Data) -> tuple[jax.Array, jax.Array]:
    return model.posterior(params, data), model.predict(params, data)


def _factors(args: argparse.Namespace, best: Result, data: Data) -> Factors:
    """Turned as asked for, the factor that explains most first, each with a positive sum of its loadings."""
    params = best.params
    raw, noise = np.asarray(params.loadings, np.float64), np.asarray(params.noise, np.float64)
    noise = np.broadcast_to(noise, raw.shape[:1])
    scale = np.sqrt(np.sum(raw**2, axis=1) + noise)
    covariance = np.eye(raw.shape[1])
    rotation = args.rotation or ("none" if isinstance(best.model, jaxem.PPCA) else "varimax")
    if rotation == "none":
        # The position in which Λᵀ Ψ⁻¹ Λ is diagonal; of PPCA the principal axes.
        turn = np.linalg.svd(raw / np.sqrt(noise)[:, None], full_matrices=False)[2].T
    else:
        rotate = jaxem.rotation.promax if rotation == "promax" else jaxem.rotation.varimax
        rotated = jax.device_get(rotate(params.loadings))
        turn, covariance = rotated.rotation, rotated.factor_covariance
    turned = raw @ turn
    # The largest first, and positive.
    order = np.argsort(-np.sum((turned / scale[:, None]) ** 2, axis=0), kind="stable")
    sign = np.where(np.sum(turned / scale[:, None], axis=0) < 0, -1.0, 1.0)
    turned, turn = (turned * sign)[:, order], (turn * sign)[:, order]
    covariance = (covariance * sign * sign[:, None])[order][:, order]
    model: Any = best.model
    scores = np.asarray(jax.jit(lambda params, data: model.factor_scores(params, data).mean)(params, data))
    return Factors(
        scores=np.linalg.solve(turn, scores.T).T,
        loadings=turned,
        standardized=turned / scale[:, None],
        communalities=np.asarray(jaxem.rotation.communalities(params)),
        noise=noise,
        covariance=covariance,
    )


def _impute(best: Result, data: Input, typed: Data, found: Assignment | Factors) -> np.ndarray | None:
    """Missing cells hold what is expected of them given those that are there; of categories the most probable one."""
    if typed.mask is None:
        return None
    try:
        expected = np.array(jax.jit(lambda params, x: best.model.impute(params, x).mean)(best.params, typed))
    except UnsupportedError:
        return None
    if isinstance(found, Assignment):
        for block in blocks(best, len(data.columns)):
            if isinstance(block.params, jaxem.CategoryParams):
                prob = np.einsum("nk,kdc->ndc", found.responsibilities, block.params.prob)
                expected[:, list(block.columns)] = np.argmax(prob, axis=-1)
    return np.where(np.isnan(data.table.x), data.in_file_order(expected), data.table.x)
