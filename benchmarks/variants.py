"""EM's variants against each other, and against what one would do without EM: optax on the marginal likelihood."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np

from benchmarks import problems
from benchmarks.harness import ROOT, Bar, Contestant, Outcome, Row, Settings, contest, skipped
from benchmarks.report import RESULTS

DESCRIPTION = "E-steps and seconds of every variant of EM, and of Adam and L-BFGS on the likelihood, to one objective"

# Matrices here are tiny: the threads that the BLAS of JAX on CPU starts for them only wait for each other.
_ENVIRONMENT = (("JAX_ENABLE_X64", "1"), ("OPENBLAS_NUM_THREADS", "1"))
JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_variants", _ENVIRONMENT)
# What a user reaches for first; the other variants have reasons of their own.
_CONTENDERS = ("em", "accelerated")
_REFERENCE = ROOT / "tests" / "data" / "reference"


def _race(title: str, arrays: problems.Arrays, settings: Settings, picture: bool = False, **options: Any) -> list[Row]:
    """One row per variant; then the fastest of EM and its accelerators against each optimizer of the likelihood."""
    options = {"limit": settings.size(50_000, 1_000), "traces": picture and not settings.quick, **options}
    options |= {"quick": settings.quick, "few": settings.quick or options.get("few", False)}
    own = contest([JAXEM], "race", arrays, options, settings.repeats)["jaxem"]
    if own.problem:
        return [skipped(title, "", own.problem, error=not own.missing)]
    outcomes, seconds = own.facts["outcomes"], _medians(own)
    rows = []
    for name, outcome in outcomes.items():
        unit = "gradients" if outcome["kind"] == "marginal" else "E-steps"
        row = Row(f"{title}: {name}", our_log_likelihood=outcome["log_likelihood"], runs=str(_count(own, name)))
        if outcome["reached"]:
            row.ours, row.figure, row.figure_unit = seconds[name], outcome["evaluations"], unit
        else:
            row.notes.append(_missing(outcome, unit))
        row.details = {**outcome, "seconds": [answer["seconds"].get(name) for answer in own.answers]}
        rows.append(row)
    rows[0].details |= {key: own.facts[key] for key in ("optimum", "target", "size", "versions")}
    rows[0].details["traces"] = own.facts.get("traces")
    return rows + _against_optax(title, outcomes, seconds)


def _missing(outcome: dict[str, Any], unit: str) -> str:
    where = "at rest at a lower optimum" if outcome["steepest"] < 1e-8 else "not there"
    return f"{where} in {outcome['evaluations']} {unit}"


def _medians(own: Outcome) -> dict[str, float]:
    """Slow programs ran once; the worker then repeats their seconds."""
    return {
        name: float(np.median([answer["seconds"][name] for answer in own.answers]))
        for name in own.answers[0]["seconds"]
    }


def _count(own: Outcome, name: str) -> int:
    return len({answer["seconds"][name] for answer in own.answers})


def _against_optax(title: str, outcomes: dict[str, Any], seconds: dict[str, float]) -> list[Row]:
    ours = {n: seconds[n] for n, o in outcomes.items() if o["kind"] in _CONTENDERS and o["reached"]}
    rows = []
    for name, outcome in outcomes.items():
        if outcome["kind"] != "marginal":
            continue
        row = Row(f"{title}: first is", opponent=name, bar=Bar(">=", 1, "x"))
        row.their_log_likelihood = outcome["log_likelihood"]
        if ours:
            fastest = min(ours, key=lambda n: ours[n])
            row.measure += f" {fastest}"
            row.ours, row.our_log_likelihood = ours[fastest], outcomes[fastest]["log_likelihood"]
        if outcome["reached"]:
            row.theirs = seconds[name]
            row.figure = row.theirs / row.ours if row.ours else None
        else:
            row.notes.append(f"{name}: {_missing(outcome, 'gradients')}")
        if ours or outcome["reached"]:
            row.passed = bool(ours) and (row.figure is None or row.figure >= 1)
        rows.append(row)
    return rows


# The problems of SQUAREM's vignette, and of a mixture on which EM takes far longer.


def _reference(problem: str, file: str, value: str, count: str) -> tuple[problems.Arrays, dict[str, Any]]:
    """Values [M, 1], how often each was seen [M], and the start's free weights and other parameters."""
    case = json.loads((_REFERENCE / "acceleration-squarem.json").read_text())
    (fit,) = (one for one in case["fits"] if one["id"] == problem)
    with (_REFERENCE / "data" / file).open() as lines:
        table = np.array([[float(row[value]), float(row[count])] for row in csv.DictReader(lines)])
    k = (len(fit["start"]) + 1) // 2
    weights, rest = np.array(fit["start"][: k - 1]), np.array(fit["start"][k - 1 :])
    weights = np.append(weights, 1 - weights.sum())
    return {"x": table[:, :1], "counts": table[:, 1], "weights": weights, "start": rest[:, None]}, fit


