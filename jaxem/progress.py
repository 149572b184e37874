"""What a long fit tells a person while it runs."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import jax
import numpy as np

from jaxem.status import Status

if TYPE_CHECKING:
    from jaxem.work import Work

# Where lines cannot be rewritten there is one in so many seconds.
_LINE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Report:
    """How far a fit is: handed to ``progress=`` after every slice.

    ticks: steps of the loop so far (of a stream, blocks), of ``unit``. lanes, lanes_done: how many there are at work, and
    how many have stopped. objective: the best so far, NaN before the first. rate: ticks per second. seconds: since the
    beginning. seconds_left: an estimate from the lanes that are done, None before the first of several is; at_most says
    that it is only the time until max_steps.
    """

    ticks: int
    unit: str
    lanes: int
    lanes_done: int
    objective: float
    rate: float
    seconds: float
    seconds_left: float | None = None
    at_most: bool = False

    def __str__(self) -> str:
        parts = [f"{self.ticks} {self.unit}s", f"{self.rate:.3g}/s"]
        if self.lanes > 1:
            parts.append(f"{self.lanes_done} of {self.lanes} lanes done")
        if math.isfinite(self.objective):
            parts.append(f"objective {self.objective:.8g}")
        if self.seconds_left is not None:
            parts.append(f"{'at most ' if self.at_most else ''}{_duration(self.seconds_left)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def report_of(work: Work, began: float, max_steps: int | None) -> Report:
    """What there is to say of a work now."""
    lanes = work.lanes
    status, objective, step = jax.device_get((lanes.status, lanes.objective, lanes.step))
    running = status == Status.RUNNING
    seconds = time.monotonic() - began
    rate = work.ticks / seconds if seconds > 0 else 0.0
    finite = objective[np.isfinite(objective)]
    done = int(np.sum(~running))
    left, at_most = None, False
    if done and len(status) > 1:
        left = seconds * (len(status) - done) / done
    elif max_steps is not None and len(status) == 1 and step[0] > 0:
        left, at_most = seconds * max(0, max_steps - int(step[0])) / int(step[0]), True
    best = float(np.max(finite)) if len(finite) else math.nan
    return Report(work.ticks, work.unit, len(status), done, best, rate, seconds, left, at_most)


class Reporter:
    """Where reports go: `show` after every slice, `close` at the end."""

    def show(self, report: Report) -> None:
        """Show how far the fit is."""

    def close(self) -> None:
        """The fit has ended."""


class Told(Reporter):
    """A function of the caller's."""

    def __init__(self, tell: Callable[[Report], Any]):
        self.show = tell  # type: ignore[method-assign]


class Lines(Reporter):
    """Plain lines, one in ten seconds; on a terminal one that is rewritten."""

    def __init__(self, stream: TextIO):
        self._stream, self._rewrites = stream, stream.isatty()
        self._last = -math.inf

    def show(self, report: Report) -> None:
        if self._rewrites:
            line = f"jaxem: {report}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
        elif time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            print(f"jaxem: {report}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._rewrites:
            print("\r\x1b[K", end="", file=self._stream, flush=True)


class Bar(Reporter):
    """A bar of tqdm: of lanes where there are several, of steps where there is one."""

    def __init__(self, tqdm: Any, stream: TextIO):
        self._tqdm, self._stream, self._bar = tqdm, stream, None

    def show(self, report: Report) -> None:
        if self._bar is None:
            several = report.lanes > 1
            total, unit = (report.lanes, "lane") if several else (None, report.unit)
            self._bar = self._tqdm(total=total, unit=unit, desc="jaxem", file=self._stream, leave=False)
        bar: Any = self._bar
        bar.n = report.lanes_done if report.lanes > 1 else report.ticks
        bar.set_postfix_str(str(report), refresh=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def reporter(progress: Any) -> Reporter | None:
    """What ``progress=`` asks for. Raises ValueError for anything but a boolean and a function."""
    if progress is False or progress is None:
        return None
    if callable(progress):
        return Told(progress)
    if progress is not True:
        raise ValueError(f"progress is True, False or a function that takes a jaxem.Report; got {progress!r}")
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]
        except ImportError:
            return Lines(sys.stderr)
        return Bar(tqdm, sys.stderr)
    return Lines(sys.stderr)
