"""One damped Newton step a EM step for regressions inside EM, from statistics that are sums over rows.

The M-step of a regression maximizes ``f(β) = Σ_n r_n ℓ_n(u_n · β)``, concave, whose maximum is no function of sums over
rows. Its expansion to second order about the incoming β₀ is: with the derivatives g_n = ℓ_n′ and w_n = −ℓ_n″ ≥ 0 there,

    q(β) = c + b·β − ½ βᵀHβ,    H = Σ r w u uᵀ,   b = Σ r (g + w u·β₀) u,   c = Σ r (ℓ − g u·β₀ − ½ w (u·β₀)²),

so the E-step carries (c, b, H), and chunks, shards and weights work as for any other statistics. q and f have the same
value and gradient at β₀. The M-step moves from β₀ along δ = H⁻¹(b − Hβ₀) by

    t = log(1 + r)/r,    r ≥ max_n |u_n · δ|,

and then f (not only q) does not fall: for a logistic, Poisson or softmax regression φ(t) = −f(β₀ + tδ) is generalized
self-concordant, |φ‴| ≤ r φ″ (σ″ = σ′(1 − 2σ); exp″ = exp; the third central moment is at most the range times the
variance, and there r bounds the range of the u_n · δ_a over the alternatives a). So φ″(t) ≤ φ″(0) e^{rt}, and with
φ′(0) = −λ², φ″(0) = λ² = δᵀHδ

    φ(t) ≤ φ(0) − λ² t + λ² (e^{rt} − 1 − rt)/r²,

whose minimum over t is at e^{rt} = 1 + r and is φ(0) − λ² [(1 + r) log(1 + r) − r]/r² ≤ φ(0). A larger bound r only
makes the step shorter. Near the optimum r → 0, t → 1 − r/2: Newton's step. (Bach 2010, Electron. J. Statist. 4, Lemma 1;
Sun & Tran-Dinh 2019, Math. Program. 178.) EM with such an M-step is a generalized EM: the likelihood never falls, and
its optima are the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.blocks import LONG, LONG_BLOCK, block_size_near, product_over_rows, sum_over_blocks
from jaxem.design import pairs, symmetric
from jaxem.linalg import cholesky, diagonal, dot, factor
from jaxem.model import num_examples, pytree

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Bool, Float

    from jaxem.design import Design


@pytree
class Quadratic:
    """q about the incoming coefficients: the sums c, b and H of several regressions at once.

    count: Σ r. A regression has P coefficients; with A alternatives beside the reference they are A · P.
    """

    count: Float[Array, "*K"]
    constant: Float[Array, "*K"]
    linear: Float[Array, "*K P"]
    gram: Float[Array, "*K P P"]

    def value(self, coefficients: Float[Array, "*K P"]) -> Float[Array, "*K"]:
        slope = self.linear - 0.5 * product(self.gram, coefficients)
        return self.constant + jnp.sum(slope * coefficients, axis=-1)

    def gradient(self, coefficients: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
        return self.linear - product(self.gram, coefficients)


def product(gram: Float[Array, "*K P P"], coefficients: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
    """H β of every regression."""
    return dot(gram, coefficients[..., None])[..., 0]


def solve(gram: Float[Array, "*K P P"], gradient: Float[Array, "*K P"], least: Float[Array, "*K"]) -> Array:
    """H⁻¹ g, with 0 for the columns about which the rows say nothing.

    Those are: a column whose own curvature is at most ``least`` (constant columns, responses fitted to the last digit),
    and one that depends linearly on those before it, up to rounding.
    """
    p = gram.shape[-1]
    eps = jnp.finfo(gram.dtype).eps
    curvature = diagonal(gram)
    lively = curvature > least[..., None]
    unit = jnp.where(lively, 1 / jnp.sqrt(jnp.where(lively, curvature, 1)), 0)
    scaled = gram * unit[..., :, None] * unit[..., None, :]
    # What rounding may have taken from the diagonal is put back, so that the factorization exists.
    ridge = 16 * p * eps
    pivots = diagonal(cholesky(_with_diagonal(scaled, jnp.where(lively, ridge, 1)))) ** 2
    free = lively & (pivots > 16 * ridge)
    scaled = jnp.where(free[..., :, None] & free[..., None, :], scaled, 0)
    root = factor(_with_diagonal(scaled, jnp.where(free, ridge, 1)))[1]
    target = jnp.where(free, gradient * unit, 0)

    def apply(v: Array) -> Array:
        return product(jnp.swapaxes(root, -1, -2), product(root, v))

    first = apply(target)
    # One refinement removes what the ridge has changed.
    return unit * (first + apply(target - product(scaled, first)))


def _with_diagonal(a: Float[Array, "*K P P"], values: Float[Array, "*K P"]) -> Float[Array, "*K P P"]:
    return a + values[..., None] * jnp.eye(a.shape[-1], dtype=a.dtype)


def damping(reach: Float[Array, "*K"]) -> Float[Array, "*K"]:
    """The step length t = log(1 + r)/r."""
    moving = reach > jnp.finfo(reach.dtype).tiny
    safe = jnp.where(moving, reach, 1)
    return jnp.where(moving, jnp.log1p(safe) / safe, 1)


def step(
    stats: Quadratic,
    coefficients: Float[Array, "*K P"] | None,
    typical: Float[Array, "..."] | float,
    reach: Callable[[Array], Array],
) -> Float[Array, "*K P"]:
    """Coefficients after one damped Newton step; at a start (None) the maximum of q itself.

    typical: the curvature of one typical row; columns with less than a rounding of it keep their coefficient.
    reach: a bound r for a direction, as the module says.
    """
    eps = jnp.finfo(stats.linear.dtype).eps
    least = jnp.broadcast_to(eps * stats.count * typical, stats.constant.shape)
    if coefficients is None:
        return solve(stats.gram, stats.linear, least)
    direction = solve(stats.gram, stats.gradient(coefficients), least)
    return coefficients + damping(reach(direction))[..., None] * direction


def summed(term: Callable[[Any, Array], Any], rows: Any, marginals: Float[Array, "N K"]) -> Any:
    """``term(rows, marginals)``, a sum over rows; over many of them block by block, for memory and for float32."""
    n = num_examples(marginals)
    if n <= LONG:
        return term(rows, marginals)
    size = block_size_near(n, LONG_BLOCK)

    def block(part: Any, keep: Any) -> Any:
        return term(part[0], jnp.where(keep[(...,) + (None,) * (marginals.ndim - 1)] > 0, part[1], 0))

    return sum_over_blocks(block, (rows, marginals), jnp.ones(n, marginals.dtype), size, marginals.dtype)


def expansion(
    columns: Float[Array, "N P"],
    predictor: Float[Array, "#K D N"],
    terms: tuple[Array, Array, Array],
    weights: Float[Array, "K #D N"],
) -> Quadratic:
    """The sums of K × D regressions of one coefficient vector each.

    predictor: u·β₀. terms: ℓ, g = ℓ′ and w = −ℓ″ of every row there. weights: r.
    """
    value, slope, curvature = terms
    k, (d, n) = weights.shape[0], predictor.shape[-2:]
    p = columns.shape[-1]

    def table(a: Array) -> Array:
        return jnp.broadcast_to(a, (k, d, n)).reshape(k * d, n)

    linear = product_over_rows(table(weights * (slope + curvature * predictor)).T, columns)
    gram = product_over_rows(table(weights * curvature).T, pairs(columns))
    constant = weights * (value - slope * predictor - 0.5 * curvature * predictor**2)
    return Quadratic(
        jnp.sum(weights, axis=-1),
        jnp.sum(jnp.broadcast_to(constant, (k, d, n)), axis=-1),
        linear.reshape(k, d, p),
        symmetric(gram, p).reshape(k, d, p, p),
    )


# Several alternatives: multinomial regressions, gates, transitions. The last alternative is the reference.


def softmax_expansion(
    columns: Float[Array, "N P"], predictor: Float[Array, "#G A N"], targets: Float[Array, "G A N"]
) -> Quadratic:
    """The sums of G softmax regressions with A alternatives; ``f = Σ_n Σ_a targets_a log p_a``.

    predictor: u·β₀ of every alternative. targets: r times the share of each alternative, so that Σ_a targets = r.
    """
    groups, alternatives, _ = targets.shape
    a, p = alternatives - 1, columns.shape[-1]
    weights = jnp.sum(targets, axis=1, keepdims=True)
    log_p = jax.nn.log_softmax(predictor, axis=1)
    probability = jnp.exp(log_p)[:, :-1]
    relative = predictor[:, :-1] - predictor[:, -1:]
    slope = targets[:, :-1] - weights * probability
    mean = jnp.sum(probability * relative, axis=1, keepdims=True)
    bent = weights * probability * (relative - mean)
    linear = jnp.einsum("gan,np->gap", slope + bent, columns, precision="highest")
    i, j = np.triu_indices(a)
    curvature = weights * (jnp.where((i == j)[:, None], probability[:, i], 0) - probability[:, i] * probability[:, j])
    gram = symmetric(jnp.einsum("gqn,ns->gqs", curvature, pairs(columns), precision="highest"), p)
    gram = symmetric(jnp.moveaxis(gram, 1, -1), a).transpose(0, 3, 1, 4, 2)
    constant = jnp.sum(targets * log_p, axis=(1, 2)) - jnp.sum((slope + 0.5 * bent) * relative, axis=(1, 2))
    return Quadratic(
        jnp.sum(weights[:, 0], axis=-1),
        constant,
        linear.reshape(groups, a * p),
        gram.reshape(groups, a * p, a * p),
    )


def softmax_reach(direction: Float[Array, "G A P"], reach: Callable[[Array], Array]) -> Float[Array, " G"]:
    """A bound on the range over the alternatives of u_n · δ_a, the reference's being 0."""
    every = with_reference(direction)
    apart = every[:, :, None, :] - every[:, None, :, :]
    return jnp.max(reach(apart), axis=(1, 2))


