"""Hidden Markov models: one long sequence, many short ones, many starts, and float32 over a million steps."""

from __future__ import annotations

import numpy as np

from benchmarks import problems
from benchmarks.harness import Bar, Contestant, Row, Settings, contest, faster, skipped

DESCRIPTION = "Gaussian hidden Markov models against hmmlearn (scaling) and dynamax; accuracy over a million steps"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_hmm")
HMMLEARN = Contestant("hmmlearn", "benchmarks.contestants.hmmlearn_hmm")
DYNAMAX = Contestant("dynamax", "benchmarks.contestants.dynamax_hmm")


def _iteration(measure: str, arrays: problems.Arrays, settings: Settings, bars: dict[str, float]) -> list[Row]:
    options = {"steps": settings.size(25, 2)}
    outcomes = contest([JAXEM, HMMLEARN, DYNAMAX], "iteration", arrays, options, settings.repeats)
    return faster(measure, outcomes, bars, agreement=1e-3)


def long(settings: Settings) -> list[Row]:
    """One EM iteration on one sequence of a million steps."""
    steps = settings.size(1_000_000, 3_000)
    arrays = problems.sequences(0, 1, steps, 1, 4, spread=3.0)
    return _iteration(f"one sequence of {steps}, K=4, d=1", arrays, settings, {"hmmlearn": 3, "dynamax": 2.4})


def wide(settings: Settings) -> list[Row]:
    """One EM iteration on one sequence with sixteen states."""
    steps = settings.size(100_000, 2_000)
    arrays = problems.sequences(1, 1, steps, 1, 16, spread=10.0)
    return _iteration(f"one sequence of {steps}, K=16, d=1", arrays, settings, {"hmmlearn": 2, "dynamax": 8})


def short(settings: Settings) -> list[Row]:
    """One EM iteration on many short sequences."""
    count = settings.size(1_000, 20)
    arrays = problems.sequences(2, count, 200, 2, 8, spread=3.0)
    bars = {"hmmlearn": 12, "dynamax": 12}
    return _iteration(f"{count} sequences of 200, K=8, d=2 full", arrays, settings, bars)


def starts(settings: Settings) -> list[Row]:
    """The same with many starts as lanes of one program, an iteration of a start against hmmlearn's."""
    count, lanes = settings.size(1_000, 20), settings.size(32, 3)
    arrays = problems.sequences(2, count, 200, 2, 8, spread=3.0)
    rng = np.random.default_rng(5)
    many = {name: np.broadcast_to(a, (lanes, *a.shape)).copy() for name, a in arrays.items() if name != "x"}
    many["means"][1:] += rng.normal(size=many["means"][1:].shape).astype(np.float32)
    options = {"steps": settings.size(3, 2)}
    # Contestants get the same first start; jaxem's answer is the time of an iteration of one of its lanes.
    ours = contest([JAXEM], "starts", {"x": arrays["x"], **many}, options, settings.repeats)
    theirs = contest([HMMLEARN], "iteration", arrays, options, settings.repeats)
    measure = f"the same with {lanes} starts at once, per start"
    return faster(measure, {**ours, **theirs}, {"hmmlearn": 15}, agreement=1e-3)


def precision(settings: Settings) -> list[Row]:
    """The objective of a long sequence in float32 against float64."""
    steps = settings.size(1_000_000, 5_000)
    arrays = problems.sequences(0, 1, steps, 1, 4, spread=3.0)
    own = contest([JAXEM], "precision", arrays, {}, 1)["jaxem"]
    measure = f"float32, one sequence of {steps}: relative error"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    error, bar = own.last("relative_error"), Bar("<=", 1e-6)
    return [
        Row(
            measure,
            opponent="float64",
            figure=error,
            figure_unit="",
            bar=bar,
            our_log_likelihood=own.last("float32") / steps,
            their_log_likelihood=own.last("float64") / steps,
            passed=bar.met(error),
            details={"jaxem": own.details()},
        )
    ]


MEASURES = {"long": long, "wide": wide, "short": short, "starts": starts, "precision": precision}
