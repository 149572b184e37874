"""Mixtures of regressions: NPreg of flexmix, Cohen's tones.

flexmix's Gaussian variance is not the maximum-likelihood one: those rows are held to the direct maximum of the file.
"""

import jax.numpy as jnp
import numpy as np
from data.cases import fit_of, table

import jaxem

from . import Row

NPREG = table("npreg.csv", "x", "yn", "yp")
TONES = table("tonedata.csv", "stretchratio", "tuned")
LINEAR = jaxem.LinearRegression()


def _on(x, y, degree=1):
    return jaxem.Data(x=y[:, None], inputs=np.stack([x**d for d in range(1, degree + 1)], axis=-1))


def _direct(file, fit):
    return fit_of(file, fit)["direct_maximum"]


def _compare(expected):
    """Coefficients, weights and standard deviations, components by rising intercept."""

    def compare(result):
        regression = result.params.likelihood
        order = np.argsort(regression.coefficients[:, 0, 0])
        pairs = {
            "weights": (result.params.latent.weights[order], expected["weights"], None),
            "coefficients": (
                regression.coefficients[order, 0],
                expected.get("beta", expected.get("free")),
                None,
            ),
        }
        if "sigma" in expected:
            pairs["sigma"] = (jnp.sqrt(regression.variance[order, 0]), expected["sigma"], None)
        return pairs

    return compare


def _row(file, fit, family, data, **options):
    direct = _direct(file, fit)
    model = jaxem.Mixture(family, len(direct["params"]["weights"]))
    options = {"num_starts": 32, "loglik": direct["loglik"], "compare": _compare(direct["params"]), **options}
    return Row(file, fit, model, data, **options)


def _published(file, fit):
    params = _direct(file, fit)["params"]
    return jaxem.LatentParams(
        jaxem.CategoricalParams(jnp.array(params["weights"])),
        jaxem.LinearRegressionParams(jnp.array(params["beta"])[:, None], jnp.array(params["sigma"])[:, None] ** 2),
    )


_QUADRATIC = _on(NPREG[:, 0], NPREG[:, 1], degree=2)
_TONE = _on(TONES[:, 0], TONES[:, 1])

ROWS = [
    _row("reg-flexmix-npreg", "yn-quadratic-k2", LINEAR, _QUADRATIC),
    _row("reg-flexmix-npreg", "yn-linear-k2", LINEAR, _on(NPREG[:, 0], NPREG[:, 1])),
    _row("reg-flexmix-npreg", "yp-poisson-k2", jaxem.PoissonRegression(), _on(NPREG[:, 0], NPREG[:, 2])),
    # Random starts find a higher local maximum, with a third line through a few points.
    _row(
        "reg-flexmix-npreg",
        "yn-quadratic-k3",
        LINEAR,
        _QUADRATIC,
        start=_published("reg-flexmix-npreg", "yn-quadratic-k3"),
    ),
    _row("reg-tonedata", "k2", LINEAR, _TONE),
    _row("reg-tonedata", "k3", LINEAR, _TONE),
    # Another local maximum than flexmix's.
    _row("reg-tonedata", "k2-mixtools", LINEAR, _TONE, start=_published("reg-tonedata", "k2-mixtools")),
]

LATER = {
    ("reg-flexmix-npreg", "yn-yp-k2"): "a product of regressions of different inputs",
}
