"""Results as files: one npz with a JSON manifest in it, never a pickle, written whole or not at all.

The manifest is the result as a tree: dataclasses by name with their fields, tuples, lists, dicts and scalars; an array
is the name of another member of the npz. `load` rebuilds only classes of jaxem's own, found by name in a registry:
nothing in a file is ever imported or executed. Members are stored uncompressed, so a small file cannot declare a large
array.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import os
import pkgutil
import zipfile
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.atomic import write_atomically
from jaxem.model import Model
from jaxem.result import BatchResult, Result, Starts, describe
from jaxem.select import Selection
from jaxem.status import Status
from jaxem.tables import read_array, write_array

SCHEMA = "jaxem-result/1"

_MANIFEST = "manifest.json"
# The modules and packages whose dataclasses can be part of a result. A class is known by its room and its name, so that
# it may move from file to file within a room.
_ROOMS = ("model", "design", "result", "select", "families", "latents", "models", "wrappers")


def save(path: str | os.PathLike, result: Any) -> None:
    """Write a `Result`, `BatchResult`, `Selection` or parameters to ``path``; a file there is replaced in one step.

    A result whose model is not made of jaxem's own classes cannot be rebuilt from a file, and is refused with a
    ValueError that says so: save ``result.params`` instead and keep the model in your own code. Parameters that are
    dataclasses or named tuples of your own come back as a dict of their fields.
    """
    arrays: dict[str, np.ndarray] = {}
    whole = isinstance(result, (Result, BatchResult, Selection))
    try:
        tree = _encode(result, "result" if whole else "params", arrays, strict=whole)
    except _ForeignError as error:
        raise ValueError(
            f"{error} is not one of jaxem's own classes, so a file cannot rebuild this result: "
            "save its parameters, jaxem.io.save(path, result.params), and keep the model in your own code"
        ) from None
    import jaxem

    manifest = {"schema": SCHEMA, "jaxem": jaxem.__version__, "jax": jax.__version__}
    if isinstance(result, Result):
        manifest["model"] = describe(result.model)
    manifest["tree"] = tree
    text = json.dumps(manifest, indent=1, allow_nan=False).encode()

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_MANIFEST, text)
            for name, array in arrays.items():
                archive.writestr(f"{name}.npy", write_array(array))

    write_atomically(path, write)


def load(path: str | os.PathLike) -> Any:
    """What `save` wrote. Arrays are numpy arrays, equal to those saved to the last bit.

    Raises ValueError, which names the file, for anything else: a damaged or hostile file, a schema or class not known.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _load(file, size)
        except Exception as error:  # a hostile file can make any step fail in any way; all of them are a bad file
            raise ValueError(
                f"{os.fspath(path)} is not a sound jaxem file: {str(error) or type(error).__name__}"
            ) from error


class _ForeignError(Exception):
    """A class that no file can rebuild; the message is its name."""


@functools.cache
def _registry() -> dict[str, type]:
    """The classes that may stand in a file, by name."""
    return {_class_name(cls): cls for module in _modules() for cls in _dataclasses(module)}


def _modules() -> list[Any]:
    found = []
    for room in _ROOMS:
        module = importlib.import_module(f"jaxem.{room}")
        found.append(module)
        for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
            found.append(importlib.import_module(f"jaxem.{room}.{info.name}"))
    return found


def _dataclasses(module: Any) -> list[type]:
    members = [member for member in vars(module).values() if isinstance(member, type)]
    return [cls for cls in members if dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__]


def _class_name(cls: type) -> str:
    parts = cls.__module__.split(".")
    return f"{parts[1]}.{cls.__name__}" if parts[0] == "jaxem" and len(parts) > 1 else cls.__qualname__


# Values to JSON and back. Scalars, None and strings stand for themselves; everything else is an object with one tag.


