"""Latent class analysis of binary items: one iteration, and many starts."""

from __future__ import annotations

from benchmarks import problems
from benchmarks.harness import Contestant, Row, Settings, contest, faster

DESCRIPTION = "Latent classes of binary items against StepMix"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_lca")
STEPMIX = Contestant("StepMix", "benchmarks.contestants.stepmix_lca")


def iteration(settings: Settings) -> list[Row]:
    """One EM iteration."""
    n = settings.size(20_000, 500)
    arrays = problems.items(0, n, 12, 4, 1)
    outcomes = contest([JAXEM, STEPMIX], "iteration", arrays, {"steps": settings.size(20, 2)}, settings.repeats)
    return faster(f"one iteration, {n} x 12 binary, K=4", outcomes, {"StepMix": 3}, agreement=1e-4)


def starts(settings: Settings) -> list[Row]:
    """Many starts to convergence."""
    n, count = settings.size(20_000, 500), settings.size(50, 3)
    arrays = problems.items(0, n, 12, 4, count)
    options = {"tol": 1e-5, "max_steps": 1000}
    outcomes = contest([JAXEM, STEPMIX], "starts", arrays, options, settings.repeats)
    return faster(f"{count} starts, {n} x 12 binary, K=4", outcomes, {"StepMix": 20}, agreement=1e-3)


MEASURES = {"iteration": iteration, "starts": starts}
