"""Latent variables: p(z | θ) with exact inference, and the wrappers that choose q."""

from jaxem.latents.annealed import Annealed
from jaxem.latents.categorical import Categorical, CategoricalParams
from jaxem.latents.gated import Gated, GatedParams
from jaxem.latents.hard import Hard
from jaxem.latents.input_markov_chain import InputMarkovChain, InputMarkovChainParams
from jaxem.latents.markov_chain import MarkovChain, MarkovChainParams, left_to_right
from jaxem.latents.sampled import Sampled

__all__ = [
    "Annealed",
    "Categorical",
    "CategoricalParams",
    "Gated",
    "GatedParams",
    "Hard",
    "InputMarkovChain",
    "InputMarkovChainParams",
    "MarkovChain",
    "MarkovChainParams",
    "Sampled",
    "left_to_right",
]
