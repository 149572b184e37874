"""The fourteen covariance structures of mclust: M-steps against direct maximization, counts, membership, the floor."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxem
from jaxem.families import eigen_covariance
from jaxem.families.eigen_covariance import STRUCTURES

LETTERS = tuple(STRUCTURES)
# Those that are not a closed form per component, which other files test.
NEW = tuple(x for x in LETTERS if x not in ("VII", "VVI", "EEE", "VVV"))
every_structure = pytest.mark.parametrize("letters", LETTERS)
every_new_structure = pytest.mark.parametrize("letters", NEW)


def scatters(rng, k, d):
    """Random scatter matrices that fit no structure, [K, D, D], and counts, [K]."""
    a = rng.normal(size=(k, d, d + 2))
    return a @ a.swapaxes(1, 2) / (d + 2), rng.uniform(5, 30, k)


def columns(structure, scatter):
    """What the structure reads of the scatter: the sum, or all, of its diagonal, or the upper triangle."""
    d = scatter.shape[-1]
    squares = np.diagonal(scatter, axis1=1, axis2=2)
    return {1: squares.sum(1, keepdims=True), d: squares}.get(structure.num_columns(d), scatter[:, *np.triu_indices(d)])


@functools.partial(jax.jit, static_argnames=("letters", "d"))
def estimate(letters, scatter, count, d, floor, old=None):
    """The M-step of the structure, compiled."""
    return jaxem.EigenDecomposed(letters).estimate(scatter, count, d, jnp.asarray(floor), old)


def cost(covariance, scatter, count):
    """−q up to a constant, of matrices [K, D, D]."""
    fit = np.trace(np.linalg.solve(covariance, scatter), axis1=1, axis2=2)
    return np.sum(count * (np.linalg.slogdet(covariance)[1] + fit)) / 2


# Direct maximization: volume, shape and orientation of every component, of which the letters tie some.


def matrices(volume, shape, turn):
    """λ D A Dᵀ from log λ, log A up to its mean, and the logarithm of D."""
    d = shape.shape[-1]
    below = np.tril_indices(d, -1)
    skew = jnp.zeros((*turn.shape[:-1], d, d)).at[..., below[0], below[1]].set(turn)
    axes = jax.vmap(jax.scipy.linalg.expm)(skew - jnp.swapaxes(skew, -1, -2))
    variances = jnp.exp(volume[:, None] + shape - jnp.mean(shape, axis=-1, keepdims=True))
    return jnp.einsum("kij,kj,klj->kil", axes, variances, axes)


@jax.jit
@jax.value_and_grad
def direct_cost(parts, scatter, count):
    covariance = matrices(*parts)
    fit = jnp.trace(jnp.linalg.solve(covariance, scatter), axis1=-2, axis2=-1)
    return jnp.sum(count * (jnp.linalg.slogdet(covariance)[1] + fit)) / 2


def direct_minimum(letters, scatter, count, rng, num_starts=5):
    """The least cost that BFGS finds from random starts."""
    k, d = scatter.shape[:2]
    shapes = [(k,), (k, d), (k, d * (d - 1) // 2)]
    free = [{"V": shape, "E": (1, *shape[1:]), "I": (0, *shape[1:])}[x] for x, shape in zip(letters, shapes)]
    ends = np.cumsum([0, *(int(np.prod(f)) for f in free)])

    def parts(theta):
        pieces = [theta[a:b].reshape(f) for (a, b), f in zip(itertools.pairwise(ends), free)]
        return [np.broadcast_to(p if len(p) else np.zeros((1, *s[1:])), s) for p, s in zip(pieces, shapes)]

    def value_and_gradient(theta):
        value, gradient = direct_cost(tuple(parts(theta)), scatter, count)
        tied = [{"V": np.asarray(g), "E": np.sum(g, axis=0), "I": np.zeros(0)}[x] for x, g in zip(letters, gradient)]
        return float(value), np.concatenate([g.ravel() for g in tied])

    starts = rng.normal(size=(num_starts, ends[-1]))
    options = {"jac": True, "method": "BFGS", "options": {"gtol": 1e-9}}
    return min(scipy.optimize.minimize(value_and_gradient, start, **options).fun for start in starts)


@every_new_structure
@pytest.mark.parametrize(("k", "d"), [(3, 2), (2, 3)])
def test_the_m_step_is_at_least_as_good_as_direct_maximization(float64, letters, k, d):
    structure = jaxem.EigenDecomposed(letters)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scatter, count = scatters(rng, k, d)
        read = columns(structure, scatter)
        covariance = estimate(letters, read, count, d, 1e-8)
        if letters == "EVE":  # no closed form: a second step goes on from the first
            covariance = estimate(letters, read, count, d, 1e-8, covariance)
        ours = cost(np.asarray(structure.dense(covariance, k, d)), scatter, count)
        assert ours <= direct_minimum(letters, scatter, count, rng) + 1e-7


def mclust_count(letters, d, k):
    """Free parameters of the covariances, by Celeux & Govaert (1995), table 1."""
    a, b = d - 1, d * (d - 1) // 2
    volume = {"E": 1, "V": k}[letters[0]]
    shape = {"I": 0, "E": a, "V": k * a}[letters[1]]
    return volume + shape + {"I": 0, "E": b, "V": k * b}[letters[2]]


@every_structure
def test_free_parameters_are_counted_as_mclust_counts_them(letters):
    model = jaxem.Gaussian(jaxem.EigenDecomposed(letters))
    for d, k in itertools.product((1, 2, 3, 4), (1, 2, 3, 4)):
        stats = jax.ShapeDtypeStruct((k, 1 + d + model.covariance.num_columns(d)), jnp.float32)
        params = jax.eval_shape(lambda stats: model.maximize(None, stats, {}), stats)
        free = jax.eval_shape(model.to_free, params)
        assert free.mean.size == k * d
        assert free.covariance.size == mclust_count(letters, d, k), (d, k)
        back = jax.eval_shape(model.from_free, free)
        assert back.covariance.shape == params.covariance.shape


# One feature, one component: what is left of the letters.


@every_structure
def test_of_one_feature_only_the_volume_is_left(float64, letters):
    scatter, count = scatters(np.random.default_rng(0), 3, 1)
    structure = jaxem.EigenDecomposed(letters)
    covariance = estimate(letters, scatter[:, :, 0], count, 1, 1e-8)
    pooled = np.full(3, np.average(scatter[:, 0, 0], weights=count))
    expected = pooled if letters[0] == "E" else scatter[:, 0, 0]
    np.testing.assert_allclose(structure.dense(covariance, 3, 1)[:, 0, 0], expected, rtol=1e-12)
    back = structure.from_free(structure.to_free(covariance), 3, 1)
    np.testing.assert_allclose(back, covariance, rtol=1e-12)


@every_structure
def test_one_component_has_the_scatter_its_last_letters_allow(float64, letters):
    scatter, count = scatters(np.random.default_rng(1), 1, 3)
    structure = jaxem.EigenDecomposed(letters)
    covariance = estimate(letters, columns(structure, scatter), count, 3, 1e-8)
    diagonal = np.diag(np.diag(scatter[0]))
    expected = {"II": np.trace(scatter[0]) / 3 * np.eye(3), "EI": diagonal, "VI": diagonal}
    np.testing.assert_allclose(
        structure.dense(covariance, 1, 3)[0], expected.get(letters[1:], scatter[0]), rtol=1e-9, atol=1e-12
    )
    back = structure.from_free(structure.to_free(covariance), 1, 3)
    np.testing.assert_allclose(back, covariance, rtol=1e-9, atol=1e-12)


# Membership.


def check_membership(letters, covariance, rtol):
    """Volumes, shapes and orientations of matrices [K, D, D] are equal where the letters say so."""
    k, d = covariance.shape[:2]
    values = np.linalg.eigvalsh(covariance)
    volumes = np.exp(np.mean(np.log(values), axis=1))
    if letters[0] == "E":
        np.testing.assert_allclose(volumes, volumes[0], rtol=rtol)
    normalized = covariance / volumes[:, None, None]
    size = np.max(np.abs(normalized))
    off_diagonal = normalized * ~np.eye(d, dtype=bool)
    if letters[2] == "I":
        assert np.all(off_diagonal == 0)
    if letters[1] == "I":
        np.testing.assert_allclose(normalized, np.broadcast_to(np.eye(d), (k, d, d)), rtol=rtol)
    if letters[1] == "E":  # the axes of a diagonal shape are in the order of the features
        shapes = np.diagonal(normalized, axis1=1, axis2=2) if letters[2] == "I" else values / volumes[:, None]
        np.testing.assert_allclose(shapes, np.broadcast_to(shapes[0], shapes.shape), rtol=rtol)
    if letters[2] == "E":
        for a, b in itertools.combinations(normalized, 2):
            np.testing.assert_allclose(a @ b, b @ a, atol=rtol * size**2)


@functools.partial(jax.jit, static_argnames=("letters",))
def two_m_steps(letters, x, marginals):
    """The family with its scales, its answer at a start and that of a second step from there, with other statistics."""
    family = jaxem.Gaussian(jaxem.EigenDecomposed(letters)).calibrate(jaxem.Data(x=x), None)
    statistics = family.statistics(jaxem.Data(x=x))
    first, second = (family.accumulate(None, statistics, r) for r in marginals)
    start = family.maximize(None, first, {})
    return family, (first, second), start, family.maximize(start, second, {})


@functools.cache
def two_steps_of(letters, k=3, d=3, empty=False):
    """`two_m_steps` on features of unlike size; in the second step, where ``empty``, component 0 has no weight."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, d)) @ rng.normal(size=(d, d)) * np.logspace(0, 1.5, d)
    marginals = rng.dirichlet(np.full(k, 0.3), (2, 60))
    if empty:
        marginals[1, :, 0] = 0
    return two_m_steps(letters, jnp.asarray(x), jnp.asarray(marginals))


