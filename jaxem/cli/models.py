"""The models the command offers: one row of a table for each, with the options of its own."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jaxem
from jaxem.cli.console import CommandError
from jaxem.families import Covariance
from jaxem.families.eigen_covariance import STRUCTURES
from jaxem.model import Family, Model
from jaxem.tables import Values

if TYPE_CHECKING:
    from jaxem.cli.inputs import Input

Options = argparse.Namespace

DEFAULT = "gaussian-mixture"
COVARIANCES = {
    "full": jaxem.Full(),
    "diagonal": jaxem.Diagonal(),
    "spherical": jaxem.Spherical(),
    "tied": jaxem.Tied(),
    **STRUCTURES,
}

# More rows than this are fitted block by block: the responsibilities of all starts would fill the memory.
_CHUNKED_ROWS = 200_000
# The options that only some models have, as `argparse` names them.
_OWN = (
    "covariance",
    "prior",
    "noise",
    "counts",
    "categories",
    "gate",
    "factors",
    "missing",
    "emission",
    "sequence",
    "left_to_right",
    "trials",
    "rotation",
    "response",
    "family",
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model as the command offers it.

    text: what it is for. build: the model for these options, data and number of components. options: those of its own
    that it takes. values: what the columns of its data hold. cells: whether some cells of a row may be missing, or only
    all. unit: what --components counts. criteria: what may choose among numbers of them. noise: whether there is a
    component of noise beside them.
    """

    text: str
    build: Callable[[Options, Input, int], Model]
    options: frozenset[str] = frozenset()
    values: Values = "numbers"
    cells: bool = False
    unit: str = "component"
    criteria: tuple[str, ...] = ("bic", "aic", "icl")
    noise: bool = False


@dataclasses.dataclass(frozen=True)
class Variants:
    """Kinds told apart by an option; the first is the default."""

    text: str
    option: str
    kinds: dict[str, Kind]


@dataclasses.dataclass(frozen=True)
class _Part:
    """A family as a part of models: how it is built, and the options that it brings."""

    text: str
    build: Callable[[Options, Input], Family]
    options: frozenset[str] = frozenset()
    values: Values = "numbers"
    cells: bool = False


_FAMILIES = {
    "gaussian": _Part(
        "normal distributions",
        lambda args, data: jaxem.Gaussian(_covariance(args)),
        frozenset({"covariance", "noise"}),
        cells=True,
    ),
    "student-t": _Part(
        "Student t distributions",
        lambda args, data: jaxem.StudentT(_covariance(args), expanded=not args.prior),
        frozenset({"covariance"}),
    ),
    "poisson": _Part("Poisson counts", lambda args, data: jaxem.Poisson(), cells=True),
    "negative-binomial": _Part("overdispersed counts", lambda args, data: jaxem.NegativeBinomial(), cells=True),
    "zero-inflated-poisson": _Part(
        "Poisson counts with more zeros", lambda args, data: jaxem.ZeroInflated(jaxem.Poisson()), cells=True
    ),
    "categorical": _Part(
        "categories, as words or whole numbers",
        lambda args, data: jaxem.Categorical(tuple(len(names or ()) for names in data.table.categories)),
        values="categories",
        cells=True,
    ),
    "bernoulli": _Part("answers 0 or 1", lambda args, data: jaxem.Bernoulli(), cells=True),
    "binomial": _Part(
        "numbers of successes",
        lambda args, data: jaxem.Binomial(_trials(args, data)),
        frozenset({"trials"}),
        cells=True,
    ),
    "gamma": _Part("positive numbers of any skewness", lambda args, data: jaxem.Gamma(), cells=True),
    "exponential": _Part("waiting times", lambda args, data: jaxem.Exponential(), cells=True),
    "lognormal": _Part("positive numbers with normal logarithms", lambda args, data: jaxem.LogNormal(), cells=True),
    "inverse-gaussian": _Part("first passage times", lambda args, data: jaxem.InverseGaussian(), cells=True),
    "beta": _Part("shares between 0 and 1", lambda args, data: jaxem.Beta(), cells=True),
    "dirichlet": _Part("rows of shares that sum to 1", lambda args, data: jaxem.Dirichlet()),
    "von-mises-fisher": _Part("directions, rows of length 1", lambda args, data: jaxem.VonMisesFisher()),
    "multinomial": _Part("rows of counts, given their sums", lambda args, data: jaxem.Multinomial()),
    "geometric": _Part("numbers of failures", lambda args, data: jaxem.Geometric(), cells=True),
}


