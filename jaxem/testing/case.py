"""A model at some parameters and data, with the few compiled programs that its laws share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.driver import run
from jaxem.lane import Control
from jaxem.model import Model, UnsupportedError, as_data, num_examples, pytree, static
from jaxem.stopping import RelativeGain
from jaxem.wrappers.base import Wrapper

#: Steps of the fit whose trace is looked at, and so the size of every trace.
STEPS = 30


class NotApplicable(Exception):
    """The model lacks what a law is about."""


class Counter(list):
    """A list that is compared and hashed by identity, so that it can be a static field."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


@pytree
class Traced(Wrapper):
    """Counts how often the E-step is traced."""

    model: Model
    count: Any = static()

    def e_step(self, params, data, weights=None):
        self.count.append(None)
        return self.model.e_step(params, data, weights)


@dataclasses.dataclass
class Case:
    """A calibrated model, data, weights and parameters at which its laws are checked, all in float64.

    ``raw`` are the data as given, ``data`` prepared. Compiling is what laws cost, so every program has one set of shapes:
    parts of the data have ⌈N/2⌉ examples, repeated and permuted ones N.
    """

    model: Model
    raw: Any
    data: Any
    params: Any
    key: jax.Array
    rtol: float
    stats: Any = None  # of the E-step at the parameters
    updated: Any = None  # the parameters after one M-step

    def __post_init__(self):
        # A function of its own: JAX keeps what it has traced of a function, also of code that has changed since.
        self._sums = jax.jit(lambda *arguments: _sums_of(*arguments))
        self._fitted = jax.jit(lambda m, p, d, c: run(m, p, d, control=c, trace_size=STEPS + 1))
        self._slopes = jax.jit(self._derivatives)
        self.traced = Traced(self.model, Counter())

    @property
    def rows(self) -> int:
        return num_examples(self.raw)

    def sums(self, raw: Any, weights: Any = None, params: Any = None) -> Any:
        """What of the E-step is a sum over examples, of data that are prepared by themselves."""
        step = self._sums(self.model, self.params if params is None else params, raw, weights)
        return step if self.model.additive else dataclasses.replace(step, stats=())

    def e_step(self) -> Any:
        """The E-step of all examples at the parameters."""
        return self._sums(self.model, self.params, self.raw, None)

    def part(self, rows: Any) -> Any:
        """Some of the examples, as given."""
        return jax.tree.map(lambda a: np.asarray(a)[rows], self.raw)

    def fitted(self, params: Any, control: Control, model: Any = None) -> Any:
        """A fit with a trace; every call runs the same program."""
        return self._fitted(self.traced if model is None else model, params, self.data, control)

    @functools.cached_property
    def long_fit(self) -> Any:
        """`STEPS` updates, whatever they gain."""
        return self.fitted(self.params, Control(RelativeGain(0.0), max_steps=STEPS, min_steps=STEPS))

    @functools.cached_property
    def coordinates(self) -> Any:
        """Free coordinates of the parameters, and the parameters that they lead back to."""

        def there_and_back(params: Any) -> tuple[Any, Any]:
            free = self.model.to_free(params)
            return free, self.model.from_free(free)

        try:
            return jax.jit(there_and_back)(self.params)
        except UnsupportedError as error:
            raise NotApplicable(str(error)) from None

    @functools.cached_property
    def derivatives(self) -> dict[str, Any]:
        """Gradients of the log-likelihood and of q in free coordinates, and what the M-step does to q: one program."""
        return self.derivatives_at(self.raw)

    def derivatives_at(self, raw: Any) -> dict[str, Any]:
        """`derivatives` for other data of the same shapes."""
        try:
            return jax.device_get(self._slopes(self.params, self.updated, self.stats, raw))
        except UnsupportedError as error:
            raise NotApplicable(str(error)) from None

    def _derivatives(self, params: Any, updated: Any, stats: Any, raw: Any) -> dict[str, Any]:
        model, explicit = self.model, self.model.explicit()
        data = model.prepare(raw)
        if explicit is not model:
            stats = explicit.e_step(params, explicit.prepare(raw)).stats
        both = jax.tree.map(lambda *a: jnp.stack(a), model.to_free(params), model.to_free(updated))
        q, q_slope = jax.vmap(jax.value_and_grad(lambda f: explicit.q(model.from_free(f), stats)))(both)
        prior = lambda f: jnp.asarray(model.log_prior(model.from_free(f)), q.dtype)  # noqa: E731
        prior, prior_slope = jax.vmap(jax.value_and_grad(prior))(both)
        at = lambda i, tree: jax.tree.map(lambda a: a[i], tree)  # noqa: E731
        return {
            "log-likelihood": jax.grad(lambda f: model.e_step(model.from_free(f), data).log_likelihood)(at(0, both)),
            "q": at(0, q_slope),
            "gain": (q[1] - q[0]) + (prior[1] - prior[0]),
            "at the answer": jax.tree.map(jnp.add, at(1, q_slope), at(1, prior_slope)),
        }


def _sums_of(model: Model, params: Any, raw: Any, weights: Any) -> Any:
    return model.e_step(params, model.prepare(raw), weights)


def make_case(model: Model, data: Any, key: jax.Array, params: Any, rtol: float) -> Case:
    """Everything in float64, the model calibrated, at the given parameters or at a start after one step."""

    def double(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        kinds = jnp.floating if model.keeps_types else jnp.number
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, kinds) else leaf

    raw = jax.tree.map(double, as_data(data) if hasattr(data, "shape") else data)
    start_key, key = jax.random.split(key)

    @jax.jit
    def begin(model: Model, raw: Any, key: jax.Array) -> Any:
        own = model.calibrate(raw)
        return own, own.prepare(raw), own.init(key, raw) if params is None else params

    given = params is not None
    model, prepared, params = begin(model, raw, start_key)
    case = Case(model, raw, prepared, jax.tree.map(double, params), key, rtol)
    update = jax.jit(model.m_step)
    case.stats = case.e_step().stats
    if not given:
        case.params = update(case.params, case.stats)
        case.stats = case.e_step().stats
    case.updated = update(case.params, case.stats)
    return case


def close(law: str, got: Any, expected: Any, rtol: float, what: str, least: float = 1e-30) -> None:
    """Trees equal up to ``rtol`` of the largest entry of each leaf, or of ``least`` where that is more."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        size = max(float(np.max(np.abs(b), initial=0.0)), least)
        worst = float(np.max(np.abs(a - b), initial=0.0))
        if a.shape != b.shape or not worst <= rtol * size:
            name = jax.tree_util.keystr(path)
            raise AssertionError(f"law {law}: {what}: leaf {name or 'value'} differs by {worst:.3g} of {size:.3g}")
