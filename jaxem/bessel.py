"""Ratios of modified Bessel functions and the constant of the von Mises-Fisher law, accurate at any concentration.

log I_ν is a large number where the concentration is, so all is written in what is left: 1 − I_(ν+1)/I_ν, and κ + log C.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.linalg import dot
from jaxem.special import LOG_2PI, beside

if TYPE_CHECKING:
    from jaxtyping import Array, Float


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
    q, exponents = beside(n / w, powers)
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
