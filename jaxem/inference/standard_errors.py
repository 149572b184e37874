"""Standard errors of fitted parameters: the observed information, inverted, on the natural scale."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.special import ndtri

from jaxem import validate
from jaxem.driver import Run
from jaxem.free import coordinates
from jaxem.inference.bootstrap import matched, resampled, simulated, spelled_out
from jaxem.inference.chart import Chart, chart_at
from jaxem.inference.information import Information, information, scores
from jaxem.inference.inverse import Inverse, invert
from jaxem.lane import Control
from jaxem.model import Data, Model, UnsupportedError, as_data, float_type, pytree, static
from jaxem.status import Status
from jaxem.stopping import RelativeGain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Method = Literal["hessian", "oakes", "louis", "sem", "scores", "sandwich", "bootstrap"]
# Further from the optimum than this share of a standard error, errors are those of another place.
_FAR = 0.1
# EM's Jacobian times the complete information is symmetric where the M-step maximizes q.
_ASYMMETRIC = 1e-3


class InferenceWarning(UserWarning):
    """Standard errors that are not what they seem: the message names the parameters and says why."""


@pytree
class StandardErrors:
    """Standard errors on the natural scale; arrays are numpy's, on the host.

    model, params: what was fitted, and the estimates. standard_errors: shaped like them; 0 for what is held, NaN for
    what is not identified.
    natural_covariance: of the natural parameters as one vector (the leaves one after another), [M, M]. covariance: of
    the free coordinates of `Model.to_free`, likewise, [P, P]. information: the observed information there, [P, P], 0
    for what cannot move; complete_information: of the complete data, from the methods that compute it (louis, sem).
    held: which entries of the parameters are frozen, or lie on a boundary where they cannot move. identified: which the
    data determine, at least locally. draws: of a bootstrap, the parameters fitted to each resample, with a leading
    axis; status says how each ended.
    """

    model: Model
    params: Any
    standard_errors: Any
    natural_covariance: Float[np.ndarray, "M M"]
    covariance: Float[np.ndarray, "P P"]
    information: Float[np.ndarray, "P P"] | None
    complete_information: Float[np.ndarray, "P P"] | None
    held: Any
    identified: Any
    draws: Any = None
    status: Any = None
    method: str = static(default="hessian")

    def confidence_intervals(
        self, level: float = 0.95, *, key: Array | None = None, num_draws: int = 4000
    ) -> tuple[Any, Any]:
        """Lower and upper ends of intervals that hold each parameter with probability ``level``, shaped like params.

        θ̂ ± z · standard error, which may leave the parameter's domain where the error is large. With a key, quantiles
        of parameters whose free coordinates are drawn from their normal approximation, which never do (Krinsky & Robb
        1986). Of a bootstrap the quantiles of its draws. Raises ValueError for a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is a probability between 0 and 1; got {level}")
        draws = self.draws
        if draws is None and key is not None:
            draws = self._simulated(key, validate.check_count("num_draws", num_draws, 2))
        if draws is not None:
            tails = (1 - level) / 2, (1 + level) / 2
            low, high = (jax.tree.map(lambda a, t=t: np.quantile(a, t, axis=0), draws) for t in tails)
            return low, high
        z = float(ndtri((1 + level) / 2))
        low = jax.tree.map(lambda a, e: a - z * e, self.params, self.standard_errors)
        return low, jax.tree.map(lambda a, e: a + z * e, self.params, self.standard_errors)

    def _simulated(self, key: Array, count: int) -> Any:
        """Parameters with normal free coordinates, [count, …]; what is held as it is, NaN where nothing is known."""
        origin, back = coordinates(self.model, jax.tree.map(jnp.asarray, self.params))
        values, vectors = np.linalg.eigh(np.nan_to_num(self.covariance))
        root = jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), origin.dtype)
        noise = jax.random.normal(key, (count, origin.size), origin.dtype)
        drawn = jax.device_get(jax.jit(jax.vmap(back))(origin + noise @ root.T))

        def told(draws: np.ndarray, value: Any, held: np.ndarray, known: np.ndarray) -> np.ndarray:
            return np.where(held, value, np.where(known, draws, np.nan))

        return jax.tree.map(told, drawn, self.params, self.held, self.identified)

    def __str__(self) -> str:
        low, high = self.confidence_intervals()
        names = entry_names(self.params)
        columns = (ravel_pytree(tree)[0] for tree in (self.params, self.standard_errors, low, high))
        width = max(len(name) for name in names)
        lines = [f"{'':<{width}}{'estimate':>14}{'std. error':>14}{'2.5%':>14}{'97.5%':>14}   ({self.method})"]
        lines += [
            f"{name:<{width}}" + "".join(f"{float(value):>14.6g}" for value in row)
            for name, *row in zip(names, *columns, strict=True)
        ]
        return "\n".join(lines)


