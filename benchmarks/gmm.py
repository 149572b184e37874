"""Gaussian mixtures: one iteration, many starts, many data sets, memory, the command, and accuracy."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks import problems
from benchmarks.harness import ROOT, Bar, Contestant, Outcome, Row, Settings, contest, faster, skipped

DESCRIPTION = "Gaussian mixtures against scikit-learn, pomegranate and gmmx; memory, start-up time, accuracy"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_gmm")
SKLEARN = Contestant("scikit-learn", "benchmarks.contestants.sklearn_gmm")
# Threads often cost a small problem more than they bring: the opponent is judged both ways.
_ONE_THREAD = (("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1"))
SKLEARN_ONE = Contestant("scikit-learn, 1 thread", SKLEARN.module, _ONE_THREAD)
POMEGRANATE = Contestant("pomegranate", "benchmarks.contestants.pomegranate_gmm")
GMMX = Contestant("gmmx", "benchmarks.contestants.gmmx_gmm")

# Gain per example at which all contestants stop, asked after every step.
_TOL = 1e-4
_FAITHFUL = -1130.264


def _iteration_problem(settings: Settings) -> tuple[problems.Arrays, dict]:
    n, d, k = settings.size(200_000, 2_000), settings.size(16, 4), settings.size(16, 3)
    x = problems.mixture(0, n, d, k, spread=2.0)
    return {"x": x, **problems.starts(1, x, k, 1)}, {"steps": settings.size(5, 2)}


def iteration(settings: Settings) -> list[Row]:
    """One EM iteration against the other libraries."""
    arrays, options = _iteration_problem(settings)
    outcomes = contest([JAXEM, SKLEARN, POMEGRANATE, GMMX], "iteration", arrays, options, settings.repeats)
    bars = {"scikit-learn": 20, "pomegranate": 8, "gmmx": 15}
    n, d = arrays["x"].shape
    measure = f"one iteration, {n} x {d}, K={arrays['means'].shape[1]} full"
    return faster(measure, outcomes, bars, agreement=1e-3)


def _alone(measure: str, outcome: Outcome) -> list[Row]:
    """What to show where jaxem itself has not answered; empty when it has."""
    return [skipped(measure, "", f"jaxem {outcome.problem}", error=not outcome.missing)] if outcome.problem else []


def products(settings: Settings) -> list[Row]:
    """The same iteration against its two matrix products, in one process."""
    arrays, options = _iteration_problem(settings)
    own = contest([JAXEM], "products", arrays, options, settings.repeats)["jaxem"]
    if own.problem:
        return _alone("the same iteration", own)
    rows = []
    for name, words, bar in (("kept", "T kept", 1.5), ("chunked", "Chunked", 2.5)):
        ratio = own.median(name) / own.median("products")
        rows.append(
            Row(
                f"the same iteration, {words}",
                ours=own.median(name),
                opponent="the two bare products",
                theirs=own.median("products"),
                figure=ratio,
                bar=Bar("<=", bar, "x"),
                our_log_likelihood=own.last(f"log_likelihood_{name}"),
                runs=str(len(own.answers)),
                passed=Bar("<=", bar).met(ratio),
                details={"jaxem": own.details()},
            )
        )
    return rows


def starts(settings: Settings) -> list[Row]:
    """Many starts to convergence."""
    n, count = settings.size(5_000, 300), settings.size(64, 4)
    x = problems.mixture(2, n, 4, 5, spread=2.0)
    arrays = {"x": x, **problems.starts(3, x, 5, count)}
    options = {"tol": _TOL, "max_steps": 1000}
    outcomes = contest([JAXEM, SKLEARN, SKLEARN_ONE], "starts", arrays, options, settings.repeats)
    bars = {SKLEARN.name: 25, SKLEARN_ONE.name: 25}
    return faster(f"{count} starts, {n} x 4, K=5 full", outcomes, bars, agreement=1e-3)


def batch(settings: Settings) -> list[Row]:
    """Many data sets to convergence."""
    sets = settings.size(2_000, 10)
    arrays = problems.many(4, sets, 200, 2, 3, spread=3.0)
    options = {"tol": _TOL, "max_steps": 1000}
    outcomes = contest([JAXEM, SKLEARN, SKLEARN_ONE], "batch", arrays, options, settings.repeats)
    bars = {SKLEARN.name: 60, SKLEARN_ONE.name: 60}
    return faster(f"{sets} data sets, 200 x 2, K=3 full", outcomes, bars, agreement=1e-3)


def slow_lane(settings: Settings) -> list[Row]:
    """One lane of many steps among lanes of few."""
    n, count = settings.size(5_000, 300), settings.size(64, 4)
    x = problems.mixture(6, n, 4, 5, spread=2.0)
    arrays = {"x": x, **problems.starts(6, x, 5, count)}
    options = {"steps": settings.size(10, 2), "slow_steps": settings.size(200, 10)}
    own = contest([JAXEM], "slow_lane", arrays, options, settings.repeats)["jaxem"]
    if own.problem:
        return _alone("one slow lane", own)
    ratio, bar = own.median("seconds") / own.median("useful"), Bar("<=", 1.6, "x")
    few, many = options["steps"], options["slow_steps"]
    wanted = {"together": (count - 1) * few + many, "short": count * few, "rest": many - few}
    row = Row(
        f"one lane of {many} steps among {count} of {few}",
        ours=own.median("seconds"),
        opponent="the useful work",
        theirs=own.median("useful"),
        figure=ratio,
        bar=bar,
        our_log_likelihood=own.last("log_likelihood"),
        runs=str(len(own.answers)),
        passed=bar.met(ratio),
        notes=[f"useful: all lanes for {few} steps ({own.median('short'):.3g} s), then one for {many - few} more"],
        details={"jaxem": own.details()},
    )
    made = {name: own.last(f"steps_{name}") for name in wanted}
    if made != wanted and not settings.quick:
        row.passed = False
        row.notes.append(f"lanes ended early: steps {made}, wanted {wanted}")
    return [row]


def memory(settings: Settings) -> list[Row]:
    """Peak memory beyond the data."""
    options = {"n": settings.size(5_000_000, 20_000), "d": 16, "k": settings.size(64, 4), "steps": 2}
    # One process, one fit after another: its peak is that of the worst of them.
    own = contest([JAXEM], "memory", {}, options, settings.size(3, 1))["jaxem"]
    measure = f"memory beyond the data, {options['n']} x 16, K={options['k']} diagonal"
    if own.problem:
        return _alone(measure, own)
    beyond, bar = own.last("bytes_beyond_data") / 1e9, Bar("<=", 1.0, " GB")
    imports, data = own.last("bytes_of_imports") / 1e9, own.last("bytes_of_data") / 1e9
    return [
        Row(
            measure,
            ours=own.median("seconds"),
            figure=beyond,
            figure_unit="GB",
            bar=bar,
            our_log_likelihood=own.last("log_likelihood"),
            runs=str(len(own.answers)),
            passed=bar.met(beyond),
            notes=[
                f"the time is that of an iteration; the data ({data:.2f} GB) are a numpy array, so any copy of them "
                f"and the imports ({imports:.2f} GB) count as beyond"
            ],
            details={"jaxem": own.details()},
        )
    ]


def _seconds(command: list[str], folder: str) -> tuple[float, subprocess.CompletedProcess]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(Path(folder) / "cache"), "PYTHONPATH": str(ROOT)}
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return time.perf_counter() - begin, done


def command(settings: Settings) -> list[Row]:
    """The command as a whole process, the first time and with its compilation cache."""
    measure, bar = "jaxem fit faithful, K 1:9, 64 starts", Bar("<=", 12, " s")
    if find_spec("jaxem.cli") is None:
        return [skipped(measure, "", "skipped: there is no jaxem.cli yet")]
    components, count = ("1:2", "4") if settings.quick else ("1:9", "64")
    words = ["fit", "faithful", "--components", components, "--starts", count]
    cold, warm = [], []
    for _ in range(settings.size(min(settings.repeats, 3), 1)):
        with tempfile.TemporaryDirectory() as folder:
            for times in (cold, warm):
                seconds, done = _seconds([sys.executable, "-m", "jaxem.cli", *words], folder)
                times.append(seconds)
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    return [skipped(measure, "", f"failed: exit status {done.returncode}", error=True)]
    median = statistics.median(cold)
    row = Row(measure, ours=median, figure=median, figure_unit="s", bar=bar, runs=str(len(cold)))
    row.passed = bar.met(median)
    row.notes = [f"an empty cache directory; the second time {statistics.median(warm):.1f} s"]
    row.details = {"cold": cold, "warm": warm}
    return [row]


def imports(settings: Settings) -> list[Row]:
    """What ``import jaxem`` adds to ``import jax``, in processes that alternate."""
    times: dict[str, list[float]] = {"jax": [], "jaxem": []}
    script = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.repeats):
            for name, own in times.items():
                _, done = _seconds([sys.executable, "-c", script.format(name)], folder)
                if done.returncode:
                    return [skipped(f"import {name}", "", "failed", error=True)]
                own.append(float(done.stdout))
    ours, theirs = (statistics.median(times[name]) for name in ("jaxem", "jax"))
    bar = Bar("<=", 0.3, " s")
    return [
        Row(
            "import jaxem",
            ours=ours,
            opponent="import jax",
            theirs=theirs,
            figure=ours - theirs,
            figure_unit="s",
            bar=bar,
            runs=f"{settings.repeats}/{settings.repeats}",
            passed=bar.met(ours - theirs),
            notes=["the difference, not the ratio"],
            details={"seconds": times},
        )
    ]


def faithful(settings: Settings) -> list[Row]:
    """Old Faithful: the published optimum, and the share of the starts that find it."""
    rows = []
    for dtype in ("float32",) if settings.quick else ("float64", "float32"):
        options = {"dtype": dtype, "starts": settings.size(64, 8), "reference": _FAITHFUL}
        own = contest([JAXEM], "faithful", {}, options, 1)["jaxem"]
        measure = f"Old Faithful, K=2 full, {dtype}"
        if own.problem:
            rows += _alone(measure, own)
            continue
        value, share = own.last("log_likelihood"), own.last("share")
        error, bar = abs(value - _FAITHFUL), Bar("<=", 1e-3)
        details = {"jaxem": own.details()}
        rows.append(
            Row(measure, value, "", "mclust", _FAITHFUL, error, "", bar, passed=bar.met(error), details=details)
        )
        bar = Bar(">=", 50, "%")
        rows.append(
            Row("  share of starts that find it", figure=100 * share, figure_unit="%", bar=bar, passed=share >= 0.5)
        )
    return rows


def precision(settings: Settings) -> list[Row]:
    """float32 against float64 on shifted and scaled data."""
    rows = []
    offsets, scales = ([0.0], [1.0]) if settings.quick else ([0.0, 1e2, 1e4], [1e-8, 1.0, 1e8])
    for data, k in (("iris", 3),) if settings.quick else (("faithful", 2), ("iris", 3)):
        options = {"data": data, "k": k, "offsets": offsets, "scales": scales}
        own = contest([JAXEM], "precision", {}, options, 1)["jaxem"]
        measure = f"float32, {data}, K={k}: largest relative error"
        if own.problem:
            rows += _alone(measure, own)
            continue
        error, worst, bar = own.last("relative_error"), own.last("worst"), Bar("<=", 1e-5)
        rows.append(
            Row(
                measure,
                opponent="float64",
                figure=error,
                figure_unit="",
                bar=bar,
                our_log_likelihood=worst["float32"],
                their_log_likelihood=worst["float64"],
                passed=bar.met(error),
                notes=[f"{data}: worst at offset {worst['offset']:g}, scale {worst['scale']:g}"],
                details={"jaxem": own.details()},
            )
        )
    return rows


MEASURES = {
    "iteration": iteration,
    "products": products,
    "starts": starts,
    "batch": batch,
    "slow_lane": slow_lane,
    "memory": memory,
    "command": command,
    "imports": imports,
    "faithful": faithful,
    "precision": precision,
}
