"""A user's function as part of a program: two functions are the same where they cannot differ in what they do.

JAX compares what is static by ``==``, and Python functions are equal only to themselves: a lambda made anew in a loop
would be compiled anew each time. Here functions are compared by what they are: their code, their defaults, and all that
the code refers to. Whatever cannot be compared safely (what can change in place, objects of unknown classes) makes a
function equal to itself alone.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What lies in these packages does not change while a program runs.
_LIBRARIES = frozenset({"builtins", "functools", "itertools", "jax", "jaxem", "jaxlib", "math", "ml_dtypes"})
_LIBRARIES |= {"numpy", "operator", "optax", "scipy", "chex", "equinox", "flax", "jaxtyping", "collections", "typing"}
_PLAIN = frozenset({type(None), bool, int, str, bytes, type(Ellipsis), slice, range})
# Larger arrays are not read for their bytes.
_LARGEST = 2**20
# So many programs for functions of one place in the source are a loop that compiles every time.
_MANY = 8


class _Unknown(Exception):
    """Something that cannot be compared by value; the message names it."""


class _Is:
    """An object that is equal to itself alone; it keeps the object alive, and with it the identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class SameFunction:
    """A callable that is equal to every other one with the same code and the same values behind its names.

    What the code refers to is read when this is made. When a program is traced later, it is read again: what has changed
    in the meantime (a global variable, an array in place) raises ValueError, because the program would be taken for that
    of the values before. Lists, dicts and objects of unknown classes can change unseen: a function that refers to them is
    equal to itself alone, as Python functions are; after eight programs for functions of the same place in the source
    a warning says so.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        functools.update_wrapper(self, function, updated=())  # with __wrapped__, where `inspect.signature` looks
        self._reason, self._key = _identity(function)
        self._hash = hash(self._key) if self._key is not None else id(function)
        self._traced = False

    @property
    def lone(self) -> bool:
        """True where it is equal to itself alone."""
        return self._key is None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._traced:
            self._traced = True
            _count(self.function, self._hash, self._reason)
        if self._key is not None and _identity(self.function)[1] != self._key:
            raise ValueError(
                f"what {_name(self.function)} refers to has changed since the model was made with it: make the model "
                "anew, or make what changes an argument (jax.tree_util.Partial)"
            )
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SameFunction):
            return NotImplemented
        if self._key is None or other._key is None:
            return self.function is other.function
        return self._hash == other._hash and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return repr(self.function)  # what the fingerprint of a checkpoint reads

    def __deepcopy__(self, memo: Any) -> SameFunction:
        return self

    def __reduce__(self) -> Any:
        return SameFunction, (self.function,)


def same(function: Any) -> Any:
    """A function, or an optax optimizer, that is equal to one that does the same; anything else as it is."""
    if isinstance(function, jax.tree_util.Partial):
        return jax.tree_util.Partial(same(function.func), *function.args, **function.keywords)
    if hasattr(function, "init") and hasattr(function, "update") and hasattr(function, "_replace"):
        return function._replace(init=same(function.init), update=same(function.update))
    if callable(function) and not isinstance(function, SameFunction):
        return SameFunction(function)
    return function


def _name(function: Any) -> str:
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", repr(function))
    return name if code is None else f"{name} ({code.co_filename}, line {code.co_firstlineno})"


_programs: dict[Any, set[int]] = {}


def _count(function: Any, number: int, reason: str) -> None:
    """Warn once where functions of one place in the source have been traced for many programs."""
    seen = _programs.setdefault(getattr(function, "__code__", type(function)), set())
    seen.add(number)
    if len(seen) == _MANY:
        why = f"it refers to {reason}, which cannot be compared" if reason else "what it refers to differs each time"
        warnings.warn(
            f"{_MANY} programs were compiled for {_name(function)}: {why}. Make the model once, before the loop; or pass "
            "what differs as an argument, jax.tree_util.Partial(function, value), which is not part of the program",
            stacklevel=2,
        )


def _identity(function: Any) -> tuple[str, Any]:
    """("", a hashable value that is equal for functions that do the same), or (what cannot be compared, None)."""
    try:
        key = _key(function, (), {})
        hash(key)
    except (_Unknown, TypeError, RuntimeError) as unknown:  # not hashable; an array that was deleted
        return str(unknown), None
    return "", key


def _library(value: Any) -> bool:
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    if isinstance(value, types.FunctionType):  # what jax.vmap returns says that it comes from where its argument does
        module = value.__globals__.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _key(value: Any, names: tuple[str, ...], within: dict[int, int]) -> Any:
    """names: of attributes that the code at hand may ask for. within: functions whose keys are being made."""
    if isinstance(value, SameFunction):
        return value
    if type(value) in _PLAIN or isinstance(value, (enum.Enum, np.dtype)):
        return type(value), value
    if isinstance(value, (float, complex, np.generic)):
        return type(value), repr(value)  # tells −0.0 from 0.0, and NaN is equal to itself
    if isinstance(value, (tuple, frozenset)):
        parts = tuple(_key(part, names, within) for part in value)
        return type(value), parts if isinstance(value, tuple) else frozenset(parts)
    if isinstance(value, (np.ndarray, jax.Array)):
        return _array(value)
    if isinstance(value, types.FunctionType):
        return _function(value, within)
    if isinstance(value, types.MethodType):
        return _Is(value.__self__), _key(value.__func__, names, within)
    if isinstance(value, functools.partial):
        keywords = tuple((name, _key(part, names, within)) for name, part in sorted(value.keywords.items()))
        return functools.partial, _key(value.func, names, within), _key(value.args, names, within), keywords
    if isinstance(value, (types.ModuleType, type)):
        return _Is(value), () if _library(value) else tuple(_attributes(value, names, within))
    if type(value).__module__.startswith("jaxem."):
        leaves, structure = jax.tree.flatten(value)
        if not (len(leaves) == 1 and leaves[0] is value):
            return structure, tuple(_key(leaf, names, within) for leaf in leaves)
    bound = isinstance(value, types.BuiltinFunctionType) and not isinstance(
        value.__self__, (types.ModuleType, type(None))
    )
    if _library(type(value)) and callable(value) and not bound:
        # A builtin, a ufunc, a compiled function: nothing that changes, but what it was made of may.
        return _Is(value), None if _library(value) else _key(getattr(value, "__wrapped__", None), names, within)
    raise _Unknown(f"{type(value).__name__} {value!r:.60}")


def _array(value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):  # type: ignore[attr-defined]
        raise _Unknown("a value that is being traced")
    large = value.size * value.dtype.itemsize > _LARGEST
    if isinstance(value, jax.Array):
        if large or jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or not value.is_fully_addressable:
            return _Is(value)
    elif large:
        raise _Unknown(f"a large numpy array, {value.dtype} {value.shape}")
    host = np.asarray(value)
    if host.dtype.hasobject:
        raise _Unknown("a numpy array of objects")
    digest = hashlib.sha256(np.ascontiguousarray(host).tobytes()).digest()
    return type(value), host.shape, host.dtype.str, getattr(value, "weak_type", False), digest


def _attributes(owner: Any, names: tuple[str, ...], within: dict[int, int]) -> Iterator[Any]:
    """What code may see of a user's module or class: the attributes that it names."""
    for name in names:
        value = getattr(owner, name, None)
        if value is not None and value is not owner:
            descriptor = hasattr(type(value), "__get__") and not isinstance(value, (types.FunctionType, type))
            yield name, _Is(value) if descriptor else _key(value, names, within)


