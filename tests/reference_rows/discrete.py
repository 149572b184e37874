"""Latent classes of categorical items, mixtures of binomial counts, and zero-inflated ones."""

import numpy as np
from data.cases import fit_of, table

import jaxem

from . import Row

VALUES = table("values.csv", "A", "B", "C", "D") - 1
CHEATING = table("cheating.csv", "LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM") - 1
BOYS, NUMBER = np.split(table("saxony.csv", "males", "families"), 2, axis=1)

# EM's error shrinks by 0.2 % a step: a gain that looks like nothing is followed by ten thousand more.
SLOW = {"tol": 1e-14}


def falling(result):
    """The parameters with the largest class first, as the files list them."""
    order = np.argsort(-np.asarray(result.params.latent.weights))
    return result.model.take_components(result.params, order)


def classes(file, k, x):
    published = fit_of(file, f"k{k}")

    def compare(result):
        params, tolerance = falling(result), 0.005
        items = np.stack([published["params"]["item_probabilities"][name] for name in names], axis=1)
        criteria = {
            "parameters": (result.num_free_parameters, published["n_params"], 0),
            "bic": (result.bic, published["bic"], 1e-3),
        }
        if k > 2:  # three classes of four binary items are not identified: many parameters have this likelihood
            return criteria
        return criteria | {
            "shares": (params.latent.weights, published["params"]["class_shares"], tolerance),
            "items": (params.likelihood.prob, items, tolerance),
        }

    names = list(published["params"]["item_probabilities"])
    return Row(file, f"k{k}", jaxem.Mixture(jaxem.Categorical(2), k), x, compare=compare, options=SLOW)


def boys(k):
    published = fit_of("binomial-mixture-saxony", f"K{k}")

    def compare(result):
        order = np.argsort(np.asarray(result.params.likelihood.prob)[:, 0])
        params = result.model.take_components(result.params, order)
        return {
            "weights": (params.latent.weights, published["params"]["weights"], None),
            "prob": (params.likelihood.prob[:, 0], published["params"]["values"], None),
            "bic": (result.bic, published["bic"], 1e-2),
        }

    given = published.get("em_trace", {"start": {"weights": [1.0], "values": [0.5]}})["start"]
    start = jaxem.LatentParams(
        jaxem.CategoricalParams(np.array(given["weights"])), jaxem.BinomialParams(np.array(given["values"])[:, None])
    )
    model = jaxem.Mixture(jaxem.Binomial(12), k)
    return Row("binomial-mixture-saxony", f"K{k}", model, BOYS, NUMBER[:, 0], start, compare=compare, options=SLOW)


def articles():
    published = fit_of("zip-biochemists", "zip-intercepts")
    log_rate, log_odds = published["params"].values()

    def compare(result):
        likelihood = result.params.likelihood
        return {
            "log rate": (np.log(likelihood.family.rate[0, 0]), log_rate, 1e-3),
            "log odds": (np.log(likelihood.inflation[0, 0] / (1 - likelihood.inflation[0, 0])), log_odds, 1e-3),
            "parameters": (result.num_free_parameters, published["n_params"], 0),
            "bic": (result.bic, published["bic"], 1e-2),
        }

    model = jaxem.Mixture(jaxem.ZeroInflated(jaxem.Poisson()), 1)
    x = table("biochemists.csv", "art")
    return Row("zip-biochemists", "zip-intercepts", model, x, num_starts=1, compare=compare, options=SLOW)


ROWS = [
    *(classes("lca-values", k, VALUES) for k in (1, 2, 3)),
    classes("lca-cheating", 2, CHEATING),
    *(boys(k) for k in (1, 2, 3)),
    articles(),
]
