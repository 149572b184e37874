"""Small public data sets, shipped with the package.

| name | rows | columns | from |
|---|---|---|---|
| `earthquakes` | 107 | count | Zucchini & MacDonald (2009), Hidden Markov Models for Time Series, table 1.1 |
| `faithful` | 272 | eruptions, waiting | Azzalini & Bowman (1990), Applied Statistics 39, 357-365; in R as `faithful` |
| `iris` | 150 | sepal and petal length and width | Anderson (1935); Fisher (1936), Annals of Eugenics 7, 179-188 |
| `hasselblad_deaths` | 10 | deaths, with days as weights | Hasselblad (1969), JASA 64, 1459-1471 |
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxem import tables


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: x, float64 [N, D], the names of its columns, and the weights of the rows of a table of counts.

    description: one sentence about the rows. source: who measured and published them.
    """

    name: str
    x: np.ndarray
    columns: tuple[str, ...]
    weights: np.ndarray | None
    description: str
    source: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a data set without reading it. weights: the column that counts how often a row occurred."""

    columns: tuple[str, ...]
    description: str
    source: str
    weights: str | None = None


_ENTRIES = {
    "earthquakes": Entry(
        ("count",),
        "The number of earthquakes of magnitude 7 or more in the world, in each of the years 1900 to 2006.",
        "Zucchini and MacDonald (2009), Hidden Markov Models for Time Series, table 1.1; from the U.S. Geological Survey.",
    ),
    "faithful": Entry(
        ("eruptions", "waiting"),
        "272 eruptions of the Old Faithful geyser: how long each lasted and the wait for the next, in minutes.",
        "Azzalini and Bowman (1990), A look at some data on the Old Faithful geyser, Applied Statistics 39, 357-365.",
    ),
    "hasselblad_deaths": Entry(
        ("deaths",),
        "Death notices of women over 80 in The Times, 1910-1912: the number of days (the weights) with 0 to 9 notices.",
        "Hasselblad (1969), Estimation of finite mixtures of distributions from the exponential family, "
        "Journal of the American Statistical Association 64, 1459-1471.",
        weights="days",
    ),
    "iris": Entry(
        ("sepal_length", "sepal_width", "petal_length", "petal_width"),
        "Sepals and petals of 150 irises of three species, 50 of each, in centimeters.",
        "Anderson (1935), collected; Fisher (1936), The use of multiple measurements in taxonomic problems, "
        "Annals of Eugenics 7, 179-188.",
    ),
}


def names() -> tuple[str, ...]:
    """The names `load` takes."""
    return tuple(_ENTRIES)


def entry(name: str) -> Entry:
    """What is known of a data set without reading it; raises ValueError for an unknown name."""
    if name not in _ENTRIES:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(_ENTRIES)}")
    return _ENTRIES[name]


def path(name: str) -> Path:
    """Where the file of a data set lies."""
    entry(name)
    return Path(__file__).with_name(f"{name}.csv")


def load(name: str) -> Dataset:
    """A data set by name; raises ValueError, which lists the names, for an unknown one."""
    known = entry(name)
    table = tables.read(path(name), columns=known.columns, weights=known.weights)
    return Dataset(name, table.x, table.columns, table.weights, known.description, known.source)
