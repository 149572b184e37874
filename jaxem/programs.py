"""Compiled programs that can be let go: those of functions which no later call may equal.

`jax.jit` keeps every program for as long as the function that was compiled lives. A program whose key holds a user's
function that is equal to itself alone (see `jaxem.same_function`) is never run again once that function is gone; in a
loop that makes such a function anew, each turn would keep some ten megabytes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

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


def method(function: Any = None, *, static: tuple[str, ...] = ()) -> Any:
    """A question to a model that is one compiled program where it is called by itself, not inside of another one.

    Called by itself every operation would be a program: some fifty for a posterior, seconds before the first answer and
    a hundred milliseconds for the next. Inside of a trace, and of arguments that no program can take, it is the function
    as it stands.

    Args:
        function: pure; its arguments are pytrees, but for those named in ``static``, which are part of the program.
    Example:
        >>> @method(static=("count",))
        ... def repeated(x, count): return jnp.stack([x] * count)
        >>> repeated(jnp.zeros(3), count=2).shape
        (2, 3)
    """
    if function is None:
        return functools.partial(method, static=static)
    compiled, signature = jit(function, static_argnames=static), inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)  # by name or by place: the same program
        dynamic = {name: value for name, value in given.arguments.items() if name not in static}
        if any(_as_held(leaf) is not leaf for leaf in jax.tree.leaves(dynamic)):
            dynamic = jax.tree.map(_as_held, dynamic)
            given.arguments.update(dynamic)
        whole = all(map(_is_concrete, jax.tree.leaves(dynamic)))
        return (compiled if whole else function)(*given.args, **given.kwargs)

    call.clear_cache = compiled.clear_cache  # type: ignore[attr-defined]
    return call


def _as_held(leaf: Any) -> Any:
    """Whole numbers as floats where JAX, without 64-bit types, would wrap what its 32 bits do not hold."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "iu" or leaf.dtype.itemsize < 8 or not leaf.size:
        return leaf
    wide = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    return leaf if wide or (np.max(leaf) < 2**31 and np.min(leaf) >= -(2**31)) else leaf.astype(float)


def _is_concrete(leaf: Any) -> bool:
    """Whether a leaf is a number or an array of numbers, which a program can take as they are."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind in "biuf"
    tracer = jax.core.Tracer  # type: ignore[attr-defined]
    return isinstance(leaf, (jax.Array, float, int)) and not isinstance(leaf, tracer)


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
