"""Checks at the host's door: every error names what was given and what was expected."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import layout
from jaxem.model import Data, Model, Prepared, UnsupportedError

# Numbers that a check looks at together.
_PIECE = 2**20


def check_model(model: Any) -> None:
    if isinstance(model, type):
        raise ValueError(f"expected a model; got the class {model.__name__} (call it to make one)")
    if not isinstance(model, Model):
        raise ValueError(f"expected a jaxem model, such as jaxem.Mixture(jaxem.Gaussian(), 3); got {model!r}")


def to_device(data: Any, keep_types: bool = False) -> Any:
    """The data as given, on the device; observations (an array, or x of a `Data`) in a floating-point type.

    keep_types: whole numbers stay whole, for models that take them as indices (`Model.keeps_types`).
    """
    if isinstance(data, Prepared):
        raise ValueError("fit takes raw data: it calibrates and prepares them itself")
    if keep_types:
        return jax.tree.map(_array, data if isinstance(data, Data) or not isinstance(data, list) else np.asarray(data))
    if isinstance(data, Data):
        rest = {name: _array(getattr(data, name)) for name in data.given() - {"x"}}
        return Data(x=_floating(data.x), **rest)
    if isinstance(data, (list, np.ndarray, jax.Array)) or hasattr(data, "__array__"):
        return _floating(data)
    return jax.tree.map(_array, data)


def as_arrays(data: Any) -> Any:
    """The data as arrays, those of the host still on the host."""
    if isinstance(data, Prepared):
        raise ValueError("fit takes raw data: it calibrates and prepares them itself")
    if isinstance(data, Data):
        return Data(**{name: _numbers(getattr(data, name)) for name in data.given()})
    if isinstance(data, list) or hasattr(data, "__array__"):
        return _numbers(data)
    return jax.tree.map(_numbers, data)


def observations(data: Any) -> Any:
    """x, where the data are an array or a `Data`."""
    if isinstance(data, Data):
        return data.x
    return data if isinstance(data, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) else None


def _numbers(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    leaf = np.asarray(leaf)
    if leaf.dtype.kind not in "fiub":
        raise ValueError(f"data must be numbers; got an array of dtype {leaf.dtype}")
    return leaf


def _array(leaf: Any) -> jax.Array:
    leaf = _numbers(leaf)
    if isinstance(leaf, jax.Array):
        return leaf
    # device_put, not jnp.asarray, which holds a second copy while it makes the first.
    return jax.device_put(leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False))


def _floating(leaf: Any) -> jax.Array:
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        if leaf.dtype.kind in "iu":
            leaf = _exact(leaf)
    array = _array(leaf)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def _exact(whole: np.ndarray) -> np.ndarray:
    """Whole numbers as floating-point ones, on the host: the device may have no wide integers, and would wrap them."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    limit = 2 ** (np.finfo(dtype).nmant + 1)
    bad = np.argwhere((whole > limit) | (whole < -limit))
    if len(bad):
        place = ", ".join(f"{name} {i}" for name, i in zip(("row", "column", "axis 2"), bad[0], strict=False))
        raise ValueError(
            f"whole numbers beyond {limit} are not exact in {np.dtype(dtype).name}; got {whole[tuple(bad[0])]} in {place}: "
            "pass them as floating-point numbers if they may be rounded, or fit in float64 (jax.enable_x64)"
        )
    return whole.astype(dtype)


def check_data(model: Model, data: Any, batch: int = 0, total: int | None = None) -> int:
    """Shapes, size and finiteness of one data set (``batch`` = 0), or of several of one shape; returns N.

    total: the number of examples of which these are a part, where they are one.
    """
    sizes = {leaf.shape[: 1 + batch] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1:
        raise ValueError(f"all parts of the data need the same number of examples; got leading shapes {sorted(sizes)}")
    shape = sizes.pop()
    x = observations(data)
    if any(size == 0 for size in shape) or (x is not None and x.shape[-1] == 0):
        raise ValueError(f"the data are empty: shape {None if x is None else x.shape}")
    # Shapes and fields are the model's business: tracing asks it without computing anything.
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[batch:], a.dtype), data)
    jax.eval_shape(model.calibrate, one)
    rows = shape[-1] if total is None else total
    if rows < model.min_examples:
        raise ValueError(f"{model.num_components} components need at least as many rows; got {rows}")
    if not batch:
        seen = layout.on_host(data)
        read = layout.hidden(seen, 0.0) if isinstance(seen, Data) else seen
        for path, leaf in jax.tree_util.tree_leaves_with_path(read):
            if not all_finite(leaf):
                raise ValueError(_first_bad(leaf, jax.tree_util.keystr(path)))
        model.validate(seen)
    return shape[-1]


