"""Special functions of the families, each accurate where its obvious form cancels; elementwise, any derivative.

Large arguments are where fits end up (a component of small spread has a large shape), and log Γ, ψ and log I_ν are large
numbers there whose difference is what counts: these functions are those differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LOG_2PI = math.log(2 * math.pi)


def excess_over_log(u: Array, log: Array | None = None) -> Array:
    """u − log(1 + u), by its series in t = u/(2 + u), where log(1 + u) = 2 artanh t, where the difference cancels.

    log: log(1 + u), where it is known to more digits than u has near −1.
    """
    t = u / (2 + u)
    square = t * t
    series = u * t - t * square * (2 / 3 + 2 / 5 * square)
    near = jnp.abs(u) < jnp.finfo(u.dtype).eps ** (1 / 6)
    return jnp.where(near, series, u - (jnp.log1p(u) if log is None else log))


def _binet(terms: int) -> tuple[np.ndarray, np.ndarray]:
    """τ and ω of Σ_i ω_i a/(a² + τ_i), which is what Stirling's formula leaves up to 1/a to the power of 4 · terms + 1.

    Binet's integral (a/π) ∫ −log(1 − exp(−2πt))/(a² + t²) dt, t from 0 to ∞, by Gauss's rule for its weight: unlike the
    asymptotic series, whose coefficients are the moments μ_j = |B_(2j+2)|/((2j + 1)(2j + 2)), it converges. The recurrence
    of the orthogonal polynomials is that of Chebyshev's algorithm, in fractions (Gautschi 2004, section 2.1.7).
    """
    moments = [abs(b) / ((2 * j + 1) * (2 * j + 2)) for j, b in enumerate(_bernoulli(2 * terms))]
    before, row = [Fraction(0)] * (2 * terms), moments
    centers, squares = [row[1] / row[0]], [row[0]]
    for k in range(1, terms):
        new = [Fraction(0)] * (2 * terms)
        for j in range(k, 2 * terms - k):
            new[j] = row[j + 1] - centers[-1] * row[j] - squares[-1] * before[j]
        centers.append(new[k + 1] / new[k] - row[k] / row[k - 1])
        squares.append(new[k] / row[k - 1])
        before, row = row, new
    beside = np.sqrt(np.array(squares[1:], float))
    jacobi = np.diag(np.array(centers, float)) + np.diag(beside, 1) + np.diag(beside, -1)
    nodes, vectors = np.linalg.eigh(jacobi)
    return nodes, float(squares[0]) * vectors[0] ** 2


def _bernoulli(count: int) -> list[Fraction]:
    """B_2, B_4, …, by Σ_j C(m + 1, j) B_j = 0, j from 0 to m, of which those of odd j > 1 are 0."""
    numbers: list[Fraction] = []
    for m in range(2, 2 * count + 1, 2):
        known = 1 - Fraction(m + 1, 2) + sum(math.comb(m + 1, 2 * i + 2) * b for i, b in enumerate(numbers))
        numbers.append(-known / (m + 1))
    return numbers


# With eight terms log Γ and two derivatives are exact to double precision from 5 on; smaller arguments are moved up by
# as much. Sums are taken over tables along a new last axis, not written out: a program of a size that no table changes.
_EXACT_FROM = 5
_NODES, _WEIGHTS = _binet(8)
_STEPS = np.arange(_EXACT_FROM)


def beside(a: Array, *tables: np.ndarray) -> list[Array]:
    """``a`` and tables, all of the shape that ``a`` has with their axis as a new last one."""
    shape = (*a.shape, len(tables[0]))
    rows = [jax.lax.broadcast_in_dim(np.asarray(table, a.dtype), shape, (a.ndim,)) for table in tables]
    return [jax.lax.broadcast_in_dim(a, shape, tuple(range(a.ndim))), *rows]


def _moved(a: Array) -> tuple[Array, Array, Array]:
    """Which arguments are small; the others, and the small ones moved up; the small ones, cut off at the bound."""
    bound = jnp.full_like(a, _EXACT_FROM)
    low = a < bound
    return low, jnp.where(low, a + bound, a), jnp.minimum(a, bound)


def stirling(a: Array) -> Array:
    """log Γ(a) − (a − ½) log a + a − ½ log 2π: what Stirling's formula leaves, 1/(12a) − …, for a > 0."""
    low, moved, small = _moved(a)
    square, nodes, weights = beside(moved * moved, _NODES, _WEIGHTS)
    series = moved * jnp.sum(weights / (square + nodes), axis=-1)
    # log Γ(a) = log Γ(a + 5) − Σ_i log(a + i), with every logarithm taken relative to a + 5.
    each, steps = beside(small, _STEPS)
    logs = jnp.log(beside(moved, _STEPS)[0] / (each + steps))
    shift = (small - 0.5) * logs[..., 0] + jnp.sum(logs, axis=-1) - _EXACT_FROM
    return jnp.where(low, series + shift, series)


