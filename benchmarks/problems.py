"""The data and the starting values that all contestants share: numpy only, float32, seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def mixture(seed: int, n: int, d: int, k: int, spread: float) -> np.ndarray:
    """N draws from K Gaussians, turned at random, of axes 0.5 to 1.5; ``spread`` is the standard deviation of means."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, spread, (k, d))
    mix = np.linalg.qr(rng.normal(size=(k, d, d)))[0] * rng.uniform(0.5, 1.5, (k, 1, d))
    x = rng.normal(size=(n, d))
    owner = rng.choice(k, n, p=rng.dirichlet(np.full(k, 5.0)))
    for j in range(k):
        mine = owner == j
        x[mine] = x[mine] @ mix[j].T + means[j]
    return x.astype(np.float32)


def starts(seed: int, x: np.ndarray, k: int, count: int) -> Arrays:
    """``count`` starts, [count, K, ...]: K rows of the data as means, the data's covariance, equal weights."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(len(x), k, replace=False) for _ in range(count)])
    covariance = np.cov(x, rowvar=False)
    shape = (count, k, *covariance.shape)
    return {
        "weights": np.full((count, k), 1 / k, np.float32),
        "means": x[rows],
        "covariances": np.broadcast_to(covariance, shape).astype(np.float32),
        "precisions": np.broadcast_to(np.linalg.inv(covariance), shape).astype(np.float32),
    }


def many(seed: int, sets: int, n: int, d: int, k: int, spread: float) -> Arrays:
    """Many data sets, [sets, N, D], each from a mixture of its own and with one start of its own."""
    data = [mixture(seed + i, n, d, k, spread) for i in range(sets)]
    begin = [starts(seed + i, x, k, 1) for i, x in enumerate(data)]
    together = {name: np.concatenate([one[name] for one in begin]) for name in begin[0]}
    return {"x": np.stack(data), **together}


def sequences(seed: int, count: int, length: int, d: int, k: int, spread: float) -> Arrays:
    """Sequences [count, length, D] of a Gaussian hidden Markov model with sticky states, and one start near the truth."""
    rng = np.random.default_rng(seed)
    transition = 0.9 * np.eye(k) + 0.1 * rng.dirichlet(np.ones(k), k)
    edges = np.cumsum(transition, axis=1)
    means = rng.normal(0, spread, (k, d))
    z = np.empty((length, count), np.int64)
    z[0] = rng.integers(0, k, count)
    draws = rng.random((length, count))
    for t in range(1, length):
        z[t] = np.minimum((draws[t][:, None] > edges[z[t - 1]]).sum(axis=1), k - 1)
    x = means[z.T] + rng.normal(size=(count, length, d))
    start = 0.8 * np.eye(k) + 0.2 / k
    return {
        "x": x.astype(np.float32),
        "initial": np.full(k, 1 / k, np.float32),
        "transition": start.astype(np.float32),
        "means": (means + 0.3 * rng.normal(size=means.shape)).astype(np.float32),
        "covariances": np.broadcast_to(1.5 * np.eye(d), (k, d, d)).astype(np.float32),
    }


def items(seed: int, n: int, d: int, k: int, count: int) -> Arrays:
    """N answers to D binary items from K classes, and ``count`` starts, [count, K, ...]: probabilities at random."""
    rng = np.random.default_rng(seed)
    probs = rng.uniform(0.1, 0.9, (k, d))
    x = rng.random((n, d)) < probs[rng.choice(k, n, p=rng.dirichlet(np.full(k, 5.0)))]
    return {
        "x": x.astype(np.float32),
        "weights": np.full((count, k), 1 / k, np.float32),
        "probs": rng.uniform(0.25, 0.75, (count, k, d)).astype(np.float32),
    }


def factors(seed: int, n: int, d: int, size: int, strength: float = 1.0) -> Arrays:
    """N draws of D features from a factor model: loadings at random, of size ``strength``, and noise of unequal size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, size)) @ (strength * rng.normal(size=(size, d))) + rng.normal(size=(n, d)) * rng.uniform(
        0.5, 2, d
    )
    return {"x": (x + rng.normal(0, 3, d)).astype(np.float32)}


def unequal(count: int) -> list[np.ndarray]:
    """Data sets of ``count`` lengths between 200 and 400, in no order, each of two features and three components."""
    lengths = np.random.default_rng(0).permutation(np.linspace(200, 400, count).astype(int))
    return [mixture(i, n, 2, 3, spread=3.0) for i, n in enumerate(lengths)]


def iris() -> np.ndarray:
    """Fisher's irises, [150, 4], read without any of the libraries that are compared."""
    path = Path(__file__).resolve().parent.parent / "jaxem" / "datasets" / "iris.csv"
    return np.loadtxt(path, np.float32, delimiter=",", skiprows=1, usecols=range(4))
