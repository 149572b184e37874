"""Checkpoints: where a long fit is, written atomically, and gone on from to the last bit.

A file holds the arrays of the state, the place they belong to, and a fingerprint of everything that the fit was asked:
model, data, weights, starts, algorithm, rules. It is an npz with a JSON manifest, read without pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.atomic import write_atomically
from jaxem.tables import read_array, write_array

SCHEMA = "jaxem-checkpoint/1"
_MANIFEST = "manifest.json"
# Of larger arrays a fingerprint looks at so many bytes, evenly spread.
_LOOKED_AT = 2**26
_PIECES = 64


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a long fit keeps its state, and how often it is written: every so many seconds, or steps of the loop.

    With ``steps`` alone the clock is not asked; with neither it is a minute. The file is written a last time when the fit
    ends or is interrupted. Of several processes the first one writes, and all of them read. sharded: not a file but a
    directory, into which every process writes what its own devices hold (by Orbax, an extra). Raises ValueError for a
    period that is not positive.
    """

    path: str | os.PathLike
    seconds: float | None = None
    steps: int | None = None
    sharded: bool = False

    def __post_init__(self):
        if self.seconds is None and self.steps is None:
            object.__setattr__(self, "seconds", 60.0)
        for name in ("seconds", "steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} between checkpoints must be positive; got {value}")


def fingerprint(**parts: Any) -> dict[str, str]:
    """A hash of each part, a pytree: of its structure, and of the bytes of its leaves (of large ones a sample)."""
    return {name: _hash(part) for name, part in parts.items()}


def _hash(tree: Any) -> str:
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256()
    # Words in an order of their own: addresses and the order of sets differ from process to process.
    words = re.findall(r"[^\W]+", re.sub(r"0x[0-9a-f]+", "", str(structure)))
    digest.update(" ".join(sorted(words)).encode())
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(f"{np.shape(leaf)} {getattr(leaf, 'dtype', type(leaf).__name__)}".encode())
        if getattr(leaf, "is_fully_addressable", True):
            for piece in _pieces(leaf):
                digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()


def _pieces(leaf: Any) -> list[np.ndarray]:
    size = getattr(leaf, "nbytes", 0)
    if size <= _LOOKED_AT or np.ndim(leaf) == 0:
        return [np.asarray(leaf)]
    rows = max(1, int(len(leaf) * (_LOOKED_AT / size) / _PIECES))
    begins = np.linspace(0, len(leaf) - rows, _PIECES).astype(int)
    return [np.asarray(leaf[begin : begin + rows]) for begin in begins]


def write(path: str | os.PathLike, asked: dict[str, str], place: dict[str, Any], state: Any) -> None:
    """Replace the checkpoint at ``path`` in one step; a kill at any moment leaves the old one or the new one."""
    arrays = [np.asarray(leaf) for leaf in jax.device_get([as_data(leaf) for leaf in jax.tree.leaves(state)])]
    manifest = {"schema": SCHEMA, "jax": jax.__version__, "asked": asked, "place": place, "arrays": len(arrays)}
    text = json.dumps(manifest, indent=1).encode()

    def fill(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_MANIFEST, text)
            for i, array in enumerate(arrays):
                archive.writestr(f"{i}.npy", write_array(array))

    write_atomically(path, fill)


def as_data(leaf: Any) -> Any:
    """Random keys as the numbers they are."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@dataclasses.dataclass(frozen=True)
class Found:
    """What a checkpoint is of: the fingerprint of what the fit was asked, the place, and the arrays of its state."""

    asked: dict[str, str]
    place: dict[str, Any]
    arrays: list[Any]


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a checkpoint."""
    return Path(path).exists()


def read(path: str | os.PathLike) -> Found:
    """What `write` wrote. Raises ValueError, which names the file, for anything else."""
    size = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            if manifest["schema"] != SCHEMA:
                raise ValueError(f"its schema is {manifest['schema']!r}; this version reads {SCHEMA!r}")
            arrays = []
            for i in range(int(manifest["arrays"])):
                info = archive.getinfo(f"{i}.npy")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                    raise ValueError(f"array {i} declares {info.file_size} bytes in a file of {size}")
                with archive.open(info) as member:
                    arrays.append(read_array(member, info.file_size))
            return Found(dict(manifest["asked"]), dict(manifest["place"]), arrays)
    except Exception as error:  # a damaged or hostile file can make any step fail in any way
        raise ValueError(
            f"{os.fspath(path)} is not a sound checkpoint: {str(error) or type(error).__name__}"
        ) from error


def check_asked(path: str | os.PathLike, found: dict[str, str], asked: dict[str, str]) -> None:
    """Raise ValueError where the checkpoint is of another fit, naming what differs."""
    differ = sorted(name for name in found.keys() | asked.keys() if found.get(name) != asked.get(name))
    if differ:
        raise ValueError(
            f"{os.fspath(path)} is the checkpoint of another fit: {', '.join(differ)} differ"
            f"{'s' if len(differ) == 1 else ''}; give what that fit was given, or another path"
        )


def rebuilt(path: str | os.PathLike, found: Found, like: Any) -> Any:
    """The arrays in the structure of ``like``, on the device; ValueError where they do not fit it."""
    wanted, structure = jax.tree.flatten(like)
    if len(wanted) != len(found.arrays):
        raise ValueError(f"{os.fspath(path)} holds {len(found.arrays)} arrays; this fit's state has {len(wanted)}")
    return jax.tree.unflatten(structure, [_restored(path, a, w) for a, w in zip(found.arrays, wanted, strict=True)])


def _restored(path: str | os.PathLike, array: np.ndarray, want: Any) -> Any:
    if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
        return restored_key(array, want)
    check_leaf(path, array, want)
    return jnp.asarray(array)


def check_leaf(path: str | os.PathLike, array: Any, want: Any) -> None:
    """Raise ValueError for an array of another shape or type than the state has there."""
    if array.shape != want.shape or array.dtype != want.dtype:
        raise ValueError(
            f"{os.fspath(path)} holds an array {array.dtype}{list(array.shape)} where this fit has "
            f"{want.dtype}{list(want.shape)}"
        )


def restored_key(array: Any, like: Any) -> jax.Array:
    """The random keys that these numbers are."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(array), impl=found[0])
