"""A model from its log joint alone: write down log p(x, z | θ) of one example; the rest is EM's."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxem import bijections, programs
from jaxem.ascent import Ascent, as_ascent, default_ascent
from jaxem.blocks import long_sum
from jaxem.free import EveryName, moving
from jaxem.model import EStep, Model, UnsupportedError, float_type, leaf_name, pytree, unsupported
from jaxem.spaces.base import LatentSpace, as_function, like, rows_of
from jaxem.spaces.chain import ChainLogJoint

if TYPE_CHECKING:
    from jaxtyping import Array

# A Hessian of P coordinates over N rows costs P times as much as a gradient over them: over N/P rows, but never fewer
# than these, it costs as much as the gradient.
_LEAST_ROWS = 256


def LogJoint(
    log_joint: Any,
    latent: LatentSpace,
    init: Callable[..., Any] | None = None,
    *,
    constraints: Mapping[str, Any] | None = None,
    log_prior: Callable[[Any], Any] | None = None,
    m_step: Callable[..., Any] | None = None,
    statistics: Callable[[Any, Any], Any] | None = None,
    optimizer: Any = None,
    steps: int | None = None,
    sample: Callable[[Any, Any], Any] | None = None,
) -> Model:
    """A latent-variable model from ``log_joint(params, x, z)`` = log p(x, z | params) of **one** example.

    The E-step sums or integrates z out; the M-step raises ``Σ_n w_n E_q[log p(x_n, z | ·)]`` by automatic derivatives, in
    free coordinates, and never lowers it. Functions are traced by JAX; `jax.tree_util.Partial` makes some of their
    arguments part of the model's data, differentiable and free to change without compiling again.

    latent: what z ranges over: `Discrete`, `Chain` (then log_joint is a `ChainLogJoint`), `GaussianLatent`, `Sampled`.
    init: ``init(key, data) -> params``, or ``init(key) -> params``: starting parameters, different for every key; data as
    log_joint sees them, all examples at once.
    constraints: leaf name → bijection or its name ("positive", "simplex", "unit interval", "ordered", "correlation",
    "positive definite"); other leaves are free. log_prior: ``log_prior(params)``, added to the objective (MAP).
    m_step: a closed form, ``m_step(params, expect) -> params`` with ``expect(f)`` = Σ_n w_n E_q[f(x_n, z)]; with
    ``statistics(x, z)`` given, ``m_step(params, stats)`` with the sums of those statistics alone: the E-step is then a sum
    over examples, which chunks and online EM need. optimizer, steps: how the M-step climbs without one: `Newton` (the
    default up to 100 free coordinates), or an optax optimizer. sample: ``sample(key, params) -> (x, z)``, one example.

    A model made anew, in a loop say, runs the program that is there if its functions have the same code and refer to the
    same values: numbers, strings, tuples, small arrays, modules, functions of the same kind. A list, a dict or an object
    of a class of your own can change unseen: with these, or with other values each time, every model is compiled by
    itself, which takes seconds; make it once, before the loop, or pass what differs by `jax.tree_util.Partial`. What a
    function refers to may not change between the making of the model and its use: ValueError.

    data: an array or any pytree with examples as the leading axis; x is one row of it (`Data` with x alone counts as x).
    Raises ValueError for what cannot be called, and, at trace time, where a shape is wrong.
    """
    if not isinstance(latent, LatentSpace):
        hint = " (call it: jaxem.Discrete(2))" if isinstance(latent, type) else ""
        raise ValueError(f"latent is a space such as jaxem.Discrete(2); got {latent!r}{hint}")
    optional = {"init": init, "log_prior": log_prior, "m_step": m_step, "statistics": statistics, "sample": sample}
    for name, function in {"log_joint": log_joint, **optional}.items():
        if function is not None and not callable(function) and not isinstance(function, ChainLogJoint):
            raise ValueError(f"{name} is a function; got {function!r}")
    if statistics is not None and m_step is None:
        raise ValueError("statistics are for an m_step in closed form: give m_step(params, stats) too")
    if m_step is not None and (optimizer is not None or steps is not None):
        raise ValueError("an m_step in closed form takes no optimizer and no steps")
    if log_prior is not None and m_step is not None:
        raise ValueError("an m_step in closed form knows its own prior: leave log_prior out, or leave m_step out")
    return LogJointModel(
        log_joint if isinstance(log_joint, ChainLogJoint) else as_function(log_joint),
        latent,
        *(as_function(f) for f in (init, log_prior, m_step, statistics, sample)),
        ascent=as_ascent(optimizer, steps),
        constraints=bijections.read_constraints(constraints),
    )


class Expectation:
    """``expect(f)`` = Σ_n w_n E_q[f(x_n, z)], a pytree of sums; of a chain f(x_t, z_t) over the steps.

    initial, transition: of a chain, the expected counts of first states [n] and of moves [n, n].
    """

    def __init__(self, space: LatentSpace, expectation: Any):
        self._space, self._expectation = space, expectation

    def __call__(self, statistic: Callable[[Any, Any], Any]) -> Any:
        return self._space.sums(statistic, self._expectation)

    @property
    def initial(self) -> Array:
        return self._expectation.initial

    @property
    def transition(self) -> Array:
        return self._expectation.transition


@pytree
class LogJointModel(Model):
    log_joint: Any
    latent: LatentSpace
    starter: Any
    prior: Any
    closed: Any
    statistic: Any
    sampler: Any
    ascent: Any
    constraints: dict[str, bijections.Bijection]

    freezable = EveryName()
    keeps_types = True

    @property
    def additive(self) -> bool:  # type: ignore[override]
        return self.statistic is not None

    @property
    def generalized(self) -> bool:  # type: ignore[override]
        return self.closed is None

    @property
    def objective_name(self) -> str:  # type: ignore[override]
        return self.latent.objective_name

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return self.latent.monotone

    @property
    def num_components(self) -> int:
        return self.latent.num_components

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.latent.sequential

    @property
    def starts_from_data(self) -> bool:
        """Whether init takes the data beside the key."""
        if self.starter is None:
            return False
        return len(inspect.signature(self.starter.func).parameters) - len(self.starter.args) > 1

    def redraw(self, key: Array) -> Model:
        return dataclasses.replace(self, latent=self.latent.redraw(key))

    def prepare(self, data):
        return self.latent.read(data)

    def num_observations(self, data, weights=None):
        return self.latent.num_observations(self.prepare(data), weights, float_type(data))

    def init(self, key, data, weights=None, strategy=None, used=None):
        if self.starter is None:
            raise unsupported(self, "init", "a fit without given starting parameters")
        if strategy is not None and type(strategy).__name__ != "KMeansPlusPlus":
            raise ValueError(f"a LogJoint starts from its own init; it cannot use {type(strategy).__name__}")
        given = self.starter(key, rows_of(data)) if self.starts_from_data else self.starter(key)
        params = jax.tree.map(jnp.asarray, given, is_leaf=lambda part: isinstance(part, list))
        return self._as_float(params, data)

    def _as_float(self, params: Any, data: Any) -> Any:
        """Parameters in the floating-point type of the data; anything but numbers is refused by name."""
        dtype = float_type(data)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not jnp.issubdtype(leaf.dtype, jnp.number):
                raise ValueError(f"init returned {leaf.dtype} for {leaf_name(path)!r}: parameters are numbers")
        return jax.tree.map(lambda a: a.astype(dtype), params)

    # EM.

    def e_step(self, params, data, weights=None):
        params, data = self._on_device(params, data)
        self.latent.check(self.log_joint, params, data)
        expectation, evidence = self.latent.infer(self.log_joint, params, data, weights)
        terms = evidence if weights is None else jnp.where(weights == 0, 0, weights * evidence)
        stats = expectation if self.statistic is None else self.latent.sums(self.statistic, expectation)
        weight = self.latent.num_observations(data, weights, evidence.dtype)
        return EStep(stats, long_sum(terms), weight)

    def m_step(self, params, stats, frozen=None):
        params = jax.tree.map(jnp.asarray, params)
        moves = moving(self, params, frozen)
        if self.closed is not None:
            if frozen:
                raise ValueError(f"an m_step in closed form cannot hold {', '.join(frozen)} fixed: leave it out")
            return like("m_step", params, self._closed(params, stats))
        free, unravel = ravel_pytree(self.to_free(params))

        def objective(stats: Any) -> Callable[[Array], Array]:
            def height(v: Array) -> Array:
                updated = self.from_free(unravel(v))
                return self.latent.expected(self.log_joint, updated, stats) + self.log_prior(updated)

            return height

        ascent: Ascent = default_ascent(free.size) if self.ascent is None else self.ascent
        num_rows, size = self.latent.extent(stats)
        thinned = self.latent.thin(stats, max(_LEAST_ROWS, num_rows // max(free.size, 1)))
        climbed = ascent.climb(objective(stats), free, moves, objective(thinned), size)
        return like("the way back from free coordinates", params, self.from_free(unravel(climbed)))

    def _closed(self, params: Any, stats: Any) -> Any:
        given = stats if self.statistic is not None else Expectation(self.latent, stats)
        return self.closed(params, given)

    def q(self, params, stats):
        if self.statistic is not None:
            raise UnsupportedError(
                "sums of statistics do not hold q of a LogJoint: ask explicit(), which keeps the posterior"
            )
        return self.latent.expected(self.log_joint, jax.tree.map(jnp.asarray, params), stats)

    def explicit(self) -> Model:
        return self if self.statistic is None else dataclasses.replace(self, statistic=None, closed=None)

    def log_prior(self, params):
        return 0.0 if self.prior is None else self.prior(params)

    # What follows from the log joint.

    def to_free(self, params):
        return bijections.to_free(self.constraints, params)

    def from_free(self, free):
        return bijections.from_free(self.constraints, free)

    @programs.method
    def log_likelihood(self, params, data):
        return self.latent.infer(self.log_joint, *self._on_device(params, data), None)[1]

    @programs.method
    def posterior(self, params, data):
        return self.latent.posterior(self.log_joint, *self._on_device(params, data))

    @programs.method
    def predict(self, params, data):
        return self.latent.predict(self.log_joint, *self._on_device(params, data))

    def elbo(self, params, data, q, weights=None):
        return self.latent.bound(self.log_joint, *self._on_device(params, data), q, weights)

    def _on_device(self, params: Any, data: Any) -> tuple[Any, Any]:
        """Arrays of JAX, which a user's function may index by traced numbers."""
        params, data = jax.tree.map(jnp.asarray, (params, data))
        return params, self.prepare(data)

    @programs.method(static=("num_examples", "num_steps"))
    def sample(self, key, params, num_examples, num_steps=None, inputs=None):
        if self.sampler is None:
            raise unsupported(self, "sample", "sampling")
        if num_steps is not None or inputs is not None:
            raise ValueError(
                "the sample function of a LogJoint draws whole examples: it takes no num_steps and no inputs"
            )
        return jax.vmap(self.sampler, in_axes=(0, None))(jax.random.split(key, num_examples), params)