def softmax_step(
    stats: Quadratic, coefficients: Float[Array, "G A P"] | None, num_columns: int, reach: Callable[[Array], Array]
) -> Float[Array, "G A P"]:
    """`step` for G softmax regressions with A alternatives, coefficients of the reference included (and 0)."""
    groups, size = stats.linear.shape
    shape = (groups, size // num_columns, num_columns)
    if not size:
        return jnp.zeros((groups, 1, num_columns), stats.constant.dtype)
    old = None if coefficients is None else coefficients[:, :-1].reshape(groups, size)
    new = step(stats, old, 1.0, lambda direction: softmax_reach(direction.reshape(shape), reach))
    return with_reference(new.reshape(shape))


def softmax_value(stats: Quadratic, coefficients: Float[Array, "G A P"]) -> Float[Array, " G"]:
    """q of every softmax regression."""
    return stats.value(coefficients[:, :-1].reshape(coefficients.shape[0], -1))


def with_reference(coefficients: Float[Array, "*G A P"]) -> Float[Array, "*G B P"]:
    """A further alternative, the last, with coefficients 0."""
    return jnp.concatenate([coefficients, jnp.zeros_like(coefficients[..., :1, :])], axis=-2)


def equal_shares(moment: Float[Array, "P P"], groups: int, alternatives: int) -> Quadratic:
    """The sums of G softmax regressions over A imagined rows, of these second moments, that fall alike everywhere."""
    a, p = alternatives - 1, moment.shape[0]
    apart = jnp.eye(a, dtype=moment.dtype) - 1 / alternatives
    gram = jnp.einsum("ab,ij->aibj", apart, moment).reshape(a * p, a * p)
    count = jnp.full(groups, alternatives, moment.dtype)
    linear = jnp.zeros((groups, a * p), moment.dtype)
    return Quadratic(count, -count * math.log(alternatives), linear, jnp.broadcast_to(gram, (groups, a * p, a * p)))


def least_log_odds(design: Design, coefficients: Float[Array, "*G A P"]) -> Float[Array, "*G A"]:
    """By how much some other alternative outweighs each one at least, in any calibration row: a bound from below."""
    apart = coefficients[..., None, :, :] - coefficients[..., :, None, :]
    if not design.intercept:
        return jnp.max(-design.reach(apart), axis=-1)
    return jnp.max(apart[..., 0] - design.reach(apart.at[..., 0].set(0)), axis=-1)


def far(size: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Linear predictors of this root mean square: coefficients that run to infinity (perfect separation, no counts).

    Odds of e¹² in a typical row are more than data of ordinary size can tell from certainty.
    """
    return ~(size < 12)
