"""Student t components against MASS, EMMIXskew, teigen and sn."""

import numpy as np
import scipy.special
import scipy.stats
from data.cases import case, faithful, fit_of, table

import jaxem
from reference_rows import Row

STACKLOSS = table("stackloss.csv", "Air.Flow", "Water.Temp", "Acid.Conc.", "stack.loss")


def _stackloss(identifier):
    given = fit_of("t-multivariate-stackloss", identifier)
    dof = given.get("nu_fixed")

    def compare(result):
        likelihood = result.params.likelihood
        return {
            "mean": (likelihood.mean[0], given["params"]["mean"], None),
            "scatter": (likelihood.scatter[0], given["params"]["scatter"], None),
            "parameters": (result.num_free_parameters, given["n_params"], 0),
        }

    model = jaxem.Mixture(jaxem.StudentT(dof=None if dof is None else float(dof)), 1)
    return Row("t-multivariate-stackloss", identifier, model, STACKLOSS, num_starts=1, compare=compare)


def _log_likelihood_of(params):
    """scipy's, at the file's parameters; no degrees of freedom are infinitely many."""
    laws = [
        scipy.stats.multivariate_normal(mean, scatter)
        if dof is None
        else scipy.stats.multivariate_t(mean, scatter, df=dof)
        for mean, scatter, dof in zip(params["means"], params["scatters"], params["nu"], strict=True)
    ]
    terms = np.log(params["weights"]) + np.stack([law.logpdf(faithful()) for law in laws], axis=1)
    return np.sum(scipy.special.logsumexp(terms, axis=1))


def _faithful(identifier, dof):
    given = fit_of("t-mixture-faithful", identifier)

    def compare(result):
        params = result.model.take_components(result.params, np.argsort(result.params.likelihood.mean[:, 0]))
        found = {
            "weights": (params.latent.weights, given["params"]["weights"], None),
            "means": (params.likelihood.mean, given["params"]["means"], None),
            "scatters": (params.likelihood.scatter, given["params"]["scatters"], None),
            "parameters": (result.num_free_parameters, given["n_params"], 0),
        }
        if "posterior_rows" in given:
            rows = given["posterior_rows"]
            posterior = result.model.posterior(params, faithful())[np.array(rows["rows"])]
            found["posterior"] = (posterior, rows["values"], 1e-4)
        return found

    model = jaxem.Mixture(jaxem.StudentT(dof=dof), 2)
    # The file's own is 0.023 above that of its parameters: log Γ at degrees of freedom too many for double precision.
    loglik = _log_likelihood_of(given["params"]) if dof is None else None
    return Row("t-mixture-faithful", identifier, model, faithful(), num_starts=4, loglik=loglik, compare=compare)


ROWS = [
    *(_stackloss(fit["id"]) for fit in case("t-multivariate-stackloss")["fits"]),
    _faithful("free-2", None),
    _faithful("nu5-2", 5.0),
]
