"""One GPU: mixtures of a million rows and more, a long chain, many small fits, precision of the products, carries."""

from __future__ import annotations

import functools

from benchmarks.harness import Bar, Contestant, Outcome, Row, Settings, contest, skipped

DESCRIPTION = "jaxem on a GPU: time against the card's roofline and its host's processors, memory, precision"

JAXEM = Contestant("jaxem", "benchmarks.contestants.jaxem_gpu")
PROCESSORS = Contestant("jaxem on the host's processors", JAXEM.module, (("JAX_PLATFORMS", "cpu"),))
# The processors get so many times fewer rows: an iteration's time is proportional to them.
_FEWER = 10


@functools.cache
def _device() -> tuple[str, str]:
    """The platform and the kind of what jaxem runs on; empty where it does not run."""
    facts = contest([JAXEM], "device", {}, {}, 0)["jaxem"].facts
    return facts.get("platform", ""), facts.get("kind", "")


def unavailable(settings: Settings) -> str:
    """Why there is nothing to measure; empty where there is something. Tiny sizes run anywhere."""
    if settings.quick or _device()[0] in ("gpu", "cuda", "rocm"):
        return ""
    return "gpu: no GPU is here, nothing is measured (--quick runs tiny sizes on the processors)"


def _alone(measure: str, outcome: Outcome) -> list[Row]:
    return [skipped(measure, "", f"jaxem {outcome.problem}", error=not outcome.missing)]


def _roofline(facts: dict, seconds: float) -> tuple[float | None, str]:
    """The least seconds that the card's operations and bytes allow, and the words for it."""
    if not facts["peaks"]:
        return None, f"no peak figures known for {facts['kind']}"
    bandwidth, operations = facts["peaks"]
    least = max(facts["flops"] / operations, facts.get("bytes", 0) / bandwidth)
    counted = f"{facts['flops'] / 1e12:.3g} Tflop, {facts.get('bytes', 0) / 1e9:.3g} GB"
    return least, f"{counted}; {facts['kind']}: {facts['flops'] / seconds / 1e12:.3g} Tflop/s reached"


