"""The thread that reads the next blocks of a stream, and moves them to the device, while one is computed with."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax

from jaxem.streams import Cut, Stream, to_device


class Reader:
    """The blocks of one pass on the device, one after the other, read ahead by a thread; `close` ends it.

    waited: seconds for which blocks were not there yet when they were asked for.
    """

    def __init__(self, stream: Stream, begin: int = 0, keep_types: bool = False):
        self.waited = 0.0
        cuts = stream.cuts(begin)
        # A thread does not know the types and the device that the caller has chosen for a while.
        x64, device = bool(jax.config.jax_enable_x64), jax.config.jax_default_device  # type: ignore[attr-defined]

        def read() -> Cut:
            with _x64(x64), jax.default_device(device):
                return to_device(next(cuts), keep_types)

        self._read = read
        self._thread: threading.Thread | None = None
        if stream.ahead:
            self._cuts: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._room = threading.Semaphore(stream.ahead)
            self._stop = threading.Event()
            arguments = (read, self._cuts, self._room, self._stop)
            self._thread = threading.Thread(target=_read_ahead, args=arguments, name="jaxem reader", daemon=True)
            # Also where the reader is forgotten: the thread holds nothing of it.
            self._end = weakref.finalize(self, _end, self._stop, self._room)
            self._thread.start()

    def next(self) -> Cut:
        """The next block. Raises what reading it raised."""
        begin = time.perf_counter()
        if self._thread is None:
            cut = self._read()
        else:
            cut = self._cuts.get()
            self._room.release()
        self.waited += time.perf_counter() - begin
        if isinstance(cut, BaseException):
            self.close()
            raise cut
        return cut

    def close(self) -> None:
        """End the thread, and wait for its end."""
        if self._thread is not None:
            self._end()
            self._thread.join()


def _read_ahead(read: Callable[[], Cut], cuts: Any, room: threading.Semaphore, stop: threading.Event) -> None:
    last = False
    while not last:
        room.acquire()
        if stop.is_set():
            return
        try:
            cut = read()
        except BaseException as error:
            cuts.put(error)
            return
        last = cut.last
        cuts.put(cut)


def _end(stop: threading.Event, room: threading.Semaphore) -> None:
    stop.set()
    room.release()


def _x64(enabled: bool) -> Any:
    return jax.enable_x64(enabled)  # type: ignore[attr-defined]
