"""pomegranate's Gaussian mixture (PyTorch)."""

from __future__ import annotations

import time
from importlib import metadata

import torch
from pomegranate.distributions import Normal
from pomegranate.gmm import GeneralMixtureModel


def versions():
    return {"pomegranate": metadata.version("pomegranate"), "torch": torch.__version__}


def iteration(arrays, options):
    """Some rounds of summarize and from_summaries, which are its E- and M-step; seconds for one."""
    x, steps = torch.from_numpy(arrays["x"]), options["steps"]

    def model():
        members = [
            Normal(torch.from_numpy(mean), torch.from_numpy(covariance), covariance_type="full")
            for mean, covariance in zip(arrays["means"][0].copy(), arrays["covariances"][0].copy())
        ]
        return GeneralMixtureModel(members, priors=torch.from_numpy(arrays["weights"][0].copy()), check_data=False)

    def advance(mixture):
        mixture.summarize(x)
        mixture.from_summaries()

    advance(model())

    def run():
        mixture = model()
        begin = time.perf_counter()
        for _ in range(steps):
            advance(mixture)
        seconds = (time.perf_counter() - begin) / steps
        log_likelihood = mixture.log_probability(x).double().mean()
        return {"seconds": seconds, "log_likelihood": float(log_likelihood)}

    return {}, run
