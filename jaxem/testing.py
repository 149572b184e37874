"""The laws of EM as checks, for jaxem's own models and for yours.

`check_model` takes a model and a data set and checks every law that applies; `check_family` does the same for a family by
itself. A law that fails raises AssertionError and says which, where, and by how much. Laws are checked in float64,
whatever the surrounding configuration is, because most of them are exact up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.driver import run, run_lanes
from jaxem.inference import elbo
from jaxem.lane import Control
from jaxem.model import Data, Family, Model, UnsupportedError, as_data, leaf_name, num_examples, pytree, static
from jaxem.slots import Index
from jaxem.status import Status
from jaxem.stopping import Never, RelativeGain
from jaxem.wrappers.base import Wrapper

NOT_APPLICABLE = "not applicable"


@dataclasses.dataclass
class Case:
    """A calibrated model, data, weights and parameters at which its laws are checked, all in float64."""

    model: Model
    raw: Any
    data: Any
    params: Any
    key: jax.Array
    rtol: float

    def __post_init__(self):
        self._e_step = jax.jit(lambda params, data, weights: self.model.e_step(params, data, weights))
        # One program of each: the laws share what is compiled.
        self.prepare = jax.jit(lambda raw: self.model.prepare(raw))
        self.m_step = jax.jit(self.model.m_step)
        self.traced = _Traced(self.model, _Counter())
        self.fitted = jax.jit(lambda m, p, d, c: run(m, p, d, control=c))
        self.explicit = self.model.explicit()

    @property
    def rows(self) -> int:
        return num_examples(self.raw)

    def e_step(self, data: Any, weights: Any = None) -> Any:
        """The compiled E-step: the laws share its few shapes."""
        return self._e_step(self.params, data, weights)

    def sums(self, data: Any, weights: Any = None) -> Any:
        """What of the E-step is a sum over examples."""
        step = self._e_step(self.params, data, weights)
        return step if self.model.additive else dataclasses.replace(step, stats=())

    def statistics(self) -> Any:
        """The statistics that q is a function of, at the parameters."""
        if self.explicit is self.model:
            return self.e_step(self.data).stats
        return jax.jit(self.explicit.e_step)(self.params, self.explicit.prepare(self.raw)).stats

    def part(self, rows: Any) -> Any:
        """Some of the examples, prepared by themselves."""
        return self.prepare(jax.tree.map(lambda a: np.asarray(a)[rows], self.raw))


class _NotApplicable(Exception):
    pass


def _close(law: str, got: Any, expected: Any, rtol: float, what: str, least: float = 1e-30) -> None:
    """Trees equal up to ``rtol`` of the largest entry of each leaf, or of ``least`` where that is more."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        size = max(float(np.max(np.abs(b), initial=0.0)), least)
        worst = float(np.max(np.abs(a - b), initial=0.0))
        if a.shape != b.shape or not worst <= rtol * size:
            name = jax.tree_util.keystr(path)
            raise AssertionError(f"law {law}: {what}: leaf {name or 'value'} differs by {worst:.3g} of {size:.3g}")


