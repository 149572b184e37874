"""Factor analysis, probabilistic PCA and mixtures of factor analyzers against factanal, the closed form and EMMIXmfa."""

import numpy as np
from data.cases import case, fit_of, iris, table

import jaxem
from jaxem.families import OfModel
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


def _iris(given):
    """EMMIXmfa's best of twenty starts, or better: some of its fits are on the way to a noise variance of 0."""

    def compare(result):
        compared = {"parameters": (result.num_free_parameters, given["n_params"], 0)}
        if given["direct_maximum"]["minus_peer"] > 1e-5 or result.log_likelihood > given["loglik"] + 1e-3:
            return compared
        order = np.argsort(result.params.likelihood.mean[:, 0])
        members = [result.model.likelihood.take_components(result.params.likelihood, [k]) for k in order]
        covariances = [m.loadings[0] @ m.loadings[0].T + np.diag(m.noise[0]) for m in members]
        return compared | {
            "weights": (result.params.latent.weights[order], given["params"]["weights"], 1e-3),
            "means": ([m.mean[0] for m in members], given["params"]["means"], 1e-3),
            "covariances": (covariances, given["params"]["covariances"], 1e-3),
        }

    # Near the boundary EM creeps: what is close is close enough, and boundary solutions are not put behind.
    analyzer = jaxem.FactorAnalysis(given["n_factors"], least_uniqueness=0.0)
    shared = ["noise"] if given["noise"] == "common" else []
    model = jaxem.Mixture(OfModel(analyzer, shared), given["n_components"])
    options = {"tol": 1e-9, "max_steps": 3000, "on_failure": "ignore"}
    return Row("mfa-iris", given["id"], model, iris(), bound=True, compare=compare, options=options)


ROWS = [_ability("k1"), _ability("k2"), _arrests("q1"), _arrests("q2"), *map(_iris, case("mfa-iris")["fits"])]
