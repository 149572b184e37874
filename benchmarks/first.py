"""What a user waits for before the first number: the first call of a process, compilation in, and the next ones."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import problems
from benchmarks.harness import Bar, Contestant, Outcome, Row, Settings, contest, skipped

DESCRIPTION = "first calls, each in a process of its own: cold, with a warm compilation cache, and again"

_MODULE = "benchmarks.contestants.first_calls"
# A cache that the environment names would answer in the compiler's place.
_COLD = (("JAX_ENABLE_COMPILATION_CACHE", "false"), ("JAX_COMPILATION_CACHE_DIR", ""))
_WARM = (("JAX_ENABLE_COMPILATION_CACHE", "true"), ("JAX_COMPILATION_CACHE_DIR", ""))
JAXEM = Contestant("jaxem", _MODULE, _COLD)
CACHED = Contestant("jaxem, cached", _MODULE, _WARM)
PLAIN = Contestant("plain EM", "benchmarks.contestants.plain_em", _COLD)
SKLEARN = Contestant("scikit-learn", "benchmarks.contestants.sklearn_gmm")
_MOST_SECONDS = 30.0


class Call(NamedTuple):
    """A call of `first_calls.CALLS`: words for the table, and seconds at 777cc8c, where they were measured.

    cached: whether it is also made with a warm compilation cache. against: another call, made beside it, and at most how
    many times as long as that one's this first call may take.
    """

    words: str
    first: float | None = None
    again: float | None = None
    cached: bool = True
    against: tuple[str, float] | None = None


_FULL_BEFORE = {5: 1.4, 20: 2.3, 40: 3.6, 80: 6.8}
_T_BEFORE = {5: None, 20: 6.9, 40: 9.5, 80: None}
#: "before" is commit 777cc8c on 2 cores, JAX 0.10.2, float32, an otherwise idle machine.
CALLS = {
    "gmm": Call("GMM full, iris, K=3, 1 start", 2.6, 0.02),
    "gmm_64": Call("GMM full, iris, K=3, 64 starts", 3.1, 0.10),
    "gmm_5000": Call("GMM full, 5 000 x 4, K=5, 64 starts", 7.9, 1.25),
    "batch": Call("fit_batch, 2 000 data sets of 200 x 2, K=3", 7.2, 1.6),
    "poisson_hmm": Call("Poisson HMM, earthquakes, K=3, 8 starts", 3.1, 0.02),
    "gaussian_hmm": Call("Gaussian HMM, faithful, K=3, 8 starts", 3.2, 0.08),
    "factors": Call("factor analysis, iris, 2 factors", 2.2, 0.01),
    "classes": Call("latent classes, values", 1.9, 0.01),
    "student_t": Call("Student t mixture, iris, K=3", 4.1, 0.03),
    "vev": Call("GMM VEV, iris, K=3", 3.2, 0.03),
    "missing": Call("GMM with missing cells, airquality, K=2", 4.0, 0.03),
    "squarem": Call("GMM full, Squarem, iris, K=3", 4.0, 0.03),
    "log_joint": Call("LogJoint, two normals", 3.0),
    "forward": Call("run of two components, jit", 3.0, cached=False),
    "gradient": Call("gradient of that run in a prior's strength", cached=False, against=("forward", 4)),
    **{f"full_{d}": Call(f"full covariance, K=1, 300 x {d}", s, cached=False) for d, s in _FULL_BEFORE.items()},
    "full_120": Call("full covariance, K=1, 300 x 120", 17.0, cached=False, against=("full_5", 2)),
    **{f"t_{d}": Call(f"Student t, K=1, 300 x {d}", s, cached=False) for d, s in _T_BEFORE.items()},
    "t_120": Call("Student t, K=1, 300 x 120", cached=False, against=("t_5", 2)),
}


def _fresh(contestant: Contestant, operation: str, options: dict, settings: Settings, arrays=None, calls: int = 3):
    """Outcomes of some processes one after the other, each of which makes the call ``calls`` times."""
    outcomes = []
    for _ in range(min(settings.repeats, 3)):
        outcome = contest([contestant], operation, arrays or {}, options, calls)[contestant.name]
        outcomes.append(outcome)
        if outcome.problem:
            break
    return outcomes


def _problem(outcomes: Sequence[Outcome]) -> Outcome | None:
    return next((outcome for outcome in outcomes if outcome.problem), None)


def _first(outcomes: Sequence[Outcome]) -> float:
    return statistics.median(outcome.answers[0]["seconds"] for outcome in outcomes)


def _again(outcomes: Sequence[Outcome]) -> float | None:
    later = [answer["seconds"] for outcome in outcomes for answer in outcome.answers[1:]]
    return statistics.median(later) if later else None


def _call(name: str) -> Callable[[Settings], list[Row]]:
    """The measure of one call."""

    def measure(settings: Settings) -> list[Row]:
        call = CALLS[name]
        cold = _fresh(JAXEM, "first_call", {"call": name}, settings)
        if bad := _problem(cold):
            return [skipped(call.words, "", f"jaxem {bad.problem}", error=not bad.missing)]
        row = Row(call.words, ours=_first(cold), opponent="before", theirs=call.first)
        row.runs = str(len(cold))
        row.details = {"again": _again(cold), "programs": cold[0].answers[0]["programs"], "before_again": call.again}
        row.details["runs"] = [outcome.details() for outcome in cold]
        if call.against is not None:
            _judge_against(row, *call.against, settings)
        elif call.first is not None:
            row.figure, row.bar = call.first / _first(cold), Bar(">=", 2, "x")
            row.passed = row.bar.met(row.figure)
        if call.cached and not settings.quick:
            _add_cached(row, name, settings)
        return [row]

    return measure


def _judge_against(row: Row, other: str, most: float, settings: Settings) -> None:
    """A first call as a multiple of another one's."""
    outcomes = _fresh(JAXEM, "first_call", {"call": other}, settings, calls=1)
    if bad := _problem(outcomes):
        row.notes.append(f"{CALLS[other].words} {bad.problem}")
        row.error = True
        return
    assert row.ours is not None
    row.figure, row.bar = row.ours / _first(outcomes), Bar("<=", most, "x")
    row.passed = row.bar.met(row.figure)
    row.notes.append(f"the figure is its first call over that of: {CALLS[other].words}, {_first(outcomes):.3g} s")