def standard_errors(
    model: Model,
    params: Any,
    data: Any,
    weights: Any = None,
    *,
    method: Method = "hessian",
    key: Array | None = None,
    num_samples: int = 200,
    parametric: bool = False,
    tol: float = 1e-8,
    max_steps: int = 1000,
) -> StandardErrors:
    """Standard errors of ``params``, an optimum of log-likelihood + log-prior, with their covariances.

    The observed information I = −∂² log p(x | θ)/∂θ∂θᵀ is taken in free coordinates (`Model.to_free`), inverted, and
    brought to the natural scale by the delta method, Var θ ≈ D I⁻¹ Dᵀ with D = ∂θ/∂v. Of a model with a prior it is the
    information of the penalized objective, so that the errors are those of the posterior's normal approximation.

    model, params, data, weights: as they were fitted (those of a `Result`); float64 is
    advised, float32 leaves some three digits. Fit with a small tol first: errors hold at the optimum.
    method: "hessian" differentiates the log-likelihood twice; "oakes" its gradient as EM has it, once (Oakes 1999);
    "louis" is complete less missing information (Louis 1982), the missing information being the covariance of the
    complete-data score given the data, ∂²q(θ' | θ)/∂θ'∂θ; "sem" is I_complete (I − J) with J the Jacobian of the EM
    map (Meng & Rubin 1991; of an M-step that only raises q, that of the whole maximization): all four agree. "scores"
    takes B = Σ_n w_n s_n s_nᵀ for I, with s_n the score of an example, a row or a whole sequence, which needs no
    second derivatives (Meilijson 1989; poLCA). "sandwich" is I⁻¹ B I⁻¹, with scores about their mean, and holds for a
    misspecified model too (White 1982). An example of weight 3 counts as three. "bootstrap" is the spread of refits
    to ``num_samples`` resamples of the examples (Efron 1979), or, parametric, to data sets drawn from the model, all
    of them lanes of one program that start from ``params``, with components put in the order in which they share most
    examples with those of ``params`` (`match_components`). It needs a key; tol and max_steps are those of the refits.
    Resamples without a usable fit, or with a degenerate one, are left out.

    Frozen parameters have error 0, and so have those on a boundary (a transition that is impossible, a probability of
    1). Warns with `InferenceWarning`, by name, where parameters are not identified (the rotation of factors), where
    ``params`` are no maximum, and where they are further than a tenth of a standard error from it. Raises ValueError
    for bad input and for "sem" of a parameter-expanded EM, UnsupportedError for scores and resamples of flat
    sequences, which are not independent examples (pad them).
    """
    if method not in get_args(Method):
        raise ValueError(f"method is one of {', '.join(get_args(Method))}; got {method!r}")
    model, params, data, weights = check_fit(model, params, data, weights)
    if method == "sem" and not model.averageable:
        raise ValueError(
            "method 'sem' needs an M-step that maximizes q, and this one maximizes that of a larger model "
            "(a parameter-expanded one); use method 'hessian'"
        )
    if method in ("scores", "sandwich", "bootstrap"):
        check_examples(model, data, f"method {method!r}")
    model, chart, derivative = chart_at(model, params, data, weights)
    if method == "bootstrap":
        key = validate.check_key(key, "the bootstrap")
        count = validate.check_count("num_samples", num_samples, 2)
        control = Control(RelativeGain(tol), validate.check_count("max_steps", max_steps, 1))
        if not parametric:
            run = resampled(model, params, data, weights, key, count, control)
        else:
            all_of_them = spelled_out(data, weights, "a parametric bootstrap")
            run = simulated(model, params, all_of_them, key, count, control)
        return _spread(model, params, chart, derivative, data, weights, run)
    how, spread = method, None
    if method == "sandwich":
        how, (_, spread) = "hessian", jax.device_get(_scores(model.specialize(None), params, chart, data, weights))
    if method == "scores":
        gradient, observed = jax.device_get(_scores(model.specialize(None), params, chart, data, weights))
        found = Information(gradient, observed, None, jnp.zeros(()))
    else:
        found = jax.device_get(_information(how, model, params, chart, data, weights))
    if method == "sem" and found.asymmetry > _ASYMMETRIC + _float_noise(params):
        raise ValueError(
            f"method 'sem': I_complete (I − J) differs from its transpose by {found.asymmetry:.2g} of its size: the M-step "
            "does not maximize q, or params are no optimum; use method 'hessian'"
        )
    return _assemble(method, model, params, chart, derivative, found, spread)


