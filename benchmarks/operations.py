"""How large the programs of a model are: StableHLO operations of its E-step, M-step, start, whole run and gradient.

A person waits for the compiler before any number comes, and the compiler's time grows with the operations it is given.
Everything here is traced and lowered, nothing is compiled or run: the counts are exact and the same on every machine.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

# Of a line of a module: the operation that it applies. Functions of the module (`func.func`) are not operations.
_OPERATION = re.compile(r"(?:^|\s|\")((?:stablehlo|chlo)\.[a-z_0-9]+)")
_CONTROL = jaxem.Control(jaxem.ParameterChange(1e-5), max_steps=100)


def kinds_of_operations(text: str) -> collections.Counter[str]:
    """How often each operation stands in the text of a lowered module.

    Args:
        text: what ``jax.jit(f).lower(...).as_text()`` returns.

    Returns:
        Name of the operation, "stablehlo.add" say, to how many there are. Operations inside loops and branches count
        once, as the compiler meets them once; the values that a body returns are none.

    Example:
        >>> kinds_of_operations(jax.jit(jnp.sin).lower(1.0).as_text())
        Counter({'stablehlo.sine': 1})
    """
    found = (_OPERATION.search(line) for line in text.splitlines())
    return collections.Counter(match[1] for match in found if match and match[1] != "stablehlo.return")


def count_operations(function: Callable[..., Any], *arguments: Any) -> int:
    """The number of StableHLO operations of a function, for arguments of these shapes.

    Args:
        function: what is compiled; pure, of pytrees of arrays.
        arguments: arrays, or `jax.ShapeDtypeStruct` in their place.

    Returns:
        The sum of `kinds_of_operations`.

    Example:
        >>> count_operations(lambda a: jnp.sin(a) + a, 1.0)
        2
    """
    return sum(kinds_of_operations(jax.jit(function).lower(*arguments).as_text()).values())


class Case(NamedTuple):
    """A model and data of the shapes that it is counted for. gradient: whether the gradient of a run is counted too."""

    model: Any
    data: Any
    gradient: bool = False


def _rows(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def _missing(n: int, d: int) -> jaxem.Data:
    x, mask = _rows(n, d), np.random.default_rng(1).random((n, d)) > 0.2
    return jaxem.Data(np.where(mask, x, np.nan).astype(np.float32), mask=mask)


def _two_normals(params, x, z):
    return jnp.log(params["weights"][z]) + jax.scipy.stats.norm.logpdf(x[0], params["mean"][z], params["scale"][z])


def two_normals() -> jaxem.LogJoint:
    """A mixture of two normal distributions, from its log joint alone."""
    return jaxem.LogJoint(
        _two_normals,
        latent=jaxem.Discrete(2),
        init=lambda key: {"weights": jnp.full(2, 0.5), "mean": jax.random.normal(key, (2,)), "scale": jnp.ones(2)},
        constraints={"weights": "simplex", "scale": "positive"},
    )


def _directions(n: int, d: int) -> np.ndarray:
    x = _rows(n, d)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cases() -> dict[str, Case]:
    """A dozen models, by name."""
    full, rng = jaxem.Gaussian(jaxem.Full()), np.random.default_rng(0)
    counts = rng.poisson(20, (107, 1)).astype(np.float32)
    answers = rng.integers(0, 2, (216, 4)).astype(np.float32)
    return {
        "gmm_full_4": Case(jaxem.Mixture(full, 3), _rows(150, 4), gradient=True),
        "gmm_full_120": Case(jaxem.Mixture(full, 3), _rows(300, 120)),
        "gmm_diagonal": Case(jaxem.Mixture(jaxem.Gaussian(jaxem.Diagonal()), 3), _rows(150, 4)),
        "gmm_vev": Case(jaxem.Mixture(jaxem.Gaussian(jaxem.EigenDecomposed("VEV")), 3), _rows(150, 4)),
        "student_t": Case(jaxem.Mixture(jaxem.StudentT(), 3), _rows(150, 4)),
        "von_mises_fisher": Case(jaxem.Mixture(jaxem.VonMisesFisher(), 3), _directions(150, 4)),
        "missing_cells": Case(jaxem.Mixture(full, 3), _missing(150, 4)),
        "poisson_hmm": Case(jaxem.HMM(jaxem.Poisson(), 3), counts[None]),
        "gaussian_hmm": Case(jaxem.HMM(full, 3), _rows(272, 2)[None]),
        "factor_analysis": Case(jaxem.FactorAnalysis(2), _rows(150, 4)),
        "latent_classes": Case(jaxem.Mixture(jaxem.Bernoulli(), 2), answers),
        "log_joint": Case(two_normals(), _rows(272, 1)),
    }


def count_parts(case: Case) -> dict[str, int]:
    """Operations of the parts of a fit: what they are given has the shapes that the loop of a fit gives them."""
    key = jax.random.key(0)
    raw = jaxem.model.as_data(case.data)
    model = case.model.specialize(raw)
    counts = {"start": count_operations(lambda key, raw: model.calibrate(raw).init(key, raw), key, raw)}
    model, data, params = jax.eval_shape(
        lambda key, raw: ((own := model.calibrate(raw)), own.compress(raw)[0], own.init(key, raw)), key, raw
    )
    stats = jax.eval_shape(lambda m, p, d: m.e_step(p, d).stats, model, params, data)

    def fitted(model, params, data):
        return jaxem.run(model, params, data, control=_CONTROL)

    counts["e_step"] = count_operations(lambda m, p, d: m.e_step(p, d), model, params, data)
    counts["m_step"] = count_operations(lambda m, p, s: m.m_step(p, s), model, params, stats)
    counts["run"] = count_operations(fitted, model, params, data)
    if case.gradient:
        counts["gradient"] = count_operations(_gradient(fitted), model, params, data)
    return counts


def _gradient(fitted: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient with respect to the data of what a fit learns."""

    def loss(data, model, params):
        leaves = jax.tree.leaves(fitted(model, params, data).params)
        return sum(jnp.sum(leaf) for leaf in leaves)

    return lambda model, params, data: jax.grad(loss)(data, model, params)


def versions() -> dict[str, str]:
    return {"jaxem": jaxem.__version__, "jax": jax.__version__}


def count_all(arrays, options):
    """For `benchmarks.worker`: the counts of all models, with those of gradients or without."""

    def run():
        chosen = {
            name: case._replace(gradient=case.gradient and options["gradients"]) for name, case in cases().items()
        }
        return {"counts": {name: count_parts(case) for name, case in chosen.items()}}

    return {}, run
