"""Special functions of the families, each accurate where its obvious form cancels; elementwise, any derivative.

Large arguments are where fits end up (a component of small spread has a large shape), and log Γ, ψ and log I_ν are large
numbers there whose difference is what counts: these functions are those differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.linalg import dot

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
    moments = [abs(_bernoulli(2 * j + 2)) / ((2 * j + 1) * (2 * j + 2)) for j in range(2 * terms)]
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


def _bernoulli(n: int) -> Fraction:
    """B_n by the scheme of Akiyama and Tanigawa."""
    row = [Fraction(1, m + 1) for m in range(n + 1)]
    for size in range(n, 0, -1):
        row = [(j + 1) * (row[j] - row[j + 1]) for j in range(size)]
    return row[0]


# With eight terms log Γ and two derivatives are exact to double precision from 5 on; smaller arguments are moved up by
# as much. Sums are taken over tables along a new last axis, not written out: a program of a size that no table changes.
_EXACT_FROM = 5
_NODES, _WEIGHTS = _binet(8)
_STEPS = np.arange(_EXACT_FROM)


def _beside(a: Array, *tables: np.ndarray) -> list[Array]:
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
    square, nodes, weights = _beside(moved * moved, _NODES, _WEIGHTS)
    series = moved * jnp.sum(weights / (square + nodes), axis=-1)
    # log Γ(a) = log Γ(a + 5) − Σ_i log(a + i), with every logarithm taken relative to a + 5.
    each, steps = _beside(small, _STEPS)
    logs = jnp.log(_beside(moved, _STEPS)[0] / (each + steps))
    shift = (small - 0.5) * logs[..., 0] + jnp.sum(logs, axis=-1) - _EXACT_FROM
    return jnp.where(low, series + shift, series)


def log_minus_digamma(a: Array) -> Array:
    """log a − ψ(a), between 1/(2a) and 1/a, for a > 0."""
    low, moved, small = _moved(a)
    square, nodes, weights, bent = _beside(moved * moved, _NODES, _WEIGHTS, 2 * _WEIGHTS * _NODES)
    r = 1 / (square + nodes)
    series = 0.5 / moved + jnp.sum(r * (weights - bent * r), axis=-1)
    each, steps = _beside(small, _STEPS)
    shift = jnp.sum(1 / (each + steps), axis=-1) - jnp.log(moved / small)
    return jnp.where(low, series + shift, series)


def _trigamma_excess(a: Array) -> Array:
    """a ψ'(a) − 1, which is about 1/(2a): the derivative of ψ(a) − log a by log a."""
    low, moved, small = _moved(a)
    square, nodes, weights = _beside(moved * moved, _NODES, 2 * _WEIGHTS)
    r = 1 / (square + nodes)
    lack = nodes * r
    series = 0.5 / moved + jnp.sum(weights * r * (1 - lack) * (1 - 4 * lack), axis=-1)
    each, steps = _beside(small, _STEPS)
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
    return logs - n * jnp.sum(each, axis=-1) + stirling(n) - jnp.sum(stirling(a), axis=-1)


def dirichlet_concentration(
    mean: Float[Array, "*K D"], center: Float[Array, "*K D"], most: Float[Array, "*K"]
) -> Float[Array, "*K D"]:
    """The a with ψ(a_i) − ψ(Σ a) = mean_i + log c_i: a Dirichlet law from E log(x_i/c_i), its Σ a not above ``most``.

    n = Σ a solves Σ_i ψ⁻¹(ψ(n) + mean_i + log c_i) = n (the fixed point of Minka 2000, equation 9), by Newton's method in
    log n, on the logarithm of what the left side lacks at n = ∞, which is nearly linear. Where n is above ``most``, the
    best a of that sum instead.
    """
    # What Σ_i c_i exp(mean_i) lacks to 1, as a logarithm: about (D − 1)/(2n).
    least = 0.25 * (center.shape[-1] - 1) / (2 * most)
    lack = jnp.maximum(-log_weighted_sum(center, mean), least)

    def parts(log_n: Array) -> tuple[Array, Array]:
        """a_i(n), and log a_i(n)/(c_i n)."""
        n = jnp.exp(log_n)[..., None]
        a = inverse_digamma(mean + jnp.log(center) + digamma(n))
        return a, mean + log_minus_digamma(a) - log_minus_digamma(n)

    def step_n(log_n: Array) -> Array:
        a, logs = parts(log_n)
        excess = log_weighted_sum(center, logs)
        h, h_n = _trigamma_excess(a), _trigamma_excess(jnp.exp(log_n))[..., None]
        slope = jnp.sum(a * (h_n - h) / (1 + h), axis=-1) / jnp.sum(a, axis=-1)
        above = excess + lack
        curved = above > 0
        height = jnp.where(curved, above, 1)
        step = jnp.where(curved, height * jnp.log(height / lack), excess) / -slope
        return jnp.minimum(log_n + jnp.clip(step, -3, 3), jnp.log(4 * most))

    start = jnp.log((center.shape[-1] - 1) / (2 * lack))
    a, _ = parts(solve(step_n, jnp.minimum(start, jnp.log(4 * most)), 9))
    n = jnp.sum(a, axis=-1)
    capped = _best_of_sum(mean + jnp.log(center), jax.lax.stop_gradient(jnp.minimum(n, most)))
    return jnp.where((n > most)[..., None], capped, a)


