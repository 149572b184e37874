"""How fast EM converges: the leading eigenvalues of its map's Jacobian."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import validate
from jaxem.inference.chart import Chart, chart_at
from jaxem.inference.information import em_map
from jaxem.inference.standard_errors import check_fit
from jaxem.model import Model, pytree

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Vectors iterated beside those that are asked for: the first ones then converge as fast as the last is smaller.
_BESIDE = 4
# Iterations between two looks at the eigenvalues.
_SWEEP = 10


@pytree
class ConvergenceRate:
    """eigenvalues: the largest of the EM map's Jacobian, [num], in falling order. steps: power iterations made.

    converged: whether they had stopped changing.
    """

    eigenvalues: Float[np.ndarray, " E"]
    steps: int
    converged: bool

    @property
    def rate(self) -> float:
        """Near the optimum each step of EM multiplies the distance from it by this."""
        return float(self.eigenvalues[0])

    @property
    def missing_information(self) -> Float[np.ndarray, " E"]:
        """The fractions of the complete-data information that are missing, in the directions of which most is.

        They are the eigenvalues, where the M-step maximizes q (Dempster, Laird & Rubin 1977).
        """
        return self.eigenvalues


def convergence_rate(
    model: Model,
    params: Any,
    data: Any,
    weights: Any = None,
    *,
    num: int = 1,
    key: Array | None = None,
    tol: float = 1e-8,
    max_steps: int = 10_000,
) -> ConvergenceRate:
    """The ``num`` largest eigenvalues of J, the Jacobian of one EM step at the optimum ``params``.

    J = I_complete⁻¹ I_missing has eigenvalues in [0, 1): EM's error shrinks by the largest a step, and they are the
    fractions of missing information. An eigenvalue of 1 says that the optimum is not isolated (the rotation of
    factors). Computed by orthogonal iteration with Jacobian-vector products, one pass over the data each, in the
    coordinates that can move: what is frozen or on a boundary has no part in it.

    key: for a random start of the iteration instead of the fixed one. tol: stop when no eigenvalue changes by more,
    max_steps: or after about so many iterations. Raises ValueError for ``num`` below 1 or above the number of
    coordinates.
    """
    num = validate.check_count("num", num, 1)
    max_steps = validate.check_count("max_steps", max_steps, 1)
    model, params, data, weights = check_fit(model, params, data, weights)
    model, chart, _ = chart_at(model, params, data, weights)
    if num > chart.size:
        raise ValueError(f"num must be at most {chart.size}, the number of coordinates that can move; got {num}")
    columns = min(chart.size, num + _BESIDE)
    key = jax.random.key(0) if key is None else key
    vectors = jax.random.normal(key, (chart.size, columns), chart.tangent.dtype)
    tol = max(tol, 10 * float(jnp.finfo(vectors.dtype).eps))
    before, steps, converged = np.full(num, np.inf), 0, False
    while not converged and steps < max_steps:
        vectors, small = _sweep(model, params, chart, data, weights, vectors)
        values = np.sort(np.linalg.eigvals(np.asarray(small, float)).real)[::-1][:num]
        steps += _SWEEP
        converged = bool(np.max(np.abs(values - before)) <= tol)
        before = values
    return ConvergenceRate(before, steps, converged)


@jax.jit
def _sweep(model: Model, params: Any, chart: Chart, data: Any, weights: Any, v: Array) -> tuple[Array, Array]:
    """Orthogonal iterations V ← orth(J V), and Vᵀ J V, whose eigenvalues approach those of J."""
    prepared, weights = model.compress(data, weights)
    step = em_map(model, params, chart, prepared, weights)
    here = jnp.zeros(chart.size, v.dtype)

    def push(v: Array) -> Array:
        return jax.vmap(lambda t: jax.jvp(step, (here,), (t,))[1], in_axes=1, out_axes=1)(v)

    def again(_, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        v = jnp.linalg.qr(carry[1])[0]
        return v, push(v)

    v, pushed = jax.lax.fori_loop(0, _SWEEP, again, (v, v))
    return pushed, jnp.matmul(v.T, pushed, precision="highest")
