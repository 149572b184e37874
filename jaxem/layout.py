"""How examples lie in arrays: rows, padded sequences, flat sequences; what is observed of them.

Models with a sequential latent take sequences padded, [B, T, D] with lengths, or flat, [N, D] with the places where each
begins. Families only ever see rows; these functions go from the one to the other. Everything that is not observed
(masked, or beyond a length) is overwritten here, once, and is never read.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxem.model import Data, Prepared

if TYPE_CHECKING:
    from jaxtyping import Array, Bool

# Bytes that are brought from a device to the host to be checked there.
_SMALL_TRANSFER = 2**26


def namespace(array: Any) -> Any:
    """NumPy for its arrays, else ``jax.numpy``: checks on the host compile nothing."""
    return np if isinstance(array, np.ndarray) else jnp


def on_host(data: Any) -> Any:
    """The data as NumPy arrays, for checks: each operation on a device is a program to compile.

    Arrays of a CPU are not copied, and neither is what no host could hold: those of other devices stay there.
    """

    def seen(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        local = getattr(leaf, "is_fully_addressable", True)
        small = leaf.nbytes <= _SMALL_TRANSFER or all(d.platform == "cpu" for d in leaf.devices())
        return np.asarray(leaf) if local and small else leaf

    return jax.tree.map(seen, data)


def lead(data: Data) -> tuple[int, ...]:
    """The axes of the observations: (N,), or (B, T) for padded sequences."""
    return data.x.shape[:-1]


def lead_of(data: Prepared, sequential: bool) -> tuple[int, ...]:
    """`lead` of prepared data: those of a sequential latent are padded unless they have starts."""
    padded = sequential and data.rest.starts is None
    return jax.tree.leaves(data.statistics)[0].shape[: 2 if padded else 1]


def normal(data: Data, sequential: bool, filler: Any) -> Data:
    """Checked shapes; flat sequences with starts; ``filler`` in every cell of x that is not observed."""
    x = data.x
    axes = {2, 3} if sequential else {2}
    if x is None or x.ndim not in axes:
        given = "no x" if x is None else f"shape {x.shape}"
        expected = "[N, D]"
        if sequential:
            expected = "padded sequences, [B, T, D], or flat ones, [N, D]"
        hint = "; for one feature use x[:, None]" if x is not None and x.ndim == 1 else ""
        raise ValueError(f"x needs examples as rows and features as columns, {expected}; got {given}{hint}")
    _check_shapes(data)
    if sequential and x.ndim == 3:
        if data.starts is not None:
            raise ValueError("starts belong to flat sequences, [N, D]; padded ones, [B, T, D], have lengths")
    elif sequential:
        if data.lengths is not None:
            raise ValueError("lengths belong to padded sequences, [B, T, D]; flat ones, [N, D], have starts")
        xp = namespace(x)
        first = xp.arange(x.shape[0]) == 0
        data = dataclasses.replace(data, starts=first if data.starts is None else first | data.starts.astype(bool))
    return hidden(data, filler)


def hidden(data: Data, filler: Any) -> Data:
    """The data with ``filler`` in every cell of x that is not observed; no inputs and no labels beyond a length."""
    cells = seen(data)
    if cells is None:
        return data
    within = _within(data)
    inputs, labels = data.inputs, data.labels
    xp = namespace(data.x)
    if inputs is not None and within is not None:
        inputs = xp.where(within[..., None], inputs, 0)
    if labels is not None and within is not None:
        labels = xp.where(within, labels, -1)
    x = xp.where(cells, data.x, xp.asarray(filler, data.x.dtype))
    return dataclasses.replace(data, x=x, inputs=inputs, labels=labels)


def seen(data: Data) -> Bool[Array, "*N D"] | None:
    """Which cells of x are observed, to broadcast against x; None where all are."""
    rows = observed(data)
    cells = data.mask if data.mask is not None and data.mask.ndim == data.x.ndim else None
    if rows is None:
        return cells
    return rows[..., None] if cells is None else rows[..., None] & cells


def whole(data: Data, filler: float) -> Data:
    """`normal` for rows that are whole sequences, [B, T, D]: always with lengths, ``filler`` beyond and under the mask."""
    if data.x is None or data.x.ndim != 3:
        given = "no x" if data.x is None else f"shape {data.x.shape}"
        raise ValueError(f"whole sequences need x padded, [B, T, D], with lengths (jaxem.sequences.pad); got {given}")
    labels = data.labels
    if labels is not None and labels.shape != data.x.shape[:1]:
        raise ValueError(f"labels of whole sequences need shape {data.x.shape[:1]}; got {labels.shape}")
    data = normal(dataclasses.replace(data, labels=None), True, filler)
    lengths = data.lengths
    if lengths is None:
        lengths = namespace(data.x).full(data.x.shape[0], data.x.shape[1], np.int32)
    return dataclasses.replace(data, lengths=lengths, labels=labels)


def observed(data: Data) -> Bool[Array, "*N"] | None:
    """Which observations are there at all: not masked whole, not beyond a length; None where all are."""
    within = _within(data)
    mask = data.mask if data.mask is not None and data.x is not None and data.mask.ndim < data.x.ndim else None
    if within is None or mask is None:
        return mask if within is None else within
    return within & mask


def _within(data: Data) -> Bool[Array, "B T"] | None:
    if data.lengths is None or data.x.ndim < 3:
        return None
    return namespace(data.x).arange(data.x.shape[1]) < data.lengths[:, None]


def _check_shapes(data: Data) -> None:
    x = data.x
    expected = {
        "mask": (x.shape, x.shape[:-1]),
        "lengths": (x.shape[:1],),
        "starts": (x.shape[:1],),
        "labels": (x.shape[:-1],),
    }
    for name, shapes in expected.items():
        value = getattr(data, name)
        if value is not None and value.shape not in shapes:
            raise ValueError(f"{name} needs shape {' or '.join(map(str, shapes))}; got {value.shape}")
    if data.mask is not None and data.mask.dtype != bool:
        raise ValueError(f"mask needs booleans, True where a cell is observed; got {data.mask.dtype}")
    if data.inputs is not None and data.inputs.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"inputs need shape {(*x.shape[:-1], 'C')}, one row for every observation; got {data.inputs.shape}"
        )


def rows(data: Data, reads: frozenset[str]) -> Data:
    """x, and of mask and inputs what a family reads, with one row for every observation."""
    x = data.x.reshape(-1, data.x.shape[-1])
    mask = inputs = None
    if "mask" in reads and data.mask is not None and data.mask.ndim == data.x.ndim:
        mask = data.mask
        present = observed(data)
        if present is not None:
            mask = mask & present[..., None]
        mask = mask.reshape(x.shape)
    if "inputs" in reads and data.inputs is not None:
        inputs = data.inputs.reshape(x.shape[0], -1)
    return Data(x=x, mask=mask, inputs=inputs)


def row_weights(data: Data, weights: Array | None) -> Array | None:
    """One weight for every row of `rows`, 0 where nothing is observed; None where all are 1."""
    present = observed(data)
    if weights is None and present is None:
        return None
    shape = lead(data)
    each = jnp.ones(shape, data.x.dtype)
    if weights is not None:
        each = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(shape) - 1)), shape).astype(data.x.dtype)
    if present is not None:
        each = jnp.where(present, each, 0)
    return each.reshape(-1)


def by_examples(tree: Any, axes: tuple[int, ...]) -> Any:
    """Rows back in the axes of the observations."""
    return tree if len(axes) == 1 else jax.tree.map(lambda a: a.reshape(*axes, *a.shape[1:]), tree)


def flatten(tree: Any, axes: tuple[int, ...]) -> Any:
    """The inverse of `by_examples`."""
    return tree if len(axes) == 1 else jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def count_sequences(data: Data) -> tuple[int, int]:
    """On the host: how many sequences there are, and how many steps in all of them."""
    shape = np.shape(data.x)
    if len(shape) == 3:
        return shape[0], shape[0] * shape[1] if data.lengths is None else int(np.sum(np.asarray(data.lengths)))
    return 1 if data.starts is None else 1 + int(np.sum(np.asarray(data.starts, bool)[1:])), shape[0]


def validate(data: Data, num_components: int) -> None:
    """Raise ValueError for concrete lengths and labels that cannot be."""
    if data.lengths is not None:
        lengths, longest = np.asarray(data.lengths), np.shape(data.x)[1] if np.ndim(data.x) == 3 else 0
        bad = np.flatnonzero((lengths < 0) | (lengths > longest) | (lengths != np.floor(lengths)))
        if len(bad):
            raise ValueError(f"lengths are whole numbers from 0 to {longest}; sequence {bad[0]} has {lengths[bad[0]]}")
        if lengths.sum() == 0:
            raise ValueError("all sequences have length 0: there is nothing to fit")
    if data.labels is not None:
        labels = np.asarray(data.labels)
        if data.lengths is not None:
            labels = np.where(np.arange(labels.shape[1]) < np.asarray(data.lengths)[:, None], labels, -1)
        bad = np.argwhere((labels < -1) | (labels >= num_components) | (labels != np.floor(labels)))
        if len(bad):
            place = ", ".join(str(i) for i in bad[0])
            raise ValueError(
                f"labels are components from 0 to {num_components - 1}, or -1 where unknown; "
                f"label [{place}] is {labels[tuple(bad[0])]}"
            )
