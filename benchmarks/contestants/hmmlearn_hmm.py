"""hmmlearn's Gaussian hidden Markov model, with its fast `scaling` implementation (float64, as all of hmmlearn)."""

from __future__ import annotations

import time

import hmmlearn
import numpy as np
from hmmlearn.hmm import GaussianHMM


def versions():
    return {"hmmlearn": hmmlearn.__version__}


def iteration(arrays, options):
    """Some E- and M-steps from given parameters; seconds for one."""
    sequences, steps = arrays["x"].astype(np.float64), options["steps"]
    count, length, d = sequences.shape
    x, lengths = sequences.reshape(-1, d), [length] * count

    def run():
        model = GaussianHMM(
            arrays["means"].shape[0],
            covariance_type="full",
            implementation="scaling",
            init_params="",
            covars_prior=0.0,
            covars_weight=0.0,
            min_covar=0.0,
        )
        model.startprob_, model.transmat_ = (
            p / p.sum(-1, keepdims=True) for p in (np.float64(arrays["initial"]), np.float64(arrays["transition"]))
        )
        model.means_, model.covars_ = np.float64(arrays["means"]), np.float64(arrays["covariances"])
        model._init(x, lengths)
        model._check()
        begin = time.perf_counter()
        for _ in range(steps):
            stats, _ = model._do_estep(x, lengths)
            model._do_mstep(stats)
        seconds = (time.perf_counter() - begin) / steps
        return {"seconds": seconds, "log_likelihood": float(model.score(x, lengths)) / len(x)}

    return {}, run
