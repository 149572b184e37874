"""Derivatives of a fixed point by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import gmres

from jaxem.linalg import dot

# Up to so many parameters the Jacobian is formed: an iterative solver would ask as many products with it, and could not
# tell whether the optimum is isolated.
_DENSE = 64
_COLUMNS = 8
# An eigenvalue of I − J below this power of the rounding is none: the optimum is not isolated. For the iterative solver,
# a residual above it.
_SINGULAR = 0.45


def fixed_point_tangent(
    step: Callable[[Any, Any], tuple[Any, Any]], params: Any, problem: Any, problem_dot: Any, valid: jax.Array
) -> tuple[Any, Any]:
    """Tangents of ``params = M(params, problem)`` and of the values that ``step`` returns beside it.

    ``dθ = (I − ∂M/∂θ)⁻¹ ∂M/∂problem · dproblem``: one linear solve with Jacobian-vector products of M, whose eigenvalues
    lie in [0, 1) at an isolated optimum. ``step(params, problem) -> (M(params, problem), values)``. Leaves of
    ``problem_dot`` may be `SymbolicZero`, which costs nothing. NaN where not valid, and where the optimum is not isolated:
    I − ∂M/∂θ is singular (seen for up to 64 parameters), or the equations have no solution.
    """
    flat, unravel = ravel_pytree(params)
    moving, moving_dot, rebuild = _moving(problem, problem_dot)

    def along(v: jax.Array, moving: list[jax.Array]) -> tuple[jax.Array, Any]:
        new, values = step(unravel(v), rebuild(moving))
        return ravel_pytree(new)[0], values

    # One copy of the step in the program: everything below is its derivative at this point.
    _, derivative = jax.linearize(along, flat, moving)
    still, unmoved = jnp.zeros_like(flat), [jnp.zeros_like(leaf) for leaf in moving]

    def by_params(v: jax.Array) -> tuple[jax.Array, Any]:
        # The tangent of a linear map is the map itself, without what belongs to the arguments that have none.
        return jax.jvp(lambda u: derivative(u, unmoved), (still,), (v,))[1]

    pushed, direct = jax.jvp(lambda d: derivative(still, d), (unmoved,), (moving_dot,))[1]
    if flat.size <= _DENSE:
        # The values' slopes come with the columns of the Jacobian.
        columns, slopes = _columns(by_params, flat)
        solution = _solve_dense(columns.T, flat, pushed, valid)
        through = jax.tree.map(lambda s: jnp.tensordot(solution.astype(s.dtype), s, 1), slopes)
    else:
        solution = _solve_by_products(lambda v: by_params(v)[0], pushed, valid)
        through = by_params(solution)[1]
    return unravel(solution), jax.tree.map(jnp.add, direct, through)


def _moving(
    problem: Any, problem_dot: Any
) -> tuple[list[jax.Array], list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """The leaves that have a tangent, their tangents, and the problem made again from such leaves."""
    leaves, structure = jax.tree.flatten(problem)
    tangents = jax.tree.leaves(problem_dot, is_leaf=lambda t: isinstance(t, SymbolicZero))
    which = [
        i
        for i, (leaf, tangent) in enumerate(zip(leaves, tangents, strict=True))
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not isinstance(tangent, SymbolicZero)
    ]

    def rebuild(moving: list[jax.Array]) -> Any:
        new = list(leaves)
        for i, leaf in zip(which, moving, strict=True):
            new[i] = leaf
        return jax.tree.unflatten(structure, new)

    return [jnp.asarray(leaves[i]) for i in which], [tangents[i] for i in which], rebuild


def jacobian(map_of_params: Callable[[jax.Array], jax.Array], flat: jax.Array) -> jax.Array:
    """∂M/∂θ, a few columns at a time: the E-step's arrays are held for no more than those."""
    flat = jax.lax.stop_gradient(flat)
    return _columns(lambda unit: jax.jvp(map_of_params, (flat,), (unit,))[1], flat).T


def _columns(f: Callable[[jax.Array], Any], flat: jax.Array) -> Any:
    """``f``, a linear map, of every unit vector: stacked in front, a few at a time."""
    size = flat.size
    count = -(-size // _COLUMNS)
    each = -(-size // max(1, count))
    # Rows of zeros fill the last batch: left over, they would be compiled as a program of their own.
    units = jnp.eye(count * each, size, dtype=flat.dtype)
    columns = jax.lax.map(f, units, batch_size=max(1, each))
    return jax.tree.map(lambda a: a[:size], columns)


def _solve_dense(slopes: jax.Array, flat: jax.Array, pushed: jax.Array, valid: jax.Array) -> jax.Array:
    """The x with ``x − slopes x = pushed``, by one singular value decomposition that also judges it."""
    matrix = jnp.eye(flat.size, dtype=flat.dtype) - slopes
    readable = jnp.all(jnp.isfinite(matrix)) & valid
    # Scaled to parameters of the same size, in which the smallest singular value can be judged.
    size = jax.lax.stop_gradient(jnp.where(flat == 0, 1, jnp.abs(flat)))
    matrix = jnp.where(readable, matrix * size / size[:, None], jnp.eye(flat.size, dtype=flat.dtype))
    left, values, right = jnp.linalg.svd(jax.lax.stop_gradient(matrix))
    isolated = values[-1] > float(jnp.finfo(flat.dtype).eps) ** _SINGULAR
    values = jnp.where(isolated, values, 1)
    poison = jnp.where(readable & isolated, jnp.ones((), flat.dtype), jnp.nan)
    solved = jax.lax.custom_linear_solve(
        lambda v: dot(matrix, v),
        # Factors, not a choice, which reverse mode would turn into gradient 0.
        poison * pushed / size,
        lambda _, b: dot(right.T, dot(left.T, b) / values),
        lambda _, b: dot(left, dot(right, b) / values),
    )
    return poison * size * solved


def _solve_by_products(derivative: Callable[[jax.Array], jax.Array], pushed: jax.Array, valid: jax.Array) -> jax.Array:
    eps = float(jnp.finfo(pushed.dtype).eps)

    def residual(v: jax.Array) -> jax.Array:
        return v - derivative(v)

    def solve(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        found = gmres(matvec, b, tol=100 * eps, restart=50, maxiter=20)[0]
        left = jnp.linalg.norm(b - matvec(found))
        return jnp.where(left <= eps**_SINGULAR * jnp.linalg.norm(b), found, jnp.nan)

    # On both sides of the solver, which turns a NaN into 0 itself.
    poison = jnp.where(valid, jnp.ones((), pushed.dtype), jnp.nan)
    return poison * jax.lax.custom_linear_solve(residual, poison * pushed, solve, transpose_solve=solve)
