"""Which component of one fit is which of another: labels are arbitrary, and restarts and resamples permute them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxem import layout
from jaxem.model import Data, Model, as_data
from jaxem.result import has_noise

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def match_components(
    model: Model, reference: Any, params: Any, data: Any = None, weights: Float[Array, " N"] | None = None
) -> Int[Array, " K"]:
    """The order of the components of ``params`` in which they agree best with those of ``reference``.

    ``model.take_components(params, order)`` puts them in it. With data the agreement of component j with k is
    Σ_n w_n p(z_n = j | x_n, reference) p(z_n = k | x_n, params), the expected number of examples that both claim; without,
    it is the nearness of their parameters, each in units of its spread among components. The permutation of the largest
    total is found by the Hungarian algorithm (Kuhn 1955); jit and vmap go through. Noise stays last.

    Raises ValueError for a model without components, and, without data, for one with noise.
    """
    from optax.assignment import hungarian_algorithm  # a quarter of a second that other questions need not wait for

    k = model.num_components
    if k < 1:
        raise ValueError(f"{type(model).__name__} has no components to match")
    reference, params = jax.tree.map(jnp.asarray, (reference, params))
    noise = has_noise(model)
    if data is not None:
        agreement = _shared_examples(model, reference, params, data, weights)
    elif noise:
        raise ValueError("noise has no parameters to compare: pass the data")
    else:
        agreement = -_distances(model, reference, params)
    named = k - noise
    rows, columns = hungarian_algorithm(-agreement[:named, :named])
    return jnp.arange(k).at[rows].set(columns)


def _shared_examples(model: Model, reference: Any, params: Any, data: Any, weights: Any) -> Float[Array, "K K"]:
    first, second = (model.posterior(p, data) for p in (reference, params))
    k = model.num_components
    rows = _row_weights(data, weights, first)
    return jnp.matmul((first.reshape(-1, k) * rows).T, second.reshape(-1, k), precision="highest")


def _row_weights(data: Any, weights: Any, posterior: Array) -> Array:
    """The weight of every row of the posterior: 0 where nothing is observed."""
    if isinstance(data, Data) and as_data(data).x is not None and as_data(data).x.ndim == posterior.ndim:
        each = layout.row_weights(data, weights)
        return jnp.ones(()) if each is None else each[:, None]
    if weights is None:
        return jnp.ones(())
    lead = posterior.shape[:-1]
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (len(lead) - 1)), lead).reshape(-1, 1)


def _distances(model: Model, reference: Any, params: Any) -> Float[Array, "K K"]:
    """Squared distances of the parameters of each component; what is shared by all is the same everywhere."""
    first, second = (_each(model, p) for p in (reference, params))
    spread = jnp.var(first, axis=0) + jnp.var(second, axis=0)
    away = first[:, None] - second
    return jnp.sum(away**2 / jnp.where(spread > 0, spread, 1), axis=-1)


def _each(model: Model, params: Any) -> Float[Array, "K F"]:
    one = lambda k: ravel_pytree(model.take_components(params, k[None]))[0]  # noqa: E731
    return jax.vmap(one)(jnp.arange(model.num_components))