def _best_of_sum(logs: Float[Array, "*K D"], total: Float[Array, "*K"]) -> Float[Array, "*K D"]:
    """The a with Σ a = ``total`` that maximizes Σ_i a_i logs_i − log Γ(a_i): ψ(a_i) = logs_i + y for some y."""

    def step(y: Array) -> Array:
        a = inverse_digamma(logs + y[..., None])
        slope = jnp.sum(a / (1 + _trigamma_excess(a)), axis=-1) / jnp.sum(a, axis=-1)
        return y - jnp.log(jnp.sum(a, axis=-1) / total) / slope

    a = inverse_digamma(logs + solve(step, digamma(total), 6)[..., None])
    return a * (total / jnp.sum(a, axis=-1))[..., None]


def _debye(terms: int) -> list[list[float]]:
    """Coefficients of log Σ_j U_j(p)/n^j = Σ_j w^−j P_j(p²), with w = n/p: those of P_1, P_2, … (DLMF 10.41.9)."""
    series: list[list[Fraction]] = [[Fraction(1)]]  # U_j(p) = p^j × a polynomial in p²
    for j in range(terms):
        new = [Fraction(0)] * (j + 2)
        for m, value in enumerate(series[j]):
            power = j + 2 * m
            new[m] += value * Fraction(power, 2) + value / (8 * (power + 1))
            new[m + 1] -= value * Fraction(power, 2) + 5 * value / (8 * (power + 3))
        series.append(new)
    logs: list[list[Fraction]] = [[]]
    for j in range(1, terms + 1):
        value = [j * a for a in series[j]]
        for i in range(1, j):
            for m, a in enumerate(logs[i]):
                for k, b in enumerate(series[j - i]):
                    value[m + k] -= i * a * b
        logs.append([a / j for a in value])
    return [[float(a) for a in polynomial] for polynomial in logs[1:]]


# log I_n by its uniform expansion in 1/n is exact to double precision from an order of 48 on, to single precision from 12;
# lower orders are reached by the recurrence of ratios.
_DEBYE = _debye(6)


def _bessel_top(kappa: Array, n: float, columns: slice) -> tuple[Array, Array]:
    """w = √(n² + κ²); Σ_j w^−j P_j(p²) and −w times its derivative by w, less ½: those of the two that ``columns`` takes.

    A polynomial in q = n/w whose coefficients are known, since n is: one product with powers of q.
    """
    polynomial = np.zeros(1 + 3 * len(_DEBYE))
    for j, coefficients in enumerate(_DEBYE, 1):
        polynomial[j : 3 * j + 1 : 2] += np.array(coefficients) / n**j
    powers = np.arange(len(polynomial))
    slope = powers * polynomial
    slope[0] = 0.5  # of −log(w)/2, which stands beside the series
    table = np.stack([polynomial, slope], axis=-1)[:, columns]
    w = jnp.sqrt(n**2 + kappa**2)
    q, exponents = _beside(n / w, powers)
    return w, dot(q**exponents, np.asarray(table, kappa.dtype))


