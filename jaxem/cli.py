"""The command ``jaxem``: fit a mixture to a data file and write down what was found.

Exit status: 0 done; 1 no start gave a usable fit, or memory ran out; 2 bad input; 130 interrupted. Whatever is wrong
with the input is one line on stderr. Everything slow to import is imported where it is used.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import math
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TextIO

import numpy as np

from jaxem import datasets, tables

if TYPE_CHECKING:
    from jaxem.result import Result
    from jaxem.select import Selection

DEFAULT_COMPONENTS = tuple(range(1, 10))
COVARIANCES = ("full", "diagonal", "spherical", "tied")

# More rows than this are fitted block by block: the responsibilities of all starts would fill the memory.
_CHUNKED_ROWS = 200_000
_MOST_COMPONENTS = 10_000
# The parameters of no more columns than this are printed; fit.json has them all.
_PRINTED_COLUMNS = 24


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (by default those of the process); returns the exit status."""
    try:
        args = _parser().parse_args(argv)
        with _warnings_as_lines():
            args.run(args)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except _Abandoned:
        _say("jaxem: interrupted")
        # The computation cannot be stopped and would be waited for, or crash, as the interpreter shuts down.
        sys.stdout.flush()
        os._exit(130)
    except KeyboardInterrupt:
        _say("jaxem: interrupted; files that were written are whole")
        return 130
    except CommandError as error:
        _say(f"jaxem: error: {error}")
        return error.status
    except MemoryError:
        _say("jaxem: error: out of memory")
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"jaxem: error: {where}{error.strerror or error}")
        return 2
    except ValueError as error:
        _say(f"jaxem: error: {_one_line(error)}")
        return 2
    return 0


class CommandError(Exception):
    """What went wrong, in one line for the person who typed the command, with the exit status that says so."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(_one_line(message))
        self.status = status


class _Abandoned(KeyboardInterrupt):
    """Interrupted while a computation is under way."""


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(text: str) -> None:
    """Print a result. A reader that has gone away, such as ``head``, does not stop the files from being written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  the process's own stdout from here on


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings about the fit become lines on stderr; those of libraries about their own affairs stay unsaid."""
    from jaxem.result import ConvergenceWarning

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"jaxem: warning: {_one_line(message)}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.showwarning = show
        yield


# Arguments.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import jax

        import jaxem

        print(f"jaxem {jaxem.__version__} (jax {jax.__version__})")
        parser.exit()


def _parser() -> _Parser:
    parser = _Parser(prog="jaxem", description="Fit mixtures by Expectation-Maximization.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands)
    listing = commands.add_parser("datasets", help="list the data sets that come with jaxem", allow_abbrev=False)
    listing.set_defaults(run=_list_datasets)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="fit a mixture to a data file",
        description="Fit a mixture from many starts at once, choose the number of components, and write the fit, the "
        "assignment of every row and a picture.",
        allow_abbrev=False,
    )
    fit.set_defaults(run=_fit_command)
    add = fit.add_argument
    add("data", metavar="DATA", help=f"a {', '.join(tables.endings())} file, or {', '.join(datasets.names())}")
    add("--model", choices=("gaussian", "poisson"), default="gaussian", help="what a component is (default: gaussian)")
    add("--components", type=_components, metavar="K", help="3, or 1:9, or 1,2,4 to choose among (default: 1:9)")
    add("--covariance", choices=COVARIANCES, help="structure of Gaussian components (default: full)")
    add("--starts", type=_count, default=64, metavar="S", help="starts for each number of components (default: 64)")
    add("--seed", type=_seed, default=0, help="of the random starts (default: 0)")
    add("--columns", type=_names, metavar="A,B", help="names or numbers from 0 (default: all that hold numbers)")
    add("--weights", metavar="COLUMN", help="the column that says how often each row counts")
    add("--tol", type=_not_negative, default=1e-6, help="the least gain per row worth a step (default: 1e-6)")
    add("--max-steps", type=_count, default=1000, metavar="STEPS", help="at most so many steps (default: 1000)")
    add("--criterion", choices=("bic", "aic", "icl"), default="bic", help="chooses among numbers of components")
    add("--prior", type=_not_negative, metavar="STRENGTH", help="a prior worth so many rows in every component")
    add("--dtype", choices=("float64", "float32"), default="float64", help="of the arithmetic (default: float64)")
    add("--output", type=Path, metavar="DIR", help="where to write (default: jaxem-NAME in the current directory)")
    add("--no-cache", action="store_true", help="keep no compiled programs for the next run")


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


# Progress.


class _Progress:
    """What is going on, on stderr: one line that is rewritten on a terminal, a line for every stage elsewhere."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.rewrites = stream.isatty()
        self.text = ""
        self.since = time.monotonic()

    def stage(self, text: str) -> None:
        self.text, self.since = text, time.monotonic()
        if self.rewrites:
            self.tick()
        else:
            print(f"jaxem: {text}", file=self.stream, flush=True)

    def tick(self) -> None:
        """Show for how long the stage has been going on."""
        if self.rewrites:
            line = f"jaxem: {self.text} … {time.monotonic() - self.since:.0f} s"
            print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", file=self.stream, flush=True)

    def clear(self) -> None:
        if self.rewrites:
            print("\r\x1b[K", end="", file=self.stream, flush=True)


