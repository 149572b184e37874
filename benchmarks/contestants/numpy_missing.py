"""EM for one normal distribution with missing cells in plain numpy: rows sorted by pattern once, a solve for each."""

from __future__ import annotations

import time

import numpy as np


def versions():
    return {"numpy": np.__version__}


def _patterns(x, mask):
    """(observed columns, missing columns, rows) of each pattern."""
    patterns, which = np.unique(mask, axis=0, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(which.reshape(-1)))[:-1])
    return [(np.flatnonzero(p), np.flatnonzero(~p), x[rows]) for p, rows in zip(patterns, parts)]


def _step(groups, mean, covariance):
    """The next mean and covariance, and the log-likelihood of these."""
    d = len(mean)
    first, second, log_likelihood, n = np.zeros(d), np.zeros((d, d)), 0.0, 0
    for seen, gap, rows in groups:
        away = rows[:, seen] - mean[seen]
        solved = np.linalg.solve(covariance[np.ix_(seen, seen)], away.T).T
        _, log_det = np.linalg.slogdet(covariance[np.ix_(seen, seen)])
        count = len(rows)
        log_likelihood -= 0.5 * (np.sum(solved * away) + count * (log_det + len(seen) * np.log(2 * np.pi)))
        filled = np.empty((count, d), rows.dtype)
        filled[:, seen] = away
        if len(gap):
            cross = covariance[np.ix_(gap, seen)]
            filled[:, gap] = solved @ cross.T
            left = covariance[np.ix_(gap, gap)] - cross @ np.linalg.solve(covariance[np.ix_(seen, seen)], cross.T)
            second[np.ix_(gap, gap)] += count * left
        first += filled.sum(0)
        second += filled.T @ filled
        n += count
    shift = first / n
    return mean + shift, second / n - np.outer(shift, shift), log_likelihood


def iteration(arrays, options):
    """Some iterations; seconds for one."""
    groups = _patterns(arrays["x"], arrays["mask"])
    start = arrays["means"][0, 0], arrays["covariances"][0, 0]
    exact = [(seen, gap, rows.astype(np.float64)) for seen, gap, rows in groups]

    def run():
        mean, covariance = start
        begin = time.perf_counter()
        for _ in range(options["steps"]):
            mean, covariance, _ = _step(groups, mean, covariance)
        seconds = (time.perf_counter() - begin) / options["steps"]
        final = _step(exact, mean.astype(np.float64), covariance.astype(np.float64))[2]
        return {"seconds": seconds, "log_likelihood": float(final / len(arrays["x"]))}

    return {}, run
