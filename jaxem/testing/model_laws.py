"""The laws of EM, asked of a model: each is one function of a `Case`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.inference import elbo
from jaxem.model import Data, Model, UnsupportedError, leaf_name
from jaxem.testing import program_laws
from jaxem.testing.case import Case, NotApplicable, close, make_case
from jaxem.wrappers.base import Wrapper

NOT_APPLICABLE = "not applicable"


def _additivity(case: Case) -> None:
    """Two halves against the whole; of an odd number the example in the middle is in both and counts twice."""
    half = (case.rows + 1) // 2
    count = np.ones(case.rows)
    count[case.rows - half : half] = 2
    first, second = case.sums(case.part(slice(None, half))), case.sums(case.part(slice(case.rows - half, None)))
    whole = case.sums(case.raw, None if case.rows % 2 == 0 else count)
    shapes = [leaf.shape for leaf in jax.tree.leaves(whole)]
    if shapes != [leaf.shape for leaf in jax.tree.leaves(first)]:
        raise AssertionError(f"law additivity: the E-step has leaves that depend on the number of examples: {shapes}")
    close("additivity", first + second, whole, case.rtol, "E-step of the parts against that of the whole")


def _weights(case: Case) -> None:
    """Weights 0, 2, 4, 6 against twice the sums of half as many copies, which are as many as the examples."""
    repeats = np.resize([2, 0, 0, 3, 0, 1, 1], case.rows)  # seven of seven, and of fewer by another last one
    repeats[-1] += case.rows - np.sum(repeats)
    repeats = np.random.default_rng(0).permutation(repeats)
    repeated = case.sums(case.part(np.repeat(np.arange(case.rows), repeats)))
    weighted = case.sums(case.raw, np.asarray(2 * repeats, float))
    close("weights", weighted, repeated + repeated, case.rtol, "weights 0, 2, 4, 6 against repeated rows")


def _fisher(case: Case) -> None:
    """∇ log p(x; θ) is the gradient of q at θ."""
    what = "gradient of the log-likelihood against that of q"
    slopes = case.derivatives
    close("fisher", slopes["log-likelihood"], slopes["q"], 1e3 * case.rtol, what, least=1.0)  # at an optimum both are 0


def _stationary(case: Case) -> None:
    """The M-step does not lower q + log-prior, and its gradient vanishes at the answer."""
    gain = float(case.derivatives["gain"])
    if not gain >= -case.rtol * case.rows:
        raise AssertionError(f"law stationary: the M-step lowers q by {-gain:.3g}")
    if case.model.generalized:
        return
    held = _held_leaves(case.model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(case.derivatives["at the answer"]):
        if leaf_name(path) in held:
            continue
        worst = float(np.max(np.abs(np.asarray(leaf)), initial=0.0))
        if not worst <= 1e4 * case.rtol * case.rows:
            name = jax.tree_util.keystr(path)
            raise AssertionError(f"law stationary: the gradient of q at the M-step's answer is {worst:.3g} in {name}")


def _held_leaves(model: Model) -> set[str]:
    """Names of frozen leaves, in whose direction the gradient need not vanish."""
    held: set[str] = set()
    inner: Any = model
    while isinstance(inner, Wrapper):
        held |= {name for name, _ in getattr(inner, "leaves", ())}
        inner = inner.model
    return held


def _monotone(case: Case) -> None:
    """The objective does not fall from step to step."""
    if not case.model.monotone:
        raise NotApplicable("the model only estimates its objective")
    trace = np.asarray(case.long_fit.trace)
    trace = trace[~np.isnan(trace)]
    if len(trace) < 2:
        raise AssertionError(f"law monotone: no objective after the first step (trace {trace})")
    fall = float(np.max(trace[:-1] - trace[1:]))
    if fall > 1e-9 * max(1.0, float(np.max(np.abs(trace)))):
        at = int(np.argmax(trace[:-1] - trace[1:]))
        raise AssertionError(f"law monotone: the objective falls by {fall:.3g} at step {at + 1}")


def _bound(case: Case) -> None:
    """The ELBO of the posterior is the log-likelihood, that of another q is less."""
    inner: Any = case.model
    while isinstance(inner, Wrapper):
        inner = inner.model

    @jax.jit
    def bounds(params: Any, raw: Any) -> tuple[Any, Any, Any]:
        prepared = inner.prepare(raw)
        posterior = inner.posterior(params, prepared)
        if isinstance(posterior, tuple):  # mean and covariance of an approximation, which cannot touch
            return posterior, elbo(inner, params, prepared, posterior), None
        both = jnp.stack([posterior, 0.7 * posterior + 0.3 / posterior[0].size])
        touching, other = jax.vmap(lambda q: elbo(inner, params, prepared, q))(both)
        return posterior, touching, other

    try:
        posterior, touching, other = bounds(case.params, case.raw)
    except UnsupportedError as error:
        raise NotApplicable(str(error)) from None
    log_likelihood = float(case.e_step().log_likelihood)
    if other is None:
        if not float(touching) < log_likelihood:
            raise AssertionError("law bound: the ELBO of an approximate posterior is not below the log-likelihood")
        return
    close("bound", touching, log_likelihood, case.rtol, "ELBO at the posterior against the log-likelihood")
    if posterior[0].size > 1 and not float(other) < log_likelihood:
        raise AssertionError("law bound: the ELBO of another q is not below the log-likelihood")


def _masked(case: Case) -> None:
    """What is masked is never read: with NaN or 1e30 there the E-step is the same to the last bit, gradients are finite."""
    mask = getattr(case.raw, "mask", None)
    if mask is None:
        raise NotApplicable("the data have no mask")
    x = np.asarray(case.raw.x)
    seen = np.broadcast_to(np.asarray(mask).reshape(np.shape(mask) + (1,) * (x.ndim - np.ndim(mask))), x.shape)
    for poison in (np.nan, 1e30):
        raw = dataclasses.replace(case.raw, x=np.where(seen, x, poison))
        pairs = [(case.sums(raw), case.sums(case.raw))]
        with contextlib.suppress(NotApplicable):
            pairs.append((case.derivatives_at(raw), case.derivatives))
        for got, expected in pairs:
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
                if not (np.array_equal(a, b) and np.all(np.isfinite(a))):
                    name = jax.tree_util.keystr(path)
                    raise AssertionError(f"law masked: {poison} in masked cells changes {name}, or it is not finite")


def _order(case: Case) -> None:
    rows = np.random.default_rng(1).permutation(case.rows)
    close("order", case.sums(case.part(rows)), case.sums(case.raw), case.rtol, "E-step of permuted rows")
    k = case.model.num_components
    if k < 2:
        return
    try:
        turned = jax.jit(lambda p: case.model.take_components(p, np.roll(np.arange(k), 1)))(case.params)
    except UnsupportedError:
        return
    got = case.sums(case.raw, params=turned).log_likelihood
    close("order", got, case.e_step().log_likelihood, case.rtol, "log-likelihood of permuted components")


def _sample(case: Case) -> None:
    """The sampler and the density agree: scores at the truth average to 0 within six standard errors."""
    free, _ = case.coordinates
    count = 4000
    options: dict[str, Any] = {}
    inputs = getattr(case.raw, "inputs", None)
    if inputs is not None:
        inputs = options["inputs"] = inputs[np.random.default_rng(2).integers(0, case.rows, count)]
    if getattr(getattr(case.raw, "x", None), "ndim", 2) == 3:
        options["num_steps"] = case.raw.x.shape[1]

    def one(row: Any, f: Any) -> Any:
        params = case.model.from_free(f)
        return case.model.e_step(params, jax.tree.map(lambda a: a[None], row)).log_likelihood

    @jax.jit
    def scores_of_draws(key: jax.Array, params: Any, free: Any) -> Any:
        x, _ = case.model.sample(key, params, count, **options)
        drawn = case.model.prepare(Data(x=x, inputs=inputs))
        return jax.vmap(jax.grad(one, argnums=1), in_axes=(0, None))(drawn, free)

    try:
        scores = jax.device_get(scores_of_draws(case.key, case.params, free))
    except UnsupportedError as error:
        raise NotApplicable(str(error)) from None
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        if leaf.size == 0:
            continue
        mean, spread = np.mean(leaf, axis=0), np.std(leaf, axis=0)
        z = np.max(np.abs(mean) / (spread / np.sqrt(leaf.shape[0]) + 1e-12))
        if not float(z) <= 6:
            name = jax.tree_util.keystr(path)
            raise AssertionError(
                f"law sample: scores of the model's own draws are {float(z):.1f} errors from 0 in {name}"
            )


def _coordinates(case: Case) -> None:
    free, back = case.coordinates
    close("coordinates", back, case.params, 1e3 * case.rtol, "parameters → free → parameters")
    size = sum(leaf.size for leaf in jax.tree.leaves(free))
    count = case.model.num_free_parameters(case.params)
    if not 0 <= count <= size:
        raise AssertionError(f"law coordinates: {count} free parameters counted, {size} free coordinates")


LAWS: dict[str, Callable[[Case], None]] = {
    "additivity": _additivity,
    "weights": _weights,
    "fisher": _fisher,
    "stationary": _stationary,
    "monotone": _monotone,
    "bound": _bound,
    "masked": _masked,
    "jit": program_laws.jit,
    "lanes": program_laws.lanes,
    "retrace": program_laws.retrace,
    "order": _order,
    "precision": program_laws.precision,
    "sample": _sample,
    "coordinates": _coordinates,
}


def check_model(
    model: Model,
    data: Any,
    *,
    key: jax.Array,
    params: Any = None,
    skip: Iterable[str] = (),
    rtol: float = 1e-10,
) -> dict[str, str]:
    """Check the laws of EM on a model: E-step, M-step, likelihood, sampler and coordinates agree with each other.

    data: some tens of examples the model fits. params: where to check; by default a start of the model after one step.
    skip: names of `LAWS` to leave out. A model that says its M-step is `generalized` need only raise q. rtol: relative
    accuracy in float64. Returns, for each law, "passed" or why it does not apply. Raises AssertionError naming the law.
    """
    unknown = set(skip) - set(LAWS)
    if unknown:
        raise ValueError(f"unknown laws to skip: {sorted(unknown)}; the laws are {', '.join(LAWS)}")
    outcome: dict[str, str] = {}
    with jax.enable_x64(True):
        case = make_case(model, data, key, params, rtol)
        for name, law in LAWS.items():
            if name in skip:
                outcome[name] = "skipped"
                continue
            try:
                law(case)
                outcome[name] = "passed"
            except NotApplicable as reason:
                outcome[name] = f"{NOT_APPLICABLE}: {reason}"
    return outcome
