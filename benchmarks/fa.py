"""Factor analysis: a whole fit, its moments included."""

from __future__ import annotations

from benchmarks import problems
from benchmarks.harness import Contestant, Row, Settings, contest, faster

DESCRIPTION = "Factor analysis against scikit-learn"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_fa")
SKLEARN = Contestant("scikit-learn", "benchmarks.contestants.sklearn_fa")


def whole_fit(settings: Settings) -> list[Row]:
    """A fit of a fixed number of iterations, each side from its own start."""
    n, d, size = settings.size(100_000, 1_000), settings.size(64, 8), settings.size(8, 2)
    arrays, options = problems.factors(0, n, d, size), {"factors": size, "steps": settings.size(20, 3)}
    outcomes = contest([JAXEM, SKLEARN], "whole_fit", arrays, options, settings.repeats)
    measure = f"fit of {options['steps']} iterations, {n} x {d}, {size} factors"
    return faster(measure, outcomes, {SKLEARN.name: 50}, agreement=1e-3)


MEASURES = {"whole_fit": whole_fit}
