"""How a fit ended, in words."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """One value per lane; `text` is the sentence a person needs, `advice` what to do about it."""

    RUNNING = 0
    CONVERGED = 1
    STALLED = 2
    MAX_STEPS = 3
    OUTRACED = 4
    DEGENERATE = 5
    DECREASED = 6
    NON_FINITE = 7
    NON_FINITE_INPUT = 8
    ZERO_LIKELIHOOD = 9
    TOO_FEW_ROWS = 10
    INTERRUPTED = 11

    @property
    def text(self) -> str:
        return _TEXT[self]

    @property
    def advice(self) -> str:
        return _ADVICE.get(self, "")

    @property
    def label(self) -> str:
        """The name as it is printed."""
        return _LABEL.get(self, self.name.lower().replace("_", " "))

    @property
    def success(self) -> bool:
        """The parameters are an optimum, as far as the arithmetic can tell."""
        return self in (Status.CONVERGED, Status.STALLED)

    @property
    def usable(self) -> bool:
        """The parameters are finite and were improved by EM; they may not be an optimum."""
        return self in USABLE


#: Statuses whose parameters may be chosen as the best of several starts.
USABLE = (
    Status.CONVERGED,
    Status.STALLED,
    Status.MAX_STEPS,
    Status.OUTRACED,
    Status.DECREASED,
    Status.DEGENERATE,
    Status.INTERRUPTED,
)

_LABEL = {Status.STALLED: "stalled at precision", Status.NON_FINITE: "non-finite"}
_LABEL[Status.NON_FINITE_INPUT] = "non-finite input"

_TEXT = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged: the stopping rule is met",
    Status.STALLED: "stalled at precision: the gain is below the rounding error of the objective, but above tol",
    Status.MAX_STEPS: "stopped at max_steps, before the stopping rule was met",
    Status.OUTRACED: "stopped after the short run: other starts were ahead",
    Status.DEGENERATE: "degenerate: the spread of a component has collapsed onto the floor; its likelihood is not real",
    Status.DECREASED: "the objective fell; the best parameters seen are kept",
    Status.NON_FINITE: "the objective became NaN or infinite; the last finite parameters are kept",
    Status.NON_FINITE_INPUT: "the data or weights hold NaN or infinity; nothing was fitted",
    Status.ZERO_LIKELIHOOD: "the data are impossible under the parameters: the log-likelihood is -inf",
    Status.TOO_FEW_ROWS: "fewer examples with positive weight than components; nothing was fitted",
    Status.INTERRUPTED: "interrupted before the stopping rule was met; the best parameters seen are kept",
}

_ADVICE = {
    Status.STALLED: "a larger tol, or float64 data, resolves it",
    Status.MAX_STEPS: "raise max_steps, or loosen tol",
    Status.DEGENERATE: "use a prior (jaxem.WithPrior), fewer components or a simpler covariance, or more starts",
    Status.DECREASED: "an M-step that does not maximize, or a scale the floating-point type cannot hold: "
    "try float64, and jaxem.testing.check_model on your own model",
    Status.NON_FINITE: "look for extreme values in the data; try float64, a prior, or another start",
    Status.NON_FINITE_INPUT: "remove or mask the rows",
    Status.ZERO_LIKELIHOOD: "start from parameters that allow every example",
    Status.TOO_FEW_ROWS: "use fewer components",
    Status.INTERRUPTED: "go on from them (params=), or from a checkpoint (resume=)",
}
