"""Special functions of the families, each accurate where its obvious form cancels; elementwise, any derivative.

Large arguments are where fits end up (a component of small spread has a large shape), and log Γ, ψ and log I_ν are large
numbers there whose difference is what counts: these functions are those differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LOG_2PI = math.log(2 * math.pi)

# Below this the asymptotic series in 1/a are not exact yet: the argument is moved up by as much.
_SERIES_FROM = 10


def excess_over_log(u: Array) -> Array:
    """u − log(1 + u), by its series where the difference cancels."""
    near = jnp.abs(u) < jnp.finfo(u.dtype).eps ** (1 / 6)
    small = jnp.where(near, u, 0)
    series = small**2 * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small * (1 / 5 - small * (1 / 6 - small / 7)))))
    return jnp.where(near, series, u - jnp.log1p(jnp.where(near, 0, u)))


def stirling(a: Array) -> Array:
    """log Γ(a) − (a − ½) log a + a − ½ log 2π: what Stirling's formula leaves, 1/(12a) − …, for a > 0."""
    low = a < _SERIES_FROM
    moved = jnp.where(low, a + _SERIES_FROM, a)
    w = 1 / moved**2
    tail = w * (1 / 1188 - w * (691 / 360360 - w / 156))
    series = (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - tail)))) / moved
    small = jnp.where(low, a, 1)
    # log Γ(a) = log Γ(a + 10) − Σ_i log(a + i), with every logarithm taken relative to a + 10.
    steps = jnp.log((small + _SERIES_FROM)[..., None] / _climb(small)[..., 1:])
    shift = (small + 0.5) * jnp.log1p(_SERIES_FROM / small) + jnp.sum(steps, axis=-1) - _SERIES_FROM
    return series + jnp.where(low, shift, 0)


def _climb(a: Array) -> Array:
    """a, a + 1, …, a + 9 along a new last axis."""
    return a[..., None] + jnp.arange(_SERIES_FROM, dtype=a.dtype)


def log_minus_digamma(a: Array) -> Array:
    """log a − ψ(a), between 1/(2a) and 1/a, for a > 0."""
    low = a < _SERIES_FROM
    moved = jnp.where(low, a + _SERIES_FROM, a)
    w = 1 / moved**2
    tail = w * (1 / 240 - w * (1 / 132 - w * (691 / 32760 - w / 12)))
    series = 1 / (2 * moved) + w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - tail)))
    small = jnp.where(low, a, 1)
    shift = jnp.sum(1 / _climb(small), axis=-1) - jnp.log1p(_SERIES_FROM / small)
    return series + jnp.where(low, shift, 0)


def digamma(a: Array) -> Array:
    """ψ(a) for a > 0."""
    return jnp.log(a) - log_minus_digamma(a)


def solve(step: Callable[[Array], Array], start: Array, iterations: int) -> Array:
    """A fixed point of ``step``, an iteration that converges faster than linearly (Newton's), after so many of them.

    Its derivative is that of the last iteration, taken at the fixed point: the implicit function theorem.
    """
    frozen = jax.lax.stop_gradient
    found = jax.lax.fori_loop(0, iterations - 1, lambda _, a: frozen(step(a)), frozen(start))
    return step(frozen(found))


def gamma_shape(s: Float[Array, "..."]) -> Float[Array, "..."]:
    """The a with log a − ψ(a) = s > 0: the shape of a Gamma law with s = log E x − E log x.

    Newton's method in logarithms, in which the equation is almost linear, from the start of Minka (2002), which is off
    by less than 2 %; kept between the bounds 1/(2s) < a < 1/s.
    """

    def step(a: Array) -> Array:
        value, slope = jax.jvp(log_minus_digamma, (a,), (a,))
        newton = a * jnp.exp(value * jnp.log(value / s) / -slope)
        return jnp.clip(newton, 0.5 / s, 1 / s)

    start = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    return solve(step, start, 5)


def inverse_digamma(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The a > 0 with ψ(a) = y: Newton's method in log a, from the start of Minka (2002)."""

    def step(a: Array) -> Array:
        value, slope = jax.jvp(log_minus_digamma, (a,), (a,))
        return a * jnp.exp((y - jnp.log(a) + value) / (1 - slope))

    low = y < -2.22
    start = jnp.where(low, 1 / (jnp.euler_gamma - jnp.where(low, y, -3.0)), jnp.exp(y) + 0.5)
    return solve(step, start, 6)


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


def _trigamma_excess(a: Array) -> Array:
    """a ψ'(a) − 1, which is about 1/(2a)."""
    _, slope = jax.jvp(log_minus_digamma, (a,), (a,))
    return -slope


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


def _bessel_top(kappa: Array, n: float) -> tuple[Array, Array, Array]:
    """w = √(n² + κ²), the logarithm of the series in 1/n, and its derivative by w."""
    w = jnp.sqrt(n**2 + kappa**2)

    def series(w: Array) -> Array:
        total, p2 = jnp.zeros_like(w), (n / w) ** 2
        for polynomial in reversed(_DEBYE):
            value = jnp.zeros_like(w)
            for a in reversed(polynomial):
                value = value * p2 + a
            total = (total + value) / w
        return total

    value, slope = jax.jvp(series, (w,), (jnp.ones_like(w),))
    return w, value, slope


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
    w, _, slope = _bessel_top(kappa, n)
    gap = (n + n**2 / (w + kappa)) / (n + w) + kappa * (0.5 / w - slope) / w

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
    w, series, slope = _bessel_top(kappa, n)
    top = -(n**2) / (kappa + w) + 0.5 * jnp.log(w) - series + order * jnp.log(n + w) - 0.5 * (d - 1) * LOG_2PI

    def down(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        ratio, product = carry  # I_(ν+1)/(κ I_ν), and all of them, times n + w
        ratio = 1 / (2 * (n - i) + kappa**2 * ratio)
        return ratio, product * (ratio * (n + w))

    ratio = 1 / (n + w) + (slope - 0.5 / w) / w
    return top + jnp.log(jax.lax.fori_loop(0, above, down, (ratio, jnp.ones_like(w)))[1])


@von_mises_fisher_constant.defjvp
def _(d, primals, tangents):
    return von_mises_fisher_constant(primals[0], d), bessel_gap(primals[0], d) * tangents[0]


def von_mises_fisher_concentration(gap: Float[Array, "..."], d: int) -> Float[Array, "..."]:
    """The κ with 1 − I_(D/2)(κ)/I_(D/2−1)(κ) = gap, for 0 < gap ≤ 1: that of rows whose mean has length 1 − gap.

    Newton's method on the log-odds of the gap, which are nearly linear in log κ at both ends, from the start of Banerjee
    et al. (2005, equation 4.4).
    """
    gap = jnp.minimum(gap, 1 - jnp.finfo(gap.dtype).eps)
    length = 1 - gap

    def step(kappa: Array) -> Array:
        value, slope = jax.jvp(lambda k: bessel_gap(k, d), (kappa,), (kappa,))
        distance = jnp.log(length / gap) - jnp.log((1 - value) / value)
        return kappa * jnp.exp(distance / jnp.clip(-slope / (value * (1 - value)), 1, 2))

    start = length * (d - length**2) / (gap * (1 + length))
    return solve(step, start, 8)
