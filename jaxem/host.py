"""The host's side of a long fit: slices of the compiled loop, and between them progress, checkpoints and Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem import checkpoint as files
from jaxem import orbax_store
from jaxem.checkpoint import Checkpoint
from jaxem.progress import Reporter, report_of, reporter
from jaxem.work import Work

_log = logging.getLogger("jaxem")
# A slice should last so long: short enough to answer Ctrl-C, long enough to cost nothing.
_SLICE_SECONDS = 0.5
_LARGEST_BUDGET = 2**24
# A slice that takes this many times as long as the one before, and at least so long, is said.
_FAR_LONGER = 20.0
_LONG_SECONDS = 60.0


class Watch:
    """What is done between the slices of a fit: tell, write down, go on from what was written.

    progress, checkpoint, resume: as of `jaxem.fit`. asked: a fingerprint of what the fit was asked, computed only where a
    file is concerned.
    """

    def __init__(
        self,
        progress: Any = False,
        checkpoint: str | os.PathLike | Checkpoint | None = None,
        resume: str | os.PathLike | Checkpoint | None = None,
        max_steps: int | None = None,
    ):
        self._reporter: Reporter | None = reporter(progress)
        self._max_steps = max_steps
        self._resume = _as_checkpoint("resume", resume)
        own = _as_checkpoint("checkpoint", checkpoint)
        if own is not None and self._resume is None and _store(own).exists(own.path):
            raise ValueError(
                f"there is a checkpoint at {os.fspath(own.path)} already: resume= goes on from it; "
                "to begin anew, remove it or give another path"
            )
        self._file = own or self._resume
        if self._file is not None and not Path(self._file.path).absolute().parent.is_dir():
            raise ValueError(f"there is no directory for the checkpoint {os.fspath(self._file.path)}")
        self._asked: dict[str, str] = {}
        self._began = self._written = time.monotonic()
        self._written_ticks = 0

    def begin(self, work: Work, asked: Callable[[], dict[str, str]]) -> None:
        """Go on from the checkpoint, where one is to be resumed and there."""
        self._began = self._written = time.monotonic()
        if self._file is None:
            return
        self._asked = asked()
        if self._resume is None:
            return
        path, store = self._resume.path, _store(self._resume)
        if store.exists(path):
            found = store.read(path)
            files.check_asked(path, found.asked, self._asked)
            work.restore(found.place, store.rebuilt(path, found, work.expect(found.place)))
            self._written_ticks = work.ticks

    def most(self, work: Work) -> int:
        """The largest budget that does not run past the next checkpoint."""
        if self._file is None or self._file.steps is None:
            return _LARGEST_BUDGET
        return max(1, self._written_ticks + self._file.steps - work.ticks)

    def after(self, work: Work) -> None:
        """After a slice."""
        if self._reporter is not None:
            self._reporter.show(report_of(work, self._began, self._max_steps))
        if self._file is not None and self._due(self._file, work):
            self._write(work)

    def end(self, work: Work) -> None:
        """At the end, or the interruption, of the fit."""
        if self._reporter is not None:
            self._reporter.close()
        if self._file is not None:
            self._write(work)

    def _due(self, file: Checkpoint, work: Work) -> bool:
        if file.steps is not None and work.ticks - self._written_ticks >= file.steps:
            return True
        return file.seconds is not None and _agreed(time.monotonic() - self._written >= file.seconds, np.max)

    def _write(self, work: Work) -> None:
        assert self._file is not None
        if self._file.sharded:
            orbax_store.write(self._file.path, self._asked, work.place, work.state)
        else:
            place, state = work.place, work.gathered(work.state)
            if jax.process_index() == 0:
                files.write(self._file.path, self._asked, place, state)
        self._written, self._written_ticks = time.monotonic(), work.ticks


def _store(file: Checkpoint) -> Any:
    """The module that reads and writes such checkpoints."""
    return orbax_store if file.sharded else files


def _as_checkpoint(name: str, value: Any) -> Checkpoint | None:
    if value is None or isinstance(value, Checkpoint):
        return value
    if isinstance(value, (str, os.PathLike)):
        return Checkpoint(value)
    raise ValueError(f"{name} is a path or a jaxem.Checkpoint; got {value!r}")


def drive(work: Work, watch: Watch, asked: Callable[[], dict[str, str]]) -> bool:
    """Carry the work to its end, slice by slice. True where it was interrupted before.

    The first Ctrl-C ends the work after the slice at hand; the second one is a KeyboardInterrupt, as usual.
    """
    watch.begin(work, asked)
    pace = _Pace(work.first_budget)
    with _interrupts() as interrupted:
        while not work.finished and not pace.agreed_to_stop(interrupted.is_set()):
            budget = pace.agreed_budget(watch.most(work))
            began = time.monotonic()
            with pace.watched(budget, work.unit):
                work.forward(budget)
            pace.after(budget, time.monotonic() - began)
            watch.after(work)
        watch.end(work)
        return not work.finished


def _agreed(value: Any, among: Callable[[np.ndarray], Any]) -> Any:
    """One value for all processes: what ``among`` makes of theirs."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return among(np.ravel(multihost_utils.process_allgather(np.int32(value))))


class _Pace:
    """How many units a slice has, so that slices last about as long as they should; the same in every process."""

    def __init__(self, first_budget: int):
        self._budget = first_budget
        self._last: float | None = None

    def agreed_to_stop(self, wanted: bool) -> bool:
        return bool(_agreed(wanted, np.max))

    def agreed_budget(self, most: int) -> int:
        return int(_agreed(min(self._budget, most), np.min))

    def after(self, budget: int, seconds: float) -> None:
        self._last = seconds
        if seconds < _SLICE_SECONDS / 4:
            self._budget = min(4 * max(budget, self._budget), _LARGEST_BUDGET)
        elif seconds > 2 * _SLICE_SECONDS:
            self._budget = max(1, int(budget * _SLICE_SECONDS / seconds))

    @contextlib.contextmanager
    def watched(self, budget: int, unit: str) -> Iterator[None]:
        """Say so where a slice takes far longer than the last one."""
        if self._last is None:  # the first one compiles
            yield
            return
        limit = max(_FAR_LONGER * self._last, _LONG_SECONDS)

        def bark() -> None:
            _log.warning(
                "%d %s%s have taken %.0f s so far, the last slice took %.1f s: memory may be short, a disk slow or "
                "another process gone",
                *(budget, unit, "" if budget == 1 else "s", limit, self._last),
            )

        timer = threading.Timer(limit, bark)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that is set by the first Ctrl-C; in threads other than the main one, Ctrl-C is none of our business."""
    event = threading.Event()
    handles = threading.current_thread() is threading.main_thread()
    if not handles or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield event
        return

    def first(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _log.warning("interrupted: stopping after the slice at hand; Ctrl-C once more stops at once")

    signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