def _counts(
    title: str, arrays: problems.Arrays, settings: Settings, fit: dict[str, Any], **options: Any
) -> tuple[Outcome, list[Row]]:
    """One row per algorithm, to the vignette's tolerance; the same optimum as the file's to 1e-9."""
    options |= {"tol": fit["tol"], "limit": 50_000}
    own = contest([JAXEM], "counts", arrays, options, settings.repeats)["jaxem"]
    if own.problem:
        return own, [skipped(title, "", own.problem, error=not own.missing)]
    best, seconds = max(run["loglik"] for run in fit["runs"]), _medians(own)
    size = float(arrays["counts"].sum())
    rows = []
    for name, found in own.facts["fits"].items():
        each = found["log_likelihood"] / size
        row = Row(f"{title}: {name}", ours=seconds[name], figure=found["steps"], figure_unit="E-steps")
        row.our_log_likelihood, row.opponent, row.their_log_likelihood = each, "the file", best / size
        row.runs, row.details = str(len(own.answers)), found
        if not abs(found["log_likelihood"] - best) <= 1e-9 * abs(best):
            row.notes.append("not the file's optimum")
        rows.append(row)
    return own, rows


def _judge(row: Row, bar: Bar, figure: float) -> None:
    row.bar, row.passed = bar, bar.met(figure) and not row.notes


def hasselblad(settings: Settings) -> list[Row]:
    """Deaths per day, two Poisson components, from the vignette's start."""
    arrays, fit = _reference("poisson-deaths-vignette-start", "hasselblad_deaths.csv", "deaths", "days")
    arrays["rates"] = arrays.pop("start")
    title = "Hasselblad, 2 Poisson"
    own, rows = _counts(f"{title}, change below 1e-8", arrays, settings, fit, problem="poisson")
    if not own.problem:
        by_name = dict(zip(own.facts["fits"], rows, strict=True))
        for name, most in {"EM": 2930, "Squarem": 75, "Anderson": 60}.items():
            _judge(by_name[name], Bar("<=", most), own.facts["fits"][name]["steps"])
    return rows if settings.quick else rows + _race(title, arrays, settings, problem="poisson")


def saxony(settings: Settings) -> list[Row]:
    """Boys among twelve children, three binomial components: EM takes many thousand steps."""
    if settings.quick:
        return []
    arrays, fit = _reference("binomial-saxony-K3", "saxony.csv", "males", "families")
    arrays["probs"] = arrays.pop("start")
    title, options = "Saxony, 3 binomial", {"problem": "binomial", "trials": 12}
    own, rows = _counts(f"{title}, change below 1e-8", arrays, settings, fit, **options)
    if not own.problem:
        rows += _shares(title, own, _medians(own))
    return rows + _race(title, arrays, settings, **options)


def _shares(title: str, own: Outcome, seconds: dict[str, float]) -> list[Row]:
    """What the accelerators save of EM's E-steps and of its time."""
    fits, rows = own.facts["fits"], []
    for name in list(fits)[1:]:
        steps, time = fits["EM"]["steps"] / fits[name]["steps"], seconds["EM"] / seconds[name]
        for what, ratio, least in (("E-steps", steps, 15), ("time", time, 8)):
            bar = Bar(">=", least, "x")
            row = Row(f"{title}: EM's {what} over that of {name}", figure=ratio, bar=bar, passed=bar.met(ratio))
            rows.append(row)
    return rows


# Problems of ordinary size.


def gmm(settings: Settings) -> list[Row]:
    """Components that overlap."""
    if settings.quick:
        return []
    x = problems.mixture(3, 5_000, 4, 4, spread=0.9)
    arrays = {"x": x, **problems.starts(3, x, 4, 1)}
    rows = _race("GMM, 5000 x 4, K=4", arrays, settings, picture=True, problem="gmm")
    x = problems.mixture(1, 5_000, 2, 3, spread=1.2)
    arrays = {"x": x, **problems.starts(1, x, 3, 1)}
    return rows + _race("GMM, 5000 x 2, K=3", arrays, settings, problem="gmm", few=True)


def hmm(settings: Settings) -> list[Row]:
    """States whose emissions overlap."""
    if settings.quick:
        return []
    arrays = problems.sequences(0, 20, 250, 1, 3, spread=1.0)
    return _race("HMM, 20 x 250, K=3", arrays, settings, picture=True, problem="hmm")


def plateau(settings: Settings) -> list[Row]:
    """States hardly told apart: a long way on which the likelihood hardly rises."""
    if settings.quick:
        return []
    arrays = problems.sequences(1, 20, 250, 1, 3, spread=0.7)
    title, options = "HMM with a plateau, 20 x 250, K=3", {"problem": "hmm", "few": True, "limit": 3_000}
    return _race(title, arrays, settings, **options)


