"""scikit-learn's Gaussian mixture."""

from __future__ import annotations

import os
import time

import numpy as np
import sklearn
from sklearn.mixture import GaussianMixture

from benchmarks import problems


def versions():
    return {"scikit-learn": sklearn.__version__}


def _model(arrays, i, tol, max_iter):
    return GaussianMixture(
        arrays["means"].shape[1],
        tol=tol,
        max_iter=max_iter,
        weights_init=arrays["weights"][i],
        means_init=arrays["means"][i],
        precisions_init=arrays["precisions"][i],
    )


def _facts():
    """With all threads its loops over small fits take minutes: three repetitions are what the patience is for."""
    return {} if os.environ.get("OMP_NUM_THREADS") == "1" else {"most_repeats": 3}


def iteration(arrays, options):
    """Some E- and M-steps from given parameters, without the start-up of `fit`; seconds for one."""
    x, steps = arrays["x"], options["steps"]

    def run():
        model = _model(arrays, 0, 0.0, 1).fit(x[:1000])  # sets the attributes that the steps below read
        model.weights_, model.means_ = arrays["weights"][0], arrays["means"][0]
        model.covariances_ = arrays["covariances"][0]
        model.precisions_cholesky_ = np.linalg.cholesky(arrays["precisions"][0])
        begin = time.perf_counter()
        for _ in range(steps):
            _, log_responsibilities = model._e_step(x)
            model._m_step(x, log_responsibilities)
        seconds = (time.perf_counter() - begin) / steps
        return {"seconds": seconds, "log_likelihood": float(model.score(x))}

    return {}, run


def starts(arrays, options):
    """Every start to convergence, one fit after another."""
    x, count = arrays["x"], len(arrays["means"])
    _model(arrays, 0, options["tol"], options["max_steps"]).fit(x)

    def run():
        begin = time.perf_counter()
        models = [_model(arrays, i, options["tol"], options["max_steps"]).fit(x) for i in range(count)]
        return _answer(models, time.perf_counter() - begin)

    return _facts(), run


def batch(arrays, options):
    """Every data set from its start to convergence, one fit after another."""
    x = arrays["x"]
    _model(arrays, 0, options["tol"], options["max_steps"]).fit(x[0])

    def run():
        begin = time.perf_counter()
        models = [_model(arrays, i, options["tol"], options["max_steps"]).fit(x[i]) for i in range(len(x))]
        return _answer(models, time.perf_counter() - begin)

    return _facts(), run


def first_call(arrays, options):
    """Random starts on given rows: a process's first fit, and later ones."""
    x = arrays["x"]

    def run():
        begin = time.perf_counter()
        model = GaussianMixture(options["k"], n_init=options["starts"], random_state=0).fit(x)
        return {"seconds": time.perf_counter() - begin, "log_likelihood": float(model.lower_bound_)}

    return {}, run


def one_by_one(arrays, options):
    """Data sets of different length, one fit after another."""
    sets = problems.unequal(options["sets"])

    def run():
        begin = time.perf_counter()
        for x in sets:
            GaussianMixture(3, n_init=8, random_state=0).fit(x)
        return {"seconds": time.perf_counter() - begin, "done": len(sets)}

    return {}, run


def _answer(models, seconds):
    bounds = np.array([model.lower_bound_ for model in models])
    steps = [model.n_iter_ for model in models]
    return {
        "seconds": seconds,
        "log_likelihood": float(np.mean(bounds)),
        "best": float(np.max(bounds)),
        "steps": int(np.sum(steps)),
        "most_steps": int(np.max(steps)),
    }