def log_minus_digamma(a: Array) -> Array:
    """log a − ψ(a), between 1/(2a) and 1/a, for a > 0."""
    low, moved, small = _moved(a)
    square, nodes, weights, bent = beside(moved * moved, _NODES, _WEIGHTS, 2 * _WEIGHTS * _NODES)
    r = 1 / (square + nodes)
    series = 0.5 / moved + jnp.sum(r * (weights - bent * r), axis=-1)
    each, steps = beside(small, _STEPS)
    shift = jnp.sum(1 / (each + steps), axis=-1) - jnp.log(moved / small)
    return jnp.where(low, series + shift, series)


def _trigamma_excess(a: Array) -> Array:
    """a ψ'(a) − 1, which is about 1/(2a): the derivative of ψ(a) − log a by log a."""
    low, moved, small = _moved(a)
    square, nodes, weights = beside(moved * moved, _NODES, 2 * _WEIGHTS)
    r = 1 / (square + nodes)
    lack = nodes * r
    series = 0.5 / moved + jnp.sum(weights * r * (1 - lack) * (1 - 4 * lack), axis=-1)
    each, steps = beside(small, _STEPS)
    shift = small * jnp.sum(1 / (each + steps) ** 2, axis=-1) - _EXACT_FROM / moved
    return jnp.where(low, small / moved * series + shift, series)


def digamma(a: Array) -> Array:
    """ψ(a) for a > 0."""
    return jnp.log(a) - log_minus_digamma(a)


def solve(step: Callable[[Array], Array], start: Array, iterations: int) -> Array:
    """A fixed point of ``step``, an iteration that converges faster than linearly (Newton's), after so many of them.

    Its derivative is that of the last iteration, taken at the fixed point: the implicit function theorem.
    """
    frozen = jax.lax.stop_gradient
    return jax.lax.fori_loop(0, iterations, lambda _, a: step(frozen(a)), frozen(start))


def _relative_slope(a: Array) -> Array:
    """−d log f/d log a of f(a) = (1 + 3a)/(a (1 + 6a)), which is log a − ψ(a) to 2 % (Minka 2002).

    By it, instead of the derivative itself, an iteration gains two digits a step and needs one function.
    """
    return 1 + 3 * a / ((1 + 6 * a) * (1 + 3 * a))


@jax.custom_jvp
def gamma_shape(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """The a with log a − ψ(a) = s > 0: the shape of a Gamma law with s = log E x − E log x.

    Newton's method in logarithms, in which the equation is almost linear, from the start of Minka (2002), which is off
    by less than 2 %; kept between the bounds 1/(2s) < a < 1/s.
    """

    def step(_: Any, a: Array) -> Array:
        newton = a * (log_minus_digamma(a) / s) ** (1 / _relative_slope(a))
        return jnp.clip(newton, 0.5 / s, 1 / s)

    start = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    return jax.lax.fori_loop(0, 9, step, start)


@gamma_shape.defjvp
def _(primals, tangents):
    a = gamma_shape(*primals)
    return a, -a / _trigamma_excess(a) * tangents[0]


@jax.custom_jvp
def inverse_digamma(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The a > 0 with ψ(a) = y: Newton's method in log a, from the start of Minka (2002)."""

    def step(_: Any, a: Array) -> Array:
        value = log_minus_digamma(a)
        return a * jnp.exp((y - jnp.log(a) + value) / (1 + value * _relative_slope(a)))

    low = y < -2.22
    start = jnp.where(low, 1 / (jnp.euler_gamma - jnp.where(low, y, -3.0)), jnp.exp(y) + 0.5)
    return jax.lax.fori_loop(0, 9, step, start)


@inverse_digamma.defjvp
def _(primals, tangents):
    a = inverse_digamma(*primals)
    return a, a / (1 + _trigamma_excess(a)) * tangents[0]


def log_ratio(x: Array, center: Array) -> Array:
    """log(x/center) for positive numbers, exact relative to its own size where they are near each other."""
    u = (x - center) / center
    near = jnp.abs(u) < 0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, u, 0)), jnp.log(x) - jnp.log(center))


def log_weighted_sum(center: Float[Array, "*K D"], logs: Float[Array, "*K D"]) -> Float[Array, "*K"]:
    """log Σ_i c_i exp(logs_i) for Σ c = 1, exact relative to its own size where it is near 0."""
    above = jnp.sum(center * jnp.expm1(logs), axis=-1)
    near = above > -0.5
    far = jax.nn.logsumexp(logs + jnp.log(center), axis=-1)
    return jnp.where(near, jnp.log1p(jnp.where(near, above, 0)), far)


