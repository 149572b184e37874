"""Derivatives of a fixed point by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import gmres


def fixed_point_tangent(
    step: Callable[[Any, Any], tuple[Any, Any]], params: Any, problem: Any, problem_dot: Any, valid: jax.Array
) -> tuple[Any, Any]:
    """Tangents of ``params = M(params, problem)`` and of the values that ``step`` returns beside it.

    ``dθ = (I − ∂M/∂θ)⁻¹ ∂M/∂problem · dproblem``: one linear solve with Jacobian-vector products of M, whose eigenvalues
    lie in [0, 1) at an isolated optimum. ``step(params, problem) -> (M(params, problem), values)``. NaN where not valid.
    """
    flat, unravel = ravel_pytree(params)

    def map_of_params(v: jax.Array) -> jax.Array:
        return ravel_pytree(step(unravel(v), problem)[0])[0]

    def map_of_problem(problem: Any) -> jax.Array:
        return ravel_pytree(step(params, problem)[0])[0]

    _, pushed = jax.jvp(map_of_problem, (problem,), (problem_dot,))
    tol = 100 * float(jnp.finfo(flat.dtype).eps)

    def residual(v: jax.Array) -> jax.Array:
        return v - jax.jvp(map_of_params, (flat,), (v,))[1]

    def solve(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        return gmres(matvec, b, tol=tol, restart=min(flat.size, 50), maxiter=20)[0]

    # Factors, not a choice, which reverse mode would turn into gradient 0; on both sides of the solver, which turns a NaN
    # into 0 itself.
    poison = jnp.where(valid, jnp.ones((), flat.dtype), jnp.nan)
    solution = poison * jax.lax.custom_linear_solve(residual, poison * pushed, solve, transpose_solve=solve)
    params_dot = unravel(solution)
    _, values_dot = jax.jvp(lambda p, d: step(p, d)[1], (params, problem), (params_dot, problem_dot))
    return params_dot, values_dot