def _in_background(compute: Callable[[], Any], progress: _Progress) -> Any:
    """Run ``compute`` beside the main thread, which stays able to show progress and to hear an interrupt."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = compute()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
            progress.tick()
    except KeyboardInterrupt:
        raise _Abandoned from None
    finally:
        progress.clear()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


# jaxem datasets


def _list_datasets(args: argparse.Namespace) -> None:
    for name in datasets.names():
        data = datasets.load(name)
        _show(f"{name:<20}{data.x.shape[0]:>5} rows: {', '.join(data.columns)}")
        _show(f"{'':<20}{data.description}")
        _show(f"{'':<20}{data.source}")


# jaxem fit


@dataclasses.dataclass(frozen=True)
class Input:
    """The data of a fit and what to call them."""

    name: str
    table: tables.Table

    @property
    def num_rows(self) -> int:
        return self.table.x.shape[0]

    @property
    def title(self) -> str:
        weighted = "" if self.table.weights is None else f", weights with sum {self.table.weights.sum():g}"
        columns = ", ".join(self.table.columns[:8]) + (", …" if len(self.table.columns) > 8 else "")
        return f"{self.name}: {self.num_rows} rows, {len(self.table.columns)} columns ({columns}){weighted}"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a fit gave: the best result, the choice it came from (None for one number of components), and p(z | x)."""

    best: Result
    selection: Selection | None
    responsibilities: np.ndarray


def _fit_command(args: argparse.Namespace) -> None:
    if args.model == "poisson" and args.covariance:
        raise CommandError("--covariance is for Gaussian components; Poisson ones have none")
    progress = _Progress(sys.stderr)
    progress.stage(f"reading {args.data}")
    data = _read(args)
    components = _check_components(args.components, data)
    progress.clear()
    for name, reason in data.table.left_out:
        _say(f"jaxem: note: column {name!r} is left out: {reason}")
    output = args.output or Path(f"jaxem-{data.name}")
    with _output_directory(output), _arithmetic(args.dtype), _compilation_cache(not args.no_cache):
        fitted = _fit(args, data, components, progress)
        _show(_report(data, fitted))
        progress.stage(f"writing {output}")
        written = _write(output, args, data, fitted)
        progress.clear()
    _show(f"wrote {', '.join(written)} in {output}{os.sep}")
    if "fit.png" not in written:
        _show('no picture: it needs matplotlib, pip install "jaxem[plot]"')


def _read(args: argparse.Namespace) -> Input:
    path = Path(args.data)
    if path.is_file():
        return Input(path.stem, tables.read(path, args.columns, args.weights))
    if args.data in datasets.names():
        weights = args.weights or datasets.entry(args.data).weights
        return Input(args.data, tables.read(datasets.path(args.data), args.columns, weights))
    if path.exists():
        raise CommandError(f"{path} is not a file")
    names = ", ".join(datasets.names())
    raise CommandError(f"there is no file {args.data!r}, nor a data set of that name; the data sets are {names}")


