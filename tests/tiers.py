"""What of the suite every change passes, and what is left to a release: the marker `full`.

Three rules put a test into the full tier; nothing is ever left out of both.

1. Of a test over several parameters the default tier runs a covering array: of two parameters every value of each, of three
   or more every pair of values (strength 2). A fault that shows in one value, or in the meeting of two, is still seen.
2. Of a test over one long list (the published fits, the table of laws, every subcommand) it runs the rows named in `KEPT`,
   at least one of each kind.
3. Of a test over both floating-point types it runs one, and of one over more than eight cases (families, models, rows of a
   table) every other case; the next test takes the other type and the other cases. So each type, each family and each
   promise is asked by half of what asks it in the full tier. What must stay is named in `ALWAYS`.
4. Tests marked `slow`, and those marked `full` where they stand.

A case that sees a deliberate fault (`faults.FAULTS`) is in the default tier, whatever the first three rules say.
"""

import collections
import functools
import itertools
import zlib

import pytest

# The rows of long lists that every change passes.
KEPT = {
    "test_reference.py::test_many_starts_reach_the_best_known_optimum": (
        "gmm-mclust-faithful:VVV-2",
        "gmm-mclust-faithful:VVV-3",
        "gmm-sklearn-iris:tied-3",
    ),
    "test_reference.py::test_the_given_start_leads_to_the_published_optimum": (
        "gmm-mclust-faithful:EII-1",
        "gmm-mclust-faithful:EEE-2",
        "gmm-mclust-faithful:EVE-2",
        "gmm-mclust-faithful:VEV-2",
        "gmm-mclust-faithful:VVV-3",
        "gmm-sklearn-iris:full-3",
        "gmm-sklearn-iris:diag-2",
        "gmm-sklearn-iris:spherical-2",
        "gmm-mixtools-waiting:V-2",
        "poisson-mixture-deaths:K2",
    ),
    "test_reference.py::test_other_models_reach_the_published_optimum": (
        "lca-values:k2",
        "binomial-mixture-saxony:K2",
        "zip-biochemists:zip-intercepts",
        "fa-factanal-ability:k2",
        "ppca-usarrests:q1",
        "mfa-iris:g2-q1-Dcommon",
        "hmm-poisson-earthquakes:K2_0",
        "hmm-poisson-earthquakes:K2-stationary",
        "hmm-gaussian-geyser:diag-2_0",
        "hmm-categorical-geyser:K3",
        "irt-lsat6:rasch-1",
        "lmm-sleepstudy:intercept",
        "dawid-skene-anesthetists:from-answers",
        "mvn-missing-airquality:normal",
        "reg-flexmix-npreg:yn-linear-k2",
    ),
    "test_laws.py::test_model": (
        "log joint, poissons",
        "log joint, quadrature",
        "gradient m-step, with log-prior",
        "mixture, gaussian full",
        "mixture, gaussian full, missing",
        "mixture, gaussian VEV",
        "mixture, gamma, missing cells",
        "mixture, von mises-fisher",
        "mixture, linear regression, cells missing, tied noise",
        "mixture, multinomial regression",
        "mixture, categorical, cells missing",
        "mixture, product",
        "mixture, zero-inflated poisson",
        "mixture, factor analyzers",
        "mixture, student t",
        "with prior, poisson",
        "chunked, a remainder",
        "experts, linear regression",
        "frozen weights and one rate",
        "student t, expanded",
        "factor analysis, holes",
        "ppca",
        "mixture of mixtures",
        "input-output HMM",
        "hidden Markov model, poisson, missing cells",
        "with prior, chunked, hidden Markov model",
        "hard mixture",
        "conditional maximizations",
        "annealed mixture",
    ),
    "test_cli.py::test_every_mixture_finds_two_groups": ("student-t", "gamma"),
    "test_cli.py::test_shares_and_directions": ("beta",),
    "test_cli.py::test_regressions": ("linear",),
}


