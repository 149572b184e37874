"""Components whose probability depends on inputs: latent class regression, zero-inflated counts."""

import numpy as np
from data.cases import fit_of, table

import jaxem
from jaxem import Data

from . import Row

ITEMS = ("LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM")
_CHEATING = table("cheating.csv", *ITEMS, "GPA")
CHEATING = _CHEATING[~np.isnan(_CHEATING[:, -1])]
ARTICLES = table("biochemists.csv", "art", "fem", "mar", "kid5", "phd", "ment")
COUNTS, COVARIATES = ARTICLES[:, :1], ARTICLES[:, 1:]


def _grade_average():
    published = fit_of("lca-cheating", "k2-GPA")

    def compare(result):
        order = np.argsort(-np.asarray(result.model.posterior(result.params, data)).mean(0))
        params = result.model.take_components(result.params, order)
        items = np.stack([published["params"]["item_probabilities"][name] for name in ITEMS], axis=1)
        # poLCA's reference is the first class, ours the last.
        coefficients = -np.ravel(published["coefficients"]["matrix_first_class_of_poLCA_is_base"])
        return {
            "items": (params.likelihood.prob, items, 0.005),
            "gate": (params.latent.gate[0], coefficients, 0.01),
            "parameters": (result.num_free_parameters, published["n_params"], 0),
            "bic": (result.bic, published["bic"], 1e-2),
        }

    data = Data(x=CHEATING[:, :4] - 1, inputs=CHEATING[:, 4:])
    model = jaxem.MixtureOfExperts(jaxem.Categorical(2), 2)
    return Row("lca-cheating", "k2-GPA", model, data, compare=compare, options={"tol": 1e-13})


# A zero-inflated Poisson is a mixture with a component held at the rate e^-40.

_NOTHING = -40.0


def _coefficients(rows):
    counts = np.zeros((2, 1, rows))
    counts[1, 0, 0] = _NOTHING
    return jaxem.RegressionParams(counts)


def _estimates(part, names):
    return lambda fit: [fit["params"][f"{part}_{name}"] for name in names]


_NAMES = ("(Intercept)", "fem", "mar", "kid5", "phd", "ment")


def _zero_inflated(identifier, model, data, start, zero):
    """zero: the log odds of the point mass, from the fitted latent."""
    fit = fit_of("zip-biochemists", identifier)
    zeros = _NAMES if f"zero_{_NAMES[-1]}" in fit["params"] else _NAMES[:1]

    def compare(result):
        counts = result.params.likelihood.coefficients[0, 0]
        return {
            "counts": (counts, _estimates("count", _NAMES)(fit), 1e-3),
            "zeros": (zero(result.params.latent), _estimates("zero", zeros)(fit), 1e-3),
        }

    # The component held at zero is as far as coefficients go, and is reported so.
    options = {"on_failure": "ignore", "tol": 1e-12}
    return Row("zip-biochemists", identifier, model, data, start=start, compare=compare, options=options)


def _odds(latent):
    return np.log(latent.weights[1:] / latent.weights[0])


_REGRESSION = jaxem.PoissonRegression()
_EVEN = jaxem.CategoricalParams(np.array([0.7, 0.3]))
_HELD = [False, True]

ROWS = [
    _grade_average(),
    _zero_inflated(
        "zip-count-covariates",
        jaxem.Frozen(jaxem.Mixture(_REGRESSION, 2), {"coefficients": _HELD}),
        Data(x=COUNTS, inputs=COVARIATES),
        jaxem.LatentParams(_EVEN, _coefficients(6)),
        _odds,
    ),
    _zero_inflated(
        "zip-both",
        jaxem.Frozen(jaxem.MixtureOfExperts(_REGRESSION, 2), {"coefficients": _HELD}),
        Data(x=COUNTS, inputs=COVARIATES),
        jaxem.LatentParams(jaxem.GatedParams(np.zeros((2, 6))), _coefficients(6)),
        lambda latent: -latent.gate[0],
    ),
]

LATER = {("zip-biochemists", "zinb-both"): "a regression of negative binomial counts"}