def _orders(d: int, dtype) -> tuple[float, int]:
    """The order ν = D/2 − 1 of a von Mises-Fisher law, and how many orders above it the expansion starts."""
    order, exact = 0.5 * d - 1, 12 if jnp.finfo(dtype).bits <= 32 else 48
    return order, max(0, math.ceil(exact - order))


def bessel_gap(kappa: Float[Array, "..."], d: int) -> Float[Array, "..."]:
    """1 − I_(D/2)(κ)/I_(D/2−1)(κ), exact relative to its own size, for κ ≥ 0.

    The recurrence of the ratios r_ν = κ/(2(ν + 1) + κ r_(ν+1)), downwards, in terms of 1 − r (Amos 1974).
    """
    order, above = _orders(d, kappa.dtype)
    n = order + above
    w, slope = _bessel_top(kappa, n, slice(1, 2))
    gap = (n + n**2 / (w + kappa)) / (n + w) + kappa * slope[..., 0] / w**2

    def down(i: Array, gap: Array) -> Array:
        twice = 2 * (n - i)
        left = twice - kappa * gap
        return left / (left + kappa)

    return jax.lax.fori_loop(0, above, down, gap)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def von_mises_fisher_constant(kappa: Float[Array, "..."], d: int) -> Float[Array, "..."]:
    """κ + log C_D(κ), where C_D is the constant of the von Mises-Fisher density C_D(κ) exp(κ μᵀx) on the sphere in D.

    C_D(κ) = κ^ν/((2π)^(D/2) I_ν(κ)), ν = D/2 − 1; finite at κ = 0, where it is one over the sphere's area.
    """
    order, above = _orders(d, kappa.dtype)
    n = order + above
    w, sums = _bessel_top(kappa, n, slice(0, 2))
    series, slope = sums[..., 0], sums[..., 1]
    top = -(n**2) / (kappa + w) + 0.5 * jnp.log(w) - series + order * jnp.log(n + w) - 0.5 * (d - 1) * LOG_2PI

    def down(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ratio, product = carry  # I_(ν+1)/(κ I_ν), and all of them, times n + w
        ratio = 1 / (2 * (n - i) + kappa**2 * ratio)
        return ratio, product * (ratio * (n + w))

    ratio = 1 / (n + w) - slope / w**2
    return top + jnp.log(jax.lax.fori_loop(0, above, down, (ratio, jnp.ones_like(w)))[1])


@von_mises_fisher_constant.defjvp
def _(d, primals, tangents):
    return von_mises_fisher_constant(primals[0], d), bessel_gap(primals[0], d) * tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def von_mises_fisher_concentration(gap: Float[Array, "..."], d: int) -> Float[Array, "..."]:
    """The κ with 1 − I_(D/2)(κ)/I_(D/2−1)(κ) = gap, for 0 < gap ≤ 1: that of rows whose mean has length 1 − gap.

    Newton's method on the log-odds of the gap, which are nearly linear in log κ at both ends, from the start of Banerjee
    et al. (2005, equation 4.4).
    """
    gap = _inside(gap)
    length = 1 - gap
    odds = length / gap

    def step(_: Any, kappa: Array) -> Array:
        value = bessel_gap(kappa, d)
        rest = 1 - value
        # The derivative of the log-odds by log κ, from A' = 1 − A² − (D − 1) A/κ; far out it is 1, and this all rounding.
        slope = jnp.where(kappa < 1e3 * d, kappa * (2 - value) / rest - (d - 1) / value, 1)
        return kappa * (odds * value / rest) ** (1 / jnp.clip(slope, 1, 2))

    return jax.lax.fori_loop(0, 9, step, length * (d - length**2) / (gap * (1 + length)))


def _inside(gap: Array) -> Array:
    """Of no gap, 1, the concentration would be 0, which no step leaves."""
    return jnp.minimum(gap, 1 - jnp.finfo(gap.dtype).eps)


@von_mises_fisher_concentration.defjvp
def _(d, primals, tangents):
    kappa = von_mises_fisher_concentration(primals[0], d)
    _, slope = jax.jvp(lambda k: bessel_gap(k, d), (kappa,), (jnp.ones_like(kappa),))
    _, moved = jax.jvp(_inside, primals, tangents)
    return kappa, moved / slope
