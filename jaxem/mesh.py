"""Meshes of devices, and examples laid out over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxem.model import float_type, num_examples


def make_mesh(*, devices: Sequence[Any] | None = None, **axes: int) -> Mesh:
    """A mesh of devices with named axes: ``make_mesh(data=4)``, ``make_mesh(lanes=2, data=2)``.

    Without axes all devices, of all processes, are on one axis, "data". The axes are of type Auto whatever JAX makes
    by default. devices: those to use, by default ``jax.devices()``, of which the first are taken. Raises ValueError for
    an axis below 1 and for more devices than there are.
    """
    devices = list(jax.devices() if devices is None else devices)
    axes = axes or {"data": len(devices)}
    for name, size in axes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"axis {name!r} of a mesh needs a whole number of devices, at least 1; got {size!r}")
    wanted = math.prod(axes.values())
    if wanted > len(devices):
        raise ValueError(f"a mesh of {axes} needs {wanted} devices; there are {len(devices)}")
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:wanted])


def check_mesh(mesh: Any, axis: str) -> None:
    """Raise ValueError unless ``mesh`` is a mesh with axes of type Auto, one of them ``axis``."""
    if not isinstance(mesh, Mesh):
        raise ValueError(f"expected a mesh, such as jaxem.make_mesh(data=4); got {mesh!r}")
    if axis not in mesh.axis_names:
        raise ValueError(f"the mesh has no axis {axis!r}; its axes are {', '.join(map(repr, mesh.axis_names))}")
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(f"the axes of the mesh need type Auto, as jaxem.make_mesh makes them; got {mesh.axis_types}")


def pad_rows(data: Any, weights: jax.Array | None, parts: int) -> tuple[Any, jax.Array | None]:
    """Data whose number of rows ``parts`` divides: the last row repeated, with weight 0. Goes through jit."""
    n = num_examples(data)
    extra = -n % parts
    if extra == 0:
        return data, weights
    dtype = float_type(data) if weights is None else weights.dtype
    weights = jnp.ones(n, dtype) if weights is None else weights
    # A real row: it lies in the model's domain, which zeros need not do.
    padded = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], extra, axis=0)]), data)
    return padded, jnp.concatenate([weights, jnp.zeros(extra, dtype)])


def place(
    data: Any, weights: Any = None, *, mesh: Mesh, axis: str = "data", rows_per_shard: int | None = None
) -> tuple[Any, jax.Array | None]:
    """Data and weights as global arrays whose rows are shared out over one axis of a mesh.

    data: a pytree of arrays with examples as the leading axis, on the host (a memory map is read shard by shard) or a
    device: of many processes the rows of this one, which go to its own devices. Shards are of equal size; what is
    missing in the last ones is the last row repeated, with weight 0, so weights come back where none were given.
    rows_per_shard: at least as many as needed; the same in all processes. Raises ValueError for a mesh without the axis,
    for no rows, and where devices of two processes hold the same rows.
    """
    check_mesh(mesh, axis)
    n = num_examples(data)
    if n == 0:
        raise ValueError("there are no rows to place")
    mine = own_shards(mesh, axis)
    least = -(-n // len(mine))
    size = least if rows_per_shard is None else rows_per_shard
    if size < least:
        raise ValueError(f"{n} rows on {len(mine)} devices need at least {least} rows per shard; got {size}")
    if weights is None and size * len(mine) != n:
        weights = np.ones(n, float_type(jax.tree.map(_canonical, data)))
    order = {shard: place for place, shard in enumerate(mine)}
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def spread(leaf: Any, fill_with_zero: bool) -> jax.Array:
        dtype = _canonical(leaf).dtype

        def shard(index: Any) -> Any:
            begin = order[(index[0].start or 0) // size] * size
            rows = np.asarray(leaf[min(begin, n) : min(begin + size, n)], dtype)
            short = size - rows.shape[0]
            if short == 0:
                return rows
            last = np.zeros_like(leaf[-1:], dtype) if fill_with_zero else np.asarray(leaf[-1:], dtype)
            return np.concatenate([rows, np.repeat(last, short, axis=0)])

        shape = (size * mesh.shape[axis], *leaf.shape[1:])
        return jax.make_array_from_callback(shape, sharding, shard)

    placed = jax.tree.map(lambda leaf: spread(leaf, False), data)
    return placed, None if weights is None else spread(np.asarray(weights), True)


def own_shards(mesh: Mesh, axis: str) -> list[int]:
    """The places along an axis whose devices belong to this process. Raises ValueError where another's do too."""
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)
    owners = [{device.process_index for device in shard} for shard in along]
    for place, processes in enumerate(owners):
        if len(processes) > 1:
            raise ValueError(
                f"place {place} of axis {axis!r} lies on devices of processes {sorted(processes)}: every process reads "
                f"rows of its own, so the other axes stay within a process: name {axis!r} first in jaxem.make_mesh"
            )
    mine = [place for place, processes in enumerate(owners) if processes == {jax.process_index()}]
    if not mine:
        raise ValueError(f"the mesh holds no device of process {jax.process_index()}: there is no place for its rows")
    return mine


def _canonical(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array, and the type it has on a device."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))