def _trials(args: Options, data: Input) -> int:
    if args.trials is None:
        raise CommandError("binomial counts need --trials, the number of trials of each row")
    return args.trials


def _covariance(args: Options) -> Covariance:
    return COVARIANCES[args.covariance or "full"]


def _mixture(part: _Part) -> Kind:
    def build(args: Options, data: Input, num_components: int) -> Model:
        mixture = jaxem.MixtureOfExperts if args.gate else jaxem.Mixture
        family, size = part.build(args, data), num_components
        if args.noise:
            family, size = jaxem.WithNoise(family), num_components + 1
        return _with_prior(args, _in_memory(mixture(family, size), data))

    options = part.options | {"prior", "missing", "gate"}
    return Kind(f"mixture of {part.text}", build, options, part.values, part.cells)


def _product(args: Options, data: Input) -> Family:
    """Independent blocks of the columns of numbers, of counts and of categories, as many of them as there are."""
    named = data.table.categories
    coded = [i for i, names in enumerate(named) if names is not None]
    plain = [i for i in range(len(named)) if i not in coded and i not in data.counts]
    categories = tuple(len(named[i] or ()) for i in coded)
    families = {
        "numbers": (lambda: jaxem.Gaussian(_covariance(args)), plain),
        "counts": (jaxem.Poisson, list(data.counts)),
        "categories": (lambda: jaxem.Categorical(categories), coded),
    }
    return jaxem.Product({name: (family(), columns) for name, (family, columns) in families.items() if columns})


def _hmm(part: _Part) -> Kind:
    def build(args: Options, data: Input, num_components: int) -> Model:
        allowed = initial = None
        if args.left_to_right:
            allowed, initial = jaxem.left_to_right(num_components), [k == 0 for k in range(num_components)]
        family = part.build(args, data)
        return _with_prior(args, jaxem.HMM(family, num_components, allowed=allowed, allowed_initial=initial))

    options = part.options - {"noise"} | {"prior", "emission", "sequence", "left_to_right", "missing"}
    text = f"hidden Markov model with {part.text}"
    return Kind(text, build, options, part.values, part.cells, "state", ("bic", "aic"))


_REGRESSIONS: dict[str, tuple[str, Callable[[], Family]]] = {
    "linear": ("linear regressions", jaxem.LinearRegression),
    "logistic": ("logistic regressions", jaxem.LogisticRegression),
    "poisson": ("Poisson regressions", jaxem.PoissonRegression),
}


def _regressions(what: str, mixture: Callable[[Family, int], Model]) -> Variants:
    def kind(text: str, family: Callable[[], Family]) -> Kind:
        def build(args: Options, data: Input, num_components: int) -> Model:
            return _in_memory(mixture(family(), num_components), data)

        return Kind(f"{what} {text}", build, frozenset({"response", "family"}))

    kinds = {name: kind(text, family) for name, (text, family) in _REGRESSIONS.items()}
    return Variants(f"{what} regressions of one column on the others", "family", kinds)


def _in_memory(model: Model, data: Input) -> Model:
    return jaxem.Chunked(model) if data.num_rows > _CHUNKED_ROWS else model


def _with_prior(args: Options, model: Model) -> Model:
    return jaxem.WithPrior(model, args.prior) if args.prior else model


def _factors(text: str, name: str) -> Kind:
    def build(args: Options, data: Input, num_factors: int) -> Model:
        return getattr(jaxem, name)(num_factors)

    return Kind(text, build, frozenset({"rotation", "missing"}), cells=True, unit="factor", criteria=("bic", "aic"))


