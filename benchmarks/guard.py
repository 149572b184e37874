"""``python -m benchmarks guard``: has a speed been lost, or a program grown? Compared with a table that is committed.

A speed is a ratio to a bare kernel of the same shapes, timed beside it in the same process and in turn, so that it means
the same on another machine; sizes of programs are counts, the same on every machine. What is worse than the table by more
than a margin fails and is named. The table, ``guard.json``, is written by ``--update``, and read in a review.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks import guard_table, problems
from benchmarks.first import JAXEM as FIRST_CALL
from benchmarks.first import PLAIN
from benchmarks.harness import Contestant, Row, Settings, Worker, WorkerError, contest
from benchmarks.report import machine

DESCRIPTION = "has a speed been lost, has a program grown? short measures against a committed table; exit status 1"

TABLE = Path(__file__).with_name("guard.json")

_SPEEDS = Contestant("jaxem", "benchmarks.contestants.guard_speeds")
_OPERATIONS = Contestant("jaxem", "benchmarks.operations")
# Programs are counted, not run for their speed: compiled with the least effort.
_COUNTED = Contestant(
    "jaxem", FIRST_CALL.module, (*FIRST_CALL.environment, ("XLA_FLAGS", "--xla_backend_optimization_level=0"))
)


class Speed(NamedTuple):
    """Words for the table: what is measured, and what beside it. quick: whether a quick pass has it too."""

    words: str
    kernel: str
    quick: bool = True


#: The measures of `benchmarks.contestants.guard_speeds`.
SPEEDS = {
    "gmm_full_kept": Speed("GMM full, T(x) kept, 50 000 x 16, K=16, a step", "its two products"),
    "gmm_full_chunked": Speed("GMM full, Chunked, 50 000 x 16, K=16, a step", "its two products"),
    "gmm_full_few": Speed("GMM full, T(x) kept, 200 000 x 4, K=2, a step", "its two products", quick=False),
    "gmm_diagonal_kept": Speed("GMM diagonal, T(x) kept, 100 000 x 16, K=64, a step", "its two products", quick=False),
    "gmm_diagonal_chunked": Speed("GMM diagonal, Chunked, 1 000 000 x 16, K=64, a step", "its two products"),
    "gmm_diagonal_many": Speed("GMM diagonal, T(x) kept, 5 000 x 8, K=512, a step", "its two products", quick=False),
    "student_t": Speed("Student t mixture, 50 000 x 8, K=8, a step", "a Gaussian's products", quick=False),
    "latent_classes": Speed("latent classes, 200 000 x 10, K=4, a step", "its two products"),
    "missing_cells": Speed("GMM full, a fifth missing, 20 000 x 6, K=4, a step", "products of whole rows"),
    "hmm_long": Speed("Gaussian HMM, one sequence of 100 000, K=4, 5 steps", "two scans a step"),
    "hmm_wide": Speed("Gaussian HMM, one sequence of 20 000, K=32, 5 steps", "two scans a step", quick=False),
    "hmm_short": Speed("Gaussian HMM, 500 sequences of 100, K=8, 5 steps", "two scans a step", quick=False),
    "factor_analysis": Speed("factor analysis, 20 features, 4 factors, 50 steps", "the same by hand"),
    "starts": Speed("fit, 32 given starts, 2 000 x 4, K=5, to the end", "plain EM, vmapped"),
    "batch": Speed("fit_batch, 300 data sets of 200 x 2, K=3, 20 steps", "plain EM, vmapped"),
    "gradient": Speed("gradient of a fit in a prior's strength, 2 000 x 2, K=2", "40 steps of plain EM", quick=False),
}


def measure_speed(name: str, worker: Worker, settings: Settings) -> Row:
    """One speed as a multiple of its kernel's: the median over repetitions, each of which times both."""
    speed = SPEEDS[name]
    row = Row(name, opponent=speed.kernel, details={"words": speed.words})
    try:
        worker.ask(command="setup", operation="speed", arrays={}, options={"name": name})
        answers = [worker.ask(command="run") for _ in range(settings.repeats)]
    except WorkerError as problem:
        return _broken(row, str(problem))
    row.ours = statistics.median(answer["seconds"] for answer in answers)
    row.theirs = statistics.median(answer["kernel_seconds"] for answer in answers)
    row.figure = statistics.median(answer["seconds"] / answer["kernel_seconds"] for answer in answers)
    return row


def _speeds(names: Iterable[str], settings: Settings) -> list[Row]:
    """All of them in one process, which imports and starts once."""
    worker, rows = Worker(_SPEEDS), []
    try:
        for name in names:
            rows.append(_told(measure_speed(name, worker, settings)))
    finally:
        worker.close()
    return rows


def first_calls(settings: Settings) -> list[Row]:
    """First calls of a mixture beside those of plain EM, all in processes of their own, in turn, without a cache."""
    rows, arrays = [], {"x": problems.iris()}
    for starts, call in ((1, "gmm"), (64, "gmm_64")):
        row = Row(f"first_{call}", opponent="plain EM's first call")
        row.details = {"words": f"first call of a process: GMM full, iris, K=3, {starts} start{'s' * (starts > 1)}"}
        pairs = []
        for _ in range(settings.size(3, 1)):
            ours = contest([FIRST_CALL], "first_call", {}, {"call": call}, 1)[FIRST_CALL.name]
            plain = contest([PLAIN], "first_call", arrays, {"k": 3, "starts": starts}, 1)[PLAIN.name]
            if problem := ours.problem or plain.problem:
                rows.append(_broken(row, problem))
                break
            pairs.append((ours.median(), plain.median()))
        else:
            row.ours, row.theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            row.figure = statistics.median(ours / plain for ours, plain in pairs)
            rows.append(row)
    return rows


