"""Rows that are alike, counted: discrete data often have few different ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxem.model import Data


def collapse_duplicates(data: Any, weights: Any = None) -> tuple[Any, np.ndarray]:
    """Each different row once, with the sum of the weights of its repetitions (their number, without weights).

    Rows are alike when x, mask, inputs and labels are; what is masked does not matter. A fit of the result is that of
    the data to rounding, in as many rows as there are different ones, which keep the order in which they first appear.
    data: [N, D] or a `Data`, on the host. Raises ValueError for sequences, whose steps cannot be exchanged, and for
    weights that are not one for each row.
    """
    given = data if isinstance(data, Data) else Data(x=data)
    if given.x is None or np.ndim(given.x) != 2 or given.lengths is not None or given.starts is not None:
        shape = None if given.x is None else np.shape(given.x)
        raise ValueError(f"only rows, [N, D], can be collapsed, not sequences; got x of shape {shape}")
    n = np.shape(given.x)[0]
    count = np.ones(n) if weights is None else np.asarray(weights, float)
    if count.shape != (n,):
        raise ValueError(f"weights need one number per row, shape {(n,)}; got shape {count.shape}")
    fields = {name: np.asarray(getattr(given, name)) for name in given.given()}
    if "mask" in fields:
        mask = fields["mask"].reshape(n, -1)
        fields["x"] = np.where(mask, fields["x"], np.zeros((), fields["x"].dtype))
    table = np.concatenate([np.asarray(fields[name], float).reshape(n, -1) for name in sorted(fields)], axis=1)
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    totals = np.bincount(inverse.reshape(-1), weights=count, minlength=len(first))
    order = np.argsort(first)
    rows = {name: value[first[order]] for name, value in fields.items()}
    return (Data(**rows) if isinstance(data, Data) else rows["x"]), totals[order]
