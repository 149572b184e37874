"""Derivatives of a fixed point by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import gmres

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
    lie in [0, 1) at an isolated optimum. ``step(params, problem) -> (M(params, problem), values)``. NaN where not valid,
    and where the optimum is not isolated: I − ∂M/∂θ is singular (seen for up to 64 parameters), or the equations have no
    solution.
    """
    flat, unravel = ravel_pytree(params)

    def map_of_params(v: jax.Array) -> jax.Array:
        return ravel_pytree(step(unravel(v), problem)[0])[0]

    def map_of_problem(problem: Any) -> jax.Array:
        return ravel_pytree(step(params, problem)[0])[0]

    _, pushed = jax.jvp(map_of_problem, (problem,), (problem_dot,))
    if flat.size <= _DENSE:
        solution = _solve_dense(map_of_params, flat, pushed, valid)
    else:
        solution = _solve_by_products(map_of_params, flat, pushed, valid)
    params_dot = unravel(solution)
    _, values_dot = jax.jvp(lambda p, d: step(p, d)[1], (params, problem), (params_dot, problem_dot))
    return params_dot, values_dot


def jacobian(map_of_params: Callable[[jax.Array], jax.Array], flat: jax.Array) -> jax.Array:
    """∂M/∂θ, a few columns at a time: the E-step's arrays are held for no more than those."""
    flat = jax.lax.stop_gradient(flat)
    columns = jax.lax.map(
        lambda unit: jax.jvp(map_of_params, (flat,), (unit,))[1],
        jnp.eye(flat.size, dtype=flat.dtype),
        batch_size=max(1, min(_COLUMNS, flat.size)),
    )
    return columns.T


def _solve_dense(map_of_params: Any, flat: jax.Array, pushed: jax.Array, valid: jax.Array) -> jax.Array:
    matrix = jnp.eye(flat.size, dtype=flat.dtype) - jacobian(map_of_params, flat)
    readable = jnp.all(jnp.isfinite(matrix)) & valid
    matrix = jnp.where(readable, matrix, jnp.eye(flat.size, dtype=flat.dtype))
    # Scaled to parameters of the same size, in which the smallest singular value can be judged.
    size = jnp.where(flat == 0, 1, jnp.abs(flat))
    smallest = jnp.linalg.svd(matrix * size / size[:, None], compute_uv=False)[-1]
    isolated = smallest > float(jnp.finfo(flat.dtype).eps) ** _SINGULAR
    poison = jnp.where(readable & isolated, jnp.ones((), flat.dtype), jnp.nan)
    matrix = jnp.where(isolated, matrix, jnp.eye(flat.size, dtype=flat.dtype))
    # Factors, not a choice, which reverse mode would turn into gradient 0.
    return poison * jnp.linalg.solve(matrix, poison * pushed)


def _solve_by_products(map_of_params: Any, flat: jax.Array, pushed: jax.Array, valid: jax.Array) -> jax.Array:
    tol = 100 * float(jnp.finfo(flat.dtype).eps)

    def residual(v: jax.Array) -> jax.Array:
        return v - jax.jvp(map_of_params, (flat,), (v,))[1]

    def solve(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        found = gmres(matvec, b, tol=tol, restart=50, maxiter=20)[0]
        left = jnp.linalg.norm(b - matvec(found))
        solved = left <= float(jnp.finfo(flat.dtype).eps) ** _SINGULAR * jnp.linalg.norm(b)
        return jnp.where(solved, found, jnp.nan)

    # On both sides of the solver, which turns a NaN into 0 itself.
    poison = jnp.where(valid, jnp.ones((), flat.dtype), jnp.nan)
    return poison * jax.lax.custom_linear_solve(residual, poison * pushed, solve, transpose_solve=solve)
