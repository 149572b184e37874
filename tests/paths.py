"""A chain by brute force: sums and maxima over every path, in numpy, float64."""

import dataclasses
import itertools

import numpy as np
import scipy.special


@dataclasses.dataclass(frozen=True)
class Paths:
    """What forward-backward and Viterbi must find for one sequence of T steps.

    log_normalizer: log p(x). marginals: [T, K]. pairs: [T − 1, K, K]. best: the most probable path, [T], and ``score``,
    log p(best, x); ``second``: that of the next best path. entropy: of p(z | x), over whole paths.
    """

    log_normalizer: float
    marginals: np.ndarray
    pairs: np.ndarray
    best: np.ndarray
    score: float
    second: float
    entropy: float


def every_path(initial, transition, potentials) -> Paths:
    """By K^T paths. transition: [K, K], or one out of every step, [T, K, K]; an impossible sequence has marginals of 0."""
    steps, k = potentials.shape
    if steps == 0:
        return Paths(0.0, np.zeros((0, k)), np.zeros((0, k, k)), np.zeros(0, int), 0.0, -np.inf, 0.0)
    paths = np.array(list(itertools.product(range(k), repeat=steps)))
    out_of = np.broadcast_to(transition, (steps, k, k))
    with np.errstate(divide="ignore"):
        joint = np.log(initial)[paths[:, 0]] + potentials[np.arange(steps), paths].sum(axis=1)
        for t in range(1, steps):
            joint = joint + np.log(out_of[t - 1])[paths[:, t - 1], paths[:, t]]
    order = np.argsort(-joint, kind="stable")
    total = scipy.special.logsumexp(joint) if np.any(joint > -np.inf) else -np.inf
    p = np.exp(joint - total) if np.isfinite(total) else np.zeros(len(joint))
    one_hot = np.eye(k)[paths]
    pairs = np.stack([one_hot[:, t, :, None] * one_hot[:, t + 1, None, :] for t in range(steps - 1)] or [one_hot[:0]])
    return Paths(
        log_normalizer=float(total),
        marginals=np.einsum("p,ptk->tk", p, one_hot),
        pairs=np.einsum("p,tpij->tij", p, pairs) if steps > 1 else np.zeros((0, k, k)),
        best=paths[order[0]],
        score=float(joint[order[0]]),
        second=float(joint[order[1]]) if len(order) > 1 else -np.inf,
        entropy=float(np.sum(scipy.special.entr(p))),
    )


def of_set(initial, transition, potentials: list[np.ndarray]) -> list[Paths]:
    """`every_path` of several sequences."""
    return [every_path(initial, transition, p) for p in potentials]


def random_chain(rng, k, zeros=0.0):
    """Initial and transition probabilities; a share of ``zeros`` of the transitions is impossible."""
    transition = rng.dirichlet(np.ones(k), k)
    blocked = (rng.random((k, k)) < zeros) & ~np.eye(k, dtype=bool)
    transition = np.where(blocked, 0, transition)
    return rng.dirichlet(np.ones(k)), transition / transition.sum(axis=1, keepdims=True)
