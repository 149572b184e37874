"""The log-likelihood of examples that a fit has not seen."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import validate
from jaxem.driver import rankable, run_lanes
from jaxem.inference.standard_errors import check_examples
from jaxem.initialize import KMeansPlusPlus, Start
from jaxem.lane import Control
from jaxem.model import Model, float_type, pytree
from jaxem.result import ConvergenceWarning
from jaxem.slots import Index
from jaxem.status import Status
from jaxem.stopping import RelativeGain

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@pytree
class CrossValidation:
    """Held-out log-likelihoods; larger is better.

    log_likelihood: of every example under the fit that left its fold out, [N]. folds: the fold of each example, [N]; −1
    for those of weight 0, which are in none. weights: of the examples, [N]. params: the best start of every fold's fit,
    with a leading axis of folds; status: how every start of every fold ended, `Status` values, [F, S]; best: which is
    the best.
    """

    log_likelihood: Float[np.ndarray, " N"]
    folds: Int[np.ndarray, " N"]
    weights: Float[np.ndarray, " N"]
    params: Any
    status: Int[np.ndarray, "F S"]
    best: Int[np.ndarray, " F"]

    @property
    def total(self) -> float:
        """Σ_n w_n log p(x_n | fit without its fold): comparable between models with the same folds."""
        return float(np.sum(self.per_fold))

    @property
    def mean(self) -> float:
        """`total` per example."""
        return self.total / float(np.sum(self.weights))

    @property
    def per_fold(self) -> Float[np.ndarray, " F"]:
        """The sum over each fold's examples."""
        inside = self.folds >= 0
        terms = self.weights[inside] * self.log_likelihood[inside]
        return np.bincount(self.folds[inside], weights=terms, minlength=len(self.best))


def cross_validate(
    model: Model,
    data: Any,
    weights: Any = None,
    *,
    key: Array,
    num_folds: int = 10,
    num_starts: int = 8,
    start: Start | None = None,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> CrossValidation:
    """Cross-validated log-likelihood: each fold is scored by a fit to the others (Smyth 2000).

    Folds are weights of 0 and 1 on one data set, and all starts of all folds are lanes of one program. An example is a
    row, or a whole sequence. The folds depend on the key, the number of examples and ``num_folds`` alone, so that
    models given the same key are compared on the same folds. Numerical constants (and the default prior of `WithPrior`)
    are taken from all of the data.

    num_folds: at least 2, at most the number of examples (leaving out one). num_starts, start, tol, max_steps: as for
    `jaxem.fit`. Raises ValueError for bad input, UnsupportedError for flat sequences, which are not independent
    examples (pad them); warns with `ConvergenceWarning` where the best start of a fold did not converge.
    """
    validate.check_model(model)
    data = validate.to_device(data, model.keeps_types)
    check_examples(model, data, "cross-validation")
    n = validate.check_data(model, data)
    model = model.specialize(data)
    dtype = float_type(data)
    weights = validate.check_weights(weights, (n,), dtype, model.min_examples)
    num_folds = validate.check_count("num_folds", num_folds, 2)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    control = Control(RelativeGain(tol), validate.check_count("max_steps", max_steps, 1))
    key, fold_key = jax.random.split(validate.check_key(key, "cross-validation"))
    each = np.ones(n) if weights is None else np.asarray(weights)
    folds = _folds(each, fold_key, num_folds)
    log_likelihood, params, status, best = jax.device_get(
        _program(
            start or KMeansPlusPlus(),
            control,
            model,
            data,
            weights,
            jnp.asarray(folds),
            key,
            num_folds=num_folds,
            num_starts=num_starts,
        )
    )
    ended = [Status(int(row[b])) for row, b in zip(status, best, strict=True)]
    failed = [f for f, s in enumerate(ended) if not s.success]
    if failed:
        worst = ended[failed[0]]
        message = f"{len(failed)} of {num_folds} folds; fold {failed[0]}: {worst.text}"
        warnings.warn(message + (f"; {worst.advice}" if worst.advice else ""), ConvergenceWarning, stacklevel=2)
    return CrossValidation(log_likelihood, folds, each, params, status, best)


def _folds(weights: np.ndarray, key: Array, num_folds: int) -> Int[np.ndarray, " N"]:
    """Folds of sizes as equal as can be, at random; −1 where there is no weight."""
    order = np.asarray(jax.random.permutation(key, len(weights)))
    present = order[weights[order] > 0]
    if num_folds > len(present):
        raise ValueError(f"num_folds must be at most the number of examples, {len(present)}; got {num_folds}")
    folds = np.full(len(weights), -1, np.int32)
    folds[present] = np.arange(len(present)) % num_folds
    return folds


@functools.partial(jax.jit, static_argnames=("num_folds", "num_starts"))
def _program(start, control, model: Model, data, weights, folds, key, *, num_folds: int, num_starts: int):
    model = model.calibrate(data, weights)
    dtype = float_type(data)
    every = jnp.arange(num_folds, dtype=folds.dtype)
    inside = (folds >= 0) & (folds != every[:, None])
    training = jnp.where(inside, jnp.ones((), dtype) if weights is None else weights, 0)

    def draw(args: tuple[Array, Array]) -> Any:
        own, keys = args
        return jax.vmap(lambda k: model.init(k, data, own, start))(keys)

    starts = jax.lax.map(draw, (training, jax.random.split(key, (num_folds, num_starts))))
    lanes = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), starts)
    prepared = model.prepare(data)
    index = Index(weights=jnp.repeat(jnp.arange(num_folds, dtype=jnp.int32), num_starts))
    run = run_lanes(model, lanes, prepared, training, index=index, control=control)
    run = jax.tree.map(lambda a: a.reshape(num_folds, num_starts, *a.shape[1:]), run)
    best = jnp.argmax(rankable(run.objective, run.status), axis=1)
    params = jax.tree.map(lambda a: a[jnp.arange(num_folds), best], run.params)
    scores = jax.lax.map(lambda p: model.log_likelihood(p, prepared), params)
    held_out = jnp.take_along_axis(scores, jnp.maximum(folds, 0)[None], axis=0)[0]
    return held_out, params, run.status, best
