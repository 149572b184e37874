"""Small public data sets, shipped with the package.

| name | rows | columns | from |
|---|---|---|---|
| `airquality` | 153 | Ozone, Solar.R, Wind, Temp, some missing | Chambers et al. (1983); in R as `airquality` |
| `earthquakes` | 107 | count | Zucchini & MacDonald (2009), Hidden Markov Models for Time Series, table 1.1 |
| `faithful` | 272 | eruptions, waiting | Azzalini & Bowman (1990), Applied Statistics 39, 357-365; in R as `faithful` |
| `iris` | 150 | sepal and petal length and width | Anderson (1935); Fisher (1936), Annals of Eugenics 7, 179-188 |
| `hasselblad_deaths` | 10 | deaths, with days as weights | Hasselblad (1969), JASA 64, 1459-1471 |
| `values` | 216 | A, B, C, D, each 1 or 2 | Stouffer & Toby (1951); Goodman (1974), Biometrika 61, 215-231 |
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxem import tables


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: x, float64 [N, D], the names of its columns, and the weights of the rows of a table of counts.

    mask: True where a cell is there, [N, D], None where all are; a missing cell of x is NaN. description: one sentence
    about the rows. source: who measured and published them.
    """

    name: str
    x: np.ndarray
    columns: tuple[str, ...]
    weights: np.ndarray | None
    description: str
    source: str

    @property
    def mask(self) -> np.ndarray | None:
        there = ~np.isnan(self.x)
        return None if there.all() else there


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a data set without reading it.

    weights: the column that counts how often a row occurred. missing: whether some cells are missing.
    """

    columns: tuple[str, ...]
    description: str
    source: str
    weights: str | None = None
    missing: bool = False


_ENTRIES = {
    "airquality": Entry(
        ("Ozone", "Solar.R", "Wind", "Temp"),
        "Air quality in New York on 153 days of 1973: ozone, solar radiation, wind and temperature, 44 values missing.",
        "Chambers, Cleveland, Kleiner and Tukey (1983), Graphical Methods for Data Analysis, from the New York State "
        "Department of Conservation and the National Weather Service.",
        missing=True,
    ),
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
    "values": Entry(
        ("A", "B", "C", "D"),
        "What 216 people would do in four conflicts between a friend and a rule: 1 particularistic, 2 universalistic.",
        "Stouffer and Toby (1951), American Journal of Sociology 56, 395-406; Goodman (1974), Exploratory latent structure "
        "analysis using both identifiable and unidentifiable models, Biometrika 61, 215-231.",
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
    table = tables.read(path(name), columns=known.columns, weights=known.weights, missing=known.missing)
    return Dataset(name, table.x, table.columns, table.weights, known.description, known.source)