@every_new_structure
def test_covariances_are_of_the_structure_in_the_units_of_the_data(float64, letters):
    for empty in (False, True):
        family, _, start, after = two_steps_of(letters, empty=empty)
        for params in (start, after):
            check_membership(letters, np.asarray(family.covariance.dense(params.covariance, 3, 3)), 1e-9)
        assert not np.allclose(start.covariance, after.covariance, rtol=1e-2)


@every_structure
def test_structures_that_a_scale_per_feature_leaves_have_one_scale(float64, letters):
    """Membership after a scale per feature decides: it is lost just where the structure asks for one scale."""
    structure = jaxem.EigenDecomposed(letters)
    scatter, count = scatters(np.random.default_rng(2), 3, 3)
    covariance = np.asarray(structure.dense(estimate(letters, columns(structure, scatter), count, 3, 1e-8), 3, 3))
    scale = np.array([1.0, 3.0, 0.5])
    scaled = covariance * scale[:, None] * scale
    if structure.isotropic:
        with pytest.raises(AssertionError):
            check_membership(letters, scaled, 1e-6)
    else:
        check_membership(letters, scaled, 1e-9)


# From the old covariance on.


@every_new_structure
def test_a_component_without_weight_is_the_limit_of_a_light_one(float64, letters):
    """Of ever less weight on statistics that are its old parameters: what it shares moves, the rest stays the nearest."""
    family, (_, second), start, _ = two_steps_of(letters)
    stats = np.array(second)
    structure, (k, d) = family.covariance, start.mean.shape
    mean, covariance = family._standardized(start)
    dense = np.asarray(structure.dense(covariance, k, d))
    own = np.concatenate([np.ones((k, 1)), mean, columns(structure, dense) + structure.columns(mean)], axis=1)
    maximize = jax.jit(lambda stats: family.maximize(start, stats, {}))
    light, none = stats.copy(), stats.copy()
    light[0], none[0] = 1e-9 * own[0], 0
    for a, b in zip(jax.tree.leaves(maximize(none)), jax.tree.leaves(maximize(light))):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7 * np.max(np.abs(b)))