# Files that rule 3 leaves as they are: what sees deliberate faults, and where rounding is the subject.
ALWAYS = ("test_the_tests.py", "test_linalg.py", "test_same_function.py", "test_tiers.py", "test_oracles.py")
_MANY = 8


def name_of(item: pytest.Item) -> str:
    """File, classes and function, without parameters."""
    return item.nodeid.split("[")[0].removeprefix("tests/")


def is_kept(item: pytest.Item, rows: tuple[str, ...]) -> bool:
    """Whether it is one of the rows: by its first parameter in words, or by all of them."""
    identifier = item.callspec.id
    return identifier in rows or (item.path.name == "test_cli.py" and identifier.startswith(rows))


def assign(items: list[pytest.Item]) -> None:
    """Mark what is left to the full tier."""
    functions = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.full)
        if hasattr(item, "callspec"):
            functions[name_of(item)].append(item)
    for name, group in functions.items():
        kept = [i for i in group if is_kept(i, KEPT[name])] if name in KEPT else alternating(name, covering(group))
        kept += [item for item in group if sees_a_fault(item)]
        for item in group:
            if item not in kept:
                item.add_marker(pytest.mark.full)


def sees_a_fault(item: pytest.Item) -> bool:
    """Whether it is a case by which test_the_tests.py shows that a fault would be seen."""
    arguments = item.callspec.params
    return any(asked.items() <= arguments.items() for asked in _checks()[path_of(item)])


def path_of(item: pytest.Item) -> str:
    """The test as the table of faults names it: ``"test_driver:TestRank.test_x"``."""
    return f"{item.path.stem}:{'.'.join([*([item.cls.__name__] if item.cls else []), item.originalname])}"


@functools.cache
def _checks() -> dict[str, list[dict]]:
    from faults import FAULTS  # which imports test files, and so comes after the settings of the compiler

    checks = collections.defaultdict(list)
    for fault in FAULTS:
        name, arguments = fault.check.node
        checks[name].append(arguments)
    return checks


def alternating(name: str, group: list[pytest.Item]) -> list[pytest.Item]:
    """One floating-point type of two, and every other one of many cases; which, the name of the test says."""
    if name.startswith(ALWAYS):
        return group
    turn = zlib.crc32(name.encode()) % 2
    types = {item.callspec.params.get("dtype") for item in group}
    if types == {"float32", "float64"}:
        # Where a value of another parameter has one type only, it stays.
        of_type = [i for i in group if i.callspec.params["dtype"] == ("float32", "float64")[turn]]
        met = {_without_type(i) for i in of_type}
        group = of_type + [i for i in group if _without_type(i) not in met]
    return group[turn::2] if len(group) > _MANY else group


def _without_type(item: pytest.Item) -> str:
    return item.callspec.id.replace("float32", "").replace("float64", "")


def covering(group: list[pytest.Item]) -> list[pytest.Item]:
    """As few items as a greedy choice finds that meet every pair of values, or of two parameters every value."""
    # One entry for each `parametrize`; pytest has no public name for them, and without it nothing is left out.
    rows = [tuple(getattr(item.callspec, "_idlist", ()) or (item.callspec.id,)) for item in group]
    if len(rows[0]) < 2 or len(set(map(len, rows))) > 1:
        return group
    columns = range(len(rows[0]))
    strength = 1 if len(columns) == 2 else 2
    places = list(itertools.combinations(columns, strength))
    met = [{(place, tuple(row[i] for i in place)) for place in places} for row in rows]
    missing, used, kept = set().union(*met), collections.Counter(), []
    while missing:
        # Of equally good ones the one whose values were used least.
        best = max(
            range(len(rows)), key=lambda n: (len(met[n] & missing), -sum(used[v] for v in enumerate(rows[n])), -n)
        )
        missing -= met[best]
        used.update(enumerate(rows[best]))
        kept.append(group[best])
    return kept
