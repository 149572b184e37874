"""Factor analysis and probabilistic PCA against R's factanal and the closed form."""

import numpy as np
from data.cases import case, fit_of, table

import jaxem
from reference_rows import Row

ABILITY = table("ability_rows.csv", "general", "picture", "blocks", "maze", "reading", "vocab")
ARRESTS = table("usarrests.csv", "Murder", "Assault", "UrbanPop", "Rape")


def _implied(params):
    noise = np.broadcast_to(params.noise, params.mean.shape)
    return params.loadings @ params.loadings.T + np.diag(noise)


def _ability(identifier):
    given = fit_of("fa-factanal-ability", identifier)
    tolerance = case("fa-factanal-ability")["tolerance"]

    def compare(result):
        uniqueness = 1 - np.asarray(jaxem.rotation.communalities(result.params))
        spread = np.sqrt(np.diag(_implied(result.params)))
        return {
            "uniquenesses": (
                uniqueness,
                given["params"]["uniquenesses_standardised"],
                tolerance["uniquenesses_abs"],
            ),
            "correlation": (
                _implied(result.params) / np.outer(spread, spread),
                given["params"]["implied_correlation"],
                tolerance["implied_correlation_abs"],
            ),
            "parameters": (result.num_free_parameters, given["n_params_with_mean"], 0),
            "bic": (result.bic, given["bic"], 1e-3),
        }

    model = jaxem.FactorAnalysis(given["n_factors"])
    # The second factor's likelihood is flat: EM creeps, and the share of variance left is 0.05.
    return Row("fa-factanal-ability", identifier, model, ABILITY, compare=compare, options={"tol": 1e-13})


def _arrests(identifier):
    given = fit_of("ppca-usarrests", identifier)
    tolerance = case("ppca-usarrests")["tolerance"]["sigma2_rel"]

    def compare(result):
        noise, covariance = given["params"]["sigma2"], np.array(given["params"]["implied_covariance"])
        closed = result.model.closed_form(ARRESTS)
        return {
            "noise": (result.params.noise, noise, tolerance * noise),
            "noise, closed form": (closed.noise, noise, 1e-9 * noise),
            "covariance": (_implied(result.params), covariance, tolerance * covariance.max()),
            "covariance, closed form": (_implied(closed), covariance, 1e-9 * covariance.max()),
            "mean": (result.params.mean, given["params"]["mean"], 1e-9),
            "parameters": (result.num_free_parameters, given["n_params_with_mean"], 0),
        }

    model = jaxem.PPCA(given["n_factors"])
    return Row("ppca-usarrests", identifier, model, ARRESTS, compare=compare, options={"tol": 1e-14})


ROWS = [_ability("k1"), _ability("k2"), _arrests("q1"), _arrests("q2")]