def _add_cached(row: Row, name: str, settings: Settings) -> None:
    """The same call in a process that finds its programs in a cache, which another process has filled."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"call": name, "cache": folder}
        filled = contest([CACHED], "first_call", {}, options, 1)[CACHED.name]
        warm = _fresh(CACHED, "first_call", options, settings, calls=1)
    if bad := _problem([filled, *warm]):
        row.notes.append(f"with a cache {bad.problem}")
        row.error = True
        return
    row.details["cached"], bar = _first(warm), Bar("<=", 0.6, " s")
    row.details["cached_bar"] = str(bar)
    row.passed = bar.met(_first(warm)) and row.passed is not False


def imports(settings: Settings) -> list[Row]:
    """What ``import jaxem`` adds to ``import jax``, in processes of their own."""
    outcomes = _fresh(JAXEM, "first_call", {"call": "gmm"}, settings, calls=0)
    if bad := _problem(outcomes):
        return [skipped("import jaxem", "", f"jaxem {bad.problem}", error=not bad.missing)]
    seconds, bar = statistics.median(outcome.facts["import_jaxem"] for outcome in outcomes), Bar("<=", 0.25, " s")
    row = Row("import jaxem, beyond import jax", ours=seconds, opponent="before", theirs=0.38)
    row.figure, row.figure_unit, row.bar, row.passed = seconds, "s", bar, bar.met(seconds)
    row.runs = str(len(outcomes))
    return [row]


def _other(contestant: Contestant, words: str) -> Callable[[Settings], list[Row]]:
    """The same mixture of iris by somebody else."""

    def measure(settings: Settings) -> list[Row]:
        rows = []
        for starts in (1, 64):
            options = {"k": 3, "starts": starts}
            outcomes = _fresh(contestant, "first_call", options, settings, {"x": problems.iris()})
            measure = f"{words}, iris, K=3, {starts} start{'s' if starts > 1 else ''}"
            if bad := _problem(outcomes):
                rows.append(skipped(measure, "", f"{contestant.name} {bad.problem}", error=not bad.missing))
                continue
            row = Row(measure, ours=_first(outcomes), runs=str(len(outcomes)), details={"again": _again(outcomes)})
            row.our_log_likelihood = outcomes[0].last("log_likelihood")
            rows.append(row)
        return rows

    return measure


def lengths(settings: Settings) -> list[Row]:
    """Data sets of as many lengths, 8 starts each, one after another, and scikit-learn on the same."""
    sets = settings.size(100, 3)
    options = {"sets": sets, "most_seconds": _MOST_SECONDS}
    own = contest([JAXEM], "one_by_one", {}, options, 1)["jaxem"]
    other = contest([SKLEARN], "one_by_one", {}, options, 1)[SKLEARN.name]
    measure = f"{sets} data sets of as many lengths, 8 starts each"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    answer, bar = own.answers[0], Bar("<=", 15, " s")
    row = Row(measure, ours=answer["seconds"], figure=answer["seconds"], figure_unit="s", bar=bar, runs="1")
    row.details = {"programs": answer["programs"], "jaxem": own.details()}
    done, many = answer["done"], answer["programs"]
    # The first twenty may compile; what the others add to memory is a leak.
    early = answer["bytes_at_20"]
    grown = (
        ""
        if early is None
        else f", memory {early / 1e6:.0f} MB after 20, {answer['bytes_at_end'] / 1e6:.0f} MB after {done}"
    )
    row.notes.append(f"{done} of {sets} data sets in {answer['seconds']:.3g} s, {many} programs (bar: <= 12){grown}")
    flat = early is None or answer["bytes_at_end"] <= 1.05 * early
    row.passed = done == sets and bar.met(answer["seconds"]) and many <= 12 and flat
    if other.problem:
        row.notes.append(f"scikit-learn {other.problem}")
    else:
        row.opponent, row.theirs = SKLEARN.name, other.median()
        row.notes.append(f"scikit-learn, n_init=8, all of them: {other.median():.3g} s")
    return [row]


def made_anew(settings: Settings) -> list[Row]:
    """A `LogJoint` made eight times from the same source and constants."""
    own = contest([JAXEM], "made_anew", {}, {}, 1)["jaxem"]
    measure = "a LogJoint made anew, 8 fits"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    each = own.answers[0]["each"]
    note = f"programs of each fit: {', '.join(map(str, each))} (bar: none after the first)"
    row = Row(measure, ours=own.median(), runs="1", passed=not any(each[1:]), notes=[note])
    row.details = {"programs": sum(each), "jaxem": own.details()}
    return [row]


def many_columns(settings: Settings) -> list[Row]:
    """Full covariances of more columns than anybody can want: an answer or a refusal."""
    columns = settings.size(5000, 50)
    own = contest([JAXEM], "many_columns", {}, {"columns": columns, "most_seconds": 20}, 1)["jaxem"]
    measure = f"GMM full, 50 x {columns}, K=2: answered or refused"
    if own.problem:
        return [skipped(measure, "", f"jaxem {own.problem}", error=not own.missing)]
    bar, seconds = Bar("<=", 10, " s"), own.median()
    row = Row(measure, ours=seconds, figure=seconds, figure_unit="s", bar=bar, passed=bar.met(seconds), runs="1")
    row.notes.append(f"it said: {own.last('said')}")
    return [row]


MEASURES: dict[str, Callable[[Settings], list[Row]]] = {
    "imports": imports,
    **{name: _call(name) for name in CALLS},
    "plain": _other(PLAIN, "minimal EM by hand"),
    "sklearn": _other(SKLEARN, "scikit-learn"),
    "lengths": lengths,
    "made_anew": made_anew,
    "many_columns": many_columns,
}

_EXPLANATION = (
    "before: seconds at 777cc8c, 2 cores, JAX 0.10.2, an otherwise idle machine\n"
    "figure: before / now, unless its unit or a note says otherwise"
)
_HEADER = ("call", "first", "again", "programs", "cached", "before", "again", "figure", "bar", "")


def _cell(value: Any, unit: str = " s") -> str:
    return "" if value is None else f"{value:.3g}{unit}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Row]) -> str:
    """One line per call: seconds now, with a warm cache, and at 777cc8c; numbered notes below."""
    notes: list[str] = []
    lines = [_HEADER]
    for row in rows:
        notes += row.notes
        marks = "".join(f" [{len(notes) - len(row.notes) + i}]" for i in range(1, len(row.notes) + 1))
        verdict = {True: "pass", False: "MISS", None: "error" if row.error else "-"}[row.passed]
        unit = "x" if row.figure_unit == "x" else f" {row.figure_unit}"
        bar = ", cached ".join(b for b in ("" if row.bar is None else str(row.bar), row.details.get("cached_bar")) if b)
        before = row.theirs if row.opponent == "before" else None
        own = [row.details.get(name) for name in ("again", "programs", "cached")]
        cells = (_cell(row.ours), *map(_cell, own), _cell(before), _cell(row.details.get("before_again")))
        lines.append((row.measure, *cells, _cell(row.figure, unit), bar, verdict + marks))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    body = [
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1])), line[-1]]
        ).rstrip()
        for line in lines
    ]
    body.insert(1, "-" * max(map(len, body)))
    return "\n".join([*body, "", _EXPLANATION, *(f"[{i}] {note}" for i, note in enumerate(notes, 1))])