def factors(settings: Settings) -> list[Row]:
    """Factor analysis with weak factors, by Rubin and Thayer's EM and with the default's expanded parameters."""
    n, size = settings.size(500, 200), 4
    arrays = problems.factors(0, n, 12, size, strength=0.4)
    title = f"FA, {n} x 12, {size} factors"
    return _race(title, arrays, settings, picture=True, problem="factors", factors=size)


# Models from their log joint.


def _log_joint(title: str, arrays: problems.Arrays, settings: Settings, problem: str) -> list[Row]:
    options = {"problem": problem, "limit": settings.size(20_000, 1_000), "quick": settings.quick}
    own = contest([JAXEM], "log_joint", arrays, options, settings.repeats)["jaxem"]
    if own.problem:
        return [skipped(title, "", own.problem, error=not own.missing)]
    sides, seconds = own.facts["sides"], _medians(own)
    rows = []
    bars = {"log joint": Bar("<=", 20, "x"), "log joint, Anderson": None}
    for name, bar in ((name, bar) for name, bar in bars.items() if name in sides):
        row = Row(f"{title} as a {name}", ours=seconds[name], opponent="closed form, EM", theirs=seconds["closed"])
        row.figure, row.bar, row.runs = seconds[name] / seconds["closed"], bar, str(len(own.answers))
        row.our_log_likelihood = sides[name]["log_likelihood"]
        row.their_log_likelihood = sides["closed"]["log_likelihood"]
        reached = sides[name]["reached"] and sides["closed"]["reached"]
        if bar is not None:
            row.passed = bar.met(row.figure) and reached
        if not reached:
            row.notes.append("not within 1e-6 of the optimum")
        row.notes.append(
            f"{title}, E-steps: {sides[name]['evaluations']}, closed form {sides['closed']['evaluations']}"
        )
        rows.append(row)
    rows[0].details = own.details()
    rows[0].notes.append(f"{title}, one of each: " + "; ".join(_profile(own, side) for side in ("closed", "log joint")))
    return rows


def _profile(own: Outcome, side: str) -> str:
    parts = own.answers[0]["parts"][side]
    medians = {part: np.median([answer["parts"][side][part] for answer in own.answers]) for part in parts}
    return f"{side} " + ", ".join(f"{part} {1e3 * t:.2g} ms" for part, t in medians.items())


def gmm_log_joint(settings: Settings) -> list[Row]:
    """A Gaussian mixture written as a log joint, against its closed form."""
    n = settings.size(5_000, 300)
    x = problems.mixture(1, n, 2, 3, spread=1.2)
    arrays = {"x": x, **problems.starts(1, x, 3, 1)}
    return _log_joint(f"GMM, {n} x 2, K=3", arrays, settings, "gmm")


def hmm_log_joint(settings: Settings) -> list[Row]:
    """The same of a hidden Markov model."""
    steps = settings.size(5_000, 300)
    arrays = problems.sequences(0, 1, steps, 1, 3, spread=1.0)
    return _log_joint(f"HMM, {steps} steps, K=3", arrays, settings, "hmm")


MEASURES = {
    "hasselblad": hasselblad,
    "saxony": saxony,
    "gmm": gmm,
    "hmm": hmm,
    "factors": factors,
    "gmm_log_joint": gmm_log_joint,
    "hmm_log_joint": hmm_log_joint,
    "plateau": plateau,
}


# The picture.

_COLORS = {"EM": "0.45", "Squarem": "C0", "Anderson": "C2", "Adam": "C1", "L-BFGS": "C3"}


def draw(rows: list[Row]) -> str:
    """``results/variants.png``: how far from the optimum, after how many evaluations. Its name, or why there is none."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return "no picture: matplotlib is not installed"
    panels = [(row.measure.rpartition(":")[0], row.details["traces"]) for row in rows if row.details.get("traces")]
    if not panels:
        return "no picture: nothing was traced"
    figure = Figure(figsize=(3.1 * len(panels), 2.7), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, traces) in zip(axes, panels, strict=True):
        for name, points in traces.items():
            steps, gaps = np.array(points).T
            dashed = "--" if name in ("Adam", "L-BFGS") else "-"
            axis.loglog(steps, np.maximum(gaps, 1e-10), dashed, color=_COLORS[name], linewidth=1.4, label=name)
        axis.axhline(1e-6, color="0.8", linewidth=0.8, zorder=0)
        axis.set_ylim(1e-9, None)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("E-steps, or gradients", fontsize=8)
        axis.tick_params(labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("log-likelihood below the optimum,\nper example", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "variants.png", dpi=110)
    return "drawn to benchmarks/results/variants.png"
