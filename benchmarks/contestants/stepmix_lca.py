"""StepMix's latent class model of binary items."""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
from stepmix.stepmix import StepMix


def versions():
    return {"stepmix": version("stepmix")}


def _model(arrays, i):
    model = StepMix(arrays["weights"].shape[1], measurement="binary", random_state=0, progress_bar=0)
    model.measurement_in_ = arrays["x"].shape[1]
    model.set_parameters(
        {
            "weights": arrays["weights"][i].astype(np.float64),
            "measurement": {"pis": arrays["probs"][i].astype(np.float64)},
            "measurement_in": arrays["x"].shape[1],
        }
    )
    return model


def iteration(arrays, options):
    """Some of the steps that its `em` makes; seconds for one."""
    x, steps = arrays["x"].astype(np.float64), options["steps"]

    def run():
        model = _model(arrays, 0)
        begin = time.perf_counter()
        for _ in range(steps):
            _, log_responsibilities = model._e_step(x)
            model._m_step(x, np.exp(log_responsibilities))
        seconds = (time.perf_counter() - begin) / steps
        return {"seconds": seconds, "log_likelihood": float(model._e_step(x)[0])}

    return {}, run


def starts(arrays, options):
    """Every start to convergence: the loop of its `em`, from given parameters."""
    x = arrays["x"].astype(np.float64)

    def run():
        begin, found, taken = time.perf_counter(), [], 0
        for i in range(len(arrays["weights"])):
            model, bound = _model(arrays, i), -np.inf
            for _ in range(options["max_steps"]):
                previous = bound
                bound, log_responsibilities = model._e_step(x)
                if abs(bound - previous) < options["tol"]:
                    break
                model._m_step(x, np.exp(log_responsibilities))
                taken += 1
            found.append(bound)
        seconds = time.perf_counter() - begin
        return {
            "seconds": seconds,
            "log_likelihood": float(np.mean(found)),
            "best": float(np.max(found)),
            "steps": taken,
        }

    return {"most_repeats": 3}, run