def _additivity(case: Case) -> None:
    cut = case.rows // 3
    whole, first = case.sums(case.data), case.sums(case.part(slice(None, cut)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(whole)]
    if shapes != [leaf.shape for leaf in jax.tree.leaves(first)]:
        raise AssertionError(f"law additivity: the E-step has leaves that depend on the number of examples: {shapes}")
    _close(
        "additivity",
        first + case.sums(case.part(slice(cut, None))),
        whole,
        case.rtol,
        "E-step of the parts against that of the whole",
    )


def _weights(case: Case) -> None:
    rng = np.random.default_rng(0)
    repeats = rng.integers(0, 4, case.rows)
    repeats[:2] = 0, 3
    repeated = case.sums(case.part(np.repeat(np.arange(case.rows), repeats)))
    weighted = case.sums(case.data, jnp.asarray(repeats, float))
    _close("weights", weighted, repeated, case.rtol, "weights 0, 1, 2, 3 against repeated rows")


def _free(case: Case) -> tuple[Any, Callable[[Any], Any]]:
    try:
        return case.model.to_free(case.params), case.model.from_free
    except UnsupportedError as error:
        raise _NotApplicable(str(error)) from None


def _fisher(case: Case) -> None:
    free, back = _free(case)
    stats = case.statistics()
    likelihood = jax.jit(jax.grad(lambda f: case.model.e_step(back(f), case.data).log_likelihood))(free)
    try:
        expected = jax.jit(jax.grad(lambda f: case.explicit.q(back(f), stats)))(free)
    except UnsupportedError as error:
        raise _NotApplicable(str(error)) from None
    what = "gradient of the log-likelihood against that of q"
    _close("fisher", likelihood, expected, 1e3 * case.rtol, what, least=1.0)  # at an optimum both are 0


def _stationary(case: Case) -> None:
    stats = case.e_step(case.data).stats
    updated = case.m_step(case.params, stats)
    stats = case.statistics()

    @jax.jit
    def objective(params: Any) -> Any:
        return case.explicit.q(params, stats) + case.model.log_prior(params)

    try:
        gain = float(objective(updated) - objective(case.params))
        free = case.model.to_free(updated)
    except UnsupportedError as error:
        raise _NotApplicable(str(error)) from None
    if not gain >= -case.rtol * case.rows:
        raise AssertionError(f"law stationary: the M-step lowers q by {-gain:.3g}")
    if case.model.generalized:
        return
    gradient = jax.jit(jax.grad(lambda f: objective(case.model.from_free(f))))(free)
    held = _held_leaves(case.model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        if leaf_name(path) in held:
            continue
        worst = float(jnp.max(jnp.abs(leaf), initial=0.0))
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
    if not case.model.monotone:
        raise _NotApplicable("the model only estimates its objective")
    control = Control(Never(), max_steps=30)
    trace = np.asarray(
        jax.jit(lambda p: run(case.model, p, case.data, control=control, trace_size=31))(case.params).trace
    )
    trace = trace[~np.isnan(trace)]
    if len(trace) < 2:
        raise AssertionError(f"law monotone: no objective after the first step (trace {trace})")
    fall = float(np.max(trace[:-1] - trace[1:]))
    if fall > 1e-9 * max(1.0, float(np.max(np.abs(trace)))):
        at = int(np.argmax(trace[:-1] - trace[1:]))
        raise AssertionError(f"law monotone: the objective falls by {fall:.3g} at step {at + 1}")


def _bound(case: Case) -> None:
    inner: Any = case.model
    while isinstance(inner, Wrapper):
        inner = inner.model
    prepared = case.data if inner is case.model else jax.jit(inner.prepare)(case.raw)
    bound = jax.jit(lambda q: elbo(inner, case.params, prepared, q))
    try:
        posterior = jax.jit(inner.posterior)(case.params, prepared)
        touching = bound(posterior)
    except UnsupportedError as error:
        raise _NotApplicable(str(error)) from None
    log_likelihood = case.e_step(case.data).log_likelihood
    if isinstance(posterior, tuple):  # mean and covariance of an approximation, which cannot touch
        if not touching < log_likelihood:
            raise AssertionError("law bound: the ELBO of an approximate posterior is not below the log-likelihood")
        return
    _close("bound", touching, log_likelihood, case.rtol, "ELBO at the posterior against the log-likelihood")
    other = 0.7 * posterior + 0.3 / posterior[0].size
    if posterior[0].size > 1 and not bound(other) < log_likelihood:
        raise AssertionError("law bound: the ELBO of another q is not below the log-likelihood")


def _jit(case: Case) -> None:
    eager = case.model.e_step(case.params, case.data)
    _close("jit", case.e_step(case.data), eager, case.rtol, "compiled E-step against eager")


def _lanes(case: Case) -> None:
    """Lanes against one by one; a lane on data that hold NaN disturbs none."""
    control = Control(RelativeGain(1e-7), max_steps=40)
    clean = case.data
    stacked = jax.tree.map(lambda a: np.stack([a, _spoilt(np.asarray(a))]), clean)
    models = jax.tree.map(lambda a: np.broadcast_to(a, (2, *np.shape(a))), case.model)
    moved = case.m_step(case.params, case.e_step(clean).stats)
    starts = jax.tree.map(lambda *a: np.stack(a), case.params, case.params, moved)
    index = Index(data=jnp.array([0, 1, 0]))

    # Two slots for three lanes: one lane waits, and is taken in beside another that runs or has stopped.
    program = jax.jit(lambda m, p, d: run_lanes(m, p, d, index=index, control=control, slots=2))
    lanes = program(models, starts, stacked)
    for lane in (0, 2):
        mine = jax.tree.map(lambda a, i=lane: np.asarray(a)[i], lanes)
        start = jax.tree.map(lambda a, i=lane: jnp.asarray(a[i]), starts)
        one = case.fitted(case.traced, start, clean, control)
        if (int(mine.steps), int(mine.status)) != (int(one.steps), int(one.status)):
            raise AssertionError(f"law lanes: {int(mine.steps)} steps as a lane, {int(one.steps)} alone")
        _close("lanes", mine.params, one.params, 1e4 * case.rtol, "parameters of a lane against the fit alone")
    spoilt_status = Status(int(lanes.status[1]))
    # Whole numbers cannot hold NaN.
    spoilt = any(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(clean))
    if spoilt and spoilt_status != Status.NON_FINITE_INPUT:
        raise AssertionError(f"law lanes: data that hold NaN end as {spoilt_status.label}")
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(lanes.params)):
        raise AssertionError("law lanes: a lane ended with parameters that are not finite")


def _spoilt(a: np.ndarray) -> np.ndarray:
    """With NaN in the first example."""
    if not np.issubdtype(a.dtype, np.floating):
        return a
    a = a.copy()
    a[0] = np.nan
    return a


@pytree
class _Traced(Wrapper):
    """Counts how often the E-step is traced."""

    model: Model
    count: Any = static()

    def e_step(self, params, data, weights=None):
        self.count.append(None)
        return self.model.e_step(params, data, weights)


class _Counter(list):
    """A list that is compared and hashed by identity, so that it can be a static field."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


def _retrace(case: Case) -> None:
    fitted, model, count = case.fitted, case.traced, case.traced.count
    fitted(model, case.params, case.data, Control(RelativeGain(1e-3), max_steps=3))
    traced = len(count)
    doubled = jax.tree.map(lambda a: a * 1.5 if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, model)
    fitted(model, case.params, case.data, Control(RelativeGain(1e-3), max_steps=3))
    fitted(model, case.params, case.data, Control(RelativeGain(1e-5), max_steps=7, min_steps=2))
    fitted(doubled, case.params, case.data, Control(RelativeGain(1e-5), max_steps=7, min_steps=2))
    if len(count) != traced:
        raise AssertionError(
            f"law retrace: new values of tol, max_steps or hyper-parameters trace again ({len(count)})"
        )


def _order(case: Case) -> None:
    rows = np.random.default_rng(1).permutation(case.rows)
    _close("order", case.sums(case.part(rows)), case.sums(case.data), case.rtol, "E-step of permuted rows")
    k = case.model.num_components
    if k < 2:
        return
    try:
        turned = case.model.take_components(case.params, np.roll(np.arange(k), 1))
    except UnsupportedError:
        return
    got = case._e_step(turned, case.data, None).log_likelihood
    _close("order", got, case.e_step(case.data).log_likelihood, case.rtol, "log-likelihood of permuted components")


def _precision(case: Case) -> None:
    exact = float(case.e_step(case.data).log_likelihood)
    single = jax.tree.map(_to_float32, (case.model, case.params, case.data))
    with jax.enable_x64(False):
        model, params, data = single
        rounded = float(jax.jit(model.e_step)(params, data).log_likelihood)
    if not abs(rounded - exact) <= 1e-5 * max(abs(exact), case.rows):
        raise AssertionError(f"law precision: log-likelihood {rounded} in float32, {exact} in float64")


def _to_float32(leaf: Any) -> Any:
    leaf = np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


def _sample(case: Case) -> None:
    """The sampler and the density agree: scores at the truth average to 0 within six standard errors."""
    free, back = _free(case)
    count = 4000
    options: dict[str, Any] = {}
    inputs = getattr(case.raw, "inputs", None)
    if inputs is not None:
        inputs = options["inputs"] = inputs[np.random.default_rng(2).integers(0, case.rows, count)]
    if getattr(getattr(case.raw, "x", None), "ndim", 2) == 3:
        options["num_steps"] = case.raw.x.shape[1]
    try:
        x, _ = jax.jit(lambda k, p: case.model.sample(k, p, count, **options))(case.key, case.params)
    except UnsupportedError as error:
        raise _NotApplicable(str(error)) from None
    drawn = case.prepare(Data(x=x, inputs=inputs))

    def one(row: Any, f: Any) -> Any:
        return case.model.e_step(back(f), jax.tree.map(lambda a: a[None], row)).log_likelihood

    scores = jax.jit(jax.vmap(jax.grad(one, argnums=1), in_axes=(0, None)))(drawn, free)
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        if leaf.size == 0:
            continue
        mean, spread = jnp.mean(leaf, axis=0), jnp.std(leaf, axis=0)
        z = jnp.max(jnp.abs(mean) / (spread / np.sqrt(leaf.shape[0]) + 1e-12))
        if not float(z) <= 6:
            name = jax.tree_util.keystr(path)
            raise AssertionError(
                f"law sample: scores of the model's own draws are {float(z):.1f} errors from 0 in {name}"
            )


def _coordinates(case: Case) -> None:
    free, back = _free(case)
    _close("coordinates", back(free), case.params, 1e3 * case.rtol, "parameters → free → parameters")
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
    "jit": _jit,
    "lanes": _lanes,
    "retrace": _retrace,
    "order": _order,
    "precision": _precision,
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
        case = _case(model, data, key, params, rtol)
        for name, law in LAWS.items():
            if name in skip:
                outcome[name] = "skipped"
                continue
            try:
                law(case)
                outcome[name] = "passed"
            except _NotApplicable as reason:
                outcome[name] = f"{NOT_APPLICABLE}: {reason}"
    return outcome


def _case(model: Model, data: Any, key: jax.Array, params: Any, rtol: float) -> Case:
    def double(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        kinds = jnp.floating if model.keeps_types else jnp.number
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, kinds) else leaf

    raw = jax.tree.map(double, as_data(data) if hasattr(data, "shape") else data)
    model, prepared = jax.jit(lambda m: (own := m.calibrate(raw), own.prepare(raw)))(model)
    start_key, key = jax.random.split(key)
    if params is None:

        @jax.jit
        def after_one_step(key: jax.Array) -> Any:
            start = model.init(key, raw)
            return model.m_step(start, model.e_step(start, prepared).stats)

        params = after_one_step(start_key)
    params = jax.tree.map(double, params)
    return Case(model, raw, prepared, params, key, rtol)


def check_family(family: Family, data: Any, *, key: jax.Array, num_components: int = 3, rtol: float = 1e-10) -> None:
    """Check a family by itself: its two products, its M-step, its frozen parameters and its coordinates.

    data: some tens of examples in its support. The laws of `check_model` hold for ``Mixture(family, K)`` beside these.
    Raises AssertionError naming the law.
    """
    with jax.enable_x64(True):
        raw = data if isinstance(data, Data) else Data(x=jnp.asarray(data, float))
        family = family.calibrate(raw, None)
        statistics = family.statistics(raw)
        n, k = num_examples(raw), num_components
        marginals = jax.random.dirichlet(key, jnp.ones(k), (n,))
        if family.starts_from_rows:
            params = family.start(key, raw, marginals)
        else:
            params = family.maximize(None, family.accumulate(None, statistics, marginals), {})
        free = family.to_free(params)
        _close("family coordinates", family.from_free(free), params, 1e3 * rtol, "parameters → free → parameters")

        stats = family.accumulate(params, statistics, marginals)
        _check_products(family, params, free, statistics, marginals, stats, rtol)
        updated = family.maximize(params, stats, {})
        gain = float(family.q(updated, stats) - family.q(params, stats))
        if not gain >= -rtol * n:
            raise AssertionError(f"law family M-step: q falls by {-gain:.3g}")
        free = family.to_free(updated)
        gradient = jax.jit(jax.grad(lambda f: family.q(family.from_free(f), stats)))(free)
        worst = max(float(jnp.max(jnp.abs(leaf), initial=0.0)) for leaf in jax.tree.leaves(gradient))
        if not (family.generalized or worst <= 1e4 * rtol * n):
            raise AssertionError(f"law family M-step: the gradient of q at the answer is {worst:.3g}")

        _check_empty_member(family, params, statistics, marginals)
        for name in sorted(family.freezable):
            _check_frozen(family, name, params, statistics, marginals, rtol * n)

        order, turned = _turn(family, params, k)
        got = family.log_prob(turned, statistics)[:, np.argsort(order)]
        _close("family members", got, family.log_prob(params, statistics), rtol, "log p of permuted members")
        draws = family.sample(key, params, jnp.arange(k), jax.tree.map(lambda a: a[:k], raw))
        if draws.shape[0] != k or not bool(jnp.all(jnp.isfinite(draws))):
            raise AssertionError(f"law family sampler: {k} values of z gave draws of shape {draws.shape}")


def _turn(family: Family, params: Any, k: int) -> tuple[np.ndarray, Any]:
    """Another order of the members, and the parameters in it; where the family insists on its last, of the others."""
    order = np.roll(np.arange(k), 1)
    try:
        return order, family.take_components(params, order)
    except UnsupportedError:
        order = np.append(np.roll(np.arange(k - 1), 1), k - 1)
        return order, family.take_components(params, order)


def _check_products(
    family: Family, params: Any, free: Any, statistics: Any, marginals: Any, stats: Any, rtol: float
) -> None:
    """q of the statistics is Σ r log p; where the statistics are augmented, only its gradient is (Fisher's identity)."""

    def direct(params: Any) -> Any:
        return jnp.sum(marginals * family.log_prob(params, statistics))

    if not family.augmented(statistics):
        what = "q of the statistics against Σ r log p"
        _close("family products", family.q(params, stats), direct(params), rtol, what)
        return
    got = jax.jit(jax.grad(lambda f: family.q(family.from_free(f), stats)))(free)
    expected = jax.jit(jax.grad(lambda f: direct(family.from_free(f))))(free)
    what = "gradient of q of the statistics against that of Σ r log p"
    _close("family products", got, expected, 1e3 * rtol, what, least=1.0)


def _check_empty_member(family: Family, params: Any, statistics: Any, marginals: Any) -> None:
    """A member without examples keeps its parameters, and the others do not notice."""
    emptied = marginals.at[:, 0].set(0)
    kept = family.maximize(params, family.accumulate(params, statistics, emptied), {})
    if not bool(jnp.all(jnp.isfinite(family.log_prob(kept, statistics)))):
        raise AssertionError("law family empty member: log p is not finite after a member lost all its examples")
    ends = np.array([0, marginals.shape[1] - 1])  # a family may insist on its last member (noise)
    first = family.take_components(params, ends), family.take_components(kept, ends)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    tied = family.freezable - family.freezable_by_component
    for old, new, (path, whole) in zip(*map(jax.tree.leaves, first), leaves, strict=True):
        # A leaf of all members at once may move with the others, and so may what members share of their own leaves.
        shared = old.shape == whole.shape or leaf_name(path) in tied
        if not shared and not np.allclose(old[0], new[0], rtol=1e-12, atol=0):
            raise AssertionError("law family empty member: a member without examples did not keep its parameters")


def _check_frozen(family: Family, name: str, params: Any, statistics: Any, marginals: Any, tolerance: float) -> None:
    """A frozen leaf stays as it is, and the M-step maximizes over the others given it."""
    stats = family.accumulate(params, statistics, marginals**2)
    new = family.maximize(params, stats, {name: True})
    before, after = (
        np.asarray({leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}[name])
        for tree in (params, new)
    )
    if not np.allclose(before, after, rtol=1e-12, atol=0):
        raise AssertionError(f"law family frozen: {name} moved although it is frozen")
    free = family.to_free(new)
    gradient = jax.jit(jax.grad(lambda f: family.q(family.from_free(f), stats)))(free)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        other = leaf_name(path)
        if other != name and not float(jnp.max(jnp.abs(leaf), initial=0.0)) <= 1e4 * tolerance:
            raise AssertionError(f"law family frozen: with {name} frozen, q is not maximal over {other}")


__all__ = ["LAWS", "Case", "check_family", "check_model"]
