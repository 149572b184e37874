"""Is one component more than chance? The likelihood ratio against its own distribution under the null, by simulation."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import validate
from jaxem.fit import fit
from jaxem.fit_batch import fit_batch
from jaxem.inference.bootstrap import draws_like, spelled_out
from jaxem.inference.standard_errors import InferenceWarning, check_examples
from jaxem.model import Model, float_type, num_examples, pytree, static
from jaxem.result import BatchResult, Result
from jaxem.status import Status

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@pytree
class LikelihoodRatioTest:
    """A null hypothesis against an alternative that contains it.

    statistic: 2 (log L of the alternative − log L of the null), on the data. draws: the same on data drawn from the
    fitted null, [B]; NaN where a fit was not usable, or degenerate. null_status, alternative_status: how those fits
    ended, `Status` values, [B]. null, alternative: the fits to the data.
    """

    null: Result
    alternative: Result
    draws: Float[np.ndarray, " B"]
    null_status: Int[np.ndarray, " B"]
    alternative_status: Int[np.ndarray, " B"]
    statistic: float = static()

    @property
    def p_value(self) -> float:
        """(1 + #{draws ≥ statistic}) / (1 + number of draws): the level at which the null is rejected."""
        used = self.draws[~np.isnan(self.draws)]
        return float((1 + np.sum(used >= self.statistic)) / (1 + used.size))

    def __str__(self) -> str:
        used = np.sum(~np.isnan(self.draws))
        middle = f"median {np.nanmedian(self.draws):.4g}" if used else "none usable"
        return f"likelihood ratio {self.statistic:.4g}, of {used} draws under the null {middle}: p = {self.p_value:.3g}"


def likelihood_ratio_test(
    null: Model,
    alternative: Model,
    data: Any,
    weights: Any = None,
    *,
    key: Array,
    num_samples: int = 99,
    num_starts: int = 16,
    tol: float = 1e-6,
    max_steps: int = 1000,
) -> LikelihoodRatioTest:
    """The parametric bootstrap of the likelihood ratio of K against K + 1 components (McLachlan 1987).

    Wilks' χ² does not hold there: under the null the alternative is not identified. Both models are fitted to the data,
    and to ``num_samples`` data sets of the same shape drawn from the fitted null; the draws are one batch of lanes.
    Fits to draws start from the parameters they were drawn from as well, those of the null only.

    null, alternative: models, such as ``Mixture(Gaussian(), 2)`` and ``Mixture(Gaussian(), 3)``. weights: how often
    each example was seen, whole numbers. num_samples: 99 resolve p-values of 0.01. num_starts: of every fit, with as
    many for the data as for the draws, so that what starts miss is missed in both.
    Raises ValueError for bad input (labels, weights that are not whole numbers), UnsupportedError for flat sequences,
    whose lengths are unknown (pad them), `FitError` where the data themselves cannot be fitted. Warns with
    `InferenceWarning` where draws were not usable.
    """
    num_samples = validate.check_count("num_samples", num_samples, 1)
    num_starts = validate.check_count("num_starts", num_starts, 1)
    key = validate.check_key(key, "the bootstrap")
    for model in (null, alternative):
        validate.check_model(model)
    data = validate.to_device(data, null.keeps_types)
    check_examples(null, data, "the likelihood ratio test")
    n = validate.check_data(null, data)
    weights = validate.check_weights(weights, (n,), float_type(data), alternative.min_examples)
    data = spelled_out(data, weights, "the likelihood ratio test")

    keys = jax.random.split(key, 5)
    options: dict[str, Any] = {"tol": tol, "max_steps": max_steps}
    lesser = fit(null, data, key=keys[0], num_starts=num_starts, trace_size=0, **options)
    greater = fit(alternative, data, key=keys[1], num_starts=num_starts, trace_size=0, **options)
    drawn = draws_like(lesser.model, lesser.params, data, keys[2], num_samples)
    starts = _starts(null, lesser.params, drawn, keys[3], num_starts)
    quiet: dict[str, Any] = {"on_failure": "ignore", **options}
    below = fit_batch(null, drawn, starts=starts, num_starts=num_starts, **quiet)
    above = fit_batch(alternative, drawn, key=keys[4], num_starts=num_starts, **quiet)
    draws = np.where(_sound(below) & _sound(above), 2 * (above.log_likelihood - below.log_likelihood), np.nan)
    lost = int(np.sum(np.isnan(draws)))
    if lost:
        warnings.warn(
            f"{lost} of {num_samples} draws have no usable fit and are left out", InferenceWarning, stacklevel=2
        )
    return LikelihoodRatioTest(
        lesser,
        greater,
        draws,
        below.status,
        above.status,
        statistic=2 * (greater.log_likelihood - lesser.log_likelihood),
    )


def _sound(result: BatchResult) -> np.ndarray:
    good = [int(s) for s in Status if s.usable and s != Status.DEGENERATE]
    return np.isin(result.status, good) & np.isfinite(result.log_likelihood)


def _starts(model: Model, params: Any, drawn: Any, key: Array, num_starts: int) -> Any:
    """For every draw the parameters it comes from, and random starts beside them: leading axes [B, num_starts]."""
    count = num_examples(drawn)
    given = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, 1, *jnp.shape(a))), params)
    if num_starts == 1:
        return given

    @jax.jit
    def random(model: Model, drawn: Any, keys: Array) -> Any:
        def one(args: tuple[Any, Array]) -> Any:
            data, keys = args
            own = model.calibrate(data)
            return jax.vmap(lambda k: own.init(k, data))(keys)

        return jax.lax.map(one, (drawn, keys))

    rest = random(model, drawn, jax.random.split(key, (count, num_starts - 1)))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], axis=1), given, rest)
