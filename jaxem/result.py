"""What a fit returns: the best start, every start, and how each ended."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxem.families import Product, WithNoise
from jaxem.model import Family, Model, pytree, static
from jaxem.status import Status

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ConvergenceWarning(UserWarning):
    """A fit ended otherwise than by its stopping rule; the parameters are usable, but look at the status."""


class FitError(RuntimeError):
    """No start of a fit is usable; the message lists how each ended. result: what there is all the same, or None."""

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result


@pytree
class Starts:
    """How every start ended; arrays have the starts as their leading axis.

    trace: objectives of the first steps, padded with NaN.
    """

    params: Any
    objective: Float[np.ndarray, " S"]
    log_likelihood: Float[np.ndarray, " S"]
    steps: Int[np.ndarray, " S"]
    status: Int[np.ndarray, " S"]
    trace: Float[np.ndarray, "S T"]

    def __len__(self) -> int:
        return len(self.status)


@pytree
class Result:
    """The best of the starts of a fit.

    model: the model as it was fitted (calibrated to the data). objective: log-likelihood plus log-prior, of ``params``,
    in natural logarithms, summed over examples with their weights. num_examples: rows, or padded sequences; of sequences
    also num_sequences and num_steps. degenerate, empty: numbers of the components whose spread has collapsed onto the
    floor, and of those that hold less than half an example.
    """

    model: Model
    params: Any
    starts: Starts
    best: int = static()
    num_examples: int = static()
    weight: float = static()
    num_free_parameters: int | None = static()
    degenerate: tuple[int, ...] = static(default=())
    empty: tuple[int, ...] = static(default=())
    num_sequences: int | None = static(default=None)
    num_steps: int | None = static(default=None)

    @property
    def status(self) -> Status:
        return Status(int(self.starts.status[self.best]))

    @property
    def converged(self) -> bool:
        """True when the stopping rule was met, or nothing was left to gain in this precision."""
        return self.status.success

    @property
    def objective(self) -> float:
        return float(self.starts.objective[self.best])

    @property
    def log_likelihood(self) -> float:
        return float(self.starts.log_likelihood[self.best])

    @property
    def steps(self) -> int:
        return int(self.starts.steps[self.best])

    @property
    def trace(self) -> Float[np.ndarray, " T"]:
        """The objective at the start and after each of the recorded steps."""
        trace = self.starts.trace[self.best]
        return trace[~np.isnan(trace)]

    @property
    def aic(self) -> float:
        """Akaike's criterion, −2 log L + 2 p; smaller is better."""
        return -2 * self.log_likelihood + 2 * self._parameters()

    @property
    def bic(self) -> float:
        """Schwarz's criterion, −2 log L + p log n, with n the total weight; smaller is better."""
        return -2 * self.log_likelihood + self._parameters() * math.log(self.weight)

    def _parameters(self) -> int:
        if self.num_free_parameters is None:
            raise TypeError(f"{type(self.model).__name__} does not define to_free, which counting parameters needs")
        return self.num_free_parameters

    def share_at_best(self, epsilon: float = 1e-5) -> float:
        """The share of the starts whose objective is within ``epsilon`` per example of the best.

        A small share says that the best optimum is hard to find: more starts may find a better one.
        """
        # A degenerate start's likelihood is not real, unless all are so.
        comparable = [int(s) for s in Status if s.usable and (s != Status.DEGENERATE or s == self.status)]
        objective = np.where(np.isin(self.starts.status, comparable), self.starts.objective, -np.inf)
        return float(np.mean(objective >= self.objective - epsilon * self.weight))

    def __str__(self) -> str:
        return "\n".join(_summary(self))


def _summary(result: Result) -> list[str]:
    lines = [f"{describe(result.model)}, fitted to {_size(result)}"]
    likelihood = f"{result.model.objective_name} {_number(result.log_likelihood)}"
    if result.objective != result.log_likelihood:
        likelihood += f"   with log-prior {_number(result.objective)}"
    if result.num_free_parameters is not None:
        likelihood += f"   BIC {_number(result.bic)}   AIC {_number(result.aic)}"
        likelihood += f"   free parameters {result.num_free_parameters}"
    lines.append(likelihood)
    lines.append(f"{result.status.text} ({result.steps} steps)")
    for name, components in (("degenerate", result.degenerate), ("empty", result.empty)):
        if components:
            named = labels(result.model)
            lines.append(f"{name} components: {', '.join(named[k] for k in components)}")
    starts = result.starts
    if len(starts) > 1:
        unit = "row" if result.num_steps is None else "step"
        lines.append(f"{len(starts)} starts, {result.share_at_best():.0%} of them within 1e-5 per {unit} of the best:")
        lines.append(f"  {'status':<22}{'starts':>7}{'best objective':>18}{'median steps':>14}")
        for status in sorted(set(starts.status.tolist())):
            mine = starts.status == status
            best = np.max(starts.objective[mine])
            row = f"  {Status(status).label:<22}{mine.sum():>7}{_number(float(best)):>18}"
            lines.append(row + f"{np.median(starts.steps[mine]):>14.0f}")
    return lines


def _size(result: Result) -> str:
    if result.num_sequences is None or result.num_steps is None:
        return _plural(result.num_examples, "row")
    return f"{_plural(result.num_sequences, 'sequence')}, {_plural(result.num_steps, 'step')}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else str(value)