def all_finite(leaf: Any) -> bool:
    """Whether every number of an array is finite; of the host's a piece at a time, in little memory."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return True
    if not isinstance(leaf, np.ndarray):
        return bool(jnp.all(jnp.isfinite(leaf)))
    return all(np.isfinite(piece).all() for piece in _pieces(leaf))


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array, some at a time."""
    array = np.atleast_1d(array)
    rows = max(1, _PIECE // max(1, array[:1].size))
    return (array[begin : begin + rows] for begin in range(0, len(array), rows))


def _first_bad(leaf: Any, name: str) -> str:
    host = np.asarray(leaf)
    bad = np.argwhere(~np.isfinite(host))
    where = bad[0]
    value = host[tuple(where)]
    axes = ("sequence", "step", "column") if len(where) == 3 else ("row", "column")
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, where, strict=False))
    rows = len(np.unique(bad[:, 0]))
    part = f" ({name.lstrip('.')})" if name else ""
    return (
        f"the data{part} hold {value} in {place} ({rows} of {leaf.shape[0]} {axes[0]}s have such values); "
        "remove them, fill them in, or mask them: jaxem.Data(x, mask=numpy.isfinite(x))"
    )


def check_weights(weights: Any, shape: tuple[int, ...], dtype: Any, least: int) -> jax.Array | None:
    """One finite, non-negative number per example, not all 0, positive for at least ``least`` of them.

    least: 0 for a part of a data set, of which all may be 0.
    """
    if weights is None:
        return None
    weights = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    if weights.shape != shape:
        raise ValueError(f"weights need one number per example, shape {shape}; got shape {weights.shape}")
    host = np.asarray(weights)
    bad = np.argwhere(~(np.isfinite(host) & (host >= 0)))
    if len(bad):
        place = ", ".join(str(i) for i in bad[0])
        raise ValueError(f"weights must be finite and at least 0; weight [{place}] is {host[tuple(bad[0])]}")
    if least and not np.all(np.any(host > 0, axis=-1)):
        raise ValueError("all weights are 0: there is nothing to fit")
    present = np.count_nonzero(host > 0, axis=-1)
    if np.any(present < least):
        few = int(np.min(present))
        raise ValueError(f"a fit of {least} components needs at least {least} rows of positive weight; got {few}")
    return weights.astype(dtype) if isinstance(weights, jax.Array) else jax.device_put(weights.astype(dtype))


def check_weights_of_sequences(model: Model, data: Any, weights: jax.Array | None) -> None:
    """Weights belong to sequences: the steps of a flat one must share theirs."""
    x = observations(data)
    if weights is None or not model.sequential or x is None or x.ndim != 2:
        return
    starts = getattr(data, "starts", None)
    begins = np.zeros(len(x), bool) if starts is None else np.asarray(starts, bool)
    host = np.asarray(weights)
    differs = np.flatnonzero((host[1:] != host[:-1]) & ~begins[1:])
    if len(differs):
        row = differs[0] + 1
        raise ValueError(
            f"a weight is that of a whole sequence, the same in all its rows; row {row} has {host[row]} after "
            f"{host[row - 1]} (to leave steps out, mask them)"
        )


def constant_columns(data: Any) -> list[int]:
    """Columns of x that hold one value only, of what is observed."""
    x = observations(data)
    if x is None or x.ndim < 2 or x.shape[0] < 2:
        return []
    host = layout.on_host(data)
    x, cells = observations(host), layout.seen(host) if isinstance(host, Data) else None
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    rows = tuple(range(x.ndim - 1))
    pieces = [(x, cells)] if xp is jnp else zip(_pieces(x), _pieces_like(x, cells))
    lows, highs = [], []
    for part, seen in pieces:
        low, high = (part, part) if seen is None else (xp.where(seen, part, xp.inf), xp.where(seen, part, -xp.inf))
        lows.append(xp.min(low, axis=rows))
        highs.append(xp.max(high, axis=rows))
        if xp is np and not np.any(np.min(lows, axis=0) >= np.max(highs, axis=0)):
            return []
    return [int(i) for i in np.flatnonzero(np.min(np.asarray(lows), axis=0) >= np.max(np.asarray(highs), axis=0))]


def _pieces_like(x: np.ndarray, cells: Any) -> Iterator[Any]:
    """Which cells are observed, cut as `_pieces` cuts x."""
    return itertools.repeat(None) if cells is None else _pieces(np.broadcast_to(cells, x.shape))


def check_count(name: str, value: Any, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return int(value)


def check_key(key: Any, needed_for: str) -> jax.Array:
    if key is None:
        raise ValueError(f"{needed_for} needs a key: pass key=jax.random.key(0), or any other; there is no default")
    return key


def check_params(model: Model, params: Any, data: Any, lead: tuple[int, ...] = ()) -> Any:
    """Starting parameters: finite floats, shaped as the model shapes them, with ``lead`` axes in front."""
    params = jax.tree.map(jnp.asarray, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not all_finite(layout.on_host(leaf)):
            raise ValueError(f"starting parameters hold NaN or infinity in {jax.tree_util.keystr(path)}")
    try:
        expected = jax.eval_shape(lambda d: model.calibrate(d).init(jax.random.key(0), d), data)
    except UnsupportedError:  # a user's own model without init: it knows its parameters, we do not
        return params
    if jax.tree.structure(expected) != jax.tree.structure(params):
        raise ValueError(f"starting parameters need the structure {_describe(expected)}; got {_describe(params)}")
    for (path, want), leaf in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=True):
        if leaf.shape != (*lead, *want.shape):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"starting parameters {name} need shape {(*lead, *want.shape)}; got {leaf.shape}")
    return jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), params, expected)


def _describe(tree: Any) -> str:
    parts = [f"{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return "(" + ", ".join(parts) + ")"
