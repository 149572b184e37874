"""Reference cases: real data fitted by other systems, one JSON each, and the small tables they were fitted to."""

import csv
import functools
import json
import pathlib

import numpy as np

_FOLDER = pathlib.Path(__file__).parent / "reference"


@functools.cache
def case(name: str) -> dict:
    """The case as it is written: data, settings, tolerance and fits."""
    return json.loads((_FOLDER / f"{name}.json").read_text())


def fit_of(name: str, identifier: str) -> dict:
    """One fit of a case."""
    (found,) = (fit for fit in case(name)["fits"] if fit["id"] == identifier)
    return found


@functools.cache
def table(file: str, *columns: str) -> np.ndarray:
    """Columns of a CSV file as float64, [N, columns]; an empty cell is NaN."""
    with (_FOLDER / "data" / file).open() as lines:
        rows = list(csv.DictReader(lines))
    return np.array([[float(row[column] or "nan") for column in columns] for row in rows])


def faithful() -> np.ndarray:
    """Old Faithful: duration of an eruption and the wait after it, in minutes, [272, 2]."""
    return table("faithful.csv", "eruptions", "waiting")


def iris() -> np.ndarray:
    """Four lengths of 150 irises, in centimetres, [150, 4]."""
    return table("iris.csv", "sepal_length", "sepal_width", "petal_length", "petal_width")


def deaths() -> tuple[np.ndarray, np.ndarray]:
    """Deaths a day, [10, 1], and on how many days there were so many, [10]."""
    rows = table("hasselblad_deaths.csv", "deaths", "days")
    return rows[:, :1], rows[:, 1]
