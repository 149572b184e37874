"""A continuous latent vector: adaptive Gauss–Hermite quadrature, Laplace's approximation, importance sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.linalg import cholesky, diagonal, dot, factor
from jaxem.model import float_type, num_examples, pytree, static
from jaxem.spaces import points
from jaxem.spaces.base import LatentSpace, first_row, rows_of, trace_one

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Damped Newton steps to a mode at most, and halvings of one of them; where they stop early nothing is lost but digits
# of the quadrature.
_MODE_STEPS, _HALVINGS = 30, 12
# A posterior of z is taken to be no wider than this many units of z in any direction.
_WIDEST = 1e3


@pytree
class Quadrature:
    """Gauss–Hermite quadrature with ``num_nodes`` nodes in each dimension (Liu & Pierce 1994).

    adaptive: nodes about the mode of p(z | x_n), scaled by its curvature, found anew at every E-step; otherwise nodes of
    the standard normal distribution, the same for all examples, which is cheaper and right where that is the prior of z
    and examples say little. The error is seen by doubling num_nodes.
    """

    num_nodes: int = static(default=15)
    adaptive: bool = static(default=True)

    def __post_init__(self):
        if not isinstance(self.num_nodes, int) or self.num_nodes < 1:
            raise ValueError(f"num_nodes must be a whole number, at least 1; got {self.num_nodes!r}")


@pytree
class Laplace:
    """log p(x_n) ≈ log p(x_n, m) + (L/2) log 2π − ½ log |H| at the mode m of log p(x_n, z), H its negative Hessian.

    The approximate log-likelihood is what every M-step climbs (there is no expectation that would): it never falls, and
    its maximum is off by what Laplace's formula is off. Cheap in many dimensions; exact where z is Gaussian given x.
    """


@pytree
class MonteCarlo:
    """Importance sampling: ``num_samples`` draws from N(m, s² H⁻¹) about the mode, s = 1.2, for many dimensions.

    The standard normal numbers behind the draws are the same in every step; the draws move with the mode, so that the
    objective may fall by the error of its estimate, and settles as the parameters do. The maximum is that of the
    likelihood up to an error of order 1/√S. key: required.
    """

    num_samples: int = static(default=200)
    key: Any = None

    def __post_init__(self):
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ValueError(f"num_samples must be a whole number, at least 1; got {self.num_samples!r}")
        if self.key is None:
            raise ValueError("MonteCarlo needs a key: jaxem.MonteCarlo(200, jax.random.key(0))")


# Importance densities are this much wider than the posterior's Gaussian approximation: tails must be covered.
_INFLATION = 1.2


@pytree
class GaussianLatent(LatentSpace):
    """z ∈ R^L with a density of any form, near Gaussian given x; ``dim`` = 0 makes z one number, else it is [L].

    The log joint holds the prior of z too. method: `Quadrature` (the default: num_nodes^L points for each example, so
    L ≤ 3 or so), `Laplace` or `MonteCarlo`.
    """

    dim: int = static(default=0)
    method: Quadrature | Laplace | MonteCarlo = Quadrature()

    def __post_init__(self):
        if not isinstance(self.dim, int) or self.dim < 0:
            raise ValueError(f"dim is 0 for one number, or the length of z; got {self.dim!r}")
        if isinstance(self.method, type):
            raise ValueError(f"expected a method such as jaxem.Quadrature(15); got the class {self.method.__name__}")

    @property
    def objective_name(self) -> str:  # type: ignore[override]
        names = {Laplace: "Laplace's log-likelihood", MonteCarlo: "estimated log-likelihood"}
        return names.get(type(self.method), "log-likelihood")

    @property
    def monotone(self) -> bool:  # type: ignore[override]
        return not isinstance(self.method, MonteCarlo)

    @property
    def _length(self) -> int:
        return max(1, self.dim)

    def _shaped(self, z: Array) -> Array:
        """[..., L], or [...] where z is one number."""
        return z if self.dim else z[..., 0]

    def redraw(self, key):
        if not isinstance(self.method, MonteCarlo):
            return self
        return GaussianLatent(self.dim, MonteCarlo(self.method.num_samples, key))

    def check(self, log_joint, params, data):
        x = first_row(rows_of(data))
        z = jax.ShapeDtypeStruct((self.dim,) if self.dim else (), float_type(params))
        trace_one("log_joint(params, x, z)", log_joint, params=params, x=x, z=z)

    def _target(self, log_joint: Any) -> Callable[[Any, Any, Array], Array]:
        """log p(x, z | params) as a function of z, [L]."""
        return lambda params, x, z: log_joint(params, x, self._shaped(z))

    def _modes(self, log_joint: Any, params: Any, rows: Any) -> tuple[Float[Array, "N L"], Float[Array, "N L L"]]:
        """Mode of every example and a root R of its posterior's covariance, R Rᵀ = H⁻¹; nothing is differentiated."""
        start = jnp.zeros(self._length, float_type(params))
        return jax.vmap(lambda x: self._mode(log_joint, params, x, start))(rows)

    def _mode(self, log_joint: Any, params: Any, x: Any, start: Float[Array, " L"]) -> Any:
        params, x, start = jax.lax.stop_gradient((params, x, start))
        return jax.lax.stop_gradient(find_mode(lambda z: self._target(log_joint)(params, x, z), start))

    def _placed(self, log_joint: Any, params: Any, rows: Any) -> tuple[Array, Array]:
        """Points [N, S, L] and the logarithms of their measures [N, S]."""
        dtype, n, method = float_type(params), num_examples(rows), self.method
        if isinstance(method, MonteCarlo):
            unit = jax.random.normal(method.key, (n, method.num_samples, self._length), dtype)
            normal = 0.5 * jnp.sum(unit**2, axis=-1) + 0.5 * self._length * math.log(2 * math.pi)
            log_measure, widen = normal - math.log(method.num_samples), _INFLATION
        else:
            nodes, log_weights = _hermite(method.num_nodes, self._length)  # type: ignore[union-attr]
            unit, log_measure, widen = jnp.asarray(nodes, dtype)[None], jnp.asarray(log_weights, dtype)[None], 1.0
            if not method.adaptive:  # type: ignore[union-attr]
                shape = (n, *nodes.shape)
                return jnp.broadcast_to(unit, shape), jnp.broadcast_to(log_measure, shape[:2])
        mode, root = self._modes(log_joint, params, rows)
        root = root * widen
        z = mode[:, None] + dot(unit, jnp.swapaxes(root, -1, -2))
        return z, log_measure + jnp.sum(jnp.log(jnp.abs(diagonal(root))), axis=-1)[:, None]

    def infer(self, log_joint, params, data, weights):
        rows = rows_of(data)
        if isinstance(self.method, Laplace):
            mode, _ = self._modes(log_joint, params, rows)
            each = jnp.ones(mode.shape[0], mode.dtype) if weights is None else weights
            state = points.Points(rows, mode[:, None], each[:, None])
            return state, self._laplace(log_joint, params, rows, mode)
        z, log_measure = self._placed(log_joint, params, rows)
        found, evidence = points.infer(self._target(log_joint), params, rows, z, log_measure, weights)
        return found, evidence

    def _laplace(self, log_joint: Any, params: Any, rows: Any, start: Float[Array, "N L"]) -> Float[Array, " N"]:
        """The approximate log-likelihood, differentiable: its mode moves with the parameters."""

        def one(x: Any, z: Array) -> Array:
            def height(z: Array) -> Array:
                return self._target(log_joint)(params, x, z)

            z = jax.lax.stop_gradient(self._mode(log_joint, params, x, z)[0])
            # One step more, from the mode to itself: what the mode's derivative is seen through.
            z = z + _newton_direction(height, z)
            root = cholesky(-jax.hessian(height)(z))
            log_determinant = 2 * jnp.sum(jnp.log(diagonal(root)))
            return height(z) + 0.5 * self._length * math.log(2 * math.pi) - 0.5 * log_determinant

        return jax.vmap(one)(rows, start)

    def expected(self, log_joint, params, expectation):
        if isinstance(self.method, Laplace):
            terms = self._laplace(log_joint, params, expectation.rows, expectation.z[:, 0])
            weights = expectation.coefficients[:, 0]
            return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, terms, 0), 0))
        return points.expected(self._target(log_joint), params, expectation)

    def sums(self, statistic, expectation):
        if isinstance(self.method, Laplace):
            raise ValueError("Laplace's approximation has no expectations: leave m_step out, or use Quadrature")
        return points.sums(lambda x, z: statistic(x, self._shaped(z)), expectation)

    def extent(self, expectation):
        return expectation.coefficients.shape[0], jnp.sum(expectation.coefficients)

    def thin(self, expectation, num_rows):
        return points.thin(expectation, num_rows)

    def bound(self, log_joint, params, data, q, weights):
        """q: (mean, covariance) of a normal distribution for every example, [N, L] and [N, L, L]."""
        rows, length = rows_of(data), self._length
        n = num_examples(rows)
        mean, covariance = (jnp.asarray(part) for part in q)
        if mean.shape != (n, length) or covariance.shape != (n, length, length):
            expected = f"{(n, length)} and {(n, length, length)}"
            raise ValueError(f"q is (mean, covariance) of shapes {expected}; got {mean.shape} and {covariance.shape}")
        root = cholesky(covariance)
        nodes, log_weights = _hermite(self.method.num_nodes if isinstance(self.method, Quadrature) else 15, length)
        normal = log_weights - 0.5 * np.sum(nodes**2, axis=-1) - 0.5 * length * math.log(2 * math.pi)
        z = mean[:, None] + dot(jnp.asarray(nodes, mean.dtype)[None], jnp.swapaxes(root, -1, -2))
        each = jnp.ones(n, mean.dtype) if weights is None else weights
        share = jnp.asarray(np.exp(normal), mean.dtype)
        joint = points.expected(self._target(log_joint), params, points.Points(rows, z, each[:, None] * share))
        entropy = 0.5 * length * (1 + math.log(2 * math.pi)) + jnp.sum(jnp.log(diagonal(root)), axis=-1)
        return joint + jnp.sum(each * entropy)

    def posterior(self, log_joint, params, data):
        """Mean, [N, L], and covariance, [N, L, L], of z given x_n; by Laplace the mode and the inverse curvature."""
        rows = rows_of(data)
        if isinstance(self.method, Laplace):
            mode, root = self._modes(log_joint, params, rows)
            return mode, dot(root, jnp.swapaxes(root, -1, -2))
        found, _ = self.infer(log_joint, params, data, None)
        return points.mean_and_covariance(found)

    def predict(self, log_joint, params, data):
        """The mode of z given x_n: [N, L], or [N] where z is one number."""
        return self._shaped(self._modes(log_joint, params, rows_of(data))[0])


