"""What can be typed, and what it is turned into."""

from __future__ import annotations

import argparse
import contextlib
import math
from pathlib import Path
from typing import Any, NoReturn

import jax

import jaxem
from jaxem import datasets, tables
from jaxem.cli import models
from jaxem.cli.console import CommandError

_MOST_COMPONENTS = 10_000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"jaxem {jaxem.__version__} (jax {jax.__version__})")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command; ``command`` of what it returns is the subcommand."""
    parser = _Parser(prog="jaxem", description="Fit models by Expectation-Maximization.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_fit(commands)
    commands.add_parser("datasets", help="list the data sets that come with jaxem", allow_abbrev=False)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a model to a data file",
        description="Fit a model from many starts at once, choose the number of components, and write the fit, what it "
        "says of every row and a picture.",
        epilog=f"models, and the options of their own:\n{models.listing()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = fit.add_argument
    add("data", metavar="DATA", help=f"a {', '.join(tables.endings())} file, or {', '.join(datasets.names())}")
    add("--model", type=_model, default=models.DEFAULT, metavar="MODEL", help="see below (default: %(default)s)")
    add("--components", type=_components, metavar="K", help="3, or 1:9, or 1,2,4 to choose among (default: 1:9)")
    add("--starts", type=_count, default=64, metavar="S", help="starts for each number of components (default: 64)")
    add("--seed", type=_seed, default=0, help="of the random starts (default: 0)")
    add("--columns", type=_names, metavar="A,B", help="names or numbers from 0 (default: all that fit the model)")
    add("--weights", metavar="COLUMN", help="the column that says how often each row counts")
    add("--missing", action="store_true", help="treat empty cells, NA and NaN as missing, not as an error")
    add("--tol", type=_not_negative, default=1e-6, help="the least gain per row worth a step (default: 1e-6)")
    add("--max-steps", type=_count, default=1000, metavar="STEPS", help="at most so many steps (default: 1000)")
    add("--criterion", choices=("bic", "aic", "icl"), default="bic", help="chooses among numbers of components")
    add("--dtype", choices=("float64", "float32"), default="float64", help="of the arithmetic (default: float64)")
    add("--output", type=Path, metavar="DIR", help="where to write (default: jaxem-NAME in the current directory)")
    add("--no-cache", action="store_true", help="keep no compiled programs for the next run")

    own = fit.add_argument_group("options of some models").add_argument
    words = ", ".join(name for name in models.COVARIANCES if name.islower())
    own("--covariance", choices=tuple(models.COVARIANCES), metavar="NAME",
        help=f"of Gaussian components: {words}, or mclust's EII to VVV (default: full)")  # fmt: skip
    own("--prior", type=_not_negative, metavar="STRENGTH", help="a prior worth so many rows in every component")
    own("--noise", action="store_true", help="a component more, of uniform noise: takes rows that fit nowhere")
    own("--counts", type=_names, metavar="A,B", help="columns of counts among those of a mixed model")
    own("--categories", type=_names, metavar="A,B", help="columns whose numbers are categories, as words always are")
    own("--gate", type=_names, metavar="A,B", help="columns on which the weights of the components depend")
    own("--factors", type=_count, metavar="L", help="of every factor analyzer (default: 1)")
    own("--trials", type=_count, help="of every binomial count")
    own("--emission", choices=models.variants("emission"), metavar="NAME",
        help=f"what a state emits: {', '.join(models.variants('emission'))} (default: gaussian)")  # fmt: skip
    own("--response", metavar="COLUMN", help="the column that a regression explains by the others")
    own("--family", choices=models.variants("family"), help="of a regression (default: linear)")
    own("--rotation", choices=("varimax", "promax", "none"), help="of the loadings (default: varimax; of ppca none)")
    own("--sequence", metavar="COLUMN", help="the column that names the sequence of each row (default: one sequence)")
    own("--left-to-right", action="store_true", help="states follow one another; none is returned to")


def _model(text: str) -> str:
    name = models.canonical(text)
    if name is None:
        raise argparse.ArgumentTypeError(f"there is no model {text!r}; the models are {', '.join(models.MODELS)}")
    return name


def _components(text: str) -> tuple[int, ...]:
    expected = "expected a number (3), a range (1:9) or a list (1,2,4)"
    is_range = ":" in text
    try:
        numbers = [int(part) for part in text.split(":" if is_range else ",")]
    except ValueError:
        numbers = []
    if not numbers or (is_range and len(numbers) != 2):
        raise argparse.ArgumentTypeError(f"{expected}; got {text!r}")
    if min(numbers) < 1 or max(numbers) > _MOST_COMPONENTS:
        raise argparse.ArgumentTypeError(f"{expected}, from 1 to {_MOST_COMPONENTS}; got {text!r}")
    if not is_range:
        return tuple(sorted(set(numbers)))
    first, last = numbers
    if first > last:
        raise argparse.ArgumentTypeError(f"the range {text} is empty: {first} is more than {last}")
    return tuple(range(first, last + 1))


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 1 <= int(text) < 2**31:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number, at least 1; got {text!r}")


def _seed(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 <= int(text) < 2**32:
            return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}; got {text!r}")


def _not_negative(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a finite number, at least 0; got {text!r}")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names or numbers parted by commas; got {text!r}")
    return names
