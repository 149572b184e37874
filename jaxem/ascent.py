"""Climbing a function that has no closed maximum: the M-step of generalized EM. The start is never lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxem.linalg import dot
from jaxem.model import pytree, static, unsupported
from jaxem.same_function import same

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Objective = Callable[["Float[Array, ' P']"], "Float[Array, '']"]

# Halvings of a step at most; and the roundings of the objective below which a fall is not seen as one.
_HALVINGS = 20
_ROUNDINGS = 16
# Up to so many coordinates a Hessian costs little more than the gradients of an iterative method.
_FEW_COORDINATES = 100


class Ascent:
    """A method that raises an objective from a start, in a few steps: never lower than the start."""

    def climb(
        self,
        objective: Objective,
        start: Float[Array, " P"],
        moves: Bool[Array, " P"] | None = None,
        curvature: Objective | None = None,
        size: Array | float = 1.0,
    ) -> Float[Array, " P"]:
        """A point at least as high as ``start``, up to rounding.

        moves: the coordinates that may move, all by default. curvature: a cheaper function with nearly the same second
        derivatives, for methods that use them. size: the size of the terms of the objective, whose rounding it shares.
        """
        raise unsupported(self, "climb", "a gradient M-step")


@pytree
class Newton(Ascent):
    """``steps`` Newton steps, each halved until it does not fall; eigenvalues of the wrong sign are turned around.

    One step has the rate of convergence of the whole maximization once EM is near its end (Lange 1995, the EM gradient
    algorithm); more make the first steps better. For up to a few hundred parameters.
    """

    steps: int = static(default=1)

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1; got {self.steps!r}")

    def climb(self, objective, start, moves=None, curvature=None, size=1.0):
        def step(v: Array, _: Any) -> tuple[Array, None]:
            height, slope = jax.value_and_grad(objective)(v)
            slope = slope if moves is None else jnp.where(moves, slope, 0)
            bend = _hessian(curvature or objective, jax.lax.stop_gradient(v))
            inverse = jax.lax.stop_gradient(_inverse_of_size(bend, moves))
            # At a maximum the slope is 0, so that the derivative of this step needs none of the inverse.
            direction = dot(inverse, slope)
            share = _share_that_rises(objective, v, direction, height, jnp.sum(direction * slope), size)
            return v + jnp.where(share > 0, share * direction, 0), None

        return jax.lax.scan(step, start, length=self.steps)[0]


def _hessian(objective: Objective, v: Float[Array, " P"]) -> Float[Array, "P P"]:
    return jax.lax.stop_gradient(jax.jacfwd(jax.grad(objective))(v))


def _inverse_of_size(hessian: Float[Array, "P P"], moves: Array | None) -> Float[Array, "P P"]:
    """|−H|⁻¹ over the coordinates that may move; flat directions count as bent as little as can be told."""
    if moves is not None:
        hessian = jnp.where(moves[:, None] & moves, hessian, 0)
    hessian = jnp.where(jnp.isfinite(hessian), hessian, 0)
    # Scaled to a unit diagonal: coordinates have different units.
    unit = jax.lax.rsqrt(jnp.maximum(jnp.abs(jnp.diagonal(hessian)), jnp.finfo(hessian.dtype).tiny))
    unit = jnp.where(jnp.diagonal(hessian) == 0, 0, unit)
    values, vectors = jnp.linalg.eigh(hessian * unit[:, None] * unit)
    sizes = jnp.abs(values)
    least = jnp.sqrt(jnp.finfo(hessian.dtype).eps) * jnp.maximum(jnp.max(sizes), jnp.finfo(hessian.dtype).tiny)
    return dot(vectors / jnp.maximum(sizes, least), vectors.T) * unit[:, None] * unit


def _share_that_rises(
    objective: Objective, v: Array, direction: Array, height: Array, promise: Array, size: Array | float
) -> Float[Array, ""]:
    """The largest of 1, ½, ¼, … by which the objective does not fall; 0 where none is found."""
    v, direction, height, promise = jax.lax.stop_gradient((v, direction, height, promise))
    rounding = _ROUNDINGS * jnp.finfo(height.dtype).eps * jnp.maximum(jnp.abs(height), size)

    # What promises less than can be seen is taken on trust: parameters still gain digits then.
    unseen = jnp.abs(promise) <= rounding

    def falls(carry: Any) -> Array:
        share, value = carry
        return ~(value >= height - rounding) & (share > 0) & ~unseen

    def halve(carry: Any) -> Any:
        share = jnp.where(carry[0] > 2.0**-_HALVINGS, carry[0] / 2, 0)
        return share, jax.lax.stop_gradient(objective(v + share * direction))

    one = jnp.ones((), v.dtype)
    return jax.lax.while_loop(falls, halve, (one, jax.lax.stop_gradient(objective(v + direction))))[0]


def check_optimizer(optimizer: Any, example: str) -> None:
    """Raise ValueError for what is no optax optimizer. Optax is imported where it is used: many fits never need it."""
    import optax

    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"expected an optax optimizer, such as {example}; got {optimizer!r}")


@pytree
class Optax(Ascent):
    """``steps`` updates of an optax optimizer (`optax.adam(0.1)`, `optax.lbfgs()`, …), or the start where they fall.

    Its state is new in every M-step. Methods with a line search are given what they need.
    """

    optimizer: Any = static()
    steps: int = static(default=10)

    def __post_init__(self):
        check_optimizer(self.optimizer, "optax.adam(0.1)")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1; got {self.steps!r}")
        object.__setattr__(self, "optimizer", same(self.optimizer))

    def climb(self, objective, start, moves=None, curvature=None, size=1.0):
        def loss(v: Array) -> Array:
            return -objective(v if moves is None else jnp.where(moves, v, start))

        import optax

        optimizer = optax.with_extra_args_support(self.optimizer)

        def step(carry: Any, _: Any) -> tuple[Any, None]:
            v, state, best, lowest = carry
            value, slope = jax.value_and_grad(loss)(v)
            better = value <= lowest
            best, lowest = jnp.where(better, v, best), jnp.where(better, value, lowest)
            updates, state = optimizer.update(slope, state, v, value=value, grad=slope, value_fn=loss)
            return (optax.apply_updates(v, updates), state, best, lowest), None

        first = loss(start)
        (v, _, best, lowest), _ = jax.lax.scan(step, (start, optimizer.init(start), start, first), length=self.steps)
        best = jnp.where(loss(v) <= lowest, v, best)
        return best if moves is None else jnp.where(moves, best, start)


def default_ascent(num_coordinates: int) -> Ascent:
    """Newton's method for few coordinates, L-BFGS for many."""
    if num_coordinates <= _FEW_COORDINATES:
        return Newton()
    import optax

    return Optax(optax.lbfgs())


def as_ascent(method: Any, steps: int | None) -> Ascent | None:
    """A method as the user gives it: None, an `Ascent`, or an optax optimizer with a number of steps."""
    if method is None or isinstance(method, Ascent):
        if steps is not None and method is not None:
            raise ValueError(f"steps belongs to the method here: {type(method).__name__}({steps})")
        return Newton(steps) if steps is not None else method
    return Optax(method, 10 if steps is None else steps)
