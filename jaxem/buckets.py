"""Rows in buckets: data padded to one of a few sizes, so that data sets of many lengths run a few compiled programs.

JAX compiles a program for every shape. A loop over groups of a table, or a moving window, has another number of rows each
time and would wait for the compiler each time. What is padded has weight 0, which is absence: no sum changes by it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxem.families.of_model import OfModel
from jaxem.families.product import Product
from jaxem.initialize import KMeansPlusPlus, RandomPoints, RandomResponsibilities
from jaxem.model import Data, Model, float_type
from jaxem.models.latent_model import START_ROWS
from jaxem.programs import parts
from jaxem.wrappers.sharded import Sharded, Summed

if TYPE_CHECKING:
    from jaxtyping import Array

# Sizes per doubling: rows grow by less than an eighth; by less than a quarter where a step costs its overhead anyway,
# which is below so many bytes of data and potentials.
_SIZES = 8
_FEW_SIZES = 4
_SMALL_STEP = 2**16
# Above so many bytes of data the copy and the added work cost more than compiling once saves.
_LARGEST = 2**20
# Starts that draw number by number, so that the first N draws do not depend on how many follow.
_STARTS = (type(None), KMeansPlusPlus, RandomPoints, RandomResponsibilities)
# The features of these families are scaled by all rows, whatever their weight, and parts of a mesh have shapes of their
# own.
_NOT_PADDED = (Product, OfModel, Sharded, Summed)


def size_above(n: int, per_doubling: int) -> int:
    """The least size that holds n: of so many per doubling, above n by less than the share 1/per_doubling.

    Example:
        >>> [size_above(n, 4) for n in (200, 224, 225, 256, 257, 400)]
        [224, 224, 256, 256, 320, 448]
    """
    step = max(1, (1 << max(0, (n - 1).bit_length() - 1)) // per_doubling)
    return -(-n // step) * step


def pad(
    model: Model, data: Any, weights: Array | None, *, start: Any = None, algorithm: Any = None
) -> tuple[Model, Any, Array | None]:
    """Checked data and weights in the size of their bucket, and the model specialized to them.

    ``E(data, weights) = E(padded data, padded weights)`` for every sum E over examples: rows are added with weight 0,
    steps beyond the lengths of padded sequences, and to flat sequences one more sequence of weight 0. Weights (and the
    lengths or starts of sequences) are always given, so that all data sets of a bucket run the same program.

    Args:
        model: as `Model.specialize` leaves it. data: on the device, and checked. weights: [N], or None.
        start: where the fit starts from. algorithm: how it iterates.
    Returns:
        The arguments themselves where `in_buckets` says no. The true number of examples is that of the arguments.
    """
    if not in_buckets(model, data, start, algorithm):
        return model, data, weights
    given = data if isinstance(data, Data) else Data(x=data)
    each = np.ones(given.x.shape[0], float_type(data)) if weights is None else np.asarray(weights)
    extra = [size - n for size, n in zip(_sizes(model, given.x), given.x.shape, strict=False)]
    if not model.sequential:
        padded = _more_rows(given, *extra)
    elif given.x.ndim == 2:
        padded = _one_more_sequence(given, *extra)
    else:
        padded = _longer_sequences(given, *extra)
    each = np.pad(each, (0, padded.x.shape[0] - len(each)))
    place = given.x.sharding if given.x.committed else None  # where the data are, if they were put there on purpose
    padded, each = jax.device_put((padded, each), place)
    result = padded if isinstance(data, Data) or model.sequential else padded.x
    return model.specialize(result), result, each


def in_buckets(model: Model, data: Any, start: Any = None, algorithm: Any = None) -> bool:
    """Whether a fit of padded data is the fit of the data: from the model, shapes and types alone.

    True of jaxem's own models whose E-step is a sum over examples and draws nothing, for an array or a `Data` of at most
    1 MB. False of user's own models and families, which may look at rows whatever their weight; of `Product` and
    `OfModel`, whose starts do; and where examples are drawn or dealt by their number.
    """
    x = data.x if isinstance(data, Data) else data
    if not isinstance(x, jax.Array) or not x.ndim or not x.shape[0] or len(x.devices()) != 1:
        return False
    if not isinstance(start, _STARTS) or any(getattr(p, "batch_size", None) is not None for p in parts(algorithm)):
        return False
    if model.sequential and x.ndim not in (2, 3):
        return False
    if sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(data)) > _LARGEST:
        return False
    if model.sequential and x.ndim == 3 and math.prod(_sizes(model, x)) > START_ROWS:
        return False  # a start would look at some sequences, as many as a number of steps says
    if not model.additive or not model.monotone:
        return False
    own = all(type(part).__module__.startswith("jaxem.") for part in parts((model, algorithm)))
    # An init of the user's that takes the data takes all rows, whatever their weight.
    whole = any(isinstance(part, _NOT_PADDED) or getattr(part, "starts_from_data", False) for part in parts(model))
    return own and not whole


def _sizes(model: Model, x: Any) -> list[int]:
    """What the axes of the examples are padded to: of sequences two, which share the added work."""
    axes = x.shape[:2] if model.sequential and x.ndim == 3 else x.shape[:1]
    rows = math.prod(axes)
    small = x.dtype.itemsize * (x.size + rows * model.num_components) <= _SMALL_STEP
    per_doubling = (_FEW_SIZES if small else _SIZES) * len(axes)
    return [size_above(n, per_doubling) for n in axes]


def _filled(array: Any, widths: list[tuple[int, int]], value: Any) -> Any:
    """The array with a value after its ends; ``"edge"``: with its last entries again, which any check lets pass."""
    if array is None:
        return None
    widths = widths + [(0, 0)] * (np.ndim(array) - len(widths))
    if isinstance(value, str):
        return np.pad(np.asarray(array), widths, mode="edge")
    return np.pad(np.asarray(array), widths, constant_values=value)


def _more_rows(data: Data, extra: int) -> Data:
    ends = [(0, extra)]
    return Data(
        x=_filled(data.x, ends, "edge"),
        mask=_filled(data.mask, ends, False),
        inputs=_filled(data.inputs, ends, "edge"),
        labels=_filled(data.labels, ends, -1),
    )


def _one_more_sequence(data: Data, extra: int) -> Data:
    """Flat sequences, [N, D]: what is added begins with a start of its own."""
    n = data.x.shape[0]
    starts = np.zeros(n + extra, bool)
    if data.starts is not None:
        starts[:n] = np.asarray(data.starts, bool)
    starts[0] = True
    starts[n : n + 1] = True
    return dataclasses.replace(_more_rows(data, extra), starts=starts)


def _longer_sequences(data: Data, sequences: int, steps: int) -> Data:
    """Padded sequences, [B, T, D]: steps beyond the lengths, and sequences of length 0."""
    b, t = data.x.shape[:2]
    ends = [(0, sequences), (0, steps)]
    lengths = np.full(b, t, np.int32) if data.lengths is None else np.asarray(data.lengths)
    return Data(
        x=_filled(data.x, ends, "edge"),
        mask=_filled(data.mask, ends, False),
        inputs=_filled(data.inputs, ends, "edge"),
        labels=_filled(data.labels, ends, -1),
        lengths=np.pad(lengths, (0, sequences)),
    )
