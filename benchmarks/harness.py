"""Contests between libraries: the same arrays for all, a process for each, their repetitions interleaved."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# Idle threads of some libraries spin for up to 0.2 s after their work; the next contestant waits for that to end.
_SETTLE_SECONDS = 0.25


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    repeats: int = 5
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar for a figure: at least, or at most, ``value``."""

    side: Literal[">=", "<="]
    value: float
    unit: str = ""

    def met(self, figure: float) -> bool:
        return figure >= self.value if self.side == ">=" else figure <= self.value

    def __str__(self) -> str:
        return f"{self.side} {self.value:g}{self.unit}"


@dataclasses.dataclass
class Row:
    """One line of the table.

    ours, theirs: median seconds, or another figure in ``unit``. figure: what the bar is for, with ``figure_unit``: "x"
    for a ratio. passed is None where there is nothing to judge. details go to the JSON only.
    """

    measure: str
    ours: float | None = None
    unit: str = "s"
    opponent: str = ""
    theirs: float | None = None
    figure: float | None = None
    figure_unit: str = "x"
    bar: Bar | None = None
    our_log_likelihood: float | None = None
    their_log_likelihood: float | None = None
    runs: str = ""
    passed: bool | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: bool = False


def skipped(measure: str, opponent: str, reason: str, error: bool = False) -> Row:
    """A row that says why there is nothing to compare with."""
    return Row(measure, opponent=opponent, notes=[reason], error=error)


class WorkerError(RuntimeError):
    """A contestant broke down; the message is its traceback."""


class MissingError(WorkerError):
    """A contestant is not installed."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A name for the table, the module that holds its operations, and the environment variables it runs with."""

    name: str
    module: str
    environment: tuple[tuple[str, str], ...] = ()


class Worker:
    """A contestant's process (see `benchmarks.worker`)."""

    def __init__(self, contestant: Contestant):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", contestant.module],
            cwd=ROOT,
            env={**os.environ, **dict(contestant.environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended with exit status {self._process.wait()}")
        answer = json.loads(line)
        if "missing" in answer:
            raise MissingError(answer["missing"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@dataclasses.dataclass
class Outcome:
    """What a contestant answered: facts once, one answer per repetition; or why it did not take part."""

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    problem: str = ""
    missing: bool = False

    def median(self, name: str = "seconds") -> float:
        return statistics.median(answer[name] for answer in self.answers)

    def last(self, name: str) -> Any:
        return self.answers[-1][name]

    def details(self) -> dict[str, Any]:
        return {"facts": self.facts, "runs": self.answers}


def contest(
    contestants: Sequence[Contestant],
    operation: str,
    arrays: Mapping[str, np.ndarray],
    options: Mapping[str, Any],
    repeats: int,
) -> dict[str, Outcome]:
    """All contestants on the same arrays: set up one after another, then repetition by repetition in turn.

    A contestant whose facts say ``most_repeats`` gets no more than so many; the table shows how many it had.
    """
    outcomes = {contestant.name: Outcome() for contestant in contestants}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, array in arrays.items():
            paths[name] = str(Path(folder) / f"{name}.npy")
            np.save(paths[name], array)
        try:
            for contestant in contestants:
                workers[contestant.name] = worker = Worker(contestant)
                outcome = outcomes[contestant.name]
                with _noting(outcome, contestant.name):
                    outcome.facts = worker.ask(
                        command="setup", operation=operation, arrays=paths, options=dict(options)
                    )
            for i in range(repeats):
                for contestant in contestants:
                    outcome = outcomes[contestant.name]
                    if outcome.problem or i >= outcome.facts.get("most_repeats", repeats):
                        continue
                    time.sleep(0 if repeats == 1 else _SETTLE_SECONDS)
                    with _noting(outcome, contestant.name):
                        outcome.answers.append(workers[contestant.name].ask(command="run"))
        finally:
            for worker in workers.values():
                worker.close()
    return outcomes


class _noting:
    """Turns a contestant's failure into a note on its outcome: the others go on."""

    def __init__(self, outcome: Outcome, name: str):
        self.outcome, self.name = outcome, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> bool:
        if isinstance(problem, MissingError):
            self.outcome.missing = True
            self.outcome.problem = f"skipped: {problem} is not installed (it comes with the benchmark extra)"
        elif isinstance(problem, WorkerError):
            self.outcome.problem = f"failed: {str(problem).strip().splitlines()[-1]}"
            print(f"{self.name}:\n{problem}", file=sys.stderr)
        return isinstance(problem, WorkerError)


def faster(
    measure: str, outcomes: Mapping[str, Outcome], bars: Mapping[str, float], agreement: float, ours: str = "jaxem"
) -> list[Row]:
    """One row per opponent: how many times our median its median is; final log-likelihoods within ``agreement``."""
    own = outcomes[ours]
    if own.problem:
        return [skipped(measure, "", f"{ours} {own.problem}", error=not own.missing)]
    rows = []
    for name, bar in bars.items():
        other = outcomes[name]
        if other.problem:
            rows.append(skipped(measure, name, other.problem, error=not other.missing))
            continue
        rows.append(_faster_row(measure, name, own, other, Bar(">=", bar, "x"), agreement))
    return rows


def _faster_row(measure: str, name: str, own: Outcome, other: Outcome, bar: Bar, agreement: float) -> Row:
    ratio = other.median() / own.median()
    gap = abs(own.last("log_likelihood") - other.last("log_likelihood"))
    # An opponent whose arithmetic breaks down still took its time; ours must be a number.
    lost = math.isnan(other.last("log_likelihood")) and math.isfinite(own.last("log_likelihood"))
    row = Row(
        measure,
        ours=own.median(),
        opponent=name,
        theirs=other.median(),
        figure=ratio,
        bar=bar,
        our_log_likelihood=own.last("log_likelihood"),
        their_log_likelihood=other.last("log_likelihood"),
        runs=f"{len(own.answers)}/{len(other.answers)}",
        passed=bar.met(ratio) and (gap <= agreement or lost),
        details={"jaxem": own.details(), name: other.details()},
    )
    if "compile_seconds" in own.facts:
        row.notes.append(f"jaxem's first call, compilation in: {own.facts['compile_seconds']:.1f} s")
    if "steps" in own.answers[-1] and "steps" in other.answers[-1]:
        row.notes.append(f"EM steps in all: jaxem {own.last('steps')}, {name} {other.last('steps')}")
    if lost:
        row.notes.append(f"{name} ends with NaN")
    elif not gap <= agreement:
        row.notes.append(f"final log-likelihoods differ by {gap:.2g} per example, more than {agreement:g}")
    return row
