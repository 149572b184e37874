"""Checkpoints whose arrays stay where they are: every process writes the shards of its own devices, by Orbax.

A checkpoint is a directory, in which Orbax keeps the last two that are whole. For states too large to gather; an extra
(``pip install "jaxem[orbax]"``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from jaxem.checkpoint import Found, as_data, check_leaf, restored_key

_STATE, _MANIFEST = "state", "manifest"
SCHEMA = "jaxem-orbax/1"


def _manager(path: str | os.PathLike) -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ValueError('sharded checkpoints need Orbax: pip install "jaxem[orbax]"') from None
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp, ocp.CheckpointManager(Path(path).absolute(), options=options)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a whole checkpoint."""
    if not Path(path).is_dir():
        return False
    _, manager = _manager(path)
    with manager:
        return manager.latest_step() is not None


def write(path: str | os.PathLike, asked: dict[str, str], place: dict[str, Any], state: Any) -> None:
    """A new checkpoint beside the last one; a kill at any moment leaves at least that one whole."""
    ocp, manager = _manager(path)
    leaves = {str(i): as_data(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    manifest = {"schema": SCHEMA, "asked": asked, "place": place, "arrays": len(leaves)}
    with manager:
        items = {_STATE: ocp.args.StandardSave(leaves), _MANIFEST: ocp.args.JsonSave(manifest)}
        manager.save((manager.latest_step() or 0) + 1, args=ocp.args.Composite(**items), force=True)
        manager.wait_until_finished()


def read(path: str | os.PathLike) -> Found:
    """What the last whole checkpoint is of. Raises ValueError, which names the directory, for anything else."""
    ocp, manager = _manager(path)
    with manager:
        step = manager.latest_step()
        try:
            manifest = manager.restore(step, args=ocp.args.Composite(**{_MANIFEST: ocp.args.JsonRestore()}))[_MANIFEST]
            if manifest["schema"] != SCHEMA:
                raise ValueError(f"its schema is {manifest['schema']!r}; this version reads {SCHEMA!r}")
            return Found(dict(manifest["asked"]), dict(manifest["place"]), [None] * int(manifest["arrays"]))
        except Exception as error:  # a damaged directory can make any step fail in any way
            raise ValueError(
                f"{os.fspath(path)} is not a sound checkpoint: {str(error) or type(error).__name__}"
            ) from error


def rebuilt(path: str | os.PathLike, found: Found, like: Any) -> Any:
    """The arrays in the structure, and laid over the devices, as ``like`` says."""
    wanted, structure = jax.tree.flatten(like)
    if len(wanted) != len(found.arrays):
        raise ValueError(f"{os.fspath(path)} holds {len(found.arrays)} arrays; this fit's state has {len(wanted)}")
    ocp, manager = _manager(path)
    plain = {str(i): jax.eval_shape(as_data, leaf) if _is_key(leaf) else leaf for i, leaf in enumerate(wanted)}
    with manager:
        items = {_STATE: ocp.args.StandardRestore(plain)}
        arrays = manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))[_STATE]
    leaves = []
    for i, want in enumerate(wanted):
        if _is_key(want):
            leaves.append(restored_key(arrays[str(i)], want))
            continue
        check_leaf(path, arrays[str(i)], want)
        leaves.append(arrays[str(i)])
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