#: What a model with such a latent variable is called, and what its components are.
_LATENTS = {
    "Categorical": ("mixture", "component"),
    "Gated": ("gated mixture", "component"),
    "MarkovChain": ("hidden Markov model", "state"),
}


_NAMES = {
    "FactorAnalysis": "Factor analysis",
    "PPCA": "Probabilistic PCA",
    "LogJointModel": "Model of a log joint",
    "FixedPoint": "Given EM map",
}


def size(model: Model) -> int:
    """The number of components, noise not among them, of states, or of factors."""
    model = _innermost(model)
    return getattr(model, "num_factors", model.num_components) - has_noise(model)


def has_noise(model: Model) -> bool:
    """Whether the last component is noise."""
    return isinstance(getattr(_innermost(model), "likelihood", None), WithNoise)


def labels(model: Model) -> list[str]:
    """What the components are called: their numbers, and noise by its name."""
    return [*map(str, range(size(model))), *(["noise"] if has_noise(model) else [])]


def _innermost(model: Model) -> Model:
    inner = getattr(model, "model", None)
    return _innermost(inner) if isinstance(inner, Model) else model


def _family_name(family: Family) -> str:
    if isinstance(family, Product):
        return " × ".join(_family_name(family.families[name]) for name, _ in family.columns or ())
    return _family_name(family.family) if isinstance(family, WithNoise) else type(family).__name__


def _structure(family: Family) -> Any:
    """The covariance structure, where there is one."""
    if isinstance(family, Product):
        each = [_structure(family.families[name]) for name, _ in family.columns or ()]
        return next((found for found in each if found is not None), None)
    return _structure(family.family) if isinstance(family, WithNoise) else getattr(family, "covariance", None)


def describe(model: Model) -> str:
    """A model in a few words: its class names, sizes and structures."""
    inner = getattr(model, "model", None)
    if isinstance(inner, Model):
        return f"{type(model).__name__.lstrip('_')}({describe(inner)})"
    latent, family = getattr(model, "latent", None), getattr(model, "likelihood", None)
    if latent is None or family is None:
        factors = getattr(model, "num_factors", None)
        plain = type(model).__name__.lstrip("_")
        name = _NAMES.get(plain, plain)
        return name if factors is None else f"{name}, {factors} factor{'s' if factors != 1 else ''}"
    structure = _structure(family)
    # EqualVolumeDiagonal: "equal volume diagonal covariance"
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(structure).__name__).lower()
    covariance = f", {words} covariance" if structure is not None else ""
    held = getattr(latent, "latent", latent)
    how = "" if held is latent else f", {type(latent).__name__.lower()} assignments"
    name = type(held).__name__
    kind, unit = _LATENTS.get(name, (name, "component"))
    member = getattr(family, "model", None)  # a mixture of models
    what = f"{_family_name(family)} {kind}" if member is None else f"{kind} of ({describe(member)})"
    noise = " and noise" if has_noise(model) else ""
    return f"{what}, {_plural(size(model), unit)}{noise}{covariance}{how}"


@pytree
class BatchResult:
    """The best start of every data set; ``result[d]`` is the `Result` of data set d.

    Arrays have the data sets as their leading axis, those of ``starts`` data sets and starts.
    """

    model: Model
    params: Any
    starts: Starts
    best: Int[np.ndarray, " B"]
    weight: Float[np.ndarray, " B"]
    degenerate: Any
    empty: Any
    num_examples: int = static()
    num_free_parameters: int | None = static()

    def _of_best(self, values: np.ndarray) -> np.ndarray:
        return values[np.arange(len(self.best)), self.best]

    @property
    def objective(self) -> Float[np.ndarray, " B"]:
        return self._of_best(self.starts.objective)

    @property
    def log_likelihood(self) -> Float[np.ndarray, " B"]:
        return self._of_best(self.starts.log_likelihood)

    @property
    def steps(self) -> Int[np.ndarray, " B"]:
        return self._of_best(self.starts.steps)

    @property
    def status(self) -> Int[np.ndarray, " B"]:
        """`Status` values."""
        return self._of_best(self.starts.status)

    @property
    def converged(self) -> np.ndarray:
        return np.isin(self.status, [int(s) for s in Status if s.success])

    def __len__(self) -> int:
        return len(self.best)

    def __getitem__(self, d: int) -> Result:
        if not -len(self) <= d < len(self):
            raise IndexError(f"data set {d} of {len(self)}")
        model, params, starts = jax.tree.map(lambda a: a[d], (self.model, self.params, self.starts))
        return Result(
            model,
            params,
            starts,
            best=int(self.best[d]),
            num_examples=self.num_examples,
            weight=float(self.weight[d]),
            num_free_parameters=self.num_free_parameters,
            degenerate=tuple(np.flatnonzero(self.degenerate[d]).tolist()),
            empty=tuple(np.flatnonzero(self.empty[d]).tolist()),
        )

    def __str__(self) -> str:
        lines = [f"{len(self)} data sets of {self.num_examples} rows, {self.starts.status.shape[1]} starts each"]
        lines.append(f"  {'status':<22}{'data sets':>10}{'median steps':>14}")
        for status in sorted(set(self.status.tolist())):
            mine = self.status == status
            lines.append(f"  {Status(status).label:<22}{mine.sum():>10}{np.median(self.steps[mine]):>14.0f}")
        return "\n".join(lines)
