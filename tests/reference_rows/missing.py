"""A normal distribution of rows with missing cells, against R's norm and mvnmle."""

import numpy as np
from data.cases import fit_of, table

import jaxem
from reference_rows import Row

AIR = table("airquality.csv", "Ozone", "Solar.R", "Wind", "Temp")


def _start():
    """Observed means, and the diagonal of observed variances."""
    covariance = np.diag(np.nanvar(AIR, axis=0))[None]
    return jaxem.LatentParams(
        jaxem.CategoricalParams(np.ones(1)), jaxem.GaussianParams(np.nanmean(AIR, axis=0)[None], covariance)
    )


def _air():
    given = fit_of("mvn-missing-airquality", "normal")
    trace = given["em_trace"]["first_logliks"]

    def compare(result):
        mean, covariance = result.params.likelihood.mean[0], result.params.likelihood.covariance[0]
        return {
            "mean": (mean, given["params"]["mean"], None),
            "covariance": (covariance, given["params"]["covariance"], None),
            "trace": (result.trace[: len(trace)], trace, 1e-8),
            "parameters": (result.num_free_parameters, given["n_params"], 0),
            "bic": (result.bic, given["bic"], 1e-6),
        }

    return Row(
        "mvn-missing-airquality",
        "normal",
        jaxem.Mixture(jaxem.Gaussian(jaxem.Full()), 1),
        jaxem.Data(x=AIR, mask=~np.isnan(AIR)),
        start=_start(),
        compare=compare,
        options={"trace_size": len(trace)},
    )


ROWS = [_air()]