def _encode(value: Any, name: str, arrays: dict[str, np.ndarray], strict: bool) -> Any:
    """``value`` as JSON; its arrays are put into ``arrays`` under the name of their place."""

    def inside(part: Any, key: Any) -> Any:
        return _encode(part, f"{name}.{key}", arrays, strict)

    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        arrays[name] = _plain(value, name)
        return {"array": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: inside(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
        known = _registry().get(_class_name(type(value))) is type(value)
        if strict and not known:
            raise _ForeignError(type(value).__name__)
        return {"class": _class_name(type(value)), "fields": fields} if known else {"dict": fields}
    if strict and (isinstance(value, Model) or callable(value)):
        raise _ForeignError("a function" if callable(value) else type(value).__name__)
    names = getattr(value, "_fields", None)  # of a named tuple
    if isinstance(value, tuple) and names:
        return {"dict": {key: inside(part, key) for key, part in zip(names, value, strict=True)}}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [inside(part, i) for i, part in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: inside(part, key) for key, part in value.items()}}
    raise ValueError(f"cannot save {name}: {type(value).__name__} is not an array, a number, a text or made of these")


def _plain(value: Any, name: str) -> np.ndarray:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise ValueError(f"cannot save {name}: an array of {value.dtype} (jax.random.key_data turns keys into numbers)")
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"cannot save {name}: an array of dtype {array.dtype} is not one of plain numbers")
    return array


def _decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, (bool, str, int, float)):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"the manifest holds {value!r} where a tagged value belongs")
    match value:
        case {"float": str(text), **rest} if not rest and text in ("nan", "inf", "-inf"):
            return float(text)
        case {"array": str(name), **rest} if not rest and name in arrays:
            return arrays[name]
        case {"tuple": list(parts), **rest} if not rest:
            return tuple(_decode(part, arrays) for part in parts)
        case {"list": list(parts), **rest} if not rest:
            return [_decode(part, arrays) for part in parts]
        case {"dict": dict(parts), **rest} if not rest:
            return {key: _decode(part, arrays) for key, part in parts.items()}
        case {"class": str(name), "fields": dict(fields), **rest} if not rest:
            return _rebuild(name, {key: _decode(part, arrays) for key, part in fields.items()})
    raise ValueError(f"the manifest holds a value tagged {sorted(value)}, or an array that is not there")


def _rebuild(name: str, fields: dict[str, Any]) -> Any:
    """An object of one of jaxem's own classes. Fields added since the file was written take their defaults."""
    cls = _registry().get(name)
    if cls is None:
        raise ValueError(f"the class {name!r} is not known to this version of jaxem")
    unknown = set(fields) - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(sorted(unknown))} in this version of jaxem")
    value = cls(**fields)
    if isinstance(value, Result):
        _check_result(value)
    return value


def _load(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # Stored members are as long as they say, and together no longer than the file: nothing can unfold on reading.
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
            raise ValueError("it has compressed members, which jaxem does not write")
        if sum(m.file_size for m in members) > size:
            raise ValueError(f"its members declare more bytes than the file has ({size})")
        manifest = json.loads(archive.read(_MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            found = manifest.get("schema") if isinstance(manifest, dict) else None
            raise ValueError(f"its schema is {found!r}; this version of jaxem reads {SCHEMA!r}")
        arrays = {}
        for member in members:
            if member.filename != _MANIFEST:
                with archive.open(member) as part:
                    arrays[member.filename.removesuffix(".npy")] = read_array(part, member.file_size)
    if "tree" not in manifest:
        raise ValueError("its manifest has no tree")
    return _decode(manifest["tree"], arrays)


def _check_result(result: Result) -> None:
    """A result that its own properties can rely on."""
    starts = result.starts
    if not isinstance(result.model, Model) or not isinstance(starts, Starts):
        raise ValueError("it holds a result without a model or without starts")
    count = len(np.atleast_1d(starts.status))
    shapes = {name: np.shape(getattr(starts, name)) for name in ("objective", "log_likelihood", "steps", "status")}
    if count == 0 or any(shape != (count,) for shape in shapes.values()):
        raise ValueError(f"its starts do not fit together: {shapes}")
    if any(np.shape(leaf)[:1] != (count,) for leaf in jax.tree.leaves((starts.params, starts.trace))):
        raise ValueError(f"the parameters or traces of its starts are not those of {count} starts")
    if not isinstance(result.best, int) or not 0 <= result.best < count:
        raise ValueError(f"its best start is {result.best!r} of {count}")
    if not set(np.asarray(starts.status).tolist()) <= {int(status) for status in Status}:
        raise ValueError("its starts have a status that is not known")
