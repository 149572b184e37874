"""The laws of the design over one table: a new model or family is one row here and gets every test."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.families import OfModel
from jaxem.testing import LAWS, check_family, check_model

_RNG = np.random.default_rng(0)
POINTS = np.concatenate([_RNG.normal(size=(20, 3)), _RNG.normal(size=(25, 3)) * [1, 2, 0.5] + 3])
WIDE = np.concatenate([_RNG.normal(size=(40, 5)), _RNG.normal(size=(40, 5)) @ _RNG.normal(size=(5, 5)) + 2])
COUNTS = np.concatenate([_RNG.poisson([6.0, 1.0], (20, 2)), _RNG.poisson([2.0, 9.0], (25, 2))]).astype(float)
POSITIVE = np.concatenate([_RNG.gamma([2.0, 9.0], [1.0, 0.2], (20, 2)), _RNG.gamma([20.0, 3.0], [0.5, 2.0], (25, 2))])
HOLES = jaxem.Data(POSITIVE, mask=_RNG.random(POSITIVE.shape) < 0.8)
# Of 45 rows of 3 cells there are at most 8 patterns: pattern by pattern. Of 80 of 7 there are up to 80: row by row.
MASK = _RNG.random(POINTS.shape) > 0.25
MASK[0], MASK[1] = True, False
MISSING = jaxem.Data(x=np.where(MASK, POINTS, np.nan), mask=MASK)
_SEVEN = WIDE[:, [0, 1, 2, 3, 4, 0, 1]] + _RNG.normal(size=(80, 7))
MANY_PATTERNS = jaxem.Data(x=_SEVEN, mask=_RNG.random(_SEVEN.shape) > 0.1)
INPUTS = _RNG.normal(size=(45, 2)) * [1, 3] + [0, 5]
_ETA = INPUTS @ [[0.6, -0.2], [0.1, 0.3]] * np.where(np.arange(45) < 20, 1, -1)[:, None]


def _given_inputs(responses, **more):
    return jaxem.Data(x=np.asarray(responses, float), inputs=INPUTS, **more)


LINEAR = _given_inputs(_ETA + 0.4 * _RNG.normal(size=_ETA.shape))
LINEAR_MISSING = _given_inputs(LINEAR.x, mask=_RNG.random(_ETA.shape) < 0.8)
BINARY = _given_inputs(_RNG.random(_ETA.shape) < 1 / (1 + np.exp(-_ETA)))
CHOICES = _given_inputs(_RNG.integers(0, 3, (45, 1)) * (_RNG.random((45, 1)) < 0.8))
COUNTED = _given_inputs(_RNG.poisson(np.exp(0.3 * _ETA)))
_DISCRETE = np.random.default_rng(1)
ANSWERS = (_DISCRETE.random((45, 3)) < np.repeat([[0.2, 0.7, 0.5], [0.8, 0.3, 0.4]], [20, 25], axis=0)).astype(float)
BOYS = np.concatenate(
    [_DISCRETE.binomial([7, 12], [0.2, 0.7], (20, 2)), _DISCRETE.binomial([7, 12], [0.8, 0.3], (25, 2))]
)
CODES = np.concatenate([_DISCRETE.integers(0, [2, 2, 1], (20, 3)), _DISCRETE.integers(0, [3, 2, 4], (25, 3))]).astype(
    float
)
WORDS = np.concatenate([_DISCRETE.multinomial(9, [0.2, 0.7, 0.1], 20), _DISCRETE.multinomial(20, [0.3, 0.3, 0.4], 25)])
SPREAD = _DISCRETE.poisson(_DISCRETE.gamma(2, np.repeat([[3.0, 0.5], [1.0, 4.5]], [20, 25], axis=0))).astype(float)
MIXED = np.column_stack([POINTS[:, :2], ANSWERS[:, 0], POINTS[:, 2], SPREAD[:, 0]])
SEEN = _DISCRETE.random((45, 3)) < 0.8
POSITIVE_HOLES = jaxem.Data(POSITIVE, mask=_RNG.random(POSITIVE.shape) < 0.8)
_SHARES = np.random.default_rng(5)
PARTS = np.concatenate([_SHARES.beta([0.8, 9.0], [2.0, 3.0], (20, 2)), _SHARES.beta([20.0, 3.0], [5.0, 12.0], (25, 2))])
SHARES = np.concatenate([_SHARES.dirichlet([0.7, 2.0, 4.0], 20), _SHARES.dirichlet([30.0, 9.0, 5.0], 25)])
_TOWARDS = np.concatenate([_SHARES.normal([2.0, 0, 1], 1, (20, 3)), _SHARES.normal([-1, 3.0, 0], 1, (25, 3))])
DIRECTIONS = _TOWARDS / np.linalg.norm(_TOWARDS, axis=-1, keepdims=True)
CIRCLE = _TOWARDS[:, :2] / np.linalg.norm(_TOWARDS[:, :2], axis=-1, keepdims=True)
HEAVY = np.concatenate([_RNG.standard_t(3, (25, 3)), _RNG.standard_t(5, (25, 3)) * [1, 2, 0.5] + 4])

FAMILIES = {
    "gaussian full": (jaxem.Gaussian(jaxem.Full()), POINTS),
    "gaussian full, D = 5": (jaxem.Gaussian(jaxem.Full()), WIDE),  # above the dimensions that are written out
    "gaussian tied": (jaxem.Gaussian(jaxem.Tied()), POINTS),
    "gaussian diagonal": (jaxem.Gaussian(jaxem.Diagonal()), POINTS),
    "gaussian spherical": (jaxem.Gaussian(jaxem.Spherical()), POINTS),
    "gaussian full, missing": (jaxem.Gaussian(jaxem.Full()), MISSING),
    "gaussian full, missing, many patterns": (jaxem.Gaussian(jaxem.Full()), MANY_PATTERNS),
    "gaussian tied, missing": (jaxem.Gaussian(jaxem.Tied()), MISSING),
    "gaussian diagonal, missing": (jaxem.Gaussian(jaxem.Diagonal()), MISSING),
    "gaussian spherical, missing": (jaxem.Gaussian(jaxem.Spherical()), MISSING),
    **{
        f"gaussian {letters}": (jaxem.Gaussian(jaxem.EigenDecomposed(letters)), POINTS)
        for letters in ("EII", "EEI", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV")
    },
    "poisson": (jaxem.Poisson(), COUNTS),
    "exponential": (jaxem.Exponential(), POSITIVE),
    "gamma": (jaxem.Gamma(), POSITIVE),
    "gamma, missing cells": (jaxem.Gamma(), POSITIVE_HOLES),
    "lognormal": (jaxem.LogNormal(), POSITIVE),
    "lognormal, missing cells": (jaxem.LogNormal(), POSITIVE_HOLES),
    "inverse gaussian": (jaxem.InverseGaussian(), POSITIVE),
    "beta": (jaxem.Beta(), PARTS),
    "beta, missing cells": (jaxem.Beta(), jaxem.Data(PARTS, SEEN[:, :2])),
    "dirichlet": (jaxem.Dirichlet(), SHARES),
    "von mises-fisher": (jaxem.VonMisesFisher(), DIRECTIONS),
    "von mises-fisher, on the circle": (jaxem.VonMisesFisher(), CIRCLE),
    "linear regression": (jaxem.LinearRegression(), LINEAR),
    "linear regression, cells missing, tied noise": (jaxem.LinearRegression(tied_noise=True), LINEAR_MISSING),
    "logistic regression": (jaxem.LogisticRegression(), BINARY),
    "poisson regression": (jaxem.PoissonRegression(), COUNTED),
    "poisson, cells missing": (jaxem.Poisson(), jaxem.Data(COUNTS, SEEN[:, :2])),
    "bernoulli": (jaxem.Bernoulli(), ANSWERS),
    "bernoulli, cells missing": (jaxem.Bernoulli(), jaxem.Data(ANSWERS, SEEN)),
    "binomial": (jaxem.Binomial([7, 12]), BOYS),
    "categorical, cells missing": (jaxem.Categorical((3, 2, 4)), jaxem.Data(CODES, SEEN)),
    "geometric": (jaxem.Geometric(), COUNTS),
    "multinomial": (jaxem.Multinomial(), WORDS),
    "multinomial regression": (jaxem.MultinomialRegression(3), CHOICES),
    "negative binomial": (jaxem.NegativeBinomial(), SPREAD),
    "product": (
        jaxem.Product(
            {
                "place": (jaxem.Gaussian(), [3, 0]),
                "answer": (jaxem.Bernoulli(), [2]),
                "visits": (jaxem.NegativeBinomial(), slice(4, 5)),
                "size": (jaxem.Gaussian(jaxem.Tied()), 1),
            }
        ),
        MIXED,
    ),
    "product, cells missing": (
        jaxem.Product({"b": (jaxem.Gaussian(), [0, 3]), "c": (jaxem.Bernoulli(), 2), "a": (jaxem.Poisson(), [4, 1])}),
        jaxem.Data(np.column_stack([MIXED[:, 0], SPREAD[:, 1], MIXED[:, 2:]]), SEEN[:, [0, 1, 2, 0, 1]]),
    ),
    "gaussian with noise": (jaxem.WithNoise(jaxem.Gaussian()), POINTS),
    "gaussian with noise, cells missing": (jaxem.WithNoise(jaxem.Gaussian(jaxem.Tied())), MISSING),
    "zero-inflated poisson": (jaxem.ZeroInflated(jaxem.Poisson()), SPREAD),
    "zero-inflated negative binomial, cells missing": (
        jaxem.ZeroInflated(jaxem.NegativeBinomial()),
        jaxem.Data(SPREAD, SEEN[:, :2]),
    ),
    "factor analyzers": (OfModel(jaxem.FactorAnalysis(1, expanded=False)), WIDE),
    "factor analyzers, shared noise": (OfModel(jaxem.FactorAnalysis(2, expanded=False), ["noise"]), WIDE),
    "student t": (jaxem.StudentT(expanded=False), HEAVY),
    "student t tied, shared dof": (jaxem.StudentT(jaxem.Tied(), shared_dof=True, expanded=False), HEAVY),
    "student t diagonal, given dof": (jaxem.StudentT(jaxem.Diagonal(), dof=4.0, expanded=False), HEAVY),
}


def _mixture(family: str, k: int = 2):
    return jaxem.Mixture(FAMILIES[family][0], k)


WIDE_MASK = _RNG.random(WIDE.shape) < 0.8
WIDE_MASK[3] = False  # a row of which nothing is observed
WIDE_HOLES = jaxem.Data(WIDE, mask=WIDE_MASK)
_STEPS = np.concatenate([_RNG.normal(size=(8, 6, 2)), np.cumsum(_RNG.normal(size=(8, 6, 2)), axis=1)])
SEQUENCES = jaxem.Data(_STEPS, lengths=np.arange(16) % 6 + 1)
_STATES = np.random.default_rng(4)
_COUNTED_STEPS = _STATES.poisson(np.array([[1.0, 8.0], [4.0, 4.0], [9.0, 1.0]])[_STATES.integers(0, 3, (24, 5))])
COUNT_SEQUENCES = jaxem.Data(
    _COUNTED_STEPS.astype(float), mask=_STATES.random((24, 5, 2)) < 0.8, lengths=_STATES.integers(0, 6, 24)
)
MISSING_STEPS = jaxem.Data(_COUNTED_STEPS.astype(float), mask=_STATES.random((24, 5)) < 0.8)


def _two_poissons(params, x, z):
    terms = x * jnp.log(params["rate"][z]) - params["rate"][z] - jax.scipy.special.gammaln(x + 1)
    return jnp.log(params["weights"][z]) + jnp.sum(terms)


def _poisson_sums(x, z):
    one = jax.nn.one_hot(z, 2, dtype=x.dtype)
    return {"n": one, "x": one[:, None] * x}


def _poisson_draw(key, params):
    z = jax.random.categorical(key, jnp.log(params["weights"]))
    return jax.random.poisson(jax.random.fold_in(key, 1), params["rate"][z]).astype(params["rate"].dtype), z


def _item_response(params, x, z):
    eta = params["a"] * z + params["b"]
    return jnp.sum(x * eta - jax.nn.softplus(eta)) - z**2 / 2 - np.log(2 * np.pi) / 2


def _item_response_draw(key, params):
    z = jax.random.normal(key)
    eta = params["a"] * z + params["b"]
    return (jax.random.uniform(jax.random.fold_in(key, 1), (3,)) < jax.nn.sigmoid(eta)).astype(eta.dtype), z


_POISSONS = {
    "latent": jaxem.Discrete(2),
    "init": lambda key: {"weights": jnp.array([0.4, 0.6]), "rate": 1 + 5 * jax.random.uniform(key, (2, 2))},
    "constraints": {"weights": "simplex", "rate": "positive"},
}
_CHAIN_OF_GAUSSIANS = jaxem.LogJoint(
    jaxem.ChainLogJoint(
        initial=lambda p, z: jnp.log(p["initial"][z]),
        transition=lambda p, z, z_next: jnp.log(p["transition"][z, z_next]),
        emission=lambda p, x, z: jnp.sum(jax.scipy.stats.norm.logpdf(x, p["mean"][z], 1.0)),
    ),
    jaxem.Chain(2),
    lambda key, data: {
        "initial": jnp.array([0.4, 0.6]),
        "transition": jnp.array([[0.8, 0.2], [0.3, 0.7]]),
        "mean": jax.random.normal(key, (2, data.x.shape[-1])),
    },
    constraints={"initial": "simplex", "transition": "simplex"},
)

MODELS = {
    "log joint, poissons": (jaxem.LogJoint(_two_poissons, sample=_poisson_draw, **_POISSONS), COUNTS),
    "log joint, closed form, chunked": (
        jaxem.Chunked(
            jaxem.LogJoint(
                _two_poissons,
                statistics=_poisson_sums,
                sample=_poisson_draw,
                m_step=lambda _, s: {"weights": s["n"] / jnp.sum(s["n"]), "rate": s["x"] / s["n"][:, None]},
                **_POISSONS,
            ),
            16,
        ),
        COUNTS,
    ),
    "log joint, quadrature": (
        jaxem.LogJoint(
            _item_response,
            jaxem.GaussianLatent(),
            lambda key: {"a": 1 + 0.3 * jax.random.normal(key, (3,)), "b": jnp.zeros(3)},
            sample=_item_response_draw,
        ),
        ANSWERS,
    ),
    "log joint, chain": (_CHAIN_OF_GAUSSIANS, SEQUENCES),
    "gradient m-step, with log-prior": (
        jaxem.GradientM(_mixture("poisson"), log_prior=lambda p: -jnp.sum(p.likelihood.rate**2)),
        COUNTS,
    ),
    **{f"mixture, {name}": (jaxem.Mixture(family, 2), data) for name, (family, data) in FAMILIES.items()},
    "one component": (_mixture("gaussian full", 1), POINTS),
    "with prior, gaussian full": (jaxem.WithPrior(_mixture("gaussian full"), 2.0), POINTS),
    "with prior, gaussian spherical": (jaxem.WithPrior(_mixture("gaussian spherical"), 0.5), POINTS),
    "with prior, poisson": (jaxem.WithPrior(_mixture("poisson"), 2.0), COUNTS),
    "chunked, missing": (jaxem.Chunked(_mixture("gaussian full"), 16), MISSING),
    "chunked, a remainder": (jaxem.Chunked(_mixture("gaussian full"), 16), POINTS),
    "chunked, with prior, poisson regression": (
        jaxem.Chunked(jaxem.WithPrior(_mixture("poisson regression"), 1.0), 16),
        COUNTED,
    ),
    "experts, linear regression": (jaxem.MixtureOfExperts(jaxem.LinearRegression(), 3), LINEAR),
    "latent class regression, chunked": (
        jaxem.Chunked(jaxem.MixtureOfExperts(jaxem.Bernoulli(), 2), 16),
        jaxem.Data(x=ANSWERS, inputs=INPUTS),
    ),
    "experts, with prior, frozen": (
        jaxem.WithPrior(jaxem.Frozen(jaxem.MixtureOfExperts(jaxem.LogisticRegression(), 2), ["coefficients"]), 2.0),
        BINARY,
    ),
    "frozen mean": (jaxem.Frozen(_mixture("gaussian full"), ["mean"]), POINTS),
    "frozen weights and one rate": (
        jaxem.Frozen(_mixture("poisson"), {"weights": True, "rate": [True, False]}),
        COUNTS,
    ),
    "chunked, with prior, frozen": (
        jaxem.Chunked(jaxem.WithPrior(jaxem.Frozen(_mixture("gaussian diagonal"), ["covariance"]), 1.0), 20),
        POINTS,
    ),
    "student t, expanded": (jaxem.Mixture(jaxem.StudentT(), 2), HEAVY),
    "student t tied, shared dof, expanded": (
        jaxem.Mixture(jaxem.StudentT(jaxem.Tied(), shared_dof=True), 2),
        HEAVY,
    ),
    "with prior, student t": (jaxem.WithPrior(_mixture("student t"), 2.0), HEAVY),
    "factor analysis": (jaxem.FactorAnalysis(2, expanded=False), WIDE),
    "factor analysis, expanded": (jaxem.FactorAnalysis(2), WIDE),
    "factor analysis, holes": (jaxem.FactorAnalysis(2, expanded=False), WIDE_HOLES),
    "factor analysis, expanded, holes, chunked": (jaxem.Chunked(jaxem.FactorAnalysis(1), 30), WIDE_HOLES),
    "factor analysis, frozen": (jaxem.Frozen(jaxem.FactorAnalysis(2, expanded=False), ["mean", "noise"]), WIDE),
    "ppca": (jaxem.PPCA(2, expanded=False), WIDE),
    "ppca, expanded": (jaxem.PPCA(2), WIDE),
    "ppca, holes": (jaxem.PPCA(1, expanded=False), WIDE_HOLES),
    "mixture, ppca, expanded, shared noise, holes": (jaxem.Mixture(OfModel(jaxem.PPCA(1), ["noise"]), 2), WIDE_HOLES),
    "mixture of mixtures": (jaxem.Mixture(_mixture("poisson"), 2), COUNTS),
    "input-output HMM": (
        jaxem.InputOutputHMM(jaxem.Gaussian(jaxem.Diagonal()), 2),
        dataclasses.replace(SEQUENCES, inputs=_RNG.normal(size=(*np.shape(SEQUENCES.x)[:2], 1)) + 4),
    ),
    "hidden Markov model, gaussian": (jaxem.HMM(jaxem.Gaussian(), 2), SEQUENCES),
    "hidden Markov model, poisson, missing cells": (jaxem.HMM(jaxem.Poisson(), 2), COUNT_SEQUENCES),
    "hidden Markov model, left to right, missing steps": (
        jaxem.HMM(jaxem.Poisson(), 3, allowed=jaxem.left_to_right(3), allowed_initial=[True, True, False]),
        MISSING_STEPS,
    ),
    "with prior, chunked, hidden Markov model": (
        jaxem.WithPrior(jaxem.Chunked(jaxem.HMM(jaxem.Poisson(), 2), 5), 2.0),
        COUNT_SEQUENCES,
    ),
    "frozen transitions": (
        jaxem.Frozen(jaxem.HMM(jaxem.Gaussian(jaxem.Diagonal()), 2), {"transition": [True, False], "initial": True}),
        SEQUENCES,
    ),
    "hard mixture": (jaxem.LatentModel(jaxem.Hard(jaxem.latents.Categorical(2)), jaxem.Gaussian()), POINTS),
    "hard hidden Markov model": (
        jaxem.LatentModel(jaxem.Hard(jaxem.latents.MarkovChain(2)), jaxem.Poisson()),
        COUNT_SEQUENCES,
    ),
    "conditional maximizations": (jaxem.ECM(_mixture("gaussian diagonal"), [["covariance"], ["mean"]]), POINTS),
    "annealed mixture": (_mixture("poisson").tempered(1.7), COUNTS),
    "mixture of hidden Markov models": (jaxem.Mixture(jaxem.HMM(jaxem.Gaussian(), 2), 2), SEQUENCES),
    "hidden Markov model of mixtures": (jaxem.HMM(jaxem.Mixture(jaxem.Gaussian(), 2), 2), SEQUENCES),
}

# Laws that a row leaves out, each with its reason; every other law applies to every row.
_GAUSSIAN_LATENT = {"bound": "its latent is not discrete: no q as [N, K]"}
_LARGER_MODEL = {"stationary": "its M-step is the maximum of the q of a larger model"}
_CHAIN = {"bound": "the states of a sequence depend on each other: no q as [N, K]"}
_HARD = {
    "bound": "its q is the mode, not the posterior",
    "sample": "the scores of a classification likelihood do not average to 0 at the truth",
}
_ANNEALED = {
    "bound": "its q is tempered, not the posterior",
    "sample": "the scores of a free energy do not average to 0 at the truth",
}
_EXPANDED = _GAUSSIAN_LATENT | _LARGER_MODEL
_NOISE = {"sample": "the density of noise reaches beyond the box that its draws come from"}
LEFT_OUT = {
    "mixture, gaussian with noise": _NOISE,
    "mixture, gaussian with noise, cells missing": _NOISE,
    "student t, expanded": _LARGER_MODEL,
    "student t tied, shared dof, expanded": _LARGER_MODEL,
    "factor analysis": _GAUSSIAN_LATENT,
    "factor analysis, expanded": _EXPANDED,
    "factor analysis, holes": _GAUSSIAN_LATENT,
    "factor analysis, expanded, holes, chunked": _EXPANDED,
    "factor analysis, frozen": _GAUSSIAN_LATENT,
    "ppca": _GAUSSIAN_LATENT,
    "ppca, expanded": _EXPANDED,
    "ppca, holes": _GAUSSIAN_LATENT,
    "mixture, ppca, expanded, shared noise, holes": {"stationary": _EXPANDED["stationary"]},
    "input-output HMM": _CHAIN,
    "hidden Markov model, gaussian": _CHAIN,
    "hidden Markov model, poisson, missing cells": _CHAIN,
    "hidden Markov model, left to right, missing steps": _CHAIN,
    "with prior, chunked, hidden Markov model": _CHAIN,
    "frozen transitions": _CHAIN,
    "hard mixture": _HARD,
    "log joint, chain": _CHAIN | {"sample": "it was given no sampler"},
    "hard hidden Markov model": _HARD,
    "annealed mixture": _ANNEALED,
    "hidden Markov model of mixtures": _CHAIN,
}

# What follows from how a model is built, not from its formulas, is asked of two of each kind: that a lane is as a fit
# alone, that new values do not trace again, that the compiled E-step is the eager one.
_KIND = dict.fromkeys(("lanes", "retrace", "jit"), "asked of two rows of its kind")
_OF_A_KIND = (
    "log joint, poissons",
    "log joint, closed form, chunked",
    "log joint, quadrature",
    "log joint, chain",
    "gradient m-step, with log-prior",
    "mixture, gaussian full, missing",
    "mixture, poisson",
    "mixture, categorical, cells missing",
    "mixture, linear regression",
    "mixture, multinomial regression",
    "mixture, zero-inflated poisson",
    "mixture, product, cells missing",
    "mixture, student t",
    "mixture, factor analyzers",
    "with prior, poisson",
    "with prior, student t",
    "chunked, with prior, frozen",
    "frozen weights and one rate",
    "experts, linear regression",
    "experts, with prior, frozen",
    "factor analysis",
    "ppca",
    "mixture of mixtures",
    "input-output HMM",
    "hidden Markov model, gaussian",
    "hidden Markov model, poisson, missing cells",
    "hard mixture",
    "hard hidden Markov model",
    "conditional maximizations",
    "annealed mixture",
)
# Rows that vary another one in what the E-step and the M-step compute; what they share with it is seen there.
_SHARED = dict.fromkeys(("sample", "coordinates"), "as in the row that it varies")
_VARIES = (
    "missing",
    "holes",
    "many patterns",
    "D = 5",
    "on the circle",
    "tied",
    "expanded",
    "one component",
    "chunked",
)
_STRUCTURES = tuple(f"gaussian {letters}" for letters in ("EII", "EEI", "VEI", "EVI", "VEE", "VVE", "EEV", "EVV"))
for _name, (_, _data) in MODELS.items():
    if getattr(_data, "mask", None) is None:
        LEFT_OUT[_name] = LEFT_OUT.get(_name, {}) | {"masked": "nothing is masked"}
    if _name not in _OF_A_KIND:
        LEFT_OUT[_name] = LEFT_OUT.get(_name, {}) | _KIND
        if any(mark in _name for mark in (*_VARIES, *_STRUCTURES)):
            LEFT_OUT[_name] = LEFT_OUT[_name] | _SHARED


# Laws of a family that a row leaves out: only families of scales have the first, and where the host refuses what pure code
# takes (of a row that is no direction its direction) the last.
_FAMILIES_OF_SCALES = (
    "gaussian",
    "student t",
    "exponential",
    "gamma",
    "lognormal",
    "inverse gaussian",
    "linear regression",
    "factor analyzers",
)
FAMILY_LEFT_OUT = {name: ["scale"] for name in FAMILIES if not name.startswith(_FAMILIES_OF_SCALES)}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name):
    family, data = FAMILIES[name]
    check_family(family, data, key=jax.random.key(1), skip=FAMILY_LEFT_OUT.get(name, ()))


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    model, data = MODELS[name]
    left_out = LEFT_OUT.get(name, {})
    outcome = check_model(model, data, key=jax.random.key(0), skip=left_out)
    assert set(outcome) == set(LAWS)
    assert {law for law, said in outcome.items() if said != "passed"} == set(left_out)


def test_rows_of_a_kind_exist():
    assert set(_OF_A_KIND) <= set(MODELS)


def test_unknown_law_is_named():
    with pytest.raises(ValueError, match="monotony"):
        check_model(_mixture("poisson"), COUNTS, key=jax.random.key(0), skip=["monotony"])


class TestAffine:
    """Law 10: a Gaussian mixture of a·x + b is the mixture of x with moved parameters."""

    @pytest.mark.parametrize("name", ["gaussian full", "gaussian tied", "gaussian diagonal"])
    def test_scale_and_shift_per_feature(self, name):
        scale, shift = np.array([1e-3, 1.0, 500.0]), np.array([10.0, -3.0, 1e4])
        with jax.enable_x64(True):
            plain, moved = (
                jaxem.fit(_mixture(name), x, key=jax.random.key(3), num_starts=4, tol=1e-9)
                for x in (POINTS, POINTS * scale + shift)
            )
        expected = plain.log_likelihood - len(POINTS) * np.sum(np.log(scale))
        assert moved.log_likelihood == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(
            moved.params.likelihood.mean, plain.params.likelihood.mean * scale + shift, rtol=1e-6
        )
        assert moved.steps == plain.steps

    def test_one_scale_and_shifts(self):
        with jax.enable_x64(True):
            plain, moved = (
                jaxem.fit(_mixture("gaussian spherical"), x, key=jax.random.key(3), num_starts=4, tol=1e-9)
                for x in (POINTS, POINTS * 1e-4 + np.array([10.0, -3.0, 1.0]))
            )
        expected = plain.log_likelihood - POINTS.size * np.log(1e-4)
        assert moved.log_likelihood == pytest.approx(expected, rel=1e-9)