def operations(settings: Settings) -> list[Row]:
    """Sizes of the programs of a dozen models (see `benchmarks.operations`); a quick pass has no gradient."""
    outcome = contest([_OPERATIONS], "count_all", {}, {"gradients": not settings.quick}, 1)["jaxem"]
    if outcome.problem:
        return [_broken(Row("operations"), outcome.problem)]
    return [
        _count(f"operations.{model}.{part}", f"StableHLO operations: {model}, {part}", count)
        for model, parts in outcome.last("counts").items()
        for part, count in parts.items()
    ]


def programs(settings: Settings) -> list[Row]:
    """How many programs a first fit compiles, and how many twenty fits of as many lengths do."""
    lengths = settings.size(20, 1)
    outcome = contest([_COUNTED], "count_programs", {}, {"sets": lengths}, 1)["jaxem"]
    if outcome.problem:
        return [_broken(Row("programs"), outcome.problem)]
    each = outcome.last("programs")
    rows = [_count("programs.first_fit", "compiled programs of a first fit", each[0])]
    if not settings.quick:
        rows.append(_count("programs.lengths", f"compiled programs of {lengths} fits of as many lengths", sum(each)))
    return rows


def _count(name: str, words: str, count: int) -> Row:
    return Row(name, figure=count, figure_unit="", details={"words": words})


def _broken(row: Row, problem: str) -> Row:
    row.error = True
    row.notes.append(problem.strip().splitlines()[-1])
    return row


def _told(row: Row) -> Row:
    """Progress, on stderr."""
    figure = row.notes[-1] if row.figure is None else f"{row.figure:.4g}"
    print(f"  {row.measure}: {figure}", file=sys.stderr, flush=True)
    return row


_OTHERS: dict[str, Callable[[Settings], list[Row]]] = {
    "first_calls": first_calls,
    "operations": operations,
    "programs": programs,
}
MEASURES: tuple[str, ...] = (*SPEEDS, *_OTHERS)


def measure(names: Sequence[str], settings: Settings) -> list[Row]:
    """The rows of these measures, not judged yet."""
    speeds = [name for name in names if name in SPEEDS]
    rows = _speeds(speeds, settings) if speeds else []
    for name in names:
        if name in _OTHERS:
            print(f"guard: {name} ...", file=sys.stderr, flush=True)
            rows += _OTHERS[name](settings)
    return rows


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks guard", description=DESCRIPTION)
    parser.add_argument("--only", default="", metavar="NAMES", help="measures, separated by commas; all by default")
    parser.add_argument("--repeats", type=int, help="repetitions of every speed, 9 by default (quick: 3)")
    parser.add_argument("--quick", action="store_true", help="the same sizes, fewer repetitions and rows")
    parser.add_argument(
        "--margin", type=float, default=guard_table.MARGIN, help="how many times the table's value a ratio may be"
    )
    parser.add_argument("--update", action="store_true", help="write what was measured to the table")
    return parser.parse_args(arguments)


def _wrong(options: argparse.Namespace, names: Sequence[str]) -> str:
    """What is wrong with the command line; empty where nothing is."""
    if unknown := [name for name in names if name not in MEASURES]:
        return f"{', '.join(unknown)} unknown; the measures are {', '.join(MEASURES)}"
    if options.repeats is not None and options.repeats < 1:
        return "--repeats is at least 1"
    if options.margin < 1:
        return "--margin is at least 1"
    return "--update wants the whole measure, not --quick" if options.update and options.quick else ""


def _chosen(options: argparse.Namespace) -> list[str]:
    names = [name for name in options.only.split(",") if name]
    return names or [name for name in MEASURES if not options.quick or name not in SPEEDS or SPEEDS[name].quick]


def _facts() -> dict[str, object]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "jax": metadata.version("jax"), "cores": machine()["cores"]}


def main(arguments: Sequence[str]) -> int:
    """Measure, compare and print; 1 where a row is worse, broken or not in the table, 2 for a wrong command line."""
    options = parse(arguments)
    names = _chosen(options)
    if wrong := _wrong(options, names):
        print(f"benchmarks guard: {wrong}", file=sys.stderr)
        return 2
    repeats = options.repeats or (3 if options.quick else 9)
    rows = measure(names, Settings(repeats=repeats, quick=options.quick))
    return conclude(rows, options, complete=set(names) == set(MEASURES) and not options.quick)


def conclude(rows: Sequence[Row], options: argparse.Namespace, complete: bool) -> int:
    """Judge the rows by the table, or write them to it, and print both: the exit status."""
    entries, facts = guard_table.read(TABLE), _facts()
    if options.update:
        entries = guard_table.updated(entries, rows, facts, complete)
        guard_table.write(TABLE, entries)
    guard_table.judge(rows, entries, options.margin)
    print(guard_table.table(rows))
    for remark in guard_table.remarks(rows, entries, facts):
        print(remark)
    failed = [row.measure for row in rows if not row.passed]
    failed += sorted(set(entries) - {row.measure for row in rows}) if complete else []
    if failed:
        print(f"guard: failed: {', '.join(failed)}")
        return 1
    print("guard: nothing is worse than the table" if not options.update else f"guard: written to {TABLE.name}")
    return 0
