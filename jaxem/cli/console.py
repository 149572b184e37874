"""Talking to the person at the terminal: results on stdout, everything else in single lines on stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from jaxem.result import ConvergenceWarning


class CommandError(Exception):
    """What went wrong, in one line for the person who typed the command, with the exit status that says so."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(one_line(message))
        self.status = status


class Abandoned(KeyboardInterrupt):
    """Interrupted while a computation is under way."""


def one_line(message: object) -> str:
    return " ".join(str(message).split())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result. A reader that has gone away, such as ``head``, does not stop the files from being written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  the process's own stdout from here on


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Warnings about the fit become lines on stderr; those of libraries about their own affairs stay unsaid."""

    def line(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"jaxem: warning: {one_line(message)}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.showwarning = line
        yield


class Progress:
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


def in_background(compute: Callable[[], Any], progress: Progress) -> Any:
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
        raise Abandoned from None
    finally:
        progress.clear()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
