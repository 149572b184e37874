"""Covariances by volume, shape and orientation: Σ_k = λ_k D_k A_k D_kᵀ (Banfield & Raftery 1993; Celeux & Govaert 1995).

Three letters say what of it is equal for all components (E), what varies (V) and what is the identity (I): the volume
λ_k = |Σ_k|^(1/D), the shape A_k (diagonal, of determinant 1), the orientation D_k (orthogonal). `Spherical` is VII,
`Diagonal` VVI, `Tied` EEE and `Full` VVV; the other ten are here, and `EigenDecomposed` makes any of the fourteen.

Each M-step minimizes Σ_k n_k (log |Σ_k| + tr Σ_k⁻¹ S_k), for the scatter S_k and the count n_k. With D_k given, that is a
matter of the variances b_k = diag(D_kᵀ S_k D_k) along the axes, and ``_proportional_variances`` (VE·) and
``_equal_volume_variances`` (EV·) solve it for every orientation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.families.base import occupied
from jaxem.families.covariance import (
    Covariance,
    Diagonal,
    Full,
    Matrices,
    Spheres,
    Spherical,
    Tied,
    Variances,
    _floored,
    _free,
    _from_free,
    _pack,
    _unpack,
)
from jaxem.linalg import diagonal, dot, factor, gram
from jaxem.model import pytree

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    # (variances along the axes [K, D], count [K], floor) -> variances of the structure [K, D]
    _Rule: TypeAlias = Callable[[Array, Array, Array], Array]

# Coordinate descent between volumes and one shape or matrix: as many turns in every M-step, from where the last one ended.
_TURNS = 20
# The same between variances and a common orientation, every pair of axes once a sweep; more of them at a start.
_SWEEPS = 12
_START_SWEEPS = 60
# A common orientation is read off its covariances by their eigenvectors; this often every pair of axes is turned after it.
_POLISH = 3
_NEWTON = 12


def _in_use(scatter: Float[Array, "K Q"], count: Float[Array, " K"], old: Array | None) -> tuple[Array, Array]:
    """Scatter and count with components without weight at their old covariance, which then counts for nothing.

    The M-step so gives them what is nearest to it with what the others share. At a start they are like all together.
    """
    used = occupied(count)
    share = jnp.where(used, count, 0)
    share = jnp.where(jnp.any(used), share / jnp.maximum(jnp.sum(share), jnp.finfo(count.dtype).tiny), 1 / count.size)
    if old is None:
        old = jnp.sum(share[:, None] * scatter, axis=0)
    return jnp.where(used[:, None], scatter, old), share


# Variances along given axes, [K, D]. ``share`` are the counts divided by their sum.


def _pooled_variances(b: Float[Array, "K D"], share: Float[Array, " K"], floor: Array) -> Float[Array, " D"]:
    """EE·: the same variances for all components."""
    return jnp.maximum(jnp.sum(share[:, None] * b, axis=0), floor)


def _proportional_variances(
    b: Float[Array, "K D"], share: Float[Array, " K"], floor: Array, shape: Float[Array, " D"] | None
) -> Float[Array, "K D"]:
    """VE·: λ_k a_j. The objective is convex in the logarithms of both; the one is solved for given the other, in turn.

    shape: where to start. The floor bounds λ_k from below given a, and a given λ: each turn is the best one above it.
    """

    def sizes(shape: Array) -> Array:
        return jnp.maximum(jnp.mean(b / shape, axis=-1), floor / jnp.min(shape))

    def turn(_: Array, shape: Array) -> Array:
        size = sizes(shape)
        lowest = floor / jnp.min(jnp.where(share > 0, size, jnp.inf))
        return jnp.maximum(jnp.sum((share / size)[:, None] * b, axis=0), lowest)

    start = _pooled_variances(b, share, floor) if shape is None else shape
    best = jax.lax.fori_loop(0, _TURNS, turn, start)
    return sizes(best)[:, None] * best


def _equal_volume_variances(b: Float[Array, "K D"], share: Float[Array, " K"], floor: Array) -> Float[Array, "K D"]:
    """EV·: variances whose product is the same for all components.

    With v the logarithm of the product, σ_kj = max(b_kj / μ_k, floor), where μ_k makes the product right, and v is best
    where Σ_k share_k μ_k = 1. Without the floor μ_k is the geometric mean of b_k over exp(v / D): that is the start, and
    nothing is left to be done. At the floor, log μ_k is the largest of D lines in v, so that log Σ_k share_k μ_k falls
    and is convex, and Newton's method goes to its zero from the left.
    """
    d = b.shape[-1]
    # A variance of 0 goes as far below the floor as the arithmetic goes.
    logs, lowest = jnp.log(jnp.maximum(b, jnp.finfo(b.dtype).eps * floor)), jnp.log(floor)
    below = np.arange(d)  # so many variances lie at the floor; the others share what is left of the product
    rest = jnp.cumsum(jnp.sort(logs, axis=-1)[:, ::-1], axis=-1)[:, ::-1] + below * lowest

    def multipliers(v: Array) -> tuple[Array, Array]:
        lines = (rest - v) / (d - below)
        at = jnp.argmax(lines, axis=-1)
        return jnp.max(lines, axis=-1), 1.0 / (d - at)

    def newton(_: Array, v: Array) -> Array:
        log_multiplier, slope = multipliers(v)
        terms = share * jnp.exp(log_multiplier)
        total = jnp.sum(terms)
        return v + jnp.log(total) * total / jnp.sum(terms * slope)

    start = d * jnp.log(jnp.sum(share * jnp.exp(jnp.mean(logs, axis=-1))))
    v = jnp.maximum(jax.lax.fori_loop(0, _NEWTON, newton, start), d * lowest)
    return jnp.exp(jnp.maximum(logs - multipliers(v)[0][:, None], lowest))


def _free_variances(b: Float[Array, "K D"], share: Float[Array, " K"], floor: Array) -> Float[Array, "K D"]:
    """VV·: each as it is, and none so small beside the largest of its component that a matrix would lose it."""
    resolved = jnp.max(b, axis=-1, keepdims=True) * _resolution(b.dtype)
    return jnp.maximum(b, jnp.maximum(floor, resolved))


def _resolution(dtype) -> float:
    """The smallest ratio of two eigenvalues of a matrix that is factorized safely."""
    return 64 * float(jnp.finfo(dtype).eps)


# Coordinates of logarithms of variances, [K, D]: their mean is the volume's, deviations from it are the shape's.


def _contrasts(logs: Array) -> tuple[Array, Array]:
    volume = jnp.mean(logs, axis=-1)
    return volume, (logs - volume[..., None])[..., :-1]


def _with_contrasts(volume: Array, contrasts: Array) -> Array:
    shape = jnp.concatenate([contrasts, -jnp.sum(contrasts, axis=-1, keepdims=True)], axis=-1)
    return volume[..., None] + shape


def _proportional_coordinates(logs: Float[Array, "K D"]) -> Float[Array, " P"]:
    """K volumes and one shape."""
    volume, contrasts = _contrasts(logs)
    return jnp.concatenate([volume, jnp.mean(contrasts, axis=0)])


def _from_proportional_coordinates(free: Float[Array, " P"], k: int) -> Float[Array, "K D"]:
    return _with_contrasts(free[:k], free[k:])


def _equal_volume_coordinates(logs: Float[Array, "K D"]) -> Float[Array, " P"]:
    """One volume and K shapes."""
    volume, contrasts = _contrasts(logs)
    return jnp.concatenate([jnp.mean(volume, keepdims=True), contrasts.ravel()])


def _from_equal_volume_coordinates(free: Float[Array, " P"], k: int, d: int) -> Float[Array, "K D"]:
    return _with_contrasts(free[:1], free[1:].reshape(k, d - 1))


# Orientations.


def _axis_signs(axes: Float[Array, "*K D D"]) -> Float[Array, "*K D"]:
    """Signs of the axes for which I + axes is far from singular: every pivot of its elimination is at least 1.

    An axis and its opposite are the same, and some choice of them is always good (Ballard et al. 2014, on recovering
    Householder vectors).
    """
    d = axes.shape[-1]

    def eliminate(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, signs = carry
        sign = jnp.where(left[..., i, i] < 0, -1.0, 1.0).astype(axes.dtype)
        pivot = left[..., i, i] + sign
        left = left - left[..., :, i, None] * left[..., None, i, :] / pivot[..., None, None]
        return left, signs.at[..., i].set(sign)

    return jax.lax.fori_loop(0, d, eliminate, (axes, jnp.ones_like(axes[..., 0])))[1]


def _orientation_coordinates(axes: Float[Array, "*K D D"]) -> Float[Array, "*K R"]:
    """D (D − 1) / 2 coordinates of an orientation: the skew-symmetric matrix of Cayley's transform."""
    d = axes.shape[-1]
    eye = jnp.eye(d, dtype=axes.dtype)
    axes = axes * _axis_signs(axes)[..., None, :]
    below = np.tril_indices(d, -1)
    return jnp.linalg.solve(eye + axes, eye - axes)[..., below[0], below[1]]