def _factor_analyzers(args: Options, data: Input, num_components: int) -> Model:
    count = args.factors or 1
    if count >= len(data.columns):
        raise CommandError(f"--factors must be below the number of columns, {len(data.columns)}; got {count}")
    mixture = jaxem.MixtureOfExperts if args.gate else jaxem.Mixture
    return _in_memory(mixture(jaxem.FactorAnalysis(count), num_components), data)


_MIXED = _Part(
    "columns of several kinds: normal numbers, Poisson --counts, categories",
    _product,
    frozenset({"covariance", "counts", "categories"}),
    values="mixed",
    cells=True,
)


def _mixture_name(family: str) -> str:
    return "latent-class" if family == "categorical" else f"{family}-mixture"


#: The models by name; a mixture is also known by the name of its family alone.
MODELS: dict[str, Kind | Variants] = {
    **{_mixture_name(name): _mixture(part) for name, part in _FAMILIES.items()},
    "mixed": _mixture(_MIXED),
    "regression-mixture": _regressions("mixture of", jaxem.Mixture),
    "experts": _regressions("mixture, with weights that depend on the others, of", jaxem.MixtureOfExperts),
    "factor-analyzers": Kind(
        "mixture of factor analyzers", _factor_analyzers, frozenset({"factors", "missing", "gate"}), cells=True
    ),
    "factor-analysis": _factors("factor analysis, with a noise variance of each column", "FactorAnalysis"),
    "ppca": _factors("probabilistic principal components, with one noise variance", "PPCA"),
    "hmm": Variants("hidden Markov model", "emission", {name: _hmm(part) for name, part in _FAMILIES.items()}),
}


def canonical(name: str) -> str | None:
    """The name of a model in the table, from any it is known by; None where there is none."""
    return next((known for known in (name, _mixture_name(name)) if known in MODELS), None)


def variants(option: str) -> tuple[str, ...]:
    """What an option that tells kinds apart may say."""
    found = [row.kinds for row in MODELS.values() if isinstance(row, Variants) and row.option == option]
    return tuple(dict.fromkeys(name for kinds in found for name in kinds))


def choose(args: Options) -> Kind:
    """The model that was asked for; raises CommandError for an option that it does not have."""
    row = MODELS[args.model]
    name = f"--model {args.model}"
    if isinstance(row, Variants):
        variant = getattr(args, row.option) or next(iter(row.kinds))
        if variant not in row.kinds:
            raise CommandError(f"{name} takes --{row.option} {', '.join(row.kinds)}; got {variant!r}")
        kind, name = row.kinds[variant], f"{name} --{row.option} {variant}"
    else:
        kind = row
    for option in _OWN:
        if getattr(args, option) not in (None, False) and option not in kind.options:
            users = ", ".join(known for known, row in MODELS.items() if option in _options(row))
            raise CommandError(f"{_typed(option)} does not apply to {name}; it is an option of {users}")
    if args.criterion not in kind.criteria:
        raise CommandError(f"--criterion {args.criterion} does not apply to {name}; use {' or '.join(kind.criteria)}")
    return dataclasses.replace(kind, noise=args.noise)


def _options(row: Kind | Variants) -> frozenset[str]:
    return row.options if isinstance(row, Kind) else frozenset().union(*(kind.options for kind in row.kinds.values()))


def _typed(option: str) -> str:
    return "--" + option.replace("_", "-")


def listing() -> str:
    """The table of the models, for the help."""
    lines = []
    width = max(map(len, MODELS)) + 1
    for name, row in MODELS.items():
        options = " ".join(_typed(option) for option in _OWN if option in _options(row) and option != "missing")
        lines.append(f"  {name:<{width}}{row.text}\n  {'':<{width}}{options}".rstrip())
    lines.append("of a name that ends in -mixture the beginning is enough; all but regressions take --missing")
    return "\n".join(lines)
