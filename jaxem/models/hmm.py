"""Hidden Markov models: a Markov chain with any family, and what only a chain can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem import programs
from jaxem.families.of_model import family_of
from jaxem.latents.input_markov_chain import InputMarkovChain
from jaxem.latents.markov_chain import MarkovChain
from jaxem.linalg import dot
from jaxem.model import Data, Family, Model, UnsupportedError, pytree
from jaxem.models.latent_model import LatentModel, LatentParams

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def HMM(
    family: Family | Model, num_components: int, *, allowed: Any = None, allowed_initial: Any = None
) -> LatentModel:
    """A hidden Markov model, ``p(x, z) = p(z_1) Π p(z_{t+1} | z_t) Π p(x_t | z_t)``, with ``num_components`` states.

    Data are padded sequences, [B, T, D] with ``Data.lengths``, or flat ones, [N, D] with ``Data.starts`` (see
    `jaxem.sequences`); an array [T, D] is one sequence. Parameters are ``params.latent.initial``,
    ``params.latent.transition`` and ``params.likelihood``. allowed, allowed_initial: zero patterns that stay exactly zero
    (`jaxem.latents.left_to_right`). Weights are one number per sequence (of flat ones: per row, equal within a sequence).
    A model in place of the family emits its examples: ``HMM(Mixture(Gaussian(), 2), 3)``.
    Raises ValueError as `MarkovChain` does (Baum et al. 1970; Rabiner 1989).
    """
    return LatentModel(MarkovChain(num_components, allowed, allowed_initial), family_of(family))


def InputOutputHMM(family: Family | Model, num_components: int, *, intercept: bool = True) -> LatentModel:
    """A hidden Markov model whose transitions depend on inputs, ``p(z_t | z_{t−1}, inputs_t)`` a softmax for each state.

    Data are sequences as for `HMM`, with ``Data.inputs`` [B, T, C] (flat [N, C]); the family may read them too. Parameters
    are ``params.latent.initial``, ``params.latent.gate``, [K, K, P], those into the last state 0, and
    ``params.likelihood``. intercept: whether the transitions add a column of ones (Bengio & Frasconi 1995).
    """
    return LatentModel(InputMarkovChain(num_components, intercept), family_of(family))


@pytree
class Forecast:
    """The next steps of every sequence: p(z | x_1 … x_T), [B, S, K], and E[x | x_1 … x_T], [B, S, D]."""

    states: Float[Array, "B S K"]
    mean: Float[Array, "B S D"]


@programs.method
def pair_posterior(model: Model, params: LatentParams, data: Any) -> Float[Array, "B T-1 K K"]:
    """p(z_t = i, z_{t+1} = j | x) of every step and the next, [B, T − 1, K, K]; of flat sequences [N − 1, K, K].

    0 where a sequence has no next step. Raises UnsupportedError for a model without a Markov chain.
    """
    inner, chain = _latent(model)
    if not isinstance(chain, (MarkovChain, InputMarkovChain)):
        raise UnsupportedError(f"{type(inner).__name__} of {type(chain).__name__} has no Markov chain")
    potentials, rest = inner._potentials(params, data)
    return chain.pair_posterior(params.latent, potentials, rest)


@programs.method(static=("num_steps",))
def forecast(model: Model, params: LatentParams, data: Any, num_steps: int = 1) -> Forecast:
    """The states and the expected observations of the next ``num_steps`` steps after the end of every sequence.

    Of flat sequences after the last of them, with a leading axis of 1. Raises UnsupportedError for a model without a
    Markov chain, or of inputs, which the next steps do not have; ValueError for a num_steps below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}")
    inner, chain = _latent(model)
    if not isinstance(chain, MarkovChain) or "inputs" in inner.reads:
        name = f"{type(inner).__name__} of {type(chain).__name__}"
        raise UnsupportedError(f"{name} has no Markov chain, or one whose next steps need inputs")
    potentials, rest = inner._potentials(params, data)
    filtered = chain.filtered(params.latent, potentials, rest)
    if rest.starts is not None:
        last = filtered[-1:]
    elif rest.lengths is None:
        last = filtered[:, -1]
    else:
        at = jnp.maximum(rest.lengths - 1, 0)
        last = jnp.take_along_axis(filtered, at[:, None, None], axis=1)[:, 0]

    def step(state: Array, _: None) -> tuple[Array, Array]:
        after = dot(state, params.latent.transition)
        return after, after

    _, states = jax.lax.scan(step, last, None, length=num_steps)
    if rest.lengths is not None:
        # A sequence that has not begun: its first steps are still to come.
        _, fresh = jax.lax.scan(step, params.latent.initial, None, length=num_steps - 1)
        fresh = jnp.concatenate([params.latent.initial[None], fresh])
        states = jnp.where((rest.lengths == 0)[:, None], fresh[:, None], states)
    states = jnp.swapaxes(states, 0, 1)
    return Forecast(states, dot(states, inner.likelihood.mean(params.likelihood, Data())))


def _latent(model: Any) -> tuple[Any, Any]:
    """The model without its wrappers, and its latent without its own."""
    inner = model
    while isinstance(getattr(inner, "model", None), Model):
        inner = inner.model
    latent = getattr(inner, "latent", None)
    return inner, getattr(latent, "latent", latent)