def _hermite(num_nodes: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes [S, L] and log-weights [S] with ∫ f(u) du ≈ Σ exp(w_s) f(u_s): the Gaussian weight is taken out again."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    log_weights = np.log(weights) + 0.5 * nodes**2
    grid = np.stack(np.meshgrid(*[nodes] * length, indexing="ij"), axis=-1).reshape(-1, length)
    total = sum(np.meshgrid(*[log_weights] * length, indexing="ij")).reshape(-1)  # type: ignore[union-attr]
    return grid, total


def _newton_direction(height: Callable[[Array], Array], z: Float[Array, " L"]) -> Float[Array, " L"]:
    """H⁻¹ ∇ at a mode."""
    inverse = factor(-jax.hessian(height)(z))[1]
    return dot(inverse.T, dot(inverse, jax.grad(height)(z)))


def _curvature(height: Callable[[Array], Array], z: Float[Array, " L"]) -> Float[Array, "L L"]:
    """−∇²height made positive definite: eigenvalues by size, and none too small."""
    hessian = -jax.hessian(height)(z)
    if hessian.shape[0] == 1:
        return jnp.maximum(jnp.abs(hessian), _WIDEST**-2)
    values, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(hessian), hessian, 0))
    return dot(vectors * jnp.maximum(jnp.abs(values), _WIDEST**-2), vectors.T)


