"""The data sets that come with the package."""

import numpy as np
import pytest

from jaxem import datasets


def test_names_are_those_that_load():
    assert datasets.names() == ("airquality", "earthquakes", "faithful", "hasselblad_deaths", "iris", "values")


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_is_finite_and_says_where_it_comes_from(name):
    data = datasets.load(name)
    assert data.x.dtype == np.float64
    assert data.x.shape[1] == len(data.columns)
    assert np.all(np.isfinite(data.x) if data.mask is None else np.isfinite(data.x) == data.mask)
    assert data.name == name
    assert data.description.endswith(".")
    assert data.source.endswith(".")


def test_faithful():
    data = datasets.load("faithful")
    assert data.x.shape == (272, 2)
    assert data.columns == ("eruptions", "waiting")
    assert data.weights is None
    np.testing.assert_allclose(data.x.mean(axis=0), [3.487783, 70.897059], rtol=1e-6)


def test_iris():
    data = datasets.load("iris")
    assert data.x.shape == (150, 4)
    np.testing.assert_allclose(data.x.mean(axis=0), [5.843333, 3.057333, 3.758, 1.199333], rtol=1e-6)


def test_the_deaths_are_a_table_of_frequencies():
    data = datasets.load("hasselblad_deaths")
    assert data.columns == ("deaths",)
    np.testing.assert_array_equal(data.x[:, 0], np.arange(10))
    assert data.weights.sum() == 1096


def test_earthquakes_are_a_sequence_of_years():
    data = datasets.load("earthquakes")
    assert data.columns == ("count",)
    assert data.x.shape == (107, 1)
    assert (data.x[0, 0], data.x[-1, 0], data.x.sum()) == (13, 11, 2072)


def test_airquality_has_missing_cells():
    data = datasets.load("airquality")
    assert data.x.shape == (153, 4)
    assert (~data.mask).sum(axis=0).tolist() == [37, 7, 0, 0]
    np.testing.assert_allclose(np.nanmean(data.x, axis=0), [42.129310, 185.931507, 9.957516, 77.882353], rtol=1e-6)


def test_values():
    data = datasets.load("values")
    assert data.mask is None
    assert sorted(set(data.x.ravel())) == [1, 2]
    assert len(data.x) == 216
    assert np.sum(np.all(data.x == 2, axis=1)) == 42


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match="no data set 'wine'; there are airquality, earthquakes, faithful, "):
        datasets.load("wine")