@pytest.mark.parametrize("letters", ["VEI", "VEE", "VEV", "EVE", "VVE"])
def test_one_inner_turn_already_raises_q(float64, letters, monkeypatch):
    """However few turns an iterative M-step takes, it is no worse than the covariance before it."""
    monkeypatch.setattr(eigen_covariance, "_TURNS", 1)
    monkeypatch.setattr(eigen_covariance, "_SWEEPS", 1)
    structure = jaxem.EigenDecomposed(letters)
    step = jax.jit(lambda read, count, old: structure.estimate(read, count, 4, jnp.asarray(1e-3), old))
    start = estimate(letters, columns(structure, scatters(np.random.default_rng(99), 3, 4)[0]), np.ones(3), 4, 1e-3)
    for seed in range(20):
        scatter, count = scatters(np.random.default_rng(seed), 3, 4)
        if seed % 2:  # a component on a plane: the floor holds
            scatter[seed % 3, 0] = scatter[seed % 3, :, 0] = 0
        costs, old = [], start
        for _ in range(3):
            costs.append(cost(np.asarray(structure.dense(old, 3, 4)), scatter, count))
            old = step(columns(structure, scatter), count, old)
        assert np.all(np.diff(costs) <= 1e-9), costs
        start = old


@pytest.mark.parametrize("letters", ["VEI", "EVI"])
@pytest.mark.parametrize("seed", range(3))
def test_at_the_floor_no_other_variances_above_it_are_better(float64, letters, seed):
    """Against constrained minimization over the logarithms of volumes and shapes; one variance is 0."""
    k, d, floor = 3, 3, 0.05
    rng = np.random.default_rng(seed)
    b, count = rng.exponential(size=(k, d)) * 0.3, rng.uniform(5, 30, k)
    b[0, 1] = 0
    ours = np.asarray(estimate(letters, b, count, d, floor))
    assert np.min(ours) == pytest.approx(floor, rel=1e-9)

    def logs(theta):
        if letters == "VEI":
            return theta[:k, None] + np.append(theta[k:], 0)
        shape = theta[1:].reshape(k, d - 1)
        return theta[0] + np.concatenate([shape, -shape.sum(1, keepdims=True)], axis=1)

    def objective(variances):
        return np.sum(count[:, None] * (np.log(variances) + b / variances)) / 2

    size = k + d - 1 if letters == "VEI" else 1 + k * (d - 1)
    above = {"type": "ineq", "fun": lambda theta: (logs(theta) - np.log(floor)).ravel()}
    found = scipy.optimize.minimize(
        lambda theta: objective(np.exp(logs(theta))),
        np.zeros(size),
        method="SLSQP",
        constraints=[above],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    assert objective(ours) <= found.fun + 1e-6


# Whole fits.

MODELS, N, K, D = 40, 50, 3, 3


@pytest.mark.slow
@every_new_structure
def test_the_objective_never_falls_and_ends_finite(dtype, letters):
    """Random models in lanes: well and badly conditioned data, a row repeated often, more components than groups."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(MODELS, D, D)) * np.exp(1.5 * rng.normal(size=(MODELS, 1, D)))
    x = (rng.normal(size=(MODELS, N, D)) + 3 * rng.integers(0, 2, (MODELS, N, 1))) @ mix
    x[MODELS // 2 :, : N // 4] = x[MODELS // 2 :, :1]
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.EigenDecomposed(letters)), K)

    def one(key, x):
        own = model.calibrate(x)
        start = own.init(key, x, None, jaxem.RandomResponsibilities(0.5))
        never = jaxem.Control(jaxem.Never(), 40)
        run = jaxem.run(own, start, own.prepare(x), control=never, trace_size=41)
        return run.trace, run.status, run.params, own.diagnose(run.params, jnp.asarray(N, dtype)).degenerate

    keys = jax.random.split(jax.random.key(0), MODELS)
    trace, status, params, degenerate = jax.jit(jax.vmap(one))(keys, jnp.asarray(x, dtype))
    healthy = ~np.any(degenerate, axis=-1)
    assert not np.any(np.isin(status, (jaxem.Status.NON_FINITE, jaxem.Status.ZERO_LIKELIHOOD)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    assert np.mean(healthy) >= 0.4
    if dtype == np.float64:
        rise = np.diff(trace)
        assert np.nanmin(rise[healthy]) >= -1e-9
        assert np.nanmin(rise) >= -1e-7  # a variance at the floor shows the rounding of the moments a million times
        assert not np.any(status == jaxem.Status.DECREASED)


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["VEE", "VVE", "VEV"])
def test_gradients_go_through_iterations_and_eigenvectors(float64, letters):
    """The held-out log-likelihood as a function of a prior's strength, against a difference."""
    x = jnp.asarray(jaxem.datasets.load("faithful").x)
    mixture = jaxem.Mixture(jaxem.Gaussian(jaxem.EigenDecomposed(letters)), 2)
    labels = (x[::2, 0] > 3).astype(int)
    calibrated = mixture.calibrate(x[::2])
    start = calibrated.m_step(None, calibrated.complete_statistics(jnp.eye(2)[labels], x[::2]))

    @jax.jit
    @jax.value_and_grad
    def held_out(strength):
        model = jaxem.WithPrior(mixture, strength).calibrate(x[::2])
        rule = jaxem.Control(jaxem.ParameterChange(1e-12))
        fitted = jaxem.run(model, start, x[::2], control=rule)
        return jnp.mean(mixture.log_likelihood(fitted.params, x[1::2]))

    step = 1e-4
    difference = (held_out(1 + step)[0] - held_out(1 - step)[0]) / (2 * step)
    np.testing.assert_allclose(held_out(1.0)[1], difference, rtol=1e-6)


# The name.


def test_letters_of_the_structures_that_have_names():
    named = {"VVV": jaxem.Full, "EEE": jaxem.Tied, "VVI": jaxem.Diagonal, "VII": jaxem.Spherical}
    assert all(isinstance(jaxem.EigenDecomposed(letters), kind) for letters, kind in named.items())
    assert len({type(structure) for structure in STRUCTURES.values()}) == 14


@pytest.mark.parametrize("letters", ["VIV", "vvv", "", None])
def test_other_letters_are_refused(letters):
    with pytest.raises(ValueError, match=r"EII, VII, .*, VVV; got"):
        jaxem.EigenDecomposed(letters)


@every_new_structure
def test_what_is_shared_cannot_be_frozen_for_some_components(letters):
    model = jaxem.Mixture(jaxem.Gaussian(jaxem.EigenDecomposed(letters)), 2)
    with pytest.raises(ValueError, match="shared by all components"):
        jaxem.Frozen(model, {"covariance": [True, False]})


def test_structures_are_saved_and_described(tmp_path):
    models = [jaxem.Mixture(jaxem.Gaussian(structure), 2) for structure in STRUCTURES.values()]
    jaxem.save(tmp_path / "models.npz", models)
    loaded = jaxem.load(tmp_path / "models.npz")
    assert [jax.tree.structure(m) for m in loaded] == [jax.tree.structure(m) for m in models]
    assert "equal volume diagonal covariance" in jaxem.result.describe(
        jaxem.Mixture(jaxem.Gaussian(STRUCTURES["EVI"]), 2)
    )
