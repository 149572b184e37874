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
from jaxem.fit import report
from jaxem.model import Data, UnsupportedError
from jaxem.result import FitError, Result
from jaxem.select import Selection


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a fit gave; what it says of the rows is in the order in which they were fitted.

    best: the best result. selection: the choice it came from, None for one number of components. responsibilities:
    p(z | x), [N, K]. assigned: the most probable component of every row, of sequences the most probable path, [N].
    imputed: x with its missing cells filled in, in the order of the file, None where none are missing or the model does
    not know how.
    """

    best: Result
    selection: Selection | None
    responsibilities: np.ndarray
    assigned: np.ndarray
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
    progress.stage(f"fitting {what} from {args.starts} starts on {jax.default_backend()}")
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
    if len(models) > 1:
        selection = jaxem.select(models, typed, criterion=args.criterion, **common)
        best = selection.best
    else:
        selection, best = None, jaxem.fit(models[0], typed, **common)
    responsibilities, assigned = jax.device_get(_say_of_rows(best.model, best.params, typed))
    return Fitted(
        best,
        selection,
        np.asarray(responsibilities),
        np.asarray(assigned),
        _impute(best, data, typed),
    )


@jax.jit
def _say_of_rows(model: jaxem.Model, params: Any, data: Data) -> tuple[jax.Array, jax.Array]:
    return model.posterior(params, data), model.predict(params, data)


def _impute(best: Result, data: Input, typed: Data) -> np.ndarray | None:
    if typed.mask is None:
        return None
    try:
        mean = jax.jit(lambda params, x: best.model.impute(params, x).mean)(best.params, typed)
    except UnsupportedError:
        return None
    return np.where(np.isnan(data.table.x), data.in_file_order(np.asarray(mean)), data.table.x)