def dirichlet_constant(a: Float[Array, "*K D"], center: Float[Array, "*K D"]) -> Float[Array, "*K"]:
    """Σ_i a_i log c_i − log B(a): the constant of a Dirichlet density whose statistics are log(x_i/c_i); Σ c is 1."""
    n = jnp.sum(a, axis=-1)
    share = a / n[..., None]
    # Σ_i a_i log(a_i/(n c_i)), its first-order term left out: it is 0, and its rounding is not.
    away = share - center
    near = jnp.abs(away) < 0.5 * center
    u = jnp.where(near, away / center, 0)
    each = jnp.where(near, center * (u * jnp.log1p(u) - excess_over_log(u)), share * log_ratio(share, center) - away)
    logs = 0.5 * (jnp.sum(jnp.log(a), axis=-1) - jnp.log(n) - (a.shape[-1] - 1) * LOG_2PI)
    rest = stirling(jnp.concatenate([n[..., None], a], axis=-1))
    return logs - n * jnp.sum(each, axis=-1) + rest[..., 0] - jnp.sum(rest[..., 1:], axis=-1)


@jax.custom_jvp
def dirichlet_concentration(
    mean: Float[Array, "*K D"], center: Float[Array, "*K D"], most: Float[Array, "*K"]
) -> Float[Array, "*K D"]:
    """The a with ψ(a_i) − ψ(Σ a) = mean_i + log c_i: a Dirichlet law from E log(x_i/c_i), its Σ a not above ``most``.

    n = Σ a solves Σ_i ψ⁻¹(ψ(n) + mean_i + log c_i) = n (the fixed point of Minka 2000, equation 9), by Newton's method in
    log n, on the logarithm of what the left side lacks at n = ∞, which is nearly linear. Where n is above ``most``, the
    best a of that sum instead: ψ(a_i) = mean_i + log c_i + y for some y. Both are looked for at once.
    """
    logs = mean + jnp.log(center)
    # What Σ_i c_i exp(mean_i) lacks to 1, as a logarithm: about (D − 1)/(2n).
    least = 0.25 * (center.shape[-1] - 1) / (2 * most)
    lack = jnp.maximum(-log_weighted_sum(center, mean), least)
    log_bound = jnp.log(4 * most)

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        log_n, y, _ = carry
        n = jnp.exp(log_n)
        rest = log_minus_digamma(n)
        a = inverse_digamma(logs + jnp.stack([log_n - rest, y])[..., None])
        h = _trigamma_excess(jnp.concatenate([a, jnp.stack([n, n])[..., None]], axis=-1))
        (h, capped_h), h_n = h[..., :-1], h[0, ..., -1:]
        free, capped = a
        excess = log_weighted_sum(center, mean + log_minus_digamma(free) - rest[..., None])
        slope = jnp.sum(free * (h_n - h) / (1 + h), axis=-1) / jnp.sum(free, axis=-1)
        above = excess + lack
        curved = above > 0
        height = jnp.where(curved, above, 1)
        newton = jnp.where(curved, height * jnp.log(height / lack), excess) / -slope
        total = jnp.sum(capped, axis=-1)
        y = y - jnp.log(total / most) * total / jnp.sum(capped / (1 + capped_h), axis=-1)
        return jnp.minimum(log_n + jnp.clip(newton, -3, 3), log_bound), y, a

    start = jnp.minimum(jnp.log((center.shape[-1] - 1) / (2 * lack)), log_bound)
    nothing = jnp.zeros((2, *logs.shape), logs.dtype)
    _, _, (free, capped) = jax.lax.fori_loop(0, 10, step, (start, digamma(most), nothing))
    n, total = jnp.sum(free, axis=-1), jnp.sum(capped, axis=-1)
    return jnp.where((n > most)[..., None], capped * (most / total)[..., None], free)


@dirichlet_concentration.defjvp
def _(primals, tangents):
    """By the implicit function theorem; the largest sum is taken as given."""
    (_, center, most), (mean_dot, center_dot, _) = primals, tangents
    a = dirichlet_concentration(*primals)
    n = jnp.sum(a, axis=-1, keepdims=True)
    h, h_n = _trigamma_excess(a), _trigamma_excess(n)
    weight = a / (1 + h)  # 1/ψ'(a)
    logs_dot = mean_dot + center_dot / center
    moved = jnp.sum(weight * logs_dot, axis=-1, keepdims=True)
    # ψ'(n) dn, with 1 − ψ'(n) Σ 1/ψ'(a_i) in terms that do not cancel.
    free = (1 + h_n) * moved / jnp.sum(weight * (h - h_n), axis=-1, keepdims=True)
    capped = n >= most[..., None] * (1 - 8 * jnp.finfo(n.dtype).eps)
    return a, weight * (logs_dot + jnp.where(capped, -moved / jnp.sum(weight, axis=-1, keepdims=True), free))