def _from_orientation_coordinates(free: Float[Array, "*K R"], d: int) -> Float[Array, "*K D D"]:
    below = np.tril_indices(d, -1)
    lower = jnp.zeros((*free.shape[:-1], d, d), free.dtype).at[..., below[0], below[1]].set(free)
    skew = lower - jnp.swapaxes(lower, -1, -2)
    eye = jnp.eye(d, dtype=free.dtype)
    return jnp.linalg.solve(eye + skew, eye - skew)


def _compose(axes: Float[Array, "*K D D"], variances: Float[Array, "*K D"]) -> Float[Array, "*K D D"]:
    root = axes * jnp.sqrt(variances)[..., None, :]
    return dot(root, jnp.swapaxes(root, -1, -2))


def _rounder(variances: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """The same volumes, with shapes pulled toward the sphere where a matrix could not hold them."""
    volume, _ = _contrasts(jnp.log(variances))
    logs = jnp.log(variances) - volume[:, None]
    most = -np.log(_resolution(variances.dtype))
    spread = jnp.max(logs, axis=-1, keepdims=True) - jnp.min(logs, axis=-1, keepdims=True)
    pulled = jnp.exp(volume[:, None] + logs * most / jnp.maximum(spread, most))
    return jnp.where(spread > most, pulled, variances)


def _along(axes: Float[Array, "D D"], matrices: Float[Array, "K D D"]) -> Float[Array, "K D D"]:
    return dot(axes.T, dot(matrices, axes))


def _rounds(d: int) -> np.ndarray:
    """Every pair of D axes once, in rounds of disjoint pairs, [R, 2, D // 2]: a round-robin tournament."""
    players = list(range(d + d % 2))
    half, rounds = len(players) // 2, []
    for _ in players[1:]:
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        rounds.append([pair for pair in pairs if max(pair) < d])
        players = [players[0], players[-1], *players[1:-1]]
    return np.array(rounds, np.int32).reshape(len(rounds), d // 2, 2).transpose(0, 2, 1)


def _turn(axes: Float[Array, "D D"], b: Float[Array, "K D D"], precision: Float[Array, "K D"], pairs: Array) -> Array:
    """The axes after the best rotation in the plane of each pair, with ``precision`` given: share over variance.

    The objective is Σ_k precision_ki b_ii + precision_kj b_jj, a cosine of twice the angle; rotations of disjoint pairs do
    not touch each other's.
    """
    i, j = pairs
    contrast = precision[:, i] - precision[:, j]
    cosine = jnp.sum(contrast * (b[:, i, i] - b[:, j, j]), axis=0) / 2
    sine = jnp.sum(contrast * b[:, i, j], axis=0)
    flat = (cosine == 0) & (sine == 0)
    angle = jnp.arctan2(jnp.where(flat, 0, -sine), jnp.where(flat, 1, -cosine)) / 2
    c, s = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.eye(axes.shape[0], dtype=axes.dtype)
    return rotation.at[i, i].set(c).at[j, j].set(c).at[j, i].set(s).at[i, j].set(-s)


def _fit_axes(
    scatter: Float[Array, "K D D"],
    share: Float[Array, " K"],
    floor: Array,
    axes: Float[Array, "D D"],
    rule: _Rule,
    n: int,
) -> tuple[Array, Array]:
    """Axes common to all components and the variances along them by ``rule``: ``n`` sweeps from ``axes``.

    Variances given the axes, then the axes given the variances, plane by plane (Flury & Gautschi 1986; with the
    majorization of Browne & McNicholas 2014 taken in each plane, where it is exact): the objective never rises.
    """
    pairs = jnp.asarray(_rounds(scatter.shape[-1]))

    def variances(b: Array) -> Array:
        return rule(diagonal(b), share, floor)

    def sweep(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        precision = share[:, None] / variances(carry[1])

        def turn(r: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            axes, b = carry
            rotation = _turn(axes, b, precision, pairs[r])
            return dot(axes, rotation), _along(rotation, b)

        return jax.lax.fori_loop(0, len(pairs), turn, carry)

    axes, b = jax.lax.fori_loop(0, n, sweep, (axes, _along(axes, scatter)))
    return axes, variances(b)


def _normalized(matrices: Float[Array, "K D D"]) -> Float[Array, "K D D"]:
    """With the trace of I."""
    return matrices.shape[-1] * matrices / jnp.trace(matrices, axis1=-2, axis2=-1)[:, None, None]


def _blend(matrices: Float[Array, "K D D"]) -> Float[Array, "D D"]:
    """A sum with weights of no pattern, so that it has no equal eigenvalues where the matrices do not."""
    weights = jnp.asarray(1 + np.arange(matrices.shape[0]) * 0.6180339887 % 1, matrices.dtype)
    return jnp.mean(weights[:, None, None] * _normalized(matrices), axis=0)


def _common_axes(matrices: Float[Array, "K D D"], axes: Float[Array, "D D"] | None = None) -> Float[Array, "D D"]:
    """The axes that all of the matrices have, or very nearly: those of a sum, given or found here, and then turned.

    The sum may have nearly equal eigenvalues.
    """
    axes = jnp.linalg.eigh(_blend(matrices))[1] if axes is None else axes
    k, matrices = matrices.shape[0], _normalized(matrices)
    share, floor = jnp.full(k, 1 / k, matrices.dtype), jnp.asarray(_resolution(matrices.dtype), matrices.dtype)
    return _fit_axes(matrices, share, floor, axes, _free_variances, _POLISH)[0]


def _estimate_common(scatter: Array, count: Array, d: int, floor: Array, old: Array | None, rule: _Rule) -> Array:
    """The M-step of a common orientation, from the old one; at a start the best of several, as there are local optima."""
    scatter, share = _in_use(scatter, count, None if old is None else _pack(old))
    matrices = _unpack(scatter, d)

    def fit(start: Array) -> tuple[Array, Array, Array]:
        sweeps = _START_SWEEPS if old is None else _SWEEPS
        axes, variances = _fit_axes(matrices, share, floor, start, rule, sweeps)
        along = diagonal(_along(axes, matrices))
        return axes, variances, jnp.sum(share[:, None] * (jnp.log(variances) + along / variances))

    if old is None:
        # One call: two batched calls of LAPACK side by side can wait for each other's threads.
        own = jnp.linalg.eigh(jnp.concatenate([_blend(matrices)[None], matrices]))[1]
        starts = jnp.concatenate([_common_axes(matrices, own[0])[None], own[1:]])
        axes, variances, cost = jax.vmap(fit)(starts)
        axes, variances = axes[jnp.argmin(cost)], variances[jnp.argmin(cost)]
    else:
        axes, variances, _ = fit(_common_axes(old))
    return _compose(axes, _rounder(variances))


def _split_common(covariance: Float[Array, "K D D"]) -> tuple[Float[Array, "D D"], Float[Array, "K D"]]:
    """The common axes, and the variances along them."""
    axes = _common_axes(covariance)
    return axes, diagonal(_along(axes, covariance))


# The ten structures.


@pytree
class TiedSpherical(Spheres):
    """One variance for all features and components, a scalar (mclust's EII)."""

    shared = tied = True

    def estimate(self, scatter, count, d, floor, old):
        scatter, share = _in_use(scatter, count, None)
        return _pooled_variances(scatter / d, share, floor)[0]


@pytree
class TiedDiagonal(Variances):
    """A variance per feature, the same for all components, [D] (mclust's EEI)."""

    shared = tied = True

    def estimate(self, scatter, count, d, floor, old):
        return _pooled_variances(*_in_use(scatter, count, None), floor)


@pytree
class ProportionalDiagonal(Variances):
    """A multiple, per component, of the same variances per feature, [K, D] (mclust's VEI)."""

    shared = True

    def estimate(self, scatter, count, d, floor, old):
        scatter, share = _in_use(scatter, count, old)
        return _proportional_variances(scatter, share, floor, None if old is None else old[0])

    def to_free(self, covariance):
        return _proportional_coordinates(jnp.log(covariance))

    def from_free(self, free, k, d):
        return jnp.exp(_from_proportional_coordinates(free, k))


@pytree
class EqualVolumeDiagonal(Variances):
    """A variance per feature and component, with the same product for all components, [K, D] (mclust's EVI)."""

    shared = True

    def estimate(self, scatter, count, d, floor, old):
        return _equal_volume_variances(*_in_use(scatter, count, old), floor)

    def to_free(self, covariance):
        return _equal_volume_coordinates(jnp.log(covariance))

    def from_free(self, free, k, d):
        return jnp.exp(_from_equal_volume_coordinates(free, k, d))


@pytree
class Proportional(Matrices):
    """A multiple, per component, of the same matrix, [K, D, D] (mclust's VEE)."""

    shared = True

    def estimate(self, scatter, count, d, floor, old):
        scatter, share = _in_use(scatter, count, None if old is None else _pack(old))
        matrices = _unpack(scatter, d)

        def sizes(common: Array) -> Array:
            lower, root = factor(common)
            precision = gram(root)
            lowest = floor / jnp.min(diagonal(lower)) ** 2
            return jnp.maximum(jnp.sum(precision * matrices, axis=(-2, -1)) / d, lowest)

        def turn(_: Array, common: Array) -> Array:
            size = sizes(common)
            lowest = floor / jnp.min(jnp.where(share > 0, size, jnp.inf))
            return _floored(_unpack(jnp.sum((share / size)[:, None] * scatter, axis=0), d), lowest, common)

        start = _floored(_unpack(jnp.sum(share[:, None] * scatter, axis=0), d), floor, None) if old is None else old[0]
        common = jax.lax.fori_loop(0, _TURNS, turn, start)
        return sizes(common)[:, None, None] * common

    def to_free(self, covariance):
        coordinates = _free(covariance)
        d = covariance.shape[-1]
        volume, contrasts = _contrasts(coordinates[:, :d])
        below = coordinates[0, d:] / jnp.exp(volume[0])
        return jnp.concatenate([volume, contrasts[0], below])

    def from_free(self, free, k, d):
        logs = _with_contrasts(jnp.zeros_like(free[0]), free[k : k + d - 1])
        common = _from_free(jnp.concatenate([logs, free[k + d - 1 :]]), d)
        return jnp.exp(2 * free[:k])[:, None, None] * common


@pytree
class EqualVolumeCommonAxes(Matrices):
    """Matrices with common principal axes and the same determinant, [K, D, D] (mclust's EVE)."""

    shared = isotropic = True

    def estimate(self, scatter, count, d, floor, old):
        return _estimate_common(scatter, count, d, floor, old, _equal_volume_variances)

    def to_free(self, covariance):
        axes, variances = _split_common(covariance)
        return jnp.concatenate([_equal_volume_coordinates(jnp.log(variances)), _orientation_coordinates(axes)])

    def from_free(self, free, k, d):
        variances = jnp.exp(_from_equal_volume_coordinates(free[: 1 + k * (d - 1)], k, d))
        return _compose(_from_orientation_coordinates(free[1 + k * (d - 1) :], d), variances)


@pytree
class CommonAxes(Matrices):
    """Matrices with common principal axes, [K, D, D] (mclust's VVE; Flury 1984)."""

    shared = isotropic = True

    def estimate(self, scatter, count, d, floor, old):
        return _estimate_common(scatter, count, d, floor, old, _free_variances)

    def to_free(self, covariance):
        axes, variances = _split_common(covariance)
        return jnp.concatenate([jnp.log(variances).ravel(), _orientation_coordinates(axes)])

    def from_free(self, free, k, d):
        variances = jnp.exp(free[: k * d]).reshape(k, d)
        return _compose(_from_orientation_coordinates(free[k * d :], d), variances)


@pytree
class EqualSpectrum(Matrices):
    """Matrices with the same eigenvalues, [K, D, D] (mclust's EEV)."""

    shared = isotropic = True

    def estimate(self, scatter, count, d, floor, old):
        scatter, share = _in_use(scatter, count, None if old is None else _pack(old))
        variances, axes = jnp.linalg.eigh(_unpack(scatter, d))
        return _compose(axes, _pooled_variances(variances, share, floor))

    def to_free(self, covariance):
        variances, axes = jnp.linalg.eigh(covariance)
        return jnp.concatenate([jnp.mean(jnp.log(variances), axis=0), _orientation_coordinates(axes).ravel()])

    def from_free(self, free, k, d):
        return _compose(_from_orientation_coordinates(free[d:].reshape(k, d * (d - 1) // 2), d), jnp.exp(free[:d]))


@pytree
class ProportionalSpectrum(Matrices):
    """Matrices with proportional eigenvalues, [K, D, D] (mclust's VEV)."""

    shared = isotropic = True

    def estimate(self, scatter, count, d, floor, old):
        scatter, share = _in_use(scatter, count, None if old is None else _pack(old))
        matrices = _unpack(scatter, d)
        # One call: two batched calls of LAPACK side by side can wait for each other's threads.
        variances, axes = jnp.linalg.eigh(matrices if old is None else jnp.concatenate([matrices, old[:1]]))
        shape = None if old is None else variances[-1]
        k = matrices.shape[0]
        return _compose(axes[:k], _proportional_variances(variances[:k], share, floor, shape))

    def to_free(self, covariance):
        variances, axes = jnp.linalg.eigh(covariance)
        return jnp.concatenate([_proportional_coordinates(jnp.log(variances)), _orientation_coordinates(axes).ravel()])

    def from_free(self, free, k, d):
        variances = jnp.exp(_from_proportional_coordinates(free[: k + d - 1], k))
        return _compose(_from_orientation_coordinates(free[k + d - 1 :].reshape(k, d * (d - 1) // 2), d), variances)


@pytree
class EqualVolume(Matrices):
    """Matrices with the same determinant, [K, D, D] (mclust's EVV)."""

    shared = True

    def estimate(self, scatter, count, d, floor, old):
        scatter, share = _in_use(scatter, count, None if old is None else _pack(old))
        variances, axes = jnp.linalg.eigh(_unpack(scatter, d))
        return _compose(axes, _rounder(_equal_volume_variances(variances, share, floor)))

    def to_free(self, covariance):
        coordinates = _free(covariance)
        d = covariance.shape[-1]
        return jnp.concatenate([_equal_volume_coordinates(coordinates[:, :d]), coordinates[:, d:].ravel()])

    def from_free(self, free, k, d):
        logs = _from_equal_volume_coordinates(free[: 1 + k * (d - 1)], k, d)
        below = free[1 + k * (d - 1) :].reshape(k, d * (d - 1) // 2)
        return _from_free(jnp.concatenate([logs, below], axis=-1), d)


#: By mclust's letters.
STRUCTURES: dict[str, Covariance] = {
    "EII": TiedSpherical(),
    "VII": Spherical(),
    "EEI": TiedDiagonal(),
    "VEI": ProportionalDiagonal(),
    "EVI": EqualVolumeDiagonal(),
    "VVI": Diagonal(),
    "EEE": Tied(),
    "VEE": Proportional(),
    "EVE": EqualVolumeCommonAxes(),
    "VVE": CommonAxes(),
    "EEV": EqualSpectrum(),
    "VEV": ProportionalSpectrum(),
    "EVV": EqualVolume(),
    "VVV": Full(),
}


def EigenDecomposed(letters: str) -> Covariance:
    """The covariance structure Σ_k = λ_k D_k A_k D_kᵀ that mclust knows by three letters.

    They stand for volume λ_k, shape A_k and orientation D_k: E is equal for all components, V varies, I is the identity.
    EII, VII; EEI, VEI, EVI, VVI; EEE, VEE, EVE, VVE, EEV, VEV, EVV, VVV. The covariance of the parameters is [K, D, D];
    [K, D] for VEI, EVI and VVI, [D] for EEI, [D, D] for EEE, [K] for VII and a scalar for EII. EII, VII, EVE, VVE, EEV and
    VEV are not preserved by a scale per feature: their fits depend on the units of the features, and so does the floor.
    EVE and VVE have no closed form for the common orientation: each M-step raises q from the orientation before it.
    Raises ValueError for other letters (Celeux & Govaert 1995; Browne & McNicholas 2014).
    """
    if letters not in STRUCTURES:
        raise ValueError(f"covariance structures are {', '.join(STRUCTURES)}; got {letters!r}")
    return STRUCTURES[letters]


__all__ = ["STRUCTURES", "EigenDecomposed"]
