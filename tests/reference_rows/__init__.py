"""The rows of the reference test, one module for each kind of model; every module lists its own as ROWS."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from data.cases import case, fit_of


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A fit of a case file, with the model and the data it belongs to.

    start: parameters from which EM must reach the published optimum; None: ``num_starts`` random starts must find it.
    loglik: the published log-likelihood, by default the file's. bound: it is only a lower bound (the peer is known to
    stop short, or the likelihood has several maxima). compare: name → (ours, published, absolute tolerance or None
    for the file's relative one). options: of `jaxem.fit`.
    """

    file: str
    fit: str
    model: Any
    data: Any
    weights: Any = None
    start: Any = None
    num_starts: int = 16
    loglik: float | None = None
    bound: bool = False
    compare: Callable[[Any], dict[str, tuple[Any, Any, float | None]]] | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file}:{self.fit}"

    @property
    def expected(self) -> dict:
        return fit_of(self.file, self.fit)

    @property
    def tolerance(self) -> dict:
        return case(self.file)["tolerance"]


def every_row() -> list[Row]:
    """The rows of all modules."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return [row for name in modules for row in importlib.import_module(f"{__name__}.{name}").ROWS]


def left_out() -> dict[tuple[str, str], str]:
    """Fits of the files that no row tests, each with the reason; modules list theirs as LATER."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    found = [getattr(importlib.import_module(f"{__name__}.{name}"), "LATER", {}) for name in modules]
    return {key: reason for later in found for key, reason in later.items()}
