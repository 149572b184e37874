"""Compiled programs that can be let go: those of functions which no later call may equal.

`jax.jit` keeps every program for as long as the function that was compiled lives. A program whose key holds a user's
function that is equal to itself alone (see `jaxem.same_function`) is never run again once that function is gone; in a
loop that makes such a function anew, each turn would keep some ten megabytes.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jaxem.same_function import SameFunction

# Sets of such functions whose programs are kept, the last ones used.
_KEPT = 16


def jit(function: Callable[..., Any], **options: Any) -> Jitted:
    """`jax.jit` that keeps programs of functions equal to themselves alone for the last 16 sets of them only.

    Args:
        function: pure, as for `jax.jit`. options: those of `jax.jit`, such as static_argnames.
    Example:
        >>> add = jit(lambda x, y: x + y)
        >>> int(add(1, 2))
        3
    """
    return Jitted(function, options)


class Jitted:
    """What `jit` returns. Programs without such functions are kept as `jax.jit` keeps them."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]):
        functools.update_wrapper(self, function)
        self._function, self._options = function, options
        self._shared: Any = jax.jit(function, **options)
        self._own: OrderedDict[tuple[SameFunction, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._for(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        return self._for(args, kwargs).lower(*args, **kwargs)

    def clear_cache(self) -> None:
        """Let all programs go."""
        self._shared.clear_cache()
        with self._lock:
            self._own.clear()

    def _cache_size(self) -> int:
        return self._shared._cache_size() + sum(own._cache_size() for own in self._own.values())

    def _for(self, args: Any, kwargs: Any) -> Any:
        """The compiled function for these arguments."""
        lone = tuple(part for part in parts((args, kwargs)) if isinstance(part, SameFunction) and part.lone)
        if not lone:
            return self._shared
        with self._lock:
            if lone not in self._own:
                # A function object of its own: JAX's caches hold it weakly, and end with it.
                self._own[lone] = jax.jit(functools.partial(self._function), **self._options)
                if len(self._own) > _KEPT:
                    self._own.popitem(last=False)
            self._own.move_to_end(lone)
            return self._own[lone]


def parts(value: Any) -> Iterator[Any]:
    """Dataclasses, such as models and algorithms, and user's functions, with everything that they are made of."""
    if isinstance(value, SameFunction):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, functools.partial):
        yield from parts((value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        yield from parts(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from parts(part)