def _check_components(given: tuple[int, ...] | None, data: Input) -> tuple[int, ...]:
    """The numbers of components to try: as asked for, or as many of the default ones as there are rows."""
    weights = data.table.weights
    rows = data.num_rows if weights is None else int(np.count_nonzero(weights))
    if given is None:
        return tuple(k for k in DEFAULT_COMPONENTS if k <= max(rows, 1))
    if max(given) > rows:
        kind = "rows" if weights is None else "rows of positive weight"
        raise CommandError(f"{max(given)} components need at least as many rows; {data.name} has {rows} {kind}")
    return given


def _fit(args: argparse.Namespace, data: Input, components: tuple[int, ...], progress: _Progress) -> Fitted:
    import jax

    from jaxem.fit import report
    from jaxem.model import Data
    from jaxem.result import FitError

    x = data.table.x.astype(args.dtype)

    def compute() -> Fitted:
        # Whether 64 bits are allowed is a setting of each thread.
        with _arithmetic(args.dtype):
            return _compute(args, x, data.table.weights, components)

    fewest, most = min(components), max(components)
    what = f"{fewest} to {most} components" if fewest < most else f"{most} components"
    progress.stage(f"fitting {what} from {args.starts} starts on {jax.default_backend()}")
    try:
        fitted = _in_background(compute, progress)
        report(fitted.best, Data(x=x), None)
    except FitError as error:
        raise CommandError(str(error), status=1) from None
    except jax.errors.JaxRuntimeError as error:
        reason = (
            "out of memory: try fewer --starts, or --dtype float32" if "RESOURCE_EXHAUSTED" in str(error) else error
        )
        raise CommandError(str(reason), status=1) from None
    return fitted


def _compute(
    args: argparse.Namespace, x: np.ndarray, weights: np.ndarray | None, components: tuple[int, ...]
) -> Fitted:
    import jax

    import jaxem

    models = [_model(args, k, len(x)) for k in components]
    key = jax.random.key(args.seed)
    common = {"key": key, "num_starts": args.starts, "weights": weights, "tol": args.tol, "max_steps": args.max_steps}
    if len(models) > 1:
        selection = jaxem.select(models, x, criterion=args.criterion, on_failure="ignore", **common)
        best = selection.best
    else:
        selection, best = None, jaxem.fit(models[0], x, on_failure="ignore", **common)
    responsibilities = jax.jit(best.model.posterior)(best.params, x)
    return Fitted(best, selection, np.asarray(responsibilities))


def _model(args: argparse.Namespace, num_components: int, num_rows: int) -> Any:
    import jaxem

    if args.model == "poisson":
        family = jaxem.Poisson()
    else:
        structures = dict(zip(COVARIANCES, (jaxem.Full, jaxem.Diagonal, jaxem.Spherical, jaxem.Tied), strict=True))
        family = jaxem.Gaussian(structures[args.covariance or "full"]())
    model = jaxem.Mixture(family, num_components)
    if num_rows > _CHUNKED_ROWS:
        model = jaxem.Chunked(model)
    return jaxem.WithPrior(model, args.prior) if args.prior else model


# What the command changes in its process, and puts back.


def _arithmetic(dtype: str) -> contextlib.AbstractContextManager:
    """float64 where asked for: an application may allow it, where the library never does."""
    import jax

    return jax.enable_x64(dtype == "float64")