def _function(function: types.FunctionType, within: dict[int, int]) -> Any:
    if id(function) in within:
        return "the function itself", within[id(function)]
    if _library(function) and function.__closure__ is None:
        return _Is(function)
    within = {**within, id(function): len(within)}
    code = function.__code__
    named, names = _reads(code)
    if named is None:
        raise _Unknown("names that it assigns or imports")
    try:
        cells = tuple(_key(cell.cell_contents, names, within) for cell in function.__closure__ or ())
    except ValueError:  # an empty cell
        raise _Unknown("a variable that has no value yet") from None
    values = []
    for name in () if _library(function) else named:
        if name in function.__globals__:
            values.append((name, _key(function.__globals__[name], names, within)))
        elif not hasattr(builtins, name):
            raise _Unknown(f"{name}, which has no value yet")
    rest = (function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items())))
    own = tuple(sorted((name, value) for name, value in vars(function).items() if name != "__wrapped__"))
    return code, cells, tuple(values), _key((*rest, own), names, within)


@functools.lru_cache(maxsize=1024)
def _reads(code: types.CodeType) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The global names that code reads (None where it also writes or imports), and all names in it, attributes too."""
    named: dict[str, None] = {}
    names = dict.fromkeys(code.co_names)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            named[step.argval] = None
        writes = step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_NAME")
        writes |= step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars
        imports = step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] not in _LIBRARIES
        if writes or imports or (step.argval in ("globals", "eval", "exec") and step.opname == "LOAD_GLOBAL"):
            return None, tuple(names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, more = _reads(constant)
            if inner is None:
                return None, tuple(names)
            named |= dict.fromkeys(inner)
            names |= dict.fromkeys(more)
    return tuple(named), tuple(names)