def check_fit(model: Model, params: Any, data: Any, weights: Any) -> tuple[Model, Any, Any, Any]:
    """What a fit was made of, checked, on the device."""
    validate.check_model(model)
    data = validate.to_device(data, model.keeps_types)
    n = validate.check_data(model, data)
    model = model.specialize(data)
    weights = validate.check_weights(weights, (n,), float_type(data), model.min_examples)
    validate.check_weights_of_sequences(model, data, weights)
    return model, validate.check_params(model, params, data), data, weights


def check_examples(model: Model, data: Any, what: str) -> None:
    """Raise UnsupportedError where the data are not independent examples along their leading axis."""
    x = as_data(data).x if isinstance(data, Data) or hasattr(data, "shape") else None
    if model.sequential and x is not None and x.ndim < 3:
        raise UnsupportedError(
            f"{what} needs independent examples, and the rows of flat sequences depend on each other: "
            "pad them (jaxem.sequences.pad)"
        )


@functools.partial(jax.jit, static_argnames="method")
def _information(method, model: Model, params: Any, chart: Chart, data: Any, weights: Any) -> Information:
    prepared, weights = model.compress(data, weights)
    return information(method, model, params, chart, prepared, weights)


@jax.jit
def _scores(model: Model, params: Any, chart: Chart, data: Any, weights: Any) -> tuple[Array, Float[Array, "U U"]]:
    """The gradient of the objective, and Σ_n w_n (s_n − s̄)(s_n − s̄)ᵀ with the scores of the log-likelihood.

    About their mean, because with a prior they do not sum to 0 at the optimum.
    """
    each = scores(model, params, chart, model.prepare(data))
    w = jnp.ones(each.shape[0], each.dtype) if weights is None else weights
    # A row of weight 0 may be anything, also impossible.
    each = jnp.where(w[:, None] > 0, each, 0)
    total = jnp.sum(w[:, None] * each, axis=0)
    away = each - total / jnp.sum(w)
    back = chart.back(model, params)
    prior = jax.grad(lambda u: jnp.asarray(model.log_prior(back(u)), total.dtype))(jnp.zeros_like(total))
    return total + prior, jnp.matmul((w[:, None] * away).T, away, precision="highest")


def _float_noise(params: Any) -> float:
    return float(jnp.finfo(ravel_pytree(params)[0].dtype).eps) ** 0.5


def _assemble(
    method: str, model: Model, params: Any, chart: Chart, derivative: np.ndarray, found: Information, spread: Any
) -> StandardErrors:
    """From the chart to free coordinates and to the natural scale, on the host, in float64."""
    tangent, cotangent = np.asarray(chart.tangent, float), np.asarray(chart.cotangent, float)
    dtype = ravel_pytree(params)[0].dtype
    natural, most = derivative @ tangent, np.abs(derivative) @ np.abs(tangent)
    still = np.all(np.abs(natural) <= 1e-8 * most, axis=1)
    natural = np.where(still[:, None], 0, natural)
    redundant = max(0, chart.size - _free_parameters(model, params))
    inverse = invert(np.asarray(found.observed, float), np.asarray(found.gradient, float), dtype, redundant)
    names = entry_names(params)
    identified = inverse.sees(natural)
    _warn(inverse, [name for name, good in zip(names, identified, strict=True) if not good])
    covariance = inverse.covariance
    if spread is not None:
        covariance = covariance @ np.asarray(spread, float) @ covariance
    in_free = inverse.sees(tangent)
    of_params = _blank(natural @ covariance @ natural.T, identified)
    return StandardErrors(
        model=model.specialize(None),
        params=jax.device_get(params),
        standard_errors=shaped(np.sqrt(np.maximum(np.diagonal(of_params), 0)), params),
        natural_covariance=of_params,
        covariance=_blank(tangent @ covariance @ tangent.T, in_free),
        information=cotangent.T @ np.asarray(found.observed, float) @ cotangent,
        complete_information=(
            None if found.complete is None else cotangent.T @ np.asarray(found.complete, float) @ cotangent
        ),
        held=shaped(still, params),
        identified=shaped(identified, params),
        method=method,
    )


