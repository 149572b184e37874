"""Refits to resampled data, as lanes of one program."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.driver import Run, run_lanes
from jaxem.inference.matching import match_components
from jaxem.lane import Control
from jaxem.model import Data, Model, UnsupportedError, as_data, num_examples
from jaxem.slots import Index

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def resampled(
    model: Model, params: Any, data: Any, weights: Any, key: Array, num_samples: int, control: Control
) -> Run:
    """Lanes from ``params``, each with the examples counted as often as N draws with replacement have them (Efron 1979).

    Examples of weight w are w examples. ``model`` is calibrated to the data.
    """
    n = num_examples(data)
    size = n if weights is None else max(1, round(float(jnp.sum(weights))))
    return _resampled(model, params, data, weights, key, control, num_samples=num_samples, size=size)


@functools.partial(jax.jit, static_argnames=("num_samples", "size"))
def _resampled(model: Model, params: Any, data: Any, weights: Any, key: Array, control: Control, *, num_samples, size):
    dtype = jax.tree.leaves(params)[0].dtype
    n = num_examples(data)
    total = jnp.cumsum(jnp.ones(n, dtype) if weights is None else weights)

    def counts(key: Array) -> Float[Array, " N"]:
        level = total[-1] * (1 - jax.random.uniform(key, (size,), dtype))  # of (0, total]: never a row of weight 0
        rows = jnp.minimum(jnp.searchsorted(total, level), n - 1)
        return jnp.zeros(n, dtype).at[rows].add(1)

    drawn = jax.lax.map(counts, jax.random.split(key, num_samples))
    lanes = jax.tree.map(lambda a: jnp.broadcast_to(a, (num_samples, *a.shape)), params)
    index = Index(weights=jnp.arange(num_samples, dtype=jnp.int32))
    return run_lanes(model, lanes, model.prepare(data), drawn, index=index, control=control)


def simulated(model: Model, params: Any, data: Any, key: Array, num_samples: int, control: Control) -> Run:
    """Lanes from ``params``, each on data of the same shape drawn from the model at ``params``."""
    drawn = draws_like(model, params, data, key, num_samples)
    return _simulated(model, params, drawn, control)


@jax.jit
def _simulated(model: Model, params: Any, drawn: Any, control: Control) -> Run:
    prepared, weights = jax.vmap(model.compress)(drawn)
    count = jax.tree.leaves(drawn)[0].shape[0]
    models, lanes = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *jnp.shape(a))), (model, params))
    index = Index(data=jnp.arange(count, dtype=jnp.int32))
    return run_lanes(models, lanes, prepared, weights, index=index, control=control)


def draws_like(model: Model, params: Any, data: Any, key: Array, num_samples: int) -> Any:
    """Data sets drawn from the model, [num_samples, …], with the lengths, inputs and mask of the data given."""
    given = as_data(data)
    if not isinstance(given, Data) or given.x is None:
        raise ValueError("draws of the model can stand in for arrays and jaxem.Data only")
    if given.labels is not None:
        raise ValueError("draws have components of their own; data with labels cannot be simulated")
    x = _draw(model, params, given, key, num_samples=num_samples)
    every = jax.tree.map(lambda a: jnp.broadcast_to(a, (num_samples, *a.shape)), given)
    return dataclasses.replace(every, x=x)


@functools.partial(jax.jit, static_argnames="num_samples")
def _draw(model: Model, params: Any, data: Data, key: Array, *, num_samples: int) -> Array:
    options: dict[str, Any] = {} if data.inputs is None else {"inputs": data.inputs}
    if data.x.ndim == 3:
        options["num_steps"] = data.x.shape[1]

    def one(key: Array) -> Array:
        return model.sample(key, params, data.x.shape[0], **options)[0].astype(data.x.dtype)

    return jax.lax.map(one, jax.random.split(key, num_samples))


def spelled_out(data: Any, weights: Any, what: str) -> Any:
    """The data with every example as often as its weight says: what draws of the model stand in for."""
    if weights is None:
        return data
    counts = np.asarray(weights, float)
    if np.any(counts != np.round(counts)):
        raise ValueError(
            f"{what} needs weights that count examples, whole numbers; got {counts[counts != np.round(counts)][0]}"
        )
    return jax.tree.map(lambda a: jnp.repeat(a, jnp.asarray(counts.astype(int)), axis=0), data)


def matched(model: Model, reference: Any, lanes: Any, data: Any, weights: Any) -> tuple[Any, int]:
    """The parameters of every lane, on the host, with components in the order of the reference.

    And how many lanes stay in another order, because the model does not define `Model.take_components`.
    """
    lanes = jax.device_get(lanes)
    if model.num_components < 2:
        return lanes, 0
    try:
        orders = jax.device_get(_orders(model, reference, lanes, data, weights))
    except UnsupportedError:  # without a posterior components are not told apart by the data, and cannot be exchanged
        return lanes, 0
    moved = np.flatnonzero(np.any(orders != np.arange(model.num_components), axis=1))
    lanes = jax.tree.map(np.array, lanes)
    for lane in moved:
        try:
            turned = model.take_components(jax.tree.map(lambda a, i=lane: a[i], lanes), orders[lane])
        except UnsupportedError:
            return lanes, len(moved)
        for leaf, new in zip(jax.tree.leaves(lanes), jax.tree.leaves(turned), strict=True):
            leaf[lane] = new
    return lanes, 0


@jax.jit
def _orders(model: Model, reference: Any, lanes: Any, data: Any, weights: Any) -> Array:
    return jax.lax.map(lambda params: match_components(model, reference, params, data, weights), lanes)