@contextlib.contextmanager
def _compilation_cache(wanted: bool) -> Iterator[None]:
    """Keep compiled programs in the user's cache directory: the second run of a kind starts at once."""
    directory = _cache_directory() if wanted else None
    if directory is None:
        yield
        return
    import jax

    # All programs: the many small ones together take as long to compile as the large one.
    settings = {"jax_compilation_cache_dir": str(directory), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _cache_directory() -> Path | None:
    """A directory that can be written to, or None: a command without a cache is only slower."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        directory = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "jaxem" / "xla"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


@contextlib.contextmanager
def _output_directory(path: Path) -> Iterator[None]:
    """A directory that can be written to, known before the fit begins; taken away again if nothing was written."""
    from jaxem.io import write_atomically

    created = not path.exists()
    if not created and not path.is_dir():
        raise CommandError(f"cannot write to --output {path}: it is not a directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".jaxem-{os.getpid()}"
        write_atomically(probe, lambda file: None)
        probe.unlink()
    except OSError as error:
        raise CommandError(f"cannot write to --output {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        if created:
            with contextlib.suppress(OSError):  # it is not empty: something was written
                path.rmdir()


# What is printed.


def _report(data: Input, fitted: Fitted) -> str:
    parts = [data.title]
    if fitted.selection is not None:
        parts.append(str(fitted.selection))
    parts += [str(fitted.best), _parameter_tables(fitted.best, data.table.columns)]
    return "\n\n".join(parts) + "\n"


def _parameter_tables(result: Result, columns: tuple[str, ...]) -> str:
    """The parameters of every component, a line each, as many columns side by side as the terminal has room for."""
    params = result.params
    shown = {"weight": np.asarray(params.latent.weights)[:, None]}
    pieces = [_cells("", {"component": [str(k) for k in range(len(params.latent.weights))]})]
    pieces += [_cells("", {name: _format(values[:, 0]) for name, values in shown.items()})]
    first = _side_by_side(pieces)
    groups = [_column_cells(result, i, name) for i, name in enumerate(columns[:_PRINTED_COLUMNS])]
    lines = [_join_lines(first, block) for block in _fill(groups, shutil.get_terminal_size((120, 24)).columns - 24)]
    if len(columns) > _PRINTED_COLUMNS:
        lines.append(f"… and {len(columns) - _PRINTED_COLUMNS} more columns: see fit.json")
    return "\n\n".join(lines)


def _column_cells(result: Result, i: int, name: str) -> list[str]:
    from jaxem import GaussianParams

    likelihood = result.params.likelihood
    if isinstance(likelihood, GaussianParams):
        spread = np.sqrt(_variances(result)[:, i])
        return _cells(name, {"mean": _format(likelihood.mean[:, i]), "sd": _format(spread)})
    return _cells(name, {"rate": _format(likelihood.rate[:, i])})


def _variances(result: Result) -> np.ndarray:
    """The variance of every feature in every component, [K, D], whatever the structure of the covariance."""
    from jaxem.plot import component_moments

    return np.diagonal(component_moments(result)[2], axis1=1, axis2=2)


def _format(values: Any) -> list[str]:
    return [f"{float(value):.5g}" for value in np.asarray(values)]


def _cells(title: str, columns: dict[str, list[str]]) -> list[str]:
    """Right-aligned columns under a common title, as lines of one width."""
    widths = {name: max(map(len, [name, *cells])) for name, cells in columns.items()}
    width = max(sum(widths.values()) + 2 * (len(columns) - 1), len(title))
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    lines = ["  ".join(cell.rjust(widths[name]) for name, cell in zip(columns, row, strict=True)) for row in rows]
    return [title.center(width).rstrip().ljust(width), *(line.rjust(width) for line in lines)]


def _side_by_side(blocks: list[list[str]]) -> list[str]:
    return ["   ".join(parts) for parts in zip(*blocks, strict=True)]


def _join_lines(first: list[str], block: list[str]) -> str:
    return "\n".join(line.rstrip() for line in _side_by_side([first, block]))


def _fill(groups: list[list[str]], width: int) -> Iterator[list[str]]:
    """Blocks of cells side by side, no wider than asked where that is possible."""
    row: list[list[str]] = []
    for group in groups:
        if row and sum(len(g[0]) + 3 for g in [*row, group]) > width:
            yield _side_by_side(row)
            row = []
        row.append(group)
    yield _side_by_side(row)


# What is written.


def _write(output: Path, args: argparse.Namespace, data: Input, fitted: Fitted) -> list[str]:
    """Write every file whole or not at all; returns their names."""
    from jaxem.io import save, write_atomically

    save(output / "fit.npz", fitted.best)
    written = ["fit.npz"]
    for name, content in (("fit.json", _json_bytes(args, data, fitted)), ("assignments.csv", _assignments(fitted))):
        write_atomically(output / name, lambda file, content=content: _put(file, content))
        written.append(name)
    if importlib.util.find_spec("matplotlib") is not None:
        from jaxem.plot import fit_picture, save_picture

        shown = fitted.best if fitted.selection is None else fitted.selection
        responsibilities, weights = fitted.responsibilities, data.table.weights
        figure = fit_picture(
            shown, data.table.x, data.table.columns, weights=weights, responsibilities=responsibilities, title=data.name
        )
        save_picture(output / "fit.png", figure)
        written.append("fit.png")
    return written


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _assignments(fitted: Fitted) -> bytes:
    """row, component, its probability, and the responsibility of every component, as csv."""
    responsibilities = fitted.responsibilities
    count = responsibilities.shape[1]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "component", "probability", *(f"responsibility_{k}" for k in range(count))])
    pattern = "%d,%d" + ",%.6g" * (count + 1) + "\n"
    components = responsibilities.argmax(axis=1).tolist()
    for row, (component, r) in enumerate(zip(components, responsibilities.tolist(), strict=True)):
        buffer.write(pattern % (row, component, r[component], *r))
    return buffer.getvalue().encode()


def _json_bytes(args: argparse.Namespace, data: Input, fitted: Fitted) -> bytes:
    return (json.dumps(_plain(_summary(args, data, fitted)), indent=2, allow_nan=False) + "\n").encode()


def _summary(args: argparse.Namespace, data: Input, fitted: Fitted) -> dict[str, Any]:
    """Everything about a fit that a person, or a program without jaxem, wants to read."""
    import jax

    import jaxem
    from jaxem.result import describe

    best, status = fitted.best, fitted.best.status
    settings = {name: value for name, value in vars(args).items() if name not in ("run", "version")}
    summary = {
        "jaxem": jaxem.__version__,
        "jax": jax.__version__,
        "settings": settings | {"output": None if args.output is None else str(args.output)},
        "data": {"name": data.name, "rows": data.num_rows, "columns": data.table.columns, "weight": best.weight},
        "model": describe(best.model),
        "components": best.model.num_components,
        "status": {"name": status.label, "text": status.text, "converged": best.converged, "steps": best.steps},
        "log_likelihood": best.log_likelihood,
        "objective": best.objective,
        "bic": best.bic,
        "aic": best.aic,
        "free_parameters": best.num_free_parameters,
        "degenerate_components": best.degenerate,
        "empty_components": best.empty,
        "parameters": best.params,
        "starts": _starts_summary(best),
    }
    if fitted.selection is not None:
        summary["selection"] = _selection_summary(fitted.selection)
    return summary


def _starts_summary(result: Result) -> dict[str, Any]:
    from jaxem.status import Status

    starts = result.starts
    values, counts = np.unique(starts.status, return_counts=True)
    return {
        "count": len(starts),
        "share_at_best": result.share_at_best(),
        "status": {Status(int(value)).label: int(count) for value, count in zip(values, counts, strict=True)},
        "objective": starts.objective,
        "steps": starts.steps,
    }


def _selection_summary(selection: Selection) -> dict[str, Any]:
    rows = [
        {
            "components": result.model.num_components,
            "log_likelihood": result.log_likelihood,
            "free_parameters": result.num_free_parameters,
            selection.criterion: value,
            "status": result.status.label,
        }
        for result, value in zip(selection.results, selection.values, strict=True)
    ]
    return {"criterion": selection.criterion, "chosen": selection.best.model.num_components, "candidates": rows}


def _plain(value: Any) -> Any:
    """A pytree as JSON has it: fields by name, arrays as nested lists, and null for what is not finite."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    sys.exit(main())
