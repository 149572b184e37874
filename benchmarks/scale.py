"""Many fits in bounded memory, and numbers of components in one program."""

from __future__ import annotations

import numpy as np

from benchmarks import problems
from benchmarks.harness import Bar, Contestant, Row, Settings, contest, faster, skipped

DESCRIPTION = "ten thousand data sets with eight starts each; sweeps over K in one program"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_scale")
K_BY_K = Contestant("K by K", "benchmarks.contestants.jaxem_scale")
SKLEARN = Contestant("scikit-learn", "benchmarks.contestants.sklearn_gmm")
_ONE_THREAD = (("OMP_NUM_THREADS", "1"), ("OPENBLAS_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1"))
SKLEARN_ONE = Contestant("scikit-learn, 1 thread", SKLEARN.module, _ONE_THREAD)

_TOL = 1e-4


def many(settings: Settings) -> list[Row]:
    """Data sets x starts, all to convergence; scikit-learn has the first of them, and is compared fit by fit."""
    sets, starts, some = settings.size(10_000, 12), 8, settings.size(50, 2)
    data = [problems.mixture(i, 200, 2, 3, spread=3.0) for i in range(sets)]
    begin = [problems.starts(i, x, 3, starts) for i, x in enumerate(data)]
    arrays = {"x": np.stack(data)} | {name: np.stack([one[name] for one in begin]) for name in begin[0]}
    first = {"x": np.repeat(arrays["x"][:some], starts, axis=0)}
    first |= {name: array[:some].reshape(-1, *array.shape[2:]) for name, array in arrays.items() if name != "x"}
    options = {"tol": _TOL, "max_steps": 1000, "some": some}
    outcomes = contest([JAXEM], "many", arrays, options, settings.repeats)
    others = contest([SKLEARN, SKLEARN_ONE], "batch", first, options, min(settings.repeats, 3))
    for outcome in others.values():
        for answer in outcome.answers:
            answer["seconds"] /= some * starts
            del answer["steps"]  # of some of the fits only
    measure = f"{sets} data sets x {starts} starts, 200 x 2, K=3 full, per fit"
    rows = faster(measure, outcomes | others, {SKLEARN.name: 60, SKLEARN_ONE.name: 60}, agreement=1e-3)
    own = outcomes["jaxem"]
    if not own.problem:
        beyond, bar = own.last("bytes_beyond_data") / 1e9, Bar("<=", 2.0, " GB")
        imports = own.last("bytes_of_imports") / 1e9
        note = f"all of them take {own.median('total'):.3g} s; imports and runtime, {imports:.2f} GB, are in"
        rows.append(
            Row(
                "  memory beyond the data",
                figure=beyond,
                figure_unit="GB",
                bar=bar,
                passed=bar.met(beyond),
                notes=[note],
            )
        )
    return rows


def _sweep(name: str, measure: str, settings: Settings, options: dict, arrays: problems.Arrays) -> list[Row]:
    own = contest([JAXEM], f"sweep_{name}", arrays, options, settings.repeats)["jaxem"]
    other = contest([K_BY_K], f"each_{name}", arrays, options, settings.repeats)["K by K"]
    for outcome in (own, other):
        if outcome.problem:
            return [skipped(measure, "", outcome.problem, error=not outcome.missing)]
    rows, bar = [], Bar(">=", 2, "x")
    for what in ("first call, compilation in", "called again"):
        first = what.startswith("first")
        ours = own.facts["compile_seconds"] if first else own.median()
        theirs = other.facts["compile_seconds"] if first else other.median()
        rows.append(
            Row(
                f"{measure}, {what}",
                ours=ours,
                opponent=K_BY_K.name,
                theirs=theirs,
                figure=theirs / ours,
                bar=bar,
                our_log_likelihood=own.last("log_likelihood"),
                their_log_likelihood=other.last("log_likelihood"),
                passed=bar.met(theirs / ours),
                details={"one program": own.details(), "each": other.details()},
            )
        )
    return rows


def mixtures(settings: Settings) -> list[Row]:
    """Gaussian mixtures of 1 to 16 components, 32 starts each."""
    n, most, starts = settings.size(5_000, 200), settings.size(16, 3), settings.size(32, 2)
    arrays = {"x": problems.mixture(11, n, 2, 5, spread=3.0)}
    options = {"most": most, "starts": starts, "tol": _TOL}
    return _sweep("mixtures", f"mixtures, K=1..{most}, {starts} starts, {n} x 2 full", settings, options, arrays)


def chains(settings: Settings) -> list[Row]:
    """Hidden Markov models of 1 to 8 states, 8 starts each."""
    count, most, starts = settings.size(50, 4), settings.size(8, 3), settings.size(8, 2)
    arrays = {"x": problems.sequences(12, count, 100, 2, 4, spread=2.0)["x"]}
    options = {"most": most, "starts": starts, "tol": _TOL}
    measure = f"hidden Markov models, K=1..{most}, {starts} starts, {count} x 100"
    return _sweep("chains", measure, settings, options, arrays)


MEASURES = {"many": many, "mixtures": mixtures, "chains": chains}
