"""scikit-learn's factor analysis."""

from __future__ import annotations

import time
import warnings

from sklearn.decomposition import FactorAnalysis

from benchmarks.contestants.sklearn_gmm import versions

__all__ = ["versions", "whole_fit"]


def whole_fit(arrays, options):
    """A fit of so many iterations, each a randomized singular value decomposition (its default)."""
    x = arrays["x"]

    def fit(rows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            return FactorAnalysis(options["factors"], tol=0.0, max_iter=options["steps"]).fit(rows)

    fit(x[:1000])

    def run():
        begin = time.perf_counter()
        model = fit(x)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "log_likelihood": float(model.score(x)), "steps": int(model.n_iter_)}

    return {"most_repeats": 3}, run