def _mixture(settings: Settings, options: dict, bar: Bar | None) -> list[Row]:
    n, d, k = options["n"], options["d"], options["k"]
    measure = f"one iteration, {n} x {d}, K={k} {options['covariance']}"
    own = contest([JAXEM], "mixture", {}, {**options, "steps": settings.size(5, 1)}, settings.repeats)["jaxem"]
    if own.problem:
        return _alone(measure, own)
    seconds, peak = own.median(), own.last("peak_bytes")
    least, words = _roofline(own.facts, seconds)
    beyond = "" if peak is None else f"{(peak - own.facts['bytes_of_data']) / 1e9:.2f} GB beyond the data at the most; "
    rows = [
        Row(
            measure,
            ours=seconds,
            opponent="" if least is None else "the roofline",
            theirs=least,
            figure=1e3 * seconds,
            figure_unit="ms",
            bar=bar,
            our_log_likelihood=own.last("log_likelihood"),
            runs=str(len(own.answers)),
            passed=None if bar is None else bar.met(1e3 * seconds),
            notes=[f"{beyond}T {'kept' if own.facts['kept'] else 'rebuilt'}; {words}"],
            details={"jaxem": own.details()},
        )
    ]
    fewer = max(1, n // _FEWER)
    other = contest([PROCESSORS], "mixture", {}, {**options, "n": fewer, "steps": 1}, 1)[PROCESSORS.name]
    if other.problem:
        return [*rows, skipped("  the same", PROCESSORS.name, other.problem, error=not other.missing)]
    slow, wanted = other.median() * n / fewer, Bar(">=", 50, "x")
    rows.append(
        Row(
            "  the same",
            ours=seconds,
            opponent=PROCESSORS.name,
            theirs=slow,
            figure=slow / seconds,
            bar=wanted,
            runs="1",
            passed=wanted.met(slow / seconds),
            notes=[f"the processors had {fewer} rows, their time is times {n / fewer:g}"],
            details={PROCESSORS.name: other.details()},
        )
    )
    return rows


def diagonal(settings: Settings) -> list[Row]:
    """An iteration of many diagonal components."""
    options = {"n": settings.size(1_000_000, 3_000), "d": settings.size(128, 4), "k": settings.size(1024, 3)}
    return _mixture(settings, {**options, "covariance": "diagonal"}, Bar("<=", 60, " ms"))


def full(settings: Settings) -> list[Row]:
    """An iteration of full components on many rows."""
    options = {"n": settings.size(10_000_000, 3_000), "d": settings.size(32, 3), "k": settings.size(64, 3)}
    return _mixture(settings, {**options, "covariance": "full"}, None)


def blocks(settings: Settings) -> list[Row]:
    """Block sizes, and T kept or rebuilt."""
    options = {"n": settings.size(1_000_000, 3_000), "d": settings.size(128, 4), "k": settings.size(1024, 3)}
    options |= {"covariance": "diagonal", "sizes": [1000] if settings.quick else [8_000, 20_000, 50_000, 125_000]}
    own = contest([JAXEM], "blocks", {}, options, settings.repeats)["jaxem"]
    measure = f"blocks of {options['n']} x {options['d']}, K={options['k']}"
    if own.problem:
        return _alone(measure, own)
    rows = [Row(f"{measure}: {name}", ours=own.median(name), runs=str(len(own.answers))) for name in own.facts["names"]]
    rows += [skipped(f"{measure}: {name}", "", problem) for name, problem in own.facts["problems"].items()]
    rows[0].details = {"jaxem": own.details()}
    return rows


def chain(settings: Settings) -> list[Row]:
    """One long sequence: sequential against blocks of time."""
    options = {"steps": settings.size(1_000_000, 3_000), "k": settings.size(16, 3)}
    options |= {"blocks": [2] if settings.quick else [256, 4096], "sequential_steps": settings.size(20_000, 500)}
    own = contest([JAXEM], "chain", {}, options, settings.repeats)["jaxem"]
    measure = f"chain of {options['steps']}, K={options['k']}"
    if own.problem:
        return _alone(measure, own)
    rows = []
    for name in own.facts["names"]:
        seconds, bar = own.median(name), Bar("<=", 60, " ms") if name == "E-step" else None
        passed = None if bar is None else bar.met(1e3 * seconds)
        row = Row(f"{measure}: {name}", seconds, bar=bar, passed=passed, runs=str(len(own.answers)))
        row.figure, row.figure_unit = 1e3 * seconds, "ms"
        rows.append(row)
    rows[0].our_log_likelihood, rows[0].details = own.last("log_likelihood"), {"jaxem": own.details()}
    rows[-1].notes = [
        f"of {options['sequential_steps']} steps, times {options['steps'] / options['sequential_steps']:g}"
    ]
    return rows


def fits(settings: Settings) -> list[Row]:
    """Many small fits."""
    options = {"sets": settings.size(10_000, 10), "n": 200, "d": 2, "k": 3}
    own = contest([JAXEM], "fits", {}, options, settings.repeats)["jaxem"]
    measure = f"{options['sets']} fits of 200 x 2, K=3 full"
    if own.problem:
        return _alone(measure, own)
    return [
        Row(
            measure,
            ours=own.median(),
            figure=1e6 * own.median("per_fit"),
            figure_unit="µs",
            our_log_likelihood=own.last("log_likelihood"),
            runs=str(len(own.answers)),
            notes=[f"the figure is one fit's; {own.last('status')}"],
            details={"jaxem": own.details()},
        )
    ]


def precision(settings: Settings) -> list[Row]:
    """Both products at every precision: time, and error against float64."""
    options = {"n": settings.size(2**18, 2_000), "d": settings.size(128, 4), "k": settings.size(1024, 3)}
    own = contest([JAXEM], "precision", {}, options, settings.repeats)["jaxem"]
    if own.problem:
        return _alone("both products", own)
    rows = []
    for name, (potentials, sums) in own.facts["errors"].items():
        row = Row(f"both products, {options['n']} x {options['d']}: {name}", own.median(name), figure=potentials)
        row.figure_unit, row.runs = "", str(len(own.answers))
        row.notes = ["the figure is the largest error of log p(x | k); of the sums, relative: see the note of each"]
        row.notes.append(f"{name}: {sums:.2g}")
        rows.append(row)
    rows += [skipped(f"both products: {name}", "", problem) for name, problem in own.facts["problems"].items()]
    rows[0].details = {"jaxem": own.details()}
    return rows


def carry(settings: Settings) -> list[Row]:
    """What a careful carry between blocks costs."""
    options = {"n": settings.size(2**21, 4_096), "d": settings.size(32, 4), "k": settings.size(64, 3)}
    options["block"] = settings.size(2**14, 512)
    own = contest([JAXEM], "carry", {}, options, settings.repeats)["jaxem"]
    measure = f"sums over {options['n'] // options['block']} blocks"
    if own.problem:
        return _alone(measure, own)
    plain = own.median("plain")
    return [
        Row(
            f"{measure}: {name}",
            ours=own.median(name),
            opponent="plain",
            theirs=plain,
            figure=own.median(name) / plain,
            runs=str(len(own.answers)),
            notes=[f"{name}: error against the float64 carry {error:.2g}"],
            details={"jaxem": own.details()} if name == "compensated" else {},
        )
        for name, error in own.facts["errors"].items()
    ]


MEASURES = {
    "diagonal": diagonal,
    "full": full,
    "blocks": blocks,
    "chain": chain,
    "fits": fits,
    "precision": precision,
    "carry": carry,
}
