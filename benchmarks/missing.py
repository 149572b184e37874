"""Missing cells: one EM iteration against that of complete data, and against plain numpy."""

from __future__ import annotations

import numpy as np

from benchmarks import problems
from benchmarks.harness import Bar, Contestant, Row, Settings, contest, faster, skipped

DESCRIPTION = "Gaussians with a tenth of the cells missing, against complete data and plain numpy"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_missing")
NUMPY = Contestant("numpy, by pattern", "benchmarks.contestants.numpy_missing")


def _problem(settings: Settings, k: int) -> tuple[problems.Arrays, dict, str]:
    n, d = settings.size(50_000, 500), settings.size(10, 3)
    x = problems.mixture(0, n, d, max(k, 2), spread=2.0)
    mask = np.random.default_rng(1).random(x.shape) > 0.1
    arrays = {"x": x, "mask": mask, **problems.starts(1, x, k, 1)}
    return arrays, {"steps": settings.size(5, 2)}, f"one iteration, {n} x {d}, K={k} full, 10% missing"


def _against_complete(measure: str, arrays: problems.Arrays, options: dict, repeats: int) -> Row:
    own = contest([JAXEM], "against_complete", arrays, options, repeats)["jaxem"]
    if own.problem:
        return skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)
    ratio, bar = own.median("masked") / own.median("complete"), Bar("<=", 20, "x")
    return Row(
        measure,
        ours=own.median("masked"),
        opponent="nothing missing",
        theirs=own.median("complete"),
        figure=ratio,
        bar=bar,
        our_log_likelihood=own.last("log_likelihood_masked"),
        their_log_likelihood=own.last("log_likelihood_complete"),
        runs=str(len(own.answers)),
        passed=bar.met(ratio),
        notes=[f"{own.facts['patterns']} patterns; first call {own.facts['compile_seconds']:.1f} s"],
        details={"jaxem": own.details()},
    )


def one(settings: Settings) -> list[Row]:
    """One normal distribution."""
    arrays, options, measure = _problem(settings, 1)
    outcomes = contest([JAXEM, NUMPY], "iteration", arrays, options, settings.repeats)
    row = _against_complete(measure, arrays, options, settings.repeats)
    return [row, *faster(measure, outcomes, {NUMPY.name: 2}, agreement=1e-4)]


def mixture(settings: Settings) -> list[Row]:
    """A mixture of four."""
    arrays, options, measure = _problem(settings, 4)
    return [_against_complete(measure, arrays, options, settings.repeats)]


MEASURES = {"one": one, "mixture": mixture}
