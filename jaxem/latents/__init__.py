"""Latent variables: p(z | θ) with exact inference, and the wrappers that choose q."""

from jaxem.latents.categorical import Categorical, CategoricalParams
from jaxem.latents.gated import Gated, GatedParams
from jaxem.latents.hard import Hard
from jaxem.latents.input_markov_chain import InputMarkovChain, InputMarkovChainParams
from jaxem.latents.markov_chain import MarkovChain, MarkovChainParams, left_to_right

__all__ = [
    "Categorical",
    "CategoricalParams",
    "Gated",
    "GatedParams",
    "Hard",
    "InputMarkovChain",
    "InputMarkovChainParams",
    "MarkovChain",
    "MarkovChainParams",
    "left_to_right",
]