def _spread(
    model: Model, params: Any, chart: Chart, derivative: np.ndarray, data: Any, weights: Any, run: Run
) -> StandardErrors:
    """From the lanes of a bootstrap."""
    status = np.asarray(run.status)
    good = [int(s) for s in Status if s.usable and s != Status.DEGENERATE]
    used = np.isin(status, good)
    redundant = max(0, chart.size - _free_parameters(model, params))
    said = []
    if redundant:
        said.append(
            f"parameters move in {redundant} directions without changing the likelihood: their spread says little"
        )
    if not np.all(used):
        said.append(f"{np.sum(~used)} of {len(used)} resamples have no usable fit and are left out")
    if np.sum(used) < 2:
        raise ValueError(f"a spread needs at least 2 usable resamples; got {np.sum(used)} of {len(used)}")
    draws, exchanged = matched(model, params, jax.tree.map(lambda a: a[used], run.params), data, weights)
    if exchanged:
        said.append(
            f"{exchanged} resamples have their components in another order, which {type(model).__name__} cannot undo: "
            "it does not define take_components"
        )
    if said:
        warnings.warn("; ".join(said), InferenceWarning, stacklevel=3)
    natural = np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(draws), float)
    free = np.asarray(jax.vmap(lambda p: coordinates(model, p)[0])(draws), float)
    covariance = np.atleast_2d(np.cov(natural, rowvar=False))
    return StandardErrors(
        model=model.specialize(None),
        params=jax.device_get(params),
        standard_errors=shaped(np.sqrt(np.diagonal(covariance)), params),
        natural_covariance=covariance,
        covariance=np.atleast_2d(np.cov(free, rowvar=False)),
        information=None,
        complete_information=None,
        held=shaped(np.all(derivative @ np.asarray(chart.tangent) == 0, axis=1), params),
        identified=shaped(np.ones(natural.shape[1], bool), params),
        draws=draws,
        status=status,
        method="bootstrap",
    )


def _free_parameters(model: Model, params: Any) -> int:
    try:
        return model.num_free_parameters(params)
    except UnsupportedError:
        return 10**9


def _blank(covariance: np.ndarray, good: Bool[np.ndarray, " M"]) -> np.ndarray:
    """NaN in the rows and columns of what is not good."""
    return np.where(good[:, None] & good, covariance, np.nan)


def _warn(inverse: Inverse, unknown: list[str]) -> None:
    said = []
    if inverse.downhill:
        said.append(
            f"params are no maximum: the objective rises in {inverse.downhill} directions; no errors of {_list(unknown)}"
        )
    elif unknown:
        said.append(
            f"the information is singular in {inverse.flat} directions: the data do not determine {_list(unknown)}"
        )
    if inverse.distance > _FAR:
        said.append(f"params are {inverse.distance:.2g} standard errors from the optimum; fit with a smaller tol")
    if said:
        warnings.warn("; ".join(said), InferenceWarning, stacklevel=4)


def _list(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shaped(values: np.ndarray, params: Any) -> Any:
    """One vector of entries as a pytree of numpy arrays, shaped like the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(values, ends)
    return jax.tree.unflatten(treedef, [p.reshape(np.shape(leaf)) for p, leaf in zip(parts, leaves, strict=True)])


def entry_names(params: Any) -> list[str]:
    """A name for every entry of the parameters: ``latent.weights[0]``."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        places = np.ndindex(np.shape(leaf))
        names += [name + (f"[{', '.join(map(str, place))}]" if place else "") for place in places]
    return names
