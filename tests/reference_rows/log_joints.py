"""Models written down as log joints alone: item response, mixed models, Dawid & Skene, chains begun in equilibrium."""

import jax
import jax.numpy as jnp
import numpy as np
from data.cases import fit_of, table
from jax.scipy.stats import norm, poisson

import jaxem

from . import Row

ACCELERATED = {"algorithm": jaxem.Anderson(), "tol": 1e-11}


# Item response (LSAT 6): logit P(x_j = 1 | z) = a_j (z − b_j), ability z ~ N(0, 1).

ANSWERS, TIMES = np.unique(table("lsat6.csv", "Q1", "Q2", "Q3", "Q4", "Q5"), axis=0, return_counts=True)


def item_response(identifier, start):
    def log_joint(params, x, z):
        eta = params.get("a", 1.0) * (z - params["b"])
        return jnp.sum(x * eta - jax.nn.softplus(eta)) + norm.logpdf(z)

    def compare(result):
        difficulty, discrimination = np.array(fit_of("irt-lsat6", identifier)["params"]["by_item"]).T
        ours = result.params.get("a", 1.0) * np.ones(5)
        return {"b": (result.params["b"], difficulty, None), "a": (ours, discrimination, None)}

    model = jaxem.LogJoint(log_joint, jaxem.GaussianLatent(), lambda key: start)
    return Row("irt-lsat6", identifier, model, ANSWERS, TIMES, num_starts=1, compare=compare, options=ACCELERATED)


# Linear mixed models (sleepstudy): one example is one subject, z its random effects in units of their own spread.

REACTION, DAYS, SUBJECT = table("sleepstudy.csv", "reaction", "days", "subject").T
SUBJECTS = {"reaction": REACTION.reshape(18, 10), "days": DAYS.reshape(18, 10)}


def mixed_model(identifier, covariance, constraint):
    """``covariance``: the start of D, as a vector of variances or a matrix; one effect is the intercept."""
    effects = covariance.shape[0]

    def log_joint(params, x, z):
        spread = params["D"]
        root = jnp.linalg.cholesky(spread) if spread.ndim == 2 else jnp.diag(jnp.sqrt(spread))
        design = jnp.stack([jnp.ones(10), x["days"]], axis=-1)
        fitted = design @ params["fixed"] + design[:, :effects] @ (root @ z)
        return jnp.sum(norm.logpdf(x["reaction"], fitted, params["sd"])) + jnp.sum(norm.logpdf(z))

    def compare(result):
        published = fit_of("lmm-sleepstudy", identifier)["params"]
        parts = published["random_covariance"]
        spread = np.concatenate([np.ravel(part) for part in parts.values()])
        return {
            "fixed": (result.params["fixed"], list(published["fixed"].values()), None),
            "residual": (result.params["sd"] ** 2, published["residual_variance"], None),
            "random": (np.ravel(result.params["D"]), spread, None),
        }

    # Given x, z is Gaussian: three nodes are exact.
    latent = jaxem.GaussianLatent(effects, jaxem.Quadrature(3))
    start = {"fixed": jnp.array([250.0, 10.0]), "sd": jnp.array(30.0), "D": jnp.asarray(covariance)}
    model = jaxem.LogJoint(log_joint, latent, lambda key: start, constraints={"sd": "positive", "D": constraint})
    return Row("lmm-sleepstudy", identifier, model, SUBJECTS, num_starts=1, compare=compare, options=ACCELERATED)


# Dawid & Skene: the true class of an item, and five raters' error rates; one example is one item's counts of answers.


def dawid_skene():
    item, rater, rating = (table("anesthesia.csv", "item", "rater", "rating").astype(int) - 1).T
    counts = np.zeros((45, 5, 4))
    np.add.at(counts, (item, rater, rating), 1.0)
    shares = counts.sum(1) / counts.sum((1, 2))[:, None]
    totals = np.einsum("nj,nkl->kjl", shares, counts)

    def log_joint(params, x, z):
        log_rates = jnp.log(params["rates"][:, z])
        return jnp.log(params["shares"][z]) + jnp.sum(jnp.where(x > 0, x * log_rates, 0))

    def m_step(params, expect):
        sums = expect(lambda x, z: {"n": jax.nn.one_hot(z, 4), "x": jax.nn.one_hot(z, 4)[:, None, None] * x})
        rates = jnp.swapaxes(sums["x"], 0, 1)
        return {"shares": sums["n"] / jnp.sum(sums["n"]), "rates": rates / jnp.sum(rates, axis=-1, keepdims=True)}

    def compare(result):
        published = fit_of("dawid-skene-anesthetists", "from-answers")["params"]
        return {
            "shares": (result.params["shares"], published["class_shares"], 1e-3),
            "rates": (result.params["rates"], published["error_rates"], 1e-3),
        }

    constraints = {"shares": "simplex", "rates": "simplex"}
    model = jaxem.LogJoint(log_joint, jaxem.Discrete(4), constraints=constraints, m_step=m_step)
    start = {"shares": shares.mean(0), "rates": totals / totals.sum(-1, keepdims=True)}
    return Row("dawid-skene-anesthetists", "from-answers", model, counts, start=start, compare=compare)


# A chain that begins in the stationary distribution of its own transitions: that M-step has no closed form.

EARTHQUAKES = table("earthquakes.csv", "count")


def stationary(transition):
    k = transition.shape[0]
    return jnp.linalg.solve(jnp.eye(k) - transition.T + 1.0, jnp.ones(k))


def equilibrium(k):
    identifier = f"K{k}-stationary"

    def compare(result):
        order = np.argsort(result.params["rate"])
        published = fit_of("hmm-poisson-earthquakes", identifier)["params"]
        return {
            "rates": (np.asarray(result.params["rate"])[order], published["rates"], None),
            "transitions": (np.asarray(result.params["transition"])[np.ix_(order, order)], published["transmat"], 2e-3),
        }

    chain = jaxem.ChainLogJoint(
        initial=lambda params, z: jnp.log(stationary(params["transition"])[z]),
        transition=lambda params, z, z_next: jnp.log(params["transition"][z, z_next]),
        emission=lambda params, x, z: poisson.logpmf(x[0], params["rate"][z]),
    )
    constraints = {"transition": "simplex", "rate": "positive"}
    model = jaxem.LogJoint(chain, jaxem.Chain(k), constraints=constraints)
    start = {"transition": np.full((k, k), 0.1) + (1 - 0.1 * k) * np.eye(k), "rate": np.linspace(12.0, 30.0, k)}
    return Row("hmm-poisson-earthquakes", identifier, model, EARTHQUAKES, start=start, compare=compare)


ROWS = [
    item_response("rasch-1", {"b": jnp.zeros(5)}),
    item_response("rasch-free-discrimination", {"a": jnp.array(1.0), "b": jnp.zeros(5)}),
    item_response("2pl", {"a": jnp.ones(5), "b": jnp.zeros(5)}),
    mixed_model("intercept-and-slope", np.diag([400.0, 20.0]), "positive definite"),
    mixed_model("intercept", np.array([400.0]), "positive"),
    mixed_model("uncorrelated", np.array([400.0, 20.0]), "positive"),
    dawid_skene(),
    equilibrium(2),
    equilibrium(3),
]