def find_mode(
    height: Callable[[Array], Array], start: Float[Array, " L"]
) -> tuple[Float[Array, " L"], Float[Array, "L L"]]:
    """The mode of a density by damped Newton steps from ``start``, and a root of its inverse curvature there."""
    tol = float(jnp.finfo(start.dtype).eps) ** 0.5

    def improve(carry: Any) -> Any:
        z, top, count, _ = carry
        inverse = factor(_curvature(height, z))[1]
        direction = dot(inverse.T, dot(inverse, jax.grad(height)(z)))

        def shorter(trial: Any) -> Any:
            share, _, tries = trial
            return share / 2, height(z + share / 2 * direction), tries + 1

        def low(trial: Any) -> Array:
            _, value, tries = trial
            return ~(value >= top) & (tries < _HALVINGS)

        share, value, _ = jax.lax.while_loop(low, shorter, (jnp.ones((), z.dtype), height(z + direction), 0))
        risen = value >= top
        moved = jnp.max(jnp.abs(share * direction)) > tol * (1 + jnp.max(jnp.abs(z)))
        z = jnp.where(risen, z + share * direction, z)
        return z, jnp.where(risen, value, top), count + 1, risen & moved

    def going(carry: Any) -> Array:
        return carry[3] & (carry[2] < _MODE_STEPS)

    z, *_ = jax.lax.while_loop(going, improve, (start, height(start), 0, jnp.array(True)))
    # R = L⁻ᵀ of H = L Lᵀ is upper triangular, and R Rᵀ = H⁻¹.
    return z, factor(_curvature(height, z))[1].T
