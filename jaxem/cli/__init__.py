"""The command ``jaxem``: fit a model to a data file and write down what was found.

Exit status: 0 done; 1 no start gave a usable fit, or memory ran out; 2 bad input; 130 interrupted. Whatever is wrong
with the input is one line on stderr. What can be typed is in `arguments`, the models are in `models`; then `inputs`
reads, `fitting` fits, `report` prints and `files` writes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from jaxem import datasets
from jaxem.cli import arguments, files, fitting, inputs, models, report
from jaxem.cli.console import Abandoned, CommandError, Progress, one_line, say, show, warnings_as_lines
from jaxem.cli.process import arithmetic, compilation_cache, output_directory


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (by default those of the process); returns the exit status."""
    try:
        args = arguments.parser().parse_args(argv)
        with warnings_as_lines():
            _COMMANDS[args.command](args)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except Abandoned:
        say("jaxem: interrupted")
        # The computation cannot be stopped and would be waited for, or crash, as the interpreter shuts down.
        sys.stdout.flush()
        os._exit(130)
    except KeyboardInterrupt:
        say("jaxem: interrupted; files that were written are whole")
        return 130
    except CommandError as error:
        say(f"jaxem: error: {error}")
        return error.status
    except MemoryError:
        say("jaxem: error: out of memory")
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"jaxem: error: {where}{error.strerror or error}")
        return 2
    except ValueError as error:
        say(f"jaxem: error: {one_line(error)}")
        return 2
    return 0


def _list_datasets(args: argparse.Namespace) -> None:
    for name in datasets.names():
        data = datasets.load(name)
        show(f"{name:<20}{data.x.shape[0]:>5} rows: {', '.join(data.columns)}")
        show(f"{'':<20}{data.description}")
        show(f"{'':<20}{data.source}")


def _fit(args: argparse.Namespace) -> None:
    kind = models.choose(args)
    progress = Progress(sys.stderr)
    progress.stage(f"reading {args.data}")
    data = inputs.read(args, kind)
    components = inputs.check_components(args.components, kind, data)
    progress.clear()
    output = args.output or Path(f"jaxem-{data.name}")
    with output_directory(output), arithmetic(args.dtype), compilation_cache(not args.no_cache):
        fitted = fitting.fit(args, kind, data, components, progress)
        show(report.text(kind, data, fitted))
        progress.stage(f"writing {output}")
        written = files.write(output, args, kind, data, fitted)
        progress.clear()
    show(f"wrote {', '.join(written)} in {output}{os.sep}")
    if "fit.png" not in written:
        show('no picture: it needs matplotlib, pip install "jaxem[plot]"')


_COMMANDS = {"fit": _fit, "datasets": _list_datasets}
