"""The command: choose a suite, run its measures, print one table, write one JSON file."""

from __future__ import annotations

import argparse
import importlib
import sys

from benchmarks import guard, report
from benchmarks.harness import Settings

#: A suite is a module of this package with `DESCRIPTION` and `MEASURES` (name → function from Settings to rows), and, where
#: it has a picture, `draw` (rows → what to say of it); `unavailable` says why it cannot run here, if it cannot. `table` is
#: its own form of `report.table`. `guard` judges, so it has a command line of its own.
SUITES = ("fa", "first", "gmm", "gpu", "guard", "hmm", "lca", "missing", "scale", "stream", "variants")


def list_suites() -> None:
    print("python -m benchmarks SUITE [--only NAMES] [--repeats N] [--quick]\n")
    for name in SUITES:
        suite = importlib.import_module(f"benchmarks.{name}")
        print(f"  {name:<10} {suite.DESCRIPTION}")
        print(f"  {'':<10} measures: {', '.join(suite.MEASURES)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES)
    parser.add_argument("--only", default="", metavar="NAMES", help="measures, separated by commas; all by default")
    parser.add_argument("--repeats", type=int, help="runs of every contestant, 5 by default (quick: 1)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that the benchmark works, nothing else")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "guard" in arguments:
        return guard.main([word for word in arguments if word != "guard"])
    options = parse(arguments)
    if options.suite is None:
        list_suites()
        return 0
    suite = importlib.import_module(f"benchmarks.{options.suite}")
    names = [name for name in options.only.split(",") if name] or list(suite.MEASURES)
    unknown = [name for name in names if name not in suite.MEASURES]
    repeats = options.repeats if options.repeats is not None else 1 if options.quick else 5
    if unknown or repeats < 1:
        there_are = f"the measures are {', '.join(suite.MEASURES)}"
        wrong = f"{', '.join(unknown)} unknown; {there_are}" if unknown else "--repeats is at least 1"
        print(f"benchmarks: {wrong}", file=sys.stderr)
        return 2

    settings = Settings(repeats=repeats, quick=options.quick)
    if hasattr(suite, "unavailable") and (reason := suite.unavailable(settings)):
        print(reason)
        return 0
    rows = []
    for name in names:
        print(f"{options.suite}: {name} ...", file=sys.stderr, flush=True)
        own = suite.MEASURES[name](settings)
        for row in own if options.quick else ():
            row.passed = None
        print("".join(f"  {report.line(row)}\n" for row in own), end="", file=sys.stderr, flush=True)
        rows += own
    print(getattr(suite, "table", report.table)(rows))
    if options.quick:
        print("quick: sizes reduced, ratios mean nothing")
    else:
        print(f"written to {report.write(options.suite, rows, partial=bool(options.only))}")
        if hasattr(suite, "draw") and not options.only:
            print(suite.draw(rows))
    # A missed bar is a result, not an error; a contestant that broke down is one.
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
